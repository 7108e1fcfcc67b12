"""nanoGPT's checkpoint: `ckpt.pt` in the output directory, written over at each evaluation.

After karpathy/nanoGPT's train.py: one file with model, optimizer, `model_args` and `iter_num`. The step stands
only inside, so it has none here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Role
from ckpt_cli.layouts import TRAINER, Folder
from ckpt_cli.layouts._single import one_file

NAME = "nanoGPT"
PRECEDENCE = TRAINER
REMOVAL_ORDER: tuple[Role, ...] = ("model",)

_FILE = "ckpt.pt"


def scan(folder: Folder) -> Iterable[Checkpoint]:
    return [one_file(folder, NAME, _FILE, None, None, resumable=True)] if _FILE in folder.files else ()


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Nothing: there is only this one."""
    return ()
