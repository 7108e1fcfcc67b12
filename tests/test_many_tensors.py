"""Files of very many tensors: what they may take in memory, and that the short ways say the same as the long ones.

What a process took is its largest resident set, less that of a process which lists one tensor.
"""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_cli.errors import CkptError
from ckpt_cli.formats import _one_step
from ckpt_cli.formats._entries import Entries
from ckpt_cli.formats._machine import Machine
from ckpt_cli.tensors import read_tensors
from ckpt_cli.ui import out
from tests.conftest import REPOSITORY
from tests.torch_files import write_zip

MANY = 24_000  # of the most that a file of a few megabytes may hold
PEAK = """
import os, resource, sys
pid = os.fork()
if not pid:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execv(sys.executable, [sys.executable, "-m", "ckpt_cli", *sys.argv[1:]])
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


@pytest.fixture(scope="module")
def peak(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, int]]:
    """Runs a command; its exit code, and the bytes that its process took beyond those for a file of one tensor."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the largest resident set is counted otherwise")
    home = tmp_path_factory.mktemp("home")
    torch.save({"w": torch.zeros(1)}, home / "one.pt")

    def run(*arguments: object) -> tuple[int, int]:
        # From a process of its own: a fork counts what it had from its parent.
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, arguments)],
            cwd=home,
            env={"PYTHONPATH": str(REPOSITORY), "HOME": str(home), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=120,
        )
        code, size = done.stdout.split()
        return int(code), int(size) * 1024

    least = run("inspect", "tensors", home / "one.pt")[1]

    def beyond(*arguments: object) -> tuple[int, int]:
        code, size = run(*arguments)
        return code, size - least

    return beyond


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "model.pt"
    torch.save({f"layers.{n // 10}.experts.{n % 10}.weight": torch.zeros(2, 3) for n in range(MANY)}, path)
    return path


@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        (["inspect", "tensors", "--format", "plain"], 1_150),
        (["inspect", "tensors", "--format", "table"], 1_150),
        (["inspect", "tensors", "--json"], 1_150),
        (["inspect", "tensors", "-q"], 1_150),
        (["inspect", "tensors", "--tree", "--format", "plain"], 1_750),
        (["inspect", "tensors", "--tree", "--format", "table"], 1_750),
    ],
    ids=str,
)
def test_what_a_tensor_takes(
    arguments: list[str], most: int, model: Path, peak: Callable[..., tuple[int, int]]
) -> None:
    code, size = peak(*arguments, model)
    assert code == 0 and size < most * MANY


def test_what_a_tensor_of_a_legacy_file_takes(tmp_path: Path, peak: Callable[..., tuple[int, int]]) -> None:
    content = {f"layers.{n}.weight": torch.zeros(0) for n in range(MANY)}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    code, size = peak("inspect", "tensors", "--format", "plain", tmp_path / "old.pt")
    assert code == 0 and size < 1_150 * MANY


@pytest.mark.parametrize("command", [["optim"], ["optim", "--json"], ["tensors", "--json"]], ids=" ".join)
def test_what_a_state_takes(command: list[str], tmp_path: Path, peak: Callable[..., tuple[int, int]]) -> None:
    """Three tensors, of which one is a step."""
    count = MANY // 3
    states = {
        n: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)} for n in range(count)
    }
    torch.save({"state": states, "param_groups": [{"lr": 0.1, "params": list(range(count))}]}, tmp_path / "optim.pt")
    code, size = peak("inspect", *command, tmp_path / "optim.pt")
    assert code == 0 and size < 3_500 * count


def test_what_a_record_takes_that_nothing_uses(tmp_path: Path, peak: Callable[..., tuple[int, int]]) -> None:
    count = 70_000
    torch.save({"w": torch.zeros(1)}, tmp_path / "many.pt")
    with zipfile.ZipFile(tmp_path / "many.pt", "a") as archive:
        for n in range(count):
            archive.writestr(f"many/data/x{n}", b"")
    code, size = peak("inspect", "tensors", "--json", tmp_path / "many.pt")
    assert code == 0 and size < 300 * count


