"""`inspect optim` against what torch.optim says of itself, on every way in which trainers keep an optimizer."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_cli.checkpoint import Checkpoint, Part, Role
from ckpt_cli.commands.inspect_optim import _read
from ckpt_cli.discover import discover
from ckpt_cli.errors import Damaged
from ckpt_cli.optimizer import OptimizerState, optimizer_state, without_state
from ckpt_cli.query import Query
from ckpt_cli.root import Root
from ckpt_cli.tensors import read_tensors
from tests.conftest import REPOSITORY, Run
from tests.torch_files import flip, places

KEYS = ["rank", "path", "bytes", "groups", "state_tensors", "state_bytes", "step"]


def stepped(name: str, steps: int = 3, groups: int = 1, **options: Any) -> torch.optim.Optimizer:
    """An optimizer of torch after some steps on matrices, two a group."""
    made = [{"params": [torch.nn.Parameter(torch.ones(4, 3 + at)) for _ in range(2)]} for at in range(groups)]
    if name == "LBFGS":
        made = [{"params": made[0]["params"][:1]}]
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(made, lr=0.25, **options)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.5)
                if name == "SparseAdam":
                    parameter.grad = parameter.grad.to_sparse()
        optimizer.step(lambda: 1.0)
    return optimizer


def saved(value: Any, path: Path) -> OptimizerState:
    torch.save(value, path)
    state = optimizer_state(read_tensors(str(path)))
    assert state is not None
    return state


def facts(state_dict: dict[str, Any]) -> list[Any]:
    """Per group, as torch has it: settings, parameters, those with a state, tensors, bytes, first and last step."""
    told = []
    for group in state_dict["param_groups"]:
        entries = [state_dict["state"].get(param, {}) for param in group["params"]]
        tensors = [item for entry in entries for item in entry.values() if isinstance(item, torch.Tensor)]
        steps = [int(entry["step"]) for entry in entries if "step" in entry]
        told.append(
            (
                {k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k != "params"},
                len(entries),
                sum(any(item is not None for item in entry.values()) for entry in entries),
                len(tensors),
                sum(tensor.nbytes for tensor in tensors),
                (min(steps), max(steps)) if steps else None,
            )
        )
    return told


def found(state: OptimizerState) -> list[Any]:
    return [
        (
            group.hyperparameters,
            group.parameters,
            group.parameters - group.without_state,
            sum(s.tensors for s in group.states),
            sum(s.bytes for s in group.states),
            group.step,
        )
        for group in state.groups
    ]


# --- torch's own optimizers

AMBIGUOUS = {"RAdam": "Adam family", "SparseAdam": "Adam family", "LBFGS": None}


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name != "Optimizer"
    ),
)
def test_every_optimizer_of_torch(tmp_path: Path, name: str) -> None:
    """Groups and states as torch has them; the kind is its class's name, or not told where others write the same."""
    options: dict[str, Any] = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    optimizer = stepped(name, **options)
    state = saved(optimizer.state_dict(), tmp_path / "optimizer.pt")
    if name != "LBFGS":  # its state holds lists of tensors and numbers
        assert found(state) == facts(optimizer.state_dict())
    assert [group.kind for group in state.groups] == [AMBIGUOUS.get(name, name)]
    assert state.bytes == (tmp_path / "optimizer.pt").stat().st_size


