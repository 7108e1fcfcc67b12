"""ckpt: list, look into, prune and convert the checkpoints that language-model training leaves behind.

The names below are the library; each is imported when it is first used, so that `import ckpt_cli` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Checkpoint": "checkpoint",
    "CkptError": "errors",
    "TensorFile": "checkpoint",
    "TensorInfo": "checkpoint",
    "convert": "convert",
    "discover": "discover",
    "make_plan": "retain",
    "read_tensors": "tensors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
