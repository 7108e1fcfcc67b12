"""Which parameter of a rebuilt model each state of an optimizer belongs to, and as which view of its file.

A model may have other names than its optimizer was made for, and its matrices other rows: states are then turned as
their parameters are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.errors import CkptError
from ckpt_cli.families import Blueprint
from ckpt_cli.fitting import Shape, Shard, assignment
from ckpt_cli.items import Item
from ckpt_cli.mapping import plan
from ckpt_cli.param_groups import Draft
from ckpt_cli.tensor_file import TensorFile, TensorInfo
from ckpt_cli.views import is_contiguous

# torchtune's modules: of a decoder, and of a layer in the order that version 0.1 had, and later ones.
_TUNED = re.compile(r"(tok_embeddings|layers|norm|output)(?:\.([0-9]+)\.([a-z_.0-9]+))?\.(weight|bias|scale)")
_DECODER = ("tok_embeddings", "layers", "norm", "output")
_ATTENTION = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.output_proj", "attn.q_norm", "attn.k_norm")
_MLP = ("mlp.w1", "mlp.w2", "mlp.w3")
_LAYERS = (
    (*_ATTENTION, *_MLP, "sa_norm", "mlp_norm"),
    ("sa_norm", *_ATTENTION, "mlp_norm", *_MLP),
)


class Placed(NamedTuple):
    """A parameter of the model, and its states by name: an Item for a tensor of its shape, else what the file has."""

    name: str
    states: Mapping[str, Any]


def placed(
    shard: Shard, blueprint: Blueprint, stored: Mapping[str, Shape], described: Mapping[str, TensorInfo], sort: bool
) -> list[list[Placed]] | None:
    """By the optimizer's groups, what is of which parameter; None where that cannot be told.

    `stored` are the shapes of those of the tensors `described` that are trained, in the order of the file: that of the
    trainer's module, unless its format has names in an order of its own (`sort`). Raises CkptError for a state that
    cannot be put on the model.
    """
    items = {item.tensor.name: item for item in blueprint.items.values()}
    names = {tensor.name: name for name, tensor in described.items()}
    built = (names.get(blueprint.items[name].tensor.name, "") for name in blueprint.shapes if name in blueprint.items)
    module = {name: stored[name] for name in built if name in stored}
    orders: list[Mapping[str, Shape]] = [] if sort else [stored]
    orders += [module] if len(module) == len(stored) else []
    assigned = next((one for order in orders if (one := assignment(shard.groups, order))), None)
    if assigned is None:
        return None
    found: list[list[Placed]] = []
    for group in shard.groups:
        found.append([])
        for key in group.params:
            source = described[assigned[key]]
            item = items.get(source.name)
            if item is None:
                raise CkptError(f"tensor {assigned[key]!a} is no one parameter of the model that was built")
            states = {name: _turned(value, source, item) for name, value in _single(group, key).items()}
            found[-1].append(Placed(item.name, states))
    return found


def placed_of_torchtune(
    shard: Shard,
    files: Sequence[TensorFile],
    checkpoint: Checkpoint | None,
    config_file: str | None,
) -> list[list[Placed]] | None:
    """The same of torchtune's optimizer, which is that of its own module, whatever names it wrote the weights under.

    Its states are what a map makes of them as if they were weights: those of several parameters that are one of the
    model come together.
    """
    own = {item.name: item.shape for item in plan(files, checkpoint, "torchtune", config_file).items}
    assigned = next((one for order in _orders(own) if (one := assignment(shard.groups, order))), None)
    if assigned is None or len(shard.groups) != 1 or len(assigned) != len(own):
        return None
    group = shard.groups[0]
    named = {assigned[key]: _single(group, key) for key in group.params}
    found: dict[str, dict[str, Any]] = {}
    numbers: dict[str, Any] = {}
    for kind in dict.fromkeys(kind for states in named.values() for kind in states):
        values = {name: states.get(kind) for name, states in named.items()}
        tensors = [
            value._replace(name=name)
            for name, value in values.items()
            if isinstance(value, TensorInfo) and value.shape == own[name]
        ]
        if not tensors:
            numbers[kind] = next(iter(values.values()))
        elif len(tensors) < len(values):
            return None
        else:
            file = files[0]._replace(tensors=tuple(tensors), values={}, kinds={})
            for item in plan([file], checkpoint, "hf", config_file).items:
                found.setdefault(item.name, {})[kind] = item
    return [[Placed(name, {**states, **numbers}) for name, states in found.items()]]


def _orders(own: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    """Names of torchtune in the orders that its module may have had; nothing where one is unknown."""
    for layer in _LAYERS:
        places = {}
        for name in own:
            match = _TUNED.fullmatch(name)
            if match is None or (match[3] is not None and match[3] not in layer):
                return
            inner = layer.index(match[3]) if match[3] else 0
            places[name] = (_DECODER.index(match[1]), int(match[2] or 0), inner, match[4] == "bias")
        yield {name: own[name] for name in sorted(own, key=places.__getitem__)}


def _single(group: Draft, key: str) -> dict[str, Any]:
    """The states of a parameter that are one value each."""
    return {name: values[0] for name, values in group.entries.get(key, {}).items() if len(values) == 1}


def _turned(value: Any, source: TensorInfo, item: Item) -> Any:
    """A state of `source` as a state of the parameter that `item` makes of it; a number as it is."""
    if not isinstance(value, TensorInfo) or value.shape != source.shape or not value.shape:
        return value
    view = item.tensor
    if view._replace(name="") == source._replace(name="") and item.shape == source.shape:
        return Item(item.name, value, value.shape, value.dtype)
    if not is_contiguous(source) or not is_contiguous(value):
        raise CkptError(f"the state of {source.name!a} does not lie as the parameter does")
    moved = value._replace(shape=view.shape, stride=view.stride, offset=value.offset + view.offset - source.offset)
    return Item(item.name, moved, item.shape, value.dtype)