def test_kinds_are_not_guessed(tmp_path: Path) -> None:
    def kind(state: dict[str, Any], **group: Any) -> str | None:
        made = {"state": {0: state} if state else {}, "param_groups": [{"lr": 0.1, **group, "params": [0]}]}
        return saved(made, tmp_path / "o.pt").groups[0].kind

    one, adam = torch.ones(2), {"step": 1, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    assert kind(adam, betas=(0.9, 0.9)) == "Adam family"
    assert kind(adam, betas=(0.9, 0.9), amsgrad=False) == "Adam family"
    assert kind(adam, amsgrad=False, decoupled_weight_decay=True) == "AdamW"
    assert kind(adam, kind="adamw") == "AdamW" and kind(adam, kind="mine") == "mine"
    assert kind({**adam, "preconditioner": one}) is None
    assert kind({"exp_avg": one}, betas=(0.9, 0.9)) is None
    assert kind({"momentum_buffer": one}, momentum=0.9) is None
    assert kind({"momentum_buffer": one}, momentum=0.9, ns_steps=5) == "Muon"
    assert kind({}) is None
    assert kind({}, momentum=0, dampening=0, nesterov=False) == "SGD"


def test_groups_and_states_that_do_not_meet(tmp_path: Path) -> None:
    """Parameters without a state, states of parameters that no group names, one that is there but empty."""
    state_dict = stepped("AdamW", groups=2).state_dict()
    del state_dict["state"][1]
    state_dict["state"][2] = {}
    state_dict["state"][9] = {"exp_avg": torch.ones(5)}
    state = saved(state_dict, tmp_path / "o.pt")
    assert found(state)[:2] == facts(state_dict)
    assert [group.without_state for group in state.groups] == [1, 1, 0]
    assert (state.groups[2].number, state.groups[2].parameters, state.groups[2].hyperparameters) == (None, 1, {})
    assert state.state_bytes == sum(f[4] for f in facts(state_dict)) + 20 and without_state([state]) == 2
    fresh = saved(stepped("SGD", steps=0).state_dict(), tmp_path / "fresh.pt")
    assert (fresh.state_tensors, fresh.step, fresh.groups[0].without_state) == (0, None, 2)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(dtype, 96) for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)]
    + [(dtype, 97) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)],
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_steps_of_every_dtype(tmp_path: Path, dtype: torch.dtype, value: int, shape: tuple[int, ...]) -> None:
    state_dict = stepped("Adam").state_dict()
    state_dict["state"][1]["step"] = torch.full(shape, value, dtype=dtype)
    assert saved(state_dict, tmp_path / "o.pt").step == (3, value)


@pytest.mark.parametrize("value", [float("nan"), torch.tensor(float("inf")), torch.ones(2), "3", True, None])
def test_what_is_no_step(tmp_path: Path, value: Any) -> None:
    state_dict = stepped("Adam").state_dict()
    for entry in state_dict["state"].values():
        entry["step"] = value
    assert saved(state_dict, tmp_path / "o.pt").step is None


def test_a_step_that_is_damaged(tmp_path: Path) -> None:
    """The scalars are read, so their CRC is checked: a flipped bit is no other step."""
    path = tmp_path / "o.pt"
    torch.save(stepped("AdamW").state_dict(), path)
    first = next(place for name, place in places(path).items() if name.endswith("data/0"))
    assert first[1] == 4
    flip(path, first[0] + 2, 7)
    assert int(torch.load(path)["state"][0]["step"]) != 3
    with pytest.raises(Damaged, match="data/0"):
        optimizer_state(read_tensors(str(path)))


def test_hyperparameters_of_every_form(tmp_path: Path) -> None:
    """A tensor as learning rate, a list that groups share, nested values, infinity, a whole tensor."""
    state_dict = stepped("Adam", groups=2).state_dict()
    betas = [0.5, 0.75]
    for group in state_dict["param_groups"]:
        group.update(betas=betas, lr=torch.tensor(0.125), extra={"a": [1, 2], "b": {"c": "x"}}, zero=torch.zeros(3, 2))
    first, second = (group.hyperparameters for group in saved(state_dict, tmp_path / "o.pt").groups)
    assert first == second
    assert (first["betas"], first["lr"]) == (betas, 0.125)
    assert first["zero"] == {"dtype": "float32", "shape": [3, 2]}
    assert first["extra"] == {"a.0": 1, "a.1": 2, "b.c": "x"}


# --- where optimizers lie

NAMES = ["transformer.state.0.weight", "0.weight", "blocks.param.state.bias", "lm_head"]


def test_states_by_parameter_name(tmp_path: Path) -> None:
    """FSDP's way: names as keys, with dots and with pieces that look like something else."""
    state_dict = stepped("AdamW", groups=2).state_dict()
    state_dict["state"] = {NAMES[index]: entry for index, entry in state_dict["state"].items()}
    for group in state_dict["param_groups"]:
        group["params"] = [NAMES[index] for index in group["params"]]
    for value in (state_dict, {"optimizer": state_dict, "seed": 1}, {"a": {"b": state_dict}}):
        state = saved(value, tmp_path / "o.pt")
        assert found(state) == facts(state_dict)
        assert [group.having for group in state.groups] == [frozenset(NAMES[:2]), frozenset(NAMES[2:])]


