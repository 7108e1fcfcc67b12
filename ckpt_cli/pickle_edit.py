"""Edits of a pickle that keep every opcode they do not change: a member of a dict is set, added or taken away.

The pickle is run by the same closed interpreter that reads it, which notes on the way where each key and value begins
and ends. Nothing of it is imported or called. Opcodes and frames after Python's `pickletools` and PEP 3154.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats._inert import Global, Malformed, Opaque
from ckpt_cli.formats._machine import Loaded, Machine
from ckpt_cli.formats._opcodes import TABLE
from ckpt_cli.pickling import plain

_STOP, _FRAME, _SET_ONE, _SET_MANY, _DICT, _MEMOIZE = 0x2E, 0x95, 0x73, 0x75, 0x64, 0x94
# After these a container is on top of the stack, as it is so far: EMPTY_DICT, REDUCE, NEWOBJ, members set, put away.
_LEAVE_ON_TOP = {0x7D, 0x52, 0x81, _DICT, _SET_ONE, _SET_MANY, 0x70, 0x71, 0x72, _MEMOIZE}
_TEXTS = b"XVSTU\x8c\x8d"


class _Entry(NamedTuple):
    """One member: its key, and where that, its value and its end are; `stop` is behind an opcode that is its alone."""

    key: Any
    start: int
    value: int
    end: int
    stop: int


class _Put(NamedTuple):
    """A slot of the memo and where it is set; `text` is where the text begins that is put there, None for all else."""

    slot: int
    start: int
    end: int
    text: int | None


class _Tracker(Machine):
    """A run of the pickle that notes places."""

    def __init__(self, data: bytes) -> None:
        # The file has been read within its bounds before, and this takes no more than twice as much.
        super().__init__(data, {}, {}, lambda pid: Opaque("storage", ()), 0, 1 << 62)
        self.began = 0
        self.starts: list[int] = []
        self.outer: list[tuple[list[int], int]] = []
        # By identity, with the object itself, so that no other takes its number.
        self.members: dict[int, tuple[Any, list[_Entry]]] = {}
        self.tops: dict[int, tuple[Any, int]] = {}
        self.gets: list[tuple[int, int, int]] = []
        self.puts: list[_Put] = []
        self.frames: list[tuple[int, int]] = []

    def run(self) -> Loaded:
        while True:
            self.began = self.at
            code = self.byte()
            if code == _STOP:
                return Loaded(self.stack[-1], list(self.names), self.at, self.room)
            if code == _FRAME:
                length = int.from_bytes(self.take(8), "little")
                self.frames.append((self.began + 1, self.at + length))
                continue
            handler = TABLE[code]
            if handler is None:
                raise Malformed(f"its pickle has the opcode {code:#04x} at byte {self.began}: no checkpoint needs it")
            entries = self.entries(code)
            depth = len(self.marks)
            handler(self)
            self.follow(depth)
            top = self.stack[-1] if self.stack else None
            if entries:
                self.members.setdefault(id(top), (top, []))[1].extend(entries)
            if code in _LEAVE_ON_TOP and isinstance(top, (dict, Opaque)):
                self.tops[id(top)] = top, self.at

    def put(self, slot: int) -> None:
        start = self.starts[-1]
        text = start if type(self.stack[-1]) is str and self.data[start] in _TEXTS else None
        self.puts.append(_Put(slot, self.began, self.at, text))
        super().put(slot)

    def get(self, slot: int) -> Any:
        self.gets.append((slot, self.began, self.at))
        return super().get(slot)

    def follow(self, depth: int) -> None:
        """Where each value of the stack begins; what is made of several begins where the first of them did."""
        if len(self.marks) > depth:
            self.outer.append((self.starts, self.began))
            self.starts = []
            return
        at = self.began
        if len(self.marks) < depth:
            self.starts, at = self.outer.pop()
        if len(self.starts) < len(self.stack):
            self.starts.append(at)
        del self.starts[len(self.stack) :]

    def entries(self, code: int) -> list[_Entry]:
        """The members that the opcode at hand is about to set."""
        if code == _SET_ONE:
            key, value = self.starts[-2:]
            return [_Entry(self.stack[-2], key, value, self.began, self.at)]
        if code not in (_SET_MANY, _DICT):
            return []
        places = [*self.starts, self.began]
        return [
            _Entry(self.stack[at], places[at], places[at + 1], places[at + 2], places[at + 2])
            for at in range(0, len(self.stack) - 1, 2)
        ]


def changed(data: bytes, path: Sequence[str], value: Any, name: str) -> bytes:
    """The pickle with the member at `path` set to a plain value; it is added where it is new.

    Raises CkptError where no dict is there to hold it, and for a value of another kind than JSON has.
    """
    run, holder = _holder(data, path, name)
    new = plain(value)
    there = _named(run, holder, path[-1])
    if not there:
        at = run.tops[id(holder)][1]
        return _patched(run, [(at, at, plain(path[-1]) + new + b"s")])
    one = there[-1]
    moves = _moves(run, one.value, one.end)
    if moves is None:
        return _patched(run, [(one.end, one.end, b"0" + new)])
    return _patched(run, [(one.value, one.end, new), *moves])


def without(data: bytes, path: Sequence[str], name: str) -> bytes:
    """The pickle without the member at `path`."""
    while True:
        run, holder = _holder(data, path, name)
        there = _named(run, holder, path[-1])
        if not there:
            return data
        one = there[0]
        moves = _moves(run, one.start, one.end)
        data = _patched(run, [(one.end, one.stop, b"00")] if moves is None else [(one.start, one.stop, b""), *moves])


_Patch = tuple[int, int, bytes]


def _moves(run: _Tracker, start: int, end: int) -> list[_Patch] | None:
    """What has to be said elsewhere when a range of opcodes goes; None where it must stay, and be popped instead,
    because slots of the memo are numbered as they come.

    A text that is referred to later is moved to the first such place. Raises CkptError for other things.
    """
    moves = []
    for put in run.puts:
        if not start <= put.start < end:
            continue
        if run.data[put.start] == _MEMOIZE:
            return None
        again = min((other.start for other in run.puts if other.slot == put.slot and other.start >= end), default=None)
        later = [
            (first, stop)
            for slot, first, stop in run.gets
            if slot == put.slot and first >= end and (again is None or first < again)
        ]
        if later and put.text is None:
            raise CkptError("what would be changed is shared with another part of the file")
        if later:
            moves.append((*later[0], run.data[put.text : put.end]))
    return moves


def _patched(run: _Tracker, patches: Sequence[_Patch]) -> bytes:
    """The pickle with ranges replaced, from the last to the first, so that none moves before its turn, and the length
    of the frames around them corrected, which begin before what they hold."""
    made = bytearray(run.data)
    for start, end, new in sorted(patches, reverse=True):
        made[start:end] = new
        for place, stop in run.frames:
            if place + 8 <= start < stop:
                length = int.from_bytes(made[place : place + 8], "little") + len(new) - (end - start)
                made[place : place + 8] = length.to_bytes(8, "little")
    return bytes(made)


def _holder(data: bytes, path: Sequence[str], name: str) -> tuple[_Tracker, Any]:
    """The run of the pickle, and the dict that holds the last key of the path."""
    run = _Tracker(data)
    try:
        value = run.run().value
    except (LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise Malformed(f"{name}: its pickle breaks off at byte {run.at}") from error
    for depth, key in enumerate(path):
        holder = _dict_of(value, key)
        if holder is None or (depth == len(path) - 1 and id(holder) not in run.tops):
            raise CkptError(f"{name}: {'.'.join(path[:depth]) or 'the pickle'} holds no keys that can be edited")
        if depth == len(path) - 1:
            return run, holder
        value = (holder.items if isinstance(holder, Opaque) else holder).get(key)
    raise CkptError(f"{name}: a key has to be named")


def _dict_of(value: Any, key: str) -> Any:
    """What holds the members of a value: itself, or the state of an object."""
    if isinstance(value, Opaque):
        return value.state if isinstance(value.state, dict) and key not in value.items else value
    return value if isinstance(value, dict) else None


def _named(run: _Tracker, holder: Any, key: str) -> list[_Entry]:
    found = run.members.get(id(holder))
    return [entry for entry in found[1] if not isinstance(entry.key, Global) and entry.key == key] if found else []
