"""path -> TensorFile, told by content; a tensor's bytes, its digest, and the check of a storage."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt_cli.errors import CkptError, Damaged, counted
from ckpt_cli.formats import ByteSource, Files, FileSource, Format, Window, formats
from ckpt_cli.inflate import Inflated
from ckpt_cli.pieces import joined
from ckpt_cli.tensor_file import Storage, TensorFile, TensorInfo
from ckpt_cli.views import gathered, is_contiguous

# Bytes read at a time of contiguous ranges: they fit the processor's cache so.
RANGE = 1 << 20
_HEAD = 512
# Of a file that is read for its structure alone.
MAX_INDEX = 64 << 20
# A view that repeats elements may be larger than its file; beyond this it is refused rather than written out.
_MAX_EXPANSION = 64

Advance = Callable[[int], None]

try:  # several times faster than zlib's, with the same result
    from isal.isal_zlib import crc32 as crc32
except ImportError:
    crc32 = zlib.crc32

_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: `git lfs pull` fetches it"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
)


def recognise(source: ByteSource) -> Format:
    """The format whose content it is; raises Damaged for an empty file, CkptError for anything else."""
    if not source.size:
        raise Damaged(f"{source.path} is empty: a write broke off before its first byte", kind="empty-file")
    head = source.read_at(0, min(_HEAD, source.size))
    for form in formats():
        if form.matches(head, source.size):
            return form
    if not head.strip(b"\0"):
        raise Damaged(
            f"{source.path} begins with nothing but zeros: a write that never reached the disk", kind="truncated"
        )
    for magic, what in _OTHERS:
        if head.lstrip().lower().startswith(magic.lower()) or head.startswith(magic):
            raise CkptError(f"{source.path} is {what}", kind="not-a-checkpoint")
    if head[257:262] == b"ustar":
        raise CkptError(
            f"{source.path} is a tar archive: torch before 0.2 wrote such files, which are not read",
            kind="not-a-checkpoint",
        )
    from ckpt_cli.formats._bare import is_pickle

    what = (
        "a Python pickle, but none of torch" if is_pickle(source, MAX_INDEX) else "not a checkpoint in any known format"
    )
    raise CkptError(f"{source.path} is {what}", kind="not-a-checkpoint")


def read_tensors(path: str) -> TensorFile:
    """What the file at `path` holds. No tensor data is read and nothing of the file is run."""
    with about(path), FileSource(path) as source:
        return recognise(source).read(source)


def read_index(path: str) -> TensorFile:
    """What a small structure file holds: as `read_tensors`, but reading MAX_INDEX bytes at most.

    A format that has an `index` besides `read` opens no other file for it.
    """
    with about(path), FileSource(path) as source:
        bounded = _Bounded(source, MAX_INDEX)
        form = recognise(bounded)
        found: TensorFile = getattr(form, "index", form.read)(bounded)
        return found


class _Bounded:
    """A source of which only so many bytes are read."""

    def __init__(self, source: ByteSource, most: int) -> None:
        self.source, self.left = source, most
        self.path, self.size = source.path, source.size

    def read_at(self, offset: int, length: int) -> bytes:
        self._spend(length)
        return self.source.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._spend(len(buffer))
        self.source.read_into(offset, buffer)

    def _spend(self, length: int) -> None:
        self.left -= length
        if self.left < 0:
            raise CkptError(f"{self.path} is too large for what it should hold")


def check_end(path: str) -> None:
    """What an interrupted write leaves undone, in milliseconds: raises Damaged or CkptError."""
    with about(path), FileSource(path) as source:
        recognise(source).check(source)


@contextmanager
def about(path: str) -> Iterator[None]:
    """Gives every failure the path of the file that was read."""
    try:
        yield
    except CkptError as error:
        error.path = error.path or path
        raise


def readable(tensor: TensorInfo) -> str | None:
    """Why the tensor's bytes cannot be had, or None."""
    if tensor.form == "zeros":
        return None
    if tensor.form == "chunked":
        places = {(s.file, s.offset): s.bytes for _, piece in tensor.pieces if (s := piece.storage)}
        if why := _repeated(tensor, sum(places.values())):
            return why
        return next((why for _, piece in tensor.pieces if (why := readable(piece))), None)
    if tensor.storage is None or tensor.form not in ("strided", "quantized", "archived"):
        kinds = {
            "meta": "it lies on the meta device, without data",
            "slice": "it is a slice of a larger tensor, whose other slices lie in other files",
        }
        return kinds.get(tensor.form, f"it is {tensor.form}")
    if tensor.signs and not tensor.dtype.startswith(("float", "bfloat", "complex")):
        return f"it is marked as {tensor.signs}"
    return _repeated(tensor, tensor.storage.bytes)


def _repeated(tensor: TensorInfo, there: int) -> str | None:
    if tensor.bytes <= _MAX_EXPANSION * max(there, 1 << 20):
        return None
    return f"it repeats {counted(there, 'byte')} to {tensor.bytes}"


