"""The classical way to a model, for `ckpt load-test` to be compared with.

classical.py write DIR [--layers 12] [--width 768] [--vocabulary 32768]   a checkpoint of random weights
classical.py load DIR                                                     all of the below, and 32 tokens

`load` reads everything into memory, widens bfloat16 to float32, makes the model's memory, initialises it, copies the
weights over that and runs 32 tokens. It prints JSON: seconds of `build` (all but the run) and of `forward`, the logits'
sum. The model is written for this benchmark after the description of nanochat's "smear" revision.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional

STEP = 1000
SEED = 1337
LENGTH = 32


def norm(x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    def __init__(self, config: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.heads, self.keys = config["n_head"], config["n_kv_head"]
        width = config["n_embd"]
        self.size = width // self.heads
        self.c_q = nn.Linear(width, self.heads * self.size, bias=False)
        self.c_k = nn.Linear(width, self.keys * self.size, bias=False)
        self.c_v = nn.Linear(width, self.keys * self.size, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.ve_gate = nn.Linear(12, self.keys, bias=False) if layer % 2 == (config["n_layer"] - 1) % 2 else None

    def forward(
        self, x: torch.Tensor, values: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, window: int
    ) -> torch.Tensor:
        batch, length, width = x.shape
        q = self.c_q(x).view(batch, length, self.heads, self.size)
        k = self.c_k(x).view(batch, length, self.keys, self.size)
        v = self.c_v(x).view(batch, length, self.keys, self.size)
        if self.ve_gate is not None and values is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :12]))
            v = v + gate[..., None] * values.view(batch, length, self.keys, self.size)
        q, k = (1.2 * norm(turn(each, cos, sin)) for each in (q, k))
        places = torch.arange(length)
        back = places[:, None] - places[None, :]
        mask = (back >= 0) & (back <= window)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.heads != self.keys)
        out: torch.Tensor = self.c_proj(y.transpose(1, 2).reshape(batch, length, width))
        return out


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos + two * sin, two * cos - one * sin], dim=-1)


class Inner(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c_proj(functional.relu(self.c_fc(x)).square())
        return out


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = Inner(config["n_embd"])


class Model(nn.Module):
    """nanochat's HEAD of July 2026, as far as a forward pass without a cache needs it."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.settings = config
        width, layers = config["n_embd"], config["n_layer"]
        rows = 64 * math.ceil(config["vocab_size"] / 64)
        self.resid_lambdas = nn.Parameter(torch.ones(layers))
        self.x0_lambdas = nn.Parameter(torch.zeros(layers))
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.zeros(1))
        blocks = nn.ModuleList(Layer(config, layer) for layer in range(layers))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(rows, width), "h": blocks})
        self.lm_head = nn.Linear(width, rows, bias=False)
        self.smear_gate = nn.Linear(24, 1, bias=False)
        depth = config["n_kv_head"] * (width // config["n_head"])
        having = [layer for layer in range(layers) if layer % 2 == (layers - 1) % 2]
        self.value_embeds = nn.ModuleDict({str(layer): nn.Embedding(rows, depth) for layer in having})
        self._tables(torch.device("meta"))

    def _tables(self, device: torch.device) -> None:
        size = self.settings["n_embd"] // self.settings["n_head"]
        places = torch.arange(10 * self.settings["sequence_len"], dtype=torch.float32, device=device)
        speeds = 1.0 / (1e5 ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size))
        angles = torch.outer(places, speeds)[None, :, None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Uniform matrices, normal embeddings, projections at zero."""
        bound = math.sqrt(3 / self.settings["n_embd"])
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.zero_()
            elif "wte" in name:
                parameter.normal_(0.0, 0.8)
            elif name == "lm_head.weight":
                parameter.normal_(0.0, 0.001)
            elif parameter.dim() == 2:
                parameter.uniform_(-bound, bound)
            else:
                parameter.fill_(1.0 if name == "resid_lambdas" else 0.1)
        self._tables(torch.device("cpu"))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        blocks: Any = self.transformer["h"]
        length, layers = tokens.size(1), len(blocks)
        x = norm(self.transformer["wte"](tokens))
        gate = self.smear_lambda * torch.sigmoid(self.smear_gate(x[:, 1:, :24]))
        x = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], dim=1)
        first = half = x
        cos, sin = self.cos[:, :length], self.sin[:, :length]
        long = self.settings["sequence_len"]
        short = 128 * math.ceil(math.ceil(long / 4) / 128)
        pattern = self.settings["window_pattern"]
        for layer, block in enumerate(blocks):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * first
            own = self.value_embeds[str(layer)](tokens) if str(layer) in self.value_embeds else None
            window = short if pattern[layer % len(pattern)] == "S" and layer < layers - 1 else long
            x = x + block.attn(norm(x), own, cos, sin, window)
            x = x + block.mlp(norm(x))
            half = x if layer == layers // 2 else half
        scores = self.lm_head(norm(x - self.backout_lambda * half))[..., : self.settings["vocab_size"]].float()
        return 15 * torch.tanh(scores / 15)


def write(folder: str, layers: int, width: int, vocabulary: int) -> None:
    """A base checkpoint with random weights: embeddings in bfloat16, all else in float32, as CUDA runs leave them."""
    config = {
        "sequence_len": 2048, "vocab_size": vocabulary, "n_layer": layers, "n_head": max(1, width // 128),
        "n_kv_head": max(1, width // 128), "n_embd": width, "window_pattern": "SSSL",
    }  # fmt: skip
    torch.manual_seed(SEED)
    with torch.device("meta"):
        model = Model(config)
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, tensor in model.state_dict().items():
        narrow = "wte" in name or name.startswith("value_embeds")
        state[name] = (0.02 * torch.randn(tensor.shape)).to(torch.bfloat16 if narrow else torch.float32)
    place = os.path.join(folder, "base_checkpoints", f"d{layers}")
    os.makedirs(place, exist_ok=True)
    torch.save(state, os.path.join(place, f"model_{STEP:06d}.pt"))
    meta = {"step": STEP, "val_bpb": 1.0, "model_config": config, "user_config": {"depth": layers}}
    with open(os.path.join(place, f"meta_{STEP:06d}.json"), "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
    print(place)


def load(place: str) -> None:
    start = time.perf_counter()
    state = torch.load(os.path.join(place, f"model_{STEP:06d}.pt"), map_location="cpu", weights_only=True)
    with open(os.path.join(place, f"meta_{STEP:06d}.json"), encoding="utf-8") as file:
        config = json.load(file)["model_config"]
    state = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in state.items()}
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    with torch.device("meta"):
        model = Model(config)
    model.to_empty(device="cpu")
    model.init_weights()
    model.load_state_dict(state, strict=True)
    model.eval()
    built = time.perf_counter()
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(0, config["vocab_size"], (1, LENGTH), generator=generator)
    with torch.inference_mode():
        logits = model(tokens)
    assert torch.isfinite(logits).all()
    done = time.perf_counter()
    print(json.dumps({"build": built - start, "forward": done - built, "sum": logits.double().sum().item()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "load"))
    parser.add_argument("place")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=32768)
    told = parser.parse_args()
    if told.what == "write":
        write(told.place, told.layers, told.width, told.vocabulary)
    else:
        load(told.place)


if __name__ == "__main__":
    main()
