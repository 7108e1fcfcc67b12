"""The numbers that a tensor's bytes stand for, as an array of float64 can hold them.

numpy does it where it is installed, for it loads in a tenth of torch's time; else torch does. What numpy has no type
for is decoded here: bfloat16 by a shift, floats of eight and four bits through a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

# dtype -> numpy's code of what its bytes hold. Quantized tensors are taken as the integers they are stored as.
_CODES = {
    "float64": "f8", "float32": "f4", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
    "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1", "bool": "?", "qint32": "i4", "qint8": "i1",
    "quint8": "u1",
}  # fmt: skip
_HALVES = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
# Bits of exponent and mantissa, bias of the exponent, and what the format spends its special codes on.
# After the OCP 8-bit floating point specification (OFP8), the OCP microscaling formats (MX), and arXiv 2206.02915
# for the fnuz ones, which have no minus zero: its code is their only NaN.
_SMALL = {
    "float8_e4m3fn": (4, 3, 7, "nan"),
    "float8_e5m2": (5, 2, 15, "ieee"),
    "float8_e4m3fnuz": (4, 3, 8, "fnuz"),
    "float8_e5m2fnuz": (5, 2, 16, "fnuz"),
    "float4_e2m1fn_x2": (2, 1, 1, ""),
}
INTEGERS = frozenset(dtype for dtype, code in _CODES.items() if code[0] in "iu?")


def countable(dtype: str) -> bool:
    """Whether the elements of the dtype are numbers that are known here: not raw or packed bits."""
    return dtype in _CODES or dtype in _HALVES or dtype in _SMALL or dtype in ("bfloat16", "float8_e8m0fnu")


@cache
def small_floats(dtype: str) -> tuple[float, ...]:
    """The number that each byte stands for in a float of eight bits; of four bits the two numbers, low half first."""
    if dtype == "float8_e8m0fnu":
        return (*(2.0 ** (code - 127) for code in range(255)), math.nan)
    bits, _, _, _ = _SMALL[dtype]
    if bits == 2:
        return tuple(_small_float(half, dtype) for code in range(256) for half in (code & 15, code >> 4))
    return tuple(_small_float(code, dtype) for code in range(256))


def _small_float(code: int, dtype: str) -> float:
    """The number that a code of sign, exponent and mantissa stands for, from its highest bit down."""
    bits, mantissa_bits, bias, special = _SMALL[dtype]
    sign = -1.0 if code >> (bits + mantissa_bits) else 1.0
    exponent, mantissa = code >> mantissa_bits & (1 << bits) - 1, code & (1 << mantissa_bits) - 1
    last = exponent == (1 << bits) - 1
    if special == "ieee" and last:
        return math.nan if mantissa else sign * math.inf
    if (special == "nan" and last and mantissa == (1 << mantissa_bits) - 1) or (special == "fnuz" and code == 0x80):
        return math.nan
    fraction = mantissa / (1 << mantissa_bits)
    return sign * math.ldexp(1 + fraction if exponent else fraction, max(exponent, 1) - bias)


class Arrays(NamedTuple):
    """An array library: its module, how it makes an array of a dtype's bytes, and one of float64 from that.

    Within `quiet` it warns of nothing: what overflows is looked for.
    """

    module: Any
    decode: Callable[[memoryview, str], Any]
    widen: Callable[[Any], Any]
    quiet: Callable[[], AbstractContextManager[Any]]


@cache
def arrays() -> Arrays:
    """The array library that there is, numpy if it is installed."""
    try:
        return numpy_arrays()
    except ImportError:
        return torch_arrays()


def numpy_arrays() -> Arrays:
    """numpy. Raises ImportError where it is not installed."""
    import numpy

    tables: dict[str, Any] = {}

    def decode(data: memoryview, dtype: str) -> Any:
        if dtype == "bfloat16":
            return (numpy.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        if dtype in _HALVES:
            halves = decode(data, _HALVES[dtype]).astype("f8")
            return numpy.hypot(halves[::2], halves[1::2])
        if dtype in _CODES:
            values = numpy.frombuffer(data, "u1" if dtype == "bool" else "<" + _CODES[dtype])
            return values != 0 if dtype == "bool" else values
        if dtype not in tables:
            numbers = small_floats(dtype)
            tables[dtype] = numpy.array(numbers).reshape(256, len(numbers) // 256)
        return tables[dtype].take(numpy.frombuffer(data, "u1"), 0).reshape(-1)

    return Arrays(numpy, decode, lambda values: values.astype("f8", copy=False), lambda: numpy.errstate(all="ignore"))


def torch_arrays() -> Arrays:
    """torch, which widens what it has no arithmetic for by the same tables."""
    import torch

    tables: dict[str, Any] = {}

    def decode(data: memoryview, dtype: str) -> Any:
        values = torch.frombuffer(data, dtype=torch.uint8)
        if dtype in _HALVES:
            halves = values.view(getattr(torch, _HALVES[dtype])).double()
            return torch.hypot(halves[::2], halves[1::2])
        if dtype == "bool":
            return values != 0
        if dtype == "bfloat16" or dtype in _CODES:
            return values.view(getattr(torch, dtype.removeprefix("q")))
        if dtype not in tables:
            numbers = small_floats(dtype)
            tables[dtype] = torch.tensor(numbers, dtype=torch.float64).reshape(256, len(numbers) // 256)
        return tables[dtype][values.long()].reshape(-1)

    return Arrays(torch, decode, lambda values: values.double(), nullcontext)
