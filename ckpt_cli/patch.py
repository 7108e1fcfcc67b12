"""Typed edits of a checkpoint's metadata, and the difference they make. Nothing is written here.

A document is the file that holds the configuration: nanochat's meta, a `config.json`, a `params.json`, or the pickle in
a `.pt` where the trainer keeps it there.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_cli import jsontext, pickle_edit, torch_patch
from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.errors import CkptError
from ckpt_cli.formats import FileSource
from ckpt_cli.leaves import all_values
from ckpt_cli.metadata import nested
from ckpt_cli.migrations import MISSING
from ckpt_cli.small_files import check_weight
from ckpt_cli.tensor_file import TensorFile

# The file of a checkpoint that says what its model is: by layout, else the first of these there is.
_CONFIGS = ("config.json", "params.json")
_KINDS = {"config.json": "hf", "params.json": "meta"}
# Of words that are one edit away from a key that is there.
_CLOSE = 0.65


class Document(NamedTuple):
    """The metadata of one file. `data` are its bytes, or those of the pickle in it; `place` is where in `value` the
    model's configuration is, `kind` who wrote that (see `migrations.Subject`), empty where nobody knows. `file` is what
    else the file holds, where that is read with it."""

    path: str
    pickled: bool
    data: bytes
    value: Any
    kind: str
    place: tuple[str, ...]
    file: TensorFile | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's configuration; empty where there is none."""
        found = self.value
        for key in self.place:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        """What messages call it."""
        return os.path.basename(self.path)


class Change(NamedTuple):
    """One key, by its path, and its value before and after: MISSING where there is none."""

    path: tuple[str, ...]
    old: Any
    new: Any
    reason: str

    @property
    def key(self) -> str:
        """The path as a user writes it."""
        return ".".join(self.path)


def document_of(checkpoint: Checkpoint | None, file: str | None) -> Document | None:
    """The document of a checkpoint, or the one that was named; None for a checkpoint that has none of its own.

    Raises CkptError for a file that cannot be edited.
    """
    if checkpoint is None:
        return None if file is None else _read_document(file, "")
    parts = {part.path for part in checkpoint.having("meta", "config")}
    if file in parts:
        return _read_document(str(file), checkpoint.layout)
    if checkpoint.layout == "nanochat":
        metas = checkpoint.having("meta")
        if not metas:
            raise CkptError(f"{checkpoint.ref} has no meta file to patch")
        return _read_document(metas[0].path, checkpoint.layout)
    for name in _CONFIGS:
        if os.path.join(checkpoint.dir, name) in parts:
            return _read_document(os.path.join(checkpoint.dir, name), checkpoint.layout)
    models = checkpoint.having("model")
    if len(models) != 1 or checkpoint.having("index") or models[0].path.endswith(".safetensors"):
        return None
    return _read_document(models[0].path, checkpoint.layout)


def _read_document(path: str, layout: str) -> Document:
    """The document in a file. Raises CkptError for one that is neither JSON nor a torch file as they are today."""
    name = os.path.basename(path)
    if name.endswith(".json"):
        with FileSource(path) as source:
            if source.size > jsontext.MAX_BYTES:
                raise CkptError(f"{path} is too large for metadata: {source.size} bytes", path=path)
            data = source.read_at(0, source.size)
        check_weight(data, path)
        value = jsontext.read(data, path).value
        if not isinstance(value, dict):
            raise CkptError(f"{path} holds a JSON {type(value).__name__}, not an object", path=path)
        inner = isinstance(value.get("model_config"), dict)
        kind = "nanochat" if layout == "nanochat" or inner else _KINDS.get(name, "")
        return Document(path, False, data, value, kind, ("model_config",) if kind == "nanochat" else ())
    opened = torch_patch.opened(path)
    value = nested(all_values(opened.file))
    kind, place = _kept_inside(value, {tensor.name.partition(".")[0] for tensor in opened.file.tensors})
    return Document(path, True, opened.pickle, value, kind, place, opened.file)


def _kept_inside(value: Mapping[str, Any], tensors: set[str]) -> tuple[str, tuple[str, ...]]:
    """Which of the trainers that keep the configuration beside the tensors wrote a file, and under which key."""
    if isinstance(value.get("model_args"), dict) and "model" in tensors:
        return "nanoGPT", ("model_args",)
    config = value.get("config")
    if isinstance(config, dict) and "n_embd" in config:
        if "<class>" in config and "model" in tensors:
            return "build-nanogpt", ("config",)
        if "model_state_dict" in tensors:
            return "nano-gpt", ("config",)
    return "", ()


