"""ckpt list"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import typer

from ckpt_cli.checkpoint import Checkpoint, Metric, Role, State, checkpoint_record, in_order, iso_time, pick_metric
from ckpt_cli.commands import options
from ckpt_cli.discover import natural
from ckpt_cli.errors import CkptError, counted
from ckpt_cli.metrics import parse_metric
from ckpt_cli.query import Query, listing, nothing_in
from ckpt_cli.selector import choose
from ckpt_cli.ui import out, text
from ckpt_cli.ui.table import Cell, Column

app = options.new_app()
_SORTS = ("run", "step", "size", "age", "metric")
_STATES: tuple[str, ...] = get_args(State)
_STYLES = {"complete": "green", "incomplete": "red", "in-progress": "yellow"}
_ROLES: tuple[Role, ...] = ("model", "adapter", "meta", "config", "index", "optimizer", "recipe", "export")
_SHORT = {"optimizer": "optim"}
# Files that cannot be had: how each of the first is named; of more, the number.
_LOST = {"missing-part": "no {}", "unreadable-part": "{} unreadable"}
_NAMED = 2
# Checkpoints of one removal; of more, the first and the last.
_NAMED_IN_TRASH = 8
_COLUMNS = (
    Column("REF"),
    Column("STATE"),
    Column("SIZE", right=True),
    Column("AGE", right=True),
    Column("METRIC"),
    Column("PARTS"),
)


@app.command(epilog=options.EPILOG)
def list_(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="|".join(_STATES), help="Only what is in this state.")
    ] = None,
    sort: Annotated[
        str,
        typer.Option("--sort", metavar="|".join(_SORTS), help="By what; age has the newest first, metric the best."),
    ] = "run",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    before: Annotated[int | None, typer.Option("--before", metavar="N", help="Only steps below N.")] = None,
    after: Annotated[int | None, typer.Option("--after", metavar="N", help="Only steps above N.")] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME[:min|max]", help="The metric to show.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=0, help="Only the first N of them.")] = None,
    trash: Annotated[bool, typer.Option("--trash", help="What lies in the trash instead.")] = False,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """List every checkpoint, by run and step.

    \b
    examples:
      ckpt list
      ckpt list d12 --after 5000
      ckpt list --state incomplete -q
      ckpt list --root /data/runs --sort size --json
    """
    chosen = out.pick_format(format, as_json, quiet)
    options.check_word(sort, _SORTS, "nothing to sort by")
    if state is not None:
        options.check_word(state, _STATES, "no state")
    empty: dict[str, Any] = {"root": None, "checkpoints": [], "totals": {"checkpoints": 0, "bytes": 0}}
    with out.answering("list", chosen, empty):
        query = options.look(target, root, source, tag, step)
        meant = choose(query)
    if trash:
        return _list_trash(query.root.path, query.trash, chosen)
    name, goal = parse_metric(metric or query.settings.metric)
    rows = [
        (checkpoint, pick_metric(checkpoint, name, goal))
        for checkpoint in meant
        if (state is None or checkpoint.state == state)
        and (before is None or (checkpoint.step is not None and checkpoint.step < before))
        and (after is None or (checkpoint.step is not None and checkpoint.step > after))
    ]
    rows = _sorted(rows, sort)
    if reverse:
        rows.reverse()
    rows = rows[:limit]
    total = sum(checkpoint.bytes for checkpoint, _ in rows)
    if chosen == "json":
        out.emit_json(
            "list",
            {
                "root": query.root.path,
                "checkpoints": [checkpoint_record(checkpoint, shown) for checkpoint, shown in rows],
                "totals": {"checkpoints": len(rows), "bytes": total},
            },
        )
    elif chosen == "name":
        out.emit_lines(checkpoint.ref for checkpoint, _ in rows)
    elif rows:
        now = time.time()
        out.emit_rows(chosen, _COLUMNS, [_row(checkpoint, shown, now) for checkpoint, shown in rows])
    if metric and rows and not any(shown for _, shown in rows):
        out.note(f"none of them has the metric {name}")
    if chosen == "table" and rows:
        out.say(f"{counted(len(rows), 'checkpoint')}, {text.size(total)} in {query.root.path}")
    if rows:
        return 0
    out.error(_nothing(query))
    return 1


def _nothing(query: Query) -> CkptError:
    if not query.found.checkpoints:
        return nothing_in(query.root)
    return CkptError(f"no checkpoint in {query.root.path} fits what was asked for", listing(query.root.path))


def _sorted(rows: list[tuple[Checkpoint, Metric | None]], key: str) -> list[tuple[Checkpoint, Metric | None]]:
    if key == "step":
        return sorted(rows, key=lambda row: in_order(row[0]))
    if key == "size":
        return sorted(rows, key=lambda row: row[0].bytes)
    if key == "age":
        return sorted(rows, key=lambda row: -row[0].modified)
    if key == "metric":
        # By name, for two metrics do not compare; the best first; those without at the end.
        return sorted(rows, key=lambda row: (row[1] is None, *_merit(row[1])))
    return rows


def _merit(metric: Metric | None) -> tuple[str, float]:
    if metric is None:
        return "", 0.0
    return metric.name, -metric.value if metric.goal == "max" else metric.value


def _row(checkpoint: Checkpoint, metric: Metric | None, now: float) -> list[str | Cell]:
    seconds = now - checkpoint.modified / 1e9
    return [
        checkpoint.ref,
        Cell(checkpoint.state, checkpoint.state, _STYLES[checkpoint.state]),
        Cell(text.size(checkpoint.bytes), str(checkpoint.bytes)),
        # Of a link to nothing there is no time.
        Cell(text.age(seconds), iso_time(checkpoint.modified)) if checkpoint.parts else "",
        Cell(f"{metric.name} {metric.value:.4g}", f"{metric.name}={metric.value!r}") if metric else "",
        _parts(checkpoint),
    ]


def _parts(checkpoint: Checkpoint) -> str:
    """`model, meta, optim 7 of 8`, `3 model, index, no model-00004-of-00004.pt`: what there is and what is not."""
    words = []
    for role in _ROLES:
        count = len(checkpoint.having(role))
        ranks = checkpoint.ranks if role == "optimizer" else None
        if ranks:
            words.append(f"optim {len(ranks.present)} of {len(ranks.present) + len(ranks.missing)}")
        elif count:
            name = _SHORT.get(role, role)
            words.append(name if count == 1 else f"{count} {name}")
    if checkpoint.state == "complete" and checkpoint.resumable is False and not checkpoint.having("optimizer"):
        words.append("no optimizer")
    words += [word for word, true in (("pinned", checkpoint.pinned), ("linked", checkpoint.linked)) if true]
    ranks = checkpoint.ranks
    # Missing ranks are in the count already.
    lost = [
        _LOST[problem.code].format(os.path.basename(problem.path))
        for problem in checkpoint.problems
        if problem.code in _LOST and not (ranks and problem.detail.startswith("optimizer rank"))
    ]
    words += lost[:_NAMED]
    if lost[_NAMED:]:
        words.append(f"{len(lost) - _NAMED} more missing")
    return ", ".join([*words, *(problem.code for problem in checkpoint.problems if problem.code not in _LOST)])


def _refs(refs: Sequence[str]) -> Cell:
    shown = refs if len(refs) <= _NAMED_IN_TRASH else (refs[0], f"... {len(refs) - 2} between", refs[-1])
    return Cell(" ".join(shown), " ".join(refs))


def _list_trash(root: str, runs: tuple[str, ...], chosen: out.Format) -> int:
    from ckpt_cli.journal import operations

    found = sorted((op for run in runs for op in operations(run)), key=lambda op: (op.id, natural(op.run)))
    if chosen == "json":
        records = [
            {"id": op.id, "dir": op.run, "state": op.state, "bytes": op.bytes, "refs": list(op.refs)} for op in found
        ]
        totals = {"checkpoints": sum(len(op.refs) for op in found), "bytes": sum(op.bytes for op in found)}
        out.emit_json("list", {"root": root, "checkpoints": [], "trash": records, "totals": totals})
    elif chosen == "name":
        out.emit_lines(operation.id for operation in found)
    elif found:
        columns = (Column("ID"), Column("STATE"), Column("SIZE", right=True), Column("CHECKPOINTS"), Column("RUN"))
        rows: list[list[str | Cell]] = [
            [op.id, op.state, Cell(text.size(op.bytes), str(op.bytes)), _refs(op.refs), op.run] for op in found
        ]
        out.emit_rows(chosen, columns, rows)
    if found:
        return 0
    out.error(CkptError(f"there is nothing in the trash of {root}"))
    return 1
