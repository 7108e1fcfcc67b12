"""`ckpt load-test` in this process, and what its answers hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ckpt_cli import levels, trial
from ckpt_cli.levels import LEVELS
from ckpt_cli.orders import Order, order_of, written
from ckpt_cli.trial import Outcome


def inside(order: Order, timeout: float = 0.0) -> Outcome:
    """The levels in this process, which has torch already: what is told goes through JSON, as it does from a child."""
    heard: list[dict[str, Any]] = []
    levels.run(order_of(written(order)), lambda event: heard.append(json.loads(json.dumps(event))))
    return trial.outcome_of(heard)


def level_of(answer: Any, name: str) -> Any:
    return next(level for level in answer["levels"] if level["name"] == name)


def statuses(answer: Any) -> list[str]:
    assert [level["name"] for level in answer["levels"]] == list(LEVELS)
    return [level["status"] for level in answer["levels"]]


def read_logits(path: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(path)
    assert list(found) == ["logits"]
    return found["logits"]
