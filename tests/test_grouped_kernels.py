"""Products by type as kernels compute what the evaluator says, whatever the rows of the types, in all prints; and the verifier sees why they are safe."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
from cuda_stand_in import devices
from grouped import ROWS, TILES, Product, exact
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from lowered import checking, lower_all

import suture
from suture.backends.compiled_cuda import compile_cuda
from suture.codegen.cuda.printer import print_cuda
from suture.codegen.grouped import cuda_outer
from suture.codegen.grouped.template import TEMPLATES
from suture.codegen.program import lower
from suture.codegen.schedule import GemmSchedule, Schedule
from suture.codegen.step import KernelStep
from suture.ir.errors import SutureError
from suture.ir.graph import Graph
from suture.ir.kernel_text import parse_kernel
from suture.ir.kernel_verify import verify_kernel
from suture.ir.types import TensorType

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)
# every example is compiled: what fails is shown as it was drawn
FEW = settings(max_examples=5, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@st.composite
def products(draw: st.DrawFn, most: int = 60) -> Product:
    """Types without rows, with one, with more than a tile; heads; odd widths."""
    counts = draw(st.lists(st.sampled_from((0, 1, 3, 48, most)), min_size=1, max_size=4))
    heads = draw(st.sampled_from(((), (1,), (2,), (8,), (2, 3))))
    inner, columns = (draw(st.sampled_from((1, 3, 8, 33) if heads else (1, 7, 40, 64))) for _ in range(2))
    gathered = draw(st.booleans()), draw(st.booleans())
    dtype = draw(st.sampled_from(tuple(TOLERANCES)))
    behind = draw(st.sampled_from(((), ("relu",), ("tanh", "neg"))))
    return Product(
        tuple(counts),
        inner,
        columns,
        heads,
        gathered,
        draw(st.booleans()),
        dtype,
        draw(st.sampled_from((12, 48))),
        behind,
        draw(st.booleans()),
    )


def agree(graph: Graph, inputs: list[torch.Tensor], schedules: dict[str, Schedule] | None = None) -> None:
    """All prints on a processor compute what the graph means."""
    wanted = exact(graph, inputs)
    lowered = lower_all(graph, TEMPLATES, {})
    for call in (None, functools.partial(checking, backwards=False), functools.partial(checking, backwards=True)):
        (found,) = lowered.run(inputs, call)
        close(found, wanted)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    tolerance = TOLERANCES[found.dtype]
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * scale)


@FEW
@given(products())
def test_rows_times_the_matrix_of_their_type(product: Product) -> None:
    torch.manual_seed(0)
    agree(*product.linear())


@FEW
@example(Product((3, 20, 0), 1, 1, (2,)))
@given(products(140))
def test_sums_of_outer_products(product: Product) -> None:
    torch.manual_seed(0)
    agree(*product.outer())


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_every_element_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    product = Product((3, 0, 60), 40, 24, dtype=dtype, gathered=(True, True))
    agree(*product.linear())
    agree(*product.outer())


@pytest.mark.parametrize("heads", [(8, 8, 8), (8, 1, 8), (8, 8, 1), (6, 4, 3), (3, 2, 40)], ids=str)
def test_narrow_heads_side_by_side(heads: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    count, inner, columns = heads
    for turned in (False, True):
        agree(*Product((50, 1, 0), inner, columns, (count,), turned=turned).linear())
    agree(*Product((50, 1, 0), inner, columns, (count,)).outer())
    step = lower_all(Product((1,), 8, 8, (8,)).linear()[0], TEMPLATES, {}).steps[0]
    assert "2 heads side by side" in step.why


@pytest.mark.parametrize("schedule", [GemmSchedule(12, 32), GemmSchedule(24, 64), GemmSchedule(48, 16)], ids=str)
def test_other_tiles_give_the_same(schedule: GemmSchedule) -> None:
    torch.manual_seed(0)
    for graph, inputs in (Product((70, 5), 20, 40).linear(), Product((70, 5), 20, 40).outer()):
        [anchor] = [node for node in graph.nodes if node.operator.name.startswith("grouped")]
        program = lower(graph, schedules={anchor.output.name: schedule})
        steps = [step for step in program.steps if isinstance(step, KernelStep)]
        assert [step.schedule for step in steps] == [schedule]
        (found,) = _run(program, inputs)
        close(found, exact(graph, inputs))


def _run(program: object, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    from suture.backends.compiled import compile_program
    from suture.codegen.program import Program

    assert isinstance(program, Program)
    received = compile_program(program)(*inputs)
    return received if isinstance(received, tuple) else (received,)


def test_look_ups_and_what_follows_are_part_of_one_kernel() -> None:
    graph, inputs = Product((50, 1, 0), 64, 64, behind=("relu", "tanh")).linear()
    program = lower(graph)
    [step] = [each for each in program.steps if isinstance(each, KernelStep)]
    assert len(program.steps) == 1
    assert len([each for each in step.reads if each.rank == 2]) == 1  # the table, not what is looked up in it
    compiled = suture.compile(graph)
    first, second = compiled(*inputs), compiled(*inputs)
    assert torch.equal(first, second)
    close(first, exact(graph, inputs))


def test_nothing_to_look_up_in() -> None:
    graph, inputs = Product((0, 0), 5, 6, gathered=(True, True)).linear()
    inputs[0] = inputs[0][:0]
    assert suture.compile(graph)(*inputs).shape == (0, 6)
    graph, inputs = Product((0, 0), 5, 6, gathered=(True, True)).outer()
    inputs = [each[:0] if each.is_floating_point() else each for each in inputs]
    assert torch.equal(suture.compile(graph)(*inputs), torch.zeros(2, 5, 6))


@FEW
@given(products())
def test_rows_times_the_matrix_of_their_type_on_a_gpu(product: Product) -> None:
    torch.manual_seed(0)
    _agree_on_gpus(*product.linear())


@FEW
@given(products(140))
def test_sums_of_outer_products_on_a_gpu(product: Product) -> None:
    torch.manual_seed(0)
    _agree_on_gpus(*product.outer())


def _agree_on_gpus(graph: Graph, inputs: list[torch.Tensor]) -> None:
    program = lower(graph, "cuda")
    assert all(isinstance(step, KernelStep) for step in program.steps)
    wanted = exact(graph, inputs)
    for gpu in devices():
        received = compile_cuda(program, gpu)(*[each.to(gpu.place) for each in inputs])
        close(received.cpu(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_of_long_segments_are_added_in_their_order(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cuda_outer, "PART", 32)
    for gathered in ((True, False), (False, True)):
        product = Product((0, 31, 100, 32, 1, 65), 20, 9, (2,), gathered, dtype=dtype)
        _agree_on_gpus(*product.outer())


def test_short_floats_go_to_tensor_cores() -> None:
    for graph, _ in (
        Product((9,), 64, 64, dtype=torch.bfloat16).linear(),
        Product((9,), 64, 64, dtype=torch.bfloat16).outer(),
    ):
        assert "mma.sync" in print_cuda(*lower(graph, "cuda").kernels)


SEGMENTS = """\
kernel fill(n: size, e: size, p: i64[n + 1] below e + 1{rising}, y: f32[e])
  grid node < n
  let begin = p[node]
  each t < 4:
    for i in 0 .. (p[node + 1] - begin - t + 3) // 4:
      y[begin + i * 4 + t] = f32(1.0)
