"""`inspect diff`: what differs between two checkpoints, held against what torch computes of both."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model

from ckpt_cli.comparable import metadata_of, tensors_of
from ckpt_cli.convert import convert
from ckpt_cli.difference import compare_metadata, compare_tensors
from ckpt_cli.leaves import alike, flat
from ckpt_cli.measure import DTYPES as MEASURED
from ckpt_cli.measure import Meter
from ckpt_cli.tensors import read_tensors
from ckpt_cli.views import BLOCK
from tests.conftest import REPOSITORY, Run
from tests.torch_files import DTYPES, filled, flip, places, plain, swap_bytes

State = dict[str, Any]


def save(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def pair(folder: Path, old: Any, new: Any) -> tuple[Path, Path]:
    return save(folder / "old.pt", old), save(folder / "new.pt", new)


@pytest.fixture
def diff(call: Run) -> Any:
    """Runs `ckpt inspect diff --json` and returns its object."""

    def run(a: object, b: object, *options: object) -> Any:
        done = call("inspect", "diff", a, b, "--json", *options)
        assert done.code == 0, done.err
        return done.json

    return run


def weights() -> State:
    return {"w": filled(torch.float32, 30, 7), "b": torch.arange(9.0), "n": torch.tensor(3)}


# --- tensors


def test_the_same_state_in_two_files(tmp_path: Path, diff: Any, call: Run) -> None:
    a, b = pair(tmp_path, weights(), weights())
    found = diff(a, b)
    assert list(found)[:2] == ["schema_version", "command"]
    assert found["command"] == "inspect diff"
    assert found["differs"] is False
    assert found["tensors"] == {"added": [], "removed": [], "changed": [], "equal": 3, "not_compared": []}
    assert [side["files"][0]["path"] for side in (found["a"], found["b"])] == [str(a), str(b)]
    done = call("inspect", "diff", a, b, "--exit-code")
    assert (done.code, done.out) == (0, "")


def test_added_removed_reshaped_recast_changed(tmp_path: Path, diff: Any, call: Run) -> None:
    old = weights() | {"gone": torch.ones(2, 3), "turned": torch.ones(6), "cast": torch.ones(4), "both": torch.ones(5)}
    new = weights() | {"came": torch.ones(2), "turned": torch.ones(3, 2), "cast": torch.ones(4, dtype=torch.bfloat16)}
    new |= {"both": torch.ones(6, dtype=torch.float16), "b": torch.arange(9.0) + 1}
    a, b = pair(tmp_path, old, new)
    found = diff(a, b)["tensors"]
    assert found["added"] == [{"name": "came", "dtype": "float32", "shape": [2], "tied_to": None}]
    assert found["removed"] == [{"name": "gone", "dtype": "float32", "shape": [2, 3], "tied_to": None}]
    assert {change["name"]: change["what"] for change in found["changed"]} == {
        "b": ["changed"],
        "turned": ["reshaped"],
        "cast": ["recast"],
        "both": ["reshaped", "recast"],
    }
    assert found["changed"][1]["from"] == {"dtype": "float32", "shape": [6]}
    assert found["changed"][1]["to"] == {"dtype": "float32", "shape": [3, 2]}
    assert "max_abs" not in found["changed"][0]
    assert found["equal"] == 2
    done = call("inspect", "diff", a, b, "--exit-code", "--format", "plain")
    assert done.code == 1
    assert done.out.splitlines() == [
        "removed\ttensor\tgone\tfloat32 2x3\t",
        "added\ttensor\tcame\t\tfloat32 2",
        "changed\ttensor\tb\tfloat32 9\tfloat32 9",
        "reshaped\ttensor\tturned\tfloat32 6\tfloat32 3x2",
        "recast\ttensor\tcast\tfloat32 4\tbfloat16 4",
        "reshaped,recast\ttensor\tboth\tfloat32 5\tfloat16 6",
    ]
    assert call("inspect", "diff", a, b, "--exit-code", "--json").code == 1


@pytest.mark.parametrize("index", [0, 1, -1])
@pytest.mark.parametrize("count", [1, 2, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3 << 18])
def test_one_bit_in_any_place_is_seen(tmp_path: Path, index: int, count: int) -> None:
    """The blocks that are compared hold 2**18 floats: first, last and either side of their seams."""
    old = torch.zeros(count)
    new = old.clone()
    new[index if index < count else 0] = torch.finfo(torch.float32).tiny
    a, b = (tensors_of([read_tensors(str(path))]) for path in pair(tmp_path, {"t": old}, {"t": new}))
    assert [change.what for change in compare_tensors(a, b).changed] == [("changed",)]
    assert compare_tensors(a, a).equal == 1


@pytest.mark.parametrize("dtype", [d for d in DTYPES if "uint" not in str(d) or d == torch.uint8], ids=str)
def test_every_dtype_is_compared_by_its_bytes(tmp_path: Path, diff: Any, dtype: torch.dtype) -> None:
    raw = filled(dtype, 5, 6).view(torch.uint8).clone()
    changed = raw.clone()
    changed.view(-1)[-1] ^= 1
    a, b = pair(tmp_path, {"t": raw.view(dtype)}, {"t": changed.view(dtype)})
    found = diff(a, b, "--values")["tensors"]
    assert [change["what"] for change in found["changed"]] == [["changed"]]
    assert (found["changed"][0]["nan"] is not None) is (str(dtype).removeprefix("torch.") in MEASURED)


# --- values


def expected(old: torch.Tensor, new: torch.Tensor) -> tuple[float, float]:
    """Max |b-a| and ||b-a|| / ||a||, in torch's widest."""
    wide = torch.complex128 if old.is_complex() or new.is_complex() else torch.float64
    a, b = old.to(wide), new.to(wide)
    return (b - a).abs().max().item(), (torch.linalg.vector_norm(b - a) / torch.linalg.vector_norm(a)).item()


