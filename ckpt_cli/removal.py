"""Carries out, undoes and purges a removal. No kill, full disk or race costs a checkpoint that is kept.

One operation in one run: lock the run's directory; make `.ckpt-trash/<id>/` with a journal of every file and
fsync it; rename the files into it, model first; fsync, and journal that every rename is done; delete. Until
that last entry everything is put back (an interrupt at once, a kill by the next prune); after it, the next
prune finishes the deletion. A trash is inside the run's directory and so always on its file system.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ckpt_cli.atomic import NO_SPACE, fsync_directory, locked, rename_new, same_file
from ckpt_cli.checkpoint import Checkpoint, Role
from ckpt_cli.discover import TRASH
from ckpt_cli.errors import CkptError, Interrupted, Refused

JOURNAL = "journal"
OperationState = Literal["interrupted", "deleting", "trash", "garbled"]


@dataclass(frozen=True)
class File:
    """A file to be removed, and what it was when the plan was made."""

    name: str
    bytes: int
    modified: int
    inode: int


@dataclass(frozen=True)
class Removal:
    """One checkpoint of a run, its files in the order in which they go."""

    ref: str
    files: tuple[File, ...]


@dataclass(frozen=True)
class Operation:
    """One `.ckpt-trash/<id>`: `interrupted` before all was renamed, `deleting` after, or kept as `trash`."""

    id: str
    run: str
    state: OperationState
    removals: tuple[Removal, ...]

    @property
    def folder(self) -> str:
        return os.path.join(self.run, TRASH, self.id)

    @property
    def refs(self) -> tuple[str, ...]:
        return tuple(removal.ref for removal in self.removals)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for removal in self.removals for file in removal.files)


@dataclass
class Outcome:
    """Refs that were dealt with, and what stayed: (path, why)."""

    done: list[str] = field(default_factory=list)
    stayed: list[tuple[str, str]] = field(default_factory=list)
    freed: int = 0


class NoRoom(CkptError):
    """The journal cannot be made: the disk is full."""


def new_id() -> str:
    """Sorts by time; unique among processes."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + secrets.token_hex(2)


def plan_removal(checkpoint: Checkpoint, order: Sequence[Role]) -> Removal:
    """The checkpoint's files in the layout's order; raises Refused when one is not as it was listed."""
    files = []
    parts = sorted(checkpoint.parts, key=lambda part: order.index(part.role) if part.role in order else len(order))
    for part in parts:
        try:
            status = os.stat(part.path)
            own = os.lstat(part.path)
        except OSError as error:
            raise Refused(f"{part.path} is gone since it was listed", "run prune again") from error
        if (status.st_size, status.st_mtime_ns) != (part.bytes, part.modified):
            raise Refused(f"{part.path} has changed since it was listed", "run prune again")
        files.append(File(os.path.basename(part.path), part.bytes, own.st_mtime_ns, own.st_ino))
    return Removal(checkpoint.ref, tuple(files))


def unchanged(checkpoints: Iterable[Checkpoint]) -> None:
    """Raises Refused when a file that a plan counts on is not as it was listed."""
    for checkpoint in checkpoints:
        plan_removal(checkpoint, ())


def remove(run: str, removals: Sequence[Removal], id: str, keep_trash: bool) -> Outcome:
    """Removes the checkpoints of one run, or moves them to its trash for good.

    The caller holds the lock. Raises NoRoom when no journal can be written, Interrupted after an interrupt,
    when everything is back in its place.
    """
    operation = Operation(id, run, "interrupted", tuple(removals))
    outcome = Outcome()
    with _interruptible():
        try:
            journal = _begin(operation, keep_trash)
        except OSError as error:
            _forget(operation)
            if error.errno in NO_SPACE:
                raise NoRoom(f"there is no room for a journal in {run}: the disk is full") from error
            raise
        except BaseException:
            _forget(operation)
            raise
        try:
            failed = [removal for removal in removals if not _move(operation, removal, outcome)]
            fsync_directory(run)
            fsync_directory(operation.folder)
            _append(journal, {"state": "moved", "failed": [removal.ref for removal in failed]})
        except BaseException as error:
            # Also for a full disk or an I/O error: what cannot be journalled is not done.
            with _uninterruptible():
                stayed = _put_back(operation).stayed
            if stayed:
                raise CkptError(f"{stayed[0][0]} could not be put back: {stayed[0][1]}") from error
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("interrupted: everything is back in its place") from error
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise NoRoom(f"there is no room for a journal in {run}: the disk is full") from error
            raise
        finally:
            os.close(journal)
    moved = tuple(removal for removal in removals if removal not in failed)
    if not keep_trash:
        finished = _delete(Operation(id, run, "deleting", moved))
        outcome.done, outcome.freed = finished.done, finished.freed
        outcome.stayed += finished.stayed
    elif moved:
        outcome.done = [removal.ref for removal in moved]
    else:
        _forget(operation)
    return outcome


