"""Small files that are made to take for ever, or to raise what is no error of ours: each was once able to.

What is measured is only whether it ends: seconds where it was hours. `test_hostile` has the wider set of such files.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest
import torch
from safetensors.torch import save_file

from ckpt_cli import inflate, manifest, room
from ckpt_cli.comparable import tensors_of
from ckpt_cli.discover import discover
from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats import Files, FileSource, _pickle
from ckpt_cli.formats._stream import whole
from ckpt_cli.layouts._weights import weights_in
from ckpt_cli.leaves import flat
from ckpt_cli.optimizer import optimizer_state
from ckpt_cli.settings import NOTHING, load
from ckpt_cli.shapes import contiguous_stride, tiling_fault
from ckpt_cli.small_files import read_json
from ckpt_cli.tensor_file import Storage, TensorFile, TensorInfo
from ckpt_cli.tensors import blocks, read_tensors, readable
from tests.builders import (
    call,
    dcp_index,
    dcp_place,
    dcp_tensor,
    name,
    safetensors_file,
    slot,
    storage,
    text,
    torch_file,
)
from tests.conftest import Run

# On a machine that others use too; most take a hundredth of it.
SECONDS = 10
FALLEN = 2**61 - 1  # numbers that differ by this have the same hash in Python


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Breaks off what does not end."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], TensorFile]:
    def read(data: bytes) -> TensorFile:
        (tmp_path / "made").write_bytes(data)
        return read_tensors(str(tmp_path / "made"))

    return read


Read = Callable[[bytes], TensorFile]


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<I", len(data)) + data


def dtype(code: str) -> bytes:
    state = b"(K\3" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t"
    return call(name("numpy", "dtype"), text(code), b"\x89", b"\x88") + state + b"b"


def array(shape: bytes) -> bytes:
    made = call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), b"K\0\x85", b"C\1b")
    return made + b"(K\1" + shape + dtype("f4") + b"\x89C\0tb"


def tensor(shape: list[int], stride: list[int]) -> bytes:
    sizes = (b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride))
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage(), b"K\0", *sizes, b"\x89", b"N")


# --- pickles


def test_an_array_of_rows_without_elements(read: Read) -> None:
    """2**40 rows of nothing are no elements, and as many lists."""
    assert read(torch_file(array(number(2**40) + b"K\0\x86"))).values == {"<root>": f"<array float32 [{2**40}, 0]>"}
    assert read(torch_file(array(b"K\2K\0\x86"))).values == {"<root>": [[], []]}


def test_immense_shapes_of_arrays(read: Read) -> None:
    """Each would be multiplied and written out, and thousands of arrays share one."""
    shared = b"(" + number(2**8000) * 64 + b"tq\0" + b"0"
    with suppress(CkptError):  # for the text of the first of them
        read(torch_file(shared + b"](" + array(b"h\0") * 3000 + b"e"))


def test_memo_slots_that_collide(read: Read) -> None:
    with pytest.raises(CkptError, match="memo slot"):
        read(torch_file(b"N" + b"".join(b"p%d\n" % (k * FALLEN) for k in range(60_000))))
    assert read(torch_file(b"Np4294967295\ng4294967295\n")).values == {"<root>": None}


def test_a_dictionary_that_many_states_share(read: Read) -> None:
    """The state of each wrapping tensor is looked through for tensors: no further than it may have some."""
    shared = b"}q\0(" + b"".join(b"J" + struct.pack("<i", k) + b"N" for k in range(200_000)) + b"u0"
    wrapper = [name("torch._utils", "_rebuild_wrapper_subclass"), b"N"]
    arguments = b"(" + name("a", "B") + name("torch", "float32") + b")))" + b"tq\1" + b"0"
    arguments = arguments.replace(b")))t", b"))K\0t")
    one = call(name("torch._tensor", "_rebuild_from_type_v2"), *wrapper, b"h\1", b"}" + text("a") + b"h\0s")
    assert len(read(torch_file(shared + arguments + b"](" + one * 5_000 + b"e")).tensors) == 5_000


def test_strides_that_collide(read: Read) -> None:
    """A dimension of one may have any stride; none that is longer than a file is taken."""
    with pytest.raises(CkptError, match="stride"):
        read(torch_file(tensor([1, 1], [FALLEN, 1])))
    assert read(torch_file(tensor([1, 1], [FALLEN - 1, 1]))).tensors[0].stride == (FALLEN - 1, 1)


@pytest.mark.parametrize("arguments", [["--format", "table"], ["--format", "table", "--tree"], ["--json"]])
def test_sizes_that_no_float_holds(call: Run, tmp_path: Path, arguments: list[str]) -> None:
    """What is added up and shown in gigabytes must be a number that can be."""
    (tmp_path / "made.pt").write_bytes(torch_file(tensor([2**62] * 20, [0] * 20)))
    done = call("inspect", "tensors", str(tmp_path / "made.pt"), *arguments)
    assert done.code == 2 and "overflows" in done.err
    (tmp_path / "made.pt").write_bytes(torch_file(tensor([2**62] * 2, [0] * 2)))
    assert call("inspect", "tensors", str(tmp_path / "made.pt"), *arguments).code == 0


# --- TorchScript


def script(path: Path, line: str) -> TensorFile:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\2c__torch__\nM\n)\x81}b.")
        archive.writestr("m/constants.pkl", b"\x80\2).")
        archive.writestr("m/version", "3")
        archive.writestr("m/code/__torch__.py", f"class M(Module):\n  __parameters__ = [{line}]\n")
    return read_tensors(str(path))


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    assert script(tmp_path / "made.pt", '"' + '\\"' * 200_000).container == "torchscript"


def test_an_escape_that_is_none(tmp_path: Path) -> None:
    assert script(tmp_path / "made.pt", '"\\xzz", ').container == "torchscript"


# --- safetensors


def test_strides_of_a_tensor_without_elements(read: Read) -> None:
    """Their product has as many digits as the shape, for each dimension."""
    data = safetensors_file({"a": slot("F32", [0] + [2**63] * 50_000, 0, 0)})
    assert max(read(data).tensors[0].stride) < 2**63
    assert contiguous_stride((0, 5, 6)) == torch.empty(0, 5, 6).stride()


def test_strides_can_be_written_out(call: Run, tmp_path: Path) -> None:
    """Python writes no number of more than 4300 digits."""
    data = safetensors_file({"a": slot("F32", [0] + [2**63] * 1000, 0, 0)})
    (tmp_path / "made.safetensors").write_bytes(data)
    done = call("inspect", "tensors", "--json", str(tmp_path / "made.safetensors"))
    assert done.code == 0 and len(json.loads(done.out)["tensors"][0]["stride"]) == 1001


def test_aliases_of_any_size() -> None:
    """What a file's metadata says of tied tensors is believed where it fits."""
    host = TensorInfo("a", "uint8", (1,), (1,), 0, 1, Storage("a", "f", 0, 1))

    def tied(shape: list[int]) -> list[str]:
        alias = {"b": {"of": "a", "dtype": "uint8", "shape": shape, "stride": [0] * len(shape), "offset": 0}}
        values = {"__metadata__.ckpt.aliases": json.dumps(alias)}
        return list(tensors_of([TensorFile("f", "safetensors", (host,), values)]))

    assert tied([2, 2]) == ["a", "b"]
    assert tied([2**62] * 20) == tied([1] * 65) == tied([10**4000] * 50) == ["a"]


