"""Suture, a compiler for model surgery.

    import suture
    graph = suture.trace(module, inputs)                    # nn.Module -> Graph
    slim = suture.passes.prune(graph, keep=0.5)             # Graph -> Graph, checked
    suture.compare(graph, slim, inputs)                     # what it changed
    module = suture.to_torch(slim)                          # trains on
    suture.export_onnx(slim, "slim.onnx")                   # runs in ONNX Runtime
    suture.build(slim, "out/")                              # C++ sources with a C interface

Backends and front ends load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from suture import passes
from suture.ir import Code, ContractError, Graph, Record, SutureError, TensorType, evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from suture import relational as relational
    from suture.backends.compare import Comparison
    from suture.backends.onnx.profile import ProfileName
    from suture.drivers.accelerating.accelerate import accelerate as accelerate
    from suture.drivers.building import build as build
    from suture.drivers.compiling import compile as compile
    from suture.drivers.cycle import v_cycle as v_cycle
    from suture.drivers.elastic import Elastic as Elastic
    from suture.drivers.growing import train_growing as train_growing
    from suture.drivers.supernet import Supernet as Supernet
    from suture.drivers.supernet import best_stitch as best_stitch
    from suture.drivers.tuning import Tuned as Tuned
    from suture.drivers.tuning import tune as tune

__version__ = "0.1.0"

__all__ = [
    "Code", "ContractError", "Elastic", "Graph", "Record", "Supernet", "SutureError", "TensorType", "Tuned", "__version__",
    "accelerate", "best_stitch", "build", "compare", "compile", "evaluate", "export_onnx", "load", "passes", "relational", "run", "save", "to_torch",
    "trace", "train_growing", "tune", "v_cycle",
]  # fmt: skip

_LATE = {
    "Elastic": "drivers.elastic",
    "Supernet": "drivers.supernet",
    "Tuned": "drivers.tuning",
    "accelerate": "drivers.accelerating.accelerate",
    "best_stitch": "drivers.supernet",
    "build": "drivers.building",
    "compile": "drivers.compiling",
    "train_growing": "drivers.growing",
    "tune": "drivers.tuning",
    "v_cycle": "drivers.cycle",
}
"""What is imported when it is first asked for -> the module here that has it."""


def __getattr__(name: str) -> Any:
    if name == "relational":
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LATE:
        return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def trace(
    module: torch.nn.Module,
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Mapping[str, Mapping[int, str]] | Sequence[Mapping[int, str] | None] | None = None,
    name: str | None = None,
) -> Graph:
    """Trace a module into a graph; the graph shares the module's tensors.

    :param args: example inputs by position; a single tensor stands for a tuple of one
    :param kwargs: example inputs by keyword
    :param dynamic: for an input, the dimensions that vary and the symbol of each: `{"x": {0: "batch"}}`
    :param name: the graph's name; the module's class if absent
    :raises SutureError: EXPORT, MODULE or DYNAMIC, if the module cannot be traced
    """
    import torch

    from suture.frontends.torch_export import trace as run

    return run(module, (args,) if isinstance(args, torch.Tensor) else tuple(args), kwargs, dynamic=dynamic, name=name)


def load(path: str | Path) -> Graph:
    """Read a graph that `save` wrote.

    :raises SutureError: FILE, CHECKPOINT or TEXT, if it cannot be read
    """
    from suture.frontends.archive import load_graph

    return load_graph(path)


def save(graph: Graph, path: str | Path) -> None:
    """Write a graph with its weights into one safetensors file, atomically.

    :raises SutureError: WRITE, if the file cannot be written
    """
    from suture.frontends.archive import save_graph

    save_graph(graph, path)


def to_torch(graph: Graph) -> torch.fx.GraphModule:
    """A module that computes the graph, with the original parameters' names; it trains, and has real `train()` and `eval()`.

    :raises SutureError: TORCH, if the graph cannot become a module
    """
    from suture.backends.torch_module import to_torch as build

    return build(graph)


def export_onnx(
    graph: Graph, path: str | Path, *, opset: int = 21, profile: ProfileName = "portable", **options: Any
) -> Path:
    """Write a graph as an ONNX file, atomically.

    :param profile: what the file is for: `portable`, `onnxruntime` or `mobile`
    :param options: as `suture.drivers.exporting.export_onnx` takes them: `external_data`, `sizes`, `choices`, `optimise`, `tune`, `threads`
    :returns: the path written
    :raises SutureError: ONNX_EXPORT, PROFILE or WRITE, if the opset or the profile cannot say it or the file cannot be written
    """
    from suture.drivers.exporting import export_onnx as export

    return export(graph, path, opset=opset, profile=profile, **options)


def compare(a: Any, b: Any, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> Comparison:
    """Compare two of: module, graph, ONNX file, on the same inputs. Per output: largest difference, relative, cosine.

    :raises SutureError: COMPARE, INPUT or RUNTIME, if they cannot be compared
    """
    from suture.backends.compare import compare as measure

    return measure(a, b, inputs)


def run(script: str | Path) -> Any:
    """Run a transformation script; files are written only after every check holds.

    :returns: the report of what was done, statement by statement
    :raises SutureError: with file, line and column, if the script or a statement of it is wrong
    """
    from suture.surgery import run as execute

    return execute(script)
