"""Conversion to torch files, shards, other dtypes and whole runs: what comes back is what was there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ckpt_cli import casts, torch_writer, writing
from ckpt_cli.convert import plan
from ckpt_cli.errors import CkptError
from ckpt_cli.formats import Files
from ckpt_cli.items import Item
from ckpt_cli.nesting import nested
from ckpt_cli.pickling import dumps
from ckpt_cli.recipe import Request
from ckpt_cli.tensor_file import Storage, TensorInfo
from ckpt_cli.tensors import blocks, read_tensors
from tests.conftest import REPOSITORY, Run
from tests.test_convert import KEPT, header
from tests.torch_files import DTYPES, filled, flip, named, places, plain

X86 = platform.machine() in ("x86_64", "AMD64")


def to_torch(source: Path, target: Path, **request: Any) -> Any:
    """Writes a torch file and opens it as careful people do: weights only, and mapped."""
    recipe = plan([read_tensors(str(source))], str(target), Request("pt", **request))
    writing.write(recipe.outputs, False, lambda count: None)
    mapped = torch.load(target, weights_only=True, mmap=True)
    loaded = torch.load(target, weights_only=True)
    for (name, one), (_, other) in zip(named(loaded), named(mapped)):
        assert plain(one) == plain(other), name
    return loaded


def assert_equal(found: Any, wanted: Any) -> None:
    """The same containers, values and tensors, bit for bit; lists and dicts of the plain kinds."""
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert plain(found) == plain(wanted)
    elif isinstance(wanted, dict):
        assert isinstance(found, dict)
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            assert_equal(found[key], value)
    elif isinstance(wanted, (list, tuple)):
        assert type(found) is type(wanted)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted):
            assert_equal(one, other)
    else:
        assert repr(found) == repr(wanted)
        assert type(found) is type(wanted)


def round_trip(state: Any, folder: Path) -> Any:
    """`.pt` -> safetensors -> `.pt`, and `.pt` -> `.pt`, which give the same."""
    torch.save(state, folder / "a.pt")
    middle = plan([read_tensors(str(folder / "a.pt"))], str(folder / "b.safetensors"))
    writing.write(middle.outputs, False, lambda count: None)
    direct = to_torch(folder / "a.pt", folder / "d.pt")
    found = to_torch(folder / "b.safetensors", folder / "c.pt")
    assert_equal(found, direct)
    return found


# --- torch files


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    state = {str(dtype): filled(dtype, 3, 4) for dtype in KEPT} | {
        f"{dtype} alone": filled(dtype) for dtype in KEPT if dtype != torch.float4_e2m1fn_x2
    }
    assert_equal(round_trip(state, tmp_path), state)


def test_dtypes_that_safetensors_lacks(tmp_path: Path) -> None:
    """From torch to torch every dtype goes that torch can save."""
    lacking = [dtype for dtype in DTYPES if dtype not in KEPT]
    state = {str(dtype): filled(dtype, 4) for dtype in lacking}
    assert torch.complex128 in lacking
    torch.save(state, tmp_path / "a.pt")
    assert_equal(to_torch(tmp_path / "a.pt", tmp_path / "b.pt"), state)


def test_ties_are_one_storage_again(tmp_path: Path) -> None:
    """Aliases with other shapes, strides and offsets are views again: to change one changes all."""
    base = torch.arange(40.0).view(10, 4)
    state = {"half": base[5:], "emb": base, "head": base, "flat": base.view(40), "turned": base.t(),
             "column": base[:, 1], "expanded": base[0, :2].expand(3, 2), "other": torch.ones(3)}  # fmt: skip
    found = round_trip(state, tmp_path)
    assert_equal(found, state)
    for name, tensor in state.items():
        assert found[name].stride() == tensor.stride(), name
        assert found[name].storage_offset() == tensor.storage_offset(), name
    found["emb"][5, 1] = -1
    assert found["half"][0, 1] == found["flat"][21] == found["turned"][1, 5] == found["column"][5] == -1


def test_nested_state_comes_back(tmp_path: Path) -> None:
    """Dicts, lists, tuples, integer keys, empty containers, names with dots, every plain value."""
    state = {
        "model": {"h.0.w": torch.ones(2), "h.1.w": torch.zeros(2), "sub": {}},
        "list": [1, [torch.ones(1), {"x": None}], [], (1, "a", None), ({"y": torch.ones(1)}, [2])],
        "ints": {0: torch.ones(1), 5: {-3: "minus"}},
        "numbers": [0, 255, 256, -1, 2**31 - 1, 2**31, -(2**31), 2**63, -(2**70), True, False],
        "floats": [0.1, float("nan"), float("inf"), -0.0, 5e-324],
        "text": "ü\n\0 €",
        "none": None,
    }
    assert_equal(round_trip(state, tmp_path), state)


def test_what_is_shared_is_one_object_again(tmp_path: Path) -> None:
    shared = {"lr": 0.1, "betas": [0.9, 0.95]}
    found = round_trip({"a": shared, "b": [shared, shared], "w": torch.ones(1)}, tmp_path)
    assert found["a"] is found["b"][0] is found["b"][1]
    assert found["a"] == shared


def test_what_is_lost_is_named(tmp_path: Path, call: Run) -> None:
    import argparse

    state = {"w": torch.ones(1), "args": argparse.Namespace(lr=1), "raw": b"abc", "some": {1, 2}, 3: "mixed keys"}
    torch.save(state, tmp_path / "a.pt")
    for to, name in (("pt", "b.pt"), ("safetensors", "b.safetensors")):
        done = call("convert", tmp_path / "a.pt", "--to", to, "-o", tmp_path / name)
        assert done.code == 0
        for lost in ("'args'", "'raw'", "'some'"):
            assert lost in done.err
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found["args"]["lr"] == 1


@pytest.mark.filterwarnings("ignore")
def test_a_pickled_module_becomes_its_state_dict(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.ReLU()))
    torch.save(module, tmp_path / "a.pt")
    assert_equal(to_torch(tmp_path / "a.pt", tmp_path / "b.pt"), dict(module.state_dict()))


def test_an_optimizer_is_restored(tmp_path: Path) -> None:
    """What torch wrote, taken apart and put together again, is loaded by the optimizer it came from."""
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
    state = optimizer.state_dict()
    found = round_trip(state, tmp_path)
    assert_equal(found, state)
    torch.optim.AdamW(model.parameters()).load_state_dict(found)


def test_real_optimizers_are_restored(shared: Path, tmp_path: Path) -> None:
    """Those of nanochat's trainers: several optimizers in lists, groups with tensors and tuples."""
    sources = sorted((shared / "real/nanochat").rglob("optim_*.pt"))
    assert len(sources) > 5
    for index, source in enumerate(sources[:20]):
        (tmp_path / str(index)).mkdir()
        wanted = torch.load(source, weights_only=True)
        assert_equal(round_trip(wanted, tmp_path / str(index)), wanted)


