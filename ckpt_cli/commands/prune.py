"""ckpt prune"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from ckpt_cli import removal
from ckpt_cli.atomic import locked
from ckpt_cli.checkpoint import Checkpoint, pick_metric
from ckpt_cli.commands import options
from ckpt_cli.errors import CkptError, NotFound, Refused
from ckpt_cli.journal import Removal, new_id, operations, plan_removal, unchanged
from ckpt_cli.layouts import layout_named, layouts
from ckpt_cli.retain import Plan, Rules, RunPlan, freed_by, keep_last, settled_plan
from ckpt_cli.selector import Query
from ckpt_cli.ui import out, text
from ckpt_cli.ui.out import Cell, Column
from ckpt_cli.verify import opens

app = options.new_app()
_COLUMNS = (Column("REF"), Column("PLAN"), Column("SIZE", right=True), Column("METRIC"), Column("WHY"))


@app.command(epilog=options.EPILOG)
def prune(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    keep: Annotated[
        int | None, typer.Option("--keep", "--keep-last", metavar="N", help="Keep the last N of each run.")
    ] = None,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="Remove incomplete checkpoints too.")] = False,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="With --keep 0: remove one whole run.")] = False,
    trust_steps: Annotated[bool, typer.Option("--trust-steps", help="Go by steps in a restarted run.")] = False,
    trash: Annotated[bool, typer.Option("--trash", help="Move to the run's trash, to be undone or purged.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Put back what the latest operation moved away.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Delete what the latest operation moved away.")] = False,
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Undo or purge this operation.")] = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Remove checkpoints that no policy keeps. Shows the plan and asks first.

    A run's newest complete and newest resumable checkpoint always stay, and so does everything in progress or
    unknown. Kept checkpoints are opened before the plan counts on them.

    \b
    examples:
      ckpt prune --keep 3 --dry-run
      ckpt prune base/d12 --keep 2
      ckpt prune --keep 1 --trash --yes && ckpt prune --undo
    """
    chosen = out.pick_format(format, as_json, quiet)
    empty = {"dry_run": dry_run, "policies": [], "groups": [], "freed_bytes": 0, "trash_id": None}
    with out.answering("prune", chosen, empty):

        def look() -> Query:
            return options.look(target, root, source, tag, step)

        if undo or purge:
            if undo and purge:
                raise CkptError("--undo and --purge contradict each other")
            if keep is not None or dry_run or trash:
                raise CkptError("--undo and --purge take no policy, --dry-run or --trash")
            return _settle(_runs_only(look()), id, purge, yes, chosen)
        if id:
            raise CkptError("--id names an operation to --undo or --purge")
        if keep is None:
            raise CkptError("no policy says what to keep", "--keep N keeps the last N of each run; -n only shows")
        query = _runs_only(look())
        options.name_root(query)
        if not dry_run:
            query = _recovered(query, look)
        if not query.pool:
            raise NotFound(f"there are no checkpoints in {query.root.path}")
        if allow_empty and (keep or not _names_one_run(query)):
            raise Refused("--allow-empty goes with --keep 0 and a selector that names one run")
        rules = Rules(
            now=time.time_ns(),
            grace=int(query.settings.grace * 1e9),
            needs={layout.NAME: getattr(layout, "needs", None) for layout in layouts()},
            targets=query.found.targets,
            allow_empty=allow_empty,
            incomplete=incomplete,
            trust_steps=trust_steps,
        )
        plan = settled_plan(query.pool, {f"keep {keep}": keep_last(keep)}, rules, opens)
        return _decide(query, plan, dry_run, trash, yes, chosen)


def _names_one_run(query: Query) -> bool:
    """A tag of one source, or a directory that is the run itself: one run that lies in the root is not enough."""
    dirs = {c.run_dir for c in query.pool}
    return len(dirs) == 1 and bool(query.tag or (query.root.origin == "TARGET" and dirs == {query.root.path}))


def _runs_only(query: Query) -> Query:
    if query.step or query.file:
        raise CkptError(f"prune takes runs, not {query.file or 'a step'}", "name a run, as in SOURCE/TAG")
    return query


