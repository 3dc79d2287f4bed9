"""The order in which the dimensions of every value lie in memory.

Around convolutions channels lie innermost, whatever the graph's notation says: a product over channels then reads contiguous rows, and lanes over
channels do the same thing each. The choice goes forward through the graph: convolutions make channels-last values, and what follows them keeps
what it is given, as far as the graph's outputs, which lie as their callers expect them. The graph's inputs lie as they come; a convolution that
reads one brings it into order itself. Views have no memory of their own: what is said of them here is the order in which a reader meets their
elements, so that the permutation in front of a norm over channels costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from suture.codegen.access import is_view
from suture.codegen.convolution.windows import channels_last
from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim

Order: TypeAlias = "tuple[int, ...]"


def choose(graph: Graph) -> dict[Value, Order]:
    """The storage order of every value, outermost dimension first.

    :returns: a permutation of the dimensions for each value that lies in memory or is a view of one; graph inputs, parameters and graph outputs lie
        in their own order
    """
    found: dict[Value, Order] = {value: plain(value.rank) for value in (*graph.inputs, *graph.parameters.values())}
    for node in graph.nodes:
        for value in node.outputs:
            found[value] = _order(node, value, found)
    return found | {value: plain(value.rank) for value in graph.outputs}


def plain(rank: int) -> Order:
    """The order in which dimensions are counted."""
    return tuple(range(rank))


def _order(node: Node, value: Value, found: dict[Value, Order]) -> Order:
    rule = _RULES.get(node.operator.name, _same if node.operator.pointwise else None)
    made = rule(node, value, found) if rule is not None else None
    if made is None or len(made) != value.rank:
        return plain(value.rank)
    long = [dim for dim in made if value.shape[dim] != 1]
    for known in (plain(value.rank), channels_last(value.rank)):
        if long == [dim for dim in known if value.shape[dim] != 1]:
            return known
    return made if is_view(node) else plain(value.rank)


Rule: TypeAlias = "Callable[[Node, Value, dict[Value, Order]], Order | None]"


def _convolution(node: Node, value: Value, found: dict[Value, Order]) -> Order | None:
    return channels_last(value.rank)


def _follow(node: Node, value: Value, found: dict[Value, Order]) -> Order | None:
    """As the first operand lies."""
    source = node.inputs[0]
    return None if source is None else found[source]


def _same(node: Node, value: Value, found: dict[Value, Order]) -> Order | None:
    """As most operands of the result's shape lie; of two orders, the one that somebody chose."""
    votes = Counter(
        found[each]
        for each in node.inputs
        if each is not None and each.rank == value.rank and each.shape == value.shape
    )
    if not votes:
        return None
    return max(votes, key=lambda order: (votes[order], order != plain(value.rank)))


def _permute(node: Node, value: Value, found: dict[Value, Order]) -> Order | None:
    source, dims = node.inputs[0], node.attributes["dims"]
    assert source is not None and isinstance(dims, tuple)
    places = [int(dim) % source.rank for dim in dims if isinstance(dim, int)]
    return tuple(places.index(dim) for dim in found[source])


def _reduce(node: Node, value: Value, found: dict[Value, Order]) -> Order | None:
    """What is left of the operand's order."""
    source, dims = node.inputs[0], node.attributes["dims"]
    if source is None or node.attributes["keepdim"] or not isinstance(dims, tuple):
        return _follow(node, value, found)
    gone = {int(dim) % source.rank for dim in dims if isinstance(dim, int)}
    return _without(found[source], gone)


def _select(node: Node, value: Value, found: dict[Value, Order]) -> Order | None:
    source, dim = node.inputs[0], node.attributes["dim"]
    assert source is not None and isinstance(dim, int)
    return _without(found[source], {dim % source.rank})


def _without(order: Order, gone: set[int]) -> Order:
    left = [dim for dim in order if dim not in gone]
    return tuple(sorted(left).index(dim) for dim in left)


def _reshape(node: Node, value: Value, found: dict[Value, Order]) -> Order | None:
    """Dimensions that are joined or split stay where they are, if those that are joined lie beside each other."""
    source = node.inputs[0]
    if source is None:
        return None
    segments = _segments(source.shape, value.shape)
    if segments is None:
        return None
    lying = [dim for dim in found[source] if source.shape[dim] != 1]
    made: list[int] = []
    while lying:
        before, after = next((a, b) for a, b in segments if lying[0] in a)
        own = [dim for dim in before if source.shape[dim] != 1]
        if lying[: len(own)] != own:
            return None
        made += after
        lying = lying[len(own) :]
    return (*made, *(dim for dim in range(value.rank) if dim not in made))


def _segments(source: Sequence[Dim], target: Sequence[Dim]) -> list[tuple[list[int], list[int]]] | None:
    """The two shapes cut into pieces of equal product, as short as can be; None if a cut is not seen."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        left: list[int] = []
        right: list[int] = []
        a: Dim = 1
        b: Dim = 1
        while not left or not right or a != b:
            behind = isinstance(a, int) and isinstance(b, int) and a < b
            if i < len(source) and (not left or behind or j >= len(target)):
                a, left, i = a * source[i], [*left, i], i + 1
            elif j < len(target) and (not right or not behind or i >= len(source)):
                b, right, j = b * target[j], [*right, j], j + 1
            else:
                break
        if a != b:
            return None
        found.append((left, right))
    return found


_FOLLOWING = (
    "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "interpolate", "expand", "slice", "split", "flip", "roll", "pad",
    "concat", "pixel_shuffle", "pixel_unshuffle", "repeat", "triangle", "softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm",
    "batch_norm",
)  # fmt: skip
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv", "conv_transpose"), _convolution),
    **dict.fromkeys(_FOLLOWING, _follow),
    **dict.fromkeys(("sum", "mean", "amax", "amin"), _reduce),
    "permute": _permute,
    "reshape": _reshape,
    "select": _select,
}

__all__ = ["choose", "plain"]
