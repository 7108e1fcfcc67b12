"""torchtune's trees: epochs by file name, folders an epoch or step, and what the recipe state belongs to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_cli.checkpoint import Checkpoint, Part, in_order, newest
from ckpt_cli.discover import discover
from ckpt_cli.layouts.torchtune import needs
from ckpt_cli.metrics import best_of
from ckpt_cli.plans import Rules
from ckpt_cli.policies import keep_last
from ckpt_cli.retain import make_plan
from ckpt_cli.tensors import read_index
from tests.conftest import Run

OLD = time.time() - 86_400


def save(path: Path, value: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"w": torch.arange(4.0)} if value is None else value
    if path.suffix == ".safetensors":
        save_file(value, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(value if "w" not in value else {}))
    else:
        torch.save(value, path)
    return path


def recipe(path: Path, epochs: int, steps: int | None = None, tensors: int = 1) -> Path:
    state = {number: {"step": torch.tensor(4.0), "exp_avg": torch.ones(2)} for number in range(tensors)}
    value = {"optimizer": {"state": state, "param_groups": [{"lr": 0.1, "params": list(range(tensors))}]}, "seed": 7}
    value |= {"epochs_run": epochs, "total_epochs": 3, "max_steps_per_epoch": None}
    return save(path, value if steps is None else {**value, "steps_run": steps})


def aged(root: Path) -> Path:
    """All of it written a day ago, so that what is incomplete is not in progress."""
    for folder, _, names in os.walk(root):
        for name in names:
            os.utime(os.path.join(folder, name), (OLD, OLD))
    return root


def epoch(folder: Path, shards: int = 2, prefix: str = "model", index: bool = True) -> Path:
    names = [f"{prefix}-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    for number, name in enumerate(names):
        save(folder / name, {f"w{number}": torch.arange(4.0)})
    save(folder / "config.json", {"hidden_size": 4})
    if index:
        weights = {f"w{number}": name for number, name in enumerate(names)}
        save(folder / "model.safetensors.index.json", {"metadata": {"total_size": 32}, "weight_map": weights})
    return folder


def distributed(folder: Path, value: dict[str, Any] | None = None) -> Path:
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    folder.mkdir(parents=True, exist_ok=True)
    state = value or {"model": {"w": torch.arange(3.0)}, "optimizer": {"m": torch.ones(3)}}
    save_distributed(state, checkpoint_id=folder, no_dist=True)
    return folder


def found(root: Path) -> dict[str, Checkpoint]:
    return {c.ref: c for c in discover(str(root)).checkpoints}


def names(checkpoint: Checkpoint) -> list[str]:
    return sorted(os.path.relpath(part.path, checkpoint.run_dir) for part in checkpoint.parts)


def told(root: Path) -> list[tuple[str, str, bool | None]]:
    return [(c.ref, c.state, c.resumable) for c in discover(str(root)).checkpoints]


def prunes(root: Path, count: int = 1) -> list[str]:
    """The refs that go."""
    pool = discover(str(root)).checkpoints
    rules = Rules(time.time_ns(), 10**9, {c.layout: needs for c in pool})
    return [c.ref for c in make_plan(pool, {"keep": keep_last(count)}, rules).removed]


# --- the real trees

KINDS = ("full-hf", "full-meta", "full-tune", "lora-hf", "lora-meta")
ALL = [(version, kind) for version in ("0.1.1", "0.6.1") for kind in KINDS]


@pytest.mark.parametrize("version, kind", ALL)
def test_real_run(shared: Path, version: str, kind: str) -> None:
    """Three epochs, a finished run: the recipe state is of the second, and every file but one is of an epoch."""
    root = shared.resolve() / "real/torchtune" / version / kind
    run = discover(str(root)).checkpoints
    assert [(c.layout, c.tag, c.step, c.unit, c.name, c.state) for c in run] == [
        ("torchtune", kind, number, "epoch", f"epoch_{number}", "complete") for number in range(3)
    ]
    assert [c.resumable for c in run] == [False, True, False]
    assert {c.run_dir for c in run} == {str(root)}
    here = {os.path.join(folder, name) for folder, _, files in os.walk(root) for name in files}
    claimed = [part.path for c in run for part in c.parts]
    assert len(claimed) == len(set(claimed))
    left = {os.path.relpath(path, root) for path in here - set(claimed)}
    # The one configuration of a flat folder is of no epoch.
    assert left == ({"expected.json", "config.json"} if version == "0.1.1" and "hf" in kind else {"expected.json"})
    assert [part.path for c in run for part in c.having("recipe")] == [
        part.path for part in run[1].parts if part.path.endswith("recipe_state.pt")
    ]
    adapters = {len(c.having("adapter")) for c in run}
    assert adapters == ({0} if "full" in kind else {2} if (version, kind) == ("0.6.1", "lora-hf") else {1})
    assert [c.ref for c in needs(run[2], run)] == [f"{kind}/1"]
    assert list(needs(run[1], run)) == []


@pytest.mark.parametrize("version, kind", ALL)
def test_real_digests(shared: Path, call: Run, version: str, kind: str) -> None:
    """Every tensor of every epoch under the names and digests that were noted when it was written."""
    root = shared.resolve() / "real/torchtune" / version / kind
    expected = json.loads((root / "expected.json").read_text())
    for number in range(3):
        done = call("inspect", "tensors", "-s", number, "--root", root, "--hash", "--json")
        assert done.code == 0, done.err
        got = {t["name"]: (t["dtype"], t["shape"], t["sha256"]) for t in done.json["tensors"]}
        wanted = {}
        for file in done.json["files"]:
            noted = expected["files"][os.path.relpath(file["path"], root)]["tensors"]
            wanted.update({name: (t["dtype"], t["shape"], t["sha256"]) for name, t in noted.items()})
        assert got == wanted and len(got) >= 21
        if kind.endswith("tune"):
            keys = expected["epochs"][number]["tune_keys"]
            assert got == {name: (t["dtype"], t["shape"], t["sha256"]) for name, t in keys.items()}


def test_real_distributed(shared: Path) -> None:
    root = shared.resolve() / "real/torchtune/0.6.1/distributed"
    run = discover(str(root)).checkpoints
    assert [(c.layout, c.ref, c.name, c.unit, c.state, c.resumable) for c in run] == [
        ("torchtune", f"distributed/{n}", f"dist_epoch_{n}", "epoch", "complete", True) for n in range(2)
    ]
    assert [len(c.parts) for c in run] == [103, 103]
    assert list(needs(run[1], run)) == []


@pytest.mark.parametrize("version, kind", [*ALL, ("0.6.1", "distributed")])
def test_real_from_every_place(shared: Path, version: str, kind: str, call: Run) -> None:
    """As the root, below it, two below it; a step's folder; a file."""
    base = shared.resolve() / "real/torchtune"
    own = discover(str(base / version / kind)).checkpoints
    for root, above in ((base / version, kind), (base, f"{version}/{kind}")):
        below = [c for c in discover(str(root)).checkpoints if c.tag == above]
        assert [c._replace(tag=kind) for c in below] == list(own)
    for checkpoint in own:
        if checkpoint.home:
            alone = discover(checkpoint.dir).checkpoints
            assert alone == (checkpoint,)
        done = call("latest", checkpoint.having("model")[0].path, "--field", "ref")
        assert (done.code, done.out.strip()) == (0, checkpoint.ref), done.err


