"""A size that the checkpoints of all runs together shall fit into: which are worth their room.

What stays whatever happens is counted first. Then come the best step of each run, the run that was written to last
first, and then all others from the newest down: by step within a run, by time between runs. The first that does not
fit ends it, so that a small old checkpoint never stays where a newer one goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ckpt_cli.checkpoint import Checkpoint, Goal
from ckpt_cli.policies import by_merit


class Budget(NamedTuple):
    """How many bytes, as somebody wrote it, and what the best step of a run is judged by."""

    bytes: int
    text: str
    metric: str | None = None
    goal: Goal | None = None


def by_worth(runs: Iterable[Sequence[Checkpoint]], budget: Budget) -> list[tuple[Checkpoint, str]]:
    """Every checkpoint once, the most valuable first, with what it is: "best by NAME" or "newest".

    Each run is in the order of training.
    """
    runs = sorted(
        (run for run in runs if run), key=lambda run: max(checkpoint.modified for checkpoint in run), reverse=True
    )
    worth: list[tuple[Checkpoint, str]] = []
    for run in runs:
        name, ranked = by_merit(run, budget.metric, budget.goal)
        worth += [(checkpoint, f"best by {name}") for checkpoint in ranked[:1]]
    best = {(checkpoint.run_dir, checkpoint.ref) for checkpoint, _ in worth}
    # A later step is never below an earlier one of its run, whatever their times: the highest that is left counts.
    rest: list[tuple[int, int, int, Checkpoint]] = []
    for place, run in enumerate(runs):
        oldest = None
        for depth, checkpoint in enumerate(reversed(run)):
            oldest = checkpoint.modified if oldest is None else min(oldest, checkpoint.modified)
            rest.append((-oldest, place, depth, checkpoint))
    rest.sort(key=lambda item: item[:3])
    return worth + [(c, "newest") for *_, c in rest if (c.run_dir, c.ref) not in best]


def affordable(
    worth: Iterable[tuple[Checkpoint, str]], room: int, cost: Callable[[Checkpoint], int]
) -> list[tuple[Checkpoint, str]]:
    """As many from the front as fit into `room` bytes, which may be below 0. `cost` is asked in that order, once each.

    It says how many bytes more stay if a checkpoint does, those of what it needs included.
    """
    taken = []
    for checkpoint, what in worth:
        room -= cost(checkpoint)
        if room < 0:
            break
        taken.append((checkpoint, what))
    return taken
