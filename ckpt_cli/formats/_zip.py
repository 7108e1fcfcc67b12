"""Zip archives as torch writes them, read from the central directory.

The standard library's zipfile refuses archives that torch reads (no CRC) and lets pass what torch refuses, so
the structure is read here, after the ZIP application note (APPNOTE 6.3). Strict where two readers could
differ: a name may stand once, and the central directory must end where the end record begins.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import ByteSource
from ckpt_cli.formats._entries import Entries, Record
from ckpt_cli.formats._inert import Costly, quoted, shown
from ckpt_cli.formats._stream import BLOCK, Stream, blocks
from ckpt_cli.room import room_of_a_file

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 65535
# A name, an extra field and a comment, each as long as can be.
_MAX_ENTRY = _CENTRAL.size + 3 * 65535
# What stands in an end record for a count, size or place that only its zip64 record can hold.
_FULL = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
# Records: an optimizer of 100,000 parameters has 300,000, each of some eighty bytes in the directory. What each takes
# of the room of its file, with the time that it takes to look at it.
_MAX_RECORDS, _MAX_DIRECTORY, RECORD = 400_000, 64 << 20, 500
# Pickles of state dicts pack fivefold, and are never much larger than the file with all its records. Small ones may be
# anything: there is little to lose.
_MAX_RATIO, _MAX_SHARE, _SMALL, _MOST_UNPACKED = 50, 16, 1 << 20, 64 << 20
# 258 bytes by two bits is the most that DEFLATE (RFC 1951) can express.
_MAX_DEFLATE = 1032
STORED, DEFLATED = 0, 8
FULL = 0xFFFFFFFF
# An attribute of DOS. torch reads no bytes of what has it.
_FOLDER = 0x10
# A flag: sizes and CRC32 stand behind the bytes too.
_DESCRIBED = 0x0008


class Archive(NamedTuple):
    """The records by name, in the directory's order. `checked` is false when no CRC was written at all."""

    records: Entries
    checked: bool
    end: int
    notes: tuple[str, ...]

    def skipped(self, record: Record) -> bool:
        """Whether it is a storage that torch was told to leave room for (skip_data): alone without a CRC32."""
        return self.checked and not record.crc32 and record.bytes > 0 and b"/data/" in record.raw

    def lacks_crc(self, record: Record) -> bool:
        """Whether no CRC32 was written with it: with none at all, or with a storage that was skipped."""
        return not self.checked or self.skipped(record)


