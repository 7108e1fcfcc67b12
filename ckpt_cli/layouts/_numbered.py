"""A step's own folder, told by its name: `step_100`, `epoch-3`, `dist_epoch_2`, `checkpoint_7`, `epoch=3-step=16.ckpt`.

What all sorts of trainers and their users call it; the number that counts is the last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ckpt_cli.checkpoint import Checkpoint, Part, Problem
from ckpt_cli.layouts import Folder

_NUMBERED = re.compile(
    r"(?:dist_)?(?:epoch[-_=]?[0-9]+[-_])?(epoch|step|global_step|checkpoint|ckpt|iter|iteration)[-_=]?([0-9]{1,18})"
    r"(?:\.ckpt)?"
)


class Number(NamedTuple):
    """What a trainer counts its checkpoints by, and which of them this is."""

    unit: Literal["step", "epoch"]
    value: int


def number_in(name: str) -> Number | None:
    """The step or epoch that a folder's name says it is of."""
    match = _NUMBERED.fullmatch(name)
    return Number("epoch" if match[1] == "epoch" else "step", int(match[2])) if match else None


def of_folder(
    folder: Folder, layout: str, number: Number | None, parts: Sequence[Part], problems: Sequence[Problem]
) -> Checkpoint:
    """The checkpoint that a folder is: with a number a step of the run above, else a run by itself.

    It is called after the folder; whether training can resume from it is not said.
    """
    return Checkpoint(
        layout=layout,
        source=folder.source,
        tag=folder.tag_above if number else folder.tag,
        step=number.value if number else None,
        unit=number.unit if number else None,
        name=folder.name,
        dir=folder.path,
        parts=tuple(parts),
        state=folder.state(parts, problems),
        problems=tuple(problems),
        pinned=any(name.endswith(".keep") for name in folder.files),
        linked=folder.linked,
        home=os.path.dirname(folder.path) if number else "",
    )
