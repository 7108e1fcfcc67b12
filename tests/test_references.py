"""Every reference that is listed names its own checkpoint, in any tree."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.discover import discover
from ckpt_cli.query import resolve
from ckpt_cli.selector import choose, choose_one
from tests.conftest import Run
from tests.test_discover import write

# Directories and files whose names are sources, tags, steps and words of the selector, of every layout and of none.
_FOLDERS = (
    "base_checkpoints chatsft_checkpoints sft_checkpoints mid_checkpoints base sft d12 d2 latest best last 500 1 run a "
    "out model consolidated experiments default epoch_1 step_1 step_500 dist_epoch_1 checkpoint-1 checkpoint-500 "
    "epoch=1-step=500-val iter_0000500"
).split()
_FILES = (
    "model_000500.pt meta_000500.json",
    "model_000001.pt meta_000001.json",
    "model_00001.pt",
    "checkpoint_000500.bin",
    "checkpoint_1.pt checkpoint_000001.pt",
    "ckpt.pt",
    "model.safetensors config.json",
    "model.safetensors config.json trainer_state.json",
    "hf_model_0001_1.pt hf_model_0002_1.pt",
    "meta_model_1.pt torchtune_model_1.pt",
    "adapter_1.pt",
    "adapter_model.safetensors adapter_config.json",
    "epoch=1-step=500.ckpt last.ckpt",
    "epoch=1-step=500.ckpt epoch=1-step=500-v1.ckpt",
    "epoch=1.ckpt step=1.ckpt",
    "loss=1.ckpt loss=1.pt",
    "best.pt latest.pt 500.pt",
    "last.pt model.pt",
    "latest.ckpt",
    "epoch_1.pt checkpoint-500.pt",
    "__0_0.distcp .metadata",
    "consolidated.00.pth params.json",
)


def _names_itself(root: Path, checkpoint: Checkpoint) -> bool:
    query = resolve(checkpoint.ref, str(root), environ={}, cwd=str(root))
    found, guess = choose_one(query, lambda c: True)
    return found == checkpoint and guess is None and checkpoint in choose(query)


def _check(root: Path) -> int:
    found = discover(str(root)).checkpoints
    refs = [c.ref for c in found]
    assert len(set(refs)) == len(refs), sorted(ref for ref in refs if refs.count(ref) > 1)
    assert [c.ref for c in found if not _names_itself(root, c)] == []
    return len(found)


def test_in_every_real_tree(shared: Path) -> None:
    folders = [Path(place) for place, _, _ in os.walk(shared / "real")]
    assert sum(map(_check, folders)) > 300


@pytest.mark.parametrize("seed", range(60))
def test_in_trees_of_anything(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    root = tmp_path / "root"
    places = [""]
    for _ in range(chance.randint(2, 14)):
        places.append(os.path.join(chance.choice(places), chance.choice(_FOLDERS)))
    for _ in range(chance.randint(2, 14)):
        place = chance.choice(places)
        for name in chance.choice(_FILES).split():
            write(root, os.path.join(place, name), content="{}")
    _check(root)


def test_a_file_called_best_is_meant_by_its_name(tmp_path: Path, call: Run) -> None:
    write(tmp_path, "run/best.pt", "run/latest.pt", "run/100.pt")
    for name in ("best", "latest", "100"):
        done = call("latest", f"run/{name}", "--root", tmp_path, "--field", "path")
        assert done.out == f"{tmp_path}/run/{name}.pt\n"


def test_one_stem_twice(tmp_path: Path, call: Run) -> None:
    write(tmp_path, "run/model.pt", "run/model.pth", "steps/checkpoint_000010.bin", "steps/checkpoint_000010.pt")
    refs = call("list", tmp_path, "-q").out.split()
    assert refs == ["run/model.pt", "run/model.pth", "steps/checkpoint_000010.bin", "steps/checkpoint_000010.pt"]
    for ref in refs:
        assert call("latest", ref, "--root", tmp_path, "--field", "path").out == f"{tmp_path}/{ref}\n"
    # A path it stays where there is no such reference.
    assert "no file run/model.bin" in call("latest", "run/model.bin", "--root", tmp_path).err


def test_what_lies_beside_the_epochs(tmp_path: Path, call: Run) -> None:
    """torchtune's original model is of the same run, and the run's newest is an epoch."""
    write(tmp_path, "run/consolidated.00.pth", "run/params.json", "run/meta_model_0.pt", "run/meta_model_1.pt")
    assert call("list", tmp_path, "-q").out.split() == ["run/consolidated", "run/0", "run/1"]
    assert call("latest", "run", "--root", tmp_path, "-q").out == "run/1\n"
    assert call("latest", "run/consolidated", "--root", tmp_path, "-q").out == "run/consolidated\n"


def test_one_number_in_two_layouts(tmp_path: Path, call: Run) -> None:
    write(tmp_path, "run/checkpoint_000001.bin", "run/model_00001.pt", "run/model_00002.pt")
    assert call("list", tmp_path, "-q").out.split() == ["run/checkpoint_000001", "run/model_00001", "run/2"]


def test_a_run_with_and_one_without_a_source(tmp_path: Path, call: Run) -> None:
    both = [f"{place}/{name}" for place in ("d2", "base_checkpoints/d2") for name in ("model_000001.pt", "ckpt.pt")]
    write(tmp_path, *both, *(f"{place}/meta_000001.json" for place in ("d2", "base_checkpoints/d2")), content="{}")
    assert call("latest", "d2/1", "--root", tmp_path, "--field", "dir").out == f"{tmp_path}/d2\n"
    assert call("latest", "d2/1", "-i", "base", "--root", tmp_path, "--field", "ref").out == "base/d2/1\n"
    ambiguous = call("latest", "d2", "--root", tmp_path)
    assert ambiguous.code == 2 and "base/d2, d2" in ambiguous.err


def test_three_directories_of_one_source(tmp_path: Path) -> None:
    for place in ("chatsft_checkpoints/d2", "sft_checkpoints/d2", "d2/chatsft_checkpoints", "sft/d2"):
        write(tmp_path, f"{place}/ckpt.pt")
    assert _check(tmp_path) == 4


def test_a_folder_that_looks_like_half_a_name(tmp_path: Path, call: Run) -> None:
    """Lightning cuts a name at the slash of `val/loss`; other files may lie in such a folder."""
    write(tmp_path, "epoch=1-step=500-val/loss=0.5.ckpt", "epoch=1-step=500-val/best.ckpt")
    assert call("list", tmp_path, "-q").out.split() == [f"{tmp_path.name}/500"]


def test_a_folder_that_was_never_renamed(tmp_path: Path, call: Run) -> None:
    """Whole as it may look: a writer gives a folder its name once all is in it."""
    for place in ("checkpoint-10", "checkpoint-20.tmp", "final.partial"):
        write(tmp_path, f"run/{place}/model.safetensors", f"run/{place}/config.json")
    listed = {c["ref"]: c for c in call("list", tmp_path, "--json").json["checkpoints"]}
    assert {ref: c["state"] for ref, c in listed.items()} == {
        "run/10": "complete",
        "run/checkpoint-20.tmp": "incomplete",
        "run/final.partial": "incomplete",
    }
    assert [p["code"] for p in listed["run/final.partial"]["problems"]] == ["unfinished"]
    assert call("latest", "run/checkpoint-20.tmp", "--root", tmp_path).code == 1
