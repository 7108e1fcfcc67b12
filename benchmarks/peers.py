"""Times ckpt beside four tools from the package index, and tells what each of them makes of the same small files.

    python benchmarks/peers.py [--data DIR] [--quick]

Installs checkpoint-lens, ckptkit, pt-safe-loader and picklescan into an environment of their own below DIR, which is
removed afterwards; a tool that cannot be installed is named and left out. They use this interpreter's torch. Some of
them unpickle: each one meets each file in a process and a directory of its own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench import BASELINES, HERE, Contestant, alternate, ckpt_command, environment, run_once, show
from cases import CASES, RAN, Case

LENS, KIT, LOADER, SCAN = "checkpoint-lens", "ckptkit", "pt-safe-loader", "picklescan"
REQUIREMENTS = {
    LENS: "checkpoint-lens==0.1.2",
    KIT: "ckptkit[cli,safetensors]==0.3.0",
    LOADER: "pt-safe-loader==0.1.4",
    SCAN: "picklescan==1.0.5",
}
# It is a library alone.
LOAD = "import sys; from pt_loader import PtCheckpoint; file = PtCheckpoint.load(sys.argv[1]); "
LOOK = LOAD + "print(file.metadata())"
EXPORT = LOAD + "file.export(sys.argv[2], overwrite=True)"
TORCH = "import sys, torch; print(torch.load(sys.argv[1], map_location='cpu', weights_only=True).keys())"
TIMEOUT = 120
VERDICTS = """\
  reads: exit 0. cannot: it fails, on a file that is sound, or on all of this kind. finds: it reads the sound file of
  this kind and fails on this one, or calls it dangerous. misses: exit 0 on what is damaged. silent: exit 0 on what
  would run code, which is not run and not spoken of. RUNS IT: the code in the file ran."""


def installed(folder: Path) -> dict[str, Path]:
    """The directory of scripts for each tool that could be installed."""
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True)
    if made.returncode:
        print(f"no environment for the other tools: {last_line(made.stderr or made.stdout)}")
        return {}
    python = folder / "bin" / "python"
    asked = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    )
    # The torch that ckpt is measured with, not another gigabyte of it.
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(asked.stdout.strip()) / "outer.pth").write_text("\n".join(sorted(ours)) + "\n")
    found = {}
    for name, requirement in REQUIREMENTS.items():
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        if done.returncode:
            print(f"{name} could not be installed and is left out: {last_line(done.stderr)}")
        else:
            found[name] = folder / "bin"
    return found


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1][:200]


def commands(tools: Mapping[str, Path], ckpt: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """What each does with one file that is named last, by tool and by what it is called there."""
    every = {("ckpt", "inspect"): [*ckpt, "inspect", "tensors"], ("ckpt", "verify"): [*ckpt, "verify"]}
    if LENS in tools:
        every[LENS, "inspect"] = [str(tools[LENS] / LENS), "inspect", "--no-live-check"]
    if KIT in tools:
        every[KIT, "info"] = [str(tools[KIT] / KIT), "info", "--json"]
        every[KIT, "validate"] = [str(tools[KIT] / KIT), "validate"]
    if LOADER in tools:
        every[LOADER, "load"] = [str(tools[LOADER] / "python"), "-c", LOOK]
    if SCAN in tools:
        every[SCAN, "-p"] = [str(tools[SCAN] / SCAN), "-p"]
    every["torch.load", "weights_only"] = [sys.executable, "-c", TORCH]
    return every


def able(contestants: Iterable[Contestant]) -> list[Contestant]:
    """Those that end well; of the others it is said how they end."""
    left = []
    for contestant in contestants:
        done = subprocess.run(contestant.command, env=environment(), capture_output=True, text=True)
        if contestant.output and contestant.output.exists():
            contestant.output.unlink()
        if done.returncode:
            print(f"  left out, {contestant.name}: {last_line(done.stderr)}")
        else:
            left.append(contestant)
    return left


def compare(title: str, mine: Contestant, others: Sequence[Contestant], rounds: int) -> None:
    """A table of ckpt and of those that can do the same; nothing where nobody can."""
    left = able(others)
    if left:
        show(title, alternate([mine, *left], rounds))


def timings(data: Path, ckpt: list[str], tools: Mapping[str, Path], rounds: int, quick: bool) -> None:
    """What both can do: the tensors of a file, its code, another format, a whole tree, what differs."""
    model, out = data / "big" / "model.pt", data / "out"
    out.mkdir()
    run_once([*BASELINES, "big", str(model), *(["--quick"] if quick else [])])
    size, every = f"{model.stat().st_size / 1e9:.2f} GB", commands(tools, ckpt)
    whole, weights = out / "ckpt.safetensors", data / "big" / "model.safetensors"

    def other(name: str, command: str, label: str, *paths: Path) -> list[Contestant]:
        parts = every.get((name, command))
        return [Contestant(f"{name} {label}", [*parts, *map(str, paths)])] if parts else []

    compare(
        f"tensors of a .pt of {size}",
        Contestant("ckpt inspect tensors", [*ckpt, "inspect", "tensors", str(model)]),
        [
            *other(LENS, "inspect", "inspect --no-live-check", model),
            *other(KIT, "info", "info --json", model),
            *other(LOADER, "load", "load, metadata", model),
        ],
        rounds,
    )
    compare(
        f"does a .pt of {size} run code?",
        Contestant("ckpt inspect tensors -q (refuses what would)", [*ckpt, "inspect", "tensors", "-q", str(model)]),
        other(SCAN, "-p", "-p", model),
        rounds,
    )
    # Each writes the file anew, where nothing is.
    export = out / "loader.safetensors"
    theirs = [str(tools[LOADER] / "python"), "-c", EXPORT, str(model), str(export)] if LOADER in tools else []
    compare(
        f"convert a .pt of {size}",
        Contestant(
            "ckpt convert (CRC, fsync, read back)", [*ckpt, "convert", str(model), "-o", str(whole), "--force"], whole
        ),
        [Contestant(f"{LOADER} load, export (no fsync)", theirs, export)] if theirs else [],
        max(2, rounds // 2),
    )
    run_once([*ckpt, "convert", str(model), "-o", str(weights)])
    model.unlink()
    compare(
        f"tensors of a safetensors file of {size}",
        Contestant("ckpt inspect tensors", [*ckpt, "inspect", "tensors", str(weights)]),
        [*other(KIT, "info", "info --json", weights), *other(LENS, "inspect", "inspect --no-live-check", weights)],
        rounds,
    )
    compare(
        f"is a safetensors file of {size} sound?",
        Contestant("ckpt verify", [*ckpt, "verify", str(weights)]),
        other(KIT, "validate", "validate", weights),
        rounds,
    )
    tree = data / "runs"
    run_once([*BASELINES, "runs", str(tree), "5" if quick else "50", "20"])
    one, two = (tree / "base_checkpoints" / "d1" / f"model_{step:06d}.pt" for step in (100, 200))
    compare(
        "what differs between two small .pt",
        Contestant("ckpt inspect diff", [*ckpt, "inspect", "diff", str(one), str(two)]),
        [Contestant(f"{KIT} diff", [str(tools[KIT] / KIT), "diff", str(one), str(two)])] if KIT in tools else [],
        rounds,
    )
    compare(
        f"every file of a tree of {100 if quick else 1000:,} checkpoints",
        Contestant("ckpt verify (code, structure, every CRC32)", [*ckpt, "verify", "--root", str(tree)]),
        other(SCAN, "-p", "-p (code)", tree),
        max(2, rounds // 2),
    )


def outcome(command: Sequence[str], file: Path) -> str:
    """How a tool ends on a file, in a directory of its own: `ran`, `good` or `bad`."""
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        copy = Path(place) / file.name
        shutil.copyfile(file, copy)
        own = {**environment(), "HOME": place, "CKPT_ROOT": place}
        try:
            done = subprocess.run(
                [*command, str(copy)], cwd=place, env=own, capture_output=True, text=True, timeout=TIMEOUT
            )
            # picklescan says so and exits 0.
            good = not done.returncode and "could not parse" not in done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            good = False
        return "ran" if (Path(place) / RAN).exists() else "good" if good else "bad"


def verdict(case: Case, ended: Mapping[str, str]) -> str:
    """A word for a case, from how a tool ended on each file."""
    this = ended[case.file]
    if this == "ran":
        return "RUNS IT"
    if case.truth == "sound":
        return "reads" if this == "good" else "cannot"
    if ended[case.like] == "bad":
        return "cannot"
    return "finds" if this == "bad" else "misses" if case.truth == "damaged" else "silent"


def findings(data: Path, every: Mapping[tuple[str, str], Sequence[str]]) -> None:
    folder = data / "cases"
    folder.mkdir()
    run_once([sys.executable, str(HERE / "cases.py"), str(folder)])
    ended = {who: {case.file: outcome(command, folder / case.file) for case in CASES} for who, command in every.items()}
    widths = [max(len(part) for part in who) + 2 for who in every]
    print("\nwhat each makes of the same files")
    for heads in zip(*every):
        print("  " + " " * 36 + "".join(f"{head:<{width}}" for head, width in zip(heads, widths)).rstrip())
    for case in CASES:
        words = [verdict(case, results) for results in ended.values()]
        print(f"  {case.what:<36}" + "".join(f"{word:<{width}}" for word, width in zip(words, widths)).rstrip())
    print(VERDICTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data", metavar="DIR", help="on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="83 MB instead of 1 GB, 100 checkpoints, fewer rounds")
    options = parser.parse_args()
    made = not options.data.exists()
    options.data.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="peers-", dir=options.data.resolve()))
    try:
        tools, ckpt = installed(data / "tools"), ckpt_command()
        print("compared with " + (", ".join(REQUIREMENTS[name] for name in tools) or "nobody"), flush=True)
        timings(data, ckpt, tools, 2 if options.quick else 5, options.quick)
        findings(data, commands(tools, ckpt))
    finally:
        shutil.rmtree(data)
        if made and not any(options.data.iterdir()):
            options.data.rmdir()


if __name__ == "__main__":
    main()
