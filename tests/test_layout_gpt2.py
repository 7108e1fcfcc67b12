"""The three small layouts of one file a step: nano-gpt, nanoGPT, build-nanogpt; and what only looks like them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.discover import discover
from tests.conftest import Run

OLD = time.time() - 86_400
Told = tuple[str, str, "int | None", "bool | None"]


def write(root: Path, *names: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith(".json"):
            (root / name).write_text("{}")
        else:
            torch.save({"model": {"w": torch.arange(4.0)}}, root / name)
        os.utime(root / name, (OLD, OLD))
    return root


def told(root: Path) -> list[Told]:
    return [(c.layout, c.ref, c.step, c.resumable) for c in discover(str(root)).checkpoints]


def one(root: Path) -> Checkpoint:
    (found,) = discover(str(root)).checkpoints
    return found


# --- real trees


def test_real_trees(shared: Path) -> None:
    """All that lies there, and none of the logits beside it."""
    root = shared.resolve() / "real/gpt2"
    found = [t for t in told(root) if t[0] != "huggingface"]
    assert sorted(found, key=lambda t: (*t[:2], t[2] or 0)) == [
        ("build-nanogpt", "build-nanogpt/log/10", 10, False),
        ("nano-gpt", "nano_gpt/checkpoints/10", 10, True),
        ("nano-gpt", "nano_gpt/checkpoints/20", 20, True),
        ("nanoGPT", "nanoGPT/out_train_py", None, True),
    ]
    for checkpoint in discover(str(root)).checkpoints:
        assert checkpoint.state == "complete"
        assert not any("logits" in part.path for part in checkpoint.parts)
        if checkpoint.layout != "huggingface":
            assert [part.role for part in checkpoint.parts] == ["model"]
            assert checkpoint.unit == (None if checkpoint.layout == "nanoGPT" else "step")


@pytest.mark.parametrize(
    "place, file",
    [
        ("build-nanogpt/log", "model_00010.pt"),
        ("nano_gpt/checkpoints", "checkpoint_000020.bin"),
        ("nanoGPT/out_train_py", "ckpt.pt"),
    ],
)
def test_real_from_every_place(shared: Path, call: Run, place: str, file: str) -> None:
    """As the root, its parent, its grandparent, a path: the same file is the newest."""
    root = shared.resolve() / "real/gpt2" / place
    for target in (root, root / file):
        done = call("latest", target)
        assert (done.code, done.out.strip()) == (0, str(root / file)), done.err
    for above in (root.parent, root.parent.parent):
        done = call("latest", root.name, "--root", above)
        assert (done.code, done.out.strip()) == (0, str(root / file)), done.err
    tensors = call("inspect", "tensors", root / file, "--json")
    assert tensors.code == 0 and len(tensors.json["tensors"]) > 20
    assert call("inspect", "meta", root / file).code == 0


def test_real_prune_and_undo(shared: Path, tmp_path: Path, call: Run) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(shared.resolve() / "real/gpt2/nano_gpt/checkpoints", root)
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    assert call("prune", "--root", root, "--keep", 1, "--trash", "--yes").code == 0
    assert sorted(path.name for path in root.glob("checkpoint_*")) == ["checkpoint_000020.bin"]
    assert call("prune", "--root", root, "--undo").code == 0
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before


# --- nano-gpt


def test_nano_gpt_of_every_age(tmp_path: Path) -> None:
    """Padded and not, .pt before .bin; one step under two names is told apart by name."""
    root = write(tmp_path / "run", "checkpoint_1000000.bin", "checkpoint_000900.bin", "checkpoint_50.pt")
    assert told(root) == [("nano-gpt", f"run/{n}", n, True) for n in (50, 900, 1_000_000)]
    write(root, "checkpoint_000050.bin")
    assert [t[1] for t in told(root)] == ["run/checkpoint_000050.bin", "run/checkpoint_50.pt", "run/900", "run/1000000"]


NOT_OF_NANO_GPT = """
checkpoint_best.pt checkpoint1.pt checkpoint_10.pt~ checkpoint_10 checkpoint_10.safetensors checkpoint_.bin
xcheckpoint_10.bin checkpoint_10_best.pt checkpoint-10.bin checkpoint_١٠.bin
"""


@pytest.mark.parametrize("name", NOT_OF_NANO_GPT.split())
def test_not_of_nano_gpt(tmp_path: Path, name: str) -> None:
    """fairseq's names among them."""
    assert all(t[0] in ("loose",) for t in told(write(tmp_path / "run", name)))
    write(tmp_path / "run", "checkpoint_000020.bin")
    assert told(tmp_path / "run") == [("nano-gpt", "run/20", 20, True)]


