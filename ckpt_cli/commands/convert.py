"""ckpt convert"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from ckpt_cli import convert as conversion
from ckpt_cli.checkpoint import Checkpoint, checkpoint_record
from ckpt_cli.commands import options
from ckpt_cli.contents import indexes_of, paths_of, read_files
from ckpt_cli.errors import CkptError
from ckpt_cli.selector import Query
from ckpt_cli.ui import out, text
from ckpt_cli.ui.out import Cell, Column
from ckpt_cli.ui.progress import byte_bar

app = options.new_app()


@app.command(epilog=options.EPILOG)
def convert(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="safetensors.")] = "safetensors",
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="OUT", help="File or directory to write.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: options.DryRun = False,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Write a checkpoint's model, or any `.pt` file, as safetensors.

    Needs no torch and no more memory than a buffer. The source's CRC32 is checked, and every range written is
    read back. Without -o the output lies beside the model, as <model stem>.safetensors.

    \b
    examples:
      ckpt convert d12
      ckpt convert sft/d12/650 -o /srv/models/
      ckpt convert ./model.pt -o model.safetensors --force
    """
    chosen = out.pick_format(format, as_json, quiet)
    if to != "safetensors":
        raise CkptError(f"{to!a} is no format to convert to: safetensors")
    empty: dict[str, Any] = {"source": None, "outputs": [], "tensors": 0, "bytes": 0, "renamed": [], "cast": []}
    with out.answering("convert", chosen, {**empty, "dropped": [], "tied": [], "verified": False, "dry_run": dry_run}):
        query = options.look(target, root, source, tag, step)
        options.name_root(query)
        return _convert(query, output, force, dry_run, chosen)


def _convert(query: Query, output: str | None, force: bool, dry_run: bool, chosen: out.Format) -> int:
    checkpoint, path = _subject(query)
    file = read_files([path])[0]
    if output is None and checkpoint and path in (part.path for part in indexes_of(checkpoint)):
        raise CkptError(f"the model of {checkpoint.ref} is in several files", "-o OUT says where to write it")
    for said in file.notes:
        out.warning(f"{path}: {said}")
    recipe = conversion.plan(file, _metadata(checkpoint, path))
    for said in recipe.notes:
        out.warning(said)
    result = conversion.output_path(path, output, make=not dry_run)
    parts = [part.path for part in checkpoint.parts if part.role != "export"] if checkpoint else []
    conversion.refuse_output(result, [path, *parts], force)
    if not dry_run:
        with byte_bar(os.path.basename(result), 2 * (recipe.bytes - len(recipe.header))) as advance:
            conversion.write(recipe, result, force, advance)
    if chosen == "json":
        out.emit_json(
            "convert",
            {
                "source": checkpoint and checkpoint_record(checkpoint),
                "outputs": [{"path": result, "bytes": recipe.bytes}],
                "tensors": len(recipe.entries),
                "bytes": recipe.bytes,
                "renamed": [{"from": old, "to": new} for old, new in recipe.renamed],
                "cast": [],
                "dropped": [],
                "tied": [{"name": alias.name, "of": alias.of} for alias in recipe.aliases],
                "verified": not dry_run,
                "dry_run": dry_run,
            },
        )
        return 0
    if chosen == "name":
        out.emit_lines([result])
        return 0
    columns = (Column("OUTPUT"), Column("SIZE", right=True), Column("TENSORS", right=True), Column("STATE"))
    state = "would be written" if dry_run else "written and read back"
    size = Cell(text.size(recipe.bytes), str(recipe.bytes))
    out.emit_rows(chosen, columns, [[result, size, str(len(recipe.entries)), state]])
    if recipe.renamed:
        out.note(f"{text.count(len(recipe.renamed), 'name')} lost the _orig_mod. of torch.compile")
    for alias in recipe.aliases:
        out.note(f"{alias.name} is tied to {alias.of}, written once")
    return 0


def _subject(query: Query) -> tuple[Checkpoint | None, str]:
    """The checkpoint that is meant, and the one file to convert: the one named, or its model."""
    checkpoint = None if query.file and not query.pool else options.look_for_one(query)
    if query.file and not query.file.endswith((".json", ".sha256", ".keep")):
        return checkpoint, query.file
    if checkpoint is None:
        raise CkptError(f"{query.file} has no model file")
    models = paths_of(None, checkpoint, "model")
    if len(models) > 1:
        raise CkptError(f"the model of {checkpoint.ref} is in {len(models)} files", "name one of them")
    return checkpoint, models[0]


def _metadata(checkpoint: Checkpoint | None, path: str) -> dict[str, str]:
    """What goes along of the checkpoint: its reference, and its meta file word for word if it is whole."""
    if checkpoint is None or path not in (part.path for part in checkpoint.having("model")):
        return {}
    metadata = {"ckpt.ref": checkpoint.ref}
    for part in checkpoint.having("meta"):
        try:
            metadata["ckpt.meta"] = conversion.read_meta(part.path)
        except CkptError as error:
            out.warning(f"the metadata does not go along: {error.message}")
    return metadata
