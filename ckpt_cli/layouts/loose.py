"""Files of tensors that no other layout claims, one checkpoint each: a `.pt` somebody saved, a model somebody fetched.

Asked last, and only where nothing in or below the folder belongs to a layout. A name says nothing about which of
them replaces which, unless it counts epochs, steps or iterations and all that count in the folder are of one series:
`iter_500.pt` and `iter_1000.pt`, but not beside `optim_iter_500.pt`, for nothing says that both go together.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ckpt_cli.checkpoint import Checkpoint, Role
from ckpt_cli.layouts import LAST_RESORT, Folder
from ckpt_cli.layouts._grouped import at_step, grouped
from ckpt_cli.layouts._numbered import Number
from ckpt_cli.layouts._single import one_file

NAME = "loose"
PRECEDENCE = LAST_RESORT
REMOVAL_ORDER: tuple[Role, ...] = ("model", "adapter", "optimizer", "recipe")

_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".jit", ".pth.tar")
# Data sets of tokens, as nanoGPT and its kin prepare them: `train.bin`, `fineweb_val_000001.bin`; and what a trainer
# leaves beside a model that is neither weights nor the state of an optimizer.
_NO_MODEL = re.compile(
    r"(?:.*[_-])?(?:train|val|valid|validation|test|data|dataset|tokens|tokenizer|vocab|corpus)(?:[_-][0-9]+)*\.bin|"
    r"(?:scheduler|scaler|sampler|rng_state|training_args)(?:_[0-9]+)?\.(?:pt|pth|bin)"
)
# Parts of a checkpoint that have lost the rest of it.
_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"optim(?:izer)?(?:[-_.]?[0-9]+)?(?:_rank[0-9]+)?"), "optimizer"),
    (re.compile(r"recipe_state"), "recipe"),
    (re.compile(r"adapter(?:_model)?(?:_[0-9]+)?"), "adapter"),
)
# `iter_1000`, `model-epoch3`; what counts two things at once, as `epoch3-step16` does, does not say which orders them.
_COUNTED = re.compile(
    r"((?:(?:(?!epoch|step|iter).)*[-_.=])?(epoch|step|iter|iteration)[-_=]?)([0-9]{1,18})(\.[a-z.]+)"
)


def scan(folder: Folder) -> Iterable[Checkpoint]:
    names = [n for n in folder.files if n.endswith(_SUFFIXES) and n[0] != "." and not _NO_MODEL.fullmatch(n)]
    stems = Counter(os.path.splitext(name)[0] for name in names)
    # `model.safetensors` beside `model.pt` is what `ckpt convert` made of it.
    others = {os.path.splitext(name)[0] for name in names if not name.endswith(".safetensors")}
    exports = {f"{stem}.safetensors" for stem in others if stems[stem] == 2} & set(names)
    names = [name for name in names if name not in exports]
    numbers = _numbers(names)
    return [_checkpoint(folder, name, numbers.get(name), stems, len(names) > 1) for name in names]


def needs(checkpoint: Checkpoint, run: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
    """The first of those beside it without a number, which needs all others, so that all stay where one does.

    Files that merely lie together are no steps of a run, and none of them is old because another is there.
    """
    if checkpoint.step is not None:
        return ()
    beside = grouped(run, at_step).get((checkpoint.run_dir, None), [checkpoint])
    return beside[:1] if checkpoint.name != beside[0].name else beside[1:]


def _numbers(names: Iterable[str]) -> dict[str, Number]:
    """The steps or epochs that names count, where all that count are one series and none says what another does."""
    counted = {name: match for name in names if (match := _COUNTED.fullmatch(name))}
    numbers = {
        name: Number("epoch" if match[2] == "epoch" else "step", int(match[3])) for name, match in counted.items()
    }
    series = {(match[1], match[4]) for match in counted.values()}
    return numbers if len(series) == 1 and len(set(numbers.values())) == len(numbers) else {}


def _checkpoint(folder: Folder, file: str, number: Number | None, stems: Counter[str], several: bool) -> Checkpoint:
    found = one_file(folder, NAME, file, number and number.value, number and number.unit)
    if stems[found.name] > 2 or (stems[found.name] == 2 and len(found.having("export")) == 0):
        # The stem alone would not tell them apart; an export or a pin under it could be of any.
        own = tuple(part for part in found.parts if part.role in ("model", "manifest"))
        found = found._replace(name=file, parts=own)
    role = next((role for pattern, role in _ROLES if pattern.fullmatch(os.path.splitext(file)[0])), None)
    if role:
        found = found._replace(parts=tuple(p._replace(role=role) if p.role == "model" else p for p in found.parts))
    return found._replace(by_name=several and number is None)
