"""Small relational graphs that tests lay out: programs over edges in the graph's own operators, and edges to run them on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st

from suture.ir.graph import Graph, Value
from suture.ir.sizes import Dim, symbol
from suture.ir.types import TensorType

F64, I64 = torch.float64, torch.int64
EDGES, NODES, PAIRS = symbol("edges"), symbol("nodes"), symbol("pairs")
TYPES, NODE_TYPES, WIDTH = 3, 2, 10


class Program:
    """A graph that takes node features and edges, and grows by operators."""

    def __init__(self, name: str, dtype: torch.dtype = F64, *, seed: int = 0) -> None:
        self.graph = Graph(name)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.x = self.graph.add_input("x", TensorType(dtype, (NODES, WIDTH)))
        self.src, self.dst, self.type = (
            self.graph.add_input(name, TensorType(I64, (EDGES,))) for name in ("src", "dst", "type")
        )

    def weight(self, *shape: int) -> Value:
        data = torch.randn(shape, generator=self.generator, dtype=F64).to(self.dtype)
        return self.graph.add_parameter(f"w{len(self.graph.parameters)}", data)

    def input(self, name: str, dtype: torch.dtype, *shape: Dim) -> Value:
        return self.graph.add_input(name, TensorType(dtype, shape))

    def op(self, operator: str, *inputs: Value, shape: tuple[Dim, ...] | None = None, **attributes: object) -> Value:
        return self.graph.add(operator, inputs, attributes, shapes=None if shape is None else [shape]).output  # type: ignore[arg-type]

    def at(self, table: Value, index: Value) -> Value:
        return self.op("embedding", table, index)

    def total(self, x: Value, index: Value, count: Dim = NODES) -> Value:
        return self.op("segment_sum", x, index, shape=(count, *x.shape[1:]))

    def returns(self, *values: Value) -> Graph:
        self.graph.set_outputs(list(values), [f"y{k}" for k in range(len(values))])
        self.graph.remove_dead()
        return self.graph


def convolution(dtype: torch.dtype = F64) -> Graph:
    """RGCN with the mean of each relation: a degree within (destination, type) on every edge."""
    p = Program("rgcn", dtype)
    pairs = p.graph.add("unique_rows", [p.dst, p.type], shapes=[(PAIRS,), (EDGES,)]).outputs
    ones = p.op("full", shape=(EDGES, 1), value=1.0, dtype=dtype)
    share = p.op("reciprocal", p.total(ones, pairs[1], PAIRS))
    message = p.op("typed_linear", p.at(p.x, p.src), p.weight(TYPES, WIDTH, 9), p.type)
    own = p.op("matmul", p.x, p.weight(WIDTH, 9))
    return p.returns(p.op("add", p.total(p.op("mul", message, p.at(share, pairs[1])), p.dst), own))


def attention(dtype: torch.dtype = F64) -> Graph:
    """RGAT: a softmax over the edges that meet in a node, of scores from both ends; the weights of edges are returned too."""
    p = Program("rgat", dtype)
    w, heads = p.weight(TYPES, WIDTH, 18), (EDGES, 2, 9)
    here, there = (
        p.op("reshape", p.op("typed_linear", p.at(p.x, end), w, p.type), shape=heads) for end in (p.src, p.dst)
    )
    scores = [p.op("typed_linear", side, p.weight(TYPES, 2, 9, 1), p.type) for side in (here, there)]
    score = p.op("leaky_relu", p.op("add", *scores), negative_slope=0.2)
    share = p.op("segment_softmax", score, p.dst, segments=NODES)
    return p.returns(p.total(p.op("mul", here, share), p.dst), share)


def transformer(dtype: torch.dtype = F64) -> Graph:
    """HGT: keys, queries and values by node type, products of both ends, priors of relations."""
    p = Program("hgt", dtype)
    kind = p.input("node_type", I64, NODES)
    k, q, v = (p.op("typed_linear", p.x, p.weight(NODE_TYPES, WIDTH, 9), kind) for _ in range(3))
    key = p.op("typed_linear", p.at(k, p.src), p.weight(TYPES, 9, 9), p.type)
    score = p.op("sum", p.op("mul", key, p.at(q, p.dst)), dims=(1,), keepdim=True)
    score = p.op("mul", score, p.at(p.weight(TYPES, 1), p.type))
    share = p.op("segment_softmax", score, p.dst, segments=NODES)
    message = p.op("typed_linear", p.at(v, p.src), p.weight(TYPES, 9, 9), p.type)
    return p.returns(
        p.op("typed_linear", p.total(p.op("mul", message, share), p.dst), p.weight(NODE_TYPES, 9, 4), kind)
    )


def compact_pairs(dtype: torch.dtype = F64) -> Graph:
    """Messages made once for each pair of type and source."""
    p = Program("compact", dtype)
    first, rank = p.graph.add("unique_rows", [p.type, p.src], shapes=[(PAIRS,), (EDGES,)]).outputs
    kind, source = p.at(p.type, first), p.at(p.src, first)
    made = p.op("tanh", p.op("typed_linear", p.at(p.x, source), p.weight(TYPES, WIDTH, 9), kind))
    return p.returns(p.total(p.at(made, rank), p.dst))


def edge_features(dtype: torch.dtype = F64) -> Graph:
    """Numbers of edges come in, are multiplied by a matrix, and go out; their sums and maxima meet in both ends."""
    p = Program("features", dtype)
    given = p.input("given", dtype, EDGES, 9)
    made = p.op(
        "relu",
        p.op("add", p.op("matmul", given, p.weight(9, 12)), p.op("matmul", p.at(p.x, p.src), p.weight(WIDTH, 12))),
    )
    highest = p.op("segment_max", made, p.dst, shape=(NODES, 12), empty=-1.0)
    turned = p.op("permute", made, dims=(1, 0))
    return p.returns(made, highest, p.total(made, p.src), turned, p.op("matmul", turned, made))


def readout(dtype: torch.dtype = F64) -> Graph:
    """Nodes of several graphs: messages, then sums over the nodes of each."""
    p = Program("readout", dtype)
    batch = p.input("batch", I64, NODES)
    made = p.op("tanh", p.total(p.at(p.x, p.src), p.dst))
    pooled = p.total(made, batch, 4)
    return p.returns(
        pooled, p.op("add", p.total(p.op("mul", p.at(made, p.src), p.at(made, p.dst)), p.dst), p.at(pooled, batch))
    )


def in_order(dtype: torch.dtype = F64) -> Graph:
    """Running sums over edges: their order matters, so it is kept."""
    p = Program("order", dtype)
    running = p.op("cumsum", p.at(p.x, p.src), dim=0)
    return p.returns(p.op("typed_linear", running, p.weight(TYPES, WIDTH, 4), p.type), p.total(running, p.dst))


def products_alone(dtype: torch.dtype = F64) -> Graph:
    """Scores of edges: a product by type, nothing that meets."""
    p = Program("scores", dtype)
    both = p.op("mul", p.op("typed_linear", p.at(p.x, p.src), p.weight(TYPES, WIDTH, WIDTH), p.type), p.at(p.x, p.dst))
    return p.returns(p.op("sum", both, dims=(1,), keepdim=False))


PROGRAMS: dict[str, Callable[..., Graph]] = {
    make.__name__: make
    for make in (convolution, attention, transformer, compact_pairs, edge_features, readout, in_order, products_alone)
}


@st.composite
def edges(draw: st.DrawFn) -> dict[str, int]:
    """How many nodes and edges, and a seed."""
    return {"nodes": draw(st.integers(1, 7)), "edges": draw(st.integers(0, 12)), "seed": draw(st.integers(0, 10_000))}


def inputs_of(graph: Graph, drawn: dict[str, int]) -> dict[str, torch.Tensor]:
    """Tensors for every input: indices inside their rows, some rows more often than others."""
    generator = torch.Generator().manual_seed(drawn["seed"])
    bounds = {"src": drawn["nodes"], "dst": drawn["nodes"], "type": TYPES, "node_type": NODE_TYPES, "batch": 4}
    made: dict[str, torch.Tensor] = {}
    for value in graph.inputs:
        shape = [size if isinstance(size, int) else drawn[str(size)] for size in value.shape]
        if value.dtype == I64:
            skewed = torch.rand(shape, generator=generator) ** 2
            made[value.name] = (skewed * bounds[value.name]).to(I64)
        else:
            made[value.name] = torch.randn(shape, generator=generator, dtype=F64).to(value.dtype)
    return made
