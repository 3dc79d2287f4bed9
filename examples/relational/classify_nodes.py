"""Classify the nodes of AIFB or MUTAG with two layers of RGCN, RGAT or HGT, with PyTorch Geometric's layers and with the same layers compiled.

    python examples/relational/classify_nodes.py [--data aifb|mutag] [--layer rgcn|rgat|rgat-onehot|hgt] [--seeds N] [--epochs N] [--folder FOLDER]

Both start from the same seeds and see the same split, the published one. RGCN is the paper's network: one-hot features, so that the first layer has a
row of weights for every node and relation; 16 hidden units; MUTAG with 30 bases. RGAT's paper starts from one-hot features as well (`rgat-onehot`):
PyTorch Geometric's layer would need them as a matrix of nodes by nodes, and a matrix of weights for every edge, so that only compiled layers run
that. `rgat` and HGT start from an embedding of every node. RGAT's layers have no weights for a node itself, as RGCN's have: a relation of every node
to itself takes their place.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import HGTConv, RGATConv, RGCNConv

import suture
from suture import relational
from suture.relational import RelationalData

LAYERS, DATA = ("rgcn", "rgat", "rgat-onehot", "hgt"), ("aifb", "mutag")
EMBEDDED = ("rgat", "hgt")
"""What starts from an embedding of every node; the others from one-hot features."""
COMPILED_ONLY = ("rgat-onehot",)
"""What PyTorch Geometric's layers cannot run."""
ACROSS, WITHIN = "across-relation", "within-relation"


@dataclass(frozen=True)
class Published:
    """A published accuracy in per cent, its spread over seeds (0 where only the mean is known), and where it stands."""

    accuracy: float
    spread: float
    source: str


RGCN_PAPER = "Schlichtkrull et al. 2018, arXiv 1703.06103, table 2"
PUBLISHED = {
    ("rgcn", "aifb"): Published(95.83, 0.62, RGCN_PAPER),
    ("rgcn", "mutag"): Published(73.23, 0.48, RGCN_PAPER),
    ("rgat-onehot", "aifb"): Published(96.9, 0.0, "Busbridge et al. 2019, arXiv 1904.05811, the best of its variants"),
    ("rgat-onehot", "mutag"): Published(74.4, 0.0, "Busbridge et al. 2019, arXiv 1904.05811, the best of its variants"),
}


@dataclass(frozen=True)
class Settings:
    """How a network is trained: Adam, all of the training nodes at once, dropout in front of both layers.

    :param mechanism: which edges' attentions add up to one, in RGAT
    """

    hidden: int = 16
    heads: int = 1
    bases: int | None = None
    mechanism: str = ACROSS
    rate: float = 0.01
    decay: float = 0.0
    dropout: float = 0.0
    epochs: int = 50


# Hidden units and bases are those of the R-GCN paper. Decay, dropout, epochs and one-hot RGAT's mechanism come from cross-validation among the
# training nodes; the test nodes have no part in it (benchmarks/relational_choice.py).
SETTINGS = {
    ("rgcn", "aifb"): Settings(epochs=20),
    ("rgcn", "mutag"): Settings(bases=30, decay=5e-4, epochs=40),
    ("rgat", "aifb"): Settings(heads=4, decay=5e-4, dropout=0.5),
    ("rgat", "mutag"): Settings(decay=5e-3, epochs=20),
    ("rgat-onehot", "aifb"): Settings(mechanism=WITHIN, epochs=20),
    ("rgat-onehot", "mutag"): Settings(bases=30, mechanism=WITHIN, decay=5e-4, epochs=20),
    ("hgt", "aifb"): Settings(heads=4, epochs=30),
    ("hgt", "mutag"): Settings(heads=4, decay=5e-4),
}


@dataclass
class Training:
    """What a training gave: the loss of every epoch, accuracy on the test nodes in per cent if it came to its end, seconds of an epoch."""

    losses: list[float] = field(default_factory=list)
    accuracy: float | None = None
    epoch: float = 0.0