def _decide(query: Query, plan: Plan, dry_run: bool, trash: bool, yes: bool, chosen: out.Format) -> int:
    """Shows the plan and asks."""
    if chosen in ("table", "plain"):
        _show(plan, chosen)
    elif chosen == "name":
        out.emit_lines(checkpoint.ref for checkpoint in plan.removed)
    if dry_run or not plan.removed:
        if not plan.removed:
            out.note("there is nothing to remove")
        return _report(chosen, plan, dry_run, 0 if not dry_run else plan.freed, None, [])
    runs = sum(bool(group.remove) for group in plan.groups)
    how = "move to the trash" if trash else "remove"
    what = (
        f"{how} {text.count(len(plan.removed), 'checkpoint')} ({text.size(plan.freed)}) of {text.count(runs, 'run')}?"
    )
    if chosen in ("json", "name") and not yes:
        # stdout is for a program: who is asked sees the plan here.
        for checkpoint, verb, why in _lines(plan):
            out.say(f"{verb:7}{checkpoint.ref}  {text.size(_size(checkpoint, verb))}  {why}".rstrip())
    if not out.confirm(what, yes):
        out.error(CkptError("declined: nothing was removed"))
        _report(chosen, plan, False, 0, None, [])
        return 1
    return _carry_out(query, plan, trash, yes, chosen)


def _carry_out(query: Query, plan: Plan, trash: bool, yes: bool, chosen: out.Format) -> int:
    """Locks every run of the plan, makes sure that nothing has changed, and removes."""
    id = new_id()
    groups = [group for group in plan.groups if group.remove]

    def without_journal(run: str) -> bool:
        out.warning(f"there is no room for a journal in {run}: the disk is full")
        return out.confirm(f"delete from {run} without a journal, with no way to undo?", yes)

    with ExitStack() as locks:
        for group in groups:
            if not locks.enter_context(locked(group.dir)):
                out.warning(f"{group.dir} is on a file system without locks: no other ckpt must be at work there")
        unchanged(kept.checkpoint for group in groups for kept in group.keep)
        planned = [(group.dir, _removals(group)) for group in groups]
        outcome = removal.remove(planned, id, trash, without_journal)
    for path, why in outcome.stayed:
        out.warning(f"{path} could not go: {why}")
    gone = set(outcome.done)
    done = [checkpoint for checkpoint in plan.removed if checkpoint.ref in gone]
    if chosen != "json":
        size = text.size(sum(freed_by(checkpoint) for checkpoint in done))
        verb = "moved to the trash" if trash else "removed"
        out.say(f"{verb}: {text.count(len(done), 'checkpoint')}, {size}")
        if trash and done:
            undo, purge = (options.with_root(query, f"ckpt prune --{verb} --id {id}") for verb in ("undo", "purge"))
            out.say(f"hint: `{undo}` brings them back, `{purge}` deletes them")
    _report(chosen, plan, False, outcome.freed, id if trash and done else None, outcome.stayed)
    return 3 if outcome.stayed else 0


def _removals(group: RunPlan) -> list[Removal]:
    return [plan_removal(c, layout_named(c.layout).REMOVAL_ORDER) for c in group.remove]


def _recovered(query: Query, again: Callable[[], Query]) -> Query:
    """The query after earlier operations of its runs, if one was cut off, are settled."""
    said = []
    for run in query.trash:
        found = operations(run)
        if not found or any(operation.state != "trash" for operation in found):
            with locked(run):
                said += removal.recover(run)
    for message in said:
        out.note(message)
    if not said:
        return query
    try:
        return again()
    except CkptError as gone:
        raise NotFound(f"now that this is settled, {gone.message}") from gone


