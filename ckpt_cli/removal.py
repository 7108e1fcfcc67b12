"""Moves the files of a checkpoint into a run's trash, brings them back, deletes them: with `atomic`, all that renames.

A folder that holds nothing else goes, and comes back, by one rename, so that a trainer never finds half of it. Where
it cannot, its files go one by one only if a trainer finds another: one of its kind with a larger number.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

from ckpt_cli.atomic import STAGED, rename_new, same_file
from ckpt_cli.atomic import sweep as sweep_drafts
from ckpt_cli.errors import CkptError
from ckpt_cli.journal import JOURNAL, File, Operation, Outcome, Removal, folders_of, is_directory, trash_of
from ckpt_cli.manifest import lengthen, shorten
from ckpt_cli.whereabouts import (
    IMMOVABLE,
    away_of,
    blocked,
    check_unchanged,
    check_unfound,
    estranged,
    holds_only,
    home_of,
    is_found,
    left_folders,
    make_room,
    sync,
)


def move(operation: Operation, removal: Removal, outcome: Outcome) -> bool:
    """Renames one checkpoint's files and folders into the trash; when one cannot go, puts the others back.

    Raises OSError when they cannot be put back either: the whole operation is then undone.
    """
    # Plain text instead of os.path: of 10,000 checkpoints that takes as long as the renames.
    run, trash, path = operation.run, operation.folder, operation.run
    pending, immovable, by_file = removal.pieces[::-1], False, list[str]()
    unlist(run, removal)
    try:
        while pending:
            name, files = pending.pop()
            check_unchanged(run, files)
            if os.sep in name:
                # What is left of one that holds more may be there when the larger ones that go are gone.
                check_unfound(run, removal, name, () if immovable else operation.tops, immovable)
                make_room(run, run, name)
                make_room(trash, run, name)
                by_file.append(name)
            path = f"{run}/{name}"
            try:
                os.rename(path, f"{trash}/{name}")
            except OSError as error:
                # An overlay moves no folder of its lower layer, but files.
                if error.errno != errno.EXDEV or name not in removal.folders:
                    raise
                immovable = True
                pending += [(file.name, [file]) for file in reversed(files)]
                continue
            if name in removal.folders and not holds_only(trash, name, files):
                raise OSError(0, "something else was written into it")
    except OSError as error:
        outcome.stayed.append((error.filename or path, error.strerror or str(error)))
        for name, files in reversed(removal.pieces):
            _bring_back(operation, name, files, outcome)
        if any(os.path.lexists(away_of(operation, file.name)) for file in removal.files):
            raise
        outcome.stayed += list_again(run, removal)
        return False
    # At once: a trainer finds an empty folder too, when those with a larger number are gone.
    _sweep(run, folders_of(by_file))
    return True


def _bring_back(operation: Operation, name: str, files: Sequence[File], outcome: Outcome) -> bool:
    """Brings back what went by one rename: a folder likewise or else file by file, the model last."""
    if name != files[0].name and is_directory(away_of(operation, name)):
        # Only an empty folder could be in the way of this rename; nothing else is ever replaced by one.
        try:
            os.rename(away_of(operation, name), home_of(operation, name))
            return True
        except OSError as error:
            # What is there already, a trainer finds already.
            if not os.path.isdir(home_of(operation, name)) and is_found(operation.run, name):
                why = IMMOVABLE if error.errno == errno.EXDEV else error.strerror or str(error)
                outcome.stayed.append((away_of(operation, name), why))
                return False
    return all(_restore(operation, file, outcome) for file in reversed(files))


def _restore(operation: Operation, file: File, outcome: Outcome) -> bool:
    """Brings one file back to its place unless another has taken it."""
    home, away = home_of(operation, file.name), away_of(operation, file.name)
    if not os.path.lexists(away):
        return os.path.lexists(home)
    try:
        if same_file(home, away):
            os.unlink(away)
        else:
            make_room(operation.run, operation.folder, file.name)
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

    The last to go comes first, so that what a trainer finds is whole also where files come one by one.
    A checkpoint of which a file is gone for good, or whose place is taken, stays in the trash as it is.
    """
    outcome = Outcome()
    for removal in reversed(operation.removals):
        gone = next((why for file in removal.beside if (why := estranged(operation, file))), None)
        stuck = [blocked(operation, file, gone) for file in removal.files]
        if any(stuck):
            outcome.stayed += [(away_of(operation, f.name), why) for f, why in zip(removal.files, stuck) if why]
        elif all(_bring_back(operation, name, files, outcome) for name, files in reversed(removal.pieces)):
            outcome.done.append(removal.ref)
            outcome.stayed += list_again(operation.run, removal)
        else:
            outcome.again = True
    outcome.done.reverse()
    try:
        sync(operation)
    except OSError as error:  # what may not be on the disk must not lose its journal
        outcome.stayed.append((operation.run, error.strerror or str(error)))
        outcome.again = True
    else:
        if forget:
            clear(operation)
    return outcome


