"""ckpt prune"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from ckpt_cli import execution, settling
from ckpt_cli.atomic import locked
from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.commands import options
from ckpt_cli.errors import CkptError, NotFound, Refused, counted
from ckpt_cli.freshness import plan_removals, settled, unchanged
from ckpt_cli.journal import Outcome, new_id, operations
from ckpt_cli.layouts import layouts
from ckpt_cli.metrics import parse_metric
from ckpt_cli.plans import Plan, Rules
from ckpt_cli.query import Query, nothing_in
from ckpt_cli.reach import names_one_run, refuse_outside, runs_only
from ckpt_cli.replaced import with_replaced
from ckpt_cli.retain import settled_plan
from ckpt_cli.ruleset import Ruleset, joined, named_policy, ruleset
from ckpt_cli.settings import Settings
from ckpt_cli.ui import out, text
from ckpt_cli.ui import plan as drawing
from ckpt_cli.verify import opens

app = options.new_app()


@app.command(epilog=options.EPILOG)
def prune(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.NoStep = None,
    keep: Annotated[
        int | None, typer.Option("--keep", "--keep-last", metavar="N", help="Keep the last N of each run.")
    ] = None,
    keep_every: Annotated[
        int | None, typer.Option("--keep-every", metavar="STEPS", help="Keep one every so many steps.")
    ] = None,
    keep_best: Annotated[
        int | None,
        typer.Option("--keep-best", metavar="N", help="Keep the best N of each run, and those never measured."),
    ] = None,
    keep_within: Annotated[
        str | None, typer.Option("--keep-within", metavar="AGE", help="Keep what was written within 7d, 12h, 2w.")
    ] = None,
    keep_step: Annotated[
        list[int] | None, typer.Option("--keep-step", metavar="N", help="Keep this step; may be given again.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Keep the best and the newest that fit into 50GB in all."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="NAME", help="Keep what this policy of the settings says.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME[:min|max]", help="What best is judged by.")
    ] = None,
    drop_unmeasured: Annotated[
        bool, typer.Option("--drop-unmeasured", help="--keep-best keeps none that lacks the metric.")
    ] = False,
    optimizer_only: Annotated[
        bool, typer.Option("--optimizer-only", help="Only the optimizer files go; the models stay.")
    ] = False,
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

    Policies add up: what one of them keeps is kept, run by run. A run's newest complete and newest resumable
    checkpoint always stay, and so does everything in progress or unknown, pinned by a `.keep` file or needed by
    another. Kept checkpoints are opened before the plan counts on them.

    --max-size counts what stays in any case, then the best step of each run, then the newest down over all runs;
    the first that does not fit ends it.

    \b
    examples:
      ckpt prune --keep 3 --dry-run
      ckpt prune base/d12 --keep 2 --keep-every 5000 --keep-best 1
      ckpt prune --keep 1 --trash --yes && ckpt prune --undo
      ckpt prune --keep 1 --optimizer-only
      ckpt prune --max-size 50GB
    """
    chosen = out.pick_format(format, as_json, quiet)
    empty = {"dry_run": dry_run, "policies": [], "groups": [], "freed_bytes": 0, "trash_id": None}
    asked = {
        "keep": keep,
        "keep-every": keep_every,
        "keep-best": keep_best,
        "keep-within": keep_within,
        "keep-step": keep_step or None,
        "max-size": max_size,
    }
    any_policy = policy is not None or any(value is not None for value in asked.values())
    with out.answering("prune", chosen, empty):

        def look() -> Query:
            return options.look(target, root, source, tag, step)

        if undo or purge:
            if undo and purge:
                raise CkptError("--undo and --purge contradict each other")
            if any_policy or dry_run or trash or optimizer_only:
                raise CkptError("--undo and --purge take no policy, --dry-run or --trash")
            return _settle(runs_only(look()), id, purge, yes, chosen)
        if id:
            raise CkptError("--id names an operation to --undo or --purge")
        if not any_policy:
            hint = "--keep 3 keeps the last 3 of each run, and --dry-run only shows"
            raise CkptError("no policy says what to keep", hint)
        said = options.settings()
        metric = metric or said.metric
        rules = _rules(asked, policy, metric, not drop_unmeasured, said)
        if allow_empty and optimizer_only:
            raise CkptError("--allow-empty removes a whole run: it does not go with --optimizer-only")
        query, listed, unsettled = _listed(look, dry_run)
        if not query.pool:
            raise nothing_in(query.root)
        if allow_empty and (keep != 0 or not rules.empty or not names_one_run(query)):
            runs = " or ".join(sorted({checkpoint.run for checkpoint in query.pool})[:3])
            raise Refused("--allow-empty goes with --keep 0 alone and a selector that names one run", f"name {runs}")
        flags = {"incomplete": incomplete, "trust_steps": trust_steps, "optimizer_only": optimizer_only}
        flags["allow_empty"] = allow_empty or (optimizer_only and rules.empty)
        plan = _plan(query, listed, rules, keep_step or (), flags, unsettled)
        drawing.show(plan, chosen, *parse_metric(metric))
        return _decide(query, plan, dry_run, trash, yes, chosen) or (3 if unsettled else 0)


