"""ckpt patch-config"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from ckpt_cli import patching
from ckpt_cli.checkpoint import problem_record
from ckpt_cli.commands import options
from ckpt_cli.errors import CkptError, counted
from ckpt_cli.journal import new_id
from ckpt_cli.migrations import MISSING
from ckpt_cli.patch import difference, told
from ckpt_cli.patch_plan import Hand, Planned, left_alone, parse_hands, plan
from ckpt_cli.query import Query, nothing_in
from ckpt_cli.selector import choose, choose_one
from ckpt_cli.ui import out, text
from ckpt_cli.ui.plan import problems
from ckpt_cli.ui.progress import byte_bar
from ckpt_cli.ui.table import Cell, Column

app = options.new_app()
_COLUMNS = (Column("REF"), Column("STATE"), Column("KEY"), Column("OLD"), Column("NEW"), Column("WHY"))
_STYLES = {"changes": "yellow", "fine": "green", "unclear": "red", "failed": "red", "skipped": "dim"}
# Of a value in a table for people.
_MOST_SHOWN = 60


@app.command("patch-config", short_help="Bring old metadata up to date.", epilog=options.EPILOG)
def patch_config(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=JSON", help="Set a.b by hand; plain words are text. May be given again."),
    ] = None,
    unsets: Annotated[
        list[str] | None, typer.Option("--unset", metavar="KEY", help="Take a.b away. May be given again.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every checkpoint of the set or the root.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if something would change.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Bring back what the latest patch replaced.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Set what the old value or the tensors contradict; undo over later changes.")
    ] = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Bring old metadata up to date: what it lacks or says wrongly, by the tensors and by what trainers once wrote.

    Takes one step, all steps of a run, or with --all everything. Shows what would change as a diff, and asks. Only the
    values that change are touched; the old file is kept in .ckpt-undo in the run's directory, for --undo. With --set or
    --unset only these edits are made.

    \b
    examples:
      ckpt patch-config --all --check
      ckpt patch-config mid/d12 --dry-run
      ckpt patch-config sft/d20/650 --set model_config.window_pattern=SSSL
      ckpt patch-config ./out/ckpt.pt --set model_args.dropout=0.1 --yes
      ckpt patch-config mid/d12 --undo
    """
    chosen = out.pick_format(format, as_json, quiet)
    hands = parse_hands(sets or (), unsets or ())
    if undo and (hands or check or dry_run):
        raise CkptError("--undo takes no --set, --unset, --check or --dry-run")
    empty: dict[str, Any] = {"changed": [], "unchanged": [], "dry_run": dry_run or check}
    with out.answering("patch-config", chosen, empty):
        query = options.look(target, root, source, tag, step)
        options.name_root(query)
        if undo:
            return _undo(query, force, chosen)
        plans = _plans(query, hands, every, force, dry_run or check)
        _refuse_alone(plans, hands)
        changing = [planned for planned in plans if planned.changes]
        for note in dict.fromkeys(planned.note for planned in plans if planned.note):
            alike = [planned.label for planned in plans if planned.note == note]
            more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
            out.note(f"{alike[0]}{more}: {note}")
        if chosen != "name" or not (yes or dry_run or check):
            for planned in changing:
                _show_difference(planned)
        if chosen in ("table", "plain"):
            out.emit_rows(chosen, _COLUMNS, [row for planned in plans for row in _rows(planned)])
        trouble = any(planned.failure or planned.unclear for planned in plans)
        code = 0 if not trouble else 3 if len(plans) > 1 or changing else 1
        if dry_run or check or not changing:
            _sum_up(plans, dry_run or check, chosen)
            _report(plans, changing, dry_run or check, chosen)
            return 1 if check and (changing or trouble) else code
        files = counted(len(changing), "file")
        if not out.confirm(f"change {files} as shown?", yes):
            out.error(CkptError("declined: nothing was changed"))
            _report(plans, [], False, chosen)
            return 1
        return _carry_out(query, plans, changing, force, chosen, code)


