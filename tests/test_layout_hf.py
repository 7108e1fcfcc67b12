"""Hugging Face: the Trainer's steps, published models, adapters, and what must not pass for them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.discover import discover
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import _trainer_state, huggingface
from ckpt_cli.layouts._index import MAX_INDEX_BYTES, shard_names
from ckpt_cli.layouts._trainer_state import best_step, metrics_of, read_state
from tests.conftest import Run

OLD = 1_700_000_000
CONFIG = {"model_type": "llama", "hidden_size": 4, "vocab_size": 8}


def age(root: Path, when: int = OLD) -> Path:
    """Sets the time of every file back, so that nothing counts as in progress."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (when, when))
    return root


def put(path: Path, value: Any = None) -> Path:
    """A file: tensors for the suffixes that hold some, else JSON or text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        path.write_text(value)
    elif path.suffix == ".safetensors":
        save_file({"w": torch.arange(8.0).reshape(2, 4)} if value is None else value, path)
    elif path.suffix in (".pt", ".pth", ".bin"):
        torch.save({"w": torch.arange(4.0)} if value is None else value, path)
    else:
        path.write_text(json.dumps(CONFIG if value is None else value))
    return path


def log(step: int) -> list[dict[str, Any]]:
    """A row each five steps, an evaluation each ten, as the Trainer logs them."""
    rows: list[dict[str, Any]] = []
    for at in range(5, step + 1, 5):
        rows.append({"epoch": at / 16, "grad_norm": 1.0, "loss": 6 - at / 100, "step": at})
        if at % 10 == 0:
            rows.append({"epoch": at / 16, "eval_loss": 5 - at / 100, "eval_runtime": 0.1, "step": at})
    return rows


def state_of(step: int, best: int | None = None, path: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "best_global_step": best,
        "best_metric": None if best is None and path is None else 0.25,
        "best_model_checkpoint": path,
        "global_step": step,
        "log_history": log(step),
        "max_steps": 30,
        **more,
    }


def write_state(folder: Path, state: dict[str, Any]) -> None:
    # Byte for byte what TrainerState.save_to_json writes.
    put(folder / "trainer_state.json", json.dumps(state, indent=2, sort_keys=True) + "\n")


def write_step(run: Path, step: int, best: int | None = None, path: str | None = None) -> Path:
    """A folder with all that transformers 5 writes for a step."""
    folder = run / f"checkpoint-{step}"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        put(folder / name)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        put(folder / name)
    write_state(folder, state_of(step, best, path))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps of a run, under a root that is not the run."""
    for step in (5, 10, 100):
        write_step(tmp_path / "runs/mine", step)
    return age(tmp_path / "runs/mine")


def found(root: Path) -> dict[str, Checkpoint]:
    return {checkpoint.ref: checkpoint for checkpoint in discover(str(root)).checkpoints}


def only(root: Path) -> Checkpoint:
    (checkpoint,) = discover(str(age(root))).checkpoints
    return checkpoint


def roles(checkpoint: Checkpoint) -> dict[str, str]:
    return {os.path.relpath(part.path, checkpoint.dir): part.role for part in checkpoint.parts}


# --- steps of a run


def test_a_run_of_the_trainer(run: Path) -> None:
    """Order by number, a part for every file that belongs to a step, metrics of that step."""
    there = found(run.parent)
    assert list(there) == ["mine/5", "mine/10", "mine/100"]
    step = there["mine/10"]
    assert (step.layout, step.tag, step.step, step.unit, step.name) == (
        "huggingface",
        "mine",
        10,
        "step",
        "checkpoint-10",
    )
    assert (step.dir, step.run_dir) == (str(run / "checkpoint-10"), str(run))
    assert (step.state, step.resumable, step.problems, step.ranks) == ("complete", True, (), None)
    assert roles(step) == {
        "model.safetensors": "model",
        "trainer_state.json": "meta",
        "config.json": "config",
        "generation_config.json": "config",
        "optimizer.pt": "optimizer",
        "tokenizer.json": "tokenizer",
        "scheduler.pt": "other",
        "rng_state.pth": "other",
        "training_args.bin": "other",
    }
    assert step.metrics == (("eval_loss", 4.9), ("loss", 5.9))
    # The log has an evaluation of step 10 only: it is not that of step 5.
    assert there["mine/5"].metrics == (("loss", 5.95),)


@pytest.mark.parametrize("below", ["", "mine", "mine/checkpoint-10"])
def test_any_folder_can_be_the_root(run: Path, below: str) -> None:
    assert "mine/10" in found(run.parent / below)


def test_a_file_of_a_step_names_it(run: Path, call: Run) -> None:
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        done = call("latest", run / "checkpoint-10" / name, "--field", "ref")
        assert (done.code, done.out) == (0, "mine/10\n"), done.err


@pytest.mark.parametrize("name", ["mine/10", "mine/checkpoint-10", "runs/mine/10"])
def test_selectors(run: Path, call: Run, name: str) -> None:
    done = call("latest", name, "--root", run.parent.parent, "--field", "dir")
    assert (done.code, done.out) == (0, f"{run}/checkpoint-10\n"), done.err


