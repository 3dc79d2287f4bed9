"""Kernels that tests print, check and run, in their own text, each with what it computes in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A kernel's text; tensors for three sizes, the last of them the result; and what the result should be."""

    text: str
    make: Callable[[int, int, int], list[Tensor]]
    expected: Callable[..., Tensor]

    @property
    def name(self) -> str:
        return self.text.split("(")[0].removeprefix("kernel ")


def _rows(n: int, m: int, _: int) -> list[Tensor]:
    return [torch.randn(n, m) * 3, torch.zeros(n, m)]


SOFTMAX = Example(
    """\
kernel softmax_rows(n: size, m: size, x: f32[n, m], y: f32[n, m])
  grid row < n
  thread part: f32[]
  uniform top: f32[]
  uniform total: f32[]
  each t < 64:
    part = f32(-inf)
    for j in 0 .. (m - t + 63) // 64:
      part max= x[row, j * 64 + t]
  top = reduce max part over 64
  each t < 64:
    part = f32(0.0)
    for j in 0 .. (m - t + 63) // 64:
      part += exp(x[row, j * 64 + t] - top)
  total = reduce + part over 64
  each t < 64:
    for j in 0 .. (m - t + 63) // 64:
      y[row, j * 64 + t] = exp(x[row, j * 64 + t] - top) / total
""",
    _rows,
    lambda x, y: x.softmax(-1),
)

NORM = Example(
    """\
kernel bias_gelu_norm(n: size, x: f32[n, 100], bias: f32[100], rest: f32[n, 100], gain: f32[100], y: f32[n, 100])
  grid row < n
  thread held: f32[2]
  thread part: f32[]
  uniform mean: f32[]
  uniform scale: f32[]
  each t < 50:
    part = f32(0.0)
    for j in 0 .. 2:
      let i = j * 50 + t
      let u = x[row, i] + bias[i]
      held[j] = f32(0.5) * u * (f32(1.0) + erf(u * f32(0.7071067811865476))) + rest[row, i]
      part += held[j]
  mean = reduce + part over 50
  mean = mean / f32(100.0)
  each t < 50:
    part = f32(0.0)
    for j in 0 .. 2:
      let d = held[j] - mean
      part += d * d
  scale = reduce + part over 50
  scale = rsqrt(scale / f32(100.0) + f32(1e-05))
  each t < 50:
    for j in 0 .. 2:
      y[row, j * 50 + t] = (held[j] - mean) * scale * gain[j * 50 + t]
""",
    lambda n, m, k: [torch.randn(n, 100), torch.randn(100), torch.randn(n, 100), torch.randn(100), torch.zeros(n, 100)],
    lambda x, bias, rest, gain, y: F.layer_norm(F.gelu(x + bias) + rest, (100,), gain),
)


def _segments(n: int, m: int, e: int) -> list[Tensor]:
    n = max(n, 1)
    target = torch.randint(0, n, (e,)).sort().values
    pointer = torch.zeros(n + 1, dtype=torch.int64)
    pointer[1:] = torch.bincount(target, minlength=n).cumsum(0)
    return [torch.randn(n, m), torch.randint(0, n, (e,)), pointer, torch.zeros(n, m)]


def _segment_sum(x: Tensor, source: Tensor, pointer: Tensor, y: Tensor) -> Tensor:
    target = torch.repeat_interleave(torch.arange(len(x)), pointer.diff())
    return torch.zeros_like(x).index_add(0, target, x[source])


SEGMENTS = Example(
    """\
kernel gather_sum(n: size, e: size, f: size, x: f32[n, f], source: i64[e] below n, pointer: i64[n + 1] below e + 1 rising, y: f32[n, f])
  grid node < n
  each t < 32:
    for j in 0 .. (f - t + 31) // 32:
      y[node, j * 32 + t] = f32(0.0)
      for i in pointer[node] .. pointer[node + 1]:
        y[node, j * 32 + t] += x[source[i], j * 32 + t]
""",
    _segments,
    _segment_sum,
)


def _scattered(n: int, m: int, e: int) -> list[Tensor]:
    n = max(n, 1)
    return [torch.randn(e, m), torch.randint(0, n, (e,)), torch.zeros(n, m)]


SCATTER = Example(
    """\
kernel scatter_sum(n: size, e: size, f: size, x: f32[e, f], target: i64[e] below n, y: f32[n, f])
  grid i < e
  each t < 32:
    for j in 0 .. (f - t + 31) // 32:
      scatter y[target[i], j * 32 + t] += x[i, j * 32 + t] by atomic
""",
    _scattered,
    lambda x, target, y: torch.zeros_like(y).index_add(0, target, x),
)

