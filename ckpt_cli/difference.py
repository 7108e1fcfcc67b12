"""What differs between two checkpoints or files: metadata by dotted key, tensors by name, and by how much.

It compares what is held, not how: strides, byte order and which names share bytes make no difference, nor do the
things that `comparable` leaves out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_cli.formats import Files
from ckpt_cli.leaves import alike
from ckpt_cli.tensor_file import TensorInfo
from ckpt_cli.tensors import checked_blocks, readable, storages_of

if TYPE_CHECKING:
    from ckpt_cli.measure import Amount, Meter


class MetaDifference(NamedTuple):
    """Leaves by dotted key: (key, value), of changed ones (key, old, new); `equal` counts the others."""

    added: list[tuple[str, Any]]
    removed: list[tuple[str, Any]]
    changed: list[tuple[str, Any, Any]]
    equal: int


class Lone(NamedTuple):
    """A tensor that one side has alone. `tied_to` is another name of the same bytes there, which both sides have."""

    name: str
    tensor: TensorInfo
    tied_to: str | None = None


class Change(NamedTuple):
    """A tensor that both sides have. `what` holds reshaped, recast (dtype or form) or, of the same dtype and shape,
    changed: another byte somewhere. `amount` is None where it was not asked for or there is none."""

    name: str
    what: tuple[str, ...]
    old: TensorInfo
    new: TensorInfo
    amount: Amount | None = None


class TensorDifference(NamedTuple):
    """`not_compared` are tensors of equal dtype and shape whose bytes cannot be had, with the reason."""

    added: list[Lone]
    removed: list[Lone]
    changed: list[Change]
    equal: int
    not_compared: list[tuple[str, str]]


def compare_metadata(a: Mapping[str, Any], b: Mapping[str, Any]) -> MetaDifference:
    """What has to be done to the leaves `a` to have `b`, in the order of the keys there."""
    both = [key for key in a if key in b]
    changed = [(key, a[key], b[key]) for key in both if not alike(a[key], b[key])]
    return MetaDifference(
        [(key, value) for key, value in b.items() if key not in a],
        [(key, value) for key, value in a.items() if key not in b],
        changed,
        len(both) - len(changed),
    )


def compare_tensors(
    a: Mapping[str, TensorInfo],
    b: Mapping[str, TensorInfo],
    values: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> TensorDifference:
    """What differs between tensors by name; with `values` also by how much, which takes torch.

    Bytes are compared as a stream, in a few MiB of memory; those that both sides have from the same place of the
    same file are not read. `advance` is told the bytes of both sides as they are done. Raises Damaged where a record
    that is read does not have the CRC32 that was written with it.
    """
    changed, not_compared = [], []
    with Files() as files:
        run = _Run(files, values, {}, set(), {})
        both = [name for name in a if name in b]
        for name in both:
            what, amount, reason = _change(run, a[name], b[name])
            if what:
                changed.append(Change(name, what, a[name], b[name], amount))
            elif reason:
                not_compared.append((name, reason))
            advance(a[name].bytes + b[name].bytes)
    return TensorDifference(
        _alone(b, a),
        _alone(a, b),
        changed,
        len(both) - len(changed) - len(not_compared),
        not_compared,
    )


def _alone(here: Mapping[str, TensorInfo], there: Mapping[str, TensorInfo]) -> list[Lone]:
    """What is only here; of tied tensors, Hugging Face's files keep one name and record nothing of the other."""
    lone = [(name, tensor) for name, tensor in here.items() if name not in there]
    if not lone:
        return []
    names = {tensor._replace(name=""): name for name, tensor in here.items() if name in there and tensor.storage}
    return [Lone(name, tensor, names.get(tensor._replace(name=""))) for name, tensor in lone]


class _Run(NamedTuple):
    """What one comparison keeps: open files, names of files by inode, storages whose CRC32 was checked, and what
    came of pairs of places, since tied tensors lie in one."""

    files: Files
    values: bool
    inodes: dict[str, str]
    checked: set[tuple[str, int]]
    known: dict[tuple[TensorInfo, TensorInfo], tuple[bool, Amount | None]]