def test_a_large_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More records than fit into 16 bits, and a pickle with more of everything than one byte counts."""
    monkeypatch.setenv("CKPT_MEMORY", "1000")  # as so many tensors of so few bytes need
    state = {f"p{index}": torch.tensor(index) for index in range(70_000)}
    file = tmp_path / "a.safetensors"
    save_file(state, file)
    found = to_torch(file, tmp_path / "b.pt")
    assert {name: int(value) for name, value in found.items()} == {f"p{i}": i for i in range(70_000)}
    assert len(zipfile.ZipFile(tmp_path / "b.pt").namelist()) == 70_006


def test_more_than_four_gibibytes(tmp_path: Path) -> None:
    """ZIP64: a record longer than 32 bits tell, and one that lies beyond; read by torch and by Python."""
    if shutil.disk_usage(tmp_path).free < 12 << 30:
        pytest.skip("no room for two files of 4.3 GB")
    count = (1 << 32) + 4096
    raw = tmp_path / "raw"
    with open(raw, "wb") as file:
        file.truncate(count + 8)
        file.seek(count - 1)
        file.write(b"\x07AFTER")
    size = count
    big = TensorInfo("big", "uint8", (size,), (1,), 0, 1, Storage("0", str(raw), 0, size))
    after = TensorInfo("after", "uint8", (5,), (1,), 0, 1, Storage("1", str(raw), count, 5))
    items = [Item(t.name, t, t.shape, t.dtype) for t in (big, after)]
    made = torch_writer.archive(str(tmp_path / "out.pt"), items, (), ["big", "after"], {}, {})
    writing.write([made.output], False, lambda done: None)
    raw.unlink()
    found = torch.load(tmp_path / "out.pt", weights_only=True, mmap=True)
    assert bytes(found["after"].numpy().tobytes()) == b"AFTER"
    assert (found["big"].shape[0], int(found["big"][-1]), int(found["big"][-2])) == (size, 7, 0)
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.getinfo("archive/data/0").file_size == size
        assert archive.read("archive/data/1") == b"AFTER"


def test_the_archive_is_as_torch_writes_it(tmp_path: Path, call: Run) -> None:
    """Names in torch's order, nothing compressed, bytes at multiples of 64, and every CRC32 there and right."""
    state = {"a": filled(torch.float32, 5), "b": filled(torch.bfloat16, 7), "c": torch.zeros(0)}
    torch.save(state, tmp_path / "a.pt")
    to_torch(tmp_path / "a.pt", tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as one, zipfile.ZipFile(tmp_path / "b.pt") as other:
        names = [name.partition("/")[2] for name in one.namelist()]
        assert [name.partition("/")[2] for name in other.namelist()] == names
        assert other.testzip() is None
        assert {info.compress_type for info in other.infolist()} == {zipfile.ZIP_STORED}
        assert all(info.CRC for info in other.infolist() if info.file_size)
        for name in ("byteorder", "version", ".format_version", ".storage_alignment"):
            assert other.read(f"archive/{name}") == one.read(f"a/{name}")
    assert {start % 64 for start, _ in places(tmp_path / "b.pt").values()} == {0}
    for start, length in places(tmp_path / "b.pt").values():
        if length:
            flip(tmp_path / "b.pt", start + length // 2)
            problems = call("verify", tmp_path / "b.pt", "--json").json["results"][0]["problems"]
            assert problems
            flip(tmp_path / "b.pt", start + length // 2)


def test_what_the_pickle_writer_refuses() -> None:
    for value in (b"bytes", {1, 2}, object(), 1 << 3000):
        with pytest.raises(CkptError, match="cannot be written"):
            dumps({"x": value})


def test_a_pickle_that_is_deep_or_wide_or_holds_itself_many_times(tmp_path: Path) -> None:
    import pickle

    deep: Any = []
    for _ in range(50_000):
        deep = [deep]
    assert dumps(deep).endswith(b".")
    wide = {f"k{index}": list(range(index % 7)) for index in range(5000)}
    assert pickle.loads(dumps(wide)) == wide  # what was written here, not a file
    bomb: Any = {}
    for _ in range(60):
        bomb = {"a": bomb, "b": bomb}
    assert len(dumps(bomb)) < 5000


def test_names_that_refer_to_what_holds_them() -> None:
    """A hostile header can say that a value is the same as what it lies in."""
    kinds = {"": "dict", "a": "dict", "a.b": "same", "c": "same", "d": "same"}
    value, lost = nested([("a.b", "<same as a>"), ("c", "<same as <root>>"), ("d", "<same as nowhere>")], kinds)
    assert value == {"a": {"b": "<same as a>"}, "c": "<same as <root>>", "d": "<same as nowhere>"}
    assert lost == ["a.b", "c", "d"]


@pytest.mark.parametrize(
    "aliases",
    [
        "[]", "{", '{"x": 5}', '{"x": {"of": "none"}}',
        '{"w": {"of": "w", "dtype": "float32", "shape": [1], "stride": [1], "offset": 0}}',
        '{"x": {"of": "w", "dtype": "float32", "shape": [5], "stride": [1], "offset": 0}}',
        '{"x": {"of": "w", "dtype": "float32", "shape": [2], "stride": [-1], "offset": 1}}',
        '{"x": {"of": "w", "dtype": "float32", "shape": [2], "stride": [1], "offset": 3}}',
        '{"x": {"of": "w", "dtype": "nothing", "shape": [2], "stride": [1], "offset": 0}}',
        '{"x": {"of": "w", "dtype": "float32", "shape": [2, 2], "stride": [1], "offset": 0}}',
    ],
)  # fmt: skip
def test_aliases_that_do_not_fit(aliases: str, tmp_path: Path) -> None:
    """What a header says of ties is checked before it is believed."""
    save_file({"w": torch.ones(4)}, tmp_path / "a.safetensors", {"ckpt.aliases": aliases})
    with pytest.raises(CkptError, match="aliases"):
        plan([read_tensors(str(tmp_path / "a.safetensors"))], str(tmp_path / "b.pt"), Request("pt"))


def test_metadata_comes_back_as_a_file(tree: Path, call: Run) -> None:
    """The meta file word for word beside the torch file, under the trainer's name where the model has one."""
    meta = (tree / "base_checkpoints/d4/meta_000100.json").read_bytes()
    assert call("convert", "base/d4/100", "--root", tree, "-o", tree / "x.safetensors").code == 0
    (tree / "out").mkdir()
    done = call("convert", tree / "x.safetensors", "--to", "pt", "-o", tree / "out/model_000100.pt", "-q")
    assert done.out.split() == [str(tree / "out/model_000100.pt"), str(tree / "out/meta_000100.json")]
    assert (tree / "out/meta_000100.json").read_bytes() == meta
    wanted = torch.load(tree / "base_checkpoints/d4/model_000100.pt", weights_only=True)
    assert_equal(torch.load(tree / "out/model_000100.pt", weights_only=True), dict(wanted))


# --- casts


def patterns(dtype: str) -> torch.Tensor:
    """Every bit pattern of a dtype of 8 or 16 bits; many of the others, the edges of rounding among them."""
    if dtype in ("float16", "bfloat16"):
        return torch.from_numpy(numpy.arange(1 << 16, dtype="u2").view("i2")).view(getattr(torch, dtype))
    if dtype.startswith("float8"):
        return torch.from_numpy(numpy.arange(256, dtype="u1")).view(getattr(torch, dtype))
    random = numpy.random.default_rng(5)
    if dtype == "float32":
        high = numpy.arange(1 << 16, dtype="u4") << 16
        low = numpy.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000, 0x0FFF, 0x1001, 0x3000], "u4")
        bits = numpy.concatenate([(high[:, None] | low).reshape(-1), random.integers(0, 1 << 32, 1 << 18, "u4")])
        return torch.from_numpy(bits.view("i4")).view(torch.float32)
    values = random.normal(size=1 << 18) * 10.0 ** random.integers(-60, 40, 1 << 18)
    edges = numpy.array([0.0, -0.0, 65504, 65519.99, 65520, 5.96e-8, 2.98e-8, 1e300, -1e-300, numpy.inf, -numpy.inf])
    return torch.from_numpy(numpy.concatenate([values, edges]))


SOURCES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
           "float8_e5m2fnuz")  # fmt: skip


