"""ckpt inspect tensors: sums against torch, the tree, what shares bytes, values, several files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import resource
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckpt_cli import decoding, stats
from ckpt_cli.decoding import Arrays, numpy_arrays, small_floats, torch_arrays
from ckpt_cli.formats import Files
from ckpt_cli.listing import Listed, record_of
from ckpt_cli.sharing import sharing
from ckpt_cli.tensor_file import Storage, TensorFile, TensorInfo
from ckpt_cli.tensors import read_tensors
from ckpt_cli.ui import text, tree
from ckpt_cli.ui.tensor_text import short_values, storage_text, value_text
from tests.conftest import REPOSITORY, Run
from tests.torch_files import DTYPES, filled, flip, named, places, plain

EIGHTS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
INTEGERS = {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64}


def inspected(call: Run, *arguments: object) -> Any:
    return call("inspect", "tensors", *arguments, "--json").json


def by_name(body: Any) -> dict[str, Any]:
    return {record["name"]: record for record in body["tensors"]}


def summed(path: Path, name: str = "w") -> stats.Stats:
    tensors = [tensor for tensor in read_tensors(str(path)).tensors if tensor.name == name]
    with Files() as files:
        found = next(iter(stats.readings(files, tensors, False, True))).stats
    assert found is not None
    return found


@pytest.fixture(params=[numpy_arrays, torch_arrays], ids=["numpy", "torch"])
def kit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Both libraries, one after the other, for all that the command does."""
    chosen: Arrays = request.param()
    monkeypatch.setattr(stats, "arrays", lambda: chosen)
    return chosen


# --- sums


@pytest.mark.parametrize("dtype", EIGHTS)
def test_floats_of_eight_bits_are_torchs(dtype: str) -> None:
    """Every one of the 256 codes, to the bit."""
    theirs = torch.arange(256, dtype=torch.uint8).view(getattr(torch, dtype)).double()
    ours = torch.tensor(small_floats(dtype), dtype=torch.float64)
    assert torch.equal(ours.isnan(), theirs.isnan())
    same = ~theirs.isnan()
    assert torch.equal(ours[same], theirs[same]) and torch.equal(ours[same].signbit(), theirs[same].signbit())


def test_floats_of_four_bits() -> None:
    """Two in a byte; torch has no arithmetic for them, so against the table of the MX specification."""
    half = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    both = [*half, *(-value for value in half)]
    assert small_floats("float4_e2m1fn_x2") == tuple(both[i] for code in range(256) for i in (code & 15, code >> 4))


def oracle(tensor: torch.Tensor) -> dict[str, Any]:
    """What torch makes of the values, in float64; None where there is nothing to make it of."""
    wide = tensor.to(torch.complex128).abs() if tensor.dtype.is_complex else tensor.double()
    good = wide[wide.isfinite()]
    mean = (good / 2.0**20).mean().item() * 2.0**20 if len(good) else None  # torch's own sum may overflow
    std = good.std().item() if len(good) > 1 else None
    exact = [int(value) for value in good.tolist()] if tensor.dtype in INTEGERS | {torch.bool} else good.tolist()
    return {
        "min": min(exact, default=None),
        "max": max(exact, default=None),
        "mean": mean if mean is None or math.isfinite(mean) else None,
        "std": std if std is None or math.isfinite(std) else None,
        "nan": int(wide.isnan().sum()),
        "inf": int(wide.isinf().sum()),
        "zeros": int((good == 0).sum()),
    }


