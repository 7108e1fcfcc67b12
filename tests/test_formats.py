"""Readers against torch as the oracle, and against files that are damaged or hostile."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import Files, FileSource, safetensors
from ckpt_cli.formats._code_names import runs_code
from ckpt_cli.tensor_file import TensorFile
from ckpt_cli.tensors import check_end, check_storage, digest, read_tensors, readable
from tests.conftest import REPOSITORY, Run
from tests.torch_files import DTYPES, filled, flip, places, swap_bytes, told, write_zip

# Counts, not time, decide what a property test finds; a slow machine must not fail it.
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def seen(path: object) -> list[tuple[str, str, tuple[int, ...], tuple[int, ...], str]]:
    """What the reader says of a file's tensors, as `told` says what torch says."""
    file = read_tensors(str(path))
    with Files() as files:
        return [(t.name, t.dtype, t.shape, t.stride, digest(files, t)) for t in file.tensors]


def read_whole(path: object) -> TensorFile:
    """Reads what there is to read: the list, every record's CRC32, every tensor's bytes."""
    file = read_tensors(str(path))
    with Files() as files:
        for storage in file.storages:
            check_storage(files, storage)
        for tensor in file.tensors:
            if not readable(tensor):
                digest(files, tensor)
    return file


# --- torch as the oracle


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever torch can save reads back under its name, with its bytes."""
    path = tmp_path / "model.pt"
    torch.save({"matrix": filled(dtype, 3, 5), "scalar": filled(dtype)}, path)
    assert seen(path) == told(torch.load(path, weights_only=True))


def test_the_dtypes_are_those_of_torch() -> None:
    """The list that the test above runs over has the dtypes that models use; torch may add to it."""
    names = {str(dtype) for dtype in DTYPES}
    assert names >= {f"torch.{dtype}" for dtype, _ in safetensors.DTYPES.values() if "float6" not in dtype}
    assert names >= {"torch.complex128", "torch.complex32"}


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(240, dtype=torch.float32).reshape(4, 5, 12)
    wide = filled(torch.complex128, 6, 4)
    return {
        "base": base,
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(1, 2, 0),
        "sliced": base[1:3, ::2, 3:9:3],
        "narrowed": base.narrow(2, 4, 5),
        "expanded": base[0, 0, :4].expand(7, 4),
        "expanded_scalar": torch.tensor(2.5).expand(3, 2),
        "expanded_within": base[:, :1, 0].expand(4, 6),
        "unfolded": torch.arange(10, dtype=torch.int16).unfold(0, 4, 2),
        "diagonal": base[0, :, :5].diagonal(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "scalar_view": base[3, 4, 11],
        "empty": torch.empty(0),
        "empty_wide": torch.empty(3, 0, 2),
        "empty_view": base[:, 2:2],
        "wide_transposed": wide.t(),
        "half_transposed": filled(torch.float16, 3, 7).t(),
        "bytes_strided": filled(torch.uint8, 5, 9)[:, ::4],
        "channels_last": filled(torch.bfloat16, 2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conjugated": wide.conj(),
        "conjugated_transposed": wide.t().conj(),
        "imaginary": filled(torch.complex64, 6).conj().imag,
        "negated": torch._neg_view(base[1]),
        "negated_complex": torch._neg_view(torch.randn(3, 2, dtype=torch.complex64)),
        "half_complex": torch.tensor([1 + 2j, -3j, 0.5], dtype=torch.complex32).conj(),
    }


@pytest.mark.parametrize("block", [1 << 20, 256, 40, 1])
def test_views(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided views give torch's bytes, whatever the size of the blocks they are gathered in."""
    monkeypatch.setattr("ckpt_cli.views.BLOCK", block)
    torch.save(views(), tmp_path / "views.pt")
    assert seen(tmp_path / "views.pt") == told(torch.load(tmp_path / "views.pt", weights_only=True))


def test_shared_storages(tmp_path: Path) -> None:
    """Tensors share a storage in the list exactly where they do in torch."""
    base = torch.arange(20.0)
    state = {
        "emb": base.view(4, 5),
        "head": base.view(4, 5),
        "part": base[3:9],
        "copy": base.clone(),
        "parameter": torch.nn.Parameter(base[:4]),
    }
    torch.save(state, tmp_path / "tied.pt")
    file = read_tensors(str(tmp_path / "tied.pt"))
    loaded = torch.load(tmp_path / "tied.pt", weights_only=True)
    ours = {t.name: (t.storage.name if t.storage else "", t.offset) for t in file.tensors}
    for one in state:
        assert ours[one][1] == loaded[one].storage_offset()
        for other in state:
            same = loaded[one].untyped_storage().data_ptr() == loaded[other].untyped_storage().data_ptr()
            assert (ours[one][0] == ours[other][0]) is same, (one, other)
    assert seen(tmp_path / "tied.pt") == told(loaded)
    assert len(file.storages) == 2


