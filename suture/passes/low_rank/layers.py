"""The layers that may become products of smaller ones: a weight, and every node that multiplies by it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.sizes import evaluate_size, product, symbols_of
from suture.passes.low_rank.weights import DATA, WEIGHT, bias_of
from suture.passes.registry import Notes
from suture.passes.sites import require_count

_WEIGHT = {**WEIGHT, "conv_transpose": 1}
_DATA = {**DATA, "conv_transpose": 0}
_SPATIAL = ("conv", "conv_transpose")


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the nodes that multiply by it, alike in all that matters; MACs are counted per sample, as `Graph.stats` does."""

    weight: Parameter
    nodes: tuple[Node, ...]
    hints: Mapping[str, int]

    @property
    def operator(self) -> str:
        """What kind of layer it is."""
        return self.nodes[0].operator.name

    @property
    def spatial(self) -> bool:
        """Whether it is a convolution, or the adjoint of one."""
        return self.operator in _SPATIAL

    @property
    def groups(self) -> int:
        """In how many groups a convolution works; 1 for what is none."""
        groups = self.nodes[0].attributes.get("groups", 1)
        assert isinstance(groups, int)
        return groups

    @property
    def window(self) -> tuple[int, ...]:
        """The kernel sizes of a convolution."""
        return tuple(self.weight.data.shape[2:]) if self.spatial else ()

    @property
    def elements(self) -> int:
        """How many numbers the weight has."""
        return self.weight.data.numel()

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.weight.name

    def data(self, node: Node) -> Value:
        """What a node of it reads."""
        value = node.inputs[_DATA[self.operator]]
        assert value is not None
        return value

    def spaces(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """For each node, the positions of its input and of its output: leading sizes of linear maps, batch and space of convolutions."""
        return [(self._positions(self.data(node)), self._positions(node.output)) for node in self.nodes]

    def _positions(self, value: Value) -> tuple[int, ...]:
        names = {name for dim in value.shape for name in symbols_of(dim)}
        numbers = {name: 1 if name == "batch" else self.hints.get(name, 1) for name in names}
        if not self.spatial:
            return (evaluate_size(product(value.shape[:-1]), numbers),)
        return tuple(evaluate_size(dim, numbers) for k, dim in enumerate(value.shape) if k != 1)


def find_layers(
    graph: Graph, at: Sequence[str] | None, exclude: Sequence[str], expect: int | str | None, notes: Notes
) -> list[Layer]:
    """The layers that a query selects, in the graph's order; the notes say why others of them cannot be factors of anything.

    :raises SutureError: SITE, if a pattern matches no layer, or another number is selected than expected
    """
    groups: dict[Parameter, list[Node]] = {}
    for node in graph.nodes:
        index = _WEIGHT.get(node.operator.name)
        weight = node.inputs[index] if index is not None else None
        if isinstance(weight, Parameter) and weight.role == "parameter" and weight.rank >= 2:
            groups.setdefault(weight, []).append(node)
    paths = list(dict.fromkeys(node.path for nodes in groups.values() for node in nodes))
    for pattern in (*(at or ()), *exclude):
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise SutureError(
                Code.SITE, f"the pattern {pattern!r} matches no linear map or convolution",
                remedy=nearest(pattern, paths, what="layer"),
            )  # fmt: skip
    chosen = []
    for weight, nodes in groups.items():
        if at is not None and not any(_matches(node.path, at) for node in nodes):
            continue
        if any(_matches(node.path, exclude) for node in nodes):
            notes.note(f"{weight.name} left alone: excluded")
            continue
        reason = _why_not(weight, nodes)
        if reason is None:
            chosen.append(Layer(weight, tuple(nodes), graph.hints))
        else:
            notes.note(f"{weight.name} left alone: {reason}")
    require_count(expect, len(chosen), at)
    return chosen


def _why_not(weight: Parameter, nodes: Sequence[Node]) -> str | None:
    if len(weight.uses) != len(nodes) or weight.is_graph_output():
        others = sorted({use.node.operator.name for use in weight.uses if use.node not in nodes})
        return f"{', '.join(others) or 'an output of the graph'} reads it too"
    first = nodes[0]
    if any(node.operator is not first.operator or node.attributes != first.attributes for node in nodes):
        return "the layers that share it differ"
    if first.operator.name not in _SPATIAL and weight.rank != 2:
        return f"it has {weight.rank} dimensions"
    bias = bias_of(first)
    if bias is not None and bias.rank != 1:
        return f"what is added has {bias.rank} dimensions"
    data = weight.data
    if not data.is_meta and not bool(torch.isfinite(data.detach()).all()):
        return "it has values that are not finite"
    return None if data.numel() and data.is_floating_point() else f"it is {weight.type}"


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
