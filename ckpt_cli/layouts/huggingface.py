"""Hugging Face: the Trainer's `checkpoint-500`, and folders as models are published in.

Both hold `config.json` and the weights (`model.safetensors`, shards and their index, an adapter of peft). Beside them
the Trainer writes its state, optimizer and scheduler; with DeepSpeed or sharded FSDP these lie in folders below
(`global_step500`, `pytorch_model_fsdp_0`). The folder above a step is the run, and the model that was saved there when
training ended is one of it, without a number. A published folder whose name is that of a step (`epoch_3`, somebody's
own `save_pretrained`) is one of the run above it. After transformers 4.0 to 5.23, accelerate 1.x and peft 0.x.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Part, Problem, Ranks, Role
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import PUBLISHED, Folder, finished_name, missing, not_read
from ckpt_cli.layouts._components import MODULES, PIPELINE, component_parts, folders_with_models, is_component
from ckpt_cli.layouts._grouped import at_step, grouped, unnumbered
from ckpt_cli.layouts._numbered import Number, number_in, of_folder
from ckpt_cli.layouts._sharded_states import FSDP, RANDOM, sharded_parts
from ckpt_cli.layouts._trainer_state import best_step, metrics_of, read_state
from ckpt_cli.layouts._weights import EXPORT, Weights, named_parts, parts_of, weights_in
from ckpt_cli.small_files import MAX_JSON_BYTES, read_json

NAME = "huggingface"
PRECEDENCE = PUBLISHED
# The Trainer takes the folder with the highest number for its last checkpoint, and reads the weights first.
REMOVAL_ORDER: tuple[Role, ...] = ("model", "adapter", "index", "meta", "optimizer", "config")

_STEP = re.compile(r"checkpoint-([0-9]{1,300})")
# Where huggingface_hub leaves what it has not fetched wholly: below a folder of one's own; or, of its cache, where
# `snapshots/<revision>` links to, once that is whole.
_DOWNLOAD, _SNAPSHOTS, _BLOBS = ".cache/huggingface/download", "snapshots", "blobs"
_STATE, _CONFIG, _ADAPTER_CONFIG = "trainer_state.json", "config.json", "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
# An adapter of a pipeline, which has no configuration.
_LORA = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_MODEL_CONFIGS = (_CONFIG, "generation_config.json")
# Those of accelerate, whose save_state uses the same folder names, end in .bin.
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
_SCHEDULERS = ("scheduler.pt", "scheduler.bin")
_ARGUMENTS = "training_args.bin"
_ROLES: dict[str, Role] = {
    _STATE: "meta",
    PIPELINE: "config",
    MODULES: "other",
    **dict.fromkeys(_MODEL_CONFIGS, "config"),
    **dict.fromkeys(
        "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt "
        "merges.txt tokenizer.model spiece.model sentencepiece.bpe.model chat_template.jinja "
        "chat_template.json".split(),
        "tokenizer",
    ),
    **dict.fromkeys(
        "training_args.bin preprocessor_config.json processor_config.json video_preprocessor_config.json "
        "image_processor_config.json".split(),
        "other",
    ),
}
# Only in a step: in other folders somebody else may have written them.
_STEP_ROLES: dict[str, Role] = {
    **_ROLES,
    **dict.fromkeys(_OPTIMIZERS, "optimizer"),
    **dict.fromkeys(_SCHEDULERS, "other"),
    **dict.fromkeys(
        "scaler.pt sampler.bin latest zero_to_fp32.py README.md sentence_bert_config.json".split(), "other"
    ),
}
_DEEPSPEED = re.compile(r"global_step[0-9]+")
# Of the parts, as they are shown.
_ORDER: tuple[Role, ...] = (
    "model", "index", "adapter", "meta", "config", "optimizer", "tokenizer", "other", "manifest", "export",
)  # fmt: skip


def scan(folder: Folder) -> Iterable[Checkpoint]:
    step = _STEP.fullmatch(folder.name)
    if step and _is_step(folder):
        return [_checkpoint(folder, weights_in(folder.files), Number("step", int(step[1])), of_trainer=True)]
    if PIPELINE in folder.files and folder.folders:
        return [_checkpoint(folder, weights_in(folder.files), _number(folder.name), of_trainer=False)]
    if _CONFIG not in folder.files and _ADAPTER_CONFIG not in folder.files and not _has_index(folder):
        return ()
    weights = weights_in(folder.files)
    model = weights and (_CONFIG in folder.files or any(form.index_file for form in weights))
    adapter = _ADAPTER_CONFIG in folder.files and any(name in folder.files for name in _ADAPTERS)
    if not (model or adapter or _is_being_written(folder)) or _is_of_a_step(folder) or is_component(folder):
        return ()
    return [_checkpoint(folder, weights, _number(folder.name), of_trainer=False)]


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """The best step that its state names, the base of its adapter, and the model that was saved at the run's end.

    That one has no number, so nothing can tell whether a step replaces it.
    """
    needed = unnumbered(checkpoint, run)
    for part in checkpoint.parts:
        name = os.path.basename(part.path)
        try:
            if name == _STATE:
                best = best_step(read_state(part.path, part.bytes))
                needed += grouped(run, at_step).get((checkpoint.run_dir, best), ()) if best is not None else ()
            elif name == _ADAPTER_CONFIG:
                needed += _bases(checkpoint, read_json(part.path), run)
        except CkptError:  # what cannot be read names nothing; the checkpoint is incomplete
            continue
    return [c for c in dict.fromkeys(needed) if c != checkpoint]


def _bases(checkpoint: Checkpoint, adapter: object, run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints that lie where an adapter says its base does; a path may be relative, or of before a move."""
    path = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if not isinstance(path, str) or not path.strip("./\\"):
        return []
    try:
        real = {os.path.realpath(os.path.join(place, path)) for place in (checkpoint.dir, checkpoint.run_dir)}
    except ValueError:  # no file system has such a name
        return []
    tail = os.sep + os.path.normpath(path).lstrip("./")
    moved = os.sep + os.path.basename(tail) if os.path.isabs(path) and not os.path.lexists(path) else tail
    there = [c for place in real for c in grouped(run, _real_directory).get(place, ())]
    called = grouped(run, _directory_name).get(os.path.basename(tail), ())
    return there + [c for c in called if c.dir.endswith((tail, moved))]