COPIES = Example(
    SCATTER.text.replace("scatter_sum", "scatter_copies").replace("by atomic", "by private"),
    SCATTER.make,
    SCATTER.expected,
)

LARGEST = Example(
    SCATTER.text.replace("scatter_sum", "scatter_largest").replace("+=", "max="),
    lambda n, m, e: [*_scattered(n, m, e)[:2], torch.full((max(n, 1), m), -100.0)],
    lambda x, target, y: y.scatter_reduce(0, target[:, None].expand_as(x), x, "amax"),
)

GEMM = Example(
    """\
kernel gemm(m: size, n: size, k: size, a: f32[m, k], b: f32[k, n], c: f32[m, n])
  grid row < (m + 31) // 32
  grid column < (n + 31) // 32
  shared left: f32[32, 16]
  shared right: f32[16, 32]
  thread sum: f32[4, 4]
  each t < 64:
    for r in 0 .. 4:
      for s in 0 .. 4:
        sum[r, s] = f32(0.0)
  for step in 0 .. (k + 15) // 16:
    left = copy a[row * 32, step * 16] over 64 fill 0.0
    right = copy b[step * 16, column * 32] over 64 fill 0.0
    sum += left[i, k0] @ right[k0, j] for i < 32, j < 32, k0 < 16 over 64 across 8
  each t < 64:
    for r in 0 .. 4:
      for s in 0 .. 4:
        let i = row * 32 + t // 8 * 4 + r
        let j = column * 32 + s * 8 + t % 8
        if i < m and j < n:
          c[i, j] = sum[r, s]
""",
    lambda n, m, k: [torch.randn(n, k), torch.randn(k, m), torch.zeros(n, m)],
    lambda a, b, c: a @ b,
)

RUNNING = Example(
    """\
kernel running_sum(n: size, x: f32[n, 40], y: f32[n, 40])
  grid row < n
  thread own: f32[]
  thread upto: f32[]
  each t < 40:
    own = x[row, t]
  upto = scan + own over 40
  each t < 40:
    y[row, t] = upto
""",
    lambda n, m, k: [torch.randn(n, 40), torch.zeros(n, 40)],
    lambda x, y: x.cumsum(1),
)

NEIGHBOURS = Example(
    """\
kernel neighbours(n: size, x: f32[n, 64], y: f32[n, 64])
  grid row < n
  shared held: f32[64]
  each t < 64:
    held[t] = x[row, t] * f32(2.0)
  each t < 64:
    y[row, t] = held[(t + 1) % 64]
""",
    lambda n, m, k: [torch.randn(n, 64), torch.zeros(n, 64)],
    lambda x, y: 2 * x.roll(-1, 1),
)

SHORT = Example(
    """\
kernel halve(n: size, x: bf16[n], h: f16[n], y: f32[n])
  grid block < (n + 127) // 128
  each t < 128:
    let i = block * 128 + t
    if i < n:
      let wide = cast(f32, x[i]) + cast(f32, h[i])
      y[i] = cast(f32, cast(bf16, wide)) if wide < f32(0.0) else cast(f32, cast(f16, wide))
""",
    lambda n, m, k: [torch.randn(m * 70).bfloat16(), torch.randn(m * 70).half(), torch.zeros(m * 70)],
    lambda x, h, y: torch.where(
        x.float() + h.float() < 0, (x.float() + h.float()).bfloat16().float(), (x.float() + h.float()).half().float()
    ),
)

SHORT_ROWS = Example(
    """\
kernel short_rows(n: size, m: size, x: f32[n, m], y: f32[n, m])
  grid block < (n + 3) // 4
  thread part: f32[]
  thread total: f32[]
  each t < 64:
    part = f32(0.0)
    for j in 0 .. (m + 15) // 16:
      if block * 4 + t // 16 < n and j * 16 + t % 16 < m:
        part += x[block * 4 + t // 16, j * 16 + t % 16]
  total = reduce + part over 64 in groups of 16
  each t < 64:
    for j in 0 .. (m + 15) // 16:
      if block * 4 + t // 16 < n and j * 16 + t % 16 < m:
        y[block * 4 + t // 16, j * 16 + t % 16] = x[block * 4 + t // 16, j * 16 + t % 16] - total / cast(f32, m)
""",
    _rows,
    lambda x, y: x - x.sum(-1, keepdim=True) / x.shape[-1],
)

EXAMPLES = (SOFTMAX, NORM, SEGMENTS, SCATTER, COPIES, LARGEST, GEMM, RUNNING, NEIGHBOURS, SHORT, SHORT_ROWS)