def remove_unjournalled(run: str, removals: Sequence[Removal]) -> Outcome:
    """Deletes in the same order without journal or undo: for a disk so full that no journal can be made."""
    outcome = Outcome()
    for removal in removals:
        for file in removal.files:
            path = os.path.join(run, file.name)
            try:
                os.unlink(path)
                outcome.freed += file.bytes
            except OSError as error:
                outcome.stayed.append((path, error.strerror or str(error)))
                break
        else:
            outcome.done.append(removal.ref)
    fsync_directory(run)
    return outcome


def operations(run: str) -> list[Operation]:
    """What lies in the trash of a run, oldest first."""
    folder = os.path.join(run, TRASH)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [_read(run, name) for name in names if os.path.isdir(os.path.join(folder, name))]


def interrupted(run: str) -> bool:
    """Whether an operation of this run was cut off, by a process that is gone."""
    if all(operation.state == "trash" for operation in operations(run)):
        return False
    try:
        with locked(run):
            return True
    except CkptError:
        return False


def recover(run: str) -> list[str]:
    """Settles what earlier operations of the run left: puts back, or finishes deleting. Says what it did.

    The caller holds the lock. Raises Refused for a trash whose journal cannot be read but which holds files.
    """
    said = []
    for operation in operations(run):
        if operation.state == "interrupted":
            outcome = _put_back(operation)
            said.append(f"an interrupted prune of {run} was put back ({len(outcome.done)} of {len(operation.refs)})")
            said += [f"{path} stayed in the trash: {why}" for path, why in outcome.stayed]
        elif operation.state == "deleting":
            _delete(operation)
            said.append(f"an interrupted prune of {run} was finished")
        elif operation.state == "garbled":
            if set(os.listdir(operation.folder)) - {JOURNAL}:
                raise Refused(f"{operation.folder} holds files but no readable journal", "look at them by hand")
            _forget(operation)
    _drop_trash(run)
    return said


def undo(operation: Operation) -> Outcome:
    """Puts every whole checkpoint of the operation back; never overwrites. The caller holds the lock."""
    with _uninterruptible():
        return _put_back(operation)


def purge(operation: Operation) -> Outcome:
    """Deletes what the operation holds. The caller holds the lock."""
    return _delete(operation)


