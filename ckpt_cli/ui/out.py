"""The one sink: what a command has to say, in every output format. Data to stdout, all else to stderr."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from typing import Any, Literal, get_args

from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.ui.table import Column, Row, aligned, drawn, separated
from ckpt_cli.ui.text import printable

Format = Literal["table", "plain", "json", "name"]
FORMATS: tuple[str, ...] = get_args(Format)
# Those of a command whose answer has no names.
UNNAMED = FORMATS[:-1]


# Items of a long list that are written together; characters of a text that is written alone.
_AT_ONCE, _LARGE = 256, 1 << 16


def pick_format(format: str | None, as_json: bool, quiet: bool) -> Format:
    """The output format from --format, --json and -q, which may not contradict each other."""
    asked = {name for name, given in ((format, format), ("json", as_json), ("name", quiet)) if given and name}
    if len(asked) > 1:
        raise CkptError(f"{' and '.join(sorted(asked))} are two output formats: name one")
    if asked:
        name = asked.pop()
        if name not in FORMATS:
            raise CkptError(f"{name!r} is no output format: table, plain, json or name")
        return name  # type: ignore[return-value]
    return "table" if sys.stdout.isatty() else "plain"


def emit_json(command: str, body: dict[str, Any]) -> None:
    """The JSON object of a command; what is not finite becomes null. A list may be an iterator, of which no more than
    some items are in memory."""
    mark = "{"
    for key, value in {"schema_version": 1, "command": command, **body}.items():
        _write(f'{mark}"{key}": ')
        for piece in _pieces(value):
            _write(piece)
        mark = ", "
    _write("}\n")


def _pieces(value: Any) -> Iterator[str]:
    """JSON, of long lists, mappings and texts not all at once; an iterator is a list."""
    mark = ""
    if isinstance(value, (list, tuple, Iterator)):
        members = iter(value)
        yield "["
        while batch := list(islice(members, _AT_ONCE)):
            yield mark + _json(batch)[1:-1]
            mark = ", "
        yield "]"
    elif isinstance(value, Mapping):
        pairs = iter(value.items())
        yield "{"
        while some := list(islice(pairs, _AT_ONCE)):
            for large, group in groupby(some, lambda pair: _is_large(pair[1])):
                if not large:
                    yield mark + _json(dict(group))[1:-1]
                    mark = ", "
                    continue
                for key, member in group:
                    yield mark + _json({key: 0})[1:-2]
                    yield from _pieces(member)
                    mark = ", "
        yield "}"
    else:
        yield _json(value)


def _is_large(value: Any) -> bool:
    return isinstance(value, Iterator) or (isinstance(value, str) and len(value) > _LARGE)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), allow_nan=False)


@contextmanager
def answering(command: str, format: Format, empty: dict[str, Any]) -> Iterator[None]:
    """Sees to it that JSON output holds an object also when the answer is a failure with exit code 1 or 3.

    `empty` is the body of an answer that found nothing; what went wrong is added as `problems`.
    """
    try:
        yield
    except CkptError as failure:
        if format == "json" and failure.code in (1, 3):
            emit_json(command, {**empty, "problems": [failure.problem]})
        raise


def finite(value: Any) -> Any:
    """The value with NaN and infinities as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def emit_rows(format: Format, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Records as a table, or tab-separated one a line."""
    if format == "plain":
        lines: Iterable[str] = map(separated, rows)
    else:
        lines = (drawn if sys.stdout.isatty() else aligned)(columns, rows)
    for line in lines:
        _write(line)


def emit_lines(lines: Iterable[str]) -> None:
    """Names or values, one a line, made harmless."""
    for line in lines:
        _write(printable(line) + "\n")


def no_names(format: Format, command: str) -> None:
    """Refuses -q where there is no name to print."""
    if format == "name":
        raise CkptError(f"{command} has no names to print: -q does not go with it")


def note(message: str) -> None:
    _say(f"note: {message}")


def warning(message: str) -> None:
    _say(f"warning: {message}")


def say(message: str) -> None:
    """A line for people beside the data."""
    _say(message)


def error(failure: CkptError) -> None:
    _say(f"error: {failure.message}")
    if failure.hint:
        _say(f"hint: {failure.hint}")


def confirm(question: str, yes: bool) -> bool:
    """Asks on the terminal, default no. Raises Refused where there is none to ask on and no --yes."""
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise Refused("there is no terminal to ask on", "--yes goes ahead without asking")
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    said = ""
    try:
        said = sys.stdin.readline()
    finally:
        if not said.endswith("\n"):  # ended or interrupted: what follows begins a line of its own
            sys.stderr.write("\n")
    return said.strip().lower() in ("y", "yes")


def _say(message: str) -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
    with suppress(BrokenPipeError):  # nobody reads it; the answer on stdout may be read all the same
        print(printable(message), file=sys.stderr, flush=True)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        drop_stdout()


def drop_stdout() -> None:
    """Nobody reads stdout any more: what comes goes nowhere, and the command is done in silence."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def mend_streams() -> None:
    """Where a shell has closed stdout or stderr, Python has None: it becomes a stream to nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
