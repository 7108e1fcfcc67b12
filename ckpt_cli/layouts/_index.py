"""Index files of models in several files: `model.safetensors.index.json`, `pytorch_model.bin.index.json`.

{"metadata": {"total_size": bytes}, "weight_map": {tensor name: file name}}, as huggingface_hub and transformers write
it. The names come from a file and are not trusted: none leads out of the index's folder.
"""

from __future__ import annotations

import os
import re

from ckpt_cli.errors import CkptError
from ckpt_cli.small_files import read_json, without_waiting

MAX_INDEX_BYTES = 64 << 20
# The largest published ones have 14 MB. Beyond this only the names of files are looked for, in half of the time and
# without holding it all; whether the rest is JSON is left to who reads the checkpoint.
_LONG = 2 << 20
_BLOCK = 1 << 20
_PLACED = re.compile(rb':[ \t\r\n]{0,9}"([^"\x00-\x1f]{1,255})"')
_LONGEST = 300
_MAX_SHARDS = 100_000
# BASE.index.json; with a variant, BASE.index.fp16.json. What BASE ends in, the shards end in too.
INDEX_NAME = re.compile(r"(.+\.(safetensors|bin))\.index(?:\.([A-Za-z0-9_-]+))?\.json")


def shard_names(path: str) -> tuple[str, ...]:
    """The files that an index places tensors in, each once, in order of name; they may not be there.

    Raises CkptError for what is no index: too large, not JSON, without a map of names to names, or with a file name
    that is none (empty, `..`, with a drive or a separator) or ends otherwise than the index says.
    """
    name = os.path.basename(path)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise CkptError(f"{name} cannot be read: {error.strerror}", path=path, kind="unreadable-part") from error
    if size > MAX_INDEX_BYTES:
        large = f"{name} is larger than {MAX_INDEX_BYTES >> 20} MiB, too large for an index"
        raise CkptError(large, path=path, kind="too-costly")
    match = INDEX_NAME.fullmatch(name)
    suffix = f".{match[2]}" if match else None
    shards = _looked_for(path, suffix) if suffix and size > _LONG else _read(path)
    for shard in shards:
        if not shard or shard in (".", "..") or re.search(r"[/\\\0]|^[A-Za-z]:", shard):
            raise CkptError(f"{name} places a tensor in {shard!a}, which is no plain file name")
        if suffix and not shard.endswith(suffix):
            raise CkptError(f"{name} places a tensor in {shard!a}, which is no {suffix} file")
    return tuple(sorted(shards))


def _read(path: str) -> set[str]:
    """The values of the map in an index, as they stand there."""
    name, index = os.path.basename(path), read_json(path)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise CkptError(f"{name} is no index: it holds no weight_map")
    if not all(isinstance(shard, str) for shard in placed.values()):
        raise CkptError(f"{name} places a tensor in something that is no file name")
    return set(placed.values())


def _looked_for(path: str, suffix: str) -> set[str]:
    """The texts in a long index that stand behind a colon and end as its files do."""
    name, ending = os.path.basename(path), suffix.encode()
    found: set[bytes] = set()
    before = data = b""
    mapped = False
    try:
        with open(path, "rb", buffering=0, opener=without_waiting) as file:
            while data := file.read(_BLOCK):
                data = before + data
                before = data[-_LONGEST:]
                # What stands before the map may name files too.
                begin = 0 if mapped else data.find(b'"weight_map"')
                if begin < 0:
                    continue
                mapped = True
                found.update(text for text in set(_PLACED.findall(data, begin)) if text.endswith(ending))
                if len(found) > _MAX_SHARDS:
                    raise CkptError(f"{name} places tensors in more than {_MAX_SHARDS} files")
    except OSError as error:
        raise CkptError(f"{name} cannot be read: {error.strerror}", path=path, kind="unreadable-part") from error
    if not before.rstrip().endswith(b"}"):
        raise CkptError(f"{name} is not JSON: it does not end as an index does")
    if not mapped or not found:
        raise CkptError(f"{name} is no index: it holds no weight_map")
    return {text.decode(errors="surrogateescape") for text in found}
