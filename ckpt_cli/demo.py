"""Writes a small but real nanochat checkpoint tree on which every command can be tried.

A byte-level model of nanochat's "window" family (January 2026) is trained on made-up sentences, so every
weight, optimizer state and validation figure comes from real steps. The tree has the faults of real runs: a
lost optimizer shard, a mid-training meta without window_pattern, and one flipped bit. One process plays
both ranks; the times of the files and total_training_time are those of an imagined slower machine.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Params = OrderedDict[str, torch.Tensor]

# Every step, each of WORLD ranks reads ROWS rows of SEQ tokens.
SEED, WORLD, ROWS, SEQ, VOCAB = 1337, 2, 1, 64, 260
BATCH, EVAL = WORLD * ROWS * SEQ, 16 * SEQ  # tokens of a training step and of the held-out text
SAVE_EVERY, BASE_STEPS, MID_STEPS, SFT_STEPS = 50, 150, 60, 40
RATES = {"embedding_lr": 0.02, "unembedding_lr": 0.004, "weight_decay": 0.0, "matrix_lr": 0.1}
SCALAR_LR = 0.05
MATRICES = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
COLORS = {"fox": "red", "frog": "green", "bird": "blue", "goat": "white"}


def _config(depth: int, pattern: str) -> dict[str, Any]:
    """The model_config of a meta; n_embd = 10 * depth, always two heads."""
    sizes = {"sequence_len": SEQ, "vocab_size": VOCAB, "n_layer": depth, "n_head": 2, "n_kv_head": 2}
    return {**sizes, "n_embd": 10 * depth, "window_pattern": pattern}


def _init(config: dict[str, Any]) -> Params:
    """Seeded fp32 weights in the order of a nanochat state dict: linear weights are (out, in), the vocabulary
    is padded to a multiple of 64 rows, and the projections back into the stream start at zero."""
    import torch

    layers, dim, rows = config["n_layer"], config["n_embd"], -(-config["vocab_size"] // 64) * 64
    gen = torch.Generator().manual_seed(SEED)
    params: Params = OrderedDict(resid_lambdas=torch.ones(layers), x0_lambdas=torch.full((layers,), 0.1))
    params["transformer.wte.weight"] = torch.randn(rows, dim, generator=gen)
    for i in range(layers):
        for name in MATRICES:
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
        q_w, k_w, v_w, out_w, up_w, down_w = (params[f"transformer.h.{i}.{name}.weight"] for name in MATRICES)
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
        one, two, a, b = *rng.choices(list(COLORS), k=2), rng.randrange(5), rng.randrange(5)
        if not chat:
            verb = rng.choice(("sees", "follows", "likes", "hears"))
            text += f"the {COLORS[one]} {one} {verb} the {COLORS[two]} {two}.\n"
        elif rng.random() < 0.5:
            text += f"user: {a} plus {b}? bot: {a + b}.\n"
        else:
            text += f"user: color of {one}? bot: {COLORS[one]}.\n"
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


def _shard(optimizers: list[torch.optim.Optimizer], rank: int) -> list[dict[str, Any]]:
    """What one rank saves: 1/WORLD of the rows of AdamW's matrices, and every WORLD-th momentum buffer."""
    adamw, momentum = (dict(optimizer.state_dict()) for optimizer in optimizers)
    adamw["state"] = {
        # chunk() gives views, and torch.save would write all of the storage behind one, hence clone().
        i: {key: t.chunk(WORLD)[rank].clone() if t.ndim == 2 else t for key, t in entry.items()}
        for i, entry in adamw["state"].items()
    }
    momentum["state"] = {i: entry for i, entry in momentum["state"].items() if i % WORLD == rank}
    return [adamw, momentum]


