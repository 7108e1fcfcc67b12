"""checkpoints + policies -> Plan: what is kept, with reasons, and what goes. No clock and no I/O.

A policy names the checkpoints of one run that it keeps; policies are ORed, and a size budget adds what fits into it.
On top of them stand the safety rules: a run's newest complete and newest resumable checkpoint, what is pinned, what a
link points to and what another one needs stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import dirname

from ckpt_cli.budget import Budget, by_worth, fitting
from ckpt_cli.checkpoint import Checkpoint, Part, Problem, State, in_order, is_complete, newest
from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.policies import Policy

Needs = Callable[[Checkpoint, Sequence[Checkpoint]], Iterable[Checkpoint]]
Run = Sequence[Checkpoint]
# A checkpoint by its run's directory and its ref -> why it stays.
Reasons = dict[tuple[str, str], list[str]]


@dataclass(frozen=True)
class Kept:
    checkpoint: Checkpoint
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ignored:
    checkpoint: Checkpoint
    reason: str


@dataclass(frozen=True)
class Gone:
    """A checkpoint that falls out, and those of its files that go: all, or the optimizer's."""

    checkpoint: Checkpoint
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts if not part.linked)


@dataclass(frozen=True)
class RunPlan:
    """What happens to one run, each list in the order of training."""

    source: str | None
    tag: str
    dir: str
    keep: tuple[Kept, ...]
    remove: tuple[Gone, ...]
    ignored: tuple[Ignored, ...]

    @property
    def name(self) -> str:
        return f"{self.source}/{self.tag}" if self.source else self.tag

    @property
    def stops_resuming(self) -> bool:
        """Whether training can resume from it now, and not when the plan is carried out."""
        staying = [kept.checkpoint for kept in self.keep] + [ignored.checkpoint for ignored in self.ignored]
        return any(gone.checkpoint.resumable for gone in self.remove) and not any(c.resumable for c in staying)


@dataclass(frozen=True)
class Plan:
    """`over` is by how many bytes what stays exceeds the size budget, None where there is none."""

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


def make_plan(
    checkpoints: Iterable[Checkpoint], policies: Mapping[str, Policy], rules: Rules, budget: Budget | None = None
) -> Plan:
    """The plan for every run among `checkpoints`. `policies` are by the name that a user knows them under.

    Raises Refused when a run would be left with nothing, was restarted in its own folder, or is of a layout
    that does not say what its files need of each other.
    """
    if not policies and not budget:
        raise CkptError("no policy says what to keep", "--keep N keeps the last N of each run")
    grouped: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        grouped.setdefault((checkpoint.run, checkpoint.run_dir), []).append(checkpoint)
    runs = [sorted(run, key=lambda c: (in_order(c), c.name)) for run in grouped.values()]
    whole_run = rules.allow_empty and not rules.optimizer_only
    if whole_run and len(runs) > 1:
        raise Refused("--allow-empty removes one whole run, and several are meant", "name one, as in SOURCE/TAG")
    inside = [run for run in runs if not run[0].linked]
    if not rules.trust_steps:
        for run in inside:
            _refuse_restarted(run, rules.grace)
    reasons: Reasons = {}
    complete = [[c for c in run if is_complete(c)] for run in inside]
    for run in complete:
        for policy in policies.values():
            found = policy(run, rules.now)
            for checkpoint in run if found else ():
                if checkpoint.ref in found:
                    reasons.setdefault(_key(checkpoint), []).append(found[checkpoint.ref])
    own = _guarded(inside, {}, rules, bool(budget))
    for checkpoint, what in _afforded(inside, complete, own, rules, budget) if budget else ():
        reasons.setdefault(_key(checkpoint), []).append(what)
    reasons = _guarded(inside, reasons, rules, bool(budget))
    groups = [_linked(run) if run[0].linked else _sorted_out(run, reasons, rules) for run in runs]
    plan = Plan(tuple(policies), tuple(groups), rules.optimizer_only)
    if budget:
        there = sum(_bytes(c) for run in inside for c in run)
        names = (*policies, f"max size {budget.text}")
        plan = replace(plan, policies=names, over=max(0, there - plan.freed - budget.bytes))
    return plan


