"""Classes of one's own under `ckpt load-test`, and what becomes of a process that dies, hangs or is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_cli import trial
from ckpt_cli.levels import LEVELS
from ckpt_cli.orders import Order
from tests.conftest import REPOSITORY, Run
from tests.load_testing import level_of, read_logits, statuses

TINY = """
import os, signal, sys, time
from dataclasses import dataclass
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.inner = nn.Linear(n_embd, n_embd)
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.head.weight = self.wte.weight
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)
        print("made, on stdout")

    def forward(self, tokens):
        x = self.wte(tokens)
        x = self.norm(x + self.scale * self.inner(x).relu())
        return self.head(x)

class Configured(Tiny):
    def __init__(self, config):
        super().__init__(config.vocab_size, config.n_embd)
    def forward(self, tokens):
        return super().forward(tokens), None

@dataclass
class Config:
    vocab_size: int = 0
    n_embd: int = 0

class Annotated(Configured):
    def __init__(self, settings: Config):
        assert isinstance(settings, Config)
        super().__init__(settings)

class Picky(Tiny):
    def __init__(self, vocab_size, n_embd):
        super().__init__(vocab_size, n_embd)
        self.wte.weight.sum().item()

class Killed(Tiny):
    def forward(self, tokens):
        os.kill(os.getpid(), signal.SIGKILL)

class Crashed(Tiny):
    def __init__(self, vocab_size, n_embd):
        os.kill(os.getpid(), signal.SIGSEGV)

class Gone(Tiny):
    def __init__(self, vocab_size, n_embd):
        os._exit(3)

class Leaving(Tiny):
    def forward(self, tokens):
        sys.exit(5)

class Slow(Tiny):
    def forward(self, tokens):
        open(os.environ["HOME"] + "/pid", "w").write(str(os.getpid()))
        time.sleep(600)

class Stuck(Tiny):
    def __init__(self, vocab_size, n_embd):
        open(os.environ["HOME"] + "/pid", "w").write(str(os.getpid()))
        time.sleep(600)

class Hungry(Tiny):
    def forward(self, tokens):
        return torch.empty(1 << 48)

class Raising(Tiny):
    def forward(self, tokens):
        raise ValueError("two\\nlines")

class Endless(Tiny):
    def forward(self, tokens):
        return super().forward(tokens) / 0

class Flat(Tiny):
    def forward(self, tokens):
        return super().forward(tokens).mean(-1)

