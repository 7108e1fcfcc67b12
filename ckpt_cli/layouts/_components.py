"""Models that lie in several folders below one: diffusers' pipelines, sentence-transformers' modules, a step of either.

`model_index.json` names the components of a pipeline (`{"unet": ["diffusers", "UNet2DConditionModel"], ...}`, null for
one that is not there), `modules.json` says that folders such as `2_Dense` are of the model. Training scripts of
diffusers put the same folders into a step: `checkpoint-500/unet`. After diffusers 0.20 to 0.36.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ckpt_cli.checkpoint import Part, Problem, Role
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import Folder, missing, not_read
from ckpt_cli.layouts._numbered import number_in
from ckpt_cli.layouts._weights import named_parts, parts_of, weights_in
from ckpt_cli.small_files import read_json

PIPELINE, MODULES = "model_index.json", "modules.json"
_MODULE = re.compile(r"[0-9]{1,3}_[A-Za-z]\w*")
_SMALL: Mapping[str, Role] = {
    "config.json": "config",
    "scheduler_config.json": "config",
    "preprocessor_config.json": "other",
    **dict.fromkeys(
        "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt "
        "merges.txt tokenizer.model spiece.model".split(),
        "tokenizer",
    ),
}


def is_component(folder: Folder) -> bool:
    """Whether a folder is a part of the model that lies in the folder above it."""
    up = folder.up
    if up is None:
        return False
    return PIPELINE in up.files or (MODULES in up.files and bool(_MODULE.fullmatch(folder.name)))


def component_parts(folder: Folder, problems: list[Problem]) -> list[Part]:
    """The parts that lie in a model's folders; of a pipeline, whether those that it names are there is looked at."""
    if PIPELINE in folder.files:
        return _of(folder, _components(folder, problems), "model", problems)
    if MODULES in folder.files:
        return _of(folder, sorted(name for name in folder.folders if _MODULE.fullmatch(name)), "other", problems)
    return []


def folders_with_models(folder: Folder, problems: list[Problem]) -> list[Part]:
    """The parts of a step's folders that hold a model with its configuration each; of none that is a step itself."""
    names = sorted(
        name
        for name in folder.folders
        if not number_in(name) and "config.json" in (files := folder.peek(name)) and weights_in(files)
    )
    return _of(folder, names, "model", problems)


def _components(folder: Folder, problems: list[Problem]) -> list[str]:
    index = folder.part(PIPELINE, "config", problems)
    if index is None or not index.bytes:
        return []
    named = None
    try:
        named = read_json(index.path)
    except CkptError as error:
        problems.append(not_read(index, error, "bad-index"))
    names = [
        name
        for name, kind in (named.items() if isinstance(named, dict) else ())
        if isinstance(kind, list) and len(kind) == 2 and all(isinstance(word, str) for word in kind)
    ]
    problems += [
        missing(folder, name, "a component") for name in names if "/" not in name and name not in folder.folders
    ]
    return sorted(name for name in folder.folders if name in names or weights_in(folder.peek(name)))


def _of(folder: Folder, names: Iterable[str], role: Role, problems: list[Problem]) -> list[Part]:
    parts: list[Part] = []
    for name in names:
        inner = folder.below(name)
        found = parts_of(inner, weights_in(inner.files), problems)
        parts += [part._replace(role=role) if part.role == "model" else part for part in found]
        for file in sorted(inner.files.keys() & _SMALL.keys()):
            parts += named_parts(inner, (file,), _SMALL[file], problems)
    return parts
