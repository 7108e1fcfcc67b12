"""Files that appear whole or not at all, directories that are on disk, one process at a time.

With `removal`, the only place that renames or unlinks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.interrupts import interruptible

_LOCK_ATTEMPTS = 10
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


@contextmanager
def staged(target: str, replace: bool) -> Iterator[int]:
    """A descriptor of a temporary file beside `target`, which takes the target's name when the block is left whole.

    The mode is 0666 less the umask. The block must have fsynced what it wrote. On any exception, an interrupt
    included, the temporary file goes and the target is as it was. Raises Refused when the target is there and
    `replace` is not set, also when it appeared meanwhile.
    """
    folder = os.path.dirname(target) or "."
    with interruptible():
        yield from _staged(folder, target, replace)
    fsync_directory(folder)


def _staged(folder: str, target: str, replace: bool) -> Iterator[int]:
    # Not made of the target's name, which may be as long as a name can be.
    temporary = os.path.join(folder, f".ckpt-{os.getpid()}-{time.monotonic_ns():x}.tmp")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise CkptError(f"{folder} cannot be written to: {error.strerror}", path=folder) from error
    try:
        try:
            yield descriptor
        except OSError as error:
            raise CkptError(f"{target} cannot be written: {error.strerror}", path=target) from error
        finally:
            os.close(descriptor)
        if replace:
            os.replace(temporary, target)
        else:
            rename_new(temporary, target)
    except FileExistsError as error:
        _discard(temporary)
        raise Refused(f"{target} is there already", "--force replaces it") from error
    except BaseException:
        _discard(temporary)
        raise


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
