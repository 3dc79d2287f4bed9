"""The sides that compiled code is measured against: torch eager, torch.compile, ONNX Runtime on our exported file; and ours."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import suture
from suture.backends.compiled import CompiledGraph

Run = Callable[[], Any]
OURS, EAGER, COMPILE, RUNTIME = "suture", "eager", "torch.compile", "ONNX Runtime"


@dataclass
class Sides:
    """One model in every form, as functions of nothing.

    :param made: the seconds that making each took
    """

    compiled: CompiledGraph
    runs: dict[str, Run]
    made: dict[str, float] = field(default_factory=dict)


def make_sides(module: nn.Module, inputs: tuple[Tensor, ...], threads: int, *, runtime: bool = True) -> Sides:
    """Every form of a module, checked against it in float64."""
    module = module.eval()
    made: dict[str, float] = {}
    with _timed(made, "trace"):
        graph = suture.trace(module, inputs)
    with _timed(made, OURS), _nothing_kept():
        compiled = suture.compile(graph)
    runs: dict[str, Run] = {OURS: lambda: compiled(*inputs), EAGER: lambda: module(*inputs)}
    torch._dynamo.reset()
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    dynamo = torch.compile(module)
    with _timed(made, COMPILE), torch.no_grad():
        dynamo(*inputs)
    runs[COMPILE] = lambda: dynamo(*inputs)
    if runtime:
        with _timed(made, RUNTIME), contextlib.suppress(suture.SutureError):  # what ONNX has no operator for
            runs[RUNTIME] = _session(graph, inputs, threads)
    _check(module, inputs, runs)
    return Sides(compiled, runs, made)


def _session(graph: suture.Graph, inputs: tuple[Tensor, ...], threads: int) -> Run:
    """Our exported file in ONNX Runtime, read from memory that is bound once."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        suture.export_onnx(graph, path, optimise=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.force_spinning_stop", "1"
        )  # after a run, so that the next side has all processors
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return lambda: session.run(None, feed)


def _check(module: nn.Module, inputs: tuple[Tensor, ...], runs: Mapping[str, Run]) -> None:
    """All sides agree with the module in float64."""
    import copy

    wide = [each.double() if each.is_floating_point() else each for each in inputs]
    with torch.no_grad():
        expected = _first(copy.deepcopy(module).double()(*wide))
        for name, run in runs.items():
            got = torch.as_tensor(_first(run())).double().reshape(expected.shape)
            error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30)) if got.numel() else 0.0
            assert error < 2e-4, f"{name} is off by {error:.1e}"


def _first(result: Any) -> Any:
    while not isinstance(result, Tensor) and not hasattr(result, "__array__"):
        result = next(iter(result.values() if isinstance(result, Mapping) else result))
    return result


@contextlib.contextmanager
def _nothing_kept() -> Any:
    """Compiled as for the first time: what is in the user's cache does not count."""
    kept = os.environ.get("SUTURE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SUTURE_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("SUTURE_CACHE")
            if kept is not None:
                os.environ["SUTURE_CACHE"] = kept


@contextlib.contextmanager
def _timed(made: dict[str, float], name: str) -> Any:
    start = time.perf_counter()
    yield
    made[name] = time.perf_counter() - start


def rest() -> None:
    """Threads that wait in a loop for more work give up in this time: nobody is measured beside another's."""
    time.sleep(0.02)


def variants(runs: Mapping[str, Run], seconds: float = 0.03) -> dict[str, Callable[[], float]]:
    """Functions that time some calls of each side, enough to fill `seconds`, and give the seconds of one."""
    found = {}
    for name, run in runs.items():
        for _ in range(3):
            run()
        start = time.perf_counter()
        run()
        calls = max(1, math.ceil(seconds / max(time.perf_counter() - start, 1e-6)))
        found[name] = _timer(run, calls)
    return found


def _timer(run: Run, calls: int) -> Callable[[], float]:
    def timed() -> float:
        with torch.no_grad():
            run()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls

    return timed