def settled_plan(
    checkpoints: Iterable[Checkpoint],
    policies: Mapping[str, Policy],
    rules: Rules,
    check: Callable[[Checkpoint], tuple[Problem, ...]],
    budget: Budget | None = None,
) -> Plan:
    """The plan whose kept checkpoints all pass `check`; those that fail it count as incomplete.

    What would go and was touched within the grace time is looked at as well: if it fails, it is being written.
    """
    pool = {_key(c): c for c in checkpoints}
    passed: set[tuple[str, str]] = set()
    while True:
        plan = make_plan(pool.values(), policies, rules, budget)
        failed = False
        counted = [kept.checkpoint for group in plan.groups for kept in group.keep]
        counted += [c for c in plan.removed if is_complete(c) and _is_fresh(c, rules)]
        for checkpoint in counted:
            key = _key(checkpoint)
            if key in passed:
                continue
            passed.add(key)
            problems = check(checkpoint)
            if problems:
                failed = True
                state: State = "in-progress" if _is_fresh(checkpoint, rules) else "incomplete"
                pool[key] = checkpoint._replace(state=state, resumable=False, problems=problems)
        if not failed:
            return plan


def optimizer_parts(checkpoint: Checkpoint) -> tuple[Part, ...]:
    """The optimizer's own files, and the index in a folder that holds nothing but those."""
    own = checkpoint.having("optimizer")
    folders = {dirname(part.path) for part in own}
    folders -= {dirname(part.path) for part in checkpoint.parts if part.role not in ("optimizer", "index")}
    return (*own, *(part for part in checkpoint.having("index") if dirname(part.path) in folders))


def _going(checkpoint: Checkpoint, rules: Rules) -> tuple[Part, ...]:
    return optimizer_parts(checkpoint) if rules.optimizer_only else checkpoint.parts


def _going_bytes(checkpoint: Checkpoint, rules: Rules) -> int:
    return sum(part.bytes for part in _going(checkpoint, rules) if not part.linked)


def _may_go(checkpoint: Checkpoint, rules: Rules) -> bool:
    whole_run = rules.allow_empty and not rules.optimizer_only
    return is_complete(checkpoint) or (checkpoint.state == "incomplete" and (rules.incomplete or whole_run))


def _bytes(checkpoint: Checkpoint) -> int:
    """What it takes of the disk, exports included: of a part that is a link, only the link."""
    return sum(part.bytes for part in checkpoint.parts if not part.linked)


def _key(checkpoint: Checkpoint) -> tuple[str, str]:
    return checkpoint.run_dir, checkpoint.ref


def _is_fresh(checkpoint: Checkpoint, rules: Rules) -> bool:
    return rules.now - checkpoint.modified < rules.grace


def _linked(run: Run) -> RunPlan:
    reason = "the run is a link out of the root"
    return RunPlan(run[0].source, run[0].tag, run[0].run_dir, (), (), tuple(Ignored(c, reason) for c in run))


def _sorted_out(run: Run, reasons: Reasons, rules: Rules) -> RunPlan:
    first = run[0]
    keep, remove, ignored = [], [], []
    for checkpoint in run:
        why = tuple(dict.fromkeys(reasons.get(_key(checkpoint), ())))
        if why and is_complete(checkpoint):
            keep.append(Kept(checkpoint, why))
        elif why:
            ignored.append(Ignored(checkpoint, f"{checkpoint.state}: {', '.join(why)}"))
        elif checkpoint.state == "in-progress":
            growing = [problem.detail for problem in checkpoint.problems if problem.code == "growing"]
            ignored.append(Ignored(checkpoint, ": ".join(["in progress", *growing])))
        elif not _may_go(checkpoint, rules):
            detail = checkpoint.problems[0].detail if checkpoint.problems else "something is missing"
            ignored.append(Ignored(checkpoint, f"incomplete: {detail}"))
        elif parts := _going(checkpoint, rules):
            remove.append(Gone(checkpoint, parts))
        else:
            ignored.append(Ignored(checkpoint, "no optimizer file of its own"))
    if remove and rules.needs.get(first.layout) is None:
        raise Refused(
            f"the layout {first.layout} does not say what its files need of each other, "
            f"so nothing of {first.run} can be removed safely"
        )
    if remove and not keep and not rules.allow_empty:
        hint = f"--keep 1 beside it keeps the newest; with {first.run} as TARGET, --keep 0 --allow-empty removes it all"
        if rules.optimizer_only:
            hint = "--optimizer-only --keep 0 drops every optimizer"
        raise Refused(f"nothing of {first.run} would be kept", hint)
    return RunPlan(first.source, first.tag, first.run_dir, tuple(keep), tuple(remove), tuple(ignored))


