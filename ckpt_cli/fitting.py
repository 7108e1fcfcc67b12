"""Whether the optimizer of a checkpoint is that of its model: its groups and states against the model's parameters.

What a sharded optimizer keeps of a parameter on one rank differs by trainer: a part of its rows, or a stack of several
of its shape; nanochat's have both. Which parameter a number stands for is told only where every state has its shape.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.contents import as_one, optimizer_files, read_files
from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.optimizer import OptimizerState, optimizer_state
from ckpt_cli.origin import unwrapped
from ckpt_cli.param_groups import Draft, groups_of
from ckpt_cli.tensor_file import TensorFile, TensorInfo

Shape = tuple[int, ...]
# Trainers that hand every parameter of the model to their optimizers, and the one that shards them by itself.
_WHOLE = ("nanochat", "nano-gpt", "nanoGPT")
_SHARDING = "nanochat"
# States that have their parameter's shape.
_ALIKE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_UNDECAYED = re.compile(r"(?:.*\.)?bias|(?:.*[._])?(?:ln|norm|layernorm)[a-z0-9_]*\.(?:weight|scale)", re.IGNORECASE)


class Shard(NamedTuple):
    """The optimizer in one file, or in the indexes that together describe one: what it is, and its groups."""

    path: str
    rank: int | None
    state: OptimizerState
    groups: tuple[Draft, ...]


def shards(checkpoint: Checkpoint | None, file: str | None) -> list[Shard]:
    """The optimizer of each rank, wherever the trainer keeps it; none where it keeps none.

    Raises Damaged for a rank that is missing or a file that cannot be read, CkptError for one that was written for an
    optimizer and holds none.
    """
    if checkpoint is None:
        return [shard for shard in (_shard([file], None),) if shard] if file else []
    if checkpoint.ranks and checkpoint.ranks.missing:
        missing = checkpoint.ranks.missing
        total = max(*checkpoint.ranks.present, *missing)
        which = ", ".join(map(str, missing[:8]))
        raise Damaged(f"optimizer rank {which} of 0 to {total} is missing", path=checkpoint.dir, kind="missing-part")
    for role, sets in optimizer_files(checkpoint):
        found = [(paths, _shard(paths, rank)) for paths, rank in sets]
        for paths, shard in found:
            if shard is None and role == "optimizer":
                raise CkptError(f"{paths[0]} holds no optimizer that can be told", path=paths[0])
        if any(shard for _, shard in found):
            return [shard for _, shard in found if shard]
    return []


def _shard(paths: Sequence[str], rank: int | None) -> Shard | None:
    """The optimizer in files that are read together; None where they hold none."""
    whole = as_one(read_files(paths))
    state = optimizer_state(whole, rank)
    return state and Shard(paths[0], rank, state, tuple(groups_of(whole)))


def fit(found: Sequence[Shard], model: Mapping[str, Shape], checkpoint: Checkpoint | None) -> str:
    """Holds the optimizer against the shapes of the model's parameters; returns what can be said of it.

    Raises Damaged, with the file and the state, where it is another model's.
    """
    layout = checkpoint.layout if checkpoint else ""
    beside = _adapter(checkpoint)
    for shard in found:
        name = os.path.basename(shard.path)
        count = sum(len(group.params) for group in shard.groups if group.number is not None)
        known = len(model) + len(beside)
        if count > known or (layout in _WHOLE and count != len(model)):
            what = f"{name}: its groups name {counted(count, 'parameter')}, the model has {len(model)}"
            raise Damaged(what, path=shard.path, kind="optimizer")
        for param, state, tensor in _states(shard):
            own = model.get(unwrapped(param))
            shapes = [own] if own is not None else [*model.values(), *beside]
            if not any(_is_part(tensor.shape, shape, layout == _SHARDING) for shape in shapes):
                whose = f"parameter {param}" if own is None else f"{param}, which has the shape {list(own)}"
                what = f"{name}: {tensor.name} has the shape {list(tensor.shape)}: {state} of {whose}"
                none = "" if own else ", and no parameter of the model has that"
                raise Damaged(f"{what}{none}", path=shard.path, kind="optimizer")
    tensors = sum(shard.state.state_tensors for shard in found)
    ranks = counted(len(found), "file" if len(found) == 1 and found[0].rank is None else "rank")
    of = " and ".join(kinds(found)) or "an optimizer"
    return f"{ranks}, {counted(tensors, 'state tensor')} of {of} fit the parameters"


def kinds(found: Sequence[Shard]) -> list[str]:
    """The optimizers' names, as far as they can be told."""
    named = [group.kind for shard in found for group in shard.state.groups if group.kind]
    return list(dict.fromkeys(named))


