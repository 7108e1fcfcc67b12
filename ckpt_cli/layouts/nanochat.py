"""nanochat's directories: `model_001000.pt`, `meta_001000.json`, `optim_001000_rank3.pt` side by side.

Names and contents as its checkpoint manager has written them since October 2025. The step is taken from the
file name (metas of reinforcement learning hold none), the metric from the meta. It does not know what is
inside a model file.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ckpt_cli.checkpoint import Checkpoint, Problem, Ranks, Role
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import TRAINER, Folder, finite, missing, not_read
from ckpt_cli.small_files import read_json

NAME = "nanochat"
PRECEDENCE = TRAINER
# The trainer finds its last step by the model files alone, so the model goes first.
REMOVAL_ORDER: tuple[Role, ...] = ("model", "meta", "optimizer")

# [0-9], not \d: that would take the digits of every script.
_FILE = re.compile(
    r"(model|meta|optim)_([0-9]+)(?:_rank(0|[1-9][0-9]{0,3}))?"
    r"(\.pt\.sha256|\.pt|\.json|\.safetensors|(?:\.pt|\.json|\.safetensors)?\.keep)"
)
_ROLES: dict[tuple[str, str], Role] = {
    ("model", ".pt"): "model",
    ("meta", ".json"): "meta",
    ("optim", ".pt"): "optimizer",
    ("model", ".pt.sha256"): "manifest",
    ("model", ".safetensors"): "export",
}
# Numbers at the top of a meta that say how the run was set up, not how good it is.
_NO_METRIC = frozenset({"step", "device_batch_size", "max_seq_len", "total_batch_size"})


def scan(folder: Folder) -> Iterable[Checkpoint]:
    steps: dict[str, dict[str, tuple[Role, int | None]]] = {}
    for name in folder.files:
        match = _FILE.fullmatch(name)
        if not match:
            continue
        kind, digits, rank, suffix = match.groups()
        if suffix.endswith(".keep"):
            steps.setdefault(digits, {})[name] = ("other", None)
            continue
        role = _ROLES.get((kind, suffix))
        if role and (rank is None or role == "optimizer"):
            steps.setdefault(digits, {})[name] = (role, None if rank is None else int(rank))
    claimed = {digits: files for digits, files in steps.items() if _is_ours(digits, files)}
    if not claimed:
        return ()
    numbers = Counter(int(digits) for digits in claimed)
    ranks = {rank for files in claimed.values() for role, rank in files.values() if rank is not None}
    world = range(max(ranks) + 1) if ranks else range(0)
    return [
        _checkpoint(folder, digits, files, world, by_name=numbers[int(digits)] > 1) for digits, files in claimed.items()
    ]


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Nothing: every step stands alone."""
    return ()


def _is_ours(digits: str, files: dict[str, tuple[Role, int | None]]) -> bool:
    """Six digits, more where the number needs them; other widths only for a model that has its meta.

    build-nanogpt writes `model_00010.pt` without a meta: another format, not this layout's.
    """
    roles = {role for role, _ in files.values()}
    if len(digits) == 6 or (len(digits) > 6 and digits[0] != "0"):
        return not roles <= {"export", "manifest", "other"}
    return {"model", "meta"} <= roles


def _checkpoint(
    folder: Folder, digits: str, files: dict[str, tuple[Role, int | None]], world: range, by_name: bool
) -> Checkpoint:
    problems: list[Problem] = []
    parts = []
    order = ("model", "meta", "optimizer", "manifest", "export", "other")
    for name, (role, rank) in sorted(files.items(), key=lambda item: (order.index(item[1][0]), item[1][1] or 0)):
        part = folder.part(name, role, problems, rank)
        if part:
            parts.append(part)
    named = {role for role, _ in files.values()}
    for role, name in (("model", f"model_{digits}.pt"), ("meta", f"meta_{digits}.json")):
        if role not in named:
            problems.append(missing(folder, name, f"the {role} file"))
    optimizer = [(name, rank) for name, (role, rank) in files.items() if role == "optimizer"]
    present = sorted(rank for _, rank in optimizer if rank is not None)
    # A file without rank is the whole optimizer of a run before shards, however many ranks came later.
    lost = [rank for rank in world if rank not in present] if present else []
    if lost:
        which = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        name = f"optim_{digits}_rank{lost[0]}.pt"
        problems.append(missing(folder, name, f"optimizer rank {which} of 0 to {world.stop - 1}"))
    metrics: tuple[tuple[str, float], ...] = ()
    for part in parts:
        if part.role == "meta" and part.bytes:
            try:
                metrics = tuple(_metrics(read_json(part.path), os.path.basename(part.path)))
            except CkptError as error:
                problems.append(not_read(part, error, "bad-meta"))
    state = folder.state(parts, problems)
    return Checkpoint(
        layout=NAME,
        source=folder.source,
        tag=folder.tag,
        step=int(digits),
        unit="step",
        name=f"model_{digits}",
        dir=folder.path,
        parts=tuple(parts),
        state=state,
        resumable=state == "complete" and bool(optimizer),
        problems=tuple(problems),
        metrics=metrics,
        ranks=Ranks(tuple(present), tuple(lost)) if present else None,
        pinned=".keep" in folder.files or any(name.endswith(".keep") for name in files),
        linked=folder.linked,
        by_name=by_name,
    )


def _metrics(meta: object, name: str) -> Iterator[tuple[str, float]]:
    if not isinstance(meta, dict):
        raise CkptError(f"{name} holds a JSON {type(meta).__name__}, not an object")
    for key, value in meta.items():
        number = None if key in _NO_METRIC else finite(value)
        if number is not None:
            yield key, number
