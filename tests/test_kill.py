"""No kill, signal or failing system call at any point of a prune costs a kept checkpoint or leaves half of one.

Two ways to die. A worker process forks one child per point: the child counts its own calls that change the file
system and kills itself before, after or in the middle of the N-th. Where strace is installed, the kernel does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = (100, 200, 300, 400)
RUNS = ("d2", "d4")
CONTRACT_CODES = frozenset({0, 1, 2, 3, 4, 130})
TIMEOUT = 60

# One child a request: {"argv", "mode", "at", "full"}; the answer is {"code", "out", "err", "calls"}. `code` is negative
# for a signal. A call is counted when it would change the file system; each is one line of a file, so that it is known
# also of a child that was killed. On a `full` disk nothing can be made, until something is deleted or for good.
WORKER = r"""
import contextlib, errno, gc, io, json, os, signal, sys, tempfile
from ckpt_cli.app import main
# Whatever is imported on the way is imported here, once.
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    assert main(["prune", sys.argv[1], "--keep", "1", "-n"]) == 0
    main(["prune", sys.argv[1], "--undo"])
gc.freeze()

def plant(mode, at, full, log):
    count = 0
    def wrap(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            nonlocal count, full
            if name == "open" and not (len(args) > 1 and args[1] & (os.O_CREAT | os.O_TRUNC)):
                return real(*args, **kwargs)
            count += 1
            real_write(log, (name + "\n").encode())
            if name == "unlink" and full == "until freed":
                full = ""
            if full and name in ("open", "write", "mkdir", "link") and (count, mode) != (at, "before"):
                if (count, mode) == (at, "after"):
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if count != at:
                return real(*args, **kwargs)
            if mode == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if mode.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, mode))
            if mode.startswith("E"):
                raise OSError(getattr(errno, mode), os.strerror(getattr(errno, mode)))
            if mode == "torn" and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **kwargs)
            finally:
                if mode == "after":
                    os.kill(os.getpid(), signal.SIGKILL)
                if mode.startswith("after-SIG"):
                    os.kill(os.getpid(), getattr(signal, mode[6:]))
        return call
    real_write = os.write
    for name in CALLS:
        setattr(os, name, wrap(name))

CALLS = ("open", "write", "rename", "replace", "link", "unlink", "fsync", "mkdir", "rmdir", "ftruncate")
folder = tempfile.mkdtemp()
names = [os.path.join(folder, name) for name in ("out", "err", "calls")]
for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if not pid:
        for number, name in enumerate(names):
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, number + 1 if number < 2 else 9)
        plant(task["mode"], task["at"], task["full"], 9)
        code = 70
        try:
            code = main(task["argv"])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out, err, calls = (open(name).read() for name in names)
    print(json.dumps({"code": code, "out": out, "err": err, "calls": calls.split()}), flush=True)
"""


class Ended(NamedTuple):
    """How a child ended; `calls` are those that change the file system, by name."""

    code: int
    out: str
    err: str
    calls: list[str]


class Worker:
    """A process that has imported ckpt and forks one child for each command."""

    def __init__(self, home: Path, tree: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tree)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env=_environment(home),
        )

    def run(self, argv: Sequence[object], mode: str = "", at: int = 0, full: str = "") -> Ended:
        assert self.process.stdin and self.process.stdout
        task = {"argv": list(map(str, argv)), "mode": mode, "at": at, "full": full}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        ended = Ended(**json.loads(self.process.stdout.readline()))
        assert "Traceback" not in ended.err and "went wrong" not in ended.err, ended.err
        assert ended.code in CONTRACT_CODES or ended.code < 0, ended
        return ended

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(TIMEOUT)
        self.process.stdout.close()


def _environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


class Bench:
    """Fresh trees, workers for two threads, and what every file of a whole tree holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pristine = folder / "pristine"
        write_tree(self.pristine, RUNS)
        self.whole = contents(self.pristine)
        self.workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self.everyone = [Worker(folder, self.pristine) for _ in range(min(3, os.cpu_count() or 1))]
        for worker in self.everyone:
            self.workers.put(worker)

    @contextmanager
    def lent(self) -> Iterator[Worker]:
        """A worker that nobody else has meanwhile, and that comes back also from a check that fails."""
        worker = self.workers.get()
        try:
            yield worker
        finally:
            self.workers.put(worker)

    def each(self, check: Callable[[Worker, Path, Any], None], points: Sequence[Any], base: Path) -> None:
        """Calls `check` for every point, each with a worker and its own copy of the tree `base`."""

        def one(numbered: tuple[int, Any]) -> None:
            index, point = numbered
            tree = self.folder / f"tree-{index}"
            try:
                copy(base, tree)
                with self.lent() as worker:
                    check(worker, tree, point)
            except Exception as error:
                raise AssertionError(f"at {point}: {error}") from error
            finally:
                shutil.rmtree(tree, ignore_errors=True)

        with ThreadPoolExecutor(len(self.everyone)) as pool:
            for future in [pool.submit(one, numbered) for numbered in enumerate(points)]:
                future.result()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("kill"))
    yield made
    for worker in made.everyone:
        worker.close()
    print("\npoints tried:", ", ".join(f"{name} {count}" for name, count in TRIED.items()), f"= {sum(TRIED.values())}")


# How many points each test tried, for the summary that -s shows.
TRIED: dict[str, int] = {}


def write_tree(root: Path, runs: Sequence[str]) -> None:
    """Runs of four steps with two optimizer shards, each step written two days ago and after the one before."""
    import torch

    old = time.time() - 2 * 86400
    for run in runs:
        folder = root / "base_checkpoints" / run
        folder.mkdir(parents=True)
        for step in STEPS:
            for name in part_names(step):
                value = {"weight": torch.full((8,), float(step))}
                if name.endswith(".json"):
                    (folder / name).write_text(json.dumps({"step": step, "val_bpb": 1 - step / 1000}))
                else:
                    torch.save(value, folder / name)
                os.utime(folder / name, (old + step, old + step))


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


