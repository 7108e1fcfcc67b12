"""A checkpoint's model and optimizer: is every byte as it was written? Problems name the tensors they are about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from ckpt_cli import fitting, manifest
from ckpt_cli.checkpoint import Checkpoint, Problem
from ckpt_cli.integrity import Job, check_file, kind_of, slices_of
from ckpt_cli.slices import Slice
from ckpt_cli.tensor_file import TensorFile

# Threads that share the records of one file.
_LANES = 2
# Tensors of a record that a problem names.
_MOST_NAMED = 4


class Soundness(NamedTuple):
    """What was found in how many `files`; `bare` are the names of those that have no checksum."""

    problems: tuple[Problem, ...]
    bare: tuple[str, ...]
    files: int


def check(checkpoint: Checkpoint | None, files: Sequence[TensorFile]) -> Soundness:
    """Every checksum of the model's `files`, of what they are an index of, and of the optimizer's files."""
    own = {file.path: file for file in files}
    slices = {path: found for path, found in _elsewhere(files).items() if path not in own}
    roles = {part.path: part.role for part in checkpoint.parts} if checkpoint else {}
    digests: dict[str, str] = {}
    for part in checkpoint.having("manifest") if checkpoint else ():
        digests |= manifest.read(part.path)
    wanted = dict.fromkeys([*own, *slices, *fitting.paths_of(checkpoint)])
    problems: list[Problem] = []
    bare = []
    for path in wanted:
        kind = "tensors" if path in own or path in slices else kind_of(path, roles.get(path))
        done = check_file(Job(path, kind, path in digests, _LANES, tuple(slices.get(path, ()))))
        problems += [problem for problem in done.problems if problem.code != "oddity"]
        if path in digests and done.sha256 != digests[path]:
            problems.append(Problem("manifest-mismatch", f"{path} is not as its manifest has it", path))
        elif not done.covered and path not in digests:
            bare.append(os.path.basename(path))
    return Soundness(tuple(_with_tensors(problem, files) for problem in problems), tuple(bare), len(wanted))


def _elsewhere(files: Sequence[TensorFile]) -> dict[str, list[Slice]]:
    """The archives that an index among the files places in others."""
    found: dict[str, list[Slice]] = {}
    for file in files:
        if any(storage.file != file.path for storage in file.storages):
            found |= slices_of(file.path)[0]
    return found


def _with_tensors(problem: Problem, files: Sequence[TensorFile]) -> Problem:
    """The problem, its sentence with the tensors whose bytes lie in the record that it is about."""
    record = problem.record or ""
    names = [
        tensor.name
        for file in files
        for tensor in file.tensors
        if (s := tensor.storage) and s.file == problem.path and (record == s.name or record.endswith(f"/data/{s.name}"))
    ]
    shown = ", ".join(f"{name!a}" for name in names[:_MOST_NAMED])
    return problem._replace(detail=f"{problem.detail} (tensor {shown})") if names else problem
