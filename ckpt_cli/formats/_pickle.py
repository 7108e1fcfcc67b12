"""A pickle interpreter that cannot run anything: a closed table of opcodes over plain values.

Python's pickle protocols 0 to 5 (PEP 3154, PEP 574 and `pickletools` are the reference), less what no
checkpoint needs: INST, OBJ, text persistent ids, the extension registry, out-of-band buffers. A name in the
stream is looked up in the caller's tables and nowhere else. One that is in no table becomes a `Global`, and
what it would have built becomes an inert `Opaque`, which can be shown; one that runs code ends the reading.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats._inert import Global, Malformed, Opaque, RunsCode, Truncated, checked_key, runs_code

# 2467 digits: Python itself refuses to write out numbers of more than 4300.
_MAX_LONG_BYTES = 1024
_MAX_NAME = 1000
# Different names nobody knows: the largest pickled module has some hundreds.
_MAX_GLOBALS = 10_000
# What calls may copy of their arguments: some, and as much again as the pickle weighs. One that hands the same
# list to a thousand calls would have a thousand copies of it.
_COPIED = 100_000
_SIZED = (str, bytes, list, tuple, dict, set, frozenset)
_MOST_SAID = 200
Constants = Mapping[str, Any]
Functions = Mapping[str, Callable[..., Any]]
Find = Callable[[Any], Any]


class Loaded(NamedTuple):
    """The value, the names met on the way, and where in the data the pickle ended."""

    value: Any
    globals: list[str]
    end: int


def load(data: bytes, constants: Constants, functions: Functions, persistent: Find, start: int = 0) -> Loaded:
    """Interprets one pickle that begins at byte `start` of `data`.

    `constants` are names that stand for a value, `functions` names whose calls are carried out by ours;
    `persistent` turns a persistent id into a value. Raises Malformed, or RunsCode at the first such name.
    """
    machine = _Machine(data, constants, functions, persistent, start)
    try:
        return machine.run()
    except CkptError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, struct.error) as error:
        # Operands that do not fit the opcode: an empty stack, an unset memo slot, a call with wrong arguments.
        raise Malformed(f"its pickle breaks off at byte {machine.at}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"memo slot {error} was never set"
    if isinstance(error, IndexError):
        return "the stack or the data is exhausted"
    return str(error)[:_MOST_SAID] or type(error).__name__


class _Machine:
    """Stack, marks and memo of one run."""

    def __init__(self, data: bytes, constants: Constants, functions: Functions, persistent: Find, start: int) -> None:
        self.data = data
        self.at = start
        self.constants = constants
        self.functions = functions
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, Global] = {}
        self.names: dict[str, None] = {}
        self.copies = _COPIED + 2 * (len(data) - start)

    def run(self) -> Loaded:
        data, table, size = self.data, _TABLE, len(self.data)
        limit = size
        while True:
            if self.at >= limit:
                # A frame must end where an opcode ends; then the data goes on without one.
                if self.at > limit or limit == size:
                    cut = Truncated if self.at >= size else Malformed
                    raise cut(f"its pickle breaks off at byte {min(self.at, size)}")
                limit = size
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return Loaded(self.stack[-1], list(self.names), self.at)
            if code == 0x95:  # FRAME
                if limit != size:
                    raise Malformed(f"its pickle has a frame within a frame at byte {self.at}")
                length = int.from_bytes(self.take(8), "little")
                limit = self.at + length
                if limit > size:
                    raise Malformed(f"its pickle has a frame that reaches beyond its end at byte {self.at}")
                continue
            handler = table[code]
            if handler is None:
                raise Malformed(f"its pickle has the opcode {code:#04x} at byte {self.at - 1}: no checkpoint needs it")
            handler(self)

    def take(self, count: int) -> bytes:
        at, end = self.at, self.at + count
        if end > len(self.data):
            raise Truncated(f"its pickle breaks off at byte {len(self.data)}")
        self.at = end
        return self.data[at:end]

    def sized(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width), "little"))

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise Truncated(f"its pickle breaks off at byte {len(self.data)}")
        text = self.data[self.at : end]
        self.at = end + 1
        return text

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if len(full) > _MAX_NAME:
            raise Malformed(f"its pickle has a name of {len(full)} characters at byte {self.at}")
        if full in self.constants:
            self.names[full] = None
            self.stack.append(self.constants[full])
            return
        known = self.globals.get(full)
        if known is None:
            if runs_code(full, name):
                raise RunsCode(full)
            known = self.globals[full] = Global(full)
            self.names[full] = None
            if len(self.globals) > _MAX_GLOBALS:
                raise Malformed(f"its pickle names more than {_MAX_GLOBALS} different classes and functions")
        self.stack.append(known)

    def call(self, callee: Any, args: Any) -> Any:
        if not isinstance(callee, Global) or type(args) is not tuple:
            raise Malformed(f"its pickle calls what is no name at byte {self.at}")
        function = self.functions.get(callee.name)
        if function is None:
            return Opaque(callee.name, args)
        self.copies -= len(args)
        for argument in args:
            if type(argument) in _SIZED:
                self.copies -= len(argument)
        if self.copies < 0:
            raise Malformed(f"its pickle has the same contents copied over and over at byte {self.at}")
        return function(*args)


def _set_items(machine: _Machine, target: Any, items: list[Any]) -> None:
    store = target.items if isinstance(target, Opaque) else target
    if type(store) is not dict:
        raise Malformed(f"its pickle sets an item of a {type(target).__name__} at byte {machine.at}")
    if len(items) % 2:
        raise Malformed(f"its pickle sets a key without a value at byte {machine.at}")
    for index in range(0, len(items), 2):
        key = items[index]
        store[key if type(key) is str else checked_key(key)] = items[index + 1]


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    store = target.elements if isinstance(target, Opaque) else target
    if type(store) is not list:
        raise Malformed(f"its pickle appends to a {type(target).__name__} at byte {machine.at}")
    store.extend(items)


def _build(machine: _Machine) -> None:
    """State for the object below it. That of a known type (hooks, the `_metadata` of a state dict) is not needed."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Opaque):
        target.state = state
    elif isinstance(target, (list, str, int, bytes, Global, type(None))):
        raise Malformed(f"its pickle sets the state of a {type(target).__name__} at byte {machine.at}")


