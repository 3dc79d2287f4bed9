"""A relational program run on edges, kernel by kernel: what was predicted beside what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from suture.backends.compiled import compile_graph
from suture.backends.step_timing import time_steps
from suture.drivers.relational.incidence import find_incidence
from suture.drivers.relational.inspecting import inspect_edges
from suture.ir.graph import Graph
from suture.ir.semantics import arrange_inputs, bind_symbols
from suture.passes.relational.choosing import Decisions, apply, decide
from suture.passes.relational.costs import CPU
from suture.passes.relational.inspection import split_inspector
from suture.passes.relational.layout import lay_out
from suture.passes.relational.locality import is_index
from suture.passes.relational.report import RelationalReport, report
from suture.passes.relational.statistics import measure


def measure_values(
    graph: Graph, decisions: Decisions, inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
) -> dict[str, float]:
    """Compile a graph's way forward for this processor, run it, and time each kernel.

    :param inputs: a tensor for every input
    :returns: microseconds by the names of values; what a kernel takes that writes several is with the first
    :raises SutureError: INPUT, COMPILER or RELATION
    """
    decided = apply(graph, decisions)
    for node in decided.nodes:
        node.path = node.outputs[0].name  # what is put in place of a node has its path
    inspector, executor = split_inspector(lay_out(decided, check=False))
    given = dict(zip((value.name for value in graph.inputs), arrange_inputs(graph, inputs), strict=True))
    indices = {value.name: given[value.name] for value in graph.inputs if is_index(value)}
    found = inspect_edges(inspector, find_incidence(indices), indices, bind_symbols(graph, list(given.values())))
    given |= zip(inspector.output_names, found, strict=True)
    compiled = compile_graph(executor, trusted=[value.name for value in executor.inputs])
    operands = [given[value.name] for value in compiled.graph.inputs]
    times: dict[str, float] = {}
    for each in time_steps(compiled.program, operands):
        name = each.paths[0] or each.values[0]
        times[name] = times.get(name, 0.0) + each.microseconds
    return times


def measured_report(
    graph: Graph,
    inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
    *,
    compact: bool = True,
    reorder: bool = True,
) -> RelationalReport:
    """What becomes of a graph on edges, run as it is written and as decided."""
    statistics = measure(graph, inputs)
    decisions = decide(graph, statistics, compact=compact, reorder=reorder)
    written, decided = (measure_values(graph, each, inputs) for each in (Decisions(), decisions))
    made = report(graph, statistics, decisions, CPU, decided)
    totals = {"as written": sum(written.values()), "as decided": sum(decided.values())}
    return replace(made, measured=totals)
