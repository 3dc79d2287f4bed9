"""Multiplying what a node reads by the shares of copies, where both of its sides are copies: a tied table, attention's scores.

The product of two copied slices counts every copy in full. Its factor goes where nothing has to be added to the graph: into attention's scale,
or into the gain and bias of a norm that only this node reads; else a multiplication is put in front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.ir.algebra import Atom
from suture.ir.axes import AxisTable
from suture.ir.graph import Node, Parameter, Value
from suture.passes.axis_map import Twin
from suture.passes.axis_walk import dims_of
from suture.passes.exactness import Correction
from suture.passes.linear_maps import Gather, composed

_PASSING = ("slice", "clone", "cast", "dropout")


def share(
    twin: Twin, table: AxisTable, shares: Mapping[Atom, Gather], corrections: Sequence[Correction]
) -> dict[str, torch.Tensor]:
    """Make the corrections of kind `share`.

    :param shares: for every mapped atom, which old index each new one stands for, and the factor that it takes where a correction is due
    :returns: the factors that parameters took up, by name, in the shape of the parameter or one that broadcasts with it
    """
    factors: dict[str, torch.Tensor] = {}
    grouped: dict[tuple[Node, int, int], set[Atom]] = {}
    for correction in corrections:
        if correction.kind == "share" and correction.atom in shares:
            dims = dims_of(table, correction.node, correction.operand, correction.letter)
            grouped.setdefault((correction.node, correction.operand, dims[0]), set()).add(correction.atom)
    for (node, operand, dim), atoms in grouped.items():
        value = node.inputs[operand]
        assert value is not None
        gathers = {atom: each if atom in atoms else Gather(each.index) for atom, each in shares.items()}
        vector = composed(table.axis(value, dim), gathers).scale
        assert vector is not None
        _multiply(twin, twin.nodes[node], operand, dim, vector, factors)
    return factors


def _multiply(
    twin: Twin, node: Node, operand: int, dim: int, shares: torch.Tensor, factors: dict[str, torch.Tensor]
) -> None:
    constant = bool((shares == shares[0]).all())
    scale = node.attributes.get("scale")
    if node.operator.name == "attention" and constant and isinstance(scale, int | float):
        node.attributes["scale"] = scale * float(shares[0])
        return
    value = node.inputs[operand]
    assert value is not None
    norm = _norm_before(value, node)
    if norm is not None and _into_norm(norm, dim - value.rank, shares, factors):
        return
    where = {"path": node.path, "name": f"{value.name}_shared", "before": node}
    if constant:
        product = twin.graph.add("mul", [value, None], {"scalar": float(shares[0])}, **where)  # type: ignore[arg-type]
    else:
        shape = [-1 if k == dim else 1 for k in range(value.rank)]
        data = shares.reshape(shape).to(value.dtype)
        base = f"{node.path}.shares" if node.path else f"{value.name}_shares"
        names = (base, *(f"{base}_{k}" for k in range(1, len(twin.graph.parameters) + 2)))
        vector = twin.graph.add_parameter(next(x for x in names if x not in twin.graph.parameters), data, "constant")
        product = twin.graph.add("mul", [value, vector], **where)  # type: ignore[arg-type]
    node.replace_input(operand, product.output)


def _norm_before(value: Value, reader: Node) -> Node | None:
    """The norm whose result nothing but `reader` sees."""
    while True:
        producer = value.producer
        if producer is None or len(value.uses) != 1 or value.is_graph_output() or value.uses[0].node is not reader:
            return None
        if producer.operator.name in ("layer_norm", "rms_norm"):
            return producer
        if producer.operator.name not in _PASSING or producer.inputs[0] is None:
            return None
        reader, value = producer, producer.inputs[0]


def _into_norm(norm: Node, dim: int, shares: torch.Tensor, factors: dict[str, torch.Tensor]) -> bool:
    """Multiply a norm's gain and bias; False if it has no gain of its own. `dim` counts from the end."""
    vectors = [value for value in norm.inputs[1:3] if value is not None]
    own = [v for v in vectors if isinstance(v, Parameter) and len(v.uses) == 1 and v.rank >= -dim]
    if len(own) != len(vectors) or len(norm.inputs) < 2 or norm.inputs[1] is None:
        return False
    for parameter in own:
        factor = shares.reshape([-1 if k == parameter.rank + dim else 1 for k in range(parameter.rank)])
        scaled = (parameter.data.detach() * factor.to(parameter.data.device)).to(parameter.dtype)
        parameter.assign(scaled.requires_grad_(parameter.data.requires_grad))
        factors[parameter.name] = factor
    return True
