"""What an operator is: its meaning in index notation, how torch computes it, and what notation cannot say.

The operators themselves stand in `suture.ir.operators`, each declared once. From the declaration follow the result types (`Operator.infer`), the
terms, sizes and roles of the letters at a node (`Operator.instance`), the cost (`Operator.macs`) and the evaluation (`Operator.run`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.notation import Binding, Instance, Role, Signature, instantiate, letters_of, parse_signature
from suture.ir.sizes import Dim, maximum, product
from suture.ir.types import Attribute, TensorType

if TYPE_CHECKING:
    from suture.ir.graph import Node

Shape: TypeAlias = "tuple[Dim, ...]"


class FunctionClass(Enum):
    """What a function does to its operands, as far as surgery cares."""

    # The claims are about tensor operands that hold data (not indices, masks, or attention's queries and keys); a Python scalar is none.
    LINEAR = "linear"  # affine in each operand, f(a x + b z) - f(0) = a (f(x) - f(0)) + b (f(z) - f(0)), and zero where all are
    HOMOGENEOUS = "positively homogeneous"  # f(a x) = a f(x) for a > 0, in all operands at once
    ZERO_PRESERVING = "zero-preserving"  # f(0) = 0, all operands at once
    OTHER = "other"


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


@dataclass(frozen=True)
class Call:
    """An application of an operator before it is a node: operand types, attributes, declared result shapes."""

    types: tuple[TensorType | None, ...]
    attributes: Mapping[str, Attribute]
    declared: tuple[Shape, ...] | None = None
    where: str = ""

    def type(self, index: int) -> TensorType:
        """The type of an operand that must be there.

        :raises SutureError: SHAPE, if it is absent
        """
        found = self.types[index] if index < len(self.types) else None
        if found is None:
            raise SutureError(Code.SHAPE, f"operand {index} is missing", where=self.where, remedy="give it")
        return found

    def shape(self, index: int) -> Shape:
        """The shape of an operand that must be there."""
        return self.type(index).shape

    def dim(self, name: str = "dim", index: int = 0) -> int:
        """A dimension attribute, counted from the front.

        :raises SutureError: SHAPE, if the operand has no such dimension
        """
        value, rank = self.attributes[name], self.type(index).rank
        assert isinstance(value, int)
        if not -rank <= value < max(rank, 1):
            raise SutureError(Code.SHAPE, f"{name}={value} is no dimension of a value of rank {rank}", where=self.where,
                              remedy=f"{-rank} to {rank - 1} would be right")  # fmt: skip
        return value % rank if rank else 0

    def ints(self, name: str) -> tuple[int, ...]:
        """An attribute that is a tuple of integers."""
        value = self.attributes[name]
        return value if isinstance(value, tuple) else (value,)  # type: ignore[return-value]

    def result_shapes(self, count: int = 1) -> tuple[Shape, ...]:
        """The declared result shapes.

        :raises SutureError: SHAPE, if there are none
        """
        if self.declared is None or (count and len(self.declared) != count):
            raise SutureError(
                Code.SHAPE, "the result's shape must be declared", where=self.where, remedy="give shapes=[...]"
            )
        return self.declared


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator of the graph level.

    :param run: computes the results from tensors: `run(*operands, **attributes)`, with `shape=` (or `shapes=`) where result sizes are declared and
        `training=` where the operator has a flag for it
    :param attributes: names and defaults; `REQUIRED` has none
    :param function: what the operator does to its operands
    :param pointwise: whether each element of the result depends on the elements of the same index only
    :param broadcast: names of stars that align from the right
    :param bind: star lengths and letter sizes that attributes say
    :param late: sizes of computed letters, from those that the operands bind
    :param build: the whole instance, for operators whose letters depend on attributes
    :param dtype: the element types of the results; the first operand's if None
    :param letters: attributes that hold the size of a letter, as `{"groups": "g"}`: a surgery on the letter updates them
    :param declared: whether the node declares its result shapes
    :param measures: whether data decide symbols in its declared results, which are bound when it runs
    """

    name: str
    signature: Signature
    run: Callable[..., Any]
    attributes: Mapping[str, Attribute | _Required]
    function: FunctionClass
    pointwise: bool
    broadcast: frozenset[str]
    bind: Callable[[Call], Binding] | None
    late: Callable[[Call, Mapping[str, Dim]], Mapping[str, Dim]] | None
    build: Callable[[Call], Instance] | None
    dtype: Callable[[Call], torch.dtype | tuple[torch.dtype, ...]] | None
    letters: Mapping[str, str]
    declared: bool
    training: bool
    cost: Callable[[Instance], Dim] | None
    measures: bool
    doc: str

    def complete(self, attributes: Mapping[str, Attribute], where: str = "") -> dict[str, Attribute]:
        """Fill in default attributes, lists as tuples.

        :raises SutureError: OPERATOR, if an attribute does not exist or a required one is missing
        """
        for name in attributes:
            if name not in self.attributes:
                raise SutureError(Code.OPERATOR, f"{self.name} has no attribute {name!r}", where=where,
                                  remedy=nearest(name, self.attributes, what="attribute"))  # fmt: skip
        filled: dict[str, Attribute] = {}
        for name, default in self.attributes.items():
            value = attributes.get(name, default)
            if isinstance(value, _Required):
                raise SutureError(
                    Code.OPERATOR, f"{self.name} needs the attribute {name!r}", where=where, remedy="give it a value"
                )
            filled[name] = _freeze(value)
        return filled

    def call(self, node: Node) -> Call:
        """The call that a node makes."""
        declared = tuple(value.shape for value in node.outputs) if self.declared else None
        return Call(tuple(None if v is None else v.type for v in node.inputs), node.attributes, declared, node.where())

    def instance(self, call: Call | Node) -> Instance:
        """The notation applied to operands.

        :raises SutureError: SHAPE, if they do not fit
        """
        made = call if isinstance(call, Call) else self.call(call)
        if self.build is not None:
            return self.build(made)
        binding = self.bind(made) if self.bind is not None else None
        late = functools.partial(self.late, made) if self.late is not None else None
        shapes = [None if t is None else t.shape for t in made.types]
        return instantiate(self.signature, shapes, binding, broadcast=self.broadcast, late=late, where=made.where)

    def infer(
        self,
        types: Sequence[TensorType | None],
        attributes: Mapping[str, Attribute],
        declared: tuple[Shape, ...] | None = None,
        where: str = "",
    ) -> tuple[TensorType, ...]:
        """The result types.

        :raises SutureError: SHAPE or DTYPE, if the operands do not fit
        """
        call = Call(tuple(types), attributes, declared, where or self.name)
        shapes = self.instance(call).output_shapes()
        dtypes = self.dtype(call) if self.dtype is not None else call.type(0).dtype
        each = dtypes if isinstance(dtypes, tuple) else (dtypes,) * len(shapes)
        return tuple(TensorType(dtype, shape) for dtype, shape in zip(each, shapes, strict=True))

    def macs(self, node: Node) -> Dim:
        """Multiply-accumulates: the product of the letters' sizes, for an operator that contracts one of them with a second operand.

        An operator that runs one of several bodies costs what the dearest of them does.
        """
        if bodies := node.bodies:
            return functools.reduce(_dearer, [body.macs() for body in bodies.values()])
        if self.cost is not None:
            return self.cost(self.instance(node))
        if (
            self.function is not FunctionClass.LINEAR
            or self.pointwise
            or len([v for v in node.inputs if v is not None]) < 2
        ):
            return 0
        return contraction_cost(self.instance(node))

    def __repr__(self) -> str:
        return f"<operator {self.name}: {self.signature}>"


