"""Mixtures of experts from dense layers, and back: held against a mixture computed position by position in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from growable import TOKENS, Decoder, Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program
from torch import nn
from zoo import ENTRIES, randomise

import suture
from suture import passes
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.experts.division import cluster, routing_shares
from suture.passes.experts.feed_forward import feed_forwards
from suture.passes.experts.losses import balance_loss, routing_loss
from suture.passes.experts.split_experts import plan_split

GATED = {"norm": "rms", "bias": False, "groups": 2, "rotary": True, "gated": True}


@lru_cache(maxsize=4)
def original(**shape: object) -> tuple[Decoder, Graph]:
    torch.manual_seed(0)
    module = randomise(Decoder(Shape(**shape))).double().eval()  # type: ignore[arg-type]
    return module, suture.trace(module, TOKENS, dynamic=[{0: "batch", 1: "sequence"}])


def run(graph: Graph, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = suture.to_torch(graph)(*(inputs or (TOKENS,)))
    return result


def with_feeds(module: Decoder, feed: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What a decoder gives with its feed-forward layers replaced by a function of the layer's number, its input and what entered the first layer."""
    with torch.no_grad():
        first = x = module.embed(TOKENS)
        for number, layer in enumerate(module.layers):
            x = x + layer.attention(layer.before(x))
            x = x + feed(number, layer.after(x), first)
        return module.head(module.norm(x))


