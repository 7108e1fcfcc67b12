"""Text for people: harmless names, sizes, ages."""

from __future__ import annotations

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB")


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
    value = float(count)
    for unit in _DECIMAL:
        if value < 999.5 or unit == _DECIMAL[-1]:
            break
        value /= 1000
    if unit == "B":
        return f"{count} B"
    return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.1f} {unit}" if value >= 9.95 else f"{value:.2f} {unit}"


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    if seconds < 0:
        return "in the future"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
