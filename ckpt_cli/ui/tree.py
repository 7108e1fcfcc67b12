"""Dotted names as a tree: what each branch holds, alike branches that only a number tells apart drawn as one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ckpt_cli.ui.table import Cell, Column, Row
from ckpt_cli.ui.text import short, size

COLUMNS = [
    Column("TENSOR"),
    Column("COUNT", right=True),
    Column("PARAMS", right=True),
    Column("SIZE", right=True),
    Column("DTYPE"),
    Column("SHAPE"),
]
# A name with more dots than this is better not taken apart further.
DEPTH = 60
_LISTED = 8
_BOXES = ("├─ ", "│  ", "└─ ", "   ", "×")
_ASCII = ("|- ", "|  ", "`- ", "   ", "x")


class Leaf(NamedTuple):
    """A tensor, under its name taken apart. `parameters` and `bytes` are 0 where an earlier one accounts for them."""

    path: Sequence[str]
    dtype: str
    shape: str
    parameters: int
    bytes: int


class Branch:
    """A name up to a dot, or to its end. `leaves` are dtypes and shapes; `like` is one number for all branches that
    hold the same."""

    __slots__ = ("branches", "bytes", "count", "leaves", "like", "parameters")

    def __init__(self) -> None:
        # One has branches or leaves, hardly ever both: what is empty is the same for all.
        self.branches: dict[str, Branch] = _NO_BRANCHES
        self.leaves: list[tuple[str, str]] = _NO_LEAVES
        self.count = self.parameters = self.bytes = 0
        self.like = 0


_NO_BRANCHES: dict[str, Branch] = {}
_NO_LEAVES: list[tuple[str, str]] = []


def grow(leaves: Iterable[Leaf], sort: str) -> Branch:
    """The tree of the leaves, in their order; `sort` may be name (numbers as numbers) or bytes (of branches)."""
    root = Branch()
    kinds: dict[tuple[str, str], tuple[str, str]] = {}
    for leaf in leaves:
        branch = root
        path = [root]
        for segment in leaf.path:
            if segment not in branch.branches:
                branch.branches = branch.branches or {}
                branch.branches[sys.intern(segment)] = Branch()
            branch = branch.branches[segment]
            path.append(branch)
        kind = leaf.dtype, leaf.shape
        branch.leaves = branch.leaves or []
        branch.leaves.append(kinds.setdefault(kind, kind))
        for branch in path:
            branch.count += 1
            branch.parameters += leaf.parameters
            branch.bytes += leaf.bytes
    _liken(root, {})
    if sort != "file":
        _sort(root, sort)
    return root


def flat_rows(branch: Branch, path: str = "") -> Iterator[list[str]]:
    """Every branch and leaf by its whole name, nothing drawn as one: name, tensors, parameters, bytes."""
    for segment, below in branch.branches.items():
        name = f"{path}.{segment}" if path else segment
        yield [name, str(below.count), str(below.parameters), str(below.bytes)]
        yield from flat_rows(below, name)


def drawn_rows(root: Branch) -> list[Row]:
    """The tree as rows of COLUMNS; in ASCII where the output cannot hold more."""
    try:
        "".join(_BOXES).encode(sys.stdout.encoding or "ascii")
        signs = _BOXES
    except UnicodeEncodeError:
        signs = _ASCII
    return [row for group in _groups([root]) for row in _drawn(*group, "", "", signs)]


def _liken(branch: Branch, known: dict[tuple[object, ...], int]) -> None:
    for below in branch.branches.values():
        _liken(below, known)
    content = (
        tuple(branch.leaves),
        tuple(sorted((segment, below.like) for segment, below in branch.branches.items())),
    )
    branch.like = known.setdefault(content, len(known))


def _sort(branch: Branch, sort: str) -> None:
    ordered = sorted(
        branch.branches.items(),
        key=lambda item: (
            (-item[1].bytes, 0, "")
            if sort == "bytes"
            else (0, int(item[0]), "")
            if _is_number(item[0])
            else (1, 0, item[0])
        ),
    )
    branch.branches = dict(ordered) or _NO_BRANCHES
    for below in branch.branches.values():
        _sort(below, sort)


def _groups(members: Sequence[Branch]) -> list[tuple[str, int, list[Branch]]]:
    """What lies below branches that are alike: label, how many names it stands for, and the branches it stands for."""
    groups: dict[tuple[str, int], list[str]] = {}
    for segment, below in members[0].branches.items():
        key = ("", below.like) if _is_number(segment) else (segment, -1)
        groups.setdefault(key, []).append(segment)
    return [
        (_label(names), len(names), [member.branches[name] for member in members for name in names])
        for names in groups.values()
    ]


def _drawn(label: str, times: int, members: list[Branch], lead: str, rest: str, signs: Sequence[str]) -> Iterator[Row]:
    """A row for the branches together and those below; `lead` is drawn before its own, `rest` before the others."""
    below = _groups(members)
    while len(below) == 1 and not members[0].leaves:
        inner, more, members = below[0]
        label, times = f"{label}.{inner}", times * more
        below = _groups(members)
    kinds = dict.fromkeys(members[0].leaves)
    count, parameters, total = (
        sum(sums) for sums in zip(*((member.count, member.parameters, member.bytes) for member in members))
    )
    yield [
        lead + label + (f" {signs[4]}{times}" if times > 1 else ""),
        str(count),
        Cell(short(parameters), str(parameters)),
        Cell(size(total), str(total)),
        ", ".join(dict.fromkeys(dtype for dtype, _ in kinds)),
        ", ".join(shape for _, shape in kinds),
    ]
    for number, group in enumerate(below, 1):
        last = number == len(below)
        yield from _drawn(*group, rest + signs[2 if last else 0], rest + signs[3 if last else 1], signs)


def _is_number(segment: str) -> bool:
    return segment.isascii() and segment.isdigit() and len(segment) < 10 and (segment == "0" or segment[0] != "0")


def _label(names: Sequence[str]) -> str:
    """One name as it is; numbers as {0..11}, {0..10..2} or {0,1,4}."""
    if len(names) == 1:
        return names[0]
    numbers = sorted(map(int, names))
    runs: list[str] = []
    at = 0
    while at < len(numbers):
        end = at + 1
        step = numbers[end] - numbers[at] if end < len(numbers) else 0
        while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == step:
            end += 1
        if end - at >= 2 and end < len(numbers):
            runs.append(f"{numbers[at]}..{numbers[end]}" + (f"..{step}" if step > 1 else ""))
            at = end + 1
        else:
            runs.append(str(numbers[at]))
            at += 1
    if len(runs) > _LISTED:
        runs = [*runs[: _LISTED - 2], "...", runs[-1]]
    return "{" + ",".join(runs) + "}"