MEASURABLE = [dtype for dtype in DTYPES if str(dtype).removeprefix("torch.") in MEASURED]


def sample(dtype: torch.dtype, seed: int, count: int = 40_000) -> torch.Tensor:
    """Numbers that the dtype can hold, more of them than are measured at a time."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_complex:
        return torch.complex(*(torch.randn(count, generator=generator) for _ in "ri")).to(dtype)
    if dtype.is_floating_point:
        return torch.randn(count, generator=generator).abs().clamp(0.1).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 100, (count,), generator=generator).to(dtype)


def test_all_that_torch_has_arithmetic_for_is_measured() -> None:
    assert len(MEASURABLE) == len(MEASURED)


@pytest.mark.parametrize("dtype", MEASURABLE, ids=str)
def test_how_large_a_change_is(tmp_path: Path, diff: Any, dtype: torch.dtype) -> None:
    old, new = sample(dtype, 1), sample(dtype, 2)
    a, b = pair(tmp_path, {"t": old}, {"t": new})
    (change,) = diff(a, b, "--values")["tensors"]["changed"]
    most, relative = expected(old, new)
    assert (change["max_abs"], change["nan"]) == (most, 0)
    assert change["relative_norm"] == pytest.approx(relative, rel=1e-12)


CASTS = ["bfloat16 float32", "float32 float16", "float32 int64", "complex64 float64", "float8_e4m3fn bfloat16"]


@pytest.mark.parametrize("cast", CASTS)
def test_recast_tensors_are_measured_by_value(tmp_path: Path, diff: Any, cast: str) -> None:
    dtypes = cast.split()
    old = sample(getattr(torch, dtypes[0]), 1, 700_000)
    new = sample(torch.float32, 2, 700_000).to(getattr(torch, dtypes[1]))
    a, b = pair(tmp_path, {"t": old}, {"t": new})
    (change,) = diff(a, b, "--values")["tensors"]["changed"]
    most, relative = expected(old, new)
    assert change["what"] == ["recast"]
    assert (change["max_abs"], change["relative_norm"]) == (most, pytest.approx(relative, rel=1e-12))


def test_a_cast_that_loses_nothing_measures_zero(tmp_path: Path, diff: Any) -> None:
    old = sample(torch.bfloat16, 1)
    a, b = pair(tmp_path, {"t": old, "z": torch.zeros(4)}, {"t": old.float(), "z": torch.zeros(4, dtype=torch.int32)})
    found = diff(a, b, "--values")["tensors"]
    assert [(c["what"], c["max_abs"], c["relative_norm"]) for c in found["changed"]] == [(["recast"], 0.0, 0.0)] * 2


def test_a_change_of_one_known_element(tmp_path: Path, diff: Any, call: Run) -> None:
    old = torch.full((100, 100), 2.0)
    new = old.clone()
    new[41, 3] -= 0.5
    a, b = pair(tmp_path, {"t": old}, {"t": new})
    (change,) = diff(a, b, "--values")["tensors"]["changed"]
    assert change["max_abs"] == 0.5
    assert change["relative_norm"] == 0.5 / 200
    plain_text = call("inspect", "diff", a, b, "--values").out
    assert plain_text == "changed\ttensor\tt\tfloat32 100x100\tfloat32 100x100\t0.5\t0.0025\n"


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("old", "new", "most", "relative", "nan"),
    [
        ([NAN, 3.0, 4.0], [NAN, 3.0, 5.0], 1.0, 0.2, 0),
        ([INF, 3.0, 4.0], [INF, 3.0, 5.0], 1.0, 0.2, 0),
        ([-INF, 3.0, NAN], [-INF, 6.0, NAN], 3.0, 1.0, 0),
        ([1.0, NAN, 2.0], [1.0, 0.0, 2.0], None, None, 1),
        ([1.0, 2.0, 3.0], [NAN, NAN, 3.0], None, None, 2),
        ([1.0, 2.0], [1.0, INF], None, None, 0),
        ([1.0, INF], [1.0, -INF], None, None, 0),
        ([0.0, 0.0], [0.0, -0.0], 0.0, 0.0, 0),
        ([0.0, 0.0], [0.0, 2.0], 2.0, None, 0),
        ([NAN, 1.0], [0.0, 9.0], None, None, 1),
    ],
)
def test_what_is_not_finite(
    tmp_path: Path, diff: Any, old: list[float], new: list[float], most: float | None, relative: float | None, nan: int
) -> None:
    a, b = pair(tmp_path, {"t": torch.tensor(old)}, {"t": torch.tensor(new)})
    (change,) = diff(a, b, "--values")["tensors"]["changed"]
    assert change["max_abs"] == most
    assert change["relative_norm"] == (relative if relative is None else pytest.approx(relative))
    assert change["nan"] == nan


def test_a_nan_far_behind_is_not_forgotten() -> None:
    meter = Meter("float32", "float32")
    old = torch.zeros(100_000)
    new = old.clone()
    new[5], new[70_000], new[99_999] = NAN, 7.0, INF
    meter.add(memoryview(bytearray(plain(old))), memoryview(bytearray(plain(new))))
    assert (math.isnan(meter.amount().max_abs), meter.amount().nan) == (True, 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64], ids=str)
def test_integers_beyond_what_a_float_holds(tmp_path: Path, diff: Any, dtype: torch.dtype) -> None:
    old = torch.tensor([2**62, 5, 2**33], dtype=dtype)
    new = torch.tensor([2**62 + 1, 5, 2**33 - 2], dtype=dtype)
    a, b = pair(tmp_path, {"t": old}, {"t": new})
    assert diff(a, b, "--values")["tensors"]["changed"][0]["max_abs"] == 2.0


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(width=32)] * 2), min_size=1, max_size=30))
def test_the_meter_is_what_the_formula_says(numbers: list[tuple[float, float]]) -> None:
    """Element by element, in Python: NaN and infinities of both sides left out, nothing else."""
    meter = Meter("float32", "float32")
    for old, new in numbers:
        sides = (torch.tensor([old], dtype=torch.float32), torch.tensor([new], dtype=torch.float32))
        meter.add(*(memoryview(bytearray(plain(side))) for side in sides))
    changes = [0.0 if a == b or (a != a and b != b) else abs(b - a) for a, b in numbers]
    norm = [a for a, b in numbers if math.isfinite(a) or not (a == b or (a != a and b != b))]
    found = meter.amount()
    assert found.nan == sum((a != a) is not (b != b) for a, b in numbers)
    if any(change != change for change in changes):
        assert math.isnan(found.max_abs)
        return
    assert found.max_abs == max(changes)
    if math.isfinite(max(changes)) and any(norm):
        wanted = math.sqrt(sum(c * c for c in changes)) / math.sqrt(sum(a * a for a in norm))
        assert found.relative_norm == pytest.approx(wanted, rel=1e-9)


# --- the same in another form


def test_every_model_of_a_real_tree_against_its_conversion(tree: Path, tmp_path: Path, call: Run) -> None:
    """.pt with its meta beside it, safetensors with the meta inside: nothing differs, and the bytes were compared."""
    done = 0
    for ref in ("base/d4/100", "base/d6/50", "base/d6/150", "mid/d4/60", "sft/d4/40"):
        output = tmp_path / "out.safetensors"
        assert call("convert", ref, "--root", tree, "-o", output, "--force").code == 0
        found = call("inspect", "diff", ref, output, "--root", tree, "--json", "--exit-code", "--values")
        assert found.code == 0, found.out
        assert found.json["tensors"]["equal"] > 20
        assert found.json["meta"]["equal"] > 5
        back = call("inspect", "diff", output, ref, "--root", tree, "--exit-code")
        assert (back.code, back.out) == (0, "")
        done += 1
    assert done == 5
    other = call("inspect", "diff", "base/d6/150", output, "--root", tree, "--exit-code", "--json")
    assert other.code == 1
    assert {"key": "step", "from": 150, "to": 40} in other.json["meta"]["changed"]


def test_tied_and_aliased_tensors_are_found_again(tmp_path: Path, call: Run) -> None:
    flat_buffer = torch.arange(64.0)
    weight = filled(torch.bfloat16, 8, 6)
    state = {
        "wte": weight, "lm_head": weight, "turned": weight.T, "rows": weight[2:5],
        "flat": flat_buffer, "part": flat_buffer[8:24].view(4, 4), "skips": flat_buffer[::2],
        "skips too": flat_buffer[::2],
        "alone": torch.ones(3).expand(4, 3), "empty": torch.zeros(0, 3), "scalar": flat_buffer[7],
    }  # fmt: skip
    source, target = save(tmp_path / "a.pt", state), tmp_path / "a.safetensors"
    recipe = convert(str(source), str(target))
    assert len(recipe.aliases) > 3
    for sides in ((source, target), (target, source)):
        done = call("inspect", "diff", *sides, "--json", "--exit-code")
        assert done.code == 0, done.out
        assert done.json["tensors"]["equal"] == len(state)
    # What is no longer tied differs only where its bytes do.
    loose = save(tmp_path / "b.pt", {name: tensor.clone() for name, tensor in state.items()})
    assert call("inspect", "diff", target, loose, "--exit-code").code == 0
    state["lm_head"] = weight.flip(0)
    done = call("inspect", "diff", target, save(tmp_path / "c.pt", state), "--json")
    assert [change["name"] for change in done.json["tensors"]["changed"]] == ["lm_head"]


def test_what_safetensors_itself_leaves_out(tmp_path: Path, call: Run) -> None:
    model = torch.nn.Module()
    model.a, model.b = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    model.b.weight = model.a.weight
    save_model(model, str(tmp_path / "m.safetensors"))
    assert len(read_tensors(str(tmp_path / "m.safetensors")).tensors) == 3
    done = call("inspect", "diff", save(tmp_path / "m.pt", model.state_dict()), tmp_path / "m.safetensors", "--json")
    assert done.json["differs"] is False
    assert done.json["tensors"]["equal"] == 4


def test_a_name_that_was_only_tied_says_so(tmp_path: Path, call: Run) -> None:
    """What transformers does: lm_head is left out of the safetensors, and nothing there tells of it."""
    weight = torch.ones(4, 2)
    a = save(tmp_path / "a.pt", {"wte": weight, "head": weight, "other": weight.clone(), "gone": torch.ones(1)})
    save_file({"wte": weight}, tmp_path / "b.safetensors")
    found = call("inspect", "diff", a, tmp_path / "b.safetensors", "--json").json["tensors"]
    assert {lone["name"]: lone["tied_to"] for lone in found["removed"]} == {"head": "wte", "other": None, "gone": None}
    table = call("inspect", "diff", tmp_path / "b.safetensors", a, "--format", "table").out
    assert "+  head    float32 4x2, tied to wte\n" in table


@pytest.mark.parametrize(
    "alias",
    [
        "no object", {}, {"of": "w"}, {"of": "none", "dtype": "float32", "shape": [1], "stride": [1], "offset": 0},
        {"of": "w", "dtype": "float32", "shape": [9], "stride": [1], "offset": 0},
        {"of": "w", "dtype": "float32", "shape": [2], "stride": [1], "offset": 3},
        {"of": "w", "dtype": "float32", "shape": [1], "stride": [1], "offset": -1},
        {"of": "w", "dtype": "float32", "shape": [1, 1], "stride": [1], "offset": 0},
        {"of": "w", "dtype": "os.system", "shape": [1], "stride": [1], "offset": 0},
        {"of": "w", "dtype": ["float32"], "shape": [1], "stride": [1], "offset": 0},
        {"of": "w", "dtype": "float32", "shape": [2**70], "stride": [2**70], "offset": 0},
        {"of": ["w"], "dtype": "float32", "shape": "11", "stride": [1], "offset": True},
    ],
)  # fmt: skip
def test_an_alias_that_does_not_fit_is_passed_over(tmp_path: Path, call: Run, alias: Any) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"w": torch.ones(4)}, a, {"ckpt.aliases": json.dumps({"x": alias})})
    save_file({"w": torch.ones(4), "x": torch.ones(1)}, b)
    done = call("inspect", "diff", a, b, "--json")
    assert done.code == 0, done.err
    assert [tensor["name"] for tensor in done.json["tensors"]["added"]] == ["x"]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[1]", "7"])
def test_texts_that_are_no_json_or_no_object(tmp_path: Path, call: Run, text: str) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"w": torch.ones(4)}, a, {"ckpt.aliases": text, "ckpt.meta": text, "ckpt.values": text})
    save_file({"w": torch.ones(4)}, b)
    done = call("inspect", "diff", a, b, "--json")
    assert done.code == 0, done.err
    assert (done.json["tensors"]["equal"], len(done.json["meta"]["removed"]) > 0) == (1, True)


def test_the_prefix_of_torch_compile_does_not_count(tmp_path: Path, diff: Any) -> None:
    block = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    compiled = torch.compile(block, backend="eager")
    assert isinstance(compiled, torch.nn.Module)
    state = compiled.state_dict()
    assert all(name.startswith("_orig_mod.") for name in state)
    a, b = pair(tmp_path, block.state_dict(), state)
    found = diff(a, b)
    assert (found["differs"], found["tensors"]["equal"]) == (False, 4)
    both = save(tmp_path / "both.pt", {"w": torch.ones(1), "_orig_mod.w": torch.ones(1)})
    assert sorted(tensors_of([read_tensors(str(both))])) == ["_orig_mod.w", "w"]


def test_big_endian_and_strides_are_only_form(tmp_path: Path, diff: Any) -> None:
    state = {"w": filled(torch.float32, 6, 4), "t": filled(torch.int16, 5, 3).T, "c": filled(torch.complex64, 4)}
    straight = save(tmp_path / "a.pt", state)
    widths = {"0": 4, "1": 2, "2": 4}
    turned = swap_bytes(straight, tmp_path / "big.pt", widths)
    flattened = save(tmp_path / "c.pt", {name: tensor.contiguous().clone() for name, tensor in state.items()})
    for a, b in ((straight, turned), (turned, flattened), (flattened, straight)):
        found = diff(a, b)["tensors"]
        assert (found["equal"], found["changed"]) == (3, [])


def test_blocks_of_other_sizes(tmp_path: Path) -> None:
    """A transposed view comes in blocks of other lengths than a contiguous tensor."""
    wide = torch.arange(10 * (BLOCK // 12) + 30, dtype=torch.int32).view(10, -1)
    moved = wide.clone()
    moved[9, 5] += 1
    a, b = pair(tmp_path, {"t": wide.T, "u": wide.T}, {"t": wide.T.contiguous(), "u": moved.T.contiguous()})
    old, new = (tensors_of([read_tensors(str(path))]) for path in (a, b))
    found = compare_tensors(old, new, values=True)
    assert found.equal == 1
    assert [(c.name, c.amount and c.amount.max_abs) for c in found.changed] == [("u", 1.0)]


def test_shards_are_one_set_of_names(tmp_path: Path) -> None:
    state = weights()
    whole = [read_tensors(str(save(tmp_path / "whole.pt", state)))]
    parts = [read_tensors(str(save(tmp_path / f"{name}.pt", {name: state[name]}))) for name in reversed(state)]
    assert compare_tensors(tensors_of(whole), tensors_of(parts)).equal == len(state)
    ranks = [read_tensors(str(save(tmp_path / f"rank{n}.pt", {"w": torch.full((2,), n)}))) for n in (0, 1)]
    assert list(tensors_of(ranks)) == ["w", "rank1.pt:w"]


def test_a_distributed_checkpoint_against_one_file(tmp_path: Path, call: Run) -> None:
    """torch's own writer of them, without a process group."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    state: State = {"model": weights(), "step": 5, "betas": [0.9, 0.95]}
    save_distributed(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    source = save(tmp_path / "a.pt", state)
    done = call("inspect", "diff", source, tmp_path / "dcp/.metadata", "--json", "--values", "--exit-code")
    assert done.code == 0, done.out
    assert (done.json["tensors"]["equal"], done.json["meta"]["equal"]) == (3, 3)
    state["model"]["b"] = torch.arange(9.0) * 2
    done = call("inspect", "diff", save(tmp_path / "b.pt", state), tmp_path / "dcp/.metadata", "--json", "--values")
    assert [(c["name"], c["max_abs"]) for c in done.json["tensors"]["changed"]] == [("model.b", 8.0)]


def test_what_a_file_says_of_its_form_is_no_metadata(tmp_path: Path, diff: Any) -> None:
    notes = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": "{}", "ckpt.ref": "base/d4/1"}
    save_file({"w": torch.ones(4)}, tmp_path / "a.safetensors", notes | {"note": "kept"})
    b = save(tmp_path / "b.pt", {"w": torch.ones(4)})
    removed = diff(tmp_path / "a.safetensors", b)["meta"]["removed"]
    assert removed == [{"key": "__metadata__.note", "value": "kept"}]


# --- what cannot be compared


def test_sparse_tensors_are_compared_by_their_parts(tmp_path: Path, diff: Any) -> None:
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    old = {
        "same": dense.to_sparse(),
        "values": dense.to_sparse(),
        "more": dense.to_sparse(),
        "dense": dense.to_sparse(),
    }
    more = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).to_sparse()
    new = {"same": dense.to_sparse(), "values": (dense * 2).to_sparse(), "more": more, "dense": dense}
    a, b = pair(tmp_path, old, new)
    found = diff(a, b, "--values")["tensors"]
    assert found["equal"] == 1
    assert {c["name"]: c["what"] for c in found["changed"]} == {
        "values": ["changed"], "more": ["changed"], "dense": ["recast"],
    }  # fmt: skip
    assert found["changed"][2]["from"]["form"].startswith("sparse")
    assert found["changed"][0]["max_abs"] is None


