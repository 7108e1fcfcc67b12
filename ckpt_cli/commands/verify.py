"""ckpt verify"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ckpt_cli import verify as spine
from ckpt_cli.checkpoint import problem_record
from ckpt_cli.commands import options
from ckpt_cli.errors import CkptError, counted
from ckpt_cli.query import Query, nothing_in
from ckpt_cli.selector import choose
from ckpt_cli.ui import out
from ckpt_cli.ui.progress import byte_bar
from ckpt_cli.ui.table import Cell, Column
from ckpt_cli.verify import Result, Unit, Verified

app = options.new_app()
_COLUMNS = (Column("REF"), Column("FILE"), Column("STATE"), Column("PROBLEM"))
_STYLES = {"ok": "green", "damaged": "red", "unverifiable": "dim", "skipped": "yellow"}


@app.command(short_help="Check that every byte is as it was written.", epilog=options.EPILOG)
def verify(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    record: Annotated[bool, typer.Option("--record", help="Write a manifest that sha256sum -c reads.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --record: over one that does not match.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A file without a checksum is a failure.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, max=64, help="Files at a time.")] = 2,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Check that every byte is as it was written: checksums, structure, manifests, and files against each other.

    Checks everything in the root, one run or step, or one file. A file is ok, damaged, unverifiable (whole, as far as
    can be told without a checksum) or skipped (still being written). A table shows what is not in order and counts the
    rest; --format plain and --json show every file.

    \b
    examples:
      ckpt verify
      ckpt verify d12/latest --record
      ckpt verify ./model.pt --strict
      ckpt verify --root /data/runs -q
    """
    chosen = out.pick_format(format, as_json, quiet)
    if force and not record:
        raise CkptError("--force goes with --record alone")
    with out.answering("verify", chosen, {"ok": False, "results": []}):
        units = _units(options.look(target, root, source, tag, step), record, force)
    with byte_bar("verify", spine.bytes_of(units)) as advance:
        done = list(spine.verify(units, jobs, advance))
    recorded = spine.record(done) if record else []
    results = [result for one in done for result in one.results]
    bad = ("damaged", "unverifiable") if strict else ("damaged",)
    whole = all(result.status not in bad for result in results)
    if chosen == "json":
        out.emit_json("verify", {"ok": whole, "results": [_record(result) for result in results], "recorded": recorded})
    elif chosen == "name":
        names = (result.ref or result.path for result in results if result.status in bad)
        out.emit_lines(dict.fromkeys(names))
    else:
        _show(done, results, chosen, bad)
    if chosen != "name":
        _sum_up(results, recorded, strict)
    if record:
        for one in done:
            if one.damaged:
                out.warning(f"{one.unit.ref or one.results[0].path} is damaged: no manifest was written")
    return 0 if whole else 1


def _units(query: Query, record: bool, force: bool) -> list[Unit]:
    if query.file and not query.pool:
        return [spine.unit_of_file(query.file, record, force)]
    meant = choose(query)
    if query.file and all(checkpoint.state == "in-progress" for checkpoint in meant):
        out.note(f"{meant[0].ref} is still being written: only the file itself is looked at")
        return [spine.unit_of_file(query.file, record=False)]
    if not meant:
        raise nothing_in(query.root)
    waiting = [checkpoint.ref for checkpoint in meant if checkpoint.state == "in-progress"]
    if waiting:
        more = f" and {len(waiting) - 4} more" if len(waiting) > 4 else ""
        out.note(f"skipped, still being written: {', '.join(waiting[:4])}{more}")
    return spine.units_of(meant, record, force)


def _show(done: list[Verified], results: list[Result], chosen: out.Format, bad: tuple[str, ...]) -> None:
    shown = [result for result in results if chosen == "plain" or result.problems or result.status in (*bad, "skipped")]
    folders = {result.path: one.unit.checkpoint.dir for one in done if one.unit.checkpoint for result in one.results}
    rows = [row for result in shown for row in _rows(result, folders.get(result.path))]
    if rows:
        out.emit_rows(chosen, _COLUMNS, rows)


def _rows(result: Result, folder: str | None) -> list[list[str | Cell]]:
    """A line for each problem; the file's name is enough beside a ref, where it lies in the checkpoint's folder."""
    name = os.path.relpath(result.path, folder) if folder else result.path
    state = Cell(result.status, result.status, _STYLES[result.status])
    said = [(problem.code, problem.detail.removeprefix(result.path).lstrip(": ")) for problem in result.problems]
    lines = [Cell(detail.removeprefix("is "), f"{code}: {detail}") for code, detail in said] or [Cell("", "")]
    return [[result.ref or "-", Cell(name, result.path), state, line] for line in lines]


def _record(result: Result) -> dict[str, object]:
    problems = [problem_record(problem) for problem in result.problems]
    return {"ref": result.ref, "path": result.path, "status": result.status, "problems": problems}


def _sum_up(results: list[Result], recorded: list[str], strict: bool) -> None:
    """One line for people: how many files are in which state."""
    counts = {state: sum(result.status == state for result in results) for state in _STYLES}
    words = {"unverifiable": "whole, but without a checksum"}
    parts = [f"{number} {words.get(state, state)}" for state, number in counts.items() if number]
    out.say(f"{counted(len(results), 'file')}: {', '.join(parts)}")
    for place in recorded:
        out.say(f"wrote {place}")
    if counts["unverifiable"] and not recorded and not counts["damaged"] and strict:
        out.say("hint: --record writes a manifest, against which later runs check them")
