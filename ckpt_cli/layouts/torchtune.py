"""torchtune's checkpoints: epochs by file name in one folder (to 0.4), a folder an epoch or step since.

Flat: `hf_model_0001_0.pt`, `model-00001-of-00003_0.safetensors`, `meta_model_0.pt`, `torchtune_model_0.pt`,
`adapter_0.pt`, the epoch last and from 0. Folders: `epoch_0`, `step_500`, `dist_epoch_0` with weights under names of
Hugging Face's (even where their keys are not), adapters, the small files of the model that was tuned, or a distributed
save. It does not know which keys a file has, and leaves the original model, often in the same folder, to others.

A user's own `save_pretrained("epoch_1")` looks much like it. A folder is torchtune's if anything in it or its run says
so (`_OWN`, a recipe state, `dist_epoch_0`), or no configuration lies there; without such a mark `huggingface` takes it,
under the same number. torchtune writes an index also of one shard, to 0.6 without the newline that transformers ends
it with: so an index without one is a mark too. What remains is one epoch of 2026 alone, of a model that was not
fetched by torchtune: it is called huggingface, and nothing but that name and `resumable` would differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

from ckpt_cli.checkpoint import Checkpoint, Part, Problem, Role
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import TRAINER, Folder, missing, not_read
from ckpt_cli.layouts._dcp import saved_in
from ckpt_cli.layouts._grouped import grouped
from ckpt_cli.layouts._index import shard_names
from ckpt_cli.layouts._numbered import Number, of_folder
from ckpt_cli.layouts._torchtune_flat import ADAPTER_CONFIG, ADAPTERS, NAMED, flat_epochs
from ckpt_cli.layouts._torchtune_recipe import RECIPE, STEP, UNPAIRED, keeps_resume, run_above
from ckpt_cli.layouts._weights import named_parts
from ckpt_cli.small_files import without_waiting

NAME = "torchtune"
PRECEDENCE = TRAINER
# Its folders are found by a distributed index or by any file of weights.
REMOVAL_ORDER: tuple[Role, ...] = ("index", "model", "adapter", "recipe", "config")

_WEIGHTS = re.compile(r"((?:ft-)?model|pytorch_model)(?:-([0-9]{5})-of-([0-9]{5}))?(\.safetensors|\.bin)")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ADAPTER_FOLDER = "adapter_model"
_REPOSITORY = "original_repo_id.json"
_DISTRIBUTED = re.compile(r"(?:__[0-9]+)?\.metadata|__[0-9]+_[0-9]+\.distcp|shard-[0-9]+-model-.+\.safetensors")
_RANK_SHARD = re.compile(r"shard-[0-9]+-model-.+\.safetensors")
# In a folder of a step: its own names of weights, one shard that is counted as one of one, an adapter in its own keys,
# the folder that a bug leaves, and what it copies from a published model and transformers never writes.
_OWN = re.compile(
    r"ft-model-.+|model-[0-9]{5}-of-(?:[0-9]{5}\.bin|00001\.safetensors)|adapter_model(?:\.pt)?|original|"
    r"original_repo_id\.json|recipe_state\.pt|LICENSE.*|USE_POLICY.*|NOTICE.*|checklist\.chk|params\.json"
)
_CONFIGS = (
    "config.json", "params.json", "generation_config.json", ADAPTER_CONFIG, _REPOSITORY,
    "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_BESIDE = re.compile(r"checklist\.chk|(?:README|LICENSE|USE_POLICY|NOTICE)(?:[-_.].+)?", re.IGNORECASE)
# What accelerate and the Trainer of transformers leave in folders of such names, and torchtune never.
_FOREIGN = re.compile(
    r"(?:optimizer|scheduler|sampler|scaler|dl_state_dict)(?:_[0-9]+)?\.(?:bin|pt)|random_states_[0-9]+\.pkl|"
    r"custom_checkpoint_[0-9]+\.pkl|rng_state(?:_[0-9]+)?\.pth|trainer_state\.json|training_args\.bin|"
    r"zero_to_fp32\.py|(?:pytorch_model_fsdp|optimizer|global_step)_?[0-9]+"
)


def scan(folder: Folder) -> Iterable[Checkpoint]:
    match = STEP.fullmatch(folder.name)
    step = _step(folder, "epoch" if match[1] else "step", int(match[3])) if match else None
    return [step] if step else flat_epochs(folder, NAME)


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """That which the run's recipe state belongs to, and the model beside the epochs, which others are made from.

    Where it is not known what the state belongs to, all of the run: the first of it, which needs all others.
    """
    place = checkpoint.run_dir
    if (place, True) in grouped(run, _unpaired):
        own = [*grouped(run, _unpaired)[place, True], *grouped(run, _unpaired).get((place, False), ())]
        return own[:1] if own[0] != checkpoint else own[1:]
    return [c for c in grouped(run, _serves_all).get((place, True), ()) if c != checkpoint]


def _unpaired(checkpoint: Checkpoint) -> tuple[str, bool]:
    return checkpoint.run_dir, any(problem.code == UNPAIRED for problem in checkpoint.problems)


def _serves_all(checkpoint: Checkpoint) -> tuple[str, bool]:
    return checkpoint.run_dir, checkpoint.step is None or keeps_resume(checkpoint)


def _step(folder: Folder, unit: Literal["epoch", "step"], number: int) -> Checkpoint | None:
    files = folder.files
    weights = [match for name in files if (match := _WEIGHTS.fullmatch(name))]
    distributed = any(_DISTRIBUTED.fullmatch(name) for name in files)
    adapter = any(name in files for name in ADAPTERS) or ".metadata" in folder.peek(_ADAPTER_FOLDER)
    known = bool(weights or adapter) or any(name in files for name in _INDEXES)
    if not (known or distributed or folder.cut_off) or any(
        _FOREIGN.fullmatch(name) for name in (*files, *folder.folders)
    ):
        return None
    run = run_above(folder.up) if folder.up else None
    own = folder.name.startswith("dist_") or any(_OWN.fullmatch(name) for name in (*files, *folder.folders))
    doubtful = not known or _may_be_anybody_s(folder, weights)
    if doubtful and not own and not (run and run.marked()):
        return None
    # Where they have been put together, the shards of the ranks say the same once more.
    spare = [name for name in files if weights and _RANK_SHARD.fullmatch(name)]
    saved = saved_in(folder._replace(files={n: files[n] for n in files if n not in spare})) if distributed else None
    if not known and saved is None and not folder.cut_off:
        return None
    problems = list(saved.problems if saved else ())
    parts = [*(saved.parts if saved else ()), *_weights(folder, weights, problems)]
    resumable: bool | None = saved.resumable if saved else False
    parts += _beside(folder, problems)
    parts += named_parts(folder, (RECIPE,), "recipe", problems)
    parts += named_parts(folder, spare, "other", problems)
    parts += named_parts(folder, sorted(folder.cut_off), "other", [])
    if not any(part.role in ("model", "adapter") for part in parts) and not problems:
        problems.append(missing(folder, "model.safetensors", "the model file"))
    state = folder.state(parts, problems)
    if RECIPE in files or (resumable is None and folder.name.startswith("dist_")):
        resumable = True  # folders of that name always hold the optimizer
    elif run and run.recipe and not folder.name.startswith("dist_"):
        if folder.name == (run.paired or run.newest) and not folder.unfinished:
            part = run.recipe.part([])
            parts += [part] if part else []
            resumable = True
        if run.paired is None:
            problems.append(run.recipe.unpaired())
            resumable = None
    found = of_folder(folder, NAME, Number(unit, number), parts, problems)
    return found._replace(state=state, resumable=resumable if state == "complete" else False)


def _may_be_anybody_s(folder: Folder, weights: Sequence[re.Match[str]]) -> bool:
    """Whether transformers or peft may have saved it: with a configuration, in one file or with an index of its own."""
    if not {"config.json", ADAPTER_CONFIG} & folder.files.keys():
        return False
    for entry in (folder.files[name] for name in _INDEXES if name in folder.files):
        try:
            with open(entry.path, "rb", opener=without_waiting) as file:
                file.seek(max(0, entry.stat().st_size - 1))
                return file.read(1) == b"\n"
        except OSError:
            return False
    return not any(match[2] for match in weights)


def _weights(folder: Folder, found: Sequence[re.Match[str]], problems: list[Problem]) -> list[Part]:
    """The weights and their index. Of two forms the first is the model; our own export is never that."""
    # `ckpt convert` writes beside a .bin under its stem.
    exports = {f"{match[0][:-4]}.safetensors" for match in found if match[4] == ".bin"} & folder.files.keys()
    indexes = named_parts(folder, _INDEXES, "index", problems)
    wanted: list[str] = []
    for index in indexes[:1] if all(part.bytes for part in indexes) else ():
        try:
            wanted = list(shard_names(index.path))
        except CkptError as error:
            problems.append(not_read(index, error, "bad-index"))
    if not wanted:
        forms = sorted({(match[1], match[4], match[3] or "") for match in found if match[0] not in exports})
        wanted = list(_shards(*forms[0])) if forms else []
    lost = (missing(folder, name, "a shard") for name in wanted if name not in folder.files)
    problems += islice(lost, NAMED)
    spare = [match[0] for match in found if match[0] not in wanted and match[0] not in exports]
    return [
        *named_parts(folder, wanted, "model", problems),
        *indexes,
        *named_parts(folder, sorted(exports - {*wanted}), "export", problems),
        *named_parts(folder, sorted(spare), "other", problems),
    ]


def _shards(base: str, suffix: str, of: str) -> Iterator[str]:
    yield from (f"{base}-{number:05}-of-{of}{suffix}" for number in range(1, int(of) + 1)) if of else (base + suffix,)


def _beside(folder: Folder, problems: list[Problem]) -> list[Part]:
    """Adapters, and the small files that were copied from the model that was tuned."""
    parts = named_parts(folder, ADAPTERS, "adapter", problems)
    inner = folder.below(_ADAPTER_FOLDER)
    saved = saved_in(inner) if inner.files else None
    if saved:
        parts += [part._replace(role="adapter") if part.role == "model" else part for part in saved.parts]
        problems += saved.problems
    if ADAPTER_CONFIG in folder.files and not parts:
        problems.append(missing(folder, ADAPTERS[1], "the adapter"))
    for place in (folder, folder.below("original")):
        parts += named_parts(place, _CONFIGS, "config", problems)
        parts += named_parts(place, _TOKENIZER, "tokenizer", problems)
        parts += named_parts(place, sorted(name for name in place.files if _BESIDE.fullmatch(name)), "other", problems)
    # What was put together to whole files from the shards of the ranks.
    sharded = folder.below("sharded")
    parts += named_parts(sharded, sorted(n for n in sharded.files if _DISTRIBUTED.fullmatch(n)), "other", problems)
    manifests = [
        n for n in folder.files if n == "ckpt.sha256" or (n.endswith(".sha256") and _WEIGHTS.fullmatch(n[:-7]))
    ]
    return parts + named_parts(folder, manifests, "manifest", problems)