def test_states_that_hold_more_than_a_tensor(tmp_path: Path) -> None:
    """Eight-bit optimizers keep codes and scales below a state's name; the parameter's name may hold dots as well."""
    entry = {"exp_avg": {"codes": torch.ones(4), "scale": torch.ones(1)}}
    for param in (0, "a.b.weight"):
        state = saved({"state": {param: entry}, "param_groups": [{"lr": 1, "params": [param]}]}, tmp_path / "o.pt")
        (group,) = state.groups
        assert [(s.name, s.tensors, s.bytes, s.shapes) for s in group.states] == [("exp_avg", 2, 20, ((4,), (1,)))]
        assert group.having == {str(param)}


def test_flattened_by_parameter_name(tmp_path: Path) -> None:
    """torch.distributed's flat form: groups with equal hyperparameters become one."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    model = torch.nn.Sequential()
    model.add_module("first", torch.nn.Linear(4, 3))
    model.add_module("second", torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.dim() == n], "weight_decay": n} for n in (1, 2)]
    )
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    flat: dict[str, Any] = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True, full_state_dict=True)
    )
    assert "state.first.weight.exp_avg" in flat
    state = saved(flat, tmp_path / "o.pt")
    by_weight_decay = {group.hyperparameters["weight_decay"]: group for group in state.groups}
    assert {decay: (g.kind, g.parameters, g.without_state, g.step) for decay, g in by_weight_decay.items()} == {
        1: ("AdamW", 2, 0, (1, 1)),
        2: ("AdamW", 2, 0, (1, 1)),
    }
    tensors = [value for value in flat.values() if isinstance(value, torch.Tensor)]
    assert (state.state_tensors, state.state_bytes) == (len(tensors), sum(t.nbytes for t in tensors))


def test_one_optimizer_a_parameter(tmp_path: Path) -> None:
    """torchtune's optimizer_in_bwd: {parameter: state dict}."""
    made: dict[str, Any] = {}
    for at, name in enumerate(NAMES):
        parameter = torch.nn.Parameter(torch.ones(2, 3))
        optimizer = torch.optim.AdamW([parameter], lr=0.5, weight_decay=0.1 if at else 0.0)
        for _ in range(at + 1):
            parameter.grad = torch.ones(2, 3)
            optimizer.step()
        made[name] = optimizer.state_dict()
    state = saved({"optimizer": made, "epochs_run": 1}, tmp_path / "recipe_state.pt")
    assert [(g.optimizer, g.number, g.kind, g.parameters, g.without_state, g.step) for g in state.groups] == [
        ("optimizer", 0, "AdamW", 1, 0, (1, 1)),
        ("optimizer", 1, "AdamW", 3, 0, (2, 4)),
    ]
    assert state.groups[1].having == frozenset(f"optimizer.{name}" for name in NAMES[1:])
    assert state.state_bytes == 4 * (2 * 24 + 4)


def test_several_optimizers_in_a_file(tmp_path: Path) -> None:
    """A list, and two by name: each keeps its own groups, in order."""
    both = [stepped("AdamW", groups=2).state_dict(), stepped("SGD", momentum=0.5).state_dict()]
    for value, places_ in ((both, ["0", "0", "1"]), ({"one": both[0], "two": both[1]}, ["one", "one", "two"])):
        state = saved(value, tmp_path / "o.pt")
        assert [group.optimizer for group in state.groups] == places_
        assert [group.number for group in state.groups] == [0, 1, 0]
        assert found(state) == facts(both[0]) + facts(both[1])


def test_small_optimizers_of_a_list_stay_apart(tmp_path: Path) -> None:
    made = [{"state": {0: {"sum": torch.ones(1)}}, "param_groups": [{"lr": 1, "params": [0]}]} for _ in range(2)]
    assert [g.optimizer for g in saved({"optimizers": made}, tmp_path / "o.pt").groups] == [
        "optimizers.0",
        "optimizers.1",
    ]


