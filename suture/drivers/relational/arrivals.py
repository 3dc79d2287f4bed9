"""Work between the orders of rows, done where rows are: what a product by type makes goes back as it is made, what is summed is worked on
before it is put in order."""

from __future__ import annotations

from suture.ir.graph import Graph, Node, Value


def settle_arrivals(graph: Graph) -> int:
    """Let products by type store their rows where the lookups behind them, which undo the order of the rows, would put them.

    `embedding(grouped_linear(x, w, tiles, types), inverse_order(order))` is `grouped_linear(x, w, tiles, types, order)`. What is behind then runs
    over rows as they came in: a bias by type, or a residual, is added as they are made.

    :param graph: a program that was laid out and still has its inspector, changed in place
    :returns: how many products were changed
    """
    found = [(node, product, order) for node in graph.nodes for product, order in _undone(node)]
    for node, product, order in found:
        product.extend_inputs(5)
        product.replace_input(4, order)
        graph.replace_uses(node.output, product.output)
        graph.remove(node)
    if found:
        graph.sort()
        graph.remove_dead()
    return len(found)


def _undone(node: Node) -> list[tuple[Node, Value]]:
    """The product whose order of rows a lookup undoes, and that order, if nobody else reads the product."""
    if node.operator.name != "embedding" or node.output.is_graph_output():
        return []
    made, place = node.inputs[:2]
    product, inverse = (None if value is None else value.producer for value in (made, place))
    if product is None or product.operator.name != "grouped_linear" or len(product.inputs) > 4:
        return []
    if inverse is None or inverse.operator.name != "inverse_order" or inverse.inputs[0] is None:
        return []
    alone = len(product.output.uses) == 1 and not product.output.is_graph_output()
    return [(product, inverse.inputs[0])] if alone else []


def settle_departures(graph: Graph) -> int:
    """Let functions of single numbers be computed of sums where these are made, not where they are looked up in another order.

    `f(embedding(csr_sum(x, p), sort_order(key)))` is `embedding(f(csr_sum(x, p)), sort_order(key))`: an order has every row once, and what is behind
    a sum is part of its kernel.

    :param graph: a program that was laid out and still has its inspector, changed in place
    :returns: how many functions were moved
    """
    moved = 0
    for node in graph.nodes:
        found = _ordered_sum(node)
        if found is None:
            continue
        lookup, views = found
        source, order = lookup.inputs[:2]
        for view in views:
            source = graph.add(
                view.operator, [source], view.attributes, shapes=[view.output.shape], path=view.path, before=node
            ).output
        inputs = [None if each is None else source for each in node.inputs]
        made = graph.add(node.operator, inputs, node.attributes, path=node.path, before=node).output
        put = graph.add("embedding", [made, order], path=node.path, name=node.output.name, before=node).output
        graph.replace_uses(node.output, put)
        graph.remove(node)
        moved += 1
    if moved:
        graph.remove_dead()
    return moved


def _ordered_sum(node: Node) -> tuple[Node, list[Node]] | None:
    """For a function of a sum's numbers, one by one, the lookup that puts these in order, and the reshapes between, innermost first."""
    given = [value for value in node.inputs if value is not None]
    if not node.operator.pointwise or len(given) != 1 or node.operator.training or node.output.is_graph_output():
        return None
    views: list[Node] = []
    maker = given[0].producer
    while maker is not None and _keeps_rows(maker):
        views.insert(0, maker)
        maker = _source(maker)
    if maker is None or maker.operator.name != "embedding":
        return None
    order, summed = (None if value is None else value.producer for value in (maker.inputs[1], maker.inputs[0]))
    while summed is not None and _keeps_rows(summed):
        summed = _source(summed)
    if order is None or order.operator.name != "sort_order" or summed is None or summed.operator.name != "csr_sum":
        return None
    return maker, views


def _keeps_rows(node: Node) -> bool:
    source = node.inputs[0] if node.operator.name == "reshape" else None
    return source is not None and bool(source.rank and node.output.rank) and source.shape[0] == node.output.shape[0]


def _source(node: Node) -> Node | None:
    return None if node.inputs[0] is None else node.inputs[0].producer
