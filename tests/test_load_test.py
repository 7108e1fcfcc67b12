"""`ckpt load-test`: models are rebuilt and compute what their trainers computed; what is wrong fails at its level, with
the tensor named; a process that dies, crashes or hangs is a failed level; nothing ever reaches the files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_cli.levels import LEVELS
from tests.conftest import REPOSITORY, Run
from tests.load_testing import level_of, read_logits, statuses
from tests.torch_files import flip, places

CLOSE = 1e-4


# --- what real trainers wrote

REAL = [
    *(f"nanochat/a1_v1_oct2025/{run}" for run in (
        "base_checkpoints/d2/000010", "base_checkpoints/d2/000020", "mid_checkpoints/d2/000008",
        "chatsft_checkpoints/d2/000006", "chatrl_checkpoints/d2/000004")),
    "nanochat/b_lambdas_jan2026/base_checkpoints/d2/000010", "nanochat/b_lambdas_jan2026/base_checkpoints/d2/000020",
    "nanochat/c_window_jan2026/base_checkpoints/d3/000010", "nanochat/c_window_jan2026/base_checkpoints/d3/000020",
    "nanochat/e1_ve32_jan2026/base_checkpoints/d2/000010", "nanochat/e1_ve32_jan2026/base_checkpoints/d3/000020",
    "nanochat/e1_ve32_jan2026/mid_checkpoints/d3/000008", "nanochat/f_engram_jan2026/base_checkpoints/d2/000010",
    "nanochat/g1_softcap20_mar2026/base_checkpoints/d2/000010", "nanochat/h_ve12_mar2026/base_checkpoints/d2/000010",
    "nanochat/h_ve12_mar2026/base_checkpoints/d3/000010", "nanochat/i1_smear_mar2026/base_checkpoints/d2/000010",
    "nanochat/k_moe3_branch/base_checkpoints/d2/000010", "gpt2/build-nanogpt/log/00010",
    "gpt2/nanoGPT/out_train_py/", "gpt2/nano_gpt/checkpoints/000010", "gpt2/nano_gpt/checkpoints/000020",
]  # fmt: skip
TOLD = {"nanochat/g1_softcap20_mar2026/base_checkpoints/d2/000010": ["--set", "softcap=20"]}


@pytest.mark.parametrize("which", REAL)
def test_logits_are_those_of_the_trainer(which: str, shared: Path, tried: Run, tmp_path: Path) -> None:
    folder, _, step = f"{shared}/real/{which}".rpartition("/")
    names = [name for name in os.listdir(folder) if name.startswith(("model", "checkpoint", "ckpt")) and step in name]
    expected = torch.load(Path(folder) / f"expected_logits{'_' + step if step else ''}.pt", weights_only=True)
    tokens = ",".join(map(str, expected["tokens"][0].tolist()))
    path = tmp_path / "logits.safetensors"
    done = tried(Path(folder) / names[0], "--tokens", tokens, "--save-logits", path, "--json", *TOLD.get(which, []))
    assert done.code == 0, done.err
    torch.testing.assert_close(read_logits(path), expected["logits"], rtol=0, atol=CLOSE)
    assert done.json["logits"] == {"shape": list(expected["logits"].shape), "finite": True}
    assert statuses(done.json)[:4] == ["pass"] * 4
    # A shard that is there fits, however it is divided.
    assert level_of(done.json, "optimizer")["status"] in ("pass", "skip")
    kept = any(name.startswith("optim") and step in name for name in os.listdir(folder)) or "nano" in names[0]
    assert not kept or level_of(done.json, "optimizer")["status"] == "pass"


@pytest.mark.parametrize("which", ["nano_gpt/checkpoints/checkpoint_000010.bin", "nanoGPT/out_train_py/ckpt.pt"])
def test_training_resumes(which: str, shared: Path, tried: Run) -> None:
    before = (shared / "real" / "gpt2" / which).read_bytes()
    done = tried(shared / "real" / "gpt2" / which, "--phase", "train", "--json")
    assert statuses(done.json) == ["pass"] * 6
    assert "AdamW from step 10: loss" in level_of(done.json, "train-step")["detail"]
    assert (shared / "real" / "gpt2" / which).read_bytes() == before


# --- a small tree, and the command itself


def test_a_process_of_its_own_says_the_same(ckpt: Run, demo_tree: Path) -> None:
    done = ckpt("load-test", "base/d4", "--root", demo_tree, "--json", "--device", "cpu")
    assert done.code == 0, done.err
    found = done.json
    assert list(found)[:2] == ["schema_version", "command"]
    assert (found["command"], found["ok"]) == ("load-test", True)
    assert (found["family"], found["device"], found["dtype"]) == ("nanochat-window", "cpu", "float32")
    assert found["checkpoint"]["ref"] == "base/d4/150"
    state = torch.load(demo_tree / "base_checkpoints/d4/model_000150.pt", weights_only=True)
    assert found["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert statuses(found) == ["pass"] * 5 + ["skip"]
    assert found["keys"] == {"missing": [], "unexpected": [], "mismatched": []}
    assert found["logits"] == {"shape": [1, 32, 260], "finite": True}
    assert 50e6 < found["peak_memory_bytes"] < 2e9
    assert all(level["seconds"] >= 0 and level["detail"] for level in found["levels"])
    (own,) = (c for c in ckpt("list", "--root", demo_tree, "--json").json["checkpoints"] if c["ref"] == "base/d4/150")
    assert found["checkpoint"] == own


def test_the_answer_is_the_same_without_a_process(tried: Run, ckpt: Run, demo_tree: Path, tmp_path: Path) -> None:
    paths = tmp_path / "own.safetensors", tmp_path / "child.safetensors"
    one = tried("sft/d4", "--root", demo_tree, "--json", "--save-logits", paths[0])
    two = ckpt("load-test", "sft/d4", "--root", demo_tree, "--json", "--save-logits", paths[1])
    answers = one.json, two.json
    for found in answers:
        found.pop("peak_memory_bytes")
        for level in found["levels"]:
            level.pop("seconds")
    assert answers[0] == answers[1]
    torch.testing.assert_close(read_logits(paths[0]), read_logits(paths[1]), rtol=0, atol=0)
    assert paths[0].stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_plain_lines_and_a_table(tried: Run, demo_tree: Path) -> None:
    plain = tried("base/d4", "--root", demo_tree)
    rows = [line.split("\t") for line in plain.out.splitlines()]
    assert [row[0] for row in rows] == list(LEVELS)
    assert all(len(row) == 4 and float(row[2]) >= 0 for row in rows)
    assert "5 levels passed on cpu in float32" in plain.err
    table = tried("base/d4", "--root", demo_tree, "--format", "table")
    assert table.out.splitlines()[0].split() == ["LEVEL", "STATUS", "SECONDS", "DETAIL"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-q"], "two output formats"), (["--phase", "both"], "no phase"), (["--device", "tpu"], "no device"),
        (["--set", "softcap"], "none of softcap"), (["--set", "depth=4"], "none of softcap"),
        (["--set", "window_pattern=SL", "--set", "window_pattern=L"], "two things"),
        (["--tokens", "1;2"], "no list"), (["--tokens", "1,999"], "vocabulary is 260"),
        (["--tokens", ",".join(["1"] * 700)], "takes 1 to 640"), (["--dtype", "int8"], "no dtype"),
        (["--family", "gpt5"], "no family"), (["--model", "mine"], "no class"),
        (["--model", "nothing_of_this_name:Class"], "cannot be imported"), (["--model", "json:Nothing"], "Nothing"),
        (["--model", "json:JSONDecoder", "--family", "x"], "contradict"), (["--force"], "goes with"),
        (["--save-logits", "/nowhere/at/all.safetensors"], "no directory"), (["--save-logits", ""], "empty"),
        (["--timeout", "nan"], "seconds"), (["--config", "/nowhere.json"], "nowhere.json"),
        (["--set", "softcap=16"], "15 or 20"), (["--set", "rotary_rounding=up"], "bf16 or none"),
        (["--set", "window_pattern=XY"], "S and L"), (["--device", "cuda:77"], "there is no"),
    ],
)  # fmt: skip
def test_wrong_usage(arguments: list[str], said: str, tried: Run, demo_tree: Path) -> None:
    done = tried("base/d4", "--root", demo_tree, "--json", *arguments)
    assert (done.code, done.out) == (2, ""), done
    assert said in done.err


@pytest.mark.parametrize(("word", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp64", "float64")])
def test_the_dtype_is_that_of_the_arithmetic(word: str, dtype: str, tried: Run, demo_tree: Path) -> None:
    done = tried("base/d4", "--root", demo_tree, "--json", "--dtype", word)
    assert (done.code, done.json["dtype"]) == (0, dtype), done.err
    assert dtype in level_of(done.json, "build")["detail"]


def test_existing_logits_stay(tried: Run, demo_tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "logits.safetensors"
    path.write_text("mine")
    assert tried("base/d4", "--root", demo_tree, "--save-logits", path).code == 4
    assert path.read_text() == "mine"
    assert tried("base/d4", "--root", demo_tree, "--save-logits", path, "--force").code == 0
    assert read_logits(path).shape == (1, 32, 260)
    model = demo_tree / "base_checkpoints/d4/model_000150.pt"
    assert tried(model, "--save-logits", model, "--force").code == 2


def test_the_parent_does_without_torch(demo_tree: Path, tmp_path: Path) -> None:
    script = "import sys; from ckpt_cli.app import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, "load-test", "base/d4", "--root", str(demo_tree)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == "0 False"


def test_the_current_directory_is_no_place_to_import_from(ckpt: Run, demo_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('imported from here')")
    assert ckpt("load-test", "base/d4", "--root", demo_tree, cwd=tmp_path, env={"PYTHONPATH": ""}).code in (0, 1)
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ckpt_cli.app import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, str(REPOSITORY), "load-test", "base/d4", "--root", str(demo_tree)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# --- assumptions


def test_a_lost_window_pattern_is_named_with_that_of_the_base(tried: Run, tree: Path, tmp_path: Path) -> None:
    """Wherever it is asked from: the root, or the file itself."""
    logits = {}
    model = tree / "mid_checkpoints/d4/model_000060.pt"
    asked: dict[str, list[object]] = {
        "root": ["mid/d4", "--root", tree], "file": [model], "L": [model, "--set", "window_pattern=L"],
        "SSSL": [model, "--set", "window_pattern=SSSL"],
    }  # fmt: skip
    for name, arguments in asked.items():
        path = tmp_path / f"{name}.safetensors"
        tokens = ",".join(map(str, range(64)))
        done = tried(*arguments, "--json", "--tokens", tokens, "--save-logits", path)
        assert done.code == 0, done.err
        logits[name] = read_logits(path)
        (pattern,) = (one for one in done.json["assumptions"] if one["key"] == "window_pattern")
        if name in ("root", "file"):
            assert pattern["value"] == "L" and pattern["warning"] and "'SSSL'" in pattern["reason"]
            assert "warning: window_pattern is taken to be L" in done.err and "SSSL" in done.err
    torch.testing.assert_close(logits["root"], logits["L"], rtol=0, atol=0)
    torch.testing.assert_close(logits["file"], logits["L"], rtol=0, atol=0)
    assert (logits["SSSL"] - logits["L"]).abs().max() > 0.01


# --- failures, each at its level and with its tensor

Damage = Callable[[Path], None]
RUN = "base_checkpoints/d4"
MODEL, META, SHARD = (f"{RUN}/{name}" for name in ("model_000150.pt", "meta_000150.json", "optim_000150_rank1.pt"))
QUERY = "transformer.h.1.attn.c_q.weight"


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    state = torch.load(path, weights_only=True)
    torch.save(change(state) or state, path)


def resay(path: Path, **settings: Any) -> None:
    meta = json.loads(path.read_text())
    meta["model_config"] |= settings
    path.write_text(json.dumps(meta))


def flipped(root: Path) -> None:
    state = list(torch.load(root / MODEL, weights_only=True))
    first, length = places(root / MODEL)[f"model_000150/data/{state.index(QUERY)}"]
    flip(root / MODEL, first + length // 2)


def transposed(state: Any) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    state[name] = state[name].t().contiguous()


def without_query(state: Any) -> None:
    del state[QUERY]


def with_nan(state: Any) -> None:
    state["transformer.wte.weight"][259, 3] = float("nan")  # of a token that the batch does not have


def other_optimizer(root: Path) -> None:
    shutil.copy(root / "base_checkpoints/d6/optim_000150_rank1.pt", root / SHARD)


def narrow_state(states: Any) -> None:
    states[0]["state"][0]["exp_avg"] = torch.zeros(7, 40)


def tokenizer(root: Path) -> None:
    (root / "tokenizer").mkdir()
    torch.save(torch.ones(265, dtype=torch.int64), root / "tokenizer/token_bytes.pt")


FAILURES: dict[str, tuple[Damage, str, str]] = {
    "a flipped bit": (flipped, "integrity", QUERY),
    "a missing key": (lambda root: rewrite(root / MODEL, without_query), "build", QUERY),
    "a key too many": (lambda r: rewrite(r / MODEL, lambda s: {**s, "extra": torch.ones(2)}), "build", "extra"),
    "a transposed weight": (
        lambda root: rewrite(root / MODEL, transposed), "build", "transformer.h.1.mlp.c_fc.weight",
    ),
    "a NaN": (lambda root: rewrite(root / MODEL, with_nan), "forward", "transformer.wte.weight"),
    "a wrong vocabulary": (lambda root: resay(root / META, vocab_size=500), "build", "transformer.wte.weight"),
    "a wrong tokenizer": (tokenizer, "build", "265"),
    "another depth": (lambda root: resay(root / META, n_layer=6), "build", "resid_lambdas"),
    "another width": (lambda root: resay(root / META, n_embd=48), "build", "transformer.wte.weight"),
    "a missing shard": (lambda root: (root / SHARD).unlink(), "optimizer", "rank 1"),
    "a shard of another model": (other_optimizer, "optimizer", "optim_000150_rank1.pt"),
    "a state of another shape": (lambda root: rewrite(root / SHARD, narrow_state), "optimizer", "0.state.0.exp_avg"),
    "a shard that was cut": (lambda root: os.truncate(root / SHARD, 5000), "integrity", "optim_000150_rank1.pt"),
    "a model that was cut": (lambda root: os.truncate(root / MODEL, 50_000), "read", "model_000150.pt"),
    "an empty model": (lambda root: os.truncate(root / MODEL, 0), "read", "model_000150.pt"),
    "a missing meta": (lambda root: (root / META).unlink(), "read", "meta_000150.json"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAILURES)
def test_what_is_wrong_fails_at_its_level(what: str, tried: Run, tree: Path) -> None:
    damage, level, named = FAILURES[what]
    assert tried("base/d4/150", "--root", tree).code == 0
    damage(tree)
    done = tried("base/d4/150", "--root", tree, "--json")
    assert done.code == 1, done.err
    failed = [one for one in done.json["levels"] if one["status"] == "fail"]
    assert [one["name"] for one in failed] == [level]
    assert named in failed[0]["detail"]
    assert not done.json["ok"]
    assert f"fails at {level}" in done.err and named in done.err
    assert done.json["problems"] and all(set(p) >= {"code", "detail", "path"} for p in done.json["problems"])
    for one in done.json["levels"]:
        if one["status"] == "skip" and one["name"] != "train-step":
            assert one["detail"] == f"{level} failed"


def test_every_difference_is_named(tried: Run, tree: Path) -> None:
    def change(state: Any) -> Any:
        transposed(state)
        return {**{name: tensor for name, tensor in state.items() if name != QUERY}, "extra": torch.ones(2)}

    rewrite(tree / MODEL, change)
    done = tried(tree / MODEL, "--json")
    assert done.json["keys"] == {
        "missing": [QUERY],
        "unexpected": ["extra"],
        "mismatched": [{"name": "transformer.h.1.mlp.c_fc.weight", "expected": [160, 40], "found": [40, 160]}],
    }
    for name in (QUERY, "extra", "transformer.h.1.mlp.c_fc.weight"):
        assert name in done.err
    # Each once, in a line of its own; the last one counts them.
    assert done.err.count(QUERY) == 1
    assert done.err.splitlines()[-1] == "error: base/d4/150 fails at build: 3 names or shapes differ"


def test_options_are_read_before_anything_is_looked_for(call: Run) -> None:
    for options, said in (
        (["--tokens", "1 2"], "--tokens '1 2' is no list of numbers, as 1,2,3 is"),
        (["--tokens", "1,,2"], "--tokens '1,,2' is no list of numbers, as 1,2,3 is"),
        (["--set", "softcap"], "--set 'softcap' is none of softcap=VALUE, rotary_rounding=VALUE, window_pattern=VALUE"),
    ):
        done = call("load-test", "nowhere/d4", *options)
        assert (done.code, done.err) == (2, f"error: {said}\n")


def test_tokens_may_have_blanks_between_them(tried: Run, demo_tree: Path, tmp_path: Path) -> None:
    logits: list[torch.Tensor] = []
    for tokens in ("5,6,7", " 5, 6 ,7 "):
        path = tmp_path / f"{len(logits)}.safetensors"
        assert tried("base/d4", "--root", demo_tree, "--tokens", tokens, "--save-logits", path).code == 0
        logits.append(read_logits(path))
    assert torch.equal(*logits)


def test_damage_of_the_optimizer_leaves_the_model(tried: Run, tree: Path) -> None:
    flip(tree / SHARD, (tree / SHARD).stat().st_size // 2)
    done = tried(tree / MODEL, "--json")
    assert statuses(done.json) == ["pass", "fail", "pass", "pass", "skip", "skip"]
    assert "optim_000150_rank1.pt" in level_of(done.json, "integrity")["detail"]


def test_a_tokenizer_that_fits(tried: Run, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nanochat's is a pickled tiktoken Encoding; its state is read, and none of it is made."""
    module = types.ModuleType("tiktoken.core")

    class Encoding:
        def __init__(self, tokens: int) -> None:
            self.tokens = tokens

        def __getstate__(self) -> dict[str, Any]:
            ranks = {bytes([i]): i for i in range(self.tokens)}
            return {"name": "rustbpe", "pat_str": ".", "mergeable_ranks": ranks, "special_tokens": {"<|bos|>": 259}}

    Encoding.__module__, Encoding.__qualname__ = "tiktoken.core", "Encoding"
    module.Encoding = Encoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiktoken", types.ModuleType("tiktoken"))
    monkeypatch.setitem(sys.modules, "tiktoken.core", module)
    place = tree / "tokenizer"
    place.mkdir()
    (place / "tokenizer.pkl").write_bytes(pickle.dumps(Encoding(256)))
    assert tried(tree / MODEL).code == 0
    resay(tree / META, vocab_size=300)  # which is as many rows, once padded
    done = tried(tree / MODEL)
    assert done.code == 1 and "tokenizer.pkl has 260 tokens" in done.err
    (place / "tokenizer.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.")
    assert tried(tree / MODEL).code == 0


@pytest.mark.parametrize("content", ["text", "code", "other", "nothing"])
def test_what_is_no_model_is_wrong_input(content: str, tried: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if content == "text":
        path.write_text("no checkpoint at all, this is")
    elif content == "code":
        torch.save({"a": torch.ones(2)}, path)
        from tests.torch_files import write_zip

        write_zip(path, b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.")
    elif content == "other":
        torch.save({"encoder.weight": torch.ones(2, 2)}, path)
    done = tried(path, "--json")
    assert (done.code, done.out) == (2, "")
    said = {"text": "not a checkpoint", "code": "run code", "other": "encoder.weight", "nothing": "no file"}
    assert said[content] in done.err
