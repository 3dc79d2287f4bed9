"""Restoring statistics that see a width: the gain and eps of norms, the result of means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from suture.ir.algebra import Atom, resolve, size_of
from suture.ir.axes import AxisTable
from suture.ir.graph import Graph, Node, Parameter
from suture.ir.sizes import Dim
from suture.passes.axis_map import Twin
from suture.passes.exactness import Correction
from suture.passes.linear_maps import mapped_size

_NORMS = ("rms_norm", "layer_norm")


def restore_statistics(
    twin: Twin, table: AxisTable, sizes: Mapping[Atom, int], corrections: Sequence[Correction]
) -> dict[str, float]:
    """Give norms and means the factor by which their width changed: once per node, whatever number of atoms it saw.

    Entries that add nothing to a norm's sum of squares change its mean: from N to N' entries the gain takes sqrt(N / N'), and eps N / N'.

    :returns: the factors of parameters, by name
    """
    done: set[Node] = set()
    scaled: dict[str, float] = {}
    for correction in corrections:
        node = correction.node
        if correction.kind not in ("rms", "mean") or correction.atom not in sizes or node in done:
            continue
        done.add(node)
        instance, letters = table.instances[node], table.letters[node]
        mixed = [x for x in letters if instance.roles[x].value == "mixed"]
        before = math.prod(_fixed(size_of(resolve(letters[x]))) for x in mixed)
        after = math.prod(_fixed(mapped_size(resolve(letters[x]), sizes)) for x in mixed)
        copy = twin.nodes[node]
        if correction.kind == "mean":
            _multiply_result(twin.graph, copy, after / before)
            continue
        eps = copy.attributes["eps"]
        floor = torch.finfo(copy.outputs[0].dtype).eps if eps is None else eps
        assert isinstance(floor, int | float)
        copy.attributes["eps"] = floor * before / after
        gain = copy.inputs[1] if len(copy.inputs) > 1 else None
        factor = math.sqrt(before / after)
        if not isinstance(gain, Parameter) or not takes_a_factor(gain):
            _multiply_result(twin.graph, copy, factor)
        elif gain.name not in scaled:
            gain.assign((gain.data.detach() * factor).requires_grad_(gain.data.requires_grad))
            scaled[gain.name] = factor
    return scaled


def takes_a_factor(gain: Parameter) -> bool:
    """Whether only norms read a gain, so that it can take up a factor."""
    return all(node.operator.name in _NORMS and index == 1 for node, index in gain.uses)


def _multiply_result(graph: Graph, node: Node, factor: float) -> None:
    order = graph.nodes
    position = order.index(node)
    follower = order[position + 1] if position + 1 < len(order) else None
    product = graph.add(
        "mul",
        [node.output, None],
        {"scalar": factor},
        path=node.path,
        name=f"{node.output.name}_rescaled",
        before=follower,
    )
    graph.replace_uses(node.output, product.output, keep=[product])


def _fixed(size: Dim) -> int:
    assert isinstance(size, int), f"a symbolic size {size} cannot be mapped"
    return size
