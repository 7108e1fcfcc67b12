"""How tensors lie in a file: one module a format, each a `Format`.

A format reads bytes and nothing else: it never imports, calls or looks up a name that a file gives it. It
reads through a `ByteSource`, so that a remote object is one more class.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import NamedTuple, Protocol, cast

from ckpt_cli import plugins
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.tensor_file import Storage, TensorFile

# Bytes that one call to the kernel may be trusted to bring.
_SMALL_READ = 1 << 16


class ByteSource(Protocol):
    """Bytes at known places: `size` in bytes, `path` for messages and for the kernel's own copy."""

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raises Damaged where the source ends before."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills `buffer`; raises Damaged where the source ends before."""
        ...


class Records(NamedTuple):
    """The records of a file, and what `read`s the rest of it without looking at all of it again."""

    found: Iterable[Storage]
    read: Callable[[], TensorFile]


class Format(Protocol):
    """What a module of this folder offers.

    `matches` tells from the first bytes and the size whether the content is this format's, whatever the file
    is called. `read` lists what the file holds without reading tensor data. `records` gives every run of bytes
    that the file has a name for, whether or not a tensor uses it, in the order of the file: its full name, its
    place, and the CRC32 written with it, None where none was; and what goes on from there as `read` does. `check`
    looks only at what a write that broke off would have left undone (the end of a zip, the length of the data), in
    milliseconds. All raise Damaged for what was cut short or altered, CkptError for what breaks the format's rules.

    A format of indexes has two more: `index`, as `read` without opening another file, and `placed`, its records with
    what each must hold.
    """

    NAME: str

    def matches(self, head: bytes, size: int) -> bool: ...

    def read(self, source: ByteSource) -> TensorFile: ...

    def records(self, source: ByteSource) -> Records: ...

    def check(self, source: ByteSource) -> None: ...


class FileSource:
    """A local file as a ByteSource. Not seekable state: every read names its place.

    Of one that is open already, `descriptor` is read, which stays open when this is closed; `path` is then its name
    in messages.
    """

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        self.path = path
        self.descriptor = -1
        try:
            # Not blocking: to open a pipe would wait for somebody to write to it.
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
            self.descriptor = os.open(path, flags) if descriptor is None else os.dup(descriptor)
        except OSError as error:
            raise CkptError(f"{path} cannot be opened: {error.strerror}", kind="unreadable-part") from error
        status = os.fstat(self.descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CkptError(f"{path} is no regular file", kind="unreadable-part")

    def read_at(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise Damaged(
                f"{self.path} ends before byte {offset + length}, where a part of it should be",
                path=self.path,
                kind="truncated",
            )
        # Small reads are many, and one call brings them; the rest is for what the kernel gives in pieces.
        if length <= _SMALL_READ:
            with suppress(OSError):
                data = os.pread(self.descriptor, length, offset)
                if len(data) == length:
                    return data
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise CkptError(
                    f"{self.path} cannot be read: {error.strerror}", path=self.path, kind="unreadable-part"
                ) from error
            if not count:
                raise Damaged(
                    f"{self.path} ends before byte {offset + len(buffer)}, where a part of it should be",
                    path=self.path,
                    kind="truncated",
                )
            done += count

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Window:
    """A range of another source as a source of its own; a short one is read at once."""

    def __init__(self, source: ByteSource, start: int, size: int, at_once: bool = False) -> None:
        if start < 0 or size < 0 or start + size > source.size:
            raise Damaged(
                f"{source.path} ends before byte {start + size}, where a part of it should be", kind="truncated"
            )
        self.source = source
        self.path = source.path
        self.start = start
        self.size = size
        self.data = source.read_at(start, size) if at_once else None

    def read_at(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        if self.data is not None:
            return self.data[offset : offset + length]
        return self.source.read_at(self.start + offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        self.source.read_into(self.start + offset, buffer)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size:
            raise Damaged(
                f"{self.path}: a part of it ends before byte {offset + length} of that part", kind="truncated"
            )


class Files:
    """Local files by path, each opened when it is first asked for; the latest few stay open.

    One that is let go stays open for whoever still reads it: to close it would give its descriptor to the next file.
    """

    def __init__(self, most: int = 32) -> None:
        self.most = most
        self.open: dict[str, FileSource] = {}

    def at(self, path: str) -> FileSource:
        source = self.open.pop(path, None) or FileSource(path)
        self.open[path] = source  # the latest last
        if len(self.open) > self.most:
            self.open.pop(next(iter(self.open)))
        return source

    def close(self) -> None:
        while self.open:
            self.open.popitem()[1].close()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_MEMBERS = ("NAME", "matches", "read", "records", "check")


@cache
def formats() -> tuple[Format, ...]:
    """Every format there is, in order of name."""
    return tuple(cast(Format, m) for m in plugins.load(sys.modules[__name__], _MEMBERS))
