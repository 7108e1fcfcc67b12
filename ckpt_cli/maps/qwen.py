"""qwen2 and qwen3 between torchtune and Hugging Face: no row changes its place.

qwen2 has biases at q, k and v; qwen3 norms of q and k, and biases where its configuration says so.
"""

from __future__ import annotations

from ckpt_cli.items import Mapped
from ckpt_cli.maps import Source
from ckpt_cli.maps._decoder import carried_over, family_in
from ckpt_cli.maps._table import NAMINGS as NAMINGS
from ckpt_cli.maps._table import TABLE, Family, Row

TARGETS = ("hf", "torchtune")

_BIASES = (
    Row("layers.{n}.attn.q_proj.bias", "model.layers.{n}.self_attn.q_proj.bias"),
    Row("layers.{n}.attn.k_proj.bias", "model.layers.{n}.self_attn.k_proj.bias"),
    Row("layers.{n}.attn.v_proj.bias", "model.layers.{n}.self_attn.v_proj.bias"),
)
_NORMS = (
    Row("layers.{n}.attn.q_norm.scale", "model.layers.{n}.self_attn.q_norm.weight"),
    Row("layers.{n}.attn.k_norm.scale", "model.layers.{n}.self_attn.k_norm.weight"),
)
FAMILIES = (
    Family(("qwen2",), (*TABLE, *_BIASES), permuted=False),
    Family(("qwen3",), (*TABLE, *(row._replace(optional=True) for row in _BIASES), *_NORMS), permuted=False),
)


def claims(source: Source) -> bool:
    return family_in(FAMILIES, source) is not None


def carry(source: Source, target: str) -> Mapped:
    return carried_over(family_in(FAMILIES, source), source, target)
