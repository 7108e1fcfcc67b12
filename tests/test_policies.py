"""Golden tables of the policies, the size budget, and how people write both: every case says what stays and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_cli.budget import Budget, affordable, by_worth
from ckpt_cli.checkpoint import Checkpoint, Goal, Part
from ckpt_cli.errors import CkptError
from ckpt_cli.policies import Policy, keep_best, keep_every, keep_last, keep_steps, keep_within
from ckpt_cli.ruleset import joined, named_policy, parse_age, parse_size, ruleset
from ckpt_cli.settings import Settings

NOW = 1_000_000 * 10**9
DAY = 86400


def checkpoint(
    step: int | None, metrics: dict[str, float] | None = None, age: float = 0, unit: str = "step", run: str = "d4",
    size: int = 10, name: str = "",
) -> Checkpoint:  # fmt: skip
    """A checkpoint `age` seconds old."""
    name = name or f"{unit}_{step}"
    part = Part("model", f"/r/{run}/{name}.pt", size, NOW - int(age * 1e9))
    return Checkpoint(
        "nanochat", "base", run, step, None if step is None else unit, name, f"/r/{run}", (part,),  # type: ignore[arg-type]
        metrics=tuple((metrics or {}).items()),
        by_name=step is None or unit == "epoch" or name != f"{unit}_{step}",
    )  # fmt: skip


def kept(policy: Policy, run: Sequence[Checkpoint], now: int = NOW) -> dict[str, str]:
    """What stays by the end of its ref, in the order of the run, with the reason."""
    found = policy(run, now)
    assert set(found) <= {c.ref for c in run}
    return {c.ref.rpartition("/")[2]: found[c.ref] for c in run if c.ref in found}


def numbered(*steps: int | None) -> list[Checkpoint]:
    return [checkpoint(step) for step in steps]


def names(policy: Policy, steps: Sequence[int | None]) -> list[str]:
    return list(kept(policy, numbered(*steps)))


LAST = [
    # (N, steps) -> what stays
    (0, [1, 2, 3], []), (0, [None], []), (0, [], []),
    (1, [], []), (1, [7], ["7"]), (1, [1, 2, 3], ["3"]), (2, [1, 2, 3], ["2", "3"]), (3, [1, 2, 3], ["1", "2", "3"]),
    (9, [1, 2, 3], ["1", "2", "3"]), (1, [0], ["0"]), (1, [0, 5], ["5"]), (2, [10, 1000, 100000], ["1000", "100000"]),
    # What has no number cannot be told to be old.
    (1, [None], ["step_None"]), (1, [None, 1, 2], ["step_None", "2"]), (2, [None, 1, 2, 3], ["step_None", "2", "3"]),
]  # fmt: skip


@pytest.mark.parametrize(("count", "steps", "stays"), LAST)
def test_keep_last(count: int, steps: list[int | None], stays: list[str]) -> None:
    assert names(keep_last(count), steps) == stays


EVERY = [
    # (interval, steps) -> what stays: exact multiples
    (100, [], []), (100, [100], ["100"]), (100, [100, 150, 200], ["100", "200"]),
    (50, [100, 150, 200], ["100", "150", "200"]),
    (1, [1, 2, 3], ["1", "2", "3"]), (2, [1, 2, 3, 4], ["2", "4"]), (1000, [250, 500, 750, 1000, 1250], ["1000"]),
    (100, [0, 50, 100], ["0", "100"]), (1000, [0], ["0"]), (1000, [0, 10], ["0"]),
    # the closest where there is none, of two as close the later
    (1000, [990, 1990, 2990], ["990", "1990", "2990"]), (1000, [990, 1010], ["1010"]),
    (1000, [980, 990, 1020], ["990"]),
    (1000, [990, 1000, 1010], ["1000"]), (1000, [800, 900, 1300], ["900"]), (100, [149, 151], ["149", "151"]),
    # half an interval at most; nothing is close to 0
    (1000, [499], []), (1000, [500], ["500"]), (1000, [100, 400], []),
    (1000, [1499, 1500], ["1499", "1500"]), (3, [1, 2], ["2"]),
    # gaps: a multiple with nothing near it keeps nothing
    (1000, [1000, 5000, 5400], ["1000", "5000"]), (1000, [3000, 6000, 9000], ["3000", "6000", "9000"]),
    # the end of a run stands for the multiple it is on its way to
    (1000, [5000, 5400, 5600], ["5000", "5600"]), (10, [25], ["25"]),
    (100, [None, 50, 100], ["step_None", "100"]), (7, list(range(1, 30)), ["7", "14", "21", "28"]),
]  # fmt: skip


@pytest.mark.parametrize(("interval", "steps", "stays"), EVERY)
def test_keep_every(interval: int, steps: list[int | None], stays: list[str]) -> None:
    assert names(keep_every(interval), steps) == stays


def test_keep_every_tells_the_exact_from_the_closest() -> None:
    assert kept(keep_every(100), numbered(None, 100, 190)) == {
        "step_None": "it has no step", "100": "every 100", "190": "closest to 200",
    }  # fmt: skip


def test_keep_every_counts_epochs_by_themselves() -> None:
    """Epoch 2 is not the step 2 of the same run."""
    run = [checkpoint(n, unit="epoch") for n in (1, 2, 3, 4)] + numbered(1, 2, 3, 4)
    assert list(kept(keep_every(2), run)) == ["epoch_2", "epoch_4", "2", "4"]


def test_keep_every_of_one_number_twice() -> None:
    run = [checkpoint(100, name="a"), checkpoint(100, name="b"), checkpoint(150)]
    assert list(kept(keep_every(100), run)) == ["a", "b", "150"]


NAN = math.nan
BEST = [
    # (N, values by step 1, 2, ...; None is a checkpoint without it) -> steps that stay
    (1, [], []), (1, [0.5], [1]), (1, [0.5, 0.4, 0.6], [2]), (2, [0.5, 0.4, 0.6], [1, 2]),
    (3, [0.5, 0.4, 0.6], [1, 2, 3]),
    (9, [0.5, 0.4], [1, 2]), (1, [0.0, -1.0], [2]), (1, [1e300, 1e-300], [2]),
    # of equals the later
    (1, [0.4, 0.4], [2]), (1, [0.4, 0.5, 0.4], [3]), (2, [0.4, 0.4, 0.4], [2, 3]), (2, [0.3, 0.4, 0.4], [1, 3]),
    # what has no value is not judged, and stays
    (1, [None], [1]), (1, [None, None], [1, 2]), (1, [None, 0.4, 0.3], [1, 3]), (1, [0.4, None, 0.3, None], [2, 3, 4]),
    # what is not finite is no value
    (1, [NAN], [1]), (1, [NAN, 0.4, 0.5], [1, 2]), (1, [0.4, NAN, 0.3], [2, 3]), (1, [-math.inf, 0.3], [1, 2]),
]  # fmt: skip


@pytest.mark.parametrize("goal", ["min", "max"])
@pytest.mark.parametrize(("count", "values", "stays"), BEST)
def test_keep_best(count: int, values: list[float | None], stays: list[int], goal: Goal) -> None:
    """The same table both ways: what is lowest is highest with the sign turned."""
    sign = 1 if goal == "min" else -1
    run = [checkpoint(n, {} if v is None else {"acc": sign * v}) for n, v in enumerate(values, 1)]
    assert [int(name) for name in kept(keep_best(count, "acc", goal), run)] == stays
    measured = [n for n in stays if values[n - 1] is not None and math.isfinite(values[n - 1] or 0)]
    assert [int(name) for name in kept(keep_best(count, "acc", goal, unmeasured=False), run)] == measured


def test_keep_best_goes_by_the_first_usual_name_there_is() -> None:
    run = [checkpoint(1, {"loss": 1.0, "eval_loss": 5.0}), checkpoint(2, {"loss": 2.0, "eval_loss": 4.0})]
    assert kept(keep_best(1), run) == {"2": "best 1 by eval_loss"}
    # A run that has it here and there is judged by it, and those without it stay.
    run.append(checkpoint(3, {"val_bpb": 9.0}))
    assert kept(keep_best(1), run) == {"1": "it has no val_bpb", "2": "it has no val_bpb", "3": "best 1 by val_bpb"}
    assert kept(keep_best(1, "loss", "min"), run[:2]) == {"1": "best 1 by loss"}
    # Where nothing is measured everything stays, unless it is told otherwise: then this keeps nothing.
    assert kept(keep_best(1), numbered(1, 2)) == {"1": "it has no val_bpb", "2": "it has no val_bpb"}
    assert kept(keep_best(1, unmeasured=False), numbered(1, 2)) == {}


WITHIN = [
    # (seconds, ages) -> places that stay
    (DAY, [], []), (DAY, [0], [0]), (DAY, [DAY], [0]), (DAY, [DAY + 1], []), (DAY, [3 * DAY, 2 * DAY, 1], [2]),
    (7 * DAY, [8 * DAY, 7 * DAY, 6 * DAY], [1, 2]), (0, [0, 1], [0]),
    # By a clock that is off some were written in the future: they are not old.
    (DAY, [-DAY], [0]), (1, [-1e6, 5], [0]),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "ages", "stays"), WITHIN)
def test_keep_within(seconds: float, ages: list[float], stays: list[int]) -> None:
    run = [checkpoint(n, age=age) for n, age in enumerate(ages)]
    assert [int(name) for name in kept(keep_within(seconds, "1d"), run)] == stays


@pytest.mark.parametrize(("wanted", "stays"), [([], []), ([2], ["2"]), ([1, 3], ["1", "3"]), ([9], []), ([0], [])])
def test_keep_steps(wanted: list[int], stays: list[str]) -> None:
    assert names(keep_steps(wanted), [None, 1, 2, 3]) == stays


def test_values_that_are_none() -> None:
    makers: list[Callable[[], Policy]] = [
        lambda: keep_last(-1), lambda: keep_every(0), lambda: keep_best(0), lambda: keep_best(1, "acc"),
        lambda: keep_steps([-1]),
    ]  # fmt: skip
    for make in makers:
        with pytest.raises(CkptError):
            make()


@given(st.lists(st.integers(0, 300), unique=True, max_size=20), st.integers(1, 100))
def test_keep_every_leaves_no_wide_gap(steps: list[int], interval: int) -> None:
    """Near each multiple that any step is near to, one stays; and the same stays when the policy is applied again."""
    steps = sorted(steps)
    stays = [int(name) for name in names(keep_every(interval), steps)]
    for step in steps:
        multiple = (step + interval // 2) // interval * interval
        assert not multiple or any(abs(multiple - other) <= abs(multiple - step) for other in stays)
    assert [int(name) for name in names(keep_every(interval), stays)] == stays


# --- the size budget


def worth(*runs: list[Checkpoint]) -> list[str]:
    return [c.ref for c, _ in by_worth(runs, Budget(0, "0B"))]


def test_worth_is_best_first_then_newest_down() -> None:
    values = {100: 0.5, 200: 0.3, 300: 0.4}
    run = [checkpoint(step, {"val_bpb": value}, age=1000 - step) for step, value in values.items()]
    assert worth(run) == ["base/d4/200", "base/d4/300", "base/d4/100"]
    assert worth([]) == []
    assert worth(numbered(100, 200, 300)) == ["base/d4/300", "base/d4/200", "base/d4/100"]


def test_worth_between_runs_goes_by_time_and_within_one_by_step() -> None:
    one = [checkpoint(step, age=age) for step, age in ((1, 50), (2, 30), (3, 10))]
    two = [checkpoint(step, age=age, run="d6") for step, age in ((1, 40), (2, 20))]
    assert worth(one, two) == worth(two, one) == ["base/d4/3", "base/d6/2", "base/d4/2", "base/d6/1", "base/d4/1"]
    # A file that was copied looks new: its step still comes after the higher ones of its run.
    two[0] = checkpoint(1, age=0, run="d6")
    assert worth(one, two)[:3] == ["base/d4/3", "base/d6/2", "base/d6/1"]
    # The best of each run come first, that of the run that was written to last before the others.
    one[0] = checkpoint(1, {"val_bpb": 1.0}, age=50)
    two[0] = checkpoint(1, {"val_bpb": 2.0}, age=40, run="d6")
    assert worth(one, two)[:2] == ["base/d4/1", "base/d6/1"]


def test_budget_stops_at_the_first_that_does_not_fit() -> None:
    sizes = {5: 10, 4: 50, 3: 10, 2: 10, 1: 10}
    order = [(checkpoint(step, size=size), "newest") for step, size in sizes.items()]
    assert [c.step for c, _ in affordable(order, 40, lambda c: c.bytes)] == [5]
    assert [c.step for c, _ in affordable(order, 60, lambda c: c.bytes)] == [5, 4]
    assert [c.step for c, _ in affordable(order, 90, lambda c: c.bytes)] == [5, 4, 3, 2, 1]
    assert affordable(order, -1, lambda c: 0) == [] and affordable([], 10, lambda c: 1) == []
    assert len(affordable(order, 0, lambda c: 0)) == 5


# --- how people write it


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GB", 50 * 10**9), ("50 GB", 50 * 10**9), ("1kB", 1000), ("1KB", 1000), ("2mb", 2 * 10**6),
        ("3TB", 3 * 10**12),
        ("1KiB", 1024), ("1MiB", 2**20), ("50GiB", 50 * 2**30), ("2TiB", 2**41), ("1PB", 10**15), ("7B", 7), ("0B", 0),
        ("1.5GB", 1_500_000_000), ("0.5KiB", 512), ("1.000000001GB", 1_000_000_001), (" 5GB ", 5 * 10**9),
        ("9007199254740993B", None), ("900719925474099B", 900719925474099),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(CkptError):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "50", "GB", "50G", "50Gi", "-5GB", "5 G B", "1e9B", "50iB", "٥GB", "5GB5", "1,5GB", "nan", "5.GB"]
)
def test_what_is_no_size(text: str) -> None:
    """A number alone could be bytes or gigabytes: whoever is wrong there loses a run."""
    with pytest.raises(CkptError, match="no size"):
        parse_size(text)


def test_ages() -> None:
    for text, seconds in (
        ("7d", 7 * DAY),
        ("12h", 43200),
        ("30m", 1800),
        ("90s", 90),
        ("2w", 14 * DAY),
        ("1.5d", 129600),
    ):
        assert parse_age(text) == seconds
    for text in ("", "7", "7 days", "d", "-7d", "7y", "1d12h"):
        with pytest.raises(CkptError, match="no duration"):
            parse_age(text)


def test_rules_of_a_table() -> None:
    rules = ruleset({"keep": 2, "keep-every": 100, "keep-best": 1, "keep-within": "7d", "keep-step": [5, 6],
                     "max-size": "1GB", "metric": "acc:max"})  # fmt: skip
    assert list(rules.policies) == [
        "keep 2", "keep every 100", "keep best 1", "keep within 7d", "keep step 5, 6",
    ]  # fmt: skip
    assert rules.budget == Budget(10**9, "1GB", "acc", "max") and not rules.empty
    run = [checkpoint(1, {"acc": 1.0}), checkpoint(2, {"acc": 3.0}), checkpoint(3, {"acc": 2.0})]
    assert kept(rules.policies["keep best 1"], run) == {"2": "best 1 by acc"}
    assert ruleset({"keep": 0}).empty and not ruleset({"keep": 0, "keep-step": 3}).empty
    assert not ruleset({"keep": 0, "max-size": "1GB"}).empty
    # The table's own metric is stronger than the one that holds for all.
    assert kept(ruleset({"keep-best": 1, "metric": "acc:min"}, "acc:max").policies["keep best 1"], run) == {
        "1": "best 1 by acc"
    }


@pytest.mark.parametrize(
    "table",
    [
        {"keep": "3"}, {"keep": True}, {"keep": 1.5}, {"keep": -1}, {"keep-every": 0}, {"keep-best": "x"},
        {"keep-within": 7},
        {"keep-within": "7"}, {"keep-step": "5"}, {"keep-step": [5, "6"]}, {"max-size": 50}, {"max-size": "50"},
        {"keep-best": 1, "metric": "acc"},
        {"max-size": "1GB", "metric": "acc"}, {"keep-best": 1, "metric": 3}, {"keep-best": 1, "metric": "acc:up"},
    ],
)  # fmt: skip
def test_values_that_no_rule_takes(table: dict[str, object]) -> None:
    with pytest.raises(CkptError):
        ruleset(table)


def test_policies_join() -> None:
    both = joined(ruleset({"keep": 2, "max-size": "1GB"}), ruleset({"keep": 3, "max-size": "2GB"}))
    assert list(both.policies) == ["keep 2", "keep 3"] and both.budget == Budget(2 * 10**9, "2GB")


def test_named_policies() -> None:
    settings = Settings(policies={"weekly": {"keep": 3}, "none": {}}, origins={"policies": "/x/ckpt.toml"})
    assert named_policy(settings, "weekly") == ({"keep": 3}, "/x/ckpt.toml")
    with pytest.raises(CkptError, match="no policy 'wekly'") as caught:
        named_policy(settings, "wekly")
    assert caught.value.hint and "weekly" in caught.value.hint
    with pytest.raises(CkptError, match="nothing to keep"):
        named_policy(settings, "none")
