"""Which model a state dict is of, and how it computes: one module a kind of model, each a `Family`.

A family is told the names, shapes and configuration of a state dict and answers with a `Blueprint`: the parameters the
model has, what had to be assumed, and how it is built. It opens no file and assigns no weight; torch is imported when
a blueprint is built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ckpt_cli import plugins
from ckpt_cli.errors import CkptError
from ckpt_cli.items import Item, Mapped
from ckpt_cli.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch


class Described(NamedTuple):
    """A state dict that a model is to be built for.

    `path` is what messages call it, `layout` the layout that found it (empty for a file of none), `source` which of a
    trainer's sources it is of. `tensors` has the model's tensors by name, without what torch.compile put into it and
    without the key that a trainer keeps the state dict under. `config` is the model's configuration as its trainer
    wrote it (nanochat's `model_config`, nano-gpt's `config`, nanoGPT's `model_args`, a `config.json`, a
    `params.json`), `meta` all the metadata, `base` the metadata of the base run of the same tag, None where there is
    none. `given` is what the user said of it: `window_pattern`, `softcap`, `rotary_rounding`; `overruled` what a file
    that the user named says otherwise than `config`, which holds.
    `mapped` gives the same weights under the names of transformers, with their config.json; it raises CkptError where
    no map does.
    """

    path: str
    layout: str
    source: str | None
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    meta: Mapping[str, Any]
    base: Mapping[str, Any] | None
    given: Mapping[str, str]
    mapped: Callable[[], Mapped]
    overruled: tuple[Assumption, ...] = ()

    @property
    def items(self) -> dict[str, Item]:
        """The tensors as they are, for a model that has their names."""
        return {name: Item(name, tensor, tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}


class Assumption(NamedTuple):
    """What the checkpoint does not say; `warn` where the trainer itself would compute something else with it."""

    key: str
    value: Any
    reason: str
    warn: bool = False


class Blueprint(NamedTuple):
    """A model before it is built.

    `shapes` are the parameters and saved buffers it has, by name: exactly these must be in the checkpoint. Those of
    `free` may be there and are not loaded (a mask that older trainers saved). `items` are the views of the source
    whose bytes they get, by the model's own names. `padded_vocab` is the number of rows of its vocabulary matrices.
    `least_tokens` and `most_tokens` bound the length of a batch.

    `build` makes the module on the current default device (a caller enters `torch.device("meta")` first) without
    initialising anything that is in `shapes`; its state_dict has the names of `shapes`. `finish` is called after the
    weights are assigned, with the module and the device: it computes what is not saved, such as rotary tables.
    `logits` is the forward pass: (B, T) int64 tokens -> (B, T, vocab_size) float32. `narrow` are
    embeddings that `logits` widens row by row as it looks them up: on the CPU they may stay in 16 bits, mapped, and the
    result is the same to the last bit.
    """

    family: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    items: Mapping[str, Item]
    vocab_size: int
    padded_vocab: int
    least_tokens: int
    most_tokens: int
    assumptions: tuple[Assumption, ...]
    build: Callable[[], torch.nn.Module]
    finish: Callable[[torch.nn.Module, torch.device], None]
    logits: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]
    free: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()


class Family(Protocol):
    """What a module of this folder offers.

    `NAMES` are the families it builds, as `--family` and the `family` of the answer call them; a `*` in one stands for
    any text. `claims` names the one that a state dict is of, also where it is one that cannot be built, and None where
    it is none of these; it raises CkptError where it is, but does not say enough. `plan` makes the blueprint of a
    family it has; it raises CkptError, by name, for what it cannot build and for a configuration that is not there or
    makes no sense. That names or shapes differ is for the caller to find.
    """

    NAMES: tuple[str, ...]

    def claims(self, described: Described) -> str | None: ...

    def plan(self, described: Described, family: str) -> Blueprint: ...


@cache
def families() -> tuple[Family, ...]:
    """Every family there is, in order of module name; the last resort is the one that asks other libraries."""
    return tuple(cast(Family, module) for module in plugins.load(sys.modules[__name__], ("NAMES", "claims", "plan")))


def _names(one: Family, family: str | None) -> bool:
    return family is not None and any(fnmatchcase(family, name) for name in one.NAMES)


def planned(described: Described, family: str | None = None) -> Blueprint:
    """The blueprint of the family that a state dict is of, or of the one that is asked for by name.

    Raises CkptError for a name that there is not, and for a state dict that no family claims, with what was seen.
    """
    for one in families():
        name = family if _names(one, family) else None if family else one.claims(described)
        if name:
            return one.plan(described, name)
    if family:
        names = ", ".join(name for one in families() for name in one.NAMES)
        raise CkptError(f"there is no family {family!a}", f"the families are {names}")
    seen = ", ".join(f"{name!a}" for name in list(described.tensors)[:3])
    kind = described.config.get("model_type")
    said = f", its model_type is {kind!a}" if isinstance(kind, str) else ""
    raise CkptError(
        f"{described.path} is of no model that is known here: its tensors are {seen} and so on{said}",
        "--model package.module:Class builds a class of your own",
    )
