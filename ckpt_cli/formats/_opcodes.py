"""The opcodes of a pickle: a closed table of what each does, and of the memory that it takes.

After `pickletools`; an opcode that is not in the table ends the reading.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from ckpt_cli.formats import _effects as do
from ckpt_cli.formats import _literals as literal
from ckpt_cli.formats._effects import TUPLE

if TYPE_CHECKING:
    from ckpt_cli.formats._machine import Machine

# What things take in memory in bytes, in Python 3.11 for machines of 64 bits: an empty list, dict or set, a text
# besides its characters, a number, and a place on the stack, which no opcode is counted as less than, so that this
# bounds the time too.
_LIST, _DICT, _SET, TEXT = 56, 64, 216, 54
_NUMBER, _PLACE = do.NUMBER, do.PLACE
# What a mark takes until it is met.
MARK = _LIST + _PLACE
# To drop a value, which picklers do only in a tuple that holds itself; else it would be a way to count numbers for
# nothing.
_POP = 200
# What a call makes: an object of a class that nobody knows, a value, one that was there before, what a tensor takes
# more; a name; a slot far from all others.
UNKNOWN, CALLED, RETURNED, VIEW, NEW_NAME, FAR_SLOT = 192, 100, 24, 60, 400, 120

_EFFECTS: dict[int, Callable[[Machine], None]] = {
    0x80: do.protocol,
    0x28: do.mark,
    0x30: do.pop,
    0x31: do.pop_mark,
    0x32: do.duplicate,
    # numbers, text, bytes
    0x46: do.pushing(lambda m: float(m.line())),  # FLOAT
    0x47: literal.fixed(8, lambda data: struct.unpack(">d", data)[0]),  # BINFLOAT
    0x49: do.pushing(literal.int_text),  # INT
    0x4C: do.pushing(lambda m: literal.integer(m.line().rstrip(b"L"))),  # LONG
    0x4A: literal.fixed(4, lambda data: int.from_bytes(data, "little", signed=True)),  # BININT
    0x4B: literal.small_int,
    0x4D: literal.fixed(2, lambda data: int.from_bytes(data, "little")),  # BININT2
    0x8A: do.pushing(literal.long(1)),  # LONG1
    0x8B: do.pushing(literal.long(4)),  # LONG4
    0x4E: do.pushing(lambda m: None),  # NONE
    0x88: do.pushing(lambda m: True),  # NEWTRUE
    0x89: do.pushing(lambda m: False),  # NEWFALSE
    0x53: do.pushing(literal.string_text),  # STRING
    0x54: literal.text(4, "latin-1"),  # BINSTRING
    0x55: literal.text(1, "latin-1"),  # SHORT_BINSTRING
    0x56: do.pushing(lambda m: codecs.raw_unicode_escape_decode(m.line())[0]),  # UNICODE
    0x58: literal.text(4),  # BINUNICODE
    0x8C: literal.text(1),  # SHORT_BINUNICODE
    0x8D: literal.text(8),  # BINUNICODE8
    0x42: literal.data(4),  # BINBYTES
    0x43: literal.data(1),  # SHORT_BINBYTES
    0x8E: literal.data(8),  # BINBYTES8
    0x96: literal.data(8),  # BYTEARRAY8
    # containers
    0x29: do.empty_tuple,
    0x74: do.marked_tuple,
    0x85: do.tuple_of(1),
    0x86: do.tuple_of(2),
    0x87: do.tuple_of(3),
    0x5D: do.pushing(lambda m: []),  # EMPTY_LIST
    0x6C: do.pushing(lambda m: m.pop_mark()),  # LIST
    0x61: lambda m: do.append(m, [m.stack.pop()]),
    0x65: lambda m: do.append(m, m.pop_mark()),
    0x7D: do.pushing(lambda m: {}),  # EMPTY_DICT
    0x64: do.pushing(do.dictionary),  # DICT
    0x73: do.set_one,
    0x75: do.set_many,
    0x8F: do.pushing(lambda m: set()),  # EMPTY_SET
    0x90: do.add_many,
    0x91: do.pushing(do.frozen),  # FROZENSET
    # memo
    0x67: do.get_text,
    0x68: do.get,
    0x6A: do.get_long,
    0x70: do.put_text,
    0x71: do.put,
    0x72: do.put_long,
    0x94: do.memoize,
    # names and calls
    0x63: do.text_global,
    0x93: do.stack_global,
    0x69: do.instance,
    0x52: do.reduce,
    0x81: do.reduce,  # NEWOBJ: the same shape, class and arguments
    0x92: do.new_object_ex,
    0x62: do.build,
    0x51: do.persistent_id,
}
TABLE: list[Callable[[Machine], None] | None] = [_EFFECTS.get(code) for code in range(256)]

_COSTS: dict[int, int] = {
    0x28: MARK,
    **dict.fromkeys(b"\x30\x31", _POP),
    0x5D: _LIST,
    0x6C: _LIST + 4 * _PLACE,  # which is a mark's own, and not of its exact size
    **dict.fromkeys(b"\x7d\x64", _DICT),
    **dict.fromkeys(b"\x8f\x91", _SET),
    **dict.fromkeys(b"\x74\x85\x86\x87", TUPLE),
    **dict.fromkeys(b"STUVXBC\x8c\x8d\x8e\x96", TEXT),
    **dict.fromkeys(b"FGILJM\x8a\x8b", _NUMBER),
    0x51: do.STORAGE,
}
COSTS: list[int] = [_PLACE + _COSTS.get(code, 0) for code in range(256)]
