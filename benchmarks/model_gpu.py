"""Whole models compiled for a GPU, against torch eager and torch.compile.

    python benchmarks/model_gpu.py [--quick] [--json FILE] [--only NAME ...]

Every side is checked against float64 and timed by events in turn, medians: once as it is called from Python, once recorded as a CUDA graph, which
leaves what the GPU does. Aim: ahead of torch.compile on each model. Products and convolutions are the library's on all sides.
"""

from __future__ import annotations

import sys

import torch
from compiled_sides import COMPILE, EAGER, OURS
from gpu_sides import gpu_variants, make_gpu_sides, recorded, there_is_a_gpu
from measure import Aim, Report, arguments, interleaved, median
from model_cpu import MODELS, Model, memory

from suture.codegen.step import KernelStep

ROUNDS, QUICK_ROUNDS = 25, 5
CALLS = 20
QUICK = ("vit_tiny",)


def measure(case: Model, report: Report, rounds: int) -> None:
    """One model: times, ratios, memory."""
    torch.manual_seed(0)
    sides = make_gpu_sides(case.module(), case.inputs())
    program = sides.compiled.program
    kernels = [step for step in program.steps if isinstance(step, KernelStep)]
    arena, activations = memory(program)
    row = {"model": case.name, "made": sides.made, "steps": len(kernels), "kernels": len(program.kernels),
           "left": len(program.steps) - len(kernels), "arena": arena, "activations": activations}  # fmt: skip
    for way, runs in (("called", sides.runs), ("recorded", {k: recorded(run) for k, run in sides.runs.items()})):
        seconds = interleaved(gpu_variants(runs, CALLS), rounds, between=lambda: None)
        times = {name: median(found) for name, found in seconds.items()}
        row[f"milliseconds, {way}"] = {name: 1e3 * found for name, found in times.items()}
        report.add(f"{case.name}: {OURS}, {way}", 1e3 * times[OURS], "ms")
        for side in (EAGER, COMPILE):
            aim = Aim("at least", 1.0) if side == COMPILE else None
            report.add(f"{case.name}: {side} / {OURS}, {way}", times[side] / times[OURS], "", aim)
    report.rows.append(row)
    report.add(f"{case.name}: compiled in", sides.made[OURS], "s")
    report.add(f"{case.name}: arena / activations", arena / max(activations, 1), "")
    report.add(f"{case.name}: left to torch", len(program.steps) - len(kernels), "nodes")


def main() -> int:
    options = arguments(__doc__ or "")
    if not there_is_a_gpu():
        return 0
    report = Report(f"compiled models on {torch.cuda.get_device_name()}", options.quick)
    chosen = options.only or (QUICK if options.quick else [case.name for case in MODELS])
    for case in MODELS:
        if case.name in chosen:
            measure(case, report, QUICK_ROUNDS if options.quick else ROUNDS)
            torch.cuda.empty_cache()
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
