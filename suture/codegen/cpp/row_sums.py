"""Rows whose features lanes sum: inner products, row by row, without a way through memory between the products and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from suture.codegen.cpp.vectors import Unfit, Vectors, conditions, either, held
from suture.ir.kernel import Kernel, Literal, Loop, Reduce, Scope, Statement, Store, Threads, loads_in, walk

if TYPE_CHECKING:
    from suture.codegen.cpp.regions import RegionPrinter

TOTALS = "#ifndef K_TOTALS\n#define K_TOTALS\n" + "\n".join(
    f"KFN {kind} k_total(k_{kind}{lanes} v) {{ k_{kind}{lanes // 2} low, high; __builtin_memcpy(&low, &v, {bytes_ // 2}); "
    f"__builtin_memcpy(&high, (const char*)&v + {bytes_ // 2}, {bytes_ // 2}); return k_total(low + high); }}"
    if bytes_ > 16
    else f"KFN {kind} k_total({kind} v) {{ return v; }}\nKFN {kind} k_total(k_{kind}{lanes} v) {{ return "
    + ("(v[0] + v[2]) + (v[1] + v[3])" if lanes == 4 else "v[0] + v[1]")
    + "; }"
    for kind, size in (("float", 4), ("double", 8)) for bytes_ in (16, 32, 64) for lanes in (bytes_ // size,)
) + "\n#endif"  # fmt: skip
"""The sum of a vector: half of it with the other half, until one is left."""


def has_row_sums(kernel: Kernel) -> bool:
    """Whether some loop between regions is one of row sums."""
    return any(_apart(each) is not None for each in walk(kernel.body) if isinstance(each, Loop))


def _apart(loop: Loop) -> tuple[Threads, list[Reduce], Sequence[Statement]] | None:
    """The region that multiplies, the reductions behind it, and what follows."""
    if not loop.body or not isinstance(loop.body[0], Threads):
        return None
    region, reduces = loop.body[0], []
    for each in loop.body[1:]:
        if not isinstance(each, Reduce) or each.operation != "+" or each.width:
            break
        reduces.append(each)
    rest = loop.body[1 + len(reduces) :]
    parts = {each.source for each in reduces}
    read = {load.buffer for each in walk(tuple(rest)) for load in loads_in(each)}
    return (region, reduces, rest) if reduces and not parts & read else None


def print_row_sums(printer: RegionPrinter, loop: Loop) -> bool:
    """Print a loop over rows in which a region's lanes are summed up; False, and nothing, where it is none."""
    found = _apart(loop)
    if found is None:
        return False
    region, reduces, rest = found
    cleared = [each for each in region.body if isinstance(each, Store)]
    starts = {
        each.buffer
        for each in cleared
        if each.value == Literal(0.0, each.buffer.dtype) and each.buffer.scope is Scope.THREAD
    }
    if len(starts) < len(cleared) or {each.source for each in reduces} != starts:
        return False
    body = [each for each in region.body if not isinstance(each, Store)]
    holding = conditions(printer.kernel, body)
    printer.lane, printer.count, printer.varying = region.variable, region.count, {region.variable.name}
    try:
        vectors = Vectors(printer, loop.variable, held(body, holding), region.variable, region.count)
    except Unfit:
        return False
    if {buffer for buffer, _ in vectors.sums} != starts:
        return False
    head = printer.loop_head(loop.variable, printer.show(loop.start), printer.show(loop.stop))

    def inside() -> None:
        for k in range(len(vectors.sums)):
            for c, chunk in enumerate(vectors.chunks):
                printer.line(f"{vectors.type_of(chunk)} k_sum{k}_{c} = {{}};")
        for line in vectors.lines:
            printer.line(line)
        for each in reduces:
            printer.line(f"{each.target.name}[0] = {_total(vectors, [b for b, _ in vectors.sums].index(each.source))};")
        printer.between(rest)

    def plain() -> None:
        printer.block(head, lambda: printer.between(loop.body))

    either(printer, holding, lambda: printer.block(head, inside), plain)
    return True


def _total(vectors: Vectors, k: int) -> str:
    """The sum of all lanes: of vectors as wide as each other first."""
    by_width: dict[int, list[str]] = {}
    for c, chunk in enumerate(vectors.chunks):
        by_width.setdefault(chunk.lanes, []).append(f"k_sum{k}_{c}")
    return " + ".join(f"k_total({' + '.join(each)})" for each in by_width.values())
