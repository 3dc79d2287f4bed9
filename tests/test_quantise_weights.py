"""Weight-only integers: the grids against numpy, reconstruction against brute force and least squares, and the pass on small models."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import suture
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Use
from suture.ir.semantics import evaluate
from suture.passes.contract import deviation
from suture.passes.quantise_weights.gptq import reconstruct, round_to_nearest
from suture.passes.quantise_weights.grid import Scheme, fit
from suture.passes.quantise_weights.inputs import data_rows
from suture.passes.quantise_weights.sweep import Sweep


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Feed(nn.Module):
    """Two layers with a norm between them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(width, 64), nn.LayerNorm(64), nn.Linear(64, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.norm(self.up(x))))


@functools.cache
def feed() -> tuple[Graph, torch.Tensor]:
    """A traced graph and what it was traced on; tests do not change them."""
    torch.manual_seed(0)
    x = torch.randn(6, 32)
    return suture.trace(Feed().eval(), x), x


# grids


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_symmetric_grid_is_numpys_formula(bits: int) -> None:
    weight = random(5, 12).numpy()
    highest = 2 ** (bits - 1) - 1
    scale = np.maximum(weight.max(1) / highest, weight.min(1) / -(highest + 1)).astype(np.float32).astype(np.float64)
    grid = fit(torch.from_numpy(weight), Scheme(bits))
    np.testing.assert_allclose(grid.scale[:, 0], scale, rtol=2e-7)
    expected = np.clip(np.round(weight / grid.scale.numpy()), -highest - 1, highest)
    np.testing.assert_array_equal(grid.integers(torch.from_numpy(weight)), expected)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_grid_with_zero_points_is_numpys_formula(bits: int) -> None:
    weight = random(5, 12).numpy() + 0.5
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    grid = fit(torch.from_numpy(weight), Scheme(bits, symmetric=False))
    scale = grid.scale.numpy()[:, 0]
    np.testing.assert_allclose(scale, (high - low) / (2**bits - 1), rtol=2e-7)
    np.testing.assert_array_equal(grid.zero[:, 0], np.round(-low / scale))
    rounded = (
        np.clip(np.round(weight / scale[:, None]) + grid.zero.numpy(), 0, 2**bits - 1) - grid.zero.numpy()
    ) * scale[:, None]
    np.testing.assert_allclose(grid.rounded(torch.from_numpy(weight)), rounded)


def test_each_block_has_the_grid_of_its_columns_alone() -> None:
    weight = random(3, 64)
    whole = fit(weight, Scheme(4, 16), search=True)
    for k in range(4):
        alone = fit(weight[:, 16 * k : 16 * k + 16], Scheme(4), search=True)
        assert torch.equal(whole.scale[:, k], alone.scale[:, 0])
    assert torch.equal(whole.rounded(weight)[:, 16:32], whole.rounded(weight[:, 16:32], first=16))


@settings(max_examples=40)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    search=st.booleans(),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
)
def test_rounding_is_off_by_half_a_step_at_most_unless_clipped(
    bits: int, symmetric: bool, search: bool, seed: int, spread: float
) -> None:
    weight = random(3, 16, seed=seed) * spread
    plain = fit(weight, Scheme(bits, symmetric=symmetric))
    assert bool(
        (
            (plain.rounded(weight) - weight).abs() <= 0.5001 * plain.scale + (0.5 * plain.scale if not symmetric else 0)
        ).all()
    )
    searched = fit(weight, Scheme(bits, symmetric=symmetric), search=search)
    before, after = ((each.rounded(weight) - weight).square().sum(1) for each in (plain, searched))
    assert bool((after <= before * (1 + 1e-12)).all())


def test_importance_moves_the_search_to_what_weighs() -> None:
    weight = random(1, 32)
    importance = torch.ones(32, dtype=torch.float64)
    importance[int(weight[0].abs().argmax())] = 1e6
    heavy, light = fit(weight, Scheme(2), search=True, importance=importance), fit(weight, Scheme(2), search=True)
    assert float(heavy.scale) > float(light.scale)


# reconstruction


