"""Which checkpoint is best: the metric, its direction, the choice."""

from collections.abc import Sequence

from ckpt_cli.checkpoint import DEFAULT_METRICS, Checkpoint, Goal, Metric, in_order, pick_metric
from ckpt_cli.errors import CkptError, NotFound


def parse_metric(text: str | None) -> tuple[str | None, Goal | None]:
    """The name and direction that NAME or NAME:min|max says; that of the usual names is known, else it is None.

    Raises CkptError for another word after the colon.
    """
    if not text:
        return None, None
    name, colon, goal = text.rpartition(":")
    if not colon:
        return text, "min" if text in DEFAULT_METRICS else None
    if not name or goal not in ("min", "max"):
        raise CkptError(f"{text!a} is no metric: after the colon stands min or max")
    return name, "max" if goal == "max" else "min"


def best_of(checkpoints: Sequence[Checkpoint], metric: str | None) -> tuple[Checkpoint, Metric]:
    """The checkpoint with the best value of a metric; of equals the later one.

    Raises NotFound when none has it, CkptError when it is not known which direction is better.
    """
    name, goal = parse_metric(metric)
    if name and goal is None:
        raise CkptError(
            f"whether a lower or a higher {name!a} is better is not known", f"--metric {name}:min or {name}:max"
        )
    for candidate in (name,) if name else DEFAULT_METRICS:
        having = [(c, m) for c in checkpoints if (m := pick_metric(c, candidate, goal))]
        if having:
            sign = 1 if goal == "max" else -1
            return max(having, key=lambda pair: (sign * pair[1].value, in_order(pair[0])))
    raise NotFound(f"no complete checkpoint there has the metric {name or ' or '.join(DEFAULT_METRICS)}")
