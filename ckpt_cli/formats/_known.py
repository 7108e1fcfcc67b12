"""Small objects of Python's library and of numpy that checkpoints hold, as plain values.

They come as inert records of what would have made them: a class and its arguments. Nothing is called by that
name; what they mean is computed here. What is not as its class writes it stays the record it is.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ckpt_cli.formats._inert import Opaque
from ckpt_cli.shapes import are_sizes

if TYPE_CHECKING:
    import datetime

# More elements than these are told by dtype and shape alone.
_MAX_ELEMENTS = 64
_MAX_TEXT = 1000
# Arguments: many objects may share the same many.
_MAX_PARTS = 64
_NUMBERS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d", "c8": "ff", "c16": "dd",
}  # fmt: skip
_KINDS = {"i": "int", "u": "uint", "f": "float", "c": "complex"}


def known(value: Opaque) -> Any:
    """A number, a text or a list of them for the object; None where it is nothing that is known here."""
    make = _MAKERS.get(value.name)
    if make is None or len(value.args) > _MAX_PARTS:
        return None
    try:
        made = make(value)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, struct.error):
        return None
    return None if isinstance(made, str) and len(made) > _MAX_TEXT else made


def array_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a pickled numpy array, None for anything else."""
    state = value.state if isinstance(value, Opaque) and value.name in _ARRAYS else None
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    return state[1] if isinstance(state[1], tuple) and are_sizes(state[1]) else None


def _dtype(value: Any) -> tuple[str, str]:
    """(code, byte order) of a pickled numpy dtype."""
    if not isinstance(value, Opaque) or value.name != "numpy.dtype" or not isinstance(value.args[0], str):
        raise TypeError
    order = value.state[1] if isinstance(value.state, tuple) else "|"
    if not isinstance(order, str) or len(value.args[0]) > 16:
        raise TypeError
    return value.args[0], order


def _dtype_name(value: Any) -> str:
    code, _ = _dtype(value)
    kind, width = code[:1], code[1:]
    if kind in _KINDS and width.isdigit():
        return f"{_KINDS[kind]}{8 * int(width)}"
    return {"b1": "bool", "O8": "object"}.get(code, code)


def _elements(data: Any, dtype: Any, count: int) -> list[Any]:
    code, order = _dtype(dtype)
    data = _raw(data)
    sign = ">" if order == ">" else "<"
    if code in _NUMBERS:
        numbers = struct.unpack(sign + _NUMBERS[code] * count, data)
        if code.startswith("c"):
            return [str(complex(*pair)) for pair in zip(numbers[::2], numbers[1::2])]
        return list(numbers)
    width = int(code[1:]) * (4 if code[:1] == "U" else 1)
    if code[:1] not in "SU" or width * count != len(data) or width > _MAX_TEXT:
        raise ValueError
    words = [data[at * width : (at + 1) * width] for at in range(count)]
    text = "utf-32-be" if sign == ">" else "utf-32-le"
    return [(word.decode(text) if code[:1] == "U" else word.decode("latin-1")).rstrip("\0") for word in words]


def _scalar(value: Opaque) -> Any:
    dtype, data = value.args
    return _elements(data, dtype, 1)[0]


def _array(value: Opaque) -> Any:
    shape = array_shape(value)
    if shape is None:
        raise TypeError
    return _listed(shape, value.state[2], value.state[4], bool(value.state[3]))


def _buffer(value: Opaque) -> Any:
    data, dtype, shape, order = value.args
    if not isinstance(shape, tuple) or not are_sizes(shape):
        raise TypeError
    return _listed(shape, dtype, data, order == "F")


