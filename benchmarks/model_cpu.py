"""Whole models compiled for the CPU, against torch eager, torch.compile and ONNX Runtime on our exported file.

    python benchmarks/model_cpu.py [--quick] [--json FILE] [--only NAME ...] [--threads N]

Every side is checked against float64, then timed in turn, medians. Aims: ahead of torch.compile on each model; ahead of ONNX Runtime on vit_tiny and
MiniLM, within 10 % of it elsewhere; compiled in under 10 s. Beside them: how many kernels there are, what was left to torch, and the arena beside the
sum of all activations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from compiled_sides import COMPILE, EAGER, OURS, RUNTIME, make_sides, rest, variants
from measure import Aim, Report, arguments, interleaved, median
from onnx_cases import CASES
from torch import Tensor, nn

from suture.codegen.plan import aligned, place
from suture.codegen.program import Program
from suture.codegen.step import KernelStep
from suture.ir.sizes import evaluate_size

ROUNDS, QUICK_ROUNDS = 25, 5
QUICK = ("vit_tiny",)
TOKENS = 128
COMPILED_IN = 10.0  # seconds


@dataclass(frozen=True)
class Model:
    """A model, its inputs, and how much faster than ONNX Runtime it should be."""

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    runtime: float


def _minilm() -> nn.Module:
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import minilm

    return minilm.encoder()


def _sentence() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 30000, (1, TOKENS), generator=generator), torch.ones(1, TOKENS, dtype=torch.int64)


def _known(name: str, runtime: float) -> Model:
    case = next(case for case in CASES if case.name == name)
    return Model(name, case.module, lambda: (case.inputs(),), runtime)


MODELS = (
    _known("vit_tiny", 1.0), Model("minilm", _minilm, _sentence, 1.0), _known("convnext_tiny", 0.9), _known("mobilenetv3", 0.9),
    _known("gpt2", 0.9),
)  # fmt: skip


def measure(case: Model, report: Report, rounds: int, threads: int) -> None:
    """One model: times, ratios, memory."""
    torch.manual_seed(0)
    sides = make_sides(case.module(), case.inputs(), threads)
    seconds = interleaved(variants(sides.runs, 0.05), rounds, between=rest)
    times = {name: median(found) for name, found in seconds.items()}
    program = sides.compiled.program
    kernels = [step for step in program.steps if isinstance(step, KernelStep)]
    arena, activations = memory(program)
    report.rows.append(
        {"model": case.name, "milliseconds": {name: 1e3 * found for name, found in times.items()}, "made": sides.made, "steps": len(kernels),
         "kernels": len(program.kernels), "left": len(program.steps) - len(kernels), "arena": arena, "activations": activations}
    )  # fmt: skip
    report.add(f"{case.name}: {OURS}", 1e3 * times[OURS], "ms")
    for side, aim in ((EAGER, None), (COMPILE, 1.0), (RUNTIME, case.runtime)):
        report.add(
            f"{case.name}: {side} / {OURS}", times[side] / times[OURS], "", Aim("at least", aim) if aim else None
        )
    report.add(f"{case.name}: compiled in", sides.made[OURS], "s", Aim("at most", COMPILED_IN))
    report.add(f"{case.name}: arena / activations", arena / max(activations, 1), "")
    report.add(f"{case.name}: left to torch", len(program.steps) - len(kernels), "nodes")


def memory(program: Program) -> tuple[int, int]:
    """The arena's bytes, and those of everything that lies in it one beside the other."""
    lifetimes = program.lifetimes()
    sizes = [evaluate_size(each.size, {}) for each in lifetimes]
    return place(lifetimes, sizes)[1], sum(map(aligned, sizes))


def main() -> int:
    options = arguments(__doc__ or "")
    threads = options.threads if "--threads" in sys.argv else 2
    torch.set_num_threads(threads)
    report = Report(f"compiled models, {threads} threads", options.quick)
    chosen = options.only or (QUICK if options.quick else [case.name for case in MODELS])
    for case in MODELS:
        if case.name in chosen:
            measure(case, report, QUICK_ROUNDS if options.quick else ROUNDS, threads)
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
