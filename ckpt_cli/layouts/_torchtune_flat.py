"""torchtune's epochs by file name, as versions 0.1 to 0.4 wrote them into one folder.

`hf_model_0001_0.pt`, `model-00001-of-00003_0.safetensors`, `meta_model_0.pt`, `torchtune_model_0.pt`, `adapter_0.pt`:
the epoch last and from 0. An adapter under peft's names has no epoch and is written over: it is of the newest.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from itertools import islice
from typing import NamedTuple

from ckpt_cli.checkpoint import Checkpoint, Part, Problem
from ckpt_cli.layouts import Folder, missing
from ckpt_cli.layouts._torchtune_recipe import read_recipe
from ckpt_cli.layouts._weights import named_parts

ADAPTERS = ("adapter_model.pt", "adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
# Of shards that are missing, so many are named.
NAMED = 8

_FLAT = re.compile(
    r"(?:(hf_model)_([0-9]{4,9})|(model)-([0-9]{5,9})-of-([0-9]{5,9})|(meta_model|torchtune_model|adapter))"
    r"_(0|[1-9][0-9]{0,8})(\.pt|\.safetensors)"
)


class _Epoch(NamedTuple):
    """The files of one epoch: weights of one kind by shard (0 where there is only one), and the adapter.

    `first` is false where weights of another kind stand for the epoch.
    """

    kind: str
    number: int
    weights: dict[int, str]
    adapter: str | None
    first: bool


def flat_epochs(folder: Folder, layout: str) -> list[Checkpoint]:
    """The epochs that lie side by side in one folder."""
    epochs, shards = _epochs_in(folder)
    if not epochs:
        return []
    numbers = Counter(epoch.number for epoch in epochs)
    adapted = {epoch.number for epoch in epochs if epoch.adapter}
    recipe = read_recipe(folder)
    unknown = recipe is not None and recipe.epoch not in numbers
    paired = None if recipe is None else max(numbers) if unknown else recipe.epoch
    newest_adapter = max(adapted, default=None)
    checkpoints: list[Checkpoint] = []
    for epoch in epochs:
        problems: list[Problem] = []
        last = epoch.adapter is not None and epoch.number == newest_adapter
        parts = _parts(folder, epoch, shards.get(epoch.kind, 0), last, problems)
        state = folder.state(parts, problems)
        resumable: bool | None = None if unknown else False
        if recipe and unknown:
            problems.append(recipe.unpaired())
        if recipe and epoch.number == paired and epoch.first:
            part = recipe.part([])
            parts += [part] if part else []
            resumable = None if unknown else epoch.adapter is not None or not adapted
        several = numbers[epoch.number] > 1
        checkpoints.append(
            Checkpoint(
                layout=layout,
                source=folder.source,
                tag=folder.tag,
                step=epoch.number,
                unit="epoch",
                name=f"{epoch.kind}_{epoch.number}" if several else f"epoch_{epoch.number}",
                dir=folder.path,
                parts=tuple(parts),
                state=state,
                resumable=resumable if state == "complete" else False,
                problems=tuple(problems),
                pinned=".keep" in folder.files or any(part.path.endswith(".keep") for part in parts),
                linked=folder.linked,
                by_name=several,
            )
        )
    return checkpoints


def _epochs_in(folder: Folder) -> tuple[list[_Epoch], dict[str, int]]:
    """The epochs of which files are there, and how many shards the weights of each kind have."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    shards: dict[str, int] = {}
    for name in folder.files:
        match = _FLAT.fullmatch(name)
        if not match or (match[8] == ".safetensors") != bool(match[3]):
            continue
        kind = match[1] or match[3] or match[6]
        shard = int(match[2] or match[4] or 0)
        found.setdefault((kind, int(match[7])), {})[shard] = name
        # What follows "of" is the number of the last shard to be begun, which need not be the highest.
        shards[kind] = max(shards.get(kind, 0), shard, int(match[5] or 0))
    adapters = {number: files[0] for (kind, number), files in found.items() if kind == "adapter"}
    epochs: list[_Epoch] = []
    known: set[int] = set()
    for kind, number in sorted(found):
        if kind != "adapter":
            # The first of an epoch has what does not say by which checkpointer it was saved.
            epochs.append(_Epoch(kind, number, found[kind, number], adapters.pop(number, None), number not in known))
            known.add(number)
    epochs += [_Epoch("adapter", number, {}, name, True) for number, name in adapters.items()]
    return epochs, shards


def _parts(folder: Folder, epoch: _Epoch, shards: int, last: bool, problems: list[Problem]) -> list[Part]:
    """An epoch's files; of its run every epoch has so many shards."""
    files = [epoch.weights[number] for number in sorted(epoch.weights)]
    for number in islice((n for n in range(1, shards + 1) if n not in epoch.weights and epoch.weights), NAMED):
        digits = 4 if epoch.kind == "hf_model" else 5
        name = re.sub(r"(?<=[_-])[0-9]+", f"{number:0{digits}}", files[0], count=1)
        problems.append(missing(folder, name, "a shard"))
    adapters = [epoch.adapter] if epoch.adapter else []
    parts = named_parts(folder, files, "model", problems) + named_parts(folder, adapters, "adapter", problems)
    if last:
        parts += named_parts(folder, ADAPTERS[1:], "adapter", problems)
        parts += named_parts(folder, (ADAPTER_CONFIG,), "config", problems)
    stems = [os.path.splitext(name)[0] for name in (*files, *adapters)]
    parts += named_parts(folder, [f"{name}.sha256" for name in (*files, *adapters)], "manifest", problems)
    if epoch.kind != "model":
        parts += named_parts(folder, [f"{stem}.safetensors" for stem in stems], "export", problems)
    return parts + named_parts(folder, [f"{name}.keep" for name in (*stems, *files, *adapters)], "other", problems)
