"""What the revisions of nanochat have, and what follows of it for a model: its windows, names and shapes.

The trainer changed constants under unchanged names, so each revision has its own. Their first commits and dates are
those of `ckpt_cli.revisions`.
"""

from __future__ import annotations

from typing import NamedTuple

from ckpt_cli.errors import CkptError
from ckpt_cli.families._settings import shown


class Revision(NamedTuple):
    """What a revision computes.

    - lambdas: whether each layer weighs the residual stream, and the embedding in it.
    - window: what an S of the pattern means, a half, third or quarter of the context; empty without windows.
    - gate, most: how many columns of a layer's input weigh its value embedding, 0 where there is none, and the most
      that this weight can be.
    - bigrams, smeared: whether pairs of tokens have embeddings, and whether a token's takes from the one before.
    - base, sharp: the base of the rotary angles, and what queries and keys are multiplied with.
    - rounded: whether sines and cosines are bfloat16 whatever the model computes in.
    - padded: whether the vocabulary's matrices always have a multiple of 64 rows.
    """

    lambdas: bool = True
    window: str = ""
    gate: int = 0
    most: float = 0.0
    bigrams: bool = False
    smeared: bool = False
    base: float = 1e4
    sharp: float = 1.0
    rounded: bool = True
    padded: bool = True


FORMS = {
    "v1": Revision(lambdas=False, padded=False),
    "lambdas": Revision(),
    "window": Revision(window="half"),
    "ve32": Revision(window="half", gate=32, most=2.0),
    "engram": Revision(window="half", gate=32, most=2.0, bigrams=True),
    "ve12": Revision(window="third", gate=12, most=3.0, base=1e5, sharp=1.15, rounded=False),
    "smear": Revision(window="quarter", gate=12, most=3.0, smeared=True, base=1e5, sharp=1.2, rounded=False),
}
# Columns of the embedding that say how much of the token before is mixed in.
SMEARED = 24
# Rows of the table of pairs of tokens, for each token of the vocabulary.
PAIRS = 5
# By how their names end: saved, and no parameters. And how those begin whose rows are only looked up.
BUFFERS = ("expert_bias", "tokens_per_expert_counter")
EMBEDDINGS = ("transformer.wte.", "bigram_embed.", "value_embeds.")


class Model(NamedTuple):
    """A model of nanochat, its numbers checked.

    `keys` is the number of key heads, `rows` that of the vocabulary's matrices. `windows` has for each layer how many
    tokens back it sees, None for all. `experts` is 0 where there are none; `chosen` of them see each token, `hidden`
    wide, and one that all see.
    """

    form: Revision
    layers: int
    heads: int
    keys: int
    width: int
    vocab: int
    rows: int
    windows: tuple[int | None, ...]
    softcap: float
    rounded: bool
    experts: int = 0
    chosen: int = 0
    hidden: int = 0

    @property
    def size(self) -> int:
        """How many numbers a head has."""
        return self.width // self.heads

    def has_values(self, layer: int) -> bool:
        """Every other layer has a value embedding, the last one always."""
        return self.form.gate > 0 and layer % 2 == (self.layers - 1) % 2


def windows(form: Revision, pattern: str, layers: int, length: int) -> tuple[int | None, ...]:
    """How many tokens back each layer sees: the pattern is repeated, and the last layer sees the whole context.

    A short window may come out longer than a short context. Raises CkptError for a letter other than S and L.
    """
    if not form.window:
        return (None,) * layers
    letters = pattern.upper()
    if not letters or set(letters) - {"S", "L"}:
        raise CkptError(f"window_pattern is made of S and L, not {shown(pattern)}")
    short = length // 2
    if form.window != "half":
        part = _ceil(length, {"third": 3, "quarter": 4}[form.window])
        short = 128 * _ceil(part, 128)
    tiled = [letters[layer % len(letters)] for layer in range(layers - 1)]
    return tuple({"S": short, "L": length}[letter] for letter in [*tiled, "L"])


def _ceil(number: int, by: int) -> int:
    return -(-number // by)


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    """Every parameter and saved buffer with its shape, in the order of the trainer's state dict."""
    form, width, rows, queries, keys = model.form, model.width, model.rows, model.width, model.keys * model.size
    found: dict[str, tuple[int, ...]] = {}
    if form.lambdas:
        found |= {"resid_lambdas": (model.layers,), "x0_lambdas": (model.layers,)}
    if form.bigrams:
        found["bigram_lambdas"] = (model.layers,)
    if form.smeared:
        found |= {"smear_lambda": (1,), "backout_lambda": (1,)}
    found["transformer.wte.weight"] = (rows, width)
    for layer in range(model.layers):
        at = f"transformer.h.{layer}"
        found[f"{at}.attn.c_q.weight"] = (queries, width)
        found[f"{at}.attn.c_k.weight"] = (keys, width)
        found[f"{at}.attn.c_v.weight"] = (keys, width)
        found[f"{at}.attn.c_proj.weight"] = (width, width)
        if model.has_values(layer):
            found[f"{at}.attn.ve_gate.weight"] = (model.keys, form.gate)
        for name, shape in _inner(model).items():
            found[f"{at}.mlp.{name}"] = shape
    found["lm_head.weight"] = (rows, width)
    if form.smeared:
        found["smear_gate.weight"] = (1, SMEARED)
    if form.bigrams:
        found["bigram_embed.embed.weight"] = (PAIRS * model.vocab, width)
    for layer in range(model.layers):
        if model.has_values(layer):
            found[f"value_embeds.{layer}.weight"] = (rows, keys)
    return found


def _inner(model: Model) -> dict[str, tuple[int, ...]]:
    """What follows attention in a layer."""
    width, experts, hidden = model.width, model.experts, model.hidden
    if not experts:
        return {"c_fc.weight": (4 * width, width), "c_proj.weight": (width, 4 * width)}
    return {
        "router.expert_bias": (experts,),
        "router.tokens_per_expert_counter": (experts,),
        "router.gate.weight": (experts, width),
        "experts.w_up": (experts, hidden, width),
        "experts.w_down": (experts, width, hidden),
        "shared_expert.w_up.weight": (hidden, width),
        "shared_expert.w_down.weight": (width, hidden),
    }
