"""Deletes checkpoints where the disk is too full for a journal: each goes whole or not at all, with no way back.

What goes is renamed first, to names that tell what a journal would (`aside`); that takes no room on nearly any file
system. After a kill the next prune deletes the rest, or puts back what had not all been renamed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence

from ckpt_cli.aside import Aside, asides_of, comes_back, left_aside
from ckpt_cli.atomic import NO_SPACE, fsync_directory, remove, remove_empty, rename, rename_new, same_file
from ckpt_cli.interrupts import uninterruptible
from ckpt_cli.journal import File, Outcome, Removal, folders_of
from ckpt_cli.removal import list_again, unlist
from ckpt_cli.whereabouts import check_unchanged, check_unfound, holds_only

# What keeps a name from being changed, and not a file from being deleted.
_NO_NAME = NO_SPACE | {errno.EXDEV, errno.ENAMETOOLONG}


def delete_unjournalled(run: str, removal: Removal, going: Collection[str]) -> Outcome:
    """Deletes one checkpoint of a run; `going` are the folders right below the run that hold what goes in all.

    Where nothing can be renamed either, its files are deleted in their order where they lie, unless a trainer would
    find half of them.
    """
    outcome = Outcome()
    asides = asides_of(run, [name for name, _ in removal.pieces])
    with uninterruptible():
        unlist(run, removal)
        try:
            for (name, files), aside in zip(removal.pieces, asides):
                check_unchanged(run, files)
                if os.sep in name:
                    check_unfound(run, removal, name, going)
                rename(aside.home, aside.path)
                if name in removal.folders and not _is_alone(run, name, files, aside):
                    raise OSError(errno.ENOTEMPTY, "something else was written into it", aside.home)
            _sync(run)
        except OSError as error:
            outcome.stayed = _bring_back(asides)
            if error.errno in _NO_NAME and not outcome.stayed:
                return _delete_in_place(run, removal, going)
            outcome.stayed += [*list_again(run, removal), _why(error, run)]
            return outcome
        outcome.stayed = _delete(asides)
        remove_empty([os.path.join(run, folder) for folder in reversed(folders_of(_by_file(removal)))])
    if not outcome.stayed:
        outcome.remarks = unlist(run, removal)
        outcome.done.append(removal.ref)
        outcome.freed = sum(file.bytes for file in removal.files)
    return outcome


def settle_asides(run: str) -> list[str]:
    """Puts back, or finishes deleting, what a kill has left. Says what it did. The caller holds the lock."""
    said = []
    for asides in left_aside(run):
        back = comes_back(asides)
        stayed = _bring_back(asides) if back else _delete(asides)
        end = "put back" if back and not stayed else "finished" if not stayed else "not finished"
        said.append(f"an interrupted prune of {run}, without a journal, was {end}")
        said += [f"{path} stayed: {why}" for path, why in stayed]
    return said


def _delete_in_place(run: str, removal: Removal, going: Collection[str]) -> Outcome:
    outcome = Outcome()
    try:
        for name, files in removal.pieces:
            whole = name in removal.folders
            if os.sep in name or whole:
                # Of one that goes altogether nothing is there any more when a larger one goes.
                check_unfound(run, removal, name, () if whole else going, immovable=whole)
            for file in files:
                remove(os.path.join(run, file.name))
                outcome.freed += file.bytes
            remove_empty([os.path.join(run, folder) for folder in reversed(folders_of(file.name for file in files))])
        outcome.remarks = unlist(run, removal)
        outcome.done.append(removal.ref)
        _sync(run)
    except OSError as error:
        outcome.stayed.append(_why(error, run))
    return outcome


def _delete(asides: Sequence[Aside]) -> list[tuple[str, str]]:
    """Deletes in order; returns what stayed, which is nothing but the whole where the first cannot go."""
    for aside in asides:
        try:
            remove(aside.path)
        except OSError as error:
            whole = aside.number == 1 and not os.path.isdir(aside.path)
            stayed = _bring_back(asides) if whole else []
            return [(aside.home if whole else aside.path, error.strerror or str(error)), *stayed]
    return []


def _bring_back(asides: Sequence[Aside]) -> list[tuple[str, str]]:
    """Gives each its name again, the model last; returns what stayed."""
    stayed = []
    for aside in reversed(asides):
        try:
            if same_file(aside.path, aside.home):  # a kill came in the middle of this
                remove(aside.path)
            elif os.path.lexists(aside.path):
                rename_new(aside.path, aside.home)
        except OSError as error:
            stayed.append((aside.path, f"{aside.home}: {error.strerror or error}"))
    return stayed


def _is_alone(run: str, name: str, files: Sequence[File], aside: Aside) -> bool:
    """Whether a folder that was renamed holds these files and nothing else."""
    now = os.path.basename(aside.path)
    return holds_only(run, now, [file._replace(name=now + file.name[len(name) :]) for file in files])


def _by_file(removal: Removal) -> list[str]:
    return [name for name, _ in removal.pieces if os.sep in name]


def _sync(run: str) -> None:
    try:
        fsync_directory(run)
    except OSError as error:  # only a power cut could tell the difference
        if error.errno not in NO_SPACE:
            raise


def _why(error: OSError, path: str) -> tuple[str, str]:
    return str(error.filename or path), error.strerror or str(error)
