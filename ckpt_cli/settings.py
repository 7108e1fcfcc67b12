"""What a user has settled: `ckpt.toml`, `[tool.ckpt]` of a `pyproject.toml`, and the user's own file.

The nearest file upward from the current directory counts, key by key before the user's file; `ckpt.toml` comes
before a `pyproject.toml` beside it. Flags and the environment are stronger than both, and are none of this module.

    root = "/data/runs"             where the checkpoints are; relative to the file
    metric = "val_bpb"              what `best` goes by: NAME or NAME:min|max
    grace = "10m"                   how long ago what is incomplete may have been touched and count as in progress
    [sources]                       names of sources, and the directories they stand for
    base = ["base_checkpoints", "ablations"]
    [policies.weekly]               what `ckpt prune --policy weekly` keeps
    keep = 3
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ckpt_cli.discover import GRACE_SECONDS, SOURCES
from ckpt_cli.errors import CkptError
from ckpt_cli.metrics import parse_metric

FILE = "ckpt.toml"
_PROJECT = "pyproject.toml"
_MAX_BYTES = 1 << 20
# No key begins so far on in a line.
_LONG = 200
POLICY_KEYS = ("keep", "keep-last", "keep-every", "keep-best", "keep-within", "keep-step", "max-size", "metric")
# [tool.ckpt], or ckpt.root under [tool]. Blanks, not \s: that takes in lines, and would be tried at each of many.
_OURS = re.compile(
    rb"^[ \t]*(?:\[[ \t]*tool[ \t]*\.[ \t]*[\"']?ckpt[\"']?[ \t]*[.\]]|[\"']?ckpt[\"']?[ \t]*[.=])", re.MULTILINE
)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_HEADING = re.compile(r"\s*\[\[?([^\]]+)\]")
_KEY = re.compile(r"\s*([^=#\[]+)=")


class Settings(NamedTuple):
    """The settings in force; `origins` gives, by key, the file that one came from."""

    root: str | None = None
    sources: Mapping[str, str] = SOURCES
    metric: str | None = None
    grace: float = GRACE_SECONDS
    policies: Mapping[str, Mapping[str, Any]] = {}
    origins: Mapping[str, str] = {}


class _Table(NamedTuple):
    """One file's settings, with its text for finding the line of a mistake."""

    path: str
    text: str
    values: dict[str, Any]

    def wrong(self, key: str, what: str, *within: str) -> CkptError:
        """The error for a key of the table `within`, with the line of it, or of that which it is written in."""
        named: dict[str, int] = {}
        under = ""
        for number, line in enumerate(self.text.splitlines(), 1):
            heading, left = _HEADING.match(line[:_LONG]), _KEY.match(line[:_LONG])
            if heading:
                under = _bare(heading[1])
                named.setdefault(under, number)
            elif left:
                named.setdefault(f"{under}.{_bare(left[1])}".lstrip("."), number)
        path = [*(("tool", "ckpt") if os.path.basename(self.path) == _PROJECT else ()), *map(_bare, (*within, key))]
        lines: list[int] = []
        while path and not lines:
            lines = [number for name, number in named.items() if f"{name}.".startswith(".".join(path) + ".")]
            path.pop()
        return CkptError(f"{self.path}, line {lines[0] if lines else 1}: {what}", path=self.path)


def _bare(name: str) -> str:
    return re.sub(r"[\s'\"]", "", name)


NOTHING = Settings()


def load(cwd: str, user_directory: str | None) -> Settings:
    """The settings that hold in a directory. `user_directory` is where the platform keeps a program's own.

    Raises CkptError, naming file and line, for a file that cannot be read or says what is not understood.
    """
    tables = [table for table in (_nearest(cwd), _of_user(user_directory)) if table]
    settings = NOTHING
    for table in reversed(tables):
        settings = _merged(settings, table)
    return settings


