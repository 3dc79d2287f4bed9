"""Generated kernels on the CPU, against torch eager, torch.compile and ONNX Runtime on the same operator.

    python benchmarks/kernels_cpu.py [--quick] [--json FILE] [--only NAME ...] [--threads N]

Every side is checked against float64, then timed in turn, medians. Aims: fused traversals at least twice as fast as eager and not slower than
torch.compile; attention at least 1.5 times torch's scaled_dot_product_attention; a matrix product not slower than the library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from compiled_sides import COMPILE, EAGER, OURS, RUNTIME, make_sides, rest, variants
from measure import Aim, Report, arguments, interleaved, median
from torch import Tensor, nn

from suture.codegen.runner import print_kernels
from suture.codegen.step import KernelStep

ROUNDS, QUICK_ROUNDS = 25, 5
QUICK = ("bias_gelu_norm", "chain", "attention", "linear")


@dataclass(frozen=True)
class Case:
    """A module, its inputs, and how many times faster than eager and torch.compile it should be."""

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    eager: float | None
    compile: float | None


class BiasGeluNorm(nn.Module):
    """What follows a linear layer in a post-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(384))
        self.norm = nn.LayerNorm(384)

    def forward(self, x: Tensor, rest: Tensor) -> Tensor:
        return self.norm(F.gelu(x + self.bias) + rest)


class Chain(nn.Module):
    """Eight elementwise operators."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.7 * x + 0.3) + torch.tanh(x) - 0.5 * x.abs()


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


class CrossEntropy(nn.Module):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(x, target)


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


def _random(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(*shape),)


def _heads(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(*shape) for _ in range(3))


CASES = (
    Case("bias_gelu_norm", BiasGeluNorm, lambda: (torch.randn(8, 197, 384), torch.randn(8, 197, 384)), 2, 1),
    Case("chain", Chain, _random(8, 197, 384), 2, 1),
    Case("softmax", Softmax, _random(9456, 197), 2, 1),
    Case("rms_norm", lambda: nn.RMSNorm(384), _random(8, 197, 384), 2, 1),
    Case("cross_entropy", CrossEntropy, lambda: (torch.randn(256, 50000), torch.randint(0, 50000, (256,))), 2, 1),
    Case("attention", lambda: Attention(False), _heads(8, 6, 197, 64), 1.5, None),
    Case("attention_causal", lambda: Attention(True), _heads(1, 12, 1024, 64), 1.5, None),
    Case("linear", lambda: nn.Linear(384, 1536), _random(1576, 384), 1, None),
    Case("linear_gelu", lambda: nn.Sequential(nn.Linear(384, 1536), nn.GELU()), _random(1576, 384), 1, None),
    Case("depthwise", lambda: nn.Conv2d(96, 96, 3, padding=1, groups=96), _random(8, 96, 56, 56), 2, None),
)  # fmt: skip


def measure(case: Case, report: Report, rounds: int, threads: int) -> None:
    """One case: times, ratios, and what the kernel costs to make."""
    torch.manual_seed(0)
    sides = make_sides(case.module(), case.inputs(), threads)
    seconds = interleaved(variants(sides.runs), rounds, between=rest)
    times = {name: median(found) for name, found in seconds.items()}
    kernels = [step for step in sides.compiled.program.steps if isinstance(step, KernelStep)]
    lines = [len(print_kernels([step.kernel]).splitlines()) - len(print_kernels([]).splitlines()) for step in kernels]
    report.rows.append(
        {"case": case.name, "milliseconds": {name: 1e3 * found for name, found in times.items()}, "made": sides.made,
         "kernels": [step.why for step in kernels], "lines": lines, "left": len(sides.compiled.program.steps) - len(kernels)}
    )  # fmt: skip
    report.add(f"{case.name}: {OURS}", 1e3 * times[OURS], "ms")
    for side, aim in ((EAGER, case.eager), (COMPILE, case.compile), (RUNTIME, None)):
        if side in times:
            ratio = times[side] / times[OURS]
            report.add(f"{case.name}: {side} / {OURS}", ratio, "", Aim("at least", aim) if aim else None)
    report.add(f"{case.name}: compiled in", sides.made[OURS], "s")


def main() -> int:
    options = arguments(__doc__ or "")
    threads = options.threads if "--threads" in sys.argv else 2
    torch.set_num_threads(threads)
    report = Report(f"generated kernels, {threads} threads", options.quick)
    chosen = options.only or (QUICK if options.quick else [case.name for case in CASES])
    for case in CASES:
        if case.name in chosen:
            measure(case, report, QUICK_ROUNDS if options.quick else ROUNDS, threads)
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