TRAINER = ("model.safetensors", "config.json", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def write_trainer(run: Path, steps: tuple[int, ...], best: int | None = None) -> Path:
    """A run of transformers' Trainer, each step two days old and after the one before."""
    import torch
    from safetensors.torch import save_file

    for step in steps:
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"w": torch.full((4,), float(step))}, folder / "model.safetensors")
        state: dict[str, Any] = {"global_step": step, "log_history": [{"step": step, "eval_loss": 1 - step / 1000}]}
        if best is not None:
            state |= {"best_global_step": best, "best_model_checkpoint": f"/moved/checkpoint-{best}"}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
        for name in TRAINER[3:]:
            torch.save({"step": torch.tensor(float(step))}, folder / name)
        for name in TRAINER:
            age(folder / name, 2 * 86400 - step)
    return run


def part_names(step: int) -> list[str]:
    return [
        f"model_{step:06d}.pt",
        f"meta_{step:06d}.json",
        f"optim_{step:06d}_rank0.pt",
        f"optim_{step:06d}_rank1.pt",
    ]


def contents(root: Path) -> dict[str, bytes]:
    """Every file below, by relative name."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def copy(source: Path, target: Path) -> None:
    """A copy whose journals hold: they know files by inode and time, so what lies in a trash is moved by a link."""
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    # ckpt writes into no checkpoint file, so linked copies share bytes and inodes; a journal is written into.
    if os.path.basename(source) == "journal":
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def trainers_newest(run: Path) -> int | None:
    """What the trainer itself would resume from: the largest step among the model files."""
    steps = [int(match[1]) for name in os.listdir(run) if (match := re.fullmatch(r"model_([0-9]+)\.pt", name))]
    return max(steps, default=None)


def is_whole(tree: Path, run: str, step: int, whole: dict[str, bytes]) -> bool:
    folder = tree / "base_checkpoints" / run
    return all(
        (folder / name).is_file() and (folder / name).read_bytes() == whole[f"base_checkpoints/{run}/{name}"]
        for name in part_names(step)
    )


def check_instant(tree: Path, kept: Sequence[int], whole: dict[str, bytes]) -> None:
    """At the instant of death: everything that is kept is whole, and so is what the trainer would resume from."""
    for run in os.listdir(tree / "base_checkpoints"):
        for step in kept:
            assert is_whole(tree, run, step, whole), f"{run}/{step} is kept and not whole"
        newest = trainers_newest(tree / "base_checkpoints" / run)
        if newest is not None:
            assert is_whole(tree, run, newest, whole), f"the trainer of {run} would resume from half of {newest}"


def check_settled(tree: Path, kept: Sequence[int], whole: dict[str, bytes], trash: bool = False) -> None:
    """After the next prune: nothing half gone, and no trash unless one was asked for."""
    check_instant(tree, kept, whole)
    for run in os.listdir(tree / "base_checkpoints"):
        folder = tree / "base_checkpoints" / run
        assert trash or not (folder / ".ckpt-trash").exists(), f"{run}: {contents(folder).keys()}"
        for step in STEPS:
            home = [name for name in part_names(step) if (folder / name).exists()]
            away = [path for name in part_names(step) for path in folder.glob(f".ckpt-trash/*/{name}")]
            if home:
                assert is_whole(tree, run, step, whole) and not away, f"{run}/{step}: only {home} at home, {away} away"
            elif away:
                assert len({path.parent for path in away}) == 1 and len(away) == len(part_names(step)), away
                for path in away:
                    assert path.read_bytes() == whole[f"base_checkpoints/{run}/{path.name}"], path


def points_of(calls: Sequence[str]) -> list[tuple[str, int]]:
    """Before and after each call, and in the middle of each write."""
    every = range(1, len(calls) + 1)
    torn = [("torn", n) for n in every if calls[n - 1] == "write"]
    return [("before", n) for n in every] + [("after", n) for n in every] + torn


def note_tried(name: str, count: int) -> None:
    TRIED[name] = TRIED.get(name, 0) + count


def counted(bench: Bench, argv: Sequence[str], base: Path) -> list[str]:
    """The calls that a whole run of the command makes, found by running it."""
    tree = bench.folder / "counting"
    copy(base, tree)
    with bench.lent() as worker:
        ended = worker.run([argv[0], tree, *argv[1:]])
    shutil.rmtree(tree)
    assert ended.code == 0, ended.err
    assert len(ended.calls) > 5, ended.calls
    return ended.calls


PRUNE = ("prune", "--keep", "2", "--yes")
TRASH = ("prune", "--keep", "2", "--trash", "--yes")
UNDO = ("prune", "--undo")
PURGE = ("prune", "--purge", "--yes")


@pytest.fixture(scope="module")
def trashed(bench: Bench) -> Path:
    """The tree after `prune --keep 2 --trash`."""
    tree = bench.folder / "trashed"
    copy(bench.pristine, tree)
    with bench.lent() as worker:
        ended = worker.run([TRASH[0], tree, *TRASH[1:]])
    assert ended.code == 0, ended.err
    assert len(list(tree.glob("base_checkpoints/*/.ckpt-trash/*/model_*.pt"))) == 4
    return tree


@pytest.fixture(scope="module")
def single(bench: Bench) -> Path:
    """A tree of one run."""
    tree = bench.folder / "single"
    copy(bench.pristine / "base_checkpoints" / RUNS[0], tree / "base_checkpoints" / RUNS[0])
    return tree


def test_killed_prune(bench: Bench) -> None:
    """A kill anywhere in a prune; the next prune ends as if there had been none."""
    calls = counted(bench, PRUNE, bench.pristine)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([PRUNE[0], tree, *PRUNE[1:]], *point).code == -signal.SIGKILL
        check_instant(tree, (300, 400), bench.whole)
        after = worker.run([PRUNE[0], tree, *PRUNE[1:]])
        assert after.code == 0, after.err
        check_settled(tree, (300, 400), bench.whole)
        assert not list(tree.rglob("model_000[12]00.pt")), "the second prune left what the policy does not keep"

    points = points_of(calls)
    bench.each(check, points, bench.pristine)
    note_tried("prune", len(points))
    # 16 files of 4 checkpoints, each renamed and deleted, and a journal for each run.
    assert calls.count("rename") == 16 and calls.count("unlink") == 18 and calls.count("mkdir") == 4, calls


def test_killed_prune_then_another_policy(bench: Bench) -> None:
    """A killed prune is put back, or finished, also by a prune that would keep everything."""
    calls = counted(bench, PRUNE, bench.pristine)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([PRUNE[0], tree, *PRUNE[1:]], *point).code == -signal.SIGKILL
        after = worker.run(["prune", tree, "--keep", "9", "--yes"])
        assert after.code == 0, after.err
        check_settled(tree, (300, 400), bench.whole)

    points = [("before", n) for n in range(1, len(calls) + 1)]
    bench.each(check, points, bench.pristine)
    note_tried("prune, then all kept", len(points))


def test_killed_whole_run(bench: Bench, single: Path) -> None:
    """A kill while a whole run goes: what the trainer finds is whole or nothing, at every instant."""
    argv = ("prune", "--tag", "d2", "--keep", "0", "--allow-empty", "--yes")
    calls = counted(bench, argv, single)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([argv[0], tree, *argv[1:]], *point).code == -signal.SIGKILL
        check_instant(tree, (), bench.whole)
        # 1: the deletion was finished, and then there is nothing left to prune.
        assert worker.run(["prune", tree, "--keep", "9", "--yes"]).code in (0, 1)
        check_settled(tree, (), bench.whole)

    points = points_of(calls)
    bench.each(check, points, single)
    note_tried("whole run", len(points))


def test_killed_trash(bench: Bench) -> None:
    """A kill anywhere in `prune --trash`: the next prune puts back what was not journalled as moved."""
    calls = counted(bench, TRASH, bench.pristine)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([TRASH[0], tree, *TRASH[1:]], *point).code == -signal.SIGKILL
        check_instant(tree, (300, 400), bench.whole)
        after = worker.run(["prune", tree, "--keep", "9", "--yes"])
        assert after.code == 0, after.err
        check_settled(tree, (300, 400), bench.whole, trash=True)
        # What is in a trash now is whole there, and comes back.
        if list(tree.rglob(".ckpt-trash")):
            assert worker.run([UNDO[0], tree, *UNDO[1:]]).code == 0
        assert contents(tree) == bench.whole

    points = points_of(calls)
    bench.each(check, points, bench.pristine)
    note_tried("trash", len(points))


@pytest.mark.parametrize("argv", [UNDO, PURGE], ids=["undo", "purge"])
def test_killed_settlement(bench: Bench, trashed: Path, argv: tuple[str, ...]) -> None:
    """A kill anywhere in `--undo` or `--purge`: the next prune leaves each checkpoint whole, trashed whole or gone."""
    calls = counted(bench, argv, trashed)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([argv[0], tree, *argv[1:]], *point).code == -signal.SIGKILL
        check_instant(tree, (300, 400), bench.whole)
        after = worker.run(["prune", tree, "--keep", "9", "--yes"])
        assert after.code == 0, after.err
        check_settled(tree, (300, 400), bench.whole, trash=True)
        # And what is left does what was asked for, as if there had been no kill.
        if list(tree.rglob(".ckpt-trash")):
            assert worker.run([argv[0], tree, *argv[1:]]).code == 0
        check_settled(tree, (300, 400), bench.whole)
        if argv is UNDO:
            assert contents(tree) == bench.whole

    points = points_of(calls)
    bench.each(check, points, trashed)
    note_tried(argv[1].strip("-"), len(points))


@pytest.mark.parametrize("argv", [PRUNE, UNDO, PURGE], ids=["prune", "undo", "purge"])
def test_killed_recovery(bench: Bench, single: Path, argv: tuple[str, ...]) -> None:
    """A kill at every point of the prune that recovers from a kill, for every state that a first kill leaves."""
    base, keep = single, ("prune", "--keep", "3", "--yes")
    if argv is PRUNE:
        argv = keep
    with bench.lent() as worker:
        if argv is not keep:
            base = bench.folder / f"base-{argv[1]}"
            copy(single, base)
            assert worker.run([keep[0], base, *keep[1:], "--trash"]).code == 0
        calls = counted_by(worker, argv, base, bench.folder / "counting")
        states: dict[str, tuple[Path, list[int]]] = {}
        for number in range(1, len(calls) + 1):
            tree = bench.folder / f"state{argv[1]}-{number}"
            copy(base, tree)
            assert worker.run([argv[0], tree, *argv[1:]], "before", number).code == -signal.SIGKILL
            shape = re.sub(r"[0-9]{8}-[0-9a-f-]+", "ID", repr(sorted(map(str, _shape(tree)))))
            if shape in states:
                shutil.rmtree(tree)
                continue
            recovery = counted_by(worker, keep, tree, bench.folder / "counting", least=0)
            # A kill after an fsync leaves what a kill before it leaves.
            numbers = [n for n in range(1, len(recovery) + 1) if n == 1 or recovery[n - 2] != "fsync"]
            states[shape] = tree, numbers
    assert len(states) > 6, "the first kills leave fewer states than there are files to move"

    def check(worker: Worker, tree: Path, point: tuple[Path, int]) -> None:
        shutil.rmtree(tree)
        copy(point[0], tree)
        assert worker.run([keep[0], tree, *keep[1:]], "before", point[1]).code == -signal.SIGKILL
        check_instant(tree, (200, 300, 400), bench.whole)
        after = worker.run([keep[0], tree, *keep[1:]])
        assert after.code == 0, after.err
        # A trash that nothing had begun to undo or purge stays, whole.
        check_settled(tree, (200, 300, 400), bench.whole, trash=argv is not keep)

    points = [(tree, number) for tree, numbers in states.values() for number in numbers]
    bench.each(check, points, single)
    note_tried("recovery", len(points))
    for tree, _ in states.values():
        shutil.rmtree(tree)


def optimizers(tree: Path, run: str, step: int) -> list[str]:
    """The optimizer's files that lie in their place, each as it was."""
    return [name for name in part_names(step)[2:] if (tree / "base_checkpoints" / run / name).exists()]


