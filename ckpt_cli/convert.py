"""Checkpoint -> what a conversion writes: names, ties, casts and places, planned before a byte of a tensor is read.

What a target cannot express is refused by name. Tied and aliased tensors are written once; the output says how to
have them back, as views of one storage or in its `__metadata__`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from ckpt_cli import casts, places, safetensors_writer, torch_writer
from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.contents import paths_of, read_files
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.hub import hub_files
from ckpt_cli.items import Item, Mapped
from ckpt_cli.nesting import lossy, mixed
from ckpt_cli.origin import Origin, gather, told_kinds
from ckpt_cli.parallel import put_together
from ckpt_cli.provenance import CONFIGS, META, fingerprint, metadata_of
from ckpt_cli.recipe import Recipe, Request, joined
from ckpt_cli.tensor_file import TensorFile, TensorInfo
from ckpt_cli.tensors import read_tensors, readable
from ckpt_cli.ties import Alias, untie_equals
from ckpt_cli.writing import Output, item_bytes, write

TARGETS = ("safetensors", "pt", "hf", "torchtune", "meta")
# Those in which weights have other names.
NAMINGS = ("hf", "torchtune", "meta")
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
_FILE_MODEL = re.compile(r"model_([0-9]+)")
_Refusal = Callable[[str, TensorInfo, str], "str | None"]


def convert(source: str, target: str, metadata: dict[str, str] | None = None, replace: bool = False) -> Recipe:
    """Writes the tensors of the file `source` to `target` as safetensors, and returns what was done.

    Raises CkptError for what safetensors cannot express, Damaged when the source's bytes are not as written,
    Refused when the target is there and `replace` is not set. Then nothing lies under the target's name.
    """
    recipe = plan([read_tensors(source)], target, metadata=metadata)
    write(recipe.outputs, replace, lambda count: None)
    return recipe


def prepare(
    file: str | None, checkpoint: Checkpoint | None, request: Request, output: str | None, below: str | None = None
) -> Recipe:
    """The plan for a checkpoint or a file; `output` is what -o says, `below` the directory in which a checkpoint of
    several gets a name of its own. Only headers are read.

    Raises CkptError for what cannot be read or expressed, or has no place to go.
    """
    paths = paths_of(file, checkpoint, request.part)
    notes: list[str] = []
    if request.to in NAMINGS and checkpoint:
        paths, notes = _whole_model(paths, checkpoint, request)
    shards = request.shard_bytes is not None
    # Each rank's file names its states as every other's does.
    groups = [[path] for path in paths] if request.part == "optimizer" and request.to not in NAMINGS else [paths]
    if len(groups) > 1 and not below:
        if output is None or not (output.endswith(os.sep) or os.path.isdir(os.path.expanduser(output))):
            raise CkptError(f"the optimizer is in {len(paths)} files", "-o DIR/ takes them all, --part FILE one")
        folder = os.path.abspath(os.path.expanduser(output))
        targets = [places.of_part(folder, group, request.to, shards) for group in groups]
    elif below and checkpoint:
        names = [checkpoint.ref]
        if len(groups) > 1:
            names = [os.path.join(checkpoint.ref, places.default_name(group, "")) for group in groups]
        targets = [places.of_checkpoint(below, name, request.to, shards) for name in names]
    else:
        targets = [places.output_path(group, output, request.to, shards) for group in groups]
    recipe = joined([_prepare(group, checkpoint, request, target) for group, target in zip(groups, targets)])
    return recipe._replace(notes=(*notes, *recipe.notes))


def _whole_model(paths: list[str], checkpoint: Checkpoint, request: Request) -> tuple[list[str], list[str]]:
    """All files of the model of which one was named, for its other names need them all; and what is to be said.

    Raises CkptError for a part that is no model and no adapter, Damaged where a file of the model is missing.
    """
    roles = {part.path: part.role for part in checkpoint.parts}
    foreign = [path for path in paths if roles.get(path) in ("optimizer", "recipe", "meta", "config", "tokenizer")]
    if foreign:
        what = f"{foreign[0]} is the {roles[foreign[0]]} of {checkpoint.ref}, and --to {request.to} is for models"
        raise CkptError(what, "--to safetensors and --to pt take every part")
    if not any(roles.get(path) == "model" for path in paths):
        return paths, []
    for problem in checkpoint.problems:
        name = os.path.basename(problem.path or "")
        if problem.code == "missing-part" and name.endswith(_WEIGHTS) and not name.startswith("optim"):
            raise Damaged(f"{checkpoint.ref} lacks {name}", path=problem.path, kind="missing-part")
    whole = paths_of(None, checkpoint, "model")
    if set(whole) <= set(paths):
        return paths, []
    what = f"{paths[0]} is one of {len(whole)} files of {checkpoint.ref}"
    if request.part:
        raise CkptError(f"{what}, and a part of a model has no other names", "without --part it is converted whole")
    return whole, [f"{what}, which is converted as a whole"]


def _prepare(paths: Sequence[str], checkpoint: Checkpoint | None, request: Request, target: str) -> Recipe:
    """The plan for files that become one output, or one folder of them, at `target`."""
    files, notes = put_together(read_files(paths))
    notes += [f"{file.path}: {said}" for file in files for said in file.notes]
    if request.to in NAMINGS:
        recipe = _plan_named(files, checkpoint, request, target)
    else:
        metadata, problems = metadata_of(checkpoint, paths)
        metadata["ckpt.source"] = fingerprint(files)
        recipe = plan(files, target, request, metadata)
        notes += problems
    return recipe._replace(notes=(*notes, *recipe.notes))


def plan(
    files: Sequence[TensorFile],
    target: str,
    request: Request = Request(),  # noqa: B008
    metadata: Mapping[str, str] | None = None,
) -> Recipe:
    """Names, ties and places of safetensors or a torch file. `metadata` goes along besides what the files hold."""
    origin = gather(files)
    # What is given is newer than what an earlier conversion wrote.
    given = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in (metadata or {}).items()}
    notes = {**origin.notes, **given}
    items = _items(origin.label, [(name, tensor, tensor.shape, tensor.dtype) for name, tensor in origin.tensors],
                   request.dtype, _refusal(request.to))  # fmt: skip
    aliases = _cast_aliases(origin, items)
    said = list(origin.said)
    if unclear := mixed(origin.kinds):
        what = f"{origin.label}: keys of {', '.join(map(ascii, unclear))} run into one another where dots join them"
        if request.to == "pt":
            hint = "ckpt convert --to safetensors keeps every tensor under its joined name"
            raise CkptError(f"{what}, so what lay where is not known", hint)
        said.append(f"{what}: --to pt will not restore what lay where")
    if request.to == "pt":
        outputs, lost = _torch(target, origin, items, aliases, notes)
        said += lost
    else:
        told = told_kinds(origin.kinds)
        said += _lost(lossy(origin.kinds))
        if origin.values:
            notes["ckpt.values"] = json.dumps(origin.values)
        if told and (origin.values or any(kind != "module" for kind in told.values())):
            notes["ckpt.kinds"] = json.dumps(told)
        ordered = _named_order(origin, items)
        if request.shard_bytes is None:
            outputs = [safetensors_writer.single(target, ordered, aliases, notes)]
        else:
            outputs = safetensors_writer.sharded(target, ordered, aliases, notes, request.shard_bytes)
    return Recipe(
        tuple(outputs),
        tuple(items),
        aliases,
        origin.renamed,
        tied=tuple((alias.name, alias.of) for alias in aliases),
        notes=tuple(said),
    )


def _plan_named(files: Sequence[TensorFile], checkpoint: Checkpoint | None, request: Request, target: str) -> Recipe:
    """The weights under the names of another implementation, with its configuration."""
    from ckpt_cli import mapping

    mapped: Mapped = mapping.plan(list(files), checkpoint, request.to, request.config)
    items = _items(files[0].path, mapped.items, request.dtype, _refusal(request.to))
    notes = list(mapped.notes)
    config = dict(mapped.config) if mapped.config is not None else None
    dtypes = {item.dtype for item in items if casts.is_float(item.dtype)}
    if config and request.dtype and len(dtypes) == 1:
        config.update((key, request.dtype) for key in ("dtype", "torch_dtype") if key in config)
    outputs: list[Output]
    aliases: list[Alias] = []
    if request.to == "hf":
        adapter = config is not None and "peft_type" in config
        stem = os.path.join(target, "adapter_model" if adapter else "model")
        total = sum(map(item_bytes, items))
        most = total if adapter else request.shard_bytes or total
        outputs = safetensors_writer.sharded(stem, items, (), {}, max(1, most))
        name = "adapter_config.json" if adapter else "config.json"
    else:
        path = os.path.join(target, "consolidated.00.pth") if request.to == "meta" else target
        order = [item.name for item in items]
        items, aliases = untie_equals(items)
        outputs = [torch_writer.archive(path, items, aliases, order, {}, {}).output]
        name = "params.json"
    if request.to in places.FOLDERS:
        if config is not None:
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            outputs.append(safetensors_writer.literal(os.path.join(target, name), text.encode("utf-8", "replace")))
        copies, warnings = hub_files({os.path.dirname(file.path) for file in files}, target, request.to)
        taken = {output.path for output in outputs}
        outputs += [copy for copy in copies if copy.path not in taken]
        notes += warnings
    tied = (*mapped.tied, *((alias.name, alias.of) for alias in aliases))
    return Recipe(
        tuple(outputs), tuple(items), tuple(aliases), mapped.renamed, mapped.dropped, tied, tuple(notes)
    )  # fmt: skip


def _refusal(to: str) -> _Refusal:
    """What says why a tensor cannot be written in the format of a target."""
    return safetensors_writer.refusal if to in ("safetensors", "hf") else torch_writer.refusal


def _items(
    label: str,
    wanted: Iterable[tuple[str, TensorInfo, tuple[int, ...], str]],
    dtype: str | None,
    refusal: _Refusal,
) -> list[Item]:
    """The items, cast to `dtype` where they are floating-point numbers; refuses by name what cannot be expressed."""
    items = []
    for name, tensor, shape, kept in wanted:
        target = dtype if dtype and casts.is_float(tensor.dtype) else kept
        reason = readable(tensor)
        if tensor.form == "quantized":
            reason = "it is quantized"
        if not reason and target != tensor.dtype:
            reason = casts.refusal(tensor.dtype)
        reason = reason or refusal(name, tensor, target)
        if reason:
            raise CkptError(f"{label}: tensor {name!a} cannot be converted: {reason}")
        items.append(Item(name, tensor, shape, target))
    return items


def _cast_aliases(origin: Origin, items: Sequence[Item]) -> tuple[Alias, ...]:
    """The aliases of what is cast, cast as well."""
    hosts = {item.name: item for item in items}
    found = []
    for alias in origin.aliases:
        host, tensor = hosts[alias.of], alias.tensor
        if host.dtype != host.tensor.dtype:
            if tensor.dtype != host.tensor.dtype:
                what = f"{origin.label}: tensor {alias.name!a} cannot be converted"
                raise CkptError(f"{what}: it shares bytes with {alias.of!a}, which is cast, under another dtype")
            alias = alias._replace(tensor=tensor._replace(dtype=host.dtype, itemsize=ITEMSIZE[host.dtype]))
        found.append(alias)
    return tuple(found)


def _named_order(origin: Origin, items: Sequence[Item]) -> list[Item]:
    """The items in the order in which the source has their names."""
    place = {name: index for index, name in enumerate(origin.order)}
    return sorted(items, key=lambda item: place[item.name])


def _torch(
    target: str, origin: Origin, items: Sequence[Item], aliases: Sequence[Alias], notes: dict[str, str]
) -> tuple[list[Output], list[str]]:
    """The torch file, and beside it the meta file that goes along; what is not as it was."""
    order = [*origin.order, *(alias.name for alias in aliases)]
    mark = notes.get("ckpt.source", "")
    made = torch_writer.archive(target, items, aliases, order, origin.values, origin.kinds, mark)
    outputs = [made.output]
    said = _lost(made.lost)
    foreign = [name for name in notes if not name.startswith("ckpt.") and name != "format"]
    foreign += [name for name, key in CONFIGS.items() if key in notes]
    if foreign:
        said.append(f"a torch file has no header for texts: {', '.join(foreign[:5])} did not go along")
    if META in notes:
        stem = os.path.splitext(os.path.basename(target))[0]
        number = _FILE_MODEL.fullmatch(stem)
        name = f"meta_{number[1]}.json" if number else f"{stem}.json"
        data = notes[META].encode("utf-8", "backslashreplace")
        outputs.append(safetensors_writer.literal(os.path.join(os.path.dirname(target), name), data))
    return outputs, said


def _lost(names: Sequence[str]) -> list[str]:
    """What is to be said of the values of these names, if there are any."""
    if not names:
        return []
    first = ", ".join(f"{name!a}" for name in names[:5]) + ", ..." * (len(names) > 5)
    return [f"what is no plain value goes along as text or as the members it has: {first}"]
