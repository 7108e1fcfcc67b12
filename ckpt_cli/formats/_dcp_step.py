"""The objects of a DCP index as Python's pickler writes them by protocol 4, each done in one step instead of ninety.

There are three for each tensor of a model: its entry, which of all tensors of one shape is written alike, and the key
and the place of its bytes. What comes of one is what its opcodes would make of it one by one. Whatever is written in
another way is left to these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_cli.formats._dcp_classes import MODULES, Tensor
from ckpt_cli.formats._effects import FAULT
from ckpt_cli.formats._inert import Global, Known, Malformed
from ckpt_cli.formats._one_step import NEW_SHAPE, PER_BYTE
from ckpt_cli.formats._opcodes import TEXT

if TYPE_CHECKING:
    from ckpt_cli.formats._machine import Machine

_SIZE = "torch.Size"
_INT = rb"(?:K.|M..|J....|\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}))"
_PARTS = {
    b"get": rb"(?:h.|j...[\0-\x7f])", b"int": _INT, b"text": rb"\x8c.[ -~]*\x94", b"state": rb"\x81\x94\}\x94\(",
    b"sizes": rb"(?:\)|%(int)s\x85\x94|%(int)s{2}\x86\x94|%(int)s{3}\x87\x94|\(%(int)s{4,64}t\x94)\x85\x94R\x94",
}  # fmt: skip
_PARTS[b"sizes"] %= _PARTS
_PARTS[b"size"] = rb"%(get)s(?:%(sizes)s)?" % _PARTS
_PARTS[b"chunk"] = rb"%(get)s\)%(state)s%(get)s%(size)s%(get)s%(size)sub" % _PARTS
_PARTS[b"chunks"] = rb"\]\x94(?:%(chunk)sa|(?:\((?:%(chunk)s)+e)*)" % _PARTS
_PARTS[b"properties"] = rb"%(get)s\)\x81\x94\((?:%(get)s|[\x88\x89N]){2,8}t\x94b" % _PARTS
_PARTS[b"value"] = rb"(%(size)s|%(int)s|%(text)s|N)" % _PARTS
# From NEWOBJ on: an object of two or three plain values, and one that is an entry.
_PLAIN = re.compile(rb"%(state)s(%(get)s)%(value)s(%(get)s)%(value)s(?:(%(get)s)%(value)s)?ub" % _PARTS, re.DOTALL)
_ENTRY = re.compile(rb"%(state)s(?:%(get)s(?:%(properties)s|%(chunks)s|%(size)s)){3}ub" % _PARTS, re.DOTALL)
_EACH = re.compile(_INT, re.DOTALL)
# Slots that an object and its state take.
_OWN_SLOTS = 2
# What the path of a file takes besides the letters of its name.
_PATH = 150
# What it takes in memory to know an entry when it is met again, besides its opcodes.
_TO_KNOW = 500
# Values that are kept for when they are met again, as each shape and length is.
_MOST_VALUES = 1 << 14
# What is taken by an object, and by an entry and each of its chunks, with what they stand for and are listed as.
_OBJECT, _FOUND, _CHUNK = 600, 680, 300


class _Value(NamedTuple):
    """What a value's opcodes make, and how many slots of the memo they set: the last one to it."""

    made: Any
    slots: int


class _Alike(NamedTuple):
    """What entries of the same opcodes stand for, how many slots they set, and those of them that hold sizes."""

    found: Tensor
    slots: int
    kept: dict[int, Any]


def steps() -> dict[str, Callable[[Machine], bool]]:
    """For the classes of one index, by name. Each is asked when a class and arguments, which are none, have been read,
    and says whether it has made the object."""
    values: dict[bytes, _Value] = {}
    learnt: dict[bytes, _Alike] = {}
    plain = {"metadata.ChunkStorageMetadata": 0, "metadata.MetadataIndex": 0, "filesystem._StorageInfo": _PATH}
    return {
        **{
            f"{module}.{name}": partial(_plain, values=values, per_text=per_text)
            for module in MODULES
            for name, per_text in plain.items()
        },
        **{f"{module}.metadata.TensorStorageMetadata": partial(_entry, learnt=learnt) for module in MODULES},
    }


