"""Files that appear whole or not at all, directories that are on disk, one process at a time.

With `removal`, the only place that renames or unlinks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.interrupts import interruptible, uninterruptible

_LOCK_ATTEMPTS = 10
# The mark of what `staged` writes.
STAGED = "staged"
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def fsync_directory(path: str) -> None:
    """Makes the names in a directory durable; file systems that cannot are left to themselves."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview, at: int | None = None) -> None:
    """Writes all of the bytes, however few the system takes at a time: from offset `at`, or where the file stands."""
    view, done = memoryview(data), 0
    while done < len(view):
        left = view[done:]
        done += os.write(descriptor, left) if at is None else os.pwrite(descriptor, left, at + done)


@contextmanager
def staged_all(targets: Sequence[str], replace: bool) -> Iterator[list[int]]:
    """As `staged`, for several files: all take their names, in this order, when the block is left whole, or none.

    What stood under a name is put back where a later rename fails.
    """
    folders = list(dict.fromkeys(os.path.dirname(target) or "." for target in targets))
    made: list[str] = []
    with interruptible():
        try:
            for folder in folders:
                make_directories(folder, made)
                with suppress(OSError):  # a folder that can be written to but not listed
                    sweep(folder, STAGED)
            yield from _staged_all(targets, replace)
        except BaseException:
            remove_empty(made)
            raise
    for folder in dict.fromkeys([*folders, *(os.path.dirname(folder) or "." for folder in made)]):
        fsync_directory(folder)


def make_directories(folder: str, made: list[str]) -> None:
    """Makes the directory and those above it that are not there, and adds each that it made to `made`."""
    if os.path.isdir(folder):
        return
    make_directories(os.path.dirname(folder) or ".", made)
    try:
        os.mkdir(folder)
    except OSError as error:
        if os.path.isdir(folder):  # another process was quicker
            return
        raise CkptError(f"{folder} cannot be made: {error.strerror}", path=folder) from error
    made.append(folder)


def remove_empty(made: Sequence[str]) -> None:
    """Takes away directories that were made for nothing, the last first; one that holds something stays."""
    for folder in reversed(made):
        with suppress(OSError):
            os.rmdir(folder)


def _staged_all(targets: Sequence[str], replace: bool) -> Iterator[list[int]]:
    descriptors: list[int] = []
    temporary: list[str] = []
    try:
        try:
            for target in targets:
                path, descriptor = draft(os.path.dirname(target) or ".", STAGED)
                temporary.append(path)
                descriptors.append(descriptor)
            yield descriptors
        except OSError as error:
            what = targets[0] if len(targets) == 1 else os.path.dirname(targets[0]) or "."
            raise CkptError(f"{what} cannot be written: {error.strerror}", path=what) from error
        with uninterruptible():
            _take_names(temporary, targets, replace)
    except BaseException:
        for path in temporary:
            _discard(path)
        raise
    finally:
        # Not before each has its name: what nobody holds may be swept away.
        for descriptor in descriptors:
            os.close(descriptor)


def _take_names(temporary: Sequence[str], targets: Sequence[str], replace: bool) -> None:
    """Gives each file its name. What was under one is kept under another until all have theirs."""
    taken: list[tuple[str, str | None]] = []
    try:
        for path, target in zip(temporary, targets):
            kept = _keep(target) if replace and len(targets) > 1 else None
            try:
                if replace:
                    os.replace(path, target)
                else:
                    rename_new(path, target)
            except BaseException:
                if kept:
                    _discard(kept)
                raise
            taken.append((target, kept))
    except BaseException as failure:
        for target, kept in reversed(taken):
            if kept:
                os.replace(kept, target)
            else:
                _discard(target)
        if isinstance(failure, FileExistsError):
            raise Refused(f"{target} is there already", "--force replaces it") from failure
        if isinstance(failure, OSError):
            raise CkptError(f"{target} cannot be written: {failure.strerror}", path=target) from failure
        raise
    for _, kept in taken:
        if kept:
            _discard(kept)


