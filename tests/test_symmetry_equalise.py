"""Cross-layer equalisation and bias absorption: the formulas of Nagel et al. 2019, exact through homogeneous functions, refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zoo
from growable import IMAGES, Channels, Convolutional
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import Program
from strategies import Builder, prunable_graphs, run_inputs
from torch import nn

import suture
from suture.ir.graph import Graph, Value
from suture.ir.types import TensorType
from suture.passes.proof import in_double

WIDE = torch.float64
FEATURES = torch.randn(7, 5, dtype=WIDE, generator=torch.Generator().manual_seed(0)) * 3


def uneven(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers of very different magnitudes from channel to channel, in float64."""
    generator = torch.Generator().manual_seed(seed)
    module = zoo.randomise(module).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                rows = torch.randn(len(parameter), generator=generator, dtype=WIDE).mul(2).exp()
                parameter.mul_(rows.reshape(-1, *[1] * (parameter.ndim - 1)))
    return module


def error(module: nn.Module, graph: Graph, x: torch.Tensor) -> float:
    with torch.no_grad():
        expected, received = module(x), suture.evaluate(graph, [x])[0]
    return float((expected - received).abs().max() / expected.abs().max())


def notes(graph: Graph) -> str:
    return "\n".join(graph.history[-1].notes)


def test_two_layers_get_the_scales_of_the_paper() -> None:
    """Equation 11: s = sqrt(r1 r2) / r2; the rows of the first are divided by it, the columns of the second multiplied."""
    module = uneven(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)))
    one, two = module[0], module[2]
    r1, r2 = one.weight.detach().abs().amax(1), two.weight.detach().abs().amax(0)
    s = torch.sqrt(r1 * r2) / r2
    equal = suture.passes.equalise(suture.trace(module, FEATURES))
    new = {name: parameter.data for name, parameter in equal.parameters.items()}
    torch.testing.assert_close(new["0.weight"], one.weight / s[:, None])
    torch.testing.assert_close(new["0.bias"], one.bias / s)
    torch.testing.assert_close(new["2.weight"], two.weight * s)
    torch.testing.assert_close(new["0.weight"].abs().amax(1), new["2.weight"].abs().amax(0))
    assert error(module, equal, FEATURES) < 1e-12
    assert suture.passes.equalise(equal).history[-1].notes[-1] == "the ranges of all layers are equal already"


class Bottleneck(nn.Module):
    """Pointwise, depthwise, pointwise, with a residual sum, a pool and a flattened head: every kind of pair there is."""

    def __init__(self, activation: nn.Module, norm: bool) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity()
        self.expand, self.project = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.activation, self.grouped = activation, nn.Conv2d(6, 4, 1, groups=2)
        self.head, self.last = nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norm(self.stem(x)))
        x = x + self.project(self.activation(self.depthwise(self.activation(self.expand(x)))))
        x = F.max_pool2d(self.activation(self.grouped(F.avg_pool2d(x, 3, 1, 1))), 2)
        return self.last(self.activation(self.head(x.flatten(1))))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(), nn.Identity()])
def test_equalise_is_exact_through_homogeneous_functions(activation: nn.Module, norm: bool) -> None:
    module = uneven(Bottleneck(activation, norm))
    graph = suture.trace(module, IMAGES)
    equal = suture.passes.equalise(graph)
    assert error(module, equal, IMAGES) < 1e-12
    text = notes(equal)
    for pair in (
        "expand.weight and depthwise.weight",
        "depthwise.weight and project.weight",
        "grouped.weight and head.weight",
    ):
        assert pair in text
    assert "head.weight and last.weight" in text
    # a pair that no other pair changes ends with one range on both sides
    first, second = (equal.parameters[f"{name}.weight"].data.abs() for name in ("expand", "depthwise"))
    torch.testing.assert_close(first.amax((1, 2, 3)), second.amax((1, 2, 3)), rtol=1e-2, atol=0)


def test_an_equalised_network_folds_trains_and_runs_in_onnx_runtime(tmp_path: Path) -> None:
    module = zoo.randomise(Bottleneck(nn.ReLU(), True)).eval()
    equal = suture.passes.equalise(suture.trace(module, IMAGES.float()))
    folded = suture.passes.fold(equal)
    assert "batch_norm" not in {node.operator.name for node in folded.nodes}
    suture.export_onnx(folded, tmp_path / "equal.onnx")
    assert suture.compare(module, tmp_path / "equal.onnx", [IMAGES.float()]).outputs[0].max_abs < 1e-4
    trained = suture.to_torch(equal)
    trained(IMAGES.float()).sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Tanh(), nn.Hardtanh()])