def containers() -> dict[str, Any]:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = module.state_dict()
    assert hasattr(state, "_metadata")
    tensor = torch.arange(3.0)
    return {
        "state_dict": state,
        "parameters": dict(module.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "nested": {"model": state, "steps": [{"ema": tensor}, (tensor, 5)], "epoch": 3},
        "ordered": OrderedDict(a=tensor, b=OrderedDict(c=tensor)),
        "keys": {
            1: tensor,
            (2, "x"): tensor * 2,
            "": tensor * 3,
            "a.b": {"c": tensor * 4},
            "ключ": tensor,
        },
        "list": [tensor, [tensor * 2]],
        "bare": tensor,
        "scalar": torch.tensor(1.5),
        "none": {},
        "size": {"shape": torch.Size([1, 2]), "device": torch.device("cpu"), "dtype": torch.float16, "w": tensor},
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("what", containers())
def test_containers_and_protocols(what: str, protocol: int, tmp_path: Path) -> None:
    """Nested containers, state dicts and bare tensors, under every pickle protocol torch can be told to use."""
    path = tmp_path / "file.pt"
    torch.save(containers()[what], path, pickle_protocol=protocol)
    loaded = torch.load(path, weights_only=protocol == 2)
    assert seen(path) == told(loaded)
    assert read_tensors(str(path)).foreign_globals == ()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_are_listed_by_name(protocol: int, tmp_path: Path) -> None:
    """What is no tensor is shown as JSON can hold it."""
    state = {
        "epoch": 3, "lr": 0.5, "flag": True, "none": None, "name": "run", "betas": (0.9, 0.95), "raw": b"\x00\xff",
        "set": {2, 1}, "frozen": frozenset([3]), "no": b"", "mutable": bytearray(b"\x01"),
        "deep": {"list": [1, [2]]}, "empty": {}, "complex": 1 + 2j, "w": torch.ones(1),
        "shape": torch.Size([2, 3]), "dtype": torch.bfloat16,
    }  # fmt: skip
    torch.save(state, tmp_path / "file.pt", pickle_protocol=protocol)
    values = read_tensors(str(tmp_path / "file.pt")).values
    assert json.loads(json.dumps(values)) == {
        "epoch": 3, "lr": 0.5, "flag": True, "none": None, "name": "run", "betas": [0.9, 0.95], "raw": "<2 bytes 00ff>",
        "set": [1, 2], "frozen": [3], "no": "<0 bytes >", "mutable": "<1 bytes 01>",
        "deep.list.0": 1, "deep.list.1.0": 2, "empty": {}, "complex": "(1+2j)", "shape": [2, 3],
        "dtype": "torch.bfloat16",
    }  # fmt: skip


def test_a_list_too_long_for_names(tmp_path: Path, call: Run) -> None:
    """The order of a data set is one value, and comes back as a list; what holds other containers has names."""
    state = {"order": [*range(100_000), None], "named": [*range(100_000)], "pairs": [[1]] * 2, "w": torch.ones(1)}
    torch.save(state, tmp_path / "file.pt")
    values = read_tensors(str(tmp_path / "file.pt")).values
    assert values["order"] == state["order"] and values["named.99999"] == 99_999
    assert call("convert", tmp_path / "file.pt", "-o", tmp_path / "file.safetensors").code == 0
    assert call("convert", tmp_path / "file.safetensors", "--to", "pt", "-o", tmp_path / "back.pt").code == 0
    assert torch.load(tmp_path / "back.pt", weights_only=True) == state


@pytest.mark.parametrize("alignment", [1, 64, 4096])
@pytest.mark.parametrize("checked", [True, False])
def test_writer_settings(alignment: int, checked: bool, tmp_path: Path) -> None:
    """A file object instead of a path, other paddings, and no CRC32 at all."""
    from torch.utils.serialization import config

    state = {"w": filled(torch.float32, 7, 3), "b": filled(torch.float16, 9)}
    config.save.storage_alignment, config.save.compute_crc32 = alignment, checked
    try:
        torch.save(state, tmp_path / "by-path.pt")
        with open(tmp_path / "by-object.pt", "wb") as file:
            torch.save(state, file)
    finally:
        config.save.storage_alignment, config.save.compute_crc32 = 64, True
    for name in ("by-path.pt", "by-object.pt"):
        file_ = read_whole(tmp_path / name)
        assert [storage.crc32 is not None for storage in file_.storages] == [checked, checked]
        assert seen(tmp_path / name) == told(state)
        with zipfile.ZipFile(tmp_path / name) as archive:
            assert archive.namelist()[0].split("/")[0] == ("by-path" if "path" in name else "archive")
    assert {storage.offset % alignment for storage in file_.storages} == {0}


def test_big_endian(tmp_path: Path) -> None:
    """Files of a big-endian machine give the same bytes as those of a little-endian one."""
    state = {
        "f64": filled(torch.float64, 3, 4).t(),
        "f32": filled(torch.float32, 5),
        "bf16": filled(torch.bfloat16, 2, 3)[:, 1:],
        "i64": filled(torch.int64, 2),
        "u8": filled(torch.uint8, 5),
        "c128": filled(torch.complex128, 3).conj(),
        "c64": filled(torch.complex64, 2, 2).t(),
    }
    torch.save(state, tmp_path / "little.pt")
    widths = {"0": 8, "1": 4, "2": 2, "3": 8, "4": 1, "5": 8, "6": 4}
    big = swap_bytes(tmp_path / "little.pt", tmp_path / "big.pt", widths)
    assert seen(big) == told(torch.load(big, weights_only=True)) == told(state)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.binary()
)
KEYS = st.one_of(st.text(st.characters(exclude_characters="."), max_size=4), st.integers(-9, 99))
SHARED = {"whole": torch.arange(12.0).view(3, 4)}
SHARED |= {"row": SHARED["whole"][1], "column": SHARED["whole"][:, 2]}
TENSORS = st.builds(
    lambda dtype, shape, turned, shared: (
        (filled(dtype, *shape).T if turned and len(shape) == 2 else filled(dtype, *shape))
        if not shared
        else SHARED[shared]
    ),
    st.sampled_from([dtype for dtype in DTYPES if not str(dtype).startswith("torch.bits")]),
    st.lists(st.integers(0, 4), max_size=3),
    st.booleans(),
    st.sampled_from(["", "", "", "whole", "row", "column"]),
)
TREES = st.recursive(
    TENSORS | LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@PROPERTY
@given(tree=TREES, protocol=st.sampled_from([2, 4, 5]))
def test_random_trees(tree: Any, protocol: int, tmp_path: Path) -> None:
    """Any nesting of tensors and values reads as torch reads it, and is not damaged."""
    try:
        torch.save(tree, tmp_path / "tree.pt", pickle_protocol=protocol)
        loaded = torch.load(tmp_path / "tree.pt", weights_only=False)
    except (RuntimeError, NotImplementedError):
        assume(False)
    assert seen(tmp_path / "tree.pt") == told(loaded)
    # Protocol 2 spells empty bytes by a name that torch's own loader refuses.
    assert {found.name for found in read_whole(tmp_path / "tree.pt").foreign_globals} <= {"builtins.bytes"}


def test_what_has_no_bytes(tmp_path: Path) -> None:
    """Sparse, quantized and meta tensors are listed with dtype and shape, and say why they cannot be read."""
    state = {
        "coo": torch.eye(3).to_sparse(),
        "csr": torch.eye(4)[:2].to_sparse_csr(),
        "meta": torch.empty(2, 3, device="meta", dtype=torch.float16),
        "w": torch.ones(2),
    }
    torch.save(state, tmp_path / "file.pt")
    file = read_whole(tmp_path / "file.pt")
    assert [(t.name, t.dtype, t.shape, t.form) for t in file.tensors] == [
        ("coo", "float32", (3, 3), "sparse_coo"),
        ("csr", "float32", (2, 4), "sparse_csr"),
        ("meta", "float16", (2, 3), "meta"),
        ("w", "float32", (2,), "strided"),
    ]
    reasons = [readable(tensor) for tensor in file.tensors]
    assert reasons == ["it is sparse_coo", "it is sparse_csr", "it lies on the meta device, without data", None]


# --- damage


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.pt"
    torch.save({"w": torch.arange(6, dtype=torch.float32), "b": torch.ones(3, dtype=torch.int16)}, path)
    return path


def test_every_flipped_bit_of_a_record_is_found(small: Path, tmp_path: Path) -> None:
    """Every single bit of the pickle, of the storages and of what says how to read them."""
    path = tmp_path / "small.pt"
    path.write_bytes(small.read_bytes())
    records = {name.partition("/")[2]: place for name, place in places(path).items()}
    # These three hold nothing that decides what is read.
    ours = {name for name in records if name not in (".format_version", ".storage_alignment", ".data/serialization_id")}
    assert ours == {"data.pkl", "byteorder", "version", "data/0", "data/1"}
    for name in ours:
        first, length = records[name]
        for byte in range(first, first + length):
            for bit in range(8):
                flip(path, byte, bit)
                with pytest.raises(Damaged, match=re.escape(name)):
                    read_whole(path)
                flip(path, byte, bit)
    read_whole(path)


def test_a_flipped_bit_elsewhere_never_changes_a_tensor(small: Path, tmp_path: Path) -> None:
    """Headers, padding, directory: what reads at all reads the same, and what does not is a CkptError."""
    path, wanted = tmp_path / "small.pt", seen(small)
    path.write_bytes(small.read_bytes())
    refused = 0
    for byte in range(path.stat().st_size):
        flip(path, byte, byte % 8)
        try:
            file = read_whole(path)
            if all(storage.crc32 is not None for storage in file.storages):
                assert seen(path) == wanted, byte
        except CkptError:
            refused += 1
        flip(path, byte, byte % 8)
    assert refused > 100


def test_truncation_at_every_byte(small: Path, tmp_path: Path) -> None:
    """Every proper beginning of a file is damaged, and says so in the quick check as well."""
    data, path = small.read_bytes(), tmp_path / "cut.pt"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged):
            read_tensors(str(path))
        with pytest.raises(Damaged):
            check_end(str(path))


def test_zeros_where_the_end_was(small: Path, tmp_path: Path) -> None:
    """A file system that lost the last pages leaves the size right and the end zero."""
    data, path = small.read_bytes(), tmp_path / "zeros.pt"
    for kept in range(0, len(data) - 64, 64):
        path.write_bytes(data[:kept] + bytes(len(data) - kept))
        with pytest.raises(CkptError):
            read_tensors(str(path))


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed))
        kind = chance.randrange(4)
        if kind == 0:
            changed[at] = chance.randrange(256)
        elif kind == 1:
            changed[at : at + chance.randint(1, 8)] = chance.randbytes(chance.randint(0, 8))
        elif kind == 2:
            changed[at] = chance.choice(b"\x00\x01\x7f\x80\xff().}]\x81\x85RbcQ")
        else:
            other = chance.randrange(len(changed))
            changed[at : at + 8] = changed[other : other + 8]
    return bytes(changed)


