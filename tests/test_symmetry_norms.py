"""The affine part of norms: moved into readers, centred away, and refused where a reader is not linear."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from growable import TOKENS, Decoder, Shape
from programs import Program
from torch import nn

import suture
from suture.ir.graph import Graph, Node
from suture.passes.symmetry.norm_affine import linear_readers, shift_and_scale
from suture.passes.symmetry.reach import Blame

WIDE = torch.float64


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers for every parameter, in float64: gains and biases matter."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in dict.fromkeys(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=WIDE) * 0.5 + 0.2)
    return module


def norms(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.operator.name in ("layer_norm", "rms_norm")]


def error(module: nn.Module, graph: Graph, x: torch.Tensor) -> float:
    """How far the graph is from the module, relative to its largest output."""
    with torch.no_grad():
        expected, received = module(x), suture.evaluate(graph, [x])[0]
    return float((expected - received).abs().max() / expected.abs().max())


def twice(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return m.fc(m.norm(y)) + m.fc(y)


def notes(graph: Graph) -> str:
    return "\n".join(graph.history[-1].notes)


FEATURES = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=WIDE)


def test_shift_and_scale_gives_the_norm_and_its_reader_the_numbers_of_repq() -> None:
    """Li et al. 2023, section 3.2: gain / r1, (bias + s r2) / r1, W diag(r1), b - W (s r2), with s the quantiser's scales."""
    module = randomised(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)))
    s = torch.rand(6, dtype=WIDE) + 0.1
    z = torch.randint(-8, 8, (6,)).to(WIDE)
    r1, r2 = s / s.mean(), z - z.mean().round()
    graph = suture.trace(module, FEATURES).copy()
    (norm,) = norms(graph)
    assert shift_and_scale(graph, norm, r1, s * r2) == []
    new = {name: parameter.data for name, parameter in graph.parameters.items()}
    torch.testing.assert_close(new["0.weight"], module[0].weight / r1)
    torch.testing.assert_close(new["0.bias"], (module[0].bias + s * r2) / r1)
    torch.testing.assert_close(new["1.weight"], module[1].weight * r1)
    torch.testing.assert_close(new["1.bias"], module[1].bias - module[1].weight @ (s * r2))
    assert error(module, graph, FEATURES) < 1e-12
    # the integers of the quantiser before and after are the same
    before = (module[0](FEATURES) / s).round() + z
    normal = F.layer_norm(FEATURES, (6,), new["0.weight"], new["0.bias"])
    assert torch.equal((normal / s.mean()).round() + z.mean().round(), before)


