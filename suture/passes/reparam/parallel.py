"""Parallel linear operators add up: the terms of a sum that are linear forms of one value become one layer, where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from suture.ir.graph import Graph, Node, Value
from suture.passes.reparam.branches import Branch, branch_of, form_of, is_sum, reads_alone
from suture.passes.reparam.cost import Budget, reading_cost, sum_cost
from suture.passes.reparam.linear_form import LinearForm, add
from suture.passes.reparam.writing import Place, called, remove_all, write
from suture.passes.rewriting import Refusal, Rule


@dataclass(frozen=True, eq=False)
class Term:
    """A signed term of a sum, with its branch and the branch's form; numbers are read when they are needed."""

    index: int
    sign: float
    branch: Branch
    form: LinearForm

    def with_numbers(self) -> Term | Refusal:
        """The term with its form's numbers."""
        precision = torch.finfo(self.branch.value.dtype).eps
        form = form_of(self.branch.value, self.branch, shapes=False, precision=precision)
        return form if isinstance(form, Refusal) else replace(self, form=form.scaled(self.sign))


def add_up(budget: Budget) -> Rule:
    """The rule, applied at the last sum of a tree of sums."""
    return Rule("add up", lambda graph, node: _add_up(graph, node, budget))


def _add_up(graph: Graph, root: Node, budget: Budget) -> str | Refusal | None:
    if not is_sum(root) or (reads_alone(root.output) and is_sum(root.output.uses[0].node)):
        return None
    signed, sums = _terms_of(root)
    by_leaf: dict[Value, list[tuple[int, float, Branch]]] = {}
    for index, (sign, value) in enumerate(signed):
        branch = branch_of(value)
        if isinstance(branch, Branch):
            by_leaf.setdefault(branch.leaf, []).append((index, sign, branch))
    reasons: list[str] = []
    for parallel in by_leaf.values():
        if len(parallel) < 2 or all(reading.form.spread for _, _, branch in parallel for reading in branch.readings):
            continue
        found = _best(graph, root, _readable(parallel, reasons), budget)
        if isinstance(found, Refusal):
            reasons += [found.reason] if found.reason else []
            continue
        chosen, form = found
        taken = {term.index for term in chosen}
        left = [pair for index, pair in enumerate(signed) if index not in taken]
        result = _replaced(graph, root, sums, chosen, form, left)
        if not isinstance(result, Refusal):
            return result
        reasons.append(f"{_names(chosen)}: {result.reason}")
    return Refusal("; ".join(dict.fromkeys(reasons))) if reasons else None


def _terms_of(root: Node) -> tuple[list[tuple[float, Value]], list[Node]]:
    """The signed terms of a tree of sums, and the sums, each before what it reads."""
    terms: list[tuple[float, Value]] = []
    sums: list[Node] = []
    pending = [(1.0, root.output)]
    while pending:
        sign, value = pending.pop()
        node = value.producer
        if node is None or not is_sum(node) or (node is not root and not reads_alone(value)):
            terms.append((sign, value))
            continue
        sums.append(node)
        left, right = node.inputs
        assert left is not None
        assert right is not None
        pending += [(-sign if node.operator.name == "sub" else sign, right), (sign, left)]
    return terms, sums


def _readable(parallel: Sequence[tuple[int, float, Branch]], reasons: list[str]) -> list[Term]:
    """The terms that are forms of their leaf; why the others are none."""
    terms: list[Term] = []
    for index, sign, branch in parallel:
        form = form_of(branch.value, branch, shapes=True)
        if isinstance(form, Refusal):
            reasons.append(f"{_name(branch.value)}: {form.reason}")
        else:
            terms.append(Term(index, sign, branch, form))
    return terms


