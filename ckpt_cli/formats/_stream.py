"""Bytes that are read once, from front to back: what is interpreted along the way is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ckpt_cli.formats import ByteSource

BLOCK = 1 << 17


class Stream(NamedTuple):
    """`length` bytes in blocks, of which the first stands at byte `start`, as messages count."""

    blocks: Iterator[bytes]
    length: int
    start: int = 0


def whole(data: bytes) -> Stream:
    return Stream(iter((data,)), len(data))


def range_of(source: ByteSource, start: int, end: int) -> Stream:
    """The bytes of a source from `start` to `end`."""
    return Stream(blocks(source, start, end), end - start, start)


def blocks(source: ByteSource, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, BLOCK):
        yield source.read_at(at, min(BLOCK, end - at))
