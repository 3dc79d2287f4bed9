"""Insertion of depth: blocks that are the identity at first, blocks behind a mask, and the operator to blame where neither can be."""

from __future__ import annotations

import growable
import pytest
import torch
from deep_models import Net, PostBlock, ScaledBlock, trace_decoder, trace_net
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ENTRIES, randomise

import suture
from suture import Code, SutureError
from suture.passes.growth.depth.stacking import plan_insert_identity, set_masks


def outputs(graph: suture.Graph, *inputs: torch.Tensor) -> torch.Tensor:
    return suture.evaluate(graph, inputs)[0]


shapes = st.builds(
    growable.Shape, norm=st.sampled_from(("layer", "rms")), bias=st.booleans(), groups=st.sampled_from((1, 2, 4)), rotary=st.booleans(),
    gated=st.booleans(), tied=st.booleans(), layers=st.integers(2, 3),
)  # fmt: skip


@settings(max_examples=4)
@given(
    shape=shapes,
    block=st.sampled_from((growable.Block, ScaledBlock)),
    after=st.lists(st.integers(0, 1), min_size=1, max_size=3),
)
def test_identity_blocks_in_any_decoder_with_norms_on_the_branches_are_exact_to_the_bit(shape, block, after):
    graph = trace_decoder(shape, block)
    grown = suture.passes.insert_identity(graph, after=tuple(after))
    assert grown.history[-1].contract == "exact"
    assert torch.equal(outputs(grown, growable.TOKENS), outputs(graph, growable.TOKENS))


@settings(max_examples=4)
@given(shape=shapes)
def test_norms_on_the_stream_are_to_blame_where_the_block_cannot_be_the_identity(shape):
    graph = trace_decoder(shape, PostBlock)
    record = suture.passes.insert_identity(graph).history[-1]
    assert record.outcome == "not applicable"
    operator = "layer_norm" if shape.norm == "layer" else "rms_norm"
    assert record.notes == (
        f"a copy of layers.0 cannot be the identity: {operator} layers.0.after: normalises the stream itself",
    )


@settings(max_examples=4)
@given(
    net=st.builds(
        Net, residual=st.sampled_from(("before", "after")), norm=st.booleans(), activation=st.sampled_from(("relu", "gelu", "tanh", "leaky_relu")),
        bias=st.booleans(), groups=st.sampled_from((1, 2, 8)),
    )
)  # fmt: skip
def test_residual_convolutions_are_exact_unless_the_activation_changes_the_stream(net):
    graph = trace_net(net)
    grown = suture.passes.insert_identity(graph, count=2)
    record = grown.history[-1]
    if net.residual == "after" and net.activation != "relu":
        assert record.outcome == "not applicable"
        assert f"{net.activation} blocks.0.activation: changes what passes through it" in record.notes[0]
        return
    assert record.contract == "exact"
    assert torch.equal(outputs(grown, growable.IMAGES), outputs(graph, growable.IMAGES))


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (5, 4), (3, 8)])
def test_plain_layers_become_unit_impulses_between_rectifiers(kernel, groups):
    graph = trace_net(Net(residual="none", norm=False, bias=True, kernel=kernel, groups=groups))
    grown = suture.passes.insert_identity(graph, after=(1,))
    weight = grown.parameters["blocks.2.first.weight"].data
    assert set(weight.unique().tolist()) == {0.0, 1.0}
    assert grown.history[-1].contract == "exact"
    torch.testing.assert_close(outputs(grown, growable.IMAGES), outputs(graph, growable.IMAGES), rtol=1e-12, atol=1e-12)