@pytest.mark.parametrize("protocol", [2, 4])
def test_random_mutations(protocol: int, small: Path, tmp_path: Path) -> None:
    """Whatever bytes change, in the file or in a pickle whose CRC32 fits: no exception but CkptError."""
    chance = random.Random(protocol)
    path = tmp_path / "mutated.pt"
    torch.save(containers()["nested"], path, pickle_protocol=protocol)
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    script = records.pop("data.pkl")
    whole = small.read_bytes()
    outcomes = {True: 0, False: 0}
    for turn in range(1500):
        if turn % 3:
            write_zip(path, mutated(script, chance), records)
        else:
            path.write_bytes(mutated(whole, chance))
        try:
            json.dumps(dict(read_whole(path).values))
            outcomes[True] += 1
        except CkptError:
            outcomes[False] += 1
    # Neither may be rare: a mutation that is always or never refused tests little.
    assert min(outcomes.values()) > 50, outcomes


# --- hostile pickles


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tensor(
    shape: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\0", storage: bytes | None = None
) -> bytes:
    """A float32 view of a storage of 16 elements."""
    pid = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x10tQ"
    place = pid if storage is None else storage
    hooks = name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + place + offset + shape + stride + b"\x89" + hooks + b"tR"


def laughs(seed: bytes, levels: int, width: int = 2) -> bytes:
    """A list that holds a list `width` times, `levels` times over: one pointer each, and `width**levels` leaves."""
    return seed + b"".join(b"q\0" + b"0](" + b"h\0" * width + b"e" for _ in range(levels))


def deep(levels: int) -> bytes:
    return b"N" + b"\x85" * levels


