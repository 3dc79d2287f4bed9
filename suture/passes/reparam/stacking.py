"""Parallel linear operators whose results stand one after the other along the channels are one layer, where that pays."""

from __future__ import annotations

import torch

from suture.ir.graph import Graph, Node, Value
from suture.passes.reparam.branches import Branch, branch_of, form_of
from suture.passes.reparam.cost import MOVED, Budget, elements, reading_cost, sum_cost
from suture.passes.reparam.linear_form import LinearForm, beside
from suture.passes.reparam.writing import Place, called, write
from suture.passes.rewriting import Refusal, Rule


def stack_up(budget: Budget) -> Rule:
    """The rule, applied at a concatenation."""
    return Rule("stack", lambda graph, node: _stack(graph, node, budget))


def _stack(graph: Graph, node: Node, budget: Budget) -> str | Refusal | None:
    if node.operator.name != "concat" or not node.output.dtype.is_floating_point:
        return None
    found = [branch_of(value) for value in node.inputs if value is not None]
    branches = [branch for branch in found if isinstance(branch, Branch) and branch.readings]
    if len(branches) < len(found) or len(found) < 2 or len({branch.leaf for branch in branches}) > 1:
        return None
    dim, leaf = node.attributes["dim"], branches[0].leaf
    assert isinstance(dim, int)
    names = " beside ".join(called(branch.nodes[0]) for branch in branches)
    axis = dim % node.output.rank
    if any(branch.axis != axis for branch in branches):
        return Refusal(f"{names}: they run along another axis than the one they are joined along")
    form = _form(branches, shapes=True)
    if isinstance(form, Refusal):
        return Refusal(f"{names}: {form.reason}")
    old = 2 * MOVED * elements(graph, node.output) + _cost(graph, branches)
    readings = tuple(reading for branch in branches for reading in branch.readings)
    reason = budget.reason(graph, form, leaf, node.output, old, readings)
    if reason:
        return Refusal(f"{names}: {reason}")
    exact = _form(branches, shapes=False)
    if isinstance(exact, Refusal):
        return Refusal(f"{names}: {exact.reason}")
    gone = (node, *(each for branch in branches for each in branch.nodes))
    written = write(graph, exact, Place(node, leaf, axis, gone, readings))
    return Refusal(f"{names}: {written.reason}") if isinstance(written, Refusal) else f"{names} are one layer: {exact}"


def _form(branches: list[Branch], *, shapes: bool) -> LinearForm | Refusal:
    forms: list[LinearForm] = []
    for branch in branches:
        form = form_of(branch.value, branch, shapes=shapes, precision=torch.finfo(branch.value.dtype).eps)
        if isinstance(form, Refusal):
            return form
        channels = _channels(branch.value, branch.axis)
        if channels is None:
            return Refusal("the number of channels is not known")
        forms.append(form.over(channels))
    return beside(forms)


def _cost(graph: Graph, branches: list[Branch]) -> int:
    cost = sum(reading_cost(graph, reading) for branch in branches for reading in branch.readings)
    return cost + sum(sum_cost(graph, node.output) for branch in branches for node in branch.sums)


def _channels(value: Value, axis: int | None) -> int | None:
    size = None if axis is None else value.shape[axis]
    return size if isinstance(size, int) else None
