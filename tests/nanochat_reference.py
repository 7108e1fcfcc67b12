"""nanochat's forward pass once more, position by position in float64, and small random models for it.

Nothing here is of the package: the constants stand in this file, and attention is a loop over what a token sees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

State = dict[str, torch.Tensor]


class Kind(NamedTuple):
    base: float
    sharp: float
    columns: int
    most: float
    short: str
    rounded: bool


KINDS = {
    "v1": Kind(1e4, 1.0, 0, 0, "", True),
    "lambdas": Kind(1e4, 1.0, 0, 0, "", True),
    "window": Kind(1e4, 1.0, 0, 0, "half", True),
    "ve32": Kind(1e4, 1.0, 32, 2, "half", True),
    "engram": Kind(1e4, 1.0, 32, 2, "half", True),
    "ve12": Kind(1e5, 1.15, 12, 3, "third", False),
    "smear": Kind(1e5, 1.2, 12, 3, "quarter", False),
    "moe3": Kind(1e5, 1.2, 12, 3, "quarter", False),
}


def shapes(kind: str, config: Mapping[str, Any], rows: int) -> dict[str, tuple[int, ...]]:
    layers, width, vocab = config["n_layer"], config["n_embd"], config["vocab_size"]
    heads, keys = config["n_head"], config.get("n_kv_head", config["n_head"])
    side = keys * (width // heads)
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (rows, width), "lm_head.weight": (rows, width)}
    if kind != "v1":
        found |= {"resid_lambdas": (layers,), "x0_lambdas": (layers,)}
    if kind == "engram":
        found |= {"bigram_lambdas": (layers,), "bigram_embed.embed.weight": (5 * vocab, width)}
    if kind in ("smear", "moe3"):
        found |= {"smear_lambda": (1,), "backout_lambda": (1,), "smear_gate.weight": (1, 24)}
    for i in range(layers):
        at = f"transformer.h.{i}."
        found |= {at + "attn.c_q.weight": (width, width), at + "attn.c_proj.weight": (width, width)}
        found |= {at + "attn.c_k.weight": (side, width), at + "attn.c_v.weight": (side, width)}
        if KINDS[kind].columns and i % 2 == (layers - 1) % 2:
            found |= {at + "attn.ve_gate.weight": (keys, KINDS[kind].columns), f"value_embeds.{i}.weight": (rows, side)}
        if kind == "moe3":
            count, hidden = config["num_experts"], 128
            found |= {
                at + "mlp.experts.w_up": (count, hidden, width),
                at + "mlp.experts.w_down": (count, width, hidden),
            }
            found |= {at + "mlp.router.gate.weight": (count, width), at + "mlp.router.expert_bias": (count,)}
            found |= {at + "mlp.router.tokens_per_expert_counter": (count,)}
            found |= {at + "mlp.shared_expert.w_up.weight": (hidden, width)}
            found |= {at + "mlp.shared_expert.w_down.weight": (width, hidden)}
        else:
            found |= {at + "mlp.c_fc.weight": (4 * width, width), at + "mlp.c_proj.weight": (width, 4 * width)}
    return found


def random_state(kind: str, config: Mapping[str, Any], rows: int, seed: int = 0) -> State:
    """Weights large enough that every part of the model moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(kind, config, rows).items():
        scale = 0.5 if len(shape) < 2 else 1.0 if "embed" in name or "wte" in name else 1.5 / math.sqrt(shape[-1])
        state[name] = torch.randn(shape, generator=generator) * scale
    return state


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 2.0**-23)


