"""TARGET -> checkpoints: a path, `[SOURCE/]TAG[/STEP]`, or nothing; and where the root is."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ckpt_cli.checkpoint import Checkpoint, is_complete, newest
from ckpt_cli.discover import MAX_DEPTH, Discovery, discover
from ckpt_cli.errors import CkptError, NotFound
from ckpt_cli.metrics import best_of
from ckpt_cli.root import Root, find_root, is_path
from ckpt_cli.settings import NOTHING, Settings

_NUMBER = re.compile(r"[0-9]+")
_DEPTH = re.compile(r"d([0-9]+)")
Accept = Callable[[Checkpoint], bool]


class Query(NamedTuple):
    """What a command line asks for, and what lies in the root it asks in.

    `file` is set when TARGET names one. `source`, `tag` and `step` come from the selector and the options
    together. `notes` is what the user should be told about how the target was understood.
    """

    root: Root
    found: Discovery
    file: str | None
    source: str | None
    tag: str | None
    step: str | None
    notes: tuple[str, ...] = ()
    settings: Settings = NOTHING

    @property
    def pool(self) -> tuple[Checkpoint, ...]:
        """The checkpoints of the runs that are meant: all, where none is named."""
        if self.file:
            return tuple(c for c in self.found.checkpoints if any(part.path == self.file for part in c.parts))
        pool = self.found.checkpoints
        if self.source:
            pool = tuple(c for c in pool if c.source == self.source)
            if not pool and not self.trash:
                raise CkptError(f"there is no source {self.source!a} in {self.root.path}", _similar("", self.found))
        if self.tag and (pool or not self.trash):
            return _tagged(pool, self.tag, self.found)
        return pool

    @property
    def trash(self) -> tuple[str, ...]:
        """The directories with a trash of the runs that are meant; those outside the root are not."""
        runs = (t for t in self.found.trash if not t.linked)
        return tuple(t.dir for t in runs if _fits(t, self.source, self.tag, None, wholly=False))


def resolve(
    target: str | None,
    root: str | None = None,
    source: str | None = None,
    tag: str | None = None,
    step: str | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: str = ".",
    settings: Settings = NOTHING,
) -> Query:
    """Reads TARGET and the options beside it: a path by its form, else a selector, else a path that exists.

    Raises CkptError for what does not exist, contradicts itself, fits nothing or is empty: an unset variable of a
    script must not mean everything.
    """
    for name, given in (("TARGET", target), ("--root", root), ("--source", source), ("--tag", tag), ("--step", step)):
        if given == "":
            raise CkptError(f"{name} is empty")
    if target is not None and is_path(target):
        return _at_path(target, root, source, tag, step, settings)
    place = find_root(root, environ, cwd, settings)
    found = _discover(place.path, settings) if os.path.isdir(place.path) else Discovery(place.path, (), (), ())
    if tag and not source and not any(c.tag == tag for c in found.checkpoints):
        # SOURCE/TAG, as it is printed, is understood here too.
        first, _, rest = tag.partition("/")
        if rest and any(c.source == first for c in found.checkpoints):
            source, tag = first, rest
    if target is not None:
        try:
            parsed = parse(target, found)
        except CkptError as error:
            if not os.path.lexists(target):
                # What could not be read may be what was meant.
                error.hint = found.warnings[0] if found.warnings else error.hint
                raise
            query = _at_path(target, root, source, tag, step, settings)
            return query._replace(notes=(f"{target} matches no run, so it is taken as a path",))
        for name, said, option in zip(("source", "tag", "step"), parsed, (source, tag, step)):
            if said and option and said != option and not _same_number(said, option):
                raise CkptError(f"{target!a} and --{name} {option} contradict each other")
        source, tag, step = (said or option for said, option in zip(parsed, (source, tag, step)))
    return Query(place, found, None, source, tag, step, settings=settings)


def _discover(root: str, settings: Settings, depth: int = MAX_DEPTH) -> Discovery:
    return discover(root, sources=settings.sources, grace=settings.grace, depth=depth)


def _at_path(
    target: str, root: str | None, source: str | None, tag: str | None, step: str | None, settings: Settings
) -> Query:
    path = os.path.expanduser(target)
    if os.path.isdir(path):
        if root:
            raise CkptError(f"{target} is a directory, which acts as the root: it cannot go with --root")
        place = Root(os.path.realpath(path), "TARGET")
        return Query(place, _discover(place.path, settings), None, source, tag, step, settings=settings)
    try:
        os.lstat(path)
    except FileNotFoundError:
        raise CkptError(f"there is no file {target}", _near(path)) from None
    except OSError as error:
        raise CkptError(f"{target} cannot be reached: {error.strerror}") from error
    if source or tag or step:
        raise CkptError(f"{target} names one file: no source, tag or step goes with it")
    # The file where it lies, then what a link to it leads to.
    for name in (path, os.path.realpath(path)) if os.path.islink(path) else (path,):
        folder = os.path.realpath(os.path.dirname(name) or ".")
        file = os.path.join(folder, os.path.basename(name))
        found = _discover(folder, settings, depth=0)
        query = Query(Root(folder, "TARGET"), found, file, None, None, None, settings=settings)
        if query.pool:
            return query
    return query


def choose(query: Query) -> tuple[Checkpoint, ...]:
    """The set of checkpoints that is meant: every step of a run where none is named, everything without TARGET."""
    pool = query.pool
    if query.file and not pool:
        raise CkptError(f"{query.file} is no part of a checkpoint")
    if query.step is None:
        return pool
    if query.step in ("latest", "best"):
        return _of_each_run(pool, query.step, query.settings.metric)
    chosen = tuple(c for c in pool if _has_step(c, query.step))
    if not chosen:
        raise _no_step(query, pool)
    return chosen


def choose_one(query: Query, accept: Accept | None = None, what: str = "complete") -> tuple[Checkpoint, str | None]:
    """The one checkpoint that is meant, and why its run was taken where that was a guess.

    `accept` says which checkpoints count when no step is named (the newest of them is taken), `what` how to call
    them. Raises CkptError for an ambiguous selector, with the candidates, and NotFound where nothing counts.
    """
    accept = accept or is_complete
    pool = query.pool
    if not pool:
        if query.file:
            raise CkptError(f"{query.file} is no part of a checkpoint")
        raise NotFound(f"there are no checkpoints in {query.root.path}", "`ckpt demo` writes a small tree to try")
    if query.file:
        return pool[0], None
    runs = _runs(pool)
    why = None
    if query.step not in (None, "latest", "best"):
        runs = [run for run in runs if any(_has_step(c, query.step or "") for c in run)]
        if not runs:
            raise _no_step(query, pool)
    if query.tag and len(runs) > 1:
        names = [run[0].run for run in runs]
        raise CkptError(f"{query.tag!a} is ambiguous: {', '.join(names)}", f"name the source too, as in {names[0]}")
    if len(runs) > 1:
        run, why = _default_run(runs, accept)
        runs = [run]
    checkpoint = _step_of(runs[0], query.step, accept, query.settings.metric)
    if checkpoint is None:
        raise NotFound(f"no checkpoint of {runs[0][0].run} is {what}", "`ckpt list` shows what is there")
    return checkpoint, why


def parse(selector: str, found: Discovery) -> tuple[str | None, str | None, str | None]:
    """`[SOURCE/]TAG[/STEP]` as the checkpoints there make sense of it: (source, tag, step).

    Read from the right: a step, then the tag, then a leading source. Of the readings that fit, one whose tag
    matches wholly comes before one whose tag matches as a suffix. Raises CkptError when none fits.
    """
    pieces = [piece for piece in selector.split("/") if piece]
    there = [*found.checkpoints, *found.trash]
    names = {c.name for c in found.checkpoints} | {"latest", "best"}
    sources = {c.source for c in there}
    readings: list[tuple[str | None, str | None, str | None]] = []
    if pieces and (_NUMBER.fullmatch(pieces[-1]) or pieces[-1] in names):
        readings += _with_source(pieces[:-1], pieces[-1], sources)
    readings += _with_source(pieces, None, sources)
    for wholly in (True, False):
        for source, tag, step in readings:
            if any(_fits(c, source, tag, step, wholly) for c in there):
                return source, tag, step
    # A run that is there without that step is a better answer than no match at all.
    for source, tag, step in readings:
        if tag and any(_fits(c, source, tag, None, False) for c in there):
            return source, tag, step
    raise CkptError(f"nothing matches {selector!a} in {found.root}", _similar(selector, found))


def _with_source(
    pieces: Sequence[str], step: str | None, sources: set[str | None]
) -> list[tuple[str | None, str | None, str | None]]:
    readings: list[tuple[str | None, str | None, str | None]] = [(None, "/".join(pieces) or None, step)]
    if pieces and pieces[0] in sources:
        readings.append((pieces[0], "/".join(pieces[1:]) or None, step))
    return readings


def _fits(checkpoint: Checkpoint, source: str | None, tag: str | None, step: str | None, wholly: bool) -> bool:
    if source and checkpoint.source != source:
        return False
    if tag and checkpoint.tag != tag and (wholly or not checkpoint.tag.endswith("/" + tag)):
        return False
    return step in (None, "latest", "best") or _has_step(checkpoint, step or "")


def _has_step(checkpoint: Checkpoint, step: str) -> bool:
    if checkpoint.name == step:
        return True
    return bool(_NUMBER.fullmatch(step)) and len(step) < 300 and checkpoint.step == int(step)


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


def _same_number(one: str, other: str) -> bool:
    return bool(_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)) and one.lstrip("0") == other.lstrip("0")


def _step_of(
    run: Sequence[Checkpoint], step: str | None, accept: Accept, metric: str | None = None
) -> Checkpoint | None:
    """The checkpoint of one run at a step: a number or name, `best`, or the newest that counts."""
    if step == "best":
        return best_of([c for c in run if accept(c)], metric)[0]
    if step in (None, "latest"):
        return newest([c for c in run if accept(c)])
    having = [c for c in run if _has_step(c, step or "")]
    if len(having) > 1:
        raise CkptError(f"step {step} stands twice: {', '.join(c.ref for c in having)}", "name one of them")
    return having[0] if having else None


def _no_step(query: Query, pool: Sequence[Checkpoint]) -> CkptError:
    if not _NUMBER.fullmatch(query.step or "") and all(c.name != query.step for c in pool):
        return CkptError(f"{query.step!a} is no step there: a number, latest or best")
    where = "/".join(name for name in (query.source, query.tag) if name) or query.root.path
    there = [str(c.step) for c in pool if c.step is not None][-6:]
    return CkptError(
        f"there is no step {query.step} in {where}", f"the last ones are {', '.join(there)}" if there else None
    )


def _tagged(pool: Sequence[Checkpoint], tag: str, found: Discovery) -> tuple[Checkpoint, ...]:
    """The runs with this tag, or with the one tag that ends in it."""
    exact = tuple(c for c in pool if c.tag == tag)
    ending = tuple(c for c in pool if c.tag.endswith("/" + tag))
    if not exact and not ending:
        raise CkptError(f"there is no run {tag!a} in {found.root}", _similar(tag, found))
    if not exact and len({c.tag for c in ending}) > 1:
        names = ", ".join(dict.fromkeys(c.run for c in ending))
        raise CkptError(f"{tag!a} is ambiguous: {names}", "name more of the path")
    return exact or ending


def _runs(pool: Sequence[Checkpoint]) -> list[list[Checkpoint]]:
    runs: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in pool:
        runs.setdefault((checkpoint.run, checkpoint.run_dir), []).append(checkpoint)
    return list(runs.values())


def _default_run(runs: Sequence[list[Checkpoint]], accept: Accept) -> tuple[list[Checkpoint], str | None]:
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
    return max(whole, key=lambda run: max(c.modified for c in run)), "the newest run"


def _near(path: str) -> str | None:
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return None
    close = _close(name, names, 1)
    return f"did you mean {os.path.join(folder, close[0])}" if close else None


def _similar(text: str, found: Discovery) -> str:
    names = list(dict.fromkeys(name for c in found.checkpoints for name in (c.run, c.tag)))
    close = _close(text, names, 3)
    return f"did you mean {' or '.join(close)}" if close else "`ckpt list` shows what is there"


def _close(word: str, words: Sequence[str], count: int) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(word, words, count, 0.5)
