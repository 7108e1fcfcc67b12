"""What is asked for -> checkpoints: a set of them, or the one that is meant; which run and step nobody named."""

import re
from collections.abc import Callable, Sequence
from shlex import quote

from ckpt_cli.checkpoint import Checkpoint, is_complete, newest
from ckpt_cli.errors import CkptError, NotFound
from ckpt_cli.metrics import best_of
from ckpt_cli.query import Query, at_step, is_number, listing, nothing_in

_DEPTH = re.compile(r"d([0-9]+)")
# The folder of a step by its name, up to the number; and something behind that.
_COPY = re.compile(r"(.*)/([^/0-9]*)[0-9]+[^/0-9][^/]*", re.DOTALL)
Accept = Callable[[Checkpoint], bool]


def choose(query: Query) -> tuple[Checkpoint, ...]:
    """The set of checkpoints that is meant: every step of a run where none is named, everything without TARGET."""
    pool = query.pool
    if query.file and not pool:
        raise _no_part(query.file)
    if query.step is None:
        return pool
    if query.step in ("latest", "best"):
        return _of_each_run(pool, query.step, query.settings.metric)
    chosen = [c for run in _runs(pool) for c in at_step(run, query.step)]
    if not chosen:
        raise _no_step(query, pool)
    return tuple(chosen)


def choose_one(query: Query, accept: Accept | None = None, what: str = "complete") -> tuple[Checkpoint, str | None]:
    """The one checkpoint that is meant, and why its run was taken where that was a guess.

    `accept` says which checkpoints count when no step is named (the newest of them is taken), `what` how to call
    them. Raises CkptError for an ambiguous selector, with the candidates, and NotFound where nothing counts.
    """
    accept = accept or is_complete
    pool = query.pool
    if not pool:
        if query.file:
            raise _no_part(query.file)
        raise nothing_in(query.root)
    if query.file:
        return pool[0], None
    runs = _runs(pool)
    why = None
    if query.step not in (None, "latest", "best"):
        runs = [run for run in runs if at_step(run, query.step or "")]
        if not runs:
            raise _no_step(query, pool)
    if query.tag and len(runs) > 1:
        names = [run[0].run for run in runs]
        raise CkptError(f"{query.tag!r} is ambiguous: {', '.join(names)}", f"name the source too, as in {names[0]}")
    if len(runs) > 1:
        run, why = default_run(runs, accept)
        runs = [run]
    checkpoint = _step_of(runs[0], query.step, accept, query.settings.metric)
    if checkpoint is None:
        only = runs[0][0]
        lacking = only.problems[0].detail if len(runs[0]) == 1 and only.problems else None
        said = f"{only.ref} is {only.state}: {lacking}" if lacking else f"no checkpoint of {only.run} is {what}"
        raise NotFound(said, listing(query.root.path))
    newest_of_many = query.step in (None, "latest") and sum(map(accept, runs[0])) > 1
    if newest_of_many and checkpoint.step is None and checkpoint.name != query.step:
        why = why or "the newest by time, as none has a step"
    return checkpoint, why


def _no_part(file: str) -> CkptError:
    hint = f"`ckpt inspect tensors {quote(file)}` looks into a file by itself"
    return CkptError(f"{file} is no part of a checkpoint", hint)


def _of_each_run(pool: Sequence[Checkpoint], step: str, metric: str | None) -> tuple[Checkpoint, ...]:
    """The latest or best of each run; runs without a metric are left out where others have one."""
    picked, failure = [], None
    for run in _runs(pool):
        try:
            picked.append(_step_of(run, step, is_complete, metric))
        except NotFound as error:
            failure = error
    if failure and not any(picked):
        raise failure
    return tuple(checkpoint for checkpoint in picked if checkpoint)


def _step_of(
    run: Sequence[Checkpoint], step: str | None, accept: Accept, metric: str | None = None
) -> Checkpoint | None:
    """The checkpoint of one run at a step: a number or name, `best`, or the newest that counts."""
    having = at_step(run, step) if step else []
    # A file may be called `best.pt`.
    if step == "best" and not having:
        return best_of([c for c in run if accept(c)], metric)[0]
    if step in (None, "latest") and not having:
        return newest([c for c in run if accept(c)])
    if len(having) > 1:
        raise CkptError(f"step {step} stands twice: {', '.join(c.ref for c in having)}", "name one of them")
    return having[0] if having else None


def _no_step(query: Query, pool: Sequence[Checkpoint]) -> CkptError:
    if not is_number(query.step or "") and all(c.name != query.step for c in pool):
        return CkptError(f"{query.step!r} is no step there: a number, latest or best")
    where = "/".join(name for name in (query.source, query.tag) if name) or query.root.path
    there = [str(step) for step in sorted({c.step for c in pool if c.step is not None})[-6:]]
    hint = f"the {'only one is' if len(there) == 1 else 'last ones are'} {', '.join(there)}" if there else None
    return CkptError(f"there is no step {query.step} in {where}", hint)


def _runs(pool: Sequence[Checkpoint]) -> list[list[Checkpoint]]:
    runs: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in pool:
        runs.setdefault((checkpoint.run, checkpoint.run_dir), []).append(checkpoint)
    return list(runs.values())


def default_run(runs: Sequence[list[Checkpoint]], accept: Accept) -> tuple[list[Checkpoint], str | None]:
    """The run that is meant when none is named, and why: depth, then a tag that begins like one, then age.

    Only runs with a checkpoint that counts are looked at, source by source in the order of the pool.
    """
    whole = [run for run in runs if any(accept(c) for c in run)]
    if len(whole) < 2:
        return (whole or list(runs))[0], "the only run with one that counts" if whole else None
    for match, why in (
        (_DEPTH.fullmatch, "the largest depth"),
        (_DEPTH.match, "the largest depth by a tag's beginning"),
    ):
        for source in dict.fromkeys(run[0].source for run in whole):
            deep = [(int(m[1]), run) for run in whole if run[0].source == source and (m := match(run[0].tag))]
            if deep:
                depth, run = max(deep, key=lambda pair: pair[0])
                larger = any(r[0].source == source and (m := match(r[0].tag)) and int(m[1]) > depth for r in runs)
                return run, f"{why} with one that counts" if larger else why
    own = _without_copies(whole)
    why = "the newest run" if len(own) == len(whole) else "the newest run, copies of its steps left out"
    return max(own, key=lambda run: max(c.modified for c in run)), why


def _without_copies(runs: Sequence[list[Checkpoint]]) -> list[list[Checkpoint]]:
    """The runs, less each that is a folder among the steps of another and called as one with something behind it:
    `checkpoint-20-old` beside `checkpoint-100`. The trainers pass such a folder over too."""
    steps = {(c.home, c.name.rstrip("0123456789")) for run in runs for c in run if c.home and c.step is not None}
    return [run for run in runs if not ((match := _COPY.fullmatch(run[0].run_dir)) and match.groups() in steps)]
