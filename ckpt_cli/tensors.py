"""path -> TensorFile, told by content; a tensor's bytes, its digest, and the check of a storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt_cli.checkpoint import Storage, TensorFile, TensorInfo
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import ByteSource, FileSource, Format, formats

# Bytes read at a time: of contiguous ranges, which fit the processor's cache so, and of gathered views.
RANGE = 1 << 20
BLOCK = 8 << 20
_HEAD = 512
# A view that repeats elements may be larger than its file; beyond this it is refused rather than written out.
_MAX_EXPANSION = 64

try:  # several times faster than zlib's, with the same result
    from isal.isal_zlib import crc32 as crc32
except ImportError:
    from zlib import crc32 as crc32

_TURNED = bytes(byte ^ 0x80 for byte in range(256))
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
        raise Damaged(f"{source.path} is empty: a write broke off before its first byte")
    head = source.read_at(0, min(_HEAD, source.size))
    for form in formats():
        if form.matches(head, source.size):
            return form
    if not head.strip(b"\0"):
        raise Damaged(f"{source.path} begins with nothing but zeros: a write that never reached the disk")
    for magic, what in _OTHERS:
        if head.lstrip().lower().startswith(magic.lower()) or head.startswith(magic):
            raise CkptError(f"{source.path} is {what}")
    if head[257:262] == b"ustar":
        raise CkptError(f"{source.path} is a tar archive, as torch before 0.2 wrote them; such files are not read")
    raise CkptError(f"{source.path} is not a checkpoint in any known format")


def read_tensors(path: str) -> TensorFile:
    """What the file at `path` holds. No tensor data is read and nothing of the file is run."""
    with _about(path), FileSource(path) as source:
        return recognise(source).read(source)


def check_end(path: str) -> None:
    """What an interrupted write leaves undone, in milliseconds: raises Damaged or CkptError."""
    with _about(path), FileSource(path) as source:
        recognise(source).check(source)


@contextmanager
def _about(path: str) -> Iterator[None]:
    """Gives every failure the path of the file that was read."""
    try:
        yield
    except CkptError as error:
        error.path = error.path or path
        raise


def is_contiguous(tensor: TensorInfo) -> bool:
    """Whether its elements lie in the file in order and without gap, in little-endian order."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride)):
        if size != 1 and stride != step:
            return tensor.elements == 0
        step *= size
    return not (tensor.swapped or tensor.signs) or tensor.elements == 0


def readable(tensor: TensorInfo) -> str | None:
    """Why the tensor's bytes cannot be had, or None."""
    if tensor.storage is None or tensor.form != "strided":
        kinds = {"meta": "it lies on the meta device, without data", "sparse": "it is sparse"}
        return kinds.get(tensor.form, f"it is {tensor.form}")
    if tensor.storage.packed:
        return "its record is compressed"
    if tensor.signs and not tensor.dtype.startswith(("float", "bfloat", "complex")):
        return f"it is marked as {tensor.signs}"
    if tensor.bytes > _MAX_EXPANSION * max(tensor.storage.bytes, 1 << 20):
        return f"it repeats {tensor.storage.bytes} bytes to {tensor.bytes}"
    return None


def blocks(source: ByteSource, tensor: TensorInfo) -> Iterator[memoryview]:
    """The tensor's contiguous little-endian bytes, in blocks of about BLOCK at most; each is valid until the next.

    Raises CkptError where `readable` gives a reason.
    """
    reason = readable(tensor)
    if reason or tensor.storage is None:
        raise CkptError(f"tensor {tensor.name!a} of {source.path} cannot be read: {reason}")
    if is_contiguous(tensor):
        yield from _ranges(source, tensor.storage.offset + tensor.offset * tensor.itemsize, tensor.bytes)
        return
    for block in _gathered(source, tensor, tensor.storage.offset):
        block = _swap(tensor, block) if tensor.swapped else block
        yield memoryview(_sign(tensor, block) if tensor.signs else block)


def _ranges(source: ByteSource, offset: int, length: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(RANGE, length)))
    for at in range(0, length, RANGE):
        view = buffer[: min(RANGE, length - at)]
        source.read_into(offset + at, view)
        yield view


