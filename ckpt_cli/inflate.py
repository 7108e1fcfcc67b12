"""A compressed record as a source: unpacked as it is read, in bounded memory.

torch stores its records as they are; other tools that pack an archive anew compress them (DEFLATE, RFC 1951).
"""

from __future__ import annotations

import zlib

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import ByteSource

_PIECE = 1 << 18
# Bytes that may be unpacked anew: a transposed matrix of a gigabyte needs its size 128 times.
_AGAIN, _AGAIN_PER_BYTE = 1 << 30, 128


class Inflated:
    """`size` bytes that `packed` unpacks to. Reading forwards is one pass; reading back begins anew."""

    def __init__(self, packed: ByteSource, size: int) -> None:
        self.packed = packed
        self.path = packed.path
        self.size = size
        self.again = _AGAIN + _AGAIN_PER_BYTE * size
        self._begin()

    def read_at(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self.size:
            raise Damaged(
                f"{self.path}: a compressed record ends before byte {offset + len(buffer)} of it", kind="cannot-unpack"
            )
        if offset < self.at:
            self.again -= self.at
            if self.again < 0:
                raise CkptError(f"{self.path}: a view of a compressed record goes back and forth in it too often")
            self._begin()
        while self.at < offset:
            self.at += len(self._next(min(_PIECE, offset - self.at)))
        done = 0
        while done < len(buffer):
            piece = self._next(len(buffer) - done)
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        self.at += done
        if self.at == self.size and self._more():
            raise Damaged(f"{self.path}: a compressed record unpacks to more than it says", kind="cannot-unpack")

    def _begin(self) -> None:
        self.unpacker = zlib.decompressobj(-15)
        self.fed = 0
        self.at = 0

    def _next(self, most: int) -> bytes:
        """At least one byte more, at most `most`."""
        while not self.unpacker.eof:
            data = self.unpacker.unconsumed_tail or self._feed()
            if piece := self._unpack(data, most):
                return piece
            if not data:
                break
        raise Damaged(f"{self.path}: a compressed record unpacks to less than it says", kind="cannot-unpack")

    def _more(self) -> bool:
        """Whether anything follows the last byte that is expected."""
        while not self.unpacker.eof:
            data = self.unpacker.unconsumed_tail or self._feed()
            if self._unpack(data, 1):
                return True
            if not data:
                raise Damaged(f"{self.path}: a compressed record breaks off", kind="cannot-unpack")
        return bool(self.unpacker.unused_data) or self.fed < self.packed.size

    def _unpack(self, data: bytes, most: int) -> bytes:
        try:
            return self.unpacker.decompress(data, most)
        except zlib.error as error:
            raise Damaged(
                f"{self.path}: a compressed record cannot be unpacked: {error}", kind="cannot-unpack"
            ) from error

    def _feed(self) -> bytes:
        length = min(_PIECE, self.packed.size - self.fed)
        data = self.packed.read_at(self.fed, length) if length else b""
        self.fed += length
        return data
