"""Generated kernels on a GPU, against torch eager and torch.compile (Inductor, Triton) on the same operator.

    python benchmarks/kernels_gpu.py [--quick] [--json FILE] [--only NAME ...]

Every side is checked against float64, recorded as a CUDA graph, and timed by events in turn, medians. Memory-bound kernels read and write what they
must once: their bandwidth stands beside that of a copy on the same device. Aims: 0.85 of the copy's bandwidth, and not slower than torch.compile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from compiled_sides import COMPILE, EAGER, OURS
from gpu_sides import copy_bandwidth, gpu_variants, make_gpu_sides, recorded, there_is_a_gpu
from kernels_cpu import Attention, BiasGeluNorm, Chain, CrossEntropy, Softmax
from measure import Aim, Report, arguments, interleaved, median
from torch import Tensor, nn

from suture.codegen.cuda.report import report_all
from suture.codegen.step import KernelStep

ROUNDS, QUICK_ROUNDS = 25, 5
CALLS = 20
QUICK = ("bias_gelu_norm", "chain", "softmax", "attention")
OF_COPY = 0.85


@dataclass(frozen=True)
class Case:
    """A module, its inputs, and whether memory alone should hold it up. Inputs are far larger than the second-level cache."""

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    memory_bound: bool = True
    compile: float | None = 1.0
    tolerance: float = 2e-4


def _short(module: nn.Module) -> nn.Module:
    return module.to(torch.bfloat16)


def _heads(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(*shape) for _ in range(3))


CASES = (
    Case("bias_gelu_norm", BiasGeluNorm, lambda: (torch.randn(512, 197, 384), torch.randn(512, 197, 384))),
    Case("chain", Chain, lambda: (torch.randn(512, 197, 384),)),
    Case("chain_bf16", lambda: _short(Chain()), lambda: (torch.randn(1024, 197, 384).bfloat16(),), tolerance=2e-2),
    Case("softmax", Softmax, lambda: (torch.randn(300000, 197),)),
    Case("softmax_long", Softmax, lambda: (torch.randn(2000, 50000),)),
    Case("rms_norm", lambda: nn.RMSNorm(4096), lambda: (torch.randn(16384, 4096),)),
    Case("rms_norm_bf16", lambda: _short(nn.RMSNorm(4096)), lambda: (torch.randn(32768, 4096).bfloat16(),), tolerance=2e-2),
    Case("cross_entropy", CrossEntropy, lambda: (torch.randn(4096, 50000), torch.randint(0, 50000, (4096,)))),
    Case("attention", lambda: Attention(False), _heads(64, 6, 197, 64), False, None),
    Case("attention_causal", lambda: Attention(True), _heads(8, 12, 1024, 64), False, None),
    Case("linear_gelu", lambda: nn.Sequential(nn.Linear(384, 1536), nn.GELU()), lambda: (torch.randn(64 * 197, 384),), False, None),
    Case("depthwise", lambda: nn.Conv2d(96, 96, 3, padding=1, groups=96), lambda: (torch.randn(256, 96, 56, 56),), False, None),
)  # fmt: skip


def moved_bytes(inputs: tuple[Tensor, ...], module: nn.Module) -> int:
    """What must be read and written once: inputs, parameters and results."""
    with torch.no_grad():
        result = module(*inputs)
    return sum(each.numel() * each.element_size() for each in (*inputs, *module.parameters(), result))


def measure(case: Case, report: Report, rounds: int, copied: float) -> None:
    """One case: times, ratios, bandwidth, what the kernels take of a multiprocessor."""
    torch.manual_seed(0)
    module, inputs = case.module(), case.inputs()
    sides = make_gpu_sides(module, inputs, case.tolerance)
    runs = {name: recorded(run) for name, run in sides.runs.items()}
    seconds = interleaved(gpu_variants(runs, CALLS), rounds, between=lambda: None)
    times = {name: median(found) for name, found in seconds.items()}
    steps = [step for step in sides.compiled.program.steps if isinstance(step, KernelStep)]
    resources = report_all([step.kernel for step in steps], sides.compiled.device.architecture) if steps else []
    moved = moved_bytes(inputs, module)
    report.rows.append(
        {"case": case.name, "microseconds": {name: 1e6 * found for name, found in times.items()}, "made": sides.made, "bytes": moved,
         "kernels": [step.why for step in steps], "resources": [str(each) for each in resources],
         "left": len(sides.compiled.program.steps) - len(steps)}
    )  # fmt: skip
    report.add(f"{case.name}: {OURS}", 1e6 * times[OURS], "µs")
    for side, aim in ((EAGER, None), (COMPILE, case.compile)):
        report.add(
            f"{case.name}: {side} / {OURS}", times[side] / times[OURS], "", Aim("at least", aim) if aim else None
        )
    if case.memory_bound:
        bandwidth = moved / times[OURS]
        report.add(f"{case.name}: bandwidth", bandwidth / 1e9, "GB/s")
        report.add(f"{case.name}: of a copy's", bandwidth / copied, "", Aim("at least", OF_COPY))


def main() -> int:
    options = arguments(__doc__ or "")
    if not there_is_a_gpu():
        return 0
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    copied = copy_bandwidth(rounds)
    report = Report(f"generated kernels on {torch.cuda.get_device_name()}", options.quick)
    report.add("copy", copied / 1e9, "GB/s")
    chosen = options.only or (QUICK if options.quick else [case.name for case in CASES])
    for case in CASES:
        if case.name in chosen:
            measure(case, report, rounds, copied)
            torch.cuda.empty_cache()
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