class Relational(nn.Module):
    """Two RGCN or RGAT layers over all nodes."""

    def __init__(self, layer: str, data: RelationalData, classes: int, settings: Settings) -> None:
        super().__init__()
        hidden, relations, self.dropout = settings.hidden, data.num_types, settings.dropout
        edges, types, itself = data.edge_index, data.type, torch.arange(data.num_nodes)
        self.embedding: nn.Parameter | None = None
        if layer in EMBEDDED:
            self.embedding = nn.Parameter(torch.empty(data.num_nodes, hidden))
            nn.init.normal_(self.embedding)  # so that nodes can be told apart from the start
        inputs = data.num_nodes if self.embedding is None else hidden
        if layer == "rgcn":
            self.first = RGCNConv(inputs, hidden, relations, num_bases=settings.bases)
            self.second = RGCNConv(hidden, classes, relations, num_bases=settings.bases)
        else:
            more = {"num_bases": settings.bases, "attention_mechanism": settings.mechanism}
            self.first = RGATConv(inputs, hidden, relations + 1, heads=settings.heads, **more)
            self.second = RGATConv(hidden * settings.heads, classes, relations + 1, **more)
            edges = torch.cat([edges, torch.stack([itself, itself])], 1)
            types = torch.cat([types, torch.full_like(itself, relations)])
        self.register_buffer("edges", edges)
        self.register_buffer("types", types)
        self.register_buffer("numbers", itself)

    def forward(self) -> Tensor:
        x = self.numbers if self.embedding is None else self.drop(self.embedding)
        hidden = F.relu(self.first(x, self.edges, self.types))
        return self.second(self.drop(hidden), self.edges, self.types)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Heterogeneous(nn.Module):
    """Two HGT layers over nodes and edges by type, and a linear one on top."""

    def __init__(self, data: RelationalData, classes: int, settings: Settings) -> None:
        super().__init__()
        self.order = torch.argsort(data.node_type, stable=True)
        self.place = torch.argsort(self.order)
        self.counts = torch.bincount(data.node_type, minlength=data.num_node_types).tolist()
        self.names, self.dropout = [f"n{place}" for place in range(data.num_node_types)], settings.dropout
        self.ends = _by_type(data, self.place, self.names, self.counts)
        metadata = (self.names, list(self.ends))
        self.embeddings = nn.ParameterList(torch.empty(count, settings.hidden) for count in self.counts)
        for embedding in self.embeddings:
            nn.init.normal_(embedding)
        self.first = HGTConv(settings.hidden, settings.hidden, metadata, heads=settings.heads)
        self.second = HGTConv(settings.hidden, settings.hidden, metadata, heads=settings.heads)
        self.top = nn.Linear(settings.hidden, classes)

    def forward(self) -> Tensor:
        x = {name: self.drop(each) for name, each in zip(self.names, self.embeddings, strict=True)}
        x = x | self.first(x, self.ends)
        x = x | self.second({name: self.drop(F.relu(each)) for name, each in x.items()}, self.ends)
        return self.top(torch.cat([x[name] for name in self.names]))[self.place]

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _by_type(
    data: RelationalData, place: Tensor, names: list[str], counts: list[int]
) -> dict[tuple[str, str, str], Tensor]:
    """The ends of the edges of every type, numbered within the types of their nodes."""
    starts = [sum(counts[:kind]) for kind in range(len(counts))]
    found = {}
    for kind in range(data.num_types):
        edges = data.type == kind
        if edges.any():
            src, dst = data.src[edges], data.dst[edges]
            source, target = int(data.node_type[src[0]]), int(data.node_type[dst[0]])
            ends = torch.stack([place[src] - starts[source], place[dst] - starts[target]])
            found[names[source], f"e{kind}", names[target]] = ends
    return found


def make(layer: str, data: RelationalData, seed: int, settings: Settings, *, compiled: bool) -> nn.Module:
    """A network with weights drawn from a seed, with PyTorch Geometric's layers or with compiled ones."""
    assert data.task is not None
    torch.manual_seed(seed)
    classes = len(data.task.classes)
    model = Heterogeneous(data, classes, settings) if layer == "hgt" else Relational(layer, data, classes, settings)
    return suture.accelerate(model) if compiled else model


def learn(model: nn.Module, nodes: Tensor, labels: Tensor, settings: Settings) -> Iterator[float]:
    """Learn the labels of some nodes; the loss after every epoch, for as many as are asked for."""
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.rate, weight_decay=settings.decay, fused=True)
    while True:
        model.train()
        optimiser.zero_grad()
        loss = F.cross_entropy(model()[nodes], labels)
        loss.backward()
        optimiser.step()
        yield float(loss.detach())


def evaluate(model: nn.Module, nodes: Tensor, labels: Tensor) -> tuple[float, float]:
    """The accuracy on some nodes, in per cent, and the loss."""
    model.eval()
    with torch.no_grad():
        logits = model()[nodes]
    return 100 * float((logits.argmax(1) == labels).float().mean()), float(F.cross_entropy(logits, labels))


def train(
    layer: str,
    data: RelationalData,
    seed: int,
    *,
    compiled: bool,
    epochs: int = 0,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Training:
    """Train one network from a seed, with PyTorch Geometric's layers or with compiled ones.

    :param epochs: 0 for what the settings say
    :param seconds: no epoch begins later than this, but the first two; a training that has not come to its end has no accuracy
    :param clock: what an epoch's time is read from
    """
    assert data.task is not None
    settings, task = SETTINGS[layer, data.name], data.task
    model = make(layer, data, seed, settings, compiled=compiled)
    losses = learn(model, task.train_nodes, task.train_labels, settings)
    result, spent, wanted = Training(), [], epochs or settings.epochs
    begun = time.perf_counter()
    while len(spent) < wanted and (len(spent) < 2 or time.perf_counter() - begun < seconds):
        start = clock()
        loss = next(losses)
        spent.append(clock() - start)
        result.losses.append(loss)
    if len(spent) == wanted:
        result.accuracy = evaluate(model, task.test_nodes, task.test_labels)[0]
    result.epoch = statistics.median(spent)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="aifb")
    parser.add_argument("--layer", choices=LAYERS, default="rgcn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0, help="0 for the usual number (0)")
    parser.add_argument("--folder", help="where the data are; downloaded to the cache without it")
    given = parser.parse_args()
    data = relational.load(given.data, given.folder)
    print(data)
    for seed in range(given.seeds):
        for compiled in (True, False)[: 1 if given.layer in COMPILED_ONLY else 2]:
            found = train(given.layer, data, seed, compiled=compiled, epochs=given.epochs)
            side = "compiled" if compiled else "PyG"
            said = f"loss {found.losses[0]:.4f} -> {found.losses[-1]:.4f}, accuracy {found.accuracy:.2f} %, {1e3 * found.epoch:.1f} ms an epoch"
            print(f"seed {seed}, {side:8}: {said}", flush=True)
    published = PUBLISHED.get((given.layer, given.data))
    if published:
        print(f"published: {published.accuracy} % ({published.source})")


if __name__ == "__main__":
    main()
