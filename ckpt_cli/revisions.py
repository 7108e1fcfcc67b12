"""Which revision of nanochat a state dict is of: from its names, shapes and configuration. No I/O.

The trainer changed its model several times under the same names, and constants with it, so that a checkpoint that loads
into another revision still computes something else. Names are those of the first commit that had what tells them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# nanochat gives the matrices of the vocabulary a multiple of so many rows; its metadata has the number of tokens.
PADDING = 64
# What each revision has that the first has not, and when it was nanochat's own.
REVISIONS = {
    "v1": "the first model, October 2025 to January 2026",
    "lambdas": "weights of the residual stream, January 2026",
    "window": "sliding windows, January 2026",
    "ve32": "value embeddings, January to March 2026",
    "engram": "bigram embeddings, January 2026",
    "ve12": "value embeddings with smaller gates, March 2026",
    "smear": "a smeared embedding, since March 2026",
    "v0": "ungated value embeddings, of a branch in January 2026",
    "moe": "a mixture of experts, of a branch",
    "moe3": "a mixture of experts, of a branch of 2026",
}


def padded(tokens: int) -> int:
    """How many rows nanochat gives the matrices of a vocabulary."""
    return -(-tokens // PADDING) * PADDING


def revision_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str:
    """The key of REVISIONS; `shapes` are those of the tensors by name, `config` the `model_config` of the metadata.

    A checkpoint of the `window` weeks whose metadata lost `window_pattern` cannot be told from `lambdas`. Windows that
    are all whole are nothing that the first revision had not; a name that is missing does not hide what the others say.
    """
    if any(".moe." in name for name in shapes):
        return "moe"
    if any(".mlp.router." in name for name in shapes) or config.get("num_experts"):
        return "moe3"
    gates = {shape[-1] for name, shape in shapes.items() if name.endswith(".ve_gate.weight") and shape}
    if {"smear_gate.weight", "smear_lambda", "backout_lambda"} & set(shapes):
        return "smear"
    if 12 in gates:
        return "ve12"
    if any(name.startswith("bigram_") for name in shapes):
        return "engram"
    if "v0_lambdas" in shapes or any(name.startswith("value_embed") and name[11:12] != "s" for name in shapes):
        return "v0"
    if gates or any(name.startswith("value_embeds.") for name in shapes):
        return "ve32"
    pattern = config.get("window_pattern")
    if {"resid_lambdas", "x0_lambdas"}.isdisjoint(shapes):
        return "v1" if pattern is None or str(pattern).upper().strip("L") == "" else "window"
    return "lambdas" if pattern is None else "window"
