"""Models that transformers builds: from folders for it, and from torchtune's and Meta's weights under its names."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_cli.errors import CkptError
from ckpt_cli.families import Blueprint, Described, planned
from ckpt_cli.items import Mapped
from ckpt_cli.mapping import plan
from ckpt_cli.tensors import read_tensors
from tests.described import State, described, items, logits, rebuilt

SMALL: dict[str, Any] = {
    "vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
# What each model type adds to that.
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi": {},
    "phi3": {"pad_token_id": 0},
    "nanochat": {},
    "olmo2": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
TOKENS = torch.tensor([[1, 17, 42, 35, 8, 3, 0, 63, 7, 0, 31, 5, 9, 9, 2], list(range(15))])


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def made(transformers: Any, kind: str, **more: Any) -> tuple[State, dict[str, Any], Any]:
    """The state dict and config.json that transformers saves of a small model, and the model."""
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(
        kind, **{**(SMALL if kind != "gpt2" else {"vocab_size": 70}), **TYPES.get(kind, {}), **more}
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tied}
    return state, json.loads(config.to_json_string(use_diff=False)), model


def checked(blueprint: Blueprint, state: State, model: Any) -> torch.nn.Module:
    """The rebuilt model; its logits are those of the other."""
    whole = {name: state[item.tensor.name] for name, item in blueprint.items.items() if item.tensor.name in state}
    module = rebuilt(blueprint, whole)
    with torch.no_grad():
        found = blueprint.logits(module, TOKENS)
        expected = model(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.std() > 1e-3
    return module


@pytest.mark.parametrize("kind", TYPES)
def test_it_computes_what_transformers_does(kind: str, transformers: Any, offline: None) -> None:
    state, config, model = made(transformers, kind)
    blueprint = planned(described(state, config, layout="huggingface"))
    assert blueprint.family == f"transformers-{kind}"
    assert (blueprint.vocab_size, blueprint.padded_vocab, blueprint.most_tokens) == (70, 70, 64)
    module = checked(blueprint, state, model)
    assert not any(buffer.is_meta for buffer in module.buffers())


def test_the_head_is_the_embedding_where_the_configuration_says_so(transformers: Any) -> None:
    for kind in ("llama", "gpt2"):
        state, config, model = made(transformers, kind, tie_word_embeddings=True)
        assert "lm_head.weight" not in state
        module = checked(planned(described(state, config)), state, model)
        assert module.get_parameter("lm_head.weight") is module.get_input_embeddings().weight  # type: ignore[operator]


def test_a_head_that_differs_is_kept_whatever_the_configuration_says(transformers: Any) -> None:
    state, config, model = made(transformers, "llama")
    module = checked(planned(described(state, {**config, "tie_word_embeddings": True})), state, model)
    assert len(list(module.parameters())) == len(state)


def test_a_file_of_the_bare_model_and_of_old_masks(transformers: Any) -> None:
    """As OpenAI's GPT-2 lies on the hub."""
    state, config, model = made(transformers, "gpt2")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 64, 64) for n in range(2)}
    blueprint = planned(described(bare | masks, config))
    assert sorted(blueprint.free) == sorted(masks)
    checked(blueprint._replace(items={n: i for n, i in blueprint.items.items() if n not in masks}), bare, model)


def test_an_export_of_nano_gpt_says_its_context_elsewhere(transformers: Any) -> None:
    state, config, model = made(transformers, "gpt2", n_positions=24)
    del config["n_positions"]
    config |= {"n_ctx": 24, "block_size": 24}
    blueprint = planned(described(state, config))
    assert [(each.key, each.value) for each in blueprint.assumptions] == [("n_positions", 24)]
    checked(blueprint, state, model)


def test_weights_under_other_names_are_mapped_first(transformers: Any) -> None:
    state, config, model = made(transformers, "llama")
    mapped = Mapped(items(state), (), (), (), config)
    foreign = {"tok_embeddings.weight": state["model.embed_tokens.weight"]}
    blueprint = planned(described(foreign, {"dim": 32}, layout="meta", mapped=mapped))
    assert blueprint.family == "transformers-llama"
    checked(blueprint, state, model)
    with pytest.raises(CkptError, match="no naming"):
        planned(described(foreign, {"dim": 32}, layout="meta"))


