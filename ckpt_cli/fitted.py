"""What the shapes of tensors say of a configuration: which numbers they decide, and where they leave it open. No I/O.

How many heads there are stands in no matrix of queries, keys and values: only where gates or a norm have a row a head
is it decided. A width, a number of layers and the rows of a vocabulary always are, padding aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ckpt_cli.errors import counted
from ckpt_cli.revisions import PADDING, padded

Shape = tuple[int, ...]
Config = Mapping[str, Any]
Shapes = Mapping[str, Shape]
_WTE, _WPE, _ROUTER = "transformer.wte.weight", "transformer.wpe.weight", ".router.gate.weight"
# Decoders of transformers in the names of Llama, with what each takes for the heads of keys where nobody says.
HEADED: dict[str, int | None] = {
    "llama": None, "mistral": 8, "qwen2": 32, "qwen3": 32, "gemma": 16, "gemma2": 4, "phi3": None, "nanochat": None,
}  # fmt: skip
# Those that have a size of head of their own, whatever the width.
_OWN_HEAD_SIZE = ("qwen3", "gemma", "gemma2")
# Those whose own default is that the head is not tied to the embedding.
_UNTIED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "nanochat")
_POSITIONS = 1024


class Fit(NamedTuple):
    """A key that does not fit, the value that does (None where the shapes leave it open), and why."""

    key: str
    value: Any
    reason: str


def unknown(kind: str, config: Config, shapes: Shapes) -> str | None:
    """Why the shapes can say nothing of a configuration, None where they do; `kind` is who wrote it."""
    if not shapes:
        return "there are no tensors to compare it with"
    if kind == "hf":
        told = config.get("model_type")
        if _is_packed(config, shapes):
            return "its tensors are quantized, and their shapes are not those of the model"
        if not isinstance(told, str):
            return "it does not say its model_type"
        if told != "gpt2" and told not in HEADED:
            return f"nothing is known of the model type {told[:80]!a}"
        name = "wte.weight" if told == "gpt2" else "embed_tokens.weight"
    else:
        name = "tok_embeddings.weight" if kind == "meta" else _WTE
    rows = next((shape for key, shape in shapes.items() if key == name or key.endswith(f".{name}")), ())
    if len(rows) != 2:
        return f"there is no {name} among its tensors"
    if kind == "meta" and _is_sliced(shapes, rows[1]):
        return "its tensors are slices, one a rank, whose shapes are not those of the model"
    return None


def nanochat_fits(config: Config, shapes: Shapes) -> Iterator[Fit]:
    """A `model_config` of nanochat; without its embedding nothing is said."""
    rows, width = _matrix(shapes, _WTE)
    if not width:
        return
    yield from _layers(config, "n_layer", shapes, r"transformer\.h\.([0-9]+)\.")
    yield from _equal(config, "n_embd", width, f"{_WTE} has {width} columns")
    yield from _padded(config, rows, shapes)
    yield from _nanochat_heads(config, width, shapes)
    # How many of them a token takes is not there: experts are as wide as that makes them, but for a rounding.
    if experts := next((shape[0] for key, shape in shapes.items() if shape and key.endswith(_ROUTER)), 0):
        yield from _equal(config, "num_experts", experts, f"the router has {counted(experts, 'row')}, one an expert")


def _padded(config: Config, rows: int, shapes: Shapes) -> Iterator[Fit]:
    """The vocabulary, of which the matrices have as many rows, or more to fill the last 64."""
    told = config.get("vocab_size")
    if type(told) is int and told > 0 and rows in (told, padded(told)):
        return
    pairs, _ = _matrix(shapes, "bigram_embed.embed.weight")
    if pairs and pairs % 5 == 0 and padded(pairs // 5) in (rows, pairs // 5):
        yield Fit("vocab_size", pairs // 5, f"the bigram embedding has 5 rows a token, {pairs}")
    elif rows % PADDING:
        yield Fit("vocab_size", rows, f"{_WTE} has {rows} rows, without padding")
    else:
        where = f"{_WTE} has {rows} rows, the last of which may be padding"
        yield Fit("vocab_size", None, f"{where}: from {rows - PADDING + 1} to {rows} tokens, as the tokenizer has")


def _nanochat_heads(config: Config, width: int, shapes: Shapes) -> Iterator[Fit]:
    name = "transformer.h.0.attn.c_k.weight"
    rows, _ = _matrix(shapes, name)
    gates = next((shape[0] for key, shape in shapes.items() if key.endswith(".ve_gate.weight") and shape), 0)
    heads, keys = _count(config, "n_head"), _count(config, "n_kv_head")
    if not rows:
        return
    if gates and rows % gates == 0 and width % (rows // gates) == 0:
        size = rows // gates
        yield from _equal(config, "n_kv_head", gates, f"each gate has {gates} rows, one a head of keys")
        yield from _equal(config, "n_head", width // size, f"{width} columns are {_heads(width, size)}")
    elif heads and keys:
        if width % heads or rows != keys * (width // heads):
            what = f"{heads} heads, {keys} of keys, do not make {width} columns and the {rows} rows of {name}"
            for key in ("n_head", "n_kv_head"):
                yield Fit(key, None, f"{what}, and the shapes fit several numbers")
    elif heads and width % heads == 0 and rows % (width // heads) == 0:
        size = width // heads
        yield Fit("n_kv_head", rows // size, f"{name} has {rows} rows, which are {_heads(rows, size)}")
    elif keys and rows % keys == 0 and width % (rows // keys) == 0:
        size = rows // keys
        yield Fit("n_head", width // size, f"{width} columns are {_heads(width, size)}")
    else:
        for key in ("n_head", "n_kv_head"):
            if not _count(config, key) or key == "n_head":
                yield Fit(key, None, f"{width} columns and {rows} rows of {name} fit several numbers of heads")


def gpt2_fits(config: Config, shapes: Shapes, says_bias: bool) -> Iterator[Fit]:
    """nano-gpt, nanoGPT and build-nanogpt; only nanoGPT's configuration has `bias`."""
    rows, width = _matrix(shapes, _WTE)
    if not width:
        return
    yield from _layers(config, "n_layer", shapes, r"transformer\.h\.([0-9]+)\.")
    yield from _equal(config, "n_embd", width, f"{_WTE} has {width} columns")
    yield from _equal(config, "vocab_size", rows, f"{_WTE} has {rows} rows")
    block, _ = _matrix(shapes, _WPE)
    if block:
        yield from _equal(config, "block_size", block, f"{_WPE} has {block} rows")
    if says_bias:
        there = "transformer.h.0.ln_1.bias" in shapes
        yield from _equal(config, "bias", there, f"its norms have {'a' if there else 'no'} bias")
    yield from _undecided_heads(config, "n_head", width)


