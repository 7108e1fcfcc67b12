"""nanochat -> transformers' NanoChatForCausalLM, which computes the first revision and no later one.

`lambdas` and `window` are that same model where every weight of the residual stream is 1, every weight of the embedding
in it 0, and every window the whole context. The matrices of the vocabulary lose their padding.
"""

from __future__ import annotations

import re
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.items import Item, Mapped
from ckpt_cli.maps import HINT, Source, renamed
from ckpt_cli.maps._views import rows
from ckpt_cli.revisions import REVISIONS, padded, revision_of

NAMINGS = {"nanochat": r"transformer\.h\.[0-9]+\.attn\.c_q\.weight"}
TARGETS = ("hf",)

# nanochat                           transformers
NAMES = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.h.{n}.attn.c_q.weight": "model.layers.{n}.self_attn.q_proj.weight",
    "transformer.h.{n}.attn.c_k.weight": "model.layers.{n}.self_attn.k_proj.weight",
    "transformer.h.{n}.attn.c_v.weight": "model.layers.{n}.self_attn.v_proj.weight",
    "transformer.h.{n}.attn.c_proj.weight": "model.layers.{n}.self_attn.o_proj.weight",
    "transformer.h.{n}.mlp.c_fc.weight": "model.layers.{n}.mlp.fc1.weight",
    "transformer.h.{n}.mlp.c_proj.weight": "model.layers.{n}.mlp.fc2.weight",
    "lm_head.weight": "lm_head.weight",
}
_PADDED = ("transformer.wte.weight", "lm_head.weight")
# Vectors that a model of the first revision would have had: each layer's weight of the stream and of the embedding.
_NEUTRAL = {"resid_lambdas": 1.0, "x0_lambdas": 0.0}
_SETTINGS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")


def claims(source: Source) -> bool:
    return True


def carry(source: Source, target: str) -> Mapped:
    """Raises CkptError for a revision that transformers does not know, and for a tensor or shape not its own."""
    own = source.meta.get("model_config")
    settings = {**source.given, **(own if isinstance(own, dict) else {})}
    revision = revision_of({name: tensor.shape for name, tensor in source.tensors.items()}, settings)
    dropped, notes = _reduced(source, revision, settings)
    missing = [key for key in _SETTINGS if type(settings.get(key)) is not int or settings[key] < 1]
    if missing:
        what = f"{source.path} lacks a configuration that says {', '.join(missing)}"
        raise CkptError(what, "--config FILE, a meta file with model_config, supplies it")
    expected = _expected(settings)
    items = []
    for name, tensor in source.tensors.items():
        if name in _NEUTRAL:
            continue
        if name not in expected:
            raise CkptError(f"{source.path}: nanochat's {revision} has no tensor {name!a}", HINT)
        shape = expected[name]
        may_pad = name in _PADDED and len(tensor.shape) == 2 and tensor.shape[1:] == shape[1:]
        if tensor.shape != shape and not (may_pad and tensor.shape[0] == padded(shape[0])):
            shown, wanted = ("x".join(map(str, each)) for each in (tensor.shape, shape))
            raise CkptError(f"{source.path}: tensor {name!a} is {shown}, its configuration makes it {wanted}")
        layer = re.sub(r"\.h\.([0-9]+)\.", ".h.{n}.", name)
        new = NAMES[layer].replace("{n}", name.split(".")[2] if "{n}" in layer else "")
        items.append(Item(new, rows(tensor, 0, shape[0]), shape, tensor.dtype))
    if lacking := [name for name in expected if name not in source.tensors]:
        raise CkptError(f"{source.path} lacks tensor {lacking[0]!a}")
    dtypes = {tensor.dtype for tensor in source.tensors.values()}
    config = _configuration(settings, "float32" if "float32" in dtypes else min(dtypes))
    return Mapped(tuple(items), renamed(source, items), tuple(dropped), (), config, tuple(notes))


def _reduced(source: Source, revision: str, settings: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """What can go because it does nothing, and what is assumed. Raises CkptError where it does something."""
    if revision == "v1":
        return [], []
    named = f"{source.path} is of nanochat's revision {revision} ({REVISIONS[revision]})"
    if revision not in ("lambdas", "window"):
        raise CkptError(f"{named}, and transformers knows only v1", HINT)
    pattern = settings.get("window_pattern", "L")
    if not isinstance(pattern, str) or set(pattern.upper()) != {"L"}:
        raise CkptError(f"{named} with the window_pattern {pattern!a}, and transformers knows only v1", HINT)
    dropped = []
    for name, neutral in _NEUTRAL.items():
        tensor = source.tensors.get(name)
        if tensor is None or len(tensor.shape) != 1:
            raise CkptError(f"{named}, but lacks the vector {name}", HINT)
        if any(number != neutral for number in source.numbers(tensor)):
            raise CkptError(f"{named}, whose {name} are not all {neutral:g}, and transformers knows only v1", HINT)
        dropped.append((tensor.name, f"every one of them is {neutral:g}, and does nothing"))
    return dropped, [] if "window_pattern" in settings else ["window_pattern is not in the metadata: taken for L"]


def _expected(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every name of the first revision with its shape, the vocabulary without padding."""
    layers, width, heads, keys = (settings[key] for key in ("n_layer", "n_embd", "n_head", "n_kv_head"))
    size = width // heads
    shapes = {
        "transformer.wte.weight": (settings["vocab_size"], width),
        "transformer.h.{n}.attn.c_q.weight": (heads * size, width),
        "transformer.h.{n}.attn.c_k.weight": (keys * size, width),
        "transformer.h.{n}.attn.c_v.weight": (keys * size, width),
        "transformer.h.{n}.attn.c_proj.weight": (width, width),
        "transformer.h.{n}.mlp.c_fc.weight": (4 * width, width),
        "transformer.h.{n}.mlp.c_proj.weight": (width, 4 * width),
        "lm_head.weight": (settings["vocab_size"], width),
    }
    return {
        name.replace("{n}", str(layer)): shape
        for name, shape in shapes.items()
        for layer in range(layers if "{n}" in name else 1)
    }


def _configuration(settings: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["NanoChatForCausalLM"],
        "attention_bias": False,
        # Only the tokenizer knows them.
        "bos_token_id": None,
        "dtype": dtype,
        "eos_token_id": None,
        "final_logit_softcapping": 15.0,
        "hidden_act": "relu2",
        "hidden_size": settings["n_embd"],
        "intermediate_size": 4 * settings["n_embd"],
        "max_position_embeddings": settings["sequence_len"],
        "model_type": "nanochat",
        "num_attention_heads": settings["n_head"],
        "num_hidden_layers": settings["n_layer"],
        "num_key_value_heads": settings["n_kv_head"],
        "pad_token_id": None,
        # What F.rms_norm takes for float32.
        "rms_norm_eps": 2.0**-23,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "vocab_size": settings["vocab_size"],
    }
