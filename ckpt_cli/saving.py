"""The files of one step of a run, from one process or from many: all of them take their names, the model last, or none.

Every rank writes its part under a name that nobody looks for, and syncs it. When all have, and only then, names change:
what the step had before is set aside, model first; each rank renames its own optimizer shard; rank 0 renames the
manifest, the meta and, last, the model. A trainer finds a step by its model alone, so at every instant a step is absent
or whole. What fails on one rank fails on all and is put back.

A process that is killed cannot put back. The next save into the directory does: it takes away what was half written,
and gives a step that was set aside its names again. It does not know what is in the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple, TypeVar

from ckpt_cli import manifest
from ckpt_cli.atomic import (
    discard,
    draft,
    fsync_directory,
    make_directories,
    remove_empty,
    rename_all,
    sweep,
    write_all,
)
from ckpt_cli.errors import CkptError

T = TypeVar("T")
ASIDE = ".replaced"
_PART = re.compile(r"(model|meta|optim)_([0-9]+)(?:_rank[0-9]+)?(\.pt|\.json|\.pt\.sha256)")
# Smaller writes are hashed before the other thread would have begun.
_WORTH_A_THREAD = 1 << 18


class Shared(NamedTuple):
    """This process among those that save together. `exchange` gives every rank the value of each, in order of rank."""

    rank: int
    world: int
    exchange: Callable[[Any], list[Any]]


class HashingFile:
    """A file that can only be written to, one end to the other, and knows the sha256 of what it was given.

    Its digest is made by a thread of its own while the kernel takes the same bytes. The first failure stays in
    `failure`: who writes through another library gets that library's idea of it.
    """

    def __init__(self, descriptor: int) -> None:
        from concurrent.futures import ThreadPoolExecutor
        from hashlib import sha256

        self.descriptor = descriptor
        self.state = sha256()
        self.threads = ThreadPoolExecutor(1)
        self.failure: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            view = memoryview(data).cast("B")
            digest = self.threads.submit(self.state.update, view) if len(view) >= _WORTH_A_THREAD else None
            if digest is None:
                self.state.update(view)
            write_all(self.descriptor, view)
            if digest:
                digest.result()
        except BaseException as error:
            self.failure = self.failure or error
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.threads.shutdown()
        os.close(self.descriptor)


# Writes one file: what it holds goes into the open file that is handed to it.
Write = Callable[[HashingFile], object]


class _Draft(NamedTuple):
    """A file that was written and has no name yet: where it lies, the name it is to take, and its sha256."""

    path: str
    target: str
    digest: str


class _Agreed(Exception):
    """Something failed on a rank, and all of them know it. `error` is what this one raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def part_path(directory: str, kind: str, step: int, rank: int | None = None) -> str:
    """`model_001000.pt`, `meta_001000.json`, `optim_001000_rank3.pt`: nanochat's names, of six digits at least."""
    shard = "" if rank is None else f"_rank{rank:d}"
    return os.path.join(directory, f"{kind}_{step:06d}{shard}.{'json' if kind == 'meta' else 'pt'}")


def save_parts(
    directory: str, step: int, shard: Write | None, meta: Write | None, model: Write | None, shared: Shared
) -> None:
    """Saves a step: of every rank its shard of the optimizer, of rank 0 meta and model too; None where there is none.

    Every rank calls it with the same directory and step. What the step had before is replaced whole. Raises CkptError
    on every rank when one fails, with everything as it was; when one dies, what is half done is for the next save.
    """
    made: list[str] = []
    drafts: dict[str, _Draft] = {}
    old: list[str] = []
    rank = shared.rank
    wanted = [("optim", rank, shard), ("meta", None, meta), ("model", None, model)]

    def stage() -> dict[str, str]:
        make_directories(directory, made)
        for folder in made:
            fsync_directory(os.path.dirname(folder) or ".")
        sweep(directory, _mark(rank))
        if rank == 0:
            _recover(directory)
        for kind, number, write in wanted:
            if write:
                _write(part_path(directory, kind, step, number), write, rank, drafts, kind)
        return {one.target: one.digest for one in reversed(list(drafts.values()))}

    def set_aside() -> None:
        if rank == 0:
            old.extend(_parts_of(directory, f"{step:06d}"))
            rename_all([(path, path + ASIDE) for path in old])

    def publish(*kinds: str) -> None:
        rename_all([(drafts[kind].path, drafts[kind].target) for kind in kinds if kind in drafts])

    def finish(digests: Mapping[str, str]) -> None:
        if rank == 0:
            place = part_path(directory, "model", step) + manifest.SUFFIX
            text = manifest.text_of(place, digests)
            _write(place, lambda file: file.write(text), rank, drafts, "manifest")
            publish("manifest", "meta")
            publish("model")

    try:
        digests = _together(shared, stage)
        _together(shared, set_aside)
        _together(shared, lambda: publish("optim"))
        _together(shared, lambda: finish(dict(item for one in digests for item in one.items())))
    except _Agreed as failure:
        _undo(drafts, old, shared)
        remove_empty(made)
        raise failure.error from failure.error.__cause__
    except BaseException:
        # How far other ranks are is not known here: what has a name already stays, for the next save to judge.
        if shared.world == 1:
            _undo(drafts, old, shared)
            remove_empty(made)
        discard([one.path for one in drafts.values()])
        raise
    discard([path + ASIDE for path in old])