def script(path: Path, code: Iterator[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\2c__torch__\nM\n)\x81}b.")
        archive.writestr("m/constants.pkl", b"\x80\2).")
        archive.writestr("m/version", "3")
        with archive.open("m/code/__torch__.py", "w") as file:
            for line in code:
                file.write(line.encode())
    return path


def test_code_is_never_in_memory_as_a_whole(tmp_path: Path, peak: Callable[..., tuple[int, int]]) -> None:
    path = script(
        tmp_path / "made.pt", (line for _ in range(20_000) for line in ("class M(Module):\n", "  x = 1\n" * 100))
    )
    assert path.stat().st_size > 16_000_000
    code, size = peak("inspect", "tensors", path)
    assert code == 0 and size < 4_000_000
    long = script(tmp_path / "long.pt", iter(["class M(Module):\n", "x" * 20_000_000]))
    code, size = peak("inspect", "tensors", long)
    assert code == 0 and size < 8_000_000


def test_code_that_declares_too_much(tmp_path: Path) -> None:
    path = script(tmp_path / "many.pt", (f"class A{n}(Module):\n" for n in range(200_001)))
    with pytest.raises(CkptError, match="its code declares more than 200000") as caught:
        read_tensors(str(path))
    assert caught.value.message.startswith(f"{path} is refused: ")
    listed = "class M(Module):\n  __parameters__ = [" + '"a", ' * 300_000 + "]\n"
    with pytest.raises(CkptError, match="its code has a list of more than"):
        read_tensors(str(script(tmp_path / "long.pt", iter([listed]))))


# --- a tensor in one step


def contents() -> dict[str, Any]:
    """Every shape of the call that torch writes, each often enough to be numbered beyond the first 256 slots."""
    base = torch.arange(100_000.0)
    made: dict[str, Any] = {}
    for n in range(60):
        made |= {
            f"{n}.scalar": torch.tensor(float(n)),
            f"{n}.vector": torch.ones(n % 5, dtype=torch.int8),
            f"{n}.matrix": torch.ones(300, n % 3 + 1, dtype=torch.bfloat16).t(),
            f"{n}.cube": torch.zeros(70_000 if n == 1 else 2, 1, 3),
            f"{n}.deep": torch.zeros(1, 2, 1, 2, 1, n % 4),
            f"{n}.view": base[n * 1000 : n * 1000 + 7 : 2],
            f"{n}.parameter": torch.nn.Parameter(torch.ones(2, n % 2)),
            f"{n}.grown": torch.ones(2, requires_grad=True),
            f"{n}.nested": {"list": [torch.ones(1), (torch.ones(2), n)], "same": base},
        }
    return made


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("stacked", [False, True], ids=["zip", "legacy"])
def test_one_step_is_what_the_opcodes_do(
    stacked: bool, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "made.pt")
    saved = contents()
    if not stacked:  # which has no numbers of this kind
        saved |= {f"{n}.told": torch.ones(n % 3, dtype=torch.uint16) for n in range(60)}
    torch.save(saved, path, _use_new_zipfile_serialization=not stacked, pickle_protocol=protocol)
    taken: list[bool] = []
    parameters = 0
    rebuilt = _one_step._rebuilt

    def watched(machine: Machine) -> bool:
        nonlocal parameters
        depth = len(machine.stack)
        taken.append(rebuilt(machine))
        parameters += len(machine.stack) < depth
        return taken[-1]

    monkeypatch.setattr(_one_step, "_rebuilt", watched)
    short = read_tensors(path)
    assert sum(taken) > 0.8 * len(short.tensors) and parameters > 40
    monkeypatch.setattr(_one_step, "_rebuilt", lambda machine: False)
    assert read_tensors(path) == short
    monkeypatch.setattr(_one_step, "_rebuilt", rebuilt)
    for length in (1, 97, 1000):  # a call that is not in one block is left to the opcodes
        monkeypatch.setattr("ckpt_cli.formats._stream.BLOCK", length)
        assert read_tensors(path) == short


