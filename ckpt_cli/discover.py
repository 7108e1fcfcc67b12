"""root -> checkpoints: reads each directory once and asks every layout what lies in it."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import Checkpoint, in_order
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import LAST_RESORT, TRASH, Folder, layouts
from ckpt_cli.tensor_file import TensorFile
from ckpt_cli.unfinished import left_over, settled

# Directory name -> source, in the order in which a default is looked for. One day of 2026 wrote `sft_checkpoints`.
SOURCES: Mapping[str, str] = {
    "base_checkpoints": "base",
    "mid_checkpoints": "mid",
    "chatsft_checkpoints": "sft",
    "sft_checkpoints": "sft",
    "chatrl_checkpoints": "rl",
}
MAX_DEPTH = 5
GRACE_SECONDS = 600
_SKIPPED = re.compile(r"base_data.*|eval_bundle|report|tokenizer|\..*", re.DOTALL)


class Discovery(NamedTuple):
    """What lies below a root.

    `trash` are the runs that hold a trash, or what else a removal has left, each as a checkpoint without parts;
    `targets` the files and folders that symbolic links in the tree point to.
    """

    root: str
    checkpoints: tuple[Checkpoint, ...]
    warnings: tuple[str, ...]
    trash: tuple[Checkpoint, ...]
    targets: frozenset[str] = frozenset()


def discover(
    root: str,
    *,
    sources: Mapping[str, str] = SOURCES,
    depth: int = MAX_DEPTH,
    now: int | None = None,
    grace: float = GRACE_SECONDS,
) -> Discovery:
    """Every checkpoint in `root` and up to `depth` levels below, by run and step.

    `now` is nanoseconds since the epoch, `grace` seconds. What cannot be read is a warning; a root that
    is no directory raises CkptError.
    """
    root = os.path.realpath(root)
    if not os.path.isdir(root):
        raise CkptError(f"there is no directory {root}")
    warnings: list[str] = []
    trash = []
    targets: set[str] = set()
    folders = list(walk(root, sources=sources, depth=depth, now=now, grace=grace, warnings=warnings))
    for folder in folders:
        if any(name.startswith(TRASH) for name in (*folder.folders, *folder.files)):
            run = Checkpoint("trash", folder.source, folder.tag, None, None, TRASH, folder.path, ())
            trash.append(run._replace(linked=folder.linked))
        links = [entry.path for entry in folder.files.values() if entry.is_symlink()]
        links += [os.path.join(folder.path, name) for name in folder.links]
        targets.update(place for link in links for place in _targets(link))
    ordered = sorted(_unique(_scan(folders)), key=_order(sources))
    return Discovery(root, tuple(ordered), tuple(warnings), tuple(trash), frozenset(targets))


def walk(
    root: str,
    *,
    sources: Mapping[str, str] = SOURCES,
    depth: int = MAX_DEPTH,
    now: int | None = None,
    grace: float = GRACE_SECONDS,
    warnings: list[str] | None = None,
) -> Iterator[Folder]:
    """The directories from `root` down, breadth first, each read once.

    Links to directories that are met anyway are not followed, nor are loops, to what the root lies in; links out of the
    root, or to where nothing is looked for in it, are, once each, and marked.
    """
    now = time.time_ns() if now is None else now
    seen: set[tuple[int, int]] = set()
    queue: list[tuple[str, int, bool, Callable[[], Folder | None]]] = [
        (root, 0, False, cache(lambda: _above(root, sources)))
    ]
    for path, level, linked, above in queue:
        inner: list[tuple[str, bool]] = []
        files: dict[str, os.DirEntry[str]] = {}
        folders: list[str] = []
        links: list[str] = []
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if not _is_directory(entry):
                        files[entry.name] = entry
                        continue
                    folders.append(entry.name)
                    if entry.is_symlink():
                        links.append(entry.name)
                    if level >= depth or is_skipped(entry.name):
                        continue
                    out = linked
                    if entry.is_symlink():
                        if _is_met(real := os.path.realpath(entry.path), root, depth) or _is_above(real, root):
                            continue
                        out = True
                    inner.append((entry.path, out))
        except OSError as error:
            if warnings is not None:
                warnings.append(f"{path} cannot be read: {error.strerror}")
            continue
        source, tag = place(path, root, sources)
        times = now, int(grace * 1e9)
        folder = Folder(path, source, tag, files, tuple(folders), *times, linked, above, _read_index, tuple(links))
        queue += ((below, level + 1, out, partial(_itself, folder)) for below, out in inner)
        yield folder


def _targets(link: str) -> set[str]:
    """Where a symbolic link leads, and each link on the way there; less where that cannot be read, as below /proc."""
    found: set[str] = set()
    with suppress(OSError):
        while os.path.islink(link):
            folder, name = os.path.split(os.path.join(os.path.dirname(link), os.readlink(link).rstrip(os.sep)))
            link = os.path.join(os.path.realpath(folder), name)
            if link in found:
                break
            found |= {link, os.path.realpath(link)}
    return found


def _itself(folder: Folder) -> Folder:
    return folder


def _above(root: str, sources: Mapping[str, str]) -> Folder | None:
    """The directory above the root: a run whose steps are folders keeps there what they share."""
    path = os.path.dirname(root)
    if path == root:
        return None
    try:
        with os.scandir(path) as entries:
            here = list(entries)
    except OSError:
        return None
    source, tag = place(path, path, sources)
    folders = {entry.name for entry in here if _is_directory(entry)}
    files = {entry.name: entry for entry in here if entry.name not in folders}
    above = cache(lambda: _above(path, sources))
    return Folder(path, source, tag, files, tuple(folders), 0, 0, above=above, read_index=_read_index)


def is_skipped(name: str) -> bool:
    """Whether nothing is looked for in directories of this name."""
    return bool(_SKIPPED.fullmatch(name))


def claims(root: str, *, depth: int, sources: Mapping[str, str] = SOURCES) -> bool:
    """Whether a layout finds anything in `root` or up to `depth` levels below."""
    return bool(_scan(list(walk(os.path.realpath(root), sources=sources, depth=depth))))


def place(path: str, root: str, sources: Mapping[str, str] = SOURCES) -> tuple[str | None, str]:
    """Source and tag of the run in directory `path` of `root`, both absolute.

    The tag is the path below the root without the source directory, or the root's own name. Besides the
    source directories, nanochat's experiments are known: `experiments/NAME/TAG/SOURCE`.
    """
    parts = [part for part in path.split(os.sep) if part]
    above = len([part for part in root.split(os.sep) if part])
    below = parts[above:]
    own = parts[above - 1] if above else root
    for index, part in enumerate(below):
        if part in sources:
            rest = below[:index] + below[index + 1 :]
            return sources[part], "/".join(rest) or own
    for part in reversed(parts[max(0, above - MAX_DEPTH) : above]):
        if part in sources:
            return sources[part], "/".join(below) or own
    if len(parts) > 3 and parts[-4] == "experiments" and parts[-1] in sources.values():
        return parts[-1], "/".join(below[:-1]) or (own if below else parts[-2])
    return None, "/".join(below) or own


def _scan(folders: list[Folder]) -> list[Checkpoint]:
    """What the layouts find, each asked about every folder before the next one is; a file is claimed once."""
    found: list[Checkpoint] = []
    places = {folder.path: folder for folder in folders}
    claimed: set[str] = set()
    for layout in layouts():
        asked = [f for f in folders if f.path not in claimed] if layout.PRECEDENCE == LAST_RESORT else folders
        mine = [settled(checkpoint, folder) for folder in asked for checkpoint in layout.scan(folder)]
        paths = [part.path for checkpoint in mine for part in checkpoint.parts]
        # A link to nothing is no part, only a problem.
        paths += [problem.path for checkpoint in mine for problem in checkpoint.problems]
        for path in paths:
            directory, name = os.path.split(path)
            if directory in places:
                places[directory].files.pop(name, None)
            while directory not in claimed and directory in places:
                claimed.add(directory)
                directory = os.path.dirname(directory)
        found += mine
    return found + left_over(folders, {(c.dir, c.step) for c in found})


def _read_index(path: str) -> TensorFile:
    from ckpt_cli.tensors import read_index

    return read_index(path)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_met(path: str, root: str, depth: int) -> bool:
    """Whether a walk from the root comes to the directory `path` without following links."""
    if path == root:
        return True
    if not path.startswith(root.rstrip(os.sep) + os.sep):
        return False
    names = path[len(root.rstrip(os.sep)) + 1 :].split(os.sep)
    return len(names) <= depth and not any(map(is_skipped, names))


def _is_above(path: str, root: str) -> bool:
    """Whether the root lies in the directory `path`: a link to it is a loop, which what lies beside the root is not."""
    return root.startswith(path.rstrip(os.sep) + os.sep)


def _unique(found: list[Checkpoint]) -> list[Checkpoint]:
    """With references that name one checkpoint each.

    Runs of one source and tag are told apart by the directories above them: `chatsft_checkpoints/d20` and
    `sft_checkpoints/d20` are both `sft/d20`, the second becomes `sft/sft_checkpoints/d20`. In a run the trainer's name
    stands for a number that occurs twice, and for one without a number that is not alone.
    """
    taken: dict[str, str] = {}
    tags: dict[tuple[str, str], str] = {}
    for run_dir, run, tag in sorted({(c.run_dir, c.run, c.tag) for c in found}):
        source, above = run.removesuffix(tag), os.path.dirname(run_dir)
        while taken.setdefault(source + tag, run_dir) != run_dir:
            tag, above = f"{os.path.basename(above) or above}/{tag}", os.path.dirname(above)
        tags[run_dir, run] = tag
    found = [c._replace(tag=tags[c.run_dir, c.run]) if tags[c.run_dir, c.run] != c.tag else c for c in found]
    sizes = Counter(c.run for c in found)
    numbers = Counter((c.run, c.step) for c in found)
    found = [
        c._replace(by_name=True) if sizes[c.run] > 1 and (c.step is None or numbers[c.run, c.step] > 1) else c
        for c in found
    ]
    # A name that is a number, or one that two layouts give.
    refs = Counter(c.ref for c in found)
    if len(refs) < len(found):
        found = [c if refs[c.ref] == 1 else c._replace(by_name=True) for c in found]
        refs = Counter(c.ref for c in found)
        found = [c if refs[c.ref] == 1 else c._replace(name=f"{c.name}.{c.layout}") for c in found]
        # Of one layout too: torchtune's epoch_0 by the names of files, and by a folder of that name.
        seen: Counter[str] = Counter()
        for place, c in enumerate(found):
            seen[c.ref] += 1
            found[place] = c if seen[c.ref] == 1 else c._replace(name=f"{c.name}.{seen[c.ref]}")
    return found


def _order(sources: Mapping[str, str]) -> Callable[[Checkpoint], tuple[Any, ...]]:
    rank = {source: index for index, source in enumerate(dict.fromkeys(sources.values()))}

    def key(checkpoint: Checkpoint) -> tuple[Any, ...]:
        source = rank.get(checkpoint.source or "", len(rank))
        run = source, checkpoint.source or "", natural(checkpoint.tag), checkpoint.run_dir
        name = checkpoint.name
        return *run, *in_order(checkpoint), natural(name) if checkpoint.step is None else [(0, 0, name)]

    return key


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key in which numbers compare as numbers: d4 before d12."""
    pieces = re.split(r"([0-9]+)", text)
    return [(1, int(piece), "") if index % 2 else (0, 0, piece) for index, piece in enumerate(pieces)]