@pytest.mark.parametrize("target", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", SOURCES)
def test_casts_are_those_of_torch(source: str, target: str) -> None:
    if source == target:
        return
    values = patterns(source)
    data = memoryview(bytearray(plain(values)))
    wanted = values.to(getattr(torch, target))
    for make in (casts.numpy_cast(numpy, source, target), casts.torch_cast(source, target)):
        found = torch.frombuffer(bytearray(make(data)), dtype=getattr(torch, target))
        if not X86:  # what becomes of a NaN is the processor's
            assert torch.equal(found.isnan(), wanted.isnan())
            found, numbers = found[~found.isnan()], wanted[~wanted.isnan()]
            assert plain(found) == plain(numbers)
        else:
            assert plain(found) == plain(wanted)


def test_a_cast_file(tmp_path: Path, call: Run) -> None:
    """Floating-point tensors and their aliases; integers, booleans and complex numbers stay."""
    base = torch.randn(6, 4)
    state = {"w": base, "tied": base, "part": base[2:4], "turned": torch.randn(5, 3).t(), "i": torch.arange(3),
             "b": torch.tensor([True]), "c": torch.ones(2, dtype=torch.complex64), "h": torch.ones(2).half(),
             "same": torch.ones(3).bfloat16()}  # fmt: skip
    torch.save(state, tmp_path / "a.pt")
    wanted = {name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()}
    done = call("convert", tmp_path / "a.pt", "--dtype", "bf16", "-o", tmp_path / "b.safetensors", "--json")
    assert done.code == 0, done.err
    assert done.json["cast"] == [{"from": "float32", "to": "bfloat16"}, {"from": "float16", "to": "bfloat16"}]
    assert {tie["name"] for tie in done.json["tied"]} == {"tied", "part"}
    for source, target in (("b.safetensors", "c.pt"), ("a.pt", "d.pt")):
        done = call("convert", tmp_path / source, "--dtype", "torch.bfloat16", "--to", "pt", "-o", tmp_path / target)
        assert done.code == 0, done.err
        found = torch.load(tmp_path / target, weights_only=True)
        assert_equal(found, wanted)
        assert found["tied"].data_ptr() == found["w"].data_ptr()
    # The bytes are half as many, and the source's CRC is checked all the same.
    flip(tmp_path / "a.pt", places(tmp_path / "a.pt")["a/data/0"][0] + 5)
    done = call("convert", tmp_path / "a.pt", "--dtype", "bf16", "-o", tmp_path / "e.safetensors")
    assert done.code == 1
    assert not (tmp_path / "e.safetensors").exists()


@pytest.mark.parametrize(
    ("state", "dtype", "message"),
    [
        ({"w": filled(torch.float8_e8m0fnu, 4)}, "bf16", "'w' cannot be converted: float8_e8m0fnu holds scales"),
        ({"w": torch.ones(2)}, "int8", "is no dtype to cast to"),
        ({"w": torch.ones(2)}, "float8_e4m3fn", "is no dtype to cast to"),
    ],
)
def test_casts_that_are_refused(state: Any, dtype: str, message: str, tmp_path: Path, call: Run) -> None:
    torch.save(state, tmp_path / "a.pt")
    done = call("convert", tmp_path / "a.pt", "--dtype", dtype, "-o", tmp_path / "b.safetensors")
    assert done.code == 2
    assert message in done.err


# --- shards


def test_shards_are_those_of_huggingface(tmp_path: Path, call: Run) -> None:
    """File by file as huggingface_hub divides the same state dict, and read back as one."""
    hub = pytest.importorskip("huggingface_hub")
    sizes = [100, 300, 50, 2000, 10, 900, 900, 1, 500, 499, 1000, 3]
    state = {f"layer.{index}": filled(torch.int16, size // 2 or 1) for index, size in enumerate(sizes)}
    torch.save(state, tmp_path / "a.pt")
    done = call("convert", tmp_path / "a.pt", "--max-shard-size", "1kB", "-o", f"{tmp_path}/out/", "--json")
    assert done.code == 0, done.err
    wanted = hub.split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=1000
    )
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"] == wanted.tensor_to_filename
    assert index["metadata"]["total_size"] == wanted.metadata["total_size"]
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*wanted.filename_to_tensors, "model.safetensors.index.json"])
    for file, names in wanted.filename_to_tensors.items():
        with safe_open(tmp_path / "out" / file, framework="pt") as opened:
            assert set(opened.keys()) == set(names)
    assert done.json["outputs"][-1]["path"].endswith("index.json")  # the last to get its name
    # All of them together again are the file they were made of.
    assert call("convert", tmp_path / "out", "--to", "pt", "-o", tmp_path / "b.pt").code == 0
    assert_equal(torch.load(tmp_path / "b.pt", weights_only=True), state)
    assert call("convert", tmp_path / "out").code == 2
    assert call("convert", tmp_path / "out", "-o", tmp_path / "one.safetensors").code == 0
    assert_equal(load_file(tmp_path / "one.safetensors"), state)


