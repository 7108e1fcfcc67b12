"""Distributed checkpoints and sets of files, against torch's own loader."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from ckpt_cli import contents
from ckpt_cli.discover import discover
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import FileSource, _dcp_step, dcp
from ckpt_cli.integrity import Job, check_file, slices_of
from ckpt_cli.layouts import layout_named
from ckpt_cli.shapes import tiling_fault
from ckpt_cli.tensor_file import TensorFile
from ckpt_cli.tensors import read_index, read_tensors
from tests.conftest import Run
from tests.torch_files import flip, told

HERE = Path(__file__).resolve().parent
STATE: dict[str, Any] = {
    "model": {
        "wide": torch.arange(60.0).reshape(5, 12).bfloat16(),
        "turned": torch.arange(12).reshape(3, 4).T,
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 3),
        "flag": torch.tensor([True, False]),
        "wave": torch.complex(torch.arange(3.0), torch.ones(3)),
    },
    "optimizer": {"state": {"0": {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.01, "betas": (0.9, 0.99)}]},
    "step": 1200,
    "name": "run \x1b[31m",
}


def quietly(write: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write()


def write(folder: Path, state: dict[str, Any], one_file: bool = True) -> Path:
    writer = FileSystemWriter(folder, single_file_per_rank=one_file)
    quietly(lambda: save(state, storage_writer=writer, no_dist=True))
    return folder


def loaded(folder: Path, scratch: Path) -> dict[str, Any]:
    """What torch makes of it, whole."""
    quietly(lambda: dcp_to_torch_save(folder, scratch / "whole.pt"))
    found: dict[str, Any] = torch.load(scratch / "whole.pt", weights_only=False)
    return found


def digests(listed: dict[str, Any]) -> dict[str, tuple[str, list[int], str]]:
    return {t["name"]: (t["dtype"], t["shape"], t["sha256"]) for t in listed["tensors"]}


def oracle(state: dict[str, Any]) -> dict[str, tuple[str, list[int], str]]:
    return {name: (dtype, list(shape), sha256) for name, dtype, shape, _, sha256 in told(state)}


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks save together: `dcp`, `alone`, `hf`, and `expected.pt`; see distributed_save.py."""
    path = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(HERE / "distributed_save.py")]
    workers = [
        subprocess.Popen([*command, str(rank), "2", str(path)], stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    for worker in workers:
        _, said = worker.communicate(timeout=120)
        assert worker.returncode == 0, said
    return path


@pytest.fixture(params=[True, False], ids=["a file a rank", "a file a value"])
def single(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "single", STATE, request.param)


@pytest.fixture
def folder(tmp_path: Path, ranks: Path) -> Path:
    """A copy of what two ranks saved, to be damaged."""
    return Path(shutil.copytree(ranks / "dcp", tmp_path / "damaged"))


# --- what torch reads is what is told


def test_one_process(call: Run, single: Path, tmp_path: Path) -> None:
    """Every tensor's dtype, shape and digest is what torch loads; what is no tensor stands under its name."""
    done = call("inspect", "tensors", single, "--hash", "--json")
    assert done.code == 0, done.err
    assert digests(done.json) == oracle(loaded(single, tmp_path))
    assert len(done.json["tensors"]) == 7
    values = done.json["values"]
    assert (values["step"], values["name"]) == (1200, "run \x1b[31m")
    assert values["optimizer.param_groups.0.lr"] == 0.01
    assert values["optimizer.param_groups.0.betas"] == [0.9, 0.99]
    assert done.json["files"] == [{"path": f"{single}/.metadata", "container": "dcp"}]
    assert done.json["foreign_globals"] == []
    wide = done.json["tensors"][0]
    assert (wide["name"], wide["offset"], wide["storage"], wide["form"]) == ("model.wide", None, None, "chunked")
    assert [(piece["offsets"], piece["shape"]) for piece in wide["pieces"]] == [([0, 0], [5, 12])]
    assert os.path.dirname(wide["pieces"][0]["file"]) == str(single)


def test_meta_shows_the_values(call: Run, single: Path) -> None:
    assert call("inspect", "meta", single, "--key", "step").out == "1200\n"
    assert "optimizer" not in call("inspect", "meta", single, "--json").json["meta"]  # that is `inspect optim`
    assert call("inspect", "optim", single, "--json").json["ranks"][0]["groups"][0]["hyperparameters"]["lr"] == 0.01


@pytest.mark.parametrize("kind", ["dcp", "alone", "hf"])
def test_two_ranks(call: Run, ranks: Path, kind: str) -> None:
    """Shards along every dimension, uneven, replicated, empty on one rank: each tensor is whole again."""
    done = call("inspect", "tensors", ranks / kind, "--hash", "--json")
    assert done.code == 0, done.err
    expected = oracle(torch.load(ranks / "expected.pt"))
    assert digests(done.json) == expected
    columns = next(t for t in done.json["tensors"] if t["name"] == "model.columns")
    assert [(p["offsets"], p["shape"]) for p in columns["pieces"]] == [([0, 0], [6, 4]), ([0, 4], [6, 3])]
    assert len({p["file"] for p in columns["pieces"]}) == 2


def test_two_ranks_as_torch_loads_them(call: Run, ranks: Path, tmp_path: Path) -> None:
    """The oracle is torch's loader, not the tensors that went in."""
    done = call("inspect", "tensors", ranks / "dcp", "--hash", "--json")
    whole = loaded(ranks / "dcp", tmp_path)
    assert digests(done.json) == oracle({name: t for name, t in whole.items() if isinstance(t, torch.Tensor)})


def test_replicas_of_single_ranks_both_stand(ranks: Path) -> None:
    """What each rank saved in full may differ between them."""
    files = contents.read_files([str(ranks / "alone/__0.metadata"), str(ranks / "alone/__1.metadata")])
    assert ["model.same" in {t.name for t in file.tensors} for file in files] == [True, True]
    assert ["model.rows" in {t.name for t in file.tensors} for file in files] == [True, False]
    # One rank has all of it, the other an empty slice.
    assert ["model.one" in {t.name for t in file.tensors} for file in files] == [True, False]


def test_a_rank_alone_is_no_whole(ranks: Path, call: Run) -> None:
    done = call("inspect", "tensors", ranks / "alone/__0.metadata", "--hash", "--json")
    assert done.code == 0
    forms = {t["name"]: (t["form"], t["sha256"] is None) for t in done.json["tensors"]}
    assert forms["model.rows"] == ("slice", True)
    assert forms["model.same"] == ("chunked", False)
    assert "continue in other files" in done.err


def test_a_value_with_tensors(tmp_path: Path, call: Run) -> None:
    """A value that is an object of its own may hold tensors: they lie within the data file, and so does their CRC32."""
    state = {"w": torch.ones(2), "loader": (1, {"seen": torch.arange(9)}, "x")}
    path = write(tmp_path / "run", state)
    done = call("inspect", "tensors", path, "--hash", "--json")
    found = next(t for t in done.json["tensors"] if t["name"].endswith("seen"))
    assert found["sha256"] == hashlib.sha256(torch.arange(9).numpy().tobytes()).hexdigest()
    if found["offset"] is not None:
        data = (path / "__0_0.distcp").read_bytes()
        assert data[found["offset"] : found["offset"] + 72] == torch.arange(9).numpy().tobytes()


def test_converted(call: Run, ranks: Path, tmp_path: Path) -> None:
    """The chunks become whole tensors in a file that the library reads."""
    from safetensors.torch import load_file

    done = call("convert", ranks / "dcp", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done.err
    assert oracle(dict(load_file(tmp_path / "out.safetensors"))) == oracle(torch.load(ranks / "expected.pt"))
    assert call("convert", ranks / "dcp").code == 2


def test_what_one_process_leaves_for_the_hub_is_whole(tmp_path: Path, call: Run) -> None:
    """torch's Hugging Face writer says of whole tensors too where they begin; one rank's shard may be a part."""
    state = {"a": torch.randn(4, 3), "b": torch.arange(5.0).bfloat16()}
    for distributed, form in ((False, "chunked"), (True, "slice")):
        folder = tmp_path / form
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=distributed)
        quietly(partial(save, dict(state), storage_writer=writer, no_dist=True))
        done = call("inspect", "tensors", folder, "--hash", "--json")
        assert done.code == 0, done.err
        assert {tensor["form"] for tensor in done.json["tensors"]} == {form}
        assert (digests(done.json) == oracle(state)) is not distributed
        assert ("continue in other files" in done.err) is distributed


SAVES: dict[str, dict[str, Any]] = {
    "threads": {"thread_count": 3, "sync_files": False},
    "a file a value": {"thread_count": 2, "single_file_per_rank": False},
    "nested as they are": {"flatten_state_dict": False},
    "planned before": {"dedup_save_to_lowest_rank": True, "enable_plan_caching": True},
}


@pytest.mark.parametrize("kind", [*SAVES, "in the background"])
def test_every_dtype_and_view(tmp_path: Path, call: Run, kind: str) -> None:
    """However it is saved: what torch loads is what is listed, and every byte is verified."""
    bits = torch.randint(0, 256, (6, 5), dtype=torch.uint8)
    state: dict[str, Any] = {
        "e4": bits.view(torch.float8_e4m3fn), "e5": bits.view(torch.float8_e5m2), "e8": bits.view(torch.float8_e8m0fnu),
        "c32": torch.zeros(2, 3, dtype=torch.complex32), "c128": torch.randn(2, dtype=torch.complex128),
        "u16": torch.arange(5, dtype=torch.int32).to(torch.uint16), "i8": torch.arange(-3, 3, dtype=torch.int8),
        "turned": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1), "cut": torch.ones(9, 11)[2:7, ::3],
        "repeated": torch.ones(1).expand(5, 4), "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "flags": torch.tensor([[True, False]]), "scalar": torch.tensor(3.5), "none": torch.empty(2, 0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)), "last": torch.randn(2, 3, 4, 5).permute(0, 2, 3, 1),
        "raw": b"\x00\xffabc", "size": torch.Size([1, 2]), "pair": (1, 2.5, None),
    }  # fmt: skip
    if kind != "nested as they are":
        state |= {
            "list": [torch.ones(2), {"a": [1, torch.arange(4)]}, "text"],
            "nested": {"a.b": {"c": torch.zeros(3)}},
        }
    path = tmp_path / "run"
    if kind == "in the background":
        quietly(lambda: async_save(state, checkpoint_id=path, no_dist=True).result())  # type: ignore[union-attr]
    else:
        options = SAVES[kind]
        planned = {key: value for key, value in options.items() if "_file" not in key and "thread" not in key}
        writer = FileSystemWriter(path, **{key: value for key, value in options.items() if key not in planned})
        planner = DefaultSavePlanner(**planned)
        quietly(lambda: save(state, storage_writer=writer, planner=planner, no_dist=True))
    done = call("inspect", "tensors", path, "--hash", "--json")
    assert done.code == 0, done.err
    assert digests(done.json) == oracle(loaded(path, tmp_path))
    assert len(done.json["tensors"]) == (16 if kind == "nested as they are" else 19)
    assert (done.json["values"]["raw"], done.json["values"]["size"]) == ("<5 bytes 00ff616263>", [1, 2])
    assert call("verify", path, "--json").json["ok"]


def test_the_index_alone_opens_no_data_file(single: Path, tmp_path: Path) -> None:
    shutil.copy(single / ".metadata", tmp_path / ".metadata")
    file = read_index(str(tmp_path / ".metadata"))
    assert (len(file.tensors), file.values) == (7, {})
    whole = read_tensors(str(tmp_path / ".metadata"))
    assert len(whole.tensors) == 7
    assert "cannot be read" in whole.values["step"]
    assert whole.notes


# --- a data file by itself


def test_a_data_file_is_told_apart(call: Run, ranks: Path, tmp_path: Path) -> None:
    """It begins as a zip does, and is several: the index is what says so."""
    done = call("inspect", "tensors", ranks / "dcp/__0_0.distcp")
    assert done.code == 2
    assert "is a data file of a distributed checkpoint; its .metadata says what lies in it" in done.err
    assert f"`ckpt inspect tensors {ranks}/dcp`" in done.err
    shutil.copy(ranks / "dcp/__0_0.distcp", tmp_path / "__0_0.distcp")
    done = call("inspect", "tensors", tmp_path / "__0_0.distcp")
    assert done.code == 2
    assert "no .metadata beside it" in done.err
    done = call("inspect", "tensors", ranks / "alone/__1_0.distcp")
    assert "its __1.metadata says" in done.err


def test_a_data_file_of_one_value_reads_as_such(call: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "run", {"w": torch.arange(4.0)}, one_file=False)
    done = call("inspect", "tensors", path / "__0_0.distcp", "--json")
    assert done.code == 0, done.err
    assert [(t["name"], t["shape"]) for t in done.json["tensors"]] == [("<root>", [4])]
    assert "one entry of a distributed checkpoint" in done.err


# --- slices in safetensors files


def test_a_slice_is_never_the_whole(call: Run, ranks: Path) -> None:
    path = next((ranks / "hf").glob("shard-00002*"))
    done = call("inspect", "tensors", path, "--hash", "--json")
    assert done.code == 0
    rows = next(t for t in done.json["tensors"] if t["name"] == "model.rows")
    assert (rows["form"], rows["shape"], rows["sha256"]) == ("slice", [2, 8], None)
    assert [piece["offsets"] for piece in rows["pieces"]] == [[3, 0]]
    assert "continue in other files" in done.err


def sliced(path: Path, tensors: dict[str, torch.Tensor], info: object) -> str:
    save_file(tensors, path, {"format": "pt", "DCP_SHARDING_INFO": info if isinstance(info, str) else json.dumps(info)})
    return str(path)


@pytest.mark.parametrize(
    ("offsets", "rows", "fault"),
    [
        ((0, 3), (3, 2), None), ((3, 0), (2, 3), None), ((0, 3), (2, 2), "hold 8 of 10"), ((0, 2), (3, 2), "overlap"),
        ((1, 3), (2, 2), "hold 8 of 10"), ((0, 0), (3, 2), "two slices"), ((0, 0), (3, 3), None),
    ],
)  # fmt: skip
def test_slices_must_tile(tmp_path: Path, offsets: tuple[int, int], rows: tuple[int, int], fault: str | None) -> None:
    """Gaps and overlaps are damage, with the tensor's name; two of the same place are one."""
    paths = [
        sliced(tmp_path / f"shard-{n}", {"w": torch.full((r, 2), float(n))}, {"w": {"saved_offsets": [at, 0]}})
        for n, (at, r) in enumerate(zip(offsets, rows))
    ]
    if fault is None:
        file = contents.read_files(paths)[0]
        assert [(t.name, t.form) for t in file.tensors] == [("w", "chunked")]
        assert contents.read_files(paths)[1].tensors == ()
        return
    with pytest.raises(Damaged, match=rf"'w'.*{fault}"):
        contents.read_files(paths)


def test_slices_must_agree(tmp_path: Path) -> None:
    info = [{"w": {"saved_offsets": [n, 0]}} for n in (0, 2)]
    one = sliced(tmp_path / "1", {"w": torch.ones(2, 2)}, info[0])
    for name, other in (("2", torch.ones(2, 2).half()), ("3", torch.ones(2, 3))):
        two = sliced(tmp_path / name, {"w": other}, info[1])
        with pytest.raises(Damaged, match="'w'"):
            contents.read_files([one, two])


@pytest.mark.parametrize(
    "info",
    ["{", "[]", '{"w": 1}', '{"w": {}}', '{"w": {"saved_offsets": [0]}}', '{"w": {"saved_offsets": [-1, 0]}}',
     '{"w": {"saved_offsets": [0, 1e3]}}', '{"w": {"saved_offsets": [0, true]}}', "[" * 100_000,
     '{"w": {"saved_offsets": [18446744073709551615, 0]}}', '{"w": {"saved_offsets": "00"}}'],
)  # fmt: skip
def test_sharding_info_is_not_believed(tmp_path: Path, info: str) -> None:
    with pytest.raises(CkptError, match="DCP_SHARDING_INFO"):
        read_tensors(sliced(tmp_path / "x.safetensors", {"w": torch.ones(2, 2)}, info))


# --- damage


def damaged(call: Run, path: Path, *words: str, code: int = 1) -> None:
    done = call("inspect", "tensors", path, "--hash")
    assert done.code == code, done.err
    for word in words:
        assert word in done.err


def test_a_flipped_bit_is_found(call: Run, folder: Path, ranks: Path) -> None:
    """One bit of one number, in one rank's slice; torch loads it without a word."""
    slice_of_one = torch.load(ranks / "expected.pt")["model.deep"][:, :, 3:].contiguous().numpy().tobytes()
    path = folder / "__1_0.distcp"
    flip(path, path.read_bytes().index(slice_of_one) + 100, 3)
    damaged(call, folder / ".metadata", "__1_0.distcp", "CRC32")
    assert loaded(folder, folder.parent)["model.deep"].shape == (3, 4, 5)


def test_a_missing_data_file(call: Run, folder: Path) -> None:
    (folder / "__1_0.distcp").unlink()
    damaged(call, folder / ".metadata", "__1_0.distcp", code=2)
    with (
        FileSource(str(folder / ".metadata")) as source,
        pytest.raises(Damaged, match="names the data file __1_0"),
    ):
        dcp.check(source)


def test_a_cut_data_file(call: Run, folder: Path) -> None:
    path = folder / "__1_0.distcp"
    os.truncate(path, path.stat().st_size - 1)
    with (
        FileSource(str(folder / ".metadata")) as source,
        pytest.raises(Damaged, match="it lacks 1 byte of its data"),
    ):
        dcp.check(source)
    os.truncate(path, 100)
    damaged(call, folder / ".metadata", "__1_0.distcp")


def test_a_cut_index(folder: Path) -> None:
    path = folder / ".metadata"
    data = path.read_bytes()
    for length in (*range(60, len(data), 97), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CkptError):
            read_tensors(str(path))


@pytest.mark.parametrize("sound", [True, False])
def test_archives_some_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch, sound: bool) -> None:
    """What is found does not hang on how many are looked at together, nor does the sha256 of the whole."""
    path = folder / "__0_0.distcp"
    if not sound:
        for place in (100, 2500, 4000):
            flip(path, place)
    slices = tuple(slices_of(str(folder / ".metadata"))[0][str(path)])
    assert len(slices) > 5
    found = set()
    for batch in (1, 2, 1000):
        monkeypatch.setattr("ckpt_cli.slices._BATCH", batch)
        for digest in (True, False):
            done = check_file(Job(str(path), "tensors", digest, slices=slices))
            assert (done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()) is digest
            found.add((done.problems, done.covered))
    ((problems, covered),) = found
    assert bool(problems) is not sound
    assert covered is sound


