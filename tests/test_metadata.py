"""`ckpt inspect meta` where no meta file lies with the checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from tests.test_discover import write


def _recipe(path: Path, epochs: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "seed": 7, "epochs_run": epochs, "total_epochs": 3}
    torch.save(state, path)


def test_the_configuration_that_epochs_share(tmp_path: Path, call: Run) -> None:
    """torchtune to 0.4: nothing but tensors in the files, config.json beside all of them."""
    for epoch in range(3):
        torch.save({"w": torch.zeros(2)}, tmp_path / f"hf_model_0001_{epoch}.pt")
    write(tmp_path, "config.json", content='{"hidden_size": 64}')
    _recipe(tmp_path / "recipe_state.pt", 2)
    run = tmp_path.name
    assert call("inspect", "meta", f"{run}/2", "--root", tmp_path, "--json").json["meta"] == {
        "config": {"hidden_size": 64}
    }
    meta = call("inspect", "meta", f"{run}/1", "--root", tmp_path, "--json").json["meta"]
    assert meta["config"] == {"hidden_size": 64}
    assert meta["recipe"] == {"seed": 7, "epochs_run": 2, "total_epochs": 3}


def test_what_is_all_that_is_left(tmp_path: Path, call: Run) -> None:
    """A recipe state in its own folder, an optimizer without its model."""
    _recipe(tmp_path / "recipe_state" / "recipe_state.pt", 2)
    told = call("inspect", "meta", tmp_path / "recipe_state" / "recipe_state.pt", "--json").json["meta"]
    assert told == {"seed": 7, "epochs_run": 2, "total_epochs": 3}
    torch.save({"state": {}, "param_groups": [], "note": "x"}, tmp_path / "optimizer.pt")
    assert call("inspect", "meta", tmp_path / "optimizer.pt", "--key", "note").out == "x\n"


def test_every_line_is_named_as_a_key(tmp_path: Path, call: Run) -> None:
    """A list too is taken apart, as `inspect diff` does: what a line is called, --key finds."""
    meta = {"step": 5, "betas": [0.8, 0.95], "log": [{"loss": 2.5}], "empty": [], "note": "x"}
    torch.save({"w": torch.zeros(2)}, tmp_path / "model_000005.pt")
    write(tmp_path, "meta_000005.json", content=json.dumps(meta))
    lines = [line.split("\t") for line in call("inspect", "meta", tmp_path, "--format", "plain").out.splitlines()]
    assert lines == [
        ["step", "5"], ["betas.0", "0.8"], ["betas.1", "0.95"], ["log.0.loss", "2.5"], ["empty", "[]"], ["note", "x"]
    ]  # fmt: skip
    for name, value in lines:
        assert call("inspect", "meta", tmp_path, "--key", name).out == f"{value}\n"


@pytest.mark.parametrize("style", ["plain", "table"])
def test_weights_alone_have_none(tmp_path: Path, call: Run, style: str) -> None:
    """Which is said, instead of a line that looks like some; a program gets an empty object."""
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    done = call("inspect", "meta", tmp_path, "--format", style)
    assert (done.code, done.out, done.err) == (0, "", f"note: {tmp_path.name} has no metadata\n")
    assert call("inspect", "meta", tmp_path, "--json").json["meta"] == {}
    torch.save({"w": torch.zeros(2), "config": {}}, tmp_path / "weights.pt")
    done = call("inspect", "meta", tmp_path, "--key", "config", "--format", style)
    assert (done.code, done.out.split()[-1], done.err) == (0, "{}", "")


@pytest.mark.parametrize("last", ["optimizer.pt", "later.pt"])
def test_the_newest_of_loose_files_is_a_model(tmp_path: Path, call: Run, last: str) -> None:
    """The optimizer is saved after the model, and is not what `latest` is asked for."""
    write(tmp_path, "run/weights.pt", content="x")
    write(tmp_path, f"run/{last}", content="x", when=1_700_000_100)
    expected = "weights.pt" if last == "optimizer.pt" else last
    done = call("latest", tmp_path / "run")
    assert done.out == f"{tmp_path}/run/{expected}\n"
    # Which is a guess, as times are all that there is to go by; where there are steps, it is none.
    name = os.path.splitext(expected)[0]
    assert done.err == f"note: took run/{name} (the newest by time, as none has a step)\n"
    write(tmp_path, "run/iter_5.pt", content="x")
    done = call("latest", tmp_path / "run")
    assert (done.out, done.err) == (f"{tmp_path}/run/iter_5.pt\n", "")
