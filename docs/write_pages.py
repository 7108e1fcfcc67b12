"""Writes into README.md and docs/ what the commands in them print: `make docs`.

Three things are filled in, all by running `ckpt` on a fresh demo tree, at a terminal of 100 columns:

- the text after a line `<!-- help: ckpt list -->` becomes that command's `--help`;
- in a block of kind `console`, what follows a line `$ ckpt ...` becomes what the command prints; a page's commands run
  one after the other, so that one may undo another;
- `list.svg` and `prune.svg` become pictures of the two tables in colour.

A test runs every command again and holds the pages against it.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURES = {"list.svg": "ckpt list", "prune.svg": "ckpt prune base --keep 1 --dry-run"}
COLUMNS = 100
_HELP = re.compile(r"(<!-- help: (ckpt[a-z -]*?) -->\n```text\n)(.*?)(```\n)", re.DOTALL)
_CONSOLE = re.compile(r"(```console\n)(.*?)(```\n)", re.DOTALL)
_CODE = re.compile(r"`(ckpt [^`\n]+)`")
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
# A key, or more of the like: nothing to run as it stands.
_MEANT = re.compile(r"<|\.\.\.|…")
_NAMED = re.compile(r"ckpt [a-z-]+(?: (?:meta|tensors|optim|diff))?")
_SHELL = re.compile(r"```sh\n(.*?)```\n", re.DOTALL)
Runner = Callable[[str], str]


def pages() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(HERE.rglob("*.md"))]
    return [page for page in found if page.exists()]


@contextmanager
def short_place() -> Iterator[Path]:
    """A directory whose path has the same length each time: a table is cut where the terminal ends."""
    place = tempfile.mkdtemp(prefix="ckpt", dir="/tmp")
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place)


def demo_tree(into: Path) -> Path:
    """The tree that commands are run on copies of."""
    tree = into / "runs"
    subprocess.run([sys.executable, "-m", "ckpt_cli", "demo", str(tree)], check=True, capture_output=True)
    return tree


def typed(line: str, folder: Path, colour: bool = False) -> tuple[int, str]:
    """A command line run by sh at a terminal: its exit code and what appeared. It can be asked nothing."""
    own = {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "HOME": str(folder.parent), "LC_ALL": "C.UTF-8"}
    path = f"{_command_folder(folder.parent)}:{os.environ.get('PATH', '')}"
    environment = {
        **_less("CKPT_", "NANOCHAT_", "PYTHONDONT"),
        **own,
        "PATH": path,
        **({} if colour else {"NO_COLOR": "1"}),
    }
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execve("/bin/sh", ["sh", "-c", line], environment)
    os.set_blocking(fd, False)
    said = b""
    while True:
        select.select([fd], [], [], 1.0)
        try:
            piece = os.read(fd, 65536)
        except BlockingIOError:
            continue
        except OSError:  # what Linux says at the end of a terminal
            break
        if not piece:
            break
        said += piece
    _, status = os.waitpid(pid, 0)
    text = _left(said.decode(errors="replace").replace("\r\n", "\n"))
    if not colour:
        text = "\n".join(row.rstrip() for row in re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n"))
    return os.waitstatus_to_exitcode(status), text


def _left(text: str) -> str:
    """What stays on the terminal: a bar is drawn over and, in the end, erased."""
    text = re.sub(r"\x1b\[\?25[hl]", "", text)
    text = re.sub(r"[^\n]*\n\r?\x1b\[1A", "", text)
    text = re.sub(r"[^\n]*\x1b\[2K", "", text)
    return re.sub(r"[^\n]*\r", "", text)


def _less(*prefixes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def _command_folder(place: Path) -> Path:
    """A directory with `ckpt` in it that runs this checkout."""
    folder = place / "bin"
    if not folder.exists():
        folder.mkdir()
        (folder / "ckpt").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m ckpt_cli "$@"\n')
        (folder / "ckpt").chmod(0o755)
    return folder


def filled(text: str, run: Runner) -> str:
    """The page with every help and every output as `run` gives it."""

    def console(match: re.Match[str]) -> str:
        lines = [line for line in match[2].splitlines() if line.startswith("$ ")]
        shown = [f"{line}\n{run(line[2:])}" for line in lines]
        return match[1] + "\n".join(part.rstrip("\n") + "\n" for part in shown) + match[3]

    text = _HELP.sub(lambda match: match[1] + run(f"{match[2]} --help") + match[4], text)
    return _CONSOLE.sub(console, text)


def refreshed(text: str, tree: Path) -> str:
    """The page as it would be written now, its commands run on a copy of a demo tree."""
    with short_place() as place:
        runs = shutil.copytree(tree, place / "runs")
        return filled(text, lambda line: typed(line, runs)[1].replace(str(place), "~"))


def commands_in(text: str) -> list[str]:
    """Every other command line of the page: `ckpt ...` in running text and tables, and lines of `sh` blocks.

    A command that is only named is asked for its help.
    """
    body = _CONSOLE.sub("", _HELP.sub("", text))
    lines = [line.split("#")[0].strip() for block in _SHELL.findall(body) for line in block.splitlines()]
    running = _FENCED.sub("", body)
    inline = [f"{code} --help" if _NAMED.fullmatch(code) else code for code in _CODE.findall(running)]
    return [line for line in (*lines, *inline) if line.startswith("ckpt ") and not _MEANT.search(line)]


def picture(line: str, folder: Path) -> str:
    """An SVG of what a command prints at a terminal."""
    from rich.console import Console
    from rich.text import Text

    said = typed(line, folder, colour=True)[1].replace(str(folder.parent), "~")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi(f"$ {line}\n{said.rstrip()}"), soft_wrap=True)
    return console.export_svg(title=line, unique_id=line.split()[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        tree = demo_tree(Path(made))
        with short_place() as place:
            shutil.copytree(tree, place / "runs")
            for name, line in PICTURES.items():
                (HERE / name).write_text(picture(line, place / "runs"))
        for page in pages():
            text = page.read_text()
            new = refreshed(text, tree)
            if new != text:
                page.write_text(new)
                print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
