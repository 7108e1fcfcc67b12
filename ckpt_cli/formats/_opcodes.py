"""What each opcode of a pickle does to the interpreter's stack, marks and memo: a closed table.

After `pickletools`; an opcode that is not in the table ends the reading.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ckpt_cli.formats._inert import Global, Malformed, Opaque, checked_key

if TYPE_CHECKING:
    from ckpt_cli.formats._pickle import Machine

# 2467 digits: Python itself refuses to write out numbers of more than 4300.
_MAX_LONG_BYTES = 1024
# What things take in memory in bytes, in Python 3.11 for machines of 64 bits: an empty list, dict or set, a tuple, a
# text, a number, and a place on the stack, which no opcode is counted as less than, so that this bounds the time too.
_LIST, _DICT, _SET, _TUPLE, _TEXT, _NUMBER, _PLACE = 56, 64, 216, 56, 88, 32, 8
# What a mark takes until it is met.
MARK = _LIST + _PLACE
# An entry of a dict or set, and the room for its first ones; a call's result; a name; a slot far from all others.
_ENTRY, _FIRST_ENTRIES = 60, 160
CALLED, PLACED, NEW_NAME, FAR_SLOT = 192, 112, 400, 120


def _set_items(machine: Machine, target: Any, items: list[Any]) -> None:
    store = target.items if isinstance(target, Opaque) else target
    if not isinstance(store, dict):
        raise Malformed(f"its pickle sets an item of a {type(target).__name__} at byte {machine.at}")
    if len(items) % 2:
        raise Malformed(f"its pickle sets a key without a value at byte {machine.at}")
    machine.room -= len(items) // 2 * _ENTRY + (0 if store else _FIRST_ENTRIES)
    for index in range(0, len(items), 2):
        key = items[index]
        if type(key) is not str:
            key = checked_key(key)
            machine.room -= _TUPLE
        store[key] = items[index + 1]


def _append(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    store = target.elements if isinstance(target, Opaque) else target
    if type(store) is not list:
        raise Malformed(f"its pickle appends to a {type(target).__name__} at byte {machine.at}")
    store.extend(items)


def _build(machine: Machine) -> None:
    """State for the object below it. That of a known type (hooks, the `_metadata` of a state dict) is not needed."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Opaque):
        target.state = state
    elif isinstance(target, (list, str, int, bytes, Global, type(None))):
        raise Malformed(f"its pickle sets the state of a {type(target).__name__} at byte {machine.at}")


def _reduce(machine: Machine) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args)


def _new_object_ex(machine: Machine) -> None:
    args, named = machine.stack.pop(-2), machine.stack.pop()
    made = machine.call(machine.stack[-1], args)
    if named and not isinstance(made, Opaque):
        raise Malformed(f"its pickle calls a known function with named arguments at byte {machine.at}")
    if named:
        made.state = named
    machine.stack[-1] = made


def _stack_global(machine: Machine) -> None:
    module, name = machine.stack.pop(-2), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Malformed(f"its pickle has a name that is no text at byte {machine.at}")
    machine.name(module, name)


def _global(machine: Machine) -> None:
    module = machine.line().decode()
    machine.name(module, machine.line().decode())


def _protocol(machine: Machine) -> None:
    version = machine.take(1)[0]
    if version > 5:
        raise Malformed(f"its pickle is of the unknown protocol {version}")


def _pop(machine: Machine) -> None:
    _ = machine.stack.pop() if machine.stack else machine.pop_mark()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def handler(machine: Machine) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError
        stack[-count:] = (tuple(stack[-count:]),)

    return handler


