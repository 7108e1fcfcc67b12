"""Conversion to safetensors: every bit, under every name, or no output at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ckpt_cli import tensors, writing
from ckpt_cli.convert import convert, plan
from ckpt_cli.errors import CkptError, Damaged, Refused
from ckpt_cli.formats import FileSource
from ckpt_cli.formats.safetensors import DTYPES as NAMES
from ckpt_cli.places import output_path
from ckpt_cli.recipe import Recipe
from ckpt_cli.tensors import check_end, read_tensors
from ckpt_cli.writing import write
from tests.conftest import REPOSITORY, Run
from tests.torch_files import DTYPES, filled, flip, named, places, plain, swap_bytes

KEPT = [dtype for dtype in DTYPES if str(dtype).removeprefix("torch.") in {name for name, _ in NAMES.values()}]


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def header_bytes(recipe: Recipe) -> int:
    first = recipe.outputs[0].segments[0]
    assert isinstance(first, bytes)
    return len(first)


def restored(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a converted file, aliases as views of the bytes of their hosts."""
    found = load_file(str(path))
    for name, alias in json.loads(header(path)["__metadata__"].get("ckpt.aliases", "{}")).items():
        raw = found[alias["of"]].contiguous().reshape(-1).view(torch.uint8)
        base = raw[alias["offset"] * getattr(torch, alias["dtype"]).itemsize :]
        flat = base[: len(base) // getattr(torch, alias["dtype"]).itemsize * getattr(torch, alias["dtype"]).itemsize]
        found[name] = flat.view(getattr(torch, alias["dtype"])).as_strided(alias["shape"], alias["stride"])
    return found


def assert_same(source: Path, output: Path) -> int:
    """Bit for bit what torch loads from the source, under the same names; returns how many tensors."""
    wanted = dict(named(torch.load(source, weights_only=False)))
    found = restored(output)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert plain(found[name]) == plain(tensor), name
    # The library reads it, and our own check of its structure holds.
    with safe_open(str(output), framework="np") as file:
        assert file.metadata()["format"] == "pt"
    check_end(str(output))
    return len(wanted)


def left_over(folder: Path) -> list[str]:
    """What lies in a folder besides the source files of a test."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".pt"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small source in a folder of its own."""
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save({"w": filled(torch.float32, 30, 7), "b": filled(torch.bfloat16, 9)}, folder / "model.pt")
    return folder / "model.pt"


# --- bits


def test_every_dtype(tmp_path: Path) -> None:
    """All that safetensors has a name for, NaN payloads and all: the bytes here are arbitrary."""
    state = {str(dtype): filled(dtype, 3, 4) for dtype in KEPT} | {
        f"{dtype} turned": filled(dtype, 4, 6).T for dtype in KEPT
    }
    state |= {f"{dtype} alone": filled(dtype) for dtype in KEPT if dtype != torch.float4_e2m1fn_x2}
    for dtype in KEPT:
        if dtype == torch.float4_e2m1fn_x2:  # torch itself cannot copy it out of order
            del state[f"{dtype} turned"]
    torch.save(state, tmp_path / "all.pt")
    convert(str(tmp_path / "all.pt"), str(tmp_path / "all.safetensors"))
    assert assert_same(tmp_path / "all.pt", tmp_path / "all.safetensors") == 3 * len(KEPT) - 2
    assert len(KEPT) == 20


def test_values_that_compare_unequal_to_themselves(tmp_path: Path) -> None:
    weird = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    torch.save({"x": weird, "y": weird.bfloat16()}, tmp_path / "nan.pt")
    convert(str(tmp_path / "nan.pt"), str(tmp_path / "nan.safetensors"))
    assert_same(tmp_path / "nan.pt", tmp_path / "nan.safetensors")


def test_sharing_is_kept_and_written_once(tmp_path: Path) -> None:
    """Tied weights, slices, reshapes, transposes: each name comes back, each byte lies in the output once."""
    base = torch.arange(40, dtype=torch.float32).view(10, 4)
    lone = torch.arange(12.0).view(3, 4)
    state = {
        "half": base[5:],
        "emb": base,
        "head": base,
        "flat": base.view(40),
        "turned": base.t(),
        "column": base[:, 1],
        "diagonal": base.diagonal(),
        "expanded": base[0, :2].expand(3, 2),
        "turned alone": lone.t(),
        "turned again": lone.t(),
        "other": torch.ones(3, dtype=torch.float64),
        "empty view": base[:0],
    }
    torch.save(state, tmp_path / "tied.pt")
    recipe = convert(str(tmp_path / "tied.pt"), str(tmp_path / "tied.safetensors"))
    assert_same(tmp_path / "tied.pt", tmp_path / "tied.safetensors")
    assert {item.name for item in recipe.items} == {"emb", "turned alone", "other", "empty view"}
    assert {alias.name: alias.of for alias in recipe.aliases} == {
        **dict.fromkeys(("half", "head", "flat", "turned", "column", "diagonal", "expanded"), "emb"),
        "turned again": "turned alone",
    }
    assert recipe.bytes - header_bytes(recipe) == 160 + 48 + 24
    assert recipe.notes == ()


def test_what_overlaps_in_part_is_written_twice_and_said(tmp_path: Path) -> None:
    base = torch.arange(30.0)
    state = {"front": base[:20], "back": base[10:], "within": base[12:15], "steps": base[::7], "apart": torch.ones(2)}
    torch.save(state, tmp_path / "file.pt")
    recipe = convert(str(tmp_path / "file.pt"), str(tmp_path / "out.safetensors"))
    assert_same(tmp_path / "file.pt", tmp_path / "out.safetensors")
    assert [note.split()[0] for note in recipe.notes] == ["back", "steps"]
    assert [(alias.name, alias.of) for alias in recipe.aliases] == [("within", "back")]


def test_many_views_of_one_storage(tmp_path: Path) -> None:
    """A flat parameter cut into ten thousand pieces is planned in a moment."""
    base = torch.arange(20_000, dtype=torch.int16)
    state = {f"p{index}": base[2 * index : 2 * index + 2] for index in range(10_000)}
    torch.save(state, tmp_path / "flat.pt")
    file = read_tensors(str(tmp_path / "flat.pt"))
    begun = time.process_time()
    recipe = plan([file], str(tmp_path / "out.safetensors"))
    assert time.process_time() - begun < 3
    assert (len(recipe.items), recipe.aliases, recipe.notes) == (10_000, (), ())


@pytest.mark.parametrize("block", [64, 1000])
def test_larger_than_a_block(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided, signed and plain tensors of many blocks."""
    monkeypatch.setattr("ckpt_cli.views.BLOCK", block)
    monkeypatch.setattr(tensors, "RANGE", block)
    monkeypatch.setattr(writing, "RANGE", block)
    monkeypatch.setattr(writing, "_FLUSH", 3 * block)
    base = filled(torch.float32, 50, 60)
    other = filled(torch.complex64, 20, 9)
    state = {"turned": base.t(), "sliced": filled(torch.int16, 70, 70)[3:, ::3], "wide": filled(torch.uint8, 5000)}
    torch.save(
        {**state, "conjugated": other.conj(), "cube": filled(torch.int64, 9, 8, 7).permute(2, 0, 1)}, tmp_path / "a.pt"
    )
    done: list[int] = []
    recipe = plan([read_tensors(str(tmp_path / "a.pt"))], str(tmp_path / "a.safetensors"))
    write(recipe.outputs, False, done.append)
    assert assert_same(tmp_path / "a.pt", tmp_path / "a.safetensors") == 5
    assert len(done) > 50
    assert sum(done) == 2 * (recipe.bytes - header_bytes(recipe))


def test_zero_sizes_and_scalars(tmp_path: Path) -> None:
    state = {"none": torch.empty(0), "wide": torch.empty(3, 0, 2), "view": torch.ones(4)[4:], "one": torch.tensor(5)}
    torch.save(state, tmp_path / "file.pt")
    convert(str(tmp_path / "file.pt"), str(tmp_path / "file.safetensors"))
    assert_same(tmp_path / "file.pt", tmp_path / "file.safetensors")


def test_big_endian_source(tmp_path: Path) -> None:
    shared = filled(torch.float64, 3, 4)
    state = {"f64": shared, "tied": shared, "bf16": filled(torch.bfloat16, 5), "c64": filled(torch.complex64, 2, 3).t()}
    torch.save(state, tmp_path / "little.pt")
    big = swap_bytes(tmp_path / "little.pt", tmp_path / "big.pt", {"0": 8, "1": 2, "2": 4})
    recipe = convert(str(big), str(tmp_path / "big.safetensors"))
    assert_same(tmp_path / "little.pt", tmp_path / "big.safetensors")
    assert [alias.name for alias in recipe.aliases] == ["tied"]


def test_layout_of_the_output(tmp_path: Path) -> None:
    """Data begins at a multiple of eight, wide elements first, so that every tensor lies aligned in the file."""
    state = {f"{index}.{dtype}": filled(dtype, index) for index, dtype in enumerate(KEPT * 2)}
    torch.save(state, tmp_path / "file.pt")
    convert(str(tmp_path / "file.pt"), str(tmp_path / "out.safetensors"))
    with open(tmp_path / "out.safetensors", "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    assert start % 8 == 0
    for tensor in read_tensors(str(tmp_path / "out.safetensors")).tensors:
        assert tensor.file_offset is not None
        assert tensor.file_offset % tensor.itemsize == 0
    assert [name for name in header(tmp_path / "out.safetensors") if name != "__metadata__"] == list(state)


def test_nested_sources_and_values(tmp_path: Path) -> None:
    """Tensors by dotted name, and what is no tensor goes along."""
    state = {"model": {"w": torch.ones(2)}, "optimizer": {"state": [{"m": torch.zeros(2)}]}, "epoch": 3, "name": "é"}
    torch.save(state, tmp_path / "file.pt")
    convert(str(tmp_path / "file.pt"), str(tmp_path / "out.safetensors"), {"note": "x"})
    assert_same(tmp_path / "file.pt", tmp_path / "out.safetensors")
    told = header(tmp_path / "out.safetensors")["__metadata__"]
    assert json.loads(told.pop("ckpt.values")) == {"epoch": 3, "name": "é"}
    assert json.loads(told.pop("ckpt.kinds"))["optimizer.state"] == "list"
    assert told == {"format": "pt", "note": "x"}


def test_a_safetensors_source_keeps_what_it_says(model: Path) -> None:
    """Converted again, the bytes and the metadata are the same, aliases included."""
    base = torch.arange(4.0)
    torch.save({"a": base, "b": base, "epoch": 3}, model)
    once, twice = model.with_name("once.safetensors"), model.with_name("twice.safetensors")
    convert(str(model), str(once), {"note": "x"})
    convert(str(once), str(twice))
    assert once.read_bytes() == twice.read_bytes()
    assert_same(model, twice)


def test_prefixes_of_compiled_modules_go(tmp_path: Path) -> None:
    """Wherever they stand and however often; a name that only looks alike stays."""
    names = {
        "_orig_mod.a": "a",
        "_orig_mod._orig_mod.b": "b",
        "layers.0._orig_mod.c": "layers.0.c",
        "_orig_mod.layers._orig_mod._orig_mod.d": "layers.d",
        "my_orig_mod.e": "my_orig_mod.e",
        "f._orig_mod": "f._orig_mod",
    }
    torch.save({name: torch.full((2,), float(index)) for index, name in enumerate(names)}, tmp_path / "file.pt")
    recipe = convert(str(tmp_path / "file.pt"), str(tmp_path / "out.safetensors"))
    found = load_file(str(tmp_path / "out.safetensors"))
    assert {name: int(value[0]) for name, value in found.items()} == {new: i for i, new in enumerate(names.values())}
    assert dict(recipe.renamed) == {old: new for old, new in names.items() if old != new}


# --- what cannot be expressed


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "complex128": (lambda: {"bad": torch.ones(2, dtype=torch.complex128)}, "'bad'.*no complex128"),
    "complex32": (lambda: {"bad": filled(torch.complex32, 2)}, "'bad'.*no complex32"),
    "bits": (lambda: {"bad": filled(torch.bits8, 2)}, "'bad'.*no bits8"),
    "sparse": (lambda: {"bad": torch.eye(3).to_sparse()}, "'bad'.*it is sparse"),
    "compressed": (lambda: {"bad": torch.eye(3).to_sparse_csr()}, "'bad'.*it is sparse"),
    "quantized": (lambda: {"bad": quantized()}, "'bad'.*it is quantized"),
    "meta": (lambda: {"bad": torch.empty(3, device="meta")}, "'bad'.*meta device"),
    "expanded": (lambda: {"bad": torch.zeros(1).expand(1 << 40)}, "'bad'.*it repeats"),
    "reserved": (lambda: {"__metadata__": torch.ones(1)}, "'__metadata__'.*cannot hold its name"),
    "surrogate": (lambda: {"bad\ud800": torch.ones(1)}, r"'bad\\ud800'.*cannot hold its name"),
    "half pair": (lambda: {"bad": filled(torch.float4_e2m1fn_x2)}, "'bad'.*without a dimension"),
    "collision": (lambda: {"_orig_mod.w": torch.ones(1), "w": torch.ones(1)}, "two of its tensors would be called 'w'"),
    "collision of nested": (lambda: {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "would be called 'a.b'"),
    "collision of keys": (lambda: {1: torch.ones(1), "1": torch.ones(1)}, "would be called '1'"),
    "nothing": (lambda: {"epoch": 3}, "holds no tensors"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(what: str, tmp_path: Path) -> None:
    make, message = REFUSED[what]
    state = make()
    torch.save({"fine": torch.ones(3), **state} if what != "nothing" else state, tmp_path / "bad.pt")
    with pytest.raises(CkptError, match=message) as caught:
        convert(str(tmp_path / "bad.pt"), str(tmp_path / "out.safetensors"))
    assert caught.value.code == 2
    assert left_over(tmp_path) == []


# --- when something goes wrong


def test_damaged_source_leaves_no_output(model: Path, call: Run) -> None:
    """One bit anywhere in the data, in a tensor that is a whole record or in a part of one."""
    base = torch.arange(50.0)
    torch.save({"whole": torch.arange(40.0), "part": base[5:20], "turned": torch.arange(12.0).view(3, 4).t()}, model)
    records = {name: place for name, place in places(model).items() if "/data/" in name}
    assert len(records) == 3
    # The last bytes of the second record belong to no tensor, and the record is damaged all the same.
    for first, length in records.values():
        for byte in (first, first + length // 2, first + length - 1):
            flip(model, byte, 5)
            done = call("convert", model, "-o", model.with_name("out.safetensors"))
            assert done.code == 1
            assert "is damaged: its CRC32 does not fit" in done.err
            assert left_over(model.parent) == []
            flip(model, byte, 5)
    assert call("convert", model, "-o", model.with_name("out.safetensors")).code == 0


def test_source_without_crc(model: Path) -> None:
    """What the source cannot vouch for is compared with the source itself."""
    from torch.utils.serialization import config

    config.save.compute_crc32 = False
    try:
        torch.save({"w": filled(torch.float32, 300), "t": filled(torch.int64, 4, 5).t()}, model)
    finally:
        config.save.compute_crc32 = True
    convert(str(model), str(model.with_name("out.safetensors")))
    assert_same(model, model.with_name("out.safetensors"))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_a_wrong_byte_in_the_output_is_found(
    which: int, checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that changes a byte on its way: an error, and no output."""
    from torch.utils.serialization import config

    config.save.compute_crc32 = checked
    try:
        torch.save({"w": filled(torch.float32, 100), "t": filled(torch.int16, 8, 9).t()}, tmp_path / "model.pt")
    finally:
        config.save.compute_crc32 = True
    write, places_ = os.pwrite, []

    def spoiling(target: int, data: Any, at: int) -> int:
        changed = bytearray(data)
        if at:  # not in the header
            places_.append(at)
            changed[-1] ^= len(places_) == which + 1
        return write(target, changed, at)

    monkeypatch.setattr(os, "pwrite", spoiling)
    with pytest.raises(CkptError, match=r"'[wt]' was not written as it was read"):
        convert(str(tmp_path / "model.pt"), str(tmp_path / "out.safetensors"))
    assert len(places_) == 2
    assert left_over(tmp_path) == []


def test_a_wrong_byte_in_the_header_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda out, data, at: write(out, bytes(data).replace(b"BF16", b"BG16"), at))
    with pytest.raises(CkptError, match="unknown dtype"):
        convert(str(model), str(model.with_name("out.safetensors")))
    assert left_over(model.parent) == []


def failing(number: int) -> Callable[..., int]:
    def call(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("function", ["pwrite", "ftruncate", "fsync", "preadv"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_failing_disk_leaves_nothing(
    function: str, number: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = model.with_name("out.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing(number))
        with pytest.raises((OSError, CkptError), match=os.strerror(number)):
            convert(str(model), str(target))
    assert left_over(model.parent) == []
    target.write_bytes(b"old")
    monkeypatch.setattr(os, function, failing(number))
    with pytest.raises(CkptError, match=os.strerror(number)):
        convert(str(model), str(target), replace=True)
    assert target.read_bytes() == b"old"
    assert left_over(model.parent) == ["out.safetensors"]


def test_short_reads_and_writes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may read or write less than it was asked to, and has no word on it but the count."""
    first, second = model.with_name("first.safetensors"), model.with_name("second.safetensors")
    convert(str(model), str(first))
    read, read_into, write = os.pread, os.preadv, os.pwrite
    monkeypatch.setattr(os, "pread", lambda file, count, at: read(file, min(count, 7), at))
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: read_into(file, [buffers[0][:11]], at))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, memoryview(data)[:13], at))
    convert(str(model), str(second))
    assert first.read_bytes() == second.read_bytes()


def test_space_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first byte is written; and a disk with too little of it is told by the kernel."""
    if not shutil.which("fallocate") or subprocess.run(["fallocate", "-l1M", tmp_path / "probe"]).returncode:
        pytest.skip("the file system sets no space aside")
    torch.save({"a": torch.ones(1 << 20)}, tmp_path / "model.pt")
    monkeypatch.setattr(writing, "_FLUSH", 1 << 20)
    recipe = plan([read_tensors(str(tmp_path / "model.pt"))], str(tmp_path / "out.safetensors"))
    blocks: list[int] = []

    def advance(count: int) -> None:
        blocks.extend(os.stat(path).st_blocks for path in tmp_path.glob(".ckpt-*.tmp"))

    write(recipe.outputs, False, advance)
    assert (tmp_path / "out.safetensors").stat().st_size == recipe.outputs[0].bytes
    assert 512 * blocks[0] >= recipe.outputs[0].bytes
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError, match=r"No space left|too large"):
        writing._reserve(file.fileno(), 1 << 61)


def test_without_advice_to_the_kernel(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every platform takes it; the output is the same."""
    first, second = model.with_name("first.safetensors"), model.with_name("second.safetensors")
    monkeypatch.setattr(writing, "_FLUSH", 10)
    convert(str(model), str(first))
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    convert(str(model), str(second))
    assert first.read_bytes() == second.read_bytes()


def test_a_source_that_shrinks_meanwhile(model: Path) -> None:
    recipe = plan([read_tensors(str(model))], str(model.with_name("out.safetensors")))
    os.truncate(model, 700)
    with pytest.raises(Damaged, match="ends before byte"):
        write(recipe.outputs, False, lambda count: None)
    assert left_over(model.parent) == []


@pytest.mark.parametrize("moment", range(4))
def test_an_interrupt_at_any_step_leaves_nothing(moment: int, model: Path) -> None:
    """Two tensors, each written and read back: four moments."""
    recipe = plan([read_tensors(str(model))], str(model.with_name("out.safetensors")))
    steps = iter(range(9))

    def advance(count: int) -> None:
        if next(steps) == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(recipe.outputs, False, advance)
    assert left_over(model.parent) == []


SLOW = """
import sys, time
from ckpt_cli import writing
from ckpt_cli.app import main

plain = writing.range_crc32
def slow(source, offset, length, advance, buffer):
    print("reading", flush=True)
    for _ in range(600):
        time.sleep(0.05)
        advance(0)
    return plain(source, offset, length, advance, buffer)
writing.range_crc32 = slow
sys.exit(main(["convert", sys.argv[1], "-o", sys.argv[2]]))
"""


def test_ctrl_c(model: Path) -> None:
    """A real signal in a real process: 130, said on stderr, nothing left."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(model), str(model.with_name("out.safetensors"))],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": str(model.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        assert [name for name in left_over(model.parent) if name.endswith(".tmp")]
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130
    assert "Traceback" not in error
    assert left_over(model.parent) == []


# --- the output file


@pytest.fixture
def mask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("value", [0o022, 0o077, 0o002, 0o000])
def test_mode(value: int, model: Path, mask: Callable[[int], int]) -> None:
    """As any program's new file, also when it takes the place of another."""
    mask(value)
    target = model.with_name("out.safetensors")
    convert(str(model), str(target))
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~value
    target.chmod(0o600)
    convert(str(model), str(target), replace=True)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~value


def test_an_existing_output(model: Path, call: Run) -> None:
    """Refused without --force, byte by byte as it was; replaced with it."""
    target = model.with_name("model.safetensors")
    target.write_bytes(b"old")
    done = call("convert", model)
    assert (done.code, done.out) == (4, "")
    assert "is there already" in done.err
    assert "--force" in done.err
    assert target.read_bytes() == b"old"
    assert call("convert", model, "--force").code == 0
    assert_same(model, target)
    assert left_over(model.parent) == ["model.safetensors"]


def test_an_output_that_appears_meanwhile(model: Path) -> None:
    target = model.with_name("out.safetensors")
    recipe = plan([read_tensors(str(model))], str(target))

    def intrude(count: int) -> None:
        target.write_bytes(b"new")

    with pytest.raises(Refused):
        write(recipe.outputs, False, intrude)
    assert target.read_bytes() == b"new"
    assert left_over(model.parent) == ["out.safetensors"]


def test_an_output_that_is_the_source(model: Path, call: Run) -> None:
    """By its name, by a link to it, through a linked folder: exit 2 even with --force, and the source is whole."""
    before = model.read_bytes()
    os.link(model, model.with_name("hard.safetensors"))
    os.symlink(model, model.with_name("soft.safetensors"))
    os.symlink(model.parent, model.parent.with_name("linked"))
    outputs = [
        model,
        model.with_name("hard.safetensors"),
        model.with_name("soft.safetensors"),
        model.parent.with_name("linked") / "model.pt",
        f"{model.parent}/../source/model.pt",
    ]
    for output in outputs:
        for force in ([], ["--force"]):
            done = call("convert", model, "-o", output, *force)
            assert done.code == 2, output
            assert "is the source itself" in done.err
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("to", "name"), [("safetensors", "out.pt"), ("safetensors", "a.BIN"), ("pt", "out.safetensors")]
)
def test_an_output_named_as_what_it_is_not(to: str, name: str, model: Path, call: Run) -> None:
    done = call("convert", model, "--to", to, "-o", model.with_name(name))
    assert (done.code, done.out) == (2, "") and f"{name} is no name for what --to {to} writes" in done.err
    assert not model.with_name(name).exists()


def test_an_output_that_is_another_part(tree: Path, call: Run) -> None:
    """A checkpoint's meta and optimizer are as much its source as its model."""
    folder = tree / "base_checkpoints/d4"
    for part in sorted(folder.glob("*_000100*")):
        before = part.read_bytes()
        assert call("convert", "base/d4/100", "--root", tree, "-o", part, "--force").code == 2
        assert part.read_bytes() == before


def test_an_output_that_is_a_directory(model: Path, call: Run) -> None:
    """Its default name inside; one that ends in a slash is made."""
    (model.parent / "there").mkdir()
    for output, place in (("there", "there"), ("there/", "there"), ("new/deep/", "new/deep")):
        (model.parent / place / "model.safetensors").unlink(missing_ok=True)
        done = call("convert", model, "-q", "-o", f"{model.parent}/{output}")
        assert done.code == 0, done.err
        assert done.out == f"{model.parent}/{place}/model.safetensors\n"
        assert_same(model, model.parent / place / "model.safetensors")
    done = call("convert", model, "-o", model.parent / "missing/out.safetensors")
    assert done.code == 2
    assert "there is no directory" in done.err
    assert not (model.parent / "missing").exists()


def test_dry_run_writes_nothing(model: Path, call: Run) -> None:
    done = call("convert", model, "--json", "-n", "-o", f"{model.parent}/new/")
    assert done.code == 0
    assert (done.json["verified"], done.json["dry_run"], done.json["tensors"]) == (False, True, 2)
    assert left_over(model.parent) == []


def test_json(model: Path, call: Run) -> None:
    """What the contract names, with the sizes of the file that is there."""
    base = torch.ones(3)
    torch.save({"_orig_mod.w": base, "tied": base}, model)
    found = call("convert", model, "--json").json
    target = model.with_name("model.safetensors")
    assert [part["path"] for part in found["source"].pop("parts")] == [str(model)]
    assert found == {
        "schema_version": 1,
        "command": "convert",
        "source": found["source"],
        "outputs": [{"path": str(target), "bytes": target.stat().st_size}],
        "tensors": 1,
        "bytes": target.stat().st_size,
        "renamed": [{"from": "_orig_mod.w", "to": "w"}],
        "cast": [],
        "dropped": [],
        "tied": [{"name": "tied", "of": "w"}],
        "verified": True,
        "dry_run": False,
    }


def test_metadata_goes_along(tree: Path, call: Run) -> None:
    """The meta file word for word, and where it came from."""
    assert call("convert", "base/d4/100", "--root", tree, "-o", tree / "out.safetensors").code == 0
    told = header(tree / "out.safetensors")["__metadata__"]
    assert told["ckpt.meta"] == (tree / "base_checkpoints/d4/meta_000100.json").read_text()
    assert (told["format"], told["ckpt.ref"]) == ("pt", "base/d4/100")
    assert_same(tree / "base_checkpoints/d4/model_000100.pt", tree / "out.safetensors")
    # A file that is no checkpoint's model has no meta to bring.
    part = tree / "base_checkpoints/d4/optim_000100_rank0.pt"
    assert call("convert", part, "-o", tree / "optim.safetensors").code == 0
    assert "ckpt.meta" not in header(tree / "optim.safetensors")["__metadata__"]


def test_metadata_of_a_path_that_is_no_text(model: Path) -> None:
    """Names of directories are bytes; the header is UTF-8."""
    convert(str(model), str(model.with_name("out.safetensors")), {"ckpt.ref": os.fsdecode(b"run-\xff/5")})
    assert header(model.with_name("out.safetensors"))["__metadata__"]["ckpt.ref"] == "run-\\udcff/5"


def test_default_name(model: Path) -> None:
    assert output_path(["/a/model_000010.pt"], None) == "/a/model_000010.safetensors"
    assert output_path(["/a/model.v2.pt"], None) == "/a/model.v2.safetensors"
    assert output_path([str(model)], str(model.parent)) == str(model.parent / "model.safetensors")


def test_what_was_planned_is_what_is_written(model: Path) -> None:
    recipe = convert(str(model), str(model.with_name("out.safetensors")))
    assert isinstance(recipe, Recipe)
    assert model.with_name("out.safetensors").stat().st_size == recipe.bytes
    with FileSource(str(model.with_name("out.safetensors"))) as source:
        assert source.read_at(0, header_bytes(recipe)) == recipe.outputs[0].segments[0]


# --- real files


def test_real_models(shared: Path, tmp_path: Path) -> None:
    """Every model and optimizer that nanochat's trainers wrote, bit for bit."""
    sources = sorted((shared / "real/nanochat").rglob("*.pt"))
    assert len(sources) > 40
    converted = 0
    for index, source in enumerate(sources):
        output = tmp_path / f"{index}.safetensors"
        convert(str(source), str(output))
        converted += assert_same(source, output)
        output.unlink()
    assert converted > 800


def test_real_zoo(shared: Path, tmp_path: Path) -> None:
    """Every file of the collection either comes out bit for bit, or is refused for a reason that it has."""
    expected = json.loads((shared / "real/zoo/expected.json").read_text())["files"]
    reasons: dict[str, str] = {}
    for name, wanted in expected.items():
        if wanted["container"] not in ("torch-zip", "torch-legacy"):
            continue
        source, output = shared / "real/zoo" / name, tmp_path / f"{name}.safetensors"
        try:
            convert(str(source), str(output))
        except CkptError as error:
            reasons[name.removesuffix(".pt")] = error.message
            assert not output.exists()
            continue
        loadable = wanted["loads_weights_only_True"] or wanted["loads_weights_only_False"]
        if loadable and not any(name.startswith("torch.nn") for name in wanted.get("unsafe_globals", ())):
            assert_same(source, output)
    assert left_over(tmp_path) == sorted(
        f"{name}.pt.safetensors"
        for name in ("module-state-dict namespace nested-training optimizer parameters plain plain-nocrc "
                     "plain-legacy plain-protocol4 plain-via-buffer tied torchscript views whole-module").split()
    )  # fmt: skip
    words = {
        "damaged-truncated": "truncated", "damaged-bitflip": "data/0",
        "damaged-missing-storage": "missing", "hostile-exec": "would run code", "sparse": "it is sparse",
        "damaged-empty": "is empty", "damaged-lfs-pointer": "LFS pointer",
        "dtypes": "no complex128", "key-oddities": "would be called 'dup.x'",
    }  # fmt: skip
    assert set(reasons) == set(words)
    for name, word in words.items():
        assert word in reasons[name], reasons[name]