def _begin(operation: Operation, keep_trash: bool) -> int:
    """Makes the trash and its journal durable; returns the journal's descriptor."""
    trash = os.path.join(operation.run, TRASH)
    with suppress(FileExistsError):
        os.mkdir(trash)
    os.mkdir(operation.folder)
    descriptor = os.open(os.path.join(operation.folder, JOURNAL), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        removals = [
            {"ref": r.ref, "files": [[f.name, f.bytes, f.modified, f.inode] for f in r.files]}
            for r in operation.removals
        ]
        _append(descriptor, {"version": 1, "trash": keep_trash, "removals": removals})
        for folder in (operation.folder, trash, operation.run):
            fsync_directory(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _append(journal: int, entry: dict[str, Any]) -> None:
    data = json.dumps(entry).encode() + b"\n"
    while data:
        data = data[os.write(journal, data) :]
    os.fsync(journal)


def _read(run: str, id: str) -> Operation:
    """The operation as its journal tells it; a torn last line counts as not written."""
    entries = []
    try:
        with open(os.path.join(run, TRASH, id, JOURNAL), "rb") as file:
            entries = [json.loads(line) for line in file.read().split(b"\n")[:-1]]
        removals = [
            Removal(entry["ref"], tuple(File(*values) for values in entry["files"])) for entry in entries[0]["removals"]
        ]
        if any(os.path.basename(file.name) != file.name for removal in removals for file in removal.files):
            raise ValueError("a name in the journal leaves the run's directory")
        failed = entries[1]["failed"] if len(entries) > 1 else []
    except (OSError, ValueError, LookupError, TypeError):
        return Operation(id, run, "garbled", ())
    state: OperationState = "interrupted"
    if len(entries) > 1:
        state = "trash" if entries[0]["trash"] else "deleting"
    return Operation(id, run, state, tuple(removal for removal in removals if removal.ref not in failed))


def _move(operation: Operation, removal: Removal, outcome: Outcome) -> bool:
    """Renames one checkpoint's files into the trash; when one cannot go, puts the others back."""
    for file in removal.files:
        path = os.path.join(operation.run, file.name)
        try:
            status = os.lstat(path)
            if (status.st_ino, status.st_mtime_ns) != (file.inode, file.modified):
                raise OSError(0, "it has changed since it was listed")
            os.rename(path, os.path.join(operation.folder, file.name))
        except OSError as error:
            outcome.stayed.append((path, error.strerror or str(error)))
            for other in reversed(removal.files):
                _restore(operation, other, outcome)
            return False
    return True


def _restore(operation: Operation, file: File, outcome: Outcome) -> bool:
    """Brings one file back to its place unless another has taken it."""
    home, away = os.path.join(operation.run, file.name), os.path.join(operation.folder, file.name)
    if not os.path.lexists(away):
        return os.path.lexists(home)
    try:
        if same_file(home, away):
            os.unlink(away)
        else:
            rename_new(away, home)
    except FileExistsError:
        outcome.stayed.append((away, f"{home} is there already"))
        return False
    except OSError as error:
        outcome.stayed.append((away, error.strerror or str(error)))
        return False
    return True


def _put_back(operation: Operation) -> Outcome:
    """Restores whole checkpoints, the model last; drops the operation when nothing of it is left in the trash.

    A checkpoint of which a file is gone for good, or whose place is taken, stays in the trash as it is.
    """
    outcome = Outcome()
    for removal in operation.removals:
        blocked = [_blocked(operation, file) for file in removal.files]
        if any(blocked):
            outcome.stayed += [
                (os.path.join(operation.folder, f.name), why) for f, why in zip(removal.files, blocked) if why
            ]
        elif all(_restore(operation, file, outcome) for file in reversed(removal.files)):
            outcome.done.append(removal.ref)
    fsync_directory(operation.run)
    if not outcome.stayed:
        _forget(operation)
    return outcome


def _blocked(operation: Operation, file: File) -> str | None:
    home, away = os.path.join(operation.run, file.name), os.path.join(operation.folder, file.name)
    if not os.path.lexists(away):
        return None if os.path.lexists(home) else "it is deleted already"
    if os.path.lexists(home) and not same_file(home, away):
        return f"{home} is there already"
    return None


def _delete(operation: Operation) -> Outcome:
    outcome = Outcome()
    for removal in operation.removals:
        stayed = len(outcome.stayed)
        for file in removal.files:
            path = os.path.join(operation.folder, file.name)
            try:
                os.unlink(path)
                outcome.freed += file.bytes
            except FileNotFoundError:
                continue
            except OSError as error:
                outcome.stayed.append((path, error.strerror or str(error)))
        if len(outcome.stayed) == stayed:
            outcome.done.append(removal.ref)
    if not outcome.stayed:
        _forget(operation)
    return outcome


def _forget(operation: Operation) -> None:
    """Removes the journal, then the empty directories; what is not empty stays."""
    with suppress(OSError):
        if not set(os.listdir(operation.folder)) - {JOURNAL}:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(operation.folder, JOURNAL))
            os.rmdir(operation.folder)
    _drop_trash(operation.run)


def _drop_trash(run: str) -> None:
    with suppress(OSError):
        os.rmdir(os.path.join(run, TRASH))


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C does: what was begun is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _uninterruptible() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
