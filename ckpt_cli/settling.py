"""Settles operations on a run's trash that are there already: recovers after a kill, undoes, purges.

The caller locks the run's directory. Each is journalled before it begins, so that the next prune finishes it.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ckpt_cli.aside import left_aside
from ckpt_cli.errors import NotFound, Refused
from ckpt_cli.interrupts import uninterruptible
from ckpt_cli.journal import (
    JOURNAL,
    Operation,
    Outcome,
    entries_of,
    failed_of,
    is_directory,
    mark,
    operations,
    read,
)
from ckpt_cli.removal import clear, delete, drop_trash, put_back, sweep_left
from ckpt_cli.unjournalled import settle_asides
from ckpt_cli.whereabouts import is_away, left_folders


def unsettled(run: str) -> bool:
    """Whether an earlier operation of the run, or an empty trash, is to be settled before anything else is."""
    found = operations(run)
    return (
        not found
        or bool(left_aside(run))
        or any(operation.state != "trash" or left_folders(operation) for operation in found)
    )


def recover(run: str) -> list[str]:
    """Settles what earlier operations of the run left: puts back, or finishes deleting. Says what it did.

    The caller holds the lock. Raises Refused for a trash whose journal cannot be read but which holds files.
    """
    said = settle_asides(run)
    for operation in operations(run):
        if operation.state == "interrupted":
            outcome = put_back(operation)
            said.append(f"an interrupted prune of {run} was put back ({len(outcome.done)} of {len(operation.refs)})")
            said += [f"{path} stayed in the trash: {why}" for path, why in outcome.stayed]
            # What an undo could not bring back is trash again, or is deleted as it was about to be.
            operation = _end_undo(operation, outcome)
        sweep_left(operation)
        if operation.state == "deleting":
            outcome = delete(operation)
            said.append(f"an interrupted prune of {run} was {'not ' if outcome.stayed else ''}finished")
            said += [f"{path} stayed in the trash: {why}" for path, why in outcome.stayed]
        elif operation.state == "garbled":
            _refuse_garbled(operation)
            clear(operation)
    drop_trash(run)
    return said


def undo(operation: Operation) -> Outcome:
    """Puts every whole checkpoint of the operation back; never overwrites. The caller holds the lock."""
    operation = _again(operation)
    with uninterruptible():
        # Killed half way, the next prune brings back the rest.
        mark(operation, {"state": "undo"})
        outcome = put_back(operation)
        _end_undo(operation, outcome)
    return outcome


def purge(operation: Operation) -> Outcome:
    """Deletes what the operation holds. The caller holds the lock."""
    operation = _again(operation)
    sweep_left(operation)
    if operation.state != "interrupted":
        # Killed half way, the next prune deletes the rest.
        mark(operation, {"state": "purge"})
        return delete(operation)
    # Cut off while files were moved: what is in the trash as a whole goes, what is there in part comes back.
    whole = [r for r in operation.removals if all(is_away(operation, file) for file in r.files)]
    rest = tuple(r for r in operation.removals if r not in whole)
    with uninterruptible():
        back = put_back(replace(operation, removals=rest), forget=False)
    mark(operation, {"state": "purge", "failed": [removal.ref for removal in rest]})
    outcome = delete(replace(operation, removals=tuple(whole)))
    outcome.stayed += back.stayed
    return outcome


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