STRIP = ("prune", "--keep", "2", "--optimizer-only", "--yes")


@pytest.mark.parametrize("argv", [STRIP, (*STRIP, "--trash")], ids=["strip", "trash"])
def test_killed_optimizer_only(bench: Bench, argv: tuple[str, ...]) -> None:
    """A kill anywhere while optimizers go: every model stays, and of each step all ranks are there or none."""
    calls = counted(bench, argv, bench.pristine)

    def models(tree: Path) -> None:
        for run in RUNS:
            for step in (100, 200):
                for name in part_names(step)[:2]:
                    path = f"base_checkpoints/{run}/{name}"
                    assert (tree / path).read_bytes() == bench.whole[path], path
        check_instant(tree, (300, 400), bench.whole)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([argv[0], tree, *argv[1:]], *point).code == -signal.SIGKILL
        models(tree)
        assert worker.run(["prune", tree, "--keep", "9", "--yes"]).code == 0
        models(tree)
        for run in RUNS:
            for step in (100, 200):
                assert len(optimizers(tree, run, step)) in (0, 2), f"{run}/{step} has lost a rank"
        if argv is not STRIP:
            if list(tree.rglob(".ckpt-trash")):
                assert worker.run([UNDO[0], tree, *UNDO[1:]]).code == 0
            assert contents(tree) == bench.whole
            return
        after = worker.run([STRIP[0], tree, *STRIP[1:]])
        assert after.code == 0, after.err
        models(tree)
        assert not any(optimizers(tree, run, step) for run in RUNS for step in (100, 200))
        assert not list(tree.rglob(".ckpt-trash*"))

    points = points_of(calls)
    bench.each(check, points, bench.pristine)
    note_tried("optimizer only", len(points))


