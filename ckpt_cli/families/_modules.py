"""A module of torch that has given parameters and computes by a function of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]


def module_of(
    shapes: Mapping[str, tuple[int, ...]],
    buffers: Collection[str],
    forward: Callable[[Weights, torch.Tensor], torch.Tensor],
    config: Mapping[str, Any],
) -> torch.nn.Module:
    """A module whose state dict has the names and order of `shapes`, not initialised; those in `buffers` are no
    parameters.

    Calling it with tokens gives the logits; with targets as well, their cross entropy, where -1 is no target.
    """
    import torch
    from torch.nn import functional

    class Rebuilt(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(**config)

        def forward(
            self, idx: torch.Tensor, targets: torch.Tensor | None = None, loss_reduction: str = "mean"
        ) -> torch.Tensor:
            weights = dict(self.named_parameters(remove_duplicate=False))
            logits = forward({**weights, **dict(self.named_buffers())}, idx)
            if targets is None:
                return logits
            flat = logits.reshape(-1, logits.size(-1))
            return functional.cross_entropy(flat, targets.reshape(-1), ignore_index=-1, reduction=loss_reduction)

    root = Rebuilt()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        inner: torch.nn.Module = root
        for step in path:
            if step not in inner._modules:
                inner.add_module(step, torch.nn.Module())
            inner = inner.get_submodule(step)
        if name in buffers:
            inner.register_buffer(last, torch.empty(shape))
        else:
            inner.register_parameter(last, torch.nn.Parameter(torch.empty(shape)))
    return root


def ties_of(module: torch.nn.Module) -> dict[str, str]:
    """Of each parameter that has several names: name -> the first of them."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: one for name, parameter in named if (one := first.setdefault(id(parameter), name)) != name}


def tie(module: torch.nn.Module, name: str, other: str) -> bool:
    """Makes one parameter of two that hold the same, so that training moves both; False where they differ."""
    import torch

    one, two = module.get_parameter(name), module.get_parameter(other)
    if one is two:
        return True
    if one.device.type != "meta" and not torch.equal(_bits(one), _bits(two)):
        return False
    path, _, last = other.rpartition(".")
    module.get_submodule(path).register_parameter(last, one)
    return True


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers: a NaN is equal to itself."""
    import torch

    return tensor.detach().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
