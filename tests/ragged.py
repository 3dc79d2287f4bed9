"""Graphs over rows in segments, in their own text, and what runs all their kernels: fast, checking both ways, and as a GPU would."""

from __future__ import annotations

from collections.abc import Sequence

import cuda_stand_in
import torch
from lowered import checking, fast

from suture.codegen.program import Program, lower
from suture.codegen.step import KernelStep
from suture.ir.graph import Graph, Value
from suture.ir.semantics import bind_symbols, evaluate, run_node
from suture.ir.sizes import evaluate_size
from suture.ir.text import parse_graph

WEIGHTED_SUM = """\
graph weighted_sum(%x: {f}[pairs, {F}], %at: i64[edges], %norm: {f}[edges, 1], %p: i64[nodes + 1], %bias: {f}[{F}]) {{
  %z: {f}[edges, {F}] = embedding(%x, %at)
  %m: {f}[edges, {F}] = mul(%z, %norm)
  %y: {f}[nodes, {F}] = csr_sum(%m, %p)
  %b: {f}[nodes, {F}] = add(%y, %bias)
  %o: {f}[nodes, {F}] = relu(%b)
  return %o
}}
"""

ATTENTION = """\
graph attention(%z: {f}[pairs, {H}, {D}], %at: i64[edges], %a: {f}[pairs, {H}, 1], %q: {f}[nodes, {H}, 1], %p: i64[nodes + 1]) {{
  %k: {f}[edges, {H}, 1] = embedding(%a, %at)
  %own: {f}[edges, {H}, 1] = csr_spread(%q, %p)
  %raw: {f}[edges, {H}, 1] = add(%k, %own)
  %s: {f}[edges, {H}, 1] = leaky_relu(%raw) negative_slope=0.2
  %top: {f}[nodes, {H}, 1] = csr_max(%s, %p)
  %tops: {f}[edges, {H}, 1] = csr_spread(%top, %p)
  %less: {f}[edges, {H}, 1] = sub(%s, %tops)
  %e: {f}[edges, {H}, 1] = exp(%less)
  %total: {f}[nodes, {H}, 1] = csr_sum(%e, %p)
  %totals: {f}[edges, {H}, 1] = csr_spread(%total, %p)
  %alpha: {f}[edges, {H}, 1] = div(%e, %totals)
  %v: {f}[edges, {H}, {D}] = embedding(%z, %at)
  %m: {f}[edges, {H}, {D}] = mul(%v, %alpha)
  %y: {f}[nodes, {H}, {D}] = csr_sum(%m, %p)
  %o: {f}[nodes, {H} * {D}] = reshape(%y)
  return %o
}}
"""

INNER_PRODUCTS = """\
graph inner_products(%q: {f}[nodes, {H}, {D}], %x: {f}[pairs, {H}, {D}], %at: i64[edges], %mu: {f}[edges, {H}], %p: i64[nodes + 1]) {{
  %own: {f}[edges, {H}, {D}] = csr_spread(%q, %p)
  %k: {f}[edges, {H}, {D}] = embedding(%x, %at)
  %m: {f}[edges, {H}, {D}] = mul(%own, %k)
  %s: {f}[edges, {H}] = sum(%m) dims=(2,)
  %o: {f}[edges, {H}] = mul(%s, %mu)
  return %o
}}
"""

CHANNELS = """\
graph channels(%x: {f}[edges, {F}], %p: i64[nodes + 1]) {{
  %top: {f}[nodes, {F}] = csr_max(%x, %p) empty=3.0
  %tops: {f}[edges, {F}] = csr_spread(%top, %p)
  %less: {f}[edges, {F}] = sub(%x, %tops)
  %e: {f}[edges, {F}] = exp(%less)
  %total: {f}[nodes, {F}] = csr_sum(%e, %p)
  %weight: {f}[nodes, {F}] = reciprocal(%total)
  %weights: {f}[edges, {F}] = csr_spread(%weight, %p)
  %y: {f}[edges, {F}] = mul(%e, %weights)
  return %y, %top
}}
"""

SPREAD = """\
graph spread(%x: {f}[nodes, {F}], %p: i64[nodes + 1], %i: i64[edges]) {{
  %y: {f}[edges, {F}] = csr_spread(%x, %p)
  %at: {f}[edges, {F}] = embedding(%y, %i)
  %t: {f}[edges, {F}] = tanh(%at)
  return %t
}}
"""