def _pushing(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def handler(machine: Machine) -> None:
        # The operand first: making it may replace the stack.
        value = make(machine)
        machine.stack.append(value)

    return handler


def _put(machine: Machine) -> None:
    machine.put(machine.byte())


def _put_long(machine: Machine) -> None:
    machine.put(int.from_bytes(machine.take(4), "little"))


def _get(machine: Machine) -> None:
    machine.stack.append(machine.get(machine.byte()))


def _get_long(machine: Machine) -> None:
    machine.stack.append(machine.get(int.from_bytes(machine.take(4), "little")))


def _small_int(machine: Machine) -> None:
    machine.stack.append(machine.byte())


def _unicode(machine: Machine) -> None:
    data = machine.take(int.from_bytes(machine.take(4), "little"))
    machine.stack.append(data.decode("utf-8", "surrogatepass"))


def _empty_tuple(machine: Machine) -> None:
    machine.stack.append(())


def _tuple(machine: Machine) -> None:
    items = tuple(machine.pop_mark())
    machine.stack.append(items)


def _persistent_id(machine: Machine) -> None:
    machine.stack[-1] = machine.persistent(machine.stack[-1])


def _put_text(machine: Machine) -> None:
    slot = _integer(machine.line())
    if not 0 <= slot < 2**32:  # longer ones, of which many have the same hash, nobody writes
        raise Malformed(f"its pickle has an odd memo slot at byte {machine.at}")
    machine.put(slot)


def _memoize(machine: Machine) -> None:
    machine.put(len(machine.memo) + len(machine.far) - machine.unset)


def _integer(text: bytes) -> int:
    if len(text) > 1000:
        raise Malformed(f"its pickle has a number of {len(text)} digits")
    return int(text)


def _int_text(machine: Machine) -> Any:
    text = machine.line()
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else _integer(text)


def _long(width: int) -> Callable[[Machine], int]:
    def make(machine: Machine) -> int:
        data = machine.sized(width)
        if len(data) > _MAX_LONG_BYTES:
            raise Malformed(f"its pickle has a number of {len(data)} bytes")
        return int.from_bytes(data, "little", signed=True)

    return make


def _string_text(machine: Machine) -> str:
    text = machine.line().strip()
    if len(text) < 2 or text[:1] not in b"'\"" or text[:1] != text[-1:]:
        raise Malformed(f"its pickle has a string without quotes at byte {machine.at}")
    return codecs.escape_decode(text[1:-1])[0].decode("latin-1")


def _set_one(machine: Machine) -> None:
    item = [machine.stack.pop(-2), machine.stack.pop()]
    _set_items(machine, machine.stack[-1], item)


def _set_many(machine: Machine) -> None:
    items = machine.pop_mark()
    _set_items(machine, machine.stack[-1], items)


def _add_many(machine: Machine) -> None:
    items = machine.pop_mark()
    target = machine.stack[-1]
    if isinstance(target, Opaque):
        target.elements.extend(items)
    elif isinstance(target, set):
        machine.room -= len(items) * PLACED
        target.update(checked_key(item) for item in items)
    else:
        raise Malformed(f"its pickle adds to a {type(target).__name__} at byte {machine.at}")


def _dictionary(machine: Machine) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set_items(machine, made, machine.pop_mark())
    return made


def _frozen(machine: Machine) -> frozenset[Any]:
    items = machine.pop_mark()
    machine.room -= len(items) * PLACED
    return frozenset(checked_key(item) for item in items)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_HANDLERS: dict[int, Callable[[Machine], None]] = {
    0x80: _protocol,
    0x28: _mark,
    0x30: _pop,
    0x31: _pop_mark,
    0x32: _pushing(lambda m: m.stack[-1]),  # DUP
    # numbers, text, bytes
    0x46: _pushing(lambda m: float(m.line())),  # FLOAT
    0x47: _pushing(lambda m: struct.unpack(">d", m.take(8))[0]),  # BINFLOAT
    0x49: _pushing(_int_text),  # INT
    0x4C: _pushing(lambda m: _integer(m.line().rstrip(b"L"))),  # LONG
    0x4A: _pushing(lambda m: int.from_bytes(m.take(4), "little", signed=True)),  # BININT
    0x4B: _small_int,
    0x4D: _pushing(lambda m: int.from_bytes(m.take(2), "little")),  # BININT2
    0x8A: _pushing(_long(1)),  # LONG1
    0x8B: _pushing(_long(4)),  # LONG4
    0x4E: _pushing(lambda m: None),  # NONE
    0x88: _pushing(lambda m: True),  # NEWTRUE
    0x89: _pushing(lambda m: False),  # NEWFALSE
    0x53: _pushing(_string_text),  # STRING
    0x54: _pushing(lambda m: m.sized(4).decode("latin-1")),  # BINSTRING
    0x55: _pushing(lambda m: m.sized(1).decode("latin-1")),  # SHORT_BINSTRING
    0x56: _pushing(lambda m: codecs.raw_unicode_escape_decode(m.line())[0]),  # UNICODE
    0x58: _unicode,
    0x8C: _pushing(lambda m: _text(m.sized(1))),  # SHORT_BINUNICODE
    0x8D: _pushing(lambda m: _text(m.sized(8))),  # BINUNICODE8
    0x42: _pushing(lambda m: m.sized(4)),  # BINBYTES
    0x43: _pushing(lambda m: m.sized(1)),  # SHORT_BINBYTES
    0x8E: _pushing(lambda m: m.sized(8)),  # BINBYTES8
    0x96: _pushing(lambda m: m.sized(8)),  # BYTEARRAY8
    # containers
    0x29: _empty_tuple,
    0x74: _tuple,
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    0x5D: _pushing(lambda m: []),  # EMPTY_LIST
    0x6C: _pushing(lambda m: m.pop_mark()),  # LIST
    0x61: lambda m: _append(m, [m.stack.pop()]),
    0x65: lambda m: _append(m, m.pop_mark()),
    0x7D: _pushing(lambda m: {}),  # EMPTY_DICT
    0x64: _pushing(_dictionary),  # DICT
    0x73: _set_one,
    0x75: _set_many,
    0x8F: _pushing(lambda m: set()),  # EMPTY_SET
    0x90: _add_many,
    0x91: _pushing(_frozen),  # FROZENSET
    # memo
    0x67: _pushing(lambda m: m.get(_integer(m.line()))),  # GET
    0x68: _get,
    0x6A: _get_long,
    0x70: _put_text,
    0x71: _put,
    0x72: _put_long,
    0x94: _memoize,
    # names and calls
    0x63: _global,
    0x93: _stack_global,
    0x52: _reduce,
    0x81: _reduce,  # NEWOBJ: the same shape, class and arguments
    0x92: _new_object_ex,
    0x62: _build,
    0x51: _persistent_id,
}
TABLE: list[Callable[[Machine], None] | None] = [_HANDLERS.get(code) for code in range(256)]

_COSTS: dict[int, int] = {
    0x28: MARK,
    0x5D: _LIST,
    0x6C: _LIST + 4 * _PLACE,  # which is a mark's own, and not of its exact size
    **dict.fromkeys(b"\x7d\x64", _DICT),
    **dict.fromkeys(b"\x8f\x91", _SET),
    **dict.fromkeys(b"\x74\x85\x86\x87", _TUPLE),
    **dict.fromkeys(b"STUVXBC\x8c\x8d\x8e\x96", _TEXT),
    **dict.fromkeys(b"FGILJM\x8a\x8b", _NUMBER),
    0x51: CALLED,
}
COSTS: list[int] = [_PLACE + _COSTS.get(code, 0) for code in range(256)]
