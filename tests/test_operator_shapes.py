"""Shapes under drawn sizes, strides and paddings: what inference says is what torch gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node
from suture.ir.operator import OPERATORS
from suture.ir.semantics import bind_symbols, evaluate, run_node
from suture.ir.sizes import Dim, evaluate_size, symbol
from suture.ir.types import TensorType

SMALL = st.integers(1, 4)


def node_of(operator: str, shapes: list[tuple[Dim, ...]], attributes: dict[str, Any], declared: Any = None) -> Node:
    graph = Graph()
    values = [graph.add_input(f"x{k}", TensorType(torch.float32, shape)) for k, shape in enumerate(shapes)]
    return graph.add(operator, values, attributes, shapes=declared)


def agrees(operator: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], declared: Any = None) -> bool:
    """Whether inference accepts the call; if so, torch gives the inferred shapes on zeros."""
    try:
        node = node_of(operator, shapes, attributes, declared)
    except SutureError as error:
        if error.code is not Code.SHAPE:
            raise
        return False
    results = run_node(node, [torch.zeros(shape) for shape in shapes], {})
    assert [tuple(t.shape) for t in results] == [value.shape for value in node.outputs]
    return True


def symbolic_agrees(operator: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], dim: int) -> None:
    """The same with one dimension of the first operand a symbol."""
    number = shapes[0][dim]
    first = (*shapes[0][:dim], symbol("s"), *shapes[0][dim + 1 :])
    node = node_of(operator, [first, *shapes[1:]], attributes)
    (result,) = run_node(node, [torch.zeros(shape) for shape in shapes], {"s": number})
    assert tuple(result.shape) == tuple(evaluate_size(size, {"s": number}) for size in node.output.shape)


@given(st.data(), st.integers(1, 3))
def test_convolutions(data: st.DataObject, rank: int) -> None:
    draw = data.draw
    groups, inner, outer = draw(st.integers(1, 3)), draw(SMALL), draw(SMALL)
    space = tuple(draw(st.integers(1, 9)) for _ in range(rank))
    kernel = tuple(draw(SMALL) for _ in range(rank))
    each = {
        name: tuple(draw(st.integers(low, 3)) for _ in range(rank))
        for name, low in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    shapes = [(2, groups * inner, *space), (groups * outer, inner, *kernel), (groups * outer,)]
    attributes = {**each, "groups": groups}
    fits = all(
        s + 2 * p >= d * (k - 1) + 1
        for s, k, p, d in zip(space, kernel, each["padding"], each["dilation"], strict=True)
    )
    assert agrees("conv", shapes, attributes) == fits
    if fits:
        for dim in (0, 2, 1 + rank):
            symbolic_agrees("conv", shapes, attributes, dim)


@given(st.data(), st.integers(1, 3))
def test_transposed_convolutions(data: st.DataObject, rank: int) -> None:
    draw = data.draw
    groups, inner, outer = draw(st.integers(1, 3)), draw(SMALL), draw(SMALL)
    space, kernel = tuple(draw(st.integers(1, 5)) for _ in range(rank)), tuple(draw(SMALL) for _ in range(rank))
    stride, dilation = (
        tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        tuple(draw(st.integers(1, 3)) for _ in range(rank)),
    )
    padding = tuple(draw(st.integers(0, 2)) for _ in range(rank))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    sizes = [
        (h - 1) * s + d * (k - 1) + e + 1 - 2 * p
        for h, s, d, k, e, p in zip(space, stride, dilation, kernel, extra, padding, strict=True)
    ]
    assume(min(sizes) > 0)
    shapes = [(2, groups * inner, *space), (groups * inner, outer, *kernel), (groups * outer,)]
    attributes = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}
    assert agrees("conv_transpose", shapes, attributes)
    symbolic_agrees("conv_transpose", shapes, attributes, 2)


@settings(max_examples=60)
@given(st.data(), st.integers(1, 3), st.booleans(), st.sampled_from(["max_pool", "avg_pool"]))
def test_pools(data: st.DataObject, rank: int, ceil: bool, operator: str) -> None:
    draw = data.draw
    kernel, stride = tuple(draw(SMALL) for _ in range(rank)), tuple(draw(st.integers(1, 5)) for _ in range(rank))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(rank)) if operator == "max_pool" else (1,) * rank
    space = tuple(draw(st.integers(1, 12)) for _ in range(rank))
    attributes: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil}
    more: dict[str, Any] = {"count_padding": True, "divisor": None}
    if operator == "max_pool":
        attributes["dilation"], more = dilation, {}
    try:
        OPERATORS[operator].run(torch.zeros(2, 3, *space), **attributes, **more)
    except RuntimeError:
        assume(False)
    assert agrees(operator, [(2, 3, *space)], attributes)
    symbolic_agrees(operator, [(2, 3, *space)], attributes, 1 + rank)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_reshapes_of_the_same_factors(factors: list[int], data: st.DataObject) -> None:
    """Two groupings of one row of factors, with ones strewn in."""

    def grouped() -> tuple[int, ...]:
        shape = [1]
        for factor in factors:
            if data.draw(st.booleans()):
                shape.append(factor)
            else:
                shape[-1] *= factor
        return tuple(size for k, size in enumerate(shape) if k or size != 1 or data.draw(st.booleans()))

    assert agrees("reshape", [grouped()], {}, [grouped()])


@given(st.lists(st.integers(0, 6), max_size=4), st.lists(st.integers(0, 6), max_size=4))
def test_any_reshape_is_accepted_just_when_the_elements_agree(source: list[int], target: list[int]) -> None:
    fits = torch.zeros(source).numel() == torch.zeros(target).numel()
    assert agrees("reshape", [tuple(source)], {}, [tuple(target)]) == fits


@given(st.permutations([symbol("batch"), symbol("length"), 6, 4]), st.integers(0, 2))
def test_symbolic_reshapes_merge_and_split(shape: list[Dim], at: int) -> None:
    merged = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
    sizes = {"batch": 3, "length": 5}
    for source, target in ((shape, merged), (merged, shape)):
        node = node_of("reshape", [tuple(source)], {}, [tuple(target)])
        (result,) = run_node(node, [torch.zeros([evaluate_size(size, sizes) for size in source])], sizes)
        assert list(result.shape) == [evaluate_size(size, sizes) for size in target]
        assert node.operator.instance(node).output_shapes() == (tuple(target),)


@given(st.integers(1, 9), st.integers(-1, 10), st.integers(1, 4), st.integers(0, 10))
def test_slices_lie_inside(size: int, start: int, step: int, length: int) -> None:
    inside = 0 <= start <= size and (length == 0 or start + (length - 1) * step < size)
    assert agrees("slice", [(2, size)], {"dim": 1, "start": start, "step": step}, [(2, length)]) == inside


@given(st.lists(st.tuples(st.integers(-2, 3), st.integers(-2, 3)), min_size=1, max_size=3), st.data())
def test_padding_and_cropping(amounts: list[tuple[int, int]], data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(5, 7)) for _ in amounts)
    pads = (*(before for before, _ in amounts), *(after for _, after in amounts))
    assert agrees("pad", [shape], {"pads": pads, "value": 0.5})
    symbolic_agrees("pad", [shape], {"pads": pads, "value": 0.5}, 0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 2))
def test_concatenations_and_splits_undo_each_other(parts: list[int], dim: int) -> None:
    shapes = [tuple(size if k == dim else 3 for k in range(3)) for size in parts]
    assert agrees("concat", shapes, {"dim": dim})
    whole = tuple(sum(parts) if k == dim else 3 for k in range(3))
    assert agrees("split", [whole], {"dim": dim - 3}, shapes)


@pytest.mark.parametrize("operator", ["add", "mul", "maximum", "eq", "where"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=4), data=st.data())
def test_elementwise_operators_broadcast_as_torch_does(operator: str, shape: list[int], data: st.DataObject) -> None:
    other = [data.draw(st.sampled_from([size, 1, 2])) for size in shape[data.draw(st.integers(0, len(shape))) :]]
    shapes = [tuple(shape), tuple(other)]
    try:
        torch.broadcast_shapes(*shapes)
        fits = True
    except RuntimeError:
        fits = False
    if operator != "where":
        assert agrees(operator, shapes, {}) == fits
        return
    graph = Graph()
    values = [
        graph.add_input(f"x{k}", TensorType(torch.bool if not k else torch.float32, s))
        for k, s in enumerate((shapes[0], shapes[1], shapes[0]))
    ]
    if not fits:
        with pytest.raises(SutureError):
            graph.add("where", values)
        return
    (result,) = run_node(graph.add("where", values), [torch.zeros(v.shape, dtype=v.dtype) for v in values], {})  # type: ignore[arg-type]
    assert tuple(result.shape) == graph.nodes[-1].output.shape


@given(st.data())
def test_matmul_broadcasts_as_torch_does(data: st.DataObject) -> None:
    draw = data.draw
    m, k, n = draw(SMALL), draw(SMALL), draw(SMALL)
    left = (k,) if draw(st.booleans()) else (*draw(st.lists(st.sampled_from([1, 2]), max_size=2)), m, k)
    right = (k,) if draw(st.booleans()) else (*draw(st.lists(st.sampled_from([1, 2]), max_size=2)), k, n)
    assert agrees("matmul", [left, right], {})


@given(st.integers(0, 40), st.sampled_from([0, -3, 0.5]), st.sampled_from([1, 2, -1, 0.1, 0.3, 1 / 3]))
def test_ranges_have_the_declared_length(length: int, start: float, step: float) -> None:
    dtype = torch.int64 if isinstance(start, int) and isinstance(step, int) else torch.float32
    node = node_of("arange", [], {"start": start, "step": step, "dtype": dtype}, [(length,)])
    (result,) = run_node(node, [], {})
    assert result.dtype == dtype
    expected = torch.tensor([start + k * step for k in range(length)], dtype=torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-5)


def test_sizes_that_inputs_give_reach_declared_shapes_and_attributes() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(torch.float32, (symbol("batch"), symbol("length") * 2)))
    half = graph.add("slice", [x], {"dim": 1, "start": symbol("length")}, shapes=[(symbol("batch"), symbol("length"))])
    scaled = graph.add("add", [half.output, None], {"scalar": symbol("batch")})
    graph.set_outputs([scaled.output])
    value = torch.arange(12.0).reshape(3, 4)
    symbols = bind_symbols(graph, [value])
    assert symbols == {"batch": 3, "length": 2}
    (part,) = run_node(half, [value], symbols)
    assert torch.equal(part, value[:, 2:])
    (result,) = run_node(scaled, [part], symbols)
    assert torch.equal(result, value[:, 2:] + 3)


# rows of segments and types


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.lists(SMALL, max_size=2), st.integers(1, 3))
def test_rows_in_segments(lengths: list[int], features: list[int], width: int) -> None:
    """Sorted rows: sums, maxima and spreads of segments, products of runs of one type, for any lengths of runs and symbols for them."""
    rows, runs = sum(lengths), len(lengths)
    pointers = torch.tensor([0, *lengths]).cumsum(0)
    e, n, sizes = symbol("e"), symbol("n"), {"e": rows, "n": runs}
    x = torch.randn(rows, *features)

    def run(
        operator: str, *operands: tuple[torch.Tensor, tuple[Dim, ...]], shape: tuple[Dim, ...] | None = None
    ) -> torch.Tensor:
        graph = Graph()
        values = [graph.add_input(f"x{k}", TensorType(t.dtype, dims)) for k, (t, dims) in enumerate(operands)]
        node = graph.add(operator, values, shapes=None if shape is None else [shape])
        (result,) = run_node(node, [tensor for tensor, _ in operands], sizes)
        assert tuple(result.shape) == tuple(evaluate_size(size, sizes) for size in node.output.shape)
        return result

    at = (pointers, (n + 1,))
    sums = run("csr_sum", (x, (e, *features)), at)
    maxima = run("csr_max", (x, (e, *features)), at)
    spread = run("csr_spread", (sums, (n, *features)), at, shape=(e, *features))
    for k, part in enumerate(x.split(lengths)):
        torch.testing.assert_close(sums[k], part.sum(0))
        torch.testing.assert_close(maxima[k], part.amax(0) if len(part) else torch.zeros(features))
        assert (spread[pointers[k] : pointers[k + 1]] == sums[k]).all()
    left, right = torch.randn(rows, 2), torch.randn(rows, width)
    outer = run("grouped_outer", (left, (e, 2)), (right, (e, width)), at)
    types = (torch.arange(runs), (n,))
    product = run("grouped_linear", (left, (e, 2)), (outer, (n, 2, width)), at, types)
    for k, (a, b, made) in enumerate(
        zip(left.split(lengths), right.split(lengths), product.split(lengths), strict=True)
    ):
        torch.testing.assert_close(outer[k], a.t() @ b)
        torch.testing.assert_close(made, a @ outer[k])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=8), st.integers(1, 4))
def test_measured_sizes_are_those_of_the_data(pairs: list[tuple[int, int]], rows: int) -> None:
    """Unique pairs and tiles: as many as there are, bound to their symbols, and in order."""
    graph = Graph()
    major, minor = (graph.add_input(name, TensorType(torch.int64, (symbol("e"),))) for name in ("major", "minor"))
    first, rank = graph.add("unique_rows", [major, minor], shapes=[(symbol("u"),), (symbol("e"),)]).outputs
    runs = graph.add("run_pointers", [major], shapes=[(5,)]).output
    tiles, types = graph.add("tile_runs", [runs], {"rows": rows}, shapes=[(symbol("k") + 1,), (symbol("k"),)]).outputs
    ones = graph.add("full", [], {"value": 1, "dtype": torch.int64}, shapes=[(symbol("u"),)]).output
    graph.set_outputs([first, rank, runs, tiles, types, ones], ["first", "rank", "runs", "tiles", "types", "ones"])
    assert graph.measured() == ("u", "k")
    keys = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    found = dict(zip(graph.output_names, evaluate(graph, [keys[:, 0], keys[:, 1]]), strict=True))
    different = sorted(set(pairs))
    assert [pairs[k] for k in found["first"]] == different
    assert [different[k] for k in found["rank"]] == pairs
    assert len(found["ones"]) == len(different)
    lengths = [sum(major == kind for major, _ in pairs) for kind in range(4)]
    wanted = [(kind, start) for kind, length in enumerate(lengths) for start in range(0, length, rows)]
    assert found["types"].tolist() == [kind for kind, _ in wanted]
    assert found["tiles"].tolist() == [*(sum(lengths[:kind]) + start for kind, start in wanted), len(pairs)]
