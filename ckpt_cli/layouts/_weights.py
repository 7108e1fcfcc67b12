"""Weights as Hugging Face libraries name them: one file, or shards and their index; a base name, perhaps a variant.

`model.safetensors`, `pytorch_model-00001-of-00002.bin`, `model.fp16.safetensors`, `model.safetensors.index.fp16.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ckpt_cli.checkpoint import Part, Problem, Role
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import Folder, missing, not_read
from ckpt_cli.layouts._index import INDEX_NAME, shard_names

# The order in which transformers looks for them.
_BASES = ("model", "pytorch_model", "diffusion_pytorch_model")
_SUFFIXES = ("safetensors", "bin")
# What `ckpt convert` makes of `pytorch_model.bin`: no library writes it, or looks for it.
_NEVER = ("pytorch_model", "safetensors")
EXPORT = ".".join(_NEVER)
_WEIGHTS = re.compile(
    rf"({'|'.join(_BASES)})(?:\.([A-Za-z0-9_]+))?(?:-([0-9]{{5}})-of-([0-9]{{5}}))?\.({'|'.join(_SUFFIXES)})"
)


class Weights(NamedTuple):
    """One form of a model. `stem` is the name of its file, or of what its shards have in common (`model.fp16`)."""

    stem: str
    suffix: str
    single: str | None
    index_file: str | None
    shards: tuple[str, ...]


def weights_in(names: Iterable[str]) -> list[Weights]:
    """The forms in which a model lies among files of these names; first the one that transformers would take."""
    forms: dict[tuple[bool, str, int, int], Weights] = {}
    shards: dict[tuple[bool, str, int, int], list[str]] = {}
    for name in names:
        if "model" not in name:  # which all of them have; most files of a step do not
            continue
        weights = _WEIGHTS.fullmatch(name)
        index = None if weights else INDEX_NAME.fullmatch(name)
        if weights:
            base, variant, number, _, suffix = weights.groups()
        elif index:
            base, _, suffix = index[1].rpartition(".")
            variant, number = index[3], None
        else:
            continue
        if base not in _BASES or (base, suffix) == _NEVER:
            continue
        key = (variant is not None, variant or "", _SUFFIXES.index(suffix), _BASES.index(base))
        stem = f"{base}.{variant}" if variant else base
        form = forms.get(key, Weights(stem, f".{suffix}", None, None, ()))
        if index:
            form = form._replace(index_file=name)
        elif number:
            shards.setdefault(key, []).append(name)
        else:
            form = form._replace(single=name)
        forms[key] = form
    return [forms[key]._replace(shards=tuple(sorted(shards.get(key, ())))) for key in sorted(forms)]


def parts_of(folder: Folder, forms: Iterable[Weights], problems: list[Problem]) -> list[Part]:
    """The first of the forms as the model, with what is missing of it; the others as what lies beside it."""
    found: list[Part | None] = []
    spare: list[str] = []
    for number, form in enumerate(forms):
        if number:
            spare += [name for name in (form.single, form.index_file, *form.shards) if name]
        elif form.single:
            found.append(folder.part(form.single, "model", problems))
            spare += [name for name in (form.index_file, *form.shards) if name]
        else:
            found += _sharded(folder, form, problems)
    found += [folder.part(name, "other", problems) for name in spare]
    return [part for part in found if part]


def _sharded(folder: Folder, form: Weights, problems: list[Problem]) -> list[Part | None]:
    found: list[Part | None] = []
    wanted: Iterable[str] = ()
    if form.index_file is None:
        problems.append(missing(folder, f"{form.stem}{form.suffix}.index.json", "the index"))
    else:
        index = folder.part(form.index_file, "index", problems)
        found.append(index)
        if index and index.bytes:
            try:
                wanted = shard_names(index.path)
            except CkptError as error:
                problems.append(not_read(index, error, "bad-index"))
    wanted = wanted or _counted(form.shards)
    problems += [missing(folder, name, "a shard") for name in wanted if name not in folder.files][:8]
    there = [name for name in wanted if name in folder.files]
    return [folder.part(name, "model", problems) for name in there] + found


def _counted(shards: tuple[str, ...]) -> list[str]:
    """The names that should be there by the numbers in those that are, where no index says it."""
    match = _WEIGHTS.fullmatch(shards[0]) if shards else None
    if not match:
        return []
    stem, suffix = shards[0][: match.start(3)], shards[0][match.end(4) :]
    counted = [f"{stem}{number:05}-of-{match[4]}{suffix}" for number in range(1, min(int(match[4]), 9999) + 1)]
    return sorted({*counted, *shards})


def named_parts(folder: Folder, names: Iterable[str], role: Role, problems: list[Problem]) -> list[Part]:
    """Those of the names that are there, as parts."""
    found = [folder.part(name, role, problems) for name in names if name in folder.files]
    return [part for part in found if part]
