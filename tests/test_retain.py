"""What is kept and why: the rules that no policy may break, the size budget, and a plan for the optimizer alone."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_cli.budget import Budget
from ckpt_cli.checkpoint import Checkpoint, Part, Problem, Role, State
from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.plans import Needs, Plan, Rules
from ckpt_cli.policies import Policy, keep_best, keep_every, keep_last, keep_steps, keep_within
from ckpt_cli.retain import make_plan, settled_plan
from tests.conftest import Run
from tests.test_discover import OLD, step, write
from tests.test_kill import write_trainer

NOW = 10**18
GRACE = 10**6


def nothing(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    return ()


def checkpoint(
    number: int, state: State = "complete", resumable: bool = True, when: int | None = None, run: str = "d12",
    model: int = 10, optimizer: int = 0, pinned: bool = False, metric: float | None = None, role: Role = "model",
) -> Checkpoint:  # fmt: skip
    """One step of a run, of a model file and an optimizer's of so many bytes, or of none where that is 0."""
    when = NOW // 2 + number if when is None else when
    parts = [Part(role, f"/r/{run}/model_{number:06d}.pt", model, when)]
    if optimizer:
        parts.append(Part("optimizer", f"/r/{run}/optim_{number:06d}_rank0.pt", optimizer, when, 0))
    problems = () if state == "complete" else (Problem("missing-part", "the meta file is missing", "/r"),)
    return Checkpoint(
        "nanochat", "base", run, number, "step", f"model_{number:06d}", f"/r/{run}", tuple(parts), state=state,
        resumable=resumable and state == "complete", problems=problems, pinned=pinned,
        metrics=() if metric is None else (("val_bpb", metric),),
    )  # fmt: skip


def bounds(needs: Needs = nothing, **others: Any) -> Rules:
    return Rules(NOW, GRACE, {"nanochat": needs}, **others)


def plan(run: list[Checkpoint], count: int, **others: Any) -> Plan:
    return make_plan(run, {"keep": keep_last(count)}, bounds(**others))


def steps(checkpoints: Sequence[Checkpoint]) -> list[int]:
    return [c.step or 0 for c in checkpoints]


def reasons(made: Plan) -> dict[str, tuple[str, ...]]:
    return {kept.checkpoint.ref: kept.reasons for group in made.groups for kept in group.keep}


@pytest.mark.parametrize("there", range(8))
@pytest.mark.parametrize("count", range(1, 12))
def test_keep_last(there: int, count: int) -> None:
    """Also where a run has fewer than N: then nothing goes."""
    run = [checkpoint(10 * (index + 1)) for index in range(there)]
    groups = plan(run, count).groups
    if there:
        assert steps([kept.checkpoint for kept in groups[0].keep]) == [10 * i for i in range(1, there + 1)][-count:]
        assert steps([gone.checkpoint for gone in groups[0].remove]) == [
            10 * i for i in range(1, max(0, there - count) + 1)
        ]


