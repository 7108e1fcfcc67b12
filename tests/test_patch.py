"""`ckpt patch-config`: what old metadata lacks is mended, no other byte changes, and all of it can come back."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_cli import jsontext, kept, pickle_edit
from ckpt_cli.errors import CkptError
from ckpt_cli.migrations import MIGRATIONS, MISSING, Subject, beyond, findings, unseen
from tests.conftest import REPOSITORY, Run

Tree = Callable[..., Path]
OLD = 1_700_000_000
CONFIG = {"sequence_len": 64, "vocab_size": 260, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 16}
WINDOWED = {**CONFIG, "window_pattern": "SSSL"}


def age(root: Path, when: int = OLD) -> None:
    for path in [root, *root.rglob("*")]:
        os.utime(path, (when, when))


def snapshot(root: Path) -> dict[str, tuple[bytes, int, int, int, int]]:
    """Every file below, hidden ones too: bytes, mode, owner and mtime."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            status = path.stat()
            bits = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
            found[str(path.relative_to(root))] = (path.read_bytes(), *bits)
    return found


def nanochat_state(revision: str, layers: int = 2, width: int = 16, keys: int = 8, rows: int = 320) -> dict[str, Any]:
    state: dict[str, Any] = {}
    if revision != "v1":
        state |= {"resid_lambdas": torch.ones(layers), "x0_lambdas": torch.zeros(layers)}
    state["transformer.wte.weight"] = torch.randn(rows, width).bfloat16()
    for layer in range(layers):
        for name, shape in (("c_q", (width, width)), ("c_k", (keys, width)), ("c_v", (keys, width)),
                            ("c_proj", (width, width))):  # fmt: skip
            state[f"transformer.h.{layer}.attn.{name}.weight"] = torch.randn(shape)
        if revision == "ve32" and layer % 2 == (layers - 1) % 2:
            state[f"transformer.h.{layer}.attn.ve_gate.weight"] = torch.randn(1, 32)
        state[f"transformer.h.{layer}.mlp.c_fc.weight"] = torch.randn(4 * width, width)
        state[f"transformer.h.{layer}.mlp.c_proj.weight"] = torch.randn(width, 4 * width)
    state["lm_head.weight"] = torch.randn(rows, width)
    if revision == "ve32":
        state |= {
            f"value_embeds.{i}.weight": torch.randn(rows, keys) for i in range(layers) if i % 2 == (layers - 1) % 2
        }
    return state


def write_nanochat(root: Path, place: str, step: int, revision: str, config: Mapping[str, Any], **more: Any) -> Path:
    """One step as nanochat writes it; returns its meta."""
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(OrderedDict(nanochat_state(revision)), folder / f"model_{step:06d}.pt")
    meta = folder / f"meta_{step:06d}.json"
    meta.write_text(json.dumps({"step": step, "val_bpb": math.inf, "model_config": dict(config), **more}, indent=2))
    age(root)
    return meta


def write_trap(root: Path) -> Path:
    """A base that says SSSL and a mid run whose meta lost it."""
    write_nanochat(root, "base_checkpoints/d2", 10, "ve32", WINDOWED, user_config={"depth": 2})
    return write_nanochat(root, "mid_checkpoints/d2", 4, "ve32", CONFIG)


def write_nanogpt(root: Path, **more: Any) -> Path:
    """nanoGPT's ckpt.pt, with the keys that its two dicts share."""
    n_layer, n_embd, block, vocab = 2, 16, 8, 32
    model: dict[str, Any] = OrderedDict()
    model["transformer.wte.weight"] = torch.randn(vocab, n_embd)
    model["transformer.wpe.weight"] = torch.randn(block, n_embd)
    for layer in range(n_layer):
        model[f"transformer.h.{layer}.ln_1.weight"] = torch.ones(n_embd)
        model[f"transformer.h.{layer}.attn.c_attn.weight"] = torch.randn(3 * n_embd, n_embd)
    model["lm_head.weight"] = model["transformer.wte.weight"]
    sizes = {"n_layer": n_layer, "n_head": 2, "n_embd": n_embd, "block_size": block, "bias": False}
    words = {"dataset": "shakespeare", "again": "shakespeare"}
    made = {"model": model, "optimizer": {"state": {}, "param_groups": []},
            "model_args": {**sizes, "vocab_size": vocab, "dropout": 0.0, **more}, "iter_num": 10,
            "best_val_loss": torch.tensor(4.5), "config": {**sizes, **words, "device": "cpu"}}  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    torch.save(made, root / "ckpt.pt")
    age(root)
    return root / "ckpt.pt"


# --- JSON text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
KEYS = st.sampled_from(["a", "b", "model_config", "é", "a.b", "", '"', "\\"]) | st.text(max_size=3)
OBJECT = st.dictionaries(KEYS, JSON, max_size=6)
STYLES = st.sampled_from(
    [
        {},
        {"indent": 2},
        {"indent": "\t"},
        {"separators": (",", ":")},
        {"indent": 0},
        {"ensure_ascii": False, "indent": 4},
    ]
)


def alike(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


@given(OBJECT, STYLES, KEYS, JSON, st.sampled_from(["", "\n", "\r\n", "  "]))
def test_json_is_edited_as_its_reader_sees_it(value: Any, style: Any, key: str, new: Any, tail: str) -> None:
    """What Python's own reader makes of the edited text is the edited value; every other byte stays, in its order."""
    text = json.dumps(value, **style) + tail
    document = jsontext.read(text.encode("utf-8", "surrogatepass"), "f")
    assert document.bytes == text.encode("utf-8", "surrogatepass")
    edited = jsontext.changed(document, [key], new, "f")
    assert alike(json.loads(edited.bytes), {**value, key: new})
    gone = jsontext.without(edited, [key], "f")
    assert alike(json.loads(gone.bytes), {k: v for k, v in value.items() if k != key})
    if key not in value and value:  # where it was added at the end, nothing is left of it
        assert gone.bytes == document.bytes
    back = jsontext.changed(edited, [key], value.get(key), "f")
    if key in value and not isinstance(value[key], (dict, list, str, float)):
        assert back.bytes == document.bytes


@given(OBJECT, OBJECT, STYLES, KEYS, JSON)
def test_nested_json_is_edited_in_place(outer: Any, inner: Any, style: Any, key: str, new: Any) -> None:
    value = {**outer, "model_config": inner, "z": [1, {"y": 2}]}
    document = jsontext.read(json.dumps(value, **style).encode("utf-8", "surrogatepass"), "f")
    edited = jsontext.changed(document, ["model_config", key], new, "f")
    assert alike(json.loads(edited.bytes), {**value, "model_config": {**inner, key: new}})
    assert alike(json.loads(jsontext.changed(edited, ["z", "1", "y"], new, "f").bytes)["z"], [1, {"y": new}])
    assert alike(json.loads(jsontext.without(edited, ["z", "0"], "f").bytes)["z"], [{"y": 2}])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{\n  "a": 1,\n  "b": NaN\n}', '{\n  "a": 1,\n  "b": NaN,\n  "k": "SSSL"\n}'),
        ('{"a":1,"b":2}', '{"a":1,"b":2,"k":"SSSL"}'),
        ('{"a": 1}', '{"a": 1, "k": "SSSL"}'.replace('1, "k"', '1,"k"')),
        ('{\r\n\t"a" : -Infinity\r\n}\r\n', '{\r\n\t"a" : -Infinity,\r\n\t"k" : "SSSL"\r\n}\r\n'),
        ("{}", '{"k": "SSSL"}'),
        ('{"k": 1, "a": 2, "\\u006b" :\t[3, {"k": 4}] }', '{"k": 1, "a": 2, "\\u006b" :\t"SSSL" }'),
    ],
)
def test_json_keeps_its_manner(before: str, after: str) -> None:
    """Line ends, indentation, colons, duplicate keys (the last counts) and what is no strict JSON."""
    assert jsontext.changed(jsontext.read(before.encode(), "f"), ["k"], "SSSL", "f").text == after
    taken = jsontext.without(jsontext.read(after.encode(), "f"), ["k"], "f")
    assert "k" not in json.loads(taken.text)


