"""gemma2 between torchtune and Hugging Face: llama's table, but four norms a layer, and the last one's other name."""

from __future__ import annotations

from ckpt_cli.items import Mapped
from ckpt_cli.maps import Source
from ckpt_cli.maps._decoder import carried_over, family_in
from ckpt_cli.maps._table import NAMINGS as NAMINGS
from ckpt_cli.maps._table import Family, Row, without

TARGETS = ("hf", "torchtune")

_NORMS = (
    Row("layers.{n}.sa_scale.scale", "model.layers.{n}.post_attention_layernorm.weight"),
    Row("layers.{n}.mlp_norm.scale", "model.layers.{n}.pre_feedforward_layernorm.weight"),
    Row("layers.{n}.mlp_scale.scale", "model.layers.{n}.post_feedforward_layernorm.weight"),
    Row("norm.rms_norm.scale", "model.norm.weight"),
)
FAMILIES = (
    Family(
        ("gemma2",), (*without("layers.{n}.mlp_norm.scale", "norm.scale"), *_NORMS), permuted=True, tied=("gemma2",)
    ),
)


def claims(source: Source) -> bool:
    return family_in(FAMILIES, source) is not None


def carry(source: Source, target: str) -> Mapped:
    return carried_over(family_in(FAMILIES, source), source, target)
