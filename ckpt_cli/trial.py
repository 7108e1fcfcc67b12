"""The levels from outside: starts the process that runs them, listens, and says what became of it.

A process that is killed, crashes or hangs has failed the level it was at. It never outlives the call.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from ckpt_cli import levels
from ckpt_cli.checkpoint import Problem
from ckpt_cli.errors import CkptError, NotFound, Refused, counted
from ckpt_cli.families import Assumption
from ckpt_cli.interrupts import interruptible
from ckpt_cli.levels import LEVELS, PREPARATION, Level
from ckpt_cli.orders import Order, written
from ckpt_cli.rebuild import NO_DIFFERENCES, Differences, Mismatch
from ckpt_cli.weights import bytes_held

# The package comes from where this one lies, and the current directory is no place to import from.
_START = "import sys; sys.path[0] = sys.argv[1]; from ckpt_cli.child import main; sys.exit(main())"
# Nothing is fetched, nothing is drawn.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_TICK = 0.5
# To load torch from a cold disk takes its time, which is not the checkpoint's.
_LEAST_PREPARATION = 120.0
_SIGNALS = {
    "SIGKILL": "its process was killed, as the system does when memory runs out",
    "SIGSEGV": "its process crashed: segmentation fault",
    "SIGBUS": "its process crashed: a file that it had mapped was shortened, or cannot be read",
    "SIGABRT": "its process gave up: abort",
}


class Outcome(NamedTuple):
    """What came of an order. `family` is None where none was told, `parameters` and `dtype` where no model was built,
    `logits` where none were computed; `peak` is the most memory that was held, in bytes."""

    levels: tuple[Level, ...]
    problems: tuple[Problem, ...]
    family: str | None
    device: str | None
    dtype: str | None
    parameters: int | None
    keys: Differences
    assumptions: tuple[Assumption, ...]
    logits: dict[str, Any] | None
    peak: int

    @property
    def failed(self) -> Level | None:
        """The first level that failed."""
        return next((level for level in self.levels if level.status == "fail"), None)


def run(order: Order, timeout: float) -> Outcome:
    """Runs the levels in a process of its own; no level may take more than `timeout` seconds.

    Raises CkptError where the order cannot be carried out: no checkpoint, an unknown model, a device that is not there.
    """
    heard: list[dict[str, Any]] = []
    at, start, why = "read", time.monotonic(), None
    with _started() as child:
        _send(child, written(order))
        lines = _Lines(child)
        while True:
            limit = max(timeout, _LEAST_PREPARATION) if at == PREPARATION else timeout
            event = lines.next(start + limit)
            if event is None:
                late = f"it took longer than {counted(limit, 'second', 'g')}, and was stopped"
                why = _end_of(child) if lines.ended else late
                break
            heard.append(event)
            if "begin" in event:
                at, start = event["begin"], time.monotonic()
            elif "level" in event:
                start = time.monotonic()
            elif "broken" in event:
                why = event["broken"]
                break
            elif "end" in event:
                break
            elif "error" in event:
                raise _error(*event["error"])
    return outcome_of(heard, at, why, time.monotonic() - start)


@contextmanager
def _started() -> Iterator[subprocess.Popen[bytes]]:
    """The process, which is gone when the block is left, with all that it started."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(levels.__file__)))
    with interruptible():
        child = subprocess.Popen(
            [sys.executable, "-c", _START, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
        try:
            yield child
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for stream in (child.stdin, child.stdout):
                with suppress(OSError):
                    stream.close()  # type: ignore[union-attr]


def _send(child: subprocess.Popen[bytes], text: str) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # it is dead already, which is seen when it is listened to
        child.stdin.write(text.encode() + b"\n")
        child.stdin.flush()


class _Lines:
    """What the process says, line by line."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        self.child, self.descriptor, self.buffer = child, child.stdout.fileno(), b""
        self.ended = False

    def next(self, deadline: float) -> dict[str, Any] | None:
        """The next one; None when the process has ended, or says nothing until `deadline` (time.monotonic)."""
        while b"\n" not in self.buffer:
            gone = self.child.poll() is not None
            wait = 0.0 if gone else min(_TICK, deadline - time.monotonic())
            ready = select.select([self.descriptor], [], [], max(0.0, wait))[0]
            data = os.read(self.descriptor, 1 << 16) if ready else b""
            # Others may hold the pipe open when the process itself is gone.
            self.ended = not data and bool(ready or gone)
            if self.ended or (not ready and time.monotonic() >= deadline):
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event


def _end_of(child: subprocess.Popen[bytes]) -> str:
    """What the process ended with that says nothing more, as a sentence."""
    try:
        code = child.wait(_TICK)
    except subprocess.TimeoutExpired:
        return "its process said nothing more, and was stopped"
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
    return f"{_SIGNALS.get(name, 'its process was ended')} ({name})"


def _error(message: str, hint: str | None, path: str | None, code: int, kind: str) -> CkptError:
    """The error that ended the process, as it was there."""
    children: dict[int, type[CkptError]] = {NotFound.code: NotFound, Refused.code: Refused}
    return children.get(code, CkptError)(message, hint, path, kind=kind)


def outcome_of(heard: Iterable[dict[str, Any]], at: str = "", why: str | None = None, seconds: float = 0.0) -> Outcome:
    """What the process said, put together. Where it ended too early, `why`, the level that it was at has failed."""
    facts: dict[str, Any] = {}
    done: list[Level] = []
    problems: list[Problem] = []
    for event in heard:
        if "level" in event:
            done.append(Level(*event["level"]))
        elif "problem" in event:
            code, detail, path = event["problem"]
            problems.append(Problem(code, detail, path or ""))
        else:
            facts |= event
    if why is not None:
        # What it was about to do when it was last heard of: torch is loaded to build the model.
        names = [level.name for level in done]
        lost = at if at in LEVELS and at not in names else next((n for n in LEVELS if n not in names), LEVELS[-1])
        if at == PREPARATION:
            lost = "build"
        problems.append(Problem("process", f"{lost}: {why}", ""))
        done.append(Level(lost, "fail", seconds, why))
        names.append(lost)
        done += [Level(name, "skip", 0.0, f"{lost} failed") for name in LEVELS if name not in names]
    missing, unexpected, mismatched = facts.get("keys", NO_DIFFERENCES)
    keys = Differences(
        tuple(missing),
        tuple(unexpected),
        tuple(Mismatch(name, tuple(expected), tuple(found)) for name, expected, found in mismatched),
    )
    order = {name: index for index, name in enumerate(LEVELS)}
    return Outcome(
        tuple(sorted(done, key=lambda level: order[level.name])),
        tuple(problems),
        facts.get("family"),
        facts.get("device"),
        facts.get("dtype"),
        facts.get("parameters"),
        keys,
        tuple(Assumption(*one) for one in facts.get("assumptions", ())),
        facts.get("logits"),
        facts.get("peak") or _peak_of_children(),
    )


def _peak_of_children() -> int:
    """The most memory that a process which was waited for has held."""
    import resource

    return bytes_held(resource.getrusage(resource.RUSAGE_CHILDREN))
