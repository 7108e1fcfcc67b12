"""ckpt load-test"""

from __future__ import annotations

import math
import os
import re
from typing import Annotated, Any

import typer

from ckpt_cli import trial
from ckpt_cli.casts import DTYPES, target_dtype
from ckpt_cli.checkpoint import Checkpoint, checkpoint_record, problem_record
from ckpt_cli.commands import options
from ckpt_cli.described import base_metadata
from ckpt_cli.errors import CkptError, NotFound, counted
from ckpt_cli.levels import Level
from ckpt_cli.orders import Order
from ckpt_cli.own_model import SPECIFIER
from ckpt_cli.places import refuse_outputs
from ckpt_cli.query import Query
from ckpt_cli.rebuild import DEVICE, DEVICES
from ckpt_cli.trial import Outcome
from ckpt_cli.ui import out, text
from ckpt_cli.ui.table import Cell, Column

app = options.new_app()

_COLUMNS = (Column("LEVEL"), Column("STATUS"), Column("SECONDS", right=True), Column("DETAIL"))
_STYLES = {"pass": "green", "fail": "red", "skip": "dim"}
_SETTINGS = ("softcap", "rotary_rounding", "window_pattern")
_PHASES = ("eval", "train")
_MOST_SAID = 50
_TIMEOUT = 600.0


@app.command("load-test", short_help="Rebuild the model: does it load, run and resume?", epilog=options.EPILOG)
def load_test(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    device: Annotated[
        str, typer.Option("--device", metavar="|".join(DEVICES), help="On what; meta computes shapes alone.")
    ] = "auto",
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="|".join(DTYPES), help="Hold floats so.")] = None,
    phase: Annotated[
        str, typer.Option("--phase", metavar="|".join(_PHASES), help="train takes an optimizer step.")
    ] = "eval",
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="1,2,3", help="The batch, instead of a seeded one.")
    ] = None,
    save_logits: Annotated[
        str | None, typer.Option("--save-logits", metavar="FILE", help="Write the logits as safetensors.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --save-logits: replace an existing file.")] = False,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="softcap=15|20, rotary_rounding=bf16|none, window_pattern=.."),
    ] = None,
    family: Annotated[str | None, typer.Option("--family", metavar="NAME", help="Build it as this family.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PACKAGE.MODULE:CLASS", help="Build a class of your own.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Supplies what the checkpoint's configuration lacks.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.1, help="Seconds that a level may take.")
    ] = _TIMEOUT,
    format: options.Unnamed = None,
    as_json: options.Json = False,
    quiet: options.NoNames = False,
) -> int:
    """Rebuild the model of a checkpoint and use it: does it load, run and resume?

    Levels: read, integrity (every checksum), build (names and shapes must fit exactly), forward (finite logits),
    optimizer (every shard fits the model) and, with --phase train, train-step: one step of the restored optimizer.
    What a checkpoint does not say is assumed as its trainer would, and said. The work is done in a process of its own:
    one that is killed or hangs is a failed level. Neither the trainer's code nor its revision is needed.

    --model imports a class from the current directory or the Python path. It is called with the configuration's
    entries as keyword arguments; if it takes one argument, as GPT(config) does, with the configuration as an object.

    \b
    examples:
      ckpt load-test d12
      ckpt load-test sft/d20/latest --phase train --json
      ckpt load-test ./ckpt.pt --tokens 1,2,3 --save-logits logits.safetensors
      ckpt load-test base/d26 --set softcap=20 --device cuda
      ckpt load-test ./model.pt --model mine.model:GPT
      ckpt load-test ./torchtune_model_2.pt --config config.json
    """
    chosen = out.pick_format(format, as_json, quiet)
    out.no_names(chosen, "load-test")
    options.check_word(phase, _PHASES, "no phase")
    if not DEVICE.fullmatch(device):
        options.check_word(device, DEVICES, "no device")
    if model is not None and not SPECIFIER.fullmatch(model):
        raise CkptError(f"{model!r} is no class: package.module:Class")
    if model and family:
        raise CkptError("--model and --family contradict each other")
    if math.isnan(timeout):
        raise CkptError("--timeout is a number of seconds")
    if force and save_logits is None:
        raise CkptError("--force goes with --save-logits alone")
    floats = dtype and target_dtype(dtype)
    overrides, batch = _given(given or []), _tokens(tokens)
    with out.answering("load-test", chosen, _record(None, None)):
        query = options.look(target, root, source, tag, step)
        checkpoint = options.look_for_subject(query)
        if checkpoint and checkpoint.state == "in-progress":
            out.note(f"{checkpoint.ref} is still being written")
        order = Order(
            checkpoint=checkpoint,
            file=query.file,
            base=base_metadata(checkpoint, query.found.checkpoints, query.settings.sources),
            given=overrides,
            family=family,
            model=model,
            device=device,
            dtype=floats,
            train=phase == "train",
            tokens=batch,
            save_logits=_place(save_logits, query, checkpoint, force),
            force=force,
            config=config and os.path.abspath(os.path.expanduser(config)),
        )
        outcome = trial.run(order, timeout)
    if chosen == "json":
        out.emit_json("load-test", _record(order, outcome))
    else:
        out.emit_rows(chosen, _COLUMNS, [_row(level) for level in outcome.levels])
    return _sum_up(order, outcome)


