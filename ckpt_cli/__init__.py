"""ckpt: list, look into, prune and convert the checkpoints that language-model training leaves behind.

The names below are the library; each is imported when it is first used, so that `import ckpt_cli` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_cli.checkpoint import Checkpoint as Checkpoint
    from ckpt_cli.convert import convert as convert
    from ckpt_cli.discover import discover as discover
    from ckpt_cli.errors import CkptError as CkptError
    from ckpt_cli.retain import make_plan as make_plan
    from ckpt_cli.tensor_file import TensorFile as TensorFile
    from ckpt_cli.tensor_file import TensorInfo as TensorInfo
    from ckpt_cli.tensors import read_tensors as read_tensors
    from ckpt_cli.training import build_model as build_model
    from ckpt_cli.training import find_largest_model as find_largest_model
    from ckpt_cli.training import find_last_step as find_last_step
    from ckpt_cli.training import load_checkpoint as load_checkpoint
    from ckpt_cli.training import load_model as load_model
    from ckpt_cli.training import load_model_from_dir as load_model_from_dir
    from ckpt_cli.training import save_checkpoint as save_checkpoint

__version__ = "0.1.0"

_PUBLIC = {
    "Checkpoint": "checkpoint",
    "CkptError": "errors",
    "TensorFile": "checkpoint",
    "TensorInfo": "checkpoint",
    "build_model": "training",
    "convert": "convert",
    "discover": "discover",
    "find_largest_model": "training",
    "find_last_step": "training",
    "load_checkpoint": "training",
    "load_model": "training",
    "load_model_from_dir": "training",
    "make_plan": "retain",
    "read_tensors": "tensors",
    "save_checkpoint": "training",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
