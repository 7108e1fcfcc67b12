"""Every variant of torch's files that torch 2.13 can be made to write, with torch as the oracle."""

# Much of what torch can write it does not declare to the type checker.
# mypy: disable-error-code="no-untyped-call,attr-defined,arg-type,call-arg,override,operator,method-assign,index"
# mypy: disable-error-code="assignment"

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import functools
import hashlib
import io
import json
import pathlib
import random
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch._weights_only_unpickler import _get_allowed_globals

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import Files, FileSource
from ckpt_cli.formats._torch_names import ALLOWED, python3_name
from ckpt_cli.inflate import Inflated
from ckpt_cli.tensor_file import Storage, TensorFile, TensorInfo
from ckpt_cli.tensors import check_storage, digest, opened, range_crc32, read_tensors, readable, recognise, storages_of
from tests.test_formats import mutated
from tests.torch_files import DTYPES, filled, flip, places, plain, told, write_zip

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def records(path: object) -> list[Storage]:
    with FileSource(str(path)) as source:
        return list(recognise(source).records(source).found)


def check_all(path: object) -> None:
    """Every record against the CRC32 that was written with it, used by a tensor or not."""
    with Files() as files:
        for record in records(path):
            source, base = opened(files, record)
            if record.crc32 is not None and range_crc32(source, base, record.bytes) != record.crc32:
                raise Damaged(record.name)
            if record.crc32 is None:
                source.read_at(base, record.bytes)


def seen(file: TensorFile) -> list[tuple[str, str, tuple[int, ...], tuple[int, ...], str]]:
    """What the reader says of a file's tensors, as `told` says what torch says."""
    with Files() as files:
        return [(t.name, t.dtype, t.shape, t.stride, digest(files, t)) for t in file.tensors]


def sha(tensor: torch.Tensor) -> str:
    return hashlib.sha256(plain(tensor)).hexdigest()


def members(tensor: TensorInfo) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """The pieces of a tensor by name: dtype, shape, digest."""
    with Files() as files:
        return {str(name): (piece.dtype, piece.shape, digest(files, piece)) for name, piece in tensor.pieces}


def member(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], str]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), sha(tensor)


# --- TorchScript