def close(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    exact = all(ours[key] == theirs[key] for key in ("nan", "inf", "zeros"))
    return exact and all(
        ours[key] == theirs[key]
        if ours[key] is None or theirs[key] is None
        else math.isclose(ours[key], theirs[key], rel_tol=1e-9, abs_tol=1e-300)
        for key in ("min", "max", "mean", "std")
    )


COMMON = [dtype for dtype in DTYPES if "bits" not in str(dtype) and "float4" not in str(dtype)]


@pytest.mark.parametrize("dtype", COMMON, ids=str)
def test_stats_of_every_dtype(dtype: torch.dtype, kit: Arrays, tmp_path: Path) -> None:
    """Arbitrary bytes: subnormals, NaN and infinities are all among them."""
    tensor = filled(dtype, 400, 50)
    torch.save({"w": tensor}, tmp_path / "a.pt")
    ours = summed(tmp_path / "a.pt")._asdict()
    if dtype in (torch.float64, torch.complex128):  # squares of arbitrary float64 overflow, in torch as in ours
        assert ours["std"] is None
    if dtype in (torch.int64, torch.uint64):
        values = tensor.flatten().tolist()
        assert (ours["min"], ours["max"]) == (min(values), max(values))
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        assert math.isclose(ours["mean"], mean, rel_tol=1e-9) and math.isclose(ours["std"], deviation, rel_tol=1e-9)
        return
    expected = oracle(tensor)
    assert close(ours, expected), (ours, expected)


def test_stats_of_floats_of_four_bits(kit: Arrays, tmp_path: Path) -> None:
    raw = filled(torch.uint8, 64)
    torch.save({"w": raw.view(torch.float4_e2m1fn_x2)}, tmp_path / "a.pt")
    table = torch.tensor(small_floats("float4_e2m1fn_x2")).reshape(256, 2)
    assert close(summed(tmp_path / "a.pt")._asdict(), oracle(table[raw.long()].double()))


@pytest.mark.parametrize("count", [1, 2, stats.CHUNK - 1, stats.CHUNK, stats.CHUNK + 1, (1 << 20) + 3])
def test_stats_across_blocks(count: int, kit: Arrays, tmp_path: Path) -> None:
    """A mean ten million times the deviations: squares summed up the naive way would be nothing but noise."""
    generator = torch.Generator().manual_seed(count)
    tensor = torch.randn(count, generator=generator, dtype=torch.float64) + 1e7
    torch.save({"w": tensor}, tmp_path / "a.pt")
    assert close(summed(tmp_path / "a.pt")._asdict(), oracle(tensor))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]), max_size=40))