def _guarded(runs: Sequence[Run], named: Reasons, rules: Rules, always: bool) -> Reasons:
    """The reasons together with those of the safety rules.

    `--keep 0` alone keeps nothing, and is then refused; it must not turn into "the newest" in silence. So the newest
    of a run are kept beside others only, or `always`.
    """
    reasons = {key: list(why) for key, why in named.items()}
    pool = [c for run in runs for c in run]
    homes = {_key(c): run for run in runs for c in run}
    for checkpoint in pool:
        if checkpoint.pinned:
            reasons.setdefault(_key(checkpoint), []).append("pinned")
        if rules.targets and any(part.path in rules.targets for part in checkpoint.parts):
            reasons.setdefault(_key(checkpoint), []).append("a link points to it")
    asked: set[tuple[str, str]] = set()
    guarded: set[int] = set()
    # What is being written stays, and so does what it needs; so does what those need that are not asked about.
    pending = [*(c for c in rules.others if c.state != "incomplete"), *(c for c in pool if c.state == "in-progress")]
    while True:
        for place, run in enumerate(runs if not rules.allow_empty else ()):
            if place not in guarded and (always or any(_key(c) in reasons for c in run)):
                guarded.add(place)
                _guard_newest(run, reasons)
        pending += [c for c in pool if _key(c) in reasons and _key(c) not in asked]
        if not pending:
            return reasons
        while pending:
            checkpoint = pending.pop()
            if _key(checkpoint) in asked:
                continue
            asked.add(_key(checkpoint))
            for needed in _needed(checkpoint, homes, pool, rules):
                reasons.setdefault(_key(needed), []).append(f"{checkpoint.ref} needs it")
                pending.append(needed)


def _guard_newest(run: Run, reasons: Reasons) -> None:
    complete = [c for c in run if is_complete(c)]
    for found, reason in (
        (newest(complete), "newest complete"),
        (newest(c for c in complete if c.resumable), "newest resumable"),
    ):
        if found:
            reasons.setdefault(_key(found), []).append(reason)


def _needed(
    checkpoint: Checkpoint, homes: Mapping[tuple[str, str], Run], pool: Sequence[Checkpoint], rules: Rules
) -> list[Checkpoint]:
    """Those of the pool that a checkpoint cannot be used without: of its run, and the base of an adapter anywhere."""
    needs = rules.needs.get(checkpoint.layout)
    if not needs:
        return []
    run = homes.get(_key(checkpoint), ())
    found = list(needs(checkpoint, run)) if run else []
    if checkpoint.having("adapter"):
        found += needs(checkpoint, [c for c in pool if c.run_dir != checkpoint.run_dir])
    return found


def _afforded(
    runs: Sequence[Run], complete: Sequence[Run], stays: Reasons, rules: Rules, budget: Budget
) -> list[tuple[Checkpoint, str]]:
    """What the budget keeps, and why. `stays` is kept without it: other policies change nothing here."""
    homes = {_key(c): run for run in runs for c in run}
    pool = [c for run in runs for c in run]
    counted: set[tuple[str, str]] = set()
    room = budget.bytes

    def weight(checkpoint: Checkpoint) -> int:
        """The bytes of what goes if it does, and of all that it needs, as far as they are not counted yet."""
        total, pending = 0, [checkpoint]
        while pending:
            here = pending.pop()
            if _key(here) not in counted:
                counted.add(_key(here))
                total += _going_bytes(here, rules)
                pending += _needed(here, homes, pool, rules)
        return total

    for checkpoint in pool:
        # What can never go takes its room in any case; of the rest, what stays of it.
        room -= _bytes(checkpoint)
        if _key(checkpoint) in stays or not _may_go(checkpoint, rules):
            counted.add(_key(checkpoint))
        else:
            room += _going_bytes(checkpoint, rules)
    taken = fitting(by_worth(complete, budget), room, weight)
    return [(checkpoint, f"{what} within {budget.text}") for checkpoint, what in taken]


def _refuse_restarted(run: Run, grace: int) -> None:
    """A lower step written well after a higher one: the run was started again in its own folder.

    An epoch and a step do not compare.
    """
    latest: Checkpoint | None = None
    for checkpoint in run:
        if checkpoint.step is None:
            continue
        if latest and latest.unit != checkpoint.unit:
            latest = None
        if latest and checkpoint.modified + grace < latest.modified:
            raise Refused(
                f"{latest.ref} was written after {checkpoint.ref}: the run was restarted in its own folder, "
                "and the highest step need not be the newest",
                "--trust-steps goes by the steps all the same",
            )
        if latest is None or checkpoint.modified > latest.modified:
            latest = checkpoint