@pytest.mark.parametrize(
    "name", ["checkpoint-10-old", "checkpoint-", "checkpoint-1e3", "checkpoint-١٠", "xcheckpoint-10", "checkpoint_10"]
)
def test_names_that_look_alike_are_no_steps(tmp_path: Path, name: str) -> None:
    write_step(tmp_path / "run", 10).rename(tmp_path / "run" / name)
    checkpoint = only(tmp_path)
    # A whole model folder all the same, under its own name.
    assert (checkpoint.step, checkpoint.tag, checkpoint.home) == (None, f"run/{name}", "")


@pytest.mark.parametrize("name", ["checkpoint-5-old", "checkpoint-900.bak", "checkpoint-5 (copy 2)"])
def test_a_copy_that_somebody_set_aside_is_not_the_latest(run: Path, call: Run, name: str) -> None:
    """The Trainer's get_last_checkpoint passes it over, however new it is."""
    age(Path(shutil.copytree(run / "checkpoint-5", run / name)), OLD + 100)
    for arguments in ((run,), (run / "..",), ("--root", run)):
        done = call("latest", *arguments, "--field", "dir")
        assert (done.code, done.out) == (0, f"{run}/checkpoint-100\n"), done.err
        assert done.err.splitlines()[0].endswith("(the newest run, copies of its steps left out)")
    assert call("latest", f"mine/{name}", "--root", run.parent, "--field", "step").out == "\n"
    # What is called otherwise is a run like any other, and so is a copy where nothing of the run is whole.
    (run / name).rename(run / "merged")
    assert call("latest", run, "--field", "dir").out == f"{run}/merged\n"
    (run / "merged").rename(run / name)
    for step in (5, 10, 100):
        (run / f"checkpoint-{step}" / "model.safetensors").unlink()
    assert call("latest", run, "--field", "dir").out == f"{run}/{name}\n"


def test_a_folder_of_that_name_with_other_things_in_it(tmp_path: Path) -> None:
    put(tmp_path / "run/checkpoint-10/notes.txt", "x")
    put(tmp_path / "run/checkpoint-10/config.json")
    put(tmp_path / "run/checkpoint-20/model_000020.pt")
    put(tmp_path / "run/checkpoint-20/meta_000020.json", {"step": 20})
    assert {c.layout for c in found(tmp_path).values()} == {"nanochat"}


def test_what_transformers_had_not_renamed_yet(tmp_path: Path) -> None:
    """Until early 2024 a step was written into `tmp-checkpoint-10` first."""
    write_step(tmp_path / "run", 10).rename(tmp_path / "run/tmp-checkpoint-10")
    (only,) = found(tmp_path).values()
    assert (only.ref, only.step, only.state) == ("run/tmp-checkpoint-10", 10, "in-progress")
    assert [problem.code for problem in only.problems] == ["unfinished"]
    assert only.resumable is False
    write_step(tmp_path / "run", 5)
    age(tmp_path)
    assert {ref: c.state for ref, c in found(tmp_path).items()} == {
        "run/5": "complete", "run/tmp-checkpoint-10": "incomplete"
    }  # fmt: skip
    # The one that was cut off, and the one that was then written anew.
    write_step(tmp_path / "run", 10)
    age(tmp_path)
    assert {ref: c.state for ref, c in found(tmp_path).items()} == {
        "run/5": "complete", "run/checkpoint-10": "complete", "run/tmp-checkpoint-10": "incomplete"
    }  # fmt: skip


def test_two_names_of_one_number(tmp_path: Path) -> None:
    write_step(tmp_path / "run", 10)
    shutil.copytree(tmp_path / "run/checkpoint-10", tmp_path / "run/checkpoint-010")
    assert sorted(found(tmp_path)) == ["run/checkpoint-010", "run/checkpoint-10"]


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def replace_by(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "state", "resumable", "codes"),
    [
        (remove("model.safetensors"), "incomplete", False, ["missing-part"]),
        (remove("trainer_state.json"), "incomplete", False, ["missing-part"]),
        (remove("optimizer.pt"), "complete", False, []),
        (remove("scheduler.pt"), "complete", False, []),
        (remove("rng_state.pth"), "complete", True, []),
        (remove("config.json"), "complete", True, []),
        (remove("optimizer.pt", "scheduler.pt", "rng_state.pth"), "complete", False, []),
        (
            remove("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"),
            "complete",
            False,
            [],
        ),
        (replace_by("model.safetensors", ""), "incomplete", False, ["empty-file"]),
        (replace_by("optimizer.pt", ""), "incomplete", False, ["empty-file"]),
        (replace_by("scheduler.pt", ""), "incomplete", False, ["empty-file"]),
        (replace_by("trainer_state.json", '{"global_step": 1'), "incomplete", False, ["bad-meta"]),
        (replace_by("trainer_state.json", "[]"), "incomplete", False, ["bad-meta"]),
    ],
)
def test_what_a_step_lacks(
    tmp_path: Path, change: Callable[[Path], None], state: str, resumable: bool, codes: list[str]
) -> None:
    change(write_step(tmp_path / "run", 10))
    step = only(tmp_path)
    assert (step.state, step.resumable, [problem.code for problem in step.problems]) == (state, resumable, codes)