def test_a_tensor_without_data_is_named_and_is_no_yes(tmp_path: Path, call: Run) -> None:
    old = {"m": torch.empty(3, device="meta"), "n": torch.empty(3, device="meta"), "w": torch.ones(2)}
    new = {"m": torch.zeros(3), "n": torch.empty(4, device="meta"), "w": torch.ones(2)}
    a, b = pair(tmp_path, old, new)
    found = call("inspect", "diff", a, b, "--json").json["tensors"]
    assert {c["name"]: c["what"] for c in found["changed"]} == {"m": ["recast"], "n": ["reshaped"]}
    done = call("inspect", "diff", a, save(tmp_path / "again.pt", old), "--json", "--exit-code")
    assert [entry["name"] for entry in done.json["tensors"]["not_compared"]] == ["m", "n"]
    assert "without data" in done.json["tensors"]["not_compared"][0]["reason"]
    assert (done.code, done.json["differs"], done.json["tensors"]["equal"]) == (1, False, 1)
    lines = call("inspect", "diff", a, tmp_path / "again.pt").out.splitlines()
    assert lines[0].split("\t")[:3] == ["not-compared", "tensor", "m"]


def test_quantized_tensors_by_integers_and_scale(tmp_path: Path, diff: Any) -> None:
    """Equal integers of another scale are another tensor: the scale is among the metadata."""
    small, large, other = (
        torch.quantize_per_tensor(torch.arange(4.0) * factor, scale, 0, torch.qint8)
        for factor, scale in ((1, 1.0), (2, 2.0), (1, 2.0))
    )
    assert torch.equal(small.int_repr(), large.int_repr())
    a, b = pair(tmp_path, {"q": small, "r": small.clone()}, {"q": large, "r": other})
    found = diff(a, b)
    assert [change["name"] for change in found["tensors"]["changed"]] == ["r"]
    scales = [change for change in found["meta"]["changed"] if "scale" in change["key"]]
    assert [(change["key"][0], change["from"], change["to"]) for change in scales] == [("q", 1.0, 2.0), ("r", 1.0, 2.0)]


