"""TensorFile -> the parameter groups of the optimizers in it, each with the tensors of its states.

An optimizer is found by its `param_groups` and `state`, wherever they lie: at the top (torch, Trainer, nanochat
since January 2026), in a list (nanochat before, Lightning), under a key (nano-gpt, nanoGPT, torchtune's
recipe_state.pt) or under the name of each parameter (torchtune's optimizer_in_bwd). States are kept by index or by
parameter name. Only names are looked at; nothing of a tensor is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from sys import intern
from typing import Any, NamedTuple

from ckpt_cli.leaves import check_number
from ckpt_cli.tensor_file import TensorFile, referred

# States that tell an optimizer where its groups are not in the file; others could be anything's.
_TELLING = ("exp_avg", "exp_avg_sq", "momentum_buffer")
# Items of a list that groups share: no hyperparameter has more.
_MOST = 16
# Characters and dots of names: no trainer's are as long, and each dot may be where a parameter's name ends.
_LONGEST, _MOST_DOTS = 10_000, 100
# Bytes of memory that a value takes where it becomes part of a group, and of the rows that tell of it.
_EACH = 700


class Draft(NamedTuple):
    """A group as it lies in a file: the names of its parameters, and their states by parameter and name.

    `optimizer`, `number` and `hyperparameters` as in `optimizer.Group`, those that are tensors not read.
    """

    optimizer: str
    number: int | None
    hyperparameters: dict[str, Any]
    params: list[str]
    entries: dict[str, dict[str, list[Any]]]


class _Optimizer(NamedTuple):
    """The groups of one optimizer by key, whose each parameter is, and the states that no group names."""

    drafts: dict[str, Draft]
    owners: dict[str, Draft]
    loose: Draft


def groups_of(file: TensorFile) -> list[Draft]:
    """The groups of every optimizer in a file, with the tensors of their states; nothing of these is read.

    Raises CkptError where there are more values than may be looked at together.
    """
    check_number(file, _EACH)
    found = {prefix: _described(prefix, pairs) for prefix, pairs in _groups(file).items()}
    stateful = set()
    for name, value in _pairs(file):
        at = f".{name}.".find(".state.") if _place(name) < 0 else -1
        while at >= 0:
            prefix = name[: max(at - 1, 0)]
            below = name[at + len("state.") :]
            if not found and below.rpartition(".")[2] in _TELLING:
                found[prefix] = _described(prefix, [])
            if prefix in found:
                stateful.add(prefix)
                if below:
                    _put(found[prefix], below, value)
                break
            at = f".{name}.".find(".state.", at + 1)
    return _join_single([draft for prefix in found if prefix in stateful for draft in _drafts(found[prefix])])


def _pairs(file: TensorFile) -> Iterator[tuple[str, Any]]:
    """All names and what stands there. Values first: every group has some, so groups are met in their order; few have
    tensors."""
    for pair in chain(file.values.items(), ((tensor.name, tensor) for tensor in file.tensors)):
        if len(pair[0]) <= _LONGEST:
            yield pair


def _place(name: str) -> int:
    """Where in a name `param_groups` stands, less than 0 where it does not."""
    return f".{name}.".find(".param_groups.") if "param_groups" in name else -1


def _groups(file: TensorFile) -> dict[str, list[tuple[str, Any]]]:
    """By the place of each optimizer: (name, value) of what lies below its `param_groups`."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, value in _pairs(file):
        at = _place(name)
        if at >= 0:
            below = name[at + len("param_groups.") :]
            found.setdefault(name[: max(at - 1, 0)], []).append((below, _same(value, file.values)))
    return found


def _same(value: Any, values: Mapping[str, Any]) -> Any:
    """A short list that several groups share is told once: here it is again."""
    name = referred(value)
    if name is None:
        return value
    items = [values[f"{name}.{index}"] for index in range(_MOST + 1) if f"{name}.{index}" in values]
    return items if 0 < len(items) <= _MOST else value


