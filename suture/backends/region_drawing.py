"""A model's regions as a picture: the main path from top to bottom, what it reads besides on the left, what crosses over its boxes on the right.

A stack is drawn once, with the number of its blocks. Edges say what they carry; a dot on one is a cut value, where the model can be taken apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.backends.region_boxes import (
    DETAIL,
    LABEL,
    PADDING,
    Cable,
    PlacedBox,
    label_room,
    placed_box,
    placed_results,
    shortened_label,
)
from suture.backends.svg import Canvas, text_width
from suture.ir.graph import Graph, Value
from suture.ir.regions.diagram import Box, Diagram, diagram

_GAP = 34.0  # between boxes: room for an arrow and its label
_LANE = 12.0  # between upright lines
_MARGIN = 24.0


def draw_regions(graph: Graph) -> str:
    """The picture, as the text of an SVG file."""
    return _Picture(diagram(graph)).document()


class _Picture:
    def __init__(self, content: Diagram) -> None:
        self.content = content
        self.canvas = Canvas()
        self.placed: dict[Box | Value, PlacedBox] = {box: placed_box(box) for box in (*content.main, *content.side)}
        self.main = self._column(content.main, [content.source] if content.source is not None else [])
        read = [edge.source for edge in content.edges if isinstance(edge.source, Value)]
        beside = [value for value in dict.fromkeys(read) if value is not content.source]
        self.side = self._column(content.side, beside)
        self.results = placed_results(content)
        for value, result in self.results:
            (self.main if self._source(value) in self.main else self.side).append(result)
        self.straight: list[tuple[PlacedBox, PlacedBox, list[Value]]] = []
        self.skips: list[Cable] = []
        self.ambient: list[Cable] = []
        self.outer: list[Cable] = []
        self._route()

    def _column(self, boxes: Sequence[Box], inputs: Sequence[Value]) -> list[PlacedBox]:
        """Boxes from top to bottom; a graph input stands right above the first box that reads it."""
        column: list[PlacedBox] = []
        waiting = list(inputs)
        for box in boxes:
            for value in list(waiting):
                if any(edge.source is value and edge.target is box for edge in self.content.edges):
                    waiting.remove(value)
                    column.append(self._input(value))
            column.append(self.placed[box])
        return [*(self._input(value) for value in waiting), *column]

    def _input(self, value: Value) -> PlacedBox:
        text = f"{value.name}: {value.type}"
        self.placed[value] = PlacedBox(((shortened_label(text), DETAIL, "strong"),), "terminal")
        return self.placed[value]

    def _route(self) -> None:
        """Straight down between neighbours, else along a lane on the outer side of the column, or between the columns."""
        cables: dict[tuple[int, tuple[int, ...]], Cable] = {}
        by_value: dict[Value, list[PlacedBox]] = {}
        for edge in self.content.edges:
            by_value.setdefault(edge.value, []).append(self.placed[edge.target])
        for value, targets in by_value.items():
            source = self._source(value)
            column = self.main if source in self.main else self.side
            after = column[column.index(source) + 1 :]
            if after and after[0] in targets:
                self._join(source, after[0], value)
                targets = [target for target in targets if target is not after[0]]
            for group in ([t for t in targets if t in column], [t for t in targets if t not in column]):
                if group:
                    key = (id(source), tuple(map(id, group)))
                    cables.setdefault(key, Cable([], source, group)).values.append(value)
        self._join_results()
        for cable in cables.values():
            self._assign(cable)

    def _join(self, source: PlacedBox, target: PlacedBox, value: Value) -> None:
        for one, other, values in self.straight:
            if one is source and other is target:
                values.append(value)
                return
        self.straight.append((source, target, [value]))

    def _join_results(self) -> None:
        for value, result in self.results:
            source = self._source(value)
            column = self.main if source in self.main else self.side
            if column.index(result) == column.index(source) + 1:
                self._join(source, result, value)
            else:
                self._assign(Cable([value], source, [result]))

    def _assign(self, cable: Cable) -> None:
        inner = cable.source in self.side and cable.targets[0] in self.main
        if inner:
            self.ambient.append(cable)
            cable.source.right.append(cable)
            for target in cable.targets:
                target.left.append(cable)
            return
        ends = [cable.source, *cable.targets]
        on_main = cable.source in self.main
        (self.skips if on_main else self.outer).append(cable)
        for placed in ends:
            (placed.right if on_main else placed.left).append(cable)

    def _source(self, value: Value) -> PlacedBox:
        edge = next((edge for edge in self.content.edges if edge.value is value), None)
        if edge is not None:
            return self.placed[edge.source]
        holder = next((box for box in self.placed if isinstance(box, Box) and value.producer in box.nodes), None)
        return self.placed[holder if holder is not None else value]

    # ------------------------------------------------------------------------------------------------------- places
    def document(self) -> str:
        """Place everything, then paint it."""
        for placed in (*self.side, *self.main):
            placed.measure()
        outer = _LANE * len(self.outer) + max((label_room(cable) for cable in self.outer), default=0)
        top = _MARGIN + 44
        left = _MARGIN + outer
        side_end, side_foot = self._place(self.side, left, top)
        lanes = max((label_room(cable) for cable in self.ambient), default=0) + _LANE * (len(self.ambient) + 1)
        first_lane = side_end + max((label_room(cable) for cable in self.ambient), default=0)
        start = max(side_end + lanes + 16, self._straight_end(self.side) + 16) if self.side else left
        main_end, main_foot = self._place(self.main, start, top)
        for placed in self.main:
            placed.left.sort(key=lambda cable: cable.source.y)  # so that lines to the same box do not cross
        last_lane = max((label_room(cable) for cable in self.skips), default=0) + main_end
        right = max(last_lane + _LANE * len(self.skips), self._straight_end(self.main), main_end)
        self._paint_cables(first_lane, last_lane, left - _LANE)
        for source, target, values in self.straight:
            self._paint_straight(source, target, values)
        for placed in (*self.side, *self.main):
            self._paintplaced_box(placed)
        foot = max(side_foot, main_foot)
        stats = self.content.graph.stats()
        heading = f"{stats.parameters:,} parameters, {stats.macs:,} MACs, {len(self.content.cuts)} cut values"
        legend = self._legend(_MARGIN, foot + 26)
        self.canvas.text(_MARGIN, _MARGIN + 8, self.content.graph.name, 15, "strong")
        self.canvas.text(_MARGIN, _MARGIN + 25, heading, DETAIL, "muted")
        width = max(right, _MARGIN + text_width(heading, DETAIL), legend) + _MARGIN
        return self.canvas.document(width, foot + 26 + _MARGIN, f"Regions of {self.content.graph.name}")

    def _place(self, column: Sequence[PlacedBox], x: float, y: float) -> tuple[float, float]:
        width = max((placed.width for placed in column), default=0)
        for placed in column:
            inset = (width - placed.width) / 2 if placed.style == "terminal" else 0
            placed.x, placed.y = x + inset, y
            placed.width = placed.width if inset else width
            y += placed.height + _GAP
        return x + width, y - _GAP

    def _straight_end(self, column: Sequence[PlacedBox]) -> float:
        """Where the labels of the straight edges of a column end."""
        ends = [
            source.middle + 10 + text_width(Cable(values, source, []).label(), DETAIL)
            for source, _, values in self.straight
            if source in column
        ]
        return max(ends, default=0)

    # -------------------------------------------------------------------------------------------------------- paint
    def _paintplaced_box(self, placed: PlacedBox) -> None:
        if placed.badge:
            for offset in (7, 3.5):
                self.canvas.rectangle(placed.x + offset, placed.y + offset, placed.width, placed.height, placed.style)
        corner = placed.height / 2 if placed.style == "terminal" else 6
        self.canvas.rectangle(placed.x, placed.y, placed.width, placed.height, placed.style, corner=corner)
        height = sum(size + 5 for _, size, _ in placed.lines) - 5
        y = placed.y + (placed.height - height) / 2
        for text, size, style in placed.lines:
            self.canvas.text(placed.x + PADDING, y + size * 0.82, text, size, style)
            y += size + 5
        if placed.badge:
            top = placed.y + (placed.height - height) / 2
            end = placed.x + placed.width - PADDING
            self.canvas.text(end, top + LABEL * 0.82, placed.badge, LABEL, "strong accent", anchor="end")

    def _paint_straight(self, source: PlacedBox, target: PlacedBox, values: list[Value]) -> None:
        x = source.middle
        y, end = source.y + source.height + (7 if source.badge else 0), target.y
        self.canvas.line([(x, y), (x, end - 5)], "")
        self.canvas.arrow_head(x, end, "head", "down")
        if any(value in self.content.cuts for value in values):
            self.canvas.circle(x, y + (end - y) / 2 - 3, 4, "dot")
        if source.style != "terminal" or source.lines[0][0].endswith("..."):
            label = Cable(values, source, []).label()
            self.canvas.text(x + 10, y + (end - y) / 2 + 1, label, DETAIL, "muted")

    def _paint_cables(self, first_lane: float, last_lane: float, outer_lane: float) -> None:
        for k, cable in enumerate(_by_length(self.skips)):
            self._paint_cable(cable, last_lane + _LANE * k, "skip")
        for k, cable in enumerate(self.ambient):
            self._paint_ambient(cable, first_lane + _LANE * (len(self.ambient) - k - 1))
        for k, cable in enumerate(_by_length(self.outer)):
            self._paint_outer(cable, outer_lane - _LANE * k - max(map(label_room, self.outer)) + _LANE)

    def _paint_cable(self, cable: Cable, lane: float, style: str) -> None:
        """Out of the right side of a box, down a lane, and into the right side of others."""
        source = cable.source
        x, y = source.x + source.width, source.port(cable, source.right)
        if cable.targets[0].style != "terminal" or len(cable.targets) > 1 or source.style != "terminal":
            self.canvas.text(x + 12, y - 4, cable.label(), DETAIL, "muted")
        for target in cable.targets:
            end = target.port(cable, target.right)
            tip = target.x + target.width
            self.canvas.line([(x, y), (lane, y), (lane, end), (tip + 5, end)], style, bend=8)
            self.canvas.arrow_head(tip, end, f"{style}-head", "left")

    def _paint_ambient(self, cable: Cable, lane: float) -> None:
        source = cable.source
        x, y = source.x + source.width, source.port(cable, source.right)
        if source.style != "terminal":
            self.canvas.text(x + 12, y - 4, cable.label(), DETAIL, "muted")
        for target in cable.targets:
            end = target.port(cable, target.left)
            self.canvas.line([(x, y), (lane, y), (lane, end), (target.x - 5, end)], "ambient", bend=8)
            self.canvas.arrow_head(target.x, end, "ambient-head", "right")

    def _paint_outer(self, cable: Cable, lane: float) -> None:
        source = cable.source
        x, y = source.x, source.port(cable, source.left)
        if source.style != "terminal":
            self.canvas.text(x - 12, y - 4, cable.label(), DETAIL, "muted", anchor="end")
        for target in cable.targets:
            end = target.port(cable, target.left)
            self.canvas.line([(x, y), (lane, y), (lane, end), (target.x - 5, end)], "ambient", bend=8)
            self.canvas.arrow_head(target.x, end, "ambient-head", "right")

    def _legend(self, x: float, y: float) -> float:
        """What dots and colours mean, where they occur; returns where it ends."""
        entries = [("cut value", "dot")]
        entries += [("ambient", "ambient")] if self.ambient or self.outer else []
        entries += [("crosses", "skip")] if self.skips else []
        for text, style in entries:
            if style == "dot":
                self.canvas.circle(x + 5, y, 4, "dot")
            else:
                self.canvas.line([(x - 10, y), (x + 12, y)], style)
            self.canvas.text(x + 17, y + 4, text, DETAIL, "muted")
            x += 17 + text_width(text, DETAIL) + 32
        return x - 32


def _by_length(cables: Sequence[Cable]) -> list[Cable]:
    """The shortest first: they take the lanes nearest to the boxes."""
    return sorted(cables, key=lambda cable: max(target.y for target in cable.targets) - cable.source.y)
