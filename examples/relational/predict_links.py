"""Predict the links of FB15k-237: an RGCN encoder and a DistMult decoder, with PyTorch Geometric's layer in torch, and both compiled.

    python examples/relational/predict_links.py [--epochs N] [--seed N] [--folder FOLDER]

The encoder sees the training edges and their reverses; an epoch scores every training edge and as many with one end replaced, and takes one step
(Schlichtkrull et al. 2018, arXiv 1703.06103, section 4). Both sides draw the same numbers, so their losses fall alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import RGCNConv

import suture
from suture import relational
from suture.relational import MessageGraph, RelationalData


@dataclass
class Training:
    """What a training gave: the loss of every epoch, seconds of an epoch (the median), mean reciprocal rank on some validation edges."""

    losses: list[float] = field(default_factory=list)
    epoch: float = 0.0
    rank: float = 0.0


class DistMult(nn.Module):
    """`<x_u, r, x_v>`: how likely each edge of a graph is, as a logit (Yang et al. 2015). A program that runs as it is, and compiles."""

    def __init__(self, types: int, width: int) -> None:
        super().__init__()
        self.relation = nn.Parameter(torch.empty(types, width))

    def forward(self, g: MessageGraph, x: Tensor) -> Tensor:
        e = g.edges
        return (x[e.src] * self.relation[e.type] * x[e.dst]).sum(-1)


class LinkPredictor(nn.Module):
    """Embeddings, one RGCN layer, and DistMult as the score of an edge."""

    def __init__(self, data: RelationalData, width: int, bases: int | None) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(data.num_nodes, width))
        self.decoder = DistMult(data.num_types, width)
        self.layer = RGCNConv(width, width, 2 * data.num_types, num_bases=bases)
        nn.init.xavier_uniform_(self.embedding)
        nn.init.xavier_uniform_(self.decoder.relation)
        self.score: nn.Module = self.decoder

    def accelerate(self) -> None:
        """Compile the encoder's layer and the decoder; the parameters stay what they are."""
        self.layer = suture.accelerate(self.layer)
        self.score = relational.compile(self.decoder)

    def encode(self, edges: Tensor, types: Tensor) -> Tensor:
        """The nodes' vectors, [nodes, width]."""
        return self.embedding + self.layer(self.embedding, edges, types)


def train(
    data: RelationalData, seed: int, *, compiled: bool, epochs: int, width: int = 64, bases: int | None = None, rate: float = 0.01,
    clock: Callable[[], float] = time.perf_counter,
) -> Training:  # fmt: skip
    """Train from a seed, with PyTorch Geometric's layer and torch, or with both the layer and the decoder compiled.

    :param data: a knowledge graph with its split, without reverses
    :param clock: what an epoch's time is read from
    """
    known = data.part("train")
    both = known.with_reverses()
    edges, types = both.edge_index, both.type
    torch.manual_seed(seed)
    model = LinkPredictor(data, width, bases)
    if compiled:
        model.accelerate()
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(seed)
    truth = torch.cat([torch.ones(len(known.src)), torch.zeros(len(known.src))])
    right = known.graph()
    result, seconds = Training(), []
    for _ in range(epochs):
        start = clock()
        src, dst = corrupt(known, draw)
        wrong = MessageGraph(src, dst, known.type, num_nodes=data.num_nodes, num_types=data.num_types)
        optimiser.zero_grad()
        x = model.encode(edges, types)
        logits = torch.cat([model.score(right, x), model.score(wrong, x)])
        loss = F.binary_cross_entropy_with_logits(logits, truth)
        loss.backward()
        optimiser.step()
        seconds.append(clock() - start)
        result.losses.append(float(loss.detach()))
    result.epoch = statistics.median(seconds)
    with torch.no_grad():
        result.rank = reciprocal_rank(model, model.encode(edges, types), data.part("valid"))
    return result


def corrupt(known: RelationalData, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """One wrong edge for every edge: a random node in place of its source or of its destination."""
    count = len(known.src)
    wrong = torch.randint(known.num_nodes, (count,), generator=draw)
    at_source = torch.rand(count, generator=draw) < 0.5
    return torch.where(at_source, wrong, known.src), torch.where(at_source, known.dst, wrong)


def reciprocal_rank(model: LinkPredictor, x: Tensor, held: RelationalData, count: int = 1000) -> float:
    """The mean of one over the rank of the right destination among all nodes, unfiltered, over some of the edges."""
    src, types, dst = held.src[:count], held.type[:count], held.dst[:count]
    scores = (x[src] * model.decoder.relation[types]) @ x.T
    better = (scores > scores.gather(1, dst[:, None])).sum(1)
    return float((1.0 / (1 + better)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the data are; downloaded to the cache without it")
    given = parser.parse_args()
    data = relational.load("fb15k237", given.folder)
    print(data)
    for compiled in (True, False):
        found = train(data, given.seed, compiled=compiled, epochs=given.epochs)
        losses = " ".join(f"{loss:.5f}" for loss in found.losses)
        side = "compiled" if compiled else "PyG"
        print(
            f"{side:8}: loss {losses}; reciprocal rank {found.rank:.4f}; {1e3 * found.epoch:.0f} ms an epoch",
            flush=True,
        )


if __name__ == "__main__":
    main()
