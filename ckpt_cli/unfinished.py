"""Checkpoints under names that only last until all is in them: such a one was cut off, or is still being written."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ckpt_cli.checkpoint import Checkpoint, Problem
from ckpt_cli.layouts import LAST_RESORT, Folder, finished_name, is_unfinished, layouts


def settled(checkpoint: Checkpoint, folder: Folder) -> Checkpoint:
    """As it is, unless its folder has not yet been given the name that a trainer gives it in the end."""
    if not folder.unfinished:
        return checkpoint
    name = os.path.basename(folder.path)
    if checkpoint.home:
        checkpoint = checkpoint._replace(name=name, by_name=True)
    if checkpoint.problems:
        return checkpoint
    return _unfinished(checkpoint, folder, f"{name} is the name of a folder that is still being written", folder.path)


def _unfinished(checkpoint: Checkpoint, folder: Folder, what: str, path: str) -> Checkpoint:
    problems = (Problem("unfinished", what, path), *checkpoint.problems)
    state = folder.state(checkpoint.parts, problems)
    return checkpoint._replace(state=state, problems=problems, resumable=checkpoint.resumable and False)


def left_over(folders: Iterable[Folder], taken: set[tuple[str, int | None]]) -> list[Checkpoint]:
    """The steps of which nothing is there but a file that was still being written: `checkpoint_000010.bin.tmp`.

    Only names that a trainer has for its checkpoints say that it was one. `taken` are the steps that are known.
    """
    left = []
    for folder in folders:
        names = {finished_name(name): name for name in folder.files if name[0] != "." and is_unfinished(name)}
        if not names:
            continue
        done = folder._replace(files={**{name: folder.files[own] for name, own in names.items()}, **folder.files})
        for c in (c for layout in layouts() if layout.PRECEDENCE < LAST_RESORT for c in layout.scan(done)):
            paths = [part.path for part in c.parts if is_unfinished(part.path)]
            if paths and (c.dir, c.step) not in taken:
                taken.add((c.dir, c.step))
                name = os.path.basename(paths[0])
                what = f"{name} is the name of a file that is still being written"
                left.append(_unfinished(c._replace(name=name, by_name=True), folder, what, paths[0]))
    return left
