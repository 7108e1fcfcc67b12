"""Folders that cannot be moved as a whole: at every moment the trainer finds a whole checkpoint, or what was there."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_cli import journal
from ckpt_cli.whereabouts import is_found, own_folders
from tests.conftest import Run
from tests.test_kill import TRAINER, contents, write_trainer

STEPS = (100, 200, 300)
WHOLE_RUN = ("--keep", "0", "--allow-empty", "--yes")


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    return write_trainer(tmp_path / "out", STEPS)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """A run in the lower layer of a real overlay, as in the image of a container: its folders cannot be renamed."""
    write_trainer(tmp_path / "lower" / "out", STEPS)
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    layers = ",".join(f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work"))
    mount = ["mount", "-t", "overlay", "overlay", "-o", f"{layers},redirect_dir=off", str(tmp_path / "merged")]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no overlay can be mounted here")
    yield tmp_path / "merged" / "out"
    subprocess.run(["umount", str(tmp_path / "merged")], check=True)


def found(run: Path) -> Path | None:
    """What the Trainer resumes from: the directory with the largest number, whatever is in it."""
    numbers = {int(m[1]): path for path in run.iterdir() if path.is_dir()
               and (m := re.fullmatch(r"checkpoint-([0-9]+)", path.name))}  # fmt: skip
    return numbers[max(numbers)] if numbers else None


def watching(monkeypatch: pytest.MonkeyPatch, run: Path, refused: Callable[..., bool] = lambda *_: False) -> list[str]:
    """Looks at the run after every call that changes it; returns what the trainer found, in order.

    A rename for which `refused` holds fails, as between two file systems.
    """
    seen: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "rename" and refused(*args):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            result = real(*args, **kwargs)
            newest = found(run)
            if newest is not None:
                assert sorted(os.listdir(newest)) == sorted(TRAINER), f"half of {newest.name} after {name} {args}"
            if not seen or seen[-1] != getattr(newest, "name", ""):
                seen.append(getattr(newest, "name", ""))
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("rename", "link", "unlink", "mkdir", "rmdir"):
        watch(name)
    return seen


def no_folder(source: str, target: str) -> bool:
    return os.path.isdir(source)


def steps_of(run: Path) -> list[int]:
    """The steps of which every file is there; fails where there is a half one."""
    for path in run.glob("checkpoint-*"):
        assert sorted(os.listdir(path)) == sorted(TRAINER), path
    return sorted(int(path.name[11:]) for path in run.glob("checkpoint-*"))


def check_whole_run(call: Run, run: Path, seen: list[str]) -> None:
    """All go but the last, which is named with what removes it; an undo brings the others back."""
    before = contents(run)
    done = call("prune", run, *WHOLE_RUN, "--trash", "--json")
    assert done.code == 3 and steps_of(run) == [300] and seen == ["checkpoint-300"]
    (problem,) = done.json["problems"]
    assert problem["path"] == str(run / "checkpoint-300")
    assert "moves no folder" in problem["detail"] and f"`rm -r {shlex.quote(problem['path'])}`" in problem["detail"]
    assert f"warning: {problem['path']} could not go: the file system" in done.err and "cross-device" not in done.err
    assert call("prune", run, "--undo").code == 0
    assert contents(run) == before and seen == ["checkpoint-300"]


def test_whole_run(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_whole_run(call, trainer, watching(monkeypatch, trainer, no_folder))


def test_whole_run_in_an_overlay(call: Run, overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="cross-device"):
        os.rename(overlay / "checkpoint-100", overlay / "moved")
    check_whole_run(call, overlay, watching(monkeypatch, overlay))


def test_what_is_not_newest_goes_in_an_overlay(call: Run, overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watching(monkeypatch, overlay)
    done = call("prune", overlay, "--keep", 1, "--yes")
    assert done.code == 0, done.err
    assert steps_of(overlay) == [300] and seen == ["checkpoint-300"]
    assert not (overlay / ".ckpt-trash").exists()


@pytest.mark.parametrize("step", STEPS)
def test_one_refusal(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Of one folder alone: it matters only for the one that a trainer would find."""
    name = str(trainer / f"checkpoint-{step}")
    watching(monkeypatch, trainer, lambda source, target: source == name)
    done = call("prune", trainer, *WHOLE_RUN)
    assert (done.code, steps_of(trainer)) == ((3, [300]) if step == 300 else (0, [])), done.err
    assert not (trainer / ".ckpt-trash").exists()


