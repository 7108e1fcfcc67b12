"""What the commands share: options, the table of exit codes, and the way from TARGET to checkpoints."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from shlex import quote
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.errors import EXIT_CODES, CkptError
from ckpt_cli.query import Query, resolve
from ckpt_cli.selector import choose_one
from ckpt_cli.settings import Settings, load
from ckpt_cli.ui import out

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
EPILOG = "\b\nexit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())

_HERE = "the current directory"

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET]", help="[SOURCE/]TAG[/STEP], a file, or a directory to be the root.", show_default=False
    ),
]
Root = Annotated[str | None, typer.Option("--root", metavar="DIR", help="Where the checkpoints are.")]
Source = Annotated[
    str | None, typer.Option("-i", "--source", metavar="SOURCE", help="Only this source: base, mid, sft, rl.")
]
Tag = Annotated[str | None, typer.Option("-g", "--tag", "--model-tag", metavar="TAG", help="Only this run.")]
Step = Annotated[str | None, typer.Option("-s", "--step", metavar="N|latest|best", help="Only this step.")]
# Of `prune`, which removes from runs: taken, to say that --keep-step is meant.
NoStep = Annotated[str | None, typer.Option("-s", "--step", hidden=True)]
Format = Annotated[str | None, typer.Option("--format", metavar="|".join(out.FORMATS), help="Output format.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Names only.")]
# Of a command that has no names to print: taken, so that it can say so, but not offered.
Unnamed = Annotated[str | None, typer.Option("--format", metavar="|".join(out.UNNAMED), help="Output format.")]
NoNames = Annotated[bool, typer.Option("-q", "--quiet", hidden=True)]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Only show what would be done.")]


def group_of(names: tuple[str, ...], prefix: str = "") -> type[TyperGroup]:
    """A group whose subcommands are imported when they are asked for: `ckpt list` does not pay for `ckpt convert`.

    `names` are in the order of the help; each is a module of this folder, `prefix` before it and
    `_` for each `-`, with a Typer `app`.
    """

    class Lazy(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(names)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in names:
                return None
            module = importlib.import_module(f"ckpt_cli.commands.{prefix}{cmd_name.replace('-', '_')}")
            command = typer.main.get_command(module.app)
            command.name = cmd_name
            return command

    return Lazy


def new_app(**settings: Any) -> typer.Typer:
    """A Typer app as all of ours are: plain help, no completion options, no tracebacks drawn."""
    return typer.Typer(
        context_settings=SETTINGS,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        **settings,
    )


def look(target: str | None, root: str | None, source: str | None, tag: str | None, step: str | None) -> Query:
    """TARGET and its options resolved, with everything worth saying about it said on stderr."""
    query = resolve(target, root, source, tag, step, settings=settings())
    for message in (*query.settings.warnings, *query.found.warnings):
        out.warning(message)
    for message in query.notes:
        out.note(message)
    if query.root.origin == _HERE:
        _say_root(query)
    if query.found.trash:
        from ckpt_cli.aside import left_aside
        from ckpt_cli.journal import garbled, interrupted, trash_of

        for path in query.trash:
            if garbled(path):
                out.warning(f"{trash_of(path)} holds files but no readable journal: look at them by hand")
            elif interrupted(path):
                how = "--keep" if left_aside(path) else "--undo or --purge"
                out.warning(f"a prune of {path} was cut off: `ckpt prune {quote(path)}` with {how} settles it")
    return query


def check_word(word: str, words: Iterable[str], what: str) -> None:
    """Raises CkptError for a word that is none of `words`; `what` says what it should have been, as in `no state`."""
    known = list(words)
    if word not in known:
        raise CkptError(f"{word!r} is {what}: {', '.join(known[:-1])} or {known[-1]}")


def settings() -> Settings:
    """What the user has settled for the current directory, and everywhere."""
    return load(".", typer.get_app_dir("ckpt"))


def name_root(query: Query) -> None:
    """Which root a command is about to change something in, and what named it."""
    if query.root.origin != _HERE:  # else it is said already
        _say_root(query)


def _say_root(query: Query) -> None:
    out.say(f"root: {query.root.path} ({query.root.origin})")


def look_for_one(query: Query) -> Checkpoint:
    """The one checkpoint that is meant; a guess is announced."""
    checkpoint, why = choose_one(query)
    if why:
        out.note(f"took {checkpoint.ref} ({why})")
    return checkpoint


def look_for_subject(query: Query) -> Checkpoint | None:
    """The checkpoint that is meant, None for a file that is no part of one."""
    return None if query.file and not query.pool else look_for_one(query)


def with_root(query: Query, command: str) -> str:
    """The command as it has to be typed to find the same root again."""
    return f"{command} --root {quote(query.root.path)}" if query.root.origin in ("TARGET", "--root") else command
