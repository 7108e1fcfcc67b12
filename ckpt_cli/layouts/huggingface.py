"""Hugging Face: the Trainer's `checkpoint-500`, and folders as models are published in.

Both hold `config.json` and the weights (`model.safetensors`, shards and their index, an adapter of peft). Beside them
the Trainer writes its state, optimizer and scheduler; with DeepSpeed or sharded FSDP these lie in folders below
(`global_step500`, `pytorch_model_fsdp_0`). The folder above a step is the run, and the model that was saved there when
training ended is one of it, without a number. After transformers 4.0 to 5.23, accelerate 1.x and peft 0.x.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Part, Problem, Ranks, Role
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import MAX_JSON_BYTES, PUBLISHED, Folder, read_json
from ckpt_cli.layouts._dcp import saved_in
from ckpt_cli.layouts._trainer_state import best_step, metrics_of, read_state
from ckpt_cli.layouts._weights import EXPORT, Weights, missing, named_parts, parts_of, weights_in

NAME = "huggingface"
PRECEDENCE = PUBLISHED
# The Trainer takes the folder with the highest number for its last checkpoint, and reads the weights first.
REMOVAL_ORDER: tuple[Role, ...] = ("model", "adapter", "index", "meta", "optimizer", "config")

_STEP = re.compile(r"checkpoint-([0-9]{1,300})")
# Where transformers wrote a step, until early 2024, before it gave the folder its name.
_UNFINISHED = re.compile(r"tmp-checkpoint-[0-9]+")
_STATE, _CONFIG, _ADAPTER_CONFIG = "trainer_state.json", "config.json", "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_CONFIGS = (_CONFIG, "generation_config.json")
# Those of accelerate, whose save_state uses the same folder names, end in .bin.
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
_SCHEDULERS = ("scheduler.pt", "scheduler.bin")
_ARGUMENTS = "training_args.bin"
_RNG = re.compile(r"rng_state(?:_([0-9]{1,6}))?\.pth|random_states_([0-9]{1,6})\.pkl")
_ROLES: dict[str, Role] = {
    _STATE: "meta",
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
        "scaler.pt sampler.bin latest zero_to_fp32.py README.md modules.json sentence_bert_config.json".split(), "other"
    ),
}
_DEEPSPEED = re.compile(r"global_step[0-9]+")
_DEEPSPEED_FILE = re.compile(
    r"(?:bf16_|fp16_)?(?:zero_pp_rank_([0-9]{1,6})_)?mp_rank_([0-9]{2,6})_(model|optim)_states\.pt"
)
_FSDP = re.compile(r"(pytorch_model|optimizer)(?:_fsdp)?_[0-9]+")
# What FSDP writes where it gathers the state in one file, or leaves one a rank.
_FSDP_FILE = re.compile(r"pytorch_model_fsdp(?:_[0-9]+)?(?:_rank[0-9]+)?\.bin")
# Of the parts, as they are shown.
_ORDER: tuple[Role, ...] = (
    "model", "index", "adapter", "meta", "config", "optimizer", "tokenizer", "other", "manifest", "export",
)  # fmt: skip


def scan(folder: Folder) -> Iterable[Checkpoint]:
    number = _STEP.fullmatch(folder.name)
    if number and _is_step(folder):
        return [_checkpoint(folder, weights_in(folder.files), int(number[1]))]
    if _CONFIG not in folder.files and _ADAPTER_CONFIG not in folder.files and not _has_index(folder):
        return ()
    weights = weights_in(folder.files)
    model = weights and (_CONFIG in folder.files or any(form.index_file for form in weights))
    adapter = _ADAPTER_CONFIG in folder.files and any(name in folder.files for name in _ADAPTERS)
    if not (model or adapter) or _UNFINISHED.fullmatch(folder.name) or _is_of_a_step(folder):
        return ()
    return [_checkpoint(folder, weights, None)]


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """The best step that its state names, the base of its adapter, and the model that was saved at the run's end.

    That one has no number, so nothing can tell whether a step replaces it.
    """
    needed = [c for c in run if c.step is None and c.run_dir == checkpoint.run_dir]
    for part in checkpoint.parts:
        name = os.path.basename(part.path)
        try:
            if name == _STATE:
                best = best_step(read_state(part.path, part.bytes))
                needed += [c for c in run if c.step == best is not None and c.run_dir == checkpoint.run_dir]
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
    return [c for c in run if c.dir in real or os.path.realpath(c.dir) in real or c.dir.endswith((tail, moved))]


def _is_step(folder: Folder) -> bool:
    """Whether anything in it is of a trainer, or a model: folders of any make are called checkpoint-5."""
    files = folder.files
    if any(name in files for name in (_STATE, _ARGUMENTS, _ADAPTER_CONFIG, *_ADAPTERS, *_OPTIMIZERS, *_SCHEDULERS)):
        return True
    return bool(weights_in(files)) or any(_DEEPSPEED.fullmatch(name) for name in folder.folders)


def _has_index(folder: Folder) -> bool:
    return any(".index." in name for name in folder.files)


def _is_of_a_step(folder: Folder) -> bool:
    """Whether it is a further adapter of a step, and so part of that."""
    if not _STEP.fullmatch(os.path.basename(os.path.dirname(folder.path))):
        return False
    up = folder.up
    return up is not None and _ADAPTER_CONFIG in folder.files and _is_step(up)


def _checkpoint(folder: Folder, weights: Sequence[Weights], step: int | None) -> Checkpoint:
    problems: list[Problem] = []
    parts = parts_of(folder, weights, problems)
    parts += _adapter(folder, problems)
    roles = _STEP_ROLES if step is not None else _ROLES
    for name in sorted(folder.files.keys() & roles.keys()):
        # The configuration beside a published adapter is of another model.
        if step is not None or weights or name not in _MODEL_CONFIGS:
            parts += named_parts(folder, (name,), roles[name], problems)
    resumable: bool | None = None
    ranks = None
    if step is not None:
        ranks = _of_the_trainer(folder, weights, parts, problems)
        resumable = _resumes(folder, parts)
    parts += named_parts(folder, ("ckpt.sha256",), "manifest", problems)
    if step is None and len(models := [part for part in parts if part.role == "model"]) == 1:
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
                    problems.append(Problem("bad-meta", error.message, part.path))
    parts.sort(key=_place)
    state = folder.state(parts, problems)
    return Checkpoint(
        layout=NAME,
        source=folder.source,
        tag=folder.tag if step is None else folder.tag_above,
        step=step,
        unit=None if step is None else "step",
        name=folder.name if step is not None else weights[0].stem if weights else "adapter_model",
        dir=folder.path,
        parts=tuple(parts),
        state=state,
        resumable=resumable and state == "complete",
        problems=tuple(problems),
        metrics=metrics,
        ranks=ranks,
        pinned=".keep" in folder.files,
        linked=folder.linked,
        by_name=step is None and any(_STEP.fullmatch(name) for name in folder.folders),
        home="" if step is None else os.path.dirname(folder.path),
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
    randoms = [name for name in folder.files if name[0] == "r" and _RNG.fullmatch(name)]
    parts += named_parts(folder, sorted(randoms), "other", problems)
    problems += [
        Problem("empty-file", f"{os.path.basename(part.path)} is empty", part.path)
        for part in parts
        if part.bytes == 0 and part.role == "other" and part.path.endswith((".pt", ".pth", ".bin", ".pkl"))
    ]
    ranks = None
    whole = any(part.role == "model" for part in parts)
    gathered = sorted(name for name in folder.files if _FSDP_FILE.fullmatch(name))
    parts += named_parts(folder, gathered, "other" if whole else "model", problems)
    sharded = False
    for name in sorted(folder.folders):
        inner = folder._replace(path=os.path.join(folder.path, name), files=dict(folder.peek(name)), folders=())
        if _DEEPSPEED.fullmatch(name):
            ranks = _deepspeed(inner, randoms, whole, parts, problems)
        elif (match := _FSDP.fullmatch(name)) and (saved := saved_in(inner)):
            problems += saved.problems
            optimizer = match[1] == "optimizer"
            sharded |= not optimizer
            parts += [p._replace(role="optimizer") if optimizer and p.role == "model" else p for p in saved.parts]
        elif _ADAPTER_CONFIG in inner.files:
            parts += _adapter(inner, problems)
    adapted = _ADAPTER_CONFIG in folder.files
    if not (weights or adapted or sharded or any(part.role in ("model", "adapter") for part in parts)):
        problems.append(missing(folder, "model.safetensors", "the model file"))
    # Written last: without it a save was cut off. A step that was stripped down to the model never had need of it.
    written = (_ARGUMENTS, _OPTIMIZERS[0], _SCHEDULERS[0])
    if _STATE not in folder.files and any(name in folder.files for name in written):
        problems.append(missing(folder, _STATE, "the trainer's state"))
    return ranks


def _deepspeed(
    inner: Folder, randoms: Sequence[str], whole: bool, parts: list[Part], problems: list[Problem]
) -> Ranks | None:
    """ZeRO's files: the optimizer a rank, and the model, which counts as such where no other form of it is there."""
    present: set[int] = set()
    other_ranks = False
    for file in sorted(inner.files):
        match = _DEEPSPEED_FILE.fullmatch(file)
        if not match:
            continue
        rank = int(match[1] or 0)
        other_ranks |= int(match[2]) > 0
        role: Role = "optimizer" if match[3] == "optim" else "other" if whole else "model"
        part = inner.part(file, role, problems, rank if role == "optimizer" else None)
        parts += [part] if part else []
        if role == "optimizer":
            present.add(rank)
    if not present:
        return None
    # As many states of random numbers as processes; only where these split nothing else is each a rank of ZeRO.
    numbers = [int(match[1] or 0) for file in randoms if (match := _RNG.fullmatch(file))]
    world = range(max([*present, *([] if other_ranks else numbers)]) + 1)
    lost = [rank for rank in world if rank not in present]
    if lost:
        which = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        there = next(part.path for part in parts if part.role == "optimizer" and part.rank is not None)
        name = re.sub("rank_[0-9]+", f"rank_{lost[0]}", os.path.basename(there), count=1)
        problems.append(missing(inner, name, f"optimizer rank {which} of 0 to {world.stop - 1}"))
    return Ranks(tuple(sorted(present)), tuple(lost))


def _resumes(folder: Folder, parts: Sequence[Part]) -> bool:
    """Whether the Trainer finds what it reads to go on: its state, the optimizer and the scheduler."""
    optimizer = any(part.role == "optimizer" for part in parts)
    deepspeed = any(_DEEPSPEED.fullmatch(name) for name in folder.folders)
    return _STATE in folder.files and optimizer and (deepspeed or any(name in folder.files for name in _SCHEDULERS))