HUGE = (2**62).to_bytes(8, "little")
# What to unpickle -> what must be said when it is refused, or None when it is read as something inert.
HOSTILE: dict[str, tuple[bytes, str | None]] = {
    "os.system": (name("os", "system") + text("false") + b"\x85R", "os.system"),
    "posix.system": (name("posix", "system") + text("false") + b"\x85R", "posix.system"),
    "named but not called": (name("os", "system"), "os.system"),
    "eval": (name("builtins", "eval") + text("1") + b"\x85R", "builtins.eval"),
    "eval of python 2": (name("__builtin__", "eval") + text("1") + b"\x85R", "eval"),
    "stack global": (text("builtins") + text("eval") + b"\x93" + text("1") + b"\x85R", "builtins.eval"),
    "inst": (b"(" + text("1") + b"iargparse\nNamespace\n", "opcode 0x69"),
    "obj": (b"(" + name("builtins", "eval") + text("1") + b"o", "builtins.eval"),
    "obj of a harmless name": (b"(" + name("argparse", "Namespace") + b"o", "opcode 0x6f"),
    "dotted": (text("collections") + text("abc.sys.modules") + b"\x93", "collections.abc.sys.modules"),
    "dotted through torch": (name("torch.serialization", "os.system"), "torch.serialization.os.system"),
    "dotted getattr": (text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93)R", "__globals__"),
    "getattr": (name("builtins", "getattr") + b"N\x85R", "builtins.getattr"),
    "import": (name("builtins", "__import__") + text("os") + b"\x85R", "__import__"),
    "reduce": (name("functools", "reduce") + b")R", "functools.reduce"),
    "torch.load": (name("torch", "load") + text("x") + b"\x85R", "torch.load"),
    "load from bytes": (name("torch.storage", "_load_from_bytes") + b"C\0\x85R", "_load_from_bytes"),
    "runpy": (name("runpy", "run_path") + text("x") + b"\x85R", "runpy.run_path"),
    "after an unknown name": (name("x", "y") + b")R0" + name("subprocess", "Popen") + b")R", "subprocess.Popen"),
    "unknown class": (name("argparse", "Namespace") + b")\x81}" + text("lr") + b"K\x01sb", None),
    "unknown function": (name("some.module", "function") + b")R", None),
    "endless name": (name("a", "a." * 100_000 + "b"), "a name of"),
    "extension registry": (b"\x82\x01", "opcode 0x82"),
    "text persistent id": (b"Pstorage\n", "opcode 0x50"),
    "persistent id that is no tuple": (text("storage") + b"Q", "no storage"),
    "persistent id of something else": (b"(" + text("module") + b"NNNNtQ", "no storage"),
    "storage of an unknown type": (
        b"(" + text("storage") + name("builtins", "int") + text("0") + text("cpu") + b"K\x10tQ", "a storage that torch"
    ),
    "storage that is a tuple": (tensor(storage=b"N" + text("float32") + b"\x86"), "without a storage"),
    "storage that is a tensor": (tensor(storage=tensor() + text("float32") + b"\x86"), "without a storage"),
    "storage that is missing": (
        b"(" + text("storage") + name("torch", "FloatStorage") + text("9") + text("cpu") + b"K\x10tQ", "is missing"
    ),
    "storage outside the archive": (
        b"(" + text("storage") + name("torch", "FloatStorage") + text("../x") + text("cpu") + b"K\x10tQ", "is missing"
    ),
    "memo slot never set": (b"h\x05", "memo slot 5"),
    "memo slot never set, long": (b"j\xff\xff\xff\xff", "memo slot"),
    "empty stack": (b"\x87", "exhausted"),
    "stop on an empty stack": (b"", "exhausted"),
    "mark missing": (b"t", "exhausted"),
    "key nested deep": (b"}" + deep(100_000) + b"Ns", "as a key"),
    "key nested deep in a set": (b"\x8f(" + deep(100_000) + b"\x90", "as a key"),
    "key nested deep in a frozenset": (b"(" + deep(100_000) + b"\x91", "as a key"),
    "key nested deep in an OrderedDict": (
        name("collections", "OrderedDict") + b"]" + deep(100_000) + b"N\x86a\x85R", "as a key"
    ),
    "key nested deep in a Counter": (
        name("collections", "Counter") + b"]" + deep(100_000) + b"N\x86a\x85R", "as a key"
    ),
    "key that unfolds": (b"}(" + b"N" * 999 + b"t" + b"q\x000(" + b"h\0" * 999 + b"tNs", "as a key"),
    "key that is a list": (b"}]Ns", "a list as a key"),
    "key that is a tensor": (b"}" + tensor() + b"Ns", None),
    "key that is a set": (b"}\x8fNs", "a set as a key"),
    "key that is a set in a tuple": (b"}\x8f\x85Ns", "a set as a key"),
    "key of frozen sets nested deep": (b"}" + b"(" * 1000 + b"\x91" * 1000 + b"Ns", "as a key"),
    "object of many arguments as a key, repeated": (
        b"}" + name("a", "b") + b"(" + b"N" * 100_000 + b"]tR" + tensor() + b"sq\x000](" + b"h\0" * 20_000 + b"e", None
    ),
    "numbers as keys that all have the same hash": (
        b"}" + b"".join(
            name("builtins", "complex") + b"G" + struct.pack(">d", 1000003.0 * k) + b"G" + struct.pack(">d", -k)
            + b"\x86RNs" for k in range(1, 20_000)
        ), None
    ),
    "digits": (b"L" + b"9" * 10_000 + b"L\n", "10000 digits"),
    "digits as an integer": (b"I" + b"9" * 10_000 + b"\n", "10000 digits"),
    "digits of a binary number": (b"}\x8b" + (4096).to_bytes(4, "little") + b"\x7f" * 4096 + b"Ns", "4096 bytes"),
    "the longest number as a key": (b"}\x8b" + (1024).to_bytes(4, "little") + b"\x7f" * 1024 + b"Ns", None),
    "dict in itself": (b"}q\0" + text("self") + b"h\0s", None),
    "list in itself": (b"]q\0h\0a", None),
    "object in itself": (name("argparse", "Namespace") + b")\x81q\0}" + text("me") + b"h\0sb", None),
    "billion laughs": (laughs(b"]", 60), None),
    "billion laughs, wide": (laughs(b"]", 60, 200), None),
    "billion laughs around a tensor": (laughs(tensor(), 60), "unfold"),
    "billion laughs around a tensor, wide": (laughs(tensor(), 60, 100), "unfold"),
    "billion laughs as a device": (
        name("torch", "device") + laughs(b"]", 60) + b"\x85R", "a device or layout that torch does not have"
    ),
    "billion laughs as a layout": (
        name("torch.serialization", "_get_layout") + laughs(b"]", 60) + b"\x85R", "device or layout"
    ),
    "billion laughs as a dtype": (
        name("torch._utils", "_rebuild_meta_tensor_no_storage") + b"(" + laughs(b"]", 60) + b"))\x89tR", "of a dtype"
    ),
    "chain repeated": (tensor() + b"\x85" * 190 + b"q\x000](" + b"h\0" * 50_000 + b"e", "unfold"),
    "long text repeated": (text("x" * 100_000) + b"q\x000](" + b"h\0" * 50_000 + b"e", "unfold"),
    "long names repeated": (
        text("k" * 1_000_000) + b"q\x01" + tensor() + b"q\x000}h\x01h\0s" * 150 + b"q\x000](h\0h\0e", "unfold"
    ),
    "wide tuple repeated": (b"(" + b"N" * 50_000 + b"tq\x000](" + b"h\0" * 50_000 + b"e", "unfold"),
    "wide list repeated": (b"](" + b"N" * 50_000 + b"eq\x000](" + b"h\0" * 50_000 + b"e", None),
    "nesting": (b"]" * 1_000_000 + b"a" * 999_999, "more memory than"),
    "nesting of few": (b"]" * 10_000 + b"a" * 9_999, "nested deeper"),
    "nesting of tuples": (deep(450_000), "nested deeper"),
    "nesting as a device": (name("torch", "device") + deep(100_000) + b"\x85R", "device or layout"),
    "text beyond the end": (b"X\xff\xff\xff\x7f", "breaks off"),
    "text of 2**62 bytes": (b"\x8d" + HUGE, "breaks off"),
    "bytes of 2**62": (b"\x8e" + HUGE, "breaks off"),
    "bytearray of 2**62": (b"\x96" + HUGE, "breaks off"),
    "frame beyond the end": (b"\x95" + HUGE + b"N", "frame"),
    "text that is no UTF-8": (b"X\x02\0\0\0\xff\xfe", "breaks off"),
    "a lone surrogate": (b"}" + text("\ud800") + b"Ns", None),
    "protocol 255": (b"\x80\xff", "protocol 255"),
    "view beyond its storage": (tensor(shape=b"K\x11\x85"), "beyond its storage"),
    "view that begins beyond it": (tensor(offset=b"K\x10", shape=b"K\x01\x85"), "beyond its storage"),
    "view that strides beyond it": (tensor(stride=b"K\x06\x85"), "beyond its storage"),
    "stride below zero": (tensor(stride=b"J\xff\xff\xff\xff\x85"), "negative"),
    "size below zero": (tensor(shape=b"J\xff\xff\xff\xff\x85"), "negative"),
    "two sizes below zero": (tensor(shape=b"J\xfe\xff\xff\xff" * 2 + b"\x86", stride=b"K\x01K\x01\x86"), "negative"),
    "offset below zero": (tensor(offset=b"J\xff\xff\xff\xff"), "negative"),
    "size that is true": (tensor(shape=b"\x88\x85"), "odd size"),
    "size of 2**70": (
        tensor(shape=b"\x8a\x09" + (2**70).to_bytes(9, "little") + b"\x85", stride=b"K\0\x85"), "odd size"
    ),
    "sizes without strides": (tensor(stride=b")"), "differ in number"),
    "a thousand dimensions": (tensor(shape=b"(" + b"K\x01" * 1000 + b"t", stride=b"(" + b"K\x01" * 1000 + b"t"), "64"),
    "2**124 elements of one": (
        tensor(shape=(b"\x8a\x08" + HUGE) * 2 + b"\x86", stride=b"K\0K\0\x86"), None
    ),
    "2**186 elements of one": (
        tensor(shape=(b"\x8a\x08" + HUGE) * 3 + b"\x87", stride=b"K\0K\0K\0\x87"), "overflows"
    ),
    "item of a tensor": (tensor() + text("x") + b"Ns", "sets an item"),
    "append to a dict": (b"}Na", "appends to a dict"),
    "call of a text": (text("os.system") + b")R", "no name"),
    "call with a list": (name("collections", "OrderedDict") + b"]R", "no name"),
    "call of our own with too many arguments": (name("torch", "device") + b"(NNNNtR", "breaks off"),
    "codec by name": (name("_codecs", "encode") + text("x") + text("rot13") + b"\x86R", "encodes"),
    "escapes": (b"V\\u0041\\ud800\\x\n", None),
    "old text": (b"S'a\\x41\\'\n", "without quotes|breaks off"),
}  # fmt: skip


