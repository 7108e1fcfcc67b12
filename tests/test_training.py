"""What a trainer calls: round trips, what real nanochat wrote, several ranks, and every way to be told no."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt_cli
from ckpt_cli import (
    CkptError,
    build_model,
    find_largest_model,
    find_last_step,
    load_checkpoint,
    load_model,
    load_model_from_dir,
    save_checkpoint,
)
from ckpt_cli.errors import Damaged
from ckpt_cli.finding import NoCheckpoint, current_settings
from tests.conftest import REPOSITORY, Run
from tests.test_kill import trainers_newest
from tests.torch_files import flip, places, told

REAL = ("a1_v1_oct2025", "b_lambdas_jan2026", "c_window_jan2026", "e1_ve32_jan2026", "f_engram_jan2026",
        "h_ve12_mar2026", "i1_smear_mar2026", "k_moe3_branch")  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings, root or ranks but those of the test."""
    for name in ("CKPT_ROOT", "NANOCHAT_BASE_DIR", "WORLD_SIZE", "RANK", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def trained(steps: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model with tied and 16-bit weights and a buffer, and an optimizer that has taken steps."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 6, bias=False))
    model.register_parameter("narrow", torch.nn.Parameter(torch.randn(3, 4).bfloat16()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(4, 6)).square().mean() + model.narrow.float().square().sum()).backward()  # type: ignore[operator]
        optimizer.step()
    return model, optimizer


META = {"step": 100, "val_bpb": 0.5, "model_config": {"n_layer": 2}, "loop_state": {"min_val_bpb": float("inf")}}


def saved(directory: Path, step: int = 100) -> tuple[Any, Any]:
    model, optimizer = trained()
    save_checkpoint(str(directory), step, model.state_dict(), optimizer.state_dict(), {**META, "step": step})
    return model.state_dict(), optimizer.state_dict()


def same(one: Any, other: Any) -> bool:
    """Equal in every container's type, every key and every bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and told(one) == told(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# --- saving


def test_round_trip(tmp_path: Path) -> None:
    """What is saved is what is loaded, and what torch itself and nanochat's own lines load."""
    run = tmp_path / "base_checkpoints/d2"
    model, optimizer = saved(run)
    found = load_checkpoint(run, 100, CPU, load_optimizer=True)
    assert same(found, (model, optimizer, META))
    assert isinstance(found[0], OrderedDict) and found[0]._metadata == model._metadata  # type: ignore[attr-defined]
    assert same(torch.load(run / "model_000100.pt"), model)
    assert same(torch.load(run / "optim_000100_rank0.pt", mmap=True), optimizer)
    assert (run / "meta_000100.json").read_text() == json.dumps(META, indent=2)
    assert load_checkpoint(run, 100, "cpu")[1] is None
    assert sorted(os.listdir(run)) == [
        "meta_000100.json", "model_000100.pt", "model_000100.pt.sha256", "optim_000100_rank0.pt",
    ]  # fmt: skip


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    saved(tmp_path)
    model, optimizer = trained(0)
    weights, state, _ = load_checkpoint(tmp_path, 100, CPU, load_optimizer=True)
    model.load_state_dict(weights, strict=True, assign=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer.load_state_dict(state)
    unbroken, its = trained()
    for one, two in ((model, optimizer), (unbroken, its)):
        two.zero_grad()
        one(torch.ones(4, 6) * torch.arange(6)).square().mean().backward()
        two.step()
    assert same(dict(model.state_dict()), dict(unbroken.state_dict()))
    assert same(load_checkpoint(tmp_path, 100, CPU)[0], trained()[0].state_dict()), "training wrote into the file"


def test_manifest(tmp_path: Path, call: Run) -> None:
    """The digests are those of the files, and the manifest the one that `ckpt verify --record` writes."""
    run = tmp_path / "base_checkpoints/d2"
    saved(run)
    manifest = run / "model_000100.pt.sha256"
    lines = {line[66:]: line[:64] for line in manifest.read_text().splitlines()}
    names = ["model_000100.pt", "meta_000100.json", "optim_000100_rank0.pt"]
    assert lines == {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}
    done = call("verify", "--root", tmp_path, "--strict", "--json")
    assert done.code == 0 and [row["status"] for row in done.json["results"]] == ["ok"] * 3
    before = manifest.read_bytes()
    manifest.unlink()
    assert call("verify", "--root", tmp_path, "--record").code == 0
    assert manifest.read_bytes() == before
    meta = run / "meta_000100.json"
    meta.write_text(meta.read_text().replace('"val_bpb": 0.5', '"val_bpb": 0.4'))
    done = call("verify", "--root", tmp_path, "--json")
    assert done.code == 1 and "manifest-mismatch" in done.out


def test_a_large_tensor_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    large = {"w": torch.arange(1 << 20, dtype=torch.float32), "half": torch.zeros(3, 1 << 17).bfloat16().t()}
    save_checkpoint(tmp_path, 1, large, None, {})
    digest = hashlib.sha256((tmp_path / "model_000001.pt").read_bytes()).hexdigest()
    assert (tmp_path / "model_000001.pt.sha256").read_text().startswith(digest)
    assert same(load_checkpoint(tmp_path, 1, CPU)[0], large)


def test_modes_and_names(tmp_path: Path) -> None:
    """Files as any program makes them, under umask; steps of more digits; without optimizer no shard."""
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "new/run", 1000000, {"w": torch.ones(1)}, None, META)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new/run").iterdir()}
    assert modes == dict.fromkeys(("meta_1000000.json", "model_1000000.pt", "model_1000000.pt.sha256"), 0o640)


def test_a_step_is_replaced(tmp_path: Path, call: Run) -> None:
    """With the shards it had more of, also the one without a rank; what others put beside it stays."""
    run = tmp_path / "base_checkpoints/d2"
    saved(run, 100)
    saved(run, 200)
    other = (run / "model_000100.pt").read_bytes()
    for name in ("optim_000200_rank1.pt", "optim_000200.pt"):
        shutil.copy(run / "optim_000200_rank0.pt", run / name)
    (run / "model_000200.keep").touch()
    save_checkpoint(run, 200, {"w": torch.ones(2)}, None, {"step": 200})
    names = [name for name in sorted(os.listdir(run)) if "200" in name]
    assert names == ["meta_000200.json", "model_000200.keep", "model_000200.pt", "model_000200.pt.sha256"]
    assert same(load_checkpoint(run, 200, CPU), (load_checkpoint(run, 200, CPU)[0], None, {"step": 200}))
    assert (run / "model_000100.pt").read_bytes() == other
    assert call("verify", "--root", tmp_path).code == 0


def test_a_map_of_a_step_that_is_replaced_stays(tmp_path: Path) -> None:
    """Who has the old file open goes on reading it."""
    saved(tmp_path)
    before = torch.load(tmp_path / "model_000100.pt", mmap=True)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    save_checkpoint(tmp_path, 100, {"w": torch.ones(1)}, None, {})
    assert same(dict(before), kept)


def test_other_ranks_have_nothing_to_do_without_optimizer(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="rank 1 was given, and this process is rank 0"):
        save_checkpoint(tmp_path, 1, None, None, None, rank=1)


def test_said_on_rank_0_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    saved(tmp_path / "d2")
    assert [r.getMessage() for r in caplog.records if r.name == "ckpt_cli.training"] == [
        f"saved {tmp_path}/d2/model_000100.pt with its meta, and the optimizer of 1 rank"
    ]
    root = shared / "real/nanochat/h_ve12_mar2026/base_checkpoints"
    caplog.clear()
    load_model_from_dir(root, CPU, "eval")
    assert caplog.records[0].getMessage() == "no model tag was given: d3 is taken"
    monkeypatch.setenv("RANK", "1")
    caplog.clear()
    load_model_from_dir(root, CPU, "eval")
    assert not caplog.records


# --- finding


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def test_steps_compare_as_numbers(tmp_path: Path) -> None:
    for name in ("model_999999.pt", "model_1000000.pt", "model_000200_backup.pt", "old_model_2000000.pt",
                 "model_3000000.safetensors", "model_4000000.pt.replaced", "model_00010.pt"):  # fmt: skip
        touch(tmp_path / name)
    assert find_last_step(tmp_path) == find_last_step(str(tmp_path)) == 1000000
    assert trainers_newest(tmp_path) == 1000000


@pytest.mark.parametrize(
    ("tags", "largest"),
    [
        (["d4", "d12", "d12-old"], "d12"),
        (["d4", "d24_jan29"], "d4"),  # the whole tag first
        (["d2x", "d24_jan29", "ablation"], "d24_jan29"),
        (["mine", "other"], "other"),  # the newest
        (["d4", "d12/"], "d4"),  # no model in it
        (["d4", "d12:"], "d4"),  # no meta beside it
        (["d4", "nested/d8"], "d4"),
    ],
)
def test_the_largest_model(tmp_path: Path, tags: list[str], largest: str) -> None:
    for number, tag in enumerate(tags):
        folder = tmp_path / tag.rstrip("/:")
        folder.mkdir(parents=True)
        if not tag.endswith("/"):
            torch.save({}, folder / "model_000001.pt")
            if not tag.endswith(":"):
                (folder / "meta_000001.json").write_text("{}")
        for path in folder.iterdir():
            os.utime(path, (1e9 + number, 1e9 + number))
    assert find_largest_model(tmp_path) == find_largest_model(str(tmp_path)) == largest


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nanochat's four, the one-day directory of sft, and the settings' own; in the root of whoever says first."""
    from ckpt_cli.finding import source_directory

    base = tmp_path / "home/.cache/nanochat"
    for name in ("base_checkpoints/d2", "sft_checkpoints/d2", "chatsft_checkpoints/d4", "ablations/d2"):
        saved(base / name)
    assert source_directory("base", None) == str(base / "base_checkpoints")
    assert source_directory("sft", None) == source_directory("sft", "d4") == str(base / "chatsft_checkpoints")
    assert source_directory("sft", "d2") == str(base / "sft_checkpoints")
    with pytest.raises(NoCheckpoint, match="there is no mid_checkpoints in "):
        source_directory("mid", None)
    with pytest.raises(CkptError, match="there is no source 'mine'") as failed:
        source_directory("mine", None)
    assert failed.value.hint == "the sources are base, mid, sft, rl; the settings can add to them"
    Path("ckpt.toml").write_text('[sources]\nmine = "ablations"\n')
    assert source_directory("mine", "d2") == str(base / "ablations")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "elsewhere"))
    saved(tmp_path / "elsewhere/base_checkpoints/d2")
    assert source_directory("base", None) == str(tmp_path / "elsewhere/base_checkpoints")
    Path("ckpt.toml").write_text(f'root = "{base}"\n')
    assert source_directory("base", None) == str(base / "base_checkpoints")
    monkeypatch.setenv("CKPT_ROOT", str(tmp_path / "elsewhere"))
    assert source_directory("base", None) == str(tmp_path / "elsewhere/base_checkpoints")


def test_where_the_user_settles_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same place as for the commands."""
    import typer

    for place in (None, tmp_path / "config"):
        if place:
            monkeypatch.setenv("XDG_CONFIG_HOME", str(place))
        folder = Path(typer.get_app_dir("ckpt"))
        folder.mkdir(parents=True)
        (folder / "ckpt.toml").write_text(f'metric = "m{len(str(place))}:min"\n')
        assert current_settings().metric == f"m{len(str(place))}:min"


# --- loading


def test_what_nanochat_wrote(tmp_path: Path, shared: Path) -> None:
    """Every step of every era: as torch loads it, and saved again as the same tensors."""
    seen = 0
    for model in sorted((shared / "real/nanochat").rglob("model_*.pt")):
        run, step = model.parent, int(model.stem.rpartition("_")[2])
        optimizer = list(run.glob(f"optim_{step:06d}*.pt"))
        found = load_checkpoint(run, step, CPU, load_optimizer=bool(optimizer))
        wanted = torch.load(model), torch.load(optimizer[0]) if optimizer else None
        meta = json.loads((run / f"meta_{step:06d}.json").read_text())
        assert same(found, (*wanted, meta)), model
        again = tmp_path / str(seen)
        save_checkpoint(again, step, *found)
        assert same(load_checkpoint(again, step, CPU, load_optimizer=bool(optimizer)), found)
        assert (again / f"meta_{step:06d}.json").read_bytes() == (run / f"meta_{step:06d}.json").read_bytes()
        seen += 1
    assert seen > 15


@pytest.mark.parametrize("sample", REAL)
def test_models_of_every_revision(tmp_path: Path, shared: Path, sample: str) -> None:
    """Built from a copy that was saved here, they give the logits that nanochat's own code gave."""
    for expected in sorted((shared / "real/nanochat" / sample).rglob("expected_logits_*.pt")):
        run, step = expected.parent, int(expected.stem.rpartition("_")[2])
        wanted = torch.load(expected)
        copy = tmp_path / "/".join(run.parts[-2:])
        save_checkpoint(copy, step, *load_checkpoint(run, step, CPU))
        model, tokenizer, meta = build_model(copy, step, CPU, "eval")
        assert tokenizer is None and meta == load_checkpoint(run, step, CPU)[2]
        with torch.no_grad():
            logits = model(wanted["tokens"])
        assert logits.shape == wanted["logits"].shape and not model.training
        assert (logits - wanted["logits"]).abs().max() < 1e-4, expected


def test_what_the_files_do_not_say(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and can be given: the windows that a mid run lost, and the soft cap of March 2026."""
    run = shared / "real/nanochat/e1_ve32_jan2026/mid_checkpoints/d3"
    wanted = torch.load(run / "expected_logits_000008.pt")
    build_model(run, 8, CPU, "eval")
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1 and "window_pattern is taken as L" in warned[0] and "SSSL" in warned[0]
    model, _, _ = build_model(run, 8, CPU, "eval", given={"window_pattern": "SSSL"})
    with torch.no_grad():
        logits = model(wanted["tokens"])
    assert (logits - wanted["logits_with_true_window_pattern_SSSL"]).abs().max() < 1e-4
    root = shared / "real/nanochat/g1_softcap20_mar2026/base_checkpoints"
    wanted = torch.load(root / "d2/expected_logits_000010.pt")
    given = {"softcap": "20", "rotary_rounding": "bf16"}
    model, _, _ = load_model_from_dir(root, CPU, "eval", given=given)
    with torch.no_grad():
        assert (model(wanted["tokens"]) - wanted["logits"]).abs().max() < 1e-4


def test_phases(tmp_path: Path, shared: Path) -> None:
    """To be trained: weights that can be written, and a file that stays as it was. 16-bit weights are widened."""
    source = shared / "real/nanochat/i1_smear_mar2026/base_checkpoints/d2"
    weights, _, meta = load_checkpoint(source, 10, CPU)
    narrow = {name: tensor.bfloat16() if "wte" in name else tensor for name, tensor in weights.items()}
    run = tmp_path / "base_checkpoints/d2"
    save_checkpoint(run, 10, {f"_orig_mod.{name}": tensor for name, tensor in narrow.items()}, None, meta)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for phase in ("eval", "train"):
        model, _, _ = load_model_from_dir(tmp_path / "base_checkpoints", "cpu", phase)
        assert model.training == (phase == "train")
        state = model.state_dict()
        assert list(state) == list(weights) and {tensor.dtype for tensor in state.values()} == {torch.float32}
        assert all(torch.equal(state[name], narrow[name].float()) for name in state)
    assert {"wte" in name: p.requires_grad for name, p in model.named_parameters()} == {True: True, False: True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens = torch.arange(12).reshape(2, 6)
    losses = []
    for _ in range(5):
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="this system does not tell what is mapped")
def test_what_is_trained_lies_in_memory_of_its_own(shared: Path) -> None:
    """No weight is a part of the file, which somebody may cut short."""
    run = (shared / "real/nanochat/i1_smear_mar2026/base_checkpoints/d2").resolve()
    for phase, mapped in (("eval", True), ("train", False)):
        model, _, _ = build_model(run, 10, CPU, phase)
        lines = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()
                 if str(run) in line]  # fmt: skip
        spans = [(int(first, 16), int(last, 16)) for first, last in lines]
        places = [parameter.data_ptr() for parameter in model.parameters()]
        assert any(first <= place < last for place in places for first, last in spans) == mapped
        del model


class Tokenizer:
    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab_size(self) -> int:
        return self.size


def test_a_tokenizer_is_what_the_trainer_loads(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pickle beside the run, which would run code, is never opened."""
    shutil.copytree(shared / "real/nanochat/h_ve12_mar2026/base_checkpoints", tmp_path / "base_checkpoints")
    (tmp_path / "tokenizer").mkdir()
    trap = tmp_path / "sprung"
    (tmp_path / "tokenizer/tokenizer.pkl").write_bytes(f"cposix\nsystem\n(S'touch {trap}'\ntR.".encode())
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    _, tokenizer, meta = load_model("base", CPU, phase="eval")
    assert tokenizer is None and meta["model_config"]["n_layer"] == 3 and not trap.exists()
    mine = Tokenizer(meta["model_config"]["vocab_size"])
    assert load_model("base", CPU, "eval", "d2", 10, get_tokenizer=lambda: mine)[1] is mine
    with pytest.raises(CkptError, match=r"the tokenizer has 7 tokens and the model of .* 260"):
        load_model("base", CPU, "eval", get_tokenizer=lambda: Tokenizer(7))


# --- being told no


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 100 and 200 of a run."""
    saved(tmp_path / "d2", 100)
    saved(tmp_path / "d2", 200)
    return tmp_path / "d2"


def refused(kind: type[CkptError], words: str, hint: str | None, call: Any, *args: Any, **kwargs: Any) -> CkptError:
    with pytest.raises(kind) as failed:
        call(*args, **kwargs)
    assert re.search(words, failed.value.message), failed.value.message
    assert (failed.value.hint is None) == (hint is None) and re.search(hint or "", failed.value.hint or "")
    assert "\n" not in failed.value.message and not failed.value.message.endswith(".")
    return failed.value


def test_what_is_not_there(run: Path) -> None:
    error = refused(
        NoCheckpoint, "there is no step 300 in", "the steps there are 100, 200", load_checkpoint, run, 300, CPU
    )
    assert isinstance(error, FileNotFoundError) and isinstance(error, CkptError)
    beside = f"in {run.parent} there are .*d2"
    for call in (find_last_step, find_largest_model, lambda path: load_checkpoint(path, 1, CPU)):
        refused(NoCheckpoint, "there is no directory .*d3", beside, call, run.parent / "d3")
    (run.parent / "empty").mkdir()
    refused(NoCheckpoint, "there is no model_<step>.pt in", "ckpt list", find_last_step, run.parent / "empty")
    refused(NoCheckpoint, "no run in .* has a model", "ckpt list", find_largest_model, run.parent / "empty")
    refused(NoCheckpoint, "no run in .* has a model", "ckpt list", find_largest_model, run)
    (run / "meta_000200.json").unlink()
    refused(NoCheckpoint, "step 200 .* no meta", "are 100$", build_model, run, 200, CPU, "eval")
    os.rename(run / "model_000200.pt", run / "model_000200.pt.replaced")
    refused(NoCheckpoint, "was being replaced", "next save", load_checkpoint, run, 200, CPU)


def test_damage(run: Path) -> None:
    """A flipped bit, which torch loads in silence; a file cut short; an empty one; a garbled meta."""
    model = run / "model_000200.pt"
    whole = model.read_bytes()
    at, _ = next(place for name, place in places(model).items() if name.endswith("data/0"))
    flip(model, at + 5, 3)
    torch.load(model)
    error = refused(
        Damaged, "record archive/data/0 is damaged: its CRC32", "ckpt verify", load_checkpoint, run, 200, CPU
    )
    assert error.kind == "crc-mismatch" and error.path == str(model)
    refused(Damaged, "CRC32 does not fit", "ckpt verify", build_model, run, 200, CPU, "eval")
    for cut in (len(whole) - 1, len(whole) // 2, 0):
        model.write_bytes(whole[:cut])
        refused(Damaged, "", "ckpt verify", load_checkpoint, run, 200, CPU)
    model.write_bytes(whole)
    shard = run / "optim_000200_rank0.pt"
    shard.write_bytes(shard.read_bytes()[:-200])
    load_checkpoint(run, 200, CPU)
    refused(Damaged, "", "ckpt verify", load_checkpoint, run, 200, CPU, load_optimizer=True)
    (run / "meta_000100.json").write_text('{"step": ')
    refused(Damaged, "meta_000100.json is not JSON", "ckpt verify", load_checkpoint, run, 100, CPU)
    (run / "meta_000100.json").write_text("[]")
    refused(Damaged, "holds a JSON list, not an object", None, load_checkpoint, run, 100, CPU)


def test_what_is_no_checkpoint(run: Path) -> None:
    model = run / "model_000200.pt"
    model.write_text("<html>not found</html>")
    refused(CkptError, "is an HTML page", "ckpt verify", load_checkpoint, run, 200, CPU)
    model.unlink()
    model.mkdir()
    refused(CkptError, "no regular file", "ckpt verify", load_checkpoint, run, 200, CPU)


class Foreign:
    def __init__(self) -> None:
        self.value = 1


def test_weights_only(run: Path) -> None:
    """A class of somebody's, and a call that would run code: neither is unpickled."""
    torch.save({"w": torch.ones(1), "config": Foreign()}, run / "model_000200.pt")
    refused(CkptError, "cannot be loaded with weights only", None, load_checkpoint, run, 200, CPU)
    torch.save({"w": torch.ones(1), "f": os.system}, run / "model_000200.pt")
    refused(CkptError, "system", "ckpt verify", load_checkpoint, run, 200, CPU)


def test_models_that_are_refused(run: Path, shared: Path, tmp_path: Path) -> None:
    refused(CkptError, "is of no model that is known here", "--model", build_model, run, 100, CPU, "eval")
    source = shared / "real/nanochat/i1_smear_mar2026/base_checkpoints/d2"
    weights, _, meta = load_checkpoint(source, 10, CPU)
    refused(CkptError, "'test' is no phase", None, build_model, source, 10, CPU, "test")
    missing = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    turned = {name: t.t().contiguous() if "mlp.c_fc" in name else t for name, t in weights.items()}
    deeper = {**meta, "model_config": {**meta["model_config"], "n_layer": 3}}
    for number, (state, config, words) in enumerate(
        [(missing, meta, "'lm_head.weight' is missing"), (turned, meta, "mlp.c_fc.weight' has the shape"),
         (weights, deeper, r"'transformer.h.2.* missing|has the shape")]
    ):  # fmt: skip
        save_checkpoint(tmp_path / "bad", number, state, None, config)
        with pytest.raises(CkptError, match=words):
            build_model(tmp_path / "bad", number, CPU, "eval")


@pytest.mark.parametrize("device", ["cuda:99", "mps", "tpu"])
def test_devices_that_are_not_there(run: Path, device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(CkptError, match=r"no CUDA device|there is no cuda:99|no MPS|is no device"):
        load_checkpoint(run, 100, device)


def test_on_the_meta_device(run: Path) -> None:
    model, _, _ = load_checkpoint(run, 100, "meta")
    assert {tensor.device.type for tensor in model.values()} == {"meta"}


@pytest.mark.parametrize("step", [-1, 1.5, "100", None])
def test_what_is_no_step(tmp_path: Path, step: Any) -> None:
    refused(CkptError, "is no step: a whole number", None, save_checkpoint, tmp_path / "d2", step, {}, None, {})
    assert not (tmp_path / "d2").exists()


def test_what_cannot_be_saved(run: Path) -> None:
    """Nothing is changed by what JSON or pickle cannot hold, or a directory that cannot be made."""
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    refused(CkptError, "cannot be written as JSON", None, save_checkpoint, run, 200, {}, None, {"t": torch.ones(1)})
    refused(CkptError, "cannot be saved", None, save_checkpoint, run, 200, {"f": lambda: 0}, None, {})
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    (run.parent / "file").touch()
    refused(CkptError, "Not a directory|cannot be made", None, save_checkpoint, run.parent / "file/d2", 1, {}, None, {})


def test_shards_must_fit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    hint = "resume on 1 rank, or start"
    refused(CkptError, "saved by 1 rank, and this run has 2", hint, load_checkpoint, run, 200, CPU, True)
    assert load_checkpoint(run, 200, CPU)[1] is None
    shutil.copy(run / "optim_000200_rank0.pt", run / "optim_000200_rank1.pt")
    assert load_checkpoint(run, 200, CPU, True, rank=1)[1]
    refused(CkptError, "rank 2 was given, and this run has 2", None, load_checkpoint, run, 200, CPU, True, 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    refused(CkptError, "saved by 2 ranks, and this run has 1", "on 2 ranks", load_checkpoint, run, 200, CPU, True)
    (run / "optim_000200_rank0.pt").unlink()
    what = "lacks the optimizer of rank 0 of 0 to 1"
    refused(NoCheckpoint, what, "--resumable", load_checkpoint, run, 200, CPU, True)
    (run / "optim_000200_rank1.pt").unlink()
    refused(NoCheckpoint, "has no optimizer", "that have one are 100", load_checkpoint, run, 200, CPU, True)
    shutil.copy(run / "optim_000100_rank0.pt", run / "optim_000200.pt")
    assert load_checkpoint(run, 200, CPU, True)[1]
    monkeypatch.setenv("WORLD_SIZE", "many")
    refused(CkptError, "WORLD_SIZE is 'many'", None, load_checkpoint, run, 200, CPU, True)


def test_saving_without_the_others(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    before = sorted(os.listdir(run))
    what = "WORLD_SIZE is 8 and there is no process group"
    refused(CkptError, what, "init_process_group", save_checkpoint, run, 300, {}, {}, {})
    assert sorted(os.listdir(run)) == before


# --- several processes

RANKS = r"""
import os, sys, torch
from torch import distributed
from ckpt_cli import CkptError, load_checkpoint, save_checkpoint

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
model = {"w": torch.arange(6.0).reshape(2, 3)}
for step in (10, 20):
    optimizer = {"state": {0: {"exp_avg": torch.full((1, 3), float(step + rank))}}, "param_groups": [{"lr": 0.1}]}
    save_checkpoint(f"{folder}/d2", step, model if rank == 0 else None, optimizer, {"step": step}, rank)
found = load_checkpoint(f"{folder}/d2", 20, "cpu", load_optimizer=True, rank=rank)
assert torch.equal(found[1]["state"][0]["exp_avg"], torch.full((1, 3), 20.0 + rank))
assert torch.equal(found[0]["w"], model["w"]) and found[2] == {"step": 20}
# Without optimizers the first process saves alone, as for reinforcement learning.
if rank == 0:
    save_checkpoint(f"{folder}/rl", 5, model, None, {})
else:
    save_checkpoint(f"{folder}/rl", 5, None, None, None, rank)
try:
    save_checkpoint(f"{folder}/d2", 30, model, {}, {}, 1 - rank)
except CkptError as error:
    assert f"rank {1 - rank} was given, and this process is rank {rank} of 2" in error.message, error
else:
    raise AssertionError("each wrote the other's shard")
distributed.barrier()
distributed.destroy_process_group()
"""


def test_two_ranks(tmp_path: Path, call: Run) -> None:
    """Two processes of torch.distributed: each its shard, one manifest for all."""
    command = [sys.executable, "-c", RANKS]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    names = sorted(os.listdir(tmp_path / "d2"))
    assert len(names) == 10 and "optim_000020_rank1.pt" in names
    manifest = (tmp_path / "d2/model_000020.pt.sha256").read_text()
    assert [line.split("  ")[1] for line in manifest.splitlines()] == [
        "model_000020.pt", "meta_000020.json", "optim_000020_rank0.pt", "optim_000020_rank1.pt",
    ]  # fmt: skip
    done = call("verify", "--root", tmp_path / "d2", "--strict", "--json")
    assert done.code == 0 and {row["status"] for row in done.json["results"]} == {"ok"}
    done = call("list", "--root", tmp_path / "d2", "--json")
    assert [(c["step"], c["resumable"], c["ranks"]["present"]) for c in done.json["checkpoints"]] == [
        (10, True, [0, 1]), (20, True, [0, 1]),
    ]  # fmt: skip
    assert sorted(os.listdir(tmp_path / "rl")) == ["meta_000005.json", "model_000005.pt", "model_000005.pt.sha256"]
    with pytest.raises(CkptError, match="saved by 2 ranks, and this run has 1"):
        load_checkpoint(tmp_path / "d2", 20, CPU, load_optimizer=True)


# --- the package


def test_the_package_is_there_at_once() -> None:
    """The names are the package's, and importing it imports neither them nor torch."""
    script = "import sys, ckpt_cli; print('ckpt_cli.training' in sys.modules, 'torch' in sys.modules)\n"
    script += "from ckpt_cli import save_checkpoint\n"
    script += "print(save_checkpoint.__module__, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False", "ckpt_cli.training", "False"], done.stderr
    public = ("save_checkpoint", "load_checkpoint", "build_model", "find_largest_model", "find_last_step")
    assert {*public, "load_model_from_dir", "load_model"} <= set(ckpt_cli.__all__)


def test_signatures_are_the_trainers() -> None:
    """Names, order and defaults as nanochat's scripts pass them; what is more is by keyword only."""
    import inspect

    wanted: dict[Any, str] = {
        save_checkpoint: "checkpoint_dir, step, model_data, optimizer_data, meta_data, rank=0",
        load_checkpoint: "checkpoint_dir, step, device, load_optimizer=False, rank=0",
        build_model: "checkpoint_dir, step, device, phase",
        find_last_step: "checkpoint_dir",
        load_model_from_dir: "checkpoints_dir, device, phase, model_tag=None, step=None",
    }
    for function, signature in wanted.items():
        found = inspect.signature(function).parameters.values()
        own = [p for p in found if p.kind is not p.KEYWORD_ONLY]
        said = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in own)
        assert said == signature
