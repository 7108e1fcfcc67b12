"""Floating-point numbers from one dtype to another, block by block, as torch's `.to(dtype)` has them, bit for bit.

numpy does it where it is installed, for it loads in a tenth of torch's time; else torch does. All goes through
float32, as in torch: so float64 is rounded twice on its way to 16 bits. What becomes of a NaN is what torch 2.13
makes of it on x86: of float32 and float64 (there in all but the last few elements), bfloat16 gets 0xFFFF, of any
other dtype 0x7FC0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from ckpt_cli.decoding import small_floats
from ckpt_cli.errors import CkptError

# As --dtype has them; torch's own names do as well.
DTYPES = ("bf16", "fp16", "fp32", "fp64")
_WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_SHORT = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16",
          "double": "float64", "float": "float32"}  # fmt: skip
_SMALL = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_CODES = {"float64": "<f8", "float32": "<f4", "float16": "<f2"}

Cast = Callable[[memoryview], memoryview]


def target_dtype(word: str) -> str:
    """torch's name of the dtype that --dtype names; raises CkptError for one that nothing is cast to."""
    name = _SHORT.get(word.lower(), word.lower().removeprefix("torch."))
    if name not in _WIDTHS:
        raise CkptError(f"{word!a} is no dtype to cast to: {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    return name


def is_float(dtype: str) -> bool:
    """Whether a cast concerns it: integers, booleans and complex numbers stay as they are."""
    return dtype in _WIDTHS or dtype.startswith("float")


def refusal(dtype: str) -> str | None:
    """Why a floating-point dtype cannot be cast, or None."""
    if dtype in _WIDTHS or dtype in _SMALL:
        return None
    return f"{dtype} holds scales or packed halves, which are no numbers of their own"


def cast(blocks: Iterable[memoryview], source: str, target: str) -> Iterator[memoryview]:
    """The blocks, each of whole elements, as elements of the dtype `target`."""
    convert = _with(source, target)
    for block in blocks:
        yield convert(block)


@cache
def _with(source: str, target: str) -> Cast:
    try:
        import numpy
    except ImportError:
        return torch_cast(source, target)
    return numpy_cast(numpy, source, target)


def numpy_cast(numpy: Any, source: str, target: str) -> Cast:
    """The cast from one dtype to another by numpy, in the bits that torch makes."""
    widen = _widener(numpy, source)

    def to_bfloat16(data: memoryview) -> Any:
        bits = widen(data).view("<u4")
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        # Half of the last place that stays, less one unless it is odd: ties go to even.
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        out = rounded.astype("<u2")
        if nan.any():
            out[nan] = 0xFFFF if source in ("float32", "float64") else 0x7FC0
        return out

    def to_float16(data: memoryview) -> Any:
        wide = widen(data)
        out = wide.astype("<f2").view("<u2")
        nan = numpy.isnan(wide)
        if nan.any():
            bits = wide.view("<u4")[nan]
            out[nan] = bits >> 16 & 0x8000 | 0x7E00 | bits >> 13 & 0x1FF
        return out

    makers = {"bfloat16": to_bfloat16, "float16": to_float16, "float32": widen}
    make: Callable[[memoryview], Any] = makers.get(target, lambda data: widen(data).astype("<f8"))

    def convert(data: memoryview) -> memoryview:
        with numpy.errstate(all="ignore"):
            return memoryview(make(data)).cast("B")

    return convert


def _widener(numpy: Any, source: str) -> Callable[[memoryview], Any]:
    """What makes float32 of the bytes; signalling NaNs become quiet, as processors have it."""
    if source == "bfloat16":
        return lambda data: (numpy.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if source in _SMALL:
        table = numpy.array(small_floats(source), "<f4")
        nan = numpy.isnan(table)
        table.view("<u4")[nan] = _nans(numpy, source)[nan]

        def look_up(data: memoryview) -> Any:
            return table.take(numpy.frombuffer(data, "u1"))

        return look_up

    def widen(data: memoryview) -> Any:
        wide = numpy.frombuffer(data, _CODES[source]).astype("<f4", copy=False)
        if source == "float16":
            nan = numpy.isnan(wide)
            if nan.any():
                wide.view("<u4")[nan] |= 0x00400000
        return wide

    return widen


def _nans(numpy: Any, source: str) -> Any:
    """The float32 bits of each byte of a small dtype where it is a NaN: sign and mantissa, quiet; of the fnuz ones
    what torch has for their only NaN."""
    codes = numpy.arange(256, dtype="<u4")
    if source.endswith("fnuz"):
        return numpy.full(256, 0x7F800001, "<u4")
    mantissa = 3 if source == "float8_e4m3fn" else 2
    return (codes & 0x80) << 24 | 0x7FC00000 | (codes & ((1 << mantissa) - 1)) << (23 - mantissa)


def torch_cast(source: str, target: str) -> Cast:
    """The same by torch itself."""
    import ctypes

    import torch

    def convert(data: memoryview) -> memoryview:
        values = torch.frombuffer(data, dtype=getattr(torch, source)).to(getattr(torch, target))
        # torch lends its memory to numpy alone.
        return memoryview(ctypes.string_at(values.data_ptr(), values.nbytes))

    return convert
