"""Maps between namings: against torch's own views, real trainers' files, and what transformers computes from them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckpt_cli import mapping, maps
from ckpt_cli.contents import paths_of, read_files
from ckpt_cli.discover import discover
from ckpt_cli.errors import CkptError
from ckpt_cli.formats import Files
from ckpt_cli.items import Mapped
from ckpt_cli.maps import _params, _views, gpt2, nanochat
from ckpt_cli.revisions import REVISIONS, revision_of
from ckpt_cli.shapes import contiguous_stride
from ckpt_cli.tensor_file import Storage, TensorInfo
from ckpt_cli.tensors import blocks, digest, read_tensors
from tests.conftest import REPOSITORY
from tests.torch_files import plain

State = dict[str, torch.Tensor]
Digests = dict[str, tuple[str, tuple[int, ...], str]]


def mapped(paths: Path | list[Path], target: str, config: Path | None = None) -> Mapped:
    """The plan for loose files."""
    files = [read_tensors(str(path)) for path in (paths if isinstance(paths, list) else [paths])]
    return mapping.plan(files, None, target, str(config) if config else None)


def state_of(plan: Mapped) -> State:
    """What would be written, as torch tensors."""
    with Files() as files:
        return {
            item.name: torch.frombuffer(
                bytearray(b"".join(map(bytes, blocks(files, item.tensor))) or b"\0" * 8),
                dtype=getattr(torch, item.dtype),
            )[: math.prod(item.shape)].reshape(item.shape)
            for item in plan.items
        }


def digests_of(plan: Mapped) -> Digests:
    with Files() as files:
        return {item.name: (item.dtype, item.shape, digest(files, item.tensor)) for item in plan.items}


def digests_in(*paths: Path) -> Digests:
    with Files() as files:
        return {
            tensor.name: (tensor.dtype, tensor.shape, digest(files, tensor))
            for path in paths
            for tensor in read_tensors(str(path)).tensors
        }


def told(expected: dict[str, Any]) -> Digests:
    return {name: (v["dtype"], tuple(v["shape"]), v["sha256"]) for name, v in expected.items()}


def same(one: State, other: State) -> bool:
    return {n: (t.dtype, t.shape, plain(t)) for n, t in one.items()} == {
        n: (t.dtype, t.shape, plain(t)) for n, t in other.items()
    }


def written(path: Path, value: Any) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(value))
    else:
        torch.save(value, path)
    return path


def refused(path: Path, target: str, config: Path | None = None) -> str:
    with pytest.raises(CkptError) as caught:
        mapped(path, target, config)
    assert caught.value.code == 2
    assert not caught.value.message.endswith(".")
    return caught.value.message + (caught.value.hint or "")


# --- views


def to_pairs(w: torch.Tensor, heads: int) -> torch.Tensor:
    """facts: w.view(H, 2, d//2, D).transpose(1, 2).reshape(H*d, D)"""
    half = w.shape[0] // heads // 2
    return w.view(heads, 2, half, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def to_halves(w: torch.Tensor, heads: int) -> torch.Tensor:
    half = w.shape[0] // heads // 2
    return w.view(heads, half, 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def stored(path: Path, w: torch.Tensor) -> TensorInfo:
    path.write_bytes(plain(w))
    place = Storage("0", str(path), 0, w.numel() * w.element_size())
    shape = tuple(w.shape)
    return TensorInfo("w", "int32", shape, contiguous_stride(shape), 0, 4, place)


def in_pieces(tensor: TensorInfo, cuts: list[list[int]]) -> TensorInfo:
    """The tensor cut at the given rows and columns."""
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for size, at in zip(tensor.shape, cuts):
        edges = sorted({0, size, *(cut for cut in at if cut < size)})
        boxes = [((*b, lo), (*n, hi - lo)) for b, n in boxes for lo, hi in itertools.pairwise(edges)]
    pieces = tuple(
        (
            begin,
            tensor._replace(shape=size, offset=sum(b * s for b, s in zip(begin, tensor.stride))),
        )
        for begin, size in boxes
    )
    return tensor._replace(storage=None, form="chunked", pieces=pieces)


def read(tensor: TensorInfo) -> bytes:
    with Files() as files:
        return b"".join(map(bytes, blocks(files, tensor)))


@settings(max_examples=150, deadline=None)
@given(
    heads=st.integers(1, 5),
    half=st.integers(1, 5),
    width=st.integers(0, 4),
    cuts=st.lists(st.lists(st.integers(1, 49))),
)
def test_views_are_torch_s(
    heads: int, half: int, width: int, cuts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whole and in pieces cut anywhere; a vector where the width is 0."""
    shape = (heads * 2 * half, width) if width else (heads * 2 * half,)
    w = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
    whole = stored(tmp_path_factory.getbasetemp() / "views", w)
    rows = shape[0]
    for tensor in (whole, in_pieces(whole, [*cuts, [], []][: len(shape)])):
        assert read(tensor) == plain(w)
        assert read(_views.reordered(tensor, heads, "halves")) == plain(to_pairs(w, heads))
        assert read(_views.reordered(tensor, heads, "pairs")) == plain(to_halves(w, heads))
        assert read(_views.rows(tensor, rows // 3, rows // 2)) == plain(w[rows // 3 : rows // 3 + rows // 2])
        turned = _views.transposed(tensor)
        assert (turned.shape, read(turned)) == (shape[::-1], plain(w.T if width else w))
        both = _views.end_to_end([tensor, _views.rows(whole, 1, 1), tensor])
        assert (both.shape[0], read(both)) == (2 * rows + 1, plain(torch.cat([w, w[1:2], w])))


def test_zeros_have_bytes() -> None:
    assert read(_views.zeros("float32", (1000, 700), 4)) == bytes(2_800_000)
    assert read(_views.zeros("float32", (0,), 4)) == b""


# --- torchtune, Hugging Face, Meta


def decoder(
    heads: int, keys: int, size: int, width: int, layers: int = 2, words: int = 11, dtype: torch.dtype = torch.bfloat16
) -> State:
    """A llama by torchtune's names, of fixed arbitrary numbers."""
    inner = 3 * size + 1
    chance = torch.Generator().manual_seed(heads + 7 * keys + 49 * size)
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (words, width)}
    for n in range(layers):
        shapes |= {
            f"layers.{n}.attn.q_proj.weight": (heads * size, width),
            f"layers.{n}.attn.k_proj.weight": (keys * size, width),
            f"layers.{n}.attn.v_proj.weight": (keys * size, width),
            f"layers.{n}.attn.output_proj.weight": (width, heads * size),
            f"layers.{n}.mlp.w1.weight": (inner, width),
            f"layers.{n}.mlp.w2.weight": (width, inner),
            f"layers.{n}.mlp.w3.weight": (inner, width),
            f"layers.{n}.sa_norm.scale": (width,),
            f"layers.{n}.mlp_norm.scale": (width,),
        }
    shapes |= {"norm.scale": (width,), "output.weight": (words, width)}
    return {name: torch.randn(shape, generator=chance).to(dtype) for name, shape in shapes.items()}


def config_for(heads: int, keys: int, size: int, width: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "head_dim": size,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        **more,
    }


# The table of facts/formats.md 1.4, by hand: torchtune, Hugging Face, Meta.
NAMES = """
tok_embeddings.weight model.embed_tokens.weight tok_embeddings.weight
norm.scale model.norm.weight norm.weight
output.weight lm_head.weight output.weight
layers.1.attn.q_proj.weight model.layers.1.self_attn.q_proj.weight layers.1.attention.wq.weight
layers.1.attn.k_proj.weight model.layers.1.self_attn.k_proj.weight layers.1.attention.wk.weight
layers.1.attn.v_proj.weight model.layers.1.self_attn.v_proj.weight layers.1.attention.wv.weight
layers.1.attn.output_proj.weight model.layers.1.self_attn.o_proj.weight layers.1.attention.wo.weight
layers.1.mlp.w1.weight model.layers.1.mlp.gate_proj.weight layers.1.feed_forward.w1.weight
layers.1.mlp.w3.weight model.layers.1.mlp.up_proj.weight layers.1.feed_forward.w3.weight
layers.1.mlp.w2.weight model.layers.1.mlp.down_proj.weight layers.1.feed_forward.w2.weight
layers.1.sa_norm.scale model.layers.1.input_layernorm.weight layers.1.attention_norm.weight
layers.1.mlp_norm.scale model.layers.1.post_attention_layernorm.weight layers.1.ffn_norm.weight
"""


def by_hand(state: State, column: int, heads: int, keys: int) -> State:
    """A torchtune state dict in another column of the table."""
    rows = [line.split() for line in NAMES.split("\n") if line]
    names = {row[0]: row[column] for row in rows}
    out = {}
    for name, tensor in state.items():
        new = names.get(name) or names[name.replace("layers.0.", "layers.1.")].replace("layers.1.", "layers.0.")
        if column == 1 and ".q_proj" in name:
            tensor = to_halves(tensor, heads)
        if column == 1 and ".k_proj" in name:
            tensor = to_halves(tensor, keys)
        out[new] = tensor
    return out


@settings(max_examples=40, deadline=None)
@given(keys=st.integers(1, 3), group=st.integers(1, 3), half=st.integers(1, 4), wider=st.integers(0, 3))
def test_any_heads_round_trip_bit_for_bit(
    keys: int, group: int, half: int, wider: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """torchtune -> hf -> torchtune, Meta -> hf -> Meta, with each step as torch makes it by hand."""
    path = tmp_path_factory.getbasetemp() / "heads"
    path.mkdir(exist_ok=True)
    heads, size = keys * group, 2 * half
    # Meta has no heads but of the width's own parts.
    for width in {heads * size, heads * size + wider}:
        state = decoder(heads, keys, size, width)
        config = written(path / "given.json", config_for(heads, keys, size, width))
        tune = written(path / "tune.pt", state)
        there = mapped(tune, "hf", config)
        hf = by_hand(state, 1, heads, keys)
        assert same(state_of(there), hf)
        save_file({name: tensor.contiguous() for name, tensor in state_of(there).items()}, path / "hf.safetensors")
        back = mapped(path / "hf.safetensors", "torchtune", config)
        assert same(state_of(back), state)
        assert back.config is None
        assert dict(back.renamed)["model.norm.weight"] == "norm.scale"
        if width != heads * size:
            assert "head_dim" in refused(path / "hf.safetensors", "meta", config)
            continue
        to_meta = mapped(path / "hf.safetensors", "meta", config)
        meta = written(path / "meta.pth", state_of(to_meta))
        assert same(state_of(to_meta), by_hand(state, 2, heads, keys))
        params = written(path / "given_params.json", {**(to_meta.config or {}), "use_scaled_rope": False})
        assert same(state_of(mapped(meta, "hf", params)), hf)
        assert same(state_of(mapped(meta, "torchtune")), state)
        assert same(state_of(mapped(tune, "meta", params)), state_of(to_meta))


@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 10_000), intermediate=st.integers(1, 60_000))
@example(width=319, intermediate=1955)
def test_feed_forward_is_what_meta_s_code_comes_to(width: int, intermediate: int) -> None:
    multiple, factor = _params.feed_forward(width, intermediate)
    hidden = int(2 * (4 * width) / 3)
    if factor is not None:
        hidden = int(factor * hidden)
    assert multiple * ((hidden + multiple - 1) // multiple) == intermediate


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
def test_families_as_torchtune_converts_them(shared: Path, family: str) -> None:
    """Digest for digest of what torchtune 0.6.1 made, in every direction there is."""
    path = shared / "real/families" / family
    expected = json.loads((path / "expected.json").read_text())
    forms = {
        "torchtune": (path / "tune.pt", told(expected["tune"])),
        "hf": (path / "model.safetensors", told(expected["files"]["model.safetensors"]["tensors"])),
    }
    if "meta" in expected:
        forms["meta"] = (path / "meta.pth", told(expected["meta"]))
    for source, _ in forms.values():
        for target, (_, digests) in forms.items():
            plan = mapped(source, target, path / "config.json")
            assert digests_of(plan) == digests, (source, target)
            assert [name for name, *_ in plan.items] == list(dict.fromkeys(name for name, *_ in plan.items))
            if target == "hf":
                assert plan.config == json.loads((path / "config.json").read_text())
    if family == "phi3":
        assert "phi3" in refused(path / "tune.pt", "meta", path / "config.json")


@pytest.mark.parametrize("version", ["0.1.1", "0.6.1"])
def test_torchtune_runs_in_three_namings(shared: Path, version: str) -> None:
    """The same run was written by each of torchtune's checkpointers: each file becomes the others."""
    real, config = shared / "real/torchtune" / version, shared / "real/hf/llama-f32/single-bin/config.json"
    for epoch in range(3):
        one = f"epoch_{epoch}/model-00001-of-00001.bin"
        forms = {
            "hf": sorted((real / "full-hf").glob(f"hf_model_*_{epoch}.pt")),
            "torchtune": [real / "full-tune" / f"torchtune_model_{epoch}.pt"],
            "meta": [real / "full-meta" / f"meta_model_{epoch}.pt"],
        }
        if version == "0.6.1":
            forms = {
                "hf": sorted((real / f"full-hf/epoch_{epoch}").glob("model-*.safetensors")),
                "torchtune": [real / "full-tune" / one],
                "meta": [real / "full-meta" / one],
            }
        assert len(forms["hf"]) == 3
        for source in forms.values():
            for target, files in forms.items():
                assert digests_of(mapped(source, target, config)) == digests_in(*files)


def test_a_distributed_checkpoint_of_torchtune(shared: Path) -> None:
    """In pieces that each lie in an archive of their own, with the optimizer beside."""
    real, config = shared / "real/torchtune/0.6.1", shared / "real/hf/llama-f32/single-bin/config.json"
    plan = mapped(real / "distributed/dist_epoch_1/.metadata", "hf", config)
    assert digests_of(plan) == digests_in(*(real / "full-hf/epoch_1").glob("model-*.safetensors"))
    assert ("optimizer.state.0.step", "it is no weight of the model") in plan.dropped


def test_meta_with_its_own_params(shared: Path) -> None:
    """params.json beside the file is enough; what no other naming has is dropped by name."""
    real = shared / "real/meta/meta-llama-f32"
    checkpoint = next(c for c in discover(str(real)).checkpoints if c.layout == "meta")
    files = read_files(paths_of(None, checkpoint, "model"))
    plan = mapping.plan(files, checkpoint, "hf", None)
    hf = shared / "real/hf/llama-f32/single-safetensors"
    assert digests_of(plan) == digests_in(hf / "model.safetensors")
    assert plan.dropped == (("rope.freqs", "it is computed from the configuration"),)
    theirs = json.loads((hf / "config.json").read_text())
    assert plan.config is not None
    ours = {k: v for k, v in plan.config.items() if k not in ("bos_token_id", "eos_token_id", "rope_theta")}
    assert ours.items() <= theirs.items()
    assert "max_position_embeddings" in plan.notes[0]
    as_is = mapping.plan(files, checkpoint, "meta", None)
    assert as_is.config == json.loads((real / "params.json").read_text())
    assert digests_of(as_is) == digests_in(real / "consolidated.00.pth")


def test_tied_embeddings_both_ways(tmp_path: Path) -> None:
    """LLAMA3_2: no head in torchtune and Hugging Face, the embedding again in Meta; told by flag, or by the bytes."""
    state = decoder(4, 2, 4, 16)
    state["output.weight"] = state["tok_embeddings.weight"]
    config = written(tmp_path / "c.json", config_for(4, 2, 4, 16, tie_word_embeddings=True))
    untied = written(tmp_path / "u.json", config_for(4, 2, 4, 16))
    meta = written(tmp_path / "meta.pth", by_hand(state, 2, 4, 2))
    params = written(
        tmp_path / "p.json", {"dim": 16, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "rope_theta": 5e5}
    )
    headless = {name: tensor for name, tensor in state.items() if name != "output.weight"}
    plan = mapped(meta, "torchtune")
    assert same(state_of(plan), headless)
    assert plan.tied == (("output.weight", "tok_embeddings.weight"),)
    plan = mapped(meta, "hf", params)
    assert plan.config is not None and plan.config["tie_word_embeddings"] is True
    assert plan.config["rope_parameters"]["rope_theta"] == 500000.0
    hf = state_of(plan)
    assert "lm_head.weight" not in hf
    save_file(hf, tmp_path / "hf.safetensors")
    assert same(state_of(mapped(tmp_path / "hf.safetensors", "torchtune", config)), headless)
    assert same(state_of(mapped(tmp_path / "hf.safetensors", "meta", config)), by_hand(state, 2, 4, 2))
    tune = written(tmp_path / "tune.pt", headless)
    plan = mapped(tune, "meta", config)
    assert same(state_of(plan), by_hand(state, 2, 4, 2))
    views = {item.name: item.tensor for item in plan.items}
    assert views["output.weight"] == views["tok_embeddings.weight"]
    assert same(state_of(mapped(tune, "hf", config)), hf)
    # A head that is missing although nothing ties it.
    assert "tie_word_embeddings" in refused(tmp_path / "hf.safetensors", "torchtune", untied)
    # qwen3 writes the embedding a second time; two heads that differ are both kept, whatever the flag says.
    copied = {**hf, "lm_head.weight": hf["model.embed_tokens.weight"].clone()}
    plan = mapped(written(tmp_path / "copied.bin", copied), "torchtune", config)
    assert same(state_of(plan), headless) and plan.tied == (("lm_head.weight", "tok_embeddings.weight"),)
    other = {**headless, "output.weight": headless["tok_embeddings.weight"] + 1}
    plan = mapped(written(tmp_path / "other.pt", other), "hf", config)
    assert plan.config is not None and plan.config["tie_word_embeddings"] is False
    assert torch.equal(state_of(plan)["lm_head.weight"], other["output.weight"])
    assert plan.notes


def test_qwen3_gemma2_and_phi3_with_groups(tmp_path: Path) -> None:
    """The variants that no real sample shows, by hand: names, what is permuted and what is not, sizes of q, k and v."""
    heads, keys, size, width = 6, 2, 4, 20
    state = decoder(heads, keys, size, width)
    llama = by_hand(state, 1, heads, keys)

    qwen = dict(state)
    expected = {n: state[n.replace("model.", "").replace("self_attn", "attn")] if "proj" in n and (
        ".q_" in n or ".k_" in n) else t for n, t in llama.items()}  # fmt: skip
    for n in range(2):
        for one in "qk":
            norm = torch.randn(size).bfloat16()
            qwen[f"layers.{n}.attn.{one}_norm.scale"] = norm
            expected[f"model.layers.{n}.self_attn.{one}_norm.weight"] = norm
    config = written(tmp_path / "q.json", config_for(heads, keys, size, width, model_type="qwen3"))
    assert same(state_of(mapped(written(tmp_path / "q.pt", qwen), "hf", config)), expected)
    assert same(state_of(mapped(written(tmp_path / "q.bin", expected), "torchtune", config)), qwen)

    gemma = {n: t for n, t in state.items() if n not in ("output.weight", "norm.scale")}
    expected = {n: t for n, t in llama.items() if n != "lm_head.weight" and "post_attention" not in n}
    gemma["norm.rms_norm.scale"] = state["norm.scale"]
    for n in range(2):
        expected[f"model.layers.{n}.pre_feedforward_layernorm.weight"] = state[f"layers.{n}.mlp_norm.scale"]
        for tune, hf in (("sa_scale", "post_attention"), ("mlp_scale", "post_feedforward")):
            gemma[f"layers.{n}.{tune}.scale"] = torch.randn(width).bfloat16()
            expected[f"model.layers.{n}.{hf}_layernorm.weight"] = gemma[f"layers.{n}.{tune}.scale"]
    config = written(tmp_path / "g.json", config_for(heads, keys, size, width, model_type="gemma2"))
    assert same(state_of(mapped(written(tmp_path / "g.pt", gemma), "hf", config)), expected)
    assert same(state_of(mapped(written(tmp_path / "g.bin", expected), "torchtune", config)), gemma)

    expected = {n: t for n, t in llama.items() if not any(p in n for p in ("q_", "k_", "v_", "gate_", "up_"))}
    for n in range(2):
        at = f"layers.{n}."
        expected[f"model.{at}self_attn.qkv_proj.weight"] = torch.cat(
            [state[f"{at}attn.{x}_proj.weight"] for x in "qkv"]
        )
        expected[f"model.{at}mlp.gate_up_proj.weight"] = torch.cat([state[f"{at}mlp.w{x}.weight"] for x in "13"])
    config = written(tmp_path / "p.json", config_for(heads, keys, size, width, model_type="phi3"))
    plan = mapped(written(tmp_path / "p.pt", state), "hf", config)
    assert same(state_of(plan), expected)
    assert [old for old, new in plan.renamed if new == "model.layers.1.self_attn.qkv_proj.weight"] == [
        f"layers.1.attn.{x}_proj.weight" for x in "qkv"
    ]
    assert same(state_of(mapped(written(tmp_path / "p.bin", expected), "torchtune", config)), state)
    wrong = written(tmp_path / "w.json", config_for(heads, 3, size, width, model_type="phi3"))
    assert "qkv_proj" in refused(tmp_path / "p.bin", "torchtune", wrong)


def test_a_model_that_judges(tmp_path: Path) -> None:
    state = decoder(2, 2, 4, 8)
    state["output.weight"] = torch.randn(1, 8).bfloat16()
    config = written(
        tmp_path / "c.json",
        config_for(2, 2, 4, 8, architectures=["LlamaForSequenceClassification"], model_type="llama"),
    )
    hf = state_of(mapped(written(tmp_path / "t.pt", state), "hf", config))
    assert torch.equal(hf["score.weight"], state["output.weight"]) and "lm_head.weight" not in hf
    assert same(state_of(mapped(written(tmp_path / "h.bin", hf), "torchtune", config)), state)


def test_head_counts_are_never_guessed(tmp_path: Path) -> None:
    """They are not in the shapes: each missing key is named, a wrong count is refused, a contradiction too."""
    state = decoder(4, 2, 4, 16)
    tune = written(tmp_path / "t.pt", state)
    said = refused(tune, "hf")
    assert all(
        k in said for k in ("model_type", "num_attention_heads", "num_key_value_heads", "hidden_size", "--config")
    )
    full = config_for(4, 2, 4, 16)
    for keys in (["num_attention_heads"], ["num_key_value_heads"], ["hidden_size", "head_dim"], ["model_type"]):
        less = written(tmp_path / "c.json", {k: v for k, v in full.items() if k not in keys})
        assert keys[0] in refused(tune, "hf", less), keys
    for key, value in (("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 8), ("hidden_size", 32),
                       ("vocab_size", 12), ("num_hidden_layers", 3), ("num_attention_heads", True), ("head_dim", 0),
                       ("num_attention_heads", "4"), ("model_type", "bloom"), ("head_dim", 3)):  # fmt: skip
        refused(tune, "hf", written(tmp_path / "c.json", {**full, key: value}))
    for broken in ("[]", "{", '"x"'):
        (tmp_path / "c.json").write_text(broken)
        refused(tune, "hf", tmp_path / "c.json")
    meta = written(tmp_path / "m.pth", by_hand(state, 2, 4, 2))
    params = {"dim": 16, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "rope_theta": 1e4}
    for key in params:
        less = written(tmp_path / "c.json", {k: v for k, v in params.items() if k != key})
        assert key in refused(meta, "hf", less)
    scaled = written(tmp_path / "c.json", {**params, "use_scaled_rope": True})
    assert "use_scaled_rope" in refused(meta, "hf", scaled)


def test_a_configuration_beside_the_file_and_a_given_one(tmp_path: Path) -> None:
    """What lies in the same folder is taken, and that is said; --config adds to a checkpoint's own, never differs."""
    tune = written(tmp_path / "model.pt", decoder(4, 2, 4, 16))
    written(tmp_path / "config.json", config_for(4, 2, 4, 16))
    assert str(tmp_path / "config.json") in mapped(tune, "hf").notes[0]
    run = tmp_path / "epoch_0"
    run.mkdir()
    shutil.copy(tune, run / "model-00001-of-00001.bin")
    written(run / "config.json", {"model_type": "llama", "hidden_size": 16, "num_key_value_heads": 2})
    checkpoint = next(iter(discover(str(tmp_path)).checkpoints), None)
    assert checkpoint is not None and checkpoint.having("config")
    files = [read_tensors(str(run / "model-00001-of-00001.bin"))]
    more = written(tmp_path / "more.json", {"num_attention_heads": 4})
    plan = mapping.plan(files, checkpoint, "hf", str(more))
    assert plan.config is not None and plan.config["num_attention_heads"] == 4
    written(more, {"num_attention_heads": 4, "num_key_value_heads": 4})
    with pytest.raises(CkptError, match="num_key_value_heads"):
        mapping.plan(files, checkpoint, "hf", str(more))
    with pytest.raises(CkptError, match=r"norm\.scale|tok_embeddings"):
        mapping.plan([*files, *files], checkpoint, "hf", None)
    # Two configurations that would order the rows differently.
    params = {"dim": 16, "n_heads": 8, "norm_eps": 1e-5, "rope_theta": 1e4}
    written(run / "params.json", params)
    written(more, {"num_attention_heads": 4})
    checkpoint = next(iter(discover(str(tmp_path)).checkpoints))
    with pytest.raises(CkptError, match="n_heads 8"):
        mapping.plan(files, checkpoint, "hf", str(more))
    # One key of a params.json that lacks it.
    (run / "config.json").unlink()
    written(
        run / "params.json", {k: v for k, v in params.items() if k != "rope_theta"} | {"n_heads": 4, "n_kv_heads": 2}
    )
    written(more, {"rope_theta": 7.0})
    checkpoint = next(iter(discover(str(tmp_path)).checkpoints))
    plan = mapping.plan(files, checkpoint, "hf", str(more))
    assert plan.config is not None and plan.config["rope_parameters"]["rope_theta"] == 7.0


def test_what_no_map_knows_is_named(tmp_path: Path) -> None:
    config = written(tmp_path / "c.json", config_for(4, 2, 4, 16))
    state = decoder(4, 2, 4, 16)
    path = tmp_path / "t.pt"
    for name in ("layers.0.attn.q_proj.bias", "layers.0.moe.gate.weight", "extra"):
        assert name in refused(written(path, {**state, name: torch.ones(16)}), "hf", config)
    for name in ("layers.1.mlp.w3.weight", "layers.0.sa_norm.scale", "norm.scale", "tok_embeddings.weight"):
        assert name in refused(written(path, {n: t for n, t in state.items() if n != name}), "hf", config)
    assert "'a'" in refused(written(path, {"a": torch.ones(2)}), "hf")
    written(path, {"model": state, "thing": torch.ones(3)})
    assert "'thing'" in refused(path, "hf", config)
    nested = mapped(
        written(path, {"model": state, "optimizer": {"w": torch.ones(3)}, "loss": torch.ones(())}), "hf", config
    )
    assert [name for name, _ in nested.dropped] == ["optimizer.w", "loss"]
    assert len(nested.items) == len(state)
    odd = {**state, "norm.scale": torch.ones(16).to_sparse()}
    assert "norm.scale" in refused(written(path, odd), "hf", config)
    written(path, {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]})
    assert "no weights" in refused(path, "hf", config)
    hf = by_hand(state, 1, 4, 2)
    old = {**hf, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    plan = mapped(written(path, old), "torchtune", config)
    assert same(state_of(plan), state)
    assert [name for name, _ in plan.dropped] == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    for key, value in (
        ("sliding_window", 8),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "linear", "factor": 2}),
    ):
        given = written(tmp_path / "d.json", {**config_for(4, 2, 4, 16), key: value})
        assert key.split("_")[0] in refused(written(path, hf), "meta", given)


def test_the_same_naming_stays_as_it_is(shared: Path) -> None:
    """Tied tensors of a .bin once; the configuration goes along; a folder for transformers needs one."""
    real = shared / "real/hf/gpt2/single-bin"
    plan = mapped(real / "pytorch_model.bin", "hf", real / "config.json")
    assert plan.config == json.loads((real / "config.json").read_text())
    there = digests_in(real / "pytorch_model.bin")
    assert there.pop(plan.tied[0][0]) == there[plan.tied[0][1]]
    assert digests_of(plan) == there


# --- GPT-2


def trainer_state(bias: bool = True, tied: bool = True, masks: bool = False) -> State:
    """Two layers by the trainers' names, of width 8."""
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (10, 8), "transformer.wpe.weight": (6, 8)}
    for n in range(2):
        for name, (shape, _) in gpt2._LAYER.items():
            shapes[f"transformer.h.{n}.{name}"] = tuple(8 * part for part in shape)
    shapes |= {"transformer.ln_f.weight": (8,), "transformer.ln_f.bias": (8,), "lm_head.weight": (10, 8)}
    chance = torch.Generator().manual_seed(3)
    state = {n: torch.randn(s, generator=chance) for n, s in shapes.items() if bias or not n.endswith(".bias")}
    if tied:
        state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    if masks:
        state |= {f"transformer.h.{n}.attn.bias": torch.ones(6, 6).tril().view(1, 1, 6, 6) for n in range(2)}
    return state


SETTINGS = {"block_size": 6, "vocab_size": 10, "n_layer": 2, "n_head": 2, "n_embd": 8}


def test_gpt2_by_hand(tmp_path: Path) -> None:
    """Names, transposes, masks, zeros for biases that are not there, a head that is tied and one that is not."""
    for bias in (True, False):
        for tied in (True, False):
            state = trainer_state(bias, tied, masks=True)
            wrapped = OrderedDict((f"_orig_mod.{name}", tensor) for name, tensor in state.items())
            path = tmp_path / "ckpt.pt"
            torch.save({"model": wrapped, "model_args": {**SETTINGS, "bias": bias}, "iter_num": 3}, path)
            plan = mapped(path, "hf")
            found = state_of(plan)
            expected = {n: t for n, t in state.items() if t.dim() != 4 and not (tied and n == "lm_head.weight")}
            for name in expected:
                if expected[name].dim() == 2 and ".h." in name:
                    expected[name] = expected[name].T.contiguous()
            if not bias:
                like = trainer_state()
                expected |= {n: torch.zeros_like(t) for n, t in like.items() if n.endswith(".bias")}
            assert same(found, expected)
            assert [name for name, _ in plan.dropped] == [
                f"model._orig_mod.transformer.h.{n}.attn.bias" for n in range(2)
            ]
            assert plan.tied == ((("model._orig_mod.lm_head.weight", "transformer.wte.weight"),) if tied else ())
            assert plan.config is not None
            assert plan.config["tie_word_embeddings"] is tied
            assert (plan.config["n_positions"], plan.config["n_ctx"], plan.config["activation_function"]) == (
                6,
                6,
                "gelu",
            )


def test_which_trainer_is_never_guessed(tmp_path: Path) -> None:
    """The three compute differently: a bare state dict, or the keys of none of them, is refused with what was seen."""
    state = trainer_state()
    path = tmp_path / "x.pt"
    for unknown in (
        state,
        {"model": state},
        {"model_state_dict": state, "epoch": 3},
        {"model": state, "config": {"a": 1}},
    ):
        assert "nanoGPT" in refused(written(path, unknown), "hf")
    assert "'epoch'" in refused(written(path, {"model_state_dict": state, "epoch": 3}), "hf")
    written(path, {"model_state_dict": state, "config": SETTINGS})
    plan = mapped(path, "hf")
    assert plan.config is not None and plan.config["activation_function"] == "gelu_new"
    assert refused(path, "torchtune") and refused(path, "meta")
    for key, value in (
        ("block_size", 7),
        ("vocab_size", 9),
        ("n_layer", 1),
        ("n_layer", 3),
        ("n_head", 3),
        ("n_embd", 16),
    ):
        refused(written(path, {"model_state_dict": state, "config": {**SETTINGS, key: value}}), "hf")
    less = {key: value for key, value in SETTINGS.items() if key != "n_head"}
    assert "n_head" in refused(written(path, {"model_state_dict": state, "config": less}), "hf")
    given = written(tmp_path / "c.json", {"n_head": 2})
    assert mapped(path, "hf", given).config == plan.config


def test_gpt2_beside_nano_gpt_s_own_export(shared: Path) -> None:
    """The same weights; it keeps masks and head, and lacks n_positions."""
    real = shared / "real/gpt2/nano_gpt"
    plan = mapped(real / "checkpoints/checkpoint_000020.bin", "hf")
    theirs = digests_in(real / "export_000020/model.safetensors")
    ours = digests_of(plan)
    assert ours.items() <= theirs.items()
    assert set(theirs) - set(ours) == {"lm_head.weight", *(f"transformer.h.{n}.attn.bias" for n in range(2))}
    their_config = json.loads((real / "export_000020/config.json").read_text())
    assert plan.config is not None and "n_positions" not in their_config
    common = set(plan.config) & set(their_config)
    assert {k: plan.config[k] for k in common} == {k: their_config[k] for k in common}
    assert sum(name.startswith("optimizer_state_dict.") for name, _ in plan.dropped) == 84


# --- nanochat


def chat_state(vocabulary: int = 70, padded: int = 128) -> tuple[State, dict[str, Any]]:
    width, layers = 16, 2
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (padded, width)}
    for n in range(layers):
        at = f"transformer.h.{n}."
        shapes |= {
            f"{at}attn.c_q.weight": (16, width), f"{at}attn.c_k.weight": (8, width), f"{at}attn.c_v.weight": (8, width),
            f"{at}attn.c_proj.weight": (16, width), f"{at}mlp.c_fc.weight": (64, width),
            f"{at}mlp.c_proj.weight": (width, 64),
        }  # fmt: skip
    shapes["lm_head.weight"] = (padded, width)
    chance = torch.Generator().manual_seed(5)
    state = {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    state["transformer.wte.weight"] = state["transformer.wte.weight"].bfloat16()
    meta = {
        "sequence_len": 32,
        "vocab_size": vocabulary,
        "n_layer": layers,
        "n_head": 2,
        "n_kv_head": 1,
        "n_embd": width,
    }
    return state, {"step": 5, "model_config": meta}


def test_nanochat_v1_by_hand(tmp_path: Path) -> None:
    """Names, the padding of the vocabulary cut off, and a configuration without a default of transformers in it."""
    state, meta = chat_state()
    path, config = written(tmp_path / "m.pt", {f"_orig_mod.{n}": t for n, t in state.items()}), tmp_path / "meta.json"
    plan = mapped(path, "hf", written(config, meta))
    expected = {
        "model.embed_tokens.weight": state["transformer.wte.weight"][:70],
        "lm_head.weight": state["lm_head.weight"][:70],
    }
    names = {"attn.c_q": "self_attn.q_proj", "attn.c_k": "self_attn.k_proj", "attn.c_v": "self_attn.v_proj",
             "attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    for n in range(2):
        for old, new in names.items():
            expected[f"model.layers.{n}.{new}.weight"] = state[f"transformer.h.{n}.{old}.weight"]
    assert same(state_of(plan), expected)
    assert plan.config is not None
    assert plan.config["intermediate_size"] == 64 and plan.config["final_logit_softcapping"] == 15.0
    assert plan.config["hidden_act"] == "relu2" and plan.config["vocab_size"] == 70
    assert plan.config["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    assert all(key in refused(path, "hf") for key in meta["model_config"])
    assert mapped(path, "hf", written(config, meta["model_config"])).config == plan.config
    for key, value in (("vocab_size", 60), ("vocab_size", 129), ("n_layer", 3), ("n_embd", 32), ("n_kv_head", 2)):
        refused(path, "hf", written(config, {"model_config": {**meta["model_config"], key: value}}))
    # What the metadata lacks, and nothing that it has, comes from --config.
    less = {"model_config": {k: v for k, v in meta["model_config"].items() if k != "n_kv_head"}}
    written(path.with_name("meta_000005.json"), less)
    torch.save(state, path.with_name("model_000005.pt"))
    checkpoint = next(c for c in discover(str(tmp_path)).checkpoints if c.layout == "nanochat")
    files = read_files(paths_of(None, checkpoint, "model"))
    for supplied in ({"n_kv_head": 1}, {"model_config": {"n_kv_head": 1}}):
        assert mapping.plan(files, checkpoint, "hf", str(written(config, supplied))).config == plan.config
    for supplied in ({"model_config": {"n_kv_head": 1, "n_head": 4}}, {}):
        with pytest.raises(CkptError, match=r"n_(kv_)?head"):
            mapping.plan(files, checkpoint, "hf", str(written(config, supplied)))
    written(path, {**state, "stray": torch.ones(1)})
    assert "stray" in refused(path, "hf", written(config, meta))


def test_nanochat_that_computes_the_same(tmp_path: Path) -> None:
    """lambdas and window only where they do nothing; what goes is named, and what was assumed."""
    state, meta = chat_state()
    neutral = {"resid_lambdas": torch.ones(2), "x0_lambdas": torch.zeros(2)}
    path, config = tmp_path / "m.pt", written(tmp_path / "meta.json", meta)
    written(path, {**neutral, **state})
    plan = mapped(path, "hf", config)
    assert [name for name, _ in plan.dropped] == ["resid_lambdas", "x0_lambdas"]
    assert "window_pattern" in plan.notes[0] and len(plan.items) == len(state)
    windows = {"model_config": {**meta["model_config"], "window_pattern": "L"}}
    assert mapped(path, "hf", written(config, windows)).notes == ()
    windows["model_config"]["window_pattern"] = "SSSL"
    assert "SSSL" in refused(path, "hf", written(config, windows))
    written(config, meta)
    for name, dtype in (("resid_lambdas", torch.float32), ("x0_lambdas", torch.bfloat16)):
        learned = {k: v.clone().to(dtype) for k, v in neutral.items()}
        learned[name][1] += 0.0078125
        assert name in refused(written(path, {**learned, **state}), "hf", config)


def test_every_other_revision_is_refused_by_name(shared: Path) -> None:
    """The revision's name and the way out, from real files of each; v1 of every stage goes."""
    names = dict(zip("abcefghik", "v1 lambdas window ve32 engram ve32 ve12 smear moe3".split()))
    seen = set()
    for path in sorted((shared / "real/nanochat").glob("*/*/*/model_*.pt")):
        tree = path.parents[2].name
        meta = path.with_name(path.name.replace("model_", "meta_")).with_suffix(".json")
        config = json.loads(meta.read_text())["model_config"]
        shapes = {tensor.name: tensor.shape for tensor in read_tensors(str(path)).tensors}
        assert revision_of(shapes, config) == names[tree[0]], path
        seen.add(names[tree[0]])
        if names[tree[0]] == "v1":
            assert len(mapped(path, "hf", meta).items) == len(shapes)
        else:
            said = refused(path, "hf", meta)
            assert f"revision {names[tree[0]]} " in said and "--to safetensors" in said
    assert len(seen) == 8 and seen < set(REVISIONS)
    for name, shape in (("v0_lambdas", (2,)), ("value_embed.weight", (3, 4)), ("value_embed_A.weight", (3, 4))):
        assert revision_of({name: shape, "resid_lambdas": (2,)}, {"window_pattern": "L"}) == "v0"
    assert revision_of({"transformer.h.0.moe.router.weight": (2, 2)}, {}) == "moe"


# --- adapters


def test_adapters_as_torchtune_writes_them_for_peft(shared: Path, tmp_path: Path) -> None:
    """Digest for digest of what 0.6.1 wrote beside its own names; the files of 0.1.1 say no alpha."""
    for epoch in range(3):
        run = shared / f"real/torchtune/0.6.1/lora-hf/epoch_{epoch}"
        checkpoint = next(c for c in discover(str(run)).checkpoints if c.having("adapter"))
        plan = mapping.plan([read_tensors(str(run / "adapter_model.pt"))], checkpoint, "hf", None)
        assert digests_of(plan) == digests_in(run / "adapter_model.safetensors")
        theirs = json.loads((run / "adapter_config.json").read_text())
        assert plan.config is not None and set(plan.config) == set(theirs)
        assert {**plan.config, "target_modules": set(plan.config["target_modules"])} == {
            **theirs,
            "target_modules": set(theirs["target_modules"]),
        }
        both = mapping.plan(read_files(paths_of(None, checkpoint, "adapter")), checkpoint, "hf", None)
        assert digests_of(both) == digests_of(plan) and len(both.dropped) == len(plan.items)
    old = shared / "real/torchtune/0.1.1/lora-hf"
    assert "lora_alpha" in refused(old / "adapter_0.pt", "hf")
    given = written(tmp_path / "a.json", {"lora_alpha": 8})
    config = mapped(old / "adapter_0.pt", "hf", given).config
    assert config is not None and (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")


def test_adapters_by_hand(tmp_path: Path) -> None:
    """Only what has the rows of q or k is permuted; what is missing or does not fit is named."""
    chance = torch.Generator().manual_seed(1)
    shapes = {
        "layers.0.attn.q_proj.lora_a.weight": (3, 16), "layers.0.attn.q_proj.lora_b.weight": (16, 3),
        "layers.0.attn.k_proj.lora_a.weight": (3, 16), "layers.0.attn.k_proj.lora_b.weight": (8, 3),
        "layers.0.attn.output_proj.lora_a.weight": (3, 16), "layers.0.attn.output_proj.lora_b.weight": (16, 3),
        "layers.0.mlp.w2.magnitude": (16,), "output.lora_a.weight": (3, 16), "output.lora_b.weight": (11, 3),
    }  # fmt: skip
    state = {name: torch.randn(shape, generator=chance).bfloat16() for name, shape in shapes.items()}
    path = written(tmp_path / "adapter_0.pt", state)
    given = config_for(4, 2, 4, 16, lora_alpha=16)
    config = tmp_path / "c.json"
    plan = mapped(path, "hf", written(config, given))
    at = "base_model.model.model.layers.0."
    assert same(
        state_of(plan),
        {
            f"{at}self_attn.q_proj.lora_A.weight": state["layers.0.attn.q_proj.lora_a.weight"],
            f"{at}self_attn.q_proj.lora_B.weight": to_halves(state["layers.0.attn.q_proj.lora_b.weight"], 4),
            f"{at}self_attn.k_proj.lora_A.weight": state["layers.0.attn.k_proj.lora_a.weight"],
            f"{at}self_attn.k_proj.lora_B.weight": to_halves(state["layers.0.attn.k_proj.lora_b.weight"], 2),
            f"{at}self_attn.o_proj.lora_A.weight": state["layers.0.attn.output_proj.lora_a.weight"],
            f"{at}self_attn.o_proj.lora_B.weight": state["layers.0.attn.output_proj.lora_b.weight"],
            f"{at}mlp.down_proj.lora_magnitude_vector": state["layers.0.mlp.w2.magnitude"],
            "base_model.model.lm_head.lora_A.weight": state["output.lora_a.weight"],
            "base_model.model.lm_head.lora_B.weight": state["output.lora_b.weight"],
        },
    )
    assert plan.config == {
        "lora_alpha": 16, "peft_type": "LORA", "r": 3, "use_dora": True,
        "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj", "lm_head"],
    }  # fmt: skip
    params = {"dim": 16, "n_heads": 4, "n_kv_heads": 2, "lora_alpha": 16}
    assert same(state_of(mapped(path, "hf", written(config, params))), state_of(plan))
    assert "lora_alpha" in refused(path, "hf", written(config, config_for(4, 2, 4, 16)))
    assert "lora_alpha" in refused(path, "hf")
    assert "model_type" in refused(path, "hf", written(config, {"lora_alpha": 16}))
    assert "r 8" in refused(path, "hf", written(config, {**given, "r": 8}))
    assert "phi3" in refused(path, "hf", written(config, {**given, "model_type": "phi3"}))
    qwen = mapped(path, "hf", written(config, {**given, "model_type": "qwen2"}))
    assert same(state_of(qwen), dict(zip(state_of(plan), state.values())))
    assert same(state_of(mapped(path, "torchtune")), state)
    assert refused(path, "meta", written(config, given))


def test_adapters_of_peft_for_torchtune(shared: Path) -> None:
    """Digest for digest of what 0.6.1 wrote beside PEFT's names."""
    for epoch in range(3):
        run = shared / f"real/torchtune/0.6.1/lora-hf/epoch_{epoch}"
        checkpoint = next(c for c in discover(str(run)).checkpoints if c.having("adapter"))
        plan = mapping.plan([read_tensors(str(run / "adapter_model.safetensors"))], checkpoint, "torchtune", None)
        assert digests_of(plan) == digests_in(run / "adapter_model.pt")
        assert plan.config is None and "lora_alpha 8" in plan.notes[0]


def test_adapters_of_peft_by_hand(tmp_path: Path) -> None:
    """To torchtune and back, bit for bit; settings that torchtune's recipes lack are refused by name."""
    chance = torch.Generator().manual_seed(2)
    at = "base_model.model.model.layers.3."
    shapes = {
        f"{at}self_attn.q_proj.lora_A.weight": (3, 16), f"{at}self_attn.q_proj.lora_B.weight": (16, 3),
        f"{at}self_attn.k_proj.lora_A.weight": (3, 16), f"{at}self_attn.k_proj.lora_B.weight": (8, 3),
        f"{at}self_attn.k_proj.lora_magnitude_vector": (8,), f"{at}mlp.up_proj.lora_A.weight": (3, 16),
        f"{at}mlp.up_proj.lora_B.weight": (24, 3), "base_model.model.lm_head.lora_A.weight": (3, 16),
        "base_model.model.lm_head.lora_B.weight": (11, 3),
    }  # fmt: skip
    state = {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "c.json"
    save_file(state, path)
    given = config_for(4, 2, 4, 16, lora_alpha=16, r=3, peft_type="LORA")
    plan = mapped(path, "torchtune", written(config, given))
    here = "layers.3."
    wanted = {
        f"{here}attn.q_proj.lora_a.weight": state[f"{at}self_attn.q_proj.lora_A.weight"],
        f"{here}attn.q_proj.lora_b.weight": to_pairs(state[f"{at}self_attn.q_proj.lora_B.weight"], 4),
        f"{here}attn.k_proj.lora_a.weight": state[f"{at}self_attn.k_proj.lora_A.weight"],
        f"{here}attn.k_proj.lora_b.weight": to_pairs(state[f"{at}self_attn.k_proj.lora_B.weight"], 2),
        f"{here}attn.k_proj.magnitude": to_pairs(state[f"{at}self_attn.k_proj.lora_magnitude_vector"], 2),
        f"{here}mlp.w3.lora_a.weight": state[f"{at}mlp.up_proj.lora_A.weight"],
        f"{here}mlp.w3.lora_b.weight": state[f"{at}mlp.up_proj.lora_B.weight"],
        "output.lora_a.weight": state["base_model.model.lm_head.lora_A.weight"],
        "output.lora_b.weight": state["base_model.model.lm_head.lora_B.weight"],
    }
    assert same(state_of(plan), wanted)
    back = mapped(written(tmp_path / "adapter_0.pt", state_of(plan)), "hf", config)
    assert same(state_of(back), state)
    for key, value in {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "bias": "all", "peft_type": "LOHA"}.items():
        assert key in refused(path, "torchtune", written(config, {**given, key: value}))
    assert "r 4" in refused(path, "torchtune", written(config, {**given, "r": 4}))
    assert "phi3" in refused(path, "torchtune", written(config, {**given, "model_type": "phi3"}))
    assert "num_attention_heads" in refused(path, "torchtune", written(config, {"lora_alpha": 16}))
    assert refused(path, "meta", written(config, given))
    for name in ("base_model.model.lm_head.weight", f"{at}self_attn.q_proj.lora_C.weight", f"{at}x.lora_A.weight"):
        save_file({**state, name: torch.zeros(3, 16)}, path)
        assert repr(name) in refused(path, "torchtune", written(config, given))
    ranks = {**state, f"{at}mlp.up_proj.lora_A.weight": torch.zeros(4, 16)}
    save_file(ranks, path)
    assert "several ranks, 3, 4" in refused(path, "torchtune", written(config, given))


# --- a new map is one new file; nothing slow is loaded

FAKE = '''
"""Names that begin with fake."""

from ckpt_cli.items import Item, Mapped
from ckpt_cli.maps import renamed

NAMINGS = {"fake": r"fake_[0-9]+"}
TARGETS = ("hf",)


def claims(source):
    return True


def carry(source, target):
    items = [Item(name.replace("fake", "real"), t, t.shape, t.dtype) for name, t in source.tensors.items()]
    return Mapped(tuple(items), renamed(source, items), (), (), {"model_type": "fake"})
'''

PLAN = """
import sys
from ckpt_cli import mapping
from ckpt_cli.tensors import read_tensors
plan = mapping.plan([read_tensors(sys.argv[1])], None, sys.argv[2], None)
print([item.name for item in plan.items], sorted({"torch", "numpy", "transformers", "safetensors"} & set(sys.modules)))
"""


def test_a_new_map_is_one_file(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "ckpt_cli", tmp_path / "lib/ckpt_cli", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lib/ckpt_cli/maps/fake.py").write_text(FAKE)
    path = written(tmp_path / "f.pt", {"fake_1": torch.ones(2), "fake_2": torch.ones(2)})

    def run(target: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PLAN, str(path), target]
        return subprocess.run(
            command, env={"PYTHONPATH": str(tmp_path / "lib")}, capture_output=True, text=True, cwd=tmp_path, timeout=60
        )

    assert run("hf").stdout == "['real_1', 'real_2'] []\n"
    assert "fake, which become those of hf, not of meta" in run("meta").stderr


def test_every_map_has_its_members() -> None:
    found = maps.maps()
    assert {Path(m.__file__ or "").stem for m in found} == {  # type: ignore[attr-defined]
        "decoders", "gpt2", "nanochat", "peft",
    }  # fmt: skip
    patterns = [(naming, pattern) for one in found for naming, pattern in one.NAMINGS.items()]
    assert len({naming for naming, _ in patterns}) == len(set(patterns)), "one pattern a naming"
    types = [kind for family in maps.families() for kind in family.types]
    assert len(types) == len(set(types))
    assert set(nanochat.NAMES.values()) >= {"lm_head.weight"}


# --- transformers


def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """What AutoModelForCausalLM computes from the folder; every key must have been found, and none left over."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not found.get(kind), (kind, found)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(tokens).logits.float()
    return logits


def folder_of(plan: Mapped, folder: Path) -> Path:
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in state_of(plan).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(plan.config))
    assert load_file(folder / "model.safetensors").keys() == state.keys()
    return folder


@pytest.mark.parametrize(
    ("source", "logits", "meta", "tolerance"),
    [
        ("gpt2/nano_gpt/checkpoints/checkpoint_000010.bin", "expected_logits_000010.pt", None, 1e-5),
        ("gpt2/nano_gpt/checkpoints/checkpoint_000020.bin", "expected_logits_000020.pt", None, 1e-5),
        ("gpt2/nanoGPT/out_train_py/ckpt.pt", "expected_logits.pt", None, 1e-5),
        ("gpt2/build-nanogpt/log/model_00010.pt", "expected_logits_00010.pt", None, 1e-5),
        # The trainer rounds its rotation to bf16, transformers does not.
        *(
            (
                f"nanochat/a1_v1_oct2025/{stage}/d2/model_{step}.pt",
                f"expected_logits_{step}.pt",
                f"meta_{step}.json",
                6e-3,
            )
            for stage, step in (
                ("base_checkpoints", "000020"),
                ("mid_checkpoints", "000008"),
                ("chatsft_checkpoints", "000006"),
                ("chatrl_checkpoints", "000004"),
            )
        ),
    ],
)
def test_transformers_computes_the_trainer_s_logits(
    shared: Path, tmp_path: Path, source: str, logits: str, meta: str | None, tolerance: float
) -> None:
    path = shared / "real" / source
    expected = torch.load(path.with_name(logits))
    plan = mapped(path, "hf", path.with_name(meta) if meta else None)
    found = logits_of(folder_of(plan, tmp_path / "out"), expected["tokens"])
    assert (found - expected["logits"].float()).abs().max().item() < tolerance
    assert torch.equal(found.argmax(-1), expected["logits"].argmax(-1))


@pytest.mark.parametrize(
    ("family", "source"),
    [(f, s) for f in ("llama", "phi3", "qwen2") for s in ("tune.pt", "meta.pth") if s == "tune.pt" or f == "llama"],
)
def test_transformers_computes_the_family_s_logits(shared: Path, tmp_path: Path, family: str, source: str) -> None:
    path = shared / "real/families" / family
    expected = json.loads((path / "expected.json").read_text())["logits"]
    plan = mapped(path / source, "hf", path / "config.json")
    found = logits_of(folder_of(plan, tmp_path / "out"), torch.tensor(expected["tokens"]))
    assert list(found.shape) == expected["shape"]
    assert found[0].argmax(-1).tolist() == expected["argmax"]
    assert (found[0, :, :8] - torch.tensor(expected["first8_of_each_position"])).abs().max() < expected["tolerance"]


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_opens_what_was_meta_s(shared: Path, tmp_path: Path, tied: bool) -> None:
    """From params.json alone: the same logits as from the model that was published with the same weights."""
    real = shared / "real/meta/meta-llama-f32"
    state = torch.load(real / "consolidated.00.pth")
    if tied:
        state["output.weight"] = state["tok_embeddings.weight"]
    plan = mapped(written(tmp_path / "consolidated.00.pth", state), "hf", real / "params.json")
    tokens = torch.arange(40).view(1, -1) * 5
    ours = logits_of(folder_of(plan, tmp_path / "out"), tokens)
    theirs = load_file(shared / "real/hf/llama-f32/single-safetensors/model.safetensors")
    if tied:
        theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"].clone()
    (tmp_path / "theirs").mkdir()
    save_file(theirs, tmp_path / "theirs/model.safetensors", metadata={"format": "pt"})
    shutil.copy(shared / "real/hf/llama-f32/single-safetensors/config.json", tmp_path / "theirs")
    assert torch.allclose(ours, logits_of(tmp_path / "theirs", tokens), atol=1e-6)


def test_transformers_opens_what_was_its_own(shared: Path, tmp_path: Path) -> None:
    real = shared / "real/hf/gpt2/single-bin"
    tokens = torch.arange(20).view(1, -1)
    plan = mapped(real / "pytorch_model.bin", "hf", real / "config.json")
    assert torch.equal(logits_of(folder_of(plan, tmp_path / "out"), tokens), logits_of(real, tokens))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"tie_word_embeddings": True, "head_dim": 6}),
        ("mistral", {"sliding_window": None}),
        ("gemma", {"head_dim": 12}),
        ("gemma2", {"head_dim": 12}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 10}),
        ("phi3", {"pad_token_id": 0}),
    ],
)
def test_every_family_of_transformers_goes_round(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    """A model that transformers itself makes -> torchtune's names -> back: every key, every byte, the same logits."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model(kind, vocab_size=48, intermediate_size=40, **{**sizes, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "theirs")
    theirs = tmp_path / "theirs/model.safetensors"
    tune = state_of(mapped(theirs, "torchtune", tmp_path / "theirs/config.json"))
    path = written(tmp_path / "tune.pt", tune)
    back = mapped(path, "hf", tmp_path / "theirs/config.json")
    assert digests_of(back) == digests_in(theirs)
    tokens = torch.arange(24).view(1, -1) * 2
    assert torch.equal(logits_of(folder_of(back, tmp_path / "out"), tokens), model(tokens).logits.detach().float())


def test_digests_are_sha256(tmp_path: Path) -> None:
    """The oracle of the tests above is itself held against hashlib."""
    state = decoder(2, 1, 2, 4)
    found = digests_in(written(tmp_path / "t.pt", state))
    name = "layers.0.mlp.w1.weight"
    assert found[name] == ("bfloat16", tuple(state[name].shape), hashlib.sha256(plain(state[name])).hexdigest())
