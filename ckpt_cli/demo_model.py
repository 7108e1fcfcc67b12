"""The small model of the demo: nanochat's "window" family (January 2026) over bytes, its optimizers and its training.

Everything is seeded; it knows nothing of files.
"""

from __future__ import annotations

import math
import random
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ckpt_cli.revisions import padded

if TYPE_CHECKING:
    import torch

    Params = OrderedDict[str, torch.Tensor]

# Every step, each of WORLD ranks reads ROWS rows of SEQ tokens.
SEED, WORLD, ROWS, SEQ, VOCAB = 1337, 2, 1, 64, 260
BATCH, EVAL = WORLD * ROWS * SEQ, 16 * SEQ  # tokens of a training step and of the held-out text
RATES = {"embedding_lr": 0.02, "unembedding_lr": 0.004, "weight_decay": 0.0, "matrix_lr": 0.1}
SCALAR_LR = 0.05
_MATRICES = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_COLORS = {"fox": "red", "frog": "green", "bird": "blue", "goat": "white"}


def config_of(depth: int, pattern: str) -> dict[str, Any]:
    """The model_config of a meta; n_embd = 10 * depth, always two heads."""
    sizes = {"sequence_len": SEQ, "vocab_size": VOCAB, "n_layer": depth, "n_head": 2, "n_kv_head": 2}
    return {**sizes, "n_embd": 10 * depth, "window_pattern": pattern}


def initial(config: dict[str, Any]) -> Params:
    """Seeded fp32 weights in the order of a nanochat state dict: linear weights are (out, in), the vocabulary
    is padded, and the projections back into the stream start at zero."""
    import torch

    layers, dim, rows = config["n_layer"], config["n_embd"], padded(config["vocab_size"])
    gen = torch.Generator().manual_seed(SEED)
    params: Params = OrderedDict(resid_lambdas=torch.ones(layers), x0_lambdas=torch.full((layers,), 0.1))
    params["transformer.wte.weight"] = torch.randn(rows, dim, generator=gen)
    for i in range(layers):
        for name in _MATRICES:
            shape = (4 * dim if name == "mlp.c_fc" else dim, 4 * dim if name == "mlp.c_proj" else dim)
            bound = 0.0 if name.endswith("c_proj") else math.sqrt(3 / dim)
            params[f"transformer.h.{i}.{name}.weight"] = (2 * torch.rand(shape, generator=gen) - 1) * bound
    params["lm_head.weight"] = torch.randn(rows, dim, generator=gen) * 0.001
    return params


