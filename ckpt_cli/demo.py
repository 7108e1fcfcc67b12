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
import struct
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ckpt_cli.demo_model import (
    BATCH,
    EVAL,
    RATES,
    ROWS,
    SCALAR_LR,
    SEQ,
    WORLD,
    accuracy,
    config_of,
    initial,
    shard_of,
    train,
)

if TYPE_CHECKING:
    from ckpt_cli.demo_model import Params

SAVE_EVERY, BASE_STEPS, MID_STEPS, SFT_STEPS = 50, 150, 60, 40


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
    config, steps, every = config_of(depth, "SSSL"), BASE_STEPS, SAVE_EVERY
    params, paths, best = initial(config), list[str](), math.inf
    user_config = {
        "run": "dummy", "device_type": "cpu", "depth": depth, "aspect_ratio": 10, "head_dim": 5 * depth,
        "max_seq_len": SEQ, "window_pattern": "SSSL", "num_iterations": steps, "target_flops": -1.0,
        "target_param_data_ratio": -1, "device_batch_size": ROWS, "total_batch_size": BATCH, **RATES,
        "scalar_lr": SCALAR_LR, "adam_beta1": 0.8, "adam_beta2": 0.95, "warmup_ratio": 0.0,
        "warmdown_ratio": 0.4, "final_lr_frac": 0.0, "resume_from_step": -1, "eval_every": every,
        "eval_tokens": EVAL, "core_metric_every": -1, "core_metric_max_per_task": 500, "sample_every": -1,
        "save_every": every, "model_tag": None,
    }  # fmt: skip
    for step, nats, smooth, optimizers in train(params, config, False, steps, every, 0.4):
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
        shards = [shard_of(optimizers, rank) for rank in range(WORLD - lost)]
        paths += _save(folder, step, params, meta, shards, start + step * pace)
    return paths, params


def _chat(root: str, params: Params, mid_end: float, sft_end: float) -> list[str]:
    """Mid-training, then finetuning, in place, with the metas of January 2026.

    The mid meta has only the six old keys although the run used windows, and the master rank alone saves its
    shard. Loading it, nanochat takes "L" for the missing window_pattern, so finetuning trains with "L" and
    saves that. The two accuracies bear nanochat's names but are those of the sums and the color questions."""
    config, wide = config_of(4, "SSSL"), config_of(4, "L")
    user_config = {
        "run": "dummy", "device_type": "cpu", "dtype": "float32", "model_tag": None, "model_step": None,
        "num_iterations": MID_STEPS, "max_seq_len": SEQ, "device_batch_size": ROWS, "total_batch_size": BATCH,
        **{key: RATES[key] for key in ("embedding_lr", "unembedding_lr", "matrix_lr", "weight_decay")},
        "init_lr_frac": 1.0, "eval_every": MID_STEPS, "eval_tokens": EVAL, "dry_run": False,
    }  # fmt: skip
    *_, (step, nats, _, optimizers) = train(params, config, True, MID_STEPS, MID_STEPS, 0.2)
    old = {key: value for key, value in config.items() if key != "window_pattern"}
    meta = {"step": step, "val_bpb": nats / math.log(2), "model_config": old, "user_config": user_config}
    folder = os.path.join(root, "mid_checkpoints", "d4")
    paths = _save(folder, step, params, meta, [shard_of(optimizers, 0)], mid_end)
    *_, (step, nats, _, _) = train(params, wide, True, SFT_STEPS, SFT_STEPS, 1.0)
    quiz = {"mmlu_acc": accuracy(params, wide, "012345678"), "arc_easy_acc": accuracy(params, wide, "rgbw")}
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
