"""Kernels over the loops that they run: the dimensions of buffers become those that the loops' variables count.

Where a variable runs across several dimensions of a buffer they become one; where two variables count within one dimension it comes apart. Nothing
moves in memory, and whoever checks the kernel sees that different values of the variables are different elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from suture.codegen.indices import Indices
from suture.codegen.traversal.domain import Run, coefficient
from suture.ir.kernel import (
    Apply,
    Buffer,
    Expression,
    Kernel,
    Literal,
    Load,
    Name,
    Scope,
    Statement,
    Store,
    Update,
    expressions_of,
    names_in,
    parts,
    walk,
)
from suture.ir.kernel_ranges import Range
from suture.ir.sizes import Dim, Size, evaluate_size, exact_quotient, parse_size, product, symbols_of


def join_variables(kernel: Kernel, runs: Sequence[Run], sizes: Mapping[str, Dim], indices: Indices) -> Kernel:
    """The kernel with the variable of each run in the place of its axes.

    :param runs: what fits together in every address, and stands nowhere else
    :param sizes: the axes' sizes over the kernel's arguments
    """
    wide = [run for run in runs if len(run.axes) > 1]
    for run in wide:
        indices.ranges.variables.setdefault(run.name, Range(0, product([sizes[axis.name] for axis in run.axes]) - 1))
    rewriter = _Rewriter(wide, sizes, indices, {buffer.name: [] for buffer in kernel.arguments})
    for statement in walk(kernel.body):
        if isinstance(statement, Store | Update) and statement.buffer.scope is Scope.GLOBAL:
            rewriter.accesses[statement.buffer.name].append(statement.index)
        for expression in expressions_of(statement):
            for part in parts(expression):
                if isinstance(part, Load) and part.buffer.scope is Scope.GLOBAL:
                    rewriter.accesses[part.buffer.name].append(part.index)
    for buffer in kernel.arguments:
        rewriter.regroup(buffer)
    arguments = tuple(rewriter.buffers[buffer.name] for buffer in kernel.arguments)
    return replace(kernel, arguments=arguments, body=rewriter.body(kernel.body))


@dataclass
class _Rewriter:
    runs: Sequence[Run]
    sizes: Mapping[str, Dim]
    indices: Indices
    accesses: dict[str, list[tuple[Expression, ...]]]

    def __post_init__(self) -> None:
        self.buffers: dict[str, Buffer] = {}
        self.groups: dict[str, list[tuple[int, int]]] = {}
        self.factors: dict[str, list[list[Dim]]] = {}

    def regroup(self, buffer: Buffer) -> None:
        """Which dimensions of a buffer become one."""
        rank = len(buffer.shape)
        joined = [False] * rank  # whether a dimension is one with the next
        for run in self.runs:
            names = {axis.name for axis in run.axes}
            for index in self.accesses[buffer.name]:
                touched = [k for k, at in enumerate(index) if names & names_in(at)]
                for k in range(min(touched, default=0), max(touched, default=0)):
                    joined[k] = True
        groups: list[tuple[int, int]] = []
        for k in range(rank):
            if k and joined[k - 1]:
                groups[-1] = (groups[-1][0], k + 1)
            else:
                groups.append((k, k + 1))
        self.groups[buffer.name] = groups
        self.factors[buffer.name] = []
        shape: list[Dim] = []
        for a, b in groups:
            size = product([self.indices.dim(each) for each in buffer.shape[a:b]])
            numbers = [self.number(index[a:b], buffer.shape[a:b]) for index in self.accesses[buffer.name]]
            factors = self.cut(size, numbers)
            self.factors[buffer.name].append(factors)
            for factor in factors:
                outer = exact_quotient(size, factor)
                assert outer is not None
                shape.append(outer)
                size = factor
            shape.append(size)
        self.buffers[buffer.name] = replace(buffer, shape=tuple(map(self.indices.expression, shape)))

    def cut(self, size: Dim, numbers: Sequence[Dim]) -> list[Dim]:
        """The factors at which a dimension comes apart because all its indices do: variables get dimensions of their own."""
        found = {
            _product(monomial[:k] + monomial[k + 1 :], factor)
            for number in numbers if isinstance(number, Size)
            for monomial, factor in number.terms if factor > 0
            for k, name in enumerate(monomial) if name in self.indices.ranges.variables
        }  # fmt: skip
        for factor in sorted(found, key=_guess, reverse=True):
            outer = exact_quotient(size, factor)
            if factor == 1 or outer is None or outer == 1:
                continue
            parts = [self.apart(number, factor) for number in numbers]
            if all(part is not None for part in parts):
                return [factor, *self.cut(factor, [part[1] for part in parts if part is not None])]
        return []

    def apart(self, number: Dim, factor: Dim) -> tuple[Dim, Dim] | None:
        """Quotient and remainder of an index, where they are seen without a division."""
        if number == 0:
            return 0, 0
        whole, rest = (self.indices.dim(each) for each in self.indices.divide(self.indices.expression(number), factor))
        seen = whole * factor + rest == number and not _divides(whole, factor) and not _divides(rest, factor)
        return (whole, rest) if seen else None

    def number(self, digits: Sequence[Expression], sizes: Sequence[Expression]) -> Dim:
        """Digits as one number, over the runs' variables."""
        total: Dim = 0
        for digit, size in zip(digits, sizes, strict=True):
            total = total * self.indices.dim(size) + self.indices.dim(digit)
        return self.replaced(total)

    def replaced(self, dim: Dim) -> Dim:
        """A polynomial with the runs' variables."""
        for run in self.runs:
            factor = coefficient(dim, run.axes[-1].name)
            assert factor is not None, f"an address is not linear in {run.name}"
            if factor == 0:
                continue
            step: Dim = 1
            for axis in reversed(run.axes):
                dim = dim - factor * step * self.indices.dim(Name(axis.name))
                step = step * self.sizes[axis.name]
            dim = dim + factor * self.indices.dim(Name(run.name))
        return dim

    def place(self, buffer: Buffer, index: Sequence[Expression]) -> tuple[Buffer, tuple[Expression, ...]]:
        """An element of an argument, in the buffer that has taken its place."""
        made: list[Expression] = []
        for (a, b), factors in zip(self.groups[buffer.name], self.factors[buffer.name], strict=True):
            rest = self.number(index[a:b], buffer.shape[a:b])
            for factor in factors:
                parts = self.apart(rest, factor)
                assert parts is not None
                made.append(self.expression(self.indices.expression(parts[0])))
                rest = parts[1]
            made.append(self.expression(self.indices.expression(rest)))
        return self.buffers[buffer.name], tuple(made)

    def expression(self, expression: Expression) -> Expression:
        """An expression with all elements in it replaced."""
        match expression:
            case Literal() | Name():
                return expression
            case Load(buffer, index):
                if buffer.scope is not Scope.GLOBAL:
                    return replace(expression, index=tuple(map(self.expression, index)))
                return Load(*self.place(buffer, index))
            case Apply(function, operands, dtype):
                return Apply(function, tuple(map(self.expression, operands)), dtype)

    def body(self, body: Sequence[Statement]) -> tuple[Statement, ...]:
        """Statements with all elements in them replaced."""
        return tuple(map(self.statement, body))

    def statement(self, statement: Statement) -> Statement:
        """A statement with all elements in it replaced."""
        if isinstance(statement, Store | Update) and statement.buffer.scope is Scope.GLOBAL:
            buffer, index = self.place(statement.buffer, statement.index)
            return replace(statement, buffer=buffer, index=index, value=self.expression(statement.value))
        changed: dict[str, object] = {}
        for item in fields(statement):
            value = getattr(statement, item.name)
            if isinstance(value, Apply | Load):
                changed[item.name] = self.expression(value)
            elif isinstance(value, tuple) and item.name in ("body", "otherwise"):
                changed[item.name] = self.body(value)
            elif isinstance(value, tuple) and item.name == "index":
                changed[item.name] = tuple(map(self.expression, value))
        return replace(statement, **changed) if changed else statement  # type: ignore[arg-type]


def _product(factors: Sequence[str], coefficient: int) -> Dim:
    return product([coefficient, *map(parse_size, factors)])


def _guess(size: Dim) -> int:
    return evaluate_size(size, dict.fromkeys(symbols_of(size), 64))


def _divides(number: Dim, factor: Dim) -> bool:
    """Whether a quotient or remainder by the factor stands in a number."""
    texts = (f"// {factor})", f"% {factor})", f"// ({factor}))", f"% ({factor}))")
    return isinstance(number, Size) and any(
        each.endswith(texts) for monomial, _ in number.terms for each in monomial if not each.isidentifier()
    )
