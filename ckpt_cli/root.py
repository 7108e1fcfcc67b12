"""Where the checkpoints are: from --root to nanochat's own directory."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from ckpt_cli.discover import claims
from ckpt_cli.errors import CkptError
from ckpt_cli.settings import NOTHING, Settings

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".json", ".distcp", ".jit", ".pth.tar")


class Root(NamedTuple):
    """A directory and what named it: `TARGET`, `--root`, `CKPT_ROOT`, ..."""

    path: str
    origin: str


def find_root(flag: str | None, environ: Mapping[str, str], cwd: str, settings: Settings = NOTHING) -> Root:
    """The root, from the first that says: --root, CKPT_ROOT, the settings, checkpoints here or two levels below,
    nanochat's."""
    named = _named(flag, environ, settings)
    if not named and claims(cwd, depth=2, sources=settings.sources):
        return Root(os.path.realpath(cwd), "the current directory")
    return named or _trainers(environ)


def settled_root(flag: str | None, environ: Mapping[str, str], settings: Settings = NOTHING) -> Root:
    """The same for a program whose checkpoints do not depend on where it was started."""
    return _named(flag, environ, settings) or _trainers(environ)


def _named(flag: str | None, environ: Mapping[str, str], settings: Settings) -> Root | None:
    settled = (settings.root, settings.origins.get("root", ""))
    for path, origin in ((flag, "--root"), (environ.get("CKPT_ROOT"), "CKPT_ROOT"), settled):
        if path:
            path = os.path.expanduser(path)
            if not os.path.isdir(path):
                raise CkptError(f"there is no directory {path} ({origin})")
            return Root(os.path.realpath(path), origin)
    return None


def _trainers(environ: Mapping[str, str]) -> Root:
    base = environ.get("NANOCHAT_BASE_DIR")
    if base:
        return Root(os.path.realpath(os.path.expanduser(base)), "NANOCHAT_BASE_DIR")
    return Root(os.path.realpath(os.path.expanduser("~/.cache/nanochat")), "nanochat's default")


def is_path(text: str) -> bool:
    """Whether TARGET is a path by its form."""
    return is_place(text) or text.endswith(SUFFIXES)


def is_place(text: str) -> bool:
    """Whether TARGET begins as no selector does."""
    return text in (".", "..") or text.startswith(("/", "./", "../", "~"))
