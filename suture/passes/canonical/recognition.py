"""Functions that a model writes out are recognised by what they compute, not by how they are written.

The nodes between two values that depend on nothing else are a function of one tensor. It is run in float64 on a spread of numbers beside each
operator that it could be; where they agree to the last digits that a written constant has, the operator stands for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from suture.ir.graph import Graph, Node, Value
from suture.ir.operator import find
from suture.ir.semantics import run_node
from suture.passes.canonical.matching import supersede
from suture.passes.counter import counter_uniform
from suture.passes.rewriting import Rule

_MOST = 16  # nodes of the longest function looked for
_CLOSE = 2e-6  # constants are written with seven digits or more
_POINTS = 512
_ROWS, _WIDTH = 24, 64  # the probe for functions of a whole row: rows at several scales

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Region:
    """The nodes, in order, that compute `result` from `start` and numbers alone."""

    start: Value
    nodes: tuple[Node, ...]
    result: Value


_ELEMENTWISE: Sequence[tuple[str, Attributes]] = (
    ("gelu", {"approximate": "none"}), ("gelu", {"approximate": "tanh"}), ("silu", {}), ("sigmoid", {}), ("hardswish", {}), ("hardsigmoid", {}),
    ("mish", {}), ("softplus", {}), ("log_sigmoid", {}), ("tanh", {}), ("softsign", {}), ("relu", {}), ("relu6", {}), ("elu", {"alpha": 1.0}),
    ("selu", {}), ("abs", {}),
)  # fmt: skip
_REDUCTIONS = ("mean", "sum", "amax", "var", "vector_norm")
_NORMS = (
    "rms_norm",
    "softmax",
    "log_softmax",
)  # what is known already may be a part of more: a centred RMS norm is a layer norm


def recognise_elementwise(graph: Graph, node: Node) -> str | None:
    """One operator for an activation written out in several."""
    if not _is_elementwise(node) or not node.output.dtype.is_floating_point:
        return None
    x = _spread()
    for region in _regions(graph, node, _is_elementwise):
        if any(
            value.dtype != region.start.dtype or value.shape != region.start.shape
            for n in region.nodes
            for value in n.outputs
        ):
            continue
        found = _evaluate(region, x)
        if found is None:
            continue
        for name, attributes in _ELEMENTWISE:
            if _agree(found, _operator(name, attributes, x)):
                return _replace(graph, region, name, attributes)
    return None


def recognise_rowwise(graph: Graph, node: Node) -> str | None:
    """One operator for a norm or a softmax written out in several."""
    if not (_is_elementwise(node) or _is_plain_norm(node)) or not node.output.dtype.is_floating_point:
        return None
    for region in _regions(graph, node, _is_rowwise):
        reduced = [item for item in region.nodes if item.operator.name in _REDUCTIONS]
        count = _reduced_rank(reduced, region.start)
        if count is None or region.result.shape != region.start.shape:
            continue
        if any(value.dtype != region.start.dtype for item in region.nodes for value in item.outputs):
            continue
        width = region.start.shape[region.start.rank - count :]
        if not all(isinstance(size, int) for size in width) or any(not isinstance(size, int) for size in width):
            continue
        found = _match_row(graph, region, count, [size for size in width if isinstance(size, int)])
        if found is not None:
            return found
    return None


def _match_row(graph: Graph, region: Region, count: int, width: Sequence[int]) -> str | None:
    x = _rows(region.start.rank, width)
    found = _evaluate(region, x)
    if found is None:
        return None
    candidates: list[tuple[str, Attributes]] = []
    for eps in _numbers(region):
        candidates += [("layer_norm", {"rank": count, "eps": eps}), ("rms_norm", {"rank": count, "eps": eps})]
        if count == 1:
            candidates.append(("l_normalise", {"p": 2.0, "dim": region.start.rank - 1, "eps": eps}))
    if count == 1:
        candidates += [(name, {"dim": region.start.rank - 1}) for name in ("softmax", "log_softmax")]
    for name, attributes in candidates:
        if _agree(found, _operator(name, attributes, x)):
            return _replace(graph, region, name, attributes)
    return None


def _numbers(region: Region) -> list[float]:
    """The small positive numbers that a region adds: what an epsilon may be."""
    found = [
        item for node in region.nodes for item in node.attributes.values() if isinstance(item, float) and 0 < item < 0.1
    ]
    return list(dict.fromkeys(found))


def _reduced_rank(nodes: Sequence[Node], start: Value) -> int | None:
    """How many trailing dimensions all the reductions reduce, if they are the same ones."""
    found: set[tuple[int, ...]] = set()
    for node in nodes:
        dims = node.attributes["dims"]
        assert isinstance(dims, tuple)
        if not node.attributes["keepdim"]:
            return None
        found.add(tuple(sorted(dim % start.rank for dim in dims if isinstance(dim, int))))
    if len(found) != 1:
        return None
    (dims_,) = found
    return len(dims_) if dims_ and dims_ == tuple(range(start.rank - len(dims_), start.rank)) else None


def _is_elementwise(node: Node) -> bool:
    operator = node.operator
    return (
        operator.pointwise
        and not operator.training
        and len(node.outputs) == 1
        and operator.name not in ("cast", "clone", "prelu")
    )


def _is_rowwise(node: Node) -> bool:
    return _is_elementwise(node) or node.operator.name in _REDUCTIONS or _is_plain_norm(node)


def _is_plain_norm(node: Node) -> bool:
    """Whether a node normalises rows without a gain, over the last dimension."""
    if node.operator.name not in _NORMS or any(value is not None for value in node.inputs[1:]):
        return False
    last = node.output.rank - 1
    return node.attributes.get("rank", 1) == 1 and node.attributes.get("dim", last) in (last, -1)


def _regions(graph: Graph, last: Node, member: Any) -> Iterator[Region]:
    """The functions of one value that end in a node, smallest first; all that they compute on the way is read inside."""
    if not any(value is not None and value.producer is not None and member(value.producer) for value in last.inputs):
        return
    nodes = {last}
    while len(nodes) < _MOST:
        edge = {value for node in nodes for value in node.inputs if value is not None and value.producer not in nodes}
        if len(edge) == 1 and len(nodes) > 1:
            (start,) = edge
            inside = all(
                use.node in nodes for node in nodes if node is not last for value in node.outputs for use in value.uses
            ) and not any(node is not last and value.is_graph_output() for node in nodes for value in node.outputs)
            if inside:
                yield Region(start, tuple(sorted(nodes, key=graph.place)), last.output)
        makers = [value.producer for value in edge if value.producer is not None]
        if len(edge) > 4 or not makers:
            return
        latest = max(makers, key=graph.place)
        if not member(latest):
            return
        nodes.add(latest)


def _spread() -> torch.Tensor:
    """Numbers of all sizes that a float32 network meets, both signs, and zero."""
    uniform = counter_uniform(0, "recognition", _POINTS).to(torch.float64) * 2 - 1
    return torch.cat([uniform * 8, uniform * 0.01, uniform * 25, torch.zeros(1, dtype=torch.float64)])


def _rows(rank: int, width: Sequence[int]) -> torch.Tensor:
    """Rows at several scales: small ones show the epsilon, shifted ones the mean."""
    count = _ROWS * int(torch.Size(width).numel())
    uniform = counter_uniform(1, "recognition", count).to(torch.float64).reshape(_ROWS, -1) * 2 - 1
    scale = torch.tensor([1e-3, 1e-2, 1.0, 5.0], dtype=torch.float64).repeat(_ROWS // 4)[:, None]
    shift = torch.tensor([0.0, 0.0, 0.5, -2.0], dtype=torch.float64).repeat(_ROWS // 4)[:, None]
    lead = (_ROWS,) if rank - len(width) == 1 else (_ROWS, *[1] * (rank - len(width) - 1))
    return (
        (uniform * scale + shift).reshape(*(lead if rank > len(width) else ()), *width)
        if rank > len(width)
        else uniform[0].reshape(*width)
    )


def _evaluate(region: Region, x: torch.Tensor) -> torch.Tensor | None:
    known: dict[Value, torch.Tensor] = {region.start: x}
    try:
        with torch.no_grad():
            for node in region.nodes:
                (known[node.output],) = run_node(node, [None if v is None else known[v] for v in node.inputs], {})
    except (RuntimeError, TypeError, KeyError):  # a function that float64 does not have
        return None
    found = known[region.result]
    return found if found.dtype == x.dtype and found.shape == x.shape else None


def _operator(name: str, attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        operator = find(name)
        result: torch.Tensor = operator.run(x, **{**operator.attributes, **attributes})
    return result


def _agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a - b).abs() <= _CLOSE * b.abs().clamp(min=1.0)).all())


def _replace(graph: Graph, region: Region, name: str, attributes: Attributes) -> str | None:
    last = region.nodes[-1]
    made = graph.add(name, [region.start], attributes, path=last.path, name=f"{region.result.name}_known", before=last)
    if made.output.type != region.result.type:
        graph.remove(made)
        return None
    supersede(graph, region.result, made.output)
    graph.remove_dead()
    return f"{len(region.nodes)} nodes that compute {name}"


RULES = (Rule("activation", recognise_elementwise), Rule("norm", recognise_rowwise))
