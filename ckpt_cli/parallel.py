"""One model in several files of the same names, a file a model-parallel rank, as Meta publishes its larger ones.

Each file has a part of every matrix: rows of what Meta calls column-parallel (its `ColumnParallelLinear` computes
`x @ w.T`), columns of what it calls row-parallel; vectors whole. The embedding is cut by columns up to llama 2
(`ParallelEmbedding`) and by rows since llama 3 (`VocabParallelEmbedding`), which its width tells. After
meta-llama/llama and llama-models, `model.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import Files
from ckpt_cli.shapes import contiguous_stride
from ckpt_cli.tensor_file import Piece, TensorFile, TensorInfo
from ckpt_cli.tensors import digest

_ROWS = re.compile(r"layers\.[0-9]+\.(?:attention\.w[qkv]|feed_forward\.w[13])\.weight|output\.weight")
_COLUMNS = re.compile(r"layers\.[0-9]+\.(?:attention\.wo|feed_forward\.w2)\.weight")
_EMBEDDING, _NORM = "tok_embeddings.weight", "norm.weight"


def put_together(files: Sequence[TensorFile]) -> tuple[list[TensorFile], list[str]]:
    """The ranks' files as one, every tensor whole, and what is to be said; files of any other kind as they are.

    Raises Damaged where a rank's file is missing or lacks a tensor, CkptError, by name, for a tensor that is cut in a
    way that is not known.
    """
    ranks = [{tensor.name: tensor for tensor in file.tensors} for file in files]
    if len(ranks) < 2 or not all({_EMBEDDING, _NORM} <= rank.keys() for rank in ranks):
        return list(files), []
    for file, rank in zip(files, ranks):
        if odd := sorted(ranks[0].keys() ^ rank.keys()):
            what = f"{file.path} and {files[0].path} do not hold parts of the same tensors: {odd[0]!a} is in one alone"
            raise Damaged(what, path=file.path)
    width = ranks[0][_NORM].shape[0] if ranks[0][_NORM].shape else 0
    first = files[0]
    tensors: list[TensorInfo] = []
    said = [f"{len(files)} files of one model, with a part of every matrix in each, are put together"]
    for name in ranks[0]:
        parts = [rank[name] for rank in ranks]
        axis = _axis(first.path, name, parts, width)
        if axis is None and _differ(parts):
            said.append(f"{name} is not the same in all files: that of {first.path} is taken")
        tensors.append(parts[0] if axis is None else _side_by_side(first.path, parts, axis))
    outward = (t for t in tensors if _COLUMNS.fullmatch(t.name) and "attention" in t.name and len(t.shape) == 2)
    columns = next((tensor.shape[1] for tensor in outward), width)
    if columns != width:
        beside = counted(len(files) - 1, "file")
        what = f"{first.path} and {beside} beside it hold {columns} of {width} columns of each layer"
        raise Damaged(f"{what}: files are missing", path=first.path, kind="missing-part")
    storages = tuple(storage for file in files for storage in file.storages)
    notes = tuple(dict.fromkeys(note for file in files for note in file.notes))
    return [first._replace(tensors=tuple(tensors), storages=storages, notes=notes)], said


def _axis(path: str, name: str, parts: Sequence[TensorInfo], width: int) -> int | None:
    """The dimension along which a tensor is cut; None for one that every rank has whole."""
    shapes = {part.shape for part in parts}
    if len(shapes) == 1 and len(parts[0].shape) < 2:
        return None
    if name == _EMBEDDING:
        return 0 if all(part.shape[1:] == (width,) for part in parts) else 1
    if _ROWS.fullmatch(name):
        return 0
    if _COLUMNS.fullmatch(name):
        return 1
    what = f"{path}: tensor {name!a} lies in {len(parts)} files, and how it is cut is not known"
    raise CkptError(what, "--part FILE --to safetensors takes one file as it is")


def _differ(parts: Sequence[TensorInfo]) -> bool:
    with Files() as files:
        return len({digest(files, part) for part in parts}) > 1


def _side_by_side(path: str, parts: Sequence[TensorInfo], axis: int) -> TensorInfo:
    """Matrices (m, n_i) or (m_i, n) as one: (m, sum of n_i) or (sum of m_i, n)."""
    first = parts[0]
    if len({(part.dtype, len(part.shape), part.shape[1 - axis : 2 - axis]) for part in parts}) != 1 or (
        len(first.shape) != 2 or any(part.form != "strided" for part in parts)
    ):
        raise Damaged(f"{path}: the parts of tensor {first.name!a} do not fit side by side", path=path)
    pieces: list[Piece] = []
    at = 0
    for part in parts:
        pieces.append(((at, 0) if axis == 0 else (0, at), part))
        at += part.shape[axis]
    shape = (at, first.shape[1]) if axis == 0 else (first.shape[0], at)
    stride = contiguous_stride(shape)
    return first._replace(shape=shape, stride=stride, offset=0, storage=None, form="chunked", pieces=tuple(pieces))
