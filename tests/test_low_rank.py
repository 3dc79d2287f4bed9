"""Layers as products of smaller ones: held against the original module, numpy's singular values and closed forms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from growable import TOKENS, Decoder, Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import ENTRIES, randomise

import suture
from suture import passes, surgery
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.low_rank.allocation import allocate
from suture.passes.low_rank.candidate import Candidate
from suture.passes.low_rank.covariance import patches
from suture.passes.low_rank.decomposition import Decomposition, balanced, principal_basis
from suture.passes.low_rank.layers import find_layers
from suture.passes.registry import Notes

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices here are too small for threads to be worth waking."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


class Mixed(nn.Module):
    """Every kind of layer: kernels with strides and dilations, groups, an adjoint, linear maps, three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 24, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.g = nn.Conv2d(24, 24, 3, padding=1, groups=4, bias=False)
        self.t = nn.ConvTranspose2d(24, 8, 3, stride=2, padding=1, output_padding=1)
        self.v = nn.Conv3d(8, 6, (1, 3, 2), stride=(1, 1, 2), padding=(0, 1, 0))
        self.l = nn.Linear(6, 40, bias=False)
        self.m = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        x = self.t(torch.relu(self.g(torch.relu(self.b(x)))))
        x = self.v(x[:, :, None]).mean((2, 3, 4))
        return self.m(torch.relu(self.l(x)))


@lru_cache(maxsize=2)
def mixed() -> tuple[Mixed, Graph, torch.Tensor]:
    torch.manual_seed(0)
    module = randomise(Mixed()).to(F64).eval()
    x = torch.randn(4, 3, 8, 8, dtype=F64)
    return module, suture.trace(module, x, dynamic=[{0: "batch"}]), x


