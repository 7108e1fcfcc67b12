"""What a trainer looks for in nanochat's directories: a source, the largest model, the last step, a step's whole files.

It does not know torch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from shlex import quote
from typing import Any

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.discover import MAX_DEPTH, discover
from ckpt_cli.errors import NOT_LOOKED_INTO, CkptError, Damaged, NotFound, counted
from ckpt_cli.integrity import Job, check_file
from ckpt_cli.query import listing
from ckpt_cli.root import settled_root
from ckpt_cli.saving import ASIDE, part_path
from ckpt_cli.selector import default_run
from ckpt_cli.settings import Settings, load
from ckpt_cli.small_files import read_json
from ckpt_cli.verify import REMARKS

_MODEL = re.compile(r"model_([0-9]+)\.pt")
_SHARD = re.compile(r"optim_([0-9]+)_rank(0|[1-9][0-9]*)\.pt")
_NO_DAMAGE = ("not-a-checkpoint", "runs-code", *NOT_LOOKED_INTO)
# More threads than these read a file no faster.
_LANES = 4
# How many of a run's steps or ranks a message names.
_NAMED = 6


class NoCheckpoint(NotFound, FileNotFoundError):
    """There is no such directory, run, step or file. It is a FileNotFoundError too, as nanochat's is."""


def find_largest_model(checkpoints_dir: str | os.PathLike[str]) -> str:
    """The tag, below `checkpoints_dir`, of the run that is meant when none is named.

    Of runs that hold a model with its meta, the largest `d<N>`; then of tags that begin so (`d24_jan29`); then the
    newest. nanochat takes every tag that begins with `d<N>` for one of that depth, in any order among equals, whether
    or not there is a model in it. Raises NoCheckpoint where no run has one.
    """
    directory = directory_at(checkpoints_dir)
    runs: dict[str, list[Checkpoint]] = {}
    for checkpoint in found_in(directory):
        whole = checkpoint.having("model") and checkpoint.having("meta")
        if whole and checkpoint.dir != directory:
            runs.setdefault(checkpoint.dir, []).append(checkpoint)
    if not runs:
        raise NoCheckpoint(f"no run in {directory} has a model with its meta", listing(directory))
    run, _ = default_run(list(runs.values()), lambda checkpoint: True)
    return os.path.relpath(run[0].dir, directory)


def find_last_step(checkpoint_dir: str | os.PathLike[str]) -> int:
    """The largest step that `checkpoint_dir` has a model of.

    Steps are compared as integers, and only names that `save_checkpoint` gives count: nanochat compared text for its
    first nine months (999999 above 1000000) and failed on `model_000200_backup.pt`. Raises NoCheckpoint for none.
    """
    directory = directory_at(checkpoint_dir)
    steps = _steps(directory)
    if not steps:
        raise NoCheckpoint(f"there is no model_<step>.pt in {directory}", listing(directory))
    return steps[-1]


def source_directory(source: str, tag: str | None) -> str:
    """The directory of a source: of several, the first that has the run, or any run where none is named.

    Raises CkptError for a source that is not known, NoCheckpoint where it has no directory.
    """
    settings = current_settings()
    names = [name for name, stands_for in settings.sources.items() if stands_for == source]
    if not names:
        known = ", ".join(dict.fromkeys(settings.sources.values()))
        raise CkptError(f"there is no source {source!a}", f"the sources are {known}; the settings can add to them")
    root = settled_root(None, os.environ, settings).path
    there = [path for name in names if os.path.isdir(path := os.path.join(root, name))]
    if not there:
        raise NoCheckpoint(f"there is no {' or '.join(names)} in {root}", listing(root))
    return next((path for path in there if _has_run(path, tag)), there[0])


def _has_run(directory: str, tag: str | None) -> bool:
    """Whether a source's directory has the run of this tag, or any with a model where none is named."""
    if tag is not None:
        return os.path.isdir(os.path.join(directory, tag))
    try:
        return bool(find_largest_model(directory))
    except NoCheckpoint:
        return False


def files_of(directory: str, step: int) -> tuple[str, str]:
    """The model and the meta of a step. Raises NoCheckpoint where one of them is not there, with what is."""
    directory_at(directory)
    paths = part_path(directory, "model", step), part_path(directory, "meta", step)
    steps = _steps(directory)
    if not os.path.lexists(paths[0]):
        if os.path.lexists(paths[0] + ASIDE):
            what = f"step {step} in {directory} was being replaced when that save was killed"
            raise NoCheckpoint(what, "the next save in the directory puts it back", path=paths[0])
        there = f"the steps there are {_some(steps)}" if steps else listing(directory)
        raise NoCheckpoint(f"there is no step {step} in {directory}", there, path=paths[0])
    if not os.path.lexists(paths[1]):
        whole = [s for s in steps if os.path.lexists(part_path(directory, "meta", s))]
        hint = f"the steps that have one are {_some(whole)}" if whole else None
        raise NoCheckpoint(f"step {step} in {directory} has a model and no meta: it is not whole", hint, path=paths[1])
    return paths