def _real_directory(checkpoint: Checkpoint) -> str:
    return os.path.realpath(checkpoint.dir)


def _directory_name(checkpoint: Checkpoint) -> str:
    return os.path.basename(checkpoint.dir)


def _number(name: str) -> Number | None:
    """The number of a published folder whose name is that of a step; one called checkpoint_10 may be anything."""
    return number_in(name) if name.startswith(("epoch", "step")) else None


def _is_step(folder: Folder) -> bool:
    """Whether anything in it is of a trainer, or a model: folders of any make are called checkpoint-5."""
    files = folder.files
    if any(name in files for name in (_STATE, _ARGUMENTS, _ADAPTER_CONFIG, *_ADAPTERS, *_OPTIMIZERS, *_SCHEDULERS)):
        return True
    if weights_in(files) or any(_DEEPSPEED.fullmatch(name) or FSDP.fullmatch(name) for name in folder.folders):
        return True
    return _CONFIG in files and _is_being_written(folder)


def _is_being_written(folder: Folder) -> bool:
    """Whether a model is on its way into a folder that has none yet: to be saved there, or fetched."""
    if _CONFIG not in folder.files:
        return False
    revisions = folder.up if os.path.basename(os.path.dirname(folder.path)) == _SNAPSHOTS else None
    cached = revisions and revisions.up
    fetched = [*folder.peek(_DOWNLOAD), *(cached.peek(_BLOBS) if cached else ())]
    return bool(folder.cut_off) or any(name.endswith(".incomplete") for name in fetched)


def _has_index(folder: Folder) -> bool:
    return any(".index." in name for name in folder.files)


def _is_of_a_step(folder: Folder) -> bool:
    """Whether it is a further adapter or model of a step, and so part of that."""
    if not _STEP.fullmatch(finished_name(os.path.basename(os.path.dirname(folder.path)))):
        return False
    up = folder.up
    return up is not None and _is_step(up)


