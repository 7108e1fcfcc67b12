"""A plan of `ckpt prune` as people and programs see it: rows by run and step, the total, the question, JSON."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from shlex import quote
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import Checkpoint, Goal, in_order, is_complete, pick_metric
from ckpt_cli.discover import natural
from ckpt_cli.errors import counted
from ckpt_cli.plans import Plan, RunPlan
from ckpt_cli.ui import out
from ckpt_cli.ui.out import Format
from ckpt_cli.ui.table import Cell, Column
from ckpt_cli.ui.text import size

_COLUMNS = (Column("REF"), Column("PLAN"), Column("SIZE", right=True), Column("METRIC"), Column("WHY"))
_STYLES = {"keep": "green", "remove": "red", "strip": "red"}
# On a terminal, of more rows in a row with one fate only the first and the last are drawn.
_MANY = 12
# Of those that need one, beyond so many only the first is named.
_NEEDED, _MOST_NEEDING = " needs it", 2
# A file that is missing, which `ckpt list` names as "no NAME".
_LOST = re.compile(r"(incomplete: ).* is missing \((.+)\)")
# Two reasons that nearly always come together, and what people read instead.
_BOTH, _IN_SHORT = "newest complete, newest resumable", "newest complete and resumable"


class _Line(NamedTuple):
    checkpoint: Checkpoint
    fate: str
    bytes: int
    why: str


def show(plan: Plan, chosen: Format, metric: str | None, goal: Goal | None) -> None:
    """The plan on stdout, and on stderr what it comes to."""
    if chosen == "name":
        out.emit_lines(checkpoint.ref for checkpoint in plan.removed)
    elif chosen in ("table", "plain"):
        lines = [line for group in plan.groups for line in _lines(group, plan.optimizer_only)]
        short = chosen == "table" and sys.stdout.isatty()
        rows = _shortened(lines, metric, goal) if short else [_row(line, metric, goal) for line in lines]
        out.emit_rows(chosen, _COLUMNS, rows)
        for group in plan.groups:
            if group.ignored and group.ignored[0].checkpoint.linked:
                out.say(f"hint: --root {quote(os.path.realpath(group.dir))} prunes the linked run itself")
        if plan.removed or chosen == "table":
            out.say(total(plan))
    for group in plan.groups if plan.optimizer_only else ():
        if group.stops_resuming:
            out.warning(f"training can no longer resume from {group.name}: no optimizer of it would be left")
    if plan.over:
        out.note(f"what stays is {size(plan.over)} over the size that was asked for")


def say(plan: Plan) -> None:
    """The plan on stderr, for who is asked while stdout is for a program."""
    for group in plan.groups:
        for line in _lines(group, plan.optimizer_only):
            out.say(f"{line.fate:7}{line.checkpoint.ref}  {size(line.bytes)}  {_in_short(line)}".rstrip())


def total(plan: Plan) -> str:
    there = sum(len(group.keep) + len(group.remove) + len(group.ignored) for group in plan.groups)
    of = f"{len(plan.removed)} of {counted(there, 'checkpoint')} of {counted(len(plan.groups), 'run')}"
    what = f"the optimizers of {of} would go" if plan.optimizer_only else f"{of} would go"
    return f"{what}, {size(plan.freed)}"


def question(plan: Plan, trash: bool) -> str:
    """What is asked before anything goes."""
    runs = counted(sum(bool(group.remove) for group in plan.groups), "run")
    what = f"{counted(len(plan.removed), 'checkpoint')} ({size(plan.freed)}) of {runs}"
    if plan.optimizer_only:
        what = f"the optimizer files of {what}, whose models stay{',' if trash else ''}"
    return f"move {what} to the trash?" if trash else f"remove {what}?"


def record(plan: Plan, dry_run: bool, freed: int, id: str | None, stayed: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The body of the JSON of a plan, carried out or not."""
    groups = [
        {
            "source": group.source,
            "tag": group.tag,
            "keep": [{"ref": kept.checkpoint.ref, "reasons": list(kept.reasons)} for kept in group.keep],
            "remove": [
                {"ref": gone.checkpoint.ref, "bytes": gone.bytes, "paths": [part.path for part in gone.parts]}
                for gone in group.remove
            ],
            "ignored": [{"ref": ignored.checkpoint.ref, "reason": ignored.reason} for ignored in group.ignored],
            "stops_resuming": group.stops_resuming,
        }
        for group in plan.groups
    ]
    return {
        "dry_run": dry_run,
        "policies": list(plan.policies),
        "groups": groups,
        "freed_bytes": freed,
        "trash_id": id,
        "optimizer_only": plan.optimizer_only,
        "over_bytes": plan.over,
        "problems": problems(stayed),
    }


