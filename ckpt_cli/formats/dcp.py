"""PyTorch Distributed Checkpoints: a `.metadata` that says of which chunks each tensor is, and where these lie.

The data files beside it (`__<rank>_<n>.distcp`) are whole `torch.save` archives one after another, a chunk or a value
each. A tensor is read as `chunked`, its pieces `archived`; one that this index alone does not cover (of a save without
collectives there is an index a rank, `__<rank>.metadata`) as a `slice`. Only files that the index names, beside it,
are opened. After torch/distributed/checkpoint, torch 2.0 to 2.13.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import ByteSource, Files, Records, Window, formats
from ckpt_cli.formats._dcp_classes import MODULES, Key, Slice
from ckpt_cli.formats._dcp_index import Chunk, IndexedTensor, read_index
from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.formats._inert import Costly, RunsCode, quoted, shown
from ckpt_cli.formats._joined import Joined, Part
from ckpt_cli.room import sharing_room
from ckpt_cli.shapes import contiguous_stride, tiling_fault
from ckpt_cli.tensor_file import ForeignGlobal, Storage, TensorFile, TensorInfo

NAME = "dcp"
# The dtype and shape of a tensor.
Held = tuple[str, tuple[int, ...]]
_MARKS = tuple(f"{module}.metadata".encode() for module in MODULES)
_ONE_RANK = re.compile(r"__[0-9]+\.metadata(\.tmp)?")
_HEAD = 512
# The beginning of a pickle: of protocol 2 and later, and of an object by protocol 0 or 1, under Python 2's name too.
_PICKLED = (b"\x80", b"ccopyreg\n", b"ccopy_reg\n")
# Of the entries that are no tensors (a step, a learning rate, a state of a data loader): each, together, in number.
_MAX_VALUE = 1 << 20
_MAX_VALUES_BYTES = 16 << 20
_MAX_VALUES = 4096


def matches(head: bytes, size: int) -> bool:
    """A pickle whose first name is of the module that describes such checkpoints."""
    return head.startswith(_PICKLED) and any(mark in head[:96] for mark in _MARKS)


def check(source: ByteSource) -> None:
    """The index, and that every data file is there and as long as the index needs it to be."""
    needed = _Needed()
    alone = _is_alone(source)
    read_index(source, needed.add, lambda tensor: _tensor(source, tensor, alone))
    needed.check(source)


def records(source: ByteSource) -> Records:
    """Each entry's archive in a data file; its CRC32s are in the archive. What went through something has it packed."""
    return Records((storage for storage, _ in placed(source)), partial(read, source))


def placed(source: ByteSource) -> Iterator[tuple[Storage, Held | None]]:
    """The same with the dtype and shape of the tensor that each must hold; None for what is none.

    Raises what `check` does: of a data file when all have been told.
    """
    found: list[Storage] = []
    held: dict[tuple[str, int], Held] = {}
    needed = _Needed()
    alone = _is_alone(source)

    def hold(tensor: IndexedTensor) -> None:
        _tensor(source, tensor, alone)
        for chunk in tensor.chunks:
            if chunk.place and not chunk.place.transforms and tensor.layout == "strided":
                held[chunk.place.storage[1:3]] = (tensor.dtype, chunk.sizes)

    def note(key: Key, place: Slice) -> None:
        needed.add(key, place)
        name = f"{key.name} at {list(key.offsets)}" if key.offsets else key.name
        found.append(place.storage._replace(name=name, packed=place.storage.bytes if place.transforms else 0))

    read_index(source, note, hold)
    found.sort(key=lambda storage: (storage.file, storage.offset, storage.name))
    for storage in found:
        yield storage, held.get(storage[1:3])
    needed.check(source)


class _Needed(dict[str, int]):
    """How long each data file must be."""

    def add(self, _: Key, place: Slice) -> None:
        storage = place.storage
        self[storage.file] = max(self.get(storage.file, 0), storage.offset + storage.bytes)

    def check(self, source: ByteSource) -> None:
        """Raises Damaged for the first that is missing or shorter."""
        for path, length in self.items():
            try:
                there = os.stat(path).st_size
            except FileNotFoundError:
                what = f"{source.path} names the data file {os.path.basename(path)}, which is missing"
                raise Damaged(what, path=path, kind="missing-part") from None
            except OSError as error:
                raise CkptError(
                    f"{path} cannot be read: {error.strerror}", path=path, kind="unreadable-part"
                ) from error
            if there < length:
                what = f"{path} is truncated: it lacks {counted(length - there, 'byte')} of its data"
                raise Damaged(what, path=path, kind="truncated")


def index(source: ByteSource) -> TensorFile:
    """As `read`, without opening a data file: there are no values."""
    return _read(source)[0]


