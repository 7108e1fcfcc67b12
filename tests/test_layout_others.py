"""accelerate, fairseq, LitGPT, and models that lie in several folders; and that no layout looks at a run n times n."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_cli.checkpoint import Checkpoint, Part, Problem
from ckpt_cli.discover import discover
from ckpt_cli.layouts import layout_named
from ckpt_cli.layouts._torchtune_recipe import UNPAIRED
from tests.conftest import Run

OLD = 1_700_000_000


def put(path: Path, value: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".json", ".yaml"):
        path.write_text(json.dumps({} if value is None else value))
    elif path.suffix == ".safetensors":
        save_file({"w": torch.arange(4.0)}, path)
    else:
        torch.save({"w": torch.arange(4.0)} if value is None else value, path)
    os.utime(path, (OLD, OLD))
    return path


def found(root: Path) -> dict[str, Checkpoint]:
    return {c.ref: c for c in discover(str(root)).checkpoints}


def roles(checkpoint: Checkpoint) -> dict[str, str]:
    """Role by the path of a part below the checkpoint's own folder."""
    return {os.path.relpath(part.path, checkpoint.dir): part.role for part in checkpoint.parts}


def pruned(call: Run, root: Path, *arguments: str) -> list[str]:
    done = call("prune", root, *(arguments or ("--keep", "1")), "-n", "-q")
    assert done.code == 0, done.err
    return done.out.split()


# --- accelerate


def save_state(folder: Path, *more: str, model: str = "model.safetensors", processes: int = 1) -> Path:
    """The names that accelerate 1.x gives, as its save_state writes them."""
    states = [f"random_states_{number}.pkl" for number in range(processes)]
    for name in (model, "optimizer.bin", "scheduler.bin", *states, *more):
        put(folder / name)
    return folder


@pytest.mark.parametrize("model", ["model.safetensors", "pytorch_model.bin"])
def test_saves_that_accelerate_numbers(tmp_path: Path, call: Run, model: str) -> None:
    root = tmp_path / "project/checkpoints"
    for number in (0, 2, 10):
        save_state(root / f"checkpoint_{number}", "sampler.bin", "scaler.pt", "custom_checkpoint_0.pkl", model=model)
    listed = found(tmp_path / "project")
    assert list(listed) == ["checkpoints/0", "checkpoints/2", "checkpoints/10"]
    last = listed["checkpoints/10"]
    assert (last.layout, last.unit, last.state, last.resumable) == ("accelerate", "step", "complete", True)
    assert roles(last) == {
        model: "model", "optimizer.bin": "optimizer", "random_states_0.pkl": "other", "scheduler.bin": "other",
        "sampler.bin": "other", "scaler.pt": "other", "custom_checkpoint_0.pkl": "other",
    }  # fmt: skip
    assert call("latest", root, "--field", "path").out == f"{root}/checkpoint_10/{model}\n"
    assert pruned(call, root) == ["checkpoints/0", "checkpoints/2"]


def test_saves_that_a_script_names(tmp_path: Path, call: Run) -> None:
    for name in ("epoch_0", "epoch_1", "step_30", "best"):
        save_state(tmp_path / "out" / name, "model_1.safetensors", "optimizer_1.bin", processes=2)
    listed = found(tmp_path / "out")
    assert {ref: (c.layout, c.unit) for ref, c in listed.items()} == {
        "best": ("accelerate", None), "out/0": ("accelerate", "epoch"), "out/1": ("accelerate", "epoch"),
        "out/30": ("accelerate", "step"),
    }  # fmt: skip
    assert sorted(roles(listed["out/0"]).values()) == ["model"] * 2 + ["optimizer"] * 2 + ["other"] * 3
    assert pruned(call, tmp_path / "out") == ["out/0", "out/1"]


@pytest.mark.parametrize("lost", ["model.safetensors", "random_states_0.pkl"])
def test_a_save_of_accelerate_that_was_cut_off(tmp_path: Path, lost: str) -> None:
    (save_state(tmp_path / "out/checkpoint_1", processes=2) / lost).unlink()
    (only,) = found(tmp_path / "out").values()
    assert (only.state, only.resumable, [p.code for p in only.problems]) == ("incomplete", False, ["missing-part"])
    assert only.problems[0].path == f"{tmp_path}/out/checkpoint_1/{lost}"


