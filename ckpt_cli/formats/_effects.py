"""What opcodes of a pickle do to the interpreter's stack, marks and memo, and to containers; numbers and texts are
`_literals`. Which does what, `_opcodes` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ckpt_cli.formats._inert import (
    Global,
    Held,
    Known,
    Long,
    Malformed,
    Opaque,
    Ordered,
    checked_key,
    packed,
)
from ckpt_cli.formats._literals import integer

if TYPE_CHECKING:
    from ckpt_cli.formats._machine import Machine

# What things take in memory in bytes, as in `_opcodes`: a tuple; an entry of a dict, and the room for its first ones;
# an element of a set; what is wrong with an object, until somebody asks.
TUPLE, _ENTRY, _FIRST, _FIRST_ENTRIES, PLACED, FAULT = 56, 48, 5, 168, 112, 600
# What a word of a vocabulary takes less, as a key among as many as a pickler sets at once and more.
_WORD_LESS, _BATCH = 25, 1000
# A storage when it is met first.
STORAGE = 100
# The first places of a list; a number, and a place on the stack or in a list, which is what it takes in an array; what
# it takes to know a container when it is met again.
_FIRST_PLACES, NUMBER, PLACE, _KNOWN = 24, 32, 12, 96
# Those that are told once, and where they are met again by their name.
_CONTAINERS = frozenset({list, dict, Ordered, tuple})
# The protocol from which on memo slots have no numbers.
_MEMOIZES = 4
# The state of a parameter before torch 0.4: whether it requires a gradient, whether it is volatile, its hooks.
_FLAGS = 3


def _set_items(machine: Machine, target: Any, items: list[Any]) -> None:
    store = target.items if isinstance(target, Opaque) else target
    if not isinstance(store, dict):
        raise Malformed(f"its pickle sets an item of a {type(target).__name__} at byte {machine.place}")
    if len(items) % 2:
        raise Malformed(f"its pickle sets a key without a value at byte {machine.place}")
    count = len(items) // 2
    machine.room += len(items) * PLACE
    machine.room -= count * _ENTRY if store else _FIRST_ENTRIES + max(0, count - _FIRST) * _ENTRY
    words = count if len(store) >= _BATCH else 0
    before = len(store)
    for index in range(0, len(items), 2):
        key = items[index]
        if type(key) is not str:
            key = checked_key(key)
            machine.room -= TUPLE
            words = 0
        store[key] = items[index + 1]
    machine.room += _WORD_LESS * min(words, len(store) - before)


def append(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    store = target.elements if isinstance(target, Opaque) else target
    if type(store) is not list:
        raise Malformed(f"its pickle appends to a {type(target).__name__} at byte {machine.place}")
    if not store:
        machine.room -= _FIRST_PLACES
    if store is target:
        more = packed(items)
        if more is not items:
            machine.room += NUMBER * _counted_as_numbers(items)
        items = more
    store.extend(items)


def _counted_as_numbers(items: list[Any]) -> int:
    """How many of the numbers are: those that one byte holds are there once, and counted as their place alone."""
    if type(items[0]) is float:
        return len(items)
    return sum(map((255).__lt__, items)) + sum(map((0).__gt__, items))


def build(machine: Machine) -> None:
    """State for the object below it. That of a known type (hooks, the `_metadata` of a state dict) is not needed."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Opaque):
        target.state = state
    elif isinstance(target, Known):
        target.found = target.take(state)
        if isinstance(target.found, Malformed):
            machine.room -= FAULT
    elif isinstance(target, tuple) and isinstance(state, tuple) and len(state) > _FLAGS:
        # What torch itself would do: a tensor that was read so far is another from here on.
        raise Malformed(f"its pickle gives a tensor other contents at byte {machine.place}")
    elif isinstance(target, (list, str, int, bytes, Global, Long, type(None))):
        raise Malformed(f"its pickle sets the state of a {type(target).__name__} at byte {machine.place}")


def reduce(machine: Machine) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args)


def new_object_ex(machine: Machine) -> None:
    args, named = machine.stack.pop(-2), machine.stack.pop()
    made = machine.call(machine.stack[-1], args)
    if named and not isinstance(made, Opaque):
        raise Malformed(f"its pickle calls a known function with named arguments at byte {machine.place}")
    if named:
        made.state = named
    machine.stack[-1] = made


