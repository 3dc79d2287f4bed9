"""The supernet: anchors bit for bit, stitches against hand-written compositions, extraction, ONNX, training."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stitchable import CLASSES, StagedNet, ViT, images, make, traced, vit_graph
from torch import nn

import suture
from suture import Code, SutureError
from suture.backends.onnxruntime import OnnxModel
from suture.drivers.supernet import Supernet
from suture.passes.stitch.anchor import find_anchor
from suture.passes.stitch.configurations import configurations
from suture.passes.stitch.distillation import distillation_loss
from suture.passes.stitch.least_squares import Moments, solve
from suture.passes.stitch.sites import TABLE
from suture.passes.stitch.space import route_cost


@cache
def vits() -> tuple[list[nn.Module], list[suture.Graph], Supernet]:
    """Three transformers of equal depth, and their supernet."""
    modules = [make(ViT, width, seed=width) for width in (8, 12, 16)]
    graphs = [traced(module, f"vit{k}") for k, module in enumerate(modules)]
    made = suture.passes.stitch(graphs[0], others=tuple(graphs[1:]), data={"x": images(40)})
    return modules, graphs, Supernet(made)


def run(graph: suture.Graph, x: torch.Tensor, stitch: int) -> torch.Tensor:
    with torch.no_grad():
        return suture.evaluate(graph, {"x": x, "stitch": torch.tensor(stitch)})[0]


def by_hand(net: Supernet, modules: list[nn.Module], x: torch.Tensor, number: int) -> torch.Tensor:
    """The route in plain torch: blocks of the modules, and the stitching layers' weights."""
    route = net.configurations[number].route
    parameters = {name: parameter.data for name, parameter in net.graph.parameters.items()}
    with torch.no_grad():
        x = modules[route.hops[0].anchor].stem(x)
        for k, hop in enumerate(route.hops):
            if k:
                (front, back), place = route.stitches[k - 1]
                name = f"stitches.{front}_{back}.{place.layer}"
                x = F.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
            x = modules[hop.anchor].run(x, hop.first, hop.end)
        return modules[route.hops[-1].anchor].top(x)


def test_anchors_are_bit_equal_to_the_originals():
    _, graphs, net = vits()
    x = images(3)
    for number, graph in zip(net.anchors, graphs, strict=True):
        with torch.no_grad():
            assert torch.equal(run(net.graph, x, number), suture.evaluate(graph, [x])[0])


def test_every_stitch_is_the_hand_written_composition():
    modules, _, net = vits()
    x = images(3)
    assert len(net) == 3 + 2 * 7
    for item in net.configurations:
        torch.testing.assert_close(run(net.graph, x, item.number), by_hand(net, modules, x, item.number))


def test_extraction_is_the_supernet_at_that_route():
    _, _, net = vits()
    x = images(3)
    for item in net.configurations:
        single = net.extract(item.number)
        assert [value.name for value in single.inputs] == ["x"]
        assert not any(node.bodies for node in single.nodes)
        with torch.no_grad():
            assert torch.equal(suture.evaluate(single, [x])[0], run(net.graph, x, item.number))
        stats = single.stats()
        assert (stats.macs, stats.parameters) == (item.macs, item.parameters)


def test_an_extracted_stitch_is_pruned_folded_and_exported_like_any_graph(tmp_path):
    _, _, net = vits()
    single = net.extract(5)
    slim = suture.passes.prune(single, keep=0.5, at=("*.fc1",))
    assert slim.stats().macs < single.stats().macs
    suture.export_onnx(slim, tmp_path / "slim.onnx")
    x = images(2)
    with torch.no_grad():
        torch.testing.assert_close(
            OnnxModel(tmp_path / "slim.onnx").run([x])[0], suture.evaluate(slim, [x])[0], rtol=1e-4, atol=1e-5
        )


def test_the_supernet_holds_its_anchors_once_and_shares_their_tensors():
    _, graphs, net = vits()
    stitches = sum(p.data.numel() for name, p in net.graph.parameters.items() if name.startswith("stitches."))
    total = sum(graph.stats().parameters for graph in graphs) + stitches
    assert net.graph.stats().parameters == total
    for number, graph in enumerate(graphs):
        for name, parameter in graph.parameters.items():
            if parameter.role != "constant":
                assert net.graph.parameters[f"anchors.{number}.{name}"].data is parameter.data


