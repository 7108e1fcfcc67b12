"""Weights are the file's own bytes, as torch reads them, on the device and in the dtype that are asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_cli.errors import CkptError
from ckpt_cli.items import Item
from ckpt_cli.orders import Order, order_of, written
from ckpt_cli.rebuild import Devices, pick_device, target_dtype
from ckpt_cli.tensors import read_tensors
from ckpt_cli.weights import Weights
from tests.conftest import REPOSITORY, Done, Run
from tests.described import described
from tests.load_testing import level_of, read_logits, statuses
from tests.torch_files import swap_bytes

RUN = "base_checkpoints/d4"
MODEL = f"{RUN}/model_000150.pt"

# --- devices and dtypes


@pytest.mark.parametrize(
    ("word", "there", "expected"),
    [
        ("auto", Devices(0, False), "cpu"), ("auto", Devices(2, False), "cuda:0"), ("auto", Devices(0, True), "mps"),
        ("auto", Devices(1, True), "cuda:0"), ("cuda", Devices(2, False), "cuda:0"),
        ("meta", Devices(0, False), "meta"), ("cuda:1", Devices(2, False), "cuda:1"),
        ("mps", Devices(0, True), "mps"), ("cpu", Devices(2, True), "cpu"),
        ("cuda", Devices(0, True), None), ("cuda:2", Devices(2, False), None), ("mps", Devices(2, False), None),
        ("tpu", Devices(2, True), None), ("cuda:", Devices(2, True), None),
    ],
)  # fmt: skip
def test_the_device_that_a_word_means(word: str, there: Devices, expected: str | None) -> None:
    if expected:
        assert pick_device(word, there) == expected
    else:
        with pytest.raises(CkptError, match=r"no |last one"):
            pick_device(word, there)


def test_a_device_that_is_not_there(tried: Run, demo_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_cli.rebuild.devices", lambda: Devices(0, False))
    for word in ("cuda", "mps"):
        done = tried("base/d4", "--root", demo_tree, "--device", word, "--json")
        assert (done.code, done.out) == (2, "")
        assert f"no {word.upper()} device" in done.err


@pytest.mark.parametrize(
    ("stored", "device", "wanted", "expected"),
    [
        ("bfloat16", "cpu", None, "float32"), ("float16", "mps", None, "float32"),
        ("bfloat16", "cuda:0", None, "bfloat16"), ("float64", "cpu", None, "float64"),
        ("float64", "mps", None, "float32"), ("float32", "cpu", "bfloat16", "bfloat16"),
        ("int64", "cpu", "bfloat16", "int64"), ("bool", "mps", None, "bool"),
    ],
)  # fmt: skip
def test_the_dtype_in_which_a_weight_is_held(stored: str, device: str, wanted: str | None, expected: str) -> None:
    assert target_dtype(stored, device, wanted) == expected


def test_the_meta_device_builds_and_computes_nothing(tried: Run, demo_tree: Path) -> None:
    done = tried("base/d4", "--root", demo_tree, "--device", "meta", "--json", "--phase", "train")
    assert statuses(done.json) == ["pass", "pass", "pass", "skip", "pass", "skip"]
    assert done.json["logits"] is None


def test_another_dtype(tried: Run, demo_tree: Path, tmp_path: Path) -> None:
    paths = {dtype: tmp_path / f"{dtype}.safetensors" for dtype in ("fp32", "fp64")}
    for dtype, path in paths.items():
        done = tried("base/d4", "--root", demo_tree, "--dtype", dtype, "--json", "--save-logits", path)
        assert done.json["dtype"] == dtype.replace("fp", "float")
    one, two = (read_logits(path) for path in paths.values())
    assert one.dtype == two.dtype == torch.float32
    assert 0 < (one - two).abs().max() < 1e-4


def test_narrow_weights_are_widened_on_the_cpu(tried: Run, tree: Path, tmp_path: Path) -> None:
    """As nanochat saves them on CUDA: embeddings in bfloat16, the result that of widening all by hand."""
    wide = OrderedDict(torch.load(tree / MODEL, weights_only=True))
    narrow = OrderedDict((name, t.bfloat16() if "wte" in name else t) for name, t in wide.items())
    results: list[torch.Tensor] = []
    for state in (narrow, OrderedDict((name, tensor.float()) for name, tensor in narrow.items())):
        torch.save(state, tree / MODEL)
        path = tmp_path / f"{len(results)}.safetensors"
        done = tried(tree / MODEL, "--json", "--save-logits", path)
        assert (done.code, done.json["dtype"]) == (0, "float32")
        results.append(read_logits(path))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_without_a_checksum_integrity_is_not_claimed(tried: Run, tree: Path, call: Run) -> None:
    export = tree / RUN / "model_000150.safetensors"
    assert call("convert", tree / MODEL, "-o", export).code == 0
    done = tried(export, "--json")
    assert statuses(done.json)[:4] == ["pass", "pass", "pass", "pass"]  # the shards beside it have theirs
    loose = tree / "alone" / "m.safetensors"
    loose.parent.mkdir()
    shutil.copy(export, loose)
    done = tried(loose, "--json")
    assert done.code == 0, done.err
    assert statuses(done.json)[:4] == ["pass", "skip", "pass", "pass"]
    assert "no checksum" in level_of(done.json, "integrity")["detail"]
    assert done.json["family"] == "nanochat-window"


# --- weights


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "base": base, "turned": base.t(), "rows": base[1:3], "step": base[:, ::2], "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3), "half": torch.randn(5).half(), "brain": torch.randn(3, 2).bfloat16(),
        "whole": torch.arange(5), "flags": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64), "expanded": torch.ones(1).expand(4),
    }  # fmt: skip


def test_tensors_are_those_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "views.pt"
    torch.save(views(), path)
    with Weights() as weights:
        found = {info.name: weights.tensor(info) for info in read_tensors(str(path)).tensors}
    expected = torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride()), name
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert found["turned"].untyped_storage().data_ptr() == found["base"].untyped_storage().data_ptr()


def test_what_cannot_be_mapped_is_read(tmp_path: Path) -> None:
    """Compressed, and as a big-endian machine writes it."""
    path, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.arange(1000, dtype=torch.float32), "b": torch.arange(6).reshape(2, 3).t()}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    swapped = swap_bytes(path, tmp_path / "swapped.pt", {"0": 4, "1": 8})
    for other in (packed, swapped):
        with Weights() as weights:
            found = {info.name: weights.tensor(info) for info in read_tensors(str(other)).tensors}
        torch.testing.assert_close(found["a"], torch.arange(1000, dtype=torch.float32), rtol=0, atol=0)
        torch.testing.assert_close(found["b"], torch.arange(6).reshape(2, 3).t(), rtol=0, atol=0)


def test_what_is_written_to_a_weight_stays_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1 << 16)}, path)
    before = path.read_bytes()
    with Weights() as weights:
        tensor = weights.tensor(read_tensors(str(path)).tensors[0])
    tensor += 1
    assert path.read_bytes() == before
    assert tensor.sum() == 1 << 16


def test_weights_stay_mapped(tmp_path: Path) -> None:
    """A float32 model of 64 MB takes no such memory until it is used."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(16 << 20)}, path)
    script = (
        "import sys, torch\nfrom ckpt_cli.weights import Weights\nfrom ckpt_cli.tensors import read_tensors\n"
        "def held(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "info = read_tensors(sys.argv[1]).tensors[0]\nbefore = held()\nt = Weights().tensor(info)\nmid = held()\n"
        "t.sum()\nprint(mid - before, held() - before)"
    )
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc to ask")
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    mapped, used = map(int, done.stdout.split())
    assert mapped < 8e6 < 60e6 < used