@pytest.mark.parametrize("version, kind", [("0.1.1", "lora-hf"), ("0.6.1", "lora-hf"), ("0.6.1", "full-meta")])
def test_real_prune_and_undo(shared: Path, tmp_path: Path, call: Run, version: str, kind: str) -> None:
    """The epoch that the recipe state is of stays; what goes comes back byte for byte, and then goes for good."""
    root = tmp_path / kind
    shutil.copytree(shared.resolve() / "real/torchtune" / version / kind, root)

    def tree() -> dict[str, bytes]:
        files = [path for path in root.rglob("*") if path.is_file() and ".ckpt-trash" not in path.parts]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    before = tree()
    done = call("prune", "--root", root, "--keep", 1, "--trash", "--yes", "--json")
    assert done.code == 0, done.err
    plan = done.json["groups"][0]
    assert [row["ref"] for row in plan["remove"]] == [f"{kind}/0"]
    assert [row["ref"] for row in plan["keep"]] == [f"{kind}/1", f"{kind}/2"]
    gone = {os.path.relpath(path, root) for row in plan["remove"] for path in row["paths"]}
    assert tree() == {name: data for name, data in before.items() if name not in gone}
    assert not (root / "epoch_0").exists()
    assert call("prune", "--root", root, "--undo").code == 0
    assert tree() == before
    assert call("prune", "--root", root, "--keep", 1, "--yes").code == 0
    assert tree() == {name: data for name, data in before.items() if name not in gone}
    assert call("latest", "--root", root, "--resumable", "--field", "step").out == "1\n"


