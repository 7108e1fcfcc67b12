"""What a distributed save leaves in one folder, whoever made it: parts, what is missing, whether training resumes.

`.metadata` is the index and `__<rank>_<n>.distcp` the data; without consolidation torch's Hugging Face writer leaves
`shard-00001-model-00001-of-00002.safetensors`, a shard number a rank. The index is written last, as `.metadata.tmp`,
and renamed: without it the save was cut off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ckpt_cli.checkpoint import Part, Problem, Role
from ckpt_cli.errors import CkptError, counted
from ckpt_cli.layouts import Folder, missing, not_read
from ckpt_cli.small_files import without_waiting
from ckpt_cli.tensor_file import TensorFile

_INDEX = ".metadata"
_RANK_INDEX = re.compile(r"__([0-9]{1,6})\.metadata")
_UNFINISHED = re.compile(r"(__[0-9]{1,6})?\.metadata\.tmp")
_DATA = re.compile(r"__([0-9]{1,6})_[0-9]{1,9}\.distcp")
_SHARD = re.compile(r"shard-([0-9]{5,9})-model-([0-9]{5,9})-of-([0-9]{5,9})\.safetensors")
# To list must stay quick: of an index beyond this (30 ms) only the names in it are looked for, in a hundredth of the
# time, and how long its files should be is left to who opens the checkpoint.
_MAX_INDEX = 128 << 10
_MAX_NAMES = 64 << 20
_BLOCK = 1 << 20
_NAME = re.compile(rb"__[0-9]{1,6}_[0-9]{1,9}\.distcp")
# A pickled text that begins so: after its opcode stands its length, in one byte or four.
_OPTIMIZER = re.compile(rb"\x8c.optim|X.{4}optim", re.DOTALL)
_LONGEST = 40


class Saved(NamedTuple):
    """`resumable` says whether the index names an optimizer; None where it is too large even to look for names."""

    parts: tuple[Part, ...]
    problems: tuple[Problem, ...]
    resumable: bool | None


def saved_in(folder: Folder) -> Saved | None:
    """The distributed save that lies in a folder, None where none does."""
    data = [name for name in folder.files if _DATA.fullmatch(name)]
    indexes = [name for name in folder.files if name == _INDEX or _RANK_INDEX.fullmatch(name)]
    if data or (indexes and _describes(folder, indexes[0])):
        return _distributed(folder, data, indexes)
    shards = [name for name in folder.files if _SHARD.fullmatch(name)]
    return _sharded(folder, shards) if shards else None


def _describes(folder: Folder, name: str) -> bool:
    """Whether a lone `.metadata`, a name that others use too, is an index: one all of whose data is gone."""
    entry = folder.files[name]
    try:
        size = entry.stat().st_size
        if size > _MAX_INDEX:
            return size <= _MAX_NAMES and bool(_named_in(entry.path, size).files)
        return bool(size and folder.read_index and folder.read_index(entry.path).container == "dcp")
    except (CkptError, OSError):
        return False


def _distributed(folder: Folder, data: Sequence[str], indexes: Sequence[str]) -> Saved:
    problems: list[Problem] = []
    # One of a save with collectives speaks for all; those of single ranks may be left from an earlier one.
    indexes = [_INDEX] if _INDEX in indexes else indexes
    parts = [
        *_parts(folder, sorted(indexes), "index", _RANK_INDEX, problems),
        *_parts(folder, sorted(data, key=_natural), "model", _DATA, problems),
    ]
    if not indexes:
        problems.append(missing(folder, _INDEX, "the index"))
    resumable: bool | None = False if not indexes else None
    optimizer = False
    by_path = {part.path: part for part in parts}
    for part in [part for part in parts if part.role == "index" and part.bytes]:
        try:
            if _MAX_INDEX < part.bytes <= _MAX_NAMES:
                told = _named_in(part.path, part.bytes)
                lost = sorted((name for name in told.files if name not in folder.files), key=_natural)
                problems += [missing(folder, name, "a data file") for name in lost]
                optimizer |= told.optimizer
            elif folder.read_index and part.bytes <= _MAX_INDEX:
                found = folder.read_index(part.path)
                problems += _lacking(folder, found, by_path)
                optimizer |= any(tensor.name.startswith("optim") for tensor in found.tensors)
            else:
                continue
        except CkptError as error:
            problems.append(not_read(part, error, "bad-index"))
            continue
        resumable = optimizer
    unfinished = [name for name in folder.files if _UNFINISHED.fullmatch(name)]
    parts += _parts(folder, sorted(unfinished), "other", _UNFINISHED, [])
    return Saved(tuple(parts), tuple(problems), resumable)


class _Named(NamedTuple):
    """The data files that an index names, and whether it names the state of an optimizer."""

    files: frozenset[str]
    optimizer: bool


def _named_in(path: str, size: int) -> _Named:
    """What the texts in a pickle tell, without reading it as one.

    Raises CkptError for one that does not end as a pickle does.
    """
    files: set[bytes] = set()
    optimizer = False
    before = data = b""
    try:
        with open(path, "rb", buffering=0, opener=without_waiting) as file:
            while size > 0 and (data := file.read(min(_BLOCK, size))):
                size -= len(data)
                files.update(_NAME.findall(before + data))
                optimizer = optimizer or bool(_OPTIMIZER.search(before + data))
                before = data[-_LONGEST:]
    except OSError as error:
        name = os.path.basename(path)
        raise CkptError(f"{name} cannot be read: {error.strerror}", path=path, kind="unreadable-part") from error
    if before[-1:] != b".":
        raise CkptError(f"{os.path.basename(path)} does not end as an index does")
    return _Named(frozenset(name.decode() for name in files), optimizer)


def _sharded(folder: Folder, shards: Sequence[str]) -> Saved:
    problems: list[Problem] = []
    parts = _parts(folder, sorted(shards), "model", _SHARD, problems)
    numbers = {int(match[1]) for name in shards if (match := _SHARD.fullmatch(name))}
    for number in range(1, max(numbers)):
        if number not in numbers:
            of = next(match[3] for name in shards if (match := _SHARD.fullmatch(name)))
            problems.append(missing(folder, f"shard-{number:05}-model-00001-of-{of}.safetensors", f"shard {number}"))
            break
    return Saved(tuple(parts), tuple(problems), None)


def _lacking(folder: Folder, found: TensorFile, parts: dict[str, Part]) -> list[Problem]:
    """The data files that the index names and that are not there, or not as long as it needs them."""
    needed: dict[str, int] = {}
    for storage in found.storages:
        needed[storage.file] = max(needed.get(storage.file, 0), storage.offset + storage.bytes)
    problems = []
    for path, length in needed.items():
        name = os.path.basename(path)
        if path in parts and parts[path].bytes < length:
            lost = counted(length - parts[path].bytes, "byte")
            problems.append(Problem("truncated", f"{name} lacks {lost} of its data", path))
        elif path not in parts and name not in folder.files:
            problems.append(missing(folder, name, "a data file"))
    return problems


def _parts(
    folder: Folder, names: Iterable[str], role: Role, pattern: re.Pattern[str], problems: list[Problem]
) -> list[Part]:
    parts = []
    for name in names:
        match = pattern.fullmatch(name)
        rank = None if match is None or pattern is _UNFINISHED else int(match[1]) - (pattern is _SHARD)
        part = folder.part(name, role, problems, rank)
        if part:
            parts.append(part)
    return parts


def _natural(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", name)]