def sequential_least_squares(weight: np.ndarray, data: np.ndarray, scale: float, low: int, high: int) -> np.ndarray:
    """Round column after column; the others take their least-squares optimum given those that are rounded. By numpy alone."""
    columns = len(weight)
    rounded = np.zeros(columns)
    for k in range(columns):
        target = weight @ data - rounded[:k] @ data[:k]
        rest = np.linalg.lstsq(data[k:].T, target, rcond=None)[0]
        rounded[k] = np.clip(np.round(rest[0] / scale), low, high) * scale
    return rounded


@pytest.mark.parametrize("seed", range(6))
def test_reconstruction_is_sequential_least_squares(seed: int) -> None:
    weight, data = random(3, 7, seed=seed), random(7, 40, seed=seed + 100)
    data[1] += data[0]  # inputs that say alike things are what it makes use of
    made = reconstruct(weight, 2 * data @ data.T, Scheme(3), damping=1e-12)
    scale = made.grid.scale[:, 0].numpy()
    for row in range(3):
        expected = sequential_least_squares(weight[row].numpy(), data.numpy(), scale[row], -4, 3)
        np.testing.assert_allclose(made.numbers()[row], expected, atol=1e-9)


@pytest.mark.parametrize("by_importance", [False, True])
def test_reconstruction_lies_between_the_best_and_the_nearest(by_importance: bool) -> None:
    sums = np.zeros(3)
    for seed in range(20):
        weight, data = random(1, 5, seed=seed), random(5, 30, seed=seed + 50)
        data[2] += data[0] - data[1]
        scheme = Scheme(2)
        made = reconstruct(weight, 2 * data @ data.T, scheme, damping=1e-9, by_importance=by_importance)
        scale = made.grid.scale

        def loss(numbers: torch.Tensor, weight: torch.Tensor = weight, data: torch.Tensor = data) -> float:
            return float(((weight - numbers) @ data).square().sum())

        choices = torch.tensor(list(itertools.product(range(-2, 2), repeat=5)), dtype=torch.float64)
        best = min(loss(choice[None] * scale) for choice in choices)
        nearest = loss(round_to_nearest(weight, scheme).numbers())
        assert loss(made.numbers()) >= best - 1e-9
        sums += (best, loss(made.numbers()), nearest)
    assert sums[0] < sums[1] < 0.8 * sums[2]


