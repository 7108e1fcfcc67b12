"""Facts of speed that no machine changes: modules loaded, files opened, bytes read, calls of the system, memory.

Each is that of a whole process. The bounds have some slack above what is needed today, and each way of measuring is
first shown something that it must see.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.conftest import REPOSITORY

CKPT = [sys.executable, "-m", "ckpt_cli"]
# What takes long to import, and what nobody needs who only looks at files.
NEVER = """
    torch numpy rich pydantic transformers safetensors pandas asyncio unittest multiprocessing http ssl email
    ctypes pickle tarfile zipfile sqlite3 decimal statistics importlib.metadata typer.rich_utils typer.testing
""".split()
# Modules of ckpt_cli, and all that Python loads more than for `pass`.
MODULES = {
    "list": (34, 190),
    "latest": (34, 190),
    "inspect meta": (48, 205),
    "inspect tensors": (71, 225),
    "verify mid": (77, 240),
    "prune --keep 1 --dry-run": (94, 250),
    "convert base/d6 -o OUT": (96, 255),
}
CHANGING = re.compile(r"rename|unlink|rmdir|mkdir|link|truncate|write|sync|chmod|chown|utime|mknod|creat\b")
CALL = re.compile(r'(?P<name>\w+)\((?P<told>(?:(?:\d+|AT_FDCWD)<(?P<folder>[^>]*)>)?(?:, )?(?:"(?P<text>[^"]*)")?.*)')
MIB = 1 << 20


def environment(home: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": str(home)}


def run(command: Sequence[str], home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=300)


def words(line: str, home: Path) -> list[str]:
    return [str(home / "out.safetensors") if word == "OUT" else word for word in line.split()]


# --- modules


def imported(arguments: Sequence[str], home: Path) -> set[str]:
    """What a Python process imports, by name, in the words of the interpreter itself."""
    done = run([sys.executable, "-X", "importtime", *arguments], home)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return set(lines) - {"imported package"}


def test_the_look_at_modules_sees_them(tmp_path: Path) -> None:
    assert {"decimal", "json.decoder"} <= imported(["-c", "import decimal, json"], tmp_path)


@pytest.mark.parametrize("line", MODULES)
def test_modules(line: str, demo_tree: Path, tmp_path: Path) -> None:
    bare = imported(["-c", "pass"], tmp_path)
    names = imported(["-m", "ckpt_cli", *words(line, tmp_path), "--root", str(demo_tree)], tmp_path) - bare
    own = {name for name in names if name.split(".")[0] == "ckpt_cli"}
    assert [name for name in sorted(names) for never in NEVER if f"{name}.".startswith(f"{never}.")] == []
    at_most, in_all = MODULES[line]
    assert len(own) <= at_most, sorted(own)
    assert len(names) <= in_all, sorted(names)


# --- calls of the system


class Call(NamedTuple):
    """A call, the file that it is about, and what it returned, where that is a number."""

    name: str
    path: str
    result: int


@pytest.fixture(scope="module")
def strace() -> str:
    path = shutil.which("strace")
    if not path:
        pytest.skip("strace is not installed")
    if subprocess.run([path, "-f", "-o", os.devnull, "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("strace may not trace here")
    return path


def calls(strace: str, command: Sequence[str], home: Path, below: Path, code: int = 0) -> list[Call]:
    """The calls of a process and its threads that name a path below a directory, or a descriptor of one."""
    log = home / "calls"
    # A file for each thread, so that no call is torn in two; names in full, and of data nothing.
    tracing = [strace, "-ff", "-y", "-qq", "-s", "0", "-o", str(log), "-e", "trace=%file,%desc,%memory"]
    done = run([*tracing, *command], home)
    assert done.returncode == code, done.stderr[-2000:]
    found = []
    for file in home.glob("calls.*"):
        for line in file.read_text(errors="replace").splitlines():
            call = parsed(line)
            if call and f"{call.path}/".startswith(f"{below}/"):
                found.append(call)
        file.unlink()
    return found


def parsed(line: str) -> Call | None:
    """What strace -y says: a descriptor is followed by its path, and that by a name if the call is one of those."""
    match = CALL.match(line)
    if not match:
        return None
    name, told, folder, text = match.group("name", "told", "folder", "text")
    if name == "mmap":
        mapped = re.search(r"\d<([^>]*)>", told)
        return Call(name, mapped[1] if mapped else "", 0)
    result = re.match(r"-?\d+", line.rpartition(") = ")[2].strip() or line.rpartition("= ")[2])
    return Call(name, os.path.join(folder or "", text) if text else folder or "", int(result[0]) if result else 0)


def opened(found: Iterable[Call], suffix: str) -> list[str]:
    return [call.path for call in found if call.name in ("open", "openat") and call.path.endswith(suffix)]


def read(found: Iterable[Call], suffix: str) -> int:
    """The bytes that were read; of a mapped file nobody can tell, so there must be none."""
    of = [call for call in found if call.path.endswith(suffix)]
    assert [call for call in of if call.name in ("mmap", "sendfile", "splice")] == []
    names = ("read", "pread64", "readv", "preadv", "preadv2", "copy_file_range")
    return sum(call.result for call in of if call.name in names and call.result > 0)


def changing(found: Iterable[Call]) -> list[Call]:
    return [call for call in found if CHANGING.search(call.name)]


def long_run(root: Path, demo: Path, count: int) -> Path:
    """A run of `count` steps of one model, its meta and its optimizer files, two days old."""
    folder = root / "base_checkpoints" / "d6"
    folder.mkdir(parents=True)
    source = demo / "base_checkpoints" / "d6"
    for step in range(1, count + 1):
        for path in sorted(source.glob("*_000150*")):
            copy = folder / path.name.replace("000150", f"{step:06d}")
            # Only `verify` and those after it look inside, and they get a tree of their own.
            copy.write_bytes(path.read_bytes() if path.suffix == ".json" else b"x")
            os.utime(copy, (path.stat().st_mtime - 200_000 + step,) * 2)
    return root


def test_the_trace_sees_reading_and_changing(strace: str, tmp_path: Path) -> None:
    place = tmp_path / "tree"
    place.mkdir()
    (place / "a.pt").write_bytes(bytes(100_000))
    script = "import os, sys; data = open('tree/a.pt', 'rb').read(); os.rename(*sys.argv[1:])"
    found = calls(strace, [sys.executable, "-c", script, f"{place}/a.pt", f"{place}/b.pt"], tmp_path, place)
    assert read(found, ".pt") == 100_000
    assert len(changing(found)) == 1
    assert changing(calls(strace, ["touch", str(place / "c")], tmp_path, place))


@pytest.mark.parametrize(("line", "at_most"), [("list", 10), ("list --json", 10), ("latest", 10)])
def test_one_more_checkpoint_costs_few_calls(
    strace: str, line: str, at_most: int, demo_tree: Path, tmp_path: Path
) -> None:
    """By the difference between two trees, so that the start does not count.

    A look at each of four parts; opening, looking at, reading to the end and closing the meta file.
    """
    few, many = (long_run(tmp_path / str(count), demo_tree, count) for count in (10, 60))
    counts = []
    for tree in (few, many):
        found = calls(strace, [*CKPT, *line.split(), "--root", str(tree)], tmp_path, tree)
        assert opened(found, ".pt") == [] and read(found, ".pt") == 0
        assert changing(found) == []
        counts.append(len(found))
    assert counts[1] - counts[0] <= 50 * at_most


def test_a_listing_reads_a_meta_file_once(strace: str, demo_tree: Path, tmp_path: Path) -> None:
    tree = long_run(tmp_path / "tree", demo_tree, 20)
    found = calls(strace, [*CKPT, "list", "--root", str(tree)], tmp_path, tree)
    metas = opened(found, ".json")
    assert len(metas) == len(set(metas)) == 20


def test_metadata_is_read_without_the_tensors(strace: str, demo_tree: Path, tmp_path: Path) -> None:
    found = calls(strace, [*CKPT, "inspect", "meta", "base/d4", "--root", str(demo_tree)], tmp_path, demo_tree)
    assert read(found, ".pt") == 0
    assert changing(found) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pt of 64 MiB in eight tensors, two days old."""
    path = tmp_path_factory.mktemp("large") / "model.pt"
    torch.save({f"layer.{number}": torch.full((2 * MIB,), float(number)) for number in range(8)}, path)
    os.utime(path, (path.stat().st_mtime - 200_000,) * 2)
    return path