def hostile_file(folder: Path, what: str) -> Path:
    return write_zip(folder / "made.pt", b"\x80\x02" + HOSTILE[what][0] + b".", {"data/0": bytes(64)})


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles(what: str, tmp_path: Path) -> None:
    """Each is refused by name or read as something inert, at once, and what is read can be written as JSON."""
    path = hostile_file(tmp_path, what)
    begun = time.process_time()
    expected = HOSTILE[what][1]
    if expected is None:
        file = read_whole(path)
        assert len(json.dumps(dict(file.values))) < 1 << 26
    else:
        with pytest.raises(CkptError, match=expected) as caught:
            read_whole(path)
        assert len(caught.value.message) < 2000
    # A second of work, and room for a slow machine.
    assert time.process_time() - begun < 3


def test_rebuilds_within_rebuilds(tmp_path: Path) -> None:
    """The rebuild of a subclass names the rebuild to call; one that names itself goes no deeper."""
    body = name("torch._tensor", "_rebuild_from_type_v2") + b"q\0N)N\x87q\x010"
    for _ in range(5000):
        body += b"(h\0Nh\x01Ntq\x010"
    path = write_zip(tmp_path / "made.pt", b"\x80\x02" + body + b"0h\0h\x01R.")
    try:
        read_whole(path)
    except CkptError as error:
        assert "Recursion" not in error.message


WATCH = """
import os, sys
from ckpt_cli.errors import CkptError
from ckpt_cli.formats import Files
from ckpt_cli.tensors import check_storage, digest, read_tensors, readable

def whole(path):
    file = read_tensors(path)
    with Files() as files:
        for storage in file.storages:
            check_storage(files, storage)
        for tensor in file.tensors:
            if not readable(tensor):
                digest(files, tensor)

seen, current = [], None
def hook(event, arguments):
    if current and event not in ("builtins.id", "array.__new__") and not (event == "open" and arguments[0] == current):
        seen.append((current, event, repr(arguments)[:200]))

whole(sys.argv[1])
try:
    read_tensors(sys.argv[2])
except CkptError:
    pass
sys.addaudithook(hook)
before = set(sys.modules)
for path in sys.argv[2:]:
    current = path
    try:
        whole(path)
    except CkptError:
        pass
    current = None
assert set(sys.modules) == before, set(sys.modules) - before
for line in seen:
    print(*line)
print(len(sys.argv[2:]), "read")
"""


def test_nothing_happens_while_reading(small: Path, tmp_path: Path) -> None:
    """The interpreter itself reports every import, open, exec and process: reading causes none but the file's."""
    paths = []
    for number, what in enumerate(HOSTILE):
        (tmp_path / str(number)).mkdir()
        paths.append(str(hostile_file(tmp_path / str(number), what)))
    torch.save(views() | {"nested": containers()["nested"]}, tmp_path / "views.pt")
    torch.save(os.system, tmp_path / "real-1.pt", pickle_protocol=4)
    torch.save(eval, tmp_path / "real-2.pt")
    paths += [str(tmp_path / name) for name in ("views.pt", "real-1.pt", "real-2.pt")]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(small), *paths],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(paths)} read\n"


class Runs:
    """Pickles as a call of its own choice."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, exec, open, subprocess.Popen, getattr, __import__, torch.load])
def test_code_in_real_pickles(function: Callable[..., Any], protocol: int, tmp_path: Path) -> None:
    """Pickles that Python itself writes to call these are refused, whatever the protocol."""
    victim = tmp_path / "victim"
    data = pickle.dumps({"w": 1, "x": Runs(function, f"touch {victim}")}, protocol=protocol)
    with pytest.raises(CkptError, match="would run code when unpickled: it names"):
        read_tensors(str(write_zip(tmp_path / "made.pt", data)))
    assert not victim.exists()


@pytest.mark.parametrize(
    ("dotted", "runs"),
    [
        ("os.system", True), ("nt.system", True), ("posixpath.join", True), ("subprocess.Popen", True),
        ("__builtin__.eval", True), ("builtins.exec", True), ("_io.open", True), ("io.open", True),
        ("torch.hub.load", True), ("torch.utils.bottleneck.__main__.run_prof", True), ("torch.load", True),
        ("numpy.testing._private.utils.runstring", True), ("_pickle.loads", True), ("a.b.os.c", True),
        ("argparse.Namespace", False), ("builtins.dict", False), ("torch.nn.modules.linear.Linear", False),
        ("__builtin__.reduce", True), ("ossified.thing", False),
        ("numpy.dtype", False), ("collections.OrderedDict", False), ("codes.x", False),
        ("_posixsubprocess.fork_exec", True), ("_thread.start_new_thread", True), ("imp.load_source", True),
        ("atexit.register", True), ("_functools.reduce", True), ("operator.call", True), ("yaml.unsafe_load", True),
        ("uuid._popen", True), ("typing.ForwardRef._evaluate", True), ("numpy.ctypeslib.load_library", True),
        ("torch.jit.unsupported_tensor_ops.execWrapper", True), ("torch._inductor.codecache.PyCodeCache.load", True),
        ("torch.fx.graph_module.reduce_graph_module", True), ("torch.serialization._legacy_load", True),
        ("torch.distributed.run.main", True), ("torch.fx._lazy_graph_module._make_graph_module", True),
        ("hydra.utils.instantiate", True), ("hydra.core.Config", False), ("logging.FileHandler", True),
        ("logging.getLogger", False), ("numpy.savetxt", True), ("numpy.dtypes.Float32DType", False),
        ("_io.BytesIO", False), ("io.StringIO", False), ("functools.partial", False), ("ssl.models.Model", True),
    ],
)  # fmt: skip
def test_which_names_run_code(dotted: str, runs: bool) -> None:
    assert runs_code(dotted) is runs


@pytest.mark.parametrize(
    ("module", "attributes", "runs"),
    [
        ("bz2", "builtins.open", True), ("collections", "__builtins__.get", True),
        ("torch.nn", "Module.__init__", True),
        ("builtins", "object.__subclasses__", True), ("decimal", "x._posixsubprocess.fork_exec", True),
        ("pathlib", "Path.write_text", True), ("pathlib._local", "PosixPath.unlink", True),
        ("pathlib", "PosixPath", False), ("copyreg", "__newobj__", False), ("mine", "Outer.Inner", False),
        ("ssl.models", "Model", False), ("imp.nets", "Net", False),
        ("mailbox.nets", "Net", False), ("mailbox", "mbox", True),
    ],
)  # fmt: skip
def test_attributes_that_lead_to_code(module: str, attributes: str, runs: bool) -> None:
    """What a name walks through behind its module counts as much as the module."""
    assert runs_code(f"{module}.{attributes}", attributes) is runs


def test_foreign_names_are_inert_and_named(tmp_path: Path) -> None:
    """A class nobody knows is shown with its fields; its tensors are tensors."""
    import argparse

    torch.save({"args": argparse.Namespace(lr=0.5, w=torch.ones(2))}, tmp_path / "file.pt")
    file = read_whole(tmp_path / "file.pt")
    assert [(found.name, found.runs_code) for found in file.foreign_globals] == [("argparse.Namespace", False)]
    assert file.values == {"args.<class>": "argparse.Namespace", "args.lr": 0.5}
    assert [found.name for found in file.tensors] == ["args.w"]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    """Each is told by what it is, never opened as something else, and a pipe is not waited for."""
    cases = {
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        "gzip": (b"\x1f\x8b\x08\x00", "gzip"),
        "page": (b"  <!doctype html><html>", "HTML page"),
        "gguf": (b"GGUF\x03\0\0\0", "GGUF"),
        "noise": (b"\x13\x37" * 40, "not a checkpoint in any known format"),
        "empty": (b"", "is empty"),
    }
    for label, (data, message) in cases.items():
        (tmp_path / label).write_bytes(data)
        with pytest.raises(CkptError, match=message):
            read_tensors(str(tmp_path / label))
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CkptError, match="none of torch"):
        read_tensors(str(tmp_path / "plain.zip"))
    os.mkfifo(tmp_path / "pipe")
    for odd in ("pipe", "."):
        with pytest.raises(CkptError, match="no regular file"):
            read_tensors(str(tmp_path / odd))
    with pytest.raises(CkptError, match="cannot be opened"):
        read_tensors(str(tmp_path / "missing"))


# --- zip archives


def rezip(source: Path, out: Path, **changes: Any) -> Path:
    """The archive again through Python's own writer, compressed or with other records."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    records.update(changes.get("records", {}))
    with zipfile.ZipFile(out, "w", changes.get("method", zipfile.ZIP_STORED)) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return out


