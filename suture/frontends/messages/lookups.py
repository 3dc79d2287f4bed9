"""Lookups by an edge's ends and types: `x[e.src]`, `W[e.type]`.

Features are looked up at once. Weights of a type are not: what is done with them decides. `x[e.src] @ W[e.type]` and `(z * a[e.type]).sum(-1)` are
products by type, and no tensor with a matrix for every edge ever exists; whatever else is done with them takes their rows.

Features that are one-hot are not there at all: their product with weights is a lookup of the weights' rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from suture.frontends.messages.operators import lookup, typed_linear
from suture.frontends.messages.validation import inside, integers
from suture.ir.errors import Code, SutureError

_GET = torch.Tensor.__getitem__
_MATMUL = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__}
_MUL = {torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.multiply, torch.Tensor.__mul__, torch.Tensor.__rmul__}


class Index:
    """A number for every edge (or node): of a node, or of a type.

    It has no length: torch would take it for a sequence of indices.

    :param tensor: the numbers, `[rows]`
    :param size: how many things are numbered: a symbolic size while a program is traced
    :param space: what they are: `nodes`, `sources`, `targets`, `types`, `node types`
    :param count: `size`, as a number
    """

    def __init__(self, tensor: torch.Tensor, size: int, space: str, count: int | None = None) -> None:
        self.tensor = tensor
        self.size = size
        self.space = space
        self.count = int(size) if count is None else count

    @property
    def names_types(self) -> bool:
        """Whether what is looked up are weights of types, rather than features of nodes."""
        return self.space.endswith("types")

    def __getitem__(self, key: Index) -> Index:
        """The numbers that another index leads to: `n.type[e.src]` are the types of the edges' sources."""
        key.check(self.tensor)
        return Index(lookup(self.tensor, key.tensor), self.size, self.space, self.count)

    def __eq__(self, other: object) -> Any:
        """Which of the numbers are another: `e.type == 3`, bool[rows]."""
        return self.tensor == (other.tensor if isinstance(other, Index) else other)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{self.tensor.shape[0]} of {self.count} {self.space}"

    def check(self, table: torch.Tensor) -> None:
        """Refuse a table that has not one row for each of the things numbered; weights may have more.

        :raises SutureError: RELATION
        """
        if not table.ndim or not self._fits(table.shape[0]):
            raise _misfit(self, table)

    def _fits(self, rows: int) -> bool:
        if self.names_types:
            return not _is_symbolic(rows) and rows >= self.count
        if _is_symbolic(self.size) and not _is_symbolic(rows):
            return rows >= self.count  # while traced: a parameter with a row for each node
        return rows == self.size

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is _GET and not isinstance(args[0], Index):
            return _looked_up(args[0], args[1])
        return function(*_tensors(args), **_tensors(kwargs or {}))


def _is_symbolic(size: Any) -> bool:
    return isinstance(size, torch.SymInt)


def _misfit(index: Index, table: torch.Tensor) -> SutureError:
    what = f"{'weights' if index.names_types else 'values'} for {table.shape[0]}" if table.ndim else "a number"
    return SutureError(
        Code.RELATION, f"{what} where the graph has {index.count} {index.space}",
        remedy="every type needs a weight" if index.names_types else f"give one row for each of the {index.space}",
    )  # fmt: skip


def _looked_up(table: torch.Tensor, key: Any) -> Any:
    """What `table[key]` is for an index, or for two: `W[e.type, e.src]` has a row for every type and node."""
    if isinstance(key, Index):
        key.check(table)
        return Typed(table, key) if key.names_types else lookup(table, key.tensor)
    indices = [item for item in key if isinstance(item, Index)]
    if len(indices) != len(key):
        raise SutureError(
            Code.RELATION, "a lookup by edges together with other indices", remedy="look up first: `W[e.type][:, None]`"
        )
    flat: torch.Tensor | None = None
    for dim, index in enumerate(indices):
        index.check(table.movedim(dim, 0))
        flat = index.tensor if flat is None else flat * table.shape[dim] + index.tensor
    assert flat is not None
    return lookup(table.flatten(0, len(indices) - 1), flat)


