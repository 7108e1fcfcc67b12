"""Conversion of what does not lie in one plain file: ranks, shards, aliases, nested state; and of whole roots."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model

from ckpt_cli import atomic
from tests.conftest import REPOSITORY, Run
from tests.test_convert import header
from tests.test_convert_targets import assert_equal, round_trip, write_llama
from tests.torch_files import filled

State = dict[str, torch.Tensor]


def old(folder: Path) -> Path:
    """As if written long ago: what is incomplete is not in progress."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1e9, 1e9))
    return folder


# --- Meta's model-parallel files

PARAMS = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "rope_theta": 10000.0}
ROWS = re.compile(r".*attention\.w[qkv]\.weight|.*feed_forward\.w[13]\.weight|output\.weight")
COLUMNS = re.compile(r".*attention\.wo\.weight|.*feed_forward\.w2\.weight")


def meta_state() -> State:
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (24, 16), "norm.weight": (16,)}
    for layer in range(2):
        at = f"layers.{layer}."
        shapes |= {
            f"{at}attention.wq.weight": (16, 16), f"{at}attention.wk.weight": (8, 16),
            f"{at}attention.wv.weight": (8, 16), f"{at}attention.wo.weight": (16, 16),
            f"{at}feed_forward.w1.weight": (44, 16), f"{at}feed_forward.w2.weight": (16, 44),
            f"{at}feed_forward.w3.weight": (44, 16), f"{at}attention_norm.weight": (16,),
            f"{at}ffn_norm.weight": (16,),
        }  # fmt: skip
    shapes |= {"output.weight": (24, 16), "rope.freqs": (2,)}
    chance = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=chance).bfloat16() for name, shape in shapes.items()}


