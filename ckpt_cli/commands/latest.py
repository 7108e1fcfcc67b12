"""ckpt latest"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ckpt_cli.checkpoint import Checkpoint, checkpoint_record, is_complete
from ckpt_cli.commands import options
from ckpt_cli.errors import CkptError, NotFound
from ckpt_cli.metrics import best_of
from ckpt_cli.selector import choose_one
from ckpt_cli.ui import out

app = options.new_app()
_FIELDS = ("path", "dir", "ref", "source", "tag", "step")


@app.command(short_help="Print the newest complete step of a run.", epilog=options.EPILOG)
def latest(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    field: Annotated[str, typer.Option("--field", metavar="|".join(_FIELDS), help="What to print of it.")] = "path",
    best: Annotated[bool, typer.Option("--best", help="The best by the metric instead of the newest.")] = False,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME[:min|max]", help="Best by this metric; implies --best.")
    ] = None,
    before: Annotated[int | None, typer.Option("--before", metavar="N", help="Only steps below N.")] = None,
    resumable: Annotated[bool, typer.Option("--resumable", help="Only what training can resume from.")] = False,
    any_state: Annotated[bool, typer.Option("--any-state", help="Incomplete ones count too.")] = False,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Print the newest complete step of a run: the path of its model.

    \b
    examples:
      ckpt latest
      ckpt latest sft/d12 --field step
      ckpt latest d12 --resumable --before 20000
      torchrun ... --resume "$(ckpt latest d12 --field step)"
    """
    chosen = out.pick_format(format, as_json, quiet)
    options.check_word(field, _FIELDS, "no field")

    def counts(checkpoint: Checkpoint) -> bool:
        if before is not None and (checkpoint.step is None or checkpoint.step >= before):
            return False
        return (any_state or is_complete(checkpoint)) and (not resumable or checkpoint.resumable is True)

    conditions = [] if any_state else ["complete"]
    conditions += ["resumable"] if resumable else []
    conditions += [f"before {before}"] if before is not None else []
    what = " and ".join(conditions) or "there"
    with out.answering("latest", chosen, {"checkpoint": None}):
        query = options.look(target, root, source, tag, step)
        if (best or metric) and (query.step or query.file):
            raise CkptError("a named step and --best contradict each other")
        found, why = choose_one(query, counts, what)
        if not counts(found):
            raise NotFound(
                f"{found.ref} is not {what}", None if is_complete(found) else "--any-state takes it all the same"
            )
        if best or metric:
            run = [c for c in query.pool if (c.run, c.run_dir) == (found.run, found.run_dir) and counts(c)]
            found = best_of(run, metric or query.settings.metric)[0]
        if why:
            out.note(f"took {found.ref} ({why})")
    if chosen == "json":
        out.emit_json("latest", {"checkpoint": checkpoint_record(found)})
    elif chosen == "name":
        out.emit_lines([found.ref])
    else:
        out.emit_lines([_field(found, field)])
    return 0


def _field(checkpoint: Checkpoint, name: str) -> str:
    if name == "path":
        models = checkpoint.having("model")
        # Where an index says what the data files hold (not one of JSON), these are no use by themselves.
        indexed = any(not part.path.endswith(".json") for part in checkpoint.having("index"))
        return models[0].path if len(models) == 1 and not indexed else checkpoint.dir
    if name == "dir":
        return os.path.abspath(checkpoint.dir)
    value = getattr(checkpoint, name)
    return "" if value is None else str(value)