def run(graph: Graph, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = suture.to_torch(graph)(*inputs)
    return result


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Graph:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return suture.trace(
        nn.Sequential(layer), torch.zeros(2, weight.shape[1], dtype=weight.dtype), dynamic=[{0: "batch"}]
    )


def product(graph: Graph, name: str = "0") -> torch.Tensor:
    data = {key: p.data.detach().to(F64) for key, p in graph.parameters.items()}
    return data[f"{name}.expand.weight"].flatten(1) @ data[f"{name}.reduce.weight"].flatten(1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("split", ["channel", "spatial", "tucker"])
def test_full_ranks_keep_the_function_and_say_so(split: str) -> None:
    module, graph, x = mixed()
    whole = passes.factorise(graph, rank=1.0, split=split, always=True)
    assert whole.history[-1].contract == "exact"
    torch.testing.assert_close(run(whole, x), module(x).detach(), rtol=0, atol=1e-12)
    held = set(suture.to_torch(whole).state_dict())
    assert {"l.reduce.weight", "l.expand.weight", "m.expand.bias", "a.expand.bias"} <= held
    assert ("a.core.weight" in held) == (split == "tucker") and "m.bias" not in held


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
@settings(max_examples=15)
def test_no_product_of_the_rank_is_nearer(rows: int, columns: int, seed: int) -> None:
    weight = random(rows, columns, seed=seed)
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    for rank in {1, min(rows, columns)}:
        low = passes.factorise(linear(weight), rank=rank, always=True)
        error = float((weight - product(low)).square().sum())
        assert error == pytest.approx(float((values[rank:] ** 2).sum()), abs=1e-10)


@pytest.mark.parametrize(("rows", "columns"), [(150, 200), (200, 150)])
def test_large_matrices_lose_what_the_singular_values_say(rows: int, columns: int) -> None:
    weight = random(rows, 140) @ random(140, columns, seed=1)
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    found = Decomposition.of(weight)
    np.testing.assert_allclose(found.values[:140].numpy(), values[:140], rtol=1e-7)
    for rank in (1, 40, 139):
        a, b = found.factors(rank)
        assert float((weight - b @ a).norm()) == pytest.approx(float(np.sqrt((values[rank:] ** 2).sum())), rel=1e-7)
    torch.testing.assert_close(found.columns @ found.rows, weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (10, 6), (150, 140)])
def test_the_whitened_optimum_is_the_closed_form(rows: int, columns: int) -> None:
    """The least of |(W - W') X| at rank r is the sum of the singular values of W L beyond it, with L L^T = X X^T (Eckart and Young in the metric)."""
    weight, rank = random(rows, columns), 4
    x = random(400, columns, seed=1) @ torch.diag(torch.linspace(0.1, 3, columns, dtype=F64)) + 1
    graph = linear(weight)
    name = graph.inputs[0].name
    factor = np.linalg.cholesky((x.T @ x / len(x)).numpy())
    least = float((np.linalg.svd(weight.numpy() @ factor, compute_uv=False)[rank:] ** 2).sum())

    def error(by: str) -> float:
        low = passes.factorise(graph, rank=rank, by=by, always=True, **({} if by == "svd" else {"data": {name: x}}))
        return float(((weight - product(low)) @ x.T).square().sum() / len(x))

    assert error("whitened") == pytest.approx(least, rel=1e-6)
    assert all(error(by) >= least * (1 - 1e-6) for by in ("svd", "asvd", "corda"))


def test_asvd_and_corda_are_what_their_papers_say() -> None:
    weight, rank = random(7, 5), 2
    x = random(50, 5, seed=1) * torch.tensor([0.1, 1, 5, 0.5, 2], dtype=F64) + 0.3
    graph = linear(weight)
    data = {graph.inputs[0].name: x}
    scales = {
        "asvd": torch.diag(x.abs().mean(0) ** 0.25),
        "corda": x.T @ x / len(x),
    }
    for by, scale in scales.items():
        u, s, v = np.linalg.svd((weight @ scale).numpy())
        expected = u[:, :rank] * s[:rank] @ v[:rank] @ np.linalg.inv(scale.numpy())
        low = passes.factorise(graph, rank=rank, by=by, alpha=0.25, data=data, always=True)
        np.testing.assert_allclose(product(low).numpy(), expected, atol=1e-6)


def test_the_patches_of_a_layer_are_what_its_matrix_multiplies() -> None:
    module, graph, x = mixed()
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, child in module.named_children():
        child.register_forward_hook(lambda _, i, o, name=name: seen.update({name: (i[0], o)}))
    module(x)
    for layer in find_layers(graph, None, (), None, Notes()):
        name = layer.name.removesuffix(".weight")
        if name == "t":
            continue
        entry, result = (t.detach() for t in seen[name])
        child = module.get_submodule(name)
        columns = patches(entry, layer)
        weight = child.weight.detach().flatten(1).reshape(layer.groups, -1, columns.shape[2])
        rows = (weight @ columns.transpose(1, 2)).flatten(0, 1).T
        bias = 0 if child.bias is None else child.bias.detach()
        torch.testing.assert_close(rows + bias, result.movedim(1, -1).flatten(0, -2), rtol=0, atol=1e-11)


def test_whitening_loses_least_of_the_results_of_a_convolution() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 12, 3, stride=2, padding=1, dilation=2, groups=2).to(F64)
    x = F.avg_pool2d(torch.randn(8, 6, 24, 24, dtype=F64), 2) * torch.linspace(0.2, 2, 6, dtype=F64)[:, None, None]
    graph = suture.trace(nn.Sequential(layer), x, dynamic=[{0: "batch"}])
    data = {graph.inputs[0].name: x}
    expected = layer(x).detach()
    errors = {}
    for by in ("svd", "whitened"):
        low = passes.factorise(graph, rank=3, by=by, **({} if by == "svd" else {"data": data}))
        errors[by] = float((run(low, x) - expected).square().sum())
    columns = F.unfold(x, 3, 2, 1, 2).unflatten(1, (2, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    least = 0.0
    for group in range(2):
        root = np.linalg.cholesky((columns[group].T @ columns[group]).numpy())
        values = np.linalg.svd(
            layer.weight.detach()[group * 6 : group * 6 + 6].flatten(1).numpy() @ root, compute_uv=False
        )
        least += float((values[3:] ** 2).sum())
    assert errors["whitened"] == pytest.approx(least, rel=1e-6)
    assert errors["svd"] > 1.05 * errors["whitened"]


@pytest.mark.parametrize(("split", "layout"), [("channel", (0, 1, 2, 3)), ("spatial", (0, 3, 1, 2))])
def test_a_kernel_loses_what_its_matrix_loses(split: str, layout: tuple[int, ...]) -> None:
    kernel = random(6, 5, 3, 4)
    layer = nn.Conv2d(5, 6, (3, 4), bias=False).to(F64)
    with torch.no_grad():
        layer.weight.copy_(kernel)
    units = torch.eye(60, dtype=F64).reshape(60, 5, 3, 4)  # of each input and offset: the results are the kernel
    graph = suture.trace(nn.Sequential(layer), units)
    low = passes.factorise(graph, rank=3, split=split, always=True)
    recovered = run(low, units).reshape(60, 6).T.reshape(6, 5, 3, 4)
    matrix = kernel.permute(*layout).reshape(6 if split == "channel" else 24, -1).numpy()
    left = float((np.linalg.svd(matrix, compute_uv=False)[3:] ** 2).sum())
    assert float((recovered - kernel).square().sum()) == pytest.approx(left, rel=1e-9)


def tucker_error(kernel: torch.Tensor, ranks: int, **options: object) -> float:
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], bias=False).to(F64)
    with torch.no_grad():
        layer.weight.copy_(kernel)
    graph = suture.trace(nn.Sequential(layer), torch.zeros(1, kernel.shape[1], 8, 8, dtype=F64))
    low = passes.factorise(graph, rank=ranks, split="tucker", always=True, **options)
    p = {name.removeprefix("0."): value.data.detach() for name, value in low.parameters.items()}
    whole = torch.einsum(
        "op,pqhw,qi->oihw", p["expand.weight"][:, :, 0, 0], p["core.weight"], p["reduce.weight"][:, :, 0, 0]
    )
    return float((kernel - whole).square().sum())


