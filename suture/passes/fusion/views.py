"""Views brought into the form that patterns are written in."""

from __future__ import annotations

from suture.ir.graph import Graph, Node
from suture.passes.rewriting import Rule


def _there_and_back(graph: Graph, node: Node) -> str | None:
    """A reshape back to the shape that its operand had before another reshape."""
    inner = _made_by(node, "reshape") if node.operator.name == "reshape" else None
    source = None if inner is None else inner.inputs[0]
    if inner is None or source is None or source.type != node.output.type:
        return None
    graph.replace_uses(node.output, source)
    graph.remove(node)
    _drop_unread(graph, inner)
    return "a reshape and its reverse are gone"


def _ones_where_they_end(graph: Graph, node: Node) -> str | None:
    """A reshape may put dimensions of size 1 anywhere: they go where the permute after it wants them."""
    inner = _made_by(node, "reshape") if node.operator.name == "permute" else None
    order = node.attributes.get("dims")
    if inner is None or not isinstance(order, tuple):
        return None
    before, after = inner.output.shape, node.output.shape
    moved = [int(str(dim)) % len(before) for dim in order]
    long = [k for k, size in enumerate(before) if size != 1]
    places = [k for k, size in enumerate(after) if size != 1]
    wanted = [before[k] for k in long]
    shape = [wanted.pop(0) if size != 1 else 1 for size in after]
    found = [places[long.index(k)] if before[k] != 1 else place for place, k in enumerate(moved)]
    if found == moved and tuple(shape) == before:
        return None
    made = graph.add(
        "reshape", [inner.inputs[0]], shapes=[shape], path=inner.path, name=f"{inner.output.name}_aligned", before=node
    )
    turned = graph.add("permute", [made.output], {"dims": tuple(found)}, path=node.path, before=node)
    name = node.output.name
    graph.replace_uses(node.output, turned.output)
    graph.remove(node)
    graph.rename_result(turned.output, name)
    _drop_unread(graph, inner)
    return "dimensions of size 1 stand where they are read"


def _made_by(node: Node, operator: str) -> Node | None:
    """What makes a node's operand, if it is that operator."""
    operand = node.inputs[0]
    made = None if operand is None else operand.producer
    return made if made is not None and made.operator.name == operator else None


def _drop_unread(graph: Graph, node: Node) -> None:
    if not node.output.uses and not node.output.is_graph_output():
        graph.remove(node)


THERE_AND_BACK = Rule("there and back", _there_and_back)
ONES_WHERE_THEY_END = Rule("ones where they end", _ones_where_they_end)
