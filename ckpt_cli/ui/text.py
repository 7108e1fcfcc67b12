"""Text for people: harmless names, sizes, ages."""

from __future__ import annotations

_PREFIXES = ("", "k", "M", "G", "T", "P")
# A thousand million is a billion only of parameters.
_SHORT = ("", "k", "M", "B", "T")


def printable(text: str) -> str:
    """The text with everything that could steer a terminal or hide in it escaped.

    Control and format characters (escape sequences, newlines, bidirectional marks, zero-width ones), lone
    surrogates and undecodable bytes become \\x1b, \\u202e, \\xff; letters of every script stay.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def size(count: int) -> str:
    """Bytes in powers of ten, three digits: 419 kB, 1.12 GB."""
    number, prefix = _scaled(count, _PREFIXES)
    return f"{number} {prefix}B"


def short(count: int) -> str:
    """A number of parameters in three digits: 320, 41.0k, 124M, 1.56B."""
    return "".join(_scaled(count, _SHORT))


def _scaled(count: int, units: tuple[str, ...]) -> tuple[str, str]:
    """The number in three digits of the unit that fits, each a thousand times the one before."""
    value, unit = float(count), units[0]
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            break
        value /= 1000
    if unit == units[0]:
        return str(count), unit
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}", unit


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    if seconds < 0:
        return "in the future"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
