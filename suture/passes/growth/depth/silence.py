"""Which parameters make a branch of a block zero: those of the last layer of the branch, so that a gradient reaches it."""

from __future__ import annotations

from suture.ir.graph import Node, Parameter, Value
from suture.ir.operator import FunctionClass
from suture.ir.regions import Region
from suture.passes.exactness import BIAS, LAYOUT, PRODUCTS
from suture.passes.growth.depth.block_edit import Blocked, Edit, outcome, unwrap

NORMS = ("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm")
_SUMS = ("add", "sub", "maximum", "minimum", "concat")
_FIRST_OPERAND = ("index", "gather", "embedding", "select", "slice", "split", "div", "mean", "sum", "amax", "amin", "cumsum", "avg_pool")  # fmt: skip
_ZERO_PRESERVING = (FunctionClass.LINEAR, FunctionClass.HOMOGENEOUS, FunctionClass.ZERO_PRESERVING)


class Silencer:
    """Walks up the branches of one block; answers are kept, so that each value is asked once."""

    def __init__(self, block: Region) -> None:
        self.block = block
        self.own = set(block.own_parameters())
        self._answers: dict[Value, tuple[Edit, ...] | Blocked] = {}

    def silence(self, value: Value | None, reader: Node) -> tuple[Edit, ...]:
        """The edits that make a value zero.

        :raises Blocked: naming the operator that does not vanish
        """
        if value is None:
            return ()
        if isinstance(value, Parameter):
            return self._parameter(value, reader)
        if value not in self._answers:
            self._answers[value] = outcome(lambda: self._result(value))
        return unwrap(self._answers[value])

    def _parameter(self, value: Parameter, reader: Node) -> tuple[Edit, ...]:
        if value.role != "parameter":
            if value.data.is_meta or bool(value.data.any()):
                raise Blocked(reader, f"reads {value}, which is not trained")
            return ()
        if value not in self.own:
            raise Blocked(reader, f"reads {value}, which others read too")
        return (Edit(value, "zero", reader),)

    def _result(self, value: Value) -> tuple[Edit, ...]:
        node = value.producer
        if node is None or node not in self.block.members:
            raise Blocked(None, f"{value} comes from outside of the block")
        name, operands = node.operator.name, [v for v in node.inputs if v is not None]
        scalar = node.attributes.get("scalar")
        if name in PRODUCTS or name == "einsum" or (name == "mul" and scalar is None):
            return self._product(node)
        if name in NORMS:
            return self._norm(node)
        if name == "attention":
            return self.silence(node.inputs[2], node)
        if name == "full" and node.attributes["value"] == 0:
            return ()
        if name in _FIRST_OPERAND and node.inputs[0] is not None:
            return self.silence(operands[0], node)
        if name in _SUMS and not scalar:
            return tuple(edit for operand in operands for edit in self.silence(operand, node))
        if len(operands) == 1 and _keeps_zero(node):
            return self.silence(operands[0], node)
        raise Blocked(node, "does not vanish where what it reads does")

    def _product(self, node: Node) -> tuple[Edit, ...]:
        """One factor is zero, a parameter rather than data; and so is the bias."""
        name = node.operator.name
        positions = PRODUCTS.get(name, tuple(range(len(node.inputs))))
        factors = [value for k in positions if (value := node.inputs[k]) is not None]
        blocked: list[Blocked] = []
        for factor in sorted(factors, key=lambda value: not isinstance(value, Parameter)):
            try:
                return (*self.silence(factor, node), *self.silence(bias_of(node), node))
            except Blocked as found:
                blocked.append(found)
        raise blocked[0]

    def _norm(self, node: Node) -> tuple[Edit, ...]:
        data, gain, bias = (*node.inputs, None, None)[:3]
        if gain is None and node.operator.name == "batch_norm":
            raise Blocked(node, "has no gain, and shifts zero by its mean")
        shift = bias if node.operator.name != "rms_norm" else None
        return (*self.silence(data if gain is None else gain, node), *self.silence(shift, node))


def bias_of(node: Node) -> Value | None:
    """What a layer adds to its products, if anything."""
    index = BIAS.get(node.operator.name)
    return None if index is None or index >= len(node.inputs) else node.inputs[index]


def _keeps_zero(node: Node) -> bool:
    """Whether an operator on one operand gives zero for zero."""
    name, scalar = node.operator.name, node.attributes.get("scalar")
    if name in LAYOUT:
        return True
    if name == "pad":
        return not node.attributes["value"]
    if name == "pow":
        return isinstance(scalar, int | float) and scalar > 0 and node.inputs[0] is not None
    if name in ("add", "sub", "maximum", "minimum") and scalar:
        return False
    return node.operator.pointwise and node.operator.function in _ZERO_PRESERVING
