"""Stacking: which block stands where, under which name, and what becomes of the function."""

from __future__ import annotations

import re
from pathlib import Path

import growable
import pytest
import torch
import torch.nn.functional as F
from deep_models import Net, decoder, trace_decoder, trace_net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import suture
from suture import Code, SutureError
from suture.drivers.growing import train_growing
from suture.passes.growth.depth.order import gradual, interpolated, spread, stacked, upscaled
from suture.passes.growth.depth.stacking import growth_sources, plan_insert_identity, plan_stack
from suture.passes.growth.guidelines import growth_plan
from suture.passes.growth.schedules import stacked_bert


def block_tensors(graph: suture.Graph, prefix: str = "layers") -> list[dict[str, torch.Tensor]]:
    """The tensors of each numbered block, by their names within it."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for name, parameter in graph.parameters.items():
        if name.startswith(f"{prefix}."):
            number, _, leaf = name.removeprefix(f"{prefix}.").partition(".")
            found.setdefault(int(number), {})[leaf] = parameter.data
    return [found[number] for number in sorted(found)]


ORDERS = [
    ({"times": 2}, (0, 1, 2, 0, 1, 2)),
    ({"times": 3}, (0, 1, 2, 0, 1, 2, 0, 1, 2)),
    ({"to": 5}, (0, 1, 2, 0, 1)),
    ({"how": "interpolate"}, (0, 0, 1, 1, 2, 2)),
    ({"how": "interpolate", "to": 5}, (0, 0, 1, 1, 2)),
    ({"how": "gradual", "to": 5}, (0, 1, 2, 1, 2)),
    ({"how": "upscale", "drop": 1}, (0, 1, 1, 2)),
    ({"how": "upscale", "to": 4}, (0, 1, 1, 2)),
    ({"order": (2, 0, 0)}, (2, 0, 0)),
]


@pytest.mark.parametrize(("options", "order"), ORDERS, ids=[str(options) for options, _ in ORDERS])
def test_blocks_stand_in_the_order_asked_for(options, order):
    graph = trace_decoder()
    small, large = block_tensors(graph), block_tensors(suture.passes.stack(graph, **options))
    assert len(large) == len(order)
    for block, source in zip(large, order, strict=True):
        assert block.keys() == small[source].keys()
        assert all(torch.equal(block[name], small[source][name]) for name in block)
    assert plan_stack(graph, **options).order == order


@pytest.mark.parametrize("how", ["stack", "interpolate"])
def test_the_grown_graph_computes_what_the_module_with_these_blocks_computes(how):
    module = decoder(growable.Shape(layers=3, norm="rms", groups=2, gated=True))
    graph = suture.passes.stack(suture.trace(module, growable.TOKENS), how=how)
    order = {"stack": (0, 1, 2, 0, 1, 2), "interpolate": (0, 0, 1, 1, 2, 2)}[how]
    module.layers = torch.nn.ModuleList([module.layers[k] for k in order])
    (received,) = suture.evaluate(graph, [growable.TOKENS])
    torch.testing.assert_close(received, module(growable.TOKENS), rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(count=st.integers(1, 12), factor=st.integers(1, 5))
def test_orders_follow_the_published_formulas(count, factor):
    depth = count * factor
    assert stacked(count, depth) == tuple(i % count for i in range(depth))
    assert interpolated(count, depth) == tuple(i // factor for i in range(depth))


@settings(max_examples=30)
@given(count=st.integers(1, 12), data=st.data())
def test_gradual_stacking_copies_the_top_and_upscaling_loses_twice_what_is_dropped(count, data):
    extra = data.draw(st.integers(0, count))
    assert gradual(count, count + extra) == (*range(count), *range(count - extra, count))
    drop = data.draw(st.integers(0, count - 1))
    order = upscaled(count, drop)
    assert len(order) == 2 * (count - drop)
    assert order[: count - drop] == tuple(range(count - drop))
    assert order[count - drop :] == tuple(range(drop, count))


def test_depth_upscaling_makes_48_blocks_of_32_by_dropping_8():
    assert upscaled(32, 8) == (*range(24), *range(8, 32))


@settings(max_examples=30)
@given(count=st.integers(1, 20), new=st.integers(1, 40))
def test_new_blocks_are_spread_evenly(count, new):
    behind = spread(count, new)
    assert len(behind) == new
    assert list(behind) == sorted(behind)
    copies = [behind.count(k) for k in range(count)]
    assert max(copies) - min(copies) <= 1


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("how", ["stack", "interpolate"])
def test_stacking_a_trained_block_is_approximate_and_says_what_adds(norm, how):
    graph = trace_decoder(growable.Shape(layers=3, norm=norm))
    record = suture.passes.stack(graph, how=how).history[-1]
    assert record.contract == "approximate"
    assert record.deviation > 1e-2
    assert record.notes[2] == (
        "approximate: layers.0 acts 2 times, and what linear layers.0.attention.o adds does not vanish"
    )


def test_stacking_an_identity_is_exact():
    graph = suture.passes.insert_identity(trace_decoder(), after=(1,))
    grown = suture.passes.stack(graph, order=(0, 1, 2, 2, 2, 3))
    record = grown.history[-1]
    assert (record.contract, record.deviation) == ("exact", 0.0)
    assert record.notes[2] == "exact: the blocks that are copied are the identity (layers.2)"
    assert suture.passes.stack(graph, order=(0, 1, 3)).history[-1].contract == "exact"


def test_dropping_and_swapping_blocks_say_so():
    graph = trace_decoder()
    assert "layers.1 is gone" in suture.passes.stack(graph, order=(0, 2)).history[-1].notes[2]
    assert "layers.1 acts in another place" in suture.passes.stack(graph, order=(1, 0, 2)).history[-1].notes[2]


def test_the_plan_prints_blocks_parameters_and_macs():
    graph = trace_decoder()
    small, large = graph.stats(), suture.passes.stack(graph).stats()
    plan = plan_stack(graph)
    assert str(plan).splitlines()[:2] == [
        "layers: 3 -> 6 blocks (0 1 2 0 1 2)",
        f"{small.parameters:,} -> {large.parameters:,} parameters, {small.macs:,} -> {large.macs:,} MACs",
    ]
    assert suture.passes.stack(graph).history[-1].notes == plan.lines()


def test_a_single_numbered_block_can_be_stacked_and_its_later_siblings_move():
    graph = trace_net(Net(blocks=3))
    grown = suture.passes.stack(graph, at="blocks.1", times=3)
    small, large = block_tensors(graph, "blocks"), block_tensors(grown, "blocks")
    for block, source in zip(large, (0, 1, 1, 1, 2), strict=True):
        assert all(torch.equal(block[name], small[source][name]) for name in block)


def test_a_stack_in_its_own_order_is_left_alone():
    graph = trace_decoder()
    record = suture.passes.stack(graph, times=1).history[-1]
    assert record.outcome == "not applicable"
    assert record.notes == ("layers has 3 blocks in this order already",)


def test_sources_name_the_parameter_that_each_is_a_copy_of():
    graph = trace_decoder()
    grown = suture.passes.stack(suture.passes.stack(graph, how="interpolate", to=4), to=5)
    sources = growth_sources(graph, grown)
    assert sources["head.weight"] == "head.weight"
    order = (0, 0, 1, 2, 0)
    for place, source in enumerate(order):
        assert sources[f"layers.{place}.feed.up.weight"] == f"layers.{source}.feed.up.weight"
    assert sources.keys() == grown.parameters.keys()


def test_sources_leave_out_what_starts_anew():
    graph = trace_decoder()
    sources = growth_sources(graph, suture.passes.insert_identity(graph, after=(0,)))
    assert sources["layers.1.feed.up.weight"] == "layers.0.feed.up.weight"
    assert "layers.1.feed.down.weight" not in sources
    masked = suture.passes.insert_masked(graph, after=(0,))
    assert {name for name in masked.parameters if name not in growth_sources(graph, masked)} == {
        "growth_mask", *(name for name in masked.parameters if name.startswith("layers.1."))
    }  # fmt: skip


def test_sources_of_unrelated_graphs_are_refused():
    graph = trace_decoder()
    with pytest.raises(SutureError) as caught:
        growth_sources(suture.passes.stack(graph), graph)
    assert caught.value.code == Code.GROWTH


def test_growth_works_on_shapes_alone():
    graph = trace_decoder()
    for parameter in graph.parameters.values():
        parameter.assign(parameter.data.to("meta"))
    assert len(block_tensors(suture.passes.stack(graph))) == 6
    assert len(block_tensors(suture.passes.insert_identity(graph))) == 6
    assert len(block_tensors(suture.passes.insert_masked(graph))) == 6


WRONG = [
    ({"times": 1.5}, "[S455] 3 blocks 1.5 times are no whole blocks; 1.33333, 1.66667, 2 would be right"),
    ({"to": 2}, "[S455] 3 blocks do not grow to 2; 4 or more would be right; an explicit order may drop blocks"),
    ({"times": 2, "to": 6}, "[S455] times=2 and to=6 both say how deep; one of them would be right"),
    ({"order": (0, 3)}, "[S455] layers: the order names block 3 of 3; 0 to 2 would be right"),
    ({"order": ()}, "[S455] layers: the order names no block; numbers from 0 to 2 would be right"),
    ({"order": (0,), "to": 2}, "[S455] layers: an order says already how deep; leave out times, to and drop"),
    ({"how": "gradual", "to": 7}, "[S455] gradual stacking cannot make 7 blocks of 3 at once; at most 6, then again, would be right"),
    ({"how": "upscale"}, "[S455] layers: upscaling needs to know how many blocks go at the seam; give drop, or to"),
    ({"how": "upscale", "to": 5}, "[S455] layers: 5 blocks are not two equal copies; give an even number"),
    ({"how": "upscale", "drop": 3}, "[S455] 3 blocks cannot be dropped at the seam of 3; 0 to 2 would be right"),
    ({"drop": 1}, "[S455] layers: nothing is dropped by stack; give how=upscale"),
    ({"at": "layer"}, "[S451] Decoder: there is no stack 'layer'; the nearest is 'layers'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_a_growth_that_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(SutureError) as caught:
        suture.passes.stack(trace_decoder(), **options)
    assert str(caught.value) == message


@settings(max_examples=6)
@given(
    norm=st.sampled_from(("layer", "rms")), bias=st.booleans(), groups=st.sampled_from((1, 2, 4)), gated=st.booleans(),
    order=st.lists(st.integers(0, 1), min_size=1, max_size=5),
)  # fmt: skip
def test_any_order_computes_what_torch_computes_in_that_order(norm, bias, groups, gated, order):
    module = decoder(growable.Shape(norm=norm, bias=bias, groups=groups, gated=gated))
    graph = suture.trace(module, growable.TOKENS)
    grown = suture.passes.stack(graph, order=tuple(order), check=False)
    module.layers = torch.nn.ModuleList([module.layers[k] for k in order])
    (received,) = suture.evaluate(grown, [growable.TOKENS])
    torch.testing.assert_close(received, module(growable.TOKENS), rtol=1e-11, atol=1e-11)


def test_the_page_on_depth_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "growth-depth.md").read_text(encoding="utf-8")
    names = {
        "torch": torch, "nn": nn, "F": F, "suture": suture, "plan_stack": plan_stack, "plan_insert_identity": plan_insert_identity,
        "growth_plan": growth_plan, "stacked_bert": stacked_bert, "train_growing": train_growing,
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", page, re.DOTALL)
    assert len(blocks) == page.count("```python")
    for program, shown in blocks:
        exec(program, names)
        assert capsys.readouterr().out.splitlines() == [line[4:] for line in shown.splitlines()]
