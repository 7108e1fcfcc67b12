"""How time and memory grow with what there is: checkpoints in a tree, bytes of a file, tensors in a file.

    python benchmarks/curves.py [--data DIR] [--svg FILE] [--quick] [--large]

Prints a table in Markdown and draws it into FILE. Needs about 4 GB below DIR, with --large about 35 GB. Every line is
a whole process, as in bench.py, and the best of some runs; what takes longer than five seconds is run once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import BASELINES, HERE, READ_CRC, Contestant, ckpt_command, in_bytes, run_once, settle, time_once
from plot import Line, Panel, figure

STEPS = 20
SLOW = 5.0
BLOCK = 20_000_000
# Checkpoints, GB of a file, tensors.
Sizes = tuple[list[float], list[float], list[float]]
FULL: Sizes = ([1_000, 10_000, 100_000], [0.1, 1], [100, 1_000, 10_000, 100_000])
QUICK: Sizes = ([20, 100, 1_000], [0.02, 0.1], [10, 100, 1_000])
# Noise in one block, mapped as often as there are tensors: storages of their own to torch, and no memory. Small ones
# are copied, since a process may map some ten thousand files at most.
SAVE = """\
import sys, torch
block, path, count, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def mapped():
    return torch.from_file(block, shared=False, size=size // 2, dtype=torch.bfloat16)
noise = mapped()
tensors = [mapped() if size > 1_000_000 else noise.clone() for _ in range(count)]
torch.save({f"layers.{number}.weight": tensor for number, tensor in enumerate(tensors)}, path)
"""


class Point(NamedTuple):
    """What one contestant needed at one size: seconds and bytes of memory."""

    size: float
    seconds: float
    peak: int


class Curve(NamedTuple):
    """An operation, the word for its sizes, and the points of each contestant, ckpt first."""

    title: str
    unit: str
    points: dict[str, list[Point]]


def measure(contestants: Sequence[Contestant], rounds: int) -> list[tuple[float, int]]:
    """The best time and the largest peak of each, in turns; what is slow already when it warms up is not run again."""
    best = [_once(contestant) for contestant in contestants]
    again = [number for number, (seconds, _) in enumerate(best) if seconds < SLOW]
    warm = dict.fromkeys(again, True)
    for _ in range(rounds):
        for number in again:
            seconds, peak = _once(contestants[number])
            before = (seconds, 0) if warm[number] else best[number]
            best[number] = min(seconds, before[0]), max(peak, before[1])
            warm[number] = False
    return best


def _once(contestant: Contestant) -> tuple[float, int]:
    taken = time_once(contestant.command)
    if contestant.output:
        settle(contestant.output)
    return taken


def collect(
    title: str, unit: str, sizes: Sequence[float], at: Callable[[float], Sequence[Contestant]], rounds: int
) -> Curve:
    """`at` makes the data for a size and gives who is to be run on it."""
    points: dict[str, list[Point]] = {}
    for size in sizes:
        contestants = at(size)
        for contestant, (seconds, peak) in zip(contestants, measure(contestants, rounds)):
            points.setdefault(contestant.name, []).append(Point(size, seconds, peak))
    return Curve(title, unit, points)


def write_runs(root: Path, sample: bytes, count: int) -> None:
    """nanochat runs of twenty steps: a model of one tensor and its meta file for each."""
    old = time.time() - 86400
    for run in range(max(1, count // STEPS)):
        folder = root / "base_checkpoints" / f"d{run + 1}"
        folder.mkdir(parents=True)
        for step in range(100, 100 * STEPS + 1, 100):
            (folder / f"model_{step:06d}.pt").write_bytes(sample)
            meta = json.dumps({"step": step, "val_bpb": 1 / step, "model_config": {"n_layer": 4}})
            (folder / f"meta_{step:06d}.json").write_text(meta)
            for name in (f"model_{step:06d}.pt", f"meta_{step:06d}.json"):
                os.utime(folder / name, (old + step,) * 2)


def lists(data: Path, ckpt: list[str], sizes: Sequence[float], rounds: int) -> Curve:
    sample = data / "sample" / "model.pt"
    run_once([*BASELINES, "small", str(sample)])

    def at(size: float) -> list[Contestant]:
        root = data / f"runs-{size:.0f}"
        write_runs(root, sample.read_bytes(), int(size))
        return [
            Contestant("ckpt list", [*ckpt, "list", "--root", str(root)]),
            Contestant("glob, json and torch.load", [*BASELINES, "list", str(root)]),
            Contestant("find -printf", ["find", str(root), "-type", "f", "-printf", r"%p %s %T@\n"]),
        ]

    return collect("list", "checkpoints", sizes, at, rounds)


def saved(data: Path, name: str, count: int, size: int) -> Path:
    """A .pt of `count` bfloat16 tensors of `size` bytes each, by torch.save."""
    block, path = data / f"block-{size}", data / name
    if not block.exists():
        piece = min(size, 1_000_000)  # a child's peak is at least that of this process
        with open(block, "wb") as file:
            for _ in range(size // piece):
                file.write(os.urandom(piece))
    run_once([sys.executable, "-c", SAVE, str(block), str(path), str(count), str(size)])
    return path


def files(data: Path, ckpt: list[str], sizes: Sequence[float], rounds: int) -> Iterator[Curve]:
    """`verify` and `convert` of the same files; sizes are in GB."""
    loop = data / "crc.py"
    loop.write_text(READ_CRC, encoding="utf-8")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def model(size: float) -> Path:
        path = data / f"model-{size:g}.pt"
        return path if path.exists() else saved(data, path.name, round(size * 1e9 / BLOCK), BLOCK)

    def verify(size: float) -> list[Contestant]:
        path = str(model(size))
        piped = ["sh", "-c", 'cat "$1" | "$2" "$3" /dev/stdin', "sh", path, sys.executable, str(loop)]
        return [
            Contestant("ckpt verify", [*ckpt, "verify", path]),
            Contestant("cat and a loop of CRC32", piped),
            Contestant("sha256sum", ["sha256sum", path]),
        ]

    def convert(size: float) -> list[Contestant]:
        path, copy = str(model(size)), data / "copy.pt"
        mine, theirs = data / "mine.safetensors", data / "theirs.safetensors"
        copying = ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", path, str(copy)]
        able = [
            Contestant("ckpt convert", [*ckpt, "convert", path, "-o", str(mine)], mine),
            Contestant("cp and sync", copying, copy),
        ]
        if 2.5e9 * size < memory:  # it holds the whole file, and the page cache the result
            able.append(Contestant("torch.load, save_file", [*BASELINES, "convert", path, str(theirs)], theirs))
        return able

    yield collect("verify", "GB", sizes, verify, rounds)
    yield collect("convert", "GB", sizes, convert, rounds)


def tensors(data: Path, ckpt: list[str], sizes: Sequence[float], rounds: int) -> Curve:
    def at(size: float) -> list[Contestant]:
        path = str(saved(data, f"many-{size:.0f}.pt", int(size), 4096))
        return [
            Contestant("ckpt inspect tensors", [*ckpt, "inspect", "tensors", path]),
            Contestant("torch.load, meta device, mmap", [*BASELINES, "tensors", path]),
        ]

    return collect("inspect tensors", "tensors", sizes, at, rounds)


def table(curve: Curve) -> str:
    """One row a size: seconds and memory of each contestant, and how long ckpt takes in times of each other."""
    names = list(curve.points)
    mine = curve.points[names[0]]
    heads = [curve.unit, names[0], *(part for name in names[1:] for part in (name, "ckpt takes"))]
    rows = [f"| {' | '.join(heads)} |", "| ---: " * len(heads) + "|"]
    for point in mine:
        cells = [f"{point.size:,g}" if point.size < 1 else f"{point.size:,.0f}", _cell(point)]
        for name in names[1:]:
            other = next((each for each in curve.points[name] if each.size == point.size), None)
            cells += [_cell(other), f"{point.seconds / other.seconds:.3g} x"] if other else ["not run", ""]
        rows.append(f"| {' | '.join(cells)} |")
    return f"**{curve.title}**\n\n" + "\n".join(rows) + "\n"


def _cell(point: Point) -> str:
    return f"{point.seconds:.3f} s, {point.peak / 1e6:.0f} MB"


def panels(curve: Curve, up: str) -> Panel:
    """The times, or the memory in MB, of a curve."""
    lines = [
        Line(name, [(p.size, p.seconds if up == "seconds" else p.peak / 1e6) for p in points])
        for name, points in curve.points.items()
    ]
    return Panel(curve.title, curve.unit, up, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data", metavar="DIR", help="on the disk to measure")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where the plot goes")
    parser.add_argument("--quick", action="store_true", help="sizes of a hundredth, and one round")
    parser.add_argument("--large", action="store_true", help="a file of 10 GB as well")
    options = parser.parse_args()
    made = not options.data.exists()
    options.data.mkdir(parents=True, exist_ok=True)
    data, ckpt = Path(tempfile.mkdtemp(prefix="curves-", dir=options.data.resolve())), ckpt_command()
    rounds = 1 if options.quick else 3
    counts, sizes, many = QUICK if options.quick else FULL
    sizes = [*sizes, 10] if options.large else sizes
    try:
        curves = [lists(data, ckpt, counts, rounds), tensors(data, ckpt, many, rounds)]
        subprocess.run(["rm", "-rf", *map(str, data.glob("runs-*"))], check=True)
        curves += files(data, ckpt, sizes, rounds)
    finally:
        shutil.rmtree(data)
        if made and not any(options.data.iterdir()):
            options.data.rmdir()
    print("\n".join(map(table, curves)))
    own = in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(
        f"Best times, largest peaks; no peak is told below {own / 1e6:.0f} MB, which is that of the benchmark itself."
    )
    if options.svg:
        rows = [[panels(curve, up) for curve in curves] for up in ("seconds", "peak memory in MB")]
        options.svg.write_text(figure("Time and peak memory of ckpt by size", rows), encoding="utf-8")


if __name__ == "__main__":
    main()
