"""Nested sub-networks: held against modules of the smaller sizes whose weights are sliced by hand."""

from __future__ import annotations

import copy
import itertools
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from growable import TOKENS, Decoder, Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program
from torch import nn
from zoo import randomise

import suture
from suture.drivers.elastic import (
    Branches,
    Choice,
    Depth,
    Elastic,
    Width,
    accumulate,
    distillation,
    evenly,
    sandwich,
)
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph

FAMILY = (
    Width("layers.*.feed.up", (8, 12), name="feed"),
    Width("layers.*.attention.q", (1, 2), name="heads"),
    Width("embed", (8,), name="width"),
    Depth("layers", (1, 2), name="depth"),
)


@lru_cache(maxsize=4)
def original(**shape: object) -> tuple[Decoder, Graph]:
    torch.manual_seed(0)
    module = randomise(Decoder(Shape(**{"layers": 3, **shape}))).double().eval()  # type: ignore[arg-type]
    return module, suture.trace(module, TOKENS, dynamic=[{0: "batch", 1: "sequence"}])


@lru_cache(maxsize=4)
def family(**shape: object) -> Elastic:
    return Elastic(original(**shape)[1], FAMILY)


def run(graph: Graph, x: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = suture.to_torch(graph)(x)
    return result


def by_hand(module: Decoder, choice: Choice) -> Decoder:
    """A decoder of the chosen sizes; its head width is 4 throughout, so heads are runs of four rows."""
    feed, heads, width, depth = (int(choice[name]) for name in ("feed", "heads", "width", "depth"))
    small = Decoder(Shape(layers=depth, hidden=feed, heads=heads, groups=heads, width=width)).double().eval()
    whole = module.state_dict()
    state = {}
    for name, value in small.state_dict().items():
        data = whole[name]
        for dim, size in enumerate(value.shape):
            data = data.narrow(dim, 0, size)
        state[name] = data
    small.load_state_dict(state, strict=True)
    return small


CHOICES = [
    Choice(tuple(zip(("feed", "heads", "width", "depth"), c, strict=True)))
    for c in itertools.product((8, 12, 20), (1, 2, 4), (8, 16), (1, 2, 3))
]


def test_the_family_has_every_combination() -> None:
    assert list(family().choices()) == CHOICES
    assert len(family()) == 54
    assert family().smallest == CHOICES[0] and family().full == CHOICES[-1]


@pytest.mark.parametrize("choice", [CHOICES[0], CHOICES[13], CHOICES[31], CHOICES[50]], ids=str)
def test_a_sub_network_is_the_smaller_model_of_sliced_weights(choice: Choice) -> None:
    module, _ = original()
    small = by_hand(module, choice)
    graph = family().extract(choice)
    torch.testing.assert_close(run(graph), small(TOKENS), rtol=0, atol=1e-12)
    small.load_state_dict(suture.to_torch(graph).state_dict(), strict=True)


def test_the_whole_network_is_extracted_bit_for_bit() -> None:
    _, graph = original()
    full = family().extract(family().full)
    assert str(full) == str(graph)
    assert all(full.parameters[name].data is p.data for name, p in graph.parameters.items())


@given(st.sampled_from(CHOICES), st.sampled_from(CHOICES))
@settings(max_examples=8)
def test_a_sub_network_of_a_sub_network_is_that_of_the_whole(one: Choice, other: Choice) -> None:
    inner = Choice(tuple((name, min(one[name], other[name])) for name in one))
    assert inner.inside(one) and inner.inside(other)
    dimensions = [
        Width("layers.*.feed.up", (int(inner["feed"]),), name="feed"),
        Width("embed", (int(inner["width"]),), name="width"),
        Depth("layers", (int(inner["depth"]),), name="depth"),
    ]
    if one["heads"] > 1:  # a single head is no axis any more
        dimensions.append(Width("layers.*.attention.q", (int(inner["heads"]),), kind="head", name="heads"))
    direct = family().extract(inner)
    if one["depth"] == 1:
        dimensions.pop(2)  # one block is no stack
    middle = Elastic(family().extract(one), dimensions)
    twice = middle.extract(middle.smallest)
    assert {n: p.type for n, p in twice.parameters.items()} == {n: p.type for n, p in direct.parameters.items()}
    assert all(torch.equal(p.data, direct.parameters[n].data) for n, p in twice.parameters.items())
    assert torch.equal(run(twice), run(direct))


@given(st.sampled_from(CHOICES))
@settings(max_examples=10)
def test_the_sub_network_at_run_time_is_the_extracted_one(choice: Choice) -> None:
    module = shared_module()
    with torch.no_grad(), module.at(choice):
        received = module(TOKENS)
    torch.testing.assert_close(received, run(family().extract(choice)), rtol=0, atol=1e-13)
    assert module.choice == family().full


@lru_cache(maxsize=1)
def shared_module() -> nn.Module:
    return family().module()


def test_the_module_is_called_and_saved_like_the_original() -> None:
    module, _ = original()
    elastic = family().module()
    assert set(elastic.state_dict()) == set(module.state_dict())
    elastic.set(family().smallest)
    assert set(elastic.state_dict()) == set(module.state_dict())
    torch.testing.assert_close(elastic.set(family().full)(TOKENS), module(TOKENS), rtol=0, atol=1e-13)


def test_prefixes_are_views_of_the_whole_weights() -> None:
    _, graph = original()
    cuts = family().slices(CHOICES[0])
    for name in (
        "embed.weight",
        "layers.1.feed.up.weight",
        "layers.1.attention.q.weight",
        "layers.1.attention.o.weight",
    ):
        data = graph.parameters[name].data
        part = cuts[name](data)
        assert part.shape != data.shape
        assert part.untyped_storage().data_ptr() == data.untyped_storage().data_ptr()


def test_gradients_reach_the_prefix_alone() -> None:
    module, _ = original()
    choice = family().choice({"feed": 12, "heads": 2, "depth": 2})
    elastic = copy.deepcopy(shared_module()).set(choice)
    small = by_hand(module, choice)
    elastic(TOKENS).square().mean().backward()
    small(TOKENS).square().mean().backward()
    inside = dict(small.named_parameters())
    for name, parameter in elastic.named_parameters():
        if name.startswith("layers.2."):
            assert parameter.grad is None
            continue
        expected = torch.zeros_like(parameter)
        expected[tuple(slice(0, size) for size in inside[name].shape)] = inside[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-12)


def test_a_copy_has_tensors_of_its_own() -> None:
    twin = copy.deepcopy(shared_module())
    with torch.no_grad():
        next(iter(twin.parameters())).add_(1.0)
    assert not torch.equal(next(iter(twin.parameters())), next(iter(shared_module().parameters())))
    torch.testing.assert_close(shared_module()(TOKENS), original()[0](TOKENS), rtol=0, atol=1e-13)


@pytest.mark.parametrize("choice", [CHOICES[0], CHOICES[22], CHOICES[53]], ids=str)
def test_the_cost_is_that_of_the_extracted_graph(choice: Choice) -> None:
    stats = family().extract(choice).stats()
    cost = family().cost(choice)
    assert (cost.macs, cost.parameters) == (stats.macs, stats.parameters)
    assert cost.parameters == sum(p.numel() for p in by_hand(original()[0], choice).parameters())


def test_the_best_within_a_budget() -> None:
    elastic = family()
    some = CHOICES[::5]
    budget = elastic.cost(CHOICES[25]).macs
    best = elastic.best(budget, among=some)
    assert elastic.cost(best).macs == max(elastic.cost(c).macs for c in some if elastic.cost(c).macs <= budget)
    deepest = elastic.best(budget, lambda choice: choice["depth"], among=some)
    assert deepest["depth"] == max(c["depth"] for c in some if elastic.cost(c).macs <= budget)
    assert elastic.best(10**9, count="parameters", among=some) == max(some, key=lambda c: elastic.cost(c).parameters)
    with pytest.raises(SutureError, match="no sub-network costs 10 macs or less; the smallest takes") as caught:
        elastic.best(10, among=some)
    assert caught.value.code is Code.ELASTIC


def test_samples_follow_from_the_seed_alone() -> None:
    drawn = list(itertools.islice(family().sampler(3), 60))
    assert drawn == list(itertools.islice(family().sampler(3), 60))
    assert drawn != list(itertools.islice(family().sampler(4), 60))
    assert {choice["feed"] for choice in drawn} == {8, 12, 20}
    first, second, *others = next(family().sandwich(0, between=3))
    assert (first, second, len(others)) == (family().full, family().smallest, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 12])
