"""nanochat's own models: every revision that its main branch had, and the experts of one that it had not.

Which revision a state dict is of is told by `ckpt_cli.revisions`. What its files do not say is assumed as the trainer
would, or as the date of its settings hints, and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckpt_cli.errors import CkptError
from ckpt_cli.families import Assumption, Blueprint, Described
from ckpt_cli.families._modules import module_of
from ckpt_cli.families._nanochat import BUFFERS, EMBEDDINGS, FORMS, SMEARED, Model, Revision, shapes_of, windows
from ckpt_cli.families._nanochat_forward import logits_of
from ckpt_cli.families._settings import MOST_WIDE, divided, required, settable, shown, whole
from ckpt_cli.revisions import REVISIONS, padded, revision_of

if TYPE_CHECKING:
    import torch

NAMES = (*(f"nanochat-{name}" for name in FORMS), "nanochat-moe3")
_NUMBERS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_embd")
_SETTINGS = {"softcap": ("15", "20"), "rotary_rounding": ("bf16", "none"), "window_pattern": None}
# The rotary tables of the trainer are that many times as long as the context.
_LONGER = 10
# What base_train took for eval_tokens where nobody said, from 4 March 2026 on.
_EVAL_TOKENS = 41943040


def claims(described: Described) -> str | None:
    """Also of a revision that is not built, so that it is refused by its name."""
    if not any(name.startswith("transformer.h.") and ".attn.c_q." in name for name in described.tensors):
        return None
    return f"nanochat-{_revision(described)}"


def plan(described: Described, family: str) -> Blueprint:
    """Raises CkptError for a revision that is not built, a setting that there is not, and a configuration that lacks a
    number or that no model can have."""
    name = family.removeprefix("nanochat-")
    experts = name == "moe3"
    if experts:
        name = _without_experts(described)
    if name not in FORMS:
        what = f"{described.path} is of nanochat's revision {name} ({REVISIONS[name]})"
        raise CkptError(f"{what}, which cannot be rebuilt", "--model package.module:Class builds a class of your own")
    settable(family, described.given, _SETTINGS)
    required(described, _NUMBERS)
    form = FORMS[name]
    assumed: list[Assumption] = []
    pattern = _pattern(described, form, assumed)
    softcap, rounded = _constants(described, name, form, assumed)
    model = _model(described, form, pattern, softcap, rounded, assumed, experts)
    shapes = shapes_of(model)
    config = {**described.config, "n_kv_head": model.keys}
    if form.window:
        config["window_pattern"] = pattern

    def build() -> torch.nn.Module:
        saved = [name for name in shapes if name.endswith(BUFFERS)]
        return module_of(shapes, saved, lambda weights, tokens: logits_of(model, weights, tokens), config)

    return Blueprint(
        family=family,
        config=config,
        shapes=shapes,
        items=described.items,
        vocab_size=model.vocab,
        padded_vocab=model.rows,
        # The trainer's smear asks for two.
        least_tokens=2 if form.smeared else 1,
        most_tokens=_LONGER * whole(described, "sequence_len"),
        assumptions=tuple(assumed),
        build=build,
        # Its rotary tables are computed for each batch, as long as that is.
        finish=lambda module, device: None,
        logits=lambda module, tokens: module(tokens),
        narrow=tuple(name for name in shapes if name.startswith(EMBEDDINGS)),
    )


def _revision(described: Described) -> str:
    """A checkpoint of the window weeks may have lost its pattern, but the base run of the same tag has it."""
    shapes = {name: tensor.shape for name, tensor in described.tensors.items()}
    patterns = [described.given.get("window_pattern"), described.config.get("window_pattern"), _base_pattern(described)]
    known = next((each for each in patterns if each is not None), None)
    return revision_of(shapes, {**described.config, "window_pattern": known})


def _without_experts(described: Described) -> str:
    """The revision under the experts."""
    tensors = {name: tensor for name, tensor in described.tensors.items() if ".mlp." not in name}
    config = {key: value for key, value in described.config.items() if key != "num_experts"}
    return _revision(described._replace(tensors=tensors, config=config))


def _base_pattern(described: Described) -> Any:
    config = (described.base or {}).get("model_config")
    return config.get("window_pattern") if isinstance(config, Mapping) else None


def _pattern(described: Described, form: Revision, assumed: list[Assumption]) -> str:
    """The letters of the windows; "L" where the checkpoint lost them, as the trainer takes it."""
    key, base = "window_pattern", _base_pattern(described)
    known = described.config.get(key)
    given = described.given.get(key)
    if not form.window:
        if form.lambdas and base is None and not _is_base(described.meta) and described.base is None:
            reason = "neither the metadata nor a base run of its tag says one: taken for the revision before windows"
            assumed.append(Assumption(key, None, reason, warn=True))
        if given is not None:
            raise CkptError(f"{described.path} is of a revision of nanochat that has no windows to set")
        return ""
    if given is not None:
        assumed.append(Assumption(key, given, "--set says it"))
        return given
    if known is None:
        assumed.append(Assumption(key, "L", _lost(base), warn=True))
        return "L"
    if not isinstance(known, str):
        raise CkptError(f"{described.path}: its configuration says window_pattern {shown(known)}, which is no text")
    return known


def _lost(base: Any) -> str:
    if base is None:
        return "the metadata does not say it, and the trainer then takes L"
    return f"the metadata lost it, and the trainer then takes L, but the base run of this tag has {shown(base)}"


def _constants(described: Described, name: str, form: Revision, assumed: list[Assumption]) -> tuple[float, bool]:
    """The soft cap of the logits, and whether sines and cosines are rounded to bfloat16.

    Both changed while the names stayed those of `ve32`: on 3 March 2026, and on the 4th.
    """
    softcap, rounded, reason, guessed = 15, form.rounded, "", False
    if name == "ve32":
        softcap, rounded, reason, guessed = _by_date(described)
    values: dict[str, Any] = {"softcap": softcap, "rotary_rounding": "bf16" if rounded else "none"}
    for key in values:
        if key in described.given:
            given = described.given[key]
            values[key] = int(given) if key == "softcap" else given
            assumed.append(Assumption(key, values[key], "--set says it"))
        elif reason:
            assumed.append(Assumption(key, values[key], reason, guessed))
    return float(values["softcap"]), values["rotary_rounding"] == "bf16"


def _by_date(described: Described) -> tuple[int, bool, str, bool]:
    """What the settings of the base run tell of the day it was written: soft cap, rounding, why, and whether that is a
    guess."""
    meta = next((meta for meta in (described.base, described.meta) if meta and _is_base(meta)), None)
    if meta is None:
        return 15, True, "no metadata of a base run tells whether it is of before March 2026, when it changed", True
    settings = meta["user_config"]
    if "fp8" not in settings or "total_batch_size" not in meta:
        return 15, True, "the base run's settings are of before 16 February 2026", False
    if settings.get("eval_tokens") == _EVAL_TOKENS:
        return 20, False, "the base run's eval_tokens are those of after 4 March 2026", False
    return 15, True, "the base run is of February or March 2026, and may be of before or after it changed", True


def _is_base(meta: Mapping[str, Any]) -> bool:
    """Whether base_train wrote it: only there a depth is set."""
    settings = meta.get("user_config")
    return isinstance(settings, Mapping) and "depth" in settings


def _model(
    described: Described,
    form: Revision,
    pattern: str,
    softcap: float,
    rounded: bool,
    assumed: list[Assumption],
    experts: bool,
) -> Model:
    layers, heads = whole(described, "n_layer"), whole(described, "n_head")
    width, vocab = whole(described, "n_embd", MOST_WIDE), whole(described, "vocab_size")
    if divided(described, "n_embd", width, "n_head", heads) % 2:
        raise CkptError(f"{described.path}: its heads are {width // heads} wide, which is not even")
    if described.config.get("n_kv_head") is None:
        assumed.append(Assumption("n_kv_head", heads, "the configuration does not say it: as many as n_head"))
    keys = whole(described, "n_kv_head", default=heads)
    divided(described, "n_head", heads, "n_kv_head", keys)
    least = max(form.gate, SMEARED if form.smeared else 0)
    if width < least:
        raise CkptError(f"{described.path}: its configuration says n_embd {width}, and its gates take {least}")
    model = Model(
        form=form,
        layers=layers,
        heads=heads,
        keys=keys,
        width=width,
        vocab=vocab,
        rows=_rows(described, form, vocab),
        windows=windows(form, pattern, layers, whole(described, "sequence_len")),
        softcap=softcap,
        rounded=rounded,
    )
    if not experts:
        return model
    count = whole(described, "num_experts")
    chosen = whole(described, "top_k", most=count)
    return model._replace(experts=count, chosen=chosen, hidden=_hidden(described, width, chosen))


def _rows(described: Described, form: Revision, vocab: int) -> int:
    """Of the vocabulary's matrices: padded since December 2025, in the days of the first revision."""
    rows = padded(vocab)
    embedding = described.tensors.get("transformer.wte.weight")
    return vocab if not form.padded and embedding and embedding.shape[:1] != (rows,) else rows


def _hidden(described: Described, width: int, chosen: int) -> int:
    """How wide an expert is: as its matrices are, which the trainer makes as wide together as a layer without."""
    found = described.tensors.get("transformer.h.0.mlp.experts.w_up")
    if found and len(found.shape) == 3 and 0 < found.shape[1] <= 4 * MOST_WIDE:
        return found.shape[1]
    return 128 * round(4 * width / (chosen + 1) / 128)
