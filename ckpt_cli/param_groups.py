"""TensorFile -> the parameter groups of the optimizers in it, each with the tensors of its states.

An optimizer is found by its `param_groups` and `state`, wherever they lie: at the top (torch, Trainer, nanochat
since January 2026), in a list (nanochat before, Lightning), under a key (nano-gpt, nanoGPT, torchtune's
recipe_state.pt) or under the name of each parameter (torchtune's optimizer_in_bwd). States are kept by index or by
parameter name. Only names are looked at; nothing of a tensor is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ckpt_cli.checkpoint import TensorFile, referred

# States that tell an optimizer where its groups are not in the file; others could be anything's.
_TELLING = ("exp_avg", "exp_avg_sq", "momentum_buffer")
# Items of a list that groups share: no hyperparameter has more.
_MOST = 16
# Characters and dots of names: no trainer's are as long, and each dot may be where a parameter's name ends.
_LONGEST, _MOST_DOTS = 10_000, 100
_Pairs = list[tuple[str, Any]]


class Draft(NamedTuple):
    """A group as it lies in a file: the names of its parameters, and their states by parameter and name.

    `optimizer`, `number` and `hyperparameters` as in `optimizer.Group`, those that are tensors not read.
    """

    optimizer: str
    number: int | None
    hyperparameters: dict[str, Any]
    params: list[str]
    entries: dict[str, dict[str, list[Any]]]


def groups_of(file: TensorFile) -> list[Draft]:
    """The groups of every optimizer in a file, with the tensors of their states; nothing of these is read."""
    found = _found(file)
    return _join_single([draft for prefix in found for draft in _drafts(prefix, *found[prefix])])


def _found(file: TensorFile) -> dict[str, tuple[_Pairs, _Pairs]]:
    """By the place of each optimizer: (name, value) of what lies below `param_groups`, and below `state`."""
    # Values first: every group has some, so groups are met in their order; few have tensors.
    pairs: _Pairs = [*file.values.items(), *((tensor.name, tensor) for tensor in file.tensors)]
    found: dict[str, tuple[_Pairs, _Pairs]] = {}
    rest: _Pairs = []
    for name, value in pairs:
        if len(name) > _LONGEST:
            continue
        at = f".{name}.".find(".param_groups.") if "param_groups" in name else -1
        if at < 0:
            rest.append((name, value))
        else:
            below = name[at + len("param_groups.") :]
            found.setdefault(name[: max(at - 1, 0)], ([], []))[0].append((below, _same(value, file.values)))
    stateful = set()
    for name, value in rest:
        at = f".{name}.".find(".state.")
        while at >= 0:
            prefix = name[: max(at - 1, 0)]
            below = name[at + len("state.") :]
            if not found and below.rpartition(".")[2] in _TELLING:
                found[prefix] = ([], [])
            if prefix in found:
                stateful.add(prefix)
                if below:
                    found[prefix][1].append((below, value))
                break
            at = f".{name}.".find(".state.", at + 1)
    return {prefix: parts for prefix, parts in found.items() if prefix in stateful}


def _same(value: Any, values: dict[str, Any]) -> Any:
    """A short list that several groups share is told once: here it is again."""
    name = referred(value)
    if name is None:
        return value
    items = [values[f"{name}.{index}"] for index in range(_MOST + 1) if f"{name}.{index}" in values]
    return items if 0 < len(items) <= _MOST else value


def _drafts(prefix: str, groups: _Pairs, states: _Pairs) -> list[Draft]:
    """The groups of one optimizer with their states, and, last, the states that no group names."""
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
    loose = Draft(prefix, None, {}, [], {})
    for name, value in states:
        param, state = _split(name, owners)
        entry = owners.get(param, loose).entries.setdefault(param, {})
        if state:
            entry.setdefault(state, []).append(value)
    named = list(drafts.values())
    if groups and not all(key.isdecimal() for key in drafts):
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
