"""The sides on a GPU: ours, torch eager, torch.compile; times by events on the stream, and how fast the device copies."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from compiled_sides import COMPILE, EAGER, OURS
from torch import Tensor, nn

import suture
from suture.backends.compiled_cuda import CompiledCudaGraph

Run = Callable[[], Any]
NOT_HERE = "there is no GPU here that torch sees: nothing was measured"
_COPIED = 1 << 30  # bytes


def there_is_a_gpu() -> bool:
    """Whether there is one; says so where not."""
    if torch.cuda.is_available():
        return True
    print(NOT_HERE)
    return False


@dataclass
class GpuSides:
    """One model in every form, as functions of nothing; `made` has the seconds that making each took."""

    compiled: CompiledCudaGraph
    runs: dict[str, Run]
    made: dict[str, float] = field(default_factory=dict)


def make_gpu_sides(module: nn.Module, inputs: tuple[Tensor, ...], tolerance: float = 2e-4) -> GpuSides:
    """Every form of a module, checked against it in float64 on the CPU."""
    module = module.eval()
    there = tuple(each.cuda() for each in inputs)
    made: dict[str, float] = {}
    start = time.perf_counter()
    compiled = suture.compile(suture.trace(module, inputs), target="cuda")
    made[OURS] = time.perf_counter() - start
    moved = copy.deepcopy(module).cuda()
    torch._dynamo.reset()
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    dynamo = torch.compile(moved)
    start = time.perf_counter()
    with torch.no_grad():
        dynamo(*there)
    torch.cuda.synchronize()
    made[COMPILE] = time.perf_counter() - start
    runs: dict[str, Run] = {
        OURS: lambda: compiled(*there), EAGER: lambda: moved(*there), COMPILE: lambda: dynamo(*there)
    }  # fmt: skip
    _check(module, inputs, runs, tolerance)
    return GpuSides(compiled, runs, made)


def _check(module: nn.Module, inputs: tuple[Tensor, ...], runs: Mapping[str, Run], tolerance: float) -> None:
    wide = [each.double() if each.is_floating_point() else each for each in inputs]
    with torch.no_grad():
        expected = _first(copy.deepcopy(module).double()(*wide))
        for name, run in runs.items():
            error = (_first(run()).double().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
            assert error < tolerance, f"{name} is off by {float(error):.1e}"


def _first(result: Any) -> Tensor:
    while not isinstance(result, Tensor):
        result = next(iter(result.values() if isinstance(result, Mapping) else result))
    return result


def recorded(run: Run) -> Run:
    """The run as a CUDA graph: what the GPU does, without what Python takes to say so."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        run()
    return graph.replay


def gpu_variants(runs: Mapping[str, Run], calls: int) -> dict[str, Callable[[], float]]:
    """Functions that time some calls of each side on the stream, and give the seconds of one."""
    return {name: _timer(run, calls) for name, run in runs.items()}


def _timer(run: Run, calls: int) -> Callable[[], float]:
    def timed() -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.no_grad():
            run()
            start.record()
            for _ in range(calls):
                run()
            stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3 / calls

    return timed


def copy_bandwidth(rounds: int) -> float:
    """Bytes read and written a second when a large tensor is copied: what memory-bound kernels are held against."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timed = _timer(lambda: target.copy_(source), 10)
    return 2 * _COPIED / min(timed() for _ in range(rounds))