def test_a_damaged_value(tmp_path: Path) -> None:
    path = write(tmp_path / "run", {"w": torch.ones(2), "word": "a text to be found again"})
    data = (path / "__0_0.distcp").read_bytes()
    flip(path / "__0_0.distcp", data.index(b"text to be"))
    with pytest.raises(Damaged, match="CRC32"):
        read_tensors(str(path / ".metadata"))


def test_bytes_of_another_tensor(call: Run, folder: Path) -> None:
    """An index that points to a whole archive, but of something else."""
    change(folder, lambda m: swap(m, "model.rows", "optimizer.state.rows.exp_avg"))
    assert call("inspect", "tensors", folder / ".metadata", "--hash").code == 0  # alike in shape: nothing can tell
    change(folder, lambda m: swap(m, "model.rows", "model.one"))
    damaged(call, folder / ".metadata", "are not the tensor that its index describes")


def swap(metadata: Metadata, one: str, other: str) -> None:
    stored = metadata.storage_data
    first, second = (MetadataIndex(name, torch.Size([0, 0])) for name in (one, other))
    stored[first], stored[second] = stored[second], stored[first]


def change(folder: Path, edit: Callable[[Metadata], object]) -> Path:
    """The index as somebody else would have written it."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return path


# --- hostile indexes, written with torch's own classes


def made(size: tuple[int, ...] = (4, 2), **places: Any) -> Metadata:
    """An index of one tensor `w` in one chunk; `places` replaces fields of its place."""
    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), torch.Size(size))
    info = {"relative_path": "__0_0.distcp", "offset": 0, "length": 100, **places}
    return Metadata(
        {"w": TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(size), [chunk])},
        storage_data={MetadataIndex("w", chunk.offsets): _StorageInfo(**info)},
    )


def refused(tmp_path: Path, metadata: object, match: str) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(metadata if isinstance(metadata, bytes) else pickle.dumps(metadata))
    begin = time.monotonic()
    with FileSource(str(path)) as source:
        for look in (dcp.read, dcp.index, dcp.check, lambda s: (list(dcp.records(s).found), dcp.read(s))):
            with pytest.raises(CkptError, match=match):
                look(source)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b", "a\nb", 7, None, ["x"], b"x"],
)
def test_a_place_elsewhere_is_refused(tmp_path: Path, name: Any) -> None:
    (tmp_path.parent / "secret").write_bytes(b"PK\3\4")
    refused(tmp_path, made(relative_path=name), "no file beside it")


@pytest.mark.parametrize("field", ["offset", "length"])
@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, "0", None])
def test_an_odd_place_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    refused(tmp_path, made(**{field: value}), "odd place")


def test_a_chunk_outside_is_refused(tmp_path: Path) -> None:
    for offsets, sizes, match in [
        ((0, 0), (3, 2), "hold 6 of 8"), ((1, 0), (4, 2), "reaches beyond"), ((0, 0), (4, 2, 1), "dimensions"),
        ((0,), (4,), "dimensions"),
    ]:  # fmt: skip
        metadata = made()
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        metadata.state_dict_metadata["w"].chunks[:] = [chunk]  # type: ignore[union-attr]
        info = next(iter(metadata.storage_data.values()))
        metadata.storage_data = {MetadataIndex("w", chunk.offsets): info}
        refused(tmp_path, metadata, match)


def test_overlaps_are_refused(tmp_path: Path) -> None:
    metadata = made()
    entry = metadata.state_dict_metadata["w"]
    assert isinstance(entry, TensorStorageMetadata)
    info = next(iter(metadata.storage_data.values()))
    entry.chunks = [ChunkStorageMetadata(torch.Size([at, 0]), torch.Size([2, 2])) for at in (0, 1)]
    metadata.storage_data = {MetadataIndex("w", chunk.offsets): info for chunk in entry.chunks}
    refused(tmp_path, metadata, "overlap|hold")
    entry.chunks = [ChunkStorageMetadata(torch.Size([at, 0]), torch.Size([3, 2])) for at in (0, 1)]
    refused(tmp_path, metadata, "overlap")


def test_a_chunk_without_a_place_is_damage(tmp_path: Path) -> None:
    metadata = made()
    metadata.storage_data = {}
    refused(tmp_path, metadata, "does not say where")
    metadata = Metadata({"step": BytesStorageMetadata()}, storage_data={})
    refused(tmp_path, metadata, "does not say where 'step'")


class Runs:
    """Unpickled by torch's reader, it would run a command."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_code_is_refused(tmp_path: Path) -> None:
    """Wherever it stands; and nothing of it is run."""
    trace = tmp_path / "ran"
    for place in ("planner_data", "storage_meta", "version"):
        metadata = made()
        setattr(metadata, place, Runs(os.mkdir, str(trace)))
        refused(tmp_path, metadata, "would run code")
    refused(tmp_path, made(relative_path=Runs(eval, "1")), "would run code")
    assert not trace.exists()


