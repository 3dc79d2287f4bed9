"""What can be proved of the integers in a kernel: that an index stays inside its dimension.

Index expressions become polynomials (`suture.ir.sizes`) over variables with known ranges. To prove `d >= 0` the variables are replaced by the end
of their range that makes d smallest, innermost first, divisions by what they are at least; what remains over sizes, which are never negative, must
have no negative coefficient. Conditions that hold where the index stands help: `d >= 0` follows from `d - f >= 0` where `f >= 0` is known.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from suture.ir.kernel import Apply, Expression, Literal, Load, Name, apply, names_in
from suture.ir.sizes import (
    Dim,
    Size,
    exact_quotient,
    floor_divide,
    maximum,
    minimum,
    modulo,
    parse_size,
    substitute,
    symbol,
    symbols_of,
)

_STEPS = 64  # replacements before a proof is given up
SIDES = (0, -1, 1, 2)  # the sides of extremes that are tried: all left, all right, one of each where two are nested


@dataclass(frozen=True)
class Range:
    """The integers from `low` to `high`, both included."""

    low: Dim
    high: Dim


@dataclass
class Ranges:
    """The variables in scope with their ranges, outer ones first, and what is known to be at least zero.

    :param sizes: names that are never negative; of any other name without a range nothing is known
    """

    sizes: frozenset[str] = frozenset()
    variables: dict[str, Range] = field(default_factory=dict)
    facts: tuple[Dim, ...] = ()
    lets: dict[str, Dim] = field(default_factory=dict)
    elements: dict[Expression, str] = field(default_factory=dict)
    asked: set[Dim] = field(default_factory=set, compare=False)
    met: set[str] = field(default_factory=set, compare=False)  # by `least`: what its options decide about
    proved: dict[tuple[Dim, int], bool] = field(default_factory=dict, compare=False)
    proved_from: tuple[tuple[Dim, ...], int] = field(default=((), 0), compare=False)

    def inner(self) -> Ranges:
        """A scope inside this one."""
        return Ranges(self.sizes, dict(self.variables), self.facts, dict(self.lets), self.elements)

    def bind(self, name: str, start: Expression, stop: Expression) -> None:
        """Enter a variable of `start .. stop`."""
        low, high = self.dim(start), self.dim(stop)
        self.variables[name] = Range(low, high - 1)
        self.learn(high - 1 - low)  # where the body runs there is at least one turn

    def learn(self, *facts: Dim) -> None:
        """Enter numbers that are at least zero from here on; of those that are a number apart the least says all."""
        for fact in facts:
            apart = [(known, known - fact) for known in self.facts]
            if isinstance(fact, Size) and not any(isinstance(by, int) and by <= 0 for _, by in apart):
                self.facts = (*(known for known, by in apart if not isinstance(by, int)), fact)

    def assume(self, condition: Expression) -> None:
        """Enter a condition that holds from here on."""
        match condition:
            case Apply("and", (left, right)):
                self.assume(left)
                self.assume(right)
            case Apply(("<" | "<=") as sign, (left, right)) if _is_integer(left):
                fact = self.dim(right) - self.dim(left) - (1 if sign == "<" else 0)
                self.learn(fact)
                self._tighten(fact)
            case Apply("==", (left, right)) if _is_integer(left):
                difference = self.dim(right) - self.dim(left)
                self.learn(difference, difference * -1)

    def refute(self, condition: Expression) -> None:
        """Enter a condition that does not hold from here on."""
        match condition:
            case Apply("or", (left, right)):
                self.refute(left)
                self.refute(right)
            case Apply("not", (value,)):
                self.assume(value)
            case Apply("<" | "<=" as sign, (left, right)):
                self.assume(apply("<=" if sign == "<" else "<", right, left))

    def _tighten(self, fact: Dim) -> None:
        """`c - x >= 0` for a number c bounds the variable x."""
        match fact:
            case Size(terms=(((name,), -1), ((), limit))) if name in self.variables:
                reach = self.variables[name]
                if isinstance(reach.high, int) and limit < reach.high:
                    self.variables[name] = Range(reach.low, limit)

    def dim(self, expression: Expression) -> Dim:
        """An integer expression as a polynomial; an element of a buffer is a variable of its own."""
        match expression:
            case Literal(value):
                return int(value)
            case Name(name):
                return self.lets[name] if name in self.lets else symbol(name)
            case Load():
                return self._load(expression)
            case Apply("cast", (value,)):
                return self.dim(value)
            case Apply(function, (left, right)) if function in _ARITHMETIC:
                return _ARITHMETIC[function](self.dim(left), self.dim(right))
            case Apply("neg", (value,)):
                return self.dim(value) * -1
        return self._number(expression)

    def _load(self, load: Load) -> Dim:
        number, bound = self._number(load), load.buffer.bound
        name = self.elements[load]
        if bound is not None and name not in self.variables:
            # outermost: its range depends on sizes alone, and what depends on it comes later
            self.variables = {name: Range(0, self.dim(bound.below) - 1), **self.variables}
        return number

    def _number(self, expression: Expression) -> Dim:
        """A variable for what is no polynomial; equal expressions are one."""
        return symbol(self.elements.setdefault(expression, f"element_{len(self.elements)}"))

    def is_single(self, name: str) -> bool:
        """Whether conditions leave a variable one value alone: the least of its range."""
        return self._holds(self.variables[name].low - symbol(name), 1)

    def never_negative(self, dim: Dim) -> bool:
        """Whether a number is proved to be at least zero."""
        if self._holds(dim, 2):
            return True
        # of integers, d >= 0 is k d + k - 1 >= 0, in which k (a // k) is at most a
        return any(
            self._holds(scaled, 2) or ((freed := _undivided(scaled, by)) != scaled and self._holds(freed, 2))
            for by in divisors_of(dim)
            for scaled in (dim * by + (by - 1),)
        )

    def _holds(self, dim: Dim, facts: int) -> bool:
        """As `never_negative`; what was asked before is known, as long as nothing else has been learnt."""
        known = self.proved_from
        if known[0] is not self.facts or known[1] != len(self.variables):
            self.proved, self.proved_from = {}, (self.facts, len(self.variables))
        found = self.proved.get((dim, facts))
        if found is None:
            found = self._shown(dim, facts)
            self.proved[dim, facts] = found
        return found

    def _shown(self, dim: Dim, facts: int) -> bool:
        if self._adds_up(dim):
            return True
        if self._bounded(dim):
            return True
        cases = _cases(dim)
        if cases is not None and all(self._holds(each, facts) for each in cases):
            return True
        return facts > 0 and any(
            self._holds(dim - fact * times, facts - 1)
            for fact in self.facts if _related(dim, fact) for times in _multiples(dim, fact)
        )  # fmt: skip

    def _bounded(self, dim: Dim) -> bool:
        """Whether one of the numbers that `least` finds is never negative; what made no difference once is not tried again."""
        for sides in SIDES:
            extreme = False
            for apart in (False, True):
                self.met.clear()
                least = self.least(dim, sides, apart)
                if _plain(least) and least is not None and set(symbols_of(least)) <= self.sizes:
                    return True
                extreme |= "extreme" in self.met
                if "multiple" not in self.met:
                    break
            if not extreme:
                break
        return False

    def _adds_up(self, dim: Dim) -> bool:
        """Whether a number is a sum of products of numbers that are seen to be at least zero."""
        if isinstance(dim, int):
            return dim >= 0
        return all(factor > 0 and all(map(self._is_natural, monomial)) for monomial, factor in dim.terms)

    def _is_natural(self, factor: str) -> bool:
        if factor.isidentifier():
            low = self.variables[factor].low if factor in self.variables else None
            return factor in self.sizes or (isinstance(low, int) and low >= 0)
        function, left, right = parse_opaque(factor)
        return function == "mod" or (function == "floordiv" and self._adds_up(left) and self._adds_up(right))

    def _is_natural_too(self, dim: Dim) -> bool:
        """Whether a part of a number is proved to be at least zero; not where that is what is being proved."""
        if dim in self.asked:
            return False
        self.asked.add(dim)
        try:
            return self.never_negative(dim)
        finally:
            self.asked.discard(dim)

    def least(self, dim: Dim, sides: int = 0, apart: bool = False) -> Dim | None:
        """A number that `dim` is never below, over sizes alone; None if none is found.

        :param sides: which operand stands for a minimum that is subtracted, or a maximum that is added: each alone is a bound. One bit for each
            that is met, the lowest first
        :param apart: whether a multiple of a quotient is bounded by the quotient's own ends, and not by what is divided
        """
        for _ in range(_STEPS):
            symbols = symbols_of(dim)
            inner = next((name for name in reversed(self.variables) if name in symbols), None)
            opaque = _opaque_with(dim, inner)
            if opaque is not None:
                relaxed = self._relax(dim, opaque, sides & 1, apart)
                if opaque.startswith(("min", "max")):
                    sides >>= 1
                    self.met.add("extreme")
            elif inner is not None:
                relaxed = self._replace(dim, inner)
            else:
                return dim
            if relaxed is None or relaxed == dim:  # the second: what is left has no range to put in its place
                return relaxed
            dim = relaxed
        return None

    def _replace(self, dim: Dim, name: str) -> Dim | None:
        """Put the end of its range that makes `dim` smallest in a variable's place."""
        slope = _slope(dim, name)
        if slope is None:
            return None
        reach = self.variables[name]
        if _plain(slope):
            return substitute(dim, {name: reach.low})
        return substitute(dim, {name: reach.high}) if _plain(slope * -1) else None

    def _relax(self, dim: Dim, opaque: str, side: int, apart: bool) -> Dim | None:
        """Put what a division, remainder or extreme is at least (at most, where it is subtracted) in its place."""
        assert isinstance(dim, Size)
        result: Dim = 0
        for monomial, coefficient in dim.terms:
            term = product_of(monomial, coefficient)
            if opaque not in monomial:
                result = result + term
                continue
            rest = list(monomial)
            rest.remove(opaque)
            if opaque in rest:
                return None
            least = self._least_opaque(opaque, coefficient, product_of(tuple(rest), 1), side, apart)
            if least is None:
                return None
            result = result + least
        return result

    def _least_opaque(self, opaque: str, coefficient: int, rest: Dim, side: int, apart: bool) -> Dim | None:
        """What `coefficient * rest * opaque` is at least; `rest` is a product of sizes."""
        function, left, right = parse_opaque(opaque)
        positive = coefficient > 0
        if function == "mod":
            return 0 if positive else (right - 1) * coefficient * rest
        if function in ("min", "max"):
            either = (function == "min") != positive  # each side alone is a bound
            return (left, right)[side] * coefficient * rest if either else None
        if not isinstance(right, int) or right <= 0:
            if positive:
                return 0 if function == "floordiv" and self._is_natural_too(left) else None
            below = self._quotient_below(left, right)
            return None if below is None else (below - 1) * coefficient * rest
        if coefficient % right == 0:
            self.met.add("multiple")
            if not apart:  # k * (a // k) lies between a - (k - 1) and a
                return (left - (right - 1) if positive else left) * (coefficient // right) * rest
        ends = self.least(left) if positive else self.least(left * -1)
        if positive and self.facts and not _plain(ends) and self._is_natural_too(left):
            ends = 0
        known = [reach for fact in self.facts if isinstance(reach := left + fact, int)] if not positive else []
        if known and (ends is None or isinstance(ends, int)):  # a condition says that it is no larger
            ends = max(-min(known), *([] if ends is None else [ends]))
        if ends is None:
            return None
        return floor_divide(ends if positive else ends * -1, right) * coefficient * rest

    def _quotient_below(self, left: Dim, right: Dim) -> Dim | None:
        """What `left // right` is below: a is below `q b` where it is known to be, and then `a // b` below q."""
        most = self.least(left * -1)
        reaches = [*([] if most is None else [most * -1]), *(left + fact for fact in self.facts)]
        plain = (reach + 1 for reach in reaches if set(symbols_of(reach)) <= self.sizes)
        return next((found for reach in plain if (found := exact_quotient(reach, right)) is not None), None)


_ARITHMETIC: dict[str, Callable[[Dim, Dim], Dim]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "//": floor_divide, "%": modulo,
    "min": minimum, "max": maximum,
}  # fmt: skip


def monotone(expression: Expression, name: str) -> int:
    """1 if an integer expression never falls as the variable rises, -1 if it never rises, 0 if neither is seen."""
    match expression:
        case Literal() | Name():
            return 1
        case Apply(("+" | "min" | "max"), (left, right)):
            return _agree(_sense(left, name), _sense(right, name))
        case Apply("-", (left, right)):
            return _agree(_sense(left, name), _opposite(_sense(right, name)))
        case Apply(("//" | "*"), (left, Literal(value))) if value > 0:
            return monotone(left, name)
    return 0


def _sense(expression: Expression, name: str) -> int | None:
    """As `monotone`; None where the variable does not occur."""
    return monotone(expression, name) if name in names_in(expression) else None


def _opposite(sense: int | None) -> int | None:
    return None if sense is None else -sense


def _agree(left: int | None, right: int | None) -> int:
    if left is None or right is None:
        return 1 if left is right else (left if right is None else right) or 0
    return left if left == right else 0


def _slope(dim: Dim, name: str) -> Dim | None:
    """The factor of a variable in a polynomial; None if it is not linear in it."""
    assert isinstance(dim, Size)
    slope: Dim = 0
    for monomial, coefficient in dim.terms:
        count = monomial.count(name)
        if count > 1:
            return None
        if count:
            slope = slope + product_of(tuple(item for item in monomial if item != name), coefficient)
    return slope


def product_of(factors: tuple[str, ...], coefficient: int) -> Dim:
    """A monomial as a polynomial."""
    result: Dim = coefficient
    for factor in factors:
        result = result * parse_size(factor)
    return result


def _opaque_with(dim: Dim, name: str | None) -> str | None:
    """A division, remainder or extreme in `dim` that mentions the variable; any, if there is no variable left."""
    for factor in factors_of(dim):
        if not factor.isidentifier() and (name is None or name in symbols_of(parse_size(factor))):
            return factor
    return None


def _cases(dim: Dim) -> tuple[Dim, Dim] | None:
    """A polynomial with either side of an extreme in its place: where both are at least zero, it is."""
    extreme = next((factor for factor in factors_of(dim) if factor.startswith(("min(", "max("))), None)
    if extreme is None or not isinstance(dim, Size):
        return None
    _, left, right = parse_opaque(extreme)
    found = []
    for side in (left, right):
        total: Dim = 0
        for monomial, coefficient in dim.terms:
            term: Dim = coefficient
            for factor in monomial:
                term = term * (side if factor == extreme else parse_size(factor))
            total = total + term
        found.append(total)
    return found[0], found[1]


def _undivided(dim: Dim, by: int) -> Dim:
    """A number that a polynomial is at least, in which what is divided by `by` and subtracted stands undivided."""
    total: Dim = 0
    for monomial, coefficient in dim.terms if isinstance(dim, Size) else ():
        term: Dim = coefficient
        for factor in monomial:
            function, left, right = ("", 0, 0) if factor.isidentifier() else parse_opaque(factor)
            freed = function == "floordiv" and right == by and len(monomial) == 1 and coefficient < 0 and coefficient % by == 0  # fmt: skip
            term = left * (coefficient // by) if freed else term * parse_size(factor)
        total = total + term
    return total if isinstance(dim, Size) else dim


def divisors_of(dim: Dim) -> set[int]:
    """What a polynomial divides by, where that is a number."""
    found = set()
    for factor in factors_of(dim):
        if not factor.isidentifier():
            function, _, by = parse_opaque(factor)
            if function == "floordiv" and isinstance(by, int) and by > 1:
                found.add(by)
    return found


def factors_of(dim: Dim) -> Iterator[str]:
    """The spellings of a polynomial's factors."""
    if isinstance(dim, Size):
        for monomial, _ in dim.terms:
            yield from monomial


@functools.lru_cache(maxsize=65536)
def parse_opaque(opaque: str) -> tuple[str, Dim, Dim]:
    """The function and the sides of `(a // b)`, `(a % b)`, `max(a, b)`."""
    tree = ast.parse(opaque, mode="eval").body
    if isinstance(tree, ast.BinOp):
        function = "floordiv" if isinstance(tree.op, ast.FloorDiv) else "mod"
        return function, parse_size(ast.unparse(tree.left)), parse_size(ast.unparse(tree.right))
    assert isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)
    return tree.func.id, parse_size(ast.unparse(tree.args[0])), parse_size(ast.unparse(tree.args[1]))


def _plain(dim: Dim | None) -> bool:
    """Whether no coefficient is negative: what is over sizes alone is then never negative."""
    if dim is None:
        return False
    return dim >= 0 if isinstance(dim, int) else all(coefficient >= 0 for _, coefficient in dim.terms)


def _multiples(dim: Dim, fact: Dim) -> Sequence[int]:
    """How often a fact might be taken off: once, or as often as it has a term of the number."""
    terms = dict(dim.terms) if isinstance(dim, Size) else {}
    found = {
        terms[monomial] // coefficient
        for monomial, coefficient in (fact.terms if isinstance(fact, Size) else ())
        if monomial in terms and terms[monomial] % coefficient == 0
    }
    return (1, *sorted(times for times in found if times > 1))


def _related(dim: Dim, fact: Dim) -> bool:
    return bool(set(symbols_of(dim)) & set(symbols_of(fact)))


def _is_integer(expression: Expression) -> bool:
    return not expression.dtype.is_floating_point