class Lazy:
    """A value with a row for every edge that is not there yet. Any function of torch that does not know better takes it as a tensor."""

    def rows(self) -> torch.Tensor:
        """The value as a tensor."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if len(args) == 2 and not kwargs and (function in _MATMUL or function in _MUL):
            left, right = args if function is not torch.Tensor.__rmatmul__ else args[::-1]
            made = _matmul(left, right) if function in _MATMUL else _mul(left, right)
            if made is not None:
                return made
        if isinstance(args[0] if args else None, Product) and function in (torch.sum, torch.Tensor.sum):
            return args[0].sum(*args[1:], **(kwargs or {}))
        return function(*_tensors(args), **_tensors(kwargs or {}))

    def __getitem__(self, key: Any) -> Any:
        return self.rows()[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.rows(), name)

    def __matmul__(self, other: Any) -> Any:
        made = _matmul(self, other)
        return self.rows() @ _tensors(other) if made is None else made

    def __mul__(self, other: Any) -> Any:
        made = _mul(self, other)
        return self.rows() * _tensors(other) if made is None else made

    __rmul__ = __mul__


class Typed(Lazy):
    """The weights `w[t, *f]` of each edge's type: `[e, *f]`."""

    def __init__(self, weight: torch.Tensor, index: Index) -> None:
        self.weight = weight
        self.index = index

    def rows(self) -> torch.Tensor:
        """A weight for every edge, as a tensor."""
        return lookup(self.weight, self.index.tensor)

    def __repr__(self) -> str:
        return f"weights {list(self.weight.shape)} of {self.index}"


class Product(Lazy):
    """Rows times the weights of their types, element by element; summed over the last dimension it is a product by type."""

    def __init__(self, x: torch.Tensor, typed: Typed) -> None:
        self.x = x
        self.typed = typed

    def rows(self) -> torch.Tensor:
        """The products, as a tensor."""
        return self.x * self.typed.rows()

    def sum(self, dim: Any = None, keepdim: bool = False, **options: Any) -> torch.Tensor:
        """The sum over some dimensions, as torch has it."""
        last = dim in (-1, (-1,), [-1], self.x.ndim - 1)
        if not last or options or not _is_inner(self.x, self.typed.weight):
            rows = self.rows()
            return rows.sum(**options) if dim is None else rows.sum(dim, keepdim, **options)
        made = _inner(self.x, self.typed)
        return made.unsqueeze(-1) if keepdim else made


class OneHot(Lazy):
    """Features of nodes that have none but their numbers: row `k` has a one in column `numbers[k]`, `[nodes, width]`.

    A program takes them as it takes any features: `x[e.src] @ W[e.type]` are rows of `W`, and so is `x @ W`. The matrix of nodes by columns is built
    only where something else is done with them.

    :param numbers: integers `[nodes]`
    :param width: how many columns there are: as many as the weights have rows
    :raises SutureError: RELATION, if they are no integers from zero to `width - 1`
    """

    def __init__(self, numbers: torch.Tensor, width: int) -> None:
        self.numbers, self.width = integers(numbers, "one-hot numbers"), width
        inside(self.numbers, width, "one-hot numbers", "row")

    def rows(self) -> torch.Tensor:
        """The matrix, in torch's default type."""
        columns = torch.arange(self.width, device=self.numbers.device)
        return (self.numbers[:, None] == columns).to(torch.get_default_dtype())

    def __getitem__(self, key: Any) -> Any:
        return (
            _one_hot([_looked_up(self.numbers, key)], self.width)
            if isinstance(key, Index)
            else super().__getitem__(key)
        )

    def __matmul__(self, other: Any) -> Any:
        weight = other.weight if isinstance(other, Typed) else other
        if weight.ndim < 2 + isinstance(other, Typed) or weight.shape[-2] != self.width:
            raise SutureError(
                Code.RELATION, f"one-hot rows of {self.width} columns times weights [{', '.join(map(str, weight.shape))}]",
                remedy="the weights' last dimension but one has a row for each column",
            )  # fmt: skip
        if not isinstance(other, Typed):
            return lookup(weight.movedim(-2, 0), self.numbers)
        return lookup(weight.movedim(-2, 1).flatten(0, 1), other.index.tensor * self.width + self.numbers)

    def __repr__(self) -> str:
        return f"one-hot rows of {self.width} columns"


def _one_hot(numbers: Iterable[Any], width: Any) -> OneHot:
    """Rows whose numbers are known to be right, or stand for some while a program is traced."""
    made: OneHot = object.__new__(OneHot)
    (made.numbers,), made.width = numbers, width
    return made


