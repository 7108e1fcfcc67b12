"""What torch writes into its pickles, whatever lies around them: storages, rebuild functions, the names it uses.

After torch/_utils.py and torch/serialization.py, torch 0.1 to 2.13. Nothing of torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import _inert, _pickle, _special, _tree
from ckpt_cli.formats._calls import COMMON, SCRIPT
from ckpt_cli.formats._dtypes import ITEMSIZE, PER_BYTE, SCRIPT_STORAGE_DTYPE, STORAGE_DTYPE
from ckpt_cli.formats._inert import Attributed
from ckpt_cli.formats._stream import Stream
from ckpt_cli.formats._torch_names import ALLOWED, DTYPES, QUANTIZERS, python3_name
from ckpt_cli.shapes import MAX_BYTES, MAX_PLACE, MAX_SIZE, are_sizes
from ckpt_cli.tensor_file import ForeignGlobal, Storage, TensorInfo

_MEMORY_FORMATS = ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format")


class StorageId(NamedTuple):
    """What a persistent id says of a storage: its key, the dtype its type implies, its length and element in bytes."""

    key: str
    dtype: str | None
    bytes: int
    itemsize: int


class Interpreted(NamedTuple):
    """One pickle's value, the names that torch's weights-only loader would refuse, where it ended, the room left, and
    the containers in it that stand in more than one place."""

    value: Any
    foreign_globals: tuple[ForeignGlobal, ...]
    end: int
    room: int
    shared: Set[int]


class Unpickled(NamedTuple):
    """One pickle's tensors and values, the names nobody needs, and where it ended."""

    tensors: tuple[TensorInfo, ...]
    values: Mapping[str, Any]
    foreign_globals: tuple[ForeignGlobal, ...]
    end: int
    kinds: Mapping[str, str]


def interpret(
    path: str,
    stream: Stream,
    find: Callable[[StorageId], Storage],
    swapped: bool,
    room: int | None = None,
    script: bool = False,
) -> Interpreted:
    """Interprets the pickle of a torch file; `find` gives the storage that an id means, once for each key, and refuses
    another length than its own.

    `room` is what other pickles left of that of a file. `script` says that TorchScript wrote it. Raises CkptError, with
    the path, for a pickle that is refused, and what `find` raises.
    """
    met: dict[str, _inert.Held] = {}

    def persistent(pid: Any) -> Any:
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # a class with its source text, of which only the class counts
        if type(pid) is _inert.Held:
            return pid  # its id again, which stands for it in the memo
        storage = storage_id(pid)
        held = met.get(storage.key)
        if held is not None and held.dtype != storage.dtype:
            # torch never writes it, and when reading takes the first type for all.
            raise _inert.Malformed(f"its pickle gives storage {_inert.quoted(storage.key)} two types")
        if held is None or held.storage.bytes != storage.bytes:
            held = met[storage.key] = _inert.Held(find(storage), storage.dtype)
        return held

    functions = {**COMMON, **_tensor_functions(swapped), **(SCRIPT if script else {})}
    with refusing(path):
        loaded = _pickle.load(stream, _CONSTANTS, functions, persistent, room)
    names = dict.fromkeys(python3_name(name) for name in loaded.globals)
    ours = {*SCRIPT, *_CONSTANTS} if script else ()
    foreign = tuple(
        ForeignGlobal(name, False)
        for name in names
        if name not in ALLOWED and name not in ours and not (script and name.startswith("__torch__."))
    )
    return Interpreted(loaded.value, foreign, loaded.end, loaded.room, loaded.shared)


def by_name(path: str, found: Interpreted, length: int) -> Unpickled:
    """What a pickle of so many bytes holds, by name. Raises CkptError, with the path, where that is too much."""
    with refusing(path):
        flat = _tree.flatten(found.value, length, found.room, found.shared)
    return Unpickled(flat.tensors, flat.values, found.foreign_globals, found.end, flat.kinds)


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Puts the path before what a pickle is refused for; damage names it already."""
    try:
        yield
    except Damaged:
        raise
    except CkptError as error:
        error.message = f"{path} is refused: {error.message}"
        raise


def storage_id(pid: Any) -> StorageId:
    """("storage", type, key, location, numel), of which legacy files have a sixth, where a storage is a view."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise _inert.Malformed("its pickle refers to something outside that is no storage")
    _, kind, key, _, count = pid[:5]
    known = isinstance(kind, _Word) and kind in _STORAGE_WORDS
    if not known or not isinstance(key, str) or type(count) is not int or not 0 <= count <= MAX_SIZE:
        raise _inert.Malformed("its pickle describes a storage that torch does not write")
    if len(pid) == 6 and pid[5] is not None:
        raise _inert.Malformed("its pickle has a storage that is a view of another, as torch before 0.4 wrote them")
    dtype = _STORAGE_WORDS[kind]
    itemsize = ITEMSIZE[dtype] if dtype else 1
    return StorageId(key, dtype, count * itemsize, itemsize)


class _Word(str):
    """A dtype or a storage type: shown as its name, told apart from text."""


