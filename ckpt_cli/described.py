"""A checkpoint, or a file that is part of none -> what a model family is told of it. No model is built here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckpt_cli.checkpoint import Checkpoint, newest
from ckpt_cli.contents import paths_of
from ckpt_cli.discover import SOURCES, discover
from ckpt_cli.errors import CkptError
from ckpt_cli.families import Assumption, Described
from ckpt_cli.formats import dcp
from ckpt_cli.items import Mapped
from ckpt_cli.mapping import differing, object_at, object_of, plan, together
from ckpt_cli.maps import naming_of
from ckpt_cli.metadata import nested, read_metadata
from ckpt_cli.origin import Origin, gather
from ckpt_cli.provenance import CONFIGS, META
from ckpt_cli.small_files import read_json
from ckpt_cli.tensor_file import TensorFile, TensorInfo

_BASE = "base"
# The keys under which trainers keep a state dict that has company, and the wrapper of several devices.
_HELD = ("model_state_dict", "model", "state_dict", "module")
_WRAPPER = "module."
_DICTS = ("dict", "ordered", "object")
# Where a trainer writes the model's configuration: nanochat, nanoGPT, nano-gpt and the Trainer, Meta, Lightning.
_CONFIGS = ("model_config", "model_args", "config", "params", "hyper_parameters")
# What it is called where it is a file of its own.
_FILES = ("config.json", "params.json")
# Metadata with one of these is itself a configuration.
_TELLING = ("model_type", "n_layer", "n_layers", "num_hidden_layers", "hidden_size")
# Names of what lies beside the model in a file of both.
_BESIDE = re.compile(r"(?:optim|lr_sched|sched|scaler|rng|random|dataloader)[a-z_]*\..*|state\.[0-9]+\..*")


def model_paths(checkpoint: Checkpoint | None, file: str | None) -> list[str]:
    """The files that hold the model's weights: all of a checkpoint's, whichever part of it was named.

    An export beside a model, or a file that is part of no checkpoint, stands for itself. Raises CkptError where the
    checkpoint has no model.
    """
    if checkpoint is None or any(part.path == file for part in checkpoint.having("export")):
        return paths_of(file, None, None)
    return paths_of(None, checkpoint, None)


def describe(
    files: Sequence[TensorFile],
    checkpoint: Checkpoint | None,
    file: str | None,
    base: Mapping[str, Any] | None = None,
    given: Mapping[str, str] | None = None,
    config_file: str | None = None,
) -> Described:
    """What `files`, the model's, and the metadata beside them say of a model; what they do not say, `config_file` does:
    a configuration, or metadata that has one.

    Raises CkptError where they hold no tensors, or two of one name, and for a `config_file` that contradicts them or
    cannot be read, Damaged where the metadata cannot be read.
    """
    origin = gather(files)
    meta = _metadata(origin, checkpoint, file)
    found = configuration(meta) or _noted(origin)
    others: list[tuple[str, Any, Any]] = []
    if config_file:
        supplied = object_at(config_file, own=False)
        inner = configuration(supplied)
        others = differing(found, inner or supplied)
        found = together(found, inner or supplied, config_file)
        meta = meta if inner is supplied or not inner else {**supplied, **meta}
    found = found or _beside(files[0].path)
    path = checkpoint.ref if checkpoint else origin.label
    layout, source = (checkpoint.layout, checkpoint.source) if checkpoint else ("", None)
    tensors = _of_model(origin, files[0].container == dcp.NAME)
    own = meta if source == _BASE else None
    return Described(
        path, layout, source, tensors, found, meta, own if base is None else base, given or {},
        lambda: _mapped(files, checkpoint, config_file),
        tuple(Assumption(key, mine, f"the source says so; {config_file} says {told!a}") for key, mine, told in others),
    )  # fmt: skip


def configuration(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's configuration among metadata: under the key that its trainer has for it, or all of it."""
    for key in _CONFIGS:
        found = meta.get(key)
        if isinstance(found, dict) and found:
            return found
    return meta if any(key in meta for key in _TELLING) else {}


