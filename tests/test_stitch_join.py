"""Joining two models that were trained apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from stitchable import StagedNet, ViT, images, make, traced, vit_graph

import suture
from suture import Code, SutureError
from suture.passes.stitch.joining import join_models
from suture.passes.stitch.least_squares import Moments, solve
from suture.passes.stitch.similarity import similarity


def test_the_joint_model_is_the_hand_written_composition():
    front, back = make(ViT, 8, 3), make(ViT, 12, 2, seed=1)
    graphs, x = (traced(front), traced(back)), images(30)
    joint = suture.passes.join(graphs[0], to=graphs[1], exit="blocks_1_add_1", entry="blocks_0_add_1", data={"x": x})
    parameters = {name: p.data for name, p in joint.parameters.items()}
    with torch.no_grad():
        tokens = front.run(front.stem(x), 0, 2)
        wanted = solve(Moments.of(tokens.reshape(-1, 8), back.run(back.stem(x), 0, 1).reshape(-1, 12)))
        torch.testing.assert_close(parameters["stitch.weight"], wanted.weight.float(), rtol=1e-4, atol=1e-5)
        mapped = F.linear(tokens, parameters["stitch.weight"], parameters["stitch.bias"])
        torch.testing.assert_close(suture.evaluate(joint, [x])[0], back.top(back.run(mapped, 1, 2)))
    assert parameters["front.blocks.0.qkv.weight"] is graphs[0].parameters["blocks.0.qkv.weight"].data
    assert parameters["back.head.weight"] is graphs[1].parameters["head.weight"].data
    assert not any(name.startswith(("front.blocks.2", "back.blocks.0", "back.patch")) for name in parameters)
    residual = similarity(*graphs, {"x": x}, exits=["blocks_1_add_1"], entries=["blocks_0_add_1"]).residual[0][0]
    assert f"relative residual {residual:.3f}" in joint.history[-1].notes[0]


def test_models_of_other_families_join_train_and_export(tmp_path):
    front, back = traced(make(StagedNet, 4)), vit_graph(12, 2)
    joint = suture.passes.join(front, to=back, exit="stem", entry="blocks_0_add_1", data={"x": images(8)}, rank=2)
    module = suture.to_torch(joint).train()
    module(images(2)).sum().backward()
    assert module.get_parameter("stitch.down.weight").grad is not None
    suture.export_onnx(joint, tmp_path / "joint.onnx")
    assert suture.compare(joint, tmp_path / "joint.onnx", [images(2)]).relative < 1e-4


def test_a_model_joined_to_itself_behind_a_cut_computes_the_same():
    graph, x = vit_graph(8, 2), images(40)
    joint = join_models(graph, "blocks_0_add_1", graph, "blocks_0_add_1", {"x": x})
    torch.testing.assert_close(joint.solution.weight, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            suture.evaluate(joint.graph, [x])[0], suture.evaluate(graph, [x])[0], rtol=1e-3, atol=1e-3
        )


def test_the_pass_keeps_the_outputs_and_the_function_need_not():
    front, back = vit_graph(8, 2), vit_graph(12, 2, classes=7)
    options = {"exit": "blocks_0_add_1", "entry": "blocks_0_add_1", "data": {"x": images(8)}}
    with pytest.raises(SutureError, match="join_models joins them") as caught:
        suture.passes.join(front, to=back, **options)
    assert caught.value.code is Code.STITCH
    joint = join_models(front, options["exit"], back, options["entry"], options["data"])
    assert joint.graph.outputs[0].shape[1] == 7


def test_random_layers_need_no_data():
    graph = vit_graph(8, 2)
    options = {"to": graph, "exit": "blocks_0_add_1", "entry": "blocks_0_add_1", "initialise": "random"}
    a, b = (suture.passes.join(graph, **options, seed=seed).parameters["stitch.weight"].data for seed in (1, 1))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"exit": "nowhere"}, Code.SITE, "no value 'nowhere'"),
        ({"exit": "blocks_1_norm1"}, Code.CUT, "%blocks_1_norm1 is no cut: %blocks_0_add_1 crosses as well"),
        ({"entry": "head"}, None, ""),
        ({"exit": "head"}, Code.STITCH, "does not line up"),
        ({"data": None}, Code.CALIBRATION, "no calibration data"),
        ({"rank": 9}, Code.RANK, "rank 9 of a 8 x 8"),
    ],
)
def test_what_cannot_be_joined_is_refused(options, code, says):
    graph = vit_graph(8, 2)
    chosen = {"to": graph, "exit": "blocks_0_add_1", "entry": "blocks_0_add_1", "data": {"x": images(4)}, **options}
    if code is None:  # tokens may be brought to scores: by their mean
        assert suture.passes.join(graph, **chosen).outputs[0].type == graph.outputs[0].type
        return
    with pytest.raises(SutureError, match=says) as caught:
        suture.passes.join(graph, **chosen)
    assert caught.value.code is code
