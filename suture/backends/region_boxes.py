"""What a picture of regions is made of: boxes with their lines of text, and the cables between them, measured before they are placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from suture.backends.svg import text_width
from suture.ir.graph import Graph, Value
from suture.ir.regions.diagram import Box, Diagram
from suture.ir.regions.outline import count_macs

LABEL, DETAIL = 13.0, 11.0
"""The sizes of a box's first line, and of all other text."""

PADDING = 14.0
_PORT = 17.0  # between the ends of level lines on one side of a box
_LONGEST = 44


@dataclass(eq=False)
class PlacedBox:
    """A box with its lines of text and its place; a graph's input or output is one too."""

    lines: tuple[tuple[str, float, str], ...]
    style: str
    badge: str = ""
    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0
    left: list[Cable] = field(default_factory=list)
    right: list[Cable] = field(default_factory=list)

    def measure(self) -> None:
        """Take the size that the text, and the ends of the cables, need."""
        badge = text_width("  " + self.badge, LABEL) if self.badge else 0
        widths = [text_width(text, size) + (badge if k == 0 else 0) for k, (text, size, _) in enumerate(self.lines)]
        self.width = max(widths) + 2 * PADDING
        text_height = sum(size + 5 for _, size, _ in self.lines) + 11
        self.height = max(text_height, 8 + _PORT * max(len(self.left), len(self.right)))

    @property
    def middle(self) -> float:
        """Where arrows down start and end."""
        return self.x + self.width / 2

    def port(self, cable: Cable, side: Sequence[Cable]) -> float:
        """The height at which a cable meets a side of the box."""
        return self.y + self.height / 2 + (side.index(cable) - (len(side) - 1) / 2) * _PORT


@dataclass(eq=False)
class Cable:
    """Values that lead from one box to the same others, along a lane."""

    values: list[Value]
    source: PlacedBox
    targets: list[PlacedBox]

    def label(self) -> str:
        """The type of what it carries."""
        first = shortened_label(str(self.values[0].type))
        same = all(value.type == self.values[0].type for value in self.values)
        more = len(self.values) - 1
        return first + (f" x {more + 1}" if same and more else f" and {more} more" if more else "")


def placed_box(box: Box) -> PlacedBox:
    """A box with what is written in it: its name, and its sizes or its one operator."""
    region = box.region
    label = shortened_label(box.label)
    if box.stack is None and len(box.nodes) == 1:
        operator = box.nodes[0].operator.name
        count = region.parameter_count()
        detail = operator + (f", {count:,} parameters" if count else "")
        lines = (
            ((label, LABEL, "strong"),)
            if label.endswith(detail)
            else ((label, LABEL, "strong"), (detail, DETAIL, "muted"))
        )
        return PlacedBox(lines, "box" if box.main else "side")
    if box.stack is not None:
        block = box.stack.blocks[0]
        counts = _counts(block.graph, len(block), block.parameter_count(), count_macs(block.graph, block.macs()))
        lines = ((label, LABEL, "strong"), (f"each: {counts}", DETAIL, "muted"))
        return PlacedBox(lines, "stack", badge=f"x {len(box.stack)}")
    counts = _counts(region.graph, len(region), region.parameter_count(), count_macs(region.graph, region.macs()))
    return PlacedBox(((label, LABEL, "strong"), (counts, DETAIL, "muted")), "box" if box.main else "side")


def _counts(graph: Graph, nodes: int, parameters: int, macs: int) -> str:
    parts = [f"{nodes:,} nodes", f"{parameters:,} parameters" if parameters else "", f"{macs:,} MACs" if macs else ""]
    return ", ".join(part for part in parts if part)


def placed_results(content: Diagram) -> list[tuple[Value, PlacedBox]]:
    """What the graph returns, in the order in which it is made, so that the last is right below the last box."""
    names: dict[Value, list[str]] = {}
    for value, name in zip(content.graph.outputs, content.graph.output_names, strict=True):
        names.setdefault(value, []).append(name)
    order = {value: k for k, value in enumerate(content.graph.values())}
    return [
        (
            value,
            PlacedBox(((shortened_label(f"{', '.join(names[value])}: {value.type}"), DETAIL, "strong"),), "terminal"),
        )
        for value in sorted(names, key=order.__getitem__, reverse=True)
    ]


def label_room(cable: Cable) -> float:
    """The room that a cable's label takes beside its box."""
    return text_width(cable.label(), DETAIL) + 24


def shortened_label(text: str) -> str:
    """A text that is not too long to draw."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
