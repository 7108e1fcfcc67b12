"""safetensors files: a JSON header, then the tensors' bytes, gapless.

The rules are those of the safetensors library, version 0.8, and are kept strictly: what it refuses is
refused here. Header length u64 little-endian, at most 100 MB; offsets start at 0, without holes or overlap, and
end where the file ends.
"""

from __future__ import annotations

import json
import math
from typing import Any

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import ByteSource, Records
from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.formats._header import METADATA, Refused, Repeated, check_depth, members
from ckpt_cli.formats._inert import Costly, quoted
from ckpt_cli.room import room_of_a_file
from ckpt_cli.shapes import contiguous_stride
from ckpt_cli.tensor_file import Storage, TensorFile, TensorInfo

NAME = "safetensors"
MAX_HEADER = 100_000_000
# The largest model has some thousands of tensors, and hardly one of nothing; each takes a thousand bytes of memory.
_MAX_EMPTY = 30_000
# No writer makes two of one name; they would be a way to fill a header with what takes no byte of the data.
_MAX_TWICE = 100_000
# Bytes of memory that a tensor of a few dimensions is counted as, besides its name, and each dimension more, of which
# there may be any number.
_TENSOR, _FEW, _DIMENSION = 875, 4, 56
_U64 = 2**64
# Where its bytes begin and end, and its dtype code and shape, as the header has them.
_Described = tuple[int, int, str, tuple[int, ...]]
# The first two, and torch's dtype, shape and bytes per element.
_Placed = tuple[int, int, str, tuple[int, ...], int]
# What torch's HuggingFaceStorageWriter says where each tensor of a file is a slice of one that lies in several.
_SLICES = "DCP_SHARDING_INFO"
_FIELDS = ("dtype", "shape", "data_offsets")
# safetensors' name -> torch's, and bits per element as the header counts them.
DTYPES = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1fn_x2", 4),
    "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "C64": ("complex64", 64),
    "F64": ("float64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}


def matches(head: bytes, size: int) -> bool:
    """A plausible header length and a `{` behind it; the reader takes blanks before the brace.

    Of an interrupted write the length may be all there is.
    """
    length = int.from_bytes(head[:8], "little")
    begun = len(head) > 8 or (size == 8 and length > 1)
    return begun and length <= MAX_HEADER and head[8:].lstrip(b" \t\r\n")[:1] in (b"{", b"")


def check(source: ByteSource) -> None:
    """Header and length: the data must end where the file ends."""
    read(source)


def records(source: ByteSource) -> Records:
    """The bytes of each tensor, without a CRC32: none is ever written."""
    file = read(source)
    return Records(sorted(file.storages, key=lambda storage: (storage.offset, storage.bytes)), lambda: file)


def read(source: ByteSource) -> TensorFile:
    placed, metadata, start = _header(source)
    slices = _slices(source, (metadata or {}).get(_SLICES))
    end = 0
    for name in sorted(placed, key=lambda name: (placed[name][:2], name)):
        first, last = placed[name][:2]
        if first != end or last < first:
            raise _broken(source, f"the bytes of tensor {quoted(name)} do not follow on those before it")
        end = last
    if start + end > source.size:
        lost = counted(start + end - source.size, "byte")
        raise Damaged(f"{source.path} is truncated: it lacks {lost} of its data", kind="truncated")
    if start + end < source.size:
        raise _broken(source, f"{counted(source.size - start - end, 'byte')} after its data")
    tensors = []
    for name, (first, last, dtype, shape, itemsize) in placed.items():
        storage = Storage(name, source.path, start + first, last - first)
        # torch has no floats of six bits, and none of four in odd number: their bytes are no elements of ours.
        form = "strided" if math.prod(shape) * itemsize == last - first else f"packed {dtype}"
        tensor = TensorInfo(name or "<root>", dtype, shape, contiguous_stride(shape), 0, itemsize, storage, form)
        tensors.append(_slice(source, tensor, slices[name]) if name in slices else tensor)
    storages = tuple(tensor.storage for tensor in tensors if tensor.storage)
    values = {"__metadata__." + key: value for key, value in (metadata or {}).items()}
    return TensorFile(source.path, NAME, tuple(tensors), values, storages=storages)


def _header(source: ByteSource) -> tuple[dict[str, _Placed], dict[str, str] | None, int]:
    """The tensors by name, the metadata, and where the data begins."""
    if source.size < 8:
        raise Damaged(f"{source.path} is truncated: it ends within the length of its header", kind="truncated")
    length = int.from_bytes(source.read_at(0, 8), "little")
    if length > MAX_HEADER:
        raise _broken(source, f"its header of {length} bytes is larger than {MAX_HEADER}")
    if 8 + length > source.size:
        raise Damaged(f"{source.path} is truncated: it ends within its header", kind="truncated")
    described: dict[str, _Described] = {}
    told: list[Any] = []
    nothing = twice = 0
    room = room_of_a_file(source.size)
    try:
        for name, entry in members(source, 8, 8 + length):
            if name != METADATA:
                # Of two that are called alike the library reads both, and forgets the first before it looks at sizes.
                twice += name in described
                room -= 0 if name in described else _TENSOR + len(name)
                described[name] = found = _described(source, name, entry)
                nothing += found[0] == found[1]
                room -= _DIMENSION * max(0, len(found[3]) - _FEW)
                if room < 0:
                    raise Costly(f", with {len(described)} tensors")
            elif told or not isinstance(entry, (dict, type(None))):
                raise _broken(source, "its __metadata__ stands twice, or is something else than texts")
            else:
                told.append(entry)
            if nothing > _MAX_EMPTY:
                raise _broken(source, f"it has more than {_MAX_EMPTY} tensors without a byte")
            if twice > _MAX_TWICE:
                raise _broken(source, f"it has more than {_MAX_TWICE} tensors of names that stand twice")
    except Costly as error:
        error.message = f"{source.path} is refused: {error.message}"
        raise
    except Refused as error:
        raise _broken(source, f"its header {error}") from error
    except ValueError as error:
        raise _broken(source, f"its header is not JSON: {error}") from error
    placed = {name: _placed(source, name, *found) for name, found in described.items()}
    return placed, told[0] if told else None, 8 + length


def _described(source: ByteSource, name: str, entry: Any) -> _Described:
    """What one header entry says, each part of its type."""
    if type(entry) is not dict or len(entry) > len(_FIELDS):
        check_depth(entry)
    if isinstance(entry, list) and len(entry) == len(_FIELDS):
        entry = dict(zip(_FIELDS, entry))  # no writer makes them, but the library takes the fields in this order
    if not isinstance(entry, dict):
        raise _broken(source, f"tensor {quoted(name)} is not described by an object")
    code, shape, offsets = (entry.get(key) for key in _FIELDS)
    if isinstance(entry, Repeated) and entry.twice & set(_FIELDS):
        raise _broken(source, f"tensor {quoted(name)} is described twice over")
    if isinstance(code, dict) and len(code) == 1 and not isinstance(code, Repeated) and None in code.values():
        code = next(iter(code))  # and a dtype as the name of nothing
    if not isinstance(code, str) or code not in DTYPES:
        raise _broken(source, f"tensor {quoted(name)} has the unknown dtype {quoted(str(code))}")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < _U64 for size in shape):
        raise _broken(source, f"tensor {quoted(name)} has a shape that is no list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and 0 <= n < _U64 for n in offsets):
        raise _broken(source, f"tensor {quoted(name)} has no two data_offsets")
    return offsets[0], offsets[1], code, tuple(shape)


def _placed(source: ByteSource, name: str, first: int, last: int, code: str, shape: tuple[int, ...]) -> _Placed:
    """One header entry, held against itself."""
    dtype, bits = DTYPES[code]
    total = 1
    for size in (*shape, bits):
        total *= size
        if total >= _U64:
            raise _broken(source, f"the size of tensor {quoted(name)} overflows")
    if total % 8 or total // 8 != last - first:
        raise _broken(source, f"the shape of tensor {quoted(name)} does not fit its bytes")
    if code == "F4" and shape:
        shape = (*shape[:-1], shape[-1] // 2)  # torch packs two in one element
    return first, last, dtype, shape, ITEMSIZE.get(dtype, 1)


def _slices(source: ByteSource, text: str | None) -> dict[str, Any]:
    """Where each slice begins in its tensor, by name, as JSON within the JSON says it."""
    try:
        told = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(source, f"its {_SLICES} is not JSON") from error
    if not isinstance(told, dict) or not all(isinstance(entry, dict) for entry in told.values()):
        raise _broken(source, f"its {_SLICES} is no object of objects")
    return {name: entry.get("saved_offsets") for name, entry in told.items()}


def _slice(source: ByteSource, tensor: TensorInfo, offsets: Any) -> TensorInfo:
    """The tensor as one piece of a larger one, that says where it begins in it."""
    if (
        not isinstance(offsets, list)
        or len(offsets) != len(tensor.shape)
        or not all(type(n) is int and n >= 0 and n + size < _U64 for n, size in zip(offsets, tensor.shape))
    ):
        raise _broken(source, f"its {_SLICES} does not say where the slice of tensor {quoted(tensor.name)} begins")
    return tensor._replace(form="slice", pieces=((tuple(offsets), tensor),))


def _broken(source: ByteSource, why: str) -> CkptError:
    return CkptError(f"{source.path} breaks the safetensors format: {why}")