def _best(graph: Graph, root: Node, terms: Sequence[Term], budget: Budget) -> tuple[list[Term], LinearForm] | Refusal:
    """The terms that become one layer, and its form: the largest first, each further one that fits and pays."""
    reasons: list[str] = []
    waiting = sorted(terms, key=lambda term: -term.form.kernel.numel() * (not term.form.spread))
    while len(waiting) > 1:
        chosen, form, left = [waiting[0]], waiting[0].form, list[Term]()
        for term in waiting[1:]:
            trial = _joined(graph, root, [*chosen, term], form, budget)
            if isinstance(trial, Refusal):
                left.append(term)
                reasons.append(f"{_name(term.branch.value)} with {_name(chosen[0].branch.value)}: {trial.reason}")
            else:
                chosen, form = [*chosen, term], trial
        if len(chosen) > 1:
            exact = _numbers(chosen)
            if not isinstance(exact, Refusal):
                return exact
            reasons.append(exact.reason)
        waiting = left
    return Refusal("; ".join(dict.fromkeys(reasons)))


def _joined(
    graph: Graph, root: Node, terms: Sequence[Term], before: LinearForm, budget: Budget
) -> LinearForm | Refusal:
    """The form of the terms so far with one more, if that pays."""
    axes = {term.branch.axis for term in terms} - {None}
    if len(axes) > 1:
        return Refusal("they run along different axes")
    form = add([before, terms[-1].form])
    if isinstance(form, Refusal):
        return form
    operand, result = terms[0].branch.leaf, root.output
    old = sum_cost(graph, result) * (len(terms) - 1)
    for term in terms:
        old += sum(reading_cost(graph, reading) for reading in term.branch.readings)
        old += sum(sum_cost(graph, node.output) for node in term.branch.sums)
    readings = [reading for term in terms for reading in term.branch.readings]
    reason = budget.reason(graph, form, operand, result, old, readings)
    return Refusal(reason) if reason else form


def _numbers(terms: Sequence[Term]) -> tuple[list[Term], LinearForm] | Refusal:
    """The sum with its numbers, without the terms that turn out not to be exact."""
    exact, reasons = [], []
    for term in terms:
        found = term.with_numbers()
        if isinstance(found, Refusal):
            reasons.append(f"{_name(term.branch.value)}: {found.reason}")
        else:
            exact.append(found)
    if len(exact) < 2:
        return Refusal("; ".join(reasons))
    total = add([term.form for term in exact])
    return total if isinstance(total, Refusal) else (exact, total)


def _replaced(
    graph: Graph,
    root: Node,
    sums: Sequence[Node],
    terms: Sequence[Term],
    form: LinearForm,
    left: Sequence[tuple[float, Value]],
) -> str | Refusal:
    axis = next((term.branch.axis for term in terms if term.branch.axis is not None), None)
    branches = tuple(node for term in terms for node in term.branch.nodes)
    readings = tuple(reading for term in terms for reading in term.branch.readings)
    whole = Place(root, terms[0].branch.leaf, axis, (*sums, *branches), readings)
    dropped = [called(reading.node) for reading in readings if reading.drops]
    said = f"{_names(terms)} are one layer: {form}"
    said += f"; {', '.join(dropped)} counts as in evaluation" if dropped else ""
    if not left:
        written = write(graph, form, whole)
        return written if isinstance(written, Refusal) else said
    name = root.output.name
    written = write(graph, form, replace(whole, gone=branches), name=f"{name}_merged")
    if isinstance(written, Refusal):
        return written
    total = written.output
    for sign, value in left:
        operator = "add" if sign > 0 else "sub"
        total = graph.add(operator, [total, value], path=root.path, name=f"{name}_sum", before=root).output
    graph.replace_uses(root.output, total)
    remove_all(graph, (*sums, *branches))
    graph.rename_result(total, name)
    return said


def _names(terms: Sequence[Term]) -> str:
    return " + ".join(_name(term.branch.value) if term.branch.nodes else "the identity" for term in terms)


def _name(value: Value) -> str:
    return called(value.producer) if value.producer is not None else str(value)