@pytest.mark.parametrize("block", [16, 256])
def test_reconstruction_in_blocks_fits_each_block_when_it_comes_to_it(block: int) -> None:
    weight, data = random(4, 512), random(512, 700, seed=1)
    data[1::2] += data[::2]
    hessian = 2 * data @ data.T
    made = reconstruct(weight, hessian, Scheme(4, block), search=True)
    error = ((made.numbers() - weight) @ data).square().sum()
    nearest = ((round_to_nearest(weight, Scheme(4, block), search=True).numbers() - weight) @ data).square().sum()
    assert made.grid.scale.shape == (4, 512 // block)
    assert float(error) < 0.8 * float(nearest)


def test_inputs_that_say_nothing_do_not_break_reconstruction() -> None:
    weight, data = random(2, 6), random(6, 20)
    data[[1, 4]] = 0
    made = reconstruct(weight, 2 * data @ data.T, Scheme(4))
    assert bool(made.numbers().isfinite().all())
    silent = reconstruct(weight, torch.zeros(6, 6), Scheme(4))
    assert torch.equal(silent.numbers(), round_to_nearest(weight, Scheme(4)).numbers())


@pytest.mark.parametrize("kind", ["conv1d", "conv2d"])
def test_what_meets_a_convolutions_weight_is_what_it_multiplies(kind: str) -> None:
    shapes = {"conv1d": ((2, 3, 9), (4, 3, 3)), "conv2d": ((2, 3, 7, 6), (4, 3, 3, 2))}[kind]
    graph = Graph("one")
    x = graph.add_input("x", suture.ir.types.TensorType(torch.float64, shapes[0]))
    weight = graph.add_parameter("w", random(*shapes[1]))
    node = graph.add(
        "conv", [x, weight], {"stride": (2,), "padding": (1,), "dilation": (2,) if kind == "conv1d" else (1,)}
    )
    graph.set_outputs(node.outputs)
    tensor = random(*shapes[0], seed=1)
    rows = data_rows(Use(node, 1), tensor)
    expected = evaluate(graph, [tensor])[0]
    product = rows @ weight.data.reshape(4, -1).T
    torch.testing.assert_close(product.reshape(2, -1, 4).transpose(1, 2), expected.reshape(2, 4, -1))


# the pass


def test_weights_become_integers_that_stand_for_the_same_numbers() -> None:
    graph, x = feed()
    made = suture.passes.quantise_weights(graph, bits=4, block=32, method="nearest")
    assert {"up.weight_integers", "up.weight_scale", "down.weight_integers"} <= set(made.parameters)
    assert "up.weight" not in made.parameters and made.parameters["up.weight_integers"].data.dtype == torch.int8
    module = Feed()
    module.load_state_dict({name: parameter.data for name, parameter in graph.parameters.items()})
    for layer in (module.up, module.down):
        data = layer.weight.detach().double()
        blocks = data.reshape(len(data), -1, 32)
        scale = torch.maximum(blocks.amax(2) / 7, blocks.amin(2) / -8)[..., None].float().double()
        layer.weight.data = ((blocks / scale).round().clamp(-8, 7) * scale).reshape(data.shape).float()
    torch.testing.assert_close(evaluate(made, [x])[0], module.eval()(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(suture.to_torch(made)(x), evaluate(made, [x])[0])


def test_reconstruction_moves_the_function_less_than_rounding() -> None:
    graph, _ = feed()
    torch.manual_seed(1)
    mixing = torch.randn(32, 32) @ torch.diag(torch.logspace(0, -3, 32)) @ torch.randn(32, 32)
    data = torch.randn(300, 32) @ mixing
    graph = suture.trace(suture.to_torch(graph), torch.randn(300, 32))
    expected = evaluate(graph, [data])[0]
    errors = {}
    for method in ("nearest", "search", "gptq"):
        made = suture.passes.quantise_weights(graph, bits=3, method=method, data={"x": data})
        errors[method] = float((evaluate(made, [data])[0] - expected).detach().square().mean())
        assert made.history[-1].deviation is not None
    assert errors["gptq"] < 0.5 * errors["nearest"]


def test_a_table_tied_with_a_head_stays_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mid = nn.Embedding(40, 32), nn.Linear(32, 32)
            self.head = nn.Linear(32, 40, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.mid(self.table(ids)))

    torch.manual_seed(0)
    ids = torch.randint(0, 40, (4, 6))
    graph = suture.trace(Tied().eval(), ids)
    real = suture.passes.quantise_weights(graph, bits=8)
    assert any("looks it up" in note for note in real.history[-1].notes)
    assert "table.weight" in real.parameters and "mid.weight" not in real.parameters
    for data in (None, {"ids": ids}):
        both = suture.passes.quantise_weights(graph, bits=8, embeddings=True, data=data)
        (name,) = [
            name
            for name in both.parameters
            if name.endswith("_integers") and both.parameters[name].rank == 2 and both.parameters[name].shape[0] == 40
        ]
        (reader,) = both.parameters[name].uses
        assert sorted(use.node.operator.name for use in reader.node.output.uses) == ["embedding", "linear"]
        assert deviation(evaluate(graph, [ids])[0], evaluate(both, [ids])[0]) < 0.02


def test_layers_are_chosen_and_left_out_by_pattern() -> None:
    graph, _ = feed()
    made = suture.passes.quantise_weights(graph, at=("up",))
    assert "down.weight" in made.parameters and "up.weight" not in made.parameters
    made = suture.passes.quantise_weights(graph, exclude=("up*",))
    assert "up.weight" in made.parameters and any("excluded" in note for note in made.history[-1].notes)
    with pytest.raises(SutureError) as caught:
        suture.passes.quantise_weights(graph, at=("upp",))
    assert caught.value.code is Code.SITE and "'up'" in str(caught.value)


def test_half_precision_and_float64_keep_their_types() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.manual_seed(0)
        x = torch.randn(6, 32, dtype=dtype)
        graph = suture.trace(Feed().eval().to(dtype), x)
        made = suture.passes.quantise_weights(graph, bits=8, block=32, data={"x": x})
        assert evaluate(made, [x])[0].dtype == dtype
        torch.testing.assert_close(evaluate(made, [x])[0], evaluate(graph, [x])[0], atol=0.1, rtol=0.1)


def test_a_graph_without_numbers_gets_the_same_shapes() -> None:
    graph, x = feed()
    bare = graph.copy()
    for parameter in bare.parameters.values():
        parameter.assign(parameter.data.to("meta"))
    for options in ({}, {"block": 32}, {"bits": 8, "symmetric": False}, {"method": "gptq", "data": {"x": x}}):
        planned = suture.passes.quantise_weights(bare, **options)
        done = suture.passes.quantise_weights(graph, **options)
        assert {n: p.type for n, p in planned.parameters.items()} == {n: p.type for n, p in done.parameters.items()}


def test_blocks_that_do_not_divide_are_halved_or_left_out_and_said_so() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 48))
    graph = suture.trace(module.eval(), torch.randn(2, 48))
    made = suture.passes.quantise_weights(graph, bits=4, block=64)
    assert made.parameters["0.weight_scale"].shape == (40, 3)
    assert made.parameters["2.weight_scale"].shape == (100,)
    assert any("does not divide 40" in note for note in made.history[-1].notes)


def test_what_would_not_be_smaller_stays() -> None:
    graph = suture.trace(nn.Linear(1, 64).eval(), torch.randn(2, 1))
    made = suture.passes.quantise_weights(graph, bits=8)
    assert made.history[-1].outcome == "not applicable"


def test_the_text_of_the_graph_reads_back() -> None:
    graph, x = feed()
    made = suture.passes.quantise_weights(graph, bits=4, block=32, symmetric=False)
    assert str(suture.ir.text.parse_graph(str(made))) == str(made)
    again = suture.passes.quantise_weights(graph, bits=4, block=32, symmetric=False)
    assert torch.equal(evaluate(made, [x])[0], evaluate(again, [x])[0])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"bits": 1}, Code.QUANTISER),
        ({"bits": 16}, Code.QUANTISER),
        ({"block": 24}, Code.QUANTISER),
        ({"block": 8}, Code.QUANTISER),
        ({"method": "gptq"}, Code.CALIBRATION),
        ({"method": "gptq", "data": {}}, Code.CALIBRATION),
        ({"data": {"y": torch.zeros(6, 32)}}, Code.CALIBRATION),
        ({"data": {"x": torch.zeros(0, 32)}}, Code.CALIBRATION),
        ({"data": {"x": torch.zeros(6, 31)}}, Code.INPUT),
        ({"damping": 0.0}, Code.OPTION),
        ({"method": "magic"}, Code.OPTION),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, object], code: Code) -> None:
    graph, _ = feed()
    with pytest.raises(SutureError) as caught:
        suture.passes.quantise_weights(graph, **options)
    assert caught.value.code is code
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_named() -> None:
    graph, x = feed()
    broken = graph.copy()
    broken.parameters["down.weight"].assign(torch.full((32, 64), torch.nan))
    for data in (None, {"x": x}):
        with pytest.raises(SutureError, match=r"S462.*down\.weight"):
            suture.passes.quantise_weights(broken, data=data)


