"""Files of tensors written as a stream, and proven: every range is read back before a file takes its name.

Nothing is held but one block. The CRC32 of every record of the source is checked on the way. Several files appear
together or not at all.

The bytes go through a buffer that stays in the processor's cache, not through copy_file_range: on ext4 the kernel's own
copy took 1.0 to 1.6 times as long (in turns, fsync and read-back included), also where both ranges lie alike within
their pages; and it would have a damaged source found only by what was written. With the space set aside beforehand and
the read-back in a second thread, 1 GB takes three quarters of the time of `cp` and `sync`. A reflink (FICLONERANGE) is
out of reach: both ranges would have to begin at a block of the file system, 4096 bytes as a rule, where torch begins
its records at 64 and safetensors its tensors at any byte.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple

from ckpt_cli.atomic import NO_SPACE, staged_all, write_all
from ckpt_cli.casts import cast
from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.formats import ByteSource, Files, FileSource
from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.items import Item
from ckpt_cli.tensors import RANGE, checked_blocks, crc32, range_crc32, stored_crc32

Advance = Callable[[int], None]
# How much is written before the disk is set to work on it. A smaller file is done before its space could be asked for.
_FLUSH = 16 << 20


class Late(NamedTuple):
    """`size` bytes that are known when the items have been written: `make` gets the CRC32 of each, in order."""

    size: int
    make: Callable[[Sequence[int]], bytes]


Segment = Item | Late | bytes


class Written(NamedTuple):
    """An item in the output: where its bytes begin, and their CRC32 as they went out."""

    item: Item
    at: int
    digest: int


ReadBack = Callable[[Sequence[Written]], None]


class Output(NamedTuple):
    """A file to be written: segments one after another. `check` reads it by the rules of its format, and raises
    CkptError where it does not hold what it should."""

    path: str
    segments: tuple[Segment, ...]
    check: Callable[[ByteSource], None]

    @property
    def bytes(self) -> int:
        return sum(map(size_of, self.segments))

    @property
    def items(self) -> list[Item]:
        return [segment for segment in self.segments if isinstance(segment, Item)]


def item_bytes(item: Item) -> int:
    """Of what is written."""
    return item.tensor.elements * ITEMSIZE.get(item.dtype, item.tensor.itemsize)


def size_of(segment: Segment) -> int:
    if isinstance(segment, Item):
        return item_bytes(segment)
    return segment.size if isinstance(segment, Late) else len(segment)


def write(outputs: Sequence[Output], replace: bool, advance: Advance) -> None:
    """Writes, syncs and proves the outputs before they take their names, in this order. `advance` is told bytes of
    items done, each twice: once written, once read back.

    Raises Damaged when the source's bytes are not as written, Refused when an output is there and `replace` is not
    set, CkptError when one does not read back. Then nothing lies under any output's name that was not there before.
    """
    for output in outputs:
        if not replace and os.path.lexists(output.path):
            raise Refused(f"{output.path} is there already", "--force replaces it")
    checked: set[tuple[str, int]] = set()
    with Files() as files, staged_all([output.path for output in outputs], replace) as descriptors:
        for output, out in zip(outputs, descriptors):
            _reserve(out, output.bytes)
            with _reading_back(out, advance) as read_back:
                digests = _write_segments(files, output, out, checked, read_back, advance)
                os.fsync(out)
            _check(output, out, digests)


def _reserve(out: int, size: int) -> None:
    """Makes the file `size` bytes long, with blocks of the disk set aside for them where the file system can do that.

    A disk with too little room is then known before a byte is written, and Linux writes to blocks that are there in
    less time. Not by os.posix_fallocate, whose substitute, where the file system cannot, writes to each block.
    Raises OSError.
    """
    if size >= _FLUSH and sys.platform == "linux":
        import ctypes

        function = ctypes.CDLL(None, use_errno=True).fallocate
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
        if function(out, 0, 0, size) and (number := ctypes.get_errno()) in NO_SPACE:
            raise OSError(number, os.strerror(number))
    os.ftruncate(out, size)


def looks_there(output: Output) -> bool:
    """Whether a file lies there of its size, and with every byte that is no tensor's. `prove` looks at the others."""
    try:
        with FileSource(output.path) as source:
            if source.size != output.bytes:
                return False
            return all(
                source.read_at(at, len(segment)) == segment
                for at, segment in _placed(output)
                if isinstance(segment, bytes)
            )
    except CkptError:
        return False