def duration(text: str) -> float | None:
    """Seconds of `90`, `30s`, `10m`, `6h`, `7d` or `2w`; None for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdw]?)", text.strip())
    return float(match[1]) * _UNITS[match[2] or "s"] if match else None


def _nearest(cwd: str) -> _Table | None:
    folder = os.path.realpath(cwd)
    while True:
        for name in (FILE, _PROJECT):
            table = _read(os.path.join(folder, name))
            if table:
                return table
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above


def _of_user(directory: str | None) -> _Table | None:
    return _read(os.path.join(directory, FILE)) if directory else None


def _read(path: str) -> _Table | None:
    """The settings in a file, None where there are none."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        if os.path.basename(path) == _PROJECT:
            return None  # somebody else's
        raise CkptError(f"{path} cannot be read: {error.strerror}", path=path) from error
    project = os.path.basename(path) == _PROJECT
    # To parse every pyproject.toml that lies around would cost each command its time.
    if project and not re.search(_OURS, data):
        return None
    if len(data) > _MAX_BYTES:
        raise CkptError(f"{path} is larger than {_MAX_BYTES >> 20} MiB, too large for settings", path=path)
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = data.decode()
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CkptError(f"{path}, line {line}: it is not UTF-8", path=path) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CkptError(_syntax(path, str(error)), path=path) from error
    if project:
        values = values.get("tool", {}).get("ckpt")
        if values is None:
            return None
    table = _Table(path, text, values if isinstance(values, dict) else {"ckpt": values})
    for key in table.values:
        if key not in _CHECKS:
            raise table.wrong(key, f"there is no setting {key!a}: {', '.join(_CHECKS)}")
    return table


def _syntax(path: str, message: str) -> str:
    match = re.search(r"\(at line (\d+), column \d+\)", message)
    if not match:
        return f"{path}: {message[:1].lower()}{message[1:]}"
    return f"{path}, line {match[1]}: {message[:1].lower()}{message[1 : match.start()].strip()}"


def _merged(settings: Settings, table: _Table) -> Settings:
    values = table.values
    for key in values:
        value = _CHECKS[key](table, values[key], settings)
        settings = settings._replace(**{key: value}, origins={**settings.origins, key: table.path})
    return settings


def _root(table: _Table, value: Any, _: Settings) -> str:
    if not isinstance(value, str) or not value:
        raise table.wrong("root", "root is a path in quotes")
    return os.path.join(os.path.dirname(table.path), os.path.expanduser(value))


def _metric(table: _Table, value: Any, _: Settings) -> str:
    try:
        if isinstance(value, str) and value and parse_metric(value)[1]:
            return value
    except CkptError:
        pass
    raise table.wrong("metric", "metric is NAME, or NAME:min or NAME:max where the name is not a usual one")


def _grace(table: _Table, value: Any, _: Settings) -> float:
    seconds = duration(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        raise table.wrong("grace", 'grace is a duration, as in "10m", or a number of seconds')
    return float(seconds)


def _sources(table: _Table, value: Any, settings: Settings) -> dict[str, str]:
    """Directory name -> source; a source that is named here has only the directories that it names."""
    if not isinstance(value, dict):
        raise table.wrong("sources", "sources is a table of names and directories")
    named: dict[str, str] = {}
    for source, directories in value.items():
        names = [directories] if isinstance(directories, str) else directories
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise table.wrong(source, f"source {source!a} is a directory's name, or a list of them", "sources")
        if not source or "/" in source:
            raise table.wrong(source, f"{source!a} is no name for a source", "sources")
        for name in names:
            if os.sep in name or name in (os.curdir, os.pardir):
                what = f"source {source!a} names the directory {name!a}, which is more than one name"
                raise table.wrong(source, what, "sources")
            named[name] = source
    kept = {name: source for name, source in settings.sources.items() if source not in value and name not in named}
    # In the order in which a default is looked for: nanochat's four, then new ones.
    order = list(dict.fromkeys([*SOURCES.values(), *value]))
    return dict(sorted({**kept, **named}.items(), key=lambda item: order.index(item[1])))


def _policies(table: _Table, value: Any, settings: Settings) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(policy, dict) for policy in value.values()):
        raise table.wrong("policies", "policies holds a table for each policy, as in [policies.weekly]")
    for name, policy in value.items():
        for key in policy:
            if key not in POLICY_KEYS:
                what = f"there is no rule {key!a} for a policy: {', '.join(POLICY_KEYS)}"
                raise table.wrong(key, what, "policies", name)
    return {**settings.policies, **value}


_CHECKS: dict[str, Callable[[_Table, Any, Settings], Any]] = {
    "root": _root,
    "sources": _sources,
    "metric": _metric,
    "grace": _grace,
    "policies": _policies,
}
