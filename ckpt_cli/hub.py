"""The small files that lie with the weights on the Hugging Face hub and go along with them: tokenizer, generation."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ckpt_cli.formats import ByteSource
from ckpt_cli.items import Item
from ckpt_cli.tensor_file import Storage, TensorInfo
from ckpt_cli.writing import Output

_TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"})
_WITH_WEIGHTS = frozenset(
    """
    tokenizer_config.json special_tokens_map.json added_tokens.json merges.txt generation_config.json
    chat_template.jinja chat_template.json preprocessor_config.json processor_config.json README.md LICENSE
    LICENSE.txt NOTICE USE_POLICY.md
    """.split()
)
# Bytes of one: a large tokenizer has a third of it.
_MOST = 64 << 20


def hub_files(folders: Iterable[str], target: str, to: str) -> tuple[list[Output], list[str]]:
    """Copies of the files of `folders` that `target` should have too, and what is to be said of those it cannot.

    Meta's folders have a tokenizer alone.
    """
    wanted = _TOKENIZERS | _WITH_WEIGHTS if to == "hf" else frozenset({"tokenizer.model"})
    copies: dict[str, Output] = {}
    pickled = []
    for folder in sorted(folders):
        for name in sorted(os.listdir(folder or ".")):
            path = os.path.join(folder, name)
            if name in wanted and name not in copies and os.path.isfile(path) and os.path.getsize(path) <= _MOST:
                copies[name] = _copy(path, os.path.join(target, name))
        # nanochat keeps its tokenizer at the top of its base directory.
        top = os.path.dirname(os.path.dirname(folder))
        places = (folder, os.path.join(folder, "tokenizer"), os.path.join(top, "tokenizer"))
        pickled += [path for place in places if os.path.isfile(path := os.path.join(place, "tokenizer.pkl"))]
    if to == "hf" and pickled and not _TOKENIZERS & copies.keys():
        return list(copies.values()), [f"the tokenizer does not go along: {pickled[0]} is a pickle"]
    return list(copies.values()), []


def _copy(path: str, target: str) -> Output:
    """The file to be written anew as it is: a tensor of bytes, which is read back as any other."""
    size = os.path.getsize(path)
    place = Storage(os.path.basename(path), path, 0, size)
    tensor = TensorInfo(place.name, "uint8", (size,), (1,), 0, 1, place)

    def check(source: ByteSource) -> None:
        """Its bytes are all that it is."""

    return Output(target, (Item(place.name, tensor, (size,), "uint8"),) if size else (b"",), check)
