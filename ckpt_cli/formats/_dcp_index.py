"""A DCP `.metadata` as values: which tensors there are, of which chunks, and where the bytes of each lie.

A pickle of torch.distributed.checkpoint.metadata.Metadata. torch itself unpickles it with everything allowed; here some
ten classes have a meaning and the rest is inert. Of a model with a hundred thousand tensors the objects that were read
take more memory than what comes of them: they go as it comes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import ByteSource, _pickle
from ckpt_cli.formats._dcp_classes import (
    CONSTANTS,
    LEAST_CHUNK_BYTES,
    MAX_NAME,
    NAMES,
    Classes,
    Key,
    Metadata,
    Sizes,
    Slice,
    Tensor,
    Value,
    taken,
)
from ckpt_cli.formats._inert import Known, Malformed, Truncated, quoted
from ckpt_cli.formats._stream import asked_for, range_of
from ckpt_cli.room import bytes_beside

_MAX_FILE = 128 << 20
_NOWHERE = str(None)
# What a pickle of protocol 2 and later begins with.
_PROTOCOL = b"\x80"


class Chunk(NamedTuple):
    """A box of a tensor, and where its bytes are; None for one without any."""

    offsets: Sizes
    sizes: Sizes
    place: Slice | None


class IndexedTensor(NamedTuple):
    name: str
    dtype: str
    layout: str
    shape: Sizes
    chunks: tuple[Chunk, ...]


class _Stored(NamedTuple):
    """A place of an entry, where in its tensor that begins, and the entry's other places."""

    offsets: Sizes | None
    place: Slice
    others: _Stored | None


class Index(NamedTuple):
    """What is no tensor. `values` are entries that are each a file of its own within a data file; `room` is what it
    left for them."""

    values: tuple[tuple[str, Slice], ...]
    foreign: tuple[str, ...]
    notes: tuple[str, ...]
    room: int


def read_index(
    source: ByteSource, place: Callable[[Key, Slice], object], tensor: Callable[[IndexedTensor], object]
) -> Index:
    """Hands over each place that it tells of, then each tensor, in the order of the file.

    Raises Damaged where it breaks off or lacks a place, CkptError where it is refused.
    """
    if source.size > _MAX_FILE:
        raise CkptError(f"{source.path} has {source.size} bytes, more than the limit of {_MAX_FILE}")
    from ckpt_cli.formats._dcp_step import steps  # of patterns that no other file needs

    functions = Classes(os.path.dirname(source.path), source.size).functions()
    try:
        asked = asked_for(source, 0, source.size)
        stream = range_of(source, 0, source.size)._replace(file=bytes_beside(source.path), asked=asked)
        loaded = _pickle.load(stream, CONSTANTS, functions, _nothing_outside, steps=steps())
        if source.read_at(0, 1) != _PROTOCOL:
            raise CkptError("it is pickled with protocol 0 or 1, as torch never does")
        top = taken(loaded.value, Metadata)
        values = _entries(source, top, _places(top, place), tensor)
    except Truncated as error:
        raise Damaged(f"{source.path} is truncated: {error.message}", kind="truncated") from error
    except Damaged:
        raise
    except CkptError as error:
        error.message = f"{source.path} is refused: {error.message}"
        raise
    foreign = tuple(name for name in loaded.globals if name not in NAMES)
    more = source.size - loaded.end
    notes = [f"{counted(more, 'byte')} after the end of the pickle"] if more else []
    return Index(tuple(values), foreign, tuple(notes), loaded.room)


def _places(top: Metadata, tell: Callable[[Key, Slice], object]) -> dict[str, _Stored]:
    """By the name of the entry."""
    stored: dict[str, _Stored] = {}
    for thing, info in _consumed(top.places):
        key, place = taken(thing, Key), taken(info, Slice)
        stored[key.name] = _Stored(key.offsets, place, stored.get(key.name))
        tell(key, place)
    return stored


def _entries(
    source: ByteSource, top: Metadata, stored: dict[str, _Stored], tell: Callable[[IndexedTensor], object]
) -> list[tuple[str, Slice]]:
    """Those that are values; the tensors are told."""
    values: list[tuple[str, Slice]] = []
    left = source.size // LEAST_CHUNK_BYTES
    for name, entry in _consumed(top.entries):
        if type(name) is not str or len(name) > MAX_NAME or not isinstance(entry, Known):
            raise Malformed("it has an entry that torch does not write")
        there = _by_offsets(name, stored.pop(name, None))
        if isinstance(entry.found, Value):
            if _NOWHERE not in there:
                raise Damaged(f"{source.path}: it does not say where {quoted(name)} is")
            values.append((name, there[_NOWHERE]))
            continue
        tensor = _tensor(name, entry, there)
        left -= len(tensor.chunks)
        if left < 0:
            raise Malformed(f"tensor {quoted(name)} has more chunks than its file can describe")
        if any(chunk.place is None and 0 not in chunk.sizes for chunk in tensor.chunks):
            raise Damaged(f"{source.path}: it does not say where all of tensor {quoted(name)} is")
        tell(tensor)
    for name, first in stored.items():
        _by_offsets(name, first)
    return values


def _consumed(items: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Its items in their order, each gone from it when it comes."""
    keys = list(items)
    keys.reverse()
    while keys:
        key = keys.pop()
        yield key, items.pop(key)


def _by_offsets(name: str, stored: _Stored | None) -> dict[str, Slice]:
    """The places of an entry by the text of where they begin.

    The hash of a tuple of numbers is known, and tuples can be made that all collide.
    """
    there: dict[str, Slice] = {}
    while stored:
        if str(stored.offsets) in there:
            raise Malformed(f"it has two places for {quoted(name)}")
        there[str(stored.offsets)] = stored.place
        stored = stored.others
    return there


def _tensor(name: str, entry: Known, there: dict[str, Slice]) -> IndexedTensor:
    try:
        found = taken(entry, Tensor)
    except Malformed as fault:
        raise Malformed(f"tensor {quoted(name)}: {fault.message}") from fault
    anywhere = there.get(_NOWHERE) if len(found.boxes) == 1 else None
    chunks = tuple(Chunk(*box, there.get(str(box.offsets), anywhere)) for box in found.boxes)
    return IndexedTensor(name, found.dtype, found.layout, found.shape, chunks)


def _nothing_outside(_: Any) -> Any:
    raise Malformed("its pickle refers to something outside")
