"""The safety rules: what stays whatever the policies say, as reasons of its own.

A run's newest complete and newest resumable checkpoint, what is pinned, what a link points to, and what any of those
that stay needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from os.path import dirname, sep

from ckpt_cli.checkpoint import Checkpoint, is_complete, newest
from ckpt_cli.plans import Rules, Run

# A checkpoint by its run's directory and its ref -> why it stays.
Reasons = dict[tuple[str, str], list[str]]


def place_of(checkpoint: Checkpoint) -> tuple[str, str]:
    """What tells it from all others: two runs may call a checkpoint the same."""
    return checkpoint.run_dir, checkpoint.ref


def homes_of(runs: Sequence[Run]) -> dict[tuple[str, str], Run]:
    """By checkpoint all that lies in the folder of its run, whoever wrote it."""
    places: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in (c for run in runs for c in run):
        places.setdefault((checkpoint.run, checkpoint.run_dir), []).append(checkpoint)
    return {place_of(c): place for place in places.values() for c in place}


def guarded(runs: Sequence[Run], named: Reasons, rules: Rules, always: bool) -> Reasons:
    """The reasons together with those of the safety rules.

    `--keep 0` alone keeps nothing, and is then refused; it must not turn into "the newest" in silence. So the newest
    of a run are kept beside others only, or `always`.
    """
    reasons = {key: list(why) for key, why in named.items()}
    pool = [c for run in runs for c in run]
    homes = homes_of(runs)
    for checkpoint in pool:
        if checkpoint.pinned:
            reasons.setdefault(place_of(checkpoint), []).append("pinned")
        if rules.targets and _is_target(checkpoint, rules.targets):
            reasons.setdefault(place_of(checkpoint), []).append("a link points to it")
    asked: set[tuple[str, str]] = set()
    seen: set[int] = set()
    sharing = _sharing(pool, rules.others)
    # What is being written stays, and so does what it needs; so does what those need that are not asked about.
    pending = [*(c for c in rules.others if c.state != "incomplete"), *(c for c in pool if c.state == "in-progress")]
    if sharing:
        left = (*rules.others, *(() if rules.incomplete or rules.whole_run else pool))
        pending += [c for c in left if c.state == "incomplete" and place_of(c) in sharing]
    while True:
        for place, run in enumerate(runs if not rules.allow_empty else ()):
            if place not in seen and (always or any(place_of(c) in reasons for c in run)):
                seen.add(place)
                _guard_newest(run, reasons)
        pending += [c for c in pool if place_of(c) in reasons and place_of(c) not in asked]
        if not pending:
            return reasons
        while pending:
            checkpoint = pending.pop()
            if place_of(checkpoint) in asked:
                continue
            asked.add(place_of(checkpoint))
            for needed in (*needed_by(checkpoint, homes, pool, rules), *sharing.get(place_of(checkpoint), ())):
                reasons.setdefault(place_of(needed), []).append(f"{checkpoint.ref} needs it")
                pending.append(needed)


def _is_target(checkpoint: Checkpoint, targets: Collection[str]) -> bool:
    """Whether a link leads to one of its files, to the folder that it has for itself, or to one in that."""
    if any(part.path in targets for part in checkpoint.parts):
        return True
    folders = {dirname(part.path) for part in checkpoint.parts} | {checkpoint.dir} if checkpoint.home else set()
    above = checkpoint.home.rstrip(sep) + sep
    return any(folder in targets and folder.startswith(above) for folder in folders)


def _sharing(pool: Sequence[Checkpoint], others: Sequence[Checkpoint]) -> dict[tuple[str, str], list[Checkpoint]]:
    """By checkpoint, those of the pool that have a file with it in common: it would go with them."""
    paths = [part.path for checkpoint in (*pool, *others) for part in checkpoint.parts]
    if len(set(paths)) == len(paths):
        return {}
    owners: dict[str, list[Checkpoint]] = {}
    for checkpoint in (*pool, *others):
        for path in {part.path for part in checkpoint.parts}:
            owners.setdefault(path, []).append(checkpoint)
    meant = set(map(place_of, pool))
    found: dict[tuple[str, str], list[Checkpoint]] = {}
    for several in owners.values():
        for one in several if len(several) > 1 else ():
            found.setdefault(place_of(one), []).extend(c for c in several if c != one and place_of(c) in meant)
    return found


def _guard_newest(run: Run, reasons: Reasons) -> None:
    complete = [c for c in run if is_complete(c)]
    for found, reason in (
        (newest(complete), "newest complete"),
        (newest(c for c in complete if c.resumable), "newest resumable"),
    ):
        if found:
            reasons.setdefault(place_of(found), []).append(reason)


def needed_by(
    checkpoint: Checkpoint, homes: Mapping[tuple[str, str], Run], pool: Sequence[Checkpoint], rules: Rules
) -> list[Checkpoint]:
    """Those of the pool that a checkpoint cannot be used without: of its run, and the base of an adapter anywhere."""
    needs = rules.needs.get(checkpoint.layout)
    if not needs:
        return []
    run = homes.get(place_of(checkpoint), ())
    found = list(needs(checkpoint, run)) if run else []
    if checkpoint.having("adapter"):
        found += needs(checkpoint, pool)
    return found
