"""Whole archives that an index places in a file, one after another, some tens of thousands of them.

Those of one shape differ in a few bytes: the data, the number that torch gives every archive, and the CRC32 of both. Of
one that is laid out as another that was found sound, only these remain to be looked at: a tenth of the work.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from ckpt_cli.formats import ByteSource, Window
from ckpt_cli.formats._inert import Costly
from ckpt_cli.room import room_of_a_file
from ckpt_cli.tensor_file import Storage

# Bytes of an archive that are read at once: of a larger one the data, which is most of it, is left out. And bytes that
# are kept of a kind: torch writes some fifteen hundred around the data. Kinds of one size and sort.
_AT_ONCE, _MOST_KEPT, _MOST_ALIKE = 1 << 13, 1 << 12, 4
_CRC32 = 4
# Archives of one file that are looked at together: enough for several threads.
_BATCH = 1000
# Bytes of a file whose reading takes as long as to look into an archive that is like none before.
_LOOK = 15_000
# The dtype and shape of a tensor.
Held = tuple[str, tuple[int, ...]]


class Slice(NamedTuple):
    """A whole archive within a file: `name` for messages, where it begins, its bytes, the tensor that it `holds`."""

    name: str
    offset: int
    bytes: int
    holds: Held | None = None


class Archive(NamedTuple):
    """A file of tensors, or one within a file: where it begins there, and what its index says that it holds."""

    name: str | None
    source: ByteSource
    start: int = 0
    holds: Held | None = None


def batches(
    source: ByteSource, slices: Sequence[Slice], kinds: Kinds
) -> Iterator[list[tuple[Archive, list[Storage] | None]]]:
    """The archives of a file, some at a time: there may be as many as a model has tensors, each with its records. With
    those of one whose kind is known; one of another ends its batch, for the next may be like it.

    Raises Damaged, before the first, where the file ends within one, and Costly where very many small ones differ.
    """
    if not slices:
        yield [(Archive(None, source), None)]
    for piece in slices:
        Window(source, piece.offset, piece.bytes)
    left = room_of_a_file(source.size) // _LOOK
    batch: list[tuple[Archive, list[Storage] | None]] = []
    for piece in slices:
        window = Window(source, piece.offset, piece.bytes, piece.bytes <= _AT_ONCE)
        archive = Archive(piece.name, window, piece.offset, piece.holds)
        like = kinds.records(archive.holds, archive.source)
        batch.append((archive, like))
        new = like is None and piece.bytes < _LOOK
        left -= new
        if left < 0:
            raise Costly(", in archives of which no two are alike")
        if new or len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def placed(archive: Archive, records: list[Storage]) -> list[Storage]:
    """The same by their place in the file, the archive's name before theirs."""
    if archive.name is None:
        return records
    return [
        record._replace(name=f"{archive.name}: {record.name}", offset=archive.start + record.offset)
        for record in records
    ]


def full_name(archive: str | None, record: str | None) -> str | None:
    """A record's name, that of the archive it is in before it."""
    return ": ".join(name for name in (archive, record) if name is not None) or None


class Kinds:
    """What was learnt of the archives of a file. They are told apart by a `sort` too: what an index says of them."""

    def __init__(self) -> None:
        self.known: dict[Hashable, list[_Alike]] = {}

    def records(self, sort: Hashable, source: ByteSource) -> list[Storage] | None:
        """The records of an archive whose bytes and CRC32s are still to be compared; None where it is like none."""
        likes = (_records(alike, source) for alike in self.known.get((sort, source.size), ()))
        return next((found for found in likes if found is not None), None)

    def learn(self, sort: Hashable, source: ByteSource, records: Sequence[Storage]) -> None:
        """Learns from an archive that is sound; `records` are all that it has, by their place in it."""
        known = self.known.setdefault((sort, source.size), [])
        if len(known) < _MOST_ALIKE and self.records(sort, source) is None and (alike := _learnt(source, records)):
            known.append(alike)


class _Alike(NamedTuple):
    """What all archives of a kind have in common, which are of one size.

    `fixed` are the bytes that must be the same, by the place where they begin; `varying` the records that may differ,
    each with the places of its CRC32, none where none was written.
    """

    fixed: tuple[tuple[int, bytes], ...]
    varying: tuple[tuple[Storage, tuple[int, ...]], ...]


def _learnt(source: ByteSource, records: Sequence[Storage]) -> _Alike | None:
    """What others may have in common with an archive; None where that is not known, or much.

    Bytes of the records that hold tensors may differ, and of the number (`.data/serialization_id`), which nobody reads;
    of others, which describe them, none.
    """
    free = sorted(filter(_may_differ, records), key=lambda record: record.offset)
    spans = [(record.offset, record.bytes) for record in free]
    much = source.size - sum(length for _, length in spans) > _MOST_KEPT
    if much or any(record.packed or record.crc32 == 0 for record in free):
        return None
    text = {start: source.read_at(start, length) for start, length in _between(source.size, spans)}
    # Wherever the same four bytes stand: one more place than the CRC32 has makes a kind narrower, and no other.
    places = [() if record.crc32 is None else tuple(_places(text, record.crc32)) for record in free]
    taken = sorted([*spans, *((place, _CRC32) for own in places for place in own)])
    known = all(own or record.crc32 is None for own, record in zip(places, free))
    if not known or any(start + length > after for (start, length), (after, _) in pairwise(taken)):
        return None
    fixed = tuple((start, source.read_at(start, length)) for start, length in _between(source.size, taken))
    return _Alike(fixed, tuple(zip(free, places)))


def _records(alike: _Alike, source: ByteSource) -> list[Storage] | None:
    read = source.read_at
    if any(read(start, len(same)) != same for start, same in alike.fixed):
        return None
    found = []
    for record, places in alike.varying:
        told = {int.from_bytes(read(place, _CRC32), "little") for place in places}
        if len(told) > 1 or 0 in told:  # which says that none was written
            return None
        found.append(record._replace(crc32=told.pop()) if told else record)
    return found


def _may_differ(record: Storage) -> bool:
    below = record.name.partition("/")[2]
    return record.bytes > 0 and (below.rpartition("/")[0] == "data" or below == ".data/serialization_id")


def _between(end: int, taken: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What lies between ranges that follow each other: where it begins, and its length."""
    at = 0
    for start, length in (*taken, (end, 0)):
        if start > at:
            yield at, start - at
        at = start + length


def _places(text: dict[int, bytes], crc32: int) -> Iterator[int]:
    """Wherever it stands in the pieces."""
    wanted = crc32.to_bytes(_CRC32, "little")
    for start, piece in text.items():
        at = piece.find(wanted)
        while at >= 0:
            yield start + at
            at = piece.find(wanted, at + 1)