def test_tucker_is_the_higher_order_decomposition_and_sweeps_only_help() -> None:
    kernel, rank = random(9, 7, 3, 3), 4
    u = np.linalg.svd(kernel.flatten(1).numpy())[0][:, :rank]
    v = np.linalg.svd(kernel.transpose(0, 1).flatten(1).numpy())[0][:, :rank]
    projected = np.einsum("oihw,op,iq,xp,yq->xyhw", kernel.numpy(), u, v, u, v, optimize=True)
    plain = tucker_error(kernel, rank)
    assert plain == pytest.approx(float(((kernel.numpy() - projected) ** 2).sum()), rel=1e-9)
    refined = [tucker_error(kernel, rank, sweeps=count) for count in (1, 3, 20)]
    assert plain >= refined[0] >= refined[1] >= refined[2] - 1e-12
    exact = torch.einsum("op,pqhw,iq->oihw", random(9, 2), random(2, 3, 3, 3, seed=3), random(7, 3, seed=2))
    assert tucker_error(exact, 3) < 1e-18


def test_what_the_record_says_is_kept_is_kept() -> None:
    _, graph, _ = mixed()
    for split in ("channel", "tucker"):
        low = passes.factorise(graph, at="b", rank=6, split=split)
        kernel = graph.parameters["b.weight"].data.detach()
        p = {name: value.data.detach() for name, value in low.parameters.items()}
        first, last = p["b.reduce.weight"], p["b.expand.weight"][:, :, 0, 0]
        if split == "tucker":
            whole = torch.einsum("op,pqhw,qi->oihw", last, p["b.core.weight"], first[:, :, 0, 0])
        else:
            whole = torch.einsum("or,rihw->oihw", last, first)
        share = 1 - float((kernel - whole).square().sum() / kernel.square().sum())
        assert f"keeps {share:.4f} of the energy" in low.history[-1].notes[0]
        assert low.stats().parameters < graph.stats().parameters


