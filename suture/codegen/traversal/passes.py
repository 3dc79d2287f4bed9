"""The passes of a traversal: what is computed in which, and what is kept from one to the next.

A value is known in the first pass that needs it, and one later behind each reduction. What a later pass needs again is computed again where that is
cheap, and kept where it is dear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from suture.codegen.access import Index, is_view
from suture.codegen.groups import REDUCTIONS, Group
from suture.codegen.scalars import compute_type, lower_scalar
from suture.codegen.traversal.domain import Axis, mentions
from suture.ir.graph import Node, Value
from suture.ir.kernel import Apply, Expression, Name, parts

_DEAR = frozenset(
    {
        "exp",
        "exp_nonpositive",
        "log",
        "tanh",
        "erf",
        "sin",
        "cos",
        "pow",
        "/",
        "rsqrt",
        "sqrt",
        "log1p",
        "expm1",
        "atan2",
        "log2",
    }
)
_KEPT_FROM = 4  # what costs as many additions is kept


@dataclass
class Passes:
    """The passes of a group.

    :param places: where values stand over the axes
    :param reduced: the axes that are reduced
    :param number: in which pass a value is first known
    :param reducing: the operators behind which a pass ends
    """

    group: Group
    places: Mapping[Value, Index]
    reduced: tuple[Axis, ...]
    number: dict[Value, int] = field(default_factory=dict)
    reducing: frozenset[str] = REDUCTIONS

    def __post_init__(self) -> None:
        self.nodes = frozenset(self.group.nodes)
        for node in self.group.nodes:
            for value in node.outputs:
                self.of(value)
        self.count = max((self.number[value] for node in self.group.nodes for value in node.outputs), default=0) + 1

    def of(self, value: Value) -> int:
        """The pass in which a value is first known."""
        if value in self.number:
            return self.number[value]
        node = value.producer
        found = 0
        if node is not None and (node in self.nodes or is_view(node)):
            before = max((self.of(each) for each in node.inputs if each is not None), default=0)
            found = before + (node.operator.name in self.reducing and node in self.nodes)
        self.number[value] = found
        return found

    def is_row(self, value: Value) -> bool:
        """Whether a value of the group is one number for a row."""
        return bool(self.reduced) and value in self.places and not mentions(self.places[value], self.reduced)

    def reductions(self, number: int) -> list[Node]:
        """The reductions that a pass feeds."""
        return [
            node for node in self.group.nodes
            if node.operator.name in self.reducing and self.number[node.output] == number + 1
        ]  # fmt: skip

    def stored(self, number: int) -> list[Value]:
        """The values of the whole domain that a pass writes."""
        return [value for value in self.group.outputs if self.number[value] == number and not self.is_row(value)]

    def rows(self, number: int) -> list[Value]:
        """The rows' numbers that follow from others when a pass begins."""
        return [
            value for node in self.group.nodes for value in node.outputs
            if self.number[value] == number and self.is_row(value) and node.operator.name not in self.reducing
        ]  # fmt: skip

    def roots(self, number: int) -> list[Value]:
        """What a pass has to compute for each element."""
        fed = [node.inputs[0] for node in self.reductions(number)]
        return [value for value in fed if value is not None] + self.stored(number)

    def kept(self) -> dict[Value, int]:
        """The values that are dear and computed by a pass and needed by a later one; and that first pass."""
        kept: list[Value] = []
        computed: dict[Value, int] = {}
        for number in range(self.count):
            reached: list[Value] = []
            waiting = self.roots(number)
            seen: set[Value] = set()
            while waiting:
                value = waiting.pop()
                if value in seen or self.is_row(value):
                    continue
                seen.add(value)
                if value in kept:
                    continue
                if value in computed and value in self.places and self.cost(value, kept) >= _KEPT_FROM:
                    kept.append(value)
                    continue
                reached.append(value)
                node = value.producer
                if (
                    node is not None
                    and (node in self.nodes or is_view(node))
                    and node.operator.name not in self.reducing
                ):
                    waiting += [each for each in node.inputs if each is not None]
            for value in reached:
                computed.setdefault(value, number)
        return {value: computed[value] for value in kept}

    def cost(self, value: Value, kept: list[Value]) -> int:
        """What computing a value again costs, in additions."""
        total, seen, waiting = 0, set(), [value]
        while waiting:
            each = waiting.pop()
            node = each.producer
            if each in seen or self.is_row(each) or (each in kept and each is not value):
                continue
            seen.add(each)
            if node is None or not (node in self.nodes or is_view(node)):
                total += 1
                continue
            total += 0 if is_view(node) else _cost(node)
            waiting += [operand for operand in node.inputs if operand is not None]
        return total


def _cost(node: Node) -> int:
    operands: list[Expression | None] = [
        None if value is None else Name("v", compute_type(value.dtype)) for value in node.inputs
    ]
    made = lower_scalar(node, operands)
    if made is None:
        return 1
    functions = [part.function for part in parts(made) if isinstance(part, Apply) and part.function != "cast"]
    return sum(8 if function in _DEAR else 1 for function in functions)
