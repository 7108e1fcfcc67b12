"""What torch writes into its pickles, whatever lies around them: storages, rebuild functions, the names it uses.

After torch/_utils.py and torch/serialization.py, torch 0.1 to 2.13. Nothing of torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import ForeignGlobal, Storage, TensorInfo
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import _inert, _pickle, _tree
from ckpt_cli.formats._dtypes import ITEMSIZE, STORAGE_DTYPE

_MAX_INT = 2**63 - 1
# More than torch computes with, and a bound on what a tensor's description costs.
_MAX_DIMENSIONS = 64


class StorageId(NamedTuple):
    """What a persistent id says of a storage: its key, the dtype its type implies, its length and element in bytes."""

    key: str
    dtype: str | None
    bytes: int
    itemsize: int


class Unpickled(NamedTuple):
    """One pickle's tensors and values, the names nobody needs, and where it ended."""

    tensors: tuple[TensorInfo, ...]
    values: dict[str, Any]
    foreign_globals: tuple[ForeignGlobal, ...]
    end: int


def unpickle(path: str, data: bytes, find: Callable[[StorageId], Storage], swapped: bool, start: int = 0) -> Unpickled:
    """Interprets the pickle of a torch file; `find` gives the storage that an id means, as often as it is met.

    Raises CkptError, with the path, for a pickle that is refused, and what `find` raises.
    """

    def persistent(pid: Any) -> Any:
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # a class with its source text, of which only the class counts
        storage = storage_id(pid)
        return find(storage), storage.dtype

    try:
        loaded = _pickle.load(data, _CONSTANTS, {**_COMMON, **_tensor_functions(swapped)}, persistent, start)
        tensors, values = _tree.flatten(loaded.value, loaded.end - start)
    except Damaged:
        raise
    except CkptError as error:
        error.message = f"{path} is refused: {error.message}"
        raise
    foreign = tuple(ForeignGlobal(name, False) for name in loaded.globals if name not in _TORCH_ALLOWS)
    return Unpickled(tensors, values, foreign, loaded.end)


