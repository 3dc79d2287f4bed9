"""Loss against FLOPs, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from suture.backends.svg import Canvas, Point

_LEFT, _TOP, _WIDTH, _HEIGHT, _LABELS = 64.0, 44.0, 560.0, 400.0, 190.0
_COLOURS = ("first", "second", "third", "fourth")
_MARKS = ("plain", "dashed", "dotted")
_STYLES = tuple((colour, mark) for mark, colour in product(_MARKS, _COLOURS))
_SKIPPED = 0.12  # of the FLOPs: the steep beginning, the same for all, would hide the rest


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """An SVG of up to twelve curves, each a sequence of FLOPs and loss; the beginning is cut off, names stand at the right ends."""
    most = max(x for points in curves.values() for x, _ in points)
    kept = {name: [(x, y) for x, y in points if x >= _SKIPPED * most] for name, points in curves.items()}
    losses = [y for points in kept.values() for _, y in points]
    low, high = min(losses), max(losses)
    canvas = Canvas()
    canvas.text(_LEFT, 24, "Held-out loss of a character GPT against training FLOPs", 14, "strong")

    def place(x: float, y: float) -> Point:
        return _LEFT + _WIDTH * x / most, _TOP + _HEIGHT * (high - y) / (high - low)

    for k in range(6):
        x, y = most * k / 5, low + (high - low) * k / 5
        canvas.line([place(0, y), place(most, y)], "grid")
        canvas.text(_LEFT - 6, place(0, y)[1] + 4, f"{y:.2f}", 11, "muted", anchor="end")
        canvas.text(place(x, low)[0], _TOP + _HEIGHT + 18, f"{x:.2g}", 11, "muted", anchor="middle")
    for points, style in zip(kept.values(), _STYLES, strict=False):
        _curve(canvas, [place(x, y) for x, y in points], *style)
    _names(canvas, {name: place(*points[-1]) for name, points in kept.items()})
    return canvas.document(_LEFT + _WIDTH + _LABELS, _TOP + _HEIGHT + 34, "loss against FLOPs")


def _curve(canvas: Canvas, points: Sequence[Point], colour: str, mark: str) -> None:
    # a dashed line is what the pictures of regions draw for ambient values; its colour is overridden
    canvas.line(points, f"ambient {colour} open" if mark == "dashed" else f"{colour} open")
    for x, y in points if mark == "dotted" else ():
        canvas.circle(x, y, 2.2, colour)


def _names(canvas: Canvas, ends: Mapping[str, Point]) -> None:
    """Names at the height of the lines' right ends, moved apart where they would meet, with a piece of the line before each."""
    height = 16.0
    order = sorted(ends, key=lambda name: ends[name][1])
    places: list[float] = []
    for name in order:
        places.append(max(ends[name][1], places[-1] + height) if places else ends[name][1])
    lowest = _TOP + _HEIGHT + 4
    for k in reversed(range(len(places))):  # what was pushed beyond the lower edge pushes back
        places[k] = min(places[k], lowest - height * (len(places) - 1 - k))
    styles = dict(zip(ends, _STYLES, strict=False))
    for name, y in zip(order, places, strict=True):
        x = _LEFT + _WIDTH + 10
        _curve(canvas, [(x, y), (x + 10, y), (x + 20, y)], *styles[name])
        canvas.text(x + 26, y + 4, name, 11)
