"""What a checkpoint or file holds, freed of how it is written: metadata by dotted key, tensors by name.

Left out, because it is only about the form: the `_orig_mod.` of torch.compile in names, and in the `__metadata__` of a
safetensors file its `format`, torch's `DCP_*` and the keys `ckpt.*`. Of those, `ckpt.meta` and `ckpt.values` are the
metadata that a conversion took along, and are unpacked; a tied tensor that was written once is found again under all
its names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.leaves import ARRANGED, all_values, flat, put_all, unused
from ckpt_cli.metadata import read_metadata
from ckpt_cli.origin import unwrapped
from ckpt_cli.tensor_file import TensorFile, TensorInfo
from ckpt_cli.ties import view_of

_OURS = "__metadata__.ckpt."
# What the safetensors library, and torch's distributed checkpoints through it, say of the file itself.
_FORM = ("format", "DCP_VERSION", "DCP_SHARDING_INFO")


def metadata_of(checkpoint: Checkpoint | None, file: str | None, read: Sequence[TensorFile]) -> dict[str, Any]:
    """All leaves by dotted key: of the checkpoint's meta and config files, and of what lies beside the tensors.

    `file` is the one that was named, if one was: where it is no model (an optimizer shard), or brings metadata of
    its own, the checkpoint's files do not speak for it. Raises Damaged for a meta file that is none.
    """
    leaves: dict[str, Any] = {}
    role = next((p.role for p in checkpoint.parts if p.path == file), None) if checkpoint else None
    own = any(_OURS + "meta" in one.values for one in read)
    if checkpoint and not own and (file is None or role in ("model", "export", "index", "meta", "config")):
        for part in checkpoint.having("meta", "config"):
            put_all(leaves, flat(read_metadata(checkpoint._replace(parts=(part,)), None)))
    for one in read:
        put_all(leaves, _own_values(one))
    return leaves


def tensors_of(read: Sequence[TensorFile]) -> dict[str, TensorInfo]:
    """The tensors of several files under one set of names, in their order, those that stand for others included."""
    found: dict[str, TensorInfo] = {}
    for one in read:
        for tensor in (*one.tensors, *_tied(one)):
            raw = tensor.name
            names = (unwrapped(raw), raw, f"{os.path.basename(one.path)}:{raw}")
            name = next((name for name in names if name not in found), None) or unused(names[-1], found)
            found[name] = tensor
    return found


def _own_values(file: TensorFile) -> dict[str, Any]:
    """What a file holds beside its tensors, without what only says how it is written."""
    form = {f"__metadata__.{name}" for name in (*_FORM, *(tensor.name for tensor in _tied(file)))}
    leaves: dict[str, Any] = {}
    for name, value in all_values(file, ARRANGED).items():
        if name in (_OURS + "meta", _OURS + "values"):
            try:
                put_all(leaves, flat(json.loads(value)))
            except (ValueError, RecursionError):
                leaves[name] = value
        elif name not in form and not name.startswith(_OURS):
            put_all(leaves, flat(value, name))
    return leaves


def _tied(file: TensorFile) -> list[TensorInfo]:
    """Tensors of a safetensors file that only its `__metadata__` names, as views of those it holds.

    `ckpt.aliases` is what our conversion writes; safetensors' own save_model writes NAME: NAME OF THE SAME. What
    does not fit the file is passed over.
    """
    here = {tensor.name: tensor for tensor in file.tensors if tensor.storage and tensor.form == "strided"}
    try:
        aliases = json.loads(file.values.get(_OURS + "aliases", "{}"))
    except (ValueError, RecursionError):
        aliases = {}
    found = []
    for name, alias in aliases.items() if isinstance(aliases, dict) else ():
        if name not in here and isinstance(alias, dict):
            host = here.get(str(alias.get("of")))
            view = view_of(name, alias, host) if host else None
            found += [view] if view else []
    for key, of in file.values.items():
        name = key.removeprefix("__metadata__.")
        if name != key and name != "format" and name not in here and isinstance(of, str) and of in here:
            found.append(here[of]._replace(name=name))
    return found
