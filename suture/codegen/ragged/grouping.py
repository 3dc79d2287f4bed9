"""Which nodes become one kernel over segments of rows.

A group runs over the segments that one value of pointers says. Its nodes compute numbers for each row (of the rows' dimension, first) or for each
segment; sums and extremes over the segments' rows lead from one to the other, a spread back. All have about as many features: what is wide, and the
few numbers that a row has by the side of it (an attention's weights), are in kernels of their own, because their lanes are different ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from suture.codegen.access import is_regrouping, is_view
from suture.codegen.groups import REDUCTIONS, Group, Plan, is_lowered, origin_of, reduced_dims, sources_of
from suture.codegen.scalars import lower_scalar
from suture.codegen.step import Template
from suture.ir.graph import Graph, Node, Value
from suture.ir.kernel import Apply, Expression, Name, parts
from suture.ir.sizes import Dim, product

MEETING = frozenset({"csr_sum", "csr_max"})
"""Operators from rows to segments."""
SPREAD = "csr_spread"
_CHEAP = frozenset(
    {"+", "-", "*", "min", "max", "select", "cast", "neg", "<", "<=", "==", "!=", "and", "or", "not", "abs"}
)


@dataclass(eq=False)
class RaggedGroup(Group):
    """Nodes over the segments of one value of pointers.

    :param pointers: where each segment's rows begin and end
    :param rows: how many rows there are
    :param width: how many features the widest of its values has
    :param dense: whether features are summed within rows
    """

    pointers: Value | None = None
    rows: Dim = 0
    width: Dim = 1
    dense: bool = False

    def __str__(self) -> str:
        names = ", ".join(node.operator.name for node in self.nodes)
        features = f" of {self.width} features" if self.width != 1 else ""
        count = f"{len(self.nodes)} node" + ("s" if len(self.nodes) > 1 else "")
        return f"{count} over segments of {self.rows} rows{features}: {names}"


def claim(graph: Graph, plan: Plan, template: Callable[[Node], Template | None]) -> None:
    """Enter the groups over segments: first around what is summed, then around what is only spread."""
    taken = [node for node in graph.nodes if node.operator.name in (*MEETING, SPREAD) and template(node) is not None]
    if not taken:
        return
    claimer = _Claimer(plan, frozenset(taken))
    for node in graph.nodes:
        if node.operator.name in MEETING and node in claimer.taken:
            claimer.meet(node)
        else:
            claimer.follow(node)
    for node in graph.nodes:
        if node.operator.name == SPREAD and node in claimer.taken and node not in plan.member:
            claimer.start(node)
        else:
            claimer.follow(node, dense=True)


def pointers_of(node: Node) -> Value:
    """The pointers of a node over segments."""
    found = node.inputs[1]
    assert found is not None
    return found


def operand_of(node: Node) -> Value:
    """What a node over segments, or a reduction, is of."""
    found = node.inputs[0]
    assert found is not None
    return found


def width_of(value: Value) -> Dim:
    """How many features a value has for each row or segment."""
    return product(value.shape[1:])


def keeps_rows(value: Value) -> bool:
    """Whether the views between a value and what makes it leave its first dimension as it is."""
    node = value.producer
    while node is not None and is_regrouping(node):
        source = operand_of(node)
        if not value.rank or not source.rank or value.shape[0] != source.shape[0]:
            return False
        if node.operator.name not in ("reshape", "permute", "expand"):
            return False
        if node.operator.name == "permute":
            dims = node.attributes["dims"]
            if not isinstance(dims, tuple) or not isinstance(dims[0], int) or dims[0] % value.rank != 0:
                return False
        value, node = source, source.producer
    return True


@dataclass
class _Claimer:
    plan: Plan
    taken: frozenset[Node]

    def start(self, node: Node) -> RaggedGroup:
        """A group around a node over segments."""
        over = operand_of(node) if node.operator.name in MEETING else node.output
        group = RaggedGroup(
            node.output.shape, anchor=node, pointers=pointers_of(node), rows=over.shape[0], width=width_of(over)
        )
        self.plan.fuses[group] = lambda anchor, node: False
        self._enter(node, group)
        return group

    def meet(self, node: Node) -> None:
        """A sum or extreme joins the group of what it is of, or begins one."""
        for group in self._groups(node):
            if (
                group.pointers is pointers_of(node)
                and group.width == width_of(operand_of(node))
                and self._joins(node, group)
            ):
                self._enter(node, group)
                return
        self.start(node)

    def follow(self, node: Node, *, dense: bool = False) -> None:
        """A node that reads a group's numbers row by row, or segment by segment, joins it.

        :param dense: whether also one that sums over features does, where nothing is summed over rows
        """
        if node in self.plan.member or not node.outputs:
            return
        for group in self._groups(node):
            if self._fits(node, group, dense=dense) and self._joins(node, group):
                self._enter(node, group)
                if node.operator.name in REDUCTIONS:
                    group.dense = True
                return

    def _groups(self, node: Node) -> list[RaggedGroup]:
        found = dict.fromkeys(self.plan.member.get(maker) for maker in sources_of(node))
        return [group for group in found if isinstance(group, RaggedGroup)]

    def _joins(self, node: Node, group: RaggedGroup) -> bool:
        """Whether a node may join whose operands the group makes: through views that keep rows, and without a way around."""
        for value in node.inputs:
            maker = None if value is None else origin_of(value)
            if maker is not None and self.plan.member.get(maker) is group and not keeps_rows(value):  # type: ignore[arg-type]
                return False
        return not self.plan.around(sources_of(node), group)

    def _fits(self, node: Node, group: RaggedGroup, *, dense: bool) -> bool:
        """Whether a node is computed row by row, or segment by segment, of numbers that the group makes."""
        if node.operator.name == SPREAD:
            return node in self.taken and pointers_of(node) is group.pointers and width_of(node.output) == group.width
        if is_view(node) or not is_lowered(node):
            return False
        if node.operator.name in REDUCTIONS:
            return dense and not _meets(group) and self._sums_features(node, group)
        return self._is_pointwise(node, group)

    def _sums_features(self, node: Node, group: RaggedGroup) -> bool:
        operand = operand_of(node)
        alike = {reduced_dims(each) for each in group.nodes if each.operator.name in REDUCTIONS}
        over = operand.shape[0] == group.rows and 0 not in reduced_dims(node) and width_of(operand) == group.width
        fixed = all(isinstance(size, int) for size in operand.shape[1:])
        return over and fixed and node.operator.name in ("sum", "mean") and alike <= {reduced_dims(node)}

    def _is_pointwise(self, node: Node, group: RaggedGroup) -> bool:
        """Its own numbers come from operands of its rank; others are the same for all rows."""
        made = node.output
        inside = [
            value
            for value in node.inputs
            if value is not None and self.plan.member.get(origin_of(value) or node) is group
        ]
        if any(value.rank != made.rank or value.shape[0] != made.shape[0] for value in inside):
            return False
        if all(value.shape != made.shape for value in inside):
            return False
        if not group.dense:
            return width_of(made) == group.width
        return len({value.shape for value in inside}) == 1  # what is behind a sum over features does not get wide again

    def _enter(self, node: Node, group: RaggedGroup) -> None:
        self.plan.enter(node, group, None)
        self._pull(node, group)

    def _pull(self, node: Node, group: RaggedGroup) -> None:
        """What is computed of rows alone, and what is spread, comes into the group of what reads it."""
        for value in node.inputs:
            maker = None if value is None else origin_of(value)
            if value is None or maker is None or maker in self.plan.member or not keeps_rows(value):
                continue
            if self._pulls(maker, value, group) and not self.plan.beside(maker, group):
                self._enter(maker, group)

    def _pulls(self, maker: Node, value: Value, group: RaggedGroup) -> bool:
        if maker.operator.name == SPREAD:
            return (
                maker in self.taken and pointers_of(maker) is group.pointers and width_of(maker.output) == group.width
            )
        if is_view(maker) or maker.operator.name in REDUCTIONS or not is_lowered(maker) or _is_joined(maker):
            return False
        made = maker.output
        if not made.rank or made.shape[0] != group.rows or value.shape[0] != group.rows:
            return False
        if width_of(made) == group.width:
            return True
        return _is_cheap(maker) and not made.is_graph_output() and all(
            self.plan.member.get(reader) is group for reader in _readers(made)
        )  # fmt: skip


def _is_joined(node: Node) -> bool:
    """Whether a node brings parts together, which is done part by part and not number by number."""
    source = node.inputs[0] if node.operator.name == "clone" else None
    return source is not None and source.producer is not None and source.producer.operator.name == "concat"


def _meets(group: RaggedGroup) -> bool:
    return any(node.operator.name in MEETING for node in group.nodes)


def _readers(value: Value) -> list[Node]:
    """Who reads a value, seen through views that only regroup."""
    found: list[Node] = []
    for reader, _ in value.uses:
        found += [each for out in reader.outputs for each in _readers(out)] if is_regrouping(reader) else [reader]
        if is_regrouping(reader) and any(out.is_graph_output() for out in reader.outputs):
            found.append(reader)
    return found


def _is_cheap(node: Node) -> bool:
    """Whether every lane may compute it again."""
    made = lower_scalar(node, [None if value is None else _unknown(value.dtype) for value in node.inputs])
    return made is not None and all(part.function in _CHEAP for part in parts(made) if isinstance(part, Apply))


def _unknown(dtype: torch.dtype) -> Expression:
    return Name("v", dtype)