def _reduce(machine: _Machine) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args)


def _new_object_ex(machine: _Machine) -> None:
    args, named = machine.stack.pop(-2), machine.stack.pop()
    made = machine.call(machine.stack[-1], args)
    if named and not isinstance(made, Opaque):
        raise Malformed(f"its pickle calls a known function with named arguments at byte {machine.at}")
    if named:
        made.state = named
    machine.stack[-1] = made


def _stack_global(machine: _Machine) -> None:
    module, name = machine.stack.pop(-2), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Malformed(f"its pickle has a name that is no text at byte {machine.at}")
    machine.name(module, name)


def _global(machine: _Machine) -> None:
    module = machine.line().decode()
    machine.name(module, machine.line().decode())


def _protocol(machine: _Machine) -> None:
    version = machine.take(1)[0]
    if version > 5:
        raise Malformed(f"its pickle is of the unknown protocol {version}")


def _pop(machine: _Machine) -> None:
    _ = machine.stack.pop() if machine.stack else machine.pop_mark()


def _pop_mark(machine: _Machine) -> None:
    machine.pop_mark()


def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def handler(machine: _Machine) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError
        stack[len(stack) - count :] = [tuple(stack[len(stack) - count :])]

    return handler


def _pushing(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    def handler(machine: _Machine) -> None:
        # The operand first: making it may replace the stack.
        value = make(machine)
        machine.stack.append(value)

    return handler


def _putting(width: int) -> Callable[[_Machine], None]:
    def handler(machine: _Machine) -> None:
        machine.memo[int.from_bytes(machine.take(width), "little")] = machine.stack[-1]

    return handler


def _put_text(machine: _Machine) -> None:
    machine.memo[_integer(machine.line())] = machine.stack[-1]


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _integer(text: bytes) -> int:
    if len(text) > 1000:
        raise Malformed(f"its pickle has a number of {len(text)} digits")
    return int(text)


def _int_text(machine: _Machine) -> Any:
    text = machine.line()
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else _integer(text)


def _long(width: int) -> Callable[[_Machine], int]:
    def make(machine: _Machine) -> int:
        data = machine.sized(width)
        if len(data) > _MAX_LONG_BYTES:
            raise Malformed(f"its pickle has a number of {len(data)} bytes")
        return int.from_bytes(data, "little", signed=True)

    return make


def _string_text(machine: _Machine) -> str:
    text = machine.line().strip()
    if len(text) < 2 or text[:1] not in b"'\"" or text[:1] != text[-1:]:
        raise Malformed(f"its pickle has a string without quotes at byte {machine.at}")
    return codecs.escape_decode(text[1:-1])[0].decode("latin-1")


def _set_one(machine: _Machine) -> None:
    item = [machine.stack.pop(-2), machine.stack.pop()]
    _set_items(machine, machine.stack[-1], item)


def _set_many(machine: _Machine) -> None:
    items = machine.pop_mark()
    _set_items(machine, machine.stack[-1], items)


def _add_many(machine: _Machine) -> None:
    items = machine.pop_mark()
    target = machine.stack[-1]
    if isinstance(target, Opaque):
        target.elements.extend(items)
    elif isinstance(target, set):
        target.update(checked_key(item) for item in items)
    else:
        raise Malformed(f"its pickle adds to a {type(target).__name__} at byte {machine.at}")


def _dictionary(machine: _Machine) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set_items(machine, made, machine.pop_mark())
    return made


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_HANDLERS: dict[int, Callable[[_Machine], None]] = {
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
    0x4B: _pushing(lambda m: m.take(1)[0]),  # BININT1
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
    0x58: _pushing(lambda m: _text(m.sized(4))),  # BINUNICODE
    0x8C: _pushing(lambda m: _text(m.sized(1))),  # SHORT_BINUNICODE
    0x8D: _pushing(lambda m: _text(m.sized(8))),  # BINUNICODE8
    0x42: _pushing(lambda m: m.sized(4)),  # BINBYTES
    0x43: _pushing(lambda m: m.sized(1)),  # SHORT_BINBYTES
    0x8E: _pushing(lambda m: m.sized(8)),  # BINBYTES8
    0x96: _pushing(lambda m: m.sized(8)),  # BYTEARRAY8
    # containers
    0x29: _pushing(lambda m: ()),  # EMPTY_TUPLE
    0x74: _pushing(lambda m: tuple(m.pop_mark())),  # TUPLE
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
    0x91: _pushing(lambda m: frozenset(checked_key(item) for item in m.pop_mark())),  # FROZENSET
    # memo
    0x67: _pushing(lambda m: m.memo[_integer(m.line())]),  # GET
    0x68: _pushing(lambda m: m.memo[m.take(1)[0]]),  # BINGET
    0x6A: _pushing(lambda m: m.memo[int.from_bytes(m.take(4), "little")]),  # LONG_BINGET
    0x70: _put_text,
    0x71: _putting(1),
    0x72: _putting(4),
    0x94: _memoize,
    # names and calls
    0x63: _global,
    0x93: _stack_global,
    0x52: _reduce,
    0x81: _reduce,  # NEWOBJ: the same shape, class and arguments
    0x92: _new_object_ex,
    0x62: _build,
    0x51: _pushing(lambda m: m.persistent(m.stack.pop())),  # BINPERSID
}
_TABLE: list[Callable[[_Machine], None] | None] = [_HANDLERS.get(code) for code in range(256)]
