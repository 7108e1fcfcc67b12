"""What a plan says: of each run what is kept, with reasons, what goes and what is left alone; and how far it may go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckpt_cli.checkpoint import Checkpoint, Part

Run = Sequence[Checkpoint]
Needs = Callable[[Checkpoint, Sequence[Checkpoint]], Iterable[Checkpoint]]


@dataclass(frozen=True)
class Kept:
    """A checkpoint that stays, and why: by the policies, and by the safety rules."""

    checkpoint: Checkpoint
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ignored:
    """A checkpoint that a plan leaves alone and does not count as kept, and why."""

    checkpoint: Checkpoint
    reason: str


@dataclass(frozen=True)
class Gone:
    """A checkpoint that falls out, and those of its files that go: all, or the optimizer's.

    `held` are the paths of those whose bytes stay under another name (a hard link), or go with a later one.
    """

    checkpoint: Checkpoint
    parts: tuple[Part, ...]
    held: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """That its going frees: of a part that is a link, nothing."""
        return sum(part.bytes for part in self.parts if not part.linked and part.path not in self.held)


@dataclass(frozen=True)
class RunPlan:
    """What happens to one run, each list in the order of training; `dir` is the run's directory."""

    source: str | None
    tag: str
    dir: str
    keep: tuple[Kept, ...]
    remove: tuple[Gone, ...]
    ignored: tuple[Ignored, ...]

    @property
    def name(self) -> str:
        """As `Checkpoint.run` of those in it."""
        return f"{self.source}/{self.tag}" if self.source else self.tag

    @property
    def stops_resuming(self) -> bool:
        """Whether training can resume from it now, and not when the plan is carried out."""
        staying = [kept.checkpoint for kept in self.keep] + [ignored.checkpoint for ignored in self.ignored]
        return any(gone.checkpoint.resumable for gone in self.remove) and not any(c.resumable for c in staying)


@dataclass(frozen=True)
class Plan:
    """What happens to every run.

    `over` is by how many bytes what stays exceeds the size budget, None where there is none.
    """

    policies: tuple[str, ...]
    groups: tuple[RunPlan, ...]
    optimizer_only: bool = False
    over: int | None = None

    @property
    def removed(self) -> list[Checkpoint]:
        return [gone.checkpoint for group in self.groups for gone in group.remove]

    @property
    def freed(self) -> int:
        """Bytes that go, exports that go along with their checkpoint included."""
        return sum(gone.bytes for group in self.groups for gone in group.remove)


@dataclass(frozen=True)
class Rules:
    """How far a plan may go. `grace` is nanoseconds; `needs` finds, by layout, what a checkpoint needs.

    `targets` are the files that symbolic links point to, `others` the checkpoints that are not asked about and may
    need some of those that are. `allow_empty` lets policies that keep nothing have their way: the whole of one run
    goes, or with `optimizer_only` every optimizer.
    """

    now: int
    grace: int
    needs: Mapping[str, Needs | None]
    targets: frozenset[str] = frozenset()
    allow_empty: bool = False
    incomplete: bool = False
    trust_steps: bool = False
    optimizer_only: bool = False
    others: Sequence[Checkpoint] = ()

    @property
    def whole_run(self) -> bool:
        """Whether one run may go with all that it has."""
        return self.allow_empty and not self.optimizer_only
