"""`ckpt prune` as people use it: every policy, the optimizer alone, steps that are folders, and a world that moves."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from ckpt_cli import manifest
from ckpt_cli.checkpoint import Checkpoint, Part
from ckpt_cli.plans import Rules
from ckpt_cli.policies import keep_last
from ckpt_cli.retain import make_plan
from tests.conftest import REPOSITORY, Done, Run
from tests.test_kill import (
    STEPS,
    TRAINER,
    age,
    contents,
    part_names,
    trainers_newest,
    write_layout,
    write_trainer,
)

DAY = 86400


def kept(done: Done, tag: str = "d2") -> dict[str, list[str]]:
    """The steps that stay, by the last part of their ref, with the reasons."""
    assert done.code == 0, done.err
    (group,) = [group for group in done.json["groups"] if group["tag"] == tag]
    return {kept["ref"].rpartition("/")[2]: kept["reasons"] for kept in group["keep"]}


def whole(run: Path) -> list[int]:
    return [step for step in STEPS if all((run / name).is_file() for name in part_names(step))]


def metas(run: Path, name: str, values: dict[int, float | None]) -> None:
    """Gives the steps a metric; their times stay."""
    for step, value in values.items():
        path = run / f"meta_{step:06d}.json"
        status = path.stat()
        path.write_text(json.dumps({"step": step, name: value}))
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


# --- policies


@pytest.mark.parametrize(
    ("arguments", "stays"),
    [
        (["--keep", 2], {"300": "last 2", "400": "last 2"}),
        (["--keep-last", 1], {"400": "last 1"}),
        (["--keep-every", 200], {"200": "every 200", "400": "every 200"}),
        (["--keep-every", 190], {"200": "closest to 190", "400": "closest to 380"}),
        (["--keep-best", 1, "--metric", "val_bpb:max"], {"100": "best 1 by val_bpb", "400": "newest complete"}),
        (["--keep-best", 2], {"300": "best 2 by val_bpb", "400": "best 2 by val_bpb"}),
        (["--keep-within", "1d", "--keep", 1], {"400": "last 1"}),
        (["--keep-within", "3d"], {str(step): "within 3d" for step in STEPS}),
        (["--keep-step", 100, "--keep-step", 300], {"100": "step 100", "300": "step 300", "400": "newest complete"}),
        (["--max-size", "0B"], {"400": "newest complete"}),
        (["--max-size", "1TB"], {"100": "newest within 1TB", "200": "newest within 1TB", "300": "newest within 1TB",
                                 "400": "best by val_bpb within 1TB"}),
    ],
)  # fmt: skip
def test_policies(call: Run, root: Path, arguments: list[object], stays: dict[str, str]) -> None:
    found = kept(call("prune", root, *arguments, "-n", "--json"))
    assert {step: reasons[0] for step, reasons in found.items()} == stays


def test_policies_add_up(call: Run, root: Path, run: Path) -> None:
    done = call("prune", root, "--keep-step", 100, "--keep-every", 300, "--keep", 1, "--yes", "--json")
    assert kept(done) == {
        "100": ["step 100"], "300": ["every 300"], "400": ["last 1", "newest complete", "newest resumable"],
    }  # fmt: skip
    assert done.json["policies"] == ["keep 1", "keep every 300", "keep step 100"]
    assert whole(run) == [100, 300, 400]


def test_what_was_never_measured(call: Run, root: Path, run: Path) -> None:
    metas(run, "accuracy", {100: 0.5, 200: None, 300: 0.9, 400: 0.7})
    best = ("--tag", "d2", "--keep-best", 1, "--metric", "accuracy:max", "-n", "--json")
    assert list(kept(call("prune", root, *best))) == ["200", "300", "400"]
    assert list(kept(call("prune", root, *best, "--drop-unmeasured"))) == ["300", "400"]
    # No run has it: then all stay, or with the option nothing would, which is refused.
    nothing = ("--keep-best", 1, "--metric", "speed:max", "-n", "--json")
    assert list(kept(call("prune", root, *nothing))) == ["100", "200", "300", "400"]
    assert call("prune", root, *nothing, "--drop-unmeasured").code == 4


def test_metric_of_the_settings(call: Run, root: Path, run: Path) -> None:
    metas(run, "accuracy", {100: 0.9, 200: 0.5, 300: 0.5, 400: 0.7})
    Path("ckpt.toml").write_text('metric = "accuracy:max"\n')
    best = ("prune", root, "--tag", "d2", "--keep-best", 1, "-n")
    assert kept(call(*best, "--json"))["100"] == ["best 1 by accuracy"]
    assert "accuracy=0.9" in call(*best).out


def test_policy_of_the_settings(call: Run, root: Path, run: Path) -> None:
    """It says where it came from, and adds to what the command line asks for."""
    Path("ckpt.toml").write_text('[policies.weekly]\nkeep-every = 200\nkeep-step = [100]\nmax-size = "0B"\n')
    done = call("prune", root, "--policy", "weekly", "-n", "--json")
    assert list(kept(done)) == ["100", "200", "400"]
    assert done.json["policies"] == ["keep every 200", "keep step 100", "max size 0B"]
    assert f"policy weekly of {Path('ckpt.toml').resolve()}: keep every 200, keep step 100, max size 0B" in done.err
    assert list(kept(call("prune", root, "--policy", "weekly", "--keep", 2, "-n", "--json"))) == [
        "100",
        "200",
        "300",
        "400",
    ]
    Path("ckpt.toml").write_text('[policies.weekly]\nkeep-within = "7"\n[policies.none]\n')
    done = call("prune", root, "--policy", "weekly", "-n")
    assert done.code == 2 and "policy 'weekly'" in done.err and "ckpt.toml" in done.err
    done = call("prune", root, "--policy", "wekly", "-n")
    assert done.code == 2 and "weekly" in done.err
    assert call("prune", root, "--policy", "none", "-n").code == 2


def test_max_size_says_what_is_over(call: Run, root: Path, run: Path) -> None:
    size = sum((run / name).stat().st_size for name in part_names(400))
    done = call("prune", root, "--max-size", f"{3 * size}B", "-n", "--json")
    assert done.json["over_bytes"] == 0 and sum(len(group["keep"]) for group in done.json["groups"]) in (2, 3)
    done = call("prune", root, "--max-size", "1kB", "-n", "--json")
    assert done.json["over_bytes"] == 2 * size - 1000 and "over the size" in done.err
    assert call("prune", root, "--keep", 1, "-n", "--json").json["over_bytes"] is None


def test_answers_that_teach(call: Run, root: Path, run: Path, tmp_path: Path) -> None:
    before = contents(root)
    for arguments, code, word in (
        ([], 2, "--keep 3"),
        (["--keep", 0], 4, "--allow-empty"),
        (["--keep-within", "1h", "--yes"], 4, "--keep 1"),
        (["--keep-step", 999, "--yes"], 4, "no run has the step 999"),
        (["--keep-within", 7], 2, "7d"),
        (["--max-size", 50], 2, "50GB"),
        (["--keep-best", 1, "--metric", "acc"], 2, "--metric acc:min or acc:max"),
        (["--keep", 1, "--allow-empty", "--yes"], 4, "--keep 0"),
        (["--keep", 0, "--allow-empty", "--yes"], 4, "hint: name base/d2 or base/d4"),
        (["--undo"], 1, "there is nothing in the trash"),
        (["--keep", 0, "--allow-empty", "--optimizer-only", "--yes"], 2, "--optimizer-only"),
        (["--keep", 0, "--keep-step", 100, "--allow-empty", "--tag", "d2", "--yes"], 4, "--keep 0 alone"),
        (["--keep-last", 1, "--step", 100], 2, "--keep-step"),
        (["--undo", "--keep-within", "7d"], 2, "take no policy"),
        (["--undo", "--optimizer-only"], 2, "take no policy"),
        (["--tag", "d3", "--keep", 1], 2, "did you mean"),
        (["--keep", 1], 4, "--yes"),
    ):  # fmt: skip
        done = call("prune", root, *arguments)
        assert done.code == code and word in done.err, (arguments, done)
    (tmp_path / "nothing").mkdir()
    done = call("prune", tmp_path / "nothing", "--keep", 3)
    assert done.code == 1 and "no checkpoints" in done.err and "--root" in done.err
    assert contents(root) == before


def test_the_trash_is_named_where_there_is_any(call: Run, root: Path) -> None:
    """Where there is none, `ckpt list --trash` would say no more."""
    assert "hint" not in call("prune", root, "--undo").err
    assert call("prune", "base/d4", "--root", root, "--keep", 2, "--trash", "--yes").code == 0
    done = call("prune", "base/d2", "--root", root, "--undo")
    assert done.code == 1 and f"`ckpt list --trash --root {root}`" in done.err


def test_the_trash_as_people_see_it(call: Run, root: Path, run: Path) -> None:
    """By time and run; of many checkpoints the first and the last. A program gets all of them."""
    for tag in ("d10", "d4"):
        shutil.copytree(run, run.parent / tag, dirs_exist_ok=True)
    for step in range(500, 508):
        for name in part_names(400):
            shutil.copy2(run / name, run / name.replace("000400", f"{step:06d}"))
    assert call("prune", root, "--keep", 1, "--trash", "--yes").code == 0
    shown = call("list", root, "--trash", "--format", "table").out.splitlines()[1:]
    assert [line.rpartition("/")[2] for line in shown] == ["d2", "d4", "d10"]
    assert " base/d2/100 ... 9 between base/d2/506 " in shown[0]
    assert " base/d4/100 base/d4/200 base/d4/300 " in shown[1]
    plain = call("list", root, "--trash", "--format", "plain").out.splitlines()[0].split("\t")
    assert plain[3].split() == [f"base/d2/{step}" for step in (100, 200, 300, 400, *range(500, 507))]


def test_table(call: Run, root: Path, run: Path) -> None:
    (run / "meta_000200.json").unlink()
    done = call("prune", root, "--keep", 2, "-n", "--format", "table")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["REF", "PLAN", "SIZE", "METRIC", "WHY"]
    assert [row[:2] for row in rows[1:]] == [
        [f"base/{tag}/{step}", fate]
        for tag, fates in (("d2", ("remove", "ignore", "keep", "keep")), ("d4", ("remove", "remove", "keep", "keep")))
        for step, fate in zip(STEPS, fates)
    ]
    assert "val_bpb 0.9" in done.out and "last 2, newest complete" in done.out
    assert "3 of 8 checkpoints of 2 runs would go, " in done.err
    # A program gets all of it, in full, a line each.
    done = call("prune", root, "--keep", 2, "-n")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert "3 of 8 checkpoints of 2 runs would go, " in done.err
    assert len(lines) == 8 and all(len(line) == 5 and line[2].isdigit() for line in lines)


def test_the_question_names_number_and_size(call: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_cli.ui import out

    asked: list[str] = []

    def confirm(question: str, yes: bool) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr(out, "confirm", confirm)
    before = contents(root)
    for options in ([], ["--trash"], ["--optimizer-only"], ["--trash", "--optimizer-only"]):
        assert call("prune", root, "--keep", 3, *options).code == 1
    assert [question.split("(")[0] for question in asked] == [
        "remove 2 checkpoints ", "move 2 checkpoints ", "remove the optimizer files of 2 checkpoints ",
        "move the optimizer files of 2 checkpoints ",
    ]  # fmt: skip
    assert asked[1].endswith("B) of 2 runs to the trash?")
    assert asked[3].endswith("B) of 2 runs, whose models stay, to the trash?")
    assert all("B) of 2 runs" in question for question in asked) and contents(root) == before


@pytest.mark.parametrize("how", ["ended", "interrupted"])
def test_a_question_without_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Is not a yes; and what is said next begins a line of its own."""
    from ckpt_cli.ui import out

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
            if how == "interrupted":
                raise KeyboardInterrupt
            return ""

    monkeypatch.setattr(sys, "stdin", Terminal())
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            out.confirm("remove all?", False)
    else:
        assert not out.confirm("remove all?", False)
    assert capsys.readouterr().err == "remove all? [y/N] \n"


