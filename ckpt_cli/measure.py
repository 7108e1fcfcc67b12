"""How far two tensors lie apart: the largest absolute change and the relative norm, block by block, with torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

# What torch widens to float64 or complex128. It has no arithmetic for the others, and dies of some of them.
DTYPES = frozenset(
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu "
    "complex128 complex64 complex32 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()
)
_LONG = ("int64", "uint64")
# Elements at a time: they stay in the cache, and are too few for torch to divide among threads, which wait for each
# other many times longer than they work where the machine is busy.
_ELEMENTS = 1 << 14


class Amount(NamedTuple):
    """`max_abs` is max |b - a|, `relative_norm` is ||b - a|| / ||a|| (Frobenius), `nan` counts the elements that are
    NaN on one side only.

    With one such element both figures are NaN; with an infinity on one side `max_abs` is infinite. A norm of nothing
    but zeros makes `relative_norm` infinite, or 0 where nothing changed.
    """

    max_abs: float
    relative_norm: float
    nan: int


class Meter:
    """Adds up the change from tensor `a` to tensor `b`, whose dtypes (of DTYPES) may differ.

    Every element is widened to float64 (complex128 where either side is complex, then by magnitude) and sums are kept
    in float64. An element that is NaN on both sides, or the same infinity, has not changed and counts in no norm.
    """

    def __init__(self, a: str, b: str) -> None:
        import torch

        self.dtypes: tuple[torch.dtype, torch.dtype] = (getattr(torch, a), getattr(torch, b))
        self.wide = torch.complex128 if "complex" in a + b else torch.float64
        self.long = a in _LONG and b in _LONG
        self.top = self.change = self.norm = 0.0
        self.nan = 0

    def add(self, a: memoryview, b: memoryview) -> None:
        """Takes the little-endian bytes of the next elements, as many of one side as of the other."""
        size, other = (dtype.itemsize for dtype in self.dtypes)
        for at in range(0, len(a) // size, _ELEMENTS):
            self._add(a[at * size : (at + _ELEMENTS) * size], b[at * other : (at + _ELEMENTS) * other])

    def _add(self, a: memoryview, b: memoryview) -> None:
        import torch

        old, new = (torch.frombuffer(side, dtype=dtype) for side, dtype in zip((a, b), self.dtypes))
        wide, other = old.to(self.wide), new.to(self.wide)
        change = _long_change(old, new) if self.long else (other - wide).abs()
        top = change.max().item()
        if not math.isfinite(top):
            self.nan += int((wide.isnan() ^ other.isnan()).sum())
            same = (wide == other) | (wide.isnan() & other.isnan())
            change = change.masked_fill(same, 0)
            wide = wide.masked_fill(same & ~wide.isfinite(), 0)
            top = change.max().item()
        if top > self.top or math.isnan(top):
            self.top = top
        self.change += change.square().sum().item()
        self.norm += wide.abs().square().sum().item()

    def amount(self) -> Amount:
        if self.norm:
            relative = math.sqrt(self.change) / math.sqrt(self.norm)
        else:
            relative = 0.0 if self.change == 0 else self.change * math.inf
        return Amount(self.top, relative, self.nan)


def _long_change(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|b - a| of integers of 64 bits, in float64: their halves are subtracted, which loses nothing before the sum."""
    import torch

    halves = []
    for side in (a, b):
        raw = side.view(torch.int64)
        high = raw >> 32
        halves.append((high & 0xFFFFFFFF if side.dtype == torch.uint64 else high, raw & 0xFFFFFFFF))
    (high_a, low_a), (high_b, low_b) = halves
    return ((high_b - high_a).double() * 2.0**32 + (low_b - low_a).double()).abs()
