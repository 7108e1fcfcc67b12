"""A file of tensors -> a safetensors file, as a stream: a header, then byte ranges copied inside the kernel.

Nothing is held but one block. Every range written is read back and its CRC32 compared with what the source's
zip recorded, or with that of the source's bytes where none is. What safetensors cannot express is refused by
name. Tied and aliased tensors are written once; `__metadata__` says how to have them back.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_cli.atomic import staged
from ckpt_cli.checkpoint import Storage, TensorFile, TensorInfo
from ckpt_cli.errors import CkptError, Damaged, Refused
from ckpt_cli.formats import FileSource
from ckpt_cli.formats import safetensors as target_format
from ckpt_cli.tensors import BLOCK, blocks, check_storage, crc32, is_contiguous, range_crc32, read_tensors, readable

Advance = Callable[[int], None]
_COPY_STEP = 64 << 20
_MAX_META = 16 << 20
# torch.compile wraps the module, and every name under it gets this piece.
_WRAPPER = re.compile(r"(^|\.)_orig_mod\.")
_CODES = {dtype: code for code, (dtype, _) in target_format.DTYPES.items()}
_NO_KERNEL_COPY = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}


@dataclass(frozen=True)
class Entry:
    """A tensor under its new name, and where its bytes go, counted from the end of the header."""

    name: str
    tensor: TensorInfo
    start: int


@dataclass(frozen=True)
class Alias:
    """A name that shares the bytes of another; `offset` counts elements from where that one begins."""

    name: str
    of: str
    tensor: TensorInfo
    offset: int


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
    kept, aliases, notes = _untied(named)
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
    """Writes, syncs and proves the output before it takes the target's name. `advance` is told bytes done, twice
    the output's size in all: once written, once read back."""
    with FileSource(recipe.source.path) as source:
        if not replace and os.path.lexists(target):
            raise Refused(f"{target} is there already", "--force replaces it")
        with staged(target, replace) as descriptor:
            os.ftruncate(descriptor, recipe.bytes)
            os.pwrite(descriptor, recipe.header, 0)
            digests = [_write_entry(source, entry, descriptor, len(recipe.header), advance) for entry in recipe.entries]
            os.fsync(descriptor)
            _prove(source, recipe, descriptor, digests, advance)


def _renamed(file: TensorFile) -> list[tuple[str, TensorInfo]]:
    named: dict[str, TensorInfo] = {}
    for tensor in file.tensors:
        name = _WRAPPER.sub(r"\1", tensor.name)
        if name in named:
            raise CkptError(f"{file.path}: two of its tensors would be called {name!a}")
        named[name] = tensor
    return list(named.items())


def _refuse_inexpressible(file: TensorFile, name: str, tensor: TensorInfo) -> None:
    reason = readable(tensor)
    if not reason and tensor.dtype not in _CODES:
        reason = f"safetensors has no {tensor.dtype}"
    if not reason and (name == "__metadata__" or (not name.isprintable() and _lone_surrogate(name))):
        reason = "safetensors cannot hold its name"
    if reason:
        raise CkptError(f"{file.path}: tensor {name!a} cannot be converted: {reason}")


def _lone_surrogate(name: str) -> bool:
    return any(0xD800 <= ord(character) < 0xE000 for character in name)


def _untied(
    named: Sequence[tuple[str, TensorInfo]],
) -> tuple[list[tuple[str, TensorInfo]], list[Alias], list[str]]:
    """What is written, what is an alias of something written, and what is shared but has to be written twice."""
    by_storage: dict[str, list[tuple[str, TensorInfo]]] = {}
    for name, tensor in named:
        if tensor.storage and tensor.bytes:
            by_storage.setdefault(tensor.storage.name, []).append((name, tensor))
    aliases: dict[str, Alias] = {}
    notes = []
    for group in by_storage.values():
        if len(group) == 1:
            continue
        # The widest contiguous view can stand for all within it; of equals the first in the file.
        hosts: list[tuple[str, TensorInfo]] = []
        for name, tensor in sorted(group, key=lambda item: (not is_contiguous(item[1]), -item[1].bytes)):
            host = next((h for h in hosts if _within(tensor, h[1])), None)
            if host:
                shift = tensor.offset * tensor.itemsize - host[1].offset * host[1].itemsize
                aliases[name] = Alias(name, host[0], tensor, shift // tensor.itemsize)
                continue
            if any(_overlap(tensor, other) for _, other in hosts):
                notes.append(f"{name} shares some bytes with another tensor; they are written twice")
            hosts.append((name, tensor))
    kept = [(name, tensor) for name, tensor in named if name not in aliases]
    return kept, [aliases[name] for name, _ in named if name in aliases], notes


def _span(tensor: TensorInfo) -> tuple[int, int]:
    """First and last byte of a view within its storage, the last excluded."""
    first = tensor.offset * tensor.itemsize
    return first, first + (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride))) * tensor.itemsize