def report(
    chosen: Format,
    plan: Plan,
    dry_run: bool,
    freed: int,
    id: str | None = None,
    stayed: Iterable[tuple[str, str]] = (),
) -> None:
    """The JSON of a plan, where that is asked for: the other formats have shown it before."""
    if chosen == "json":
        out.emit_json("prune", record(plan, dry_run, freed, id, stayed))


def report_settled(
    chosen: Format, id: str | None, done: Sequence[str], stayed: Sequence[tuple[str, str]], freed: int, purged: bool
) -> None:
    """What an undo or a purge has done, and what stayed."""
    for path, why in stayed:
        out.warning(f"{path} stayed: {why}")
    if chosen == "json":
        body = {"dry_run": False, "policies": [], "groups": [], "freed_bytes": freed, "trash_id": id}
        out.emit_json("prune", {**body, "purged" if purged else "restored": done, "problems": problems(stayed)})
    elif chosen == "name":
        out.emit_lines(done)
    else:
        out.say(f"{'deleted' if purged else 'put back'}: {counted(len(done), 'checkpoint')}")


def problems(stayed: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"code": "stayed", "detail": why, "path": path} for path, why in stayed]


def _lines(group: RunPlan, optimizer_only: bool) -> list[_Line]:
    """Each checkpoint of a run in the order of training: what becomes of it, how many bytes of it, and why."""
    lines = [_Line(kept.checkpoint, "keep", kept.checkpoint.bytes, ", ".join(kept.reasons)) for kept in group.keep]
    fate, why = ("strip", "the optimizer goes, the model stays") if optimizer_only else ("remove", "")
    for gone in group.remove:
        broken = "" if is_complete(gone.checkpoint) else "incomplete"
        lines.append(_Line(gone.checkpoint, fate, gone.bytes, why or broken))
    lines += [_Line(left.checkpoint, "ignore", left.checkpoint.bytes, left.reason) for left in group.ignored]
    return sorted(lines, key=lambda line: (in_order(line.checkpoint), natural(line.checkpoint.name)))


def _row(line: _Line, metric: str | None, goal: Goal | None) -> list[str | Cell]:
    found = pick_metric(line.checkpoint, metric, goal)
    why = _in_short(line)
    return [
        line.checkpoint.ref,
        Cell(line.fate, line.fate, _STYLES.get(line.fate, "dim")),
        Cell(size(line.bytes), str(line.bytes)),
        Cell(f"{found.name} {found.value:.4g}", f"{found.name}={found.value!r}") if found else "",
        Cell(why, line.why) if why != line.why else why,
    ]


def _in_short(line: _Line) -> str:
    """Its reasons for people, who know from the reference where its files lie."""
    return shortened(line.why.replace(line.checkpoint.dir + os.sep, ""))


def shortened(why: str) -> str:
    """Reasons for people, in few words: of many that need a checkpoint, only the first is named."""
    why = _LOST.sub(r"\1no \2", why.replace(_BOTH, _IN_SHORT))
    pieces = why.split(", ")
    needing = [piece for piece in pieces if piece.endswith(_NEEDED)]
    if len(needing) <= _MOST_NEEDING:
        return why
    first = pieces.index(needing[0])
    others = [piece for piece in pieces[first:] if not piece.endswith(_NEEDED)]
    return ", ".join([*pieces[: first + 1], f"{len(needing) - 1} more need it", *others])


def _shortened(lines: Sequence[_Line], metric: str | None, goal: Goal | None) -> list[list[str | Cell]]:
    rows: list[list[str | Cell]] = []
    for alike in _alike(lines):
        if len(alike) <= _MANY:
            rows += [_row(line, metric, goal) for line in alike]
            continue
        inner = alike[1:-1]
        bytes = sum(line.bytes for line in inner)
        middle: list[str | Cell] = [f"... {len(inner)} between", alike[0].fate, Cell(size(bytes), str(bytes)), ""]
        rows += [_row(alike[0], metric, goal), [*middle, _in_short(alike[0])], _row(alike[-1], metric, goal)]
    return rows


def _alike(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    """Stretches of one run with one fate for one reason."""
    stretch: list[_Line] = []
    for line in lines:
        if stretch and _fate(stretch[-1]) != _fate(line):
            yield stretch
            stretch = []
        stretch.append(line)
    if stretch:
        yield stretch


def _fate(line: _Line) -> tuple[str, str, str]:
    return line.checkpoint.run, line.fate, line.why