def test_tensors_are_listed_from_the_ends_of_a_file(strace: str, large: Path, tmp_path: Path) -> None:
    found = calls(strace, [*CKPT, "inspect", "tensors", str(large)], tmp_path, large.parent)
    assert 0 < read(found, ".pt") <= 100_000
    assert len(found) <= 75
    assert changing(found) == []


def test_every_byte_is_verified_once(strace: str, large: Path, tmp_path: Path) -> None:
    found = calls(strace, [*CKPT, "verify", str(large), "--jobs", "2"], tmp_path, large.parent)
    size = large.stat().st_size
    assert 64 * MIB <= read(found, ".pt") <= size + 500_000
    assert len(found) <= 64 * MIB / 500_000 + 100
    assert changing(found) == []


def test_converting_reads_and_writes_once(strace: str, large: Path, tmp_path: Path) -> None:
    """The source once, the output once to compare it; both it and its name are on disk when all is done."""
    place = tmp_path / "out"
    place.mkdir()
    command = [*CKPT, "convert", str(large), "-o", str(place / "model.safetensors")]
    found = calls(strace, command, tmp_path, tmp_path.parent.parent)
    made = [call for call in found if call.path.startswith(str(place))]
    source = [call for call in found if call.path.startswith(str(large.parent))]
    written = sum(c.result for c in made if c.name in ("write", "pwrite64", "writev", "pwritev", "pwritev2"))
    assert 64 * MIB <= read(source, ".pt") <= large.stat().st_size + 500_000
    assert 64 * MIB <= written <= 64 * MIB + 100_000
    assert 64 * MIB <= read(made, "") <= 64 * MIB + 200_000
    assert changing(source) == []
    assert [c.name for c in made if c.name in ("fsync", "fdatasync")] == ["fsync", "fsync"]
    assert len([c for c in made if re.match("rename|link", c.name)]) == 1
    assert os.listdir(place) == ["model.safetensors"]


