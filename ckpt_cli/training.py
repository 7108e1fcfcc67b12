"""What a trainer calls: checkpoints saved, found, loaded, and built into models, in place of nanochat's manager.

Names, arguments and results are those of `nanochat.checkpoint_manager`, and so are the files. What differs: a step is
there whole or not at all, with a manifest that `ckpt verify` and `sha256sum -c` read; every CRC32 is checked before a
file is loaded, with weights only; optimizer shards must be of as many ranks as there are now; and failures are a
`CkptError` of one sentence, with a hint. Messages go to the logger `ckpt_cli.training`, from rank 0 alone.
"""

from __future__ import annotations

import json
import logging
import operator
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from ckpt_cli.errors import CkptError, counted
from ckpt_cli.finding import (
    NoCheckpoint,
    current_settings,
    directory_at,
    files_of,
    find_largest_model,
    find_last_step,
    found_in,
    metadata_at,
    refuse_damaged,
    shard_of,
    source_directory,
)
from ckpt_cli.formats import FileSource
from ckpt_cli.saving import Shared, Write, part_path, save_parts

if TYPE_CHECKING:
    import torch

    Built = tuple[torch.nn.Module, Any, dict[str, Any]]

__all__ = [
    "NoCheckpoint",
    "build_model",
    "find_largest_model",
    "find_last_step",
    "load_checkpoint",
    "load_model",
    "load_model_from_dir",
    "save_checkpoint",
]
logger = logging.getLogger(__name__)
_ZIP = b"PK\3\4"


def save_checkpoint(
    checkpoint_dir: str | os.PathLike[str],
    step: int,
    model_data: Mapping[str, Any] | None,
    optimizer_data: Any,
    meta_data: Mapping[str, Any] | None,
    rank: int = 0,
) -> None:
    """Saves one step: of rank 0 model and meta, of each rank its shard of the optimizer (None: there is none).

    `model_data` and `optimizer_data` are state dicts, `meta_data` is what JSON can hold; other ranks than 0 may pass
    None for model and meta. Ranks that pass `optimizer_data` wait for each other, so all must pass some, or none; with
    none rank 0 alone may call it. The directory is made where it is not there. A step that is there is replaced, with
    the shards that it had more of.

    Every file is written beside its place and synced; then each rank renames its shard, and when all have, rank 0
    renames the manifest, the meta and, last, the model, by which a step is found. So a step is never found in half,
    wherever a process is killed, and what a killed save left is cleared by the next.

    Raises CkptError, on every rank and with everything as it was, where one of them cannot write; and before anything
    is written where WORLD_SIZE is not 1 and there is no process group to wait in, or `rank` is not this process's.
    """
    directory, step, rank = os.path.abspath(os.path.expanduser(checkpoint_dir)), _whole(step), operator.index(rank)
    world = _ranks_to_save(rank)
    shard = None if optimizer_data is None else _saved(optimizer_data)
    if rank and not shard:
        return
    meta, model = (None, None) if rank else (_written(meta_data), _saved(model_data))
    waiting = Shared(rank, world, _exchange) if shard and world > 1 else Shared(rank, 1, lambda value: [value])
    save_parts(directory, step, shard, meta, model, waiting)
    if not rank:
        ranks = f", and the optimizer of {counted(world, 'rank')}" if shard else ""
        logger.info("saved %s with its meta%s", part_path(directory, "model", step), ranks)