def test_even_selections_are_nested_and_about_even(count: int) -> None:
    order = evenly(count)
    assert sorted(order) == list(range(count))
    for kept in range(2, count + 1):
        taken = sorted(order[:kept])
        assert (taken[0], taken[-1]) == (0, count - 1)
        gaps = [b - a for a, b in itertools.pairwise(taken)]
        assert max(gaps) <= 2 * min(gaps) + 1


def test_blocks_may_be_left_out_evenly() -> None:
    module, graph = original(layers=5)
    elastic = Elastic(graph, [Depth("layers", (2, 3, 4), keep="even")])
    kept = {2: [0, 4], 3: [0, 2, 4]}
    for depth, blocks in kept.items():
        oracle = copy.deepcopy(module)
        oracle.layers = nn.ModuleList([module.layers[k] for k in blocks])
        choice = elastic.choice({"layers": depth})
        torch.testing.assert_close(run(elastic.extract(choice)), oracle(TOKENS), rtol=0, atol=1e-13)
        torch.testing.assert_close(elastic.module().set(choice)(TOKENS), oracle(TOKENS), rtol=0, atol=1e-13)
    assert "layers.1.feed.up.weight" in elastic.extract(elastic.choice({"layers": 2})).parameters


def test_every_block_may_have_a_width_of_its_own() -> None:
    module, graph = original()
    elastic = Elastic(graph, [Width("layers.*.feed.up", (0.4, 0.6), together=False), Depth(None, (2,))])
    names = [d.name for d in elastic.dimensions]
    assert len(elastic) == 3**3 * 2 and names[1] == "layers.*.feed.up/layers.1.feed.up.weight[0]"
    choice = elastic.choice({names[0]: 0.4, names[1]: 0.6, "layers": 2})
    oracle = copy.deepcopy(module)
    oracle.layers = oracle.layers[:2]
    for block, size in zip(oracle.layers, (8, 12), strict=True):
        for linear in (block.feed.up,):
            linear.weight, linear.bias = nn.Parameter(linear.weight[:size]), nn.Parameter(linear.bias[:size])
        block.feed.down.weight = nn.Parameter(block.feed.down.weight[:, :size])
    torch.testing.assert_close(run(elastic.extract(choice)), oracle(TOKENS), rtol=0, atol=1e-12)
    torch.testing.assert_close(elastic.module().set(choice)(TOKENS), oracle(TOKENS), rtol=0, atol=1e-12)