@pytest.mark.parametrize("how", ["trash", "undo"])
def test_killed_while_a_manifest_changes(bench: Bench, how: str) -> None:
    """It never says of a file what is not so, and an undo that comes to its end has brought all of it back."""
    recorded, strip = bench.folder / f"recorded-{how}", (*STRIP, "--trash")
    copy(bench.pristine, recorded)
    with bench.lent() as worker:
        assert worker.run(["verify", recorded, "--record"]).code == 0
        whole = contents(recorded)
        if how == "undo":
            assert worker.run([strip[0], recorded, *strip[1:]]).code == 0
    argv = UNDO if how == "undo" else strip
    calls = counted(bench, argv, recorded)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([argv[0], tree, *argv[1:]], *point).code == -signal.SIGKILL
        assert worker.run(["prune", tree, "--keep", "9", "--yes"]).code == 0
        assert worker.run(["verify", tree]).code == 0
        if list(tree.rglob(".ckpt-trash")):
            assert worker.run([UNDO[0], tree, *UNDO[1:]]).code == 0
        assert contents(tree) == whole
        assert worker.run(["verify", tree]).code == 0

    points = points_of(calls)
    bench.each(check, points, recorded)
    note_tried("manifests", len(points))


@pytest.fixture(scope="module")
def stepped(bench: Bench) -> Path:
    """A run whose steps are folders."""
    write_trainer(bench.folder / "stepped" / "out", (100, 200, 300))
    return bench.folder / "stepped"


@pytest.mark.parametrize("how", ["prune", "trash", "undo", "purge"])
def test_killed_among_folders(bench: Bench, stepped: Path, how: str) -> None:
    """Steps that are folders: each is whole, in the trash or gone altogether, and the trainer finds a whole one."""
    whole = contents(stepped)
    keep = ("prune", "--keep", "1", "--yes")
    base, argv = stepped, {"trash": (*keep, "--trash"), "undo": UNDO, "purge": PURGE}.get(how, keep)
    with bench.lent() as worker:
        if how in ("undo", "purge"):
            base = bench.folder / f"stepped-{how}"
            copy(stepped, base)
            assert worker.run([keep[0], base, *keep[1:], "--trash"]).code == 0
        calls = counted_by(worker, argv, base, bench.folder / "counting")

    def is_there(tree: Path, step: int) -> bool:
        folder = tree / "out" / f"checkpoint-{step}"
        return all((folder / name).exists() and (folder / name).read_bytes() == whole[f"out/{folder.name}/{name}"]
                   for name in TRAINER)  # fmt: skip

    def instant(tree: Path) -> None:
        found = max(int(path.name.partition("-")[2]) for path in (tree / "out").glob("checkpoint-*"))
        assert found == 300 and is_there(tree, 300)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([argv[0], tree, *argv[1:]], *point).code == -signal.SIGKILL
        instant(tree)
        after = worker.run(["prune", tree, "--keep", "9", "--yes"])
        assert after.code == 0, after.err
        instant(tree)
        for step in (100, 200):
            away = list((tree / "out").glob(f".ckpt-trash/*/checkpoint-{step}/*"))
            here = list((tree / "out").glob(f"checkpoint-{step}/*"))
            assert (is_there(tree, step) and not away) or (not here and len(away) in (0, len(TRAINER))), (here, away)
        after = worker.run([argv[0], tree, *argv[1:]])
        assert after.code in (0, 1), after.err  # 1: of an undo or a purge there was nothing left to do
        wanted = [300] if how != "undo" else [100, 200, 300]
        assert [step for step in (100, 200, 300) if (tree / "out" / f"checkpoint-{step}").exists()] == wanted
        if how != "trash":
            assert {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()} == {
                name for name in whole if int(name.split("/")[1][11:]) in wanted
            }
            assert not list(tree.rglob(".ckpt-trash*"))

    points = points_of(calls)
    bench.each(check, points, base)
    note_tried(f"folders, {how}", len(points))