def test_code_in_a_value_is_refused(tmp_path: Path) -> None:
    """The values are pickles of their own."""
    path = write(tmp_path / "run", {"w": torch.ones(1), "x": 1})
    torch.save(Runs(os.mkdir, str(tmp_path / "ran")), path / "evil.distcp")
    length = (path / "evil.distcp").stat().st_size

    def edit(metadata: Metadata) -> None:
        metadata.storage_data[MetadataIndex("x")] = _StorageInfo("evil.distcp", 0, length)

    change(path, edit)
    with pytest.raises(CkptError, match="would run code"):
        read_tensors(str(path / ".metadata"))
    assert not (tmp_path / "ran").exists()


def test_unknown_classes_are_inert(tmp_path: Path) -> None:
    metadata = made()
    metadata.planner_data = {"x": random.Random(0), "y": Runs(copy.copy, 1)}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    file = read_tensors(str(tmp_path / ".metadata"))
    assert {(name.name, name.runs_code) for name in file.foreign_globals} == {
        ("random.Random", False), ("copy.copy", False),
    }  # fmt: skip
    assert [tensor.shape for tensor in file.tensors] == [(4, 2)]


def test_an_index_that_names_itself(tmp_path: Path) -> None:
    """A value that is the index again must not be followed."""
    metadata = Metadata(
        {"again": BytesStorageMetadata()}, storage_data={MetadataIndex("again"): _StorageInfo(".metadata", 0, 200)}
    )
    data = pickle.dumps(metadata)
    (tmp_path / ".metadata").write_bytes(data)
    assert "bytes in .metadata" in str(read_tensors(str(tmp_path / ".metadata")).values["again"])


