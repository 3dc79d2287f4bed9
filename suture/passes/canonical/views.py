"""Views: chains of orders and shapes are one, and what stands between two of them works on the shape in front of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, product
from suture.passes.canonical.matching import (
    compose,
    dims_of,
    is_sole,
    maker,
    reshaped,
    source,
    supersede,
)
from suture.passes.rewriting import Rule


def merge_chain(graph: Graph, node: Node) -> str | None:
    """A reshape of a reshape is one, and so are two orders and two expansions."""
    name = node.operator.name
    inner = maker(node.inputs[0], name) if name in ("reshape", "permute", "expand") else None
    if inner is None:
        return None
    below, title = source(inner), f"{node.output.name}_merged"
    if name == "permute":
        order = compose(dims_of(inner), dims_of(node))
        made = graph.add(name, [below], {"dims": order}, path=node.path, name=title, before=node)
    else:
        made = graph.add(name, [below], shapes=[node.output.shape], path=node.path, name=title, before=node)
    supersede(graph, node.output, made.output)
    return f"two of {name} in one"


def order_to_shape(graph: Graph, node: Node) -> str | None:
    """A permute that only moves sizes of 1 is a reshape."""
    if node.operator.name != "permute":
        return None
    real = [dim for dim in dims_of(node) if source(node).shape[dim] != 1]
    if real != sorted(real) or dims_of(node) == tuple(range(source(node).rank)):
        return None
    supersede(graph, node.output, reshaped(graph, source(node), node.output.shape, node))
    return "permute of sizes of 1 as reshape"


def drop_expansion(graph: Graph, node: Node) -> str | None:
    """What broadcasts anyway need not be expanded first."""
    if not node.operator.pointwise or "d" not in node.operator.broadcast:
        return None
    for index, value in enumerate(node.inputs):
        expand = maker(value, "expand")
        if expand is None:
            continue
        others = [item.shape for k, item in enumerate(node.inputs) if item is not None and k != index]
        if _broadcast([source(expand).shape, *others]) != node.output.shape:
            continue
        node.replace_input(index, source(expand))
        return "an operand broadcasts instead of being expanded"
    return None


def _broadcast(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    rank = max(len(shape) for shape in shapes)
    common: list[Dim] = [1] * rank
    for shape in shapes:
        for place, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                common[place] = size
    return tuple(common)


@dataclass(frozen=True)
class Chain:
    """Nodes between two views, each the sole reader of the one before; `start` is what the first view looks at."""

    view: Node
    nodes: tuple[Node, ...]  # from the first view on


_ROWWISE = {"layer_norm": 1, "rms_norm": 1, "linear": 1, "softmax": 1, "log_softmax": 1}


def _is_elementwise(node: Node) -> bool:
    """Whether a node maps each element of its one tensor operand by itself, wherever it stands."""
    tensors = [value for value in node.inputs if value is not None]
    return node.operator.pointwise and len(tensors) == 1 and len(node.outputs) == 1 and not node.operator.training


def kept_rows(node: Node) -> int | None:
    """How many trailing dimensions a node works on, each row by itself; None if it does not work on rows."""
    if _is_elementwise(node):
        return 0
    name, operand = node.operator.name, node.inputs[0] if node.inputs else None
    if operand is None or name not in _ROWWISE:
        return None
    if name in ("softmax", "log_softmax"):
        dim = node.attributes["dim"]
        return 1 if isinstance(dim, int) and dim % operand.rank == operand.rank - 1 else None
    rank = node.attributes.get("rank", 1)
    return rank if isinstance(rank, int) else None


def tensor_operand(node: Node) -> Value:
    """The operand that flows through a node: the first that is there."""
    return next(value for value in node.inputs if value is not None)


def _chain(last: Node, view: str, *, rows: bool) -> Chain | None:
    """What stands between a view and the next one above it, where each node is read by the next alone."""
    nodes: list[Node] = []
    value = source(last)
    while True:
        node = value.producer
        if node is None:
            return None
        if node.operator.name == view:
            return Chain(node, tuple(reversed(nodes))) if nodes else None
        if not is_sole(value) or (kept_rows(node) is None if rows else not _is_elementwise(node)):
            return None
        nodes.append(node)
        value = tensor_operand(node)


def order_meets_order(graph: Graph, node: Node) -> str | None:
    """permute, elementwise functions, permute: the functions stand in front, and the two orders are one."""
    chain = _chain(node, "permute", rows=False) if node.operator.name == "permute" else None
    if chain is None:
        return None
    value = moved_chain(graph, chain.nodes, source(chain.view), node)
    order = compose(dims_of(chain.view), dims_of(node))
    made = graph.add(
        "permute", [value], {"dims": order}, path=node.path, name=f"{node.output.name}_merged", before=node
    )
    supersede(graph, node.output, made.output)
    graph.remove_dead()
    return f"{len(chain.nodes)} between two orders"


def shape_meets_shape(graph: Graph, node: Node) -> str | None:
    """reshape, functions of each row, reshape: the functions work on the shape in front, and the two shapes are one."""
    chain = _chain(node, "reshape", rows=True) if node.operator.name == "reshape" else None
    if chain is None:
        return None
    start, shape = source(chain.view), chain.view.output.shape
    kept = max(kept_rows(item) or 0 for item in chain.nodes)
    if kept and (start.rank < kept + 1 or start.shape[start.rank - kept :] != shape[len(shape) - kept :]):
        return None
    value = moved_chain(graph, chain.nodes, start, node)
    made = graph.add(
        "reshape", [value], shapes=[node.output.shape], path=node.path, name=f"{node.output.name}_merged", before=node
    )
    supersede(graph, node.output, made.output)
    graph.remove_dead()
    return f"{len(chain.nodes)} between two shapes"


def moved_chain(graph: Graph, nodes: Sequence[Node], value: Value, before: Node) -> Value:
    """Nodes of which each reads the one before, on another operand; their results are new values."""
    for item in nodes:
        inputs = [value if operand is tensor_operand(item) else operand for operand in item.inputs]
        attributes = dict(item.attributes)
        if item.operator.name in ("softmax", "log_softmax"):
            attributes["dim"] = value.rank - 1
        made = graph.add(
            item.operator, inputs, attributes, path=item.path, name=f"{item.output.name}_moved", before=before
        )
        value = made.output
    return value


def shape_before_order(graph: Graph, node: Node) -> str | None:
    """reshape, permute, reshape: where the last only takes dimensions apart, it does so in front of the permute, and the two shapes are one."""
    order = maker(node.inputs[0], "permute") if node.operator.name == "reshape" else None
    below = maker(source(order), "reshape") if order is not None else None
    if order is None or below is None or not is_sole(order.output) or not is_sole(below.output):
        return None
    groups = taken_apart(order.output.shape, node.output.shape)
    if groups is None:
        return None
    dims, parts = dims_of(order), {}
    for place, group in zip(dims, groups, strict=True):
        parts[place] = group  # source dimension -> the sizes it is taken apart into
    shape = tuple(size for place in range(len(dims)) for size in parts[place])
    if product(shape) != product(source(order).shape):
        return None
    starts = {}
    count = 0
    for place in range(len(dims)):
        starts[place], count = count, count + len(parts[place])
    apart = graph.add(
        "reshape", [source(below)], shapes=[shape], path=order.path, name=f"{below.output.name}_apart", before=order
    )
    moved = tuple(starts[place] + k for place in dims for k in range(len(parts[place])))
    made = graph.add(
        "permute", [apart.output], {"dims": moved}, path=node.path, name=f"{node.output.name}_moved", before=node
    )
    supersede(graph, node.output, made.output)
    graph.remove_dead()
    return "two shapes around an order in one"


def shape_behind_order(graph: Graph, node: Node) -> str | None:
    """reshape, permute, reshape: where the first only joins dimensions, it does so behind the permute, and the two shapes are one."""
    order = maker(node.inputs[0], "permute") if node.operator.name == "reshape" else None
    above = maker(source(order), "reshape") if order is not None else None
    if order is None or above is None or not is_sole(order.output) or not is_sole(above.output):
        return None
    groups = taken_apart(above.output.shape, source(above).shape)
    if groups is None:
        return None
    starts, count = [], 0
    for group in groups:
        starts.append(count)
        count += len(group)
    moved = tuple(starts[place] + k for place in dims_of(order) for k in range(len(groups[place])))
    made = graph.add(
        "permute", [source(above)], {"dims": moved}, path=order.path, name=f"{order.output.name}_apart", before=node
    )
    supersede(graph, node.output, reshaped(graph, made.output, node.output.shape, node))
    graph.remove_dead()
    return "two shapes around an order in one"


def taken_apart(whole: Sequence[Dim], parts: Sequence[Dim]) -> list[tuple[Dim, ...]] | None:
    """For each dimension, the run of sizes that it is taken apart into; None where some of them straddle two dimensions."""
    groups: list[tuple[Dim, ...]] = []
    rest = list(parts)
    for size in whole:
        group: list[Dim] = [rest.pop(0)] if rest else []
        while group and product(tuple(group)) != size and rest:
            group.append(rest.pop(0))
        if not group or product(tuple(group)) != size:
            return None
        groups.append(tuple(group))
    return groups if not rest else None


RULES = (
    Rule("order to shape", order_to_shape),
    Rule("chain", merge_chain),
    Rule("expansion", drop_expansion),
    Rule("between orders", order_meets_order),
    Rule("between shapes", shape_meets_shape),
    Rule("shape before order", shape_before_order),
    Rule("shape behind order", shape_behind_order),
)
