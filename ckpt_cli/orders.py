"""What `ckpt load-test` is to try, as it travels from the process that was asked to the one that does it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import Checkpoint, Part, Problem, Ranks


class Order(NamedTuple):
    """What is to be tried. `file` is what TARGET named, `base` the metadata of the base run of the same tag, `given`
    what --set says, `device` a word as --device takes it, `config` a file that says what the checkpoint does not."""

    checkpoint: Checkpoint | None
    file: str | None
    base: dict[str, Any] | None = None
    given: dict[str, str] | None = None
    family: str | None = None
    model: str | None = None
    device: str = "auto"
    dtype: str | None = None
    train: bool = False
    tokens: list[int] | None = None
    save_logits: str | None = None
    force: bool = False
    config: str | None = None


def written(order: Order) -> str:
    """One line of JSON, for `order_of` to read."""
    return json.dumps(order)


def order_of(text: str) -> Order:
    """What `written` wrote."""
    order = Order(*json.loads(text))
    fields: Any = order.checkpoint
    if fields is None:
        return order
    found = Checkpoint(*fields)
    return order._replace(
        checkpoint=found._replace(
            parts=tuple(Part(*part) for part in found.parts),
            problems=tuple(Problem(*problem) for problem in found.problems),
            ranks=found.ranks and Ranks(*map(tuple, found.ranks)),
        )
    )
