"""A file of tensors -> a safetensors file, as a stream: a header, then the tensors' bytes.

Nothing is held but one block. The CRC32 of every record of the source is checked on the way, and every range
written is read back and compared. What safetensors cannot express is refused by name. Tied and aliased tensors
are written once; `__metadata__` says how to have them back.

The bytes go through a small buffer, not through copy_file_range: where source and target ranges lie differently
within their pages, as they always do here, the kernel's own copy takes longer than read and write together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_cli.atomic import staged
from ckpt_cli.checkpoint import TensorFile, TensorInfo
from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.formats import Files, FileSource
from ckpt_cli.formats import safetensors as target_format
from ckpt_cli.layouts import read_json
from ckpt_cli.tensors import blocks, check_storage, crc32, range_crc32, read_tensors, readable, storages_of
from ckpt_cli.ties import Alias, untie
from ckpt_cli.views import is_contiguous

Advance = Callable[[int], None]
# How much is written before the disk is set to work on it.
_FLUSH = 16 << 20
# torch.compile wraps the module, and every name under it gets this piece, once for each time.
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod\.)+")
_CODES = {dtype: code for code, (dtype, _) in target_format.DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor under its new name, and where its bytes go, counted from the end of the header."""

    name: str
    tensor: TensorInfo
    start: int


@dataclass(frozen=True)
class Recipe:
    """What will be written: entries in the order of their bytes, the header, and what becomes of other names."""

    source: TensorFile
    entries: tuple[Entry, ...]
    aliases: tuple[Alias, ...]
    renamed: tuple[tuple[str, str], ...]
    header: bytes
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of the whole output."""
        return len(self.header) + sum(entry.tensor.bytes for entry in self.entries)


def convert(source: str, target: str, metadata: dict[str, str] | None = None, replace: bool = False) -> Recipe:
    """Writes the tensors of the file `source` to `target` as safetensors, and returns what was done.

    Raises CkptError for what safetensors cannot express, Damaged when the source's bytes are not as written,
    Refused when the target is there and `replace` is not set. Then nothing lies under the target's name.
    """
    recipe = plan(read_tensors(source), metadata or {})
    write(recipe, target, replace, lambda count: None)
    return recipe


def plan(file: TensorFile, metadata: dict[str, str]) -> Recipe:
    """Names, ties and places. `metadata` goes into the header besides what the file itself holds."""
    if not file.tensors:
        raise CkptError(f"{file.path} holds no tensors")
    named = _renamed(file)
    for name, tensor in named:
        _refuse_inexpressible(file, name, tensor)
    kept, aliases, notes = untie(named)
    # Wide elements first, so that every tensor lies aligned; within a width in the order of the file.
    order = sorted(kept, key=lambda item: -item[1].itemsize)
    entries, at = [], 0
    for name, tensor in order:
        entries.append(Entry(name, tensor, at))
        at += tensor.bytes
    header = _header(file, named, entries, aliases, metadata)
    renamed = tuple((t.name, name) for name, t in named if t.name != name)
    return Recipe(file, tuple(entries), tuple(aliases), renamed, header, tuple(notes))


def write(recipe: Recipe, target: str, replace: bool, advance: Advance) -> None:
    """Writes, syncs and proves the output before it takes the target's name. `advance` is told bytes of
    tensors done, each twice: once written, once read back."""
    if not replace and os.path.lexists(target):
        raise Refused(f"{target} is there already", "--force replaces it")
    with Files() as files, staged(target, replace) as out:
        os.ftruncate(out, recipe.bytes)
        _write_at(out, memoryview(recipe.header), 0)
        digests = _write_tensors(files, recipe, out, advance)
        _check_source(files, recipe, digests)
        os.fsync(out)
        _read_back(recipe, out, digests, advance)


def unwrapped(name: str) -> str:
    """A tensor's name without what torch.compile put into it."""
    return _WRAPPER.sub("", name)


def _renamed(file: TensorFile) -> list[tuple[str, TensorInfo]]:
    named: dict[str, TensorInfo] = {}
    for tensor in file.tensors:
        name = unwrapped(tensor.name)
        if name in named:
            raise CkptError(f"{file.path}: two of its tensors would be called {name!a}")
        named[name] = tensor
    return list(named.items())


def _refuse_inexpressible(file: TensorFile, name: str, tensor: TensorInfo) -> None:
    reason = readable(tensor)
    if tensor.form == "quantized":
        reason = "it is quantized"
    if not reason and tensor.dtype not in _CODES:
        reason = f"safetensors has no {tensor.dtype}"
    if not reason and tensor.dtype == "float4_e2m1fn_x2" and not tensor.shape:
        reason = "safetensors has no pair of halves without a dimension"
    if not reason and (name == "__metadata__" or (not name.isprintable() and _lone_surrogate(name))):
        reason = "safetensors cannot hold its name"
    if reason:
        raise CkptError(f"{file.path}: tensor {name!a} cannot be converted: {reason}")


def _lone_surrogate(name: str) -> bool:
    return any(0xD800 <= ord(character) < 0xE000 for character in name)