def test_compressed_archives(small: Path, tmp_path: Path) -> None:
    """A pickle that was packed is read, and storages as they are unpacked; no offset in the file is claimed."""
    path = rezip(small, tmp_path / "packed.pt", method=zipfile.ZIP_DEFLATED)
    assert seen(path) == seen(small)
    assert [tensor.file_offset for tensor in read_whole(path).tensors] == [None, None]
    path = rezip(small, tmp_path / "odd.pt", method=zipfile.ZIP_BZIP2)
    with pytest.raises(CkptError, match="unsupported compression method 12"):
        read_tensors(str(path))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """Ten megabytes of opcodes in ten kilobytes."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("made/data.pkl", b"\x80\x02" + b"N0" * 5_000_000 + b"N.")
        archive.writestr("made/version", "3")
    with pytest.raises(CkptError, match="beyond reason"):
        read_tensors(str(tmp_path / "bomb.pt"))


def test_two_readings_of_one_archive_are_refused(small: Path, tmp_path: Path) -> None:
    """Where another zip reader could see other records, none is believed."""
    data = small.read_bytes()
    with zipfile.ZipFile(tmp_path / "twice.pt", "w") as archive, pytest.warns(UserWarning):
        archive.writestr("made/data.pkl", b"\x80\x02N.")
        archive.writestr("made/data.pkl", b"\x80\x02}.")
    # The end of the first archive, and an end record that tells of another directory than its zip64 record.
    lying = bytearray(data)
    lying[-12] -= 1
    cases = {"lying": bytes(lying), "twice": None, "doubled": data + data, "prefixed": b"PK\3\4" + data, "record": None}
    rezip(small, tmp_path / "record.pt", records={"elsewhere/data.pkl": b"\x80\x02N."})
    for label, content in cases.items():
        if content is not None:
            (tmp_path / f"{label}.pt").write_bytes(content)
        with pytest.raises(CkptError):
            read_tensors(str(tmp_path / f"{label}.pt"))


def test_bytes_after_the_end_are_noted(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "suffix.pt"
    path.write_bytes(small.read_bytes() + b"junk")
    assert read_tensors(str(path)).notes == ("4 bytes after the end of the zip archive",)
    data = bytearray(small.read_bytes())
    data[-2:] = (9).to_bytes(2, "little")  # a comment that is not there
    path.write_bytes(data)
    with pytest.raises(Damaged, match="within the comment"):
        read_tensors(str(path))


def test_record_of_another_size(small: Path, tmp_path: Path) -> None:
    """A storage shorter or longer than its tensors need is damage, not a view of what lies behind it."""
    for content in (b"", b"\0" * 20, b"\0" * 28):
        path = rezip(small, tmp_path / "odd.pt", records={"small/data/0": content})
        with pytest.raises(Damaged, match="where its tensors need 24"):
            read_tensors(str(path))


# --- safetensors


def write_safetensors(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    raw = header.encode() if isinstance(header, str) else header
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def opens(path: Path) -> bool:
    """Whether the safetensors library opens the file."""
    try:
        with safe_open(str(path), framework="np") as file:
            list(file.keys())
        return True
    except SafetensorError:
        return False


def reads(path: Path) -> bool:
    """Whether we read it; the quick check must agree."""
    verdicts = []
    for look in (read_tensors, check_end):
        try:
            look(str(path))
            verdicts.append(True)
        except CkptError:
            verdicts.append(False)
    assert verdicts[0] == verdicts[1]
    return verdicts[0]


def one(**changes: Any) -> str:
    """The header of one tensor of one byte."""
    return json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], **changes}})


PLACE = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
AMISS = '"dtype":"U8","shape":[9],"data_offsets":[3,1]'
HEADERS: dict[str, tuple[str | bytes, bytes]] = {
    "plain": (one(), b"x"),
    "blanks before": (" " * 100 + one(), b"x"),
    "blanks behind": (one() + " \n\t\r", b"x"),
    "zero behind": (one() + "\0", b"x"),
    "no tensors": ("{}", b""),
    "no tensors but data": ("{}", b"x"),
    "minus zero": ('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b""),
    "minus zero offset": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}', b"x"),
    "float size": (one(shape=[1.0]), b"x"),
    "true size": (one(shape=[True]), b"x"),
    "dtype twice": (f'{{"a":{{"dtype":"U8",{PLACE}}}}}', b"x"),
    "shape twice": (f'{{"a":{{"shape":[1],{PLACE}}}}}', b"x"),
    "other field twice": (f'{{"a":{{"x":1,"x":2,{PLACE}}}}}', b"x"),
    "tensor twice": (f'{{"a":{{{PLACE}}},"a":{{{PLACE}}}}}', b"x"),
    "tensor twice, the first of another size": (f'{{"a":{{{AMISS}}},"a":{{{PLACE}}}}}', b"x"),
    "tensor twice, the last of another size": (f'{{"a":{{{PLACE}}},"a":{{{AMISS}}}}}', b"x"),
    "tensor twice, the first without an end": (f'{{"a":{{{AMISS[:-1]}}},"a":{{{PLACE}}}}}', b"x"),
    "metadata twice": (f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{{{PLACE}}}}}', b"x"),
    "metadata key twice": (f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{{{PLACE}}}}}', b"x"),
    "metadata twice within": (f'{{"a":{{"__metadata__":1,"__metadata__":2,{PLACE}}}}}', b"x"),
    "metadata null": (f'{{"__metadata__":null,"a":{{{PLACE}}}}}', b"x"),
    "metadata of numbers": (f'{{"__metadata__":{{"k":1}},"a":{{{PLACE}}}}}', b"x"),
    "metadata list": (f'{{"__metadata__":[],"a":{{{PLACE}}}}}', b"x"),
    "lone surrogate in a name": (f'{{"\\ud800":{{{PLACE}}}}}', b"x"),
    "lone surrogate in metadata": (f'{{"__metadata__":{{"k":"\\udc00"}},"a":{{{PLACE}}}}}', b"x"),
    "surrogate pair": (f'{{"\\ud83d\\ude00":{{{PLACE}}}}}', b"x"),
    "surrogate bytes": (b'{"\xed\xa0\x80":{' + PLACE.encode() + b"}}", b"x"),
    "control character": (f'{{"a\x01":{{{PLACE}}}}}', b"x"),
    "escaped dtype": ('{"a":{"dtype":"\\u0055\\u0038","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "zero before overflow": (one(shape=[0, 2**63, 4], data_offsets=[0, 0]), b""),
    "zero behind overflow": (one(shape=[2**63, 4, 0], data_offsets=[0, 0]), b""),
    "zero behind wide bits": (one(dtype="F32", shape=[2**61, 0], data_offsets=[0, 0]), b""),
    "largest size": (one(shape=[2**64 - 1, 0], data_offsets=[0, 0]), b""),
    "beyond the largest": (one(shape=[2**64, 0], data_offsets=[0, 0]), b""),
    "deep": (one(x=json.loads("[" * 124 + "]" * 124)), b"x"),
    "too deep": (one(x=json.loads("[" * 127 + "]" * 127)), b"x"),
    "far too deep": (f'{{"a":{{"x":{"[" * 9000}{"]" * 9000},{PLACE}}}}}', b"x"),
    "infinite": (f'{{"a":{{"x":1e999,{PLACE}}}}}', b"x"),
    "many digits": (f'{{"a":{{"x":{"1" * 400},{PLACE}}}}}', b"x"),
    "fewer digits": (f'{{"a":{{"x":{"1" * 300},{PLACE}}}}}', b"x"),
    "NaN": (f'{{"a":{{"x":NaN,{PLACE}}}}}', b"x"),
    "four bits, odd": (one(dtype="F4", shape=[2, 3], data_offsets=[0, 3]), b"xyz"),
    "six bits": (one(dtype="F6_E2M3", shape=[4], data_offsets=[0, 3]), b"xyz"),
    "six bits, odd": (one(dtype="F6_E2M3", shape=[3], data_offsets=[0, 3]), b"xyz"),
    "shape null": (one(shape=None), b"x"),
    "three offsets": (one(data_offsets=[0, 1, 1]), b"x"),
    "unknown dtype": (one(dtype="Q7"), b"x"),
    "byte order mark": (b"\xef\xbb\xbf" + one().encode(), b"x"),
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_safetensors_rules_are_those_of_the_library(what: str, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "made.safetensors", *HEADERS[what])
    assert reads(path) is opens(path)


FRAGMENTS = st.sampled_from(
    ['"', "{", "}", "[", "]", ",", ":", "-", "0", "1", "8", "64", "e1", ".0", " ", "null", "true", '"a"', "\\u0041",
     "\\ud800", "\\", '"dtype"', '"U8"', '"F32"', '"F4"', "18446744073709551616", "\0", "é", '"x":[],', '"shape":[0],']
)  # fmt: skip
SOUND = '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[],"data_offsets":[16,17]},"c":{"dtype":"F4","shape":[4],"data_offsets":[17,19]}}'  # noqa: E501


@settings(PROPERTY, max_examples=400)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SOUND)), st.integers(0, 6), FRAGMENTS | st.just("")), max_size=3),
    size=st.sampled_from([19, 19, 19, 19, 18, 20, 0]),
)
def test_mutated_headers(edits: list[tuple[int, int, str]], size: int, tmp_path: Path) -> None:
    """Edited headers: what the library refuses is refused, what it opens is read."""
    header = SOUND
    for at, gone, fragment in edits:
        header = header[:at] + fragment + header[at + gone :]
    path = write_safetensors(tmp_path / "made.safetensors", header, bytes(size))
    ours, theirs = reads(path), opens(path)
    if theirs and not ours:
        # Theirs also takes arrays in place of objects, which no writer has ever made and the format does not allow.
        with pytest.raises(CkptError, match=r"not described by an object|unknown dtype \S{3}"):
            read_tensors(str(path))
        return
    assert ours is theirs, header


def test_safetensors_bytes_are_the_library_s(tmp_path: Path) -> None:
    """Names, dtypes, shapes and bytes of a file that the library wrote, and what a bit of six is not."""
    from safetensors.torch import load_file, save_file

    from ckpt_cli.formats.safetensors import DTYPES as NAMES

    kept = [dtype for dtype in DTYPES if str(dtype).removeprefix("torch.") in {name for name, _ in NAMES.values()}]
    state = {str(dtype): filled(dtype, 3, 4) for dtype in kept} | {"empty": torch.empty(0, 3), "": torch.ones(2)}
    save_file(state, str(tmp_path / "file.safetensors"), {"note": "x"})
    file = read_tensors(str(tmp_path / "file.safetensors"))
    wanted = {name or "<root>": entry for name, *entry in told(load_file(str(tmp_path / "file.safetensors")))}
    assert {name: entry for name, *entry in seen(tmp_path / "file.safetensors")} == wanted
    assert file.values == {"__metadata__.note": "x"}
    assert len(wanted) == len(kept) + 2
    for label in ("six bits", "four bits, odd"):
        path = write_safetensors(tmp_path / "made.safetensors", *HEADERS[label])
        assert (readable(read_tensors(str(path)).tensors[0]) or "").startswith("it is packed")


def test_safetensors_truncation(tmp_path: Path) -> None:
    """Cut anywhere, it is damaged; with more behind it, it breaks the format."""
    path = write_safetensors(tmp_path / "made.safetensors", one(), b"x")
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CkptError):
            read_tensors(str(path))
        with pytest.raises(CkptError):
            check_end(str(path))
        if length > 16:
            with pytest.raises(Damaged):
                read_tensors(str(path))
    path.write_bytes(data + b"y")
    with pytest.raises(CkptError, match="1 byte after its data"):
        read_tensors(str(path))


# --- real files


def verdicts(folder: Path, table: str) -> dict[str, list[str]]:
    with open(folder / table, newline="") as file:
        return {row[0]: row for row in csv.reader(file, delimiter="\t") if row[0] != "path"}


def test_real_zoo(shared: Path) -> None:
    """Every file of the collection that torch wrote: tensors by name, dtype, shape and sha256."""
    expected = json.loads((shared / "real/zoo/expected.json").read_text())["files"]
    compared = []
    for file_name, wanted in expected.items():
        path = shared / "real/zoo" / file_name
        damaged = not wanted["loads_weights_only_False"] if "loads_weights_only_False" in wanted else False
        if damaged:
            with pytest.raises(CkptError):
                read_whole(path)
            continue
        # Of what TorchScript compresses the table has the CRC32 of the packed bytes.
        packed = any(record.endswith("/constants.pkl") for record in wanted.get("records", ()))
        # A CRC32 of zero was not computed, so it cannot mismatch.
        broken = [name for name in wanted.get("crc_mismatches", ()) if wanted["records"][name]["crc32_in_zip"]]
        if broken and not packed:
            with pytest.raises(Damaged, match=broken[0].rpartition("/")[2]):
                read_whole(path)
            continue
        unsafe = [name for name in wanted.get("unsafe_globals", ()) if runs_code(name)]
        if unsafe:
            with pytest.raises(CkptError, match=unsafe[0].rpartition(".")[2]):
                read_tensors(str(path))
            continue
        file = read_whole(path)
        digests = {entry[0]: entry[4] for entry in seen(path)} if all(t.form == "strided" for t in file.tensors) else {}
        ours = {t.name: t for t in file.tensors}
        assert list(ours) == list(wanted["tensors"]) or wanted["container"] == "safetensors"
        for label, entry in wanted["tensors"].items():
            assert (ours[label].dtype, list(ours[label].shape)) == (entry["dtype"], entry["shape"]), (file_name, label)
            if "sha256" in entry and digests:
                assert digests[label] == entry["sha256"], (file_name, label)
                compared.append(label)
            if "stride" in entry:
                assert list(ours[label].stride) == entry["stride"]
            assert ours[label].offset == entry.get("storage_offset", 0) or wanted["container"] == "safetensors"
        values = {name: value for name, value in wanted.get("non_tensors", {}).items() if "<" not in str(value)}
        for label, value in values.items():
            if label in file.values:
                assert file.values[label] == value
    assert len(compared) > 120


def test_real_safetensors_cases(shared: Path) -> None:
    """The same verdict on each file as the library's, and the same tensors."""
    folder = shared / "real/safetensors-cases"
    for file_name, wanted in json.loads((folder / "expected.json").read_text()).items():
        assert reads(folder / file_name) is wanted["opens"] is opens(folder / file_name), file_name
        if wanted["opens"]:
            ours = {entry[0]: entry for entry in seen(folder / file_name)}
            for label, tensor_ in wanted["tensors"].items():
                assert ours[label or "<root>"][1:3] == (tensor_["dtype"], tuple(tensor_["shape"]))
                assert ours[label or "<root>"][4] == tensor_["sha256"]


