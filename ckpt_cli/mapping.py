"""Files of tensors -> what a map is told of them -> the plan it makes: weights under another implementation's names.

What is read besides headers is little: the configuration that lies with the weights, and bytes only to tell whether a
head is the embedding, or a vector of scalars does nothing.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.difference import equal, paired
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import Files
from ckpt_cli.items import Mapped
from ckpt_cli.maps import Source, carried, naming_of, split
from ckpt_cli.origin import header_of, unwrapped
from ckpt_cli.provenance import CONFIGS, META
from ckpt_cli.small_files import read_json
from ckpt_cli.tensor_file import TensorFile, TensorInfo
from ckpt_cli.tensors import blocks, checked_blocks, readable, unpacked

_CODES = {"float64": "d", "float32": "f", "float16": "e"}
# Of a vector of scalars, one a layer.
_MOST_NUMBERS = 4096
# Of a value in a message.
_MOST_SHOWN = 60
# What two configurations of one model cannot say differently.
_DECIDING = (
    "model_type", "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads",
    "dim", "n_heads", "n_kv_heads", "n_head", "n_kv_head", "r", "lora_alpha",
)  # fmt: skip
_OWN = {"config.json": "config", "params.json": "params", "adapter_config.json": "adapter"}
_REPOSITORY = "original_repo_id.json"
# By which keys a file that --config names is known.
_GIVEN = {
    "config": ("model_type", "num_attention_heads", "hidden_size"),
    "params": ("dim", "n_heads"),
    "adapter": ("lora_alpha", "r", "peft_type"),
    "meta": ("model_config",),
}


def plan(files: Sequence[TensorFile], checkpoint: Checkpoint | None, target: str, config_file: str | None) -> Mapped:
    """What the state dict that `files` hold is in the naming of `target`: hf, torchtune or meta.

    `config_file` names a file that supplies what the source does not say of itself. Raises CkptError for a source
    whose naming is not known, for what no map expresses, and for a configuration that is not there.
    """
    files, twins = _of_one_adapter(files, target)
    named, values = _state_of(files)
    path = checkpoint.ref if checkpoint else files[0].path
    naming, prefix = naming_of(list(named))
    tensors, beside = split(path, named, prefix)
    with Files() as opened:
        told, notes = _configuration(files, checkpoint, values, config_file)
        resolved = {name: _resolved(opened, tensor) for name, tensor in tensors.items()}
        source = Source(
            path, naming, prefix, resolved, beside, values, **told,
            same=partial(_same, opened), numbers=partial(_numbers, opened),
        )  # fmt: skip
        mapped = carried(source, target)
    left = tuple((name, "it is no weight of the model") for name in beside)
    dropped = (*mapped.dropped, *left, *twins)
    return mapped._replace(dropped=dropped, notes=(*notes, *mapped.notes))


def _of_one_adapter(
    files: Sequence[TensorFile], target: str
) -> tuple[Sequence[TensorFile], tuple[tuple[str, str], ...]]:
    """torchtune writes an adapter twice, under its own names and PEFT's: the files of those that are asked for, and
    (name, reason) of the others' tensors."""
    namings = [naming_of([tensor.name for tensor in file.tensors])[0] for file in files]
    if {"adapter", "peft"} - set(namings):
        return files, ()
    other = "adapter" if target == "hf" else "peft"
    twins = [tensor.name for file, naming in zip(files, namings) if naming == other for tensor in file.tensors]
    kept = [file for file, naming in zip(files, namings) if naming != other]
    return kept, tuple((name, "the same adapter is there under other names") for name in twins)


def _state_of(files: Sequence[TensorFile]) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """The tensors of all files by name, less what torch.compile put into it, and their values. A name that a header
    tells to be an alias is there as a view of what it is one of.

    Raises CkptError where two would have one name.
    """
    named: dict[str, TensorInfo] = {}
    values: dict[str, Any] = {}
    for file in files:
        others = set(named)
        header = header_of(file)
        for tensor in (*file.tensors, *(alias.tensor for alias in (header.aliases if header else ()))):
            name = unwrapped(tensor.name)
            if name in named and name not in others:
                raise CkptError(f"{file.path}: two of its tensors would be called {name!a}")
            if name in others:
                what = f"{file.path}: tensor {name!a} is in another file of the model too"
                raise CkptError(f"{what}, and parts of one tensor are not put together")
            named[name] = tensor
        values |= file.values
    return named, values


