"""A pool of instances: what they are cut from, the loss that distils them, and the stitching layers that their maps give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from stitchable import SIZE, ViT
from torch import nn

import suture
from suture import Code, SutureError
from suture.drivers.distilling import Distillation
from suture.ir.graph import Graph
from suture.passes.assembly.instances import (
    Instance,
    Transformation,
    evenly,
    initialise_stitches,
    instances,
    joined,
    points_of,
)
from suture.passes.stitch import configurations


def vit(width: int = 12, depth: int = 4, seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    return ViT(width, depth).double().eval()


def images(count: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trace(module: nn.Module) -> Graph:
    return suture.trace(module, images(2), dynamic={"x": {0: "batch"}})


def test_instances_are_evenly_chosen_blocks_of_the_large_model() -> None:
    net = vit()
    graph = trace(net)
    found = instances(graph, depths=(2, 1), widths=(1.0,))
    oracle = copy.deepcopy(net)
    for instance, blocks in zip(found, ([3], [1, 3]), strict=True):
        oracle.blocks = nn.ModuleList([net.blocks[k] for k in blocks])
        with torch.no_grad():
            torch.testing.assert_close(suture.to_torch(instance)(images()), oracle(images()))
        assert not {id(p.data) for p in instance.parameters.values()} & {id(p.data) for p in graph.parameters.values()}


def test_instances_are_narrower_and_ordered_by_cost() -> None:
    found = instances(trace(vit()), depths=(2, 4), widths=(0.5, 1.0))
    assert [item.stats().macs for item in found] == sorted(item.stats().macs for item in found)
    widths = sorted(item.parameters["head.weight"].data.shape[1] for item in found)
    assert widths == [6, 6, 12, 12]
    for item in found:
        assert suture.to_torch(item)(images()).shape == (6, 5)


def test_blocks_are_spread_and_end_with_the_last() -> None:
    assert evenly(3, 12) == [3, 7, 11]
    assert evenly(5, 12) == [2, 4, 7, 9, 11]
    assert points_of(3, 12) == [0, 4, 8, 12]
    assert points_of(4, 4) == [0, 1, 2, 3, 4]


def features(net: ViT, x: torch.Tensor) -> list[torch.Tensor]:
    found = [net.stem(x)]
    for block in net.blocks:
        found.append(block(found[-1]))
    return found


def test_the_loss_compares_mapped_features_with_the_teachers() -> None:
    large, small = vit(), vit(8, 2, seed=3)
    pair = Distillation(trace(large), trace(small))
    x = images()
    result = pair(x)
    ours, theirs = features(small, x), features(large, x)
    expected = torch.stack([
        (layer(ours[k]) - theirs[target]).square().mean() / theirs[target].square().mean()
        for k, (layer, target) in enumerate(zip(pair.maps, (0, 2, 4), strict=True))
    ]).mean()  # fmt: skip
    torch.testing.assert_close(result.features, expected)
    torch.testing.assert_close(result.outputs[0], small(x))
    torch.testing.assert_close(result.teacher[0], large(x).detach())
    assert not result.teacher[0].requires_grad


def test_training_moves_the_instance_and_the_maps_alone() -> None:
    large, small = vit(), vit(8, 2, seed=3)
    teacher, student = trace(large), trace(small)
    pair = Distillation(teacher, student)
    held = {name: p.data.detach().clone() for name, p in teacher.parameters.items()}
    optimizer = torch.optim.Adam(pair.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = pair(images()).features
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(teacher.parameters[name].data, data) for name, data in held.items())
    trained = suture.to_torch(student)(images())  # the instance's graph is what was trained
    assert not torch.equal(trained, vit(8, 2, seed=3)(images()))


def test_fitted_maps_are_those_of_least_squares() -> None:
    large, small = vit(), vit(8, 2, seed=3)
    pair = Distillation(trace(large), trace(small))
    x = images(20)
    pair.fit({"x": x})
    for ours, theirs, layer in zip(
        features(small, x), [features(large, x)[k] for k in (0, 2, 4)], pair.maps, strict=True
    ):
        rows = torch.cat([ours.reshape(-1, 8), torch.ones(ours.numel() // 8, 1, dtype=ours.dtype)], 1)
        oracle = torch.linalg.lstsq(rows, theirs.reshape(-1, 12)).solution
        torch.testing.assert_close(
            torch.cat([layer.weight.detach().T, layer.bias.detach()[None]]), oracle, rtol=1e-6, atol=1e-8
        )


def random_map(point: int, target: int, inputs: int, seed: int, outputs: int = 12) -> Transformation:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return Transformation(point, target, weight, torch.randn(outputs, generator=generator, dtype=torch.float64))


def test_two_maps_give_the_way_between_two_instances() -> None:
    """What the large model would see is the same, as near as the second instance can show it."""
    front, back = random_map(1, 2, 6, 0), random_map(1, 2, 8, 1)
    weight, bias = joined(front, back)
    x = torch.randn(30, 6, dtype=torch.float64)
    target = x @ front.weight.T + front.bias
    oracle = torch.linalg.lstsq(back.weight, (target - back.bias).T).solution.T
    torch.testing.assert_close(x @ weight.T + bias, oracle)
    weight, bias = joined(front, None)
    torch.testing.assert_close(x @ weight.T + bias, target)
    weight, bias = joined(front, front)
    torch.testing.assert_close(weight, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(bias, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.fixture(scope="module")
def pool() -> tuple[list[Instance], Graph]:
    graphs = [trace(vit(6, 2, seed=3)), trace(vit(8, 2, seed=4)), trace(vit(12, 3, seed=5))]
    maps = [
        [random_map(k, target, width, seed=10 * width + k) for k, target in enumerate((0, 2, 3))] for width in (6, 8)
    ]
    made = [Instance(graphs[0], tuple(maps[0])), Instance(graphs[1], tuple(maps[1])), Instance(graphs[2])]
    supernet = suture.passes.stitch(graphs[0], others=tuple(graphs[1:]), initialise="random")
    return made, supernet


def test_stitching_layers_come_from_the_maps(pool: tuple[list[Instance], Graph]) -> None:
    made, supernet = pool
    result = initialise_stitches(supernet, made[::-1])
    assert set(result.parameters) == set(supernet.parameters)
    places: dict[tuple[Any, int], set[tuple[int, int]]] = {}
    for item in configurations(supernet):
        for pair, place in item.route.stitches:
            places.setdefault((pair, place.layer), set()).add((place.exit, place.entry))
    assert places
    for ((a, b), number), found in places.items():
        fronts, backs = made[a].transformations, made[b].transformations
        maps = [joined(fronts[i + 1] if fronts else None, backs[k] if backs else None) for i, k in found]
        for leaf, index in (("weight", 0), ("bias", 1)):
            expected = sum(item[index] for item in maps) / len(maps)
            torch.testing.assert_close(result.parameters[f"stitches.{a}_{b}.{number}.{leaf}"].data, expected)


def test_learned_maps_start_nearer_than_random_ones() -> None:
    """Stitched through the teacher's features, an instance's features are nearer to what the next one expects than through random layers."""
    large = vit(12, 4)
    teacher = trace(large)
    small, middle = instances(teacher, depths=(2,), widths=(0.5, 0.75))
    made = []
    for item in (small, middle):
        pair = Distillation(teacher, item)
        pair.fit({"x": images(40)})
        made.append(pair.instance())
    x = images(10, seed=7)
    random = suture.passes.stitch(small, others=(middle,), initialise="random")
    ours = initialise_stitches(random, made)
    anchor = suture.to_torch(middle)(x)
    nearer = 0
    stitched = [item for item in configurations(random) if not item.is_anchor]
    for item in stitched:
        outputs = [suture.to_torch(graph)(x, stitch=torch.tensor(item.number)) for graph in (ours, random)]
        distances = [float((output - anchor).square().mean()) for output in outputs]
        nearer += distances[0] < distances[1]
    assert nearer == len(stitched)


def test_what_does_not_fit_is_refused(pool: tuple[list[Instance], Graph]) -> None:
    made, supernet = pool
    short = Instance(made[0].graph, made[0].transformations[:1])
    low = suture.passes.stitch(made[0].graph, others=(made[1].graph,), initialise="random", rank=2)
    cases = [
        (lambda: instances(trace(vit()), depths=(9,), widths=(1.0,)), Code.GROWTH, "9 of 4 blocks"),
        (lambda: initialise_stitches(supernet, made[:2]), Code.STITCH, "anchors.2 is 0 of the instances"),
        (lambda: initialise_stitches(supernet, [short, *made[1:]]), Code.STITCH, "no transformation"),
        (lambda: initialise_stitches(low, made[:2]), Code.STITCH, "stitch without rank"),
        (lambda: joined(None, None), Code.STITCH, "needs no stitch to itself"),
        (lambda: Distillation(trace(vit(8, 2)), trace(vit(8, 3))), Code.GROWTH, "3 of 2"),
    ]
    for call, code, words in cases:
        with pytest.raises(SutureError) as caught:
            call()
        assert caught.value.code is code
        assert words in str(caught.value)
