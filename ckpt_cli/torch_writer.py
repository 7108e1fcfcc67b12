"""Items -> a torch file: the zip that `torch.save` writes, which `torch.load` opens with weights only or mapped.

A pickle, one record for each item, aligned to 64 bytes, CRC32 in every header; ZIP64 where sizes or places need it
(APPNOTE 6.3, sections 4.3.7, 4.3.12, 4.3.14 to 16 and 4.5.3). Record names after torch/serialization.py, torch 2.13.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats import ByteSource, torch_zip
from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.items import Item
from ckpt_cli.nesting import is_flat, nested
from ckpt_cli.pickling import Ordered, View, dumps
from ckpt_cli.shapes import contiguous_stride
from ckpt_cli.tensor_file import TensorInfo
from ckpt_cli.tensors import crc32
from ckpt_cli.ties import Alias
from ckpt_cli.writing import Late, Output, Segment, size_of

_ROOT = "archive"
_ALIGNMENT = 64
_FULL = 0xFFFFFFFF
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
# Names are UTF-8. Nothing is compressed; the date is the first that the format knows, as torch writes it.
_FLAGS, _STORED, _DATE = 0x0800, 0, 0x21


class Archive(NamedTuple):
    """`lost` names what is not as it was in the source."""

    output: Output
    lost: tuple[str, ...]


def refusal(name: str, tensor: TensorInfo, dtype: str) -> str | None:
    """Why a tensor that can be read cannot be written here, or None."""
    return None if dtype in ITEMSIZE and not dtype.startswith("q") else f"torch files have no {dtype}"


def archive(
    path: str,
    items: Sequence[Item],
    aliases: Sequence[Alias],
    order: Sequence[str],
    values: Mapping[str, Any],
    kinds: Mapping[str, str],
    mark: str = "",
) -> Archive:
    """The file that holds the items and values, nested as `kinds` tells, aliases as views of the storages they share.

    `order` is that of the names. `mark` goes into the serialization id, which is the same for the same contents.
    """
    views: dict[str, View] = {}
    numbers = {item.name: number for number, item in enumerate(items)}
    for number, item in enumerate(items):
        count = item.tensor.elements
        views[item.name] = View(number, count, item.dtype, item.shape, contiguous_stride(item.shape), 0)
    for alias in aliases:
        host, tensor = items[numbers[alias.of]], alias.tensor
        if ITEMSIZE[tensor.dtype] != ITEMSIZE[host.dtype] or (tensor.dtype != host.dtype):
            raise CkptError(
                f"tensor {alias.name!a} shares bytes with {alias.of!a} under another dtype, which a torch file that "
                f"is read with weights only cannot express"
            )
        views[alias.name] = View(
            numbers[alias.of], host.tensor.elements, tensor.dtype, tensor.shape, tensor.stride, alias.offset
        )
    names = dict.fromkeys([*(name for name in order if name in views), *views])
    leaves: list[tuple[str, Any]] = [(name, views[name]) for name in names]
    # A state dict that came from elsewhere is one as modules make them.
    value: Any = dict(leaves) if kinds.get("") == "dict" else Ordered(leaves)
    lost: list[str] = []
    if values or not is_flat(kinds):
        value, lost = nested([*leaves, *values.items()], kinds)
    pickle = dumps(value)
    identity = int(hashlib.sha256(mark.encode() + pickle).hexdigest(), 16) % 10**40
    records: list[tuple[str, bytes | Item]] = [
        ("data.pkl", pickle),
        (".format_version", b"1"),
        (".storage_alignment", str(_ALIGNMENT).encode()),
        ("byteorder", b"little"),
        *((f"data/{number}", item) for number, item in enumerate(items)),
        ("version", b"3\n"),
        (".data/serialization_id", f"{identity:040}".encode()),
    ]
    wanted = [(name, view.dtype, view.shape, view.stride, view.offset, str(view.key)) for name, view in views.items()]

    def check(source: ByteSource) -> None:
        read = torch_zip.read(source)
        found = [(t.name, t.dtype, t.shape, t.stride, t.offset, t.storage.name) for t in read.tensors if t.storage]
        if sorted(found) != sorted((name or "<root>", *rest) for name, *rest in wanted):
            raise CkptError("the output does not read back as it was written")

    return Archive(Output(path, tuple(zipped(records)), check), tuple(lost))


class _Entry(NamedTuple):
    """A record's place: of its header, and its length."""

    name: bytes
    header: int
    size: int
    crc: Callable[[Sequence[int]], int]


