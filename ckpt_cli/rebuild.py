"""A blueprint and the file it is of -> the model, on a device, with the file's weights in it.

The module is made on the meta device, where it takes no memory, and its parameters are then the mapped bytes of the
file: nothing is initialised first, and on the CPU nothing is copied that need not be widened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.families import Blueprint
from ckpt_cli.items import Item
from ckpt_cli.weights import Weights, torch_dtype

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda[:N]", "mps", "meta")
DEVICE = re.compile(r"auto|cpu|cuda(?::[0-9]{1,4})?|mps|meta")
# Where 16-bit floats are widened to float32, as nanochat's loader does it for want of arithmetic.
_WIDENING = ("cpu", "mps")
_NARROW = ("bfloat16", "float16")
_SHOWN = 3


class Devices(NamedTuple):
    """What this machine has besides its processor: how many CUDA devices, and whether Apple's is there."""

    cuda: int
    mps: bool


class Mismatch(NamedTuple):
    """A tensor of another shape than the model has it in."""

    name: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


class Differences(NamedTuple):
    """Where names and shapes of a state dict are not those of its model."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    @property
    def lines(self) -> list[str]:
        """One sentence a difference, the telling ones first."""
        return [
            *(f"tensor {m.name!a} has the shape {list(m.found)}, {list(m.expected)} expected" for m in self.mismatched),
            *(f"tensor {name!a} is missing" for name in self.missing),
            *(f"tensor {name!a} is none of the model's" for name in self.unexpected),
        ]

    @property
    def summary(self) -> str:
        """The first few of the lines as one."""
        lines = self.lines
        more = f", and {len(lines) - _SHOWN} more differences" if len(lines) > _SHOWN else ""
        return ", ".join(lines[:_SHOWN]) + more


NO_DIFFERENCES = Differences((), (), ())


def devices() -> Devices:
    """What torch finds here."""
    import torch

    return Devices(torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available())


def pick_device(word: str, there: Devices) -> str:
    """The device that --device names: cpu, cuda:N, mps or meta; of `auto` the fastest there is.

    Raises CkptError for one that is not there.
    """
    if not DEVICE.fullmatch(word):
        raise CkptError(f"{word!a} is no device: {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    if word == "auto":
        return "cuda:0" if there.cuda else "mps" if there.mps else "cpu"
    kind, _, number = word.partition(":")
    if kind == "cuda" and not there.cuda:
        raise CkptError("there is no CUDA device here, or this torch was built without it", "--device cpu works")
    if kind == "cuda" and int(number or 0) >= there.cuda:
        raise CkptError(f"there is no {word}: the last one is cuda:{there.cuda - 1}")
    if kind == "mps" and not there.mps:
        raise CkptError("there is no MPS device here: it is what Apple's processors have", "--device cpu works")
    return f"cuda:{int(number or 0)}" if kind == "cuda" else word


def compare(blueprint: Blueprint) -> Differences:
    """The strict comparison of names and shapes: of what the model has, and what its checkpoint has for it."""
    shapes, items = blueprint.shapes, blueprint.items
    return Differences(
        tuple(name for name in shapes if name not in items),
        tuple(name for name in items if name not in shapes and name not in blueprint.free),
        tuple(
            Mismatch(name, tuple(shape), tuple(items[name].shape))
            for name, shape in shapes.items()
            if name in items and tuple(items[name].shape) != tuple(shape)
        ),
    )


def target_dtype(stored: str, device: str, wanted: str | None) -> str:
    """The dtype in which a weight is held on a device: the one that is wanted, else its own, widened where there is
    no arithmetic in it. Integers stay as they are."""
    if not stored.startswith(("float", "bfloat")):
        return stored
    if wanted:
        return wanted
    kind = device.partition(":")[0]
    if kind == "mps" and stored == "float64":  # which it has not
        return "float32"
    return "float32" if kind in _WIDENING and stored in _NARROW else stored


def build(
    blueprint: Blueprint, device: str = "cpu", dtype: str | None = None, trainable: bool = False
) -> torch.nn.Module:
    """The model of a blueprint with its weights, on `device`, in evaluation mode.

    Floating-point weights are held as `target_dtype` says; on the CPU those that need no cast are views of the file.
    What the blueprint calls narrow stays in 16 bits unless it is to be `trainable`. Raises Damaged where names or
    shapes differ, CkptError for a tensor that cannot be loaded.
    """
    import torch

    differences = compare(blueprint)
    if differences:
        raise Damaged(differences.summary, kind="keys")
    place = torch.device(device)
    with torch.device("meta"):
        module = blueprint.build()
    if device != "meta":
        with Weights() as weights, torch.no_grad():
            # A head that is the embedding is one tensor of the file: it is cast once.
            loaded: dict[tuple[Any, ...], torch.Tensor] = {}
            for name in blueprint.shapes:
                item = blueprint.items[name]
                narrow = name in blueprint.narrow and not (trainable or dtype)
                key = (item.tensor._replace(name=""), item.shape, item.dtype, narrow)
                if key not in loaded:
                    loaded[key] = _loaded(weights, item, place, dtype, narrow)
                _assign(module, name, loaded[key])
    with torch.no_grad():
        blueprint.finish(module, place)
    left = [name for name, tensor in _tensors(module) if tensor.device.type == "meta"]
    if left and device != "meta":
        raise CkptError(f"the model has no value for {left[0]!a}, which is not in the checkpoint")
    return module.eval()


def _loaded(weights: Weights, item: Item, place: torch.device, dtype: str | None, narrow: bool) -> torch.Tensor:
    """The weight on its device, in the dtype in which it is held there; a `narrow` one stays as it is on the CPU."""
    tensor = weights.tensor(item.tensor).reshape(item.shape)
    if item.dtype != item.tensor.dtype:
        tensor = tensor.to(torch_dtype(item.dtype))
    kept = target_dtype(item.dtype, place.type, dtype)
    return tensor.to(place, tensor.dtype if narrow and place.type == "cpu" else torch_dtype(kept))


def _assign(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Puts the tensor in the place of the parameter or buffer of that name, which is left as it was made."""
    import torch

    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    if last in owner._parameters:
        floating = tensor.is_floating_point() or tensor.is_complex()
        owner._parameters[last] = torch.nn.Parameter(tensor, requires_grad=floating)
    else:
        owner._buffers[last] = tensor


def _tensors(module: torch.nn.Module) -> list[tuple[str, Any]]:
    return [*module.named_parameters(), *module.named_buffers()]


def parameters_of(module: torch.nn.Module) -> int:
    """How many numbers are trained; what has two names counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def dtype_of(module: torch.nn.Module, blueprint: Blueprint) -> str:
    """The dtype that arithmetic on its weights is done in: the widest of theirs, of which those that are only looked
    up are none."""
    import torch

    found: torch.dtype | None = None
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and name not in blueprint.narrow:
            found = parameter.dtype if found is None else torch.promote_types(found, parameter.dtype)
    return str(found or torch.float32).removeprefix("torch.")
