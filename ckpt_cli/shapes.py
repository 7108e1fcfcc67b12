"""Arithmetic of shapes: strides, and whether boxes tile a block, each element once. Numbers only, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins and how long it is, one number a dimension
# Comparisons of two boxes. What trainers write needs none (a grid) or few.
_MOST_COMPARISONS = 5_000_000


def tiling_fault(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Why `boxes` do not tile a tensor of `shape`, each element once; None where they do."""
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
        if compared > _MOST_COMPARISONS:
            return f"its {len(boxes)} pieces lie in no order"
        if any(
            all(b < o + n and o < b + s for b, s, o, n in zip(begin, size, other, length)) for other, length in beside
        ):
            return "two of its pieces overlap"
        beside.append((begin, size))
    return None


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one index to the next in each dimension, in C order."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
