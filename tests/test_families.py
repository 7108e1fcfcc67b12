"""Models of nanochat and of the GPT-2 trainers, built from their configuration and weights: they compute what the
trainer's own code did, and what cannot be told or cannot be is said by name."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.families import families, planned
from ckpt_cli.revisions import revision_of
from tests import nanochat_reference as reference
from tests.conftest import REPOSITORY
from tests.described import State, described, logits, rebuilt
from tests.torch_files import named

# --- what real trainers wrote

NANOCHAT = {
    "a1_v1_oct2025/base_checkpoints/d2/000010": "v1",
    "a1_v1_oct2025/base_checkpoints/d2/000020": "v1",
    "a1_v1_oct2025/mid_checkpoints/d2/000008": "v1",
    "a1_v1_oct2025/chatsft_checkpoints/d2/000006": "v1",
    "a1_v1_oct2025/chatrl_checkpoints/d2/000004": "v1",
    "b_lambdas_jan2026/base_checkpoints/d2/000010": "lambdas",
    "b_lambdas_jan2026/base_checkpoints/d2/000020": "lambdas",
    "c_window_jan2026/base_checkpoints/d3/000010": "window",
    "c_window_jan2026/base_checkpoints/d3/000020": "window",
    "e1_ve32_jan2026/base_checkpoints/d2/000010": "ve32",
    "e1_ve32_jan2026/base_checkpoints/d3/000010": "ve32",
    "e1_ve32_jan2026/base_checkpoints/d3/000020": "ve32",
    "e1_ve32_jan2026/mid_checkpoints/d3/000008": "ve32",
    "f_engram_jan2026/base_checkpoints/d2/000010": "engram",
    "g1_softcap20_mar2026/base_checkpoints/d2/000010": "ve32",
    "h_ve12_mar2026/base_checkpoints/d2/000010": "ve12",
    "h_ve12_mar2026/base_checkpoints/d3/000010": "ve12",
    "i1_smear_mar2026/base_checkpoints/d2/000010": "smear",
    "k_moe3_branch/base_checkpoints/d2/000010": "moe3",
}
# What its own settings leave open, and the default takes for the older of two.
TOLD = {"g1_softcap20_mar2026/base_checkpoints/d2/000010": {"softcap": "20"}}
CLOSE = 5e-6


def of_nanochat(shared: Path, which: str) -> tuple[State, dict[str, Any], dict[str, Any]]:
    """Weights, metadata, and what the trainer's own code computed of them."""
    place = shared / "real" / "nanochat" / which
    folder, step = place.parent, place.name
    state = torch.load(folder / f"model_{step}.pt", weights_only=True)
    expected = torch.load(folder / f"expected_logits_{step}.pt", weights_only=True)
    return state, json.loads((folder / f"meta_{step}.json").read_text()), expected


def base_of(shared: Path, which: str) -> Any:
    run, _, tag, _ = which.split("/")
    found = sorted((shared / "real" / "nanochat" / run / "base_checkpoints" / tag).glob("meta_*.json"))
    return json.loads(found[-1].read_text())


@pytest.mark.parametrize("which", NANOCHAT)
def test_nanochat_computes_what_its_trainer_did(which: str, shared: Path) -> None:
    state, meta, expected = of_nanochat(shared, which)
    base = base_of(shared, which)
    seen = described(state, meta["model_config"], meta=meta, base=base, given=TOLD.get(which))
    blueprint = planned(seen)
    assert blueprint.family == f"nanochat-{NANOCHAT[which]}"
    found = logits(blueprint, state, expected["tokens"])
    torch.testing.assert_close(found, expected["logits"], rtol=0, atol=CLOSE)
    assert blueprint.vocab_size == 260 == found.size(-1)
    assert blueprint.padded_vocab == len(state["lm_head.weight"])


@pytest.mark.parametrize("which", TOLD)
def test_what_is_told_matters(which: str, shared: Path) -> None:
    state, meta, expected = of_nanochat(shared, which)
    blueprint = planned(described(state, meta["model_config"], meta=meta, base=meta))
    said = {each.key: (each.value, each.warn) for each in blueprint.assumptions}
    assert said == {"softcap": (15, True), "rotary_rounding": ("bf16", True)}
    assert (logits(blueprint, state, expected["tokens"]) - expected["logits"]).abs().max() > 0.5


