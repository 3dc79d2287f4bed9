"""The outline of a graph: its modules as an indented table, stacks collapsed, with what flows through each and where the model can be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from suture.ir.graph import Graph, Value
from suture.ir.paths import is_below
from suture.ir.regions.cuts import cuts
from suture.ir.regions.region import ModuleTree, Region, module_tree
from suture.ir.regions.stacks import Stack, stacks
from suture.ir.sizes import Dim, evaluate_size, symbols_of

TITLES = ("region", "nodes", "parameters", "MACs", "cut", "stream", "ambient")
LEFT = (0, 4, 5, 6)
"""The columns that are flush left."""

_NAMES_SHOWN = 3
_CUTS_SHOWN = 12


@dataclass(frozen=True)
class Row:
    """A region of the outline.

    :param label: the module's path below the row that it is indented under, with `x 12` for a stack
    :param count: how many blocks the row stands for; `region` is then the first of them, and the sizes are of all of them
    :param cut: whether it ends at a cut value
    """

    depth: int
    label: str
    path: str
    count: int
    nodes: int
    parameters: int
    macs: int
    stream: str
    ambient: tuple[str, ...]
    cut: bool

    def cells(self) -> tuple[str, ...]:
        """As in `TITLES`."""
        return (
            "  " * self.depth + self.label, f"{self.nodes:,}", f"{self.parameters:,}", f"{self.macs:,}",
            "*" if self.cut else "", self.stream, shortened(self.ambient, _NAMES_SHOWN),
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "region": self.path, "depth": self.depth, "blocks": self.count, "nodes": self.nodes, "params": self.parameters, "macs": self.macs,
            "cut": self.cut, "stream": self.stream, "ambient": list(self.ambient),
        }  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """The rows, from the whole model down, the cut values from the input on, and the stacks."""

    rows: tuple[Row, ...]
    cuts: tuple[Value, ...]
    stacks: tuple[Stack, ...]

    def notes(self) -> list[str]:
        """What stands below the table: the stacks, and the cut values outside of them."""
        lines = [
            f"stack {stack.name}: {len(stack)} blocks, {stack.entry} -> {stack.exit}, {stack.entry.type}"
            + ("" if stack.entry.type == stack.exit.type else f" -> {stack.exit.type}")
            for stack in self.stacks
        ]
        inside = {value for stack in self.stacks for block in stack.blocks for n in block.nodes for value in n.outputs}
        shown = [str(value) for value in self.cuts if value not in inside]
        within = len(self.cuts) - len(shown)
        rest = f", and {within} in the stacks" if within else ""
        return [*lines, f"{len(self.cuts)} cut values (*): {shortened(shown, _CUTS_SHOWN)}{rest}"]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "regions": [row.as_json() for row in self.rows],
            "cuts": [{"value": value.name, "type": str(value.type)} for value in self.cuts],
            "stacks": [
                {"name": stack.name, "blocks": [block.name for block in stack.blocks], "entry": stack.entry.name, "exit": stack.exit.name}
                for stack in self.stacks
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        table = [TITLES, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[k]) for cells in table) for k in range(len(TITLES))]
        lines = [
            "  ".join(
                c.ljust(w) if k in LEFT else c.rjust(w) for k, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            for cells in table
        ]
        return "\n".join([*(line.rstrip() for line in lines), "", *self.notes()])


def outline(graph: Graph, depth: int = 2) -> Outline:
    """The outline of a graph.

    :param depth: how many levels of modules to show; modules that hold one module only do not count
    """
    chain = cuts(graph) if graph.inputs else ()
    found = stacks(graph)
    writer = _Rows(set(chain), block_places(found), depth)
    return Outline(tuple(writer.of_model(module_tree(graph))), chain, found)


def block_places(found: tuple[Stack, ...]) -> dict[str, tuple[Stack, int]]:
    """The module paths that are numbered as blocks: the stack, and which block."""
    places: dict[str, tuple[Stack, int]] = {}
    for stack in found:
        numbering = stack.numbering
        if numbering is None:
            continue
        head = f"{numbering.prefix}." if numbering.prefix else ""
        for block in range(len(stack)):
            for k in range(numbering.span):
                places[f"{head}{numbering.stem}{numbering.number(block) + k}"] = stack, block
    return places


def count_macs(graph: Graph, macs: Dim) -> int:
    """Multiply-accumulates of one sample: a batch counts as 1, other symbols as when traced."""
    return evaluate_size(macs, {name: 1 if name == "batch" else graph.hints.get(name, 1) for name in symbols_of(macs)})


def shortened(names: tuple[str, ...] | list[str], most: int) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


class _Rows:
    def __init__(self, chain: set[Value], places: Mapping[str, tuple[Stack, int]], depth: int) -> None:
        self.chain = chain
        self.places = places
        self.depth = depth

    def of_model(self, tree: ModuleTree) -> Iterator[Row]:
        yield self._row(tree.region, 0, tree.region.name, "")
        yield from self._below([tree], 1, "")

    def _below(self, trees: Sequence[ModuleTree], depth: int, above: str) -> Iterator[Row]:
        """The rows of all that stands directly below some modules."""
        if depth > self.depth:
            return
        shown: set[Stack] = set()
        for tree in trees:
            for child in tree.children.values():
                module = _collapsed(child, self.places)
                stack = self._stack_of(module)
                if stack is None:
                    yield self._row(module.region, depth, module.path[len(above) :].lstrip("."), module.path)
                    yield from self._below([module], depth + 1, module.path)
                elif stack not in shown:
                    shown.add(stack)
                    yield from self._stack(stack, trees if child.path in self.places else [module], depth, above)

    def _stack_of(self, tree: ModuleTree) -> Stack | None:
        """The stack that a module is a block of, or that it only holds."""
        if tree.path in self.places:
            return self.places[tree.path][0]
        held = {self.places[child.path][0] if child.path in self.places else None for child in tree.children.values()}
        return held.pop() if len(held) == 1 else None

    def _stack(self, stack: Stack, holders: Sequence[ModuleTree], depth: int, above: str) -> Iterator[Row]:
        label = stack_label(stack)[len(above) :].lstrip(".")
        first = stack.blocks[0]
        row = self._row(first, depth, f"{label} x {len(stack)}", stack.name)
        total: Dim = 0
        for block in stack.blocks:
            total = total + block.macs()
        yield replace(
            row, count=len(stack), nodes=sum(map(len, stack.blocks)), parameters=stack.parameter_count(),
            macs=count_macs(stack.graph, total), cut=stack.exit in self.chain,
        )  # fmt: skip
        modules = [tree for holder in holders for tree in holder.children.values()]
        inner = [_at(module, first.name) for module in modules if self.places.get(module.path) == (stack, 0)]
        yield from self._below(inner, depth + 1, first.name)

    def _row(self, region: Region, depth: int, label: str, path: str) -> Row:
        outputs = region.outputs
        return Row(
            depth, label, path, 1, len(region), region.parameter_count(), count_macs(region.graph, region.macs()),
            _stream(region), tuple(map(str, region.ambient)), len(outputs) == 1 and outputs[0] in self.chain,
        )  # fmt: skip


def stack_label(stack: Stack) -> str:
    """How a stack is called in a picture: its modules' common path, and their numbers where it shares that path with others."""
    numbering = stack.numbering
    if numbering is None or (stack.name == numbering.prefix and not numbering.stem):
        return stack.name
    head = f"{numbering.prefix}." if numbering.prefix else ""
    last = numbering.number(len(stack)) - 1
    return f"{head}{numbering.stem}[{numbering.first}-{last}]"


def _collapsed(tree: ModuleTree, places: Mapping[str, tuple[Stack, int]]) -> ModuleTree:
    """The module, or the only one that it holds."""
    while len(tree.children) == 1 and tree.path not in places:
        (child,) = tree.children.values()
        if len(child.region) < len(tree.region) or child.path in places:
            break
        tree = child
    return tree


def _at(tree: ModuleTree, path: str) -> ModuleTree:
    """The module at a path within another, or the last on the way to it."""
    while (child := next((c for c in tree.children.values() if is_below(path, c.path)), None)) is not None:
        tree = child
    return tree


def _stream(region: Region) -> str:
    if region.stream is None or not region.outputs:
        return ", ".join(str(value.type) for value in region.outputs)
    results = [str(value.type) for value in region.outputs]
    source = str(region.stream.type)
    return f"{source}, kept" if results == [source] else f"{source} -> {shortened(results, _NAMES_SHOWN)}"
