"""Blocks that share weights and differ by low-rank adapters: held against the original module, numpy's singular values and the closed forms."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from growable import TOKENS, Decoder, Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import ENTRIES, randomise

import suture
from suture import passes
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.text import parse_graph
from suture.passes.low_rank.decomposition import Decomposition
from suture.passes.low_rank.ranks import rank_by_energy, ranks_by_budget


def decoder(seed: int = 0, dtype: torch.dtype = torch.float64, **shape: object) -> Decoder:
    torch.manual_seed(seed)
    return randomise(Decoder(Shape(**{"layers": 4, **shape})), seed).to(dtype).eval()  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def original(**shape: object) -> tuple[Decoder, Graph]:
    """A module, not to be changed, and its graph."""
    module = decoder(**shape)
    return module, suture.trace(module, TOKENS, dynamic=[{0: "batch", 1: "sequence"}])


def run(graph: Graph, x: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = suture.to_torch(graph)(x)
    return result


def matrices(module: Decoder) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in module.named_parameters() if n.startswith("layers.") and p.ndim == 2}


def block_of(name: str) -> tuple[int, str]:
    _, number, rest = name.split(".", 2)
    return int(number), rest


@pytest.mark.parametrize(
    ("initialise", "blocks", "shape"),
    [
        ("stepwise", 2, {}),
        ("average", 3, {}),
        ("lower", 1, {"norm": "rms", "bias": False, "groups": 2, "rotary": True, "gated": True}),
        ("average", 1, {"norm": "rms", "bias": False, "groups": 2, "rotary": True, "gated": True}),
    ],
)
def test_full_rank_keeps_the_function(initialise: str, blocks: int, shape: dict[str, object]) -> None:
    module, dense = original(**shape)
    graph = passes.recurse(dense, blocks=blocks, initialise=initialise, rank="full")
    assert graph.history[-1].contract == "exact"
    torch.testing.assert_close(run(graph), module(TOKENS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("initialise", ["stepwise", "average", "lower"])
def test_the_loop_computes_what_the_module_does_with_the_blocks_copied_in_cycles(initialise: str) -> None:
    module, dense = original()
    state = module.state_dict()
    weights = matrices(module)
    for name in weights:
        number, rest = block_of(name)
        kept = number % 2
        sources = {"lower": [kept], "stepwise": [[0, 3][kept]], "average": [kept, kept + 2]}[initialise]
        state[name] = torch.stack([weights[f"layers.{source}.{rest}"] for source in sources]).mean(0)
    graph = passes.recurse(dense, blocks=2, initialise=initialise)
    oracle = decoder()
    oracle.load_state_dict(state)
    torch.testing.assert_close(run(graph), oracle(TOKENS), rtol=0, atol=1e-13)
    assert graph.history[-1].contract == "approximate"


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_error_of_each_matrix_is_the_sum_of_the_squared_singular_values_left_out(rank: int) -> None:
    module, dense = original()
    weights = matrices(module)
    graph = passes.recurse(dense, blocks=2, initialise="average", rank=rank)
    merged = passes.untie(graph)
    for name, weight in weights.items():
        number, rest = block_of(name)
        shared = (weights[f"layers.{number % 2}.{rest}"] + weights[f"layers.{number % 2 + 2}.{rest}"]) / 2
        values = np.linalg.svd((weight - shared).numpy(), compute_uv=False)
        error = (weight - merged.parameters[name].data.detach()).square().sum()
        assert float(error) == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-9)


def test_more_rank_never_leaves_out_more() -> None:
    module, dense = original()
    weights = matrices(module)
    errors = []
    for rank in (0, 5, 16):
        merged = passes.untie(passes.recurse(dense, blocks=1, initialise="lower", rank=rank))
        errors.append(
            [float((weight - merged.parameters[name].data.detach()).norm()) for name, weight in weights.items()]
        )
    assert all(a >= b - 1e-12 for one, other in pairwise(errors) for a, b in zip(one, other, strict=True))
    assert max(errors[-1]) < 1e-12 < max(errors[-2])


def test_the_state_dict_has_each_shared_weight_once_and_names_for_the_loops() -> None:
    module, dense = original()
    graph = passes.recurse(dense, blocks=2, rank=2)
    recursive = suture.to_torch(graph)
    held = dict(recursive.named_parameters())
    state = recursive.state_dict()
    assert "layers.1.feed.up.weight" in held and "layers.3.feed.up.weight" not in held
    assert state["layers.3.feed.up.weight"].data_ptr() == state["layers.1.feed.up.weight"].data_ptr()
    assert state["layers.3.feed.up.lora_a"].shape == (2, 16) and state["layers.3.feed.up.lora_b"].shape == (20, 2)
    assert state["layers.3.before.weight"].data_ptr() != state["layers.1.before.weight"].data_ptr()
    assert set(module.state_dict()) <= set(state) | {"layers.0.attention.frequencies"}
    matrix = sum(weight.numel() for weight in matrices(module).values())
    adapters = sum(2 * sum(weight.shape) for weight in matrices(module).values())
    assert graph.stats().parameters == dense.stats().parameters - matrix // 2 + adapters


def test_biases_and_norms_are_shared_too_on_request() -> None:
    module, dense = original()
    graph = passes.recurse(dense, blocks=2, norms="tie", initialise="lower")
    state = suture.to_torch(graph).state_dict()
    oracle = decoder()
    oracle.load_state_dict(
        {
            name: module.state_dict()[name.replace("layers.2", "layers.0").replace("layers.3", "layers.1")]
            for name in state
        }
    )
    torch.testing.assert_close(run(graph), oracle(TOKENS), rtol=0, atol=1e-13)
    assert not any(name.startswith(("layers.2", "layers.3")) for name, _ in suture.to_torch(graph).named_parameters())


def test_tied_norms_are_exact_only_where_they_were_equal() -> None:
    torch.manual_seed(0)
    fresh = Decoder(Shape(layers=4, bias=False)).double().eval()  # every norm is still one and zero
    assert (
        passes.recurse(suture.trace(fresh, TOKENS), blocks=2, rank="full", norms="tie").history[-1].contract == "exact"
    )
    assert passes.recurse(original()[1], blocks=2, rank="full", norms="tie").history[-1].contract == "approximate"


def test_an_untied_model_loads_into_its_class() -> None:
    dense = original()[1]
    merged = passes.untie(passes.recurse(dense, blocks=2, rank=4))
    assert not any("lora" in name for name in merged.parameters)
    assert not any(parameter.aliases for parameter in merged.parameters.values())
    oracle = decoder(seed=1)
    oracle.load_state_dict(suture.to_torch(merged).state_dict(), strict=True)
    torch.testing.assert_close(oracle(TOKENS), run(passes.recurse(dense, blocks=2, rank=4)), rtol=0, atol=1e-12)


def test_untying_leaves_an_embedding_that_is_the_head_as_it_is() -> None:
    dense = original(tied=True)[1]
    recursive = passes.recurse(dense, blocks=2, rank=1)
    merged = passes.untie(recursive)
    assert merged.parameters["embed.weight"].aliases == ("head.weight",)
    plain = passes.untie(merged)
    assert plain.history[-1].outcome == "not applicable"
    both = passes.untie(merged, at="embed.*")
    assert {"embed.weight", "head.weight"} <= set(both.parameters)


def test_an_embedding_that_is_the_head_and_blocks_without_adapters_untie_apart() -> None:
    module, dense = original(tied=True)
    merged = passes.untie(passes.recurse(dense, blocks=1, initialise="lower"))
    state = suture.to_torch(merged).state_dict()
    for name in matrices(module):
        assert torch.equal(state[name], module.state_dict()[f"layers.0.{block_of(name)[1]}"])
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()


def test_energy_keeps_the_asked_share_of_every_residual_with_the_least_rank() -> None:
    module, dense = original()
    weights = matrices(module)
    graph = passes.recurse(dense, blocks=2, initialise="lower", energy=0.8)
    for name, weight in weights.items():
        number, rest = block_of(name)
        if number < 2:
            assert name.replace("weight", "lora_a") not in graph.parameters
            continue
        values = np.linalg.svd((weight - weights[f"layers.{number - 2}.{rest}"]).numpy(), compute_uv=False) ** 2
        rank = graph.parameters[name.replace("weight", "lora_a")].data.shape[0]
        assert values[:rank].sum() >= 0.8 * values.sum() > values[: rank - 1].sum()


def test_a_budget_is_spent_where_it_leaves_out_least() -> None:
    graph = passes.recurse(original()[1], blocks=2, initialise="lower", budget=700)
    spent = sum(p.data.numel() for name, p in graph.parameters.items() if "lora" in name)
    assert 700 - 40 < spent <= 700


@given(st.lists(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), min_size=1, max_size=3), st.integers(0, 12))
@settings(max_examples=50)
def test_no_other_choice_of_ranks_leaves_out_less_at_equal_prices(rows: list[list[float]], budget: int) -> None:
    values = [torch.tensor(sorted(row, reverse=True), dtype=torch.float64) for row in rows]
    ranks = ranks_by_budget([(each, 2) for each in values], budget)
    kept = sum(float(each[:rank].square().sum()) for each, rank in zip(values, ranks, strict=True))
    best = sum(sorted((x * x for row in rows for x in row), reverse=True)[: budget // 2])
    assert kept == pytest.approx(best)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6), st.floats(0.01, 1))
@settings(max_examples=50)
def test_the_rank_by_energy_is_the_least_that_suffices(row: list[float], share: float) -> None:
    values = torch.tensor(sorted(row, reverse=True), dtype=torch.float64)
    rank, squares = rank_by_energy(values, share), values.square()
    assert squares[:rank].sum() >= share * squares.sum() * (1 - 1e-12)
    assert rank == 0 or squares[: rank - 1].sum() < share * squares.sum() * (1 + 1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=40)
def test_the_factors_are_the_best_approximation(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = Decomposition.of(matrix)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    for rank in range(min(rows, columns) + 1):
        a, b = found.factors(rank)
        assert float((matrix - b @ a).square().sum()) == pytest.approx(float((values[rank:] ** 2).sum()), abs=1e-10)
        assert found.error(rank) == pytest.approx(float((values[rank:] ** 2).sum()), abs=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_recursive_models_of_a_library_untie_into_its_classes(name: str) -> None:
    entry = ENTRIES[name]
    module = randomise(entry.module())
    args, kwargs = entry.args()
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    assert passes.recurse(graph, blocks=1, rank="full").history[-1].contract == "exact"
    low = passes.recurse(graph, blocks=1, rank=2)
    oracle = entry.module(seed=1).eval()
    oracle.load_state_dict(suture.to_torch(passes.untie(low)).state_dict(), strict=True)
    with torch.no_grad():
        received, expected = suture.to_torch(low)(*args, **kwargs).logits, oracle(*args, **kwargs).logits
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.middle = nn.Conv2d(12, 12, 3, padding=1, groups=groups)
        self.second = nn.Conv2d(12, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.middle(torch.relu(self.norm(self.first(x)))))


def convolutional(groups: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    module = randomise(nn.Sequential(*[Residual(groups) for _ in range(4)])).double().eval()
    return module, torch.randn(2, 8, 5, 5, dtype=torch.float64)


def test_convolutions_take_adapters_of_two_convolutions() -> None:
    module, x = convolutional(groups=1)
    graph = suture.trace(module, x)
    exact = passes.recurse(graph, blocks=2, rank="full")
    torch.testing.assert_close(run(exact, x), module(x), rtol=0, atol=1e-12)
    low = passes.recurse(graph, blocks=2, rank=2)
    assert low.parameters["2.first.lora_a"].data.shape == (2, 8, 3, 3)
    assert low.parameters["2.first.lora_b"].data.shape == (12, 2, 1, 1)
    torch.testing.assert_close(run(passes.untie(low), x), run(low, x), rtol=0, atol=1e-12)
    assert "3.norm.running_mean" in low.parameters


def test_grouped_convolutions_stay_each_blocks_own_and_say_so() -> None:
    module, x = convolutional(groups=12)
    graph = passes.recurse(suture.trace(module, x), blocks=1, rank="full")
    assert any("0.middle.weight" in note and "12 groups" in note for note in graph.history[-1].notes)
    torch.testing.assert_close(run(graph, x), module(x), rtol=0, atol=1e-12)


def test_training_moves_the_shared_weight_by_the_gradients_of_all_loops() -> None:
    dense = original()[1]
    recursive = suture.to_torch(passes.recurse(dense, blocks=2, rank=2, initialise="lower"))
    oracle = decoder()
    oracle.load_state_dict(
        suture.to_torch(passes.untie(passes.recurse(dense, blocks=2, rank=2, initialise="lower"))).state_dict()
    )
    recursive(TOKENS).square().mean().backward()
    oracle(TOKENS).square().mean().backward()
    gradients = {name: p.grad for name, p in oracle.named_parameters()}
    total = gradients["layers.0.feed.up.weight"] + gradients["layers.2.feed.up.weight"]
    held = dict(recursive.named_parameters())
    torch.testing.assert_close(held["layers.0.feed.up.weight"].grad, total)
    up, down = held["layers.2.feed.up.lora_b"], held["layers.2.feed.up.lora_a"]
    torch.testing.assert_close(up.grad, gradients["layers.2.feed.up.weight"] @ down.T)


def test_the_onnx_file_holds_the_shared_weights_once(tmp_path: Path) -> None:
    import onnxruntime

    dense = original(dtype=torch.float32, width=32, hidden=128)[1]
    graph = passes.recurse(dense, blocks=1, rank=1)
    suture.export_onnx(dense, tmp_path / "dense.onnx")
    suture.export_onnx(graph, tmp_path / "recursive.onnx")
    assert (tmp_path / "recursive.onnx").stat().st_size < 0.5 * (tmp_path / "dense.onnx").stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / "recursive.onnx"), providers=["CPUExecutionProvider"])
    (received,) = session.run(None, {session.get_inputs()[0].name: TOKENS.numpy()})
    torch.testing.assert_close(torch.from_numpy(received), run(graph), rtol=1e-4, atol=1e-5)


def test_the_graph_prints_and_unties_after_parsing() -> None:
    graph = passes.recurse(original()[1], blocks=2, rank=2)
    again = parse_graph(str(graph))
    for name, parameter in again.parameters.items():
        parameter.assign(graph.parameters[name].data)
    torch.testing.assert_close(run(passes.untie(again)), run(graph), rtol=0, atol=1e-12)


def test_a_plan_without_weights_has_the_shapes_of_the_run() -> None:
    dense = original()[1]
    empty = dense.copy()
    for parameter in empty.parameters.values():
        parameter.assign(parameter.data.detach().to("meta"))
    planned = passes.recurse(empty, blocks=2, rank=3)
    done = passes.recurse(dense, blocks=2, rank=3)
    assert {n: p.type for n, p in planned.parameters.items()} == {n: p.type for n, p in done.parameters.items()}


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"blocks": 2, "rank": 17}, Code.RANK, "0 to 16, or 'full', would be right"),
        ({"blocks": 2, "rank": -1}, Code.RANK, "a rank of -1"),
        ({"blocks": 2, "energy": 1.5}, Code.RANK, "the share 1.5"),
        ({"blocks": 2, "budget": -1}, Code.RANK, "a budget of -1"),
        ({"blocks": 2, "rank": 1, "energy": 0.5}, Code.RANK, "exclude each other"),
        ({"blocks": 5}, Code.GROWTH, "1 to 4 would be right"),
        ({"blocks": 0}, Code.GROWTH, "0 shared blocks of 4"),
        ({"blocks": 2, "at": "layer"}, Code.SITE, "the nearest is 'layers'"),
    ],
)
def test_bad_options_get_one_line(options: dict[str, object], code: Code, text: str) -> None:
    with pytest.raises(SutureError, match=text) as caught:
        passes.recurse(original()[1], **options)
    assert caught.value.code is code


def test_blocks_that_are_all_their_own_or_have_nothing_of_their_own_are_not_applicable() -> None:
    tied = passes.recurse(original()[1], blocks=1, norms="tie")
    assert passes.recurse(tied, blocks=2).history[-1].outcome == "not applicable"
    assert passes.recurse(original()[1], blocks=4).history[-1].outcome == "not applicable"
