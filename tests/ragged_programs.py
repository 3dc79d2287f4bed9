"""Random programs over rows in segments: two ways to segment them, look-ups between, values wide and narrow."""

from __future__ import annotations

import random

import torch

from suture.ir.graph import Graph, Value
from suture.ir.sizes import Dim, evaluate_size, symbol
from suture.ir.types import TensorType

EDGES, NODES, PAIRS = map(symbol, ("edges", "nodes", "pairs"))
_SIZES: dict[str, Dim] = {"e": EDGES, "n": NODES, "p": PAIRS}


class Program:
    """A graph that grows step by step; values are kept by where they live and whether they are wide."""

    def __init__(self, seed: int, heads: int = 2, width: int = 4) -> None:
        self.random = random.Random(seed)
        self.graph, self.heads, self.width = Graph("program"), heads, width
        self.p, self.q, self.order, self.at = (
            self.graph.add_input(name, TensorType(torch.int64, (size,)))
            for name, size in (("p", NODES + 1), ("q", PAIRS + 1), ("order", EDGES), ("at", EDGES))
        )
        self.values: dict[tuple[str, bool], list[Value]] = {
            (space, wide): [self.graph.add_input(f"{space}{int(wide)}", TensorType(torch.float64, self.shape(space, wide)))]
            for space in "enp" for wide in (True, False)
        }  # fmt: skip

    def shape(self, space: str, wide: bool) -> tuple[Dim, ...]:
        return (_SIZES[space], self.heads, self.width if wide else 1)

    def pick(self, space: str, wide: bool) -> Value:
        """A value, more likely a recent one."""
        found = self.values[space, wide]
        return self.random.choice(found[-3:] if self.random.random() < 0.8 else found)

    def add(self, operator: str, *operands: Value, shape: tuple[Dim, ...] | None = None, **attributes: object) -> Value:
        shapes = None if shape is None else [shape]
        return self.graph.add(operator, operands, attributes, shapes=shapes).output  # type: ignore[arg-type]

    def step(self) -> None:
        """One more value."""
        space, wide = self.random.choice("eeenp"), self.random.random() < 0.6
        made = self.of_edges(wide) if space == "e" else self.of_segments(space, wide)
        self.values[space, wide].append(made)

    def of_edges(self, wide: bool) -> Value:
        kind, shape = self.random.random(), self.shape("e", wide)
        if kind < 0.25:
            space = self.random.choice("np")
            return self.add("csr_spread", self.pick(space, wide), self.p if space == "n" else self.q, shape=shape)
        if kind < 0.45:
            space = self.random.choice("ep")
            return self.add("embedding", self.pick(space, wide), self.order if space == "e" else self.at)
        if kind < 0.6 and not wide:
            return self.add("sum", self.pick("e", True), dims=(2,), keepdim=True)
        if kind < 0.7:
            return self.add(self.random.choice(["exp", "tanh", "leaky_relu", "neg"]), self.pick("e", wide))
        if kind < 0.78:
            flat = self.add("reshape", self.pick("e", wide), shape=(EDGES, self.heads * (self.width if wide else 1)))
            return self.add("reshape", self.add("tanh", flat), shape=shape)
        other = self.pick("e", wide and self.random.random() < 0.5)
        return self.add(self.random.choice(["mul", "add", "sub"]), self.pick("e", wide), other)

    def of_segments(self, space: str, wide: bool) -> Value:
        kind = self.random.random()
        if kind < 0.7:
            operator = self.random.choice(["csr_sum", "csr_sum", "csr_max"])
            return self.add(operator, self.pick("e", wide), self.p if space == "n" else self.q)
        if kind < 0.85:
            return self.add("tanh", self.pick(space, wide))
        other = self.pick(space, wide and self.random.random() < 0.5)
        return self.add(self.random.choice(["mul", "add"]), self.pick(space, wide), other)


def random_graph(seed: int, length: int = 14) -> Graph:
    """A graph of so many steps; what nothing reads is returned, and some of the rest."""
    program = Program(seed)
    for _ in range(length):
        program.step()
    made = [value for values in program.values.values() for value in values[1:]]
    program.graph.set_outputs([value for value in made if not value.uses or program.random.random() < 0.2])
    return program.graph


def random_inputs(graph: Graph, seed: int, nodes: int = 7, pairs: int = 5, edges: int = 30) -> list[torch.Tensor]:
    """Pointers that fit the sizes, indices inside, numbers that exponentials bear."""
    torch.manual_seed(seed)
    sizes = {"edges": edges, "nodes": nodes, "pairs": pairs}

    def pointers(segments: int) -> torch.Tensor:
        lengths = torch.bincount(torch.randint(0, segments, (edges,)), minlength=segments)
        return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])

    known = {
        "p": pointers(nodes),
        "q": pointers(pairs),
        "order": torch.randint(0, edges, (edges,)),
        "at": torch.randint(0, pairs, (edges,)),
    }
    return [
        known[value.name]
        if value.name in known
        else torch.randn([evaluate_size(dim, sizes) for dim in value.shape], dtype=torch.float64) * 0.5
        for value in graph.inputs
    ]
