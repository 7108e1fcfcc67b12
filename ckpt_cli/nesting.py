"""Flat names back to the nested dicts and lists that they were made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ckpt_cli.pickling import Ordered, View
from ckpt_cli.tensor_file import referred

_CONTAINERS = frozenset({"dict", "ordered", "mixed", "ints", "list", "tuple", "object"})


def is_flat(kinds: Mapping[str, str]) -> bool:
    """Whether all names lie directly in one dict, as those of a state dict do."""
    return all(kind in ("dict", "ordered") if not name else kind == "module" for name, kind in kinds.items())


def nested(leaves: Iterable[tuple[str, Any]], kinds: Mapping[str, str]) -> tuple[Any, list[str]]:
    """The object that `leaves` (dotted name, value) and `kinds` (see TensorFile) were made of, and the names of what
    is not as it was: containers of a type that is not kept, values that only stand for what they were.

    Objects come back as dicts of their members. A container that stood in several places is one object again.
    """
    containers = {name: kind for name, kind in kinds.items() if kind in _CONTAINERS}
    containers.setdefault("", "dict")
    lost = lossy(kinds)
    made: dict[str, dict[Any, Any]] = {
        name: Ordered() if kind == "ordered" else {} for name, kind in containers.items()
    }
    places = {name: _place(name, containers) for name in containers if name}
    for name, (parent, key) in places.items():
        made[parent][key] = made[name]
    same: list[tuple[str, Any, str, str]] = []
    leaves = list(leaves)
    tensors = {name for name, value in leaves if name in containers and isinstance(value, View)}
    for name, value in leaves:
        if name == "<root>" and kinds.get("") not in _CONTAINERS:
            return value, lost
        if not isinstance(value, View) and kinds.get(name.rpartition(".")[0]) == "module":
            continue  # what a module has beside its tensors is no part of its state dict
        parent, key = _place("" if name == "<root>" else name, containers)
        if tensors and isinstance(value, View) and any(place in tensors for place in _around(name)):
            parent, key = "", name  # a tensor among the attributes of another, which cannot hold it: beside it
        kind = kinds.get(name)
        if kind == "same" and (target := referred(value)) is not None:
            same.append((parent, key, target, name))
        if name in made and name:
            places.pop(name, None)  # a tensor with attributes: it stands, they do not
        made[parent][key] = tuple(value) if kind == "tuple" and isinstance(value, list) else value
    # The inner ones first: what holds a tuple must not be one before it.
    final: dict[str, Any] = {}
    for name in sorted(containers, key=len, reverse=True):
        final[name] = _of_kind(made[name], containers[name])
        if name in places:
            parent, key = places[name]
            made[parent][key] = final[name]
    for parent, key, target, name in same:
        # What lies within what it is the same as would hold itself.
        if target in final and not f"{name}.".startswith(f"{target}.") and not isinstance(final[parent], tuple):
            final[parent][key] = final[target]
        else:
            lost.append(name)
    return final[""], lost


def mixed(kinds: Mapping[str, str]) -> list[str]:
    """The names of dicts whose members' names do not tell which of them something lies in."""
    return [name or "<root>" for name, kind in kinds.items() if kind == "mixed"]


def lossy(kinds: Mapping[str, str]) -> list[str]:
    """The names of what plain containers, numbers and texts only stand for."""
    return [name or "<root>" for name, kind in kinds.items() if kind in ("object", "text")]


def _of_kind(members: dict[Any, Any], kind: str) -> Any:
    """The container of members by key; a dict where they are no list."""
    if kind not in ("list", "tuple") or set(members) != set(range(len(members))):
        return members
    ordered = [members[index] for index in range(len(members))]
    return ordered if kind == "list" else tuple(ordered)


def _around(name: str) -> Iterator[str]:
    """The beginnings of a dotted name, the longest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _place(name: str, containers: Mapping[str, str]) -> tuple[str, Any]:
    """The container that a name lies in, and its key there: the longest beginning that is a container."""
    at = name.rfind(".")
    while at > 0 and name[:at] not in containers:
        at = name.rfind(".", 0, at)
    parent, key = (name[:at], name[at + 1 :]) if at > 0 else ("", name)
    if containers[parent] in ("ints", "list", "tuple"):
        try:
            return parent, int(key)
        except ValueError:
            return parent, key
    return parent, key
