"""Derivatives that index notation says by itself.

Where a letter stands only in an operand, the operator sums over it, and the derivative repeats; where it stands only in the result, the operator
repeats, and the derivative sums. Where letters merely stand elsewhere, the derivative puts them back. And the derivative of a sum of products in
one factor is the sum of products of the cotangent and the other factors: the same letters, with the cotangent in the factor's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from suture.ir.derivatives.formula import Formula
from suture.ir.notation import Instance, Product, Term, letters_of
from suture.ir.sizes import product

Terms: TypeAlias = "Sequence[Term]"


def relabel(value: Formula, source: Terms, target: Terms, instance: Instance) -> Formula:
    """Bring a value with the dimensions `source` into the dimensions `target`: sum over the letters that go, repeat along those that come.

    :param instance: says the sizes of the letters
    """
    source, target = list(source), list(target)
    if source == target:
        return value
    if len(source) == len(target) and all(b in (a, 1) for a, b in zip(source, target, strict=True)):
        return value.sum(*(k for k, (a, b) in enumerate(zip(source, target, strict=True)) if a != b))
    whole = _unbroken(source, target)
    before, after = _flat(source, whole), _flat(target, whole)
    size = instance.size
    kept = [term for term in before if term in after]
    value = value.reshape([size(term) for term in before])
    value = value.sum(*(k for k, term in enumerate(before) if term not in after), keepdim=False)
    order = [term for term in after if term in kept]
    value = value.permute([kept.index(term) for term in order])
    if len(order) < len(after):
        value = value.reshape([size(term) if term in order else 1 for term in after])
        value = value.expand([size(term) for term in after])
    return value.reshape([size(term) for term in target])


def _unbroken(source: Terms, target: Terms) -> set[Term]:
    """The products that stand on both sides, so that nobody need take them apart."""
    shared = {term for term in source if isinstance(term, Product)} & set(target)
    loose = [x for side in (source, target) for term in side if term not in shared for x in letters_of(term)]
    return {term for term in shared if not any(letter in loose for letter in letters_of(term))}


def _flat(terms: Terms, whole: set[Term]) -> list[Term]:
    """The letters one by one, without the dimensions of size 1."""
    found: list[Term] = []
    for term in terms:
        if isinstance(term, Product) and term not in whole:
            found += _flat(term.terms, whole)
        elif term != 1:
            found.append(term)
    return found


Factor: TypeAlias = "tuple[Formula, Terms]"


def contract(factors: Sequence[Factor], target: Terms, instance: Instance) -> Formula:
    """The sum of products of factors, in the dimensions `target`; every dimension of a factor is a letter or 1.

    Two factors are one matrix product; more of them, or a letter that stands twice in one of them, are an `einsum`.

    :param instance: says the sizes of the letters
    """
    bare: list[tuple[Formula, list[Term]]] = []
    for value, terms in factors:
        letters = [term for term in terms if term != 1]
        bare.append((value.reshape([instance.size(term) for term in letters]), letters))
    known = {term for _, letters in bare for term in letters}
    result = [term for term in dict.fromkeys(target) if term in known]
    twice = any(len(set(letters)) < len(letters) for _, letters in bare)
    if twice or len(bare) > 2:
        made = _einsum(bare, result)
    elif len(bare) == 2:
        made = _matrix_product(bare[0], bare[1], result, instance)
    else:
        made = relabel(bare[0][0], bare[0][1], result, instance)
    if len(set(target) - {1}) == len([term for term in target if term != 1]):
        return relabel(made, result, target, instance)
    return _diagonal(made, result, list(target), instance)


def _einsum(factors: Sequence[tuple[Formula, list[Term]]], result: Terms) -> Formula:
    names: dict[Term, str] = {}
    for _, letters in factors:
        for letter in letters:
            names.setdefault(letter, chr(ord("a") + len(names)) if len(names) < 26 else chr(ord("A") + len(names) - 26))
    left = ",".join("".join(names[letter] for letter in letters) for _, letters in factors)
    equation = f"{left}->{''.join(names[letter] for letter in result)}"
    first, *rest = [value for value, _ in factors]
    return first.op("einsum", *rest, equation=equation)


def _matrix_product(
    left: tuple[Formula, list[Term]], right: tuple[Formula, list[Term]], result: Terms, instance: Instance
) -> Formula:
    """Two factors as a batched matrix product: letters of both and the result are batches, those of both alone are summed over."""
    if right[1] and (first := next((x for x in result if (x in left[1]) != (x in right[1])), None)) in right[1]:
        assert first is not None
        left, right = right, left  # the rows are those that come first
    (a, of_a), (b, of_b) = left, right
    a, of_a = _summed(a, of_a, {*of_b, *result})
    b, of_b = _summed(b, of_b, {*of_a, *result})
    batch = [x for x in result if x in of_a and x in of_b]
    rows = [x for x in result if x in of_a and x not in of_b]
    columns = [x for x in result if x in of_b and x not in of_a]
    shared = [x for x in of_a if x in of_b and x not in batch]
    sizes = {x: instance.size(x) for x in (*of_a, *of_b)}
    if not shared or not (rows or columns):
        every = [*batch, *rows, *columns, *shared]
        scaled = _spread(a, of_a, every, instance) * _spread(b, of_b, every, instance)
        count = len(every) - len(shared)
        made = scaled.sum(*range(count, len(every)), keepdim=False)
        return relabel(made, every[:count], result, instance)
    if not batch and of_a[: len(rows)] == rows and len(shared) == 1 and rows:
        m = a  # any number of rows in front: no need to make one dimension of them
    else:
        m = a.permute([of_a.index(x) for x in (*batch, *rows, *shared)])
        m = m.reshape(
            [*(sizes[x] for x in batch), product([sizes[x] for x in rows]), product([sizes[x] for x in shared])]
        )
    n = b.permute([of_b.index(x) for x in (*batch, *shared, *columns)])
    n = n.reshape(
        [*(sizes[x] for x in batch), product([sizes[x] for x in shared]), product([sizes[x] for x in columns])]
    )
    made = m.op("matmul", n).reshape([sizes[x] for x in (*batch, *rows, *columns)])
    return relabel(made, [*batch, *rows, *columns], result, instance)


def _summed(value: Formula, letters: list[Term], kept: set[Term]) -> tuple[Formula, list[Term]]:
    """A factor without the letters that nobody else has."""
    alone = [k for k, letter in enumerate(letters) if letter not in kept]
    return value.sum(*alone, keepdim=False), [letter for letter in letters if letter in kept]


def _spread(value: Formula, letters: list[Term], every: Terms, instance: Instance) -> Formula:
    """A factor with a dimension for every letter, of size 1 where it does not have it."""
    value = value.permute([letters.index(x) for x in every if x in letters])
    return value.reshape([instance.size(x) if x in letters else 1 for x in every])


def _diagonal(value: Formula, result: list[Term], target: list[Term], instance: Instance) -> Formula:
    """The value where a letter that stands twice in the target has equal indices, and zero elsewhere."""
    first = [term for k, term in enumerate(target) if term == 1 or term not in target[:k]]
    value = relabel(value, result, first, instance)
    kept = iter(value.shape)
    value = value.reshape([next(kept) if term == 1 or term not in target[:k] else 1 for k, term in enumerate(target)])
    for k, term in enumerate(target):
        if term != 1 and term in target[:k]:
            before = target.index(term)
            index = value.writer.counting(instance.size(term))
            row, column = ([instance.size(term) if i == at else 1 for i in range(len(target))] for at in (before, k))
            value = index.reshape(row).equals(index.reshape(column)).where(value, 0.0)
    return value