@pytest.mark.parametrize("length", [1, 7, 100])
def test_a_header_in_blocks(length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a block ends, within a name, an escape, a letter of two bytes or a number, must not change the answer."""
    names = ["plain", "\u00e9\U0001f600", 'quoted "\\" and more', "long" * 100, ""]
    entries = {name: slot(begin=n, end=n + 1, more=[1e-7, -0.5, 12345678901234567890]) for n, name in enumerate(names)}
    for escaped in (True, False):
        told = {"__metadata__": {"\u00e9": "x" * 300, "a": "b"}, **entries}
        header = json.dumps(told, ensure_ascii=escaped, indent=1)
        path = tmp_path / "made.safetensors"
        path.write_bytes(safetensors_file(" \n" + header + "\t ", bytes(len(names))))
        whole = read_tensors(str(path))
        assert [tensor.name or "" for tensor in whole.tensors] == [name or "<root>" for name in names]
        with monkeypatch.context() as patched:
            patched.setattr("ckpt_cli.formats._stream.BLOCK", length)
            assert read_tensors(str(path)) == whole


@pytest.mark.parametrize("length", [1, 7, 100])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_pickle_in_blocks(
    method: int, protocol: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of opcodes, their operands, lines of text and frames."""
    content = {
        "w": torch.arange(6.0).reshape(2, 3), "text": "x" * 1000, "bytes": b"y" * 300, "numbers": [1, -1, 2**40, 1.5],
        "keys": {(1, "a"): None, 3: True}, "options": argparse.Namespace(lr=0.1, words=["a", "b"] * 50),
    }  # fmt: skip
    torch.save(content, tmp_path / "stored.pt", pickle_protocol=protocol)
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(tmp_path / "stored.pt") as old, zipfile.ZipFile(path, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    whole = read_tensors(str(path))
    assert len(whole.tensors) == 1 and whole.values["text"] == "x" * 1000
    monkeypatch.setattr("ckpt_cli.formats._stream.BLOCK", length)
    monkeypatch.setattr("ckpt_cli.formats._zip.BLOCK", length)
    assert read_tensors(str(path)) == whole


# --- distributed checkpoints


def test_places_whose_offsets_collide(read: Read) -> None:
    """The hash of a tuple of numbers is the same in every process."""
    word = text("w")
    offsets = [tuple((k >> 2 * axis & 3) * FALLEN for axis in range(7)) for k in range(4**7)]
    places = [dcp_place(word, at) for at in offsets]
    index = dcp_index([(word, dcp_tensor((1,) * 7, [((0,) * 7, (1,) * 7)]))], places)
    assert len(read(index).storages) == 4**7


def test_boxes_that_all_lie_beside_each_other() -> None:
    """Pieces in no order are compared with those beside them: so many times for each of them, and no more."""
    n = 3000
    boxes = [((0, k), (2 * n, 1)) for k in range(n)] + [((k, n), (1, 1)) for k in range(2 * n)]
    started = time.process_time()
    fault = tiling_fault((2 * n, n + 1), boxes)
    assert fault is None or "no order" in fault
    assert time.process_time() - started < 5
    # A wall of bricks, each course begun half a brick further on: no grid, and in order.
    rows = [[0, 1, *range(3, 100, 2)] if row % 2 else list(range(0, 100, 2)) for row in range(200)]
    wall = [((row, a), (1, b - a)) for row, starts in enumerate(rows) for a, b in zip(starts, [*starts[1:], 100])]
    assert tiling_fault((200, 100), wall) is None


def test_one_piece_that_stands_in_many_places() -> None:
    """A chunk can be named as often as one likes; what is put together from it is then no tensor of that file."""
    place = Storage("__0_0.distcp", "f", 0, 1 << 20)
    piece = TensorInfo("", "uint8", (1 << 20,), (1,), 0, 1, place, "archived")
    pieces = tuple(((k << 20,), piece) for k in range(100))
    whole = TensorInfo("w", "uint8", (100 << 20,), (1,), 0, 1, None, "chunked", pieces=pieces)
    assert "repeats" in (readable(whole) or "")
    own = tuple((at, piece._replace(storage=place._replace(offset=at[0]))) for at, _ in pieces)
    assert readable(whole._replace(pieces=own)) is None


def test_a_file_that_is_being_read_stays_open(tmp_path: Path) -> None:
    """Two streams over more files than stay open: the one's descriptor must not become a file of the other's."""
    paths = []
    for number in range(6):
        paths.append(str(tmp_path / f"{number}.safetensors"))
        save_file({"a": torch.full((1 << 20,), float(number))}, paths[-1])
    tensors = [read_tensors(path).tensors[0] for path in paths]
    with Files(most=2) as files:
        first = blocks(files, tensors[0])
        seen = [bytes(next(first))]
        for other in tensors[1:]:
            assert len(b"".join(blocks(files, other))) == 4 << 20
        seen += [bytes(block) for block in first]
    assert b"".join(seen) == bytes(4 << 20)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with Files(most=2) as files:
        for tensor in tensors:
            files.at(paths[tensors.index(tensor)])
        assert not before or len(os.listdir("/proc/self/fd")) == before + 2


# --- compressed records


def test_a_view_that_goes_back_and_forth_in_a_packed_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each step back unpacks it from the beginning: not as often as a view has steps."""
    size = 1 << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    (tmp_path / "packed").write_bytes(packer.compress(bytes(size)) + packer.flush())
    monkeypatch.setattr(inflate, "_AGAIN", 0)
    with FileSource(str(tmp_path / "packed")) as source:
        record = inflate.Inflated(source, size)
        for _ in range(100):
            assert record.read_at(size - 1, 1) == record.read_at(0, 1) == b"\0"
        with pytest.raises(CkptError, match="back and forth"):
            for _ in range(100):
                assert record.read_at(size - 1, 1) == record.read_at(0, 1)


# --- names


def optimizer(path: Path, content: dict[str, object]) -> object:
    torch.save(content, path)
    return optimizer_state(read_tensors(str(path)))


def test_an_option_beside_one_with_a_dot(tmp_path: Path) -> None:
    group = {"lr": 1, "lr.x": 2, "params": [0]}
    found = optimizer(tmp_path / "o.pt", {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [group]})
    assert found.groups[0].hyperparameters == {"lr": 1, "lr.x": 2}  # type: ignore[attr-defined]


@pytest.mark.parametrize("odd", ["." * 1_000_000, ".state" * 200_000, ".param_groups" * 100_000])
def test_names_of_nothing_but_dots(tmp_path: Path, odd: str) -> None:
    content = {"param_groups": [{"lr": 1, "params": [0]}], "state": {0: {"b": 1}, "a" + odd: 1}, "a" + odd: 1}
    optimizer(tmp_path / "o.pt", content)


def test_many_keys_that_read_alike() -> None:
    """`a.b` and `a: {b}` have the same dotted name, and so have 2**14 ways to nest fifteen words."""

    def nested(bits: int, left: int, word: str) -> dict[str, object]:
        if not left:
            return {word: bits}
        return {}

    value: dict[str, object] = {}
    for bits in range(2**14):
        keys = ["a"]
        for at in range(14):
            keys[-1:] = [keys[-1] + ".a"] if bits >> at & 1 else [keys[-1], "a"]
        place = value
        for key in keys[:-1]:
            place = place.setdefault(key, {})  # type: ignore[assignment]
        place[keys[-1]] = bits
    leaves = flat(value)
    assert len(leaves) == 2**14 and sorted(leaves.values()) == list(range(2**14))
    assert flat({"a.b": 1, "a": {"b": 2}}) == {"a.b": 1, "a.b#2": 2}


def test_a_thousand_shards() -> None:
    names = [f"model-{number:05}-of-09999.safetensors" for number in range(9999, 0, -1)]
    assert weights_in(names)[0].shards == tuple(sorted(names))


def test_ten_thousand_steps_of_nano_gpt(tmp_path: Path) -> None:
    for step in range(10_000):
        (tmp_path / f"checkpoint_{step:06}.bin").touch()
    (tmp_path / "checkpoint_7.bin").touch()
    found = discover(str(tmp_path)).checkpoints
    assert len(found) == 10_001 and sorted(c.name for c in found if c.by_name) == [
        "checkpoint_000007.bin",
        "checkpoint_7.bin",
    ]


# --- what is no file


@pytest.mark.parametrize("written", [None, b"", b'{"step": 1}'])
def test_a_pipe_in_place_of_a_file(tmp_path: Path, written: bytes | None) -> None:
    """To open one waits until somebody writes to it."""
    path = str(tmp_path / "meta_000001.json")
    os.mkfifo(path)
    held = None
    if written is not None:
        held = os.open(path, os.O_RDWR)
        os.write(held, written)
    with pytest.raises(CkptError) if not written else threading.Lock():
        read_json(path)
    with pytest.raises(Damaged):
        manifest.read(path)
    if held is not None:
        os.close(held)


@pytest.mark.parametrize("text", ["\n" * 1_000_000, "[" + "." * 1_000_000, " " * 1_000_000])
def test_somebody_else_s_project_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert load(str(tmp_path), None) == NOTHING


def test_a_mistake_in_a_long_line(tmp_path: Path) -> None:
    (tmp_path / "ckpt.toml").write_text('root = "' + "[" * 500_000 + '"\nnothing = 1\n')
    with pytest.raises(CkptError, match="line 2: there is no setting"):
        load(str(tmp_path), None)


DENSE = {
    "lists": '{"a": [' + "[], " * 1_000_000 + "0]}",
    "numbers": '{"a": [' + "1," * 2_000_000 + "0]}",
    "objects": "{" + "".join(f'"{n}": {{}}, ' for n in range(400_000)) + '"z": 0}',
    "texts": '{"a": [' + '"ab", ' * 700_000 + '"z"]}',
    "one text": '{"a": "' + "x" * 8_000_000 + "😀" + '"}',
}


@pytest.mark.parametrize("what", DENSE)
def test_metadata_that_holds_too_much(what: str, call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some megabytes of JSON are up to a gigabyte of values: told by what it is written with, before it is read."""
    path = tmp_path / "made.json"
    path.write_text(DENSE[what], encoding="utf-8")
    for command in (("inspect", "meta"), ("inspect", "meta", "--json")):
        refused = call(*command, path)
        assert refused.code == 2 and "holds more values than" in refused.err and "hint: CKPT_MEMORY" in refused.err
    (result,) = call("verify", path, "--json").json["results"]
    assert (result["status"], result["problems"]) == ("unverifiable", [])  # as a log that grew too long is whole
    monkeypatch.setenv("CKPT_MEMORY", "1000")
    assert read_json(str(path))["a" if what != "objects" else "z"] is not None


def test_a_long_log_beside_a_large_model(call: Run, tmp_path: Path) -> None:
    """As transformers writes it: read as long as it is a small part of what lies there."""
    log = [
        {"epoch": n / 100, "grad_norm": n / 7, "learning_rate": n / 1e9, "loss": n / 13, "step": n}
        for n in range(60_000)
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}, indent=2))
    with pytest.raises(CkptError, match="holds more values than"):
        read_json(str(tmp_path / "trainer_state.json"))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(1 << 28)
    assert len(read_json(str(tmp_path / "trainer_state.json"))["log_history"]) == 60_000
    refused = call("inspect", "meta", tmp_path / "trainer_state.json")
    assert refused.code == 2 and "not named together" in refused.err and "--json" in refused.err


