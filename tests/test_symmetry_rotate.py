"""Rotations of streams and heads, folded scales: library models stay the same function; slicing by principal axes beats plain pruning."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from growable import TOKENS, Decoder, Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program
from torch import nn

import suture
from suture.ir.graph import Graph
from suture.passes.proof import in_double
from suture.passes.symmetry.orthogonal import hadamard, principal_axes, random_rotation

WIDE = torch.float64


@functools.cache
def library_model(name: str) -> tuple[nn.Module, Graph, dict[str, Any]]:
    """A small model of a library with random numbers, its graph in float64, and inputs."""
    entry = zoo.ENTRIES[name]
    module = zoo.randomise(entry.module())
    args, kwargs = entry.args()
    graph = in_double(suture.trace(module, args, kwargs, dynamic=entry.dynamic))
    inputs = kwargs or dict(zip((value.name for value in graph.inputs), args, strict=True))
    return module, graph, inputs


def wide(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def error(expected: Sequence[torch.Tensor], received: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, received, strict=True))


def as_tensors(result: Any) -> list[torch.Tensor]:
    found = result.values() if hasattr(result, "values") else [result]
    return [x for x in found if isinstance(x, torch.Tensor)]


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in dict.fromkeys(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=WIDE) * 0.5 + 0.1)
    return module


def notes(graph: Graph) -> str:
    return "\n".join(graph.history[-1].notes)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "hf_vit"])
def test_library_models_stay_the_same_function(name: str, tmp_path: Path) -> None:
    """Every symmetry in turn, in float64 against the graph, and in the end against the original module."""
    module, graph, inputs = library_model(name)
    before = suture.evaluate(graph, wide(inputs))
    done = {}
    for title in ("fold_gains", "centre", "rotate", "rotate_heads", "fold_scale", "equalise"):
        graph = getattr(suture.passes, title)(graph, check=False)
        done[title] = graph.history[-1].outcome == "done"
        assert error(before, suture.evaluate(graph, wide(inputs))) < 1e-10, title
    post_norm = name == "bert"  # its norms write the stream: only what lies inside a block can turn
    assert done["rotate"] is done["fold_gains"] is not post_norm
    assert done["centre"] is (name in ("bert", "gpt2", "hf_vit"))  # of bert the sum of its embeddings
    assert done["rotate_heads"]
    assert done["fold_scale"] is (name != "t5")  # whose attention has no scale
    with torch.no_grad():
        expected = [x.double() for x in as_tensors(module(**inputs))]
    assert error(expected[:1], suture.evaluate(graph, wide(inputs))[:1]) < 1e-4  # the module computes in float32


@pytest.mark.parametrize("name", ["llama", "hf_vit"])
def test_a_rotated_model_trains_and_runs_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    module, _, inputs = library_model(name)
    entry = zoo.ENTRIES[name]
    narrow = suture.trace(module, *entry.args(), dynamic=entry.dynamic)
    rotated = suture.passes.rotate_heads(suture.passes.rotate(narrow))
    path = tmp_path / "rotated.onnx"
    suture.export_onnx(rotated, path)
    assert suture.compare(module, path, inputs).outputs[0].max_abs < 1e-4
    trained = suture.to_torch(rotated)
    trained.train()
    as_tensors(trained(**inputs))[0].square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_rotate_prepares_the_streams_that_need_it(norm: str, tied: bool) -> None:
    module = randomised(Decoder(Shape(norm=norm, tied=tied, heads=4, groups=2, rotary=True, gated=True)))
    graph = suture.trace(module, (TOKENS,))
    rotated = suture.passes.rotate(graph, by="random", seed=3)
    with torch.no_grad():
        assert error([module(TOKENS)], suture.evaluate(rotated, [TOKENS])) < 1e-12
    assert not torch.equal(rotated.parameters["embed.weight"].data, graph.parameters["embed.weight"].data)
    assert suture.passes.rotate(graph, prepare=False).history[-1].outcome == "not applicable"


def test_a_tied_head_stays_tied_where_no_gain_stands_between() -> None:
    module = Decoder(Shape(norm="rms", tied=True))
    graph = suture.trace(module.double().eval(), (TOKENS,))  # gains of one
    rotated = suture.passes.rotate(graph, prepare=False)
    assert "head.weight" in rotated.parameters["embed.weight"].aliases
    with torch.no_grad():
        assert error([module(TOKENS)], suture.evaluate(rotated, [TOKENS])) < 1e-12


def test_a_seed_gives_the_same_rotation_and_another_seed_another() -> None:
    graph = suture.trace(randomised(Decoder(Shape(norm="rms"))), (TOKENS,))
    one, same, other = (suture.passes.rotate(graph, seed=seed).parameters["embed.weight"].data for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_principal_axes_need_data() -> None:
    graph = suture.trace(randomised(Decoder(Shape(norm="rms"))), (TOKENS,))
    with pytest.raises(suture.SutureError, match="need calibration inputs") as caught:
        suture.passes.rotate(graph, by="pca")
    assert caught.value.code == suture.Code.CALIBRATION


def low_rank_decoder(rank: int) -> nn.Module:
    """A decoder whose stream lies close to a subspace that is no selection of channels."""
    module = randomised(Decoder(Shape(norm="rms", width=16)))
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(16, rank, generator=generator, dtype=WIDE))[0]
    flat = basis @ basis.T + 0.02 * torch.eye(16, dtype=WIDE)
    with torch.no_grad():
        module.embed.weight.copy_(module.embed.weight @ flat)
        for layer in module.layers:
            for linear in (layer.attention.o, layer.feed.down):
                linear.weight.copy_(flat @ linear.weight)
                linear.bias.copy_(flat @ linear.bias)
    return module


def test_slicing_along_principal_axes_beats_plain_pruning() -> None:
    """SliceGPT: rotate the stream onto its principal axes, then cut the last of them."""
    module = low_rank_decoder(4)
    graph = suture.trace(module, (TOKENS,))
    (name,) = (value.name for value in graph.inputs)
    rotated = suture.passes.rotate(graph, by="pca", data={name: TOKENS})
    sliced = suture.passes.prune(
        rotated, keep=0.25, at=("embed",), by=lambda info, _: -torch.arange(info.size, dtype=WIDE)
    )
    pruned = suture.passes.prune(graph, keep=0.25, at=("embed",), by="l2")
    other = torch.tensor([[7, 1, 1, 3, 10], [2, 6, 0, 9, 4]])
    with torch.no_grad():
        expected = module(other)
    far = [
        float((suture.evaluate(g, [other])[0].detach() - expected).norm() / expected.norm()) for g in (sliced, pruned)
    ]
    assert sliced.parameters["embed.weight"].data.shape == pruned.parameters["embed.weight"].data.shape == (11, 4)
    assert far[0] < 0.1 < 0.3 < far[1]


@pytest.mark.parametrize("shape", [Shape(heads=4, groups=2, rotary=True), Shape(heads=2, groups=2, norm="layer")])
def test_rotate_heads_turns_values_and_outputs_alone(shape: Shape) -> None:
    module = randomised(Decoder(shape))
    graph = suture.trace(module, (TOKENS,))
    rotated = suture.passes.rotate_heads(graph, by="random")
    with torch.no_grad():
        assert error([module(TOKENS)], suture.evaluate(rotated, [TOKENS])) < 1e-12
    changed = {
        name.split(".")[-2] for name, parameter in rotated.parameters.items()
        if not torch.equal(parameter.data, graph.parameters[name].data)
    }  # fmt: skip
    assert changed == {"v", "o"}
    # every head's rows take the same matrix: norms of heads' values stay
    heads = [g.parameters["layers.0.attention.v.weight"].data.reshape(-1, 4, 16).norm(dim=1) for g in (graph, rotated)]
    torch.testing.assert_close(*heads)


def test_fold_scale_makes_the_scale_of_attention_one() -> None:
    module = randomised(Decoder(Shape(heads=4, groups=2, rotary=True)))
    graph = suture.trace(module, (TOKENS,))
    folded = suture.passes.fold_scale(graph)
    assert [node.attributes["scale"] for node in folded.nodes if node.operator.name == "attention"] == [1.0, 1.0]
    for part in ("weight", "bias"):
        name = f"layers.1.attention.q.{part}"
        torch.testing.assert_close(folded.parameters[name].data, graph.parameters[name].data * 0.5)
    with torch.no_grad():
        assert error([module(TOKENS)], suture.evaluate(folded, [TOKENS])) < 1e-12


def test_fold_scale_folds_layer_scales_and_numbers_one_behind_the_other() -> None:
    x = torch.randn(2, 3, 6, dtype=WIDE)
    module = randomised(
        Program(
            lambda m, x: x + m.gamma[0] * (m.down(torch.relu(m.up(x) * 0.5)) / 4), up=nn.Linear(6, 8), down=nn.Linear(8, 6),
            gamma=nn.ParameterList([nn.Parameter(torch.zeros(6))]),
        )
    )  # fmt: skip
    with torch.no_grad():
        module.gamma[0][2] = 0.0
    graph = suture.trace(module, (x,))
    folded = suture.passes.fold_scale(graph)
    assert "mul" not in {node.operator.name for node in folded.nodes}
    assert "gamma.0" not in folded.parameters
    torch.testing.assert_close(folded.parameters["up.bias"].data, module.up.bias * 0.5)
    with torch.no_grad():
        assert error([module(x)], suture.evaluate(folded, [x])) < 1e-12


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (lambda m, x: torch.tanh(m.fc(x)) * 2, "tanh does not commute"),
        (lambda m, x: x * 2, "it is an input of the graph"),
        (lambda m, x: shared(m.fc(x)), "exp does not commute"),
    ],
)
def test_a_factor_that_nothing_can_take_stays(program: object, reason: str) -> None:
    x = torch.randn(2, 6, dtype=WIDE)
    same = suture.passes.fold_scale(suture.trace(randomised(Program(program, fc=nn.Linear(6, 6))), (x,)))
    assert same.history[-1].outcome == "not applicable"
    assert reason in notes(same)


def test_factors_around_a_gate_are_folded_one_after_the_other() -> None:
    x = torch.randn(2, 3, 6, dtype=WIDE)
    scales = nn.ParameterList([nn.Parameter(torch.zeros(6)) for _ in range(2)])

    def gated(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.fc(x) * m.scales[0]
        return m.head(y * torch.sigmoid(m.gate(y)) * m.scales[1])

    module = randomised(Program(gated, fc=nn.Linear(6, 6), gate=nn.Linear(6, 6), head=nn.Linear(6, 2), scales=scales))
    folded = suture.passes.fold_scale(suture.trace(module, (x,)))
    with torch.no_grad():
        assert error([module(x)], suture.evaluate(folded, [x])) < 1e-12
    assert "scales.0" not in folded.parameters


def shared(y: torch.Tensor) -> torch.Tensor:
    return y * 2 + y.exp()


def test_a_scale_does_not_divide_a_shared_tensor() -> None:
    module = randomised(
        Program(lambda m, x: m.head(m.fc(m.head(x)) + m.fc(x) * 2), head=nn.Linear(6, 6), fc=nn.Linear(6, 6))
    )
    same = suture.passes.fold_scale(suture.trace(module, (torch.randn(2, 6, dtype=WIDE),)))
    assert same.history[-1].outcome == "not applicable"
    assert "is shared with a place" in notes(same)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 24, 28, 36, 48, 384])
def test_known_hadamard_matrices_have_entries_of_one_magnitude(size: int) -> None:
    matrix = hadamard(size, 0, "x")
    torch.testing.assert_close(matrix.abs(), torch.full((size, size), size**-0.5, dtype=WIDE))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=WIDE))


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(0, 9))
def test_rotations_are_orthogonal_at_every_size(size: int, seed: int) -> None:
    for matrix in (hadamard(size, seed, "x"), random_rotation(size, seed, "x")):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=WIDE))


def test_principal_axes_are_those_of_numpy_largest_first() -> None:
    data = torch.randn(50, 6, dtype=WIDE, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
    axes = principal_axes(data.T @ data)
    energy = (data @ axes.T).square().sum(0)
    assert bool((energy.diff() <= 0).all())
    torch.testing.assert_close(energy, torch.linalg.svdvals(data).square())
