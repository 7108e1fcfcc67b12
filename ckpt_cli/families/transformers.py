"""Every causal language model that transformers implements, built by it when it is installed.

What a config.json says reaches only the class that its model_type names in the library itself: nothing is downloaded,
no code beside the weights is run, no kernel of a hub is asked for, and its classes get numbers that were looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.families import Assumption, Blueprint, Described
from ckpt_cli.families._hf_config import looked_at, positions, without_lists
from ckpt_cli.families._modules import tie, ties_of
from ckpt_cli.families._settings import settable, shown
from ckpt_cli.items import Item

if TYPE_CHECKING:
    import torch

NAMES = ("transformers-*",)
_PREFIX = "transformers-"
# How torchtune and Meta name what no model of transformers has.
_FOREIGN = re.compile(r"tok_embeddings\.weight|layers\.[0-9]+\.(?:attn|attention)\..+")
_ADAPTED = re.compile(r"\.lora_[abAB]\.")
# How it names what it does not share with trainers of their own; a GPT-2 of those says its configuration, or is told
# by its matrices, which lie the other way.
_OWN = re.compile(r"(?:model\.)?layers\.[0-9]+\.self_attn\..+|(?:transformer\.)?h\.[0-9]+\.attn\.c_attn\.weight")
# A table that older versions saved and newer ones compute, besides what a model's class names.
_COMPUTED = r"rotary_emb\.inv_freq"
_OWN_CLASS = "--model package.module:Class builds a class of your own"


class _State(NamedTuple):
    """A state dict under the names of transformers, with its configuration."""

    items: Mapping[str, Item]
    config: Mapping[str, Any]


def claims(described: Described) -> str | None:
    """By the model_type of its config.json; torchtune's and Meta's names are mapped first. Raises CkptError, as the
    map does, where that is not possible."""
    if any(_ADAPTED.search(name) for name in described.tensors):
        raise CkptError(f"{described.path} is of an adapter, which is no model without the one it was made for")
    if any(_FOREIGN.fullmatch(name) for name in described.tensors):
        kind = (described.mapped().config or {}).get("model_type")
    else:
        kind = described.config.get("model_type")
    if isinstance(kind, str):
        return _PREFIX + kind
    if described.layout == "huggingface" or any(_OWN.fullmatch(name) for name in described.tensors):
        what = f"{described.path} lies with no config.json that says a model_type"
        raise CkptError(what, "--config FILE, a config.json, supplies it")
    return None


def plan(described: Described, family: str) -> Blueprint:
    """Raises CkptError where transformers is not installed, does not know the model type, has no language model of it,
    or cannot make one of this configuration."""
    settable(family, described.given, {})
    state = _state(described)
    kind = state.config.get("model_type")
    if not isinstance(kind, str) or family != _PREFIX + kind:
        raise CkptError(f"{described.path} is of the model type {shown(kind)}, not of {family.removeprefix(_PREFIX)!a}")
    _library(kind)
    config = looked_at(described.path, state.config, len(state.items))
    assumed = positions(config)
    unfit = without_lists(config)
    module: Any = _on_meta(described.path, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    ties = ties_of(module)
    items, free = _fitted(module, state, shapes, ties)
    _refuse_apart(described.path, kind, shapes, items, free)
    if unfit and shapes.keys() <= items.keys():
        raise CkptError(f"{described.path}: its configuration has not as many {unfit[0]} as layers")
    own = module.config.get_text_config()
    if type(vocab := vars(own).get("vocab_size")) is not int:
        raise CkptError(f"{described.path}: its configuration says no vocab_size")
    return Blueprint(
        family=family,
        config=config,
        shapes=shapes,
        items=items,
        vocab_size=vocab,
        padded_vocab=_rows(module, vocab),
        least_tokens=1,
        most_tokens=_most_tokens(own),
        assumptions=tuple(Assumption(*each) for each in assumed),
        build=lambda: _made(described.path, config),
        finish=lambda module, device: _finish(described.path, module, device, ties),
        logits=lambda module, tokens: module(input_ids=tokens, use_cache=False).logits.float(),
        free=free,
    )


def _state(described: Described) -> _State:
    if any(_FOREIGN.fullmatch(name) for name in described.tensors):
        mapped = described.mapped()
        return _State({item.name: item for item in mapped.items}, mapped.config or {})
    return _State(described.items, described.config)


def _made(path: str, config: dict[str, Any]) -> torch.nn.Module:
    """The model on the current default device. Raises CkptError where there is none."""
    kind = config["model_type"]
    library = _library(kind)
    with _silent(library):
        if kind not in library.CONFIG_MAPPING:
            what = f"{path} is of the model type {kind!a}, which transformers {library.__version__} does not know"
            raise CkptError(what, _OWN_CLASS)
        try:
            own = library.CONFIG_MAPPING[kind].from_dict(dict(config))
            if type(own) not in library.MODEL_FOR_CAUSAL_LM_MAPPING:
                what = f"{path} is of the model type {kind!a}, of which transformers has no causal language model"
                raise CkptError(what, _OWN_CLASS)
            module: torch.nn.Module = library.AutoModelForCausalLM.from_config(own, trust_remote_code=False)
        except CkptError:
            raise
        # Whatever a class of the library makes of numbers that do not go together.
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            what = f"{path}: transformers cannot make a {kind} of its configuration: {said[:200]!a}"
            raise CkptError(what) from error
    return module


def _on_meta(path: str, config: dict[str, Any]) -> torch.nn.Module:
    import torch

    with torch.device("meta"):
        return _made(path, config)


def _library(kind: Any) -> Any:
    """transformers. Raises CkptError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        what = f"a model of the type {shown(kind)} is built by transformers, which is not installed"
        raise CkptError(what, "pip install 'transformers>=5'") from error
    return transformers


