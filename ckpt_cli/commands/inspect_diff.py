"""ckpt inspect diff"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any, NamedTuple

import typer

from ckpt_cli.checkpoint import Checkpoint, checkpoint_record
from ckpt_cli.commands import options
from ckpt_cli.comparable import metadata_of, tensors_of
from ckpt_cli.contents import paths_of, read_files
from ckpt_cli.difference import Change, Lone, MetaDifference, TensorDifference, compare_metadata, compare_tensors
from ckpt_cli.formats import Files
from ckpt_cli.query import Query, resolve
from ckpt_cli.root import is_path
from ckpt_cli.scalars import Numbers
from ckpt_cli.tensor_file import TensorFile, TensorInfo
from ckpt_cli.ui import out
from ckpt_cli.ui.group_text import without_groups
from ckpt_cli.ui.progress import byte_bar
from ckpt_cli.ui.table import Column, Row
from ckpt_cli.ui.tensor_text import shape_text

app = options.new_app()

# Reading less than this takes no time that a bar could tell about.
_WORTH_A_BAR = 256 << 20


class _Side(NamedTuple):
    checkpoint: Checkpoint | None
    files: list[TensorFile]
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


@app.command(short_help="Say what differs between two checkpoints or files.", epilog=options.EPILOG)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="[SOURCE/]TAG[/STEP], a file, or a directory to be the root.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What A is compared with, named in the same way.")],
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    values: Annotated[
        bool, typer.Option("--values", help="How large each change is: max |b-a| and ||b-a||/||a||.")
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if anything differs or cannot be compared.")
    ] = False,
    format: options.Unnamed = None,
    as_json: options.Json = False,
    quiet: options.NoNames = False,
) -> int:
    """Say what differs between two checkpoints or files: configuration, metadata and tensors.

    Tensors are matched by name, across formats, and their bytes compared: removed (-), added (+), and of those in
    both (~) reshaped, recast (another dtype) or changed. --root, -i, -g and -s hold for A and B alike, but not for
    one that is a file.

    \b
    examples:
      ckpt inspect diff d12/1000 d12/2000 --values
      ckpt inspect diff base sft -g d12
      ckpt inspect diff ./model.pt ./model.safetensors --exit-code
    """
    chosen = out.pick_format(format, as_json, quiet)
    out.no_names(chosen, "inspect diff")
    nothing = {"added": [], "removed": [], "changed": [], "equal": 0}
    empty = {"a": None, "b": None, "differs": None, "meta": nothing, "tensors": {**nothing, "not_compared": []}}
    with out.answering("inspect diff", chosen, empty):
        given = source, tag, step
        bare = [_is_file(a), _is_file(b)]
        left = options.look(a, root, *((None,) * 3 if bare == [True, False] else given))
        right = _look_again(left, b, root, *((None,) * 3 if bare == [False, True] else given))
        return _diff(_side(left), _side(right), values, exit_code, chosen)


def _is_file(target: str) -> bool:
    return is_path(target) and not os.path.isdir(os.path.expanduser(target))


def _look_again(
    first: Query, target: str, root: str | None, source: str | None, tag: str | None, step: str | None
) -> Query:
    """The second TARGET resolved; what there is to say about the root has been said where it is the first one's."""
    query = resolve(target, root, source, tag, step, settings=options.settings())
    if query.root != first.root:
        return options.look(target, root, source, tag, step)
    for message in query.notes:
        out.note(message)
    return query


def _side(query: Query) -> _Side:
    checkpoint = options.look_for_subject(query)
    files = read_files(paths_of(query.file, checkpoint, None))
    for file in files:
        for said in file.notes:
            out.warning(f"{file.path}: {said}")
    return _Side(checkpoint, files, metadata_of(checkpoint, query.file, files), tensors_of(files))


