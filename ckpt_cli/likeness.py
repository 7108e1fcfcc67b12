"""Files that look as another does: owner, mode, times, extended attributes."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress

from ckpt_cli.errors import Refused

_BLOCK = 1 << 20


def dress(path: str, like: str) -> None:
    """Gives the file at `path` the owner, mode, times and extended attributes of `like`, on disk when this returns.

    Raises Refused where it may not be given to that owner, OSError where either cannot be reached.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        _dress(descriptor, like)
    finally:
        os.close(descriptor)


def copy(path: str, target: str) -> None:
    """Copies a file to a new one, `target`, dressed as `dress` does; on disk when this returns. Raises as that does."""
    with open(path, "rb") as source, open(target, "xb") as made:
        shutil.copyfileobj(source, made, _BLOCK)
        made.flush()
        _dress(made.fileno(), path)


def _dress(descriptor: int, like: str) -> None:
    wanted, own = os.stat(like), os.fstat(descriptor)
    try:
        if (wanted.st_uid, wanted.st_gid) != (own.st_uid, own.st_gid):
            os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(wanted.st_mode))
    except PermissionError as error:
        raise Refused(f"{like} belongs to another user, and a new file cannot be given to them") from error
    if hasattr(os, "listxattr"):
        for name in _attributes(like):
            with suppress(OSError):
                os.setxattr(descriptor, name, os.getxattr(like, name))
    os.utime(descriptor, ns=(wanted.st_atime_ns, wanted.st_mtime_ns))
    os.fsync(descriptor)


def _attributes(path: str) -> list[str]:
    with suppress(OSError):
        return os.listxattr(path)
    return []
