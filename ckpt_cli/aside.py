"""Names that tell what a journal would, where the disk is too full for one.

What goes of a checkpoint is renamed in order, `model_000100.pt` to `.ckpt-trash.<mark>.model_000100.pt.1-of-3`, which
no trainer looks for by either end, and deleted in the same order once all of it is. So the names that a kill leaves say
what has to be done: where the first is there and another is not, the renames were cut off and the checkpoint comes
back; else the rest of it is deleted too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from ckpt_cli.layouts import TRASH, own_folder

_NUMBER = "([1-9][0-9]{0,8})"
_NAME = re.compile(rf"{re.escape(TRASH)}(?:-0)?\.([0-9a-f]{{8}})\.(.+)\.{_NUMBER}-of-{_NUMBER}", re.DOTALL)


class Aside(NamedTuple):
    """A file or folder of a run that was renamed: its paths now and before, and its place among `total` such."""

    path: str
    home: str
    number: int
    total: int


def asides_of(run: str, names: Sequence[str]) -> list[Aside]:
    """What the files and folders of a checkpoint, named by their paths below the run, are to be called."""
    from urllib.parse import quote

    start = f"{own_folder(run, TRASH)}.{os.urandom(4).hex()}."
    quoted = [quote(name, safe="", errors="surrogateescape") for name in names]
    return [
        Aside(f"{start}{escaped}.{number}-of-{len(names)}", os.path.join(run, name), number, len(names))
        for number, (name, escaped) in enumerate(zip(names, quoted), 1)
    ]


def left_aside(run: str) -> list[list[Aside]]:
    """What is called so in a run, a list for each checkpoint, in order."""
    from urllib.parse import unquote

    found: dict[str, list[Aside]] = {}
    try:
        names = os.listdir(run)
    except OSError:
        return []
    for match in filter(None, map(_NAME.fullmatch, names)):
        was = unquote(match[2], errors="surrogateescape")
        if not set(was.split(os.sep)) & {"", os.curdir, os.pardir} and "\0" not in was:  # else none of our making
            paths = os.path.join(run, match[0]), os.path.join(run, was)
            found.setdefault(match[1], []).append(Aside(*paths, int(match[3]), int(match[4])))
    return [sorted(found[mark], key=lambda aside: aside.number) for mark in sorted(found)]


def comes_back(asides: Sequence[Aside]) -> bool:
    """Whether the renames of a checkpoint were cut off, of which these are left."""
    return asides[0].number == 1 and len(asides) < asides[0].total
