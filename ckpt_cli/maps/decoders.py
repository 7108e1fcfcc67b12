"""Decoders between torchtune, Hugging Face and Meta: what each family has besides the table, or instead of its rows.

Rotary embeddings turn rows half a head apart in Hugging Face, neighbours in the others: where a family is `permuted`,
the rows of q_proj and k_proj lie in another order. After torchtune's `convert_weights` and Meta's `params.json`.
"""

from __future__ import annotations

from ckpt_cli.items import Mapped
from ckpt_cli.maps import Source
from ckpt_cli.maps._decoder import carried_over
from ckpt_cli.maps._table import NAMINGS as NAMINGS
from ckpt_cli.maps._table import TABLE, Family, Fused, Row, without

TARGETS = ("hf", "torchtune", "meta")

# gemma2 has four norms a layer, and another name for the last one.
_GEMMA2_NORMS = (
    Row("layers.{n}.sa_scale.scale", "model.layers.{n}.post_attention_layernorm.weight"),
    Row("layers.{n}.mlp_norm.scale", "model.layers.{n}.pre_feedforward_layernorm.weight"),
    Row("layers.{n}.mlp_scale.scale", "model.layers.{n}.post_feedforward_layernorm.weight"),
    Row("norm.rms_norm.scale", "model.norm.weight"),
)
# phi3 and phi4 have q, k and v in one tensor, and gate and up in another.
_PHI3_FUSED = (
    Fused(
        "model.layers.{n}.self_attn.qkv_proj.weight",
        ("layers.{n}.attn.q_proj.weight", "layers.{n}.attn.k_proj.weight", "layers.{n}.attn.v_proj.weight"),
        heads=True,
    ),
    Fused(
        "model.layers.{n}.mlp.gate_up_proj.weight",
        ("layers.{n}.mlp.w1.weight", "layers.{n}.mlp.w3.weight"),
        heads=False,
    ),
)
_PHI3_PARTS = [name for fused in _PHI3_FUSED for name in fused.torchtune]
# qwen2 has biases at q, k and v; qwen3 norms of q and k, and biases where its configuration says so.
_QWEN_BIASES = (
    Row("layers.{n}.attn.q_proj.bias", "model.layers.{n}.self_attn.q_proj.bias"),
    Row("layers.{n}.attn.k_proj.bias", "model.layers.{n}.self_attn.k_proj.bias"),
    Row("layers.{n}.attn.v_proj.bias", "model.layers.{n}.self_attn.v_proj.bias"),
)
_QWEN3_NORMS = (
    Row("layers.{n}.attn.q_norm.scale", "model.layers.{n}.self_attn.q_norm.weight"),
    Row("layers.{n}.attn.k_norm.scale", "model.layers.{n}.self_attn.k_norm.weight"),
)
FAMILIES = (
    Family(
        ("gemma2",),
        (*without("layers.{n}.mlp_norm.scale", "norm.scale"), *_GEMMA2_NORMS),
        permuted=True,
        tied=("gemma2",),
    ),
    Family(("llama", "mistral", "gemma"), TABLE, permuted=True, tied=("gemma",), meta=("llama", "mistral")),
    Family(("phi3",), without(*_PHI3_PARTS), permuted=False, fused=_PHI3_FUSED),
    Family(("qwen2",), (*TABLE, *_QWEN_BIASES), permuted=False),
    Family(("qwen3",), (*TABLE, *(row._replace(optional=True) for row in _QWEN_BIASES), *_QWEN3_NORMS), permuted=False),
)


def claims(source: Source) -> bool:
    """Also a source that does not say what it is: to be told what is missing."""
    return source.model_type is None or _family_of(source) is not None


def carry(source: Source, target: str) -> Mapped:
    """Raises CkptError for a type that Meta's code does not know, and as `carried_over` does."""
    return carried_over(_family_of(source), source, target)


def _family_of(source: Source) -> Family | None:
    return next((family for family in FAMILIES if source.model_type in family.types), None)