def write_ranks(folder: Path, state: State, ranks: int, by_columns: bool) -> Path:
    """A file a rank, cut as llama 2 does (`by_columns` of the embedding) or llama 3."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    for rank in range(ranks):
        part = {}
        for name, tensor in state.items():
            axis = 0 if ROWS.fullmatch(name) else 1 if COLUMNS.fullmatch(name) else None
            axis = int(by_columns) if name == "tok_embeddings.weight" else axis
            part[name] = (tensor if axis is None else tensor.chunk(ranks, axis)[rank]).clone()
        torch.save(part, folder / f"consolidated.{rank:02}.pth")
    return old(folder)


@pytest.mark.parametrize("by_columns", [True, False])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_put_together(by_columns: bool, ranks: int, tmp_path: Path, call: Run) -> None:
    """Into one file, into Hugging Face's names as the whole file goes, and back into Meta's."""
    state = meta_state()
    source = write_ranks(tmp_path / "m", state, ranks, by_columns)
    whole = write_ranks(tmp_path / "w", state, 1, by_columns)
    done = call("convert", source, "-o", tmp_path / "a.safetensors")
    assert done.code == 0, done.err
    assert f"{ranks} files of one model" in done.err
    assert_equal(load_file(tmp_path / "a.safetensors"), state)
    assert call("convert", source, "--to", "hf", "-o", tmp_path / "hf").code == 0
    assert call("convert", whole, "--to", "hf", "-o", tmp_path / "one").code == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert call("convert", tmp_path / "hf", "--to", "meta", "-o", tmp_path / "back").code == 0
    state.pop("rope.freqs")
    assert_equal(torch.load(tmp_path / "back/consolidated.00.pth", weights_only=True), state)
    # A file that was named stands for its checkpoint where its names become others, for itself where they stay.
    assert call("convert", source / "consolidated.01.pth", "--to", "hf", "-o", tmp_path / "named").code == 0
    assert load_file(tmp_path / "named/model.safetensors").keys() == load_file(tmp_path / "hf/model.safetensors").keys()
    assert call("convert", source / "consolidated.01.pth", "-o", tmp_path / "b.safetensors").code == 0
    assert load_file(tmp_path / "b.safetensors")["output.weight"].shape == (24 // ranks, 16)


def test_ranks_that_do_not_fit_together(tmp_path: Path, call: Run) -> None:
    source = write_ranks(tmp_path / "m", meta_state(), 4, True)

    def said(code: int) -> str:
        done = call("convert", old(source) / "consolidated.00.pth", "--to", "hf", "-o", tmp_path / "x")
        assert done.code == code, done.err
        assert not (tmp_path / "x").exists()
        return done.err

    last = source / "consolidated.03.pth"
    data = last.read_bytes()
    last.unlink()
    assert "12 of 16 columns" in said(1)
    state = torch.load(source / "consolidated.02.pth", weights_only=True)
    torch.save({name: tensor for name, tensor in state.items() if "ffn_norm" not in name}, last)
    assert "'layers.0.ffn_norm.weight' is in one alone" in said(1)
    torch.save({**state, "layers.0.attention.wq.weight": torch.zeros(4, 8).bfloat16()}, last)
    assert "do not fit side by side" in said(1)
    last.write_bytes(data)
    (source / "consolidated.01.pth").rename(tmp_path / "gone")
    assert "lacks consolidated.01.pth" in said(1)
    (tmp_path / "gone").rename(source / "consolidated.01.pth")
    for path in source.glob("*.pth"):
        torch.save({**torch.load(path, weights_only=True), "layers.0.gate.weight": torch.zeros(2, 2)}, path)
    assert "'layers.0.gate.weight' lies in 4 files, and how it is cut is not known" in said(2)


def test_vectors_that_differ_between_ranks_are_said(tmp_path: Path, call: Run) -> None:
    source = write_ranks(tmp_path / "m", meta_state(), 2, False)
    state = torch.load(source / "consolidated.01.pth", weights_only=True)
    torch.save({**state, "norm.weight": state["norm.weight"] + 1}, source / "consolidated.01.pth")
    done = call("convert", old(source), "-o", tmp_path / "a.safetensors")
    assert done.code == 0, done.err
    assert "norm.weight is not the same in all files" in done.err


# --- one file of several


def test_a_shard_stands_for_its_model_where_names_change(tmp_path: Path, call: Run) -> None:
    """A folder for transformers with a part of the weights would load with fresh numbers for the rest."""
    state = write_llama(tmp_path / "source")
    sharded = ("convert", tmp_path / "source", "--to", "hf", "--max-shard-size", "1kB", "-o", tmp_path / "sharded")
    assert call(*sharded).code == 0
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    for number, to in enumerate(("hf", "torchtune")):
        out = tmp_path / f"out{number}"
        done = call("convert", shards[1], "--to", to, "-o", out)
        assert done.code == 0, done.err
        assert f"is one of {len(shards)} files" in done.err
    assert_equal(load_file(tmp_path / "out0/model.safetensors"), state)
    assert len(torch.load(tmp_path / "out1", weights_only=True)) == len(state)
    part = ("convert", tmp_path / "sharded", "--part", shards[1].name)
    assert call(*part, "--to", "hf", "-o", tmp_path / "x").code == 2
    assert call(*part, "-o", tmp_path / "x.safetensors").code == 0
    shards[2].unlink()
    done = call("convert", old(tmp_path / "sharded") / shards[0].name, "--to", "hf", "-o", tmp_path / "y")
    assert done.code == 1 and shards[2].name in done.err
    assert not (tmp_path / "y").exists()


def test_sharded_to_single_and_back(tmp_path: Path, call: Run) -> None:
    state = write_llama(tmp_path / "source")
    assert call("convert", tmp_path / "source", "--max-shard-size", "1kB", "-o", tmp_path / "s/").code == 0
    assert len(list((tmp_path / "s").glob("model-*"))) > 1
    assert call("convert", tmp_path / "s", "-o", tmp_path / "one.safetensors").code == 0
    assert_equal(load_file(tmp_path / "one.safetensors"), state)
    assert call("convert", tmp_path / "one.safetensors", "--max-shard-size", "1kB", "-o", tmp_path / "t/").code == 0
    for shard in (tmp_path / "s").glob("model-*"):
        assert_equal(load_file(tmp_path / "t" / shard.name), load_file(shard))


def test_what_is_no_model_gets_no_other_names(tmp_path: Path, call: Run) -> None:
    folder = tmp_path / "run/checkpoint-10"
    folder.parent.mkdir()
    write_llama(folder)
    (folder / "trainer_state.json").write_text('{"global_step": 10}')
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}, folder / "optimizer.pt")
    for name in ("rng_state.pth", "optimizer.pt"):
        done = call("convert", old(folder) / name, "--to", "hf", "-o", tmp_path / "x")
        assert done.code == 2 and "--to safetensors" in done.err, done.err
    assert call("convert", folder, "--part", "optimizer", "--to", "torchtune", "-o", tmp_path / "x.pt").code == 2
    assert not (tmp_path / "x").exists()
    assert call("convert", folder, "--part", "optimizer", "--to", "pt", "-o", tmp_path / "x.pt").code == 0
    done = call("convert", folder, "--config", folder / "config.json", "-o", tmp_path / "x.safetensors")
    assert done.code == 2 and "--config" in done.err


# --- names that only a header has, and what goes along


def test_ties_survive_safetensors_on_the_way_to_other_names(tmp_path: Path, call: Run) -> None:
    """A head that only `ckpt.aliases` names, or as `save_model` of safetensors notes it, is a tensor of the model."""
    state = write_llama(tmp_path / "source")
    tied = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
    torch.save(tied, tmp_path / "source/pytorch_model.bin")
    (tmp_path / "source/model.safetensors").unlink()
    assert call("convert", tmp_path / "source", "-o", tmp_path / "ours.safetensors").code == 0
    assert "lm_head.weight" not in load_file(tmp_path / "ours.safetensors")

    class Model(torch.nn.Module):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return dict(tied)

    save_model(Model(), str(tmp_path / "theirs.safetensors"))
    with safe_open(tmp_path / "theirs.safetensors", "pt") as file:
        assert "lm_head.weight" in {*file.metadata(), *file.metadata().values()}
    config = tmp_path / "source/config.json"
    for name in ("ours", "theirs"):
        source = tmp_path / f"{name}.safetensors"
        done = call("convert", source, "--to", "meta", "--config", config, "-o", tmp_path / name)
        assert done.code == 0, done.err
        found = torch.load(tmp_path / name / "consolidated.00.pth", weights_only=True)
        assert torch.equal(found["output.weight"], found["tok_embeddings.weight"])
        assert call("convert", source, "--to", "pt", "-o", tmp_path / f"{name}.pt").code == 0
        back = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert_equal(back, tied)
        one, other = back["lm_head.weight"], back["model.embed_tokens.weight"]
        assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_a_tied_head_is_written_once_for_meta(tmp_path: Path, call: Run) -> None:
    """Meta's name for it is a view of the embedding, also where the source has it twice."""
    state = write_llama(tmp_path / "source")
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    headless = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    twice = {**headless, "lm_head.weight": state["model.embed_tokens.weight"].clone()}
    for number, held in enumerate((headless, twice)):
        save_file(held, tmp_path / "source/model.safetensors", {"format": "pt"})
        done = call("convert", tmp_path / "source", "--to", "meta", "-o", tmp_path / f"m{number}", "--json")
        assert done.code == 0, done.err
        assert done.json["tied"] == [{"name": "output.weight", "of": "tok_embeddings.weight"}]
        found = torch.load(tmp_path / f"m{number}/consolidated.00.pth", weights_only=True)
        one, other = found["output.weight"], found["tok_embeddings.weight"]
        assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        assert torch.equal(one, state["model.embed_tokens.weight"])
    sizes = {(tmp_path / f"m{number}/consolidated.00.pth").stat().st_size for number in (0, 1)}
    assert len(sizes) == 1


