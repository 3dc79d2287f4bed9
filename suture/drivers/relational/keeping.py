"""What the way forward keeps for the way back is whole values, not views of them: a view that leaves the kernels' memory is a copy."""

from __future__ import annotations

from collections.abc import Sequence

from suture.ir.graph import Graph, Node, Value
from suture.passes.recompute import bytes_of, read_back

_VIEWS = frozenset({"reshape", "permute", "split", "slice", "select"})


def keep_bases(graph: Graph, forward: Sequence[Node], backward: Sequence[Node]) -> int:
    """Let the way back look again at what views are of, where that takes no more memory than the views that it reads.

    :param forward: the nodes of the way forward, in order
    :param backward: the nodes of the way back, in order, behind them
    :returns: how many views are taken again
    """
    kept = read_back(forward, backward)
    views: dict[Value, list[Value]] = {}
    for value in kept:
        base = _base(value)
        if base is not value:
            views.setdefault(base, []).append(value)
    twins: dict[Value, Value] = {}
    for base, seen in views.items():
        whole = base.producer is None or base in kept or base.is_graph_output()
        if whole or sum(bytes_of(graph, value) for value in seen) >= bytes_of(graph, base):
            for value in seen:
                _look_again(graph, value, base, backward, twins)
    if twins:
        graph.remove_dead()
    return len(twins)


def _base(value: Value) -> Value:
    """What a value is a view of."""
    while value.producer is not None and value.producer.operator.name in _VIEWS:
        source = value.producer.inputs[0]
        assert source is not None
        value = source
    return value


def _look_again(graph: Graph, value: Value, base: Value, backward: Sequence[Node], twins: dict[Value, Value]) -> None:
    """Let the way back read a view of its own."""
    chain: list[Node] = []
    at = value
    while at is not base and at not in twins:
        assert at.producer is not None and at.producer.inputs[0] is not None
        chain.insert(0, at.producer)
        at = at.producer.inputs[0]
    for node in chain:
        source = node.inputs[0]
        assert source is not None
        twin = graph.add(
            node.operator, [twins.get(source, source), *node.inputs[1:]], node.attributes, shapes=[each.shape for each in node.outputs],
            path=node.path, name=[f"{each.name}_seen" for each in node.outputs], before=backward[0],
        )  # fmt: skip
        twins.update(zip(node.outputs, twin.outputs, strict=True))
    inside = frozenset(backward)
    for use in value.uses:
        if use.node in inside:
            use.node.replace_input(use.index, twins[value])