def test_macs_are_those_of_the_closed_form():
    _, _, net = vits()
    tokens, classes = 17, CLASSES

    def block(width: int) -> int:
        return tokens * (4 * width**2 + 4 * width**2) + 2 * tokens * tokens * width

    widths = (8, 12, 16)
    for item in net.configurations:
        hops = item.route.hops
        macs = 16 * 48 * widths[hops[0].anchor] + widths[hops[-1].anchor] * classes
        macs += sum((hop.end - hop.first) * block(widths[hop.anchor]) for hop in hops)
        macs += sum(tokens * widths[a] * widths[b] for (a, b), _ in item.route.stitches)
        assert item.macs == macs


def test_costs_add_up_to_what_the_graph_says():
    _, graphs, net = vits()
    anchors = [find_anchor(graph) for graph in graphs]
    layers = {((a, b), k): 17 * (8 + 4 * a) * (8 + 4 * b) for a, b in ((0, 1), (1, 2)) for k in range(2)}
    for item in net.configurations:
        assert route_cost(item.route, [anchor.costs for anchor in anchors], layers) == item.macs


def test_the_target_of_block_0_is_the_embedding():
    modules, graphs, _ = vits()
    x = images(40)
    net = suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": x}, kernel=1)
    with torch.no_grad():
        source = modules[0].run(modules[0].stem(x), 0, 1).reshape(-1, 8)
        target = modules[1].stem(x).reshape(-1, 12)
    wanted = solve(Moments.of(source, target))
    place = next(p for c in configurations(net) for _, p in c.route.stitches if (p.exit, p.entry) == (0, 0))
    held = net.parameters[f"stitches.0_1.{place.layer}.weight"].data
    torch.testing.assert_close(held, wanted.weight.float(), rtol=1e-4, atol=1e-5)


def test_a_shared_layer_is_fitted_jointly_or_is_the_mean():
    modules, graphs, joint = vits()
    x = images(40)
    mean = suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": x}, shared="mean")
    with torch.no_grad():
        ours = [modules[0].run(modules[0].stem(x), 0, k).reshape(-1, 8) for k in range(4)]
        theirs = [modules[1].run(modules[1].stem(x), 0, k).reshape(-1, 12) for k in range(4)]
    first = [(i, k) for i in (0, 1) for k in (0, 1)]  # the positions of the first window
    solutions = [solve(Moments.of(ours[i + 1], theirs[k])).weight for i, k in first]
    held = mean.parameters["stitches.0_1.0.weight"].data
    torch.testing.assert_close(held, torch.stack(solutions).mean(0).float(), rtol=1e-4, atol=1e-5)
    stacked = solve(Moments.of(torch.cat([ours[i + 1] for i, _ in first]), torch.cat([theirs[k] for _, k in first])))
    held = joint.graph.parameters["stitches.0_1.0.weight"].data
    torch.testing.assert_close(held, stacked.weight.float(), rtol=1e-4, atol=1e-5)


def test_a_model_stitched_to_itself_has_identities():
    graph = vit_graph(8)
    made = suture.passes.stitch(graph, others=(graph.copy(),), data={"x": images(60)}, kernel=1, two_way=True)
    x = images(3)
    for item in configurations(made):
        for (front, back), place in item.route.stitches:
            weight = made.parameters[f"stitches.{front}_{back}.{place.layer}.weight"].data
            torch.testing.assert_close(weight, torch.eye(8), rtol=0, atol=1e-4)
        with torch.no_grad():
            expected = suture.evaluate(graph, [x])[0]
        torch.testing.assert_close(run(made, x, item.number), expected, rtol=1e-3, atol=1e-3)


def test_a_model_stitched_to_itself_is_saved_and_exported(tmp_path):
    graph, x = vit_graph(8, 2), images(2)
    made = suture.passes.stitch(graph, others=(graph,), data={"x": images(40)})
    suture.save(made, tmp_path / "net")
    loaded = suture.load(tmp_path / "net")
    model = OnnxModel(suture.export_onnx(made, tmp_path / "net.onnx"), threads=1)
    module = Supernet(made).module()
    for item in configurations(made):
        expected = run(made, x, item.number)
        assert torch.equal(run(loaded, x, item.number), expected)
        with torch.no_grad():
            torch.testing.assert_close(module.set(item.number)(x), expected)
        onnx = model.run({"x": x, "stitch": torch.tensor(item.number)})[0]
        torch.testing.assert_close(onnx, expected, rtol=1e-4, atol=1e-5)