# Any tree of two runs, and any policies: what is drawn here the laws below hold for.
KINDS = st.tuples(
    st.sampled_from(["d12", "d20"]),
    st.sampled_from(["complete", "complete", "complete", "incomplete", "in-progress"]),
    st.booleans(),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([None, 0.25, 0.5, 0.5, float("nan")]),
    st.integers(0, 9),
)
POLICIES: dict[str, Policy] = {
    "keep 0": keep_last(0), "keep 1": keep_last(1), "keep 3": keep_last(3),
    "every 4": keep_every(4), "every 5": keep_every(5),
    "best 1": keep_best(1), "best 2, measured": keep_best(2, unmeasured=False), "steps": keep_steps([2, 5, 99]),
    "within": keep_within((NOW - NOW // 2 - 6) / 1e9, "x"),
}  # fmt: skip
BUDGETS = st.sampled_from([None, *(Budget(size, f"{size}B") for size in (0, 30, 100, 300, 10**6))])


def tree_of(kinds: Sequence[tuple[Any, ...]]) -> list[Checkpoint]:
    return [
        checkpoint(number, state, resumable, None, run, model, optimizer, pinned == 0, metric)
        for number, (run, state, resumable, model, optimizer, metric, pinned) in enumerate(kinds)
    ]


def removed(made: Plan | None) -> set[str]:
    return {c.ref for c in made.removed} if made else set()


def attempt(
    pool: list[Checkpoint], policies: Mapping[str, Policy], budget: Budget | None, **others: Any
) -> Plan | None:
    """The plan; None where it is refused, and so nothing goes."""
    try:
        return make_plan(pool, policies, bounds(**others), budget)
    except Refused:
        return None


TREES = st.lists(KINDS, max_size=14)
CHOSEN = st.sets(st.sampled_from(sorted(POLICIES)), min_size=1)


@given(TREES, CHOSEN, st.sampled_from(sorted(POLICIES)), BUDGETS, BUDGETS, st.booleans(), st.booleans())
def test_adding_a_keep_rule_never_removes_more(
    kinds: list[tuple[Any, ...]], chosen: set[str], another: str, budget: Budget | None, more: Budget | None,
    incomplete: bool, optimizer_only: bool,
) -> None:  # fmt: skip
    """Nor does a size budget beside the others, or a larger one; a plan that is refused removes nothing."""
    pool, how = tree_of(kinds), {"incomplete": incomplete, "optimizer_only": optimizer_only}
    few = {name: POLICIES[name] for name in sorted(chosen)}
    many = {name: POLICIES[name] for name in sorted(chosen | {another})}
    before = attempt(pool, few, budget, **how)
    if before is not None:  # where it was refused, the further rule is what lets it be carried out
        assert removed(attempt(pool, many, budget, **how)) <= removed(before)
        if more and (not budget or more.bytes >= budget.bytes):
            assert removed(attempt(pool, few, more, **how)) <= removed(before)


@given(TREES, CHOSEN, BUDGETS, st.booleans(), st.booleans())
def test_what_always_stays(
    kinds: list[tuple[Any, ...]], chosen: set[str], budget: Budget | None, incomplete: bool, optimizer_only: bool
) -> None:
    """Each run's newest complete and newest resumable, what is pinned, in progress, or incomplete and not asked for."""
    pool = tree_of(kinds)
    made = attempt(
        pool, {name: POLICIES[name] for name in chosen}, budget, incomplete=incomplete, optimizer_only=optimizer_only
    )
    gone = removed(made)
    for run in ("d12", "d20"):
        complete = [c for c in pool if c.tag == run and c.state == "complete"]
        for newest in (complete[-1:], [c for c in complete if c.resumable][-1:]):
            assert not {c.ref for c in newest} & gone
    assert not {c.ref for c in pool if c.pinned or c.state == "in-progress"} & gone
    assert incomplete or not {c.ref for c in pool if c.state == "incomplete"} & gone
    if made:
        listed = [kept.checkpoint.ref for group in made.groups for kept in group.keep]
        listed += [left.checkpoint.ref for group in made.groups for left in group.ignored]
        assert sorted([*listed, *gone]) == sorted(c.ref for c in pool)
        assert made.freed == sum(
            sum(p.bytes for p in c.parts if not optimizer_only or p.role == "optimizer") for c in made.removed
        )


@given(TREES, CHOSEN, BUDGETS, st.randoms(use_true_random=False))
def test_the_same_plan_for_the_same_input(
    kinds: list[tuple[Any, ...]], chosen: set[str], budget: Budget | None, chance: random.Random
) -> None:
    """In whatever order the checkpoints come."""
    pool = tree_of(kinds)
    policies = {name: POLICIES[name] for name in sorted(chosen)}
    first = attempt(pool, policies, budget)
    assert attempt(list(pool), policies, budget) == first
    shuffled = list(pool)
    chance.shuffle(shuffled)
    again = attempt(shuffled, policies, budget)
    assert removed(again) == removed(first) and (first is None or reasons(first) == reasons(again))  # type: ignore[arg-type]


@given(TREES, CHOSEN, BUDGETS)
def test_a_plan_carried_out_leaves_nothing_to_do(
    kinds: list[tuple[Any, ...]], chosen: set[str], budget: Budget | None
) -> None:
    """What stays after a prune stays at the next one: pruning in a loop ends."""
    pool = tree_of(kinds)
    policies = {name: POLICIES[name] for name in sorted(chosen - {"every 4", "every 5"})} or {"x": keep_last(2)}
    first = attempt(pool, policies, budget)
    left = [c for c in pool if c.ref not in removed(first)]
    again = attempt(left, policies, budget)
    assert not removed(again) or first is None


def test_restarted_run_by_any_part() -> None:
    """A lower step touched later than a higher one, in whatever file."""
    run = [checkpoint(10, when=NOW - 10), checkpoint(20, when=NOW - 10**9), checkpoint(30, when=NOW - 10**9)]
    with pytest.raises(Refused, match="restarted"):
        plan(run, 1)
    assert steps(plan(run, 1, trust_steps=True).removed) == [10, 20]


def test_a_link_to_nothing_is_of_no_time() -> None:
    gone = checkpoint(4, "incomplete")._replace(parts=())
    assert steps(plan([checkpoint(1), checkpoint(2), checkpoint(3), gone], 2).removed) == [1]


def test_a_clock_that_is_off() -> None:
    """A step from the future is one that a lower step was written after: nothing goes by times that cannot be."""
    ahead = NOW + 3600 * 10**9
    with pytest.raises(Refused, match="restarted"):
        plan([checkpoint(1, when=ahead), checkpoint(2, when=NOW)], 1)
    # All of it from the future is no contradiction.
    assert steps(plan([checkpoint(1, when=ahead), checkpoint(2, when=ahead)], 1).removed) == [1]


def of_another(number: int, when: int | None = None) -> Checkpoint:
    """A step that another trainer wrote into the same folder."""
    one = checkpoint(number, when=when)
    return one._replace(layout="other", name=f"checkpoint_{number}", by_name=True)


def test_two_trainers_in_one_folder_do_not_compete() -> None:
    """The higher steps of one are no reason to remove what the other wrote; its clock tells nothing of them either."""
    run = [checkpoint(n) for n in (10, 20, 30)] + [of_another(n, NOW // 3) for n in (500, 600)]
    rules = Rules(NOW, GRACE, {"nanochat": nothing, "other": nothing})
    made = make_plan(run, {"keep": keep_last(1)}, rules)
    assert [(group.source, group.tag) for group in made.groups] == [("base", "d12")]
    assert steps([kept.checkpoint for kept in made.groups[0].keep]) == [30, 600]
    assert steps(made.removed) == [10, 20, 500]
    assert "newest complete" in reasons(made)["base/d12/30"]
    with pytest.raises(Refused, match="nothing of base/d12 would be kept"):
        make_plan(run, {"step": keep_steps([600])}, rules)
    emptied = make_plan(run, {"keep": keep_last(0)}, replace(rules, allow_empty=True))
    assert len(emptied.removed) == 5


def test_what_one_trainer_keeps_may_need_what_the_other_wrote() -> None:
    """As torchtune's epochs need the model that lies beside them under its published names."""

    def the_other(one: Checkpoint, run: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
        return [c for c in run if c.step == 500]

    run = [checkpoint(10), checkpoint(20), of_another(500), of_another(600)]
    rules = Rules(NOW, GRACE, {"nanochat": the_other, "other": nothing})
    made = make_plan(run, {"keep": keep_last(1)}, rules)
    assert steps(made.removed) == [10]
    assert reasons(made)["base/d12/checkpoint_500"] == ("base/d12/20 needs it",)


def test_negative_and_nothing() -> None:
    with pytest.raises(CkptError):
        keep_last(-1)
    with pytest.raises(CkptError, match="no policy"):
        make_plan([checkpoint(1)], {}, Rules(NOW, 1, {}))
    with pytest.raises(Refused, match="nothing of base/d12"):
        plan([checkpoint(1)], 0)
    with pytest.raises(Refused, match="nothing of base/d12") as caught:
        make_plan([checkpoint(1), checkpoint(2)], {"steps": keep_steps([9])}, bounds())
    assert caught.value.hint and "--keep 1" in caught.value.hint


def test_a_layout_without_rules_is_refused_only_where_it_matters() -> None:
    with pytest.raises(Refused, match="does not say"):
        make_plan([checkpoint(1), checkpoint(2)], {"keep": keep_last(1)}, Rules(NOW, GRACE, {}))
    assert not make_plan([checkpoint(1)], {"keep": keep_last(1)}, Rules(NOW, GRACE, {})).removed


# What others need.


def pairs(table: dict[str, list[str]]) -> Needs:
    def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
        return [c for c in run if c.ref in table.get(checkpoint.ref, ())]

    return needs


def test_what_is_needed_stays_and_what_that_needs() -> None:
    run = [checkpoint(n) for n in (1, 2, 3, 4, 5)]
    needs = pairs({"base/d12/5": ["base/d12/3"], "base/d12/3": ["base/d12/1"], "base/d12/2": ["base/d12/4"]})
    made = plan(run, 1, needs=needs)
    assert steps(made.removed) == [2, 4]
    assert reasons(made)["base/d12/1"] == ("base/d12/3 needs it",)


def test_what_is_being_written_needs_counts() -> None:
    """The step that is just being saved names the best one so far."""
    run = [checkpoint(1), checkpoint(2), checkpoint(3), checkpoint(4, "in-progress")]
    made = plan(run, 1, needs=pairs({"base/d12/4": ["base/d12/1"]}))
    assert steps(made.removed) == [2] and reasons(made)["base/d12/1"] == ("base/d12/4 needs it",)


def test_the_base_of_an_adapter_in_another_run() -> None:
    """Asked about or not: the adapter cannot be used without it."""
    base = [checkpoint(n) for n in (1, 2, 3)]
    lora = [checkpoint(n, run="lora", role="adapter") for n in (1, 2)]
    needs = pairs({"base/lora/2": ["base/d12/1"], "base/lora/1": ["base/d12/2"]})
    assert [c.ref for c in plan([*base, *lora], 1, needs=needs).removed] == ["base/d12/2", "base/lora/1"]
    assert steps(plan(base, 1, needs=needs, others=lora[1:]).removed) == [2]
    assert steps(plan(base, 1, needs=needs).removed) == [1, 2]
    # The run of a base that only an adapter keeps still has its newest.
    assert [c.ref for c in make_plan([*base, *lora], {"one": keep_steps([2])}, bounds(needs)).removed] == [
        "base/lora/1"
    ]
    made = make_plan(base, {"keep": keep_last(0)}, bounds(needs, others=lora[1:]))
    assert reasons(made) == {
        "base/d12/1": ("base/lora/2 needs it",),
        "base/d12/3": ("newest complete", "newest resumable"),
    }


# The size budget.


def test_max_size() -> None:
    run = [checkpoint(n, metric=m, model=100) for n, m in ((1, 0.9), (2, 0.1), (3, 0.5), (4, 0.6))]

    def left(size: int, policies: dict[str, Policy] | None = None, **others: Any) -> tuple[list[int], int | None]:
        made = make_plan(run, policies or {}, bounds(**others), Budget(size, "x"))
        return steps([kept.checkpoint for kept in made.groups[0].keep]), made.over

    # The newest is there in any case, then comes the best, then the newest down.
    assert left(0) == ([4], 100) and left(100) == ([4], 0) and left(199) == ([4], 0)
    assert left(200) == ([2, 4], 0) and left(300) == ([2, 3, 4], 0) and left(400) == ([1, 2, 3, 4], 0)
    # Other policies keep what they keep, and change nothing about what else fits.
    assert left(200, {"keep": keep_last(2)}) == ([2, 3, 4], 100)
    assert left(0, {"steps": keep_steps([1])}) == ([1, 4], 200)


def test_max_size_counts_what_cannot_go_first() -> None:
    run = [
        checkpoint(1, pinned=True),
        checkpoint(2),
        checkpoint(3, "incomplete"),
        checkpoint(4),
        checkpoint(5, "in-progress"),
    ]

    def left(size: int, **others: Any) -> list[int]:
        return steps(make_plan(run, {}, bounds(**others), Budget(size, "x")).removed)

    assert (
        left(49) == [2] and left(50) == [] and left(39, incomplete=True) == [2, 3] and left(40, incomplete=True) == [3]
    )


def test_max_size_over_several_runs_and_needs() -> None:
    one = [checkpoint(n, when=NOW // 2 + 10 * n) for n in (1, 2, 3)]
    two = [checkpoint(n, run="d20", when=NOW // 2 + 10 * n + 5) for n in (1, 2)]
    made = make_plan([*one, *two], {}, bounds(), Budget(30, "30B"))
    assert [c.ref for c in made.removed] == ["base/d12/1", "base/d20/1"]
    assert reasons(made)["base/d12/2"] == ("newest within 30B",) and made.policies == ("max size 30B",)
    # A step fits together with what it needs, or not at all.
    needs = pairs({"base/d12/2": ["base/d12/1"]})
    assert [c.ref for c in make_plan([*one, *two], {}, bounds(needs), Budget(39, "x")).removed] == [
        "base/d12/1", "base/d12/2", "base/d20/1",
    ]  # fmt: skip
    assert [c.ref for c in make_plan([*one, *two], {}, bounds(needs), Budget(40, "x")).removed] == ["base/d20/1"]


# The optimizer alone.


def test_optimizer_only() -> None:
    run = [checkpoint(n, optimizer=100) for n in (1, 2, 3)]
    made = plan(run, 1, optimizer_only=True)
    assert [[part.role for part in gone.parts] for gone in made.groups[0].remove] == [["optimizer"], ["optimizer"]]
    assert made.freed == 200 and steps(made.removed) == [1, 2] and not made.groups[0].stops_resuming
    # Down to nothing: every model stays, and the run is named.
    made = plan(run, 0, optimizer_only=True, allow_empty=True)
    assert steps(made.removed) == [1, 2, 3] and made.groups[0].stops_resuming
    with pytest.raises(Refused, match="nothing of base/d12") as caught:
        plan(run, 0, optimizer_only=True)
    assert caught.value.hint and "--optimizer-only --keep 0" in caught.value.hint


def test_optimizer_only_spares_what_has_none_or_is_not_whole() -> None:
    run = [checkpoint(1, resumable=False), checkpoint(2, optimizer=9), checkpoint(3, "incomplete", optimizer=9),
           checkpoint(4, "in-progress", optimizer=9), checkpoint(5, optimizer=9)]  # fmt: skip
    made = plan(run, 1, optimizer_only=True)
    assert steps(made.removed) == [2]
    assert {i.checkpoint.step: i.reason for i in made.groups[0].ignored} == {
        1: "no optimizer file of its own", 3: "incomplete: the meta file is missing", 4: "in progress",
    }  # fmt: skip
    assert steps(plan(run, 0, optimizer_only=True, allow_empty=True).removed) == [2, 5]
    assert steps(plan(run, 1, optimizer_only=True, incomplete=True).removed) == [2, 3]


def test_optimizer_only_takes_the_index_of_its_folder_along() -> None:
    """Sharded: without its data an index in a folder of its own would tell of files that are gone."""
    step = checkpoint(1)
    parts = [Part(role, f"/r/d12/{name}", 1, 1) for role, name in (  # type: ignore[arg-type]
        ("model", "c-1/pytorch_model_0/__0_0.distcp"), ("index", "c-1/pytorch_model_0/.metadata"),
        ("optimizer", "c-1/optimizer_0/__0_0.distcp"), ("index", "c-1/optimizer_0/.metadata"),
        ("index", "c-1/model.index.json"),
    )]  # fmt: skip
    made = plan([step._replace(parts=tuple(parts)), checkpoint(2, optimizer=1)], 1, optimizer_only=True)
    assert [p.path for p in made.groups[0].remove[0].parts] == [
        "/r/d12/c-1/optimizer_0/__0_0.distcp", "/r/d12/c-1/optimizer_0/.metadata",
    ]  # fmt: skip


def test_max_size_of_optimizers() -> None:
    """The models stay in any case; what is left of the size is for the optimizers of the newest."""
    run = [checkpoint(n, model=10, optimizer=100) for n in (1, 2, 3)]
    for size, gone, over in ((130, [1, 2], 0), (129, [1, 2], 1), (229, [1, 2], 0), (230, [1], 0), (330, [], 0)):
        made = make_plan(run, {}, bounds(optimizer_only=True), Budget(size, "x"))
        assert (steps(made.removed), made.over) == (gone, over), size


# What is opened before a plan counts on it.


def test_a_kept_one_that_fails_gives_its_place_to_the_next() -> None:
    bad = {"base/d12/5", "base/d12/4"}

    def check(c: Checkpoint) -> tuple[Problem, ...]:
        return (Problem("truncated", "cut off", c.parts[0].path),) if c.ref in bad else ()

    run = [checkpoint(n) for n in (1, 2, 3, 4, 5)]
    made = settled_plan(run, {"keep": keep_last(1)}, bounds(), check)
    assert steps(made.removed) == [1, 2] and list(reasons(made)) == ["base/d12/3"]
    # What would go and is being written is seen to be so; what is old and damaged may go.
    fresh = [checkpoint(n, when=NOW - GRACE // 2) for n in (3, 4, 5, 6)]
    made = settled_plan([*run[:2], *fresh], {"keep": keep_last(1)}, bounds(), check)
    assert steps(made.removed) == [1, 2, 3]
    assert {i.checkpoint.step: i.checkpoint.state for i in made.groups[0].ignored} == {
        4: "in-progress",
        5: "in-progress",
    }


def test_what_cannot_be_looked_into_is_not_known_to_be_incomplete() -> None:
    """A permission, or a disk that does not answer: --incomplete is no reason to remove the newest for it."""

    def removed(code: str, count: int = 1, **rules: Any) -> list[int]:
        run = [checkpoint(n) for n in (1, 2, 3)]
        problem = Problem(code, "Input/output error", run[2].parts[0].path)
        policies = {"keep": keep_last(count)}
        return steps(settled_plan(run, policies, bounds(**rules), lambda c: (problem,) if c.step == 3 else ()).removed)

    assert removed("truncated", incomplete=True) == [1, 3]
    assert removed("unreadable-part", incomplete=True) == removed("unreadable-part") == [1]
    assert removed("too-costly", incomplete=True) == [1]
    assert removed("unreadable-part", 0, allow_empty=True) == [1, 2, 3]


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 3), st.booleans())
def test_what_fails_counts_as_if_it_had_been_known(broken: list[bool], count: int, spared: bool) -> None:
    """As the plan made again after each that fails; of older ones, which go in any case, nobody asks."""
    run = [checkpoint(number) for number in range(len(broken))]
    policies = {"keep": keep_last(count), **({"every": keep_every(4)} if spared else {})}

    def check(one: Checkpoint) -> tuple[Problem, ...]:
        return (Problem("truncated", "cut off", "/r"),) if broken[one.step or 0] else ()

    def one_by_one(pool: list[Checkpoint]) -> Plan:
        while True:
            made = make_plan(pool, policies, bounds())
            bad = next((k.checkpoint for g in made.groups for k in g.keep if check(k.checkpoint)), None)
            if bad is None:
                return made
            place = pool.index(bad)
            pool = [*pool]
            pool[place] = bad._replace(state="incomplete", resumable=False, problems=check(bad))

    try:
        expected: Plan | str = one_by_one(run)
    except Refused as error:
        expected = error.message
    try:
        made: Plan | str = settled_plan(run, policies, bounds(), check)
    except Refused as error:
        made = error.message
    assert made == expected


def test_thousands_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked at once, and no plan is made for each."""
    made: list[Plan] = []

    def counted(*said: Any) -> Plan:
        made.append(make_plan(*said))
        return made[-1]

    monkeypatch.setattr("ckpt_cli.retain.make_plan", counted)
    looked: list[int] = []

    def check(one: Checkpoint) -> tuple[Problem, ...]:
        looked.append(one.step or 0)
        return (Problem("truncated", "cut off", "/r"),) if (one.step or 0) >= 10 else ()

    found = settled_plan([checkpoint(number) for number in range(3_000)], {"keep": keep_last(2)}, bounds(), check)
    assert steps([k.checkpoint for g in found.groups for k in g.keep]) == [8, 9]
    assert len(looked) == len(set(looked)) == 2_992
    assert len(made) <= 3


def test_targets_of_links_stay(tmp_path: Path, tree: Path, call: Run) -> None:
    """The best step kept by a link, in the run and from another one."""
    run = tree / "base_checkpoints/d4"
    (run / "best.pt").symlink_to("model_000050.pt")
    other = tree / "base_checkpoints/d4best"
    other.mkdir()
    (other / "model_000100.pt").symlink_to("../d4/model_000100.pt")
    (other / "meta_000100.json").write_bytes((run / "meta_000100.json").read_bytes())
    trainer = write_trainer(tree / "out", (1, 2, 3))
    (trainer / "best").symlink_to("checkpoint-1")
    groups = call("prune", tree, "--keep", 1, "--yes", "--json").json["groups"]
    kept = {kept["ref"]: kept["reasons"] for group in groups for kept in group["keep"]}
    assert "a link points to it" in kept["base/d4/50"] and "a link points to it" in kept["base/d4/100"]
    assert (run / "model_000050.pt").exists() and (other / "model_000100.pt").exists()
    assert sorted(os.listdir(trainer)) == ["best", "checkpoint-1", "checkpoint-3"] and "out/1" in kept


@pytest.mark.parametrize("state", ["complete", "incomplete", "in-progress"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_file_of_two_stays_with_the_one_that_stays(state: State, asked: bool) -> None:
    first, second, third = checkpoint(1), checkpoint(2), checkpoint(3)
    other = checkpoint(9, state, run="d12/step-1")
    other = other._replace(parts=(*other.parts, first.parts[0]))
    made = plan([first, second, third, *([other] if asked else [])], 1, others=() if asked else (other,))
    assert steps(made.removed) == [2] and reasons(made)["base/d12/1"] == (f"{other.ref} needs it",)
    if asked and state == "incomplete":
        both = [first, second, third, other, checkpoint(10, run="d12/step-1")]
        assert steps(plan(both, 1, incomplete=True).removed) == [1, 2, 9]


@pytest.mark.parametrize(("target", "stays"), [("step-1", True), ("step-1/inner", True), ("", False), ("step", False)])
def test_folders_that_links_lead_to_stay(target: str, stays: bool) -> None:
    """A step's own folder, and one in it; what leads to the run pins none of its steps."""
    run = [
        checkpoint(n)._replace(
            dir=f"/r/d12/step-{n}",
            home="/r/d12",
            parts=(Part("model", f"/r/d12/step-{n}/inner/model.pt", 10, NOW // 2),),
        )
        for n in (1, 2, 3)
    ]
    made = plan(run, 1, targets=frozenset({f"/r/d12/{target}".rstrip("/")}))
    assert steps(made.removed) == ([2] if stays else [1, 2])
    if stays:
        assert reasons(made)["base/d12/1"] == ("a link points to it",)


@pytest.mark.parametrize(("names", "freed"), [(1, [10, 10, 10]), (3, [0, 0, 10]), (4, [0, 0, 0])])
def test_a_file_of_several_names_frees_its_bytes_once(names: int, freed: list[int]) -> None:
    """With the last name that goes, and not at all where one stays."""

    def one(number: int) -> Checkpoint:
        c = checkpoint(number)
        same = (1, 2, names) if names > 1 else None
        return c._replace(parts=tuple(part._replace(names=same) for part in c.parts))

    made = plan([*map(one, (1, 2, 3)), checkpoint(4)], 1)
    assert [gone.bytes for gone in made.groups[0].remove] == freed and made.freed == sum(freed)


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
