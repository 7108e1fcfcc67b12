"""The pages cannot drift: every help in them, every output and every command line is run again."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/write_pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_generate"] = module
    spec.loader.exec_module(module)
    return module


docs = _load()
PAGES = docs.pages()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = docs.demo_tree(tmp_path_factory.mktemp("docs"))
    return made


def _masked(text: str) -> str:
    """Numbers differ by machine and day, and a column is as wide as they are."""
    text = re.sub(r"[0-9]{8}-[0-9]{6}-[0-9a-f]+", "ID", text)
    return re.sub(r"[ \t]+", " ", re.sub(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?", "0", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page(page: Path, tree: Path) -> None:
    text = page.read_text()
    assert _masked(docs.refreshed(text, tree)) == _masked(text), "make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines(page: Path, tree: Path, tmp_path: Path) -> None:
    """What stands in running text, in tables and in blocks to paste: it runs, each on a fresh tree."""
    for number, line in enumerate(docs.commands_in(page.read_text())):
        runs = shutil.copytree(tree, tmp_path / str(number) / "runs", symlinks=True)
        code, said = docs.typed(line, runs)
        # 1 is an answer, as `verify` of the damaged file of the demo gives it; 4 asks for --yes or --force.
        assert code in (0, 1, 4) and "Traceback" not in said, f"{line}: exit {code}: {said}"


def test_the_worked_example(tmp_path: Path, tree: Path) -> None:
    """The layout of the page for contributors, put where it says, makes a folder of that trainer's work everywhere."""
    text = (ROOT / "docs/contributing.md").read_text()
    example = text.split("```python\n")[1].split("```\n")[0]
    shutil.copytree(ROOT / "ckpt_cli", tmp_path / "ckpt_cli", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ckpt_cli/layouts/modded.py").write_text(example)
    run = tmp_path / "logs/run"
    run.mkdir(parents=True)
    for step in (100, 200):
        shutil.copy(tree / "base_checkpoints/d4/model_000150.pt", run / f"state_step{step:06d}.pt")
    lines = {
        "list -q": "run/100\nrun/200\n",
        "latest --field step": "200\n",
        "verify run/200 -q": "",
        "prune --keep 1 -y -q": "run/100\n",
        "list  -q": "run/200\n",
    }
    for line, said in lines.items():
        command = [sys.executable, "-m", "ckpt_cli", *line.split(), "--root", str(tmp_path / "logs")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.stdout, done.returncode) == (said, 0), f"{line}: {done.stderr}"


def test_every_module_of_the_spine_has_its_trade() -> None:
    """Each once, with a few words, and none that is not there."""
    text = (ROOT / "docs/contributing.md").read_text()
    section = text.split("## The spine by trade\n")[1].split("\n## ")[0]
    named = re.findall(r"^  (\w+\.py) +(\S.+)$", section, re.MULTILINE)
    trades = re.findall(r"^(\w+) {2,}\S", section, re.MULTILINE)
    assert sorted(name for name, _ in named) == sorted(path.name for path in (ROOT / "ckpt_cli").glob("*.py"))
    assert trades == [
        "finding", "reading", "judging", "removing", "converting", "rebuilding", "patching", "training", "shared",
    ]  # fmt: skip
