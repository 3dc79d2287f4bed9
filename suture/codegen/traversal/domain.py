"""The domain of a traversal as axes: cut where reshapes inside need it, so that no index needs a division, and joined again where memory allows.

A group is first written down with a variable for each dimension. Divisions that stand in its indices say where to cut; when none is left, every
address is linear in the variables, and two neighbours whose steps in memory fit together in all operands become one loop.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from suture.codegen.access import Access, Index, is_regrouping, is_view, regrouped
from suture.codegen.builder import KernelBuilder, Lane, broadcast
from suture.codegen.groups import REDUCTIONS, Group, reduced_dims
from suture.codegen.indices import Indices
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context
from suture.ir.graph import Node, Value
from suture.ir.kernel import Buffer, Expression, Let, Literal, Load, Name, Store, expressions_of, names_in, parts
from suture.ir.sizes import Dim, Size, exact_quotient, parse_size, product, substitute, symbol, symbols_of

_CUTS = 16  # at most so many axes


@dataclass(frozen=True)
class Axis:
    """One variable of the domain."""

    name: str
    size: Dim
    reduced: bool = False


@dataclass(frozen=True)
class Domain:
    """The dimensions of a group's domain as axes, outermost first; a dimension of size 1 has none."""

    dims: tuple[tuple[Axis, ...], ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes, outermost first."""
        return tuple(axis for dim in self.dims for axis in dim)

    def index(self, builder: KernelBuilder) -> Index:
        """The index of an element over the axes' variables."""
        return tuple(
            builder.indices.horner([Name(axis.name) for axis in dim], [builder.size(axis.size) for axis in dim])
            for dim in self.dims
        )

    def bind(self, builder: KernelBuilder) -> None:
        """Make the axes' variables known."""
        for axis in self.axes:
            builder.variable(axis.name, Literal(0), builder.size(axis.size))

    def cut(self, name: str, inner: Dim) -> Domain:
        """One axis as two."""
        dims = []
        for dim in self.dims:
            found: list[Axis] = []
            for axis in dim:
                if axis.name != name:
                    found.append(axis)
                    continue
                outer = exact_quotient(axis.size, inner)
                assert outer is not None
                found += [
                    Axis(f"{name}o", outer, axis.reduced),
                    Axis(f"{name}i", inner, axis.reduced),
                ]
            dims.append(tuple(found))
        return Domain(tuple(dims))


@dataclass(frozen=True)
class Run:
    """Axes that one loop runs over, outermost first, and the step in memory of each in units of the innermost."""

    axes: tuple[Axis, ...]

    @property
    def name(self) -> str:
        """The loop's variable; a single number has one too, which is always zero."""
        return "".join(axis.name for axis in self.axes) or "i"

    @property
    def size(self) -> Dim:
        """How many elements it runs over."""
        return product([axis.size for axis in self.axes])

    @property
    def reduced(self) -> bool:
        """Whether it is reduced."""
        return bool(self.axes) and self.axes[0].reduced

    def steps(self) -> Iterator[tuple[Axis, Dim]]:
        """Each axis with what the run's variable grows by when the axis grows by one."""
        step: Dim = 1
        for axis in reversed(self.axes):
            yield axis, step
            step = step * axis.size


@dataclass
class Touch:
    """An element that the group reads or writes: where it lies, over the axes.

    :param hidden: axes that the index depends on otherwise than a polynomial
    :param looked: axes that decide which element it is through an index that is read
    """

    buffer: Buffer
    index: tuple[Dim, ...]
    shape: tuple[Dim, ...]
    hidden: frozenset[str] = frozenset()
    looked: frozenset[str] = frozenset()

    def step(self, axis: str) -> Dim | None:
        """What the address grows by when an axis grows by one; None where it is not linear in it."""
        if axis in self.hidden:
            return None
        total: Dim = 0
        below: Dim = 1
        for at, size in zip(reversed(self.index), reversed(self.shape), strict=True):
            factor = coefficient(at, axis)
            if factor is None:
                return None
            total = total + factor * below
            below = below * size
        return total


@dataclass
class Survey:
    """What a group touches: its elements in memory, and the axes that something else than an address depends on."""

    domain: Domain
    touches: list[Touch] = field(default_factory=list)
    loose: set[str] = field(default_factory=set)
    symbols: dict[str, Dim] = field(default_factory=dict)
    sizes: dict[str, Dim] = field(default_factory=dict)


def plain_domain(group: Group) -> Domain:
    """An axis for each dimension."""
    return Domain(
        tuple(
            () if size == 1 else (Axis(f"d{k}", size, k in group.reduced),)
            for k, size in enumerate(start_of(group).shape)
        )
    )


def survey(group: Group, context: Context) -> Survey:
    """Write the group down, cutting axes until no division is left that a cut would take away."""
    domain = plain_domain(group)
    for _ in range(_CUTS):
        found = _survey(group, context, domain)
        cut = next(cuts(found), None)
        if cut is None:
            return found
        domain = domain.cut(*cut)
    return found


def _survey(group: Group, context: Context, domain: Domain) -> Survey:
    builder = KernelBuilder(context, group.nodes, "survey")
    found = Survey(domain)
    for axis in domain.axes:
        found.sizes[axis.name] = builder.indices.dim(builder.size(axis.size))
    domain.bind(builder)
    places = place_values(group, domain, builder)
    registers: dict[Value, Expression] = {
        node.output: Name(f"r{k}", compute_type(node.output.dtype)) for k, node in enumerate(group.reductions)
    }
    lane = PassLane(builder, registers)
    for node in group.reductions:
        operand = node.inputs[0]
        assert operand is not None
        lane.value(operand, places[operand])
    for value in group.outputs:
        lane.store(value, places[value], lane.value(value, places[value]))
    for name in {each for axis in domain.axes for each in symbols_of(axis.size)} | _symbols(group):
        made = builder.size(symbol(name))
        assert isinstance(made, Name)
        found.symbols[made.name] = symbol(name)
    collect(lane, found)
    return found


def _symbols(group: Group) -> set[str]:
    values = [value for node in group.nodes for value in (*node.inputs, *node.outputs) if value is not None]
    return {name for value in values for dim in value.shape for name in symbols_of(dim)}


def collect(lane: Lane, found: Survey) -> None:
    """Enter what the statements of a lane touch."""
    indices = lane.builder.indices
    names = {axis.name for axis in found.domain.axes}
    seen: set[tuple[str, tuple[Expression, ...]]] = set()
    behind: dict[str, frozenset[str]] = {}  # the axes that a name follows from

    def touch(buffer: Buffer, index: Sequence[Expression]) -> None:
        if (buffer.name, tuple(index)) not in seen:
            seen.add((buffer.name, tuple(index)))
            shape = tuple(indices.dim(size) for size in buffer.shape)
            place = tuple(indices.dim(at) for at in index)
            opaque = {name: made for made, name in indices.ranges.elements.items()}
            inner = [opaque[name] for at in place for name in symbols_of(at) if name in opaque]
            hidden = frozenset(name for each in inner for name in names_in(each))
            looked = frozenset(axis for at in index for name in names_in(at) for axis in behind.get(name, ()))
            found.touches.append(Touch(buffer, place, shape, hidden, looked))

    def visit(expression: Expression) -> None:
        if isinstance(expression, Load):
            touch(expression.buffer, expression.index)
            for at in expression.index:
                for part in parts(at):
                    if isinstance(part, Load):
                        visit(part)
        elif isinstance(expression, Name):
            found.loose.update({expression.name} & names)
        elif not isinstance(expression, Literal):
            for operand in expression.operands:
                visit(operand)

    for statement in lane.statements:
        if isinstance(statement, Let):
            used = names_in(statement.value)
            behind[statement.name.name] = (used & names).union(*(behind.get(name, frozenset()) for name in used))
        if isinstance(statement, Store):
            touch(statement.buffer, statement.index)
            visit(statement.value)
        else:
            for expression in expressions_of(statement):
                visit(expression)


class PassLane(Lane):
    """A lane to which some values are known whatever their index: a row's numbers, and what is kept from an earlier pass.

    :param registers: where they are
    """

    def __init__(self, builder: KernelBuilder, registers: Mapping[Value, Expression]) -> None:
        super().__init__(builder)
        self.registers = registers

    def value(self, value: Value, index: Sequence[Expression]) -> Expression:
        """An element of a value, in the type that it is computed in."""
        found = self.registers.get(value)
        return super().value(value, index) if found is None else found


# where values stand


def place_values(group: Group, domain: Domain, builder: KernelBuilder) -> dict[Value, Index]:
    """The index of each of the group's values over the axes, seen through views that only regroup.

    A value that is only read through other views has none: it is computed where it is read.
    """
    places: dict[Value, Index] = {}
    links = list(group.nodes)
    links += views_between(group)
    access = Access(builder.indices, builder.size, builder.place, _no_guard)
    starts = [start_of(group), *(node.inputs[0] for node in group.reductions)]
    for start in starts:  # what is reduced side by side need not read one another
        if start is not None and start not in places:
            places[start] = domain.index(builder)
            _spread(group, links, access, places)
    full = start_of(group).shape
    for node in group.nodes:  # what a row's number meets that has nothing else to do with what was reduced
        alike = not is_view(node) and node.outputs[0].shape == full
        if alike and node.outputs[0] not in places and any(value in places for value in node.inputs):
            places[node.outputs[0]] = domain.index(builder)
            _spread(group, links, access, places)
    return places


def _spread(group: Group, links: Sequence[Node], access: Access, places: dict[Value, Index]) -> None:
    """From values whose index is known to those beside them, down the group and up again: a long chain takes a turn, not one for each link."""
    changed, own = True, frozenset(group.nodes)
    while changed:
        known = len(places)
        for node in itertools.chain(links, reversed(links)):
            if node.operator.name in REDUCTIONS and node in own:
                place_reduction(node, places)
            elif is_regrouping(node):
                place_view(access, node, places)
            elif not is_view(node):
                place_pointwise(node, places)
        changed = len(places) > known


def start_of(group: Group) -> Value:
    """The value whose dimensions are the domain's: what is reduced, else what is computed last."""
    last = group.outputs[-1] if group.outputs else group.nodes[-1].outputs[0]
    found = group.reductions[0].inputs[0] if group.reductions else last
    assert found is not None
    return found


def views_between(group: Group) -> list[Node]:
    """The regrouping views through which the group's nodes read one another."""
    found: dict[Node, None] = {}
    own = frozenset(group.nodes)
    waiting = [value for node in group.nodes for value in node.inputs]
    while waiting:
        value = waiting.pop()
        node = value.producer if value is not None else None
        if node is not None and node not in found and node not in own and is_regrouping(node):
            found[node] = None
            waiting += node.inputs
    return list(found)


def place_reduction(node: Node, places: dict[Value, Index]) -> None:
    """From the operand of a reduction to its result."""
    operand, result = node.inputs[0], node.output
    assert operand is not None
    if operand in places and result not in places:
        dims = reduced_dims(node)
        index = places[operand]
        keep = bool(node.attributes["keepdim"])
        places[result] = tuple(Literal(0) if k in dims else at for k, at in enumerate(index) if keep or k not in dims)


def place_view(access: Access, node: Node, places: dict[Value, Index]) -> None:
    """Between the two sides of a view that only regroups."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if source in places and result not in places:
        places[result] = regrouped(access, node, places[source], forwards=True)
    elif result in places and source not in places:
        places[source] = regrouped(access, node, places[result], forwards=False)


def place_pointwise(node: Node, places: dict[Value, Index]) -> None:
    """Between a pointwise node's operands and its result."""
    if len(node.outputs) != 1:
        return
    result = node.output
    for operand in node.inputs:
        if operand is None:
            continue
        if result not in places and operand in places and operand.shape == result.shape:
            places[result] = places[operand]
        if result in places and operand not in places:
            places[operand] = broadcast(operand, result, places[result])


def _no_guard() -> AbstractContextManager[None]:
    raise AssertionError("a regrouping reads without a condition")


# cutting and joining


def cuts(found: Survey) -> Iterator[tuple[str, Dim]]:
    """Axes, and inner sizes to cut them at."""
    for touch in found.touches:
        for at in touch.index:
            for left, right in _divisions(at):
                for axis in found.domain.axes:
                    factor = coefficient(left, axis.name)
                    if factor is None or factor == 0:
                        continue
                    inner = exact_quotient(right, factor)
                    if inner is None or inner == 1:
                        continue
                    inner = substitute(inner, found.symbols)
                    outer = exact_quotient(axis.size, inner)
                    if outer is not None and outer != 1:
                        yield axis.name, inner


def _divisions(dim: Dim) -> Iterator[tuple[Dim, Dim]]:
    """What is divided by what in an index."""
    for monomial, _ in dim.terms if isinstance(dim, Size) else ():
        for factor in monomial:
            if factor.isidentifier():
                continue
            tree = ast.parse(factor, mode="eval").body
            if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.FloorDiv | ast.Mod):
                left = parse_size(ast.unparse(tree.left))
                yield left, parse_size(ast.unparse(tree.right))
                yield from _divisions(left)


