"""The numbers in a tensor, summed up as its bytes stream by: min, max, mean, std, NaN, infinities, zeros.

Sums are float64; blocks are put together by the formula of Chan, Golub and LeVeque (1979), which loses nothing
where a mean is large against the deviations from it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ckpt_cli.decoding import INTEGERS, Arrays, arrays, countable
from ckpt_cli.formats import Files
from ckpt_cli.tensor_file import TensorInfo
from ckpt_cli.tensors import checked_blocks, readable

# Elements summed up at a time: as float64 they stay in the cache.
CHUNK = 1 << 14


class Stats(NamedTuple):
    """min, max, mean and std are those of the finite values, None where there are none (or none that a float holds).

    std divides by n - 1, as torch does, and is None for one value alone. Integers keep min and max exact; a bool
    counts as 0 or 1, a complex number by its magnitude, an element of float4_e2m1fn_x2 as the two numbers it is.
    """

    min: int | float | None
    max: int | float | None
    mean: float | None
    std: float | None
    nan: int
    inf: int
    zeros: int


class Reading(NamedTuple):
    """What the bytes of a tensor told; None where they cannot be read. `parts` are the digests of named pieces."""

    sha256: str | None = None
    stats: Stats | None = None
    parts: dict[str, str | None] = {}  # noqa: RUF012


def readings(
    files: Files, tensors: Iterable[TensorInfo], hashes: bool, stats: bool, advance: Callable[[int], None] | None = None
) -> Iterator[Reading]:
    """A Reading for each tensor: digest and sums from one pass; tied tensors are read once.

    Raises Damaged, naming the record, where what is read does not fit its CRC32. `advance` is told the bytes done.
    """
    checked: set[tuple[str, int]] = set()
    known: dict[TensorInfo, Reading] = {}
    for tensor in tensors:
        view = tensor._replace(name="")
        if view not in known:
            known[view] = _read(files, tensor, hashes, stats, checked)
        if advance:
            advance(tensor.bytes)
        yield known[view]


def _read(files: Files, tensor: TensorInfo, hashes: bool, stats: bool, checked: set[tuple[str, int]]) -> Reading:
    if readable(tensor):
        named = [(at, piece) for at, piece in tensor.pieces if isinstance(at, str)] if hashes else []
        return Reading(parts={at: _read(files, piece, True, False, checked).sha256 for at, piece in named})
    state = hashlib.sha256() if hashes else None
    sums = _NOTHING
    kit = arrays() if stats and countable(tensor.dtype) else None
    for block in checked_blocks(files, tensor, checked):
        if state:
            state.update(block)
        if kit:
            sums = _add(sums, _sum_up(kit, block, tensor))
    return Reading(state.hexdigest() if state else None, _finished(sums) if kit else None)


class _Sums(NamedTuple):
    """`squares` is the sum of squared deviations from the mean, `number` counts the finite values."""

    number: int
    mean: float
    squares: float
    low: int | float
    high: int | float
    nan: int
    inf: int
    zeros: int


_NOTHING = _Sums(0, 0.0, 0.0, math.inf, -math.inf, 0, 0, 0)


def _sum_up(kit: Arrays, block: memoryview, tensor: TensorInfo) -> _Sums:
    sums = _NOTHING
    step = CHUNK * tensor.itemsize
    with kit.quiet():
        for at in range(0, len(block), step):
            sums = _add(sums, _sum_chunk(kit, block[at : at + step], tensor.dtype))
    return sums


def _sum_chunk(kit: Arrays, data: memoryview, dtype: str) -> _Sums:
    values = kit.decode(data, dtype)
    wide = kit.widen(values)
    total, nan, inf = float(wide.sum()), 0, 0
    if not math.isfinite(total):
        nan = int(kit.module.count_nonzero(kit.module.isnan(wide)))
        inf = int(kit.module.count_nonzero(kit.module.isinf(wide)))
        wide = wide[kit.module.isfinite(wide)]
        total = float(wide.sum())
    count = len(wide)
    if not count:
        return _NOTHING._replace(nan=nan, inf=inf)
    # The sum of finite values may be none that a float holds; their mean is.
    mean = total / count if math.isfinite(total) else float((wide / count).sum())
    low: int | float
    high: int | float
    if dtype == "uint64":  # beyond 2**53 a float64 would round, and torch compares no unsigned ones
        cells = data.cast("B").cast("Q")
        low, high = min(cells), max(cells)
    elif dtype == "int64":
        low, high = int(values.min()), int(values.max())
    else:
        low, high = float(wide.min()), float(wide.max())
        if dtype in INTEGERS:
            low, high = int(low), int(high)
    zeros = int(kit.module.count_nonzero(wide == 0))
    deviations = wide - mean
    # Not dot: it sets threads to so little work that they mostly wait for each other.
    squares = float(kit.module.einsum("i,i", deviations, deviations))
    return _Sums(count, mean, squares, low, high, nan, inf, zeros)


def _add(one: _Sums, other: _Sums) -> _Sums:
    """The sums of both together (Chan, Golub and LeVeque)."""
    count = one.number + other.number
    nan, inf, zeros = one.nan + other.nan, one.inf + other.inf, one.zeros + other.zeros
    if not one.number or not other.number:
        return (other if other.number else one)._replace(nan=nan, inf=inf, zeros=zeros)
    share = other.number / count
    # Halves, for the difference of two numbers near the largest is none that a float holds.
    apart = other.mean - one.mean
    mean = one.mean + apart * share if math.isfinite(apart) else one.mean * (1 - share) + other.mean * share
    squares = one.squares + other.squares + apart * apart * one.number * share
    return _Sums(count, mean, squares, min(one.low, other.low), max(one.high, other.high), nan, inf, zeros)


def _finished(sums: _Sums) -> Stats:
    if not sums.number:
        return Stats(None, None, None, None, sums.nan, sums.inf, sums.zeros)
    variance = sums.squares / (sums.number - 1) if sums.number > 1 else math.nan
    std = math.sqrt(variance) if math.isfinite(variance) else None
    mean = sums.mean if math.isfinite(sums.mean) else None
    return Stats(sums.low, sums.high, mean, std, sums.nan, sums.inf, sums.zeros)
