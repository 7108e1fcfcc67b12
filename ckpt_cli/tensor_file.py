"""What a file of tensors holds: tensors as views of storages, and the values beside them. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

_SAME = "<same as "


class Storage(NamedTuple):
    """A run of bytes in a file that tensors are views of.

    `offset` places it in `file`, `bytes` is its length; `crc32` is what the writer recorded, None where nothing was.
    `packed` is how many bytes it takes in the file when it is compressed (raw DEFLATE), 0 when it is stored as it is.
    """

    name: str
    file: str
    offset: int
    bytes: int
    crc32: int | None = None
    packed: int = 0


class TensorInfo(NamedTuple):
    """A tensor as a strided view of a storage: `offset` counts elements from the storage's start.

    `dtype` is torch's spelling without `torch.`; `storage` is None where no bytes exist (meta device) or where the
    tensor is put together from `pieces`. `form` says what it is:

    - strided: one view of one storage, the rule.
    - quantized: the same, of the integers that a scale and a zero point belong to.
    - chunked: `pieces` tile it; the key of each is where it begins, one index a dimension.
    - archived: `storage` is a whole file of its own that holds this tensor (a slice of a `.distcp` file).
    - sparse_coo, sparse_csr, ..., nested, subclass: `pieces` are the tensors it is made of, by name. A nested one,
      whose rows differ in length, has the shape of its values.
    - zeros: of nothing but zeros, which lie nowhere.
    - meta: a shape without data. Any other form names what keeps it from being read.

    `swapped` says that its elements are big-endian, `signs` that torch has yet to turn them: those of all numbers, or
    of the imaginary halves.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    itemsize: int
    storage: Storage | None
    form: str = "strided"
    swapped: bool = False
    signs: Literal["", "negated", "conjugated"] = ""
    pieces: tuple[Piece, ...] = ()

    @property
    def elements(self) -> int:
        """How many there are; 1 of a scalar."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of its elements; of a tensor that is made of named ones, of those."""
        if self.pieces and self.form != "chunked":
            return sum(piece.bytes for _, piece in self.pieces)
        return self.elements * self.itemsize

    @property
    def file_offset(self) -> int | None:
        """The byte of the file at which its first element lies; None where its bytes do not lie there as they are."""
        if self.storage is None or self.storage.packed or self.form == "archived":
            return None
        return self.storage.offset + self.offset * self.itemsize


# One of a tensor's pieces: its name or where it begins, and what it is.
Piece = tuple["str | tuple[int, ...]", TensorInfo]


class ForeignGlobal(NamedTuple):
    """A name in a pickle that no checkpoint needs. It was not imported; `runs_code` if calling it could do harm."""

    name: str
    runs_code: bool


class TensorFile(NamedTuple):
    """What a file of tensors holds. `values` is everything that is no tensor, by dotted name.

    `kinds` says, where the format nests its contents, which names are containers and what the names do not tell:
    `dict`, `ordered` (an OrderedDict), `ints` (a dict whose keys are all integers), `list`, `tuple`, `mixed` (a dict of
    which one key begins as another that is a container, `a.b` and `a`), `module` (its members are named as if they
    lay in what holds it), `object` for a container that is none of these; `same` for a value that is a reference to
    another name, `text` for one that only stands for what it shows, `twice` for the last of several values of one name.
    The top has the name "".
    """

    path: str
    container: str
    tensors: tuple[TensorInfo, ...]
    values: Mapping[str, Any]
    foreign_globals: tuple[ForeignGlobal, ...] = ()
    storages: tuple[Storage, ...] = ()
    notes: tuple[str, ...] = ()
    kinds: Mapping[str, str] = MappingProxyType({})


def referred(value: Any) -> str | None:
    """The name that a value in `TensorFile.values` refers to, as `<same as NAME>`; None for any other value."""
    return value[len(_SAME) : -1] if isinstance(value, str) and value.startswith(_SAME) else None