def coefficient(dim: Dim, name: str) -> Dim | None:
    """The factor of a variable in a polynomial; None if it is not linear in it."""
    total: Dim = 0
    for monomial, factor in dim.terms if isinstance(dim, Size) else ():
        count = monomial.count(name)
        if count > 1 or any(not each.isidentifier() and name in symbols_of(parse_size(each)) for each in monomial):
            return None
        if count:
            term: Dim = factor
            for each in monomial:
                if each != name:
                    term = term * parse_size(each)
            total = total + term
    return total


def join(found: Survey) -> tuple[Run, ...]:
    """The loops: neighbouring axes whose steps in memory fit together in everything touched are one."""
    steps = {axis.name: [touch.step(axis.name) for touch in found.touches] for axis in found.domain.axes}
    runs = [Run((axis,)) for axis in found.domain.axes]

    def fits(outer: Run, inner: Run) -> bool:
        names = {axis.name for axis in (*outer.axes, *inner.axes)}
        if outer.reduced != inner.reduced or names & found.loose:
            return False
        size = product([found.sizes[axis.name] for axis in inner.axes])
        pairs = zip(steps[outer.axes[-1].name], steps[inner.axes[-1].name], strict=True)
        return all(a is not None and b is not None and a == b * size for a, b in pairs)

    changed = True
    while changed:
        changed = False
        for outer in runs:
            inner = next((each for each in runs if each is not outer and fits(outer, each)), None)
            if inner is not None:
                runs[runs.index(outer)] = replace(outer, axes=(*outer.axes, *inner.axes))
                runs.remove(inner)
                changed = True
                break
    return tuple(runs)


def mentions(index: Iterable[Expression], axes: Iterable[Axis]) -> bool:
    """Whether an index depends on one of the axes."""
    names = {axis.name for axis in axes}
    return any(names & names_in(at) for at in index)


__all__ = [
    "Axis", "Domain", "Indices", "PassLane", "Run", "Survey", "coefficient", "collect", "cuts", "join", "mentions", "place_pointwise",
    "place_reduction", "place_values", "place_view", "survey",
]  # fmt: skip
