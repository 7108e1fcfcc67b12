"""The trash of a run and its journals: what an operation is, how it is written down and read back.

`.ckpt-trash/<id>/journal` holds one JSON object a line, each synced before what it stands for: first every file of
the operation, then `moved` when all renames are done, later `undo` or `purge`. The last whole line counts.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from ckpt_cli.aside import left_aside
from ckpt_cli.atomic import NO_SPACE, fsync_directory, locked, write_all
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import TRASH, own_folder

JOURNAL = "journal"
OperationState = Literal["interrupted", "deleting", "trash", "garbled"]
# The journal's last entry -> what has to be done.
_STATES: dict[str, OperationState] = {
    "begun": "interrupted",
    "undo": "interrupted",
    "moved": "deleting",
    "purge": "deleting",
    "trash": "trash",
}


class File(NamedTuple):
    """A file to be removed, by its path below the run's directory, and what it was when the plan was made."""

    name: str
    bytes: int
    modified: int
    inode: int


class Line(NamedTuple):
    """What a manifest said of a file that goes; both by their paths below the run's directory."""

    manifest: str
    name: str
    sha256: str


class Removal(NamedTuple):
    """One checkpoint of a run, its files in the order in which they go.

    `beside` is the model that stays where it is when only the optimizer goes: to no other one may that come back.
    `folders` are those right below the run that hold some of these files and nothing else: each goes as one.
    `half` says that it was not complete to begin with, so that no trainer loses anything while its files go.
    `lines` are what a manifest that stays says of them: taken off as they go, and put back with them.
    """

    ref: str
    files: tuple[File, ...]
    beside: tuple[File, ...] = ()
    folders: tuple[str, ...] = ()
    half: bool = False
    lines: tuple[Line, ...] = ()

    @property
    def pieces(self) -> list[tuple[str, list[File]]]:
        """What goes by one rename each, in order: a file, or a folder with all files in it."""
        if not self.folders:
            return [(file.name, [file]) for file in self.files]
        pieces: dict[str, list[File]] = {}
        for file in self.files:
            top = file.name.partition(os.sep)[0]
            pieces.setdefault(top if top in self.folders else file.name, []).append(file)
        return list(pieces.items())


@dataclass(frozen=True)
class Operation:
    """One `.ckpt-trash/<id>`: `interrupted` before all was renamed, `deleting` after, or kept as `trash`."""

    id: str
    run: str
    state: OperationState
    removals: tuple[Removal, ...]

    @cached_property
    def folder(self) -> str:
        return os.path.join(trash_of(self.run), self.id)

    @property
    def refs(self) -> tuple[str, ...]:
        return tuple(removal.ref for removal in self.removals)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for removal in self.removals for file in removal.files)

    @cached_property
    def folders(self) -> list[str]:
        """Those below the run's directory that its files lie in, the innermost first."""
        return folders_of(file.name for removal in self.removals for file in removal.files)

    @cached_property
    def tops(self) -> frozenset[str]:
        """Those of the folders that lie right below the run."""
        return frozenset(folder for folder in self.folders if os.sep not in folder)


def folders_of(names: Iterable[str]) -> list[str]:
    """All folders that files lie in, by their paths below one, the innermost first."""
    pending = {os.path.dirname(name) for name in names if os.sep in name}
    found: set[str] = set()
    while pending:
        found |= pending
        pending = {os.path.dirname(folder) for folder in pending if os.sep in folder} - found
    return sorted(found, key=lambda folder: (-folder.count(os.sep), folder))


def new_id() -> str:
    """Sorts by time, also within a second; unique among processes."""
    now = time.time_ns()
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now // 1_000_000_000))
    return f"{moment}-{now // 1000 % 1_000_000:06d}{os.urandom(2).hex()}"


@dataclass
class Outcome:
    """Refs that were dealt with, what stayed (path, why), and what else is to be said. `again`: cut short, and to be
    tried again."""

    done: list[str] = field(default_factory=list)
    stayed: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    freed: int = 0
    again: bool = False

    def add(self, other: Outcome) -> None:
        self.done += other.done
        self.stayed += other.stayed
        self.remarks += other.remarks
        self.freed += other.freed


def trash_of(run: str) -> str:
    """Where the trash of a run is, or would be."""
    return own_folder(run, TRASH)


def operations(run: str) -> list[Operation]:
    """What lies in the trash of a run, oldest first."""
    folder = trash_of(run)
    if os.path.islink(folder):  # never ours, and what it points to is none of our business
        return []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [read(run, name) for name in names if is_directory(os.path.join(folder, name))]