def apply(document: Document, changes: Sequence[Change]) -> Document:
    """The document with the changes made. Raises CkptError where one cannot be, or where it does not read back."""
    data, name = document.data, document.name
    if document.pickled:
        for change in changes:
            if change.new is MISSING:
                data = pickle_edit.without(data, change.path, name)
            else:
                data = pickle_edit.changed(data, change.path, change.new, name)
    else:
        text = jsontext.read(data, name)
        for change in changes:
            if change.new is MISSING:
                text = jsontext.without(text, change.path, name)
            else:
                text = jsontext.changed(text, change.path, change.new, name)
        data = text.bytes
    return document._replace(data=data, value=_edited(document.value, changes))


def _edited(value: Any, changes: Sequence[Change]) -> Any:
    """A copy of a value with the changes made, as far as they reach."""
    for change in changes:
        value = _with(value, change.path, change.new)
    return value


def _with(value: Any, path: Sequence[str], new: Any) -> Any:
    """A copy with another value at the path, or, MISSING, with none there."""
    first, rest = path[0], path[1:]
    if isinstance(value, list):
        at = int(first)
        inner = [*value[:at], *([] if new is MISSING and not rest else [_with(value[at], rest, new) if rest else new])]
        return [*inner, *value[at + 1 :]]
    if not rest and new is MISSING:
        return {key: item for key, item in value.items() if key != first}
    return {**value, first: _with(value.get(first, {}), rest, new) if rest else new}


def located(document: Document, dotted: str) -> tuple[tuple[str, ...], Any]:
    """The path that a dotted key means, and what is there: MISSING for a new key of an object that is there.

    A key that itself holds dots counts before one that is nested. Raises CkptError where nothing is there to hold it.
    """
    path: list[str] = []
    value, rest = document.value, dotted
    while True:
        if isinstance(value, dict):
            if rest in value:
                return (*path, rest), value[rest]
            first, dot, after = rest.partition(".")
            if not dot or first not in value:
                if dot:
                    raise CkptError(f"{document.name} has no key {'.'.join((*path, first))!a}", _similar(first, value))
                return (*path, rest), MISSING
        elif isinstance(value, list):
            first, dot, after = rest.partition(".")
            if not first.isdecimal() or len(first) > 9 or int(first) >= len(value):
                raise CkptError(f"{document.name}: {'.'.join(path)} is a list of {len(value)}, without {first!a}")
            first = str(int(first))
            if not dot:
                return (*path, first), value[int(first)]
        else:
            raise CkptError(f"{document.name}: {'.'.join(path)} is {kind_of(value)}, and holds no keys")
        path.append(first)
        value = value[int(first)] if isinstance(value, list) else value[first]
        rest = after


def misfit(old: Any, new: Any) -> str | None:
    """Why a value should not take the place of another: it is of another kind."""
    if old is MISSING or new is MISSING or old is None:
        return None
    if _is_number(old) and _is_number(new) and (isinstance(old, float) or isinstance(new, int)):
        return None
    return None if kind_of(old) == kind_of(new) else f"it is {kind_of(old)}, not {kind_of(new)}"


def kept_float(document: Document, old: Any, new: Any) -> Any:
    """The new value, as a float where it is a whole number and a pickle has a float in its place."""
    return float(new) if document.pickled and type(old) is float and type(new) is int else new


def mistyped(document: Document, path: Sequence[str]) -> str | None:
    """The key that is there and that a new one is nearly, where it was perhaps meant."""
    holder = document.value
    for key in path[:-1]:
        holder = holder[int(key)] if isinstance(holder, list) else holder[key]
    near = difflib.get_close_matches(path[-1], list(holder) if isinstance(holder, dict) else (), 1, _CLOSE)
    return near[0] if near else None


def kind_of(value: Any) -> str:
    """What JSON calls it."""
    if isinstance(value, jsontext.Digits) or _is_number(value):
        return "a number" if isinstance(value, float) else "a whole number"
    names = {bool: "true or false", str: "text", dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), "nothing")


def difference(before: Document, after: Document) -> list[str]:
    """A unified diff of the file, line by line; of a pickle, and of a file of one line, of what it says as JSON."""
    if before.pickled or b"\n" not in before.data.strip():
        texts = [_shown(document.value, before.pickled) for document in (before, after)]
    else:
        texts = [document.data.decode("utf-8", "replace") for document in (before, after)]
    old, new = (text.splitlines() for text in texts)
    return list(difflib.unified_diff(old, new, before.path, after.path, lineterm=""))


def _shown(value: Any, pickled: bool) -> str:
    """As JSON; of a file that holds an optimizer too, without what that is made of."""
    if pickled and isinstance(value, dict):
        value = {key: item for key, item in value.items() if not key.startswith("optim")}
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def told(value: Any) -> str:
    """A value as a table shows it."""
    return "" if value is MISSING else json.dumps(value, ensure_ascii=False, default=str)


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON: 1, 1.0 and true differ, NaN equals itself."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _similar(key: str, value: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, list(value), 1, 0.5)
    return f"did you mean {near[0]}" if near else f"the keys there are {', '.join(list(value)[:12])}"
