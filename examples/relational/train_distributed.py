"""Mini-batch training of a compiled R-GCN in several processes:

    python examples/relational/train_distributed.py                                   # one process
    torchrun --nproc-per-node 2 examples/relational/train_distributed.py              # two, the same losses

Each step takes a batch of nodes, each process its share of them with all that reaches them in two steps; `DistributedDataParallel` averages the
gradients.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rgcn import RGCN
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from suture import relational
from suture.relational import MessageGraph

NODES, EDGES, TYPES, WIDTH, CLASSES, BATCH, NEIGHBOURS = 2000, 16000, 8, 32, 4, 256, 10


class Classifier(nn.Module):
    """Two layers of R-GCN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = RGCN(WIDTH, WIDTH, TYPES), RGCN(WIDTH, CLASSES, TYPES)

    def forward(self, g: MessageGraph, x: Tensor) -> Tensor:
        return self.second(g, self.first(g, x).relu())


def make_data() -> tuple[Tensor, Tensor, Tensor]:
    """Edges `[3, e]` (source, destination, type), features and labels: a node's label is that of most of its sources."""
    edges = torch.stack([torch.randint(high, (EDGES,)) for high in (NODES, NODES, TYPES)])
    kind = torch.randint(CLASSES, (NODES,))
    counts = torch.zeros(NODES, CLASSES).index_add_(0, edges[1], F.one_hot(kind[edges[0]], CLASSES).float())
    return edges, F.one_hot(kind, WIDTH) + torch.randn(NODES, WIDTH) / 4, counts.argmax(1)


def draw_neighbours(edges: Tensor) -> Tensor:
    """At most `NEIGHBOURS` of the edges to each node, drawn anew in each epoch, the same in all processes."""
    order = torch.randperm(edges.shape[1])
    order = order[edges[1, order].argsort(stable=True)]
    dst = edges[1, order]
    place = torch.arange(len(dst)) - torch.searchsorted(dst, dst)
    return edges[:, order[place < NEIGHBOURS]]


def surroundings(edges: Tensor, seeds: Tensor, hops: int = 2) -> tuple[MessageGraph, Tensor, Tensor]:
    """The graph of all that reaches the seeds in so many steps, the numbers of its nodes, and where the seeds stand among them."""
    kept, reached = torch.zeros(edges.shape[1], dtype=torch.bool), torch.zeros(NODES, dtype=torch.bool)
    reached[seeds] = True
    for _ in range(hops):
        kept |= reached[edges[1]]
        reached[edges[0, kept]] = True
    nodes, number = reached.nonzero()[:, 0], reached.cumsum(0) - 1
    src, dst, type = edges[:, kept]
    return MessageGraph(number[src], number[dst], type, num_nodes=len(nodes), num_types=TYPES), nodes, number[seeds]


def train(rank: int, world: int, epochs: int = 4) -> list[float]:
    """Train, as one of `world` processes; the mean loss of each step over all of them."""
    torch.manual_seed(0)
    edges, x, labels = make_data()
    model: nn.Module = relational.compile(Classifier())
    if world > 1:
        model = DistributedDataParallel(model)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(epochs):
        drawn = draw_neighbours(edges)
        for batch in torch.randperm(NODES).split(BATCH)[: NODES // BATCH]:
            g, nodes, places = surroundings(drawn, batch.chunk(world)[rank])
            loss = F.cross_entropy(model(g, x[nodes])[places], labels[nodes[places]])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            mean = loss.detach().clone()
            if world > 1:
                dist.all_reduce(mean)
            losses.append(float(mean) / world)
    return losses


if __name__ == "__main__":
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if world > 1 else 0
    losses = train(rank, world)
    if rank == 0:
        print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses)} steps of {world} process(es)")
    if world > 1:
        dist.destroy_process_group()