def test_grouped_heads_and_rotary_positions_narrow_by_whole_groups() -> None:
    shape = {"groups": 2, "rotary": True, "gated": True, "norm": "rms", "bias": False}
    module, graph = original(**shape)
    elastic = Elastic(graph, [Width("layers.*.attention.k", (1,), name="groups")])
    choice = elastic.smallest
    small = Decoder(Shape(layers=3, **{**shape, "heads": 2, "groups": 1})).double().eval()
    whole = module.state_dict()
    small.load_state_dict(
        {n: whole[n][tuple(slice(0, size) for size in value.shape)] for n, value in small.state_dict().items()}
    )
    torch.testing.assert_close(run(elastic.extract(choice)), small(TOKENS), rtol=0, atol=1e-12)
    torch.testing.assert_close(elastic.module().set(choice)(TOKENS), small(TOKENS), rtol=0, atol=1e-12)


def test_a_fused_projection_narrows_in_all_its_parts() -> None:
    def forward(self: Program, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8))

    torch.manual_seed(0)
    module = Program(forward, qkv=nn.Linear(5, 24), out=nn.Linear(8, 5)).double().eval()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    elastic = Elastic(suture.trace(module, x), [Width("qkv", (3,), kind="head")])
    q, k, v = (
        F.linear(x, module.qkv.weight, module.qkv.bias).view(2, 3, 3, 4, 2)[..., :3, :].permute(2, 0, 3, 1, 4).unbind(0)
    )
    seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 3, 6)
    expected = F.linear(seen, module.out.weight[:, :6], module.out.bias)
    torch.testing.assert_close(run(elastic.extract(elastic.smallest), x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(elastic.module().set(elastic.smallest)(x), expected, rtol=0, atol=1e-12)


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.body = nn.Conv2d(8, 6, 3, padding=1)
        self.colour, self.shape = nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.body(self.drop(torch.relu(self.norm(self.stem(x))))))
        x = x.mean((2, 3))
        return {"colour": self.colour(x), "shape": self.shape(x)}


def two_tasks() -> tuple[TwoTasks, torch.Tensor, Elastic]:
    torch.manual_seed(0)
    module = randomise(TwoTasks()).double().eval()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    graph = suture.trace(module, x, dynamic=[{0: "batch"}])
    return module, x, Elastic(graph, [Width("stem", (0.5,)), Width("body", (0.5,))])


def narrowed(module: TwoTasks, stem: int, body: int) -> TwoTasks:
    small = copy.deepcopy(module)
    small.stem.weight, small.stem.bias = nn.Parameter(small.stem.weight[:stem]), nn.Parameter(small.stem.bias[:stem])
    small.norm = nn.BatchNorm2d(stem).double().train(module.training)
    small.norm.load_state_dict({n: v[:stem] if v.ndim else v for n, v in module.norm.state_dict().items()})
    small.body.weight = nn.Parameter(small.body.weight[:body, :stem])
    small.body.bias = nn.Parameter(small.body.bias[:body])
    small.colour.weight, small.shape.weight = (nn.Parameter(m.weight[:, :body]) for m in (small.colour, small.shape))
    return small


def test_every_task_may_have_a_width_of_its_own() -> None:
    module, x, elastic = two_tasks()
    names = {name: name for name in elastic.graph.output_names}
    colour, shape = sorted(names)
    choices = {colour: {"stem": 0.5, "body": 0.5}, shape: {"body": 0.5}}
    found = elastic.module().per_output(choices, x)
    torch.testing.assert_close(found[colour], narrowed(module, 4, 3)(x)["colour"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[shape], narrowed(module, 8, 3)(x)["shape"], rtol=0, atol=1e-12)
    alone = elastic.extract(elastic.choice(choices[colour]), outputs=[colour])
    torch.testing.assert_close(run(alone, x), found[colour], rtol=0, atol=1e-12)
    assert not any(name.startswith("shape") for name in alone.parameters)
    with pytest.raises(SutureError, match="there is no output 'size'") as caught:
        elastic.extract(elastic.full, outputs=["size"])
    assert caught.value.code is Code.ELASTIC


def test_running_statistics_are_prefixes_of_the_whole_ones() -> None:
    module, x, elastic = two_tasks()
    before = module.norm.running_mean.clone()
    small = narrowed(module, 4, 6)
    small.train()
    small.drop.eval()
    module_ = copy.deepcopy(elastic.module()).train()
    module_.set({"stem": 0.5})
    module_(x)
    small(x)
    torch.testing.assert_close(module_.norm.running_mean[:4], small.norm.running_mean)
    torch.testing.assert_close(module_.norm.running_mean[4:], before[4:])
    assert int(module_.norm.num_batches_tracked) == int(small.norm.num_batches_tracked)


def test_training_mode_reaches_what_holds_no_tensors() -> None:
    _, x, elastic = two_tasks()
    module = copy.deepcopy(elastic.module()).set({"stem": 0.5})
    module.norm.eval()
    first = module(x)["colour"]
    assert torch.equal(first, module(x)["colour"])
    module.train()
    module.norm.eval()
    assert not torch.equal(first, module(x)["colour"])


def test_accumulated_gradients_are_the_mean_over_the_sub_networks() -> None:
    choices = [CHOICES[0], CHOICES[30]]
    module = copy.deepcopy(shared_module())
    loss = lambda m: m(TOKENS).square().mean()  # noqa: E731
    values = accumulate(module, choices, loss)
    got = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    expected: dict[str, torch.Tensor] = {}
    for choice, value in zip(choices, values, strict=True):
        small = by_hand(original()[0], choice)
        result = small(TOKENS).square().mean()
        assert value == pytest.approx(float(result.detach()))
        result.backward()
        for name, parameter in small.named_parameters():
            whole = expected.setdefault(name, torch.zeros_like(got[name]))
            whole[tuple(slice(0, size) for size in parameter.shape)] += parameter.grad / 2
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_sandwich_rule_distils_the_whole_network_into_the_others() -> None:
    module = copy.deepcopy(shared_module())
    target = F.one_hot(torch.zeros_like(TOKENS), 11).double()
    task = lambda m: distillation(m(TOKENS), target * 30)  # noqa: E731
    values = sandwich(module, [family().full, CHOICES[0]], task, lambda m: m(TOKENS), temperature=2.0)
    whole, small = original()[0](TOKENS).detach(), by_hand(original()[0], CHOICES[0])(TOKENS).detach()
    entropy = F.cross_entropy(small.flatten(0, 1) / 2, (whole / 2).softmax(-1).flatten(0, 1))
    assert values[1] == pytest.approx(4 * float(entropy))


def test_the_branches_of_poa() -> None:
    student = copy.deepcopy(shared_module())
    branches = Branches.of(student, family().full, share=0.3)
    views = TOKENS, TOKENS.flip(1)
    choice = CHOICES[10]
    terms = branches.losses(choice, views)
    whole, small = original()[0], by_hand(original()[0], choice)

    def entropy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(a.flatten(0, 1), b.softmax(-1).flatten(0, 1))

    one, other = views
    intact = (entropy(whole(one), whole(other)) + entropy(whole(other), whole(one))) / 2
    cross = (entropy(small(one), whole(other)) + entropy(small(other), whole(one))) / 2
    same = (entropy(small(one), whole(one)) + entropy(small(other), whole(other))) / 2
    torch.testing.assert_close(terms["loss"], 0.3 * intact + 0.7 * (cross + same) / 2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1.0
    before = [p.clone() for p in branches.teacher.parameters()]
    branches.follow(0.9)
    for old, now in zip(before, branches.teacher.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.1)
    assert not any(p.requires_grad for p in branches.teacher.parameters())


def test_projections_may_be_rescaled_by_the_width_they_lose() -> None:
    module, graph = original()
    elastic = Elastic(graph, FAMILY, rescale=True)
    choice = elastic.choice({"feed": 8, "heads": 1, "width": 8})
    small = by_hand(module, choice)
    with torch.no_grad():
        for block in small.layers:
            block.feed.down.weight *= 20 / 8
            block.attention.o.weight *= 4
            for reader in (block.feed.up, block.attention.q, block.attention.k, block.attention.v):
                reader.weight *= 2
        small.head.weight *= 2
    torch.testing.assert_close(run(elastic.extract(choice)), small(TOKENS), rtol=0, atol=1e-11)
    torch.testing.assert_close(elastic.module().set(choice)(TOKENS), small(TOKENS), rtol=0, atol=1e-11)


def test_verdicts_name_the_operator_that_sees_the_width() -> None:
    verdicts = family().verdicts()
    assert verdicts["layers.0.feed.up.weight[0]"] == "exact"
    assert "statistics see the width" in verdicts["embed.weight[1]"]


def test_the_family_prints_its_dimensions_and_costs() -> None:
    text = str(family())
    assert "feed: 8, 12, 20" in text and "54 sub-networks" in text


@pytest.mark.parametrize(
    ("dimensions", "code", "text"),
    [
        ([Width("layers.*.feed.up", (21,))], Code.ELASTIC, "21 of 20 indices; 1 to 20 would be right"),
        ([Width("layers.*.feed.up", (0,))], Code.ELASTIC, "0 of 20 indices"),
        ([Width("layers.*.feed.up", (1.5,))], Code.ELASTIC, "above 0 and at most 1"),
        ([Width("layers.*.fed.up", (2,))], Code.SITE, "matches no module"),
        ([Width("head", (2,))], Code.ELASTIC, "head.weight.0. is pinned: it reaches dimension 2 of output"),
        ([Depth("layers", (4,))], Code.ELASTIC, "4 of 3 blocks; 1 to 3 would be right"),
        ([Depth("layers", (2,), order=(0, 0, 1))], Code.ELASTIC, "does not name every block once"),
        ([Depth("blocks", (2,))], Code.SITE, "there is no stack 'blocks'"),
        ([Width("embed", (8,)), Width("embed", (4,))], Code.ELASTIC, "two dimensions are called 'embed'"),
        ([Width("embed", (8,)), Width("embed", (4,), name="b")], Code.ELASTIC, "varies with embed and with b"),
    ],
)
def test_bad_dimensions_get_one_line(dimensions: list[Width | Depth], code: Code, text: str) -> None:
    with pytest.raises(SutureError, match=text) as caught:
        Elastic(original()[1], dimensions)
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("amounts", "text"),
    [
        ({"fed": 8}, "there is no dimension 'fed'; the nearest is 'feed'"),
        ({"feed": 9}, "9 of feed; 8, 12, 20 would be right"),
    ],
)
def test_bad_choices_get_one_line(amounts: dict[str, int], text: str) -> None:
    with pytest.raises(SutureError, match=text) as caught:
        shared_module().set(amounts)
    assert caught.value.code is Code.ELASTIC


def test_a_loss_that_is_no_scalar_gets_one_line() -> None:
    module = copy.deepcopy(shared_module())
    with pytest.raises(SutureError, match="a scalar with a gradient would be right") as caught:
        accumulate(module, [family().full], lambda m: m(TOKENS))
    assert caught.value.code is Code.TRAINING
    with pytest.raises(SutureError, match="no sub-network to train"):
        accumulate(module, [], lambda m: m(TOKENS).mean())