def _diff(a: _Side, b: _Side, values: bool, exit_code: bool, chosen: out.Format) -> int:
    meta = compare_metadata(a.metadata, b.metadata)
    total = sum(a.tensors[name].bytes + b.tensors[name].bytes for name in a.tensors if name in b.tensors)
    with byte_bar("comparing", total) if total > _WORTH_A_BAR else nullcontext(lambda count: None) as advance:
        found = compare_tensors(a.tensors, b.tensors, values, advance)
    differs = any((*meta[:3], *found[:3]))
    if chosen == "json":
        out.emit_json(
            "inspect diff",
            {
                "a": _side_record(a),
                "b": _side_record(b),
                "differs": differs,
                "meta": _meta_record(meta),
                "tensors": _tensors_record(found, values),
            },
        )
    elif chosen == "plain":
        out.emit_rows("plain", (), [*_plain_meta(meta), *_plain_tensors(found, values)])
    else:
        _emit_meta(meta, a, b, chosen)
        _emit_tensors(found, values, chosen)
        out.say(_summary(meta, found))
    return int(exit_code and (differs or bool(found.not_compared)))


# --- JSON


def _side_record(side: _Side) -> dict[str, Any]:
    return {
        "checkpoint": side.checkpoint and checkpoint_record(side.checkpoint),
        "files": [{"path": file.path, "container": file.container} for file in side.files],
    }


def _meta_record(meta: MetaDifference) -> dict[str, Any]:
    return {
        "added": [{"key": key, "value": value} for key, value in meta.added],
        "removed": [{"key": key, "value": value} for key, value in meta.removed],
        "changed": [{"key": key, "from": old, "to": new} for key, old, new in meta.changed],
        "equal": meta.equal,
    }


def _tensors_record(found: TensorDifference, values: bool) -> dict[str, Any]:
    changed = []
    for change in found.changed:
        record: dict[str, Any] = {
            "name": change.name,
            "what": list(change.what),
            "from": _type(change.old),
            "to": _type(change.new),
        }
        if values:
            amount = change.amount
            record["max_abs"] = amount and amount.max_abs
            record["relative_norm"] = amount and amount.relative_norm
            record["nan"] = amount and amount.nan
        changed.append(record)
    return {
        "added": [_lone_record(lone) for lone in found.added],
        "removed": [_lone_record(lone) for lone in found.removed],
        "changed": changed,
        "equal": found.equal,
        "not_compared": [{"name": name, "reason": reason} for name, reason in found.not_compared],
    }


def _lone_record(lone: Lone) -> dict[str, Any]:
    return {"name": lone.name, **_type(lone.tensor), "tied_to": lone.tied_to}


def _type(tensor: TensorInfo) -> dict[str, Any]:
    kind = {} if tensor.form == "strided" else {"form": tensor.form}
    return {"dtype": tensor.dtype, "shape": list(tensor.shape), **kind}


# --- text


def _plain_meta(meta: MetaDifference) -> list[Row]:
    """Kind, `meta`, key, old and new value as JSON; nothing stands for what is not there."""
    return [
        *(["removed", "meta", key, _json(value), ""] for key, value in meta.removed),
        *(["added", "meta", key, "", _json(value)] for key, value in meta.added),
        *(["changed", "meta", key, _json(old), _json(new)] for key, old, new in meta.changed),
    ]


def _plain_tensors(found: TensorDifference, values: bool) -> list[Row]:
    """Kind, `tensor`, name, old and new dtype and shape; with --values max |b-a| and relative norm."""
    rows: list[list[str]] = [
        *(["removed", "tensor", lone.name, _spelled(lone.tensor), ""] for lone in found.removed),
        *(["added", "tensor", lone.name, "", _spelled(lone.tensor)] for lone in found.added),
    ]
    rows = [[*row, "", ""] if values else row for row in rows]
    for change in found.changed:
        row = [",".join(change.what), "tensor", change.name, _spelled(change.old), _spelled(change.new)]
        rows.append([*row, *(_figures(change, repr, "") if values else ())])
    rows += [["not-compared", "tensor", name, reason, "", *([""] * 2 * values)] for name, reason in found.not_compared]
    return list(rows)