def read(source: ByteSource) -> TensorFile:
    file, places, left = _read(source)
    tensors, notes, foreign = list(file.tensors), list(file.notes), dict.fromkeys(file.foreign_globals)
    values: list[Part] = []
    spent = 0
    unread = []
    with Files() as files, sharing_room(left):
        for number, (name, (storage, transforms)) in enumerate(places):
            spent += storage.bytes if storage.bytes <= _MAX_VALUE else 0
            inner: TensorFile | str
            if transforms:
                inner = f"<{storage.bytes} bytes, packed with {', '.join(transforms)}>"
            elif storage.bytes > _MAX_VALUE or spent > _MAX_VALUES_BYTES or number >= _MAX_VALUES:
                inner = f"<{storage.bytes} bytes in {storage.name}>"
            else:
                inner = _value(files, storage)
            if isinstance(inner, str):
                values.append(Part("", {name: inner}))
                unread.append(name)
                continue
            values.append(Part(f"{name}.", inner.values, name))
            tensors.extend(_moved(name, tensor, storage) for tensor in inner.tensors)
            foreign.update(dict.fromkeys(inner.foreign_globals))
    if unread:
        first = ", ".join(map(shown, unread[:3])) + ", ..." * (len(unread) > 3)
        notes.append(f"{counted(len(unread), 'value')} not read: {first}")
    return file._replace(
        tensors=tuple(tensors), values=Joined(values), notes=tuple(notes), foreign_globals=tuple(foreign)
    )


def _read(source: ByteSource) -> tuple[TensorFile, Sequence[tuple[str, Slice]], int]:
    """What the index tells, where its values are, and the room that it left them."""
    tensors: list[TensorInfo] = []
    storages: list[Storage] = []
    alone = _is_alone(source)
    found = read_index(
        source,
        lambda _, place: storages.append(place.storage),
        lambda tensor: tensors.append(_tensor(source, tensor, alone)),
    )
    foreign = tuple(ForeignGlobal(name, False) for name in found.foreign)
    return (
        TensorFile(source.path, NAME, tuple(tensors), {}, foreign, tuple(storages), found.notes),
        found.values,
        found.room,
    )


def _is_alone(source: ByteSource) -> bool:
    """Whether no other rank has an index of its own."""
    return not _ONE_RANK.fullmatch(os.path.basename(source.path))


def _tensor(source: ByteSource, tensor: IndexedTensor, alone: bool) -> TensorInfo:
    """Its chunks must tile it, or, where other ranks have an index too, not lie over each other."""
    itemsize = ITEMSIZE[tensor.dtype]
    stride = contiguous_stride(tensor.shape)
    whole = TensorInfo(tensor.name, tensor.dtype, tensor.shape, stride, 0, itemsize, None, "chunked")
    if tensor.layout != "strided":
        return whole._replace(form=tensor.layout)
    fault = tiling_fault(tensor.shape, [(chunk.offsets, chunk.sizes) for chunk in tensor.chunks])
    if fault and (alone or not fault.startswith("its pieces hold")):
        raise Damaged(f"{source.path}: the chunks of tensor {quoted(tensor.name)} do not make it up: {fault}")
    pieces = tuple(
        (chunk.offsets, _piece(whole, chunk, chunk.place)) for chunk in tensor.chunks if chunk.place is not None
    )
    return whole._replace(form="slice" if fault else "chunked", pieces=pieces)


def _piece(whole: TensorInfo, chunk: Chunk, place: Slice) -> TensorInfo:
    form = f"packed with {', '.join(place.transforms)}" if place.transforms else "archived"
    stride = whole.stride if chunk.sizes == whole.shape else contiguous_stride(chunk.sizes)
    return whole._replace(shape=chunk.sizes, stride=stride, storage=place.storage, form=form)


def _value(files: Files, storage: Storage) -> TensorFile | str:
    """What a value's archive holds, or what stands for it where its file is not there or it is no archive of torch.

    Raises Damaged where it is not as it was written, and RunsCode.
    """
    try:
        window = Window(files.at(storage.file), storage.offset, storage.bytes)
        head = window.read_at(0, min(_HEAD, window.size))
    except CkptError:
        return f"<{storage.bytes} bytes in {storage.name}, which cannot be read>"
    # An index within an index could name itself.
    form = next((form for form in formats() if form.NAME != NAME and form.matches(head, window.size)), None)
    try:
        return form.read(window) if form else f"<{storage.bytes} bytes in {storage.name}>"
    except (Damaged, RunsCode) as error:
        error.path = error.path or storage.file
        raise
    except CkptError as error:
        what = (
            "which take more memory than they get unasked" if error.kind == Costly.kind else "in no form that is read"
        )
        return f"<{storage.bytes} bytes in {storage.name}, {what}>"


def _moved(name: str, tensor: TensorInfo, place: Storage) -> TensorInfo:
    """A tensor of a value's archive under its full name, its place counted from the data file's start."""
    storage = tensor.storage and tensor.storage._replace(offset=place.offset + tensor.storage.offset)
    pieces = tuple((key, _moved("", piece, place)) for key, piece in tensor.pieces)
    return tensor._replace(name=_below(name, tensor.name), storage=storage, pieces=pieces)


def _below(name: str, key: str) -> str:
    return name if key == "<root>" else f"{name}.{key}"
