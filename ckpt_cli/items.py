"""What a conversion is to write: values between those who plan it and those who write it. No I/O."""

from __future__ import annotations

from typing import Any, NamedTuple

from ckpt_cli.tensor_file import TensorInfo


class Item(NamedTuple):
    """A tensor to be written.

    `tensor` is a view of the source whose bytes in C order are what is written: a row permutation, a transpose or a
    slice is a strided view, several tensors end to end are `form="chunked"` with pieces. `shape` is what it is written
    as, of as many elements; a `dtype` other than the tensor's is a cast.
    """

    name: str
    tensor: TensorInfo
    shape: tuple[int, ...]
    dtype: str


class Mapped(NamedTuple):
    """A state dict under another naming.

    `renamed` are (old, new) names, `dropped` (name, reason), `tied` (name, of which) for names that the target has
    only once. `config` is the target's configuration file, None where it has none.
    """

    items: tuple[Item, ...]
    renamed: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, str], ...]
    tied: tuple[tuple[str, str], ...]
    config: dict[str, Any] | None
    notes: tuple[str, ...] = ()