def test_a_configuration_goes_along(tmp_path: Path, call: Run) -> None:
    """Word for word in the header, from which another naming can be made; a torch file has no place for it, and it is
    said."""
    state = write_llama(tmp_path / "source")
    (tmp_path / "lone").mkdir()
    assert call("convert", tmp_path / "source", "-o", tmp_path / "lone/a.safetensors").code == 0
    told = header(tmp_path / "lone/a.safetensors")["__metadata__"]
    assert told["ckpt.config"] == (tmp_path / "source/config.json").read_text()
    done = call("convert", tmp_path / "lone/a.safetensors", "--to", "hf", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert_equal(load_file(tmp_path / "out/model.safetensors"), state)
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads(told["ckpt.config"])
    done = call("convert", tmp_path / "lone/a.safetensors", "--to", "pt", "-o", tmp_path / "a.pt")
    assert done.code == 0 and "config.json did not go along" in done.err
    assert call("convert", tmp_path / "a.pt", "--to", "torchtune", "-o", tmp_path / "t.pt").code == 2


# --- nested state


def test_ordered_dicts_come_back_as_such(tmp_path: Path) -> None:
    w = filled(torch.float32, 3)
    state = {"model": OrderedDict(w=w, b=w + 1), "plain": {"w": w + 2}, "step": 7}
    found = round_trip(state, tmp_path)
    assert_equal(found, state)
    assert [type(found[key]) for key in ("model", "plain")] == [OrderedDict, dict] and type(found) is dict
    assert list(found["model"]) == ["w", "b"]


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_state_dict_keeps_its_type(kind: Any, tmp_path: Path) -> None:
    found = round_trip(kind({"a.w": filled(torch.float32, 3), "a.b": filled(torch.float32, 2)}), tmp_path)
    assert type(found) is kind and list(found) == ["a.w", "a.b"]


@pytest.mark.parametrize(
    "make",
    [
        lambda w: {"a": {"b": w}, "a.b": {"c": w + 1}},
        lambda w: {"m": {"a": {"x": w}, "a.y": w + 1}},
        lambda w: {"a": {"b": {"c": w}}, "a.b": {"d": w + 1}},
        lambda w: {"": {"w": w}, "x": w + 1},
        lambda w: {"a": OrderedDict(b=OrderedDict(c=w)), "a.b.d": w + 1},
    ],
)
def test_keys_that_run_into_one_another(make: Any, tmp_path: Path, call: Run) -> None:
    """Their tensors go along under their joined names, and it is said; a torch file nested otherwise is not made."""
    torch.save(make(filled(torch.float32, 3)), tmp_path / "a.pt")
    done = call("convert", tmp_path / "a.pt", "-o", tmp_path / "a.safetensors")
    assert done.code == 0 and "run into one another" in done.err, done.err
    assert len(load_file(tmp_path / "a.safetensors")) == 2
    for source in ("a.pt", "a.safetensors"):
        done = call("convert", tmp_path / source, "--to", "pt", "-o", tmp_path / "b.pt")
        assert done.code == 2 and "run into one another" in done.err, done.err
    assert not (tmp_path / "b.pt").exists()


def test_names_with_dots_that_are_clear(tmp_path: Path) -> None:
    """A scale beside its weight, and dots below a container."""
    w = filled(torch.float32, 3)
    state = {"model": {"l.weight": w, "l.weight.scale": w + 1}, "l": {"x": 1}, "lx.y": w + 2, "e": OrderedDict()}
    assert_equal(round_trip(state, tmp_path), state)


def test_values_of_one_name_are_refused(tmp_path: Path, call: Run) -> None:
    torch.save({"a": {"b": 1}, "a.b": 2, "w": filled(torch.float32, 3)}, tmp_path / "a.pt")
    for to in ("safetensors", "pt"):
        done = call("convert", tmp_path / "a.pt", "--to", to, "-o", tmp_path / "out")
        assert done.code == 2 and "two of its values would be called 'a.b'" in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_data_that_was_never_written_is_said(tmp_path: Path, call: Run) -> None:
    """What torch loads as zeros is written as zeros, but not in silence."""
    with torch.serialization.skip_data():
        torch.save({"w": torch.ones(5)}, tmp_path / "a.pt")
    done = call("convert", tmp_path / "a.pt")
    assert done.code == 0 and "1 storage saved without data" in done.err, done.err
    assert_equal(load_file(tmp_path / "a.safetensors"), torch.load(tmp_path / "a.pt", weights_only=True))


# --- whole runs


def write_run(root: Path, *kinds: str) -> Path:
    """A run of nanochat's with a step for each kind: of the first revision, or with what a later one adds."""
    run = root / "base_checkpoints/d1"
    run.mkdir(parents=True)
    config = {"sequence_len": 8, "vocab_size": 64, "n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 8}
    at = "transformer.h.0."
    shapes = {"transformer.wte.weight": (64, 8), **{f"{at}attn.c_{name}.weight": (8, 8) for name in "qkv"},
              f"{at}attn.c_proj.weight": (8, 8), f"{at}mlp.c_fc.weight": (32, 8), f"{at}mlp.c_proj.weight": (8, 32),
              "lm_head.weight": (64, 8)}  # fmt: skip
    for number, kind in enumerate(kinds, 1):
        state = {name: torch.full(shape, float(number)) for name, shape in shapes.items()}
        if kind == "smear":
            state |= {"resid_lambdas": torch.ones(1), "x0_lambdas": torch.zeros(1), "smear_lambda": torch.ones(1)}
        torch.save(state, run / f"model_{number:06}.pt")
        (run / f"meta_{number:06}.json").write_text(json.dumps({"step": number, "model_config": config}))
    return old(root)


def test_all_plans_are_told_before_anything_is_written(tmp_path: Path, call: Run) -> None:
    """Without --keep-going what comes before the first failure is written, and every other failure is named too."""
    root = write_run(tmp_path / "root", "v1", "smear", "v1", "smear")
    arguments = ("convert", "--all", "--root", root, "--to", "hf", "-o", tmp_path / "out")
    done = call(*arguments, "--json")
    assert done.code == 3
    assert [result["status"] for result in done.json["results"]] == ["written", "failed", "planned", "failed"]
    assert not done.json["verified"]
    assert "1 checkpoint after the first failure, from base/d1/3 on, was left out" in done.err
    assert "base/d1/4 was not converted" in done.err
    assert os.listdir(tmp_path / "out/base/d1") == ["1"]
    assert call(*arguments, "-q").out.split() == [
        str(tmp_path / "out/base/d1/1" / name) for name in ("model.safetensors", "config.json")
    ]
    done = call(*arguments, "--keep-going", "--json")
    assert [result["status"] for result in done.json["results"]] == ["there", "failed", "written", "failed"]
    assert done.code == 3 and "left out" not in done.err


def test_outputs_within_the_root_are_no_sources(tmp_path: Path, call: Run) -> None:
    """Else each time there would be twice as many."""
    root = write_run(tmp_path / "root", "v1", "v1")
    arguments = ("convert", "--all", "--root", root, "--to", "hf", "-o", root / "out", "--json")
    assert [result["status"] for result in call(*arguments).json["results"]] == ["written"] * 2
    done = call(*arguments)
    assert done.code == 0
    assert [(r["source"]["ref"], r["status"]) for r in done.json["results"]] == [
        ("base/d1/1", "there"),
        ("base/d1/2", "there"),
    ]
    assert os.listdir(root / "out") == ["base"]


def test_what_is_safetensors_already_is_there(tmp_path: Path, call: Run) -> None:
    """Beside itself it has not to be written; to another dtype it cannot be."""
    (tmp_path / "root").mkdir()
    write_llama(tmp_path / "root/a")
    before = (tmp_path / "root/a/model.safetensors").read_bytes()
    done = call("convert", "--all", "--root", tmp_path / "root", "--json")
    assert done.code == 0 and [result["status"] for result in done.json["results"]] == ["there"]
    assert done.json["outputs"] == [{"path": str(tmp_path / "root/a/model.safetensors"), "bytes": len(before)}]
    assert call("convert", "--all", "--root", tmp_path / "root", "--dtype", "bf16", "--force").code == 2
    assert (tmp_path / "root/a/model.safetensors").read_bytes() == before


# --- what a killed process leaves


def test_what_a_killed_conversion_left_goes_with_the_next(tmp_path: Path, call: Run) -> None:
    """Its hidden file goes; that of a conversion at work stays, and so does any other file."""
    save_file({"w": torch.zeros(32 << 20)}, tmp_path / "a.safetensors")
    out = tmp_path / "out"
    code = "import sys\nfrom ckpt_cli.app import main\nsys.exit(main(sys.argv[1:]))"
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    arguments = ["convert", str(tmp_path / "a.safetensors"), "--to", "pt", "-o", f"{out}/"]

    def hidden() -> set[str]:
        return {name for name in os.listdir(out) if name.endswith(".tmp")} if out.is_dir() else set()

    def begun() -> tuple[subprocess.Popen[bytes], str]:
        """A conversion that was stopped in its midst."""
        before = hidden()
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stderr=subprocess.DEVNULL)
        while not any((out / name).stat().st_size for name in hidden() - before):  # it has its lock then
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        return process, next(iter(hidden() - before))

    out.mkdir()
    (out / ".ckpt-notes.tmp").write_text("somebody's")
    killed, left = begun()
    killed.kill()
    killed.wait()
    assert left in hidden()
    stopped, working = begun()
    try:
        assert left not in hidden()
        torch.save({"v": filled(torch.float32, 3)}, tmp_path / "b.pt")
        assert call("convert", tmp_path / "b.pt", "-o", f"{out}/").code == 0
        assert hidden() == {working, ".ckpt-notes.tmp"}
    finally:
        stopped.send_signal(signal.SIGCONT)
        assert stopped.wait() == 0
    assert set(os.listdir(out)) == {"a.pt", "b.safetensors", ".ckpt-notes.tmp"}


def test_a_draft_that_was_swept_before_it_was_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may look in the instant between; then a new one is made."""
    take = fcntl.flock
    seen: list[str] = []

    def late(descriptor: int, how: int) -> None:
        if not seen:
            seen.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            os.unlink(seen[0])
        take(descriptor, how)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("which file a descriptor is of is asked of /proc")
    monkeypatch.setattr(fcntl, "flock", late)
    with atomic.staged(str(tmp_path / "a"), replace=False) as descriptor:
        os.write(descriptor, b"whole")
    assert seen and os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"
