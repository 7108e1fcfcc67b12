"""A model whose checkpoint does not say what it is: what --config supplies, what a header of ours has, what is said of
the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Run
from tests.load_testing import level_of, read_logits, statuses
from tests.test_resuming import CONFIG, NAMES, in_halves, trained, written

__all__ = ["trained"]
TOKENS = ["--tokens", "1,17,42,35,8,3"]
META = "base_checkpoints/d4/meta_000150.json"
MODEL = "base_checkpoints/d4/model_000150.pt"
NANOGPT = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "bias": False, "vocab_size": 16, "dropout": 0.0}


def logits(tried: Run, path: Path, *arguments: object) -> torch.Tensor:
    place = path.parent / "logits.out"
    done = tried(path, *TOKENS, "--save-logits", place, "--force", *arguments)
    assert done.code == 0, done.err
    return read_logits(place)


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


def llama(trained: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {NAMES[name]: in_halves(name, tensor) for name, tensor in trained["weights"].items()}


def test_torchtune_by_a_config(transformers: Any, trained: dict[str, Any], tried: Run, tmp_path: Path) -> None:
    """config.json and params.json say the same of one model, which is that of transformers."""
    (tmp_path / "run").mkdir()
    options = written(tmp_path / "run", trained, "own")
    path = tmp_path / "run/torchtune_model_0.pt"
    alone = tried(path, "--json")
    assert (alone.code, alone.out) == (2, "")
    assert "lacks a configuration that says" in alone.err and "hint: --config FILE" in alone.err
    found = logits(tried, path, *options)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    model.load_state_dict(llama(trained))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[1, 17, 42, 35, 8, 3]])).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    params = tmp_path / "params.json"
    params.write_text(json.dumps({"dim": 32, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "rope_theta": 10000.0}))
    torch.testing.assert_close(logits(tried, path, "--config", params), expected, rtol=0, atol=1e-4)


def test_a_bare_file_of_transformers(transformers: Any, trained: dict[str, Any], tried: Run, tmp_path: Path) -> None:
    save_file(llama(trained), tmp_path / "weights.safetensors")
    alone = tried(tmp_path / "weights.safetensors")
    assert alone.code == 2 and "no config.json that says a model_type" in alone.err and "--config FILE" in alone.err
    (tmp_path / "given").mkdir()
    (tmp_path / "given/config.json").write_text(json.dumps(CONFIG))
    logits(tried, tmp_path / "weights.safetensors", "--config", tmp_path / "given/config.json")


def test_a_header_of_ours_is_enough(
    transformers: Any, trained: dict[str, Any], tried: Run, call: Run, tmp_path: Path
) -> None:
    """What convert wrote says its configuration, wherever it is carried."""
    run = tmp_path / "run"
    run.mkdir()
    save_file(llama(trained), run / "model.safetensors", metadata={"format": "pt"})
    (run / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "elsewhere/x.safetensors"
    assert call("convert", run / "model.safetensors", "-o", out).code == 0
    torch.testing.assert_close(logits(tried, out), logits(tried, run / "model.safetensors"), rtol=0, atol=0)


def test_a_header_of_nanochat_is_enough(tried: Run, call: Run, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "elsewhere/x.safetensors"
    assert call("convert", tree / MODEL, "-o", out).code == 0
    torch.testing.assert_close(logits(tried, out), logits(tried, tree / MODEL), rtol=0, atol=0)


def test_a_meta_file_that_lies_elsewhere(tried: Run, tree: Path, tmp_path: Path) -> None:
    expected = logits(tried, tree / MODEL)
    shutil.move(tree / META, tmp_path / "meta.json")
    done = tried(tree / MODEL, "--json")
    assert done.code == 1 and "read" in done.err
    torch.testing.assert_close(logits(tried, tree / MODEL, "--config", tmp_path / "meta.json"), expected)
    inner = json.loads((tmp_path / "meta.json").read_text())["model_config"]
    (tmp_path / "inner.json").write_text(json.dumps(inner))
    torch.testing.assert_close(logits(tried, tree / MODEL, "--config", tmp_path / "inner.json"), expected)
    shutil.copy(tree / MODEL, tmp_path / "weights.bin")
    alone = tried(tmp_path / "weights.bin")
    assert alone.code == 2 and "sequence_len, vocab_size, n_layer" in alone.err and "--config FILE" in alone.err


def test_what_config_says_otherwise_is_an_assumption(tried: Run, tree: Path, tmp_path: Path) -> None:
    meta = json.loads((tree / META).read_text())
    own = meta["model_config"]["sequence_len"]
    meta["model_config"]["sequence_len"] = 2 * own
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    done = tried(tree / MODEL, *TOKENS, "--config", tmp_path / "meta.json", "--json")
    reason = f"the source says so; {tmp_path}/meta.json says {2 * own}"
    assert done.json["assumptions"][0] == {"key": "sequence_len", "value": own, "reason": reason, "warning": False}
    assert f"note: sequence_len is taken to be {own}: {reason}\n" in done.err
    assert done.code == 0
    assert reason not in tried(tree / MODEL, *TOKENS, "--config", tree / META).err


def test_a_bare_nanogpt(tried: Run, tmp_path: Path) -> None:
    shapes = {
        "transformer.wte.weight": (16, 8), "transformer.wpe.weight": (8, 8), "transformer.h.0.ln_1.weight": (8,),
        "transformer.h.0.attn.c_attn.weight": (24, 8), "transformer.h.0.attn.c_proj.weight": (8, 8),
        "transformer.h.0.ln_2.weight": (8,), "transformer.h.0.mlp.c_fc.weight": (32, 8),
        "transformer.h.0.mlp.c_proj.weight": (8, 32), "transformer.ln_f.weight": (8,),
    }  # fmt: skip
    state = {f"_orig_mod.{name}": torch.randn(shape) for name, shape in shapes.items()}
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    torch.save({"model": state}, tmp_path / "weights.pt")
    alone = tried(tmp_path / "weights.pt")
    assert alone.code == 2 and "block_size, vocab_size, n_layer, n_head, n_embd" in alone.err
    (tmp_path / "args.json").write_text(json.dumps(NANOGPT))
    done = tried(tmp_path / "weights.pt", "--config", tmp_path / "args.json", "--tokens", "1,2,3", "--json")
    assert (done.code, done.json["family"]) == (0, "gpt2-nanogpt"), done.err
    assert statuses(done.json)[:4] == ["pass"] * 4


@pytest.mark.parametrize("content", [None, "not json", "[1, 2]", '{"n_head": 3}'])
def test_a_config_that_is_none(content: str | None, tried: Run, tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "given.json"
    if content is not None:
        path.write_text(content)
    done = tried(tree / MODEL, "--config", path, "--json")
    assert (done.code, done.out) == (2, ""), done
    assert "given.json" in done.err


def test_an_adapter_is_no_model(tried: Run, tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file({f"{name}A.weight": torch.ones(2, 8), f"{name}B.weight": torch.ones(8, 2)}, tmp_path / "a.safetensors")
    done = tried(tmp_path / "a.safetensors")
    assert done.code == 2 and "adapter" in done.err


# --- what is wrong with weights that a map renames fails at its level too, with the file's own name of the tensor

W1, KEY, TABLE = "layers.1.mlp.w1.weight", "layers.1.attn.k_proj.weight", "tok_embeddings.weight"
Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]


def removed(name: str) -> Change:
    return lambda state, config: state.pop(name)


def nan(state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    state[W1] = state[W1].clone()
    state[W1][3, 4] = float("nan")


DAMAGE: dict[str, tuple[Change, str, str]] = {
    "a missing matrix": (removed(W1), "build", W1),
    "a missing embedding": (removed(TABLE), "build", TABLE),
    "a key too many": (lambda s, c: s.update({"layers.0.extra.weight": torch.ones(2)}), "build", "layers.0.extra"),
    "a key of fewer rows": (lambda s, c: s.update({KEY: s[KEY][:16].clone()}), "build", KEY),
    "a transposed embedding": (lambda s, c: s.update({TABLE: s[TABLE].t().contiguous()}), "build", TABLE),
    "a NaN": (nan, "forward", W1),
    "a wrong vocabulary": (lambda s, c: c.update(vocab_size=70), "build", TABLE),
    "a deeper config": (lambda s, c: c.update(num_hidden_layers=3), "build", "layers.2."),
    "a shallower config": (lambda s, c: c.update(num_hidden_layers=1), "build", "layers.1."),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_under_other_names(
    what: str, transformers: Any, trained: dict[str, Any], tried: Run, tmp_path: Path
) -> None:
    change, level, named = DAMAGE[what]
    state, config = dict(trained["weights"]), dict(CONFIG)
    change(state, config)
    torch.save(state, tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = tried(tmp_path / "weights.pt", "--json")
    assert done.code == 1, done.err
    failed = level_of(done.json, level)
    assert failed["status"] == "fail" and named in failed["detail"], failed
    assert f"fails at {level}" in done.err
    assert set(done.json) >= {"ok", "checkpoint", "family", "device", "dtype", "parameters", "keys", "logits"}
    if what in ("a missing matrix", "a missing embedding"):
        assert done.json["keys"]["missing"] == [named]
