"""TARGET and the options beside it -> what is asked for: a path, `[SOURCE/]TAG[/STEP]`, or nothing.

It does not know which checkpoints of a run are then meant.
"""

import os
import re
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import NamedTuple

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.discover import MAX_DEPTH, Discovery, discover
from ckpt_cli.errors import CkptError, NotFound
from ckpt_cli.root import Root, find_root, is_path, is_place
from ckpt_cli.settings import NOTHING, Settings

_NUMBER = re.compile(r"[0-9]+")


class Query(NamedTuple):
    """What a command line asks for, and what lies in the root it asks in.

    `file` is set when TARGET names one. `source`, `tag` and `step` come from the selector and the options
    together; a source that is empty is that of runs without one. `notes` is what the user should be told about how the
    target was understood.
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
        if self.source is not None:
            pool = tuple(c for c in pool if (c.source or "") == self.source)
            if not pool and not self.trash:
                raise CkptError(f"there is no source {self.source!r} in {self.root.path}", _similar("", self.found))
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
    # A reference may end as a file does, where files of one stem are told apart; a file that is there comes first.
    by_suffix = target is not None and is_path(target) and not is_place(target) and not os.path.lexists(target)
    if target is not None and is_path(target) and not by_suffix:
        return _at_path(target, root, source, tag, step, settings)
    place = find_root(root, environ, cwd, settings)
    found = _discover(place.path, settings) if os.path.isdir(place.path) else Discovery(place.path, (), (), ())
    if tag and not source and not any(c.tag == tag for c in found.checkpoints):
        # SOURCE/TAG, as it is printed, is understood here too.
        first, _, rest = tag.partition("/")
        if rest and any(c.source == first for c in found.checkpoints):
            source, tag = first, rest
    if by_suffix and all(c.ref != target for c in found.checkpoints):
        return _at_path(target or "", root, source, tag, step, settings)
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
                raise CkptError(f"{target!r} and --{name} {option} contradict each other")
        source, tag, step = (said or option or said for said, option in zip(parsed, (source, tag, step)))
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
        if not os.path.lexists(name):
            raise CkptError(f"{target} is a link to {name}, which is not there")
        folder = os.path.realpath(os.path.dirname(name) or ".")
        file = os.path.join(folder, os.path.basename(name))
        found = _discover(folder, settings, depth=0)
        query = Query(Root(folder, "TARGET"), found, file, None, None, None, settings=settings)
        if query.pool:
            return query
    return query


def parse(selector: str, found: Discovery) -> tuple[str | None, str | None, str | None]:
    """`[SOURCE/]TAG[/STEP]` as the checkpoints there make sense of it: (source, tag, step).

    A reference means its checkpoint. Anything else is read from the right: a step, then the tag, then a leading source.
    Of the readings that fit, one whose tag matches wholly comes before one whose tag matches as a suffix. Raises
    CkptError when none fits.
    """
    for c in found.checkpoints:
        if c.ref == selector:
            return c.source or "", c.tag, c.name if c.by_name else None if c.step is None else str(c.step)
    pieces = [piece for piece in selector.split("/") if piece]
    there = [*found.checkpoints, *found.trash]
    names = {c.name for c in found.checkpoints} | {"latest", "best"}
    sources = {c.source for c in there}
    readings: list[tuple[str | None, str | None, str | None]] = []
    if pieces and (is_number(pieces[-1]) or pieces[-1] in names):
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
    raise CkptError(f"nothing matches {selector!r} in {found.root}", _similar(selector, found))


def _with_source(
    pieces: Sequence[str], step: str | None, sources: set[str | None]
) -> list[tuple[str | None, str | None, str | None]]:
    readings: list[tuple[str | None, str | None, str | None]] = [(None, "/".join(pieces) or None, step)]
    if pieces and pieces[0] in sources:
        readings.append((pieces[0], "/".join(pieces[1:]) or None, step))
    return readings


def _fits(checkpoint: Checkpoint, source: str | None, tag: str | None, step: str | None, wholly: bool) -> bool:
    if source is not None and (checkpoint.source or "") != source:
        return False
    if tag and checkpoint.tag != tag and (wholly or not checkpoint.tag.endswith("/" + tag)):
        return False
    return step in (None, "latest", "best") or _has_step(checkpoint, step or "")


def at_step(run: Sequence[Checkpoint], step: str) -> list[Checkpoint]:
    """Those with the trainer's own name, else those with the number; two runs may have one each."""
    return [c for c in run if c.name == step] or [c for c in run if _has_step(c, step)]


def _has_step(checkpoint: Checkpoint, step: str) -> bool:
    if checkpoint.name == step:
        return True
    return is_number(step) and len(step) < 300 and checkpoint.step == int(step)


def is_number(step: str) -> bool:
    return bool(_NUMBER.fullmatch(step))


def _same_number(one: str, other: str) -> bool:
    return is_number(one) and is_number(other) and one.lstrip("0") == other.lstrip("0")


def _tagged(pool: Sequence[Checkpoint], tag: str, found: Discovery) -> tuple[Checkpoint, ...]:
    """The runs with this tag, or with the one tag that ends in it."""
    exact = tuple(c for c in pool if c.tag == tag)
    ending = tuple(c for c in pool if c.tag.endswith("/" + tag))
    if not exact and not ending:
        raise CkptError(f"there is no run {tag!r} in {found.root}", _similar(tag, found))
    if not exact and len({c.tag for c in ending}) > 1:
        names = ", ".join(dict.fromkeys(c.run for c in ending))
        raise CkptError(f"{tag!r} is ambiguous: {names}", "name more of the path")
    return exact or ending


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
    return f"did you mean {' or '.join(close)}" if close else listing(found.root)


def nothing_in(root: Root) -> NotFound:
    """The error for a root without a checkpoint: it names what chose a root that nobody typed."""
    if not os.path.isdir(root.path):
        what = f"there is no directory {root.path} ({root.origin})"
    elif root.origin in ("TARGET", "--root"):
        what = f"there are no checkpoints in {root.path}"
    else:
        what = f"there are no checkpoints in {root.path} ({root.origin})"
    return NotFound(what, "--root DIR looks elsewhere, `ckpt demo` writes some to try")


def listing(root: str) -> str:
    """The hint that names the command which lists a root."""
    return f"`ckpt list --root {quote(root)}` shows what is there"


def _close(word: str, words: Sequence[str], count: int) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(word, words, count, 0.5)
