"""The values of several things as those of one, each under its name: no more of them in memory than there was."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from typing import Any, NamedTuple

from ckpt_cli.formats._values import Values
from ckpt_cli.formats._values import streamed as streamed_values

_ROOT = "<root>"
_NOWHERE = object()


class Part(NamedTuple):
    """Values under names that begin so; `root` is the name of what is itself at the top, where it is another."""

    begin: str
    values: Mapping[str, Any]
    root: str | None = None

    def name(self, key: str) -> str:
        """What one of its values is called."""
        return self.root if key == _ROOT and self.root is not None else self.begin + key


class Joined(Mapping[str, Any]):
    """`TensorFile.values` of the parts, in their order."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[str]:
        return (part.name(key) for part in self.parts for key in part.values)

    def __len__(self) -> int:
        return sum(len(part.values) for part in self.parts)

    def __getitem__(self, name: str) -> Any:
        for part in self.parts:
            found = part.values.get(_ROOT, _NOWHERE) if name == part.root else _NOWHERE
            if found is _NOWHERE and name.startswith(part.begin):
                found = part.values.get(name[len(part.begin) :], _NOWHERE)
            if found is not _NOWHERE:
                return found
        raise KeyError(name)

    def items(self) -> ItemsView[str, Any]:
        return _Items(self)


class _Items(ItemsView[str, Any]):
    _mapping: Joined

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((part.name(key), value) for part in self._mapping.parts for key, value in part.values.items())


def streamed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same values; a list of very many is an iterator, which never has them all in memory."""
    if isinstance(values, Joined):
        return Joined([part._replace(values=streamed(part.values)) for part in values.parts])
    return streamed_values(values) if isinstance(values, Values) else values
