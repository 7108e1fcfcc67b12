"""One value of a pickle as names and JSON have it: its members, its kind, its text; not where it stands."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from ckpt_cli.formats._inert import SHOWN_BYTES, Attributed, Global, Held, Long, Opaque, Ordered, length_of, spread
from ckpt_cli.formats._known import known

# Of a list of plain values: with more of them, as the order of a data set has, it is one value. The parameters of an
# optimizer, which are looked up by their places, are fewer.
MAX_NAMED = 100_000
# Of an object that is a key: it may be written out for each of the many places where its dictionary stands.
_MAX_ARGUMENTS = 8
_PLAIN = frozenset({str, int, float, bool, type(None), array})
# The key of a member that stands under the name of what it is a member of.
ITSELF = object()
# By type: a TensorInfo is a tuple.
_CONTAINERS = frozenset({dict, Ordered, list, tuple, Opaque, Attributed})


def kind_of(value: Any) -> str:
    """What a container is among `TensorFile.kinds`."""
    if isinstance(value, dict):
        types = set(map(type, value))
        if types == {str}:
            return "mixed" if _is_mixed(value) else "ordered" if type(value) is Ordered else "dict"
        return "ints" if types == {int} else "object"
    if isinstance(value, Opaque) and isinstance(value.state, dict) and _module(value.state) is not None:
        return "module"
    if type(value) is list:
        return "list"
    return "tuple" if type(value) is tuple else "object"


def _is_mixed(value: dict[str, Any]) -> bool:
    """Whether what lies in one of its containers may be called as another of its members is."""
    containers = [key for key, child in value.items() if type(child) in _CONTAINERS and child]
    ordered = sorted(value) if containers else []
    for key in containers:
        at = bisect_left(ordered, f"{key}.")
        if not key or (at < len(ordered) and ordered[at].startswith(f"{key}.")):
            return True
    return False


def weight_of(value: Any) -> int:
    """About how many characters it takes to write the value."""
    if value is None:
        return 1
    if type(value) is int:
        return value.bit_length() // 3
    if isinstance(value, str):
        return len(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return sum(1 + weight_of(item) for item in value)
    if type(value) is array:
        return len(value) * (2 if value.typecode == "d" else 8)
    if isinstance(value, (bytes, Long)):
        return 20 + 2 * SHOWN_BYTES
    if isinstance(value, (Opaque, Global)):
        plain = known(value) if isinstance(value, Opaque) else None
        return len(value.name) if plain is None else len(str(plain))
    return value.bit_length() // 3 if isinstance(value, int) else 1


def members_of(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """A container's members by key or index; () where it is empty, None for what is none or is told as one value.

    Not by name: the text of a key can be long, and the members many.
    """
    if isinstance(value, dict):
        return value.items() if value else ()
    if isinstance(value, (list, tuple)):
        if isinstance(value, tuple):
            return None if all_scalars(value) else enumerate(value)
        if length_of(value) > MAX_NAMED and all_scalars(value):
            return None
        return enumerate(spread(value)) if value else ()
    if isinstance(value, Attributed):
        return [(ITSELF, value.tensor), *value.more.items()]
    if isinstance(value, Opaque):
        if known(value) is not None:
            return None
        members: list[Iterable[tuple[Any, Any]]] = [value.items.items(), enumerate(value.elements)]
        if _with_slots(value.state):
            members += [part.items() for part in value.state if part]
        elif isinstance(value.state, dict):
            members.append(_module(value.state) or value.state.items())
        elif value.state is not None:
            members.append([("<state>", value.state)])
        if value.args:
            members.append([("<args>", value.args)])
        return chain([("<class>", value.name)], *members)
    return None


def all_scalars(values: Sequence[Any]) -> bool:
    """Whether they are nothing but numbers and texts."""
    return all(issubclass(kind, (int, float, str, type(None), array)) for kind in set(map(type, values)))


def _with_slots(state: Any) -> bool:
    """Whether it is the state of an object with slots, after copyreg: its dictionary or None, and the slots by name."""
    if type(state) is not tuple or len(state) != 2:
        return False
    return (state[0] is None or isinstance(state[0], dict)) and isinstance(state[1], dict)


def _module(state: dict[Any, Any]) -> list[tuple[Any, Any]] | None:
    """The members of a pickled torch.nn.Module under the names of its state dict, None for any other object."""
    parts = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(part, dict) for part in parts):
        return None
    passing = state.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, (set, frozenset)) else ()
    return [
        (key, item)
        for part in parts
        if part is not None
        for key, item in part.items()
        if item is not None and key not in passing
    ]


def key_text(key: Any) -> str:
    """A key as part of a dotted name."""
    if isinstance(key, Opaque) and 0 < len(key.args) <= _MAX_ARGUMENTS and all_scalars(key.args) and known(key) is None:
        # A member of an enumeration is its class, called with its value.
        return f"<{key.name} {' '.join(map(str, key.args))}>"
    return key if isinstance(key, str) else str(as_json(key))


def empty_as_json(value: Any) -> Any:
    """A container without members as JSON can hold it."""
    return value if type(value) in (dict, list) else {} if isinstance(value, dict) else []


def as_json(value: Any) -> Any:
    """A leaf as JSON can hold it."""
    if isinstance(value, bytes):
        more = "..." if len(value) > SHOWN_BYTES else ""
        return f"<{len(value)} bytes {value[:SHOWN_BYTES].hex()}{more}>"
    if isinstance(value, Long):
        what = f"bytes {value.begins.hex()}" if isinstance(value.begins, bytes) else f"characters {value.begins!a}"
        return f"<{value.size} {what}...>"
    if isinstance(value, (set, frozenset)):
        return sorted((as_json(item) for item in value), key=str)
    if isinstance(value, Held):
        return f"<storage {value.storage.name}>"
    if isinstance(value, (list, tuple)):
        return list(spread(value)) if set(map(type, value)) <= _PLAIN else [as_json(item) for item in spread(value)]
    if isinstance(value, (Opaque, Global)):
        plain = known(value) if isinstance(value, Opaque) else None
        return f"<{value.name}>" if plain is None else plain
    if isinstance(value, Attributed):
        return "<tensor>"
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, (str, int, float, bool, type(None))):
        return str(value) if type(value) not in (str, int, float, bool, type(None)) else value
    return f"<{type(value).__name__}>"
