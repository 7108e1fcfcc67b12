"""Bytes that are read once, from front to back: what is interpreted along the way is never in memory as a whole."""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from ckpt_cli.formats import ByteSource

BLOCK = 1 << 17
# LONG_BINGET and the number of a memo slot behind it; numbers of one byte are another opcode's.
_ASKING = re.compile(rb"j(?=(.{4}))", re.DOTALL)
_MEMOIZE = b"\x94"
_NEAR = 256


class Stream(NamedTuple):
    """`length` bytes in blocks, of which the first stands at byte `start`, as messages count.

    `file` is how many bytes the file has that they stand in, which says what their contents may take. `asked` says of a
    pickle which memo slots it asks for again, as `asked_for` found; None where nobody looked.
    """

    blocks: Iterator[bytes]
    length: int
    file: int
    start: int = 0
    asked: bytearray | None = None


def whole(data: bytes) -> Stream:
    return Stream(iter((data,)), len(data), len(data))


def range_of(source: ByteSource, start: int, end: int) -> Stream:
    """The bytes of a source from `start` to `end`."""
    return Stream(blocks(source, start, end), end - start, source.size, start)


def blocks(source: ByteSource, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, BLOCK):
        yield source.read_at(at, min(BLOCK, end - at))


def asked_for(source: ByteSource, start: int, end: int) -> bytearray:
    """1 for each memo slot that a pickle may ask for again, by number, of those that MEMOIZE sets: the others need not
    be kept. Too many rather than too few: whatever looks like such an opcode counts, within a text too.
    """
    count = sum(block.count(_MEMOIZE) for block in blocks(source, start, end))
    asked = bytearray(b"\1" * _NEAR).ljust(count, b"\0")
    tail = b""
    for block in blocks(source, start, end):
        slots = array("I", b"".join(_ASKING.findall(tail + block)))
        if sys.byteorder == "big":
            slots.byteswap()
        for slot in slots:
            if slot < count:
                asked[slot] = 1
        tail = (tail + block)[-4:]
    return asked
