"""Tensors, and the values beside them, in short texts for people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any

from ckpt_cli.errors import counted
from ckpt_cli.listing import Listed
from ckpt_cli.tensor_file import TensorFile

# Values that are looked at together.
_BATCH = 1000


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def storage_text(item: Listed) -> str:
    """Where the bytes of a tensor are: its storage, the tensor it shares them with, or the pieces it is made of."""
    tensor = item.tensor
    if tensor.form == "chunked":
        files = len({piece.storage.file for _, piece in tensor.pieces if piece.storage})
        return f"{counted(len(tensor.pieces), 'piece')} in {counted(files, 'file')}"
    if tensor.form == "slice":
        return "slice at " + " and ".join(",".join(map(str, at)) for at, _ in tensor.pieces)
    if tensor.pieces:
        return f"{tensor.form}: " + ", ".join(f"{at} {shape_text(piece.shape)}" for at, piece in tensor.pieces)
    if tensor.storage is None:
        return tensor.form
    # safetensors has no storages: each tensor has its own bytes, and there is nothing to say of them.
    place = "-" if tensor.storage.name == tensor.name else tensor.storage.name
    if item.sharing.tied_to is not None:
        place = f"tied to {item.sharing.tied_to}"
    elif item.sharing.view_of is not None:
        place = f"view of {item.sharing.view_of}"
    elif item.sharing.shared:
        place = f"shares storage {place}"
    return place if tensor.form in ("strided", "archived") else f"{place} ({tensor.form})"


def figure_text(value: float | None) -> str:
    """A figure in four digits; whole numbers as they are."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def file_texts(files: Sequence[TensorFile]) -> dict[str, str]:
    """By path, what tells the files apart: their names, or paths where two have the same name."""
    names = {file.path: os.path.basename(file.path) for file in files}
    return names if len(set(names.values())) == len(names) else {path: path for path in names}


def value_text(value: Any) -> str:
    """A value in one line: texts as they are, all else as JSON."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Iterator):  # over a long list
        parts = []
        while batch := list(islice(value, _BATCH)):
            parts.append(value_text(batch)[1:-1])
        return f"[{', '.join(parts)}]"
    return json.dumps(value, ensure_ascii=False)


def short_values(values: Mapping[str, Any], most: int, width: int) -> tuple[list[tuple[str, str]], int]:
    """The first of the values, those with the fewest dots before others, a list of many as one; and how many are left.

    Texts are cut to `width` characters.
    """
    lists: dict[str, int] = {}
    for stem in map(_stem, values):
        lists[stem] = lists.get(stem, 0) + 1
        if len(lists) > _BATCH:  # what is none of the first now is never one of them
            lists = {stem: lists[stem] for stem in nsmallest(most, lists, _rank)}
    chosen: dict[str, list[tuple[str, str]]] = {stem: [] for stem in nsmallest(most, lists, _rank)}
    for name, value in values.items():
        members = chosen.get(_stem(name))
        # No more of a long list than is shown.
        if members is not None and len(members) < width:
            members.append((name, value_text(islice(value, width) if isinstance(value, Iterator) else value)))
    rows: list[tuple[str, str]] = []
    for stem, members in chosen.items():
        name, shown = members[0]
        if lists[stem] > 1:
            name, shown = stem, f"{lists[stem]} values: {', '.join(text for _, text in members)}"
        rows.append((name, shown if len(shown) <= width else shown[: width - 3] + "..."))
    return rows, len(values) - sum(lists[stem] for stem in chosen)


def _stem(name: str) -> str:
    """The name of the list that a value is one of, or its own."""
    stem, dot, index = name.rpartition(".")
    return stem if dot and index.isdecimal() else name


def _rank(name: str) -> tuple[bool, int]:
    """Fewest dots first; the classes of pickled objects last."""
    return name.endswith("<class>"), name.count(".")
