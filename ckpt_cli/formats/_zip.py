"""Zip archives as torch writes them, read from the central directory.

The standard library's zipfile refuses archives that torch reads (no CRC) and lets pass what torch refuses, so
the structure is read here, after the ZIP application note (APPNOTE 6.3). Strict where two readers could
differ: a name may stand once, and the central directory must end where the end record begins.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import ByteSource
from ckpt_cli.formats._inert import quoted, shown

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 65535
# What stands in an end record for a count, size or place that only its zip64 record can hold.
_FULL = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
# 10 million records would be 100,000 times what a large model has.
_MAX_DIRECTORY = 1 << 30
# Pickles of state dicts pack fivefold, and are never much larger than the file with all its records. Small ones may be
# anything: there is little to lose.
_MAX_RATIO, _MAX_SHARE, _SMALL = 50, 16, 1 << 20
# 258 bytes by two bits is the most that DEFLATE (RFC 1951) can express.
_MAX_DEFLATE = 1032
STORED, DEFLATED = 0, 8
FULL = 0xFFFFFFFF
# A flag: sizes and CRC32 stand behind the bytes too.
_DESCRIBED = 0x0008


class Record(NamedTuple):
    """One entry: `packed` bytes on disk, `bytes` when unpacked; `header` is where its local header begins."""

    name: str
    header: int
    packed: int
    bytes: int
    method: int
    crc32: int


class Archive(NamedTuple):
    """The records by name, in the directory's order. `checked` is false when no CRC was written at all."""

    records: dict[str, Record]
    checked: bool
    end: int
    notes: tuple[str, ...]

    def skipped(self, record: Record) -> bool:
        """Whether it is a storage that torch was told to leave room for (skip_data): alone without a CRC32."""
        return self.checked and not record.crc32 and record.bytes > 0 and "/data/" in record.name

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
    _, disk, first_disk, _, count, size, start, comment = _END.unpack_from(tail, found)
    notes = []
    if end + _END.size + comment > source.size:
        raise Damaged(f"{source.path} is truncated: it ends within the comment of its zip archive", kind="truncated")
    if end + _END.size + comment != source.size:
        notes.append(f"{source.size - end - _END.size - comment} bytes follow the end of the zip archive")
    stop = end
    wide = _wide_end(source, end)
    if wide:
        if any(short not in (long, top) for short, long, top in zip((count, size, start), wide[1:], _FULL)):
            raise CkptError(f"{source.path} breaks the zip format: its two end records contradict each other")
        stop, count, size, start = wide
        disk = first_disk = 0
    if disk or first_disk or start + size != stop or size > _MAX_DIRECTORY:
        raise CkptError(
            f"{source.path} breaks the zip format: its directory is not where its end record says "
            "(two archives in one file, or bytes put before it)"
        )
    records = _directory(source, source.read_at(start, size), start)
    if count != len(records) and (wide or count != 0xFFFF):
        raise CkptError(f"{source.path} breaks the zip format: {count} entries announced, {len(records)} there")
    return Archive(records, any(record.crc32 for record in records.values()), start, tuple(notes))


def _wide_end(source: ByteSource, end: int) -> tuple[int, int, int, int] | None:
    """Where a zip64 end record stands, and its count, size and start of the directory."""
    if end < _LOCATOR64.size + _END64.size:
        return None
    signature, _, place, _ = _LOCATOR64.unpack(source.read_at(end - _LOCATOR64.size, _LOCATOR64.size))
    if signature != b"PK\6\7":
        return None
    if place + _END64.size > end:
        raise CkptError(f"{source.path} breaks the zip format: its zip64 end record lies outside the file")
    fields = _END64.unpack(source.read_at(place, _END64.size))
    if fields[0] != b"PK\6\6" or place + 12 + fields[1] != end - _LOCATOR64.size:
        raise CkptError(f"{source.path} breaks the zip format: its zip64 end record is not one")
    return place, fields[7], fields[8], fields[9]


def _directory(source: ByteSource, data: bytes, limit: int) -> dict[str, Record]:
    records: dict[str, Record] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _CENTRAL.size or data[at : at + 4] != b"PK\1\2":
            raise CkptError(f"{source.path} breaks the zip format: its directory is garbled at byte {limit + at}")
        (_, _, _, flags, method, _, _, crc, packed, size, name_size, extra_size, comment, _, _, _, header) = (
            _CENTRAL.unpack_from(data, at)
        )
        at += _CENTRAL.size
        raw, extra = data[at : at + name_size], data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise CkptError(f"{source.path} breaks the zip format: an entry's name is not UTF-8") from error
        size, packed, header = wide_sizes(extra, size, packed, header)
        problem = None
        if name in records:
            problem = "stands twice: readers differ on which one counts"
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
            raise CkptError(f"{source.path} breaks the zip format: entry {quoted(name)} {problem}")
        records[name] = Record(name, header, packed, size, method, crc)
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
    raw = record.name.encode()
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
    if max(record.bytes, record.packed) > limit:
        raise CkptError(
            f"{source.path}: record {shown(record.name)} has {record.bytes} bytes, more than the limit of {limit}"
        )
    data = source.read_at(local_header(source, archive, record).start, record.packed)
    if record.method == DEFLATED:
        # What is interpreted takes many times its bytes: a small file must not bring much of it.
        if record.bytes > max(_SMALL, min(_MAX_RATIO * record.packed, _MAX_SHARE * source.size)):
            raise CkptError(f"{source.path}: record {shown(record.name)} is packed beyond reason, as a bomb is")
        data = _inflate(source, record, data)
    if not archive.lacks_crc(record) and zlib.crc32(data) != record.crc32:
        raise Damaged(
            f"{source.path}: record {shown(record.name)} is damaged: its CRC32 does not fit",
            kind="crc-mismatch",
            record=record.name,
        )
    return data


def _inflate(source: ByteSource, record: Record, packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(-15)
    try:
        data = unpacker.decompress(packed, record.bytes + 1)
    except zlib.error as error:
        raise Damaged(
            f"{source.path}: record {shown(record.name)} cannot be unpacked: {error}",
            kind="cannot-unpack",
            record=record.name,
        ) from error
    if len(data) != record.bytes or not unpacker.eof:
        raise Damaged(
            f"{source.path}: record {shown(record.name)} unpacks to another size than it says",
            kind="cannot-unpack",
            record=record.name,
        )
    return data
