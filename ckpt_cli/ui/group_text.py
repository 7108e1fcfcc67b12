"""The parameter groups of optimizers in a difference, for people: groups that changed alike share a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ckpt_cli.errors import counted

_SIGNS = "-+~"
_NAMED = 4

Row = tuple[str, str, str]


def without_groups(rows: Iterable[Row], old: Iterable[str], new: Iterable[str]) -> tuple[list[Row], list[list[str]]]:
    """The rows (sign, key, value) of metadata that are of no parameter group; and (sign, groups, setting, value).

    `old` and `new` are all keys of both sides: of a group's parameters only their number is shown.
    """
    rest: list[Row] = []
    alike: dict[Row, dict[str, None]] = {}
    before, after = (
        Counter(group for key in keys for group, name in _place(key) if name == "params") for keys in (old, new)
    )
    for sign, key, value in rows:
        if not _place(key):
            rest.append((sign, key, value))
        for group, name in _place(key):
            what = sign, name, value
            if name == "params":
                same = before[group] == after[group]
                what = "~", name, f"{after[group]}, not the same" if same else f"{before[group]} -> {after[group]}"
            alike.setdefault(what, {})[group] = None
    ordered = sorted(alike.items(), key=lambda item: _SIGNS.index(item[0][0]))
    return rest, [[sign, _several(list(groups)), name, value] for (sign, name, value), groups in ordered]


def _place(key: str) -> list[tuple[str, str]]:
    """The group, as OPTIMIZER.GROUP, and the setting that a key names; nothing where it names none."""
    optimizer, found, below = f".{key}".rpartition(".param_groups.")
    group, _, name = below.partition(".")
    if not group.isdecimal():  # flattened, by the parameter's name
        group, _, name = below.rpartition(".")
    if not (found and group and name):
        return []
    return [(f"{optimizer}.{group}".strip("."), "params" if name.startswith("params.") else name)]


def _several(groups: Sequence[str]) -> str:
    if len(groups) <= _NAMED:
        return ", ".join(groups)
    return f"{groups[0]} and {counted(len(groups) - 1, 'other')}"