def _settle(query: Query, id: str | None, purge: bool, yes: bool, chosen: out.Format) -> int:
    """--undo and --purge: the latest operation of the runs that are meant, or the one named."""
    options.name_root(query)
    found = [operation for run in query.trash for operation in operations(run)]
    wanted = id or max((operation.id for operation in found), default=None)
    found = [operation for operation in found if operation.id == wanted]
    if not found:
        what = f"there is no operation {id} in the trash" if id else "there is nothing in the trash"
        raise (CkptError if id else NotFound)(f"{what} of {query.root.path}", "`ckpt list --trash` shows what is there")
    count = text.count(sum(len(operation.refs) for operation in found), "checkpoint")
    if purge and not out.confirm(f"delete {count} of {wanted} for good?", yes):
        raise NotFound("declined: nothing was deleted")
    done: list[str] = []
    stayed: list[tuple[str, str]] = []
    freed = 0
    for operation in found:
        with locked(operation.run):
            outcome = removal.purge(operation) if purge else removal.undo(operation)
        done += outcome.done
        stayed += outcome.stayed
        freed += outcome.freed
    for path, why in stayed:
        out.warning(f"{path} stayed: {why}")
    if chosen == "json":
        body: dict[str, Any] = {
            "dry_run": False,
            "policies": [],
            "groups": [],
            "freed_bytes": freed,
            "trash_id": wanted,
        }
        out.emit_json("prune", {**body, "purged" if purge else "restored": done, "problems": _problems(stayed)})
    elif chosen == "name":
        out.emit_lines(done)
    else:
        out.say(f"{'deleted' if purge else 'put back'}: {text.count(len(done), 'checkpoint')}")
    return 3 if stayed else 0


def _problems(stayed: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"code": "stayed", "detail": why, "path": path} for path, why in stayed]


def _show(plan: Plan, chosen: out.Format) -> None:
    out.emit_rows(chosen, _COLUMNS, [_row(*line) for line in _lines(plan)])
    for group in plan.groups:
        if group.ignored and group.ignored[0].checkpoint.linked:
            out.say(f"hint: --root {os.path.realpath(group.dir)} prunes the linked run itself")
    if chosen == "table":
        out.say(f"{text.count(len(plan.removed), 'checkpoint')} would go, {text.size(plan.freed)}")


def _lines(plan: Plan) -> Iterator[tuple[Checkpoint, str, str]]:
    """Each checkpoint, what becomes of it and why, by run and step."""
    for group in plan.groups:
        lines = [(kept.checkpoint, "keep", ", ".join(kept.reasons)) for kept in group.keep]
        lines += [(checkpoint, "remove", "") for checkpoint in group.remove]
        lines += [(ignored.checkpoint, "ignore", ignored.reason) for ignored in group.ignored]
        yield from sorted(lines, key=lambda line: (line[0].step or 0, line[0].name))


def _size(checkpoint: Checkpoint, verb: str) -> int:
    return freed_by(checkpoint) if verb == "remove" else checkpoint.bytes


def _row(checkpoint: Checkpoint, verb: str, why: str) -> list[str | Cell]:
    metric = pick_metric(checkpoint)
    style = {"keep": "green", "remove": "red"}.get(verb, "dim")
    size = _size(checkpoint, verb)
    return [
        checkpoint.ref,
        Cell(verb, verb, style),
        Cell(text.size(size), str(size)),
        Cell(f"{metric.name} {metric.value:.4g}", f"{metric.name}={metric.value!r}") if metric else "",
        why,
    ]


def _report(
    chosen: out.Format, plan: Plan, dry_run: bool, freed: int, id: str | None, stayed: list[tuple[str, str]]
) -> int:
    """The JSON of a plan, carried out or not."""
    if chosen == "json":
        groups = [
            {
                "source": group.source,
                "tag": group.tag,
                "keep": [{"ref": kept.checkpoint.ref, "reasons": list(kept.reasons)} for kept in group.keep],
                "remove": [
                    {"ref": c.ref, "bytes": freed_by(c), "paths": [p.path for p in c.parts]} for c in group.remove
                ],
                "ignored": [{"ref": ignored.checkpoint.ref, "reason": ignored.reason} for ignored in group.ignored],
            }
            for group in plan.groups
        ]
        body = {"dry_run": dry_run, "policies": list(plan.policies), "groups": groups, "freed_bytes": freed}
        out.emit_json("prune", {**body, "trash_id": id, "problems": _problems(stayed)})
    return 0
