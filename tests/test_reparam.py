"""Blocks that train with branches run as one layer: from two rules, without a word about any of them."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from linear_blocks import one_thread  # noqa: F401
from torch import nn
from zoo import declare_torchvision_operators, randomise

import suture
from suture.ir.errors import SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.passes.reparam import merge_factors, reparam

WIDE = torch.float64


def traced(module: nn.Module, *shape: int) -> tuple[nn.Module, torch.Tensor, Graph]:
    """The module with numbers that matter in float64, an input, and its graph."""
    torch.manual_seed(0)
    module = randomise(module.eval()).to(WIDE)
    x = torch.randn(*shape, dtype=WIDE, generator=torch.Generator().manual_seed(1))
    return module, x, suture.trace(module, (x,))


def operators(graph: Graph) -> list[str]:
    return [node.operator.name for node in graph.nodes]


def notes(graph: Graph) -> str:
    return "\n".join(graph.history[-1].notes)


def require_equal(graph: Graph, module: nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(evaluate(graph, [x])[0], module(x).detach(), rtol=1e-10, atol=1e-10)


def collapsed(module: nn.Module, *shape: int, to: list[str]) -> Graph:
    """The graph of a block after the pass, checked against the module itself."""
    module, x, graph = traced(module, *shape)
    merged = reparam(graph)
    require_equal(merged, module, x)
    assert operators(merged) == to, notes(merged)
    return merged


def conv_norm(inputs: int, outputs: int, kernel: int | tuple[int, int], **options: object) -> nn.Sequential:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = int(options.get("dilation", 1))  # type: ignore[call-overload]
    options.setdefault("padding", tuple(dilation * (k - 1) // 2 for k in size))
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, bias=False, **options), nn.BatchNorm2d(outputs))  # type: ignore[arg-type]


class Branches(nn.Module):
    """The sum of some branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.branches[0](x)
        for part in self.branches[1:]:
            total = total + part(x)
        return total


