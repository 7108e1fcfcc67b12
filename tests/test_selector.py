"""TARGET in all its forms, the default, the root."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ckpt_cli.errors import CkptError, NotFound
from ckpt_cli.metrics import best_of, parse_metric
from ckpt_cli.query import resolve
from ckpt_cli.root import find_root
from ckpt_cli.selector import choose, choose_one
from tests.conftest import Run
from tests.test_discover import OLD, step, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three sources, an experiment, tags that only begin like a depth."""
    base = tmp_path / "root"
    for number, bpb in ((100, "0.9"), (200, "0.7"), (300, "0.8")):
        write(base, *step("base_checkpoints/d12", f"{number:06d}", 0))
        write(base, f"base_checkpoints/d12/meta_{number:06d}.json", content=f'{{"val_bpb": {bpb}}}')
    write(base, *step("base_checkpoints/d4", "000100"), *step("base_checkpoints/d24_jan29", "000900"))
    write(base, "base_checkpoints/d30/model_000100.pt")  # incomplete: no default
    write(base, *step("mid_checkpoints/d12", "000080"), *step("chatsft_checkpoints/d20", "000650"))
    write(base, *step("experiments/one/d12/base", "000005"), *step("experiments/2024/d9/base", "000006"))
    return base


def one(root: Path, target: str | None = None, **options: Any) -> str:
    return choose_one(resolve(target, str(root), environ={}, cwd=str(root), **options))[0].ref


def many(root: Path, target: str | None = None, **options: Any) -> list[str]:
    return [c.ref for c in choose(resolve(target, str(root), environ={}, cwd=str(root), **options))]


@pytest.mark.parametrize(
    ("target", "ref"),
    [
        ("base/d12", "base/d12/300"),
        ("base/d12/100", "base/d12/100"),
        ("base/d12/000100", "base/d12/100"),
        ("base/d12/latest", "base/d12/300"),
        ("base/d12/best", "base/d12/200"),
        ("base/d12/model_000200", "base/d12/200"),
        ("d12/100", "base/d12/100"),  # of the runs called d12 only this one has the step
        ("d12/80", "mid/d12/80"),
        ("mid/d12", "mid/d12/80"),
        ("d4", "base/d4/100"),
        ("d30/100", "base/d30/100"),  # a step that is named may be incomplete
        ("d24_jan29", "base/d24_jan29/900"),
        ("one/d12", "base/experiments/one/d12/5"),
        ("base/one/d12", "base/experiments/one/d12/5"),
        ("base/experiments/one/d12/5", "base/experiments/one/d12/5"),
        ("d9", "base/experiments/2024/d9/6"),  # a unique suffix
        ("sft", "sft/d20/650"),
        ("mid", "mid/d12/80"),
        ("100", "base/d12/100"),
        ("latest", "base/d12/300"),
        ("best", "base/d12/200"),
        (None, "base/d12/300"),
    ],
)
def test_selector_names_one(root: Path, target: str | None, ref: str) -> None:
    assert one(root, target) == ref


def test_every_ref_that_is_listed_is_found(root: Path) -> None:
    for ref in many(root):
        assert one(root, ref) == ref


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("d12", "ambiguous: base/d12, mid/d12"),
        ("d13", "nothing matches"),
        ("base/d12/400", "no step 400"),
        ("rl/d12", "nothing matches"),
        ("./nothing.pt", "no file"),
        ("nothing.safetensors", "no file"),
    ],
)
def test_selector_errors_teach(root: Path, target: str, message: str) -> None:
    with pytest.raises(CkptError, match=message) as failure:
        one(root, target)
    assert failure.value.code == 2


def test_typo_names_the_nearest(root: Path) -> None:
    with pytest.raises(CkptError) as failure:
        one(root, "base/d24_jan92")
    assert "base/d24_jan29" in (failure.value.hint or "")


def test_a_set(root: Path) -> None:
    assert many(root, "d12") == ["base/d12/100", "base/d12/200", "base/d12/300", "mid/d12/80"]
    assert many(root, "base/d12/latest") == ["base/d12/300"]
    assert many(root, "d12", step="latest") == ["base/d12/300", "mid/d12/80"]
    assert many(root, "mid") == ["mid/d12/80"]
    assert many(root, source="sft") == ["sft/d20/650"]
    assert many(root, step="100") == ["base/d4/100", "base/d12/100", "base/d30/100"]


