"""Strided views of bytes, gathered in C order: contiguous little-endian elements in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ckpt_cli.formats import ByteSource
from ckpt_cli.tensor_file import TensorInfo

# Bytes gathered at a time.
BLOCK = 8 << 20
# Bytes that lie together and are moved as one: fewer go element by element. With more than a page each is read by
# itself, where what lies between is too much to be read.
_MIN_RUN = 32
_PAGE = 4096
# To load an array library takes as long as to turn this many bytes without one.
_WORTH_AN_ARRAY = 1 << 20
_TILE = 64
_TURNED = bytes(byte ^ 0x80 for byte in range(256))


def is_contiguous(tensor: TensorInfo) -> bool:
    """Whether its elements lie in the file in order and without gap, in little-endian order."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride)):
        if size != 1 and stride != step:
            return tensor.elements == 0
        step *= size
    return not (tensor.swapped or tensor.signs) or tensor.elements == 0


def gathered(source: ByteSource, tensor: TensorInfo, base: int) -> Iterator[bytearray]:
    """The tensor's elements in C order and little-endian, in blocks of about BLOCK at most.

    Its storage begins at byte `base` of `source`; the tensor is strided, its dtype any.
    """
    for block in _gathered(source, tensor, base):
        block = _swap(tensor, block) if tensor.swapped else block
        yield _sign(tensor, block) if tensor.signs else block


