"""torchtune's `recipe_state.pt`: which checkpoint of a run it belongs to.

To 0.6 one file serves the whole run: beside the checkpoints, from 0.5 in `recipe_state/`. It is written over at every
intermediate epoch and not at the last one, and its name says nothing. `epochs_run` in it is one more than the epoch it
belongs to: after a finished run of three epochs it is 2, and training resumes from epoch 1. Since 2026 each folder has
its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

from ckpt_cli.checkpoint import Checkpoint, Part, Problem
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import Folder

RECIPE, RECIPE_FOLDER = "recipe_state.pt", "recipe_state"
UNPAIRED = "unpaired-recipe"
STEP = re.compile(r"(?:(?:dist_)?(epoch)|(step))_(0|[1-9][0-9]{0,17})")
# How many siblings are looked into for a mark of torchtune, where nothing else in the run is one.
_LOOKED_INTO = 8


class Recipe(NamedTuple):
    """A recipe state that the checkpoints of a run share, and the folder it lies in.

    `epoch` and `step` are those it was saved at as far as it says; `fault` is why it could not be read.
    """

    folder: Folder
    epoch: int | None
    step: int | None
    fault: str | None = None

    def part(self, problems: list[Problem]) -> Part | None:
        """As `Folder.part`."""
        return self.folder.part(RECIPE, "recipe", problems)

    def unpaired(self) -> Problem:
        """That it is not known which checkpoint it belongs to, and why."""
        told = f"it is of epoch {self.epoch}, which is not there" if self.epoch is not None else "it names no epoch"
        detail = f"which checkpoint {RECIPE} belongs to is not known: {self.fault or told}"
        return Problem(UNPAIRED, detail, self.folder.files[RECIPE].path)


class Run(NamedTuple):
    """What the folder above says of the step folders in it.

    `paired` is the name of that which the shared recipe belongs to. Where this cannot be told, `newest` has it, so that
    it is looked at and goes with the run.
    """

    recipe: Recipe | None
    paired: str | None
    newest: str | None
    marked: Callable[[], bool]


def read_recipe(folder: Folder) -> Recipe | None:
    """The recipe state that lies in a folder."""
    entry = folder.files.get(RECIPE)
    if entry is None:
        return None
    if folder.read_index is None:
        return Recipe(folder, None, None, "it was not read")
    try:
        values = folder.read_index(entry.path).values
    except CkptError as error:
        return Recipe(folder, None, None, error.message)
    epochs, steps = values.get("epochs_run"), values.get("steps_run")
    return Recipe(folder, epochs - 1 if type(epochs) is int else None, steps if type(steps) is int else None)


_last: list[tuple[Folder, Run]] = []


def run_above(up: Folder) -> Run:
    """What a run's folder says. The last answer is kept: the steps of one run are asked one after another, and a state
    may hold thousands of tensors.
    """
    if not _last or _last[0][0] is not up:
        _last[:] = [(up, _run(up))]
    return _last[0][1]


def _run(up: Folder) -> Run:
    numbers: dict[str, list[int]] = {"epoch": [], "step": []}
    for name in up.folders:
        match = STEP.fullmatch(name)
        if match and not name.startswith("dist_"):
            numbers[match[1] or match[2]].append(int(match[3]))
    marked = cache(partial(_is_marked, up))
    newest = next((f"{unit}_{max(numbers[unit])}" for unit in ("step", "epoch") if numbers[unit]), None)
    recipe = read_recipe(up.below(RECIPE_FOLDER))
    if recipe is None:
        return Run(None, None, newest, marked)
    paired = None
    if recipe.epoch in numbers["epoch"]:
        paired = f"epoch_{recipe.epoch}"
    elif recipe.step in numbers["step"]:
        paired = f"step_{recipe.step}"
    return Run(recipe, paired, newest, marked)


def _is_marked(up: Folder) -> bool:
    """Whether anything in the run's folder says that torchtune wrote it."""
    if RECIPE in up.files or RECIPE_FOLDER in up.folders or "torchtune_config.yaml" in up.files:
        return True
    steps = [name for name in up.folders if STEP.fullmatch(name)]
    if any(name.startswith("dist_") for name in steps):
        return True
    steps.sort(key=lambda name: (len(name), name))
    return any(RECIPE in up.peek(name) for name in steps[: -1 - _LOOKED_INTO : -1])


def keeps_resume(checkpoint: Checkpoint) -> bool:
    """Whether it has the recipe state that its whole run shares."""
    own = os.path.join(checkpoint.dir, RECIPE)
    return any(not checkpoint.home or part.path != own for part in checkpoint.having("recipe"))
