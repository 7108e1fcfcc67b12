"""Index files of models in several files: `model.safetensors.index.json`, `pytorch_model.bin.index.json`.

{"metadata": {"total_size": bytes}, "weight_map": {tensor name: file name}}, as huggingface_hub and transformers write
it. The names come from a file and are not trusted: none leads out of the index's folder.
"""

from __future__ import annotations

import os
import re

from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import read_json

MAX_INDEX_BYTES = 10_000_000
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
        large = f"{name} is larger than {MAX_INDEX_BYTES // 10**6} MB, too large for an index"
        raise CkptError(large, path=path, kind="too-costly")
    index = read_json(path)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise CkptError(f"{name} is no index: it holds no weight_map")
    shards = set()
    for shard in placed.values():
        if not isinstance(shard, str):
            raise CkptError(f"{name} places a tensor in something that is no file name")
        shards.add(shard)
    match = INDEX_NAME.fullmatch(name)
    suffix = f".{match[2]}" if match else None
    for shard in shards:
        if not shard or shard in (".", "..") or re.search(r"[/\\\0]|^[A-Za-z]:", shard):
            raise CkptError(f"{name} places a tensor in {shard!a}, which is no plain file name")
        if suffix and not shard.endswith(suffix):
            raise CkptError(f"{name} places a tensor in {shard!a}, which is no {suffix} file")
    return tuple(sorted(shards))