# --- metadata


def test_metadata_by_dotted_key(tree: Path, diff: Any) -> None:
    meta = json.loads((tree / "base_checkpoints/d6/meta_000150.json").read_text())
    old = json.loads((tree / "base_checkpoints/d6/meta_000050.json").read_text())
    found = diff("base/d6/50", "150", "-i", "base", "-g", "d6", "--root", tree)
    assert (found["a"]["checkpoint"]["ref"], found["b"]["checkpoint"]["ref"]) == ("base/d6/50", "base/d6/150")
    changed = {change["key"]: (change["from"], change["to"]) for change in found["meta"]["changed"]}
    assert changed["step"] == (50, 150)
    assert changed["val_bpb"] == (old["val_bpb"], meta["val_bpb"])
    assert "model_config.n_layer" not in changed
    assert found["meta"]["added"] == found["meta"]["removed"] == []
    assert len(changed) + found["meta"]["equal"] == len(flat(meta))


def test_values_beside_the_tensors_are_metadata(tmp_path: Path, diff: Any) -> None:
    old = {"model": weights(), "step": 3, "config": {"n_layer": 2, "betas": [0.9, 0.95]}, "note": "x", "loss": NAN}
    new = {"model": weights(), "step": 4, "config": {"n_layer": 2, "betas": [0.9, 0.99, 1.0]}, "loss": NAN, "new": None}
    a, b = pair(tmp_path, old, new)
    assert diff(a, b)["meta"] == {
        "added": [{"key": "config.betas.2", "value": 1.0}, {"key": "new", "value": None}],
        "removed": [{"key": "note", "value": "x"}],
        "changed": [{"key": "step", "from": 3, "to": 4}, {"key": "config.betas.1", "from": 0.95, "to": 0.99}],
        "equal": 3,
    }
    target = tmp_path / "a.safetensors"
    convert(str(a), str(target), {"ckpt.ref": "run/3"})
    assert diff(a, target)["differs"] is False


