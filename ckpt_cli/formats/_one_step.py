"""The call that rebuilds a tensor, as Python's pickler writes it for torch.save, done in one step instead of thirty.

It does what its opcodes would do one by one, except that equal shapes and strides are one tuple, that the dictionary
of hooks is made when it is asked for again, and that the tuple of arguments, which no pickler asks for again, is not
made at all. Whatever is written in another way is left to the opcodes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ckpt_cli.formats import _effects as do
from ckpt_cli.formats._inert import Global

if TYPE_CHECKING:
    from ckpt_cli.formats._machine import Machine

# In the memo slots of what is not made.
HOOKS, ARGUMENTS = object(), object()
_REBUILD, _MAKER = "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"
_GET, _INT, _PUT = rb"(h.|j...[\0-\x7f])", rb"(?:K.|M..|J....)", rb"r(....)"
_SIZES = rb"(?:\)|((?:%(int)s\x85|%(int)s{2}\x86|%(int)s{3}\x87|\(%(int)s{4,64}t))r(....))"
# From the second mark on: the storage's id, offset, shape, stride, whether it requires a gradient, hooks.
_CALL = re.compile(
    (
        rb"\(%(get)s%(get)s(?:%(get)s|X(.)\0\0\0([0-9]{1,20})%(put)s)%(get)s(%(int)s)(N?)t%(put)sQ(%(int)s)"
        + _SIZES * 2
        + rb"([\x88\x89])%(get)s\)R%(put)st%(put)sR%(put)s"
    )
    % {b"get": _GET, b"int": _INT, b"put": _PUT},
    re.DOTALL,
)
_EACH = re.compile(_INT, re.DOTALL)
# The operands of one byte.
_SHORT = {bytes((code, number)): number for code in b"hK" for number in range(256)}
# By how many slots: what numbers of 32 bits that follow each other are as one number, for each of the first and beside.
_RUNS = [(sum(1 << 32 * n for n in range(count)), sum(n << 32 * n for n in range(count))) for count in range(8)]
# What it is counted as besides the tensor: what stays in the memo, numbers, and the storage.
_COST = 100 + do.STORAGE


def mark(machine: Machine) -> None:
    """A mark, or such a call that begins with it."""
    if not machine.data.startswith(b"(", machine.at) or not _rebuilt(machine):
        do.mark(machine)


def _rebuilt(machine: Machine) -> bool:
    """Carries out the call whose first mark has been read; False where there is something else."""
    callee, memo = machine.stack[-1] if machine.stack else None, machine.memo
    if type(callee) is not Global or callee.name != _REBUILD or _REBUILD not in machine.functions:
        return False
    if machine.far or machine.forgotten:  # its memo is not numbered as it lies
        return False
    found = _CALL.match(machine.data, machine.at, machine.limit)
    if found is None:
        return False
    (
        word, kind, same, length, key, key_put, location, count, none, id_put, offset, shape, shape_put, stride,
        stride_put, grad, hooks, hooks_put, args_put, put,
    ) = found.groups(b"")  # fmt: skip
    puts = b"".join((key_put, id_put, shape_put, stride_put, hooks_put, args_put, put))
    steps, begin = _RUNS[len(puts) // 4]
    try:
        maker, name = memo[_number(hooks)], key.decode() if key else memo[_number(same)]
        pid = memo[_number(word)], memo[_number(kind)], name, memo[_number(location)], _number(count)
    except IndexError:  # the opcodes will say which was never set
        return False
    if (
        int.from_bytes(puts, "little") != len(memo) * steps + begin
        or (key and len(key) != length[0])
        or type(maker) is not Global
        or maker.name != _MAKER
    ):
        return False
    machine.room -= _COST
    at, machine.at = found.end(), found.start(11)  # where the id has been read, for what it is refused for
    machine.stack.append((*pid, None) if none else pid)
    do.persistent_id(machine)
    held, sizes, strides = machine.stack.pop(), _tuple(machine, shape), _tuple(machine, stride)
    machine.at = at - 5  # where the function has been called
    tensor = machine.call(callee, (held, _number(offset), sizes, strides, grad == b"\x88", None))
    machine.at, machine.stack[-1] = at, tensor
    if key:
        memo.append(name)
    memo.append(held)
    if shape:
        memo.append(sizes)
    if stride:
        memo.append(strides)
    memo += HOOKS, ARGUMENTS, tensor
    return True


def _tuple(machine: Machine, opcodes: bytes) -> tuple[int, ...]:
    made = machine.tuples.get(opcodes)
    if made is None:
        made = machine.tuples[opcodes] = tuple(map(_number, _EACH.findall(opcodes)))
    return made


def _number(opcode: bytes) -> int:
    """The operand: an unsigned number of one byte or two, a signed one of four."""
    short = _SHORT.get(opcode)
    return int.from_bytes(opcode[1:], "little", signed=len(opcode) == 5) if short is None else short
