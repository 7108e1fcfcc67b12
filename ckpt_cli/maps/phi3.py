"""phi3 and phi4 between torchtune and Hugging Face, which has q, k and v in one tensor, and gate and up in another.

No row changes its place.
"""

from __future__ import annotations

from ckpt_cli.items import Mapped
from ckpt_cli.maps import Source
from ckpt_cli.maps._decoder import carried_over, family_in
from ckpt_cli.maps._table import NAMINGS as NAMINGS
from ckpt_cli.maps._table import Family, Fused, without

TARGETS = ("hf", "torchtune")

_FUSED = (
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
_PARTS = [name for fused in _FUSED for name in fused.torchtune]
FAMILIES = (Family(("phi3",), without(*_PARTS), permuted=False, fused=_FUSED),)


def claims(source: Source) -> bool:
    return family_in(FAMILIES, source) is not None


def carry(source: Source, target: str) -> Mapped:
    return carried_over(family_in(FAMILIES, source), source, target)
