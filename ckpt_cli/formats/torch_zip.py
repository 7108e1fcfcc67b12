"""torch's zip files, as `torch.save` has written them since version 1.6, read without torch.

A pickle (`<root>/data.pkl`) describes the objects; tensors in it are strided views of storages, whose raw
bytes are the records `<root>/data/<key>`. The root is the file's stem or `archive`; nothing depends on it.
TorchScript's archives are the same with programs beside them; their modules are read as state dicts.
Layout and rebuild functions after torch/serialization.py and torch/_utils.py, torch 1.6 to 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import ByteSource, Records, _records, _torchscript, _tree, _zip
from ckpt_cli.formats._inert import Malformed, quoted, shown
from ckpt_cli.formats._stream import Stream
from ckpt_cli.formats._torch import StorageId, Unpickled, by_name, interpret, refusing
from ckpt_cli.room import room_of_a_file
from ckpt_cli.tensor_file import Storage, TensorFile

NAME = "torch-zip"
_MAX_PICKLE = 256 << 20
# Bytes of code when it is unpacked: of a large archive most are weights.
_MUCH_CODE, _CODE_PER_BYTE = 4 << 20, 2
_MAX_VERSION = 10
# Modules and attributes that code may declare: of the largest some ten thousands.
_MAX_TOLD = 200_000


def matches(head: bytes, size: int) -> bool:
    return head[:4] == b"PK\3\4" or (0 < size < 4 and b"PK\3\4".startswith(head))


def check(source: ByteSource) -> None:
    """The end of the archive and the pickle's place in it; the tail is what an interrupted write lacks."""
    _root(source, _zip.read_archive(source))


def records(source: ByteSource) -> Records:
    """Every record of the archive under its full name, the pickle and what describes it too."""
    file = _opened(source)
    return Records(_records.every(source, file.archive), partial(_read, file))


def read(source: ByteSource) -> TensorFile:
    return _read(_opened(source))


def _opened(source: ByteSource) -> _File:
    archive = _zip.read_archive(source)
    root = _root(source, archive)
    return _File(source, archive, root, [*archive.notes, *_records.walk(source, archive)], [])


def _read(file: _File) -> TensorFile:
    source, archive, root = file[:3]
    version = file.record(".data/version", 64) or file.record("version", 64)  # in torch's order
    number = b"1" if version is None else version.strip()
    if not number.isdigit() or len(number) > 6 or not 1 <= int(number) <= _MAX_VERSION:
        raise CkptError(f"{source.path} is of the unknown file version {number.decode('latin-1')!a}")
    order = file.record("byteorder", 64)
    if order not in (None, b"little", b"big"):
        raise CkptError(f"{source.path} has the unknown byte order {order.decode('latin-1')!a}")
    swapped = order == b"big"
    skipped = sum(map(archive.skipped, archive.records.bare()))
    if f"{root}/constants.pkl" in archive.records:
        container, read = "torchscript", _script(file, swapped)
    else:
        container, data = NAME, file.stream("data.pkl")
        found = interpret(source.path, data, file.find("data"), swapped, file.room)
        # Nothing more is looked up, and names and tensors take as much again.
        found = found._replace(room=found.room + _zip.RECORD * len(archive.records))
        archive.records.clear()
        read = by_name(source.path, found, found.end)
        file.note_rest("the pickle", data, read.end)
    if version is None:  # torch does not load without it; that the pickle would run code is the worse news
        what = f"{source.path}: record {shown(f'{root}/version')} is missing"
        raise Damaged(what, kind="missing-record", record=f"{root}/version")
    if skipped:
        file.notes.append(f"{counted(skipped, 'storage')} saved without data, or filled in later: no CRC32")
    storages = tuple(file.storages)
    return TensorFile(
        source.path, container, read.tensors, read.values, read.foreign_globals, storages, tuple(file.notes), read.kinds
    )


