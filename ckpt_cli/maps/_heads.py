"""How many heads a model has, and of which size: it is not in the shapes, so it is in a configuration or nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from ckpt_cli.errors import CkptError, counted
from ckpt_cli.maps import Source
from ckpt_cli.tensor_file import TensorInfo


class Heads(NamedTuple):
    """How many query heads and key heads (None where that is not said), and how many rows each has."""

    query: int
    keys: int | None
    size: int

    @property
    def key(self) -> int:
        """Where nobody says how many there are, each query head has its own."""
        return self.query if self.keys is None else self.keys

    def checked(self, source: Source, name: str, tensor: TensorInfo, of: Literal["query", "key"]) -> int:
        """How many heads the rows of a tensor are. Raises CkptError where they are another number of rows."""
        count = self.query if of == "query" else self.key
        rows = tensor.shape[0] if tensor.shape else 0
        if rows == count * self.size:
            return count
        if of == "key" and self.keys is None:
            raise absent(source, ("n_kv_heads" if source.params and not source.config else "num_key_value_heads",))
        what = f"{source.path}: tensor {name!a} has {rows} rows, which are not {counted(count, 'head')} of {self.size}"
        raise CkptError(what, kind="wrong-shape", record=name)


def heads_of(source: Source) -> Heads:
    """As the configuration says. Raises CkptError, naming the keys, where it does not."""
    count: Any
    keys: Any
    width: Any
    size: Any = None
    if source.params and not source.config:
        count, keys, width = (source.params.get(key) for key in ("n_heads", "n_kv_heads", "dim"))
        names = ("n_heads", "dim")
    else:
        config = source.config
        count, keys, width = (config.get(k) for k in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
        size = config.get("head_dim")
        names = ("num_attention_heads", "hidden_size")
        other = source.params.get("n_heads", count)
        if count is not None and other != count:
            what = (
                f"{source.path}: its params.json says n_heads {other!a}, its config.json num_attention_heads {count!a}"
            )
            raise CkptError(what)
    missing = [name for name, value in zip(names, (count, width)) if value is None]
    if size is not None and names[1] in missing:
        missing.remove(names[1])
    if missing:
        if keys is None:
            missing.append("n_kv_heads" if names[0] == "n_heads" else "num_key_value_heads")
        raise absent(source, missing)
    if size is None:
        size = width // count if _counts(width, count) and width % count == 0 else None
    if not _counts(count, size) or not (keys is None or _counts(keys)) or size % 2:
        raise CkptError(f"{source.path}: its configuration says {count!a} heads of {width!a}, which no model has")
    return Heads(count, keys, size)


def absent(source: Source, keys: Iterable[str]) -> CkptError:
    """That the configuration does not say what the tensors cannot."""
    known = {**source.config, **source.params}
    names = ", ".join(key for key in keys if key not in known)
    what = f"{source.path} lacks a configuration that says {names}"
    return CkptError(what, "--config FILE, a config.json or params.json, supplies it")


def _counts(*values: Any) -> bool:
    return all(type(value) is int and value > 0 for value in values)
