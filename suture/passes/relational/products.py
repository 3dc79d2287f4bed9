"""Products of rows and weights, read through the views that stand behind them: what linear reordering is about."""

from __future__ import annotations

from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim


@dataclass(frozen=True, eq=False)
class Product:
    """A value `z[e, *h, o]` that is rows times weights.

    Without `split` it is `x[e, *h, i]` times `w[t, *h, i, o]` of each row's type, or times `w[o, i]` where `type` is None. With it, `z[e, h, d]` is
    the product `[e, h*d]` of `x[e, i]` seen as heads. Where the product is made on nodes, `looked` is the index by which its rows are looked up.
    """

    node: Node
    split: tuple[Dim, Dim] | None
    looked: Value | None

    @property
    def weight(self) -> Value:
        """The weights."""
        return _operand(self.node, 1)

    @property
    def type(self) -> Value | None:
        """The type of each row, if there is one."""
        return self.node.inputs[2] if self.node.operator.name == "typed_linear" else None

    @property
    def bias(self) -> Value | None:
        """What is added to the product of every row."""
        return None if self.type is not None or len(self.node.inputs) < 3 else self.node.inputs[2]

    @property
    def heads(self) -> tuple[Dim, ...]:
        """The sizes of the heads that rows and weights both have."""
        return self.node.output.shape[1:-1]

    @property
    def width(self) -> Dim:
        """How many features go in."""
        return _operand(self.node, 0).shape[-1]

    def rows(self, graph: Graph) -> Value:
        """The rows that go in, with one for each row of the value."""
        x = _operand(self.node, 0)
        return x if self.looked is None else graph.add("embedding", [x, self.looked], path=self.node.path).output

    def matrices(self, graph: Graph) -> Value:
        """The weights as matrices, with the heads in front: `[t, *h, i, o]`, or `[*h, i, o]` without types."""
        weight, path = self.weight, self.node.path
        if self.type is None:
            weight = graph.add("permute", [weight], {"dims": (1, 0)}, path=path).output
        if self.split is None:
            return weight
        lead = weight.shape[:-2]
        seen = graph.add("reshape", [weight], shapes=[(*lead, self.width, *self.split)], path=path).output
        k = len(lead)
        return graph.add("permute", [seen], {"dims": (*range(k), k + 1, k, k + 2)}, path=path).output


def read_product(value: Value) -> Product | None:
    """The product that a value is, or None."""
    split: tuple[Dim, Dim] | None = None
    looked: Value | None = None
    while (node := value.producer) is not None:
        match node.operator.name:
            case "embedding" if looked is None and value.rank > 1 and _operand(node, 1).rank == 1:
                value, looked = _operand(node, 0), _operand(node, 1)
            case "reshape" if split is None and _is_split(_operand(node, 0), value):
                split = (value.shape[1], value.shape[2])
                value = _operand(node, 0)
            case "typed_linear":
                fits = looked is None and (split is None or value.rank == 2)
                return Product(node, split, looked) if fits else None
            case "linear":
                return Product(node, split, looked) if value.rank == 2 else None
            case _:
                return None
    return None


def _is_split(whole: Value, parts: Value) -> bool:
    """Whether a value is another with its features seen as heads."""
    if (whole.rank, parts.rank) != (2, 3) or whole.shape[0] != parts.shape[0]:
        return False
    return parts.shape[1] * parts.shape[2] == whole.shape[1]


def _operand(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value
