"""Elements put into another order by numpy, where it is installed: a transpose is its everyday work."""

from __future__ import annotations

_TILE = 64


def turned(data: bytearray, shape: tuple[int, ...], stride: tuple[int, ...], item: int) -> bytearray | None:
    """The elements of a strided view of `data` in C order, `item` bytes each; None without numpy. Strides count
    elements."""
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
