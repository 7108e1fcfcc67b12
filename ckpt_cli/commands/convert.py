"""ckpt convert"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from ckpt_cli import runs
from ckpt_cli.casts import DTYPES, target_dtype
from ckpt_cli.checkpoint import checkpoint_record
from ckpt_cli.commands import options
from ckpt_cli.contents import PARTS
from ckpt_cli.convert import NAMINGS, TARGETS, prepare
from ckpt_cli.errors import CkptError, counted
from ckpt_cli.places import refuse_outputs
from ckpt_cli.query import Query, nothing_in
from ckpt_cli.recipe import Recipe, Request, result_record
from ckpt_cli.ruleset import parse_size
from ckpt_cli.selector import choose
from ckpt_cli.ui import out, text
from ckpt_cli.ui.progress import byte_bar
from ckpt_cli.ui.table import Cell, Column
from ckpt_cli.writing import write

app = options.new_app()
_MOST_NAMED = 8
# Suffixes by which other programs would take an output for what it is not.
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_FOREIGN = {"safetensors": _TORCH, "pt": (".safetensors",), "torchtune": (".safetensors",)}


@app.command(short_help="Write the tensors in another format, or under other names.", epilog=options.EPILOG)
def convert(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    to: Annotated[
        str, typer.Option("--to", metavar="|".join(TARGETS), help="In what form; hf and meta are folders.")
    ] = "safetensors",
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="OUT", help="File or directory to write.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="|".join(DTYPES), help="Cast floats.")] = None,
    most: Annotated[
        str | None, typer.Option("--max-shard-size", metavar="SIZE", help="Shards of 5GB, say, and their index.")
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="|".join((*PARTS, "PATH")), help="What to convert.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Supplies what the source's configuration lacks.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every checkpoint of the set or the root.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="With --all: go on after a failure.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: options.DryRun = False,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Write a checkpoint's tensors in another format, or under the names of another implementation.

    Needs no torch and no more memory than a buffer. The source's CRC32 is checked, and every range written is
    read back. Without -o the output of a one-file model lies beside it, as <model stem>.safetensors.

    \b
    examples:
      ckpt convert d12
      ckpt convert sft/d12/650 -o /srv/models/
      ckpt convert ./model.safetensors --to pt -o model.pt
      ckpt convert d20 --dtype bf16 --max-shard-size 5GB -o shards/
      ckpt convert d12 --part optimizer -o optimizers/
      ckpt convert base/d12 --all --keep-going -o exports/
    """
    chosen = out.pick_format(format, as_json, quiet)
    options.check_word(to, TARGETS, "no format to convert to")
    if most is not None and to not in ("safetensors", "hf"):
        raise CkptError(f"--max-shard-size does not go with --to {to}: its weights are one file")
    if config is not None and to not in NAMINGS:
        raise CkptError(f"--config does not go with --to {to}: names and numbers stay as they are")
    if keep_going and not every:
        raise CkptError("--keep-going goes with --all")
    limit = None if most is None else max(1, parse_size(most))
    request = Request(to, dtype and target_dtype(dtype), limit, part, config)
    empty: dict[str, Any] = {"source": None, "outputs": [], "tensors": 0, "bytes": 0, "renamed": [], "cast": []}
    with out.answering("convert", chosen, {**empty, "dropped": [], "tied": [], "verified": False, "dry_run": dry_run}):
        query = options.look(target, root, source, tag, step)
        options.name_root(query)
        if every:
            return _convert_all(query, request, output, force, keep_going, dry_run, chosen)
        return _convert(query, request, output, force, dry_run, chosen)


def _convert(query: Query, request: Request, output: str | None, force: bool, dry_run: bool, chosen: out.Format) -> int:
    checkpoint = options.look_for_subject(query)
    recipe = prepare(query.file, checkpoint, request, output)
    for said in recipe.notes:
        out.warning(said)
    parts = [part.path for part in checkpoint.parts if part.role != "export"] if checkpoint else []
    refuse_outputs([o.path for o in recipe.outputs], [*([query.file] if query.file else []), *parts], force)
    if recipe.outputs[0].path.lower().endswith(_FOREIGN.get(request.to, ())):
        name, other = os.path.basename(recipe.outputs[0].path), "pt" if request.to == "safetensors" else "safetensors"
        what = f"{name} is no name for what --to {request.to} writes"
        raise CkptError(what, f"--to {other}, or an OUT of another suffix")
    if not dry_run:
        with byte_bar(os.path.basename(recipe.outputs[0].path), recipe.work) as advance:
            write(recipe.outputs, force, advance)
    if chosen == "json":
        record = result_record(recipe)
        source = checkpoint and checkpoint_record(checkpoint)
        out.emit_json("convert", {"source": source, **record, "verified": not dry_run, "dry_run": dry_run})
        return 0
    if chosen == "name":
        out.emit_lines([output.path for output in recipe.outputs])
        return 0
    state = "would be written" if dry_run else "written and read back"
    out.emit_rows(chosen, _COLUMNS, _rows(recipe, state))
    _summary(recipe)
    return 0


