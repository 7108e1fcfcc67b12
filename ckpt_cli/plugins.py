"""Loads the modules of a plug-in folder: one file each, found by name, checked for what they must offer."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def load(package: ModuleType, members: tuple[str, ...]) -> list[ModuleType]:
    """Every public module of `package` in order of name; those that start with `_` are shared helpers.

    Raises TypeError, naming file and member, when one lacks a member of its Protocol: a programmer's error.
    """
    found = []
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for member in members:
            if not hasattr(module, member):
                raise TypeError(f"{module.__name__} lacks {member}")
        found.append(module)
    return found
