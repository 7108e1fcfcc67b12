"""TorchScript's objects as a state dict: which of their attributes are parameters and buffers stands in their code.

The code (`code/__torch__/....py`) is read as text, never run: of each class the lists `__parameters__` and
`__buffers__`. After torch/csrc/jit/serialization/export_module.cpp and python_print.cpp, torch 1.4 to 2.13.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from ckpt_cli.formats._inert import Attributed, Malformed, Opaque
from ckpt_cli.tensor_file import TensorInfo

_MAX_LINE = 1 << 20
_CLASS = re.compile(r"class ([^\s(:]+)\(Module\):")
_LIST = re.compile(r"  __(parameters|buffers)__ = \[(.*)\]")
# One that is not closed goes to the end of the line: it is not looked for again from each quote in it.
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)(?:"|\\?\Z)')


class Names(NamedTuple):
    """What a module's class declares; `buffers` is None where it was written before torch told them apart."""

    parameters: frozenset[str]
    buffers: frozenset[str] | None


def declared(module: str, code: Iterable[bytes]) -> Iterator[tuple[str, Names]]:
    """Each module class of one file of code, by its full name; `module` is that of the file.

    Raises Malformed for a class with more attributes than any has.
    """
    name, lists = "", dict[str, frozenset[str]]()
    for line in chain(_lines(code), ["class"]):
        if line.startswith(("class", "def")):
            if name:
                yield f"{module}.{name}", Names(lists.get("parameters", frozenset()), lists.get("buffers"))
            found = _CLASS.match(line)
            name, lists = found[1] if found else "", {}
        elif name and (listed := _LIST.match(line)):
            lists[listed[1]] = frozenset(_unescaped(word) for word in _WORD.findall(listed[2]))
        elif name and len(line) == _MAX_LINE and line.startswith("  __"):
            raise Malformed(f"its code has a list of more than {_MAX_LINE} bytes")


def _lines(code: Iterable[bytes]) -> Iterator[str]:
    """The lines of a text in blocks, of long ones the beginning."""
    begun = b""
    for block in code:
        # Not splitlines: a line ends where the printer of the code ends it.
        *ended, rest = block.split(b"\n")
        for line in ended:
            yield (begun + line)[:_MAX_LINE].decode("utf-8", "replace")
            begun = b""
        begun = (begun + rest)[:_MAX_LINE]
    yield begun.decode("utf-8", "replace")


def arrange(root: Any, classes: Mapping[str, Names], size: int) -> None:
    """Orders the attributes of every module below `root` as its state dict does: parameters, buffers, modules.

    All others, and tensors among them, go below `<attributes>`. Raises Malformed where `root` is no module, and
    where modules share attributes so often that there are more in all than the pickle has bytes, which is `size`.
    """
    if not isinstance(root, Opaque) or root.name not in classes:
        raise Malformed("it is a TorchScript archive without a module")
    pending: list[Any] = [root]
    seen = {id(root)}
    while pending:
        item = pending.pop()
        inner: list[Any] = []
        if isinstance(item, Opaque):
            inner = [item.args, item.state, item.items, item.elements]
            if item.name in classes and isinstance(item.state, dict):
                size -= len(item.state)
                if size < 0:
                    raise Malformed("its modules share their attributes over and over")
                inner = list(item.state.values())
                item.state = _ordered(item.state, classes[item.name], classes)
        elif isinstance(item, dict):
            inner = list(item.values())
        elif isinstance(item, (list, tuple)) and not isinstance(item, TensorInfo):
            inner = list(item)
        for child in inner:
            if isinstance(child, (Opaque, dict, list, tuple)) and id(child) not in seen:
                seen.add(id(child))
                pending.append(child)


def _ordered(state: dict[Any, Any], names: Names, classes: Mapping[str, Names]) -> dict[Any, Any]:
    parameters, buffers, modules, rest = dict[Any, Any](), dict[Any, Any](), dict[Any, Any](), dict[Any, Any]()
    for key, value in state.items():
        if isinstance(value, (TensorInfo, Attributed)):
            if key in names.parameters:
                parameters[key] = value
            elif names.buffers is None or key in names.buffers:
                buffers[key] = value
            else:
                rest[key] = value
        elif isinstance(value, Opaque) and value.name in classes:
            modules[key] = value
        else:
            rest[key] = value
    return {**parameters, **buffers, **modules, **({"<attributes>": rest} if rest else {})}


def _unescaped(word: str) -> str:
    if "\\" not in word:
        return word
    try:
        return codecs.escape_decode(word.encode())[0].decode("utf-8", "replace")
    except ValueError:  # nothing that torch writes: no attribute is called so
        return word
