"""State dicts that are in memory, as the families are told of them, and models built of those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ckpt_cli.errors import CkptError
from ckpt_cli.families import Blueprint, Described
from ckpt_cli.items import Item, Mapped
from ckpt_cli.tensor_file import TensorInfo

State = Mapping[str, torch.Tensor]


def told(name: str, tensor: torch.Tensor) -> TensorInfo:
    """Name, dtype and shape; the bytes lie nowhere."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(name, dtype, tuple(tensor.shape), tensor.stride(), 0, tensor.itemsize, None, "meta")


def described(
    state: State,
    config: Mapping[str, Any],
    *,
    layout: str = "",
    source: str | None = None,
    meta: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
    given: Mapping[str, str] | None = None,
    mapped: Mapped | None = None,
) -> Described:
    def other() -> Mapped:
        if mapped is None:
            raise CkptError("model.pt is in no naming that is known")
        return mapped

    tensors = {name: told(name, tensor) for name, tensor in state.items()}
    about = dict(meta or {"model_config": config})
    return Described("model.pt", layout, source, tensors, config, about, base, dict(given or {}), other)


def items(state: State) -> tuple[Item, ...]:
    return tuple(Item(name, told(name, t), tuple(t.shape), str(t.dtype)) for name, t in state.items())


def rebuilt(blueprint: Blueprint, state: State) -> torch.nn.Module:
    """The model with these weights in float32; each one and none besides must be there, of its shape."""
    own = {name: tensor for name, tensor in state.items() if name not in blueprint.free}
    found = {name: tuple(tensor.shape) for name, tensor in own.items()}
    assert found == dict(blueprint.shapes)
    assert {name: item.shape for name, item in blueprint.items.items() if name not in blueprint.free} == found
    with torch.device("meta"):
        module = blueprint.build()
    assert list(module.state_dict()) == list(blueprint.shapes)
    module.load_state_dict({name: tensor.float() for name, tensor in own.items()}, strict=True, assign=True)
    blueprint.finish(module, torch.device("cpu"))
    return module.eval()


def logits(blueprint: Blueprint, state: State, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T, V) float32, as they are not limited to training."""
    with torch.no_grad():
        return blueprint.logits(rebuilt(blueprint, state), tokens)
