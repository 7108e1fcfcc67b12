"""Meta's models, Lightning's checkpoints, and files that nobody else claims."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from ckpt_cli.checkpoint import Checkpoint, checkpoint_record
from ckpt_cli.discover import discover, walk
from ckpt_cli.layouts import loose
from tests.conftest import Run

OLD = 1_700_000_000


def write(root: Path, *names: str, content: bytes | None = None) -> None:
    """Real torch files, or files of these bytes, old enough to be no one's work in progress."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
        elif path.suffix == ".json":
            path.write_text(json.dumps({"dim": 4}))
        else:
            torch.save({"state_dict": {"w": torch.arange(4.0)}, "global_step": 7, "epoch": 1}, path)
        os.utime(path, (OLD, OLD))


def found(root: Path) -> dict[str, Checkpoint]:
    return {checkpoint.ref: checkpoint for checkpoint in discover(str(root)).checkpoints}


def roles(checkpoint: Checkpoint) -> dict[str, str]:
    return {os.path.relpath(part.path, checkpoint.dir): part.role for part in checkpoint.parts}


# --- Meta


def test_meta(tmp_path: Path) -> None:
    """One shard or several, in a folder of its own or below a published model."""
    write(tmp_path, "llama-7b/consolidated.00.pth", "llama-7b/params.json", "llama-7b/checklist.chk")
    write(tmp_path, *(f"llama-70b/consolidated.{n:02}.pth" for n in range(8)), "llama-70b/params.json")
    write(tmp_path, "hub/config.json", "hub/model.safetensors", "hub/original/consolidated.00.pth")
    write(tmp_path, "hub/original/params.json", "hub/original/tokenizer.model")
    there = found(tmp_path)
    assert {ref: (c.layout, c.state) for ref, c in there.items()} == {
        "hub": ("huggingface", "complete"),
        "hub/original": ("meta", "complete"),
        "llama-7b": ("meta", "complete"),
        "llama-70b": ("meta", "complete"),
    }
    assert roles(there["llama-7b"]) == {
        "consolidated.00.pth": "model",
        "params.json": "config",
        "checklist.chk": "other",
    }
    assert roles(there["hub/original"])["tokenizer.model"] == "tokenizer"
    models = [os.path.basename(part.path) for part in there["llama-70b"].having("model")]
    assert models == [f"consolidated.{n:02}.pth" for n in range(8)]
    assert (there["llama-7b"].step, there["llama-7b"].unit, there["llama-7b"].resumable) == (None, None, None)


def test_what_a_model_of_meta_lacks(tmp_path: Path) -> None:
    write(tmp_path, "a/consolidated.00.pth", "a/consolidated.02.pth", "a/params.json", "b/consolidated.00.pth")
    write(tmp_path, "c/params.json", "d/consolidated.00.pth", content=b"")
    write(tmp_path, "d/params.json")
    lacking = {ref: [(p.code, os.path.basename(p.path)) for p in c.problems] for ref, c in found(tmp_path).items()}
    assert lacking == {
        "a": [("missing-part", "consolidated.01.pth")],
        "b": [("missing-part", "params.json")],
        "d": [("empty-file", "consolidated.00.pth")],
    }
    assert {c.state for c in found(tmp_path).values()} == {"incomplete"}


def test_names_that_look_like_metas(tmp_path: Path) -> None:
    write(tmp_path, "a/consolidated.0.pth", "a/consolidated.00.pt", "a/consolidated.pth", "a/xconsolidated.00.pth")
    write(tmp_path, "b/consolidated.safetensors", "a/params.json")
    assert {c.layout for c in found(tmp_path).values()} == {"loose"}


def test_what_lies_beside_a_model_of_meta(tmp_path: Path) -> None:
    """An export, a manifest, a pin."""
    write(tmp_path, "m/consolidated.00.pth", "m/params.json", "m/consolidated.00.safetensors")
    write(tmp_path, "m/consolidated.00.pth.sha256", "m/.keep", content=b"")
    (only,) = found(tmp_path).values()
    assert only.pinned and only.state == "complete"
    assert roles(only)["consolidated.00.safetensors"] == "export"
    assert roles(only)["consolidated.00.pth.sha256"] == "manifest"


def test_metadata_of_meta(tmp_path: Path, call: Run) -> None:
    write(tmp_path, "m/consolidated.00.pth", "m/params.json")
    assert call("inspect", "meta", tmp_path / "m", "--json").json["meta"] == {"dim": 4}


def test_the_real_model_of_meta(shared: Path) -> None:
    (model,) = found(shared / "real/meta").values()
    assert (model.ref, model.state) == ("meta-llama-f32", "complete")
    assert set(roles(model)) == {"consolidated.00.pth", "params.json", "checklist.chk"}


# --- Lightning


