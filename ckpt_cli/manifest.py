"""A manifest beside a checkpoint: the sha256 of each of its files, as `sha256sum` writes and reads it.

`<model file>.sha256` where several checkpoints share a directory (of several model files, the first), `ckpt.sha256`
where each has its own. Names in it are relative to its folder and untrusted: none leads out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from ckpt_cli.atomic import staged, write_all
from ckpt_cli.checkpoint import OURS, Checkpoint, Part
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.small_files import without_waiting

SUFFIX = ".sha256"
_FOLDER_NAME = "ckpt.sha256"
_MAX_BYTES = 64 << 20
_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *]([^\n]+)")
# Newer versions write a carriage return as \r; all of them read it as it is.
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n"}


def place_of(checkpoint: Checkpoint) -> str | None:
    """Where the manifest of a checkpoint lies or would lie, as its layout expects it; None for one without files."""
    for part in checkpoint.having("manifest"):
        return part.path
    main = checkpoint.having("model") or [part for part in checkpoint.parts if part.role not in OURS]
    if not main:
        return None
    if main[0].rank is not None or checkpoint.having("index"):
        own = True
    elif checkpoint.home not in ("", checkpoint.dir):
        own = os.path.basename(checkpoint.dir) == checkpoint.name
    else:  # a step in the run's directory has others beside it
        own = checkpoint.step is None and (len(main) > 1 or bool(checkpoint.having("config")))
    return os.path.join(checkpoint.dir, _FOLDER_NAME) if own else main[0].path + SUFFIX


def read(path: str) -> dict[str, str]:
    """Absolute path -> hexadecimal digest. Raises Damaged for what `sha256sum` would not have written."""
    folder, name = os.path.split(path)
    try:
        with open(path, "rb", opener=without_waiting) as file:
            data = file.read(_MAX_BYTES + 1) or b""
    except OSError as error:
        raise CkptError(f"{name} cannot be read: {error.strerror}", path=path, kind="unreadable-part") from error
    listed: dict[str, str] = {}
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else (), 1):
        match = _LINE.fullmatch(line)
        if not match or len(data) > _MAX_BYTES:
            raise Damaged(f"{name} is no list of sha256 sums: line {number} is none", path=path, kind="bad-manifest")
        raw = _unescaped(match[3]) if match[1] else match[3]
        file_name = os.fsdecode(raw)
        target = os.path.normpath(os.path.join(folder, file_name))
        if b"\0" in raw or not _stays(folder, file_name):
            raise Damaged(f"{name} names {file_name!a}, which lies outside", path=path, kind="bad-manifest")
        digest = match[2].decode().lower()
        if listed.setdefault(target, digest) != digest:
            raise Damaged(f"{name} names {file_name!a} twice", path=path, kind="bad-manifest")
    if not listed:
        raise Damaged(f"{name} lists nothing", path=path, kind="bad-manifest")
    return listed


def inside(path: str, file: str) -> bool:
    """Whether a manifest at `path` can list `file`."""
    folder = os.path.dirname(path)
    return file.startswith(folder.rstrip(os.sep) + os.sep)


def text_of(path: str, digests: Mapping[str, str]) -> bytes:
    """What a manifest at `path` says of absolute path -> digest."""
    folder = os.path.dirname(path)
    lines = []
    for file, digest in digests.items():
        raw = os.fsencode(os.path.relpath(file, folder))
        escaped = b"".join(_ESCAPES.get(raw[i : i + 1], raw[i : i + 1]) for i in range(len(raw)))
        lines.append((b"\\" if escaped != raw else b"") + digest.encode() + b"  " + escaped + b"\n")
    return b"".join(lines)


def write(path: str, digests: Mapping[str, str], replace: bool) -> None:
    """Writes a manifest of absolute path -> digest; whole or not at all. Raises Refused where one is there."""
    with staged(path, replace) as descriptor:
        write_all(descriptor, text_of(path, digests))
        os.fsync(descriptor)


def lines_on(checkpoint: Checkpoint, gone: Iterable[Part], warn: Callable[[str], None]) -> list[tuple[str, str, str]]:
    """What the manifests of a checkpoint that stay say of files that are to go; warns of one that cannot be read.

    Of each (manifest, file, sha256), by their paths below the run's directory.
    """
    run, paths, lines = checkpoint.run_dir, {part.path for part in gone}, list[tuple[str, str, str]]()
    for part in checkpoint.having("manifest"):
        if part.path in paths:
            continue
        try:
            listed = read(part.path)
        except CkptError as error:
            warn(f"the manifest of {checkpoint.ref} may list files that are gone: {error.message}")
            continue
        place, went = os.path.relpath(part.path, run), [path for path in listed if path in paths]
        if len(went) < len(listed):  # one of nothing is no manifest
            lines += [(place, os.path.relpath(path, run), listed[path]) for path in went]
    return lines


def shorten(path: str, gone: Collection[str]) -> None:
    """Takes files off a manifest, unless it lists none of them or nothing else. Raises CkptError if that cannot be."""
    listed = read(path)
    left = {file: digest for file, digest in listed.items() if file not in gone}
    if left and len(left) < len(listed):
        _rewrite(path, left)


def lengthen(path: str, back: Mapping[str, str]) -> None:
    """Lists files again that are back, unless it does already or is gone. Raises CkptError where that cannot be."""
    listed = read(path) if os.path.lexists(path) else back
    if not back.keys() <= listed.keys():
        _rewrite(path, {**listed, **{file: digest for file, digest in back.items() if file not in listed}})


def _rewrite(path: str, digests: Mapping[str, str]) -> None:
    try:
        write(path, digests, replace=True)
    except OSError as error:
        raise CkptError(f"{path} cannot be written: {error.strerror}", path=path) from error


def _unescaped(raw: bytes) -> bytes:
    back = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
    return re.sub(rb"\\.?", lambda match: back.get(match[0], match[0]), raw)


def _stays(folder: str, name: str) -> bool:
    """Whether a name means a file in the folder or below: no root, no `..`, no directory that is a link out."""
    if os.path.isabs(name) or ".." in name.split("/") or name.endswith("/"):
        return False
    above = os.path.realpath(os.path.join(folder, os.path.dirname(name)))
    home = os.path.realpath(folder)
    return above == home or above.startswith(home.rstrip(os.sep) + os.sep)
