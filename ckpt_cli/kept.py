"""What lies in a run's `.ckpt-undo`: the operations in it, and their journals as they are written down and read back.

`.ckpt-undo/<id>/journal` is one JSON object that lists the files. Beside it lie, by the number of each, `<n>.old` and,
until it has taken its place, `<n>.new`; and, while an undo is at work, `undoing`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from ckpt_cli.atomic import staged, write_all
from ckpt_cli.journal import is_directory, trash_of
from ckpt_cli.layouts import REPLACED, own_folder

JOURNAL, UNDOING = "journal", "undoing"
_BLOCK = 1 << 20


class Entry(NamedTuple):
    """A file that was replaced, its path below the run, what it belongs to, and the sha256 of what took its place."""

    name: str
    of: str
    after: str


class Operation(NamedTuple):
    """One `.ckpt-undo/<id>`."""

    id: str
    run: str
    entries: tuple[Entry, ...]

    @property
    def folder(self) -> str:
        """Where it keeps what it needs."""
        return os.path.join(folder_of(self.run), self.id)

    def path(self, entry: Entry) -> str:
        """Where the file has its place."""
        return os.path.join(self.run, entry.name)

    def kept(self, entry: Entry) -> str:
        """Where the old file is."""
        return os.path.join(self.folder, f"{self.entries.index(entry)}.old")

    def coming(self, entry: Entry) -> str:
        """Where the new file is until it has taken its place."""
        return os.path.join(self.folder, f"{self.entries.index(entry)}.new")


def folder_of(run: str) -> str:
    """Where a run keeps what was replaced in it, or would."""
    return own_folder(run, REPLACED)


def operations(run: str) -> list[Operation]:
    """What can be undone in a run, oldest first."""
    found = (read(run, name) for name in names(run))
    return [operation for operation in found if operation and kept_of(operation, None)]


def kept_of(operation: Operation, paths: Iterable[str] | None) -> list[Entry]:
    """The entries whose old file is there, of those that belong to `paths`, or of all."""
    return [
        entry
        for entry in operation.entries
        if os.path.lexists(operation.kept(entry)) and (paths is None or os.path.join(operation.run, entry.of) in paths)
    ]


def is_in_trash(operation: Operation) -> bool:
    """Whether old files of it wait in the run's trash: if they come back, only its journal tells what they are."""
    home, below = trash_of(operation.run), os.path.relpath(operation.folder, operation.run)
    try:
        return any(is_directory(os.path.join(home, name, below)) for name in os.listdir(home))
    except OSError:
        return False


def sha256(path: str) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def note(operation: Operation, name: str, value: Any) -> None:
    """Writes a value as JSON into the operation's folder, on disk when this returns."""
    with staged(os.path.join(operation.folder, name), replace=True) as descriptor:
        write_all(descriptor, json.dumps(value).encode())
        os.fsync(descriptor)


def noted(operation: Operation, name: str) -> Any:
    """What `note` wrote, None where it wrote nothing. Raises OSError or ValueError for what is not of its making."""
    try:
        with open(os.path.join(operation.folder, name), "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError:
        return None


def read(run: str, id: str) -> Operation | None:
    """The operation as its journal tells it; None where that is not there, or none of ours."""
    bare = Operation(id, run, ())
    try:
        told = noted(bare, JOURNAL)
        entries = tuple(Entry(*map(str, values)) for values in told["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if any(set(name.split(os.sep)) & {"", os.curdir, os.pardir} for e in entries for name in (e.name, e.of)):
        return None
    operation = bare._replace(entries=entries)
    for entry in entries:  # no link may lead it out of the run
        folder = os.path.realpath(os.path.dirname(operation.path(entry)))
        if not f"{folder}{os.sep}".startswith(os.path.realpath(run).rstrip(os.sep) + os.sep):
            return None
    return operation


def names(run: str) -> list[str]:
    """The ids of all operations of a run, oldest first, also of those that cannot be undone."""
    home = folder_of(run)
    if os.path.islink(home):  # never ours
        return []
    try:
        return sorted(name for name in os.listdir(home) if is_directory(os.path.join(home, name)))
    except OSError:
        return []
