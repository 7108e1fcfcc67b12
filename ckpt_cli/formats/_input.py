"""The bytes of a pickle as its interpreter takes them: a part of them at hand, framed or not."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_cli.formats._inert import Malformed, Truncated
from ckpt_cli.formats._stream import Stream

# Bytes of a line, which nobody writes long: texts have their length before them.
_MAX_LINE = 2 << 20


class Input:
    """`data` is the part of the stream that is at hand, `at` the place in it, `base` where it begins in the stream.

    An opcode must begin before `limit`: the end of what is at hand, or of a frame (PEP 3154), which in the stream lies
    at `frame`.
    """

    def __init__(self, data: bytes, start: int, stream: Stream | None) -> None:
        self.data = data
        self.at = start
        self.start = self.base = stream.start if stream else 0
        self.end = self.base + (stream.length if stream else len(data))
        self.blocks: Iterator[bytes] = stream.blocks if stream else iter(())
        self.frame = 0
        self.limit = len(data)

    @property
    def place(self) -> int:
        """The place in the whole stream."""
        return self.base + self.at

    def go_on(self) -> None:
        """At the end of a frame, or of what is at hand. A frame must end where an opcode ends."""
        if self.frame and self.place >= self.frame:
            if self.place > self.frame:
                cut = Truncated if self.place >= self.end else Malformed
                raise cut(f"its pickle breaks off at byte {self.place}")
            self.frame = 0
        if self.at >= len(self.data):
            self.fetch(1)
        self.bound()

    def begin_frame(self) -> None:
        if self.frame:
            raise Malformed(f"its pickle has a frame within a frame at byte {self.place}")
        length = int.from_bytes(self.take(8), "little")
        if length > self.end - self.place:
            raise Truncated(f"its pickle has a frame that reaches beyond its end at byte {self.place}")
        self.frame = self.place + length if length else 0
        self.bound()

    def bound(self) -> None:
        self.limit = min(len(self.data), self.frame - self.base) if self.frame else len(self.data)

    def fetch(self, count: int) -> None:
        """Has `count` bytes at hand; raises Truncated where they are not there."""
        if count > self.end - self.place:
            raise Truncated(f"its pickle breaks off at byte {self.end}")
        pieces = [self.data[self.at :]]
        there = len(pieces[0])
        while there < count:
            pieces.append(next(self.blocks))
            there += len(pieces[-1])
        self.base += self.at
        self.at, self.data = 0, b"".join(pieces)
        self.bound()

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            self.fetch(count)
        at = self.at
        self.at = end = at + count
        return self.data[at:end]

    def byte(self) -> int:
        if self.at >= len(self.data):
            self.fetch(1)
        self.at += 1
        return self.data[self.at - 1]

    def pieces(self, count: int) -> Iterator[bytes]:
        """So many bytes, as they are at hand: not all of them at once."""
        if count > self.end - self.place:
            raise Truncated(f"its pickle breaks off at byte {self.end}")
        while count:
            if self.at >= len(self.data):
                self.fetch(1)
            piece = self.data[self.at : self.at + count]
            self.at += len(piece)
            count -= len(piece)
            yield piece

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        while end < 0:
            there = len(self.data) - self.at
            if there > _MAX_LINE:
                raise Malformed(f"its pickle has a line of more than {_MAX_LINE} bytes at byte {self.place}")
            self.fetch(2 * there + 1 if 2 * there < self.end - self.place else max(there + 1, self.end - self.place))
            end = self.data.find(b"\n", self.at + there)
        text = self.data[self.at : end]
        self.at = end + 1
        return text
