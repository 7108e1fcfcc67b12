"""A checkpoint: its parts, and what is wrong with it. Values that everything else passes around; no I/O.

Named tuples: they are made seven times faster than frozen dataclasses, and `ckpt list` makes all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

Role = Literal[
    "model", "optimizer", "meta", "config", "index", "adapter", "recipe", "tokenizer", "manifest", "export", "other"
]
State = Literal["complete", "incomplete", "in-progress"]
Goal = Literal["min", "max"]

# What a metric is called when nobody says, most telling first; all of these fall as a model improves.
DEFAULT_METRICS = ("val_bpb", "val_loss", "eval_loss", "loss")
# Roles of files that this tool or its user put beside a checkpoint.
OURS: tuple[Role, ...] = ("export", "manifest", "other")


class Part(NamedTuple):
    """One file of a checkpoint. `modified` is its mtime in nanoseconds since the epoch.

    `rank` is whose shard it is, None for what no rank has alone. `linked` says that it is a symbolic link; size and
    time are then its target's. `names` is device, inode and count of a file's hard links where it has several.
    """

    role: Role
    path: str
    bytes: int
    modified: int
    rank: int | None = None
    linked: bool = False
    names: tuple[int, int, int] | None = None


class Problem(NamedTuple):
    """What is wrong: a stable code, a sentence, the file it is about, and the record in it where it is about one."""

    code: str
    detail: str
    path: str
    record: str | None = None


class Metric(NamedTuple):
    """A value that a checkpoint is judged by; `goal` is None where it is not known which direction is better."""

    name: str
    value: float
    goal: Goal | None


class Ranks(NamedTuple):
    """Optimizer shards by rank: those there, and those of 0..R that are not."""

    present: tuple[int, ...]
    missing: tuple[int, ...]


class Checkpoint(NamedTuple):
    """What belongs to one step of one run.

    `name` is the trainer's own name for it (`model_001000`, `epoch_1`), which `by_name` puts into its `ref`; `dir` is
    the directory of its model, `home` that of its run where each step has a folder of its own. `resumable` is None
    where its layout does not say. `metrics` is every finite number that its metadata gives at top level, `pinned` true
    where a `.keep` file lies beside it, `linked` true when the run was reached through a link out of the root.
    """

    layout: str
    source: str | None
    tag: str
    step: int | None
    unit: Literal["step", "epoch"] | None
    name: str
    dir: str
    parts: tuple[Part, ...]
    state: State = "complete"
    resumable: bool | None = None
    problems: tuple[Problem, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()
    ranks: Ranks | None = None
    pinned: bool = False
    linked: bool = False
    by_name: bool = False
    home: str = ""

    @property
    def run(self) -> str:
        """SOURCE/TAG, or the tag of a run without a source."""
        return f"{self.source}/{self.tag}" if self.source else self.tag

    @property
    def run_dir(self) -> str:
        """The directory of the run: what two checkpoints of one run share, and where its trash lies."""
        return self.home or self.dir

    @property
    def ref(self) -> str:
        """SOURCE/TAG/STEP; the trainer's name stands for the step where that alone would not tell two apart."""
        if self.by_name:
            return f"{self.run}/{self.name}"
        return self.run if self.step is None else f"{self.run}/{self.step}"

    @property
    def bytes(self) -> int:
        """Of all parts; our own exports beside a model do not count."""
        return sum(part.bytes for part in self.parts if part.role != "export")

    @property
    def modified(self) -> int:
        """mtime of the newest part that a trainer wrote, in nanoseconds; of any, where nothing tells who did."""
        theirs = [part.modified for part in self.parts if part.role not in OURS]
        return max(theirs or (part.modified for part in self.parts), default=0)

    def having(self, *roles: Role) -> list[Part]:
        """The parts of these roles, in their order among all."""
        return [part for part in self.parts if part.role in roles]


def pick_metric(checkpoint: Checkpoint, wanted: str | None = None, goal: Goal | None = None) -> Metric | None:
    """The named metric, or the first of `DEFAULT_METRICS` that the checkpoint has."""
    values = dict(checkpoint.metrics)
    for name in (wanted,) if wanted else DEFAULT_METRICS:
        if name in values:
            return Metric(name, values[name], goal or ("min" if name in DEFAULT_METRICS else None))
    return None


def iso_time(nanoseconds: int) -> str:
    """ISO 8601 in UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 1_000_000_000))


def problem_record(problem: Problem) -> dict[str, Any]:
    """The problem as every command's JSON shows it."""
    named = {"record": problem.record} if problem.record is not None else {}
    return {"code": problem.code, "detail": problem.detail, "path": problem.path, **named}


def checkpoint_record(checkpoint: Checkpoint, metric: Metric | None = None) -> dict[str, Any]:
    """The checkpoint as every command's JSON shows it."""
    metric = metric or pick_metric(checkpoint)
    ranks = checkpoint.ranks
    return {
        "ref": checkpoint.ref,
        "layout": checkpoint.layout,
        "source": checkpoint.source,
        "tag": checkpoint.tag,
        "step": checkpoint.step,
        "unit": checkpoint.unit,
        "dir": checkpoint.dir,
        "state": checkpoint.state,
        "resumable": checkpoint.resumable,
        "problems": [problem_record(problem) for problem in checkpoint.problems],
        "bytes": checkpoint.bytes,
        "modified": iso_time(checkpoint.modified) if checkpoint.parts else None,
        "metric": metric and {"name": metric.name, "value": metric.value, "goal": metric.goal},
        "ranks": ranks and {"present": list(ranks.present), "missing": list(ranks.missing)},
        "parts": [
            {"role": part.role, "path": part.path, "bytes": part.bytes, "rank": part.rank} for part in checkpoint.parts
        ],
        "pinned": checkpoint.pinned,
        "linked": checkpoint.linked,
    }


def is_complete(checkpoint: Checkpoint) -> bool:
    """Whether nothing of it is missing; it need not be resumable."""
    return checkpoint.state == "complete"


def in_order(checkpoint: Checkpoint) -> tuple[bool, bool, int]:
    """A sort key for the checkpoints of one run: those without a number, epochs, steps; the numbers as numbers.

    A run is counted in steps only where somebody asked for that, and begins to be in the middle of a run: so steps
    come after epochs, and epoch 1 is never newer than step 500.
    """
    return checkpoint.step is not None, checkpoint.unit == "step", checkpoint.step or 0


def newest(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The one with the highest step, or epoch where none is counted in steps; one without a number only where none
    has one. Never by time where there are numbers: copying changes it. A file that is no model but lies beside one (a
    loose `optimizer.pt`) is not newer than that.
    """
    return max(checkpoints, key=by_age, default=None)


def by_age(checkpoint: Checkpoint) -> tuple[bool, bool, int, bool, int]:
    """The sort key by which `newest` is the last."""
    return *in_order(checkpoint), bool(checkpoint.having("model", "adapter")), checkpoint.modified
