"""One rank of a real distributed save, run as a process: `python distributed_save.py RANK RANKS FOLDER`.

Writes FOLDER/dcp (sharded over ranks), FOLDER/alone (the same without collectives, an index a rank), FOLDER/hf (torch's
Hugging Face writer, sharded) and, from rank 0, FOLDER/expected.pt with what the tensors are as a whole.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def whole() -> dict[str, torch.Tensor]:
    """What every rank agrees on; rows and columns that do not divide evenly, and one with fewer rows than ranks."""
    generator = torch.Generator().manual_seed(7)
    return {
        "model.rows": torch.randn(5, 8, generator=generator),
        "model.columns": torch.randn(6, 7, generator=generator).bfloat16(),
        "model.deep": torch.randint(0, 2**40, (3, 4, 5), generator=generator),
        "model.bias": torch.randn(9, generator=generator).half(),
        "model.same": torch.randn(4, 3, generator=generator),
        "model.one": torch.randn(1, 6, generator=generator),
        "optimizer.state.rows.exp_avg": torch.randn(5, 8, generator=generator),
    }


SPLIT: dict[str, int | None] = {
    "model.rows": 0,
    "model.columns": 1,
    "model.deep": 2,
    "model.bias": 0,
    "model.same": None,
    "model.one": 0,
    "optimizer.state.rows.exp_avg": 0,
}


def main(rank: int, ranks: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    full = whole()
    sharded: dict[str, Any] = {
        name: distribute_tensor(tensor, mesh, [Replicate() if SPLIT[name] is None else Shard(SPLIT[name] or 0)])
        for name, tensor in full.items()
    }
    if rank == 0:
        torch.save(full, folder / "expected.pt")
    state = {**sharded, "step": 1200, "optimizer.param_groups.0.lr": 0.001, "loader": {"rank": "any"}}
    save(state, storage_writer=FileSystemWriter(folder / "dcp"))
    save(state, storage_writer=FileSystemWriter(folder / "alone"), use_collectives=False)
    writer = HuggingFaceStorageWriter(str(folder / "hf"), save_distributed=True)
    save(dict(sharded), storage_writer=writer)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
