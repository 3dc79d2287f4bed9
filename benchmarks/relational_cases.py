"""The graphs, layers and sides of the relational benchmark: one layer in every form, with its own copy of inputs and parameters."""

from __future__ import annotations

import copy
import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import relational_plain as plain
import torch
from torch import Tensor, nn

import suture
from suture import relational
from suture.relational import RelationalData

OURS, PYG, PLAIN = "suture", "PyG", "plain"
PYG_COMPILED, PLAIN_COMPILED = "PyG, torch.compile", "plain, torch.compile"
NO_COMPACTION, NO_REORDERING, NEITHER = "suture, not compacted", "suture, not reordered", "suture, neither"
SWITCHES = {
    OURS: (True, True), NO_COMPACTION: (False, True), NO_REORDERING: (True, False), NEITHER: (False, False)
}  # fmt: skip
SIDES = (OURS, PYG, PLAIN, NO_COMPACTION, NO_REORDERING, NEITHER, PYG_COMPILED, PLAIN_COMPILED)
COMPILED = PYG_COMPILED, PLAIN_COMPILED
LAYERS = ("rgcn", "rgat", "hgt")
MODES = ("inference", "training")
REAL = ("aifb", "mutag", "fb15k237")
SYNTHETIC = ("bgs", "am", "mag", "biokg")
WIDE_GRID = "aifb", "mutag"
FOLDER = "SUTURE_RELATIONAL_DATA"


@dataclass(frozen=True)
class Case:
    """One layer on one graph; `scale` is the share of a synthetic graph's nodes and edges."""

    layer: str
    graph: str
    width: int
    heads: int
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.layer} {self.graph} {self.width}" + (f"x{self.heads}" if self.heads > 1 else "")


@dataclass
class Side:
    """A layer in one form: how it runs, what to differentiate, and with which gradients."""

    run: Callable[[], list[Tensor]]
    gradients: list[Tensor]
    inputs: list[Tensor]
    parameters: list[Tensor]

    def infer(self) -> list[Tensor]:
        with torch.no_grad():
            return self.run()

    def train(self) -> None:
        """Forward and backward: gradients of the inputs and of all parameters."""
        for leaf in (*self.inputs, *self.parameters):
            leaf.grad = None
        torch.autograd.backward(self.run(), self.gradients)

    def step(self, mode: str) -> Callable[[], object]:
        """One of `MODES`, to be run again and again."""
        return self.train if mode == "training" else self.infer


@functools.lru_cache(maxsize=2)
def load_graph(name: str, scale: float = 1.0) -> RelationalData:
    """A graph by name: the real ones from the folder in SUTURE_RELATIONAL_DATA, else downloaded; knowledge graphs with their reverses.

    :raises suture.SutureError: FILE: it is not here, and its site does not answer
    """
    if name in SYNTHETIC:
        return relational.synthetic(name, scale=scale)
    data = relational.load(name, os.environ.get(FOLDER) or None)
    return data if data.split is None else data.with_reverses()