def write_layout(layout: str, root: Path) -> None:
    """Checkpoints of one run as their trainer writes them, real files of real torch, the newest last."""
    import torch
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"w": torch.ones(4)}

    def put(name: str, value: dict[str, Any] = state) -> None:
        path = root / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(value, path) if path.suffix == ".safetensors" else torch.save(value, path)

    if layout == "huggingface":
        write_trainer(root / "run", (1, 2, 3))
    elif layout == "nanoGPT":
        put("ckpt.pt", {"model": state, "optimizer": {}, "iter_num": 3, "model_args": {}, "config": {}})
    elif layout == "torchtune epochs":
        put("recipe_state/recipe_state.pt", {"epochs_run": 4, "seed": 1})
    elif layout == "litgpt":
        put("final/lit_model.pth")
        (root / "run/final/model_config.yaml").write_text("n_layer: 1\n")
    elif layout == "meta":
        put("consolidated.00.pth")
        put("consolidated.01.pth")
        (root / "run/params.json").write_text('{"dim": 4, "n_layers": 1}')
        (root / "run/tokenizer.model").write_bytes(b"IQ== 0\n")
    elif layout == "loose":
        put("finetuned.pt")
        put("merged.safetensors")
        put("optimizer.pt", {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"params": [0]}]})
        digest = hashlib.sha256((root / "run/finetuned.pt").read_bytes()).hexdigest()
        (root / "run/finetuned.pt.sha256").write_text(f"{digest}  finetuned.pt\n")
    for number in (1, 2, 3):
        if layout == "nano-gpt":
            put(f"checkpoint_{number:06d}.bin")
        elif layout == "build-nanogpt":
            put(f"model_{number:05d}.pt")
        elif layout == "lightning":
            put(f"epoch={number}-step={number}.ckpt")
        elif layout == "torchtune flat":
            put(f"hf_model_0001_{number}.pt")
            put(f"hf_model_0002_{number}.pt")
        elif layout == "torchtune":
            put(f"step_{number}/ft-model-00001-of-00002.safetensors")
            put(f"step_{number}/ft-model-00002-of-00002.safetensors")
            put(f"step_{number}/recipe_state.pt", {"epochs_run": 1, "steps_run": number, "seed": 1})
        elif layout == "torchtune epochs":
            put(f"epoch_{number}/ft-model-00001-of-00001.safetensors")
            put(f"epoch_{number}/original/tokenizer.model")
        elif layout == "dcp":
            save(state, checkpoint_id=str(root / "run" / f"step-{number}"), no_dist=True)
        elif layout == "accelerate":  # which counts its saves from 0
            put(f"checkpoints/checkpoint_{number - 1}/model.safetensors")
            put(f"checkpoints/checkpoint_{number - 1}/optimizer.bin", {"state": {}, "param_groups": []})
            put(f"checkpoints/checkpoint_{number - 1}/random_states_0.pkl", {"step": number})
        elif layout == "litgpt":
            put(f"step-{number:08d}/lit_model.pth", {"model": state, "optimizer": {}, "step_count": number})
            (root / f"run/step-{number:08d}/model_config.yaml").write_text("n_layer: 1\n")
        elif layout == "fairseq":  # an epoch's file is copied to the last, and the first is the best
            put(f"checkpoint{number}.pt", {"cfg": None, "model": state, "extra_state": {"epoch": number}})
            for copied in ("last", "best")[: 2 if number == 1 else 1]:
                shutil.copy(root / f"run/checkpoint{number}.pt", root / f"run/checkpoint_{copied}.pt")
        elif layout == "fairseq shards":  # one a process
            for name in (f"checkpoint{number}", "checkpoint_last") if number < 3 else ():
                put(f"{name}-shard0.pt", {"cfg": None, "model": state, "extra_state": {"epoch": number}})
                put(f"{name}-shard1.pt", {"cfg": None, "model": state, "extra_state": {"epoch": number}})
    for path in root.rglob("*"):
        if path.is_file():
            found = re.findall("[0-9]+", path.relative_to(root).as_posix().split("/")[1])
            age(path, 2 * 86400 - int(found[-1] if found else 3))


def largest(pattern: str) -> Callable[[Path], Path | None]:
    """Finds the largest number among such names in a run."""

    def find(run: Path) -> Path | None:
        names = os.listdir(run) if run.exists() else []
        found = {int(match[1]): match[0] for name in names if (match := re.fullmatch(pattern, name))}
        return run / found[max(found)] if found else None

    return find


def always(name: str) -> Callable[[Path], Path | None]:
    """Finds the one name that a trainer goes on from, and starts anew without."""
    return lambda run: run / name if (run / name).is_file() else None


def last_of_accelerate(run: Path) -> Path | None:
    """As load_state does: every name in the folder has to hold a number, or it fails, and so does save_state."""
    folder = run / "checkpoints"
    names = sorted(os.listdir(folder) if folder.exists() else [], key=lambda name: int(re.findall("[0-9]+", name)[0]))
    # It would fail loudly at a trash, which has no model.
    return folder / names[-1] if names and not names[-1].startswith(".") else None


def last_of_litgpt(run: Path) -> Path | None:
    """As `--resume auto` does: in every folder below, hidden ones too, and it reads nothing but that file."""
    found = max(run.rglob("step-*/*.pth"), key=lambda path: int(path.parent.name.split("-")[1]), default=None)
    return found.parent if found and found.parent.parent == run else found


def llama_of_two(run: Path) -> Path | None:
    """As Meta's own code does for two processes, given the folder: it counts the shards, then reads the parameters."""
    return run if len(list(run.glob("*.pth"))) == 2 and (run / "params.json").is_file() else None


