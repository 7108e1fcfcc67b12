"""A pickle interpreter that cannot run anything: a closed table of opcodes over plain values.

Python's pickle protocols 0 to 5 (PEP 3154, PEP 574 and `pickletools` are the reference), less what no
checkpoint needs: INST, OBJ, text persistent ids, the extension registry, out-of-band buffers. A name in the
stream is looked up in the caller's tables and nowhere else. One that is in no table becomes a `Global`, and
what it would have built becomes an inert `Opaque`, which can be shown; one that runs code ends the reading.
"""

from __future__ import annotations

import struct
from types import MappingProxyType

from ckpt_cli.errors import CkptError
from ckpt_cli.formats._inert import Malformed
from ckpt_cli.formats._machine import Constants, Find, Functions, Loaded, Machine, Steps
from ckpt_cli.formats._stream import Stream
from ckpt_cli.room import room_of_a_file

_MOST_SAID = 200


def load(
    stream: Stream,
    constants: Constants,
    functions: Functions,
    persistent: Find,
    room: int | None = None,
    steps: Steps = MappingProxyType({}),
) -> Loaded:
    """Interprets one pickle that begins where the stream does.

    `constants` are names that stand for a value, `functions` names whose calls are carried out by ours;
    `persistent` turns a persistent id into a value. `room` is what other pickles of the file have left; `steps` make
    objects all at once. Raises Malformed, or RunsCode at the first such name.
    """
    room = room_of_a_file(stream.file) if room is None else room
    machine = Machine(b"", constants, functions, persistent, 0, room, stream, steps)
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
