"""The derivative of every operator, against torch's own differentiation of the evaluator, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_examples import EXAMPLES, Example

from suture.ir.derivatives import CONSTANT, REFUSED, RULES, UNROLLED, differentiate, prepare
from suture.ir.operator import OPERATORS
from suture.ir.operators.fused import BODIES
from suture.ir.semantics import evaluate, run_node
from suture.ir.verify import verify

F64 = torch.float64
Tensors = Sequence[torch.Tensor | None]

RUNNING = {"batch_norm": (3, 4), "instance_norm": (3, 4)}
"""Running statistics, which torch refuses to differentiate by: they are constants."""

COARSE = {"hardsigmoid": 1e-7}
"""torch multiplies by a sixth in float32 here."""


def cotangents_of(example: Example, tensors: Tensors, given: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
    """What the rules give for every floating operand that gets something, by evaluating the way back."""
    node = example.node(tensors)
    graph = node.graph
    wanted = {k: v for k, v in enumerate(node.inputs) if v is not None and v.dtype.is_floating_point}
    prepare(graph, list(wanted.values()))
    floating = [value for value in graph.outputs if value.dtype.is_floating_point]
    arrived = {value: graph.add_input(f"g{k}", value.type) for k, value in enumerate(floating)}
    made = differentiate(graph, arrived, list(wanted.values()))
    found = {k: made[value] for k, value in wanted.items() if value in made}
    graph.set_outputs(list(found.values()), [f"operand{k}" for k in found])
    graph.remove_dead()
    verify(graph)
    results = evaluate(graph, [*(t for t in tensors if t is not None), *given])
    return dict(zip(found, results, strict=True))


def check(example: Example, tensors: Tensors) -> None:
    """The rules give what torch gives, and nothing where torch has nothing."""
    running = RUNNING.get(example.operator, ())
    leaves = [
        None if t is None else t.clone().requires_grad_(t.is_floating_point() and k not in running)
        for k, t in enumerate(tensors)
    ]
    generator = torch.Generator().manual_seed(11)
    results = [t for t in run_node(example.node(tensors), leaves, {}) if t.is_floating_point()]
    given = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in results]
    asked = {k: t for k, t in enumerate(leaves) if t is not None and t.requires_grad}
    reached = [k for k, t in enumerate(results) if t.requires_grad]
    expected: dict[int, torch.Tensor | None] = dict.fromkeys(asked)
    if reached and asked:
        outputs, seeds = [results[k] for k in reached], [given[k] for k in reached]
        found = torch.autograd.grad(outputs, list(asked.values()), seeds, allow_unused=True)
        expected = dict(zip(asked, found, strict=True))
    received = cotangents_of(example, tensors, given)
    for k, right in expected.items():
        ours, tolerance = received.get(k), COARSE.get(example.operator, 1e-10)
        if ours is None or right is None:
            assert all(t is None or not t.any() for t in (ours, right)), f"operand {k}"
            continue
        torch.testing.assert_close(ours, right, rtol=tolerance, atol=tolerance, equal_nan=True)


def check_numerically(example: Example, tensors: Tensors) -> None:
    """The cotangents times a small step are the step of the results: for what torch does not differentiate, or not rightly."""
    step, generator = 1e-6, torch.Generator().manual_seed(5)
    results = run_node(example.node(tensors), tensors, {})
    given = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in results]
    for k, cotangent in cotangents_of(example, tensors, given).items():
        source = tensors[k]
        assert source is not None
        direction = torch.randn(source.shape, generator=generator, dtype=F64)
        sides = [
            run_node(example.node(tensors), [*tensors[:k], source + s * step * direction, *tensors[k + 1 :]], {})
            for s in (1, -1)
        ]
        moved = sum((g * (a - b)).sum() for g, a, b in zip(given, *sides, strict=True)) / (2 * step)
        torch.testing.assert_close((cotangent * direction).sum(), torch.as_tensor(moved), rtol=1e-7, atol=1e-8)


def torch_differentiates(example: Example) -> bool:
    """Not `remainder` of a number by a tensor; and `ldexp` by integers takes 2 to a negative integer for 0 on the way back."""
    return example.operator != "log2_dequantise" and not (
        example.operator == "remainder" and example.operands.startswith("_")
    )


DIFFERENTIABLE = [
    example for example in EXAMPLES
    if example.operator in {*RULES, *UNROLLED, *BODIES} and "f32" in example.operands and example.operator != "branch"
]  # fmt: skip


@pytest.mark.parametrize("example", filter(torch_differentiates, DIFFERENTIABLE), ids=str)
def test_cotangents_are_those_of_torch(example: Example) -> None:
    check(example, example.tensors(3, F64))


@pytest.mark.parametrize("example", [e for e in DIFFERENTIABLE if not torch_differentiates(e)], ids=str)
def test_cotangents_are_the_slopes_where_torch_has_none(example: Example) -> None:
    check_numerically(example, example.tensors(3, F64))


def test_every_operator_has_a_rule_or_a_reason() -> None:
    sources = {"full", "arange"}  # they read nothing
    assert {*RULES, *CONSTANT, *REFUSED, *UNROLLED, *BODIES, *sources} == set(OPERATORS)
    assert not set(RULES) & (set(CONSTANT) | set(REFUSED))


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.operator in CONSTANT], ids=str)
def test_through_constant_operators_torch_lets_nothing_either(example: Example) -> None:
    tensors = example.tensors(3, F64)
    leaves = [t if t is None or not t.is_floating_point() else t.clone().requires_grad_() for t in tensors]
    for result in run_node(example.node(tensors), leaves, {}):
        if result.requires_grad:
            asked = [t for t in leaves if t is not None and t.requires_grad]
            found = torch.autograd.grad(result.sum(), asked, allow_unused=True)
            assert all(t is None or not t.any() for t in found)


# kinks, ties, zeros

CORNERS = torch.tensor([-6.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0], dtype=F64)
"""Where activations have their kinks, and the zeros and ties of everything else."""

CORNERED = [
    Example(name, operands, attributes, shapes)
    for name, operands, attributes, shapes in [
        *((name, "f32[9]", {}, None) for name in (
            "relu", "leaky_relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "softsign", "abs", "hardsigmoid", "softplus",
            "log_sigmoid", "tanh", "sigmoid", "erf", "expm1",
        )),
        ("clamp", "f32[9]", {"min": -1.0, "max": 3.0}, None),
        ("softplus", "f32[9]", {"beta": 2.0, "threshold": 1.0}, None),
        ("celu", "f32[9]", {"alpha": 2.0}, None),
        ("elu", "f32[9]", {"alpha": 0.5}, None),
        *((name, "f32[9,1] f32[9]", {}, None) for name in ("maximum", "minimum", "mul", "add", "sub")),
        *(("pow", "f32[9] _", {"scalar": p}, None) for p in (0, 1, 2, 3.0, 0.5, -1)),
        *(("pow", "_ f32[9]", {"scalar": p}, None) for p in (0, 1, 2.5)),
        *((name, "f32[3,3]", {"dims": (1,)}, None) for name in ("amax", "amin", "prod", "vector_norm", "var")),
        *(("vector_norm", "f32[3,3]", {"dims": (0, 1), "p": p}, None) for p in (0.0, 1.0, 2.0, 3.0, float("inf"), float("-inf"))),
        ("l_normalise", "f32[3,3]", {}, None),
        ("max_pool", "f32[1,1,9]", {"kernel": (3,), "stride": (1,), "padding": (1,), "dilation": (1,)}, None),
    ]
]  # fmt: skip


@pytest.mark.parametrize("example", CORNERED, ids=str)
def test_at_kinks_ties_and_zeros_they_take_the_side_that_torch_takes(example: Example) -> None:
    tensors = [None if t is None else CORNERS.reshape(t.shape) for t in example.tensors(0, F64)]
    check(example, tensors)
    if example.operator in ("prod", "amax", "amin", "vector_norm", "max_pool"):
        tied = torch.tensor([2.0, 2.0, -1.0, 0.0, 3.0, 1.0, 0.0, 0.0, 1.0], dtype=F64)
        check(example, [None if t is None else tied.reshape(t.shape) for t in tensors])


# sizes

sizes = st.integers(0, 3)


def broadcastable(draw: st.DrawFn, shape: Sequence[int]) -> list[int]:
    """A shape that broadcasts to another: dimensions of size 1, and fewer of them."""
    kept = [1 if draw(st.booleans()) else size for size in shape]
    return kept[draw(st.integers(0, len(kept))) :]


@st.composite
def broadcast_pairs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    shape = draw(st.lists(sizes, max_size=4))
    return broadcastable(draw, shape), broadcastable(draw, shape)


def text(*shapes: Sequence[int]) -> str:
    return " ".join(f"f32+[{','.join(map(str, shape))}]" for shape in shapes)


@given(
    broadcast_pairs(), st.sampled_from(["add", "sub", "mul", "div", "pow", "maximum", "minimum", "remainder", "atan2"])
)
@settings(max_examples=120, deadline=None)
def test_repeated_operands_get_the_sum(pair: tuple[list[int], list[int]], operator: str) -> None:
    example = Example(operator, text(*pair), {})
    check(example, example.tensors(1, F64))


@st.composite
def products(draw: st.DrawFn) -> tuple[str, str]:
    """An equation of one to three factors over a few letters, and its operands."""
    size = {letter: draw(st.integers(1, 3)) for letter in "abcde"}
    letters = st.lists(st.sampled_from("abcde"), max_size=4, unique=True)
    factors = draw(st.lists(letters, min_size=1, max_size=3))
    known = sorted({letter for factor in factors for letter in factor})
    result = [letter for letter in draw(st.permutations(known)) if draw(st.booleans())]
    equation = ",".join("".join(factor) for factor in factors) + "->" + "".join(result)
    return equation, text(*([size[letter] for letter in factor] for factor in factors))


@given(products())
@settings(max_examples=150, deadline=None)
def test_sums_of_products_of_any_letters(product: tuple[str, str]) -> None:
    example = Example("einsum", product[1], {"equation": product[0]})
    check(example, example.tensors(1, F64))


@pytest.mark.parametrize(("equation", "operands"), [("ii->i", "f32[3,3]"), ("ii->", "f32[3,3]"), ("iji,j->i", "f32[2,3,2] f32[3]"), ("ab,cd", "f32[2,3] f32[1,2]")])  # fmt: skip
def test_letters_that_stand_twice(equation: str, operands: str) -> None:
    example = Example("einsum", operands, {"equation": equation})
    check(example, example.tensors(1, F64))


@given(
    st.lists(st.integers(0, 3), max_size=2), st.lists(st.integers(0, 3), max_size=2),
    st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), st.booleans(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_matrix_products_of_any_batches(a: list[int], b: list[int], m: int, k: int, n: int, ones: bool) -> None:
    count = min(len(a), len(b))
    shared = [1 if ones else size for size in a[len(a) - count :]]
    example = Example("matmul", text([*a, m, k], [*b[: len(b) - count], *shared, k, n]), {})
    check(example, example.tensors(1, F64))


@st.composite
def convolutions(draw: st.DrawFn) -> Example:
    rank, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    each = st.tuples(*[st.integers(1, 3)] * rank)
    kernel, stride, dilation = draw(each), draw(each), draw(each)
    padding = tuple(draw(st.integers(0, 2)) for _ in range(rank))
    batch, inputs, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    least = [max(1, d * (r - 1) + 1 - 2 * p) for r, d, p in zip(kernel, dilation, padding, strict=True)]
    space = [size + draw(st.integers(0, 4)) for size in least]
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if draw(st.booleans()):
        shapes = [batch, groups * inputs, *space], [groups * outputs, inputs, *kernel], [groups * outputs]
        return Example("conv", text(*shapes), attributes)
    room = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    shapes = [batch, groups * inputs, *space], [groups * inputs, outputs, *kernel], [groups * outputs]
    return Example("conv_transpose", text(*shapes), {**attributes, "output_padding": room})


@pytest.mark.parametrize(
    ("operands", "attributes"),
    [
        ("f32[2,3,8,9] f32[4,3,4,3] f32[4]", {"stride": (4, 3)}),
        ("f32[2,4,9,7] f32[6,2,2,1] _", {"stride": (2, 3), "groups": 2}),
        ("f32[2,4,5] f32[4,1,1] _", {"stride": (2,), "groups": 4}),
    ],
)
def test_windows_that_do_not_overlap_are_one_product(operands: str, attributes: dict[str, Any]) -> None:
    example = Example("conv", operands, attributes)
    tensors = example.tensors(1, F64)
    check(example, tensors)
    node = example.node(tensors)
    made = differentiate(node.graph, {node.output: node.graph.add_input("g", node.output.type)}, [node.graph.inputs[1]])
    assert not any(other.operator.name == "conv" and other is not node for other in node.graph.nodes) and made


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_convolutions_of_any_geometry(example: Example) -> None:
    tensors = example.tensors(1, F64)
    if example.operator == "conv_transpose" and any(size < 1 for size in example.node(tensors).output.shape):
        return  # padded away
    check(example, tensors)


@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4),
    st.sampled_from([None, "bool", "f32", "row"]), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_attention_of_any_size(b: int, u: int, t: int, rows: int, keys: int, mask: str | None, causal: bool) -> None:
    operands = text([b, u * t, rows, 3], [b, u, keys, 3], [b, u, keys, 2])
    if mask is not None and not causal:
        operands += {"bool": f" bool[{rows},{keys}]", "f32": f" f32[{b},1,{rows},{keys}]", "row": f" f32[1,{keys}]"}[
            mask
        ]
    example = Example("attention", operands, {"scale": 0.4, "causal": causal, "grouped": True})
    check(example, example.tensors(2, F64))


def test_a_row_that_may_look_at_nothing_gives_nothing() -> None:
    example = Example("attention", "f32[1,2,3,4] f32[1,2,5,4] f32[1,2,5,4] bool[3,5]", {"scale": 0.5})
    *data, mask = example.tensors(0, F64)
    assert mask is not None
    mask[1] = False
    check(example, [*data, mask])


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@given(st.integers(3, 5), st.integers(-1, 2), st.integers(-1, 2), st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_padding_of_any_kind(mode: str, size: int, before: int, after: int, other: int) -> None:
    example = Example("pad", f"f32[2,2,{size},4]", {"pads": (0, 0, before, other, 0, 0, after, 0), "mode": mode})
    check(example, example.tensors(1, F64))


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_slices_with_a_step(length: int, step: int, start: int, other: int) -> None:
    whole = start + (length - 1) * step + 1 + other
    example = Example("slice", f"f32[2,{whole},2]", {"dim": 1, "start": start, "step": step}, ((2, length, 2),))
    check(example, example.tensors(1, F64))


WINDOWS = [
    Example("avg_pool", "f32[1,2,6,6]", {"kernel": (2, 3), "stride": (2, 3), "padding": (0, 0)}),
    Example("avg_pool", "f32[1,2,7]", {"kernel": (3,), "stride": (2,), "padding": (1,), "ceil": True}),
    Example("avg_pool", "f32[1,2,7,5]", {"kernel": (3, 2), "stride": (1, 2), "padding": (1, 1), "ceil": True, "divisor": 5}),
    Example("adaptive_avg_pool", "f32[2,2,7,6]", {}, ((2, 2, 3, 2),)),
    Example("interpolate", "f32[1,2,3,4]", {"mode": "nearest-exact"}, ((1, 2, 5, 2),)),
    Example("interpolate", "f32[1,2,3,4]", {"mode": "bilinear", "align_corners": True}, ((1, 2, 5, 2),)),
    Example("interpolate", "f32[1,2,6,6]", {"mode": "bilinear", "align_corners": False, "antialias": True}, ((1, 2, 3, 4),)),
    Example("interpolate", "f32[1,2,2,3,4]", {"rank": 3, "mode": "trilinear", "align_corners": False}, ((1, 2, 3, 3, 5),)),
    Example("interpolate", "f32[1,2,6,4]", {"mode": "area"}, ((1, 2, 3, 3),)),
    Example("interpolate", "f32[1,2,3,4]", {"mode": "bilinear", "align_corners": False, "scales": (1.7, 2.0)}, ((1, 2, 5, 8),)),
    *(
        Example("grid_sample", "f32[2,3,4,5] f32[2,3,2,2]", {"mode": mode, "padding": padding, "align_corners": inner})
        for mode in ("bilinear", "nearest", "bicubic") for padding in ("zeros", "border", "reflection") for inner in (False, True)
    ),
    Example("grid_sample", "f32[1,2,1,1] f32[1,3,2,2]", {"padding": "reflection", "align_corners": True}),
]  # fmt: skip


@pytest.mark.parametrize("example", WINDOWS, ids=str)
def test_means_over_windows_and_samples(example: Example) -> None:
    check(example, example.tensors(4, F64))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([(0,), (0, 1), (1, 2), (0, 2)]))
@settings(max_examples=40, deadline=None)
def test_lookups_at_any_dimensions_and_from_behind(a: int, b: int, c: int, dims: tuple[int, ...]) -> None:
    example = Example("index", f"f32[{a},{b},{c}]" + " i64[2,3]<1" * len(dims), {"dims": dims})
    x = example.tensors(0, F64)[0]
    assert x is not None
    generator = torch.Generator().manual_seed(a)
    drawn = [torch.randint(-x.shape[dim], x.shape[dim], (2, 3), generator=generator) for dim in dims]
    check(example, [x, *drawn])