def test_stats_are_those_of_the_finite_values(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    sums = stats._NOTHING
    raw = bytearray(tensor.numpy().tobytes())
    kit = numpy_arrays()
    for at in range(0, len(raw), 12):  # blocks of three
        with kit.quiet():
            piece = stats._sum_chunk(kit, memoryview(raw)[at : at + 12], "float32")
        sums = stats._add(sums, piece)
    ours, theirs = stats._finished(sums)._asdict(), oracle(tensor)
    top = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    for key in ("mean", "std"):
        if ours[key] is not None and theirs[key] is not None:
            assert math.isclose(ours.pop(key), theirs.pop(key), rel_tol=1e-9, abs_tol=top * 1e-12)
            ours[key] = theirs[key] = 0.0
    assert close(ours, theirs)


def test_stats_of_the_largest_floats(kit: Arrays, tmp_path: Path) -> None:
    """Their sum is infinite; their mean is not. Nothing overflows into a warning."""
    top = torch.finfo(torch.float64).max
    torch.save({"w": torch.full((5,), top, dtype=torch.float64)}, tmp_path / "a.pt")
    found = summed(tmp_path / "a.pt")
    assert found.mean is not None and math.isclose(found.mean, top) and found.std == 0 and found.inf == 0
    both = torch.full((2 * stats.CHUNK,), top, dtype=torch.float64)
    both[stats.CHUNK :] = -top
    torch.save({"w": both}, tmp_path / "b.pt")
    assert summed(tmp_path / "b.pt") == (-top, top, 0.0, None, 0, 0, 0)


def test_stats_of_strided_scalar_empty_and_unreadable(kit: Arrays, tmp_path: Path, call: Run) -> None:
    base = torch.randn(6, 8)
    state = {
        "t": base.t(), "column": base[:, 3], "scalar": torch.tensor(2.5), "none": torch.empty(0, 4),
        "nothing_finite": torch.tensor([math.nan, math.inf]), "conj": torch.randn(4, dtype=torch.complex64).conj(),
        "sparse": torch.eye(3).to_sparse(), "yes": torch.tensor([True, False, True]),
        "big": torch.tensor([2**63 - 1, -(2**63), 2**53 + 1]),
    }  # fmt: skip
    torch.save(state, tmp_path / "a.pt")
    body = inspected(call, tmp_path / "a.pt", "--stats", "--hash")
    found = {name: record["stats"] for name, record in by_name(body).items()}
    for name in ("t", "column", "conj"):
        assert close(found[name], oracle(state[name].resolve_conj().contiguous())), name
    assert found["scalar"] == {"min": 2.5, "max": 2.5, "mean": 2.5, "std": None, "nan": 0, "inf": 0, "zeros": 0}
    nothing = {"min": None, "max": None, "mean": None, "std": None, "nan": 0, "inf": 0, "zeros": 0}
    assert found["none"] == nothing and found["nothing_finite"] == {**nothing, "nan": 1, "inf": 1}
    assert found["sparse"] is None and by_name(body)["sparse"]["sha256"] is None
    assert (found["yes"]["min"], found["yes"]["max"], found["yes"]["zeros"]) == (0, 1, 1)
    assert type(found["yes"]["max"]) is int and type(found["scalar"]["max"]) is float
    assert (found["big"]["min"], found["big"]["max"]) == (-(2**63), 2**63 - 1)
    digest = hashlib.sha256(base.t().contiguous().numpy().tobytes()).hexdigest()
    assert by_name(body)["t"]["sha256"] == digest


def test_quantized_is_taken_as_its_integers(kit: Arrays, tmp_path: Path) -> None:
    tensor = torch.quantize_per_tensor(torch.tensor([-1.0, 0.0, 2.0]), 0.1, 10, torch.quint8)
    torch.save({"w": tensor}, tmp_path / "a.pt")
    assert close(summed(tmp_path / "a.pt")._asdict(), oracle(tensor.int_repr()))


@pytest.mark.parametrize("options", [["--stats"], ["--hash"], ["--stats", "--hash"]])
def test_a_damaged_record_is_named(options: list[str], tmp_path: Path, call: Run) -> None:
    """Whether its tensor is all of it, or a view whose own bytes are whole."""
    state = {"a": torch.randn(100), "b": torch.randn(100)[:50]}
    for name, record in (("a", "data/0"), ("b", "data/1")):
        path = tmp_path / f"{name}.pt"
        torch.save(state, path)
        first, length = places(path)[f"{name}/{record}"]
        flip(path, first + length - 1)
        done = call("inspect", "tensors", path, *options, "--json")
        assert done.code == 1 and f"record {record} is damaged" in done.err
        assert done.json["tensors"] == [] and done.json["problems"][0]["path"] == str(path)
        assert call("inspect", "tensors", path, *options, "--filter", "b" if name == "a" else "a").code == 0


def test_stats_need_little_memory_and_no_torch(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(64 << 20, dtype=torch.uint8), "t": torch.zeros(2048, 4096).t()}, tmp_path / "a.pt")
    script = f"""
import resource, sys, numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from ckpt_cli.app import main
code = main(["inspect", "tensors", {str(tmp_path / "a.pt")!r}, "--stats", "--hash", "--json"])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "torch" in sys.modules, file=sys.stderr)
"""
    done = run_python(script, tmp_path)
    code, grown, torch_loaded = done.stderr.split()[-3:]
    assert code == "0" and torch_loaded == "False"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 64 << 20


def test_without_numpy_torch_does_it(tmp_path: Path) -> None:
    tensor = torch.randn(1000).bfloat16()
    torch.save({"w": tensor}, tmp_path / "a.pt")
    script = f"""
import sys
sys.modules["numpy"] = None
from ckpt_cli.app import main
main(["inspect", "tensors", {str(tmp_path / "a.pt")!r}, "--stats", "--json"])
"""
    body = json.loads(run_python(script, tmp_path).stdout)
    assert close(by_name(body)["w"]["stats"], oracle(tensor))