def test_an_optimizer_is_compared_with_its_hyperparameters(tmp_path: Path, diff: Any) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    sides = []
    for _ in range(2):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        sides.append(json.loads(json.dumps({})) | {"state": optimizer.state_dict()})
        sides[-1] = torch.load(save(tmp_path / "copy.pt", sides[-1]), weights_only=True)
        optimizer.param_groups[0]["lr"] = 0.01
    a, b = pair(tmp_path, *sides)
    found = diff(a, b, "--values")
    assert {"key": "state.param_groups.0.lr", "from": 0.1, "to": 0.01} in found["meta"]["changed"]
    steps = {c["name"]: c["max_abs"] for c in found["tensors"]["changed"] if c["name"].endswith(".step")}
    assert steps == {"state.state.0.step": 1.0, "state.state.1.step": 1.0}
    averages = [c for c in found["tensors"]["changed"] if c["name"] == "state.state.0.exp_avg"]
    states = [side["state"]["state"][0]["exp_avg"] for side in sides]
    assert averages[0]["max_abs"] == expected(*states)[0]


def test_groups_that_changed_alike_share_a_line(tmp_path: Path, call: Run) -> None:
    """In a table, with the numbers that steps are; a program gets every leaf."""
    layers = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)

    def saved(name: str, of: int, lr: float, steps: int) -> Path:
        groups: list[dict[str, Any]] = [{"params": list(layer.parameters())} for layer in layers[:of]]
        groups.append({"params": [torch.zeros(1, requires_grad=True)]})
        optimizer = torch.optim.AdamW(groups, lr=lr)
        for _ in range(steps):
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.grad = torch.ones_like(param)
            optimizer.step()
        optimizer.param_groups[-1]["weight_decay"] = lr
        return save(tmp_path / name, {"optimizer": optimizer.state_dict(), "step": steps})

    a, b = saved("a.pt", 2, 0.1, 3), saved("b.pt", 2, 0.2, 4)
    lines = [line.split(maxsplit=2) for line in call("inspect", "diff", a, b, "--format", "table").out.splitlines()]
    assert lines[:5] == [
        ["METADATA", "VALUE"],
        ["~", "step", "3 -> 4"],
        ["GROUP", "SETTING", "VALUE"],
        ["~", "optimizer.0,", "optimizer.1, optimizer.2  lr            0.1 -> 0.2"],
        ["~", "optimizer.2", "weight_decay  0.1 -> 0.2"],
    ]
    assert ["~", "optimizer.state.0.step", "float32 3.0 -> 4.0"] in lines
    plain_ = call("inspect", "diff", a, b, "--format", "plain").out
    assert "changed\tmeta\toptimizer.param_groups.1.lr\t0.1\t0.2\n" in plain_
    found = call("inspect", "diff", a, saved("c.pt", 3, 0.1, 3), "--format", "table").out
    assert ["~", "optimizer.2", "params", "1", "->", "2"] in [line.split() for line in found.splitlines()]
    assert ["+", "optimizer.3", "lr", "0.1"] in [line.split() for line in found.splitlines()]
    assert "params." not in found
    old, new = (
        {f"layer{n}": {"param_groups": [{"lr": lr, "params": [name]}]} for n in range(6)}
        for lr, name in ((0.1, "a"), (0.2, "b"))
    )
    found = call("inspect", "diff", *pair(tmp_path, old, new), "--format", "table").out
    assert [line.split(maxsplit=5) for line in found.splitlines()[1:]] == [
        ["~", "layer0.0", "and", "5", "others", "lr       0.1 -> 0.2"],
        ["~", "layer0.0", "and", "5", "others", "params   1, not the same"],
    ]


