"""One file: is every byte as it was written? Its structure by its reader, its bytes by CRC32 and sha256.

Each byte is read once, into one buffer, never through a memory map. What no checksum covers is not read at all, unless
a digest of the whole file is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from ckpt_cli.checkpoint import Problem, Storage, TensorFile
from ckpt_cli.errors import CkptError, Damaged, Interrupted
from ckpt_cli.formats import ByteSource, FileSource, Window
from ckpt_cli.inflate import Inflated
from ckpt_cli.layouts import MAX_JSON_BYTES, read_json
from ckpt_cli.tensors import RANGE, about, crc32, range_crc32, ranges, recognise

Kind = Literal["tensors", "any", "json", "plain"]
Tick = Callable[[int], None]
# What a reader calls a failure that it knows no more exact word for.
_CODES = {"unusable": "bad-structure", "damaged": "bad-structure"}


class Slice(NamedTuple):
    """A whole archive within a file: `name` for messages, where it begins, and its bytes."""

    name: str
    offset: int
    bytes: int


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
            for record in recognise(source).records(source):
                if record.file != path and not record.packed:
                    placed.setdefault(record.file, []).append(Slice(record.name, record.offset, record.bytes))
    except CkptError:
        return {}  # said when the index itself is looked at
    return placed


def check_file(job: Job, tick: Tick = lambda count: None) -> Checked:
    """Looks at one file; `tick` is told of the bytes that were read. No failure of the file is raised."""
    try:
        with about(job.path), FileSource(job.path) as source:
            if job.kind == "tensors" or (job.kind == "any" and _holds_tensors(source)):
                return _check_tensors(source, job, tick)
            if job.kind == "json" and not source.size:
                raise Damaged(f"{os.path.basename(job.path)} is empty", kind="empty-file")
            value = read_json(job.path) if job.kind == "json" else None
            _, digest = _read(source, (), job, tick)
            return Checked(job.path, sha256=digest, value=value)
    except Interrupted:
        raise
    except CkptError as error:
        fallback = "bad-meta" if job.kind == "json" else None
        return Checked(job.path, (problem_of(error, job.path, fallback),))


def problem_of(error: CkptError, path: str, fallback: str | None = None) -> Problem:
    """A reader's failure as a problem with a stable code."""
    code = fallback if fallback and error.kind in _CODES else _CODES.get(error.kind, error.kind)
    return Problem(code, error.message, path, error.record)


def _check_tensors(source: FileSource, job: Job, tick: Tick) -> Checked:
    windows = list(_windows(source, job.slices)) if job.slices else [(None, source)]
    problems: list[Problem] = []
    records: list[Storage] = []
    elsewhere = False
    for within, window in windows:
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
    crcs, digest = _read(source, records, job, tick)
    checked = any(record.crc32 is not None for record in records)
    for record, value in zip(records, crcs):
        if isinstance(value, CkptError):
            problems.append(Problem("cannot-unpack", value.message, job.path, record.name))
        elif record.crc32 is not None and value != record.crc32:
            detail = f"{job.path}: record {record.name} is damaged: its CRC32 does not fit"
            problems.append(Problem("crc-mismatch", detail, job.path, record.name))
    skipped = [record for record in records if checked and record.crc32 is None and _is_zero(source, record, tick)]
    for record in skipped:
        detail = f"{job.path}: record {record.name} was never filled: {record.bytes} zeros without a CRC32"
        problems.append(Problem("skipped-data", detail, job.path, record.name))
    shapes = None
    for within, window in windows:
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


def _windows(source: ByteSource, slices: Iterable[Slice]) -> Iterator[tuple[str, Window]]:
    for name, offset, length in slices:
        yield name, Window(source, offset, length)


def _within(slice: str | None, record: str | None) -> str | None:
    """A record's name, that of the archive it is in before it."""
    return ": ".join(name for name in (slice, record) if name is not None) or None


def _shapes(file: TensorFile) -> dict[str, tuple[tuple[int, ...], int, Any]] | None:
    """None for a file whose tensors are parts of larger ones, by rank."""
    if "__metadata__.DCP_SHARDING_INFO" in file.values:
        return None
    return {
        tensor.name: (tensor.shape, tensor.bytes, tensor.storage and (tensor.storage.offset, tensor.shape))
        for tensor in file.tensors
    }


def _read(
    source: ByteSource, records: Sequence[Storage], job: Job, tick: Tick
) -> tuple[Sequence[int | CkptError | None], str | None]:
    """The CRC32 of each record that has one written, and the sha256 of all bytes if it is asked for."""
    wanted = [index for index, record in enumerate(records) if record.crc32 is not None]
    found: list[int | CkptError | None] = [None] * len(records)
    if job.digest:
        plain = [index for index in wanted if not records[index].packed]
        plain.sort(key=lambda index: (records[index].offset, records[index].bytes))
        digest, rest = _digest(source, records, plain, found, tick)
        wanted = [index for index in wanted if index in rest or records[index].packed]
    else:
        digest = None

    def lane(indexes: Iterable[int]) -> None:
        buffer = memoryview(bytearray(RANGE))
        for index in indexes:
            found[index] = _crc(source, records[index], buffer, tick)

    lanes = _dealt(wanted, records, job.lanes)
    if len(lanes) > 1:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(lane, lanes))
    else:
        lane(wanted)
    return found, digest


def _dealt(indexes: Sequence[int], records: Sequence[Storage], lanes: int) -> list[list[int]]:
    """The records in shares of about as many bytes, each in the order of the file; few bytes are one share."""
    total = sum(records[index].bytes for index in indexes)
    shares: list[list[int]] = [[] for _ in range(max(1, min(lanes, total // (16 * RANGE))))]
    done = 0
    for index in indexes:
        shares[min(len(shares) - 1, done * len(shares) // max(1, total))].append(index)
        done += records[index].bytes
    return [share for share in shares if share]


def _digest(
    source: ByteSource,
    records: Sequence[Storage],
    order: Sequence[int],
    found: list[int | CkptError | None],
    tick: Tick,
) -> tuple[str, set[int]]:
    """sha256 of the whole source, with the CRC32 of its records from the same bytes; those that overlap are left."""
    import hashlib

    state, buffer, at, left = hashlib.sha256(), memoryview(bytearray(RANGE)), 0, set()
    for index in order:
        record = records[index]
        if record.offset < at:
            left.add(index)
            continue
        for block in ranges(source, at, record.offset - at, tick, buffer):
            state.update(block)
        value = 0
        for block in ranges(source, record.offset, record.bytes, tick, buffer):
            state.update(block)
            value = crc32(block, value)
        found[index] = value
        at = record.offset + record.bytes
    for block in ranges(source, at, source.size - at, tick, buffer):
        state.update(block)
    return state.hexdigest(), left


def _crc(source: ByteSource, record: Storage, buffer: memoryview, tick: Tick) -> int | CkptError:
    place, base = source, record.offset
    try:
        if record.packed:
            place, base = Inflated(Window(source, record.offset, record.packed), record.bytes), 0
        return range_crc32(place, base, record.bytes, tick, buffer)
    except CkptError as error:
        if not record.packed or isinstance(error, Interrupted):
            raise
        return error


def _is_zero(source: ByteSource, record: Storage, tick: Tick) -> bool:
    if record.packed or not record.bytes:
        return False
    blocks = ranges(source, record.offset, record.bytes, tick)
    return not any(bytes(block).strip(b"\0") for block in blocks)


def size_of(path: str) -> int:
    """Of a file in bytes; 0 for one that cannot be asked."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