def test_residuals_are_reported_and_no_worse_than_the_mean():
    _, _, net = vits()
    notes = [note for note in net.graph.history[-1].notes if "relative residual" in note]
    assert len(notes) == 4
    assert all(float(note.rsplit(" ", 1)[1]) <= 1 for note in notes)


def test_the_module_switches_and_agrees_with_the_evaluator():
    _, _, net = vits()
    module, x = net.module(), images(3)
    for item in net.configurations:
        with torch.no_grad():
            torch.testing.assert_close(module.set(item.number)(x), run(net.graph, x, item.number))


def test_the_module_copies_casts_and_pickles():
    _, _, net = vits()
    module, x = net.module().set(6), images(2)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(copy.deepcopy(module)(x), expected)
        torch.testing.assert_close(copy.deepcopy(module).double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), expected)


def test_gradients_reach_the_route_that_is_set_and_nothing_else():
    _, _, net = vits()
    module = net.module()
    for item in net.configurations[3:8]:
        module.zero_grad(set_to_none=True)
        module.set(item.number)(images(2)).square().sum().backward()
        reached = {name.removeprefix("net.") for name, p in module.named_parameters() if p.grad is not None}
        read = {p.name for p in net.extract(item.number).parameters.values() if p.role == "parameter"}
        assert reached == read