def unlist(run: str, removal: Removal) -> list[str]:
    """Takes what goes off the manifests that stay, which would call the checkpoint damaged; says where that could not
    be. Before it goes: one that does not list a file which is there says nothing wrong. On a full disk again after it.
    """
    remarks = []
    for path, gone in _listed(run, removal).items():
        try:
            shorten(path, gone)
        except CkptError as error:
            remarks.append(f"the manifest of {removal.ref} lists files that are gone: {error.message}")
    return remarks


def list_again(run: str, removal: Removal) -> list[tuple[str, str]]:
    """Puts back what was taken off manifests, where a kill may have left a draft; returns those where that could not
    be, and why."""
    stayed = []
    for path, back in _listed(run, removal).items():
        with suppress(OSError):
            sweep_drafts(os.path.dirname(path), STAGED)
        try:
            lengthen(path, back)
        except CkptError as error:
            stayed.append((path, f"it does not list again what is back: {error.message}"))
    return stayed


def _listed(run: str, removal: Removal) -> dict[str, dict[str, str]]:
    """By the path of the manifest the digests of files by theirs."""
    found: dict[str, dict[str, str]] = {}
    for place, name, digest in removal.lines:
        found.setdefault(os.path.join(run, place), {})[os.path.join(run, name)] = digest
    return found


def delete(operation: Operation) -> Outcome:
    outcome = Outcome()
    trash = operation.folder
    for removal in operation.removals:
        stayed = len(outcome.stayed)
        for name, size, _, _ in removal.files:
            path = f"{trash}/{name}"
            try:
                os.unlink(path)
                outcome.freed += size
            except FileNotFoundError:
                continue
            except OSError as error:
                outcome.stayed.append((path, error.strerror or str(error)))
        if len(outcome.stayed) == stayed:
            outcome.done.append(removal.ref)
    if not outcome.stayed:
        clear(operation)
        with suppress(OSError):  # it is gone
            if set(os.listdir(operation.folder)) - {JOURNAL}:
                outcome.stayed.append((operation.folder, "something is in it that ckpt did not put there"))
    return outcome


def sweep(place: str, operation: Operation) -> None:
    """Removes the folders that the operation's files have left empty."""
    _sweep(place, operation.folders)


def _sweep(place: str, folders: Sequence[str]) -> None:
    for folder in folders:
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


def clear(operation: Operation) -> None:
    """Removes the journal, then the empty directories; what is not empty stays."""
    sweep(operation.folder, operation)
    with suppress(OSError):
        if not set(os.listdir(operation.folder)) - {JOURNAL}:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(operation.folder, JOURNAL))
            os.rmdir(operation.folder)
    drop_trash(operation.run)


def drop_trash(run: str) -> None:
    with suppress(OSError):
        os.rmdir(trash_of(run))
