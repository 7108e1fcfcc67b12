"""CRC32 and sha256 of a file's records, in one pass.

Each byte is read once, into one buffer, never through a memory map. What no checksum covers is not read at all, unless
a digest of the whole file is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ckpt_cli.errors import CkptError, Interrupted
from ckpt_cli.formats import ByteSource, Window
from ckpt_cli.inflate import Inflated
from ckpt_cli.tensor_file import Storage
from ckpt_cli.tensors import RANGE, crc32, range_crc32, ranges

Tick = Callable[[int], None]


class Digest:
    """sha256 of all bytes of a source, which is read once, from its beginning to its end."""

    def __init__(self, source: ByteSource, tick: Tick) -> None:
        import hashlib

        self.source, self.tick = source, tick
        self.state, self.at = hashlib.sha256(), 0
        self.buffer = memoryview(bytearray(RANGE))

    def through(self, end: int) -> int:
        """Reads on to a place that lies ahead; the CRC32 of the bytes up to there."""
        value = 0
        for block in ranges(self.source, self.at, end - self.at, self.tick, self.buffer):
            self.state.update(block)
            value = crc32(block, value)
        self.at = end
        return value

    def finish(self) -> str:
        self.through(self.source.size)
        return self.state.hexdigest()


def read_all(
    source: ByteSource, records: Sequence[Storage], digest: Digest | None, lanes: int, tick: Tick
) -> Sequence[int | CkptError | None]:
    """The CRC32 of each record that has one written; where a `digest` of the whole is wanted, from the same bytes.

    For a record that cannot be unpacked the failure stands. `lanes` is how many threads may share the records; `tick`
    is told bytes as they are read. Raises Damaged where the source ends before a record does.
    """
    wanted = [index for index, record in enumerate(records) if record.crc32 is not None]
    found: list[int | CkptError | None] = [None] * len(records)
    if digest:
        for index in sorted(wanted, key=lambda index: (records[index].offset, records[index].bytes)):
            record = records[index]
            if not record.packed and record.offset >= digest.at:
                digest.through(record.offset)
                found[index] = digest.through(record.offset + record.bytes)
        wanted = [index for index in wanted if found[index] is None]

    def lane(indexes: Iterable[int]) -> None:
        buffer = memoryview(bytearray(RANGE))
        for index in indexes:
            found[index] = _crc(source, records[index], buffer, tick)

    shares = _dealt(wanted, records, lanes)
    if len(shares) > 1:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(shares)) as pool:
            list(pool.map(lane, shares))
    else:
        lane(wanted)
    return found


def _dealt(indexes: Sequence[int], records: Sequence[Storage], lanes: int) -> list[list[int]]:
    """The records in shares of about as many bytes, each in the order of the file; few bytes are one share."""
    total = sum(records[index].bytes for index in indexes)
    shares: list[list[int]] = [[] for _ in range(max(1, min(lanes, total // (16 * RANGE))))]
    done = 0
    for index in indexes:
        shares[min(len(shares) - 1, done * len(shares) // max(1, total))].append(index)
        done += records[index].bytes
    return [share for share in shares if share]


def _crc(source: ByteSource, record: Storage, buffer: memoryview, tick: Tick) -> int | CkptError:
    """The CRC32 of a record's bytes, unpacked where they are compressed; the failure of one that cannot be unpacked."""
    place, base = source, record.offset
    try:
        if record.packed:
            place, base = Inflated(Window(source, record.offset, record.packed), record.bytes), 0
        return range_crc32(place, base, record.bytes, tick, buffer)
    except CkptError as error:
        if not record.packed or isinstance(error, Interrupted):
            raise
        return error


def is_zero(source: ByteSource, record: Storage, tick: Tick) -> bool:
    """Whether the bytes are there and nothing but zeros: torch leaves them so when it is told to skip data."""
    if record.packed or not record.bytes:
        return False
    blocks = ranges(source, record.offset, record.bytes, tick)
    return not any(bytes(block).strip(b"\0") for block in blocks)
