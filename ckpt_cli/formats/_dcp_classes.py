"""The classes that a DCP `.metadata` is made of, each taken over as soon as its state has been read.

Of torch.distributed.checkpoint, torch 2.0 to 2.13 and, under another module name, 1.12 and 1.13. There are five objects
for each tensor of a model: what they have in common is kept once, and what they came in is let go. What is wrong with
one is told when it is asked for, so that a name that runs code is told first, wherever in the file it stands.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.formats._inert import Global, Known, Malformed, Opaque, RunsCode, quoted
from ckpt_cli.shapes import MAX_SIZE, are_sizes
from ckpt_cli.tensor_file import Storage

MODULES = ("torch.distributed.checkpoint", "torch.distributed._shard.checkpoint")
# Where torch 2.0 to 2.2 had what is of the tensor itself.
_SHARDED = "torch.distributed._shard.sharded_tensor"
# Less than any chunk takes in the file: it names a class, two sizes and a place. So a small file unfolds to little.
LEAST_CHUNK_BYTES = 16
# Of what is kept once: a model has few shapes, but a chunk of each for every rank.
_MOST_SHARED = 1 << 16
_MAX_LAYOUT = 40
# One long name, kept once, can stand in every entry; in what is shown it is written out for each.
MAX_NAME = 1024
Sizes = tuple[int, ...]
T = TypeVar("T")


class Metadata(NamedTuple):
    """All of it: entries by name, places by key."""

    entries: dict[Any, Any]
    places: dict[Any, Any]


class Key(NamedTuple):
    """What lies in a place: of which entry, and where in its tensor that begins; None for what is no tensor."""

    name: str
    offsets: Sizes | None


class Box(NamedTuple):
    """A chunk of a tensor: where it begins and how long it is, one number a dimension."""

    offsets: Sizes
    sizes: Sizes


class Properties(NamedTuple):
    dtype: str
    layout: str


class Tensor(NamedTuple):
    """An entry that is a tensor, whose name stands elsewhere."""

    dtype: str
    layout: str
    shape: Sizes
    boxes: tuple[Box, ...]


class Value(NamedTuple):
    """An entry that is none, and a file of its own within a data file."""


class Slice(NamedTuple):
    """Where one entry's bytes lie, and what they were put through on the way there (compression, ...)."""

    storage: Storage
    transforms: tuple[str, ...]


def taken(thing: Any, kind: type[T]) -> T:
    """What an object stands for. Raises Malformed for one of another class, and for one that is wrong."""
    found = thing.found if isinstance(thing, Known) else None
    if isinstance(found, Malformed):
        raise found
    if type(found) is not kind:
        raise Malformed(f"it has something else where a {kind.__name__.lower()} should be")
    return found


class Classes:
    """What the interpreter is to make of the classes of one index of `size` bytes, whose data lies in `folder`."""

    def __init__(self, folder: str, size: int) -> None:
        self.folder = folder
        self.chunks_left = size // LEAST_CHUNK_BYTES
        self.paths: dict[str, str] = {}
        self.shared: dict[str, Any] = {}

    def functions(self) -> dict[str, Callable[..., Any]]:
        """By the full name, what makes an object of it."""
        takes: dict[str, Callable[[dict[Any, Any]], Any]] = {
            "metadata.Metadata": _metadata,
            "metadata.TensorStorageMetadata": self.tensor,
            "metadata.ChunkStorageMetadata": self.chunk,
            "metadata.MetadataIndex": self.key,
            "filesystem._StorageInfo": self.slice,
        }
        made = {name: _maker(dict, take) for name, take in takes.items()}
        made["metadata.TensorProperties"] = _maker(tuple, _properties)
        return {
            **_OTHERS,
            **{f"{module}.{name}": make for module in MODULES for name, make in made.items()},
            f"{_SHARDED}.metadata.TensorProperties": made["metadata.TensorProperties"],
        }

    def once(self, value: T) -> T:
        """The first of equal values, which hold numbers and short texts alone.

        By their text: the hash of a tuple of numbers is known, and tuples can be made that all collide.
        """
        known = self.shared
        found: T = (known.setdefault if len(known) < _MOST_SHARED else known.get)(str(value), value)
        return found

    def sizes(self, sizes: Any) -> Sizes:
        """A shape or offsets."""
        if type(sizes) is not tuple or not are_sizes(sizes):
            raise Malformed("it has a shape or offset that is none")
        return self.once(sizes)

    def chunk(self, state: dict[Any, Any]) -> Box:
        return Box(self.sizes(state.get("offsets")), self.sizes(state.get("sizes")))

    def key(self, state: dict[Any, Any]) -> Key:
        name, offsets = state.get("fqn"), state.get("offset")
        if type(name) is not str or len(name) > MAX_NAME:
            raise Malformed("it has an entry without a name, or with an immense one")
        return Key(name, None if offsets is None else self.sizes(offsets))

    def tensor(self, state: dict[Any, Any]) -> Tensor:
        dtype, layout = taken(state.get("properties"), Properties)
        chunks, shape = state.get("chunks"), self.sizes(state.get("size"))
        if type(chunks) is not list or len(chunks) > self.chunks_left:
            raise Malformed("it has more chunks than its file can describe")
        if math.prod(shape) * ITEMSIZE[dtype] > MAX_SIZE:
            raise Malformed("its size overflows")
        self.chunks_left -= len(chunks)
        found = Tensor(dtype, layout, shape, tuple(taken(chunk, Box) for chunk in chunks))
        # Most lie in one piece, and many are then alike.
        return self.once(found) if len(chunks) == 1 else found

    def slice(self, state: dict[Any, Any]) -> Slice:
        """A data file is a plain name beside the index: whoever wrote that must not choose what else is opened."""
        name, offset, length = state.get("relative_path"), state.get("offset"), state.get("length")
        transforms = state.get("transform_descriptors") or ()
        if type(name) is not str or name in ("", ".", "..") or not name.isprintable() or set("/\\") & set(name):
            said = quoted(name) if type(name) is str else "something"
            raise Malformed(f"it places data in {said}, which is no file beside it")
        if type(offset) is not int or type(length) is not int or not are_sizes((offset, length)):
            raise Malformed(f"it places data at a negative or odd place in {name}")
        if type(transforms) not in (list, tuple) or not all(type(item) is str for item in transforms):
            raise Malformed("it has data that went through something unknown")
        path = self.paths.get(name) or self.paths.setdefault(name, os.path.join(self.folder, name))
        return Slice(Storage(name, path, offset, length), tuple(transforms))