@pytest.mark.parametrize(
    ("name", "step", "unit", "metrics"),
    [
        ("epoch=3-step=16", 16, "step", {}),
        ("epoch=3-step=16-v1", 16, "step", {}),
        ("epoch=2-step=12-val_loss=0.6599", 12, "step", {"val_loss": 0.6599}),
        ("epoch=2-step=12-val_loss=0.6599-v2", 12, "step", {"val_loss": 0.6599}),
        ("epoch=03-val_loss=0.32", 3, "epoch", {"val_loss": 0.32}),
        ("sample-mnist-epoch=02-val_loss=0.32", 2, "epoch", {"val_loss": 0.32}),
        ("step=000500", 500, "step", {}),
        ("epoch=3_val_loss=-0.5", 3, "epoch", {"val_loss": -0.5}),
        ("epoch=1-step=9-val.acc=0.50-lr=1.0e-05", 9, "step", {"val.acc": 0.5, "lr": 1e-05}),
        ("epoch=1-step=9-val_loss=inf-x=nan", 9, "step", {}),
        ("epoch=1-step=9-val_loss=1e999", 9, "step", {}),
        ("global_step=40-val/loss=0.5", 40, "step", {"val/loss": 0.5}),
    ],
)
def test_names_of_lightning(tmp_path: Path, name: str, step: int, unit: str, metrics: dict[str, float]) -> None:
    """Step and metrics from the name; a slash in it makes a folder, and the run is the one above."""
    write(tmp_path, f"run/{name}.ckpt")
    for root in (tmp_path, tmp_path / "run", (tmp_path / f"run/{name}.ckpt").parent):
        (only,) = found(root).values()
        assert (only.layout, only.tag, only.step, only.unit, only.name) == ("lightning", "run", step, unit, name)
        assert (dict(only.metrics), only.resumable, only.state) == (metrics, None, "complete")
        assert only.run_dir == str(tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["03-0.66", "epoch3-step16", "best", "last_", "epochs=3", "xstep=5", "epoch=a", "last2"]
)
def test_names_that_say_nothing_are_loose(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"run/{name}.ckpt")
    (only,) = found(tmp_path).values()
    assert (only.layout, only.step, only.ref) == ("loose", None, "run")


def test_a_run_of_lightning(tmp_path: Path, call: Run) -> None:
    """Two of one step by their names, the last by its own; what is no checkpoint is left alone."""
    names = ["epoch=0-step=4", "epoch=0-step=4-v1", "epoch=1-step=8-val_loss=0.5", "last", "last-v1"]
    write(tmp_path, *(f"logs/version_0/checkpoints/{name}.ckpt" for name in names))
    write(tmp_path, "logs/version_0/hparams.yaml", "logs/version_0/checkpoints/other.ckpt", content=b"x")
    run = "logs/version_0/checkpoints"
    there = found(tmp_path)
    assert set(there) == {
        f"{run}/epoch=0-step=4", f"{run}/epoch=0-step=4-v1", f"{run}/8", f"{run}/last", f"{run}/last-v1",
    }  # fmt: skip
    assert there[f"{run}/last"].step is None
    assert call("latest", "checkpoints/last", "--root", tmp_path).out == f"{tmp_path}/{run}/last.ckpt\n"
    assert call("latest", tmp_path, "--field", "step").out == "8\n"
    assert call("latest", "checkpoints/best", "--root", tmp_path, "--field", "step").out == "8\n"
    assert checkpoint_record(there[f"{run}/8"])["metric"] == {"name": "val_loss", "value": 0.5, "goal": "min"}


def test_last_alone_is_the_run(tmp_path: Path) -> None:
    write(tmp_path, "run/last.ckpt")
    assert list(found(tmp_path)) == ["run"]


@pytest.mark.parametrize("link", [False, True])
def test_prune_leaves_the_last(tmp_path: Path, call: Run, link: bool) -> None:
    """Its step stands in no name, so it may be the newest; where it is a link, what it points to stays too."""
    write(tmp_path, "run/epoch=0-step=4.ckpt", "run/epoch=1-step=8.ckpt", "run/epoch=2-step=12.ckpt")
    if link:
        (tmp_path / "run/last.ckpt").symlink_to("epoch=0-step=4.ckpt")
    else:
        write(tmp_path, "run/last.ckpt")
    done = call("prune", tmp_path / "run", "--keep", "1", "--yes")
    assert done.code == 0, done.err
    left = {"last.ckpt", "epoch=2-step=12.ckpt"} | ({"epoch=0-step=4.ckpt"} if link else set())
    assert {path.name for path in (tmp_path / "run").iterdir()} == left


def test_metadata_of_lightning(tmp_path: Path, call: Run) -> None:
    write(tmp_path, "run/epoch=1-step=7.ckpt")
    assert call("inspect", "meta", tmp_path, "--key", "global_step").out == "7\n"


