"""The process in which a model is built: what it asks of memory, and what a class of the user's does, end there.

It reads an order from stdin and writes what comes of it to stdout, a line of JSON each. When stdin is closed, whoever
asked is gone, and it ends.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any

from ckpt_cli.errors import CkptError


def main() -> int:
    """Runs one order; whatever comes of it is told, and the exit code says nothing."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a model prints is no part of the answer
    with suppress(OSError):  # if memory runs out, let it be this process
        _write("/proc/self/oom_score_adj", "1000")
    if not os.environ.get("CKPT_DEBUG"):
        warnings.simplefilter("ignore")

    def tell(event: dict[str, Any]) -> None:
        answer.write(json.dumps(event) + "\n")
        answer.flush()

    text = sys.stdin.readline()
    threading.Thread(target=_watch, daemon=True).start()
    gc.disable()  # until torch is loaded: it makes no cycles that would be worth looking for
    from ckpt_cli import levels
    from ckpt_cli.orders import order_of

    try:
        levels.run(order_of(text), tell)
        tell({"end": True})
    except CkptError as error:
        tell({"error": [error.message, error.hint, error.path, error.code, error.kind]})
    except BaseException as error:
        if os.environ.get("CKPT_DEBUG"):
            import traceback

            traceback.print_exc()
        tell({"broken": levels.sentence(error)})
    sys.stdout.flush()
    sys.stderr.flush()
    # Not the interpreter's own end: threads of libraries may hold that up, and nothing is left to be saved.
    os._exit(0)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _watch() -> None:
    """Ends the process when whoever asked is gone."""
    sys.stdin.read()
    os._exit(1)
