"""Edits of JSON text that keep every byte they do not change.

Key order, indentation, line ends, a byte order mark, escapes, bare `Infinity`, duplicate keys and numbers of any length
stay as they are. Text is walked without a call a level, so that depth costs nothing but time. Of a key that stands
twice the last one counts, as in Python's reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError

MAX_BYTES = 16 << 20
_MAX_DEPTH = 200
_MARK = b"\xef\xbb\xbf"
# Python itself turns no more than this into a number.
_MAX_DIGITS = 4300
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SCALAR = re.compile(r"[^ \t\n\r,\]}]+")
_STEP = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


class Digits(str):
    """A whole number too long for Python, as its digits."""


class Text(NamedTuple):
    """A JSON document: its text, what precedes it, and its value."""

    text: str
    mark: bytes
    value: Any

    @property
    def bytes(self) -> bytes:
        """What a file of it holds."""
        return self.mark + self.text.encode("utf-8", "surrogatepass")


class _Member(NamedTuple):
    """One member of an object or list: its key or index, and where it, its value and its end are."""

    key: str
    start: int
    value: int
    end: int


def read(data: bytes, name: str) -> Text:
    """The document in a file's bytes. Raises CkptError, with the file's `name`, for what is no JSON in UTF-8."""
    if len(data) > MAX_BYTES:
        raise CkptError(f"{name} is too large for metadata: {len(data)} bytes")
    encoding = json.detect_encoding(data)
    if not encoding.startswith("utf-8"):
        raise CkptError(f"{name} is {encoding[:6].upper()}, and only JSON in UTF-8 is edited")
    mark = _MARK if data.startswith(_MARK) else b""
    try:
        text = data[len(mark) :].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CkptError(f"{name} is not JSON: it is not text") from error
    return Text(text, mark, parsed(text, name))


def parsed(text: str, name: str) -> Any:
    """The value of JSON text. Raises CkptError for what is none, and for what is nested deeper than metadata is."""
    depth = deepest = 0
    for match in _STEP.finditer(text):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    if deepest > _MAX_DEPTH:
        raise CkptError(f"{name} is nested too deep to be metadata")
    try:
        return json.loads(text, parse_int=_integer)
    except ValueError as error:
        raise CkptError(f"{name} is not JSON: {error}") from error


def changed(document: Text, path: Sequence[str], value: Any, name: str) -> Text:
    """The document with the member at `path` set to `value`, added at the end of what holds it where it is new.

    Raises CkptError where nothing is there to hold it.
    """
    text = document.text
    at = _holder(text, path, name)
    members = list(_members(text, at))
    there = [member for member in members if member.key == path[-1]]
    if there:
        start, end = there[-1].value, there[-1].end
        new = _written(text, value, _indent_of(text, members))
        return _with(document, text[:start] + new + text[end:], name)
    if text[at] != "{":
        raise CkptError(f"{name}: {'.'.join(path)} is beyond the end of a list")
    key = _written(text, path[-1], None)
    if not members:
        return _with(document, f"{text[: at + 1]}{key}: {_written(text, value, None)}{text[at + 1 :]}", name)
    last = members[-1]
    # As its neighbour is set apart from what precedes it, and from its key.
    lead = text[members[-2].end : last.start] if len(members) > 1 else "," + text[at + 1 : last.start]
    colon = text[_end(text, last.start) : last.value]
    new = f"{lead}{key}{colon}{_written(text, value, _indent_of(text, members))}"
    return _with(document, text[: last.end] + new + text[last.end :], name)


def without(document: Text, path: Sequence[str], name: str) -> Text:
    """The document without the member at `path`, however often its key stands there."""
    while True:
        text = document.text
        at = _holder(text, path, name)
        members = list(_members(text, at))
        found = [number for number, member in enumerate(members) if member.key == path[-1]]
        if not found:
            return document
        number = found[0]
        if len(members) == 1:
            start, end = at + 1, _end(text, at) - 1
        elif number + 1 < len(members):
            start, end = members[number].start, members[number + 1].start
        else:
            start, end = members[number - 1].end, members[number].end
        document = _with(document, text[:start] + text[end:], name)
        if text[at] == "[":  # what follows has moved up
            return document


def _with(document: Text, text: str, name: str) -> Text:
    return Text(text, document.mark, parsed(text, name))


def _holder(text: str, path: Sequence[str], name: str) -> int:
    """Where the object or list begins that holds the last key of the path."""
    at = _after_space(text, 0)
    for depth, key in enumerate(path):
        if text[at] not in "{[":
            where = ".".join(path[:depth]) or "the document"
            raise CkptError(f"{name}: {where} holds no keys")
        if depth == len(path) - 1:
            return at
        there = [member for member in _members(text, at) if member.key == key]
        if not there:
            raise CkptError(f"{name}: there is no key {'.'.join(path[: depth + 1])!a}")
        at = there[-1].value
    raise CkptError(f"{name}: a key has to be named")


def _members(text: str, start: int) -> Iterator[_Member]:
    """The members of the object or list that begins at `start`."""
    named = text[start] == "{"
    at = _after_space(text, start + 1)
    number = 0
    while text[at] not in "]}":
        begin, key = at, str(number)
        if named:
            end = _end(text, at)
            key = json.loads(text[at:end])
            at = _after_space(text, _after_space(text, end) + 1)
        stop = _end(text, at)
        yield _Member(key, begin, at, stop)
        at = _after_space(text, stop)
        if text[at] == ",":
            at = _after_space(text, at + 1)
        number += 1


def _end(text: str, at: int) -> int:
    """Where the value ends that begins at `at`; the text is known to be JSON."""
    if text[at] not in '"[{':
        match = _SCALAR.match(text, at)
        return match.end() if match else at
    if text[at] == '"':
        match = _STRING.match(text, at)
        return match.end() if match else len(text)
    depth = 0
    for match in _STEP.finditer(text, at):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return len(text)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _indent_of(text: str, members: Sequence[_Member]) -> str | None:
    """What begins the line of a member, the line's end included; None where members share a line."""
    first = members[0].start
    lead = text[:first].rpartition("\n")
    if not lead[1] or lead[2].strip(" \t"):
        return None
    return ("\r\n" if lead[0].endswith("\r") else "\n") + lead[2]


def _written(text: str, value: Any, indent: str | None) -> str:
    """The value as JSON, in the manner of the text: escapes where that has none but ASCII, and lines as it has them."""
    if isinstance(value, Digits):
        return str(value)
    escaped = text.isascii() or bool(re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)))
    unit = _unit(text) if indent is not None and value and isinstance(value, (dict, list)) else None
    made = json.dumps(value, ensure_ascii=escaped, indent=unit)
    return made if indent is None else made.replace("\n", indent)


def _unit(text: str) -> str:
    """One level of indentation: what precedes the first key."""
    match = re.match(r"\s*[{\[]\r?\n([ \t]+)", text)
    return match[1] if match else "  "


def _integer(digits: str) -> int | Digits:
    return int(digits) if len(digits) <= _MAX_DIGITS else Digits(digits)
