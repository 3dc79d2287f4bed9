"""What keeps lanes and blocks apart: whether two of them could have the same index.

An index is a number in mixed radix: a variable is determined where its factor is larger than what all places below it can add up to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from suture.ir.kernel import Buffer, Load
from suture.ir.kernel_ranges import SIDES, Ranges, divisors_of, factors_of, parse_opaque, product_of
from suture.ir.sizes import Dim, Size, floor_divide, modulo, parse_size, symbol, symbols_of


def separates(ranges: Ranges, index: Sequence[Dim], lanes: Sequence[str]) -> str | None:
    """The first of the lanes' variables that two lanes may have different and yet the same index; None if there is none.

    A variable is determined by a dimension in which everything else is determined, or which reads as a number in mixed radix: the factor of
    each place is larger than what all places below it can add up to. What lies between two neighbouring pointers that do not fall determines
    which segment it is, and one of several distinct elements which of them it is. What a condition says to be zero is the same for both lanes.
    """
    known: set[str] = set()
    segments: list[_Segment] = []
    waiting: list[Mapping[str, Dim] | None] = []
    entering, distinct = [*index, *_equalities(ranges)], _distinct(ranges)
    changed = True
    while changed:
        changed = False
        entering += [distinct.pop(name) for name in sorted(known) if name in distinct]
        while entering:
            dim = entering.pop(0)
            found = list(_segments(ranges, dim))
            segments += found
            waiting += [_places(ranges, each) for each in (dim, *(each.number for each in found))]
        known |= {lane for lane in lanes if lane not in known and ranges.is_single(lane)}
        known |= {name for each in segments if each.variables(ranges) <= known for name in each.ends}
        known |= set(_forced(ranges, known))
        for places in (*waiting, *(_places(ranges, dim) for dim in _recombined(known))):
            if places is None:
                continue
            unknown = {atom: factor for atom, factor in places.items() if not _is_known(ranges, atom, known)}
            if unknown and _is_radix(ranges, unknown):
                known |= set(unknown)
                changed = True
    return next((lane for lane in lanes if lane not in known), None)


def _is_known(ranges: Ranges, atom: str, known: set[str]) -> bool:
    """Whether a variable is determined, or all those that a quotient or remainder depends on."""
    return atom in known or all(name in known or name not in ranges.variables for name in symbols_of(parse_size(atom)))


def _equalities(ranges: Ranges) -> list[Dim]:
    """What conditions say to be zero."""
    facts = frozenset(ranges.facts)
    return [fact for fact in dict.fromkeys(ranges.facts) if isinstance(fact, Size) and fact * -1 in facts]


def _distinct(ranges: Ranges) -> dict[str, Dim]:
    """The elements that differ from all others of their buffer, and which of them each is."""
    return {
        name: ranges.dim(load.index[0])
        for load, name in list(ranges.elements.items())
        if isinstance(load, Load) and load.buffer.bound is not None and load.buffer.bound.distinct and len(load.index) == 1
    }  # fmt: skip


@dataclass(frozen=True)
class _Segment:
    """A segment that an index lies in.

    :param number: which it is
    :param ends: the elements that say where it begins and ends
    """

    number: Dim
    ends: tuple[str, str]

    def variables(self, ranges: Ranges) -> set[str]:
        """The variables that its number depends on."""
        return {name for name in symbols_of(self.number) if name in ranges.variables}


def _segments(ranges: Ranges, dim: Dim) -> Iterator[_Segment]:
    """The segments that a number is proved to lie in: pointers rise, so that no number lies in two."""
    rising: dict[tuple[Buffer, Dim], str] = {}
    for load, name in list(ranges.elements.items()):
        if (
            isinstance(load, Load)
            and load.buffer.bound is not None
            and load.buffer.bound.rising
            and len(load.index) == 1
        ):
            rising[load.buffer, ranges.dim(load.index[0])] = name
    near = set(symbols_of(dim))  # what does not begin at a pointer lies in no segment
    near |= {each for name in near if name in ranges.variables for each in symbols_of(ranges.variables[name].low)}
    for (buffer, number), first in rising.items():
        last = rising.get((buffer, number + 1))
        if last is None or first not in near:
            continue
        for times in (1, *divisors_of(dim)):  # where a multiple of the number lies says so, too
            behind, before = dim * times - symbol(first), symbol(last) - 1 - dim * times
            if ranges.never_negative(behind) and ranges.never_negative(before):
                yield _Segment(number, (first, last))
                break


def _forced(ranges: Ranges, known: set[str]) -> Iterator[str]:
    """Remainders that conditions leave one value alone, where the quotient is determined."""
    for atom in sorted(known):
        if atom.isidentifier():
            continue
        kind, whole, divisor = parse_opaque(atom)
        rest = modulo(whole, divisor)
        if kind == "floordiv" and str(rest) not in known and ranges.never_negative(rest * -1):
            yield str(rest)


def _places(ranges: Ranges, dim: Dim) -> Mapping[str, Dim] | None:
    """The factor of each variable (or division of one) in a polynomial that is linear in all; factors are over sizes."""
    found: dict[str, Dim] = {}
    for monomial, coefficient in dim.terms if isinstance(dim, Size) else ():
        atoms = [factor for factor in monomial if _varies(ranges, factor)]
        if len(atoms) > 1:
            return None
        if atoms:
            rest = tuple(item for item in monomial if item != atoms[0])
            found[atoms[0]] = found.get(atoms[0], 0) + product_of(rest, coefficient)
    return found


def _varies(ranges: Ranges, factor: str) -> bool:
    return any(name in ranges.variables for name in symbols_of(parse_size(factor)))


def _is_radix(ranges: Ranges, places: Mapping[str, Dim]) -> bool:
    """Whether the places, in some order, are those of a number in mixed radix."""
    return any(_ascends(ranges, [(atom, places[atom]) for atom in order]) for order in itertools.permutations(places))


def _ascends(ranges: Ranges, places: Sequence[tuple[str, Dim]]) -> bool:
    reach: Dim = 0  # what the places so far add up to at most
    for position, (atom, factor) in enumerate(places):
        if not ranges.never_negative(factor - reach - 1):
            return False
        span = _span(ranges, atom)
        if span is None:
            return position == len(places) - 1
        reach = reach + factor * span
    return True


def _span(ranges: Ranges, atom: str) -> Dim | None:
    """How far a variable, quotient or remainder can get from its least value; a number, if one is found."""
    if atom in ranges.variables:
        reach = ranges.variables[atom]
        return _most(ranges, reach.high - reach.low)
    function, left, right = parse_opaque(atom)
    if function == "mod":
        return right - 1
    most = _most(ranges, left)
    return floor_divide(most, right) if function == "floordiv" and most is not None else None


def _most(ranges: Ranges, dim: Dim) -> Dim | None:
    """A number that `dim` is never above: the smallest integer that is found, else a size."""
    found = [least * -1 for sides in SIDES if (least := ranges.least(dim * -1, sides)) is not None]
    numbers = [each for each in found if isinstance(each, int)]
    return min(numbers) if numbers else next(iter(found), None)


def _recombined(known: set[str]) -> Iterator[Dim]:
    """The numbers of which a quotient and the remainder by one divisor are both determined: so are they."""
    for atom in sorted(known):
        if atom.isidentifier():
            continue
        kind, whole, divisor = parse_opaque(atom)
        if kind == "mod" and any(str(floor_divide(part, by)) in known for part, by in _quotients(whole, divisor)):
            yield whole


def _quotients(whole: Dim, divisor: Dim) -> Iterator[tuple[Dim, Dim]]:
    """The ways to write `whole // divisor`: of a quotient, `(a // b) // c = a // (b * c)`."""
    yield whole, divisor
    only = next(factors_of(whole), "")
    if not only.isidentifier() and isinstance(whole, Size) and str(whole) == only:
        kind, part, by = parse_opaque(only)
        if kind == "floordiv":
            yield part, by * divisor
