"""A class of the user's own as the model of a checkpoint. Its module is imported here, and nowhere else."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ckpt_cli.errors import CkptError
from ckpt_cli.families import Blueprint, Described
from ckpt_cli.families._modules import ties_of

if TYPE_CHECKING:
    import torch

SPECIFIER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
# What configurations call the longest text and the number of tokens.
_LENGTHS = ("sequence_len", "block_size", "n_positions", "max_position_embeddings", "max_seq_len", "context_length")
_VOCABULARIES = ("vocab_size", "padded_vocab_size", "n_vocab")
_MOST_TOKENS = 32


def blueprint_of(specifier: str, described: Described) -> Blueprint:
    """A blueprint of `package.module:Class`, imported with the current directory before all others.

    The class is called with the configuration's entries as keyword arguments. One that takes a single argument which
    is no entry of it (`GPT(config)`) is given the configuration as an object: of the class that the argument is
    annotated with, where it is one, else a namespace. Raises CkptError where there is no such class, or it cannot be
    made of this configuration.
    """
    import torch

    cls = _class(specifier)
    make = _maker(specifier, cls, described.config)
    with torch.device("meta"), _without_initialisation():
        module, on_meta = _tried(make)
    if module is None:
        module, on_meta = make(), False
    if not isinstance(module, torch.nn.Module):
        raise CkptError(f"{specifier} is no torch.nn.Module")
    state = module.state_dict(keep_vars=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    vocab = _number(described.config, _VOCABULARIES)
    rows = next((m.num_embeddings for m in module.modules() if isinstance(m, torch.nn.Embedding)), vocab or 0)
    ties = ties_of(module)

    def finish(built: torch.nn.Module, device: torch.device) -> None:
        for name, first in ties.items():
            path, _, last = name.rpartition(".")
            built.get_submodule(path)._parameters[last] = built.get_parameter(first)
        if on_meta and device.type != "meta":
            _fill(built, make, device)

    return Blueprint(
        family=specifier,
        config=described.config,
        shapes=shapes,
        items=described.items,
        vocab_size=vocab or rows,
        padded_vocab=rows,
        least_tokens=1,
        most_tokens=_number(described.config, _LENGTHS) or _MOST_TOKENS,
        assumptions=(),
        build=lambda: module,
        finish=finish,
        logits=_logits,
    )


def _number(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """The first whole number under any of the keys."""
    return next((number for key in keys if type(number := config.get(key)) is int), None)


def _class(specifier: str) -> Any:
    if not SPECIFIER.fullmatch(specifier):
        raise CkptError(f"{specifier!a} is no class: package.module:Class")
    name, _, path = specifier.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(name)
        for piece in path.split("."):
            found = getattr(found, piece)
    except AttributeError as error:
        raise CkptError(f"{specifier}: {error}") from error
    except Exception as error:
        raise CkptError(f"{specifier} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise CkptError(f"{specifier} is no class")
    return found


def _maker(specifier: str, cls: Any, config: Mapping[str, Any]) -> Callable[[], Any]:
    """What makes an instance for a configuration."""
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return lambda: cls(**config)
    entries = {key: value for key, value in config.items() if key.isidentifier()}
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) == 1 and needed[0].name not in entries:
        settings = _settings(cls, needed[0].name, entries)
        return lambda: cls(settings)
    missing = [p.name for p in needed if p.name not in entries]
    if missing:
        raise CkptError(f"{specifier} needs {', '.join(missing)}, which the configuration does not say")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = {p.name for p in parameters}
        entries = {key: value for key, value in entries.items() if key in names}
    return lambda: cls(**entries)


def _settings(cls: Any, name: str, entries: Mapping[str, Any]) -> Any:
    """The configuration as the object that the argument `name` is annotated with, or a namespace."""
    try:
        kind = typing.get_type_hints(cls.__init__).get(name)
    except (AttributeError, NameError, TypeError):
        kind = None
    if not isinstance(kind, type) or kind in (dict, object, SimpleNamespace):
        return dict(entries) if kind is dict else SimpleNamespace(**entries)
    known = inspect.signature(kind).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    return kind(**{key: value for key, value in entries.items() if takes_all or key in known})


def _tried(make: Callable[[], Any]) -> tuple[Any, bool]:
    """An instance on the meta device, or nothing where its constructor needs numbers."""
    try:
        return make(), True
    except (NotImplementedError, RuntimeError):
        return None, False


def _without_initialisation() -> Any:
    """Within it the functions of torch.nn.init leave tensors as they are: on the meta device there is nothing to set,
    and to find that out they load half of torch's compiler."""
    from torch.overrides import TorchFunctionMode

    class Without(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__module__", "") == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    return Without()


def _fill(built: torch.nn.Module, make: Callable[[], Any], device: torch.device) -> None:
    """Gives what the class computes and does not save its values, those of a second instance that has memory."""
    import torch

    def lacking(module: torch.nn.Module) -> list[tuple[dict[str, Any], str]]:
        tables: list[dict[str, Any]] = [module.__dict__, module._buffers]
        found = [(table, key) for table in tables for key, value in table.items() if isinstance(value, torch.Tensor)]
        return [(table, key) for table, key in found if table[key].device.type == "meta"]

    if not any(lacking(module) for module in built.modules()):
        return
    whole = dict(make().named_modules())
    for name, module in built.named_modules():
        for table, key in lacking(module):
            other = whole[name]
            value = other._buffers[key] if table is module._buffers else other.__dict__[key]
            assert isinstance(value, torch.Tensor)
            table[key] = value.to(device)


def _logits(module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, V): what the module returns, its `logits`, or the first of several.

    nanoGPT computes all positions only where it is given targets.
    """
    found = _first(module(tokens))
    if found.dim() == 3 and found.size(1) == 1 < tokens.size(1) and "targets" in _arguments(module):
        found = _first(module(tokens, targets=tokens))
    return found.float()


def _arguments(module: torch.nn.Module) -> Mapping[str, Any]:
    return inspect.signature(module.forward).parameters


def _first(answer: Any) -> torch.Tensor:
    import torch

    found = getattr(answer, "logits", answer)
    if isinstance(found, dict):
        found = found.get("logits")
    if isinstance(found, (tuple, list)):
        found = next((item for item in found if isinstance(item, torch.Tensor)), None)
    if not isinstance(found, torch.Tensor):
        raise CkptError(f"the model's forward gave a {type(answer).__name__}, and no logits")
    return found
