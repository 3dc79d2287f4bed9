"""Pools and resampling as kernels compute what torch does in float64, in either order in memory."""

from __future__ import annotations

import functools
import shutil
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lowered import checking, lower_all

from suture.codegen.convolution.windows import channels_last
from suture.codegen.pooling.template import TEMPLATES
from suture.codegen.step import Context
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.sizes import Dim, evaluate_size, symbol
from suture.ir.types import TensorType

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)
# every example is compiled: what fails is shown as it was drawn
FEW = settings(max_examples=10, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def one(
    name: str,
    shape: tuple[Dim, ...],
    attributes: dict[str, Any],
    *,
    target: tuple[Dim, ...] | None = None,
    behind: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Graph:
    """A graph of one node and pointwise ones behind it."""
    graph = Graph(name)
    x = graph.add_input("x", TensorType(dtype, shape))
    value = graph.add(name, (x,), attributes, shapes=None if target is None else [target]).output
    for each in behind:
        value = graph.add(each, (value,)).output
    graph.outputs.append(value)
    graph.output_names.append("result")
    return graph


def agree(graph: Graph, last: tuple[bool, bool], sizes: dict[str, int] | None = None, tolerance: float = 2e-5) -> None:
    """The kernel computes what the graph means."""
    values = [*(graph.inputs if last[0] else ()), *(graph.outputs if last[1] else ())]
    lowered = lower_all(graph, TEMPLATES, {value: channels_last(value.rank) for value in values if value.rank > 2})
    (x,) = graph.inputs
    data = torch.randn([evaluate_size(dim, sizes or {}) for dim in x.shape], dtype=x.dtype)
    (wanted,) = evaluate(graph, [data])
    for call in (None, functools.partial(checking, backwards=False), functools.partial(checking, backwards=True)):
        (found,) = lowered.run([data], call)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@FEW
@given(
    data=st.data(),
    name=st.sampled_from(("max_pool", "avg_pool")),
    rank=st.sampled_from((1, 2, 2, 3)),
    last=st.tuples(st.booleans(), st.booleans()),
)
def test_pools_over_windows(data: st.DataObject, name: str, rank: int, last: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kernel = tuple(draw(1, 4) for _ in range(rank))
    attributes: dict[str, Any] = {
        "kernel": kernel,
        "stride": tuple(draw(1, 3) for _ in range(rank)),
        "padding": tuple(draw(0, size // 2) for size in kernel),
        "ceil": data.draw(st.booleans()),
    }
    reach = kernel
    if name == "max_pool":
        attributes["dilation"] = tuple(draw(1, 2) for _ in range(rank))
        reach = tuple((size - 1) * by + 1 for size, by in zip(kernel, attributes["dilation"], strict=True))
    else:
        attributes["count_padding"] = data.draw(st.booleans())
        attributes["divisor"] = data.draw(st.sampled_from((None, None, 3))) if rank > 1 else None
    size = tuple(
        (max(each - 2 * by, 1) if rank < 3 else each) + draw(0, 12 if rank < 3 else 5)
        for each, by in zip(reach, attributes["padding"], strict=True)
    )
    shape = (draw(1, 2), data.draw(st.sampled_from((1, 3, 16, 70))), *size)
    agree(one(name, shape, attributes, behind=data.draw(st.sampled_from(((), ("relu",))))), last)


@FEW
@given(
    data=st.data(),
    name=st.sampled_from(("adaptive_avg_pool", "adaptive_max_pool")),
    rank=st.sampled_from((1, 2, 2, 3)),
    last=st.tuples(st.booleans(), st.booleans()),
)
def test_pools_to_a_size(data: st.DataObject, name: str, rank: int, last: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    shape = (draw(1, 2), data.draw(st.sampled_from((1, 5, 32))), *(draw(1, 9) for _ in range(rank)))
    target = (*shape[:2], *(data.draw(st.sampled_from((1, 1, 2, 3, 7))) for _ in range(rank)))
    agree(one(name, shape, {"rank": rank}, target=target), last)


@FEW
@given(
    data=st.data(),
    mode=st.sampled_from(("nearest", "nearest-exact", "linear")),
    rank=st.sampled_from((1, 2, 2, 3)),
    last=st.tuples(st.booleans(), st.booleans()),
)
def test_resampling(data: st.DataObject, mode: str, rank: int, last: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    shape = (draw(1, 2), data.draw(st.sampled_from((1, 5, 32))), *(draw(1, 9) for _ in range(rank)))
    scales = data.draw(st.sampled_from((None, 2.0, 1.5, 0.75)))
    space = tuple(max(int(size * scales), 1) if scales else draw(1, 20) for size in shape[2:])
    if scales is not None and any(int(size * scales) < 1 for size in shape[2:]):
        scales = None
    if mode == "linear":
        mode = ("linear", "bilinear", "trilinear")[rank - 1]
    corners = data.draw(st.booleans()) if "linear" in mode else None
    attributes = {
        "rank": rank, "mode": mode, "align_corners": corners, "scales": None if scales is None else (scales,) * rank,
    }  # fmt: skip
    agree(one("interpolate", shape, attributes, target=(*shape[:2], *space)), last, tolerance=1e-4)


@pytest.mark.parametrize("last", [(False, False), (True, True)])
def test_sizes_may_be_symbols(last: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    batch, height, width = symbol("batch"), symbol("height"), symbol("width")
    shape = (batch, 6, height, width)
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    sizes = {"batch": 2, "height": 7, "width": 70}
    agree(one("max_pool", shape, {**window, "dilation": (1, 1)}), last, sizes)
    agree(one("avg_pool", shape, {**window, "count_padding": False}), last, sizes)
    agree(one("adaptive_avg_pool", shape, {"rank": 2}, target=(batch, 6, 1, 1)), last, sizes)
    agree(one("adaptive_avg_pool", shape, {"rank": 2}, target=(batch, 6, 3, 4)), last, sizes)
    twice = (batch, 6, height * 2, width * 2)
    agree(one("interpolate", shape, {"rank": 2, "scales": (2.0, 2.0)}, target=twice), last, sizes)
    bilinear = {"rank": 2, "mode": "bilinear", "align_corners": True}
    agree(one("interpolate", shape, bilinear, target=twice), last, sizes, tolerance=1e-4)


def test_not_a_number_wins_in_a_maximum() -> None:
    graph = one("max_pool", (1, 1, 1, 6), {"kernel": (1, 3), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)})
    x = torch.tensor([1.0, float("nan"), 0.0, -1.0, -2.0, -3.0]).reshape(1, 1, 1, 6)
    (found,) = lower_all(graph, TEMPLATES, {}).run([x])
    torch.testing.assert_close(found, evaluate(graph, [x])[0], equal_nan=True)


def test_what_is_refused_says_why() -> None:
    cubic = one("interpolate", (1, 1, 4, 4), {"rank": 2, "mode": "bicubic"}, target=(1, 1, 8, 8))
    assert "bicubic" in (TEMPLATES["interpolate"].refuses(cubic.nodes[0], Context(cubic)) or "")
    window = {"kernel": (2,), "stride": (2,), "padding": (0,), "dilation": (1,)}
    whole = one("max_pool", (1, 1, 4), window, dtype=torch.int64)
    assert "int64" in (TEMPLATES["max_pool"].refuses(whole.nodes[0], Context(whole)) or "")
