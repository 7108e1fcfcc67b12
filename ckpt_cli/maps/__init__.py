"""How one naming of weights becomes another: one module a map, each a `Map`.

A map is told the names, shapes and configuration of a state dict and says which tensors, as which views of the
source's bytes, the target has. It opens no file: what little it has to read (whether a head is tied, a vector of
scalars) it asks of its `Source`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

from ckpt_cli import plugins
from ckpt_cli.errors import CkptError
from ckpt_cli.items import Item, Mapped
from ckpt_cli.tensor_file import TensorInfo

HINT = "ckpt convert --to safetensors keeps every tensor under its own name"
# What wraps the names of a state dict: nothing, the key that a trainer keeps it under, a wrapper's attribute.
_PREFIXES = ("", "model.", "model_state_dict.", "state_dict.", "module.")
# Whose adapters' names belong to whose target.
_ADAPTERS = (("peft", "hf"), ("adapter", "torchtune"))
# What lies beside the model in a file of both.
_BESIDE = re.compile(r"(?:(?:optim|lr_sched|sched|scaler|rng|random|dataloader)[a-z_]*|state\.[0-9]+)(?:\..*)?")


class Source(NamedTuple):
    """A state dict to be mapped.

    `path` is what messages call it. `naming` says after whom its weights are called, `tensors` has them by name
    without `prefix`. `beside` are tensors of the same files that are none of the model's. `values` is what the files
    hold besides, by dotted name; `config` what a config.json says, `params` a params.json, `adapter` an
    adapter_config.json, `meta` a trainer's meta file: empty where there is none. `given` is what --config says; what
    those lack has been added from it. `same` says whether two tensors hold the same bytes, `numbers` reads a short
    vector.
    """

    path: str
    naming: str
    prefix: str
    tensors: dict[str, TensorInfo]
    beside: tuple[str, ...]
    values: dict[str, Any]
    config: dict[str, Any]
    params: dict[str, Any]
    adapter: dict[str, Any]
    meta: dict[str, Any]
    given: dict[str, Any]
    same: Callable[[TensorInfo, TensorInfo], bool]
    numbers: Callable[[TensorInfo], list[float]]

    @property
    def model_type(self) -> str | None:
        """Which architecture of transformers it is; Meta's own files are all of one."""
        found = self.config.get("model_type")
        if found is None and (self.naming == "meta" or self.params):
            return "llama"
        return found if isinstance(found, str) else None


class Map(Protocol):
    """What a module of this folder offers.

    `NAMINGS` are the namings it reads, each with a regular expression that a name of a weight matches in that naming
    alone. `TARGETS` are those it writes. `claims` says of a source in one of its namings whether it is this map's.
    `carry` makes the plan; it raises CkptError, by name, for what the target cannot express and for what the source
    does not say.
    """

    NAMINGS: Mapping[str, str]
    TARGETS: tuple[str, ...]

    def claims(self, source: Source) -> bool: ...

    def carry(self, source: Source, target: str) -> Mapped: ...


@cache
def maps() -> tuple[Map, ...]:
    """Every map there is, in order of name."""
    members = ("NAMINGS", "TARGETS", "claims", "carry")
    return tuple(cast(Map, module) for module in plugins.load(sys.modules[__name__], members))


def families() -> Iterator[Any]:
    """The families of decoders that the maps of this folder have tables of."""
    for one in maps():
        yield from getattr(one, "FAMILIES", ())


def carried(source: Source, target: str) -> Mapped:
    """The state dict in the naming of `target`: hf, torchtune or meta. Raises CkptError where no map makes that."""
    # Of a decoder in its own naming the configuration alone may have to be turned into the target's.
    foreign = {"hf": not source.config and source.params, "meta": not source.params and source.config}
    if (source.naming == target and not foreign.get(target)) or (source.naming, target) in _ADAPTERS:
        return _as_it_is(source, target)
    for one in maps():
        if source.naming in one.NAMINGS and one.claims(source):
            if target not in one.TARGETS:
                what = f"{source.path} has the names of {source.naming}, which become those of "
                raise CkptError(f"{what}{' or '.join(one.TARGETS)}, not of {target}", HINT)
            return one.carry(source, target)
    if target == "hf" and source.model_type and source.naming in ("", "gpt2"):
        return _as_it_is(source, target)
    seen = ", ".join(f"{name!a}" for name in list(source.tensors)[:3])
    if source.model_type and source.naming:
        what = f"{source.path} is of the model type {source.model_type!a}, whose names no map to {target} knows"
    else:
        what = f"{source.path} is in no naming that a map to {target} knows: its tensors are {seen} and so on"
    raise CkptError(what, HINT)


def _as_it_is(source: Source, target: str) -> Mapped:
    """The same names; a folder for transformers needs its configuration."""
    adapter = source.naming == "peft"
    config = {"hf": source.adapter if adapter else source.config, "meta": source.params}.get(target)
    needed = {"hf": "adapter_config.json" if adapter else "config.json", "meta": "params.json"}.get(target)
    if needed and not config:
        raise CkptError(f"{source.path} lies with no {needed}", f"--config FILE, a {needed}, supplies it")
    first: dict[TensorInfo, str] = {}
    tied = []
    for name, tensor in source.tensors.items():
        one = first.setdefault(tensor._replace(name=""), name)
        if one != name and target == "hf" and source.config.get("tie_word_embeddings") is True:
            tied.append((name, one))
    gone = {name for name, _ in tied}
    items = tuple(Item(name, t, t.shape, t.dtype) for name, t in source.tensors.items() if name not in gone)
    return Mapped(items, renamed(source, items), (), tuple(tied), config or None)


def renamed(source: Source, items: Sequence[Item]) -> tuple[tuple[str, str], ...]:
    """(old, new) of the items whose bytes lie under another name in the source; of one that is put together of
    several, a pair for each."""
    return tuple((old, item.name) for item in items for old in _old_names(item.tensor) if old != item.name)


def _old_names(tensor: TensorInfo) -> Sequence[str]:
    if tensor.name or not tensor.pieces:
        return [tensor.name] if tensor.name else []
    return list(dict.fromkeys(piece.name for _, piece in tensor.pieces))


def naming_of(names: Sequence[str]) -> tuple[str, str]:
    """After whom the weights are called, and what precedes each name; nothing and nothing where nobody knows."""
    patterns = {pattern: naming for one in maps() for naming, pattern in one.NAMINGS.items()}
    for prefix in _PREFIXES:
        inner = [name[len(prefix) :] for name in names if name.startswith(prefix)]
        for pattern, naming in patterns.items():
            telling = re.compile(pattern)
            if any(telling.fullmatch(name) for name in inner):
                return naming, prefix
    return "", ""


def split(path: str, named: Mapping[str, TensorInfo], prefix: str) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """The weights, without the prefix, and the names of what else the files hold: an optimizer, scalars."""
    tensors: dict[str, TensorInfo] = {}
    beside = []
    for name, tensor in named.items():
        if _BESIDE.fullmatch(name) or (prefix and not name.startswith(prefix) and not tensor.shape):
            beside.append(tensor.name)
        elif name.startswith(prefix):
            tensors[name[len(prefix) :]] = tensor
        else:
            raise CkptError(f"{path}: it is not known what tensor {name!a} beside the model is", HINT)
    # The state of a generator of random numbers is a tensor too.
    if not any(tensor.dtype.startswith(("float", "bfloat")) for tensor in tensors.values()):
        raise CkptError(f"{path} holds no weights of a model", HINT)
    return tensors, tuple(beside)
