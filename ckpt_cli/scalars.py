"""Scalars that lie in a file as tensors (a step, a best loss) as plain numbers, without an array library."""

from __future__ import annotations

import math
import struct

from ckpt_cli.formats import Files
from ckpt_cli.tensor_file import TensorInfo
from ckpt_cli.tensors import checked_blocks, crc32, readable

_FORMS = {
    "float64": "<d", "float32": "<f", "float16": "<e", "int64": "<q", "int32": "<i", "int16": "<h", "int8": "<b",
    "uint64": "<Q", "uint32": "<I", "uint16": "<H", "uint8": "<B", "bool": "<?",
}  # fmt: skip
_SMALL = 64


class Numbers:
    """Reads scalars; the CRC32 of each record they lie in is checked once."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.checked: set[tuple[str, int]] = set()

    def of(self, value: object) -> int | float | None:
        """The value of a number or of a tensor with one element; None for anything else and what is not finite."""
        if isinstance(value, TensorInfo):
            value = self.read(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        return int(value) if value == int(value) else value

    def read(self, tensor: TensorInfo) -> int | float | bool | None:
        """What a tensor of one element holds; None for others and for dtypes that Python has no number of.

        Raises Damaged where its record does not fit its CRC32.
        """
        if tensor.elements != 1 or readable(tensor):
            return None
        form = "<f" if tensor.dtype == "bfloat16" else _FORMS.get(tensor.dtype)
        if form is None:
            return None
        data = self._small(tensor) or b"".join(checked_blocks(self.files, tensor, self.checked))
        number: int | float | bool = struct.unpack(form, b"\0\0" + data if tensor.dtype == "bfloat16" else data)[0]
        return number

    def _small(self, tensor: TensorInfo) -> bytes | None:
        """The tensor's bytes, read with all of its storage, where that is small and as it was written: an optimizer
        has hundreds of thousands of such."""
        place = tensor.storage
        if place is None or place.packed or place.bytes > _SMALL or tensor.form != "strided" or tensor.swapped:
            return None
        data = self.files.at(place.file).read_at(place.offset, place.bytes)
        if tensor.signs or place.crc32 not in (None, crc32(data)):
            return None
        return data[tensor.offset * tensor.itemsize :][: tensor.itemsize]
