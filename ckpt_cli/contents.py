"""Which files make up the model, the optimizer or a named part of a checkpoint, and what these hold together.

A tensor may lie in slices in several files of a set (what torch's Hugging Face writer leaves, a distributed checkpoint
saved without collectives): read together they are one tensor, and a slice alone never passes for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from shlex import quote
from typing import Any

from ckpt_cli.checkpoint import Checkpoint, Part, Role
from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import FileSource
from ckpt_cli.formats._joined import Joined, streamed
from ckpt_cli.formats._joined import Part as Named
from ckpt_cli.shapes import contiguous_stride, tiling_fault
from ckpt_cli.tensor_file import Piece, TensorFile, TensorInfo
from ckpt_cli.tensors import read_index, read_tensors

# Of a checkpoint, but nothing that holds tensors.
_BESIDE = (".json", ".sha256", ".keep")
# The roles that --part names; else it is the path of a file.
PARTS: tuple[Role, ...] = ("model", "optimizer", "adapter")
_MAY_HOLD_OPTIMIZER: tuple[Role, ...] = ("optimizer", "recipe", "model")
# Files that are read together, and whose shard they are.
FileSet = tuple[list[str], "int | None"]
# A file of torch's Hugging Face writer that no rank has alone: it tells of whole tensors too where they begin.
_WHOLE = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_DATA_FILE = re.compile(r"(__[0-9]+)_[0-9]+\.distcp")


def paths_of(file: str | None, checkpoint: Checkpoint | None, part: str | None) -> list[str]:
    """The files to read: the one that was named, or those of a part: `model`, `optimizer`, or the path of one.

    Where an index is itself in a tensor format (a DCP `.metadata`), it is read instead of its data files. Raises
    CkptError where the checkpoint has no such part.
    """
    if part is None and file and not file.endswith(_BESIDE):
        return [file]
    if checkpoint is None:
        return [file] if file else []
    if part is None or part in PARTS:
        role: Role = part or "model"
        paths = _of_role(checkpoint, role)
        # Of a model that was tuned beside it, the adapter may be all that was saved.
        if not paths and part is None:
            paths = _of_role(checkpoint, "adapter")
        if not paths:
            hint = "its index has everything: --filter 'optim*' picks from it" if indexes_of(checkpoint) else None
            raise CkptError(f"{checkpoint.ref} has no {role} file", hint)
        return paths
    paths = [p.path for p in checkpoint.parts if part == os.path.basename(p.path) or _same(part, p.path)]
    if not paths:
        names = ", ".join(p.path.rsplit("/", 1)[-1] for p in checkpoint.parts)
        hint = f"--part takes {', '.join(PARTS)}, or one of its files: {names}"
        raise CkptError(f"{checkpoint.ref} has no part {part!a}", hint)
    return paths


def _of_role(checkpoint: Checkpoint, role: Role) -> list[str]:
    """The files of a role, those that an index beside them describes left out for it; of indexes, those of the model
    where data files of the model lie with them."""
    parts = checkpoint.having(role)
    described = {os.path.dirname(part.path) for part in parts if part.path.endswith(".distcp")}
    indexes = [part for part in indexes_of(checkpoint) if os.path.dirname(part.path) in described]
    covered = {os.path.dirname(part.path) for part in indexes}
    return [part.path for part in (*indexes, *(p for p in parts if os.path.dirname(p.path) not in covered))]


def indexes_of(checkpoint: Checkpoint) -> list[Part]:
    """The parts that say in a tensor format what the data files of the model hold."""
    return [part for part in checkpoint.having("index") if not part.path.endswith(".json")]


def optimizer_files(checkpoint: Checkpoint) -> Iterator[tuple[Role, list[FileSet]]]:
    """Where an optimizer may lie, in files of its own first: of each role the sets of files that are read together."""
    for role in _MAY_HOLD_OPTIMIZER:
        indexes = indexes_of(checkpoint) if role == "model" else []
        sets: list[FileSet] = [([part.path], part.rank) for part in checkpoint.having(role)]
        yield role, [([part.path for part in indexes], None)] if indexes else sets


def read_files(paths: Sequence[str]) -> list[TensorFile]:
    """What each file holds, in order. Slices of one tensor are one chunked tensor of the first file that has one.

    Raises Damaged, with the tensor's name, where slices leave a gap or overlap.
    """
    files = [_read(path) for path in paths]
    slices: dict[str, list[TensorInfo]] = {t.name: [] for file in files for t in file.tensors if t.form == "slice"}
    if not slices:
        return files
    if len(files) == 1 and not _WHOLE.fullmatch(os.path.basename(paths[0])):
        note = f"{counted(len(slices), 'tensor')} in slices, which continue in other files"
        return [files[0]._replace(notes=(*files[0].notes, note))]
    for file in files:
        for tensor in file.tensors:
            # One rank's index may have all of a tensor, and another's an empty slice of it.
            if tensor.name in slices and tensor.form in ("slice", "chunked"):
                slices[tensor.name].append(tensor)
    whole = {name: _join(name, found, files[0].path) for name, found in slices.items()}
    read = []
    for file in files:
        tensors = [
            whole.pop(t.name, None) if t.name in slices and t.form in ("slice", "chunked") else t for t in file.tensors
        ]
        read.append(file._replace(tensors=tuple(tensor for tensor in tensors if tensor)))
    return read


def as_one(files: Sequence[TensorFile]) -> TensorFile:
    """What several files hold that describe one thing together, as if the first held it all."""
    if len(files) == 1:
        return files[0]
    values = {name: value for file in files for name, value in file.values.items()}
    return files[0]._replace(tensors=tuple(tensor for file in files for tensor in file.tensors), values=values)


def values_of(files: Sequence[TensorFile]) -> Mapping[str, Any]:
    """Everything that is no tensor, by name; of several files with the file's name before it.

    A list of very many plain values may be an iterator over them.
    """
    if len(files) == 1:
        return streamed(files[0].values)
    return Joined([Named(f"{os.path.basename(file.path)}:", streamed(file.values)) for file in files])


def _join(name: str, slices: Sequence[TensorInfo], path: str) -> TensorInfo:
    """The tensor whose slices these are. A slice from an index knows the whole shape, any other only where it ends."""
    first = slices[0]
    rank = len(first.shape)
    if any(tensor.dtype != first.dtype or len(tensor.shape) != rank for tensor in slices):
        raise Damaged(f"{path}: the slices of tensor {name!a} differ in dtype or dimensions", path=path)
    # Replicas have the same slice.
    pieces: dict[tuple[int, ...], TensorInfo] = {}
    ends = [[0] * rank]
    for tensor in slices:
        if tensor.storage is None:
            ends.append(list(tensor.shape))
        for at, piece in tensor.pieces:
            assert not isinstance(at, str)
            ends.append([begin + size for begin, size in zip(at, piece.shape)])
            if 0 in piece.shape:
                continue
            if pieces.get(at, piece).shape != piece.shape:
                raise Damaged(f"{path}: tensor {name!a} has two slices at {list(at)}", path=path)
            pieces.setdefault(at, piece)
    shape = tuple(map(max, zip(*ends)))
    fault = tiling_fault(shape, [(at, piece.shape) for at, piece in pieces.items()])
    if fault:
        raise Damaged(f"{path}: the slices of tensor {name!a} do not make it up: {fault}", path=path)
    ordered: tuple[Piece, ...] = tuple(sorted(pieces.items()))
    return first._replace(shape=shape, stride=contiguous_stride(shape), storage=None, form="chunked", pieces=ordered)


def _read(path: str) -> TensorFile:
    try:
        file = read_tensors(path)
    except CkptError as error:
        if not _begins_as_zip(path):
            raise
        data = _DATA_FILE.fullmatch(os.path.basename(path))
        index = _index_beside(path)
        if not (data or index):
            raise
        what = f"{path} is a data file of a distributed checkpoint"
        if index is None:
            raise CkptError(f"{what}, and no .metadata beside it says what lies in it", path=path) from error
        raise CkptError(
            f"{what}; its {os.path.basename(index)} says what lies in it",
            f"`ckpt inspect tensors {quote(os.path.dirname(path) or '.')}` reads them together",
            path,
        ) from error
    if _DATA_FILE.fullmatch(os.path.basename(path)) and _index_beside(path):
        return file._replace(
            notes=(*file.notes, "one entry of a distributed checkpoint, which may be a part of a tensor")
        )
    return file


def _index_beside(path: str) -> str | None:
    """The index in the same directory that names the file as one of its data files."""
    folder, name = os.path.split(path)
    data = _DATA_FILE.fullmatch(name)
    for index in (".metadata", *([f"{data[1]}.metadata"] if data else [])):
        place = os.path.join(folder, index)
        try:
            if any(os.path.basename(storage.file) == name for storage in read_index(place).storages):
                return place
        except CkptError:
            continue
    return None


def _begins_as_zip(path: str) -> bool:
    with FileSource(path) as source:
        return source.size >= 4 and source.read_at(0, 4) == b"PK\3\4"


def _same(one: str, other: str) -> bool:
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(other)