def test_options_are_a_selector_too(root: Path) -> None:
    assert one(root, source="base", tag="d12", step="200") == "base/d12/200"
    assert one(root, "d12", source="mid") == "mid/d12/80"
    assert one(root, source="mid") == "mid/d12/80"
    assert one(root, step="200") == "base/d12/200"
    for target, options in (("base/d12", {"source": "mid"}), ("d12/100", {"step": "200"}), ("d4", {"tag": "d12"})):
        with pytest.raises(CkptError, match="contradict") as failure:
            one(root, target, **options)
        assert failure.value.code == 2
    with pytest.raises(CkptError, match="no source 'rl'"):
        many(root, source="rl")


def test_default_by_rule(tmp_path: Path) -> None:
    """A whole d<N> of the first source; then a tag that begins so; then the newest run."""
    write(tmp_path, *step("base_checkpoints/other", "000100"), when=OLD + 9)
    write(tmp_path, *step("base_checkpoints/d2x", "000100"))
    assert one(tmp_path) == "base/d2x/100"
    write(tmp_path, *step("chatsft_checkpoints/d3", "000100"), *step("chatsft_checkpoints/d20", "000100"))
    assert one(tmp_path) == "sft/d20/100"
    write(tmp_path, *step("base_checkpoints/d1", "000100"))
    assert one(tmp_path) == "base/d1/100"
    other = tmp_path / "other"
    write(other, *step("b", "000100"), *step("c", "000100"))
    write(other, *step("a", "000100"), when=OLD + 5)
    checkpoint, guess = choose_one(resolve(None, str(other), environ={}))
    assert checkpoint.ref == "a/100" and guess == "the newest run"


def test_one_run_is_no_guess(tmp_path: Path) -> None:
    write(tmp_path, *step("d12", "000100"))
    assert choose_one(resolve(None, str(tmp_path), environ={}))[1] is None


def test_nothing_complete_is_not_found(tmp_path: Path) -> None:
    write(tmp_path, "d12/model_000100.pt")
    for target in (None, "d12", "d12/latest"):
        with pytest.raises(NotFound):
            one(tmp_path, target)
    with pytest.raises(NotFound):
        one(tmp_path / "d12" / "..")


