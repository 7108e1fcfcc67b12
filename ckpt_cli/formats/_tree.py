"""From the nested value of a file to names: tensors by dotted name, and everything that is no tensor."""

from __future__ import annotations

from typing import Any

from ckpt_cli.checkpoint import Storage, TensorInfo
from ckpt_cli.errors import CkptError
from ckpt_cli.formats._inert import Global, Opaque

MAX_NAMES = 2_000_000
MAX_DEPTH = 200
# Characters of names and texts, counted wherever they stand: a few kilobytes can repeat one text without end.
MAX_TEXT = 1 << 26
_MAX_BYTES_SHOWN = 64


def flatten(root: Any) -> tuple[tuple[TensorInfo, ...], dict[str, Any]]:
    """Tensors in the order of the file, and values by dotted name.

    A container without tensors is told once: where it is met again, the value says which name it is the same
    as. So a few kilobytes that unfold to 2**60 leaves cost what they weigh. Raises CkptError beyond
    MAX_NAMES names, MAX_DEPTH levels or MAX_TEXT characters.
    """
    walk = _Walk(root)
    walk.visit("", root, 0)
    return tuple(walk.tensors), walk.values


class _Walk:
    def __init__(self, root: Any) -> None:
        self.root = root
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
            if isinstance(value, (tuple, set, frozenset)):
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
            self.visit(f"{name}.{key}" if name else key, child, depth + 1)
        self.path.discard(id(value))

    def count(self, name: str, weight: int) -> None:
        self.names += weight > 0
        self.text += len(name) + weight
        if self.names > MAX_NAMES:
            raise CkptError(f"it holds more than {MAX_NAMES} names")
        if self.text > MAX_TEXT:
            raise CkptError(f"its names and texts unfold to more than {MAX_TEXT >> 20} MiB")

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
            elif isinstance(child, (dict, list, tuple, Opaque)):
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
    return value.bit_length() // 3 if isinstance(value, int) else 1


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """A container's members by name, None for what is no container."""
    if isinstance(value, Storage):
        return None
    if isinstance(value, dict):
        return [(_key_text(key), item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        if isinstance(value, tuple) and all(isinstance(item, (int, float, str, type(None))) for item in value):
            return None
        return [(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, Opaque):
        members = [*(_children(value.items) or ()), *(_children(value.elements) or ())]
        if isinstance(value.state, dict):
            members += _module(value.state) or _children(value.state) or ()
        elif value.state is not None:
            members.append(("<state>", value.state))
        if value.args:
            members.append(("<args>", value.args))
        return [("<class>", value.name), *members]
    return None


def _module(state: dict[Any, Any]) -> list[tuple[str, Any]] | None:
    """The members of a pickled torch.nn.Module under the names of its state dict, None for any other object."""
    parts = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(part, dict) for part in parts):
        return None
    passing = state.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, (set, frozenset)) else ()
    return [
        (_key_text(key), item)
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
    if isinstance(value, Storage):
        return f"<storage {value.name}>"
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, (Opaque, Global)):
        return f"<{value.name}>"
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, (str, int, float, bool, type(None))):
        return str(value) if type(value) not in (str, int, float, bool, type(None)) else value
    return f"<{type(value).__name__}>"