def _given(said: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in said:
        key, equals, value = one.partition("=")
        if not equals or not value or key not in _SETTINGS:
            raise CkptError(f"--set {one!r} is none of {', '.join(f'{name}=VALUE' for name in _SETTINGS)}")
        if found.setdefault(key, value) != value:
            raise CkptError(f"--set says two things of {key}: {found[key]} and {value}")
    return found


def _tokens(said: str | None) -> list[int] | None:
    if said is None:
        return None
    if not re.fullmatch(r" *[0-9]{1,18} *(?:, *[0-9]{1,18} *)*", said):
        raise CkptError(f"--tokens {said[:60]!r} is no list of numbers, as 1,2,3 is")
    return [int(token) for token in said.split(",")]


def _place(said: str | None, query: Query, checkpoint: Checkpoint | None, force: bool) -> str | None:
    """Where the logits go. Raises CkptError for a place that is none, Refused for a file that is there."""
    if said is None:
        return None
    path = os.path.abspath(os.path.expanduser(said))
    if not said or os.path.isdir(path):
        raise CkptError(f"--save-logits {said!r} is no file" if said else "--save-logits is empty")
    if not os.path.isdir(os.path.dirname(path)):
        raise CkptError(f"there is no directory {os.path.dirname(path)} to write to")
    sources = [part.path for part in checkpoint.parts] if checkpoint else []
    refuse_outputs([path], [*sources, *([query.file] if query.file else [])], force)
    return path


def _record(order: Order | None, outcome: Outcome | None) -> dict[str, Any]:
    """The answer; of none that was tried, what is known of it then."""
    checkpoint = order.checkpoint if order else None
    keys = outcome.keys if outcome else None
    return {
        "ok": outcome is not None and outcome.failed is None,
        "checkpoint": checkpoint and checkpoint_record(checkpoint),
        "family": outcome and outcome.family,
        "device": outcome and outcome.device,
        "dtype": outcome and outcome.dtype,
        "parameters": outcome and outcome.parameters,
        "levels": [
            {"name": one.name, "status": one.status, "seconds": round(one.seconds, 6), "detail": one.detail}
            for one in (outcome.levels if outcome else ())
        ],
        "keys": {
            "missing": list(keys.missing if keys else ()),
            "unexpected": list(keys.unexpected if keys else ()),
            "mismatched": [
                {"name": one.name, "expected": list(one.expected), "found": list(one.found)}
                for one in (keys.mismatched if keys else ())
            ],
        },
        "assumptions": [
            {"key": one.key, "value": one.value, "reason": one.reason, "warning": one.warn}
            for one in (outcome.assumptions if outcome else ())
        ],
        "logits": outcome and outcome.logits,
        "peak_memory_bytes": outcome and outcome.peak,
        "problems": [problem_record(problem) for problem in (outcome.problems if outcome else ())],
    }


def _row(level: Level) -> list[str | Cell]:
    seconds = Cell(f"{level.seconds:.2f}", f"{level.seconds:.6f}")
    return [level.name, Cell(level.status, level.status, _STYLES[level.status]), seconds, level.detail]


def _sum_up(order: Order, outcome: Outcome) -> int:
    """Says what was assumed and where names or shapes differ, then how it ended; returns the exit code."""
    for one in outcome.assumptions:
        (out.warning if one.warn else out.note)(f"{one.key} is taken to be {one.value}: {one.reason}")
    lines = outcome.keys.lines
    if len(lines) > 1:
        for line in lines[:_MOST_SAID]:
            out.say(line)
        if len(lines) > _MOST_SAID:
            out.say(f"and {len(lines) - _MOST_SAID} more, which --json names")
    failed = outcome.failed
    subject = order.checkpoint.ref if order.checkpoint else order.file
    if failed:
        # What has stood above, a line each, is only counted.
        told = failed.name == "build" and len(lines) > 1
        why = f"{len(lines)} names or shapes differ" if told else failed.detail
        out.error(NotFound(f"{subject} fails at {failed.name}: {why}"))
        return NotFound.code
    passed = sum(level.status == "pass" for level in outcome.levels)
    at = f"on {outcome.device} in {outcome.dtype}" if outcome.dtype else f"on {outcome.device}"
    memory = text.size(outcome.peak)
    out.say(f"{subject}: {counted(passed, 'level')} passed {at}, {memory} of memory at most")
    return 0