class PaintedPad(nn.Module):
    """Batch norm, then padding with what it makes of zeros, written by assignment to slices, as the diverse branch block does."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.bn, self.pad = nn.BatchNorm2d(channels), pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bn, p = self.bn, self.pad
        y = F.pad(bn(x), [p] * 4)
        number = (bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)).view(1, -1, 1, 1)
        y[:, :, :p, :] = number
        y[:, :, -p:, :] = number
        y[:, :, :, :p] = number
        y[:, :, :, -p:] = number
        return y


class IdentityBased(nn.Conv2d):
    """A pointwise convolution whose weight is what it learns added to the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, bias=False)
        self.register_buffer("eye", torch.eye(channels).reshape(channels, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight + self.eye)


def diverse_branch(channels: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    """Ding et al., "Diverse Branch Block" (2021), figure 3."""
    first = IdentityBased(channels) if channels == outputs else nn.Conv2d(channels, channels, 1, bias=False)
    pad = kernel // 2
    return Branches(
        conv_norm(channels, outputs, kernel, stride=stride),
        conv_norm(channels, outputs, 1, stride=stride, padding=0),
        nn.Sequential(nn.Conv2d(channels, outputs, 1, bias=False), PaintedPad(outputs, pad), nn.AvgPool2d(kernel, stride), nn.BatchNorm2d(outputs)),
        nn.Sequential(first, PaintedPad(channels, pad), conv_norm(channels, outputs, kernel, stride=stride, padding=0)),
    )  # fmt: skip


class Mixer(nn.Module):
    """x + scale * (mixer(x) - norm(x)), as in FastViT (Vasu et al. 2023), equation 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = Branches(conv_norm(channels, channels, 3, groups=channels), conv_norm(channels, channels, 1, groups=channels),
                              nn.BatchNorm2d(channels))  # fmt: skip
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * (self.mixer(x) - self.norm(x))


class Beside(nn.Module):
    """Two convolutions, their results side by side along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv_norm(4, 6, 3), conv_norm(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "norm, identity, pointwise and kernel": (lambda: Branches(conv_norm(4, 4, 3), conv_norm(4, 4, 1), nn.BatchNorm2d(4)), ["conv"]),
    "asymmetric": (lambda: Branches(conv_norm(4, 4, 3), conv_norm(4, 4, (1, 3)), conv_norm(4, 4, (3, 1))), ["conv"]),
    "asymmetric alone": (lambda: Branches(conv_norm(32, 32, (1, 3)), conv_norm(32, 32, (3, 1))), ["conv", "conv", "add"]),
    "large and small, depthwise": (lambda: Branches(conv_norm(4, 4, 7, groups=4), conv_norm(4, 4, 3, groups=4)), ["conv"]),
    "large and dilated": (lambda: Branches(conv_norm(4, 4, 9, groups=4), *(conv_norm(4, 4, 3, groups=4, dilation=d) for d in (1, 2, 4))), ["conv"]),
    "many of a kind": (lambda: Branches(*(conv_norm(4, 8, 1) for _ in range(4))), ["conv"]),
    "diverse branches": (lambda: diverse_branch(4, 4, 3, 1), ["conv"]),
    "diverse branches, strided": (lambda: diverse_branch(4, 6, 5, 2), ["conv"]),
    "mixer": (lambda: Mixer(4), ["conv"]),
    "side by side": (Beside, ["conv"]),
    "residual pointwise": (lambda: Branches(nn.Identity(), conv_norm(4, 4, 1)), ["conv"]),
    "norm, then convolution": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)), ["conv"]),
    "widened in between": (lambda: nn.Sequential(nn.Conv2d(4, 32, 1, bias=False), nn.Conv2d(32, 4, 3, padding=1)), ["conv"]),
    "bottleneck": (lambda: nn.Sequential(nn.Conv2d(64, 2, 1, bias=False), nn.Conv2d(2, 64, 3, padding=1)), ["conv", "conv"]),
    "depthwise, pointwise": (lambda: nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 1)), ["conv", "conv"]),
    "padding, then convolution": (lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 6, 3)), ["conv"]),
    "uneven padding stays": (lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(48, 48, 3, stride=2)), ["pad", "conv"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_becomes_what_pays(name: str) -> None:
    make, expected = BLOCKS[name]
    module = make()
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    collapsed(module, 2, first.in_channels, 9, 9, to=expected)


def test_what_stays_says_why() -> None:
    module, _, graph = traced(
        nn.Sequential(nn.Conv2d(64, 2, 1, bias=False), nn.Conv2d(2, 64, 3, padding=1)), 1, 64, 9, 9
    )
    assert "0, then 1: as one it would cost" in notes(reparam(graph))
    module, x, graph = traced(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1)), 1, 4, 9, 9)
    left = reparam(graph)
    assert left.history[-1].outcome == "not applicable"
    assert "0, then 1: pads with zeros that the shift would have to reach" in notes(left)
    uneven = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    module, x, graph = traced(Branches(conv_norm(4, 4, 3), uneven), 1, 4, 9, 9)
    merged = reparam(graph)
    require_equal(merged, module, x)
    assert operators(merged) == ["conv", "avg_pool", "add"]


def test_the_largest_branch_gives_the_weight_its_name_and_it_trains_on() -> None:
    module, x, graph = traced(Branches(conv_norm(4, 4, 1), conv_norm(4, 4, 3), nn.BatchNorm2d(4)), 2, 4, 9, 9)
    merged = reparam(graph)
    assert set(merged.parameters) == {"branches.1.0.weight", "branches.1.0.bias"}
    assert all(parameter.requires_grad for parameter in merged.parameters.values())
    assert str(graph) == str(suture.trace(module, (x,)))  # which is left as it was
    rebuilt = suture.to_torch(merged)
    assert set(rebuilt.state_dict()) == set(merged.parameters)
    torch.testing.assert_close(rebuilt(x), module(x), rtol=1e-10, atol=1e-10)
    rebuilt(x).sum().backward()
    assert all(parameter.grad is not None for parameter in rebuilt.parameters())


class LowRankAdapter(nn.Module):
    """y = W x + (alpha / r) B A x (Hu et al. 2021, equation 3), with the dropout that its training uses."""

    def __init__(self, base: nn.Module, down: nn.Module, up: nn.Module, scale: float, p: float = 0.0) -> None:
        super().__init__()
        self.base, self.down, self.up, self.scale, self.dropout = base, down, up, scale, nn.Dropout(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(self.dropout(x))) * self.scale


