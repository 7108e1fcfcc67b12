"""A tensor that lies in pieces, one beside the other in many dimensions, as the stream of bytes it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

from ckpt_cli.shapes import Box
from ckpt_cli.tensor_file import Piece, TensorInfo
from ckpt_cli.views import BLOCK


def joined(tensor: TensorInfo, read: Callable[[TensorInfo], Iterable[memoryview]]) -> Iterator[memoryview]:
    """The bytes of a chunked tensor in C order, in blocks of about views.BLOCK at most.

    Its pieces must be strided; `read` streams the bytes of one. Each byte that no piece covers is zero: whether
    they tile is asked by `shapes.tiling_fault`.
    """
    ordered = sorted(tensor.pieces, key=lambda pair: pair[0])
    if _are_rows(tensor.shape, ordered):
        for _, piece in ordered:
            yield from read(piece)
        return
    for begin, size in _regions(tensor.shape, tensor.itemsize):
        block = bytearray(math.prod(size) * tensor.itemsize)
        for at, piece in tensor.pieces:
            assert not isinstance(at, str)
            _paste(block, begin, size, at, piece, read)
        yield memoryview(block)


def _are_rows(shape: Sequence[int], pieces: Sequence[Piece]) -> bool:
    """Whether the pieces, in this order, lie end to end along the first dimension, and are whole in all others."""
    row = 0
    for at, piece in pieces:
        if not shape or isinstance(at, str) or at != (row, *(0,) * (len(shape) - 1)) or piece.shape[1:] != shape[1:]:
            return False
        row += piece.shape[0]
    return bool(shape) and row == shape[0]


def _regions(shape: Sequence[int], itemsize: int) -> Iterator[Box]:
    """Boxes of at most BLOCK bytes, in the order of the bytes they are: rows, or parts of one row."""
    split = 0
    while split < len(shape) and math.prod(shape[split + 1 :]) * itemsize > BLOCK:
        split += 1
    if split == len(shape):
        yield from ((at, (1,) * split) for at in product(*map(range, shape)))
        return
    rows = max(1, BLOCK // max(1, math.prod(shape[split + 1 :]) * itemsize))
    rest = tuple(shape[split + 1 :])
    for lead in product(*map(range, shape[:split])):
        for first in range(0, shape[split], rows):
            size = (*(1,) * split, min(rows, shape[split] - first), *rest)
            yield (*lead, first, *(0,) * len(rest)), size


def _paste(
    block: bytearray,
    begin: Sequence[int],
    size: Sequence[int],
    at: Sequence[int],
    piece: TensorInfo,
    read: Callable[[TensorInfo], Iterable[memoryview]],
) -> None:
    """Puts what a piece that begins at `at` has of the box into its block."""
    low = [max(b, a) for b, a in zip(begin, at)]
    high = [min(b + s, a + n) for b, s, a, n in zip(begin, size, at, piece.shape)]
    if any(first >= last for first, last in zip(low, high)):
        return
    inner = tuple(last - first for first, last in zip(low, high))
    skip = sum((first - a) * stride for first, a, stride in zip(low, at, piece.stride))
    data = b"".join(read(piece._replace(shape=inner, offset=piece.offset + skip)))
    # Runs: the innermost dimensions that the box has in full are one stretch of bytes.
    axis = len(inner)
    run = piece.itemsize
    while axis and (axis == len(inner) or inner[axis] == size[axis]):
        axis -= 1
        run *= inner[axis]
    steps = [math.prod(size[i + 1 :]) * piece.itemsize for i in range(len(size))]
    base = sum((first - b) * step for first, b, step in zip(low, begin, steps))
    for number, index in enumerate(product(*map(range, inner[:axis]))):
        place = base + sum(i * step for i, step in zip(index, steps))
        block[place : place + run] = data[number * run : number * run + run]
