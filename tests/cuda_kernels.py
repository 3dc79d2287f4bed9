"""Matrix products for GPUs in the kernels' own text: on tensor cores, by registers, with more shared memory than a kernel may declare."""

from __future__ import annotations

import torch
from kernels import Example

_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def tile_product(name: str, dtype: str, rows: int, columns: int, depth: int, lanes: int) -> Example:
    """A product by tiles of `rows` x `columns`, `depth` at a time."""
    high, wide = rows * 32 // lanes, columns // 32
    text = f"""\
kernel {name}(m: size, n: size, k: size, a: {dtype}[m, k], b: {dtype}[k, n], c: f32[m, n])
  grid row < (m + {rows - 1}) // {rows}
  grid column < (n + {columns - 1}) // {columns}
  shared left: {dtype}[{rows}, {depth}]
  shared right: {dtype}[{depth}, {columns}]
  thread sum: f32[{high}, {wide}]
  each t < {lanes}:
    for r in 0 .. {high}:
      for s in 0 .. {wide}:
        sum[r, s] = f32(0.0)
  for step in 0 .. (k + {depth - 1}) // {depth}:
    left = copy a[row * {rows}, step * {depth}] over {lanes} fill 0.0
    right = copy b[step * {depth}, column * {columns}] over {lanes} fill 0.0
    sum += left[i, p] @ right[p, j] for i < {rows}, j < {columns}, p < {depth} over {lanes} across 32
  each t < {lanes}:
    for r in 0 .. {high}:
      for s in 0 .. {wide}:
        let y = row * {rows} + t // 32 * {high} + r
        let x = column * {columns} + s * 32 + t % 32
        if y < m and x < n:
          c[y, x] = sum[r, s]
"""

    def make(m: int, n: int, k: int) -> list[torch.Tensor]:
        return [
            torch.randn(m, k).to(_DTYPES[dtype]),
            torch.randn(k, n).to(_DTYPES[dtype]),
            torch.zeros(m, n),
        ]

    return Example(text, make, lambda a, b, c: a.float() @ b.float())


TENSOR_BF16 = tile_product("product_bf16", "bf16", 64, 64, 32, 128)
TENSOR_F16 = tile_product("product_f16", "f16", 128, 128, 32, 256)
REGISTERS = tile_product("product_f32", "f32", 64, 64, 16, 128)
DEEP = tile_product("product_deep", "f32", 128, 128, 64, 256)
PRODUCTS = (TENSOR_BF16, TENSOR_F16, REGISTERS, DEEP)
