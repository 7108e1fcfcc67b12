"""From the nested value of a file to names: tensors by dotted name, and everything that is no tensor."""

from __future__ import annotations

from typing import Any

from ckpt_cli.checkpoint import TensorInfo
from ckpt_cli.errors import CkptError
from ckpt_cli.formats._inert import Attributed, Global, Held, Opaque
from ckpt_cli.formats._known import known

MAX_DEPTH = 200
# What contents may unfold to: places where a value stands, and characters of names and texts. A pickle gives each
# value that it does not repeat a byte at least, so the first is no limit for what repeats nothing; of the second an
# honest name takes some for each byte. Both begin high enough for a small file that shares much.
_NAMES, _NAMES_PER_BYTE, MAX_NAMES = 50_000, 1, 2_000_000
_TEXT, _TEXT_PER_BYTE, MAX_TEXT = 1 << 23, 16, 1 << 26
_MAX_BYTES_SHOWN = 64
# The key of a member that stands under the name of what it is a member of.
_ITSELF = object()


def flatten(root: Any, size: int | None = None) -> tuple[tuple[TensorInfo, ...], dict[str, Any]]:
    """Tensors in the order of the file, and values by dotted name, of what a pickle of `size` bytes held.

    A container without tensors is told once: where it is met again, the value says which name it is the same
    as. So a few kilobytes that unfold to 2**60 leaves cost what they weigh. Raises CkptError for what is nested
    deeper than MAX_DEPTH, and for what unfolds to more names or characters than its size allows.
    """
    walk = _Walk(root, MAX_NAMES if size is None else size)
    walk.visit("", root, 0)
    return tuple(walk.tensors), walk.values


class _Walk:
    def __init__(self, root: Any, size: int) -> None:
        self.root = root
        self.most_names = min(MAX_NAMES, _NAMES + _NAMES_PER_BYTE * size)
        self.most_text = min(MAX_TEXT, _TEXT + _TEXT_PER_BYTE * size)
        self.tensors: list[TensorInfo] = []
        self.values: dict[str, Any] = {}
        self.first: dict[int, str] = {}
        self.leaves: dict[int, tuple[int, Any]] = {}
        self.path: set[int] = set()
        self.bearing: set[int] | None = None
        self.names = 0
        self.text = 0

    def visit(self, name: str, value: Any, depth: int) -> None:
        if type(value) is TensorInfo:
            self.count(name, 1)
            self.tensors.append(value._replace(name=name or "<root>"))
            return
        seen = self.first.get(id(value))
        # Before its members are looked at: they may be many, and this the millionth time.
        if seen is not None and (id(value) in self.path or not self.bears_tensors(value)):
            self.count(name, 1 + len(seen))
            self.values[name or "<root>"] = f"<same as {seen or '<root>'}>"
            return
        leaf = self.leaves.get(id(value))
        children = None if leaf else _children(value)
        if not children:
            leaf = leaf or (_weight(value), _plain(value) if children is None else _empty(value))
            if isinstance(value, (tuple, set, frozenset, Opaque)):
                self.leaves[id(value)] = leaf
            self.count(name, 1 + leaf[0])
            self.values[name or "<root>"] = leaf[1]
            return
        if depth > MAX_DEPTH:
            raise CkptError(f"its contents are nested deeper than {MAX_DEPTH} levels")
        self.count(name, 0)
        self.first.setdefault(id(value), name)
        self.path.add(id(value))
        for key, child in children:
            if key is _ITSELF:
                self.visit(name, child, depth + 1)
                continue
            word = key if type(key) is str else str(key) if type(key) is int else _key_text(key)
            self.visit(f"{name}.{word}" if name else word, child, depth + 1)
        self.path.discard(id(value))

    def count(self, name: str, weight: int) -> None:
        self.names += 1
        self.text += len(name) + weight
        if self.names > self.most_names:
            raise CkptError(f"its contents unfold to more than {self.most_names} names")
        if self.text > self.most_text:
            raise CkptError(f"its names and texts unfold to more than {self.most_text} characters")

    def bears_tensors(self, value: Any) -> bool:
        """Whether a tensor lies anywhere below a container; all of them are looked into once, when one is met again."""
        if self.bearing is None:
            self.bearing = _bearing(self.root)
        return id(value) in self.bearing


def _bearing(root: Any) -> set[int]:
    """The containers with a tensor somewhere below, by identity: upward from those that hold one."""
    holders: dict[int, list[int]] = {}
    pending, seen, reached = [root], {id(root)}, []
    while pending:
        item = pending.pop()
        for _, child in _children(item) or ():
            if type(child) is TensorInfo:
                reached.append(id(item))
            elif isinstance(child, (dict, list, tuple, Opaque, Attributed)):
                holders.setdefault(id(child), []).append(id(item))
                if id(child) not in seen:
                    seen.add(id(child))
                    pending.append(child)
    bearing: set[int] = set()
    while reached:
        found = reached.pop()
        if found not in bearing:
            bearing.add(found)
            reached.extend(holders.get(found, ()))
    return bearing


def _weight(value: Any) -> int:
    """About how many characters it takes to write the value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, (tuple, set, frozenset)):
        return sum(1 + _weight(item) for item in value)
    if isinstance(value, (bytes, bytearray)):
        return 20 + 2 * min(len(value), _MAX_BYTES_SHOWN)
    if isinstance(value, (Opaque, Global)):
        plain = known(value) if isinstance(value, Opaque) else None
        return len(value.name) if plain is None else len(str(plain))
    return value.bit_length() // 3 if isinstance(value, int) else 1


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    """A container's members by key or index, None for what is no container.

    Not by name: the text of a key can be long, and the members many.
    """
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        if isinstance(value, tuple) and all(isinstance(item, (int, float, str, type(None))) for item in value):
            return None
        return list(enumerate(value))
    if isinstance(value, Attributed):
        return [(_ITSELF, value.tensor), *value.more.items()]
    if isinstance(value, Opaque):
        if known(value) is not None:
            return None
        members = [*(_children(value.items) or ()), *(_children(value.elements) or ())]
        if isinstance(value.state, dict):
            members += _module(value.state) or _children(value.state) or ()
        elif value.state is not None:
            members.append(("<state>", value.state))
        if value.args:
            members.append(("<args>", value.args))
        return [("<class>", value.name), *members]
    return None


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


def _key_text(key: Any) -> str:
    return key if isinstance(key, str) else str(_plain(key))


def _empty(value: Any) -> Any:
    return {} if isinstance(value, dict) else []


def _plain(value: Any) -> Any:
    """A leaf as JSON can hold it."""
    if isinstance(value, (bytes, bytearray)):
        more = "..." if len(value) > _MAX_BYTES_SHOWN else ""
        return f"<{len(value)} bytes {bytes(value[:_MAX_BYTES_SHOWN]).hex()}{more}>"
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, Held):
        return f"<storage {value.storage.name}>"
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, (Opaque, Global)):
        plain = known(value) if isinstance(value, Opaque) else None
        return f"<{value.name}>" if plain is None else plain
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, (str, int, float, bool, type(None))):
        return str(value) if type(value) not in (str, int, float, bool, type(None)) else value
    return f"<{type(value).__name__}>"