def test_differences_are_left_to_the_caller(transformers: Any) -> None:
    state, config, _ = made(transformers, "llama")
    name = "model.layers.1.self_attn.k_proj.weight"
    state = {other: tensor for other, tensor in state.items() if other != name}
    blueprint = planned(described(state, {**config, "num_hidden_layers": 3}))
    missing = blueprint.shapes.keys() - blueprint.items.keys()
    assert name in missing
    assert "model.layers.2.mlp.up_proj.weight" in missing


def test_another_depth_is_seen_by_the_tensors(transformers: Any) -> None:
    """A configuration may list its layers as well as count them."""
    state, config, _ = made(transformers, "qwen2")
    assert len(config["layer_types"]) == 2
    blueprint = planned(described(state, {**config, "num_hidden_layers": 3}))
    assert "model.layers.2.mlp.up_proj.weight" in blueprint.shapes.keys() - blueprint.items.keys()
    with pytest.raises(CkptError, match="not as many layer_types as layers"):
        planned(described(state, {**config, "layer_types": ["full_attention"]}))


# --- what is refused


def test_without_transformers_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    state = {"model.embed_tokens.weight": torch.zeros(70, 32)}
    with pytest.raises(CkptError, match="'llama' is built by transformers, which is not installed") as raised:
        planned(described(state, {"model_type": "llama", **SMALL}))
    assert raised.value.hint == "pip install 'transformers>=5'"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": ({"model_type": "llama9"}, "'llama9', which transformers .* does not know"),
    "no type": ({"model_type": None}, "no config.json that says a model_type"),
    "odd type": ({"model_type": ["llama"]}, "no config.json that says a model_type"),
    "no language model": ({"model_type": "clip"}, "'clip', of which transformers has no causal language model"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config says that it is quantized"),
    "classes": ({"architectures": ["LlamaForSequenceClassification"]}, "gives no logits of tokens"),
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, and it has"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers -1"),
    "wide": ({"hidden_size": 10**12}, "hidden_size 1000000000000, which no model has"),
    "huge": ({"hidden_size": 10**5000}, "hidden_size something of type int, which no model has"),
    "vocabulary": ({"vocab_size": -70}, "cannot make a llama of its configuration"),
    "text": ({"hidden_size": "32"}, "cannot make a llama of its configuration"),
    "no heads": ({"num_attention_heads": 0, "head_dim": None}, "cannot make a llama of its configuration"),
    "activation": ({"hidden_act": "os.system"}, "cannot make a llama of its configuration"),
    "method": ({"get_text_config": 5}, "cannot make a llama of its configuration"),
    "nested": ({"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}, "nested more than"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_configuration_that_makes_no_model(what: str, transformers: Any, offline: None) -> None:
    changes, said = REFUSED[what]
    state, config, _ = made(transformers, "llama")
    with pytest.raises(CkptError, match=said) as raised:
        planned(described(state, {**config, **changes}, layout="huggingface"))
    assert len(raised.value.message) < 400


def test_nothing_that_a_configuration_names_is_run(transformers: Any, offline: None, tmp_path: Path) -> None:
    """Neither code beside the weights nor kernels of a hub."""
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    state, config, model = made(transformers, "llama")
    config |= {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        "trust_remote_code": True,
        "_attn_implementation": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "_experts_implementation": "someone/kernel",
        "use_kernels": True,
        "dtype": "compile",
        "torch_dtype": "save",
        "_name_or_path": str(tmp_path),
    }
    blueprint = planned(described(state, config))
    assert not {"auto_map", "attn_implementation", "_attn_implementation", "dtype"} & blueprint.config.keys()
    checked(blueprint, state, model)


def test_experts_one_by_one_are_refused_by_name(transformers: Any) -> None:
    state, config, _ = made(transformers, "mixtral", num_local_experts=2)
    whole = [name for name in state if ".experts." in name]
    assert whole
    apart = {name: tensor for name, tensor in state.items() if name not in whole}
    apart |= {f"model.layers.0.block_sparse_moe.experts.{n}.w1.weight": torch.zeros(48, 32) for n in range(2)}
    with pytest.raises(CkptError, match="experts of its mixtral one by one"):
        planned(described(apart, config))


def test_nothing_can_be_set_of_it(transformers: Any) -> None:
    state, config, _ = made(transformers, "llama")
    with pytest.raises(CkptError, match="transformers-llama has no setting 'softcap'"):
        planned(described(state, config, given={"softcap": "15"}))
    with pytest.raises(CkptError, match="of the model type 'llama', not of 'qwen2'"):
        planned(described(state, config), "transformers-qwen2")


# --- what real programs wrote

FOLDERS = [f"hf/{kind}/{form}" for kind in ("gpt2", "llama-f32") for form in (
    "single-bin", "single-safetensors", "sharded-bin", "sharded-safetensors")]  # fmt: skip
FILES = [
    ("families/llama", "model.safetensors", ""), ("families/llama", "tune.pt", "config.json"),
    ("families/llama", "meta.pth", "config.json"), ("families/phi3", "model.safetensors", ""),
    ("families/phi3", "tune.pt", "config.json"), ("families/qwen2", "model.safetensors", ""),
    ("families/qwen2", "tune.pt", "config.json"), ("meta/meta-llama-f32", "consolidated.00.pth", "params.json"),
]  # fmt: skip


def of_files(paths: list[Path], settings: Path, given: Path | None = None) -> tuple[Described, State]:
    files = [read_tensors(str(path)) for path in paths]
    state: dict[str, torch.Tensor] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state |= load_file(path)
        else:
            state |= torch.load(path, weights_only=True)
    tensors = {tensor.name: tensor for file in files for tensor in file.tensors}
    mapped = lambda: plan(files, None, "hf", str(given) if given else None)  # noqa: E731
    config = json.loads(settings.read_text())
    return Described(str(paths[0]), "", None, tensors, config, {}, None, {}, mapped), state


def agrees(blueprint: Blueprint, state: State, expected: Mapping[str, Any]) -> None:
    """The numbers that were noted: eight of each position, and the largest."""
    found = logits(blueprint, state, torch.tensor(expected["tokens"]))
    assert list(found.shape) == expected["shape"]
    torch.testing.assert_close(found[0, :, :8], torch.tensor(expected["first8_of_each_position"]), rtol=0, atol=5e-6)
    assert found[0].argmax(-1).tolist() == expected["argmax"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_the_hub(folder: str, shared: Path, transformers: Any) -> None:
    place = shared / "real" / folder
    paths = sorted([*place.glob("*.safetensors"), *place.glob("*.bin")])
    seen, state = of_files(paths, place / "config.json")
    blueprint = planned(seen)
    whole = {name: state[item.tensor.name] for name, item in blueprint.items.items()}
    agrees(blueprint, whole, json.loads((place / "expected.json").read_text())["logits"])


@pytest.mark.parametrize(("folder", "name", "given"), FILES)
def test_a_file_under_any_naming(folder: str, name: str, given: str, shared: Path, transformers: Any) -> None:
    place = shared / "real" / folder
    seen, _ = of_files([place / name], place / (given or "config.json"), place / given if given else None)
    blueprint = planned(seen)
    # What other names are mapped to is another's to read: the same weights lie there under transformers' names.
    twin = (
        place / "model.safetensors"
        if folder.startswith("families")
        else shared / "real/hf/llama-f32/single-safetensors/model.safetensors"
    )
    _, state = of_files([twin], place / (given or "config.json"))
    assert {n: item.shape for n, item in blueprint.items.items()} == {n: tuple(t.shape) for n, t in state.items()}
    agrees(blueprint, state, json.loads((place / "expected.json").read_text())["logits"])