@pytest.mark.parametrize(
    "made", [b"\x8f", b"]", b"}", b"N\x94", b"(", b"N0"], ids=["sets", "lists", "dicts", "memo", "marks", "opcodes"]
)
def test_a_pickle_takes_so_much_memory_and_no_more(made: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte makes something of up to two hundred: what that takes is counted, and goes by the file's size."""
    monkeypatch.setattr(room, "_ROOM", 100_000)
    data = b"\x80\x04" + made * 20_000 + b"N."
    with pytest.raises(CkptError, match="more memory than"):
        _pickle.load(whole(data), {}, {}, lambda pid: pid)
    monkeypatch.setattr(room, "_ROOM", 10_000_000)
    assert _pickle.load(whole(data), {}, {}, lambda pid: pid).value is None


def test_memo_slots_in_any_order() -> None:
    """The memo is a list as long as slots are numbered in turn, as pickles are written."""

    def value(codes: bytes) -> object:
        return _pickle.load(whole(b"\x80\x04" + codes + b"."), {}, {}, lambda pid: pid).value

    assert value(b"K\1q\1K\2q\2K\3q\0(h\0h\1h\2t") == (3, 1, 2)  # Python 2 began with 1
    assert value(b"K\5q\3K\6q\0K\7q\1K\x08q\2K\x09q\3(h\0h\1h\2h\3t") == (6, 7, 8, 9)
    assert value(b"K\5r\0\1\0\0K\6\x94K\7\x94(j\0\1\0\0h\1h\2t") == (5, 6, 7)
    for missing in (b"K\1q\1h\0", b"h\0", b"K\1q\0h\1", b"K\1q\0g-1\n"):
        with pytest.raises(CkptError, match="was never set"):
            value(missing)


def test_a_tensor_of_itself_many_times_over(read: Read) -> None:
    """A sparse tensor of sparse ones, each twice: forty levels are 2**40 tensors."""
    layout = call(name("torch.serialization", "_get_layout"), text("torch.sparse_coo"))
    level = call(name("torch._utils", "_rebuild_sparse_tensor"), layout, b"(h\1h\1(K\4tt") + b"q\1" + b"0"
    first = tensor([4], [1]) + b"q\1" + b"0"
    assert len(read(torch_file(first + level * 3 + b"h\1")).tensors) == 1
    with pytest.raises(CkptError, match="made of more than 1024 others"):
        read(torch_file(first + level * 40 + b"h\1"))


def test_a_file_that_is_trusted_may_take_more(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of many small dicts, as a long log is: refused, with the way out."""
    torch.save({"log": [{"step": n, "loss": n / 7} for n in range(3_000)]}, tmp_path / "long.pt")
    monkeypatch.setattr(room, "_ROOM", 400_000)
    refused = call("inspect", "tensors", tmp_path / "long.pt")
    assert refused.code == 2 and "more memory than" in refused.err and "hint: CKPT_MEMORY=1000 lets" in refused.err
    (result,) = call("verify", tmp_path / "long.pt", "--json").json["results"]
    assert [problem["code"] for problem in result["problems"]] == ["too-costly"]
    monkeypatch.setenv("CKPT_MEMORY", "100")
    assert call("inspect", "tensors", tmp_path / "long.pt").code == 0
    assert call("verify", tmp_path / "long.pt").code == 0


def test_records_that_are_packed_a_thousandfold(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 kB that are 200 MB of zeros: listed at once; to unpack them all is for a file that is trusted."""
    torch.save({"w": torch.zeros(200_000_000, dtype=torch.uint8)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert call("inspect", "tensors", tmp_path / "packed.pt").code == 0
    (result,) = call("verify", tmp_path / "packed.pt", "--json").json["results"]
    assert [problem["code"] for problem in result["problems"]] == ["too-costly"]
    monkeypatch.setenv("CKPT_MEMORY", "1000")
    assert call("verify", tmp_path / "packed.pt").code == 0


def test_texts_that_no_header_holds(call: Run, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "texts": ["x" * 1_000_000] * 9}, tmp_path / "long.pt")
    done = call("convert", tmp_path / "long.pt")
    assert done.code == 2 and "cannot hold all of it" in done.err and not (tmp_path / "long.safetensors").exists()


def test_values_in_numbers_that_no_command_needs(call: Run, tmp_path: Path) -> None:
    """Hundreds of thousands that take two bytes each: they are counted and listed, and not held by name all at once."""
    lists = b"".join(text(str(key)) + b"](" + b"K\1" * 1_500 + b"e" for key in range(200))
    path = tmp_path / "model.pt"
    path.write_bytes(torch_file(b"}(" + lists + text("w") + tensor([1], [1]) + b"u"))
    found = call("inspect", "tensors", path)
    assert found.code == 0 and call("verify", path).code == 0
    for command in (["inspect", "meta", path], ["inspect", "diff", path, path], ["convert", path]):
        refused = call(*command)
        assert refused.code == 2 and "holds 300000 values beside its tensors" in refused.err
    assert call("patch-config", tmp_path, "--all", "--check").code == 0


def test_values_of_an_index_share_what_a_file_may_take(call: Run, tmp_path: Path) -> None:
    """Each small, all together hundreds of megabytes; and their names are made when they are shown."""
    each = torch_file(b"}(" + b"".join(text(str(key)) + b"](" + b"K\1" * 999 + b"e" for key in range(450)) + b"u")
    (tmp_path / "__0_0.distcp").write_bytes(each * 12)
    places, entries = [], []
    for number in range(12):
        word = text(f"value{number}")
        entries.append((word, name("torch.distributed.checkpoint.metadata", "BytesStorageMetadata") + b")\x81"))
        places.append(dcp_place(word, None, at=number * len(each), length=len(each)))
    (tmp_path / ".metadata").write_bytes(dcp_index(entries, places))
    file = read_tensors(str(tmp_path / ".metadata"))
    assert 450 * 999 + 12 < len(file.values) < 12 * 450 * 999
    assert file.values["value0.3.5"] == 1 and file.values["value11"].endswith("unasked>")
    assert any("not read" in note for note in file.notes)
    with pytest.raises(KeyError):
        file.values["value0.450.5"]
    assert call("verify", tmp_path).code == 0
