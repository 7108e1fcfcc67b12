"""What Hugging Face's Trainer writes about a run into each checkpoint: `trainer_state.json`.

Its keys as transformers 4 and 5 write them: `global_step`, `best_global_step`, `best_model_checkpoint` (an absolute
path, wrong once the run has moved), `log_history` (a row a log: `{"step": 10, "eval_loss": 5.5, ...}`). The log
grows with the run; of a long one only the end is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import finite
from ckpt_cli.small_files import read_json

# Beyond _LONG bytes a state is read at both ends only: rows of the last steps, and what stands around the log.
_LONG, _HEAD, _TAIL = 1 << 18, 1 << 13, 1 << 16
_LOG = b'"log_history": ['
_ROW = b"\n    {\n"
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,300})")
# Logged with an evaluation, and say how fast it was.
_TIMES = ("_runtime", "_per_second", "_time", "_jit_compilation_time")


def read_state(path: str, size: int) -> dict[str, Any]:
    """The state; the log of a long one (`size` is the file's, in bytes) lacks all but its last rows.

    Raises CkptError for what is no JSON object.
    """
    value = (_ends(path, size) if size > _LONG else None) or read_json(path)
    if not isinstance(value, dict):
        raise CkptError(f"{os.path.basename(path)} holds a JSON {type(value).__name__}, not an object")
    return value


def _ends(path: str, size: int) -> Any:
    """A state without the middle of its log; None where it is not written as the Trainer writes it."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(_HEAD)
            file.seek(size - _TAIL)
            tail = file.read(_TAIL)
        before, row = head.find(_LOG), tail.find(_ROW)
        if before < 0 or row < 0:
            return None
        return json.loads(head[: before + len(_LOG)] + tail[row:])
    except (OSError, ValueError, RecursionError):
        return None


def metrics_of(state: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The evaluations at the state's own step, the last training loss, and the best value of the chosen metric."""
    rows = state.get("log_history")
    step = state.get("global_step")
    found: dict[str, Any] = {}
    # From the end: of what was logged twice the last counts, and once there is a loss older rows tell nothing new.
    for row in reversed(rows) if isinstance(rows, list) else ():
        if not isinstance(row, dict):
            continue
        if row.get("step") == step:
            found |= {k: v for k, v in row.items() if k[:5] == "eval_" and k not in found and not k.endswith(_TIMES)}
        elif "loss" in found:
            break
        if "loss" in row:
            found.setdefault("loss", row["loss"])
    found["best_metric"] = state.get("best_metric")
    for name, value in found.items():
        number = finite(value)
        if number is not None:
            yield name, number


def best_step(state: dict[str, Any]) -> int | None:
    """The step that the state names as the best: by number, else by the last part of the path it gives."""
    step = state.get("best_global_step")
    if type(step) is int:
        return step
    path = state.get("best_model_checkpoint")
    match = _CHECKPOINT.fullmatch(re.split(r"[/\\]", path.rstrip("/\\"))[-1]) if isinstance(path, str) else None
    return int(match[1]) if match else None