def test_a_lost_pattern_is_taken_as_the_trainer_takes_it_and_said(shared: Path) -> None:
    which = "e1_ve32_jan2026/mid_checkpoints/d3/000008"
    state, meta, expected = of_nanochat(shared, which)
    base = base_of(shared, which)
    lost = planned(described(state, meta["model_config"], source="mid", meta=meta, base=base))
    [said] = [each for each in lost.assumptions if each.key == "window_pattern"]
    assert (said.value, said.warn) == ("L", True)
    assert "'SSSL'" in said.reason
    told = planned(described(state, meta["model_config"], meta=meta, base=base, given={"window_pattern": "sssl"}))
    true = expected["logits_with_true_window_pattern_SSSL"]
    torch.testing.assert_close(logits(told, state, expected["tokens"]), true, rtol=0, atol=CLOSE)


GPT2 = {
    "build-nanogpt/log/model_00010.pt": ("gpt2-build-nanogpt", "log/expected_logits_00010.pt", "config", "model"),
    "nanoGPT/out_train_py/ckpt.pt": ("gpt2-nanogpt", "out_train_py/expected_logits.pt", "model_args", "model"),
    "nano_gpt/checkpoints/checkpoint_000010.bin": (
        "gpt2-nano-gpt", "checkpoints/expected_logits_000010.pt", "config", "model_state_dict"),
    "nano_gpt/checkpoints/checkpoint_000020.bin": (
        "gpt2-nano-gpt", "checkpoints/expected_logits_000020.pt", "config", "model_state_dict"),
}  # fmt: skip


@pytest.mark.parametrize("which", GPT2)
def test_gpt2_computes_what_its_trainer_did(which: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, logits_file, settings, key = GPT2[which]
    trainer = shared / "real" / "gpt2" / which.partition("/")[0]
    expected = torch.load(trainer / logits_file, weights_only=True)
    import __main__

    class GPTConfig:
        """What build-nanogpt pickled with its weights."""

    GPTConfig.__module__ = "__main__"
    GPTConfig.__qualname__ = "GPTConfig"
    monkeypatch.setattr(__main__, "GPTConfig", GPTConfig, raising=False)
    with torch.serialization.safe_globals([GPTConfig]):
        held = torch.load(trainer.parent / which, weights_only=True)
    config = held[settings]
    if not isinstance(config, dict):
        config = {"<class>": "__main__.GPTConfig", **vars(config)}
    blueprint = planned(described(held[key], config))
    assert blueprint.family == family
    found = logits(blueprint, held[key], expected["tokens"])
    torch.testing.assert_close(found, expected["logits"], rtol=0, atol=CLOSE)


# --- small models against the reference of this folder

SMALL: dict[str, Any] = {"sequence_len": 24, "vocab_size": 70, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 48}
MOE = {"num_experts": 5, "top_k": 2}
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("v1", {}, 70),
    ("v1", {"n_kv_head": 1}, 128),
    ("lambdas", {}, 128),
    ("window", {"window_pattern": "SL"}, 128),
    ("window", {"window_pattern": "ssl", "n_layer": 5}, 128),
    # Longer than its context: what is called long has an end there too.
    ("window", {"window_pattern": "L", "sequence_len": 6}, 128),
    ("window", {"window_pattern": "S", "n_layer": 1}, 128),
    ("ve32", {"window_pattern": "SSSL"}, 128),
    ("ve32", {"window_pattern": "S", "n_layer": 4, "n_head": 2, "n_kv_head": 2}, 128),
    ("engram", {"window_pattern": "SSL"}, 128),
    ("ve12", {"window_pattern": "SL", "sequence_len": 200, "n_embd": 24, "n_head": 2, "n_kv_head": 1}, 128),
    ("smear", {"window_pattern": "SSSL", "n_layer": 4}, 128),
    ("smear", {"window_pattern": "SL", "n_layer": 1, "n_head": 1, "n_kv_head": 1}, 128),
    ("smear", {"window_pattern": "SSL", "sequence_len": 5, "vocab_size": 64}, 64),
    ("moe3", {"window_pattern": "SSL", **MOE}, 128),
    ("moe3", {"window_pattern": "L", "num_experts": 3, "top_k": 3, "n_layer": 2}, 128),
]


