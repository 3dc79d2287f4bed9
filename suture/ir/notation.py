"""Index notation: what an operator means, in one line of text, and what that line says about given operands.

    linear    x[*b, i], w[o, i], c[o]? -> y[*b, o]

`*b` stands for any number of letters, `?` marks an operand that may be absent, `g*o` is a row-major product and `p|q` a concatenation, `~` marks
a letter that is mixed, `!` one that is ordered, `h'` is a letter computed from `h`, `1` a dimension of size one. A last part in parentheses,
`(w at i)`, says that the first letter of `w` is looked up by the values of `i`.

`parse_signature` reads such a line once per operator; `instantiate` applies it to operand types and gives an `Instance`: for every dimension of
every operand its term over concrete letters, the size of each letter and its role. Shapes, costs and axes are all read off the instance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import TypeAlias

from suture.ir.errors import Code, SutureError
from suture.ir.sizes import Dim, exact_quotient, product


class Role(Enum):
    """How an operator treats a letter, and so which surgery commutes with it."""

    FREE = "free"  # each index by itself
    CONTRACTED = "contracted"  # summed over
    MIXED = "mixed"  # statistics over it; the order does not matter
    ORDERED = "ordered"  # neighbours matter
    LOOKUP = "lookup"  # chosen by the values of another operand
    CONDITIONAL = "conditional"  # computed or not, as the data say


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product of terms: the first is the outermost."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "*".join(f"({term})" if isinstance(term, Join) else str(term) for term in self.terms)


@dataclass(frozen=True, slots=True)
class Join:
    """Concatenation of terms, in order."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "|".join(str(term) for term in self.terms)


Term: TypeAlias = "str | int | Product | Join"  # a letter, the literal 1, a product, a concatenation


@dataclass(frozen=True, slots=True)
class DimensionSpec:
    """One entry between the brackets of a signature."""

    term: Term
    mark: str = ""  # "", "~" or "!"
    star: bool = False

    def __str__(self) -> str:
        return f"{self.mark}{'*' if self.star else ''}{self.term}"


@dataclass(frozen=True, slots=True)
class OperandSpec:
    """One operand or result of a signature."""

    name: str
    dims: tuple[DimensionSpec, ...]
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.name}[{', '.join(map(str, self.dims))}]{'?' if self.optional else ''}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed line of index notation."""

    operands: tuple[OperandSpec, ...]
    results: tuple[OperandSpec, ...]
    lookups: tuple[
        tuple[str, str], ...
    ] = ()  # (operand whose first letter is looked up, operand that holds the indices)

    def __str__(self) -> str:
        text = f"{', '.join(map(str, self.operands))} -> {', '.join(map(str, self.results))}"
        return text + "".join(f" ({where} at {which})" for where, which in self.lookups)


@dataclass(frozen=True)
class Instance:
    """A signature applied to operands: terms over concrete letters, with each letter's size and role."""

    inputs: tuple[tuple[Term, ...] | None, ...]
    outputs: tuple[tuple[Term, ...], ...]
    sizes: Mapping[str, Dim]
    roles: Mapping[str, Role]

    def size(self, term: Term) -> Dim:
        """The size of a dimension that reads as `term`."""
        match term:
            case int():
                return term
            case str():
                return self.sizes[term]
            case Product(terms):
                return product([self.size(part) for part in terms])
            case Join(terms):
                total: Dim = 0
                for part in terms:
                    total = total + self.size(part)
                return total

    def output_shapes(self) -> tuple[tuple[Dim, ...], ...]:
        """The shape of every result."""
        return tuple(tuple(self.size(term) for term in dims) for dims in self.outputs)

    def __str__(self) -> str:
        def text(dims: tuple[Term, ...] | None) -> str:
            return "_" if dims is None else f"[{', '.join(map(str, dims))}]"

        return f"{', '.join(map(text, self.inputs))} -> {', '.join(map(text, self.outputs))}"