def _train(
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


def _accuracy(params: Params, config: dict[str, Any], first: str) -> float:
    """Share right of the held-out answers that begin with one of `first`, by the largest of their logits."""
    tokens = _text(f"{SEED} held out", True, EVAL + 1)
    logits = _forward(params, config, tokens[:-1].view(-1, SEQ)).flatten(0, 1)
    text, ids = bytes(tokens.tolist()).decode(), list(first.encode())
    asked = [m.end() for m in re.finditer(f"bot: (?=[{first}])", text)]
    return sum(first[int(logits[i - 1, ids].argmax())] == text[i] for i in asked) / len(asked)


def _save(folder: str, step: int, params: Params, meta: dict[str, Any], shards: list[Any], when: float) -> list[str]:
    """Writes model, meta, then the optimizer file of each rank, and returns their paths. Their modification
    times are a second apart, from `when` (seconds since the epoch)."""
    import torch

    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, name) for name in (f"model_{step:06d}.pt", f"meta_{step:06d}.json")]
    paths += [os.path.join(folder, f"optim_{step:06d}_rank{rank}.pt") for rank in range(len(shards))]
    torch.save(OrderedDict((name, tensor.detach()) for name, tensor in params.items()), paths[0])
    with open(paths[1], "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
    for shard, path in zip(shards, paths[2:], strict=True):
        torch.save(shard, path)
    for seconds, path in enumerate(paths):
        os.utime(path, (when + seconds, when + seconds))
    return paths


def _flip_bit(path: str, index: int) -> None:
    """Flips the lowest exponent bit of the middle fp32 value of storage `index`, and keeps the file's times.
    The weight is doubled or halved: torch.load reads it in silence, only the CRC of the zip record tells."""
    times = os.stat(path)
    with zipfile.ZipFile(path) as archive:
        record = next(r for r in archive.infolist() if r.filename.endswith(f"/data/{index}"))
    with open(path, "r+b") as file:
        # The local header is 30 bytes, of which the last four are the sizes of a name and a padding after it.
        file.seek(record.header_offset + 26)
        where = record.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        where += record.file_size // 8 * 4 + 2
        file.seek(where)
        flipped = bytes([file.read(1)[0] ^ 0x80])
        file.seek(where)
        file.write(flipped)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _base(folder: str, depth: int, start: float, pace: float) -> tuple[list[str], Params]:
    """Pretraining from `start` on, at `pace` seconds per step. Returns the paths and the last weights."""
    config, steps, every = _config(depth, "SSSL"), BASE_STEPS, SAVE_EVERY
    params, paths, best = _init(config), list[str](), math.inf
    user_config = {
        "run": "dummy", "device_type": "cpu", "depth": depth, "aspect_ratio": 10, "head_dim": 5 * depth,
        "max_seq_len": SEQ, "window_pattern": "SSSL", "num_iterations": steps, "target_flops": -1.0,
        "target_param_data_ratio": -1, "device_batch_size": ROWS, "total_batch_size": BATCH, **RATES,
        "scalar_lr": SCALAR_LR, "adam_beta1": 0.8, "adam_beta2": 0.95, "warmup_ratio": 0.0,
        "warmdown_ratio": 0.4, "final_lr_frac": 0.0, "resume_from_step": -1, "eval_every": every,
        "eval_tokens": EVAL, "core_metric_every": -1, "core_metric_max_per_task": 500, "sample_every": -1,
        "save_every": every, "model_tag": None,
    }  # fmt: skip
    for step, nats, smooth, optimizers in _train(params, config, False, steps, every, 0.4):
        bpb = nats / math.log(2)  # bits per byte: every token is one byte
        best = min(best, bpb)
        if step == 0:
            continue
        meta = {"step": step, "val_bpb": bpb, "model_config": config, "user_config": user_config}
        meta |= {"device_batch_size": ROWS, "max_seq_len": SEQ}
        # Row groups of 4096 bytes; the time is without the first ten steps, as nanochat takes it.
        meta |= {"dataloader_state_dict": {"pq_idx": 0, "rg_idx": step * BATCH // 4096}}
        state = {"min_val_bpb": best, "smooth_train_loss": smooth, "total_training_time": (step - 10) * pace}
        meta |= {"loop_state": state}
        lost = depth == 6 and step == 2 * SAVE_EVERY
        shards = [_shard(optimizers, rank) for rank in range(WORLD - lost)]
        paths += _save(folder, step, params, meta, shards, start + step * pace)
    return paths, params


def _chat(root: str, params: Params, mid_end: float, sft_end: float) -> list[str]:
    """Mid-training, then finetuning, in place, with the metas of January 2026.

    The mid meta has only the six old keys although the run used windows, and the master rank alone saves its
    shard. Loading it, nanochat takes "L" for the missing window_pattern, so finetuning trains with "L" and
    saves that. The two accuracies bear nanochat's names but are those of the sums and the color questions."""
    config, wide = _config(4, "SSSL"), _config(4, "L")
    user_config = {
        "run": "dummy", "device_type": "cpu", "dtype": "float32", "model_tag": None, "model_step": None,
        "num_iterations": MID_STEPS, "max_seq_len": SEQ, "device_batch_size": ROWS, "total_batch_size": BATCH,
        **{key: RATES[key] for key in ("embedding_lr", "unembedding_lr", "matrix_lr", "weight_decay")},
        "init_lr_frac": 1.0, "eval_every": MID_STEPS, "eval_tokens": EVAL, "dry_run": False,
    }  # fmt: skip
    *_, (step, nats, _, optimizers) = _train(params, config, True, MID_STEPS, MID_STEPS, 0.2)
    old = {key: value for key, value in config.items() if key != "window_pattern"}
    meta = {"step": step, "val_bpb": nats / math.log(2), "model_config": old, "user_config": user_config}
    folder = os.path.join(root, "mid_checkpoints", "d4")
    paths = _save(folder, step, params, meta, [_shard(optimizers, 0)], mid_end)
    *_, (step, nats, _, _) = _train(params, wide, True, SFT_STEPS, SFT_STEPS, 1.0)
    quiz = {"mmlu_acc": _accuracy(params, wide, "012345678"), "arc_easy_acc": _accuracy(params, wide, "rgbw")}
    meta = {"step": step, "val_loss": nats, **quiz, "model_config": wide}
    return paths + _save(os.path.join(root, "chatsft_checkpoints", "d4"), step, params, meta, [], sft_end)


def write_demo(directory: str, now: float) -> list[str]:
    """Writes the tree below `directory` and returns the paths of its files, oldest first.

    `now` is in seconds since the epoch: the files' times tell of a run that ended an hour before it. The same
    torch on the same machine writes the same bytes again."""
    import torch

    base, end, threads = os.path.join(directory, "base_checkpoints"), now - 3600, torch.get_num_threads()
    torch.set_num_threads(1)  # faster on so small a model, and sums do not depend on the number of cores
    try:
        paths, params = _base(os.path.join(base, "d4"), 4, end - 3600, 6.0)
        paths += _base(os.path.join(base, "d6"), 6, end - 2600, 9.0)[0]
        _flip_bit(paths[0], list(params).index("transformer.h.0.mlp.c_fc.weight"))
        return paths + _chat(directory, params, end - 600, end - 1)
    finally:
        torch.set_num_threads(threads)
