"""A model that was rebuilt, put to use: a forward pass, and one step of its optimizer."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.families import Blueprint
from ckpt_cli.fitting import Shard
from ckpt_cli.items import Item
from ckpt_cli.resuming import Placed
from ckpt_cli.tensor_file import TensorInfo
from ckpt_cli.weights import Weights

if TYPE_CHECKING:
    import torch

_SEED = 1337
# Tokens of a batch that nobody chose: enough that positions matter, few enough to take no time.
_LENGTH = 32
# Elements looked at together: a cast of more would take memory.
_CHUNK = 1 << 22
_SHOWN = 4
# What a group says of how its step is computed, not of what it is.
_WAYS = ("foreach", "fused", "capturable", "differentiable")


def batch(blueprint: Blueprint, tokens: Sequence[int] | None, device: str) -> torch.Tensor:
    """(1, T) int64 tokens: those given, else T seeded ones, two at least. Raises CkptError for tokens that the model
    does not have, and for too few or too many."""
    import torch

    least, most = max(2, blueprint.least_tokens), blueprint.most_tokens
    if tokens is None:
        generator = torch.Generator().manual_seed(_SEED)
        length = min(max(least, _LENGTH), max(most, 1))
        return torch.randint(0, max(1, blueprint.vocab_size), (1, length), generator=generator).to(device)
    if not blueprint.least_tokens <= len(tokens) <= most:
        given = counted(len(tokens), "token")
        raise CkptError(f"--tokens has {given}, and the model takes {blueprint.least_tokens} to {most}")
    wrong = [token for token in tokens if not 0 <= token < blueprint.vocab_size]
    if wrong:
        raise CkptError(f"--tokens has {wrong[0]}, and the model's vocabulary is {blueprint.vocab_size}")
    return torch.tensor([list(tokens)], device=device)


def forward(module: torch.nn.Module, blueprint: Blueprint, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, vocab_size) float32 on the CPU. Raises Damaged where it is of another shape."""
    import torch

    with torch.inference_mode():
        logits = blueprint.logits(module, tokens).float().cpu().contiguous()
    expected = (*tokens.shape, blueprint.vocab_size)
    if tuple(logits.shape) not in (expected, (*tokens.shape, blueprint.padded_vocab)):
        raise Damaged(f"the logits have the shape {list(logits.shape)}, {list(expected)} expected", kind="logits")
    return logits


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether it holds neither NaN nor infinities."""
    import torch

    return bool(torch.isfinite(tensor).all())


def not_finite(module: torch.nn.Module) -> list[tuple[str, int]]:
    """The parameters that hold NaN or infinities, with how many. Each is read once; a sum tells at once that there is
    none."""
    import torch

    found = []
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        count = 0
        for part in torch.split(parameter.detach().reshape(-1), _CHUNK):
            # One that overflows is looked at again; a sum in another dtype would be one of a copy.
            if not math.isfinite(part.sum().item()):
                count += int((~torch.isfinite(part)).sum())
        if count:
            found.append((name, count))
    return found


def named(found: Sequence[tuple[str, int]]) -> str:
    """The first of the tensors, each with its count, as a message has them."""
    shown = ", ".join(f"tensor {name!a} ({count})" for name, count in found[:_SHOWN])
    return shown + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a contiguous tensor on the CPU."""
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


def train_step(
    module: torch.nn.Module,
    blueprint: Blueprint,
    tokens: torch.Tensor,
    kind: str,
    shard: Shard,
    placed: Sequence[Sequence[Placed]],
) -> tuple[float, float]:
    """One step of the restored optimizer on the cross entropy of the next token: the loss before and after it.

    `kind` is AdamW, Adam or SGD, `placed` what each of its groups has. Nothing of it reaches the files. Raises Damaged
    for a loss that is not finite.
    """
    import torch

    parameters = dict(module.named_parameters(remove_duplicate=False))
    groups: list[dict[str, Any]] = []
    saved: list[dict[str, Any]] = []
    states: dict[int, dict[str, Any]] = {}
    with Weights() as weights:
        for members, told in zip(placed, shard.state.groups):
            first = len(states)
            for index, one in enumerate(members, first):
                states[index] = {name: _state(weights, value) for name, value in one.states.items()}
            groups.append({"params": [parameters[one.name] for one in members]})
            saved.append({**_settings(told.hyperparameters), "params": list(range(first, len(states)))})
        optimizer = getattr(torch.optim, kind)(groups, lr=1e-3)
        kept = {index: state for index, state in states.items() if state}
        defaults = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        saved = [{**default, **group} for default, group in zip(defaults, saved)]
        optimizer.load_state_dict({"state": kept, "param_groups": saved})
    before = _loss(module, blueprint, tokens)
    if math.isfinite(before.item()):
        torch.autograd.backward(before)
        optimizer.step()
    with torch.no_grad():
        after = _loss(module, blueprint, tokens)
    for when, loss in (("before", before.item()), ("after", after.item())):
        if not math.isfinite(loss):
            raise Damaged(f"the loss is {loss} {when} the step", kind="loss")
    return before.item(), after.item()


def _settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """A group's hyperparameters as torch takes them, without how the step is computed."""
    found = {key: value for key, value in told.items() if key not in _WAYS and key != "params"}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _state(weights: Weights, value: Any) -> Any:
    """One state of a parameter as torch's optimizers keep it; numbers are tensors there."""
    import torch

    if isinstance(value, Item):
        return weights.tensor(value.tensor).reshape(value.shape)
    if isinstance(value, TensorInfo):
        return weights.tensor(value).clone()
    return torch.tensor(float(value)) if isinstance(value, (int, float)) else value


def _loss(module: torch.nn.Module, blueprint: Blueprint, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next token, of (B, T) tokens, in float32."""
    from torch.nn import functional

    logits = blueprint.logits(module, tokens)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
