"""The collectives of a GPU as device functions: reductions and scans by shuffles, atomics that the hardware lacks."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from suture.codegen.expressions import C_TYPES, combined, neutral, suffix
from suture.ir.kernel import Reduce, Scan, Scatter, Statement

WARP = 32
"""The threads that a GPU runs together."""


def support(statements: Iterable[Statement]) -> list[str]:
    """The device functions that some statements call, each once."""
    lines: dict[str, None] = {}
    for each in statements:
        if isinstance(each, Reduce):
            lines[_groups(each) if each.width else _reduction(each)] = None
        elif isinstance(each, Scan):
            lines[_prefix(each)] = None
        elif isinstance(each, Scatter):
            lines[_atomic(each.operation, each.buffer.dtype)] = None
    return [line for line in lines if line]


def called(collective: Reduce | Scan) -> str:
    """The name of the function that runs a collective."""
    kind, named = C_TYPES[collective.source.dtype], operation_name(collective.operation)
    if isinstance(collective, Scan):
        return f"k_scan_{named}_{kind}<{collective.count}>"
    if collective.width:
        return f"k_group_{named}_{kind}<{collective.count}, {collective.width}>"
    return f"k_reduce_{named}_{kind}<{collective.count}>"


def scratch(statements: Iterable[Statement]) -> dict[str, int]:
    """What reductions and scans over warps need of shared memory: numbers, by their C type."""
    found: dict[str, int] = {}
    for each in statements:
        if isinstance(each, Scan) or (isinstance(each, Reduce) and not each.width):
            kind = C_TYPES[each.source.dtype]
            found[kind] = max(found.get(kind, 0), -(-each.count // WARP))
    return found


def operation_name(operation: str) -> str:
    """An operation as a part of a name."""
    return {"+": "sum"}.get(operation, operation)


def _reduction(reduce: Reduce) -> str:
    """Within each warp by shuffles, then over the warps by every thread alike; everyone gets the result, the order is fixed."""
    dtype = reduce.source.dtype
    kind, name, operation = C_TYPES[dtype], operation_name(reduce.operation), reduce.operation
    return (
        f"template <int COUNT> __device__ __forceinline__ {kind} k_reduce_{name}_{kind}({kind} k_own, {kind}* scratch) {{\n"
        f"{_by_shuffles(reduce, '16')}"
        "  constexpr int WARPS = (COUNT + 31) / 32;\n"
        "  if (WARPS == 1 && blockDim.x <= 32) return value;\n"
        "  __syncthreads();\n"
        "  if ((threadIdx.x & 31) == 0 && (threadIdx.x >> 5) < WARPS) scratch[threadIdx.x >> 5] = value;\n"
        "  __syncthreads();\n"
        f"  {kind} total = scratch[0];\n"
        f"  for (int warp = 1; warp < WARPS; ++warp) total = {combined(operation, 'total', 'scratch[warp]', dtype)};\n"
        "  return total;\n}"
    )


def _groups(reduce: Reduce) -> str:
    """Among neighbours of a warp by shuffles; nothing is shared and nobody waits."""
    kind, name = C_TYPES[reduce.source.dtype], operation_name(reduce.operation)
    return (
        f"template <int COUNT, int WIDTH> __device__ __forceinline__ {kind} k_group_{name}_{kind}({kind} k_own) {{\n"
        f"{_by_shuffles(reduce, 'WIDTH / 2')}"
        "  return value;\n}"
    )


def _by_shuffles(reduce: Reduce, first: str) -> str:
    """Lines that leave in `value` what the `k_own` of twice `first` neighbours come to."""
    dtype = reduce.source.dtype
    kind, operation = C_TYPES[dtype], reduce.operation
    return (
        f"  {kind} value = (int)threadIdx.x < COUNT ? k_own : {neutral(operation, dtype)};\n"
        f"  for (int step = {first}; step > 0; step >>= 1) {{ {kind} other = __shfl_xor_sync(0xffffffffu, value, step);"
        f" value = {combined(operation, 'value', 'other', dtype)}; }}\n"
    )


def _prefix(scan: Scan) -> str:
    """Within each warp by shuffles, then every warp adds what the warps before it come to."""
    dtype = scan.source.dtype
    kind, name, operation = C_TYPES[dtype], operation_name(scan.operation), scan.operation
    return (
        f"template <int COUNT> __device__ __forceinline__ {kind} k_scan_{name}_{kind}({kind} k_own, {kind}* scratch) {{\n"
        f"  {kind} value = (int)threadIdx.x < COUNT ? k_own : {neutral(operation, dtype)};\n"
        f"  for (int step = 1; step < 32; step <<= 1) {{ {kind} other = __shfl_up_sync(0xffffffffu, value, step);"
        f" if ((threadIdx.x & 31) >= step) value = {combined(operation, 'value', 'other', dtype)}; }}\n"
        "  __syncthreads();\n"
        "  if ((threadIdx.x & 31) == 31) scratch[threadIdx.x >> 5] = value;\n"
        "  __syncthreads();\n"
        f"  for (int warp = 0; warp < (int)(threadIdx.x >> 5); ++warp) value = {combined(operation, 'value', 'scratch[warp]', dtype)};\n"
        "  return value;\n}"
    )


def _atomic(operation: str, dtype: torch.dtype) -> str:
    """The atomic operations that CUDA has no function for: the largest and smallest of floats, by comparing and swapping their bits."""
    kind, name = C_TYPES[dtype], operation_name(operation)
    head = f"__device__ __forceinline__ void k_atomic_{name}_{kind}({kind}* place, {kind} value)"
    if operation == "+":
        # the sum of signed numbers of 64 bits is that of unsigned ones
        wide = dtype == torch.int64
        return f"{head} {{ atomicAdd({'(unsigned long long*)' if wide else ''}place, {'(unsigned long long)' if wide else ''}value); }}"
    if not dtype.is_floating_point:
        return f"{head} {{ {'atomicMax' if operation == 'max' else 'atomicMin'}(place, value); }}"
    bits, to, back = ("int", "__float_as_int", "__int_as_float") if suffix(dtype) == "f" else (
        "unsigned long long", "__double_as_longlong", "__longlong_as_double",
    )  # fmt: skip
    met = combined(operation, f"{back}(seen)", "value", dtype)
    return (
        f"{head} {{\n"
        f"  {bits}* raw = ({bits}*)place; {bits} seen = *raw, before;\n"
        f"  do {{ before = seen; seen = atomicCAS(raw, before, ({bits}){to}({met})); }} while (seen != before);\n}}"
    )
