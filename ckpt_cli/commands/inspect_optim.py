"""ckpt inspect optim"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from ckpt_cli.checkpoint import Checkpoint, checkpoint_record
from ckpt_cli.commands import options
from ckpt_cli.contents import FileSet, as_one, indexes_of, optimizer_files, paths_of, read_files
from ckpt_cli.errors import CkptError, Damaged, NotFound, counted
from ckpt_cli.optimizer import Group, OptimizerState, Steps, optimizer_state, without_state
from ckpt_cli.query import Query
from ckpt_cli.tensor_file import TensorFile
from ckpt_cli.ui import out, text
from ckpt_cli.ui.table import Cell, Column

app = options.new_app()

_COLUMNS = (
    Column("RANK", right=True),
    Column("GROUP"),
    Column("KIND"),
    Column("LR", right=True),
    Column("DECAY", right=True),
    Column("PARAMS", right=True),
    Column("STEP", right=True),
    Column("SIZE", right=True),
    Column("STATES"),
)


@app.command(short_help="Show the optimizer of each rank: groups, settings, states.", epilog=options.EPILOG)
def optim(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="PATH", help="Only this file of the checkpoint.")
    ] = None,
    format: options.Unnamed = None,
    as_json: options.Json = False,
    quiet: options.NoNames = False,
) -> int:
    """Show the optimizer of each rank: its groups, what they are set to, what state they hold, what is missing.

    A row is a parameter group; `-` stands for states that no group names. Of several optimizers in a file the group is
    OPTIMIZER.GROUP. PARAMS says how many parameters the group names, `1 of 4` where only one has a state in that file
    (sharded optimizers keep the others on other ranks). KIND is `-` where nothing tells it; `Adam family` has
    Adam's states, but nothing tells Adam from AdamW and its relatives. --json gives every hyperparameter, and the
    count, dtypes and shapes of every state. A damaged rank is exit 1 with the others shown; a checkpoint that keeps no
    optimizer is exit 1, a file of which none can be told exit 2.

    \b
    examples:
      ckpt inspect optim d12
      ckpt inspect optim ./recipe_state.pt
      ckpt inspect optim d12 --json | jq '.ranks[].groups[].hyperparameters.lr'
    """
    chosen = out.pick_format(format, as_json, quiet)
    out.no_names(chosen, "inspect optim")
    empty: dict[str, Any] = {"checkpoint": None, "ranks": [], "missing": [], "without_state": 0}
    with out.answering("inspect optim", chosen, empty):
        return _optim(options.look(target, root, source, tag, step), part, chosen)


def _optim(query: Query, part: str | None, chosen: out.Format) -> int:
    checkpoint = options.look_for_subject(query)
    ranks, failures = _read(query, checkpoint, part)
    missing = checkpoint.ranks.missing if checkpoint and checkpoint.ranks else ()
    lacking = without_state(ranks)
    if missing:
        out.warning(f"optimizer rank {', '.join(map(str, missing))} is missing")
    if chosen == "json":
        out.emit_json(
            "inspect optim",
            {
                "checkpoint": checkpoint and checkpoint_record(checkpoint),
                "ranks": [_record(rank) for rank in ranks],
                "missing": list(missing),
                "without_state": lacking,
                "problems": [failure.problem for failure in failures],
            },
        )
    elif ranks:
        out.emit_rows(chosen, _COLUMNS, [row for rank in ranks for row in _rows(rank)])
        if chosen == "table":
            tensors, size = sum(rank.state_tensors for rank in ranks), sum(rank.state_bytes for rank in ranks)
            files = counted(len(ranks), "file" if ranks[0].rank is None else "rank")
            out.say(f"{files}, {counted(tensors, 'state tensor')}, {text.size(size)}")
    if lacking:
        out.note(f"no file read holds a state for {counted(lacking, 'parameter')} that the groups name")
    for failure in failures:
        out.error(failure)
    return 1 if failures else 0


def _read(query: Query, checkpoint: Checkpoint | None, part: str | None) -> tuple[list[OptimizerState], list[Damaged]]:
    """The optimizers of the files that are meant, and what is damaged of them.

    Raises CkptError for a file that was named, or is there for it, and holds none; NotFound for a checkpoint without.
    """
    named = _named(query, checkpoint, part)
    if named or checkpoint is None:
        return _states(named, must=True)
    for role, sets in optimizer_files(checkpoint):
        ranks, failures = _states(sets, must=role == "optimizer")
        if ranks or failures:
            return ranks, failures
    paths = [os.path.basename(p.path) for p in indexes_of(checkpoint) or checkpoint.having("recipe", "model")]
    where = f"{paths[0]} and {counted(len(paths) - 1, 'other')}" if len(paths) > 2 else " and ".join(paths)
    raise NotFound(f"{checkpoint.ref} keeps no optimizer: there is no file of one, and none in {where or 'others'}")


def _named(query: Query, checkpoint: Checkpoint | None, part: str | None) -> list[FileSet]:
    """The files that --part or TARGET picks; a model or meta file stands for its checkpoint."""
    if checkpoint is None:
        return [([query.file], None)] if query.file else []
    ranks = {p.path: p.rank for p in checkpoint.parts}
    if part is not None:
        return [([path], ranks.get(path)) for path in paths_of(None, checkpoint, part)]
    return [([p.path], p.rank) for p in checkpoint.having("optimizer", "recipe") if p.path == query.file]


def _states(sets: list[FileSet], must: bool) -> tuple[list[OptimizerState], list[Damaged]]:
    """The optimizer in each set of files: one file, or the indexes that together describe one."""
    ranks, failures = [], []
    for paths, rank in sets:
        try:
            file = as_one(read_files(paths))
            state = optimizer_state(file, rank)
        except Damaged as failure:
            failure.path = failure.path or paths[0]
            failures.append(failure)
            continue
        if state is None and must:
            raise CkptError(f"{paths[0]} holds no optimizer that can be told: {_seen(file)}", path=paths[0])
        if state is not None:
            _say_of(file)
            ranks.append(state)
    return ranks, failures


def _say_of(file: TensorFile) -> None:
    for said in file.notes:
        out.warning(f"{file.path}: {said}")
    if file.foreign_globals:
        names = ", ".join(name.name for name in file.foreign_globals)
        out.note(f"names of classes that were not loaded: {names}")


def _seen(file: TensorFile) -> str:
    """What a file holds instead of an optimizer."""
    count, kind = (len(file.tensors), "tensor") if file.tensors else (len(file.values), "value")
    first = file.tensors[0].name if file.tensors else next(iter(file.values), "")
    return f"{counted(count, kind)}, {'the first' if count > 1 else 'it'} is {first!r}" if count else "it is empty"


def _record(rank: OptimizerState) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "path": rank.path,
        "bytes": rank.bytes,
        "groups": [_group_record(group) for group in rank.groups],
        "state_tensors": rank.state_tensors,
        "state_bytes": rank.state_bytes,
        "step": rank.step and list(rank.step),
        "without_state": sum(group.without_state for group in rank.groups),
        "ungrouped": sum(group.parameters for group in rank.groups if group.number is None),
    }


def _group_record(group: Group) -> dict[str, Any]:
    return {
        "optimizer": group.optimizer or "<root>",
        "group": group.number,
        "kind": group.kind,
        "hyperparameters": group.hyperparameters,
        "parameters": group.parameters,
        "without_state": group.without_state,
        "stacked": group.stacked,
        "states": [
            {
                "name": state.name,
                "tensors": state.tensors,
                "values": state.values,
                "dtypes": list(state.dtypes),
                "shapes": [list(shape) for shape in state.shapes],
                "bytes": state.bytes,
            }
            for state in group.states
        ],
        "state_tensors": sum(state.tensors for state in group.states),
        "state_bytes": sum(state.bytes for state in group.states),
        "step": group.step and list(group.step),
    }


def _rows(rank: OptimizerState) -> list[list[str | Cell]]:
    places = list(dict.fromkeys(group.optimizer for group in rank.groups))
    rows: list[list[str | Cell]] = []
    for group in rank.groups:
        index = "-" if group.number is None else str(group.number)
        having = group.parameters - group.without_state
        size = sum(state.bytes for state in group.states)
        rows.append(
            [
                "-" if rank.rank is None else str(rank.rank),
                f"{places.index(group.optimizer)}.{index}" if len(places) > 1 else index,
                group.kind or "-",
                _number(group.hyperparameters.get("lr")),
                _number(group.hyperparameters.get("weight_decay")),
                f"{having} of {group.parameters}" if group.without_state else str(group.parameters),
                _steps(group.step),
                Cell(text.size(size), str(size)),
                # The step has a column of its own.
                ", ".join(state.name for state in group.states if state.name != "step") or "-",
            ]
        )
    return rows


def _number(value: Any) -> str | Cell:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-"
    return Cell(f"{value:.3g}", repr(value))


def _steps(step: Steps | None) -> str:
    return "-" if step is None else str(step[0]) if step[0] == step[1] else f"{step[0]}-{step[1]}"
