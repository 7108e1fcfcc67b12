"""What training on many processes leaves in the folder of a step: DeepSpeed's files a rank, FSDP's folders.

The Trainer of transformers and accelerate both write them: DeepSpeed's ZeRO into a folder of its own
(`zero_pp_rank_0_mp_rank_00_optim_states.pt`), FSDP as distributed saves (`pytorch_model_fsdp_0`, `optimizer_0`), or
gathered (`pytorch_model_fsdp.bin`). After DeepSpeed 0.9 to 0.18 and accelerate 0.20 to 1.x.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ckpt_cli.checkpoint import Part, Problem, Ranks, Role
from ckpt_cli.layouts import Folder, missing
from ckpt_cli.layouts._dcp import saved_in
from ckpt_cli.layouts._weights import named_parts

# The states of random numbers, one a process.
RANDOM = re.compile(r"rng_state(?:_([0-9]{1,6}))?\.pth|random_states_([0-9]{1,6})\.pkl")
FSDP = re.compile(r"(pytorch_model|optimizer)(?:_fsdp)?_[0-9]+")
# What FSDP writes where it gathers the state in one file, or leaves one a rank.
_FSDP_FILE = re.compile(r"pytorch_model_fsdp(?:_[0-9]+)?(?:_rank[0-9]+)?\.bin")
_DEEPSPEED_FILE = re.compile(
    r"(?:bf16_|fp16_)?(?:zero_pp_rank_([0-9]{1,6})_)?mp_rank_([0-9]{2,6})_(model|optim)_states\.pt"
)


def sharded_parts(
    folder: Folder, deepspeed: re.Pattern[str], randoms: Sequence[str], parts: list[Part], problems: list[Problem]
) -> tuple[Ranks | None, bool]:
    """Adds them to the parts: the ranks of DeepSpeed's optimizer, and whether FSDP's folders hold the model.

    `deepspeed` is how its folder is called, `randoms` the files with states of random numbers.
    """
    ranks = None
    sharded = False
    whole = any(part.role == "model" for part in parts)
    gathered = sorted(name for name in folder.files if _FSDP_FILE.fullmatch(name))
    parts += named_parts(folder, gathered, "other" if whole else "model", problems)
    for name in sorted(folder.folders):
        inner = folder.below(name)
        if deepspeed.fullmatch(name):
            ranks = _deepspeed(inner, randoms, whole, parts, problems)
        elif (match := FSDP.fullmatch(name)) and (saved := saved_in(inner)):
            problems += saved.problems
            optimizer = match[1] == "optimizer"
            sharded |= not optimizer
            parts += [p._replace(role="optimizer") if optimizer and p.role == "model" else p for p in saved.parts]
    return ranks, sharded


def _deepspeed(
    inner: Folder, randoms: Sequence[str], whole: bool, parts: list[Part], problems: list[Problem]
) -> Ranks | None:
    """ZeRO's files: the optimizer a rank, and the model, which counts as such where no other form of it is there."""
    present: set[int] = set()
    other_ranks = False
    for file in sorted(inner.files):
        match = _DEEPSPEED_FILE.fullmatch(file)
        if not match:
            continue
        rank = int(match[1] or 0)
        other_ranks |= int(match[2]) > 0
        role: Role = "optimizer" if match[3] == "optim" else "other" if whole else "model"
        part = inner.part(file, role, problems, rank if role == "optimizer" else None)
        parts += [part] if part else []
        if role == "optimizer":
            present.add(rank)
    if not present:
        return None
    # As many states of random numbers as processes; only where these split nothing else is each a rank of ZeRO.
    numbers = [int(match[1] or 0) for file in randoms if (match := RANDOM.fullmatch(file))]
    world = range(max([*present, *([] if other_ranks else numbers)]) + 1)
    lost = [rank for rank in world if rank not in present]
    if lost:
        which = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        there = next(part.path for part in parts if part.role == "optimizer" and part.rank is not None)
        name = re.sub("rank_[0-9]+", f"rank_{lost[0]}", os.path.basename(there), count=1)
        problems.append(missing(inner, name, f"optimizer rank {which} of 0 to {world.stop - 1}"))
    return Ranks(tuple(sorted(present)), tuple(lost))