class NoModule:
    def __init__(self, vocab_size, n_embd):
        pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a module of models and a checkpoint of nano-gpt's form, three real steps of AdamW in it."""
    place = tmp_path / "own"
    place.mkdir()
    (place / "tiny_models.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(place))
    sys.modules.pop("tiny_models", None)
    import tiny_models  # type: ignore[import-not-found]

    torch.manual_seed(0)
    model = tiny_models.Tiny(17, 8)
    optimizer = optimizer_of(model)
    for _ in range(3):
        step(model, optimizer, torch.arange(6)[None])
    saved = {
        "model_state_dict": {f"_orig_mod.{name}": tensor.clone() for name, tensor in model.state_dict().items()},
        "config": {"vocab_size": 17, "n_embd": 8, "block_size": 8},
        "step": 3,
        "val_loss_accum": 1.0,
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(saved, place / "checkpoint_000003.bin")
    return place


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    wide = [p for p in model.parameters() if p.dim() > 1]
    flat = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": wide, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}], lr=0.05)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> float:
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", ["Tiny", "Configured", "Annotated", "Picky"])
def test_a_class_of_ones_own(name: str, own: Path, tried: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    path = tmp_path / "logits.safetensors"
    done = tried(
        "./checkpoint_000003.bin",
        "--model",
        f"tiny_models:{name}",
        "--tokens",
        "1,2,3",
        "--save-logits",
        path,
        "--json",
    )
    assert done.code == 0, done.err
    # What the class prints on stdout is no part of the answer; that is seen below, in a process of its own.
    answer = json.loads(done.out.splitlines()[-1])
    assert statuses(answer)[:5] == ["pass"] * 5
    assert answer["parameters"] == 17 * 8 + 8 * 8 + 8 + 2 * 8
    import tiny_models

    model = tiny_models.Tiny(17, 8)
    saved = torch.load(own / "checkpoint_000003.bin", weights_only=True)["model_state_dict"]
    model.load_state_dict({name.removeprefix("_orig_mod."): tensor for name, tensor in saved.items()})
    with torch.no_grad():
        torch.testing.assert_close(read_logits(path), model(torch.tensor([[1, 2, 3]])), rtol=0, atol=0)


def test_a_step_is_that_of_the_trainer(own: Path, tried: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss before and after one step of the restored AdamW are those of torch, which loads the same file."""
    monkeypatch.chdir(own)
    tokens = [3, 1, 4, 1, 5]
    done = tried(
        "./checkpoint_000003.bin", "--model", "tiny_models:Tiny", "--phase", "train", "--json",
        "--tokens", ",".join(map(str, tokens)),
    )  # fmt: skip
    import tiny_models

    saved = torch.load("checkpoint_000003.bin", weights_only=True)
    model = tiny_models.Tiny(17, 8)
    model.load_state_dict({name.removeprefix("_orig_mod."): t for name, t in saved["model_state_dict"].items()})
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    losses = [step(model, optimizer, torch.tensor([tokens])) for _ in range(2)]
    fresh = tiny_models.Tiny(17, 8)
    fresh.load_state_dict({name.removeprefix("_orig_mod."): t for name, t in saved["model_state_dict"].items()})
    other = [step(fresh, o, torch.tensor([tokens])) for o in [optimizer_of(fresh)] for _ in range(2)]
    detail = level_of(json.loads(done.out.splitlines()[-1]), "train-step")["detail"]
    assert detail == f"one step of AdamW from step 3: loss {losses[0]:.4f}, then {losses[1]:.4f}"
    assert f"{other[1]:.4f}" != f"{losses[1]:.4f}"  # without its states it is another step


DEATHS = {
    "Killed": ("forward", "memory runs out (SIGKILL)"),
    "Crashed": ("build", "segmentation fault (SIGSEGV)"),
    "Gone": ("build", "exit code 3"),
    "Leaving": ("forward", "SystemExit: 5"),
    "Hungry": ("forward", "out of memory"),
    "Raising": ("forward", "ValueError: two lines"),
    "Endless": ("forward", "not finite"),
    "Flat": ("forward", "shape"),
}


@pytest.mark.parametrize("name", DEATHS)
def test_what_a_process_does_not_survive_is_a_failed_level(name: str, own: Path, ckpt: Run) -> None:
    level, said = DEATHS[name]
    done = ckpt("load-test", "./checkpoint_000003.bin", "--model", f"tiny_models:{name}", "--json", cwd=own)
    assert done.code == 1, done.err
    failed = [one for one in done.json["levels"] if one["status"] == "fail"]
    assert [one["name"] for one in failed] == [level]
    assert said in failed[0]["detail"]
    assert len(done.json["levels"]) == len(LEVELS)
    assert done.err.splitlines()[-1].startswith(f"error: own/3 fails at {level}: ")


def test_a_class_that_is_no_module(own: Path, ckpt: Run) -> None:
    done = ckpt("load-test", "./checkpoint_000003.bin", "--model", "tiny_models:NoModule", cwd=own)
    assert done.code == 2 and "no torch.nn.Module" in done.err


def test_a_hang_is_a_failed_level(own: Path, ckpt: Run, tmp_path: Path) -> None:
    done = ckpt(
        "load-test", "./checkpoint_000003.bin", "--model", "tiny_models:Stuck", "--timeout", "3", "--json",
        cwd=own, env={"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.code == 1
    assert statuses(done.json) == ["pass", "pass", "fail", "skip", "skip", "skip"]
    assert "longer than 3 seconds" in level_of(done.json, "build")["detail"]
    assert ended(int((tmp_path / "pid").read_text()))


def test_what_is_stopped_for_its_time_did_not_end_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it ends while that is found out."""
    monkeypatch.setattr(trial, "_START", "import time; time.sleep(0.6)")
    found = trial.run(Order(None, None), 0.3)
    assert found.failed and "longer than 0.3 seconds" in found.failed.detail
    monkeypatch.setattr(trial, "_START", "import sys; sys.exit(7)")
    found = trial.run(Order(None, None), 60)
    assert found.failed and "exit code 7" in found.failed.detail


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_the_process_along(number: signal.Signals, own: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "ckpt_cli", "load-test", "./checkpoint_000003.bin", "--model", "tiny_models:Slow"],
        cwd=own,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = tmp_path / "pid"
    until(lambda: pid.exists() and bool(pid.read_text()))
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    until(lambda: ended(int(pid.read_text())))


def test_the_process_ends_with_who_asked(own: Path, tmp_path: Path) -> None:
    """Killed outright, ckpt leaves nobody behind."""
    child = subprocess.Popen(
        [sys.executable, "-m", "ckpt_cli", "load-test", "./checkpoint_000003.bin", "--model", "tiny_models:Slow"],
        cwd=own,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pid = tmp_path / "pid"
    until(lambda: pid.exists() and bool(pid.read_text()))
    child.kill()
    child.wait(60)
    until(lambda: ended(int(pid.read_text())))


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead and only not yet waited for."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True
