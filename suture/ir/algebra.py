"""The axis algebra: expressions over atoms, and unification by refinement.

An axis is an atom of some size, a row-major product of axes, or a concatenation of axes. Two dimensions that must change together are unified:
atoms are bound to finer expressions until both sides read the same. What cannot be reconciled is pinned, with the reason kept.

Atoms are bound in place, as in a union-find: an expression made early reads finer after a later unification. `resolve` gives the present reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from suture.ir.sizes import Dim, exact_quotient, product


@dataclass(frozen=True, slots=True)
class Pin:
    """Why an axis may not change: a reason, and the place it comes from."""

    reason: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.reason}{f' ({self.where})' if self.where else ''}"


class Atom:
    """An axis without inner structure, as far as anything seen so far can tell.

    `rigid` says that dimensions met in it which do not agree: its indices cannot be told apart at all.
    """

    __slots__ = ("binding", "number", "pin", "rigid", "size")

    def __init__(self, number: int, size: Dim) -> None:
        self.number = number
        self.size = size
        self.pin: Pin | None = None
        self.rigid = False
        self.binding: Axis | None = None

    def __repr__(self) -> str:
        return f"a{self.number}"


@dataclass(frozen=True, slots=True)
class Times:
    """Row-major product; the first factor is the outermost. The empty product is the axis of size one."""

    factors: tuple[Axis, ...]

    def __repr__(self) -> str:
        return "*".join(f"({factor})" if isinstance(factor, Chain) else str(factor) for factor in self.factors) or "1"


@dataclass(frozen=True, slots=True)
class Chain:
    """Concatenation, in order."""

    parts: tuple[Axis, ...]

    def __repr__(self) -> str:
        return "|".join(str(part) for part in self.parts)


Axis: TypeAlias = "Atom | Times | Chain"

UNIT = Times(())


def size_of(axis: Axis) -> Dim:
    """The size of an axis."""
    match axis:
        case Atom():
            return axis.size
        case Times(factors):
            return product([size_of(factor) for factor in factors])
        case Chain(parts):
            total: Dim = 0
            for part in parts:
                total = total + (part.size if isinstance(part, Atom) else size_of(part))
            return total


def times(factors: Sequence[Axis]) -> Axis:
    """The product in normal form: flat, without factors of size one."""
    flat: list[Axis] = []
    for factor in factors:
        if isinstance(factor, Times):
            flat += factor.factors
        elif not (isinstance(factor, Atom) and factor.size == 1):
            flat.append(factor)
    return flat[0] if len(flat) == 1 else Times(tuple(flat))


def chain(parts: Sequence[Axis]) -> Axis:
    """The concatenation in normal form: flat, without empty parts."""
    flat: list[Axis] = []
    for part in parts:
        if isinstance(part, Chain):
            flat += part.parts
        elif size_of(part) != 0:
            flat.append(part)
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def resolve(axis: Axis) -> Axis:
    """The present reading of an axis: bound atoms replaced by what they are bound to."""
    match axis:
        case Atom():
            if axis.binding is None:
                return axis
            axis.binding = resolve(axis.binding)
            return axis.binding
        case Times(factors):
            found = [resolve(factor) for factor in factors]
            return axis if all(a is b for a, b in zip(found, factors, strict=True)) else times(found)
        case Chain(parts):
            found = [resolve(part) for part in parts]
            return axis if all(a is b for a, b in zip(found, parts, strict=True)) else chain(found)


def atoms_of(axis: Axis) -> Iterator[Atom]:
    """The atoms of a resolved axis, in order; an atom may come more than once."""
    match axis:
        case Atom():
            yield axis
        case Times(inner) | Chain(inner):
            for part in inner:
                yield from atoms_of(part)


class Algebra:
    """Makes atoms and unifies axes."""

    def __init__(self) -> None:
        self.count = 0

    def atom(self, size: Dim) -> Atom:
        """A fresh atom."""
        self.count += 1
        return Atom(self.count - 1, size)

    def pin(self, axis: Axis, pin: Pin) -> None:
        """Forbid every atom of an axis to change; the first reason stays."""
        for atom in atoms_of(resolve(axis)):
            if atom.pin is None:
                atom.pin = pin

    def unify(self, left: Axis, right: Axis, where: str = "") -> None:
        """Make two axes of equal size read the same."""
        a, b = resolve(left), resolve(right)
        if a is b or a == UNIT or b == UNIT:
            return
        if size_of(a) != size_of(b):
            self._pin_all([a, b], Pin("sizes that do not agree meet here", where))
            return
        match a, b:
            case Atom(), Atom():
                older, newer = (a, b) if a.number < b.number else (b, a)
                self._bind(newer, older, where)
            case Atom(), _:
                self._bind(a, b, where)
            case _, Atom():
                self._bind(b, a, where)
            case Chain(), Chain():
                self._unify_chains(list(a.parts), list(b.parts), where)
            case Chain(), Times():
                self._unify_chain_with_factors(a, list(b.factors), where)
            case Times(), Chain():
                self._unify_chain_with_factors(b, list(a.factors), where)
            case Times(), Times():
                self._unify_products(list(a.factors), list(b.factors), where)

    def cut(self, axis: Axis, offset: Dim, where: str = "") -> tuple[Axis, Axis] | None:
        """Split a resolved axis in two at an offset, refining the atoms that the cut falls into; None if a symbolic size hides where it falls.

        A cut inside a row of a product takes that row out as a part of its own and cuts it: `a*b` at 3 with b = 2 reads `p*b|b0` and `b1|r*b`, where
        a = p|1|r and b = b0|b1. Repeated, this goes down to single indices.
        """
        match axis:
            case Atom():
                left, right = self.atom(offset), self.atom(axis.size - offset)
                self._bind(axis, Chain((left, right)), where)
                return left, right
            case Chain(parts):
                passed: Dim = 0
                for k, part in enumerate(parts):
                    if passed == offset:
                        return chain(parts[:k]), chain(parts[k:])
                    reached = passed + size_of(part)
                    if _less(offset, reached):
                        halves = self.cut(part, offset - passed, where)
                        return (
                            None
                            if halves is None
                            else (chain([*parts[:k], halves[0]]), chain([halves[1], *parts[k + 1 :]]))
                        )
                    passed = reached
                return None
            case Times(factors):
                inner = product([size_of(factor) for factor in factors[1:]])
                position = exact_quotient(offset, inner)
                if position is not None:
                    halves = self.cut(factors[0], position, where)
                    return (
                        None if halves is None else (times([halves[0], *factors[1:]]), times([halves[1], *factors[1:]]))
                    )
                if not isinstance(offset, int) or not isinstance(inner, int):
                    return None
                return self._cut_inside_row(list(factors), offset, inner, where)

    def _cut_inside_row(self, factors: list[Axis], offset: int, inner: int, where: str) -> tuple[Axis, Axis] | None:
        row, rest = offset // inner, size_of(factors[0])
        before: Axis = Chain(())
        row_and_after: Axis = factors[0]
        if row > 0:
            halves = self.cut(factors[0], row, where)
            if halves is None:
                return None
            before, row_and_after = halves
        after: Axis = Chain(())
        if rest - row != 1:
            halves = self.cut(resolve(row_and_after), 1, where)
            if halves is None:
                return None
            after = halves[1]
        # Cutting the row may refine atoms that the rows before and after share: they are resolved afterwards.
        inner_halves = self.cut(resolve(times([resolve(f) for f in factors[1:]])), offset - row * inner, where)
        if inner_halves is None:
            return None
        tail = [resolve(f) for f in factors[1:]]
        left = chain([*([times([resolve(before), *tail])] if row > 0 else []), inner_halves[0]])
        right = chain([inner_halves[1], *([times([resolve(after), *tail])] if rest - row != 1 else [])])
        return left, right

    def _bind(self, atom: Atom, axis: Axis, where: str) -> None:
        if any(inner is atom for inner in atoms_of(axis)):
            self._pin_all([axis], Pin("an axis would have to be a part of itself", where))
            return
        atom.binding = axis
        if atom.pin is not None:
            self.pin(axis, atom.pin)
        for inner in atoms_of(resolve(axis)) if atom.rigid else ():
            inner.rigid = True

    def _pin_all(self, axes: Sequence[Axis], pin: Pin) -> None:
        for axis in axes:
            self.pin(axis, pin)
            for atom in atoms_of(resolve(axis)):
                atom.rigid = True

    def _unify_chains(self, left: list[Axis], right: list[Axis], where: str) -> None:
        """Cut both at their common offsets."""
        while left and right:
            a, b = resolve(left.pop(0)), resolve(right.pop(0))
            if isinstance(a, Chain) or isinstance(b, Chain):  # refined meanwhile
                left[:0] = a.parts if isinstance(a, Chain) else [a]
                right[:0] = b.parts if isinstance(b, Chain) else [b]
                continue
            size_a, size_b = size_of(a), size_of(b)
            if size_a == size_b:
                self.unify(a, b, where)
                continue
            longer, shorter_size = (b, size_a) if _less(size_a, size_b) else (a, size_b)
            halves = self.cut(longer, shorter_size, where) if _comparable(size_a, size_b) else None
            if halves is None:
                self._pin_all([a, b, *left, *right], Pin("a cut falls inside a factor", where))
                return
            if longer is b:
                left.insert(0, a)
                right[:0] = halves
            else:
                left[:0] = halves
                right.insert(0, b)

    def _unify_chain_with_factors(self, joined: Chain, factors: list[Axis], where: str) -> None:
        """Read `p|q|..` as `f*rest`.

        Parts of `rest` each are unified with it, and `f`, which only counts them, is pinned; else the product is cut where the chain is.
        """
        rest = times(factors[1:])
        if all(size_of(part) == size_of(rest) for part in joined.parts):
            self._pin_all([factors[0]], Pin("it counts the parts of a concatenation", where))
            for part in joined.parts:
                self.unify(part, rest, where)
            return
        self._unify_chains(list(joined.parts), [times(factors)], where)

    def _unify_products(self, left: list[Axis], right: list[Axis], where: str) -> None:
        """Cut both at the common cumulative sizes, from the left; the shortest run that does not nest is pinned."""
        while left and right:
            a, b = resolve(left[0]), resolve(right[0])
            if isinstance(a, Times) or isinstance(b, Times):  # refined meanwhile
                left[:1] = a.factors if isinstance(a, Times) else [a]
                right[:1] = b.factors if isinstance(b, Times) else [b]
                continue
            size_a, size_b = size_of(a), size_of(b)
            if size_a == size_b:
                self.unify(left.pop(0), right.pop(0), where)
                continue
            swapped = exact_quotient(size_b, size_a) is None
            longer, shorter = (a, b) if swapped else (b, a)
            others, own = (right, left) if swapped else (left, right)
            ratio = exact_quotient(size_of(longer), size_of(shorter))
            if ratio is None:
                self._pin_run(left, right, where)
            elif isinstance(longer, Atom):
                first, second = self.atom(size_of(shorter)), self.atom(ratio)
                self._bind(longer, Times((first, second)), where)
                own[:1] = [first, second]
            else:
                run = _leading_run(others, size_of(longer))
                if run is None:
                    self._pin_run(left, right, where)
                    continue
                factors = others[:run]
                del others[:run], own[0]
                self._unify_chain_with_factors(longer, factors, where)

    def _pin_run(self, left: list[Axis], right: list[Axis], where: str) -> None:
        run_left, run_right = [left.pop(0)], [right.pop(0)]
        a, b = size_of(run_left[0]), size_of(run_right[0])
        while a != b and (left or right):
            if left and (_less(a, b) or not right):
                run_left.append(left.pop(0))
                a = a * size_of(run_left[-1])
            else:
                run_right.append(right.pop(0))
                b = b * size_of(run_right[-1])
        self._pin_all([*run_left, *run_right], Pin("sizes do not nest", where))


def _leading_run(factors: Sequence[Axis], size: Dim) -> int | None:
    reached: Dim = 1
    for count, factor in enumerate(factors, start=1):
        reached = reached * size_of(resolve(factor))
        if reached == size:
            return count
    return None


def _comparable(a: Dim, b: Dim) -> bool:
    return isinstance(a - b, int)


def _less(a: Dim, b: Dim) -> bool:
    difference = a - b
    return difference < 0 if isinstance(difference, int) else exact_quotient(b, a) is not None
