"""What of a network may vary: widths, by prefixes of axes, and depths, by some of a stack's blocks; and one choice of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

from suture.ir.algebra import Atom
from suture.ir.axes import AxisTable
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph
from suture.ir.regions import Stack, stack_at
from suture.passes.registry import Notes
from suture.passes.sites import matching, select

Amount: TypeAlias = "int | float"


@dataclass(frozen=True)
class Width:
    """Axes of which a sub-network keeps a prefix: channels, heads, feed-forward units, the residual width.

    :param at: the module whose output is narrowed, as a pattern: the outermost free axis that it writes
    :param sizes: how many indices a sub-network may keep, or shares of the axis; the whole is always among them
    :param kind: which of several axes: feature, head, head_width, group
    :param together: whether the axes that match vary as one, or each is a dimension of its own
    """

    at: str
    sizes: tuple[Amount, ...]
    kind: str | None = None
    name: str = ""
    together: bool = True


@dataclass(frozen=True)
class Depth:
    """A stack of which a sub-network keeps some blocks.

    :param at: the stack, by its module path
    :param sizes: how many blocks a sub-network may keep; all is always among them
    :param keep: which: the first ones (prefix), or such as lie evenly, the first and the last among them
    :param order: instead, the blocks in the order in which they are taken
    """

    at: str | None
    sizes: tuple[int, ...]
    keep: Literal["prefix", "even"] = "prefix"
    order: tuple[int, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Choice:
    """How much of each dimension a sub-network keeps."""

    amounts: tuple[tuple[str, Amount], ...]

    def __getitem__(self, name: str) -> Amount:
        """What is kept of a dimension."""
        return dict(self.amounts)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.amounts)

    def inside(self, other: Choice) -> bool:
        """Whether this sub-network is nested in another: it keeps no more of any dimension."""
        return all(amount <= other[name] for name, amount in self.amounts)

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount:g}" for name, amount in self.amounts)


@dataclass(frozen=True, eq=False)
class ElasticWidth:
    """A width, resolved on a graph: its atoms, and the amounts, ascending, the last of which is the whole."""

    name: str
    atoms: tuple[Atom, ...]
    amounts: tuple[Amount, ...]

    def sizes(self, amount: Amount) -> dict[Atom, int]:
        """How many indices of each atom stay."""
        return {atom: amount if isinstance(amount, int) else _share(atom, amount) for atom in self.atoms}


@dataclass(frozen=True, eq=False)
class ElasticDepth:
    """A depth, resolved on a graph: its stack, and its blocks in the order in which they are taken."""

    name: str
    stack: Stack
    order: tuple[int, ...]
    amounts: tuple[Amount, ...]

    def blocks(self, amount: Amount) -> tuple[int, ...]:
        """The blocks that stay, from front to back."""
        return tuple(sorted(self.order[: int(amount)]))


def resolve_width(table: AxisTable, width: Width) -> list[ElasticWidth]:
    """The dimensions that a width means.

    :raises SutureError: SITE, if no module matches; ELASTIC, if the axis is pinned or a size does not fit it
    """
    known = table.find(width.at)
    if known is not None:
        found = [known]
    else:
        matched = matching(table, [width.at], None, None if width.kind is None else [width.kind])
        found = select(table, [info for info in matched if info.pin is None], (), False, Notes())
        pinned = next((info for info in matched if info.pin is not None), None)
        if not found:
            what = f"{pinned.name} is pinned: {pinned.pin}" if pinned else f"it writes no axis of kind {width.kind}"
            raise SutureError(Code.ELASTIC, what, where=width.at, remedy="name a module that writes a free axis")
    if known is not None and known.pin is not None:
        raise SutureError(Code.ELASTIC, f"{known.name} is pinned: {known.pin}", remedy="name a free axis")
    groups = [found] if width.together else [[info] for info in found]
    dimensions = []
    for group in groups:
        name = width.name or width.at
        if not width.together and len(groups) > 1:
            name = f"{name}/{group[0].name}"
        atoms = tuple(info.atom for info in group)
        dimensions.append(ElasticWidth(name, atoms, _amounts(width, atoms, name)))
    return dimensions


def resolve_depth(graph: Graph, depth: Depth) -> ElasticDepth:
    """The dimension that a depth means.

    :raises SutureError: SITE or REGION, if there is no such stack; ELASTIC, if a size does not fit it
    """
    stack = stack_at(graph, depth.at)
    count = len(stack)
    wrong = [size for size in depth.sizes if not 1 <= size <= count]
    if wrong:
        raise SutureError(
            Code.ELASTIC, f"{wrong[0]} of {count} blocks", where=stack.name, remedy=f"1 to {count} would be right"
        )
    if stack.entry.type != stack.exit.type:
        raise SutureError(
            Code.ELASTIC, f"the blocks take {stack.entry.type} and give {stack.exit.type}", where=stack.name,
            remedy="blocks that keep the type of their stream can be left out",
        )  # fmt: skip
    order = depth.order or (tuple(range(count)) if depth.keep == "prefix" else evenly(count))
    if sorted(order) != list(range(count)):
        raise SutureError(
            Code.ELASTIC, f"the order {order} does not name every block once", where=stack.name,
            remedy=f"the numbers 0 to {count - 1} would be right",
        )  # fmt: skip
    return ElasticDepth(depth.name or stack.name, stack, order, tuple(sorted({*depth.sizes, count})))


def evenly(count: int) -> tuple[int, ...]:
    """The numbers below `count` in such an order that those taken so far lie about evenly: first, last, then the middle of the widest gap.

    Selections at exactly equal steps are not nested in one another; these are.
    """
    taken = list(range(min(count, 2))) if count < 3 else [0, count - 1]
    while len(taken) < count:
        held = sorted(taken)
        gaps = [(later - earlier, -earlier) for earlier, later in pairwise(held)]
        width, start = max(gaps)
        taken.append(-start + width // 2)
    return tuple(taken)


def _amounts(width: Width, atoms: Sequence[Atom], name: str) -> tuple[Amount, ...]:
    sizes = {_fixed(atom) for atom in atoms}
    if all(isinstance(amount, float) for amount in width.sizes):
        if not all(0 < amount <= 1 for amount in width.sizes):
            raise SutureError(
                Code.ELASTIC, f"the shares {width.sizes}", where=name, remedy="above 0 and at most 1 would be right"
            )
        return tuple(sorted({*width.sizes, 1.0}))
    if len(sizes) > 1:
        raise SutureError(
            Code.ELASTIC, f"axes of {', '.join(map(str, sorted(sizes)))} indices vary together", where=name,
            remedy="give shares such as 0.5, or together=False",
        )  # fmt: skip
    whole = sizes.pop()
    wrong = [amount for amount in width.sizes if not isinstance(amount, int) or not 1 <= amount <= whole]
    if wrong:
        raise SutureError(
            Code.ELASTIC, f"{wrong[0]} of {whole} indices", where=name, remedy=f"1 to {whole} would be right"
        )
    return tuple(sorted({*width.sizes, whole}))


def _share(atom: Atom, amount: float) -> int:
    return max(1, int(amount * _fixed(atom) + 0.5))


def _fixed(atom: Atom) -> int:
    assert isinstance(atom.size, int)
    return atom.size


def complete(dimensions: Sequence[ElasticWidth | ElasticDepth], amounts: Mapping[str, Amount]) -> Choice:
    """A choice from the amounts of some dimensions; of the others it keeps all.

    :raises SutureError: ELASTIC, if a dimension or an amount does not exist
    """
    known = {dimension.name: dimension for dimension in dimensions}
    for name, amount in amounts.items():
        if name not in known:
            raise SutureError(
                Code.ELASTIC, f"there is no dimension {name!r}", remedy=nearest(name, known, what="dimension")
            )
        if amount not in known[name].amounts:
            allowed = ", ".join(f"{each:g}" for each in known[name].amounts)
            raise SutureError(Code.ELASTIC, f"{amount:g} of {name}", remedy=f"{allowed} would be right")
    return Choice(tuple((d.name, amounts.get(d.name, d.amounts[-1])) for d in dimensions))
