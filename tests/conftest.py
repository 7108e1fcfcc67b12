"""Fixtures: real files, a small real tree written here, and ways to run the tool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# Files that real trainers wrote, and hostile ones, where they lie beside the checkout.
SHARED = (REPOSITORY.parent / "shared").resolve()


@dataclass(frozen=True)
class Done:
    """How one command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real and hostile files; tests that need it are skipped in a bare clone."""
    if not (SHARED / "real").is_dir():
        pytest.skip("no directory of real checkpoints lies beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def demo_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of `ckpt demo`, written once by real torch; tests that change it copy it."""
    from ckpt_cli.demo import write_demo

    root = tmp_path_factory.mktemp("demo") / "tree"
    write_demo(str(root), time.time())
    return root


@pytest.fixture
def tree(demo_tree: Path, tmp_path: Path) -> Path:
    """A copy of the demo tree, times kept, for one test to change."""
    return Path(shutil.copytree(demo_tree, tmp_path / "tree"))


@pytest.fixture(scope="session")
def old_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of four steps, two days old, the later step the better one; tests that change it copy it."""
    from tests.test_kill import RUNS, write_tree

    root = tmp_path_factory.mktemp("old") / "tree"
    write_tree(root, RUNS)
    return root


@pytest.fixture
def root(old_runs: Path, tmp_path: Path) -> Path:
    """A copy of the old runs, times kept, for one test to change."""
    return Path(shutil.copytree(old_runs, tmp_path / "tree"))


@pytest.fixture
def run(root: Path) -> Path:
    """The one run of them that the tests are about."""
    return root / "base_checkpoints" / "d2"


@pytest.fixture
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `ckpt` as a process of its own, with an empty HOME, in an empty directory unless `cwd` says."""
    home = tmp_path_factory.mktemp("home")

    def run(
        *arguments: object, cwd: object = None, stdin: str | None = None, env: dict[str, str] | None = None
    ) -> Done:
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **(env or {})}
        done = subprocess.run(
            [sys.executable, "-m", "ckpt_cli", *map(str, arguments)],
            cwd=str(cwd or home),
            env={"PYTHONPATH": str(REPOSITORY), **environment},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command line in this process, quickly: no terminal, no root from the environment."""
    from ckpt_cli.app import main

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CKPT_ROOT", "NANOCHAT_BASE_DIR", "CKPT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err, captured.err
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def tried(call: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`ckpt load-test` without a process of its own; a test holds both ways against each other."""
    from ckpt_cli import trial
    from tests.load_testing import inside

    monkeypatch.setattr(trial, "run", inside)
    return lambda *arguments: call("load-test", *arguments)