def _same(files: Files, one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors hold the same bytes; they are read until they differ."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one._replace(name="") == other._replace(name=""):
        return True
    pairs = paired(blocks(files, one), blocks(files, other), one.itemsize, other.itemsize)
    return all(equal(mine, theirs) for mine, theirs in pairs)


def _numbers(files: Files, tensor: TensorInfo) -> list[float]:
    """The elements of a short vector of floats. Raises CkptError for any other tensor."""
    if tensor.elements > _MOST_NUMBERS or tensor.dtype not in (*_CODES, "bfloat16"):
        raise CkptError(f"tensor {tensor.name!a} is no short vector of floats")
    data = b"".join(checked_blocks(files, tensor, set()))
    if tensor.dtype == "bfloat16":
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    return list(struct.unpack(f"<{tensor.elements}{_CODES.get(tensor.dtype, 'f')}", data))


def _resolved(files: Files, tensor: TensorInfo) -> TensorInfo:
    """The tensor as strided views alone, which can be cut and turned: what lies in an archive of its own as a view of
    that. Raises CkptError for what is no strided tensor."""
    reason = "it is quantized" if tensor.form == "quantized" else readable(tensor)
    if reason:
        raise CkptError(f"tensor {tensor.name!a} cannot be converted: {reason}")
    if tensor.form != "chunked":
        return unpacked(files, tensor)
    pieces = tuple((at, unpacked(files, piece)) for at, piece in tensor.pieces)
    if len(pieces) == 1 and pieces[0][1].shape == tensor.shape:
        return pieces[0][1]._replace(name=tensor.name)
    return tensor._replace(pieces=pieces)


def _configuration(
    files: Sequence[TensorFile], checkpoint: Checkpoint | None, values: dict[str, Any], config_file: str | None
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """What is known by the kind of file that says it: config, params, adapter, meta; and what --config gave. And what
    is to be said of where it came from.

    Each kind is what belongs to the checkpoint, and what the given file adds to it where it is of this kind; where
    neither has it, what lies beside a file that is part of no checkpoint. Values that a conversion to safetensors noted
    in a header are put back among `values`. Raises CkptError for a given file that
    contradicts the source, or cannot be read; Damaged for a configuration of the source that cannot.
    """
    known: dict[str, dict[str, Any]] = {kind: {} for kind in (*_GIVEN, "given")}
    values |= _noted(values, "ckpt.values")
    known["meta"] = _noted(values, META)
    for name, key in CONFIGS.items():
        known[_OWN[name]] = _noted(values, key)
    for part in checkpoint.having("config", "meta") if checkpoint else ():
        name = os.path.basename(part.path)
        kind = "meta" if part.role == "meta" and name.startswith("meta") else _OWN.get(name)
        if kind:
            known[kind] = object_at(part.path, own=True)
        elif name == _REPOSITORY and "repo_id" in (found := object_at(part.path, own=True)):
            known["adapter"].setdefault("base_model_name_or_path", found["repo_id"])
    notes: list[str] = []
    if config_file:
        given = known["given"] = object_at(config_file, own=False)
        kinds = [kind for kind, keys in _GIVEN.items() if any(key in given for key in keys)]
        # One that is of no kind by its keys adds them to whatever is there.
        for kind in kinds or [kind for kind in ("config", "params") if known[kind]]:
            others = differing(known[kind], given)
            known[kind] = together(known[kind], given, config_file)
            notes += [f"{key} is {_shown(mine)} as the source says, not {_shown(theirs)} as {config_file} does"
                      for key, mine, theirs in others]  # fmt: skip
    folder = os.path.dirname(files[0].path)
    for name, kind in _OWN.items():
        path = os.path.join(folder, name)
        if not (known["config"] or known["params"] if kind != "adapter" else known[kind]) and os.path.isfile(path):
            known[kind] = object_at(path, own=True)
            notes.append(f"{path} is taken for its configuration")
    return known, tuple(notes)


def differing(own: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, own value, given value) of what two configurations both say, and not the same."""
    found: list[tuple[str, Any, Any]] = []
    for key in own:
        mine, theirs = own[key], given.get(key)
        if key == "model_config" and isinstance(mine, dict) and isinstance(theirs, dict):
            found += differing(mine, theirs)
        elif key in given and mine != theirs:
            found.append((key, mine, theirs))
    return found


def together(own: Mapping[str, Any], given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What a source says of itself, and what the file at `path` adds. Raises CkptError where they contradict in what
    decides; of all else that is `differing`, the source's own stays."""
    for key, mine, theirs in differing(own, given):
        if key in _DECIDING:
            raise CkptError(f"the source says {key} {mine!a}, {path} says {theirs!a}")
    both = {**own, **{key: value for key, value in given.items() if key not in own}}
    settings = own.get("model_config"), given.get("model_config")
    if all(isinstance(each, dict) for each in settings):
        both["model_config"] = together(*cast("tuple[dict[str, Any], dict[str, Any]]", settings), path)
    return both


def _shown(value: Any) -> str:
    said = ascii(value)
    return said if len(said) <= _MOST_SHOWN else f"{said[:_MOST_SHOWN]}..."


def object_at(path: str, own: bool) -> dict[str, Any]:
    """The object of a file of JSON. Raises CkptError where it has none; Damaged if the file is the source's `own`."""
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise CkptError(f"{path} is no configuration: it holds no object")
    except CkptError as error:
        if own:
            raise Damaged(error.message, path=path) from error
        raise
    return found


def _noted(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object that the header of a safetensors file holds as text."""
    return object_of(values.get(f"__metadata__.{name}"))


def object_of(text: Any) -> dict[str, Any]:
    """The object that a text of JSON holds; an empty one where it holds none, or there is no text."""
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