@dataclass
class Binding:
    """What an operator's attributes fill in: the lengths of stars and the sizes of letters."""

    stars: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, Dim] = field(default_factory=dict)


Shape: TypeAlias = "tuple[Dim, ...]"
Shapes: TypeAlias = "Sequence[Shape | None]"


def letters_of(term: Term) -> Iterator[str]:
    """The letters of a term, in order."""
    match term:
        case str():
            yield term
        case Product(terms) | Join(terms):
            for part in terms:
                yield from letters_of(part)


_OPERAND = re.compile(r"\s*(\w+)\[([^\]]*)\](\?)?\s*")
_LETTER = re.compile(r"[A-Za-z_]\w*'*")


@lru_cache(maxsize=1024)
def parse_signature(text: str) -> Signature:
    """Parse a line of index notation.

    :raises SutureError: NOTATION, with the part that does not parse
    """
    body = text
    lookups: list[tuple[str, str]] = []
    while match := re.search(r"\((\w+) at (\w+)\)\s*$", body):
        lookups.insert(0, (match[1], match[2]))
        body = body[: match.start()]
    left, arrow, right = body.partition("->")
    if not arrow:
        raise SutureError(Code.NOTATION, f"{text!r} has no '->'", remedy="write operands -> results")
    return Signature(_parse_operands(left, text), _parse_operands(right, text), tuple(lookups))


def _parse_operands(text: str, whole: str) -> tuple[OperandSpec, ...]:
    operands, position = [], 0
    while position < len(text.rstrip()):
        match = _OPERAND.match(text, position)
        if match is None:
            raise SutureError(
                Code.NOTATION, f"{text[position:].strip()!r} is no operand, in {whole!r}", remedy="write name[letters]"
            )
        dims = [part.strip() for part in match[2].split(",") if part.strip()]
        operands.append(OperandSpec(match[1], tuple(_parse_dimension(part, whole) for part in dims), bool(match[3])))
        position = match.end()
        if position < len(text.rstrip()):
            if text[position] != ",":
                raise SutureError(
                    Code.NOTATION,
                    f"{text[position:].strip()!r} follows {match[0].strip()!r}, in {whole!r}",
                    remedy="put a comma between operands",
                )
            position += 1
    return tuple(operands)


def _parse_dimension(text: str, whole: str) -> DimensionSpec:
    mark = text[0] if text[0] in "~!" else ""
    rest = text[len(mark) :]
    star = rest.startswith("*")
    joined = [[_parse_letter(factor, whole) for factor in part.split("*")] for part in rest[star:].split("|")]
    parts: list[Term] = [factors[0] if len(factors) == 1 else Product(tuple(factors)) for factors in joined]
    return DimensionSpec(parts[0] if len(parts) == 1 else Join(tuple(parts)), mark, star)


def _parse_letter(text: str, whole: str) -> Term:
    text = text.strip()
    if text == "1":
        return 1
    if not _LETTER.fullmatch(text):
        raise SutureError(
            Code.NOTATION,
            f"{text!r} is no letter, in {whole!r}",
            remedy="letters are names, with ' for a computed size",
        )
    return text


