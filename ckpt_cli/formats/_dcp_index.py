"""A DCP `.metadata` as values: which tensors there are, of which chunks, and where the bytes of each lie.

A pickle of torch.distributed.checkpoint.metadata.Metadata, torch 2.0 to 2.13 and, under another module name, 1.12 and
1.13. torch itself unpickles it with everything allowed; here some ten classes have a meaning and the rest is inert.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import Storage
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import ByteSource, _pickle
from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.formats._inert import Global, Malformed, Opaque, RunsCode, Truncated, quoted
from ckpt_cli.formats._stream import range_of
from ckpt_cli.shapes import MAX_SIZE, are_sizes

MODULES = ("torch.distributed.checkpoint", "torch.distributed._shard.checkpoint")
_MAX_FILE = 256 << 20
# One long name, kept once, can stand in every entry; here it is written out for each.
_MAX_NAME = 1024
# Less than any chunk takes in the file: it names a class, two sizes and a place. So a small file unfolds to little.
_LEAST_CHUNK_BYTES = 16


class Slice(NamedTuple):
    """Where one entry's bytes lie, and what they were put through on the way there (compression, ...)."""

    storage: Storage
    transforms: tuple[str, ...] = ()


class Chunk(NamedTuple):
    """A box of a tensor: where it begins and how long it is, one number a dimension."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Slice | None


class IndexedTensor(NamedTuple):
    name: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


# By name and the text of the offsets: the hash of a tuple of numbers is known, and tuples can be made that all collide.
_Places = dict[tuple[str, str], Slice]
_NOWHERE = str(None)


class Index(NamedTuple):
    """`values` are the entries that are no tensors, each a file of its own within a data file."""

    tensors: tuple[IndexedTensor, ...]
    values: tuple[tuple[str, Slice], ...]
    slices: tuple[tuple[str, Slice], ...]
    foreign: tuple[str, ...]
    notes: tuple[str, ...]


def read_index(source: ByteSource) -> Index:
    """Raises Damaged where it breaks off or lacks a place, CkptError where it is refused."""
    if source.size > _MAX_FILE:
        raise CkptError(f"{source.path} has {source.size} bytes, more than the limit of {_MAX_FILE}")
    try:
        loaded = _pickle.load(range_of(source, 0, source.size), _CONSTANTS, _FUNCTIONS, _nothing_outside)
        return _index(source, loaded)
    except Truncated as error:
        raise Damaged(f"{source.path} is truncated: {error.message}", kind="truncated") from error
    except Damaged:
        raise
    except CkptError as error:
        error.message = f"{source.path} is refused: {error.message}"
        raise


def _index(source: ByteSource, loaded: _pickle.Loaded) -> Index:
    top = _members(loaded.value, "Metadata")
    described, stored = top.get("state_dict_metadata"), top.get("storage_data")
    if not isinstance(described, dict) or not isinstance(stored, (dict, type(None))):
        raise Malformed("its Metadata does not say what it describes and where that is")
    slices: list[tuple[str, Slice]] = []
    places: _Places = {}
    folder = os.path.dirname(source.path)
    for key, info in (stored or {}).items():
        member = _members(key, "MetadataIndex")
        name, offset = member.get("fqn"), member.get("offset")
        if type(name) is not str or len(name) > _MAX_NAME:
            raise Malformed("it has an entry without a name, or with an immense one")
        at = None if offset is None else _sizes(offset)
        if (name, str(at)) in places:
            raise Malformed(f"it has two places for {quoted(name)}")
        places[name, str(at)] = found = _slice(folder, info)
        slices.append((f"{name} at {list(at)}" if at else name, found))
    tensors: list[IndexedTensor] = []
    values: list[tuple[str, Slice]] = []
    left = source.size // _LEAST_CHUNK_BYTES
    for name, entry in described.items():
        if type(name) is not str or len(name) > _MAX_NAME or not isinstance(entry, Opaque):
            raise Malformed("it has an entry that torch does not write")
        if entry.name == "BytesStorageMetadata":
            place = places.get((name, _NOWHERE))
            if place is None:
                raise Damaged(f"{source.path}: it does not say where {quoted(name)} is")
            values.append((name, place))
            continue
        tensor = _tensor(name, entry, places, left)
        left -= len(tensor.chunks)
        if any(chunk.place is None and 0 not in chunk.sizes for chunk in tensor.chunks):
            raise Damaged(f"{source.path}: it does not say where all of tensor {quoted(name)} is")
        tensors.append(tensor)
    foreign = tuple(name for name in loaded.globals if name not in _FUNCTIONS and name not in _CONSTANTS)
    notes = [f"{source.size - loaded.end} bytes follow the end of the pickle"] if loaded.end != source.size else []
    return Index(tuple(tensors), tuple(values), tuple(slices), foreign, tuple(notes))


def _tensor(name: str, entry: Opaque, places: _Places, most: int) -> IndexedTensor:
    """`most` bounds its chunks."""
    state = _members(entry, "TensorStorageMetadata")
    properties, chunks = state.get("properties"), state.get("chunks")
    if not isinstance(properties, Opaque) or properties.name != "TensorProperties":
        raise Malformed(f"tensor {quoted(name)} has no properties")
    said = properties.state
    # A tuple in the order of torch's own __setstate__: dtype, layout, ...
    if type(said) is not tuple or len(said) < 2 or type(said[0]) is not str or said[0] not in ITEMSIZE:
        raise Malformed(f"tensor {quoted(name)} is of a dtype that torch does not have")
    if type(chunks) is not list or len(chunks) > most:
        raise Malformed(f"tensor {quoted(name)} has more chunks than its file can describe")
    shape = _sizes(state.get("size"))
    if math.prod(shape) * ITEMSIZE[said[0]] > MAX_SIZE:
        raise Malformed(f"the size of tensor {quoted(name)} overflows")
    boxes = []
    for chunk in chunks:
        box = _members(chunk, "ChunkStorageMetadata")
        offsets = _sizes(box.get("offsets"))
        place = places.get((name, str(offsets))) or (places.get((name, _NOWHERE)) if len(chunks) == 1 else None)
        boxes.append(Chunk(offsets, _sizes(box.get("sizes")), place))
    layout = said[1].removeprefix("torch.") if type(said[1]) is str else "of an unknown layout"
    return IndexedTensor(name, said[0], layout, shape, tuple(boxes))


def _slice(folder: str, info: Any) -> Slice:
    """A data file is a plain name beside the index: whoever wrote the index must not choose what else is opened."""
    state = _members(info, "_StorageInfo")
    name, offset, length = (state.get(key) for key in ("relative_path", "offset", "length"))
    transforms = state.get("transform_descriptors") or ()
    if type(name) is not str or name in ("", ".", "..") or not name.isprintable() or set("/\\") & set(name):
        said = quoted(name) if type(name) is str else "something"
        raise Malformed(f"it places data in {said}, which is no file beside it")
    if type(offset) is not int or type(length) is not int or not (0 <= offset <= MAX_SIZE and 0 <= length <= MAX_SIZE):
        raise Malformed(f"it places data at a negative or odd place in {name}")
    if type(transforms) not in (list, tuple) or not all(type(item) is str for item in transforms):
        raise Malformed("it has data that went through something unknown")
    return Slice(Storage(name, os.path.join(folder, name), offset, length), tuple(transforms))


def _members(thing: Any, kind: str) -> dict[Any, Any]:
    if not isinstance(thing, Opaque) or thing.name != kind or type(thing.state) is not dict:
        raise Malformed(f"it has something else where a {kind} should be")
    return thing.state


def _sizes(sizes: Any) -> tuple[int, ...]:
    if type(sizes) is not tuple or not are_sizes(sizes):
        raise Malformed("it has a shape or offset that is none")
    return sizes


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


def _nothing_outside(_: Any) -> Any:
    raise Malformed("its pickle refers to something outside")


def _made(name: str, *args: Any) -> Opaque:
    return Opaque(name, args)


def _enum_member(owner: Any, name: Any) -> Opaque:
    """`getattr(ENUM, "NAME")`: how Python 3.11.0 to 3.11.3 write a member. Nothing is looked up."""
    if not isinstance(owner, Global) or not owner.name.endswith("MEM_FORMAT_ENCODING") or type(name) is not str:
        raise RunsCode("builtins.getattr")
    return Opaque(owner.name.rpartition(".")[2], (name,))


def _ordered(*_: Any) -> dict[Any, Any]:
    return {}


_CONSTANTS = {f"torch.{dtype}": dtype for dtype in ITEMSIZE}
_CLASSES = {
    "metadata": (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
        "MEM_FORMAT_ENCODING",
    ),
    "filesystem": ("_StorageInfo",),
}
# The last two are where torch 2.0 to 2.2 had them.
_NAMES = [
    *(f"{module}.{file}.{name}" for module in MODULES for file, names in _CLASSES.items() for name in names),
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
]
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: partial(_made, name.rpartition(".")[2]) for name in _NAMES},
    "torch.Size": _size,
    "torch.serialization._get_layout": _layout,
    "collections.OrderedDict": _ordered,
    "builtins.getattr": _enum_member,
    "__builtin__.getattr": _enum_member,
    **{f"pathlib.{local}{flavour}": _path for local in ("", "_local.") for flavour in ("PosixPath", "WindowsPath")},
}
