"""ckpt inspect: the group of the modules `inspect_*`"""

from __future__ import annotations

from ckpt_cli.commands import options

app = options.new_app(
    cls=options.group_of(("meta", "tensors", "optim", "diff"), "inspect_"),
    no_args_is_help=True,
    epilog=options.EPILOG,
    short_help="Look inside: metadata, tensors, optimizer, differences.",
)


@app.callback()
def inspect() -> None:
    """Look inside a checkpoint: its metadata, its tensors, its optimizer, what differs from another.

    \b
    examples:
      ckpt inspect meta d12
      ckpt inspect tensors d12 --filter '*.attn.*'
      ckpt inspect optim d12
      ckpt inspect diff d12/1000 d12/2000
    """
