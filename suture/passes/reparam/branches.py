"""A value as a linear form of one other value: everything between the two, sums included, read from the end to the beginning.

Between the two stand only nodes that are linear forms and sums of two such, each read by nothing else; so the form may take the place of them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from suture.ir.graph import Node, Parameter, Value
from suture.passes.reparam.linear_form import LinearForm, add, compose, identity
from suture.passes.reparam.reading import Reading, read
from suture.passes.rewriting import Refusal

_LARGEST = 64  # nodes in one branch


@dataclass(frozen=True, eq=False)
class Branch:
    """The nodes that lead from `leaf` to `value`, each before what it reads, and those of them that are linear forms."""

    value: Value
    leaf: Value
    nodes: tuple[Node, ...] = ()
    readings: tuple[Reading, ...] = ()
    axis: int | None = None

    @property
    def sums(self) -> tuple[Node, ...]:
        """The nodes that add or subtract two values."""
        return tuple(node for node in self.nodes if is_sum(node))


def is_sum(node: Node | None) -> bool:
    """Whether a node adds or subtracts two computed values of one type."""
    if node is None or node.operator.name not in ("add", "sub") or len(node.inputs) != 2:
        return False
    left, right = node.inputs
    if left is None or right is None or isinstance(left, Parameter) or isinstance(right, Parameter):
        return False
    return left.type == right.type == node.output.type and node.output.dtype.is_floating_point


def reads_alone(value: Value) -> bool:
    """Whether one operand of one node is all that reads a value."""
    return len(value.uses) == 1 and not value.is_graph_output()


def branch_of(value: Value) -> Branch | Refusal:
    """The branch that ends in a value, from the one value that all of it is computed from."""
    nodes: list[Node] = []
    readings: list[Reading] = []
    leaves: dict[Value, None] = {}
    pending = [value]
    while pending:
        current = pending.pop()
        node = current.producer
        reading = None
        if node is not None and reads_alone(current) and len(nodes) < _LARGEST:
            if is_sum(node):
                nodes.append(node)
                pending += [operand for operand in reversed(node.inputs) if operand is not None]
                continue
            reading = read(node, shapes=True)
        if not isinstance(reading, Reading):
            leaves[current] = None
            continue
        nodes.append(reading.node)
        readings.append(reading)
        pending.append(reading.operand)
    if len(leaves) != 1:
        return Refusal(f"it is computed from {len(leaves)} values")
    axes = {reading.axis for reading in readings} - {None}
    if len(axes) > 1:
        return Refusal("its layers run along different axes")
    return Branch(value, next(iter(leaves)), tuple(nodes), tuple(readings), next(iter(axes), None))


def form_of(value: Value, branch: Branch, *, shapes: bool, precision: float = 0.0) -> LinearForm | Refusal:
    """The form of a value within a branch, of the branch's leaf.

    :param shapes: read no numbers: enough for what the form costs
    """
    if value is branch.leaf:
        return identity()
    node = value.producer
    assert node is not None
    if is_sum(node):
        left, right = (form_of(operand, branch, shapes=shapes, precision=precision) for operand in _operands(node))
        if isinstance(left, Refusal) or isinstance(right, Refusal):
            return left if isinstance(left, Refusal) else right
        return add([left, right.scaled(-1.0) if node.operator.name == "sub" else right])
    reading = read(node, shapes=shapes)
    if not isinstance(reading, Reading):
        return reading or Refusal("it is not linear")
    before = form_of(reading.operand, branch, shapes=shapes, precision=precision)
    if isinstance(before, Refusal):
        return before
    return compose(before, reading.form, precision=precision)


def _operands(node: Node) -> list[Value]:
    return [operand for operand in node.inputs if operand is not None]
