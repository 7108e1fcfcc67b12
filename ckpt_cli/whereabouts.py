"""Where the files of an operation are: in their place, away in its trash, on both sides of a rename, or in the way.

Looks, makes folders and syncs them; only `removal` moves and deletes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress
from shlex import quote

from ckpt_cli.atomic import fsync_directory, same_file
from ckpt_cli.journal import File, Operation, Removal, folders_of, is_directory

IMMOVABLE = "the file system moves no folder here, and a trainer could find half of it while its files go one by one"
_MIXED = "it cannot go as a whole for what else is in it, or for its permissions, and a trainer would find half of it"


def home_of(operation: Operation, name: str) -> str:
    return os.path.join(operation.run, name)


def away_of(operation: Operation, name: str) -> str:
    return os.path.join(operation.folder, name)


def is_away(operation: Operation, file: File) -> bool:
    home, away = home_of(operation, file.name), away_of(operation, file.name)
    return os.path.lexists(away) and not same_file(home, away)


def blocked(operation: Operation, file: File, gone: str | None) -> str | None:
    """Why a file cannot come back, None where it can or is back already; `gone` is why those away may not."""
    home, away = home_of(operation, file.name), away_of(operation, file.name)
    if not os.path.lexists(away):
        return None if os.path.lexists(home) else "it is deleted already"
    if gone:
        return gone
    if os.path.lexists(home) and not same_file(home, away):
        return f"{home} is there already"
    return None


def estranged(operation: Operation, model: File) -> str | None:
    """Why an optimizer may not come back to the model it was taken from."""
    try:
        status = os.lstat(home_of(operation, model.name))
    except OSError:
        return f"{model.name}, which it belongs to, is not there"
    return None if status.st_mtime_ns == model.modified else f"{model.name} is not the one it belongs to any more"


def own_folders(run: str, files: Sequence[File]) -> tuple[str, ...]:
    """The folders right below the run that hold some of these files and nothing else, so that each can go as one.

    One that holds anything that may not be ours to delete, as far as can be told, is none.
    """
    inside: dict[str, list[File]] = {}
    for file in files:
        if os.sep in file.name:
            inside.setdefault(file.name.partition(os.sep)[0], []).append(file)
    return tuple(top for top, own in inside.items() if holds_only(run, top, own) and _may_go(run, own))


def _may_go(run: str, files: Sequence[File]) -> bool:
    """Whether every one could be deleted out of a folder that has moved: an immutable one could not."""
    folders = {os.path.dirname(file.name) for file in files}
    return all(os.access(os.path.join(run, folder), os.W_OK) for folder in folders) and not any(
        _is_immutable(os.path.join(run, file.name)) for file in files
    )


def _is_immutable(path: str) -> bool:
    """Whether a file is protected by more than its mode, which does not keep it from being deleted."""
    if os.access(path, os.W_OK):
        return False
    try:
        # In an overlay, to open what can be written to would copy it.
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno != errno.EACCES
    return False


def holds_only(place: str, top: str, files: Sequence[File]) -> bool:
    """Whether a folder, and those in it, hold these files and no other, no empty folder, no link and no mount."""
    inodes = {file.name: file.inode for file in files}
    folders = set(folders_of(inodes))
    found, pending = 0, [top]
    try:
        if not is_directory(os.path.join(place, top)):
            return False
        while pending:
            folder = pending.pop()
            with os.scandir(os.path.join(place, folder)) as entries:
                for entry in entries:
                    name = f"{folder}{os.sep}{entry.name}"
                    # Where something is mounted, the directory tells another inode than the file itself.
                    if inodes.get(name) == entry.inode():
                        found += 1
                    elif (
                        name in folders
                        and entry.is_dir(follow_symlinks=False)
                        and entry.inode() == entry.stat(follow_symlinks=False).st_ino
                    ):
                        pending.append(name)
                    else:
                        return False
    except OSError:
        return False
    return found == len(inodes)


def is_found(run: str, folder: str, going: Collection[str] = ()) -> bool:
    """Whether a trainer that resumes from the largest number finds this folder: no other of its kind has a larger one.

    It takes whatever directory has the name, empty or half written; one without a number it does not look for. Those
    that are `going` do not count.
    """
    kind, numbers = _numbered(folder)
    if not numbers:
        return False
    try:
        with os.scandir(run) as entries:
            return not any(
                other > numbers and alike == kind and entry.name not in going and entry.is_dir()
                for entry in entries
                for alike, other in [_numbered(entry.name)]
            )
    except OSError:
        return True


def check_unchanged(run: str, files: Sequence[File]) -> None:
    """Raises OSError, with its path, for a file that is not as it was when the plan was made."""
    # Plain text instead of os.path: of 10,000 checkpoints that takes as long as the renames.
    for name, _, modified, inode in files:
        status = os.lstat(f"{run}/{name}")
        if status.st_ino != inode or status.st_mtime_ns != modified:
            raise OSError(errno.ESTALE, "it has changed since it was listed", f"{run}/{name}")


def check_unfound(run: str, removal: Removal, name: str, going: Collection[str], immovable: bool = False) -> None:
    """Raises OSError, with the folder, where a file in one cannot go by itself: a trainer would find half of it.

    As `is_found`; `immovable` says that it was tried to move the folder.
    """
    folder = name.partition(os.sep)[0]
    if removal.beside or removal.half or not is_found(run, folder, going):
        return
    path = os.path.join(run, folder)
    why = f"{IMMOVABLE}: `rm -r {quote(path)}` removes it, with no trainer at work" if immovable else _MIXED
    raise OSError(errno.EBUSY, why, path)


def _numbered(name: str) -> tuple[list[str], list[int]]:
    """A name without its numbers, and these."""
    pieces = re.split("([0-9]+)", name)
    return pieces[::2], [int(number) for number in pieces[1::2]]


def make_room(place: str, like: str, name: str) -> None:
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


def sync(operation: Operation) -> None:
    """Makes every name that was moved durable, here and there."""
    as_one = {folder for removal in operation.removals for folder in removal.folders}
    for folder in (*operation.folders, ""):
        top = folder.partition(os.sep)[0]
        # One that went as one is on one side alone, and no name in it has changed.
        if top in as_one and not all(os.path.isdir(of(operation, top)) for of in (home_of, away_of)):
            continue
        for place in (operation.run, operation.folder):
            path = os.path.join(place, folder) if folder else place
            if not folder or os.path.isdir(path):
                fsync_directory(path)


def left_folders(operation: Operation) -> list[str]:
    """The folders of its files that are in the run still, the innermost first."""
    paths = (os.path.join(operation.run, folder) for folder in operation.folders)
    return [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]