def test_a_batch_norm_on_the_way_undoes_its_statistics_up_to_rounding():
    graph = trace_net(Net(residual="none", norm=True))
    grown = suture.passes.insert_identity(graph, after=(0,))
    assert grown.history[-1].notes[2].startswith("exact up to rounding")
    torch.testing.assert_close(outputs(grown, growable.IMAGES), outputs(graph, growable.IMAGES), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardtanh"])
def test_idempotent_activations_let_plain_blocks_be_identities(activation):
    graph = trace_net(Net(residual="none", norm=False, activation=activation))
    assert suture.passes.insert_identity(graph).history[-1].contract == "exact"


@pytest.mark.parametrize("activation", ["gelu", "tanh", "leaky_relu", "elu"])
def test_other_activations_are_named(activation):
    graph = trace_net(Net(residual="none", norm=False, activation=activation))
    record = suture.passes.insert_identity(graph).history[-1]
    assert record.outcome == "not applicable"
    assert f"{activation} blocks.0.activation: changes what passes through it" in record.notes[0]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gpt2", torch.float16), ("llama", torch.float32), ("llama", torch.bfloat16), ("resnet18", torch.float32), ("t5", torch.bfloat16),
    ],
)  # fmt: skip
def test_identity_blocks_are_exact_to_the_bit_in_every_element_type(name, dtype):
    entry = ENTRIES[name]
    torch.manual_seed(0)
    args, kwargs = entry.args()
    module = randomise(entry.module()).to(dtype)
    args = tuple(x.to(dtype) if x.is_floating_point() else x for x in args)
    kwargs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in kwargs.items()}
    graph = suture.trace(module, args, kwargs)
    inputs = [*args, *kwargs.values()]
    grown = suture.passes.insert_identity(graph, count=1)
    assert grown.history[-1].deviation == 0.0
    for one, other in zip(suture.evaluate(graph, inputs), suture.evaluate(grown, inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["regnety_008"])
def test_blocks_of_image_models_have_an_identity_form(name):
    entry = ENTRIES[name]
    args, kwargs = entry.args(1)
    graph = suture.trace(entry.module(), args, kwargs)
    assert plan_insert_identity(graph, count=1).verdict.startswith("exact: ")


def test_the_zeroed_layers_of_an_identity_block_receive_a_gradient():
    graph = trace_decoder()
    module = suture.to_torch(suture.passes.insert_identity(graph, after=(1,))).train()
    module(growable.TOKENS).square().sum().backward()
    moving = {
        name
        for name, p in module.named_parameters()
        if name.startswith("layers.2.") and p.grad is not None and p.grad.any()
    }
    assert moving == {
        f"layers.2.{leaf}" for leaf in ("attention.o.weight", "attention.o.bias", "feed.down.weight", "feed.down.bias")
    }


def test_a_plan_for_a_block_that_cannot_be_the_identity_is_refused():
    with pytest.raises(SutureError) as caught:
        plan_insert_identity(trace_decoder(block=PostBlock))
    assert caught.value.code == Code.GROWTH
    assert "layer_norm layers.0.after: normalises the stream itself; insert_masked hides any block" in str(caught.value)


@settings(max_examples=4)
@given(shape=shapes, block=st.sampled_from((growable.Block, PostBlock)), initialise=st.sampled_from(("random", "copy")))
def test_masked_blocks_are_exact_at_zero_and_whole_at_one(shape, block, initialise):
    graph = trace_decoder(shape, block)
    grown = suture.passes.insert_masked(graph, after=(0, 1), initialise=initialise)
    assert grown.history[-1].contract == "exact"
    expected = outputs(graph, growable.TOKENS)
    torch.testing.assert_close(outputs(grown, growable.TOKENS), expected, rtol=0, atol=0)
    grown.parameters["growth_mask"].assign(torch.ones((), dtype=torch.float64))
    shown = suture.passes.unmask(grown)
    assert shown.history[-1].contract == "exact"
    assert "growth_mask" not in shown.parameters
    if initialise == "copy":
        stacked = suture.passes.stack(graph, order=(0, 0, 1, 1, *range(2, shape.layers)), check=False)
        torch.testing.assert_close(
            outputs(shown, growable.TOKENS), outputs(stacked, growable.TOKENS), rtol=1e-12, atol=1e-12
        )


def test_a_mask_blends_block_and_stream():
    graph = trace_decoder(block=PostBlock)
    exit = [node.output for node in graph.nodes if node.path == "layers.2.after"][-1]
    graph.set_outputs([exit])
    hidden = outputs(suture.passes.insert_masked(graph, after=(2,), initialise="copy"), growable.TOKENS)
    whole = outputs(suture.passes.stack(graph, order=(0, 1, 2, 2)), growable.TOKENS)
    half = suture.passes.insert_masked(graph, after=(2,), initialise="copy", mask=0.25)
    assert half.history[-1].contract == "approximate"
    torch.testing.assert_close(outputs(half, growable.TOKENS), 0.25 * whole + 0.75 * hidden, rtol=1e-12, atol=1e-12)


def test_masks_of_a_module_are_set_together():
    grown = suture.passes.insert_masked(trace_decoder(), after=(0, 2))
    module = suture.to_torch(suture.passes.insert_masked(grown, after=(0,)))
    assert set_masks(module, 0.5) == 2
    assert {float(buffer) for name, buffer in module.named_buffers() if name.startswith("growth_mask")} == {0.5}


def test_random_blocks_follow_the_seed_and_the_scale_of_the_copied():
    graph = trace_decoder()
    one, again, other = (suture.passes.insert_masked(graph, after=(1,), seed=seed) for seed in (0, 0, 1))
    name = "layers.2.feed.up.weight"
    assert torch.equal(one.parameters[name].data, again.parameters[name].data)
    assert not torch.equal(one.parameters[name].data, other.parameters[name].data)
    scale = float(one.parameters[name].data.detach().std()) / float(
        graph.parameters["layers.1.feed.up.weight"].data.detach().std()
    )
    assert 0.8 < scale < 1.25
    assert bool((one.parameters["layers.2.before.weight"].data == 1).all())
    assert not bool(one.parameters["layers.2.feed.up.bias"].data.any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": (3,)}, "[S455] layers: the order names block 3 of 3; 0 to 2 would be right"),
        ({"count": 0}, "[S455] layers: 0 blocks cannot be inserted; 1 or more would be right"),
        ({"count": 1, "after": (0,)}, "[S455] layers: after and count both say where; one of them would be right"),
        ({"mask": 1.5}, "[S455] a mask cannot be 1.5; 0 (hidden) to 1 (shown) would be right"),
    ],
)
def test_an_insertion_that_cannot_be_is_refused(options, message):
    with pytest.raises(SutureError) as caught:
        suture.passes.insert_masked(trace_decoder(), **options)
    assert str(caught.value) == message
