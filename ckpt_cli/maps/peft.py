"""torchtune's LoRA adapters -> PEFT's: the base weight's name in Hugging Face, with what the adapter is to it.

The rows of lora_B are those of the base weight, so those of q_proj and k_proj lie in another order where that one's do;
lora_A has the base weight's columns and stays.
"""

from __future__ import annotations

import re
from typing import Any

from ckpt_cli.checkpoint import TensorInfo
from ckpt_cli.errors import CkptError
from ckpt_cli.items import Item, Mapped
from ckpt_cli.maps import HINT, Source, families, renamed
from ckpt_cli.maps._heads import absent, heads_of
from ckpt_cli.maps._table import HEAD, Family
from ckpt_cli.maps._views import reordered

NAMINGS = {
    "adapter": r"(?:layers\.[0-9]+\.[a-z0-9_.]+|output)\.(?:lora_a\.weight|lora_b\.weight|magnitude)",
    "peft": r"base_model\.model\..+\.lora_A\.weight",
}
TARGETS = ("hf",)

# torchtune's end of a name           PEFT's
ENDS = {
    ".lora_a.weight": ".lora_A.weight",
    ".lora_b.weight": ".lora_B.weight",
    ".magnitude": ".lora_magnitude_vector",
}
_PREFIX = "base_model.model."


def claims(source: Source) -> bool:
    return source.naming == "adapter"


def carry(source: Source, target: str) -> Mapped:
    """Raises CkptError for a model whose weights PEFT finds under other names, and for settings that are not said."""
    family = next((each for each in families() if source.model_type in each.types), None)
    if family is None:
        if source.model_type is None:
            keys = ("model_type", "num_attention_heads", "num_key_value_heads", "hidden_size")
            raise absent(source, (*keys, *([] if "lora_alpha" in source.adapter else ["lora_alpha"])))
        raise CkptError(f"{source.path}: no map of {source.model_type!a} from torchtune to PEFT is known", HINT)
    if family.fused:
        what = f"{source.path}: {source.model_type} has weights in one tensor that the adapter has in several"
        raise CkptError(f"{what}, which PEFT cannot express", HINT)
    items = [_item(family, source, name, tensor) for name, tensor in source.tensors.items()]
    return Mapped(tuple(items), renamed(source, items), (), (), _configuration(source, items))


def _item(family: Family, source: Source, name: str, tensor: TensorInfo) -> Item:
    end = next((end for end in ENDS if name.endswith(end)), "")
    layer = re.match(r"layers\.([0-9]+)\.", name)
    base = re.sub(r"^layers\.[0-9]+\.", "layers.{n}.", name.removesuffix(end)) + ".weight"
    row = next((row for row in (*family.rows, HEAD) if row.torchtune == base), None)
    if not end or row is None:
        raise CkptError(f"{source.path}: no map from torchtune to PEFT knows tensor {name!a}", HINT)
    new = _PREFIX + row.hf.replace("{n}", layer[1] if layer else "").removesuffix(".weight") + ENDS[end]
    view = tensor
    if family.permuted and row.heads and end != ".lora_a.weight":
        view = reordered(tensor, heads_of(source).checked(source, name, tensor, row.heads), "pairs")
    return Item(new, view, tensor.shape, tensor.dtype)


def _configuration(source: Source, items: list[Item]) -> dict[str, Any]:
    """adapter_config.json. The rank is in the shapes, alpha is not."""
    ranks = {item.shape[0] for item in items if item.name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise CkptError(f"{source.path}: its adapters are of several ranks, {', '.join(map(str, sorted(ranks)))}", HINT)
    rank = ranks.pop()
    if source.adapter.get("r", rank) != rank:
        raise CkptError(f"{source.path}: its configuration says r {source.adapter['r']!a}, its tensors say {rank}")
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
