"""Carries out, undoes and purges a removal. No kill, full disk or race costs a checkpoint that is kept.

One operation in one run: lock the run's directory; make `.ckpt-trash/<id>/` with a journal of every file and
fsync it; rename the files into it, model first; fsync, and journal that every rename is done; delete. Until
that last entry everything is put back (an interrupt at once, a kill by the next prune); after it, the next
prune finishes the deletion. An undo or a purge of a kept trash is journalled before it begins, so that the next
prune finishes that too. A trash is inside the run's directory and so always on its file system.
"""

from __future__ import annotations

import errno
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
from ckpt_cli.errors import CkptError, Interrupted, NotFound, Refused

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
    """Sorts by time, also within a second; unique among processes."""
    now = time.time_ns()
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now // 1_000_000_000))
    return f"{moment}-{now // 1000 % 1_000_000:06d}{secrets.token_hex(2)}"


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
    when everything is back in its place. What could not even be put back is told as what stayed: nothing else
    is removed then, and the next prune tries again.
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
        begun = os.fstat(journal).st_size
        try:
            failed = [removal for removal in removals if not _move(operation, removal, outcome)]
            fsync_directory(run)
            fsync_directory(operation.folder)
            _append(journal, {"state": "moved", "failed": [removal.ref for removal in failed]})
        except BaseException as error:
            # Also for a full disk or an I/O error: what cannot be journalled is not done.
            with _uninterruptible():
                # The last entry may be there already: a kill from here on must not turn into a deletion.
                with suppress(OSError):
                    os.ftruncate(journal, begun)
                    os.fsync(journal)
                stayed = _put_back(operation).stayed
            if isinstance(error, KeyboardInterrupt):
                if stayed:
                    raise Interrupted(f"interrupted: {stayed[0][0]} stayed: {stayed[0][1]}") from error
                raise Interrupted("interrupted: everything is back in its place") from error
            if stayed:
                return Outcome(stayed=stayed)
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
    with suppress(OSError):  # the files are gone all the same, and what went must be told
        fsync_directory(run)
    return outcome


def operations(run: str) -> list[Operation]:
    """What lies in the trash of a run, oldest first."""
    folder = os.path.join(run, TRASH)
    if os.path.islink(folder):  # never ours, and what it points to is none of our business
        return []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [_read(run, name) for name in names if _is_directory(os.path.join(folder, name))]


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
            # What an undo could not bring back is trash again, or is deleted as it was about to be.
            operation = _end_undo(operation, outcome)
        if operation.state == "deleting":
            outcome = _delete(operation)
            said.append(f"an interrupted prune of {run} was {'not ' if outcome.stayed else ''}finished")
            said += [f"{path} stayed in the trash: {why}" for path, why in outcome.stayed]
        elif operation.state == "garbled":
            _refuse_garbled(operation)
            _forget(operation)
    _drop_trash(run)
    return said


def undo(operation: Operation) -> Outcome:
    """Puts every whole checkpoint of the operation back; never overwrites. The caller holds the lock."""
    operation = _again(operation)
    with _uninterruptible():
        # Killed half way, the next prune brings back the rest.
        _mark(operation, {"state": "undo"})
        outcome = _put_back(operation)
        _end_undo(operation, outcome)
    return outcome


def purge(operation: Operation) -> Outcome:
    """Deletes what the operation holds. The caller holds the lock."""
    operation = _again(operation)
    # Killed half way, the next prune deletes the rest.
    _mark(operation, {"state": "purge"})
    return _delete(operation)


def _again(operation: Operation) -> Operation:
    """The operation as it is now that the lock is held; raises NotFound when it was settled meanwhile."""
    if not _is_directory(operation.folder):
        raise NotFound(f"operation {operation.id} of {operation.run} is gone: another ckpt settled it")
    operation = _read(operation.run, operation.id)
    _refuse_garbled(operation)
    return operation


def _refuse_garbled(operation: Operation) -> None:
    """Raises Refused where files lie in the trash and nothing says what they are."""
    if operation.state == "garbled" and set(os.listdir(operation.folder)) - {JOURNAL}:
        raise Refused(f"{operation.folder} holds files but no readable journal", "look at them by hand")


