"""The torch side of the benchmark, one child process a call: writes the data, and does what ckpt does with torch.

baselines.py big FILE [--quick]    a model of 122 bf16 tensors, by torch.save
baselines.py small FILE            one tensor of eight numbers, by torch.save
baselines.py runs DIR COUNT STEPS  COUNT nanochat runs of STEPS checkpoints each
baselines.py list DIR              what `ckpt list` shows, by glob and torch.load
baselines.py tensors FILE          what `ckpt inspect tensors` shows, by torch.load
baselines.py convert FILE OUT      torch.load and safetensors.torch.save_file
baselines.py convert-mmap FILE OUT the same with mmap=True
baselines.py cast FILE OUT         load_file, .to(bfloat16) of every tensor, save_file
baselines.py import                `import torch` alone
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
import time

import torch


def big(path: str, quick: bool) -> None:
    """The tensors of a nanochat model of depth 20, or of a narrower one, in bf16: 1.04 GB, or 83 MB."""
    width, words, layers = (384, 8192, 20) if quick else (1280, 50304, 20)
    shapes = {"transformer.wte.weight": (words, width)}
    for layer in range(layers):
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            shapes[f"transformer.h.{layer}.attn.{name}.weight"] = (width, width)
        shapes[f"transformer.h.{layer}.mlp.c_fc.weight"] = (4 * width, width)
        shapes[f"transformer.h.{layer}.mlp.c_proj.weight"] = (width, 4 * width)
    shapes["lm_head.weight"] = (words, width)
    random = torch.Generator().manual_seed(0)
    model = {name: torch.randn(shape, generator=random, dtype=torch.bfloat16) for name, shape in shapes.items()}
    os.makedirs(os.path.dirname(path))
    torch.save(model, path)


def runs(root: str, count: int, steps: int) -> None:
    """Runs d1, d2, ... of a tiny model with its AdamW state, saved once and copied to every step."""
    model = torch.nn.Sequential(torch.nn.Embedding(64, 8), torch.nn.Linear(8, 64, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(64)).square().mean().backward()
    optimizer.step()
    sample_model, sample_optimizer = os.path.join(root, "model.pt"), os.path.join(root, "optim.pt")
    os.makedirs(root)
    torch.save(model.state_dict(), sample_model)
    torch.save(optimizer.state_dict(), sample_optimizer)
    for run in range(1, count + 1):
        folder = os.path.join(root, "base_checkpoints", f"d{run}")
        os.makedirs(folder)
        for step in range(100, 100 * steps + 1, 100):
            shutil.copyfile(sample_model, os.path.join(folder, f"model_{step:06d}.pt"))
            shutil.copyfile(sample_optimizer, os.path.join(folder, f"optim_{step:06d}_rank0.pt"))
            meta = {
                "step": step,
                "val_bpb": 1 + 1 / step + run / 1000,
                "model_config": {"sequence_len": 64, "vocab_size": 64, "n_layer": run, "n_head": 1, "n_embd": 8},
                "user_config": {"run": "dummy", "depth": run, "num_iterations": 100 * steps, "save_every": 100},
                "device_batch_size": 1,
                "max_seq_len": 64,
            }
            with open(os.path.join(folder, f"meta_{step:06d}.json"), "w", encoding="utf-8") as file:
                json.dump(meta, file, indent=2)
    os.remove(sample_model)
    os.remove(sample_optimizer)


def list_with_torch(root: str) -> None:
    """The script that people write: every model by glob, loaded without its data, its meta file and its shards."""
    for path in sorted(glob.glob(os.path.join(root, "*_checkpoints", "*", "model_*.pt"))):
        torch.load(path, map_location="meta", weights_only=True)
        with open(path.replace("model_", "meta_").removesuffix(".pt") + ".json", encoding="utf-8") as file:
            meta = json.load(file)
        shards = glob.glob(path.replace("model_", "optim_").removesuffix(".pt") + "*.pt")
        size = sum(os.path.getsize(part) for part in (path, *shards))
        name = next((name for name in ("val_bpb", "val_loss") if name in meta), None)
        age = time.time() - os.path.getmtime(path)
        print(path, size, f"{age:.0f} s", f"{name}={meta[name]}" if name else "", f"optim {len(shards)}", sep="\t")


def tensors(path: str) -> None:
    """Name, dtype, shape and bytes of every tensor; a tensor on the meta device does not tell its storage."""
    for name, tensor in torch.load(path, map_location="meta", weights_only=True, mmap=True).items():
        dtype, shape = str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))
        print(name, dtype, shape, tensor.numel() * tensor.element_size(), sep="\t")


def convert(path: str, output: str, mmap: bool) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap), output, {"format": "pt"})


def cast(path: str, output: str) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}, output, {"format": "pt"})


def main(what: str, *arguments: str) -> None:
    if what == "big":
        big(arguments[0], "--quick" in arguments)
    elif what == "small":
        os.makedirs(os.path.dirname(arguments[0]))
        torch.save({"weight": torch.ones(8)}, arguments[0])
    elif what == "runs":
        runs(arguments[0], int(arguments[1]), int(arguments[2]))
    elif what == "list":
        list_with_torch(arguments[0])
    elif what == "tensors":
        tensors(arguments[0])
    elif what == "cast":
        cast(arguments[0], arguments[1])
    elif what in ("convert", "convert-mmap"):
        convert(arguments[0], arguments[1], mmap=what == "convert-mmap")
    elif what != "import":
        sys.exit(f"there is no {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
