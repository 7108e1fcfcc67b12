"""Files as torch wrote them before version 1.6, and pickled modules: read like any other."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_cli.convert import convert
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.tensors import read_tensors
from tests.builders import dict_of, name, storage, tensor, text, torch_file, tuple_of
from tests.conftest import Run
from tests.test_formats import read_whole, seen
from tests.torch_files import told

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def save(value: Any, path: Path) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def state() -> dict[str, Any]:
    """A training state with views, a tie, an empty tensor and plain values."""
    weight = torch.arange(12.0).view(3, 4)
    return {
        "model": {"w": weight, "turned": weight.t(), "row": weight[1], "half": torch.ones(3, dtype=torch.float16)},
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "step": 9,
        "lr": [0.1, 0.2],
    }


def test_as_torch_reads_it(tmp_path: Path) -> None:
    path = save(state(), tmp_path / "model.pt")
    assert seen(path) == told(torch.load(path, weights_only=True))
    file = read_tensors(str(path))
    assert file.container == "torch-legacy" and file.notes == () and file.foreign_globals == ()
    assert file.values == {"step": 9, "lr.0": 0.1, "lr.1": 0.2}


def test_bare_tensor_and_protocols(tmp_path: Path) -> None:
    for protocol in (2, 3):
        path = tmp_path / f"{protocol}.pt"
        torch.save(torch.arange(5), path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        assert [entry[0] for entry in seen(path)] == ["<root>"]


def test_pickles_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read a block at a time; where blocks end must not change the answer."""
    path = save(state(), tmp_path / "model.pt")
    whole = seen(path)
    for length in (1, 20, 300):
        monkeypatch.setattr("ckpt_cli.formats._stream.BLOCK", length)
        assert seen(path) == whole


