"""One file: is every byte as it was written? Its structure by its reader, its bytes by CRC32 and sha256."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from ckpt_cli.checkpoint import Problem, Storage, TensorFile
from ckpt_cli.checksums import Tick, is_zero, read_all
from ckpt_cli.errors import CkptError, Damaged, Interrupted
from ckpt_cli.formats import ByteSource, FileSource, Format, Window
from ckpt_cli.layouts import MAX_JSON_BYTES, read_json
from ckpt_cli.tensors import about, recognise

Kind = Literal["tensors", "any", "json", "plain"]
# What a reader calls a failure that it knows no more exact word for.
_CODES = {"unusable": "bad-structure", "damaged": "bad-structure"}
# The dtype and shape of a tensor.
Held = tuple[str, tuple[int, ...]]


class Slice(NamedTuple):
    """A whole archive within a file: `name` for messages, where it begins, its bytes, the tensor that it `holds`."""

    name: str
    offset: int
    bytes: int
    holds: Held | None = None


class Job(NamedTuple):
    """A file and how it is to be read.

    `digest` asks for a sha256 of all of it; `lanes` is how many threads may share its records; `slices` are the
    archives that an index places in it, none for a file that is one by itself.
    """

    path: str
    kind: Kind
    digest: bool = False
    lanes: int = 1
    slices: tuple[Slice, ...] = ()


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


def slices_of(path: str) -> dict[str, list[Slice]]:
    """The archives that an index file places in other files, by file; none for what cannot be read or is no index.

    What was packed in some way of its own is left out: there is no telling whether it is whole.
    """
    placed: dict[str, list[Slice]] = {}
    try:
        with FileSource(path) as source:
            form = recognise(source)
            found = list(form.records(source))
            held = _described(form, source)
            for record in found:
                if record.file != path and not record.packed:
                    holds = held.get((record.file, record.offset))
                    placed.setdefault(record.file, []).append(Slice(record.name, record.offset, record.bytes, holds))
    except CkptError:
        return {}  # said when the index itself is looked at
    return placed


def _described(form: Format, source: ByteSource) -> dict[tuple[str, int], Held]:
    """Each tensor that an index places in an archive of its own, by file and where in it."""
    try:
        tensors = getattr(form, "index", form.read)(source).tensors
    except CkptError:
        return {}  # said when the index itself is looked at
    pieces = (piece for tensor in tensors for _, piece in tensor.pieces if piece.form == "archived")
    return {(p.storage.file, p.storage.offset): (p.dtype, p.shape) for p in pieces if p.storage}


def check_file(job: Job, tick: Tick = lambda count: None) -> Checked:
    """Looks at one file; `tick` is told of the bytes that were read. No failure of the file is raised."""
    try:
        with about(job.path), FileSource(job.path) as source:
            if job.kind == "tensors" or (job.kind == "any" and _holds_tensors(source)):
                return _check_tensors(source, job, tick)
            if job.kind == "json" and not source.size:
                raise Damaged(f"{os.path.basename(job.path)} is empty", kind="empty-file")
            value = read_json(job.path) if job.kind == "json" else None
            _, digest = read_all(source, (), job.digest, job.lanes, tick)
            return Checked(job.path, sha256=digest, value=value)
    except Interrupted:
        raise
    except CkptError as error:
        garbled = "bad-index" if ".index." in os.path.basename(job.path) else "bad-meta"
        fallback = garbled if job.kind == "json" else None
        return Checked(job.path, (problem_of(error, job.path, fallback),))


def problem_of(error: CkptError, path: str, fallback: str | None = None) -> Problem:
    """A reader's failure as a problem with a stable code."""
    code = fallback if fallback and error.kind in _CODES else _CODES.get(error.kind, error.kind)
    return Problem(code, error.message, path, error.record)


def _check_tensors(source: FileSource, job: Job, tick: Tick) -> Checked:
    """A file of tensors, or the archives that an index places in it: every checksum, then what its reader says."""
    windows = list(_windows(source, job.slices)) if job.slices else [(None, source, None)]
    problems: list[Problem] = []
    records: list[Storage] = []
    elsewhere = False
    for within, window, _ in windows:
        try:
            base = window.start if isinstance(window, Window) else 0
            found = list(recognise(window).records(window))
            elsewhere = elsewhere or any(record.file != job.path for record in found)
            records += [
                record._replace(name=_within(within, record.name) or "", offset=base + record.offset)
                for record in found
                if record.file == job.path
            ]
        except CkptError as error:
            problems.append(problem_of(error, job.path)._replace(record=_within(within, error.record)))
    crcs, digest = read_all(source, records, job.digest, job.lanes, tick)
    checked = any(record.crc32 is not None for record in records)
    for record, value in zip(records, crcs):
        if isinstance(value, CkptError):
            problems.append(Problem("cannot-unpack", value.message, job.path, record.name))
        elif record.crc32 is not None and value != record.crc32:
            detail = f"{job.path}: record {record.name} is damaged: its CRC32 does not fit"
            problems.append(Problem("crc-mismatch", detail, job.path, record.name))
    skipped = [record for record in records if checked and record.crc32 is None and is_zero(source, record, tick)]
    for record in skipped:
        detail = f"{job.path}: record {record.name} was never filled: {record.bytes} zeros without a CRC32"
        problems.append(Problem("skipped-data", detail, job.path, record.name))
    shapes = None
    for within, window, holds in windows:
        try:
            form = recognise(window)
            if elsewhere:  # an index: the bytes themselves are looked at where they lie
                form.check(window)
                continue
            file = form.read(window)
        except CkptError as error:
            # What the pass over the bytes has found already is not said twice.
            problem = problem_of(error, error.path or job.path)._replace(record=_within(within, error.record))
            if all((p.code, p.record) != (problem.code, problem.record) for p in problems):
                problems.append(problem)
            continue
        if holds and [(tensor.dtype, tensor.shape) for tensor in file.tensors] != [holds]:
            detail = f"{job.path}: the bytes of tensor {within!a} are not the tensor that its index describes"
            problems.append(Problem("index-mismatch", detail, job.path, within))
        problems += [Problem("oddity", f"{job.path}: {note}", job.path, within) for note in file.notes]
        shapes = None if job.slices else _shapes(file)
    covered = checked and all(record.crc32 is not None or not record.bytes for record in records)
    return Checked(job.path, tuple(problems), covered and not problems, digest, shapes)


def _holds_tensors(source: ByteSource) -> bool:
    """Whether a format knows it; raises Damaged for what a write that broke off leaves."""
    try:
        recognise(source)
    except CkptError as error:
        if error.kind != "not-a-checkpoint":
            raise
        return False
    return True


def _windows(source: ByteSource, slices: Iterable[Slice]) -> Iterator[tuple[str | None, ByteSource, Held | None]]:
    for name, offset, length, holds in slices:
        yield name, Window(source, offset, length), holds


def _within(archive: str | None, record: str | None) -> str | None:
    """A record's name, that of the archive it is in before it."""
    return ": ".join(name for name in (archive, record) if name is not None) or None


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