def test_a_step_that_is_being_written(tmp_path: Path) -> None:
    """The state is written last: until then it is in progress, and an abandoned save later."""
    folder = write_step(tmp_path / "run", 10)
    (folder / "trainer_state.json").unlink()
    assert [c.state for c in discover(str(tmp_path)).checkpoints] == ["in-progress"]
    later = discover(str(tmp_path), now=time.time_ns() + 3600 * 10**9)
    assert [c.state for c in later.checkpoints] == ["incomplete"]


def test_left_over_and_foreign_files_are_no_parts(tmp_path: Path) -> None:
    folder = write_step(tmp_path / "run", 10)
    before = roles(only(tmp_path))
    for name in ("model.safetensors.tmp", "expected.json", "expected_logits.pt", "mymodel.safetensors", ".lock"):
        put(folder / name, "x")
    assert roles(only(tmp_path)) == before


def test_a_pin_and_a_manifest_in_the_folder(tmp_path: Path) -> None:
    folder = write_step(tmp_path / "run", 10)
    put(folder / "ckpt.sha256", "x")
    put(folder / ".keep", "")
    step = only(tmp_path)
    assert step.pinned and roles(step)["ckpt.sha256"] == "manifest"


# --- what the state tells


def test_metrics_of_a_state() -> None:
    rows = [
        {"step": 10, "eval_loss": 9.0, "eval_accuracy": 0.1},
        {"step": 20, "loss": 3.0},
        {
            "step": 20,
            "eval_loss": 2.0,
            "eval_accuracy": float("nan"),
            "eval_samples_per_second": 9.0,
            "eval_runtime": 1,
        },
        {"step": 20, "eval_f1": True, "eval_text": "x", "eval_huge": 10**400},
        "no row",
    ]
    state = {"global_step": 20, "log_history": rows, "best_metric": 1.5}
    assert dict(metrics_of(state)) == {"loss": 3.0, "eval_loss": 2.0, "best_metric": 1.5}
    for odd in ({}, {"log_history": 3}, {"log_history": [1], "best_metric": "x"}):
        assert list(metrics_of(odd)) == []


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ({"best_global_step": 20, "best_model_checkpoint": "/gone/checkpoint-10"}, 20),
        ({"best_model_checkpoint": "/gone/run/checkpoint-10"}, 10),
        ({"best_model_checkpoint": "C:\\runs\\checkpoint-10\\"}, 10),
        ({"best_global_step": None, "best_model_checkpoint": "./checkpoint-10/"}, 10),
        ({"best_global_step": True}, None),
        ({"best_model_checkpoint": "/runs/best"}, None),
        ({"best_model_checkpoint": 10}, None),
        ({}, None),
    ],
)
def test_the_best_step_of_a_state(state: dict[str, Any], step: int | None) -> None:
    assert best_step(state) == step


