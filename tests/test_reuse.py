"""Regions whose results are reused from call to call: against the original module, and a loop that caches by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from assembled import StepUNet, inputs, trace_unet, unet
from torch import nn

import suture
from suture import Code, SutureError
from suture.drivers.cached import CachedModule
from suture.ir.graph import Graph
from suture.passes import reuse
from suture.passes.assembly.reuse import caches


@pytest.fixture(scope="module")
def net() -> StepUNet:
    return unet()


@pytest.fixture(scope="module")
def graph(net: StepUNet) -> Graph:
    return trace_unet(net)


def steps(count: int, batch: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [inputs(batch, seed) for seed in range(count)]


def cached_by_hand(
    net: StepUNet, path: str, every: int, calls: list[tuple[torch.Tensor, torch.Tensor]]
) -> list[torch.Tensor]:
    """The module's results where a submodule's own are replaced, but for every k-th call, by those of the last call that it ran in."""
    held: list[torch.Tensor] = []
    results = []

    def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        if len(results) % every == 0:
            held[:] = [output]
        return held[0]

    handle = net.get_submodule(path).register_forward_hook(hook)
    try:
        with torch.no_grad():
            for call in calls:
                results.append(net(*call))
    finally:
        handle.remove()
    return results


@pytest.mark.parametrize("path", ["middle", "up.0", "down.1.1", "up.1.0.first"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_region_runs_every_few_calls(net: StepUNet, graph: Graph, path: str, every: int) -> None:
    module = CachedModule(reuse(graph, at=path), every)
    calls = steps(5)
    expected = cached_by_hand(net, path, every, calls)
    with torch.no_grad():
        received = [module(*call) for call in calls]
        for a, b in zip(received, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        if every == 1:
            for call, value in zip(calls, received, strict=True):
                torch.testing.assert_close(value, net(*call), rtol=1e-10, atol=1e-12)


def test_the_region_does_not_run_where_it_is_reused(graph: Graph) -> None:
    result = reuse(graph, at="middle")
    assert result.macs() == graph.macs()  # of a branch, those of its dearer body
    (branch,) = [node for node in result.nodes if node.operator.name == "branch"]
    assert {name: len(body) for name, body in branch.bodies.items()}["otherwise"] == 0
    assert not [node for node in result.nodes if node.path.startswith("middle") and node is not branch]
    assert set(suture.to_torch(result).state_dict()) == set(suture.to_torch(graph).state_dict())


def test_other_shapes_run_everything(net: StepUNet, graph: Graph) -> None:
    module = CachedModule(reuse(graph, at="middle"), every=100)
    for batch in (2, 3, 1):
        call = inputs(batch, batch)
        with torch.no_grad():
            torch.testing.assert_close(module(*call), net(*call), rtol=1e-10, atol=1e-12)
    module.reset()
    call = inputs(1, 9)
    with torch.no_grad():
        torch.testing.assert_close(module(*call), net(*call), rtol=1e-10, atol=1e-12)


def test_a_region_between_two_values(net: StepUNet, graph: Graph) -> None:
    from suture.ir.regions import at_path

    first = at_path(graph, "middle.0").stream
    last = at_path(graph, "middle.1").output
    module = CachedModule(reuse(graph, at=f"{first} .. {last}"), every=2)
    calls = steps(4)
    expected = cached_by_hand(net, "middle", 2, calls)
    with torch.no_grad():
        for call, value in zip(calls, expected, strict=True):
            torch.testing.assert_close(module(*call), value, rtol=1e-10, atol=1e-12)


def test_two_regions_share_one_refresh(net: StepUNet, graph: Graph) -> None:
    result = reuse(reuse(graph, at="down.1"), at="up.0")
    assert [value.name for value in result.inputs] == ["x", "time", "refresh", "cache", "cache_1"]
    assert caches(result) == {"cache": "cache_next", "cache_1": "cache_1_next"}
    module = CachedModule(result, every=2)
    calls = steps(3)
    with torch.no_grad():
        received = [module(*call) for call in calls]
        torch.testing.assert_close(received[0], net(*calls[0]))
        torch.testing.assert_close(received[2], net(*calls[2]))
        # at the second call the level `up.0` covers `down.1`, but for the skip connection, which ends in it
        torch.testing.assert_close(received[1], cached_by_hand(net, "up.0", 2, calls)[1])


def test_it_trains_through_the_cache(graph: Graph) -> None:
    module = CachedModule(reuse(graph, at="middle"), every=2)
    x, time = inputs(2)
    module(x, time).sum().backward()
    assert module.net.get_parameter("middle.0.first.weight").grad is not None


def test_outputs_of_several_parts_keep_their_form() -> None:
    entry = zoo.ENTRIES["bert"]
    args, kwargs = entry.args()
    module = entry.module()
    traced = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    cached = CachedModule(reuse(traced, at="encoder.layer.0"), every=2)
    with torch.no_grad():
        expected = module(**kwargs)
        for _ in range(2):  # the same inputs: the cache is right
            received = cached(**kwargs)
            assert type(received) is type(expected)
            torch.testing.assert_close(received.pooler_output, expected.pooler_output)
            torch.testing.assert_close(received.last_hidden_state, expected.last_hidden_state)


def test_it_exports_with_its_state(tmp_path: Path, net: StepUNet) -> None:
    ort = pytest.importorskip("onnxruntime")
    single = unet().float()
    calls = [tuple(tensor.float() for tensor in call) for call in steps(4)]
    made = reuse(suture.trace(single, calls[0], dynamic=[{0: "batch"}, {0: "batch"}]), at="middle")
    suture.export_onnx(made, tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    expected = cached_by_hand(single, "middle", 2, calls)
    held = torch.zeros(2, 4, 2, 2).numpy()
    for k, (x, time) in enumerate(calls):
        given = {"x": x.numpy(), "time": time.numpy(), "refresh": torch.tensor(k % 2 == 0).numpy(), "cache": held}
        found = dict(zip(names, session.run(None, given), strict=True))
        held = found["cache_next"]
        torch.testing.assert_close(torch.from_numpy(found[names[0]]), expected[k], rtol=1e-4, atol=1e-5)


def test_bad_regions_are_refused(graph: Graph) -> None:
    cases = [
        (lambda: reuse(graph, at="midle"), Code.SITE, "middle"),
        (lambda: reuse(graph, at="%stem .. %nothing"), Code.SITE, "nothing"),
        (lambda: CachedModule(graph), Code.REGION, "caches no region"),
        (lambda: CachedModule(reuse(graph, at="middle"), every=0), Code.OPTION, "every 0 calls"),
    ]
    for call, code, words in cases:
        with pytest.raises(SutureError) as caught:
            call()
        assert caught.value.code is code
        assert words in str(caught.value)
