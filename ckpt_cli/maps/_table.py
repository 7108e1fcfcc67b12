"""How torchtune, Hugging Face and Meta call the weights of a decoder, and what else differs between them.

A family of models is one `Family`: rows of names, side by side, and what about it is out of the rule. `{n}` stands for
the number of a layer. Read in any direction.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# After whom weights are called, by a name that nobody else uses.
NAMINGS = {
    "torchtune": r"layers\.[0-9]+\.(?:attn\.[a-z_]+\.(?:weight|bias|scale)|mlp\.w[123]\.weight|(?:sa|mlp)_norm\.scale)",
    "hf": r"model\.layers\.[0-9]+\.(?:self_attn\.[a-z_]+|mlp\.[a-z_]+_proj|input_layernorm)\.(?:weight|bias)",
    "meta": r"layers\.[0-9]+\.(?:attention|feed_forward)\.w[qkvo123]\.weight",
}


class Row(NamedTuple):
    """What one tensor is called; None where a naming has no such tensor.

    `heads` says whose heads its rows are. `optional` rows are not in every state dict of the family.
    """

    torchtune: str
    hf: str
    meta: str | None = None
    heads: Literal["", "query", "key"] = ""
    optional: bool = False

    def in_(self, naming: str) -> str | None:
        name: str | None = getattr(self, naming)
        return name


class Fused(NamedTuple):
    """One tensor of Hugging Face that is several of torchtune, one below the other.

    `heads` says that these are the rows of the query heads, the key heads and the value heads; else they are of
    equal height.
    """

    hf: str
    torchtune: tuple[str, ...]
    heads: bool


class Family(NamedTuple):
    """Models that are called alike.

    `types` are their `model_type`s in config.json, `tied` those whose head is the embedding unless the configuration
    says otherwise. `permuted` says whether Hugging Face has the rows of a head in halves, where torchtune and Meta
    have them in pairs; the rows with `heads` are concerned. `dropped` are (pattern, reason) of what no other naming
    has. `meta` are the types that Meta's own code computes.
    """

    types: tuple[str, ...]
    rows: tuple[Row, ...]
    permuted: bool
    fused: tuple[Fused, ...] = ()
    tied: tuple[str, ...] = ()
    meta: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = (
        (r"(?:model\.layers|layers)\.[0-9]+\.self_attn\.rotary_emb\.inv_freq", "it is computed from the configuration"),
        (r"rope\.freqs", "it is computed from the configuration"),
    )


EMBEDDING = Row("tok_embeddings.weight", "model.embed_tokens.weight", "tok_embeddings.weight")
HEAD = Row("output.weight", "lm_head.weight", "output.weight")
# A model that judges has no words to say.
SCORE = Row("output.weight", "score.weight")

# fmt: off
#         torchtune                           Hugging Face                                      Meta
TABLE = (
    EMBEDDING,
    Row("layers.{n}.attn.q_proj.weight",      "model.layers.{n}.self_attn.q_proj.weight",       "layers.{n}.attention.wq.weight", "query"),  # noqa: E501
    Row("layers.{n}.attn.k_proj.weight",      "model.layers.{n}.self_attn.k_proj.weight",       "layers.{n}.attention.wk.weight", "key"),  # noqa: E501
    Row("layers.{n}.attn.v_proj.weight",      "model.layers.{n}.self_attn.v_proj.weight",       "layers.{n}.attention.wv.weight"),  # noqa: E501
    Row("layers.{n}.attn.output_proj.weight", "model.layers.{n}.self_attn.o_proj.weight",       "layers.{n}.attention.wo.weight"),  # noqa: E501
    Row("layers.{n}.mlp.w1.weight",           "model.layers.{n}.mlp.gate_proj.weight",          "layers.{n}.feed_forward.w1.weight"),  # noqa: E501
    Row("layers.{n}.mlp.w3.weight",           "model.layers.{n}.mlp.up_proj.weight",            "layers.{n}.feed_forward.w3.weight"),  # noqa: E501
    Row("layers.{n}.mlp.w2.weight",           "model.layers.{n}.mlp.down_proj.weight",          "layers.{n}.feed_forward.w2.weight"),  # noqa: E501
    Row("layers.{n}.sa_norm.scale",           "model.layers.{n}.input_layernorm.weight",        "layers.{n}.attention_norm.weight"),  # noqa: E501
    Row("layers.{n}.mlp_norm.scale",          "model.layers.{n}.post_attention_layernorm.weight", "layers.{n}.ffn_norm.weight"),  # noqa: E501
    Row("norm.scale",                         "model.norm.weight",                              "norm.weight"),
)
# fmt: on


def without(*names: str) -> tuple[Row, ...]:
    """The table less the rows that torchtune calls so."""
    return tuple(row for row in TABLE if row.torchtune not in names)
