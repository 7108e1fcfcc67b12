"""Tensors and values as `inspect tensors` tells of them: totals, records for JSON, short texts for people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_cli.checkpoint import TensorFile, TensorInfo
from ckpt_cli.sharing import Sharing, sharing

if TYPE_CHECKING:
    from ckpt_cli.stats import Reading


class Listed(NamedTuple):
    """A tensor of a file, what it shares with the others there, and what its bytes told where they were read."""

    file: TensorFile
    tensor: TensorInfo
    sharing: Sharing
    reading: Reading | None = None


def listing(files: Sequence[TensorFile]) -> list[Listed]:
    """Every tensor of the files, in their order."""
    return [
        Listed(file, tensor, shares)
        for file in files
        for tensor, shares in zip(file.tensors, sharing(file.tensors))
    ]  # fmt: skip


def among_themselves(listed: Sequence[Listed]) -> list[Listed]:
    """The same with what they share with each other only, so that the first of them to name some bytes counts them."""
    shares = sharing([item.tensor for item in listed])
    return [item._replace(sharing=new) for item, new in zip(listed, shares)]


def totals_of(listed: Sequence[Listed]) -> dict[str, int]:
    """Tensors by name; parameters and bytes without those of tensors that lie within another."""
    counted = [item.tensor for item in listed if not item.sharing.counted]
    return {
        "tensors": len(listed),
        "parameters": sum(tensor.elements for tensor in counted),
        "bytes": sum(tensor.bytes for tensor in counted),
    }


def record_of(item: Listed, hashes: bool, stats: bool) -> dict[str, Any]:
    """A tensor in JSON. What is put together from others has a `form`, and `parts` by name or `pieces` by place."""
    tensor, reading = item.tensor, item.reading
    record = {"name": tensor.name, **_view_record(tensor), "file": item.file.path}
    record["tied_to"] = item.sharing.tied_to
    record["view_of"] = item.sharing.view_of
    if tensor.form != "strided":
        record["form"] = tensor.form
    if tensor.form in ("chunked", "slice"):
        record["pieces"] = [
            {"offsets": list(at), "shape": list(piece.shape), "file": piece.storage and piece.storage.file}
            for at, piece in tensor.pieces
        ]
    elif tensor.pieces:
        digests = reading.parts if reading else {}
        record["parts"] = {
            str(at): _view_record(piece) | ({"sha256": digests.get(str(at))} if hashes else {})
            for at, piece in tensor.pieces
        }
    if stats:
        record["stats"] = reading and reading.stats and reading.stats._asdict()
    if hashes:
        record["sha256"] = reading and reading.sha256
    return record


def _view_record(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "stride": list(tensor.stride),
        "bytes": tensor.bytes,
        "offset": tensor.file_offset,
        "storage": tensor.storage and tensor.storage.name,
    }


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def storage_text(item: Listed) -> str:
    """Where the bytes of a tensor are: its storage, the tensor it shares them with, or the pieces it is made of."""
    tensor = item.tensor
    if tensor.form == "chunked":
        files = len({piece.storage.file for _, piece in tensor.pieces if piece.storage})
        return f"{_count(len(tensor.pieces), 'piece')} in {_count(files, 'file')}"
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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
    return json.dumps(value, ensure_ascii=False)


def short_values(values: Mapping[str, Any], most: int, width: int) -> tuple[list[tuple[str, str]], int]:
    """The first of the values, those with the fewest dots before others, a list of many as one; and how many are left.

    Texts are cut to `width` characters.
    """
    lists: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        stem, dot, index = name.rpartition(".")
        lists.setdefault(stem if dot and index.isdecimal() else name, {})[name] = value
    rows: list[tuple[str, str]] = []
    left = 0
    for stem, members in sorted(lists.items(), key=_rank):
        if len(rows) == most:
            left += len(members)
            continue
        if len(members) == 1:
            name, shown = next((name, value_text(value)) for name, value in members.items())
        else:
            # No more of a long list than is shown.
            begin = [value_text(value) for value, _ in zip(members.values(), range(width))]
            name, shown = stem, f"{len(members)} values: {', '.join(begin)}"
        rows.append((name, shown if len(shown) <= width else shown[: width - 3] + "..."))
    return rows, left


def _rank(item: tuple[str, Any]) -> tuple[bool, int]:
    """Fewest dots first; the classes of pickled objects last."""
    return item[0].endswith("<class>"), item[0].count(".")