class Leaf(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((size,), float(size)))
        self.register_buffer("kept", torch.arange(size))
        self.register_buffer("passing", torch.arange(size) * 2, persistent=False)
        self.register_buffer("absent", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.sum() + self.kept.sum()


class Tree(torch.nn.Module):
    """All that a script module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Linear(3, 4)
        self.alike = torch.nn.Linear(3, 4)
        self.alike.weight = self.zero.weight
        self.again = self.zero
        self.tied = self.zero.weight
        self.row = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.BatchNorm1d(4))
        self.many = torch.nn.ModuleList([Leaf(2), Leaf(3)])
        self.named = torch.nn.ModuleDict({"a": Leaf(1)})
        self.listed = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(1))])
        self.loose = torch.arange(7.0)
        self.pair = [torch.zeros(2), torch.ones(3)]
        self.table = {"k": torch.full((2,), 5.0)}
        self.numbers = [1, 2, 3]
        self.ratios = [1.5, 2.5]
        self.flags = [True, False]
        self.words = ["a", "b"]
        self.mixed = (1, "x", 2.5)
        self.lookup = {1: "a"}
        self.title = "hi"
        self.place = torch.device("cpu")
        self.number = 1 + 2j

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.row(self.zero(x) + self.alike(x) + self.again(x)) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        for leaf in self.many:
            x = leaf(x)
        x = x + self.loose.sum() + self.pair[0].sum() + self.table["k"].sum() + self.numbers[0] + self.ratios[0]
        if self.flags[0] and len(self.words) + len(self.lookup[1]) + len(self.title) and x.device == self.place:
            x = x + self.mixed[2] + self.tied.sum()
        return x


def scripts() -> dict[str, Any]:
    row = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.BatchNorm1d(4)).eval()
    double = torch.nn.Sequential(torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 2).half())
    return {
        "tree": torch.jit.script(Tree()),
        "scripted": torch.jit.script(row),
        "traced": torch.jit.trace(row, torch.ones(2, 3)),
        "dtypes": torch.jit.script(double),
        "frozen": torch.jit.freeze(torch.jit.script(row)),
        "empty": torch.jit.script(torch.nn.ReLU()),
    }


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scripts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in scripts().items():
            module.save(str(folder / f"{name}.pt"))
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("what", ["tree", "scripted", "traced", "dtypes", "frozen", "empty"])
def test_torchscript_is_read_as_its_state_dict(what: str, scripted: dict[str, Path]) -> None:
    """Names, order, dtypes, shapes, strides and bytes are those of torch.jit.load(...).state_dict()."""
    file = read_tensors(str(scripted[what]))
    wanted = torch.jit.load(scripted[what]).state_dict()
    assert file.container == "torchscript"
    assert [entry for entry in seen(file) if "<" not in entry[0]] == told(dict(wanted))
    assert (file.foreign_globals, file.notes) == ((), ())
    assert json.loads(json.dumps(dict(file.values))) == file.values
    assert any("__torch__." in value for key, value in file.values.items() if key.endswith("<class>"))
    check_all(scripted[what])


def test_torchscript_attributes_and_ties(scripted: dict[str, Path]) -> None:
    """What is no part of the state dict stands beside it; tied parameters share a storage."""
    file = read_tensors(str(scripted["tree"]))
    ours = {entry[0]: entry for entry in seen(file)}
    others = {"loose": torch.arange(7.0), "pair.0": torch.zeros(2), "pair.1": torch.ones(3)}
    others["table.k"] = torch.full((2,), 5.0)
    for name, tensor in others.items():
        assert ours[f"<attributes>.{name}"][4] == sha(tensor)
    assert {name for name in ours if "<attributes>" in name} == {f"<attributes>.{name}" for name in others}
    wanted = {
        "numbers.0": 1, "ratios.1": 2.5, "flags.1": False, "words.1": "b", "mixed": [1, "x", 2.5], "lookup.1": "a",
        "title": "hi", "place": "cpu", "number": "(1+2j)", "training": True,
    }  # fmt: skip
    assert {name: file.values[f"<attributes>.{name}"] for name in wanted} == wanted
    assert file.values["many.0.<attributes>.absent"] is None
    places = {t.name: t.storage for t in file.tensors}
    assert places["tied"] == places["zero.weight"] == places["alike.weight"] == places["again.weight"]
    assert places["zero.bias"] != places["alike.bias"]


def test_torchscript_constants(scripted: dict[str, Path]) -> None:
    """The weights of a frozen module are constants of its code: they have no names, and are listed by number."""
    row = scripts()["scripted"].eval().state_dict()
    file = read_tensors(str(scripted["frozen"]))
    assert [t.name for t in file.tensors] == [f"<constants>.{index}" for index in range(len(file.tensors))]
    assert {(t.dtype, t.shape) for t in file.tensors} >= {("float32", (4, 3)), ("float32", (4,))}
    assert len(row) > len(file.tensors) > 2
    # Both constants and tensors: no name stands for two storages.
    path = scripted["frozen"].parent / "both.pt"
    torch.jit.script(Tree()).save(str(path))
    mixed = read_tensors(str(path))
    assert len({s.name for s in mixed.storages}) == len(mixed.storages) == len({s.offset for s in mixed.storages})


def test_torchscript_dtypes_and_forms(tmp_path: Path) -> None:
    """Buffers of every dtype and of every form that torch.jit.save takes."""

    class Holder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    held = Holder()
    wanted: dict[str, torch.Tensor] = {}
    for dtype in DTYPES:
        wanted[str(dtype).replace("torch.", "of_")] = filled(dtype, 2, 3)
    wanted["turned"] = torch.arange(6.0).view(2, 3).t()
    wanted["conjugated"] = filled(torch.complex64, 3).conj()
    wanted["negated"] = torch._neg_view(torch.arange(4.0))
    sparse = {"coo": torch.eye(3).to_sparse(), "csr": torch.eye(3).to_sparse_csr()}
    for name, tensor in {**wanted, **sparse}.items():
        held.register_buffer(name, tensor)
    held.register_buffer("quantized", torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8))
    torch.jit.script(held).save(str(tmp_path / "held.pt"))
    loaded = torch.jit.load(tmp_path / "held.pt").state_dict()
    file = read_tensors(str(tmp_path / "held.pt"))
    assert [t.name for t in file.tensors] == list(loaded)
    ours = {entry[0]: entry for entry in seen(file._replace(tensors=tuple(t for t in file.tensors if t.storage)))}
    for name in wanted:
        assert ours[name] == told({name: loaded[name]})[0]
    found = {t.name: t for t in file.tensors}
    coo, csr = loaded["coo"], loaded["csr"]
    assert members(found["coo"]) == {"indices": member(coo._indices()), "values": member(coo._values())}
    assert found["csr"].form == "sparse_csr"
    assert members(found["csr"])["crow_indices"] == member(csr.crow_indices())
    assert ours["quantized"][4] == sha(loaded["quantized"].int_repr())


def test_torchscript_packed_parameters(tmp_path: Path) -> None:
    """A quantized layer keeps its weight in an object of C++: not in the state dict, and still listed."""
    layer = torch.ao.quantization.quantize_dynamic(
        torch.nn.Sequential(torch.nn.Linear(3, 4)), {torch.nn.Linear}, dtype=torch.qint8
    )
    torch.jit.script(layer).save(str(tmp_path / "packed.pt"))
    file = read_tensors(str(tmp_path / "packed.pt"))
    assert not torch.jit.load(tmp_path / "packed.pt").state_dict()
    weight, bias = layer.state_dict()["0._packed_params._packed_params"]
    with Files() as files:
        assert [digest(files, t) for t in file.tensors] == [sha(weight.int_repr()), sha(bias)]
    assert [t.form for t in file.tensors] == ["quantized", "strided"]
    assert all("_packed_params" in t.name for t in file.tensors)


def test_torchscript_without_a_list_of_buffers(scripted: dict[str, Path], tmp_path: Path) -> None:
    """As torch before 1.5 wrote it: what is a tensor and no parameter is a buffer."""
    old = tmp_path / "old.pt"
    with zipfile.ZipFile(scripted["scripted"]) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(".py"):
                lines = [line for line in data.split(b"\n") if b"__buffers__" not in line]
                data = b"\n".join(lines)
            target.writestr(name.replace("scripted/", "old/"), data)
    names = [t.name for t in read_tensors(str(old)).tensors]
    assert names == list(torch.jit.load(scripted["scripted"]).state_dict())


def test_torchscript_that_is_none(tmp_path: Path) -> None:
    """An ordinary archive with the marker, and one whose code declares nothing: refused, by what they lack."""
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt", "a") as archive:
        archive.writestr("plain/constants.pkl", b"\x80\x02).")
    with pytest.raises(CkptError, match="a TorchScript archive without a module"):
        read_tensors(str(tmp_path / "plain.pt"))


def test_every_record_of_torchscript_is_checked(scripted: dict[str, Path], tmp_path: Path) -> None:
    """torch packs the code: its CRC32 is of what was packed, and a flipped bit anywhere is found."""
    path = tmp_path / "scripted.pt"
    path.write_bytes(scripted["scripted"].read_bytes())
    check_all(path)
    with zipfile.ZipFile(path) as archive:
        packed = {info.filename: info.compress_size for info in archive.infolist()}
        assert any(info.compress_type == zipfile.ZIP_DEFLATED for info in archive.infolist())
    for name, (first, _) in places(path).items():
        for byte in range(first, first + packed[name], 1 + packed[name] // 8):
            flip(path, byte, byte % 8)
            with pytest.raises(Damaged):
                check_all(path)
            flip(path, byte, byte % 8)
    check_all(path)


# --- tensors made of others


@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 5}, {"_use_new_zipfile_serialization": False}], ids=str)
def test_sparse(how: dict[str, Any], tmp_path: Path) -> None:
    """Every layout: its members by torch's names, with torch's bytes."""
    dense = torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 0], [0, 0, 4, 5], [0, 6, 0, 0]])
    twice = torch.sparse_coo_tensor([[0, 0, 1], [2, 2, 0]], [1.0, 2.0, 3.0], (3, 4))
    state = {
        "coo": dense.to_sparse(),
        "twice": twice,
        "hybrid": torch.sparse_coo_tensor([[0, 2]], torch.arange(6.0).view(2, 3), (4, 3)),
        "half": dense.half().to_sparse(),
        "complex": (dense * 1j).to_sparse(),
        "empty": torch.sparse_coo_tensor(size=(2, 3)),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)),
        "bsc": dense.to_sparse_bsc((2, 2)),
        "batch": torch.stack([dense, dense]).to_sparse_csr(),
        "parameter": torch.nn.Parameter(dense.to_sparse()),
    }
    torch.save(state, tmp_path / "sparse.pt", **how)
    loaded = torch.load(tmp_path / "sparse.pt", weights_only="pickle_protocol" not in how)
    names = {
        "sparse_coo": ("_indices", "_values"),
        "sparse_csr": ("crow_indices", "col_indices", "values"),
        "sparse_csc": ("ccol_indices", "row_indices", "values"),
    }
    names |= {"sparse_bsr": names["sparse_csr"], "sparse_bsc": names["sparse_csc"]}
    file = read_tensors(str(tmp_path / "sparse.pt"))
    assert [t.name for t in file.tensors] == list(state)
    assert (file.values, file.foreign_globals) == ({}, ())
    for tensor in file.tensors:
        whole = loaded[tensor.name]
        assert (tensor.form, tensor.shape) == (str(whole.layout).removeprefix("torch."), tuple(whole.shape))
        assert tensor.dtype == str(whole.dtype).removeprefix("torch.")
        wanted = {name.lstrip("_"): member(getattr(whole.detach(), name)()) for name in names[tensor.form]}
        assert members(tensor) == wanted
        assert tensor.bytes == sum(piece.bytes for _, piece in tensor.pieces)
        assert readable(tensor) == f"it is {tensor.form}"


@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 5}, {"_use_new_zipfile_serialization": False}], ids=str)
def test_quantized(how: dict[str, Any], tmp_path: Path) -> None:
    """The bytes are the integers'; scale and zero point stand beside them, one a channel as tensors."""
    values = torch.linspace(-1, 1, 12).view(3, 4)
    scales, zeros = torch.tensor([0.1, 0.2, 0.3], dtype=torch.double), torch.tensor([1, 2, 3])
    state = {
        "tensor8": torch.quantize_per_tensor(values, 0.1, 2, torch.qint8),
        "unsigned": torch.quantize_per_tensor(values, 0.05, 3, torch.quint8).t(),
        "tensor32": torch.quantize_per_tensor(values, 0.25, 0, torch.qint32),
        "channel": torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8),
        "packed": torch.quantize_per_tensor(torch.ones(2, 5), 0.1, 0, torch.quint4x2),
    }
    torch.save(state, tmp_path / "quantized.pt", **how)
    loaded = torch.load(tmp_path / "quantized.pt", weights_only="pickle_protocol" not in how)
    file = read_tensors(str(tmp_path / "quantized.pt"))
    ours = {t.name: t for t in file.tensors}
    assert [name for name in ours if "<" not in name] == list(state)
    with Files() as files:
        for name in ("tensor8", "unsigned", "tensor32", "channel"):
            tensor = ours[name]
            assert (tensor.form, readable(tensor)) == ("quantized", None)
            assert (tensor.shape, tensor.stride) == (tuple(loaded[name].shape), loaded[name].stride())
            assert digest(files, tensor) == sha(loaded[name].int_repr())
        assert digest(files, ours["channel.<quantizer>.scales"]) == sha(loaded["channel"].q_per_channel_scales())
        assert digest(files, ours["channel.<quantizer>.zero_points"]) == sha(zeros)
    assert file.values["tensor8.<quantizer>.scale"] == loaded["tensor8"].q_scale()
    assert file.values["unsigned.<quantizer>.zero_point"] == 3
    assert file.values["channel.<quantizer>.axis"] == 0
    assert file.values["channel.<quantizer>.scheme"] == "torch.per_channel_affine"
    # Two a byte, and the row's end rounded up: torch counts ten elements in six bytes.
    packed = ours["packed"]
    assert packed.storage is not None
    assert (packed.shape, packed.storage.bytes) == ((2, 5), loaded["packed"].untyped_storage().nbytes())
    assert readable(packed) == "it is packed quint4x2"


