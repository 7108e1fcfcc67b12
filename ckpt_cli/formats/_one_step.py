"""The call that rebuilds a tensor, as Python's pickler writes it for torch.save, done in one step instead of thirty.

By protocol 2, which torch.save asks for, or 4; of a parameter too.

It does what its opcodes would do one by one, except that equal shapes and strides are one tuple, that the dictionary
of hooks is made when it is asked for again, and that the tuple of arguments, which no pickler asks for again, is not
made at all. Whatever is written in another way is left to the opcodes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from ckpt_cli.formats import _effects as do
from ckpt_cli.formats._inert import Global, Held

if TYPE_CHECKING:
    from ckpt_cli.formats._machine import Machine

# In the memo slots of what is not made.
HOOKS, ARGUMENTS = object(), object()
# By the name of the function, whether it is told the dtype.
_REBUILDS = {"torch._utils._rebuild_tensor_v2": False, "torch._utils._rebuild_tensor_v3": True}
_PARAMETER, _MAKER = "torch._utils._rebuild_parameter", "collections.OrderedDict"
_GET, _INT = rb"(h.|j...[\0-\x7f])", rb"(?:K.|M..|J....)"
_SIZES = rb"(?:\)|((?:%(int)s\x85|%(int)s{2}\x86|%(int)s{3}\x87|\(%(int)s{4,64}t))%(put)s)"
# From the second mark on: the storage's id, offset, shape, stride, whether it requires a gradient, hooks, the dtype.
_CALL = (
    rb"\(%(get)s%(get)s(?:%(get)s|%(text)s([0-9]{1,20})%(put)s)%(get)s(%(int)s)(N?)t%(put)sQ(%(int)s)"
    + _SIZES * 2
    + rb"([\x88\x89])%(get)s\)R%(put)s%(get)s?t%(put)sR%(put)s"
)
# Behind a tensor that is a parameter's: whether it requires a gradient, hooks.
_WRAP = rb"[\x88\x89]%(get)s\)R%(put)s\x87%(put)sR%(put)s"
# A short text, and what puts away: in protocol 2, where slots have numbers and need not be set, and in 4.
_PROTOCOLS = ((rb"X(.)\0\0\0", rb"(?:r(....))?"), (rb"\x8c(.)", rb"(\x94)"))
_EACH = re.compile(_INT, re.DOTALL)
# The operands of one byte.
_SHORT = {bytes((code, number)): number for code in b"hK" for number in range(256)}
# By how many slots: what numbers of 32 bits that follow each other are as one number, for each of the first and beside.
_RUNS = [(sum(1 << 32 * n for n in range(count)), sum(n << 32 * n for n in range(count))) for count in range(8)]
# What it takes to know a shape, at all and for each byte that it is written in: numbers, and what it is known by.
NEW_SHAPE, PER_BYTE = 200, 20
# What is taken by a tensor and its storage, by one more tensor of a storage, and by what stays of a parameter in the
# memo; what of the first two goes before they are listed.
_TENSOR, _VIEW, _WRAPPED = 650, 280, 30
_LET_GO, _VIEW_LET_GO = 300, 240


def mark(machine: Machine) -> None:
    """A mark, or such a call that begins with it."""
    if not machine.data.startswith(b"(", machine.at) or not _rebuilt(machine):
        do.mark(machine)


def _rebuilt(machine: Machine) -> bool:
    """Carries out the call whose first mark has been read; False where there is something else."""
    callee, memo = machine.stack[-1] if machine.stack else None, machine.memo
    if type(callee) is not Global or callee.name not in _REBUILDS or callee.name not in machine.functions:
        return False
    if machine.far or machine.forgotten or machine.unset:  # its memo is not numbered as it lies
        return False
    found = _pattern(_CALL, machine.memoizes).match(machine.data, machine.at, machine.limit)
    if found is None:
        return False
    (
        word, kind, same, length, key, key_put, location, count, none, id_put, offset, shape, shape_put, stride,
        stride_put, grad, hooks, hooks_put, dtype, args_put, put,
    ) = found.groups(b"")  # fmt: skip
    puts = key_put, id_put, shape_put, stride_put, hooks_put, args_put, put
    try:
        name = key.decode() if key else memo[_number(same)]
        pid = memo[_number(word)], memo[_number(kind)], name, memo[_number(location)], _number(count)
        told = (memo[_number(dtype)],) if dtype else ()
    except IndexError:  # the opcodes will say which was never set
        return False
    if (key and len(key) != length[0]) or not _fits(machine, hooks, puts) or bool(dtype) is not _REBUILDS[callee.name]:
        return False
    at, machine.at = found.end(), found.start(11)  # where the id has been read, for what it is refused for
    held = machine.persistent((*pid, None) if none else pid)
    _count(machine, held)
    sizes, strides = _tuple(machine, shape), _tuple(machine, stride)
    machine.at = at - 5  # where the function has been called
    tensor = machine.functions[callee.name](held, _number(offset), sizes, strides, grad == b"\x88", None, *told)
    machine.at, machine.stack[-1] = at, tensor
    made = name, held, sizes, strides, HOOKS, ARGUMENTS, tensor
    memo += [value for value, put in zip(made, puts) if put]
    _wrap(machine)
    return True


def _count(machine: Machine, held: Held) -> None:
    """What a tensor takes."""
    if held.met:
        machine.room -= _VIEW
        machine.let_go += _VIEW_LET_GO
    else:
        machine.room -= _TENSOR
        machine.let_go += _LET_GO
        held.met = True


def _wrap(machine: Machine) -> None:
    """Makes the tensor a parameter, which is all the same here, where that is what follows."""
    callee = machine.stack[-2] if len(machine.stack) > 1 else None
    if type(callee) is not Global or callee.name != _PARAMETER or _PARAMETER not in machine.functions:
        return
    found = _pattern(_WRAP, machine.memoizes).match(machine.data, machine.at, machine.limit)
    if found is None:
        return
    hooks, *puts = found.groups(b"")
    if not _fits(machine, hooks, puts):
        return
    tensor = machine.stack.pop()
    machine.at, machine.stack[-1] = found.end(), tensor
    machine.memo += [value for value, put in zip((HOOKS, ARGUMENTS, tensor), puts) if put]
    machine.room -= _WRAPPED


def _fits(machine: Machine, hooks: bytes, puts: Sequence[bytes]) -> bool:
    """Whether the hooks are what makes a dictionary, and slots are set one after another."""
    memo, slot, numbers = machine.memo, _number(hooks), b"".join(puts)
    maker = memo[slot] if slot < len(memo) else None
    steps, begin = _RUNS[len(numbers) // 4]
    numbered = machine.memoizes or int.from_bytes(numbers, "little") == len(memo) * steps + begin
    return numbered and type(maker) is Global and maker.name == _MAKER


@cache
def _pattern(opcodes: bytes, memoizes: bool) -> re.Pattern[bytes]:
    text, put = _PROTOCOLS[memoizes]
    return re.compile(opcodes % {b"get": _GET, b"int": _INT, b"text": text, b"put": put}, re.DOTALL)


def _tuple(machine: Machine, opcodes: bytes) -> tuple[int, ...]:
    made = machine.tuples.get(opcodes)
    if made is None:
        machine.room -= NEW_SHAPE + PER_BYTE * len(opcodes)
        made = machine.tuples[opcodes] = tuple(map(_number, _EACH.findall(opcodes)))
    return made


def _number(opcode: bytes) -> int:
    """The operand: an unsigned number of one byte or two, a signed one of four."""
    short = _SHORT.get(opcode)
    return int.from_bytes(opcode[1:], "little", signed=len(opcode) == 5) if short is None else short