def test_an_order_survives_its_journey(demo_tree: Path) -> None:
    from ckpt_cli.discover import discover

    for checkpoint in discover(str(demo_tree)).checkpoints:
        order = Order(checkpoint, None, {"a": float("inf")}, {"softcap": "20"}, tokens=[1, 2])
        again = order_of(written(order))
        assert again == order._replace(
            checkpoint=checkpoint._replace(metrics=again.checkpoint.metrics)  # type: ignore[union-attr]
        )


def test_help(ckpt: Run) -> None:
    done: Done = ckpt("load-test", "--help")
    assert done.code == 0
    for word in ("--phase", "--save-logits", "--set", "--model", "--timeout", "exit codes"):
        assert word in done.out


def test_a_tied_head_is_widened_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A head that is the embedding is one tensor of the file, and one of the memory."""
    from ckpt_cli import rebuild
    from ckpt_cli.described import describe
    from ckpt_cli.families import planned

    config = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "vocab_size": 16}
    shapes = planned(
        described({"transformer.h.0.attn.c_attn.weight": torch.ones(24, 8)}, config, meta={"config": config})
    ).shapes
    state = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    torch.save({"model_state_dict": state, "config": config, "step": 1}, tmp_path / "checkpoint_000001.bin")
    path = str(tmp_path / "checkpoint_000001.bin")
    blueprint = planned(describe([read_tensors(path)], None, path))
    loads: list[str] = []
    own = rebuild._loaded

    def counted(weights: Weights, item: Item, *given: Any) -> torch.Tensor:
        loads.append(item.name)
        return own(weights, item, *given)

    monkeypatch.setattr(rebuild, "_loaded", counted)
    module = rebuild.build(blueprint)
    assert len(loads) == len(shapes) - 1
    wte, head = module.get_parameter("transformer.wte.weight"), module.get_parameter("lm_head.weight")
    assert wte is head and wte.dtype == torch.float32
    torch.testing.assert_close(head.detach(), state["lm_head.weight"].float(), rtol=0, atol=0)