def test_json_writes_what_is_nested_in_the_manner_of_the_file() -> None:
    document = jsontext.read(b'{\n    "a": {\n        "b": 1\n    }\n}', "f")
    assert jsontext.changed(document, ["a", "c"], {"d": [1]}, "f").text == (
        '{\n    "a": {\n        "b": 1,\n        "c": {\n            "d": [\n'
        "                1\n            ]\n        }\n    }\n}"
    )
    raw = jsontext.read('{"ü": 1}'.encode(), "f")
    assert jsontext.changed(raw, ["ü"], "ß\ud800", "f").text == '{"ü": "\\u00df\\ud800"}'
    assert jsontext.changed(raw, ["ü"], "ß", "f").text == '{"ü": "ß"}'


# --- pickles


Keys = tuple[str, ...]
SET: list[tuple[Keys, Any]] = [
    (("a", "x"), 70000), (("a", "y"), "né\ud800"), (("a", "new"), {"m": [None, True, -1, 2.5]}),
    (("b", "q", "k"), 1e300), (("b", "q", "more"), 2**70), (("c",), "top"),
]  # fmt: skip
WORD = "shared text"
TAKEN: list[Keys] = [("a", "x"), ("a", "y"), ("a", WORD), ("b", "x"), ("b", "q", "k"), ("a",)]
UNHELD: list[Keys] = [("a", "x", "deeper"), ("a", "z", "0"), ()]


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_edited(protocol: int) -> None:
    """Python's own unpickler reads the edited stream; a text that is shared stays where it is used elsewhere."""
    value = {
        "a": {"x": 1, "y": WORD, "z": [1, 2], WORD: 5},
        "b": {"x": WORD, "y": (WORD, WORD), "q": OrderedDict(k=WORD)},
    }
    data = pickle.dumps(value, protocol)
    for path, new in SET:
        expected = pickle.loads(data)
        reduce(lambda holder, key: holder[key], path[:-1], expected)[path[-1]] = new
        assert pickle.loads(pickle_edit.changed(data, path, new, "f")) == expected, path
    for path in TAKEN:
        expected = pickle.loads(data)
        del reduce(lambda holder, key: holder[key], path[:-1], expected)[path[-1]]
        assert pickle.loads(pickle_edit.without(data, path, "f")) == expected, path
    assert pickle_edit.without(data, ("a", "none"), "f") == data
    for path in UNHELD:
        with pytest.raises(CkptError):
            pickle_edit.changed(data, path, 1, "f")


FLAT = st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False), max_size=8)


@given(st.integers(0, 5), FLAT, st.text(), st.integers() | st.text() | st.booleans() | st.none())
def test_any_flat_pickle_is_edited(protocol: int, value: dict[str, Any], key: str, new: Any) -> None:
    data = pickle.dumps({"config": value, "same": list(value.values()), "keys": list(value)}, protocol)
    edited = pickle.loads(pickle_edit.changed(data, ("config", key), new, "f"))
    assert edited == {"config": {**value, key: new}, "same": list(value.values()), "keys": list(value)}
    gone = pickle.loads(pickle_edit.without(data, ("config", key), "f"))
    assert gone["config"] == {k: v for k, v in value.items() if k != key} and gone["keys"] == list(value)


def test_a_shared_object_is_not_torn_apart() -> None:
    shared = {"deep": [1]}
    data = pickle.dumps({"a": shared, "b": shared}, 2)
    with pytest.raises(CkptError, match="shared"):
        pickle_edit.without(data, ("a",), "f")


# --- migrations


def subject(
    kind: str, config: Mapping[str, Any], state: Mapping[str, Any], source: str | None = "base", base: Any = None
) -> Subject:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Subject(kind, source, config, shapes, lambda: base)


def found(*arguments: Any, **named: Any) -> dict[str, Any]:
    return {finding.key: finding.value for finding in findings(subject(*arguments, **named))}


def test_every_migration_says_what_it_is_about() -> None:
    for migration in MIGRATIONS:
        assert migration.meaning and migration.kinds and migration.revisions and migration.source


def test_window_pattern() -> None:
    for source in ("base", "mid", "sft", "rl", None):
        assert found("nanochat", CONFIG, nanochat_state("v1"), source) == {"window_pattern": "L"}
    lambdas = nanochat_state("lambdas")
    assert found("nanochat", CONFIG, lambdas) == {"window_pattern": "L"}
    assert found("nanochat", CONFIG, lambdas, "mid", CONFIG) == {"window_pattern": "L"}
    # What looks like lambdas may be of the weeks after it, and only its base knows.
    assert found("nanochat", CONFIG, lambdas, "mid", WINDOWED) == {"window_pattern": "SSSL"}
    assert found("nanochat", CONFIG, lambdas, "mid") == {"window_pattern": MISSING}
    assert found("nanochat", CONFIG, lambdas, None) == {"window_pattern": MISSING}
    windowed = nanochat_state("ve32")
    assert found("nanochat", CONFIG, windowed, "sft", WINDOWED) == {"window_pattern": "SSSL"}
    assert found("nanochat", CONFIG, windowed, "sft", {**WINDOWED, "n_layer": 9}) == {"window_pattern": MISSING}
    assert found("nanochat", CONFIG, windowed, "sft") == {"window_pattern": MISSING}
    assert found("nanochat", CONFIG, windowed) == {"window_pattern": MISSING}
    # Reinforcement learning began from what may have lost it before.
    assert found("nanochat", CONFIG, windowed, "rl", WINDOWED) == {"window_pattern": MISSING}
    assert found("nanochat", CONFIG, windowed, "rl", {**CONFIG, "window_pattern": "l"}) == {"window_pattern": "l"}
    assert found("nanochat", WINDOWED, windowed) == {}
    # null is there and says nothing.
    null = {**CONFIG, "window_pattern": None}
    assert found("nanochat", null, nanochat_state("v1")) == {"window_pattern": "L"}
    assert found("nanochat", null, windowed, "mid", WINDOWED) == {"window_pattern": "SSSL"}
    assert found("nanochat", null, windowed, "mid", null) == {"window_pattern": MISSING}


@pytest.mark.parametrize("place", ["mlp", "moe"])
def test_the_number_of_experts(place: str) -> None:
    """A row of the router each; how many of them a token takes leaves no trace but a rounded width."""
    state = nanochat_state("ve32")
    for layer in range(2):
        state[f"transformer.h.{layer}.{place}.router.gate.weight"] = torch.randn(5, 16)
        state[f"transformer.h.{layer}.{place}.router.expert_bias"] = torch.zeros(5)
    for wrong in ({}, {"num_experts": 0}, {"num_experts": 4}):
        assert found("nanochat", {**WINDOWED, **wrong}, state) == {"num_experts": 5}
    assert found("nanochat", {**WINDOWED, "num_experts": 5}, state) == {}
    assert found("nanochat", WINDOWED, nanochat_state("ve32")) == {}


def test_the_number_of_experts_of_a_real_run(shared: Path, tmp_path: Path, call: Run) -> None:
    shutil.copytree(shared / "real/nanochat/k_moe3_branch/base_checkpoints", tmp_path / "base_checkpoints")
    path = tmp_path / "base_checkpoints/d2/meta_000010.json"
    whole = json.loads(path.read_text())
    lacking = json.loads(path.read_text())
    del lacking["model_config"]["num_experts"]
    path.write_text(json.dumps(lacking, indent=2))
    age(tmp_path)
    done = call("patch-config", "base/d2/10", "--root", tmp_path, "--yes", "--json")
    assert done.code == 0, done.err
    assert [(c["key"], c["new"]) for c in done.json["changed"][0]["changes"]] == [("model_config.num_experts", 4)]
    assert json.loads(path.read_text()) == whole


