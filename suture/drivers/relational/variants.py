"""One way to compute a program: rewritten as was decided, differentiated, laid out, parted into inspector and executor, compiled.

A variant holds no weights and no edges: parameters are inputs of its kernels. So variants are shared by all programs of equal text in a process.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from suture.backends.compiled import compile_graph
from suture.backends.compiled_cuda import compile_graph_for_cuda
from suture.backends.compiled_function import CompiledFunction
from suture.drivers.differentiating import Ways, divide, needed
from suture.drivers.relational.arrivals import settle_arrivals, settle_departures
from suture.drivers.relational.keeping import keep_bases
from suture.drivers.relational.masks import Mask
from suture.ir.derivatives import moved_by
from suture.ir.graph import Graph, Parameter, Value
from suture.passes.gradient import GRADIENT, gradient
from suture.passes.recompute import recompute_cheap
from suture.passes.relational.choosing import Decisions, apply
from suture.passes.relational.costs import known_sizes
from suture.passes.relational.inspection import split_inspector
from suture.passes.relational.layout import lay_out
from suture.passes.relational.locality import is_index
from suture.passes.relational.long_products import cut_long_products
from suture.passes.relational.narrowing import MOST, narrow_indices
from suture.passes.relational.statistics import Statistics

Target = Literal["cpp", "cuda"]


@dataclass(eq=False)
class Variant:
    """A compiled way to compute a program.

    :param inspector: integers from edges
    :param ways: the way forward, and the way back if there is one
    :param count: the program's own outputs; what the way forward returns behind them is kept
    :param moved: the inputs and parameters that have gradients, by name, in the order of the way back's results
    :param masks: what dropout keeps, drawn at each call
    :param entries: for each operand of the way forward where it comes from: "inspector", "input" or "parameter", and the name there
    """

    inspector: Graph
    ways: Ways
    count: int
    moved: tuple[str, ...]
    masks: tuple[Mask, ...]
    forward: CompiledFunction
    backward: CompiledFunction | None
    entries: tuple[tuple[str, str], ...]

    @property
    def place(self) -> torch.device:
        """Where its kernels run."""
        return self.forward.place


_VARIANTS: weakref.WeakValueDictionary[str, Variant] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


def find_variant(
    graph: Graph,
    masks: Sequence[Mask],
    decisions: Decisions,
    wanted: Sequence[str],
    *,
    target: Target,
    statistics: Statistics,
    split: int = 0,
) -> Variant:
    """The variant of a program; compiled if no equal one is there.

    :param wanted: the inputs and parameters that gradients are asked for, by name
    :param masks: those of its inputs that say what dropout keeps
    :param statistics: the edges for which it is weighed what to keep for the way back
    :param split: on a GPU, segments of more rows come in pieces of so many; 0 for none
    :raises SutureError: GRADIENT, COMPILER, DEVICE or WRITE, as `compile_graph`
    """
    constants = [each for each in graph.parameters.values() if each.role == "constant" or not _moves(each)]
    steps = "\n".join(map(str, decisions.steps))
    seen = hashlib.sha256(
        "\0".join([str(graph), steps, *wanted, str(masks), target, str(_is_vast(statistics)), str(split)]).encode()
    )
    for each in constants:
        seen.update(f"{each.name}{each.data.flatten().tolist()}".encode())
    with _LOCK:  # compiling is done once, whoever asks first
        found = _VARIANTS.get(seen.hexdigest())
        if found is None:
            found = _VARIANTS[seen.hexdigest()] = _build(
                graph, tuple(masks), decisions, wanted, target, statistics, split
            )
        return found


def _build(
    graph: Graph,
    masks: tuple[Mask, ...],
    decisions: Decisions,
    wanted: Sequence[str],
    target: Target,
    statistics: Statistics,
    split: int,
) -> Variant:
    rewritten = apply(graph, decisions)
    moved = _moving(rewritten, wanted)
    count, outputs = len(rewritten.outputs), list(rewritten.output_names)
    given = {value.name for value in rewritten.inputs}
    both = gradient(rewritten, wrt=moved, recompute="nothing", check=False) if moved else rewritten
    laid = lay_out(both, check=False)
    settle_arrivals(laid)
    settle_departures(laid)
    if target == "cpp":
        cut_long_products(laid)
    inspector, executor = split_inspector(laid)
    if not _is_vast(statistics):
        narrow_indices(inspector, executor)
    executor.hints.update(known_sizes(rewritten, statistics))
    inspected = set(inspector.output_names)
    cotangents = {
        value: outputs.index(value.name.removeprefix(GRADIENT))
        for value in executor.inputs
        if value.name not in given and value.name not in inspected
    }
    if moved:
        _keep_less(executor, count)
    trained = [each for each in executor.parameters.values() if _moves(each) and (each.uses or each.is_graph_output())]
    ways = divide(executor, count, moved, cotangents, trained, graph.name)
    entries = [
        ("inspector" if value.name in inspected else "input", value.name)
        for value in executor.inputs
        if value not in cotangents
    ]
    entries += [("parameter", each.name) for each in trained]
    trusted = inspected | _looked_at(graph)
    forward = _compile(ways.forward, target, trusted, split)
    backward = _compile(ways.backward, target, trusted, split) if moved else None
    return Variant(inspector, ways, count, tuple(moved), masks, forward, backward, tuple(entries))


def _is_vast(statistics: Statistics) -> bool:
    """Whether there are more rows than 32 bits number with ease."""
    return max(statistics.sizes.values(), default=0) > MOST


def _moving(graph: Graph, wanted: Sequence[str]) -> list[str]:
    """Of the names that gradients are asked for, those that an output moves with."""
    known: dict[str, Value] = {**{value.name: value for value in graph.inputs}, **graph.parameters}
    outputs = set(graph.outputs)
    return [name for name in wanted if name in known and outputs & moved_by(graph.nodes, [known[name]])]


def _keep_less(graph: Graph, count: int) -> None:
    """Compute cheap values again on the way back: lookups above all, through which kernels read anyway."""
    first = needed(graph.outputs[:count])
    forward = [node for node in graph.nodes if node in first]
    recompute_cheap(graph, forward, [node for node in graph.nodes if node not in first])
    graph.remove_dead()
    first = needed(graph.outputs[:count])
    both = ([node for node in graph.nodes if (node in first) is ahead] for ahead in (True, False))
    keep_bases(graph, *both)


def _looked_at(graph: Graph) -> set[str]:
    """The index inputs that `check_indices` looks at once for all calls with them."""
    elsewhere = {"index", "gather"}
    return {
        value.name for value in graph.inputs if is_index(value) and elsewhere.isdisjoint(use.node.operator.name for use in value.uses)
    }  # fmt: skip


def _moves(parameter: Parameter) -> bool:
    """Whether a parameter may be another at the next call."""
    return parameter.role != "constant" and parameter.dtype.is_floating_point


def _compile(graph: Graph, target: Target, trusted: Collection[str], split: int) -> CompiledFunction:
    if target == "cuda":
        return compile_graph_for_cuda(graph, trusted=trusted, split=split)
    return compile_graph(graph, trusted=trusted)