def test_one_shard_has_no_index(tmp_path: Path, call: Run) -> None:
    torch.save({"w": torch.ones(9)}, tmp_path / "a.pt")
    assert call("convert", tmp_path / "a.pt", "--max-shard-size", "5GB", "-o", f"{tmp_path}/out/").code == 0
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    assert call("convert", tmp_path / "a.pt", "--max-shard-size", "5GB").code == 2


def test_ties_lie_in_one_shard(tmp_path: Path, call: Run) -> None:
    base = torch.randn(100)
    state = {"emb": base, "mid": torch.randn(100), "head": base, "nested": {"step": 3}}
    torch.save(state, tmp_path / "a.pt")
    assert call("convert", tmp_path / "a.pt", "--max-shard-size", "500B", "-o", f"{tmp_path}/out/").code == 0
    assert len(os.listdir(tmp_path / "out")) == 3
    assert "head" in header(tmp_path / "out/model-00001-of-00002.safetensors")["__metadata__"]["ckpt.aliases"]
    assert call("convert", tmp_path / "out", "--to", "pt", "-o", tmp_path / "b.pt").code == 0
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert_equal(found, state)
    assert found["emb"].data_ptr() == found["head"].data_ptr()


def shards_of(tmp_path: Path, call: Run) -> Path:
    torch.save({f"w{index}": torch.full((50,), float(index)) for index in range(4)}, tmp_path / "a.pt")
    assert call("convert", tmp_path / "a.pt", "--max-shard-size", "400B", "-o", f"{tmp_path}/out/").code == 0
    return tmp_path / "out"


