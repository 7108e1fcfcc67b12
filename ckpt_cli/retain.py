"""checkpoints + policies -> Plan: what is kept, with reasons, and what goes. No clock and no I/O.

A policy names the checkpoints of one run that it keeps; policies are ORed, and a size budget adds what fits into it.
On top of them stand the safety rules (`guards`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from os.path import dirname

from ckpt_cli.budget import Budget, affordable, by_worth
from ckpt_cli.checkpoint import Checkpoint, Part, Problem, State, by_age, in_order, is_complete
from ckpt_cli.errors import NOT_LOOKED_INTO, CkptError, Refused
from ckpt_cli.guards import Reasons, guarded, homes_of, needed_by, place_of
from ckpt_cli.plans import Gone, Ignored, Kept, Plan, Rules, Run, RunPlan
from ckpt_cli.policies import Policy


def make_plan(
    checkpoints: Iterable[Checkpoint], policies: Mapping[str, Policy], rules: Rules, budget: Budget | None = None
) -> Plan:
    """The plan for every run among `checkpoints`. `policies` are by the name that a user knows them under.

    A run is of one trainer: where two have written into one folder, each has its own last steps, and is looked at by
    itself; what one keeps may need what the other wrote.

    Raises Refused when a run would be left with nothing, was restarted in its own folder, or is of a layout
    that does not say what its files need of each other.
    """
    if not policies and not budget:
        raise CkptError("no policy says what to keep", "--keep N keeps the last N of each run")
    places: dict[tuple[str, str], dict[str, list[Checkpoint]]] = {}
    for checkpoint in checkpoints:
        trainers = places.setdefault((checkpoint.run, checkpoint.run_dir), {})
        trainers.setdefault(checkpoint.layout, []).append(checkpoint)
    runs = [
        sorted(run, key=lambda c: (in_order(c), c.name)) for trainers in places.values() for run in trainers.values()
    ]
    if rules.whole_run and len(places) > 1:
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
                    reasons.setdefault(place_of(checkpoint), []).append(found[checkpoint.ref])
    own = guarded(inside, {}, rules, bool(budget))
    for checkpoint, what in _afforded(inside, complete, own, rules, budget) if budget else ():
        reasons.setdefault(place_of(checkpoint), []).append(what)
    reasons = guarded(inside, reasons, rules, bool(budget))
    groups: dict[tuple[str, str], RunPlan] = {}
    for run in runs:
        group = _linked(run) if run[0].linked else _sorted_out(run, reasons, rules)
        place = run[0].run, run[0].run_dir
        groups[place] = _joined(groups[place], group) if place in groups else group
    plan = Plan(tuple(policies), _with_held(groups.values()), rules.optimizer_only)
    if budget:
        there = sum(_bytes(c) for run in inside for c in run)
        names = (*policies, f"max size {budget.text}")
        plan = replace(plan, policies=names, over=max(0, there - plan.freed - budget.bytes))
    return plan


def _with_held(groups: Iterable[RunPlan]) -> tuple[RunPlan, ...]:
    """The plans, in which a file of several names frees its bytes once, with the last of them that goes, if all do."""
    left: dict[tuple[int, int, int], int] = {}

    def held(gone: Gone) -> frozenset[str]:
        return frozenset(part.path for part in gone.parts if part.names and not part.linked and not frees(part.names))

    def frees(names: tuple[int, int, int]) -> bool:
        left[names] = left.get(names, names[2]) - 1
        return not left[names]

    def told(gone: Gone) -> Gone:
        names = held(gone)
        return replace(gone, held=names) if names else gone

    return tuple(replace(group, remove=tuple(map(told, group.remove))) for group in groups)


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
    pool = {place_of(c): c for c in checkpoints}
    looked_at: set[tuple[str, str]] = set()
    while True:
        plan = make_plan(pool.values(), policies, rules, budget)
        kept = [kept.checkpoint for group in plan.groups for kept in group.keep]
        fresh = [c for c in plan.removed if is_complete(c) and _is_fresh(c, rules)]
        failed = False
        for checkpoint in chain(kept, fresh, () if rules.allow_empty else _newest_in_turn(pool)):
            key = place_of(checkpoint)
            if key in looked_at:
                continue
            looked_at.add(key)
            problems = check(checkpoint)
            if problems:
                failed = True
                state: State = "in-progress" if _is_fresh(checkpoint, rules) else "incomplete"
                pool[key] = checkpoint._replace(state=state, resumable=False, problems=problems)
        if not failed:
            return plan


def _newest_in_turn(pool: Mapping[tuple[str, str], Checkpoint]) -> Iterator[Checkpoint]:
    """The newest complete checkpoint of each run; while the pool says meanwhile that it is not, the next one.

    Each would be kept by the plan after. To make that plan for one at a time would take hours where thousands fail.
    """
    runs: dict[tuple[str, str, str], list[Checkpoint]] = {}
    for checkpoint in pool.values():
        if is_complete(checkpoint) and not checkpoint.linked:
            runs.setdefault((checkpoint.run, checkpoint.run_dir, checkpoint.layout), []).append(checkpoint)
    for run in runs.values():
        for checkpoint in sorted(run, key=by_age, reverse=True):
            yield checkpoint
            if is_complete(pool[place_of(checkpoint)]):
                break


def _optimizer_parts(checkpoint: Checkpoint) -> tuple[Part, ...]:
    """The optimizer's own files, and the index in a folder that holds nothing but those."""
    own = checkpoint.having("optimizer")
    folders = {dirname(part.path) for part in own}
    folders -= {dirname(part.path) for part in checkpoint.parts if part.role not in ("optimizer", "index")}
    return (*own, *(part for part in checkpoint.having("index") if dirname(part.path) in folders))


