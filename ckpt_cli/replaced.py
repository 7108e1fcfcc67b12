"""What patches of a checkpoint have kept for an undo: it goes, comes back and is counted with its checkpoint.

Left behind it would hold on to disk space, a whole model where the configuration lies inside one, and bring back what
belongs to nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from ckpt_cli.checkpoint import Part
from ckpt_cli.kept import JOURNAL, UNDOING, Operation, folder_of, is_in_trash, kept_of, operations
from ckpt_cli.plans import Plan, RunPlan


def with_replaced(plan: Plan) -> Plan:
    """The plan in which the old files of what goes go too, and the journal of a patch of which no old file is left."""
    return replace(plan, groups=tuple(_of_run(group) if group.remove else group for group in plan.groups))


def _of_run(group: RunPlan) -> RunPlan:
    if not os.path.isdir(folder_of(group.dir)):
        return group
    settled = [operation for operation in operations(group.dir) if not _is_at_work(operation)]
    left = {operation.id: len(kept_of(operation, None)) for operation in settled}
    remove = []
    for gone in group.remove:
        paths = {part.path for part in gone.parts}
        parts: list[Part] = []
        for operation in settled:
            mine = _parts(operation.kept(entry) for entry in kept_of(operation, paths))
            left[operation.id] -= len(mine)
            parts += mine
            if mine and not left[operation.id] and not is_in_trash(operation):
                parts += _parts([os.path.join(operation.folder, JOURNAL)])
        remove.append(replace(gone, parts=(*gone.parts, *parts)))
    return replace(group, remove=tuple(remove))


def _is_at_work(operation: Operation) -> bool:
    """Whether a patch or an undo was cut off: what it needs to be finished stays."""
    pending = [operation.coming(entry) for entry in operation.entries]
    return any(os.path.lexists(path) for path in (*pending, os.path.join(operation.folder, UNDOING)))


def _parts(paths: Iterable[str]) -> list[Part]:
    """The files among the paths: what is gone meanwhile, or is none of ours, is left alone."""
    found = []
    for path in paths:
        with suppress(OSError):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                found.append(Part("other", path, status.st_size, status.st_mtime_ns))
    return found
