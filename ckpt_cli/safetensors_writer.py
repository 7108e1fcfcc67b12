"""Items -> safetensors files: one, or shards of a largest size with the index that Hugging Face reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.formats import ByteSource, safetensors
from ckpt_cli.formats._header import MAX_METADATA
from ckpt_cli.items import Item
from ckpt_cli.tensor_file import TensorInfo
from ckpt_cli.ties import Alias, written
from ckpt_cli.writing import Output, item_bytes

_CODES = {dtype: code for code, (dtype, _) in safetensors.DTYPES.items()}
_HALVES = "float4_e2m1fn_x2"


def refusal(name: str, tensor: TensorInfo, dtype: str) -> str | None:
    """Why a tensor that can be read cannot be written here, or None."""
    if dtype not in _CODES:
        return f"safetensors has no {dtype}"
    if dtype == _HALVES and not tensor.shape:
        return "safetensors has no pair of halves without a dimension"
    if name == "__metadata__" or (not name.isprintable() and any(0xD800 <= ord(c) < 0xE000 for c in name)):
        return "safetensors cannot hold its name"
    return None


def single(path: str, items: Sequence[Item], aliases: Sequence[Alias], notes: Mapping[str, str]) -> Output:
    """One file: the header, then the items, those of wide elements first, so that every tensor lies aligned.

    `notes` goes into `__metadata__`; names stand there in the order of the items.
    """
    order = sorted(items, key=lambda item: -(item_bytes(item) // max(1, item.tensor.elements)))
    starts, at = {}, 0
    for item in order:
        starts[item.name] = at
        at += item_bytes(item)
    told = {"format": "pt", **notes}
    if aliases:
        told["ckpt.aliases"] = written(aliases)
    if (said := len(json.dumps(told))) > MAX_METADATA:
        what = f"what is no tensor takes {said} characters as metadata, of at most {MAX_METADATA}"
        raise CkptError(f"{path} cannot hold all of it: {what}")
    header: dict[str, Any] = {"__metadata__": told}
    for item in items:
        shape = list(item.shape)
        if item.dtype == _HALVES and shape:
            shape[-1] *= 2  # the header counts halves
        start = starts[item.name]
        offsets = [start, start + item_bytes(item)]
        header[item.name] = {"dtype": _CODES[item.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > safetensors.MAX_HEADER:
        raise CkptError(f"{path}: its names and metadata are too large for a safetensors header")

    def check(source: ByteSource) -> None:
        found = {(tensor.name, tensor.dtype, tensor.shape) for tensor in safetensors.read(source).tensors}
        if found != {(item.name or "<root>", item.dtype, item.shape) for item in items}:
            raise CkptError("the output does not read back as it was written")

    return Output(path, (len(text).to_bytes(8, "little") + text, *order), check)


def sharded(
    stem: str, items: Sequence[Item], aliases: Sequence[Alias], notes: Mapping[str, str], most: int
) -> list[Output]:
    """`<stem>-00001-of-0000N.safetensors` of `most` bytes of tensors at most, then `<stem>.safetensors.index.json`.

    Filled in order, as huggingface_hub does: a tensor that is larger has a file alone, and what fits into one file
    is `<stem>.safetensors` without an index. The first file carries the notes.
    """
    shards = _shards(items, most)
    if len(shards) == 1:
        return [single(f"{stem}.safetensors", items, aliases, notes)]
    outputs, places = [], {}
    for number, shard in enumerate(shards, 1):
        path = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        names = {item.name for item in shard}
        mine = [alias for alias in aliases if alias.of in names]
        outputs.append(single(path, shard, mine, notes if number == 1 else {}))
        places.update(dict.fromkeys((item.name for item in shard), path.replace("\\", "/").rpartition("/")[2]))
    index = {"metadata": {"total_size": sum(map(item_bytes, items))}, "weight_map": places}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    return [*outputs, literal(f"{stem}.safetensors.index.json", text.encode())]


def of_bytes(path: str, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Output:
    """A file of one tensor whose contiguous little-endian bytes are `data`."""
    entry = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [0, len(data)]}
    text = json.dumps({"__metadata__": {"format": "pt"}, name: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Output(path, (len(text).to_bytes(8, "little") + text, data), lambda source: None)


def literal(path: str, data: bytes) -> Output:
    """A file of these bytes."""
    return Output(path, (data,), lambda source: None)


def _shards(items: Sequence[Item], most: int) -> list[list[Item]]:
    """Each tensor into the file at hand, or into the next; one that is too large never ends the file at hand."""
    shards: list[list[Item]] = []
    current: list[Item] = []
    size = 0
    for item in items:
        length = item_bytes(item)
        if length > most:
            shards.append([item])
            continue
        if size + length > most:
            shards.append(current)
            current, size = [], 0
        current.append(item)
        size += length
    return [*shards, current] if current else shards