# An argument like a tensor: programs are traced and compiled with its numbers as their input.
pytree.register_pytree_node(
    OneHot,
    lambda x: ([x.numbers], x.width),
    _one_hot,
    flatten_with_keys_fn=lambda x: ([(pytree.GetAttrKey("numbers"), x.numbers)], x.width),
    serialized_type_name="suture.relational.OneHot",
)


def _is_inner(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.ndim == weight.ndim
        and x.ndim >= 2
        and not _is_symbolic(x.shape[-1])
        and x.shape[-1] == weight.shape[-1]
        and x.dtype == weight.dtype
        and x.dtype.is_floating_point
    )


def _matmul(x: Any, other: Any) -> Any:
    """`x[e, *h, i] @ W[e.type]`, and a product of two weights of one type; None where plain tensors are meant."""
    if isinstance(x, OneHot):
        return x @ other
    if isinstance(x, Typed) and isinstance(other, Typed) and x.index is other.index:
        return Typed(x.weight @ other.weight, x.index)
    if not isinstance(other, Typed):
        remedy = "write x[e.src] @ W[e.type]: rows times matrices"
        raise SutureError(Code.RELATION, "weights of a type on the left of @", remedy=remedy)
    x, weight = _tensors(x), other.weight
    if weight.ndim == 2:
        return _inner(x, other)
    return _by_type(x, weight, other.index.tensor)


def _mul(left: Any, right: Any) -> Any:
    x, typed = (right, left) if isinstance(left, Typed) else (left, right)
    if not isinstance(typed, Typed) or isinstance(x, Lazy) or not isinstance(x, torch.Tensor):
        return None
    return Product(x, typed)


def _by_type(x: torch.Tensor, weight: torch.Tensor, type: torch.Tensor) -> torch.Tensor:
    """Rows `x[e, *h, i]` times `weight[t, *k, i, o]`: heads that only the rows have share a matrix, heads that only the weights have share a row."""
    rows, heads = list(x.shape[1:-1]), list(weight.shape[1:-2])
    if x.ndim < 2 or x.shape[-1] != weight.shape[-2]:
        raise SutureError(
            Code.RELATION, f"rows [{', '.join(map(str, x.shape))}] times matrices [{', '.join(map(str, weight.shape))}] of their types",
            remedy="the rows' last dimension is the matrices' last but one",
        )  # fmt: skip
    if all(size == 1 for size in rows) and heads and rows != heads:  # one matrix product for all heads
        wide = weight.movedim(-2, 1).flatten(2)
        made = typed_linear(x.reshape(x.shape[0], x.shape[-1]), wide, type)
        return made.reshape([x.shape[0], *heads, weight.shape[-1]])
    if rows != heads:
        both = list(torch.broadcast_shapes(rows, heads))  # type: ignore[no-untyped-call]
        x = x.reshape([x.shape[0], *[1] * (len(both) - len(rows)), *rows, x.shape[-1]])
        weight = weight.reshape([weight.shape[0], *[1] * (len(both) - len(heads)), *heads, *weight.shape[-2:]])
        x = x.expand([x.shape[0], *both, x.shape[-1]])
        weight = weight.expand([weight.shape[0], *both, *weight.shape[-2:]])
    return typed_linear(x, weight, type)


def _inner(x: torch.Tensor, typed: Typed) -> torch.Tensor:
    """The inner products of rows `x[e, *h, d]` and weights `w[t, *k, d]`."""
    return _by_type(x, typed.weight.unsqueeze(-1), typed.index.tensor).squeeze(-1)


def _tensors(item: Any) -> Any:
    """The item with everything that stands for a tensor made one."""
    match item:
        case Index():
            return item.tensor
        case Lazy():
            return item.rows()
        case tuple() | list() if not isinstance(item, torch.Size):
            return type(item)(_tensors(part) for part in item)
        case dict():
            return {name: _tensors(part) for name, part in item.items()}
    return item


def _of_rows(name: str) -> Callable[..., Any]:
    def run(self: Lazy, *others: Any) -> Any:
        return getattr(self.rows(), name)(*_tensors(others))

    return run


for _name in ("__add__", "__radd__", "__sub__", "__rsub__", "__truediv__", "__rtruediv__", "__pow__", "__neg__"):
    setattr(Lazy, _name, _of_rows(_name))
