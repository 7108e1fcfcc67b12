"""Whether checkpoints are what they should be: every byte as written, nothing missing, the files fitting each other.

Each problem has a stable code:

    truncated, empty-file             the file breaks off
    crc-mismatch, cannot-unpack       the bytes of a record are not those that were written
    missing-record, short-record      a record is gone, or not as long as its tensors need
    bad-header                        what stands around a record contradicts the directory of its archive
    bad-structure                     it breaks the rules of its format
    too-costly                        it is larger than what is read whole, or holds more than a file gets unasked
    not-a-checkpoint, runs-code       it is something else; it would run code when unpickled
    unreadable-part                   a file cannot be read
    bad-meta, bad-index               one of metadata is not JSON, or not of an object; an index is garbled
    missing-part                      a file of the checkpoint is not there
    meta-mismatch, index-mismatch     metadata or an index file tells of other tensors than there are
    bad-manifest, manifest-mismatch   the manifest is garbled; a file has another sha256 than it lists
    manifest-missing-file             a file that the manifest lists is not there

and five that are told and no damage: skipped-data (bytes that torch was told not to write), oddity (what the reader
noticed: bytes that belong to nothing, and the like), unlisted-tensor (a shard holds what its index does not list),
index-size (a wrong total in one), unpaired-recipe (which checkpoint a recipe state belongs to is not known).
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from ckpt_cli import manifest
from ckpt_cli.agreement import disagreements, index_faults
from ckpt_cli.checkpoint import Checkpoint, Problem
from ckpt_cli.contents import indexes_of
from ckpt_cli.errors import CkptError, Interrupted, Refused
from ckpt_cli.integrity import Checked, Job, check_file, kind_of, problem_of, size_of, slices_of
from ckpt_cli.slices import Slice
from ckpt_cli.tensors import check_end

Status = Literal["ok", "damaged", "unverifiable", "skipped"]
REMARKS = frozenset({"skipped-data", "oddity", "unlisted-tensor", "index-size", "unpaired-recipe"})
# What trainers save by torch or as safetensors, beside a model too.
_BESIDE = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".safetensors")
_MANIFEST = frozenset({"manifest-mismatch", "manifest-missing-file", "bad-manifest"})


class Result(NamedTuple):
    """What became of one file; `ref` is None for one that is no part of a checkpoint."""

    ref: str | None
    path: str
    status: Status
    problems: tuple[Problem, ...] = ()


class Unit(NamedTuple):
    """A checkpoint, or a file that is part of none: the jobs to do, and what its manifest lists."""

    checkpoint: Checkpoint | None
    jobs: tuple[Job, ...]
    manifest: str | None
    listed: dict[str, str]
    problems: tuple[Problem, ...] = ()

    @property
    def ref(self) -> str | None:
        return self.checkpoint.ref if self.checkpoint else None


class Verified(NamedTuple):
    """A unit's results, file by file, and the sha256 of those files that have been hashed."""

    unit: Unit
    results: tuple[Result, ...]
    digests: dict[str, str]

    @property
    def damaged(self) -> bool:
        """Whether anything of it is."""
        return any(result.status == "damaged" for result in self.results)