def run_python(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip


def test_stats_in_rows(tmp_path: Path, call: Run) -> None:
    """Columns of plain output are added at the end, with figures in full."""
    torch.save({"w": torch.tensor([0.1, 0.2, math.nan])}, tmp_path / "a.pt")
    bare = call("inspect", "tensors", tmp_path / "a.pt").out.rstrip("\n").split("\t")
    full = call("inspect", "tensors", tmp_path / "a.pt", "--stats", "--hash").out.rstrip("\n").split("\t")
    assert bare == ["w", "float32", "3", "12", "0"] == full[:5]
    found = summed(tmp_path / "a.pt")
    assert full[5:12] == [str(value) for value in found] and len(full[12]) == 64 and len(full) == 13
    table = call("inspect", "tensors", tmp_path / "a.pt", "--stats", "--format", "table").out
    assert table.split() == [
        "TENSOR", "DTYPE", "SHAPE", "MIN", "MAX", "MEAN", "STD", "NAN", "INF", "ZEROS",
        "w", "float32", "3", "0.1", "0.2", "0.15", "0.07071", "1", "0", "0",
    ]  # fmt: skip


# --- what shares bytes


def test_tied_and_views(tmp_path: Path, call: Run) -> None:
    base = torch.randn(8, 6)
    flat = torch.arange(10.0)
    state = OrderedDict(
        part=base[2:4], emb=base, head=base, flipped=base.t(), column=base[:, 1], other=torch.ones(3),
        first=flat[:6], second=flat[4:], empty=base[:0],
    )  # fmt: skip
    torch.save(state, tmp_path / "a.pt")
    body = inspected(call, tmp_path / "a.pt")
    found = {name: (record["tied_to"], record["view_of"]) for name, record in by_name(body).items()}
    assert found == {
        "part": (None, "emb"), "emb": (None, None), "head": ("emb", None), "flipped": (None, "emb"),
        "column": (None, "emb"), "other": (None, None), "first": (None, None), "second": (None, None),
        "empty": (None, None),
    }  # fmt: skip
    assert body["totals"] == {"tensors": 9, "parameters": 48 + 3 + 6 + 6, "bytes": 4 * 63}
    table = call("inspect", "tensors", tmp_path / "a.pt", "--format", "table").out
    last = {line.split()[0]: re.split(r" {2,}", line)[-1] for line in table.splitlines()[1:10]}
    assert last["head"] == "tied to emb" and last["column"] == "view of emb" and last["second"] == "shares storage 2"
    assert last["emb"] == "shares storage 0" and last["other"] == "1"


def test_totals_of_a_filter_count_what_it_shows(tmp_path: Path, call: Run) -> None:
    """The tensor that it is tied to is not listed: still its bytes are there, and still its name is told."""
    weight = torch.ones(5, 5)
    torch.save({"emb": weight, "head": weight, "again": weight}, tmp_path / "a.pt")
    body = inspected(call, tmp_path / "a.pt", "--filter", "[ha]*")
    assert body["totals"] == {"tensors": 2, "parameters": 25, "bytes": 100}
    assert [record["tied_to"] for record in body["tensors"]] == ["emb", "emb"]
    done = call("inspect", "tensors", tmp_path / "a.pt", "--filter", "[ha]*", "--tree")
    assert done.out == "head\t1\t25\t100\nagain\t1\t0\t0\n"


def test_sharing_of_many_views_is_one_pass(tmp_path: Path) -> None:
    base = torch.zeros(20_000)
    tensors = {f"v{i}": base[i : i + 7 : 2] if i % 2 else base[i : i + 1] for i in range(19_000)}
    torch.save(tensors, tmp_path / "a.pt")
    listed = read_tensors(str(tmp_path / "a.pt")).tensors
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    assert all(one.shared and not one.counted for one in sharing(listed))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 2


# --- the tree


def layers(count: int, gated: range = range(0)) -> dict[str, torch.Tensor]:
    state = {"wte.weight": torch.zeros(50, 8)}
    for layer in range(count):
        state[f"h.{layer}.attn.q"] = torch.zeros(8, 8)
        state[f"h.{layer}.attn.k"] = torch.zeros(4, 8)
        if layer in gated:
            state[f"h.{layer}.attn.gate"] = torch.zeros(1, 3)
        state[f"h.{layer}.mlp.weight"] = torch.zeros(16, 8)
    return state


def drawn(call: Run, path: Path, *options: object) -> list[list[str]]:
    done = call("inspect", "tensors", path, "--tree", "--format", "table", *options)
    assert done.code == 0
    table = done.out.split("\n\n")[0]
    return [re.split(r" {2,}", line.lstrip("├└│─ ")) for line in table.splitlines()[1:]]


def test_alike_layers_are_one_branch(tmp_path: Path, call: Run) -> None:
    torch.save(layers(12), tmp_path / "a.pt")
    assert drawn(call, tmp_path / "a.pt") == [
        ["wte.weight", "1", "400", "1.60 kB", "float32", "50x8"],
        ["h.{0..11} ×12", "36", "2.69k", "10.8 kB"],
        ["attn", "24", "1.15k", "4.61 kB"],
        ["q", "12", "768", "3.07 kB", "float32", "8x8"],
        ["k", "12", "384", "1.54 kB", "float32", "4x8"],
        ["mlp.weight", "12", "1.54k", "6.14 kB", "float32", "16x8"],
    ]


def test_layers_that_differ_stay_apart(tmp_path: Path, call: Run) -> None:
    torch.save(layers(12, range(1, 12, 2)), tmp_path / "a.pt")
    names = [row[0] for row in drawn(call, tmp_path / "a.pt")]
    assert names[:4] == ["wte.weight", "h", "{0..10..2} ×6", "attn"] and "{1..11..2} ×6" in names
    state = layers(12)
    state["h.5.mlp.weight"] = torch.zeros(16, 8, dtype=torch.float16)
    torch.save(state, tmp_path / "b.pt")
    names = [row[0] for row in drawn(call, tmp_path / "b.pt")]
    assert "{0..4,6..11} ×11" in names and "5" in names


def test_the_tree_adds_up(demo_tree: Path, call: Run) -> None:
    """Every branch is the sum of what begins with its name; drawn, the top rows are the totals."""
    base = ("inspect", "tensors", "base/d4", "--root", demo_tree)
    flat = [line.split("\t") for line in call(*base).out.splitlines()]
    rows = [line.split("\t") for line in call(*base, "--tree").out.splitlines()]
    assert len({row[0] for row in rows}) == len(rows) > len(flat)
    for name, count, parameters, total in rows:
        below = [line for line in flat if line[0] == name or line[0].startswith(name + ".")]
        assert int(count) == len(below) and int(total) == sum(int(line[3]) for line in below)
        assert int(parameters) == sum(math.prod(map(int, line[2].split("x"))) for line in below)
    assert call(*base, "--tree", "--json").json == call(*base, "--json").json
    assert call(*base, "--tree", "-q").out == call(*base, "-q").out


def test_tree_with_filter_and_sort(tmp_path: Path, call: Run) -> None:
    torch.save({**layers(11), "a": torch.zeros(2), "a.b": torch.zeros(3)}, tmp_path / "a.pt")
    rows = [line.split("\t") for line in call("inspect", "tensors", tmp_path / "a.pt", "--tree", "--sort", "name").out
            .splitlines()]  # fmt: skip
    assert [row[0] for row in rows if row[0].count(".") == 1] == ["a.b", *(f"h.{i}" for i in range(11)), "wte.weight"]
    assert ["a", "2", "5", "20"] in rows and ["a.b", "1", "3", "12"] in rows
    names = [row[0] for row in drawn(call, tmp_path / "a.pt", "--sort", "bytes")]
    assert names == ["h.{0..10} ×11", "mlp.weight", "attn", "q", "k", "wte.weight", "a", "b"]
    names = [row[0] for row in drawn(call, tmp_path / "a.pt", "--filter", "*.attn.q")]
    assert names == ["h.{0..10}.attn.q ×11"]
    assert call("inspect", "tensors", tmp_path / "a.pt", "--tree", "--filter", "none").code == 1


def test_tied_in_the_tree_counts_once(tmp_path: Path, call: Run) -> None:
    weight = torch.zeros(100, 10)
    torch.save({"emb.weight": weight, "head.weight": weight}, tmp_path / "a.pt")
    assert drawn(call, tmp_path / "a.pt") == [
        ["emb.weight", "1", "1.00k", "4.00 kB", "float32", "100x10"],
        ["head.weight", "1", "0", "0 B", "float32", "100x10 tied to emb.weight"],
    ]


@pytest.mark.parametrize(
    ("numbers", "label"),
    [
        ([3], "3"), ([0, 1], "{0,1}"), ([0, 1, 2], "{0..2}"), ([2, 1, 0], "{0..2}"), ([0, 2, 4, 7], "{0..4..2,7}"),
        ([0, 1, 3, 4], "{0,1,3,4}"), ([1, 5, 6, 7], "{1,5..7}"), (list(range(12)), "{0..11}"),
        ([n * n for n in range(20)], "{0,1,4,9,16,25,...,361}"),
    ],
)  # fmt: skip
def test_labels(numbers: list[int], label: str) -> None:
    assert tree._label([str(number) for number in numbers]) == label


def test_parameters_in_three_digits() -> None:
    assert [text.short(n) for n in (0, 999, 1000, 99_449, 999_499, 999_500, 124_439_808, 1_560_000_000)] == [
        "0", "999", "1.00k", "99.4k", "999k", "1.00M", "124M", "1.56B",
    ]  # fmt: skip


def test_odd_names_in_the_tree(tmp_path: Path, call: Run) -> None:
    """No dot, only dots, thousands of them, a number too long to be one, an escape sequence."""
    names = ["", ".", "a..b", "x" + ".y" * 3000, "0." * 500 + "0", "h." + "9" * 50, "h.007", "\x1b[2J.w", "bare"]
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "a.safetensors")
    for options in (["--format", "table"], ["--format", "plain"], ["--sort", "name"], ["--json"]):
        done = call("inspect", "tensors", tmp_path / "a.safetensors", "--tree", *options)
        assert done.code == 0 and "\x1b" not in done.out
    table = call("inspect", "tensors", tmp_path / "a.safetensors", "--tree", "--format", "table").out
    assert "<root>" in table and "\\x1b[2J.w" in table


