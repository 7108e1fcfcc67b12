"""One record of a torch file rewritten: its pickle. Every other record keeps its name, its bytes and its alignment.

The file is written anew as a stream; the CRC32 of each record is checked on the way and every range read back.
"""

from __future__ import annotations

from typing import NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats import ByteSource, FileSource, _records, _zip, torch_zip
from ckpt_cli.items import Item
from ckpt_cli.tensor_file import Storage, TensorFile, TensorInfo
from ckpt_cli.torch_writer import zipped
from ckpt_cli.writing import Output

_MAX_PICKLE = 256 << 20
# An extra field, which pads, has 65,535 bytes at most.
_ALIGNMENTS = range(1, 1 << 15)
_DEFAULT_ALIGNMENT = 64


class Opened(NamedTuple):
    """A torch file: what it holds, and its pickle as it is."""

    file: TensorFile
    pickle: bytes


def opened(path: str) -> Opened:
    """Raises CkptError for a file that is no torch zip, and for one that holds what a rewrite would lose."""
    with FileSource(path) as source:
        if not torch_zip.matches(source.read_at(0, min(4, source.size)), source.size):
            raise CkptError(f"{path} is no torch file of today's form: a configuration is edited in no other")
        file = torch_zip.read(source)
        if file.container != torch_zip.NAME:
            raise CkptError(f"{path} is a TorchScript archive, whose contents are not edited")
        if file.notes and not all("without their data" in note for note in file.notes):
            raise CkptError(f"{path} holds more than its records, which a rewrite would lose: {file.notes[0]}")
        archive = _zip.read_archive(source)
        record = archive.records[f"{_root(archive)}/data.pkl"]
        return Opened(file, _zip.read_record(source, archive, record, _MAX_PICKLE))


def rewritten(path: str, pickle: bytes, target: str) -> Output:
    """The file at `path` with another pickle, to be written to `target`. Its tensors must be described as before."""
    with FileSource(path) as source:
        before = torch_zip.read(source).tensors
        archive = _zip.read_archive(source)
        root, alignment = _root(archive), _DEFAULT_ALIGNMENT
        _records.walk(source, archive)
        records: list[tuple[str, bytes | Item]] = []
        for _, record in archive.records.ordered():
            full = record.name
            name = full.removeprefix(f"{root}/")
            if name == "data.pkl":
                records.append((name, pickle))
                continue
            storage = _records.stored(source, archive, record, full)
            records.append((name, _bytes_of(full, storage)))
            if name == ".storage_alignment":
                told = _zip.read_record(source, archive, record, 64).strip()
                alignment = int(told) if told.isdigit() and len(told) < 6 and int(told) in _ALIGNMENTS else alignment

    def check(written: ByteSource) -> None:
        if _described(torch_zip.read(written).tensors) != _described(before):
            raise CkptError("the output does not read back as it was written")

    return Output(target, tuple(zipped(records, root, alignment)), check)


def _root(archive: _zip.Archive) -> str:
    return next(iter(archive.records)).partition("/")[0]


def _bytes_of(name: str, storage: Storage) -> Item:
    """A record as a tensor of bytes."""
    size = storage.bytes
    return Item(name, TensorInfo(name, "uint8", (size,), (1,), 0, 1, storage), (size,), "uint8")


def _described(tensors: tuple[TensorInfo, ...]) -> list[tuple[object, ...]]:
    return [(t.name, t.dtype, t.shape, t.stride, t.offset, t.form, t.storage and t.storage.name) for t in tensors]
