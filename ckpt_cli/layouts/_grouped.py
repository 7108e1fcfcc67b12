"""The checkpoints of a run by what others look for them by.

`needs` is asked about each checkpoint of a run in turn, with the same sequence each time: to go through all of it for
every one would take time with the square of its length.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from ckpt_cli.checkpoint import Checkpoint

Key = Callable[[Checkpoint], Hashable]

# How many answers are kept: a plan asks about a run and about all runs by turns.
_MOST = 32
_kept: dict[tuple[int, Key], tuple[Sequence[Checkpoint], int, dict[Hashable, list[Checkpoint]]]] = {}


def grouped(run: Sequence[Checkpoint], key: Key) -> dict[Hashable, list[Checkpoint]]:
    """The checkpoints by `key`, each list in their order. Made once for a sequence and a function, and not changed."""
    place = id(run), key
    # That it is kept keeps its id from being another's.
    held = _kept.get(place)
    if held is None or held[0] is not run or held[1] != len(run):
        groups: dict[Hashable, list[Checkpoint]] = {}
        for checkpoint in run:
            groups.setdefault(key(checkpoint), []).append(checkpoint)
        _kept.pop(place, None)
        while len(_kept) >= _MOST:
            del _kept[next(iter(_kept))]
        held = _kept[place] = (run, len(run), groups)
    return held[2]


def at_step(checkpoint: Checkpoint) -> Hashable:
    return checkpoint.run_dir, checkpoint.step


def unnumbered(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Those in the same folder as its run that have no number, itself left out."""
    return [c for c in grouped(run, at_step).get((checkpoint.run_dir, None), ()) if c != checkpoint]
