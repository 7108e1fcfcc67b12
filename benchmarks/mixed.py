"""Trees for `ckpt list`: runs of twenty steps in six layouts, names and JSON as the trainers write them, no tensors."""

from __future__ import annotations

import json
from pathlib import Path

STEPS = range(100, 2001, 100)


def write_mixed(root: Path, runs: int) -> None:
    """Writes `runs` runs, the layouts in turn."""
    layouts = (_nanochat, _nano_gpt, _build_nanogpt, _trainer, _torchtune, _lightning)
    for number in range(runs):
        for step in STEPS:
            for name, content in layouts[number % len(layouts)](number, step).items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)


def _nanochat(run: int, step: int) -> dict[str, str]:
    folder = f"nanochat/base_checkpoints/d{run}"
    meta = {"step": step, "val_bpb": 1 / step, "model_config": {"n_layer": 4}}
    shards = {f"{folder}/optim_{step:06d}_rank{rank}.pt": "x" for rank in range(2)}
    return {f"{folder}/model_{step:06d}.pt": "x", f"{folder}/meta_{step:06d}.json": json.dumps(meta), **shards}


def _nano_gpt(run: int, step: int) -> dict[str, str]:
    return {f"nano_gpt/run{run}/checkpoint_{step:06d}.bin": "x"}


def _build_nanogpt(run: int, step: int) -> dict[str, str]:
    return {f"build/run{run}/model_{step:05d}.pt": "x"}


def _trainer(run: int, step: int) -> dict[str, str]:
    """The log has a row every ten steps, as the Trainer's grows."""
    log = [{"epoch": at / 100, "loss": 2 / (at + 1), "step": at} for at in range(10, step + 1, 10)]
    state = {
        "best_global_step": None,
        "global_step": step,
        "log_history": [*log, {"eval_loss": 1 / step, "step": step}],
    }
    files = dict.fromkeys(
        ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"), "x"
    )
    files |= {"config.json": "{}", "trainer_state.json": json.dumps(state, indent=2)}
    return {f"trainer/run{run}/checkpoint-{step}/{name}": content for name, content in files.items()}


def _torchtune(run: int, step: int) -> dict[str, str]:
    shards = [f"model-0000{shard}-of-00002.safetensors" for shard in (1, 2)]
    index = {"metadata": {"total_size": 2}, "weight_map": {f"layers.{i}.weight": shards[i % 2] for i in range(40)}}
    files = {**dict.fromkeys(shards, "x"), "model.safetensors.index.json": json.dumps(index), "config.json": "{}"}
    return {f"torchtune/run{run}/epoch_{step // 100 - 1}/{name}": content for name, content in files.items()}


def _lightning(run: int, step: int) -> dict[str, str]:
    return {f"lightning/run{run}/epoch={step // 100}-step={step}-val_loss={1 / step:.4f}.ckpt": "x"}