@contextmanager
def _silent(library: Any) -> Iterator[None]:
    """What it would tell of a configuration is not for a terminal."""
    before = library.logging.get_verbosity()
    library.logging.set_verbosity_error()
    try:
        yield
    finally:
        library.logging.set_verbosity(before)


def _fitted(
    module: Any, state: _State, shapes: Mapping[str, tuple[int, ...]], ties: Mapping[str, str]
) -> tuple[dict[str, Item], tuple[str, ...]]:
    """The items by the model's names, and those of them that it computes itself.

    A file of the bare model has no prefix; one of a model whose head is its embedding may have either alone.
    """
    prefix = f"{module.base_model_prefix}."
    bare = prefix != "." and not any(name.startswith(prefix) for name in state.items)
    renamed = {name: prefix + name if bare and prefix + name in shapes else name for name in state.items}
    items = {renamed[name]: item._replace(name=renamed[name]) for name, item in state.items.items()}
    patterns = [*(module._keys_to_ignore_on_load_unexpected or ()), _COMPUTED]
    free = tuple(name for name in items if name not in shapes and any(re.search(each, name) for each in patterns))
    for name, other in (*ties.items(), *((other, name) for name, other in ties.items())):
        if name not in items and other in items:
            items[name] = items[other]._replace(name=name)
    return items, free


def _refuse_apart(
    path: str, kind: str, shapes: Mapping[str, Any], items: Mapping[str, Any], free: tuple[str, ...]
) -> None:
    """Raises CkptError for experts that lie one by one where the model has them together: no other name is wrong."""
    strange = [name for name in items if name not in shapes and name not in free]
    if any(".experts." in name for name in strange) and any(".experts." in name for name in shapes.keys() - items):
        what = f"{path} has the experts of its {kind} one by one, and transformers has them together"
        raise CkptError(f"{what}, which is not rebuilt", _OWN_CLASS)


def _rows(module: Any, vocab: int) -> int:
    head = module.get_output_embeddings()
    return vocab if head is None else int(head.weight.shape[0])


def _most_tokens(own: Any) -> int:
    for key in ("max_position_embeddings", "n_positions"):
        if type(most := vars(own).get(key)) is int and most > 0:
            return most
    return 1 << 31


def _finish(path: str, module: Any, device: torch.device, ties: Mapping[str, str]) -> None:
    """Parameters that are one again, unless the checkpoint has them differ, and tables that are not saved: computed by
    the library's own initialisation, which is asked about the modules that have such a table, and told that their
    weights are there."""
    import torch

    for name, other in ties.items():
        tie(module, other, name)
    if device.type == "meta":
        return
    for name, inner in module.named_modules():
        lost = [key for key in inner._non_persistent_buffers_set if _is_meta(inner._buffers[key])]
        for key in lost:
            inner._buffers[key] = _unset(inner._buffers[key], device)
        if not lost:
            continue
        for tensor in (*inner.parameters(recurse=False), *inner.buffers(recurse=False)):
            tensor._is_hf_initialized = True
        for key in lost:
            inner._buffers[key]._is_hf_initialized = False
        inner._is_hf_initialized = False
        with torch.no_grad():
            _initialiser(module, name)(inner)
        for key in lost:
            if _is_unset(inner._buffers[key]):
                what = f"{path}: what {name}.{key} holds is not saved, and this transformers does not compute it"
                raise CkptError(what, "pip install 'transformers>=5'")


def _initialiser(module: Any, name: str) -> Any:
    """The `_init_weights` of the innermost model that the named module is in."""
    owner = module
    steps = name.split(".")
    for count in range(1, len(steps)):
        inner = module.get_submodule(".".join(steps[:count]))
        if hasattr(inner, "_init_weights"):
            owner = inner
    return owner._init_weights


def _is_meta(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.device.type == "meta"


def _unset(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same without numbers: each of them is one that no table has."""
    import torch

    value = float("nan") if tensor.dtype.is_floating_point else 0 if tensor.dtype == torch.bool else -1
    return torch.full_like(tensor, value, device=device)


def _is_unset(tensor: torch.Tensor) -> bool:
    if tensor.dtype.is_floating_point:
        return bool(tensor.isnan().any())
    return bool((tensor == -1).any()) if tensor.dtype.is_signed else False
