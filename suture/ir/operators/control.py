"""Operators that decide what is computed: the branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.notation import Instance, Role, Term
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.semantics import run_body
from suture.ir.sizes import Dim
from suture.ir.types import TensorType


def _branch(
    predicate: torch.Tensor,
    *operands: torch.Tensor,
    then: Graph,
    otherwise: Graph,
    training: bool = False,
    symbols: Mapping[str, int] | None = None,
) -> tuple[torch.Tensor, ...]:
    # on the meta device nothing is known but types, and those both bodies share
    body = then if predicate.is_meta or bool(predicate) else otherwise
    return tuple(run_body(body, operands, symbols or {}, training=training))


def _bodies(call: Call) -> tuple[Graph, Graph]:
    """The two bodies, checked against the operands and each other."""
    if (predicate := call.type(0)) != TensorType(torch.bool, ()):
        raise SutureError(Code.DTYPE, f"the predicate is {predicate}", where=call.where, remedy="bool[] would be right")
    found: list[Graph] = []
    for name in ("then", "otherwise"):
        body = call.attributes[name]
        if not isinstance(body, Graph):
            what = f"{name} is a {type(body).__name__}"
            raise SutureError(Code.OPERATOR, what, where=call.where, remedy="a graph without parameters would be right")
        _check_inputs(call, name, body)
        found.append(body)
    then, otherwise = ([str(value.type) for value in body.outputs] for body in found)
    if then != otherwise:
        what = f"then returns {', '.join(then) or 'nothing'}, otherwise {', '.join(otherwise) or 'nothing'}"
        raise SutureError(Code.SHAPE, what, where=call.where, remedy="both bodies must return the same types")
    return found[0], found[1]


def _check_inputs(call: Call, name: str, body: Graph) -> None:
    operands = call.types[1:]
    if len(body.inputs) != len(operands):
        what = f"the body {name} takes {len(body.inputs)} values and is given {len(operands)}"
        raise SutureError(Code.SHAPE, what, where=call.where, remedy="one input for every operand after the predicate")
    for value, type_ in zip(body.inputs, operands, strict=True):
        if type_ is None:
            raise SutureError(Code.SHAPE, f"no operand for {value} of {name}", where=call.where, remedy="give it")
        if value.type != type_:
            code = Code.SHAPE if value.shape != type_.shape else Code.DTYPE
            what = f"{value} of the body {name} is {value.type}, its operand {type_}"
            raise SutureError(code, what, where=call.where, remedy="the types must be equal")


def _branch_instance(call: Call) -> Instance:
    """Nothing changes in a branch: every dimension of every operand and result is a letter of its own, decided by the data."""
    then, _ = _bodies(call)
    sizes: dict[str, Dim] = {}
    inputs: list[tuple[Term, ...] | None] = []
    for k, type_ in enumerate(call.types):
        shape = () if type_ is None else type_.shape
        inputs.append(tuple(f"x{k}d{i}" for i in range(len(shape))))
        sizes |= {f"x{k}d{i}": size for i, size in enumerate(shape)}
    outputs: list[tuple[Term, ...]] = []
    for k, value in enumerate(then.outputs):
        outputs.append(tuple(f"y{k}d{i}" for i in range(value.rank)))
        sizes |= {f"y{k}d{i}": size for i, size in enumerate(value.shape)}
    return Instance(tuple(inputs), tuple(outputs), sizes, dict.fromkeys(sizes, Role.CONDITIONAL))


def _branch_dtypes(call: Call) -> tuple[torch.dtype, ...]:
    return tuple(value.dtype for value in _bodies(call)[0].outputs)


_ATTRIBUTES: dict[str, Any] = {"then": REQUIRED, "otherwise": REQUIRED}

declare(
    "branch",
    "p[], x[*a]? -> y[*b]",
    _branch,
    attributes=_ATTRIBUTES,
    function=FunctionClass.OTHER,
    build=_branch_instance,
    dtype=_branch_dtypes,
    training=True,
    doc="`then` on the operands where the predicate holds, else `otherwise`: graphs without parameters, of which one runs.",
)
