"""LoRA adapters between torchtune and PEFT: the base weight's name in Hugging Face, with what the adapter is to it.

The rows of lora_B are those of the base weight, so those of q_proj and k_proj lie in another order where that one's do;
lora_A has the base weight's columns and stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_cli.errors import CkptError
from ckpt_cli.items import Item, Mapped
from ckpt_cli.maps import HINT, Source, families, renamed
from ckpt_cli.maps._heads import absent, heads_of
from ckpt_cli.maps._table import HEAD, Family
from ckpt_cli.maps._views import reordered
from ckpt_cli.tensor_file import TensorInfo

NAMINGS = {
    "adapter": r"(?:layers\.[0-9]+\.[a-z0-9_.]+|output)\.(?:lora_a\.weight|lora_b\.weight|magnitude)",
    "peft": r"base_model\.model\..+\.lora_A\.weight",
}
TARGETS = ("hf", "torchtune")

# torchtune's end of a name           PEFT's
_ENDS = {
    ".lora_a.weight": ".lora_A.weight",
    ".lora_b.weight": ".lora_B.weight",
    ".magnitude": ".lora_magnitude_vector",
}
_BACK = {theirs: ours for ours, theirs in _ENDS.items()}
_PREFIX = "base_model.model."
_LAYER = re.compile(r"((?:model\.)?layers\.)([0-9]+)\.")
# Settings of PEFT, and with which of them it computes what torchtune does.
_PLAIN = {
    "use_rslora": False, "lora_bias": False, "fan_in_fan_out": False, "bias": "none", "rank_pattern": {},
    "alpha_pattern": {}, "modules_to_save": [], "layer_replication": [], "peft_type": "LORA",
}  # fmt: skip


def claims(source: Source) -> bool:
    return source.naming in NAMINGS


def carry(source: Source, target: str) -> Mapped:
    """Raises CkptError for a model whose weights PEFT finds under other names, for settings that are not said, and for
    those of PEFT that torchtune has none for."""
    family = next((each for each in families() if source.model_type in each.types), None)
    if family is None:
        if source.model_type is None:
            keys = ("model_type", "num_attention_heads", "num_key_value_heads", "hidden_size")
            raise absent(source, (*keys, *([] if "lora_alpha" in source.adapter else ["lora_alpha"])))
        raise CkptError(f"{source.path}: no map of {source.model_type!a} between torchtune and PEFT is known", HINT)
    if family.fused:
        what = f"{source.path}: {source.model_type} has weights in one tensor that the adapter has in several"
        raise CkptError(f"{what}, which {'PEFT' if target == 'hf' else 'torchtune'} cannot express", HINT)
    have, ends = (".lora_a.weight", _ENDS) if target == "hf" else (".lora_A.weight", _BACK)
    items = [_item(family, source, target, ends, name, tensor) for name, tensor in source.tensors.items()]
    rank = _rank(source, [tensor for name, tensor in source.tensors.items() if name.endswith(have)])
    if target == "hf":
        return Mapped(tuple(items), renamed(source, items), (), (), _configuration(source, items, rank))
    for key, plain in _PLAIN.items():
        if source.adapter.get(key, plain) not in (plain, None):
            what = f"{source.path}: its adapter_config.json says {key} {source.adapter[key]!a}"
            raise CkptError(f"{what}, for which torchtune's recipes have no setting", HINT)
    alpha = source.adapter.get("lora_alpha")
    note = f"lora_rank {rank}{'' if alpha is None else f' and lora_alpha {alpha}'} belong into torchtune's recipe"
    return Mapped(tuple(items), renamed(source, items), (), (), None, (note,))


def _item(family: Family, source: Source, target: str, ends: Mapping[str, str], name: str, tensor: TensorInfo) -> Item:
    end = next((end for end in ends if name.endswith(end)), "")
    base = name.removesuffix(end).removeprefix("" if target == "hf" else _PREFIX)
    layer = _LAYER.match(base)
    pattern = _LAYER.sub(r"\1{n}.", base) + ".weight"
    naming = "torchtune" if target == "hf" else "hf"
    row = next((row for row in (*family.rows, HEAD) if row.in_(naming) == pattern), None)
    if not end or row is None or (target != "hf" and not name.startswith(_PREFIX)):
        raise CkptError(f"{source.path}: no map between torchtune and PEFT knows tensor {name!a}", HINT)
    new = (row.in_(target) or "").replace("{n}", layer[2] if layer else "").removesuffix(".weight") + ends[end]
    view = tensor
    if family.permuted and row.heads and end.lower() != ".lora_a.weight":
        count = heads_of(source).checked(source, name, tensor, row.heads)
        view = reordered(tensor, count, "pairs" if target == "hf" else "halves")
    return Item((_PREFIX if target == "hf" else "") + new, view, tensor.shape, tensor.dtype)


def _rank(source: Source, downward: Sequence[TensorInfo]) -> int:
    """The rank is in the shapes: the rows of every A."""
    ranks = {tensor.shape[0] if tensor.shape else 0 for tensor in downward}
    if len(ranks) != 1:
        raise CkptError(f"{source.path}: its adapters are of several ranks, {', '.join(map(str, sorted(ranks)))}", HINT)
    rank = ranks.pop()
    if source.adapter.get("r", rank) != rank:
        raise CkptError(f"{source.path}: its configuration says r {source.adapter['r']!a}, its tensors say {rank}")
    return rank


def _configuration(source: Source, items: list[Item], rank: int) -> dict[str, Any]:
    """adapter_config.json. Alpha is not in the shapes."""
    if source.adapter.get("lora_alpha") is None:
        what = f"{source.path} lacks a configuration that says lora_alpha"
        raise CkptError(what, "--config FILE, an adapter_config.json or an object with that key, supplies it")
    bases = [re.sub(r"\.lora_[A-Za-z_]+(\.weight)?$", "", item.name) for item in items]
    modules = dict.fromkeys(base.rpartition(".")[2] for base in bases)
    dora = any(item.name.endswith(".lora_magnitude_vector") for item in items)
    return {
        **{key: source.adapter[key] for key in ("base_model_name_or_path", "lora_dropout") if key in source.adapter},
        "lora_alpha": source.adapter["lora_alpha"],
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(modules),
        **({"use_dora": True} if dora else {}),
    }
