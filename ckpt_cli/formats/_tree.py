"""From the nested value of a file to names: tensors by dotted name, and everything that is no tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats._inert import Attributed, Costly, Global, Long, Opaque, Ordered, length_of
from ckpt_cli.formats._known import known
from ckpt_cli.formats._members import ITSELF, as_json, empty_as_json, key_text, kind_of, members_of, weight_of
from ckpt_cli.formats._values import MANY, Run, Values, is_clear, kinds, leaves, size_of
from ckpt_cli.room import leave
from ckpt_cli.tensor_file import TensorInfo

# Python's pickler stops at its own limit of calls, 1000 by default. Names grow with the depth.
MAX_DEPTH = 2000
# What contents may unfold to: places where a value stands, and characters of names and texts. A pickle gives each
# value that it does not repeat a byte at least, so the first is no limit for what repeats nothing; of the second an
# honest name takes some for each byte. Both begin high enough for a small file that shares much.
_NAMES, _NAMES_PER_BYTE, MAX_NAMES = 50_000, 1, 2_000_000
_TEXT, _TEXT_PER_BYTE, MAX_TEXT = 1 << 23, 16, 1 << 26
# Bytes of memory, besides its name's characters: a value under its name; a container; a tensor, with its line of the
# list; a leaf that is written anew, an item of it, and what it takes to know it when it is met again; a container
# looked into for tensors.
_VALUE, _CONTAINER, _TENSOR, _LEAF, _ITEM, _KEPT, _LOOKED_INTO = 104, 200, 450, 72, 40, 200, 160
# More of a value that says what it is the same as; more of a key that is neither text nor number.
_REFERENCE, _WORDED = 144, 96
# The same of each dimension of a tensor, as the list shows it.
_SHOWN = 20
# Characters of a leaf that is sooner written again.
_SHORT = 16
_WRITTEN_ANEW = (tuple, set, frozenset, bytes, Long, Global, Opaque)
_PLAIN = frozenset({str, int, float, bool, type(None)})
# Leaves that JSON holds as they are; a container is a leaf when it is empty.
_NESTED = frozenset({dict, Ordered, list, tuple})
_FAITHFUL = _PLAIN | {dict, Ordered, list}


class Flat(NamedTuple):
    """Tensors in the order of the file, values by dotted name, and `TensorFile.kinds`."""

    tensors: tuple[TensorInfo, ...]
    values: Mapping[str, Any]
    kinds: Mapping[str, str]


def flatten(root: Any, size: int, room: int, shared: Set[int] | None = None) -> Flat:
    """What a pickle of `size` bytes held, by name, where there is `room` for it (see `_room`).

    `shared` are the containers that stand in more than one place, where that is known.

    A container without tensors is told once: where it is met again, the value says which name it is the same
    as. So a few kilobytes that unfold to 2**60 leaves cost what they weigh. Raises CkptError for what is nested
    deeper than MAX_DEPTH, and for what unfolds to more names or characters than its size allows.
    """
    walk = _Walk(root, size, room, shared)
    try:
        walk.run()
    finally:
        leave(walk.room)
    if not any(type(value) is Run for value in walk.values.values()):
        return Flat(tuple(walk.tensors), walk.values, walk.kinds)
    return Flat(tuple(walk.tensors), Values(walk.values, leaves), Values(walk.kinds, kinds))


class _Walk:
    def __init__(self, root: Any, size: int, room: int, shared: Set[int] | None) -> None:
        self.root = root
        self.room = room
        self.shared = shared
        self.most_names = min(MAX_NAMES, _NAMES + _NAMES_PER_BYTE * size)
        self.most_text = min(MAX_TEXT, _TEXT + _TEXT_PER_BYTE * size)
        self.tensors: list[TensorInfo] = []
        self.values: dict[str, Any] = {}
        self.kinds: dict[str, Any] = {}
        self.first: dict[int, str] = {}
        self.leaves: dict[int, tuple[int, Any]] = {}
        self.path: set[int] = set()
        # The containers around the present place: name, container, and the members still to come.
        self.around: list[tuple[str, Any, Iterator[tuple[Any, Any]]]] = []
        # Those of them whose members' names may be those of others.
        self.unclear: set[int] = set()
        self.twins: dict[str, dict[int, int]] = {}
        self.bearing: set[int] | None = None
        self.names = 0
        self.longest = 0
        self.text = 0

    def run(self) -> None:
        """Depth first, without a call a level: contents may be nested deeper than calls may."""
        self.enter("", self.root)
        while self.around:
            name, value, members = self.around[-1]
            for key, child in members:
                if key is ITSELF:
                    below = name
                else:
                    word = key if type(key) is str else str(key) if type(key) is int else self.word(key)
                    below = f"{name}.{word}" if name else word
                if self.enter(below, child):
                    break
                if type(child) is TensorInfo and isinstance(value, dict):
                    value[key] = self.tensors[-1]  # in its place, not beside it
            else:
                self.around.pop()
                self.path.discard(id(value))
                self.unclear.discard(id(value))

    def enter(self, name: str, value: Any) -> bool:
        """Takes up a tensor or value; True for a container, whose members are next."""
        if type(value) is TensorInfo:
            # One that is tied to another is listed with the name of that.
            self.longest = max(self.longest, len(name))
            self.count(name, 1, _TENSOR + self.longest + _SHOWN * (len(value.shape) + 4 * len(value.pieces)))
            self.tensors.append(TensorInfo(name or "<root>", *value[1:]))
            return False
        if type(value) in _PLAIN and name and name not in self.values:
            self.count(name, 1 + weight_of(value), _VALUE)
            self.values[name] = value
            return False
        seen = self.first.get(id(value))
        # Before its members are looked at: they may be many, and this the millionth time.
        if seen is not None and (id(value) in self.path or not self.bears_tensors(value)):
            self.count(name, 1 + len(seen), _VALUE + _REFERENCE + len(seen))
            self.values[name or "<root>"] = f"<same as {seen or '<root>'}>"
            self.kinds[name] = "same"
            return False
        leaf = self.leaves.get(id(value))
        children = None if leaf else members_of(value)
        if (children or type(value) is list) and self.is_run(name, value):
            return False
        if not children:
            leaf = leaf or (weight_of(value), as_json(value) if children is None else empty_as_json(value))
            cost = _VALUE
            if type(value) is list:
                cost += _ITEM * length_of(value)
            elif id(value) not in self.leaves and isinstance(value, _WRITTEN_ANEW):
                cost += _LEAF + 8 * leaf[0]
                if leaf[0] > _SHORT or (leaf[0] and isinstance(value, (set, frozenset))):
                    cost += _KEPT
                    self.leaves[id(value)] = leaf
            self.count(name, 1 + leaf[0], cost)
            again = (name or "<root>") in self.values
            self.values[name or "<root>"] = leaf[1]
            if again:
                self.kinds[name] = "twice"
            elif type(value) not in _FAITHFUL:
                self.kinds[name] = "tuple" if type(value) is tuple else "text"
            return False
        if len(self.around) > MAX_DEPTH:
            raise CkptError(f"its contents are nested deeper than {MAX_DEPTH} levels")
        self.count(name, 0, _CONTAINER)
        if (
            isinstance(value, (dict, list)) and (_VALUE + len(name)) * length_of(value) > self.room
        ):  # before the first of them is listed
            raise Costly
        self.kinds[name] = kind = "mixed" if name in self.kinds else kind_of(value)
        if not is_clear(value, kind):
            self.unclear.add(id(value))
        self.first.setdefault(id(value), name)
        self.path.add(id(value))
        self.around.append((name, value, iter(children)))
        return True

    def is_run(self, name: str, value: Any) -> bool:
        """Takes up a container of very many plain values as it is."""
        if self.shared is None or self.unclear or type(value) not in _NESTED or not value:
            return False
        size = size_of(value, self.shared, len(name))
        if size is None or (size.total < MANY and not (size.total == 1 < len(value))):
            return False
        self.names += size.total - 1
        self.text += size.characters - len(name)
        self.count(name, 0, _VALUE)
        self.values[name] = self.kinds[name] = Run(value, size.total)
        self.first.setdefault(id(value), name)
        return True

    def word(self, key: Any) -> str:
        """The key in a name. Objects are told apart by a number where their text is the same."""
        text = key_text(key)
        self.room -= _WORDED
        alike = isinstance(key, Attributed) or (isinstance(key, Opaque) and known(key) is None)
        if not alike:
            return text
        twins = self.twins.setdefault(text, {})
        number = twins.setdefault(id(key.tensor if isinstance(key, Attributed) else key), len(twins) + 1)
        return text if number == 1 else f"{text[:-1]} #{number}>"

    def count(self, name: str, weight: int, cost: int) -> None:
        """Of a name, and of `weight` characters of what stands there; `cost` is what both take in memory."""
        self.names += 1
        self.text += len(name) + weight
        self.room -= cost + (len(name) if name.isascii() else 4 * len(name))
        if self.names > self.most_names:
            raise CkptError(f"its contents unfold to more than {self.most_names} names")
        if self.text > self.most_text:
            raise CkptError(f"its names and texts unfold to more than {self.most_text} characters")
        if self.room < 0:
            raise Costly

    def bears_tensors(self, value: Any) -> bool:
        """Whether a tensor lies anywhere below a container; all of them are looked into once, when one is met again."""
        if self.bearing is None:
            self.bearing = _bearing(self.root, self.room // _LOOKED_INTO)
        return id(value) in self.bearing


def _bearing(root: Any, most: int) -> set[int]:
    """The containers with a tensor somewhere below, by identity: upward from those that hold one.

    Raises CkptError where there are more than `most` of them, or of places where they stand.
    """
    numbers, pending = {id(root): 0}, [root]
    reached: list[int] = []
    # The holders of a container are a chain: its latest place, and for each place the holder and the place before it.
    latest = [-1]
    holders: list[int] = []
    before: list[int] = []
    while pending:
        item = pending.pop()
        holder = numbers[id(item)]
        for _, child in members_of(item) or ():
            if type(child) is TensorInfo:
                reached.append(holder)
            elif isinstance(child, (dict, list, tuple, Opaque, Attributed)):
                number = numbers.setdefault(id(child), len(latest))
                if number == len(latest):
                    latest.append(-1)
                    pending.append(child)
                holders.append(holder)
                before.append(latest[number])
                latest[number] = len(before) - 1
                if len(latest) + len(before) // 3 > most:
                    raise Costly
    found = bytearray(len(latest))
    while reached:
        number = reached.pop()
        if not found[number]:
            found[number] = 1
            place = latest[number]
            while place >= 0:
                reached.append(holders[place])
                place = before[place]
    return {key for key, number in numbers.items() if found[number]}
