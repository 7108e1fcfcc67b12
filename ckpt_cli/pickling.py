"""Objects -> a pickle of protocol 2, as torch's weights-only loader reads it: plain values and torch's tensors.

Written by its own rules, so that nothing but these few names can stand in it. Opcodes after Python's pickletools,
rebuild functions after torch/_utils.py, torch 2.6 to 2.13.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats._dtypes import ITEMSIZE, STORAGE_DTYPE

_STORAGE = {dtype: f"{name}Storage" for name, dtype in STORAGE_DTYPE.items()}
_BATCH = 1000
# What makes a tuple of so few items.
_SHORT = b")", b"\x85", b"\x86", b"\x87"


class Ordered(dict[Any, Any]):
    """A dict that is written as an OrderedDict, which is what a module's state dict is."""


class View(NamedTuple):
    """A tensor in a pickle: a view of the storage `key` of `elements` elements; offset and stride in elements."""

    key: int
    elements: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Global(NamedTuple):
    module: str
    name: str


_ORDERED = _Global("collections", "OrderedDict")


def dumps(value: Any) -> bytes:
    """The pickle. Raises CkptError for a value of another type than dict, list, tuple, str, int, float, bool, None or
    View."""
    writer = _Writer()
    writer.run(value)
    return b"\x80\x02" + bytes(writer.out) + b"."


def plain(value: Any) -> bytes:
    """The opcodes that leave a value of JSON on the stack of any pickle: no slot of its memo is touched.

    Raises CkptError for a value of another kind.
    """
    if isinstance(value, list):
        return b"](" + b"".join(map(plain, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(plain(key) + plain(item) for key, item in value.items()) + b"u"
    make = _SCALARS.get(type(value))
    if make is None:
        raise CkptError(f"a {type(value).__name__} cannot be written into a pickle")
    return make(value)


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self.words: dict[_Global | str, int] = {}
        self.containers: dict[int, int] = {}
        self.memo = 0
        # What is still to be written: bytes as they are, and values.
        self.pending: list[Any] = []

    def run(self, root: Any) -> None:
        """Without a call a level: contents may be nested deeper than calls may."""
        self.pending.append(root)
        while self.pending:
            item = self.pending.pop()
            if isinstance(item, _Raw):
                self.out += item
            else:
                self.value(item)

    def value(self, value: Any) -> None:
        make = _SCALARS.get(type(value))
        if make:
            self.out += make(value)
        elif isinstance(value, _Global):
            self.name(value)
        elif isinstance(value, View):
            self.tensor(value)
        elif id(value) in self.containers:
            self.out += _get(self.containers[id(value)])
        elif type(value) in (dict, Ordered):
            self.dict(value)
        elif type(value) is list:
            self.out += b"]"
            self.remember(value)
            for at in reversed(range(0, len(value), _BATCH)):
                self.then(_Raw(b"("), *value[at : at + _BATCH], _Raw(b"e"))
        elif type(value) is tuple:
            self.then(_Raw(b"("), *value, _Raw(b"t"))
        else:
            raise CkptError(f"a {type(value).__name__} cannot be written into a torch file")

    def then(self, *parts: Any) -> None:
        """To be written next, in this order."""
        self.pending.extend(reversed(parts))

    def dict(self, value: Any) -> None:
        if type(value) is Ordered:
            self.name(_ORDERED)
            self.out += b")R"
        else:
            self.out += b"}"
        self.remember(value)
        items = list(value.items())
        for at in reversed(range(0, len(items), _BATCH)):
            self.then(_Raw(b"("), *(part for pair in items[at : at + _BATCH] for part in pair), _Raw(b"u"))

    def remember(self, value: Any) -> None:
        """A container that is met again is the same object again."""
        self.containers[id(value)] = self.memo
        self.out += _put(self.memo)
        self.memo += 1

    def name(self, name: _Global) -> None:
        self.word(name, f"c{name.module}\n{name.name}\n".encode())

    def word(self, word: _Global | str, opcodes: bytes) -> None:
        """What each tensor names, once."""
        if word in self.words:
            self.out += _get(self.words[word])
            return
        self.words[word] = self.memo
        self.out += opcodes + _put(self.memo)
        self.memo += 1

    def tensor(self, view: View) -> None:
        """_rebuild_tensor_v2 of a typed storage; v3, which names the dtype, where torch has no such storage."""
        typed = _STORAGE.get(view.dtype)
        kind = _Global("torch", typed) if typed else _Global("torch.storage", "UntypedStorage")
        count = view.elements * (1 if typed else ITEMSIZE[view.dtype])
        self.name(_Global("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"))
        self.out += b"(("
        self.word("storage", _text("storage"))
        self.name(kind)
        self.out += _text(str(view.key))
        self.word("cpu", _text("cpu"))
        self.out += _integer(count) + b"tQ" + _integer(view.offset)
        for sizes in (view.shape, view.stride):
            numbers = b"".join(map(_integer, sizes))
            self.out += numbers + _SHORT[len(sizes)] if len(sizes) < len(_SHORT) else b"(" + numbers + b"t"
        self.out += b"\x89"  # requires no gradient
        self.name(_ORDERED)
        self.out += b")R"  # and has no hooks
        if not typed:
            self.name(_Global("torch", view.dtype))
        self.out += b"tR"


class _Raw(bytes):
    """Opcodes among the values that are still to be written."""


def _put(number: int) -> bytes:
    return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)


def _get(number: int) -> bytes:
    return b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)


def _integer(number: int) -> bytes:
    if 0 <= number < 256:
        return b"K" + bytes([number])
    if -(2**31) <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    if len(data) > 255:
        raise CkptError("an integer of more than 255 bytes cannot be written into a torch file")
    return b"\x8a" + bytes([len(data)]) + data


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


_SCALARS: dict[type, Callable[[Any], bytes]] = {
    str: _text,
    int: _integer,
    float: lambda number: b"G" + struct.pack(">d", number),
    bool: lambda value: b"\x88" if value else b"\x89",
    type(None): lambda value: b"N",
}