def _together(shared: Shared, act: Callable[[], T]) -> list[T]:
    """What `act` gives on each rank, once it has been done on all. Raises _Agreed where it failed on one."""
    failure: Exception | None = None
    value: T | None = None
    try:
        value = act()
    except CkptError as error:
        failure = error
    except Exception as error:
        failure = CkptError(f"the checkpoint cannot be saved: {getattr(error, 'strerror', None) or error}")
        failure.__cause__ = error
    try:
        answers = shared.exchange((str(failure) if failure else None, value))
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise failure or CkptError(f"another rank went away while the checkpoint was saved: {said}") from error
    if failure:
        raise _Agreed(failure)
    for number, (said, _) in enumerate(answers):
        if said is not None:
            raise _Agreed(CkptError(f"rank {number} could not save its part: {said}"))
    return [given for _, given in answers]


def _write(target: str, write: Write, rank: int, drafts: dict[str, _Draft], kind: str) -> None:
    """Writes and syncs a draft of the file, and notes it among `drafts`."""
    folder = os.path.dirname(target)
    path, descriptor = draft(folder, _mark(rank))
    drafts[kind] = _Draft(path, target, "")
    with closing(HashingFile(descriptor)) as file:
        try:
            write(file)
            os.fsync(descriptor)
        except Exception as error:
            cause = file.failure or error
            if isinstance(cause, OSError):
                raise CkptError(f"{target} cannot be written: {cause.strerror}", path=target) from cause
            raise cause from None
        drafts[kind] = _Draft(path, target, file.state.hexdigest())


def _undo(drafts: Mapping[str, _Draft], old: Sequence[str], shared: Shared) -> None:
    """Takes this rank's files away, the model first; then rank 0 gives what it set aside its names again."""
    for one in reversed(list(drafts.values())):
        # One that is not under its first name has the other.
        discard([one.path if os.path.lexists(one.path) else one.target])
    with suppress(Exception):  # a rank that dies here leaves the rest to the next save
        if shared.world > 1:
            shared.exchange(None)
        _put_back(old)


def _put_back(parts: Iterable[str]) -> None:
    """The meta first: where it is, so is everything that was not set aside. The model last."""
    parts = [path for path in reversed(list(parts)) if os.path.lexists(path + ASIDE)]
    if parts:
        rename_all([(path + ASIDE, path) for path in parts])


def _parts_of(directory: str, digits: str, suffix: str = "") -> list[str]:
    """The files of a step in the order in which they are set aside: the model first, the meta last."""
    found = []
    for name in os.listdir(directory):
        match = _PART.fullmatch(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if match and match[2] == digits:
            order = ("model", "optim", "meta").index(match[1])
            found.append((order, name != f"model_{digits}.pt{suffix}", name.removesuffix(suffix)))
    return [os.path.join(directory, name) for *_, name in sorted(found)]


def _recover(directory: str) -> None:
    """Ends what a save that was killed while it replaced a step left undone."""
    names = (name.removesuffix(ASIDE) for name in os.listdir(directory) if name.endswith(ASIDE))
    for digits in {match[2] for name in names if (match := _PART.fullmatch(name))}:
        here, aside = _parts_of(directory, digits), _parts_of(directory, digits, ASIDE)
        if os.path.join(directory, f"model_{digits}.pt") in here:
            discard([path + ASIDE for path in aside])  # it came to its end
            continue
        if os.path.join(directory, f"meta_{digits}.json") in aside:
            discard(here)  # all had been set aside, so these are of the save that was killed
        _put_back(aside)


def _mark(rank: int) -> str:
    return f"save-rank{rank}"