# --- nanoGPT


def test_nanogpt(tmp_path: Path, call: Run) -> None:
    """One file, written over: no step, and nothing that prune could take."""
    root = write(tmp_path / "out", "ckpt.pt")
    assert told(root) == [("nanoGPT", "out", None, True)]
    done = call("prune", "--root", root, "--keep", 1, "--yes")
    assert done.code == 0
    assert (root / "ckpt.pt").exists()
    (root / "ckpt.pt").write_bytes(b"")
    os.utime(root / "ckpt.pt", (OLD, OLD))
    assert (one(root).state, one(root).resumable) == ("incomplete", False)
    os.utime(root / "ckpt.pt")
    assert one(root).state == "in-progress"


@pytest.mark.parametrize("name", ["ckpt.pth", "ckpt1.pt", "ckpt.pt.bak", "CKPT.pt", "ckpt.safetensors", "ckpt_10.pt"])
def test_not_of_nanogpt(tmp_path: Path, name: str) -> None:
    assert all(t[0] != "nanoGPT" for t in told(write(tmp_path / "out", name)))


# --- build-nanogpt


def test_build_nanogpt(tmp_path: Path) -> None:
    root = write(tmp_path / "log", "model_00000.pt", "model_19072.pt", "model_05000.pt")
    assert told(root) == [("build-nanogpt", f"log/{n}", n, False) for n in (0, 5000, 19072)]


def test_a_meta_makes_it_nanochats(tmp_path: Path) -> None:
    """Five digits with a meta, or six: nanochat's. Each in one folder with the other."""
    root = write(tmp_path / "run", "model_00010.pt", "meta_00010.json")
    assert [(t[0], t[2]) for t in told(root)] == [("nanochat", 10)]
    write(root, "model_00020.pt", "model_000100.pt", "meta_000100.json")
    assert [(t[0], t[2]) for t in told(root)] == [("nanochat", 10), ("build-nanogpt", 20), ("nanochat", 100)]
    # Six digits without a meta are nanochat's with something missing, never another layout's.
    write(root, "model_000200.pt")
    last = discover(str(root)).checkpoints[-1]
    assert (last.layout, last.step, last.state) == ("nanochat", 200, "incomplete")


@pytest.mark.parametrize(
    "name", ["model_0010.pt", "model_00010.bin", "model_00010.pt.old", "model-00010.pt", "model_00010_ema.pt"]
)
def test_not_of_build_nanogpt(tmp_path: Path, name: str) -> None:
    assert all(t[0] in ("loose",) for t in told(write(tmp_path / "log", name)))


# --- what they share


@pytest.mark.parametrize("file", ["checkpoint_000010.bin", "ckpt.pt", "model_00010.pt"])
def test_what_lies_beside(tmp_path: Path, call: Run, file: str) -> None:
    """A manifest, an export and a pin are of the checkpoint."""
    root = write(tmp_path / "run", file)
    stem = file.partition(".")[0]
    assert call("convert", root / file).code == 0
    assert call("verify", root / file, "--record").code == 0
    (root / f"{stem}.keep").touch()
    checkpoint = one(root)
    assert checkpoint.pinned
    assert {os.path.basename(part.path): part.role for part in checkpoint.parts} == {
        file: "model", f"{file}.sha256": "manifest", f"{stem}.safetensors": "export", f"{stem}.keep": "other",
    }  # fmt: skip
    assert checkpoint.bytes == sum(part.bytes for part in checkpoint.parts if part.role != "export")


def test_all_of_them_in_one_folder(tmp_path: Path) -> None:
    """One folder that several trainers wrote into: every file is of one checkpoint, every name its own."""
    names = ("checkpoint_000010.bin", "ckpt.pt", "model_00010.pt", "model_000010.pt", "meta_000010.json", "README.md")
    root = write(tmp_path / "run", *names[:-1])
    (root / names[-1]).write_text("mine")
    found = discover(str(root)).checkpoints
    assert sorted(c.layout for c in found) == ["build-nanogpt", "nano-gpt", "nanoGPT", "nanochat"]
    assert sorted(os.path.basename(part.path) for c in found for part in c.parts) == sorted(names[:-1])
    assert len({c.ref for c in found}) == 4