def zipped(
    records: Sequence[tuple[str, bytes | Item]], root: str = _ROOT, alignment: int = _ALIGNMENT
) -> list[Segment]:
    """The zip of these records below `root`, whose bytes each begin at a multiple of `alignment`."""
    segments: list[Segment] = []
    entries: list[_Entry] = []
    at = number = 0
    for name, data in records:
        size = size_of(data)
        if isinstance(data, Item):
            crc = _nth(number)
            number += 1
        else:
            crc = _known(crc32(data))
        entry = _Entry(f"{root}/{name}".encode(), at, size, crc)
        entries.append(entry)
        length = _header_size(entry, alignment)
        segments += [Late(length, _header(entry, length)), data]
        at += length + size
    directory = sum(_CENTRAL.size + len(entry.name) + len(_wide(entry)) for entry in entries)
    end = _end(len(entries), directory, at)
    return [*segments, Late(directory, lambda digests: b"".join(_central(entry, digests) for entry in entries)), end]


def _nth(number: int) -> Callable[[Sequence[int]], int]:
    return lambda digests: digests[number]


def _known(value: int) -> Callable[[Sequence[int]], int]:
    return lambda digests: value


def _header_size(entry: _Entry, alignment: int) -> int:
    """Padded by an extra field, so that the bytes behind it are aligned."""
    bare = _LOCAL.size + len(entry.name) + (20 if entry.size >= _FULL else 0) + 4
    return bare + -(entry.header + bare) % alignment


def _header(entry: _Entry, length: int) -> Callable[[Sequence[int]], bytes]:
    def make(digests: Sequence[int]) -> bytes:
        wide = struct.pack("<2H2Q", 1, 16, entry.size, entry.size) if entry.size >= _FULL else b""
        room = length - _LOCAL.size - len(entry.name) - len(wide) - 4
        extra = wide + b"FB" + struct.pack("<H", room) + b"Z" * room
        size = min(entry.size, _FULL)
        numbers = (_FLAGS, _STORED, 0, _DATE, entry.crc(digests), size, size, len(entry.name), len(extra))
        return _LOCAL.pack(b"PK\3\4", 45 if wide else 20, *numbers) + entry.name + extra

    return make


def _wide(entry: _Entry) -> bytes:
    """What the directory's 32 bits cannot hold of an entry."""
    numbers = [entry.size, entry.size] if entry.size >= _FULL else []
    if entry.header >= _FULL:
        numbers.append(entry.header)
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


def _central(entry: _Entry, digests: Sequence[int]) -> bytes:
    extra = _wide(entry)
    size, place, needed = min(entry.size, _FULL), min(entry.header, _FULL), 45 if extra else 20
    numbers = (needed, needed, _FLAGS, _STORED, 0, _DATE, entry.crc(digests), size, size, len(entry.name), len(extra))
    return _CENTRAL.pack(b"PK\1\2", *numbers, 0, 0, 0, 0, place) + entry.name + extra


def _end(count: int, size: int, start: int) -> bytes:
    end = b""
    if count >= 0xFFFF or size >= _FULL or start >= _FULL:
        end = _END64.pack(b"PK\6\6", _END64.size - 12, 45, 45, 0, 0, count, count, size, start)
        end += _LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
    few = min(count, 0xFFFF)
    return end + _END.pack(b"PK\5\6", 0, 0, few, few, min(size, _FULL), min(start, _FULL), 0)
