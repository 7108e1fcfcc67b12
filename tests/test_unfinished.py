"""What was cut off or is still being written: names that last until all is there, large saves that lack files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.discover import discover
from ckpt_cli.layouts import _dcp, finished_name
from tests.conftest import Run

OLD = 1_700_000_000


def put(path: Path, value: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps({"step": 1} if value is None else value))
    elif path.suffix == ".safetensors":
        save_file({"w": torch.arange(4.0)}, path)
    else:
        torch.save({"model": {"w": torch.arange(4.0)}} if value is None else value, path)
    os.utime(path, (OLD, OLD))
    return path


def found(root: Path) -> dict[str, Checkpoint]:
    return {c.ref: c for c in discover(str(root)).checkpoints}


def states(root: Path) -> dict[str, str]:
    return {ref: c.state for ref, c in found(root).items()}


def test_finished_names() -> None:
    names = ("tmp-checkpoint-10", "a.pt.tmp", "b.incomplete", "c.part", "d.partial")
    assert [finished_name(name) for name in names] == ["checkpoint-10", "a.pt", "b", "c", "d"]
    for name in ("tmp-run", "tmp", "a.tmp.pt", "tmp-checkpoint-10-old", "template", "parts"):
        assert finished_name(name) == name


@pytest.mark.parametrize("suffix", [".tmp", ".partial", ".incomplete", ".part"])
@pytest.mark.parametrize(
    ("done", "cut_off", "layout"),
    [
        ("checkpoint_000010.bin", "checkpoint_000020.bin", "nano-gpt"),
        ("model_00010.pt", "model_00020.pt", "build-nanogpt"),
        ("epoch=1-step=10.ckpt", "epoch=2-step=20.ckpt", "lightning"),
        ("torchtune_model_0.pt", "torchtune_model_1.pt", "torchtune"),
    ],
)
def test_a_file_that_was_still_being_written(
    tmp_path: Path, call: Run, done: str, cut_off: str, layout: str, suffix: str
) -> None:
    """Listed as what it is, never the latest, never kept or removed by a policy; touched just now it is in progress."""
    root = tmp_path / "run"
    put(root / done)
    left = str(shutil.copy2(put(root / cut_off), root / (cut_off + suffix)))
    (root / cut_off).unlink()
    last, partial = found(root).values()
    assert (last.layout, last.state) == (layout, "complete")
    assert (partial.ref, partial.layout, partial.state) == (f"run/{cut_off}{suffix}", layout, "incomplete")
    assert [part.path for part in partial.parts] == [left]
    assert partial.problems[0].code == "unfinished"
    assert call("latest", root, "--field", "path").out == f"{root / done}\n"
    assert call("prune", root, "--keep", "1", "--yes").code == 0
    assert sorted(os.listdir(root)) == sorted([done, cut_off + suffix])
    os.utime(left)
    assert list(states(root).values()) == ["complete", "in-progress"]
    assert call("verify", root, "--json").json["results"][-1]["status"] == "skipped"


def test_what_is_left_beside_a_step_that_is_known(tmp_path: Path) -> None:
    """Of one step there is one checkpoint: that which is whole, or which lacks what was being written."""
    root = tmp_path / "d12"
    for name in ("model_000100.pt", "meta_000100.json", "meta_000200.json"):
        put(root / name)
    for name in ("model_000100.pt.tmp", "model_000200.pt.tmp", "notes.tmp", ".model_000400.pt.tmp"):
        shutil.copy2(root / "model_000100.pt", root / name)
    assert states(root) == {"d12/100": "complete", "d12/200": "incomplete"}
    shutil.copy2(root / "model_000100.pt", root / "model_000300.pt.tmp")
    assert states(root) == {"d12/100": "complete", "d12/200": "incomplete", "d12/model_000300.pt.tmp": "incomplete"}


def test_steps_of_the_trainer_that_were_cut_off(tmp_path: Path, call: Run) -> None:
    root = tmp_path / "run"
    config = {"model_type": "llama", "transformers_version": "5.23.0"}
    step = root / "checkpoint-10"
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "training_args.bin"):
        put(step / name)
    put(step / "config.json", config)
    put(step / "trainer_state.json", {"global_step": 10, "log_history": []})
    for name in ("tmp-checkpoint-20", "checkpoint-30.tmp", "checkpoint-40.incomplete"):
        shutil.copytree(step, root / name)
    # Its configuration is there, and of the model what safetensors was writing under a name of its own.
    put(root / "checkpoint-50/config.json", config)
    (root / "checkpoint-50/.tmpa1B2c3").write_bytes(b"x")
    os.utime(root / "checkpoint-50/.tmpa1B2c3", (OLD, OLD))
    assert states(root) == {
        "run/10": "complete",
        "run/tmp-checkpoint-20": "incomplete",
        "run/checkpoint-30.tmp": "incomplete",
        "run/checkpoint-40.incomplete": "incomplete",
        "run/50": "incomplete",
    }
    assert call("latest", root, "--field", "ref").out == "run/10\n"
    assert call("latest", root, "--before", "25", "--field", "ref").out == "run/10\n"
    plan = call("prune", root, "--keep", "1", "--json", "-n").json["groups"]
    assert [kept["ref"] for group in plan for kept in group["keep"]] == ["run/10"]
    assert [gone for group in plan for gone in group["remove"]] == []
    os.utime(root / "checkpoint-50/.tmpa1B2c3")
    assert states(root)["run/50"] == "in-progress"


def test_a_folder_called_so_by_others(tmp_path: Path) -> None:
    put(tmp_path / "run/checkpoint-10/config.json", {"a": 1})
    put(tmp_path / "tmp-run/model_000100.pt")
    put(tmp_path / "tmp-run/meta_000100.json")
    assert states(tmp_path) == {"tmp-run/100": "complete"}


def test_a_model_that_is_being_fetched(tmp_path: Path) -> None:
    """huggingface_hub leaves what it has not wholly below the folder, under the hash of its name."""
    put(tmp_path / "repo/config.json", {"model_type": "llama"})
    assert states(tmp_path) == {}
    part = tmp_path / "repo/.cache/huggingface/download/aGVsbG8=.0123abcd.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    assert states(tmp_path) == {"repo": "incomplete"}
    put(tmp_path / "repo/model.safetensors")
    assert states(tmp_path) == {"repo": "complete"}


_REVISION = "hub/models--me--tiny/snapshots/0123abcd"


@pytest.mark.parametrize("root", ["hub", "hub/models--me--tiny", "hub/models--me--tiny/snapshots", _REVISION])
def test_a_model_that_is_being_fetched_into_the_cache(tmp_path: Path, root: str) -> None:
    """huggingface_hub links a file into the revision once it has all of it, and keeps the rest beside its blobs."""
    blobs, revision = (tmp_path / "hub/models--me--tiny" / name for name in ("blobs", "snapshots/0123abcd"))
    put(blobs / "config.json", {"model_type": "llama"}).rename(blobs / "c0ffee")
    revision.mkdir(parents=True)
    (revision / "config.json").symlink_to("../../blobs/c0ffee")
    assert states(tmp_path / root) == {}
    (blobs / "decade.4f6f3c1a.incomplete").write_bytes(b"x")
    assert list(states(tmp_path / root).values()) == ["incomplete"]
    put(blobs / "model.safetensors").rename(blobs / "decade")
    (revision / "model.safetensors").symlink_to("../../blobs/decade")
    assert list(states(tmp_path / root).values()) == ["complete"]


@pytest.mark.parametrize("names", [("model.safetensors",), ("config.json", "model.safetensors", "tokenizer.json")])
def test_a_revision_without_its_blobs(tmp_path: Path, call: Run, names: tuple[str, ...]) -> None:
    """Copied without them, or cleaned away: one checkpoint, whose links lead to nothing."""
    revision = tmp_path / _REVISION
    revision.mkdir(parents=True)
    put(revision / "config.json", {"model_type": "llama"})
    for name in names:
        (revision / name).unlink(missing_ok=True)
        (revision / name).symlink_to(f"../../blobs/{name}")
    assert states(revision) == {"0123abcd": "incomplete"}
    said = "error: 0123abcd is incomplete: model.safetensors is a link to nothing\n"
    for command in (("inspect", "meta"), ("inspect", "tensors"), ("latest",)):
        done = call(*command, revision)
        assert (done.code, done.out) == (1, "") and said in done.err, done.err
    results = call("verify", revision, "--json").json["results"]
    assert {r["path"]: r["problems"][0]["detail"] for r in results if r["status"] == "damaged"} == {
        str(revision / name): f"{name} is a link to nothing" for name in names
    }
    assert "model.safetensors unreadable" in call("list", revision).out


# --- distributed saves whose index is too large to be read whole


def distributed(folder: Path, *names: str) -> Path:
    """A save of so many tensors, each in a file of its own; its index lists them all."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    folder.mkdir(parents=True)
    writer = FileSystemWriter(folder, single_file_per_rank=False)
    save({name: torch.arange(3.0) for name in names}, storage_writer=writer, no_dist=True)
    for path in folder.iterdir():
        os.utime(path, (OLD, OLD))
    return folder


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("most", [1 << 17, 10])
def test_the_files_that_a_large_index_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, protocol: int
) -> None:
    """The same answers whether the index is read or only looked through, in whatever blocks."""
    import pickle

    monkeypatch.setattr(_dcp, "_MAX_INDEX", most)
    names = [f"layers.{number}.weight" for number in range(12)]
    whole = distributed(tmp_path / "run/step_10", *names, "optim.state")
    lacking = distributed(tmp_path / "run/step_20", *names)
    for folder in (whole, lacking):
        with open(folder / ".metadata", "rb") as file:
            index = pickle.load(file)
        with open(folder / ".metadata", "wb") as file:
            pickle.dump(index, file, protocol=protocol)
        os.utime(folder / ".metadata", (OLD, OLD))
    (lacking / "__0_3.distcp").unlink()
    (lacking / "__0_11.distcp").unlink()
    for block in (1 << 20, 41, 100):
        monkeypatch.setattr(_dcp, "_BLOCK", block)
        first, second = found(tmp_path / "run").values()
        assert (first.state, first.resumable, first.problems) == ("complete", True, ())
        assert (second.state, second.resumable) == ("incomplete", False)
        assert sorted(os.path.basename(p.path) for p in second.problems) == ["__0_11.distcp", "__0_3.distcp"]
        assert {p.code for p in second.problems} == {"missing-part"}


def test_a_large_index_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dcp, "_MAX_INDEX", 10)
    folder = distributed(tmp_path / "step_10", "w")
    index = folder / ".metadata"
    index.write_bytes(index.read_bytes()[:-1])
    os.utime(index, (OLD, OLD))
    (only,) = found(tmp_path).values()
    assert (only.state, [problem.code for problem in only.problems]) == ("incomplete", ["bad-index"])


def test_a_large_index_all_of_whose_data_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.metadata` is a name that others use as well."""
    monkeypatch.setattr(_dcp, "_MAX_INDEX", 10)
    folder = distributed(tmp_path / "step_10", "w")
    (folder / "__0_0.distcp").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.metadata").write_text("something else, and long enough.")
    assert states(tmp_path) == {f"{tmp_path.name}/10": "incomplete"}