def test_a_plan_reads_the_ends_of_what_stays(strace: str, large: Path, demo_tree: Path, tmp_path: Path) -> None:
    """Of what goes nothing, of what stays the ends; and it changes nothing."""
    tree = long_run(tmp_path / "tree", demo_tree, 30)
    folder = tree / "base_checkpoints" / "d6"
    for path in (demo_tree / "base_checkpoints" / "d6").glob("*_000150*.pt"):
        for step in (29, 30):
            copy = folder / path.name.replace("000150", f"{step:06d}")
            time = copy.stat().st_mtime
            shutil.copyfile(large if "model" in path.name else path, copy)
            os.utime(copy, (time, time))
    found = calls(strace, [*CKPT, "prune", "--keep", "2", "--dry-run", "--root", str(tree)], tmp_path, tree)
    assert {re.sub(r"\D*_0*(\d+)[_.].*", r"\1", os.path.basename(path)) for path in opened(found, ".pt")} == {
        "29",
        "30",
    }
    assert 0 < read(found, ".pt") <= 6 * 80_000
    assert changing(found) == []


# --- memory

PEAK = """
import resource, runpy, sys
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.argv[0] = "ckpt"
code = 0
try:
    if sys.argv[1] == "waste":
        wasted = b"x" * (100 << 20)
    else:
        runpy.run_module("ckpt_cli", run_name="__main__")
except SystemExit as ended:
    code = ended.code or 0
print("peak", code, own, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def peak(arguments: Sequence[object], home: Path) -> int:
    """The largest resident memory of a command, in KiB. Exit code 0 is demanded."""
    # A child counts the peak of what it was forked from: here a shell's, not that of this process with torch in it.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", PEAK, *map(str, arguments)]
    done = run(command, home)
    word, code, own, most = done.stderr.splitlines()[-1].split()
    assert (word, code) == ("peak", "0"), done.stderr
    assert int(own) < 40 << 10
    return int(most)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_the_look_at_memory_sees_it(tmp_path: Path) -> None:
    assert peak(["waste"], tmp_path) > 100 << 10


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize(
    "line",
    [
        "inspect tensors FILE",
        "verify FILE --jobs 2",
        "convert FILE -o OUT",
        "list",
        "latest",
        "prune --keep 1 --dry-run",
    ],
)
def test_memory(line: str, large: Path, demo_tree: Path, tmp_path: Path) -> None:
    """A file of 64 MiB, or a run of 500 steps, in less than 48 MiB, most of which is Python's."""
    arguments = [str(large) if word == "FILE" else word for word in words(line, tmp_path)]
    if "FILE" not in line:
        tree = long_run(tmp_path / "tree", demo_tree, 500)
        folder = tree / "base_checkpoints" / "d6"
        for path in (demo_tree / "base_checkpoints" / "d6").glob("*_000150*.pt"):
            copy = folder / path.name.replace("000150", "000500")
            time = copy.stat().st_mtime
            shutil.copyfile(path, copy)
            os.utime(copy, (time, time))
        arguments += ["--root", str(tree)]
    most = peak(arguments, tmp_path)
    assert most < 48 << 10
