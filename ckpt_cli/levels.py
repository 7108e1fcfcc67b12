"""What a checkpoint is put through, one level after another: read, integrity, build, forward, optimizer, train-step.

It runs in a process of its own (`ckpt_cli.child`) and tells each level's outcome as soon as it is known: what the
process does not survive is the fault of the level that it was at.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from ckpt_cli import exercise, fitting, rebuild, resuming
from ckpt_cli.checkpoint import Problem
from ckpt_cli.contents import read_files
from ckpt_cli.described import describe, model_paths
from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.families import Blueprint, Described, planned
from ckpt_cli.fitting import Shape, Shard
from ckpt_cli.formats import dcp, safetensors
from ckpt_cli.orders import Order
from ckpt_cli.safetensors_writer import of_bytes
from ckpt_cli.soundness import Soundness, check
from ckpt_cli.tensor_file import TensorFile
from ckpt_cli.vocabulary import fits
from ckpt_cli.weights import peak_memory
from ckpt_cli.writing import write

Status = Literal["pass", "fail", "skip"]
LEVELS = ("read", "integrity", "build", "forward", "optimizer", "train-step")
# Between two levels, and not timed as one: torch is loaded, and the model is recognised.
PREPARATION = "preparation"
# Kinds of damage: the levels that need the model, or the optimizer, are skipped.
_OF_MODEL, _OF_OPTIMIZER = "integrity", "integrity of the optimizer"
# Optimizers that torch itself has, as a checkpoint tells them. Adam's states alone are those of AdamW in the trainers
# that use no other.
_STANDARD = ("AdamW", "Adam", "SGD")
_ADAMW = ("nano-gpt", "nanoGPT", "build-nanogpt", "huggingface", "torchtune")
# Formats that sort the names of tensors, and so lose the order of the trainer's module.
_SORTED = (dcp.NAME, safetensors.NAME)
Tell = Callable[[dict[str, Any]], None]


class Level(NamedTuple):
    """How one came out. `detail` is a sentence: what was found, what failed, or why it was not tried."""

    name: str
    status: Status
    seconds: float
    detail: str


class _Skipped(Exception):
    """A level that does not apply, and why."""


class _Progress:
    """Levels as they come out: tells each, and remembers which did not pass."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        # Level, or kind of damage -> the level whose failure is its cause.
        self.failed: dict[str, str] = {}

    def level(self, name: str, needs: Sequence[str], work: Callable[[], str]) -> None:
        """Runs one level, unless one that it needs has failed. `work` returns what is to be said of it."""
        broken = next((self.failed[need] for need in needs if need in self.failed), None)
        if broken:
            self.failed[name] = broken
            self.done(Level(name, "skip", 0.0, f"{broken} failed"))
            return
        self.tell({"begin": name})
        start = time.perf_counter()
        status: Status = "pass"
        try:
            detail = work()
        except _Skipped as reason:
            status, detail = "skip", str(reason)
        except CkptError as error:
            if error.code != Damaged.code:
                raise
            status, detail = "fail", error.message
            self.tell({"problem": [error.kind, error.message, error.path]})
        except Exception as error:  # whatever a model or torch does
            status, detail = "fail", sentence(error)
            self.tell({"problem": ["exception", detail, None]})
        if status == "fail":
            self.failed[name] = name
        self.done(Level(name, status, time.perf_counter() - start, detail))

    def done(self, level: Level) -> None:
        """Tells how a level came out."""
        self.tell({"level": list(level)})


