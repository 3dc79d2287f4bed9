"""The example programs against PyTorch Geometric's layers, and against plain loops where it has none; outputs and gradients."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from message_graphs import EXAMPLES, message_graphs
from torch import nn
from torch.func import functional_call

from suture.relational import MessageGraph, OneHot

geometric = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")
sys.path.insert(0, str(EXAMPLES))

from compgcn import CompGCN  # noqa: E402
from gat import GAT  # noqa: E402
from gin import GIN  # noqa: E402
from hgt import HGT  # noqa: E402
from rgat import RGAT  # noqa: E402
from rgcn import RGCN  # noqa: E402
from sage import SAGE  # noqa: E402

Tensors = dict[str, torch.Tensor]
TYPES = 6


def edge_index(g: MessageGraph) -> torch.Tensor:
    return torch.stack([g.src, g.dst])


def check(
    ours: nn.Module,
    theirs: Callable[..., torch.Tensor],
    leaves: Tensors,
    mine: Callable[[Tensors], Tensors],
    g: MessageGraph,
) -> None:
    """Outputs and gradients agree: both sides compute from the same leaves, and `mine` names them as this side's parameters."""
    leaves = {"x": torch.randn(g.num_dst, 4, dtype=torch.float64), **leaves}
    for tensor in leaves.values():
        tensor.requires_grad_()
    made = functional_call(ours, mine(leaves), (g, leaves["x"]))
    wanted = theirs(leaves)
    torch.testing.assert_close(made, wanted, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(made)
    gradients, expected = (
        torch.autograd.grad(each, [*leaves.values()], cotangent, allow_unused=True, materialize_grads=True)
        for each in (made, wanted)
    )
    for name, gradient, their in zip(leaves, gradients, expected, strict=True):
        torch.testing.assert_close(
            gradient, their, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


def like(module: nn.Module) -> Tensors:
    """Fresh numbers for each parameter of a module."""
    return {name: torch.randn(parameter.shape, dtype=torch.float64) for name, parameter in module.named_parameters()}


def without_x(leaves: Tensors) -> Tensors:
    return {name: tensor for name, tensor in leaves.items() if name != "x"}


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
@pytest.mark.parametrize("form", ["full", "bases", "blocks"])
@settings(max_examples=8)
@given(g=message_graphs(most_types=TYPES))
def test_rgcn(form: str, aggregation: str, g: MessageGraph) -> None:
    ours = RGCN(4, 6, TYPES, aggregation=aggregation, **({} if form == "full" else {form: 2}))
    options = {} if form == "full" else {f"num_{form}": 2}
    theirs = geometric.RGCNConv(4, 6, TYPES, aggr=aggregation, **options)

    def run(leaves: Tensors) -> torch.Tensor:
        given = {"comp" if name == "mix" else name: tensor for name, tensor in without_x(leaves).items()}
        return functional_call(theirs, given, (leaves["x"], edge_index(g), g.type))

    check(ours, run, like(ours), without_x, g)


@pytest.mark.parametrize("within", [False, True])
@settings(max_examples=10)
@given(g=message_graphs(most_types=TYPES))
def test_rgat_with_one_query_and_key_for_all_relations(within: bool, g: MessageGraph) -> None:
    ours = RGAT(4, 3, TYPES, heads=2, within=within)
    mechanism = "within-relation" if within else "across-relation"
    theirs = geometric.RGATConv(4, 3, TYPES, heads=2, attention_mechanism=mechanism)
    leaves = like(ours) | {name: torch.randn(2, 3, dtype=torch.float64) for name in ("query", "key")}

    def run(leaves: Tensors) -> torch.Tensor:
        query, key = (torch.block_diag(*(head[:, None] for head in leaves[name])) for name in ("query", "key"))
        given = {"weight": leaves["weight"], "bias": leaves["bias"], "q": query, "k": key}
        return functional_call(theirs, given, (leaves["x"], edge_index(g), g.type))

    def mine(leaves: Tensors) -> Tensors:
        return without_x(leaves) | {name: leaves[name].expand(TYPES, 2, 3) for name in ("query", "key")}

    check(ours, run, leaves, mine, g)


@pytest.mark.parametrize(
    "program", [lambda: RGAT(9, 3, TYPES, heads=2, within=True), lambda: RGCN(9, 4, TYPES, bases=2)]
)
@settings(max_examples=10)
@given(g=message_graphs(most_types=TYPES))
def test_a_program_runs_on_one_hot_features_as_it_stands(program: Callable[[], nn.Module], g: MessageGraph) -> None:
    ours = program()
    numbers = torch.arange(g.num_dst) * 7 % 9
    dense = F.one_hot(numbers, 9).to(torch.float64)

    def run(leaves: Tensors) -> torch.Tensor:
        return functional_call(ours, without_x(leaves), (g, dense))

    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = ours

        def forward(self, g: MessageGraph, x: torch.Tensor) -> torch.Tensor:
            return self.program(g, OneHot(numbers, 9))  # type: ignore[no-any-return]

    check(
        Numbered(),
        run,
        like(ours),
        lambda leaves: {f"program.{name}": each for name, each in without_x(leaves).items()},
        g,
    )


@settings(max_examples=10)
@given(g=message_graphs(most_types=TYPES))
def test_rgat_with_queries_and_keys_of_relations(g: MessageGraph) -> None:
    ours = RGAT(4, 3, TYPES, heads=2)

    def run(leaves: Tensors) -> torch.Tensor:
        """One node after the other."""
        rows: list[torch.Tensor] = []
        assert g.type is not None
        for node in range(g.num_dst):
            edges = (g.dst == node).nonzero().flatten().tolist()
            scores, values = [], []
            for edge in edges:
                r = int(g.type[edge])
                source, target = ((leaves["x"][end] @ leaves["weight"][r]).view(2, 3) for end in (g.src[edge], node))
                values.append(source)
                scores.append((target * leaves["query"][r]).sum(-1) + (source * leaves["key"][r]).sum(-1))
            if not edges:
                rows.append(leaves["bias"])
                continue
            attention = F.leaky_relu(torch.stack(scores), 0.2).softmax(0)
            rows.append((attention[..., None] * torch.stack(values)).sum(0).flatten() + leaves["bias"])
        return torch.stack(rows)

    check(ours, run, like(ours), without_x, g)


KINDS = ["author", "paper", "topic"]
RELATIONS = [(0, "writes", 1), (1, "cites", 1), (1, "is of", 2), (1, "written by", 0), (2, "has", 1)]


@st.composite
def typed_networks(draw: st.DrawFn) -> tuple[list[int], list[torch.Tensor]]:
    """How many nodes each kind has, and the edges of each relation between nodes of its kinds."""
    counts = [draw(st.integers(1, 5)) for _ in KINDS]
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    edges = []
    for a, _, b in RELATIONS:
        many = draw(st.integers(0, 8))
        edges.append(torch.stack([torch.randint(counts[end], (many,), generator=source) for end in (a, b)]))
    return counts, edges


@pytest.mark.parametrize("outputs", [4, 6])
@settings(max_examples=10)
@given(network=typed_networks())
def test_hgt(outputs: int, network: tuple[list[int], list[torch.Tensor]]) -> None:
    counts, edges = network
    starts = torch.tensor([0, *counts]).cumsum(0)
    src, dst = (
        torch.cat([pair[end] + starts[relation[2 * end]] for pair, relation in zip(edges, RELATIONS, strict=True)])
        for end in (0, 1)
    )
    type = torch.repeat_interleave(torch.arange(len(RELATIONS)), torch.tensor([pair.shape[1] for pair in edges]))
    kind = torch.repeat_interleave(torch.arange(len(KINDS)), torch.tensor(counts))
    g = MessageGraph(
        src, dst, type, num_nodes=sum(counts), num_types=len(RELATIONS), node_type=kind, num_node_types=len(KINDS)
    )
    triples = [(KINDS[a], name.replace(" ", "_"), KINDS[b]) for a, name, b in RELATIONS]
    ours = HGT(4, outputs, len(KINDS), len(RELATIONS), heads=2)
    theirs = geometric.HGTConv(4, outputs, (KINDS, triples), heads=2)

    def run(leaves: Tensors) -> torch.Tensor:
        given: Tensors = {}
        for k, name in enumerate(KINDS):
            given[f"kqv_lin.lins.{name}.weight"] = torch.cat([leaves[part][k].T for part in ("key", "query", "value")])
            given[f"kqv_lin.lins.{name}.bias"] = torch.cat(
                [leaves[f"{part}_bias"][k] for part in ("key", "query", "value")]
            )
            given[f"out_lin.lins.{name}.weight"], given[f"out_lin.lins.{name}.bias"] = (
                leaves["output"][k].T,
                leaves["output_bias"][k],
            )
            given[f"skip.{name}"] = leaves["skip"][k : k + 1]
        for r, triple in enumerate(triples):
            given[f"p_rel.{'__'.join(triple)}"] = leaves["prior"][r : r + 1]
        given["k_rel.weight"] = leaves["attention"].transpose(0, 1).flatten(0, 1)
        given["v_rel.weight"] = leaves["message"].transpose(0, 1).flatten(0, 1)
        x = dict(zip(KINDS, leaves["x"].split(counts), strict=True))
        result = functional_call(theirs, given, (x, dict(zip(triples, edges, strict=True))))
        return torch.cat([result[name] for name in KINDS])

    check(ours, run, like(ours), without_x, g)


@settings(max_examples=10)
@given(g=message_graphs())
def test_gat(g: MessageGraph) -> None:
    ours, theirs = GAT(4, 3, heads=2), geometric.GATConv(4, 3, heads=2, add_self_loops=False)

    def run(leaves: Tensors) -> torch.Tensor:
        given = {"lin.weight": leaves["linear.weight"], "bias": leaves["bias"]}
        given |= {"att_src": leaves["key"][None], "att_dst": leaves["query"][None]}
        return functional_call(theirs, given, (leaves["x"], edge_index(g)))

    check(ours, run, like(ours), without_x, g)


@pytest.mark.parametrize("aggregation", ["mean", "max"])
@settings(max_examples=10)
@given(g=message_graphs())
def test_sage(aggregation: str, g: MessageGraph) -> None:
    ours, theirs = SAGE(4, 3, aggregation=aggregation), geometric.SAGEConv(4, 3, aggr=aggregation)

    def run(leaves: Tensors) -> torch.Tensor:
        given = {"lin_l.weight": leaves["neighbours.weight"], "lin_l.bias": leaves["neighbours.bias"]}
        return functional_call(theirs, given | {"lin_r.weight": leaves["root.weight"]}, (leaves["x"], edge_index(g)))

    check(ours, run, like(ours), without_x, g)


@settings(max_examples=10)
@given(g=message_graphs())
def test_gin(g: MessageGraph) -> None:
    ours = GIN(4, 5, 3)
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    theirs = geometric.GINConv(network, train_eps=True)

    def run(leaves: Tensors) -> torch.Tensor:
        given = {
            name.replace("network", "nn").replace("epsilon", "eps"): tensor
            for name, tensor in without_x(leaves).items()
        }
        return functional_call(theirs, given, (leaves["x"], edge_index(g)))

    check(ours, run, like(ours), without_x, g)


@pytest.mark.parametrize("composition", ["sub", "mul"])
@settings(max_examples=10)
@given(g=message_graphs(most_types=TYPES))
def test_compgcn(composition: str, g: MessageGraph) -> None:
    """Geometric has no such layer: plain loops."""
    layer = CompGCN(4, 3, TYPES, composition=composition).double()
    compose = getattr(torch, composition)

    class Nodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.z = layer, nn.Parameter(torch.empty(TYPES, 4))

        def forward(self, g: MessageGraph, x: torch.Tensor) -> torch.Tensor:
            return torch.cat(self.layer(g, x, self.z))

    def run(leaves: Tensors) -> torch.Tensor:
        x, z, weight = leaves["x"], leaves["z"], leaves["layer.weight"]
        gathered = []
        for node in range(g.num_dst):
            edges = (g.dst == node).nonzero().flatten().tolist()
            types = [int(g.tensors["type"][edge]) for edge in edges]
            rows = [
                compose(x[g.src[edge]], z[r]) @ weight[int(r >= TYPES // 2)]
                for edge, r in zip(edges, types, strict=True)
            ]
            gathered.append(torch.stack(rows).mean(0) if rows else x.new_zeros(3))
        itself = compose(x, leaves["layer.loop"]) @ leaves["layer.itself"]
        return torch.cat([torch.stack(gathered) + itself, z @ leaves["layer.relation"]])

    ours = Nodes()
    check(ours, run, like(ours), without_x, g)


@pytest.mark.parametrize("program", [RGCN, RGAT, HGT, GAT, SAGE, GIN, CompGCN])
def test_a_program_is_less_than_a_page_and_loops_over_nothing_that_is_numbered(program: type[nn.Module]) -> None:
    assert len((EXAMPLES / f"{program.__module__}.py").read_text(encoding="utf-8").splitlines()) <= 60
    assert "range(" not in inspect.getsource(program.forward)
