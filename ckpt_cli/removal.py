"""Carries out, undoes and purges a removal. No kill, full disk or race costs a checkpoint that is kept.

The caller locks the runs' directories. In each, `.ckpt-trash/<id>/` is made with a journal of every file, and
synced; the files are renamed into it, model first; that every rename is done is journalled; then all is deleted. Until
that last entry everything is put back (an interrupt at once, a kill by the next prune); after it, the next
prune finishes the deletion. An undo or a purge of a kept trash is journalled before it begins, so that the next
prune finishes that too. A trash is inside the run's directory and so always on its file system.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from ckpt_cli.atomic import NO_SPACE, fsync_directory, rename_new, same_file
from ckpt_cli.discover import TRASH
from ckpt_cli.errors import CkptError, Interrupted, NotFound, Refused
from ckpt_cli.interrupts import interruptible, uninterruptible
from ckpt_cli.journal import (
    JOURNAL,
    File,
    Operation,
    Outcome,
    Removal,
    append,
    begin,
    entries_of,
    failed_of,
    is_directory,
    mark,
    operations,
    read,
)


class NoRoom(CkptError):
    """The journal cannot be made: the disk is full."""


def remove(
    planned: Sequence[tuple[str, Sequence[Removal]]],
    id: str,
    keep_trash: bool,
    without_journal: Callable[[str], bool],
) -> Outcome:
    """Removes checkpoints of several runs, or moves them to their trashes: all is renamed before any is deleted.

    The caller holds the locks. An interrupt before the last rename puts everything back and raises Interrupted.
    A run that cannot be touched is told as what stayed, and the others go. `without_journal` is asked for a run
    whose disk is so full that no journal can be made; then it is deleted with no way back.
    """
    total, moved, full = Outcome(), list[Operation](), list[tuple[str, Sequence[Removal]]]()
    with interruptible():
        try:
            for run, removals in planned:
                try:
                    moved.append(_move_away(Operation(id, run, "interrupted", tuple(removals)), keep_trash, total))
                except NoRoom:
                    full.append((run, removals))
                except OSError as error:
                    total.stayed.append((run, error.strerror or str(error)))
        except BaseException as error:
            # By what was planned, not by what is known to have moved: an interrupt may come between the two.
            with uninterruptible():
                left = [stay for run, _ in reversed(planned) for stay in _roll_back(run, id)]
            if isinstance(error, (KeyboardInterrupt, Interrupted)):
                what = f"{left[0][0]} stayed: {left[0][1]}" if left else "everything is back in its place"
                raise Interrupted(f"interrupted: {what}") from error
            raise
        for operation in moved:
            _sweep(operation.run, operation)
            if keep_trash:
                total.done += operation.refs
            else:
                total.add(_delete(operation))
        for run, removals in full:
            # Without room for a journal nothing can wait in a trash, and to delete it was not asked for.
            if not keep_trash and without_journal(run):
                total.add(_remove_unjournalled(run, removals))
            else:
                total.stayed.append((run, "there is no room for a journal: the disk is full"))
    return total


def _roll_back(run: str, id: str) -> list[tuple[str, str]]:
    """Undoes the operation in one run, if it is there; returns what stayed, which is trash from then on."""
    if not is_directory(os.path.join(run, TRASH, id)):
        return []
    operation = read(run, id)
    try:
        mark(operation, {"state": "undo"})
        outcome = _put_back(operation)
        if is_directory(operation.folder):
            elsewhere = failed_of(entries_of(operation.folder)) + outcome.done
            mark(operation, {"state": "trash", "failed": elsewhere})
    except OSError as error:
        return [(operation.folder, error.strerror or str(error))]
    return outcome.stayed


def _move_away(operation: Operation, keep_trash: bool, outcome: Outcome) -> Operation:
    """Renames the files of one run into its trash and journals that; returns the operation as it then is.

    What cannot go is added to what stayed. Raises NoRoom when no journal can be written, Interrupted after an
    interrupt; then everything is back in its place. What could not even be put back is told as what stayed:
    nothing else of the run is removed then, and the next prune tries again.
    """
    try:
        journal = begin(operation, keep_trash)
    except OSError as error:
        _forget(operation)
        if error.errno in NO_SPACE:
            raise NoRoom(f"there is no room for a journal in {operation.run}: the disk is full") from error
        raise
    except BaseException:
        _forget(operation)
        raise
    begun, stayed = os.fstat(journal).st_size, len(outcome.stayed)
    try:
        failed = [removal for removal in operation.removals if not _move(operation, removal, outcome)]
        _sync(operation)
        append(journal, {"state": "moved", "failed": [removal.ref for removal in failed]})
    except BaseException as error:
        # Also for a full disk or an I/O error: what cannot be journalled is not done.
        with uninterruptible():
            # The last entry may be there already: a kill from here on must not turn into a deletion.
            with suppress(OSError):
                os.ftruncate(journal, begun)
                os.fsync(journal)
            left = _put_back(operation).stayed
        if isinstance(error, KeyboardInterrupt):
            what = f"{left[0][0]} stayed: {left[0][1]}" if left else "everything is back in its place"
            raise Interrupted(f"interrupted: {what}") from error
        if left:
            outcome.stayed[stayed:] = left
            return replace(operation, removals=())
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise NoRoom(f"there is no room for a journal in {operation.run}: the disk is full") from error
        raise
    finally:
        os.close(journal)
    moved = tuple(removal for removal in operation.removals if removal not in failed)
    if not moved:
        _forget(operation)
    return replace(operation, state="trash" if keep_trash else "deleting", removals=moved)


def _remove_unjournalled(run: str, removals: Sequence[Removal]) -> Outcome:
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
    with uninterruptible():
        # Killed half way, the next prune brings back the rest.
        mark(operation, {"state": "undo"})
        outcome = _put_back(operation)
        _end_undo(operation, outcome)
    return outcome


def purge(operation: Operation) -> Outcome:
    """Deletes what the operation holds. The caller holds the lock."""
    operation = _again(operation)
    if operation.state != "interrupted":
        # Killed half way, the next prune deletes the rest.
        mark(operation, {"state": "purge"})
        return _delete(operation)
    # Cut off while files were moved: what is in the trash as a whole goes, what is there in part comes back.
    whole = [r for r in operation.removals if all(_is_away(operation, file) for file in r.files)]
    rest = tuple(r for r in operation.removals if r not in whole)
    with uninterruptible():
        back = _put_back(replace(operation, removals=rest), forget=False)
    mark(operation, {"state": "purge", "failed": [removal.ref for removal in rest]})
    outcome = _delete(replace(operation, removals=tuple(whole)))
    outcome.stayed += back.stayed
    return outcome


def _is_away(operation: Operation, file: File) -> bool:
    home, away = os.path.join(operation.run, file.name), os.path.join(operation.folder, file.name)
    return os.path.lexists(away) and not same_file(home, away)


def _again(operation: Operation) -> Operation:
    """The operation as it is now that the lock is held; raises NotFound when it was settled meanwhile."""
    if not is_directory(operation.folder):
        raise NotFound(f"operation {operation.id} of {operation.run} is gone: another ckpt settled it")
    operation = read(operation.run, operation.id)
    _refuse_garbled(operation)
    return operation


def _refuse_garbled(operation: Operation) -> None:
    """Raises Refused where files lie in the trash and nothing says what they are."""
    if operation.state == "garbled" and set(os.listdir(operation.folder)) - {JOURNAL}:
        raise Refused(f"{operation.folder} holds files but no readable journal", "look at them by hand")


def _end_undo(operation: Operation, outcome: Outcome) -> Operation:
    """The operation after an undo: what could not be brought back is again what it was before."""
    if outcome.again or not is_directory(operation.folder):
        return operation
    before = [entry for entry in entries_of(operation.folder)[1:] if entry["state"] != "undo"]
    if before:  # else a kill came before all was moved, and the next prune tries again
        mark(operation, {**before[-1], "failed": [*failed_of(before), *outcome.done]})
    return read(operation.run, operation.id)


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
            away = os.path.join(operation.folder, file.name)
            _make_room(operation.run, path)
            _make_room(operation.folder, away)
            os.rename(path, away)
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
            _make_room(operation.run, home)
            rename_new(away, home)
    except FileExistsError:
        outcome.stayed.append((away, f"{home} is there already"))
        return False
    except OSError as error:
        outcome.stayed.append((away, error.strerror or str(error)))
        return False
    return True


def _put_back(operation: Operation, forget: bool = True) -> Outcome:
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
        else:
            outcome.again = True
    try:
        _sync(operation)
    except OSError as error:  # what may not be on the disk must not lose its journal
        outcome.stayed.append((operation.run, error.strerror or str(error)))
        outcome.again = True
    else:
        if forget:
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
    _sweep(operation.run, operation)
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


def _make_room(place: str, path: str) -> None:
    """Makes the folder of a file below `place`; raises OSError where a link would lead it elsewhere."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        os.makedirs(folder)
    if folder != place and os.path.realpath(folder) != os.path.join(os.path.realpath(place), folder[len(place) + 1 :]):
        raise OSError(errno.ELOOP, "a symbolic link leads out of the run", folder)


def _sync(operation: Operation) -> None:
    """Makes every name that was moved durable, here and there."""
    for place in (operation.run, operation.folder):
        for folder in (*operation.folders, ""):
            path = os.path.join(place, folder) if folder else place
            if not folder or os.path.isdir(path):
                fsync_directory(path)


def _sweep(place: str, operation: Operation) -> None:
    """Removes the folders that the operation's files have left empty."""
    for folder in operation.folders:
        with suppress(OSError):
            os.rmdir(os.path.join(place, folder))


def _forget(operation: Operation) -> None:
    """Removes the journal, then the empty directories; what is not empty stays."""
    _sweep(operation.folder, operation)
    with suppress(OSError):
        if not set(os.listdir(operation.folder)) - {JOURNAL}:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(operation.folder, JOURNAL))
            os.rmdir(operation.folder)
    _drop_trash(operation.run)


def _drop_trash(run: str) -> None:
    with suppress(OSError):
        os.rmdir(os.path.join(run, TRASH))
