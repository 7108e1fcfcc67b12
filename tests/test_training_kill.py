"""No kill, failing call or dying rank at any point of a save costs a checkpoint or lets half of one be found.

`training_worker` forks the ranks of each save, one of which dies or fails at its N-th call that changes the file
system; where strace is installed, the kernel does it too. What is found is judged by nanochat's own rule, by
`ckpt list` and by `ckpt verify`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ckpt_cli.app import main
from tests.conftest import REPOSITORY
from tests.test_kill import TIMEOUT, TRACED, contents, points_of, strace, trainers_newest

__all__ = ["strace"]
Files = dict[str, bytes]
FAILED = 3


class Done(NamedTuple):
    """How each rank of a save ended, what it said, and its calls that change the file system."""

    codes: list[int]
    said: list[str]
    calls: list[list[str]]


class Saver:
    """A worker, and the folder its saves go to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(REPOSITORY)},
        )

    def ask(self, **task: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def save(self, tree: Path, step: int, value: float, world: int = 1, **more: Any) -> Done:
        done = Done(**self.ask(directory=str(run_of(tree)), step=step, value=value, world=world, **more))
        assert not any("Traceback" in said for said in done.said), done
        return done

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(TIMEOUT)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def saver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saver]:
    made = Saver(tmp_path_factory.mktemp("saver"))
    yield made
    made.close()
    print("\npoints tried:", ", ".join(f"{name} {count}" for name, count in TRIED.items()), f"= {sum(TRIED.values())}")


TRIED: dict[str, int] = {}


def run_of(tree: Path) -> Path:
    return tree / "base_checkpoints" / "d2"


def of_step(files: Files, step: int) -> Files:
    return {name: data for name, data in files.items() if f"_{step:06d}" in name}