# Rows of the table whose words are no verdict, and what a careful reader does with each.
JUDGED = {
    "after_stop.pt": True, "billion_laughs.pt": True, "case_variant.pt": False, "encrypted_flag.pt": False,
    "eocd_count.pt": True, "flag_0x20.pt": False, "g_namespace.pt": True, "root_list.pt": True, "self_ref.pt": True,
    "suffix_junk.pt": True,
}  # fmt: skip


def test_real_hostile_files(shared: Path) -> None:
    """Rejected or accepted as the tables say: the library's verdict for safetensors, the manifest's for torch."""
    folder = shared / "hostile"
    oracle = verdicts(folder, "ORACLE.tsv")
    judged = 0
    for file_name, row in verdicts(folder, "MANIFEST.tsv").items():
        kind, _, base = file_name.partition("/")
        if file_name in oracle and kind == "safetensors":
            wanted = oracle[file_name][2].startswith("ACCEPT")
        elif kind == "torchzip":
            wanted = JUDGED[base] if base in JUDGED else row[3].startswith("accept")
            assert base in JUDGED or row[3].startswith(("accept", "reject", "refuse")), row
        else:
            continue
        begun = time.process_time()
        try:
            read_whole(folder / file_name)
            ours = True
        except CkptError:
            ours = False
        assert ours is wanted, row
        assert time.process_time() - begun < 3
        judged += 1
    assert judged > 75


