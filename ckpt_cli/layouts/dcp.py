"""Distributed checkpoints: a folder a step, with `.metadata` as the index and `__<rank>_<n>.distcp` as the data.

Also what torch's Hugging Face writer leaves before consolidation: `shard-00001-model-00001-of-00002.safetensors`, a
shard number a rank, without an index. The step is taken from the folder's own name (`step_100`, `dist_epoch_2`), and
the folder above is then the run. The index is written last, as `.metadata.tmp`, and renamed: without it the save was
cut off. It does not know what is a model in a data file and what an optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Role
from ckpt_cli.layouts import CONTAINED, Folder
from ckpt_cli.layouts._dcp import Saved, saved_in
from ckpt_cli.layouts._numbered import number_in, of_folder

NAME = "dcp"
PRECEDENCE = CONTAINED
# torch finds a checkpoint by its index alone, so that goes first.
REMOVAL_ORDER: tuple[Role, ...] = ("index", "model")


def scan(folder: Folder) -> Iterable[Checkpoint]:
    saved = saved_in(folder)
    return [_checkpoint(folder, saved)] if saved else ()


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Nothing: every folder stands alone."""
    return ()


def _checkpoint(folder: Folder, saved: Saved) -> Checkpoint:
    number = number_in(folder.name)
    manifest = folder.part("ckpt.sha256", "manifest", []) if "ckpt.sha256" in folder.files else None
    parts = (*saved.parts, manifest) if manifest else saved.parts
    found = of_folder(folder, NAME, number, parts, saved.problems)
    return found._replace(
        resumable=saved.resumable if found.state == "complete" else False,
        home=found.home if folder.up else "",
    )