def _end_undo(operation: Operation, outcome: Outcome) -> Operation:
    """The operation after an undo: what could not be brought back is again what it was before."""
    if not _is_directory(operation.folder) or not set(os.listdir(operation.folder)) - {JOURNAL}:
        return operation
    before = [entry for entry in _entries(operation.folder)[1:] if entry["state"] != "undo"]
    if before:  # else a kill came before all was moved, and the next prune tries again
        failed = next((entry["failed"] for entry in reversed(before) if "failed" in entry), [])
        _mark(operation, {**before[-1], "failed": [*failed, *outcome.done]})
    return _read(operation.run, operation.id)


def _begin(operation: Operation, keep_trash: bool) -> int:
    """Makes the trash and its journal durable; returns the journal's descriptor."""
    trash = os.path.join(operation.run, TRASH)
    with suppress(FileExistsError):
        os.mkdir(trash)
    if os.path.islink(trash):
        raise OSError(errno.ELOOP, "the trash is a symbolic link, which may lead anywhere", trash)
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


def _mark(operation: Operation, entry: dict[str, Any]) -> None:
    """Adds an entry to the journal of an earlier operation; a torn last line goes."""
    if operation.state == "garbled":
        return
    path = os.path.join(operation.folder, JOURNAL)
    journal = os.open(path, os.O_RDWR)
    try:
        whole = os.read(journal, os.fstat(journal).st_size).rfind(b"\n") + 1
        os.ftruncate(journal, whole)
        os.lseek(journal, whole, os.SEEK_SET)
        _append(journal, entry)
    except OSError as error:
        # On a full disk a purge is what helps, and an undo needs no room: only a kill is not provided for.
        if error.errno not in NO_SPACE:
            raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(journal)


def _entries(folder: str) -> list[Any]:
    """The journal's entries; a torn last line counts as not written. Raises OSError or ValueError."""
    with open(os.path.join(folder, JOURNAL), "rb") as file:
        return [json.loads(line) for line in file.read().split(b"\n")[:-1]]


def _read(run: str, id: str) -> Operation:
    """The operation as its journal tells it."""
    try:
        entries = _entries(os.path.join(run, TRASH, id))
        failed = next((list(entry["failed"]) for entry in reversed(entries[1:]) if "failed" in entry), [])
        removals = tuple(
            Removal(str(entry["ref"]), tuple(_file(*values) for values in entry["files"]))
            for entry in entries[0]["removals"]
            if entry["ref"] not in failed
        )
        last = entries[-1]["state"] if len(entries) > 1 else "begun"
        # A trash of nothing goes like a deletion that is done.
        state = _STATES["trash" if last == "moved" and entries[0]["trash"] and removals else last]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return Operation(id, run, "garbled", ())
    return Operation(id, run, state, removals)


def _file(name: Any, bytes: Any, modified: Any, inode: Any) -> File:
    """A file as the journal tells it; raises ValueError or TypeError for what no journal of ours holds."""
    if os.path.basename(name) != name or name in ("", os.curdir, os.pardir, JOURNAL) or "\0" in name:
        raise ValueError("a name in the journal leaves the run's directory")
    return File(name, int(bytes), int(modified), int(inode))


def _move(operation: Operation, removal: Removal, outcome: Outcome) -> bool:
    """Renames one checkpoint's files into the trash; when one cannot go, puts the others back.

    Raises OSError when they cannot be put back either: the whole operation is then undone.
    """
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
            if any(os.path.lexists(os.path.join(operation.folder, other.name)) for other in removal.files):
                raise
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
    try:
        fsync_directory(operation.run)
    except OSError as error:  # what may not be on the disk must not lose its journal
        outcome.stayed.append((operation.run, error.strerror or str(error)))
    else:
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


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _drop_trash(run: str) -> None:
    with suppress(OSError):
        os.rmdir(os.path.join(run, TRASH))


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C does: what was begun is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
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