def _rules(asked: dict[str, Any], policy: str | None, metric: str | None, unmeasured: bool, said: Settings) -> Ruleset:
    """The policies of the command line together with those of a policy in the settings, which is named with its file.

    A metric of the policy's own is stronger than one that is settled for all.
    """
    rules = ruleset(asked, metric, unmeasured)
    if policy is None:
        return rules
    table, origin = named_policy(said, policy)
    try:
        more = ruleset(table, metric, unmeasured)
    except CkptError as error:
        raise CkptError(f"in the policy {policy!r} of {origin}: {error.message}", error.hint) from error
    names = [*more.policies, *([f"max size {more.budget.text}"] if more.budget else [])]
    out.note(f"policy {policy} of {origin}: {', '.join(names)}")
    return joined(rules, more)


def _plan(
    query: Query, listed: int, rules: Ruleset, steps: Sequence[int], flags: dict[str, bool], unsettled: Set[str]
) -> Plan:
    """What stays and what goes of the runs that were listed at `listed`, but for those that are not settled; `steps`
    are those that --keep-step names."""
    grace = int(query.settings.grace * 1e9)
    meant = query.pool
    if unsettled:  # real paths are asked for then alone: of ten thousand checkpoints that took 0.2 s
        meant = tuple(c for c in meant if os.path.realpath(c.run_dir) not in unsettled)
    pool = settled(meant, listed, grace)
    _name_missing(steps, pool)
    refuse_outside(query)
    planned = {(c.run_dir, c.ref) for c in pool}
    bounds = Rules(
        now=time.time_ns(),
        grace=grace,
        needs={layout.NAME: getattr(layout, "needs", None) for layout in layouts()},
        targets=query.found.targets,
        others=tuple(c for c in query.found.checkpoints if (c.run_dir, c.ref) not in planned),
        **flags,
    )
    return with_replaced(settled_plan(pool, rules.policies, bounds, opens, rules.budget))


def _name_missing(steps: Sequence[int], pool: Sequence[Checkpoint]) -> None:
    there = {checkpoint.step for checkpoint in pool}
    for step in dict.fromkeys(steps):
        if step not in there:
            out.warning(f"no run has the step {step} that --keep-step names")


def _decide(query: Query, plan: Plan, dry_run: bool, trash: bool, yes: bool, chosen: out.Format) -> int:
    """Asks, where there is anything to ask."""
    if dry_run or not plan.removed:
        if not plan.removed:
            inside = plan.optimizer_only and any(group.ignored for group in plan.groups)
            out.note(f"there is nothing to remove{': no file that falls out is an optimizer alone' if inside else ''}")
        drawing.report(chosen, plan, dry_run, plan.freed)
        return 0
    if chosen in ("json", "name") and not yes:
        drawing.say(plan)
    if not out.confirm(drawing.question(plan, trash), yes):
        out.error(CkptError("declined: nothing was removed"))
        drawing.report(chosen, plan, False, 0)
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
        planned = [(group.dir, plan_removals(group.remove, out.warning)) for group in groups]
        outcome = execution.remove(planned, id, trash, without_journal)
    for path, why in outcome.stayed:
        out.warning(f"{path} could not go: {why}")
    for remark in outcome.remarks:
        out.warning(remark)
    done = set(outcome.done)
    went = [gone for group in groups for gone in group.remove if gone.checkpoint.ref in done]
    if chosen != "json":
        verb = "moved to the trash" if trash else "removed"
        what = "the optimizer of " if plan.optimizer_only else ""
        size = text.size(sum(gone.bytes for gone in went))
        out.say(f"{verb}: {what}{counted(len(went), 'checkpoint')}, {size}")
        if trash and went:
            undo, purge = (options.with_root(query, f"ckpt prune --{verb} --id {id}") for verb in ("undo", "purge"))
            out.say(f"hint: `{undo}` brings them back, `{purge}` deletes them")
    drawing.report(chosen, plan, False, outcome.freed, id if trash and went else None, outcome.stayed)
    return 3 if outcome.stayed else 0


def _listed(look: Callable[[], Query], dry_run: bool) -> tuple[Query, int, Set[str]]:
    """The query and when it was made; what was cut off of its runs is settled before, but not by a dry run.

    The third are runs where that cannot be done, by their real paths: somebody else's, say. They are left alone.
    """
    listed = time.time_ns()
    query = runs_only(look())
    options.name_root(query)
    said = []
    unsettled = set()
    for run in () if dry_run else query.trash:
        try:
            if settling.unsettled(run):
                with locked(run):
                    said += settling.recover(run)
        except OSError as error:
            out.warning(f"{run} is left alone, for what was cut off there cannot be settled: {error.strerror or error}")
            unsettled.add(os.path.realpath(run))
    for message in said:
        out.note(message)
    if not said:
        return query, listed, unsettled
    listed = time.time_ns()
    try:
        return look(), listed, unsettled
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
        hint = f"`{options.with_root(query, 'ckpt list --trash')}` shows what is there"
        raise (CkptError if id else NotFound)(f"{what} of {query.root.path}", hint if query.found.trash else None)
    count = counted(sum(len(operation.refs) for operation in found), "checkpoint")
    if purge and not out.confirm(f"delete {count} of {wanted} for good?", yes):
        raise NotFound("declined: nothing was deleted")
    total = Outcome()
    with ExitStack() as locks:
        for operation in found:
            locks.enter_context(locked(operation.run))
        for operation in found:
            try:
                total.add(settling.purge(operation) if purge else settling.undo(operation))
            except OSError as error:
                total.stayed.append((operation.folder, error.strerror or str(error)))
    drawing.report_settled(chosen, wanted, total.done, total.stayed, total.freed, purge)
    return 3 if total.stayed else 0