def test_of_many_that_need_one_the_first_is_named() -> None:
    from ckpt_cli.ui.plan import shortened

    assert shortened("last 1, a needs it, b needs it") == "last 1, a needs it, b needs it"
    assert shortened("pinned, a needs it, b needs it, c needs it") == "pinned, a needs it, 2 more need it"
    assert shortened("") == ""


def test_a_plan_fits_an_ordinary_terminal(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, a line a checkpoint, in the words of `ckpt list`; a program gets the reasons in full."""
    for path in tree.rglob("*"):
        age(path, DAY)
    plan = ["prune", "--root", str(tree), "--keep", "1", "-n"]
    lines = on_terminal(*plan).splitlines()
    assert len(lines) == 9 and lines[0].split() == ["REF", "PLAN", "SIZE", "METRIC", "WHY"]
    assert "last 1, newest complete and resumable" in lines[3]
    assert lines[5].endswith(" incomplete: no optim_000100_rank1.pt")
    assert on_terminal(*plan, "--incomplete").splitlines()[5].endswith(" incomplete")
    os.truncate(tree / "base_checkpoints/d4/model_000150.pt", 1000)
    age(tree / "base_checkpoints/d4/model_000150.pt", DAY)
    drawn = on_terminal(*plan)
    assert "incomplete: model_000150.pt is" in drawn and "newest complete" in drawn.splitlines()[2]
    listed = on_terminal("list", str(tree)).splitlines()
    assert len(listed) == 9 and listed[1].endswith(" model, meta, optim 2 of 2")


def on_terminal(*arguments: str) -> str:
    """What a command draws on a terminal of 80 columns, without colours and blanks at the end."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "ckpt_cli", *arguments],
        stdout=slave, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": "/nonexistent", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(slave)
    drawn = b""
    # At the end of what a child wrote, Linux answers with an error instead of nothing.
    with suppress(OSError):
        while piece := os.read(master, 1 << 16):
            drawn += piece
    os.close(master)
    assert child.wait(60) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", drawn.decode()).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def test_files_with_numbers_stand_in_their_order(call: Run, tmp_path: Path) -> None:
    for number in (500, 1000, 9):
        (tmp_path / f"a_{number}.pt").write_bytes(b"x")
    done = call("prune", tmp_path, "--keep", 1, "-n")
    assert [line.split("\t")[0].rpartition("/")[2] for line in done.out.splitlines()] == ["a_9", "a_500", "a_1000"]


def test_loose_files_that_need_each_other_are_short_for_people(call: Run, tmp_path: Path) -> None:
    import torch

    for name in "abcde":
        torch.save({"w": torch.zeros(1)}, tmp_path / f"{name}.pt")
        age(tmp_path / f"{name}.pt", 2 * DAY)
    done = call("prune", tmp_path, "--keep", 1, "-n", "--format", "table")
    assert done.code == 0 and "3 more need it" in done.out and "c needs it" not in done.out
    assert "c needs it" in call("prune", tmp_path, "--keep", 1, "-n").out


def test_a_long_plan_on_a_terminal_is_short() -> None:
    """Of a stretch with one fate the first and the last are drawn; nothing is drawn that is not so."""
    from ckpt_cli.ui import plan as drawing

    run = [made(step) for step in range(1, 101)]
    plan = make_plan(run, {"keep": keep_last(2)}, Rules(10**18, 10**9, {"nanochat": lambda c, run: ()}))
    lines = drawing._lines(plan.groups[0], False)
    rows = [[str(getattr(cell, "text", cell)) for cell in row] for row in drawing._shortened(lines, None, None)]
    assert [row[0] for row in rows] == ["base/d12/1", "... 96 between", "base/d12/98", "base/d12/99", "base/d12/100"]
    assert [row[1] for row in rows] == ["remove"] * 3 + ["keep"] * 2 and rows[1][2] == "960 B"


def made(step: int) -> Checkpoint:
    parts = (Part("model", f"/r/d12/model_{step:06d}.pt", 10, 10**17 + step),)
    return Checkpoint("nanochat", "base", "d12", step, "step", f"model_{step:06d}", "/r/d12", parts, resumable=True)


# --- the optimizer alone


def optimizers(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("optim_*"))


def test_optimizer_only(call: Run, root: Path, run: Path) -> None:
    before = contents(run)
    gone = {name for step in (100, 200, 300) for name in part_names(step)[2:]}
    done = call("prune", root, "--tag", "d2", "--keep", 1, "--optimizer-only", "--yes", "--json")
    assert done.code == 0, done.err
    (group,) = done.json["groups"]
    assert [Path(path).name for entry in group["remove"] for path in entry["paths"]] == sorted(gone)
    assert done.json["freed_bytes"] == sum(entry["bytes"] for entry in group["remove"])
    assert done.json["freed_bytes"] == sum(len(before[name]) for name in gone) and not group["stops_resuming"]
    assert contents(run) == {name: data for name, data in before.items() if name not in gone}
    # Whole, good for inference, and not to be resumed from.
    found = {c["step"]: c for c in call("list", "d2", "--root", root, "--json").json["checkpoints"]}
    assert {step: (c["state"], c["resumable"], c["problems"]) for step, c in found.items()} == {
        100: ("complete", False, []), 200: ("complete", False, []), 300: ("complete", False, []),
        400: ("complete", True, []),
    }  # fmt: skip
    assert call("latest", "d2", "--root", root, "--resumable", "--before", 400, "--field", "step").code == 1
    assert call("verify", "d2/100", "--root", root).code == 0
    # Again there is nothing to do, and a plain prune takes the rest.
    done = call("prune", root, "--tag", "d2", "--keep", 1, "--optimizer-only", "--yes")
    assert done.code == 0 and "nothing to remove" in done.err
    assert call("prune", root, "--tag", "d2", "--keep", 1, "--yes").code == 0
    assert sorted(contents(run)) == sorted(part_names(400))


def test_optimizer_only_of_a_single_step(call: Run, root: Path, run: Path) -> None:
    """The usual run: one step, and half of it is the optimizer."""
    for step in (100, 200, 300):
        for name in part_names(step):
            (run / name).unlink()
    done = call("prune", root, "--tag", "d2", "--optimizer-only", "--keep", 0, "--yes", "--json")
    assert done.code == 0 and sorted(contents(run)) == sorted(part_names(400)[:2])
    assert done.json["groups"][0]["stops_resuming"] is True
    assert "can no longer resume from base/d2" in done.err and "d4" not in done.err.split("root:")[1]
    (found,) = call("list", "d2", "--root", root, "--json").json["checkpoints"]
    assert (found["state"], found["resumable"], found["problems"]) == ("complete", False, [])
    # Several runs at once as well, and none of the models goes.
    assert call("prune", root, "--optimizer-only", "--keep", 0, "--yes").code == 0
    assert len(list(root.rglob("model_*.pt"))) == 5 and not list(root.rglob("optim_*"))


def test_optimizer_only_keeps_the_rules(call: Run, root: Path, run: Path) -> None:
    """Pinned, in progress, incomplete: what would not go as a whole does not lose its optimizer either."""
    (run / "model_000100.keep").touch()
    (run / "meta_000200.json").unlink()
    for name in part_names(400)[:3]:
        shutil.copyfile(run / name, run / name.replace("400", "500"))
    done = call("prune", root, "--tag", "d2", "--optimizer-only", "--keep", 0, "--yes", "--json")
    assert done.code == 0, done.err
    steps = {name.split("_")[1] for name in optimizers(run)}
    assert steps == {"000100", "000200", "000500"}
    assert call("prune", root, "--tag", "d4", "--optimizer-only", "--keep-within", "1h", "--yes").code == 4


def test_optimizer_only_and_back(call: Run, root: Path, run: Path) -> None:
    before = contents(root)
    done = call("prune", root, "--keep", 1, "--optimizer-only", "--trash", "--yes", "--json")
    assert done.code == 0 and done.json["trash_id"] and len(optimizers(run)) == 2
    assert call("prune", root, "--undo").code == 0
    assert contents(root) == before
    assert call("prune", root, "--keep", 1, "--optimizer-only", "--trash", "--yes").code == 0
    assert call("prune", root, "--purge", "--yes").code == 0
    assert len(optimizers(run)) == 2 and not list(root.rglob(".ckpt-trash")) and len(list(run.glob("model_*"))) == 4


@pytest.mark.parametrize("how", ["gone", "saved again"])
def test_an_optimizer_comes_back_to_its_own_model_only(call: Run, root: Path, run: Path, how: str) -> None:
    """Beside no model, or beside another one, it would be half a checkpoint, or worse: a wrong one."""
    assert call("prune", root, "--tag", "d2", "--keep", 3, "--optimizer-only", "--trash", "--yes").code == 0
    (first,) = (path.name for path in (run / ".ckpt-trash").iterdir())
    if how == "gone":
        assert call("prune", root, "--tag", "d2", "--keep", 3, "--trash", "--yes").code == 0
    else:
        (run / "model_000100.pt").write_bytes((run / "model_000400.pt").read_bytes())
    here = {name: data for name, data in contents(run).items() if not name.endswith("journal")}
    done = call("prune", root, "--undo", "--id", first, "--json")
    assert done.code == 3 and done.json["restored"] == [] and "model_000100.pt" in done.err
    assert {name: data for name, data in contents(run).items() if not name.endswith("journal")} == here
    if how == "gone":
        # In the order in which they went it all comes back.
        assert call("prune", root, "--undo").code == 0 and call("prune", root, "--undo").code == 0
        assert whole(run) == list(STEPS) and not list(root.rglob(".ckpt-trash"))


def test_the_manifest_goes_along(call: Run, root: Path, run: Path) -> None:
    """A recorded step that is stripped verifies, also by sha256sum; when its optimizer is back it still does."""
    assert call("verify", "d2", "--root", root, "--record").code == 0
    manifest = run / "model_000100.pt.sha256"
    before = contents(root)
    assert len(manifest.read_text().splitlines()) == 4
    assert call("prune", root, "--tag", "d2", "--keep", 1, "--optimizer-only", "--trash", "--yes").code == 0
    assert [line.split()[1] for line in manifest.read_text().splitlines()] == part_names(100)[:2]
    assert len((run / "model_000400.pt.sha256").read_text().splitlines()) == 4
    assert call("verify", "d2", "--root", root).code == 0
    assert subprocess.run(["sha256sum", "-c", "--quiet", manifest.name], cwd=run).returncode == 0
    assert call("prune", root, "--undo").code == 0
    assert call("verify", "d2", "--root", root).code == 0 and contents(root) == before
    manifest.write_text("no manifest")
    done = call("prune", root, "--tag", "d2", "--keep", 1, "--optimizer-only", "--yes")
    assert done.code == 0 and "the manifest of base/d2/100" in done.err and len(optimizers(run)) == 2


@pytest.mark.parametrize("how", ["gone", "garbled", "recorded again"])
def test_a_manifest_that_changed_before_the_optimizer_is_back(call: Run, root: Path, run: Path, how: str) -> None:
    """What it said is put back into one that says the rest, and into no other; the optimizer is back in any case."""
    assert call("verify", "d2", "--root", root, "--record").code == 0
    manifest = run / "model_000100.pt.sha256"
    before = manifest.read_text()
    assert call("prune", root, "--tag", "d2", "--keep", 3, "--optimizer-only", "--trash", "--yes").code == 0
    if how == "gone":
        manifest.unlink()
    elif how == "garbled":
        manifest.write_text("no manifest")
    else:
        manifest.write_text("".join(reversed(manifest.read_text().splitlines(keepends=True))))
    done = call("prune", root, "--undo", "--json")
    assert done.json["restored"] == ["base/d2/100"] and len(optimizers(run)) == 8
    if how == "recorded again":
        assert done.code == 0 and sorted(manifest.read_text().splitlines()) == sorted(before.splitlines())
    elif how == "gone":
        assert done.code == 0 and not manifest.exists()
    else:
        assert done.code == 3 and "it does not list again what is back" in done.err
        assert manifest.read_text() == "no manifest"


def test_all_ranks_of_a_step_or_none(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: str, target: str) -> None:
        if source.endswith("optim_000100_rank1.pt"):
            raise PermissionError(13, "no")
        real(source, target)

    assert call("verify", "d2", "--root", root, "--record").code == 0
    before = (run / "model_000100.pt.sha256").read_text()
    monkeypatch.setattr(os, "rename", rename)
    done = call("prune", root, "--tag", "d2", "--keep", 2, "--optimizer-only", "--yes", "--json")
    assert done.code == 3 and {name.split("_")[1] for name in optimizers(run)} == {"000100", "000300", "000400"}
    assert len(optimizers(run)) == 6
    # The manifest of what stays lists it as before; that of what went is shorter; both are right.
    assert (run / "model_000100.pt.sha256").read_text() == before
    assert "optim" not in (run / "model_000200.pt.sha256").read_text()
    assert call("verify", "d2", "--root", root).code == 0


@pytest.mark.parametrize("again", [True, False], ids=["room-afterwards", "never"])
def test_no_room_for_a_shorter_manifest(
    call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """What goes makes room for it; where there is none even then, that is said, and nothing else comes of it."""
    assert call("verify", "d2", "--root", root, "--record").code == 0
    real = manifest.write

    def write(path: str, digests: Mapping[str, str], replace: bool) -> None:
        if len(optimizers(run)) > 6 or not again:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, digests, replace)

    monkeypatch.setattr(manifest, "write", write)
    done = call("prune", root, "--tag", "d2", "--keep", 3, "--optimizer-only", "--yes")
    assert done.code == 0 and len(optimizers(run)) == 6
    monkeypatch.undo()
    assert ("lists files that are gone" in done.err) is not again
    assert call("verify", "d2", "--root", root).code == (0 if again else 1)


def test_an_optimizer_inside_the_model_file(call: Run, tmp_path: Path) -> None:
    """nanoGPT's one file holds both: there is nothing to drop, and it says so."""
    import torch

    out = tmp_path / "out"
    out.mkdir()
    torch.save(
        {"model": {"w": torch.zeros(2)}, "optimizer": {}, "iter_num": 5, "model_args": {}, "config": {}},
        out / "ckpt.pt",
    )
    age(out / "ckpt.pt", DAY)
    done = call("prune", out, "--optimizer-only", "--keep", 0, "--yes")
    assert done.code == 0 and "nothing to remove" in done.err and "optimizer" in done.err
    assert (out / "ckpt.pt").exists()


# --- steps that are folders


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.is_dir())


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    return write_trainer(tmp_path / "out", (100, 200, 300))


