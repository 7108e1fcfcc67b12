"""Files for the tests: what torch holds, by name, and torch zips put together by hand."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# The dtypes that torch can save as bytes of their own: quantized ones carry a scale besides, and it refuses the
# integers of one to seven bits.
DTYPES = sorted(
    {
        value
        for value in vars(torch).values()
        if isinstance(value, torch.dtype) and not re.fullmatch(r"torch\.(q.*|u?int[1-7])", str(value))
    },
    key=str,
)


def filled(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of fixed arbitrary bytes; of zeros and ones where the dtype is bool."""
    count = dtype.itemsize
    for size in shape:
        count *= size
    generator = torch.Generator().manual_seed(count)
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def plain(tensor: torch.Tensor) -> bytes:
    """The contiguous bytes of a tensor, lazy signs carried out."""
    if tensor.numel() == 0:
        return b""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(tensor.view(torch.uint8).numpy().tobytes())


def named(value: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """The tensors of nested dicts and lists by dotted name."""
    if isinstance(value, torch.Tensor):
        return [(name or "<root>", value)]
    members: list[tuple[str, Any]] = []
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, dict):
        members = [(str(list(key)) if isinstance(key, tuple) else str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        members = [(str(index), item) for index, item in enumerate(value)]
    return [pair for key, item in members for pair in named(item, f"{name}.{key}" if name else key)]


def told(value: Any) -> list[tuple[str, str, tuple[int, ...], tuple[int, ...], str]]:
    """What torch says of them: name, dtype, shape, stride, sha256."""
    return [
        (
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.stride(),
            hashlib.sha256(plain(tensor)).hexdigest(),
        )
        for name, tensor in named(value)
    ]


def write_zip(path: Path, pickle: bytes, records: Mapping[str, bytes] | None = None) -> Path:
    """A torch zip around a pickle made by hand."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("made/data.pkl", pickle)
        for name, data in {"version": b"3\n", **(records or {})}.items():
            archive.writestr(f"made/{name}", data)
    return path


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Where the bytes of each record lie in a zip: first and length."""
    data = path.read_bytes()
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            at = info.header_offset
            names = int.from_bytes(data[at + 26 : at + 28], "little") + int.from_bytes(
                data[at + 28 : at + 30], "little"
            )
            found[info.filename] = (at + 30 + names, info.file_size)
    return found


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """Turns one bit of a file round."""
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def swap_bytes(path: Path, out: Path, width: Mapping[str, int]) -> Path:
    """The file as a big-endian machine would have written it; `width` is the bytes per number of each record."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            data = source.read(info)
            key = info.filename.rpartition("/data/")[2]
            if info.filename.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in info.filename:
                step = width[key]
                data = b"".join(data[at : at + step][::-1] for at in range(0, len(data), step))
            target.writestr(info.filename, data)
    return out
