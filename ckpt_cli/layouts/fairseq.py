"""fairseq's checkpoints: `checkpoint12.pt` an epoch, `checkpoint_3_5000.pt` an update, `checkpoint_last.pt`.

One file holds model, optimizer and arguments; of several shards each has its own (`checkpoint12-shard0.pt`, or
`-rank-0`). `checkpoint_best.pt`, `checkpoint.best_loss_4.3200.pt` and `checkpoint_crash.pt` have no number that tells
when they were written. Anybody may call a file so: they are fairseq's only together, the last one with any other, or
the best with a number.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Problem, Role
from ckpt_cli.layouts import TRAINER, Folder, missing
from ckpt_cli.layouts._grouped import unnumbered
from ckpt_cli.layouts._single import one_file
from ckpt_cli.layouts._weights import named_parts

NAME = "fairseq"
PRECEDENCE = TRAINER
REMOVAL_ORDER: tuple[Role, ...] = ("model",)

_FILE = re.compile(
    r"(checkpoint(?:([1-9][0-9]{0,8})|_([1-9][0-9]{0,8})_([0-9]{1,12})|_last|_best|_crash|\.best_[A-Za-z0-9_]+_-?[0-9.]+))"
    r"(?:-(shard|rank-)([0-9]{1,5}))?\.pt"
)


def scan(folder: Folder) -> Iterable[Checkpoint]:
    found: dict[str, list[re.Match[str]]] = {}
    for name in folder.files:
        match = _FILE.fullmatch(name) if name.startswith("checkpoint") else None
        if match:
            found.setdefault(match[1], []).append(match)
    numbered = [files[0] for files in found.values() if files[0][2] or files[0][3]]
    if len(found) < 2 or not ("checkpoint_last" in found or (numbered and "checkpoint_best" in found)):
        return ()
    shards = 1 + max(int(match[6] or 0) for files in found.values() for match in files)
    # Updates count through all epochs; an epoch's own file says nothing of them.
    numbers = Counter((bool(match[3]), int(match[4] or match[2])) for match in numbered)
    return [_checkpoint(folder, files, shards, numbers) for files in found.values()]


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Those without a number: the trainer goes on from the last, and writes the best over only for a better one."""
    return unnumbered(checkpoint, run)


def _checkpoint(
    folder: Folder, files: list[re.Match[str]], shards: int, numbers: Counter[tuple[bool, int]]
) -> Checkpoint:
    files.sort(key=lambda match: int(match[6] or 0))
    first = files[0]
    number = first[4] or first[2]
    step = int(number) if number else None
    found = one_file(folder, NAME, first[0], step, None if step is None else "step" if first[3] else "epoch", True)
    problems: list[Problem] = list(found.problems)
    more = [part for match in files[1:] if (part := folder.part(match[0], "model", problems))]
    stems = {first[1], *(os.path.splitext(match[0])[0] for match in files[1:])}
    pins = named_parts(folder, sorted(f"{stem}.keep" for stem in stems - {found.name}), "other", problems)
    have = {int(match[6]) for match in files if match[6]}
    lost = [n for n in range(shards) if n not in have] if have else []
    problems += [missing(folder, f"{first[1]}-{first[5]}{n}.pt", "a shard") for n in lost[:8]]
    parts = (*found.parts[:1], *more, *found.parts[1:], *pins)
    state = folder.state(parts, problems)
    twice = step is not None and numbers[bool(first[3]), step] > 1
    return found._replace(
        name=first[1],
        parts=parts,
        state=state,
        resumable=state == "complete",
        problems=tuple(problems),
        pinned=found.pinned or bool(pins),
        by_name=twice or step is None,
    )
