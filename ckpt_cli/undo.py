"""Files replaced together, with the old ones kept so that they can come back. No kill leaves one that is neither.

In a run's directory, `.ckpt-undo/<id>/` gets each new file as `<n>.new` and a second name of each old one as
`<n>.old`; then a journal that lists them. Until the journal has its name nothing has changed, and what lies there is
dropped; from then on the new files are renamed into place, by the next command where this one was killed. To undo is
to rename the old ones back, which is the old inode with its bytes, mode, owner and times. The caller locks the run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from ckpt_cli.atomic import discard, fsync_directory, remove_empty, rename_all, same_file, second_name
from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.interrupts import uninterruptible
from ckpt_cli.kept import (
    JOURNAL,
    UNDOING,
    Entry,
    Operation,
    folder_of,
    is_in_trash,
    kept_of,
    names,
    note,
    noted,
    read,
    sha256,
)
from ckpt_cli.likeness import copy, dress
from ckpt_cli.writing import Advance, Output, write

# All that is ever put into an operation's folder.
_OURS = re.compile(rf"{JOURNAL}|{UNDOING}|[0-9]+\.(?:old|new)|\.ckpt-.*\.tmp", re.DOTALL)


class New(NamedTuple):
    """A file to be replaced: `make` gives what is to be written under the name it is told.

    It is told the sha256 of the new files before it, by path. `of` is the file of a checkpoint that this one belongs
    to: a manifest to what it lists.
    """

    path: str
    of: str
    make: Callable[[str, Mapping[str, str]], Output]


def stage(run: str, id: str, news: Sequence[New], advance: Advance) -> Operation:
    """Writes the new files and keeps the old: after it, only renames are left. On any failure nothing has changed.

    Raises CkptError for what cannot be written, Refused where a file cannot keep its owner.
    """
    home = folder_of(run)
    operation = Operation(id, run, tuple(Entry(_below(run, new.path), _below(run, new.of), "") for new in news))
    try:
        with suppress(FileExistsError):
            os.mkdir(home)
        if os.path.islink(home):
            raise CkptError(f"{home} is a symbolic link, which may lead anywhere")
        os.mkdir(operation.folder)
        digests: dict[str, str] = {}
        for entry, new in zip(operation.entries, news):
            coming, before = operation.coming(entry), os.stat(new.path)
            write([new.make(coming, digests)], False, advance)
            digests[new.path] = sha256(coming)
            if not second_name(new.path, operation.kept(entry)):
                copy(new.path, operation.kept(entry))
            dress(coming, new.path)
            now = os.stat(new.path)
            if (now.st_size, now.st_mtime_ns, now.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
                raise Refused(f"{new.path} has changed while it was read", "run it again")
        entries = tuple(e._replace(after=digests[new.path]) for e, new in zip(operation.entries, news))
        operation = operation._replace(entries=entries)
        for place in (operation.folder, home, run):
            fsync_directory(place)
        note(operation, JOURNAL, {"version": 1, "files": [list(entry) for entry in entries]})
    except BaseException as error:
        with uninterruptible():
            _drop(operation.run, operation.id)
        if isinstance(error, OSError):
            raise CkptError(f"{error.filename or home} cannot be written: {error.strerror}") from error
        raise
    return operation


def commit(operation: Operation) -> list[tuple[str, str]]:
    """Renames the new files into place; returns (path, why) of those that had to stay as they are."""
    stayed: list[tuple[str, str]] = []
    with uninterruptible():
        for entry in operation.entries:
            path, coming = operation.path(entry), operation.coming(entry)
            if not os.path.lexists(coming):
                continue
            if not _is_kept(operation, entry):
                stayed.append((path, "it has changed since"))
                discard([coming, operation.kept(entry)])
                continue
            try:
                rename_all([(coming, path)])
            except OSError as error:
                if os.path.lexists(coming):  # else only the sync after it failed
                    stayed.append((path, error.strerror or str(error)))
        _sync(operation)
        _sweep(operation)
    return stayed


def roll_back(operation: Operation) -> None:
    """Drops what was staged and not yet committed."""
    _drop(operation.run, operation.id)


def recover(run: str) -> tuple[list[str], set[str]]:
    """Finishes what a kill cut off: what had not begun is dropped, what had is carried through.

    Returns what is to be said of it, and the ids of undos that were finished.
    """
    said, undone = [], set()
    for name in names(run):
        operation = read(run, name)
        if operation is None:
            if not os.path.lexists(os.path.join(folder_of(run), name, JOURNAL)):
                _drop(run, name)
                said.append(f"a patch of {run} was cut off before it had begun: nothing had changed")
            continue
        undoing = noted(operation, UNDOING)
        if undoing is not None:
            _bring_back(operation, [e for e in operation.entries if e.name in undoing], force=False)
            undone.add(name)
            said.append(f"an undo in {run} was cut off, and is done now")
        elif any(os.path.lexists(operation.coming(entry)) for entry in operation.entries):
            stayed = commit(operation)
            left = "; ".join(f"{path} stayed: {why}" for path, why in stayed)
            said.append(f"a patch of {run} was cut off, and is done now{': ' if left else ''}{left}")
        else:
            _sweep(operation)
    return said, undone


def unsettled(run: str) -> bool:
    """Whether `recover` has anything to do there."""
    for name in names(run):
        operation = read(run, name)
        if operation is None or noted(operation, UNDOING) is not None:
            return True
        if any(os.path.lexists(operation.coming(entry)) for entry in operation.entries):
            return True
        if not kept_of(operation, None) and not is_in_trash(operation):
            return True
    return False


def bring_back(
    operation: Operation, paths: Iterable[str] | None, force: bool
) -> tuple[list[str], list[tuple[str, str]]]:
    """Puts old files back in their places: those that belong to `paths`, or all.

    Returns what came back, and (path, why) of what stayed: a file that has changed since it was patched, or is gone,
    is left alone unless `force` is set.
    """
    wanted = kept_of(operation, paths)
    with uninterruptible():
        note(operation, UNDOING, [entry.name for entry in wanted])
        return _bring_back(operation, wanted, force)


def _bring_back(operation: Operation, wanted: Sequence[Entry], force: bool) -> tuple[list[str], list[tuple[str, str]]]:
    done: list[str] = []
    stayed: list[tuple[str, str]] = []
    for entry in reversed(wanted):
        path, kept = operation.path(entry), operation.kept(entry)
        try:
            if not os.path.lexists(kept):
                continue
            if not force and not os.path.lexists(path):
                raise OSError(0, "it is gone")
            if not force and (os.path.islink(path) or sha256(path) != entry.after):
                raise OSError(0, "it has changed since it was patched")
            rename_all([(kept, path)])
        except OSError as error:
            if os.path.lexists(kept):
                stayed.append((path, error.strerror or str(error)))
                continue
        done.append(path)
    _sync(operation)
    discard([os.path.join(operation.folder, UNDOING)])
    _sweep(operation)
    return done[::-1], stayed


def _is_kept(operation: Operation, entry: Entry) -> bool:
    """Whether what stands under the name is still the file that was kept, as it was when the new one was made."""
    path, kept = operation.path(entry), operation.kept(entry)
    try:
        if os.lstat(path).st_mtime_ns != os.lstat(operation.coming(entry)).st_mtime_ns:
            return False
        return same_file(path, kept) or sha256(path) == sha256(kept)
    except OSError:
        return False


def _below(run: str, path: str) -> str:
    name = os.path.relpath(path, run)
    if name.split(os.sep)[0] == os.pardir:
        raise Refused(f"{path} lies outside the run's directory {run}")
    return name


def _sync(operation: Operation) -> None:
    for folder in dict.fromkeys([operation.folder, *(os.path.dirname(operation.path(e)) for e in operation.entries)]):
        with suppress(OSError):
            fsync_directory(folder)


def _sweep(operation: Operation) -> None:
    """Drops the folder when no old file is left in it, nor in the trash."""
    if not kept_of(operation, None) and not is_in_trash(operation):
        _drop(operation.run, operation.id)


def _drop(run: str, id: str) -> None:
    home = folder_of(run)
    folder = os.path.join(home, id)
    with suppress(OSError):
        # The journal first: what it is gone from counts as not begun.
        found = sorted(filter(_OURS.fullmatch, os.listdir(folder)), key=lambda name: name != JOURNAL)
        discard([os.path.join(folder, name) for name in found])
    remove_empty([home, folder])
