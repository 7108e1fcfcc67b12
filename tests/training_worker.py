"""A process that has imported torch and forks the ranks of a save for each line of its input, to be killed or failed.

A line is JSON: {"directory", "step", "value", "world", "optimizer", "fault": {"rank", "mode", "at"}, "hold"}. The
answer is {"codes", "said", "calls"}, each by rank: a code is 0, 3 for a CkptError, 4 for another failure, negative for
a signal; calls are those that change the file system. With "hold", the pid of rank 0 comes first, and rank 0 begins
when the file HOLD is there.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ckpt_cli.errors import CkptError
from ckpt_cli.training import save_checkpoint

CALLS = ("open", "write", "rename", "replace", "link", "unlink", "fsync", "mkdir", "rmdir", "ftruncate")
FAILED, BROKEN = 3, 4


def plant(mode: str, at: int, log: int) -> None:
    """Counts the calls that change the file system, and at the `at`-th dies or fails as `mode` says."""
    count = 0
    real_write = os.write

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if name == "open" and not (len(args) > 1 and args[1] & (os.O_CREAT | os.O_TRUNC)):
                return real(*args, **kwargs)
            count += 1
            real_write(log, (name + "\n").encode())
            if count != at:
                return real(*args, **kwargs)
            if mode == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if mode.startswith("E"):
                raise OSError(getattr(errno, mode), os.strerror(getattr(errno, mode)))
            if mode == "interrupt":
                raise KeyboardInterrupt
            if mode == "torn" and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **kwargs)
            finally:
                if mode == "after":
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((8,), value)}


def shard(value: float, rank: int) -> dict[str, Any]:
    return {"state": {0: {"step": int(value), "exp_avg": torch.full((4,), value + rank)}}, "param_groups": []}


def meta(step: int, value: float) -> dict[str, Any]:
    return {"step": step, "val_bpb": value}


def be_rank(task: dict[str, Any], rank: int, folder: str, log: int) -> int:
    world, fault = task["world"], task.get("fault") or {}
    while task.get("hold") and not os.path.exists(task["hold"]):
        time.sleep(0.005)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    if world > 1:
        meeting, wait = f"file://{folder}/meeting", timedelta(seconds=60)
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=wait)
        # No rank may die before all have met.
        distributed.barrier()
    mine = fault.get("rank", 0) == rank
    plant(fault.get("mode", "") if mine else "", fault.get("at", 0), log)
    step, value = task["step"], task["value"]
    optimizer = shard(value, rank) if task.get("optimizer", True) else None
    try:
        save_checkpoint(task["directory"], step, state(value), optimizer, meta(step, value), rank)
    except CkptError as error:
        print(error, file=sys.stderr)
        return FAILED
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr)
        return BROKEN
    return 0


def serve() -> None:
    gc.freeze()
    for line in sys.stdin:
        task = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            children = []
            for rank in range(task["world"]):
                child = os.fork()
                if not child:
                    code = 70
                    try:
                        log = os.open(f"{folder}/calls{rank}", os.O_WRONLY | os.O_CREAT, 0o600)
                        os.dup2(os.open(f"{folder}/said{rank}", os.O_WRONLY | os.O_CREAT, 0o600), 2)
                        code = be_rank(task, rank, folder, log)
                    finally:
                        sys.stderr.flush()
                        os._exit(code)
                children.append(child)
            if task.get("hold"):
                print(json.dumps({"pid": children[0]}), flush=True)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            said = [Path(folder, f"said{rank}").read_text() for rank in range(task["world"])]
            calls = [Path(folder, f"calls{rank}").read_text().split() for rank in range(task["world"])]
            print(json.dumps({"codes": codes, "said": said, "calls": calls}), flush=True)


if __name__ == "__main__":
    serve()