def instantiate(
    signature: Signature,
    shapes: Shapes,
    binding: Binding | None = None,
    *,
    broadcast: frozenset[str] = frozenset(),
    late: Callable[[Mapping[str, Dim]], Mapping[str, Dim]] | None = None,
    where: str = "",
) -> Instance:
    """Apply a signature to operand shapes.

    :param shapes: one shape per operand, None where an optional operand is absent
    :param binding: star lengths and letter sizes that attributes say
    :param broadcast: names of the stars whose dimensions align from the right, with sizes of 1 repeated
    :param late: computes the sizes of further letters (`h'`) from those bound by the operands
    :param where: the node, for error messages
    :raises SutureError: SHAPE, naming the operand, its shape and the letter that does not fit
    """
    binding = binding or Binding()
    if len(shapes) > len(signature.operands):
        raise SutureError(
            Code.SHAPE,
            f"{len(shapes)} operands for {signature}",
            where=where,
            remedy=f"give at most {len(signature.operands)}",
        )
    shapes = list(shapes) + [None] * (len(signature.operands) - len(shapes))
    for spec, shape in zip(signature.operands, shapes, strict=True):
        if shape is None and not spec.optional:
            raise SutureError(
                Code.SHAPE, f"operand {spec.name} of {signature} is missing", where=where, remedy=f"give {spec}"
            )
    stars = _star_lengths(signature, shapes, binding.stars, broadcast, where)
    sizes = dict(binding.sizes)
    if broadcast:
        _broadcast_sizes(signature, shapes, stars, broadcast, sizes)
    inputs: list[tuple[Term, ...] | None] = []
    pending: list[tuple[OperandSpec, Term, Dim]] = []
    roles: dict[str, Role] = {}
    for spec, shape in zip(signature.operands, shapes, strict=True):
        if shape is None:
            inputs.append(None)
            continue
        terms = _expand(spec, stars, broadcast, shape, sizes, roles, where)
        if len(terms) != len(shape):
            raise SutureError(
                Code.SHAPE,
                f"operand {spec} has shape {_text(shape)}",
                where=where,
                remedy=f"{len(terms)} dimensions would be right",
            )
        inputs.append(tuple(terms))
        pending += [(spec, term, dim) for term, dim in zip(terms, shape, strict=True)]
    _bind(pending, sizes, where)
    if late is not None:
        sizes.update(late(sizes))
    outputs = tuple(tuple(_expand(spec, stars, frozenset(), None, sizes, roles, where)) for spec in signature.results)
    produced = {letter for dims in outputs for term in dims for letter in letters_of(term)}
    looked_up = _lookup_letters(signature, inputs)
    for dims in [*(d for d in inputs if d is not None), *outputs]:
        for term in dims:
            for letter in letters_of(term):
                default = Role.LOOKUP if letter in looked_up else Role.FREE if letter in produced else Role.CONTRACTED
                roles.setdefault(letter, default)
    for letter in produced:
        if letter not in sizes:
            raise SutureError(
                Code.SHAPE, f"letter {letter} of {signature} has no size", where=where, remedy="an operand is missing"
            )
    return Instance(tuple(inputs), outputs, sizes, roles)


def _lookup_letters(signature: Signature, inputs: Sequence[tuple[Term, ...] | None]) -> set[str]:
    names = {where for where, _ in signature.lookups}
    found = set()
    for spec, dims in zip(signature.operands, inputs, strict=True):
        if spec.name in names and dims:
            found |= set(letters_of(dims[0]))
    return found


def _star_lengths(
    signature: Signature, shapes: Shapes, given: Mapping[str, int], broadcast: frozenset[str], where: str
) -> dict[str, int]:
    stars = dict(given)
    for spec, shape in zip(signature.operands, shapes, strict=True):
        if shape is None:
            continue
        unknown = {str(d.term).rstrip("'") for d in spec.dims if d.star} - set(given)
        if len(unknown) != 1:
            continue
        (name,) = unknown
        repeats = sum(d.star and str(d.term).rstrip("'") == name for d in spec.dims)
        known = sum(
            stars.get(str(d.term).rstrip("'"), 0) if d.star else 1
            for d in spec.dims
            if not d.star or str(d.term) != name
        )
        length = (len(shape) - known) // repeats
        if length < 0:
            raise SutureError(
                Code.SHAPE,
                f"operand {spec} has shape {_text(shape)}",
                where=where,
                remedy=f"at least {known} dimensions would be right",
            )
        stars[name] = max(length, stars.get(name, 0)) if name in broadcast else stars.setdefault(name, length)
    return stars