def contraction_cost(instance: Instance) -> Dim:
    """The sizes of the result's letters times those of the letters summed over; 0 where nothing is."""
    produced = dict.fromkeys(letter for dims in instance.outputs for term in dims for letter in letters_of(term))
    read = [{letter for term in dims for letter in letters_of(term)} for dims in instance.inputs if dims is not None]
    shared = dict.fromkeys(
        letter for dims in instance.inputs if dims is not None for term in dims for letter in letters_of(term)
        if letter not in produced and f"{letter}'" not in produced and instance.roles[letter] is not Role.LOOKUP
    )  # fmt: skip
    if not any(letter in a and letter in b for letter in shared for a in read for b in read if a is not b) and not any(
        instance.roles[letter] is Role.ORDERED for letter in shared
    ):
        return 0
    return product([instance.sizes[letter] for letter in (*produced, *shared)])


def _dearer(a: Dim, b: Dim) -> Dim:
    """The larger of two costs; of polynomials, that which is larger in every term, where one is."""
    difference = a - b
    if isinstance(difference, int) or all(factor >= 0 for _, factor in difference.terms):
        return maximum(a, b) if isinstance(difference, int) else a
    return b if all(factor <= 0 for _, factor in difference.terms) else maximum(a, b)


OPERATORS: dict[str, Operator] = {}


def declare(
    name: str,
    notation: str,
    run: Callable[..., Any],
    *,
    attributes: Mapping[str, Attribute | _Required] | None = None,
    function: FunctionClass = FunctionClass.OTHER,
    pointwise: bool = False,
    broadcast: Sequence[str] = (),
    bind: Callable[[Call], Binding] | None = None,
    late: Callable[[Call, Mapping[str, Dim]], Mapping[str, Dim]] | None = None,
    build: Callable[[Call], Instance] | None = None,
    dtype: Callable[[Call], torch.dtype | tuple[torch.dtype, ...]] | None = None,
    letters: Mapping[str, str] | None = None,
    declared: bool = False,
    training: bool = False,
    cost: Callable[[Instance], Dim] | None = None,
    measures: bool = False,
    doc: str = "",
) -> Operator:
    """Declare an operator. See `Operator` for the parameters."""
    if name in OPERATORS:
        raise SutureError(Code.OPERATOR, f"the operator {name} is declared twice", remedy="take another name")
    operator = Operator(
        name, parse_signature(notation), run, dict(attributes or {}), function, pointwise, frozenset(broadcast), bind, late, build, dtype,
        dict(letters or {}), declared, training, cost, measures, doc or inspect.getdoc(run) or "",
    )  # fmt: skip
    OPERATORS[name] = operator
    return operator


def find(name: str) -> Operator:
    """The operator of that name.

    :raises SutureError: OPERATOR, with the nearest names
    """
    if name not in OPERATORS:
        raise SutureError(
            Code.OPERATOR, f"there is no operator {name!r}", remedy=nearest(name, OPERATORS, what="operator")
        )
    return OPERATORS[name]


def _freeze(value: Attribute) -> Attribute:
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value
