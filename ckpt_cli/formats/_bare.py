"""A pickle in no format of torch: it is not read, but torch unpickles whatever it does not know, and so may anybody."""

from __future__ import annotations

from ckpt_cli.formats import ByteSource
from ckpt_cli.formats._inert import Malformed, RunsCode
from ckpt_cli.formats._pickle import load
from ckpt_cli.formats._stream import range_of


def is_pickle(source: ByteSource, limit: int) -> bool:
    """Whether its first `limit` bytes hold one. Raises RunsCode where that would run code."""
    try:
        load(range_of(source, 0, min(source.size, limit)), {}, {}, _nothing_outside)
    except Malformed:
        return False
    except RunsCode as error:
        error.message = f"{source.path} is refused: {error.message}"
        raise
    return True


def _nothing_outside(pid: object) -> None:
    raise Malformed("it refers to something outside")
