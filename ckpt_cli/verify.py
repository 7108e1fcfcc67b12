"""Whether a checkpoint is what it should be. Here: what an interrupted write leaves undone, in milliseconds."""

from __future__ import annotations

from ckpt_cli.checkpoint import Checkpoint, Problem
from ckpt_cli.errors import CkptError
from ckpt_cli.tensors import check_end


def opens(checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """The parts whose end is missing: every zip's directory, every safetensors file's length.

    A full disk leaves the newest file so: there by name, and cut off.
    """
    problems = []
    for part in checkpoint.having("model", "optimizer", "adapter"):
        try:
            check_end(part.path)
        except CkptError as error:
            problems.append(Problem("truncated" if error.code == 1 else "unreadable-part", error.message, part.path))
    return tuple(problems)
