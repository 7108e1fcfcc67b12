"""What a user has settled: `ckpt.toml`, `[tool.ckpt]` of a `pyproject.toml`, and the user's own file.

The nearest file upward from the current directory counts, key by key before the user's file; `ckpt.toml` comes
before a `pyproject.toml` beside it. Flags and the environment are stronger than both, and are none of this module.

    root = "/data/runs"             where the checkpoints are; relative to the file
    metric = "val_bpb"              what `best` goes by: NAME or NAME:min|max
    grace = "10m"                   how long ago what is incomplete may have been touched and count as in progress
    [sources]                       names of sources, and the directories they stand for
    base = ["base_checkpoints", "ablations"]
    [policies.weekly]               what `ckpt prune --policy weekly` keeps, as the options of the same names take it
    keep = 3
    keep-within = "7d"

Every value is checked when the file is read, also those that the command at hand has no use for.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ckpt_cli.discover import GRACE_SECONDS, SOURCES, is_skipped
from ckpt_cli.errors import CkptError
from ckpt_cli.metrics import parse_metric
from ckpt_cli.small_files import without_waiting

FILE = "ckpt.toml"
_PROJECT = "pyproject.toml"
_MAX_BYTES = 1 << 20
# No key begins so far on in a line.
_LONG = 200
POLICY_KEYS = ("keep", "keep-last", "keep-every", "keep-best", "keep-within", "keep-step", "max-size", "metric")
# [tool.ckpt], tool.ckpt.root, or ckpt.root under [tool]. Blanks, not \s: that takes in lines, and would be tried at
# each of many.
_OURS = re.compile(
    rb"\btool[\"']?[ \t]*\.[ \t]*[\"']?ckpt[\"']?[ \t]*[.=\]]|(?:^|[{,])[ \t]*[\"']?ckpt[\"']?[ \t]*[.=]", re.MULTILINE
)
# The longest whole number that is read, in digits.
_DIGITS = 4300
_METRIC = "metric is NAME, or NAME:min or NAME:max where the name is not a usual one"
_HEADING = re.compile(r"\s*\[\[?([^\]]+)\]")
_KEY = re.compile(r"\s*([^=#\[]+)=")


class Settings(NamedTuple):
    """The settings in force; `origins` gives, by key, the file that one came from.

    `warnings` is what the user should be told of files that were left out.
    """

    root: str | None = None
    sources: Mapping[str, str] = SOURCES
    metric: str | None = None
    grace: float = GRACE_SECONDS
    policies: Mapping[str, Mapping[str, Any]] = {}
    origins: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()


class _Table(NamedTuple):
    """One file's settings, with its text for finding the line of a mistake."""

    path: str
    text: str
    values: dict[str, Any]

    def wrong(self, key: str, what: str, *within: str) -> CkptError:
        """The error for a key of the table `within`, with the line of it, or of that which it is written in."""
        named: dict[str, int] = {}
        under = ""
        for number, line in enumerate(self.text.split("\n"), 1):
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

    Raises CkptError, naming file and line, for a file that cannot be read or says what is not understood. Only the
    user's own file may be one that nobody here may read, as under sudo or in a container: that is a warning, and it
    counts as empty.
    """
    settings = NOTHING
    try:
        table = _read(os.path.join(user_directory, FILE)) if user_directory else None
    except CkptError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        table, settings = None, Settings(warnings=(f"{error.message}: it counts as empty",))
    for found in (table, _nearest(cwd)):
        settings = _merged(settings, found) if found else settings
    return settings


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


def _read(path: str) -> _Table | None:
    """The settings in a file, None where there are none."""
    try:
        with open(path, "rb", opener=without_waiting) as file:
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
    except (ValueError, RecursionError) as error:
        raise CkptError(_syntax(path, text, error), path=path) from error
    if project:
        tool = values.get("tool")
        if not isinstance(tool, dict) or "ckpt" not in tool:
            return None
        values = tool["ckpt"]
        if not isinstance(values, dict):
            raise _Table(path, text, {}).wrong("", "tool.ckpt is a table of settings")
    table = _Table(path, text, values)
    for key in table.values:
        if key not in _CHECKS:
            raise table.wrong(key, f"there is no setting {key!r}: {', '.join(_CHECKS)}")
    return table


def _syntax(path: str, text: str, error: Exception) -> str:
    """The sentence for what is no TOML, with the line that the parser names; where it names none, the likely one."""
    message, _, at = str(error).partition(" (at ")
    named = re.match(r"line (\d+)", at)
    lines = text.rstrip().split("\n")
    line = int(named[1]) if named else len(lines)
    if isinstance(error, RecursionError):
        deep = [line.count("[") + line.count("{") for line in lines]
        line, message = deep.index(max(deep)) + 1, "it is nested too deep for settings"
    elif not at and (number := re.search(rf"[0-9_]{{{_DIGITS},}}", text)):
        line, message = text.count("\n", 0, number.start()) + 1, f"a number has more than {_DIGITS} digits"
    return f"{path}, line {line}: {message[:1].lower()}{message[1:]}"


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
    if not _is_metric(value):
        raise table.wrong("metric", _METRIC)
    return str(value)


def _is_metric(value: Any) -> bool:
    """Whether a value names a metric whose direction is known."""
    try:
        return isinstance(value, str) and parse_metric(value)[1] is not None
    except CkptError:
        return False


def _grace(table: _Table, value: Any, _: Settings) -> float:
    from ckpt_cli.ruleset import duration

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
            raise table.wrong(source, f"source {source!r} is a directory's name, or a list of them", "sources")
        if not source or "/" in source or source[0] in ".~":
            raise table.wrong(source, f"{source!r} is no name for a source", "sources")
        for name in names:
            what = None
            if os.sep in name or name in (os.curdir, os.pardir) or "\0" in name:
                what = "which is more than one name"
            elif is_skipped(name):
                what = "where checkpoints are never looked for"
            elif named.get(name, source) != source:
                what = f"which stands for {named[name]!r} already"
            if what:
                raise table.wrong(source, f"source {source!r} names the directory {name!r}, {what}", "sources")
            named[name] = source
    kept = {name: source for name, source in settings.sources.items() if source not in value and name not in named}
    # In the order in which a default is looked for: nanochat's four, then new ones.
    order = list(dict.fromkeys([*SOURCES.values(), *value]))
    return dict(sorted({**kept, **named}.items(), key=lambda item: order.index(item[1])))


def _policies(table: _Table, value: Any, settings: Settings) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise table.wrong("policies", "policies holds a table for each policy, as in [policies.weekly]")
    for name, policy in value.items():
        if not isinstance(policy, dict):
            raise table.wrong(name, f"policy {name!r} is a table, as in [policies.weekly]", "policies")
        for key, rule in policy.items():
            fault = _fault(key, rule)
            if fault:
                raise table.wrong(key, f"in the policy {name!r}, {fault}", "policies", name)
    return {**settings.policies, **value}


def _fault(key: str, rule: Any) -> str | None:
    """What is wrong with one rule of a policy, read as the option of its name is."""
    from ckpt_cli.ruleset import ruleset

    if key not in POLICY_KEYS:
        return f"there is no rule {key!r}: {', '.join(POLICY_KEYS)}"
    if key == "metric":
        return None if _is_metric(rule) else _METRIC
    try:
        rules = ruleset({key: rule})
    except CkptError as error:
        return error.message.removeprefix("--")
    return None if rules.policies or rules.budget else f"{key} names nothing to keep"


_CHECKS: dict[str, Callable[[_Table, Any, Settings], Any]] = {
    "root": _root,
    "sources": _sources,
    "metric": _metric,
    "grace": _grace,
    "policies": _policies,
}