def test_of_a_long_log_only_the_ends_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same metrics and best step as from the whole, without the whole."""
    rows = [row | {"epoch": 0.5, "learning_rate": 1e-5} for row in log(20_000)]
    whole = state_of(20_000, best=10) | {"log_history": rows}
    write_state(tmp_path, whole)
    path = tmp_path / "trainer_state.json"
    size = path.stat().st_size
    assert size > 1 << 18
    monkeypatch.setattr(_trainer_state, "read_json", lambda path: pytest.fail("the whole was read"))
    read = read_state(str(path), size)
    assert len(read["log_history"]) < 1000
    assert (list(metrics_of(read)), best_step(read)) == (list(metrics_of(whole)), 10)
    assert read["max_steps"] == 30


def test_a_long_state_in_another_form_is_read_as_a_whole(tmp_path: Path) -> None:
    path = put(tmp_path / "trainer_state.json", json.dumps(state_of(20_000)))
    assert path.stat().st_size > 1 << 18
    assert dict(metrics_of(read_state(str(path), path.stat().st_size)))["eval_loss"] == 5 - 200


def test_a_state_too_large_to_look_into_is_no_damage(tmp_path: Path) -> None:
    folder = write_step(tmp_path / "run", 10)
    put(folder / "trainer_state.json", " " * (17 << 20) + "{}")
    step = only(tmp_path)
    assert (step.state, step.metrics) == ("complete", ())


def test_inspect_meta_of_a_step(run: Path, call: Run) -> None:
    """The state, with the configurations beside it; a file that is named alone; one value by key."""
    folder = run / "checkpoint-10"
    meta = call("inspect", "meta", folder, "--json").json["meta"]
    assert meta == {**state_of(10), "config": CONFIG, "generation_config": CONFIG}
    assert call("inspect", "meta", folder, "--key", "config.hidden_size").out == "4\n"
    assert call("inspect", "meta", folder, "--key", "global_step").out == "10\n"
    assert call("inspect", "meta", folder / "config.json", "--json").json["meta"] == CONFIG
    (folder / "config.json").write_text("{")
    assert call("inspect", "meta", folder).code == 1


# --- what prune must leave


def plan(call: Run, root: Path, *arguments: object) -> dict[str, list[str]]:
    done = call("prune", root, *arguments, "-n", "--json")
    assert done.code == 0, done.err
    groups = done.json["groups"]
    return {
        "keep": sorted(row["ref"] for group in groups for row in group["keep"]),
        "remove": sorted(row["ref"] for group in groups for row in group["remove"]),
    }


@pytest.mark.parametrize(
    ("best", "path"), [(20, None), (None, "/gone/elsewhere/checkpoint-20"), (20, "/gone/elsewhere/checkpoint-10")]
)
def test_the_best_step_that_the_last_state_names_stays(
    tmp_path: Path, call: Run, best: int | None, path: str | None
) -> None:
    for step in (10, 20, 30, 40):
        write_step(tmp_path / "run", step, best, path if step == 40 else None)
    age(tmp_path)
    assert plan(call, tmp_path / "run", "--keep", "1") == {"keep": ["run/20", "run/40"], "remove": ["run/10", "run/30"]}
    # No other step does: without a best one, the last stays alone.
    write_state(tmp_path / "run/checkpoint-40", state_of(40))
    age(tmp_path)
    assert plan(call, tmp_path / "run", "--keep", "1")["keep"] == ["run/40"]


def test_the_model_saved_at_the_end(run: Path, call: Run) -> None:
    """A checkpoint of its own in the run's directory, which no step replaces."""
    for name in ("model.safetensors", "config.json", "training_args.bin", "tokenizer.json"):
        put(run / name)
    write_state(run, state_of(100))
    age(run)
    there = found(run.parent)
    assert sorted(there) == ["mine/10", "mine/100", "mine/5", "mine/model"]
    final = there["mine/model"]
    assert (final.step, final.unit, final.state, final.run_dir) == (None, None, "complete", str(run))
    assert dict(final.metrics)["eval_loss"] == 4.0
    assert call("latest", run, "--field", "ref").out == "mine/100\n"
    assert call("latest", "mine/model", "--root", run.parent).out == f"{run}/model.safetensors\n"
    assert plan(call, run, "--keep", "1") == {"keep": ["mine/100", "mine/model"], "remove": ["mine/10", "mine/5"]}


def test_prune_removes_whole_folders_and_nothing_else(run: Path, call: Run) -> None:
    put(run / "checkpoint-10/notes.txt", "mine")
    put(run / "checkpoint-7-old/notes.txt", "mine")
    done = call("prune", run, "--keep", "1", "--yes")
    assert done.code == 0, done.err
    left = sorted(str(path.relative_to(run)) for path in run.rglob("*") if "checkpoint-100/" not in str(path))
    assert left == ["checkpoint-10", "checkpoint-10/notes.txt", "checkpoint-100", "checkpoint-7-old",
                    "checkpoint-7-old/notes.txt"]  # fmt: skip
    assert len(list((run / "checkpoint-100").iterdir())) == 9


def test_undo_brings_a_step_back(run: Path, call: Run) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert call("prune", run, "--keep", "1", "--yes", "--trash").code == 0
    assert list(found(run)) == ["mine/100"]
    assert call("prune", run, "--undo").code == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def adapter_config(base: str) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 4, "base_model_name_or_path": base}


@pytest.mark.parametrize(
    "base",
    [
        "{run}/checkpoint-10",
        "checkpoint-10",
        "./checkpoint-10",
        "../checkpoint-10",
        "/gone/mine/checkpoint-10",
        "mine/checkpoint-10",
    ],
)
def test_an_adapter_needs_its_base(run: Path, base: str) -> None:
    """Absolute, relative to either folder, or of before the run was moved."""
    put(run / "checkpoint-100/adapter_model.safetensors")
    put(run / "checkpoint-100/adapter_config.json", adapter_config(base.format(run=run)))
    steps = found(run.parent)
    assert [c.ref for c in huggingface.needs(steps["mine/100"], list(steps.values()))] == ["mine/10"]


@pytest.mark.parametrize(
    "base",
    ["meta-llama/Llama-3-8B", "", ".", "/", "10", "heckpoint-10", "checkpoint-1", "a\0b", "\ud800", "../" * 9, "~"],
)
def test_an_adapter_of_a_base_elsewhere(run: Path, base: str) -> None:
    put(run / "checkpoint-100/adapter_model.safetensors")
    put(run / "checkpoint-100/adapter_config.json", adapter_config(base))
    steps = found(run.parent)
    assert list(huggingface.needs(steps["mine/100"], list(steps.values()))) == []