def test_optimizer_files_of_a_tree_speak_for_themselves(tree: Path, diff: Any) -> None:
    run = tree / "base_checkpoints/d6"
    found = diff(run / "optim_000050_rank0.pt", run / "optim_000150_rank0.pt")
    assert all(not change["key"].startswith("model_config") for change in found["meta"]["changed"])
    assert "val_bpb" not in {change["key"] for change in found["meta"]["changed"]}
    assert found["tensors"]["changed"]


def test_an_export_brings_its_own_metadata(tree: Path, diff: Any, call: Run) -> None:
    """A stale export beside a model: its meta is the one inside, not the one that lies in the folder now."""
    run = tree / "base_checkpoints/d6"
    assert call("convert", "base/d6/150", "--root", tree).code == 0
    meta = json.loads((run / "meta_000150.json").read_text())
    (run / "meta_000150.json").write_text(json.dumps(meta | {"val_bpb": 9.0}))
    found = diff(run / "model_000150.safetensors", run / "model_000150.pt")
    assert found["meta"]["changed"] == [{"key": "val_bpb", "from": meta["val_bpb"], "to": 9.0}]
    assert found["tensors"]["changed"] == []


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
METAS = st.dictionaries(st.text("ab.", max_size=3), st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=3), inner, max_size=3)
), max_size=4)  # fmt: skip