def interrupted(run: str) -> bool:
    """Whether an operation of this run was cut off, by a process that is gone."""
    if all(operation.state in ("trash", "garbled") for operation in operations(run)) and not left_aside(run):
        return False
    try:
        with locked(run):
            return True
    except CkptError:
        return False


def garbled(run: str) -> bool:
    """Whether files lie in the trash of this run that no journal tells of."""
    return any(
        operation.state == "garbled" and set(os.listdir(operation.folder)) - {JOURNAL} for operation in operations(run)
    )


def begin(operation: Operation, keep_trash: bool) -> int:
    """Makes the trash and its journal durable; returns the journal's descriptor."""
    trash = trash_of(operation.run)
    with suppress(FileExistsError):
        os.mkdir(trash)
    if os.path.islink(trash):
        raise OSError(errno.ELOOP, "the trash is a symbolic link, which may lead anywhere", trash)
    os.mkdir(operation.folder)
    descriptor = os.open(os.path.join(operation.folder, JOURNAL), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # A field that is empty and may be left out is.
        removals = [
            {name: value for name, value in removal._asdict().items() if value} for removal in operation.removals
        ]
        append(descriptor, {"version": 1, "trash": keep_trash, "removals": removals})
        for folder in (operation.folder, trash, operation.run):
            fsync_directory(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def append(journal: int, entry: dict[str, Any]) -> None:
    write_all(journal, json.dumps(entry).encode() + b"\n")
    os.fsync(journal)


def mark(operation: Operation, entry: dict[str, Any]) -> None:
    """Adds an entry to the journal of an earlier operation; a torn last line goes."""
    if operation.state == "garbled":
        return
    path = os.path.join(operation.folder, JOURNAL)
    journal = os.open(path, os.O_RDWR)
    try:
        whole = os.read(journal, os.fstat(journal).st_size).rfind(b"\n") + 1
        os.ftruncate(journal, whole)
        os.lseek(journal, whole, os.SEEK_SET)
        append(journal, entry)
    except OSError as error:
        # On a full disk a purge is what helps, and an undo needs no room: only a kill is not provided for.
        if error.errno not in NO_SPACE:
            raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(journal)


def entries_of(folder: str) -> list[Any]:
    """The journal's entries; a torn last line counts as not written. Raises OSError or ValueError."""
    with open(os.path.join(folder, JOURNAL), "rb") as file:
        return [json.loads(line) for line in file.read().split(b"\n")[:-1]]


def failed_of(entries: Sequence[Any]) -> list[Any]:
    """The refs that are not in the trash, as the last entry that names some has it."""
    return next((list(entry["failed"]) for entry in reversed(entries) if "failed" in entry), [])


def read(run: str, id: str) -> Operation:
    """The operation as its journal tells it."""
    try:
        entries = entries_of(os.path.join(trash_of(run), id))
        keep_trash, failed = entries[0]["trash"], failed_of(entries[1:])
        removals = tuple(_removal(entry) for entry in entries[0]["removals"] if entry["ref"] not in failed)
        last = entries[-1]["state"] if len(entries) > 1 else "begun"
        # A trash of nothing goes like a deletion that is done.
        state = _STATES["trash" if last == "moved" and keep_trash and removals else last]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return Operation(id, run, "garbled", ())
    return Operation(id, run, state, removals)


def _removal(entry: Any) -> Removal:
    """One checkpoint as the journal tells it; raises as `_file` does."""
    files, beside = (tuple(_file(*values) for values in entry.get(key, ())) for key in ("files", "beside"))
    folders = tuple(entry.get("folders", ()))
    if not {file.name.partition(os.sep)[0] for file in files if os.sep in file.name}.issuperset(folders):
        raise ValueError("a folder in the journal is none of its files'")
    lines = tuple(Line(_below(place), _below(name), _sha256(digest)) for place, name, digest in entry.get("lines", ()))
    return Removal(str(entry["ref"]), files, beside, folders, bool(entry.get("half")), lines)


def _file(name: Any, bytes: Any, modified: Any, inode: Any) -> File:
    """A file as the journal tells it; raises ValueError or TypeError for what no journal of ours holds."""
    return File(_below(name), int(bytes), int(modified), int(inode))


def _below(name: Any) -> str:
    if name == JOURNAL or "\0" in name or set(name.split(os.sep)) & {"", os.curdir, os.pardir}:
        raise ValueError("a name in the journal leaves the run's directory")
    return str(name)


def _sha256(digest: Any) -> str:
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError("a digest in the journal is none")
    return str(digest)


def is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