def prompt(config: Mapping[str, Any], length: int = 40) -> list[int]:
    return random.Random(1).choices(range(config["vocab_size"]), k=length)


@pytest.mark.parametrize(("kind", "changes", "rows"), CASES)
def test_every_revision_against_a_reference(kind: str, changes: dict[str, Any], rows: int) -> None:
    config = {**SMALL, **changes}
    state = reference.random_state(kind, config, rows)
    tokens = prompt(config)
    blueprint = planned(described({name: state[name] for name in sorted(state)}, config))
    assert blueprint.family == f"nanochat-{kind}"
    assert (blueprint.padded_vocab, blueprint.most_tokens) == (rows, 10 * config["sequence_len"])
    found = logits(blueprint, {name: state[name] for name in blueprint.shapes}, torch.tensor([tokens, tokens[::-1]]))
    for row, each in zip(found, (tokens, tokens[::-1])):
        expected = reference.logits(kind, state, config, each)
        torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-4)
    assert found.std() > 1


def test_windows_of_hundreds_of_tokens() -> None:
    """The short windows of later revisions are multiples of 128, so only a long text has an end to them."""
    config = {**SMALL, "sequence_len": 400, "window_pattern": "S", "n_layer": 2, "n_embd": 24, "n_head": 2}
    for kind in ("ve12", "smear"):
        state = reference.random_state(kind, config, 128)
        blueprint = planned(described(state, config))
        tokens = prompt(config, 280)
        found = logits(blueprint, {name: state[name] for name in blueprint.shapes}, torch.tensor([tokens]))[0]
        torch.testing.assert_close(found.double(), reference.logits(kind, state, config, tokens), rtol=0, atol=1e-4)
        whole = reference.logits(kind, state, {**config, "window_pattern": "L"}, tokens)
        assert (whole - found).abs().max() > 1e-2


@pytest.mark.parametrize(("cap", "rounding"), [("15", "none"), ("20", "bf16"), ("20", "none")])
def test_what_is_set_is_computed(cap: str, rounding: str) -> None:
    config = {**SMALL, "window_pattern": "SL"}
    state = reference.random_state("ve32", config, 128)
    tokens = prompt(config)
    blueprint = planned(described(state, config, given={"softcap": cap, "rotary_rounding": rounding}))
    assert [(each.key, each.value) for each in blueprint.assumptions] == [
        ("softcap", int(cap)),
        ("rotary_rounding", rounding),
    ]
    found = logits(blueprint, {name: state[name] for name in blueprint.shapes}, torch.tensor([tokens]))[0]
    expected = reference.logits("ve32", state, config, tokens, float(cap), rounding == "bf16")
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    other = reference.logits("ve32", state, config, tokens, float(cap), rounding != "bf16")
    assert (other - expected).abs().max() > 1e-3


def test_bf16_embeddings_may_stay_narrow() -> None:
    config = {**SMALL, "window_pattern": "SSL"}
    state = reference.random_state("smear", config, 128)
    narrow = {name: t.bfloat16() if "embed" in name or "wte" in name else t for name, t in state.items()}
    blueprint = planned(described(narrow, config))
    assert set(blueprint.narrow) == {name for name, tensor in narrow.items() if tensor.dtype == torch.bfloat16}
    tokens = torch.tensor([prompt(config)])
    widened = rebuilt(blueprint, {name: narrow[name] for name in blueprint.shapes})
    expected = blueprint.logits(widened, tokens)
    widened.load_state_dict(narrow, assign=True)
    found = blueprint.logits(widened, tokens)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_model_can_be_trained_a_step() -> None:
    config = {**SMALL, "window_pattern": "SSL", **MOE}
    state = reference.random_state("moe3", config, 128)
    blueprint = planned(described(state, config))
    module = rebuilt(blueprint, {name: state[name] for name in blueprint.shapes}).train()
    trained = {name for name, _ in module.named_parameters()}
    assert trained == {name for name in state if not name.endswith(("expert_bias", "_counter"))}
    tokens = torch.tensor([prompt(config)])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = module(tokens[:, :-1], tokens[:, 1:])
        plain = functional.cross_entropy(blueprint.logits(module, tokens[:, :-1])[0], tokens[0, 1:])
        torch.testing.assert_close(loss, plain)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def gpt2_state(width: int, layers: int, block: int, vocab: int, biased: bool, masks: bool = False) -> State:
    generator = torch.Generator().manual_seed(3)

    def filled(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 1)

    state = {"transformer.wte.weight": filled(vocab, width), "transformer.wpe.weight": filled(block, width)}
    for i in range(layers):
        at = f"transformer.h.{i}."
        if masks:
            state[at + "attn.bias"] = torch.tril(torch.ones(block, block)).view(1, 1, block, block)
        for name, shape in {
            "ln_1": (width,), "attn.c_attn": (3 * width, width), "attn.c_proj": (width, width),
            "ln_2": (width,), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width),
        }.items():  # fmt: skip
            state[f"{at}{name}.weight"] = filled(*shape)
            if biased:
                state[f"{at}{name}.bias"] = filled(shape[0])
    state["transformer.ln_f.weight"] = filled(width)
    if biased:
        state["transformer.ln_f.bias"] = filled(width)
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    return state


