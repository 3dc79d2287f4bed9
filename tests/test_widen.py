"""Growing in width: the function is kept in float64 where the plan says so and changes where it says that; sites, options and bad input."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from growable import IMAGES, TOKENS, Channels, Convolutional, Decoder, Shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import Program
from strategies import prunable_graphs, run_inputs
from torch import nn

import suture
from suture.ir.errors import SutureError
from suture.ir.verify import verify
from suture.passes.growth.width.widen import plan_widen
from suture.passes.proof import in_double
from suture.passes.prune import plan_prune

EXACT = 1e-10


@functools.cache
def decoder(shape: Shape) -> suture.Graph:
    torch.manual_seed(0)
    return suture.trace(zoo.randomise(Decoder(shape)).double().eval(), (TOKENS,))


@functools.cache
def convolutional(shape: Channels) -> suture.Graph:
    torch.manual_seed(0)
    return suture.trace(zoo.randomise(Convolutional(shape)).double().eval(), (IMAGES,))


def change(before: suture.Graph, after: suture.Graph, x: torch.Tensor = TOKENS) -> float:
    """The largest relative difference of the outputs."""
    with torch.no_grad():
        a, b = suture.evaluate(before, [x])[0], suture.evaluate(after, [x])[0]
    return float((a - b).abs().max() / a.abs().max())


LAYER = Shape(norm="layer", layers=1, gated=True)
RMS = Shape(norm="rms", layers=1, bias=False, gated=True)
STREAM = ("embed",)
INSIDE = ("embed", "*.o", "*.down")  # what writes the residual stream

# The rows of width of the measured table, as (options, exact under LayerNorm, exact under RMSNorm).
TABLE = {
    "everything twice": ({"factor": 2}, True, True),
    "the stream by half": ({"factor": 1.5, "at": STREAM}, False, False),
    "heads 4 to 6 and features 20 to 30": ({"factor": 1.5, "exclude": INSIDE}, True, True),
    "uneven shares": ({"factor": 2, "at": ("*.feed.up",), "split": "uneven"}, True, True),
    "zeros on the stream": ({"to": 24, "at": STREAM, "method": "zero"}, False, True),
    "means on the stream": ({"to": 24, "at": STREAM, "method": "mean"}, True, False),
    "noise read by zeros": ({"to": 32, "at": ("*.feed.up",), "method": "random"}, True, True),
    "noise on the stream": ({"to": 24, "at": STREAM, "method": "random"}, False, False),
    "noise on the stream behind a mask": ({"to": 24, "at": STREAM, "method": "random", "mask": True}, True, True),
    "rows of the next layer": ({"factor": 2, "at": ("*.feed.up",), "method": "aki"}, False, False),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TABLE))
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_table_of_function_preservation(name: str, norm: str) -> None:
    options, *exact = TABLE[name]
    shape = LAYER if norm == "layer" else RMS
    graph = decoder(shape if name != "rows of the next layer" else Shape(norm=norm, layers=2))
    plan = plan_widen(graph, **options)
    assert plan.exact == exact[norm == "rms"], str(plan)
    moved = change(graph, plan.apply())
    assert moved < 1e-13 if plan.exact else moved > 1e-3, str(plan)
    wide = suture.passes.widen(graph, **options)
    assert wide.history[-1].contract == ("exact" if plan.exact else "approximate")


def test_the_norm_is_blamed_for_uneven_copies() -> None:
    (widening,) = plan_widen(decoder(LAYER), factor=1.5, at=STREAM).widenings
    assert widening.verdict.startswith(
        "approximate: layer_norm layers.0.before: its statistics see how often each index is copied, which is not equally often"
    )


# (norm, bias, heads, groups of heads, rotary, gated, tied): every pair of choices occurs
DECODERS = [
    Shape("layer", True, 4, 4, False, False, False, layers=1), Shape("rms", False, 4, 2, True, True, False, layers=1),
    Shape("layer", False, 4, 2, False, True, True, layers=1), Shape("rms", True, 4, 4, True, False, True, layers=1),
    Shape("layer", True, 4, 2, True, False, True, layers=1), Shape("rms", False, 4, 4, False, False, True, layers=1),
    Shape("layer", False, 4, 4, True, True, False, layers=1), Shape("rms", True, 4, 2, False, True, False, layers=1),
]  # fmt: skip
# (norm, groups, depthwise, activation, residual, bias)
NETWORKS = [
    Channels("batch", 1, False, "relu", True, False), Channels("group", 1, False, "gelu", False, True), Channels("none", 2, False, "sigmoid", True, True),
    Channels("batch", 2, False, "sigmoid", False, True), Channels("group", 1, True, "relu", True, True), Channels("none", 1, True, "gelu", False, False),
    Channels("batch", 1, True, "sigmoid", True, False), Channels("group", 2, False, "relu", False, False), Channels("batch", 4, False, "gelu", True, True),
]  # fmt: skip
METHODS = st.sampled_from(("split", "zero", "mean", "random"))


@settings(max_examples=40)
@given(
    shape=st.sampled_from(DECODERS), factor=st.sampled_from((1.5, 2, 2.5, 3)), method=METHODS, uneven=st.booleans(), every=st.booleans(),
    mask=st.booleans(), leave=st.booleans(),
)  # fmt: skip
def test_decoders_do_what_the_plan_says(
    shape: Shape, factor: float, method: str, uneven: bool, every: bool, mask: bool, leave: bool
) -> None:
    graph = decoder(shape)
    plan = plan_widen(
        graph, factor=factor, method=method, split="uneven" if uneven else "even", every=every, mask=mask and method == "random",
        inexact="leave" if leave else "widen", seed=3,
    )  # fmt: skip
    assert plan.widenings
    assert plan.exact or not leave
    moved = change(graph, plan.apply())
    assert (moved < EXACT) == plan.exact, (moved, str(plan))


@settings(max_examples=40)
@given(
    shape=st.sampled_from(NETWORKS), factor=st.sampled_from((1.5, 2, 3)), method=METHODS, uneven=st.booleans(), every=st.booleans(),
    mask=st.booleans(),
)  # fmt: skip
def test_convolutional_networks_do_what_the_plan_says(
    shape: Channels, factor: float, method: str, uneven: bool, every: bool, mask: bool
) -> None:
    graph = convolutional(shape)
    plan = plan_widen(
        graph,
        factor=factor,
        method=method,
        every=every,
        split="uneven" if uneven else "even",
        mask=mask and method == "random",
    )
    moved = change(graph, plan.apply(), IMAGES)
    assert (moved < EXACT) == plan.exact, (moved, str(plan))


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    graph=prunable_graphs(),
    factor=st.sampled_from((2, 3)),
    method=METHODS,
    uneven=st.booleans(),
    every=st.booleans(),
    mask=st.booleans(),
)
def test_random_graphs_keep_their_function_where_the_plan_says_so(
    graph: suture.Graph, factor: int, method: str, uneven: bool, every: bool, mask: bool
) -> None:
    double = in_double(graph)
    plan = plan_widen(
        double, factor=factor, method=method, split="uneven" if uneven else "even", every=every, mask=mask and method == "random",
        inexact="leave",
    )  # fmt: skip
    assert plan.exact
    wide = plan.apply()
    verify(wide)
    inputs = [x.double() for x in run_inputs(graph)]
    before, after = suture.evaluate(double, inputs)[0], suture.evaluate(wide, inputs)[0]
    assert float((before - after).abs().max()) <= 1e-9 * float(before.abs().max()), str(plan)


def test_copies_are_copies_and_their_columns_sum_to_the_old_one() -> None:
    graph = decoder(LAYER)
    wide = suture.passes.widen(graph, factor=2, at=("*.feed.up",), split="uneven", alpha=0.7)
    up, down = (graph.parameters[f"layers.0.feed.{name}.weight"].data for name in ("up", "down"))
    new_up, new_down = (wide.parameters[f"layers.0.feed.{name}.weight"].data for name in ("up", "down"))
    assert torch.equal(new_up, torch.cat([up, up]))
    torch.testing.assert_close(new_down, torch.cat([0.7 * down, 0.3 * down], 1))


def test_uneven_shares_give_copies_different_gradients() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2)).double()
    for split in ("even", "uneven"):
        wide = suture.passes.widen(suture.trace(net.eval(), (x,)), factor=2, at=("0",), split=split)
        module = suture.to_torch(wide)
        module(x).square().sum().backward()
        gradient = module.get_parameter("0.weight").grad
        assert torch.allclose(gradient[:4], gradient[4:]) == (split == "even")


def test_zero_padding_rescales_the_norm() -> None:
    graph = decoder(RMS)
    wide = suture.passes.widen(graph, to=24, at=STREAM, method="zero")
    before, after = (next(n for n in g.nodes if n.path == "norm") for g in (graph, wide))
    assert after.attributes["eps"] == pytest.approx(before.attributes["eps"] * 16 / 24)
    torch.testing.assert_close(
        wide.parameters["norm.weight"].data[:16], graph.parameters["norm.weight"].data * math.sqrt(16 / 24)
    )
    assert not wide.parameters["embed.weight"].data[:, 16:].any()
    assert wide.parameters["layers.0.feed.up.weight"].data[:, 16:].any(), "what reads zeros may learn"


def test_mean_expansion_adds_the_mean_of_the_old_channels() -> None:
    graph = decoder(LAYER)
    wide = suture.passes.widen(graph, to=24, at=STREAM, method="mean")
    old = graph.parameters["layers.0.feed.down.weight"].data
    torch.testing.assert_close(
        wide.parameters["layers.0.feed.down.weight"].data[16:], old.mean(0, keepdim=True).expand(8, -1)
    )
    assert not wide.parameters["norm.bias"].data[16:].any()


def test_a_tied_head_stays_tied_and_the_final_norm_shares() -> None:
    graph = decoder(Shape(tied=True, layers=1))
    wide = suture.passes.widen(graph, factor=2)
    assert not [node for node in wide.nodes if node.operator.name == "mul"]
    torch.testing.assert_close(wide.parameters["norm.weight"].data[:16], graph.parameters["norm.weight"].data / 2)
    module = suture.to_torch(wide)
    assert module.embed.weight is module.head.weight


@pytest.mark.parametrize("split", ["even", "uneven"])
def test_a_tied_head_without_a_norm_of_its_own_is_multiplied(split: str, tmp_path: Path) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block = nn.Embedding(11, 8), nn.Linear(8, 8)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            return (x + torch.relu(self.block(x))) @ self.embed.weight.T

    torch.manual_seed(0)
    graph = suture.trace(Bare().eval(), (TOKENS,))
    wide = suture.passes.widen(graph, factor=2, split=split)
    assert wide.history[-1].contract == "exact"
    constants = [p for p in wide.parameters.values() if p.role == "constant"]
    assert len(constants) == (split == "uneven") and sum(node.operator.name == "mul" for node in wide.nodes) == 1
    assert suture.compare(graph, suture.export_onnx(wide, tmp_path / "wide.onnx"), [TOKENS]).relative < 1e-5


@pytest.mark.parametrize(("method", "shape"), [("zero", RMS), ("mean", LAYER), ("random", LAYER)])
def test_new_parts_learn(method: str, shape: Shape) -> None:
    graph = decoder(shape)
    at = STREAM if method != "random" else ("*.feed.up",)
    module = suture.to_torch(suture.passes.widen(graph, to=24, at=at, method=method))
    module(TOKENS).square().sum().backward()
    grown = {name: p for name, p in module.named_parameters() if p.shape != graph.parameters[name].shape}
    reached = {name for name, p in grown.items() if p.grad[tuple(slice(size, None) if p.shape[k] != size else slice(None)
               for k, size in enumerate(graph.parameters[name].shape))].any()}  # fmt: skip
    if method == "random":
        assert "layers.0.feed.down.weight" in reached
    else:
        assert {"embed.weight", "layers.0.feed.down.weight", "layers.0.attention.o.weight"} <= reached


def test_head_widths_correct_the_scale_of_attention() -> None:
    graph = decoder(LAYER)
    wide = suture.passes.widen(graph, factor=2, kind=("head_width",), every=True)
    old, new = (next(n for n in g.nodes if n.operator.name == "attention") for g in (graph, wide))
    assert new.attributes["scale"] == pytest.approx(old.attributes["scale"] / 2)
    assert change(graph, wide) < EXACT


def test_groups_of_heads_grow_inside_and_as_wholes() -> None:
    graph = decoder(Shape(norm="rms", groups=2, layers=1))
    inside = suture.passes.widen(graph, to=3, at=("*.q",), exclude=("*.k",))
    whole = suture.passes.widen(graph, to=3, at=("*.k",), kind=("head",))
    for wide, heads, groups in ((inside, 6, 2), (whole, 6, 3)):
        assert wide.parameters["layers.0.attention.q.weight"].shape == (4 * heads, 16)
        assert wide.parameters["layers.0.attention.k.weight"].shape == (4 * groups, 16)
        assert change(graph, wide) < EXACT


def test_a_maximum_does_not_take_means_to_means() -> None:
    torch.manual_seed(0)
    net = Program(
        lambda m, x: m.o(m.n(F.max_pool2d(m.a(x), 2).permute(0, 2, 3, 1))),
        a=nn.Conv2d(3, 6, 1),
        n=nn.LayerNorm(6),
        o=nn.Linear(6, 2),
    )
    graph = suture.trace(net.double().eval(), (IMAGES,))
    plan = plan_widen(graph, to=9, method="mean")
    assert not plan.exact and change(graph, plan.apply(), IMAGES) > 1e-6
    assert plan_widen(graph, factor=2).exact


def test_new_entries_must_stay_finite() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, dtype=torch.float64)
    forwards = {
        "log": lambda m, x: m.o(torch.log(m.a(x).relu())), "div": lambda m, x: m.o(m.a(x) / m.b(x)), "rsqrt": lambda m, x: m.o(torch.rsqrt(m.a(x).square())),
    }  # fmt: skip
    for name, forward in forwards.items():
        net = Program(forward, a=nn.Linear(5, 8), b=nn.Linear(5, 8), o=nn.Linear(8, 3))
        graph = suture.trace(net.double().eval(), (x,))
        for method in ("zero", "random"):
            assert f"{name} {name}: what is new may not be finite there" in str(
                plan_widen(graph, factor=2, method=method)
            )
        assert plan_widen(graph, factor=2).exact
    graph = suture.trace(
        Program(lambda m, x: m.o(m.a(x) / (1 + m.a(x).square())), a=nn.Linear(5, 8), o=nn.Linear(8, 3)).double(), (x,)
    )
    plan = plan_widen(graph, factor=2, method="zero")
    assert plan.exact and change(graph, plan.apply(), x) < EXACT


def attend_to_latents(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    k, v = (layer(m.latents)[None, None].expand(2, 1, 6, 4) for layer in (m.k, m.v))
    return m.o(F.scaled_dot_product_attention(m.q(x)[:, None], k, v)[:, 0])


def test_learned_keys_are_weighed_by_softmax() -> None:
    torch.manual_seed(0)
    net = Program(
        attend_to_latents, latents=nn.Parameter(torch.randn(6, 5)), q=nn.Linear(3, 4), k=nn.Linear(5, 4, bias=False),
        v=nn.Linear(5, 4, bias=False), o=nn.Linear(4, 2),
    )  # fmt: skip
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    graph = suture.trace(net.double().eval(), (x,))
    cases = {(("factor", 2),): True, (("factor", 1.5),): False, (("factor", 2), ("method", "zero")): False}
    for options, exact in cases.items():
        plan = plan_widen(graph, **dict(options))
        assert plan.exact == exact == (change(graph, plan.apply(), x) < EXACT), str(plan)
    (cut,) = [c for c in plan_prune(graph).cuts if c.axis == "latents[0]"]
    assert cut.verdict == "approximate: attention attention: softmax sees the width"


def test_fixed_positions_take_the_mean_or_nothing() -> None:
    torch.manual_seed(0)
    for norm, method in ((nn.LayerNorm(8), "mean"), (nn.RMSNorm(8), "zero")):
        net = Program(
            lambda m, x: m.head(m.norm(m.embed(x) + m.table)), embed=nn.Linear(5, 8), norm=norm, head=nn.Linear(8, 3)
        )
        net.register_buffer("table", torch.randn(4, 8))
        x = torch.randn(2, 4, 5, dtype=torch.float64)
        graph = suture.trace(net.double().eval(), (x,))
        plan = plan_widen(graph, to=12, method=method)
        assert plan.exact and change(graph, plan.apply(), x) < EXACT, str(plan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_types_widen(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)
    graph = suture.trace(net.eval(), (torch.randn(4, 5, dtype=dtype),))
    wide = suture.passes.widen(graph, factor=3)
    assert wide.history[-1].contract == "exact" and wide.parameters["3.weight"].dtype == dtype


def test_rotation_pairs_stay_pairs() -> None:
    graph = decoder(Shape(norm="rms", rotary=True, groups=2, layers=1))
    plan = plan_widen(graph, factor=1.5, kind=("feature",), at=("*.q",))
    pair = next(w for w in plan.widenings if w.before == 2)
    wide = suture.passes.widen(graph, factor=2, at=("*.q",), every=True)
    assert pair.after == 3
    assert wide.parameters["layers.0.attention.frequencies"].data.tolist() == [1.0, 0.1, 1.0, 0.1]
    assert change(graph, wide) < EXACT


def test_a_product_of_zeros_is_remarked() -> None:
    plan = plan_widen(decoder(RMS), to=30, at=("*.feed.up",), method="zero")
    assert plan.exact
    assert plan.remarks == [
        "layers.0.feed.up.weight[0]: layers.0.feed multiplies zero by zero, where no gradient reaches the new part"
    ]


def test_a_mask_opens_and_goes() -> None:
    for shape in (LAYER, RMS):
        graph = decoder(shape)
        wide = suture.passes.widen(graph, factor=1.5, method="random", mask=True, seed=4)
        assert change(graph, wide) < EXACT
        assert suture.passes.unmask(wide).history[-1].notes == (
            "growth_mask left alone: it is open to 0, not 1",
            "no mask is fully open",
        )
        module = suture.to_torch(wide)
        module.growth_mask.fill_(1.0)
        with torch.no_grad():
            opened = module(TOKENS)
        wide.parameters["growth_mask"].assign(torch.ones((), dtype=torch.float64))
        plain = suture.passes.unmask(wide)
        assert len(plain) == len(graph) and not [name for name in plain.parameters if "growth" in name]
        torch.testing.assert_close(suture.evaluate(plain, [TOKENS])[0], opened)
        assert {n.name for n in plain.parameters.values()} == set(graph.parameters)


def test_new_rows_of_the_next_layer() -> None:
    graph = decoder(Shape())
    wide = suture.passes.widen(graph, factor=1.5, at=("*.feed.up",), method="aki")
    name = "layers.{}.feed.up.weight"
    own, following = (graph.parameters[name.format(k)].data for k in range(2))
    torch.testing.assert_close(wide.parameters[name.format(0)].data, torch.cat([own, following[:10]]))
    torch.testing.assert_close(wide.parameters[name.format(1)].data, torch.cat([following, following[:10]]))


def test_recurrent_layers_widen() -> None:
    torch.manual_seed(0)
    graph = suture.trace(zoo.LSTMClassifier(width=6, hidden=5).double().eval(), (torch.randint(0, 50, (2, 7)),))
    x = torch.randint(0, 50, (2, 7))
    for options in (
        {"factor": 2},
        {"factor": 2, "split": "uneven"},
        {"to": 12, "method": "zero"},
        {"to": 12, "method": "random"},
        {"to": 12, "method": "random", "mask": True},
    ):
        plan = plan_widen(graph, **options)
        assert plan.exact, str(plan)
        assert change(graph, plan.apply(), x) < EXACT


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "hf_vit"])
def test_library_models_double_exactly(name: str) -> None:
    entry = zoo.ENTRIES[name]
    inputs = entry.inputs(2, 9)
    args, kwargs = (tuple(inputs.values()), {}) if entry.positional else ((), inputs)
    graph = suture.trace(zoo.randomise(entry.module()), args, kwargs, dynamic=entry.dynamic)
    wide = suture.passes.widen(graph, factor=2)
    assert wide.history[-1].contract == "exact", wide.history[-1].notes
    assert wide.stats().parameters > 1.7 * graph.stats().parameters


def test_a_widened_llama_loads_into_the_library_class_of_its_size() -> None:
    transformers = pytest.importorskip("transformers")
    small = zoo.ENTRIES["llama"].module()
    tokens = torch.randint(0, 64, (2, 9))
    graph = suture.trace(small, (), {"input_ids": tokens})
    wide = suture.passes.widen(graph, factor=2)
    config = small.config.to_dict() | {
        "hidden_size": 2 * small.config.hidden_size, "intermediate_size": 2 * small.config.intermediate_size,
        "num_attention_heads": 2 * small.config.num_attention_heads, "num_key_value_heads": 2 * small.config.num_key_value_heads,
        "head_dim": small.config.hidden_size // small.config.num_attention_heads,
    }  # fmt: skip
    large = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    large.load_state_dict(suture.to_torch(wide).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(large(input_ids=tokens).logits, small(input_ids=tokens).logits, rtol=1e-4, atol=1e-5)


def test_the_plan_prints_what_the_model_grows_to() -> None:
    graph = decoder(LAYER)
    plan = plan_widen(graph, factor=2, at=("*.feed.up",))
    wide = plan.apply()
    assert str(plan).splitlines() == [
        "layers.0.feed.up.weight[0] (feature): 20 -> 40, exact",
        f"{graph.stats().parameters:,} -> {wide.stats().parameters:,} parameters, {graph.stats().macs:,} -> {wide.stats().macs:,} MACs per sample",
    ]


@pytest.mark.parametrize(
    "options", [{"factor": 2, "split": "uneven", "alpha": 0.6}, {"to": 24, "method": "random", "mask": True, "seed": 3}]
)
def test_a_saved_plan_replays_on_another_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan_widen(decoder(LAYER), at=("embed", "*.up"), **options).save(file)
    torch.manual_seed(1)
    other = suture.trace(zoo.randomise(Decoder(LAYER), seed=5).double().eval(), (TOKENS,))
    replayed = suture.passes.replay(other, plan=file)
    direct = suture.passes.widen(other, at=("embed", "*.up"), **options)
    assert replayed.history[-1].contract == "exact"
    assert all(torch.equal(p.data, direct.parameters[name].data) for name, p in replayed.parameters.items())
    broken = {
        "axis layers.0.feed.up.weight[0] has 20 indices, the plan takes it from 12 to": file.read_text(encoding="utf-8").replace('"before": 20', '"before": 12'),
        "this is no plan of widenings": '{"format": "suture-widening 1"}',
    }  # fmt: skip
    for text, content in broken.items():
        file.write_text(content, encoding="utf-8")
        with pytest.raises(SutureError) as caught:
            suture.passes.replay(other, plan=file)
        assert caught.value.code.value == "S454" and text in str(caught.value)


def test_shapes_alone_can_be_planned() -> None:
    graph = decoder(LAYER).copy()
    for parameter in graph.parameters.values():
        parameter.assign(parameter.data.detach().to("meta"))
    wide = suture.passes.widen(graph, factor=2)
    assert wide.stats().macs == suture.passes.widen(decoder(LAYER), factor=2).stats().macs


def test_a_seed_gives_the_same_noise() -> None:
    graph = decoder(LAYER)
    once, again, other = (
        suture.passes.widen(graph, to=32, at=("*.up",), method="random", seed=seed) for seed in (5, 5, 6)
    )
    name = "layers.0.feed.up.weight"
    assert torch.equal(once.parameters[name].data, again.parameters[name].data)
    assert not torch.equal(once.parameters[name].data, other.parameters[name].data)


def test_a_widened_graph_exports_and_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    graph = suture.trace(Convolutional(Channels()).eval(), (x,))
    wide = suture.passes.widen(graph, factor=1.5)
    file = suture.export_onnx(wide, tmp_path / "wide.onnx")
    assert suture.compare(graph, file, [x]).relative < 1e-4
    module = suture.to_torch(wide).train()
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_page_on_width_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "growth-width.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    exec(program, {"torch": torch, "nn": nn, "F": F, "suture": suture, "plan_widen": plan_widen})
    shown = page.split("```\n\n")[1].split("\n\n")[0]
    assert capsys.readouterr().out.splitlines() == [line[4:] for line in shown.splitlines()]


BAD = {
    "neither": ({}, "S455", "neither a size nor a factor"),
    "both": ({"to": 32, "factor": 2}, "S455", "both a size and a factor"),
    "shrinks": ({"to": 8, "at": ("embed",)}, "S455", "to=8 is less than the 16 that embed.weight[1] has; prune makes axes narrower"),
    "below one": ({"factor": 0.5}, "S455", "factor=0.5 widens nothing"),
    "heads": ({"factor": 1.3, "at": ("*.q",)}, "S455", "factor=1.3 makes 5.2 heads of the 4 of layers.0.attention.q.weight[0].0; 1.25 or 1.5"),
    "alpha": ({"factor": 2, "split": "uneven", "alpha": 1.0}, "S455", "alpha=1 leaves a copy nothing"),
    "mask": ({"factor": 2, "mask": True}, "S455", "a mask over the method split"),
    "site": ({"factor": 2, "at": ("layers.0.feed.upp",)}, "S451", "the nearest is 'layers.0.feed.up'"),
    "count": ({"factor": 2, "expect": 9}, "S451", "3 axes are selected, 9 expected"),
    "method": ({"factor": 2, "method": "spit"}, "S402", "'method'"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_gets_one_line(name: str) -> None:
    options, code, text = BAD[name]
    with pytest.raises(SutureError) as caught:
        suture.passes.widen(decoder(LAYER), **options)
    assert caught.value.code.value == code and text in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_do_says_why() -> None:
    graph = decoder(LAYER)
    same = suture.passes.widen(graph, to=20, at=("*.feed.up",))
    assert same.history[-1].outcome == "not applicable"
    assert same.history[-1].notes[0] == "layers.0.feed.up.weight[0] left alone: it has 20 already"