# How the trainer itself, or who starts it again, finds the newest. None: flat epochs of torchtune are named one by one
# in its configuration, nanoGPT has one file, and loose ones are named by hand. Of fairseq's shards the first process
# looks for its own.
FOUND_BY: dict[str, Callable[[Path], Path | None] | None] = {
    "nano-gpt": largest(r"checkpoint_([0-9]+)\.bin"),
    "build-nanogpt": largest(r"model_([0-9]+)\.pt"),
    "nanoGPT": None,
    "lightning": largest(r"epoch=[0-9]+-step=([0-9]+)\.ckpt"),
    "torchtune flat": None,
    "torchtune": largest("step_([0-9]+)"),
    "torchtune epochs": largest("epoch_([0-9]+)"),
    "dcp": largest("step-([0-9]+)"),
    "huggingface": largest("checkpoint-([0-9]+)"),
    "accelerate": last_of_accelerate,
    "fairseq": always("checkpoint_last.pt"),
    "fairseq shards": always("checkpoint_last-shard0.pt"),
    "litgpt": last_of_litgpt,
    "meta": llama_of_two,
    "loose": None,
}
FOLDERS = ("torchtune", "torchtune epochs", "dcp", "huggingface", "accelerate", "litgpt")
# How many checkpoints lie in the run, where it is not one a step.
COUNTS = {"nanoGPT": 1, "meta": 1, "litgpt": 4, "fairseq": 5}


class Case:
    """A tree of one layout: the files of each checkpoint by its ref, the newest last."""

    def __init__(self, bench: Bench, layout: str) -> None:
        self.layout, self.base = layout, bench.folder / f"of {layout}"
        if not self.base.exists():
            write_layout(layout, self.base)
        self.whole = contents(self.base)
        with bench.lent() as worker:
            listed = json.loads(worker.run(["list", self.base, "--json"]).out)["checkpoints"]
        assert len(listed) == COUNTS.get(layout, 3), listed
        assert {c["layout"] for c in listed} == {layout.split()[0]}, listed
        self.sets = {c["ref"]: [os.path.relpath(part["path"], self.base) for part in c["parts"]] for c in listed}
        self.all = [name for names in self.sets.values() for name in names]
        assert sorted(self.all) == sorted(self.whole)
        # What has no number is replaced by no step.
        self.kept = [c["ref"] for c in listed if c["step"] is None or c == listed[-1]]
        self.whole_run = (*WHOLE_RUN, "--tag", listed[0]["tag"])

    def there(self, tree: Path, ref: str) -> list[bool]:
        return [(tree / name).is_file() and (tree / name).read_bytes() == self.whole[name] for name in self.sets[ref]]

    def check_found(self, tree: Path, killed: bool) -> None:
        """At the instant of death: what the trainer would find is whole; after a kill it is nothing only where no
        whole checkpoint is left that it could have found.
        """
        find = FOUND_BY[self.layout]
        found = find(tree / "run") if find else None
        if found and ".ckpt-trash" in str(found):
            assert found.read_bytes() == self.whole[re.sub(".ckpt-trash[^/]*/[^/]*/", "", str(found.relative_to(tree)))]
        elif found:
            place = str(found.relative_to(tree))
            own = next(names for names in self.sets.values() if any((n + "/").startswith(place + "/") for n in names))
            for name in own:
                assert (tree / name).is_file(), f"the trainer would find half of {place}: {name} is gone"
                assert (tree / name).read_bytes() == self.whole[name]
        elif find and killed:
            # LitGPT goes on from steps alone.
            left = [ref for ref in self.sets if all(self.there(tree, ref)) and ref != "run/final"]
            assert not left, f"the trainer would find nothing, and {left} are there"

    def check_settled(self, tree: Path) -> None:
        """After the next prune: every checkpoint is there or gone, and there is no trash."""
        for ref in self.sets:
            there = self.there(tree, ref)
            assert all(there) or not any(there), f"{ref} is half there"
        assert not list(tree.rglob(".ckpt-trash*"))

    def check_again(self, worker: Worker, tree: Path, argv: Sequence[str], stays: Sequence[str]) -> None:
        """The same prune once more does what was asked for."""
        again = worker.run([argv[0], tree, *argv[1:]])
        if again.code == 2 and contents(tree):  # what one failure has left of a run, alone, is called otherwise
            (left,) = json.loads(worker.run(["list", tree, "--json"]).out)["checkpoints"]
            again = worker.run([*WHOLE_RUN, tree, "--tag", left["tag"]])
        assert again.code in ((0,) if stays else (0, 1, 2)), again
        assert set(contents(tree)) == {name for ref in stays for name in self.sets[ref]}


KEEP_ONE = ("prune", "--keep", "1", "--yes")
WHOLE_RUN = ("prune", "--keep", "0", "--allow-empty", "--yes")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("argv", [KEEP_ONE, WHOLE_RUN], ids=["keep one", "whole run"])
@pytest.mark.parametrize("layout", FOUND_BY)
def test_killed_prune_of_each_layout(bench: Bench, layout: str, argv: tuple[str, ...]) -> None:
    """Killed, or a call failing, at every point: what is kept is whole then, each other one whole or gone."""
    case = Case(bench, layout)
    stays = case.kept if argv is KEEP_ONE else []
    if argv is WHOLE_RUN:
        argv = case.whole_run
    with bench.lent() as worker:
        calls = counted_by(worker, argv, case.base, bench.folder / "counting layouts", least=0)
    if set(stays) == set(case.sets):
        assert not calls
        pytest.skip("nothing of it goes but all of it, so that nothing is touched")
    assert len(calls) > 5, calls
    # A folder goes by one rename, and so does the one with what its run shares.
    shared = layout == "torchtune epochs" and not stays
    assert layout not in FOLDERS or calls.count("rename") == len(case.sets) - len(stays) + shared, calls

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        ended = worker.run([argv[0], tree, *argv[1:]], *point)
        assert ended.code == -signal.SIGKILL or (point[0].startswith("E") and ended.code in CONTRACT_CODES), ended
        assert all(all(case.there(tree, ref)) for ref in stays)
        case.check_found(tree, ended.code == -signal.SIGKILL)
        # 1: all of it was gone.
        after = worker.run(["prune", tree, "--keep", "9", "--yes"])
        assert after.code == 0 or (after.code == 1 and not stays), after.err
        case.check_settled(tree)
        assert all(all(case.there(tree, ref)) for ref in stays)
        case.check_again(worker, tree, argv, stays)

    failing = [(name, n) for name in ("EIO", "ENOSPC", "EXDEV") for n in range(1, len(calls) + 1)]
    # After a call is before the next one.
    points = [*(point for point in points_of(calls) if point[0] != "after" or point[1] == len(calls)), *failing]
    bench.each(check, points, case.base)
    note_tried(f"layouts, {layout}", len(points))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("full", ["until freed", "for good"])
