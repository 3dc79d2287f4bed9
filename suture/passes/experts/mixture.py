"""Mixtures of experts as graphs of ordinary operators: gates from a router, and the sum of what the experts give, each times its gate.

Every expert is computed for every position, and the gates of those not chosen are zero: so the graph exports anywhere and trains, and costs as much
as all experts together. What a runtime saves by sending positions to the chosen experts only does not change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.splice import Rename, graft
from suture.ir.types import TensorType

Weigh = Literal["renormalise", "probability", "mask"]
EXPERTS = "experts"
ROUTER = "router"


@dataclass(frozen=True)
class Gating:
    """How positions choose experts.

    :param top: how many experts a position has
    :param weigh: what their results are multiplied by: their probabilities, these made to sum to 1 (renormalise), or 1 (mask)
    :param scale: what all gates are multiplied by
    """

    experts: int
    top: int
    weigh: Weigh
    scale: float = 1.0

    def require(self) -> None:
        """:raises SutureError: GROWTH, if there are not that many experts"""
        if self.experts < 1 or not 1 <= self.top <= self.experts:
            raise SutureError(
                Code.GROWTH,
                f"{self.top} of {self.experts} experts",
                remedy="at least one expert, and no more chosen than there are",
            )


def add_gates(
    graph: Graph, x: Value, weight: Parameter, bias: Parameter | None, gating: Gating, *, path: str
) -> tuple[Value, Value]:
    """Add a router: the gates `[*b, experts]` of the positions of `x [*b, d]`, and the logits that they come from.

    :param weight: `[experts, d]`
    """
    last = x.rank - 1
    logits = graph.add("linear", [x, weight, bias], path=path, name=f"{x.name}_router_logits").output
    gates = graph.add("softmax", [logits], {"dim": last}, path=path).output
    if gating.weigh == "mask":
        gates = graph.add("cast", [_chosen(graph, gates, gating.top, path)], {"dtype": gates.dtype}, path=path).output
    elif gating.top < gating.experts:
        mask = graph.add("cast", [_chosen(graph, gates, gating.top, path)], {"dtype": gates.dtype}, path=path).output
        gates = graph.add("mul", [gates, mask], path=path).output
        if gating.weigh == "renormalise":
            total = graph.add("sum", [gates], {"dims": (last,), "keepdim": True}, path=path).output
            gates = graph.add("div", [gates, total], path=path).output
    if gating.scale != 1.0:
        gates = graph.add("mul", [gates, None], {"scalar": gating.scale}, path=path).output
    return gates, logits


def _chosen(graph: Graph, values: Value, top: int, path: str) -> Value:
    """Which of the last dimension's values are among the `top` largest, of equal ones the first: bool `[*b, experts]`.

    An expert's rank is counted by comparing it with all others: what runtimes do with equal values in their own top-k differs.
    """
    last, count = values.rank - 1, values.shape[-1]
    own = graph.add("reshape", [values], shapes=[(*values.shape, 1)], path=path).output
    other = graph.add("reshape", [values], shapes=[(*values.shape[:-1], 1, count)], path=path).output
    numbers = graph.add(
        "arange", [], {"start": 0, "step": 1, "dtype": torch.int64}, shapes=[(count,)], path=path
    ).output
    column = graph.add("reshape", [numbers], shapes=[(count, 1)], path=path).output
    earlier = graph.add("lt", [numbers, column], path=path).output
    tied = graph.add("bitwise_and", [graph.add("eq", [other, own], path=path).output, earlier], path=path).output
    larger = graph.add("gt", [other, own], path=path).output
    ahead = graph.add("bitwise_or", [larger, tied], path=path).output
    counted = graph.add("cast", [ahead], {"dtype": torch.int64}, path=path).output
    rank = graph.add("sum", [counted], {"dims": (last + 1,), "keepdim": False}, path=path).output
    return graph.add("lt", [rank, None], {"scalar": top}, path=path).output


def add_mixture(
    graph: Graph,
    experts: Sequence[Graph],
    operands: Sequence[Value],
    gates: Value,
    renames: Sequence[Rename],
    *,
    path: str,
) -> Value:
    """Add the experts, each a graph of one output, and the sum of their results times their gates."""
    last = gates.rank - 1
    parts = [(*gates.shape[:-1], 1)] * len(experts)
    each = graph.add("split", [gates], {"dim": last}, shapes=parts, path=path).outputs
    total: Value | None = None
    for expert, gate, rename in zip(experts, each, renames, strict=True):
        (value,) = graft(graph, expert, operands, rename=rename)
        term = graph.add("mul", [value, gate], path=path).output
        total = term if total is None else graph.add("add", [total, term], path=path).output
    assert total is not None
    return total


def expert_names(path: str, count: int) -> list[Rename]:
    """How the names of each expert follow from those of the layer: `mlp.up.weight` becomes `mlp.experts.3.up.weight`."""
    return [_expert_name(path, number) for number in range(count)]


def _expert_name(path: str, number: int) -> Rename:
    prefix = f"{path}." if path else ""

    def rename(name: str) -> str:
        if name != path and not name.startswith(prefix):
            return name
        rest = name[len(prefix) :]
        return f"{prefix}{EXPERTS}.{number}.{rest}" if rest else f"{prefix}{EXPERTS}.{number}"

    return rename


def below(path: str, leaf: str) -> str:
    """A name below a module path."""
    return f"{path}.{leaf}" if path else leaf


def twin_inputs(graph: Graph, values: Sequence[Value]) -> list[Value]:
    """Inputs of a new graph that stand for values of another."""
    return [graph.add_input(value.name, TensorType(value.dtype, value.shape)) for value in values]
