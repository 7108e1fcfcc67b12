"""The records of an archive by name, in columns: of hundreds of thousands an object each is three times as much."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, KeysView, Mapping
from operator import le
from typing import NamedTuple


class Record(NamedTuple):
    """One entry: `packed` bytes on disk, `bytes` when unpacked; `header` is where its local header begins, `start`
    where its bytes do, 0 as long as nobody has looked. `raw` is its name as it is written, in UTF-8."""

    raw: bytes
    header: int
    packed: int
    bytes: int
    method: int
    crc32: int
    start: int = 0

    @property
    def name(self) -> str:
        return self.raw.decode()


class Entries(Mapping[str, Record]):
    """Records in the order in which they were added."""

    __slots__ = ("_columns", "_numbers", "starts")

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.starts = array("Q")
        self._columns = array("Q"), array("Q"), array("Q"), array("B"), array("I"), self.starts

    @property
    def raws(self) -> KeysView[bytes]:
        return self._numbers.keys()

    @property
    def checked(self) -> bool:
        """Whether any CRC32 was written at all."""
        return any(self._columns[4])

    def add(self, raw: bytes, header: int, packed: int, size: int, method: int, crc32: int) -> None:
        """A record that is not there yet."""
        headers, packs, sizes, methods, crcs, starts = self._columns
        self._numbers[raw] = len(headers)
        headers.append(header)
        packs.append(packed)
        sizes.append(size)
        methods.append(method)
        crcs.append(crc32)
        starts.append(0)

    def clear(self) -> None:
        """Forgets them all."""
        self._numbers.clear()
        for column in self._columns:
            del column[:]

    def ordered(self) -> Iterator[tuple[int, Record]]:
        """Number and record, in the order of the file."""
        headers, names = self._columns[0], self._numbers
        if all(map(le, headers, headers[1:])):
            yield from enumerate(map(Record, names, *self._columns))
            return
        raws = list(names)
        for number in sorted(range(len(raws)), key=headers.__getitem__):
            yield number, self._at(number, raws[number])

    def bare(self) -> Iterator[Record]:
        """Those whose CRC32 is 0."""
        return (record for record in map(Record, self._numbers, *self._columns) if not record.crc32)

    def find(self, name: str) -> Record | None:
        # A name in a pickle may be no text that can be written in UTF-8; then it is no record's either.
        raw = name.encode("utf-8", "surrogatepass")
        number = self._numbers.get(raw)
        return None if number is None else self._at(number, raw)

    def __getitem__(self, name: str) -> Record:
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return map(bytes.decode, self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def _at(self, number: int, raw: bytes) -> Record:
        headers, packs, sizes, methods, crcs, starts = self._columns
        return Record(raw, headers[number], packs[number], sizes[number], methods[number], crcs[number], starts[number])
