"""build-nanogpt's checkpoints: `model_00010.pt`, five digits and no meta beside it.

After karpathy/build-nanogpt's train_gpt2.py: model, configuration and step, no optimizer. nanochat's names are
the same but for their six digits and their meta; a model with a meta is nanochat's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Role
from ckpt_cli.layouts import TRAINER, Folder
from ckpt_cli.layouts._single import one_file

NAME = "build-nanogpt"
PRECEDENCE = TRAINER
REMOVAL_ORDER: tuple[Role, ...] = ("model",)

_FILE = re.compile(r"model_([0-9]{5})\.pt")


def scan(folder: Folder) -> Iterable[Checkpoint]:
    for name in folder.files:
        match = _FILE.fullmatch(name)
        if match and f"meta_{match[1]}.json" not in folder.files:
            yield one_file(folder, NAME, name, int(match[1]), resumable=False)


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Nothing: every file stands alone."""
    return ()
