"""LitGPT's checkpoints: `step-00001000/lit_model.pth` with `model_config.yaml`, and `final/` when training has ended.

One file holds the model, and while pretraining also the optimizer; which, no name tells. `lit_model.pth.lora` is an
adapter of it. A folder as `litgpt download` makes it has the same names, beside those of Hugging Face.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Problem, Role
from ckpt_cli.layouts import TRAINER, Folder
from ckpt_cli.layouts._grouped import unnumbered
from ckpt_cli.layouts._numbered import Number, of_folder
from ckpt_cli.layouts._weights import named_parts

NAME = "litgpt"
PRECEDENCE = TRAINER
REMOVAL_ORDER: tuple[Role, ...] = ("model", "adapter", "config")

_MODEL, _ADAPTERS = "lit_model.pth", ("lit_model.pth.lora", "lit_model.pth.adapter", "lit_model.pth.adapter_v2")
_STEP = re.compile(r"step-([0-9]{1,18})")
_NAMED: tuple[tuple[Role, tuple[str, ...]], ...] = (
    ("model", (_MODEL,)),
    ("adapter", _ADAPTERS),
    ("config", ("lit_config.json",)),
    ("tokenizer", ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")),
    ("other", ("model_config.yaml", "hyperparameters.yaml", "prompt_style.json")),
    ("manifest", ("ckpt.sha256", f"{_MODEL}.sha256")),
    ("export", ("lit_model.safetensors",)),
)


def scan(folder: Folder) -> Iterable[Checkpoint]:
    return [_checkpoint(folder)] if any(name in folder.files for name in (_MODEL, *_ADAPTERS)) else ()


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Those of its run that have no number."""
    return unnumbered(checkpoint, run)


def _checkpoint(folder: Folder) -> Checkpoint:
    problems: list[Problem] = []
    parts = [part for role, names in _NAMED for part in named_parts(folder, names, role, problems)]
    step = _STEP.fullmatch(folder.name)
    found = of_folder(folder, NAME, Number("step", int(step[1])) if step else None, parts, problems)
    found = found._replace(resumable=None if found.state == "complete" else False)
    # One of the run that its steps are of, also where none of these is left.
    if folder.name == "final":
        return found._replace(tag=folder.tag_above, by_name=True, home=os.path.dirname(folder.path))
    return found if step else found._replace(name="lit_model")
