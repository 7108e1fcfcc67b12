"""Whether files are as they were listed: what is still growing, and what changed while somebody thought about a plan.

Growth is judged by looking twice, not by the clock, which may be off: every file that goes is looked at again right
before. What was touched a moment ago is given a quarter of a second to grow before a plan is made.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Part, Problem, Role
from ckpt_cli.errors import Refused
from ckpt_cli.journal import File, Line, Removal
from ckpt_cli.layouts import layout_named
from ckpt_cli.manifest import lines_on
from ckpt_cli.plans import Gone
from ckpt_cli.whereabouts import own_folders

_RECENT = 5 * 10**9
_PAUSE = 0.25


def settled(checkpoints: Sequence[Checkpoint], listed: int, grace: int) -> tuple[Checkpoint, ...]:
    """The checkpoints, those that a file of has changed since they were listed as in progress.

    `listed` is when that was, and `grace` how long ago a file may have been touched to be looked at again, both in
    nanoseconds. Waits where one was touched within seconds, or in the future.
    """
    fresh = {at for at, c in enumerate(checkpoints) if not c.linked and listed - c.modified < grace}
    if any(listed - checkpoints[at].modified < _RECENT for at in fresh):
        time.sleep(max(0.0, min(_PAUSE, _PAUSE - (time.time_ns() - listed) / 1e9)))
    return tuple(_looked_at(c) if at in fresh else c for at, c in enumerate(checkpoints))


def _looked_at(checkpoint: Checkpoint) -> Checkpoint:
    for part in checkpoint.parts:
        problem = None
        try:
            status = os.stat(part.path)
        except OSError:
            problem = f"{os.path.basename(part.path)} was there a moment ago"
        else:
            if (status.st_size, status.st_mtime_ns) != (part.bytes, part.modified):
                problem = f"{os.path.basename(part.path)} is still being written"
        if problem:
            problems = (Problem("growing", problem, part.path), *checkpoint.problems)
            return checkpoint._replace(state="in-progress", resumable=False, problems=problems)
    return checkpoint


def plan_removals(going: Iterable[Gone], warn: Callable[[str], None]) -> list[Removal]:
    """In the order in which they go: what has no number last, as the steps need it, and fairseq goes on from it.

    Raises as `_plan_removal` does, and warns of a manifest that cannot be read.
    """
    ordered = sorted(going, key=lambda gone: gone.checkpoint.step is None)
    return [_plan_removal(gone, layout_named(gone.checkpoint.layout).REMOVAL_ORDER, warn) for gone in ordered]


def _plan_removal(gone: Gone, order: Sequence[Role], warn: Callable[[str], None]) -> Removal:
    """The files of a checkpoint that go, in the layout's order; where its model stays, that too as what they belong to.

    Raises Refused when one is not as it was listed, or lies outside the run's directory.
    """
    checkpoint = gone.checkpoint
    place = {role: at for at, role in enumerate(order)}
    going = sorted(gone.parts, key=lambda part: place.get(part.role, len(place)))
    paths = {part.path for part in going}
    model = [part for part in checkpoint.having("model", "adapter") if part.path not in paths]
    files = _files(checkpoint, going, gone.held)
    folders = own_folders(checkpoint.run_dir, files)
    lines = tuple(Line(*line) for line in lines_on(checkpoint, going, warn))
    return Removal(checkpoint.ref, files, _files(checkpoint, model), folders, checkpoint.state != "complete", lines)


def unchanged(checkpoints: Iterable[Checkpoint]) -> None:
    """Raises Refused when a file that a plan counts on is not as it was listed."""
    for checkpoint in checkpoints:
        for part in checkpoint.parts:
            _status(part)


def _files(checkpoint: Checkpoint, parts: Iterable[Part], held: Collection[str] = ()) -> tuple[File, ...]:
    start = checkpoint.run_dir.rstrip(os.sep) + os.sep
    files = []
    for part in parts:
        if not part.path.startswith(start):
            raise Refused(f"{part.path} lies outside the run's directory {checkpoint.run_dir}")
        own = _status(part)
        # Of a link only the link goes, and of several names the last takes the bytes along.
        freed = 0 if part.linked or part.path in held else part.bytes
        files.append(File(part.path[len(start) :], freed, own.st_mtime_ns, own.st_ino))
    return tuple(files)


def _status(part: Part) -> os.stat_result:
    """What the name itself is, a link or a file; raises Refused when it is not as it was listed."""
    _, path, size, modified, _, linked, _ = part
    try:
        own = os.lstat(path)
        status = os.stat(path) if linked else own
    except OSError as error:
        raise Refused(f"{path} is gone since it was listed", "run prune again") from error
    if status.st_size != size or status.st_mtime_ns != modified or stat.S_ISLNK(own.st_mode) != linked:
        raise Refused(f"{path} has changed since it was listed", "run prune again")
    return own
