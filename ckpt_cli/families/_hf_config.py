"""A config.json that nobody vouches for, before a class of transformers gets it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckpt_cli.errors import CkptError, counted
from ckpt_cli.families._settings import shown

# What would fetch or run something, or belongs to whoever loads the model; the dtype is that of the weights.
_LEFT_OUT = re.compile(
    r"_.*|auto_map|trust_remote_code|custom_pipelines|attn_implementation|experts_implementation|use_kernels"
    r"|dtype|torch_dtype|transformers_version|name_or_path"
)
# Numbers that are loops: of layers, each of which has a tensor, and of experts, which may lie together.
_LAYERS = re.compile(r"(?:num|n)_(?:.*_)?(?:layers?|blocks?)|depth|layers|.*_depth")
_EXPERTS = re.compile(r"(?:num|n)_(?:.*_)?experts?")
_MOST_EXPERTS = 1 << 16
_MOST = 1 << 31
_DEEPEST = 16
_JUDGES = re.compile(r"For(?!CausalLM$|ConditionalGeneration$)[A-Z]\w*$")


def looked_at(path: str, config: Mapping[str, Any], tensors: int) -> dict[str, Any]:
    """The configuration without what it must not decide.

    Raises CkptError for weights that are quantized, a model that gives no logits of tokens, and numbers that no model
    of so many tensors has.
    """
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            raise CkptError(f"{path}: its {key} says that it is quantized, which cannot be rebuilt")
    names = config.get("architectures")
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and _JUDGES.search(name):
            raise CkptError(f"{path} is a {shown(name)}, which gives no logits of tokens")
    found = _kept(path, config, tensors, 0)
    assert isinstance(found, dict)
    return found


def positions(config: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """nano-gpt's export says the length of its context only where transformers does not look for it: `n_positions` is
    set, and (key, value, reason) of that given."""
    length = config.get("n_ctx")
    if config.get("model_type") != "gpt2" or "n_positions" in config or type(length) is not int:
        return []
    config["n_positions"] = length
    return [("n_positions", length, "its configuration says n_ctx, and not n_positions")]


def without_lists(config: dict[str, Any]) -> list[str]:
    """The keys of lists with an entry a layer, left out where they have another number of entries than there are
    layers: which of the two is wrong is seen by the tensors."""
    layers = config.get("num_hidden_layers")
    lists = [key for key, value in config.items() if key.endswith("layer_types") and isinstance(value, list)]
    wrong = [key for key in lists if type(layers) is int and len(config[key]) != layers]
    for key in wrong:
        del config[key]
    return wrong


def _kept(path: str, value: Any, tensors: int, depth: int, key: str = "") -> Any:
    if depth > _DEEPEST:
        raise CkptError(f"{path}: its configuration is nested more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        return {
            inner: _kept(path, each, tensors, depth + 1, str(inner))
            for inner, each in value.items()
            if not _LEFT_OUT.fullmatch(str(inner))
        }
    if isinstance(value, (list, tuple)):
        return [_kept(path, each, tensors, depth + 1) for each in value]
    if type(value) is not int:
        return value
    most = tensors if _LAYERS.fullmatch(key) else _MOST_EXPERTS if _EXPERTS.fullmatch(key) else _MOST
    if abs(value) > _MOST or (most != _MOST and not 0 <= value <= most):
        more = f", and it has {counted(tensors, 'tensor')}" if _LAYERS.fullmatch(key) else ", which no model has"
        raise CkptError(f"{path}: its configuration says {key} {shown(value)}{more}")
    return value