def test_folders_go_with_their_files(call: Run, trainer: Path) -> None:
    before = contents(trainer)
    (trainer / "checkpoint-100").chmod(0o700)
    done = call("prune", trainer, "--keep", 1, "--trash", "--yes", "--json")
    assert done.code == 0, done.err
    assert folders(trainer) == [".ckpt-trash", "checkpoint-300"]
    (trash,) = (trainer / ".ckpt-trash").iterdir()
    # As private in the trash as it was, and when it is back.
    assert (trash / "checkpoint-100").stat().st_mode & 0o777 == 0o700
    assert [c["step"] for c in call("list", trainer, "--json").json["checkpoints"]] == [300]
    assert call("prune", trainer, "--undo").code == 0
    assert contents(trainer) == before and folders(trainer) == ["checkpoint-100", "checkpoint-200", "checkpoint-300"]
    assert (trainer / "checkpoint-100").stat().st_mode & 0o777 == 0o700
    assert call("prune", trainer, "--keep", 1, "--yes").code == 0
    assert folders(trainer) == ["checkpoint-300"]
    assert {f"checkpoint-300/{name}" for name in TRAINER} == set(contents(trainer))


def test_foreign_files_keep_their_folder(call: Run, trainer: Path) -> None:
    (trainer / "checkpoint-100/notes.txt").write_text("mine")
    (trainer / "checkpoint-200/empty").mkdir()
    assert call("prune", trainer, "--keep", 1, "--yes").code == 0
    assert sorted(path.name for path in (trainer / "checkpoint-100").iterdir()) == ["notes.txt"]
    assert sorted(path.name for path in (trainer / "checkpoint-200").iterdir()) == ["empty"]