@pytest.mark.parametrize("argv", [KEEP_ONE, WHOLE_RUN], ids=["keep one", "whole run"])
@pytest.mark.parametrize("layout", FOUND_BY)
def test_killed_on_a_full_disk(bench: Bench, layout: str, argv: tuple[str, ...], full: str) -> None:
    """Killed at every point of a prune that has no room for a journal: still each is whole, or gone after the next."""
    case = Case(bench, layout)
    stays = case.kept if argv is KEEP_ONE else []
    if argv is WHOLE_RUN:
        argv = case.whole_run
    if set(stays) == set(case.sets):
        pytest.skip("nothing of it goes but all of it, so that nothing is touched")
    with bench.lent() as worker:
        calls = counted_by(worker, argv, case.base, bench.folder / "counting full", full=full)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        assert worker.run([argv[0], tree, *argv[1:]], *point, full).code == -signal.SIGKILL
        case.check_found(tree, True)
        assert all(all(case.there(tree, ref)) for ref in stays)
        after = worker.run(["prune", tree, "--keep", "9", "--yes"])
        assert after.code == 0 or (after.code == 1 and not stays), after.err
        case.check_settled(tree)
        case.check_again(worker, tree, argv, stays)

    # After a call is before the next one.
    points = [*(("before", n) for n in range(1, len(calls) + 1)), ("after", len(calls))]
    bench.each(check, points, case.base)
    note_tried(f"full disk, {layout}", len(points))


@pytest.mark.parametrize("moved", [False, True])
def test_a_trash_beside_what_accelerate_numbers(bench: Bench, tmp_path: Path, moved: bool) -> None:
    """It goes on from the newest while some lie in the trash; they come back, also in a folder of another name."""
    case = Case(bench, "accelerate")
    tree = tmp_path / "tree"
    copy(case.base, tree)
    with bench.lent() as worker:
        assert worker.run(["prune", tree, "--keep", "1", "--trash", "--yes"]).code == 0
        assert last_of_accelerate(tree / "run") == tree / "run/checkpoints/checkpoint_2"
        assert worker.run(["list", tree, "-q"]).out == f"{case.kept[0]}\n"
        if moved:
            (tree / "run/checkpoints").rename(tree / "run/old")
        listed = worker.run(["list", tree, "--trash"])
        assert listed.code == 0 and all(ref in listed.out for ref in set(case.sets) - set(case.kept))
        assert worker.run(["prune", tree, "--undo"]).code == 0
        if moved:
            (tree / "run/old").rename(tree / "run/checkpoints")
    assert contents(tree) == case.whole and not list(tree.rglob(".ckpt-trash*"))


def test_what_fairseq_goes_on_from_may_be_a_link(bench: Bench, tmp_path: Path) -> None:
    """One that stands for the newest epoch leads to it for as long as it is there, though the whole run is to go."""
    case = Case(bench, "fairseq")
    tree = tmp_path / "tree"
    copy(case.base, tree)
    last = tree / "run/checkpoint_last.pt"
    last.unlink()
    last.symlink_to("checkpoint3.pt")
    with bench.lent() as worker:
        for argv in (KEEP_ONE, case.whole_run):
            worker.run([argv[0], tree, *argv[1:]])
            assert last.read_bytes() == case.whole["run/checkpoint3.pt"]
            assert not (tree / "run/checkpoint1.pt").exists()


