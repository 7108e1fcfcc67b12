"""Which files a patch writes anew: the document itself, and every list of checksums that has it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping

from ckpt_cli import manifest, torch_patch
from ckpt_cli.errors import Damaged, Refused
from ckpt_cli.kept import sha256
from ckpt_cli.patch import Document
from ckpt_cli.patch_plan import Planned
from ckpt_cli.safetensors_writer import literal
from ckpt_cli.undo import New
from ckpt_cli.writing import Output

# Of Meta's models: md5 sums.
_CHECKLIST = "checklist.chk"
_SHA256, _MD5 = 64, 32


def replacements(planned: Planned, force: bool) -> list[New]:
    """The files to be written anew: the document, and each list of checksums that has it.

    Raises Damaged where the document is not as such a list recorded it, unless `force` is set, Refused where it is not
    as it was when the plan was made.
    """
    before, after = planned.before, planned.after
    assert before is not None and after is not None
    path = os.path.realpath(before.path)
    _check_unchanged(before)

    def make(target: str, digests: Mapping[str, str]) -> Output:
        return torch_patch.rewritten(path, after.data, target) if after.pickled else literal(target, after.data)

    news = [New(path, path, make)]
    for part in planned.checkpoint.parts if planned.checkpoint else ():
        if part.role == "manifest" and before.path in (listed := manifest.read(part.path)):
            if not force and listed[before.path] != sha256(path):
                raise Damaged(
                    f"{before.path} is not as {os.path.basename(part.path)} recorded it",
                    "`ckpt verify` says more; --force patches it all the same",
                )
            news.append(_following(part.path, before.path, _SHA256, lambda digests: digests[path]))
        elif os.path.basename(part.path) == _CHECKLIST and not after.pickled:
            sums = hashlib.md5(after.data, usedforsecurity=False).hexdigest()
            news.append(_following(part.path, before.path, _MD5, _known(sums)))
    return news


def _following(place: str, path: str, width: int, digest: Callable[[Mapping[str, str]], str]) -> New:
    """A list of checksums whose line for a file gets another, and nothing else of which changes."""
    whole = manifest.text_of(place, {path: "0" * 64}).rstrip(b"\n")
    name = whole[66 + whole.startswith(b"\\") :]

    def make(target: str, digests: Mapping[str, str]) -> Output:
        with open(place, "rb") as file:
            lines = file.read().split(b"\n")
        for number, line in enumerate(lines):
            start = int(line.startswith(b"\\"))
            if line[start + width + 2 :].rstrip(b"\r") == name:
                lines[number] = line[:start] + digest(digests).encode() + line[start + width :]
        return literal(target, b"\n".join(lines))

    return New(os.path.realpath(place), os.path.realpath(path), make)


def _known(digest: str) -> Callable[[Mapping[str, str]], str]:
    return lambda digests: digest


def _check_unchanged(document: Document) -> None:
    if document.pickled:
        now = torch_patch.opened(document.path).pickle
    else:
        with open(document.path, "rb") as file:
            now = file.read()
    if now != document.data:
        raise Refused(f"{document.path} has changed since it was read", "run it again")
