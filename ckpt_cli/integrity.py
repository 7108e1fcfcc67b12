"""One file: is every byte as it was written? Its structure by its reader, its bytes by CRC32 and sha256."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from ckpt_cli.checkpoint import Problem
from ckpt_cli.checksums import Digest, Tick, is_zero, read_all
from ckpt_cli.errors import CkptError, Damaged, Interrupted, counted
from ckpt_cli.formats import ByteSource, FileSource
from ckpt_cli.formats._inert import Costly
from ckpt_cli.room import room_of_a_file
from ckpt_cli.slices import Archive, Kinds, Slice, batches, full_name, placed
from ckpt_cli.small_files import MAX_JSON_BYTES, read_json
from ckpt_cli.tensor_file import Storage, TensorFile
from ckpt_cli.tensors import about, recognise

Kind = Literal["tensors", "any", "json", "plain"]
# How often the bytes of a file, and as many as any may have, records may unpack to: at some 400 MB a second.
_UNPACKED = 4
# What a reader calls a failure that it knows no more exact word for.
_CODES = {"unusable": "bad-structure", "damaged": "bad-structure"}


class Job(NamedTuple):
    """A file and how it is to be read.

    `digest` asks for a sha256 of all of it; `lanes` is how many threads may share its records; `slices` are the
    archives that an index places in it, none for a file that is one by itself; `known` is what `slices_of` found wrong
    with it, None where nobody has looked.
    """

    path: str
    kind: Kind
    digest: bool = False
    lanes: int = 1
    slices: tuple[Slice, ...] = ()
    known: tuple[Problem, ...] | None = None


class Checked(NamedTuple):
    """What was found. `covered` says that every byte of data had a checksum; `value` is what a JSON file holds.

    `shapes` are the tensors by name: shape, bytes, and a key that tied ones share.
    """

    path: str
    problems: tuple[Problem, ...] = ()
    covered: bool = False
    sha256: str | None = None
    shapes: dict[str, tuple[tuple[int, ...], int, Any]] | None = None
    value: Any = None


def kind_of(path: str, role: str | None = None) -> Kind:
    """How a file is read: JSON by its name, tensors by its role; what else is called so (any) only where it holds some,
    and everything besides as bytes alone.
    """
    name = os.path.basename(path).lower()
    if name.endswith(".json"):
        # A trainer's own log grows without limit; what is too large for metadata is left to its digest.
        return "json" if role != "tokenizer" and size_of(path) <= MAX_JSON_BYTES else "plain"
    if name.endswith(".distcp"):
        return "plain"  # several archives in a row: only their index says where each begins
    if role in (None, "model", "optimizer", "adapter", "recipe", "export", "index"):
        return "tensors"
    return "any" if name.endswith((".pt", ".pth", ".bin", ".safetensors", ".ckpt")) else "plain"


def slices_of(path: str) -> tuple[dict[str, list[Slice]], tuple[Problem, ...] | None]:
    """The archives that an index file places in other files, by file, and what is wrong with it; nothing and None for
    a file that is no index.

    What was packed in some way of its own is left out: there is no telling whether it is whole.
    """
    placed: dict[str, list[Slice]] = {}
    try:
        with about(path), FileSource(path) as source:
            form = recognise(source)
            if not hasattr(form, "placed"):
                return {}, None
            for record, holds in form.placed(source):
                if record.file != path and not record.packed:
                    placed.setdefault(record.file, []).append(Slice(record.name, record.offset, record.bytes, holds))
    except CkptError as error:
        return placed, (problem_of(error, error.path or path),)
    return placed, ()


def check_file(job: Job, tick: Tick = lambda count: None) -> Checked:
    """Looks at one file; `tick` is told of the bytes that were read. No failure of the file is raised."""
    try:
        with about(job.path), FileSource(job.path) as source:
            if job.known is not None:
                digest = Digest(source, tick) if job.digest else None
                return Checked(job.path, job.known, sha256=digest.finish() if digest else None)
            if job.kind == "tensors" or (job.kind == "any" and _holds_tensors(source)):
                return _check_tensors(source, job, tick)
            if job.kind == "json" and not source.size:
                raise Damaged(f"{os.path.basename(job.path)} is empty", kind="empty-file")
            value = _json(job.path) if job.kind == "json" else None
            digest = Digest(source, tick) if job.digest else None
            return Checked(job.path, sha256=digest.finish() if digest else None, value=value)
    except Interrupted:
        raise
    except CkptError as error:
        garbled = "bad-index" if ".index." in os.path.basename(job.path) else "bad-meta"
        fallback = garbled if job.kind == "json" else None
        return Checked(job.path, (problem_of(error, job.path, fallback),))


def _json(path: str) -> Any:
    """What it holds; None of what is too large to look into, as a log that grows without limit is: it may be whole."""
    try:
        return read_json(path)
    except CkptError as error:
        if error.kind != Costly.kind:
            raise
        return None


def problem_of(error: CkptError, path: str, fallback: str | None = None) -> Problem:
    """A reader's failure as a problem with a stable code."""
    code = fallback if fallback and error.kind in _CODES else _CODES.get(error.kind, error.kind)
    return Problem(code, error.message, path, error.record)


