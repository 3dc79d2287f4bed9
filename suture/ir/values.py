"""What flows along a graph's edges: values, those among them that carry a tensor, and the places that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from suture.ir.sizes import Dim
from suture.ir.types import TensorType

if TYPE_CHECKING:
    from suture.ir.graph import Graph, Node


class Use(NamedTuple):
    """One place that reads a value: operand `index` of `node`."""

    node: Node
    index: int  # type: ignore[assignment]  # a tuple's method of that name is not missed here


class Value:
    """A tensor in the graph: a graph input, a parameter, or a result of a node."""

    __slots__ = ("_uses", "graph", "index", "name", "producer", "type")

    def __init__(
        self, graph: Graph, name: str, type_: TensorType, producer: Node | None = None, index: int = 0
    ) -> None:
        self.graph = graph
        self.name = name
        self.type = type_
        self.producer = producer
        self.index = index
        self._uses: dict[Use, None] = {}  # an insertion-ordered set; only Node touches it

    @property
    def uses(self) -> tuple[Use, ...]:
        """Every operand that reads this value, in the order in which they came to do so."""
        return tuple(self._uses)

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The sizes of the dimensions."""
        return self.type.shape

    @property
    def dtype(self) -> torch.dtype:
        """The element type."""
        return self.type.dtype

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.type.shape)

    def is_graph_output(self) -> bool:
        """Whether the graph returns this value."""
        return any(value is self for value in self.graph.outputs)

    def __str__(self) -> str:
        return f"%{self.name}"

    def __repr__(self) -> str:
        return f"<{self}: {self.type}>"


class Parameter(Value):
    """A value with a tensor: a trained parameter, a buffer, or a constant.

    `aliases` are further names of the same tensor in the source model (tied weights). `persistent` says whether a state dict holds it.
    """

    __slots__ = ("aliases", "data", "persistent", "requires_grad", "role")

    def __init__(
        self,
        graph: Graph,
        name: str,
        data: torch.Tensor,
        role: str = "parameter",
        aliases: tuple[str, ...] = (),
        requires_grad: bool | None = None,
        persistent: bool | None = None,
    ) -> None:
        super().__init__(graph, name, TensorType(data.dtype, tuple(data.shape)))
        self.data = data
        self.role = role  # "parameter", "buffer" or "constant"
        self.aliases = aliases
        self.requires_grad = role == "parameter" if requires_grad is None else requires_grad
        self.persistent = role != "constant" if persistent is None else persistent

    def assign(self, data: torch.Tensor) -> None:
        """Give the parameter another tensor, and its type with it."""
        self.data = data
        self.type = TensorType(data.dtype, tuple(data.shape))

    def __str__(self) -> str:
        return f"@{self.name}"