def apply(state: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> torch.Tensor:
    """A feed-forward layer by its tensors' names."""
    y = F.linear(x, state[f"{prefix}.up.weight"], state.get(f"{prefix}.up.bias"))
    gate = state.get(f"{prefix}.gate.weight")
    y = F.gelu(y) if gate is None else F.silu(F.linear(x, gate)) * y
    return F.linear(y, state[f"{prefix}.down.weight"], state.get(f"{prefix}.down.bias"))


def mixture(logits: torch.Tensor, results: list[torch.Tensor], top: int, *, renormalise: bool) -> torch.Tensor:
    """Position by position: the chosen experts' results, each times its gate."""
    total = torch.zeros_like(results[0])
    for place in torch.cartesian_prod(*(torch.arange(size) for size in logits.shape[:-1])).tolist():
        at = tuple(place)
        probabilities = logits[at].softmax(0)
        chosen = probabilities.topk(top).indices.tolist()
        whole = float(probabilities[chosen].sum()) if renormalise else 1.0
        for expert in chosen:
            total[at] += results[expert][at] * probabilities[expert] / whole
    return total


@pytest.mark.parametrize(("shape", "experts", "top"), [({}, 4, 2), ({}, 2, 2), (GATED, 3, 1), (GATED, 4, 2)])
def test_upcycling_keeps_the_function_for_any_router(shape: dict[str, object], experts: int, top: int) -> None:
    module, graph = original(**shape)
    upcycled = passes.upcycle(graph, experts=experts, top=top, spread=3.0)
    assert upcycled.history[-1].contract == "exact"
    torch.testing.assert_close(run(upcycled), module(TOKENS).detach(), rtol=0, atol=1e-12)


@given(st.integers(1, 4), st.integers(0, 2), st.integers(0, 99))
@settings(max_examples=5)
def test_a_mixture_computes_what_its_definition_says(experts: int, fewer: int, seed: int) -> None:
    module, graph = original()
    top = max(1, experts - fewer)
    for renormalise in (True, False):
        upcycled = passes.upcycle(
            graph, experts=experts, top=top, noise=0.5, spread=1.0, renormalise=renormalise, seed=seed
        )
        state = {name: p.data.detach() for name, p in upcycled.parameters.items()}

        def feed(number: int, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
            path = f"layers.{number}.feed"
            results = [apply(state, f"{path}.experts.{e}", x) for e in range(experts)]  # noqa: B023
            return mixture(F.linear(x, state[f"{path}.router.weight"]), results, top, renormalise=renormalise)  # noqa: B023

        torch.testing.assert_close(run(upcycled), with_feeds(module, feed), rtol=0, atol=1e-11)


def test_gates_that_do_not_sum_to_one_are_not_exact_and_say_so() -> None:
    _, graph = original()
    record = passes.upcycle(graph, experts=4, top=2, renormalise=False).history[-1]
    assert record.contract == "approximate" and record.deviation is not None and record.deviation > 1e-3
    assert any("sum to less than 1" in note for note in record.notes)
    assert passes.upcycle(graph, experts=2, top=2, renormalise=False).history[-1].contract == "exact"
    noisy = passes.upcycle(graph, experts=2, noise=0.01).history[-1]
    assert noisy.contract == "approximate" and any("differ by noise" in note for note in noisy.notes)


def test_equal_probabilities_still_choose_as_many_as_asked() -> None:
    _, graph = original()
    upcycled = passes.upcycle(graph, experts=4, top=2, spread=0.0, noise=1.0)
    once = passes.upcycle(graph, experts=4, top=4, spread=0.0, noise=1.0)
    assert not torch.allclose(run(upcycled), run(once))


def test_experts_and_routers_are_named_below_the_layer() -> None:
    _, graph = original()
    upcycled = passes.upcycle(graph, experts=3, top=2)
    names = set(suture.to_torch(upcycled).state_dict())
    assert {"layers.1.feed.experts.2.down.bias", "layers.0.feed.router.weight"} <= names
    assert "layers.1.feed.down.bias" not in names
    assert upcycled.parameters["layers.0.feed.router.weight"].data.shape == (3, 16)
    feed = sum(p.data.numel() for name, p in graph.parameters.items() if ".feed." in name)
    assert upcycled.stats().parameters == graph.stats().parameters + 2 * feed + 2 * 3 * 16


def test_a_seed_gives_the_same_mixture() -> None:
    _, graph = original()
    one, same, other = (passes.upcycle(graph, experts=2, noise=0.1, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(p.data, same.parameters[name].data) for name, p in one.parameters.items())
    name = "layers.0.feed.experts.0.up.weight"
    assert not torch.equal(one.parameters[name].data, other.parameters[name].data)
    assert not torch.equal(one.parameters[name].data, one.parameters[name.replace("s.0.up", "s.1.up")].data)


def test_a_layer_is_upcycled_by_its_module() -> None:
    module, graph = original()
    upcycled = passes.upcycle(graph, experts=2, at="layers.1.*feed")
    assert any(name.startswith("layers.1.feed.experts") for name in upcycled.parameters)
    assert "layers.0.feed.up.weight" in upcycled.parameters
    torch.testing.assert_close(run(upcycled), module(TOKENS).detach(), rtol=0, atol=1e-12)
    attention = passes.upcycle(graph, experts=2, at="layers.0.attention")  # any layer of positions may be one
    torch.testing.assert_close(run(attention), module(TOKENS).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_the_layers_of_known_architectures_are_found_without_their_names(name: str) -> None:
    entry = ENTRIES[name]
    module = randomise(entry.module())
    args, kwargs = entry.args()
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    assert len(feed_forwards(graph)) == (4 if name == "t5" else 2)
    assert passes.upcycle(graph, experts=3, top=2).history[-1].contract == "exact"
    split = passes.split_experts(graph, experts=4, router="layer" if name == "t5" else "shared")
    assert split.history[-1].contract == "exact"
    assert len(feed_forwards(passes.merge_experts(split))) == len(feed_forwards(graph))


class Loose(nn.Module):
    """A layer whose activation is applied outside of the module that holds its weights; with another one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("up", "down")})
        self.side = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("up", "down", "left", "right")})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mlp["down"](F.gelu(self.mlp["up"](x)))
        x = x + self.side["down"](F.gelu(self.side["up"](x)))
        return x + self.side["right"](torch.tanh(self.side["left"](x)))


def test_layers_are_found_wherever_their_activations_and_neighbours_are() -> None:
    torch.manual_seed(0)
    module, x = Loose().double().eval(), torch.randn(3, 4, 6, dtype=torch.float64)
    graph = suture.trace(module, x)
    split = passes.split_experts(graph, experts=3, entry="x")
    assert any("'side' holds another feed-forward layer" in note for note in split.history[-1].notes)
    assert "mlp.experts.2.up.weight" in split.parameters and "side.left.weight" in split.parameters
    torch.testing.assert_close(run(split, x), module(x).detach(), rtol=0, atol=1e-12)
    merged = passes.merge_experts(split)
    assert all(torch.equal(p.data, graph.parameters[name].data) for name, p in merged.parameters.items())
    torch.testing.assert_close(run(merged, x), module(x).detach(), rtol=0, atol=1e-12)


def test_training_reaches_the_router_and_the_chosen_experts() -> None:
    _, graph = original()
    module = suture.to_torch(passes.upcycle(graph, experts=4, top=2, spread=1.0, noise=0.1))
    module(TOKENS).square().mean().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert float(gradients["layers.0.feed.router.weight"].abs().sum()) > 0
    assert all(gradients[f"layers.0.feed.experts.{e}.up.weight"] is not None for e in range(4))


def test_a_mixture_runs_in_onnx_runtime(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    decoder = Decoder(Shape()).eval()
    graph = suture.trace(decoder, TOKENS, dynamic=[{0: "batch", 1: "sequence"}])
    for name, made in {
        "upcycled": passes.upcycle(graph, experts=4, top=2, noise=0.3, spread=1.0),
        "split": passes.split_experts(graph, experts=4, top=2, router="layer"),
    }.items():
        suture.export_onnx(made, tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        tokens = torch.cat([TOKENS, TOKENS.flip(1)], 0)[:, :4]
        (received,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
        torch.testing.assert_close(torch.from_numpy(received), run(made, tokens), rtol=1e-4, atol=1e-5)


def test_the_logits_of_the_routers_are_outputs_on_request() -> None:
    module, graph = original()
    upcycled = passes.upcycle(graph, experts=3, expose=True)
    assert upcycled.output_names[1:] == ["layers.0.feed.router.logits", "layers.1.feed.router.logits"]
    result, first, _ = suture.to_torch(upcycled)(TOKENS)
    torch.testing.assert_close(result, module(TOKENS))
    seen = module.layers[0].after(
        module.embed(TOKENS) + module.layers[0].attention(module.layers[0].before(module.embed(TOKENS)))
    )
    torch.testing.assert_close(first, F.linear(seen, upcycled.parameters["layers.0.feed.router.weight"].data))
    split = passes.split_experts(graph, experts=2, expose=True)
    assert split.output_names[1:] == ["router.logits"]


# experts cut out of a dense layer


@pytest.mark.parametrize(
    ("shape", "experts", "weigh"),
    [({}, 4, "renormalise"), ({}, 3, "mask"), (GATED, 3, "renormalise"), (GATED, 1, "renormalise"), (GATED, 4, "mask")],
)
def test_experts_that_are_all_active_are_the_dense_layer(shape: dict[str, object], experts: int, weigh: str) -> None:
    module, graph = original(**shape)
    split = passes.split_experts(graph, experts=experts, weigh=weigh)
    assert split.history[-1].contract == "exact"
    torch.testing.assert_close(run(split), module(TOKENS).detach(), rtol=0, atol=1e-12)
    merged = passes.merge_experts(split)
    assert {n: p.type for n, p in merged.parameters.items()} == {n: p.type for n, p in graph.parameters.items()}
    assert all(torch.equal(p.data, graph.parameters[name].data) for name, p in merged.parameters.items())
    assert str(merged.stats()) == str(graph.stats())


def domains_data() -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """Two domains of tokens that have no token in common."""
    generator = torch.Generator().manual_seed(1)
    low, high = (torch.randint(a, b, (6, 5), generator=generator) for a, b in ((0, 5), (5, 11)))
    return {"tokens": torch.stack([low, high], 1).flatten(0, 1)}, (0, 1) * 6


def test_each_unit_goes_to_the_domain_that_activates_it_most() -> None:
    module, graph = original()
    data, domains = domains_data()
    split = passes.split_experts(graph, experts=2, data=data, domains=domains)
    hidden: list[torch.Tensor] = []
    handle = module.layers[0].feed.down.register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
    module(data["tokens"])
    handle.remove()
    active = torch.zeros(12, 5, 20).scatter(2, hidden[0].abs().topk(10, 2).indices, 1.0)
    shares = torch.stack([active[0::2].mean((0, 1)), active[1::2].mean((0, 1))])
    up = graph.parameters["layers.0.feed.up.weight"].data
    experts = [split.parameters[f"layers.0.feed.experts.{e}.up.weight"].data for e in range(2)]
    units = [[int((up == row).all(1).nonzero()) for row in expert] for expert in experts]
    assert sorted(units[0] + units[1]) == list(range(20)) and units[0] == sorted(units[0])
    gain = shares[0] - shares[1]
    assert gain[units[0]].min() >= gain[units[1]].max()  # no exchange of two units gains anything
    assert split.history[-1].contract == "exact"
    torch.testing.assert_close(run(split), module(TOKENS).detach(), rtol=0, atol=1e-12)
    merged = passes.merge_experts(split)
    torch.testing.assert_close(run(merged), module(TOKENS).detach(), rtol=0, atol=1e-12)
    assert torch.equal(merged.parameters["layers.0.feed.up.weight"].data, up[units[0] + units[1]])


def test_experts_of_their_own_size_are_the_units_of_their_domain() -> None:
    module, graph = original()
    data, domains = domains_data()
    split = passes.split_experts(graph, experts=2, size=14, top=1, data=data, domains=domains, start="centroids")
    assert split.parameters["layers.1.feed.experts.1.down.weight"].data.shape == (16, 14)
    record = split.history[-1]
    assert record.contract == "approximate" and any("not every unit" in note for note in record.notes)
    assert any("1.4 times their units" in note for note in record.notes)
    state = {name: p.data.detach() for name, p in split.parameters.items()}

    def feed(number: int, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        path = f"layers.{number}.feed"
        results = [apply(state, f"{path}.experts.{e}", x) for e in range(2)]
        logits = F.linear(first, state["router.weight"], state["router.bias"])
        return mixture(logits, results, 1, renormalise=True) + state[f"{path}.down.bias"]

    torch.testing.assert_close(run(split), with_feeds(module, feed), rtol=0, atol=1e-12)


def test_one_router_ahead_of_the_layers_chooses_the_nearest_centroid() -> None:
    module, graph = original()
    data, domains = domains_data()
    split = passes.split_experts(graph, experts=2, data=data, domains=domains, top=1, start="centroids", expose=True)
    assert [name for name in split.parameters if "router" in name] == ["router.weight", "router.bias"]
    _, logits = suture.to_torch(split)(data["tokens"])
    first = module.embed(data["tokens"]).detach()
    centroids = torch.stack([first[0::2].mean((0, 1)), first[1::2].mean((0, 1))])
    assert torch.equal(logits.argmax(-1), torch.cdist(first.flatten(0, 1), centroids).argmin(-1).view(12, 5))
    assert split.history[-1].contract == "approximate"
    assert any("1 of 2 experts are active" in note for note in split.history[-1].notes)


def test_domains_are_found_by_clustering() -> None:
    _, graph = original()
    data, domains = domains_data()
    data = {"tokens": (data["tokens"] >= 5).long() * 7}  # one token per domain
    named = passes.split_experts(graph, experts=2, data=data, domains=domains)
    found = passes.split_experts(graph, experts=2, data=data)
    experts = [
        {tuple(map(tuple, g.parameters[f"layers.0.feed.experts.{e}.up.weight"].data.tolist())) for e in range(2)}
        for g in (named, found)
    ]
    assert experts[0] == experts[1]


@given(st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=30)
def test_clusters_are_never_empty_and_follow_from_the_seed(count: int, seed: int) -> None:
    rows = torch.randn(count + seed % 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = cluster(rows, count, seed)
    assert set(labels.tolist()) == set(range(count))
    assert torch.equal(labels, cluster(rows, count, seed))
    same = cluster(torch.zeros(count, 2, dtype=torch.float64), count, seed)
    assert set(same.tolist()) == set(range(count))


def test_a_router_learns_the_experts_that_the_dense_activations_choose() -> None:
    module, graph = original()
    data, domains = domains_data()
    plan = plan_split(graph, experts=2, data=data, domains=domains)
    assert "layers.1.feed: experts of 10, 10 units" in str(plan)
    shares = routing_shares(graph, plan, data)
    hidden: list[torch.Tensor] = []
    handles = [
        m.feed.down.register_forward_pre_hook(lambda m, args: hidden.append(args[0].detach().abs()))
        for m in module.layers
    ]
    module(data["tokens"])
    for handle in handles:
        handle.remove()
    one, two = (
        [h[..., list(u)].sum(-1) / h.sum(-1) for h, u in zip(hidden, units, strict=True)]
        for units in zip(*plan.members.values(), strict=True)
    )
    torch.testing.assert_close(shares, torch.stack([sum(one) / 2, sum(two) / 2], -1))
    split = suture.to_torch(
        passes.split_experts(graph, experts=2, top=1, data=data, domains=domains, weigh="mask", expose=True)
    )
    router = [split.get_parameter("router.weight")]
    optimiser = torch.optim.Adam(router, 0.05)
    losses = []
    for _ in range(40):
        loss = routing_loss(split(data["tokens"])[1], shares)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    entropy = -float((shares * shares.log()).sum(-1).mean())
    assert losses[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), rel=1e-6)
    assert entropy <= losses[-1] < losses[0]


def test_a_plan_for_another_model_gets_one_line() -> None:
    plan = plan_split(original()[1], experts=2)
    with pytest.raises(SutureError, match="the graph has no feed-forward layer") as caught:
        routing_shares(suture.trace(nn.Linear(4, 4), torch.randn(2, 4)), plan, {})
    assert caught.value.code is Code.PLAN


def test_the_balance_loss_is_one_where_all_experts_are_alike_and_as_many_as_experts_where_one_has_all() -> None:
    even = torch.eye(4, dtype=torch.float64).repeat(3, 1) * 50
    assert float(balance_loss(even)) == pytest.approx(1.0)
    one = torch.tensor([[50.0, 0, 0, 0]], dtype=torch.float64).expand(6, 4)
    assert float(balance_loss(one)) == pytest.approx(4.0)
    logits = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(-1).view(-1, 4)
    counts = F.one_hot(probabilities.topk(2).indices, 4).sum(1).double().mean(0) / 2
    assert float(balance_loss(logits, 2)) == pytest.approx(4 * float((counts * probabilities.mean(0)).sum()))


# mixtures become dense again


def test_the_mean_of_equal_experts_is_the_dense_layer() -> None:
    module, graph = original()
    merged = passes.merge_experts(passes.upcycle(graph, experts=3, spread=1.0), by="mean")
    assert set(merged.parameters) == set(graph.parameters)
    assert merged.history[-1].deviation is not None and merged.history[-1].deviation < 1e-12
    torch.testing.assert_close(run(merged), module(TOKENS).detach(), rtol=0, atol=1e-12)


def test_the_mean_of_trained_experts_is_the_mean_of_their_weights() -> None:
    _, graph = original(**GATED)
    noisy = passes.upcycle(graph, experts=3, noise=0.3)
    merged = passes.merge_experts(noisy, by="mean", at="layers.0.*")
    for leaf in ("up", "gate", "down"):
        rows = [noisy.parameters[f"layers.0.feed.experts.{e}.{leaf}.weight"].data for e in range(3)]
        torch.testing.assert_close(merged.parameters[f"layers.0.feed.{leaf}.weight"].data, torch.stack(rows).mean(0))
    assert "layers.1.feed.experts.0.up.weight" in merged.parameters
    assert "layers.0.feed.router.weight" not in merged.parameters
    assert merged.history[-1].contract == "approximate"


def test_a_dense_model_has_nothing_to_merge() -> None:
    assert passes.merge_experts(original()[1]).history[-1].outcome == "not applicable"


def test_a_network_without_feed_forward_layers_is_left_alone() -> None:
    classifier = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    linear = Program(lambda self, x: x + self.up(self.down(x)), up=nn.Linear(2, 4), down=nn.Linear(4, 2))
    for module in (classifier, linear):
        graph = suture.trace(module, torch.randn(2, 4))
        assert passes.upcycle(graph, experts=2).history[-1].outcome == "not applicable"
        assert passes.split_experts(graph, experts=2).history[-1].outcome == "not applicable"


@pytest.mark.parametrize(
    ("name", "options", "code", "text"),
    [
        ("upcycle", {"experts": 2, "top": 3}, Code.GROWTH, "3 of 2 experts"),
        ("upcycle", {"experts": 0, "top": 0}, Code.GROWTH, "0 of 0 experts"),
        ("upcycle", {"experts": 2, "at": "layers.*.fed"}, Code.SITE, "matches no module"),
        ("split_experts", {"experts": 21}, Code.GROWTH, "21 experts of 20 units; at most 20"),
        ("split_experts", {"experts": 2, "size": 21}, Code.GROWTH, "experts of 21 units of 20"),
        ("split_experts", {"experts": 2, "top": 3}, Code.GROWTH, "3 of 2 experts"),
        ("split_experts", {"experts": 2, "at": "feeds"}, Code.SITE, "matches no feed-forward layer"),
        ("split_experts", {"experts": 2, "entry": "tokens"}, Code.SEAM, "a router reads a value with the positions"),
        ("split_experts", {"experts": 2, "start": "centroids"}, Code.CALIBRATION, "there are no data to find centroids in"),
        ("split_experts", {"experts": 3, "data": {"tokens": TOKENS}}, Code.CALIBRATION, "2 samples for 3 experts"),
        ("split_experts", {"experts": 2, "data": {"tokens": TOKENS}, "domains": (0, 0)}, Code.CALIBRATION, "domain 1 has no sample"),
        ("split_experts", {"experts": 2, "data": {"tokens": TOKENS}, "domains": (0, 2)}, Code.CALIBRATION, "domain 1 has no sample"),
        ("split_experts", {"experts": 2, "data": {"tokens": TOKENS}, "domains": (0,)}, Code.CALIBRATION, "1 domains for 2 samples"),
        ("split_experts", {"experts": 2, "data": {"tokens": TOKENS + 9}}, Code.CALIBRATION, "the graph cannot run on the data"),
        ("split_experts", {"experts": 2, "data": {"words": TOKENS}}, Code.INPUT, "missing tokens"),
        ("merge_experts", {"at": "layers.0.feed"}, Code.SITE, "matches no module with experts"),
    ],
)  # fmt: skip
def test_bad_options_get_one_line(name: str, options: dict[str, object], code: Code, text: str) -> None:
    with pytest.raises(SutureError, match=text) as caught:
        getattr(passes, name)(original()[1], **options)
    assert caught.value.code is code


def test_a_layer_that_mixes_the_shape_of_positions_is_refused() -> None:
    module = Program(lambda self, x: self.pool(x), pool=nn.Conv1d(3, 6, 1)).eval()
    graph = suture.trace(module, torch.randn(2, 3, 8))
    with pytest.raises(SutureError, match="maps the last dimension of every position") as caught:
        passes.upcycle(graph, experts=2, at="pool")
    assert caught.value.code is Code.REGION