def test_a_large_pickle_is_read_in_reasonable_time(tmp_path: Path) -> None:
    """Twenty thousand tensors: what the tool exists for must not be slow for the sake of what it refuses."""
    stored = io.BytesIO()
    whole = torch.zeros(4)
    torch.save({f"layers.{index}.weight": whole[index % 4 :] for index in range(20_000)}, stored)
    (tmp_path / "many.pt").write_bytes(stored.getvalue())
    begun = time.process_time()
    assert len(read_tensors(str(tmp_path / "many.pt")).tensors) == 20_000
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "name",
    [
        "myproj.io.Config",
        "nets.code.Args",
        "lab.commands.Opts",
        "company.site.cfg.Cfg",
        "code.train.Args",
        "trace.cfg.Cfg",
    ],
)
def test_a_module_that_is_called_like_another_runs_nothing(name: str, tmp_path: Path) -> None:
    """People call their own modules io and code."""
    module, _, attribute = name.rpartition(".")
    path = write_zip(tmp_path / "x.pt", b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b")R.")
    assert [foreign.name for foreign in read_tensors(str(path)).foreign_globals] == [name]


def test_a_column_of_a_wide_matrix_needs_no_more_than_a_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read is larger than a block, whatever the view spans."""
    monkeypatch.setattr("ckpt_cli.views.BLOCK", 1 << 12)
    matrix = torch.arange(600 * 50.0).view(600, 50)
    views = {"column": matrix[:, 0], "some": matrix[::7, ::3], "row": matrix[:1].t(), "both": matrix[:, 3:5].t()}
    views |= {"wide": matrix[:3].t(), "repeated": matrix[:, :1].expand(600, 9), "complex": views["column"] + 0j}
    views["pairs"] = torch.zeros(300, 40, dtype=torch.complex128)[:, 7]
    torch.save(views, tmp_path / "views.pt")
    largest = 0
    real = FileSource.read_at

    def read_at(self: FileSource, offset: int, length: int) -> bytes:
        nonlocal largest
        largest = max(largest, length)
        return real(self, offset, length)

    file = read_tensors(str(tmp_path / "views.pt"))
    monkeypatch.setattr(FileSource, "read_at", read_at)
    with Files() as files:
        ours = {tensor.name: digest(files, tensor) for tensor in file.tensors}
    assert ours == {name: entry for name, *_, entry in told(torch.load(tmp_path / "views.pt", weights_only=True))}
    assert largest <= 1 << 12