AS_MANY = """\
graph as_many(%x: {f}[rows, {F}], %p: i64[rows + 1]) {{
  %twice: {f}[rows, {F}] = add(%x, %x)
  %y: {f}[rows, {F}] = csr_sum(%twice, %p)
  %square: {f}[rows, {F}] = mul(%y, %y)
  %own: {f}[rows, {F}] = csr_spread(%square, %p)
  %o: {f}[rows, {F}] = mul(%own, %twice)
  return %o, %square
}}
"""

COUNTS = """\
graph counts(%x: i64[edges, {F}], %p: i64[nodes + 1]) {{
  %y: i64[nodes, {F}] = csr_sum(%x, %p)
  %top: i64[nodes, {F}] = csr_max(%x, %p) empty=-1
  return %y, %top
}}
"""


def graph_of(text: str, dtype: str = "f32", **sizes: int) -> Graph:
    """A graph of one of the texts."""
    return parse_graph(text.format(f=dtype, **sizes))


def pointers(lengths: Sequence[int]) -> torch.Tensor:
    """Pointers of segments of so many rows."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def draw(graph: Graph, lengths: Sequence[int], pairs: int, seed: int) -> list[torch.Tensor]:
    """Inputs: pointers of the lengths, indices below `pairs`, numbers."""
    torch.manual_seed(seed)
    sizes = {"pairs": pairs, "edges": sum(lengths), "nodes": len(lengths), "rows": len(lengths)}
    found = []
    for value in graph.inputs:
        shape = [evaluate_size(dim, sizes) for dim in value.shape]
        if value.name == "p":
            found.append(pointers(lengths))
        elif value.name in ("at", "i"):
            found.append(torch.randint(0, max(pairs if value.name == "at" else sum(lengths), 1), shape))
        elif value.dtype.is_floating_point:
            found.append(torch.randn(shape).to(value.dtype))
        else:
            found.append(torch.randint(-9, 10, shape))
    return found


def run(program: Program, inputs: Sequence[torch.Tensor], mode: str) -> list[torch.Tensor]:
    """The outputs of a program; memory is full of sevens before anything is written.

    :param mode: `fast`, the checking print `forwards` or `backwards`, or the CUDA print on a stand-in: `gpu`, `gpu backwards`
    """
    graph = program.graph
    symbols = bind_symbols(graph, inputs)
    memory: dict[Value, torch.Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    memory |= {value: value.data for value in graph.parameters.values()}
    gpu = cuda_stand_in.device(backwards=mode == "gpu backwards") if mode.startswith("gpu") else None
    loaded = gpu.load(program.kernels) if gpu is not None else {}
    for step in program.steps:
        if not isinstance(step, KernelStep):
            made = run_node(step, [None if each is None else memory[each] for each in step.inputs], symbols)
            memory |= dict(zip(step.outputs, (each.contiguous() for each in made), strict=True))
            continue
        for value in step.arguments:
            if value not in memory:
                memory[value] = torch.full([evaluate_size(dim, symbols) for dim in value.shape], 77, dtype=value.dtype)
        sizes = [evaluate_size(size, symbols) for size in step.sizes]
        tensors = [memory[value].contiguous() for value in step.arguments]
        if gpu is not None:
            loaded[step.kernel.name].launch(sizes, [each.data_ptr() for each in tensors])
        elif mode == "fast":
            fast(step.kernel, sizes, tensors)
        else:
            checking(step.kernel, sizes, tensors, backwards=mode == "backwards")
    return [memory[value] for value in graph.outputs]


def program_of(graph: Graph, mode: str) -> Program:
    """The kernels of a graph; nothing over segments is left to torch."""
    program = lower(graph, "cuda" if mode.startswith("gpu") else "cpp")
    assert not program.left, str(program)
    return program


def expected(text: str, inputs: Sequence[torch.Tensor], **sizes: int) -> tuple[torch.Tensor, ...]:
    """The outputs in float64, one node after the other."""
    wide = [each.double() if each.dtype.is_floating_point else each for each in inputs]
    return tuple(evaluate(graph_of(text, "f64", **sizes), wide))