def _forward(params: Params, config: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
    """fp32 logits (B, T, vocab_size) for tokens (B, T): the "window" family of nanochat, January 2026."""
    import torch
    import torch.nn.functional as F

    heads, kv_heads, pattern = config["n_head"], config["n_kv_head"], config["window_pattern"]
    (batch, length), dim, layers = tokens.shape, config["n_embd"], config["n_layer"]
    head_dim, position = dim // heads, torch.arange(length)
    frequency = 1.0 / (10000 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    angle = torch.outer(position.float(), frequency)
    # The tables of that time are bf16, on the CPU too; the arithmetic around them is fp32.
    cos, sin = (t.bfloat16().float()[:, None, :] for t in (angle.cos(), angle.sin()))
    distance = position[:, None] - position[None, :]

    def norm(t: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(t, (t.size(-1),))

    def split(t: torch.Tensor) -> torch.Tensor:
        return t.view(batch, length, -1, head_dim)

    def rotate(t: torch.Tensor) -> torch.Tensor:
        a, b = t.chunk(2, dim=-1)
        return norm(torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1))

    x = x0 = norm(F.embedding(tokens, params["transformer.wte.weight"]).float())
    for i in range(layers):
        q_w, k_w, v_w, out_w, up_w, down_w = (params[f"transformer.h.{i}.{name}.weight"] for name in _MATRICES)
        x = params["resid_lambdas"][i] * x + params["x0_lambdas"][i] * x0
        h = norm(x)
        q, k, v = (split(F.linear(h, weight)) for weight in (q_w, k_w, v_w))
        q, k = rotate(q), rotate(k)
        if kv_heads < heads:
            k, v = (t.repeat_interleave(heads // kv_heads, dim=2) for t in (k, v))
        # A short window is half a sequence; the last layer always sees all of it.
        window = config["sequence_len"] // (2 if pattern[i % len(pattern)] == "S" and i < layers - 1 else 1)
        mask = (distance >= 0) & (distance <= window)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # to (B, heads, T, head_dim)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        x = x + F.linear(y.reshape(batch, length, dim), out_w)
        x = x + F.linear(F.linear(norm(x), up_w).relu().square(), down_w)
    logits = F.linear(norm(x), params["lm_head.weight"])[..., : config["vocab_size"]].float()
    return 15 * torch.tanh(logits / 15)


def _text(seed: str, chat: bool, size: int) -> torch.Tensor:
    """`size` bytes of seeded sentences, or of questions and answers, as token ids (size,)."""
    import torch

    rng, text = random.Random(seed), ""
    while len(text) < size:
        one, two, a, b = *rng.choices(list(_COLORS), k=2), rng.randrange(5), rng.randrange(5)
        if not chat:
            verb = rng.choice(("sees", "follows", "likes", "hears"))
            text += f"the {_COLORS[one]} {one} {verb} the {_COLORS[two]} {two}.\n"
        elif rng.random() < 0.5:
            text += f"user: {a} plus {b}? bot: {a + b}.\n"
        else:
            text += f"user: color of {one}? bot: {_COLORS[one]}.\n"
    return torch.tensor(list(text[:size].encode()))


def _loss(params: Params, config: dict[str, Any], block: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy, nats per byte, of n * SEQ + 1 tokens read as n rows."""
    import torch.nn.functional as F

    return F.cross_entropy(_forward(params, config, block[:-1].view(-1, SEQ)).flatten(0, 1), block[1:])


def _optimizers(params: Params) -> list[torch.optim.Optimizer]:
    """[AdamW over lm_head, wte and lambdas; momentum over the matrices, one group per shape], grouped as in
    nanochat, January 2026. Its Muon keeps a 2-D momentum_buffer per matrix, and so does SGD with momentum."""
    import torch

    scale = (params["lm_head.weight"].size(1) / 768) ** -0.5  # nanochat scales two rates with the width
    rates = {"lm_head.weight": RATES["unembedding_lr"] * scale}
    rates |= {"transformer.wte.weight": RATES["embedding_lr"] * scale}
    rates |= {"resid_lambdas": SCALAR_LR * 0.01, "x0_lambdas": SCALAR_LR}
    small = [{"params": [params[name]], "lr": lr, "initial_lr": lr} for name, lr in rates.items()]
    by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for name, tensor in params.items():
        if name not in rates:
            by_shape.setdefault(tuple(tensor.shape), []).append(tensor)
    lr = RATES["matrix_lr"]
    large = [{"params": by_shape[shape], "initial_lr": lr} for shape in sorted(by_shape)]
    adamw = torch.optim.AdamW(small, betas=(0.8, 0.95), eps=1e-10, weight_decay=RATES["weight_decay"])
    return [adamw, torch.optim.SGD(large, lr=lr, momentum=0.95, nesterov=True)]


def shard_of(optimizers: list[torch.optim.Optimizer], rank: int) -> list[dict[str, Any]]:
    """What one rank saves: 1/WORLD of the rows of AdamW's matrices, and every WORLD-th momentum buffer."""
    adamw, momentum = (dict(optimizer.state_dict()) for optimizer in optimizers)
    adamw["state"] = {
        # chunk() gives views, and torch.save would write all of the storage behind one, hence clone().
        i: {key: t.chunk(WORLD)[rank].clone() if t.ndim == 2 else t for key, t in entry.items()}
        for i, entry in adamw["state"].items()
    }
    momentum["state"] = {i: entry for i, entry in momentum["state"].items() if i % WORLD == rank}
    return [adamw, momentum]


def train(
    params: Params, config: dict[str, Any], chat: bool, steps: int, every: int, warmdown: float
) -> Iterator[tuple[int, float, float, list[torch.optim.Optimizer]]]:
    """Trains in place; at step 0 and every multiple of `every` yields the step, the loss on held-out text
    (nats per byte), the moving average of the training loss (not debiased) and the optimizers."""
    import torch

    data = _text(f"{SEED} train {steps}", chat, steps * BATCH + 1)  # + 1: the last target
    held_out = _text(f"{SEED} held out", chat, EVAL + 1)
    for tensor in params.values():
        tensor.requires_grad_(True)
    optimizers, smooth = _optimizers(params), 0.0
    for step in range(steps + 1):
        if step % every == 0:
            yield step, _loss(params, config, held_out).item(), smooth, optimizers
        if step == steps:
            return
        loss = _loss(params, config, data[step * BATCH : (step + 1) * BATCH + 1])
        torch.autograd.backward(loss)
        smooth = 0.9 * smooth + 0.1 * loss.item()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, (steps - step) / (warmdown * steps))
            optimizer.step()
            optimizer.zero_grad()


def accuracy(params: Params, config: dict[str, Any], first: str) -> float:
    """Share right of the held-out answers that begin with one of `first`, by the largest of their logits."""
    tokens = _text(f"{SEED} held out", True, EVAL + 1)
    logits = _forward(params, config, tokens[:-1].view(-1, SEQ)).flatten(0, 1)
    text, ids = bytes(tokens.tolist()).decode(), list(first.encode())
    asked = [m.end() for m in re.finditer(f"bot: (?=[{first}])", text)]
    return sum(first[int(logits[i - 1, ids].argmax())] == text[i] for i in asked) / len(asked)