def _change(run: _Run, old: TensorInfo, new: TensorInfo) -> tuple[tuple[str, ...], Amount | None, str | None]:
    """What became of a tensor, by how much, and why its bytes could not be compared if nothing else differs."""
    reshaped, recast = old.shape != new.shape, (old.dtype, _kind(old)) != (new.dtype, _kind(new))
    what = ("reshaped",) * reshaped + ("recast",) * recast
    reason = _unreadable(old) or _unreadable(new)
    if reason or reshaped or (recast and not (run.values and _kind(old) == _kind(new))):
        return what, None, None if what else reason
    places = _place(old, run.inodes), _place(new, run.inodes)
    if places[0] == places[1]:
        return (), None, None
    if places not in run.known:
        run.known[places] = _compare(run, old, new)
    same, amount = run.known[places]
    return what or ("changed",) * (not same), amount, None


def _kind(tensor: TensorInfo) -> str:
    """Its form, as far as that is more than the way its bytes lie."""
    return "strided" if tensor.form in ("chunked", "archived") else tensor.form


def _unreadable(tensor: TensorInfo) -> str | None:
    """Why its bytes cannot be had; a tensor made of others is as readable as these."""
    if tensor.pieces and tensor.form != "chunked":
        return next((why for _, piece in tensor.pieces if (why := _unreadable(piece))), None)
    return readable(tensor)


def _place(tensor: TensorInfo, inodes: dict[str, str]) -> TensorInfo:
    """The tensor without its name, and with one path for all that lead to the same file: equal means equal bytes."""
    storage = tensor.storage
    if storage:
        if storage.file not in inodes:
            with suppress(OSError):  # whoever opens it will say so
                status = os.stat(storage.file)
                inodes[storage.file] = f"{status.st_dev}:{status.st_ino}"
        storage = storage._replace(file=inodes.get(storage.file, storage.file))
    pieces = tuple((key, _place(piece, inodes)) for key, piece in tensor.pieces)
    return tensor._replace(name="", storage=storage, pieces=pieces)


def _compare(run: _Run, old: TensorInfo, new: TensorInfo) -> tuple[bool, Amount | None]:
    """Whether the bytes are the same, and by how much the values differ where that is asked and can be said."""
    if old.pieces and old.form != "chunked":
        inner = dict(new.pieces)
        return list(inner) == [key for key, _ in old.pieces] and all(
            (piece.dtype, piece.shape) == (inner[key].dtype, inner[key].shape)
            and _compare(run._replace(values=False), piece, inner[key])[0]
            for key, piece in old.pieces
        ), None
    meter = _meter(old.dtype, new.dtype) if run.values else None
    # A difference ends the reading, unless there is a CRC32 to be checked at the end.
    to_the_end = meter or any(s.crc32 is not None for side in (old, new) for s in storages_of(run.files, side))
    left, right = (checked_blocks(run.files, side, run.checked) for side in (old, new))
    same = True
    for mine, theirs in paired(left, right, old.itemsize, new.itemsize):
        same = same and equal(mine, theirs)
        if meter:
            meter.add(mine, theirs)
        if not same and not to_the_end:
            break
    return same, meter.amount() if meter else None


def _meter(old: str, new: str) -> Meter | None:
    from ckpt_cli import measure

    return measure.Meter(old, new) if {old, new} <= measure.DTYPES else None


def paired(
    left: Iterator[memoryview], right: Iterator[memoryview], size: int, other: int
) -> Iterator[tuple[memoryview, memoryview]]:
    """Blocks of two streams cut so that those of a pair hold equally many elements, of `size` and `other` bytes.

    Both streams are read to their ends.
    """
    mine = theirs = memoryview(b"")
    while True:
        while not mine and (block := next(left, None)) is not None:
            mine = block
        while not theirs and (block := next(right, None)) is not None:
            theirs = block
        count = min(len(mine) // size, len(theirs) // other)
        if not count:
            return
        yield mine[: count * size], theirs[: count * other]
        mine, theirs = mine[count * size :], theirs[count * other :]


def equal(a: memoryview, b: memoryview) -> bool:
    """a == b at the speed of memcmp, which a bytearray has; two memoryviews are compared item by item."""
    whole = isinstance(a.obj, bytearray) and len(a.obj) == len(a)
    return bool((a.obj if whole else bytearray(a)) == b)