def judged(tree: Path) -> dict[int, str]:
    """The state that `ckpt list` gives each step; `ckpt verify` must find no fault in those that are complete."""
    states: dict[int, str] = {}
    for command in ("list", "verify"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            main([command, "--root", str(tree), "--json"])
        if not out.getvalue():
            return {}
        found = json.loads(out.getvalue())
        if command == "list":
            states = {row["step"]: row["state"] for row in found["checkpoints"]}
            continue
        for row in found["results"]:
            step = int(row["ref"].rpartition("/")[2])
            assert states[step] != "complete" or row["status"] == "ok" or row["path"].endswith(".json"), row
    return states


def check(
    tree: Path, before: Files, after: Files, step: int, later: int | None = None, judge: bool = True
) -> bool:  # fmt: skip
    """Every other step is as it was; the step that was being saved is as before, or as after, or cannot be found.

    Returns whether it can be found. `judge` asks the commands too.
    """
    here = contents(run_of(tree)) if run_of(tree).is_dir() else {}
    others = {s for name in before if (s := int(re.findall(r"_([0-9]{6})", name)[0])) != step}
    for other in others:
        assert of_step(here, other) == of_step(before, other), f"step {other} changed"
    mine = {name: data for name, data in of_step(here, step).items() if not name.endswith(".replaced")}
    there = f"model_{step:06d}.pt" in mine
    assert not there or mine in (of_step(before, step), of_step(after, step)), f"step {step} is a mixture: {list(mine)}"
    if judge:
        found = judged(tree).get(step)
        assert found == "complete" if there else found in (None, "in-progress"), found
    newest = later or max([*others, *([step] if there else [])], default=None)
    assert (trainers_newest(run_of(tree)) if here else None) == newest
    return there


def check_cleared(saver: Saver, tree: Path, before: Files, after: Files, step: int, world: int) -> None:
    """After the next save, of another step, nothing of the one that died is in the way."""
    done = saver.save(tree, 90, 9, world)
    assert done.codes == [0] * world, done
    here = contents(run_of(tree))
    odd = [name for name in here if name.endswith((".replaced", ".tmp"))]
    assert not odd, odd
    there = check(tree, before, after, step, later=90)
    assert there or not of_step(before, step), f"step {step} was not put back: {list(here)}"


class Scene(NamedTuple):
    """A run, and a save into it: what lies there before and after."""

    name: str
    base: Path
    before: Files
    after: Files
    step: int
    value: float
    calls: list[list[str]]
    world: int
    optimizer: bool

    def save(self, saver: Saver, tree: Path, **more: Any) -> Done:
        return saver.save(tree, self.step, self.value, self.world, optimizer=self.optimizer, **more)


def scene(
    saver: Saver, folder: Path, name: str, steps: Sequence[int], step: int, world: int = 1,
    earlier_world: int | None = None, optimizer: bool = True, manifests: bool = True,
) -> Scene:  # fmt: skip
    base, tree = folder / f"{name}-base", folder / f"{name}-whole"
    base.mkdir()
    for number in steps:
        assert not any(saver.save(base, number, number / 100, earlier_world or world).codes)
    if not manifests:
        for path in run_of(base).glob("*.sha256"):
            path.unlink()
    before = contents(run_of(base)) if steps else {}
    shutil.copytree(base, tree)
    made = Scene(name, base, before, {}, step, 7, [], world, optimizer)
    done = made.save(saver, tree)
    assert done.codes == [0] * world, done
    after = contents(run_of(tree))
    assert of_step(after, step) and of_step(after, step) != of_step(before, step)
    assert not [name for name in after if name.endswith((".replaced", ".tmp"))]
    return made._replace(after=after, calls=done.calls)


SCENES: dict[str, dict[str, Any]] = {
    "new step": {"steps": (10, 20), "step": 30},
    "first of a run": {"steps": (), "step": 10},
    "replaced step": {"steps": (10, 20), "step": 20},
    # Alone: beside steps of more ranks one of fewer counts as incomplete.
    "replaced, of more ranks": {"steps": (20,), "step": 20, "earlier_world": 2},
    "replaced, as the trainer itself writes it": {"steps": (10, 20), "step": 20, "manifests": False},
    "replaced, without optimizer": {"steps": (10, 20), "step": 20, "optimizer": False},
}


def deaths(calls: Sequence[str]) -> list[tuple[str, int]]:
    """After one call is before the next."""
    return [(mode, n) for mode, n in points_of(calls) if mode != "after" or n == len(calls)]


@pytest.mark.parametrize("name", SCENES)
def test_killed_save(saver: Saver, tmp_path: Path, name: str) -> None:
    """A kill before every call, in the middle of each write, and after the last."""
    what = scene(saver, tmp_path, "scene", **SCENES[name])
    points = deaths(what.calls[0])
    found = 0
    for mode, at in points:
        tree = tmp_path / "tree"
        shutil.copytree(what.base, tree)
        done = what.save(saver, tree, fault={"mode": mode, "at": at})
        assert done.codes == [-signal.SIGKILL], done
        # Writing is most of the calls, and what it leaves is alike.
        telling = what.calls[0][at - 1] != "write" or at % 20 == 0
        found += check(tree, what.before, what.after, what.step, judge=telling)
        if telling:
            check_cleared(saver, tree, what.before, what.after, what.step, 1)
        shutil.rmtree(tree)
    assert 0 < found < len(points)
    TRIED[name] = len(points)
    # Each of its own files, and each of those that were there before, is renamed once.
    files = len(of_step(what.after, what.step)) + len(of_step(what.before, what.step))
    assert what.calls[0].count("replace") == files


@pytest.mark.parametrize("new", [0, 1, 3])
def test_killed_while_putting_back(saver: Saver, tmp_path: Path, new: int) -> None:
    """A save died when all of a step was aside and `new` of its files had their names; so do those that put it back."""
    what = scene(saver, tmp_path, "scene", **SCENES["replaced step"])
    renames = [n for n, call in enumerate(what.calls[0], 1) if call == "replace"]
    died = {"mode": "after", "at": renames[len(of_step(what.before, 20)) + new - 1]}
    tree = tmp_path / "tree"
    shutil.copytree(what.base, tree)
    assert what.save(saver, tree, fault=died).codes == [-signal.SIGKILL]
    assert trainers_newest(run_of(tree)) == 10
    whole = tmp_path / "recovered"
    shutil.copytree(tree, whole)
    done = saver.save(whole, 30, 3)
    assert done.codes == [0] and of_step(contents(run_of(whole)), 20) == of_step(what.before, 20)
    first = done.calls[0].index("write")
    for at in range(1, first + 2):
        again = tmp_path / "again"
        shutil.copytree(tree, again)
        assert saver.save(again, 30, 3, fault={"mode": "before", "at": at}).codes == [-signal.SIGKILL]
        check(again, what.before, what.before, 20)
        check_cleared(saver, again, what.before, what.before, 20, 1)
        assert of_step(contents(run_of(again)), 20) == of_step(what.before, 20)
        shutil.rmtree(again)
    TRIED[f"putting back, {new} new"] = first + 1


@pytest.mark.parametrize("mode", ["EIO", "ENOSPC", "interrupt"])
@pytest.mark.parametrize("name", ["new step", "first of a run", "replaced, of more ranks"])
def test_failing_save(saver: Saver, tmp_path: Path, name: str, mode: str) -> None:
    """A call that fails, or Ctrl-C at it: everything is as it was, and said; or the failure did not matter."""
    what = scene(saver, tmp_path, "scene", **SCENES[name])
    calls = what.calls[0]
    failed = 0
    # Writes are alike but for the first and last of a file.
    points = [n for n in range(1, len(calls) + 1) if calls[n - 1] != "write" or calls[n - 2 : n + 1].count("write") < 3]
    for at in points:
        tree = tmp_path / "tree"
        shutil.copytree(what.base, tree)
        done = what.save(saver, tree, fault={"mode": mode, "at": at})
        here = contents(run_of(tree)) if run_of(tree).is_dir() else {}
        if done.codes == [0]:
            # What could not be taken away any more is all there may be besides.
            assert {k: v for k, v in here.items() if not k.endswith(".replaced")} == what.after, (at, calls[at - 1])
        elif calls[at - 1] == "unlink":  # interrupted once all was done
            assert of_step(here, what.step).items() >= of_step(what.after, what.step).items()
        else:
            failed += 1
            assert done.codes == [FAILED if mode != "interrupt" else 4], done
            assert mode == "interrupt" or os.strerror(getattr(errno, mode)) in done.said[0], done
            assert here == what.before, (at, calls[at - 1], list(here))
        check_cleared(saver, tree, what.before, what.after, what.step, 1)
        shutil.rmtree(tree)
    assert failed > len(points) // 2
    TRIED[f"{name}, {mode}"] = len(points)


@pytest.mark.parametrize("inject", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
@pytest.mark.parametrize("name", ["new step", "replaced step"])
def test_strace(saver: Saver, tmp_path: Path, strace: str, name: str, inject: str) -> None:
    """The same by the kernel's hand, at each system call by which files come, go and become durable."""
    what = scene(saver, tmp_path, "scene", **SCENES[name])
    log = tmp_path / "log"

    def traced(tree: Path, *options: str) -> Done:
        hold = tmp_path / "hold"
        pid = saver.ask(
            directory=str(run_of(tree)), step=what.step, value=what.value, world=1, hold=str(hold)
        )["pid"]  # fmt: skip
        command = [strace, "-f", "-o", str(log), "-e", f"trace={','.join(TRACED)}", *options, "-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr
            said = tracer.stderr.readline()
            hold.touch()
            done = Done(**saver.answer())
            tracer.wait(TIMEOUT)
        assert "attached" in said, said
        hold.unlink()
        return done

    tree = tmp_path / "tree"
    shutil.copytree(what.base, tree)
    assert traced(tree).codes == [0]
    shutil.rmtree(tree)
    calls = re.findall(r"^[0-9]+ +([a-z0-9]+)\(", log.read_text(), re.MULTILINE)
    assert len(calls) > 8, calls
    points = [(call, n) for call in TRACED for n in range(1, calls.count(call) + 1)]
    for call, number in points:
        shutil.copytree(what.base, tree)
        done = traced(tree, "-e", f"inject={call}:{inject}:when={number}")
        if inject == "signal=SIGKILL":
            assert done.codes == [-signal.SIGKILL], done
        else:
            assert "(INJECTED)" in log.read_text()
            assert done.codes in ([0], [FAILED]), done
        check(tree, what.before, what.after, what.step)
        check_cleared(saver, tree, what.before, what.after, what.step, 1)
        shutil.rmtree(tree)
    TRIED[f"strace {inject}, {name}"] = len(points)


# --- several ranks


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("name", ["new step", "replaced step"])
def test_a_rank_dies(saver: Saver, tmp_path: Path, name: str, victim: int) -> None:
    """One of two ranks is killed at each call but the writes: the other says so, and no step is found in half."""
    what = scene(saver, tmp_path, "scene", **{**SCENES[name], "world": 2})
    calls = what.calls[victim]
    points = [(mode, n) for mode, n in deaths(calls) if calls[n - 1] != "write"]
    for mode, at in points:
        tree = tmp_path / "tree"
        shutil.copytree(what.base, tree)
        done = what.save(saver, tree, fault={"rank": victim, "mode": mode, "at": at})
        other = 1 - victim
        assert done.codes[victim] == -signal.SIGKILL
        there = check(tree, what.before, what.after, what.step)
        if done.codes[other]:
            assert done.codes[other] == FAILED and "another rank went away" in done.said[other], done
        else:
            assert there and contents(run_of(tree)).items() >= what.after.items()
        check_cleared(saver, tree, what.before, what.after, what.step, 2)
        shutil.rmtree(tree)
    TRIED[f"rank {victim} of 2, {name}"] = len(points)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_fails(saver: Saver, tmp_path: Path, victim: int) -> None:
    """A call of one of two ranks fails: both raise, the other names it, and everything is as it was."""
    what = scene(saver, tmp_path, "scene", steps=(10, 20), step=20, world=2)
    calls = what.calls[victim]
    points = [n for n in range(1, len(calls) + 1) if calls[n - 1] != "write" or calls[n - 2] != "write"]
    for at in points:
        tree = tmp_path / "tree"
        shutil.copytree(what.base, tree)
        done = what.save(saver, tree, fault={"rank": victim, "mode": "ENOSPC", "at": at})
        if calls[at - 1] == "unlink":
            assert done.codes == [0, 0]
        else:
            assert done.codes == [FAILED, FAILED], (calls[at - 1], done)
            assert f"rank {victim} could not save its part" in done.said[1 - victim]
            assert contents(run_of(tree)) == what.before, (at, calls[at - 1])
        shutil.rmtree(tree)
    TRIED[f"rank {victim} of 2 fails"] = len(points)