@pytest.mark.parametrize("named", [False, True])
def test_the_base_of_an_adapter_in_another_run_stays(tmp_path: Path, call: Run, named: bool) -> None:
    """Whether the adapter is among what is asked about, or only lies in the root."""
    for step in (10, 20, 30):
        write_step(tmp_path / "base", step)
    put(tmp_path / "lora/adapter_model.safetensors")
    put(tmp_path / "lora/adapter_config.json", adapter_config(str(tmp_path / "base/checkpoint-10")))
    age(tmp_path)
    target = ["base", "--root", tmp_path] if named else [tmp_path]
    done = call("prune", *target, "--keep", "1", "-n", "--json")
    assert done.code == 0, done.err
    assert [row["ref"] for group in done.json["groups"] for row in group["remove"]] == ["base/20"]


def test_needs_of_what_cannot_be_read(run: Path) -> None:
    for name in ("trainer_state.json", "adapter_config.json"):
        put(run / "checkpoint-100" / name, "[")
    steps = found(run.parent)
    assert list(huggingface.needs(steps["mine/100"], list(steps.values()))) == []


# --- adapters, and folders below a step


def test_steps_of_peft(tmp_path: Path) -> None:
    folder = write_step(tmp_path / "run", 10)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / name).unlink()
    put(folder / "adapter_config.json", adapter_config("meta-llama/Llama-3-8B"))
    put(folder / "adapter_model.safetensors")
    put(folder / "README.md", "# card")
    step = only(tmp_path)
    assert (step.state, step.resumable) == ("complete", True)
    assert {role: name for name, role in roles(step).items() if role in ("adapter", "config")} == {
        "adapter": "adapter_model.safetensors",
        "config": "adapter_config.json",
    }
    (folder / "adapter_model.safetensors").unlink()
    step = only(tmp_path)
    assert (step.state, [os.path.basename(p.path) for p in step.problems]) == (
        "incomplete", ["adapter_model.safetensors"],
    )  # fmt: skip


def test_an_adapter_in_a_folder_of_a_step_is_part_of_it(tmp_path: Path) -> None:
    """As peft saves further ones, by name."""
    folder = write_step(tmp_path / "run", 10)
    put(folder / "reference/adapter_config.json", adapter_config("x"))
    put(folder / "reference/adapter_model.safetensors")
    step = only(tmp_path)
    assert roles(step)["reference/adapter_model.safetensors"] == "adapter"