def test_real_meta_and_optimizer(shared: Path, call: Run) -> None:
    root = shared.resolve() / "real/torchtune/0.6.1/full-hf"
    meta = call("inspect", "meta", "--root", root, "-s", 1, "--json").json["meta"]
    assert meta["hidden_size"] == 64
    assert meta["recipe"] == {"seed": 1234, "epochs_run": 2, "total_epochs": 3, "max_steps_per_epoch": 2}
    assert "recipe" not in call("inspect", "meta", "--root", root, "-s", 2, "--json").json["meta"]
    flat = shared.resolve() / "real/torchtune/0.1.1/full-meta"
    assert call("inspect", "meta", "--root", flat, "-s", 1, "--key", "recipe.epochs_run").out == "2\n"
    for place in (root, flat):
        done = call("inspect", "optim", "--root", place, "-s", 1, "--json")
        truth = torch.load(next(place.rglob("recipe_state.pt")), weights_only=True)["optimizer"]
        assert done.json["ranks"][0]["state_tensors"] == sum(map(len, truth["state"].values()))
        assert call("inspect", "optim", "--root", place, "-s", 2).code == 1


# --- flat, versions 0.1 to 0.4


def flat(root: Path, epochs: Sequence[int] = (0, 1, 2), shards: int = 2, run: int | None = 2) -> Path:
    for number in epochs:
        for shard in range(1, shards + 1):
            save(root / f"hf_model_{shard:04}_{number}.pt")
    if run is not None:
        recipe(root / "recipe_state.pt", run)
    return aged(root)


def test_flat_safetensors_of_0_2(tmp_path: Path) -> None:
    """The digits after "of" are the last shard begun, not their number; adapters of peft are of the newest epoch."""
    root = tmp_path / "run"
    for number in (0, 1):
        for shard in (1, 2, 3):
            save(root / f"model-0000{shard}-of-00002_{number}.safetensors")
        save(root / f"adapter_{number}.pt")
    save(root / "adapter_model.bin")
    save(root / "adapter_config.json", {"r": 4})
    save(root / "config.json", {"hidden_size": 4})
    recipe(root / "recipe_state.pt", 1)
    aged(root)
    assert told(root) == [("run/0", "complete", True), ("run/1", "complete", False)]
    first, second = found(root).values()
    assert names(first) == [
        "adapter_0.pt", *(f"model-0000{n}-of-00002_0.safetensors" for n in (1, 2, 3)), "recipe_state.pt"
    ]  # fmt: skip
    assert names(second) == [
        "adapter_1.pt", "adapter_config.json", "adapter_model.bin",
        *(f"model-0000{n}-of-00002_1.safetensors" for n in (1, 2, 3)),
    ]  # fmt: skip
    (root / "model-00003-of-00002_0.safetensors").unlink()
    broken = found(root)["run/0"]
    assert (broken.state, broken.resumable) == ("incomplete", False)
    assert [problem.path for problem in broken.problems] == [str(root / "model-00003-of-00002_0.safetensors")]


def test_flat_shards_of_the_other_epochs(tmp_path: Path) -> None:
    """Names that tell no number of shards: every epoch has those that any has."""
    root = flat(tmp_path / "run", shards=3)
    (root / "hf_model_0003_2.pt").unlink()
    (root / "hf_model_0001_0.pt").write_bytes(b"")
    aged(root)
    assert told(root) == [("run/0", "incomplete", False), ("run/1", "complete", True), ("run/2", "incomplete", False)]
    assert [p.code for c in found(root).values() for p in c.problems] == ["empty-file", "missing-part"]
    assert found(root)["run/2"].problems[0].path == str(root / "hf_model_0003_2.pt")
    os.utime(root / "hf_model_0001_2.pt")
    assert found(root)["run/2"].state == "in-progress"


def test_flat_shards_by_their_own_number(tmp_path: Path) -> None:
    """Of a run with one epoch the names alone tell that the last shard is missing."""
    for shard in (1, 2):
        save(tmp_path / f"model-0000{shard}-of-00003_0.safetensors")
    (checkpoint,) = found(aged(tmp_path)).values()
    assert checkpoint.state == "incomplete"
    assert [p.path for p in checkpoint.problems] == [str(tmp_path / "model-00003-of-00003_0.safetensors")]


def test_the_original_in_the_same_folder(tmp_path: Path) -> None:
    """output_dir was checkpoint_dir: the model that was tuned is another checkpoint, and prune leaves it alone."""
    root = flat(epoch(tmp_path / "run"), epochs=(0, 1))
    save(root / "tokenizer.json", {})
    run = discover(str(root)).checkpoints
    assert {c.layout for c in run} == {"torchtune", "huggingface"}
    assert [(c.layout, c.step) for c in run][1:] == [("torchtune", 0), ("torchtune", 1)]
    assert prunes(root) == ["run/0"]
    from ckpt_cli.layouts import layout_named

    rules = Rules(time.time_ns(), 10**9, {c.layout: layout_named(c.layout).needs for c in run})
    assert [c.ref for c in make_plan(run, {"keep": keep_last(1)}, rules).removed] == ["run/0"]


