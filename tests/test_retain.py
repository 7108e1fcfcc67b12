"""What is kept and why: the policy's golden table, and the rules that no policy may break."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_cli.checkpoint import Checkpoint, Part, Problem
from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.retain import Plan, Rules, keep_last, make_plan
from tests.conftest import Run
from tests.test_discover import OLD, step, write

NOW = 10**18


def checkpoint(number: int, state: str = "complete", resumable: bool = True, when: int | None = None) -> Checkpoint:
    part = Part("model", f"/r/model_{number:06d}.pt", 10, NOW // 2 + number if when is None else when)
    problems = () if state == "complete" else (Problem("missing-part", "the meta file is missing", "/r"),)
    return Checkpoint(
        "nanochat", "base", "d12", number, "step", f"model_{number:06d}", "/r", (part,),
        state=state, resumable=resumable and state == "complete", problems=problems,  # type: ignore[arg-type]
    )  # fmt: skip


def plan(run: list[Checkpoint], count: int, incomplete: bool = False, trust_steps: bool = False) -> Plan:
    needs = {"nanochat": lambda c, run: ()}
    rules = Rules(NOW, 10**6, needs, incomplete=incomplete, trust_steps=trust_steps)
    return make_plan(run, {"keep": keep_last(count)}, rules)


def steps(checkpoints: list[Checkpoint]) -> list[int]:
    return [c.step or 0 for c in checkpoints]


@pytest.mark.parametrize("there", range(8))
@pytest.mark.parametrize("count", range(1, 12))
def test_keep_last(there: int, count: int) -> None:
    """Also where a run has fewer than N: then nothing goes."""
    run = [checkpoint(10 * (index + 1)) for index in range(there)]
    groups = plan(run, count).groups
    if there:
        assert steps([kept.checkpoint for kept in groups[0].keep]) == [10 * i for i in range(1, there + 1)][-count:]
        assert steps(list(groups[0].remove)) == [10 * i for i in range(1, max(0, there - count) + 1)]


@given(st.lists(st.tuples(st.sampled_from(["complete", "incomplete", "in-progress"]), st.booleans()), max_size=12),
       st.integers(1, 15), st.booleans())  # fmt: skip
def test_no_plan_removes_the_newest(run: list[tuple[str, bool]], count: int, incomplete: bool) -> None:
    """Whatever lies there: the newest complete and resumable stay, what is in progress stays, more N keeps more."""
    made = [checkpoint(index + 1, state, resumable) for index, (state, resumable) in enumerate(run)]
    try:
        removed = steps(plan(made, count, incomplete=incomplete).removed)
        fewer = steps(plan(made, count + 1, incomplete=incomplete).removed)
    except Refused:
        assert incomplete and not any(c.state == "complete" for c in made)
        return
    complete = [c for c in made if c.state == "complete"]
    for newest in (complete[-1:], [c for c in complete if c.resumable][-1:]):
        assert not set(steps(newest)) & set(removed)
    assert not {c.step for c in made if c.state == "in-progress"} & set(removed)
    assert incomplete or not {c.step for c in made if c.state == "incomplete"} & set(removed)
    assert len(complete) - len([n for n in removed if made[n - 1].state == "complete"]) >= min(count, len(complete))
    assert set(fewer) <= set(removed)


def test_restarted_run_by_any_part() -> None:
    """A lower step touched later than a higher one, in whatever file."""
    run = [checkpoint(10, when=NOW - 10), checkpoint(20, when=NOW - 10**9), checkpoint(30, when=NOW - 10**9)]
    with pytest.raises(Refused, match="restarted"):
        plan(run, 1)
    assert steps(plan(run, 1, trust_steps=True).removed) == [10, 20]


def test_negative_and_nothing() -> None:
    with pytest.raises(CkptError):
        keep_last(-1)
    with pytest.raises(CkptError, match="no policy"):
        make_plan([checkpoint(1)], {}, Rules(NOW, 1, {}))
    with pytest.raises(Refused, match="nothing of base/d12"):
        plan([checkpoint(1)], 0)


def test_targets_of_links_stay(tmp_path: Path, tree: Path, call: Run) -> None:
    """The best step kept by a link, in the run and from another one."""
    run = tree / "base_checkpoints/d4"
    (run / "best.pt").symlink_to("model_000050.pt")
    other = tree / "base_checkpoints/d4best"
    other.mkdir()
    (other / "model_000100.pt").symlink_to("../d4/model_000100.pt")
    (other / "meta_000100.json").write_bytes((run / "meta_000100.json").read_bytes())
    groups = call("prune", tree, "--keep", 1, "--yes", "--json").json["groups"]
    kept = {kept["ref"]: kept["reasons"] for group in groups for kept in group["keep"]}
    assert "a link points to it" in kept["base/d4/50"] and "a link points to it" in kept["base/d4/100"]
    assert (run / "model_000050.pt").exists() and (other / "model_000100.pt").exists()


def test_a_linked_part_frees_nothing(tree: Path, tmp_path: Path, call: Run) -> None:
    run = tree / "base_checkpoints/d4"
    model = run / "model_000050.pt"
    outside = tmp_path / "outside.pt"
    os.rename(model, outside)
    model.symlink_to(outside)
    rest = sum(path.stat().st_size for path in run.glob("*_000050*") if path != model)
    body = call("prune", "base/d4", "--root", tree, "--keep", 2, "--yes", "--json").json
    assert body["freed_bytes"] == rest and outside.exists() and not model.is_symlink()


def test_a_linked_run_is_left_alone_also_by_undo_and_purge(tree: Path, tmp_path: Path, call: Run) -> None:
    """Its trash lies outside the root, too."""
    assert call("prune", "base/d4", "--root", tree, "--keep", 1, "--trash", "--yes").code == 0
    outer = tmp_path / "outer"
    (outer / "base_checkpoints").mkdir(parents=True)
    (outer / "base_checkpoints/d4").symlink_to(tree / "base_checkpoints/d4")
    before = sorted(tree.rglob("*"))
    for flag in ("--undo", "--purge"):
        assert call("prune", outer, flag, "--yes").code == 1
    assert call("prune", outer, "--keep", 1, "--yes").code == 0 and sorted(tree.rglob("*")) == before


def test_a_whole_run_only_by_its_name(tmp_path: Path, call: Run) -> None:
    write(tmp_path, *step("base_checkpoints/d4", "000100"), *step("base_checkpoints/d4", "000200"), when=OLD)
    for target in ([tmp_path], ["base", "--root", tmp_path]):
        assert call("prune", *target, "--keep", 0, "--allow-empty", "--yes").code == 4
    assert len(list(tmp_path.rglob("model_*"))) == 2


def test_empty_arguments_name_nothing(demo_tree: Path, call: Run) -> None:
    """An unset variable of a script must not mean everything."""
    for arguments in (["list", ""], ["prune", "", "--keep", "1", "-n"], ["latest", "-g", ""], ["latest", "-i", ""],
                      ["latest", "-s", ""], ["convert", "base/d4", "-o", ""]):  # fmt: skip
        done = call(*arguments, "--root", demo_tree)
        assert (done.code, done.out) == (2, "") and "is empty" in done.err
