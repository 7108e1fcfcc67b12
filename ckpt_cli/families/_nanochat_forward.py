"""The forward pass of nanochat, one for all its revisions, as a function of the weights by name.

It is the arithmetic of the trainer's `gpt.py`: no norm has weights, rotary angles turn the other way than llama's, and
come before the norm of queries and keys. All is computed in the dtype of the last matrix: rows of an embedding are cast
to it as they are looked up, and every other matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_cli.families._nanochat import PAIRS, SMEARED, Model

if TYPE_CHECKING:
    import torch

    from ckpt_cli.families._modules import Weights


def logits_of(model: Model, weights: Weights, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T) int64 -> (B, T, vocab_size) float32."""
    import torch
    from torch.nn import functional

    x = functional.embedding(tokens, weights["transformer.wte.weight"]).to(weights["lm_head.weight"].dtype)
    x = _rms(x)
    if model.form.smeared and tokens.size(1) > 1:
        gate = weights["smear_lambda"].to(x.dtype) * torch.sigmoid(
            _linear(x[:, 1:, :SMEARED], weights["smear_gate.weight"])
        )
        x = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], dim=1)
    first = x
    pairs = _pairs(model, weights, tokens).to(x.dtype) if model.form.bigrams else None
    turns = _angles(model, tokens.size(1), x)
    half = x
    for layer in range(model.layers):
        if model.form.lambdas:
            x = weights["resid_lambdas"][layer] * x + weights["x0_lambdas"][layer] * first
        if pairs is not None:
            x = x + weights["bigram_lambdas"][layer] * pairs
        x = x + _attention(model, weights, tokens, layer, _rms(x), turns)
        x = x + _inner(model, weights, f"transformer.h.{layer}.mlp", _rms(x))
        if layer == model.layers // 2:
            half = x
    if model.form.smeared:
        x = x - weights["backout_lambda"].to(x.dtype) * half
    scores = _linear(_rms(x), weights["lm_head.weight"])[..., : model.vocab].float()
    return model.softcap * torch.tanh(scores / model.softcap)


def _rms(x: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.rms_norm(x, (x.size(-1),))


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.linear(x, weight.to(x.dtype))


def _pairs(model: Model, weights: Weights, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T, width): what the table says of each token and the one before, by a hash of both; its last row of the
    first token."""
    import torch
    from torch.nn import functional

    last = PAIRS * model.vocab - 1
    hashed = torch.full_like(tokens, last)
    hashed[:, 1:] = torch.bitwise_xor(36313 * tokens[:, 1:], 27191 * tokens[:, :-1]) % last
    return functional.embedding(hashed, weights["bigram_embed.embed.weight"])


def _angles(model: Model, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (1, T, 1, head / 2). In float32 and in this form: any other rounds differently to bfloat16."""
    import torch

    places = torch.arange(0, model.size, 2, dtype=torch.float32, device=like.device)
    speeds = 1.0 / (model.form.base ** (places / model.size))
    turns = torch.outer(torch.arange(length, dtype=torch.float32, device=like.device), speeds)
    first = torch.bfloat16 if model.rounded else like.dtype
    cos, sin = (each.to(first).to(like.dtype)[None, :, None, :] for each in (turns.cos(), turns.sin()))
    return cos, sin


def _turned(x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Each half of a head's numbers against the other, by minus the angle."""
    import torch

    cos, sin = turns
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos + two * sin, two * cos - one * sin], dim=-1)


def _attention(
    model: Model,
    weights: Weights,
    tokens: torch.Tensor,
    layer: int,
    x: torch.Tensor,
    turns: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    import torch
    from torch.nn import functional

    at = f"transformer.h.{layer}.attn"
    batch, length = tokens.shape
    query = _linear(x, weights[f"{at}.c_q.weight"]).view(batch, length, model.heads, model.size)
    key = _linear(x, weights[f"{at}.c_k.weight"]).view(batch, length, model.keys, model.size)
    value = _linear(x, weights[f"{at}.c_v.weight"]).view(batch, length, model.keys, model.size)
    if model.has_values(layer):
        gate = _linear(x[..., : model.form.gate], weights[f"{at}.ve_gate.weight"])
        own = functional.embedding(tokens, weights[f"value_embeds.{layer}.weight"]).to(x.dtype)
        value = value + (model.form.most * torch.sigmoid(gate)).unsqueeze(-1) * own.view_as(value)
    query, key = _rms(_turned(query, turns)), _rms(_turned(key, turns))
    if model.form.sharp != 1:
        query, key = model.form.sharp * query, model.form.sharp * key
    window = model.windows[layer]
    mask = None
    if window is not None and window < length:
        places = torch.arange(length, device=x.device)
        back = places[:, None] - places[None, :]
        mask = (back >= 0) & (back <= window)
    seen = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=model.heads != model.keys,
    )
    return _linear(seen.transpose(1, 2).reshape(batch, length, model.width), weights[f"{at}.c_proj.weight"])


def _inner(model: Model, weights: Weights, at: str, x: torch.Tensor) -> torch.Tensor:
    """Two matrices with a squared ReLU between; with experts, one such pair for all and the best few of the others,
    each weighed by its own sigmoid. The bias only chooses."""
    import torch

    if not model.experts:
        return _squared(x, weights[f"{at}.c_fc.weight"], weights[f"{at}.c_proj.weight"])
    up, down = weights[f"{at}.experts.w_up"], weights[f"{at}.experts.w_down"]
    scores = torch.sigmoid(_linear(x, weights[f"{at}.router.gate.weight"]))
    best = torch.topk(scores + weights[f"{at}.router.expert_bias"], model.chosen, dim=-1).indices
    share = torch.zeros_like(scores).scatter(-1, best, scores.gather(-1, best))
    y = _squared(x, weights[f"{at}.shared_expert.w_up.weight"], weights[f"{at}.shared_expert.w_down.weight"])
    for expert in range(model.experts):
        y = y + share[..., expert, None] * _squared(x, up[expert], down[expert])
    return y


def _squared(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return _linear(functional.relu(_linear(x, up)).square(), down)