def shard_of(directory: str, step: int, rank: int, world: int) -> str:
    """The optimizer shard of a rank in a run of `world` ranks.

    `optim_<step>.pt`, as nanochat wrote it before there were shards, is that of a run of one. Raises NoCheckpoint for
    a shard that is not there, CkptError where a step has not as many as there are ranks.
    """
    if not 0 <= rank < world:
        raise CkptError(f"rank {rank} was given, and this run has {counted(world, 'rank')}")
    ranks = sorted(
        int(match[2])
        for name in os.listdir(directory)
        if (match := _SHARD.fullmatch(name)) and match[1] == f"{step:06d}"
    )
    if not ranks:
        whole = part_path(directory, "optim", step)
        if world == 1 and os.path.lexists(whole):
            return whole
        having = [s for s in _steps(directory) if _has_optimizer(directory, s)]
        hint = f"the steps that have one are {_some(having)}" if having else None
        raise NoCheckpoint(f"step {step} in {directory} has no optimizer for {world} ranks", hint)
    missing = [number for number in range(ranks[-1] + 1) if number not in ranks]
    if missing:
        what = f"step {step} in {directory} lacks the optimizer of rank {_some(missing)} of 0 to {ranks[-1]}"
        raise NoCheckpoint(what, f"`ckpt latest {quote(directory)} --resumable` finds one that is whole")
    if len(ranks) != world:
        said = counted(len(ranks), "rank")
        what = f"step {step} in {directory} was saved by {said}, and this run has {world}: the shards do not fit"
        raise CkptError(what, f"resume on {said}, or start with a new optimizer")
    return part_path(directory, "optim", step, rank)


def _has_optimizer(directory: str, step: int) -> bool:
    return any(os.path.lexists(part_path(directory, "optim", step, rank)) for rank in (None, 0))


def metadata_at(path: str) -> dict[str, Any]:
    """What a meta file says. Raises Damaged where it is no JSON, or not of an object."""
    try:
        meta = read_json(path)
    except CkptError as error:
        if error.kind in NOT_LOOKED_INTO:
            raise
        raise Damaged(
            error.message, f"`ckpt verify {quote(path)}` looks at all of it", path, kind="bad-meta"
        ) from error
    if not isinstance(meta, dict):
        raise Damaged(f"{path} holds a JSON {type(meta).__name__}, not an object", path=path, kind="bad-meta")
    return meta


def refuse_damaged(path: str) -> None:
    """Reads all of a file of tensors. Raises Damaged, or CkptError where it never was one, with its first fault."""
    checked = check_file(Job(path, "tensors", lanes=min(_LANES, os.cpu_count() or 1)))
    for problem in checked.problems:
        if problem.code not in REMARKS:
            error = CkptError if problem.code in _NO_DAMAGE else Damaged
            hint = f"`ckpt verify {quote(path)}` says all that is wrong with it"
            raise error(problem.detail, hint, path, kind=problem.code, record=problem.record)


def found_in(directory: str, depth: int = MAX_DEPTH) -> list[Checkpoint]:
    """nanochat's checkpoints in a directory, with the settings' names for sources."""
    sources = current_settings().sources
    return [c for c in discover(directory, sources=sources, depth=depth).checkpoints if c.layout == "nanochat"]


def current_settings() -> Settings:
    """What the user has settled for the current directory, and everywhere. Raises CkptError as `settings.load` does."""
    if sys.platform == "darwin":
        above = "~/Library/Application Support"
    else:
        above = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return load(".", os.path.join(os.path.expanduser(above), "ckpt"))


def directory_at(path: str | os.PathLike[str]) -> str:
    """Where a directory really is. Raises NoCheckpoint where there is none."""
    directory = os.path.realpath(os.path.expanduser(path))
    if os.path.isdir(directory):
        return directory
    above = os.path.dirname(directory)
    beside = sorted(name for name in os.listdir(above) if name[0] != ".") if os.path.isdir(above) else []
    raise NoCheckpoint(f"there is no directory {path}", f"in {above} there are {_some(beside)}" if beside else None)


def _steps(directory: str) -> list[int]:
    """The steps that have a model, in order; names of another width are another trainer's."""
    matches = (_MODEL.fullmatch(name) for name in os.listdir(directory))
    return sorted(int(match[1]) for match in matches if match and f"{int(match[1]):06d}" == match[1])


def _some(names: Sequence[object]) -> str:
    """The last of the names, as a message has them."""
    last = [str(name) for name in names[-_NAMED:]]
    return ("..., " if len(names) > _NAMED else "") + ", ".join(last)
