"""Whether the files of a checkpoint fit each other: metadata and names, configuration and shapes, index and shards.

Only what both sides say is compared. It knows the keys that trainers write, not the trainers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ckpt_cli.checkpoint import Checkpoint, Problem
from ckpt_cli.errors import counted
from ckpt_cli.integrity import Checked
from ckpt_cli.revisions import padded

Shape = tuple[int, ...]
_EMBEDDINGS = (
    "transformer.wte.weight",
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "gpt_neox.embed_in.weight",
    "wte.weight",
)
_LAYER = re.compile(r"(?:model\.layers|transformer\.h|gpt_neox\.layers|h)\.([0-9]+)\.")
_WIDTHS, _LAYERS = ("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers", "n_layers")


def disagreements(checkpoint: Checkpoint, files: Mapping[str, Checked]) -> Iterator[Problem]:
    """What does not fit among the files of a checkpoint, each with the file that says otherwise."""
    models = [files[part.path] for part in checkpoint.having("model") if part.path in files]
    known = all(file.shapes is not None for file in models) and not checkpoint.problems
    shapes = {_bare(name): shape for file in models for name, (shape, _, _) in (file.shapes or {}).items()}
    for part in checkpoint.having("meta", "config", "index"):
        value = files[part.path].value if part.path in files else None
        if not isinstance(value, dict):
            continue
        if part.role == "meta":
            yield from _step(checkpoint, value, part.path)
        if shapes and known:
            yield from (Problem("meta-mismatch", said, part.path) for said in _configured(value, shapes))
        if isinstance(value.get("weight_map"), dict):
            reported = {problem.path for problem in checkpoint.problems}
            yield from (p for p in index_faults(part.path, value, files) if p.path not in reported)


def index_faults(path: str, index: dict[str, Any], files: Mapping[str, Checked]) -> Iterator[Problem]:
    """An index file against its shards: those there, and the tensors in each.

    Of a shard that is not among `files` only its being there is asked.
    """
    folder, placed = os.path.dirname(path), index["weight_map"]
    wanted: dict[str, list[str]] = {}
    for name, shard in placed.items():
        if not isinstance(shard, str) or not shard or shard in (".", "..") or re.search(r"[/\\\0]", shard):
            said = f"{os.path.basename(path)} places tensor {name!a} in {str(shard)!a}, which is no plain file name"
            yield Problem("bad-structure", said, path)
            return
        wanted.setdefault(shard, []).append(name)
    sizes: dict[Any, int] | None = {}
    for shard, names in wanted.items():
        place = os.path.join(folder, shard)
        if not os.path.exists(place):
            yield Problem("missing-part", f"{shard} is missing, which {os.path.basename(path)} names", place)
            sizes = None
            continue
        shapes = files[place].shapes if place in files else None
        if shapes is None:
            sizes = None
            continue
        lost = [name for name in names if name not in shapes]
        more = [name for name in shapes if name not in placed]
        if lost:
            said = f"{shard} lacks {_few(lost)}, which {os.path.basename(path)} places in it"
            yield Problem("index-mismatch", said, path)
        if more:
            said = f"{shard} holds {_few(more)}, which {os.path.basename(path)} does not list"
            yield Problem("unlisted-tensor", said, path)
        if sizes is not None:
            sizes.update({(shard, key): length for _, length, key in shapes.values()})
    metadata = index.get("metadata")
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    if sizes is not None and type(told) is int and told != sum(sizes.values()):
        said = f"{os.path.basename(path)} tells of {counted(told, 'byte')} where its shards hold {sum(sizes.values())}"
        yield Problem("index-size", said, path)


def _few(names: list[str]) -> str:
    """One name, or the first and how many more."""
    return f"tensor {names[0]!a}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _bare(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _step(checkpoint: Checkpoint, meta: dict[str, Any], path: str) -> Iterator[Problem]:
    """Where the metadata says another step than the name does."""
    for key in ("step", "global_step"):
        step = meta.get(key)
        if checkpoint.unit == "step" and type(step) is int and checkpoint.step not in (None, step):
            said = f"{os.path.basename(path)} is of step {step}, its name of {checkpoint.step}"
            yield Problem("meta-mismatch", said, path)


def _configured(meta: dict[str, Any], shapes: Mapping[str, Shape]) -> Iterator[str]:
    """Where a configuration and the shapes of the model contradict each other."""
    nested = meta.get("model_config")
    own = isinstance(nested, dict)
    config = nested if isinstance(nested, dict) else meta
    name = next((name for name in _EMBEDDINGS if len(shapes.get(name, ())) == 2), None)
    if name is None:
        return
    rows, width = shapes[name]
    vocabulary, wide = config.get("vocab_size"), _number(config, _WIDTHS)
    if type(vocabulary) is int and rows not in {vocabulary, padded(vocabulary) if own else None}:
        yield f"vocab_size is {vocabulary}, but {name} has {counted(rows, 'row')}"
    if wide is not None and width != wide:
        yield f"the width is {wide}, but {name} has {counted(width, 'column')}"
    layers = _number(config, _LAYERS)
    there = {int(match[1]) for key in shapes if (match := _LAYER.match(key)) and len(match[1]) < 6}
    if layers is not None and there:
        # Published models may have layers besides, such as those that predict more tokens.
        told = f"the configuration says {counted(layers, 'layer')}"
        missing = sorted(set(range(min(layers, max(there) + 2))) - there)
        if missing:
            yield f"{told}, but layer {missing[0]} has no tensors"
        elif own and max(there) >= layers:
            yield f"{told}, but layer {max(there)} has tensors"
    if own and wide is not None:
        yield from _heads(config, wide, shapes)


def _heads(config: dict[str, Any], width: int, shapes: Mapping[str, Shape]) -> Iterator[str]:
    """Where nanochat's numbers of heads contradict the width, or the rows of the keys."""
    heads, shared = config.get("n_head"), config.get("n_kv_head")
    if type(heads) is not int or heads < 1:
        return
    if width % heads:
        yield f"n_head is {heads}, which does not divide the width of {width}"
        return
    keys = shapes.get("transformer.h.0.attn.c_k.weight", ())
    if type(shared) is int and len(keys) == 2 and keys[0] != shared * (width // heads):
        rows = f"transformer.h.0.attn.c_k.weight has {keys[0]} rows"
        yield f"n_kv_head is {shared} of {heads} over a width of {width}, but {rows}"


def _number(config: dict[str, Any], names: Iterable[str]) -> int | None:
    """The first whole number under any of the names."""
    return next((config[name] for name in names if type(config.get(name)) is int), None)