def test_paths(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    directory = "./base_checkpoints/d12"
    assert resolve(directory, environ={}).root.path == str(root / "base_checkpoints/d12")
    with pytest.raises(CkptError, match="cannot go with --root") as failure:
        resolve(directory, str(root), environ={})
    assert failure.value.code == 2
    part = resolve(f"{directory}/meta_000100.json", environ={})
    assert part.file == str(root / "base_checkpoints/d12/meta_000100.json")
    assert [c.ref for c in part.pool] == ["base/d12/100"]
    with pytest.raises(CkptError, match="names one file"):
        resolve(f"{directory}/meta_000100.json", step="200", environ={})


def test_names_of_every_script_are_shown_as_they_were_typed(tmp_path: Path, call: Run) -> None:
    write(tmp_path, *step("日本", "000100"))
    done = call("list", "日", "--root", tmp_path)
    assert (done.code, done.err) == (2, f"error: nothing matches '日' in {tmp_path}\nhint: did you mean 日本\n")
    # What could steer a terminal is not.
    assert "'\\x1b[31m'" in call("list", "\x1b[31m", "--root", tmp_path).err


def test_one_that_is_incomplete_says_what_is_missing(tmp_path: Path, call: Run) -> None:
    """Where there is no other that could have been meant."""
    write(tmp_path, "d4/model_000100.pt")
    done = call("inspect", "meta", "d4", "--root", tmp_path)
    assert (done.code, done.out) == (1, "")
    said = "d4/100 is incomplete: the meta file is missing (meta_000100.json)"
    assert done.err == f"error: {said}\nhint: `ckpt list --root {tmp_path}` shows what is there\n"
    write(tmp_path, "d4/model_000200.pt")
    assert "no checkpoint of d4 is complete" in call("inspect", "meta", "d4", "--root", tmp_path).err


def test_a_link_to_nothing_is_named_with_where_it_leads(tmp_path: Path) -> None:
    """Not as the file that is not there."""
    for where in (tmp_path / "gone.pt", tmp_path / "gone/away.pt"):
        link = tmp_path / "link.pt"
        link.symlink_to(where)
        write(tmp_path, *step("d4", "000100"))
        with pytest.raises(CkptError) as failure:
            resolve(str(link), environ={})
        assert failure.value.message == f"{link} is a link to {where}, which is not there"
        link.unlink()


@pytest.mark.parametrize("command", [
    ["list"], ["latest"], ["verify"], ["inspect", "meta"], ["inspect", "tensors"], ["inspect", "optim"], ["load-test"],
    ["prune", "--keep", "1"], ["convert"], ["convert", "--all"], ["patch-config"], ["patch-config", "--all"],
])  # fmt: skip
def test_every_command_says_the_same_of_a_root_with_nothing(
    command: list[str], tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it looked and what sent it there; the answer is no, and the hint is of use."""
    home, empty = tmp_path / "home", tmp_path / "empty"
    for environ, arguments, said in (
        ("", [], f"there is no directory {home}/.cache/nanochat (nanochat's default)"),
        (f"{empty}/no", [], f"there is no directory {empty}/no (NANOCHAT_BASE_DIR)"),
        (f"{empty}", [], f"there are no checkpoints in {empty} (NANOCHAT_BASE_DIR)"),
        ("", ["--root", empty], f"there are no checkpoints in {empty}"),
    ):
        monkeypatch.setenv("NANOCHAT_BASE_DIR", environ)
        done = call(*command, *arguments)
        assert (done.code, done.out) == (1, ""), done
        assert done.err.splitlines()[-2:] == [
            f"error: {said}", "hint: --root DIR looks elsewhere, `ckpt demo` writes some to try"
        ]  # fmt: skip


def test_what_exists_is_a_path_at_last(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`base_checkpoints` matches no run and is a directory here: taken as a path, and said."""
    monkeypatch.chdir(root)
    query = resolve("base_checkpoints", environ={})
    assert query.root.path == str(root / "base_checkpoints") and "taken as a path" in query.notes[0]


def test_selector_before_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory called like a run does not hide the run."""
    (root / "elsewhere/d4").mkdir(parents=True)
    monkeypatch.chdir(root / "elsewhere")
    assert resolve("d4", str(root), environ={}).root.path == str(root)


def test_root_by_precedence(tmp_path: Path) -> None:
    here, there, base, empty = (tmp_path / name for name in ("here", "there", "base", "empty"))
    for directory in (there, base, empty):
        directory.mkdir()
    write(here, *step("a/b", "000100"))
    environ = {"CKPT_ROOT": str(there), "NANOCHAT_BASE_DIR": str(base)}
    assert find_root(str(base), environ, str(here)) == (str(base), "--root")
    assert find_root(None, environ, str(here)) == (str(there), "CKPT_ROOT")
    del environ["CKPT_ROOT"]
    assert find_root(None, environ, str(here)) == (str(here), "the current directory")
    assert find_root(None, environ, str(empty)) == (str(base), "NANOCHAT_BASE_DIR")
    for unset in ({}, {"NANOCHAT_BASE_DIR": ""}, {"CKPT_ROOT": ""}):
        path = os.path.realpath(os.path.expanduser("~/.cache/nanochat"))
        assert find_root(None, unset, str(empty)) == (path, "nanochat's default")
    with pytest.raises(CkptError, match="CKPT_ROOT"):
        find_root(None, {"CKPT_ROOT": str(tmp_path / "no")}, str(here))


def test_current_directory_two_levels_down(tmp_path: Path) -> None:
    write(tmp_path, *step("a/b/c", "000100"))
    assert find_root(None, {}, str(tmp_path)).origin == "nanochat's default"
    assert find_root(None, {}, str(tmp_path / "a")).origin == "the current directory"


def test_metric_names(root: Path) -> None:
    assert parse_metric("mmlu_acc:max") == ("mmlu_acc", "max")
    assert parse_metric("val_loss") == ("val_loss", "min")
    run = [c for c in resolve(None, str(root), environ={}).pool if c.run == "base/d12"]
    assert best_of(run, None)[0].step == 200 and best_of(run, "val_bpb:max")[0].step == 100
    for text, message in (("mmlu_acc", "is better is not known"), ("a:b", "min or max")):
        with pytest.raises(CkptError, match=message):
            best_of(run, text)
    with pytest.raises(NotFound):
        best_of(run, "mmlu_acc:max")


def test_hints_name_the_root_that_was_looked_through(root: Path) -> None:
    """`ckpt list` alone would look elsewhere."""
    for target in ("zzzzzz", "base/d30"):
        with pytest.raises(CkptError) as failure:
            one(root, target)
        assert failure.value.hint == f"`ckpt list --root {root}` shows what is there"
    with pytest.raises(CkptError) as failure:
        one(root, "d12/7")
    assert failure.value.hint == "the last ones are 80, 100, 200, 300"
    with pytest.raises(CkptError) as failure:
        one(root, "mid/d12/7")
    assert failure.value.hint == "the only one is 80"