def test_truncated_anywhere(tmp_path: Path) -> None:
    """Cut at every byte, within the magic number too: found, and said to be what it is."""
    whole = save(state(), tmp_path / "model.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(Damaged, match=r"truncated|empty"):
            read_whole(path)
    path.write_bytes(whole + b"more")
    assert read_tensors(str(path)).notes == ("4 bytes after the last storage",)


def test_bytes_flipped_anywhere_never_crash(tmp_path: Path) -> None:
    """There is no checksum: a flipped byte may go unnoticed, but it is never an exception of Python's."""
    whole = save(state(), tmp_path / "model.pt").read_bytes()
    path = tmp_path / "flipped.pt"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_whole(path)
        except CkptError as error:
            assert "\n" not in error.message


def test_hostile(tmp_path: Path, call: Run) -> None:
    """The second pickle, the third and the list of keys are read by the same closed interpreter."""
    code = b"cos\nsystem\n(S'true'\ntR."
    start = pickle.dumps(MAGIC, 2) + pickle.dumps(PROTOCOL, 2)
    machine = pickle.dumps({"little_endian": True}, 2)
    for label, content in (
        ("objects", start + machine + code),
        ("machine", start + code),
        ("keys", start + machine + pickle.dumps({}, 2) + code),
    ):
        (tmp_path / f"{label}.pt").write_bytes(content)
        done = call("inspect", "tensors", tmp_path / f"{label}.pt")
        assert (done.code, done.out) == (2, "") and "os.system" in done.err


def test_storages_that_do_not_fit(tmp_path: Path) -> None:
    start = pickle.dumps(MAGIC, 2) + pickle.dumps(PROTOCOL, 2) + pickle.dumps({"little_endian": True}, 2)
    for keys, message in ((["0"], "do not name once"), ([0], "no list"), ("0", "no list")):
        (tmp_path / "x.pt").write_bytes(start + pickle.dumps({}, 2) + pickle.dumps(keys, 2))
        with pytest.raises(CkptError, match=message):
            read_tensors(str(tmp_path / "x.pt"))
    (tmp_path / "x.pt").write_bytes(pickle.dumps(MAGIC, 2) + pickle.dumps(7, 2) + pickle.dumps({}, 2))
    with pytest.raises(CkptError, match="unknown protocol"):
        read_tensors(str(tmp_path / "x.pt"))


def test_always_little_endian(tmp_path: Path) -> None:
    """What the file says of the machine that wrote it is not how its bytes lie; torch does not look at it either."""
    path = save({"w": torch.arange(4)}, tmp_path / "m.pt")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    assert path.read_bytes() != whole
    assert seen(path) == told(torch.load(path, weights_only=True))


def test_converts(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = save({"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "m.pt")
    convert(str(path), str(tmp_path / "m.safetensors"))
    loaded = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in torch.load(path, weights_only=True).items())


def test_truncated_optimizer_does_not_count_as_kept(tree: Path, call: Run) -> None:
    """Also in a legacy file the end tells, so prune does not count on it."""
    path = tree / "base_checkpoints/d4/optim_000150_rank1.pt"
    shard = torch.load(path, weights_only=True)
    whole = save(shard, path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    groups = call("prune", "base/d4", "--root", tree, "--keep", 1, "--dry-run", "--json").json["groups"]
    assert [kept["ref"] for kept in groups[0]["keep"]] == ["base/d4/100"]


class Passing(torch.nn.Module):
    """A module with a buffer that its state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("passing", torch.zeros(2), persistent=False)


def test_pickled_module_has_the_names_of_its_state_dict(tmp_path: Path) -> None:
    """Read without its classes, which are named as foreign."""
    first = torch.nn.Linear(3, 4)
    model = torch.nn.Sequential(first, torch.nn.BatchNorm1d(4), torch.nn.ModuleDict({"x": Passing()}), first)
    torch.save(model, tmp_path / "model.pt")
    assert sorted(entry[0] for entry in seen(tmp_path / "model.pt")) == sorted(model.state_dict())
    names = {foreign.name for foreign in read_tensors(str(tmp_path / "model.pt")).foreign_globals}
    assert "torch.nn.modules.linear.Linear" in names and "tests.test_legacy.Passing" in names


PARAMETER = name("torch.nn.parameter", "Parameter")
HOOKS = name("collections", "OrderedDict") + b")R"
OLD_PARAMETERS = {
    "called": PARAMETER + tuple_of(tensor((2, 3), (3, 1))) + b"R",
    "with its gradient": PARAMETER + tuple_of(tensor((3, 2), (1, 3), 2), b"\x89") + b"R",
    "made": PARAMETER + tuple_of(tensor((2, 3), (3, 1))) + b"\x81",
    "with its state": PARAMETER + tuple_of(tensor((4,), (1,))) + b"R" + tuple_of(b"\x88", b"\x89", HOOKS) + b"b",
}


@pytest.mark.parametrize("what", OLD_PARAMETERS)
def test_parameters_as_torch_pickled_them_before_0_4(what: str, tmp_path: Path) -> None:
    """A call of their class, which torch still loads with weights only: a tensor like any other."""
    path = tmp_path / "old.pt"
    path.write_bytes(torch_file(dict_of((text("w"), OLD_PARAMETERS[what]))))
    assert seen(path) == told(torch.load(path, weights_only=True))
    assert read_tensors(str(path)).foreign_globals == ()


def test_a_tensor_whose_contents_are_replaced(tmp_path: Path) -> None:
    """torch carries it out, so that a reader who does not would show another tensor."""
    other = tuple_of(storage(), b"K\0", tuple_of(b"K\2", b"K\2"), tuple_of(b"K\2", b"K\1"))
    path = tmp_path / "set.pt"
    path.write_bytes(torch_file(dict_of((text("w"), tensor((4, 4), (4, 1)) + other + b"b"))))
    assert torch.load(path, weights_only=True)["w"].shape == (2, 2)
    with pytest.raises(CkptError, match="gives a tensor other contents"):
        read_tensors(str(path))
