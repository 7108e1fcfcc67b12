"""Runs every benchmark and writes what it prints into docs/benchmarks.md: `make bench`.

    python benchmarks/write_page.py [--data DIR] [--docs DIR] [--large] [--quick]

What a program prints goes between the lines `<!-- NAME -->` and `<!-- end of NAME -->` of the page, and the plot
beside it. A quick run is for trying it out: it is written nowhere, unless DIR is given.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE, PLOT = "benchmarks.md", "scale.svg"
# The last prints Markdown; what the others print is shown as it is.
PROGRAMS = ("bench.py", "peers.py", "curves.py")


def said(command: Sequence[str]) -> tuple[int, str]:
    """How a program ended, and what it printed, which is shown as it comes."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return child.returncode, "\n".join(lines).strip() + "\n"


def filled(page: str, name: str, text: str) -> str:
    """The page with a text between the two lines of that name. Raises ValueError where the page has no such lines."""
    place = re.compile(rf"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- end of {re.escape(name)} -->\n)", re.DOTALL)
    new, count = place.subn(lambda _: text, page)
    if count != 1:
        raise ValueError(f"the page has no place for {name}")
    return new


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="on the disk to measure")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="where the page and the plot are")
    parser.add_argument("--large", action="store_true", help="a file of 10 GB as well; 35 GB below DIR")
    parser.add_argument("--quick", action="store_true", help="smaller data, fewer rounds")
    options = parser.parse_args()
    docs = options.docs or (None if options.quick else HERE.parent / "docs")
    shared = [*(["--data", options.data] if options.data else []), *(["--quick"] if options.quick else [])]
    failed = []
    for name in PROGRAMS:
        last = name == "curves.py"
        own = [*(["--large"] if options.large else []), *(["--svg", str(docs / PLOT)] if docs else [])] if last else []
        code, text = said([sys.executable, str(HERE / name), *shared, *own])
        if code:
            failed.append(name)
        elif docs:
            page = (docs / PAGE).read_text(encoding="utf-8")
            block = f"\n{text}\n" if last else f"\n```text\n{text}```\n\n"
            (docs / PAGE).write_text(filled(page, name, block), encoding="utf-8")
    if failed:
        print(f"{', '.join(failed)} failed, and what the page says of it is as it was", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
