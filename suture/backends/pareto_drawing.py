"""Accuracy against cost as a picture: every route a dot, the anchors named, the Pareto front a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from suture.backends.svg import Canvas, text_width

_WIDTH, _HEIGHT = 760.0, 470.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 76.0, 24.0, 56.0, 84.0
_SIZE, _SMALL = 13.0, 11.0
_STYLES = ("first", "second", "third", "fourth")

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    :param points: (cost, score) by number
    :param large: whether they are drawn large and filled; else small and open
    """

    name: str
    points: Mapping[int, tuple[float, float]]
    large: bool = False


def draw_pareto(
    series: Sequence[Series],
    front: Sequence[int],
    *,
    labels: Mapping[int, str] | None = None,
    title: str = "",
    cost: str = "MACs",
    score: str = "accuracy",
) -> str:
    """The picture, as the text of an SVG file.

    :param series: the points, by kind; at most four kinds have a colour of their own
    :param front: the numbers of the points that the line joins, from the cheapest on
    :param labels: what is written beside points, by number; labels make way for one another
    :param cost: what the level axis shows
    :param score: what the upright axis shows
    """
    return _Chart(series, front, labels or {}, cost, score).document(title)


class _Chart:
    def __init__(
        self, series: Sequence[Series], front: Sequence[int], labels: Mapping[int, str], cost: str, score: str
    ) -> None:
        self.series = series
        self.front = front
        self.labels = labels
        self.names = cost, score
        self.points = {number: point for item in series for number, point in item.points.items()}
        self.x = _Scale([x for x, _ in self.points.values()], _LEFT, _WIDTH - _RIGHT)
        self.y = _Scale([y for _, y in self.points.values()], _HEIGHT - _BOTTOM, _TOP)
        self.canvas = Canvas()

    def document(self, title: str) -> str:
        self._axes(title)
        line = [self._place(number) for number in self.front]
        if len(line) > 1:
            self.canvas.line(line, "skip")
        for k, item in enumerate(self.series):
            style = _STYLES[min(k, len(_STYLES) - 1)]
            for number in item.points:
                x, y = self._place(number)
                self.canvas.circle(x, y, 6 if item.large else 3.6, style if item.large else f"{style} open")
        self._labels()
        self._legend()
        return self.canvas.document(_WIDTH, _HEIGHT, title or "accuracy against cost")

    def _place(self, number: int) -> tuple[float, float]:
        x, y = self.points[number]
        return self.x.at(x), self.y.at(y)

    def _axes(self, title: str) -> None:
        self.canvas.text(_LEFT, 26, title, _SIZE + 2, "strong")
        floor, ceiling = _HEIGHT - _BOTTOM, _TOP
        for value in self.x.ticks:
            x = self.x.at(value)
            self.canvas.line([(x, floor), (x, ceiling)], "grid")
            self.canvas.text(x, floor + 18, short_number(value), _SMALL, "muted", anchor="middle")
        for value in self.y.ticks:
            y = self.y.at(value)
            self.canvas.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], "grid")
            self.canvas.text(_LEFT - 8, y + 4, short_number(value), _SMALL, "muted", anchor="end")
        self.canvas.text(_WIDTH - _RIGHT, floor + 38, self.names[0], _SIZE, anchor="end")
        self.canvas.text(_LEFT, ceiling - 10, self.names[1], _SIZE)

    def _labels(self) -> None:
        """Each label in the first place around its point that is free of other labels, of labelled points and of the edge."""
        taken = [_around(*self._place(number), 6) for number in self.labels if number in self.points]
        for number, text in self.labels.items():
            if number not in self.points:
                continue
            box = _free_box(*self._place(number), text_width(text, _SIZE), taken)
            taken.append(box)
            self.canvas.text(box[0], box[3] - 4, text, _SIZE, "strong")

    def _legend(self) -> None:
        x, y = _LEFT, _HEIGHT - 18
        for k, item in enumerate(self.series):
            style = _STYLES[min(k, len(_STYLES) - 1)]
            self.canvas.circle(x + 6, y - 4, 6 if item.large else 3.6, style if item.large else f"{style} open")
            self.canvas.text(x + 18, y, item.name, _SIZE)
            x += 18 + text_width(item.name, _SIZE) + 24
        if len(self.front) > 1:
            self.canvas.line([(x, y - 4), (x + 22, y - 4)], "skip")
            self.canvas.text(x + 30, y, "Pareto front", _SIZE)


class _Scale:
    """Values to places, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        self.low, self.high, self.start, self.end = low - room, high + room, start, end
        step = _round_step((self.high - self.low) / 6)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step)
        self.ticks = [k * step for k in range(first, last + 1)]

    def at(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * 0.999)


def _around(x: float, y: float, radius: float) -> Box:
    return (x - radius, y - radius, x + radius, y + radius)


def _free_box(x: float, y: float, width: float, taken: Sequence[Box]) -> Box:
    height = _SIZE + 5
    last: Box = (x + 10, y - height / 2, x + 10 + width, y + height / 2)
    for distance in (9, 18, 30, 44, 60, 80):
        for left, top in (
            (x + distance, y - height / 2), (x - width / 2, y - distance - height), (x - width / 2, y + distance),
            (x - distance - width, y - height / 2), (x + distance, y - distance - height), (x + distance, y + distance),
            (x - distance - width, y - distance - height), (x - distance - width, y + distance),
        ):  # fmt: skip
            box = (left, top, left + width, top + height)
            inside = left > _LEFT and left + width < _WIDTH - 4 and top > _TOP and top + height < _HEIGHT - _BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                return box
    return last


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def short_number(value: float) -> str:
    """A number as an axis shows it: `1.5G`, `200M`, `0.85`, `2m`."""
    magnitude = abs(value)
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if magnitude >= factor:
            return f"{value / factor:.4g}{unit}"
    if 0 < magnitude < 1e-2:
        return f"{value * 1e3:.4g}m" if magnitude >= 1e-5 else f"{value * 1e6:.4g}u"
    return f"{value:.4g}"
