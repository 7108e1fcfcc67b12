"""Carries out patches of several runs, and the way back: all files are written before the first takes its place."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from ckpt_cli import undo
from ckpt_cli.atomic import locked
from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.errors import CkptError, NotFound
from ckpt_cli.following import replacements
from ckpt_cli.interrupts import interruptible, uninterruptible
from ckpt_cli.kept import Operation, kept_of, operations
from ckpt_cli.patch_plan import Planned
from ckpt_cli.undo import New
from ckpt_cli.writing import Advance

Stayed = list[tuple[str, str]]


@contextmanager
def holding(runs: Iterable[str]) -> Iterator[list[str]]:
    """Locks the runs' directories; yields those on file systems without locks."""
    with ExitStack() as locks:
        yield [run for run in sorted(set(runs)) if not locks.enter_context(locked(run))]


def recover(runs: Iterable[str]) -> tuple[list[str], set[str]]:
    """Settles what a kill left half done in any of the runs. Takes the locks itself.

    Returns what is to be said of it, and the ids of undos that were finished.
    """
    said: list[str] = []
    undone: set[str] = set()
    for run in sorted(set(runs)):
        if undo.unsettled(run):
            with locked(run):
                more, finished = undo.recover(run)
            said += more
            undone |= finished
    return said, undone


def carry_out(plans: Sequence[Planned], id: str, force: bool, advance: Advance) -> Stayed:
    """Writes what the plans say; returns (path, why) of what could not take its place. The caller holds the locks.

    An interrupt before the last file is written, or any failure, leaves everything as it was.
    """
    staged: list[Operation] = []
    with interruptible():
        try:
            for run, news in _by_run(plans, force).items():
                staged.append(undo.stage(run, id, news, advance))
        except BaseException:
            with uninterruptible():
                for operation in staged:
                    undo.roll_back(operation)
            raise
        with uninterruptible():
            return [left for operation in staged for left in undo.commit(operation)]


def _by_run(plans: Sequence[Planned], force: bool) -> dict[str, list[New]]:
    """The new files of each run; one that several checkpoints share is written once."""
    found: dict[str, dict[str, New]] = {}
    for planned in plans:
        for new in replacements(planned, force):
            found.setdefault(planned.run, {}).setdefault(new.path, new)
    return {run: list(news.values()) for run, news in found.items()}


def files_of(checkpoints: Sequence[Checkpoint], whole_runs: bool) -> dict[str, set[str] | None]:
    """The files of checkpoints by the directory of their run, None for all of it."""
    files: dict[str, set[str]] = {}
    for checkpoint in checkpoints:
        paths = files.setdefault(os.path.realpath(checkpoint.run_dir), set())
        paths |= {os.path.realpath(part.path) for part in checkpoint.parts}
    return {run: None if whole_runs else paths for run, paths in files.items()}


def latest(files: Mapping[str, set[str] | None], undone: Collection[str]) -> list[tuple[Operation, set[str] | None]]:
    """The latest patch that touched any of the files, in each run it touched, and the files that are meant.

    Where an undo was cut off, and has been finished since, the rest of that one, and no other besides. Raises NotFound
    where there is none to undo.
    """
    touching = [
        (operation, paths) for run, paths in files.items() for operation in operations(run) if kept_of(operation, paths)
    ]
    last = max(undone or (operation.id for operation, _ in touching), default=None)
    if last is None:
        raise NotFound("there is no patch to undo", "only what `ckpt patch-config` has changed can come back")
    return [(operation, paths) for operation, paths in touching if operation.id == last]


def bring_back(wanted: Sequence[tuple[Operation, set[str] | None]], force: bool) -> tuple[list[str], Stayed]:
    """Undoes; the caller holds the locks. Returns what came back, and (path, why) of what stayed."""
    done: list[str] = []
    stayed: Stayed = []
    for operation, paths in wanted:
        try:
            came, left = undo.bring_back(operation, paths, force)
        except (CkptError, OSError) as error:
            left, came = [(operation.run, getattr(error, "strerror", None) or str(error))], []
        done += came
        stayed += left
    return done, stayed
