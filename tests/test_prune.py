"""Pruning: the programs that break other pruners, verdicts, options, plans, and what bad input gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from programs import Program, shuffle
from strategies import prunable_graphs, run_inputs
from torch import nn

import suture
from suture.ir.axes import AxisInfo, AxisTable
from suture.passes.plan import Cut, Plan
from suture.passes.proof import zero_then_cut
from suture.passes.prune import plan_prune

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def graph_of(module: nn.Module, *inputs: torch.Tensor) -> suture.Graph:
    return suture.trace(zoo.randomise(module).eval(), inputs)


def linear_of(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.linear(torch.relu(F.linear(x, m.first)), m.second)


def conv1d_of(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.addmm(m.c, torch.relu(torch.addmm(m.a, x, m.w)), m.v)


def merge(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = m.embed(x).permute(0, 2, 3, 1)
    return m.reduce(torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1))


BREAKERS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "channel shuffle": (
        lambda: Program(lambda m, x: m.b(shuffle(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 5, 3)), IMAGE,
    ),
    "pixel shuffle": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.PixelShuffle(2), nn.Conv2d(4, 5, 3)), IMAGE),
    "patch merging": (lambda: Program(merge, embed=nn.Conv2d(3, 6, 1), reduce=nn.Linear(24, 5)), IMAGE),
    "slice": (
        lambda: Program(lambda m, x: m.b(m.a(x)[:, :8]), a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(8, 5, 1)), IMAGE,
    ),
    "fixed split sizes": (
        lambda: Program(
            lambda m, x: (lambda p, q: m.b(p) + m.c(q))(*torch.split(m.a(x), [8, 4], 1)),
            a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(8, 5, 1), c=nn.Conv2d(4, 5, 1),
        ), IMAGE,
    ),
    "stored view sizes": (
        lambda: Program(lambda m, x: m.b(m.a(x).view(2, 16, 64)), a=nn.Conv2d(3, 16, 1), b=nn.Conv1d(16, 5, 1)), IMAGE,
    ),
    "linear on a bare parameter": (
        lambda: Program(linear_of, first=nn.Parameter(torch.randn(8, 6)), second=nn.Parameter(torch.randn(5, 8))), torch.randn(4, 6),
    ),
    "weights as input by output": (
        lambda: Program(
            conv1d_of, a=nn.Parameter(torch.randn(8)), w=nn.Parameter(torch.randn(6, 8)), c=nn.Parameter(torch.randn(5)), v=nn.Parameter(torch.randn(8, 5)),
        ), torch.randn(4, 6),
    ),
    "sigmoid feature": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 5, 3)), IMAGE),
    "NHWC flatten": (
        lambda: Program(lambda m, x: m.fc(m.a(x).permute(0, 2, 3, 1).flatten(1)), a=nn.Conv2d(3, 6, 1), fc=nn.Linear(384, 5)), IMAGE,
    ),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=4), nn.ReLU(), nn.Conv2d(32, 5, 1)), IMAGE),
    "chunked gate": (
        lambda: Program(lambda m, x: (lambda p, q: m.b(p * torch.sigmoid(q)))(*m.a(x).chunk(2, 1)), a=nn.Conv2d(3, 16, 1), b=nn.Conv2d(8, 5, 1)), IMAGE,
    ),
    "concatenation with itself": (
        lambda: Program(lambda m, x: (lambda y: m.b(torch.cat([y, y], 1)))(m.a(x)), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(12, 5, 1)), IMAGE,
    ),
    "multi-head attention module": (
        lambda: Program(lambda m, x: m.out(m.attention(y := m.embed(x), y, y, need_weights=False)[0]), embed=nn.Linear(6, 16),
                        attention=nn.MultiheadAttention(16, 4, batch_first=True), out=nn.Linear(16, 5)), torch.randn(2, 7, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BREAKERS))
def test_known_to_break_pruners(name: str) -> None:
    build, x = BREAKERS[name]
    torch.manual_seed(0)
    graph = graph_of(build(), x)
    plan = plan_prune(graph, every=True, by="random")
    assert plan.cuts, "nothing was pruned"
    assert all(not cut.verdict.startswith("approximate") for cut in plan.cuts), str(plan)
    assert zero_then_cut(graph, plan, [x]).exact(1e-10)
    slim = suture.passes.prune(graph, every=True)
    assert slim.stats().parameters < graph.stats().parameters
    assert suture.evaluate(slim, [x])[0].shape == suture.evaluate(graph, [x])[0].shape


def test_a_tied_head_is_cut_with_its_embedding_and_stays_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            return self.head(x + torch.relu(self.block(x)))

    tokens = torch.randint(0, 11, (2, 5))
    graph = graph_of(Tied(), tokens)
    plan = plan_prune(graph)
    assert [cut.size for cut in plan.cuts] == [8] and zero_then_cut(graph, plan, [tokens]).exact(1e-12)
    module = suture.to_torch(suture.passes.prune(graph))
    assert module.embed.weight is module.head.weight and module.embed.weight.shape == (11, 4)


def test_a_constant_feature_is_absorbed_into_the_next_bias() -> None:
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 5, 3)), IMAGE)
    plan = plan_prune(graph)
    assert "constant 0.5 absorbed by 2" in plan.cuts[0].verdict
    slim = suture.passes.prune(graph, check=False)
    gone = [k for k in range(8) if k not in plan.cuts[0].keep]
    weight, bias = graph.parameters["2.weight"].data, graph.parameters["2.bias"].data
    expected = bias + 0.5 * weight[:, gone].sum((1, 2, 3))
    torch.testing.assert_close(slim.parameters["2.bias"].data, expected)


def features(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(m.a(x))


CONSTANTS: dict[str, Callable[[], nn.Module]] = {
    "a reader called three times": lambda: Program(
        lambda m, x: sum(m.r(torch.sigmoid(layer(x))) for layer in m.layers),
        layers=nn.ModuleList([nn.Linear(6, 8) for _ in range(3)]), r=nn.Linear(8, 4),
    ),
    "a reader without a bias called three times": lambda: Program(
        lambda m, x: sum(m.r(torch.sigmoid(layer(x))) for layer in m.layers),
        layers=nn.ModuleList([nn.Linear(6, 8) for _ in range(3)]), r=nn.Linear(8, 4, bias=False),
    ),
    "two constants in one reader that is cut too": lambda: Program(
        lambda m, x: m.o(m.r(torch.cat([torch.sigmoid(m.a(x)), torch.cos(m.b(x))], -1)).relu()),
        a=nn.Linear(6, 8), b=nn.Linear(6, 6), r=nn.Linear(14, 10, bias=False), o=nn.Linear(10, 3),
    ),
    "a bias of rows and columns": lambda: Program(
        lambda m, x: torch.addmm(m.c, features(m, x), m.w), a=nn.Linear(6, 8), w=nn.Parameter(torch.randn(8, 4)), c=nn.Parameter(torch.randn(3, 4)),
    ),
    "a bias that two readers share": lambda: Program(
        lambda m, x: torch.addmm(m.c, features(m, x), m.w) + torch.addmm(m.c, torch.sigmoid(m.b(x)), m.w),
        a=nn.Linear(6, 8), b=nn.Linear(6, 8), w=nn.Parameter(torch.randn(8, 4)), c=nn.Parameter(torch.randn(3, 4)),
    ),
    "a norm called twice": lambda: Program(
        lambda m, x: m.o(m.n(m.n(m.a(x)) + m.b(x))), a=nn.Linear(6, 8), b=nn.Linear(6, 8), n=nn.RMSNorm(8, eps=1e-2), o=nn.Linear(8, 3),
    ),
    "a norm without a gain": lambda: Program(
        lambda m, x: m.o(m.n(m.a(x))), a=nn.Linear(6, 8), n=nn.RMSNorm(8, eps=1e-2, elementwise_affine=False), o=nn.Linear(8, 3),
    ),
    "a gain with another reader": lambda: Program(
        lambda m, x: m.o(m.n(m.a(x)) + m.n.weight * m.a(x)), a=nn.Linear(6, 8), n=nn.RMSNorm(8, eps=1e-2), o=nn.Linear(8, 3),
    ),
    "a mean over channels": lambda: Program(
        lambda m, x: (y := m.a(x)) @ m.w + y.mean(-1, keepdim=True), a=nn.Linear(6, 8), w=nn.Parameter(torch.randn(8, 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CONSTANTS))
def test_corrections_restore_the_function_where_parameters_are_shared(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    graph = graph_of(CONSTANTS[name](), x)
    plan = plan_prune(graph)
    assert any(cut.verdict.startswith("exact after a correction") for cut in plan.cuts), str(plan)
    assert not any(cut.verdict.startswith("approximate") for cut in plan.cuts), str(plan)
    assert zero_then_cut(graph, plan, [x]).exact(1e-12)


def test_a_computed_bias_cannot_take_up_a_constant() -> None:
    net = Program(
        lambda m, x: F.linear(features(m, x), m.r.weight, m.r.bias * m.g),
        a=nn.Linear(6, 8),
        r=nn.Linear(8, 4),
        g=nn.Parameter(torch.randn(4)),
    )
    x = torch.randn(3, 6)
    graph = graph_of(net, x)
    (cut,) = plan_prune(graph).cuts
    assert cut.verdict == "approximate: linear linear: sums over a slice that is 0.5"
    proof = zero_then_cut(graph, Plan((cut,)), [x])
    assert proof.all_zeroed < 1e-12 < 1e-4 < proof.writers_zeroed


def test_a_constant_under_zero_padding_is_approximate_and_says_so() -> None:
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 5, 3, padding=1)), IMAGE)
    (cut,) = plan_prune(graph).cuts
    assert cut.verdict == "approximate: conv 2: a constant 0.5 meets its zero padding"
    assert zero_then_cut(graph, Plan((cut,)), [IMAGE]).writers_zeroed > 1e-4


def test_rms_norm_gets_gain_and_eps() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Linear(5, 12), nn.RMSNorm(12, eps=1e-3), nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.embed(x)))

    x = torch.randn(3, 5)
    graph = graph_of(Stream(), x)
    plan = plan_prune(graph, keep=0.75)
    assert plan.cuts[0].verdict == "exact after a correction: gain and eps of norm rescaled"
    assert zero_then_cut(graph, plan, [x]).exact(1e-12)
    slim = suture.passes.prune(graph, keep=0.75, check=False)
    (norm,) = [node for node in slim.nodes if node.operator.name == "rms_norm"]
    assert norm.attributes["eps"] == pytest.approx(1e-3 * 12 / 9)
    kept = list(plan.cuts[0].keep)
    torch.testing.assert_close(
        slim.parameters["norm.weight"].data, graph.parameters["norm.weight"].data[kept] * math.sqrt(12 / 9)
    )


def test_the_attention_scale_is_held() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
            self.o = nn.Linear(8, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, n, _ = x.shape
            q, k, v = (layer(x).view(b, n, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8))

    x = torch.randn(2, 5, 6)
    graph = graph_of(Attention(), x)
    plan = plan_prune(graph, at=("q",), kind=("head_width",))
    assert [cut.verdict for cut in plan.cuts] == ["exact"]
    slim = suture.passes.prune(graph, at=("q",), kind=("head_width",), check=False)
    (node,) = [node for node in slim.nodes if node.operator.name == "attention"]
    assert node.attributes["scale"] == pytest.approx(0.5)
    assert zero_then_cut(graph, plan, [x]).exact(1e-12)


def test_layer_norm_on_a_pruned_stream_is_approximate() -> None:
    x = torch.randn(3, 5)
    graph = graph_of(nn.Sequential(nn.Linear(5, 12), nn.LayerNorm(12), nn.Linear(12, 4)), x)
    (cut,) = plan_prune(graph).cuts
    assert cut.verdict == "approximate: layer_norm 1: its statistics see the width"
    assert suture.passes.prune(graph, inexact="leave").history[-1].outcome == "not applicable"


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(graph=prunable_graphs(), seed=st.integers(0, 3))
def test_random_surgeries_on_random_graphs_are_what_their_verdicts_say(graph: suture.Graph, seed: int) -> None:
    plan = plan_prune(graph, every=True, by="random", seed=seed, keep=0.6)
    certain = Plan(tuple(cut for cut in plan.cuts if not cut.verdict.startswith("approximate")))
    assume(certain.cuts)
    proof = zero_then_cut(graph, certain, run_inputs(graph, seed))
    assert proof.exact(1e-9), (str(plan), proof)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(graph=prunable_graphs(), keep=st.floats(0.3, 1.0))
def test_any_cut_leaves_a_graph_that_verifies_and_runs(graph: suture.Graph, keep: float) -> None:
    slim = suture.passes.prune(graph, every=True, keep=keep, check=False)
    inputs = run_inputs(graph)
    for before, after in zip(suture.evaluate(graph, inputs), suture.evaluate(slim, inputs), strict=True):
        assert before.shape == after.shape


# options


def mlp() -> suture.Graph:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    return suture.trace(net.eval(), (torch.randn(4, 6),), dynamic=({0: "batch"},))


def test_magnitude_keeps_the_largest() -> None:
    graph = mlp()
    first, second = graph.parameters["0.weight"].data, graph.parameters["2.weight"].data
    score = (first.square().sum(1) + second.square().sum(0)).sqrt()
    (cut,) = plan_prune(graph, at=("0",), keep=0.25).cuts
    assert cut.keep == tuple(sorted(score.topk(4).indices.tolist()))


def test_activation_criterion_weighs_what_readers_see() -> None:
    graph = mlp()
    x = torch.randn(64, 6)
    hidden = torch.relu(F.linear(x, graph.parameters["0.weight"].data, graph.parameters["0.bias"].data))
    score = hidden.square().sum(0) * graph.parameters["2.weight"].data.square().sum(0)
    (cut,) = plan_prune(graph, at=("0",), by="activation", data={graph.inputs[0].name: x}, keep=0.5).cuts
    assert cut.keep == tuple(sorted(score.topk(8).indices.tolist()))


def test_a_callable_scores_indices() -> None:
    def last_first(info: AxisInfo, table: AxisTable) -> torch.Tensor:
        return torch.arange(info.atom.size, dtype=torch.float64)

    plan = plan_prune(mlp(), by=last_first, keep=0.5)
    assert [cut.keep for cut in plan.cuts] == [tuple(range(8, 16)), tuple(range(6, 12))]


def test_a_seed_gives_the_same_plan_whatever_the_order() -> None:
    once, again, other = (plan_prune(mlp(), by="random", seed=seed) for seed in (5, 5, 6))
    assert once == again and once != other
    only = plan_prune(mlp(), by="random", seed=5, at=("2",))
    assert only.cuts[0] in once.cuts


def test_round_keeps_multiples() -> None:
    assert [len(cut.keep) for cut in plan_prune(mlp(), keep=0.4, round=4).cuts] == [8, 4]
    assert [len(cut.keep) for cut in plan_prune(mlp(), keep=0.05, round=8).cuts] == [8, 8]


def test_global_scope_ranks_axes_together() -> None:
    graph = mlp()
    with torch.no_grad():
        graph.parameters["0.weight"].data[:8] *= 100
    plan = plan_prune(graph, scope="global", keep=0.5)
    assert sum(len(cut.keep) for cut in plan.cuts) == pytest.approx(14, abs=1)


def test_heads_are_cut_before_their_width() -> None:
    entry = zoo.ENTRIES["llama"]
    graph = suture.trace(entry.module(), kwargs=entry.args()[1], dynamic=entry.dynamic)
    kinds = {cut.axis: cut.kind for cut in plan_prune(graph, at=("*.[qkv]_proj",)).cuts}
    assert set(kinds.values()) == {"head"}
    widths = plan_prune(graph, at=("*.q_proj",), kind=("head_width",))
    assert [cut.size for cut in widths.cuts] == [4]  # pairs; the rotary table ties the layers


def test_exclusions_and_expectations() -> None:
    assert [cut.axis for cut in plan_prune(mlp(), exclude=("2",)).cuts] == []
    assert len(plan_prune(mlp(), at=("0",), expect=1).cuts) == 1
    assert len(plan_prune(mlp(), expect=">=2").cuts) == 2


def test_prune_says_what_it_left_alone() -> None:
    notes = suture.passes.prune(mlp(), check=False).history[-1].notes
    assert any(note.startswith("4.weight[0] left alone, pinned: it reaches dimension 1 of output") for note in notes)


def test_the_original_is_untouched_and_kept_tensors_are_shared() -> None:
    graph = mlp()
    text, data = str(graph), {name: p.data.clone() for name, p in graph.parameters.items()}
    slim = suture.passes.prune(graph, at=("0",))
    assert str(graph) == text and all(torch.equal(p.data, data[name]) for name, p in graph.parameters.items())
    assert slim.parameters["4.weight"].data is graph.parameters["4.weight"].data


# plans


def test_a_plan_replays_on_another_checkpoint(tmp_path: Path) -> None:
    plan = plan_prune(mlp(), by="random")
    plan.save(tmp_path / "plan.json")
    torch.manual_seed(9)
    other = suture.trace(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval(),
        (torch.randn(4, 6),),
    )
    slim = suture.passes.replay(other, plan=tmp_path / "plan.json", check=False)
    keep = list(plan.cuts[0].keep)
    assert torch.equal(slim.parameters["0.weight"].data, other.parameters["0.weight"].data[keep])


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (Cut("0.wieght[0]", 16, (0, 1)), "no axis 0.wieght[0]; the nearest is '0.weight[0]'"),
        (Cut("0.weight[0]", 17, (0, 1)), "0.weight[0] has 16 indices, the plan was made for 17"),
        (Cut("0.weight[0]", 16, (1, 0)), "do not ascend"),
        (Cut("0.weight[0]", 16, ()), "do not ascend"),
        (Cut("0.weight[0]", 16, (0, 16)), "do not ascend"),
        (Cut("4.weight[0]", 3, (0,)), "4.weight[0] is pinned: it reaches dimension 1"),
    ],
)
def test_a_plan_that_does_not_fit(cut: Cut, says: str) -> None:
    with pytest.raises(suture.SutureError, match="S454") as caught:
        suture.passes.replay(mlp(), plan=Plan((cut,)))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": "suture-plan 1"}', '{"format": "suture-plan 1", "cuts": [{"axis": 3}]}']
)
def test_a_file_that_is_no_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(suture.SutureError, match="S454"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(suture.SutureError, match="S255"):
        Plan.load(tmp_path / "none.json")


# bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": ("layer*",)}, "[S451] the pattern 'layer*' matches no module"),
        ({"operator": ("conv",)}, "[S451] no operator 'conv' writes an axis; known operators: linear"),
        ({"expect": 5}, "[S451] 2 axes are selected, 5 expected"),
        ({"expect": "many"}, "[S451] expect='many' is no count"),
        ({"keep": 0.0}, "[S452] keep=0 leaves nothing"),
        ({"keep": 1.5}, "[S452] keep=1.5 leaves more than there is"),
        ({"keep": 0.01}, "[S452] keep=0.01 leaves nothing of 0.weight[0], which has 16; keep at least 0.0312"),
        ({"round": 0}, "[S452] round=0 is no multiple"),
        ({"by": "activation"}, "[S453] the criterion activation has no calibration inputs"),
        ({"by": lambda info, table: torch.zeros(3)}, "[S453] the criterion returned [3] for 0.weight[0]"),
        ({"by": "l3"}, "[S402]"),
        ({"kepe": 0.5}, "[S402]"),
    ],
)
def test_bad_options_are_one_line_each(options: dict[str, object], says: str) -> None:
    with pytest.raises(suture.SutureError) as caught:
        suture.passes.prune(mlp(), **options)
    assert str(caught.value).startswith(says), str(caught.value)
    assert "\n" not in str(caught.value)
