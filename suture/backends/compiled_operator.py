"""Compiled graphs as operators of torch: `torch.compile` and `torch.export` see one operator, whose results' shapes follow from the graph's types.

An operator's name is made of the graph's text and the bytes of its parameters, so that equal graphs have one operator, in every process.
"""

from __future__ import annotations

import ast
import hashlib
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch

from suture.codegen.names import c_name
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.sizes import Dim, Size
from suture.ir.types import TensorType

NAMESPACE = "suture"
Operator: TypeAlias = "Callable[[list[torch.Tensor]], list[torch.Tensor]]"

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_SCHEMA = "(Tensor[] inputs) -> Tensor[]"
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_EXTREME: Mapping[str, Callable[[Any, Any], Any]] = {"max": torch.sym_max, "min": torch.sym_min}


class Runner(Protocol):
    """What an operator runs."""

    def run_list(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Results of inputs that are in order, without gradients."""


class _Held:
    """What runs an operator: let go with its last user, until torch has traced the operator into something that will call it."""

    def __init__(self, runner: Runner) -> None:
        self.reference = weakref.ref(runner)
        self.kept: Runner | None = None

    def keep(self) -> None:
        self.kept = self.reference()

    def runner(self, name: str) -> Runner:
        found = self.kept or self.reference()
        if found is None:
            raise SutureError(
                Code.INPUT, f"the compiled graph of {NAMESPACE}::{name} is gone", remedy="keep the result of suture.compile, or compile it again"
            )  # fmt: skip
        return found


_HELD: dict[str, _Held] = {}
_OPERATORS: dict[str, Operator] = {}


def register(
    runner: Runner,
    graph: Graph,
    *,
    inputs: Sequence[TensorType],
    outputs: Sequence[TensorType],
    what: str = "",
    backward: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
) -> Operator:
    """The operator of a compiled graph, from a list of tensors to a list of tensors; registered where no equal graph was before.

    :param graph: what it computes; the name is made of its text and its parameters
    :param inputs: the types of its inputs
    :param outputs: the types of its results
    :param what: distinguishes operators of one graph
    :param backward: the derivative and what keeps for it, as `torch.library.register_autograd` takes them; an error if absent
    """
    name = f"{c_name(graph.name)}_{_content(graph, what)}"
    held = _HELD.get(name)
    if held is not None and (held.kept or held.reference()) is not None:
        return _OPERATORS[name]
    _HELD[name] = _Held(runner)
    if name not in _OPERATORS:
        _OPERATORS[name] = _registered(
            name, tuple(inputs), tuple(outputs), backward or (_no_backward(graph.name), _keeps_nothing)
        )
    return _OPERATORS[name]


def is_traced(tensors: Sequence[Any]) -> bool:
    """Whether a call must go through the operator: torch traces it, or a tensor is of a class that only operators understand."""
    return torch.compiler.is_compiling() or any(
        isinstance(each, torch.Tensor) and type(each) not in _PLAIN for each in tensors
    )


def _registered(
    name: str,
    inputs: tuple[TensorType, ...],
    outputs: tuple[TensorType, ...],
    backward: tuple[Callable[..., Any], Callable[..., Any]],
) -> Operator:
    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        results = _HELD[name].runner(name).run_list([each.detach() for each in inputs])
        taken = {each.untyped_storage().data_ptr() for each in inputs}
        owned = []
        for each in results:  # an operator's results share no memory, with its inputs or each other
            place = each.untyped_storage().data_ptr()
            owned.append(each.clone(memory_format=torch.contiguous_format) if place in taken else each.contiguous())
            taken.add(owned[-1].untyped_storage().data_ptr())
        return owned

    def fake(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        _HELD[name].keep()
        sizes = bind_sizes(inputs, tensors)
        device = tensors[0].device
        return [
            torch.empty([measure(dim, sizes) for dim in type_.shape], dtype=type_.dtype, device=device)
            for type_ in outputs
        ]

    made = torch.library.custom_op(f"{NAMESPACE}::{name}", run, mutates_args=(), schema=_SCHEMA)
    made.register_fake(fake)
    made.register_autograd(backward[0], setup_context=backward[1])
    found: Operator = getattr(torch.ops.suture, name).default
    return found


def bind_sizes(types: Sequence[TensorType], tensors: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The sizes that tensors give to symbols; those may be symbolic themselves.

    :raises SutureError: INPUT, if a tensor does not fit
    """
    sizes: dict[str, Any] = {}
    waiting: list[tuple[Dim, Any]] = []
    for type_, tensor in zip(types, tensors, strict=True):
        if tensor.ndim != type_.rank or tensor.dtype != type_.dtype:
            raise SutureError(
                Code.INPUT, f"an input is {tensor.dtype} of rank {tensor.ndim}", remedy=f"{type_} would be right"
            )
        waiting += zip(type_.shape, tensor.shape, strict=True)
    while waiting:
        later = []
        for dim, size in waiting:
            unknown = _unknown(dim, sizes)
            if not unknown:
                if measure(dim, sizes) != size:  # of symbolic sizes, this is a guard
                    raise SutureError(
                        Code.INPUT, f"an input has {size} where its size is {dim}", remedy="shapes must agree"
                    )
            elif (found := _solved(dim, size, sizes)) is not None:
                sizes.update(found)
            else:
                later.append((dim, size))
        if len(later) == len(waiting):
            raise SutureError(
                Code.INPUT, f"no input says what {later[0][0]} is", remedy="give the graph an input of that size"
            )
        waiting = later
    return sizes


def measure(dim: Dim, sizes: Mapping[str, Any]) -> Any:
    """A size in numbers, or in torch's symbolic ones."""
    return dim if isinstance(dim, int) else _measured(ast.parse(str(dim), mode="eval").body, sizes)


def _measured(tree: ast.expr, sizes: Mapping[str, Any]) -> Any:
    match tree:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_measured(operand, sizes)
        case ast.BinOp(left=left, op=sign, right=right):
            return _ARITHMETIC[type(sign)](_measured(left, sizes), _measured(right, sizes))
        case ast.Call(func=ast.Name(id=("max" | "min") as function), args=[left, right]):
            return _EXTREME[function](_measured(left, sizes), _measured(right, sizes))
    raise AssertionError(f"{ast.dump(tree)} is no size")


def _unknown(dim: Dim, sizes: Mapping[str, Any]) -> set[str]:
    if isinstance(dim, int):
        return set()
    names = {node.id for node in ast.walk(ast.parse(str(dim), mode="eval")) if isinstance(node, ast.Name)}
    return names - {"max", "min"} - set(sizes)


def _solved(dim: Dim, size: Any, sizes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one unknown symbol of a size that is linear in it: `4*n*m + 3` says n once m is known."""
    assert isinstance(dim, Size)
    unknown = _unknown(dim, sizes)
    if len(unknown) != 1:
        return None
    (name,) = unknown
    scale, offset = 0, 0
    for factors, coefficient in dim.terms:
        others = list(factors)
        if name in others:
            others.remove(name)
            if _unknown(Size(((tuple(others), 1),)) if others else 1, sizes):
                return None
            scale = scale + coefficient * _product(others, sizes)
        elif _unknown(Size(((factors, 1),)) if factors else 1, sizes):
            return None
        else:
            offset = offset + coefficient * _product(others, sizes)
    if isinstance(scale, int) and scale in (0, 1):
        return {name: size - offset} if scale else None
    return {name: (size - offset) // scale}


def _product(factors: Sequence[str], sizes: Mapping[str, Any]) -> Any:
    found: Any = 1
    for factor in factors:
        found = found * _measured(ast.parse(factor, mode="eval").body, sizes)
    return found


def _content(graph: Graph, what: str) -> str:
    """A hash of a graph's text and its parameters' bytes."""
    seen = hashlib.sha256(f"{what}\0{graph}".encode())
    for name, parameter in graph.parameters.items():
        data = parameter.data.detach().cpu().contiguous()
        seen.update(f"{name}\0{data.dtype}\0{tuple(data.shape)}\0".encode())
        if data.numel():
            seen.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return seen.hexdigest()[:16]


def _no_backward(name: str) -> Callable[..., Any]:
    def refuse(context: Any, *gradients: Any) -> Any:
        raise no_gradient(name)

    return refuse


def no_gradient(name: str) -> SutureError:
    """What a compiled graph without a derivative says to who asks for one."""
    return SutureError(
        Code.GRADIENT, "the compiled graph has no gradient", where=name,
        remedy="compile it with train=True, or call it under torch.no_grad() or with inputs that require none",
    )  # fmt: skip


def _keeps_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    """A derivative that only refuses needs nothing."""
