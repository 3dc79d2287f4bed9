"""A graph contracted to a few boxes: stacks, modules, and what is computed beside the main path. What a picture of a model shows, without places.

Boxes follow one another as the graph's nodes do. A module that is not one stretch of the main path (a list of modules, or one that holds a stack) is
opened; a stack is one box.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.paths import common_path, is_below
from suture.ir.regions.cuts import cuts, descendants
from suture.ir.regions.outline import stack_label
from suture.ir.regions.region import ModuleTree, Region, module_tree
from suture.ir.regions.stacks import Stack, stacks

_FEWEST_BOXES = 6
_MOST_BOXES = 40


@dataclass(eq=False)
class Box:
    """One box: its nodes, and the stack that it stands for, if it does.

    :param main: whether it lies on the main path
    """

    label: str
    nodes: tuple[Node, ...]
    main: bool
    stack: Stack | None = None

    @property
    def region(self) -> Region:
        """The nodes as a region."""
        return Region(self.nodes[0].graph, self.nodes, self.label)


@dataclass(frozen=True)
class Edge:
    """A value that leads from a box, or a graph input, to a box."""

    value: Value
    source: Box | Value
    target: Box


@dataclass(frozen=True)
class Diagram:
    """The boxes, those of the main path and those beside it each from the input on, and what flows between them."""

    graph: Graph
    source: Value | None
    main: tuple[Box, ...]
    side: tuple[Box, ...]
    edges: tuple[Edge, ...]
    cuts: frozenset[Value] = field(default_factory=frozenset)


def diagram(graph: Graph) -> Diagram:
    """Contract a graph to boxes."""
    chain = cuts(graph) if graph.inputs else ()
    source = chain[0] if chain else None
    flowing = descendants(graph, source) if source is not None else set(graph.nodes)
    found = stacks(graph)
    opened = _opened(graph, flowing, found)
    order = _sorted(_boxes(graph, flowing, found, opened))
    if order is None:  # a stack whose inner values are read between its blocks: each block is a box of its own
        order = _sorted(_boxes(graph, flowing, (), opened)) or []
    order = _sorted(_merged(order)) or order
    edges = _edges(order)
    return Diagram(
        graph, source, tuple(box for box in order if box.main), _depth_first(order, edges), edges, frozenset(chain)
    )


def _opened(graph: Graph, flowing: Container[Node], found: Sequence[Stack]) -> set[str]:
    """The modules that are shown by what they hold."""
    tree = module_tree(graph)
    opened = {""}
    on_the_way = [node for node in graph.nodes if node in flowing]
    for module in tree.walk():
        if module.children and (_holds_a_stack(module.path, found) or not _is_a_stretch(module, on_the_way)):
            opened.add(module.path)
    while not found:
        shown = _shown(tree, opened, found)
        larger = [module for module in shown if len(module.children) > 1]
        grown = sum(len(module.children) for module in larger[:1])
        if len(shown) >= _FEWEST_BOXES or not larger or len(shown) + grown > _MOST_BOXES:
            break
        opened.add(max(larger, key=lambda module: len(module.region)).path)
    return opened


def _holds_a_stack(path: str, found: Sequence[Stack]) -> bool:
    return any(is_below(block.name, path) and block.name != path for stack in found for block in stack.blocks)


def _is_a_stretch(module: ModuleTree, on_the_way: Sequence[Node]) -> bool:
    """Whether the module's nodes on the main path follow one another, and give one value."""
    members = module.region.members
    places = [k for k, node in enumerate(on_the_way) if node in members]
    return not places or (places[-1] - places[0] + 1 == len(places) and len(module.region.outputs) < 2)


def _shown(tree: ModuleTree, opened: Container[str], found: Sequence[Stack]) -> list[ModuleTree]:
    """The modules that are boxes; those inside stacks are not."""
    names = {block.name for stack in found for block in stack.blocks}
    result: list[ModuleTree] = []
    waiting = [tree]
    while waiting:
        module = waiting.pop()
        if module.path in opened:
            waiting += [child for child in module.children.values() if child.path not in names]
        elif not any(is_below(module.path, name) for name in names):
            result.append(module)
    return result