def test_adapters_merge_into_what_they_adapt() -> None:
    linear = lambda i, o, bias=False: nn.Linear(i, o, bias=bias)  # noqa: E731
    merged = collapsed(LowRankAdapter(linear(16, 12, True), linear(16, 2), linear(2, 12), 4.0), 2, 5, 16, to=["linear"])
    assert set(merged.parameters) == {"base.weight", "base.bias"}
    merged = collapsed(LowRankAdapter(linear(16, 12), linear(16, 2), linear(2, 12), 4.0, 0.1), 2, 5, 16, to=["linear"])
    assert "dropout counts as in evaluation" in notes(merged)
    conv = nn.Conv2d(6, 8, 3, padding=1)
    small = nn.Conv2d(6, 2, 3, padding=1, bias=False), nn.Conv2d(2, 8, 1, bias=False)
    collapsed(LowRankAdapter(conv, *small, 0.5), 2, 6, 7, 7, to=["conv"])
    grouped = nn.Conv2d(6, 8, 3, padding=1, groups=2)
    small = nn.Conv2d(6, 2, 1, bias=False, groups=2), nn.Conv2d(2, 8, 1, bias=False, groups=2)
    collapsed(LowRankAdapter(grouped, *small, 0.5), 2, 6, 7, 7, to=["conv"])


class ScaledBlock(nn.Module):
    """A feed-forward with a layer scale, on a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.gamma = nn.Linear(6, 12), nn.Linear(12, 6), nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gamma * self.down(F.gelu(self.up(x)))


class Transposing(nn.Module):
    """Products with a matrix, as `x @ w + b`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.gamma = (nn.Parameter(torch.randn(s)) for s in ((6, 6), (6,), (6,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (x @ self.weight + self.bias) * self.gamma


def test_layers_on_tokens() -> None:
    collapsed(ScaledBlock(), 2, 5, 6, to=["linear", "gelu", "linear", "add"])
    collapsed(Transposing(), 2, 5, 6, to=["linear"])
    collapsed(Transposing(), 5, 6, to=["linear"])
    collapsed(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.BatchNorm1d(8)), 5, 8, to=["linear"])
    collapsed(nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 64)), 5, 64, to=["linear", "linear"])


