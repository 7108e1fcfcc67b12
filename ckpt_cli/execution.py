"""Carries out a removal, over all its runs or over none. No kill, full disk or race costs a checkpoint that is kept.

The caller locks the runs' directories. In each, `.ckpt-trash/<id>/` is made with a journal of every file, and
synced; the files, or their folders, are renamed into it, model first; that every rename is done is journalled; then
all is deleted. Until that last entry everything is put back (an interrupt at once, a kill by the next prune); after
it, the next prune finishes the deletion (`settling`). A trash is inside the run's directory and so always on its file
system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from ckpt_cli.atomic import NO_SPACE
from ckpt_cli.errors import CkptError, Interrupted
from ckpt_cli.interrupts import interruptible, uninterruptible
from ckpt_cli.journal import (
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
    trash_of,
)
from ckpt_cli.removal import clear, delete, move, put_back, sweep, unlist
from ckpt_cli.unjournalled import delete_unjournalled
from ckpt_cli.whereabouts import sync


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
        try:
            for operation in moved:
                sweep(operation.run, operation)
                if keep_trash:
                    total.done += operation.refs
                else:
                    total.add(delete(operation))
                total.remarks += [said for removal in operation.removals for said in unlist(operation.run, removal)]
        except KeyboardInterrupt as error:
            if keep_trash:
                raise
            raise Interrupted("interrupted while deleting", "the next prune deletes the rest") from error
        for run, removals in full:
            # Without room for a journal nothing can wait in a trash, and to delete it was not asked for.
            if not keep_trash and without_journal(run):
                _one_by_one(Operation(id, run, "interrupted", tuple(removals)), total)
            else:
                total.stayed.append((run, "there is no room for a journal: the disk is full"))
    return total


def _one_by_one(operation: Operation, outcome: Outcome) -> None:
    """Deletes without a journal until what went has made room for one; the rest goes as ever."""
    rest = operation
    while rest.removals:
        outcome.add(delete_unjournalled(rest.run, rest.removals[0], operation.tops))
        rest = replace(rest, removals=rest.removals[1:])
        try:
            moved = _move_away(rest, False, outcome) if rest.removals else rest
        except NoRoom:
            continue
        except Interrupted as error:
            went = len(operation.removals) - len(rest.removals)
            raise Interrupted(f"{error.message}, but for {went} that went without a journal") from error
        sweep(moved.run, moved)
        outcome.add(delete(moved))
        outcome.remarks += [said for removal in moved.removals for said in unlist(moved.run, removal)]
        return


def _roll_back(run: str, id: str) -> list[tuple[str, str]]:
    """Undoes the operation in one run, if it is there; returns what stayed, which is trash from then on."""
    if not is_directory(os.path.join(trash_of(run), id)):
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
        failed = [removal for removal in operation.removals if not move(operation, removal, outcome)]
        if failed:  # the folders that were made for them
            sweep(operation.folder, operation)
        sync(operation)
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