def test_what_only_looks_like_one(tmp_path: Path) -> None:
    """A model, a configuration that speaks of groups, lists of scalars: None; states alone are told by their names."""
    for value in (
        {"model": {"state": {"weight": torch.ones(2)}}},
        {"config": {"param_groups": [{"lr": 0.1, "params": "bias"}]}, "weight": torch.ones(2)},
        {"param_groups": [1, 2], "weight": torch.ones(2)},
        {"scheduler": {"last_epoch": 3}},
    ):
        torch.save(value, tmp_path / "o.pt")
        assert optimizer_state(read_tensors(str(tmp_path / "o.pt"))) is None
    state = saved({"optimizer": {"state": {"a.b": {"exp_avg": torch.ones(2)}}}}, tmp_path / "o.pt")
    assert [(g.number, g.parameters, g.kind) for g in state.groups] == [(None, 1, None)]
    assert saved({"state": {}, "param_groups": [{"lr": 1, "params": []}]}, tmp_path / "o.pt").groups[0].parameters == 0


def test_ten_thousand_tensors(tmp_path: Path) -> None:
    """Large optimizers stay quick, by index, by name and one a parameter."""
    entries = [{"step": torch.tensor(2.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)} for _ in range(3400)]
    names = [f"layers.{at}.attn.q_proj.weight" for at in range(len(entries))]
    group = {"lr": 0.1, "betas": (0.9, 0.95), "amsgrad": False, "decoupled_weight_decay": True}
    for value in (
        {"state": dict(enumerate(entries)), "param_groups": [{**group, "params": list(range(len(entries)))}]},
        {"state": dict(zip(names, entries)), "param_groups": [{**group, "params": names}]},
        {
            name: {"state": {0: entry}, "param_groups": [{**group, "params": [0]}]}
            for name, entry in zip(names, entries)
        },
    ):
        torch.save(value, tmp_path / "o.pt")
        file = read_tensors(str(tmp_path / "o.pt"))
        start = time.process_time()
        state = optimizer_state(file)
        assert time.process_time() - start < 1.5
        assert state and [(g.kind, g.parameters, g.step) for g in state.groups] == [("AdamW", 3400, (2, 2))]


# --- nanochat with several ranks


def adam_entry(step: Any, *shape: int) -> dict[str, Any]:
    return {"step": step, "exp_avg": torch.ones(shape), "exp_avg_sq": torch.ones(shape)}


