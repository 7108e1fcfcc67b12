"""Checkpoints of one file, and what lies beside it under its name: a manifest, an export, a pin."""

from __future__ import annotations

import os
from typing import Literal

from ckpt_cli.checkpoint import Checkpoint, Problem, Role
from ckpt_cli.layouts import Folder


def one_file(
    folder: Folder,
    layout: str,
    file: str,
    step: int | None,
    unit: Literal["step", "epoch"] | None = "step",
    resumable: bool | None = None,
    metrics: tuple[tuple[str, float], ...] = (),
) -> Checkpoint:
    """The checkpoint whose model is `file`; `resumable` is what it is when it is whole."""
    stem, suffix = os.path.splitext(file)
    problems: list[Problem] = []
    names: list[tuple[str, Role]] = [(file, "model"), (f"{file}.sha256", "manifest")]
    pins = [name for name in (f"{stem}.keep", f"{file}.keep") if name in folder.files]
    names += [(name, "other") for name in pins]
    if suffix != ".safetensors":
        names.append((f"{stem}.safetensors", "export"))
    parts = [folder.part(name, role, problems) for name, role in names if name in folder.files]
    found = tuple(part for part in parts if part)
    state = folder.state(found, problems)
    return Checkpoint(
        layout=layout,
        source=folder.source,
        tag=folder.tag,
        step=step,
        unit=unit,
        name=stem,
        dir=folder.path,
        parts=found,
        state=state,
        resumable=resumable and state == "complete",
        problems=tuple(problems),
        metrics=metrics,
        pinned=bool(pins) or ".keep" in folder.files,
        linked=folder.linked,
    )
