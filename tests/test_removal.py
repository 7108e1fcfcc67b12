"""Pruning in this process: what goes, what stays whatever happens, and what a trash can and cannot do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_cli import execution, journal, settling
from ckpt_cli.atomic import locked
from ckpt_cli.errors import CkptError, Interrupted, NotFound, Refused
from ckpt_cli.ui import out
from tests.conftest import Run
from tests.test_kill import STEPS, age, contents, part_names


def steps_of(run: Path) -> list[int]:
    """The steps of which every file is there; fails where there is a half one."""
    found = []
    for step in STEPS:
        there = [name for name in part_names(step) if os.path.lexists(run / name)]
        assert len(there) in (0, len(part_names(step))), f"{run.name}/{step} is half gone: {there}"
        if there:
            found.append(step)
    return found


def meanwhile(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Lets something happen between the plan and the removal: while the user thinks about the question."""

    def confirm(question: str, yes: bool) -> bool:
        action()
        return True

    monkeypatch.setattr(out, "confirm", confirm)


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, code: int, applies: Callable[..., bool], times: int = 10**6
) -> list[Any]:
    """Makes calls of an `os` function fail where `applies` says so; returns the list of those that did."""
    real = getattr(os, name)
    failed: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(failed) < times and applies(*args):
            failed.append(args)
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return failed


def noting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """The file names that `os.rename` or `os.link` is called for, in order."""
    real = getattr(os, name)
    names: list[str] = []

    def call(source: str, target: str, **options: bool) -> None:
        names.append(os.path.basename(target))
        real(source, target, **options)

    monkeypatch.setattr(os, name, call)
    return names


def save_again(path: Path, like: Path) -> None:
    """What a trainer does that writes a step once more; as old as another file, so that no restart is suspected."""
    path.write_bytes(b"saved again")
    os.utime(path, (like.stat().st_mtime,) * 2)


def trash_of(run: Path) -> Path:
    """The one operation in the trash of a run."""
    (folder,) = (run / ".ckpt-trash").iterdir()
    return folder


# What goes and what stays.


def test_prune_keeps_the_newest(call: Run, root: Path, run: Path) -> None:
    before = contents(root)
    done = call("prune", root, "--keep", "2", "--yes")
    assert done.code == 0, done.err
    assert steps_of(run) == steps_of(root / "base_checkpoints" / "d4") == [300, 400]
    assert contents(root) == {
        name: data for name, data in before.items() if "000100" not in name and "00200" not in name
    }
    assert not list(root.rglob(".ckpt-trash"))


def test_selector_spares_the_other_run(call: Run, root: Path, run: Path) -> None:
    assert call("prune", "base/d2", "--root", root, "--keep", "1", "--yes").code == 0
    assert steps_of(run) == [400]
    assert steps_of(root / "base_checkpoints" / "d4") == list(STEPS)


def test_dry_run_changes_nothing(call: Run, root: Path) -> None:
    before = contents(root)
    done = call("prune", root, "--keep", "1", "-n", "--json")
    assert done.code == 0 and done.json["dry_run"] is True
    assert done.json["freed_bytes"] == sum(len(data) for name, data in before.items() if "000400" not in name)
    assert contents(root) == before
    assert call("prune", root, "--keep", "1", "-n", "-q").out.split() == [
        f"base/{run}/{step}" for run in ("d2", "d4") for step in (100, 200, 300)
    ]


def test_json(call: Run, root: Path, run: Path) -> None:
    freed = sum((run / name).stat().st_size for step in (100, 200, 300) for name in part_names(step))
    done = call("prune", root, "--tag", "d2", "--keep", "1", "--yes", "--json")
    assert done.code == 0, done.err
    body = done.json
    assert list(body)[:2] == ["schema_version", "command"] and body["schema_version"] == 1
    assert body["command"] == "prune" and body["dry_run"] is False and body["trash_id"] is None
    assert body["freed_bytes"] == freed and all(isinstance(policy, str) for policy in body["policies"])
    (group,) = body["groups"]
    assert (group["source"], group["tag"], group["ignored"]) == ("base", "d2", [])
    (kept,) = group["keep"]
    assert kept["ref"] == "base/d2/400" and "last 1" in kept["reasons"]
    assert [gone["ref"] for gone in group["remove"]] == ["base/d2/100", "base/d2/200", "base/d2/300"]
    assert sum(gone["bytes"] for gone in group["remove"]) == freed
    assert group["remove"][0]["paths"] == [str(run / name) for name in part_names(100)]


def test_needs_a_policy_and_a_yes(call: Run, root: Path) -> None:
    before = contents(root)
    for arguments, code in (
        ((), 2),
        (("--keep", "-1", "--yes"), 2),
        (("--keep", "1"), 4),
        (("--keep", "1", "--id", "x", "--yes"), 2),
        (("--undo", "--purge"), 2),
        (("--undo", "--keep", "1"), 2),
        (("--keep", "0", "--yes"), 4),
        (("--step", "100", "--keep", "1", "--yes"), 2),
    ):
        done = call("prune", root, *arguments, "--json")
        assert (done.code, done.out) == (code, ""), (arguments, done)
        assert done.err.splitlines()[-1].startswith(("error: ", "hint: ")), done.err
    assert contents(root) == before