def storage_id(pid: Any) -> StorageId:
    """("storage", type, key, location, numel), of which legacy files have a sixth, where a storage is a view."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise _inert.Malformed("its pickle refers to something outside that is no storage")
    _, kind, key, _, count = pid[:5]
    if not isinstance(kind, _Word) or not isinstance(key, str) or type(count) is not int or not 0 <= count <= _MAX_INT:
        raise _inert.Malformed("its pickle describes a storage that torch does not write")
    if len(pid) == 6 and pid[5] is not None:
        raise _inert.Malformed("its pickle has a storage that is a view of another, as torch before 0.4 wrote them")
    dtype = _STORAGE_WORDS.get(kind)
    itemsize = ITEMSIZE[dtype] if dtype else 1
    return StorageId(key, dtype, count * itemsize, itemsize)


class _Word(str):
    """A dtype or a storage type: shown as its name, told apart from text."""


def _view(
    storage: Storage | None, dtype: str, offset: Any, shape: Any, stride: Any, form: str, swapped: bool = False
) -> TensorInfo:
    """A checked strided view: nothing negative, nothing beyond its storage."""
    _check_sizes(shape)
    _check_sizes((*stride, offset))
    if len(shape) != len(stride):
        raise _inert.Malformed("it has a tensor whose sizes and strides differ in number")
    itemsize = ITEMSIZE[dtype]
    if storage is not None and 0 not in shape:
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
        if (last + 1) * itemsize > storage.bytes:
            raise _inert.Malformed(f"it has a tensor that reaches beyond its storage {storage.name}")
    return TensorInfo("", dtype, tuple(shape), tuple(stride), offset, itemsize, storage, form, swapped and itemsize > 1)


def _check_sizes(sizes: Any) -> None:
    if len(sizes) > _MAX_DIMENSIONS + 1:
        raise _inert.Malformed(f"it has a tensor with more than {_MAX_DIMENSIONS} dimensions")
    if any(type(size) is not int or not 0 <= size <= _MAX_INT for size in sizes):
        raise _inert.Malformed("it has a tensor with a negative or odd size, stride or offset")


def _place(storage: Any) -> tuple[Storage, str | None]:
    """What a persistent id gave; a pickle can put anything else in its place."""
    if not isinstance(storage, tuple) or len(storage) != 2 or not isinstance(storage[0], Storage):
        raise _inert.Malformed("it has a tensor without a storage")
    return storage


def _tensor_functions(swapped: bool) -> dict[str, Callable[..., Any]]:
    """torch._utils' rebuild functions, as far as they say where a tensor's bytes are."""

    def v2(
        storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = None, _hooks: Any = None, marks: Any = None
    ) -> TensorInfo:
        place, dtype = _place(storage)
        return _marked(_view(place, dtype or "uint8", offset, shape, stride, "strided", swapped), marks)

    def v3(
        storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, marks: Any = None
    ) -> TensorInfo:
        return _marked(_view(_place(storage)[0], _dtype(dtype), offset, shape, stride, "strided", swapped), marks)

    def quantized(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorInfo:
        place, dtype = _place(storage)
        return _view(place, dtype or "uint8", offset, shape, stride, "quantized", swapped)

    def from_type(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
        if isinstance(function, _inert.Global) and function.name in table and table[function.name] is not from_type:
            return table[function.name](*args)
        return _inert.Opaque("torch._tensor._rebuild_from_type_v2", (function, args))

    table: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": v2,
        "torch._utils._rebuild_tensor_v2": v2,
        "torch._utils._rebuild_tensor_v3": v3,
        "torch._utils._rebuild_qtensor": quantized,
        "torch._tensor._rebuild_from_type_v2": from_type,
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


def _sparse(_layout: Any, data: Any) -> TensorInfo:
    """A sparse tensor, known by the dtype of its values and its size; its parts are not listed one by one."""
    shape = next((tuple(item) for item in reversed(data) if type(item) in (tuple, list)), ())
    values = [item for item in data if isinstance(item, TensorInfo)]
    _check_sizes(shape)
    if not values:
        raise _inert.Malformed("it has a sparse tensor without values")
    return TensorInfo("", values[-1].dtype, shape, (0,) * len(shape), 0, values[-1].itemsize, None, "sparse")


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in items:
        made[_inert.checked_key(key)] = value
    return made


def _encode(text: Any, encoding: Any = "latin-1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise _inert.Malformed("it encodes text in a way that torch does not")
    return text.encode(encoding)


def _bytes(data: Any = b"", encoding: Any = "latin-1") -> bytes:
    return data if isinstance(data, bytes) else _encode(data, encoding)


def _counter(items: Any = ()) -> dict[Any, Any]:
    return _ordered_dict(items.items() if isinstance(items, dict) else items)


def _named(name: Any, index: Any = None) -> str:
    """A device or a layout: its name, and its number where it has one."""
    if not isinstance(name, str) or not isinstance(index, (int, type(None))):
        raise _inert.Malformed("it has a device or layout that torch does not have")
    return name if index is None else f"{name}:{index}"


def _set(items: Any = ()) -> set[Any]:
    return {_inert.checked_key(item) for item in items}


# Calls that build a value from their arguments alone. Protocol 2 spells modules as Python 2 did.
_COMMON: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "builtins.frozenset": _set,
    "__builtin__.frozenset": _set,
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
_STORAGE_WORDS: dict[str, str | None] = {f"torch.{name}Storage": dtype for name, dtype in STORAGE_DTYPE.items()}
_STORAGE_WORDS["torch.storage.UntypedStorage"] = None
_STORAGE_WORDS["torch.UntypedStorage"] = None
_CONSTANTS: dict[str, Any] = {
    name: _Word(name) for name in [*_STORAGE_WORDS, *(f"torch.{dtype}" for dtype in ITEMSIZE)]
}
_CONSTANTS["torch.per_tensor_affine"] = _Word("torch.per_tensor_affine")
_CONSTANTS["torch.per_channel_affine"] = _Word("torch.per_channel_affine")
# Names that torch's weights-only loader takes and that need no meaning here.
_TORCH_ALLOWS = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter", "torch._tensor.Tensor"})