def test_other_functions_are_refused_by_name(activation: nn.Module) -> None:
    module = uneven(nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 4)))
    same = suture.passes.equalise(suture.trace(module, FEATURES))
    assert same.history[-1].outcome == "not applicable"
    assert "does not commute with a positive scale" in notes(same)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(0.0, 2.0)])
def test_a_clip_may_become_one_for_each_channel(activation: nn.Module, tmp_path: Path) -> None:
    module = uneven(Bottleneck(activation, True))
    graph = suture.trace(module, IMAGES)
    equal = suture.passes.equalise(graph, clip="channels")
    assert error(module, equal, IMAGES) < 1e-12
    assert suture.passes.equalise(graph).history[-1].outcome == "not applicable"
    assert "minimum" in {node.operator.name for node in equal.nodes}


def test_channels_that_nothing_writes_or_reads_stay() -> None:
    module = uneven(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)))
    with torch.no_grad():
        module[0].weight[1] = 0.0
        module[2].weight[:, 4] = 0.0
    equal = suture.passes.equalise(suture.trace(module, FEATURES))
    assert torch.equal(equal.parameters["0.bias"].data[[1, 4]], module[0].bias.detach()[[1, 4]])
    assert all(bool(parameter.data.isfinite().all()) for parameter in equal.parameters.values())
    assert error(module, equal, FEATURES) < 1e-12


def test_the_linear_half_of_a_gated_layer_shares_its_scale() -> None:
    module = uneven(
        Program(
            lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)), gate=nn.Linear(5, 6), up=nn.Linear(5, 6), down=nn.Linear(6, 4)
        )
    )  # fmt: skip
    graph = suture.trace(module, FEATURES)
    equal = suture.passes.equalise(graph)
    assert "up.weight and down.weight" in notes(equal)
    assert torch.equal(equal.parameters["gate.weight"].data, graph.parameters["gate.weight"].data)
    assert error(module, equal, FEATURES) < 1e-12


def test_a_layer_used_twice_is_equalised_in_one_way_or_untied() -> None:
    module = uneven(
        Program(lambda m, x: m.out(torch.relu(m.fc(torch.relu(m.fc(x))))), fc=nn.Linear(5, 5), out=nn.Linear(5, 2))
    )
    equal = suture.passes.equalise(suture.trace(module, FEATURES))
    assert error(module, equal, FEATURES) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type(dtype: torch.dtype) -> None:
    module = zoo.randomise(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))).to(dtype).eval()
    with torch.no_grad():
        module[0].weight.mul_(torch.logspace(-1, 1, 6)[:, None])
    equal = suture.passes.equalise(suture.trace(module, FEATURES.to(dtype)))
    assert {parameter.dtype for parameter in equal.parameters.values()} == {dtype}


@pytest.mark.parametrize(
    "name", ["equalise", "absorb_bias", "fold_gains", "centre", "rotate", "rotate_heads", "fold_scale"]
)
def test_shapes_alone_and_empty_graphs_are_no_obstacle(name: str) -> None:
    graph = suture.trace(Convolutional(Channels()).double().eval(), IMAGES).copy()
    for parameter in graph.parameters.values():
        parameter.assign(parameter.data.to("meta"))
    assert getattr(suture.passes, name)(graph).history[-1].outcome in ("done", "not applicable")
    assert getattr(suture.passes, name)(Graph("empty")).history[-1].outcome == "not applicable"