def prove(outputs: Sequence[Output], advance: Advance) -> None:
    """Reads files that are there against what would be written; `advance` is told bytes of items, each once.

    A tensor that is all of a record is held against the CRC32 of that record, without reading the source again.
    Raises Refused for the first file that differs, Damaged where the source does not have its CRC32.
    """
    with Files() as files:
        for output in outputs:
            digests = []
            with FileSource(output.path) as source:
                for at, segment in _placed(output):
                    if isinstance(segment, Item):
                        digests.append(_expected(files, segment))
                        whole = range_crc32(source, at, item_bytes(segment), advance) == digests[-1]
                    else:
                        data = segment.make(digests) if isinstance(segment, Late) else segment
                        whole = source.read_at(at, len(data)) == data
                    if not whole:
                        raise Refused(f"{output.path} is there, but not as it was written", "--force replaces it")


def _expected(files: Files, item: Item) -> int:
    """CRC32 of the item's bytes as they would be written."""
    known = stored_crc32(item.tensor) if item.dtype == item.tensor.dtype else None
    if known is not None:
        return known
    digest = 0
    for block in _checked_bytes(files, item, set()):
        digest = crc32(block, digest)
    return digest


def _placed(output: Output) -> Iterator[tuple[int, Segment]]:
    at = 0
    for segment in output.segments:
        yield at, segment
        at += size_of(segment)


def _write_segments(
    files: Files, output: Output, out: int, checked: set[tuple[str, int]], read_back: ReadBack, advance: Advance
) -> list[int]:
    """Writes everything; returns the CRC32 of the bytes of each item, as they went out."""
    digests: list[int] = []
    late: list[tuple[int, Late]] = []
    written: list[Written] = []
    flushed = 0
    for at, segment in _placed(output):
        if isinstance(segment, bytes):
            write_all(out, segment, at)
        elif isinstance(segment, Late):
            late.append((at, segment))
        else:
            start, digest = at, 0
            for block in _checked_bytes(files, segment, checked):
                digest = crc32(block, digest)
                write_all(out, block, at)
                at += len(block)
                advance(len(block))
                if at - flushed >= _FLUSH:
                    _start_writing(out, flushed, at - flushed)
                    read_back(written)
                    flushed, written = at, []
            digests.append(digest)
            written.append(Written(segment, start, digest))
    read_back(written)
    for at, segment in late:
        write_all(out, segment.make(digests), at)
    return digests


def _checked_bytes(files: Files, item: Item, checked: set[tuple[str, int]]) -> Iterator[memoryview]:
    """The item's bytes in blocks, cast where it is to be; by the end each storage was held against its CRC32."""
    source = checked_blocks(files, item.tensor, checked)
    return source if item.dtype == item.tensor.dtype else cast(source, item.tensor.dtype, item.dtype)


def _start_writing(out: int, start: int, length: int) -> None:
    """Has the kernel begin to write a finished range to the disk, so that the fsync at the end has little left.

    That is what Linux makes of this advice for pages that are not yet written; they stay in memory meanwhile.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(out, start, length, os.POSIX_FADV_DONTNEED)


@contextmanager
def _reading_back(out: int, advance: Advance) -> Iterator[ReadBack]:
    """Yields what reads items back, by their CRC32, in a second thread while others are written.

    Raises CkptError, when the block is left, for the first that does not read back.
    """
    pending: SimpleQueue[Sequence[Written] | None] = SimpleQueue()
    left = threading.Event()
    failures: list[BaseException] = []

    def counted(count: int) -> None:
        if left.is_set():
            raise CkptError("left")
        advance(count)

    def work() -> None:
        buffer = memoryview(bytearray(RANGE))
        try:
            with FileSource("the output", out) as source:
                while (items := pending.get()) is not None:
                    for item, at, digest in items:
                        if range_crc32(source, at, item_bytes(item), counted, buffer) != digest:
                            what = f"tensor {item.name!a} was not written as it was read: disk or memory is at fault"
                            raise CkptError(what)
        except BaseException as error:  # whatever it was, the block must not end as if all had been read
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield pending.put
        pending.put(None)
        thread.join()
    except BaseException:
        left.set()
        pending.put(None)
        thread.join()
        raise
    if failures:
        raise failures[0]


def _check(output: Output, out: int, digests: Sequence[int]) -> None:
    """Holds the structure of the output against its format's rules, and what is no tensor's byte for byte."""
    with FileSource("the output", out) as source:
        output.check(source)
        for at, segment in _placed(output):
            if not isinstance(segment, Item):
                data = segment.make(digests) if isinstance(segment, Late) else segment
                if source.read_at(at, len(data)) != data:
                    raise CkptError("the output does not read back as it was written")
