"""How checkpoints lie in a directory: one module a layout, each a `Layout`.

A layout looks at names, file status and small JSON files. It never reads tensor data and never lists a
directory itself: `discover` hands it a `Folder` that was read once.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

from ckpt_cli import plugins
from ckpt_cli.checkpoint import OURS, Checkpoint, Part, Problem, Role, State
from ckpt_cli.errors import NOT_LOOKED_INTO, CkptError
from ckpt_cli.tensor_file import TensorFile

# What lies in a run's own directory of ours: what was removed from it, and what was replaced in it.
TRASH, REPLACED = ".ckpt-trash", ".ckpt-undo"
# What folders and files are called until all is in them: so did transformers to early 2024; so do many others, by hand
# or through a library that renames in the end; and a random name, so that of safetensors.
_BEFORE = re.compile(r"tmp-(?=checkpoint-[0-9]+\Z)")
_AFTER = (".tmp", ".temp", ".partial", ".part", ".incomplete")
_RANDOM = re.compile(r"\.tmp[A-Za-z0-9]{6}")
# Who is asked first: a trainer's own names; folders as models are published in, which trainers write too; what both may
# hold as a part; anything else, only where nothing in or below the folder is claimed.
TRAINER, PUBLISHED, CONTAINED, LAST_RESORT = range(4)


class Layout(Protocol):
    """What a module of this folder offers.

    `scan` returns the checkpoints that lie in one folder, none when the names are not this layout's. It is asked in
    the order of `PRECEDENCE`, and no later layout sees the files that a checkpoint has as parts.
    `REMOVAL_ORDER` names the roles in the order in which removal takes them away, so that the trainer's own
    discovery never finds a half checkpoint; roles not in it go last.
    `counts`, which a layout may leave out, says whether its trainer takes a number out of every name in a directory,
    hidden ones too, and fails at one that has none.
    `needs` returns, for one checkpoint, those of its run that it cannot be used without. A layout may leave
    it out as None: prune then refuses to remove anything of it.
    """

    NAME: str
    PRECEDENCE: int
    REMOVAL_ORDER: tuple[Role, ...]

    def scan(self, folder: Folder) -> Iterable[Checkpoint]: ...

    def needs(self, checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]: ...


def own_folder(run: str, name: str) -> str:
    """Where a hidden folder of ours lies in a run: the one that is there, else where its trainer can stand it."""
    path = os.path.join(run, name)
    counted = f"{path}-0"
    if os.path.lexists(path) or not (os.path.lexists(counted) or any(map(_counting(run), layouts()))):
        return path
    return counted


def _counting(run: str) -> Callable[[Layout], bool]:
    return lambda layout: getattr(layout, "counts", lambda _: False)(run)


class Folder(NamedTuple):
    """One directory as read once: where it lies in the tree, its files by name, and the names of its folders.

    `now` and `grace` (nanoseconds) tell a checkpoint that is still being written from an abandoned one; `linked` is
    true of what was reached through a link out of the root, `links` are those of its folders that are symbolic links.
    `above` gives the directory above, also that above the root, which is read when it is asked for. `read_index` reads
    the values of a small structure file in a tensor format (a DCP `.metadata`, the scalars of a `recipe_state.pt`),
    without its tensors; it raises CkptError for what it refuses.
    """

    path: str
    source: str | None
    tag: str
    files: dict[str, os.DirEntry[str]]
    folders: tuple[str, ...]
    now: int
    grace: int
    linked: bool = False
    above: Callable[[], Folder | None] = lambda: None
    read_index: Callable[[str], TensorFile] | None = None
    links: tuple[str, ...] = ()

    @property
    def up(self) -> Folder | None:
        """The directory above, None where there is none or it cannot be read."""
        return self.above()

    @property
    def name(self) -> str:
        """What it is called when all is in it."""
        return finished_name(os.path.basename(self.path))

    @property
    def unfinished(self) -> bool:
        """Whether its name is one that it has only until all is in it."""
        return self.name != os.path.basename(self.path)

    @property
    def cut_off(self) -> list[str]:
        """Files that a library was still writing under a random name."""
        return [name for name in self.files if name[:4] == ".tmp" and _RANDOM.fullmatch(name)]

    def peek(self, name: str) -> Mapping[str, os.DirEntry[str]]:
        """The files of a folder below it, by name; nothing where that cannot be read, or is a link."""
        path = os.path.join(self.path, name)
        if name.partition("/")[0] not in self.folders or os.path.islink(path):
            return {}
        try:
            with os.scandir(path) as entries:
                return {entry.name: entry for entry in entries if not entry.is_dir()}
        except OSError:
            return {}

    def below(self, name: str) -> Folder:
        """A folder below it as one of its own, with the files that `peek` finds there and no folders."""
        return self._replace(path=os.path.join(self.path, name), files=dict(self.peek(name)), folders=())

    @property
    def tag_above(self) -> str:
        """The tag of a run whose steps are folders, of which this is one."""
        up = self.up
        return up.tag if up else os.path.basename(os.path.dirname(self.path)) or self.tag

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
        names = (status.st_dev, status.st_ino, status.st_nlink) if status.st_nlink > 1 else None
        return Part(role, entry.path, status.st_size, status.st_mtime_ns, rank, entry.is_symlink(), names)

    def state(self, parts: Iterable[Part], problems: Sequence[Problem]) -> State:
        """Complete without problems; with some, in progress if touched within the grace time (or in the future)."""
        if not problems:
            return "complete"
        touched = (part.modified for part in parts if part.role not in OURS or is_unfinished(part.path))
        newest = max(touched, default=0)
        return "in-progress" if self.now - newest < self.grace else "incomplete"


def finished_name(name: str) -> str:
    """What a file or folder is called when it is done."""
    name = _BEFORE.sub("", name, count=1) if name[:4] == "tmp-" else name
    return os.path.splitext(name)[0] if name.endswith(_AFTER) else name


def is_unfinished(path: str) -> bool:
    """Whether a path's last name is one that files have only while they are written."""
    name = os.path.basename(path)
    return name.endswith(_AFTER) or bool(_RANDOM.fullmatch(name))


def missing(folder: Folder, name: str, what: str) -> Problem:
    """That a file which should lie in the folder does not."""
    return Problem("missing-part", f"{what} is missing ({name})", os.path.join(folder.path, name))


def not_read(part: Part, error: CkptError, code: str) -> Problem:
    """Why a part that had to be looked into tells nothing: it is garbled, which has a `code` of its own, or it may be
    whole, and a disk, a permission or its size is in the way."""
    return Problem(error.kind if error.kind in NOT_LOOKED_INTO else code, error.message, part.path)


def finite(value: Any) -> float | None:
    """The value of a metric as a float; None for what is no number, or none that a finite float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


@cache
def layouts() -> tuple[Layout, ...]:
    """Every layout there is, in the order in which they are asked."""
    members = ("NAME", "PRECEDENCE", "REMOVAL_ORDER", "scan", "needs")
    found = [cast(Layout, module) for module in plugins.load(sys.modules[__name__], members)]
    return tuple(sorted(found, key=lambda layout: (layout.PRECEDENCE, layout.NAME)))


def layout_named(name: str) -> Layout:
    """The layout that a checkpoint says it is of."""
    return next(layout for layout in layouts() if name == layout.NAME)
