"""How many tokens the tokenizer has that lies in a checkpoint's tree. Nothing of it is unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from ckpt_cli.checkpoint import Checkpoint
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import FileSource
from ckpt_cli.formats._inert import Opaque
from ckpt_cli.formats._pickle import load
from ckpt_cli.formats._stream import range_of
from ckpt_cli.tensors import read_tensors

# Of a tokenizer with some hundred thousand tokens.
_MOST_BYTES = 64 << 20
# nanochat keeps its tokenizer beside the directories of its sources, which hold the runs; an experiment as much higher.
_ABOVE = 3


class Tokenizer(NamedTuple):
    """Where it lies, how many tokens it has, and whether a model must have exactly as many: else it may have more."""

    path: str
    tokens: int
    exactly: bool


def fits(checkpoint: Checkpoint | None, size: int) -> None:
    """Raises Damaged, with the file, for a tokenizer that a vocabulary of `size` has no room for, or too much."""
    for one in _tokenizers(checkpoint):
        if one.tokens > size or (one.exactly and one.tokens != size):
            what = f"{one.path} has {one.tokens} tokens, the configuration says vocab_size {size}"
            raise Damaged(what, path=one.path, kind="vocabulary")


def _tokenizers(checkpoint: Checkpoint | None) -> Iterator[Tokenizer]:
    """What lies with the checkpoint, or where nanochat puts it, and can be counted."""
    if checkpoint is None:
        return
    shared = os.path.join(checkpoint.dir, "tokenizer.json")
    for path, count, exactly in ((shared, _of_json, False), *_of_tree(checkpoint)):
        # A tokenizer that cannot be told is none that can be held against the model.
        with suppress(CkptError, OSError, ValueError, RecursionError):
            tokens = count(path) if os.path.isfile(path) else None
            if tokens:
                yield Tokenizer(path, tokens, exactly)


def _of_tree(checkpoint: Checkpoint) -> Iterator[tuple[str, Callable[[str], int | None], bool]]:
    """(path, what counts it, whether the model must have exactly as many) of nanochat's tokenizer above a run."""
    if checkpoint.layout != "nanochat":
        return
    folder = checkpoint.dir
    for _ in range(_ABOVE):
        folder = os.path.dirname(folder)
        place = os.path.join(folder, "tokenizer")
        if os.path.isdir(place):
            yield os.path.join(place, "tokenizer.pkl"), _of_pickle, True
            yield os.path.join(place, "token_bytes.pt"), _of_lengths, True
            return


def _of_lengths(path: str) -> int | None:
    """nanochat's token_bytes.pt: the number of bytes of each token, one after another."""
    tensors = read_tensors(path).tensors
    return tensors[0].shape[0] if len(tensors) == 1 and len(tensors[0].shape) == 1 else None


def _of_pickle(path: str) -> int | None:
    """A tiktoken Encoding: the state that it was pickled with has ranks by token, and special tokens beside them."""
    with FileSource(path) as source:
        if source.size > _MOST_BYTES:
            return None
        found = load(range_of(source, 0, source.size), {}, {}, lambda wanted: None).value
    state = found.state if isinstance(found, Opaque) else None
    if not isinstance(state, dict):
        return None
    tables = [state.get("mergeable_ranks"), state.get("special_tokens")]
    return _beyond(number for table in tables if isinstance(table, dict) for number in table.values())


def _of_json(path: str) -> int | None:
    """A tokenizer.json of Hugging Face: a vocabulary by token, or as a list, and tokens that were added."""
    with FileSource(path) as source:
        if source.size > _MOST_BYTES:
            return None
        found = json.loads(source.read_at(0, source.size))
    model = found.get("model") if isinstance(found, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if isinstance(vocabulary, list):
        numbers = [len(vocabulary) - 1]
    added = found.get("added_tokens") if isinstance(found, dict) else None
    numbers += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return _beyond(iter(numbers))


def _beyond(numbers: Iterator[Any]) -> int | None:
    """One more than the largest number: tokens are counted from 0."""
    largest = max((number for number in numbers if type(number) is int and number >= 0), default=None)
    return None if largest is None else largest + 1