def _keep(target: str) -> str | None:
    """A second name beside it for what stands under a name; None where nothing does."""
    name = _name_beside(os.path.dirname(target) or ".")
    try:
        os.link(target, name, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return name


@contextmanager
def staged(target: str, replace: bool) -> Iterator[int]:
    """A descriptor of a temporary file beside `target`, which takes the target's name when the block is left whole.

    The mode is 0666 less the umask. The block must have fsynced what it wrote. On any exception, an interrupt
    included, the temporary file goes and the target is as it was. Raises Refused when the target is there and
    `replace` is not set, also when it appeared meanwhile.
    """
    with staged_all([target], replace) as descriptors:
        yield descriptors[0]


def draft(folder: str, mark: str) -> tuple[str, int]:
    """A new file that is to take its name later, locked while its descriptor is open. `sweep` finds those of a mark."""
    while True:
        path, descriptor = _temporary(folder, mark)
        with suppress(OSError):  # without locks nobody can tell that it was left behind, and it stays
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # another process swept in the instant before it was locked


def sweep(folder: str, mark: str) -> None:
    """Takes away the drafts that processes left which were killed: those that nobody holds."""
    for name in os.listdir(folder):
        if not (name.startswith(f".ckpt-{mark}-") and name.endswith(".tmp")):
            continue
        path = os.path.join(folder, name)
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def rename_all(pairs: Sequence[tuple[str, str]]) -> None:
    """Gives each file its other name, in this order, and makes that durable. What lies under one is replaced.

    Raises OSError, with the renames before it done.
    """
    for source, target in pairs:
        os.replace(source, target)
    for folder in dict.fromkeys(os.path.dirname(target) or "." for _, target in pairs):
        fsync_directory(folder)


def discard(paths: Sequence[str]) -> None:
    """Takes files away, in this order; one that cannot go stays."""
    for path in paths:
        _discard(path)


def rename(source: str, target: str) -> None:
    """Gives a file or folder another name, which nobody else has. Raises OSError."""
    os.rename(source, target)


def remove(path: str) -> None:
    """Deletes a file or a link, or a folder with all that is in it. Raises OSError."""
    if os.path.isdir(path) and not os.path.islink(path):
        from shutil import rmtree

        rmtree(path)
    else:
        os.unlink(path)


def _temporary(folder: str, mark: str = "") -> tuple[str, int]:
    """A new file in the folder: its path, and a descriptor to write and read it."""
    path = _name_beside(folder, mark)
    try:
        return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise CkptError(f"{folder} cannot be written to: {error.strerror}", path=folder) from error


def _name_beside(folder: str, mark: str = "") -> str:
    # Not made of the target's name, which may be as long as a name can be.
    mark = mark and f"{mark}-"
    return os.path.join(folder, f".ckpt-{mark}{os.getpid()}-{time.monotonic_ns():x}.tmp")


def _discard(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def rename_new(source: str, target: str) -> None:
    """Renames without ever overwriting: raises FileExistsError when the target is there.

    A link and an unlink, because rename(2) replaces; where links cannot be made, a look and a rename. When
    killed between the two, both names are one file, which `same_file` tells.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "is there already", target) from None
        os.rename(source, target)
        return
    os.unlink(source)


def second_name(path: str, name: str) -> bool:
    """Gives a file another name, which stays its own when something is renamed over the first.

    False where links cannot be made; raises OSError for a full disk and for a name that is there.
    """
    try:
        os.link(path, name, follow_symlinks=False)
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno in NO_SPACE or isinstance(error, FileExistsError):
            raise
        return False
    return True


def same_file(one: str, other: str) -> bool:
    """Whether both names are there and are one file; links are not followed."""
    try:
        first, second = os.lstat(one), os.lstat(other)
    except OSError:
        return False
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


@contextmanager
def locked(directory: str) -> Iterator[bool]:
    """Holds the directory for this process. Raises Refused when another ckpt holds it.

    Yields false where the file system has no locks (some network ones): the caller may say so.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise CkptError(f"{directory} cannot be opened: {error.strerror}") from error
    try:
        yield _flock(descriptor, directory)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, directory: str) -> bool:
    # Another command may hold it for an instant, to see whether anyone does.
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if attempt == _LOCK_ATTEMPTS - 1:
                raise Refused(f"another ckpt is at work in {directory}", "try again when it is done") from error
            time.sleep(0.05)
        except OSError:
            break
    return False