def test_folders_that_a_kill_left_empty(call: Run, trainer: Path) -> None:
    """The next prune takes them away, but not one that a trainer has made there since."""
    assert call("prune", trainer, "--keep", 1, "--trash", "--yes").code == 0
    (journal,) = trainer.glob(".ckpt-trash/*/journal")
    for step in (100, 200):
        (trainer / f"checkpoint-{step}").mkdir()
    os.utime(trainer / "checkpoint-100", (journal.stat().st_mtime - 1,) * 2)
    age(trainer / "checkpoint-200", -60)
    assert call("prune", trainer, "--keep", 1, "--yes").code == 0
    assert folders(trainer) == [".ckpt-trash", "checkpoint-200", "checkpoint-300"]
    assert call("prune", trainer, "--undo").code == 0
    assert folders(trainer) == ["checkpoint-100", "checkpoint-200", "checkpoint-300"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("layout", "pins"),
    [
        ("huggingface", ["checkpoint-1/model.keep", "checkpoint-1/optimizer.pt.keep"]),
        ("torchtune", ["step_1/ft-model-00002-of-00002.keep"]),
        ("dcp", ["step-1/step-1.keep"]),
        ("torchtune flat", ["hf_model_0002_1.keep", "hf_model_0001_1.pt.keep"]),
        ("nano-gpt", ["checkpoint_000001.keep", "checkpoint_000001.bin.keep"]),
        ("fairseq shards", ["checkpoint1.keep", "checkpoint1-shard1.keep"]),
    ],
)
def test_a_pin_may_bear_any_of_its_names(call: Run, tmp_path: Path, layout: str, pins: list[str]) -> None:
    write_layout(layout, tmp_path)
    for pin in pins:
        (tmp_path / "run" / pin).touch()
        listed = call("list", tmp_path, "--json").json["checkpoints"]
        assert [c["ref"] for c in listed if c["pinned"]] == ["run/1"], pin
        (tmp_path / "run" / pin).unlink()