def load_checkpoint(
    checkpoint_dir: str | os.PathLike[str],
    step: int,
    device: torch.device | str,
    load_optimizer: bool = False,
    rank: int = 0,
) -> tuple[dict[str, torch.Tensor], Any, dict[str, Any]]:
    """(model_data, optimizer_data, meta_data) of a step, tensors on `device` in memory of their own; optimizer_data is
    the shard of `rank`, None unless it is asked for.

    Files are read with weights only, after their structure and every CRC32 were found good. `optim_<step>.pt`, as
    nanochat wrote it before it had shards, is that of a run of one.

    Raises NoCheckpoint where directory, step or file are not there, Damaged for a file that is not as it was written,
    CkptError for one that cannot be read, and for shards of another number of ranks than this run has.
    """
    directory, step, place = directory_at(checkpoint_dir), _whole(step), _device(device)
    model_path, meta_path = files_of(directory, step)
    shard = shard_of(directory, step, operator.index(rank), _world()) if load_optimizer else None
    meta_data = metadata_at(meta_path)
    return _loaded(model_path, place), shard and _loaded(shard, place), meta_data


def build_model(
    checkpoint_dir: str | os.PathLike[str],
    step: int,
    device: torch.device | str,
    phase: str,
    *,
    get_tokenizer: Callable[[], Any] | None = None,
    given: Mapping[str, str] | None = None,
) -> Built:
    """(model, tokenizer, meta_data): the model of a step on `device`, whichever revision of nanochat wrote it.

    `phase` is "train" (weights in memory of their own, to be trained) or "eval" (on the CPU those that need no cast are
    the file's bytes, mapped). bf16 is widened to float32 on cpu and mps. Called with tokens (B, T) the model gives
    logits (B, T, vocab_size); with targets too, their cross entropy.

    The tokenizer is None unless `get_tokenizer` gives one: nanochat keeps it as a pickle, which runs what it says, and
    none is opened here. A trainer passes its own loader, `get_tokenizer=nanochat.tokenizer.get_tokenizer`; what that
    returns is returned, once its `get_vocab_size()` was held against the model's vocabulary.

    What the files do not say is assumed as the trainer would, and logged; `given` says it instead, as
    `given={"softcap": "20"}` does, by the names and values of `ckpt load-test --set`.

    Raises as `load_checkpoint`; Damaged where names or shapes are not the model's, CkptError for a model that is not
    known, a phase that there is not, and a tokenizer of another vocabulary.
    """
    from ckpt_cli.described import base_metadata, describe
    from ckpt_cli.families import planned
    from ckpt_cli.rebuild import build
    from ckpt_cli.tensors import read_tensors

    if phase not in ("train", "eval"):
        raise CkptError(f"{phase!a} is no phase: train or eval")
    directory, step, place = directory_at(checkpoint_dir), _whole(step), _device(device)
    model_path, meta_path = files_of(directory, step)
    meta_data = metadata_at(meta_path)
    refuse_damaged(model_path)
    checkpoint = next((c for c in found_in(directory, depth=0) if c.step == step), None)
    base = base_metadata(checkpoint, (), current_settings().sources)
    blueprint = planned(describe([read_tensors(model_path)], checkpoint, model_path, base, given))
    _log(logging.INFO, "building %s of %s", blueprint.family, model_path)
    for assumed in blueprint.assumptions:
        level = logging.WARNING if assumed.warn else logging.INFO
        _log(level, "%s: %s is taken as %s: %s", model_path, assumed.key, assumed.value, assumed.reason)
    # Embeddings could stay in 16 bits for evaluation; nanochat widens them too, and callers look at dtypes.
    model = build(blueprint, str(place), trainable=True).train(phase == "train")
    if phase == "train":
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    tokenizer: Any = get_tokenizer() if get_tokenizer else None
    if get_tokenizer and (count := tokenizer.get_vocab_size()) != blueprint.vocab_size:
        what = f"the tokenizer has {count} tokens and the model of {model_path} {blueprint.vocab_size}"
        raise CkptError(what, "the tokenizer of the run that was trained is the one that fits")
    return model, tokenizer, meta_data