_COLUMNS = (Column("OUTPUT"), Column("SIZE", right=True), Column("TENSORS", right=True), Column("STATE"))


def _rows(recipe: Recipe, state: str) -> list[list[str | Cell]]:
    """One a file; a file beside the weights has no tensors."""
    wanted = {id(item) for item in recipe.items}
    rows: list[list[str | Cell]] = []
    for output in recipe.outputs:
        count = sum(id(item) in wanted for item in output.items)
        size = Cell(text.size(output.bytes), str(output.bytes))
        rows.append([output.path, size, str(count), state])
    return rows


def _summary(recipe: Recipe) -> None:
    """What became of names and numbers: renamed, cast, dropped, tied."""
    stripped = [old for old, _ in recipe.renamed if "_orig_mod." in old]
    if stripped:
        out.note(f"{counted(len(stripped), 'name')} lost the _orig_mod. of torch.compile")
    if len(recipe.renamed) > len(stripped):
        out.note(f"{counted(len(recipe.renamed) - len(stripped), 'tensor')} got another name")
    for old, new in recipe.cast:
        out.note(f"{old} was cast to {new}")
    for name, reason in recipe.dropped[:_MOST_NAMED]:
        out.note(f"{name} was dropped: {reason}")
    if len(recipe.dropped) > _MOST_NAMED:
        out.note(f"and {len(recipe.dropped) - _MOST_NAMED} more were dropped, which --json names")
    for name, of in recipe.tied[:_MOST_NAMED]:
        out.note(f"{name} is tied to {of}, written once")
    if len(recipe.tied) > _MOST_NAMED:
        out.note(f"and {len(recipe.tied) - _MOST_NAMED} more are tied, which --json names")


def _convert_all(
    query: Query,
    request: Request,
    output: str | None,
    force: bool,
    keep_going: bool,
    dry_run: bool,
    chosen: out.Format,
) -> int:
    wanted = choose(query)
    if not wanted:
        raise nothing_in(query.root)
    jobs = runs.plan_all(wanted, request, output, force)
    for said in dict.fromkeys(said for job in jobs if job.recipe for said in job.recipe.notes):
        out.warning(said)
    if not dry_run:
        with byte_bar(counted(len(jobs), "checkpoint"), runs.work_of(jobs)) as advance:
            jobs = runs.carry_out(jobs, force, keep_going, advance, lambda job: None)
    for job in jobs:
        if job.failure:
            out.warning(f"{job.checkpoint.ref} was not converted: {job.failure.message}")
        elif job.status == "skipped":
            out.note(f"{job.checkpoint.ref} is still being written, and was left out")
    code = runs.exit_code(jobs, len(wanted))
    left = [job for job in jobs if job.status == "planned" and not dry_run]
    if left:
        out.note(f"{counted(len(left), 'checkpoint')} after the first failure, from {left[0].checkpoint.ref} on, "
                 f"{'was' if len(left) == 1 else 'were'} left out")  # fmt: skip
        out.say("hint: --keep-going goes on with the others")
    if chosen == "json" and code in (0, 1, 3):
        out.emit_json("convert", runs.all_record(jobs, dry_run))
    elif chosen == "name":
        there = [job for job in jobs if job.recipe and job.status != "failed" and job not in left]
        out.emit_lines([o.path for job in there if job.recipe for o in job.recipe.outputs])
    elif chosen != "json":
        states = {"written": "written and read back", "there": "there already"}
        states |= {"planned": "would be written"} if dry_run else {}
        rows = [
            row for job in jobs if job.recipe and job.status in states for row in _rows(job.recipe, states[job.status])
        ]
        out.emit_rows(chosen, _COLUMNS, rows)
    return code
