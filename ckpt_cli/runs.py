"""Many checkpoints converted one after another: what is there already is left, what fails does not stop the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ckpt_cli.checkpoint import Checkpoint, checkpoint_record
from ckpt_cli.convert import prepare
from ckpt_cli.errors import CkptError
from ckpt_cli.places import refuse_outputs
from ckpt_cli.recipe import Recipe, Request, result_record
from ckpt_cli.writing import Advance, Late, Output, looks_there, prove, write

Status = Literal["planned", "written", "there", "skipped", "failed"]


class Job(NamedTuple):
    """One checkpoint and what becomes of it.

    The status `there` means that its outputs lie where they would be written: in a plan of the size and with every
    header that they would have, which name what it was made of; once carried out, byte for byte. `skipped` is what is
    still being written. `recipe` is None for that, and for what could not be planned; `failure` is why it failed.
    """

    checkpoint: Checkpoint
    recipe: Recipe | None
    status: Status
    failure: CkptError | None = None


def plan_all(checkpoints: Sequence[Checkpoint], request: Request, output: str | None, force: bool) -> list[Job]:
    """A job for each checkpoint: beside each model, or below `output`, under its ref. Nothing is written yet; one that
    cannot be planned is a job that has failed.

    Raises CkptError for an `output` that is a file, or is needed and not said, and where two checkpoints have one.
    """
    below = None if output is None else os.path.abspath(os.path.expanduser(output))
    if below and os.path.lexists(below) and not os.path.isdir(below):
        raise CkptError(f"{below} is a file: --all writes below a directory")
    if below is None and (request.to != "safetensors" or request.shard_bytes is not None):
        raise CkptError("--all writes these outputs below a directory", "-o DIR/ says where")
    jobs = [_job(checkpoint, request, below, force) for checkpoint in _not_ours(checkpoints, below)]
    outputs = {output.path: job for job in jobs if job.recipe for output in job.recipe.outputs}
    jobs = [job for job in jobs if not _is_an_output(job, outputs)]
    _refuse_collisions(jobs)
    return jobs


def _not_ours(checkpoints: Sequence[Checkpoint], below: str | None) -> Sequence[Checkpoint]:
    """Without those that lie where the outputs go, among which are the outputs of an earlier run; all of them, where
    all lie there."""
    if below is None:
        return checkpoints
    top = os.path.realpath(below) + os.sep
    return [c for c in checkpoints if not (os.path.realpath(c.dir) + os.sep).startswith(top)] or checkpoints


def _is_an_output(job: Job, outputs: Mapping[str, Job]) -> bool:
    """Whether its checkpoint is what another one is converted to."""
    models = [part.path for part in job.checkpoint.having("model")]
    return bool(models) and all(outputs.get(path, job) is not job for path in models)


def _job(checkpoint: Checkpoint, request: Request, below: str | None, force: bool) -> Job:
    if checkpoint.state == "in-progress":
        return Job(checkpoint, None, "skipped")
    try:
        recipe = prepare(None, checkpoint, request, None, below)
        outputs = [output.path for output in recipe.outputs]
        sources = [part.path for part in checkpoint.parts if part.role != "export"]
        # What is safetensors already, and would be written beside itself.
        if request.dtype is None and set(outputs) <= set(sources):
            return Job(checkpoint, recipe._replace(outputs=tuple(map(_as_it_lies, recipe.outputs))), "there")
        there = not force and all(map(looks_there, recipe.outputs))
        if not there:
            refuse_outputs(outputs, sources, force)
        return Job(checkpoint, recipe, "there" if there else "planned")
    except CkptError as error:
        return Job(checkpoint, None, "failed", error)


def _as_it_lies(output: Output) -> Output:
    """An output that is not going to be written, of the size that the file has."""
    return output._replace(segments=(Late(os.path.getsize(output.path), lambda digests: b""),))


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    """Raises CkptError where two checkpoints have one output: of two models that differ in their suffix alone."""
    owners: dict[str, Checkpoint] = {}
    for job in jobs:
        for output in job.recipe.outputs if job.recipe else ():
            other = owners.setdefault(output.path, job.checkpoint)
            if other is not job.checkpoint:
                what = f"{job.checkpoint.ref} and {other.ref} would both be written to {output.path}"
                raise CkptError(what, "-o DIR/ writes each under its own name")


def work_of(jobs: Sequence[Job]) -> int:
    """Bytes that `carry_out` tells of: what is there already is read once, what is not is written and read."""
    shares = {"planned": 2, "there": 1}
    return sum(job.recipe.work * shares.get(job.status, 0) // 2 for job in jobs if job.recipe)


def carry_out(
    jobs: Sequence[Job], force: bool, keep_going: bool, advance: Advance, told: Callable[[Job], None]
) -> list[Job]:
    """Writes what is planned, and proves what is there; `told` gets each job as it ends. Without `keep_going` nothing
    is written after the first failure, and what was still planned stays so."""
    done: list[Job] = []
    stopped = False
    for job in jobs:
        if job.recipe and job.status in ("planned", "there") and not stopped:
            try:
                if job.status == "there":
                    prove([output for output in job.recipe.outputs if output.items], advance)
                else:
                    write(job.recipe.outputs, force, advance)
                    job = job._replace(status="written")
            except CkptError as error:
                job = job._replace(status="failed", failure=error)
        done.append(job)
        told(job)
        stopped = stopped or (job.failure is not None and not keep_going)
    return done


def exit_code(jobs: Sequence[Job], wanted: int) -> int:
    """0 where nothing failed, 3 where a part of the `wanted` did, else the code of the first failure."""
    failed = [job.failure for job in jobs if job.failure]
    if not failed:
        return 0
    return failed[0].code if len(failed) == wanted else 3


def all_record(jobs: Sequence[Job], dry_run: bool) -> dict[str, Any]:
    """The jobs as JSON shows them: the sums, and each under `results`."""
    whole = [job.recipe for job in jobs if job.recipe and job.status != "failed"]
    records = [result_record(recipe) for recipe in whole]
    sums: dict[str, Any] = {
        key: [part for record in records for part in record[key]]
        for key in ("outputs", "renamed", "cast", "dropped", "tied")
    }
    return {
        "source": None,
        "outputs": sums["outputs"],
        "tensors": sum(record["tensors"] for record in records),
        "bytes": sum(record["bytes"] for record in records),
        "renamed": sums["renamed"],
        "cast": [dict(pairs) for pairs in dict.fromkeys(tuple(cast.items()) for cast in sums["cast"])],
        "dropped": sums["dropped"],
        "tied": sums["tied"],
        "verified": not dry_run and all(job.status in ("written", "there", "skipped") for job in jobs),
        "dry_run": dry_run,
        "results": [
            {
                "source": checkpoint_record(job.checkpoint),
                "status": job.status,
                **(result_record(job.recipe) if job.recipe else {"outputs": []}),
                "problem": job.failure and job.failure.problem,
            }
            for job in jobs
        ],
        "problems": [job.failure.problem for job in jobs if job.failure],
    }
