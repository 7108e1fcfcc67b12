"""Nested metadata by dotted key: its leaves, and which of them are the same."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from itertools import chain, count
from shlex import quote
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.formats._inert import Costly
from ckpt_cli.room import MEMORY, room_of_a_file
from ckpt_cli.tensor_file import TensorFile

# Bytes of memory that a value and its name take; the same where they are put into objects again, by the dots in names;
# and of a value that is there already, in JSON.
_NAMED, ARRANGED, _LEAF = 350, 520, 250
# Names alike that are told apart by the next number.
_MANY = 100


def all_values(file: TensorFile, each: int = _NAMED) -> dict[str, Any]:
    """The values of a file, held by name all at once. Raises as `check_number` does."""
    check_number(file, each)
    return dict(file.values)


def check_number(file: TensorFile, each: int) -> None:
    """Raises CkptError where the values of a file, of so many bytes of memory each, would take more than it gets
    unasked."""
    there = len(file.values)
    if there <= room_of_a_file() // each or there <= (most := room_of_a_file(_size(file.path)) // each):
        return
    what = f"{file.path} holds {there} values beside its tensors, of which no more than {most} are looked at together"
    lists = f"`ckpt inspect tensors {quote(file.path)} --values` lists them"
    raise CkptError(what, f"{lists}, {MEMORY}=1000 lets a file that you trust take 1 GB", file.path, kind=Costly.kind)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested objects and lists by dotted key, list indexes among them; empty ones are leaves.

    Raises CkptError where they are more than are held by name at once.
    """
    leaves: dict[str, Any] = {}
    most = room_of_a_file() // _LEAF
    pending: list[tuple[str, Any]] = [(name, value)]
    while pending:
        name, item = pending.pop()
        members: Iterable[tuple[Any, Any]] = ()
        if isinstance(item, dict):
            members = item.items()
        elif isinstance(item, list):
            members = enumerate(item)
        inner = [(f"{name}.{key}" if name else str(key), member) for key, member in members]
        if inner:
            pending.extend(reversed(inner))
        else:
            put_all(leaves, {name or "<root>": item})
        if len(leaves) + len(inner) > most:
            what = f"the metadata holds more than {most} values, which are not named together unasked"
            hint = f"`ckpt inspect meta --json` prints them, {MEMORY}=1000 lets metadata that you trust take 1 GB"
            raise CkptError(what, hint, kind=Costly.kind)
    return leaves


def put_all(leaves: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds leaves; one whose key is taken by another value gets a key of its own, so that it is not lost."""
    for key, value in more.items():
        leaves[key if key not in leaves or alike(leaves[key], value) else unused(key, leaves)] = value


def unused(name: str, taken: Mapping[str, Any]) -> str:
    """The name with a number behind it that no other has."""
    # From 2 on; of very many alike, from a number that none of them can have yet.
    numbers = chain(range(2, _MANY), count(_MANY + len(taken)))
    return next(new for number in numbers if (new := f"{name}#{number}") not in taken)


def alike(a: Any, b: Any) -> bool:
    """Whether two JSON scalars are the same: numbers by value, NaN is NaN, and a boolean is no number."""
    if isinstance(a, bool) is not isinstance(b, bool):
        return False
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
