"""The completion scripts, typed into real shells. No program can be started there: PATH leads nowhere."""

from __future__ import annotations

import ast
import importlib.util
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run

HERE = Path(__file__).resolve().parent.parent / "completions"
SHELLS = ("bash", "zsh", "fish")
ODD = "it's $HOME &co; naïve"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nanochat base directory, with a run whose name no shell takes lightly."""
    root = tmp_path_factory.mktemp("base")
    for run, steps in (("base_checkpoints/d12", (1000, 5000)), ("base_checkpoints/d20_jan", (70,)),
                       ("chatsft_checkpoints/d12", (650,)), (f"mid_checkpoints/{ODD}", (0, 1000000))):  # fmt: skip
        (root / run).mkdir(parents=True)
        for step in steps:
            (root / run / f"model_{step:06d}.pt").touch()
            (root / run / f"meta_{step:06d}.json").touch()
    for step in (10, 20):
        (root / f"trainer/checkpoint-{step}").mkdir(parents=True)
        (root / f"trainer/checkpoint-{step}/model.safetensors").touch()
    (root / "tokenizer").mkdir()
    (root / "tokenizer/token_bytes.pt").touch()
    (root / "notes").mkdir()
    return root


def _shell(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def _environment(nowhere: Path) -> dict[str, str]:
    """A PATH on which there is `sh` alone, which fish needs."""
    nowhere.mkdir(exist_ok=True)
    if not (nowhere / "sh").exists():
        (nowhere / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    return {"PATH": str(nowhere), "HOME": str(nowhere), "TERM": "dumb", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


class Typed:
    """A shell at a pseudo-terminal, in which `ckpt` prints the words it was given."""

    def __init__(self, name: str, folder: Path, nowhere: Path) -> None:
        shell = _shell(name)
        ready = "echo rea''dy"
        setup = {
            "bash": f"source '{HERE}/ckpt.bash'; bind 'set bell-style none' 'set enable-bracketed-paste off'; PS1=",
            "zsh": f"fpath=('{HERE}' $fpath); autoload -U compinit; compinit -u -D; PS1= PROMPT_EOL_MARK=",
            "fish": f"source '{HERE}/ckpt.fish'; function fish_prompt; end",
        }[name]
        words = "function ckpt; for w in $argv; printf '<%s>' \"$w\"; end; echo .; end"
        if name != "fish":
            words = 'ckpt() { for w in "$@"; do printf \'<%s>\' "$w"; done; echo .; }'
        arguments = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "fish": ["--no-config", "-i"]}[name]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(shell, [shell, *arguments], _environment(nowhere))
        self.send(f"{setup}; {words}; {ready}\n")
        assert "ready" in self.read("ready\r"), f"{name} does not start"

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def read(self, until: str, seconds: float = 20.0) -> str:
        said, end = "", time.monotonic() + seconds
        while until not in said and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    said += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    break
        return said

    def complete(self, line: str) -> list[str]:
        """The words that ckpt is called with after `line`, a TAB and a line's end."""
        self.read("\0", 0.2)
        self.send(line + "\t")
        self.read("\0", 0.6)
        self.send("\n")
        said = self.read(">.\r")
        at = said.rindex("<", 0, said.rindex(">."))
        start = said.rindex("\n", 0, at) + 1
        return said[said.index("<", start) + 1 : said.rindex(">.")].split("><")

    def close(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture(params=SHELLS)
def typed(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Iterator[Typed]:
    shell = Typed(request.param, tree, tmp_path / "nowhere")
    yield shell
    shell.close()


def test_typed(typed: Typed, tree: Path) -> None:
    assert typed.complete("ckpt inspect ten") == ["inspect", "tensors"]
    assert typed.complete("ckpt lat") == ["latest"]
    assert typed.complete("ckpt prune ba") == ["prune", "base/"]
    assert typed.complete("ckpt prune base/d2") == ["prune", "base/d20_jan/"]
    assert typed.complete("ckpt latest base/d12/1") == ["latest", "base/d12/1000"]
    assert typed.complete("ckpt list d20") == ["list", "d20_jan/"]
    assert typed.complete("ckpt verify trainer/checkpoint-1") == ["verify", "trainer/checkpoint-10"]
    assert typed.complete("ckpt list --form") == ["list", "--format"]
    assert typed.complete("ckpt list --format js") == ["list", "--format", "json"]
    assert typed.complete("ckpt list --format=js") == ["list", "--format=json"]
    assert typed.complete("ckpt list -i sf") == ["list", "-i", "sft"]
    assert typed.complete("ckpt list -g d20") == ["list", "-g", "d20_jan"]
    assert typed.complete("ckpt inspect diff sft/d12/6") == ["inspect", "diff", "sft/d12/650"]
    assert typed.complete(f"ckpt list --root {tree}/base_checkpoints d2") == [
        "list", "--root", f"{tree}/base_checkpoints", "d20_jan/",
    ]  # fmt: skip


def test_odd_names(typed: Typed) -> None:
    assert typed.complete("ckpt list mid/it") == ["list", f"mid/{ODD}/"]


def _asked(root: Path, word: str) -> list[str]:
    """What the scripts' own shell functions say, run by a plain sh."""
    made = _made()["ckpt.bash"]
    shared = made[made.index("# Whether anything") : made.index("_ckpt() {\n    local")]
    command = ["sh", "-c", f'{shared}\n_ckpt_refs "$1" "$2"', "sh", str(root), word]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.stderr
    return sorted(done.stdout.splitlines())


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("write_scripts", HERE / "write_scripts.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["write_scripts"] = module
    spec.loader.exec_module(module)
    return module


def _made() -> dict[str, str]:
    found: dict[str, str] = _module().scripts()
    return found


def test_candidates(tree: Path) -> None:
    """Sources, runs and steps; no directories that hold no checkpoints, and no source by its directory's name."""
    assert _asked(tree, "") == sorted(["base/", "mid/", "sft/", "d12/", "d12/", "d20_jan/", f"{ODD}/", "trainer/"])
    assert _asked(tree, "base/d12/") == [f"base/d12/{step}" for step in ("1000", "5000", "best", "latest")]
    assert _asked(tree, f"mid/{ODD}/") == [f"mid/{ODD}/{step}" for step in ("0", "1000000", "best", "latest")]
    assert _asked(tree / "base_checkpoints", "base/d2") == ["base/d20_jan/"]
    assert _asked(tree / "base_checkpoints/d12", "d12/1") == ["d12/1000"]
    assert _asked(tree, "nothing/") == []


def test_what_is_offered_is_what_the_tool_finds(tree: Path, call: Run) -> None:
    listed = call("list", tree, "-q").out.splitlines()
    for ref in filter(None, listed):
        assert ref in _asked(tree, ref.rpartition("/")[0] + "/") or ref.startswith("trainer/")


# Asked about a root in which there is nothing.
CLOSED = {
    "list": ["--state", "--sort", "--format"],
    "latest": ["--field"],
    "inspect tensors": ["--sort"],
    "inspect meta": ["--format"],
    "load-test": ["--device", "--dtype", "--phase"],
    "prune --keep 1": ["--format"],
    "convert": ["--to", "--dtype"],
}


@pytest.mark.parametrize(("command", "option"), [(c, option) for c in CLOSED for option in CLOSED[c]])
def test_offered_values_are_those_it_takes(command: str, option: str, tmp_path: Path, call: Run) -> None:
    """Each that is offered is taken, and one that is not is refused with a message that names them all."""
    found = next(c for c in _module().commands() if c.name == command.partition(" --")[0])
    offered = next(one.offer for one in found.options if option in one.names).split()
    assert len(offered) > 1
    refused = call(*command.split(), tmp_path, option, "no-such-value")
    assert refused.code == 2 and "'no-such-value' is no" in refused.err
    assert all(word in refused.err for word in offered)
    for word in offered:
        assert f"'{word}' is no" not in call(*command.split(), tmp_path, option, word).err


def test_what_is_always_refused_is_not_offered(tmp_path: Path, call: Run) -> None:
    """`-q` where an answer has no names, and a step for prune: both are answered, with what to do instead."""
    offered = {c.name: {name for option in c.options for name in option.names} for c in _module().commands()}
    assert "-q" in offered["list"] and "-s" in offered["list"]
    assert "-q" not in offered["inspect diff"] and "-s" not in offered["prune"]
    assert "has no names to print" in call("load-test", tmp_path, "-q").err
    (tmp_path / "model_000100.pt").touch()
    (tmp_path / "meta_000100.json").touch()
    assert "--keep-step" in call("prune", tmp_path, "-s", "100", "--keep", "1").err


# Of a trainer, in an example of `ckpt latest`.
FOREIGN = {"--resume"}


def test_what_the_package_tells_to_type_is_there() -> None:
    """Every option and command in a message, a hint or a help is one that there is."""
    found = _module().commands()
    options = {name for c in found for option in c.options for name in option.names} | FOREIGN
    names = {c.name for c in found}
    for path in (HERE.parent / "ckpt_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value))
            assert named <= options, f"{path.name}, line {node.lineno}: {named - options}"
            for command in re.findall(r"`ckpt ([a-z-]+)", node.value):
                assert command in names, f"{path.name}: there is no command {command}"


def test_what_brackets_hold_is_no_value() -> None:
    """`NAME[:min|max]` offers nothing, `cuda[:N]` offers cuda."""
    found = {(c.name, name): one.offer for c in _module().commands() for one in c.options for name in one.names}
    assert found["latest", "--metric"] == "" and "cuda" in str(found["load-test", "--device"]).split()
    assert "nanochat-window" in str(found["load-test", "--family"]).split()


def test_scripts_are_those_of_the_app() -> None:
    """`make completions` writes them: nobody edits them, and no option is forgotten."""
    for name, text in _made().items():
        assert (HERE / name).read_text() == text, f"{name} is stale: make completions"