def test_a_single_file(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nothing moves, as where something is mounted: its checkpoint stays as it was."""
    before, name = contents(trainer), str(trainer / "checkpoint-100/config.json")
    watching(monkeypatch, trainer, lambda source, target: no_folder(source, target) or source == name)
    done = call("prune", trainer, "--keep", 1, "--yes", "--json")
    assert done.code == 3 and [problem["path"] for problem in done.json["problems"]] == [name]
    assert contents(trainer) == {key: data for key, data in before.items() if "-200" not in key}


def test_the_way_back(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that can no more come back as one stays in the trash, whole, where a trainer would find half of it."""
    before = contents(trainer)
    assert call("prune", trainer, *WHOLE_RUN, "--trash").code == 0
    seen = watching(monkeypatch, trainer, no_folder)
    done = call("prune", trainer, "--undo")
    assert done.code == 3 and "moves no folder" in done.err and seen in ([], [""])
    assert len([name for name in contents(trainer) if ".ckpt-trash" in name]) == len(before) + 1
    monkeypatch.undo()
    # What an undo could not do, it does as soon as it can.
    watching(monkeypatch, trainer)
    assert call("prune", trainer, "--undo").code == 0 and contents(trainer) == before


def test_the_way_back_below_a_newer_one(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(trainer)
    assert call("prune", trainer, *WHOLE_RUN, "--trash").code == 0
    seen = watching(monkeypatch, trainer, lambda source, target: no_folder(source, target) and "-300" not in source)
    assert call("prune", trainer, "--undo").code == 0
    assert contents(trainer) == before and seen[-1] == "checkpoint-300" and "checkpoint-200" not in seen


def test_a_kill_among_the_files(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next prune brings back what had gone, file by file, while the newest is there."""

    class Died(BaseException):
        pass

    def kill(source: str, target: str) -> bool:
        if "checkpoint-200/" in source:
            raise Died
        return no_folder(source, target)

    before = contents(trainer)
    with monkeypatch.context() as dead:
        watching(dead, trainer, kill)
        dead.setattr("ckpt_cli.execution.put_back", lambda operation: journal.Outcome())
        dead.setattr("ckpt_cli.execution._roll_back", lambda run, id: [])
        with pytest.raises(Died):
            call("prune", trainer, *WHOLE_RUN)
    assert contents(trainer) != before
    watching(monkeypatch, trainer, no_folder)
    assert call("prune", trainer, "--keep", 9, "--yes").code == 0
    assert contents(trainer) == before


def test_a_folder_with_something_else_in_it(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stay, with that alone in it, and a trainer would resume from there when those above are gone."""
    (trainer / "checkpoint-200/notes.txt").write_text("mine")
    done = call("prune", trainer, *WHOLE_RUN)
    assert done.code == 3 and "what else is in it" in done.err
    assert os.listdir(trainer) == ["checkpoint-200"]
    assert sorted(os.listdir(trainer / "checkpoint-200")) == sorted([*TRAINER, "notes.txt"])
    # The optimizer alone leaves nothing half.
    assert call("prune", trainer, "--keep", 0, "--optimizer-only", "--yes").code == 0
    assert not (trainer / "checkpoint-200/optimizer.pt").exists()


def test_read_only_files_go_with_their_folder(tmp_path: Path) -> None:
    """As one, for somebody whom modes mean something to; they could be deleted out of it."""
    if os.getuid():
        pytest.skip("only root can act as somebody else")
    run = write_trainer(tmp_path / "out", STEPS)
    for path in run.glob("*/*"):
        path.chmod(0o444)
    for path in (run, *run.iterdir()):
        os.chown(path, 65534, 65534)
    files = [journal.File(f"checkpoint-100/{name}", 0, 0, (run / "checkpoint-100" / name).stat().st_ino)
             for name in TRAINER]  # fmt: skip
    for folder in (run, *run.parents):  # what pytest makes is for its user alone
        if folder.stat().st_mode & 0o77 == 0:
            folder.chmod(0o711)
    pid = os.fork()
    if not pid:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        as_one = own_folders(str(run), files) == ("checkpoint-100",)
        os._exit(0 if as_one and not os.access(run / "checkpoint-100/config.json", os.W_OK) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_incomplete_one_goes_file_by_file(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is half already, and the trainer finds a whole one again."""
    (trainer / "checkpoint-300/model.safetensors").unlink()
    real = os.rename

    def rename(source: str, target: str) -> None:
        if no_folder(source, target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    done = call("prune", trainer, "--keep", 2, "--incomplete", "--yes")
    assert done.code == 0, done.err
    assert steps_of(trainer) == [100, 200]


@pytest.mark.parametrize(
    ("name", "others", "wanted"),
    [
        ("checkpoint-300", ["checkpoint-200"], True),
        ("checkpoint-300", ["checkpoint-1000"], False),
        ("checkpoint-300", ["checkpoint-400-old", "epoch_400", ".checkpoint-400"], True),
        ("step-00000300", ["step-00000299"], True),
        ("epoch=3-step=300", ["epoch=4-step=400"], False),
        ("recipe_state", [], False),
    ],
)
def test_what_a_trainer_finds(tmp_path: Path, name: str, others: list[str], wanted: bool) -> None:
    for other in (name, *others):
        (tmp_path / other).mkdir()
    (tmp_path / "checkpoint-999").write_text("a file is no checkpoint")
    assert is_found(str(tmp_path), name) is wanted