def _listed(shape: tuple[int, ...], dtype: Any, data: Any, columns: bool) -> Any:
    """Nested lists of a small array of numbers or text; dtype and shape of any other."""
    code, _ = _dtype(dtype)
    if code[:1] == "O":
        raise TypeError  # its elements are objects: they are shown one by one
    # Without elements too: 2**40 rows of nothing are as many lists.
    few = len(shape) <= 8 and math.prod(max(size, 1) for size in shape) <= _MAX_ELEMENTS
    if not few or (code not in _NUMBERS and code[:1] not in "SU"):
        return f"<array {_dtype_name(dtype)} {list(shape)}>"
    flat = _elements(data, dtype, math.prod(shape))
    steps = [math.prod(shape[:axis] if columns else shape[axis + 1 :]) for axis in range(len(shape))]

    def part(axis: int, at: int) -> Any:
        if axis == len(shape):
            return flat[at]
        return [part(axis + 1, at + index * steps[axis]) for index in range(shape[axis])]

    return part(0, 0)


def _raw(data: Any) -> bytes:
    if len(data) > 4 * _MAX_ELEMENTS * _MAX_TEXT:
        raise ValueError
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _delta(value: Any) -> datetime.timedelta:
    import datetime

    if not isinstance(value, Opaque) or value.name != "datetime.timedelta":
        raise TypeError
    days, seconds, micros = value.args
    if not all(type(part) is int for part in value.args):
        raise TypeError
    return datetime.timedelta(days, seconds, micros)


def _moment(value: Opaque) -> str:
    import datetime

    data = _raw(value.args[0])
    zone = None
    if len(value.args) > 1:
        told = value.args[1]
        if not isinstance(told, Opaque) or told.name != "datetime.timezone":
            raise TypeError
        zone = datetime.timezone(_delta(told.args[0]))
    high, low, month, day, hour, minute, second, *micros = data
    small = int.from_bytes(bytes(micros), "big")
    return datetime.datetime(high << 8 | low, month & 127, day, hour, minute, second, small, zone).isoformat()


def _date(value: Opaque) -> str:
    import datetime

    high, low, month, day = _raw(value.args[0])
    return datetime.date(high << 8 | low, month, day).isoformat()


def _time(value: Opaque) -> str:
    import datetime

    hour, minute, second, *micros = _raw(value.args[0])
    return datetime.time(hour & 127, minute, second, int.from_bytes(bytes(micros), "big")).isoformat()


def _path(separator: str) -> Callable[[Opaque], str]:
    def make(value: Opaque) -> str:
        first, *rest = value.args or (".",)
        if not all(isinstance(part, str) and len(part) <= _MAX_TEXT for part in value.args):
            raise TypeError
        return separator.join([first.rstrip(separator) if rest else first, *rest])

    return make


def _first_text(value: Opaque) -> str:
    (text,) = value.args
    if not isinstance(text, str):
        raise TypeError
    return text


def _call(name: str) -> Callable[[Opaque], str]:
    def make(value: Opaque) -> str:
        # Short ones: to write out a long number takes time, and many objects may share it.
        if not all(part is None or (type(part) is int and abs(part) < 2**64) for part in value.args):
            raise TypeError
        return f"{name}{value.args}"

    return make


_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_MAKERS: dict[str, Callable[[Opaque], Any]] = {
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    **dict.fromkeys(_ARRAYS, _array),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _buffer),
    "numpy.dtype": _dtype_name,
    "datetime.datetime": _moment,
    "datetime.date": _date,
    "datetime.time": _time,
    "datetime.timedelta": lambda value: str(_delta(value)),
    **{f"{module}.{kind}PosixPath": _path("/") for module in ("pathlib", "pathlib._local") for kind in ("", "Pure")},
    **{f"{module}.{kind}WindowsPath": _path("\\") for module in ("pathlib", "pathlib._local") for kind in ("", "Pure")},
    "decimal.Decimal": _first_text,
    "fractions.Fraction": _first_text,
    **dict.fromkeys(("__builtin__.xrange", "builtins.range"), _call("range")),
    **dict.fromkeys(("__builtin__.slice", "builtins.slice"), _call("slice")),
}
