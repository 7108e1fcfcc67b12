"""Damaged and malicious files: what must come of each, what it may cost, and that nothing happens on the way."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import SafetensorError, safe_open

from ckpt_cli.errors import CkptError
from ckpt_cli.formats import _pickle
from ckpt_cli.formats._inert import length_of
from ckpt_cli.formats._stream import whole
from ckpt_cli.formats._torch import interpret
from ckpt_cli.room import room_of_a_file
from ckpt_cli.tensor_file import Storage, TensorFile
from ckpt_cli.tensors import read_tensors, recognise
from tests.builders import pickled, storage
from tests.conftest import REPOSITORY, Done, Run
from tests.fuzz import Memory, look
from tests.hostile import JSON_METAS, ODD_NAMES, Case, cases, verdict, write
from tests.strategies import Made, torch_zips
from tests.torch_files import named

LIGHT = [case for case in cases() if not case.heavy]
HEAVY = [case for case in cases() if case.heavy]
# By hand it is a second; a shared machine gets a multiple of that.
SECONDS = 8
# Of the whole process, of which Python and the commands take 20.
MEGABYTES = 64


def check_message(message: str) -> None:
    """One short sentence that a terminal can show."""
    assert message.isprintable() and len(message) < 1500, message[:3000]


@pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)
def test_what_comes_of_it(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.write_bytes(case.data)
    came, message = verdict(str(path))
    assert came == case.expected or case.expected == "any", message
    if message:
        check_message(message.replace(str(path), ""))
        assert str(path) in message


HONEST: dict[str, Callable[[], object]] = {
    "a state dict": lambda: {f"layers.{n}.attention.weight": torch.zeros(1) for n in range(12_000)},
    "views": lambda: dict(zip(map(str, range(40_000)), torch.zeros(40_000).unbind())),
    "an optimizer": lambda: {
        "state": {n: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)} for n in range(6_000)},
        "param_groups": [{"lr": 0.1, "params": list(range(6_000))}],
    },
    "a vocabulary": lambda: {"tokens": [f"token{n}" for n in range(200_000)]},
    "a vocabulary with numbers": lambda: {f"token{n}": n for n in range(100_000)},
    "merges": lambda: {(f"a{n}", f"b{n}"): n for n in range(50_000)},
    "small numbers": lambda: {"labels": [n % 250 for n in range(300_000)]},
    "little lists": lambda: {"pairs": [[n % 100, n % 50] for n in range(60_000)]},
    "little dicts": lambda: {n: {"step": n} for n in range(40_000)},
    "nothing in lists": lambda: [[] for _ in range(150_000)],
    "options": lambda: {"args": argparse.Namespace(**{f"option_{n}": [n, "x", None] for n in range(20_000)})},
    "a log": lambda: [{"loss": n / 7, "step": n, "lr": 0.1, "epoch": n / 100} for n in range(20_000)],
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", HONEST)
def test_honest_files_are_read(what: str, protocol: int, tmp_path: Path) -> None:
    """The bounds on memory go by a file's size; what people save is below them, in either protocol of the time."""
    torch.save(HONEST[what](), tmp_path / "model.pt", pickle_protocol=protocol)
    file = read_tensors(str(tmp_path / "model.pt"))
    assert held(file) >= 12_000


def held(file: TensorFile) -> int:
    """Tensors and values; of a list that is one value, what is in it."""
    return len(file.tensors) + sum(len(v) if isinstance(v, list) and v else 1 for v in file.values.values())


LARGE: dict[str, Callable[[], object]] = {
    "indices": lambda: {"sampler": list(range(1_000_000))},
    "a vocabulary": lambda: {"vocabulary": {f"token{n}": n for n in range(250_000)}},
    "pieces of words": lambda: {f"\u2581{chr(0x4E00 + n % 20_000)}{n}": n for n in range(200_000)},
    "words both ways": lambda: {"of": (words := [f"w{n}" for n in range(280_000)]), "to": dict.fromkeys(words, 7)},
    "states": lambda: {n: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1_500)} for n in range(20_000)},
    "a flat optimizer": lambda: {f"state.{n}.exp_avg": torch.zeros(800) for n in range(40_000)},
    "a log": lambda: [{"loss": n / 7, "step": n, "lr": 0.1, "epoch": n / 100} for n in range(60_000)],
    "pairs as keys": lambda: {"merges": {(n, n + 1): n for n in range(100_000)}},
}  # fmt: skip