def test_two_kinds_in_one_folder(tmp_path: Path) -> None:
    """Two runs into one folder, saved by two checkpointers: each epoch is told apart by name."""
    root = flat(tmp_path / "run", epochs=(0, 1), shards=1, run=None)
    save(root / "meta_model_1.pt")
    save(root / "adapter_1.pt")
    recipe(root / "recipe_state.pt", 2)
    aged(root)
    assert sorted(c.ref for c in found(root).values()) == ["run/0", "run/hf_model_1", "run/meta_model_1"]
    parts = [part.path for c in found(root).values() for part in c.parts]
    assert len(parts) == len(set(parts)) == 5


def test_adapters_alone(tmp_path: Path) -> None:
    root = tmp_path / "run"
    for number in (0, 1):
        save(root / f"adapter_{number}.pt")
    recipe(root / "recipe_state.pt", 1)
    assert told(aged(root)) == [("run/0", "complete", True), ("run/1", "complete", False)]


def test_an_epoch_without_its_adapter_does_not_resume(tmp_path: Path) -> None:
    root = flat(tmp_path / "run")
    for number in (0, 1, 2):
        save(root / f"adapter_{number}.pt")
    assert told(aged(root))[1] == ("run/1", "complete", True)
    (root / "adapter_1.pt").unlink()
    assert told(root)[1] == ("run/1", "complete", False)


def test_exports_manifests_and_pins(tmp_path: Path, call: Run) -> None:
    root = tmp_path / "run"
    for number in (0, 1, 2):
        save(root / f"meta_model_{number}.pt")
    assert call("convert", "-s", 0, "--root", root).code == 0
    assert call("verify", "-s", 0, "--root", root, "--record").code == 0
    (root / "meta_model_1.keep").touch()
    aged(root)
    run = found(root)
    assert [c.pinned for c in run.values()] == [False, True, False]
    assert sorted((part.role, os.path.basename(part.path)) for part in run["run/0"].parts) == [
        ("export", "meta_model_0.safetensors"), ("manifest", "meta_model_0.pt.sha256"), ("model", "meta_model_0.pt"),
    ]  # fmt: skip
    assert prunes(root) == ["run/0"]


# --- the recipe state


@pytest.mark.parametrize("broken", ["cut", "empty", "no number", "no such epoch", "text"])
@pytest.mark.parametrize("folders", [False, True])
def test_a_recipe_state_of_no_known_epoch(tmp_path: Path, call: Run, broken: str, folders: bool) -> None:
    """What is not known is not guessed: nothing is said to resume, and nothing goes."""
    root = tmp_path / "run"
    if folders:
        for number in range(3):
            epoch(root / f"epoch_{number}")
    else:
        flat(root, run=None)
    path = recipe(root / ("recipe_state/recipe_state.pt" if folders else "recipe_state.pt"), 9)
    if broken == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif broken == "empty":
        path.write_bytes(b"")
    elif broken == "no number":
        save(path, {"epochs_run": "2", "seed": 1})
    elif broken == "text":
        path.write_text("nothing of the kind")
    aged(root)
    assert told(root) == [(f"run/{number}", "complete", None) for number in range(3)]
    run = discover(str(root)).checkpoints
    assert {problem.code for c in run for problem in c.problems} == {"unpaired-recipe"}
    assert [c.ref for c in needs(run[0], run)] == ["run/1", "run/2"]
    assert prunes(root) == []
    assert call("latest", "--root", root, "--resumable").code == 1
    assert call("latest", "--root", root, "--field", "step").out == "2\n"
    # It is looked at with the newest.
    assert [c.step for c in run if c.having("recipe")] == [2]
    assert call("verify", "--root", root).code == (0 if broken.startswith("no") else 1)


def test_the_whole_run_goes_with_its_recipe_state(tmp_path: Path, call: Run) -> None:
    root = tmp_path / "tree"
    for number in range(2):
        epoch(root / f"run/epoch_{number}")
    recipe(root / "run/recipe_state/recipe_state.pt", 1)
    aged(root)
    done = call("prune", "run", "--root", root, "--keep", 0, "--allow-empty", "--yes")
    assert done.code == 0, done.err
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_other_runs_are_not_needed(tmp_path: Path) -> None:
    """Asked about all runs, as for the base of an adapter: those of others are none of its business."""
    for name in ("a", "b"):
        for number in range(2):
            save(epoch(tmp_path / name / f"epoch_{number}") / "adapter_model.pt")
        recipe(tmp_path / name / "recipe_state/recipe_state.pt", 1 if name == "a" else 7)
    aged(tmp_path)
    run = discover(str(tmp_path)).checkpoints
    assert [[c.ref for c in needs(one, run)] for one in run] == [[], ["a/0"], ["b/1"], ["b/0"]]


