"""Calls in torch's pickles that build a plain value from their arguments alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckpt_cli.formats._inert import SHOWN_BYTES, Long, Malformed, Ordered, checked_key, kept


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    return Ordered(_counter(items))


def _encode(text: Any, encoding: Any = "latin-1") -> bytes | Long:
    begins = text.begins if isinstance(text, Long) else text
    if not isinstance(begins, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise Malformed("it encodes text in a way that torch does not")
    data = begins.encode(encoding)
    if isinstance(text, Long):
        size = text.raw if encoding == "utf-8" else text.size
        return Long(data[:SHOWN_BYTES], size, size)
    return kept(data)


def _bytes(data: Any = b"", encoding: Any = "latin-1") -> bytes | Long:
    return data if isinstance(data, (bytes, Long)) else _encode(data, encoding)


def _counter(items: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        made[checked_key(key)] = value
    return made


def _named(name: Any, index: Any = None) -> str:
    """A device or a layout: its name, and its number where it has one."""
    if not isinstance(name, str) or not isinstance(index, (int, type(None))):
        raise Malformed("it has a device or layout that torch does not have")
    return name if index is None else f"{name}:{index}"


def _set(items: Any = ()) -> set[Any]:
    return {checked_key(item) for item in items}


def _frozen(items: Any = ()) -> frozenset[Any]:
    return frozenset(_set(items))


# Protocol 2 spells modules as Python 2 did.
COMMON: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "builtins.frozenset": _frozen,
    "__builtin__.frozenset": _frozen,
    "builtins.complex": complex,
    "__builtin__.complex": complex,
    "builtins.bytearray": _bytes,
    "__builtin__.bytearray": _bytes,
    "__builtin__.bytes": lambda: b"",
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": _named,
    "torch.serialization._get_layout": _named,
    "_codecs.encode": _encode,
}
# What TorchScript wraps lists and dictionaries in, to give them a type.
SCRIPT: dict[str, Callable[..., Any]] = {
    **{f"torch.jit._pickle.build_{kind}list": lambda data: data for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": lambda value, _kind: value,
    "torch.jit._pickle.build_tensor_from_id": lambda _number: None,
}
