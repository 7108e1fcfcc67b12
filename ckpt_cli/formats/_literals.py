"""Numbers, texts and bytes as opcodes of a pickle have them, each put on the interpreter's stack."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ckpt_cli.formats._inert import MOST_BYTES, MOST_TEXT, SHOWN_BYTES, Long, Malformed

if TYPE_CHECKING:
    from ckpt_cli.formats._machine import Machine

# 2467 digits: Python itself refuses to write out numbers of more than 4300.
_MAX_LONG_BYTES = 1024
# What a text takes besides its characters, where each is a byte.
_ASCII = 49


def small_int(machine: Machine) -> None:
    machine.stack.append(machine.byte())


def fixed(count: int, convert: Callable[[bytes], Any]) -> Callable[[Machine], None]:
    """A number of so many bytes."""

    def handler(machine: Machine) -> None:
        machine.stack.append(convert(machine.take(count)))

    return handler


def text(width: int, encoding: str = "utf-8") -> Callable[[Machine], None]:
    """A text behind its length, which has so many bytes."""

    def handler(machine: Machine) -> None:
        count = int.from_bytes(machine.take(width), "little")
        if count > MOST_TEXT:
            machine.stack.append(_long_text(machine, count, encoding))
            return
        made = machine.take(count).decode(encoding, "surrogatepass")
        machine.room -= count if made.isascii() else made.__sizeof__() - _ASCII
        machine.stack.append(made)

    return handler


def _long_text(machine: Machine, count: int, encoding: str) -> Long:
    # In the other encoding, which is Python 2's, each byte is a letter.
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass") if encoding == "utf-8" else None
    begins, size = "", 0
    for piece in machine.pieces(count):
        more = decoder.decode(piece) if decoder else piece.decode(encoding)
        begins += more[: SHOWN_BYTES - len(begins)]
        size += len(more)
    if decoder:
        decoder.decode(b"", True)
    return Long(begins, size, count)


def data(width: int) -> Callable[[Machine], None]:
    """Bytes behind their length, which has so many."""

    def handler(machine: Machine) -> None:
        count = int.from_bytes(machine.take(width), "little")
        if count <= MOST_BYTES:
            machine.room -= count
            machine.stack.append(machine.take(count))
            return
        begins = b""
        for piece in machine.pieces(count):
            begins += piece[: SHOWN_BYTES - len(begins)]
        machine.stack.append(Long(begins, count, count))

    return handler


def integer(text: bytes) -> int:
    if len(text) > 1000:
        raise Malformed(f"its pickle has a number of {len(text)} digits")
    return int(text)


def int_text(machine: Machine) -> Any:
    text = machine.line()
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else integer(text)


def long(width: int) -> Callable[[Machine], int]:
    def make(machine: Machine) -> int:
        count = int.from_bytes(machine.take(width), "little")
        if count > _MAX_LONG_BYTES:
            raise Malformed(f"its pickle has a number of {count} bytes")
        machine.room -= count
        return int.from_bytes(machine.take(count), "little", signed=True)

    return make


def string_text(machine: Machine) -> str:
    text = machine.line().strip()
    if len(text) < 2 or text[:1] not in b"'\"" or text[:1] != text[-1:]:
        raise Malformed(f"its pickle has a string without quotes at byte {machine.place}")
    return codecs.escape_decode(text[1:-1])[0].decode("latin-1")