def test_a_recipe_state_is_read_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 epochs, with 5,000 tensors in the state."""
    root = tmp_path / "run"
    for number in range(40):
        save(root / f"epoch_{number}/model.safetensors")
    recipe(root / "recipe_state/recipe_state.pt", 40, tensors=2500)
    read: list[str] = []

    def counted(path: str) -> Any:
        read.append(path)
        return read_index(path)

    monkeypatch.setattr("ckpt_cli.discover._read_index", counted)
    began = time.perf_counter()
    assert [c.step for c in discover(str(root)).checkpoints if c.resumable] == [39]
    assert time.perf_counter() - began < 2
    assert read == [str(root / "recipe_state/recipe_state.pt")]
    # A state that was written over is read anew, in the same process too.
    recipe(root / "recipe_state/recipe_state.pt", 20)
    assert [c.step for c in discover(str(root)).checkpoints if c.resumable] == [19]


# --- folders, since 0.5


def test_folders_of_0_5(tmp_path: Path) -> None:
    """ft-model-..., Meta keys in a .bin that looks like Hugging Face's, the copied files, those of subfolders."""
    root = tmp_path / "run"
    first = epoch(root / "epoch_0", prefix="ft-model")
    for name in ("generation_config.json", "tokenizer.json", "original_repo_id.json", "original/params.json"):
        save(first / name, {})
    for name in ("adapter_model.pt", "adapter_model.safetensors"):
        save(first / name)
    save(first / "adapter_config.json", {"r": 4})
    (first / "README.md").write_text("a model")
    (first / "original/tokenizer.model").write_bytes(b"x")
    (first / "notes.txt").write_text("mine")
    save(root / "epoch_1/ft-model-00001-of-00001.bin")
    recipe(root / "recipe_state/recipe_state.pt", 1)
    aged(root)
    assert told(root) == [("run/0", "complete", True), ("run/1", "complete", False)]
    roles = {os.path.relpath(part.path, root): part.role for part in found(root)["run/0"].parts}
    assert roles == {
        "epoch_0/ft-model-00001-of-00002.safetensors": "model",
        "epoch_0/ft-model-00002-of-00002.safetensors": "model",
        "epoch_0/model.safetensors.index.json": "index",
        "epoch_0/adapter_model.pt": "adapter",
        "epoch_0/adapter_model.safetensors": "adapter",
        "epoch_0/adapter_config.json": "config",
        "epoch_0/config.json": "config",
        "epoch_0/generation_config.json": "config",
        "epoch_0/original_repo_id.json": "config",
        "epoch_0/original/params.json": "config",
        "epoch_0/original/tokenizer.model": "tokenizer",
        "epoch_0/tokenizer.json": "tokenizer",
        "epoch_0/README.md": "other",
        "recipe_state/recipe_state.pt": "recipe",
    }


def test_folders_of_2026(tmp_path: Path, call: Run) -> None:
    """Epochs and steps in one run, each with its recipe state: any of them resumes, and none is kept for another."""
    root = tmp_path / "run"
    for name in ("epoch_0", "epoch_1", "step_1", "step_90", "step_500"):
        save(root / name / "model.safetensors")
        save(root / name / "config.json", {"hidden_size": 4})
        if name != "epoch_1":
            recipe(root / name / "recipe_state.pt", 1, 90)
    save(root / "step_90/adapter_model.safetensors")
    (root / "step_90/adapter_model").mkdir()
    aged(root)
    assert told(root) == [
        ("run/0", "complete", True),
        ("run/epoch_1", "complete", False),
        ("run/step_1", "complete", True),
        ("run/90", "complete", True),
        ("run/500", "complete", True),
    ]
    # Times say otherwise: a copy has them as they come.
    os.utime(root / "epoch_1/model.safetensors")
    assert call("latest", "--root", root, "--field", "ref").out == "run/500\n"
    assert call("latest", "run/epoch_1", "--root", root, "--field", "step").out == "1\n"
    assert call("inspect", "meta", "run/1", "--root", root).code == 2
    done = call("prune", "--root", root, "--keep", 1, "--yes", "--json")
    assert done.code == 0, done.err
    assert [row["ref"] for row in done.json["groups"][0]["keep"]] == ["run/500"]
    left = sorted(path.name for path in root.rglob("*") if path.is_file())
    assert left == ["config.json", "model.safetensors", "recipe_state.pt"]


