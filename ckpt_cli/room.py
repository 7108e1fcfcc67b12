"""What the contents of a file may take in memory: its room. What is counted, the opcodes say, and `_tree`.

It counts time too: what takes a file's room takes about a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# The environment variable that grants more, in megabytes.
MEMORY = "CKPT_MEMORY"
# Bytes that contents may take in any file, to be read and listed within what the process may take in all.
_ROOM = 35 << 20
# A larger file than that has as much more room as it is larger: a model of a hundred thousand tensors is large, and
# what is made to cost much, and hold little, is not. Up to what no model needs.
_SMALL, _MOST_MORE = 64 << 20, 1 << 30
# What files are called that hold tensors.
_TENSORS = (".distcp", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SHARED: ContextVar[list[int] | None] = ContextVar("_SHARED", default=None)


def room_of_a_file(size: int = 0) -> int:
    """Bytes of memory that the contents of a file of so many bytes may take, or of one that tells of so many."""
    shared = _SHARED.get()
    return shared[0] if shared else max(_ROOM + min(max(0, size - _SMALL), _MOST_MORE), _granted())


def bytes_beside(path: str) -> int:
    """How many bytes the files of tensors have in the folder of one that may tell of them; 0 where nobody may look."""
    try:
        with os.scandir(os.path.dirname(path) or os.curdir) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.name.endswith(_TENSORS) and entry.is_file())
    except OSError:
        return 0


@contextmanager
def sharing_room(left: int) -> Iterator[None]:
    """What is read within has this room together, and no more than a file has."""
    token = _SHARED.set([min(left, room_of_a_file())])
    try:
        yield
    finally:
        _SHARED.reset(token)


def leave(room: int) -> None:
    """Says how much a file has left of its room to those that share it."""
    if shared := _SHARED.get():
        shared[0] = min(shared[0], max(0, room))


def _granted() -> int:
    """What the user grants any file, in bytes."""
    said = os.environ.get(MEMORY, "")
    return int(said) * 10**6 if said.isdecimal() and len(said) < 9 else 0
