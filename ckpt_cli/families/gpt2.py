"""GPT-2 as nano-gpt, nanoGPT and build-nanogpt write it: one model that differs in one function and in its biases.

nanoGPT has the exact GELU (since May 2023) and may have no biases; the other two have the tanh form of it. What a
trainer's configuration holds besides the five numbers tells them apart.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.families import Assumption, Blueprint, Described
from ckpt_cli.families._modules import module_of, tie
from ckpt_cli.families._settings import MOST_WIDE, divided, lacking, listed, required, settable, shown, whole

if TYPE_CHECKING:
    import torch

    from ckpt_cli.families._modules import Weights

# The trainer's way to compute a GELU, as torch calls it.
_GELU = {"gpt2-nano-gpt": "tanh", "gpt2-nanogpt": "none", "gpt2-build-nanogpt": "tanh"}
NAMES = tuple(_GELU)
_NUMBERS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
_FUSED = re.compile(r"transformer\.h\.[0-9]+\.attn\.c_attn\.weight")
_EPS = 1e-5
# Of a layer, in the order of the file: shape in units of n_embd.
_LAYER: dict[str, tuple[int, ...]] = {
    "ln_1.weight": (1,),
    "ln_1.bias": (1,),
    "attn.c_attn.weight": (3, 1),
    "attn.c_attn.bias": (3,),
    "attn.c_proj.weight": (1, 1),
    "attn.c_proj.bias": (1,),
    "ln_2.weight": (1,),
    "ln_2.bias": (1,),
    "mlp.c_fc.weight": (4, 1),
    "mlp.c_fc.bias": (4,),
    "mlp.c_proj.weight": (1, 4),
    "mlp.c_proj.bias": (1,),
}


def claims(described: Described) -> str | None:
    """By the names of its weights, and its configuration's; transformers' own GPT-2 says its model_type, and has its
    matrices the other way. Raises CkptError where there is no configuration."""
    fused = [tensor.shape for name, tensor in described.tensors.items() if _FUSED.fullmatch(name)]
    if not fused or "model_type" in described.config:
        return None
    if not any(key in described.config for key in ("<class>", "bias", "dropout", *_NUMBERS)):
        if fused[0][:1] == tuple(3 * width for width in fused[0][1:]):
            raise lacking(described, _NUMBERS)
        return None
    if "<class>" in described.config:
        return "gpt2-build-nanogpt"
    if "bias" in described.config or "dropout" in described.config:
        return "gpt2-nanogpt"
    return "gpt2-nano-gpt"


def plan(described: Described, family: str) -> Blueprint:
    """Raises CkptError for a configuration that lacks one of the five numbers or cannot be."""
    settable(family, described.given, {})
    required(described, _NUMBERS)
    block, vocab = (whole(described, key) for key in ("block_size", "vocab_size"))
    width = whole(described, "n_embd", MOST_WIDE)
    layers, heads = whole(described, "n_layer"), whole(described, "n_head")
    divided(described, "n_embd", width, "n_head", heads)
    biased = described.config.get("bias", True)
    if not isinstance(biased, bool):
        raise CkptError(
            f"{described.path}: its configuration says bias {shown(biased)}, which is neither true nor false"
        )
    shapes = _shapes(block, vocab, width, layers, biased)
    gelu = _GELU[family]

    def build() -> torch.nn.Module:
        return module_of(shapes, (), lambda weights, tokens: _logits(weights, tokens, layers, heads, gelu), config)

    def finish(module: torch.nn.Module, device: torch.device) -> None:
        if not tie(module, _EMBEDDING, _HEAD):
            what = f"tensors {_EMBEDDING!a} and {_HEAD!a} differ, and the model has them as one"
            raise Damaged(what, path=described.path, kind="keys")

    config = listed(described.config)
    return Blueprint(
        family=family,
        config=config,
        shapes=shapes,
        items=described.items,
        vocab_size=vocab,
        padded_vocab=vocab,
        least_tokens=1,
        most_tokens=block,
        assumptions=_assumed(family),
        build=build,
        finish=finish,
        logits=lambda module, tokens: module(tokens),
        # The causal mask, which nano-gpt saves, and nanoGPT did before torch 2.
        free=tuple(f"transformer.h.{layer}.attn.bias" for layer in range(layers)),
    )


def _assumed(family: str) -> tuple[Assumption, ...]:
    if family != "gpt2-nanogpt":
        return ()
    reason = "nanoGPT has had the exact GELU since May 2023; --family gpt2-nano-gpt computes the one it had before"
    return (Assumption("gelu", "exact", reason),)


def _shapes(block: int, vocab: int, width: int, layers: int, biased: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {_EMBEDDING: (vocab, width), "transformer.wpe.weight": (block, width)}
    for layer in range(layers):
        for name, shape in _LAYER.items():
            found[f"transformer.h.{layer}.{name}"] = tuple(width * part for part in shape)
    found |= {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,), _HEAD: (vocab, width)}
    return {name: shape for name, shape in found.items() if biased or not name.endswith(".bias")}


def _logits(weights: Weights, tokens: torch.Tensor, layers: int, heads: int, gelu: str) -> torch.Tensor:
    """(B, T) -> (B, T, vocab_size) float32: GPT-2 with its norms before each part (Radford et al. 2019)."""
    import torch
    from torch.nn import functional

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"), _EPS)

    batch, length = tokens.shape
    places = torch.arange(length, device=tokens.device)
    x = functional.embedding(tokens, weights[_EMBEDDING])
    x = x + functional.embedding(places, weights["transformer.wpe.weight"])
    width = x.shape[-1]
    for layer in range(layers):
        at = f"transformer.h.{layer}"
        fused = linear(normed(x, f"{at}.ln_1"), f"{at}.attn.c_attn")
        query, key, value = (
            part.view(batch, length, heads, width // heads).transpose(1, 2) for part in fused.chunk(3, dim=2)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear(seen.transpose(1, 2).reshape(batch, length, width), f"{at}.attn.c_proj")
        hidden = functional.gelu(linear(normed(x, f"{at}.ln_2"), f"{at}.mlp.c_fc"), approximate=gelu)
        x = x + linear(hidden, f"{at}.mlp.c_proj")
    return functional.linear(normed(x, "transformer.ln_f"), weights[_HEAD]).float()