def test_distributed_of_2026(tmp_path: Path) -> None:
    """The names of the others, an index inside; adapters in a folder of their own."""
    root = tmp_path / "run"
    for name in ("step_10", "step_20"):
        distributed(root / name)
        distributed(root / name / "adapter_model", {"a": torch.ones(2)})
        recipe(root / name / "recipe_state.pt", 0, 10)
    aged(root)
    run = found(root)
    assert [(c.layout, c.ref, c.state, c.resumable) for c in run.values()] == [
        ("torchtune", "run/10", "complete", True), ("torchtune", "run/20", "complete", True)
    ]  # fmt: skip
    roles = {os.path.relpath(part.path, root): part.role for part in run["run/20"].parts}
    assert roles == {
        "step_20/.metadata": "index",
        "step_20/__0_0.distcp": "model",
        "step_20/adapter_model/.metadata": "index",
        "step_20/adapter_model/__0_0.distcp": "adapter",
        "step_20/recipe_state.pt": "recipe",
    }
    (root / "step_20/.metadata").unlink()
    (root / "step_20/recipe_state.pt").unlink()
    assert told(root)[1] == ("run/20", "incomplete", False)
    assert {c.layout for c in found(root).values()} == {"torchtune"}


def test_an_index_too_large_to_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dist_epoch_N always holds the optimizer; in a folder of another name nothing but the index says so."""
    monkeypatch.setattr("ckpt_cli.layouts._dcp._MAX_INDEX", 10)
    monkeypatch.setattr("ckpt_cli.layouts._dcp._MAX_NAMES", 10)
    distributed(tmp_path / "dist_epoch_0")
    distributed(tmp_path / "epoch_1")
    assert [(c.layout, c.resumable) for c in found(tmp_path).values()] == [("torchtune", True), ("torchtune", None)]


def test_an_index_that_was_cut_off(tmp_path: Path) -> None:
    root = tmp_path / "run"
    distributed(root / "dist_epoch_0")
    distributed(root / "dist_epoch_1")
    (root / "dist_epoch_1/.metadata").rename(root / "dist_epoch_1/.metadata.tmp")
    epoch(root / "epoch_2")
    aged(root)
    assert told(root) == [
        ("run/0", "complete", True), ("run/1", "incomplete", False), ("run/2", "complete", False)
    ]  # fmt: skip
    assert prunes(root) == []


@pytest.mark.parametrize("kind", ["index names more", "gap", "empty", "index alone", "bad index", "adapter"])
def test_incomplete_folders(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "run"
    folder = epoch(root / "epoch_0", shards=3, index=kind != "gap")
    if kind in ("index names more", "gap"):
        (folder / "model-00002-of-00003.safetensors").unlink()
    elif kind == "empty":
        (folder / "model-00002-of-00003.safetensors").write_bytes(b"")
    elif kind == "index alone":
        for path in folder.glob("model-*"):
            path.unlink()
    elif kind == "bad index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w0": "../../model.safetensors"}}')
    else:
        save(folder / "adapter_config.json", {"r": 4})
    aged(root)
    (one,) = found(root).values()
    assert (one.layout, one.state, one.resumable) == ("torchtune", "incomplete", False)
    code = {"empty": "empty-file", "bad index": "bad-index"}.get(kind, "missing-part")
    assert [problem.code for problem in one.problems] == [code] * (3 if kind == "index alone" else 1)
    os.utime(folder / "config.json")
    assert found(root)["run/0"].state == "in-progress"


def test_one_form_is_the_model(tmp_path: Path, call: Run) -> None:
    """Our export beside a .bin; shards of the ranks beside what was made of them."""
    root = tmp_path / "run"
    save(root / "epoch_0/model-00001-of-00001.bin")
    assert call("convert", "--root", root).code == 0
    epoch(root / "epoch_1")
    save(root / "epoch_1/sharded/shard-00001-model-00001-of-00002.safetensors")
    save(root / "epoch_1/shard-00001-model-00001-of-00002.safetensors")
    aged(root)
    first, second = found(root).values()
    assert sorted(part.role for part in first.parts) == ["export", "model"]
    assert [os.path.basename(part.path) for part in second.having("model")] == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    ]  # fmt: skip
    assert len(second.having("other")) == 2


NOT_OURS = {
    "accelerate": ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "scheduler.bin"),
    "the Trainer": ("model.safetensors", "config.json", "trainer_state.json", "optimizer.pt"),
    "a user's": ("weights.pt", "data.csv"),
    "nothing": (),
    "copied files": ("config.json", "tokenizer.json"),
}


@pytest.mark.parametrize("kind", NOT_OURS)
@pytest.mark.parametrize("name", ["epoch_1", "step_100"])
def test_folders_of_others(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    for file in NOT_OURS[kind]:
        save(tmp_path / "run" / name / file)
    assert all(c.layout != "torchtune" for c in found(tmp_path / "run").values())


@pytest.mark.parametrize(
    "name", ["epoch_1_backup", "epoch_01", "xepoch_1", "epoch-1", "step_", "epoch_1.5", "dist_step_1"]
)
def test_folders_that_look_alike(tmp_path: Path, name: str) -> None:
    epoch(tmp_path / "run" / name)
    epoch(tmp_path / "run/epoch_2")
    run = [c for c in found(tmp_path / "run").values() if c.layout == "torchtune"]
    assert [c.step for c in run] == [2]


def saved(folder: Path) -> Path:
    """What transformers' save_pretrained writes of a small model."""
    save(folder / "config.json", {"model_type": "llama", "transformers_version": "5.23.0"})
    save(folder / "generation_config.json", {"transformers_version": "5.23.0"})
    save(folder / "model.safetensors")
    return folder


