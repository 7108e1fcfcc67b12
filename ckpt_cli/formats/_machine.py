"""The interpreter of a pickle: its stack, marks and memo, what it knows by name, and what all that may cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from types import MappingProxyType
from typing import Any, NamedTuple

from ckpt_cli.formats._code_names import runs_code
from ckpt_cli.formats._effects import NUMBER, PLACED
from ckpt_cli.formats._inert import (
    Costly,
    Global,
    Malformed,
    Opaque,
    Ordered,
    RunsCode,
    length_of,
    spread,
)
from ckpt_cli.formats._input import Input
from ckpt_cli.formats._one_step import ARGUMENTS, HOOKS, mark
from ckpt_cli.formats._opcodes import CALLED, COSTS, FAR_SLOT, MARK, NEW_NAME, RETURNED, TABLE, UNKNOWN, VIEW
from ckpt_cli.formats._stream import Stream
from ckpt_cli.tensor_file import TensorInfo

_MAX_NAME = 1000
# Different names nobody knows: the largest pickled module has some hundreds.
_MAX_GLOBALS = 10_000
# What calls may copy of their arguments: some, and as much again as the pickle weighs. One that hands the same
# list to a thousand calls would have a thousand copies of it.
_COPIED = 100_000
_SIZED = (str, bytes, list, tuple, dict, set, frozenset)
_MADE = frozenset({*_SIZED, Ordered})
Constants = Mapping[str, Any]
Functions = Mapping[str, Callable[..., Any]]
Find = Callable[[Any], Any]
# By the name of a class what makes its objects all at once, where it can (see `_dcp_step`).
Steps = Mapping[str, Callable[["Machine"], bool]]
# Values side by side on the stack, or in a list: more than a listing may have names (see `_tree`).
MAX_ITEMS = 2_000_000
_TABLE = [*TABLE]
_TABLE[0x28] = mark  # of a tensor all at once
# In a memo slot that was left out.
_UNSET = object()


class Loaded(NamedTuple):
    """The value, the names met on the way, where the pickle ended, the room that it left of that of a file, and the
    containers in it that stand in more than one place, by identity."""

    value: Any
    globals: list[str]
    end: int
    room: int
    shared: Set[int] = frozenset()


class Machine(Input):
    """Stack, marks and memo of one run.

    The memo is a list, for slots are numbered as they are set; those far beyond its end, which nobody writes, lie in
    `far`. `room` falls with every opcode by about the bytes that it takes in memory.
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
        steps: Steps = MappingProxyType({}),
    ) -> None:
        super().__init__(data, start, stream)
        self.constants = constants
        self.steps = steps
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
        self.let_go = 0
        self.memoizes = False
        self.shared: set[int] = set()
        self.copies = _COPIED + 2 * (self.end - self.place)

    def run(self) -> Loaded:
        table, costs = _TABLE, COSTS
        while True:
            if self.at >= self.limit:
                self.go_on()
            code = self.data[self.at]
            self.at += 1
            self.room -= costs[code]
            if self.room < 0:
                raise Costly(f", by byte {self.place}")
            if code == 0x2E:  # STOP
                return Loaded(self.stack[-1], list(self.names), self.place, self.room + self.let_go, self.shared)
            if code == 0x95:  # FRAME
                self.begin_frame()
                continue
            handler = table[code]
            if handler is None:
                place = self.place - 1
                raise Malformed(f"its pickle has the opcode {code:#04x} at byte {place}: no checkpoint needs it")
            handler(self)

    def fetch(self, count: int) -> None:
        if len(self.stack) > MAX_ITEMS:
            raise Malformed(f"its pickle has more than {MAX_ITEMS} values side by side, by byte {self.place}")
        super().fetch(count)

    def line(self) -> bytes:
        text = super().line()
        self.room -= len(text)
        return text

    def carry_out(self, end: int) -> None:
        """The opcodes up to a place in what is at hand where one ends."""
        while self.at < end:
            code = self.data[self.at]
            self.at += 1
            self.room -= COSTS[code]
            if handler := _TABLE[code]:
                handler(self)

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        self.room += MARK
        return items

    def put(self, slot: int) -> None:
        value, memo = self.stack[-1], self.memo
        if slot == len(memo) > 1 and not (self.far or self.forgotten):  # as nearly always
            memo.append(value)
            return
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

    @property
    def slot(self) -> int:
        """The next one of the memo."""
        return len(self.memo) + len(self.far) + self.forgotten - self.unset

    def skip(self, count: int, kept: Mapping[int, Any]) -> bool:
        """Sets so many slots of a memo that does not keep all, to what is `kept` by number from the next; False, and
        sets none, where another of them is asked for again."""
        asked, first = self.asked, self.slot
        if asked is None or self.unset or not 0 < first + count <= len(asked):
            return False
        again = []
        at = asked.find(1, first, first + count)
        while at >= 0:
            if at - first not in kept:
                return False
            again.append(at)
            at = asked.find(1, at + 1, first + count)
        for slot in again:
            self.far[slot] = kept[slot - first]
        self.forgotten += count - len(again)
        self.room -= FAR_SLOT * len(again)
        return True

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
        function = self.functions.get(callee.name)
        if function is None:
            self.room -= UNKNOWN
            return Opaque(callee.name, args)
        self.room -= CALLED
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
        elif type(made) is TensorInfo:
            self.room -= VIEW
        return made

    def spread(self, items: list[Any]) -> list[Any]:
        """A list as functions take it."""
        count = length_of(items)
        if count == len(items):
            return items
        self.room -= NUMBER * count
        if self.room < 0:
            raise Costly(f", by byte {self.place}")
        return list(spread(items))