class Bench:
    """A case with its inputs: makes any side of it."""

    def __init__(self, case: Case, data: RelationalData, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.case, self.data, self.device = case, data, device
        order = torch.argsort(data.node_type, stable=True)  # types come one after the other, as in PyG's dictionaries
        place = torch.argsort(order)
        self.src, self.dst, self.type = (each.to(device) for each in (place[data.src], place[data.dst], data.type))
        self.node_type = data.node_type[order].to(device)
        self.nodes, self.types, self.node_types = data.num_nodes, data.num_types, data.num_node_types
        self.x = torch.randn(self.nodes, case.width, device=device)
        self.gradient = torch.randn(self.nodes, case.width, device=device)
        self.edge_index = torch.stack([self.src, self.dst])
        if case.layer == "hgt":
            self.cut_by_type()
            self.gradient[~self.received[self.node_type]] = 0
        self.layer = self.make().to(device)

    def on(self, device: str) -> Bench:
        """The same on another device; itself where it is there already."""
        return self if device == self.device else Bench(self.case, self.data, device)

    def cut_by_type(self) -> None:
        """The edges by type, and the names of types, as PyG's HGTConv wants them; relations without edges are left out."""
        self.counts = torch.bincount(self.node_type, minlength=self.node_types).tolist()
        starts = [sum(self.counts[:place]) for place in range(self.node_types)]
        names = [f"n{place}" for place in range(self.node_types)]
        order = torch.argsort(self.type, stable=True)
        runs = order.split(torch.bincount(self.type, minlength=self.types).tolist())
        self.received = torch.zeros(self.node_types, dtype=torch.bool, device=self.device)
        self.edges: dict[tuple[str, str, str], Tensor] = {}
        for place, run in enumerate(runs):
            if len(run):
                source, target = (int(self.node_type[each[run[0]]]) for each in (self.src, self.dst))
                ends = torch.stack([self.src[run] - starts[source], self.dst[run] - starts[target]])
                self.edges[names[source], f"e{place}", names[target]] = ends
                self.received[target] = True
        self.names = names
        self.type = torch.unique(self.type, return_inverse=True)[1]  # numbered as the dictionary's keys
        self.types = len(self.edges)

    def make(self) -> nn.Module:
        """PyG's layer, whose parameters all sides share the values of."""
        from torch_geometric.nn import HGTConv, RGATConv, RGCNConv

        case, width = self.case, self.case.width
        if case.layer == "rgcn":
            return RGCNConv(width, width, self.types, aggr="mean")
        if case.layer == "rgat":
            return RGATConv(width, width // case.heads, self.types, heads=case.heads)
        return HGTConv(width, width, (self.names, list(self.edges)), heads=case.heads)

    def side(self, name: str) -> Side:
        """Make one side: nothing of it is shared with another."""
        if name in (PLAIN, PLAIN_COMPILED):
            return self.plain_side(torch.float32, name == PLAIN_COMPILED)
        layer = copy.deepcopy(self.layer)
        if name in SWITCHES:
            compact, reorder = SWITCHES[name]
            layer = suture.accelerate(layer, compact=compact, reorder=reorder)
        forward = _compiled(layer) if name == PYG_COMPILED else layer
        if self.case.layer != "hgt":
            x = self.x.clone().requires_grad_()
            return Side(
                lambda: [forward(x, self.edge_index, self.type)], [self.gradient], [x], list(layer.parameters())
            )
        parts = [part.clone().requires_grad_() for part in self.x.split(self.counts)]
        features = dict(zip(self.names, parts, strict=True))
        received = [place for place, got in enumerate(self.received.tolist()) if got]
        gradients = self.gradient.split(self.counts)

        def run() -> list[Tensor]:
            found = forward(features, self.edges)
            return [found[self.names[place]] for place in received]

        return Side(run, [gradients[place] for place in received], parts, list(layer.parameters()))

    def plain_side(self, dtype: torch.dtype, compiled: bool = False) -> Side:
        """The plain plan; in float64 it is what the other sides are checked against."""
        layout = plain.Layout(self.src, self.dst, self.type, self.nodes, self.types, self.node_type, self.node_types)
        kinds = {"rgcn": plain.PlainRGCN, "rgat": plain.PlainRGAT, "hgt": plain.PlainHGT}
        layer = kinds[self.case.layer](self.layer).to(dtype)
        forward = _compiled(layer) if compiled else layer
        x = self.x.to(dtype, copy=True).requires_grad_()
        return Side(lambda: [forward(x, layout)], [self.gradient.to(dtype)], [x], list(layer.parameters()))

    def check(self, side: Side, *, gradients: bool) -> float:
        """How far a side is off what is expected, relative to the largest element: its outputs, and the gradients of its inputs."""
        found, expected = torch.cat(side.infer()), self.expected[0]
        if len(found) != len(expected):  # PyG's HGT leaves out nodes whose type receives nothing
            expected = expected[self.received[self.node_type]]
        error = _error(found, expected)
        if gradients:
            side.train()
            error = max(error, self.gradient_error(side))
        return error

    def gradient_error(self, side: Side) -> float:
        """How far the gradients of the inputs are off, of a side that has been trained a step.

        RGAT's may be off in one row of a thousand: where a score is zero but for rounding, `leaky_relu` has one slope or the other.
        """
        found, expected = torch.cat([_gradient(each) for each in side.inputs]), self.expected[1]
        off = (found - expected).abs().amax(1)
        spared = len(off) // 1000 if self.case.layer == "rgat" else 0
        return float(off.kthvalue(len(off) - spared).values / expected.abs().max().clamp(min=1e-30))

    @functools.cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Outputs and gradients of the inputs, by the plain plan in float64; kept in float32."""
        oracle = self.plain_side(torch.float64)
        oracle.train()
        return oracle.infer()[0].float(), _gradient(oracle.inputs[0]).float()


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _compiled(layer: nn.Module) -> Callable[..., object]:
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    torch._dynamo.reset()
    return torch.compile(layer)


def cases(
    graphs: Sequence[str], layers: Sequence[str], widths: Sequence[int], heads: Sequence[int], scale: float = 1.0
) -> list[Case]:
    """Every combination; RGCN has no heads."""
    return [
        Case(layer, graph, width, count, scale)
        for graph in graphs for layer in layers for width in widths for count in ([1] if layer == "rgcn" else heads)
    ]  # fmt: skip