def _states(shard: Shard) -> Iterator[tuple[str, str, TensorInfo]]:
    """(parameter, name, tensor) of each state that has its parameter's shape."""
    for group in shard.groups:
        for param, entry in group.entries.items():
            for state, items in entry.items():
                yield from ((param, state, t) for t in items if isinstance(t, TensorInfo) and state in _ALIKE)


def _adapter(checkpoint: Checkpoint | None) -> list[Shape]:
    """The shapes of an adapter's weights: they are what was trained."""
    parts = checkpoint.having("adapter") if checkpoint else []
    files: list[TensorFile] = [file for part in parts for file in read_files([part.path])]
    return [tensor.shape for file in files for tensor in file.tensors]


def _is_part(state: Shape, whole: Shape, sharded: bool) -> bool:
    """Whether a state may be one of a parameter's: of its shape; of a sharding trainer also of some of its rows, or
    of a stack of its kind."""
    if state == whole:
        return True
    if not sharded or not state:
        return False
    if len(state) == len(whole) + 1:
        return state[1:] == whole
    return len(state) == len(whole) and state[1:] == whole[1:] and state[0] > 0 and whole[0] % state[0] == 0


def assignment(groups: Sequence[Draft], model: Mapping[str, Shape]) -> dict[str, str] | None:
    """Which of the model's parameters each of the optimizer's stands for; None where that cannot be told.

    By name where the optimizer keeps names. Else by number: `model` in the order in which the trainer's module has
    them, all in one group or those that decay before the others, as nanoGPT and transformers divide them. An order
    counts only if every state has its parameter's shape.
    """
    keys = [[str(param) for param in group.params] for group in groups]
    flat = [key for group in keys for key in group]
    if flat and all(unwrapped(key) in model for key in flat):
        return {key: unwrapped(key) for key in flat}
    shapes = {
        param: tensor.shape
        for group in groups
        for param, entry in group.entries.items()
        for state, items in entry.items()
        for tensor in items
        if isinstance(tensor, TensorInfo) and state in _ALIKE
    }
    for divided in _divisions(model, len(groups)):
        if [len(names) for names in divided] == [len(group) for group in keys]:
            named = dict(zip(flat, (name for names in divided for name in names)))
            if all(shapes.get(key, model[name]) == model[name] for key, name in named.items()):
                return named
    return None


def _divisions(model: Mapping[str, Shape], count: int) -> Iterator[list[list[str]]]:
    """The ways in which trainers divide a model's parameters among `count` groups."""
    names = list(model)
    if count == 1:
        yield [names]
    if count != 2:
        return
    for decayed in (
        {name for name in names if len(model[name]) > 1},
        {name for name in names if not _UNDECAYED.fullmatch(name)},
    ):
        first = [name for name in names if name in decayed]
        second = [name for name in names if name not in decayed]
        yield [first, second]
        yield [second, first]


def paths_of(checkpoint: Checkpoint | None) -> list[str]:
    """The files that hold the optimizer, and nothing of the model."""
    return [part.path for part in checkpoint.having("optimizer", "recipe")] if checkpoint else []
