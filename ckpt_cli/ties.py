"""Tensors that share bytes: which are written, and which are views of one that is."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.items import Item
from ckpt_cli.shapes import MAX_BYTES, are_sizes, contiguous_stride
from ckpt_cli.tensor_file import TensorInfo
from ckpt_cli.views import is_contiguous


class Alias(NamedTuple):
    """A name that shares the bytes of another; `offset` counts elements from where that one begins."""

    name: str
    of: str
    tensor: TensorInfo
    offset: int


def untie(
    named: Sequence[tuple[str, TensorInfo]],
) -> tuple[list[tuple[str, TensorInfo]], list[Alias], list[str]]:
    """What is written, what is an alias of something written, and what is shared but has to be written twice."""
    by_storage: dict[tuple[str, str], list[tuple[str, TensorInfo]]] = {}
    for name, tensor in named:
        if tensor.storage and tensor.bytes:
            by_storage.setdefault((tensor.storage.file, tensor.storage.name), []).append((name, tensor))
    aliases: dict[str, Alias] = {}
    notes: list[str] = []
    for group in by_storage.values():
        if len(group) > 1:
            _untie(group, aliases, notes)
    kept = [(name, tensor) for name, tensor in named if name not in aliases]
    return kept, [aliases[name] for name, _ in named if name in aliases], notes


def untie_equals(items: Sequence[Item]) -> tuple[list[Item], list[Alias]]:
    """What is written of items, and those that are the same view of the same bytes as one that is."""
    first: dict[tuple[Any, ...], Item] = {}
    kept, aliases = [], []
    for item in items:
        host = first.setdefault((item.tensor._replace(name=""), item.shape, item.dtype), item)
        tensor = item.tensor
        if host is item or not (tensor.storage or tensor.pieces) or not tensor.bytes:
            kept.append(item)
            continue
        stride, size = contiguous_stride(item.shape), ITEMSIZE[item.dtype]
        view = TensorInfo(item.name, item.dtype, item.shape, stride, 0, size, tensor.storage)
        aliases.append(Alias(item.name, host.name, view, 0))
    return kept, aliases


def written(aliases: Sequence[Alias]) -> str:
    """The aliases as JSON, by name, for `recorded` to read."""
    return json.dumps(
        {
            a.name: {"of": a.of, "dtype": a.tensor.dtype, "shape": a.tensor.shape, "stride": a.tensor.stride,
                     "offset": a.offset}
            for a in aliases
        }
    )  # fmt: skip


def recorded(path: str, text: str, tensors: Mapping[str, TensorInfo]) -> list[Alias]:
    """The aliases that `written` made, checked against the tensors they are of. Raises CkptError where one does not
    fit."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise CkptError(f"{path}: its ckpt.aliases is no JSON object")
    found = []
    for name, entry in told.items():
        of = entry.get("of") if isinstance(entry, dict) else None
        host = tensors.get(of) if isinstance(of, str) else None
        view = view_of(name, entry, host) if host else None
        if host is None or view is None or name in tensors:
            raise CkptError(f"{path}: its ckpt.aliases has an entry {name!a} that does not fit its tensors")
        found.append(Alias(name, host.name, view, view.offset))
    return found


def view_of(name: str, entry: Mapping[str, Any], host: TensorInfo) -> TensorInfo | None:
    """The view of `host` that an entry stands for which `written` made; None for one that is none, or reaches beyond
    its host."""
    told: Any = [entry.get(key) for key in ("dtype", "shape", "stride", "offset")]
    dtype, shape, stride, at = told
    if not isinstance(dtype, str) or dtype not in ITEMSIZE or not are_sizes([at]):
        return None
    if not are_sizes(shape) or not are_sizes(stride) or len(shape) != len(stride) or math.prod(shape) > MAX_BYTES:
        return None
    size = ITEMSIZE[dtype]
    reach = at + 1 + sum((n - 1) * step for n, step in zip(shape, stride))
    if 0 not in shape and reach * size > host.bytes:
        return None
    return TensorInfo(name, dtype, tuple(shape), tuple(stride), at, size, host.storage)


def _untie(group: Sequence[tuple[str, TensorInfo]], aliases: dict[str, Alias], notes: list[str]) -> None:
    """Sorts out the views of one storage, in one pass from its beginning to its end.

    A contiguous view can stand for all within it: of those that begin together the widest, of equals the first
    in the file. Any other is written in another order than it lies in, so it can stand only for its equals.
    """
    hosts: list[tuple[int, int, str]] = []  # first and last byte; each ends further on than those before it
    strided: dict[tuple[Any, ...], str] = {}
    reach = 0
    for name, tensor in sorted(group, key=lambda item: (not is_contiguous(item[1]), _span(item[1])[0], -item[1].bytes)):
        first, last = _span(tensor)
        at = bisect_right(hosts, first, key=lambda host: host[0])
        begin, end, host = hosts[at - 1] if at else (0, 0, "")
        if last <= end and (first - begin) % tensor.itemsize == 0 and not (tensor.swapped or tensor.signs):
            aliases[name] = Alias(name, host, tensor, (first - begin) // tensor.itemsize)
            continue
        view = (tensor.dtype, tensor.offset, tensor.shape, tensor.stride, tensor.signs)
        if view in strided:
            stride = contiguous_stride(tensor.shape)
            aliases[name] = Alias(name, strided[view], tensor._replace(stride=stride), 0)
            continue
        if first < end or first < reach or (at < len(hosts) and hosts[at][0] < last):
            notes.append(f"{name} shares some bytes with another tensor; they are written twice")
        if is_contiguous(tensor):
            hosts.append((first, last, name))
        else:
            strided[view] = name
            reach = max(reach, last)


def _span(tensor: TensorInfo) -> tuple[int, int]:
    """First and last byte of a view within its storage, the last excluded."""
    first = tensor.offset * tensor.itemsize
    return first, first + (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride))) * tensor.itemsize
