"""What else has to change when a checkpoint loses its optimizer and keeps its model: its manifest.

One that went on listing the files would call the checkpoint damaged. It is shortened before they go: a manifest that
lacks a file which is there after all, by a kill or an undo, says nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_cli import manifest
from ckpt_cli.checkpoint import Checkpoint, Part
from ckpt_cli.errors import CkptError


def shorten_manifests(checkpoint: Checkpoint, gone: Iterable[Part]) -> str | None:
    """Takes files off the checkpoint's manifests; returns why that could not be, None where it could."""
    paths = {part.path for part in gone}
    for part in checkpoint.having("manifest"):
        try:
            listed = manifest.read(part.path)
            left = {path: digest for path, digest in listed.items() if path not in paths}
            if left and len(left) < len(listed):
                manifest.write(part.path, left, replace=True)
        except (CkptError, OSError) as error:
            return str(error)
    return None
