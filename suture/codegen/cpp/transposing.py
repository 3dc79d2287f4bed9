"""Transpositions on a CPU: 16 by 16 numbers at a time are turned in registers, in four rounds of exchanges.

Lanes that write side by side what they read row by row are slow as a loop: every number is loaded by itself. Round k exchanges what stands off the
diagonal in blocks of 2^k by 2^k (Eklundh, A Fast Computer Method for Matrix Transposing, 1972).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from suture.codegen.cpp.strides import replaced, stride_of_load
from suture.ir.kernel import Kernel, Literal, Load, Loop, Name, Scope, Store, Threads, names_in, walk

if TYPE_CHECKING:
    from suture.codegen.printer import KernelPrinter


def _exchange(reach: int) -> tuple[str, str]:
    """The numbers of the two rows that come into the first of them, and into the second; those of the second row count from 16."""
    first = [k if not k & reach else k - reach + 16 for k in range(16)]
    second = [k + reach if not k & reach else k + 16 for k in range(16)]
    return ", ".join(map(str, first)), ", ".join(map(str, second))


def _round(reach: int, source: str, target: str) -> str:
    first, second = _exchange(reach)
    return f"""\
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) if (!(i & {reach})) {{
    {target}[i] = __builtin_shufflevector({source}[i], {source}[i + {reach}], {first});
    {target}[i + {reach}] = __builtin_shufflevector({source}[i], {source}[i + {reach}], {second});
  }}
"""


TRANSPOSE = f"""
#ifndef K_TRANSPOSE
#define K_TRANSPOSE
/* to[c, r] = from[r, c] */
template <class T> KFN void k_transpose(const T* from, k_i64 from_stride, T* to, k_i64 to_stride, k_i64 rows, k_i64 columns) {{
  for (k_i64 c = 0; c < columns; ++c)
    for (k_i64 r = 0; r < rows; ++r) to[c * to_stride + r] = from[r * from_stride + c];
}}
#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 12)
typedef float k_sixteen __attribute__((vector_size(64), aligned(4), may_alias));
KFN void k_transpose_block(const float* from, k_i64 from_stride, float* to, k_i64 to_stride) {{
  k_sixteen a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = *(const k_sixteen*)(from + i * from_stride);
{_round(1, "a", "b")}{_round(2, "b", "a")}{_round(4, "a", "b")}{_round(8, "b", "a")}\
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) *(k_sixteen*)(to + i * to_stride) = a[i];
}}
KFN void k_transpose(const float* from, k_i64 from_stride, float* to, k_i64 to_stride, k_i64 rows, k_i64 columns) {{
  const k_i64 whole_rows = rows & ~(k_i64)15, whole = columns & ~(k_i64)15;
  for (k_i64 r = 0; r < whole_rows; r += 16)
    for (k_i64 c = 0; c < whole; c += 16) k_transpose_block(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
  for (k_i64 r = 0; r < rows; ++r)
    for (k_i64 c = r < whole_rows ? whole : 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
}}
#endif
#endif
"""
"""Text that stands once before the kernels that transpose."""


def has_transposition(kernel: Kernel) -> bool:
    """Whether a loop of a kernel is a transposition."""
    regions = [each for each in walk(kernel.body) if isinstance(each, Threads)]
    return any(_sides(loop, region.variable) for region in regions for loop in walk(region.body))


def print_transposition(printer: KernelPrinter, loop: Loop, lane: Name, count: int) -> bool:
    """Print a loop of `count` lanes, if it is a transposition."""
    sides = _sides(loop, lane)
    if sides is None:
        return False
    target, source = sides
    start = {loop.variable.name: loop.start, lane.name: Literal(0)}
    here = [f"&{printer.show(replaced(side, start))}" for side in (source, target)]
    strides = [stride_of_load(source, lane.name), stride_of_load(target, loop.variable.name)]
    shown = [printer.show(stride) for stride in strides if stride is not None]
    printer.line(
        f"k_transpose({here[0]}, {shown[0]}, {here[1]}, {shown[1]}, {count}, {printer.show(loop.stop - loop.start)});"
    )
    return True


def _sides(loop: object, lane: Name) -> tuple[Load, Load] | None:
    """What is written and what is read, if a loop writes side by side, lane by lane, what it reads turn by turn."""
    if not isinstance(loop, Loop) or len(loop.body) != 1 or lane.name in names_in(loop.start) | names_in(loop.stop):
        return None
    [store] = loop.body
    if not isinstance(store, Store) or not isinstance(store.value, Load):
        return None
    target, source = Load(store.buffer, store.index), store.value
    if target.buffer == source.buffer or source.dtype not in (torch.float32, torch.float64):
        return None
    if Scope.THREAD in (target.buffer.scope, source.buffer.scope):
        return None
    turn, unit = loop.variable.name, Literal(1)
    if stride_of_load(target, lane.name) != unit or stride_of_load(source, turn) != unit:
        return None
    rest = [stride_of_load(target, turn), stride_of_load(source, lane.name)]
    if any(stride is None or stride == unit or names_in(stride) & {turn, lane.name} for stride in rest):
        return None
    return target, source
