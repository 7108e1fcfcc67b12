"""What the pickle interpreter makes of names it does not know, and what may be a key."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.room import MEMORY
from ckpt_cli.tensor_file import Storage, TensorInfo


class Malformed(CkptError):
    """The stream is no valid pickle, or none of a checkpoint."""


class Truncated(Malformed):
    """The data ends before the pickle does."""


class Costly(Malformed):
    """What it holds takes more memory than a file gets unasked."""

    kind = "too-costly"

    def __init__(self, where: str = "") -> None:
        what = f"its contents unfold to more memory than a file gets unasked{where}"
        super().__init__(what, f"{MEMORY}=1000 lets a file that you trust take 1000 MB")


class RunsCode(CkptError):
    """The stream names something whose call would run code. Nothing was imported or called."""

    kind = "runs-code"

    def __init__(self, name: str) -> None:
        super().__init__(f"it would run code when unpickled: it names {quoted(name)}", "do not load this file")
        self.name = name


class Global:
    """A name the tables do not know. Compares and hashes by identity."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Opaque:
    """What an unknown class or function would have made: its name, arguments, state and contents."""

    __slots__ = ("args", "elements", "items", "name", "state")

    def __init__(self, name: str, args: Any) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.elements: list[Any] = []


class Known:
    """An object of a class that the reader of a format knows: `take` makes of its state what is `found`, and the state
    itself is not kept.
    """

    __slots__ = ("found", "take")

    def __init__(self, take: Callable[[Any], Any]) -> None:
        self.take = take
        self.found: Any = None


class Ordered(dict[Any, Any]):
    """An OrderedDict, which is what a module's state dict is."""

    __slots__ = ()


class Held:
    """A storage that stands in a pickle, the dtype that its type implies (None where it is bytes alone), and whether it
    has stood there before."""

    __slots__ = ("dtype", "met", "storage")

    def __init__(self, storage: Storage, dtype: str | None) -> None:
        self.storage = storage
        self.dtype = dtype
        self.met = False


class Long:
    """Bytes, or a text, of which no more is kept than is shown of it: how long it is, and how it begins.

    `size` counts bytes, or characters; `raw` the bytes of either, of a text in UTF-8.
    """

    __slots__ = ("begins", "raw", "size")

    def __init__(self, begins: bytes | str, size: int, raw: int) -> None:
        self.begins = begins
        self.size = size
        self.raw = raw


class Attributed:
    """A tensor and what was pickled with it, by name: attributes of its own, the scale of a quantized one."""

    __slots__ = ("more", "tensor")

    def __init__(self, tensor: TensorInfo, more: dict[str, Any]) -> None:
        self.tensor = tensor
        self.more = more


# How many values a key may hold in all. Hashing one that is nested deep would exhaust the C stack, and one that
# holds the same tuple many times over would take for ever.
_MAX_KEY_PARTS = 32
_SCALARS = (str, int, float, bool, bytes, type(None))
# What compares and hashes by identity, as a tensor does.
_BY_IDENTITY = (Global, Opaque, Known, Held, Attributed, Long)
# Beyond it, numbers that differ can have the same hash.
_HASHED_AS_IT_IS = 2**61 - 2


class _TupleKey(tuple[Any, ...]):
    """Hashed by the text of its parts: Python's hash of numbers is known, so tuples can be made that all collide."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(tuple(part if isinstance(part, (str, bytes)) else _hashable(part) for part in self))


class _SetKey(frozenset[Any]):
    """The same of a frozen set, in whatever order its parts come."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(tuple(sorted(hash((_hashable(part),)) for part in self)))


class _LongKey(int):
    """The same of a number."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(hex(self))


class _ComplexKey(complex):
    """The same of a complex number."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(repr(self))


def _hashable(part: Any) -> Any:
    if isinstance(part, tuple):
        return hash(_TupleKey(part))
    if isinstance(part, frozenset):
        return hash(_SetKey(part))
    return hex(part) if isinstance(part, int) else repr(part)


def checked_key(key: Any) -> Any:
    """The value as it can be a dictionary key or set element; raises Malformed where it cannot.

    A tensor, as an optimizer that was pickled whole has for keys, comes back as an Attributed of its own.
    """
    if isinstance(key, TensorInfo):
        return Attributed(key, {})
    if isinstance(key, int):
        return key if -_HASHED_AS_IT_IS <= key <= _HASHED_AS_IT_IS else _LongKey(key)
    if isinstance(key, complex):
        return _ComplexKey(key)
    if not isinstance(key, (tuple, frozenset)):
        _check_part(key)
        return key
    pending: list[Any] = [key]
    parts = 1
    while pending:
        item = pending.pop()
        parts += len(item)
        if parts > _MAX_KEY_PARTS:
            raise Malformed("its pickle uses an immense tuple or set as a key")
        for part in item:
            if type(part) in (tuple, _TupleKey, frozenset, _SetKey):
                pending.append(part)
            else:
                _check_part(part)
    return _SetKey(key) if isinstance(key, frozenset) else _TupleKey(key)


def _check_part(part: Any) -> None:
    if not isinstance(part, (*_SCALARS, complex, *_BY_IDENTITY)) or isinstance(part, tuple):
        raise Malformed(f"its pickle uses a {type(part).__name__} as a key")


# Of bytes no more is ever shown, and they may be a whole file; no text of a configuration is as long.
SHOWN_BYTES, MOST_BYTES, MOST_TEXT = 64, 1 << 18, 2 << 20
# Numbers that come together are kept as in an array, where a list has them.
_MANY = 256
_CODES: dict[type, str] = {int: "q", float: "d"}


def kept(data: bytes) -> bytes | Long:
    """The bytes, or what is shown of them where they are many."""
    return data if len(data) <= MOST_BYTES else Long(data[:SHOWN_BYTES], len(data), len(data))


def packed(items: list[Any]) -> list[Any]:
    """What a list is extended by: many integers, or floats, as one array that stands for them; all else as it is."""
    types = set(map(type, items)) if len(items) >= _MANY else set()
    code = _CODES.get(types.pop()) if len(types) == 1 else None
    if code is None:
        return items
    try:
        return [array(code, items)]
    except OverflowError:
        return items


def spread(items: Iterable[Any]) -> Iterator[Any]:
    """The members of a list, those that are packed among them."""
    for item in items:
        if type(item) is array:
            yield from item
        else:
            yield item


def length_of(items: Iterable[Any]) -> int:
    """How many these are."""
    return sum(len(item) if type(item) is array else 1 for item in items)


def quoted(text: str) -> str:
    """A name from a file as a message can show it: in quotes, escaped, and no longer than it helps."""
    return f"{text!a}" if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]!a}..."


def shown(name: str) -> str:
    """The same without quotes where the name is harmless and short, as a record's is."""
    return name if name.isprintable() and len(name) <= _MOST_QUOTED else quoted(name)


_MOST_QUOTED = 200
