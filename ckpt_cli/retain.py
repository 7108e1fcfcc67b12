"""checkpoints + policies -> Plan: what is kept, with reasons, and what goes. No clock and no I/O.

A policy names the checkpoints of one run that it keeps; policies are ORed. On top of them stand the safety
rules: a run's newest complete and newest resumable checkpoint, what is pinned and what a kept one needs stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckpt_cli.checkpoint import Checkpoint, Problem, is_complete, newest
from ckpt_cli.errors import CkptError, Refused

# The complete checkpoints of one run in step order, and now in nanoseconds -> those it keeps, with the reason.
Policy = Callable[[Sequence[Checkpoint], int], Mapping[str, str]]
Needs = Callable[[Checkpoint, Sequence[Checkpoint]], Iterable[Checkpoint]]


@dataclass(frozen=True)
class Kept:
    checkpoint: Checkpoint
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ignored:
    checkpoint: Checkpoint
    reason: str


@dataclass(frozen=True)
class RunPlan:
    """What happens to one run, each list in step order."""

    source: str | None
    tag: str
    dir: str
    keep: tuple[Kept, ...]
    remove: tuple[Checkpoint, ...]
    ignored: tuple[Ignored, ...]


@dataclass(frozen=True)
class Plan:
    policies: tuple[str, ...]
    groups: tuple[RunPlan, ...]

    @property
    def removed(self) -> list[Checkpoint]:
        return [checkpoint for group in self.groups for checkpoint in group.remove]

    @property
    def freed(self) -> int:
        """Bytes that go, exports that go along with their checkpoint included."""
        return sum(freed_by(checkpoint) for checkpoint in self.removed)


def freed_by(checkpoint: Checkpoint) -> int:
    """Bytes that the disk gets back: of a part that is a link, only the link goes."""
    return sum(part.bytes for part in checkpoint.parts if not part.linked)


@dataclass(frozen=True)
class Rules:
    """How far a plan may go. `grace` is nanoseconds; `needs` finds, by layout, what a checkpoint needs.

    `targets` are the files that symbolic links point to.
    """

    now: int
    grace: int
    needs: Mapping[str, Needs | None]
    targets: frozenset[str] = frozenset()
    allow_empty: bool = False
    incomplete: bool = False
    trust_steps: bool = False


def keep_last(count: int) -> Policy:
    """The `count` highest steps."""
    if count < 0:
        raise CkptError(f"--keep takes a number from 0, not {count}")

    def policy(run: Sequence[Checkpoint], now: int) -> Mapping[str, str]:
        return {checkpoint.ref: f"last {count}" for checkpoint in run[max(0, len(run) - count) :]}

    return policy


def make_plan(checkpoints: Iterable[Checkpoint], policies: Mapping[str, Policy], rules: Rules) -> Plan:
    """The plan for every run among `checkpoints`. `policies` are by the name that a user knows them under.

    Raises Refused when a run would be left with nothing, was restarted in its own folder, or is of a layout
    that does not say what its files need of each other.
    """
    if not policies:
        raise CkptError("no policy says what to keep", "--keep N keeps the last N of each run")
    runs: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        runs.setdefault((checkpoint.run, checkpoint.run_dir), []).append(checkpoint)
    if rules.allow_empty and len(runs) > 1:
        raise Refused("--allow-empty removes one whole run, and several are meant", "name one, as in SOURCE/TAG")
    return Plan(tuple(policies), tuple(_run_plan(run, policies, rules) for run in runs.values()))


def settled_plan(
    checkpoints: Iterable[Checkpoint],
    policies: Mapping[str, Policy],
    rules: Rules,
    check: Callable[[Checkpoint], tuple[Problem, ...]],
) -> Plan:
    """The plan whose kept checkpoints all pass `check`; those that fail it count as incomplete."""
    pool = {(c.run_dir, c.ref): c for c in checkpoints}
    passed: set[tuple[str, str]] = set()
    while True:
        plan = make_plan(pool.values(), policies, rules)
        failed = False
        for kept in (kept.checkpoint for group in plan.groups for kept in group.keep):
            key = (kept.run_dir, kept.ref)
            if key in passed:
                continue
            passed.add(key)
            problems = check(kept)
            if problems:
                failed = True
                fresh = rules.now - kept.modified < rules.grace
                pool[key] = kept._replace(
                    state="in-progress" if fresh else "incomplete", resumable=False, problems=problems
                )
        if not failed:
            return plan


def _run_plan(run: Sequence[Checkpoint], policies: Mapping[str, Policy], rules: Rules) -> RunPlan:
    first = run[0]
    if first.linked:
        reason = "the run is a link out of the root"
        return RunPlan(first.source, first.tag, first.run_dir, (), (), tuple(Ignored(c, reason) for c in run))
    run = sorted(run, key=lambda c: (c.step or 0, c.name))
    for checkpoint in run:
        if rules.needs.get(checkpoint.layout) is None:
            raise Refused(
                f"the layout {checkpoint.layout} does not say what its files need of each other, "
                f"so nothing of {checkpoint.run} can be removed safely"
            )
    if not rules.trust_steps:
        _refuse_restarted(run, rules.grace)
    reasons = _reasons(run, policies, rules)
    keep, remove, ignored = [], [], []
    for checkpoint in run:
        why = tuple(dict.fromkeys(reasons.get(checkpoint.ref, ())))
        if why and is_complete(checkpoint):
            keep.append(Kept(checkpoint, why))
        elif why:
            ignored.append(Ignored(checkpoint, f"{checkpoint.state}: {', '.join(why)}"))
        elif checkpoint.state == "in-progress":
            ignored.append(Ignored(checkpoint, "in progress"))
        elif checkpoint.state == "incomplete" and not (rules.incomplete or rules.allow_empty):
            ignored.append(Ignored(checkpoint, f"incomplete: {checkpoint.problems[0].detail}"))
        else:
            remove.append(checkpoint)
    if remove and not keep and not rules.allow_empty:
        raise Refused(
            f"nothing of {first.run} would be kept",
            f"with {first.run} as TARGET, --keep 0 --allow-empty removes this one run",
        )
    return RunPlan(first.source, first.tag, first.run_dir, tuple(keep), tuple(remove), tuple(ignored))


def _reasons(run: Sequence[Checkpoint], policies: Mapping[str, Policy], rules: Rules) -> dict[str, list[str]]:
    """Why each kept checkpoint is kept, by ref."""
    complete = [c for c in run if is_complete(c)]
    reasons: dict[str, list[str]] = {}
    for policy in policies.values():
        for ref, reason in policy(complete, rules.now).items():
            reasons.setdefault(ref, []).append(reason)
    for checkpoint in run:
        if checkpoint.pinned:
            reasons.setdefault(checkpoint.ref, []).append("pinned")
        if any(part.path in rules.targets for part in checkpoint.parts):
            reasons.setdefault(checkpoint.ref, []).append("a link points to it")
    # `--keep 0` alone keeps nothing, and is then refused; it must not turn into "the newest" in silence.
    if reasons:
        for found, reason in (
            (newest(complete), "newest complete"),
            (newest(c for c in complete if c.resumable), "newest resumable"),
        ):
            if found and not rules.allow_empty:
                reasons.setdefault(found.ref, []).append(reason)
    pending = [c for c in run if c.ref in reasons]
    while pending:
        checkpoint = pending.pop()
        needs = rules.needs[checkpoint.layout]
        for needed in needs(checkpoint, run) if needs else ():
            if needed.ref not in reasons:
                pending.append(needed)
            reasons.setdefault(needed.ref, []).append(f"{checkpoint.ref} needs it")
    return reasons


def _refuse_restarted(run: Sequence[Checkpoint], grace: int) -> None:
    """A lower step written well after a higher one: the run was started again in its own folder."""
    latest: Checkpoint | None = None
    for checkpoint in run:
        if checkpoint.step is None:
            continue
        if latest and checkpoint.modified + grace < latest.modified:
            raise Refused(
                f"{latest.ref} was written after {checkpoint.ref}: the run was restarted in its own folder, "
                "and the highest step need not be the newest",
                "--trust-steps goes by the steps all the same",
            )
        if latest is None or checkpoint.modified > latest.modified:
            latest = checkpoint
