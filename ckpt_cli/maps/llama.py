"""llama, mistral and gemma between torchtune, Hugging Face and Meta: the table as it stands.

Hugging Face turns rows half a head apart, the others neighbours: the rows of q_proj and k_proj lie in another order.
After torchtune's `convert_weights` and Meta's `params.json`.
"""

from __future__ import annotations

from ckpt_cli.items import Mapped
from ckpt_cli.maps import Source
from ckpt_cli.maps._decoder import carried_over, family_in
from ckpt_cli.maps._table import NAMINGS as NAMINGS
from ckpt_cli.maps._table import TABLE, Family

TARGETS = ("hf", "torchtune", "meta")
FAMILIES = (Family(("llama", "mistral", "gemma"), TABLE, permuted=True, tied=("gemma",), meta=("llama", "mistral")),)


def claims(source: Source) -> bool:
    """Also a source that does not say what it is: to be told what is missing."""
    return source.model_type is None or family_in(FAMILIES, source) is not None


def carry(source: Source, target: str) -> Mapped:
    return carried_over(family_in(FAMILIES, source), source, target)
