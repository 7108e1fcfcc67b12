"""GPT-2 as nano-gpt, nanoGPT and build-nanogpt write it -> transformers' GPT2LMHeadModel.

transformers keeps four weights of a layer the other way round (its Conv1D), has every bias, and reads the size of the
context as `n_positions`. The three trainers name weights alike and differ in one function, so the trainer is told from
what else its file holds, never guessed.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.items import Item, Mapped
from ckpt_cli.maps import HINT, Source, renamed
from ckpt_cli.maps._views import transposed, zeros
from ckpt_cli.tensor_file import TensorInfo

NAMINGS = {"gpt2": r"transformer\.h\.[0-9]+\.attn\.c_attn\.weight"}
TARGETS = ("hf",)


class Trainer(NamedTuple):
    """`prefix` precedes its weights, `settings` the model's settings, `mark` is among the values of no other's file."""

    name: str
    prefix: str
    settings: str
    mark: str
    activation: str


TRAINERS = (
    Trainer("nano-gpt", "model_state_dict.", "config.", "config.block_size", "gelu_new"),
    Trainer("nanoGPT", "model.", "model_args.", "model_args.block_size", "gelu"),
    Trainer("build-nanogpt", "model.", "config.", "config.<class>", "gelu_new"),
)

# Of a layer: shape in units of n_embd as the trainers have it, and whether transformers has it transposed.
_LAYER: dict[str, tuple[tuple[int, ...], bool]] = {
    "ln_1.weight": ((1,), False),
    "ln_1.bias": ((1,), False),
    "attn.c_attn.weight": ((3, 1), True),
    "attn.c_attn.bias": ((3,), False),
    "attn.c_proj.weight": ((1, 1), True),
    "attn.c_proj.bias": ((1,), False),
    "ln_2.weight": ((1,), False),
    "ln_2.bias": ((1,), False),
    "mlp.c_fc.weight": ((4, 1), True),
    "mlp.c_fc.bias": ((4,), False),
    "mlp.c_proj.weight": ((1, 4), True),
    "mlp.c_proj.bias": ((1,), False),
}
_MASK = re.compile(r"transformer\.h\.[0-9]+\.attn\.bias")
_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
_SETTINGS = ("vocab_size", "block_size", "n_embd", "n_layer", "n_head")
# The vocabularies, as it is and padded, that have GPT-2's own end of text.
_VOCABULARIES = (50257, 50304)
_END = 50256


def claims(source: Source) -> bool:
    """The trainers' c_attn is (3 n_embd, n_embd); the other way round it is transformers' own."""
    return all(
        len(tensor.shape) == 2 and tensor.shape[0] == 3 * tensor.shape[1]
        for name, tensor in source.tensors.items()
        if name.endswith(".attn.c_attn.weight")
    )


def carry(source: Source, target: str) -> Mapped:
    """Raises CkptError for a file of no known trainer, and for a tensor that GPT-2 has not or whose shape differs."""
    trainer = _trainer(source)
    settings = _settings(source, trainer)
    expected = _expected(settings)
    dropped = []
    for name, tensor in source.tensors.items():
        if _MASK.fullmatch(name) and len(tensor.shape) == 4:
            dropped.append((tensor.name, "it is the causal mask, which transformers computes"))
        elif name not in expected:
            raise CkptError(f"{source.path}: GPT-2 in transformers has no tensor {name!a}", HINT)
        elif tensor.shape != expected[name][0]:
            shape, wanted = ("x".join(map(str, shape)) for shape in (tensor.shape, expected[name][0]))
            raise CkptError(f"{source.path}: tensor {name!a} is {shape}, its configuration makes it {wanted}")
    head = source.tensors.get(_HEAD)
    tied = head is None or source.same(source.tensors[_EMBEDDING], head)
    items = [
        _item(source, name, shape, turned) for name, (shape, turned) in expected.items() if not (name == _HEAD and tied)
    ]
    notes = []
    if added := sum(item.tensor.form == "zeros" for item in items):
        notes.append(f"{added} biases, which this model has not, are written as zeros")
    if trainer.name == "nanoGPT" and "activation_function" not in source.given:
        notes.append("its GELU is taken for the exact one, as nanoGPT has it since May 2023")
    ties = ((head.name, _EMBEDDING),) if head and tied else ()
    activation = source.given.get("activation_function", trainer.activation)
    config = _configuration(settings, activation, tied, source.tensors[_EMBEDDING].dtype)
    return Mapped(tuple(items), renamed(source, items), tuple(dropped), ties, config, tuple(notes))


def _trainer(source: Source) -> Trainer:
    """Whose file it is: from where it keeps the weights, and how it keeps the settings."""
    for trainer in TRAINERS:
        if source.prefix == trainer.prefix and trainer.mark in source.values:
            return trainer
    tops = sorted({name.partition(".")[0] for name in (*source.values, source.prefix or "transformer")})
    what = f"{source.path} names its weights as nanoGPT, nano-gpt and build-nanogpt do, which compute differently"
    raise CkptError(f"{what}; which wrote it cannot be told from {', '.join(map(ascii, tops[:8]))}", HINT)


def _settings(source: Source, trainer: Trainer) -> dict[str, int]:
    """The five numbers. Raises CkptError, naming those that neither the file nor --config has."""
    found: dict[str, Any] = {key: source.values.get(trainer.settings + key, source.given.get(key)) for key in _SETTINGS}
    missing = [key for key, value in found.items() if type(value) is not int or value < 1]
    if missing:
        what = f"{source.path} does not say {', '.join(missing)}"
        raise CkptError(what, "--config FILE, an object with these keys, supplies it")
    if found["n_embd"] % found["n_head"]:
        raise CkptError(f"{source.path}: {found['n_head']} heads do not divide n_embd {found['n_embd']}")
    return found


def _expected(settings: dict[str, int]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Name -> shape in the trainer's file and whether it is transposed, in transformers' order."""
    width = settings["n_embd"]
    layers = {
        f"transformer.h.{layer}.{name}": (tuple(width * part for part in shape), turned)
        for layer in range(settings["n_layer"])
        for name, (shape, turned) in _LAYER.items()
    }
    return {
        _EMBEDDING: ((settings["vocab_size"], width), False),
        "transformer.wpe.weight": ((settings["block_size"], width), False),
        **layers,
        "transformer.ln_f.weight": ((width,), False),
        "transformer.ln_f.bias": ((width,), False),
        _HEAD: ((settings["vocab_size"], width), False),
    }


def _item(source: Source, name: str, shape: tuple[int, ...], turned: bool) -> Item:
    tensor: TensorInfo | None = source.tensors.get(name)
    if tensor is None:
        if not name.endswith(".bias"):
            raise CkptError(f"{source.path} lacks tensor {name!a}")
        like = source.tensors[_EMBEDDING]
        tensor = zeros(like.dtype, shape, like.itemsize)
    if turned:
        tensor = transposed(tensor)
    return Item(name, tensor, tensor.shape, tensor.dtype)


def _configuration(settings: dict[str, int], activation: Any, tied: bool, dtype: str) -> dict[str, Any]:
    end = _END if settings["vocab_size"] in _VOCABULARIES else None
    return {
        "activation_function": activation,
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": end,
        "dtype": dtype,
        "embd_pdrop": 0.0,
        "eos_token_id": end,
        "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2",
        "n_ctx": settings["block_size"],
        "n_embd": settings["n_embd"],
        "n_head": settings["n_head"],
        "n_layer": settings["n_layer"],
        "n_positions": settings["block_size"],
        "resid_pdrop": 0.0,
        "tie_word_embeddings": tied,
        "vocab_size": settings["vocab_size"],
    }