@settings(deadline=None)
@given(METAS, METAS)
def test_the_difference_turns_one_into_the_other(one: State, other: State) -> None:
    a, b = flat(one), flat(other)
    found = compare_metadata(a, b)
    made = {key: value for key, value in a.items() if key not in dict(found.removed)}
    made |= dict(found.added) | {key: new for key, _, new in found.changed}
    assert set(made) == set(b)
    assert all(alike(made[key], b[key]) for key in b)
    assert found.equal == len(b) - len(found.added) - len(found.changed)
    nothing = compare_metadata(a, flat(one))
    assert (nothing.added, nothing.removed, nothing.changed, nothing.equal) == ([], [], [], len(a))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(1, 1.0, True), (1, True, False), (0, False, False), (NAN, NAN, True), (NAN, None, False), ("1", 1, False),
     ([], {}, False), (None, None, True), (2**70, 2**70, True), (0.0, -0.0, True)],
)  # fmt: skip
def test_what_is_the_same_value(one: Any, other: Any, same: bool) -> None:
    assert alike(one, other) is alike(other, one) is same


def test_nothing_is_lost_where_keys_collide() -> None:
    assert flat({"a.b": 1, "a": {"b": 2}}) == {"a.b": 1, "a.b#2": 2}
    assert flat([]) == {"<root>": []}
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert list(flat(deep).values()) == [1]


# --- damage


def test_a_damaged_record_is_named_on_either_side(tmp_path: Path, call: Run) -> None:
    a, b = pair(tmp_path, weights(), weights())
    at, size = places(b)["new/data/0"]
    flip(b, at + size // 2)
    for sides in ((a, b), (b, a)):
        for options in ((), ("--values",), ("--exit-code",)):
            done = call("inspect", "diff", *sides, "--json", *options)
            assert done.code == 1
            assert done.json["problems"][0]["code"] == "crc-mismatch"
            assert done.json["problems"][0]["path"] == str(b)
            assert "record data/0" in done.err
            assert done.json["tensors"]["changed"] == []


def test_damage_behind_a_true_difference_is_found_too(tmp_path: Path, call: Run) -> None:
    """The first difference does not end the reading of a record whose CRC32 is still to be held against it."""
    old = torch.zeros(1 << 20)
    new = old.clone()
    new[0] = 1
    a, b = pair(tmp_path, {"t": old}, {"t": new})
    at, size = places(a)["old/data/0"]
    flip(a, at + size - 1)
    done = call("inspect", "diff", a, b)
    assert (done.code, "record data/0" in done.err) == (1, True)


def test_damage_in_a_part_that_no_tensor_uses(tmp_path: Path, call: Run) -> None:
    """A record is checked whole, also where its tensors are views of less."""
    base = torch.arange(1000.0)
    a, b = pair(tmp_path, {"t": base[:10], "u": base[20:30]}, {"t": base[:10], "u": base[20:30]})
    at, size = places(a)["old/data/0"]
    flip(a, at + size - 1)
    done = call("inspect", "diff", a, b)
    assert (done.code, "record data/0" in done.err) == (1, True)


def test_the_same_file_is_not_read(tmp_path: Path, call: Run) -> None:
    """Under whatever name: a damaged one is equal to itself."""
    a, _ = pair(tmp_path, weights(), weights())
    flip(a, places(a)["old/data/0"][0])
    os.link(a, tmp_path / "hard.pt")
    os.symlink(a, tmp_path / "soft.pt")
    for other in ("old.pt", "hard.pt", "soft.pt"):
        assert call("inspect", "diff", a, tmp_path / other, "--exit-code").code == 0


def test_compressed_records_are_compared(tmp_path: Path, diff: Any) -> None:
    a, b = pair(tmp_path, weights(), weights() | {"n": torch.tensor(4)})
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(b) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    found = diff(a, packed)["tensors"]
    assert (found["equal"], [change["name"] for change in found["changed"]]) == (2, ["n"])


# --- the command line


def test_options_hold_for_both_sides(tree: Path, diff: Any, call: Run) -> None:
    def refs(*arguments: object) -> tuple[str, str]:
        found = diff(*arguments, "--root", tree)
        return found["a"]["checkpoint"]["ref"], found["b"]["checkpoint"]["ref"]

    assert refs("base", "sft", "-g", "d4") == ("base/d4/150", "sft/d4/40")
    assert refs("50", "150", "-g", "d6", "-i", "base") == ("base/d6/50", "base/d6/150")
    assert refs("base/d4", "d6", "-s", "150", "-i", "base") == ("base/d4/150", "base/d6/150")
    assert refs("base/d6", "base/d6/50", "-s", "50") == ("base/d6/50", "base/d6/50")
    for wrong in (("base/d6/50", "base/d6/150", "-s", "50"), ("base/d4", "base/d6", "-g", "d4")):
        done = call("inspect", "diff", *wrong, "--root", tree)
        assert (done.code, "contradict" in done.err) == (2, True)


def test_options_hold_for_a_side_that_is_no_file(tree: Path, diff: Any, call: Run) -> None:
    model = tree / "base_checkpoints/d6/model_000050.pt"
    found = diff(model, "base/d6", "-s", "50", "--root", tree)
    assert found["b"]["checkpoint"]["ref"] == "base/d6/50"
    assert diff("base/d6", model, "-s", "150", "--root", tree)["a"]["checkpoint"]["ref"] == "base/d6/150"
    assert call("inspect", "diff", model, model, "-s", "50").code == 2
    assert call("inspect", "diff", tree, "base", "--root", tree).code == 2


def test_directories_as_sides(tree: Path, diff: Any) -> None:
    found = diff(tree / "base_checkpoints/d4", tree / "base_checkpoints/d6")
    assert [found[side]["checkpoint"]["tag"] for side in "ab"] == ["d4", "d6"]


def test_what_is_said_about_a_root_is_said_once(tree: Path, call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert call("inspect", "diff", "base/d6/50", "base/d6/150").err.count("root:") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{a}"], 2, "missing argument 'B'"),
        ([], 2, "missing argument 'A'"),
        (["{a}", "{b}", "-q"], 2, "-q does not go with it"),
        (["{a}", "/none.pt"], 2, "there is no file"),
        (["{a}", "{text}"], 2, "not a checkpoint"),
        (["{text}", "{b}"], 2, "not a checkpoint"),
        (["{a}", "{cut}"], 1, "cut.pt"),
        (["{a}", ""], 2, "TARGET is empty"),
        (["{a}", "{b}", "--format", "xml"], 2, "no output format"),
    ],
)
def test_wrong_calls(tmp_path: Path, call: Run, arguments: list[str], code: int, said: str) -> None:
    a, b = pair(tmp_path, weights(), weights())
    (tmp_path / "text.pt").write_text("nothing of the kind\n" * 100)
    (tmp_path / "cut.pt").write_bytes(a.read_bytes()[:700])
    names = {"a": a, "b": b, "text": tmp_path / "text.pt", "cut": tmp_path / "cut.pt"}
    done = call("inspect", "diff", *[argument.format(**names) for argument in arguments], "--exit-code")
    assert (done.code, done.out) == (code, "")
    assert said in done.err


