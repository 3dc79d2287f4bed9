"""Orders around layers: a permute that leaves rows whole passes by whatever works on rows, where it then meets another permute.

Modules that want the sequence in front of the batch (or the other way round) turn it on the way in and back on the way out; with heads taken
apart in between. None of these permutes is needed.
"""

from __future__ import annotations

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim
from suture.passes.canonical.matching import compose, dims_of, is_sole, maker, reshaped, source, supersede
from suture.passes.canonical.views import kept_rows, moved_chain, taken_apart, tensor_operand
from suture.passes.rewriting import Rule


def _rows_above(value: Value) -> tuple[tuple[Node, ...], Value]:
    """The nodes above a value that work on rows, in order, each read by the next alone; and what the first of them reads."""
    found: list[Node] = []
    while is_sole(value) and value.producer is not None and kept_rows(value.producer) is not None:
        found.append(value.producer)
        value = tensor_operand(value.producer)
    return tuple(reversed(found)), value


def _keeps_rows(order: tuple[int, ...], nodes: tuple[Node, ...]) -> bool:
    """Whether a permute leaves the trailing dimensions that the nodes work on where they are."""
    kept = max((kept_rows(node) or 0 for node in nodes), default=0)
    return order[len(order) - kept :] == tuple(range(len(order) - kept, len(order)))


def order_above_layers(graph: Graph, node: Node) -> str | None:
    """permute, layers on rows, dimensions taken apart, permute: the first permute is part of the last."""
    if node.operator.name != "permute":
        return None
    apart = maker(node.inputs[0], "reshape")
    below = source(apart) if apart is not None and is_sole(apart.output) else source(node)
    nodes, start = _rows_above(below)
    first = maker(start, "permute")
    if first is None or (not nodes and (apart is None or below is source(node))):
        return None
    if not _keeps_rows(dims_of(first), nodes):
        return None
    groups: list[tuple[Dim, ...]] = [(size,) for size in below.shape]
    if apart is not None and below is source(apart):
        found = taken_apart(below.shape, apart.output.shape)
        if found is None:
            return None
        groups = found
    value = moved_chain(graph, nodes, source(first), node)
    place = {dim: k for k, dim in enumerate(dims_of(first))}  # dimension in front of the permute -> behind it
    order = [place[dim] for dim in range(len(place))]
    if groups != [(size,) for size in below.shape]:
        value = reshaped(graph, value, tuple(size for k in order for size in groups[k]), node)
    starts: dict[int, int] = {}
    for k in order:
        starts[k] = sum(len(groups[j]) for j in starts)
    inner = [starts[k] + i for k in range(len(groups)) for i in range(len(groups[k]))]
    name, dims = f"{node.output.name}_merged", compose(inner, dims_of(node))
    made = graph.add("permute", [value], {"dims": dims}, path=node.path, name=name, before=node)
    supersede(graph, node.output, made.output)
    graph.remove_dead()
    return f"{len(nodes)} layers between two orders"


def order_below_split(graph: Graph, node: Node) -> str | None:
    """permute, layers on rows, split of rows: the permute goes to the parts, where others meet it."""
    if node.operator.name != "split" or node.attributes["dim"] not in (-1, source(node).rank - 1):
        return None
    nodes, start = _rows_above(source(node))
    first = maker(start, "permute")
    if (
        first is None
        or not is_sole(first.output)
        or not _keeps_rows((*dims_of(first),), nodes)
        or dims_of(first)[-1] != len(dims_of(first)) - 1
    ):
        return None
    if not all(_meets_order(value) for value in node.outputs):
        return None
    value = moved_chain(graph, nodes, source(first), node)
    shapes = [(*value.shape[:-1], part.shape[-1]) for part in node.outputs]
    names = [f"{part.name}_moved" for part in node.outputs]
    made = graph.add("split", [value], {"dim": value.rank - 1}, shapes=shapes, path=node.path, name=names, before=node)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        turned = graph.add(
            "permute", [new], {"dims": dims_of(first)}, path=node.path, name=f"{old.name}_turned", before=node
        )
        graph.replace_uses(old, turned.output)
    graph.remove(node)
    graph.remove_dead()
    return "an order below a split"


def _meets_order(value: Value) -> bool:
    """Whether a value is read by a permute alone, or by a reshape that only takes dimensions apart and a permute behind it."""
    if not is_sole(value):
        return False
    reader = value.uses[0].node
    if reader.operator.name == "reshape" and is_sole(reader.output) and taken_apart(value.shape, reader.output.shape):
        reader = reader.output.uses[0].node
    return reader.operator.name == "permute"


def order_below_layers(graph: Graph, node: Node) -> str | None:
    """permute, dimensions joined to rows, layers on rows, permute of whole rows: the last permute is part of the first."""
    if node.operator.name != "permute" or not is_sole(source(node)):
        return None
    nodes, start = _rows_above(source(node))
    joined = maker(start, "reshape")
    first = maker(source(joined), "permute") if joined is not None else None
    order = dims_of(node)
    if joined is None or first is None or not nodes or not is_sole(start) or not is_sole(first.output):
        return None
    lead = len(order) - 1
    if order[-1] != lead or not _keeps_rows(order, nodes) or source(joined).shape[:lead] != joined.output.shape[:lead]:
        return None
    rest = range(lead, source(joined).rank)
    dims = compose(dims_of(first), (*order[:lead], *rest))
    turned = graph.add(
        "permute", [source(first)], {"dims": dims}, path=first.path, name=f"{first.output.name}_turned", before=node
    )
    shape = (*(joined.output.shape[dim] for dim in order[:lead]), joined.output.shape[-1])
    value = moved_chain(graph, nodes, reshaped(graph, turned.output, shape, node), node)
    supersede(graph, node.output, value)
    graph.remove_dead()
    return f"{len(nodes)} layers between two orders"


def shape_above_layers(graph: Graph, node: Node) -> str | None:
    """reshape to rows, layers on rows, the rows regrouped: regrouped at once."""
    if node.operator.name != "reshape" or node.output.rank < 2 or source(node).rank < 2:
        return None
    nodes, start = _rows_above(source(node))
    joined = maker(start, "reshape")
    if joined is None or not nodes or not is_sole(start) or node.output.shape[-1] != source(node).shape[-1]:
        return None
    if max(kept_rows(item) or 0 for item in nodes) > 1 or source(joined).shape == node.output.shape:
        return None
    first = reshaped(graph, source(joined), (*node.output.shape[:-1], start.shape[-1]), node)
    supersede(graph, node.output, moved_chain(graph, nodes, first, node))
    graph.remove_dead()
    return f"{len(nodes)} layers between two shapes"


RULES = (
    Rule("order above layers", order_above_layers),
    Rule("order below layers", order_below_layers),
    Rule("order below split", order_below_split),
    Rule("shape above layers", shape_above_layers),
)