def gpt2_logits(state: State, layers: int, heads: int, tokens: list[int], exact: bool) -> torch.Tensor:
    """(T, vocab) float64, one token and head at a time."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + 1e-5)
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.tensor(0.0))

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.tensor(0.0))

    def gelu(x: torch.Tensor) -> torch.Tensor:
        if exact:
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: len(tokens)]
    width = x.size(-1)
    size = width // heads
    for i in range(layers):
        at = f"transformer.h.{i}."
        fused = linear(normed(x, at + "ln_1"), at + "attn.c_attn")
        q, k, v = (fused[:, n * width : (n + 1) * width].view(len(tokens), heads, size) for n in range(3))
        rows = []
        for t in range(len(tokens)):
            weights = [torch.softmax(k[: t + 1, a] @ q[t, a] / math.sqrt(size), 0) for a in range(heads)]
            rows.append(torch.cat([weights[a] @ v[: t + 1, a] for a in range(heads)]))
        x = x + linear(torch.stack(rows), at + "attn.c_proj")
        x = x + linear(gelu(linear(normed(x, at + "ln_2"), at + "mlp.c_fc")), at + "mlp.c_proj")
    return normed(x, "transformer.ln_f") @ w["lm_head.weight"].T


GPT2_CONFIG: dict[str, Any] = {"block_size": 12, "vocab_size": 31, "n_layer": 2, "n_head": 3, "n_embd": 24}
TRAINERS: dict[str, dict[str, Any]] = {
    "gpt2-nano-gpt": {},
    "gpt2-nanogpt": {"bias": True, "dropout": 0.1},
    "gpt2-build-nanogpt": {"<class>": "__main__.GPTConfig"},
}


@pytest.mark.parametrize(("family", "biased"), [*((name, True) for name in TRAINERS), ("gpt2-nanogpt", False)])
def test_gpt2_against_a_reference(family: str, biased: bool) -> None:
    config = {**GPT2_CONFIG, **TRAINERS[family], **({} if biased else {"bias": False})}
    state = gpt2_state(24, 2, 12, 31, biased, masks=family != "gpt2-build-nanogpt")
    blueprint = planned(described(state, config))
    assert blueprint.family == family
    assert (blueprint.most_tokens, blueprint.vocab_size) == (12, 31)
    tokens = prompt(config, 12)
    found = logits(
        blueprint, {n: state[n] for n in [*blueprint.shapes, *blueprint.free] if n in state}, torch.tensor([tokens])
    )[0]
    exact = family == "gpt2-nanogpt"
    torch.testing.assert_close(found.double(), gpt2_logits(state, 2, 3, tokens, exact), rtol=0, atol=1e-5)
    assert (found - gpt2_logits(state, 2, 3, tokens, not exact)).abs().max() > 1e-4
    assert any("exact" in str(each.value) for each in blueprint.assumptions) is exact


def test_the_head_is_the_embedding_again() -> None:
    """It is trained once, as its trainer's optimizer has it."""
    state = gpt2_state(24, 2, 12, 31, True)
    blueprint = planned(described(state, GPT2_CONFIG))
    module = rebuilt(blueprint, state)
    assert module.get_parameter("lm_head.weight") is module.get_parameter("transformer.wte.weight")
    assert len(list(module.parameters())) == len(state) - 1
    assert next(name for name, _ in module.named_parameters()) == "transformer.wte.weight"
    state = {**state, "lm_head.weight": state["lm_head.weight"] + 1}
    with pytest.raises(Damaged, match="differ"):
        rebuilt(blueprint, state)