def test_deepspeed_under_accelerate(tmp_path: Path) -> None:
    folder = tmp_path / "out/checkpoint_1"
    for rank in range(2):
        put(folder / f"random_states_{rank}.pkl")
        put(folder / f"pytorch_model/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    put(folder / "pytorch_model/mp_rank_00_model_states.pt")
    (only,) = found(tmp_path).values()
    assert (only.layout, only.state, only.resumable) == ("accelerate", "complete", True)
    assert only.ranks is not None and only.ranks.present == (0, 1)
    (folder / "pytorch_model/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    (only,) = found(tmp_path).values()
    assert only.ranks is not None and (only.state, only.ranks.missing) == ("incomplete", (0,))


def test_the_steps_of_a_trainer_are_not_accelerate_s(tmp_path: Path) -> None:
    """The Trainer writes with accelerate's help; a training script of diffusers under the Trainer's names."""
    save_state(tmp_path / "a/checkpoint-10", "training_args.bin")
    put(save_state(tmp_path / "b/checkpoint-10") / "trainer_state.json", {"global_step": 10})
    save_state(tmp_path / "c/checkpoint-10")
    assert {ref: (c.layout, c.step, c.resumable) for ref, c in found(tmp_path).items()} == {
        "a/10": ("huggingface", 10, False), "b/10": ("huggingface", 10, True), "c/10": ("huggingface", 10, True)
    }  # fmt: skip


# --- fairseq


def test_fairseq(tmp_path: Path, call: Run) -> None:
    root = tmp_path / "checkpoints"
    names = ["checkpoint_last", "checkpoint_best", "checkpoint.best_loss_4.3200"]
    for name in ("checkpoint1", "checkpoint2", "checkpoint12", "checkpoint_2_5000", "checkpoint_12_10000", *names):
        put(root / f"{name}.pt")
    listed = found(root)
    assert {c.layout for c in listed.values()} == {"fairseq"}
    assert [(c.ref, c.unit) for c in listed.values() if c.step is not None] == [
        ("checkpoints/1", "epoch"), ("checkpoints/2", "epoch"), ("checkpoints/12", "epoch"),
        ("checkpoints/5000", "step"), ("checkpoints/10000", "step"),
    ]  # fmt: skip
    assert {c.ref for c in listed.values() if c.step is None} == {f"checkpoints/{name}" for name in names}
    assert call("latest", root, "--field", "path").out == f"{root}/checkpoint_12_10000.pt\n"
    # What has no number stays, also where only a step is asked for.
    assert pruned(call, root) == [f"checkpoints/{number}" for number in (1, 2, 12, 5000)]
    assert pruned(call, root, "--keep-step", "2") == [f"checkpoints/{number}" for number in (1, 12, 5000)]


def test_shards_of_fairseq(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"run/checkpoint1-shard{number}.pt")
        put(tmp_path / f"run/checkpoint_last-shard{number}.pt")
    first, last = found(tmp_path).values()
    assert [(c.state, len(c.having("model"))) for c in (first, last)] == [("complete", 3)] * 2
    (tmp_path / "run/checkpoint1-shard0.pt").unlink()
    lacking = found(tmp_path)["run/1"]
    assert (lacking.state, [os.path.basename(p.path) for p in lacking.problems]) == (
        "incomplete", ["checkpoint1-shard0.pt"]
    )  # fmt: skip


@pytest.mark.parametrize(
    "names", [("checkpoint1",), ("checkpoint_best",), ("checkpoint_last",), ("checkpoint1", "checkpoint2")]
)
def test_names_that_others_give_too(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path / f"run/{name}.pt")
    assert {c.layout for c in found(tmp_path).values()} == {"loose"}


# --- LitGPT


def test_litgpt(tmp_path: Path, call: Run) -> None:
    root = tmp_path / "out/pretrain"
    for name in ("step-00001000", "step-00002000", "final"):
        for file in ("lit_model.pth", "model_config.yaml", "hyperparameters.yaml", "tokenizer.json"):
            put(root / name / file)
    listed = found(tmp_path / "out")
    assert list(listed) == ["pretrain/final", "pretrain/1000", "pretrain/2000"]
    assert roles(listed["pretrain/2000"]) == {
        "lit_model.pth": "model", "model_config.yaml": "other", "hyperparameters.yaml": "other",
        "tokenizer.json": "tokenizer",
    }  # fmt: skip
    assert call("latest", root, "--field", "step").out == "2000\n"
    assert call("inspect", "meta", "pretrain/final", "--root", tmp_path / "out").code == 0
    assert pruned(call, root) == ["pretrain/1000"]
    assert pruned(call, root, "--keep-step", "1000", "--trust-steps") == []
    put(tmp_path / "lora/final/lit_model.pth.lora")
    assert found(tmp_path / "lora")["lora/final"].having("adapter")
    before = {root: found(root)[ref] for root, ref in ((tmp_path / "out", "pretrain/final"), (root, "pretrain/final"))}
    for step in ("step-00001000", "step-00002000"):
        shutil.rmtree(root / step)
    assert {root: found(root)["pretrain/final"] for root in before} == before
    assert found(root / "final")["pretrain/final"].run_dir == str(root)


# --- models in several folders


def test_a_pipeline_of_diffusers_is_one_model(tmp_path: Path) -> None:
    root = tmp_path / "sd"
    kinds = {"unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"], "text_encoder": ["transformers", "CLIP"]}
    kinds |= {"scheduler": ["diffusers", "PNDM"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    put(root / "model_index.json", {"_class_name": "SD", "safety_checker": [None, None], **kinds})
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        put(root / f"{name}.safetensors")
        put(root / os.path.dirname(name) / "config.json")
    put(root / "scheduler/scheduler_config.json")
    put(root / "tokenizer/vocab.json")
    (only,) = found(tmp_path).values()
    assert (only.ref, only.layout, only.state) == ("sd", "huggingface", "complete")
    assert roles(only) == {
        "unet/diffusion_pytorch_model.safetensors": "model", "vae/diffusion_pytorch_model.safetensors": "model",
        "text_encoder/model.safetensors": "model", "model_index.json": "config", "unet/config.json": "config",
        "vae/config.json": "config", "text_encoder/config.json": "config", "scheduler/scheduler_config.json": "config",
        "tokenizer/vocab.json": "tokenizer",
    }  # fmt: skip
    for path in (root / "vae").iterdir():
        path.unlink()
    (root / "vae").rmdir()
    (only,) = found(tmp_path).values()
    assert (only.state, [p.path for p in only.problems]) == ("incomplete", [f"{root}/vae"])


@pytest.mark.parametrize("index", ["[]", "{", '{"a": ["b", "c"], "../x": ["d", "e"], "n": 3}'])
def test_the_index_of_a_pipeline_is_not_trusted(tmp_path: Path, index: str) -> None:
    put(tmp_path / "sd/unet/diffusion_pytorch_model.safetensors")
    (tmp_path / "sd/model_index.json").write_text(index)
    os.utime(tmp_path / "sd/model_index.json", (OLD, OLD))
    put(tmp_path / "x/model.safetensors")
    for checkpoint in found(tmp_path).values():
        assert all(part.path.startswith(checkpoint.dir + "/") for part in checkpoint.parts)
        assert all(problem.path.startswith(f"{tmp_path}/sd") for problem in checkpoint.problems)


def test_a_step_of_a_training_script_of_diffusers(tmp_path: Path, call: Run) -> None:
    """Its model lies in folders, which go with the step and are no checkpoints of their own."""
    for number in (500, 1000):
        folder = save_state(tmp_path / f"run/checkpoint-{number}", model="scaler.pt")
        for name in ("unet", "unet_ema"):
            put(folder / name / "diffusion_pytorch_model.safetensors")
            put(folder / name / "config.json")
    put(save_state(tmp_path / "run/checkpoint-1500", model="scaler.pt") / "pytorch_lora_weights.safetensors")
    listed = found(tmp_path / "run")
    assert {ref: (c.state, c.resumable) for ref, c in listed.items()} == {
        f"run/{number}": ("complete", True) for number in (500, 1000, 1500)
    }
    assert len(listed["run/500"].having("model")) == 2
    assert len(listed["run/1500"].having("adapter")) == 1
    assert call("prune", tmp_path / "run", "--keep", "1", "--yes").code == 0
    assert os.listdir(tmp_path / "run") == ["checkpoint-1500"]


def test_modules_of_sentence_transformers(tmp_path: Path) -> None:
    root = tmp_path / "mini"
    put(root / "model.safetensors")
    for name in ("config.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json"):
        put(root / name)
    put(root / "2_Dense/model.safetensors")
    (only,) = found(tmp_path).values()
    assert only.ref == "mini" and [os.path.basename(p.path) for p in only.having("model")] == ["model.safetensors"]
    assert roles(only)["2_Dense/model.safetensors"] == "other"


# --- what each needs, at a cost that grows with the run


class Counted(list[Checkpoint]):
    """A run that counts how often its members are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Checkpoint]:
        for checkpoint in super().__iter__():
            self.looks += 1
            yield checkpoint


def run_of(layout: str, count: int) -> Counted:
    """Steps in folders of their own, or files side by side, each an adapter of a model that is not there."""
    made = Counted()
    for number in range(count):
        own = "/r" if layout in ("loose", "lightning", "fairseq") else f"/r/step_{number}"
        part = Part("adapter", f"{own}/file_{number}", 1, OLD)
        step = None if layout == "loose" or not number else number
        problems = (Problem(UNPAIRED, "", own),) if layout == "torchtune" else ()
        made.append(
            Checkpoint(
                layout,
                None,
                "r",
                step,
                None if step is None else "step",
                str(number),
                own,
                (part,),
                problems=problems,
                home="/r",
            )
        )
    return made


@pytest.mark.parametrize(
    "layout", ["loose", "huggingface", "lightning", "torchtune", "accelerate", "fairseq", "litgpt"]
)
def test_what_is_needed_is_found_without_going_through_the_run_each_time(layout: str) -> None:
    run = run_of(layout, 300)
    needs = layout_named(layout).needs
    answers = [list(needs(checkpoint, run)) for checkpoint in list(run)]
    run.looks -= len(run)
    assert run.looks <= 6 * len(run)
    assert sum(map(len, answers)) <= 2 * len(run)
    # All that lie beside each other stay where one does: from any, all others are reached.
    if layout in ("loose", "torchtune"):
        at = {checkpoint.name: place for place, checkpoint in enumerate(list(run))}
        for start in (0, 1, 299):
            reached, pending = {start}, [start]
            while pending:
                new = {at[c.name] for c in answers[pending.pop()]} - reached
                reached |= new
                pending += new
            assert len(reached) == 300
