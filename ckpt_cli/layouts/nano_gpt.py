"""nano-gpt's checkpoints: `checkpoint_000010.bin`, one file a step that holds model, optimizer and configuration.

Names as allenporter/nano-gpt has written them: six digits and `.bin` since April 2025, `.pt` before, no padding in the
first days of March 2025. The metric lies inside the file, which is not opened here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Role
from ckpt_cli.layouts import TRAINER, Folder
from ckpt_cli.layouts._single import one_file

NAME = "nano-gpt"
PRECEDENCE = TRAINER
REMOVAL_ORDER: tuple[Role, ...] = ("model",)

_FILE = re.compile(r"checkpoint_([0-9]+)\.(?:bin|pt)")


def scan(folder: Folder) -> Iterable[Checkpoint]:
    found = [(name, match) for name in folder.files if (match := _FILE.fullmatch(name))]
    numbers = Counter(int(match[1]) for _, match in found)
    for name, match in found:
        checkpoint = one_file(folder, NAME, name, int(match[1]), resumable=True)
        if numbers[int(match[1])] > 1:
            # The same step under two names: padded and not, or with both suffixes.
            checkpoint = checkpoint._replace(name=name, by_name=True)
        yield checkpoint


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Nothing: every file stands alone."""
    return ()
