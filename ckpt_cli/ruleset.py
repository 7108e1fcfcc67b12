"""What to keep as people write it, in options or in a table of the settings: "7d", "50GB" -> policies and a budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_cli.budget import Budget
from ckpt_cli.errors import CkptError
from ckpt_cli.metrics import parse_metric
from ckpt_cli.policies import Policy, keep_best, keep_every, keep_last, keep_steps, keep_within

if TYPE_CHECKING:
    from ckpt_cli.settings import Settings

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgtp]?)(i?)b", re.IGNORECASE)
_POWERS = " kmgtp"
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdw]?)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Ruleset(NamedTuple):
    """Policies by the name that a user knows them under, and the size budget, if there is one."""

    policies: dict[str, Policy]
    budget: Budget | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for but to keep none."""
        return list(self.policies) == ["keep 0"] and not self.budget


def parse_size(text: str) -> int:
    """Bytes of `50GB`, `1.5 TB`, `200 MiB`; the unit must be given. Raises CkptError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or (match[3] and not match[2]):
        raise CkptError(f"{text!a} is no size: a number with B, kB, MB, GB, TB, or KiB, MiB, GiB, TiB, as in 50GB")
    base = 1024 if match[3] else 1000
    whole, _, part = match[1].partition(".")
    # Not by floating point, which would lose bytes of a petabyte.
    unit: int = base ** _POWERS.index(match[2].lower() or " ")
    return int(whole) * unit + (int(part) * unit // 10 ** len(part) if part else 0)


def duration(text: str) -> float | None:
    """Seconds of `90`, `30s`, `10m`, `6h`, `7d` or `2w`; None for anything else."""
    match = _DURATION.fullmatch(text.strip())
    return float(match[1]) * _SECONDS[match[2] or "s"] if match else None


def parse_age(text: str) -> float:
    """Seconds of `7d`, `12h`, `30m` (minutes); the unit must be given. Raises CkptError."""
    seconds = duration(text) if text.strip()[-1:].isalpha() else None
    if seconds is None:
        raise CkptError(f"{text!a} is no duration: a number with s, m (minutes), h, d or w, as in 7d")
    return seconds


def ruleset(rules: Mapping[str, Any], metric: str | None = None, unmeasured: bool = True) -> Ruleset:
    """The policies of one table, whose keys are those of `settings.POLICY_KEYS`; what is None is not asked for.

    `metric` is NAME or NAME:min|max where the table gives none. Raises CkptError for a value that is none.
    """
    given = {key: value for key, value in rules.items() if value is not None}
    name, goal = parse_metric(_text("metric", given.pop("metric", None) or metric))
    policies: dict[str, Policy] = {}
    budget = None
    for key, value in given.items():
        if key in ("keep", "keep-last"):
            policies[f"keep {value}"] = keep_last(_number(key, value))
        elif key == "keep-every":
            policies[f"keep every {value}"] = keep_every(_number(key, value))
        elif key == "keep-best":
            policies[f"keep best {value}"] = keep_best(_number(key, value), name, goal, unmeasured)
        elif key == "keep-within":
            policies[f"keep within {value}"] = keep_within(parse_age(_text(key, value) or ""), value)
        elif key == "keep-step":
            steps = [_number(key, step) for step in (value if isinstance(value, (list, tuple)) else [value])]
            if steps:
                policies[f"keep step {', '.join(map(str, steps))}"] = keep_steps(steps)
        elif key == "max-size":
            budget = Budget(parse_size(_text(key, value) or ""), value, name, goal)
            if name and goal is None:
                keep_best(1, name, goal)  # says what is missing
    return Ruleset(policies, budget)


def named_policy(settings: Settings, name: str) -> tuple[dict[str, Any], str]:
    """The table of a policy in the settings, and the file that it stands in. Raises CkptError where there is none."""
    if name not in settings.policies:
        there = ", ".join(settings.policies)
        hint = f"the settings have {there}" if there else f"[policies.{name}] in ckpt.toml makes one, as in keep = 3"
        raise CkptError(f"there is no policy {name!a} in the settings", hint)
    table = dict(settings.policies[name])
    origin = settings.origins.get("policies", "the settings")
    if not set(table) - {"metric"}:
        raise CkptError(
            f"the policy {name!a} of {origin} says nothing to keep", "keep = 3 keeps the last 3 of each run"
        )
    return table, origin


def joined(*sets: Ruleset) -> Ruleset:
    """The policies of all; of two size budgets the larger, for what one keeps is kept."""
    policies = {name: policy for one in sets for name, policy in one.policies.items()}
    budgets = [one.budget for one in sets if one.budget]
    return Ruleset(policies, max(budgets, key=lambda budget: budget.bytes, default=None))


def _number(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise CkptError(f"{key} takes a whole number, not {value!a}")
    return value


def _text(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise CkptError(f"{key} takes a text in quotes, not {value!a}")
    return value