def test_nothing_is_a_parameter_twice_or_initialised() -> None:
    blueprint = planned(described(reference.random_state("smear", SMALL | {"window_pattern": "L"}, 128), SMALL))
    with torch.device("meta"):
        module = blueprint.build()
    assert {tensor.device.type for _, tensor in named(module)} == {"meta"}
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == blueprint.shapes


# --- which one it is


def test_a_revision_is_told() -> None:
    for kind in reference.KINDS:
        config = {**SMALL, **(MOE if kind == "moe3" else {})}
        if reference.KINDS[kind].short:
            config["window_pattern"] = "SSL"
        names = reference.shapes(kind, config, 128)
        assert revision_of(names, config) == kind


@pytest.mark.parametrize("kind", reference.KINDS)
def test_a_missing_tensor_does_not_change_what_it_is(kind: str) -> None:
    """So that it can be named: each one but those that alone tell a revision."""
    config = {**SMALL, "window_pattern": "SSL", **MOE} if kind == "moe3" else dict(SMALL)
    if reference.KINDS[kind].short:
        config["window_pattern"] = "SSL"
    state = {name: torch.empty(shape, device="meta") for name, shape in reference.shapes(kind, config, 128).items()}
    for name in state:
        kept = {other: tensor for other, tensor in state.items() if other != name}
        blueprint = planned(described(kept, config))
        assert blueprint.family == f"nanochat-{kind}", name
        assert blueprint.shapes.keys() - blueprint.items.keys() == {name}


def test_a_pattern_of_whole_windows_leaves_the_first_revision() -> None:
    """A patched metadata of October 2025."""
    state = reference.random_state("v1", SMALL, 70)
    assert planned(described(state, {**SMALL, "window_pattern": "L"})).family == "nanochat-v1"
    with pytest.raises(CkptError, match="no windows to set"):
        planned(described(state, SMALL, given={"window_pattern": "LL"}))


BASE = {"model_config": {**SMALL, "window_pattern": "SSL"}, "user_config": {"depth": 3}}


def test_a_lost_pattern_of_the_window_weeks() -> None:
    """Without it the state dict looks like that of the days before."""
    state = reference.random_state("window", {**SMALL, "window_pattern": "SSL"}, 128)
    lost = planned(described(state, SMALL, source="mid", base=BASE))
    assert lost.family == "nanochat-window"
    assert lost.config["window_pattern"] == "L"
    [said] = lost.assumptions
    assert (said.key, said.value, said.warn) == ("window_pattern", "L", True)
    assert "'SSL'" in said.reason
    found = planned(described(state, SMALL, source="mid", base=BASE, given={"window_pattern": "SSL"}))
    assert (found.family, [each.warn for each in found.assumptions]) == ("nanochat-window", [False])
    alone = planned(described(state, SMALL, source="mid"))
    assert (alone.family, [each.warn for each in alone.assumptions]) == ("nanochat-lambdas", [True])
    older = {"model_config": SMALL, "user_config": {"depth": 3}}
    assert planned(described(state, SMALL, source="mid", base=older)).assumptions == ()
    assert planned(described(state, SMALL, source="base", meta=older)).assumptions == ()


NEW = {"fp8": False, "depth": 3}
HINTS: list[tuple[dict[str, Any] | None, int, str, bool]] = [
    (None, 15, "bf16", True),
    ({"user_config": {"depth": 3}}, 15, "bf16", False),
    ({"user_config": NEW}, 15, "bf16", False),
    ({"user_config": {"depth": 3}, "total_batch_size": 1}, 15, "bf16", False),
    ({"user_config": {**NEW, "eval_tokens": 41943040}, "total_batch_size": 1}, 20, "none", False),
    ({"user_config": {**NEW, "eval_tokens": 20971520}, "total_batch_size": 1}, 15, "bf16", True),
    # Not of base_train: its eval_tokens are another script's.
    ({"user_config": {"fp8": False, "eval_tokens": 41943040}, "total_batch_size": 1}, 15, "bf16", True),
    ({"user_config": "lost"}, 15, "bf16", True),
]


