"""What is quantised: the sums of products of a graph, with the operands that are activations and those that are weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter, Use, Value
from suture.ir.notation import letters_of
from suture.passes.quantise_weights.sites import channel_axis, is_contraction


@dataclass(frozen=True)
class Product:
    """One node that sums products.

    :param edge: whether no product stands before it, or none after it
    """

    node: Node
    activations: tuple[Use, ...]
    weights: tuple[Use, ...]
    edge: bool


def products(graph: Graph, exclude: Sequence[str], note: Callable[[str], None]) -> list[Product]:
    """The sums of products of a graph, in order, but for those in excluded modules.

    :raises SutureError: SITE, if a pattern matches none
    """
    nodes = [node for node in graph.nodes if is_contraction(node)]
    paths = sorted({node.path for node in nodes if node.path})
    for pattern in exclude:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise SutureError(
                Code.SITE, f"the pattern {pattern!r} matches no module that sums products",
                remedy=nearest(pattern, paths, what="module"),
            )  # fmt: skip
    first, last = _first(graph, nodes), _last(graph, nodes)
    found = []
    for node in nodes:
        if any(fnmatch.fnmatchcase(node.path, pattern) for pattern in exclude):
            note(f"{node.where()} stays: excluded")
            continue
        uses = [Use(node, index) for index in _factors(node)]
        weights = tuple(use for use in uses if _is_weight(use))
        activations = tuple(use for use in uses if use not in weights)
        found.append(Product(node, activations, weights, node in first or node in last))
    return found


def _factors(node: Node) -> list[int]:
    """The operands that are multiplied: those with a letter that is summed over."""
    instance = node.operator.instance(node)
    produced = {letter for dims in instance.outputs for term in dims for letter in letters_of(term)}
    found = []
    for index, (value, dims) in enumerate(zip(node.inputs, instance.inputs, strict=False)):
        if value is None or dims is None or not value.dtype.is_floating_point:
            continue
        # the space of a convolution has another size after it, `h'`
        if any(letter not in produced for term in dims for letter in letters_of(term)):
            found.append(index)
    return found


def _is_weight(use: Use) -> bool:
    return isinstance(use.node.inputs[use.index], Parameter) and channel_axis(use) is not None


def _first(graph: Graph, nodes: Sequence[Node]) -> set[Node]:
    """The products that depend on no other."""
    chosen, after = set(nodes), set[Value]()
    found = set()
    for node in graph.nodes:
        behind = any(value in after for value in node.inputs)
        if node in chosen and not behind:
            found.add(node)
        if behind or node in chosen:
            after.update(node.outputs)
    return found


def _last(graph: Graph, nodes: Sequence[Node]) -> set[Node]:
    """The products that no other depends on."""
    chosen, before = set(nodes), set[Value]()
    found = set()
    for node in reversed(graph.nodes):
        ahead = any(value in before for value in node.outputs)
        if node in chosen and not ahead:
            found.add(node)
        if ahead or node in chosen:
            before.update(value for value in node.inputs if value is not None)
    return found
