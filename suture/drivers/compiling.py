"""Compiling for this machine: what is exact and saves work is done on the graph first, then kernels are generated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, overload

from suture.backends.compiled import CompiledGraph, compile_graph
from suture.backends.compiled_cuda import CompiledCudaGraph, compile_graph_for_cuda
from suture.backends.compiled_operator import register
from suture.backends.cuda_search import compile_searched
from suture.drivers.differentiating import DifferentiableGraph, compile_with_gradient
from suture.drivers.exporting import prepare
from suture.drivers.relational.compiled import CompiledRelationalGraph, is_relational
from suture.ir.bind_sizes import bind_sizes
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph


@overload
def compile(
    graph: Graph,
    *,
    target: Literal["cpp"] = ...,
    optimise: bool = ...,
    specialise: Mapping[str, int] | None = ...,
    search: float = ...,
    sizes: Mapping[str, int] | None = ...,
    train: Literal[False] = ...,
) -> CompiledGraph: ...


@overload
def compile(
    graph: Graph,
    *,
    target: Literal["cuda"],
    optimise: bool = ...,
    specialise: Mapping[str, int] | None = ...,
    search: float = ...,
    sizes: Mapping[str, int] | None = ...,
    train: Literal[False] = ...,
) -> CompiledCudaGraph: ...


@overload
def compile(
    graph: Graph,
    *,
    target: Literal["cpp", "cuda"] = ...,
    specialise: Mapping[str, int] | None = ...,
    train: Literal[True],
) -> DifferentiableGraph: ...


def compile(
    graph: Graph,
    *,
    target: Literal["cpp", "cuda"] = "cpp",
    optimise: bool = True,
    specialise: Mapping[str, int] | None = None,
    search: float = 0.0,
    sizes: Mapping[str, int] | None = None,
    train: bool = False,
) -> CompiledGraph | CompiledCudaGraph | DifferentiableGraph | CompiledRelationalGraph:
    """Compile a graph: a function of tensors that computes what it does, without gradients. The parameters are those of now.

    The result is an operator of torch besides: `torch.compile` and `torch.export` take modules that call it. A graph of message passing gives a
    `CompiledRelationalGraph`, which is none; it sorts edges when it first sees them, and trains on a GPU too.

    :param target: `cpp`: C++ for this machine's processor; `cuda`: CUDA C++ for torch's current GPU
    :param optimise: whether linear operators are merged (batch norms folded), constants computed, and operators brought into canonical form first
    :param specialise: numbers for symbolic sizes, for code that runs at these alone
    :param search: seconds to spend on measuring which schedules are fastest; what was found before costs nothing
    :param sizes: numbers for symbolic sizes, at which the search measures
    :param train: whether gradients flow through it, to inputs and to `parameters()`, which an optimiser may move; it computes what the graph does in
        evaluation, and nothing is optimised before. On a GPU parameters that were elsewhere are copied there
    :raises SutureError: OPTION, if there is no such target; COMPILER, if there is no C++ compiler, or it refuses; DEVICE, if parameters are
        elsewhere than on the CPU; WRITE, if compiled code cannot be kept; SIZE, if a search lacks the number of a symbol; GRADIENT, if it
        shall train and an operator has no derivative
    """
    if target not in ("cpp", "cuda"):
        raise SutureError(
            Code.OPTION, f"there is no target {target!r}", where=graph.name, remedy="cpp and cuda are known"
        )
    if is_relational(graph) and not search:
        return CompiledRelationalGraph(
            bind_sizes(graph, specialise) if specialise else graph, target=target, train=train
        )
    bound = bind_sizes(graph, specialise) if specialise else graph
    if train:
        return compile_with_gradient(bound, target)
    ready = prepare(bound, check=False) if optimise else bound
    made: CompiledGraph | CompiledCudaGraph
    what: str = target
    if target == "cuda":
        made = compile_searched(ready, search, sizes or {}) if search > 0 else compile_graph_for_cuda(ready)
        what = f"{target} {made.place}"
    else:
        made = compile_graph(ready, target=target, search=search, sizes=sizes)
    inputs, outputs = ([value.type for value in values] for values in (ready.inputs, ready.outputs))
    made.operator = register(made, ready, inputs=inputs, outputs=outputs, what=what)
    return made
