"""The guidelines of "Stacking Your Transformers", against the table that its authors publish."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture import Code, SutureError
from suture.passes.growth.guidelines import growth_plan, growth_timing

PUBLISHED = [(8e9, 15e12, 6.58e9), (7e9, 2e12, 11.11e9), (13e9, 2e12, 15.84e9), (70e9, 2e12, 42.48e9)]


@pytest.mark.parametrize(("parameters", "tokens", "timing"), PUBLISHED)
def test_the_published_table_is_reproduced(parameters, tokens, timing):
    assert growth_timing(parameters, 6 * parameters * tokens) == pytest.approx(timing, rel=5e-4)


@given(parameters=st.floats(5e8, 7e10), tokens=st.floats(1e11, 2e13))
def test_the_timing_grows_with_the_model_and_falls_with_the_compute(parameters, tokens):
    flops = 6 * parameters * tokens
    expected = 0.88 * math.log10(parameters) + 163.27 / math.log10(flops) - 5.74
    if 10**expected >= tokens:
        with pytest.raises(SutureError) as caught:
            growth_timing(parameters, flops)
        assert caught.value.code == Code.GROWTH
        return
    timing = growth_timing(parameters, flops)
    assert math.log10(timing) == pytest.approx(expected, abs=1e-9)
    assert growth_timing(parameters, 2 * flops) < timing


def test_a_plan_prints_when_how_much_and_what_it_costs():
    plan = growth_plan(7e9, 300e9)
    assert plan.factor == 4
    assert plan.small_flops == pytest.approx(6 * 7e9 / 4 * plan.small_tokens)
    lines = str(plan).splitlines()
    assert lines[0].startswith("grow 4 times as deep after ")
    assert lines[0].endswith("tokens of 300B, to 7B parameters")
    assert "measured by the paper for 7B at 194B tokens" in lines[-1]
    assert lines[-1].endswith("35.3% of the FLOPs saved")


def test_phases_add_up_to_the_cost_at_the_speed_up():
    plan = growth_plan(7e9, 300e9)
    spent = plan.small_flops + 6 * plan.parameters * plan.large_tokens(0.546)
    assert plan.flops / spent == pytest.approx(1.546)


WRONG = [
    ((1e6, 1e15), {}, "1M parameters are outside of what the guideline was made for, 410M to 70B; extrapolate=True asks"),
    ((1e6, 1e15), {"extrapolate": True}, "tokens of 166.7M; it does not hold for so little compute"),
    ((0, 1e20), {}, "parameters=0 is no size of a training; a number above 1 would be right"),
    ((7e9, math.inf), {}, "flops=inf is no size of a training"),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "options", "message"), WRONG)
def test_sizes_that_the_guideline_says_nothing_about_are_refused(sizes, options, message):
    with pytest.raises(SutureError) as caught:
        growth_timing(*sizes, **options)
    assert caught.value.code == Code.GROWTH
    assert message in str(caught.value)


def test_factors_beyond_the_paper_s_are_refused():
    with pytest.raises(SutureError, match=r"a growth factor of 8; 2 to 4 would be right, 4 best"):
        growth_plan(7e9, 2e12, factor=8)
    assert growth_plan(7e9, 2e12, factor=8, extrapolate=True).factor == 8
    assert "are outside of" in growth_plan(2e8, 1e13, extrapolate=True).lines()[-1]