def test_deepspeed(tmp_path: Path) -> None:
    """A folder below holds the optimizer a rank; how many there were, the states of random numbers tell."""
    folder = write_step(tmp_path / "run", 10)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
    for rank in range(3):
        put(folder / f"rng_state_{rank}.pth")
        put(folder / f"global_step10/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    put(folder / "global_step10/mp_rank_00_model_states.pt")
    put(folder / "latest", "global_step10")
    put(folder / "zero_to_fp32.py", "#")
    step = only(tmp_path)
    assert (step.state, step.resumable, step.ranks) == ("complete", True, ((0, 1, 2), ()))
    assert [part.rank for part in step.having("optimizer")] == [0, 1, 2]
    assert roles(step)["global_step10/mp_rank_00_model_states.pt"] == "other"
    (folder / "global_step10/bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    step = only(tmp_path)
    assert (step.state, step.resumable, step.ranks) == ("incomplete", False, ((0, 1), (2,)))
    (problem,) = step.problems
    assert problem.path == str(folder / "global_step10/bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt")
    # Stage 3 without gathering: the model is there only, in shards.
    (folder / "model.safetensors").unlink()
    assert roles(only(tmp_path))["global_step10/mp_rank_00_model_states.pt"] == "model"


def test_fsdp(tmp_path: Path) -> None:
    """Sharded states are distributed checkpoints in folders below, and parts of the step rather than of their own."""
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = write_step(tmp_path / "run", 10)
    for name in ("optimizer.pt", "model.safetensors"):
        (folder / name).unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        save({"w": torch.arange(4.0)}, checkpoint_id=folder / name, no_dist=True)
    step = only(tmp_path)
    assert (step.layout, step.state, step.resumable) == ("huggingface", "complete", True)
    assert {name: role for name, role in roles(step).items() if "/" in name} == {
        "pytorch_model_fsdp_0/.metadata": "index",
        "pytorch_model_fsdp_0/__0_0.distcp": "model",
        "optimizer_0/.metadata": "index",
        "optimizer_0/__0_0.distcp": "optimizer",
    }
    assert {path: part.role for part in step.parts if (path := part.path).endswith("__0_0.distcp")} == {
        str(folder / "pytorch_model_fsdp_0/__0_0.distcp"): "model",
        str(folder / "optimizer_0/__0_0.distcp"): "optimizer",
    }
    data = folder / "pytorch_model_fsdp_0/__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-100])
    assert [(p.code, p.path) for p in only(tmp_path).problems] == [("truncated", str(data))]
    data.unlink()
    assert [(p.code, p.path) for p in only(tmp_path).problems] == [("missing-part", str(data))]
    shutil.rmtree(folder / "pytorch_model_fsdp_0")
    assert [os.path.basename(p.path) for p in only(tmp_path).problems] == ["model.safetensors"]
    put(folder / "model.safetensors")
    assert only(tmp_path).state == "complete"
    (folder / "optimizer_0/.metadata").unlink()
    step = only(tmp_path)
    assert (step.state, [p.code for p in step.problems]) == ("incomplete", ["missing-part"])


# --- models in several files


def write_shards(folder: Path, count: int = 3, suffix: str = "safetensors", base: str = "model") -> dict[str, Any]:
    """Shards of one tensor each, and their index."""
    names = [f"{base}-{number:05}-of-{count:05}.{suffix}" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        put(folder / name, {f"w{number}": torch.arange(4.0)})
    index = {"metadata": {"total_size": 16 * count}, "weight_map": {f"w{n}": name for n, name in enumerate(names)}}
    put(folder / f"{base}.{suffix}.index.json", index)
    return index


@pytest.mark.parametrize(("suffix", "base"), [("safetensors", "model"), ("bin", "pytorch_model")])
def test_shards(tmp_path: Path, suffix: str, base: str) -> None:
    folder = write_step(tmp_path / "run", 10)
    (folder / "model.safetensors").unlink()
    write_shards(folder, 3, suffix, base)
    step = only(tmp_path)
    assert step.state == "complete"
    assert [os.path.basename(part.path) for part in step.having("model", "index")] == [
        *(f"{base}-0000{n}-of-00003.{suffix}" for n in (1, 2, 3)), f"{base}.{suffix}.index.json",
    ]  # fmt: skip
    (folder / f"{base}-00002-of-00003.{suffix}").unlink()
    step = only(tmp_path)
    assert (step.state, [(p.code, os.path.basename(p.path)) for p in step.problems]) == (
        "incomplete", [("missing-part", f"{base}-00002-of-00003.{suffix}")],
    )  # fmt: skip


def test_shards_without_their_index(tmp_path: Path) -> None:
    """Their names tell how many there should be; nothing reads them without the index."""
    put(tmp_path / "m/config.json")
    write_shards(tmp_path / "m")
    (tmp_path / "m/model.safetensors.index.json").unlink()
    (tmp_path / "m/model-00003-of-00003.safetensors").unlink()
    lacking = [os.path.basename(problem.path) for problem in only(tmp_path).problems]
    assert lacking == ["model.safetensors.index.json", "model-00003-of-00003.safetensors"]


def test_an_index_whose_shards_are_all_gone(tmp_path: Path) -> None:
    put(tmp_path / "m/config.json")
    write_shards(tmp_path / "m", 20)
    for path in (tmp_path / "m").glob("model-*"):
        path.unlink()
    model = only(tmp_path)
    assert (model.state, len(model.problems)) == ("incomplete", 8)


def test_shards_of_another_size_are_left_alone(tmp_path: Path) -> None:
    put(tmp_path / "m/config.json")
    put(tmp_path / "m/model-00001-of-00009.safetensors")
    write_shards(tmp_path / "m")
    model = only(tmp_path)
    assert (model.state, len(model.parts)) == ("complete", 5)


BAD_INDEXES: dict[str, Any] = {
    "nothing": {},
    "a list": [],
    "a text": "no JSON",
    "no map": {"weight_map": ["model.safetensors"]},
    "an empty map": {"weight_map": {}},
    "a number": {"weight_map": {"w": 1}},
    "a list of names": {"weight_map": {"w": ["a.safetensors"]}},
    "no name": {"weight_map": {"w": ""}},
    "up": {"weight_map": {"w": "../secret.safetensors"}},
    "dots": {"weight_map": {"w": ".."}},
    "absolute": {"weight_map": {"w": "/etc/passwd.safetensors"}},
    "below": {"weight_map": {"w": "sub/a.safetensors"}},
    "backslash": {"weight_map": {"w": "..\\a.safetensors"}},
    "drive": {"weight_map": {"w": "C:a.safetensors"}},
    "zero": {"weight_map": {"w": "a\0.safetensors"}},
    "another suffix": {"weight_map": {"w": "pytorch_model.bin"}},
}


@pytest.mark.parametrize("what", BAD_INDEXES)
def test_an_index_that_is_none(tmp_path: Path, what: str) -> None:
    """Refused in one sentence; its folder is listed, as incomplete, and nothing outside it is looked at."""
    put(tmp_path / "m/config.json")
    path = put(tmp_path / "m/model.safetensors.index.json", BAD_INDEXES[what])
    with pytest.raises(CkptError) as refusal:
        shard_names(str(path))
    assert refusal.value.message.startswith("model.safetensors.index.json")
    assert "\n" not in refusal.value.message and not refusal.value.message.endswith(".")
    model = only(tmp_path)
    assert (model.state, [problem.code for problem in model.problems]) == ("incomplete", ["bad-index"])


def test_an_index_beyond_the_limit(tmp_path: Path) -> None:
    good = {"weight_map": {"w": "a.safetensors"}}
    path = put(tmp_path / "model.safetensors.index.json", json.dumps(good))
    os.truncate(path, MAX_INDEX_BYTES + 1)
    with pytest.raises(CkptError, match="larger than 64 MiB"):
        shard_names(str(path))


@pytest.mark.parametrize("indent", [None, 2])
def test_an_index_of_a_trillion_parameters(tmp_path: Path, indent: int | None) -> None:
    """Of 6 MB, as the largest models have: the same shards are found as in a short one, and what is cut off."""
    experts = [f"model.layers.{n // 1000}.mlp.experts.{n % 1000}.down_proj.weight_scale_inv" for n in range(60_000)]
    placed = {name: f"model-{n // 1000 + 1:05}-of-000060.safetensors" for n, name in enumerate(experts)}
    told = {"total_size": 1, "format": "pt", "made by": "a.bin", "made of": "one.safetensors"}
    made = json.dumps({"metadata": told, "weight_map": placed}, indent=indent) + "\n"
    path = put(tmp_path / "m/model.safetensors.index.json", made)
    assert len(made) > 5_000_000 and shard_names(str(path)) == tuple(sorted(set(placed.values())))
    put(tmp_path / "m/config.json")
    for name in set(placed.values()):
        put(tmp_path / "m" / name)
    assert only(tmp_path).state == "complete"
    os.unlink(tmp_path / "m/model-00033-of-000060.safetensors")
    assert [problem.code for problem in only(tmp_path).problems] == ["missing-part"]
    for broken, why in {
        made[:-20]: "does not end",
        made.replace("weight_map", "weights"): "holds no weight_map",
        made.replace("model-00007", "../00007"): "no plain file name",
        made.replace(".safetensors", ".bin"): "holds no weight_map",
    }.items():
        path.write_text(broken)
        with pytest.raises(CkptError, match=why):
            shard_names(str(path))


# --- published models


def test_forms_of_a_published_model(tmp_path: Path) -> None:
    """One file or shards, of either format, with or without a variant; what the folder is called does not matter."""
    for name, files in {
        "a": ["model.safetensors"],
        "b": ["pytorch_model.bin"],
        "c": ["model.fp16.safetensors"],
        "d": ["diffusion_pytorch_model.safetensors"],
        "step-9/final": ["model.safetensors", "vocab.json", "merges.txt", "chat_template.jinja"],
    }.items():
        for file in (*files, "config.json"):
            put(tmp_path / name / file)
    write_shards(tmp_path / "e")
    put(tmp_path / "f/config.json")
    write_shards(tmp_path / "f", 2, "bin", "pytorch_model")
    index = write_shards(tmp_path / "g", 2, base="model.fp16")
    put(tmp_path / "g/model.safetensors.index.fp16.json", index)
    (tmp_path / "g/model.fp16.safetensors.index.json").unlink()
    there = found(age(tmp_path))
    assert sorted(there) == ["a", "b", "c", "d", "e", "f", "g", "step-9/final"]
    assert {(c.layout, c.state, c.step, c.unit, c.resumable) for c in there.values()} == {
        ("huggingface", "complete", None, None, None)
    }
    assert [len(there[name].having("model")) for name in "abcdefg"] == [1, 1, 1, 1, 3, 2, 2]
    assert roles(there["step-9/final"])["chat_template.jinja"] == "tokenizer"
    assert there["c"].name == there["g"].name == "model.fp16"


def test_of_several_forms_one_is_the_model(tmp_path: Path) -> None:
    """The one transformers takes; the others lie beside it, and are not looked into."""
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"):
        put(tmp_path / "m" / name)
    write_shards(tmp_path / "m", 2, "bin", "pytorch_model")
    (tmp_path / "m/pytorch_model-00002-of-00002.bin").unlink()
    model = only(tmp_path)
    assert [os.path.basename(part.path) for part in model.having("model")] == ["model.safetensors"]
    assert model.state == "complete"
    assert roles(model)["pytorch_model.bin"] == roles(model)["model.fp16.safetensors"] == "other"


def test_an_export_beside_a_published_model(tmp_path: Path, call: Run) -> None:
    """What convert makes of it is listed with it, and does not take its place."""
    put(tmp_path / "m/config.json")
    put(tmp_path / "m/pytorch_model.bin")
    done = call("convert", tmp_path / "m/pytorch_model.bin")
    assert done.code == 0, done.err
    model = only(tmp_path)
    assert roles(model) == {
        "pytorch_model.bin": "model",
        "config.json": "config",
        "pytorch_model.safetensors": "export",
    }
    (tmp_path / "m/pytorch_model.bin").unlink()
    assert {c.layout for c in found(tmp_path).values()} == {"loose"}


@pytest.mark.parametrize(
    "files",
    [
        ["config.json"],
        ["config.json", "tokenizer.json", "README.md"],
        ["config.json", "model.txt"],
        ["config.json", "mymodel.safetensors.txt"],
        ["adapter_config.json"],
        ["generation_config.json", "trainer_state.json"],
        ["config.index.json"],
    ],
)
def test_no_models(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        put(tmp_path / "m" / name, "{}")
    assert found(tmp_path) == {}


def test_a_published_adapter(tmp_path: Path) -> None:
    put(tmp_path / "lora/adapter_config.json", adapter_config("x"))
    put(tmp_path / "lora/adapter_model.bin")
    adapter = only(tmp_path)
    assert (adapter.ref, adapter.name, adapter.state) == ("lora", "adapter_model", "complete")
    assert roles(adapter) == {"adapter_model.bin": "adapter", "adapter_config.json": "config"}


def test_metadata_of_a_published_model(tmp_path: Path, call: Run) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        put(tmp_path / "m" / name)
    assert call("inspect", "meta", tmp_path / "m", "--json").json["meta"] == CONFIG


def test_two_layouts_in_one_folder(tmp_path: Path) -> None:
    """Mistral publishes both forms side by side: each is told by its own name."""
    for name in ("config.json", "model.safetensors", "params.json", "consolidated.safetensors"):
        put(tmp_path / "m" / name)
    there = found(tmp_path)
    assert {ref: c.layout for ref, c in there.items()} == {"m/model": "huggingface", "m/consolidated": "meta"}
    parts = [part.path for c in there.values() for part in c.parts]
    assert len(parts) == len(set(parts)) == 4


def test_many_steps_are_listed_in_time(tmp_path: Path) -> None:
    """1,000 steps; the time is generous, for what it guards against is a file read over and over."""
    for step in range(1000):
        folder = tmp_path / f"run/checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "config.json", "training_args.bin"):
            (folder / name).write_text("x")
        write_state(folder, state_of(10))
    begin = time.perf_counter()
    assert len(found(tmp_path)) == 1000
    assert time.perf_counter() - begin < 2


# --- real ones


def test_real_runs(shared: Path) -> None:
    """Every step of every run that is there, whole and resumable, each file but the expectations a part."""
    for run in sorted((shared / "real/trainer").iterdir()):
        folders = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
        there = found(run)
        assert list(there) == [f"{run.name}/{folder.name[11:]}" for folder in folders]
        for folder, step in zip(folders, there.values()):
            assert set(roles(step)) == {path.name for path in folder.iterdir()}
            assert (step.state, step.resumable) == ("complete", True)
            state = json.loads((folder / "trainer_state.json").read_text())
            rows = [row for row in state["log_history"] if row["step"] == step.step and "eval_loss" in row]
            assert dict(step.metrics)["eval_loss"] == rows[-1]["eval_loss"]


def test_the_real_best_step_stays(shared: Path, tmp_path: Path, call: Run) -> None:
    """Of a run that was moved since: the path in its state leads nowhere."""
    run = tmp_path / "moved"
    shutil.copytree(shared / "real/trainer/limit2-best", run, copy_function=shutil.copyfile)
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    state = json.loads((run / "checkpoint-30/trainer_state.json").read_text())
    assert not os.path.exists(state["best_model_checkpoint"])
    state.update(best_global_step=None, best_model_checkpoint=state["best_model_checkpoint"][:-2] + "20")
    write_state(run / "checkpoint-30", state)
    age(run)
    assert plan(call, run, "--keep", "1") == {"keep": ["moved/20", "moved/30"], "remove": []}


def test_real_models(shared: Path) -> None:
    for root in ("hf", "families", "gpt2/nano_gpt/export_000020"):
        folders = [path.parent for path in (shared / "real" / root).rglob("config.json")]
        there = {c.dir: c for c in found(shared / "real" / root).values() if c.layout == "huggingface"}
        assert set(there) == {str(folder) for folder in folders}
        for model in there.values():
            names = set(roles(model))
            assert model.state == "complete"
            assert set(os.listdir(model.dir)) - names <= {"expected.json", "tune.pt", "meta.pth"}
            assert names.isdisjoint({"expected.json", "tune.pt", "meta.pth"})


def test_fsdp_in_one_file(tmp_path: Path) -> None:
    """FULL_STATE_DICT: the model under a name of FSDP's, alone or beside what the Trainer saved of it."""
    common = ("trainer_state.json", "training_args.bin", "scheduler.pt", "optimizer.bin", "pytorch_model_fsdp.bin")
    for name in common:
        put(tmp_path / "alone" / "checkpoint-10" / name, {})
    for name in (*common, "model.safetensors", "config.json"):
        put(tmp_path / "both" / "checkpoint-10" / name, {})
    there = found(age(tmp_path))
    assert {ref: c.state for ref, c in there.items()} == {"alone/10": "complete", "both/10": "complete"}
    models = {ref: [os.path.basename(part.path) for part in c.having("model")] for ref, c in there.items()}
    assert models == {"alone/10": ["pytorch_model_fsdp.bin"], "both/10": ["model.safetensors"]}
    assert "pytorch_model_fsdp.bin" in [os.path.basename(part.path) for part in there["both/10"].having("other")]
