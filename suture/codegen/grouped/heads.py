"""Heads that are too narrow for vectors of their own: several of them side by side, as one product whose matrix has blocks on its diagonal.

What a folded block multiplies by zero costs less than the vectors that heads of a few numbers would leave empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suture.codegen.builder import KernelBuilder
from suture.ir.kernel import Expression, Literal
from suture.ir.sizes import Dim, exact_quotient


@dataclass(frozen=True)
class Heads:
    """The heads of a product: blocks count those outside, and groups of `folded` of the last dimension.

    :param blocks: the variables of the grid; the last counts groups
    :param one: for each dimension, whether there is a single head
    """

    blocks: tuple[Expression, ...]
    one: tuple[bool, ...]
    folded: int

    def index(self, builder: KernelBuilder, number: Expression, size: Dim) -> tuple[Expression, ...]:
        """The heads, and which of a head's `size` features it is, of the feature `number` of a group."""
        if size == 1 and self.folded == 1:
            number = Literal(0)
        if not self.blocks:
            return (number,)
        if self.folded == 1:
            return (*self._fixed(self.blocks), number)
        within, feature = builder.indices.digits(number, [self.folded, size])
        return self.of(within, feature)

    def of(self, within: Expression, feature: Expression) -> tuple[Expression, ...]:
        """The heads, and a feature, of a head of a group."""
        if not self.blocks:
            return (feature,)
        return (*self._fixed((*self.blocks[:-1], self.blocks[-1] * self.folded + within)), feature)

    def _fixed(self, heads: Sequence[Expression]) -> tuple[Expression, ...]:
        return tuple(Literal(0) if one else head for one, head in zip(self.one, heads, strict=True))


def heads_of(builder: KernelBuilder, sizes: Sequence[Dim], folded: int) -> Heads:
    """Blocks for the heads."""
    counts = [*sizes[:-1], exact_quotient(sizes[-1], folded)] if sizes else []
    blocks = [
        builder.grid(f"head{k}", builder.size(count if count is not None else 1)) for k, count in enumerate(counts)
    ]
    return Heads(tuple(blocks), tuple(size == 1 for size in sizes), folded)


def folding(heads: Sequence[Dim], columns: Dim, rows: Dim, wide: int, deep: int) -> int:
    """How many heads a block takes, of the last dimension that counts them: as many as have at most `wide` columns and `deep` rows together."""
    count = heads[-1] if heads else 1
    if not (isinstance(count, int) and isinstance(columns, int) and isinstance(rows, int)):
        return 1
    fits = [k for k in range(1, count + 1) if count % k == 0 and k * columns <= wide and k * rows <= deep]
    return max(fits, default=1)
