"""The JSON header of a safetensors file, member by member, so that it is never in memory as a whole.

JSON as serde_json reads it, which the safetensors library uses: strict UTF-8, no NaN, no number out of range, no lone
surrogate, at most 127 levels. Of keys that stand twice the later counts, and both are given.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ckpt_cli.formats import ByteSource
from ckpt_cli.formats._stream import blocks

METADATA = "__metadata__"
# Characters of a member, which are some two hundred; of all the metadata, and how many texts they are. What lists and
# objects of them take in memory is 30 times as much.
_MAX_MEMBER, MAX_METADATA, _MAX_TEXTS = 1 << 20, 8 << 20, 50_000
_MAX_DEPTH = 127
_blanks = re.compile(r"[ \t\n\r]*").match
_Read = TypeVar("_Read")
# The value of what is read text by text.
_OPEN = object()


class Refused(ValueError):
    """It is JSON, as far as it was read, but nothing that is read further: what it says goes on from `its header`."""


_DEEP = "is nested too deep"


class Repeated(dict[str, Any]):
    """An object with keys that stood twice, and the values that were lost by it."""

    twice: frozenset[str] = frozenset()
    lost: tuple[Any, ...] = ()


def members(source: ByteSource, start: int, end: int) -> Iterator[tuple[str, Any]]:
    """Each member of the object between two bytes of the file: a name and its value; the metadata as a dict.

    Raises ValueError, with the reason, where it is no JSON object, Refused where it is more than is read.
    """
    text = _Text(source, start, end)
    if text.next() != "{":
        raise ValueError("it is no object")
    text.at += 1
    for _ in _until_closed(text):
        name, value = text.whole(_member, _MAX_MEMBER)
        yield name, _metadata(text) if value is _OPEN else value
    if text.next():
        raise ValueError("more follows its end")


def _until_closed(text: _Text) -> Iterator[None]:
    """Once for each member of an object that has been opened, with the text at its name."""
    mark = text.next()
    while mark != "}":
        if mark != '"':
            raise ValueError("a name in quotes is missing")
        yield
        mark = text.next()
        if mark == ",":
            text.at += 1
            mark = text.next()
            if mark != '"':
                raise ValueError("a comma is followed by nothing")
        elif mark != "}":
            raise ValueError("a comma is missing")
    text.at += 1


def _metadata(text: _Text) -> dict[str, str]:
    """An object of texts and nothing else."""
    found: dict[str, str] = {}
    left = MAX_METADATA
    text.at += 1
    for _ in _until_closed(text):
        name, value = text.whole(_pair_of_texts, left)
        left -= len(name) + len(value)
        found[name] = value
        if len(found) > _MAX_TEXTS:
            raise Refused(f"has more than {_MAX_TEXTS} texts in its {METADATA}")
    return found


class _Text:
    """The part of the header that is at hand, and the place in it."""

    def __init__(self, source: ByteSource, start: int, end: int) -> None:
        self.blocks = blocks(source, start, end)
        self.decode = codecs.getincrementaldecoder("utf-8")("strict").decode
        self.text = ""
        self.at = 0
        self.ended = False
        self.escaped = False

    def next(self) -> str:
        """The next character that is not blank; nothing at the end."""
        while True:
            found = _blanks(self.text, self.at)
            assert found
            self.at = found.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more(1)

    def more(self, count: int) -> None:
        """At least as many characters more, or all that there are."""
        pieces = [self.text[self.at :]]
        while count > 0 and not self.ended:
            block = next(self.blocks, b"")
            self.ended = not block
            pieces.append(self.decode(block, self.ended))
            count -= len(pieces[-1])
        self.text, self.at = "".join(pieces), 0
        self.escaped = self.escaped or "\\u" in self.text

    def whole(self, read: Callable[[_Text], tuple[_Read, int]], most: int) -> _Read:
        """What `read` makes of the text at hand, and of more of it where it ends too early."""
        while True:
            error = ""
            try:
                made, end = read(self)
                if end < len(self.text) or self.ended:
                    self.at = end
                    return made
            except Refused:
                raise
            except json.JSONDecodeError as caught:
                error = caught.msg
            except ValueError as caught:
                error = str(caught)
            held = len(self.text) - self.at
            if self.ended:
                raise ValueError(error)
            if held > most:
                raise Refused(f"has a member of more than {most} characters" + (error and f", in which: {error}"))
            self.more(min(held, most + 1 - held))


def _member(text: _Text) -> tuple[tuple[str, Any], int]:
    name, at = _name(text)
    if name == METADATA and text.text[at : at + 1] == "{":
        return (name, _OPEN), at
    lost: list[Any] = []
    try:
        value, end = _scanner(lost)(text.text, at) if text.escaped else _scan(text.text, at)
    except RecursionError as error:
        raise Refused(_DEEP) from error
    if text.escaped:
        _check_texts([name, value, lost])
    return (name, value), end


def _pair_of_texts(text: _Text) -> tuple[tuple[str, str], int]:
    name, at = _name(text)
    if text.text[at : at + 1] not in ('"', ""):
        raise Refused(f"has {METADATA} that maps to something else than text")
    value, end = _scan(text.text, at)
    if text.escaped:
        _check_texts([name, value])
    return (name, value), end


def _name(text: _Text) -> tuple[str, int]:
    """A member's name, and where its value begins."""
    name, at = _scan(text.text, text.at)
    colon = _blanks(text.text, at)
    assert colon
    if text.text[colon.end() : colon.end() + 1] != ":":
        raise ValueError("a colon is missing")
    behind = _blanks(text.text, colon.end() + 1)
    assert behind
    return name, behind.end()


def _check_texts(value: Any) -> None:
    """Raises ValueError where one of them has a lone surrogate."""
    json.dumps(value, ensure_ascii=False).encode()


def _scanner(lost: list[Any] | None = None) -> Callable[[str, int], tuple[Any, int]]:
    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        repeated = Repeated(found)
        repeated.twice = frozenset(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        repeated.lost = tuple(value for key, value in pairs if found[key] is not value)
        if lost is not None:
            lost.extend(repeated.lost)
        return repeated

    return json.JSONDecoder(
        object_pairs_hook=made, parse_constant=_no_constant, parse_int=_integer, parse_float=_number
    ).raw_decode


def _integer(text: str) -> int | float:
    """Minus zero, and what no u64 holds, are floating-point numbers to the library."""
    return _number(text) if text == "-0" or len(text) > 20 else int(text)


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is out of range")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_scan = _scanner()


def check_depth(value: Any) -> None:
    """Raises Refused where a member's value is nested deeper than the library follows."""
    level, depth = [value], 1
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise Refused(_DEEP)
        inner: list[Any] = []
        for item in level:
            inner += item if isinstance(item, list) else item.values()
            inner += item.lost if isinstance(item, Repeated) else ()
        level = inner
