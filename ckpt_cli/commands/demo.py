"""ckpt demo"""

from __future__ import annotations

import gc
import os
import time
from shlex import quote
from typing import Annotated

import typer

from ckpt_cli.commands import options
from ckpt_cli.discover import discover
from ckpt_cli.errors import Refused, counted
from ckpt_cli.ui import out, text

app = options.new_app()


@app.command(short_help="Write a small real tree to try everything on.", epilog=options.EPILOG)
def demo(
    directory: Annotated[
        str, typer.Argument(metavar="[DIR]", help="Where to write; must be empty or absent.")
    ] = "ckpt-demo",
    format: options.Unnamed = None,
    as_json: options.Json = False,
    quiet: options.NoNames = False,
) -> int:
    """Write a small real tree to try everything on (imports torch, takes a few seconds).

    Two depths, three sources, several steps, optimizer shards, one lost shard, one damaged file, one old meta.

    \b
    examples:
      ckpt demo
      ckpt demo /tmp/demo && ckpt list /tmp/demo
    """
    from ckpt_cli.demo import write_demo

    gc.enable()  # a training does make cycles
    chosen = out.pick_format(format, as_json, quiet)
    out.no_names(chosen, "demo")
    directory = os.path.abspath(os.path.expanduser(directory))
    if os.path.lexists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
        raise Refused(f"{directory} is there already and not empty", "name another directory")
    write_demo(directory, time.time())
    found = discover(directory).checkpoints
    if chosen == "json":
        out.emit_json("demo", {"root": directory, "checkpoints": len(found)})
    else:
        out.emit_lines([directory])
        out.say(f"wrote {counted(len(found), 'checkpoint')}, {text.size(sum(c.bytes for c in found))}")
        out.say(f"hint: ckpt list {quote(directory)}")
    return 0