@pytest.mark.parametrize(("base", "cap", "rounding", "warned"), HINTS)
def test_the_week_is_told_from_the_base_run(base: dict[str, Any] | None, cap: int, rounding: str, warned: bool) -> None:
    config = {**SMALL, "window_pattern": "SSL"}
    state = reference.random_state("ve32", config, 128)
    sft = {"model_config": config, "user_config": {"eval_tokens": 41943040}}
    said = planned(described(state, config, source="sft", meta=sft, base=base)).assumptions
    assert [(each.key, each.value, each.warn) for each in said] == [
        ("softcap", cap, warned),
        ("rotary_rounding", rounding, warned),
    ]
    assert all(each.reason for each in said)


def test_missing_settings_are_named_or_assumed() -> None:
    state = reference.random_state("v1", {**SMALL, "n_kv_head": 4}, 70)
    config = {key: value for key, value in SMALL.items() if key != "n_kv_head"}
    blueprint = planned(described(state, config))
    assert [(each.key, each.value) for each in blueprint.assumptions] == [("n_kv_head", 4)]
    assert blueprint.config["n_kv_head"] == 4
    with pytest.raises(CkptError, match=r"says vocab_size, n_head$"):
        planned(described(state, {"sequence_len": 8, "n_layer": 3, "n_embd": 48}))
    with pytest.raises(CkptError, match=r"says sequence_len, vocab_size, n_layer, n_head, n_embd$"):
        planned(described(state, {}))


ABSURD: list[dict[str, Any]] = [
    {"n_layer": 10**12}, {"n_layer": -1}, {"n_layer": 0}, {"n_layer": "3"}, {"n_layer": 3.0}, {"n_layer": True},
    {"n_embd": 10**12}, {"n_embd": 49}, {"n_embd": -48}, {"vocab_size": 10**12}, {"vocab_size": [1]}, {"n_head": 7},
    {"n_head": 10**12}, {"n_head": 16}, {"n_kv_head": 3}, {"n_kv_head": 8}, {"n_kv_head": "2"},
    {"sequence_len": 10**12}, {"sequence_len": 0}, {"sequence_len": {"a": 1}}, {"n_embd": 16},
    {"window_pattern": "SX"}, {"window_pattern": ""},
    {"window_pattern": 5}, {"window_pattern": ["S"]}, {"n_layer": "x" * 10**6}, {"n_embd": 10**5000},
]  # fmt: skip


@pytest.mark.parametrize("changes", ABSURD, ids=lambda each: "-".join(each))
def test_numbers_that_no_model_has(changes: dict[str, Any]) -> None:
    config = {**SMALL, "window_pattern": "SSL"}
    state = {name: torch.empty(shape, device="meta") for name, shape in reference.shapes("smear", config, 128).items()}
    with pytest.raises(CkptError) as raised:
        planned(described(state, {**config, **changes}))
    assert len(raised.value.message) < 300


@pytest.mark.parametrize(
    "changes", [{"num_experts": 0}, {"num_experts": 10**9}, {"top_k": 6}, {"top_k": 0}, {"top_k": None}]
)
def test_experts_that_no_model_has(changes: dict[str, Any]) -> None:
    config = {**SMALL, **MOE, "window_pattern": "SSL"}
    state = {name: torch.empty(shape, device="meta") for name, shape in reference.shapes("moe3", config, 128).items()}
    with pytest.raises(CkptError):
        planned(described(state, {**config, **changes}))


@pytest.mark.parametrize(
    "changes", [{"n_layer": 10**12}, {"n_head": 5}, {"n_embd": "24"}, {"bias": 1}, {"block_size": None}]
)
def test_numbers_that_no_gpt2_has(changes: dict[str, Any]) -> None:
    state = gpt2_state(24, 2, 12, 31, True)
    with pytest.raises(CkptError):
        planned(described(state, {**GPT2_CONFIG, **changes}))


@pytest.mark.parametrize(
    "given",
    [
        {"softcap": "17"}, {"softcap": "abc"}, {"softcap": ""}, {"rotary_rounding": "fp16"}, {"window_pattern": "SLX"},
        {"window_pattern": ""}, {"n_layer": "3"}, {"Softcap": "15"},
    ],
)  # fmt: skip
def test_what_cannot_be_set(given: dict[str, str]) -> None:
    config = {**SMALL, "window_pattern": "SSL"}
    state = reference.random_state("smear", config, 128)
    with pytest.raises(CkptError):
        planned(described(state, config, given=given))
    with pytest.raises(CkptError, match="has no setting"):
        planned(described(gpt2_state(24, 2, 12, 31, True), GPT2_CONFIG, given=given))