def read_archive(source: ByteSource) -> Archive:
    """The central directory. Raises Damaged when its end is missing, CkptError when it contradicts itself."""
    tail_start = max(0, source.size - _MAX_COMMENT - _END.size)
    tail = source.read_at(tail_start, source.size - tail_start)
    found = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if found < 0:
        raise Damaged(f"{source.path} is truncated: the end of its zip archive is missing", kind="truncated")
    end = tail_start + found
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, found)
    notes = []
    if end + _END.size + comment > source.size:
        raise Damaged(f"{source.path} is truncated: it ends within the comment of its zip archive", kind="truncated")
    if end + _END.size + comment != source.size:
        notes.append(f"{counted(source.size - end - _END.size - comment, 'byte')} after the end of the zip archive")
    stop = end
    wide = _wide_end(source, end)
    if wide:
        if any(short not in (long, top) for short, long, top in zip((count, size, start), wide[1:], _FULL)):
            raise CkptError(f"{source.path} breaks the zip format: its two end records contradict each other")
        stop, count, size, start = wide
        disk = first_disk = 0
        here = count
    if disk or first_disk or here != count or start + size != stop:
        raise CkptError(
            f"{source.path} breaks the zip format: its directory is not where its end record says "
            "(two archives in one file, or bytes put before it)"
        )
    most = min(_MAX_RECORDS, room_of_a_file(source.size) // RECORD)
    if count > most or size > _MAX_DIRECTORY:
        raise _too_many(source, most)
    records = _directory(source, start, start + size, most)
    if count != len(records) and (wide or count != _FULL[0]):
        raise CkptError(f"{source.path} breaks the zip format: {count} entries announced, {len(records)} there")
    return Archive(records, records.checked, start, tuple(notes))


def _wide_end(source: ByteSource, end: int) -> tuple[int, int, int, int] | None:
    """Where a zip64 end record stands, and its count, size and start of the directory."""
    if end < _LOCATOR64.size + _END64.size:
        return None
    signature, _, place, disks = _LOCATOR64.unpack(source.read_at(end - _LOCATOR64.size, _LOCATOR64.size))
    if signature != b"PK\6\7":
        return None
    if place + _END64.size > end:
        raise CkptError(f"{source.path} breaks the zip format: its zip64 end record lies outside the file")
    fields = _END64.unpack(source.read_at(place, _END64.size))
    whole = disks == 1 and fields[4:6] == (0, 0) and fields[6] == fields[7]
    if fields[0] != b"PK\6\6" or place + 12 + fields[1] != end - _LOCATOR64.size or not whole:
        raise CkptError(f"{source.path} breaks the zip format: its zip64 end record is not one")
    return place, fields[7], fields[8], fields[9]


def _too_many(source: ByteSource, most: int) -> CkptError:
    if most < _MAX_RECORDS:
        error = Costly(f", in more than {most} records")
        error.message = f"{source.path} is refused: {error.message}"
        return error
    return CkptError(f"{source.path} is refused: its zip archive has more than {_MAX_RECORDS} records, or immense ones")


def _directory(source: ByteSource, limit: int, stop: int, most: int) -> Entries:
    """The records, whose bytes end at `limit`, where the directory begins; refused where they are more than `most`."""
    records = Entries()
    known = records.raws
    capital: set[bytes] = set()
    data, at, read = b"", 0, limit
    while at < len(data) or read < stop:
        if len(data) - at < _MAX_ENTRY and read < stop:
            block = source.read_at(read, min(2 * _MAX_ENTRY, stop - read))
            data, at, read = data[at:] + block, 0, read + len(block)
        if len(records) == most:
            raise _too_many(source, most)
        if len(data) - at < _CENTRAL.size or data[at : at + 4] != b"PK\1\2":
            place = read - len(data) + at
            raise CkptError(f"{source.path} breaks the zip format: its directory is garbled at byte {place}")
        (_, _, _, flags, method, _, _, crc, packed, size, *sizes, disk, _, attributes, header) = _CENTRAL.unpack_from(
            data, at
        )
        name_size, extra_size, comment = sizes
        at += _CENTRAL.size
        raw, extra = data[at : at + name_size], data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment
        if at > len(data):
            raise CkptError(f"{source.path} breaks the zip format: its directory ends within an entry")
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise CkptError(f"{source.path} breaks the zip format: an entry's name is not UTF-8") from error
        if FULL in (size, packed, header):
            size, packed, header = wide_sizes(extra, size, packed, header)
        problem = None
        # torch looks for names without regard to case; the root is the same for all, or the file is none of torch's.
        below = raw.partition(b"/")[2]
        small = below.lower()
        if raw in known or small in capital or (small != below and raw[: -len(below)] + small in known):
            problem = "stands twice: readers differ on which one counts"
        elif disk not in (0, 1):  # as torch has it
            problem = "lies in another file of several"
        elif attributes & _FOLDER and size:
            problem = "is marked as a folder"
        elif flags & 0x2061:
            problem = "is encrypted or patched"
        elif method not in (STORED, DEFLATED):
            problem = f"has the unsupported compression method {method}"
        elif method == STORED and size != packed:
            problem = "is stored in another size than its own"
        elif method == DEFLATED and size > _MAX_DEFLATE * (packed + 1):
            problem = "claims more bytes than it can unpack to"
        elif header + LOCAL.size + len(raw) + packed > limit:
            problem = "reaches beyond the archive"
        if problem:
            raise CkptError(f"{source.path} breaks the zip format: entry {quoted(raw.decode())} {problem}")
        records.add(raw, header, packed, size, method, crc)
        if small != below:
            capital.add(small)
    return records


def wide_sizes(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Sizes and place from the zip64 extra field, for those that the short fields cannot hold."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            values = [int.from_bytes(extra[i : i + 8], "little") for i in range(at + 4, at + 4 + length - 7, 8)]
            size = values.pop(0) if size == 0xFFFFFFFF and values else size
            packed = values.pop(0) if packed == 0xFFFFFFFF and values else packed
            header = values.pop(0) if header == 0xFFFFFFFF and values else header
        at += 4 + length
    return size, packed, header


class Local(NamedTuple):
    """What the local header of a record says, and where the bytes behind it begin."""

    start: int
    described: bool
    method: int
    crc32: int
    packed: int
    bytes: int


def local_header(source: ByteSource, archive: Archive, record: Record) -> Local:
    """The record's local header, whose padding the directory does not tell.

    Raises Damaged when it is not there or names another entry.
    """
    raw = record.raw
    head = source.read_at(record.header, LOCAL.size + len(raw))
    signature, _, flags, method, _, _, crc, packed, size, name_size, extra_size = LOCAL.unpack_from(head)
    start: int = record.header + LOCAL.size + name_size + extra_size
    problem = None
    if signature != b"PK\3\4" or name_size != len(raw) or head[LOCAL.size :] != raw:
        problem = f"the header of record {shown(record.name)} is damaged"
    elif start + record.packed > archive.end:
        problem = f"record {shown(record.name)} reaches beyond the archive"
    if problem:
        raise Damaged(f"{source.path}: {problem}", kind="bad-header", record=record.name)
    if FULL in (size, packed):
        size, packed, _ = wide_sizes(source.read_at(start - extra_size, extra_size), size, packed, 0)
    return Local(start, bool(flags & _DESCRIBED), method, crc, packed, size)


def read_record(source: ByteSource, archive: Archive, record: Record, limit: int) -> bytes:
    """The record's bytes, unpacked, at most `limit`, and its CRC32 checked where the archive has one."""
    return b"".join(checked_stream(source, archive, record, limit).blocks)


def checked_stream(source: ByteSource, archive: Archive, record: Record, limit: int) -> Stream:
    """The same as a stream: the bytes are read twice, for nothing of them counts before all have been checked."""
    if max(record.bytes, record.packed) > limit:
        raise CkptError(
            f"{source.path}: record {shown(record.name)} has {record.bytes} bytes, more than the limit of {limit}"
        )
    start = local_header(source, archive, record).start
    # What is interpreted takes many times its bytes: a small file must not bring much of it.
    most = max(_SMALL, min(_MAX_RATIO * record.packed, _MAX_SHARE * source.size, max(_MOST_UNPACKED, source.size)))
    if record.method == DEFLATED and record.bytes > most:
        raise CkptError(f"{source.path}: record {shown(record.name)} is packed beyond reason, as a bomb is")
    unpacked = _unpacked if record.method == DEFLATED else _stored
    crc32 = 0
    for block in unpacked(source, record, start):
        crc32 = zlib.crc32(block, crc32)
    if not archive.lacks_crc(record) and crc32 != record.crc32:
        raise Damaged(
            f"{source.path}: record {shown(record.name)} is damaged: its CRC32 does not fit",
            kind="crc-mismatch",
            record=record.name,
        )
    return Stream(unpacked(source, record, start), record.bytes, source.size)


def _stored(source: ByteSource, record: Record, start: int) -> Iterator[bytes]:
    return blocks(source, start, start + record.packed)


def _unpacked(source: ByteSource, record: Record, start: int) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(-15)
    read = made = 0
    try:
        while not unpacker.eof and made <= record.bytes:
            data = unpacker.unconsumed_tail
            if not data:
                data = source.read_at(start + read, min(BLOCK, record.packed - read))
                read += len(data)
            block = unpacker.decompress(data, BLOCK)
            if not data and not block:
                break
            made += len(block)
            yield block
    except zlib.error as error:
        raise Damaged(
            f"{source.path}: record {shown(record.name)} cannot be unpacked: {error}",
            kind="cannot-unpack",
            record=record.name,
        ) from error
    if made != record.bytes or not unpacker.eof:
        raise Damaged(
            f"{source.path}: record {shown(record.name)} unpacks to another size than it says",
            kind="cannot-unpack",
            record=record.name,
        )