def test_nested(tmp_path: Path) -> None:
    """Strided and jagged: values and what divides them, by name."""
    rows = [torch.arange(2.0), torch.arange(3.0) + 9]
    strided = torch.nested.nested_tensor(rows)
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    torch.save({"strided": strided, "jagged": jagged}, tmp_path / "nested.pt")
    file = read_tensors(str(tmp_path / "nested.pt"))
    ours = {t.name: t for t in file.tensors}
    assert list(ours) == ["strided", "jagged"]
    assert {t.form for t in ours.values()} == {"nested"}
    assert ours["strided"].elements == 5
    assert members(ours["strided"])["values"] == member(torch.cat(rows))
    assert members(ours["strided"])["sizes"] == member(strided._nested_tensor_size())
    assert members(ours["jagged"])["values"] == member(jagged.values())
    assert members(ours["jagged"])["offsets"] == member(jagged.offsets())


class Scaled(torch.Tensor):
    """A wrapper as quantization libraries make them: two tensors and a dtype of its own."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, scale: torch.Tensor) -> Scaled:
        made = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)
        made.data_, made.scale, made.inner = data, scale, {"zero": torch.zeros(1), "note": "x"}
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Scaled(args[0].data_, args[0].scale)
        raise NotImplementedError(func)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return "Scaled"


class Marked(torch.Tensor):
    """A subclass with bytes of its own."""


def test_subclasses(tmp_path: Path) -> None:
    """A wrapper is known by the tensors it wraps; one with bytes of its own is as readable as any other."""
    data, scale = filled(torch.int8, 4, 5), filled(torch.float16, 4, 1)
    marked = torch.arange(6.0).view(2, 3).t().as_subclass(Marked)
    marked.tag = "here"
    marked.twin = torch.arange(3.0)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.scale = torch.full((1,), 3.0)
    plain_one = torch.arange(4.0)
    plain_one.note = 7
    state = {
        "wrapped": Scaled(data, scale),
        "parameter": torch.nn.Parameter(Scaled(data, scale), requires_grad=False),
        "marked": marked,
        "attributes": parameter,
        "noted": plain_one,
        "buffer": torch.nn.Buffer(torch.arange(5.0)),
        "later": torch.nn.UninitializedParameter(),
    }
    torch.save(state, tmp_path / "subclass.pt")
    file = read_tensors(str(tmp_path / "subclass.pt"))
    ours = {t.name: t for t in file.tensors}
    for name in ("wrapped", "parameter"):
        assert (ours[name].form, ours[name].dtype, ours[name].shape) == ("subclass", "float32", (4, 5))
        inner = {"data_": member(data), "scale": member(scale), "inner.zero": member(torch.zeros(1))}
        assert members(ours[name]) == inner
        assert readable(ours[name]) == "it is subclass"
    with Files() as files:
        assert digest(files, ours["marked"]) == sha(torch.arange(6.0).view(2, 3).t())
        assert digest(files, ours["marked.<attributes>.twin"]) == sha(torch.arange(3.0))
        assert digest(files, ours["attributes.<attributes>.scale"]) == sha(parameter.scale)
        assert digest(files, ours["buffer"]) == sha(torch.arange(5.0))
    assert ours["marked"].stride == (1, 3)
    assert file.values["marked.<attributes>.tag"] == "here"
    assert file.values["noted.<attributes>.note"] == 7
    assert file.values["later.<class>"] == "torch.nn.parameter.UninitializedParameter"
    assert {found.name for found in file.foreign_globals} == set(
        torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "subclass.pt")
    )


def test_a_tensor_that_is_its_own_attribute(tmp_path: Path) -> None:
    """Nothing goes round in a circle."""
    tensor = torch.ones(2)
    tensor.note = [tensor, {"a": 1}]
    torch.save({"w": tensor}, tmp_path / "own.pt")
    assert "w" in [t.name for t in read_tensors(str(tmp_path / "own.pt")).tensors]


def test_distributed_tensors(tmp_path: Path) -> None:
    """A DTensor is known by the part that this rank holds."""
    distributed = pytest.importorskip("torch.distributed.tensor")
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        local = torch.arange(12.0).view(3, 4)
        torch.save({"w": distributed.distribute_tensor(local, mesh, [distributed.Shard(0)])}, tmp_path / "dt.pt")
    finally:
        dist.destroy_process_group()
    (tensor,) = read_tensors(str(tmp_path / "dt.pt")).tensors
    assert (tensor.name, tensor.form, tensor.shape) == ("w", "subclass", (3, 4))
    assert next(iter(members(tensor).values())) == member(local)


def test_tensors_of_devices_without_storages(tmp_path: Path) -> None:
    """What torch writes for them is a copy on the CPU; older torch wrote a numpy array into the pickle."""

    class Elsewhere:
        def __init__(self, function: str, *arguments: Any) -> None:
            self.call = getattr(torch._utils, function), arguments

        def __reduce__(self) -> Any:
            return self.call

    copy = torch.arange(4.0)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = {
        "copied": Elsewhere("_rebuild_device_tensor_from_cpu_tensor", copy, torch.float32, "cpu", False),
        "array": Elsewhere("_rebuild_device_tensor_from_numpy", array, torch.float32, "cpu", False),
    }
    torch.save(state, tmp_path / "device.pt")
    copied, held = read_tensors(str(tmp_path / "device.pt")).tensors
    with Files() as files:
        assert digest(files, copied) == sha(copy)
    assert (held.dtype, held.shape, held.storage) == ("float32", (2, 3), None)
    assert readable(held) == "it is a numpy array within the pickle"


# --- data that was skipped


def test_skipped_data(tmp_path: Path) -> None:
    """Room without bytes: listed as ever, not damaged, and said; what else the file holds is still checked."""
    state = {"w": torch.ones(50), "b": torch.ones(3, 4), "none": torch.empty(0)}
    with torch.serialization.skip_data():
        torch.save(state, tmp_path / "skipped.pt")
    file = read_tensors(str(tmp_path / "skipped.pt"))
    assert [(t.name, t.shape) for t in file.tensors] == [("w", (50,)), ("b", (3, 4)), ("none", (0,))]
    assert [storage.crc32 for storage in file.storages] == [None, None, 0]
    assert file.notes == ("2 storages saved without data, or filled in later: no CRC32",)
    check_all(tmp_path / "skipped.pt")
    unchecked = {record.name for record in records(tmp_path / "skipped.pt") if record.crc32 is None}
    assert unchecked == {"skipped/data/0", "skipped/data/1"}
    first, _ = places(tmp_path / "skipped.pt")["skipped/byteorder"]
    flip(tmp_path / "skipped.pt", first)
    with pytest.raises(Damaged):
        check_all(tmp_path / "skipped.pt")


def test_a_file_of_five_gigabytes(tmp_path: Path) -> None:
    """Zip64 as torch itself writes it: a sparse file with a record beyond 4 GiB, and one that lies behind it."""
    big, path = 5 << 30, tmp_path / "big.pt"
    with torch.serialization.skip_data():
        torch.save({"big": torch.empty(big, dtype=torch.uint8), "small": torch.ones(3)}, path)
    assert path.stat().st_size > big
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("the file system keeps no holes")
    file = read_tensors(str(path))
    assert [(t.name, t.bytes) for t in file.tensors] == [("big", big), ("small", 12)]
    offsets = {record.name: (record.offset, record.bytes) for record in records(path)}
    loaded = torch.load(path, map_location="meta")
    for tensor in file.tensors:
        place = loaded[tensor.name].untyped_storage()._checkpoint_offset
        assert offsets[f"big/data/{0 if tensor.name == 'big' else 1}"] == (place, tensor.bytes)


# --- what is no tensor


class _Plain(enum.Enum):
    """Pickled by its value, as in every Python but 3.11.0 to 3.11.3, which wrote `getattr`: that is refused."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self.value,)