def test_the_real_run_of_lightning(shared: Path) -> None:
    there = found(shared / "real/lightning")
    assert {ref: dict(c.metrics) for ref, c in there.items()} == {
        "checkpoints/last": {},
        "checkpoints/12": {"val_loss": 0.6599},
        "checkpoints/16": {"val_loss": 0.6599},
    }
    assert {(c.layout, c.unit, c.state) for c in there.values() if c.step} == {("lightning", "step", "complete")}


# --- loose files


def test_loose_files(tmp_path: Path) -> None:
    """One alone is its folder; several are told by their stems."""
    write(tmp_path, "one/model.pt", "some/a.pth", "some/b.bin", "some/c.safetensors", "some/d.jit", "some/e.ckpt")
    write(tmp_path, "some/f.pth.tar")
    there = found(tmp_path)
    assert set(there) == {"one", "some/a", "some/b", "some/c", "some/d", "some/e", "some/f.pth"}
    assert {(c.layout, c.state) for c in there.values()} == {("loose", "complete")}
    one = there["one"]
    assert (one.step, one.unit, one.name, one.state, one.resumable) == (None, None, "model", "complete", None)


def test_roles_of_loose_files(tmp_path: Path) -> None:
    """What is left of a checkpoint whose rest is gone is no model."""
    expected = {
        "adapter_0": "adapter",
        "optim_000010_rank0": "optimizer",
        "optimizer": "optimizer",
        "optimum": "model",
        "recipe_state": "recipe",
    }
    write(tmp_path, *(f"{name}.pt" for name in expected))
    assert {c.name: c.parts[0].role for c in loose.scan(next(walk(str(tmp_path))))} == expected


def test_what_is_not_listed_as_loose(tmp_path: Path) -> None:
    """Other suffixes, hidden and temporary files, token data, what is neither a model nor an optimizer."""
    write(
        tmp_path,
        *("a.json", "b.txt", "c.npz", "d.pt.tmp", ".e.pt", "f.distcp", "g.tar", "pt", "h.PT~", "i.pkl", "j.onnx"),
        *("train.bin", "val.bin", "fineweb_train_000001.bin", "data/openwebtext_val.bin", "data.bin", "vocab.bin"),
        *("scheduler.pt", "scaler.pt", "rng_state_1.pth", "training_args.bin"),
        content=b"x",
    )
    (tmp_path / "folder.pt").mkdir()
    assert found(tmp_path) == {}


def test_loose_files_where_something_is_claimed(tmp_path: Path) -> None:
    """In or above such a folder nothing is loose; beside and below it is."""
    write(tmp_path, "top.pt", "a/x.pt", "a/run/y.pt", "a/run/model_000010.pt", "a/run/meta_000010.json")
    write(tmp_path, "a/run/below/z.pt", "beside/w.pt")
    assert {ref: c.layout for ref, c in found(tmp_path).items()} == {
        "a/run/10": "nanochat",
        "a/run/below": "loose",
        "beside": "loose",
    }


def test_one_stem_twice(tmp_path: Path) -> None:
    """A safetensors file beside a model is its export; of others the whole name tells."""
    write(tmp_path, "m/a.pt", "m/a.safetensors", "m/b.pt", "m/b.pth", "m/c.pt", "m/c.bin", "m/c.safetensors")
    there = found(tmp_path)
    assert {ref: roles(c) for ref, c in there.items()} == {
        "m/a": {"a.pt": "model", "a.safetensors": "export"},
        "m/b.pt": {"b.pt": "model"},
        "m/b.pth": {"b.pth": "model"},
        "m/c.pt": {"c.pt": "model"},
        "m/c.bin": {"c.bin": "model"},
        "m/c.safetensors": {"c.safetensors": "model"},
    }


def test_loose_files_that_are_damaged(tmp_path: Path) -> None:
    write(tmp_path, "m/a.pt", content=b"")
    (tmp_path / "m/b.pt").symlink_to("gone.pt")
    assert {ref: (c.state, [p.code for p in c.problems]) for ref, c in found(tmp_path).items()} == {
        "m/a": ("incomplete", ["empty-file"]),
        "m/b": ("incomplete", ["unreadable-part"]),
    }


def test_a_link_to_nothing_has_no_age(tmp_path: Path, call: Run) -> None:
    (tmp_path / "b.pt").symlink_to("gone.pt")
    done = call("list", tmp_path)
    assert done.out.rstrip("\n").split("\t") == [tmp_path.name, "incomplete", "0", "", "", "b.pt unreadable"]
    done = call("list", tmp_path, "--format", "table")
    assert done.out.splitlines()[1].split() == [tmp_path.name, "incomplete", "0", "B", "b.pt", "unreadable"]
    (only,) = call("list", tmp_path, "--json").json["checkpoints"]
    assert (only["modified"], only["bytes"], only["parts"]) == (None, 0, [])


