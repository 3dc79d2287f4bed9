"""`suture show MODEL --relational`: where the values of a message-passing program live, what was reordered, what it costs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suture.cli.display import print_json, print_rows
from suture.cli.guard import usage_error
from suture.ir.errors import SutureError
from suture.ir.graph import Graph

if TYPE_CHECKING:
    import torch

    from suture.frontends.messages.graph import MessageGraph
    from suture.frontends.script.ast import TorchSource
    from suture.passes.relational.report import RelationalReport

_ASSUMED = {"edges": 100_000}
_ASSUMED_NODES = 10_000


def show_relational(
    model: str,
    *,
    inputs: str,
    args: str,
    weights: Path | None,
    edges: Path | None,
    sizes: Sequence[str],
    json: bool,
) -> None:
    """Print what becomes of a program: a `*.suture-graph` file, or a callable that gives a module whose `forward` takes a MessageGraph first.

    :param inputs: the tensors that `forward` takes behind the graph, as after `input` in a script
    :param edges: an *.npz file with `src`, `dst` and, where there are types, `type` and `node_type`; without, nothing is run and sizes are assumed
    :param sizes: numbers for symbolic sizes, as `edges=48810`, where there are no edges
    :raises SutureError: USAGE, FILE, RELATION, SCRIPT_MODEL, or what tracing says
    """
    from suture.drivers.relational.measuring import measured_report
    from suture.passes.relational.choosing import decide
    from suture.passes.relational.report import report
    from suture.passes.relational.statistics import assume

    if edges is not None and sizes:
        raise usage_error("--edges says all sizes", "leave --size out")
    g = _example() if edges is None else read_edges(edges)
    graph = load_program(model, g, inputs, args, weights)
    if edges is not None:
        found = measured_report(graph, _bound(graph, g))
    else:
        from suture.backends.onnx.export import numbers

        given = numbers(tuple(sizes))
        graph.hints = {name: given.get(name, _ASSUMED.get(name, _ASSUMED_NODES)) for name in graph.symbols()}
        statistics = assume(graph)
        found = report(graph, statistics, decide(graph, statistics))
    if json:
        print_json({"ok": True, "model": model, **found.as_data()})
    else:
        _print(found)


def load_program(model: str, g: MessageGraph, inputs: str, args: str, weights: Path | None) -> Graph:
    """The program as a graph of edges and nodes."""
    from suture.cli.sources import load_graph, torch_source
    from suture.frontends.archive import SUFFIX
    from suture.frontends.messages.tracing import trace
    from suture.frontends.script.imports import import_callable
    from suture.frontends.script.models import load_into, make_module

    if Path(model).suffix == SUFFIX:
        return load_graph(model, inputs="", weights=None, args="", planned=False)
    if ":" not in model or not inputs:
        raise usage_error(
            f"{model!r} is no program with inputs", 'write package.module:callable --input "f32[nodes, 64]"'
        )
    source = torch_source(model, inputs, args)
    module = make_module(source, import_callable(source.callable.value, Path.cwd()), Path.cwd(), device=None)
    if weights is not None:
        load_into(module, weights)
    return trace(module, g, *_features(source, g))


def _features(source: TorchSource, g: MessageGraph) -> list[torch.Tensor]:
    """An example of every tensor that the program takes behind the graph."""
    from suture.frontends.script.ast import InputType, SizeSymbol

    found: list[torch.Tensor] = []
    for item in source.inputs:
        if not isinstance(item.value, InputType) or item.name is not None:
            raise usage_error("the inputs of a program are tensors in order", 'write --input "f32[nodes, 64]"')
        shape = []
        for size in item.value.sizes:
            name = size.name.text if isinstance(size, SizeSymbol) else ""
            if name and name not in g.counts:
                raise usage_error(f"there are no {name} to count", f"it counts {', '.join(g.counts)}")
            shape.append(g.counts[name] if name else int(size.value))  # type: ignore[union-attr]
        found.append(_normal(item.value.dtype.text, shape, len(found)))
    return found


def _normal(dtype: str, shape: Sequence[int], number: int) -> torch.Tensor:
    from suture.ir.types import DTYPES
    from suture.passes.counter import counter_normal

    if dtype not in DTYPES or not DTYPES[dtype].is_floating_point:
        raise usage_error(f"features cannot be {dtype}", "f32 would be right")
    return counter_normal(0, f"input {number}", math.prod(shape)).reshape(list(shape)).to(DTYPES[dtype])


def _bound(graph: Graph, g: MessageGraph) -> list[torch.Tensor]:
    """The edges, and features drawn for them, in the order of the graph's inputs."""
    from suture.ir.sizes import evaluate_size
    from suture.ir.types import DTYPE_NAMES

    found = []
    for k, value in enumerate(graph.inputs):
        if value.name in g.tensors:
            found.append(g.tensors[value.name])
            continue
        shape = [evaluate_size(size, g.counts) for size in value.shape]
        found.append(_normal(DTYPE_NAMES[value.dtype], shape, k))
    return found


def _example() -> MessageGraph:
    """A few edges to trace with."""
    import torch

    from suture.frontends.messages.graph import MessageGraph

    ends = torch.tensor([0, 1, 2])
    return MessageGraph(ends, ends.flip(0), torch.zeros_like(ends), num_nodes=3, node_type=torch.zeros_like(ends))


def read_edges(path: Path) -> MessageGraph:
    """Edges from a file; `rel` and `ntype` are other names for the types of edges and nodes."""
    import torch

    from suture.frontends.messages.dataset_files import read_arrays
    from suture.frontends.messages.graph import MessageGraph

    def optional(*names: str) -> torch.Tensor | None:
        for name in names:
            with contextlib.suppress(SutureError):
                return torch.from_numpy(read_arrays(path, (name,))[name]).long()
        return None

    arrays = read_arrays(path, ("src", "dst"))
    src, dst = (torch.from_numpy(arrays[name]).long() for name in ("src", "dst"))
    kinds = optional("node_type", "ntype")
    nodes = len(kinds) if kinds is not None else int(max(src.max(), dst.max())) + 1 if len(src) else 0
    return MessageGraph(src, dst, optional("type", "rel"), num_nodes=nodes, node_type=kinds)


def _print(found: RelationalReport) -> None:
    print(found.statistics)
    print()
    run = bool(found.measured)
    titles = [
        "value",
        "lives on",
        "rows",
        "type",
        "computed by",
        "reordered",
        "predicted us",
        *(["measured us"] if run else []),
    ]
    rows = [
        [
            each.name, each.lives, f"{each.rows:,}", each.shape, each.computed, each.changed, _microseconds(each.predicted),
            *([_microseconds(each.measured)] if run else []),
        ]
        for each in found.values
    ]  # fmt: skip
    print_rows(titles, rows, left=(0, 1, 3, 4, 5))
    print(f"\n{found.decisions}")
    if run:
        print(", ".join(f"measured {name}: {taken:,.0f} us" for name, taken in found.measured.items()))
    else:
        print("sizes and pairs are assumed: --edges FILE.npz measures them, and runs the program")


def _microseconds(number: float | None) -> str:
    return "in its reader" if number is None else f"{number:,.0f}"
