"""Least squares from streamed sums, against numpy and torch on the features themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import Code, SutureError
from suture.passes.stitch.least_squares import Gram, Moments, average, residual_of, solve, with_ones


def features(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mixing + 0.5


def related(a: torch.Tensor, outputs: int, noise: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(a.shape[1], outputs, generator=generator, dtype=torch.float64)
    return a @ weight + 1.5 + noise * torch.randn(len(a), outputs, generator=generator, dtype=torch.float64)


def relative(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> float:
    return float((a @ weight.T + bias - b).norm() / (b - b.mean(0)).norm())


def test_the_solution_is_numpys():
    a = features(60, 7)
    b = related(a, 4)
    found = solve(Moments.of(a, b))
    wanted = np.linalg.lstsq(with_ones(a).numpy(), b.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.weight.numpy(), wanted[:-1].T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.bias.numpy(), wanted[-1], rtol=1e-8, atol=1e-10)
    assert found.residual == pytest.approx(relative(a, b, found.weight, found.bias), rel=1e-8)
    assert found.ridge == 0


def test_batches_add_up_to_the_whole():
    a = features(50, 6).float()
    whole, parts = Gram(6), Gram(6)
    whole.add(a)
    for piece in a.split(13):
        parts.add(piece)
    torch.testing.assert_close(parts.matrix, whole.matrix, rtol=1e-12, atol=1e-12)
    assert parts.rows == 50
    assert parts.energy == pytest.approx(float((a.double() - a.double().mean(0)).square().sum()))


def test_sums_of_moments_fit_jointly():
    a, c = features(40, 5), features(30, 5, seed=3)
    b, d = related(a, 3), related(c, 3) - 2.0
    joint = solve(Moments.of(a, b) + Moments.of(c, d))
    at_once = solve(Moments.of(torch.cat([a, c]), torch.cat([b, d])))
    torch.testing.assert_close(joint.weight, at_once.weight)
    assert joint.residual == pytest.approx(at_once.residual)
    mean = average([solve(Moments.of(a, b)), solve(Moments.of(c, d))])
    both = Moments.of(torch.cat([a, c]), torch.cat([b, d]))
    assert residual_of(both, joint.weight, joint.bias) <= residual_of(both, mean.weight, mean.bias)


@settings(max_examples=30)
@given(rows=st.integers(1, 40), width=st.integers(1, 12), outputs=st.integers(1, 6), seed=st.integers(0, 99))
def test_no_fit_is_worse_than_the_mean(rows, width, outputs, seed):
    a, b = features(rows, width, seed), features(rows, outputs, seed + 100)
    found = solve(Moments.of(a, b))
    assert found.residual <= 1 + 1e-9
    assert bool(found.reason) == (rows <= width) or found.reason.startswith("the features")


@settings(max_examples=20)
@given(width=st.integers(2, 8), seed=st.integers(0, 99))
def test_another_feature_never_raises_the_residual(width, seed):
    a, b = features(60, width, seed), features(60, 3, seed + 100)
    assert solve(Moments.of(a, b)).residual <= solve(Moments.of(a[:, :-1], b)).residual + 1e-9


def test_too_few_rows_are_regularised_and_said():
    a = features(5, 16)
    found = solve(Moments.of(a, related(a, 4)))
    assert found.ridge > 0
    assert found.reason == "5 calibration rows are fewer than the 17 unknowns of each output"
    assert found.weight.isfinite().all()


def test_dependent_features_are_regularised_and_said():
    a = features(50, 4)
    found = solve(Moments.of(torch.cat([a, a], 1), related(a, 3, noise=0.0)))
    assert "linearly dependent" in found.reason
    assert found.residual < 1e-3
    torch.testing.assert_close(found.weight[:, :4], found.weight[:, 4:], rtol=1e-4, atol=1e-5)


def test_a_constant_feature_does_no_harm():
    a = torch.cat([features(40, 4), torch.zeros(40, 1, dtype=torch.float64)], 1)
    assert solve(Moments.of(a, related(a, 3, noise=0.0))).residual < 1e-3


def test_the_low_rank_map_is_the_best_of_its_rank_on_the_data():
    a = features(80, 8)
    b = related(a, 6, noise=0.5)
    moments = Moments.of(a, b)
    full = solve(moments)
    # Eckart and Young on the fitted values: what a map of rank r must leave besides the full map's error
    fitted = a @ full.weight.T
    values = np.linalg.svd((fitted - fitted.mean(0)).numpy(), compute_uv=False)
    energy = float((b - b.mean(0)).square().sum())
    for rank in range(1, 7):
        found = solve(moments, rank=rank)
        assert np.linalg.matrix_rank(found.weight.numpy(), tol=1e-8) == rank
        up, down = found.factors
        torch.testing.assert_close(up @ down, found.weight)
        wanted = (full.residual**2 + (values[rank:] ** 2).sum() / energy) ** 0.5
        assert found.residual == pytest.approx(wanted, rel=1e-6)
        assert found.residual == pytest.approx(relative(a, b, found.weight, found.bias), rel=1e-6)


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_beyond_the_matrix_is_refused(rank):
    a = features(30, 6)
    with pytest.raises(SutureError, match=f"rank {rank} of a 4 x 6 stitching layer; 1 to 4") as caught:
        solve(Moments.of(a, related(a, 4)), rank=rank)
    assert caught.value.code is Code.RANK


def test_no_rows_and_no_numbers_are_refused():
    with pytest.raises(SutureError, match="no calibration rows") as caught:
        solve(Moments(torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64), 0.0))
    assert caught.value.code is Code.CALIBRATION
    with pytest.raises(SutureError, match="infinite or NaN"):
        Gram(2).add(torch.tensor([[1.0, float("nan")]]))