def _within(tensor: TensorInfo, host: TensorInfo) -> bool:
    """Whether a view can be had from the bytes that `host` leaves in the output."""
    if tensor.swapped or host.swapped or tensor.signs or host.signs:
        return (tensor.dtype, tensor.offset, tensor.shape, tensor.stride, tensor.signs) == (
            host.dtype, host.offset, host.shape, host.stride, host.signs
        )  # fmt: skip
    if not is_contiguous(host):
        return (tensor.dtype, tensor.offset, tensor.shape, tensor.stride) == (
            host.dtype, host.offset, host.shape, host.stride
        )  # fmt: skip
    (first, last), (begin, end) = _span(tensor), _span(host)
    return begin <= first and last <= end and (first - begin) % tensor.itemsize == 0


def _overlap(one: TensorInfo, other: TensorInfo) -> bool:
    (first, last), (begin, end) = _span(one), _span(other)
    return first < end and begin < last


def _header(
    file: TensorFile,
    named: Sequence[tuple[str, TensorInfo]],
    entries: Sequence[Entry],
    aliases: Sequence[Alias],
    metadata: dict[str, str],
) -> bytes:
    """Length and JSON of the header, padded to 8 bytes; names in the order of the source."""
    notes = {"format": "pt", **metadata}
    if file.values:
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


def _whole(tensor: TensorInfo) -> Storage | None:
    """The storage when the tensor is all of it, byte by byte, and a CRC32 was written with it."""
    storage = tensor.storage
    if storage and storage.crc32 is not None and tensor.offset == 0 and tensor.bytes == storage.bytes:
        return storage if is_contiguous(tensor) else None
    return None


def _write_entry(source: FileSource, entry: Entry, out: int, base: int, advance: Advance) -> int | None:
    """Writes one tensor; returns the CRC32 of its bytes where they passed through here, else None."""
    tensor, at = entry.tensor, base + entry.start
    if is_contiguous(tensor) and tensor.file_offset is not None:
        _copy(source, tensor.file_offset, out, at, tensor.bytes, advance)
        return None
    value = 0
    for block in blocks(source, tensor):
        value = crc32(block, value)
        _write_at(out, block, at)
        at += len(block)
        advance(len(block))
    return value


def _copy(source: FileSource, start: int, out: int, at: int, length: int, advance: Advance) -> None:
    """A byte range from file to file inside the kernel, or through a buffer where the kernel cannot."""
    done = 0
    try:
        while done < length:
            count = os.copy_file_range(source.descriptor, out, min(_COPY_STEP, length - done), start + done, at + done)
            if not count:
                raise Damaged(f"{source.path} ends before byte {start + length}, where a part of it should be")
            done += count
            advance(count)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_KERNEL_COPY:
            raise
        buffer = memoryview(bytearray(min(BLOCK, length - done)))
        while done < length:
            view = buffer[: min(len(buffer), length - done)]
            source.read_into(start + done, view)
            _write_at(out, view, at + done)
            done += len(view)
            advance(len(view))


def _write_at(out: int, data: memoryview, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(out, data[done:], at + done)


def _prove(source: FileSource, recipe: Recipe, out: int, digests: Sequence[int | None], advance: Advance) -> None:
    """Reads the output back: its header by the format's rules, every range and source record by its CRC32."""
    with FileSource(f"/dev/fd/{out}") as written:
        written.path = "the output"
        if len(target_format.read(written).tensors) != len(recipe.entries):
            raise CkptError("the output does not read back as it was written")
        checked: set[str] = set()
        for entry, digest in zip(recipe.entries, digests):
            tensor, storage = entry.tensor, entry.tensor.storage
            found = range_crc32(written, len(recipe.header) + entry.start, tensor.bytes, advance)
            recorded = _whole(tensor)
            if storage and not recorded and storage.name not in checked:
                check_storage(source, storage)
                checked.add(storage.name)
            if recorded and found != recorded.crc32:
                check_storage(source, recorded)
            expected = recorded.crc32 if recorded else digest
            if expected is None:
                expected = range_crc32(source, tensor.file_offset or 0, tensor.bytes) if tensor.bytes else 0
            if found != expected:
                raise CkptError(f"tensor {entry.name!a} was not written as it was read: disk or memory is at fault")


def output_path(source: str, output: str | None, make: bool) -> str:
    """Where the output goes: beside the source, into a directory under its default name, or where it is said."""
    name = os.path.splitext(os.path.basename(source))[0] + ".safetensors"
    if output is None:
        return os.path.join(os.path.dirname(source), name)
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


def read_text(path: str) -> str:
    """A small text file word for word; what is no text is a CkptError."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read(_MAX_META)
    except UnicodeDecodeError as error:
        raise CkptError(f"{path} is no text, so it cannot go along") from error