class Colour(_Plain):
    RED = 2


@dataclass
class Config:
    lr: float
    sizes: list[int]


class Point(NamedTuple):
    x: int
    y: int


class Table(dict[str, Any]):
    pass


def objects() -> dict[str, tuple[Any, dict[str, Any]]]:
    """What to save, and the values that must be listed for it, by name below its own."""
    zone = datetime.timezone(datetime.timedelta(hours=2))
    moment = datetime.datetime(2026, 11, 22, 4, 5, 6, 789)
    table, ordered = Table(a=1), collections.OrderedDict(a=1)
    table.note = 5
    ordered.note = 5
    return {
        "float64": (np.float64(1.5), {"": 1.5}),
        "int64": (np.int64(-3), {"": -3}),
        "uint8": (np.uint8(7), {"": 7}),
        "float16": (np.float16(0.5), {"": 0.5}),
        "bool_": (np.bool_(True), {"": True}),
        "complex": (np.complex64(1 + 2j), {"": "(1+2j)"}),
        "str_": (np.str_("abc"), {"": "abc"}),
        "vector": (np.arange(3), {"": [0, 1, 2]}),
        "matrix": (np.arange(6, dtype=">f4").reshape(2, 3), {"": [[0, 1, 2], [3, 4, 5]]}),
        "columns": (np.asfortranarray(np.arange(6).reshape(2, 3)), {"": [[0, 1, 2], [3, 4, 5]]}),
        "words": (np.array(["a", "bc"]), {"": ["a", "bc"]}),
        "point": (np.array(2.5), {"": 2.5}),
        "large": (np.zeros((100, 3), dtype=np.float32), {"": "<array float32 [100, 3]>"}),
        "random": (np.random.RandomState(0).get_state()[1], {"": "<array uint32 [624]>"}),
        "dtype": (np.dtype("float32"), {"": "float32"}),
        "datetime": (moment, {"": "2026-11-22T04:05:06.000789"}),
        "zoned": (moment.replace(tzinfo=zone), {"": "2026-11-22T04:05:06.000789+02:00"}),
        "date": (moment.date(), {"": "2026-11-22"}),
        "time": (moment.time(), {"": "04:05:06.000789"}),
        "delta": (datetime.timedelta(1, 2), {"": "1 day, 0:00:02"}),
        "path": (pathlib.PurePosixPath("/a/b"), {"": "/a/b"}),
        "near": (pathlib.PurePosixPath("a/b"), {"": "a/b"}),
        "windows": (pathlib.PureWindowsPath("C:\\a\\b"), {"": "C:\\a\\b"}),
        "decimal": (decimal.Decimal("1.50"), {"": "1.50"}),
        "range": (range(3), {"": "range(0, 3, 1)"}),
        "enum": (Colour.RED, {".<class>": f"{__name__}.Colour", ".<args>": [2]}),
        "dataclass": (Config(0.5, [1, 2]), {".<class>": f"{__name__}.Config", ".lr": 0.5, ".sizes.1": 2}),
        "named": (Point(1, 2), {".<class>": f"{__name__}.Point"}),
        "space": (argparse.Namespace(lr=0.5, sub=argparse.Namespace(a=1)), {".lr": 0.5, ".sub.a": 1}),
        "partial": (functools.partial(int, base=2), {".<class>": "functools.partial"}),
        "default": (collections.defaultdict(list, {"a": [1]}), {".a.0": 1, ".<class>": "collections.defaultdict"}),
        "deque": (collections.deque([1, 2]), {".0": 1, ".1": 2}),
        "counter": (collections.Counter("aab"), {".a": 2}),
        "table": (table, {".a": 1, ".note": 5}),
        "ordered": (ordered, {".a": 1}),
        "set": ({3, 1}, {"": [1, 3]}),
        "frozen": (frozenset([3]), {"": [3]}),
        "bytes": (b"ab", {"": "<2 bytes 6162>"}),
        "big": (10**40, {"": 10**40}),
        "size": (torch.Size([2, 3]), {"": [2, 3]}),
        "type": (torch.float8_e4m3fn, {"": "torch.float8_e4m3fn"}),
        "narrow": (torch.uint4, {"": "torch.uint4"}),
        "device": (torch.device("cuda", 1), {"": "cuda:1"}),
        "layout": (torch.sparse_csr, {"": "torch.sparse_csr"}),
        "scheme": (torch.per_tensor_affine, {"": "torch.per_tensor_affine"}),
        "storage": (torch.ones(3).untyped_storage(), {"": "<storage 0>"}),
        "typed": (torch.ones(3, dtype=torch.int16).storage(), {"": "<storage 0>"}),
        "generator": (torch.Generator(), {".<class>": "torch._C.Generator"}),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("what", objects())
def test_values(what: str, protocol: int, tmp_path: Path) -> None:
    """Objects of Python and numpy are told as plain values, those of other classes by their fields."""
    value, wanted = objects()[what]
    path = tmp_path / "file.pt"
    try:
        torch.save({"x": value}, path, pickle_protocol=protocol)
    except TypeError as error:
        pytest.skip(str(error))
    file = read_tensors(str(path))
    assert json.loads(json.dumps(dict(file.values))) == file.values
    ours = {key.removeprefix("x"): shown for key, shown in file.values.items()}
    assert {key: ours.get(key) for key in wanted} == wanted
    if "" in wanted:
        assert list(ours) == [""]
    if protocol == 2:
        unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        # What a test before this one made torch import does not count as its default.
        assert {found.name for found in file.foreign_globals} == unsafe
    else:
        torch.save({"x": value}, tmp_path / "two.pt")
        names = {found.name for found in read_tensors(str(tmp_path / "two.pt")).foreign_globals}
        # Later protocols have opcodes for what protocol 2 spells with names.
        assert {found.name for found in file.foreign_globals} - names <= {"numpy._core.numeric._frombuffer"}
    torch.save({"x": value}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    if protocol == 2:
        assert {n.name for n in read_tensors(str(tmp_path / "legacy.pt")).foreign_globals} == {
            n.name for n in file.foreign_globals
        }


class Mode(_Plain):
    FAST = "fast"
    SLOW = "slow"


def test_keys(tmp_path: Path) -> None:
    """Whatever Python takes as a key, torch loads; tensors below it are named after it, and no two alike."""
    path = tmp_path / "file.pt"
    plain_keys = [1j, 1.5, None, (1, ("a",)), b"x", -3, 2**70, ()]
    saved: dict[Any, torch.Tensor] = {key: filled(torch.float32, index + 1) for index, key in enumerate(plain_keys)}
    saved[torch.ones(2)] = filled(torch.float32, 30)
    saved[torch.ones(2)] = filled(torch.float32, 31)
    torch.save(saved, path)
    found = read_tensors(str(path)).tensors
    with Files() as files:
        ours = [(t.dtype, t.shape, t.stride, digest(files, t)) for t in found]
    assert ours == [row[1:] for row in told(list(torch.load(path, weights_only=True).values()))]
    assert len({tensor.name for tensor in found}) == len(found)

    more = {frozenset([1, 2]): 1, frozenset([(3,), frozenset([4])]): 2, Mode.FAST: 3, Mode.SLOW: 4}
    for protocol in (2, 4):
        torch.save(more, path, pickle_protocol=protocol)
        values = read_tensors(str(path)).values
        assert sorted(values.values()) == [1, 2, 3, 4] and values["[1, 2]"] == 1
        assert values[f"<{__name__}.Mode slow>"] == 4


def test_an_optimizer_pickled_whole(tmp_path: Path) -> None:
    """Its state is kept by tensor: each has a name of its own."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer, tmp_path / "file.pt")
    file = read_tensors(str(tmp_path / "file.pt"))
    names = [tensor.name for tensor in file.tensors]
    assert len(set(names)) == len(names) == 2 * 3 + 2
    assert {"state.<tensor>.exp_avg", "state.<tensor #2>.exp_avg", "param_groups.0.params.1"} <= set(names)


def test_contents_nested_as_deep_as_python_pickles(tmp_path: Path) -> None:
    # Python 3.12 has a limit for calls in C that cannot be raised.
    depth = 150 if sys.version_info[:2] == (3, 12) else 450
    made: Any = torch.ones(2)
    for _ in range(depth):
        made = {"k": [made]}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 1000)
    try:
        torch.save(made, tmp_path / "file.pt")
    finally:
        sys.setrecursionlimit(limit)
    assert [tensor.name for tensor in read_tensors(str(tmp_path / "file.pt")).tensors] == [".".join(["k", "0"] * depth)]


class Slotted:
    __slots__ = ("lr", "weight")


def test_objects_with_slots(tmp_path: Path) -> None:
    """Their fields are told as those of other objects."""
    made = Slotted()
    made.lr, made.weight = 0.5, torch.ones(3)
    torch.save({"x": made}, tmp_path / "file.pt")
    file = read_tensors(str(tmp_path / "file.pt"))
    assert file.values["x.lr"] == 0.5 and [tensor.name for tensor in file.tensors] == ["x.weight"]


def test_not_a_number(tmp_path: Path) -> None:
    """Special numbers are kept as they are: who prints JSON turns them into null."""
    torch.save({"nan": float("nan"), "inf": float("-inf"), "scalar": np.float32("nan")}, tmp_path / "file.pt")
    values = read_tensors(str(tmp_path / "file.pt")).values
    assert str(values["nan"]) == str(values["scalar"]) == "nan"
    assert values["inf"] == float("-inf")


def test_odd_numpy_objects_stay_what_they_are(tmp_path: Path) -> None:
    """Structured and object arrays, and a state that lies about its length: no exception, no invention."""

    class Lies:
        def __init__(self, *call: Any) -> None:
            self.call = call

        def __reduce__(self) -> Any:
            return self.call

    rebuild = np.array(0).__reduce__()[0]
    dtype = np.dtype("f8")
    state = {
        "objects": np.array([{"a": 1}, None], dtype=object),
        "records": np.zeros(2, dtype=[("x", "f4"), ("y", "i4")]),
        "short": Lies(rebuild, (np.ndarray, (0,), b"b"), (1, (3,), dtype, False, b"x")),
        "negative": Lies(rebuild, (np.ndarray, (0,), b"b"), (1, (-3,), dtype, False, b"")),
        "huge": Lies(rebuild, (np.ndarray, (0,), b"b"), (1, (2**62, 2**62), dtype, False, b"")),
        "deep": Lies(rebuild, (np.ndarray, (0,), b"b"), (1, (1,) * 500, dtype, False, b"12345678")),
        "scalar": Lies(np.float64(1).__reduce__()[0], (dtype, b"x")),
        "year": Lies(datetime.datetime, (b"\0\0\0\0\0\0\0\0\0\0",)),
        "moment": Lies(datetime.datetime, (3, 4)),
        "path": Lies(pathlib.PurePosixPath, (3, [4])),
        "range": Lies(range, ("x" * 10**6,)),
    }
    torch.save(state, tmp_path / "odd.pt")
    values = read_tensors(str(tmp_path / "odd.pt")).values
    assert len(json.dumps(values)) < 10**7
    assert {key.partition(".")[0] for key in values} == set(state)


def test_the_allowlist_is_torch_s() -> None:
    """A loader that refuses other names than torch would mislead about what loads elsewhere."""
    # Those that torch registers itself when it is imported, asked of a process of its own.
    import subprocess
    import sys

    script = (
        "import torch; print(*(f'{g.__module__}.{g.__qualname__}' for g in torch.serialization.get_safe_globals()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(_get_allowed_globals()) | set(done.stdout.split()) == ALLOWED


def test_names_of_python_2_are_spelt_as_torch_does() -> None:
    from torch._utils import IMPORT_MAPPING, NAME_MAPPING

    for (module, name), (there, then) in NAME_MAPPING.items():
        assert python3_name(f"{module}.{name}") == f"{there}.{then}"
    for module, there in IMPORT_MAPPING.items():
        assert python3_name(f"{module}.anything") == f"{there}.anything"
    assert python3_name("torch.nn.Linear") == "torch.nn.Linear"


# --- archives


def repacked(path: Path, out: Path, **changes: Any) -> Path:
    """The records again through Python's writer: under another root, in another order, packed or less some."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", changes.get("method", 0)) as target:
        names = source.namelist()
        for name in changes.get("order", list)(names):
            base = name.partition("/")[2]
            if not changes.get("keep", lambda _: True)(base):
                continue
            data = changes.get("records", {}).get(base, source.read(name))
            target.writestr(changes.get("root", name.partition("/")[0]) + "/" + base, data)
    return out


STATE = {"w": torch.arange(6.0).view(2, 3), "t": torch.arange(12.0).view(3, 4).t()[1:], "i": torch.arange(9)[2:5]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "saved.pt")
    return tmp_path / "saved.pt"


VARIANTS: dict[str, dict[str, Any]] = {
    "deflated": {"method": zipfile.ZIP_DEFLATED},
    "other root": {"root": "archive"},
    "root with a space": {"root": "my model"},
    "root of other letters": {"root": "модель-模型"},
    "dotted root": {"root": "model.v1.0"},
    "deep root": {"root": "a/b"},
    "no byteorder": {"keep": lambda name: name != "byteorder"},
    "as torch 1.6": {"keep": lambda name: name.startswith(("data", "version"))},
    "no version": {"keep": lambda name: name != "version"},
    "no format": {"keep": lambda name: not name.startswith(".")},
    "lexicographic": {"order": sorted},
    "backwards": {"order": lambda names: names[::-1]},
    "version 1": {"records": {"version": b"1\n"}},
    "version 2": {"records": {"version": b"2"}},
    "version 10": {"records": {"version": b"10\n"}},
    "version 11": {"records": {"version": b"11\n"}},
    "version 0": {"records": {"version": b"0\n"}},
    "no number": {"records": {"version": b"x\n"}},
    "other format": {"records": {".format_version": b"9"}},
    "other alignment": {"records": {".storage_alignment": b"1"}},
    "odd byteorder": {"records": {"byteorder": b"middle"}},
    "empty byteorder": {"records": {"byteorder": b""}},
    "long byteorder": {"records": {"byteorder": b"little\n"}},
    "extra record": {"records": {}, "order": lambda names: [*names, names[0].partition("/")[0] + "/data/0"][:-1]},
}


@pytest.mark.parametrize("what", VARIANTS)
def test_archives_that_torch_takes(what: str, saved: Path, tmp_path: Path) -> None:
    """Whatever torch loads reads the same; what it refuses is refused, but for what is merely older."""
    path = repacked(saved, tmp_path / "made.pt", **VARIANTS[what])
    try:
        theirs = told(torch.load(path, weights_only=True))
    except (RuntimeError, ValueError):
        theirs = None
    try:
        file = read_tensors(str(path))
        ours = seen(file)
        check_all(path)
    except CkptError:
        ours = None
    assert ours == theirs
    refused = ("deep root", "no version", "version 11", "version 0", "no number")
    assert (ours is None) is (what in (*refused, "odd byteorder", "empty byteorder", "long byteorder"))


@pytest.mark.parametrize(("inner", "outer"), [(b"3\n", None), (b"3\n", b"x"), (b"x", b"3\n"), (b"11\n", b"3\n")])
def test_the_version_that_counts(inner: bytes, outer: bytes | None, saved: Path, tmp_path: Path) -> None:
    """Where there are two records of it, torch goes by the hidden one."""
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(tmp_path / "made.pt", "w") as target:
        kept = [name for name in source.namelist() if not name.endswith("/version")]
        for name in kept:
            target.writestr(name, source.read(name))
        target.writestr("saved/.data/version", inner)
        if outer is not None:
            target.writestr("saved/version", outer)
    try:
        theirs = told(torch.load(tmp_path / "made.pt", weights_only=True))
    except RuntimeError:
        theirs = None
    try:
        ours = seen(read_tensors(str(tmp_path / "made.pt")))
    except CkptError:
        ours = None
    assert ours == theirs
    assert (ours is None) is (inner != b"3\n")


@pytest.mark.parametrize("names", [("data.pkl", "DATA.PKL"), ("Data.pkl", "data.pkl"), ("data.PKL", "DATA.pkl")])
def test_names_that_differ_in_case_alone(names: tuple[str, str], tmp_path: Path) -> None:
    """torch looks for names without regard to case: which of two it unpickles is not to be told from outside."""
    with zipfile.ZipFile(tmp_path / "made.pt", "w") as archive:
        for name, value in zip((*names, "version"), (b"\x80\x02K\1.", b"\x80\x02K\2.", b"3\n")):
            archive.writestr(f"Made/{name}", value)
    assert torch.load(tmp_path / "made.pt", weights_only=True) in (1, 2)
    with pytest.raises(CkptError, match=r"stands twice|no data\.pkl"):
        read_tensors(str(tmp_path / "made.pt"))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_without_a_file_of_torch_around_them(protocol: int, tmp_path: Path) -> None:
    """torch unpickles whatever it does not know: what would run code is told; the rest is none of torch."""
    import pickle
    import subprocess

    class Attack:
        def __reduce__(self) -> Any:
            return subprocess.getoutput, ("true",)

    for held, kind, message in (
        (Attack(), "runs-code", "getoutput"),
        ({"a": [1]}, "not-a-checkpoint", "a Python pickle"),
    ):
        (tmp_path / "made.pt").write_bytes(pickle.dumps({"w": 1, "x": held}, protocol))
        with pytest.raises(CkptError, match=message) as caught:
            read_tensors(str(tmp_path / "made.pt"))
        assert (caught.value.kind, caught.value.code) == (kind, 2)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_legacy_files_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert seen(read_tensors(str(tmp_path / "old.pt"))) == told(STATE)


def test_a_dtype_in_place_of_a_type_of_storage(tmp_path: Path) -> None:
    from tests.builders import legacy_file, name, storage, tensor

    (tmp_path / "made.pt").write_bytes(legacy_file(tensor(place=storage(kind=name("torch", "float32")))))
    with pytest.raises(CkptError, match="a storage that torch does not write"):
        read_tensors(str(tmp_path / "made.pt"))


def test_many_storages_in_any_order(tmp_path: Path) -> None:
    """Keys are names, not places: 10 lies before 2 in files of old."""
    state = {str(index): torch.full((index + 1,), float(index)) for index in range(25)}
    torch.save(state, tmp_path / "many.pt")
    path = repacked(tmp_path / "many.pt", tmp_path / "sorted.pt", order=sorted)
    assert seen(read_tensors(str(path))) == told(torch.load(path, weights_only=True)) == told(state)
    assert [record.offset for record in records(path)] == sorted(record.offset for record in records(path))


# --- compressed records


def test_compressed_views(tmp_path: Path) -> None:
    """Views of a packed storage, late and strided ones too, and the CRC32 of what it unpacks to."""
    base = torch.arange(200_000, dtype=torch.float32).view(400, 500)
    state = {"whole": base, "late": base[399], "column": base[:, 7], "turned": base.t(), "one": base[200, 3]}
    torch.save(state, tmp_path / "plain.pt")
    path = repacked(tmp_path / "plain.pt", tmp_path / "packed.pt", method=zipfile.ZIP_DEFLATED)
    file = read_tensors(str(path))
    assert seen(file) == told(torch.load(path, weights_only=True)) == told(state)
    (storage,) = file.storages
    assert 0 < storage.packed < storage.bytes == base.numel() * 4
    assert {t.file_offset for t in file.tensors} == {None}
    with Files() as files:
        check_storage(files, storage)
        with pytest.raises(Damaged, match="CRC32"):
            check_storage(files, storage._replace(crc32=1))


def test_compressed_records_that_lie(tmp_path: Path) -> None:
    """Another size, flipped bits, a bomb: found in bounded time, whatever the directory claims."""
    torch.save({"w": torch.arange(1 << 16)}, tmp_path / "plain.pt")
    path = repacked(tmp_path / "plain.pt", tmp_path / "packed.pt", method=zipfile.ZIP_DEFLATED)
    check_all(path)
    whole = path.read_bytes()
    (storage,) = read_tensors(str(path)).storages
    for byte in range(storage.offset, storage.offset + storage.packed - 1, 997):
        flip(path, byte, byte % 8)
        with pytest.raises(Damaged):
            check_all(path)
        flip(path, byte, byte % 8)
    # All three places that tell the size, claiming 2**31 bytes.
    size = struct.pack("<L", storage.bytes)
    lying = whole.replace(struct.pack("<L", storage.packed) + size, struct.pack("<LL", storage.packed, 1 << 31))
    assert lying != whole
    path.write_bytes(lying)
    with pytest.raises(CkptError, match="more bytes than it can unpack to"):
        read_tensors(str(path))
    for wrong in (storage.bytes - 4, storage.bytes + 4):
        with Files() as files, pytest.raises(Damaged):
            path.write_bytes(whole)
            source, base = opened(files, storage._replace(bytes=wrong))
            range_crc32(source, base, wrong)


def test_streams_of_all_kinds() -> None:
    """Flipped, cut and longer streams: what does not unpack to its size is damage, and no other exception comes."""
    chance = random.Random(1)
    outcomes = collections.Counter[bool]()
    for _ in range(4000):
        data = bytes(chance.randrange(4) for _ in range(chance.randrange(1, 60)))
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = bytearray(packer.compress(data) + packer.flush())
        packed[chance.randrange(len(packed))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.2:
            del packed[chance.randrange(len(packed)) :]
        if chance.random() < 0.2:
            packed += chance.randbytes(3)
        size = len(data) + chance.choice([0, 0, 0, -1, 1])
        try:
            Inflated(Memory(bytes(packed)), size).read_at(0, size)
            outcomes[True] += 1
        except Damaged:
            outcomes[False] += 1
    assert min(outcomes[True], outcomes[False]) > 100


class Memory:
    """A ByteSource that is no file."""

    path = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


# --- what only a strict reader notices


def test_every_bit_of_every_record_is_found(saved: Path) -> None:
    """Whether or not a tensor uses it: whatever lies in a record has a CRC32 that is held against it."""
    check_all(saved)
    for first, length in places(saved).values():
        for byte in range(first, first + length):
            flip(saved, byte, byte % 8)
            with pytest.raises(CkptError):
                check_all(saved)
            flip(saved, byte, byte % 8)
    check_all(saved)


def headers(path: Path) -> Iterator[tuple[str, int]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            yield info.filename, info.header_offset


@pytest.mark.parametrize("writer", ["torch", "python", "stream"])
def test_headers_that_contradict_the_directory(writer: str, saved: Path, tmp_path: Path) -> None:
    """torch reads the directory alone; here a local header or a descriptor that says otherwise is damage."""
    path = saved
    if writer == "python":
        path = repacked(saved, tmp_path / "again.pt")
    if writer == "stream":
        stored = io.BytesIO()

        class Pipe(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                return stored.write(data)

        with zipfile.ZipFile(saved) as source, zipfile.ZipFile(Pipe(), "w") as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
        path = tmp_path / "stream.pt"
        path.write_bytes(stored.getvalue())
    assert seen(read_tensors(str(path))) == told(STATE)
    check_all(path)
    whole = path.read_bytes()
    bounds = places(path)
    for name, header in headers(path):
        first, length = bounds[name]
        at = {"signature": header, "method": header + 8, "name length": header + 26, "name": header + 31}
        described = whole[header + 6] & 8
        at |= {"crc": header + 14, "packed": header + 18, "size": header + 22} if not described else {}
        if described and length:
            at |= {"descriptor crc": first + length + 4, "descriptor size": first + length + 12}
        for what, byte in at.items():
            flip(path, byte, 0)
            with pytest.raises(CkptError):
                records(path)
            with pytest.raises(CkptError):
                read_tensors(str(path))
            flip(path, byte, 0)
            assert path.read_bytes() == whole, what


def test_overlapping_records(saved: Path) -> None:
    """Two names for the same bytes are what a compressor of bombs would write, and nothing else."""
    data = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        info = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        start = archive.start_dir
    # The second storage's entry now points into the first one's record.
    at = data.index(b"saved/data/1", start) - 46
    place = info["data/0"].header_offset + 8
    data[at + 42 : at + 46] = struct.pack("<L", place)
    header = data[info["data/1"].header_offset :][: 30 + 12]
    data[place : place + len(header)] = header
    saved.write_bytes(data)
    with pytest.raises(Damaged):
        records(saved)


def test_bytes_between_records(saved: Path, tmp_path: Path) -> None:
    """Zeros are padding; anything else between the records is told."""
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        start = archive.start_dir
        end = len(whole) - 22
    for filling, notes in ((b"\0" * 40, ()), (b"hidden bytes", ("12 bytes between its records, in none of them",))):
        moved = bytearray(whole[:start] + filling + whole[start:])
        zip64 = moved.rfind(b"PK\6\6")
        shift = len(filling)
        if zip64 > 0:
            place = struct.unpack_from("<Q", moved, zip64 + 48)[0]
            struct.pack_into("<Q", moved, zip64 + 48, place + shift)
            locator = moved.rfind(b"PK\6\7")
            struct.pack_into("<Q", moved, locator + 8, zip64)
        place = struct.unpack_from("<L", moved, end + shift + 16)[0]
        if place != 0xFFFFFFFF:
            struct.pack_into("<L", moved, end + shift + 16, place + shift)
        saved.write_bytes(moved)
        assert read_tensors(str(saved)).notes == notes
        assert seen(read_tensors(str(saved))) == told(torch.load(saved, weights_only=True))


@pytest.mark.parametrize("form", ["torch-zip", "torch-legacy", "safetensors"])
def test_records_are_all_there_is(form: str, tmp_path: Path) -> None:
    """In the order of the file, none over another, and between them the bytes of every tensor."""
    from safetensors.torch import save_file

    path = tmp_path / "file"
    state = {name: tensor.contiguous().clone() for name, tensor in STATE.items()}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch-zip")
    found = records(path)
    ends = [record.offset + (record.packed or record.bytes) for record in found]
    assert all(end <= record.offset for end, record in zip(ends, found[1:]))
    file = read_tensors(str(path))
    assert file.container == form
    for tensor in file.tensors:
        assert tensor.storage is not None
        matching = [record for record in found if record.offset == tensor.storage.offset]
        assert [record._replace(name="") for record in matching] == [tensor.storage._replace(name="")]
    if form == "torch-zip":
        with zipfile.ZipFile(path) as archive:
            wanted = {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}
            assert {record.name: (record.bytes, record.crc32) for record in found} == wanted
            assert all(zlib.crc32(archive.read(record.name)) == record.crc32 for record in found)
    else:
        assert {record.crc32 for record in found} == {None}


# --- storages of other devices and times


def test_storages_of_graphics_cards(tmp_path: Path) -> None:
    """Old files name the device in the type of the storage, newer ones in its location; the bytes are the same."""
    torch.save({"w": torch.arange(3.0)}, tmp_path / "cpu.pt")
    with zipfile.ZipFile(tmp_path / "cpu.pt") as archive:
        script = archive.read("cpu/data.pkl")
    there = script.replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage")
    there = there.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    assert there != script
    path = repacked(tmp_path / "cpu.pt", tmp_path / "cuda.pt", records={"data.pkl": there})
    file = read_tensors(str(path))
    assert seen(file) == told({"w": torch.arange(3.0)})
    assert file.foreign_globals == ()


# --- real files


def test_real_sparse_and_script(shared: Path) -> None:
    """The collection's tensors that are made of others, part by part, and its TorchScript."""
    expected = json.loads((shared / "real/zoo/expected.json").read_text())["files"]
    compared = 0
    for name, wanted in expected.items():
        parts = {label: entry["parts"] for label, entry in wanted.get("tensors", {}).items() if "parts" in entry}
        if not parts:
            continue
        file = read_tensors(str(shared / "real/zoo" / name))
        for tensor in file.tensors:
            ours = members(tensor)
            assert list(ours) == list(parts[tensor.name])
            for piece, told_of in parts[tensor.name].items():
                assert ours[piece] == (told_of["dtype"], tuple(told_of["shape"]), told_of["sha256"])
                compared += 1
            assert tensor.form == wanted["tensors"][tensor.name]["layout"]
    assert compared > 10
    script = shared / "real/zoo/torchscript.pt"
    entries = {entry[0]: entry[4] for entry in seen(read_tensors(str(script)))}
    assert entries == {label: entry["sha256"] for label, entry in expected["torchscript.pt"]["tensors"].items()}
    check_all(script)


def test_no_real_file_is_called_damaged(shared: Path) -> None:
    """Every sound file that a trainer wrote passes the strict reading, record by record."""
    checked = 0
    for folder in ("nanochat", "gpt2", "torchtune", "lightning", "hf", "trainer", "zoo", "families"):
        for path in sorted((shared / "real" / folder).rglob("*")):
            if path.suffix not in (".pt", ".pth", ".ckpt", ".bin") or path.name.startswith(("damaged", "hostile")):
                continue
            if path.stat().st_size > 1 << 24:
                continue
            check_all(path)
            assert read_tensors(str(path)).notes == ()
            checked += 1
    assert checked > 50


def test_storages_of_pieces(tmp_path: Path) -> None:
    """What a tensor is made of is found for the check of its CRC32."""
    torch.save({"s": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    file = read_tensors(str(tmp_path / "sparse.pt"))
    with Files() as files:
        assert storages_of(files, file.tensors[0]) == list(file.storages)
    assert len(file.storages) == 2


def word(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


WRAPPER = word("torch._utils", "_rebuild_wrapper_subclass")
LONG = struct.pack("<L", 1 << 20) + b"a" * (1 << 20)
BUSY = {
    # What stands before, and what is repeated: each repetition is a few bytes, and must not cost what it shares.
    "wrappers of one state": (
        word("torch._tensor", "_rebuild_from_type_v2") + b"q\0"
        b"(" + WRAPPER + b"N(N" + word("torch", "float32") + b"))K\0t"
        b"}(" + b"".join(b"X\4\0\0\0%04dN" % index for index in range(5000)) + b"utq\1",
        b"h\0h\1R",
    ),
    "paths of one tuple": (word("pathlib", "PosixPath") + b"q\0(" + b"U\1a" * 50_000 + b"tq\1", b"h\0h\1R"),
    "paths of one long text": (word("pathlib", "PosixPath") + b"q\0X" + LONG + b"\x85q\1", b"h\0h\1R"),
    "numbers of one text": (
        word("numpy", "dtype") + b"U\2f8\x85Rq\2" + word("numpy.core.multiarray", "scalar") + b"q\0h\2X"
        + LONG + b"\x86q\1", b"h\0h\1R",
    ),
    "one array, many times": (
        word("numpy.core.multiarray", "_reconstruct") + b")R(K\1K@\x85" + word("numpy", "dtype") + b"U\2u1\x85R\x89U@"
        + b"a" * 64 + b"tbq\0", b"h\0",
    ),
    "parameters of many arguments": (
        word("torch._utils", "_rebuild_parameter") + b"q\0(" + b"N" * 50_000 + b"tq\1", b"h\0h\1R"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BUSY)
def test_what_is_shared_costs_once(what: str, tmp_path: Path) -> None:
    """Fifty thousand objects that share what is large: read or refused at once."""
    before, repeated = BUSY[what]
    script = b"\x80\2" + before + b"0](" + repeated * 50_000 + b"e."
    path = write_zip(tmp_path / "made.pt", script)
    begun = time.process_time()
    try:
        read_tensors(str(path))
    except CkptError as error:
        assert "unfold" in error.message or "over and over" in error.message, error.message
    assert time.process_time() - begun < 4


@pytest.mark.parametrize("what", ["sparse", "values", "script"])
def test_mutated_pickles(what: str, scripted: dict[str, Path], tmp_path: Path) -> None:
    """Whatever bytes change in a pickle or in TorchScript's code: no exception but CkptError."""
    own = torch.ones(2)
    own.twin = torch.zeros(2)
    state: Any = {"coo": torch.eye(3).to_sparse(), "csr": torch.eye(4).to_sparse_csr(), "own": own}
    state |= {"quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8)}
    state |= {"nested": torch.nested.nested_tensor([torch.ones(2)]), "wrapped": Scaled(torch.ones(2), torch.ones(1))}
    if what == "values":
        state = {name: value for name, (value, _) in objects().items()}
    path = scripted["tree"]
    if what != "script":
        path = tmp_path / "state.pt"
        torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        whole = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    chance = random.Random(what)
    targets = [name for name in whole if name == "data.pkl" or name.endswith("__torch__.py")]
    outcomes = collections.Counter[bool]()
    for _ in range(800):
        target = chance.choice(targets)
        made = {**whole, target: mutated(whole[target], chance)}
        script = made.pop("data.pkl")
        try:
            file = read_tensors(str(write_zip(tmp_path / "made.pt", script, made)))
            json.dumps(dict(file.values))
            with Files() as files:
                for tensor in file.tensors:
                    for one in (tensor, *(piece for _, piece in tensor.pieces)):
                        if not readable(one):
                            digest(files, one)
            outcomes[True] += 1
        except CkptError:
            outcomes[False] += 1
    assert min(outcomes[True], outcomes[False]) > 20, outcomes


def test_time_of_many_objects(tmp_path: Path) -> None:
    """Twenty thousand numpy scalars, as a log of losses holds them."""
    torch.save({"losses": [np.float64(index) for index in range(20_000)]}, tmp_path / "log.pt")
    begun = time.process_time()
    values = read_tensors(str(tmp_path / "log.pt")).values
    assert (len(values), values["losses.19999"]) == (20_000, 19999.0)
    assert time.process_time() - begun < 5