def _going(checkpoint: Checkpoint, rules: Rules) -> tuple[Part, ...]:
    return _optimizer_parts(checkpoint) if rules.optimizer_only else checkpoint.parts


def _going_bytes(checkpoint: Checkpoint, rules: Rules) -> int:
    return sum(part.bytes for part in _going(checkpoint, rules) if not part.linked)


def _may_go(checkpoint: Checkpoint, rules: Rules) -> bool:
    """Of what cannot be looked into it is not known that it is incomplete: the disk, a permission or its size may be in
    the way. It goes with its whole run only.
    """
    if checkpoint.state == "incomplete" and rules.incomplete and not rules.whole_run:
        unread = {problem.path for problem in checkpoint.problems if problem.code in NOT_LOOKED_INTO}
        return not any(part.path in unread for part in checkpoint.parts)
    return is_complete(checkpoint) or (checkpoint.state == "incomplete" and rules.whole_run)


def _bytes(checkpoint: Checkpoint) -> int:
    """What it takes of the disk, exports included: of a part that is a link, only the link."""
    return sum(part.bytes for part in checkpoint.parts if not part.linked)


def _is_fresh(checkpoint: Checkpoint, rules: Rules) -> bool:
    return rules.now - checkpoint.modified < rules.grace


def _joined(one: RunPlan, other: RunPlan) -> RunPlan:
    """The plans for what two trainers wrote into one folder."""
    keep, remove, ignored = one.keep + other.keep, one.remove + other.remove, one.ignored + other.ignored
    return replace(one, keep=keep, remove=remove, ignored=ignored)


def _linked(run: Run) -> RunPlan:
    reason = "the run is a link out of the root"
    return RunPlan(run[0].source, run[0].tag, run[0].run_dir, (), (), tuple(Ignored(c, reason) for c in run))


def _sorted_out(run: Run, reasons: Reasons, rules: Rules) -> RunPlan:
    first = run[0]
    keep, remove, ignored = [], [], []
    for checkpoint in run:
        why = tuple(dict.fromkeys(reasons.get(place_of(checkpoint), ())))
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


def _afforded(
    runs: Sequence[Run], complete: Sequence[Run], stays: Reasons, rules: Rules, budget: Budget
) -> list[tuple[Checkpoint, str]]:
    """What the budget keeps, and why. `stays` is kept without it: other policies change nothing here."""
    homes = homes_of(runs)
    pool = [c for run in runs for c in run]
    counted: set[tuple[str, str]] = set()
    room = budget.bytes

    def weight(checkpoint: Checkpoint) -> int:
        """The bytes of what goes if it does, and of all that it needs, as far as they are not counted yet."""
        total, pending = 0, [checkpoint]
        while pending:
            here = pending.pop()
            if place_of(here) not in counted:
                counted.add(place_of(here))
                total += _going_bytes(here, rules)
                pending += needed_by(here, homes, pool, rules)
        return total

    for checkpoint in pool:
        # What can never go takes its room in any case; of the rest, what stays of it.
        room -= _bytes(checkpoint)
        if place_of(checkpoint) in stays or not _may_go(checkpoint, rules):
            counted.add(place_of(checkpoint))
        else:
            room += _going_bytes(checkpoint, rules)
    taken = affordable(by_worth(complete, budget), room, weight)
    return [(checkpoint, f"{what} within {budget.text}") for checkpoint, what in taken]


def _refuse_restarted(run: Run, grace: int) -> None:
    """A lower step written well after a higher one: the run was started again in its own folder.

    An epoch and a step do not compare.
    """
    latest: Checkpoint | None = None
    for checkpoint in run:
        if checkpoint.step is None or not checkpoint.parts:  # of a link to nothing there is no time
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