def _plain(machine: Machine, values: dict[bytes, _Value], per_text: int) -> bool:
    """Makes an object whose arguments, which are none, have been read; False where it is written in another way."""
    # Before slots are left out of the memo, one could still be set anew.
    found = _PLAIN.match(machine.data, machine.at, machine.limit) if machine.forgotten else None
    if found is None:
        return False
    parts = found.groups()
    state: dict[Any, Any] = {}
    slots, kept = _OWN_SLOTS, {}
    for at in range(0, 6 if parts[4] else 4, 2):
        name = values.get(parts[at]) or _value(machine, parts[at], values)
        value = values.get(parts[at + 1]) or _value(machine, parts[at + 1], values)
        if name is None or value is None or type(name.made) is not str:
            return False
        state[name.made] = value.made
        if value.slots:
            slots += value.slots
            kept[slots - 1] = value.made
            if per_text and type(value.made) is str:
                machine.room -= per_text + len(value.made)
    if not machine.skip(slots, kept):
        return False
    machine.at = found.end()
    made = _made(machine)
    made.found = made.take(state)
    machine.room -= _OBJECT + (FAULT if isinstance(made.found, Malformed) else 0)
    return True


def _entry(machine: Machine, learnt: dict[bytes, _Alike]) -> bool:
    """The same of an entry. The opcodes make the first of its kind."""
    found = _ENTRY.match(machine.data, machine.at, machine.limit) if machine.forgotten else None
    if found is None:
        return False
    alike = learnt.get(found[0])
    if alike is None:
        _learn(machine, found[0], learnt)
        return True
    if not machine.skip(alike.slots, alike.kept):
        return False
    machine.at = found.end()
    _made(machine).found = alike.found
    _hold(machine, alike.found)
    return True


def _learn(machine: Machine, text: bytes, learnt: dict[bytes, _Alike]) -> None:
    first = machine.slot
    machine.stack.append(())
    machine.carry_out(machine.at + len(text))
    made = machine.stack[-1]
    if isinstance(made, Known) and isinstance(made.found, Tensor):
        there = ((slot - first, machine.far.get(slot)) for slot in range(first, machine.slot))
        kept = {slot: value for slot, value in there if type(value) is tuple}
        learnt[text] = _Alike(made.found, machine.slot - first, kept)
        machine.room -= _TO_KNOW + len(text)
        _hold(machine, made.found)


def _hold(machine: Machine, found: Tensor) -> None:
    count = len(found.boxes)
    machine.room -= _FOUND + count * _CHUNK


def _made(machine: Machine) -> Known:
    """An object of the class that is on top of the stack, in its place."""
    made: Known = machine.functions[machine.stack[-1].name]()
    machine.stack[-1] = made
    return made


def _value(machine: Machine, text: bytes, values: dict[bytes, _Value]) -> _Value | None:
    """What these opcodes make; None where the interpreter should say what is wrong with them."""
    code, known = text[:1], len(values) < _MOST_VALUES
    if code in b"hj":
        head = 2 if code == b"h" else 5
        slot = int.from_bytes(text[1:head], "little")
        try:
            made, slots = machine.get(slot), 0
        except KeyError:
            return None
        if len(text) > head:
            if not isinstance(made, Global) or made.name != _SIZE:
                return None
            machine.room -= NEW_SHAPE + PER_BYTE * len(text)
            made, slots = tuple(map(_number, _EACH.findall(text, head))), 2 if text.startswith(b")", head) else 3
        else:
            known = known and type(made) is str and made.isidentifier()  # of an attribute, not of a tensor
    elif code == b"\x8c":
        if text[1] != len(text) - 3:
            return None
        made, slots, known = text[2:-1].decode(), 1, False
        machine.room -= len(text) + TEXT
    else:
        made, slots = None if code == b"N" else _number(text), 0
    value = _Value(made, slots)
    if known:
        values[text] = value
    return value


def _number(opcode: bytes) -> int:
    """The operand: an unsigned number of one byte or two, a signed one of four or more."""
    if opcode.startswith(b"\x8a"):
        return int.from_bytes(opcode[2:], "little", signed=True)
    return int.from_bytes(opcode[1:], "little", signed=len(opcode) == 5)