def _shape(tree: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes: what tells one state that a kill left from another."""
    for path in tree.rglob("*"):
        yield str(path.relative_to(tree)), path.stat().st_size if path.is_file() else -1


def counted_by(
    worker: Worker, argv: Sequence[str], base: Path, tree: Path, least: int = 6, full: str = ""
) -> list[str]:
    copy(base, tree)
    ended = worker.run([argv[0], tree, *argv[1:]], full=full)
    shutil.rmtree(tree)
    assert ended.code == 0 and len(ended.calls) >= least, ended
    return ended.calls


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal(bench: Bench, single: Path, name: str) -> None:
    """Until every rename is journalled, a signal puts everything back and exits 130; after, the next prune finishes."""
    calls = counted(bench, PRUNE, single)
    # The second write says that all was moved; the fsync after it is the last call that can be taken back.
    last = [index for index, call in enumerate(calls, 1) if call == "write"][1] + 1
    assert calls[last - 1] == "fsync" and "unlink" not in calls[:last], calls

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        ended = worker.run([PRUNE[0], tree, *PRUNE[1:]], *point)
        if point[1] <= last:
            assert ended.code == 130, ended
            assert contents(tree) == {k: v for k, v in bench.whole.items() if RUNS[0] in k}, "not everything is back"
            assert not list(tree.rglob(".ckpt-trash*"))
        else:
            assert ended.code in (0, 130, -getattr(signal, name)), ended
        check_instant(tree, (300, 400), bench.whole)
        assert worker.run([PRUNE[0], tree, *PRUNE[1:]]).code == 0
        check_settled(tree, (300, 400), bench.whole)

    points = [(mode, n) for n in range(1, len(calls) + 1) for mode in (name, f"after-{name}")]
    bench.each(check, points, single)
    note_tried(name, len(points))


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_failing_call(bench: Bench, single: Path, trashed: Path, name: str) -> None:
    """Every call fails once, in every way of removal: a sentence, an exit code, and nothing is half gone after."""
    tried = 0
    for argv, base in ((PRUNE, bench.pristine), (TRASH, single), (UNDO, trashed), (PURGE, trashed)):
        calls = counted(bench, argv, base)

        def check(worker: Worker, tree: Path, point: int, argv: tuple[str, ...] = argv) -> None:
            ended = worker.run([argv[0], tree, *argv[1:]], name, point)
            assert ended.code in CONTRACT_CODES, ended
            assert ended.code == 0 or re.search(r"^(error|warning): .+", ended.err, re.MULTILINE), ended
            check_instant(tree, (300, 400), bench.whole)
            after = worker.run([PRUNE[0], tree, *PRUNE[1:]])
            assert after.code == 0, after.err
            check_settled(tree, (300, 400), bench.whole, trash=argv is not PRUNE)

        bench.each(check, range(1, len(calls) + 1), base)
        tried += len(calls)
    note_tried(name, tried)


# The system calls by which files come, go and become durable. `when` counts each name for itself.
SYSCALLS = ("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat")
TRACED = (*SYSCALLS, "fsync", "ftruncate")


@pytest.fixture(scope="module")
def strace() -> str:
    path = shutil.which("strace")
    if not path:
        pytest.skip("strace is not installed")
    if subprocess.run([path, "-f", "-o", os.devnull, "true"], capture_output=True, timeout=TIMEOUT).returncode:
        pytest.skip("strace may not trace here")
    return path


def traced(
    strace: str, bench: Bench, tree: Path, argv: Sequence[str], log: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """A whole `ckpt` process under strace, which writes the calls that change the file system to `log`."""
    command = [strace, "-f", "-o", str(log), "-e", f"trace={','.join(TRACED)}", *options]
    return subprocess.run(
        [*command, sys.executable, "-m", "ckpt_cli", argv[0], str(tree), *argv[1:]],
        cwd=bench.folder,
        env=_environment(bench.folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def traced_points(strace: str, bench: Bench, base: Path, argv: Sequence[str]) -> list[tuple[str, int]]:
    """The calls that a whole run of the command makes, each as its name and which one of that name it is."""
    tree, log = bench.folder / "traced", bench.folder / "trace.log"
    copy(base, tree)
    ended = traced(strace, bench, tree, argv, log)
    shutil.rmtree(tree)
    assert ended.returncode == 0, ended
    calls = re.findall(r"^[0-9]+ +([a-z0-9]+)\(", log.read_text(), re.MULTILINE)
    assert len(calls) > 5, calls
    return [(name, number) for name in TRACED for number in range(1, calls.count(name) + 1)]


def injected(strace: str, bench: Bench, tree: Path, argv: Sequence[str], inject: str, name: str, number: int) -> None:
    """Runs the command with one call hit, and fails where it ends in another way than it may."""
    log = tree.with_suffix(".log")
    ended = traced(strace, bench, tree, argv, log, "-e", f"inject={name}:{inject}:when={number}")
    if inject == "signal=SIGKILL":
        assert "+++ killed by SIGKILL +++" in log.read_text(), log.read_text()
        return
    assert "(INJECTED)" in log.read_text(), log.read_text()
    assert ended.returncode in CONTRACT_CODES and "Traceback" not in ended.stderr, ended
    assert ended.returncode == 0 or re.search(r"^(error|warning): .+", ended.stderr, re.MULTILINE), ended
    assert "went wrong" not in ended.stderr, ended


INJECTED = ("signal=SIGKILL", "error=EIO", "error=ENOSPC", "error=EXDEV")


@pytest.mark.parametrize("inject", INJECTED)
def test_strace(bench: Bench, single: Path, strace: str, inject: str) -> None:
    """The same by the kernel's hand, in a whole `ckpt` process, for every system call that ckpt makes."""
    keep = ("prune", "--keep", "3", "--yes")
    trashed = bench.folder / f"strace-{inject}"
    copy(single, trashed)
    with bench.lent() as worker:
        assert worker.run([keep[0], trashed, *keep[1:], "--trash"]).code == 0
    points = [
        (argv, point)
        for argv, base in ((keep, single), (UNDO, trashed), (PURGE, trashed))
        for point in traced_points(strace, bench, base, argv)
    ]

    def check(worker: Worker, tree: Path, point: tuple[tuple[str, ...], tuple[str, int]]) -> None:
        argv, call = point
        if argv is not keep:
            shutil.rmtree(tree)
            copy(trashed, tree)
        injected(strace, bench, tree, argv, inject, *call)
        check_instant(tree, (200, 300, 400), bench.whole)
        after = worker.run([keep[0], tree, *keep[1:]])
        assert after.code == 0, after.err
        check_settled(tree, (200, 300, 400), bench.whole, trash=argv is not keep)

    bench.each(check, points, single)
    note_tried(f"strace {inject}", len(points))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("inject", INJECTED)
@pytest.mark.parametrize("layout", FOUND_BY)
def test_strace_of_each_layout(bench: Bench, strace: str, layout: str, inject: str) -> None:
    """A whole run of each layout goes: at every instant what the trainer finds is whole, or nothing."""
    case = Case(bench, layout)
    points = traced_points(strace, bench, case.base, case.whole_run)

    def check(worker: Worker, tree: Path, point: tuple[str, int]) -> None:
        injected(strace, bench, tree, case.whole_run, inject, *point)
        case.check_found(tree, inject == "signal=SIGKILL")
        after = worker.run(["prune", tree, "--keep", "9", "--yes"])
        assert after.code in (0, 1), after.err
        case.check_settled(tree)

    bench.each(check, points, case.base)
    note_tried(f"strace of layouts, {inject}", len(points))
