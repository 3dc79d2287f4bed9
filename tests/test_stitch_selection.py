"""Choosing stitches: samplers, the Pareto front, the best within a budget, the picture, the loss."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from functools import cache
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from stitchable import CLASSES, images, vit_graph

import suture
from suture import Code, SutureError
from suture.backends.pareto_drawing import Series, draw_pareto, short_number
from suture.drivers.supernet import Supernet, best_stitch
from suture.passes.stitch.distillation import distillation_loss
from suture.passes.stitch.sampling import resource_sampler, uniform_sampler
from suture.passes.stitch.selection import pareto_front


@cache
def supernet() -> Supernet:
    graphs = [vit_graph(width, 2, seed=width) for width in (8, 12)]
    return Supernet(suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": images(20)}))


def test_a_seed_draws_the_same_routes_in_any_order():
    sampler = uniform_sampler(range(7), seed=4)
    forwards = [sampler(step) for step in range(50)]
    assert [sampler(step) for step in reversed(range(50))] == forwards[::-1]
    assert list(islice(sampler, 50)) == forwards
    assert forwards != [uniform_sampler(range(7), seed=5)(step) for step in range(50)]


def test_all_routes_are_drawn_alike():
    counts = torch.bincount(torch.tensor([uniform_sampler(range(5))(step) for step in range(2000)]))
    assert counts.min() > 320
    assert len(counts) == 5


def test_bins_of_macs_are_drawn_alike_however_many_routes_they_hold():
    macs = [0, 100] + [55] * 20  # two routes at the ends, twenty in the middle
    sampler = resource_sampler(macs, bins=3)
    drawn = torch.bincount(torch.tensor([sampler(step) for step in range(1500)]), minlength=22)
    assert 400 < drawn[0] < 600
    assert 400 < drawn[1] < 600
    weighted = resource_sampler(macs, bins=3, weights=[0, 1, 0])
    assert all(weighted(step) > 1 for step in range(50))


@pytest.mark.parametrize(("bins", "weights"), [(0, None), (3, [1.0]), (3, [0.0, 0.0, 0.0]), (3, [-1.0, 1.0, 1.0])])
def test_bad_bins_are_refused(bins, weights):
    with pytest.raises(SutureError) as caught:
        resource_sampler([0, 50, 100], bins, weights=weights)
    assert caught.value.code is Code.STITCH


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats(points):
    costs, scores = ({k: float(p[side]) for k, p in enumerate(points)} for side in (0, 1))
    front = pareto_front(costs, scores)

    def beaten(k: int) -> bool:
        return any(
            costs[j] <= costs[k] and scores[j] >= scores[k] and (costs[j] < costs[k] or scores[j] > scores[k])
            for j in costs
        )

    assert {(costs[k], scores[k]) for k in front} == {(costs[k], scores[k]) for k in costs if not beaten(k)}
    assert [costs[k] for k in front] == sorted({costs[k] for k in front})


def test_the_best_stitch_within_a_budget():
    net = supernet()
    scores = {item.number: 0.1 * item.number for item in net.configurations}
    for budget in sorted(net.macs.values()):
        fitting = [k for k, macs in net.macs.items() if macs <= budget]
        assert best_stitch(net, budget, accuracies=scores).number == max(fitting)
        assert best_stitch(net.graph, budget).macs == max(net.macs[k] for k in fitting)
    assert net.best(5.0, accuracies={2: 0.5, 3: 0.5}, costs={2: 4.0, 3: 3.0}).number == 3  # as good, and cheaper
    with pytest.raises(SutureError, match="no stitch costs 1 or less; the cheapest costs") as caught:
        best_stitch(net, 1)
    assert caught.value.code is Code.STITCH
    with pytest.raises(SutureError, match="there is no stitch 99"):
        best_stitch(net, 1e12, accuracies={99: 1.0})


def test_a_loaded_supernet_still_chooses(tmp_path):
    suture.save(supernet().graph, tmp_path / "net")
    loaded = suture.load(tmp_path / "net")
    assert best_stitch(loaded, 1e12) == best_stitch(supernet(), 1e12)


def test_accuracies_are_those_of_the_module():
    net, x = supernet(), images(30)
    module = net.module()
    targets = torch.randint(0, CLASSES, (30,), generator=torch.Generator().manual_seed(0))
    found = net.accuracies({"x": x}, targets)
    for route in found:
        with torch.no_grad():
            assert found[route] == (module.set(route)(x).argmax(1) == targets).double().mean().item()
    assert set(net.accuracies({"x": x}, targets, routes=[1, 3])) == {1, 3}
    with pytest.raises(SutureError, match="30 targets for 4 of x"):
        net.accuracies({"x": images(4)}, targets)


def test_latencies_are_measured_in_onnx_runtime():
    found = supernet().latencies({"x": images(1)}, routes=[0, 1], rounds=1)
    assert set(found) == {0, 1}
    assert all(seconds > 0 for seconds in found.values())


def test_the_picture_shows_every_route_and_no_labels_overlap():
    net = supernet()
    scores = {item.number: 0.5 + 0.01 * item.number for item in net.configurations}
    text = net.draw(scores, title="two transformers", names=["small", "large"])
    tree = ElementTree.fromstring(text)
    circles = [node for node in tree.iter() if node.tag.endswith("circle")]
    assert len(circles) == len(net) + 2  # and two in the legend
    for word in ("two transformers", "small", "large", "Pareto front", "MACs for one example"):
        assert word in text


def test_labels_of_close_points_make_way_for_one_another():
    points = {k: (1e9 + k * 1e5, 0.80 + k * 1e-4) for k in range(4)} | {9: (2e9, 0.9)}
    text = draw_pareto([Series("all", points)], [0, 9], labels={k: f"label number {k}" for k in range(4)})
    boxes = [
        (float(x), float(y), float(x) + 0.605 * 13 * len(label), float(y) - 13)
        for x, y, label in re.findall(
            r'<text class="strong" x="([\d.]+)" y="([\d.]+)" font-size="13">(label[^<]*)<', text
        )
    ]
    assert len(boxes) == 4
    for k, a in enumerate(boxes):
        for b in boxes[:k]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[1] <= b[3] or b[1] <= a[3]


@pytest.mark.parametrize(
    ("number", "shown"), [(1.5e9, "1.5G"), (2e8, "200M"), (4500, "4.5k"), (0.85, "0.85"), (2e-3, "2m"), (3e-6, "3u"), (0, "0")]
)  # fmt: skip
def test_numbers_on_axes_are_short(number, shown):
    assert short_number(number) == shown


def test_distillation_is_a_mixture_of_two_targets():
    generator = torch.Generator().manual_seed(0)
    outputs, teacher = (torch.randn(6, CLASSES, generator=generator) for _ in range(2))
    targets = torch.arange(6) % CLASSES
    hard = distillation_loss(outputs, targets, teacher, share=0.25)
    wanted = 0.75 * F.cross_entropy(outputs, targets) + 0.25 * F.cross_entropy(outputs, teacher.argmax(1))
    torch.testing.assert_close(hard, wanted)
    soft = distillation_loss(outputs, targets, teacher, share=1.0, temperature=2.0)
    p, q = F.softmax(teacher / 2, 1), F.softmax(outputs / 2, 1)
    torch.testing.assert_close(soft, 4 * (p * (p / q).log()).sum(1).mean())


def test_no_gradient_reaches_the_teacher():
    outputs, teacher = (torch.randn(3, CLASSES, requires_grad=True) for _ in range(2))
    distillation_loss(outputs, torch.zeros(3, dtype=torch.long), teacher, temperature=1.0).backward()
    assert outputs.grad is not None
    assert teacher.grad is None
