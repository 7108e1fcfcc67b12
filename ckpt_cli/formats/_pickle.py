"""A pickle interpreter that cannot run anything: a closed table of opcodes over plain values.

Python's pickle protocols 0 to 5 (PEP 3154, PEP 574 and `pickletools` are the reference), less what no
checkpoint needs: INST, OBJ, text persistent ids, the extension registry, out-of-band buffers. A name in the
stream is looked up in the caller's tables and nowhere else. One that is in no table becomes a `Global`, and
what it would have built becomes an inert `Opaque`, which can be shown; one that runs code ends the reading.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import TensorInfo
from ckpt_cli.errors import CkptError
from ckpt_cli.formats._code_names import runs_code
from ckpt_cli.formats._effects import NUMBER, PLACED
from ckpt_cli.formats._inert import (
    Costly,
    Global,
    Malformed,
    Opaque,
    Ordered,
    RunsCode,
    Truncated,
    length_of,
    room_for,
    spread,
)
from ckpt_cli.formats._inert import room as room_of_a_file
from ckpt_cli.formats._one_step import ARGUMENTS, HOOKS, mark
from ckpt_cli.formats._opcodes import CALLED, COSTS, FAR_SLOT, MARK, NEW_NAME, RETURNED, TABLE, TENSOR
from ckpt_cli.formats._stream import Stream

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
# Bytes of a line, which nobody writes long: texts have their length before them.
_MAX_LINE = 2 << 20
# Values side by side on the stack, or in a list: more than a listing may have names (see `_tree`).
MAX_ITEMS = 2_000_000
_TABLE = [*TABLE]
_TABLE[0x28] = mark  # of a tensor all at once
# Bytes of a pickle in which tensors are more than contents: those of some two hundred thousand.
_MOST_HELD = 24 << 20
# In a memo slot that was left out.
_UNSET = object()


class Loaded(NamedTuple):
    """The value, the names met on the way, where the pickle ended, the room it left (see `_inert.room`), and the
    containers in it that stand in more than one place, by identity."""

    value: Any
    globals: list[str]
    end: int
    room: int
    shared: Set[int] = frozenset()


def load(
    stream: Stream,
    constants: Constants,
    functions: Functions,
    persistent: Find,
    room: int | None = None,
) -> Loaded:
    """Interprets one pickle that begins where the stream does.

    `constants` are names that stand for a value, `functions` names whose calls are carried out by ours;
    `persistent` turns a persistent id into a value. `room` is what other pickles of the file have left. Raises
    Malformed, or RunsCode at the first such name.
    """
    machine = Machine(b"", constants, functions, persistent, 0, room_of_a_file() if room is None else room, stream)
    try:
        return machine.run()
    except CkptError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, struct.error) as error:
        # Operands that do not fit the opcode: an empty stack, an unset memo slot, a call with wrong arguments.
        raise Malformed(f"its pickle breaks off at byte {machine.place}: {_reason(error)}") from error
    finally:  # or a failure would keep it all for as long as it is told
        machine.stack, machine.marks, machine.memo, machine.far = [], [], [], {}


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"memo slot {error} was never set"
    if isinstance(error, IndexError):
        return "the stack or the data is exhausted"
    return str(error)[:_MOST_SAID] or type(error).__name__


class Machine:
    """Stack, marks and memo of one run.

    `data` is the part of the stream that is at hand, `at` the place in it, `base` where it begins. The memo is a list,
    for slots are numbered as they are set; those far beyond its end, which nobody writes, lie in `far`. `room` falls
    with every opcode by about the bytes that it takes in memory.
    """

    def __init__(
        self,
        data: bytes,
        constants: Constants,
        functions: Functions,
        persistent: Find,
        start: int,
        room: int,
        stream: Stream | None = None,
    ) -> None:
        self.data = data
        self.at = start
        self.base = stream.start if stream else 0
        self.start = self.base
        self.end = self.base + (stream.length if stream else len(data))
        self.blocks: Iterator[bytes] = stream.blocks if stream else iter(())
        self.frame = 0
        self.limit = len(data)
        self.constants = constants
        self.functions = functions
        self.persistent: Find = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        self.far: dict[int, Any] = {}
        self.unset = self.forgotten = 0
        self.asked = stream.asked if stream else None
        self.tuples: dict[bytes, tuple[int, ...]] = {}
        self.globals: dict[str, Global] = {}
        self.names: dict[str, None] = {}
        self.room = room
        self.texts = self.granted = 0
        self.held = self.place
        self.shared: set[int] = set()
        self.copies = _COPIED + 2 * (self.end - self.place)

    @property
    def place(self) -> int:
        """The place in the whole stream."""
        return self.base + self.at

    def run(self) -> Loaded:
        table, costs = _TABLE, COSTS
        while True:
            if self.at >= self.limit:
                self.go_on()
            code = self.data[self.at]
            self.at += 1
            self.room -= costs[code]
            if self.room < 0:
                self.earn()
            if code == 0x2E:  # STOP
                self.earn()
                return Loaded(self.stack[-1], list(self.names), self.place, self.room, self.shared)
            if code == 0x95:  # FRAME
                self.begin_frame()
                continue
            handler = table[code]
            if handler is None:
                place = self.place - 1
                raise Malformed(f"its pickle has the opcode {code:#04x} at byte {place}: no checkpoint needs it")
            handler(self)

    def go_on(self) -> None:
        """At the end of a frame, or of what is at hand. A frame must end where an opcode ends."""
        if self.frame and self.place >= self.frame:
            if self.place > self.frame:
                cut = Truncated if self.place >= self.end else Malformed
                raise cut(f"its pickle breaks off at byte {self.place}")
            self.frame = 0
        if self.at >= len(self.data):
            self.fetch(1)
        self.bound()

    def begin_frame(self) -> None:
        if self.frame:
            raise Malformed(f"its pickle has a frame within a frame at byte {self.place}")
        length = int.from_bytes(self.take(8), "little")
        if length > self.end - self.place:
            raise Truncated(f"its pickle has a frame that reaches beyond its end at byte {self.place}")
        self.frame = self.place + length if length else 0
        self.bound()

    def bound(self) -> None:
        self.limit = min(len(self.data), self.frame - self.base) if self.frame else len(self.data)

    def earn(self) -> None:
        """Grants what texts get so far; raises Malformed where it is too little."""
        earned = room_for(self.texts, self.end - self.start)
        self.room += earned - self.granted
        self.granted = earned
        if self.room < 0:
            raise Costly(f", by byte {self.place}")

    def hold(self, bytes: int, written: int) -> None:
        """Gives back what a thing was counted as that the file is there for, a tensor or what says where one lies: of
        one that is written in fewer bytes than picklers write it in less, and nothing far behind in the pickle."""
        place = self.place
        if place < self.start + _MOST_HELD:
            self.room += bytes * min(place - self.held, written) // written
            self.held = place

    def fetch(self, count: int) -> None:
        """Has `count` bytes at hand; raises Truncated where they are not there."""
        if count > self.end - self.place:
            raise Truncated(f"its pickle breaks off at byte {self.end}")
        if len(self.stack) > MAX_ITEMS:
            raise Malformed(f"its pickle has more than {MAX_ITEMS} values side by side, by byte {self.place}")
        pieces = [self.data[self.at :]]
        there = len(pieces[0])
        while there < count:
            pieces.append(next(self.blocks))
            there += len(pieces[-1])
        self.base += self.at
        self.at, self.data = 0, b"".join(pieces)
        self.bound()

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            self.fetch(count)
        at = self.at
        self.at = end = at + count
        return self.data[at:end]

    def byte(self) -> int:
        if self.at >= len(self.data):
            self.fetch(1)
        self.at += 1
        return self.data[self.at - 1]

    def pieces(self, count: int) -> Iterator[bytes]:
        """So many bytes, as they are at hand: not all of them at once."""
        if count > self.end - self.place:
            raise Truncated(f"its pickle breaks off at byte {self.end}")
        while count:
            if self.at >= len(self.data):
                self.fetch(1)
            piece = self.data[self.at : self.at + count]
            self.at += len(piece)
            count -= len(piece)
            yield piece

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        while end < 0:
            there = len(self.data) - self.at
            if there > _MAX_LINE:
                raise Malformed(f"its pickle has a line of more than {_MAX_LINE} bytes at byte {self.place}")
            self.fetch(2 * there + 1 if 2 * there < self.end - self.place else max(there + 1, self.end - self.place))
            end = self.data.find(b"\n", self.at + there)
        text = self.data[self.at : end]
        self.at = end + 1
        self.room -= len(text)
        return text

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        self.room += MARK
        return items

    def put(self, slot: int) -> None:
        value, memo = self.stack[-1], self.memo
        if self.forgotten and slot != len(memo) + len(self.far) + self.forgotten - self.unset:
            raise Malformed(f"its pickle numbers its memo in two ways, by byte {self.place}")
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
        if value is HOOKS:
            value = self.memo[slot] = Ordered()
        elif value is ARGUMENTS:
            raise Malformed(f"its pickle uses twice what a tensor is made of, by byte {self.place}")
        return value

    def name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if len(full) > _MAX_NAME:
            raise Malformed(f"its pickle has a name of {len(full)} characters at byte {self.place}")
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
            raise Malformed(f"its pickle calls what is no name at byte {self.place}")
        self.room -= CALLED
        function = self.functions.get(callee.name)
        if function is None:
            return Opaque(callee.name, args)
        self.copies -= len(args)
        if list in map(type, args):
            args = tuple(self.spread(argument) if type(argument) is list else argument for argument in args)
        for argument in args:
            if type(argument) in _SIZED:
                self.copies -= len(argument)
        if self.copies < 0:
            raise Malformed(f"its pickle has the same contents copied over and over at byte {self.place}")
        made = function(*args)
        # A tensor is a tuple too, of a kind of its own.
        if any(made is argument for argument in args):
            self.room += CALLED - RETURNED
        elif type(made) in _MADE:
            self.room -= len(made) * (PLACED if type(made) not in (str, bytes) else 1)
        elif type(made) is TensorInfo and made.storage is not None:
            self.hold(*TENSOR)
        return made

    def spread(self, items: list[Any]) -> list[Any]:
        """A list as functions take it."""
        count = length_of(items)
        if count == len(items):
            return items
        self.room -= NUMBER * count
        if self.room < 0:
            self.earn()
        return list(spread(items))
