"""The records of a zip archive in the order of the file, and what stands around them held against the directory.

torch reads the directory and believes it. Here each local header, each data descriptor and the room between
records must agree with it (APPNOTE 6.3, sections 4.3.7 and 4.3.9): so a damaged header is found too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ckpt_cli.errors import Damaged, counted
from ckpt_cli.formats import ByteSource
from ckpt_cli.formats._entries import Record
from ckpt_cli.formats._inert import shown
from ckpt_cli.formats._zip import FULL, STORED, Archive, local_header
from ckpt_cli.tensor_file import Storage

# With and without its signature, with sizes of 32 and of 64 bits: the format leaves open which.
_DESCRIPTORS = tuple(struct.Struct(fields) for fields in ("<4sLQQ", "<4sLLL", "<LQQ", "<LLL"))
_MOST_ROOM = 1 << 16
_NOTHING = (0, 0, 0)
# Bytes that are read at a time: of large records they are wasted, and many small ones lie in them.
_AHEAD = 1 << 10


def walk(source: ByteSource, archive: Archive) -> list[str]:
    """Finds where each record's bytes begin, its `start`; notes on bytes that belong to no record.

    Raises Damaged where a header or descriptor contradicts the directory, or two records overlap.
    """
    source = Ahead(source, archive.end)
    stray = end = 0
    for number, record in archive.records.ordered():
        if record.header < end:
            raise Damaged(
                f"{source.path}: record {shown(record.name)} overlaps the one before it",
                kind="bad-structure",
                record=record.name,
            )
        stray += _stray(source, end, record.header)
        archive.records.starts[number], end = _place(source, archive, record)
    stray += _stray(source, end, archive.end)
    return [f"{counted(stray, 'byte')} between its records, in none of them"] if stray else []


def stored(source: ByteSource, archive: Archive, record: Record, name: str) -> Storage:
    """The record as a run of bytes, called `name`."""
    crc32 = None if archive.lacks_crc(record) else record.crc32
    packed = 0 if record.method == STORED else record.packed
    return Storage(name, source.path, record.start, record.bytes, crc32, packed)


def every(source: ByteSource, archive: Archive) -> Iterator[Storage]:
    """All records that `walk` has found, in the order of the file under their full names."""
    for _, record in archive.records.ordered():
        yield stored(source, archive, record, record.name)


class Ahead:
    """A source that is read from front to back in small pieces: the bytes up to `end` that follow one come with it."""

    def __init__(self, source: ByteSource, end: int) -> None:
        self.path, self.size = source.path, source.size
        self.source, self.end = source, end
        self.data, self.start = b"", 0

    def read_at(self, offset: int, length: int) -> bytes:
        at = offset - self.start
        if at < 0 or at + length > len(self.data):
            self.data = self.source.read_at(offset, max(length, min(_AHEAD, self.end - offset)))
            self.start, at = offset, 0
        return self.data[at : at + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.source.read_into(offset, buffer)


def _place(source: ByteSource, archive: Archive, record: Record) -> tuple[int, int]:
    """Where the record's bytes begin, and where all that belongs to it ends."""
    local = local_header(source, archive, record)
    told, wanted = local[3:], (record.crc32, record.packed, record.bytes)
    # Who writes a stream knows these only behind the bytes, and leaves zero or nothing known in the header.
    unknown = (0, FULL) if local.described else ()
    agrees = told == (wanted if not unknown else _NOTHING) or all(a == b or a in unknown for a, b in zip(told, wanted))
    if local.method != record.method or not agrees:
        raise Damaged(
            f"{source.path}: the header of record {shown(record.name)} is damaged: it contradicts the directory",
            kind="bad-header",
            record=record.name,
        )
    end = local.start + record.packed
    return local.start, end + _descriptor(source, record, end, archive.end) if local.described else end


def _descriptor(source: ByteSource, record: Record, at: int, limit: int) -> int:
    """The length of the data descriptor behind a record; raises Damaged where none agrees with the directory."""
    data = source.read_at(at, min(_DESCRIPTORS[0].size, limit - at))
    signed = data[:4] == b"PK\7\x08"
    for form in _DESCRIPTORS:
        if len(data) >= form.size:
            fields = form.unpack_from(data)
            if fields[-3:] == (record.crc32, record.packed, record.bytes) and (len(fields) == 3 or signed):
                return form.size
    raise Damaged(
        f"{source.path}: what follows record {shown(record.name)} is damaged: it contradicts the directory",
        kind="bad-header",
        record=record.name,
    )


def _stray(source: ByteSource, start: int, end: int) -> int:
    """How many bytes lie between two records, where they are more than padding: zeros, and not many."""
    room = end - start
    if not room:
        return 0
    return room if room > _MOST_ROOM or source.read_at(start, room).strip(b"\0") else 0
