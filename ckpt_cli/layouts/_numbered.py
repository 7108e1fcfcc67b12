"""A step's own folder by its name: `step_100`, `epoch-3`, `dist_epoch_2`, `checkpoint_7`, `epoch=3-step=16.ckpt`.

What all sorts of trainers and their users call it; the number that counts is the last.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

_NUMBERED = re.compile(
    r"(?:dist_)?(?:epoch[-_=]?[0-9]+[-_])?(epoch|step|global_step|checkpoint|ckpt|iter|iteration)[-_=]?([0-9]{1,18})"
    r"(?:\.ckpt)?"
)


class Number(NamedTuple):
    unit: Literal["step", "epoch"]
    value: int


def number_in(name: str) -> Number | None:
    """The step or epoch that a folder's name says it is of."""
    match = _NUMBERED.fullmatch(name)
    return Number("epoch" if match[1] == "epoch" else "step", int(match[2])) if match else None
