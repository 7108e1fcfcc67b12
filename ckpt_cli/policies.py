"""What to keep, one pure function a policy: checkpoints of a run -> those it keeps, with the reason.

Each gets the complete checkpoints of one run in the order of training, and the time in nanoseconds. What no number
or metric is known of is kept, not guessed about. Policies are ORed by `retain`; a size budget is none of them,
because it is about all runs together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from ckpt_cli.checkpoint import DEFAULT_METRICS, Checkpoint, Goal, pick_metric
from ckpt_cli.errors import CkptError

# The complete checkpoints of one run in order, and now in nanoseconds -> those it keeps, by ref.
Policy = Callable[[Sequence[Checkpoint], int], Mapping[str, str]]


def keep_last(count: int) -> Policy:
    """The `count` highest steps. A checkpoint without a number is kept, unless `count` is 0."""
    if count < 0:
        raise CkptError(f"--keep takes a number from 0, not {count}")

    def policy(run: Sequence[Checkpoint], now: int) -> Mapping[str, str]:
        if not count:
            return {}
        numbered = [c for c in run if c.step is not None]
        return {**_without_number(run), **{c.ref: f"last {count}" for c in numbered[-count:]}}

    return policy


def keep_every(interval: int) -> Policy:
    """For each multiple of `interval` the step that is it, or else the one closest to it, by half an interval at most.

    Of two that are as close the later. Step 0 is a multiple, and none is closest to it. Epochs are counted by
    themselves where a run has both. A checkpoint without a number is kept.
    """
    if interval < 1:
        raise CkptError(f"--keep-every takes a number of steps from 1, not {interval}")

    def policy(run: Sequence[Checkpoint], now: int) -> Mapping[str, str]:
        closest: dict[tuple[str | None, int], int] = {}
        numbered = [(c, c.step) for c in run if c.step is not None]
        for checkpoint, step in numbered:
            multiple = _multiple(step, interval)
            if multiple or not step:
                place = (checkpoint.unit, multiple)
                distance = abs(step - multiple)
                nearer = place not in closest or distance <= abs(closest[place] - multiple)
                closest[place] = step if nearer else closest[place]
        kept = _without_number(run)
        for checkpoint, step in numbered:
            multiple = _multiple(step, interval)
            if closest.get((checkpoint.unit, multiple)) == step:
                kept[checkpoint.ref] = f"every {interval}" if step == multiple else f"closest to {multiple}"
        return kept

    return policy


def keep_best(count: int, metric: str | None = None, goal: Goal | None = None, unmeasured: bool = True) -> Policy:
    """The `count` best by a metric, of equals the later; those without it are kept too unless `unmeasured` is false.

    Without a name it is the first of the usual ones that any checkpoint of the run has. What is not finite is no
    value. Raises CkptError when it is not known which direction is better.
    """
    if count < 1:
        raise CkptError(f"--keep-best takes a number from 1, not {count}")
    if metric and goal is None:
        raise CkptError(
            f"whether a lower or a higher {metric!a} is better is not known", f"--metric {metric}:min or {metric}:max"
        )

    def policy(run: Sequence[Checkpoint], now: int) -> Mapping[str, str]:
        name, ranked = by_merit(run, metric, goal)
        kept = {c.ref: f"best {count} by {name}" for c in ranked[:count]}
        if unmeasured:
            measured = {c.ref for c in ranked}
            kept |= {c.ref: f"it has no {name}" for c in run if c.ref not in measured}
        return kept

    return policy


def by_merit(run: Sequence[Checkpoint], metric: str | None, goal: Goal | None) -> tuple[str, list[Checkpoint]]:
    """The metric that a run is judged by, and the checkpoints that have it, the best first, of equals the later."""
    valued: list[tuple[float, int]] = []
    name = metric or DEFAULT_METRICS[0]
    for name in (metric,) if metric else DEFAULT_METRICS:
        found = [(pick_metric(c, name, goal), at) for at, c in enumerate(run)]
        valued = [(m.value, at) for m, at in found if m and math.isfinite(m.value)]
        if valued:
            break
    else:
        name = metric or DEFAULT_METRICS[0]
    sign = -1 if goal == "max" else 1
    return name, [run[at] for _, at in sorted(valued, key=lambda pair: (sign * pair[0], -pair[1]))]


def keep_within(seconds: float, text: str) -> Policy:
    """What was written within the last `seconds`, or, by a clock that is off, in the future."""

    def policy(run: Sequence[Checkpoint], now: int) -> Mapping[str, str]:
        return {c.ref: f"within {text}" for c in run if now - c.modified <= seconds * 1e9}

    return policy


def keep_steps(steps: Collection[int]) -> Policy:
    """These steps; one that a run does not have is none of its business."""
    if any(step < 0 for step in steps):
        raise CkptError(f"--keep-step takes a step from 0, not {min(steps)}")

    def policy(run: Sequence[Checkpoint], now: int) -> Mapping[str, str]:
        return {c.ref: f"step {c.step}" for c in run if c.step in steps}

    return policy


def _multiple(step: int, interval: int) -> int:
    """The multiple of `interval` that a step is closest to, of two the higher."""
    return (step + interval // 2) // interval * interval


def _without_number(run: Sequence[Checkpoint]) -> dict[str, str]:
    return {c.ref: "it has no step" for c in run if c.step is None}
