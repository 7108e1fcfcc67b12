"""One step of a restored optimizer whose trainer had other names for the weights, or another order: torchtune's own
order is its module's, whatever a file has; held against the same step taken by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Run
from tests.load_testing import level_of

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
# torchtune's names of a layer in the order of its module, and those of transformers. Every matrix has one shape here,
# so that no order is told by shapes.
LAYER = {
    "attn.q_proj.weight": "self_attn.q_proj.weight", "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight", "attn.output_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.gate_proj.weight", "mlp.w2.weight": "mlp.down_proj.weight",
    "mlp.w3.weight": "mlp.up_proj.weight", "sa_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
}  # fmt: skip
NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    **{f"layers.{i}.{one}": f"model.layers.{i}.{two}" for i in range(2) for one, two in LAYER.items()},
    "norm.scale": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
HEADS, RATE = 4, 0.05


def in_halves(name: str, rows: torch.Tensor) -> torch.Tensor:
    """Rows of queries and keys as transformers has them: of each head the even ones, then the odd ones."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return rows
    heads = rows.view(HEADS, rows.size(0) // HEADS, -1)
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], dim=1).reshape(rows.shape).contiguous()


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Weights and AdamW's states under torchtune's names, in the order of its module."""
    generator = torch.Generator().manual_seed(3)
    weights, states = {}, {}
    for number, name in enumerate(NAMES):
        rows = 64 if name in ("tok_embeddings.weight", "output.weight") else 32
        shape = (32,) if name.endswith("scale") else (rows, 32)
        weights[name] = torch.randn(shape, generator=generator) * 0.3 + name.endswith("scale")
        first, second = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
        states[number] = {"step": torch.tensor(7.0), "exp_avg": first, "exp_avg_sq": second}
    group = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=RATE).state_dict()["param_groups"][0]
    optimizer = {"state": states, "param_groups": [{**group, "params": list(states)}]}
    return {"weights": weights, "optimizer": optimizer}


@pytest.fixture(scope="module")
def expected(trained: dict[str, Any]) -> tuple[float, float]:
    """The loss before and after the step, of transformers' model and torch's optimizer."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    model.load_state_dict({NAMES[name]: in_halves(name, tensor) for name, tensor in trained["weights"].items()})
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([parameters[name] for name in NAMES.values()], lr=RATE)
    states = {
        number: {
            key: (in_halves(name, value) if value.dim() else value).clone()
            for key, value in trained["optimizer"]["state"][number].items()
        }
        for number, name in enumerate(NAMES)
    }
    optimizer.load_state_dict({**trained["optimizer"], "state": states})
    tokens = torch.arange(0, 64, 3)[None]

    def loss() -> torch.Tensor:
        logits = model(input_ids=tokens).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])

    before = loss()
    torch.autograd.backward(before)
    optimizer.step()
    return before.item(), loss().item()


def written(folder: Path, trained: dict[str, Any], how: str) -> list[object]:
    """A checkpoint as torchtune 0.1 leaves it; returns the options that it needs."""
    weights = trained["weights"]
    config = folder / "config.json" if how == "hf" else folder.parent / "given.json"
    config.write_text(json.dumps(CONFIG))
    if how == "hf":
        torch.save({NAMES[n]: in_halves(n, t) for n, t in weights.items()}, folder / "hf_model_0001_0.pt")
    else:
        order = sorted(weights) if how == "sorted" else list(weights)
        torch.save({name: weights[name] for name in order}, folder / "torchtune_model_0.pt")
    recipe = {"optimizer": trained["optimizer"], "epochs_run": 1, "seed": 1, "total_epochs": 3}
    torch.save({**recipe, "max_steps_per_epoch": None}, folder / "recipe_state.pt")
    return [] if how == "hf" else ["--config", config]


@pytest.mark.parametrize("how", ["own", "sorted", "hf"])
def test_the_step_is_that_of_torchtune(
    how: str, trained: dict[str, Any], expected: tuple[float, float], tried: Run, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    options = written(tmp_path / "run", trained, how)
    tokens = ",".join(map(str, range(0, 64, 3)))
    done = tried("--root", tmp_path / "run", *options, "--phase", "train", "--tokens", tokens, "--json")
    assert done.code == 0, done.err
    assert done.json["checkpoint"]["layout"] == "torchtune"
    detail = level_of(done.json, "train-step")["detail"]
    found = [float(number) for number in re.findall(r"[0-9]+\.[0-9]+", detail)]
    assert "from step 7" in detail
    assert found == pytest.approx(expected, abs=2e-4), detail
    assert abs(expected[0] - expected[1]) > 0.05


def test_real_ones_agree(shared: Path, tried: Run) -> None:
    """One training, written four ways."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    root = shared / "real/torchtune/0.6.1"
    config = shared / "real/torchtune/0.1.1/full-hf/config.json"
    said = set()
    for run in ("full-hf", "full-meta", "full-tune", "distributed"):
        given = ["--config", config] if run in ("full-tune", "distributed") else []
        done = tried(f"{run}/1", "--root", root, "--phase", "train", "--json", *given)
        assert done.code == 0, done.err
        said.add(level_of(done.json, "train-step")["detail"])
    assert len(said) == 1 and "AdamW from step 4" in said.pop()


def test_an_adapter_has_no_step(shared: Path, tried: Run) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    done = tried("lora-hf/1", "--root", shared / "real/torchtune/0.6.1", "--phase", "train", "--json")
    assert done.code == 0, done.err
    assert level_of(done.json, "train-step")["status"] == "skip"
    assert "adapter" in level_of(done.json, "train-step")["detail"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp64"])
def test_a_step_in_another_dtype(dtype: str, trained: dict[str, Any], tried: Run, tmp_path: Path) -> None:
    """In float16 the optimizer's eps is 0: that there is no step then is not the checkpoint's fault."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "run").mkdir()
    written(tmp_path / "run", trained, "hf")
    done = tried("--root", tmp_path / "run", "--phase", "train", "--dtype", dtype, "--json")
    assert done.code == 0, done.err
    assert done.json["dtype"] == {"bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}[dtype]
    level = level_of(done.json, "train-step")
    assert level["status"] == ("skip" if dtype == "fp16" else "pass"), level
    assert dtype != "fp16" or "float16" in level["detail"]