def _header(
    file: TensorFile,
    named: Sequence[tuple[str, TensorInfo]],
    entries: Sequence[Entry],
    aliases: Sequence[Alias],
    metadata: dict[str, str],
) -> bytes:
    """Length and JSON of the header, padded to 8 bytes; names in the order of the source."""
    # What a safetensors file says of itself stays what it says of itself.
    own = file.container == target_format.NAME
    kept = {name.removeprefix("__metadata__."): value for name, value in file.values.items()} if own else {}
    # A path that is no UTF-8 has lone surrogates, which a header cannot hold.
    given = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in metadata.items()}
    notes = {"format": "pt", **kept, **given}
    if file.values and not own:
        notes["ckpt.values"] = json.dumps(file.values)
    if aliases:
        notes["ckpt.aliases"] = json.dumps(
            {
                a.name: {"of": a.of, "dtype": a.tensor.dtype, "shape": a.tensor.shape, "stride": a.tensor.stride,
                         "offset": a.offset}
                for a in aliases
            }
        )  # fmt: skip
    header: dict[str, Any] = {"__metadata__": notes}
    placed = {entry.name: entry for entry in entries}
    for name, tensor in named:
        if name in placed:
            shape = list(tensor.shape)
            if tensor.dtype == "float4_e2m1fn_x2" and shape:
                shape[-1] *= 2  # the header counts halves
            start = placed[name].start
            header[name] = {
                "dtype": _CODES[tensor.dtype],
                "shape": shape,
                "data_offsets": [start, start + tensor.bytes],
            }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > target_format.MAX_HEADER:
        raise CkptError(f"{file.path}: its names and metadata are too large for a safetensors header")
    return len(text).to_bytes(8, "little") + text


def _write_tensors(files: Files, recipe: Recipe, out: int, advance: Advance) -> list[int]:
    """Writes every tensor; returns the CRC32 of the bytes of each, as they were read."""
    at = flushed = len(recipe.header)
    digests = []
    for entry in recipe.entries:
        digest = 0
        for block in blocks(files, entry.tensor):
            digest = crc32(block, digest)
            _write_at(out, block, at)
            at += len(block)
            advance(len(block))
            if at - flushed >= _FLUSH:
                _start_writing(out, flushed, at - flushed)
                flushed = at
        digests.append(digest)
    return digests


def _start_writing(out: int, start: int, length: int) -> None:
    """Has the kernel begin to write a finished range to the disk, so that the fsync at the end has little left.

    That is what Linux makes of this advice for pages that are not yet written; they stay in memory meanwhile.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(out, start, length, os.POSIX_FADV_DONTNEED)


def _write_at(out: int, data: memoryview, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(out, data[done:], at + done)


def _check_source(files: Files, recipe: Recipe, digests: Sequence[int]) -> None:
    """Raises Damaged where a record of the source does not have the CRC32 that was written with it.

    A tensor that is all of its record has passed through here already; else the record is read once more.
    """
    checked: set[str] = set()
    for entry, digest in zip(recipe.entries, digests):
        for storage in storages_of(files, entry.tensor):
            place = f"{storage.file}:{storage.offset}"
            if place in checked:
                continue
            whole = is_contiguous(entry.tensor) and entry.tensor.bytes == storage.bytes
            if not whole or digest != storage.crc32:
                check_storage(files, storage)
            checked.add(place)


def _read_back(recipe: Recipe, out: int, digests: Sequence[int], advance: Advance) -> None:
    """Reads the output: its header by the format's rules, every range by its CRC32."""
    with FileSource(f"/dev/fd/{out}") as written:
        written.path = "the output"
        if len(target_format.read(written).tensors) != len(recipe.entries):
            raise CkptError("the output does not read back as it was written")
        for entry, digest in zip(recipe.entries, digests):
            if range_crc32(written, len(recipe.header) + entry.start, entry.tensor.bytes, advance) != digest:
                raise CkptError(f"tensor {entry.name!a} was not written as it was read: disk or memory is at fault")


def output_path(source: str, output: str | None, make: bool) -> str:
    """Where the output goes: beside the source, into a directory under its default name, or where it is said."""
    name = os.path.splitext(os.path.basename(source))[0] + ".safetensors"
    if output is None:
        return os.path.join(os.path.dirname(source), name)
    if not output:
        raise CkptError("-o is empty")
    output = os.path.expanduser(output)
    if output.endswith(os.sep) or os.path.isdir(output):
        if make:
            os.makedirs(output, exist_ok=True)
        output = os.path.join(output, name)
    elif not os.path.isdir(os.path.dirname(output) or "."):
        raise CkptError(f"there is no directory {os.path.dirname(output)} to write to")
    return os.path.abspath(output)


def refuse_output(output: str, sources: Sequence[str], force: bool) -> None:
    """Raises CkptError for an output that is, or links to, a source; Refused for one that is there already."""
    for source in sources:
        if os.path.realpath(output) == os.path.realpath(source) or (
            os.path.exists(output) and os.path.samefile(output, source)
        ):
            raise CkptError(f"{output} is the source itself", "-o OUT writes elsewhere")
    if os.path.lexists(output) and not force:
        raise Refused(f"{output} is there already", "--force replaces it")


def read_meta(path: str) -> str:
    """A meta file word for word, in whatever encoding JSON allows; raises CkptError where it is no JSON."""
    read_json(path)
    with open(path, "rb") as file:
        data = file.read()
    return data.decode(json.detect_encoding(data), "replace")
