"""The algebra of linear forms against convolutions that torch computes, and against closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from linear_blocks import one_thread  # noqa: F401

from suture.passes.reparam import LinearForm, Window, add, compose
from suture.passes.reparam.linear_form import beside, identity
from suture.passes.rewriting import Refusal

WIDE = torch.float64
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def run(form: LinearForm, x: torch.Tensor) -> torch.Tensor:
    """What a form computes: torch pads and convolves. Channels are dimension 1."""
    form = form.over(x.shape[1]).lifted(x.ndim - 2)
    border = torch.zeros(x.shape[1], dtype=WIDE) if form.border is None else form.border
    pads = [amount for window in reversed(form.windows) for amount in (window.before, window.after)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    padded = F.pad(x - border.reshape(shape), pads) + border.reshape(shape)
    stride, dilation = ([getattr(window, name) for window in form.windows] for name in ("stride", "dilation"))
    return CONVOLUTIONS[x.ndim - 3](padded, form.kernel, form.bias, stride, 0, dilation, form.groups)


@st.composite
def forms(draw: st.DrawFn, inputs: int, outputs: int, rank: int, *, padded: bool = True) -> LinearForm:
    """A random form; groups divide both numbers of channels."""
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, 6) if inputs % g == 0 and outputs % g == 0]))
    most = 2 if padded else 0
    windows = tuple(
        Window(*(draw(st.integers(1, 3)) for _ in range(3)), draw(st.integers(0, most)), draw(st.integers(0, most))) for _ in range(rank)
    )  # fmt: skip
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    kernel = torch.randn(
        outputs, inputs // groups, *(window.size for window in windows), dtype=WIDE, generator=generator
    )
    bias = torch.randn(outputs, dtype=WIDE, generator=generator) if draw(st.booleans()) else None
    return LinearForm(kernel, bias, groups, windows)


@settings(max_examples=60)
@given(st.data())
def test_composing_is_running_one_after_the_other(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    inputs, middle, outputs = (data.draw(st.sampled_from((2, 4, 6))) for _ in range(3))
    first = data.draw(forms(inputs, middle, rank))
    second = data.draw(forms(middle, outputs, rank, padded=data.draw(st.booleans())))
    x = torch.randn(2, inputs, *(11, 10, 9)[:rank], dtype=WIDE, generator=torch.Generator().manual_seed(0))
    try:
        hidden = run(first, x)
        expected = run(second, hidden)
    except RuntimeError:
        assume(False)
    found = compose(first, second)
    if isinstance(found, Refusal):
        # padding between the two is the only reason, and only where a window or a shift stands before it
        padded = [a.size > 1 for a, b in zip(first.windows, second.windows, strict=True) if b.pads]
        assert padded
        assert any(padded) or first.bias is not None
        return
    torch.testing.assert_close(run(found, x), expected, rtol=1e-11, atol=1e-11)


@settings(max_examples=60)
@given(st.data())
def test_adding_is_adding_the_results(data: st.DataObject) -> None:
    rank, channels = data.draw(st.integers(1, 3)), data.draw(st.sampled_from((4, 6)))
    terms = [data.draw(forms(channels, channels, rank)) for _ in range(data.draw(st.integers(1, 3)))]
    terms += [identity().scaled(0.5)] * data.draw(st.integers(0, 1))
    x = torch.randn(2, channels, *(11, 10, 9)[:rank], dtype=WIDE, generator=torch.Generator().manual_seed(0))
    results = [run(term, x) for term in terms]
    found = add(terms)
    if any(result.shape != results[0].shape for result in results):
        return  # there is no such sum
    if isinstance(found, Refusal):
        strides = {tuple(window.stride for window in term.lifted(rank).windows) for term in terms}
        assert len(strides) > 1 or any(stride > 1 for stride in next(iter(strides)))
        return
    result = run(found, x)
    if result.shape == results[0].shape:  # with a stride the number of results is the caller's to compare
        torch.testing.assert_close(result, torch.stack(results).sum(0), rtol=1e-11, atol=1e-11)
    else:
        assert any(window.stride > 1 for window in found.windows)


def test_forms_beside_one_another_give_their_results_in_order() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 7, dtype=WIDE)
    small = LinearForm(torch.randn(3, 4, 1, 1, dtype=WIDE), None, 1, (Window(), Window()))
    large = LinearForm(torch.randn(4, 2, 3, 3, dtype=WIDE), torch.randn(4, dtype=WIDE), 2, (Window(3, 1, 1, 1, 1),) * 2)
    found = beside([small, large])
    assert isinstance(found, LinearForm)
    torch.testing.assert_close(run(found, x), torch.cat([run(small, x), run(large, x)], 1))


def test_a_window_behind_a_padded_one_is_refused_where_the_shift_would_be_padded() -> None:
    torch.manual_seed(0)
    pointwise = LinearForm(torch.randn(4, 4, dtype=WIDE), torch.randn(4, dtype=WIDE)).lifted(2)
    padded = LinearForm(torch.randn(4, 4, 3, 3, dtype=WIDE), None, 1, (Window(3, 1, 1, 1, 1),) * 2)
    found = compose(pointwise, padded)
    assert isinstance(found, Refusal)
    assert found.reason == "pads with zeros that the shift would have to reach"
    # padded with what the first gives for zeros, it is exact (Ding et al. 2021, transform III)
    painted = LinearForm(padded.kernel, None, 1, padded.windows, border=pointwise.bias)
    merged = compose(pointwise, painted)
    assert isinstance(merged, LinearForm)
    assert merged.border is None
    x = torch.randn(2, 4, 6, 6, dtype=WIDE)
    torch.testing.assert_close(run(merged, x), run(painted, run(pointwise, x)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("windows", "expected"), [
    ((Window(3, 1, 1, 1, 1), Window()), Window(3, 1, 1, 1, 1)),
    ((Window(13, 1, 1, 6, 6), Window(3, 1, 3, 3, 3)), Window(13, 1, 1, 6, 6)),
    ((Window(3, 1, 2, 2, 2), Window(3, 1, 1, 1, 1)), Window(5, 1, 1, 2, 2)),
    ((Window(3, 1, 2, 2, 2), Window(5, 1, 2, 4, 4)), Window(5, 1, 2, 4, 4)),
    ((Window(2, 1, 1, 1, 0), Window(2, 1, 1, 0, 1)), Window(3, 1, 1, 1, 1)),
    ((Window(2, 1, 1, 1, 0), Window()), Window(3, 1, 1, 1, 1)),
    ((Window(3, 2, 1, 1, 1), Window(1, 1)), None),
    ((Window(3), Window(2)), None),
])  # fmt: skip
def test_the_smallest_window_that_holds_several(windows: tuple[Window, ...], expected: Window | None) -> None:
    from suture.passes.reparam.window import united

    assert united(windows) == expected