@pytest.mark.parametrize("stacked", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", LARGE)
def test_large_honest_files_are_read(what: str, stacked: bool, tmp_path: Path) -> None:
    """Beyond a megabyte the room is that of numbers, texts and storages: what people save is made of them."""
    content = LARGE[what]()
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not stacked)
    file = read_tensors(str(tmp_path / "model.pt"))
    assert held(file) >= 40_000


def test_storages_alone_earn_nothing() -> None:
    """A legacy file names its storages before it shows that it has them."""
    named = b"".join(storage(str(n), 1) + b"0" for n in range(25_000))
    found = interpret("made", whole(pickled(named, b"N")), lambda id: Storage(id.key, "made", 0, id.bytes), False)
    assert found.room < room_of_a_file() - 25_000 * 300


MEASURED = """
import json, resource, sys, time
from ckpt_cli.formats import formats
from tests.hostile import verdict
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
formats()
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
for path in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before, begun = peak(), time.process_time()
    came, message = verdict(path)
    print(json.dumps([came, message, time.process_time() - begun, (peak() - before) / 1024]), flush=True)
"""


def test_honest_files_that_share_much_are_read(tmp_path: Path) -> None:
    """The bounds on what contents unfold to are for those that unfold without end."""
    whole = torch.arange(64.0)
    model = {f"layers.{index}.attention.weight": whole[index % 60 :] for index in range(5_000)}
    layer = torch.nn.Sequential(*[torch.nn.Linear(1, 1)] * 6)
    content = {
        "model": model, "ema": model, "best": {"model": model}, "albert": torch.nn.ModuleList([layer] * 24),
        "history": {"train": {"loss": [0.5] * 100_000, "labels": ["category"] * 100_000, "mask": [None] * 100_000}},
        "vocabulary": {f"token{index}": index for index in range(50_000)},
        "merges": [("a", str(n)) for n in range(20_000)],
    }  # fmt: skip
    torch.save(content, tmp_path / "model.pt")
    file = read_tensors(str(tmp_path / "model.pt"))
    assert len(file.tensors) == 3 * 5_000 + 24 * 6 * 2
    assert file.values["history.train.labels.99999"] == "category" and file.values["vocabulary.token7"] == 7


COMMANDS = """
import json, os, sys
python, path, said = sys.executable, *sys.argv[1:]
for command in (["inspect", "tensors"], ["verify"]):
    streams = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    streams += [(os.POSIX_SPAWN_OPEN, 2, said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
    arguments = [python, "-W", "ignore", "-m", "ckpt_cli", *command, path]
    child = os.posix_spawn(python, arguments, os.environ, file_actions=streams)
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    print(json.dumps([os.waitstatus_to_exitcode(status), open(said).read(), seconds, used.ru_maxrss / 1024]))
"""