class Packed(nn.Module):
    """Attention with packed projections behind one norm, and a second reader through a split."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.left, self.right = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        b, n, d = y.shape
        q, k, v = self.qkv(y).reshape(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        left, right = y.transpose(0, 1).chunk(2, -1)
        return torch.cat([mixed.transpose(0, 1), self.left(left), self.right(right).flatten(0, 0)], -1)


def test_readers_are_found_through_permutations_splits_and_packed_projections() -> None:
    module = randomised(Packed())
    graph = suture.trace(module, FEATURES).copy()
    (norm,) = norms(graph)
    found = linear_readers(graph, norm)
    assert not isinstance(found, Blame)
    assert {layer.node.path for layer in found.layers} == {"qkv", "left", "right"}
    generator = torch.Generator().manual_seed(2)
    shift_and_scale(graph, norm, torch.rand(6, generator=generator) - 0.5, torch.randn(6, generator=generator))
    assert error(module, graph, FEATURES) < 1e-12


def test_a_missing_gain_and_bias_are_made() -> None:
    module = randomised(nn.Sequential(nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 4, bias=False)))
    graph = suture.trace(module, FEATURES).copy()
    shift_and_scale(graph, norms(graph)[0], torch.full((6,), 2.0), torch.ones(6))
    assert {"1.bias"} < graph.parameters.keys()
    assert error(module, graph, FEATURES) < 1e-12
    trained = suture.to_torch(graph)
    trained(FEATURES).sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (lambda m, x: m.fc(torch.relu(m.norm(x))), "relu does not commute with a scale and a shift"),
        (lambda m, x: m.fc(m.norm(x) + x), "add would change the shift"),
        (lambda m, x: m.norm(x), "is an output|it reaches dimension"),
        (lambda m, x: m.norm(x).sum(-1) + m.fc(m.norm(x)).sum(-1), "no layer with weights|takes all of the axis|sums over"),
        (lambda m, x: m.conv(m.norm(x).transpose(1, 2)), "pads with zeros"),
    ],
)  # fmt: skip
def test_a_reader_that_is_not_linear_is_named(program: object, reason: str) -> None:
    module = randomised(Program(program, norm=nn.LayerNorm(6), fc=nn.Linear(6, 3), conv=nn.Conv1d(6, 2, 3, padding=1)))
    graph = suture.trace(module, FEATURES).copy()
    before = str(graph)
    with pytest.raises(suture.SutureError, match=reason) as caught:
        shift_and_scale(graph, norms(graph)[0], torch.full((6,), 2.0), torch.ones(6))
    assert caught.value.code == suture.Code.SYMMETRY
    assert str(graph) == before


@pytest.mark.parametrize(
    ("scale", "shift", "reason"),
    [
        (torch.ones(5), None, "5 numbers for 6"), (torch.zeros(6), None, "scale of 0"), (torch.full((6,), torch.nan), None, "not finite"),
        (torch.ones(6), torch.ones(4), "a shift of 4"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(scale: torch.Tensor, shift: torch.Tensor | None, reason: str) -> None:
    graph = suture.trace(randomised(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4))), FEATURES).copy()
    with pytest.raises(suture.SutureError, match=reason):
        shift_and_scale(graph, norms(graph)[0], scale, shift)


def test_an_rms_norm_takes_no_shift_and_a_relu_is_no_norm() -> None:
    module = randomised(nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 4), nn.ReLU()))
    graph = suture.trace(module, FEATURES).copy()
    with pytest.raises(suture.SutureError, match="no bias"):
        shift_and_scale(graph, norms(graph)[0], torch.ones(6), torch.ones(6))
    with pytest.raises(suture.SutureError, match="relu is no"):
        shift_and_scale(graph, graph.nodes[-1], torch.ones(4))


def test_fold_gains_makes_norms_free_of_numbers() -> None:
    module = randomised(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)))
    folded = suture.passes.fold_gains(suture.trace(module, FEATURES))
    assert folded.parameters.keys() == {"1.weight", "1.bias"}
    torch.testing.assert_close(folded.parameters["1.weight"].data, module[1].weight * module[0].weight)
    torch.testing.assert_close(folded.parameters["1.bias"].data, module[1].bias + module[1].weight @ module[0].bias)
    assert error(module, folded, FEATURES) < 1e-12


def test_fold_gains_keeps_the_bias_of_a_norm_before_a_padded_convolution() -> None:
    module = randomised(
        Program(
            lambda m, x: m.conv(m.norm(x).transpose(1, 2)), norm=nn.LayerNorm(6), conv=nn.Conv1d(6, 2, 3, padding=1)
        )
    )
    folded = suture.passes.fold_gains(suture.trace(module, FEATURES))
    assert folded.parameters.keys() == {"norm.bias", "conv.weight", "conv.bias"}
    assert "its bias stays" in notes(folded)
    assert error(module, folded, FEATURES) < 1e-12


def test_fold_gains_goes_through_a_convolution_without_padding_and_a_mean() -> None:
    module = randomised(
        Program(
            lambda m, x: m.conv(m.norm(x).transpose(1, 2)).flatten(1) + m.fc(m.norm(x).mean(1)),
            norm=nn.LayerNorm(6), conv=nn.Conv1d(6, 2, 2, stride=2, dilation=2, groups=2), fc=nn.Linear(6, 4),
        )
    )  # fmt: skip
    folded = suture.passes.fold_gains(suture.trace(module, FEATURES))
    assert folded.history[-1].outcome == "done"
    assert error(module, folded, FEATURES) < 1e-12


def test_fold_gains_adds_a_bias_behind_a_product_that_has_no_place_for_one() -> None:
    module = randomised(Program(lambda m, x: m.norm(x) @ m.fc.weight.T, norm=nn.LayerNorm(6), fc=nn.Linear(6, 4)))
    folded = suture.passes.fold_gains(suture.trace(module, FEATURES))
    assert folded.history[-1].outcome == "done"
    assert error(module, folded, FEATURES) < 1e-12


def test_fold_gains_takes_a_gain_that_stands_behind_the_norm() -> None:
    """Models that normalise in float32 multiply by their gain afterwards, in their own type."""
    gain = nn.Parameter(torch.rand(6) + 0.5)
    module = Program(
        lambda m, x: m.fc(m.gain[0] * F.rms_norm(x.float(), (6,), eps=1e-6).to(x.dtype)), gain=nn.ParameterList([gain]), fc=nn.Linear(6, 4)
    ).bfloat16()  # fmt: skip
    x = FEATURES.bfloat16()
    folded = suture.passes.fold_gains(suture.trace(module.eval(), x))
    assert "gain.0" not in folded.parameters
    assert error(module, folded, x) < 4e-2


def test_fold_gains_says_why_a_norm_keeps_its_gain() -> None:
    module = randomised(Program(lambda m, x: m.fc(F.gelu(m.norm(x))), norm=nn.LayerNorm(6), fc=nn.Linear(6, 4)))
    graph = suture.trace(module, FEATURES)
    same = suture.passes.fold_gains(graph)
    assert same.history[-1].outcome == "not applicable"
    assert "gelu does not commute" in notes(same)


def test_fold_gains_by_site_and_a_pattern_that_matches_nothing() -> None:
    graph = suture.trace(randomised(Decoder(Shape(norm="layer"))), (TOKENS,))
    one = suture.passes.fold_gains(graph, at=("layers.0.before",))
    assert {"layers.0.before.weight"} == graph.parameters.keys() - one.parameters.keys() - {"layers.0.before.bias"}
    with pytest.raises(suture.SutureError, match=r"layers\.0\.before"):
        suture.passes.fold_gains(graph, at=("layers.0.befor",))


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_untied_only_where_it_must_be(tied: bool) -> None:
    module = randomised(Decoder(Shape(norm="layer", tied=tied)))
    folded = suture.passes.fold_gains(suture.trace(module, (TOKENS,)))
    assert ("cannot stay shared" in notes(folded)) == tied
    assert "head.weight" in folded.parameters
    assert error(module, folded, TOKENS) < 1e-12


@pytest.mark.parametrize("tied", [False, True])
def test_centre_turns_layer_norms_into_rms_norms(tied: bool) -> None:
    module = randomised(Decoder(Shape(norm="layer", tied=tied)))
    folded = suture.passes.fold_gains(suture.trace(module, (TOKENS,)))
    centred = suture.passes.centre(folded)
    assert [node.operator.name for node in norms(centred)] == ["rms_norm"] * 5
    assert not any(name.partition(".")[2].endswith("norm.weight") for name in centred.parameters)
    assert centred.parameters["embed.weight"].data.mean(1).abs().max() < 1e-12
    assert centred.parameters["layers.0.feed.down.weight"].data.mean(0).abs().max() < 1e-12
    assert error(module, centred, TOKENS) < 1e-12


def test_centre_keeps_gains_and_adds_biases_behind_the_norm() -> None:
    module = randomised(Decoder(Shape(norm="layer")))
    centred = suture.passes.centre(suture.trace(module, (TOKENS,)))
    assert "layers.0.before.weight" in centred.parameters
    assert error(module, centred, TOKENS) < 1e-12
    folded = suture.passes.fold_gains(centred)
    assert "layers.0.before.bias" not in folded.parameters
    assert error(module, folded, TOKENS) < 1e-12


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (lambda m, x: m.fc(m.norm(m.fc(x) + m.other(x))), "its gain differs from index to index"),  # a norm with a gain writes the stream
        (lambda m, x: twice(m, m.fc(x)), "reads more than the difference"),  # a layer reads it beside the norm
        (lambda m, x: m.fc(m.norm(torch.tanh(m.fc(x)))), "tanh does not commute"),
        (lambda m, x: m.fc(m.norm(x)), "input"),
    ],
)  # fmt: skip
def test_centre_blames_the_writer_or_reader_that_does_not_allow_it(program: object, reason: str) -> None:
    module = randomised(Program(program, norm=nn.LayerNorm(6), other=nn.LayerNorm(6), fc=nn.Linear(6, 6)))
    same = suture.passes.centre(suture.trace(module, FEATURES))
    assert same.history[-1].outcome == "not applicable"
    assert reason in notes(same)


def test_a_norm_without_gain_may_write_a_stream_that_is_centred() -> None:
    module = randomised(
        Program(
            lambda m, x: m.fc(m.norm(m.first(x) + m.other(x))), first=nn.Linear(6, 6), norm=nn.LayerNorm(6), fc=nn.Linear(6, 6),
            other=nn.LayerNorm(6, elementwise_affine=False),
        )
    )  # fmt: skip
    centred = suture.passes.centre(suture.trace(module, FEATURES))
    assert [node.operator.name for node in norms(centred)] == ["layer_norm", "rms_norm"]
    assert error(module, centred, FEATURES) < 1e-12


def test_the_page_on_symmetries_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "symmetries.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    torch.manual_seed(0)
    exec(compile(code, "symmetries.md", "exec"), {"__name__": "symmetries"})
