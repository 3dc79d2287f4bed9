"""Message-passing programs drawn by chance from everything that the language has, for what must hold of any program."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from message_graphs import random_graph
from torch import nn

from suture.relational import MessageGraph

WIDTH, TYPES, KINDS = 4, 3, 2


class Run:
    """One run of a drawn program: the values so far, along edges and along nodes, all of one width."""

    def __init__(
        self, g: MessageGraph, x: torch.Tensor, draw: random.Random, weight: Callable[..., torch.Tensor]
    ) -> None:
        self.g, self.draw, self.weight = g, draw, weight
        self.nodes, self.edges = [x], [x[g.edges.src]]

    def node(self) -> torch.Tensor:
        return self.draw.choice(self.nodes)

    def edge(self) -> torch.Tensor:
        return self.draw.choice(self.edges)

    def heads(self) -> torch.Tensor:
        return self.edge().unflatten(-1, (2, -1))


Move = Callable[[Run], torch.Tensor]


def attend(r: Run, *, per_relation: bool) -> torch.Tensor:
    scores = (r.heads() * r.weight(TYPES, 2, WIDTH // 2)[r.g.edges.type]).sum(-1)
    return (r.g.softmax(torch.tanh(scores), per_relation=per_relation).unsqueeze(-1) * r.heads()).flatten(1)


def normalised(r: Run) -> torch.Tensor:
    come, go = (degree.clamp(min=1).double().rsqrt() for degree in (r.g.in_degree(), r.g.out_degree()))
    return r.edge() * (come[r.g.edges.dst] * go[r.g.edges.src]).unsqueeze(-1)


def by_relation(r: Run) -> torch.Tensor:
    groups = r.g.relations
    reduce = r.draw.choice([groups.sum, groups.mean, groups.max])
    return groups.into_nodes(torch.tanh(reduce(r.edge()) @ r.weight(TYPES, WIDTH, WIDTH)[groups.type]))


ALONG_EDGES: list[Move] = [
    lambda r: r.node()[r.g.edges.src],
    lambda r: r.node()[r.g.edges.dst],
    lambda r: r.edge() @ r.weight(TYPES, WIDTH, WIDTH)[r.g.edges.type],
    lambda r: r.edge() @ r.weight(TYPES, WIDTH, 3)[r.g.edges.type] @ r.weight(TYPES, 3, WIDTH)[r.g.edges.type],
    lambda r: (r.heads() @ r.weight(TYPES, 2, WIDTH // 2, WIDTH // 2)[r.g.edges.type]).flatten(1),
    lambda r: r.edge() @ r.weight(KINDS, WIDTH, WIDTH)[r.g.nodes.type[r.draw.choice([r.g.edges.src, r.g.edges.dst])]],
    lambda r: r.edge() @ r.weight(WIDTH, WIDTH),
    lambda r: r.edge() * r.edge(),
    lambda r: r.edge() + r.edge(),
    lambda r: torch.tanh(r.edge()),
    lambda r: r.edge() + r.weight(TYPES, WIDTH)[r.g.edges.type],
    lambda r: r.edge() * (r.edge() * r.weight(TYPES, WIDTH)[r.g.edges.type]).sum(-1, keepdim=True),
    lambda r: r.edge() * ((r.edge() @ r.weight(TYPES, WIDTH, WIDTH)[r.g.edges.type]) * r.edge()).sum(-1, keepdim=True),
    lambda r: attend(r, per_relation=False),
    lambda r: attend(r, per_relation=True),
    normalised,
]
ALONG_NODES: list[Move] = [
    lambda r: r.g.sum(r.edge()),
    lambda r: r.draw.choice([r.g.mean, r.g.max])(r.edge()),
    lambda r: r.g.mean(r.edge(), per_relation=True),
    lambda r: r.g.max(r.edge(), per_relation=True),
    by_relation,
    lambda r: r.node() @ r.weight(WIDTH, WIDTH),
    lambda r: r.node() @ r.weight(KINDS, WIDTH, WIDTH)[r.g.nodes.type] + r.weight(KINDS, WIDTH)[r.g.nodes.type],
    lambda r: torch.tanh(r.node() + r.node()),
]


class DrawnProgram(nn.Module):
    """So many moves, drawn from a seed; what it returns adds up the values of nodes, so that all of them count."""

    def __init__(self, seed: int, moves: int) -> None:
        super().__init__()
        self.seed, self.moves = seed, moves
        self.weights = nn.ParameterList()
        self(random_graph(types=TYPES, kinds=KINDS), torch.zeros(20, WIDTH, dtype=torch.float64))

    def forward(self, g: MessageGraph, x: torch.Tensor) -> torch.Tensor:
        used = 0

        def weight(*shape: int) -> torch.Tensor:
            nonlocal used
            used += 1
            if used > len(self.weights):
                self.weights.append(nn.Parameter(torch.randn(shape, dtype=torch.float64) / 2))
            return self.weights[used - 1]

        run = Run(g, x, random.Random(self.seed), weight)
        for _ in range(self.moves):
            along_edges = run.draw.random() < 0.6
            made = run.draw.choice(ALONG_EDGES if along_edges else ALONG_NODES)(run)
            (run.edges if along_edges else run.nodes).append(made)
        return sum(run.nodes[1:], g.sum(run.edges[-1]))