def opens(checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """The parts whose end is missing: every zip's directory, every safetensors file's length.

    A full disk leaves the newest file so: there by name, and cut off. Of what lies beside a model and its optimizer (a
    scheduler, the states of random numbers) only that counts: it may be of any format.
    """
    problems = []
    # An index that knows the data files tells of each whether it is long enough.
    parts = indexes_of(checkpoint) or checkpoint.having("model")
    beside = [part for part in checkpoint.having("other") if part.path.endswith(_BESIDE)]
    for part in [*parts, *checkpoint.having("optimizer", "adapter", "recipe"), *beside]:
        if part.path.endswith(".distcp"):
            continue  # several archives in a row: only the index knows the end of each
        try:
            check_end(part.path)
        except CkptError as error:
            if error.code == 1 or part.role != "other":
                problems.append(Problem("truncated" if error.code == 1 else error.kind, error.message, part.path))
    return tuple(problems)


def units_of(checkpoints: Iterable[Checkpoint], record: bool = False, anew: bool = False) -> list[Unit]:
    """What there is to do for each checkpoint.

    `record` asks for the sha256 of every file, `anew` for no look at the manifest that there is.
    """
    return [_unit(checkpoint, record, anew) for checkpoint in checkpoints]


def unit_of_file(path: str, record: bool = False, anew: bool = False) -> Unit:
    """The same for a file that is part of no checkpoint; an index brings the files it names."""
    place = path + manifest.SUFFIX
    return _planned(None, [(path, None)], place, record, anew)


def _unit(checkpoint: Checkpoint, record: bool, anew: bool) -> Unit:
    place = manifest.place_of(checkpoint)
    if checkpoint.state == "in-progress":
        return Unit(checkpoint, (), place, {})
    parts = [part for part in checkpoint.parts if part.role != "manifest" and not part.path.endswith(".keep")]
    return _planned(checkpoint, [(part.path, part.role) for part in parts], place, record, anew)


def _planned(
    checkpoint: Checkpoint | None, parts: list[tuple[str, str | None]], place: str | None, record: bool, anew: bool
) -> Unit:
    listed: dict[str, str] = {}
    problems: tuple[Problem, ...] = ()
    if place and not anew and os.path.lexists(place):
        try:
            listed = manifest.read(place)
        except CkptError as error:
            problems = (problem_of(error, place),)
    slices: dict[str, list[Slice]] = {}
    known: dict[str, tuple[Problem, ...] | None] = {}
    for path, role in parts:
        if role in ("index", None) and os.path.basename(path).endswith((".metadata", ".metadata.tmp")):
            placed, known[path] = slices_of(path)
            for file, within in placed.items():
                slices.setdefault(file, []).extend(within)
    jobs = []
    for path, role in parts:
        inner = tuple(dict.fromkeys(slices.pop(path, ())))
        kind = "tensors" if inner else kind_of(path, role)
        jobs.append(Job(path, kind, record or path in listed, slices=inner, known=known.get(path)))
    for path, more in slices.items():
        if os.path.isfile(path):
            jobs.append(Job(path, "tensors", path in listed, slices=tuple(more)))
    paths = {job.path for job in jobs}
    jobs += [Job(path, "plain", True) for path in listed if path not in paths and _is_own(path)]
    return Unit(checkpoint, tuple(jobs), place, listed, problems)


def _is_own(path: str) -> bool:
    """A file that only the manifest names: not through a link, for whoever wrote it must not choose what is read."""
    return os.path.isfile(path) and not os.path.islink(path)


def bytes_of(units: Iterable[Unit]) -> int:
    """How much there is to look at, as far as it can be known: for a bar."""
    return sum(size_of(job.path) for unit in units for job in unit.jobs)


def verify(units: Sequence[Unit], jobs: int, advance: Callable[[int], None]) -> Iterator[Verified]:
    """Looks at every file, `jobs` at a time, and yields the units in their order.

    `advance` is told from several threads of the bytes read. Left early, it stops within a block of each.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    stopped = threading.Event()
    uses = Counter(job for unit in units for job in unit.jobs)
    sizes = {job: size_of(job.path) for job in uses}
    total = sum(sizes.values())

    def tick(count: int) -> None:
        if stopped.is_set():
            raise Interrupted("interrupted")
        advance(count)

    pool = ThreadPoolExecutor(jobs)
    try:
        # A file that outweighs the rest is shared out: the others would be done long before it.
        under_way: dict[Job, Future[Checked]] = {
            job: pool.submit(check_file, job._replace(lanes=jobs if sizes[job] * jobs > total else 1), tick)
            for job in uses
        }
        for unit in units:
            checked = {job.path: under_way[job].result() for job in unit.jobs}
            yield _judged(unit, checked)
            for job in unit.jobs:
                uses[job] -= 1
                if not uses[job]:
                    del under_way[job]
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _judged(unit: Unit, checked: dict[str, Checked]) -> Verified:
    """The results of a unit, part by part, then what is missing."""
    checkpoint = unit.checkpoint
    if checkpoint and checkpoint.state == "in-progress":
        return Verified(unit, (Result(unit.ref, checkpoint.dir, "skipped", checkpoint.problems),), {})
    found: dict[str, list[Problem]] = {path: [] for path in checked}
    own = [problem for path, file in checked.items() for problem in file.problems if problem.path == path]
    others = [problem for path, file in checked.items() for problem in file.problems if problem.path != path]
    for problem in own:
        found[problem.path].append(problem)
    broken = {problem.path for problem in own if problem.code not in REMARKS}
    for problem in (*others, *(checkpoint.problems if checkpoint else ()), *unit.problems):
        # Of a file that was found damaged, a look at it from outside tells nothing new.
        if problem.path not in broken:
            found.setdefault(problem.path, []).append(problem)
    for problem in disagreements(checkpoint, checked) if checkpoint else _of_index(checked):
        found.setdefault(problem.path, []).append(problem)
    matched = set()
    for path, digest in unit.listed.items():
        here = checked[path].sha256 if path in checked else None
        if here == digest:
            matched.add(path)
        elif here:
            said = f"{os.path.basename(path)} is not the file that {os.path.basename(unit.manifest or '')} lists"
            found[path].append(Problem("manifest-mismatch", said, path))
        elif not os.path.exists(path) and path not in found:
            said = f"{os.path.basename(path)} is missing, which {os.path.basename(unit.manifest or '')} lists"
            found[path] = [Problem("manifest-missing-file", said, path)]
    results = tuple(
        Result(unit.ref, path, _status(problems, path in matched, checked.get(path)), tuple(problems))
        for path, problems in found.items()
    )
    return Verified(unit, results, {path: file.sha256 for path, file in checked.items() if file.sha256})


def _of_index(checked: dict[str, Checked]) -> Iterator[Problem]:
    """What is wrong with an index that is part of no checkpoint."""
    for path, file in checked.items():
        if isinstance(file.value, dict) and isinstance(file.value.get("weight_map"), dict):
            yield from index_faults(path, file.value, checked)


def _status(problems: Iterable[Problem], matched: bool, file: Checked | None) -> Status:
    """Of a file with these problems; `matched` is whether it is the one that a manifest lists."""
    if any(problem.code not in REMARKS for problem in problems):
        return "damaged"
    return "ok" if matched or (file is not None and file.covered) else "unverifiable"


def record(done: Sequence[Verified]) -> list[str]:
    """Writes a manifest for each whole unit and returns where; each of its files must have been hashed.

    Nothing is written for what is damaged. Raises Refused, before anything is written, where files are whole but do
    not match the manifest they have.
    """
    whole = []
    for one in done:
        codes = {p.code for result in one.results for p in result.problems if p.code not in REMARKS}
        if codes and codes <= _MANIFEST:
            where = one.unit.ref or one.results[0].path
            raise Refused(f"{where} does not match the manifest it has", "--force records it as it is now")
        if not one.damaged and one.digests and one.unit.manifest:
            whole.append((one.unit.manifest, one.digests))
    for place, digests in whole:
        listed = {path: digest for path, digest in digests.items() if manifest.inside(place, path)}
        manifest.write(place, listed, replace=os.path.lexists(place))
    return [place for place, _ in whole]