def stack_global(machine: Machine) -> None:
    module, name = machine.stack.pop(-2), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Malformed(f"its pickle has a name that is no text at byte {machine.place}")
    machine.name(module, name)


def text_global(machine: Machine) -> None:
    module = machine.line().decode()
    machine.name(module, machine.line().decode())


def instance(machine: Machine) -> None:
    """INST, of which only the name is looked at: what it would run is the worse news."""
    place = machine.place - 1
    text_global(machine)
    raise Malformed(f"its pickle has the opcode 0x69 at byte {place}: no checkpoint needs it")


def protocol(machine: Machine) -> None:
    version = machine.take(1)[0]
    if version > 5:
        raise Malformed(f"its pickle is of the unknown protocol {version}")
    machine.memoizes = version >= _MEMOIZES


def pop(machine: Machine) -> None:
    _ = machine.stack.pop() if machine.stack else machine.pop_mark()


def pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def tuple_of(count: int) -> Callable[[Machine], None]:
    def handler(machine: Machine) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError
        stack[-count:] = (tuple(stack[-count:]),)

    return handler


def pushing(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def handler(machine: Machine) -> None:
        # The operand first: making it may replace the stack.
        value = make(machine)
        machine.stack.append(value)

    return handler


def put(machine: Machine) -> None:
    machine.put(machine.byte())


def put_long(machine: Machine) -> None:
    machine.put(int.from_bytes(machine.take(4), "little"))


def _again(machine: Machine, value: Any) -> None:
    kind = type(value)
    if kind in _CONTAINERS and id(value) not in machine.shared:
        machine.room -= _KNOWN
        machine.shared.add(id(value))
    elif kind is int or kind is float:  # as if it were another: in an array each is
        machine.room -= NUMBER
    machine.stack.append(value)


def get(machine: Machine) -> None:
    _again(machine, machine.get(machine.byte()))


def get_long(machine: Machine) -> None:
    _again(machine, machine.get(int.from_bytes(machine.take(4), "little")))


def get_text(machine: Machine) -> None:
    _again(machine, machine.get(integer(machine.line())))


def duplicate(machine: Machine) -> None:
    _again(machine, machine.stack[-1])


def empty_tuple(machine: Machine) -> None:
    top = machine.stack[-1] if machine.stack else None
    step = machine.steps.get(top.name) if type(top) is Global else None
    if step is None or not step(machine):
        machine.stack.append(())


def marked_tuple(machine: Machine) -> None:
    items = tuple(machine.pop_mark())
    machine.stack.append(items)


def persistent_id(machine: Machine) -> None:
    machine.stack[-1] = found = machine.persistent(machine.stack[-1])
    if type(found) is Held:
        machine.room += STORAGE if found.met else 0
        found.met = True


def put_text(machine: Machine) -> None:
    slot = integer(machine.line())
    if not 0 <= slot < 2**32:  # longer ones, of which many have the same hash, nobody writes
        raise Malformed(f"its pickle has an odd memo slot at byte {machine.place}")
    machine.put(slot)


def memoize(machine: Machine) -> None:
    asked = machine.asked
    if asked is None and not machine.unset and not machine.far:  # as of most files: the next place
        machine.put(len(machine.memo))
        return
    slot = machine.slot
    if asked is None or slot >= len(asked) or asked[slot]:
        machine.put(slot)
    else:
        machine.forgotten += 1


def set_one(machine: Machine) -> None:
    item = [machine.stack.pop(-2), machine.stack.pop()]
    _set_items(machine, machine.stack[-1], item)


def set_many(machine: Machine) -> None:
    items = machine.pop_mark()
    _set_items(machine, machine.stack[-1], items)


def add_many(machine: Machine) -> None:
    items = machine.pop_mark()
    target = machine.stack[-1]
    if isinstance(target, Opaque):
        target.elements.extend(items)
    elif isinstance(target, set):
        machine.room -= len(items) * PLACED
        target.update(checked_key(item) for item in items)
    else:
        raise Malformed(f"its pickle adds to a {type(target).__name__} at byte {machine.place}")


def dictionary(machine: Machine) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set_items(machine, made, machine.pop_mark())
    return made


def frozen(machine: Machine) -> frozenset[Any]:
    items = machine.pop_mark()
    machine.room -= len(items) * PLACED
    return frozenset(checked_key(item) for item in items)
