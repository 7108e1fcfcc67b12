"""Rows as a table: aligned text in a pipe, drawn by rich on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from ckpt_cli.ui.text import printable

if TYPE_CHECKING:
    from rich.console import Console


class Column(NamedTuple):
    """A heading; `right` aligns numbers, `style` is a rich style for a terminal."""

    title: str
    right: bool = False
    style: str = ""


class Cell(NamedTuple):
    """What a person reads, and what a program gets in plain output."""

    text: str
    raw: str
    style: str = ""


Row = Sequence["str | Cell"]
# Puts a style on a text.
Paint = Callable[[str, str], str]
# Characters beyond which a column is not widened for the sake of one long cell.
_WIDEST = 200
# Rows that rich, which looks at each for a quarter of a millisecond, is asked to draw; a longer table is aligned text.
_LONG = 500


def separated(row: Row) -> str:
    """A line for programs: the raw cells with tabs between them."""
    return "\t".join([printable(cell.raw if isinstance(cell, Cell) else cell) for cell in row]) + "\n"


def aligned(columns: Sequence[Column], rows: Iterable[Row], paint: Paint | None = None) -> Iterator[str]:
    """The lines of a table as aligned text, uncut, the headings among them."""
    widths = [0] * len(columns)
    lines = [_packed([Cell(column.title, "", "bold") for column in columns], widths)]
    lines.extend(_packed(row, widths) for row in rows)
    widths = [min(_WIDEST, width) for width in widths]
    for line in lines:
        cells = []
        for marked, width, column in zip(line.split("\n"), widths, columns):
            text, _, style = marked.partition("\0")
            padded = text.rjust(width) if column.right else text.ljust(width)
            cells.append(paint(padded, style) if paint and style else padded)
        yield "  ".join(cells).rstrip() + "\n"


def drawn(columns: Sequence[Column], lines: Iterable[Row]) -> Iterator[str]:
    """A table on a terminal. Names are drawn as text, never as markup; only the last column is broken into lines.

    Columns move closer together before that; where a terminal is too narrow even then, or the table is long, it is
    aligned text, whose lines the terminal breaks: nothing is cut.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    lines = iter(lines)
    rows = list(islice(lines, _LONG + 1))
    if len(rows) > _LONG:
        yield from aligned(columns, chain(rows, lines), _painting(console))
        return
    widths = [
        max(len(_text(row[index])) for row in (*rows, [c.title for c in columns])) for index in range(len(columns))
    ]
    gaps = len(columns) - 1
    if sum(widths[:-1]) + gaps + min(widths[-1], 12) > console.width:
        yield from aligned(columns, rows)
        return
    close = sum(widths) + 2 * gaps > console.width
    table = Table(box=None, pad_edge=False, collapse_padding=close, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            style=column.style,
            no_wrap=index + 1 < len(columns),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_text(cell), style=cell.style if isinstance(cell, Cell) else "") for cell in row))
    with console.capture() as captured:
        console.print(table)
    yield captured.get()


def _text(cell: str | Cell) -> str:
    return printable(cell.text if isinstance(cell, Cell) else cell)


def _packed(row: Row, widths: list[int]) -> str:
    """The cells of a row and their styles as one text, in a quarter of the memory; widens the widths to hold them."""
    cells = []
    for index, cell in enumerate(row):
        text = _text(cell)  # in which there is no control character
        widths[index] = max(widths[index], len(text))
        cells.append(f"{text}\0{cell.style}" if isinstance(cell, Cell) and cell.style else text)
    return "\n".join(cells)


def _painting(console: Console) -> Paint | None:
    """What puts a style on text as the console would."""
    from rich.color import ColorSystem
    from rich.style import Style

    def paint(text: str, style: str) -> str:
        return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)

    return None if console.no_color or not console.color_system else paint