def _boxes(graph: Graph, flowing: Container[Node], found: Sequence[Stack], opened: Container[str]) -> list[Box]:
    stack_of = {node: stack for stack in found for node in stack.nodes()}
    groups: list[tuple[str, bool, list[Node]]] = []
    done: dict[Stack, Box] = {}
    last: dict[bool, list[Node]] = {}
    boxes: list[Box] = []
    keys: dict[bool, str] = {}
    for node in graph.nodes:
        main = node in flowing
        stack = stack_of.get(node)
        if stack is not None:
            if stack not in done:
                is_main = any(member in flowing for member in stack.nodes())
                done[stack] = Box(stack_label(stack), stack.nodes(), is_main, stack)
                groups.append(("", is_main, []))
                boxes.append(done[stack])
            keys[main] = ""
            continue
        key = _display_path(node.path, opened)
        own = key or (node.outputs[0].name if main else "")
        if keys.get(main) != own or main not in last:
            last[main] = []
            groups.append((key, main, last[main]))
            boxes.append(Box(key, (), main))
        last[main].append(node)
        keys[main] = own
    for box, (_, _, nodes) in zip(boxes, groups, strict=True):
        if box.stack is None:
            box.nodes = tuple(nodes)
            box.label = box.label or _made_name(nodes)
    return boxes


def _display_path(path: str, opened: Container[str]) -> str:
    parts = path.split(".") if path else []
    for k in range(1, len(parts) + 1):
        if ".".join(parts[:k]) not in opened:
            return ".".join(parts[:k])
    return ""


def _made_name(nodes: Sequence[Node]) -> str:
    """Nodes of no module of their own go by the value that they make."""
    path = common_path(node.path for node in nodes)
    return f"{path} {nodes[-1].operator.name}".strip() if len(nodes) == 1 else str(nodes[-1].outputs[0])


def _depth_first(boxes: Sequence[Box], edges: Sequence[Edge]) -> tuple[Box, ...]:
    """The boxes beside the main path, each right behind what flows into it, where that is possible."""
    reads: dict[Box, list[Box]] = {}
    for edge in edges:
        if isinstance(edge.source, Box) and not edge.source.main:
            is_stream = edge.value is edge.target.region.stream
            reads.setdefault(edge.target, []).insert(len(reads.get(edge.target, ())) if is_stream else 0, edge.source)
    done: dict[Box, None] = {}
    waiting = [(box, False) for box in reversed(boxes) if box.main or box not in {e.source for e in edges}]
    while waiting:
        box, is_ready = waiting.pop()
        if box in done:
            continue
        if is_ready:
            done[box] = None
        else:
            waiting += [(box, True), *((source, False) for source in reversed(reads.get(box, ())))]
    return tuple(box for box in done if not box.main)


def _merged(boxes: Sequence[Box]) -> list[Box]:
    """Boxes beside the main path that only one other there reads become part of it: the way to a mask is one box."""
    readers: dict[Box, set[Box]] = {}
    for edge in _edges(boxes):
        if isinstance(edge.source, Box):
            readers.setdefault(edge.source, set()).add(edge.target)
    became: dict[Box, Box] = {}
    for box in boxes:
        candidates = [*readers.get(box, ())]
        if len(candidates) != 1 or any(b.main or b.stack for b in (box, *candidates)):
            continue
        reader = candidates[0]
        reader.label = max(box, reader, key=lambda b: (b.region.parameter_count(), len(b.nodes))).label
        members = {*box.nodes, *reader.nodes}
        reader.nodes = tuple(node for node in box.nodes[0].graph.nodes if node in members)
        became[box] = reader
    return [box for box in boxes if box not in became]


def _sorted(boxes: Sequence[Box]) -> list[Box] | None:
    """The boxes, each behind what it reads; None if they form a circle."""
    holder = {node: box for box in boxes for node in box.nodes}
    reads = {box: {b for b in _read_boxes(box, holder) if b is not box} for box in boxes}
    done: dict[Box, None] = {}
    waiting = list(boxes)
    while waiting:
        ready = next((box for box in waiting if reads[box] <= done.keys()), None)
        if ready is None:
            return None
        waiting.remove(ready)
        done[ready] = None
    return list(done)


def _read_boxes(box: Box, holder: Mapping[Node, Box]) -> Iterable[Box]:
    for node in box.nodes:
        for value in node.inputs:
            if value is not None and value.producer is not None and value.producer in holder:
                yield holder[value.producer]


def _edges(boxes: Sequence[Box]) -> tuple[Edge, ...]:
    holder = {node: box for box in boxes for node in box.nodes}
    found: dict[tuple[Value, Box], Edge] = {}
    for box in boxes:
        for node in box.nodes:
            for value in node.inputs:
                if value is None or isinstance(value, Parameter):
                    continue
                source: Box | Value = value if value.producer is None else holder[value.producer]
                if source is not box:
                    found.setdefault((value, box), Edge(value, source, box))
    return tuple(found.values())
