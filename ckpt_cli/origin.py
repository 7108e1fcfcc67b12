"""What is converted, put together of one or more files: tensors by name, ties, values, and what else goes along.

What an earlier conversion wrote into `__metadata__` becomes again what it was made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.formats import safetensors
from ckpt_cli.leaves import all_values
from ckpt_cli.tensor_file import TensorFile, TensorInfo
from ckpt_cli.ties import Alias, recorded, untie

# torch.compile wraps the module, and every name under it gets this piece, once for each time.
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod\.)+")
_META = "__metadata__."
# Of torch's Hugging Face writer: where slices lie, which are whole tensors here.
_PASSING = ("DCP_SHARDING_INFO", "DCP_VERSION")


class Origin(NamedTuple):
    """`label` is the path for messages, `tensors` what is written (name, view), `aliases` what is a view of that.

    `order` has the names in the order of the files, `renamed` (old, new) what torch.compile had wrapped. `notes` are
    the texts of a safetensors header that are not ours; `values` and `kinds` as in TensorFile. `said` is what should be
    told of what bytes are shared and cannot stay so.
    """

    label: str
    tensors: tuple[tuple[str, TensorInfo], ...]
    order: tuple[str, ...]
    aliases: tuple[Alias, ...]
    renamed: tuple[tuple[str, str], ...]
    values: dict[str, Any]
    kinds: dict[str, str]
    notes: dict[str, str]
    said: tuple[str, ...]


def gather(files: Sequence[TensorFile]) -> Origin:
    """The files as one. Raises CkptError where they hold no tensors, or two tensors or values of one name, and as
    `header_of` does."""
    label = files[0].path
    if not any(file.tensors for file in files):
        raise CkptError(f"{label} holds no tensors")
    named: dict[str, TensorInfo] = {}
    values: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    notes: dict[str, str] = {}
    found: list[Alias] = []
    for file in files:
        for tensor in file.tensors:
            name = unwrapped(tensor.name)
            if name in named:
                where = "two of its tensors" if len(files) == 1 else "two tensors of these files"
                raise CkptError(f"{file.path}: {where} would be called {name!a}")
            named[name] = tensor
        own = header_of(file)
        if twice := next((name for name, kind in file.kinds.items() if kind == "twice"), None):
            raise CkptError(f"{file.path}: two of its values would be called {twice!a}")
        for key, value in (all_values(file) if own is None else own.values).items():
            values.setdefault(key, value)
        for key, value in (file.kinds if own is None else own.kinds).items():
            kinds.setdefault(unwrapped(key + ".").removesuffix("."), value)
        if own:
            found += own.aliases
            for key, text in own.notes.items():
                notes.setdefault(key, text)
    kept, aliases, said = untie(list(named.items()))
    aliases += [alias for alias in found if alias.name not in named]
    renamed = tuple((tensor.name, name) for name, tensor in named.items() if tensor.name != name)
    return Origin(label, tuple(kept), tuple(named), tuple(aliases), renamed, values, kinds, notes, tuple(said))


def unwrapped(name: str) -> str:
    """A tensor's name without what torch.compile put into it."""
    return _WRAPPER.sub("", name)


class Header(NamedTuple):
    """What the texts of a safetensors header stand for; `notes` are those that no conversion wrote."""

    values: dict[str, Any]
    kinds: dict[str, str]
    aliases: list[Alias]
    notes: dict[str, str]


def header_of(file: TensorFile) -> Header | None:
    """The header's texts, those that a conversion wrote as what they stand for; None for a file of another format.

    An alias is told by `ckpt.aliases`, or as `save_model` of safetensors does it: its name, and of which it is one.
    Raises CkptError where a text is not what a conversion writes.
    """
    if file.container != safetensors.NAME:
        return None
    notes = {key.removeprefix(_META): text for key, text in file.values.items()}
    for key in _PASSING:
        notes.pop(key, None)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    aliases = recorded(file.path, notes.pop("ckpt.aliases"), tensors) if "ckpt.aliases" in notes else []
    named = tensors.keys() | {alias.name for alias in aliases} | {"format"}
    for name in [n for n, of in notes.items() if of in tensors and n not in named and not n.startswith("ckpt.")]:
        host = tensors[notes.pop(name)]
        aliases.append(Alias(name, host.name, host._replace(name=name), 0))
    values = _object(file.path, notes, "ckpt.values")
    kinds = _object(file.path, notes, "ckpt.kinds")
    if not all(isinstance(kind, str) for kind in kinds.values()):
        raise CkptError(f"{file.path}: its ckpt.kinds maps to something else than text")
    return Header(values, kinds, aliases, notes)


def _object(path: str, notes: dict[str, str], key: str) -> dict[str, Any]:
    """The object that a text of the header holds, which is taken out of it; empty where there is none. Raises CkptError
    for a text that holds something else."""
    try:
        found = json.loads(notes.pop(key, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CkptError(f"{path}: its {key} is no JSON object")
    return found


def told_kinds(kinds: Mapping[str, str]) -> dict[str, str]:
    """The kinds that are worth writing down: none where all names lie in one state dict as modules make them."""
    return {} if set(kinds.items()) <= {("", "ordered")} else dict(kinds)