def test_the_normalisation_of_an_image_goes_into_an_unpadded_stem() -> None:
    class Normalised(nn.Module):
        def __init__(self, padding: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 4, stride=4, padding=padding)
            self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1))
            self.register_buffer("deviation", torch.tensor([0.2, 0.3, 0.25]).reshape(3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.stem((x / 255.0 - self.mean) / self.deviation)

    collapsed(Normalised(0), 2, 3, 8, 8, to=["conv"])
    merged = collapsed(Normalised(1), 2, 3, 8, 8, to=["div", "sub", "conv"])
    assert "pads with zeros that the shift would have to reach" in notes(merged)


def shallow(name: str, blocks: int) -> nn.Module:
    """One of timm's nets of configured blocks, with fewer of them in each stage."""
    from timm.models import byobnet

    configuration = byobnet.model_cfgs[name]
    stages = tuple(
        stage[: 2 * blocks] if isinstance(stage, list) else dataclasses.replace(stage, d=min(stage.d, blocks))
        for stage in configuration.blocks
    )
    return byobnet.ByobNet(dataclasses.replace(configuration, blocks=stages), num_classes=10)


def create(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **options)


TIMM: dict[str, Callable[[], nn.Module]] = {
    "repvgg_a0": lambda: shallow("repvgg_a0", 2), "mobileone_s0": lambda: shallow("mobileone_s0", 2),
    "fastvit_t8": lambda: create("fastvit_t8", layers=(1, 1, 1, 1)), "repvit_m0_9": lambda: create("repvit_m0_9", depth=(2, 1, 2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_as_few_convolutions_as_the_classes_own_way(name: str) -> None:
    declare_torchvision_operators()
    from timm.utils.model import reparameterize_model

    module, x, graph = traced(TIMM[name](), 1, 3, 32, 32)
    merged = reparam(graph)
    own = reparameterize_model(copy.deepcopy(module).float())  # in float32 only, as timm does it
    counts = merged.stats().operators
    layers = [part for part in own.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert counts["conv"] <= sum(isinstance(part, nn.Conv2d) for part in layers)
    assert counts["conv"] + counts["linear"] <= len(layers)
    assert "batch_norm" not in counts
    result = evaluate(merged, [x])[0]
    torch.testing.assert_close(result, module(x).detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(result.float(), own(x.float()).detach(), rtol=1e-3, atol=1e-4)
    weights = {node.inputs[1] for node in merged.nodes if node.operator.name == "conv"}
    assert {weight.name for weight in weights if weight is not None} <= set(dict(module.named_parameters()))


def test_norms_that_cannot_be_read_are_named() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    _, _, graph = traced(module, 2, 4, 6, 6)
    left = reparam(graph)
    assert left.history[-1].outcome == "not applicable"
    assert "1 (batch_norm) stays: it takes its statistics from the batch" in notes(left)


def test_tied_weights_and_other_readers_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.one(x)) * torch.relu(self.one(x))

    _, _, graph = traced(Tied(), 2, 4, 5, 5)
    left = reparam(graph)
    assert "batch_norm" in operators(left)
    assert "tied" in notes(left) or "another reader" in notes(left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_element_type_stays(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = randomise(diverse_branch(4, 4, 3, 1).eval())
    x = torch.randn(2, 4, 9, 9)
    expected = module(x)
    graph = suture.trace(module.to(dtype), (x.to(dtype),))
    merged = reparam(graph)
    assert {parameter.data.dtype for parameter in merged.parameters.values()} == {dtype}
    torch.testing.assert_close(
        evaluate(merged, [x.to(dtype)])[0].float(), expected, rtol=0.1, atol=0.1 if dtype != torch.float32 else 1e-4
    )


def test_a_planned_graph_and_numbers_that_are_none() -> None:
    _, _, graph = traced(Branches(conv_norm(4, 4, 3), conv_norm(4, 4, 1), nn.BatchNorm2d(4)), 2, 4, 9, 9)
    merged = reparam(graph)
    for parameter in graph.parameters.values():
        parameter.data = parameter.data.to("meta")
    planned = reparam(graph)
    assert operators(planned) == operators(merged)
    assert planned.parameters["branches.0.0.weight"].data.is_meta
    for broken in (0.0, float("nan")):
        _, _, graph = traced(Branches(conv_norm(4, 4, 3), conv_norm(4, 4, 1)), 2, 4, 9, 9)
        graph.parameters["branches.0.0.weight"].assign(torch.full((4, 4, 3, 3), broken, dtype=WIDE))
        assert operators(reparam(graph)) == ["conv"]


def test_dynamic_sizes_stay_dynamic() -> None:
    pointwise = conv_norm(4, 4, 1, stride=2, padding=0)
    module = randomise(Branches(conv_norm(4, 4, 3, stride=2), pointwise, nn.AvgPool2d(3, 2, 1)).eval()).to(WIDE)
    x = torch.randn(2, 4, 9, 9, dtype=WIDE)
    graph = suture.trace(module, (x,), dynamic={"x": {0: "batch", 2: "height", 3: "width"}})
    merged = reparam(graph)
    assert operators(merged) == ["conv"], notes(merged)
    require_equal(merged, module, torch.randn(3, 4, 12, 15, dtype=WIDE))


class Factors(nn.Module):
    """Tucker's and CP's factors of convolutions, and a low-rank linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tucker = nn.Sequential(
            nn.Conv2d(32, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 32, 1)
        )
        self.cp = nn.Sequential(
            nn.Conv2d(32, 3, 1, bias=False), nn.Conv2d(3, 3, (3, 1), padding=(1, 0), groups=3, bias=False),
            nn.Conv2d(3, 3, (1, 3), padding=(0, 1), groups=3, bias=False), nn.Conv2d(3, 32, 1),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(32, 2, bias=False), nn.Linear(2, 30))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.cp(F.relu(self.tucker(x)))).mean((2, 3)))


def test_factors_merge_back_where_they_are_told_to() -> None:
    module, x, graph = traced(Factors(), 2, 32, 8, 8)
    whole = merge_factors(graph)
    require_equal(whole, module, x)
    assert operators(whole) == ["conv", "relu", "conv", "relu", "mean", "linear"]
    assert whole.parameters[whole.nodes[0].inputs[1].name].data.shape == (32, 32, 3, 3)
    part = merge_factors(graph, at="tucker.*")
    require_equal(part, module, x)
    assert operators(part).count("conv") == 5
    assert operators(merge_factors(graph, at=["head.*", "cp.[01]"])).count("conv") == 6
    with pytest.raises(SutureError, match=r"the pattern 'tuker\.\*' matches no layer"):
        merge_factors(graph, at="tuker.*")
    nothing = merge_factors(whole)
    assert nothing.history[-1].outcome == "not applicable"


def test_an_average_goes_before_a_pointwise_layer() -> None:
    module = nn.Sequential(nn.Conv2d(96, 48, 1), nn.AvgPool2d(2))
    module, x, graph = traced(module, 2, 96, 8, 8)
    merged = reparam(graph)
    require_equal(merged, module, x)
    assert operators(merged) == ["avg_pool", "conv"]
    assert merged.stats().macs * 4 == graph.stats().macs
    assert merged.parameters["0.weight"].data is graph.parameters["0.weight"].data
    _, _, graph = traced(nn.Sequential(nn.Conv2d(24, 12, 1), nn.AvgPool2d(3, 2, padding=1)), 2, 24, 8, 8)
    assert "its windows pad with zeros that the bias would have to reach" in notes(reparam(graph))
    module, x, graph = traced(nn.Sequential(nn.Conv2d(24, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 2, 24, 8, 8)
    merged = reparam(graph)
    require_equal(merged, module, x)
    assert operators(merged)[:2] == ["adaptive_avg_pool", "conv"]


def test_a_merged_layer_may_not_add_more_than_it_is_allowed_to() -> None:
    module = Branches(conv_norm(4, 4, (1, 3)), conv_norm(4, 4, (3, 1)))
    _, _, graph = traced(module, 2, 4, 9, 9)
    assert operators(reparam(graph)) == ["conv"]
    left = reparam(graph, growth=0)
    assert operators(left) == ["conv", "conv", "add"]
    assert "as one it would add 384 bytes to the model" in notes(left)
    assert operators(reparam(graph, growth=0, merge="always")) == ["conv"]


def test_what_pays_is_the_callers_to_say() -> None:
    module, x, graph = traced(nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 64)), 5, 64)
    merged = reparam(graph, merge="always")
    require_equal(merged, module, x)
    assert operators(merged) == ["linear"]


def test_a_partial_sum_keeps_its_other_terms() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, k, padding=k // 2) for k in (3, 1, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.relu(self.c(x)) - self.a(x)) + (self.b(x) - torch.sigmoid(x))

    collapsed(Partial(), 2, 4, 6, 6, to=["conv", "relu", "sigmoid", "conv", "add", "sub"])


def test_the_wrong_rewrite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from suture.passes.reparam import linear_form

    honest = linear_form._total

    monkeypatch.setattr(linear_form, "_total", lambda tensors: honest(tensors) * 1.01)
    _, _, graph = traced(Branches(conv_norm(4, 4, 3), conv_norm(4, 4, 1)), 2, 4, 9, 9)
    with pytest.raises(SutureError, match=r"the rewrite add up at %\w+ .* promises the same function"):
        reparam(graph)


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "reparam.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", page, re.DOTALL)
    assert len(blocks) == page.count("```python")
    for program, shown in blocks:
        exec(program, {"torch": torch, "nn": nn, "suture": suture})
        assert capsys.readouterr().out.splitlines() == [line[4:] for line in shown.splitlines()]


def test_scripts_and_records_know_the_passes() -> None:
    graph = traced(nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)), 2, 4, 6, 6)[2]
    record = suture.passes.reparam(graph).history[-1]
    assert (record.name, record.contract, record.outcome) == ("reparam", "exact", "done")
    assert record.deviation is not None
    assert record.deviation < 1e-12