def _check_tensors(source: FileSource, job: Job, tick: Tick) -> Checked:
    """A file of tensors, or the archives that an index places in it: every checksum, then what its reader says."""
    digest = Digest(source, tick) if job.digest else None
    # What is wrong around the bytes, with the bytes, and with what they describe.
    around: list[Problem] = []
    within: list[Problem] = []
    described: list[Problem] = []
    said: set[tuple[str, str | None]] = set()

    def say(where: list[Problem], problem: Problem) -> None:
        where.append(problem)
        said.add((problem.code, problem.record))

    bare: list[Storage] = []
    checked = False
    shapes = None
    kinds = Kinds()
    for archives in batches(source, job.slices, kinds):
        records: list[Storage] = []
        unread: list[tuple[Archive, list[Storage], Callable[[], TensorFile | None]]] = []
        for archive, like in archives:
            own = like or []
            if like is None:
                try:
                    own, read = _records(archive)
                except CkptError as error:
                    say(around, _problem(error, job.path, archive.name))
                    continue
                unread.append((archive, own if job.slices else [], read))
            records += placed(archive, own)
        unpacked = sum(record.bytes for record in records if record.packed)
        if unpacked > _UNPACKED * (source.size + room_of_a_file(source.size)):
            raise Costly(f", with {unpacked} bytes packed")
        bare += [record for record in records if record.crc32 is None]
        checked = checked or any(record.crc32 is not None for record in records)
        for record, value in zip(records, read_all(source, records, digest, job.lanes, tick)):
            if isinstance(value, CkptError):
                say(within, Problem("cannot-unpack", value.message, job.path, record.name))
            elif record.crc32 is not None and value != record.crc32:
                detail = f"{job.path}: record {record.name} is damaged: its CRC32 does not fit"
                say(within, Problem("crc-mismatch", detail, job.path, record.name))
        records.clear()  # before as many tensors are read
        for archive, own, read in unread:
            try:
                file = read()
            except CkptError as error:
                # What the pass over the bytes has found already is not said twice.
                problem = _problem(error, error.path or job.path, archive.name)
                if (problem.code, problem.record) not in said:
                    say(described, problem)
                continue
            if file is None:
                continue
            if archive.holds and [(tensor.dtype, tensor.shape) for tensor in file.tensors] != [archive.holds]:
                detail = f"{job.path}: the bytes of tensor {archive.name!a} are not the tensor that its index describes"
                say(described, Problem("index-mismatch", detail, job.path, archive.name))
                continue
            described += [Problem("oddity", f"{job.path}: {note}", job.path, archive.name) for note in file.notes]
            shapes = None if job.slices else _shapes(file)
            broken = any(("crc-mismatch", full_name(archive.name, record.name)) in said for record in own)
            if own and not broken and not file.notes:
                kinds.learn(archive.holds, archive.source, own)
    for record in bare if checked else ():
        if is_zero(source, record, tick):
            zeros = counted(record.bytes, "zero")
            detail = f"{job.path}: record {record.name} was never filled: {zeros} without a CRC32"
            within.append(Problem("skipped-data", detail, job.path, record.name))
    problems = (*around, *within, *described)
    covered = checked and not problems and not any(record.bytes for record in bare)
    return Checked(job.path, problems, covered, digest.finish() if digest else None, shapes)


def _records(archive: Archive) -> tuple[list[Storage], Callable[[], TensorFile | None]]:
    """Its records, and what reads the rest; of an index none, for bytes are looked at where they lie."""
    form = recognise(archive.source)
    if hasattr(form, "placed"):
        return [], partial(form.check, archive.source)
    found, read = form.records(archive.source)
    return list(found), read


def _problem(error: CkptError, path: str, archive: str | None) -> Problem:
    return problem_of(error, path)._replace(record=full_name(archive, error.record))


def _holds_tensors(source: ByteSource) -> bool:
    """Whether a format knows it; raises Damaged for what a write that broke off leaves."""
    try:
        recognise(source)
    except CkptError as error:
        if error.kind != "not-a-checkpoint":
            raise
        return False
    return True


def _shapes(file: TensorFile) -> dict[str, tuple[tuple[int, ...], int, Any]] | None:
    """None for a file whose tensors are parts of larger ones, by rank."""
    if "__metadata__.DCP_SHARDING_INFO" in file.values:
        return None
    return {
        tensor.name: (tensor.shape, tensor.bytes, tensor.storage and (tensor.storage.offset, tensor.shape))
        for tensor in file.tensors
    }


def size_of(path: str) -> int:
    """Of a file in bytes; 0 for one that cannot be asked."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