def _emit_meta(meta: MetaDifference, a: _Side, b: _Side, chosen: out.Format) -> None:
    rows, groups = without_groups(
        [
            *(("-", key, _json(value)) for key, value in meta.removed),
            *(("+", key, _json(value)) for key, value in meta.added),
            *(("~", key, f"{_json(old)} -> {_json(new)}") for key, old, new in meta.changed),
        ],
        a.metadata,
        b.metadata,
    )
    if rows:
        out.emit_rows(chosen, (Column(""), Column("METADATA"), Column("VALUE")), rows)
    if groups:
        out.emit_rows(chosen, (Column(""), Column("GROUP"), Column("SETTING"), Column("VALUE")), groups)


def _emit_tensors(found: TensorDifference, values: bool, chosen: out.Format) -> None:
    with Files() as files:
        numbers = Numbers(files)
        turns = [_turn(change, numbers) for change in found.changed]
    plain: list[tuple[str, str, list[str], str]] = [
        *(("-", lone.name, [], _lone(lone)) for lone in found.removed),
        *(("+", lone.name, [], _lone(lone)) for lone in found.added),
        *(
            ("~", change.name, _figures(change, "{:.3g}".format, "-"), turn)
            for change, turn in zip(found.changed, turns)
        ),
        *(("?", name, [], f"not compared: {reason}") for name, reason in found.not_compared),
    ]
    figures = (Column("MAX", right=True), Column("REL NORM", right=True)) if values else ()
    lines = [[sign, name, *((said or ["", ""]) if values else ()), turn] for sign, name, said, turn in plain]
    if lines:
        out.emit_rows(chosen, (Column(""), Column("TENSOR"), *figures, Column("TYPE")), lines)


def _figures(change: Change, show: Callable[[float], str], absent: str) -> list[str]:
    """Max |b-a| and relative norm, as `show` writes a number."""
    if change.amount is None:
        return [absent, absent]
    return [show(change.amount.max_abs), show(change.amount.relative_norm)]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _spelled(tensor: TensorInfo) -> str:
    """dtype and shape; the form too where it is more than the way the bytes lie."""
    kind = "" if tensor.form in ("strided", "chunked", "archived") else f" {tensor.form}"
    return f"{tensor.dtype} {shape_text(tensor.shape)}{kind}"


def _lone(lone: Lone) -> str:
    return _spelled(lone.tensor) + (f", tied to {lone.tied_to}" if lone.tied_to else "")


def _turn(change: Change, numbers: Numbers) -> str:
    """What became of dtype and shape, only what is not the same; of a scalar, a step, its value."""
    old, new = change.old, change.new
    if change.what == ("changed",):
        was, now = (None if side.shape else numbers.read(side) for side in (old, new))
        return _spelled(new) if was is None or now is None else f"{new.dtype} {was} -> {now}"
    if change.what == ("reshaped",):
        return f"{shape_text(old.shape)} -> {shape_text(new.shape)}"
    if change.what == ("recast",) and old.form == new.form:
        return f"{old.dtype} -> {new.dtype}"
    return f"{_spelled(old)} -> {_spelled(new)}"


def _summary(meta: MetaDifference, found: TensorDifference) -> str:
    counts = [(found.equal, "equal"), (len(found.changed), "changed"), (len(found.added), "added")]
    counts += [(len(found.removed), "removed"), (len(found.not_compared), "not compared")]
    tensors = ", ".join(f"{count} {what}" for count, what in counts if count or what == "equal")
    keys = [(meta.equal, "equal"), (len(meta.changed), "changed"), (len(meta.added), "added")]
    keys += [(len(meta.removed), "removed")]
    return f"tensors: {tensors}; metadata: " + ", ".join(f"{n} {what}" for n, what in keys if n or what == "equal")
