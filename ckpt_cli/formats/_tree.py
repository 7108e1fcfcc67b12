"""From the nested value of a file to names: tensors by dotted name, and everything that is no tensor."""

from __future__ import annotations

from typing import Any

from ckpt_cli.checkpoint import TensorInfo
from ckpt_cli.errors import CkptError
from ckpt_cli.formats._pickle import Global, Opaque

MAX_NAMES = 2_000_000
MAX_DEPTH = 200
_MAX_BYTES_SHOWN = 64


def flatten(root: Any) -> tuple[tuple[TensorInfo, ...], dict[str, Any]]:
    """Tensors in the order of the file, and values by dotted name.

    A container without tensors is told once: where it is met again, the value says which name it is the same
    as. So a few kilobytes that unfold to 2**60 leaves cost what they weigh. Raises CkptError beyond
    MAX_NAMES names or MAX_DEPTH levels.
    """
    walk = _Walk()
    walk.visit("", root, 0)
    return tuple(walk.tensors), walk.values


class _Walk:
    def __init__(self) -> None:
        self.tensors: list[TensorInfo] = []
        self.values: dict[str, Any] = {}
        self.first: dict[int, str] = {}
        self.path: set[int] = set()
        self.bearing: dict[int, bool] = {}
        self.names = 0

    def visit(self, name: str, value: Any, depth: int) -> None:
        if type(value) is TensorInfo:
            self.count()
            self.tensors.append(value._replace(name=name or "<root>"))
            return
        children = _children(value)
        if children is None:
            self.count()
            self.values[name or "<root>"] = _plain(value)
            return
        if depth > MAX_DEPTH:
            raise CkptError(f"its contents are nested deeper than {MAX_DEPTH} levels")
        seen = self.first.setdefault(id(value), name)
        again = seen != name and not self.bears_tensors(value)
        if id(value) in self.path or again:
            self.count()
            self.values[name or "<root>"] = f"<same as {seen or '<root>'}>"
            return
        if not children:
            self.count()
            self.values[name or "<root>"] = _empty(value)
            return
        self.path.add(id(value))
        for key, child in children:
            self.visit(f"{name}.{key}" if name else key, child, depth + 1)
        self.path.discard(id(value))

    def count(self) -> None:
        self.names += 1
        if self.names > MAX_NAMES:
            raise CkptError(f"it holds more than {MAX_NAMES} names")

    def bears_tensors(self, value: Any) -> bool:
        """Whether a tensor lies anywhere below; each container is looked into once."""
        pending, members = [value], set()
        while pending:
            item = pending.pop()
            if type(item) is TensorInfo or self.bearing.get(id(item)):
                self.bearing[id(value)] = True
                return True
            if id(item) in members or self.bearing.get(id(item)) is False:
                continue
            members.add(id(item))
            pending.extend(child for _, child in _children(item) or ())
        self.bearing[id(value)] = False
        return False


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """A container's members by name, None for what is no container."""
    if isinstance(value, dict):
        return [(_key_text(key), item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        if isinstance(value, tuple) and all(isinstance(item, (int, float, str, type(None))) for item in value):
            return None
        return [(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, Opaque):
        members = [*(_children(value.items) or ()), *(_children(value.elements) or ())]
        if isinstance(value.state, dict):
            members += _children(value.state) or ()
        elif value.state is not None:
            members.append(("<state>", value.state))
        if value.args:
            members.append(("<args>", value.args))
        return [("<class>", value.name), *members]
    return None


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
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, (Opaque, Global)):
        return f"<{value.name}>"
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, (str, int, float, bool, type(None))):
        return str(value) if type(value) not in (str, int, float, bool, type(None)) else value
    return f"<{type(value).__name__}>"
