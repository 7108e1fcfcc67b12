"""Arithmetic of shapes: strides, and whether boxes tile a block, each element once. Numbers only, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# More than torch computes with, and a bound on what a tensor's description costs.
_MAX_DIMENSIONS = 64
# Of one dimension, as torch counts; of strides and places, which reach into a file. No file is as long as MAX_PLACE,
# and of larger numbers as many as one likes have the same hash, Python's modulo 2**61 - 1.
MAX_SIZE, MAX_PLACE = 2**63 - 1, 2**61 - 2
# Of a whole tensor without bytes of its own, or that repeats one: a number that a float can hold too.
MAX_BYTES = 2**128
Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins and how long it is, one number a dimension
# Comparisons of two boxes, at all and for each box. What trainers write needs none (a grid) or few.
_COMPARISONS, _COMPARISONS_PER_BOX = 10_000, 300


def tiling_fault(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Why `boxes` do not tile a tensor of `shape`, each element once; None where they do."""
    if len(boxes) == 1 and tuple(boxes[0][1]) == tuple(shape) and boxes[0][0] == (0,) * len(shape):  # as most are
        return None
    for begin, size in boxes:
        if len(begin) != len(shape) or len(size) != len(shape):
            return "a piece has another number of dimensions"
    # Of a dimension that does not divide evenly the last pieces are empty, and lie anywhere.
    boxes = [box for box in boxes if 0 not in box[1]]
    for begin, size in boxes:
        if any(b < 0 or s < 0 or b + s > n for b, s, n in zip(begin, size, shape)):
            return f"the piece at {list(begin)} reaches beyond the shape {list(shape)}"
    if 0 in shape:
        return None
    total = sum(math.prod(size) for _, size in boxes)
    if total < math.prod(shape):
        return f"its pieces hold {total} of {math.prod(shape)} elements"
    if total > math.prod(shape):
        return "two of its pieces overlap"
    return None if _is_grid(shape, boxes) else _overlap(boxes)


def _is_grid(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Whether the boxes are the cells of a grid: every combination of one cut a dimension, and as long as it."""
    cuts = [sorted({begin[axis] for begin, _ in boxes}) for axis in range(len(shape))]
    if math.prod(map(len, cuts)) != len(boxes) or len({begin for begin, _ in boxes}) != len(boxes):
        return False
    ends = [dict(zip(starts, [*starts[1:], size])) for starts, size in zip(cuts, shape)]
    return all(b + s == end[b] for begin, size in boxes for b, s, end in zip(begin, size, ends))


def _overlap(boxes: Sequence[Box]) -> str | None:
    """Why two boxes share an element: a sweep along the dimension with the most cuts, each against those beside it."""
    if not boxes[0][0]:
        return None if len(boxes) == 1 else "two of its pieces overlap"
    axis = max(range(len(boxes[0][0])), key=lambda axis: len({begin[axis] for begin, _ in boxes}))
    beside: list[Box] = []
    compared = 0
    for begin, size in sorted(boxes, key=lambda box: box[0][axis]):
        beside = [box for box in beside if box[0][axis] + box[1][axis] > begin[axis]]
        compared += len(beside)
        if compared > _COMPARISONS + _COMPARISONS_PER_BOX * len(boxes):
            return f"its {len(boxes)} pieces lie in no order"
        if any(
            all(b < o + n and o < b + s for b, s, o, n in zip(begin, size, other, length)) for other, length in beside
        ):
            return "two of its pieces overlap"
        beside.append((begin, size))
    return None


def are_sizes(value: Any, most: int = MAX_SIZE) -> bool:
    """Whether a value from a file can be a shape, a stride or offsets: numbers from 0 to `most`, not too many."""
    if not isinstance(value, (tuple, list)) or len(value) > _MAX_DIMENSIONS:
        return False
    # Not all() of them: it is asked of every tensor, and would take three times as long.
    for size in value:  # noqa: SIM110
        if type(size) is not int or not 0 <= size <= most:
            return False
    return True


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a dense tensor: elements from one index to the next in each dimension, in C order; none beyond MAX_SIZE.

    A shape without elements may have any number of dimensions, whose product has as many digits.
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step = min(step * max(size, 1), MAX_SIZE)
    return tuple(reversed(strides))