def _checkpoint(folder: Folder, weights: Sequence[Weights], number: Number | None, of_trainer: bool) -> Checkpoint:
    problems: list[Problem] = []
    parts = parts_of(folder, weights, problems)
    parts += _adapter(folder, problems)
    parts += component_parts(folder, problems)
    parts += named_parts(folder, sorted(folder.cut_off), "other", [])
    roles = _STEP_ROLES if of_trainer else _ROLES
    for name in sorted(folder.files.keys() & roles.keys()):
        # The configuration beside a published adapter is of another model.
        if of_trainer or weights or name not in _MODEL_CONFIGS or _ADAPTER_CONFIG not in folder.files:
            parts += named_parts(folder, (name,), roles[name], problems)
    resumable: bool | None = None
    ranks = None
    if of_trainer:
        ranks = _of_the_trainer(folder, weights, parts, problems)
        resumable = _resumes(folder, parts)
    elif not any(part.role in ("model", "adapter") for part in parts) and not problems:
        problems.append(missing(folder, "model.safetensors", "the model file"))
    parts += named_parts(folder, ("ckpt.sha256",), "manifest", problems)
    if not of_trainer and len(models := [part for part in parts if part.role == "model"]) == 1:
        name = os.path.basename(models[0].path)
        parts += named_parts(folder, (f"{name}.sha256",), "manifest", problems)
    if any(form.single == "pytorch_model.bin" for form in weights):
        parts += named_parts(folder, (EXPORT,), "export", problems)
    metrics: tuple[tuple[str, float], ...] = ()
    for part in parts:
        if part.role == "meta" and part.bytes:
            try:
                metrics = tuple(metrics_of(read_state(part.path, part.bytes)))
            except CkptError as error:
                # A log grows without limit; what is too large to look into may be whole.
                if part.bytes <= MAX_JSON_BYTES:
                    problems.append(not_read(part, error, "bad-meta"))
    parts.sort(key=_place)
    adapted = any(part.role == "adapter" for part in parts)
    found = of_folder(folder, NAME, number, parts, problems)
    return found._replace(
        name=folder.name if number else weights[0].stem if weights else "adapter_model" if adapted else "model",
        resumable=resumable and found.state == "complete",
        metrics=metrics,
        ranks=ranks,
        by_name=number is None and any(_STEP.fullmatch(name) for name in folder.folders),
    )


def _place(part: Part) -> int:
    return _ORDER.index(part.role)


def _adapter(folder: Folder, problems: list[Problem]) -> list[Part]:
    files = [name for name in _ADAPTERS if name in folder.files]
    if not files and _ADAPTER_CONFIG not in folder.files:
        return []
    wanted = (files[0] if files else _ADAPTERS[0], _ADAPTER_CONFIG)
    problems += [missing(folder, name, "a file of the adapter") for name in wanted if name not in folder.files]
    return [
        *named_parts(folder, files[:1], "adapter", problems),
        *named_parts(folder, files[1:], "other", problems),
        *named_parts(folder, (_ADAPTER_CONFIG,), "config", problems),
    ]


def _of_the_trainer(
    folder: Folder, weights: Sequence[Weights], parts: list[Part], problems: list[Problem]
) -> Ranks | None:
    """Adds what a step holds besides a model, and says what is missing; the ranks of DeepSpeed's shards."""
    randoms = [name for name in folder.files if name[0] == "r" and RANDOM.fullmatch(name)]
    parts += named_parts(folder, sorted(randoms), "other", problems)
    problems += [
        Problem("empty-file", f"{os.path.basename(part.path)} is empty", part.path)
        for part in parts
        if part.bytes == 0 and part.role == "other" and part.path.endswith((".pt", ".pth", ".bin", ".pkl"))
    ]
    parts += folders_with_models(folder, problems)
    parts += named_parts(folder, _LORA, "adapter", problems)
    ranks, sharded = sharded_parts(folder, _DEEPSPEED, randoms, parts, problems)
    for name in sorted(folder.folders):
        inner = folder.below(name)
        if _ADAPTER_CONFIG in inner.files:
            parts += _adapter(inner, problems)
    adapted = _ADAPTER_CONFIG in folder.files
    if not (weights or adapted or sharded or any(part.role in ("model", "adapter") for part in parts)):
        problems.append(missing(folder, "model.safetensors", "the model file"))
    # Written last: without it a save was cut off. A step that was stripped down to the model never had need of it.
    written = (_ARGUMENTS, _OPTIMIZERS[0], _SCHEDULERS[0])
    if _STATE not in folder.files and any(name in folder.files for name in written):
        problems.append(missing(folder, _STATE, "the trainer's state"))
    return ranks


def _resumes(folder: Folder, parts: Sequence[Part]) -> bool:
    """Whether the Trainer finds what it reads to go on: its state, the optimizer and the scheduler; or accelerate, with
    none of its own, the optimizer.
    """
    optimizer = any(part.role == "optimizer" for part in parts)
    if _STATE not in folder.files and any(part.path.endswith(".pkl") for part in parts):
        return optimizer
    deepspeed = any(_DEEPSPEED.fullmatch(name) for name in folder.folders)
    return _STATE in folder.files and optimizer and (deepspeed or any(name in folder.files for name in _SCHEDULERS))
