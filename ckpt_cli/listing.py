"""The tensors of several files as `inspect tensors` tells of them: what they share, totals, records for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_cli.sharing import Sharing, sharing
from ckpt_cli.tensor_file import TensorFile, TensorInfo

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
    """A tensor in JSON, with its digest and its statistics where they are asked for.

    What is put together from others has a `form`, and `parts` by name or `pieces` by place.
    """
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
    """What a tensor and a piece of one have in common."""
    return {
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "stride": list(tensor.stride),
        "bytes": tensor.bytes,
        "offset": tensor.file_offset,
        "storage": tensor.storage and tensor.storage.name,
    }
