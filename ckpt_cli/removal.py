"""Carries out a removal, and the way back. No kill, full disk or race costs a checkpoint that is kept.

The caller locks the runs' directories. In each, `.ckpt-trash/<id>/` is made with a journal of every file, and
synced; the files are renamed into it, model first; that every rename is done is journalled; then all is deleted. Until
that last entry everything is put back (an interrupt at once, a kill by the next prune); after it, the next
prune finishes the deletion (`settling`). A trash is inside the run's directory and so always on its file system.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from ckpt_cli.atomic import NO_SPACE, fsync_directory, rename_new, same_file
from ckpt_cli.discover import TRASH
from ckpt_cli.errors import CkptError, Interrupted
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
                total.add(delete(operation))
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
        outcome = put_back(operation)
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
        clear(operation)
        if error.errno in NO_SPACE:
            raise NoRoom(f"there is no room for a journal in {operation.run}: the disk is full") from error
        raise
    except BaseException:
        clear(operation)
        raise
    begun, stayed = os.fstat(journal).st_size, len(outcome.stayed)
    try:
        failed = [removal for removal in operation.removals if not _move(operation, removal, outcome)]
        if failed:  # the folders that were made for them
            _sweep(operation.folder, operation)
        _sync(operation)
        append(journal, {"state": "moved", "failed": [removal.ref for removal in failed]})
    except BaseException as error:
        # Also for a full disk or an I/O error: what cannot be journalled is not done.
        with uninterruptible():
            # The last entry may be there already: a kill from here on must not turn into a deletion.
            with suppress(OSError):
                os.ftruncate(journal, begun)
                os.fsync(journal)
            left = put_back(operation).stayed
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
        clear(operation)
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
    _sweep(run, Operation("", run, "deleting", tuple(removals)))
    with suppress(OSError):  # the files are gone all the same, and what went must be told
        fsync_directory(run)
    return outcome


def _move(operation: Operation, removal: Removal, outcome: Outcome) -> bool:
    """Renames one checkpoint's files into the trash; when one cannot go, puts the others back.

    Raises OSError when they cannot be put back either: the whole operation is then undone.
    """
    # Plain text instead of os.path: of 10,000 checkpoints that takes as long as the renames.
    run, trash = operation.run, operation.folder
    for file in removal.files:
        path = f"{run}/{file.name}"
        try:
            status = os.lstat(path)
            if (status.st_ino, status.st_mtime_ns) != (file.inode, file.modified):
                raise OSError(0, "it has changed since it was listed")
            away = f"{trash}/{file.name}"
            if os.sep in file.name:
                _make_room(run, run, file.name)
                _make_room(trash, run, file.name)
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
            _make_room(operation.run, operation.folder, file.name)
            rename_new(away, home)
    except FileExistsError:
        outcome.stayed.append((away, f"{home} is there already"))
        return False
    except OSError as error:
        outcome.stayed.append((away, error.strerror or str(error)))
        return False
    return True


def put_back(operation: Operation, forget: bool = True) -> Outcome:
    """Restores whole checkpoints, the model last; drops the operation when nothing of it is left in the trash.

    A checkpoint of which a file is gone for good, or whose place is taken, stays in the trash as it is.
    """
    outcome = Outcome()
    for removal in operation.removals:
        gone = next((why for file in removal.beside if (why := _estranged(operation, file))), None)
        blocked = [_blocked(operation, file, gone) for file in removal.files]
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
            clear(operation)
    return outcome


def _blocked(operation: Operation, file: File, gone: str | None) -> str | None:
    home, away = os.path.join(operation.run, file.name), os.path.join(operation.folder, file.name)
    if not os.path.lexists(away):
        return None if os.path.lexists(home) else "it is deleted already"
    if gone:
        return gone
    if os.path.lexists(home) and not same_file(home, away):
        return f"{home} is there already"
    return None


def _estranged(operation: Operation, model: File) -> str | None:
    """Why an optimizer may not come back to the model it was taken from."""
    try:
        status = os.lstat(os.path.join(operation.run, model.name))
    except OSError:
        return f"{model.name}, which it belongs to, is not there"
    return None if status.st_mtime_ns == model.modified else f"{model.name} is not the one it belongs to any more"


def delete(operation: Operation) -> Outcome:
    outcome = Outcome()
    trash = operation.folder
    for removal in operation.removals:
        stayed = len(outcome.stayed)
        for file in removal.files:
            path = f"{trash}/{file.name}"
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
        clear(operation)
    return outcome


def _make_room(place: str, like: str, name: str) -> None:
    """Makes the folders of a file below `place`, as private as they are below `like`.

    Raises OSError where a link would lead it elsewhere.
    """
    inner = ""
    for piece in name.split(os.sep)[:-1]:
        inner = os.path.join(inner, piece)
        folder = os.path.join(place, inner)
        if not os.path.isdir(folder):
            os.mkdir(folder)
            with suppress(OSError):
                os.chmod(folder, stat.S_IMODE(os.stat(os.path.join(like, inner)).st_mode))
    folder = os.path.join(place, inner)
    if inner and os.path.realpath(folder) != os.path.join(os.path.realpath(place), inner):
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


def sweep_left(operation: Operation) -> None:
    """Removes the folders that a kill left empty in the run; not one that a trainer has made there since."""
    old: list[str] = []
    with suppress(OSError):
        moved = os.stat(os.path.join(operation.folder, JOURNAL)).st_mtime_ns
        old = [folder for folder in left_folders(operation) if os.stat(folder).st_mtime_ns <= moved]
    for folder in old:
        with suppress(OSError):
            os.rmdir(folder)


def left_folders(operation: Operation) -> list[str]:
    """The folders of its files that are in the run still, the innermost first."""
    paths = (os.path.join(operation.run, folder) for folder in operation.folders)
    return [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]


def clear(operation: Operation) -> None:
    """Removes the journal, then the empty directories; what is not empty stays."""
    _sweep(operation.folder, operation)
    with suppress(OSError):
        if not set(os.listdir(operation.folder)) - {JOURNAL}:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(operation.folder, JOURNAL))
            os.rmdir(operation.folder)
    drop_trash(operation.run)


def drop_trash(run: str) -> None:
    with suppress(OSError):
        os.rmdir(os.path.join(run, TRASH))
