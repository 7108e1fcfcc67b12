"""What a checkpoint says of itself: its meta file, or what lies beside the tensors in its model file."""

from __future__ import annotations

import os
import re
from typing import Any

from ckpt_cli.checkpoint import Checkpoint, Part, Role
from ckpt_cli.contents import paths_of, read_files
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import Files
from ckpt_cli.leaves import ARRANGED, all_values
from ckpt_cli.scalars import Numbers
from ckpt_cli.small_files import read_json
from ckpt_cli.tensor_file import TensorFile

# Dots in a name: one that has more is kept as it is.
_MAX_LEVELS = 100
# Scalars at the top of a file that are looked at: trainers keep a loss or a step there.
_MAX_SCALARS = 16
# Without any of these, what lies there is all that is left of a checkpoint.
_MAIN: tuple[Role, ...] = ("model", "index", "adapter", "meta", "config")
_CONFIGS = ("config.json", "params.json")
# Where an optimizer lies among the names of a file.
_GROUPS = re.compile(r"(?:^|(?<=\.))param_groups\.")


def read_metadata(checkpoint: Checkpoint | None, file: str | None) -> Any:
    """The metadata of a checkpoint, or of a file that is part of none. Raises CkptError where there is none.

    What a meta file holds, with each configuration beside it under the name of its file (`config`, `adapter_config`);
    without a meta file, the configuration; without that, what the model file says, and where it says nothing, the
    configuration that lies beside it and belongs to no step. What a recipe state counts is added as `recipe`. A file of
    these that was named stands for itself.
    """
    if checkpoint is not None:
        found = _of_checkpoint(checkpoint, file)
        if isinstance(found, dict) and checkpoint.having(*_MAIN) and not (file or "").endswith(".json"):
            for part in checkpoint.having("recipe"):
                found.setdefault("recipe", _counts(part.path))
        return found
    if file is None:
        raise CkptError("there is no file to read metadata from")
    return read_json(file) if file.endswith(".json") else told(read_files([file])[0])


def _of_checkpoint(checkpoint: Checkpoint, file: str | None) -> Any:
    metas, configs = checkpoint.having("meta"), checkpoint.having("config")
    named = [part for part in (*metas, *configs) if part.path == file]
    for part in named or metas or configs:
        found = _read(part)
        if isinstance(found, dict) and part in metas and not named:
            for config in configs:
                found.setdefault(os.path.splitext(os.path.basename(config.path))[0], _read(config))
        return found
    if checkpoint.having("model", "index"):
        return told(read_files(paths_of(None, checkpoint, "model"))[0]) or _beside(checkpoint)
    for part in checkpoint.having("adapter", "recipe", "optimizer"):
        return told(read_files([part.path])[0])
    raise CkptError(f"{checkpoint.ref} has neither a meta nor a model file")


def _beside(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration that the steps of a run share, as torchtune's do that lie in one folder: no part of any."""
    names = [name for name in _CONFIGS if os.path.isfile(os.path.join(checkpoint.dir, name))]
    return {os.path.splitext(name)[0]: read_json(os.path.join(checkpoint.dir, name)) for name in names}


def _counts(path: str) -> dict[str, Any]:
    """The seed, epochs and steps that stand at the top of a recipe state, beside the optimizer."""
    values = read_files([path])[0].values
    return {name: value for name, value in values.items() if "." not in name and not isinstance(value, (dict, list))}


def _read(part: Part) -> Any:
    try:
        return read_json(part.path)
    except CkptError as error:
        raise Damaged(error.message, path=part.path) from error


def told(file: TensorFile) -> dict[str, Any]:
    """What a file says of itself beside its tensors, as an object of objects.

    Less what an optimizer is set to, which is told elsewhere; with the scalars that lie at the top as tensors
    (nanoGPT's `best_val_loss`).
    """
    found = all_values(file, ARRANGED)
    optimizers = {name[: match.start()] for name in found if (match := _GROUPS.search(name))}
    hidden = tuple(f"{place}{inner}." for place in optimizers for inner in ("param_groups", "state"))
    values = {name: value for name, value in found.items() if not name.startswith(hidden)}
    scalars = [tensor for tensor in file.tensors if not tensor.shape and "." not in tensor.name][:_MAX_SCALARS]
    with Files() as files:
        numbers = Numbers(files)
        values |= {tensor.name: number for tensor in scalars if (number := numbers.read(tensor)) is not None}
    return nested(values)


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted name as an object of objects, where the names allow it."""
    root: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".") if name.count(".") < _MAX_LEVELS else [name]
        place: Any = root
        for piece in path:
            place = place.setdefault(piece, {}) if isinstance(place, dict) else None
            if not isinstance(place, dict):
                break
        if isinstance(place, dict) and last not in place:
            place[last] = value
        else:
            root[name] = value
    return root


def look_up(value: Any, key: str) -> Any:
    """The value at a dotted key; a key that itself holds dots counts. Raises CkptError where it is not there."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        first, _, rest = key.partition(".")
        if rest and first in value:
            return look_up(value[first], rest)
        there = ", ".join(list(value)[:12])
        raise CkptError(f"there is no key {key!a}", f"the keys there are {there}" if there else None)
    if isinstance(value, list) and key.partition(".")[0].isdecimal() and int(key.partition(".")[0]) < len(value):
        first, _, rest = key.partition(".")
        return look_up(value[int(first)], rest) if rest else value[int(first)]
    raise CkptError(f"there is no key {key!a}")