def test_declined(call: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(root)
    monkeypatch.setattr(out, "confirm", lambda question, yes: False)
    done = call("prune", root, "--keep", "1", "--json")
    assert done.code == 1 and done.json["freed_bytes"] == 0
    assert call("prune", root, "--keep", "1").code == 1
    assert contents(root) == before


def test_in_progress_is_ignored(call: Run, root: Path, run: Path) -> None:
    """The newest step is being written: no optimizer shard yet."""
    (run / "model_000500.pt").write_bytes((run / "model_000400.pt").read_bytes())
    done = call("prune", root, "--keep", "1", "--yes", "--json")
    assert done.code == 0, done.err
    assert done.json["groups"][0]["ignored"] == [{"ref": "base/d2/500", "reason": "in progress"}]
    assert steps_of(run) == [400] and (run / "model_000500.pt").exists()
    assert call("prune", root, "--keep", "1", "--incomplete", "--yes").code == 0
    assert (run / "model_000500.pt").exists()


def test_incomplete_never_counts_as_kept(call: Run, root: Path, run: Path) -> None:
    (run / "meta_000400.json").unlink()
    (run / "optim_000200_rank1.pt").unlink()
    assert call("prune", root, "--tag", "d2", "--keep", "1", "--yes").code == 0
    left = sorted(path.name for path in run.iterdir())
    assert left == sorted(
        {*part_names(200), *part_names(300), *part_names(400)} - {"meta_000400.json", "optim_000200_rank1.pt"}
    )
    assert call("prune", root, "--tag", "d2", "--keep", "1", "--incomplete", "--yes").code == 0
    assert sorted(path.name for path in run.iterdir()) == sorted(part_names(300))


@pytest.mark.parametrize("name", ["model_000400.pt", "optim_000400_rank1.pt"])
def test_truncated_newest_does_not_count(call: Run, root: Path, run: Path, name: str) -> None:
    """A full disk cut the newest file off: the last good checkpoint must not go for it."""
    size = (run / name).stat().st_size
    os.truncate(run / name, size // 2)
    age(run / name, 86400)
    done = call("prune", root, "--tag", "d2", "--keep", "1", "--yes", "--json")
    assert done.code == 0, done.err
    assert [kept["ref"] for kept in done.json["groups"][0]["keep"]] == ["base/d2/300"]
    assert [ignored["ref"] for ignored in done.json["groups"][0]["ignored"]] == ["base/d2/400"]
    assert steps_of(run) == [300, 400]


def test_keep_nothing(call: Run, root: Path, run: Path) -> None:
    before = contents(root)
    for arguments in (
        ("--keep", "0"),
        ("--keep", "0", "--allow-empty"),
        ("--tag", "d2", "--keep", "1", "--allow-empty"),
    ):
        done = call("prune", root, *arguments, "--yes", "--json")
        assert (done.code, done.out) == (4, ""), (arguments, done)
    assert contents(root) == before
    assert call("prune", root, "--tag", "d2", "--keep", "0", "--allow-empty", "--yes").code == 0
    assert not list(run.iterdir())
    assert steps_of(root / "base_checkpoints" / "d4") == list(STEPS)


def test_restarted_run(call: Run, root: Path, run: Path) -> None:
    """Step 200 was written a day after step 400: the run was started again in its own folder."""
    for name in part_names(200):
        age(run / name, 86400)
    before = contents(root)
    done = call("prune", root, "--keep", "1", "--yes", "--json")
    assert (done.code, done.out) == (4, "") and "--trust-steps" in done.err
    assert contents(root) == before
    assert call("prune", root, "--keep", "1", "--trust-steps", "--yes").code == 0
    assert steps_of(run) == [400]


def test_linked_run_is_ignored(call: Run, root: Path, run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    run.rename(outside)
    run.symlink_to(outside)
    before = contents(outside)
    done = call("prune", root, "--keep", "1", "--yes", "--json")
    assert done.code == 0, done.err
    linked = next(group for group in done.json["groups"] if group["tag"] == "d2")
    assert len(linked["ignored"]) == 4 and not linked["remove"]
    assert contents(outside) == before
    assert steps_of(root / "base_checkpoints" / "d4") == [400]


def test_foreign_files_stay(call: Run, root: Path, run: Path) -> None:
    foreign = {
        "old_model_000100.pt",
        "model_000200_backup.pt",
        "expected_logits.pt",
        "model_000100.pt.bak",
        "optim_000100_rank01.pt",
        "meta_000100.json.tmp",
        ".model_000100.pt.swp",
        "notes.txt",
    }
    for name in foreign:
        (run / name).write_bytes(name.encode())
        age(run / name, 86400)
    (run / "model_000100").mkdir()
    assert call("prune", root, "--tag", "d2", "--keep", "0", "--allow-empty", "--yes").code == 0
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == {
        name: name.encode() for name in foreign
    }
    assert (run / "model_000100").is_dir()


def test_pinned_stays(call: Run, root: Path, run: Path) -> None:
    (run / "model_000100.keep").touch()
    done = call("prune", root, "--tag", "d2", "--keep", "1", "--yes", "--json")
    assert done.json["groups"][0]["keep"][0]["reasons"] == ["pinned"]
    assert steps_of(run) == [100, 400]


def test_symbolic_links(call: Run, root: Path, run: Path, tmp_path: Path) -> None:
    """A part that is a link: the link goes, comes back and goes for good; its target is never touched."""
    elsewhere = tmp_path / "elsewhere.pt"
    (run / "model_000100.pt").rename(elsewhere)
    (run / "model_000100.pt").symlink_to(elsewhere)
    status, data = elsewhere.stat(), elsewhere.read_bytes()
    assert call("prune", root, "--tag", "d2", "--keep", "1", "--trash", "--yes").code == 0
    assert steps_of(run) == [400]
    assert call("prune", root, "--undo").code == 0
    assert (run / "model_000100.pt").is_symlink() and os.readlink(run / "model_000100.pt") == str(elsewhere)
    assert call("prune", root, "--tag", "d2", "--keep", "1", "--yes").code == 0
    assert steps_of(run) == [400]
    assert (elsewhere.stat().st_ino, elsewhere.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert elsewhere.read_bytes() == data


def test_hard_links(call: Run, root: Path, run: Path, tmp_path: Path) -> None:
    """Parts that share an inode, with each other and with a file outside: only the names that are meant go."""
    (run / "model_000200.pt").unlink()
    os.link(run / "model_000100.pt", run / "model_000200.pt")
    os.link(run / "model_000100.pt", tmp_path / "outside.pt")
    before = contents(run)
    assert call("prune", root, "--tag", "d2", "--keep", "2", "--trash", "--trust-steps", "--yes").code == 0
    assert steps_of(run) == [300, 400]
    assert call("prune", root, "--undo").code == 0
    assert contents(run) == before
    assert (run / "model_000100.pt").stat().st_nlink == 3
    done = call("prune", root, "--tag", "d2", "--keep", "2", "--trust-steps", "--yes", "--json")
    assert done.json["freed_bytes"] == sum(map(len, before.values())) - sum(map(len, contents(run).values())) - 2 * len(
        before["model_000100.pt"]
    )
    assert steps_of(run) == [300, 400] and (tmp_path / "outside.pt").read_bytes() == before["model_000100.pt"]


# Between the plan and the removal.


@pytest.mark.parametrize("name", ["model_000100.pt", "optim_000200_rank0.pt", "model_000400.pt", "meta_000400.json"])
@pytest.mark.parametrize("how", ["touched", "longer", "gone"])
def test_changed_since_the_plan(
    call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    """A file to be removed, or one of a checkpoint that is kept, is not as it was: nothing goes."""

    def change() -> None:
        if how == "touched":
            os.utime(run / name)
        elif how == "longer":
            status = (run / name).stat()
            with open(run / name, "ab") as file:
                file.write(b" ")
            os.utime(run / name, ns=(status.st_mtime_ns, status.st_mtime_ns))
        else:
            (run / name).unlink()

    meanwhile(monkeypatch, change)
    before = sorted(contents(root))
    done = call("prune", root, "--keep", "2", "--json")
    assert (done.code, done.out) == (4, ""), done.err
    assert name in done.err
    gone = {f"base_checkpoints/d2/{name}"} if how == "gone" else set()
    assert sorted(contents(root)) == sorted(set(before) - gone)
    assert not list(root.rglob(".ckpt-trash"))


def test_changed_between_the_look_and_the_rename(
    call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer saves a step again while the files go: that checkpoint stays, the rest is done."""
    real = journal.begin

    def begin(operation: journal.Operation, keep_trash: bool) -> int:
        descriptor = real(operation, keep_trash)
        if operation.run.endswith("d2"):
            (run / "fresh").write_bytes(b"saved again")
            os.replace(run / "fresh", run / "optim_000100_rank0.pt")
        return descriptor

    monkeypatch.setattr(execution, "begin", begin)
    done = call("prune", root, "--keep", "2", "--yes", "--json")
    assert done.code == 3 and "optim_000100_rank0.pt" in done.err
    assert steps_of(run) == [100, 300, 400]
    assert (run / "optim_000100_rank0.pt").read_bytes() == b"saved again"
    assert not list(root.rglob(".ckpt-trash"))


def test_newer_checkpoints_stay(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save() -> None:
        for old, new in zip(part_names(400), part_names(500)):
            shutil.copyfile(run / old, run / new)

    meanwhile(monkeypatch, save)
    assert call("prune", root, "--tag", "d2", "--keep", "2").code == 0
    assert steps_of(run) == [300, 400]
    assert all((run / name).exists() for name in part_names(500))


@pytest.mark.parametrize("arguments", [("--keep", "1", "--yes"), ("--undo",), ("--purge", "--yes")])
def test_another_ckpt_at_work(call: Run, root: Path, run: Path, arguments: tuple[str, ...]) -> None:
    """Whoever holds the run's directory is not disturbed: neither by a removal nor by what settles a trash."""
    assert call("prune", root, "--tag", "d2", "--keep", "3", "--trash", "--yes").code == 0
    before = contents(root)
    with locked(str(run)):
        done = call("prune", root, *arguments, "--json")
    assert (done.code, done.out) == (4, ""), done
    assert "another ckpt" in done.err
    assert contents(root) == before
    assert call("prune", root, *arguments).code == 0


# Files that cannot go.


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO, errno.EBUSY])
@pytest.mark.parametrize("name", ["model_000100.pt", "meta_000100.json", "optim_000100_rank1.pt"])
def test_file_that_cannot_be_renamed(
    call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    """That checkpoint stays whole; the rest goes."""
    before = contents(run)
    failed = failing(monkeypatch, "rename", code, lambda source, target: source == str(run / name))
    done = call("prune", root, "--keep", "2", "--yes", "--json")
    assert failed and done.code == 3 and done.json["problems"][0]["path"] == str(run / name)
    assert f"warning: {run / name} could not go: {os.strerror(code)}" in done.err
    assert steps_of(run) == [100, 300, 400]
    assert contents(run) == {key: data for key, data in before.items() if "000200" not in key}
    assert steps_of(root / "base_checkpoints" / "d4") == [300, 400]
    assert done.json["freed_bytes"] == sum(
        gone["bytes"] for group in done.json["groups"] for gone in group["remove"] if gone["ref"] != "base/d2/100"
    )


def test_file_that_can_neither_go_nor_come_back(
    call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a checkpoint is stuck in the trash: nothing of the run is deleted, and the next prune puts it back."""
    before = contents(root)
    with monkeypatch.context() as broken:
        failing(broken, "rename", errno.EIO, lambda source, target: "optim_000100" in source or "trash" in source)
        failing(broken, "link", errno.EIO, lambda *names: True)
        done = call("prune", root, "--tag", "d2", "--keep", "2", "--yes", "--json")
    assert done.code == 3 and str(trash_of(run)) in done.err
    assert done.json["freed_bytes"] == 0
    assert {Path(name).name for name in contents(root)} == {Path(name).name for name in before} | {"journal"}
    assert call("prune", root, "--keep", "9", "--yes").code == 0
    assert contents(root) == before and not list(root.rglob(".ckpt-trash"))


def test_file_that_cannot_be_deleted(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        failed = failing(broken, "unlink", errno.EIO, lambda path: "/d2/" in path and path.endswith("meta_000100.json"))
        done = call("prune", root, "--keep", "2", "--yes", "--json")
    assert failed and done.code == 3
    assert steps_of(run) == [300, 400]
    assert sorted(path.name for path in trash_of(run).iterdir()) == ["journal", "meta_000100.json"]
    path = str(trash_of(run) / "meta_000100.json")
    assert done.json["problems"] == [{"code": "stayed", "detail": os.strerror(errno.EIO), "path": path}]
    # Any other command warns and touches nothing.
    assert "was cut off" in call("list", root).err and trash_of(run).exists()
    done = call("prune", root, "--keep", "2", "--yes")
    assert done.code == 0 and "finished" in done.err
    assert not list(root.rglob(".ckpt-trash"))


def test_recovery_that_fails_again(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        failing(broken, "unlink", errno.EIO, lambda path: path.endswith("meta_000100.json"))
        assert call("prune", root, "--tag", "d2", "--keep", "2", "--yes").code == 3
        done = call("prune", root, "--tag", "d2", "--keep", "2", "--yes")
    assert "not finished" in done.err and "meta_000100.json stayed in the trash" in done.err
    assert call("prune", root, "--purge", "--yes").code == 0
    assert not list(root.rglob(".ckpt-trash"))


# A full disk.


@pytest.mark.parametrize("name", ["mkdir", "write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """No room for a journal: it is said, and only with a yes of its own is anything deleted without undo."""
    before = contents(root)
    failing(monkeypatch, name, code, lambda *args: True)
    asked: list[str] = []

    def confirm(question: str, yes: bool) -> bool:
        asked.append(question)
        return len(asked) == 1

    with monkeypatch.context() as answers:
        answers.setattr(out, "confirm", confirm)
        done = call("prune", root, "--tag", "d2", "--keep", "2", "--json")
    assert done.code == 3 and "disk is full" in done.err and len(asked) == 2 and "no way to undo" in asked[1]
    assert contents(root) == before and done.json["freed_bytes"] == 0
    done = call("prune", root, "--tag", "d2", "--keep", "2", "--yes", "--json")
    assert done.code == 0, done.err
    assert "disk is full" in done.err and steps_of(run) == [300, 400]
    assert done.json["freed_bytes"] == sum(gone["bytes"] for gone in done.json["groups"][0]["remove"])
    assert not list(root.rglob(".ckpt-trash"))


def test_full_disk_at_the_last_entry(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up between the renames and the journal of them: everything is put back first."""
    moved = noting(monkeypatch, "rename")
    failing(monkeypatch, "write", errno.ENOSPC, lambda *args: bool(moved))
    before = contents(root)
    monkeypatch.setattr(out, "confirm", lambda question, yes: "without a journal" not in question)
    done = call("prune", root, "--tag", "d2", "--keep", "2")
    assert len(moved) == 8 and done.code == 3 and "disk is full" in done.err
    assert contents(root) == before and not list(root.rglob(".ckpt-trash"))


def test_full_disk_without_trash(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that cannot be deleted without a journal keeps its other files too."""
    failing(monkeypatch, "mkdir", errno.ENOSPC, lambda *args: True)
    failing(monkeypatch, "unlink", errno.EPERM, lambda path: "model_000100.pt" in path)
    done = call("prune", root, "--tag", "d2", "--keep", "2", "--yes")
    assert done.code == 3 and f"{run / 'model_000100.pt'} could not go" in done.err
    assert steps_of(run) == [100, 300, 400]


def test_undo_and_purge_on_a_full_disk(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge is what frees a full disk, and an undo needs no room."""
    before = contents(root)
    assert call("prune", root, "--keep", "2", "--trash", "--yes").code == 0
    with monkeypatch.context() as full:
        failing(full, "write", errno.ENOSPC, lambda *args: True)
        assert call("prune", root, "--undo").code == 0
    assert contents(root) == before
    assert call("prune", root, "--keep", "2", "--trash", "--yes").code == 0
    failing(monkeypatch, "write", errno.ENOSPC, lambda *args: True)
    assert call("prune", root, "--purge", "--yes").code == 0
    assert steps_of(run) == [300, 400] and not list(root.rglob(".ckpt-trash"))


# The trash.


def test_trash_and_undo(call: Run, root: Path, run: Path) -> None:
    before = contents(root)
    done = call("prune", root, "--keep", "1", "--trash", "--yes", "--json")
    assert done.code == 0 and done.json["freed_bytes"] == 0
    identity = done.json["trash_id"]
    assert trash_of(run).name == identity and steps_of(run) == [400]
    assert [c["step"] for c in call("list", root, "--json").json["checkpoints"]] == [400, 400]
    # A prune leaves a trash alone.
    assert call("prune", root, "--keep", "1", "--yes").code == 0 and trash_of(run).exists()
    done = call("prune", root, "--undo", "--json")
    assert done.code == 0, done.err
    assert done.json["trash_id"] == identity and len(done.json["restored"]) == 6
    assert contents(root) == before and not list(root.rglob(".ckpt-trash"))
    assert call("prune", root, "--undo").code == 1


def test_purge(call: Run, root: Path, run: Path) -> None:
    assert call("prune", root, "--tag", "d2", "--keep", "3", "--trash", "--yes").code == 0
    asked = call("prune", root, "--purge", "--json")
    assert (asked.code, asked.out) == (4, "") and trash_of(run).exists()
    freed = sum(path.stat().st_size for path in trash_of(run).iterdir() if path.name != "journal")
    done = call("prune", root, "--purge", "--yes", "--json")
    assert done.code == 0 and done.json["freed_bytes"] == freed and done.json["purged"] == ["base/d2/100"]
    assert not list(root.rglob(".ckpt-trash")) and steps_of(run) == [200, 300, 400]
    assert call("prune", root, "--purge", "--yes").code == 1


def test_latest_operation_and_id(call: Run, root: Path, run: Path) -> None:
    """Undo takes the latest, also of two within a second; --id picks another."""
    before = contents(root)
    ids = [
        call("prune", root, "--tag", "d2", "--keep", keep, "--trash", "--yes", "--json").json["trash_id"]
        for keep in (3, 2, 1)
    ]
    assert ids == sorted(ids)
    assert call("prune", root, "--undo").code == 0
    assert steps_of(run) == [300, 400]
    assert call("prune", root, "--undo", "--id", ids[0]).code == 0
    assert steps_of(run) == [100, 300, 400]
    assert call("prune", root, "--undo", "--id", ids[0]).code == 2
    assert call("prune", root, "--purge", "--id", "no-such", "--yes").code == 2
    assert call("prune", root, "--purge", "--id", ids[1], "--yes").code == 0
    assert contents(root) == {name: data for name, data in before.items() if not ("d2" in name and "000200" in name)}


@pytest.mark.parametrize("selector", ["base/d2", "d2"])
@pytest.mark.parametrize("picked", [True, False])
def test_whole_run_in_the_trash(call: Run, root: Path, run: Path, selector: str, picked: bool) -> None:
    """The run has no checkpoint left, and is still found for undo and purge."""
    before = contents(root)
    arguments = ("prune", selector, "--root", root)
    for way in ("--undo", "--purge"):
        done = call(*arguments, "--keep", "0", "--allow-empty", "--trash", "--yes", "--json")
        assert done.code == 0 and steps_of(run) == []
        named = ("--id", done.json["trash_id"]) if picked else ()
        assert call(*arguments, way, *named, *(["--yes"] if way == "--purge" else [])).code == 0
        assert contents(root) == (
            before if way == "--undo" else {name: data for name, data in before.items() if "d2/" not in name}
        )
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("name", ["model_000100.pt", "optim_000100_rank1.pt"])
def test_undo_never_overwrites(call: Run, root: Path, run: Path, name: str) -> None:
    """The trainer saved a step again: the new file and the whole old checkpoint both stay where they are."""
    before = contents(run)
    assert call("prune", root, "--tag", "d2", "--keep", "2", "--trash", "--yes").code == 0
    save_again(run / name, trash_of(run) / name)
    done = call("prune", root, "--undo", "--json")
    assert done.code == 3 and done.json["restored"] == ["base/d2/200"]
    assert done.json["problems"][0]["path"] == str(trash_of(run) / name)
    assert str(trash_of(run) / name) in done.err
    assert (run / name).read_bytes() == b"saved again"
    assert {path.name for path in trash_of(run).iterdir()} == {"journal", *part_names(100)}
    assert all((run / part).read_bytes() == before[part] for part in part_names(200))
    # A prune in between neither brings it back nor deletes it.
    assert call("prune", root, "--tag", "d2", "--keep", "9", "--yes").code == 0
    assert {path.name for path in trash_of(run).iterdir()} == {"journal", *part_names(100)}
    (run / name).unlink()
    done = call("prune", root, "--undo", "--json")
    assert done.code == 0 and done.json["restored"] == ["base/d2/100"]
    assert contents(run) == before


def test_undo_that_loses_the_race(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is taken between the look and the rename."""
    assert call("prune", root, "--tag", "d2", "--keep", "3", "--trash", "--yes").code == 0
    real = os.link

    def link(source: str, target: str, **options: bool) -> None:
        if target.endswith("model_000100.pt"):
            Path(target).write_bytes(b"saved again")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    done = call("prune", root, "--undo")
    assert done.code == 3 and "model_000100.pt" in done.err
    assert (run / "model_000100.pt").read_bytes() == b"saved again"
    assert (trash_of(run) / "model_000100.pt").exists()


def test_undo_where_links_cannot_be_made(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(root)
    assert call("prune", root, "--keep", "1", "--trash", "--yes").code == 0
    (run / "model_000100.pt").write_bytes(b"saved again")
    failed = failing(monkeypatch, "link", errno.EPERM, lambda *names: True)
    assert call("prune", root, "--undo").code == 3
    assert failed and (run / "model_000100.pt").read_bytes() == b"saved again"
    (run / "model_000100.pt").unlink()
    assert call("prune", root, "--undo").code == 0
    assert contents(root) == before


def test_undo_of_a_half_deleted_trash(call: Run, root: Path, run: Path) -> None:
    """Someone deleted a file in the trash: what is whole comes back, half a checkpoint does not."""
    assert call("prune", root, "--tag", "d2", "--keep", "2", "--trash", "--yes").code == 0
    (trash_of(run) / "meta_000200.json").unlink()
    done = call("prune", root, "--undo", "--json")
    assert done.code == 3 and done.json["restored"] == ["base/d2/100"] and "meta_000200.json" in done.err
    assert steps_of(run) == [100, 300, 400]
    assert call("prune", root, "--purge", "--yes").code == 0
    assert not list(root.rglob(".ckpt-trash")) and steps_of(run) == [100, 300, 400]


def test_settled_meanwhile(call: Run, root: Path, run: Path) -> None:
    """An operation that another process has undone since it was looked up is not reported as done."""
    before = contents(root)
    assert call("prune", root, "--tag", "d2", "--keep", "3", "--trash", "--yes").code == 0
    (operation,) = journal.operations(str(run))
    assert settling.undo(operation).done == ["base/d2/100"]
    for again in (settling.undo, settling.purge):
        with pytest.raises(NotFound):
            again(operation)
    assert contents(root) == before


# Journals that are not as ckpt wrote them.


def half_done(call: Run, root: Path, run: Path) -> Path:
    """A trash as a kill between the renames and the journal of them leaves it: the folder of the operation."""
    assert call("prune", root, "--tag", "d2", "--keep", "2", "--trash", "--yes").code == 0
    journal = trash_of(run) / "journal"
    journal.write_bytes(journal.read_bytes().split(b"\n")[0] + b"\n")
    return trash_of(run)


@pytest.mark.parametrize("tail", [b"", b"{", b'{"state": "moved", "failed": []}', b"\x00\x00\x00"])
def test_torn_last_entry(call: Run, root: Path, run: Path, tail: bytes) -> None:
    """A last line without its end was never written: everything is put back."""
    before = contents(root)
    journal = half_done(call, root, run) / "journal"
    journal.write_bytes(journal.read_bytes() + tail)
    assert steps_of(run) == [300, 400]
    assert "was cut off" in call("latest", root).err and steps_of(run) == [300, 400]
    done = call("prune", root, "--keep", "9", "--yes")
    assert done.code == 0 and "put back (2 of 2)" in done.err
    assert contents(root) == before and not list(root.rglob(".ckpt-trash"))


def test_torn_entry_before_an_undo(call: Run, root: Path, run: Path) -> None:
    """What an undo adds does not run into a torn line before it."""
    before = contents(root)
    journal = half_done(call, root, run) / "journal"
    journal.write_bytes(journal.read_bytes() + b'{"state": "mo')
    (run / "model_000100.pt").write_bytes(b"saved again")
    assert call("prune", root, "--undo").code == 3
    (run / "model_000100.pt").unlink()
    assert call("prune", root, "--keep", "9", "--yes").code == 0
    assert contents(root) == before


GARBLED: dict[str, object] = {
    "nothing": None,
    "empty": b"",
    "no JSON": b"\xff\xfe{]\n",
    "deep": b"[" * 100_000 + b"\n",
    "a list": b"[]\n",
    "a number": b"1\n",
    "no removals": b'{"version": 1, "trash": true}\n',
    "no trash": {"removals": []},
    "not a list": {"trash": False, "removals": 3},
    "too few values": {"trash": False, "removals": [{"ref": "r", "files": [["model_000100.pt"]]}]},
    "text for bytes": {"trash": False, "removals": [{"ref": "r", "files": [["model_000100.pt", "x", 1, 1]]}]},
    "a folder of no file": {"trash": False, "removals": [{"ref": "r", "files": [["a/b", 1, 1, 1]], "folders": [".."]}]},
    "no folder": {"trash": False, "removals": [{"ref": "r", "files": [["a/b", 1, 1, 1]], "folders": [["a"]]}]},
    "a line of no digest": {"trash": False, "removals": [{"ref": "r", "lines": [["m.sha256", "a", "\n" + "0" * 63]]}]},
    "a line elsewhere": {"trash": False, "removals": [{"ref": "r", "lines": [["m.sha256", "../a", "0" * 64]]}]},
    "a line of a number": {"trash": False, "removals": [{"ref": "r", "lines": [["m.sha256", "a", 7]]}]},
    "number for name": {"trash": False, "removals": [{"ref": "r", "files": [[7, 1, 1, 1]]}]},
}
NAMES = (
    "../../../../outside.pt", "/OUT", "..", ".", "", "sub/../model_000100.pt", "sub//model_000100.pt", "../journal",
    "journal", "a\x00b",
)  # fmt: skip


def entry(name: str) -> dict[str, object]:
    return {"version": 1, "trash": False, "removals": [{"ref": "r", "files": [[name, 1, 1, 1]]}]}


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("what", [*GARBLED, *(f"name {name!r}" for name in NAMES)])
def test_garbled_journal(call: Run, root: Path, run: Path, tmp_path: Path, what: str, moved: bool) -> None:
    """Files of which no journal tells are left for a person to look at; nothing anywhere is touched."""
    outside = tmp_path / "outside.pt"
    outside.write_bytes(b"outside")
    journal = half_done(call, root, run) / "journal"
    value = GARBLED.get(what)
    if what not in GARBLED:
        value = entry(next(name for name in NAMES if what == f"name {name!r}").replace("/OUT", str(outside)))
    if value is None:
        journal.unlink()
    else:
        data = value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"
        journal.write_bytes(data + (b'{"state": "moved", "failed": []}\n' if moved else b""))
    before = contents(tmp_path)
    for arguments in (("--keep", "1", "--yes"), ("--undo",), ("--purge", "--yes")):
        done = call("prune", root, "--tag", "d2", *arguments, "--json")
        assert (done.code, done.out) == (4, ""), (arguments, done)
        assert f"{trash_of(run)} holds files" in done.err
        assert contents(tmp_path) == before
    # Without files there is nothing to look at, and it goes.
    for name in (*part_names(100), *part_names(200)):
        (trash_of(run) / name).unlink()
    assert call("prune", root, "--tag", "d2", "--keep", "1", "--yes").code == 0
    assert not list(root.rglob(".ckpt-trash")) and outside.read_bytes() == b"outside" and steps_of(run) == [400]


@pytest.mark.parametrize("late", [b"{}\n", b"[]\n", b'{"state": "gone"}\n', b'{"state": "moved", "failed": 5}\n'])
def test_garbled_later_entry(call: Run, root: Path, run: Path, late: bytes) -> None:
    """A whole line that ckpt never wrote says nothing about what to do: refused, not guessed."""
    journal = half_done(call, root, run) / "journal"
    journal.write_bytes(journal.read_bytes() + late)
    before = contents(root)
    assert call("prune", root, "--keep", "1", "--yes").code == 4
    assert contents(root) == before


@pytest.mark.parametrize("place", [".ckpt-trash", ".ckpt-trash/20260101-000000-abcd"])
def test_linked_trash(call: Run, root: Path, run: Path, tmp_path: Path, place: str) -> None:
    """A trash, or an operation in it, that is a link leads to where ckpt has no business."""
    outside = tmp_path / "outside"
    folder = outside if "/" in place else outside / "20260101-000000-abcd"
    folder.mkdir(parents=True)
    for name in part_names(100):
        (folder / name).write_bytes(b"outside")
    files = [[name, 7, 1, 1] for name in part_names(100)]
    journal = {"version": 1, "trash": False, "removals": [{"ref": "base/d2/100", "files": files}]}
    (folder / "journal").write_text(json.dumps(journal) + '\n{"state": "moved", "failed": []}\n')
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).symlink_to(outside)
    before = contents(outside)
    for arguments in (("--undo",), ("--purge", "--yes"), ("--purge", "--yes", "--id", "20260101-000000-abcd")):
        assert call("prune", root, *arguments).code in (1, 2)
    done = call("prune", root, "--tag", "d2", "--keep", "2", "--yes")
    # Where the trash itself is a link no journal can be made; beside a linked operation it can.
    assert done.code == (0 if "/" in place else 3), done.err
    assert steps_of(run) == ([300, 400] if "/" in place else list(STEPS))
    assert contents(outside) == before


def test_empty_trash_goes(call: Run, root: Path, run: Path) -> None:
    """What a kill before the journal, or after the last deletion, leaves."""
    (run / ".ckpt-trash").mkdir()
    assert call("prune", root, "--keep", "9", "--yes").code == 0
    assert not (run / ".ckpt-trash").exists()


def test_dry_run_does_not_recover(call: Run, root: Path, run: Path) -> None:
    half_done(call, root, run)
    before = contents(root)
    assert call("prune", root, "--keep", "1", "-n").code == 0
    assert contents(root) == before


def test_recovery_while_the_trainer_saves_again(call: Run, root: Path, run: Path) -> None:
    """After a kill the trainer wrote a step anew: it stays, and so does the old one, in the trash, and is named."""
    before = contents(run)
    folder = half_done(call, root, run)
    save_again(run / "model_000100.pt", folder / "model_000100.pt")
    done = call("prune", root, "--tag", "d2", "--keep", "9", "--yes")
    assert done.code == 0 and f"{folder / 'model_000100.pt'} stayed in the trash" in done.err
    assert (run / "model_000100.pt").read_bytes() == b"saved again"
    assert {path.name for path in folder.iterdir()} == {"journal", *part_names(100)}
    assert all((run / name).read_bytes() == before[name] for name in part_names(200))
    assert call("prune", root, "--purge", "--yes").code == 0
    assert not (run / ".ckpt-trash").exists() and (run / "model_000100.pt").read_bytes() == b"saved again"


# The functions themselves.


def remove(run: Path, removals: list[journal.Removal], keep_trash: bool) -> journal.Outcome:
    return execution.remove([(str(run), removals)], journal.new_id(), keep_trash, lambda run: False)


def planned(run: Path, step: int) -> journal.Removal:
    files = [(run / name).lstat() for name in part_names(step)]
    return journal.Removal(
        f"base/d2/{step}",
        tuple(
            journal.File(name, status.st_size, status.st_mtime_ns, status.st_ino)
            for name, status in zip(part_names(step), files)
        ),
    )


@pytest.mark.parametrize("keep_trash", [False, True])
def test_interrupt_at_each_rename(run: Path, monkeypatch: pytest.MonkeyPatch, keep_trash: bool) -> None:
    before = contents(run)
    real = os.rename
    for last in range(8):
        count = [0]

        def rename(source: str, target: str, last: int = last, count: list[int] = count) -> None:
            real(source, target)
            count[0] += 1
            if count[0] > last:
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(Interrupted) as caught:
            remove(run, [planned(run, 100), planned(run, 200)], keep_trash)
        assert count[0] == last + 1 and "back in its place" in caught.value.message
        monkeypatch.setattr(os, "rename", real)
        assert contents(run) == before and not (run / ".ckpt-trash").exists()


def test_interrupt_while_deleting(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can come back then, and the next prune is said to finish it."""
    real, gone = os.unlink, list[str]()

    def unlink(path: str) -> None:
        real(path)
        gone.append(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(os, "unlink", unlink)
        done = call("prune", root, "--tag", "d2", "--keep", "2", "--yes")
    assert done.code == 130 and "while deleting" in done.err and "the next prune" in done.err and len(gone) == 1
    assert "finished" in call("prune", root, "--keep", "9", "--yes").err
    assert steps_of(run) == [300, 400] and not (run / ".ckpt-trash").exists()


def test_a_run_that_cannot_be_settled_is_left_alone(
    call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's, on a disk that fails: the others are pruned, and the exit code says that not all was done."""

    def failing_there(place: str) -> list[str]:
        assert place == str(run)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert call("prune", root, "--tag", "d2", "--keep", "3", "--trash", "--yes").code == 0
    before, other = contents(run), run.parent / "d4"
    with monkeypatch.context() as broken:
        broken.setattr(settling, "unsettled", lambda place: place == str(run))
        broken.setattr(settling, "recover", failing_there)
        done = call("prune", root, "--keep", "1", "--yes")
    assert done.code == 3 and f"{run} is left alone" in done.err and "Input/output error" in done.err
    assert contents(run) == before and len(list(other.glob("model_*.pt"))) == 1


def test_dies_while_putting_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last entry is written and cannot be made durable: once the way back is begun, nothing may be deleted."""

    class Died(BaseException):
        pass

    before = contents(run)
    unlink, left = os.unlink, [2]

    def dying(path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Died
        unlink(path)

    def all_moved(*args: object) -> bool:
        return any(journal.read_bytes().count(b"\n") == 2 for journal in run.glob(".ckpt-trash/*/journal"))

    with monkeypatch.context() as dead:
        failed = failing(dead, "fsync", errno.EIO, all_moved, times=1)
        dead.setattr(os, "unlink", dying)
        with pytest.raises(Died):
            remove(run, [planned(run, 100)], False)
    assert failed and contents(run) != before
    assert "put back" in settling.recover(str(run))[0]
    assert contents(run) == before and not (run / ".ckpt-trash").exists()


def test_renames_go_model_first_and_come_back_model_last(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer finds a step by its model file alone."""
    gone, back = noting(monkeypatch, "rename"), noting(monkeypatch, "link")
    remove(run, [planned(run, 100)], True)
    (operation,) = journal.operations(str(run))
    settling.undo(operation)
    assert gone == part_names(100) and back == part_names(100)[::-1]


def test_vanished_file(run: Path) -> None:
    """Someone else deleted a file of a checkpoint on its way out: the others are not taken for it."""
    removals = [planned(run, 100), planned(run, 200)]
    (run / "meta_000100.json").unlink()
    outcome = remove(run, removals, False)
    assert outcome.done == ["base/d2/200"] and outcome.stayed[0][0] == str(run / "meta_000100.json")
    assert {path.name for path in run.iterdir()} == {
        name for step in (100, 300, 400) for name in part_names(step) if name != "meta_000100.json"
    }


def test_lock(run: Path) -> None:
    with locked(str(run)) as held:
        assert held
        started = time.monotonic()
        with pytest.raises(Refused), locked(str(run)):
            pass
        assert time.monotonic() - started < 5
    with locked(str(run)) as held:
        assert held
    with pytest.raises(CkptError), locked(str(run / "nowhere")):
        pass


def test_ids_sort_by_time() -> None:
    ids = [journal.new_id() for _ in range(200)]
    assert [name[:22] for name in ids] == sorted(name[:22] for name in ids) and len(set(ids)) == 200


def test_interrupt_in_the_second_run_brings_the_first_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is deleted before the last rename of the last run."""
    runs = sorted((root / "base_checkpoints").iterdir())
    before = contents(root)
    real = os.rename

    def rename(source: str, target: str) -> None:
        if str(runs[1]) in source:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(Interrupted):
        execution.remove(
            [(str(run), [planned(run, 100)]) for run in runs], journal.new_id(), False, lambda run: pytest.fail(run)
        )
    assert len(runs) > 1 and contents(root) == before and not list(root.rglob(".ckpt-trash"))


def test_whole_run_that_a_kill_left_half_deleted(call: Run, root: Path, run: Path) -> None:
    """The prune that finishes it says so, and that nothing is left to plan."""
    done = call("prune", "base/d2", "--root", root, "--keep", "0", "--allow-empty", "--trash", "--yes")
    assert done.code == 0
    path = trash_of(run) / "journal"
    path.write_bytes(path.read_bytes() + b'{"state": "purge"}\n')
    done = call("prune", "base/d2", "--root", root, "--keep", "0", "--allow-empty", "--yes")
    assert done.code == 1 and "was finished" in done.err and not (run / ".ckpt-trash").exists()


def test_rollback_reaches_every_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in which nothing could be moved does not end the way back of the others."""
    runs = sorted((root / "base_checkpoints").iterdir())
    blocked = [planned(runs[1], 100)]
    (runs[1] / "model_000100.pt").write_bytes(b"saved again")
    before = contents(root)
    third = root / "base_checkpoints" / "d99"
    shutil.copytree(runs[0], third)
    names = [(str(runs[0]), [planned(runs[0], 100)]), (str(runs[1]), blocked), (str(third), [planned(third, 100)])]
    real = os.rename

    def rename(source: str, target: str) -> None:
        if str(third) in source:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(Interrupted, match="back in its place"):
        execution.remove(names, journal.new_id(), False, lambda run: pytest.fail(run))
    shutil.rmtree(third)
    assert contents(root) == before and not list(root.rglob(".ckpt-trash"))


def test_interrupt_right_after_the_last_entry(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the entry that all is moved and the return: still nothing is deleted."""
    before = contents(run)
    real = os.close

    def close(descriptor: int) -> None:
        real(descriptor)
        if any(path.read_bytes().count(b"\n") == 2 for path in run.glob(".ckpt-trash/*/journal")):
            monkeypatch.setattr(os, "close", real)
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", close)
    with pytest.raises(Interrupted, match="back in its place"):
        remove(run, [planned(run, 100)], False)
    assert contents(run) == before and not (run / ".ckpt-trash").exists()


def test_what_cannot_be_rolled_back_is_trash(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place was taken meanwhile: told, and not deleted by the next prune."""
    runs = sorted((root / "base_checkpoints").iterdir())
    real = os.rename

    def rename(source: str, target: str) -> None:
        if str(runs[1]) in source:
            (runs[0] / "model_000100.pt").write_bytes(b"saved again")
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(Interrupted, match=r"model_000100\.pt stayed"):
        execution.remove(
            [(str(run), [planned(run, 100)]) for run in runs[:2]], journal.new_id(), False, lambda run: False
        )
    settling.recover(str(runs[0]))
    (left,) = journal.operations(str(runs[0]))
    assert left.state == "trash" and left.refs == ("base/d2/100",)
    assert {path.name for path in Path(left.folder).iterdir()} == {"journal", *part_names(100)}


def test_trash_on_a_full_disk_deletes_nothing(
    call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--trash asked for a way back; without room for one nothing goes, --yes or not."""
    before = contents(root)
    failing(monkeypatch, "mkdir", errno.ENOSPC, lambda *args: True)
    done = call("prune", root, "--keep", "1", "--trash", "--yes", "--json")
    assert done.code == 3 and done.json["trash_id"] is None and contents(root) == before


def test_purge_of_a_move_that_was_cut_off(run: Path) -> None:
    """What is in the trash as a whole goes, what is there in part comes back, the rest was never touched."""
    remove(run, [planned(run, 100), planned(run, 200), planned(run, 300)], True)
    (operation,) = journal.operations(str(run))
    path = Path(operation.folder) / "journal"
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
    for name in [*part_names(300), part_names(200)[-1]]:
        os.rename(Path(operation.folder) / name, run / name)
    (operation,) = journal.operations(str(run))
    outcome = settling.purge(operation)
    assert outcome.done == ["base/d2/100"] and not outcome.stayed and not (run / ".ckpt-trash").exists()
    assert steps_of(run) == [200, 300, 400] and all((run / name).exists() for name in part_names(200))
