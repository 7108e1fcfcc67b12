"""Lightning's ModelCheckpoint: `epoch=3-step=16-val_loss=0.66.ckpt`, `last.ckpt`, `last-v1.ckpt`.

Step and metrics are taken from the name, which a user may choose: names without `epoch=` or `step=` say nothing and
are not claimed. A metric with a slash in its name (`val/loss`) makes a folder: `epoch=3-step=16-val/loss=0.66.ckpt`.
A file holds all that a resumed run needs, unless it was saved with the weights alone, which no name tells.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from ckpt_cli.checkpoint import Checkpoint, Role
from ckpt_cli.layouts import TRAINER, Folder
from ckpt_cli.layouts._grouped import unnumbered
from ckpt_cli.layouts._single import one_file

NAME = "lightning"
PRECEDENCE = TRAINER
REMOVAL_ORDER: tuple[Role, ...] = ("model",)

_SUFFIX = ".ckpt"
_LAST = re.compile(r"last(?:-v[0-9]+)?")
_VERSION = re.compile(r"-v[0-9]+\Z")
_PAIR = re.compile(r"([A-Za-z][A-Za-z0-9_./ ]*)=(-?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)(?=[-_ ,.]|\Z)")
_COUNTER = re.compile(r"(?:\A|[^A-Za-z0-9])(epoch|step|global_step)=([0-9]{1,300})(?=[-_ ,.]|\Z)")


def scan(folder: Folder) -> Iterable[Checkpoint]:
    stems = [name.removesuffix(_SUFFIX) for name in folder.files if name.endswith(_SUFFIX)]
    if not stems:
        return ()
    above = folder.name + "/" if _is_half_a_name(folder.name) else ""
    lasts = [stem for stem in stems if _LAST.fullmatch(stem)]
    # What is cut off goes on with the metric's value: other files in such a folder are not named by it.
    names = {stem: (above if "=" in stem else "") + stem for stem in stems if stem not in lasts}
    named = [stem for stem, name in names.items() if _COUNTER.search(name)]
    several = len(named) + len(lasts) > 1 or any(_is_half_a_name(name) for name in folder.folders)
    found = [_checkpoint(folder, names[stem].removesuffix(stem), stem) for stem in named]
    return found + [one_file(folder, NAME, stem + _SUFFIX, None, None)._replace(by_name=several) for stem in lasts]


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """The `last` ones: the trainer writes them over itself, and their step, which no name tells, may be the newest."""
    return unnumbered(checkpoint, run)


def _is_half_a_name(name: str) -> bool:
    """Whether a folder is what a slash in the name of a metric has cut off: counters, then a word without a value."""
    return bool(_COUNTER.search(name)) and "=" not in name.rpartition("-")[2] and not name.endswith(_SUFFIX)


def _checkpoint(folder: Folder, above: str, stem: str) -> Checkpoint:
    name = above + stem
    counters = {match[1]: int(match[2]) for match in _COUNTER.finditer(name)}
    step = counters.get("step", counters.get("global_step"))
    unit: Literal["step", "epoch"] = "epoch" if step is None else "step"
    # A second file of the same name is told apart by a version, which is no part of the last value.
    values = {key.lstrip("_-. "): float(value) for key, value in _PAIR.findall(_VERSION.sub("", name))}
    metrics = tuple(
        (key, value)
        for key, value in values.items()
        if key not in ("epoch", "step", "global_step") and math.isfinite(value)
    )
    step = counters["epoch"] if step is None else step
    found = one_file(folder, NAME, stem + _SUFFIX, step, unit, metrics=metrics)
    if not above:
        return found
    return found._replace(name=name, tag=folder.tag_above, home=os.path.dirname(folder.path))