def _turned(x: torch.Tensor, place: int, base: float, rounded: bool) -> torch.Tensor:
    """A head's numbers at one place."""
    size = x.size(-1)
    angle = torch.tensor(float(place)) * (1.0 / (base ** (torch.arange(0, size, 2).float() / size)))
    cos, sin = angle.cos(), angle.sin()
    if rounded:
        cos, sin = cos.bfloat16(), sin.bfloat16()
    one, two, cos, sin = x[: size // 2], x[size // 2 :], cos.double(), sin.double()
    return torch.cat([one * cos + two * sin, two * cos - one * sin])


def _inner(kind: str, w: State, at: str, x: torch.Tensor, chosen: int) -> torch.Tensor:
    if kind != "moe3":
        return torch.stack([w[at + "c_proj.weight"] @ (w[at + "c_fc.weight"] @ t).clamp(min=0) ** 2 for t in x])
    out = []
    for t in x:
        score = torch.sigmoid(w[at + "router.gate.weight"] @ t)
        y = w[at + "shared_expert.w_down.weight"] @ (w[at + "shared_expert.w_up.weight"] @ t).clamp(min=0) ** 2
        order = sorted(range(len(score)), key=lambda e: -float(score[e] + w[at + "router.expert_bias"][e]))
        for e in order[:chosen]:
            y = y + score[e] * (w[at + "experts.w_down"][e] @ (w[at + "experts.w_up"][e] @ t).clamp(min=0) ** 2)
        out.append(y)
    return torch.stack(out)


def logits(
    kind: str, state: State, config: Mapping[str, Any], tokens: list[int], cap: float = 15, rounded: bool | None = None
) -> torch.Tensor:
    """(T, vocab_size) float64 of one sequence."""
    k = KINDS[kind]
    w = {name: tensor.double() for name, tensor in state.items()}
    layers, heads, vocab = config["n_layer"], config["n_head"], config["vocab_size"]
    keys, size, context = config.get("n_kv_head", heads), config["n_embd"] // heads, config["sequence_len"]
    short = {
        "": 0,
        "half": context // 2,
        "third": math.ceil(math.ceil(context / 3) / 128) * 128,
        "quarter": math.ceil(math.ceil(context / 4) / 128) * 128,
    }[k.short]
    x = _rms(w["transformer.wte.weight"][tokens])
    smeared = kind in ("smear", "moe3")
    if smeared:
        gates = w["smear_lambda"] * torch.sigmoid(x[:, :24] @ w["smear_gate.weight"][0])
        x = torch.stack([x[t] + (gates[t] * x[t - 1] if t else 0) for t in range(len(tokens))])
    first, half = x, x
    last = 5 * vocab - 1
    hashed = [last] + [((36313 * b) ^ (27191 * a)) % last for a, b in itertools.pairwise(tokens)]
    for i in range(layers):
        at = f"transformer.h.{i}."
        if kind != "v1":
            x = w["resid_lambdas"][i] * x + w["x0_lambdas"][i] * first
        if kind == "engram":
            x = x + w["bigram_lambdas"][i] * w["bigram_embed.embed.weight"][hashed]
        h = _rms(x)
        q, key, v = (
            (h @ w[f"{at}attn.{name}.weight"].T).view(len(tokens), count, size)
            for name, count in (("c_q", heads), ("c_k", keys), ("c_v", keys))
        )
        if k.columns and i % 2 == (layers - 1) % 2:
            gate = k.most * torch.sigmoid(h[:, : k.columns] @ w[at + "attn.ve_gate.weight"].T)
            v = v + gate[..., None] * w[f"value_embeds.{i}.weight"][tokens].view(v.shape)
        turn = k.rounded if rounded is None else rounded
        q = torch.stack([torch.stack([_turned(a, t, k.base, turn) for a in q[t]]) for t in range(len(tokens))])
        key = torch.stack([torch.stack([_turned(a, t, k.base, turn) for a in key[t]]) for t in range(len(tokens))])
        q, key = k.sharp * _rms(q), k.sharp * _rms(key)
        window = len(tokens)
        if k.short:
            pattern = config.get("window_pattern", "L").upper()
            letter = "L" if i == layers - 1 else pattern[i % len(pattern)]
            window = context if letter == "L" else short
        rows = []
        for t in range(len(tokens)):
            begin = max(0, t - window)
            seen = []
            for a in range(heads):
                b = a // (heads // keys)
                weight = torch.softmax(key[begin : t + 1, b] @ q[t, a] / math.sqrt(size), 0)
                seen.append(weight @ v[begin : t + 1, b])
            rows.append(torch.cat(seen))
        x = x + torch.stack(rows) @ w[at + "attn.c_proj.weight"].T
        x = x + _inner(kind, w, at + "mlp.", _rms(x), config.get("top_k", 0))
        if i == layers // 2:
            half = x
    if smeared:
        x = x - w["backout_lambda"] * half
    z = (_rms(x) @ w["lm_head.weight"].T)[:, :vocab]
    return cap * torch.tanh(z / cap)
