"""What goes along with converted tensors: which bytes they were made of, and what the checkpoint says of itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.errors import CkptError
from ckpt_cli.small_files import read_json
from ckpt_cli.tensor_file import TensorFile

# The texts of a safetensors header that hold a small file word for word.
META = "ckpt.meta"
CONFIGS = {"config.json": "ckpt.config", "params.json": "ckpt.params", "adapter_config.json": "ckpt.adapter"}


def fingerprint(files: Iterable[TensorFile]) -> str:
    """Which bytes a conversion was made of, as far as headers tell: places and recorded CRC32s; of files that have
    none, their sizes and times too."""
    state = hashlib.sha256()
    for file in files:
        for tensor in file.tensors:
            state.update(repr((tensor.name, tensor.dtype, tensor.shape, tensor.stride, tensor.offset)).encode())
        bare = set()
        for storage in file.storages:
            state.update(repr((storage.offset, storage.bytes, storage.crc32)).encode())
            if storage.crc32 is None:
                bare.add(storage.file)
        for path in sorted(bare):
            status = os.stat(path)
            state.update(repr((status.st_size, status.st_mtime_ns)).encode())
    return state.hexdigest()[:32]


def metadata_of(checkpoint: Checkpoint | None, paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What goes along of the checkpoint with its model or adapter: its reference; its meta file and configuration word
    for word, if they are whole."""
    parts = checkpoint.having("model", "index", "adapter") if checkpoint else ()
    if checkpoint is None or not {part.path for part in parts} & set(paths):
        return {}, []
    metadata, problems = {"ckpt.ref": checkpoint.ref}, []
    for part in checkpoint.having("meta", "config"):
        key = META if part.role == "meta" else CONFIGS.get(os.path.basename(part.path))
        if key is None:
            continue
        try:
            metadata[key] = _read_word_for_word(part.path)
        except CkptError as error:
            problems.append(f"the {'metadata' if key == META else 'configuration'} does not go along: {error.message}")
    return metadata, problems


def _read_word_for_word(path: str) -> str:
    """A JSON file as text, in whatever encoding JSON allows; raises CkptError where it is no JSON."""
    read_json(path)
    with open(path, "rb") as file:
        data = file.read()
    return data.decode(json.detect_encoding(data), "replace")
