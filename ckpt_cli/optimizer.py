"""TensorFile -> the optimizer state in it: groups, their hyperparameters, states and steps.

Where they lie in the file, `param_groups` finds out. It does not know which parameters a model has, nor what a
training run set the optimizer up with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from ckpt_cli.formats import Files
from ckpt_cli.param_groups import Draft, groups_of
from ckpt_cli.scalars import Numbers
from ckpt_cli.tensor_file import TensorFile, TensorInfo

Steps = tuple["int | float", "int | float"]

_ADAM = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
# (kind, hyperparameters or states that only it has, states it may have), as torch, transformers and nanochat name them.
_KINDS: tuple[tuple[str, set[str], set[str]], ...] = (
    ("Muon", {"ns_steps"}, {"step", "momentum_buffer", "second_momentum_buffer"}),
    ("SGD", {"momentum", "dampening", "nesterov"}, {"momentum_buffer"}),
    ("NAdam", {"momentum_decay"}, {*_ADAM, "mu_product"}),
    ("Adamax", {"exp_inf"}, {"step", "exp_avg", "exp_inf"}),
    ("Adadelta", {"rho"}, {"step", "square_avg", "acc_delta"}),
    ("Adagrad", {"initial_accumulator_value"}, {"step", "sum"}),
    ("RMSprop", {"alpha", "centered"}, {"step", "square_avg", "momentum_buffer", "grad_avg"}),
    ("Rprop", {"etas", "step_sizes"}, {"step", "prev", "step_size"}),
    ("ASGD", {"lambd", "t0"}, {"step", "eta", "mu", "ax"}),
    ("Adafactor", {"beta2_decay"}, {"step", "row_var", "col_var", "variance"}),
    ("Adafactor", {"clip_threshold"}, {"step", "exp_avg", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq", "RMS"}),
)


class StateName(NamedTuple):
    """One kind of state in a group: how many parameters have it as a tensor and as a plain value, distinct dtypes
    and shapes in the order of the file."""

    name: str
    tensors: int
    values: int
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    bytes: int


class Group(NamedTuple):
    """One parameter group.

    `optimizer` is the dotted name of where the optimizer lies, "" at the top; `number` is None for states that no
    group names. `kind` is None where neither states nor hyperparameters tell it. `having` are the parameters with a
    state; a Muon buffer stacked over several parameters lies under the first, and `stacked` is how many it holds.
    """

    optimizer: str
    number: int | None
    kind: str | None
    hyperparameters: dict[str, Any]
    parameters: int
    having: frozenset[str]
    stacked: int | None
    states: tuple[StateName, ...]
    step: Steps | None

    @property
    def without_state(self) -> int:
        """How many of its parameters have no state here."""
        return max(0, self.parameters - max(len(self.having), self.stacked or 0))


class OptimizerState(NamedTuple):
    """The optimizers of one file; `bytes` is the file's size."""

    path: str
    rank: int | None
    bytes: int
    groups: tuple[Group, ...]

    @property
    def state_tensors(self) -> int:
        """How many tensors its states are."""
        return sum(state.tensors for group in self.groups for state in group.states)

    @property
    def state_bytes(self) -> int:
        """Of those tensors."""
        return sum(state.bytes for group in self.groups for state in group.states)

    @property
    def step(self) -> Steps | None:
        """The smallest and the largest step that it says; None where it says none."""
        return _span(step for group in self.groups for step in group.step or ())


def optimizer_state(file: TensorFile, rank: int | None = None) -> OptimizerState | None:
    """What the optimizer in a file is; None where there is none that can be told.

    Of tensors only the scalars named `step` and scalar hyperparameters are read. Raises Damaged where one of those
    does not fit its CRC32.
    """
    found = groups_of(file)
    if not found:
        return None
    with Files() as files:
        numbers = Numbers(files)
        groups = tuple(_group(draft, numbers) for draft in found)
    return OptimizerState(file.path, rank, os.stat(file.path).st_size, groups)


def without_state(ranks: Iterable[OptimizerState]) -> int:
    """How many parameters that groups name have a state on none of the ranks: each may keep another part of them."""
    named: dict[tuple[str, int], list[Group]] = {}
    for group in (group for rank in ranks for group in rank.groups):
        if group.number is not None:
            named.setdefault((group.optimizer, group.number), []).append(group)
    lacking = 0
    for shards in named.values():
        held = max(len(frozenset().union(*(s.having for s in shards))), sum(s.stacked or 0 for s in shards))
        lacking += max(0, max(s.parameters for s in shards) - held)
    return lacking


def _group(draft: Draft, numbers: Numbers) -> Group:
    settings = {name: _setting(value, numbers) for name, value in draft.hyperparameters.items()}
    names: dict[str, list[Any]] = {}
    having = set()
    for param, entry in draft.entries.items():
        if any(item is not None for items in entry.values() for item in items):
            having.add(param)
        for name, items in entry.items():
            names.setdefault(name, []).extend(items)
    states = tuple(_state_name(name, items) for name, items in names.items())
    kind = _kind(settings, set(names))
    stacked = None
    if kind == "Muon" and len(having) == 1 and having == set(draft.params[:1]):
        leading = {shape[0] for state in states for shape in state.shapes if len(shape) > 2}
        stacked = leading.pop() if len(leading) == 1 else None
    steps = [numbers.of(item) for item in [*names.get("step", ()), settings.get("step")]]
    return Group(
        draft.optimizer,
        draft.number,
        kind,
        settings,
        len(draft.params),
        frozenset(having),
        stacked,
        states,
        _span(step for step in steps if step is not None),
    )


def _setting(value: Any, numbers: Numbers) -> Any:
    """A hyperparameter as JSON can hold it; of a tensor that is no scalar, dtype and shape."""
    if isinstance(value, TensorInfo):
        number = numbers.of(value) if not value.shape else None
        return {"dtype": value.dtype, "shape": list(value.shape)} if number is None else number
    if isinstance(value, dict):
        items = [_setting(item, numbers) for item in value.values()]
        return items if list(value) == [str(index) for index in range(len(items))] else dict(zip(value, items))
    return value


def _state_name(name: str, items: list[Any]) -> StateName:
    tensors = [item for item in items if isinstance(item, TensorInfo)]
    return StateName(
        name,
        len(tensors),
        sum(item is not None for item in items) - len(tensors),
        tuple(dict.fromkeys(tensor.dtype for tensor in tensors)),
        tuple(dict.fromkeys(tensor.shape for tensor in tensors)),
        sum(tensor.bytes for tensor in tensors),
    )


def _kind(settings: dict[str, Any], states: set[str]) -> str | None:
    """The optimizer's name, where its group says it or states and hyperparameters leave no other.

    `Adam family` is what has Adam's states, where nothing tells Adam from AdamW, RAdam or LAMB.
    """
    said = settings.get("kind")
    if isinstance(said, str):
        return {"adamw": "AdamW", "muon": "Muon", "adam": "Adam", "sgd": "SGD"}.get(said, said)
    for kind, marks, allowed in _KINDS:
        if marks <= settings.keys() | states and states <= allowed:
            return kind
    if states <= _ADAM:
        if "amsgrad" in settings and isinstance(settings.get("decoupled_weight_decay"), bool):
            return "AdamW" if settings["decoupled_weight_decay"] else "Adam"
        if {"exp_avg", "exp_avg_sq"} <= states:
            return "Adam family"
    return None


def _span(steps: Iterable[int | float]) -> Steps | None:
    """(smallest, largest), None of nothing."""
    listed = list(steps)
    return (min(listed), max(listed)) if listed else None
