"""Consecutive linear operators compose: a layer and what reads nothing but its result become one layer, where that pays."""

from __future__ import annotations

from collections.abc import Callable

import torch

from suture.ir.graph import Graph, Node
from suture.passes.reparam.branches import reads_alone
from suture.passes.reparam.cost import Budget, reading_cost
from suture.passes.reparam.linear_form import LinearForm, compose
from suture.passes.reparam.reading import Reading, read
from suture.passes.reparam.writing import Place, called, write
from suture.passes.rewriting import Refusal, Rule


def compose_pairs(budget: Budget, *, chosen: Callable[[Node, Node], bool] | None = None) -> Rule:
    """The rule, applied at the second of the two.

    :param chosen: whether a pair of nodes may be merged
    """
    return Rule("compose", lambda graph, node: _compose(graph, node, budget, chosen))


def _compose(
    graph: Graph, node: Node, budget: Budget, chosen: Callable[[Node, Node], bool] | None
) -> str | Refusal | None:
    second = read(node, shapes=True)
    if not isinstance(second, Reading) or second.operand.producer is None:
        return None
    first = read(second.operand.producer, shapes=True)
    if not isinstance(first, Reading) or not (first.is_layer or second.is_layer):
        return None
    if any(reading.form.is_diagonal and not reading.is_layer for reading in (first, second)):
        return None  # a map of each channel by itself moves, through whatever lies between
    if chosen is not None and not chosen(first.node, second.node):
        return None
    names = f"{called(first.node)}, then {called(second.node)}"
    reason = _apart(first, second)
    if reason:
        return Refusal(f"{names}: {reason}")
    form = compose(first.form, second.form)
    if isinstance(form, Refusal):
        return Refusal(f"{names}: {form.reason}")
    old = reading_cost(graph, first) + reading_cost(graph, second)
    reason = budget.reason(graph, form, first.operand, second.node.output, old, (first, second))
    if reason:
        return Refusal(f"{names}: {reason}")
    exact = _with_numbers(first, second)
    if isinstance(exact, Refusal):
        return Refusal(f"{names}: {exact.reason}")
    axis = first.axis if second.axis is None else second.axis
    place = Place(second.node, first.operand, axis, (second.node, first.node), (second, first))
    written = write(graph, exact, place)
    if isinstance(written, Refusal):
        return Refusal(f"{names}: {written.reason}")
    return f"{names} are one layer: {exact}"


def _apart(first: Reading, second: Reading) -> str:
    """Why two readings, one of the other's result, are not to be merged, if they are not."""
    if not reads_alone(first.node.output):
        return f"{called(first.node)} has another reader"
    if None not in (first.axis, second.axis) and first.axis != second.axis:
        return "they run along different axes"
    dropping = next((reading for reading in (first, second) if reading.drops), None)
    return "" if dropping is None else f"{called(dropping.node)} drops elements in training"


def _with_numbers(first: Reading, second: Reading) -> LinearForm | Refusal:
    before, after = read(first.node), read(second.node)
    assert isinstance(before, Reading)
    assert isinstance(after, Reading)
    precision = torch.finfo(first.node.output.dtype).eps
    return compose(before.form, after.form, precision=precision)
