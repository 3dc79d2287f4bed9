"""Observers against NumPy and SciPy, and scales and zero points against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.quantise.calibration import observe
from suture.passes.quantise.observers import (
    Entropy,
    LeastSquares,
    MinMax,
    Observer,
    Percentile,
    PerChannel,
    make_observer,
)
from suture.passes.quantise.parameters import Range, parameters_of, weight_parameters

METHODS = ("min_max", "percentile", "entropy", "mse")


def sample(kind: str, count: int = 20000, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    draws = {
        "normal": lambda: random.normal(size=count),
        "relu": lambda: np.maximum(random.normal(size=count), 0),
        "heavy": lambda: random.standard_t(3, size=count),
        "shifted": lambda: random.normal(size=count) * 0.1 + 5,
        "small": lambda: random.normal(size=count) * 1e-20,
    }
    return torch.from_numpy(draws[kind]())


KINDS = ("normal", "relu", "heavy", "shifted", "small")


def seen(observer: Observer, *batches: torch.Tensor) -> tuple[float, float]:
    for batch in batches:
        observer.observe(batch)
    found = observer.range()
    return float(found.low), float(found.high)


def error(x: torch.Tensor, low: float, high: float) -> float:
    return float((parameters_of(Range.of(low, high)).round_trip(x) - x).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_min_max_is_that_of_numpy(kind: str) -> None:
    x = sample(kind)
    assert seen(MinMax(), *torch.split(x, 999)) == (x.numpy().min(), x.numpy().max())
    rows = MinMax(axis=1)
    rows.observe(x.reshape(100, 4, 50))
    np.testing.assert_array_equal(rows.range().low.numpy(), x.reshape(100, 4, 50).numpy().min((0, 2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [99.0, 99.9])
def test_percentiles_are_those_of_numpy_to_a_bin(kind: str, percent: float) -> None:
    x = sample(kind)
    low, high = seen(Percentile(percent=percent), *torch.split(x, 777))
    cut = (100 - percent) / 2
    width = float(x.max() - x.min()) / 512
    assert abs(low - np.percentile(x.numpy(), cut)) <= width
    assert abs(high - np.percentile(x.numpy(), 100 - cut)) <= width


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_batches_does_not_matter(kind: str, method: str) -> None:
    batches = torch.split(sample(kind), 3000)
    assert seen(make_observer(method), *batches) == seen(make_observer(method), *reversed(batches))  # type: ignore[arg-type]


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), method=st.sampled_from(METHODS))
@settings(max_examples=60, deadline=None)
def test_ranges_are_finite_and_within_the_extremes_and_zero(values: list[float], method: str) -> None:
    x = torch.tensor(values)
    low, high = seen(make_observer(method), *torch.split(x, 7))  # type: ignore[arg-type]
    assert min([*values, 0.0]) <= low <= high <= max([*values, 0.0])


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy"])
def test_least_squares_is_as_good_as_an_exhaustive_search(kind: str) -> None:
    x = sample(kind)
    low, high = seen(LeastSquares(), x)
    shares = np.linspace(0.2, 1, 60)
    extremes = float(x.min()), float(x.max())
    best = min(error(x, extremes[0] * share, extremes[1] * share) for share in shares)
    assert error(x, low, high) <= best * 1.05
    assert error(x, low, high) <= error(x, *extremes) * 1.001


def test_the_least_divergence_is_that_of_scipy() -> None:
    """Of the ranges tried, that with the least Kullback-Leibler divergence as SciPy computes it from the histogram."""
    observer = Entropy()
    low, high = seen(observer, sample("heavy"))
    histogram = observer.histogram
    centres, counts = histogram.centres().numpy(), histogram.counts.numpy()

    def divergence(share: float) -> float:
        inside = (centres >= histogram.low * share) & (centres <= histogram.high * share)
        kept = counts[inside]
        p = kept.copy()
        p[0] += counts[centres < histogram.low * share].sum()
        p[-1] += counts[centres > histogram.high * share].sum()
        level = np.arange(len(kept)) * 256 // len(kept)
        q = np.zeros(len(kept))
        for which in range(256):
            chosen = (level == which) & (kept > 0)
            q[chosen] = kept[level == which].sum() / max(chosen.sum(), 1)
        return float(entropy(p, np.maximum(q / q.sum(), 1e-12 * (p > 0))))

    shares = [1 - 0.8 * k / 96 for k in range(96)]
    best = min(shares, key=divergence)
    assert divergence(high / histogram.high) <= divergence(best) * 1.02 + 1e-9
    assert math.isclose(low / histogram.low, high / histogram.high)


def test_zeros_do_not_narrow_the_range_of_least_divergence() -> None:
    x = sample("relu")
    _, high = seen(Entropy(), x)
    assert high > 0.7 * float(x.max())


@pytest.mark.parametrize("method", METHODS)
def test_odd_data(method: str) -> None:
    assert seen(make_observer(method)) == (0.0, 0.0)  # type: ignore[arg-type]
    assert seen(make_observer(method), torch.zeros(0)) == (0.0, 0.0)  # type: ignore[arg-type]
    assert seen(make_observer(method), torch.zeros(5)) == (0.0, 0.0)  # type: ignore[arg-type]
    assert seen(make_observer(method), torch.full((5,), 3.0))[1] == 3.0  # type: ignore[arg-type]
    assert seen(make_observer(method), torch.tensor(2.0), torch.tensor(-1.0))[1] <= 2.0  # type: ignore[arg-type]
    for broken in (math.nan, math.inf):
        observer = make_observer(method)  # type: ignore[arg-type]
        observer.observe(torch.tensor([1.0, broken]))
        assert not observer.range().is_finite()


def test_one_observer_per_channel() -> None:
    x = torch.stack([sample("normal", 500), sample("relu", 500) * 10])
    observer = PerChannel(0, lambda: Percentile(percent=99.0))
    observer.observe(x[:, :250])
    observer.observe(x[:, 250:])
    single = [seen(Percentile(percent=99.0), row[:250], row[250:]) for row in x]
    np.testing.assert_array_equal(observer.range().low.numpy(), [low for low, _ in single])
    np.testing.assert_array_equal(observer.range().high.numpy(), [high for _, high in single])


@given(low=st.floats(-50, 50), high=st.floats(-50, 50), bits=st.integers(2, 8), signed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_scale_and_zero_point_cover_the_range_and_keep_zero(low: float, high: float, bits: int, signed: bool) -> None:
    low, high = min(low, high), max(low, high)
    chosen = parameters_of(Range.of(low, high), bits=bits, signed=signed)
    levels = 2**bits - 1
    wanted = (max(high, 0) - min(low, 0)) / levels
    assert math.isclose(float(chosen.scale), wanted or 1.0, rel_tol=1e-6, abs_tol=2.0**-99)
    assert float(chosen.round_trip(torch.zeros(()))) == 0
    ends = torch.tensor([low, high])
    assert bool((chosen.round_trip(ends) - ends).abs().max() <= 0.51 * chosen.scale + 1e-6 * ends.abs().max())


def test_symmetric_weights_use_127_steps_on_each_side() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.25], [0.0, 0.0]])
    chosen = weight_parameters(weight, 0)
    torch.testing.assert_close(chosen.scale, torch.tensor([2 / 127, 0.5 / 127, 1.0]))
    assert chosen.quantise(weight).tolist() == [[64, -127], [127, 64], [0, 0]]
    assert weight_parameters(weight, 0, bits=7).quantise(weight).abs().max() == 63
    assert weight_parameters(weight, None).scale.shape == ()


def test_searched_weights_are_no_worse_in_any_channel() -> None:
    weight = torch.from_numpy(np.random.default_rng(1).standard_t(3, size=(8, 64)))
    errors = [
        (weight_parameters(weight, 0, bits=4, search=search).round_trip(weight) - weight).square().sum(1)
        for search in (False, True)
    ]
    assert bool((errors[1] <= errors[0] * (1 + 1e-6)).all())
    assert float(errors[1].sum()) < 0.9 * float(errors[0].sum())


def test_calibration_without_data_is_an_error() -> None:
    with pytest.raises(SutureError) as caught:
        observe(Graph("empty"), [], [], lambda value: MinMax())
    assert caught.value.code is Code.CALIBRATION
