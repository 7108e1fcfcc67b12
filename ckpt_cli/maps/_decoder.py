"""Carries a state dict over from one column of a family's table to another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.items import Item, Mapped
from ckpt_cli.maps import HINT, Source, renamed
from ckpt_cli.maps._heads import Heads, absent, heads_of
from ckpt_cli.maps._params import check, config_of, notes_on, params_of
from ckpt_cli.maps._table import EMBEDDING, HEAD, SCORE, Family, Fused, Row
from ckpt_cli.maps._views import end_to_end, reordered, rows
from ckpt_cli.tensor_file import TensorInfo

_LAYER = re.compile(r"((?:model\.)?layers\.)([0-9]+)(\..+)")


class _Names(NamedTuple):
    """A family's names in one naming: what each pattern of a name stands for."""

    rows: dict[str, Row]
    fused: dict[str, Fused]


def carried_over(family: Family | None, source: Source, target: str) -> Mapped:
    """The state dict in the naming of `target`: hf, torchtune or meta; `family` is None where none is known.

    Raises CkptError for a tensor that the family has no row for, for one that is missing, for shapes that the
    configuration does not fit, and for what it does not say.
    """
    if family is None:
        raise absent(source, ("model_type", "num_attention_heads", "num_key_value_heads", "hidden_size"))
    if target == "meta" and source.model_type not in family.meta:
        what = f"{source.path} is of the model type {source.model_type!a}, which Meta's code does not know"
        raise CkptError(what, HINT)
    head = SCORE if _judges(source) else HEAD
    names = _Names(
        {name: row for row in (*family.rows, head) if (name := row.in_(source.naming))},
        {fused.hf: fused for fused in family.fused},
    )
    kept, dropped = _sorted_out(family, source, names)
    tied, notes = _tied(family, source, head)
    turned = family.permuted and (source.naming == "hf") is not (target == "hf")
    heads = heads_of(source) if turned or any(fused.heads for fused in family.fused) else None
    items = []
    for name, tensor in kept.items():
        if not (tied and name == head.in_(source.naming)):
            items += _carried(names, source, target, name, tensor, heads, turned)
    ties: tuple[tuple[str, str], ...] = ()
    last = head.in_(source.naming) or ""
    if tied and target != "meta":
        ties = ((source.tensors[last].name, EMBEDDING.in_(target) or ""),) if last in kept else ()
    elif tied:
        # Meta has the head also where it is the embedding, of which it is then another name.
        embedding = kept[EMBEDDING.in_(source.naming) or ""]
        items.append(Item(head.in_(target) or "", embedding, embedding.shape, embedding.dtype))
    config = _configuration(family, source, target, items, tied)
    more = notes_on(source, target)
    return Mapped(tuple(items), renamed(source, items), tuple(dropped), ties, config, (*notes, *more))


def _judges(source: Source) -> bool:
    """Whether it gives a score instead of words."""
    names = source.config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith("SequenceClassification") for name in names)


def _sorted_out(family: Family, source: Source, names: _Names) -> tuple[dict[str, TensorInfo], list[tuple[str, str]]]:
    """The tensors that have a row, and (name, reason) of those that no other naming has.

    Raises CkptError for one that is neither, and for one that every layer must have and one lacks.
    """
    kept: dict[str, TensorInfo] = {}
    dropped = []
    layers = -1
    for name, tensor in source.tensors.items():
        pattern, layer = _pattern(name)
        reason = next((why for form, why in family.dropped if re.fullmatch(form, name)), None)
        if pattern in names.rows or _is_fused(names, source, pattern):
            kept[name] = tensor
            layers = max(layers, layer)
        elif reason:
            dropped.append((tensor.name, reason))
        else:
            what = f"{source.path}: no map of {source.model_type} from {source.naming} knows tensor {name!a}"
            raise CkptError(what, HINT, kind="unknown-tensor", record=tensor.name)
    said = source.config.get("num_hidden_layers", source.params.get("n_layers", layers + 1))
    if isinstance(said, int) and said < layers + 1:
        last = next(tensor.name for name, tensor in kept.items() if _pattern(name)[1] == layers)
        what = f"{source.path} has {layers + 1} layers, tensor {last!a} in one, and its configuration says {said}"
        raise CkptError(what, kind="unknown-tensor", record=last)
    for name in _expected(names, source, min(said, 1 << 16) if isinstance(said, int) else layers + 1):
        if name not in kept:
            hint = "a model in several files is converted as a whole"
            raise CkptError(f"{source.path} lacks tensor {name!a}", hint, kind="missing-tensor", record=name)
    return kept, dropped


def _pattern(name: str) -> tuple[str, int]:
    """A name with {n} for its layer, and the layer; -1 for one of no layer."""
    match = _LAYER.fullmatch(name)
    return (f"{match[1]}{{n}}{match[3]}", int(match[2])) if match else (name, -1)