def load_model_from_dir(
    checkpoints_dir: str | os.PathLike[str],
    device: torch.device | str,
    phase: str,
    model_tag: str | None = None,
    step: int | None = None,
    *,
    get_tokenizer: Callable[[], Any] | None = None,
    given: Mapping[str, str] | None = None,
) -> Built:
    """As `build_model`, of a run below `checkpoints_dir`: the one that `find_largest_model` takes, at its last step,
    unless they are named."""
    if model_tag is None:
        model_tag = find_largest_model(checkpoints_dir)
        _log(logging.INFO, "no model tag was given: %s is taken", model_tag)
    directory = os.path.join(checkpoints_dir, model_tag)
    if step is None:
        step = find_last_step(directory)
    return build_model(directory, step, device, phase, get_tokenizer=get_tokenizer, given=given)


def load_model(source: str, *args: Any, **kwargs: Any) -> Built:
    """As `load_model_from_dir`, of a source: base, mid, sft, rl, or one of the settings' own.

    Its directories are looked for in CKPT_ROOT, the `root` of the settings, NANOCHAT_BASE_DIR or `~/.cache/nanochat`,
    the first of these that is set; where a source has several, the first that has the run is taken. Raises CkptError
    for a source that is not known, NoCheckpoint where none of its directories is there.
    """
    tag = kwargs.get("model_tag", args[2] if len(args) > 2 else None)
    return load_model_from_dir(source_directory(source, tag), *args, **kwargs)


# --- which process this is


def _ranks_to_save(rank: int) -> int:
    """How many ranks there are. Raises CkptError where `rank` is not this one's, or others could not be waited for."""
    group, world = _group(), _world()
    if group is None and world > 1:
        what = f"WORLD_SIZE is {world} and there is no process group, so the ranks cannot wait for each other"
        raise CkptError(what, "torch.distributed.init_process_group makes one")
    mine = group[0] if group else 0
    if rank != mine:
        raise CkptError(f"rank {rank} was given, and this process is rank {mine} of {world}", f"pass rank={mine}")
    return world


def _group() -> tuple[int, int] | None:
    """Rank and number of ranks in the process group; None where there is none."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _world() -> int:
    """How many processes train together, by the process group or by what started them."""
    if group := _group():
        return group[1]
    said = os.environ.get("WORLD_SIZE") or "1"
    if not said.isdecimal() or int(said) < 1:
        raise CkptError(f"WORLD_SIZE is {said!a}, which is no number of processes")
    return int(said)


def _exchange(value: Any) -> list[Any]:
    from torch import distributed

    answers: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(answers, value)
    return answers


def _log(level: int, message: str, *args: object) -> None:
    if (os.environ.get("RANK") or "0") == "0":
        logger.log(level, message, *args)


# --- files


def _whole(step: int) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise CkptError(f"{step!a} is no step: a whole number from 0 up")
    return number


def _saved(value: Any) -> Write:
    import torch

    return lambda file: torch.save(value, cast(Any, file))


def _written(meta: Mapping[str, Any] | None) -> Write:
    try:
        text = json.dumps(meta or {}, indent=2)
    except (TypeError, ValueError, RecursionError) as error:
        raise CkptError(f"the meta cannot be written as JSON: {error}") from error
    return lambda file: file.write(text.encode())


def _device(device: torch.device | str) -> torch.device:
    """The device, of which a bare `cuda` is the current one. Raises CkptError for one that is not there."""
    import torch

    from ckpt_cli.rebuild import devices, pick_device

    name = str(device)
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{torch.cuda.current_device()}"
    return torch.device(pick_device(name, devices()))


def _loaded(path: str, place: torch.device) -> Any:
    """What torch makes of a file with weights only, once it was checked."""
    import torch

    refuse_damaged(path)
    with FileSource(path) as source:
        zipped = source.read_at(0, len(_ZIP)) == _ZIP
    # What goes to another device is read there from the map, without a copy in between.
    mapped = zipped and place.type not in ("cpu", "meta")
    try:
        return torch.load(path, map_location=place, weights_only=True, mmap=mapped)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CkptError(f"{path} cannot be loaded with weights only: {said}", path=path) from error