def decoder_fits(config: Config, shapes: Shapes) -> Iterator[Fit]:
    """A config.json; of a model type that is not known here nothing is said."""
    kind = config.get("model_type")
    if _is_packed(config, shapes):
        return
    if kind == "gpt2":
        yield from _gpt2_config(config, shapes)
    elif isinstance(kind, str) and kind in HEADED:
        yield from _llama_config(config, shapes, kind)


def _gpt2_config(config: Config, shapes: Shapes) -> Iterator[Fit]:
    bare = {name.removeprefix("transformer."): shape for name, shape in shapes.items()}
    rows, width = _matrix(bare, "wte.weight")
    block, _ = _matrix(bare, "wpe.weight")
    if not width or not block:
        return
    # What the file does not say is what the class of transformers takes.
    told = {"n_positions": _POSITIONS, "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, **config}
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings"}
    told |= {key: config[other] for key, other in names.items() if other in config and key not in config}
    yield from _layers(told, "n_layer", bare, r"h\.([0-9]+)\.")
    yield from _equal(told, "n_embd", width, f"wte.weight has {width} columns")
    yield from _equal(told, "vocab_size", rows, f"wte.weight has {rows} rows")
    yield from _equal(told, "n_positions", block, f"wpe.weight has {block} rows")
    yield from _undecided_heads(told, "n_head", width)


def _llama_config(config: Config, shapes: Shapes, kind: str) -> Iterator[Fit]:
    headed = any(name.startswith("model.") for name in shapes)
    bare = {name.removeprefix("model."): shape for name, shape in shapes.items()}
    rows, width = _matrix(bare, "embed_tokens.weight")
    if not width:
        return
    yield from _equal(config, "hidden_size", width, f"embed_tokens.weight has {width} columns")
    yield from _equal(config, "vocab_size", rows, f"embed_tokens.weight has {rows} rows")
    yield from _layers(config, "num_hidden_layers", bare, r"layers\.([0-9]+)\.")
    for name, parts in (("gate_proj", 1), ("gate_up_proj", 2), ("fc1", 1)):
        wide, _ = _matrix(bare, f"layers.0.mlp.{name}.weight")
        if wide and wide % parts == 0:
            yield from _equal(config, "intermediate_size", wide // parts, f"mlp.{name}.weight has {wide} rows")
    if headed and "lm_head.weight" not in shapes and not _headless(config):
        tied = config.get("tie_word_embeddings", kind not in _UNTIED)
        if tied is not True:
            reason = "there is no lm_head.weight: without this a head of random numbers is put in its place"
            yield Fit("tie_word_embeddings", True, reason)
    if kind == "llama" and "layers.0.self_attn.q_proj.bias" in bare:
        yield from _equal(config, "attention_bias", True, "q_proj has a bias")
    yield from _llama_heads(config, bare, width, kind)


def _llama_heads(config: Config, shapes: Shapes, width: int, kind: str) -> Iterator[Fit]:
    queries, _ = _matrix(shapes, "layers.0.self_attn.q_proj.weight")
    keys, _ = _matrix(shapes, "layers.0.self_attn.k_proj.weight")
    heads, shared = _count(config, "num_attention_heads"), _count(config, "num_key_value_heads")
    norm = shapes.get("layers.0.self_attn.q_norm.weight", ())
    size = _count(config, "head_dim")
    sure = size is not None
    if len(norm) == 1 and norm[0]:
        yield from _equal(config, "head_dim", norm[0], f"q_norm.weight has {norm[0]} numbers")
        size, sure = norm[0], True
    if not queries or not keys or (size is None and kind in _OWN_HEAD_SIZE):
        return
    if size is None:
        if heads is None or width % heads:
            yield from _undecided_heads(config, "num_attention_heads", width)
            return
        size = width // heads
    if queries % size or keys % size or (heads is not None and queries != heads * size and not sure):
        yield Fit(
            "num_attention_heads", None, f"q_proj.weight has {queries} rows, which are not {heads} heads of {size}"
        )
        return
    yield from _equal(config, "num_attention_heads", queries // size, f"{queries} rows are heads of {size}")
    taken = HEADED[kind] if HEADED[kind] is not None else heads
    if shared is None and taken == keys // size:
        return
    reason = f"k_proj.weight has {keys} rows, which are {_heads(keys, size)}"
    if shared is None or sure:
        yield from _equal(config, "num_key_value_heads", keys // size, reason)
    elif shared != keys // size:
        yield Fit("num_key_value_heads", None, f"{reason}, if {heads} heads of queries are right: nothing says which")


def params_fits(config: Config, shapes: Shapes) -> Iterator[Fit]:
    """A params.json of Meta's; the vocabulary is -1 where the tokenizer was to say it."""
    rows, width = _matrix(shapes, "tok_embeddings.weight")
    keys, _ = _matrix(shapes, "layers.0.attention.wk.weight")
    if not width or _is_sliced(shapes, width):
        return
    yield from _equal(config, "dim", width, f"tok_embeddings.weight has {width} columns")
    yield from _layers(config, "n_layers", shapes, r"layers\.([0-9]+)\.")
    if config.get("vocab_size", -1) != -1:
        yield from _equal(config, "vocab_size", rows, f"tok_embeddings.weight has {rows} rows")
    heads, shared = _count(config, "n_heads"), _count(config, "n_kv_heads")
    if not heads or width % heads or keys % (width // heads):
        yield Fit(
            "n_heads", None, f"{config.get('n_heads')} heads do not fit {width} columns; the shapes leave it open"
        )
        return
    fitting = keys // (width // heads)
    reason = f"wk.weight has {keys} rows, which are {_heads(keys, width // heads)}"
    if shared is None and fitting != heads:
        yield Fit("n_kv_heads", fitting, reason)
    elif shared is not None and shared != fitting:
        yield Fit("n_kv_heads", None, f"{reason}, if n_heads {heads} is right: nothing says which")


def _is_packed(config: Config, shapes: Shapes) -> bool:
    """Whether its matrices are quantized, several numbers in one: `quantization` is what MLX calls it."""
    return not {"quantization_config", "quantization"}.isdisjoint(config) or any(
        name.endswith((".qweight", ".scales")) for name in shapes
    )


def _is_sliced(shapes: Shapes, width: int) -> bool:
    """Whether a model of Meta's is split over ranks: its queries by rows, its embedding by columns to Llama 2."""
    return _matrix(shapes, "layers.0.attention.wq.weight") != (width, width)


def _equal(config: Config, key: str, fitting: Any, reason: str) -> Iterator[Fit]:
    told = config.get(key)
    if type(told) is not type(fitting) or told != fitting:
        yield Fit(key, fitting, reason)


def _layers(config: Config, key: str, shapes: Shapes, pattern: str) -> Iterator[Fit]:
    """How many layers there are; of those with a gap, or with layers that predict more tokens, nothing is said."""
    numbers = {int(match[1]) for name in shapes if (match := re.match(pattern, name)) and len(match[1]) < 6}
    there = max(numbers, default=-1) + 1
    if there != len(numbers) or not there or config.get("num_nextn_predict_layers"):
        return
    yield from _equal(config, key, there, f"there are tensors of {counted(there, 'layer')}")


def _undecided_heads(config: Config, key: str, width: int) -> Iterator[Fit]:
    heads = _count(config, key)
    if heads is None or width % heads:
        yield Fit(key, None, f"{config.get(key)} heads do not divide {width} columns; the shapes leave it open")


def _heads(rows: int, size: int) -> str:
    """As many as there are rows for."""
    return f"{counted(rows // size, 'head')} of {size}"


def _headless(config: Config) -> bool:
    """Whether it says that it is a model without a head, as those for embeddings are."""
    classes = config.get("architectures")
    return isinstance(classes, list) and not any("ForCausalLM" in str(name) for name in classes)


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    """Rows and columns; zeros where there is no such matrix."""
    shape = shapes.get(name, ())
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)


def _count(config: Config, key: str) -> int | None:
    """A positive whole number of the configuration, None for anything else."""
    value = config.get(key)
    return value if type(value) is int and value > 0 else None