@pytest.mark.parametrize("count", ["parameters", "macs"])
@pytest.mark.parametrize("split", ["channel", "spatial", "tucker"])
def test_what_is_counted_is_what_the_graph_costs(split: str, count: str) -> None:
    _, graph, _ = mixed()
    low = passes.factorise(graph, budget=0.6, split=split, count=count)
    before, after = getattr(graph.stats(), count), getattr(low.stats(), count)
    assert 0.8 * 0.6 * before < after <= 0.6 * before  # it is spent
    layers = {layer.name: layer for layer in find_layers(graph, None, (), None, Notes())}
    assert layers["b.weight"].elements == graph.parameters["b.weight"].data.numel()


@given(st.lists(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), min_size=1, max_size=3), st.floats(0.2, 1.0))
@settings(max_examples=40)
def test_the_budget_is_spent_nearly_as_well_as_can_be(spectra: list[list[float]], share: float) -> None:
    """Against all combinations: what is lost to the optimum is at most one step of one layer."""
    import itertools

    candidates = []
    for row in spectra:
        energy = torch.tensor(sorted(row, reverse=True), dtype=F64).square()
        ranks = torch.arange(1, len(row) + 1)
        dense = 2 * len(row) + 1
        shares = energy.cumsum(0) / energy.sum()
        candidates.append(Candidate(None, shares, 2 * ranks, 2 * ranks, (dense, dense), lambda r: []))  # type: ignore[arg-type]
    total = sum(c.dense[0] for c in candidates)
    budget = max(int(share * total), 2 * len(candidates))
    chosen = allocate(candidates, "parameters", budget)

    def worth(ranks: object) -> tuple[int, float]:
        rows = [
            (c.dense[0], 1.0) if r is None else (2 * r[0], float(c.shares[r[0] - 1]))
            for c, r in zip(candidates, ranks, strict=True)
        ]  # type: ignore[call-overload]
        return sum(cost for cost, _ in rows), sum(kept for _, kept in rows)

    cost, kept = worth(chosen)
    options = [[None, *((k + 1,) for k in range(len(c.shares)))] for c in candidates]
    best = max(k for spent, k in map(worth, itertools.product(*options)) if spent <= budget)
    assert cost <= budget
    assert kept <= best + 1e-9
    assert kept >= best - 1.0  # one layer's energy


def test_ranks_that_save_multiplications_but_no_parameters_are_whole() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=(0, 6)).to(F64)  # many more columns come out than go in
    x = torch.randn(2, 4, 12, 5, dtype=F64)
    graph = suture.trace(nn.Sequential(layer), x)
    low = passes.factorise(graph, rank=8, split="spatial", count="macs")
    assert low.parameters["0.reduce.weight"].data.shape[0] == 8 and low.stats().macs < graph.stats().macs
    assert low.stats().parameters > graph.stats().parameters


def test_more_energy_and_more_rank_lose_less() -> None:
    weight = random(12, 16)
    graph = linear(weight)
    errors = [
        float((weight - product(passes.factorise(graph, energy=e, always=True))).square().sum())
        for e in (0.5, 0.8, 0.95)
    ]
    total = float(weight.square().sum())
    assert all(error <= (1 - e) * total + 1e-9 for error, e in zip(errors, (0.5, 0.8, 0.95), strict=True))
    assert errors[0] > errors[1] > errors[2]


def test_layers_for_which_it_does_not_pay_stay_with_the_reason() -> None:
    module, graph, x = mixed()
    low = passes.factorise(graph, rank=12, exclude="m")
    notes = "\n".join(low.history[-1].notes)
    assert "m.weight left alone: excluded" in notes
    assert "a.weight left alone: rank 12 of 16 saves no parameters" in notes
    assert "a.weight" in low.parameters and "b.reduce.weight" in low.parameters
    same = passes.factorise(graph, at="a", rank=1.0)
    assert same.history[-1].outcome == "not applicable"
    torch.testing.assert_close(run(same, x), module(x).detach(), rtol=0, atol=0)


