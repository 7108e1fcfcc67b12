"""ckpt inspect meta"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ckpt_cli.checkpoint import checkpoint_record
from ckpt_cli.commands import options
from ckpt_cli.leaves import flat
from ckpt_cli.metadata import look_up, read_metadata
from ckpt_cli.query import Query
from ckpt_cli.ui import out

app = options.new_app()


@app.command(short_help="Show the metadata, or one value of it.", epilog=options.EPILOG)
def meta(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    key: Annotated[str | None, typer.Option("--key", metavar="A.B", help="Print one value.")] = None,
    format: options.Unnamed = None,
    as_json: options.Json = False,
    quiet: options.NoNames = False,
) -> int:
    """Show the metadata; without a meta file, what the checkpoint itself says.

    \b
    examples:
      ckpt inspect meta d12
      ckpt inspect meta base/d12/1000 --key model_config.n_layer
      ckpt inspect meta --json | jq .meta.val_bpb
    """
    chosen = out.pick_format(format, as_json, quiet)
    out.no_names(chosen, "inspect meta")
    with out.answering("inspect meta", chosen, {"checkpoint": None, "meta": None}):
        return _meta(options.look(target, root, source, tag, step), key, chosen)


def _meta(query: Query, key: str | None, chosen: out.Format) -> int:
    checkpoint = options.look_for_subject(query)
    found = read_metadata(checkpoint, query.file)
    if key is not None:
        found = look_up(found, key)
    if chosen == "json":
        out.emit_json("inspect meta", {"checkpoint": checkpoint and checkpoint_record(checkpoint), "meta": found})
    elif key is None and not found:
        out.note(f"{checkpoint.ref if checkpoint else query.file} has no metadata")
    elif key is not None and (not found or not isinstance(found, (dict, list))):
        out.emit_lines([_shown(found)])
    elif chosen == "table":
        # Line by line, so that only what the values hold is escaped.
        out.emit_lines(json.dumps(found, indent=2, ensure_ascii=False).split("\n"))
    else:
        out.emit_rows("plain", (), ([name, _shown(value)] for name, value in flat(found).items()))
    return 0


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