def test_a_table_fits_a_terminal(tree: Path, call: Run) -> None:
    done = call("inspect", "diff", "base/d4/100", "base/d4/150", "--root", tree, "--values", "--format", "table")
    lines = done.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    heads = [line.split() for line in lines if line.startswith("   ")]
    assert heads == [["METADATA", "VALUE"], ["TENSOR", "MAX", "REL", "NORM", "TYPE"]]
    assert ["~", "step", "100", "->", "150"] in [line.split() for line in lines]
    assert done.err.splitlines()[-1].startswith("tensors: 0 equal, 28 changed; metadata: ")
    same = call("inspect", "diff", "base/d4/100", "base/d4/100", "--root", tree, "--format", "table")
    assert same.out == ""
    assert re.fullmatch(r"tensors: 28 equal; metadata: [1-9][0-9]* equal", same.err.splitlines()[-1])


def test_what_became_of_a_type(tmp_path: Path, call: Run) -> None:
    old = {"c": torch.ones(2), "s": torch.ones(6), "b": torch.ones(()), "x": torch.ones(1)}
    new = {"c": torch.ones(2).half(), "s": torch.ones(2, 3), "b": torch.ones(1).int(), "y": torch.ones(1)}
    lines = call("inspect", "diff", *pair(tmp_path, old, new), "--format", "table").out.splitlines()
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        ["-", "x", "float32 1"],
        ["+", "y", "float32 1"],
        ["~", "c", "float32 -> float16"],
        ["~", "s", "6 -> 2x3"],
        ["~", "b", "float32 scalar -> int32 1"],
    ]


def test_names_and_values_are_escaped(tmp_path: Path, call: Run) -> None:
    evil = "w\x1b[31m\n\t"
    a, b = pair(tmp_path, {"s": {"k": evil}, "m": {evil: torch.ones(1)}}, {"s": {"k": "x"}, "m": {}})
    for format in ("plain", "table"):
        done = call("inspect", "diff", a, b, "--format", format)
        assert "\x1b" not in done.out
        assert "\\x1b[31m" in done.out
    assert call("inspect", "diff", a, b, "--json").json["tensors"]["removed"][0]["name"] == f"m.{evil}"


# --- what it takes

SCRIPT = """
import re, sys
from ckpt_cli.app import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "numpy", "rich"} & set(sys.modules))
peak = int(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1])
print(code, peak // 1024, *heavy, file=sys.stderr)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of memory is read from /proc")
def test_comparison_needs_no_torch_and_little_memory(tmp_path: Path) -> None:
    big = torch.zeros(32 << 20)
    new = big.clone()
    new[-1] = 1
    a, b = pair(tmp_path, {"t": big, "u": big}, {"t": new, "u": big})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "inspect", "diff", str(a), str(b), "--format", "table"],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    code, peak, *heavy = done.stderr.splitlines()[-1].split()
    assert (code, heavy) == ("0", [])
    assert int(peak) < 64, "of 128 MiB a side"
    assert "tensors: 1 equal, 1 changed" in done.stderr


def test_real_files_in_other_containers(shared: Path, call: Run) -> None:
    """The zoo holds one state dict as a zip without CRC, a legacy file, by another protocol, and as safetensors."""
    zoo = shared / "real/zoo"
    for name in ("-nocrc.pt", "-legacy.pt", "-protocol4.pt", "-via-buffer.pt", ".safetensors"):
        done = call("inspect", "diff", zoo / "plain.pt", zoo / f"plain{name}", "--json", "--exit-code")
        noted = [{"key": "__metadata__.note", "value": "zoo"}] if name == ".safetensors" else []
        assert done.json["meta"] == {"added": noted, "removed": [], "changed": [], "equal": 0}
        assert (done.json["tensors"]["equal"], done.json["tensors"]["changed"]) == (5, [])
        assert done.code == len(noted)
    done = call("inspect", "diff", zoo / "plain.pt", zoo / "damaged-bitflip.pt")
    assert (done.code, "damaged-bitflip.pt: record data/" in done.err) == (1, True)
    assert call("inspect", "diff", zoo / "plain.pt", zoo / "hostile-exec.pt").code == 2


def test_metadata_of_a_file_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"w": torch.ones(1), "empty": {}, "list": [], "deep": {"x": [1, {"y": 2}]}})
    held = metadata_of(None, str(path), [read_tensors(str(path))])
    assert {key: held[key] for key in held if key.startswith("deep")} == {"deep.x.0": 1, "deep.x.1.y": 2}
