"""Small files that lie beside tensors: metadata, configurations, indexes; read as what they are, within bounds."""

from __future__ import annotations

import json
import os
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.room import MEMORY, bytes_beside, room_of_a_file

MAX_JSON_BYTES = 16 << 20
_MAX_DEPTH = 200
# Bytes of memory that a value of JSON takes in an object or a list; a text; a list, an object, and a key in it.
_VALUE, _TEXT, _LIST, _OBJECT, _KEY = 40, 56, 64, 72, 60
# Characters of a text of other letters take up to four bytes, in it and in the whole.
_WIDE = 4


def read_json(path: str) -> Any:
    """The JSON value in a small file; bare NaN and Infinity are read as Python does.

    Raises CkptError, in one sentence, for what is too large, not text, not JSON or nested too deep.
    """
    name = os.path.basename(path)
    try:
        # Unbuffered, in pieces: a read of the whole limit would allocate it for each of a thousand metas.
        with open(path, "rb", buffering=0, opener=without_waiting) as file:
            data = file.read(1 << 16) or b""
            while len(data) >= 1 << 16 and (more := file.read(MAX_JSON_BYTES + 1 - len(data))):
                data += more
        if len(data) > MAX_JSON_BYTES:
            large = f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB, too large for metadata"
            raise CkptError(large, path=path, kind="too-costly")
        check_weight(data, path)
        nested = data.count(b"[") + data.count(b"{")
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        del data  # or both would be there
        value = json.loads(text)
        # Few brackets cannot nest deep; only what could be too deep for those who walk it is looked at.
        if nested > _MAX_DEPTH and _deeper(value, _MAX_DEPTH):
            raise RecursionError
        return value
    except OSError as error:
        raise CkptError(f"{name} cannot be read: {error.strerror}", path=path, kind="unreadable-part") from error
    except RecursionError as error:
        raise CkptError(f"{name} is nested too deep to be metadata") from error
    except UnicodeDecodeError as error:
        raise CkptError(f"{name} is not JSON: it is not text") from error
    except ValueError as error:
        raise CkptError(f"{name} is not JSON: {error}") from error


def without_waiting(path: str, flags: int) -> int:
    """An opener: a pipe that bears the name of a file would wait for somebody to write to it, and so reads as empty."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_weight(data: bytes, path: str) -> None:
    """Raises CkptError where what a file of JSON says, these bytes, would take more memory than a file gets unasked."""
    weight = _weight(data)
    # A long index, and a long log, lies beside a large model.
    if weight > room_of_a_file() and weight > room_of_a_file(bytes_beside(path)):
        large = f"{os.path.basename(path)} holds more values than a file of metadata may unasked"
        raise CkptError(large, f"{MEMORY}=1000 lets a file that you trust take 1000 MB", path, kind="too-costly")


def _weight(data: bytes) -> int:
    """Bytes of memory that its text and its values take at most."""
    values, texts = data.count(b","), data.count(b'"') // 2
    holders = _LIST * data.count(b"[") + _OBJECT * data.count(b"{") + _KEY * data.count(b":")
    return 2 * len(data) * (1 if data.isascii() else _WIDE) + _VALUE * values + _TEXT * texts + holders


def _deeper(value: Any, levels: int) -> bool:
    """Whether a value is nested deeper than `levels`."""
    members = [value]
    while members and levels >= 0:
        levels -= 1
        members = [
            item
            for member in members
            if isinstance(member, (dict, list))
            for item in (member.values() if isinstance(member, dict) else member)
        ]
    return bool(members)
