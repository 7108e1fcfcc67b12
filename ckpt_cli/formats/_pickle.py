"""A pickle interpreter that cannot run anything: a closed table of opcodes over plain values.

Python's pickle protocols 0 to 5 (PEP 3154, PEP 574 and `pickletools` are the reference), less what no
checkpoint needs: INST, OBJ, text persistent ids, the extension registry, out-of-band buffers. A name in the
stream is looked up in the caller's tables and nowhere else. One that is in no table becomes a `Global`, and
what it would have built becomes an inert `Opaque`, which can be shown; one that runs code ends the reading.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats._effects import PLACED
from ckpt_cli.formats._inert import Global, Malformed, Opaque, Ordered, RunsCode, Truncated, room_of, runs_code
from ckpt_cli.formats._opcodes import CALLED, COSTS, FAR_SLOT, MARK, NEW_NAME, TABLE

_MAX_NAME = 1000
# Different names nobody knows: the largest pickled module has some hundreds.
_MAX_GLOBALS = 10_000
# What calls may copy of their arguments: some, and as much again as the pickle weighs. One that hands the same
# list to a thousand calls would have a thousand copies of it.
_COPIED = 100_000
_SIZED = (str, bytes, list, tuple, dict, set, frozenset)
_MADE = frozenset({*_SIZED, Ordered})
_MOST_SAID = 200
Constants = Mapping[str, Any]
Functions = Mapping[str, Callable[..., Any]]
Find = Callable[[Any], Any]
# How many times its own bytes a pickle may have the file count for: those of its tensors lie beside it.
_MOST_AROUND = 4
# In a memo slot that was left out.
_UNSET = object()


class Loaded(NamedTuple):
    """The value, the names met on the way, where in the data the pickle ended, and the room it left (see `room_of`)."""

    value: Any
    globals: list[str]
    end: int
    room: int


def load(
    data: bytes, constants: Constants, functions: Functions, persistent: Find, start: int = 0, size: int | None = None
) -> Loaded:
    """Interprets one pickle that begins at byte `start` of `data`.

    `constants` are names that stand for a value, `functions` names whose calls are carried out by ours;
    `persistent` turns a persistent id into a value. `size` is that of the file in bytes, which says how much memory
    its contents may take; without it that of the data. Raises Malformed, or RunsCode at the first such name.
    """
    length = len(data) - start
    size = length if size is None else min(size, _MOST_AROUND * length)
    # What was compressed takes memory of its own.
    room = room_of(size) - max(0, length - size)
    machine = Machine(data, constants, functions, persistent, start, room)
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


class Machine:
    """Stack, marks and memo of one run.

    The memo is a list, for slots are numbered as they are set; those far beyond its end, which nobody writes, lie in
    `far`. `room` falls with every opcode by about the bytes that it takes in memory.
    """

    def __init__(
        self, data: bytes, constants: Constants, functions: Functions, persistent: Find, start: int, room: int
    ) -> None:
        self.data = data
        self.size = len(data)
        self.at = start
        self.constants = constants
        self.functions = functions
        self.persistent: Find = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        self.far: dict[int, Any] = {}
        self.unset = 0
        self.globals: dict[str, Global] = {}
        self.names: dict[str, None] = {}
        self.room = room
        self.copies = _COPIED + 2 * (len(data) - start)

    def run(self) -> Loaded:
        data, table, costs, size = self.data, TABLE, COSTS, len(self.data)
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
            self.room -= costs[code]
            if self.room < 0:
                raise Malformed(f"its pickle unfolds to more than its size allows, by byte {self.at}")
            if code == 0x2E:  # STOP
                return Loaded(self.stack[-1], list(self.names), self.at, self.room)
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
        at = self.at
        end = at + count
        if end > self.size:
            raise Truncated(f"its pickle breaks off at byte {self.size}")
        self.at = end
        return self.data[at:end]

    def byte(self) -> int:
        at = self.at
        if at >= self.size:
            raise Truncated(f"its pickle breaks off at byte {self.size}")
        self.at = at + 1
        return self.data[at]

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
        self.room += MARK
        return items

    def put(self, slot: int) -> None:
        value, memo = self.stack[-1], self.memo
        if slot == 1 and not memo:  # Python 2 counts them from 1
            memo.append(_UNSET)
            self.unset = 1
        if slot < len(memo):
            self.unset -= memo[slot] is _UNSET
            memo[slot] = value
        elif slot == len(memo):
            memo.append(value)
            self.far.pop(slot, None)
        else:
            self.room -= FAR_SLOT
            self.far[slot] = value

    def get(self, slot: int) -> Any:
        """What lies in the slot; raises KeyError where it was never set."""
        value = self.memo[slot] if 0 <= slot < len(self.memo) else self.far.get(slot, _UNSET)
        if value is _UNSET:
            raise KeyError(slot)
        return value

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
            if full not in self.functions and runs_code(full, name):
                raise RunsCode(full)
            known = self.globals[full] = Global(full)
            self.names[full] = None
            self.room -= NEW_NAME + len(full)
            if len(self.globals) > _MAX_GLOBALS:
                raise Malformed(f"its pickle names more than {_MAX_GLOBALS} different classes and functions")
        self.stack.append(known)

    def call(self, callee: Any, args: Any) -> Any:
        if not isinstance(callee, Global) or type(args) is not tuple:
            raise Malformed(f"its pickle calls what is no name at byte {self.at}")
        self.room -= CALLED
        function = self.functions.get(callee.name)
        if function is None:
            return Opaque(callee.name, args)
        self.copies -= len(args)
        for argument in args:
            if type(argument) in _SIZED:
                self.copies -= len(argument)
        if self.copies < 0:
            raise Malformed(f"its pickle has the same contents copied over and over at byte {self.at}")
        made = function(*args)
        # A tensor is a tuple too, of a kind of its own.
        if type(made) in _MADE and not any(made is argument for argument in args):
            self.room -= len(made) * (PLACED if type(made) not in (str, bytes) else 1)
        return made