def _view(
    storage: Storage | None, dtype: str, offset: Any, shape: Any, stride: Any, form: str, swapped: bool = False
) -> TensorInfo:
    """A checked strided view: nothing negative, nothing beyond its storage."""
    placed = type(offset) is int and 0 <= offset <= MAX_PLACE
    if not (placed and are_sizes(shape) and are_sizes(stride, MAX_PLACE)):
        raise _inert.Malformed("it has a tensor with a negative or odd size, stride or offset, or over 64 of them")
    if len(shape) != len(stride):
        raise _inert.Malformed("it has a tensor whose sizes and strides differ in number")
    itemsize = ITEMSIZE[dtype]
    if math.prod(shape) * itemsize > MAX_BYTES:
        raise _inert.Malformed("it has a tensor whose size overflows")
    if storage is not None and 0 not in shape:
        last = offset
        for size, step in zip(shape, stride):
            last += (size - 1) * step
        if (last // PER_BYTE.get(dtype, 1) + 1) * itemsize > storage.bytes:
            raise _inert.Malformed(f"it has a tensor that reaches beyond its storage {_inert.shown(storage.name)}")
    return TensorInfo("", dtype, tuple(shape), tuple(stride), offset, itemsize, storage, form, swapped and itemsize > 1)


def _place(storage: Any) -> tuple[Storage, str | None]:
    """What a persistent id gave; a pickle can put anything else in its place."""
    if not isinstance(storage, _inert.Held):
        raise _inert.Malformed("it has a tensor without a storage")
    return storage.storage, storage.dtype


def _tensor_functions(swapped: bool) -> dict[str, Callable[..., Any]]:
    """torch._utils' rebuild functions, as far as they say where a tensor's bytes are."""

    def v2(
        storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = None, _hooks: Any = None, marks: Any = None
    ) -> TensorInfo:
        place, dtype = _place(storage)
        made = _view(place, dtype or "uint8", offset, shape, stride, "strided", swapped)
        return _marked(made, marks) if marks else made

    def v3(
        storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, marks: Any = None
    ) -> TensorInfo:
        return _marked(_view(_place(storage)[0], _dtype(dtype), offset, shape, stride, "strided", swapped), marks)

    def quantized(storage: Any, offset: Any, shape: Any, stride: Any, quantizer: Any, *_: Any) -> Attributed:
        place, dtype = _place(storage)
        form = f"packed {dtype}" if dtype in PER_BYTE else "quantized"
        tensor = _view(place, dtype or "uint8", offset, shape, stride, form, swapped)
        return Attributed(tensor, {"<quantizer>": _special.quantizer(quantizer)})

    def from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
        name = function.name if isinstance(function, _inert.Global) else ""
        if name not in table or table[name] is from_type or type(args) is not tuple:
            return _inert.Opaque("torch._tensor._rebuild_from_type_v2", (function, kind, args, state))
        made = table[name](*args)
        if not isinstance(made, TensorInfo) or made.form != "subclass":
            return _special.attributed(made, state)
        if id(state) not in wrapped:
            wrapped[id(state)] = state, _special.members(state)
        return made._replace(pieces=wrapped[id(state)][1])

    # A state with what it holds: looked through once, however many objects share it.
    wrapped: dict[int, tuple[Any, tuple[tuple[str, TensorInfo], ...]]] = {}
    table: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": v2,
        "torch._utils._rebuild_tensor_v2": v2,
        "torch._utils._rebuild_tensor_v3": v3,
        "torch._utils._rebuild_qtensor": quantized,
        "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
        "torch._utils._rebuild_wrapper_subclass": _wrapper,
        "torch._tensor._rebuild_from_type": from_type,
        "torch._tensor._rebuild_from_type_v2": from_type,
        **_special.FUNCTIONS,
    }
    return table


def _marked(tensor: TensorInfo, marks: Any) -> TensorInfo:
    """With the negation or conjugation that torch keeps as a mark instead of carrying it out."""
    marks = marks if isinstance(marks, dict) else {}
    if marks.get("conj") and marks.get("neg"):
        raise _inert.Malformed("it has a tensor that is marked as negated and conjugated at once")
    if marks.get("conj"):
        return tensor._replace(signs="conjugated")
    return tensor._replace(signs="negated") if marks.get("neg") else tensor


def _dtype(word: Any) -> str:
    # The type first: the text of a list that holds itself many times over never ends.
    if not isinstance(word, _Word) or word.removeprefix("torch.") not in ITEMSIZE:
        raise _inert.Malformed("it has a tensor of a dtype that torch does not have")
    return word.removeprefix("torch.")


def _meta_tensor(dtype: Any, shape: Any, stride: Any, *_: Any) -> TensorInfo:
    return _view(None, _dtype(dtype), 0, shape, stride, "meta")


def _wrapper(_kind: Any, dtype: Any, shape: Any, stride: Any, offset: Any, *_: Any) -> TensorInfo:
    """A subclass that has no bytes of its own: its state, which follows, holds the tensors it is made of."""
    return _view(None, _dtype(dtype), offset, shape, stride, "subclass")


_STORAGE_WORDS: dict[str, str | None] = {
    f"torch.{device}{name}Storage": dtype
    for device, names in (("", {**STORAGE_DTYPE, **SCRIPT_STORAGE_DTYPE}), ("cuda.", STORAGE_DTYPE))
    for name, dtype in names.items()
}
_STORAGE_WORDS["torch.storage.UntypedStorage"] = None
_STORAGE_WORDS["torch.UntypedStorage"] = None
_CONSTANTS: dict[str, Any] = {
    name: _Word(name)
    for name in (*_STORAGE_WORDS, *(f"torch.{word}" for word in (*DTYPES, *QUANTIZERS, *_MEMORY_FORMATS)))
}