"""
PARTS = """\
kernel parts(n: size, e: size, p: i64[n + 1] below e + 1 rising, y: f32[e // 64 + 1])
  grid node < n
  grid part < e // 64 + 1
  let begin = p[node]
  each t < 1:
    if {from_} <= part and begin + part * 64 < p[node + 1]:
      y[begin // 64 + part] = f32(1.0)
"""


def test_the_verifier_sees_that_segments_are_apart() -> None:
    verify_kernel(parse_kernel(SEGMENTS.format(rising=" rising")))
    with pytest.raises(SutureError, match="two values of node may write one element"):
        verify_kernel(parse_kernel(SEGMENTS.format(rising="")))
    with pytest.raises(SutureError, match="two values of node may write one element"):
        verify_kernel(
            parse_kernel(
                SEGMENTS.format(rising=" rising").replace("begin + i", "0 + i").replace("p[node + 1] - begin", "e")
            )
        )


MOVED = """\
kernel moved(n: size, e: size, p: i64[n + 1] below e + 1 rising, to: i64[e] below e{distinct}, y: f32[e])
  grid node < n
  let begin = p[node]
  each t < 4:
    for i in 0 .. (p[node + 1] - begin - t + 3) // 4:
      let at = to[begin + i * 4 + t]
      y[at] = f32(1.0)
"""


def test_the_verifier_sees_that_rows_go_to_places_of_their_own() -> None:
    kernel = parse_kernel(MOVED.format(distinct=" distinct"))
    verify_kernel(kernel)
    assert str(kernel) == MOVED.format(distinct=" distinct")
    with pytest.raises(SutureError, match="may write one element"):
        verify_kernel(parse_kernel(MOVED.format(distinct="")))
    overlapping = MOVED.format(distinct=" distinct").replace("to[begin + i * 4 + t]", "to[begin + i * 4]")
    with pytest.raises(SutureError, match="two values of t may write one element"):
        verify_kernel(parse_kernel(overlapping))


def test_an_order_that_lacks_a_row_is_refused() -> None:
    graph, inputs = Product((3, 2), 8, 8, put=True).linear()
    assert len(lower(graph).left) == 0
    compiled = suture.compile(graph)
    close(compiled(*inputs), exact(graph, inputs))
    inputs[-1][0] = inputs[-1][1]
    with pytest.raises(SutureError, match="the order order does not have each row once"):
        compiled(*inputs)


def test_the_verifier_sees_that_parts_behind_the_first_have_places_of_their_own() -> None:
    verify_kernel(parse_kernel(PARTS.format(from_="1")))
    with pytest.raises(SutureError, match="may write one element"):
        verify_kernel(parse_kernel(PARTS.format(from_="0")))  # first parts of short segments meet


@pytest.mark.parametrize("columns", [1, 3], ids=str)
def test_few_columns_are_inner_products(columns: int) -> None:
    torch.manual_seed(0)
    for gathered in (True, False):
        graph, inputs = Product(
            (50, 0, 1), 40, columns, gathered=(gathered, False), behind=("tanh",), put=gathered
        ).linear()
        [step] = lower_all(graph, TEMPLATES, {}).steps
        assert "a row's features over 48 lanes" in step.why
        agree(graph, inputs)


@pytest.mark.parametrize("target", ["cpp", "cuda"])
@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (1, 40), (64, 1)], ids=str)
def test_rows_in_another_order_may_be_none(target: str, shape: tuple[int, int]) -> None:
    inner, columns = shape
    graph = Graph("ordered")
    table, weights = TensorType(torch.float32, (ROWS, inner)), TensorType(torch.float32, (3, inner, columns))
    x, order = graph.add_input("x", table), graph.add_input("order", TensorType(torch.int64, (ROWS,)))
    w = graph.add_input("w", weights)
    tiles, types = (
        graph.add_input(name, TensorType(torch.int64, (size,)))
        for name, size in (("tiles", TILES + 1), ("types", TILES))
    )
    rows = graph.add("embedding", [x, order]).output
    y = graph.add("grouped_linear", [rows, w, tiles, types]).output
    pointers = graph.add_input("p", TensorType(torch.int64, (4,)))
    graph.set_outputs([y, graph.add("grouped_outer", [rows, y, pointers]).output], ["y", "outer"])
    program = lower(graph, target)
    assert not [reason for node, reason in program.left.items() if node.operator.name.startswith("grouped")]


def test_rows_that_are_joined_of_parts_are_brought_together_first() -> None:
    torch.manual_seed(0)
    graph, inputs = Product((5, 0, 90), 24, 40, gathered=(False, False)).linear()
    rows = graph.inputs[0]
    (node,) = graph.nodes
    other = graph.add_input("other", TensorType(torch.float32, (ROWS, 8)))
    joined = graph.add(
        "concat", [graph.add("split", [rows], {"dim": 1}, shapes=[(ROWS, 16), (ROWS, 8)]).outputs[0], other], {"dim": 1}
    )
    node.replace_input(0, joined.output)
    graph.sort()
    inputs.append(torch.randn(95, 8))
    compiled = suture.compile(graph)
    assert "clone" in str(compiled.program) and "torch:" not in str(compiled.program)
    torch.testing.assert_close(compiled(*inputs), suture.evaluate(graph, inputs)[0], rtol=1e-5, atol=1e-5)