@pytest.mark.parametrize("pin", ["model_000100.pt.keep", "meta_000100.keep", "optim_000100_rank1.keep"])
def test_a_pin_beside_any_part(call: Run, root: Path, run: Path, pin: str) -> None:
    (run / pin).touch()
    assert kept(call("prune", root, "--tag", "d2", "--keep", 1, "--yes", "--json"))["100"] == ["pinned"]
    assert whole(run) == [100, 400] and (run / pin).exists()


@pytest.mark.parametrize("name", ["scheduler.pt", "optimizer.pt", "model.safetensors"])
def test_a_newest_step_of_the_trainer_that_was_cut_off(call: Run, trainer: Path, name: str) -> None:
    """Whichever of its files: training does not resume from it. A pickle that torch did not write is none of ours."""
    newest = trainer / "checkpoint-300"
    for other in ("rng_state.pth", "random_states_0.pkl"):
        (newest / other).write_bytes(b"anything")
        age(newest / other, 86400)
    assert call("prune", trainer, "--keep", 1, "-n", "-q").out.split() == ["out/100", "out/200"]
    os.truncate(newest / name, (newest / name).stat().st_size - 1)
    age(newest / name, 86400)
    assert call("prune", trainer, "--keep", 1, "-n", "-q").out.split() == ["out/100"]


def test_a_run_inside_a_step(call: Run, trainer: Path) -> None:
    """Training went on below a step that falls out: its steps are a run of their own."""
    write_trainer(trainer / "checkpoint-100", (6,))
    before = contents(trainer / "checkpoint-100/checkpoint-6")
    assert call("prune", trainer, "--keep", 1, "--yes").code == 0
    assert contents(trainer / "checkpoint-100/checkpoint-6") == before
    assert [path.name for path in (trainer / "checkpoint-100").iterdir()] == ["checkpoint-6"]


def test_a_pinned_folder_and_the_best_step_stay(call: Run, tmp_path: Path) -> None:
    run = write_trainer(tmp_path / "out", (100, 200, 300, 400), best=200)
    (run / "checkpoint-100/.keep").touch()
    done = call("prune", run, "--keep", 1, "--yes", "--json")
    assert done.code == 0 and folders(run) == ["checkpoint-100", "checkpoint-200", "checkpoint-400"]


