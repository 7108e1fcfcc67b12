"""accelerate's `save_state`: a folder a save, with a model, an optimizer, and a state of random numbers a process.

`checkpoint_0`, numbered by the saves, or whatever a script calls it: `step_500`, `epoch_2`, `best`. In it
`model.safetensors` (`pytorch_model.bin` before 0.24), `model_1.safetensors` of a second model, `optimizer.bin`,
`scheduler.bin`, `sampler.bin`, `scaler.pt`, `random_states_0.pkl`, `custom_checkpoint_0.pkl`; with DeepSpeed or FSDP
folders of their own. What is not written by it alone, such as the Trainer's steps, is `huggingface`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Problem, Role
from ckpt_cli.layouts import TRAINER, Folder, missing
from ckpt_cli.layouts._components import folders_with_models
from ckpt_cli.layouts._grouped import unnumbered
from ckpt_cli.layouts._numbered import number_in, of_folder
from ckpt_cli.layouts._sharded_states import RANDOM, sharded_parts
from ckpt_cli.layouts._weights import EXPORT, named_parts, parts_of, weights_in

NAME = "accelerate"
PRECEDENCE = TRAINER
# load_state reads the models first.
REMOVAL_ORDER: tuple[Role, ...] = ("model", "index", "adapter", "optimizer", "config")

_PROCESS = re.compile(r"random_states_([0-9]{1,6})\.pkl")
_COUNTED = re.compile(r"checkpoint_[0-9]+")
_TRAINER = re.compile(r"checkpoint-[0-9]+")
_TRAINER_FILES = frozenset({"trainer_state.json", "training_args.bin"})
# Those of a second model, and of what belongs to it, are counted from 1; the first has no number.
_MODEL = re.compile(r"(?:model_[0-9]{1,4}\.safetensors|pytorch_model_[0-9]{1,4}\.bin)")
_OPTIMIZER = re.compile(r"optimizer(?:_[0-9]{1,4})?\.bin")
_OTHER = re.compile(
    r"scheduler(?:_[0-9]{1,4})?\.bin|(?:sampler|dl_state_dict)(?:_[0-9]{1,4})?\.bin|scaler\.pt|latest|zero_to_fp32\.py|"
    r"custom_checkpoint_[0-9]{1,4}\.pkl"
)
_ADAPTERS = (
    "adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin",
)  # fmt: skip
_CONFIGS = ("config.json", "adapter_config.json", "generation_config.json")
_DEEPSPEED = re.compile(r"pytorch_model(?:_[0-9]{1,4})?")


def counts(directory: str) -> bool:
    """In `checkpoints/`, whose folders it numbers itself, `save_state` and `load_state` look at every name."""
    if os.path.basename(directory) != "checkpoints":
        return False
    try:
        with os.scandir(directory) as entries:
            return any(_COUNTED.fullmatch(entry.name) and entry.is_dir() for entry in entries)
    except OSError:
        return False


def scan(folder: Folder) -> Iterable[Checkpoint]:
    if _TRAINER.fullmatch(folder.name) or _TRAINER_FILES & folder.files.keys():
        return ()
    return [_checkpoint(folder)] if any(_PROCESS.fullmatch(name) for name in folder.files) else ()


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """Those that have no number: nothing says whether a step replaces them."""
    return unnumbered(checkpoint, run)


def _checkpoint(folder: Folder) -> Checkpoint:
    problems: list[Problem] = []
    files = folder.files
    weights = weights_in(files)
    parts = parts_of(folder, weights, problems)
    parts += named_parts(folder, sorted(name for name in files if _MODEL.fullmatch(name)), "model", problems)
    parts += folders_with_models(folder, problems)
    parts += named_parts(folder, _ADAPTERS, "adapter", problems)
    parts += named_parts(folder, _CONFIGS, "config", problems)
    parts += named_parts(folder, sorted(name for name in files if _OPTIMIZER.fullmatch(name)), "optimizer", problems)
    randoms = sorted(name for name in files if RANDOM.fullmatch(name))
    ranks, sharded = sharded_parts(folder, _DEEPSPEED, randoms, parts, problems)
    if not sharded and not any(part.role in ("model", "adapter") for part in parts):
        problems.append(missing(folder, "model.safetensors", "the model file"))
    present = {int(match[1]) for name in randoms if (match := _PROCESS.fullmatch(name))}
    lost = [rank for rank in range(max(present)) if rank not in present]
    if lost:
        problems.append(missing(folder, f"random_states_{lost[0]}.pkl", "a state of random numbers"))
    optimizer = any(part.role == "optimizer" for part in parts)
    beside = [*randoms, *sorted(name for name in files if _OTHER.fullmatch(name)), *folder.cut_off]
    parts += named_parts(folder, beside, "other", problems)
    parts += named_parts(folder, ("ckpt.sha256",), "manifest", problems)
    if any(form.single == "pytorch_model.bin" for form in weights):
        parts += named_parts(folder, (EXPORT,), "export", problems)
    found = of_folder(folder, NAME, number_in(folder.name), parts, problems)
    return found._replace(resumable=optimizer and found.state == "complete", ranks=ranks)