def test_nanochat_shapes() -> None:
    """What the shapes decide is corrected, and what they leave open is said, or taken from a base that fits."""
    plain, gated = nanochat_state("window"), nanochat_state("ve32")
    wrong = {**WINDOWED, "n_layer": 5, "n_embd": 99}
    assert found("nanochat", wrong, gated) == {"n_layer": 2, "n_embd": 16}
    bare = {key: WINDOWED[key] for key in ("sequence_len", "vocab_size", "window_pattern")}
    assert found("nanochat", bare, gated) == {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_kv_head": 1}
    headless = {key: value for key, value in WINDOWED.items() if key != "n_kv_head"}
    assert found("nanochat", headless, plain) == {"n_kv_head": 1}
    assert found("nanochat", {**headless, "n_head": 4}, plain) == {"n_kv_head": 2}
    assert found("nanochat", {**headless, "n_head": 3}, plain) == {"n_head": MISSING, "n_kv_head": MISSING}
    clash = {**WINDOWED, "n_kv_head": 2}
    assert found("nanochat", clash, plain) == {"n_head": MISSING, "n_kv_head": MISSING}
    assert found("nanochat", clash, gated) == {"n_kv_head": 1}
    only_keys = {key: value for key, value in WINDOWED.items() if key != "n_head"}
    assert found("nanochat", only_keys, plain) == {"n_head": 2}
    assert found("nanochat", {**WINDOWED, "vocab_size": 320}, plain) == {}
    assert found("nanochat", {**WINDOWED, "vocab_size": 256}, plain) == {"vocab_size": MISSING}
    assert found("nanochat", {**WINDOWED, "vocab_size": 256}, plain, "mid", WINDOWED) == {"vocab_size": 260}
    unpadded = nanochat_state("v1", rows=261)
    assert found("nanochat", {**WINDOWED, "vocab_size": 50304}, unpadded) == {"vocab_size": 261}
    engram = {**gated, "bigram_lambdas": torch.ones(2), "bigram_embed.embed.weight": torch.zeros(5 * 260, 16)}
    assert found("nanochat", {**WINDOWED, "vocab_size": 1}, engram) == {"vocab_size": 260}


def test_gpt2_relatives(tmp_path: Path) -> None:
    state = torch.load(write_nanogpt(tmp_path), weights_only=True)["model"]
    config = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": False, "vocab_size": 32, "dropout": 0.0}
    assert found("nanoGPT", config, state) == {}
    assert found("nanoGPT", {**config, "block_size": 1024, "bias": True}, state) == {"block_size": 8, "bias": False}
    assert found("nanoGPT", {**config, "n_head": 3}, state) == {"n_head": MISSING}
    old = {key: value for key, value in config.items() if key != "bias"}
    biased = {**state, "transformer.h.0.ln_1.bias": torch.zeros(16)}
    assert found("nanoGPT", old, biased) == {"bias": True}
    assert found("nano-gpt", old, biased) == {}
    assert found("nano-gpt", {**old, "vocab_size": 50257, "n_layer": 12}, state) == {"vocab_size": 32, "n_layer": 2}


def llama_state(layers: int = 2) -> dict[str, Any]:
    state = {"model.embed_tokens.weight": torch.zeros(64, 32), "model.norm.weight": torch.zeros(32)}
    for layer in range(layers):
        for name, rows in (("self_attn.q_proj", 32), ("self_attn.k_proj", 16), ("mlp.gate_proj", 48)):
            state[f"model.layers.{layer}.{name}.weight"] = torch.zeros(rows, 32)
    return {**state, "lm_head.weight": torch.zeros(64, 32)}


LLAMA = {"model_type": "llama", "hidden_size": 32, "vocab_size": 64, "num_hidden_layers": 2, "intermediate_size": 48,
         "num_attention_heads": 4, "num_key_value_heads": 2, "architectures": ["LlamaForCausalLM"]}  # fmt: skip


def test_config_json() -> None:
    state = llama_state()
    assert found("hf", LLAMA, state) == {}
    wrong = {**LLAMA, "hidden_size": 1, "vocab_size": 2, "num_hidden_layers": 3, "intermediate_size": 4, "head_dim": 8}
    fits = {"hidden_size": 32, "vocab_size": 64, "num_hidden_layers": 2, "intermediate_size": 48}
    assert found("hf", wrong, state) == fits
    lacking = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert found("hf", lacking, state) == {"num_key_value_heads": 2}
    assert found("hf", {**LLAMA, "num_key_value_heads": 4}, state) == {"num_key_value_heads": MISSING}
    assert found("hf", {**LLAMA, "num_key_value_heads": 4, "head_dim": 8}, state) == {"num_key_value_heads": 2}
    assert found("hf", {**LLAMA, "num_attention_heads": 5}, state) == {"num_attention_heads": MISSING}
    headless = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    assert found("hf", LLAMA, headless) == {"tie_word_embeddings": True}
    assert found("hf", {**LLAMA, "tie_word_embeddings": True}, headless) == {}
    assert found("hf", {**LLAMA, "architectures": ["LlamaModel"]}, headless) == {}
    assert found("hf", {**LLAMA, "model_type": "unheard_of", "hidden_size": 1}, state) == {}
    assert found("hf", {**LLAMA, "hidden_size": 1, "quantization_config": {}}, state) == {}
    assert found("hf", {**LLAMA, "hidden_size": 1, "quantization": {"bits": 4}}, state) == {}
    packed = {**state, "model.layers.0.mlp.down_proj.scales": torch.zeros(4)}
    assert found("hf", {**LLAMA, "hidden_size": 1}, packed) == {} and unseen(subject("hf", LLAMA, packed))
    gpt2 = {"wte.weight": torch.zeros(50257, 768), "wpe.weight": torch.zeros(48, 768)}
    gpt2 |= {f"h.{i}.ln_1.weight": torch.zeros(768) for i in range(12)}
    assert found("hf", {"model_type": "gpt2"}, gpt2) == {"n_positions": 48}
    assert (
        found("hf", {"model_type": "gpt2", "n_positions": 48}, {f"transformer.{k}": v for k, v in gpt2.items()}) == {}
    )


def test_params_json() -> None:
    state = {"tok_embeddings.weight": torch.zeros(64, 32)}
    for name, rows in (("wq", 32), ("wk", 16)):
        state |= {f"layers.{n}.attention.{name}.weight": torch.zeros(rows, 32) for n in range(2)}
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64}
    assert found("meta", params, state) == {}
    assert found("meta", {**params, "vocab_size": -1}, state) == {}
    assert found("meta", {**params, "vocab_size": 5, "n_layers": 3, "dim": 1}, state) == {
        "vocab_size": 64,
        "n_layers": 2,
        "dim": 32,
    }
    assert found("meta", {k: v for k, v in params.items() if k != "n_kv_heads"}, state) == {"n_kv_heads": 2}
    assert found("meta", {**params, "n_kv_heads": 4}, state) == {"n_kv_heads": MISSING}
    assert found("meta", {**params, "n_heads": 5}, state) == {"n_heads": MISSING}
    half = {**state, **{f"layers.{n}.attention.wq.weight": torch.zeros(16, 32) for n in range(2)}}
    assert found("meta", {**params, "dim": 1}, half) == {}
    # To Llama 2 each rank has some columns of the embedding, and as many rows of the queries.
    for rows, columns in ((64, 16), (32, 32)):
        split = {**half, "tok_embeddings.weight": torch.zeros(rows, columns)}
        assert found("meta", params, split) == {} and unseen(subject("meta", params, split))
    assert unseen(subject("meta", params, state)) is None


def test_what_no_patch_can_do_is_said() -> None:
    assert "--to hf" in str(beyond(subject("nanochat", CONFIG, nanochat_state("v1"))))
    assert "load-test" in str(beyond(subject("nanochat", WINDOWED, nanochat_state("ve32"))))
    newest = {**nanochat_state("window"), "smear_lambda": torch.zeros(1)}
    assert beyond(subject("nanochat", WINDOWED, newest)) is None
    assert beyond(subject("hf", LLAMA, llama_state())) is None


# --- the command