def _plans(query: Query, hands: Sequence[Hand], every: bool, force: bool, only_look: bool) -> list[Planned]:
    """The plan of each checkpoint that is meant, or of a file that is part of none."""
    found, sources = query.found.checkpoints, query.settings.sources
    if query.file and not query.pool:
        return [plan(None, query.file, hands, force)]
    if every:
        meant = choose(query)
        if not meant:
            raise nothing_in(query.root)
    elif query.step is None and not query.file and _is_one_run(query):
        meant = query.pool
    else:
        meant = (options.look_for_one(query),)
    if not only_look:
        for said in patching.recover(os.path.realpath(c.run_dir) for c in meant if not c.linked)[0]:
            out.note(said)
    return [
        (left_alone(checkpoint, every) if len(meant) > 1 else None)
        or plan(checkpoint, query.file, hands, force, found, sources)
        for checkpoint in meant
    ]


def _is_one_run(query: Query) -> bool:
    """Whether a run was named: by its tag, or as a directory that is the run itself."""
    runs = {(c.run, c.run_dir) for c in query.pool}
    if query.tag and len(runs) > 1:
        choose_one(query)  # which refuses it with the candidates
    return len(runs) == 1 and bool(query.tag or {c.run_dir for c in query.pool} == {query.root.path})


def _refuse_alone(plans: Sequence[Planned], hands: Sequence[Hand]) -> None:
    """Raises what stands against a patch of one checkpoint, and an edit by hand that no checkpoint takes."""
    if len(plans) == 1 and plans[0].failure:
        raise plans[0].failure
    if hands and plans and all(planned.failure for planned in plans):
        failure = plans[0].failure
        assert failure is not None
        raise failure
    for hand in hands if plans else ():
        if hand.value is MISSING and not any(c.key == hand.key for p in plans for c in p.changes):
            out.note(f"there is no key {hand.key} to take away")


def _show_difference(planned: Planned) -> None:
    if planned.before and planned.after:
        for line in difference(planned.before, planned.after):
            out.say(line)


def _rows(planned: Planned) -> list[list[str | Cell]]:
    """A line a change; one for what is fine, unclear or cannot be patched."""
    rows: list[list[str | Cell]] = []
    for change in planned.changes:
        state = Cell("changes", "changes", _STYLES["changes"])
        rows.append([planned.label, state, change.key, _shown(change.old), _shown(change.new), change.reason])
    for problem in planned.unclear:
        key, _, why = problem.detail.partition(": ")
        rows.append([planned.label, Cell("unclear", "unclear", _STYLES["unclear"]), key, "", "", why])
    if planned.failure:
        rows.append([planned.label, Cell("failed", "failed", _STYLES["failed"]), "", "", "", planned.failure.message])
    return rows or [
        [planned.label, Cell(planned.state, planned.state, _STYLES[planned.state]), "", "", "", planned.skipped or ""]
    ]


def _shown(value: Any) -> Cell:
    said = told(value)
    return Cell(said if len(said) <= _MOST_SHOWN else f"{said[:_MOST_SHOWN]}...", said)


def _carry_out(
    query: Query, plans: Sequence[Planned], changing: Sequence[Planned], force: bool, chosen: out.Format, code: int
) -> int:
    with patching.holding(planned.run for planned in changing) as unlocked:
        for run in unlocked:
            out.warning(f"{run} is on a file system without locks: no other ckpt must be at work there")
        size = 2 * sum(os.path.getsize(planned.path) for planned in changing if planned.after and planned.after.pickled)
        with byte_bar("patch-config", size) if size else nullcontext(lambda count: None) as advance:
            stayed = patching.carry_out(changing, new_id(), force, advance)
    for path, why in stayed:
        out.warning(f"{path} was not changed: {why}")
    left = {path for path, _ in stayed}
    done = [planned for planned in changing if os.path.realpath(planned.path) not in left]
    _sum_up(plans, False, chosen, len(done))
    if chosen != "json" and done:
        where = counted(len({planned.run for planned in done}), "run")
        kept = sum(os.path.getsize(planned.path) for planned in done)
        out.say(f"the old files ({text.size(kept)}) are in .ckpt-undo of {where}")
        command = f"ckpt patch-config {done[0].label} --undo" if len(done) == 1 else "ckpt patch-config --undo"
        out.say(f"hint: `{options.with_root(query, command)}` brings {'it' if len(done) == 1 else 'them'} back")
    _report(plans, done, False, chosen)
    return 3 if stayed else code