def layouts(root: Path) -> list[tuple[str, str, bool | None]]:
    return [(c.layout, c.ref, c.resumable) for c in found(aged(root)).values()]


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_somebody_s_own_save_pretrained(tmp_path: Path, unit: str, call: Run) -> None:
    """Named like torchtune's: of another layout, under the same references, and pruned as epochs are."""
    root = tmp_path / "run"
    for number in (2, 9, 10):
        saved(root / f"{unit}_{number}")
    assert layouts(root) == [("huggingface", f"run/{number}", None) for number in (2, 9, 10)]
    assert prunes(root) == ["run/2", "run/9"]
    assert call("latest", root, "--field", "ref").out == "run/10\n"
    # One with shards, whose index ends with a newline as transformers writes it.
    shards = epoch(root / f"{unit}_11")
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()), indent=2, sort_keys=True) + "\n")
    assert layouts(root)[-1] == ("huggingface", "run/11", None)
    assert [part.role for part in found(root)["run/11"].parts] == ["model", "model", "index", "config"]


def test_an_adapter_that_somebody_saved(tmp_path: Path) -> None:
    root = tmp_path / "run"
    for number in (0, 1):
        save(root / f"epoch_{number}/adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "m"})
        save(root / f"epoch_{number}/adapter_model.safetensors")
    assert layouts(root) == [("huggingface", "run/0", None), ("huggingface", "run/1", None)]


MARKS = """
adapter_model.pt original_repo_id.json LICENSE.txt original/params.json adapter_model/ recipe_state.pt params.json
../recipe_state/recipe_state.pt ../torchtune_config.yaml ../epoch_0/recipe_state.pt
"""


@pytest.mark.parametrize("mark", MARKS.split())
def test_a_mark_of_torchtune(tmp_path: Path, mark: str) -> None:
    """A single file of weights, as torchtune has written them since 2026, is its own where anything says so."""
    folder = saved(tmp_path / "run/epoch_1")
    if mark.startswith("../epoch_0"):
        saved(tmp_path / "run/epoch_0")
    if mark.endswith("/"):
        (folder / mark).mkdir()
    elif mark.endswith("recipe_state.pt"):
        recipe(folder / mark, 2)
    else:
        save(folder / mark)
    assert [c.layout for c in found(aged(tmp_path / "run")).values() if c.step == 1] == ["torchtune"]


def test_names_that_only_torchtune_gives(tmp_path: Path) -> None:
    names = "ft-model-00001-of-00001.safetensors ft-model-00001-of-00002.bin model-00001-of-00001.safetensors"
    for number, name in enumerate([*names.split(), "model-00001-of-00001.bin"]):
        root = tmp_path / f"run{number}"
        save(root / "epoch_0/config.json", {"a": 1})
        save(root / "epoch_0" / name)
        assert [c.layout for c in found(root).values()] == ["torchtune"], name
    # An index that transformers did not write, and weights without any configuration.
    epoch(tmp_path / "run8/epoch_0")
    save(tmp_path / "run9/epoch_0/model.safetensors")
    assert [c.layout for name in ("run8", "run9") for c in found(tmp_path / name).values()] == ["torchtune"] * 2


def test_epochs_that_were_cut_off(tmp_path: Path) -> None:
    """One shard under its name and one under that which safetensors writes to; and nothing but such a file."""
    root = tmp_path / "run"
    epoch(root / "epoch_0")
    recipe(root / "recipe_state/recipe_state.pt", 1)
    save(root / "epoch_1/model-00001-of-00002.safetensors")
    (root / "epoch_1/.tmpaB3dE6").write_bytes(b"x")
    (root / "epoch_2").mkdir()
    (root / "epoch_2/.tmpaB3dE6").write_bytes(b"x")
    shutil.copytree(root / "epoch_0", root / "epoch_3.tmp")
    aged(root)
    assert {ref: (c.layout, c.state) for ref, c in found(root).items()} == {
        "run/0": ("torchtune", "complete"),
        "run/1": ("torchtune", "incomplete"),
        "run/2": ("torchtune", "incomplete"),
        "run/epoch_3.tmp": ("torchtune", "incomplete"),
    }
    assert [len(c.having("recipe")) for c in found(root).values()] == [1, 0, 0, 0]
    assert found(root)["run/2"].modified > 10**18  # no checkpoint is of 1970
    assert prunes(root) == []
    os.utime(root / "epoch_2/.tmpaB3dE6")
    assert found(root)["run/2"].state == "in-progress"


LOOK_ALIKE = """
hf_model_1_0.pt hf_model_0001_0.bin hf_model_0001.pt model-00001-of-00003.safetensors_0 model-00001-of-00003_0.pt
meta_model.pt meta_model_0.pt.old torchtune_model_00.pt adapter_0.bin adapter_model.bin recipe_state.pt
"""


@pytest.mark.parametrize("name", LOOK_ALIKE.split())
def test_files_that_look_alike(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert all(c.layout != "torchtune" for c in found(tmp_path).values())


def test_a_distributed_save_of_anybody(tmp_path: Path) -> None:
    """step_100 with nothing of torchtune's in or above it belongs to whoever writes distributed checkpoints."""
    distributed(tmp_path / "run/step_100")
    assert [c.layout for c in found(tmp_path).values()] == ["dcp"]
    (tmp_path / "run/torchtune_config.yaml").write_text("a: 1")
    assert [c.layout for c in found(tmp_path).values()] == ["torchtune"]


def test_many_are_listed_quickly(tmp_path: Path) -> None:
    """5,000 steps of one run, as its own root: half a second or so, not the square of their number."""
    root = tmp_path / "run"
    for number in range(5000):
        (root / f"step_{number}").mkdir(parents=True)
        (root / f"step_{number}/model.safetensors").write_bytes(b"x")
    recipe(root / "recipe_state/recipe_state.pt", 3, 44)
    began = time.perf_counter()
    run = discover(str(root)).checkpoints
    assert time.perf_counter() - began < 3
    assert [c.step for c in run if c.resumable] == [44]


# --- the order of a run that counts both


def counted(number: int | None, unit: Any, metric: float = 1.0, when: int = 0) -> Checkpoint:
    part = Part("model", f"/r/{unit}_{number}/m", 1, when)
    return Checkpoint(
        "torchtune", None, "r", number, unit, f"{unit}_{number}", f"/r/{unit}_{number}", (part,),
        metrics=(("loss", metric),), home="/r", by_name=True,
    )  # fmt: skip


def test_the_order_of_epochs_and_steps() -> None:
    run = [counted(7, "epoch", when=90), counted(None, None, when=99), counted(2, "step"), counted(1, "step", when=80)]
    assert [c.name for c in sorted(run, key=in_order)] == ["None_None", "epoch_7", "step_1", "step_2"]
    for order in (run, run[::-1]):
        one = newest(order)
        assert one and one.name == "step_2"
        assert best_of(order, None)[0].name == "step_2"
    assert best_of([*run, counted(0, "epoch", 0.5)], None)[0].name == "epoch_0"
    assert newest(run[:2]) == run[0]


def test_a_restart_is_told_within_one_unit() -> None:
    """An epoch that was written after a step says nothing; a lower step after a higher one does."""
    from ckpt_cli.errors import Refused

    hour = 3600 * 10**9
    rules = Rules(10 * hour, hour // 6, {"torchtune": lambda c, run: ()})
    run = [counted(3, "epoch", when=9 * hour), counted(10, "step", when=5 * hour), counted(20, "step", when=6 * hour)]
    plan = make_plan(run, {"keep": keep_last(1)}, rules)
    assert [c.name for c in plan.removed] == ["epoch_3", "step_10"]
    with pytest.raises(Refused, match="restarted"):
        make_plan([*run, counted(5, "step", when=8 * hour)], {"keep": keep_last(1)}, rules)
