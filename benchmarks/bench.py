"""Times ckpt beside what one would use instead, as whole processes on generated files.

    python benchmarks/bench.py [--data DIR] [--quick]

Needs the packages that ckpt needs, and about 3 GB below DIR, which should be on a real disk: where a sync
costs nothing, the comparison with `cp` and `sync` says nothing. Prints and judges nothing; README.md in this
directory says what each line is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from mixed import STEPS, write_mixed

HERE = Path(__file__).resolve().parent
BASELINES = [sys.executable, str(HERE / "baselines.py")]
BARE_TYPER = """\
import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def one() -> None:
    print("one")


@app.command()
def two() -> None:
    print("two")


app()
"""
READ_CRC = """\
import sys
from isal.isal_zlib import crc32

buffer, value = memoryview(bytearray(1 << 20)), 0
with open(sys.argv[1], "rb", buffering=0) as file:
    while count := file.readinto(buffer):
        value = crc32(buffer[:count], value)
print(value)
"""


class Contestant(NamedTuple):
    """A name for the table, the command, and the file that it writes, which goes between runs."""

    name: str
    command: Sequence[str]
    output: Path | None = None


class Result(NamedTuple):
    """Seconds of each run, and the largest resident memory of any, in bytes."""

    name: str
    seconds: list[float]
    peak: int

    @property
    def best(self) -> float:
        return min(self.seconds)


def ckpt_command() -> list[str]:
    """The installed script beside this interpreter; without one, the package of this repository."""
    script = Path(sys.executable).with_name("ckpt")
    return [str(script)] if script.exists() else [sys.executable, "-m", "ckpt_cli"]


def environment() -> dict[str, str]:
    """This one's, without what would lead ckpt to another root or have it compiled anew by every process."""
    dropped = ("CKPT_ROOT", "NANOCHAT_BASE_DIR", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    kept.setdefault("PYTHONPATH", str(HERE.parent))
    return kept


def run_once(command: Sequence[str], stdout: int = subprocess.PIPE) -> str:
    """What the command prints. Leaves the benchmark where it fails: no time of a failure is of use."""
    done = subprocess.run(command, env=environment(), stdout=stdout, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def time_once(command: Sequence[str]) -> tuple[float, int]:
    """Seconds from start to end of the process, and its peak resident memory in bytes."""
    begin = time.perf_counter()
    child = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{shlex.join(command)} ended with {child.returncode}")
    return seconds, in_bytes(usage.ru_maxrss)


def in_bytes(maxrss: int) -> int:
    """Linux counts it in KiB, macOS in bytes."""
    return maxrss if sys.platform == "darwin" else maxrss * 1024


def settle(output: Path) -> None:
    """Takes an output away, with nothing of it left for the disk to do while the next process is timed."""
    for path in (output, output.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        if path == output:
            path.unlink()


def alternate(contestants: Sequence[Contestant], rounds: int) -> list[Result]:
    """Runs them in turn, `rounds` times, so that a drift of the machine meets all; once before, to warm up."""
    seconds: list[list[float]] = [[] for _ in contestants]
    peaks = [0] * len(contestants)
    for turn in range(rounds + 1):
        for index, contestant in enumerate(contestants):
            if turn == 0:  # long output would make this process larger, and with it each peak that it measures
                run_once(contestant.command, subprocess.DEVNULL)
            else:
                took, peak = time_once(contestant.command)
                seconds[index].append(took)
                peaks[index] = max(peaks[index], peak)
            if contestant.output:
                settle(contestant.output)
    return [Result(contestant.name, took, peak) for contestant, took, peak in zip(contestants, seconds, peaks)]


def show(title: str, results: Sequence[Result]) -> None:
    """A table of which the first line is ckpt's; the last column is its best time in units of the line's."""
    print(f"\n{title:<58}{'best':>9}{'median':>10}{'peak':>9}{'runs':>6}{'ckpt takes':>13}")
    for result in results:
        ratio = "" if result is results[0] else f"{results[0].best / result.best:.3g} x"
        times = f"{result.best:>7.3f} s{statistics.median(result.seconds):>8.3f} s"
        print(f"  {result.name:<56}{times}{result.peak / 1e6:>6.0f} MB{len(result.seconds):>6}{ratio:>13}", flush=True)


def goal(what: str, value: float, limit: float, unit: str) -> None:
    print(f"  {what:<56}{value:>7.3g} {unit:<3}goal {limit:g} {unit}, {100 * value / limit:.0f} % of it")


def lists(data: Path, ckpt: list[str], rounds: int, runs: int) -> list[tuple[str, float, float, str]]:
    demo, tree, bare = data / "demo", data / "runs", data / "bare.py"
    bare.write_text(BARE_TYPER, encoding="utf-8")
    run_once([*ckpt, "demo", str(demo)])
    run_once([*BASELINES, "runs", str(tree), str(runs), "20"])
    listing = [*ckpt, "list", "--root", str(demo)]
    short = [
        Contestant("ckpt list", listing),
        Contestant("a bare Typer app of two commands", [sys.executable, str(bare), "one"]),
        Contestant("python -c pass", [sys.executable, "-c", "pass"]),
    ]
    mine, typer, python = alternate(short, 4 * rounds)
    torch = alternate(
        [
            Contestant("a script with glob, json and torch.load", [*BASELINES, "list", str(demo)]),
            Contestant("import torch", [*BASELINES, "import"]),
        ],
        rounds,
    )
    show(f"list, the demo tree ({len(run_once(listing).splitlines())} checkpoints)", [mine, typer, python, *torch])
    large = [*ckpt, "list", "--root", str(tree)]
    count = len(run_once(large).splitlines())
    (many,) = alternate([Contestant("ckpt list", large)], 2 * rounds)
    (script,) = alternate([Contestant("a script with glob, json and torch.load", [*BASELINES, "list", str(tree)])], 3)
    show(f"list, {count:,} checkpoints of {runs} runs", [many, script])
    return [
        ("list on the demo tree", mine.best, 0.15, "s"),
        ("list on the demo tree, in starts of a bare Typer app", mine.best / typer.best, 1.5, "x"),
        (f"list on {count:,} checkpoints", many.best, 0.4, "s"),
    ]


def scale(data: Path, ckpt: list[str], rounds: int, runs: int) -> list[tuple[str, float, float, str]]:
    """`list` on checkpoints of six layouts, and on a tenth as many."""
    contestants = []
    for count in (runs, runs // 10):
        tree = data / f"mixed-{count}"
        write_mixed(tree, count)
        listing = [*ckpt, "list", "--json", "--root", str(tree)]
        contestants.append(Contestant(f"ckpt list --json, {count * len(STEPS):,} checkpoints", listing))
    many, few = alternate(contestants, rounds)
    what = f"{runs * len(STEPS):,} checkpoints of six layouts"
    show(f"list, {what}", [many, few])
    return [
        (f"list on {what}", many.best, 2, "s"),
        (f"list on {what}, peak memory", many.peak / 1e6, 150, "MB"),
        ("the same, in times of a tenth as many", many.best / few.best, 10, "x"),
    ]


def removal(data: Path, ckpt: list[str], rounds: int, count: int) -> list[tuple[str, float, float, str]]:
    """`prune` of all but three checkpoints of one run, and `rm -rf` of as many files: each of a fresh copy."""
    tree, copy = data / "long", data / "long-copy"
    run_once([*BASELINES, "runs", str(tree), "1", str(count)])
    old = time.time() - 86400
    (run,) = (folder for folder, _, files in os.walk(tree) if files)
    # One at a time: what this process once took counts as the peak of all that it starts.
    with os.scandir(run) as entries:
        for entry in entries:
            step = int(entry.name.split("_")[1].partition(".")[0])
            os.utime(entry.path, (old + step / 100,) * 2)  # what is fresh would be looked at twice
    prune = [*ckpt, "prune", "--root", str(copy), "--keep", "3", "-q"]
    commands = {
        "ckpt prune --keep 3 --dry-run": [*prune, "--dry-run"],
        "ckpt prune --keep 3 --yes (journal, renames, deletion)": [*prune, "--yes"],
        "rm -rf": ["rm", "-rf", str(copy)],
    }
    taken: dict[str, tuple[list[float], int]] = {name: ([], 0) for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            if command[-1] != "--yes":  # that goes on where the dry run has looked
                shutil.rmtree(copy, ignore_errors=True)
                run_once(["cp", "-a", str(tree), str(copy)])
                os.sync()
            seconds, peak = time_once(command)
            taken[name] = ([*taken[name][0], seconds], max(peak, taken[name][1]))
    shutil.rmtree(copy, ignore_errors=True)
    results = [Result(name, *values) for name, values in taken.items()]
    show(f"prune, {count:,} checkpoints of one run, {3 * count:,} files", results)
    planned, pruned, removed = results
    return [
        (f"the plan of a prune of {count:,} checkpoints", planned.best, 1, "s"),
        ("the removal after it, in times of rm -rf", (pruned.best - planned.best) / removed.best, 2, "x"),
    ]


def large_file(data: Path, ckpt: list[str], rounds: int, quick: bool) -> list[tuple[str, float, float, str]]:
    model, out = data / "big" / "model.pt", data / "out"
    out.mkdir()
    run_once([*BASELINES, "big", str(model), *(["--quick"] if quick else [])])
    size = f"{model.stat().st_size / 1e9:.2f} GB"
    inspect = [*ckpt, "inspect", "tensors", str(model)]
    count = len(run_once(inspect).splitlines())
    (look,) = alternate([Contestant("ckpt inspect tensors", inspect)], 2 * rounds)
    loaded = alternate(
        [Contestant("torch.load, meta device, mmap, the same table", [*BASELINES, "tensors", str(model)])], rounds
    )
    show(f"inspect tensors, a .pt of {size} and {count} tensors", [look, *loaded])
    many, tensors = data / "many" / "model.pt", 1_000 if quick else 10_000
    run_once([*BASELINES, "many", str(many), str(tensors)])
    all_of_them = alternate(
        [
            Contestant("ckpt inspect tensors", [*ckpt, "inspect", "tensors", str(many)]),
            Contestant("torch.load, meta device, mmap, the same table", [*BASELINES, "tensors", str(many)]),
        ],
        rounds,
    )
    show(f"inspect tensors, a .pt of {tensors:,} tensors", all_of_them)
    mine, copy = out / "ckpt.safetensors", out / "copy.pt"
    simple, mapped = out / "simple.safetensors", out / "mapped.safetensors"
    # `sync FILE` is an fsync of that file: the copy is on disk, as ckpt's output is, and no other writer counts.
    copying = ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", str(model), str(copy)]
    pair = [
        Contestant("ckpt convert (CRC, fsync, read back)", [*ckpt, "convert", str(model), "-o", str(mine)], mine),
        Contestant("cp and sync of the file (nothing read back)", copying, copy),
    ]
    torch = [
        Contestant("torch.load, save_file (no fsync)", [*BASELINES, "convert", str(model), str(simple)], simple),
        Contestant("the same with mmap=True (no fsync)", [*BASELINES, "convert-mmap", str(model), str(mapped)], mapped),
    ]
    converted, copied = alternate(pair, rounds)
    simply = alternate(torch, max(3, rounds // 2))
    show(f"convert, the same file of {size}", [converted, copied, *simply])
    wide, half, script = data / "big" / "wide.safetensors", out / "half.safetensors", out / "script.safetensors"
    run_once([*ckpt, "convert", str(model), "--dtype", "fp32", "-o", str(wide)])
    narrow = [*ckpt, "convert", str(wide), "--dtype", "bf16", "-o", str(half)]
    cast, plainly = alternate(
        [
            Contestant("ckpt convert --dtype bf16 (fsync, read back)", narrow, half),
            Contestant("load_file, .to(bfloat16), save_file", [*BASELINES, "cast", str(wide), str(script)], script),
        ],
        max(3, rounds // 2),
    )
    show(f"convert, {wide.stat().st_size / 1e9:.2f} GB of float32 to bfloat16", [cast, plainly])
    back = out / "back.pt"
    (written,) = alternate(
        [Contestant("ckpt convert --to pt", [*ckpt, "convert", str(wide), "--to", "pt", "-o", str(back)], back)], 3
    )
    show(f"convert, {wide.stat().st_size / 1e9:.2f} GB of safetensors to a torch file", [written])
    wide.unlink()
    return [
        (f"inspect tensors, {size}", look.best, 0.25, "s"),
        (f"inspect tensors, {size}, peak memory", look.peak / 1e6, 40, "MB"),
        (f"inspect tensors, {tensors:,} tensors", all_of_them[0].best, 0.4, "s"),
        (f"convert, {size}, in times of cp and sync", converted.best / copied.best, 1.3, "x"),
        (f"convert, {size}, in times of torch.load, save_file", converted.best / simply[0].best, 0.2, "x"),
        (f"convert, {size}, peak memory", converted.peak / 1e6, 64, "MB"),
        ("convert to bfloat16, in times of the torch script", cast.best / plainly.best, 0.5, "x"),
        ("convert to bfloat16, peak memory", cast.peak / 1e6, 128, "MB"),
    ]


def permuted(data: Path, ckpt: list[str], rounds: int, quick: bool) -> list[tuple[str, float, float, str]]:
    """A Llama model of torchtune's for Hugging Face, and the same file with every tensor as it is."""
    model, out = data / "tune" / "model.pt", data / "out"
    run_once([*BASELINES, "tune", str(model), *(["--quick"] if quick else [])])
    folder, plain, script = out / "hf", out / "plain.safetensors", out / "script.safetensors"
    config = ["--config", str(model.with_name("config.json"))]
    renamed, same, plainly = alternate(
        [
            Contestant(
                "ckpt convert --to hf (renames, permutes q and k)",
                [*ckpt, "convert", str(model), "--to", "hf", *config, "-o", str(folder), "--force"],
                folder / "model.safetensors",
            ),
            Contestant(
                "ckpt convert (names and rows as they are)", [*ckpt, "convert", str(model), "-o", str(plain)], plain
            ),
            Contestant(
                "torch.load, permute, save_file (no fsync)", [*BASELINES, "tune-to-hf", str(model), str(script)], script
            ),
        ],
        max(3, rounds // 2),
    )
    show(f"torchtune to Hugging Face, {model.stat().st_size / 1e9:.2f} GB", [renamed, same, plainly])
    model.unlink()
    return [
        ("torchtune to Hugging Face, in times of a plain convert", renamed.best / same.best, 3, "x"),
        ("torchtune to Hugging Face, peak memory", renamed.peak / 1e6, 128, "MB"),
    ]


def whole_files(data: Path, ckpt: list[str], rounds: int) -> list[tuple[str, float, float, str]]:
    """`verify` of the large file that `large_file` has made, and of one of some bytes, which costs the start alone."""
    model, small, loop = data / "big" / "model.pt", data / "small" / "model.pt", data / "crc.py"
    loop.write_text(READ_CRC, encoding="utf-8")
    run_once([*BASELINES, "small", str(small)])
    size = f"{model.stat().st_size / 1e9:.2f} GB"
    reading, piped = [sys.executable, str(loop)], 'cat "$1" | "$2" "$3" /dev/stdin'
    mine, once, cat, read, start, script = alternate(
        [
            Contestant("ckpt verify (every record's CRC32)", [*ckpt, "verify", str(model)]),
            Contestant("the same with --jobs 1", [*ckpt, "verify", str(model), "--jobs", "1"]),
            Contestant("cat FILE | a loop of read and CRC32", ["sh", "-c", piped, "sh", str(model), *reading]),
            Contestant("the loop on the file itself", [*reading, str(model)]),
            Contestant("ckpt verify of a file of 1 kB", [*ckpt, "verify", str(small)]),
            Contestant("the loop on that file", [*reading, str(small)]),
        ],
        2 * rounds,
    )
    show(f"verify, the same file of {size}", [mine, once, cat, read, start, script])
    run_once([*ckpt, "verify", str(model), "--record"])
    pair = [
        Contestant("ckpt verify with a manifest (CRC32 and sha256)", [*ckpt, "verify", str(model)]),
        Contestant("sha256sum", ["sha256sum", str(model)]),
    ]
    show(f"verify against a manifest, the same file of {size}", alternate(pair, rounds))
    bare = (mine.best - start.best) / (read.best - script.best)
    return [
        (f"verify, {size}, in times of cat and CRC32", mine.best / cat.best, 1.25, "x"),
        (f"verify, {size}, in times of the loop, without starts", bare, 1.25, "x"),
        (f"verify, {size}, peak memory", mine.peak / 1e6, 64, "MB"),
    ]


def models(data: Path, ckpt: list[str], rounds: int, quick: bool) -> list[tuple[str, float, float, str]]:
    """`load-test` of a model of nanochat's HEAD, and the classical way to the same logits."""
    classical = [sys.executable, str(HERE / "classical.py")]
    size = ["--layers", "4", "--width", "256", "--vocabulary", "4096"] if quick else []
    place = Path(run_once([*classical, "write", str(data / "model"), *size]).strip())
    model = place / "model_001000.pt"
    mine = [*ckpt, "load-test", str(model), "--device", "cpu", "--json"]
    theirs = [*classical, "load", str(place)]
    built, plainly = [], []
    for _ in range(rounds):
        levels = {level["name"]: level["seconds"] for level in json.loads(run_once(mine))["levels"]}
        built.append(levels["build"])
        plainly.append(json.loads(run_once(theirs))["build"])
    tested, loaded = alternate(
        [
            Contestant("ckpt load-test (every CRC32, every weight finite)", mine),
            Contestant("load, cast, materialise, initialise, copy, run", theirs),
        ],
        rounds,
    )
    what = f"{model.stat().st_size / 1e9:.2f} GB"
    show(f"load-test, a model of {what}", [tested, loaded])
    ratio = min(plainly) / min(built)
    print(f"  the build alone: {min(built):.3f} s, and {min(plainly):.3f} s, which is {ratio:.3g} times as long")
    return [
        (f"load-test, {what}, build, in times of the classical", min(built) / min(plainly), 0.1, "x"),
        (f"load-test, {what}, in times of the classical", tested.best / loaded.best, 0.4, "x"),
        (f"load-test, {what}, peak memory, of the classical", tested.peak / loaded.peak, 0.75, "x"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data", metavar="DIR", help="on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="83 MB instead of 1 GB, 100 checkpoints, fewer rounds")
    options = parser.parse_args()
    made = not options.data.exists()
    options.data.mkdir(parents=True, exist_ok=True)
    ckpt, rounds = ckpt_command(), 3 if options.quick else 5
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "safetensors", "typer"))
    print(run_once([*ckpt, "--version"]).strip())
    print(f"{time.strftime('%Y-%m-%d')}, {packages}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}")
    data = Path(tempfile.mkdtemp(prefix="bench-", dir=options.data))
    try:
        goals = lists(data, ckpt, rounds, 5 if options.quick else 50)
        goals += scale(data, ckpt, rounds, 50 if options.quick else 500)
        goals += removal(data, ckpt, min(rounds, 3), 1_000 if options.quick else 10_000)
        goals += large_file(data, ckpt, rounds, options.quick)
        goals += permuted(data, ckpt, rounds, options.quick)
        goals += whole_files(data, ckpt, rounds)
        goals += models(data, ckpt, rounds, options.quick)
    finally:
        shutil.rmtree(data)
        if made and not any(options.data.iterdir()):
            options.data.rmdir()
    print("\nbest times against the goals" + (", which are for the data of a full run" if options.quick else ""))
    for line in goals:
        goal(*line)
    # On Linux a child is charged what its parent held when it was started.
    own = in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(f"\nno peak is told below {own / 1e6:.0f} MB, which is that of the benchmark itself")


if __name__ == "__main__":
    main()