def _mapped(files: Sequence[TensorFile], checkpoint: Checkpoint | None, config_file: str | None) -> Mapped:
    """The weights under the names of transformers."""
    try:
        return plan(files, checkpoint, "hf", config_file)
    except CkptError as error:
        error.hint = error.hint or "--model package.module:Class builds a class of your own"
        raise


def _of_model(origin: Origin, nested_all: bool) -> dict[str, TensorInfo]:
    """The model's tensors under its own names, in the order of the file, those that were written once included.

    `nested_all` is of a format whose names do not say what is a key and what a dot. Raises CkptError where it has none.
    """
    named = dict(origin.tensors) | {alias.name: alias.tensor for alias in origin.aliases}
    ordered = {name: named[name] for name in dict.fromkeys((*origin.order, *named))}
    naming, prefix = naming_of(list(ordered))
    if not naming:
        held = (f"{key}." for key in _HELD if nested_all or origin.kinds.get(key) in _DICTS)
        prefix = next((each for each in held if any(name.startswith(each) for name in ordered)), "")
    inner = {
        name.removeprefix(prefix): tensor
        for name, tensor in ordered.items()
        if name.startswith(prefix) and (prefix or not _BESIDE.fullmatch(name))
    }
    if not inner:
        raise CkptError(f"{origin.label} holds no weights of a model")
    if all(name.startswith(_WRAPPER) for name in inner):
        return {name.removeprefix(_WRAPPER): tensor for name, tensor in inner.items()}
    return inner


def _metadata(origin: Origin, checkpoint: Checkpoint | None, file: str | None) -> dict[str, Any]:
    """All there is: the meta file, what the model file says, what a conversion noted in its header."""
    found = read_metadata(checkpoint, None if checkpoint else file)
    noted = object_of(origin.notes.get(META))
    meta = {**nested(origin.values), **noted, **(found if isinstance(found, dict) else {})}
    meta.pop("__metadata__", None)
    return meta


def _noted(origin: Origin) -> Mapping[str, Any]:
    """A configuration that a conversion put into the header of a safetensors file."""
    found = (object_of(origin.notes.get(CONFIGS[name])) for name in _FILES)
    return next((one for one in found if one), {})


def _beside(path: str) -> Mapping[str, Any]:
    """A configuration that lies with a file which says nothing of itself."""
    for name in _FILES:
        place = os.path.join(os.path.dirname(path), name)
        if os.path.isfile(place):
            found = read_json(place)
            return found if isinstance(found, dict) else {}
    return {}


def base_metadata(
    checkpoint: Checkpoint | None, found: Iterable[Checkpoint], sources: Mapping[str, str] = SOURCES
) -> dict[str, Any] | None:
    """The metadata of the newest step of the base run with the checkpoint's tag; None where there is none.

    It is looked for among `found`, then in the place beside the checkpoint where its trainer keeps base runs. A base
    checkpoint needs no other.
    """
    if checkpoint is None or checkpoint.source in (None, _BASE):
        return None
    runs = [c for c in found if c.source == _BASE and c.tag == checkpoint.tag]
    for folder in () if runs else _siblings(checkpoint, sources):
        runs += discover(folder, sources=sources, depth=0).checkpoints
    last = newest(c for c in runs if c.having("meta"))
    if last is None:
        return None
    try:
        meta = read_json(last.having("meta")[0].path)
    except CkptError:
        return None
    return meta if isinstance(meta, dict) else None


def _siblings(checkpoint: Checkpoint, sources: Mapping[str, str]) -> list[str]:
    """The directories that hold the base run of the checkpoint's tag, as nanochat's trees are laid out."""
    pieces = checkpoint.run_dir.split(os.sep)
    bases = [name for name, source in sources.items() if source == _BASE]
    places = [
        os.sep.join((*pieces[:at], name, *pieces[at + 1 :]))
        for at, piece in enumerate(pieces)
        if piece in sources
        for name in bases
    ]
    if pieces[-1] == checkpoint.source:  # an experiment: NAME/TAG/SOURCE
        places.append(os.sep.join((*pieces[:-1], _BASE)))
    return [place for place in places if os.path.isdir(place)]