def test_zero_weights_and_silent_data_are_legal() -> None:
    graph, x = feed()
    silent = graph.copy()
    silent.parameters["up.weight"].assign(torch.zeros(64, 32))
    made = suture.passes.quantise_weights(silent, data={"x": torch.zeros_like(x)})
    torch.testing.assert_close(evaluate(made, [x])[0], evaluate(silent, [x])[0], atol=0.05, rtol=0.1)


def test_a_sweep_gives_what_evaluation_gives() -> None:
    graph, x = feed()
    sweep = Sweep(graph, {"x": x})
    (last,) = [node for node in graph.nodes if node.path == "down"]
    sweep.run_to(last)
    seen: dict[str, torch.Tensor] = {}
    evaluate(graph, [x], watch=lambda value, tensor: seen.__setitem__(value.name, tensor))
    (operand,) = [value for value in last.inputs[:1] if value is not None]
    assert torch.equal(sweep.tensors(operand)[0], seen[operand.name])


def test_a_script_says_it(tmp_path: Path) -> None:
    script = tmp_path / "small.suture"
    script.write_text(
        'suture 1\nmodel net = torch "test_quantise_weights:Feed" input f32[6, 32]\n\nquantise_weights net bits 4 block 32 exclude "down"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        made = suture.run(script)
    assert made is not None
