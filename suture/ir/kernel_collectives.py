"""What the collectives that move data mean, as plain regions: this is how C++ runs them, and what the verifier checks of them."""

from __future__ import annotations

import math

from suture.ir.kernel import (
    Branch,
    CopyTile,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Name,
    Statement,
    Store,
    Threads,
    Update,
    apply,
    cast,
)


def expand(collective: CopyTile | MultiplyAccumulate) -> Threads:
    """The region that does what the collective says."""
    return _copy(collective) if isinstance(collective, CopyTile) else _multiply(collective)


def _copy(tile: CopyTile) -> Threads:
    """Lanes take the elements in turn, so that neighbours read neighbouring numbers."""
    lane, turn, element = Name("k_own_lane"), Name("k_own_turn"), Name("k_own_element")
    extents = [number(size) for size in tile.target.shape]
    elements = math.prod(extents)
    index: list[Expression] = []
    for k, extent in enumerate(extents):
        outer = element // math.prod(extents[k + 1 :])
        index.append(outer if k == 0 else outer % extent)
    place = tuple(origin + at for origin, at in zip(tile.origin, index, strict=True))
    conditions = [at < size for at, size in zip(place, tile.source.shape, strict=True)]
    inside = conditions[0]
    for condition in conditions[1:]:
        inside = apply("and", inside, condition)
    fetched: tuple[Statement, ...] = (Store(tile.target, tuple(index), Load(tile.source, place)),)
    filled: tuple[Statement, ...] = (Store(tile.target, tuple(index), Literal(tile.fill, tile.target.dtype)),)
    body: tuple[Statement, ...] = (
        Let(element, turn * tile.count + lane),
        Branch(element < elements, (Branch(inside, fetched, filled),)),
    )
    return Threads(lane, tile.count, (Loop(turn, Literal(0), Literal(-(-elements // tile.count)), body),))


def _multiply(tile: MultiplyAccumulate) -> Threads:
    lane, r, c = Name("k_own_lane"), Name("k_own_row"), Name("k_own_column")
    rows, columns = (number(size) for size in tile.target.shape)
    down = lane // tile.across * rows if tile.across < tile.count else Literal(0)
    across = lane % tile.across if tile.across < tile.count else lane
    wide = tile.target.dtype
    product = apply("*", cast(tile.left, wide), cast(tile.right, wide))
    update: Statement = Update(tile.target, (r, c), "+", product)
    if tile.columns != Literal(columns * tile.across):
        update = Branch(tile.column < tile.columns, (update,))
    inner: Statement = Loop(c, Literal(0), Literal(columns), (Let(tile.column, c * tile.across + across), update))
    if tile.rows != Literal(rows * (tile.count // tile.across)):
        inner = Branch(tile.row < tile.rows, (inner,))
    every = Loop(r, Literal(0), Literal(rows), (Let(tile.row, down + r), inner))
    clear = Loop(c, Literal(0), Literal(columns), (Store(tile.target, (r, c), Literal(0.0, wide)),))
    start = () if tile.adds else (Loop(r, Literal(0), Literal(rows), (clear,)),)
    return Threads(lane, tile.count, (*start, Loop(tile.inner, Literal(0), tile.depth, (every,))))


def number(size: Expression) -> int:
    """The number that a local buffer's size is."""
    assert isinstance(size, Literal), "the buffers of a block have fixed sizes"
    return int(size.value)