class Absorbing(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity()
        self.second = nn.Conv2d(8, 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


def test_absorb_bias_moves_what_lies_three_deviations_above_zero() -> None:
    """Section 4.1.3: c = max(0, beta - 3 gamma); beta takes -c, the next bias W c."""
    module = zoo.randomise(Absorbing(True)).double().eval()
    with torch.no_grad():
        module.norm.bias.copy_(torch.linspace(-2, 5, 8))
        module.norm.weight.copy_(torch.linspace(0.2, 0.6, 8))
    c = (module.norm.bias - 3 * module.norm.weight).clamp(min=0).detach()
    absorbed = suture.passes.absorb_bias(suture.trace(module, IMAGES))
    new = {name: parameter.data for name, parameter in absorbed.parameters.items()}
    torch.testing.assert_close(new["norm.bias"], module.norm.bias - c)
    torch.testing.assert_close(new["second.bias"], module.second.bias + module.second.weight.sum((2, 3)) @ c)
    assert absorbed.history[-1].contract == "approximate"
    assert error(module, absorbed, IMAGES) < 0.2


def test_absorb_bias_is_exact_where_nothing_can_be_less_than_the_bias() -> None:
    module = uneven(nn.Sequential(nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)))
    with torch.no_grad():
        module[1].weight.abs_()
    absorbed = suture.passes.absorb_bias(suture.trace(module, FEATURES))
    assert absorbed.history[-1].contract == "exact"
    torch.testing.assert_close(absorbed.parameters["1.bias"].data, module[1].bias.clamp(max=0).detach())
    assert error(module, absorbed, FEATURES) < 1e-12


def test_absorb_bias_takes_its_statistics_from_data_where_there_is_no_norm() -> None:
    module = zoo.randomise(Absorbing(False)).double().eval()
    with torch.no_grad():
        module.first.bias.add_(6.0)
    graph = suture.trace(module, IMAGES)
    same = suture.passes.absorb_bias(graph)
    assert same.history[-1].outcome == "not applicable"
    assert "give data" in notes(same)
    absorbed = suture.passes.absorb_bias(graph, data={graph.inputs[0].name: IMAGES})
    rows = module.first(IMAGES).movedim(1, 0).flatten(1).detach()
    c = (rows.mean(1) - 3 * rows.std(1, correction=0)).clamp(min=0)
    torch.testing.assert_close(absorbed.parameters["first.bias"].data, module.first.bias - c)
    with pytest.raises(suture.SutureError, match="negative"):
        suture.passes.absorb_bias(graph, deviations=-1.0)


def test_absorb_bias_is_refused_before_zero_padding() -> None:
    module = uneven(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)))
    with torch.no_grad():
        module[1].weight.abs_()
        module[1].bias.fill_(2.0)
    same = suture.passes.absorb_bias(suture.trace(module, IMAGES))
    assert "pads with zeros" in notes(same)


@st.composite
def layered_graphs(draw: st.DrawFn) -> Graph:
    """Layers, norms, activations, scales, residual sums and splits on features, with a head: what symmetries act on."""
    graph = Graph("layered")
    graph.add_input("x", TensorType(WIDE, (2, 3, 4)))
    b = Builder(draw, graph, draw(st.integers(0, 2**16)), WIDE)
    width = draw(st.sampled_from((4, 6, 8)))

    def linear(x: Value, size: int) -> Value:
        bias = b.weight(size) if draw(st.booleans()) else None
        return b.one("linear", [x, b.weight(size, int(x.shape[-1])), bias])  # type: ignore[arg-type]

    def norm(x: Value) -> Value:
        gain = b.weight(width, offset=1.0) if draw(st.booleans()) else None
        if draw(st.booleans()):
            return b.one("rms_norm", [x, gain], rank=1)
        return b.one(
            "layer_norm", [x, gain, b.weight(width) if gain is not None and draw(st.booleans()) else None], rank=1
        )

    def block(x: Value, kind: str) -> Value:
        match kind:
            case "feed":
                inner = norm(x) if draw(st.booleans()) else x
                hidden = b.one(
                    draw(st.sampled_from(("relu", "leaky_relu", "gelu", "neg", "clone"))), [linear(inner, 5)]
                )
                return b.one("add", [x, linear(hidden, width)])
            case "gate":
                return b.one("mul", [x, b.one("sigmoid", [linear(x, width)])])
            case "scale":
                return b.one("mul", [x, b.weight(width)])
            case "number":
                return b.one("mul", [x, None], scalar=draw(st.sampled_from((0.5, -2.0))))
            case "norm":
                return norm(x)
        return b.one("dropout", [b.one("permute", [b.one("permute", [x], dims=(1, 0, 2))], dims=(1, 0, 2))])

    x = linear(graph.inputs[0], width)
    for kind in draw(
        st.lists(st.sampled_from(("feed", "feed", "gate", "scale", "number", "norm", "move")), max_size=4)
    ):
        x = block(x, kind)
    graph.set_outputs([linear(norm(x) if draw(st.booleans()) else x, 3)])
    graph.remove_dead()
    return graph


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(layered_graphs() | prunable_graphs(max_steps=6))
def test_every_symmetry_keeps_the_function_of_random_networks(graph: Graph) -> None:
    graph = in_double(graph)
    inputs = [x.double() if x.is_floating_point() else x for x in run_inputs(graph)]
    before = suture.evaluate(graph, inputs)
    for name in ("equalise", "fold_scale", "fold_gains", "centre", "rotate", "rotate_heads"):
        after = suture.evaluate(getattr(suture.passes, name)(graph, check=False), inputs)
        for a, b in zip(before, after, strict=True):
            ordinary = a.abs().max() if a.numel() else torch.ones(())
            assert torch.equal(a.isfinite(), b.isfinite())
            assert bool(((a - b).abs()[a.isfinite()] <= 1e-10 * max(float(ordinary), 1.0)).all()), (name, str(graph))