def _maker(kind: type[T], take: Callable[[T], Any]) -> Callable[[], Known]:
    """What makes objects that take a state of this kind over, or, in its place, what is wrong with it."""

    def carefully(state: Any) -> Any:
        try:
            if type(state) is not kind:
                raise Malformed("it has an object that torch does not write")
            return take(state)
        except Malformed as fault:
            return fault.with_traceback(None)

    return partial(Known, carefully)


def _metadata(state: dict[Any, Any]) -> Metadata:
    entries, places = state.get("state_dict_metadata"), state.get("storage_data")
    if type(entries) is not dict or not isinstance(places, (dict, type(None))):
        raise Malformed("its Metadata does not say what it describes and where that is")
    return Metadata(entries, places or {})


def _properties(state: tuple[Any, ...]) -> Properties:
    """The first of a tuple in the order of torch's own __setstate__."""
    dtype, layout = state[:2] if len(state) > 1 else (None, None)
    if type(dtype) is not str or dtype not in ITEMSIZE:
        raise Malformed("it is of a dtype that torch does not have")
    known = type(layout) is str and len(layout) <= _MAX_LAYOUT
    return Properties(dtype, layout.removeprefix("torch.") if known else "of an unknown layout")


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    if type(sizes) is not tuple:
        raise Malformed("it has a shape that torch does not write")
    return sizes


def _layout(name: Any) -> str:
    if type(name) is not str:
        raise Malformed("it has a layout that torch does not have")
    return name


def _path(*pieces: Any) -> str:
    """What a checkpoint was called when it was saved; nothing is opened by it."""
    return "/".join(piece for piece in pieces[:100] if type(piece) is str)


def _inert(name: str, *args: Any) -> Opaque:
    return Opaque(name, args)


def _enum_member(owner: Any, name: Any) -> Opaque:
    """`getattr(ENUM, "NAME")`: how Python 3.11.0 to 3.11.3 write a member. Nothing is looked up."""
    if not isinstance(owner, Global) or not owner.name.endswith("MEM_FORMAT_ENCODING") or type(name) is not str:
        raise RunsCode("builtins.getattr")
    return Opaque(owner.name.rpartition(".")[2], (name,))


def _value() -> Known:
    """It has no state, which would say so."""
    made = Known(lambda _: Value())
    made.found = Value()
    return made


def _ordered(*_: Any) -> dict[Any, Any]:
    return {}


CONSTANTS = {f"torch.{dtype}": dtype for dtype in ITEMSIZE}
_OTHERS: dict[str, Callable[..., Any]] = {
    **{f"{module}.metadata.BytesStorageMetadata": _value for module in MODULES},
    **{
        f"{module}.metadata.{name}": partial(_inert, name)
        for module in (*MODULES, _SHARDED)
        for name in ("StorageMeta", "_MEM_FORMAT_ENCODING", "MEM_FORMAT_ENCODING")
    },
    "torch.Size": _size,
    "torch.serialization._get_layout": _layout,
    "collections.OrderedDict": _ordered,
    "builtins.getattr": _enum_member,
    "__builtin__.getattr": _enum_member,
    **{f"pathlib.{local}{flavour}": _path for local in ("", "_local.") for flavour in ("PosixPath", "WindowsPath")},
}
# All that torch itself writes into one.
NAMES = frozenset({*CONSTANTS, *Classes("", 0).functions()})
