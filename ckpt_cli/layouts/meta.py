"""Meta's own form of its models: `consolidated.00.pth`, one file a model-parallel rank, with `params.json`.

Mistral publishes the same with `consolidated.safetensors`. `checklist.chk` (md5 sums) and the tokenizer lie beside.
How many ranks there should be stands nowhere but in the largest of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Part, Problem, Role
from ckpt_cli.layouts import PUBLISHED, Folder, missing
from ckpt_cli.layouts._numbered import of_folder

NAME = "meta"
PRECEDENCE = PUBLISHED
REMOVAL_ORDER: tuple[Role, ...] = ("model", "config")

_SHARD = re.compile(r"consolidated\.([0-9]{2})\.pth")
_WHOLE = "consolidated.safetensors"
_PARAMS = "params.json"
_BESIDE: tuple[tuple[str, Role], ...] = (
    ("tokenizer.model", "tokenizer"),
    ("tekken.json", "tokenizer"),
    ("checklist.chk", "other"),
    ("ckpt.sha256", "manifest"),
)


def scan(folder: Folder) -> Iterable[Checkpoint]:
    shards = {int(match[1]) for name in folder.files if (match := _SHARD.fullmatch(name))}
    if shards:
        return [_checkpoint(folder, [f"consolidated.{number:02}.pth" for number in range(max(shards) + 1)])]
    # The name alone says nothing: who merges shards into one calls it so.
    return [_checkpoint(folder, [_WHOLE])] if {_WHOLE, _PARAMS} <= folder.files.keys() else ()


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Nothing: there is only this one."""
    return ()


def _checkpoint(folder: Folder, models: Sequence[str]) -> Checkpoint:
    problems: list[Problem] = []
    names: list[tuple[str, Role]] = [*((name, "model") for name in models), (_PARAMS, "config"), *_BESIDE]
    if len(models) == 1:
        names += [(f"{models[0]}.sha256", "manifest")]
        if models[0] != _WHOLE:
            names += [(f"{models[0].removesuffix('.pth')}.safetensors", "export")]
    parts: list[Part] = []
    for name, role in names:
        if name in folder.files:
            part = folder.part(name, role, problems)
            parts += [part] if part else []
        elif role in ("model", "config"):
            what = "the configuration" if role == "config" else "a shard"
            problems.append(missing(folder, name, what))
    return of_folder(folder, NAME, None, parts, problems)._replace(name="consolidated")