def test_prune_takes_no_loose_file_for_an_older_one(tmp_path: Path, call: Run) -> None:
    """They are no steps of a run: one kept, all stay; asked for by name, the whole folder goes."""
    write(tmp_path, *(f"m/{letter}.pt" for letter in "abcdef"))
    done = call("prune", tmp_path / "m", "--keep", "1", "--yes")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "m").iterdir())) == 6
    done = call("prune", "m", "--root", tmp_path, "--keep", "0", "--allow-empty", "--yes")
    assert done.code == 0, done.err
    assert list((tmp_path / "m").iterdir()) == []


def test_a_loose_file_is_found_by_its_path_and_its_stem(tmp_path: Path, call: Run) -> None:
    write(tmp_path, "m/a.pt", "m/b.pt", "m/optimizer.pt")
    assert call("latest", tmp_path / "m/b.pt", "--field", "ref").out == "m/b\n"
    assert call("latest", "m/b", "--root", tmp_path).out == f"{tmp_path}/m/b.pt\n"
    for name in ("a", "optimizer"):
        done = call("inspect", "tensors", tmp_path / f"m/{name}.pt", "-q")
        assert (done.code, done.out) == (0, "state_dict.w\n"), done.err


def test_many_loose_files_in_time(tmp_path: Path, call: Run) -> None:
    """5,000 of them, listed and planned for."""
    (tmp_path / "m").mkdir()
    for number in range(5000):
        (tmp_path / f"m/{number}.pt").write_bytes(b"x")
    begin = time.perf_counter()
    assert len(found(tmp_path)) == 5000
    assert time.perf_counter() - begin < 2


def test_the_real_loose_files(shared: Path) -> None:
    """Each file of the collection is a model, or the export of the one it was made from."""
    there = found(shared / "real/zoo")
    parts = {os.path.basename(part.path) for c in there.values() for part in c.parts}
    assert parts == {path.name for path in (shared / "real/zoo").iterdir()} - {"expected.json"}
    assert {c.layout for c in there.values()} == {"loose"}
    assert [ref for ref, c in there.items() if c.problems] == ["zoo/damaged-empty"]


def test_numbers_in_names_are_listed_as_numbers(tmp_path: Path) -> None:
    """Though they say nothing else: whose names these are is not known."""
    for name in ("a_10.pt", "a_9.pt", "a_latest.pt", "a_1.pt"):
        (tmp_path / name).write_bytes(b"x")
    listed = [c.name for c in discover(str(tmp_path)).checkpoints]
    assert listed == ["a_1", "a_9", "a_10", "a_latest"]


@pytest.mark.parametrize(
    "form, unit",
    [
        ("iter_{}.pt", "step"), ("epoch{}.pth", "epoch"), ("model-step-{}.safetensors", "step"),
        ("checkpoint_epoch_{}.pth.tar", "epoch"), ("llama3.8b_iteration={}.bin", "step"), ("global_step{}.pt", "step"),
    ],
)  # fmt: skip
def test_one_series_of_loose_files_is_counted(tmp_path: Path, form: str, unit: str) -> None:
    """The numbers of a loop of somebody's own are its steps; what lies beside them has none."""
    write(tmp_path, *(f"m/{form.format(number)}" for number in (500, 1000, 9)), "m/best.pt")
    there = found(tmp_path)
    assert list(there) == ["m/best", "m/9", "m/500", "m/1000"]
    assert [(c.step, c.unit, c.layout) for c in there.values()] == [
        (None, None, "loose"), *((number, unit, "loose") for number in (9, 500, 1000))
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("model_epoch1.pt", "model_epoch2.pt", "optim_epoch1.pt"),
        ("a_step1.pt", "b_step2.pt"),
        ("step_1.pt", "epoch_1.pt"),
        ("step_1.pt", "step_1.pth"),
        ("step_1.pt", "step_01.pt"),
        ("epoch1_step1.pt", "epoch1_step2.pt"),
        ("multistep3.pt", "footstep_4.pt", "model_3.pt", "steps_5.pt", "step_5_rank0.pt"),
    ],
)
def test_what_may_belong_together_is_not_counted(tmp_path: Path, names: tuple[str, ...]) -> None:
    write(tmp_path, *(f"m/{name}" for name in names))
    assert {c.step for c in found(tmp_path).values()} == {None}


def test_prune_takes_the_oldest_of_a_series_and_leaves_what_lies_beside(tmp_path: Path, call: Run) -> None:
    write(tmp_path, *(f"m/iter_{number}.pt" for number in (500, 1000, 9)), "m/best.pt", "m/iter_9.safetensors")
    done = call("prune", tmp_path / "m", "--keep", 1, "--yes")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"iter_1000.pt", "best.pt"}