def test_training_with_drawn_routes_lowers_the_loss():
    graphs = [traced(make(ViT, width, 2, seed=width)) for width in (8, 12)]
    net = Supernet(suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": images(30)}))
    x, y = images(16), torch.arange(16) % CLASSES
    module, sampler = net.module().train(), net.sampler(seed=3, bins=3)
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    losses = []
    for step in range(24):
        with torch.no_grad():
            teacher = module.set(net.anchors[-1])(x)
        loss = distillation_loss(module.set(sampler(step))(x), y, teacher, share=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_one_switchable_onnx_file_runs_every_stitch(tmp_path):
    _, _, net = vits()
    module, x = net.module(), images(3)
    model = OnnxModel(suture.export_onnx(net.graph, tmp_path / "net.onnx"), threads=1)
    for item in net.configurations:
        with torch.no_grad():
            expected = module.set(item.number)(x)
        found = model.run({"x": x, "stitch": torch.tensor(item.number)})[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_one_onnx_file_for_a_chosen_stitch(tmp_path):
    _, _, net = vits()
    x = images(3)
    for number in (0, 4, 11):
        model = OnnxModel(suture.export_onnx(net.extract(number), tmp_path / f"{number}.onnx"), threads=1)
        with torch.no_grad():
            expected = net.module().set(number)(x)
        torch.testing.assert_close(model.run([x])[0], expected, rtol=1e-4, atol=1e-5)


def test_the_configurations_survive_saving(tmp_path):
    _, _, net = vits()
    suture.save(net.graph, tmp_path / "net.suture-graph")
    loaded = Supernet(suture.load(tmp_path / "net.suture-graph"))
    assert loaded.configurations == net.configurations
    x = images(2)
    assert torch.equal(run(loaded.graph, x, 7), run(net.graph, x, 7))


def test_two_way_routes_are_the_hand_written_compositions():
    modules = [make(ViT, 8, 3), make(ViT, 12, 6)]
    graphs = [traced(module) for module in modules]
    net = Supernet(suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": images(30)}, two_way=True))
    kinds = [tuple(hop.anchor for hop in item.route.hops) for item in net.configurations]
    assert [kinds.count(kind) for kind in ((0,), (1,), (0, 1), (1, 0), (1, 0, 1), (0, 1, 0))] == [1, 1, 3, 2, 1, 1]
    x = images(2)
    for item in net.configurations:
        torch.testing.assert_close(run(net.graph, x, item.number), by_hand(net, modules, x, item.number))
        assert net.extract(item.number).stats().macs == item.macs


def test_chains_of_several_stitches_are_the_hand_written_compositions():
    modules, graphs, _ = vits()
    made = suture.passes.stitch(graphs[0], others=tuple(graphs[1:]), data={"x": images(30)}, nearest=False, kernel=1)
    net, x = Supernet(made), images(2)
    longest = [item for item in net.configurations if len(item.route.hops) == 3]
    assert len(longest) == 6  # pairs i <= j of three places
    for item in longest:
        torch.testing.assert_close(run(made, x, item.number), by_hand(net, modules, x, item.number))


@settings(max_examples=10)
@given(
    depths=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    direction=st.sampled_from(["fast_to_slow", "slow_to_fast", "both"]),
    nearest=st.booleans(),
)
def test_any_space_computes_its_routes(depths, kernel, stride, direction, nearest):
    modules = [make(ViT, 4 + 4 * k, depth, seed=k) for k, depth in enumerate(depths)]
    graphs = [vit_graph(4 + 4 * k, depth, k) for k, depth in enumerate(depths)]
    anchors = sorted(range(len(depths)), key=lambda k: graphs[k].stats().macs)
    made = suture.passes.stitch(
        graphs[0], others=tuple(graphs[1:]), initialise="random", at=("blocks.*",), kernel=kernel, stride=stride, direction=direction, nearest=nearest
    )  # fmt: skip
    net, x = Supernet(made), images(2)
    assert all(place.exit >= 0 and place.entry >= 0 for item in net.configurations for _, place in item.route.stitches)
    for item in net.configurations[:: max(1, len(net) // 12)]:
        expected = by_hand(net, [modules[k] for k in anchors], x, item.number)
        torch.testing.assert_close(run(made, x, item.number), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["slow_to_fast", "both"])
def test_other_directions(direction):
    modules, graphs, _ = vits()
    made = suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": images(30)}, direction=direction)
    net, x = Supernet(made), images(2)
    assert any(pair == (1, 0) for item in net.configurations for pair, _ in item.route.stitches)
    for item in net.configurations:
        torch.testing.assert_close(run(made, x, item.number), by_hand(net, modules, x, item.number))


def staged() -> tuple[list[nn.Module], Supernet]:
    modules = [make(StagedNet, 4, (2, 2, 1)), make(StagedNet, 6, (2, 3, 1), seed=1)]
    graphs = [traced(module) for module in modules]
    return modules, Supernet(suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": images(20)}))


def test_staged_networks_are_stitched_inside_stages_by_1x1_convolutions():
    modules, net = staged()
    places = {(p.exit, p.entry) for item in net.configurations for _, p in item.route.stitches}
    assert places == {(0, 1), (2, 3), (3, 4)}
    parameters = {name: p.data for name, p in net.graph.parameters.items()}
    x = images(2)
    for item in net.configurations[2:]:
        ((pair, place),) = item.route.stitches
        name = f"stitches.{pair[0]}_{pair[1]}.{place.layer}"
        assert parameters[f"{name}.weight"].shape[2:] == (1, 1)
        with torch.no_grad():
            features = modules[0].run(modules[0].stem(x), 0, place.exit + 1)
            features = F.conv2d(features, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
            expected = modules[1].top(modules[1].run(features, place.entry, len(modules[1].chain)))
        torch.testing.assert_close(run(net.graph, x, item.number), expected)


def test_batch_norms_off_the_route_keep_their_statistics():
    _, net = staged()
    module = net.module().train()
    before = copy.deepcopy(dict(module.named_buffers()))
    module.set(3)(images(4))
    moved = {name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])}
    read = set(net.extract(3).parameters)
    assert moved
    assert {name.removeprefix("net.") for name in moved if name.endswith(("mean", "var"))} <= read


def test_anchors_of_different_families_are_stitched_at_resampled_positions(tmp_path):
    modules = [make(StagedNet, 4, (2, 2, 1)), make(ViT, 40, 4)]
    graphs = [traced(module) for module in modules]
    net = Supernet(suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": images(20)}))
    assert len(net) > 4
    x = images(2)
    model = OnnxModel(suture.export_onnx(net.graph, tmp_path / "net.onnx"), threads=1)
    parameters = {name: p.data for name, p in net.graph.parameters.items()}
    for item in net.configurations:
        found = run(net.graph, x, item.number)
        assert net.extract(item.number).stats().macs == item.macs
        onnx = model.run({"x": x, "stitch": torch.tensor(item.number)})[0]
        torch.testing.assert_close(onnx, found, rtol=1e-3, atol=1e-4)
        if item.is_anchor:
            continue
        ((_, place),) = item.route.stitches
        name = f"stitches.0_1.{place.layer}"
        with torch.no_grad():  # the grid is brought to 4 x 4; the class token is its mean
            grid = modules[0].run(modules[0].stem(x), 0, place.exit + 1)
            grid = F.adaptive_avg_pool2d(grid, 4).flatten(2).transpose(1, 2)
            tokens = torch.cat([grid.mean(1, keepdim=True), grid], 1)
            tokens = F.linear(tokens, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
            expected = modules[1].top(modules[1].run(tokens, place.entry, 4))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_transformers_of_other_patch_sizes_carry_the_class_token():
    modules = [make(ViT, 8, 2, patch=4), make(ViT, 16, 2, patch=2)]
    graphs = [traced(module) for module in modules]
    net = Supernet(suture.passes.stitch(graphs[0], others=(graphs[1],), data={"x": images(20)}, kernel=1))
    parameters, x = {name: p.data for name, p in net.graph.parameters.items()}, images(2)
    item = net.configurations[2]
    ((_, place),) = item.route.stitches
    with torch.no_grad():  # 4 x 4 grows to 8 x 8: the map of channels comes first, as it costs less there
        tokens = modules[0].run(modules[0].stem(x), 0, place.exit + 1)
        name = f"stitches.0_1.{place.layer}"
        tokens = F.linear(tokens, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
        grid = tokens[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4)
        grid = F.interpolate(grid, (8, 8), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        expected = modules[1].top(modules[1].run(torch.cat([tokens[:, :1], grid], 1), place.entry, 2))
    torch.testing.assert_close(run(net.graph, x, item.number), expected, rtol=1e-4, atol=1e-5)


def test_random_layers_depend_on_the_seed_alone():
    _, graphs, _ = vits()
    made = [
        suture.passes.stitch(graphs[0], others=(graphs[1],), initialise="random", seed=seed).parameters for seed in (1, 1, 2)
    ]  # fmt: skip
    name = "stitches.0_1.0.weight"
    assert torch.equal(made[0][name].data, made[1][name].data)
    assert not torch.equal(made[0][name].data, made[2][name].data)


def test_layers_of_low_rank_cost_less():
    _, graphs, net = vits()
    slim = Supernet(suture.passes.stitch(graphs[0], others=tuple(graphs[1:]), data={"x": images(40)}, rank=2))
    assert slim.graph.parameters["stitches.0_1.0.down.weight"].shape == (2, 8)
    assert slim.configurations[5].macs < net.configurations[5].macs
    assert slim.extract(5).stats().macs == slim.configurations[5].macs


def test_updates_change_nothing_at_first_and_fold_into_the_weights():
    _, graphs, net = vits()
    made = suture.passes.stitch(graphs[0], others=tuple(graphs[1:]), data={"x": images(40)}, update_rank=2)
    x = images(2)
    assert torch.equal(run(made, x, 6), run(net.graph, x, 6))
    module = suture.to_torch(made)
    assert not module.get_parameter("stitches.0_1.0.weight").requires_grad
    assert module.get_parameter("stitches.0_1.0.update.up").requires_grad
    for name, parameter in made.parameters.items():
        if name.endswith("update.up"):
            parameter.data.copy_(torch.randn(parameter.data.shape, generator=torch.Generator().manual_seed(len(name))))
    folded = suture.passes.fold_updates(made)
    assert not any("update" in name for name in folded.parameters)
    for item in configurations(folded):
        torch.testing.assert_close(run(folded, x, item.number), run(made, x, item.number), rtol=1e-4, atol=1e-5)
    assert [item.macs for item in configurations(folded)] == list(net.macs.values())
    alone = suture.passes.fold_updates(Supernet(made).extract(6))
    with torch.no_grad():
        torch.testing.assert_close(suture.evaluate(alone, [x])[0], run(made, x, 6), rtol=1e-4, atol=1e-5)


def test_shapes_alone_are_enough_to_plan():
    _, graphs, net = vits()
    planned = []
    for graph in graphs:
        shapes = graph.copy()
        for parameter in shapes.parameters.values():
            parameter.assign(parameter.data.to("meta"))
        planned.append(shapes)
    made = suture.passes.stitch(planned[0], others=tuple(planned[1:]), data={"x": images(4)})
    assert [item.macs for item in configurations(made)] == list(net.macs.values())


def test_few_calibration_rows_are_regularised_and_said():
    wide = [vit_graph(width, 2, seed=width) for width in (32, 48)]
    made = suture.passes.stitch(wide[0], others=(wide[1],), data={"x": images(1)}, kernel=1)
    said = [note for note in made.history[-1].notes if "regularised" in note]
    assert len(said) == 2
    assert all("17 calibration rows are fewer than the 33 unknowns" in note for note in said)


def test_the_blocks_may_be_named():
    _, graphs, net = vits()
    made = suture.passes.stitch(graphs[0], others=tuple(graphs[1:]), data={"x": images(4)}, at=("blocks.*",))
    assert len(configurations(made)) == len(net)


@pytest.mark.parametrize(
    ("change", "options", "code", "says"),
    [
        (lambda: vit_graph(12, classes=7), {}, Code.STITCH, r"the output .* is f32\[batch, 5\]"),
        (lambda: suture.trace(make(ViT, 12), (torch.zeros(2, 3, 16, 16),)), {}, Code.STITCH, "the input"),
        (lambda: vit_graph(12, 1), {"at": ("layers.*",)}, Code.SITE, "matches no module"),
        (lambda: vit_graph(12), {"at": ("blocks.*.norm1",)}, Code.CUT, "does not lead from one cut value"),
        (lambda: vit_graph(12), {"data": None}, Code.CALIBRATION, "no calibration data"),
        (lambda: vit_graph(12), {"data": {"x": torch.zeros(0, 3, 16, 16)}}, Code.CALIBRATION, "no examples"),
        (lambda: vit_graph(12), {"data": {}}, Code.CALIBRATION, "have no 'x'"),
        (lambda: vit_graph(12), {"data": {"x": torch.zeros(2, 3, 16, 15)}}, Code.INPUT, "input x has shape"),
        (lambda: vit_graph(12), {"data": {"x": images(2), "y": images(2)}}, Code.INPUT, "name 'y', which is no input"),
        (lambda: vit_graph(12), {"rank": 9}, Code.RANK, "rank 9 of a 12 x 8"),
        (lambda: vit_graph(12), {"update_rank": 9}, Code.RANK, "rank 9 of a 12 x 8"),
        (lambda: vit_graph(12), {"kernel": 0}, Code.STITCH, "kernel=0"),
    ],
)
def test_bad_anchors_and_options_are_refused(change, options, code, says):
    _, graphs, _ = vits()
    with pytest.raises(SutureError, match=says) as caught:
        suture.passes.stitch(graphs[0], others=(change(),), **{"data": {"x": images(4)}, **options})
    assert caught.value.code is code


def test_one_model_alone_and_models_without_blocks_are_refused():
    _, graphs, _ = vits()
    with pytest.raises(SutureError, match="one anchor gives no stitch"):
        suture.passes.stitch(graphs[0], others=(), data={"x": images(2)})
    plain = suture.trace(nn.Linear(4, CLASSES), (torch.zeros(2, 4),), dynamic={"input": {0: "batch"}})
    with pytest.raises(SutureError, match="no two blocks") as caught:
        suture.passes.stitch(plain, others=(plain.copy(),), data={"input": torch.zeros(2, 4)})
    assert caught.value.code is Code.STITCH


@pytest.mark.parametrize("number", [-1, 17, True])
def test_a_stitch_out_of_range_is_refused(number):
    _, _, net = vits()
    for use in (net.extract, net.module().set):
        with pytest.raises(SutureError, match=r"no stitch .*; 0 to 16 would be right") as caught:
            use(number)
        assert caught.value.code is Code.STITCH


def test_the_evaluator_refuses_a_stitch_out_of_range():
    _, _, net = vits()
    with pytest.raises(SutureError, match="out of bounds") as caught:
        run(net.graph, images(1), 99)
    assert caught.value.code is Code.INPUT


def test_other_graphs_are_no_supernets():
    _, graphs, _ = vits()
    with pytest.raises(SutureError, match="no input 'stitch'") as caught:
        Supernet(graphs[0])
    assert caught.value.code is Code.STITCH


def test_the_table_says_what_runs():
    _, _, net = vits()
    table = net.graph.parameters[TABLE].data
    assert table.shape[0] == len(net)
    for item in net.configurations:  # a stem, a head, the blocks, the stitches
        blocks = sum(hop.end - hop.first for hop in item.route.hops)
        assert int(table[item.number].sum()) == 2 + blocks + len(item.route.hops) - 1