def _gathered(source: ByteSource, tensor: TensorInfo, base: int) -> Iterator[bytearray]:
    """A strided view, block by block along its first dimension; neither a block nor what it spans is larger than
    BLOCK, as far as its dimensions can be divided."""
    shape, stride, item = tensor.shape, tensor.stride, tensor.itemsize
    if not shape or tensor.elements == 0:
        yield bytearray(source.read_at(base + tensor.offset * item, item) if tensor.elements else b"")
        return
    inner = math.prod(shape[1:]) * item
    if len(shape) > 1 and (inner > BLOCK or shape[0] == 1):
        for index in range(shape[0]):
            offset = tensor.offset + index * stride[0]
            yield from _gathered(source, tensor._replace(shape=shape[1:], stride=stride[1:], offset=offset), base)
        return
    rows = max(1, BLOCK // max(inner, 1))
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        yield _block(source, (count, *shape[1:]), stride, base + (tensor.offset + first * stride[0]) * item, item)


def _block(source: ByteSource, shape: tuple[int, ...], stride: tuple[int, ...], start: int, item: int) -> bytearray:
    """One block of a strided view whose first element lies at byte `start`, gathered in C order.

    It is read in strips along one dimension, each scattered to its places. Of a span that fits into memory the
    longest dimension makes the fewest strips; else the one whose elements lie closest together reads the least.
    """
    steps, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        steps[axis] = step
        step *= shape[axis]
    out = bytearray(step * item)
    width = item if item in (1, 2, 4, 8) else 8
    lanes = item // width
    target = _cells(out, width)
    span = (1 + sum((size - 1) * hop for size, hop in zip(shape, stride))) * item
    if span <= BLOCK:
        window = memoryview(source.read_at(start, span))
        axis = max(range(len(shape)), key=lambda a: shape[a])
    else:
        window = None
        axis = min(range(len(shape)), key=lambda a: (shape[a] == 1 or not stride[a], stride[a]))

    def read(at: int, length: int) -> bytes | memoryview:
        return source.read_at(start + at, length) if window is None else window[at : at + length]

    for offset, place in _positions(shape, stride, steps, axis):
        strip = _cells(_strip(read, offset * item, shape[axis], stride[axis], item), width)
        for lane in range(lanes):
            first, hop = place * lanes + lane, steps[axis] * lanes
            target[first : first + (shape[axis] - 1) * hop + 1 : hop] = strip[lane::lanes]
    return out


def _strip(read: Callable[[int, int], bytes | memoryview], at: int, count: int, hop: int, item: int) -> bytes:
    """`count` elements that lie `hop` elements apart, from byte `at` on, packed together."""
    if not hop:
        return bytes(read(at, item)) * count
    most = max(1, BLOCK // (hop * item))
    if count > most:
        parts = range(0, count, most)
        return b"".join(_strip(read, at + n * hop * item, min(most, count - n), hop, item) for n in parts)
    data = read(at, ((count - 1) * hop + 1) * item)
    if hop == 1:
        return bytes(data)
    width = item if item in (1, 2, 4, 8) else 8
    lanes = item // width
    cells, packed = _cells(data, width), bytearray(count * item)
    target = _cells(packed, width)
    for lane in range(lanes):
        target[lane::lanes] = cells[lane :: hop * lanes]
    return bytes(packed)


def _cells(data: bytes | bytearray | memoryview, width: int) -> memoryview:
    """The bytes as a sequence of items of 1, 2, 4 or 8 bytes, which slices with a step."""
    view = memoryview(data)
    return view.cast("B") if width == 1 else view.cast("H") if width == 2 else view.cast("I" if width == 4 else "Q")


def _positions(
    shape: tuple[int, ...], stride: tuple[int, ...], steps: list[int], axis: int
) -> Iterator[tuple[int, int]]:
    """(offset in the source, place in the block), in elements, of each strip along `axis`."""
    others = [a for a in range(len(shape)) if a != axis]
    index = [0] * len(others)
    while True:
        yield (
            sum(i * stride[a] for i, a in zip(index, others)),
            sum(i * steps[a] for i, a in zip(index, others)),
        )
        for position in reversed(range(len(others))):
            index[position] += 1
            if index[position] < shape[others[position]]:
                break
            index[position] = 0
        else:
            return


def _swap(tensor: TensorInfo, block: bytearray) -> bytearray:
    """Big-endian elements turned round; a complex number is two of them."""
    width = tensor.itemsize // 2 if tensor.dtype.startswith("complex") else tensor.itemsize
    out = bytearray(len(block))
    for byte in range(width):
        out[byte::width] = block[width - 1 - byte :: width]
    return out


def _sign(tensor: TensorInfo, block: bytearray) -> bytearray:
    """Little-endian floats with their signs turned: all of them, or the imaginary halves."""
    width = tensor.itemsize
    every = width // 2 if tensor.dtype.startswith("complex") and tensor.signs == "negated" else width
    block[every - 1 :: every] = block[every - 1 :: every].translate(_TURNED)
    return block


def digest(source: ByteSource, tensor: TensorInfo) -> str:
    """sha256 of the tensor's contiguous little-endian bytes, as hexadecimal digits."""
    import hashlib

    state = hashlib.sha256()
    for block in blocks(source, tensor):
        state.update(block)
    return state.hexdigest()


def range_crc32(source: ByteSource, offset: int, length: int, advance: Callable[[int], None] | None = None) -> int:
    """CRC32 of a byte range, read in blocks; `advance` is told the bytes of each."""
    value = 0
    for block in _ranges(source, offset, length):
        value = crc32(block, value)
        if advance:
            advance(len(block))
    return value


def check_storage(source: ByteSource, storage: Storage) -> None:
    """Raises Damaged, naming the record, when its bytes do not have the CRC32 that was written with them."""
    if storage.crc32 is None or storage.packed:
        return
    if range_crc32(source, storage.offset, storage.bytes) != storage.crc32:
        what = f"{source.path}: record data/{storage.name} is damaged: its CRC32 does not fit"
        raise Damaged(what, path=source.path)
