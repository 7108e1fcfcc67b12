"""Which tensors of a file share bytes, as a person reads it. What is written once is `ties`' business."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from ckpt_cli.tensor_file import TensorInfo
from ckpt_cli.views import is_contiguous


class Sharing(NamedTuple):
    """`tied_to` names an earlier tensor that is the same view, `view_of` one whose bytes this one lies within.

    `shared` says that the storage has other users at all.
    """

    tied_to: str | None = None
    view_of: str | None = None
    shared: bool = False

    @property
    def counted(self) -> bool:
        """Whether another name accounts for all its bytes already."""
        return self.tied_to is not None or self.view_of is not None


_ALONE, _SHARED = Sharing(), Sharing(shared=True)


def sharing(tensors: Sequence[TensorInfo]) -> list[Sharing]:
    """What each tensor shares with the others, in their order. Empty tensors share nothing."""
    # By file and name of a storage its first user; by the first of several all of them, which few have.
    first: dict[str, dict[str, int]] = {}
    users: dict[int, list[int]] = {}
    for index, tensor in enumerate(tensors):
        storage = tensor.storage
        if storage and 0 not in tensor.shape:
            one = first.setdefault(storage.file, {}).setdefault(storage.name, index)
            if one != index:
                users.setdefault(one, [one]).append(index)
    found = [_ALONE] * len(tensors)
    for group in users.values():
        _relate(tensors, group, found)
    return found


def _relate(tensors: Sequence[TensorInfo], group: list[int], found: list[Sharing]) -> None:
    """Sorts out the views of one storage, in one pass from its beginning to its end.

    Only a view without gaps can be what others are views of; of those that begin together the widest comes first.
    """
    group.sort(key=lambda index: (*_span(tensors[index]), index))
    alike: dict[tuple[Any, ...], Sharing] = {}
    last: tuple[int, int, bool] | None = None
    hosts: list[tuple[int, int, Sharing]] = []  # each ends further on than those before it
    for index in group:
        tensor, span = tensors[index], _span(tensors[index])
        if span != last:
            last, alike = span, {}
        view = (tensor.dtype, tensor.offset, tensor.shape, tensor.stride, tensor.swapped, tensor.signs)
        if view in alike:
            found[index] = alike[view]
            continue
        alike[view] = Sharing(tied_to=tensor.name, shared=True)
        begin, negated_end, gaps = span
        at = bisect_right(hosts, begin, key=lambda host: host[0])
        if at and -negated_end <= hosts[at - 1][1]:
            found[index] = hosts[at - 1][2]
            continue
        found[index] = _SHARED
        if not gaps:
            hosts.append((begin, -negated_end, Sharing(view_of=tensor.name, shared=True)))


def _span(tensor: TensorInfo) -> tuple[int, int, bool]:
    """By which views are sorted: the byte of the storage where it begins, the one where it ends, negated, and whether
    there are gaps in it."""
    begin = tensor.offset * tensor.itemsize
    length = (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride))) * tensor.itemsize
    return begin, -begin - length, not is_contiguous(tensor._replace(swapped=False, signs=""))
