"""Tensors of a file as tensors of torch: views of the file's own bytes, mapped into memory.

A map is private: what is written to a tensor stays in this process and never reaches the file. What is no plain run of
little-endian bytes (compressed, in pieces, big-endian, lazily negated) is read into memory of its own.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import Files
from ckpt_cli.tensor_file import Storage, TensorInfo
from ckpt_cli.tensors import blocks, readable, unpacked

if TYPE_CHECKING:
    import resource

    import torch

# Nothing is set aside for pages that nobody may ever write to: the file may be larger than the memory.
_FLAGS = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)


class Weights:
    """Files mapped once each, and the storages in them: tensors that share bytes in a file share them here.

    Tensors outlive it: each holds on to its map.
    """

    def __init__(self) -> None:
        self.files = Files()
        self.maps: dict[str, mmap.mmap | None] = {}
        self.storages: dict[tuple[str, int, str], torch.Tensor] = {}

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """The tensor of a file on the CPU, in its own dtype and shape. Raises CkptError where its bytes cannot be had,
        Damaged where the file has become shorter."""
        import torch

        reason = "it is quantized" if info.form == "quantized" else readable(info)
        if reason:
            raise CkptError(f"tensor {info.name!a} cannot be loaded: {reason}")
        dtype = torch_dtype(info.dtype)
        if dtype is None or dtype.itemsize != info.itemsize:
            raise CkptError(f"tensor {info.name!a} cannot be loaded: torch has no {info.dtype}")
        if not info.elements:
            return torch.empty(info.shape, dtype=dtype)
        if info.form == "zeros":
            return torch.zeros(info.shape, dtype=dtype)
        plain = unpacked(self.files, info)
        base = self._storage(plain, dtype) if plain.form == "strided" and not (plain.swapped or plain.signs) else None
        if base is not None:
            return base.as_strided(plain.shape, plain.stride, plain.offset)
        data = bytearray(info.elements * info.itemsize)
        at = 0
        for block in blocks(self.files, info):
            data[at : at + len(block)] = block
            at += len(block)
        return torch.frombuffer(data, dtype=dtype).reshape(info.shape)

    def _storage(self, tensor: TensorInfo, dtype: torch.dtype) -> torch.Tensor | None:
        """All of the tensor's storage as one flat tensor; None for one that cannot be mapped as it lies."""
        import torch

        storage = tensor.storage
        if storage is None or storage.packed or storage.offset % tensor.itemsize:
            return None
        key = (storage.file, storage.offset, tensor.dtype)
        if key not in self.storages:
            whole = self._map(storage)
            if whole is None:
                return None
            count = storage.bytes // tensor.itemsize
            self.storages[key] = torch.frombuffer(whole, dtype=dtype, count=count, offset=storage.offset)
        return self.storages[key]

    def _map(self, storage: Storage) -> mmap.mmap | None:
        """All of the storage's file; None where nothing can be mapped. Raises Damaged where the file is too short."""
        if storage.file not in self.maps:
            source = self.files.at(storage.file)
            whole = None
            with suppress(OSError, ValueError):  # a file system that maps nothing: it is read instead
                whole = mmap.mmap(source.descriptor, source.size, _FLAGS, mmap.PROT_READ | mmap.PROT_WRITE)
            self.maps[storage.file] = whole
        mapped = self.maps[storage.file]
        if mapped is not None and storage.offset + storage.bytes > len(mapped):
            raise Damaged(f"{storage.file} has become shorter while it was read", path=storage.file, kind="truncated")
        return mapped

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()


def torch_dtype(name: str) -> torch.dtype | None:
    """torch's dtype of that name, None where this torch has none."""
    import torch

    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else None


def peak_memory(device: str) -> int:
    """The most memory that this process has held so far, in bytes, with that of a CUDA device; mapped pages that were
    touched count."""
    import resource

    peak = bytes_held(resource.getrusage(resource.RUSAGE_SELF))
    if device.startswith("cuda"):
        import torch

        peak += torch.cuda.max_memory_allocated(device)
    return peak


def bytes_held(usage: resource.struct_rusage) -> int:
    """The largest resident memory, which the system tells in KiB, on macOS in bytes."""
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