def _sum_up(plans: Sequence[Planned], would: bool, chosen: out.Format, done: int = 0) -> None:
    """One line for people, and the reason for each that is not in order where no table shows it."""
    for planned in plans:
        said = [planned.failure.message] if planned.failure else [problem.detail for problem in planned.unclear]
        for why in said if chosen in ("json", "name") or len(plans) == 1 else ():
            out.warning(f"{planned.label}: {why}")
    open_keys = [problem.detail.partition(":")[0] for planned in plans for problem in planned.unclear]
    if open_keys:
        out.say(f"hint: --set {open_keys[0]}=VALUE says what nothing else can tell")
    counts = {state: sum(planned.state == state for planned in plans) for state in _STYLES}
    words = {
        "changes": "would change" if would or not done else "changed",
        "fine": "fine",
        "unclear": "unclear",
        "failed": "not patched",
        "skipped": "not looked at",
    }
    parts = [
        f"{done if state == 'changes' and done else number} {words[state]}"
        for state, number in counts.items()
        if number
    ]
    if chosen != "json":
        out.say(f"{counted(len(plans), 'checkpoint')}: {', '.join(parts)}")


def _report(plans: Sequence[Planned], done: Sequence[Planned], dry_run: bool, chosen: out.Format) -> None:
    if chosen == "name":
        out.emit_lines(planned.label for planned in done)
    elif chosen == "json":
        found = [problem_record(problem) for planned in plans for problem in planned.unclear]
        found += [planned.failure.problem for planned in plans if planned.failure]
        changed = [{"ref": planned.ref, "path": planned.path, "changes": _changes(planned)} for planned in done]
        unchanged = [planned.ref or planned.path for planned in plans if planned not in done]
        notes = [{"ref": planned.ref, "detail": planned.note} for planned in plans if planned.note]
        skipped = [{"ref": planned.ref, "reason": planned.skipped} for planned in plans if planned.skipped]
        body = {"changed": changed, "unchanged": unchanged, "dry_run": dry_run, "problems": found}
        body |= {"notes": notes, "skipped": skipped}
        out.emit_json("patch-config", body)


def _changes(planned: Planned) -> list[dict[str, Any]]:
    def plain(value: Any) -> Any:
        return None if value is MISSING else value

    return [
        {"key": change.key, "old": plain(change.old), "new": plain(change.new), "reason": change.reason}
        for change in planned.changes
    ]


def _undo(query: Query, force: bool, chosen: out.Format) -> int:
    """Brings back what the latest patch of the checkpoints that are meant has replaced."""
    pool = [checkpoint for checkpoint in query.pool if not checkpoint.linked]
    if query.step is not None:
        pool = [checkpoint for checkpoint in choose(query) if not checkpoint.linked]
    files = patching.files_of(pool, whole_runs=query.step is None and not query.file)
    if query.file and not query.pool:
        alone = os.path.realpath(query.file)
        files = {os.path.dirname(alone): {alone}}
    said, undone = patching.recover(files)
    for message in said:
        out.note(message)
    with patching.holding(files):
        wanted = patching.latest(files, undone)
        done, stayed = patching.bring_back(wanted, force)
    for path, why in stayed:
        out.warning(f"{path} stayed as it is: {why}")
    if chosen == "json":
        body = {"changed": [], "unchanged": [], "dry_run": False, "restored": done, "problems": problems(stayed)}
        out.emit_json("patch-config", body)
    elif chosen == "name":
        out.emit_lines(done)
    else:
        for path in done:
            out.say(f"brought back {path}")
    if stayed and not force:
        out.say("hint: --force brings back the old file over what is there")
    return 3 if stayed else 0
