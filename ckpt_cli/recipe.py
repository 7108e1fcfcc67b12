"""What a conversion is asked for, and what it will make of a source: values, told before a byte of a tensor is read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from ckpt_cli.items import Item
from ckpt_cli.ties import Alias
from ckpt_cli.writing import Output, item_bytes


class Request(NamedTuple):
    """What is asked for: target, dtype of floating-point numbers (torch's name), bytes a shard at most, part, and the
    path of a configuration file; None for what is not asked."""

    to: str = "safetensors"
    dtype: str | None = None
    shard_bytes: int | None = None
    part: str | None = None
    config: str | None = None


class Recipe(NamedTuple):
    """What will be written, and what becomes of the source's names.

    `renamed` are (old, new) names, `dropped` (name, reason), `tied` (name, of which). `notes` is what should be said.
    """

    outputs: tuple[Output, ...]
    items: tuple[Item, ...]
    aliases: tuple[Alias, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all outputs, headers included."""
        return sum(output.bytes for output in self.outputs)

    @property
    def work(self) -> int:
        """Bytes that `write` tells of: what is copied, written and read back."""
        return 2 * sum(item_bytes(item) for output in self.outputs for item in output.items)

    @property
    def cast(self) -> list[tuple[str, str]]:
        """The pairs of dtypes, from and to, in the order in which they are met."""
        return list(dict.fromkeys((i.tensor.dtype, i.dtype) for i in self.items if i.dtype != i.tensor.dtype))


def joined(recipes: Iterable[Recipe]) -> Recipe:
    """Several plans as one, whose outputs appear together or not at all."""
    fields: list[Any] = [tuple(itertools.chain.from_iterable(parts)) for parts in zip(*recipes)]
    return Recipe(*fields)


def result_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON shows it."""
    return {
        "outputs": [{"path": output.path, "bytes": output.bytes} for output in recipe.outputs],
        "tensors": len(recipe.items),
        "bytes": recipe.bytes,
        "renamed": [{"from": old, "to": new} for old, new in recipe.renamed],
        "cast": [{"from": old, "to": new} for old, new in recipe.cast],
        "dropped": [{"name": name, "reason": reason} for name, reason in recipe.dropped],
        "tied": [{"name": name, "of": of} for name, of in recipe.tied],
    }