def test_the_base_of_an_adapter_elsewhere_stays(call: Run, tmp_path: Path, trainer: Path) -> None:
    """Also when the run of the adapter is not what is pruned."""
    import torch
    from safetensors.torch import save_file

    lora = tmp_path / "lora/checkpoint-50"
    lora.mkdir(parents=True)
    save_file({"w": torch.zeros(2)}, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(trainer / "checkpoint-100")}))
    (lora / "trainer_state.json").write_text('{"global_step": 50, "log_history": []}')
    for path in lora.iterdir():
        age(path, DAY)
    done = call("prune", "out", "--root", tmp_path, "--keep", 1, "--yes", "--json")
    assert done.code == 0, done.err
    assert folders(trainer) == ["checkpoint-100", "checkpoint-300"]
    (group,) = done.json["groups"]
    assert {"ref": "out/100", "reasons": ["lora/50 needs it"]} in group["keep"]


def test_optimizer_only_of_the_trainer(call: Run, trainer: Path) -> None:
    """The optimizer goes; scheduler and random state, which are small, stay."""
    assert call("prune", trainer, "--keep", 1, "--optimizer-only", "--yes").code == 0
    assert sorted(path.name for path in (trainer / "checkpoint-100").iterdir()) == sorted({*TRAINER} - {"optimizer.pt"})
    found = {c["step"]: c for c in call("list", trainer, "--json").json["checkpoints"]}
    assert [(c["state"], c["resumable"], c["problems"]) for c in found.values()] == [
        ("complete", False, []), ("complete", False, []), ("complete", True, []),
    ]  # fmt: skip