def _gathered(source: ByteSource, tensor: TensorInfo, base: int) -> Iterator[bytearray]:
    """The elements as they lie, block by block along the first dimension; neither a block nor what it spans is
    larger than BLOCK, as far as its dimensions can be divided."""
    shape, stride, item = tensor.shape, tensor.stride, tensor.itemsize
    if not shape or tensor.elements == 0:
        yield bytearray(source.read_at(base + tensor.offset * item, item) if tensor.elements else b"")
        return
    inner = math.prod(shape[1:]) * item
    if len(shape) > 1 and (inner > BLOCK or shape[0] == 1):
        for index in range(shape[0]):
            offset = tensor.offset + index * stride[0]
            yield from _gathered(source, tensor._replace(shape=shape[1:], stride=stride[1:], offset=offset), base)
        return
    rows = max(1, BLOCK // max(inner, 1))
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        yield _block(source, (count, *shape[1:]), stride, base + (tensor.offset + first * stride[0]) * item, item)


def _block(source: ByteSource, shape: tuple[int, ...], stride: tuple[int, ...], start: int, item: int) -> bytearray:
    """One block of a strided view whose first element lies at byte `start`, gathered in C order.

    It is read in strips along one dimension, each scattered to its places. Of a span that fits into memory the
    longest dimension makes the fewest strips; else the one whose elements lie closest together reads the least.
    """
    run, rest = _run(shape, stride, item)
    span = (1 + sum((size - 1) * hop for size, hop in zip(shape, stride))) * item
    if run >= _MIN_RUN and (span <= 2 * BLOCK or run >= _PAGE):
        return _runs(source, shape[:rest], stride[:rest], start, run, item, span)
    steps, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        steps[axis] = step
        step *= shape[axis]
    if step * item >= _WORTH_AN_ARRAY:
        gathered = _by_array(source, shape, stride, start, item, span)
        if gathered is not None:
            return gathered
    out = bytearray(step * item)
    width = item if item in (1, 2, 4, 8) else 8
    lanes = item // width
    target = _cells(out, width)
    if span <= BLOCK:
        window = memoryview(source.read_at(start, span))
        axis = max(range(len(shape)), key=lambda a: shape[a])
    else:
        window = None
        axis = min(range(len(shape)), key=lambda a: (shape[a] == 1 or not stride[a], stride[a]))

    def read(at: int, length: int) -> bytes | memoryview:
        return source.read_at(start + at, length) if window is None else window[at : at + length]

    for offset, place in _positions(shape, stride, steps, axis):
        strip = _cells(_strip(read, offset * item, shape[axis], stride[axis], item), width)
        for lane in range(lanes):
            first, hop = place * lanes + lane, steps[axis] * lanes
            target[first : first + (shape[axis] - 1) * hop + 1 : hop] = strip[lane::lanes]
    return out


def _run(shape: tuple[int, ...], stride: tuple[int, ...], item: int) -> tuple[int, int]:
    """How many bytes lie together as they should, and how many dimensions there are before those that they span."""
    run, rest = 1, len(shape)
    while rest and (shape[rest - 1] == 1 or stride[rest - 1] == run):
        run *= shape[rest - 1]
        rest -= 1
    return run * item, rest


def _runs(
    source: ByteSource, shape: tuple[int, ...], stride: tuple[int, ...], start: int, run: int, item: int, span: int
) -> bytearray:
    """The block that is runs of bytes in another order: of permuted rows, of columns cut out of rows."""
    places = [0]
    for size, hop in zip(shape, stride):
        places = [place + index * hop * item for place in places for index in range(size)]
    if span <= 2 * BLOCK:
        window = memoryview(bytearray(span))
        source.read_into(start, window)
        return bytearray().join([window[place : place + run] for place in places])
    out = bytearray(len(places) * run)
    view = memoryview(out)
    for number, place in enumerate(places):
        source.read_into(start + place, view[number * run : (number + 1) * run])
    return out


def _by_array(
    source: ByteSource, shape: tuple[int, ...], stride: tuple[int, ...], start: int, item: int, span: int
) -> bytearray | None:
    """The block by an array library, which turns it several times faster; None where there is none.

    Of a span that is too long to be read whole, strips of what lies closest together are.
    """
    if span <= 4 * BLOCK:
        window = bytearray(span)
        source.read_into(start, memoryview(window))
        return _turned(window, shape, stride, item)
    axis = min(range(len(shape)), key=lambda a: (shape[a] == 1 or not stride[a], stride[a]))
    if stride[axis] != 1 or shape[axis] == 1:
        return None
    others = [a for a in range(len(shape)) if a != axis]
    strips = bytearray(math.prod(shape) * item)
    view, length, at = memoryview(strips), shape[axis] * item, 0
    for offset, _ in _positions(shape, stride, [0] * len(shape), axis):
        source.read_into(start + offset * item, view[at : at + length])
        at += length
    inner, steps = length // item, [0] * len(shape)
    steps[axis] = 1
    for a in reversed(others):
        steps[a] = inner
        inner *= shape[a]
    return _turned(strips, shape, tuple(steps), item)


def _turned(data: bytearray, shape: tuple[int, ...], stride: tuple[int, ...], item: int) -> bytearray | None:
    """The elements of a strided view of `data` in C order by numpy, `item` bytes each; None where it is not installed.
    Strides count elements."""
    try:
        import numpy
    except ImportError:
        return None
    dtype = f"u{item}" if item in (1, 2, 4, 8) else f"V{item}"
    view = numpy.ndarray(shape, dtype, data, strides=[step * item for step in stride])
    out = bytearray(view.size * item)
    target = numpy.ndarray(shape, dtype, out)
    # A few at a time along the last dimension, so that what is read and what is written both stay in the cache.
    for first in range(0, shape[-1], _TILE):
        target[..., first : first + _TILE] = view[..., first : first + _TILE]
    return out


def _strip(read: Callable[[int, int], bytes | memoryview], at: int, count: int, hop: int, item: int) -> bytes:
    """`count` elements that lie `hop` elements apart, from byte `at` on, packed together."""
    if not hop:
        return bytes(read(at, item)) * count
    most = max(1, BLOCK // (hop * item))
    if count > most:
        parts = range(0, count, most)
        return b"".join(_strip(read, at + n * hop * item, min(most, count - n), hop, item) for n in parts)
    data = read(at, ((count - 1) * hop + 1) * item)
    if hop == 1:
        return bytes(data)
    width = item if item in (1, 2, 4, 8) else 8
    lanes = item // width
    cells, packed = _cells(data, width), bytearray(count * item)
    target = _cells(packed, width)
    for lane in range(lanes):
        target[lane::lanes] = cells[lane :: hop * lanes]
    return bytes(packed)


def _cells(data: bytes | bytearray | memoryview, width: int) -> memoryview:
    """The bytes as a sequence of items of 1, 2, 4 or 8 bytes, which slices with a step."""
    view = memoryview(data)
    return view.cast("B") if width == 1 else view.cast("H") if width == 2 else view.cast("I" if width == 4 else "Q")


def _positions(
    shape: tuple[int, ...], stride: tuple[int, ...], steps: list[int], axis: int
) -> Iterator[tuple[int, int]]:
    """(offset in the source, place in the block), in elements, of each strip along `axis`."""
    others = [a for a in range(len(shape)) if a != axis]
    index = [0] * len(others)
    while True:
        yield (
            sum(i * stride[a] for i, a in zip(index, others)),
            sum(i * steps[a] for i, a in zip(index, others)),
        )
        for position in reversed(range(len(others))):
            index[position] += 1
            if index[position] < shape[others[position]]:
                break
            index[position] = 0
        else:
            return


def _swap(tensor: TensorInfo, block: bytearray) -> bytearray:
    """Big-endian elements turned round; a complex number is two of them."""
    width = tensor.itemsize // 2 if tensor.dtype.startswith("complex") else tensor.itemsize
    out = bytearray(len(block))
    for byte in range(width):
        out[byte::width] = block[width - 1 - byte :: width]
    return out


def _sign(tensor: TensorInfo, block: bytearray) -> bytearray:
    """Little-endian floats with their signs turned: all of them, or the imaginary halves."""
    width = tensor.itemsize
    every = width // 2 if tensor.dtype.startswith("complex") and tensor.signs == "negated" else width
    block[every - 1 :: every] = block[every - 1 :: every].translate(_TURNED)
    return block
