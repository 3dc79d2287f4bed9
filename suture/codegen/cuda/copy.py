"""The copy of a tile by 16 bytes a thread, where rows allow it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from suture.codegen.expressions import show_literal
from suture.ir.kernel import CopyTile, Expression, Literal, Name, apply
from suture.ir.kernel_collectives import expand, number

if TYPE_CHECKING:
    from suture.codegen.cuda.printer import CudaPrinter

_VECTORS = {16: "uint4", 8: "uint2"}


def copy_lines(printer: CudaPrinter, tile: CopyTile) -> list[str] | None:
    """The copy, by several elements at a time where the source's rows are whole vectors, and by single ones where not; None if never.

    Whether they are is the same for the whole block, and mostly known when the kernel is printed. A vector never reaches beyond a row: where a row
    has a whole number of them, one that starts inside ends inside.
    """
    size = tile.source.dtype.itemsize
    extents = [number(each) for each in tile.target.shape]
    vector = next((bytes_ for bytes_ in _VECTORS if extents[-1] * size % bytes_ == 0), 0)
    if tile.source.dtype != tile.target.dtype or not vector or not extents:
        return None
    count = vector // size
    conditions = [part for part in (tile.source.shape[-1], tile.origin[-1]) if not _multiple(part, count)]
    if any(isinstance(part, Literal) for part in conditions):
        return None
    wide = _wide(printer, tile, extents, count, _VECTORS[vector])
    if not conditions:
        return wide
    said = " && ".join(f"{printer.show(part)} % {count} == 0" for part in conditions)
    return [f"if ({said}) {{", *(f"  {line}" for line in wide), "}", "else {", *_single(printer, tile), "}"]


def _multiple(part: Expression, count: int) -> bool:
    """Whether a size or origin is a multiple of a number, as far as its form shows."""
    if isinstance(part, Literal):
        return int(part.value) % count == 0
    function, operands = getattr(part, "function", ""), getattr(part, "operands", ())
    if function == "*":
        return any(_multiple(each, count) for each in operands)
    return function in ("+", "-") and all(_multiple(each, count) for each in operands)


def _wide(printer: CudaPrinter, tile: CopyTile, extents: list[int], count: int, vector: str) -> list[str]:
    element = Name("k_element")
    vectors = math.prod(extents) // count
    turns = -(-vectors // tile.count)
    printer.small["k_element"] = (0, turns * tile.count * count)
    index: list[Expression] = []
    for k, extent in enumerate(extents):
        outer = element // math.prod(extents[k + 1 :])
        index.append(outer if k == 0 else outer % extent)
    place = tuple(origin + at for origin, at in zip(tile.origin, index, strict=True))
    inside = [apply("<", at, size) for at, size in zip(place, tile.source.shape, strict=True)]
    target, source = printer.element(tile.target, index), printer.element(tile.source, place)
    condition = " && ".join(printer.show(each) for each in inside)
    fill = show_literal(tile.fill, tile.target.dtype)
    first = f"(k_turn * {tile.count} + (int)threadIdx.x)"
    guards = []
    if tile.count < printer.threads:
        guards.append(f"threadIdx.x < {tile.count}")
    if turns * tile.count > vectors:
        guards.append(f"{first} < {vectors}")
    return [
        "#pragma unroll",
        f"for (int k_turn = 0; k_turn < {turns}; ++k_turn) {{",
        f"  const int k_element = {first} * {count};",
        *([f"  if (!({' && '.join(guards)})) continue;"] if guards else []),
        f"  if ({condition}) *({vector}*)&{target} = *(const {vector}*)&{source};",
        f"  else for (int k_part = 0; k_part < {count}; ++k_part) (&{target})[k_part] = {fill};",
        "}",
    ]


def _single(printer: CudaPrinter, tile: CopyTile) -> list[str]:
    kept, printer.lines = printer.lines, []
    depth, printer.depth = printer.depth, 1
    printer.region(expand(tile))
    lines, printer.lines, printer.depth = printer.lines, kept, depth
    return lines