def test_the_trap(call: Run, tmp_path: Path) -> None:
    """A lost window_pattern comes from the base; one key is added, mode and mtime stay, once is enough."""
    meta = write_trap(tmp_path)
    meta.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(meta, 1234, 4321)
    owner = meta.stat().st_uid, meta.stat().st_gid
    before, whole = meta.read_text(), snapshot(tmp_path)
    done = call("patch-config", "--root", tmp_path, "--all", "--check", "--json")
    assert done.code == 1 and done.json["dry_run"] is True
    assert done.json["unchanged"] == ["base/d2/10"]
    (changed,) = done.json["changed"]
    assert (changed["ref"], changed["path"]) == ("mid/d2/4", str(meta))
    (change,) = changed["changes"]
    assert (change["key"], change["old"], change["new"]) == ("model_config.window_pattern", None, "SSSL")
    assert '+    "window_pattern": "SSSL"' in done.err and "load-test" in done.err
    assert snapshot(tmp_path) == whole
    assert call("patch-config", "--root", tmp_path, "mid/d2", "-n", "-q").out == "mid/d2/4\n"
    assert call("patch-config", "--root", tmp_path, "mid/d2").code == 4  # nobody to ask
    assert snapshot(tmp_path) == whole
    done = call("patch-config", "--root", tmp_path, "mid/d2", "--yes")
    assert done.code == 0, done.err
    assert meta.read_text() == before.replace('"n_embd": 16\n', '"n_embd": 16,\n    "window_pattern": "SSSL"\n')
    assert "Infinity" in before and not before.endswith("\n")
    assert stat.S_IMODE(meta.stat().st_mode) == 0o640 and meta.stat().st_mtime == OLD
    assert (meta.stat().st_uid, meta.stat().st_gid) == owner
    again = call("patch-config", "--root", tmp_path, "--all", "--check")
    assert again.code == 0 and "mid/d2/4\tfine" in again.out
    kept = snapshot(tmp_path)
    assert call("patch-config", "--root", tmp_path, "--all", "--yes").code == 0
    assert snapshot(tmp_path) == kept
    assert call("patch-config", "--root", tmp_path, "mid/d2/4", "--undo").code == 0
    assert snapshot(tmp_path) == whole and not (meta.parent / ".ckpt-undo").exists()
    assert call("patch-config", "--root", tmp_path, "mid/d2/4", "--undo").code == 1


def test_the_base_is_found_from_the_run_alone(call: Run, tmp_path: Path) -> None:
    meta = write_trap(tmp_path)
    assert call("patch-config", meta, "--yes").code == 0
    assert json.loads(meta.read_text())["model_config"]["window_pattern"] == "SSSL"


def test_without_its_base_it_is_not_guessed(call: Run, tmp_path: Path) -> None:
    meta = write_trap(tmp_path)
    shutil.rmtree(tmp_path / "base_checkpoints")
    whole = snapshot(tmp_path)
    for target in ("mid/d2", "mid/d2/4"):
        done = call("patch-config", "--root", tmp_path, target, "--yes")
        assert done.code == 1 and "base run of the same tag" in done.err and "--set" in done.err
    done = call("patch-config", "--root", tmp_path, "--all", "--json", "--yes")
    assert done.code == 1 and done.json["problems"][0]["code"] == "undecided" and done.json["changed"] == []
    assert snapshot(tmp_path) == whole
    assert call("patch-config", meta, "--set", "model_config.window_pattern=SSSL", "--yes").code == 0
    assert json.loads(meta.read_text())["model_config"]["window_pattern"] == "SSSL"
    write_nanochat(tmp_path, "mid_checkpoints/d4", 1, "v1", CONFIG)
    write_nanochat(tmp_path, "mid_checkpoints/d6", 1, "ve32", CONFIG)
    done = call("patch-config", "--root", tmp_path, "--all", "--yes", "--json")
    assert done.code == 3 and [c["ref"] for c in done.json["changed"]] == ["mid/d4/1"]


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [
        ("model_config.n_layer=4", 2, "tensors of 2 layers"), ("model_config.n_layer=2.5", 2, "whole number"),
        ("model_config.n_layer=two", 2, "text"), ("model_config.n_head=3", 2, "n_head"),
        ("model_config.window_pattern=SXL", 2, "S and L"), ("model_config.window_pattern=1", 2, "text"),
        ("model_config.vocab=260", 2, "did you mean vocab_size"), ("model_confg.x=2", 2, "did you mean model_config"),
        ("step.inner=1", 2, "holds no keys"), ("nothing", 2, "KEY=VALUE"), ("step=[1", 2, "no JSON"),
        ("step=" + "9" * 5000, 2, "no JSON"), ("step=" + "[" * 100_000, 2, "nested"), ("=1", 2, "KEY=VALUE"),
        ("model_config.n_layer=2", 0, "fine"), ("step=5", 0, ""), ("val_bpb=0.5", 0, ""), ("val_bpb=NaN", 0, ""),
        ("model_config.note=plain words", 0, ""), ('model_config.window_pattern="L"', 0, ""), ("list=[1,{}]", 0, ""),
    ],
)  # fmt: skip
def test_edits_by_hand(call: Run, tmp_path: Path, argument: str, code: int, said: str) -> None:
    """Kind and shape are checked against the old value and the tensors; what is refused has written nothing."""
    meta = write_nanochat(tmp_path, "base_checkpoints/d2", 10, "window", WINDOWED)
    whole = snapshot(tmp_path)
    done = call("patch-config", "--root", tmp_path, "base/d2/10", "--set", argument, "--yes")
    assert done.code == code and said in done.err + done.out, done
    if code:
        assert snapshot(tmp_path) == whole and len([x for x in done.err.splitlines() if x.startswith("error: ")]) == 1
    if "NaN" in argument:
        assert '"val_bpb": NaN' in meta.read_text()


def test_force_overrules(call: Run, tmp_path: Path) -> None:
    meta = write_nanochat(tmp_path, "base_checkpoints/d2", 10, "window", WINDOWED)
    arguments = (
        "--set",
        "model_config.n_layer=4",
        "--set",
        "step=two",
        "--unset",
        "model_config.n_head",
        "--unset",
        "no",
    )
    assert call("patch-config", meta, *arguments, "--yes").code == 2
    assert call("patch-config", meta, *arguments, "--yes", "--force").code == 0
    value = json.loads(meta.read_text())
    assert value["model_config"]["n_layer"] == 4 and value["step"] == "two" and "n_head" not in value["model_config"]
    assert list(value) == ["step", "val_bpb", "model_config"]
    assert call("patch-config", meta, "--check").code == 1  # which would mend the layers again
    assert call("patch-config", meta, "--set", "step=1", "--unset", "step").code == 2


def test_what_is_not_looked_at_is_said(call: Run, tmp_path: Path) -> None:
    """What nothing is known of is not called fine; nor does it fail a check, for nothing of it would change."""
    root = tmp_path / "root"
    write_nanochat(root, "base_checkpoints/d2", 10, "window", WINDOWED)
    write_nanochat(root, "base_checkpoints/d2", 20, "window", CONFIG)
    (root / "base_checkpoints/d2/model_000020.pt").unlink()
    for name, config in (("known", LLAMA), ("unheard", {**LLAMA, "model_type": "unheard_of"}), ("silent", {}),
                         ("packed", {**LLAMA, "quantization_config": {}})):  # fmt: skip
        (root / name).mkdir()
        safetensors.torch.save_file(llama_state(), root / name / "model.safetensors")
        (root / name / "config.json").write_text(json.dumps(config))
    (root / "lightning").mkdir()
    torch.save({"state_dict": {"w": torch.zeros(2)}}, root / "lightning/epoch=1-step=2.ckpt")
    away = write_nanochat(tmp_path / "away", "d4", 10, "v1", CONFIG)
    (root / "base_checkpoints/d4").symlink_to(away.parent)
    age(root)
    os.utime(root / "base_checkpoints/d2/meta_000020.json")  # it is being written
    done = call("patch-config", "--root", root, "--all", "--check", "--json")
    assert done.code == 0 and not done.json["problems"], done.err
    reasons = {skipped["ref"]: skipped["reason"] for skipped in done.json["skipped"]}
    assert set(done.json["unchanged"]) == {*reasons, "base/d2/10", "known"}
    for ref, reason in (
        ("unheard", "model type 'unheard_of'"), ("silent", "model_type"), ("packed", "quantized"),
        ("lightning/2", "known trainer"),
        ("base/d4/10", "outside the root"), ("base/d2/20", "still being written"),
    ):  # fmt: skip
        assert reason in reasons[ref]
    done = call("patch-config", "--root", root, "--all", "--check")
    assert done.code == 0 and "8 checkpoints: 2 fine, 6 not looked at" in done.err
    assert [line.split("\t")[:2] for line in done.out.splitlines() if line.startswith(("known", "unh"))] == [
        ["known", "fine"], ["unheard", "skipped"]
    ]  # fmt: skip
    assert call("patch-config", "base/d2", "--root", root, "--yes").code == 0
    assert call("patch-config", "base/d2/20", "--root", root, "--yes").code == 4
    assert call("patch-config", "unheard", "--root", root, "--set", "hidden_size=33", "--yes").code == 0