def old_rank(rank: int, world: int) -> list[Any]:
    """One rank's [DistAdamW, DistMuon]: slices along dim 0; the matrices that fall to the rank, `zero_buffer`."""
    adam = {"lr": 0.2, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0, "params": [0, 1]}
    state = {index: adam_entry(torch.tensor(7), 8 // world, 4) for index in (0, 1)}
    muon = {"lr": 0.02, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "params": list(range(6))}
    buffers = {index: {"momentum_buffer": torch.ones(4, 4)} for index in range(6) if index % world == rank}
    return [
        {"state": state, "param_groups": [adam]},
        {"state": buffers, "param_groups": [{**muon, "zero_buffer": torch.zeros(4, 4)}]},
    ]


def new_rank(rank: int, world: int) -> dict[str, Any]:
    """One rank's MuonAdamW: `kind` in every group, Muon buffers stacked under the first parameter of a group."""
    held = -(-6 // world)
    buffers = {"momentum_buffer": torch.ones(held, 4, 5), "second_momentum_buffer": torch.ones(held, 4, 1)}
    return {
        "state": {0: adam_entry(9, 8 // world, 4), 1: buffers},
        "param_groups": [
            {"kind": "adamw", "lr": 0.2, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1, "params": [0]},
            {"kind": "muon", "lr": 0.02, "momentum": 0.95, "ns_steps": 5, "params": list(range(1, 7))},
        ],
    }


def nanochat_tree(root: Path, make: Any, world: int = 4, steps: tuple[int, ...] = (10, 20)) -> Path:
    folder = root / "base_checkpoints" / "d2"
    folder.mkdir(parents=True)
    for step in steps:
        torch.save({"weight": torch.ones(2)}, folder / f"model_{step:06d}.pt")
        (folder / f"meta_{step:06d}.json").write_text(json.dumps({"step": step}))
        for rank in range(world):
            torch.save(make(rank, world), folder / f"optim_{step:06d}_rank{rank}.pt")
    return folder


@pytest.mark.parametrize(
    ("make", "kinds", "having", "step"),
    [
        (old_rank, ["Adam family", "Muon"], [[2, 2], [2, 2], [2, 1], [2, 1]], [7, 7]),
        (new_rank, ["AdamW", "Muon"], [[1, 2]] * 4, [9, 9]),
    ],
)
def test_ranks(tmp_path: Path, call: Run, make: Any, kinds: list[str], having: list[Any], step: list[int]) -> None:
    folder = nanochat_tree(tmp_path, make)
    done = call("inspect", "optim", tmp_path, "--json")
    assert done.code == 0
    body = done.json
    assert list(body) == [
        "schema_version", "command", "checkpoint", "ranks", "missing", "without_state", "problems",
    ]  # fmt: skip
    assert (body["command"], body["missing"], body["problems"]) == ("inspect optim", [], [])
    assert body["checkpoint"]["ref"] == "base/d2/20"
    assert [rank["rank"] for rank in body["ranks"]] == [0, 1, 2, 3]
    for rank, expected in zip(body["ranks"], having):
        assert list(rank)[: len(KEYS)] == KEYS
        assert rank["path"] == str(folder / f"optim_000020_rank{rank['rank']}.pt")
        assert rank["bytes"] == os.stat(rank["path"]).st_size and rank["step"] == step
        assert [group["kind"] for group in rank["groups"]] == kinds
        assert [group["parameters"] - group["without_state"] for group in rank["groups"]] == expected
    # What one rank lacks the others hold.
    assert body["without_state"] == 0 and "no file" not in done.err
    muon = body["ranks"][0]["groups"][1]
    if make is old_rank:
        assert muon["hyperparameters"]["zero_buffer"] == {"dtype": "float32", "shape": [4, 4]}
        assert (muon["stacked"], muon["step"], muon["state_tensors"]) == (None, None, 2)
    else:
        assert (muon["stacked"], muon["step"], muon["state_tensors"]) == (2, None, 2)
        assert [s["shapes"] for s in muon["states"]] == [[[2, 4, 5]], [[2, 4, 1]]]


def test_a_missing_rank(tmp_path: Path, call: Run) -> None:
    folder = nanochat_tree(tmp_path, old_rank)
    (folder / "optim_000020_rank1.pt").unlink()
    done = call("inspect", "optim", tmp_path, "-s", 20, "--json")
    assert done.code == 0 and done.json["missing"] == [1]
    assert [rank["rank"] for rank in done.json["ranks"]] == [0, 2, 3]
    assert done.json["without_state"] == 2  # the matrices 1 and 5
    assert "optimizer rank 1 is missing" in done.err and "2 parameters" in done.err
    # The newest complete step is another.
    assert call("inspect", "optim", tmp_path, "--json").json["checkpoint"]["step"] == 10


def test_the_only_file_of_eight_ranks(tmp_path: Path, call: Run) -> None:
    """nanochat before November 2025: rank 0 of eight wrote, without a rank in the name, its part of the states."""
    folder = nanochat_tree(tmp_path, old_rank, world=0, steps=(10,))
    torch.save(old_rank(0, 8), folder / "optim_000010.pt")
    done = call("inspect", "optim", tmp_path, "--json")
    assert done.code == 0 and [rank["rank"] for rank in done.json["ranks"]] == [None]
    assert done.json["without_state"] == 5 and "5 parameters" in done.err


def test_a_damaged_rank_does_not_hide_the_others(tmp_path: Path, call: Run) -> None:
    folder = nanochat_tree(tmp_path, new_rank)
    broken = folder / "optim_000020_rank2.pt"
    broken.write_bytes(broken.read_bytes()[:500])
    done = call("inspect", "optim", tmp_path, "--json")
    assert done.code == 1
    assert [rank["rank"] for rank in done.json["ranks"]] == [0, 1, 3] and done.json["missing"] == []
    assert [(p["code"], p["path"]) for p in done.json["problems"]] == [("truncated", str(broken))]
    plain = call("inspect", "optim", tmp_path)
    assert plain.code == 1 and len(plain.out.splitlines()) == 6
    assert plain.err.count("error: ") == 1 and str(broken) in plain.err
    for rank in range(4):
        (folder / f"optim_000020_rank{rank}.pt").write_bytes(b"")
    (folder / "optim_000020_rank0.pt").write_bytes(b"PK")
    done = call("inspect", "optim", folder / "optim_000020_rank3.pt", "--json")
    assert done.code == 1 and done.json["ranks"] == [] and len(done.json["problems"]) == 1


def test_a_rank_that_would_run_code(tmp_path: Path, call: Run) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    folder = nanochat_tree(tmp_path, new_rank)
    torch.save({"state": {}, "param_groups": [], "x": Evil()}, folder / "optim_000020_rank1.pt")
    done = call("inspect", "optim", tmp_path, "--json")
    assert (done.code, done.out) == (2, "") and "run code" in done.err


# --- the command


def test_against_demo(demo_tree: Path, call: Run) -> None:
    """The tree that real training wrote: every number as torch.load gives it."""
    body = call("inspect", "optim", demo_tree, "--json").json
    (rank, *_) = body["ranks"]
    state_dict = torch.load(rank["path"], weights_only=True)
    parts = state_dict if isinstance(state_dict, list) else [state_dict]
    expected = [fact for part in parts for fact in facts(part)]
    assert [(g["hyperparameters"], g["parameters"], g["state_tensors"], g["state_bytes"]) for g in rank["groups"]] == [
        (f[0], f[1], f[3], f[4]) for f in expected
    ]
    steps = [step for f in expected for step in f[5] or ()]
    assert rank["step"] == ([min(steps), max(steps)] if steps else None)


def test_no_optimizer_is_an_answer(tmp_path: Path, call: Run) -> None:
    """A checkpoint that keeps none: the answer is no, 1. A file of which none can be told: 2, with what was seen."""
    folder = nanochat_tree(tmp_path, new_rank, world=0, steps=(10,))
    done = call("inspect", "optim", tmp_path, "--json")
    assert done.code == 1 and done.json["ranks"] == []
    assert [p["code"] for p in done.json["problems"]] == ["not-found"]
    assert "base/d2/10 keeps no optimizer" in done.err and "model_000010.pt" in done.err
    # A model file stands for its checkpoint.
    assert call("inspect", "optim", folder / "model_000010.pt").code == 1
    torch.save({"lost": torch.ones(2), "rest": torch.ones(2)}, folder / "optim_000010_rank0.pt")
    done = call("inspect", "optim", tmp_path, "--json")
    assert (done.code, done.out) == (2, "") and "2 tensors" in done.err and "'lost'" in done.err
    loose = tmp_path / "loose.dat"
    torch.save({"epoch": 3}, loose)
    done = call("inspect", "optim", loose)
    assert (done.code, done.out) == (2, "") and "it is 'epoch'" in done.err
    assert call("inspect", "optim", loose, "-q").code == 2


def test_where_a_checkpoint_keeps_it(tmp_path: Path, call: Run) -> None:
    """A file of its own, else the recipe's state, else inside the model file; a recipe may come without one."""
    both = {"model": {"w": torch.ones(2)}, "optimizer": stepped("SGD", momentum=0.5).state_dict()}
    torch.save(both, tmp_path / "model.pt")
    recipe: dict[str, Any] = {"seed": 1, "optimizer": stepped("AdamW").state_dict()}
    roles: tuple[tuple[Role, str], ...] = (("model", "model.pt"), ("recipe", "recipe_state.pt"))
    parts = tuple(Part(role, str(tmp_path / name), 1, 1) for role, name in roles)
    checkpoint = Checkpoint("made", None, "run", 1, "epoch", "epoch_1", str(tmp_path), parts)
    query = Query(Root(str(tmp_path), "TARGET"), discover(str(tmp_path)), None, None, None, None)

    def kinds() -> list[str | None]:
        states, failures = _read(query, checkpoint, None)
        assert not failures
        return [group.kind for state in states for group in state.groups]

    torch.save(recipe, tmp_path / "recipe_state.pt")
    assert kinds() == ["AdamW"]
    del recipe["optimizer"]
    torch.save(recipe, tmp_path / "recipe_state.pt")
    assert kinds() == ["SGD"]
    folder = nanochat_tree(tmp_path / "tree", new_rank, world=0, steps=(10,))
    torch.save(both, folder / "model_000010.pt")
    (rank,) = call("inspect", "optim", tmp_path / "tree", "--json").json["ranks"]
    assert rank["path"] == str(folder / "model_000010.pt") and rank["groups"][0]["kind"] == "SGD"


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_distributed_checkpoint(tmp_path: Path, call: Run) -> None:
    """The index says what its data files hold, the optimizer too."""
    from torch.distributed.checkpoint.state_dict_saver import save

    state_dict = stepped("AdamW", groups=2).state_dict()
    folder = tmp_path / "step_5"
    save({"model": {"w": torch.ones(2)}, "optimizer": state_dict}, checkpoint_id=str(folder), no_dist=True)
    for target in (tmp_path, folder, folder / ".metadata"):
        done = call("inspect", "optim", target, "--json")
        assert done.code == 0, done.err
        (rank,) = done.json["ranks"]
        assert rank["path"] == str(folder / ".metadata") and rank["step"] == [3, 3]
        assert [
            (g["hyperparameters"], g["parameters"], g["state_tensors"], g["state_bytes"]) for g in rank["groups"]
        ] == [(f[0], f[1], f[3], f[4]) for f in facts(state_dict)]


def test_picking_a_file(tmp_path: Path, call: Run) -> None:
    folder = nanochat_tree(tmp_path, new_rank)

    def ranks(*arguments: object) -> list[int]:
        return [rank["rank"] for rank in call("inspect", "optim", *arguments, "--json").json["ranks"]]

    assert ranks(tmp_path, "--part", "optim_000020_rank2.pt") == [2]
    assert ranks(tmp_path, "--part", folder / "optim_000020_rank3.pt") == [3]
    assert ranks(folder / "optim_000010_rank1.pt") == [1]
    assert ranks(folder / "model_000010.pt") == [0, 1, 2, 3]
    assert ranks(folder / "meta_000010.json") == [0, 1, 2, 3]
    assert call("inspect", "optim", tmp_path, "--part", "model_000020.pt").code == 2
    done = call("inspect", "optim", tmp_path, "--part", "nothing.pt")
    assert done.code == 2 and "optim_000020_rank0.pt" in done.err


def test_a_file_that_is_part_of_nothing(tmp_path: Path, call: Run) -> None:
    for name, value in (
        ("optimizer.pt", stepped("AdamW", groups=2).state_dict()),
        ("recipe_state.pt", {"optimizer": stepped("AdamW", groups=2).state_dict(), "seed": 1, "epochs_run": 2}),
        ("ckpt.pt", {"model": {"w": torch.ones(2)}, "optimizer": stepped("AdamW", groups=2).state_dict()}),
    ):
        torch.save(value, tmp_path / name)
        done = call("inspect", "optim", tmp_path / name, "--json")
        assert done.code == 0
        (rank,) = done.json["ranks"]
        assert (rank["rank"], rank["path"], rank["step"]) == (None, str(tmp_path / name), [3, 3])
        assert [(group["group"], group["parameters"]) for group in rank["groups"]] == [(0, 2), (1, 2)]


def test_formats(tmp_path: Path, call: Run) -> None:
    """Plain: one record a line, numbers in full. A table: headings, rounded."""
    nanochat_tree(tmp_path, new_rank)
    rows = [line.split("\t") for line in call("inspect", "optim", tmp_path).out.splitlines()]
    assert len(rows) == 8 and {len(row) for row in rows} == {9}
    assert rows[0] == ["0", "0", "AdamW", "0.2", "0.1", "1", "9", "64", "exp_avg, exp_avg_sq"]
    assert rows[1] == ["0", "1", "Muon", "0.02", "-", "2 of 6", "-", "192", "momentum_buffer, second_momentum_buffer"]
    table = call("inspect", "optim", tmp_path, "--format", "table")
    assert table.out.splitlines()[0].split() == "RANK GROUP KIND LR DECAY PARAMS STEP SIZE STATES".split()
    assert "4 ranks, 16 state tensors, 1.02 kB" in table.err
    assert len(table.out.splitlines()) == 9


def test_names_from_files_are_escaped(tmp_path: Path, call: Run) -> None:
    path = tmp_path / "o.pt"
    torch.save({"state": {0: {"\x1b[31mred": torch.ones(1)}}, "param_groups": [{"kind": "a\tb", "params": [0]}]}, path)
    done = call("inspect", "optim", path)
    assert "\x1b" not in done.out and done.out.count("\t") == 8 and "\\x1b[31mred" in done.out


def test_a_terminal_of_eighty_columns(tmp_path: Path) -> None:
    """Nothing is cut and no line is longer than the terminal."""
    nanochat_tree(tmp_path, new_rank, world=2)
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "ckpt_cli", "inspect", "optim", str(tmp_path)]
    done = subprocess.Popen(command, stdout=follower, stderr=subprocess.PIPE, env=environment, cwd=tmp_path)
    os.close(follower)
    data = io.BytesIO()
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:
            break
        if not piece:
            break
        data.write(piece)
    done.communicate()
    os.close(leader)
    text = re.sub(r"\x1b\[[0-9;]*m", "", data.getvalue().decode())
    lines = [line.rstrip() for line in text.splitlines()]
    assert done.returncode == 0 and max(map(len, lines)) <= 80
    assert "momentum_buffer" in text and "3 of 6" in text and "exp_avg_sq" in text


# --- real files


def expected_of(path: Path) -> list[Any]:
    """The groups of a real file as torch loads it."""
    value = torch.load(path, weights_only=True, map_location="cpu")
    if isinstance(value, list):
        return [fact for part in value for fact in facts(part)]
    for key in ("optimizer", "optimizer_state_dict"):
        if "param_groups" not in value and key in value:
            value = value[key]
    return facts(value)


def test_real_optimizers(shared: Path) -> None:
    """Every era of nanochat, torchtune, Trainer, nano-gpt, nanoGPT: hyperparameters, counts, bytes and steps."""
    real = shared / "real"
    paths = [
        *real.glob("nanochat/*/*/*/optim_*.pt"),
        *real.glob("torchtune/**/recipe_state.pt"),
        *real.glob("trainer/*/*/optimizer.pt"),
        *real.glob("gpt2/nano_gpt/checkpoints/checkpoint_*.bin"),
        real / "gpt2" / "nanoGPT" / "out_train_py" / "ckpt.pt",
        real / "zoo" / "optimizer.pt",
    ]
    assert len(paths) > 30
    for path in paths:
        state = optimizer_state(read_tensors(str(path)))
        assert state, path
        expected = expected_of(path)
        # A stacked buffer counts for the parameters that it holds, which torch's state dict does not say.
        assert [f[:2] + f[3:] for f in found(state)] == [f[:2] + f[3:] for f in expected], path
        assert without_state([state]) == 0, path
        kinds = {group.kind for group in state.groups}
        assert kinds == ({"AdamW", "Muon"} if "nanochat" in str(path) else {"AdamW"}), path


def test_real_files_by_the_command(shared: Path, call: Run) -> None:
    real = shared / "real"
    done = call("inspect", "optim", real / "nanochat" / "a1_v1_oct2025", "-i", "base", "-s", 10, "--json")
    assert done.code == 0 and done.json["ranks"][0]["step"] == [10, 10] and done.json["ranks"][0]["rank"] is None
    # Old nanochat kept none in fine-tuning.
    for source in ("sft", "rl"):
        done = call("inspect", "optim", real / "nanochat" / "a1_v1_oct2025", "-i", source)
        assert (done.code, done.out) == (1, "") and "keeps no optimizer" in done.err
    assert call("inspect", "optim", real / "zoo" / "damaged-truncated.pt").code == 1
    assert call("inspect", "optim", real / "zoo" / "hostile-exec.pt").code == 2
    assert call("inspect", "optim", real / "gpt2" / "build-nanogpt" / "log" / "model_00010.pt").code in (1, 2)
