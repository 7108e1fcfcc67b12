"""Meta's `params.json` and the `config.json` of a llama in transformers: one as the other.

What the file says is taken over, what the shapes say is read off them, and nothing else is made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.maps import Source
from ckpt_cli.maps._heads import absent, heads_of

_Shapes = Mapping[str, tuple[int, ...]]
# What transformers assumes of a llama or mistral whose config.json does not say it.
_THETA = 10000.0
_EPS = 1e-6


def config_of(source: Source, shapes: _Shapes, tied: bool) -> dict[str, Any]:
    """config.json of the llama that params.json describes; `shapes` are those of the target, by its names.

    Raises CkptError, naming the keys, for what params.json does not say.
    """
    params = source.params
    missing = [key for key in ("dim", "n_heads", "norm_eps", "rope_theta") if params.get(key) is None]
    if missing:
        raise absent(source, missing)
    if params.get("use_scaled_rope"):
        what = f"{source.path}: its params.json says use_scaled_rope, but not by which factors"
        raise CkptError(what, "--config FILE, a config.json with rope_parameters, says it")
    heads = heads_of(source)
    intermediate, _ = shapes["model.layers.0.mlp.gate_proj.weight"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        # Only the tokenizer knows them.
        "bos_token_id": None,
        "dtype": _dtype(source),
        "eos_token_id": None,
        "head_dim": heads.size,
        "hidden_act": "silu",
        "hidden_size": params["dim"],
        "intermediate_size": intermediate,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads.query,
        "num_hidden_layers": _layers(shapes),
        "num_key_value_heads": heads.key,
        "rms_norm_eps": params["norm_eps"],
        "rope_parameters": {"rope_theta": float(params["rope_theta"]), "rope_type": "default"},
        # Where transformers before version 5 looks for it.
        "rope_theta": float(params["rope_theta"]),
        "tie_word_embeddings": tied,
        "vocab_size": shapes["model.embed_tokens.weight"][0],
    }
    said = params.get("vocab_size", -1)
    if said not in (-1, config["vocab_size"]):
        what = f"{source.path} has {config['vocab_size']} words in 'tok_embeddings.weight'"
        raise CkptError(f"{what} where its params.json says {said!a}", kind="wrong-shape")
    return config


def params_of(source: Source, shapes: _Shapes) -> dict[str, Any]:
    """params.json of the llama that config.json describes; `shapes` are those of the target, by its names.

    Raises CkptError for what Meta's code has no setting for.
    """
    config = source.config
    heads = heads_of(source)
    rope = config.get("rope_parameters") or {**(config.get("rope_scaling") or {})}
    if not isinstance(rope, dict):
        rope = {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    refused = {
        f"rope_type {kind}": kind not in ("default", "llama3"),
        "sliding_window": config.get("sliding_window") is not None,
        f"head_dim {heads.size}": heads.size * heads.query != config.get("hidden_size"),
        f"hidden_act {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
    }
    for what, is_so in refused.items():
        if is_so:
            raise CkptError(f"{source.path}: Meta's params.json cannot say {what!a}")
    intermediate, width = shapes["layers.0.feed_forward.w1.weight"]
    multiple, factor = feed_forward(width, intermediate)
    params = {
        "dim": width,
        "n_layers": _layers(shapes),
        "n_heads": heads.query,
        "n_kv_heads": heads.key,
        "vocab_size": shapes["tok_embeddings.weight"][0],
        "multiple_of": multiple,
        **({} if factor is None else {"ffn_dim_multiplier": factor}),
        "norm_eps": config.get("rms_norm_eps", _EPS),
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", _THETA)),
    }
    return {**params, "use_scaled_rope": True} if kind == "llama3" else params


def feed_forward(width: int, intermediate: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` (None for 1) with which Meta's code comes to the intermediate size.

    It takes two thirds of four times the width, times the multiplier, cut to an integer each time, and rounds up to a
    multiple (llama's `FeedForward`).
    """
    base = int(2 * (4 * width) / 3)
    multiple = next(size for size in (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if intermediate % size == 0)
    for size in (multiple, 1):
        if -(-base // size) * size == intermediate:
            return size, None
        for digits in range(1, 17):
            factor = round((intermediate + 1 - size / 2) / base, digits)
            if -(-int(factor * base) // size) * size == intermediate:
                return size, factor
    raise AssertionError(f"no multiplier of {base} gives {intermediate}")


def notes_on(source: Source, target: str) -> tuple[str, ...]:
    """What the target's configuration leaves open."""
    if target == "hf" and not source.config:
        return ("params.json says neither max_position_embeddings nor which tokens begin and end a text",)
    rope = source.config.get("rope_parameters") or source.config.get("rope_scaling")
    if target == "meta" and not source.params and isinstance(rope, dict) and rope.get("rope_type") == "llama3":
        return ("the factors of the scaled rotation are not in params.json, only that it is scaled",)
    return ()


def check(path: str, config: Mapping[str, Any], shapes: _Shapes, names: Mapping[str, str]) -> None:
    """Raises CkptError where config.json says another shape than a tensor has, by `names` of its own."""
    embedding = "model.embed_tokens.weight"
    words, width = shapes[embedding]
    found = {"vocab_size": (words, embedding), "hidden_size": (width, embedding)}
    found["num_hidden_layers"] = (_layers(shapes), list(shapes)[-1])
    name = "model.layers.0.mlp.gate_proj.weight"
    if gate := shapes.get(name):
        found["intermediate_size"] = (gate[0], name)
    for key, (value, tensor) in found.items():
        if config.get(key, value) != value:
            what = f"{path}: its configuration says {key} {config[key]!a}, its tensors say {value}"
            raise CkptError(f"{what} ({names[tensor]!a})", kind="wrong-shape", record=names[tensor])


def _layers(shapes: _Shapes) -> int:
    numbers = [name.partition("layers.")[2].partition(".")[0] for name in shapes if "layers." in name]
    return 1 + max(map(int, numbers), default=-1)


def _dtype(source: Source) -> str:
    """The dtype of most elements."""
    elements: dict[str, int] = {}
    for tensor in source.tensors.values():
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    return max(elements, key=lambda dtype: elements[dtype])