def test_tree_in_ascii(tmp_path: Path, ckpt: Run) -> None:
    torch.save(layers(3), tmp_path / "a.pt")
    done = ckpt(
        "inspect", "tensors", tmp_path / "a.pt", "--tree", "--format", "table", env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.code == 0 and "h.{0..2} x3" in done.out and "|- attn" in done.out


# --- values


def run_state() -> dict[str, Any]:
    return {
        "model": {"w": torch.ones(2)},
        "optimizer": {"param_groups": [{"lr": 0.1, "params": list(range(148))}]},
        "step": 1200,
        "note": "two\nlines\x1b[31m",
        "config": {f"key{i}": i for i in range(30)},
    }


def test_values_are_shown(tmp_path: Path, call: Run) -> None:
    torch.save(run_state(), tmp_path / "a.pt")
    path = tmp_path / "a.pt"
    done = call("inspect", "tensors", path, "--format", "table")
    rows = [re.split(r" {2,}", line) for line in done.out.split("\n\n")[1].splitlines()]
    assert rows[:4] == [["NAME", "VALUE"], ["step", "1200"], ["note", "two\\nlines\\x1b[31m"], ["config.key0", "0"]]
    assert len(rows) == 21 and "and 161 more: --values shows them" in done.err
    assert "step" not in call("inspect", "tensors", path).out
    lines = call("inspect", "tensors", path, "--values").out.splitlines()
    assert len(lines) == 2 + 30 + 1 + 148 and "optimizer.param_groups.0.lr\t0.1" in lines
    assert "note\ttwo\\nlines\\x1b[31m" in lines
    assert call("inspect", "tensors", path, "--values", "--filter", "*.lr", "-q").out == "optimizer.param_groups.0.lr\n"
    assert inspected(call, path, "--values", "--filter", "step")["values"] == {"step": 1200}
    assert len(inspected(call, path, "--filter", "none*")["values"]) == 181
    assert call("inspect", "tensors", path, "--values", "--filter", "none*").code == 1


def test_a_list_of_values_is_one_row() -> None:
    values = {**{f"g.params.{i}": i for i in range(148)}, "g.lr": 0.1, "long": "x" * 500, "g.one.0": None}
    rows, left = short_values(values, 3, 40)
    assert rows == [
        ("long", "x" * 37 + "..."),
        ("g.params", "148 values: 0, 1, 2, 3, 4, 5, 6, 7, 8..."),
        ("g.lr", "0.1"),
    ]
    assert left == 1
    assert value_text(math.nan) == "nan" and value_text([1, "a"]) == '[1, "a"]' and value_text("") == '""'


def test_a_file_of_values_only(tmp_path: Path, call: Run) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    done = call("inspect", "tensors", tmp_path / "a.pt", "--format", "table")
    assert done.code == 0 and "TENSOR" not in done.out and done.out.split() == ["NAME", "VALUE", "epoch", "3"]
    assert call("inspect", "tensors", tmp_path / "a.pt").out == ""


def test_what_does_not_go_together(tmp_path: Path, call: Run) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    for options in (["--tree", "--stats"], ["--tree", "--values"], ["--values", "--hash"], ["--sort", "size"]):
        done = call("inspect", "tensors", tmp_path / "a.pt", *options)
        assert (done.code, done.out) == (2, "")


# --- several files


def test_several_files_are_told_apart(demo_tree: Path, call: Run) -> None:
    base = ("inspect", "tensors", "base/d4", "--root", demo_tree, "--part", "optimizer")
    rows = [line.split("\t") for line in call(*base).out.splitlines()]
    assert {os.path.basename(row[-1]) for row in rows} == {"optim_000150_rank0.pt", "optim_000150_rank1.pt"}
    assert all(os.path.isfile(row[-1]) for row in rows)
    assert " FILE\n" in call(*base, "--format", "table").out
    assert "FILE" not in call(*base[:-1], "optim_000150_rank0.pt", "--format", "table").out
    top = [line for line in call(*base, "--tree").out.splitlines() if "\t" in line and line.startswith("optim_")]
    names = {line.split("\t")[0] for line in top}
    assert {"optim_000150_rank0.pt", "optim_000150_rank1.pt"} <= names


# --- tensors that are no strided view


def test_parts_of_sparse_tensors(tmp_path: Path, call: Run) -> None:
    coo, csr = torch.eye(4, 6).to_sparse(), torch.eye(4, 6).to_sparse_csr()
    torch.save({"coo": coo, "csr": csr, "meta": torch.empty(3, device="meta")}, tmp_path / "a.pt")
    found = by_name(inspected(call, tmp_path / "a.pt", "--hash"))
    assert found["coo"]["form"] == "sparse_coo" and found["csr"]["form"] == "sparse_csr"
    expected = {
        "coo": {"indices": coo.indices(), "values": coo.values()},
        "csr": {"crow_indices": csr.crow_indices(), "col_indices": csr.col_indices(), "values": csr.values()},
    }
    for name, parts in expected.items():
        assert set(found[name]["parts"]) == set(parts) and found[name]["sha256"] is None
        for part, tensor in parts.items():
            record = found[name]["parts"][part]
            assert record["shape"] == list(tensor.shape) and record["dtype"] == str(tensor.dtype).removeprefix("torch.")
            assert record["sha256"] == hashlib.sha256(plain(tensor)).hexdigest()
    assert found["meta"]["form"] == "meta" and found["meta"]["sha256"] is None
    assert "sha256" not in by_name(inspected(call, tmp_path / "a.pt", "--stats"))["coo"]["parts"]["values"]
    table = call("inspect", "tensors", tmp_path / "a.pt", "--format", "table").out
    assert "sparse_coo: indices 2x4, values 4" in table


def chunked(tmp_path: Path, whole: torch.Tensor, rows: int) -> TensorInfo:
    """A tensor of two pieces, each in a file of its own."""
    pieces = []
    for first, piece in ((0, whole[:rows]), (rows, whole[rows:])):
        path = tmp_path / f"piece{first}"
        path.write_bytes(plain(piece))
        storage = Storage(path.name, str(path), 0, piece.nbytes)
        info = TensorInfo("", "float32", tuple(piece.shape), piece.stride(), 0, 4, storage)
        pieces.append(((first, 0), info))
    return TensorInfo("w", "float32", tuple(whole.shape), whole.stride(), 0, 4, None, "chunked", pieces=tuple(pieces))


def test_pieces_are_one_tensor(tmp_path: Path) -> None:
    whole = torch.randn(7, 5)
    tensor = chunked(tmp_path, whole, 3)
    with Files() as files:
        reading = next(iter(stats.readings(files, [tensor], True, True)))
    assert reading.sha256 == hashlib.sha256(plain(whole)).hexdigest()
    assert reading.stats and close(reading.stats._asdict(), oracle(whole))
    item = Listed(TensorFile("index", "dcp", (tensor,), {}), tensor, sharing([tensor])[0], reading)
    record = record_of(item, True, True)
    assert record["form"] == "chunked" and record["sha256"] == reading.sha256 and record["offset"] is None
    assert record["pieces"] == [
        {"offsets": [0, 0], "shape": [3, 5], "file": str(tmp_path / "piece0")},
        {"offsets": [3, 0], "shape": [4, 5], "file": str(tmp_path / "piece3")},
    ]
    assert storage_text(item) == "2 pieces in 2 files"


def test_compressed_records(tmp_path: Path, call: Run) -> None:
    """As other tools pack an archive anew."""
    tensor = torch.arange(300_000, dtype=torch.float32)
    torch.save({"w": tensor}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), compress_type=zipfile.ZIP_DEFLATED)
    record = by_name(inspected(call, tmp_path / "b.pt", "--stats", "--hash"))["w"]
    assert close(record["stats"], oracle(tensor)) and record["sha256"] == hashlib.sha256(plain(tensor)).hexdigest()


