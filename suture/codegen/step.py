"""What a program is made of: calls of kernels, constants that are made ready once, and what templates are given to write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch

from suture.codegen.schedule import Schedule
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.kernel import Kernel, Scatter, Store, Update, walk
from suture.ir.sizes import Dim
from suture.ir.types import TensorType

if TYPE_CHECKING:
    from suture.codegen.groups import Group

S = TypeVar("S", bound=Schedule)
Recipe: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


@dataclass(frozen=True)
class KernelStep:
    """One call of a kernel.

    :param arguments: the values whose memory it is given, in the order of the kernel's arguments
    :param sizes: what its size arguments are, in order
    :param why: what it does, and why so
    """

    kernel: Kernel
    arguments: tuple[Value, ...]
    sizes: tuple[Dim, ...]
    why: str
    schedule: Schedule | None = None

    @property
    def writes(self) -> tuple[Value, ...]:
        """The values that it writes."""
        written = {each.buffer.name for each in walk(self.kernel.body) if isinstance(each, Store | Update | Scatter)}
        return tuple(
            value for value, buffer in zip(self.arguments, self.kernel.arguments, strict=True) if buffer.name in written
        )

    @property
    def reads(self) -> tuple[Value, ...]:
        """The values that it reads alone."""
        written = set(self.writes)
        return tuple(value for value in self.arguments if value not in written)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A constant that is made from a parameter once, before anything runs: weights in the order in which a kernel reads them.

    :param recipe: makes its data, contiguous in the order of `value`'s shape
    """

    value: Value
    parameter: Parameter
    recipe: Recipe

    def make(self) -> torch.Tensor:
        """The constant's data."""
        return self.recipe(self.parameter.data.detach()).contiguous()


@dataclass
class Context:
    """What templates share while a graph is lowered.

    :param target: `cpp` or `cuda`
    :param storage: the order in which the dimensions of a value lie in memory, outermost first; as they are counted where it says nothing
    :param schedules: schedules that were chosen, by the name of what a group's anchor (or first node) makes
    :param undefined: attentions that were written out as a softmax: a query that sees no key is not a number
    :param alone: whether there is no library to leave anything to
    :param split: of segments' rows, how many one block takes at most, where no schedule says otherwise; 0 for all
    """

    graph: Graph
    target: str = "cpp"
    storage: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    constants: list[Prepared] = field(default_factory=list)
    undefined: set[Node] = field(default_factory=set)
    alone: bool = False
    split: int = 0
    _made: dict[tuple[Parameter, str], Value] = field(default_factory=dict)
    _temporaries: int = 0

    def order(self, value: Value) -> tuple[int, ...]:
        """How the dimensions of a value lie in memory, outermost first."""
        return self.storage.get(value, tuple(range(value.rank)))

    def schedule(self, group: Group, default: S) -> S:
        """The schedule that was chosen for a group, or the default."""
        found = self.schedules.get(group.key)
        return found if isinstance(found, type(default)) else default

    def temporary(self, dtype: torch.dtype, shape: tuple[Dim, ...], name: str) -> Value:
        """A value between the kernels of one template."""
        self._temporaries += 1
        return Value(self.graph, f"{name}_{self._temporaries}", TensorType(dtype, shape))

    def prepared(self, parameter: Parameter, what: str, recipe: Recipe, type_: TensorType) -> Value:
        """A constant made from a parameter; the same parameter and `what` give the same constant."""
        key = (parameter, what)
        if key not in self._made:
            value = Value(self.graph, f"{parameter.name}:{what}", type_)
            self._made[key] = value
            self.constants.append(Prepared(value, parameter, recipe))
        return self._made[key]


@dataclass(frozen=True)
class Template:
    """How the groups around one operator become kernels.

    :param lower: the kernels of a group
    :param refuses: why a node is left to torch, or None
    :param fuses: whether a pointwise node of the anchor's shape may be its epilogue
    :param candidates: schedules worth trying for a group, the default first
    :param reshapes: whether an epilogue may read the result through reshapes that keep its innermost dimension
    :param fronts: whether the pointwise nodes that make an operand, by its number, may be the prologue of a group
    """

    lower: Callable[[Group, Context], list[KernelStep]]
    refuses: Callable[[Node, Context], str | None]
    fuses: Callable[[Node, Node], bool] = lambda anchor, node: True
    candidates: Callable[[Group, Context], Sequence[Schedule]] = lambda group, context: ()
    reshapes: bool = False
    fronts: Callable[[Group, int, Context], bool] = lambda group, operand, context: False