def test_all_outputs_or_none(tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that fails in the middle puts back what was there; a write that fails leaves nothing."""
    out = shards_of(tmp_path, call)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    torch.save({f"w{index}": torch.full((50,), 9.0) for index in range(4)}, tmp_path / "a.pt")
    command = ("convert", tmp_path / "a.pt", "--max-shard-size", "400B", "-o", out)
    done = call(*command)
    assert done.code == 4
    real, calls = os.replace, []

    def failing(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        done = call(*command, "--force")
    assert done.code == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # The same without anything there before.
    links, link = [], os.link

    def failing_link(*arguments: Any, **more: Any) -> None:
        links.append(arguments)
        if len(links) == 3:
            raise FileExistsError(17, "File exists")
        link(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", failing_link)
        done = call("convert", tmp_path / "a.pt", "--max-shard-size", "400B", "-o", f"{tmp_path}/new/deep/")
    assert done.code == 4
    assert not (tmp_path / "new").exists()
    assert call(*command, "--force").code == 0
    assert load_file(out / "model-00001-of-00002.safetensors")["w0"][0] == 9


def test_a_folder_with_other_weights(tmp_path: Path, call: Run) -> None:
    """Shards of another number beside these would be taken for a part of them."""
    out = shards_of(tmp_path, call)
    done = call("convert", tmp_path / "a.pt", "--max-shard-size", "200B", "-o", out, "--force")
    assert done.code == 4
    assert "holds other weights" in done.err


# --- parts and sources


def test_optimizers_of_all_ranks(tmp_path: Path, call: Run) -> None:
    run = tmp_path / "base_checkpoints/d4"
    run.mkdir(parents=True)
    torch.save({"w": torch.ones(2)}, run / "model_000010.pt")
    (run / "meta_000010.json").write_text('{"step": 10}')
    states = []
    for rank in range(2):
        states.append(
            {"state": {0: {"exp_avg": torch.full((2,), float(rank))}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        )
        torch.save(states[-1], run / f"optim_000010_rank{rank}.pt")
    arguments = ("convert", "base/d4/10", "--root", tmp_path, "--part", "optimizer")
    assert call(*arguments).code == 2
    done = call(*arguments, "-o", f"{tmp_path}/out/", "--json")
    assert done.code == 0, done.err
    assert sorted(os.listdir(tmp_path / "out")) == [f"optim_000010_rank{rank}.safetensors" for rank in range(2)]
    assert done.json["tensors"] == 2
    for rank in range(2):
        source = tmp_path / f"out/optim_000010_rank{rank}.safetensors"
        assert_equal(to_torch(source, tmp_path / f"{rank}.pt"), states[rank])
    one = call(
        "convert",
        "base/d4/10",
        "--root",
        tmp_path,
        "--part",
        "optim_000010_rank1.pt",
        "-o",
        tmp_path / "one.safetensors",
    )
    assert one.code == 0, one.err


def test_a_distributed_checkpoint(shared: Path, tmp_path: Path, call: Run) -> None:
    """Chunks of several ranks are one tensor each, in a torch file as in safetensors."""
    source = shared / "real/dcp"
    done = call("list", "--json", "--root", source)
    folders = [c["dir"] for c in done.json["checkpoints"] if c["layout"] == "dcp" and c["state"] == "complete"]
    assert folders
    assert call("convert", folders[0]).code == 2
    for to, name in (("pt", "a.pt"), ("safetensors", "a.safetensors")):
        done = call("convert", folders[0], "--to", to, "-o", tmp_path / name)
        assert done.code == 0, done.err
    one = {name: plain(t) for name, t in named(torch.load(tmp_path / "a.pt", weights_only=True))}
    other = {name: plain(t) for name, t in named(load_file(tmp_path / "a.safetensors"))}
    assert {name: data for name, data in one.items() if name in other} == other


# --- whole runs


def test_every_checkpoint_of_a_root(tree: Path, call: Run, tmp_path: Path) -> None:
    """Under its ref each; what is there is left, what fails is named and the rest is done."""
    refs = [c["ref"] for c in call("list", "--json", "--root", tree).json["checkpoints"]]
    bad = [c["ref"] for c in call("verify", "--json", "--root", tree).json["results"] if c["status"] == "damaged"]
    out = tmp_path / "out"
    arguments = ("convert", "--all", "--root", tree, "-o", f"{out}/", "--json")
    done = call(*arguments, "--keep-going")
    assert done.code in (0, 3), done.err
    results = {result["source"]["ref"]: result for result in done.json["results"]}
    assert list(results) == refs
    failed = {ref for ref, result in results.items() if result["status"] == "failed"}
    assert failed <= set(bad)
    assert (done.code == 3) == bool(failed)
    written = [ref for ref in refs if results[ref]["status"] == "written"]
    for ref in written:
        path = out / f"{ref}.safetensors"
        assert results[ref]["outputs"][0]["path"] == str(path)
        assert header(path)["__metadata__"]["ckpt.ref"] == ref
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = call(*arguments, "--keep-going")
    assert {r["source"]["ref"] for r in again.json["results"] if r["status"] == "there"} == set(written)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == times
    # A bit that is wrong in an output is found, also where the source tells of no CRC32.
    for path in (out / f"{written[0]}.safetensors", out / f"{written[-1]}.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
        spoiled = call(*arguments, "--keep-going")
        assert (spoiled.code, spoiled.json["verified"]) == (3, False)
        (problem,) = [
            r["problem"] for r in spoiled.json["results"] if r["source"]["ref"] == str(path.relative_to(out))[:-12]
        ]
        assert problem["detail"].endswith("is there, but not as it was written")
        path.write_bytes(whole)
    # Another content under the same name is another source: not there, and refused without --force.
    model = next(Path(p["path"]) for c in [results[written[0]]["source"]] for p in c["parts"] if p["role"] == "model")
    state = torch.load(model, weights_only=True)
    next(iter(state.values())).reshape(-1)[0] += 1
    torch.save(state, model)
    changed = call(*arguments, "--keep-going")
    assert changed.code == 3
    status = {r["source"]["ref"]: r for r in changed.json["results"]}
    assert status[written[0]]["problem"]["detail"].endswith("is there already")
    assert call(*arguments, "--keep-going", "--force").code == done.code


def test_every_checkpoint_stops_at_the_first_failure(tmp_path: Path, call: Run) -> None:
    run = tmp_path / "base_checkpoints/d4"
    run.mkdir(parents=True)
    for step in (10, 20, 30):
        torch.save({"w": torch.ones(200)}, run / f"model_{step:06}.pt")
        (run / f"meta_{step:06}.json").write_text("{}")
    flip(run / "model_000020.pt", places(run / "model_000020.pt")["model_000020/data/0"][0])
    arguments = ("convert", "base/d4", "--all", "--root", tmp_path)
    done = call(*arguments)
    assert done.code == 3
    assert "base/d4/20 was not converted" in done.err
    assert [(run / f"model_{step:06}.safetensors").exists() for step in (10, 20, 30)] == [True, False, False]
    done = call(*arguments, "--keep-going")
    assert done.code == 3
    assert [(run / f"model_{step:06}.safetensors").exists() for step in (10, 20, 30)] == [True, False, True]
    assert call("convert", "base/d4/20", "--all", "--root", tmp_path).code == 1
    assert call("convert", "base/d4/20", "--keep-going", "--root", tmp_path).code == 2
    assert call("convert", "base/d4", "--all", "--to", "pt", "--root", tmp_path).code == 2


# --- memory


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A file of 275 MB, cast and copied: the process stays far below it."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is asked of /proc")
    save_file(
        {
            "w": torch.zeros(75 << 18, dtype=torch.float32).view(-1, 1024),
            "i": torch.zeros(200 << 20, dtype=torch.uint8),
        },
        tmp_path / "a.safetensors",
    )
    script = (
        "import sys\nfrom ckpt_cli.app import main\ncode = main(sys.argv[1:])\n"
        "status = open('/proc/self/status').read()\n"  # a child's ru_maxrss has its parent's in it
        "print(status.split('VmHWM:')[1].split()[0], file=sys.stderr)\nsys.exit(code)"
    )
    for index, more in enumerate((["--dtype", "bf16"], ["--to", "pt"])):
        paths = [str(tmp_path / "a.safetensors"), "-o", str(tmp_path / f"{index}.out")]
        done = subprocess.run(
            [sys.executable, "-c", script, "convert", *paths, *more],
            env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert int(done.stderr.split()[-1]) < 128_000


# --- other namings: what lies around the weights


def write_llama(folder: Path) -> dict[str, torch.Tensor]:
    """The smallest Llama there is, as transformers saves it, with the small files that lie with one."""
    shapes = {
        "model.embed_tokens.weight": (16, 8), "model.norm.weight": (8,), "lm_head.weight": (16, 8),
        "model.layers.0.input_layernorm.weight": (8,), "model.layers.0.post_attention_layernorm.weight": (8,),
        "model.layers.0.self_attn.q_proj.weight": (8, 8), "model.layers.0.self_attn.k_proj.weight": (4, 8),
        "model.layers.0.self_attn.v_proj.weight": (4, 8), "model.layers.0.self_attn.o_proj.weight": (8, 8),
        "model.layers.0.mlp.gate_proj.weight": (12, 8), "model.layers.0.mlp.up_proj.weight": (12, 8),
        "model.layers.0.mlp.down_proj.weight": (8, 12),
    }  # fmt: skip
    state = {name: filled(torch.int32, *shape).float() for name, shape in shapes.items()}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "vocab_size": 16,
              "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32, "dtype": "float32",
              "tie_word_embeddings": False, "hidden_act": "silu"}  # fmt: skip
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "generation_config.json").write_text('{"bos_token_id": 1}')
    (folder / "training.log").write_text("no part of a model")
    return state


def test_a_folder_for_transformers(tmp_path: Path, call: Run) -> None:
    """Shards, index, configuration with the dtype that was written, and the small files; nothing else."""
    state = write_llama(tmp_path / "source")
    done = call("convert", tmp_path / "source", "--to", "hf", "--dtype", "bf16", "--max-shard-size", "1kB", "-o",
                tmp_path / "out", "--json")  # fmt: skip
    assert done.code == 0, done.err
    weights = [name for name in os.listdir(tmp_path / "out") if name.startswith("model-")]
    others = {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"}
    assert set(os.listdir(tmp_path / "out")) == {*weights, *others}
    assert len(weights) > 1
    found = {name: tensor for file in weights for name, tensor in load_file(tmp_path / "out" / file).items()}
    assert_equal(found, {name: tensor.bfloat16() for name, tensor in state.items()})
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "source/tokenizer.json").read_bytes()
    assert done.json["tensors"] == len(state)
    assert call("convert", tmp_path / "source", "--to", "hf").code == 2
    assert call("convert", tmp_path / "source", "--to", "hf", "-o", tmp_path / "source", "--force").code == 2


def test_torchtune_and_meta_and_back(tmp_path: Path, call: Run) -> None:
    """One torch file, and a folder; both open with weights only, and lead back to the same bytes."""
    state = write_llama(tmp_path / "source")
    done = call("convert", tmp_path / "source", "--to", "torchtune", "-o", tmp_path / "tune.pt")
    assert done.code == 0, done.err
    assert "tok_embeddings.weight" in torch.load(tmp_path / "tune.pt", weights_only=True)
    done = call("convert", tmp_path / "source", "--to", "meta", "-o", tmp_path / "meta")
    assert done.code == 0, done.err
    assert sorted(os.listdir(tmp_path / "meta")) == ["consolidated.00.pth", "params.json"]
    config = tmp_path / "source/config.json"
    for number, source in enumerate((tmp_path / "tune.pt", tmp_path / "meta")):
        out = tmp_path / f"back{number}"
        done = call("convert", source, "--to", "hf", "--config", config, "-o", out)
        assert done.code == 0, done.err
        assert_equal(load_file(out / "model.safetensors"), state)


def test_what_config_says_otherwise_is_said(tmp_path: Path, call: Run) -> None:
    """What decides the shapes must be the same; of all else the source's own holds, and both are named."""
    write_llama(tmp_path / "source")
    own = json.loads((tmp_path / "source/config.json").read_text())
    given = tmp_path / "given.json"
    given.write_text(json.dumps({**own, "rms_norm_eps": 0.25, "rope_theta": 7.0, "new": "x" * 99}))
    own.update(rms_norm_eps=1e-5, rope_theta=10000.0)
    (tmp_path / "source/config.json").write_text(json.dumps(own))
    done = call("convert", tmp_path / "source", "--to", "hf", "--config", given, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if str(given) in line] == [
        f"warning: rms_norm_eps is 1e-05 as the source says, not 0.25 as {given} does",
        f"warning: rope_theta is 10000.0 as the source says, not 7.0 as {given} does",
    ]
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["rms_norm_eps"], written["new"]) == (1e-5, "x" * 99)
    given.write_text(json.dumps(own))
    done = call("convert", tmp_path / "source", "--to", "hf", "--config", given, "-o", tmp_path / "again")
    assert done.code == 0 and "as the source says" not in done.err