def test_ranks_of_single_layers() -> None:
    _, graph, _ = mixed()
    low = passes.factorise(graph, ranks={"b": 5, "[lm]": 0.5})
    assert low.parameters["b.reduce.weight"].data.shape[0] == 5
    assert low.parameters["m.reduce.weight"].data.shape[0] == 3 and low.parameters["l.reduce.weight"].data.shape[0] == 3
    assert "g.weight" in low.parameters
    assert any("no pattern of ranks matches it" in note for note in low.history[-1].notes)
    with pytest.raises(SutureError, match="the pattern 'bb' of ranks matches no layer") as caught:
        passes.factorise(graph, ranks={"bb": 5})
    assert caught.value.code == Code.SITE


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({}, Code.RANK, "there is no rule for ranks"),
        ({"rank": 2, "energy": 0.5}, Code.RANK, "rank and energy exclude each other"),
        ({"rank": 0}, Code.RANK, "a rank of 0"),
        ({"rank": -0.5}, Code.RANK, "a rank of -0.5"),
        ({"rank": float("nan")}, Code.RANK, "a rank of nan"),
        ({"ranks": {"b": "two"}}, Code.RANK, "b: a rank of two"),
        ({"rank": 1000}, Code.RANK, "a rank of 1000, where the largest of a layer is 24"),
        ({"energy": 1.5}, Code.RANK, "no rank keeps the share 1.5"),
        ({"budget": 0.0}, Code.RANK, "no rank keeps the share 0"),
        ({"budget": 0.01}, Code.RANK, "at their least ranks have"),
        ({"rank": 2, "at": "bb"}, Code.SITE, "the pattern 'bb' matches no linear map or convolution"),
        ({"rank": 2, "expect": 3}, Code.SITE, "3 expected"),
        ({"rank": 2, "by": "whitened"}, Code.CALIBRATION, "whitened has no calibration inputs"),
        ({"rank": 2, "by": "whitened", "data": {}}, Code.CALIBRATION, "the calibration data have no"),
        ({"rank": 2, "by": "whitened", "data": {"x": torch.zeros(0, 3, 8, 8)}}, Code.CALIBRATION, "have no examples"),
        ({"rank": 2, "data": {"x": torch.zeros(1, 3, 8, 8)}}, Code.OPTION, "svd does not read"),
        ({"rank": 2, "by": "whitened", "data": {"x": torch.full((2, 3, 8, 8), torch.nan)}}, Code.CALIBRATION, "is not finite"),
        ({"rank": 2, "by": "asvd", "alpha": -1.0, "data": {"x": torch.zeros(1, 3, 8, 8)}}, Code.OPTION, "alpha=-1"),
        ({"rank": 2, "sweeps": 2}, Code.OPTION, "2 sweeps, split='channel'"),
        ({"rank": 2, "by": "corda", "split": "tucker", "data": {"x": torch.zeros(1, 3, 8, 8)}}, Code.OPTION, "corda with split='tucker'"),
    ],
)  # fmt: skip
def test_bad_options_get_one_line(options: dict[str, object], code: Code, text: str) -> None:
    _, graph, _ = mixed()
    with pytest.raises(SutureError, match=text) as caught:
        passes.factorise(graph, **options)
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_tied_weights_are_factorised_once_and_tables_are_left_alone() -> None:
    torch.manual_seed(0)
    module = randomise(Decoder(Shape(layers=4, hidden=64, tied=True))).to(F64).eval()
    graph = suture.trace(module, TOKENS, dynamic=[{0: "batch", 1: "sequence"}])
    looped = passes.recurse(graph, blocks=2)
    low = passes.factorise(looped, at="layers.*.feed.*", rank=4)
    assert low.parameters["layers.0.feed.up.reduce.weight"].aliases == ("layers.2.feed.up.reduce.weight",)
    assert low.parameters["layers.2.feed.up.bias"] is not None  # biases are each block's own, as they were
    torch.testing.assert_close(
        run(passes.factorise(looped, at="layers.*", rank=1.0, always=True), TOKENS),
        run(looped, TOKENS),
        rtol=0,
        atol=1e-11,
    )
    everything = passes.factorise(graph, rank=2)
    assert any(
        note.startswith("embed.weight left alone: embedding reads it too") for note in everything.history[-1].notes
    )


