"""torch's zip files, as `torch.save` has written them since version 1.6, read without torch.

A pickle (`<root>/data.pkl`) describes the objects; tensors in it are strided views of storages, whose raw
bytes are the records `<root>/data/<key>`. The root is the file's stem or `archive`; nothing depends on it.
Layout and rebuild functions after torch/serialization.py and torch/_utils.py, torch 1.6 to 2.13.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_cli.checkpoint import Storage, TensorFile
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import ByteSource, _records, _zip
from ckpt_cli.formats._torch import StorageId, unpickle

NAME = "torch-zip"
_MAX_PICKLE = 256 << 20
_MAX_VERSION = 10


def matches(head: bytes, size: int) -> bool:
    return head[:4] == b"PK\3\4" or (0 < size < 4 and b"PK\3\4".startswith(head))


def check(source: ByteSource) -> None:
    """The end of the archive and the pickle's place in it; the tail is what an interrupted write lacks."""
    _root(source, _zip.read_archive(source))


def records(source: ByteSource) -> Iterable[Storage]:
    """Every record of the archive under its full name, the pickle and what describes it too."""
    archive = _zip.read_archive(source)
    _root(source, archive)
    return _records.every(source, archive)


def read(source: ByteSource) -> TensorFile:
    archive = _zip.read_archive(source)
    root = _root(source, archive)
    offsets, notes = _records.walk(source, archive)
    notes = [*archive.notes, *notes]

    def record(name: str, limit: int) -> bytes | None:
        entry = archive.records.get(f"{root}/{name}")
        return None if entry is None else _zip.read_record(source, archive, entry, limit)

    version = (record("version", 64) or b"3").strip()
    if not version.isdigit() or len(version) > 6 or not 1 <= int(version) <= _MAX_VERSION:
        raise CkptError(f"{source.path} is of the unknown file version {version.decode('latin-1')!a}")
    order = (record("byteorder", 64) or b"little").strip()
    if order not in (b"little", b"big"):
        raise CkptError(f"{source.path} has the unknown byte order {order.decode('latin-1')!a}")
    data = record("data.pkl", _MAX_PICKLE) or b""
    storages: dict[str, Storage] = {}

    def find(wanted: StorageId) -> Storage:
        storage = storages.get(wanted.key)
        if storage is None:
            name = f"{root}/data/{wanted.key}"
            if name not in offsets:
                raise Damaged(f"{source.path}: record {name} is missing")
            entry = archive.records[name]
            storage = storages[wanted.key] = _records.stored(source, archive, entry, offsets[name], wanted.key)
        if storage.bytes != wanted.bytes:
            raise Damaged(
                f"{source.path}: record {root}/data/{wanted.key} has {storage.bytes} bytes "
                f"where its tensors need {wanted.bytes}"
            )
        return storage

    read = unpickle(source.path, data, find, swapped=order == b"big")
    if read.end != len(data):
        notes.append(f"{len(data) - read.end} bytes follow the end of the pickle")
    return TensorFile(
        source.path, NAME, read.tensors, read.values, read.foreign_globals, tuple(storages.values()), tuple(notes)
    )


def _root(source: ByteSource, archive: _zip.Archive) -> str:
    """The directory that every entry lies in, as torch demands."""
    first = next(iter(archive.records), "")
    root, slash, _ = first.partition("/")
    for name in archive.records:
        if not slash or not name.startswith(f"{root}/"):
            raise CkptError(f"{source.path} is a zip archive, but none of torch: its entry {name!a} is not in one root")
    if f"{root}/constants.pkl" in archive.records:
        raise CkptError(f"{source.path} is a TorchScript archive, a program and not a state dict")
    if f"{root}/data.pkl" not in archive.records:
        raise CkptError(f"{source.path} is a zip archive, but none of torch: it has no data.pkl")
    return root