def test_a_pickled_tokenizer_does_not_go_along(tmp_path: Path, call: Run) -> None:
    write_llama(tmp_path / "source")
    (tmp_path / "source/tokenizer.json").unlink()
    (tmp_path / "source/tokenizer.pkl").write_bytes(b"\x80\x02N.")
    done = call("convert", tmp_path / "source", "--to", "hf", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "tokenizer does not go along" in done.err
    assert not (tmp_path / "out/tokenizer.pkl").exists()


# --- views: every way of gathering gives the same


@pytest.mark.parametrize("block", [64, 300, 8 << 20])
@pytest.mark.parametrize("way", ["runs", "arrays", "without an array library", "as it is"])
def test_views_by_every_way(way: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permuted rows, turned matrices, columns, reversed orders of dimensions, repeated rows: as torch copies them."""
    monkeypatch.setattr("ckpt_cli.views.BLOCK", block)
    if way == "runs":
        monkeypatch.setattr("ckpt_cli.views._MIN_RUN", 1)
        monkeypatch.setattr("ckpt_cli.views._PAGE", 1)
    if way in ("arrays", "without an array library"):
        monkeypatch.setattr("ckpt_cli.views._MIN_RUN", 1 << 40)
        monkeypatch.setattr("ckpt_cli.views._WORTH_AN_ARRAY", 0)
    if way == "without an array library":
        monkeypatch.setitem(sys.modules, "numpy", None)
    for dtype in (torch.uint8, torch.int16, torch.float32, torch.int64, torch.complex128):
        rows = filled(dtype, 24, 10)
        views = {
            "permuted": rows.view(3, 2, 4, 10).transpose(1, 2), "turned": rows.t(), "columns": rows[:, 2:7],
            "cube": rows.view(4, 6, 10).permute(2, 0, 1), "steps": rows[1::3, ::2],
            "repeated": rows[:2, :3].expand(2, 2, 3),
            "one": rows[3:4].t(), "thin": rows[:, 4],
        }  # fmt: skip
        (tmp_path / "raw").write_bytes(plain(rows))
        place = Storage("0", str(tmp_path / "raw"), 0, rows.nbytes)
        for name, view in views.items():
            info = TensorInfo(name, str(dtype)[6:], tuple(view.shape), view.stride(), int(view.storage_offset()),
                              dtype.itemsize, place)  # fmt: skip
            with Files() as files:
                assert b"".join(blocks(files, info)) == plain(view), (name, dtype)


def test_pieces_end_to_end(tmp_path: Path) -> None:
    """Pieces that are rows are streamed one after another, each by its own order."""
    rows = filled(torch.int16, 12, 5)
    (tmp_path / "raw").write_bytes(plain(rows))
    place = Storage("0", str(tmp_path / "raw"), 0, rows.nbytes)
    whole = TensorInfo("w", "int16", (6, 2, 5), (10, 5, 1), 0, 2, None, "chunked")
    pieces = [TensorInfo("p", "int16", (3, 2, 5), (5, 15, 1), 30 * index, 2, place) for index in range(2)]
    tensor = whole._replace(pieces=(((3, 0, 0), pieces[1]), ((0, 0, 0), pieces[0])))
    with Files() as files:
        found = b"".join(blocks(files, tensor))
    assert found == plain(torch.cat([rows[6 * i : 6 * i + 6].view(2, 3, 5).transpose(0, 1) for i in range(2)]))


def test_a_tensor_among_the_attributes_of_another_stands_beside_it(tmp_path: Path, call: Run) -> None:
    """Under the name that it is listed with: a plain dict has no attributes to put it in, and it must not be lost."""
    weight = torch.nn.Parameter(torch.ones(2, 3))
    weight.scale = torch.arange(3.0)  # type: ignore[attr-defined]
    torch.save({"model": {"w": weight}, "list": [weight]}, tmp_path / "made.pt")
    assert call("convert", tmp_path / "made.pt").code == 0
    done = call("convert", tmp_path / "made.safetensors", "--to", "pt", "-o", tmp_path / "back.pt")
    assert done.code == 0, done.err
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert torch.equal(back["model"]["w"], weight) and torch.equal(back["list"][0], weight)
    assert torch.equal(back["model.w.<attributes>.scale"], torch.arange(3.0))
    assert {entry["name"] for entry in call("inspect", "tensors", tmp_path / "back.pt", "--json").json["tensors"]} == {
        entry["name"] for entry in call("inspect", "tensors", tmp_path / "made.pt", "--json").json["tensors"]
    }