def sentence(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return f"out of memory: {text[:200]}" if text else "out of memory"
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


def run(order: Order, tell: Tell) -> None:
    """All levels. Raises CkptError for what is no checkpoint, would run code, or is of no model that is known."""
    progress = _Progress(tell)
    files: list[TensorFile] = []
    progress.level("read", (), lambda: _read(order, files))
    if not files:
        for name in LEVELS[1:]:
            progress.level(name, ("read",), str)
        tell({"peak": peak_memory("cpu")})
        return
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(_timed, order, files)
        tell({"begin": PREPARATION})
        device = rebuild.pick_device(order.device, rebuild.devices())
        gc.enable()
        tell({"device": device})
        tell({"begin": "integrity"})
        _tell_integrity(progress, checked, order)
    state = _State(order, files, device)
    progress.level("build", (_OF_MODEL,), lambda: _build(state, tell))
    progress.level("forward", ("build",), lambda: _forward(state, tell))
    progress.level("optimizer", (_OF_OPTIMIZER, "build"), lambda: _optimizer(state))
    progress.level("train-step", ("build", "forward", "optimizer"), lambda: _train(state))
    tell({"peak": peak_memory(device)})


def _timed(order: Order, files: Sequence[TensorFile]) -> tuple[Soundness, float]:
    """What is unsound, and the seconds that it took to find."""
    start = time.perf_counter()
    return check(order.checkpoint, files), time.perf_counter() - start


class _State:
    """What one level leaves for the next."""

    def __init__(self, order: Order, files: list[TensorFile], device: str) -> None:
        self.order, self.files, self.device = order, files, device
        self.described: Described
        self.blueprint: Blueprint
        self.module: Any
        self.tokens: Any
        self.shards: list[Shard] = []
        self.parameters: dict[str, Shape] = {}


def _read(order: Order, files: list[TensorFile]) -> str:
    checkpoint = order.checkpoint
    for problem in checkpoint.problems if checkpoint else ():
        name = os.path.basename(problem.path)
        # A rank's shard that is missing is a matter of the optimizer; --config stands for a missing meta file.
        if "optim" not in name and not (order.config and name.startswith("meta_")):
            raise Damaged(problem.detail, path=problem.path, kind=problem.code)
    found = read_files(model_paths(checkpoint, order.file))
    files += found
    tensors = sum(len(file.tensors) for file in found)
    return f"{counted(tensors, 'tensor')} in {counted(len(found), 'file')}"


def _tell_integrity(progress: _Progress, checked: Future[tuple[Soundness, float]], order: Order) -> None:
    """The level, which ran while torch was loaded. What is damaged of the optimizer does not keep the model from being
    built."""
    try:
        found, seconds = checked.result()
    except (CkptError, OSError) as error:
        found, seconds = Soundness((Problem("unusable", str(error), ""),), (), 1), 0.0
    if found.problems:
        optimizer = set(fitting.paths_of(order.checkpoint))
        kinds = [_OF_OPTIMIZER if problem.path in optimizer else _OF_MODEL for problem in found.problems]
        progress.failed |= dict.fromkeys(kinds, "integrity")
        for problem in found.problems:
            progress.tell({"problem": [problem.code, problem.detail, problem.path]})
        more = f", and {len(found.problems) - 1} more" if len(found.problems) > 1 else ""
        progress.done(Level("integrity", "fail", seconds, found.problems[0].detail + more))
    elif len(found.bare) == found.files:
        what = f"no checksum was written for {', '.join(found.bare[:4])}: `ckpt verify --record` writes one"
        progress.done(Level("integrity", "skip", seconds, what))
    else:
        none = f", {len(found.bare)} of them without a checksum" if found.bare else ""
        progress.done(Level("integrity", "pass", seconds, f"{counted(found.files, 'file')}{none}"))


def _build(state: _State, tell: Tell) -> str:
    order = state.order
    described = state.described = describe(
        state.files, order.checkpoint, order.file, order.base, order.given, order.config
    )
    if order.model:
        from ckpt_cli.own_model import blueprint_of

        blueprint = blueprint_of(order.model, described)
    else:
        blueprint = _planned(described, order.family, tell)
    state.blueprint = blueprint
    assumptions = [list(one) for one in (*described.overruled, *blueprint.assumptions)]
    tell({"family": blueprint.family, "assumptions": assumptions})
    differences = rebuild.compare(blueprint)
    tell({"keys": [differences.missing, differences.unexpected, differences.mismatched]})
    if differences:
        raise Damaged(differences.summary, path=state.files[0].path, kind="keys")
    fits(order.checkpoint, blueprint.vocab_size)
    module = state.module = rebuild.build(blueprint, state.device, order.dtype, order.train)
    dtype, count = rebuild.dtype_of(module, blueprint), rebuild.parameters_of(module)
    tell({"dtype": dtype, "parameters": count})
    return f"{blueprint.family}, {counted(count, 'parameter', ',')}, {dtype}"


def _planned(described: Described, family: str | None, tell: Tell) -> Blueprint:
    """Names that a map does not find, or cannot place, are those of a model that is known: it is damaged."""
    try:
        return planned(described, family)
    except CkptError as error:
        if error.kind not in ("missing-tensor", "unknown-tensor", "wrong-shape"):
            raise
        missing, unknown = ([error.record] if error.kind == f"{kind}-tensor" else [] for kind in ("missing", "unknown"))
        tell({"keys": [missing, unknown, []]})
        raise Damaged(error.message, path=error.path, kind="keys") from error


def _forward(state: _State, tell: Tell) -> str:
    order = state.order
    if state.device == "meta":
        raise _Skipped("the meta device computes nothing")
    state.tokens = exercise.batch(state.blueprint, order.tokens, state.device)
    bad = exercise.not_finite(state.module)
    if bad:
        names = {tensor.name: name for name, tensor in state.described.tensors.items()}
        own = [(names.get(state.blueprint.items[name].tensor.name, name), count) for name, count in bad]
        raise Damaged(f"not finite: {exercise.named(own)}", path=state.files[0].path, kind="not-finite")
    logits = exercise.forward(state.module, state.blueprint, state.tokens)
    shape, finite = list(logits.shape), exercise.is_finite(logits)
    tell({"logits": {"shape": shape, "finite": finite}})
    if order.save_logits:
        output = of_bytes(order.save_logits, "logits", "float32", tuple(shape), exercise.raw(logits))
        write([output], order.force, lambda count: None)
    if not finite:
        raise Damaged("the logits are not finite, though every weight is", kind="not-finite")
    return f"logits {shape}, finite"


def _optimizer(state: _State) -> str:
    checkpoint = state.order.checkpoint
    try:
        state.shards = fitting.shards(checkpoint, state.order.file)
    except CkptError as error:
        raise Damaged(error.message, path=error.path, kind=error.kind) from error
    if not state.shards:
        raise _Skipped("the checkpoint keeps no optimizer")
    single = dict(state.module.named_parameters())
    every = dict(state.module.named_parameters(remove_duplicate=False))
    buffers = dict(state.module.named_buffers())
    left = {*every, *buffers, *state.blueprint.free} - set(single)
    tensors = state.described.tensors
    state.parameters = {name: tensor.shape for name, tensor in tensors.items() if name not in left}
    return fitting.fit(state.shards, state.parameters, checkpoint)


def _train(state: _State) -> str:
    order, shards = state.order, state.shards
    if not order.train:
        raise _Skipped("--phase train takes a step")
    if state.device == "meta":
        raise _Skipped("the meta device computes nothing")
    if not shards:
        raise _Skipped("the checkpoint keeps no optimizer")
    kinds = fitting.kinds(shards)
    layout = order.checkpoint.layout if order.checkpoint else ""
    kind = kinds[0] if len(kinds) == 1 else ""
    kind = "AdamW" if kind == "Adam family" and layout in _ADAMW else kind
    if kind not in _STANDARD:
        raise _Skipped(f"its optimizer, {' and '.join(kinds) or 'of no known kind'}, is none of torch's own")
    if len(shards) > 1 or len({group.optimizer for group in shards[0].groups}) > 1:
        raise _Skipped("its optimizer is divided, and one process cannot take its step")
    if order.checkpoint and order.checkpoint.having("adapter"):
        raise _Skipped("its optimizer is that of the adapter, which the model was built without")
    if any(str(parameter.dtype) == "torch.float16" for parameter in state.module.parameters()):
        raise _Skipped("what an optimizer adds for stability is 0 in float16: --dtype fp32 or bf16 takes a step")
    if layout == "torchtune":
        placed = resuming.placed_of_torchtune(shards[0], state.files, order.checkpoint, order.config)
    else:
        sort = state.files[0].container in _SORTED
        placed = resuming.placed(shards[0], state.blueprint, state.parameters, state.described.tensors, sort)
    if placed is None:
        raise _Skipped("which parameter each of the optimizer's states is of cannot be told from its numbers")
    before, after = exercise.train_step(state.module, state.blueprint, state.tokens, kind, shards[0], placed)
    steps = shards[0].state.step
    at = f" from step {steps[1]}" if steps else ""
    return f"one step of {kind}{at}: loss {before:.4f}, then {after:.4f}"
