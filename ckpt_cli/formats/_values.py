"""Values by dotted name, of which those that lie together in large numbers get their names when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import Any, NamedTuple

from ckpt_cli.formats._inert import Opaque, Ordered, length_of, spread
from ckpt_cli.formats._members import (
    MAX_NAMED,
    all_scalars,
    as_json,
    empty_as_json,
    key_text,
    kind_of,
    members_of,
    weight_of,
)

# With fewer, names are sooner made at once.
MANY = 1000
# How far below each other: what is looked through in vain is looked through again from the next level.
_MAX_LEVELS = 8
# Attributes of an object, of which so many are held against each other.
_MAX_ATTRIBUTES = 10_000
_SCALARS = frozenset({str, int, float, bool, type(None)})
_NUMBERS = _SCALARS | {array}
_LEAVES = _SCALARS | {bytes}
_CONTAINERS = frozenset({dict, Ordered, list})
_NESTED = _CONTAINERS | {tuple}
_CONTAINER = object()
_NOWHERE = object()


class Run(NamedTuple):
    """A container of nothing but numbers, texts, bytes, and of containers of those; how many values it has."""

    value: Any
    total: int


class Values(Mapping[str, Any]):
    """`TensorFile.values` or `kinds`, where a Run stands for what is in it; `tell` gives that by name."""

    def __init__(self, held: dict[str, Any], tell: Callable[[str, Any], Iterator[tuple[str, Any]]]) -> None:
        self.held = held
        self._tell = tell
        self._whole: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.pairs())

    def __len__(self) -> int:
        return sum(value.total if type(value) is Run else 1 for value in self.held.values())

    def __getitem__(self, name: str) -> Any:
        found = self.held.get(name, _NOWHERE)
        if type(found) is not Run and found is not _NOWHERE:
            return found
        if self._whole is None:
            if not self._may_hold(name):
                raise KeyError(name)
            self._whole = dict(self.pairs())
        return self._whole[name]

    def _may_hold(self, name: str) -> bool:
        """Whether a Run could have something of that name."""
        if name in self.held:  # a list that is one value
            return True
        ends = [0, *(at for at, letter in enumerate(name) if letter == "."), len(name)]
        for end in ends:
            run, begin = self.held.get(name[:end]), end and end + 1
            if type(run) is Run and isinstance(run.value, dict) and set(map(type, run.value)) == {str}:
                return any(name[begin:stop] in run.value for stop in ends)
            if type(run) is Run:
                return isinstance(run.value, dict) or name[begin:].partition(".")[0].isdecimal()
        return False

    def items(self) -> ItemsView[str, Any]:
        return _Items(self)

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """Each name and value."""
        for name, value in self.held.items():
            if type(value) is Run:
                yield from self._tell(name, value.value)
            else:
                yield name, value


def streamed(values: Values) -> Values:
    """The same values; a list of very many is an iterator."""
    return Values(values.held, _streamed)


class _Items(ItemsView[str, Any]):
    _mapping: Values

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._mapping.pairs()


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is in a Run of that name, as JSON can hold it."""
    for below, leaf, _ in _told(name, value):
        if type(leaf) in _SCALARS:
            yield below, leaf
        elif leaf is not _CONTAINER:
            yield below, as_json(leaf) if leaf or type(leaf) not in _CONTAINERS else empty_as_json(leaf)


def _streamed(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The same, of a list that is one value an iterator."""
    for below, leaf, _ in _told(name, value):
        if leaf and type(leaf) is list:
            yield below, spread(leaf)
        elif leaf is not _CONTAINER:
            yield below, as_json(leaf) if leaf or type(leaf) not in _CONTAINERS else empty_as_json(leaf)


def kinds(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """The same, of what the names do not tell of it."""
    return ((below, kind) for below, _, kind in _told(name, value) if kind)


def _told(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    children = members_of(value)
    if not children:
        yield name or "<root>", value, "tuple" if type(value) is tuple else "text" if type(value) is bytes else ""
        return
    yield name, _CONTAINER, kind_of(value)
    for key, child in children:
        word = key if type(key) is str else str(key) if type(key) is int else key_text(key)
        below = f"{name}.{word}" if name else word
        if type(child) in _SCALARS:
            yield below, child, ""
        else:
            yield from _told(below, child)


class Size(NamedTuple):
    """How many values a container has in all, and about how many characters their names and texts."""

    total: int
    characters: int


def size_of(value: Any, shared: Set[int], length: int, levels: int = _MAX_LEVELS) -> Size | None:
    """Of a container that can be a Run, under a name of so many characters; None where it holds anything else.

    `shared` are the containers that stand in more than one place.
    """
    members: Iterable[tuple[int, Any]]
    if isinstance(value, dict):
        if not is_clear(value, kind_of(value)):
            return None
        if set(map(type, value.values())) <= _SCALARS:
            characters = (length + 1) * len(value) + sum(map(_width, value)) + sum(map(weight_of, value.values()))
            return Size(len(value), characters)
        members = ((_width(key), child) for key, child in value.items())
    elif isinstance(value, list):
        count = length_of(value)
        if all_scalars(value) and count > MAX_NAMED:
            return Size(1, length + count + sum(map(weight_of, value)))
        if set(map(type, value)) <= _NUMBERS:
            return Size(count, (length + 7) * count + sum(map(weight_of, value)))
        members = ((6, child) for child in spread(value))
    else:
        members = ((6, child) for child in value)
    found, characters = 0, 0
    for width, child in members:
        below = length + width + 1
        kind = type(child)
        if kind in _LEAVES or (kind in _NESTED and not child):
            found += 1
            characters += below + weight_of(child)
        elif kind not in _NESTED or id(child) in shared:
            return None
        elif kind is tuple and all_scalars(child):
            found += 1
            characters += below + weight_of(child)
        else:
            inner = size_of(child, shared, below, levels - 1) if levels else None
            if inner is None:
                return None
            found += inner.total
            characters += inner.characters
    return Size(found, characters)


def _width(key: Any) -> int:
    return len(key) if type(key) is str else 4 + 2 * weight_of(key)


def is_clear(value: Any, kind: str) -> bool:
    """Whether no two of a container's members, nor of what is in these, can get the same name."""
    if kind in ("dict", "ordered"):
        return "" not in value
    if kind != "object":
        return kind in ("ints", "list", "tuple")
    if isinstance(value, dict):
        # The text of such a key ends where its bracket does.
        return all(isinstance(key, tuple) and set(map(type, key)) <= {str, int} for key in value)
    members = list(islice(members_of(value) or (), _MAX_ATTRIBUTES + 1)) if type(value) is Opaque else []
    named = {str(key): child for key, child in members if type(key) in (str, int)}
    return 0 < len(members) == len(named) <= _MAX_ATTRIBUTES and is_clear(named, kind_of(named))