def test_experts_are_told_whatever_revision_they_are_on() -> None:
    config = {**SMALL, **MOE, "window_pattern": "SSL"}
    smeared = ("smear_lambda", "smear_gate.weight", "backout_lambda")
    shapes = {n: shape for n, shape in reference.shapes("moe3", config, 128).items() if n not in smeared}
    blueprint = planned(described({n: torch.empty(shape, device="meta") for n, shape in shapes.items()}, config))
    assert (blueprint.family, blueprint.least_tokens) == ("nanochat-moe3", 1)
    assert blueprint.shapes == shapes
    odd = {n: torch.empty(shape, device="meta") for n, shape in (shapes | {"v0_lambdas": (3,)}).items()}
    without = {n: tensor for n, tensor in odd.items() if "ve_gate" not in n}
    with pytest.raises(CkptError, match=r"revision v0 .* cannot be rebuilt"):
        planned(described(without, config))


# --- what is refused


def test_branches_are_refused_by_name() -> None:
    config = {**SMALL, "window_pattern": "SSL"}
    window = reference.shapes("window", config, 128)
    variants: list[tuple[str, dict[str, tuple[int, ...]]]] = [
        ("v0", {"v0_lambdas": (3,), "value_embed_A.weight": (128, 32), "value_embed_B.weight": (24, 32)}),
        ("v0", {"v0_lambdas": (3,), "value_embed.weight": (128, 24)}),
        ("v0", {"v0_lambdas": (3,), **{f"value_embeds.{i}.weight": (128, 24) for i in range(3)}}),
        ("moe", {"transformer.h.0.moe.router.gate.weight": (5, 48)}),
    ]
    for name, more in variants:
        state = {key: torch.empty(shape, device="meta") for key, shape in (window | more).items()}
        with pytest.raises(CkptError, match=rf"nanochat's revision {name} .*branch.* cannot be rebuilt"):
            planned(described(state, config))


def test_what_is_unknown_is_refused_with_what_was_seen() -> None:
    state = {f"blocks.{n}.weight": torch.zeros(2) for n in range(5)}
    with pytest.raises(CkptError) as raised:
        planned(described(state, {}))
    assert "'blocks.0.weight', 'blocks.1.weight', 'blocks.2.weight'" in raised.value.message
    with pytest.raises(CkptError, match="there is no family 'nanochat-v9'") as raised:
        planned(described(state, {}), "nanochat-v9")
    assert "gpt2-nanogpt" in (raised.value.hint or "")
    assert "nanochat-smear" in (raised.value.hint or "")


def test_a_family_can_be_asked_for_by_name() -> None:
    """nanoGPT of before May 2023 computed the other GELU."""
    state = gpt2_state(24, 2, 12, 31, False)
    config = {**GPT2_CONFIG, "bias": False}
    tokens = prompt(config, 12)
    blueprint = planned(described(state, config), "gpt2-nano-gpt")
    found = logits(blueprint, state, torch.tensor([tokens]))[0]
    torch.testing.assert_close(found.double(), gpt2_logits(state, 2, 3, tokens, exact=False), rtol=0, atol=1e-5)


FAKE = """
from ckpt_cli.families import Blueprint

NAMES = ("fake-one",)


def claims(described):
    return "fake-one" if "fake.weight" in described.tensors else None


def plan(described, family):
    return Blueprint(family, {}, {}, {}, 7, 7, 1, 1, (), None, None, None)
"""
ASKED = """
from ckpt_cli.families import Described, planned

seen = Described("x", "", None, {"fake.weight": None}, {}, {}, None, {}, None)
print(planned(seen).family, planned(seen._replace(tensors={}), "fake-one").vocab_size)
"""


def test_a_new_family_is_one_file(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "ckpt_cli", tmp_path / "ckpt_cli", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ckpt_cli/families/fake.py").write_text(FAKE)
    done = subprocess.run([sys.executable, "-c", ASKED], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("fake-one 7\n", "")


def test_names_are_of_one_family_each() -> None:
    names = [name for one in families() for name in one.NAMES]
    assert len(names) == len(set(names)) == 12
