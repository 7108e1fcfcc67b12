"""The torch side of the benchmark, one child process a call: writes the data, and does what ckpt does with torch.

baselines.py big FILE [--quick]    a model of 122 bf16 tensors, by torch.save
baselines.py small FILE            one tensor of eight numbers, by torch.save
baselines.py many FILE COUNT       COUNT tensors of eight numbers, by torch.save
baselines.py runs DIR COUNT STEPS  COUNT nanochat runs of STEPS checkpoints each
baselines.py list DIR              what `ckpt list` shows, by glob and torch.load
baselines.py tensors FILE          what `ckpt inspect tensors` shows, by torch.load
baselines.py convert FILE OUT      torch.load and safetensors.torch.save_file
baselines.py convert-mmap FILE OUT the same with mmap=True
baselines.py cast FILE OUT         load_file, .to(bfloat16) of every tensor, save_file
baselines.py tune FILE [--quick]   a Llama model under torchtune's names, and its config.json beside it
baselines.py tune-to-hf FILE OUT   that model under Hugging Face's names, q and k permuted, save_file
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


# torchtune's names and Hugging Face's, of what a Llama model has once and of what each layer has.
OUTER = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "sa_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.output_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.gate_proj.weight",
    "mlp.w2.weight": "mlp.down_proj.weight",
    "mlp.w3.weight": "mlp.up_proj.weight",
}


def tune(path: str, quick: bool) -> None:
    """A Llama model in bf16 whose attention has a quarter as many heads for keys as for queries: 1.06 GB, or 43 MB."""
    width, inner, words, layers, heads = (512, 1408, 8192, 4, 8) if quick else (2048, 5632, 32000, 9, 16)
    shapes = {"tok_embeddings.weight": (words, width), "norm.scale": (width,), "output.weight": (words, width)}
    own = {
        "attn.k_proj.weight": (width // 4, width),
        "attn.v_proj.weight": (width // 4, width),
        "mlp.w1.weight": (inner, width),
        "mlp.w2.weight": (width, inner),
        "mlp.w3.weight": (inner, width),
    }
    for layer in range(layers):
        for name in LAYER:
            shapes[f"layers.{layer}.{name}"] = (width,) if "norm" in name else own.get(name, (width, width))
    random = torch.Generator().manual_seed(0)
    os.makedirs(os.path.dirname(path))
    torch.save({n: torch.randn(shape, generator=random, dtype=torch.bfloat16) for n, shape in shapes.items()}, path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads // 4,
        "vocab_size": words,
    }
    with open(os.path.join(os.path.dirname(path), "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)


def tune_to_hf(path: str, output: str) -> None:
    """Each head of q and k has its rows as pairs in torchtune, and as two halves in Hugging Face."""
    from safetensors.torch import save_file

    with open(os.path.join(os.path.dirname(path), "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    state = {}
    for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
        if name in OUTER:
            state[OUTER[name]] = tensor
            continue
        _, layer, inside = name.split(".", 2)
        if inside in ("attn.q_proj.weight", "attn.k_proj.weight"):
            rows, columns = tensor.shape
            pairs = tensor.view(heads[inside[5]], -1, 2, columns)
            tensor = pairs.transpose(1, 2).reshape(rows, columns)
        state[f"model.layers.{layer}.{LAYER[inside]}"] = tensor
    save_file(state, output, {"format": "pt"})


def main(what: str, *arguments: str) -> None:
    if what == "big":
        big(arguments[0], "--quick" in arguments)
    elif what == "small":
        os.makedirs(os.path.dirname(arguments[0]))
        torch.save({"weight": torch.ones(8)}, arguments[0])
    elif what == "many":
        os.makedirs(os.path.dirname(arguments[0]))
        names = [f"layers.{index // 10}.mlp.part{index % 10}.weight" for index in range(int(arguments[1]))]
        torch.save({name: torch.ones(8) for name in names}, arguments[0])
    elif what == "runs":
        runs(arguments[0], int(arguments[1]), int(arguments[2]))
    elif what == "list":
        list_with_torch(arguments[0])
    elif what == "tensors":
        tensors(arguments[0])
    elif what == "cast":
        cast(arguments[0], arguments[1])
    elif what == "tune":
        tune(arguments[0], "--quick" in arguments)
    elif what == "tune-to-hf":
        tune_to_hf(arguments[0], arguments[1])
    elif what in ("convert", "convert-mmap"):
        convert(arguments[0], arguments[1], mmap=what == "convert-mmap")
    elif what != "import":
        sys.exit(f"there is no {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
