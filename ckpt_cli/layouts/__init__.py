"""How checkpoints lie in a directory: one module a layout, each a `Layout`.

A layout looks at names, file status and small JSON files. It never reads tensor data and never lists a
directory itself: `discover` hands it a `Folder` that was read once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

from ckpt_cli import plugins
from ckpt_cli.checkpoint import OURS, Checkpoint, Part, Problem, Role, State
from ckpt_cli.errors import CkptError

MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 200


class Layout(Protocol):
    """What a module of this folder offers.

    `scan` returns the checkpoints that lie in one folder, none when the names are not this layout's.
    `REMOVAL_ORDER` names the roles in the order in which removal takes them away, so that the trainer's own
    discovery never finds a half checkpoint; roles not in it go last.
    `needs` returns, for one checkpoint, those of its run that it cannot be used without. A layout may leave
    it out as None: prune then refuses to remove anything of it.
    """

    NAME: str
    REMOVAL_ORDER: tuple[Role, ...]

    def scan(self, folder: Folder) -> Iterable[Checkpoint]: ...

    def needs(self, checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]: ...


class Folder(NamedTuple):
    """One directory as read once: where it lies in the tree, and its files by name.

    `now` and `grace` (nanoseconds) tell a checkpoint that is still being written from an abandoned one.
    """

    path: str
    source: str | None
    tag: str
    files: Mapping[str, os.DirEntry[str]]
    folders: tuple[str, ...]
    now: int
    grace: int
    linked: bool = False

    def part(self, name: str, role: Role, problems: list[Problem], rank: int | None = None) -> Part | None:
        """The file as a part; None when it is a dead link or has just vanished, which is then a problem."""
        entry = self.files[name]
        try:
            status = entry.stat()
        except OSError as error:
            reason = "a link to nothing" if entry.is_symlink() else f"unreadable ({error.strerror})"
            problems.append(Problem("unreadable-part", f"{name} is {reason}", entry.path))
            return None
        if status.st_size == 0 and role not in OURS:
            problems.append(Problem("empty-file", f"{name} is empty", entry.path))
        return Part(role, entry.path, status.st_size, status.st_mtime_ns, rank, entry.is_symlink())

    def state(self, parts: Iterable[Part], problems: Sequence[Problem]) -> State:
        """Complete without problems; with some, in progress if touched within the grace time (or in the future)."""
        if not problems:
            return "complete"
        newest = max((part.modified for part in parts if part.role not in OURS), default=0)
        return "in-progress" if self.now - newest < self.grace else "incomplete"


def read_json(path: str) -> Any:
    """The JSON value in a small file; bare NaN and Infinity are read as Python does.

    Raises CkptError, in one sentence, for what is too large, not text, not JSON or nested too deep.
    """
    name = os.path.basename(path)
    try:
        # Unbuffered, in pieces: a read of the whole limit would allocate it for each of a thousand metas.
        with open(path, "rb", buffering=0) as file:
            data = file.read(1 << 16)
            while len(data) >= 1 << 16 and (more := file.read(MAX_JSON_BYTES + 1 - len(data))):
                data += more
        if len(data) > MAX_JSON_BYTES:
            raise CkptError(f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB, too large for metadata")
        value = json.loads(data)
        # Few brackets cannot nest deep; only what could be too deep for those who walk it is looked at.
        if data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH and _deeper(value, MAX_JSON_DEPTH):
            raise RecursionError
        return value
    except OSError as error:
        raise CkptError(f"{name} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise CkptError(f"{name} is nested too deep to be metadata") from error
    except UnicodeDecodeError as error:
        raise CkptError(f"{name} is not JSON: it is not text") from error
    except ValueError as error:
        raise CkptError(f"{name} is not JSON: {error}") from error


def _deeper(value: Any, levels: int) -> bool:
    """Whether a value is nested deeper than `levels`."""
    members = [value]
    while members and levels >= 0:
        levels -= 1
        members = [
            item
            for member in members
            if isinstance(member, (dict, list))
            for item in (member.values() if isinstance(member, dict) else member)
        ]
    return bool(members)


@cache
def layouts() -> tuple[Layout, ...]:
    """Every layout there is, in order of name."""
    members = ("NAME", "REMOVAL_ORDER", "scan", "needs")
    return tuple(cast(Layout, module) for module in plugins.load(sys.modules[__name__], members))


def layout_named(name: str) -> Layout:
    return next(layout for layout in layouts() if name == layout.NAME)