def blocks(files: Files, tensor: TensorInfo) -> Iterator[memoryview]:
    """The tensor's contiguous little-endian bytes, in blocks of a few MiB at most; each is valid until the next.

    Of a quantized tensor they are its integers. Raises CkptError where `readable` gives a reason.
    """
    reason = readable(tensor)
    if reason:
        raise CkptError(f"tensor {tensor.name!a} cannot be read: {reason}")
    if tensor.form == "zeros":
        nothing = memoryview(bytes(min(RANGE, tensor.bytes)))
        yield from (nothing[: tensor.bytes - at] for at in range(0, tensor.bytes, RANGE))
        return
    if tensor.form == "chunked":
        yield from joined(
            tensor._replace(pieces=tuple((at, unpacked(files, piece)) for at, piece in tensor.pieces)),
            lambda piece: blocks(files, piece),
        )
        return
    tensor = unpacked(files, tensor)
    assert tensor.storage is not None
    source, base = opened(files, tensor.storage)
    if is_contiguous(tensor):
        yield from ranges(source, base + tensor.offset * tensor.itemsize, tensor.bytes)
    else:
        for block in gathered(source, tensor, base):
            yield memoryview(block)


def checked_blocks(files: Files, tensor: TensorInfo, checked: set[tuple[str, int]]) -> Iterator[memoryview]:
    """The tensor's blocks; by the end each storage they came from has been held against its CRC32, once in all.

    Where the tensor is all of a storage, that is done along the way; else the storage is read beforehand. `checked`
    is what has been, by file and offset. Raises Damaged where a CRC32 does not fit.
    """
    tensor = unpacked(files, tensor)
    pending = [s for s in storages_of(files, tensor) if s.crc32 is not None and (s.file, s.offset) not in checked]
    checked.update((storage.file, storage.offset) for storage in pending)
    storage, known = tensor.storage, stored_crc32(tensor)
    if not (pending and storage and known is not None):
        for other in pending:
            check_storage(files, other)
        yield from blocks(files, tensor)
        return
    value = 0
    for block in blocks(files, tensor):
        value = crc32(block, value)
        yield block
    if value != known:
        check_storage(files, storage)
        raise Damaged(f"{storage.file} changed while it was read", path=storage.file)


def stored_crc32(tensor: TensorInfo) -> int | None:
    """CRC32 of what `blocks` gives, where the tensor is all of a record that was written with one."""
    storage = tensor.storage
    whole = storage and tensor.form != "archived" and tensor.bytes == storage.bytes and is_contiguous(tensor)
    return storage.crc32 if storage and whole else None


def opened(files: Files, storage: Storage) -> tuple[ByteSource, int]:
    """A source of the storage's bytes, and where in it they begin; compressed ones are unpacked as they are read."""
    source = files.at(storage.file)
    if storage.packed:
        return Inflated(Window(source, storage.offset, storage.packed), storage.bytes), 0
    return source, storage.offset


def unpacked(files: Files, tensor: TensorInfo) -> TensorInfo:
    """The tensor that an archived one stands for, as a view of bytes of its file; any other as it is.

    Raises CkptError where its archive holds something else than one tensor of this dtype and shape.
    """
    if tensor.form != "archived" or tensor.storage is None:
        return tensor
    place = tensor.storage
    window = Window(files.at(place.file), place.offset, place.bytes)
    held = recognise(window).read(window).tensors
    if len(held) != 1 or (held[0].dtype, held[0].shape) != (tensor.dtype, tensor.shape):
        raise Damaged(f"{place.file}: the bytes of tensor {tensor.name!a} are not the tensor that its index describes")
    found = held[0].storage
    return held[0]._replace(name=tensor.name, storage=found and found._replace(offset=place.offset + found.offset))


def storages_of(files: Files, tensor: TensorInfo) -> list[Storage]:
    """The storages that the tensor's bytes lie in, those of its pieces included."""
    if tensor.pieces:
        return [storage for _, piece in tensor.pieces for storage in storages_of(files, piece)]
    storage = unpacked(files, tensor).storage
    return [storage] if storage else []


def ranges(
    source: ByteSource, offset: int, length: int, advance: Advance | None = None, buffer: memoryview | None = None
) -> Iterator[memoryview]:
    """A byte range in blocks, read into `buffer`, each valid until the next; `advance` is told the bytes of each."""
    buffer = memoryview(bytearray(min(RANGE, length))) if buffer is None else buffer
    for at in range(0, length, max(1, len(buffer))):
        view = buffer[: min(len(buffer), length - at)]
        source.read_into(offset + at, view)
        if advance:
            advance(len(view))
        yield view


def digest(files: Files, tensor: TensorInfo) -> str:
    """sha256 of the tensor's contiguous little-endian bytes, as hexadecimal digits."""
    import hashlib

    state = hashlib.sha256()
    for block in blocks(files, tensor):
        state.update(block)
    return state.hexdigest()


def range_crc32(
    source: ByteSource, offset: int, length: int, advance: Advance | None = None, buffer: memoryview | None = None
) -> int:
    """CRC32 of a byte range, read as `ranges` does."""
    value = 0
    for block in ranges(source, offset, length, advance, buffer):
        value = crc32(block, value)
    return value


def check_storage(files: Files, storage: Storage) -> None:
    """Raises Damaged, naming the record, when its bytes do not have the CRC32 that was written with them."""
    if storage.crc32 is None:
        return
    source, base = opened(files, storage)
    if range_crc32(source, base, storage.bytes) != storage.crc32:
        # torch's storages are called by their number below `data`.
        record = storage.name if "/" in storage.name else f"data/{storage.name}"
        what = f"{storage.file}: record {record} is damaged: its CRC32 does not fit"
        raise Damaged(what, path=storage.file, kind="crc-mismatch", record=record)