def _described(prefix: str, groups: Iterable[tuple[str, Any]]) -> _Optimizer:
    """The groups of one optimizer, as yet without their states."""
    drafts: dict[str, Draft] = {}
    for name, value in groups:
        key, _, rest = name.partition(".")
        if not key.isdecimal():
            # Flattened by parameter: `param_groups.<parameter>.<hyperparameter>`.
            key, _, rest = name.rpartition(".")
        if not rest:
            continue
        draft = drafts.setdefault(key, Draft(prefix, len(drafts), {}, [] if key.isdecimal() else [key], {}))
        option, _, below = rest.partition(".")
        if option == "params":
            draft.params.extend(map(str, value if isinstance(value, list) else [value]))
        elif below and isinstance(draft.hyperparameters.setdefault(option, {}), dict):
            draft.hyperparameters[option][below] = value
        elif below:  # a key that holds a dot, beside one that is the same up to it
            draft.hyperparameters[rest] = value
        else:
            draft.hyperparameters[option] = value
    owners = {param: draft for draft in drafts.values() for param in draft.params}
    return _Optimizer(drafts, owners, Draft(prefix, None, {}, [], {}))


def _put(optimizer: _Optimizer, name: str, value: Any) -> None:
    """Adds what lies below an optimizer's `state`."""
    param, state = _split(name, optimizer.owners)
    entry = optimizer.owners.get(param, optimizer.loose).entries.setdefault(param, {})
    if state in entry:
        entry[state].append(value)
    elif state:
        entry[intern(state)] = [value]


def _drafts(optimizer: _Optimizer) -> list[Draft]:
    """The groups with their states, and, last, the states that no group names."""
    named, loose = list(optimizer.drafts.values()), optimizer.loose
    if not all(key.isdecimal() for key in optimizer.drafts):
        named = _join(named)
    return [*named, loose._replace(params=list(loose.entries))] if loose.entries else named


def _split(name: str, owners: dict[str, Draft]) -> tuple[str, str]:
    """Parameter and state of a dotted name. Parameter names may hold dots, and so may what lies in a state."""
    if name in owners:
        return name, ""
    at = name.rfind(".")
    for _ in range(_MOST_DOTS):
        if at < 0:
            break
        if name[:at] in owners:
            return name[:at], name[at + 1 :].partition(".")[0]
        at = name.rfind(".", 0, at)
    param, _, state = name.rpartition(".")
    return (param, state) if param else (name, "")


def _join_single(drafts: list[Draft]) -> list[Draft]:
    """One optimizer a parameter, each under its parameter's name, becomes one group for each set of hyperparameters."""
    count: dict[str, int] = {}
    for draft in drafts:
        count[draft.optimizer] = count.get(draft.optimizer, 0) + 1
    single = [
        draft
        for draft in drafts
        if count[draft.optimizer] == 1
        and len(draft.params) == 1
        and draft.number == 0
        and not draft.optimizer.rpartition(".")[2].isdecimal()
    ]
    if len(single) < 2:
        return drafts
    heads = {draft.optimizer.partition(".")[0] for draft in single}
    head = heads.pop() if len(heads) == 1 else ""
    renamed = [
        draft._replace(
            optimizer=head,
            params=[draft.optimizer],
            entries=dict.fromkeys([draft.optimizer], draft.entries.get(draft.params[0], {})),
        )
        for draft in single
    ]
    chosen = {id(draft) for draft in single}
    return [*_join(renamed), *(draft for draft in drafts if id(draft) not in chosen)]


def _join(drafts: list[Draft]) -> list[Draft]:
    """Groups with equal hyperparameters as one, numbered anew."""
    joined: dict[str, Draft] = {}
    for draft in drafts:
        settings = repr(sorted(draft.hyperparameters.items()))
        whole = joined.setdefault(settings, draft._replace(number=len(joined), params=[], entries={}))
        whole.params.extend(draft.params)
        whole.entries.update(draft.entries)
    return list(joined.values())
