"""Which tensors of a file share bytes, as a person reads it. What is written once is `ties`' business."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import TensorInfo
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


_ALONE = Sharing()


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


def _relate(tensors: Sequence[TensorInfo], group: Sequence[int], found: list[Sharing]) -> None:
    """Sorts out the views of one storage, in one pass from its beginning to its end.

    Only a view without gaps can be what others are views of; of those that begin together the widest comes first.
    """
    first_of: dict[tuple[Any, ...], int] = {}
    spans: list[tuple[int, int, bool, int]] = []
    for index in group:
        tensor = tensors[index]
        view = (tensor.dtype, tensor.offset, tensor.shape, tensor.stride, tensor.swapped, tensor.signs)
        same = first_of.setdefault(view, index)
        if same != index:
            found[index] = Sharing(tied_to=tensors[same].name, shared=True)
            continue
        begin = tensor.offset * tensor.itemsize
        length = (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride))) * tensor.itemsize
        gapless = is_contiguous(tensor._replace(swapped=False, signs=""))
        spans.append((begin, -begin - length, not gapless, index))
    hosts: list[tuple[int, int, int]] = []  # each ends further on than those before it
    for begin, negated_end, gaps, index in sorted(spans):
        at = bisect_right(hosts, begin, key=lambda host: host[0])
        _, end, host = hosts[at - 1] if at else (0, 0, index)
        if -negated_end <= end:
            found[index] = Sharing(view_of=tensors[host].name, shared=True)
            continue
        found[index] = Sharing(shared=True)
        if not gaps:
            hosts.append((begin, -negated_end, index))
