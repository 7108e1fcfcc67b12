"""Log-log plots as one SVG, without a library: rows of panels that share a kind of axis, readable on light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

PANEL, GAP, LEFT, TOP = (210, 170), (62, 84), 62, 52
STYLE = """\
text { font: 11px system-ui, sans-serif; fill: #444 }
.head { font-weight: 600; fill: #111 }
.grid { stroke: #888; stroke-opacity: 0.3; stroke-width: 1 }
.line { fill: none; stroke-width: 2 }
.s0 { stroke: #0b62c4; color: #0b62c4 }
.s1 { stroke: #b3530a; color: #b3530a; stroke-dasharray: 6 3 }
.s2 { stroke: #20793c; color: #20793c; stroke-dasharray: 2 3 }
.dot { fill: currentColor; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #bbb }
  .head { fill: #eee }
  .s0 { stroke: #6cb6ff; color: #6cb6ff }
  .s1 { stroke: #f0975a; color: #f0975a }
  .s2 { stroke: #6bc983; color: #6bc983 }
}
"""


class Line(NamedTuple):
    """A name and its points, both coordinates above zero."""

    name: str
    points: Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """One plot: what it is of, its axes (the upright one is named in the head), up to three lines."""

    title: str
    across: str
    up: str
    lines: Sequence[Line]


def decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values, at least one apart."""
    low, high = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    return low, max(high, low + 1)


def power(exponent: int) -> str:
    """A power of ten as people write it."""
    return f"{10**exponent:,}" if exponent >= 0 else f"{10**exponent:.{-exponent}f}"


def drawn(panel: Panel, x: float, y: float) -> list[str]:
    """The elements of one panel whose inner upper left corner is at x, y."""
    width, height = PANEL
    points = [point for line in panel.lines for point in line.points]
    (left, right), (bottom, top) = decades([a for a, _ in points]), decades([b for _, b in points])

    def place(a: float, b: float) -> tuple[float, float]:
        across = x + width * (math.log10(a) - left) / (right - left)
        return across, y + height * (top - math.log10(b)) / (top - bottom)

    out = [f'<text class="head" x="{x}" y="{y - 12}">{escape(panel.title)}: {escape(panel.up)}</text>']
    for exponent in range(left, right + 1):
        at = x + width * (exponent - left) / (right - left)
        out.append(f'<path class="grid" d="M{at:.1f} {y}V{y + height}"/>')
        out.append(f'<text x="{at:.1f}" y="{y + height + 14}" text-anchor="middle">{power(exponent)}</text>')
    for exponent in range(bottom, top + 1):
        at = y + height * (top - exponent) / (top - bottom)
        out.append(f'<path class="grid" d="M{x} {at:.1f}H{x + width}"/>')
        out.append(f'<text x="{x - 5}" y="{at + 4:.1f}" text-anchor="end">{power(exponent)}</text>')
    out.append(f'<text x="{x + width / 2}" y="{y + height + 29}" text-anchor="middle">{escape(panel.across)}</text>')
    for number, line in enumerate(panel.lines):
        spots = [place(a, b) for a, b in line.points]
        track = "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        out.append(f'<g class="s{number}"><path class="line" d="M{track}"/>')
        out += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in spots]
        out.append("</g>")
    return out


def legend(panel: Panel, x: float, y: float) -> list[str]:
    """The names of a panel's lines, one under the other."""
    out = []
    for number, line in enumerate(panel.lines):
        at = y + 15 * number
        out.append(f'<path class="line s{number}" d="M{x} {at}h24"/>')
        out.append(f'<text x="{x + 30}" y="{at + 4}">{escape(line.name)}</text>')
    return out


def figure(title: str, rows: Sequence[Sequence[Panel]]) -> str:
    """An SVG of rows of panels; below each column stand the names of the lines of its last panel."""
    width = LEFT + max(map(len, rows)) * (PANEL[0] + GAP[0])
    under = TOP + len(rows) * (PANEL[1] + GAP[1]) - 26
    body = []
    for down, row in enumerate(rows):
        for across, panel in enumerate(row):
            x, y = LEFT + across * (PANEL[0] + GAP[0]), TOP + down * (PANEL[1] + GAP[1])
            body += drawn(panel, x, y)
            if down == len(rows) - 1:
                body += legend(panel, x, under)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {under + 50}" width="{width}" role="img">'
    return "\n".join((head, f"<title>{escape(title)}</title>", f"<style>\n{STYLE}</style>", *body, "</svg>", ""))