@pytest.fixture
def again(tmp_path: Path) -> Callable[[int], Path]:
    """A file that has under `again` what lies so many slots before the last tensor."""
    torch.save({f"w{n}": torch.ones(2) for n in range(60)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as archive:
        pickle = archive.read("plain/data.pkl")
        records = {f"data/{n}": archive.read(f"plain/data/{n}") for n in range(60)}
    assert pickle[-7:-6] == b"r" and pickle[-2:] == b"u."
    last = struct.unpack("<I", pickle[-6:-2])[0]

    def write(before: int) -> Path:
        more = b"X\5\0\0\0againj" + struct.pack("<I", last - before)
        return write_zip(tmp_path / f"{before}.pt", pickle[:-2] + more + b"u.", records)

    return write


def test_what_a_tensor_is_made_of_stays_in_the_memo(again: Callable[[int], Path]) -> None:
    assert read_tensors(str(again(0))).tensors[-1].name == "again"
    assert read_tensors(str(again(2))).values == {"again": {}}  # its hooks
    assert read_tensors(str(again(3))).values == {"again": [1]}  # its stride
    assert read_tensors(str(again(4))).values == {"again": [2]}
    assert read_tensors(str(again(6))).values == {"again": "59"}  # the key of its storage


def test_arguments_that_are_used_twice(again: Callable[[int], Path]) -> None:
    """No pickler writes it: they are made for one call."""
    with pytest.raises(CkptError, match="uses twice what a tensor is made of"):
        read_tensors(str(again(1)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x89h", b"\x88h"),  # requires a gradient: nothing else
        (b"K\0K\2\x85", b"K\1K\2\x85"),  # begins behind the first element
        (b"K\2\x85", b"K\3\x85"),  # is longer
        (b"\x85r", b"\x86r"),  # takes another value from the stack
        (b"K\2tr", b"K\3tr"),  # a longer storage
        (b"X\2\0\0\0", b"X\1\0\0\0"),  # a shorter key
        (b"Rr", b"Rq"),  # another slot
    ],
)
def test_a_call_that_is_altered(
    old: bytes, new: bytes, again: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is what the opcodes make of it, the refusal too."""
    with zipfile.ZipFile(again(0)) as archive:
        pickle = archive.read("made/data.pkl")
        records = {f"data/{n}": archive.read(f"made/data/{n}") for n in range(60)}
    at = pickle.rindex(old, 0, pickle.rindex(b"w58"))
    altered = write_zip(tmp_path / "altered.pt", pickle[:at] + new + pickle[at + len(old) :], records)

    def came() -> object:
        try:
            return read_tensors(str(altered))
        except CkptError as error:
            return error.message

    short = came()
    monkeypatch.setattr(_one_step, "_rebuilt", lambda machine: False)
    assert came() == short


# --- entries and JSON in pieces


def test_entries_out_of_order() -> None:
    entries = Entries()
    for name, header in (("b", 20), ("a", 10), ("\u00e9", 30), ("c", 10)):
        entries.add(name.encode(), header, 1, 2, 0, header)
    assert list(entries) == ["b", "a", "\u00e9", "c"] and len(entries) == 4
    assert [(number, record.name) for number, record in entries.ordered()] == [
        (1, "a"),
        (3, "c"),
        (0, "b"),
        (2, "\u00e9"),
    ]
    assert entries["\u00e9"].header == 30 and "\u00e9" in entries and "e" not in entries and "\udc80" not in entries
    assert entries.get("d") is None and entries.checked
    entries.clear()
    assert not entries and not list(entries.ordered()) and not entries.checked


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_json_in_pieces_is_the_same_object(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"name": f"\u00e9{n}", "value": math.nan if n == 300 else n, "shape": (1, 2)} for n in range(count)]
    out.emit_json("x", {"items": iter(items), "last": {"a": math.inf}})
    pieces = capsys.readouterr().out
    out.emit_json("x", {"items": items, "last": {"a": math.inf}})
    assert pieces == capsys.readouterr().out
    assert json.loads(pieces)["last"] == {"a": None} and len(json.loads(pieces)["items"]) == count
