"""A small writer of SVG: boxes, lines and text of known width, in colours that suit a light and a dark page.

Text is set in a monospaced face, so that its width is known without the font: nothing that is measured can overlap once it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

ADVANCE = 0.605
"""The width of a letter over the size of the text: the widest of the usual monospaced faces."""

Point = tuple[float, float]

_STYLE = """
  text { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1c2024 }
  .page { fill: #ffffff } .muted { fill: #5f646d } .strong { font-weight: bold } .accent { fill: #1d4fa8 }
  .box { fill: #f3f4f6; stroke: #c4c7ce } .stack { fill: #e7eefb; stroke: #5b83d6 } .side { fill: #faf4e8; stroke: #c7a567 }
  .terminal { fill: #ffffff; stroke: #8b8f98 } .dot { fill: #1d4fa8; stroke: #ffffff }
  .line { fill: none; stroke: #7b808a; stroke-width: 1.4 } .skip { stroke: #2f6bd0 } .ambient { stroke: #b3852f; stroke-dasharray: 5 3 }
  .head { fill: #7b808a } .skip-head { fill: #2f6bd0 } .ambient-head { fill: #b3852f }
  .grid { stroke: #e3e5e9 } .first { fill: #2f6bd0; stroke: #2f6bd0 } .second { fill: #c4571b; stroke: #c4571b }
  .third { fill: #24885b; stroke: #24885b } .fourth { fill: #8a4fb8; stroke: #8a4fb8 } .open { fill: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8eaed } .page { fill: #15171b } .muted { fill: #a3a8b1 } .accent { fill: #9cc0ff }
    .box { fill: #20242a; stroke: #4b515b } .stack { fill: #1b2a44; stroke: #6f9be8 } .side { fill: #2b2517; stroke: #a4874d }
    .terminal { fill: #15171b; stroke: #7d828c } .dot { fill: #9cc0ff; stroke: #15171b }
    .line { stroke: #868c96 } .skip { stroke: #6f9be8 } .ambient { stroke: #cda35a }
    .head { fill: #868c96 } .skip-head { fill: #6f9be8 } .ambient-head { fill: #cda35a }
    .grid { stroke: #30353d } .first { fill: #6f9be8; stroke: #6f9be8 } .second { fill: #ec9560; stroke: #ec9560 }
    .third { fill: #5cc293; stroke: #5cc293 } .fourth { fill: #c193e8; stroke: #c193e8 } .open { fill: none }
  }
"""


def text_width(text: str, size: float) -> float:
    """The width of a line of text."""
    return ADVANCE * size * len(text)


class Canvas:
    """The elements of a picture, in the order in which they are painted."""

    def __init__(self) -> None:
        self._elements: list[str] = []

    def rectangle(self, x: float, y: float, width: float, height: float, style: str, *, corner: float = 6) -> None:
        """A box with round corners."""
        self._elements.append(
            f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{corner:g}"/>'
        )

    def text(self, x: float, y: float, text: str, size: float, style: str = "", *, anchor: str = "start") -> None:
        """A line of text; `y` is its base line, `anchor` says whether `x` is its start, middle or end."""
        chosen = f' class="{style}"' if style else ""
        placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._elements.append(
            f'<text{chosen} x="{x:.1f}" y="{y:.1f}" font-size="{size:g}"{placed}>{escape(text)}</text>'
        )

    def line(self, points: Sequence[Point], style: str, *, bend: float = 0) -> None:
        """A polyline of upright and level stretches, its corners rounded by `bend`."""
        self._elements.append(f'<path class="line {style}" d="{_path(points, bend)}"/>')

    def arrow_head(self, x: float, y: float, style: str, towards: str) -> None:
        """A triangle with its tip at a point."""
        dx, dy = {"down": (0, -1), "right": (-1, 0), "left": (1, 0)}[towards]
        corners = [(x, y), *((x + 7 * dx + 3.5 * side * dy, y + 7 * dy + 3.5 * side * dx) for side in (-1, 1))]
        self._elements.append(f'<polygon class="{style}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"/>')

    def circle(self, x: float, y: float, radius: float, style: str) -> None:
        """A dot."""
        self._elements.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def document(self, width: float, height: float, title: str) -> str:
        """The whole picture."""
        size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
        body = "\n".join(self._elements)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
            f'<rect class="page" width="100%" height="100%"/>\n{body}\n</svg>\n'
        )


def _path(points: Sequence[Point], bend: float) -> str:
    commands = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        a, b = _towards(here, before, bend), _towards(here, after, bend)
        commands.append(f"L{a[0]:.1f} {a[1]:.1f} Q{here[0]:.1f} {here[1]:.1f} {b[0]:.1f} {b[1]:.1f}")
    return " ".join([*commands, f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"])


def _towards(here: Point, other: Point, distance: float) -> Point:
    dx, dy = other[0] - here[0], other[1] - here[1]
    length = abs(dx) + abs(dy)
    share = min(distance, length / 2) / length if length else 0
    return here[0] + dx * share, here[1] + dy * share
