"""Numbers of a configuration that nobody vouches for, and what the user said of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.families import Described

# Far above any model there is, and far below what makes a loop or a product of them a danger.
_MOST = {"n_layer": 4096, "num_experts": 4096}
_MOST_OF_ANY = 1 << 31
MOST_WIDE = 1 << 20


def whole(described: Described, key: str, most: int = _MOST_OF_ANY, default: int | None = None) -> int:
    """The number under `key` of the configuration, from 1 to `most`; `default` where it does not say.

    Raises CkptError for one that is missing and has no default, and for what is no such number.
    """
    value = described.config.get(key)
    if value is None:
        value = default
    if value is None:
        raise lacking(described, (key,))
    if type(value) is not int or not 1 <= value <= min(most, _MOST.get(key, most)):
        raise CkptError(f"{described.path}: its configuration says {key} {shown(value)}, which no model has")
    return value


def shown(value: Any) -> str:
    """A value as a message has it, cut short."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        # A number of more digits than Python writes, or one within one within one.
        return f"something of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def required(described: Described, keys: Sequence[str]) -> None:
    """Raises CkptError, naming all of them, where the configuration lacks some of `keys`."""
    if missing := [key for key in keys if described.config.get(key) is None]:
        raise lacking(described, missing)


def lacking(described: Described, keys: Sequence[str]) -> CkptError:
    """That the configuration does not say these keys."""
    what = f"{described.path} lacks a configuration that says {', '.join(keys)}"
    return CkptError(what, "--config FILE, an object with these keys, supplies it")


def divided(described: Described, whole_key: str, total: int, part_key: str, parts: int) -> int:
    """The quotient. Raises CkptError where there is a rest."""
    if total % parts:
        raise CkptError(f"{described.path}: its {part_key} {parts} does not divide its {whole_key} {total}")
    return total // parts


def settable(family: str, given: Mapping[str, str], choices: Mapping[str, tuple[str, ...] | None]) -> None:
    """Raises CkptError for what the user said that the family has no setting for, or not this value of.

    `choices` are the values of each setting; None where those are for the family to judge.
    """
    for key, value in given.items():
        if key not in choices:
            names = ", ".join(choices) or "none"
            raise CkptError(f"{family} has no setting {key!a}", f"what can be set of it: {names}")
        allowed = choices[key]
        if allowed is not None and value not in allowed:
            raise CkptError(f"{key} of {family} is {' or '.join(allowed)}, not {shown(value)}")


def listed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what only describes it: keys in pointed brackets, such as a class that was not loaded."""
    return {key: value for key, value in config.items() if not key.startswith("<")}