def _broadcast_sizes(
    signature: Signature, shapes: Shapes, stars: Mapping[str, int], broadcast: frozenset[str], sizes: dict[str, Dim]
) -> None:
    """The size of a broadcast letter is that of the first operand in which it is not 1."""
    for spec, shape in zip(signature.operands, shapes, strict=True):
        if shape is None:
            continue
        fixed = sum(not d.star for d in spec.dims)
        position = 0
        for dim in spec.dims:
            name = str(dim.term)
            if not dim.star or name not in broadcast:
                position += 1 if not dim.star else stars.get(name, 0)
                continue
            count = len(shape) - fixed
            for k in range(count):
                letter = f"{name}{stars[name] - count + k}"
                if sizes.get(letter, 1) == 1:
                    sizes[letter] = shape[position + k]
            position += count


def _expand(
    spec: OperandSpec,
    stars: Mapping[str, int],
    broadcast: frozenset[str],
    shape: Shape | None,
    sizes: Mapping[str, Dim],
    roles: dict[str, Role],
    where: str,
) -> list[Term]:
    terms: list[Term] = []
    fixed = sum(not d.star for d in spec.dims)
    for dim in spec.dims:
        base = str(dim.term).rstrip("'")
        if not dim.star:
            expanded: list[Term] = [dim.term]
        else:
            primes = str(dim.term)[len(base) :]
            count = total = stars.get(base, 0)
            if shape is not None and base in broadcast:
                count = len(shape) - fixed
            expanded = []
            for k in range(count):
                letter = f"{base}{total - count + k}{primes}"
                repeated = (
                    shape is not None and base in broadcast and shape[len(terms) + k] == 1 and sizes.get(letter, 1) != 1
                )
                expanded.append(1 if repeated else letter)
        if dim.mark:
            role = Role.MIXED if dim.mark == "~" else Role.ORDERED
            for term in expanded:
                roles.update(dict.fromkeys(letters_of(term), role))
        terms += expanded
    return terms


def _bind(pending: list[tuple[OperandSpec, Term, Dim]], sizes: dict[str, Dim], where: str) -> None:
    """Find every letter's size: plain letters first, then what is left of products and concatenations."""
    for spec, term, dim in pending:
        if isinstance(term, str):
            _agree(spec, term, sizes.setdefault(term, dim), dim, where)
    for spec, term, dim in pending:
        if isinstance(term, int) and dim != term:
            raise SutureError(
                Code.SHAPE, f"a dimension of operand {spec} is {dim}", where=where, remedy=f"{term} would be right"
            )
        if not isinstance(term, Product | Join):
            continue
        open_letters = [letter for letter in dict.fromkeys(letters_of(term)) if letter not in sizes]
        if len(open_letters) == 1:
            rest = _solve(term, dim, sizes)
            if rest is None or (isinstance(rest, int) and rest < 0):
                raise SutureError(
                    Code.SHAPE,
                    f"operand {spec} has a dimension of {dim} that does not split as {term}",
                    where=where,
                    remedy="known sizes: "
                    + ", ".join(f"{letter}={sizes[letter]}" for letter in letters_of(term) if letter in sizes),
                )
            sizes[open_letters[0]] = rest
        elif not open_letters:
            _agree(spec, term, Instance((), (), sizes, {}).size(term), dim, where)


def _solve(term: Product | Join, dim: Dim, sizes: Mapping[str, Dim]) -> Dim | None:
    known = [Instance((), (), sizes, {}).size(part) for part in term.terms if all(x in sizes for x in letters_of(part))]
    if isinstance(term, Product):
        return exact_quotient(dim, product(known))
    rest = dim
    for size in known:
        rest = rest - size
    return rest


def _agree(spec: OperandSpec, term: Term, expected: Dim, actual: Dim, where: str) -> None:
    if expected != actual:
        raise SutureError(
            Code.SHAPE,
            f"operand {spec} has {actual} where {term} is {expected}",
            where=where,
            remedy=f"a size of {expected} would be right",
        )


def _text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
