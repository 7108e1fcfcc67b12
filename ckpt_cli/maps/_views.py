"""Tensors as other views of the bytes they have: transposed, cut, put end to end, rows in another order.

Nothing is read. What lies in pieces stays in pieces, each a view of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ckpt_cli.shapes import contiguous_stride
from ckpt_cli.tensor_file import Piece, TensorInfo

# How the rows of a head's rotated pairs lie: first halves and then second halves, or pair by pair.
Order = Literal["halves", "pairs"]


def transposed(tensor: TensorInfo) -> TensorInfo:
    """(m, n) as (n, m)."""
    pieces = tuple((_at(at)[::-1], transposed(piece)) for at, piece in tensor.pieces)
    return tensor._replace(shape=tensor.shape[::-1], stride=tensor.stride[::-1], pieces=pieces)


def rows(tensor: TensorInfo, first: int, count: int) -> TensorInfo:
    """`count` rows of (m, ...) from `first` on, as (count, ...)."""
    if count == tensor.shape[0]:
        return tensor
    shape = (count, *tensor.shape[1:])
    if tensor.form == "chunked":
        pieces = []
        for at, piece in tensor.pieces:
            begin = _at(at)
            low, high = max(first, begin[0]), min(first + count, begin[0] + piece.shape[0])
            if low < high:
                pieces.append(((low - first, *begin[1:]), rows(piece, low - begin[0], high - low)))
        return tensor._replace(shape=shape, pieces=tuple(pieces))
    return tensor._replace(shape=shape, offset=tensor.offset + first * tensor.stride[0])


def end_to_end(tensors: Sequence[TensorInfo]) -> TensorInfo:
    """Tensors (m_i, ...) below one another: (sum of m_i, ...), without a name but those of its pieces.

    They must agree in dtype and the other dimensions.
    """
    pieces: list[Piece] = []
    height = 0
    for tensor in tensors:
        for at, piece in tensor.pieces if tensor.form == "chunked" else (((0,) * len(tensor.shape), tensor),):
            begin = _at(at)
            pieces.append(((height + begin[0], *begin[1:]), piece._replace(name=tensor.name)))
        height += tensor.shape[0]
    first = tensors[0]
    shape = (height, *first.shape[1:])
    return TensorInfo(
        "", first.dtype, shape, contiguous_stride(shape), 0, first.itemsize, None, "chunked", pieces=tuple(pieces)
    )


def zeros(dtype: str, shape: tuple[int, ...], itemsize: int) -> TensorInfo:
    """A tensor of zeros, which has no bytes anywhere, and no name."""
    return TensorInfo("", dtype, shape, contiguous_stride(shape), 0, itemsize, None, "zeros")


def reordered(tensor: TensorInfo, heads: int, have: Order) -> TensorInfo:
    """The rows of each head of (heads * d, ...) from the order they have into the other one.

    Pairs to halves is w.view(heads, d/2, 2, ...).transpose(1, 2), halves to pairs w.view(heads, 2, d/2, ...)
    .transpose(1, 2): rotary embeddings turn neighbours in one, rows half a head apart in the other. d is even. The
    result has the four dimensions (three for a vector); in C order it is what is meant.
    """
    size = tensor.shape[0] // heads
    half = size // 2
    # Rows from one pair to the next, and from one member of a pair to the other.
    pair, member = (2, 1) if have == "pairs" else (1, half)
    rest = tensor.shape[1:]
    if tensor.form != "chunked":
        row, *inner = tensor.stride
        if have == "pairs":
            shape, stride = (heads, 2, half, *rest), (size * row, row, 2 * row, *inner)
        else:
            shape, stride = (heads, half, 2, *rest), (size * row, row, half * row, *inner)
        return tensor._replace(shape=shape, stride=stride)
    pieces: list[Piece] = []
    for at, piece in tensor.pieces:
        first, *column = _at(at)
        for head in range(first // size, -(-(first + piece.shape[0]) // size)):
            for half_of in (0, 1):
                begin = head * size + half_of * member
                # Those of the pairs whose row lies in the piece.
                low = max(0, -(-(first - begin) // pair))
                high = min(half, -(-(first + piece.shape[0] - begin) // pair))
                if low >= high:
                    continue
                count = high - low
                view = piece._replace(offset=piece.offset + (begin + low * pair - first) * piece.stride[0])
                step = pair * piece.stride[0]
                if have == "pairs":
                    place = (head, half_of, low, *column)
                    shape, stride = (1, 1, count, *piece.shape[1:]), (0, 0, step, *piece.stride[1:])
                else:
                    place = (head, low, half_of, *column)
                    shape, stride = (1, count, 1, *piece.shape[1:]), (0, step, 0, *piece.stride[1:])
                pieces.append((place, view._replace(shape=shape, stride=stride)))
    shape = (heads, 2, half, *rest) if have == "pairs" else (heads, half, 2, *rest)
    return tensor._replace(shape=shape, stride=contiguous_stride(shape), pieces=tuple(pieces))


def _at(key: str | tuple[int, ...]) -> tuple[int, ...]:
    assert not isinstance(key, str)
    return key