PLAIN: dict[str, Callable[[], object]] = {
    "indices": lambda: {"sampler": list(range(1_900_000))},
    "losses": lambda: {"losses": [n / 7 for n in range(1_000_000)]},
    "lists": lambda: {f"epoch{k}": list(range(1_000, 100_000)) for k in range(15)},
    "a vocabulary": lambda: {"vocabulary": {f"token{n}": n for n in range(250_000)}},
    "its words": lambda: {"words": [f"token{n}" for n in range(300_000)]},
    "a vocabulary of an object": lambda: {"it": argparse.Namespace(of={f"token{n}": n for n in range(250_000)})},
    "a log": lambda: {"history": [{"loss": n / 7, "step": n, "lr": 0.1, "epoch": n / 100} for n in range(60_000)]},
    "pairs as keys": lambda: {"merges": {(n, n + 1): n for n in range(100_000)}},
    "bytes": lambda: {"raw": bytes(range(256)) * 200_000},
    "a text": lambda: {"text": "x" * 50_000_000},
    "texts": lambda: {str(n): "x" * 2_000_000 for n in range(18)},
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="a peak of memory is in other units elsewhere")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", PLAIN)
def test_plain_contents_are_read_in_little_memory(what: str, protocol: int, tmp_path: Path) -> None:
    """Large, and nothing but numbers, texts and bytes: no more of it is in memory than of any other file."""
    path = tmp_path / "made.pt"
    torch.save(PLAIN[what](), path, pickle_protocol=protocol)
    commands = COMMANDS.replace('["verify"]', '["inspect", "tensors", "--json"], ["verify"]')
    done = subprocess.run(
        [sys.executable, "-c", commands, str(path), str(tmp_path / "said")],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [0, 0, 0], (done.stderr, rows)
    assert max(row[3] for row in rows) < MEGABYTES, rows


def test_what_is_named_late_is_the_same(tmp_path: Path) -> None:
    """Values that lie together in large numbers: names, kinds and what each is, as of a few."""
    content = {
        "counts": {f"w{n}.x": n for n in range(1_500)}, "order": list(range(1_200)), "mixed": [1, 2.5, None, "x"] * 300,
        "log": [{"step": n, "pair": (n, "a"), "raw": b"abc", "none": [], "empty": {}} for n in range(400)],
        "merges": {(n, f"b{n}"): n for n in range(1_100)}, "numbers": {n: n / 3 for n in range(1_100)},
        "it": argparse.Namespace(words={f"w{n}": n for n in range(1_100)}),
        "long": {"indices": list(range(-5, 120_000)), "floats": [n / 7 for n in range(101_000)]}, "w": torch.ones(2),
        "a": {"b": [1] * 1_000}, "a.b": {"0": 5},
    }  # fmt: skip
    torch.save(content, tmp_path / "made.pt")
    late = read_tensors(str(tmp_path / "made.pt"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ckpt_cli.formats._tree.MANY", 10**9)
        patched.setattr("ckpt_cli.formats._effects.packed", lambda items: items)
        once = read_tensors(str(tmp_path / "made.pt"))
    assert list(late.values.items()) == list(once.values.items()) and len(late.values) == len(once.values)
    assert dict(late.kinds) == dict(once.kinds)
    assert late.values["long.indices"] == list(range(-5, 120_000)) and late.values["log.399.pair"] == [399, "a"]
    assert "counts.w7.x" in late.values and "counts.w7" not in late.values and "order.1200" not in late.values


@pytest.mark.parametrize("again", [b"h\0", b"2"], ids=["got", "doubled"])
def test_numbers_that_are_one_object_earn_no_memory(again: bytes) -> None:
    """In an array numbers take less than by themselves; one that stands in many places gives that back but once."""
    once = b"](J\1\2\3\4q\0" + again * 2_000 + b"e"
    found = _pickle.load(whole(b"\x80\4](" + once * 10 + b"e."), {}, {}, lambda pid: pid)
    assert length_of(found.value[0]) == 2_001 and len(found.value[0]) == 1
    assert found.room < room_of_a_file() - 10 * 2_001 * 8


def test_long_texts_and_bytes_are_told_by_their_beginning(tmp_path: Path) -> None:
    """Letters of two bytes that lie across blocks count as one; what breaks off is no text."""
    letters = "\u00e9x" * 1_500_000
    for protocol in (2, 4):
        torch.save(
            {"t": letters, "b": letters.encode(), "a": bytearray(300_000)}, tmp_path / "m", pickle_protocol=protocol
        )
        values = read_tensors(str(tmp_path / "m")).values
        assert values["t"] == f"<3000000 characters {letters[:64]!a}...>"
        assert values["b"] == f"<4500000 bytes {letters.encode()[:64].hex()}...>"
        assert values["a"] == f"<300000 bytes {'00' * 64}...>"
    stream = b"T" + (3 << 20).to_bytes(4, "little") + b"\xe9" * (3 << 20) + b"."
    found = _pickle.load(whole(stream), {}, {}, lambda pid: pid).value
    assert (found.begins, found.size) == ("\u00e9" * 64, 3 << 20)
    with pytest.raises(CkptError, match="breaks off"):
        _pickle.load(whole(b"X" + (3 << 20).to_bytes(4, "little") + b"a" * (2 << 20)), {}, {}, lambda pid: pid)
    with pytest.raises(CkptError, match="breaks off"):
        _pickle.load(
            whole(b"X" + (3 << 20).to_bytes(4, "little") + b"\xe9" * (3 << 20) + b"."), {}, {}, lambda pid: pid
        )


@pytest.mark.skipif(sys.platform != "linux", reason="a peak of memory is in other units elsewhere")
@pytest.mark.parametrize("case", HEAVY, ids=lambda case: case.name)
def test_what_it_costs(case: Case, tmp_path: Path) -> None:
    """The two commands that read whatever they are given, each as a process, which is all that it may take."""
    path = tmp_path / ("made.metadata" if case.name.startswith("dcp/") else "made.pt")
    path.write_bytes(case.data)
    # From a small process between: one that is made counts the memory of the one that made it.
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(path), str(tmp_path / "said")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = {"reads": (0, 0), "refused": (2, 1), "damaged": (1, 1), "runs-code": (2, 1)}.get(case.expected)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert wanted is None or [row[0] for row in rows] == list(wanted), rows[0][1]
    for _, said, seconds, megabytes in rows:
        assert "Traceback" not in said and "itself went wrong" not in said, said[:5000]
        assert len(said) < 5000 or case.expected == "reads", said[:5000]
        assert seconds < SECONDS
        assert megabytes < MEGABYTES


def test_the_case_names_differ() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) > 500
    counts = {
        expected: sum(case.expected == expected for case in cases())
        for expected in ("reads", "refused", "damaged", "runs-code")
    }
    assert min(counts.values()) > 30, counts


WATCHED = """
import os, sys, warnings
from tests.hostile import cases
from ckpt_cli.errors import CkptError
from ckpt_cli.tensors import check_end, read_tensors
folder, current, seen = sys.argv[1], "", []

def look(path):
    for one in (read_tensors, check_end):
        try:
            one(path)
        except CkptError:
            pass

def hook(event, arguments):
    # The directory of a distributed checkpoint is asked for the data files that its index names, and their sizes.
    own = event == "open" and arguments[0] == current
    beside = event == "os.scandir" and arguments[0] == os.path.dirname(current)
    if current and event not in ("builtins.id", "array.__new__") and not own and not beside:
        seen.append((current, event, repr(arguments)[:200]))

paths = sorted(os.path.join(base, file) for base, _, files in os.walk(folder) for file in files)
for path in paths:  # once without a watch: the formats, and what the library itself imports late
    if "ound" in path or "zip64_" in path or "bomb" in path or "not_zip" in path:
        look(path)
sys.addaudithook(hook)
before = set(sys.modules)
for path in paths:
    current = path
    look(path)
    current = ""
assert set(sys.modules) == before, set(sys.modules) - before
print(*seen, len(paths), sep="\\n")
"""


def test_nothing_else_is_opened_imported_or_run(tmp_path: Path) -> None:
    """The interpreter reports every import, open, compilation, process and connection: there is none but the file's."""
    count = write(str(tmp_path / "files"))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path / "files")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[0] == str(count + 1), done.stdout[:2000]


def test_warnings_as_errors_change_nothing(tmp_path: Path) -> None:
    """Python warns of odd escapes in old strings; with -W error that would be an exception."""
    from tests.builders import torch_file

    path = tmp_path / "made"
    path.write_bytes(torch_file(b"S'\\\\q\\\\400'\n"))
    run = "import sys; from ckpt_cli.tensors import read_tensors; print(read_tensors(sys.argv[1]).values)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", run, str(path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- the library as the oracle


@pytest.mark.parametrize("case", [c for c in cases() if c.name.startswith("safetensors/")], ids=lambda case: case.name)
def test_safetensors_verdicts_are_the_library_s(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    path.write_bytes(case.data)
    try:
        with safe_open(str(path), framework="np") as file:
            theirs: set[str] | None = {key or "<root>" for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        theirs = None
    came, message = verdict(str(path))
    if "/immense_" in case.name:
        assert came == "refused", message
        return
    assert (came == "reads") is (theirs is not None), message
    if theirs is not None:
        assert {tensor.name for tensor in read_tensors(str(path)).tensors} == theirs


def both_read(made: Made) -> bool:
    """Whether torch and we read the file; if so, the same names, dtypes, shapes and strides."""
    try:
        source = Memory(made.data)
        file = recognise(source).read(source)
    except CkptError:
        return False
    if not made.known:
        return False  # names that torch's own reader might look up are ours alone to read
    try:
        # A list in itself is what only we can walk.
        tensors = named(torch.load(io.BytesIO(made.data), weights_only=True))
    except Exception:
        return False
    theirs = [(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.stride()) for name, t in tensors]
    assert sorted((t.name, t.dtype, t.shape, t.stride) for t in file.tensors) == sorted(theirs)
    return bool(theirs)


def test_what_torch_and_we_both_read_is_the_same() -> None:
    """Pickles that are valid or nearly: nothing but our errors, and torch's names, dtypes, shapes and strides."""
    compared = 0

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(made=torch_zips())
    def check(made: Made) -> None:
        nonlocal compared
        look(made.data)
        compared += both_read(made)

    check()
    assert compared  # between 5 and 40, as chance has it


# --- files of other makers


# Rows of the table whose words are no verdict, and where the contract says otherwise than they.
JUDGED = {
    "after_stop.pt": "reads", "billion_laughs.pt": "reads", "encrypted_flag.pt": "refused", "eocd_count.pt": "reads",
    "flag_0x20.pt": "refused", "g_namespace.pt": "reads", "root_list.pt": "reads", "self_ref.pt": "reads",
    "suffix_junk.pt": "reads", "torchscript_like.pt": "any", "legacy_tar.pt": "any", "case_variant.pt": "any",
}  # fmt: skip


def test_real_hostile_files(shared: Path) -> None:
    """Each as its table says, in messages of one line; measured in a process of its own."""
    folder = shared / "hostile"
    with open(folder / "MANIFEST.tsv", newline="") as table:
        rows = [row for row in csv.reader(table, delimiter="\t") if row[0].split("/")[0] in ("torchzip", "safetensors")]
    with open(folder / "ORACLE.tsv", newline="") as table:
        oracle = {row[0]: row[2] for row in csv.reader(table, delimiter="\t") if row[0].startswith("safetensors/")}
    rows = [row for row in rows if not row[0].endswith(".index.json")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, *(str(folder / row[0]) for row in rows)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(rows) > 75, done.stderr[-2000:]
    for row, line in zip(rows, lines):
        came, message, seconds, megabytes = json.loads(line)
        wanted = JUDGED.get(row[0].rpartition("/")[2])
        if wanted is None:
            accepted = oracle[row[0]].startswith("ACCEPT") if row[0] in oracle else row[3].startswith("accept")
            wanted = "reads" if accepted else "no"
        assert came == wanted or wanted == "any" or (wanted == "no" and came != "reads"), (row, message)
        check_message(message.replace(str(folder), ""))
        # What the process has beside the files: all of it is measured for those that are made to take much.
        assert seconds < SECONDS and megabytes < MEGABYTES - 20, row


# --- the command line


def harmless(done: Done) -> None:
    """Nothing on the terminal that could steer it, and no failure of ours behind a tidy message."""
    assert "itself went wrong" not in done.err, done.err
    shown = done.out + done.err
    assert all(character.isprintable() or character in "\n\t" for character in shown), ascii(shown[:2000])


BY_NAME = {case.name: case for case in cases()}
EXITS = {
    "torchzip/g_os_system.pt": 2, "stream/no_storage.pt": 1, "stream/neg_stride.pt": 2, "disk/empty.pt": 1,
    "disk/truncated_90.pt": 1, "disk/git_lfs_pointer.pt": 2, "disk/not_zip.pt": 2, "zip/dup_data_pkl.pt": 2,
    "zip/central_crc.pt": 1, "legacy/runs_code.pt": 2, "legacy/protocol_laughs.pt": 2, "legacy/storage_missing.pt": 1,
    "safetensors/hole.safetensors": 2, "safetensors/short.safetensors": 1, "safetensors/surrogate.safetensors": 2,
    "stream/storage_newline.pt": 1, "stream/storage_endless.pt": 1, "costly/laughs_tensor.pt": 2,
    "dcp/path_parent.metadata": 2, "torchzip/n_markup.pt": 0, "disk/bitflip_pickle.pt": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", EXITS)
def test_exit_codes(name: str, tmp_path: Path, call: Run) -> None:
    """1 for damage, 2 for what is refused; one line of error, nothing on stdout, the same with --json."""
    path = tmp_path / Path(name).name.replace(".metadata", ".pt")
    path.write_bytes(BY_NAME[name].data)
    for options in ((), ("--json",)):
        done = call("inspect", "tensors", path, *options)
        harmless(done)
        assert done.code == EXITS[name], done.err
        if done.code:
            lines = [line for line in done.err.splitlines() if line and not line.startswith("hint:")]
            assert len(lines) == 1 and lines[0].startswith("error: ")
        if done.code == 2:
            assert done.out == ""


@pytest.mark.parametrize("form", ["table", "plain", "name", "json"])
@pytest.mark.parametrize("kind", ["stream/name_{}.pt", "safetensors/name_{}.safetensors"])
def test_odd_tensor_names(kind: str, form: str, tmp_path: Path, call: Run) -> None:
    """Escapes, markup, bidirectional marks, newlines: shown harmlessly, one record a line, raw in JSON."""
    for label, odd in {**ODD_NAMES, **({"surrogate": "\ud800"} if "pt" in kind[-3:] else {})}.items():
        source = kind.format(label)
        path = tmp_path / ("made" + Path(kind).suffix)
        path.write_bytes(BY_NAME[source].data if source in BY_NAME else _named(odd))
        done = call("inspect", "tensors", path, "--format", form)
        assert done.code == 0, done.err
        harmless(done)
        if form == "json":
            assert done.out.isascii()
            assert [tensor["name"] for tensor in done.json["tensors"]] == [odd or "<root>"]
        elif form == "name":
            assert len(done.out.splitlines()) == 1
        if form != "json":
            assert "[link=file" in done.out or label != "markup"


def _named(odd: str) -> bytes:
    from tests.builders import dict_of, tensor, text, torch_file

    return torch_file(dict_of((text(odd), tensor())))


ODD_FILES = [
    b"d12/model_000100.pt", b"d12/meta_000100.json", b"d12/optim_000100_rank0.pt", b"d12/optim_000100_rank2.pt",
    b"d12/model_000200.pt", b"d12/meta_000300.json", b"d12/model_000500.pt.tmp", b"d12/.model_000600.pt.swp",
    b"d12/model_latest.pt", b"d12/model_1000000.pt", b"d12/model_00100.pt", b"d12/model_-00100.pt",
    b"d12/xmodel_000700.pt", b"d12/model_000800 (1).pt", b"d12/MODEL_000900.PT", b"d12/bad_\xff_name.pt",
    "d12/model_\u0661\u0660\u0660\u0660\u0660\u0660.pt".encode(),
    *(folder + b"/model_000100.pt" for folder in (
        b"[red]d12[/red]", b"d12\x1b[31m", b"d12\nd13", b" d12", b"-rf", b"~", b"d12;rm", "\u202ed21".encode(),
        b"bad\xff\xfe",
        b"d\x7f\xc2\x9b31m", b"d\r12", "d\u200b12".encode(), b"..d", b"%s{0}", b"n" * 200,
    )),
]  # fmt: skip
ODD_LINKS = {
    b"d12/model_000999.pt": b"model_000999.pt", b"d12/model_000998.pt": b"/etc/passwd", b"loop": b".", b"up": b"..",
    b"d12/model_000997.pt": b"../gone.pt", b"d12/inner": b"../d12", b"zero": b"/dev/zero",
    b"d12/model_000996.pt": b"/dev/zero",
}  # fmt: skip


def odd_tree(root: Path) -> Path:
    """Incomplete sets, names that nearly fit, names no terminal should see, links in circles and out of the tree."""
    base = os.fsencode(root)
    for path in ODD_FILES:
        os.makedirs(os.path.dirname(os.path.join(base, path)), exist_ok=True)
        Path(os.fsdecode(os.path.join(base, path))).touch()
    for path, target in ODD_LINKS.items():
        os.symlink(target, os.path.join(base, path))
    os.mkfifo(root / "d12/meta_000996.json")
    os.mkfifo(root / "d12/model_000995.pt")
    return root


@pytest.mark.parametrize("form", ["table", "plain", "name", "json"])
def test_odd_directories(form: str, tmp_path: Path, ckpt: Run) -> None:
    """`list` ends, shows every name harmlessly and follows no link out of the tree."""
    root = odd_tree(tmp_path / "tree")
    done = ckpt("list", root, "--format", form)
    assert done.code == 0, done.err
    harmless(done)
    if form == "json":
        assert done.out.isascii()
        refs = [checkpoint["ref"] for checkpoint in done.json["checkpoints"]]
        assert "[red]d12[/red]/100" in refs and "d12\nd13/100" in refs and "d12\x1b[31m/100" in refs
        assert len(refs) == len(set(refs))
    elif form == "plain":
        assert "d12\\x1b[31m" in done.out and "\\u202e" in done.out and "bad\\xff" in done.out
        assert all(line.count("\t") > 3 for line in done.out.splitlines())


def test_odd_metadata(tmp_path: Path, ckpt: Run, call: Run) -> None:
    """Whatever a meta file holds: the listing goes on, and one command shows it or says what is wrong."""
    for label, data in JSON_METAS.items():
        folder = tmp_path / "root/base_checkpoints" / f"d-{label}"
        folder.mkdir(parents=True)
        (folder / "model_000001.pt").write_bytes(b"x")
        (folder / "meta_000001.json").write_bytes(data)
    listed = call("list", tmp_path / "root", "--json")
    assert listed.code == 0 and len(listed.json["checkpoints"]) == len(JSON_METAS)
    harmless(call("list", tmp_path / "root", "--format", "plain"))
    shown: dict[str, Any] = {}
    for label in JSON_METAS:
        done = call("inspect", "meta", f"base/d-{label}/1", "--root", tmp_path / "root")
        harmless(done)
        assert done.code == 0 or (done.code in (1, 2) and "error: " in done.err), (label, done)
        shown[label] = done.code
    assert shown["ok"] == shown["ansi"] == 0 and shown["truncated"] == shown["zeros"] == shown["deep"] == 1, shown


# --- the fuzz target


def test_two_thousand_mutated_files(tmp_path: Path) -> None:
    """The fuzz target as it runs for hours, for a few seconds."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz", "--count", "2000", "--seed", "1", "--crashes", tmp_path],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2000 inputs" in done.stdout and done.stdout.endswith("0 failures\n")


def test_the_fuzz_target_finds_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that fails is found, and the file that made it fail is kept."""
    from ckpt_cli.formats import safetensors
    from tests import fuzz
    from tests.builders import safetensors_file, slot

    monkeypatch.setattr(safetensors, "MAX_HEADER", None)
    told = fuzz.run([fuzz.seed(safetensors_file({"a": slot()}, b"x"))], 0, 50, None, str(tmp_path / "crashes"))
    assert told.failures and told.inputs == 50
    assert "TypeError" in Path(told.failures[0] + ".txt").read_text()
