"""torch's files before version 1.6, and since then on request: pickles one after the other, then raw storages.

A magic number, a protocol number, a description of the machine, the objects, the list of storage keys: five
pickles; then, key by key, the number of elements (int64) and the bytes, little-endian on every machine. There is
no checksum of any kind. After torch/serialization.py, `_legacy_save` and `_legacy_load`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import ByteSource, Records, _pickle, _tree
from ckpt_cli.formats._inert import Costly, Malformed, RunsCode, Truncated, quoted, shown
from ckpt_cli.formats._records import Ahead
from ckpt_cli.formats._stream import range_of
from ckpt_cli.formats._torch import Interpreted, StorageId, interpret, refusing
from ckpt_cli.room import room_of_a_file
from ckpt_cli.tensor_file import Storage, TensorFile, TensorInfo

NAME = "torch-legacy"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# LONG1 of ten bytes: how pickle protocols from 2 on spell the magic number; and how those before do.
_SPELLED = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."
_IN_DIGITS = b"L%dL\n." % _MAGIC
_MAX_PICKLES = 256 << 20
# Bytes of the room of a file that a storage takes, with the time that it takes to find it.
_STORAGE = 1250


class _Head(NamedTuple):
    """What lies before the bytes: the objects, the length of their pickle, the storages by key, where all that ends."""

    objects: Interpreted
    length: int
    storages: dict[str, Storage]
    end: int


def matches(head: bytes, size: int) -> bool:
    """The magic number, or as much of it as an interrupted write left."""
    if size < len(_SPELLED) + 2:
        return size > 0 and (b"\x80\x02" + _SPELLED).startswith(head)
    return (head[:1] == b"\x80" and _SPELLED in head[:32]) or head.startswith(_IN_DIGITS)


def check(source: ByteSource) -> None:
    """The whole list of storages and the file's length: that is what an interrupted write lacks."""
    read(source)


def records(source: ByteSource) -> Records:
    """The storages, without a CRC32: none is ever written."""
    head = _described(source)
    found = sorted(head.storages.values(), key=lambda storage: storage.offset)
    return Records(found, partial(_read, source, head))


def read(source: ByteSource) -> TensorFile:
    return _read(source, _described(source))


def _described(source: ByteSource) -> _Head:
    """The head, with the file's path before what it is refused for."""
    try:
        return _head(source)
    except Truncated as error:
        raise Damaged(f"{source.path} is truncated: it ends within its description", kind="truncated") from error
    except (Malformed, RunsCode) as error:
        if source.path not in error.message:
            error.message = f"{source.path} is refused: {error.message}"
        raise


def _head(source: ByteSource) -> _Head:
    """The objects and the storages that they are views of; where those lie is known only behind the objects."""
    at, room = 0, None
    most = min(source.size, _MAX_PICKLES)
    plain: list[Any] = []
    for _ in range(3):
        loaded = _pickle.load(range_of(source, at, most), {}, {}, _nothing, room)
        plain.append(loaded.value)
        at, room = loaded.end, loaded.room
    magic, protocol, machine = plain
    if magic != _MAGIC or protocol != _PROTOCOL or not isinstance(machine, dict):
        # Only a number is shown: the text of a value that holds itself many times over never ends.
        told = quoted(str(protocol)) if type(protocol) is int else type(protocol).__name__
        raise CkptError(f"{source.path} is a legacy torch file of an unknown protocol ({told})")
    wanted: dict[str, Storage] = {}
    most_storages = room_of_a_file(source.size) // _STORAGE
    itemsizes: dict[str, int] = {}

    def note(storage: StorageId) -> Storage:
        if storage.key in wanted:
            raise CkptError(f"{source.path}: its pickle gives storage {quoted(storage.key)} two lengths")
        if len(wanted) == most_storages:
            raise Costly(f", in more than {most_storages} storages")
        itemsizes[storage.key] = storage.itemsize
        wanted[storage.key] = Storage(storage.key, source.path, 0, storage.bytes)
        return wanted[storage.key]

    objects = interpret(source.path, range_of(source, at, most), note, False, room)
    keys = _pickle.load(range_of(source, objects.end, most), {}, {}, _nothing, objects.room)
    objects = objects._replace(room=keys.room)
    return _Head(objects, objects.end - at, _place(source, keys.value, keys.end, wanted, itemsizes), keys.end)


def _read(source: ByteSource, head: _Head) -> TensorFile:
    objects, length, storages, end = head
    with refusing(source.path):
        tensors, values, kinds = _tree.flatten(objects.value, length, objects.room, objects.shared)
    tensors = tuple(_placed(tensor, storages) for tensor in tensors)
    end = max((storage.offset + storage.bytes for storage in storages.values()), default=end)
    notes = (f"{counted(source.size - end, 'byte')} after the last storage",) if end < source.size else ()
    foreign, found = objects.foreign_globals, tuple(storages.values())
    return TensorFile(source.path, NAME, tensors, values, foreign, found, notes, kinds)


def _place(
    source: ByteSource, keys: Any, at: int, wanted: dict[str, Storage], itemsizes: dict[str, int]
) -> dict[str, Storage]:
    """Where each storage lies. Raises Damaged where the file ends before, or a length is not what the objects need."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CkptError(f"{source.path} has no list of storages")
    storages: dict[str, Storage] = {}
    ahead = Ahead(source, source.size)
    for key in keys:
        storage = wanted.get(key)
        if storage is None or key in storages:
            raise CkptError(f"{source.path} lists the storage {quoted(key)}, which its objects do not name once")
        if at + 8 + storage.bytes > source.size:
            raise Damaged(f"{source.path} is truncated: it ends within storage {shown(key)}", kind="truncated")
        count = int.from_bytes(ahead.read_at(at, 8), "little")
        if count * itemsizes[key] != storage.bytes:
            raise Damaged(
                f"{source.path}: storage {shown(key)} is not as long as its tensors need",
                kind="short-record",
                record=key,
            )
        storages[storage.name] = Storage(storage.name, source.path, at + 8, storage.bytes)
        at += 8 + storage.bytes
    if len(storages) != len(wanted):
        lost = next(key for key in wanted if key not in storages)
        raise Damaged(
            f"{source.path}: the bytes of storage {shown(lost)} are missing", kind="missing-record", record=lost
        )
    return storages


def _placed(tensor: TensorInfo, storages: dict[str, Storage]) -> TensorInfo:
    """The tensor, and what it is made of, as views of the storages of the same names."""
    if tensor.pieces:
        tensor = tensor._replace(pieces=tuple((key, _placed(piece, storages)) for key, piece in tensor.pieces))
    return tensor if tensor.storage is None else tensor._replace(storage=storages[tensor.storage.name])


def _nothing(pid: Any) -> Any:
    raise CkptError("a legacy torch file's description refers to something outside")
