"""Pruning on a disk too full for a journal: what goes, goes whole; names tell what a kill has left."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_cli.aside import asides_of, comes_back, left_aside
from ckpt_cli.journal import interrupted
from tests.conftest import Run
from tests.test_exdev import WHOLE_RUN, found, steps_of, watching
from tests.test_kill import contents, part_names, write_trainer, write_tree
from tests.test_removal import failing


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    return write_trainer(tmp_path / "out", (100, 200, 300))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trash can be made."""
    failing(monkeypatch, "mkdir", errno.ENOSPC, lambda path, *_: ".ckpt-trash" in str(path))


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with a run of the Trainer and one of nanochat, and not a byte left."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if request.param == "ext4":
        with open(tmp_path / "image", "wb") as image:
            image.truncate(4 << 20)
        made = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if not made or subprocess.run([made, "-q", "-m", "0", str(tmp_path / "image")], capture_output=True).returncode:
            pytest.skip("no ext4 can be made here")
        mount = ["mount", "-o", "loop", str(tmp_path / "image"), str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        write_trainer(place / "out", (100, 200, 300))
        write_tree(place, ("d2",))
        with open(place / "filling", "wb") as filling:
            while True:
                try:
                    os.write(filling.fileno(), bytes(1 << 12))
                except OSError:
                    break
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full(call: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space"):
        (small / "folder").mkdir()
        (small / "folder" / "more").write_bytes(bytes(1 << 16))
    seen = watching(monkeypatch, small / "out")
    before = contents(small)
    done = call("prune", small, "--keep", 1, "--yes", "--json")
    assert done.code == 0, done.err
    gone = {path for group in done.json["groups"] for item in group["remove"] for path in item["paths"]}
    assert set(contents(small)) == set(before) - {os.path.relpath(path, small) for path in gone} and len(gone) == 24
    assert seen == ["checkpoint-300"] and not list(small.rglob(".ckpt-trash*"))


@pytest.mark.usefixtures("full")
def test_a_whole_run_of_folders(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watching(monkeypatch, trainer)
    done = call("prune", trainer, *WHOLE_RUN)
    assert done.code == 0 and "disk is full" in done.err and not contents(trainer)
    assert seen == ["checkpoint-300", ""] and not list(trainer.iterdir())


def test_the_rest_goes_by_a_journal(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first has freed is room enough for one; an interrupt then says what is gone already."""
    rooms = failing(monkeypatch, "mkdir", errno.ENOSPC, lambda *args: (trainer / "checkpoint-100").exists())
    moved: list[str] = []
    rename = os.rename

    def noted(source: str, target: str) -> None:
        if "/.ckpt-trash/" in target:
            moved.append(os.path.basename(source))
            if len(moved) == 2:
                raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", noted)
    done = call("prune", trainer, *WHOLE_RUN)
    assert done.code == 130 and "back in its place, but for 1 that went without a journal" in done.err
    assert rooms and moved == ["checkpoint-200", "checkpoint-300"] and steps_of(trainer) == [200, 300]


@pytest.mark.usefixtures("full")
def test_something_else_written_into_it(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def late(source: str, target: str) -> None:
        if source.endswith("checkpoint-100"):
            Path(source, "samples.txt").write_text("mine")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    done = call("prune", trainer, "--keep", 1, "--yes")
    assert done.code == 3 and "checkpoint-100 could not go: something else was written into it" in done.err
    assert (trainer / "checkpoint-100/samples.txt").read_text() == "mine"
    assert sorted(os.listdir(trainer)) == ["checkpoint-100", "checkpoint-300"]


@pytest.mark.usefixtures("full")
def test_where_nothing_can_be_renamed(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go where they lie, but those of the folder that the trainer would find half of."""
    failing(monkeypatch, "rename", errno.ENOSPC, lambda *args: True)
    seen = watching(monkeypatch, trainer)
    done = call("prune", trainer, *WHOLE_RUN, "--json")
    assert done.code == 3 and steps_of(trainer) == [300] and seen == ["checkpoint-300"]
    (problem,) = done.json["problems"]
    assert problem["path"] == str(trainer / "checkpoint-300") and "half of it" in problem["detail"]
    assert done.json["freed_bytes"] == sum(
        gone["bytes"] for gone in done.json["groups"][0]["remove"] if not gone["ref"].endswith("300")
    )


@pytest.mark.usefixtures("full")
def test_one_that_cannot_be_deleted(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it is named, other commands say so, and the next prune tries again."""
    with monkeypatch.context() as broken:
        failing(broken, "unlink", errno.EIO, lambda name, **_: str(name).endswith("optimizer.pt"))
        done = call("prune", trainer, "--keep", 2, "--yes")
        assert done.code == 3 and re.search(r"\.ckpt-trash\S+checkpoint-100\S* could not go", done.err), done.err
        assert found(trainer) == trainer / "checkpoint-300" and not (trainer / "checkpoint-100").exists()
        assert "was cut off" in call("list", trainer).err and interrupted(str(trainer))
        assert "not finished" in call("prune", trainer, "--keep", 2, "--yes").err
    done = call("prune", trainer, "--keep", 2, "--yes")
    assert done.code == 0 and "without a journal, was finished" in done.err
    assert sorted(os.listdir(trainer)) == ["checkpoint-200", "checkpoint-300"]


def test_names_say_what_to_do(call: Run, tmp_path: Path) -> None:
    """Cut off among the renames, also in the middle of the way back, it comes back; among the deletions, it goes."""
    write_tree(tmp_path, ("d2",))
    run = tmp_path / "base_checkpoints/d2"
    before = contents(tmp_path)
    for step in (100, 200):
        for aside in asides_of(str(run), part_names(step))[: 3 if step == 100 else 4]:
            os.rename(aside.home, aside.path)
    first, second = left_aside(str(run))
    if len(first) == 4:
        first, second = second, first
    assert comes_back(first) and not comes_back(second) and not comes_back(second[1:])
    os.link(first[2].path, first[2].home)
    os.unlink(second[0].path)
    done = call("prune", tmp_path, "--keep", 9, "--yes")
    assert done.code == 0 and "was put back" in done.err and "was finished" in done.err
    assert contents(tmp_path) == {name: data for name, data in before.items() if "000200" not in name}


@pytest.mark.parametrize(
    "name", ["model_000100.pt", "epoch_0/with space/ü", "%41.%2F", "a\nb", os.fsdecode(b"\xff\xfe"), "1-of-2.x"]
)
def test_names_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    asides = asides_of(str(tmp_path), [name, "other"])
    for aside in asides:
        Path(aside.path).touch()
    for other in (".ckpt-trash.xyz.a.1-of-2", ".ckpt-trash.00000000....1-of-2", ".ckpt-trash.00000000.a.0-of-2"):
        (tmp_path / other).touch()
    assert left_aside(str(tmp_path)) == [asides]


def test_beside_what_accelerate_counts(tmp_path: Path) -> None:
    """It takes the first number of every name, and goes on from the largest."""
    run = tmp_path / "checkpoints"
    (run / "checkpoint_3").mkdir(parents=True)
    (aside,) = asides_of(str(run), ["checkpoint_3"])
    assert re.findall("[0-9]+", os.path.basename(aside.path))[0] == "0"
    os.rename(run / "checkpoint_3", aside.path)
    assert left_aside(str(run)) == [[aside]]