def test_a_link_in_place_of_a_folder_leads_nowhere(
    call: Run, trainer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between plan and removal a step's folder became a link to elsewhere: nothing there is touched."""
    from ckpt_cli.ui import out

    outside = tmp_path / "outside"

    def confirm(question: str, yes: bool) -> bool:
        (trainer / "checkpoint-100").rename(outside)
        (trainer / "checkpoint-100").symlink_to(outside)
        return True

    monkeypatch.setattr(out, "confirm", confirm)
    done = call("prune", trainer, "--keep", 1)
    assert done.code == 3 and sorted(path.name for path in outside.iterdir()) == sorted(TRAINER)
    assert not (trainer / "checkpoint-200").exists() and (trainer / "checkpoint-300").exists()


def renamed(monkeypatch: pytest.MonkeyPatch, action: Callable[[str, str], object]) -> list[str]:
    """What is renamed into a trash, by its path below it; `action` comes first, with both paths."""
    real = os.rename
    names: list[str] = []

    def rename(source: str, target: str) -> None:
        action(source, target)
        real(source, target)
        names.append(target.partition(".ckpt-trash/")[2].partition("/")[2])

    monkeypatch.setattr(os, "rename", rename)
    return names


def test_a_folder_goes_and_comes_back_by_one_rename(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a trainer never finds a half one, also while the last of a run goes."""
    before = contents(trainer)
    names = renamed(monkeypatch, lambda source, target: None)
    assert call("prune", trainer, "--keep", 0, "--allow-empty", "--trash", "--yes").code == 0
    assert names == ["checkpoint-100", "checkpoint-200", "checkpoint-300"] and folders(trainer) == [".ckpt-trash"]
    (trainer / "checkpoint-200").mkdir()  # an empty one is in nobody's way
    # In this one a trainer writes already: what is there stays, and what is missing comes beside it.
    (trainer / "checkpoint-300").mkdir()
    (trainer / "checkpoint-300/new").write_text("new")
    assert call("prune", trainer, "--undo").code == 0
    assert contents(trainer) == {**before, "checkpoint-300/new": b"new"}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_inner_folders_go_along(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a distributed save inside; an empty folder, a link or a hidden file in it is not ours and keeps its folder."""
    import torch
    from torch.distributed.checkpoint.state_dict_saver import save

    for step in (100, 200):
        inner = trainer / f"checkpoint-{step}/pytorch_model_fsdp_0"
        save({"w": torch.zeros(2)}, checkpoint_id=str(inner), no_dist=True)
        for path in inner.iterdir():
            age(path, 2 * DAY - step)
    (trainer / "checkpoint-200/pytorch_model_fsdp_0/.notes").write_text("mine")
    names = renamed(monkeypatch, lambda source, target: None)
    assert call("prune", trainer, "--keep", 1, "--yes").code == 0
    assert names[0] == "checkpoint-100" and len(names) > 5 and folders(trainer) == ["checkpoint-200", "checkpoint-300"]
    assert [path for path in (trainer / "checkpoint-200").rglob("*") if path.is_file()] == [
        trainer / "checkpoint-200/pytorch_model_fsdp_0/.notes"
    ]


def test_what_is_written_into_a_folder_meanwhile(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the rename: the folder comes back with it."""
    before = contents(trainer)

    def write(source: str, target: str) -> None:
        if source == str(trainer / "checkpoint-100"):
            (trainer / "checkpoint-100/new").write_text("new")

    renamed(monkeypatch, write)
    done = call("prune", trainer, "--keep", 1, "--yes", "--json")
    assert done.code == 3 and "something else was written into it" in done.err
    assert contents(trainer) == {
        **{name: data for name, data in before.items() if "-200" not in name}, "checkpoint-100/new": b"new",
    }  # fmt: skip
    assert folders(trainer) == ["checkpoint-100", "checkpoint-300"]


def test_a_file_system_that_moves_no_folder(call: Run, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an overlay does: then its files go one by one, and come back."""
    before = contents(trainer)

    def refuse(source: str, target: str) -> None:
        if os.path.isdir(source):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    names = renamed(monkeypatch, refuse)
    assert call("prune", trainer, "--keep", 1, "--trash", "--yes").code == 0
    assert len(names) == 2 * len(TRAINER) and folders(trainer) == [".ckpt-trash", "checkpoint-300"]
    assert call("prune", trainer, "--undo").code == 0 and contents(trainer) == before


def test_what_is_put_into_the_trash_stays(call: Run, trainer: Path) -> None:
    assert call("prune", trainer, "--keep", 1, "--trash", "--yes").code == 0
    (trash,) = (trainer / ".ckpt-trash").iterdir()
    (trash / "checkpoint-100/notes.txt").write_text("mine")
    done = call("prune", trainer, "--purge", "--yes")
    assert done.code == 3 and "did not put there" in done.err
    assert [path.name for path in trash.rglob("*") if path.is_file()] == ["journal", "notes.txt"]


def test_an_immutable_file_in_a_folder(call: Run, trainer: Path) -> None:
    """It could move with its folder, and then not be deleted: all of that checkpoint stays where it is."""
    path, before = trainer / "checkpoint-100/config.json", contents(trainer)
    chattr = shutil.which("chattr")
    if not chattr or subprocess.run([chattr, "+i", str(path)], capture_output=True).returncode:
        pytest.skip("no file can be made immutable here")
    try:
        done = call("prune", trainer, "--keep", 1, "--yes", "--json")
    finally:
        subprocess.run([chattr, "-i", str(path)], check=True)
    assert done.code == 3 and done.json["problems"][0]["path"] == str(path)
    assert contents(trainer) == {name: data for name, data in before.items() if "-200" not in name}


# --- a world that moves


def test_what_still_grows_is_in_progress(call: Run, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of an old step are there by name, and one is being written again: told apart by looking twice."""
    for name in part_names(200):
        os.utime(run / name, (time.time() - 600 + 10,) * 2)
    growing = run / "optim_000200_rank1.pt"
    age(growing, 1)
    for step in (300, 400):
        for name in part_names(step):
            age(run / name, 1)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        with open(growing, "ab") as file:
            file.write(b" ")

    monkeypatch.setattr(time, "sleep", sleep)
    done = call("prune", root, "--keep", 1, "--yes", "--json")
    assert waited and waited[0] <= 0.25
    group = done.json["groups"][0]
    assert group["ignored"] == [
        {"ref": "base/d2/200", "reason": "in progress: optim_000200_rank1.pt is still being written"}
    ]
    assert whole(run) == [200, 400]


@pytest.mark.parametrize("ahead", [3600, 400 * DAY])
def test_growing_by_a_clock_that_is_ahead(call: Run, root: Path, run: Path, ahead: float) -> None:
    """Times in the future: a truncated step is being written, nothing that is whole is lost."""
    for index, step in enumerate(STEPS):
        for name in part_names(step):
            age(run / name, -ahead - index)
    os.truncate(run / "optim_000400_rank0.pt", 100)
    age(run / "optim_000400_rank0.pt", -ahead - 3)
    done = call("prune", root, "--tag", "d2", "--keep", 1, "--yes", "--json")
    assert done.code == 0, done.err
    assert [i["ref"] for i in done.json["groups"][0]["ignored"]] == ["base/d2/400"]
    assert list(kept(done)) == ["300"] and (run / "model_000400.pt").exists() and whole(run) == [300, 400]


def test_a_clock_that_is_behind(call: Run, root: Path, run: Path) -> None:
    """A server's clock is a day slow: what is being written looks old. It is incomplete, and is not touched either."""
    (run / "optim_000400_rank1.pt").unlink()
    for name in part_names(400)[:3]:
        age(run / name, DAY)
    assert call("prune", root, "--tag", "d2", "--keep", 1, "--yes").code == 0
    assert whole(run) == [300] and (run / "model_000400.pt").exists()


def test_a_plan_waits_only_for_what_is_fresh(call: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nothing here was touched lately"))
    assert call("prune", root, "--keep", 1, "-n").code == 0


SAVES = """
import os, sys, time
run, data, until = sys.argv[1], open(sys.argv[2], "rb").read(), time.time() + float(sys.argv[3])
step = 1000
while time.time() < until:
    step += 1
    for name in ("model_%06d.pt", "meta_%06d.json", "optim_%06d_rank0.pt", "optim_%06d_rank1.pt"):
        name %= step
        with open(os.path.join(run, name), "wb") as file:
            if name.endswith("json"):
                file.write(b'{"step": %d, "val_bpb": 0.5}' % step)
                continue
            for start in range(0, len(data), 2000):
                file.write(data[start : start + 2000])
                file.flush()
                time.sleep(0.002)
    with open(sys.argv[4], "a") as log:
        log.write(f"{step}\\n")
    time.sleep(0.05)
"""


def test_a_trainer_saves_meanwhile(call: Run, root: Path, run: Path, tmp_path: Path) -> None:
    """Straight into the final names, as trainers do, every 50 ms: nothing that counts is lost, nothing is half.

    CKPT_TEST_SECONDS makes it longer.
    """
    log = tmp_path / "saved"
    log.touch()
    data = tmp_path / "data.pt"
    import torch

    torch.save({"w": torch.zeros(2000)}, data)
    seconds = float(os.environ.get("CKPT_TEST_SECONDS", "3"))
    command = [sys.executable, "-c", SAVES, str(run), str(data), str(seconds), str(log)]
    trainer = subprocess.Popen(command)
    rounds, removed = 0, 0
    try:
        while trainer.poll() is None:
            finished = log.read_text().split()
            done = call("prune", root, "--tag", "d2", "--keep", 3, "--yes", "--json")
            # 4: a file that the plan counted on was still written to when it was looked at again.
            assert done.code in (0, 4), done
            rounds += 1
            removed += len(done.json["groups"][0]["remove"]) if done.code == 0 else 0
            # One more may have been finished before the plan was made.
            for name in (name for step in finished[-2:] for name in part_names(int(step))):
                assert name.endswith("json") or (run / name).read_bytes() == data.read_bytes(), f"{name} was lost"
            newest = trainers_newest(run)
            assert newest is not None and (not finished or newest >= int(finished[-1]))
    finally:
        trainer.kill()
        trainer.wait()
    finished = log.read_text().split()
    last = {int(step) for step in finished[-3:]}
    assert rounds > 3 and removed > 5 and len(finished) > 10, (rounds, removed, len(finished))
    left = {int(path.name[6:12]) for path in run.glob("model_*")}
    for done_step in left & set(map(int, finished)):
        assert all((run / name).exists() for name in part_names(done_step)), f"half of {done_step} is there"
    assert last <= left and not list(run.glob(".ckpt-trash/*/*"))


# --- files that cannot go


def as_nobody(arguments: list[str]) -> int:
    """The exit code of a command that a user without rights runs, in a child of this process."""
    from ckpt_cli.app import main

    pid = os.fork()
    if not pid:
        code = 99
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            os.chdir("/")
            os.environ["HOME"] = "/nowhere"
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            code = main(arguments)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def open_root(old_runs: Path) -> Iterator[Path]:
    """A tree that every user can reach."""
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="ckpt-test-"))
    place.chmod(0o755)
    yield Path(shutil.copytree(old_runs, place / "tree"))
    shutil.rmtree(place)


@pytest.mark.skipif(not hasattr(os, "setresuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_directory_that_is_not_ours_to_write(call: Run, open_root: Path) -> None:
    run = open_root / "base_checkpoints/d2"
    assert call("prune", open_root, "--keep", 1, "-n").code == 0
    before = contents(open_root)
    # The other run is theirs, down to the last file: that one is pruned.
    for path in (run.parent / "d4", *(run.parent / "d4").iterdir()):
        os.chown(path, 65534, 65534)
    assert as_nobody(["prune", str(open_root), "--keep", "1", "--yes"]) == 3
    assert contents(run) == {
        name.removeprefix("base_checkpoints/d2/"): data for name, data in before.items() if "/d2/" in name
    }
    assert whole(run.parent / "d4") == [400] and not list(open_root.rglob(".ckpt-trash"))


@pytest.mark.skipif(not hasattr(os, "setresuid") or os.geteuid() != 0, reason="only root can become another user")
def test_metadata_that_is_not_ours_to_read(call: Run, open_root: Path) -> None:
    """A step is not incomplete for that: it stays, and with it the newest."""
    run = open_root / "base_checkpoints/d4"
    for path in (run, *run.iterdir()):
        os.chown(path, 65534, 65534)
    closed = run / "meta_000400.json"
    os.chown(closed, 0, 0)
    closed.chmod(0o600)
    assert as_nobody(["prune", str(run), "--keep", "1", "--incomplete", "--yes"]) == 0
    assert whole(run) == [300, 400]
    closed.write_text("{")
    os.utime(closed, (1, 1))
    assert call("prune", run, "--keep", 1, "--incomplete", "--yes").code == 0 and whole(run) == [300]


@pytest.mark.skipif(not hasattr(os, "setresuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("flags", [("--undo",), ("--purge", "--yes")])
def test_a_trash_that_is_not_ours_to_write(call: Run, open_root: Path, flags: tuple[str, ...]) -> None:
    """What one run refuses does not keep another from being settled."""
    mine, theirs = (open_root / "base_checkpoints" / tag for tag in ("d4", "d2"))
    assert call("prune", open_root, "--keep", 1, "--trash", "--yes").code == 0
    for path in (mine, *mine.rglob("*")):
        os.chown(path, 65534, 65534)
    before = contents(theirs)
    assert as_nobody(["prune", str(open_root), *flags]) == 3
    assert contents(theirs) == before and list(theirs.glob(".ckpt-trash/*/journal"))
    assert whole(mine) == (list(STEPS) if flags == ("--undo",) else [400]) and not (mine / ".ckpt-trash").exists()


def test_read_only_files(call: Run, root: Path, run: Path) -> None:
    """Their directory decides, as with rm: a file's own mode protects its bytes, not its name."""
    for name in part_names(100):
        (run / name).chmod(0o444)
    assert call("prune", root, "--keep", 2, "--yes").code == 0 and whole(run) == [300, 400]


def test_immutable_files(call: Run, root: Path, run: Path) -> None:
    path = run / "meta_000100.json"
    chattr = shutil.which("chattr")
    if not chattr or subprocess.run([chattr, "+i", str(path)], capture_output=True).returncode:
        pytest.skip("no file can be made immutable here")
    try:
        done = call("prune", root, "--keep", 2, "--yes", "--json")
    finally:
        subprocess.run([chattr, "-i", str(path)], check=True)
    assert done.code == 3 and done.json["problems"][0]["path"] == str(path)
    assert whole(run) == [100, 300, 400] and not list(root.rglob(".ckpt-trash"))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts, taken away again at the end."""
    places: list[str] = []

    def mount(*arguments: object) -> None:
        program = shutil.which("mount")
        if not program or subprocess.run([program, *map(str, arguments)], capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        places.append(str(arguments[-1]))

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=True)


def test_a_step_on_another_file_system(call: Run, tmp_path: Path, mounted: Callable[..., None]) -> None:
    """A folder of the run is a mount point: its files cannot be renamed out of it, and stay; the others go."""
    run = write_trainer(tmp_path / "out", (100, 200, 300))
    (run / "checkpoint-200").rename(tmp_path / "moved")
    (run / "checkpoint-200").mkdir()
    mounted("-t", "tmpfs", "none", run / "checkpoint-200")
    for path in (tmp_path / "moved").iterdir():
        shutil.copy2(path, run / "checkpoint-200" / path.name)
    done = call("prune", run, "--keep", 1, "--yes", "--json")
    assert done.code == 3 and "checkpoint-200" in done.json["problems"][0]["path"]
    assert sorted(path.name for path in (run / "checkpoint-200").iterdir()) == sorted(TRAINER)
    assert folders(run) == ["checkpoint-200", "checkpoint-300"]


def test_a_mount_point_in_a_folder(call: Run, trainer: Path, tmp_path: Path, mounted: Callable[..., None]) -> None:
    """A folder moves with what is mounted in it; this one does not."""
    before = contents(trainer)
    shutil.copy2(trainer / "checkpoint-100/config.json", tmp_path / "other.json")
    mounted("--bind", tmp_path / "other.json", trainer / "checkpoint-100/config.json")
    done = call("prune", trainer, "--keep", 1, "--yes")
    assert done.code == 3 and "config.json could not go" in done.err
    assert contents(trainer) == {name: data for name, data in before.items() if "-200" not in name}


def test_a_file_that_is_a_mount_point(
    call: Run, root: Path, run: Path, tmp_path: Path, mounted: Callable[..., None]
) -> None:
    (tmp_path / "other.pt").write_bytes((run / "model_000100.pt").read_bytes())
    age(tmp_path / "other.pt", 2 * DAY - 100)
    mounted("--bind", tmp_path / "other.pt", run / "model_000100.pt")
    done = call("prune", root, "--tag", "d2", "--keep", 2, "--yes")
    assert done.code == 3 and "model_000100.pt could not go" in done.err and whole(run) == [100, 300, 400]


# --- many


def test_the_plan_of_ten_thousand() -> None:
    """What a step needs is asked once of each, however long the run is; how long it takes, `make bench` says."""
    run = [made(step) for step in range(1, 10_001)]
    asked = Counter[int]()

    def needs(checkpoint: Checkpoint, others: Sequence[Checkpoint]) -> tuple[()]:
        asked[checkpoint.step or 0] += 1
        return ()

    plan = make_plan(run, {"keep": keep_last(3)}, Rules(10**18, 10**9, {"nanochat": needs}))
    assert len(plan.removed) == 9997 and max(asked.values()) == 1


def test_a_root_that_is_one_step_s_folder(call: Run, tmp_path: Path) -> None:
    """Its run lies above the root, with what the steps share: nothing there may be touched."""
    run = write_trainer(tmp_path / "out", (100, 200))
    before = contents(tmp_path)
    for keep in (("--keep", "1"), ("--keep", "0", "--allow-empty", "-g", "out"), ("--optimizer-only", "--keep", "0")):
        done = call("prune", "--root", run / "checkpoint-100", *keep, "--yes")
        assert (done.code, contents(tmp_path)) == (4, before), done
    assert f"outside the root\nhint: --root {run} prunes it" in done.err
