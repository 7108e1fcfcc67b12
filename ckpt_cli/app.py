"""The Typer app: finds the command, runs it, and prints every error itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ckpt_cli import __version__
from ckpt_cli.commands.options import EPILOG, SETTINGS, group_of
from ckpt_cli.errors import CkptError
from ckpt_cli.ui import out

# In the order of `ckpt --help`; each is the module of its name in `commands`.
COMMANDS = ("list", "latest", "inspect", "verify", "load-test", "patch-config", "prune", "convert", "demo")
# What an option takes, as click calls it and as we do.
_KINDS = (("int range", "whole number"), ("float range", "number"), ("int", "whole number"), ("float", "number"))

app = typer.Typer(
    cls=group_of(COMMANDS),
    context_settings=SETTINGS,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=EPILOG,
)


def _version(asked: bool) -> None:
    """Names the tool, Python and torch, which is not imported for that: its version lies beside it."""
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = f"torch {version('torch')}"
        except PackageNotFoundError:
            torch = "no torch"
        print(f"ckpt {__version__}, Python {sys.version.split()[0]}, {torch}")
        raise typer.Exit()


@app.callback()
def ckpt(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """List, look into, load-test, prune and convert the checkpoints that language-model training leaves behind.

    \b
    examples:
      ckpt list                     what is there
      ckpt latest d12               the newest whole step of a run
      ckpt inspect tensors d12      names, dtypes, shapes
      ckpt verify d12               is every byte as it was written
      ckpt load-test d12            does it still load and run
      ckpt patch-config d12 -n      what old metadata lacks
      ckpt prune --keep 3 -n        what would go
      ckpt convert d12              to safetensors
    """


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code; nothing but a debugger's wish lets a traceback out."""
    out.mend_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="ckpt", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, SystemExit):  # Typer exits by itself when nobody reads the help
        out.drop_stdout()
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail(CkptError("interrupted"), 130)
    except CkptError as error:
        return _fail(error, error.code)
    except Exception as error:
        if os.environ.get("CKPT_DEBUG"):
            raise
        usage = _usage_error(error, sys.argv[1:] if arguments is None else arguments)
        if usage is not None:
            return _fail(usage, 2) if usage.message else 2
        if isinstance(error, OSError):
            named = f"{error.filename}: " if error.filename else ""
            return _fail(CkptError(f"{named}{error.strerror or error}"), 2)
        what = f"something in ckpt itself went wrong: {type(error).__name__}: {error}"
        return _fail(CkptError(what, "CKPT_DEBUG=1 shows where; please report it"), 2)


def _fail(error: CkptError, code: int) -> int:
    if os.environ.get("CKPT_DEBUG") and code != 130:
        import traceback

        traceback.print_exc()
    out.error(error)
    return code


def _usage_error(error: Exception, arguments: Sequence[str]) -> CkptError | None:
    """A wrong command line as one of our errors, with the nearest option or command; help alone has no message."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return CkptError("")
    message = error.format_message().rstrip(".")
    message = (message[:1].lower() + message[1:]).split(" (Possible options")[0]
    for typed, said in _KINDS:
        message = message.replace(f"is not a valid {typed}", f"is no {said}")
    message = message.replace("got unexpected extra argument(s)", "more is named than it takes:")
    close = list(getattr(error, "possibilities", None) or [])
    if message.startswith("no such command"):
        typed = message.split("'")[1] if "'" in message else ""
        from difflib import get_close_matches

        close = get_close_matches(typed, context.command.list_commands(context), 1) if context else []
        message = message.split(" (")[0].split(". ")[0]
    # What lacks its value is not said to be of a command.
    named = arguments[:1] if arguments and arguments[0] in COMMANDS else []
    path = context.command_path if context else " ".join(["ckpt", *named])
    hint = f"did you mean {close[0]}" if close else f"`{path} --help` shows what there is"
    if message.startswith("no such option: -") and not message.startswith("no such option: --"):
        hint += ", and -- goes before a TARGET that begins with -"
    return CkptError(message, hint)