@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_lost_shard_is_not_taken_for_fewer_layers(call: Run, tmp_path: Path, lost: str) -> None:
    """Nor for a head that is tied: nothing is told of what is not all there, and an edit by hand has to be forced."""
    folder, state = tmp_path / "llama", llama_state()
    folder.mkdir()
    first = {name: tensor for name, tensor in state.items() if ".1." not in name and name != "lm_head.weight"}
    shards = {1: first, 2: {name: tensor for name, tensor in state.items() if name not in first}}
    index: dict[str, str] = {}
    for number, shard in shards.items():
        name = f"model-{number:05}-of-00002.safetensors"
        safetensors.torch.save_file(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    age(tmp_path)
    assert call("patch-config", "--root", tmp_path, "--all", "--check").code == 0
    (folder / lost).unlink()
    age(tmp_path)
    whole = snapshot(tmp_path)
    for options in ([], ["--set", "num_hidden_layers=1"]):
        done = call("patch-config", "--root", tmp_path, "--all", "--yes", *options)
        assert done.code == 1 and f"missing ({lost})" in done.out + done.err and "num_hidden_layers\t" not in done.out
    assert snapshot(tmp_path) == whole
    forced = call("patch-config", "--root", tmp_path, "--all", "--set", "num_hidden_layers=1", "--force", "--yes")
    assert forced.code == 0 and json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1


def test_scopes(call: Run, tmp_path: Path) -> None:
    """One step, all steps of a run, everything; a name that several runs have is ambiguous."""
    for place in ("base_checkpoints/d2", "mid_checkpoints/d2"):
        for step in (10, 20):
            write_nanochat(tmp_path, place, step, "v1", CONFIG)
    root = ("patch-config", "--root", tmp_path, "-n", "-q")
    assert call(*root, "base/d2/20").out.split() == ["base/d2/20"]
    assert call(*root, "base/d2").out.split() == ["base/d2/10", "base/d2/20"]
    assert call(*root, "base/d2/latest").out.split() == ["base/d2/20"]
    assert call(*root, "d2").code == 2
    assert len(call(*root, "d2", "--all").out.split()) == 4
    assert len(call(*root, "--all").out.split()) == 4
    assert call(*root).out.split() == ["base/d2/20"]
    run = tmp_path / "base_checkpoints/d2"
    assert call("patch-config", run, "-n", "-q").out.split() == ["base/d2/10", "base/d2/20"]
    assert call("patch-config", "--root", tmp_path, "--all", "--yes").code == 0
    assert call("patch-config", "--root", tmp_path, "mid/d2/10", "--undo", "-q").out.endswith(
        "mid_checkpoints/d2/meta_000010.json\n"
    )
    assert call("patch-config", "--root", tmp_path, "--all", "--check", "-q").out.split() == ["mid/d2/10"]
    assert call("patch-config", "--root", tmp_path, "--undo").code == 0
    assert len(call("patch-config", "--root", tmp_path, "--all", "--check", "-q").out.split()) == 4


def test_undo_is_of_the_latest_and_never_overwrites(call: Run, tmp_path: Path) -> None:
    meta = write_nanochat(tmp_path, "base_checkpoints/d2", 10, "window", WINDOWED)
    first = meta.read_bytes()
    assert call("patch-config", meta, "--set", "step=11", "--yes").code == 0
    second = meta.read_bytes()
    assert call("patch-config", meta, "--set", "step=12", "--yes").code == 0
    assert call("patch-config", meta, "--undo").code == 0 and meta.read_bytes() == second
    meta.write_text("{}")
    done = call("patch-config", meta, "--undo", "--json")
    assert done.code == 3 and done.json["problems"][0]["code"] == "stayed" and meta.read_text() == "{}"
    assert call("patch-config", meta, "--undo", "--force").code == 0 and meta.read_bytes() == first
    assert call("patch-config", meta, "--undo").code == 1
    assert call("patch-config", meta, "--undo", "--check").code == 2


UNKNOWN = "".join(f'"k{n}": {n},\n  ' for n in range(1000))
HARMLESS: dict[str, Callable[[str], str]] = {
    "1,000 unknown keys": lambda text: text.replace('"step"', UNKNOWN + '"step"'),
    "duplicate keys": lambda text: text.replace('"step": 10', '"step": 1, "step": 10, "a": 1, "a": 2'),
    "NaN": lambda text: text.replace("Infinity", "NaN"),
    "BOM": lambda text: "\ufeff" + text,
    "5,000 digits": lambda text: text.replace('"step"', f'"big": {"7" * 5000}, "step"'),
    "other letters": lambda text: text.replace('"step"', '"ключ": "Größe \\u00e4 \U0001f600", "step"'),
    "lone surrogate": lambda text: text.replace('"step"', '"s": "\\ud800", "step"'),
    "Windows lines": lambda text: text.replace("\n", "\r\n") + "\r\n",
    "one line": lambda text: json.dumps(json.loads(text)),
    "no room": lambda text: json.dumps(json.loads(text), separators=(",", ":")),
    "two configurations": lambda text: text.replace('"model_config"', '"model_config": {"n_layer": 7}, "model_config"'),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS)
def test_odd_metadata_is_mended_and_comes_back(call: Run, tmp_path: Path, what: str) -> None:
    """Taking the added key away again from the text gives the old text, byte for byte."""
    meta = write_nanochat(tmp_path, "base_checkpoints/d2", 10, "v1", CONFIG)
    meta.write_bytes(HARMLESS[what](meta.read_text()).encode())
    age(tmp_path)
    whole, old = snapshot(tmp_path), meta.read_bytes()
    done = call("patch-config", "--root", tmp_path, "base/d2/10", "--yes", "--json", "--force")
    assert done.code == 0, done.err
    assert done.json["changed"][0]["changes"][0]["key"] == "model_config.window_pattern"
    new = meta.read_bytes()
    added = [n for n in range(len(new)) if old == new[:n] + new[n + len(new) - len(old) :]]
    assert added and b"window_pattern" in new and len(new) > len(old)
    if "digits" not in what:
        assert json.loads(new)["model_config"] == {**CONFIG, "window_pattern": "L"}
    assert call("patch-config", "--root", tmp_path, "base/d2/10", "--check", "--force").code == 0
    assert call("patch-config", "--root", tmp_path, "base/d2/10", "--undo").code == 0
    assert snapshot(tmp_path) == whole


REFUSED: dict[str, Callable[[str], bytes]] = {
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "Latin-1": lambda text: text.replace('"step"', '"ä": 1, "step"').encode("latin-1"),
    "100,000 deep": lambda text: text.replace('"step"', f'"d": {"[" * 100_000}{"]" * 100_000}, "step"').encode(),
    "cut off": lambda text: text[:100].encode(),
    "a list": lambda text: b"[1, 2]",
    "empty": lambda text: b"",
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_edited_is_refused_in_a_sentence(call: Run, tmp_path: Path, what: str) -> None:
    meta = write_nanochat(tmp_path, "base_checkpoints/d2", 10, "v1", CONFIG)
    meta.write_bytes(REFUSED[what](meta.read_text()))
    age(tmp_path)
    whole = snapshot(tmp_path)
    done = call("patch-config", "--root", tmp_path, "base/d2/10", "--yes")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(errors) == 1 and len(errors[0]) < 300, done
    assert snapshot(tmp_path) == whole


# --- inside a .pt


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_nanogpt_is_patched_inside(call: Run, tmp_path: Path) -> None:
    """Only the pickle changes; torch opens the file, mapped too, with the new value; undo brings the old file back."""
    path = write_nanogpt(tmp_path / "out", block_size=1024)
    path.chmod(0o600)
    whole, inode = snapshot(tmp_path), path.stat().st_ino
    before = torch.load(path, weights_only=True)
    hashes = call("inspect", "tensors", path, "--hash", "--json").json["tensors"]
    old = records(path)
    done = call("patch-config", "--root", tmp_path, "--all", "--yes", "--json")
    assert done.code == 0, done.err
    assert [change["key"] for change in done.json["changed"][0]["changes"]] == ["model_args.block_size"]
    assert call("patch-config", path, "--set", "model_args.dropout=1", "--set", "config.dataset=né",
                "--unset", "config.n_layer", "--yes").code == 0  # fmt: skip
    new = records(path)
    assert list(new) == list(old)
    assert [name for name in old if old[name] != new[name]] == ["ckpt/data.pkl"]
    for mapped in (False, True):
        after = torch.load(path, weights_only=True, mmap=mapped)
        assert after["model_args"] == {**before["model_args"], "block_size": 8, "dropout": 1.0}
        assert type(after["model_args"]["dropout"]) is float
        expected = {**before["config"], "dataset": "né"}
        del expected["n_layer"]
        assert after["config"] == expected and list(after) == list(before)
        assert after["model"]["lm_head.weight"].data_ptr() == after["model"]["transformer.wte.weight"].data_ptr()
    found = call("inspect", "tensors", path, "--hash", "--json").json["tensors"]
    assert [(t["name"], t["sha256"]) for t in found] == [(t["name"], t["sha256"]) for t in hashes]
    assert path.stat().st_mtime == OLD and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert call("patch-config", path, "--check").code == 0
    for _ in range(2):
        assert call("patch-config", path, "--undo").code == 0
    assert snapshot(tmp_path) == whole and path.stat().st_ino == inode


def test_a_damaged_model_is_not_rewritten(call: Run, tmp_path: Path) -> None:
    """A bit that has turned round is found while the file is copied, and nothing is changed."""
    path = write_nanogpt(tmp_path / "out", block_size=1024)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("ckpt/data/0")
    data[info.header_offset + 400] ^= 1
    path.write_bytes(data)
    age(tmp_path)
    whole = snapshot(tmp_path)
    done = call("patch-config", path, "--yes")
    assert done.code == 1 and "CRC32" in done.err
    assert snapshot(tmp_path) == whole and not (path.parent / ".ckpt-undo").exists()


def test_alignment_and_protocols_of_other_files(call: Run, tmp_path: Path) -> None:
    """Loose files: another alignment, protocol 4, no CRC32; a legacy file is refused in a sentence."""
    value: dict[str, Any] = {"config": {"lr": 0.5, "name": "a"}, "weights": {"w": torch.arange(100.0)}}
    from torch.utils.serialization import config

    try:
        config.save.storage_alignment = 4096
        torch.save(value, tmp_path / "aligned.pt")
    finally:
        config.save.storage_alignment = 64
    torch.save(value, tmp_path / "four.pt", pickle_protocol=4)
    torch.save(value, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("aligned.pt", "four.pt"):
        path = tmp_path / name
        assert call("patch-config", path, "--set", "config.lr=0.25", "--set", "config.name=b", "--yes").code == 0
        after = torch.load(path, weights_only=name != "four.pt")
        assert after["config"] == {"lr": 0.25, "name": "b"} and torch.equal(
            after["weights"]["w"], value["weights"]["w"]
        )
    data = (tmp_path / "aligned.pt").read_bytes()
    assert data.find(torch.arange(100.0).numpy().tobytes()) % 4096 == 0
    done = call("patch-config", tmp_path / "legacy.pt", "--set", "config.lr=1", "--yes")
    assert done.code == 2 and "today's form" in done.err
    assert call("patch-config", tmp_path / "legacy.pt", "--check").code == 0


# --- what lies around


def test_manifests_follow(call: Run, tmp_path: Path) -> None:
    """sha256sum agrees before and after, and a file that was not as recorded is not patched."""
    meta = write_trap(tmp_path)
    assert call("verify", "mid/d2", "--root", tmp_path, "--record").code == 0
    listed = meta.parent / "model_000004.pt.sha256"
    before, whole = listed.read_bytes(), snapshot(tmp_path)
    assert call("patch-config", "mid/d2", "--root", tmp_path, "--yes").code == 0
    assert call("verify", "mid/d2", "--root", tmp_path, "--strict").code == 0
    digest = hashlib.sha256(meta.read_bytes()).hexdigest().encode()
    assert listed.read_bytes() == re.sub(rb"[0-9a-f]{64}(?=  meta)", digest, before)
    assert call("patch-config", "mid/d2", "--root", tmp_path, "--undo").code == 0
    assert snapshot(tmp_path) == whole
    meta.write_text(meta.read_text() + "\n")
    age(tmp_path)
    done = call("patch-config", "mid/d2", "--root", tmp_path, "--yes")
    assert done.code == 1 and "recorded" in done.err and not (meta.parent / ".ckpt-undo").exists()
    assert call("patch-config", "mid/d2", "--root", tmp_path, "--yes", "--force").code == 0
    assert call("verify", "mid/d2", "--root", tmp_path, "--strict").code == 0


def test_links_are_not_followed_out(call: Run, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_nanochat(root, "base_checkpoints/d2", 10, "v1", CONFIG)
    away = write_nanochat(tmp_path / "away", "d4", 10, "v1", CONFIG)
    (root / "base_checkpoints/d4").symlink_to(away.parent)
    meta = root / "base_checkpoints/d2/meta_000010.json"
    shutil.move(meta, tmp_path / "elsewhere.json")
    meta.symlink_to(tmp_path / "elsewhere.json")
    before = (tmp_path / "elsewhere.json").read_bytes(), away.read_bytes()
    for target in ("base/d2/10", "base/d4/10"):
        assert call("patch-config", target, "--root", root, "--yes").code == 4
    assert call("patch-config", "--all", "--root", root, "--yes").code == 3
    assert ((tmp_path / "elsewhere.json").read_bytes(), away.read_bytes()) == before and meta.is_symlink()


def test_what_others_put_there_is_not_touched(call: Run, tmp_path: Path) -> None:
    """A journal that leads out of the run, a link for an operation, files of somebody's own: none is followed."""
    root, away = tmp_path / "root", tmp_path / "away"
    meta = write_trap(root)
    away.mkdir()
    (away / "precious.json").write_text("{}")
    (away / "0.old").write_text("mine")
    home = meta.parent / ".ckpt-undo"
    (home / "20260101-x").mkdir(parents=True)
    (home / "20260101-x/notes.txt").write_text("mine")
    (home / "20260102-x").symlink_to(away)
    (meta.parent / "out").symlink_to(away)
    for number, name in enumerate(("../../../away/precious.json", "out/precious.json", str(away / "precious.json"))):
        made = home / f"2026020{number}-x"
        made.mkdir()
        (made / "0.old").write_text("harm")
        digest = hashlib.sha256(b"{}").hexdigest()
        (made / "journal").write_text(json.dumps({"version": 1, "files": [[name, name, digest]]}))
    assert call("patch-config", "mid/d2", "--root", root, "--undo", "--force").code == 1
    assert call("patch-config", "mid/d2", "--root", root, "--yes").code == 0
    assert "SSSL" in meta.read_text()
    assert call("patch-config", "mid/d2", "--root", root, "--undo", "--force").code == 0
    assert (away / "precious.json").read_text() == "{}" and (away / "0.old").read_text() == "mine"
    assert (home / "20260101-x/notes.txt").read_text() == "mine" and "SSSL" not in meta.read_text()


def test_prune_and_list_do_not_see_what_is_kept(call: Run, tmp_path: Path) -> None:
    for step in (10, 20):
        write_nanochat(tmp_path, "base_checkpoints/d2", step, "v1", CONFIG)
    listed = call("list", "--root", tmp_path).out
    assert call("patch-config", "--root", tmp_path, "--all", "--yes").code == 0
    assert call("list", "--root", tmp_path, "-q").out.split() == ["base/d2/10", "base/d2/20"]
    assert len(listed.splitlines()) == 2
    assert call("prune", "--root", tmp_path, "--keep", "1", "--yes").code == 0
    assert call("list", "--root", tmp_path, "-q").out.split() == ["base/d2/20"]
    # What was kept of the one that went is gone with it: only the other comes back.
    done = call("patch-config", "--root", tmp_path, "--undo")
    assert done.code == 0 and done.err.count("brought back") == 1
    assert "window_pattern" not in (tmp_path / "base_checkpoints/d2/meta_000020.json").read_text()
    assert sorted(p.name for p in (tmp_path / "base_checkpoints/d2").iterdir()) == [
        "meta_000020.json", "model_000020.pt"
    ]  # fmt: skip


def test_what_a_patch_has_kept_comes_back_after_its_journal_was_alone(call: Run, tmp_path: Path) -> None:
    """Two prunes take what one patch kept, the rest is undone meanwhile: all of it can still be undone in the end."""
    metas = [write_nanochat(tmp_path, "base_checkpoints/d2", step, "v1", CONFIG) for step in (10, 20, 30)]
    before = [meta.read_bytes() for meta in metas]
    assert call("patch-config", "--root", tmp_path, "--all", "--yes").code == 0
    prune = ("prune", "--root", tmp_path)
    assert call(*prune, "--keep", "2", "--trash", "--yes").code == 0
    assert call(*prune, "--keep", "1", "--trash", "--yes").code == 0
    assert call("patch-config", "--root", tmp_path, "--undo").code == 0  # the last one; no old file is left here
    assert call("patch-config", "--root", tmp_path, "--undo").code == 1
    assert call(*prune, "--undo").code == call(*prune, "--undo").code == 0
    assert call("patch-config", "--root", tmp_path, "--undo").code == 0
    assert [meta.read_bytes() for meta in metas] == before
    assert not (metas[0].parent / ".ckpt-undo").exists() and not (metas[0].parent / ".ckpt-trash").exists()


def test_a_patch_that_was_cut_off_keeps_what_it_needs(call: Run, tmp_path: Path) -> None:
    """A prune takes none of it, nor what is no file of ours; the next patch settles it."""
    for step in (10, 20):
        write_nanochat(tmp_path, "base_checkpoints/d2", step, "v1", CONFIG)
    assert call("patch-config", "--root", tmp_path, "--all", "--yes").code == 0
    (operation,) = (tmp_path / "base_checkpoints/d2/.ckpt-undo").iterdir()
    (operation / "undoing").write_text("[]")
    assert call("prune", "--root", tmp_path, "--keep", "1", "--yes").code == 0
    assert {path.name for path in operation.iterdir()} == {"0.old", "1.old", "journal", "undoing"}
    assert call("patch-config", "base/d2", "--root", tmp_path, "--yes").code == 0
    assert not (operation / "undoing").exists()


def test_what_a_patch_has_kept_goes_with_its_checkpoint(call: Run, tmp_path: Path) -> None:
    """It is in the plan and in its bytes, comes back by an undo, and nothing of it is left where a run is gone."""
    for step in (10, 20):
        write_nanochat(tmp_path, "base_checkpoints/d2", step, "v1", CONFIG)
    run, kept_there = tmp_path / "base_checkpoints/d2", tmp_path / "base_checkpoints/d2/.ckpt-undo"
    assert call("patch-config", "--root", tmp_path, "--all", "--yes").code == 0
    whole = snapshot(tmp_path)
    arguments = ("prune", run, "--keep", "1", "--json")
    planned = call(*arguments, "--dry-run").json
    (gone,) = planned["groups"][0]["remove"]
    inside = [path for path in gone["paths"] if ".ckpt-undo" in path]
    assert [Path(path).name for path in inside] == ["0.old"] and snapshot(tmp_path) == whole
    assert gone["bytes"] == sum(os.path.getsize(path) for path in gone["paths"])
    assert call(*arguments, "--yes", "--trash").code == 0 and not os.path.exists(inside[0])
    assert call("prune", run, "--undo").code == 0 and snapshot(tmp_path) == whole
    everything = ("prune", "base/d2", "--root", tmp_path, "--keep", "0", "--allow-empty", "--yes", "--json")
    assert call(*everything, "--trash").code == 0 and not kept_there.exists()
    assert call("prune", "--root", tmp_path, "--undo").code == 0 and snapshot(tmp_path) == whole
    assert call("patch-config", "base/d2/10", "--root", tmp_path, "--undo").code == 0  # one old file is left
    there = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    done = call(*everything)
    assert done.code == 0 and done.json["freed_bytes"] == there and not list(run.iterdir())


def test_another_ckpt_at_work_is_waited_for_in_vain(call: Run, tmp_path: Path) -> None:
    import fcntl

    meta = write_trap(tmp_path)
    descriptor = os.open(meta.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    before = meta.read_bytes()
    assert call("patch-config", "mid/d2", "--root", tmp_path, "--yes").code == 4
    os.close(descriptor)
    assert meta.read_bytes() == before
    assert call("patch-config", "mid/d2", "--root", tmp_path, "--yes").code == 0


def test_no_heavy_library_is_loaded(tmp_path: Path) -> None:
    write_trap(tmp_path)
    script = "import sys\nfrom ckpt_cli.app import main\ncode = main(sys.argv[1:])\n"
    script += "print(code, sorted({'torch', 'numpy', 'rich', 'safetensors', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, "patch-config", "--root", str(tmp_path), "--all", "--yes"],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


# --- kills and failures


CALLS = (
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "openat,fsync,ftruncate,pwrite64,fchmod,utimensat"
)


def _strace(
    options: list[str], arguments: Iterable[object], tree: Path, copy: Path
) -> subprocess.CompletedProcess[str]:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tree, copy)
    code = "import sys\nsys.path.insert(0, sys.argv.pop(1))\nfrom ckpt_cli.__main__ import run\nrun()"
    return subprocess.run(
        ["strace", "-qq", *options, sys.executable, "-B", "-c", code, str(REPOSITORY), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": str(copy.parent)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def calls_of(arguments: Iterable[object], tree: Path, copy: Path) -> list[tuple[str, int]]:
    """Each call that changes the file system, by its name and the number of it among those of that name."""
    log = copy.with_suffix(".log")
    _strace(["-e", f"trace={CALLS}", "-o", str(log)], arguments, tree, copy)
    seen: dict[str, int] = {}
    points = []
    for line in log.read_text().splitlines():
        name = line.split("(")[0]
        if name in CALLS.split(","):
            seen[name] = seen.get(name, 0) + 1
            if name != "openat" or "O_CREAT" in line:
                points.append((name, seen[name]))
    return points


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("kind", ["json", "pt"])
@pytest.mark.parametrize("way", ["patch", "undo"])
def test_killed_at_every_call(call: Run, tmp_path: Path, kind: str, way: str) -> None:
    """SIGKILL by the kernel: then the file is the old or the new one, and the next patch or undo finishes it."""
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    if kind == "json":
        name = str(write_trap(tree).relative_to(tree))
        assert call("verify", "mid/d2", "--root", tree, "--record").code == 0
    else:
        name = str(write_nanogpt(tree / "out", block_size=1024).relative_to(tree))
    old = snapshot(tree)
    arguments = ["patch-config", "--root", copy, "--all", "--yes"]
    done = _strace(["-o", "/dev/null", "-e", "trace=none"], arguments, tree, copy)
    assert done.returncode == 0, done.stderr
    new = {path: value for path, value in snapshot(copy).items() if ".ckpt-undo" not in path}
    assert new[name] != old[name]
    if way == "undo":
        shutil.rmtree(tree)
        shutil.copytree(copy, tree)
        arguments = ["patch-config", "--root", copy, "--undo"]
    points = calls_of(arguments, tree, copy)
    assert len(points) > (15 if way == "patch" else 5), points
    for number, (syscall, nth) in enumerate(points):
        killed = _strace(
            ["-o", "/dev/null", "-e", f"trace={syscall}", "-e", f"inject={syscall}:signal=SIGKILL:when={nth}"],
            arguments, tree, copy,
        )  # fmt: skip
        assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (syscall, nth, killed)
        there = {path: value for path, value in snapshot(copy).items() if ".ckpt-undo" not in path}
        for path in old:
            assert there[path] in (old[path], new[path]), (syscall, nth, path)
        assert set(there) == set(old), (syscall, nth)
        if number % 2:
            assert call("patch-config", "--root", copy, "--all", "--yes").code == 0, (syscall, nth)
            there = {path: value for path, value in snapshot(copy).items() if ".ckpt-undo" not in path}
            assert there == new, (syscall, nth)
        code = call("patch-config", "--root", copy, "--undo").code
        assert code == 0 or not number % 2, (syscall, nth)
        assert snapshot(copy) == old, (syscall, nth)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("failure", ["ENOSPC", "EIO"])
def test_failing_calls(call: Run, tmp_path: Path, failure: str) -> None:
    """A full or broken disk at any call: the old file or the new one, an exit code of the contract, no traceback."""
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    name = str(write_trap(tree).relative_to(tree))
    old = snapshot(tree)
    arguments = ["patch-config", "--root", copy, "--all", "--yes"]
    points = calls_of(arguments, tree, copy)
    new = snapshot(copy)[name]
    for syscall, nth in points:
        done = _strace(
            ["-o", "/dev/null", "-e", f"trace={syscall}", "-e", f"inject={syscall}:error={failure}:when={nth}"],
            arguments, tree, copy,
        )  # fmt: skip
        assert done.returncode in (0, 2, 3) and "Traceback" not in done.stderr, (syscall, nth, done.stderr)
        there = snapshot(copy)
        assert there[name] == (new if done.returncode == 0 else there[name]) and there[name] in (old[name], new)
        assert call("patch-config", "--root", copy, "--all", "--yes").code == 0
        assert snapshot(copy)[name] == new, (syscall, nth)


def test_an_interrupt_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Run) -> None:
    """Ctrl-C while the second file of two runs is written."""
    for place in ("base_checkpoints/d2", "base_checkpoints/d4"):
        write_nanochat(tmp_path, place, 10, "v1", CONFIG)
    whole = snapshot(tmp_path)
    count = 0
    real = kept.sha256

    def interrupted(path: str) -> str:
        nonlocal count
        count += path.endswith(".new")
        if count == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(path)

    monkeypatch.setattr("ckpt_cli.undo.sha256", interrupted)
    assert call("patch-config", "--root", tmp_path, "--all", "--yes").code == 130
    assert snapshot(tmp_path) == whole and not list(tmp_path.rglob(".ckpt-undo"))


def test_where_links_cannot_be_made(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file is then kept as a copy, with its mode and times."""

    def nothing(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    meta = write_trap(tmp_path)
    meta.chmod(0o604)
    whole = snapshot(tmp_path)
    monkeypatch.setattr(os, "link", nothing)
    assert call("patch-config", "mid/d2", "--root", tmp_path, "--yes").code == 0
    assert "SSSL" in meta.read_text()
    assert call("patch-config", "mid/d2", "--root", tmp_path, "--undo").code == 0
    assert snapshot(tmp_path) == whole


def test_a_file_that_changes_meanwhile_is_left_alone(
    call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the plan and the patch, and between the last look and the rename."""
    meta = write_trap(tmp_path)
    from ckpt_cli import patching

    real = patching.carry_out

    def late(*arguments: Any) -> Any:
        meta.write_text("{}")
        return real(*arguments)

    monkeypatch.setattr(patching, "carry_out", late)
    assert call("patch-config", "mid/d2", "--root", tmp_path, "--yes").code == 4
    assert meta.read_text() == "{}"
    monkeypatch.undo()


# --- real files


@pytest.fixture
def real(shared: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        target = tmp_path / "real" / name
        shutil.copytree(shared / "real" / name, target)
        for path in [target, *target.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        age(target)
        return target

    return copy


# What the facts say of intact trees, and nothing else: no window_pattern before there were windows, the pattern that
# mid runs of January 2026 lost, and nano-gpt's export, which writes no n_positions.
EXPECTED: dict[str, dict[str, Any]] = {
    "nanochat": {
        "base/a1_v1_oct2025/d2/10": "L", "base/a1_v1_oct2025/d2/20": "L", "mid/a1_v1_oct2025/d2/8": "L",
        "sft/a1_v1_oct2025/d2/6": "L", "rl/a1_v1_oct2025/d2/4": "L", "base/b_lambdas_jan2026/d2/10": "L",
        "base/b_lambdas_jan2026/d2/20": "L", "mid/e1_ve32_jan2026/d3/8": "SSSL",
    },
    "gpt2": {"nano_gpt/export_000020": 64},
    **{tree: {} for tree in ("dcp", "families", "hf", "lightning", "meta", "torchtune", "trainer")},
}  # fmt: skip


@pytest.mark.parametrize("tree", EXPECTED)
def test_real_trees(call: Run, real: Callable[[str], Path], tree: str) -> None:
    """Only what the facts say; after a patch nothing is left to do, the files are whole, and undo brings all back."""
    root = real(tree)
    whole = snapshot(root)
    done = call("patch-config", "--root", root, "--all", "--check", "--json")
    changed = {c["ref"]: [change["new"] for change in c["changes"]] for c in done.json["changed"]}
    assert changed == {ref: [value] for ref, value in EXPECTED[tree].items()}
    assert done.code == bool(changed) and not done.json["problems"] and snapshot(root) == whole
    if not changed:
        return
    assert call("patch-config", "--root", root, "--all", "--yes").code == 0
    assert call("patch-config", "--root", root, "--all", "--check").code == 0
    assert call("patch-config", "--root", root, "--undo").code == 0
    assert snapshot(root) == whole


def test_the_real_trap(call: Run, real: Callable[[str], Path], tmp_path: Path) -> None:
    """The mid checkpoint of January 2026 computes what it was trained to once its pattern is back."""
    root = real("nanochat/e1_ve32_jan2026")
    assert call("patch-config", "--root", root, "mid/d3", "--yes").code == 0
    folder = root / "mid_checkpoints/d3"
    assert json.loads((folder / "meta_000008.json").read_text())["model_config"]["window_pattern"] == "SSSL"
    told = torch.load(folder / "expected_logits_000008.pt", weights_only=True)
    tokens = ",".join(map(str, told["tokens"].flatten().tolist())) if "tokens" in told else None
    if tokens is None or told["tokens"].shape[0] != 1:
        pytest.skip("the expected file has another form")
    out = tmp_path / "logits.safetensors"
    done = call("load-test", "mid/d3", "--root", root, "--tokens", tokens, "--save-logits", out, "--device", "cpu")
    assert done.code == 0, done.err
    from safetensors.torch import load_file

    wanted = told["logits_with_true_window_pattern_SSSL"]
    assert (load_file(out)["logits"] - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["nano_gpt/checkpoints/checkpoint_000020.bin", "nanoGPT/out_train_py/ckpt.pt"])
def test_real_files_of_one_piece(call: Run, real: Callable[[str], Path], name: str) -> None:
    path = real("gpt2") / name
    old, before = records(path), torch.load(path, weights_only=True)
    place = "config" if "nano_gpt" in name else "model_args"
    whole = snapshot(path.parent)
    assert call("patch-config", path, "--set", f"{place}.n_embd=1", "--force", "--yes").code == 0
    done = call("patch-config", path, "--yes", "--json")
    assert [c["key"] for c in done.json["changed"][0]["changes"]] == [f"{place}.n_embd"]
    after, new = torch.load(path, weights_only=True), records(path)
    assert after[place] == before[place]
    assert [key for key in old if old[key] != new[key]] in ([], [next(k for k in old if k.endswith("data.pkl"))])
    for _ in range(2):
        assert call("patch-config", path, "--undo").code == 0
    assert snapshot(path.parent) == whole


def test_hostile_metadata(call: Run, shared: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((shared / "hostile/json").glob("meta_*.json"))):
        root = tmp_path / path.stem
        meta = write_nanochat(root, "base_checkpoints/d2", number, "v1", CONFIG)
        meta.write_bytes(path.read_bytes())
        age(root)
        before = meta.read_bytes()
        done = call("patch-config", "--root", root, "--all", "--set", "model_config.n_layer=2", "--yes", "--force")
        assert done.code in (0, 2), done
        assert "\x1b" not in done.err + done.out
        if done.code:
            assert meta.read_bytes() == before


def test_beside_what_accelerate_counts(call: Run, tmp_path: Path) -> None:
    """It takes a number out of every name in `checkpoints/`, and the largest is what it goes on from."""
    run = tmp_path / "run/checkpoints"
    for number in (0, 1):
        folder = run / f"checkpoint_{number}"
        folder.mkdir(parents=True)
        safetensors.torch.save_file({"w": torch.ones(2)}, folder / "model.safetensors")
        for name in ("optimizer.bin", "random_states_0.pkl"):
            torch.save({}, folder / name)
        (folder / "config.json").write_text('{"model_type": "gpt2", "n_layer": 1}')
    before = snapshot(run)
    assert call("patch-config", tmp_path, "--set", "n_layer=2", "--all", "--yes").code == 0
    assert max(os.listdir(run), key=lambda name: int(re.findall("[0-9]+", name)[0])) == "checkpoint_1"
    assert call("patch-config", tmp_path, "--undo").code == 0
    assert snapshot(run) == before and sorted(os.listdir(run)) == ["checkpoint_0", "checkpoint_1"]
