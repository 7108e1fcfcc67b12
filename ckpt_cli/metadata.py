"""What a checkpoint says of itself: its meta file, or what lies beside the tensors in its model file."""

from __future__ import annotations

from typing import Any

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.layouts import read_json
from ckpt_cli.tensors import read_tensors

_MAX_LEVELS = 100


def read_metadata(checkpoint: Checkpoint | None, file: str | None) -> Any:
    """The metadata of a checkpoint, or of a file that is part of none. Raises CkptError where there is none."""
    if checkpoint is not None:
        for part in checkpoint.having("meta", "config"):
            try:
                return read_json(part.path)
            except CkptError as error:
                raise Damaged(error.message, path=part.path) from error
        for part in checkpoint.having("model"):
            return nested(read_tensors(part.path).values)
        raise CkptError(f"{checkpoint.ref} has neither a meta nor a model file")
    if file is None:
        raise CkptError("there is no file to read metadata from")
    return read_json(file) if file.endswith(".json") else nested(read_tensors(file).values)


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
