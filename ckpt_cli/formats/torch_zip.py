"""torch's zip files, as `torch.save` has written them since version 1.6, read without torch.

A pickle (`<root>/data.pkl`) describes the objects; tensors in it are strided views of storages, whose raw
bytes are the records `<root>/data/<key>`. The root is the file's stem or `archive`; nothing depends on it.
Layout and rebuild functions after torch/serialization.py and torch/_utils.py, torch 1.6 to 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckpt_cli.checkpoint import ForeignGlobal, Storage, TensorFile, TensorInfo
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import ByteSource, _inert, _pickle, _tree, _zip
from ckpt_cli.formats._dtypes import ITEMSIZE, STORAGE_DTYPE

NAME = "torch-zip"
_MAX_PICKLE = 256 << 20
_MAX_VERSION = 10
_MAX_INT = 2**63 - 1
# More than torch computes with, and a bound on what a tensor's description costs.
_MAX_DIMENSIONS = 64


class _Word(str):
    """A dtype or a storage type: shown as its name, told apart from text."""


def matches(head: bytes, size: int) -> bool:
    return head[:4] == b"PK\3\4" or (0 < size < 4 and b"PK\3\4".startswith(head))


def check(source: ByteSource) -> None:
    """The end of the archive and the pickle's place in it; the tail is what an interrupted write lacks."""
    _root(source, _zip.read_archive(source))


def read(source: ByteSource) -> TensorFile:
    archive = _zip.read_archive(source)
    root = _root(source, archive)

    def record(name: str, limit: int) -> bytes | None:
        entry = archive.records.get(f"{root}/{name}")
        return None if entry is None else _zip.read_record(source, archive, entry, limit)

    version = (record("version", 64) or b"3").strip()
    if not version.isdigit() or len(version) > 6 or not 1 <= int(version) <= _MAX_VERSION:
        raise CkptError(f"{source.path} is of the unknown file version {version.decode('latin-1')!a}")
    order = (record("byteorder", 64) or b"little").strip()
    if order not in (b"little", b"big"):
        raise CkptError(f"{source.path} has the unknown byte order {order.decode('latin-1')!a}")
    data = record("data.pkl", _MAX_PICKLE) or b""
    storages = _Storages(source, archive, root, swapped=order == b"big")
    try:
        loaded = _pickle.load(data, _CONSTANTS, {**_COMMON, **_tensor_functions(storages)}, storages.persistent)
        tensors, values = _tree.flatten(loaded.value)
    except Damaged:
        raise
    except CkptError as error:
        error.message = f"{source.path} is refused: {error.message}"
        raise
    notes = list(archive.notes)
    if loaded.end != len(data):
        notes.append(f"{len(data) - loaded.end} bytes follow the end of the pickle")
    return TensorFile(
        path=source.path,
        container=NAME,
        tensors=tensors,
        values=values,
        foreign_globals=tuple(ForeignGlobal(name, False) for name in loaded.globals if name not in _TORCH_ALLOWS),
        storages=tuple(storages.by_key.values()),
        notes=tuple(notes),
    )


def _root(source: ByteSource, archive: _zip.Archive) -> str:
    """The directory that every entry lies in, as torch demands."""
    first = next(iter(archive.records), "")
    root, slash, _ = first.partition("/")
    for name in archive.records:
        if not slash or not name.startswith(f"{root}/"):
            raise CkptError(f"{source.path} is a zip archive, but none of torch: its entry {name!a} is not in one root")
    if f"{root}/constants.pkl" in archive.records:
        raise CkptError(f"{source.path} is a TorchScript archive, a program and not a state dict")
    if f"{root}/data.pkl" not in archive.records:
        raise CkptError(f"{source.path} is a zip archive, but none of torch: it has no data.pkl")
    return root


class _Storages:
    """The storages that the pickle names, each looked up once in the archive."""

    def __init__(self, source: ByteSource, archive: _zip.Archive, root: str, swapped: bool) -> None:
        self.source = source
        self.archive = archive
        self.root = root
        self.swapped = swapped
        self.by_key: dict[str, Storage] = {}

    def persistent(self, pid: Any) -> tuple[Storage, str | None]:
        """("storage", type, key, location, numel) -> the storage and the dtype that its type implies."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise _inert.Malformed("its pickle refers to something outside that is no storage")
        _, kind, key, _, count = pid
        if not isinstance(kind, _Word) or not isinstance(key, str) or type(count) is not int or count < 0:
            raise _inert.Malformed("its pickle describes a storage that torch does not write")
        dtype = _STORAGE_WORDS.get(kind)
        need = count * (ITEMSIZE[dtype] if dtype else 1)
        storage = self.by_key.get(key)
        if storage is None:
            storage = self.by_key[key] = self.find(key)
        if storage.bytes != need:
            raise Damaged(
                f"{self.source.path}: record {self.root}/data/{key} has {storage.bytes} bytes "
                f"where its tensors need {need}"
            )
        return storage, dtype

    def find(self, key: str) -> Storage:
        name = f"{self.root}/data/{key}"
        record = self.archive.records.get(name)
        if record is None:
            raise Damaged(f"{self.source.path}: record {name} is missing")
        return Storage(
            name=key,
            file=self.source.path,
            offset=_zip.data_offset(self.source, self.archive, record),
            bytes=record.bytes,
            crc32=record.crc32 if self.archive.checked else None,
            packed=record.method != _zip.STORED,
        )


def _view(
    source: _Storages | None, storage: Storage | None, dtype: str, offset: Any, shape: Any, stride: Any, form: str
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
    swapped = bool(source and source.swapped and itemsize > 1)
    return TensorInfo("", dtype, tuple(shape), tuple(stride), offset, itemsize, storage, form, swapped)


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


def _tensor_functions(storages: _Storages) -> dict[str, Callable[..., Any]]:
    """torch._utils' rebuild functions, as far as they say where a tensor's bytes are."""

    def v2(
        storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = None, _hooks: Any = None, marks: Any = None
    ) -> TensorInfo:
        place, dtype = _place(storage)
        return _marked(_view(storages, place, dtype or "uint8", offset, shape, stride, "strided"), marks)

    def v3(
        storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, marks: Any = None
    ) -> TensorInfo:
        return _marked(_view(storages, _place(storage)[0], _dtype(dtype), offset, shape, stride, "strided"), marks)

    def quantized(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorInfo:
        place, dtype = _place(storage)
        return _view(storages, place, dtype or "uint8", offset, shape, stride, "quantized")

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
    return _view(None, None, _dtype(dtype), 0, shape, stride, "meta")


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