# --- real files


def test_real_files(shared: Path, call: Run) -> None:
    """Every figure of every readable tensor of real files, against torch."""
    paths = [shared / "real/zoo" / name for name in ("views.pt", "tied.pt", "nested-training.pt", "plain.safetensors")]
    paths += sorted((shared / "real/nanochat/i1_smear_mar2026").rglob("model_*.pt"))
    for path in paths:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = loaded(path)
        expected = {name: oracle(tensor.detach().resolve_conj().resolve_neg()) for name, tensor in named(state)}
        found = {name: record["stats"] for name, record in by_name(inspected(call, path, "--stats")).items()}
        assert set(found) == set(expected), path
        for name, figures in found.items():
            assert close(figures, expected[name]), (path, name)


def loaded(path: Path) -> Any:
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, weights_only=True)


def test_the_library_is_chosen_once() -> None:
    assert decoding.arrays() is decoding.arrays() and decoding.arrays().module is numpy


@pytest.mark.parametrize("options", [(), ("--filter", "x*"), ("--filter", "x*", "--values")])
def test_stderr_is_the_same_with_json(options: tuple[str, ...], tmp_path: Path, call: Run) -> None:
    """Names that were not loaded, and a search that found nothing, are said either way."""
    torch.save({"w": torch.ones(2), "args": Namespace(lr=0.1)}, tmp_path / "file.pt")
    said, told = (call("inspect", "tensors", tmp_path / "file.pt", *options, *more) for more in ((), ("--json",)))
    assert said.err == told.err and "argparse.Namespace" in told.err
    assert said.code == told.code == (1 if options else 0)
    assert told.json["foreign_globals"]
    assert ("name matches" in told.err) == bool(options)
