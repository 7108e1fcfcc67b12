"""ckpt inspect tensors"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from fnmatch import fnmatchcase
from typing import Annotated, Any, NamedTuple

import typer

from ckpt_cli.commands import options
from ckpt_cli.contents import PARTS, paths_of, read_files, values_of
from ckpt_cli.errors import CkptError, NotFound, counted
from ckpt_cli.formats import Files
from ckpt_cli.listing import Listed, among_themselves, listing, record_of, totals_of
from ckpt_cli.query import Query
from ckpt_cli.tensor_file import TensorFile
from ckpt_cli.ui import out, text, tree
from ckpt_cli.ui.table import Cell, Column
from ckpt_cli.ui.tensor_text import figure_text, file_texts, shape_text, short_values, storage_text, value_text

app = options.new_app()

# Values shown below the tensors, and characters of each: --values shows the rest.
_FEW = 20
_SHORT = 100
# Reading less than this takes no time that a bar could tell about.
_WORTH_A_BAR = 256 << 20
_SORTS = ("file", "name", "bytes")
_FIGURES = ("min", "max", "mean", "std", "nan", "inf", "zeros")
_VALUES = [Column("NAME"), Column("VALUE")]


class _Asked(NamedTuple):
    pattern: str | None
    sort: str
    tree: bool
    stats: bool
    hashes: bool
    values: bool


@app.command(short_help="List the tensors: name, dtype, shape, bytes, sharing.", epilog=options.EPILOG)
def tensors(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    part: Annotated[str | None, typer.Option("--part", metavar="|".join((*PARTS, "PATH")), help="Which files.")] = None,
    pattern: Annotated[str | None, typer.Option("--filter", metavar="GLOB", help="Only names that match.")] = None,
    sort: Annotated[str, typer.Option("--sort", metavar="|".join(_SORTS), help="By what.")] = "file",
    as_tree: Annotated[bool, typer.Option("--tree", help="Branches of dotted names, with what each holds.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="min, max, mean, std, NaN, infinities and zeros of each; reads all bytes.")
    ] = False,
    hashes: Annotated[bool, typer.Option("--hash", help="sha256 of each tensor's bytes; reads all of them.")] = False,
    values: Annotated[bool, typer.Option("--values", help="What is no tensor instead, by name, in full.")] = False,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """List the tensors of a checkpoint or file: name, dtype, shape, bytes, sharing; then what is no tensor.

    Tied tensors, and views that lie within another tensor, count once in the totals.

    --tree draws branches that hold the same under different numbers as one: h.{0..11} is twelve layers, h.{0..10..2}
    every other one, and the figures beside it are those of all of them. With --format plain every branch has a line
    of its own: name, tensors, parameters, bytes. JSON is the flat list either way.

    --stats: min, max, mean and std are those of the finite values; NaN and infinities are counted. std divides by
    n - 1, as torch does. A bool counts as 0 or 1, a complex number by its magnitude, a quantized one as its integer.

    \b
    examples:
      ckpt inspect tensors d12
      ckpt inspect tensors d12 --tree
      ckpt inspect tensors ./model.pt --filter '*.attn.*' --sort bytes --stats
      ckpt inspect tensors d12 --part optimizer --hash --json
      ckpt inspect tensors ./ckpt.pt --values --filter 'args.*'
    """
    chosen = out.pick_format(format, as_json, quiet)
    options.check_word(sort, _SORTS, "nothing to sort by")
    views = [name for name, given in (("--tree", as_tree), ("--values", values)) if given]
    views += [name for name, given in (("--stats", stats), ("--hash", hashes)) if given] if views else []
    if len(views) > 1:
        raise CkptError(f"{' and '.join(views)} do not go together: each is a listing of its own")
    empty = {"tensors": [], "totals": totals_of([]), "files": [], "foreign_globals": [], "values": {}}
    with out.answering("inspect tensors", chosen, empty):
        query = options.look(target, root, source, tag, step)
        return _tensors(query, part, _Asked(pattern, sort, as_tree, stats, hashes, values), chosen)


def _tensors(query: Query, part: str | None, asked: _Asked, chosen: out.Format) -> int:
    files = read_files(paths_of(query.file, options.look_for_subject(query), part))
    listed, totals = _listed(files, asked)
    values = values_of(files)
    if asked.pattern is not None and (asked.values or chosen == "table"):
        values = {name: value for name, value in values.items() if _wanted(name, asked.pattern)}
    foreign = [name for file in files for name in file.foreign_globals]
    for file in files:
        for said in file.notes:
            out.warning(f"{file.path}: {said}")
    found = bool(values if asked.values else listed) or asked.pattern is None
    nothing = NotFound(f"no {'value' if asked.values else 'tensor'}'s name matches {asked.pattern!r}")
    if foreign:
        out.note(f"names of classes that were not loaded: {', '.join(name.name for name in foreign)}")
    if chosen == "json":
        out.emit_json(
            "inspect tensors",
            {
                "tensors": (record_of(item, asked.hashes, asked.stats) for item in listed),
                "totals": totals,
                "files": [{"path": file.path, "container": file.container} for file in files],
                "foreign_globals": [{"name": name.name, "runs_code": name.runs_code} for name in foreign],
                "values": values,
            },
        )
        if not found:
            out.error(nothing)  # the object above is the answer all the same
        return 0 if found else 1
    if not found:
        raise nothing
    if chosen == "name":
        out.emit_lines(values if asked.values else (item.tensor.name for item in listed))
        return 0
    if asked.values:
        out.emit_rows(chosen, _VALUES, ([name, value_text(value)] for name, value in values.items()))
        return 0
    if asked.tree:
        _emit_tree(files, listed, asked.sort, chosen)
    elif listed or chosen == "plain":
        _emit_list(files, listed, asked, chosen)
    if chosen == "table":
        count = counted(totals["tensors"], "tensor")
        out.say(f"{count}, {counted(totals['parameters'], 'parameter', ',')}, {text.size(totals['bytes'])}")
        if values:
            _emit_few(values)
    return 0


def _wanted(name: str, pattern: str | None) -> bool:
    return pattern is None or fnmatchcase(name, pattern)


def _listed(files: Sequence[TensorFile], asked: _Asked) -> tuple[list[Listed], dict[str, int]]:
    """The tensors that are wanted, in the order that is wanted, with what was asked of each; and their totals."""
    listed = [item for item in listing(files) if _wanted(item.tensor.name, asked.pattern)]
    totals = totals_of(among_themselves(listed) if asked.pattern else listed)
    if asked.sort != "file":
        listed.sort(key=lambda item: item.tensor.name if asked.sort == "name" else -item.tensor.bytes)
    if asked.stats or asked.hashes:
        from ckpt_cli.stats import readings
        from ckpt_cli.ui.progress import byte_bar

        tensors = [item.tensor for item in listed]
        amount = sum(tensor.bytes for tensor in tensors)
        bar = byte_bar("reading", amount) if amount >= _WORTH_A_BAR else nullcontext()
        with Files() as open_files, bar as advance:
            told = readings(open_files, tensors, asked.hashes, asked.stats, advance)
            listed = [item._replace(reading=reading) for item, reading in zip(listed, told)]
    return listed, totals


def _emit_list(files: Sequence[TensorFile], listed: Sequence[Listed], asked: _Asked, chosen: out.Format) -> None:
    """One row a tensor. In plain output columns are only ever added at the end; a table leaves out what it can."""
    columns = {
        "tensor": Column("TENSOR"),
        "dtype": Column("DTYPE"),
        "shape": Column("SHAPE"),
        "bytes": Column("SIZE", right=True),
        **{name: Column(name.upper(), right=True) for name in _FIGURES},
        "sha256": Column("SHA256"),
        "storage": Column("STORAGE"),
        "file": Column("FILE"),
    }
    order = ["tensor", "dtype", "shape", "bytes", "storage", *_FIGURES, "sha256", "file"]
    if chosen == "table":
        order = list(columns)
    left_out = {"file"} if len(files) == 1 else set()
    left_out |= set() if asked.hashes else {"sha256"}
    if not asked.stats:
        left_out |= set(_FIGURES)
    elif chosen == "table":
        left_out |= {"bytes", "storage"}
    order = [name for name in order if name not in left_out]
    texts = file_texts(files)
    cells = (_cells(item, texts) for item in listed)
    out.emit_rows(chosen, [columns[name] for name in order], ([row[name] for name in order] for row in cells))


def _cells(item: Listed, texts: dict[str, str]) -> dict[str, str | Cell]:
    tensor, reading = item.tensor, item.reading
    cells: dict[str, str | Cell] = {
        "tensor": tensor.name,
        "dtype": tensor.dtype,
        "shape": shape_text(tensor.shape),
        "bytes": Cell(text.size(tensor.bytes), str(tensor.bytes)),
        "storage": Cell(storage_text(item), tensor.storage.name if tensor.storage else tensor.form),
        "file": Cell(texts[item.file.path], item.file.path),
    }
    if reading:
        cells["sha256"] = reading.sha256 or "-"
        figures = reading.stats._asdict() if reading.stats else dict.fromkeys(_FIGURES)
        for name, value in figures.items():
            style = "red" if name in ("nan", "inf") and value else ""
            cells[name] = Cell(figure_text(value), "-" if value is None else str(value), style)
    return cells


def _emit_tree(files: Sequence[TensorFile], listed: Sequence[Listed], sort: str, chosen: out.Format) -> None:
    """Branches of names; below the file's own where several have tensors of the same name, as optimizer shards do."""
    several = len({item.tensor.name for item in listed}) < len(listed) and len(files) > 1
    texts = file_texts(files)

    def leaf(item: Listed) -> tree.Leaf:
        tensor, tied = item.tensor, item.sharing.tied_to
        alone = not item.sharing.counted
        shape = shape_text(tensor.shape) + (f" tied to {tied}" if tied is not None else "")
        path = ([texts[item.file.path]] if several else []) + tensor.name.split(".", tree.DEPTH)
        return tree.Leaf(path, tensor.dtype, shape, tensor.elements if alone else 0, tensor.bytes if alone else 0)

    root = tree.grow(map(leaf, among_themselves(listed)), sort)
    if chosen == "plain":
        out.emit_rows(chosen, [], tree.flat_rows(root))
    else:
        out.emit_rows(chosen, tree.COLUMNS, tree.drawn_rows(root))


def _emit_few(values: Mapping[str, Any]) -> None:
    rows, left = short_values(values, _FEW, _SHORT)
    out.emit_lines([""])
    out.emit_rows("table", _VALUES, rows)
    if left:
        out.say(f"and {left} more: --values shows them")