class _File(NamedTuple):
    """An archive that is being read, what is to be said of it, and the storages met so far."""

    source: ByteSource
    archive: _zip.Archive
    root: str
    notes: list[str]
    storages: list[Storage]

    @property
    def room(self) -> int:
        """What its records leave of that of the file."""
        return room_of_a_file(self.source.size) - _zip.RECORD * len(self.archive.records)

    def record(self, name: str, limit: int) -> bytes | None:
        entry = self.archive.records.get(f"{self.root}/{name}")
        return None if entry is None else _zip.read_record(self.source, self.archive, entry, limit)

    def stream(self, name: str) -> Stream:
        """A pickle, of which there must be no more than _MAX_PICKLE."""
        entry = self.archive.records[f"{self.root}/{name}"]
        return _zip.checked_stream(self.source, self.archive, entry, _MAX_PICKLE)

    def find(self, folder: str) -> Callable[[StorageId], Storage]:
        """What gives the storages whose bytes are the records of `folder`; in others than data/ their names say so."""

        def find(wanted: StorageId) -> Storage:
            name = f"{self.root}/{folder}/{wanted.key}"
            entry = self.archive.records.find(name)
            if entry is None:
                what = f"{self.source.path}: record {shown(name)} is missing"
                raise Damaged(what, kind="missing-record", record=name)
            if entry.bytes != wanted.bytes:
                raise Damaged(
                    f"{self.source.path}: record {shown(name)} has {counted(entry.bytes, 'byte')} "
                    f"where its tensors need {wanted.bytes}",
                    kind="short-record",
                    record=name,
                )
            key = wanted.key if folder == "data" else f"{folder}/{wanted.key}"
            self.storages.append(_records.stored(self.source, self.archive, entry, key))
            return self.storages[-1]

        return find

    def note_rest(self, what: str, data: Stream, end: int) -> None:
        if end != data.length:
            self.notes.append(f"{counted(data.length - end, 'byte')} after the end of {what}")


def _script(file: _File, swapped: bool) -> Unpickled:
    """A TorchScript module as its state dict, its other attributes beside it, and the constants of its code."""
    path = file.source.path
    classes: dict[str, _torchscript.Names] = {}
    told = 0
    begin = f"{file.root}/code/"
    texts = [name for name in file.archive.records if name.startswith(begin) and name.endswith(".py")]
    most = min(_MAX_PICKLE, max(_MUCH_CODE, _CODE_PER_BYTE * file.source.size))
    if sum(file.archive.records[name].bytes for name in texts) > most:
        raise CkptError(f"{path} holds more than {most} bytes of code")
    for name in texts:
        code = _zip.checked_stream(file.source, file.archive, file.archive.records[name], _MAX_PICKLE)
        prefix = name[len(begin) : -len(".py")].replace("/", ".")
        with refusing(path):
            for full, names in _torchscript.declared(prefix, code.blocks):
                classes[full] = names
                told += 1 + len(names.parameters) + len(names.buffers or ())
                if told > _MAX_TOLD:
                    raise Malformed(f"its code declares more than {_MAX_TOLD} modules and attributes")
    data, constants = (file.stream(f"{name}.pkl") for name in ("data", "constants"))
    module = interpret(path, data, file.find("data"), swapped, file.room, script=True)
    others = interpret(path, constants, file.find("constants"), swapped, module.room, script=True)
    file.note_rest("the pickle", data, module.end)
    file.note_rest("the constants", constants, others.end)
    with refusing(path):
        _torchscript.arrange(module.value, classes, module.end)
        tensors, values, _ = _tree.flatten(module.value, module.end, others.room // 2)
        if others.value:
            more = _tree.flatten({"<constants>": others.value}, others.end, others.room // 2)
            tensors, values = tensors + more.tensors, {**values, **more.values}
    foreign = dict.fromkeys(module.foreign_globals + others.foreign_globals)
    return Unpickled(tensors, values, tuple(foreign), module.end, {})


def _root(source: ByteSource, archive: _zip.Archive) -> str:
    """The directory that every entry lies in, as torch demands."""
    root, slash, _ = next(iter(archive.records), "").partition("/")
    begin = f"{root}/".encode()
    for raw in archive.records.raws:
        if not slash or not raw.startswith(begin):
            entry = quoted(raw.decode())
            raise CkptError(
                f"{source.path} is a zip archive, but none of torch: its entry {entry} is not in one root",
                kind="not-a-checkpoint",
            )
    if f"{root}/data.pkl" not in archive.records:
        raise CkptError(
            f"{source.path} is a zip archive, but none of torch: it has no data.pkl", kind="not-a-checkpoint"
        )
    return root