def _is_fused(names: _Names, source: Source, pattern: str) -> bool:
    if source.naming == "hf":
        return pattern in names.fused
    return any(pattern in fused.torchtune for fused in names.fused.values())


def _expected(names: _Names, source: Source, layers: int) -> Iterator[str]:
    """Every name there must be; the head may be tied, which is looked at apart."""
    patterns = [name for name, row in names.rows.items() if not row.optional and row not in (HEAD, SCORE)]
    for fused in names.fused.values():
        patterns += [fused.hf] if source.naming == "hf" else fused.torchtune
    for pattern in patterns:
        if "{n}" not in pattern:
            yield pattern
        else:
            yield from (pattern.replace("{n}", str(layer)) for layer in range(layers))


def _tied(family: Family, source: Source, head: Row) -> tuple[bool, tuple[str, ...]]:
    """Whether the head is the embedding: as the configuration says, and where it does not, as the bytes are; and what
    is to be said of that."""
    embedding = source.tensors.get(EMBEDDING.in_(source.naming) or "")
    last = source.tensors.get(head.in_(source.naming) or "")
    said: Any = None
    if source.config:
        said = source.config.get("tie_word_embeddings", source.model_type in family.tied)
    assert embedding is not None
    if last is None:
        # torchtune has no head only where it is the embedding.
        if said or (said is None and source.naming == "torchtune"):
            return True, ()
        name = head.in_(source.naming)
        what = f"{source.path} lacks tensor {name!a}, and its configuration does not say tie_word_embeddings"
        raise CkptError(what, kind="missing-tensor", record=name)
    if head is SCORE or said is False:
        return False, ()
    if source.same(embedding, last):
        return True, ()
    if said is None:
        return False, ()
    return False, (f"{last.name} is not the embedding, whatever tie_word_embeddings says: it is kept",)


def _carried(
    names: _Names, source: Source, target: str, name: str, tensor: TensorInfo, heads: Heads | None, turned: bool
) -> list[Item]:
    """What becomes of one tensor; nothing of one that is written with another. `turned` is whether the rows of heads
    change their order."""
    pattern, layer = _pattern(name)
    row = names.rows.get(pattern)
    if row:
        new = row.in_(target)
        assert new
        view = tensor
        if heads and turned and row.heads:
            count = heads.checked(source, name, tensor, row.heads)
            view = reordered(tensor, count, "halves" if source.naming == "hf" else "pairs")
        return [Item(new.replace("{n}", str(layer)), view, tensor.shape, tensor.dtype)]
    if source.naming == "hf":
        return _parts(names.fused[pattern], source, str(layer), tensor, heads)
    for fused in names.fused.values():
        if pattern == fused.torchtune[0]:
            return [_whole(fused, source, str(layer))]
    return []


def _parts(fused: Fused, source: Source, layer: str, tensor: TensorInfo, heads: Heads | None) -> list[Item]:
    """The tensors of torchtune that one of Hugging Face is made of."""
    height = tensor.shape[0] if tensor.shape else 0
    if fused.heads:
        assert heads
        heights = [heads.query * heads.size, heads.key * heads.size, heads.key * heads.size]
    else:
        heights = [height // len(fused.torchtune)] * len(fused.torchtune)
    if sum(heights) != height:
        said = f"{heads.query} and {heads.key} heads of {heads.size}" if fused.heads and heads else "equal parts"
        raise CkptError(f"{source.path}: tensor {tensor.name!a} has {height} rows, which are no {said}")
    items, first = [], 0
    for name, count in zip(fused.torchtune, heights):
        view = rows(tensor, first, count)
        items.append(Item(name.replace("{n}", layer), view, view.shape, view.dtype))
        first += count
    return items


def _whole(fused: Fused, source: Source, layer: str) -> Item:
    """The tensor of Hugging Face that several of torchtune make."""
    parts = [source.tensors[name.replace("{n}", layer)] for name in fused.torchtune]
    name = fused.hf.replace("{n}", layer)
    if len({(part.dtype, part.shape[1:]) for part in parts}) != 1:
        what = f"{source.path}: what would be {name!a} differs in dtype or width"
        raise CkptError(what, kind="wrong-shape", record=parts[0].name)
    view = end_to_end(parts)
    return Item(name, view, view.shape, view.dtype)


def _configuration(
    family: Family, source: Source, target: str, items: Sequence[Item], tied: bool
) -> dict[str, Any] | None:
    """The configuration that goes with the target, held against the shapes it describes."""
    if target == "torchtune":
        return None
    shapes = {item.name: item.shape for item in items}
    if target == "meta":
        return source.params or params_of(source, shapes)
    config = dict(source.config) or config_of(source, shapes, tied)
    if config.get("tie_word_embeddings", source.model_type in family.tied) is not tied and not _judges(source):
        config["tie_word_embeddings"] = tied
    check(source.path, config, shapes, {item.name: item.tensor.name for item in items})
    return config
