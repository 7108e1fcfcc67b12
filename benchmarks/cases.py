"""Small files of every kind that a tool for checkpoints meets, each written by the real library and then spoilt.

cases.py DIR    writes them all

The two that would run code ask a shell for an empty file RAN in the current directory, and for nothing else. They
are written here and never opened; whoever opens them does so in a directory that is thrown away.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

RAN = "the-code-ran"
NAME = "layer.weight"


class Case(NamedTuple):
    """A file, what it is, whether it is `sound`, `damaged` or `hostile`, and the sound file of its kind."""

    file: str
    what: str
    truth: str
    like: str


CASES = (
    Case("sound.pt", "torch.save of today", "sound", "sound.pt"),
    Case("legacy.pt", "torch.save of before 1.6", "sound", "legacy.pt"),
    Case("torchscript.pt", "a TorchScript module", "sound", "torchscript.pt"),
    Case("quantized.pt", "a quantized tensor", "sound", "quantized.pt"),
    Case("compressed.pt", "the zip's records deflated", "sound", "compressed.pt"),
    Case("whole.safetensors", "safetensors", "sound", "whole.safetensors"),
    Case("flipped.pt", "one bit of a tensor wrong", "damaged", "sound.pt"),
    Case("truncated.pt", "the second half missing", "damaged", "sound.pt"),
    Case("short.pt", "a record shorter than its tensor", "damaged", "sound.pt"),
    Case("missing.pt", "a record missing", "damaged", "sound.pt"),
    Case("overlap.safetensors", "two tensors share bytes", "damaged", "whole.safetensors"),
    Case("hostile.pt", "a pickle that calls os.system", "hostile", "sound.pt"),
    Case("hostile-legacy.pt", "the same of before 1.6", "hostile", "legacy.pt"),
)


class Payload:
    """Pickled, it is a call of os.system; nothing is called by that."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f": > {RAN}",)


def write_cases(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    weights = torch.arange(4096, dtype=torch.float32)
    state = {NAME: weights.reshape(64, 64), "layer.bias": weights[:64].clone()}
    sound, old = folder / "sound.pt", {"_use_new_zipfile_serialization": False}
    torch.save(state, sound)
    torch.save(state, folder / "legacy.pt", **old)
    torch.save({**state, "more": Payload()}, folder / "hostile.pt")
    torch.save({**state, "more": Payload()}, folder / "hostile-legacy.pt", **old)
    module = torch.nn.Module()
    module.layer = torch.nn.Linear(64, 64)
    torch.jit.save(torch.jit.script(module), str(folder / "torchscript.pt"))
    torch.save({NAME: torch.quantize_per_tensor(weights, 0.1, 0, torch.qint8)}, folder / "quantized.pt")
    save_file(state, folder / "whole.safetensors")
    _rewrite(sound, folder / "compressed.pt", method=zipfile.ZIP_DEFLATED)
    _rewrite(sound, folder / "missing.pt", without="data/0")
    _rewrite(sound, folder / "short.pt", cut="data/0")
    data = sound.read_bytes()
    (folder / "truncated.pt").write_bytes(data[: len(data) // 2])
    place = data.index(weights.numpy().tobytes()) + 1000
    (folder / "flipped.pt").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    slots = {NAME: (0, 256), "layer.bias": (128, 384)}
    header = json.dumps({name: {"dtype": "F32", "shape": [64], "data_offsets": at} for name, at in slots.items()})
    raw = len(header).to_bytes(8, "little") + header.encode() + bytes(384)
    (folder / "overlap.safetensors").write_bytes(raw)


def _rewrite(source: Path, target: Path, method: int = zipfile.ZIP_STORED, without: str = "-", cut: str = "-") -> None:
    """The same records in a new zip with right checksums, less one, or one of them cut in half."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            data = old.read(name)
            if not name.endswith(f"/{without}"):
                new.writestr(name, data[: len(data) // 2] if name.endswith(f"/{cut}") else data)


if __name__ == "__main__":
    write_cases(Path(sys.argv[1]))