def test_half_precision_is_decomposed_in_double_and_stays_half() -> None:
    weight = (random(24, 16) @ random(16, 24, seed=1)).to(torch.bfloat16)
    low = passes.factorise(linear(weight), rank=6)
    assert {p.data.dtype for p in low.parameters.values()} == {torch.bfloat16}
    best = np.sqrt((np.linalg.svd(weight.double().numpy(), compute_uv=False)[6:] ** 2).sum())
    assert float((weight.double() - product(low)).norm()) < 1.02 * best
    a, b = balanced(random(3, 8) * 1e4, random(5, 3, seed=1))
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))


def test_weights_that_are_zero_or_not_finite_are_no_traceback() -> None:
    zero = passes.factorise(linear(torch.zeros(8, 8, dtype=F64)), energy=0.9)
    assert float(product(zero).abs().max()) == 0
    bad = random(8, 8)
    bad[0, 0] = float("nan")
    record = passes.factorise(linear(bad), rank=2).history[-1]
    assert (
        record.outcome == "not applicable" and "0.weight left alone: it has values that are not finite" in record.notes
    )
    with pytest.raises(SutureError, match="values that are not finite"):
        Decomposition.of(bad)
    data = {"input": torch.zeros(4, 8, dtype=F64)}
    graph = linear(random(8, 8))
    silent = passes.factorise(graph, rank=2, by="whitened", data={graph.inputs[0].name: data["input"]})
    assert any("all that it reads is zero" in note for note in silent.history[-1].notes)


def test_an_empty_graph_is_left_alone() -> None:
    graph = suture.trace(nn.ReLU(), torch.zeros(2, 3))
    assert passes.factorise(graph, rank=2).history[-1].outcome == "not applicable"


def test_shapes_alone_are_planned_alike() -> None:
    _, graph, x = mixed()
    planned = graph.copy()
    for parameter in planned.parameters.values():
        parameter.assign(parameter.data.detach().to("meta"))
    for options in ({"rank": 4}, {"rank": 0.5, "split": "tucker"}, {"rank": 4, "by": "whitened", "data": {"x": x}}):
        low, real = passes.factorise(planned, **options), passes.factorise(graph, **options)
        assert low.stats() == real.stats()
    estimated = passes.factorise(planned, budget=0.6).history[-1]
    assert estimated.outcome == "done" and any(note.startswith("estimated") for note in estimated.notes)


def test_moments_do_not_depend_on_how_layers_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, x = mixed()
    whole = passes.factorise(graph, at="[blm]", rank=3, by="whitened", data={"x": x})
    monkeypatch.setattr("suture.passes.low_rank.covariance._MEMORY", 1)
    apart = passes.factorise(graph, at="[blm]", rank=3, by="whitened", data={"x": x})
    assert all(torch.equal(p.data, apart.parameters[name].data) for name, p in whole.parameters.items())


@pytest.mark.parametrize("name", ["gpt2", "hf_vit"])
def test_transformers_of_a_library(name: str) -> None:
    entry = ENTRIES[name]
    module = randomise(entry.module())
    args, kwargs = entry.args()
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    whole = passes.factorise(graph, rank=1.0, always=True)
    assert whole.history[-1].contract == "exact"
    low = passes.factorise(graph, rank=0.25)
    assert low.stats().parameters < graph.stats().parameters and low.stats().macs < graph.stats().macs


NETS = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4)).eval()
"""

SCRIPT = """suture 1
model net = torch "low_rank_nets:net" input f32[batch, 16]
factorise       net at "*" rank 0.25
attach_adapters net rank 2
merge_adapters  net
check net.params <= 0.6 * original.params
"""


def test_a_script_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "low_rank_nets.py").write_text(NETS)
    (tmp_path / "low.suture").write_text(SCRIPT)
    monkeypatch.syspath_prepend(str(tmp_path))
    for done in (surgery.check(tmp_path / "low.suture"), surgery.run(tmp_path / "low.suture")):
        assert done.ok, [str(failure) for failure in done.failures]


def test_the_python_on_the_page_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "low-rank.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 4
    exec(compile("\n".join(blocks), "low-rank.md", "exec"), {"__name__": "page"})


def test_principal_bases_are_complete_and_orthonormal() -> None:
    basis = principal_basis(random(9, 4))
    torch.testing.assert_close(basis.T @ basis, torch.eye(9, dtype=F64), rtol=0, atol=1e-12)
