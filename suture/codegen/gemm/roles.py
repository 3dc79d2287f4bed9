"""Which letters of a product of two tensors are its rows, columns, batch and contracted dimension: read off index notation.

Whatever contracts letters of two operands is a matrix product: `linear`, `matmul`, `addmm`, `einsum`. The right matrix is the operand that has the
result's innermost dimension, so that neighbouring columns are neighbours in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suture.ir.graph import Node, Value
from suture.ir.notation import Instance, Term
from suture.ir.sizes import Dim, product


@dataclass(frozen=True)
class Roles:
    """The operands and letters of a product.

    :param left: which operand is the left matrix
    :param right: which is the right one
    :param added: which is added to the product, if any
    :param batch: the letters that neither matrix counts alone, and those of the right one that are no columns
    """

    instance: Instance
    left: int
    right: int
    added: int | None
    batch: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    inner: tuple[str, ...]

    def size(self, letters: Sequence[str]) -> Dim:
        """How many indices letters have together."""
        return product([self.instance.sizes[letter] for letter in letters])

    def batch_of(self, operand: int) -> tuple[str, ...]:
        """The batch letters that an operand has."""
        return tuple(letter for letter in self.batch if letter in self.terms(operand))

    def terms(self, operand: int) -> tuple[Term, ...]:
        """The terms of an operand that is there."""
        found = self.instance.inputs[operand]
        assert found is not None
        return found


def find_roles(node: Node, order: Sequence[int]) -> Roles | str:
    """The roles of a product's letters, or why it is none.

    :param order: how the result's dimensions lie in memory, outermost first
    """
    instance = node.operator.instance(node)
    present = [k for k, value in enumerate(node.inputs) if value is not None]
    terms = {k: instance.inputs[k] or () for k in present}
    if any(not isinstance(term, str | int) for each in (*terms.values(), instance.outputs[0]) for term in each):
        return "its dimensions are products or concatenations"
    letters = {k: [term for term in each if isinstance(term, str)] for k, each in terms.items()}
    if any(len(set(each)) < len(each) for each in letters.values()):
        return "it takes a diagonal"
    result = [term for dim in order if isinstance(term := instance.outputs[0][dim], str)]
    summed = {letter for each in letters.values() for letter in each} - set(result)
    factors = [k for k in present if summed & set(letters[k])]
    if len(factors) != 2 or len(present) > 3:
        return "it is no product of two operands"
    first, second = factors
    if any(letter not in letters[first] or letter not in letters[second] for letter in summed):
        return "it sums over a letter of one operand alone"
    added = next((k for k in present if k not in factors), None)
    if added is not None and not set(letters[added]) <= set(result):
        return "what is added has dimensions of its own"
    innermost = next(
        (letter for letter in reversed(result) if (letter in letters[first]) != (letter in letters[second])), ""
    )
    left, right = (second, first) if innermost in letters[first] else (first, second)
    own = [letter for letter in result if letter not in letters[left]]
    columns = _innermost(result, own)
    return Roles(
        instance, left, right, added,
        tuple(letter for letter in result if letter in letters[right] and letter not in columns),
        tuple(letter for letter in result if letter not in letters[right]),
        columns,
        tuple(letter for letter in letters[left] if letter in summed),
    )  # fmt: skip


def _innermost(result: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """The letters of the right matrix alone that lie side by side, the last of them innermost."""
    found: list[str] = []
    for letter in reversed(result):
        if letter in own:
            found.insert(0, letter)
        elif found:
            break
    return tuple(found)


def operand_of(node: Node, position: int) -> Value:
    """An operand that is there."""
    found = node.inputs[position]
    assert found is not None
    return found