def test_compressed_chunks_are_named(tmp_path: Path, call: Run) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(200))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(made(transform_descriptors=["zstd"])))
    done = call("inspect", "tensors", tmp_path / ".metadata", "--hash", "--json")
    assert done.code == 0, done.err
    assert done.json["tensors"][0]["sha256"] is None
    assert call("convert", tmp_path / ".metadata", "-o", tmp_path / "x.safetensors").code == 2


def many(count: int, ranks: int = 1) -> bytes:
    """The index of so many tensors as torch writes it, each in a chunk a rank."""
    described: dict[str, Any] = {}
    places = {}
    for number in range(count):
        name = f"optim.state.layers.{number // 96}.moe.experts.{number % 96}.weight.exp_avg"
        chunks = [ChunkStorageMetadata(torch.Size([16 * rank, 0]), torch.Size([16, 64])) for rank in range(ranks)]
        described[name] = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([16 * ranks, 64]), chunks)
        for rank, chunk in enumerate(chunks):
            places[MetadataIndex(name, chunk.offsets, rank)] = _StorageInfo(f"__{rank}_0.distcp", 5000 * number, 5000)
    return pickle.dumps(
        Metadata(described, {name: tuple(name.split(".")) for name in described}, places, None, "1.0.0")
    )


@pytest.mark.parametrize("ranks", [1, 8])
def test_what_was_read_goes_as_it_is_taken_over(tmp_path: Path, ranks: int) -> None:
    """The interpreter's objects took 2,500 bytes a chunk, and a model has a hundred thousand of them."""
    path = tmp_path / ".metadata"
    path.write_bytes(many(8000 // ranks, ranks))
    tracemalloc.start()
    try:
        file = read_index(str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(file.tensors), len(file.storages)) == (8000 // ranks, 8000)
    assert peak < 8000 * 1700
    shapes = {id(tensor.shape) for tensor in file.tensors}
    assert len(shapes) == 1


def test_slots_that_look_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which memo slots are asked for is told from bytes that need be no opcodes, and may lie across two blocks."""
    state = {f"{n:03d}{'j' * (n % 9)}" + chr(n) * 3: torch.zeros(n % 5) for n in range(400)}
    path = write(tmp_path / "run", {"model": state}) / ".metadata"
    whole = read_index(str(path))
    assert [tensor.name for tensor in whole.tensors] == [f"model.{name}" for name in state]
    for length in (1, 5, 1000):
        monkeypatch.setattr("ckpt_cli.formats._stream.BLOCK", length)
        assert read_index(str(path)) == whole


def spelt() -> Metadata:
    """What torch's own classes hold in each way that they are pickled in, often enough to be met again."""
    described: dict[str, Any] = {}
    stored: dict[MetadataIndex, _StorageInfo] = {}
    for number in range(240):
        shape = torch.Size([300, 2, 70_000, 1, 3][: number % 6])
        name = f"layers.{number}.w\u00e9ight" if number % 7 == 0 else f"layers.{number}.weight"
        begin = torch.Size([0] * len(shape))
        chunks = [ChunkStorageMetadata(begin, torch.Size(shape))]
        if number % 5 == 3 and shape:
            rows = 1 if number % 2 else 100
            chunks = [
                ChunkStorageMetadata(torch.Size([at, *begin[1:]]), torch.Size([rows, *shape[1:]]))
                for at in range(0, 300, rows)
            ]
        kind = torch.bfloat16 if number % 4 else torch.float32
        described[name] = TensorStorageMetadata(TensorProperties(kind, requires_grad=number % 3 == 0), shape, chunks)
        for rank, chunk in enumerate(chunks):
            offsets = chunk.offsets if number % 2 else torch.Size(list(chunk.offsets))
            key = MetadataIndex(f"{name}x"[:-1] if number % 3 else name, offsets, rank if number % 2 else None)
            place = 2 ** (number % 50) + 9 * rank
            stored[key] = _StorageInfo(f"__{number % 9}_{rank % 3}.distcp", place, 7 * number)
        described[f"step.{number}"] = BytesStorageMetadata()
        transforms = ["zstd"] if number % 10 == 0 else None
        stored[MetadataIndex(f"step.{number}")] = _StorageInfo("__0_0.distcp", 5, 300, transforms)
    return Metadata(described, {name: tuple(name.split(".")) for name in described}, stored, None)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_objects_in_one_step_are_what_the_opcodes_make(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(spelt(), protocol))
    steps = _dcp_step.steps()
    taken: list[bool] = []

    def watched(step: Callable[[Any], bool], machine: Any) -> bool:
        taken.append(step(machine))
        return taken[-1]

    monkeypatch.setattr(_dcp_step, "steps", lambda: {name: partial(watched, step) for name, step in steps.items()})
    short = read_index(str(path))
    assert len(short.tensors) == 240 and len(short.storages) > 4_000
    assert sum(taken) > (0.9 * len(taken) if protocol > 2 else -1)
    monkeypatch.setattr(_dcp_step, "steps", dict)
    assert read_index(str(path)) == short
    monkeypatch.undo()
    for length in (97, 1000):
        monkeypatch.setattr("ckpt_cli.formats._stream.BLOCK", length)
        assert read_index(str(path)) == short


def test_altered_objects_are_what_the_opcodes_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any byte that is another, the refusal too; what is wrong is at most told of another byte."""
    path = tmp_path / ".metadata"
    data = many(60, 2)
    chance = random.Random(5)

    def came() -> object:
        try:
            file = read_index(str(path))
            return file.tensors, file.storages, file.foreign_globals
        except CkptError as error:
            return error.message.replace(str(path), "")

    whole = len(read_index_of(path, data).tensors)
    told = set()
    for _ in range(1500):
        changed = bytearray(data)
        at = chance.randrange(3000, len(data))
        changed[at] = chance.choice((changed[at] ^ 1 << chance.randrange(8), *b"hj()N\x94\x85ub"))
        path.write_bytes(changed)
        short = came()
        with monkeypatch.context() as patched:
            patched.setattr(_dcp_step, "steps", dict)
            assert came() == short, at
        told.add(short if isinstance(short, str) else "")
    assert whole == 60 and len(told) > 20


def read_index_of(path: Path, data: bytes) -> TensorFile:
    path.write_bytes(data)
    return read_index(str(path))


def test_code_behind_what_is_wrong_is_told_first(tmp_path: Path) -> None:
    metadata = made(relative_path="../x")
    metadata.version = Runs(os.mkdir, "x")  # type: ignore[assignment]
    refused(tmp_path, metadata, "would run code")


@pytest.mark.parametrize("protocol", [0, 1])
def test_a_protocol_of_old(tmp_path: Path, protocol: int) -> None:
    refused(tmp_path, pickle.dumps(made(), protocol), "pickled with protocol 0 or 1")
    assert read_tensors_of(tmp_path, pickle.dumps(made(), 2)) == [("w", (4, 2))]


def read_tensors_of(tmp_path: Path, data: bytes) -> list[tuple[str, tuple[int, ...]]]:
    (tmp_path / ".metadata").write_bytes(data)
    return [(tensor.name, tensor.shape) for tensor in read_tensors(str(tmp_path / ".metadata")).tensors]


def test_a_million_chunks(tmp_path: Path) -> None:
    """One list of a thousand chunks under a thousand names is a small file; it must not unfold."""
    metadata = made()
    entry = metadata.state_dict_metadata["w"]
    assert isinstance(entry, TensorStorageMetadata)
    entry.size = torch.Size([1000, 2])
    entry.chunks = [ChunkStorageMetadata(torch.Size([at, 0]), torch.Size([1, 2])) for at in range(1000)]
    info = next(iter(metadata.storage_data.values()))
    metadata.storage_data = {MetadataIndex("w", chunk.offsets): info for chunk in entry.chunks}
    metadata.state_dict_metadata = {f"w{n}": entry for n in range(1000)}
    refused(tmp_path, metadata, "does not say where")
    for n in range(1000):
        metadata.state_dict_metadata[f"w{n}"] = entry
    metadata.storage_data = {}
    empty = ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([0, 2]))
    entry.size, entry.chunks = torch.Size([0, 2]), [empty] * 1000
    refused(tmp_path, metadata, "more chunks than its file can describe")


class Pairs:
    """A dict that was written with the same key twice."""

    def __init__(self, *pairs: tuple[object, object]) -> None:
        self.pairs = pairs

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter(self.pairs)


def test_two_places_are_refused(tmp_path: Path) -> None:
    """Two keys that are equal to torch, which would take the later."""
    metadata = made()
    info = next(iter(metadata.storage_data.values()))
    metadata.storage_data = Pairs(*((MetadataIndex("w", torch.Size([0, 0]), number), info) for number in (1, 2)))
    refused(tmp_path, metadata, "two places")


def test_noise(tmp_path: Path, ranks: Path) -> None:
    """Any byte of a real index changed: a reading or a CkptError."""
    data = (ranks / "dcp/.metadata").read_bytes()
    chance = random.Random(3)
    (tmp_path / "x").mkdir()
    for _ in range(800):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 3])):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        path = tmp_path / "x/.metadata"
        path.write_bytes(changed)
        try:
            assert type(read_tensors(str(path))) is TensorFile
        except CkptError as error:
            assert not error.message.endswith(".")


# --- tiling


def test_tiling() -> None:
    """Against counting each element."""
    chance = random.Random(5)
    outcomes = set()
    for _ in range(3000):
        shape = tuple(chance.randint(1, 4) for _ in range(chance.randint(0, 3)))
        boxes = split(chance, (0,) * len(shape), shape, chance.randint(0, 3))
        if chance.random() < 0.5 and boxes and shape:
            at = chance.randrange(len(boxes))
            first, extent = map(list, boxes[at])
            chance.choice([first, extent])[chance.randrange(len(shape))] += chance.choice([-1, 1])
            boxes[at] = (tuple(first), tuple(extent))
        if chance.random() < 0.1 and boxes:
            boxes.append(chance.choice(boxes))
        if any(n < 0 for _, size in boxes for n in size):
            continue
        chance.shuffle(boxes)
        count = torch.zeros(shape, dtype=torch.int64)
        inside = True
        for begin, size in boxes:
            inside &= 0 in size or all(b >= 0 and b + s <= n for b, s, n in zip(begin, size, shape))
            if inside and 0 not in size:
                count[tuple(slice(b, b + s) for b, s in zip(begin, size))] += 1
        expected = inside and bool((count == 1).all())
        assert (tiling_fault(shape, boxes) is None) is expected, (shape, boxes)
        outcomes.add(expected)
    assert outcomes == {True, False}


def split(
    chance: random.Random, begin: tuple[int, ...], size: tuple[int, ...], times: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    axes = [axis for axis, n in enumerate(size) if n > 1]
    if not times or not axes:
        return [(begin, size)]
    axis = chance.choice(axes)
    cut = chance.randint(1, size[axis] - 1)
    later = (*begin[:axis], begin[axis] + cut, *begin[axis + 1 :])
    return [
        *split(chance, begin, (*size[:axis], cut, *size[axis + 1 :]), times - 1),
        *split(chance, later, (*size[:axis], size[axis] - cut, *size[axis + 1 :]), times - 1),
    ]


def test_tiling_of_many_pieces_is_quick() -> None:
    begin = time.monotonic()
    strips = [((0, at), (1000, 1)) for at in range(20_000)]
    assert tiling_fault((1000, 20_000), strips) is None
    # Not a grid, and all side by side: the sweep must not compare each with each.
    ragged = [((0, at), (1000, 1)) for at in range(19_999)] + [((0, 19_999), (400, 1)), ((400, 19_999), (600, 1))]
    assert tiling_fault((1000, 20_000), ragged) is None
    assert time.monotonic() - begin < 5


# --- the layout


@pytest.mark.parametrize(
    ("name", "unit", "step"),
    [("step_10", "step", 10), ("step-10", "step", 10), ("checkpoint-500", "step", 500), ("iter_0000100", "step", 100),
     ("epoch_2", "epoch", 2), ("dist_epoch_0", "epoch", 0), ("global_step5", "step", 5),
     ("epoch=0-step=10.ckpt", "step", 10)],
)  # fmt: skip
def test_a_folder_named_for_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, unit: str, step: int
) -> None:
    """The folder above is the run, whichever of them is the root."""
    # A trainer with a layout of its own may claim what is called like this.
    monkeypatch.setattr("ckpt_cli.discover.layouts", lambda: (layout_named("dcp"),))
    folder = tmp_path / "runs/a" / name
    write(folder, {"w": torch.ones(2), "optimizer.lr": 1})
    for root in (tmp_path, tmp_path / "runs"):
        (found,) = discover(str(root)).checkpoints
        assert (found.layout, found.unit, found.step, found.state) == ("dcp", unit, step, "complete")
        assert found.tag.endswith("a")
        assert (found.dir, found.run_dir) == (str(folder), str(folder.parent))
        assert [part.role for part in found.parts] == ["index", "model"]


def test_steps_are_one_run(call: Run, tmp_path: Path) -> None:
    for step in (9, 10, 200):
        write(tmp_path / f"runs/a/step-{step}", {"w": torch.ones(2), "optimizer": {"m": torch.ones(2)}})
    write(tmp_path / "runs/lone", {"w": torch.ones(2)})
    done = call("list", tmp_path, "--json")
    assert [(c["ref"], c["step"], c["resumable"]) for c in done.json["checkpoints"]] == [
        ("runs/a/9", 9, True), ("runs/a/10", 10, True), ("runs/a/200", 200, True), ("runs/lone", None, False),
    ]  # fmt: skip
    for field in ("path", "dir"):
        assert call("latest", "a", "--root", tmp_path, "--field", field).out == f"{tmp_path}/runs/a/step-200\n"
    done = call("prune", "a", "--root", tmp_path, "--keep", "1", "--yes", "--json")
    assert done.code == 0, done.err
    assert sorted(os.listdir(tmp_path / "runs/a")) == ["step-200"]


def test_an_unfinished_save(call: Run, tmp_path: Path) -> None:
    """Without its index it is nobody's checkpoint: in progress while it is fresh, then incomplete."""
    folder = write(tmp_path / "run", {"w": torch.ones(2)})
    os.rename(folder / ".metadata", folder / ".metadata.tmp")
    (found,) = discover(str(tmp_path)).checkpoints
    assert found.state == "in-progress"
    assert [(p.code, os.path.basename(p.path)) for p in found.problems] == [("missing-part", ".metadata")]
    (found,) = discover(str(tmp_path), now=time.time_ns() + 3600 * 10**9).checkpoints
    assert (found.state, found.resumable) == ("incomplete", False)


def test_a_lacking_data_file_is_seen_by_list(tmp_path: Path, ranks: Path) -> None:
    folder = Path(shutil.copytree(ranks / "dcp", tmp_path / "run"))
    later = time.time_ns() + 3600 * 10**9
    assert discover(str(tmp_path), now=later).checkpoints[0].state == "complete"
    path = folder / "__1_0.distcp"
    os.truncate(path, path.stat().st_size - 1)
    (found,) = discover(str(tmp_path), now=later).checkpoints
    assert [(p.code, os.path.basename(p.path)) for p in found.problems] == [("truncated", "__1_0.distcp")]
    path.unlink()
    (found,) = discover(str(tmp_path), now=later).checkpoints
    assert (found.state, found.problems[0].code, found.problems[0].path) == ("incomplete", "missing-part", str(path))
    (folder / "__0_0.distcp").unlink()
    (found,) = discover(str(tmp_path), now=later).checkpoints
    assert len(found.problems) == 2
    (folder / ".metadata").write_bytes(b"of something else")
    assert discover(str(tmp_path)).checkpoints == ()


def test_a_garbled_index_is_a_problem(tmp_path: Path, ranks: Path) -> None:
    folder = Path(shutil.copytree(ranks / "dcp", tmp_path / "run"))
    (folder / ".metadata").write_bytes(pickle.dumps(made(relative_path="../x")))
    (found,) = discover(str(tmp_path)).checkpoints
    assert [p.code for p in found.problems] == ["bad-index"]


def test_shards_of_the_hub_writer(tmp_path: Path, ranks: Path) -> None:
    """One checkpoint; a rank that lacks between others is missed."""
    folder = Path(shutil.copytree(ranks / "hf", tmp_path / "run"))
    (found,) = discover(str(tmp_path)).checkpoints
    assert (found.layout, found.state, [part.rank for part in found.parts]) == ("dcp", "complete", [0, 1])
    first = next(folder.glob("shard-00001*"))
    first.rename(folder / first.name.replace("shard-00001", "shard-00003"))
    (found,) = discover(str(tmp_path)).checkpoints
    assert [p.code for p in found.problems] == ["missing-part"]


def test_odd_names_are_no_exception(tmp_path: Path) -> None:
    chance = random.Random(4)
    pieces = ["__", "0", "_", "1", "9" * 20, ".distcp", ".metadata", ".tmp", "shard-", "00001", "-model-", "-of-", "x"]
    pieces += [".safetensors", "\n", "٣"]
    for name in {"".join(chance.choices(pieces, k=chance.randint(1, 8))) for _ in range(2000)}:
        if len(name) < 100:
            (tmp_path / name).touch()
    for checkpoint in discover(str(tmp_path)).checkpoints:
        assert checkpoint.parts or checkpoint.problems


def test_prune_counts_no_checkpoint_with_a_cut_file(call: Run, tmp_path: Path, ranks: Path) -> None:
    """The newest is cut short and still the newest by name: the one before it must stay."""
    for step in (1, 2, 3):
        shutil.copytree(ranks / "dcp", tmp_path / f"a/step_{step}")
    path = tmp_path / "a/step_3/__0_0.distcp"
    os.truncate(path, path.stat().st_size - 5)
    done = call("prune", tmp_path, "--keep", "1", "--dry-run", "--json")
    assert done.code == 0, done.err
    (group,) = done.json["groups"]
    assert [row["ref"].rpartition("/")[2] for row in group["keep"]] == ["2"]
    assert [row["ref"].rpartition("/")[2] for row in group["remove"]] == ["1"]


# --- files that torchtune and torch wrote elsewhere


def test_real_files(call: Run, shared: Path, tmp_path: Path) -> None:
    """torchtune's own epochs, against the digests that were taken when they were written."""
    expected = json.loads((shared / "real/torchtune/0.6.1/distributed/expected.json").read_text())
    for epoch in expected["epochs"]:
        path = shared / f"real/torchtune/0.6.1/distributed/dist_epoch_{epoch['epoch']}/.metadata"
        done = call("inspect", "tensors", path, "--hash", "--json")
        found = {t["name"]: (t["dtype"], t["shape"], t["sha256"]) for t in done.json["tensors"]}
        for name, said in epoch["tensors"].items():
            assert found[name] == (said["dtype"], said["shape"], said["sha256"]), name
    # A copy of any age: what was touched within the grace time counts as still being written.
    shutil.copytree(shared / "real/dcp", tmp_path / "dcp")
    for path in (tmp_path / "dcp").rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    done = call("list", tmp_path / "dcp", "--json")
    assert [(c["ref"], c["state"]) for c in done.json["checkpoints"]] == [
        ("hf-sharded", "complete"), ("interrupted-no-metadata", "incomplete"), ("one-rank", "complete"),
    ]  # fmt: skip
