"""Matrix products as kernels: they compute what the evaluator does in float64, whatever the letters, shapes, views and nodes behind."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_kernel_prints import check, needs_compiler

from suture.backends.compiled import compile_graph, compile_program
from suture.codegen.calling import _number
from suture.codegen.gemm.roles import Roles, find_roles
from suture.codegen.gemm.schedule import default_schedule
from suture.codegen.program import lower
from suture.codegen.schedule import GemmSchedule
from suture.codegen.step import KernelStep
from suture.ir.graph import Graph, Node
from suture.ir.kernel import MultiplyAccumulate, walk
from suture.ir.semantics import bind_symbols, evaluate
from suture.ir.sizes import evaluate_size
from suture.ir.text import parse_graph

_TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def wide(text: str) -> str:
    """The same graph in float64."""
    for short in ("f32", "bf16", "f16"):
        text = text.replace(f"{short}[", "f64[").replace(f"dtype={short}", "dtype=f64")
    return text


class Case:
    """A graph in text, with random parameters and inputs."""

    def __init__(self, text: str, inputs: list[torch.Tensor], **parameters: torch.Tensor) -> None:
        self.text, self.inputs, self.parameters = text, inputs, parameters
        self.graph = parse_graph(text, parameters)
        self.expected = evaluate(
            parse_graph(wide(text), {name: data.double() for name, data in parameters.items()}),
            [x.double() for x in inputs],
        )

    def agree(self) -> None:
        """It is lowered, and compiled it computes what it does in float64."""
        program = lower(self.graph, alone=True)
        assert not program.left, program.left
        assert any(isinstance(each, MultiplyAccumulate) for kernel in program.kernels for each in walk(kernel.body))
        found = compile_program(program)(*self.inputs)
        self.close(found if isinstance(found, tuple) else (found,))

    def close(self, found: object) -> None:
        assert isinstance(found, tuple | list)
        for one, other in zip(found, self.expected, strict=True):
            tolerance = _TOLERANCE[one.dtype] * max(1.0, float(other.abs().max()) if other.numel() else 1.0)
            torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)


def run_checked(case: Case, *, backwards: bool) -> list[torch.Tensor]:
    """The kernels of a graph one after the other, in their checking print."""
    program = lower(case.graph, alone=True)
    symbols = bind_symbols(program.graph, case.inputs)
    known = dict(zip(program.graph.inputs, case.inputs, strict=True))
    known |= {each: each.data for each in program.graph.parameters.values()}
    known |= {each.value: each.make() for each in program.constants}
    for step in program.steps:
        assert isinstance(step, KernelStep)
        sizes = {
            name.name: evaluate_size(dim, symbols) for name, dim in zip(step.kernel.sizes, step.sizes, strict=True)
        }
        tensors = []
        for value, buffer in zip(step.arguments, step.kernel.arguments, strict=True):
            if value not in known:
                known[value] = torch.full(
                    [evaluate_size(dim, symbols) for dim in value.shape], math.nan, dtype=value.dtype
                )
            tensors.append(known[value].contiguous().view([_number(dim, sizes) for dim in buffer.shape]))
        assert check(step.kernel, tensors, backwards=backwards) == ""
    return [known[value] for value in program.graph.outputs]


def linear(rows: str, m: int, k: int, n: int, dtype: str = "f32", behind: str = "", result: str = "y") -> Case:
    torch.manual_seed(m + k + n)
    kind = _DTYPES[dtype]
    text = (
        f"graph g(%x: {dtype}[{rows}, {k}], %rest: {dtype}[{rows}, {n}]) {{\n  parameter @w: {dtype}[{n}, {k}]\n  parameter @b: {dtype}[{n}]\n"
        f"  %y: {dtype}[{rows}, {n}] = linear(%x, @w, @b)\n{behind}  return %{result} as o\n}}\n"
    )
    x, rest, w, b = torch.randn(m, k), torch.randn(m, n), torch.randn(n, k) / max(1, k) ** 0.5, torch.randn(n)
    return Case(text, [x.to(kind), rest.to(kind)], w=w.to(kind), b=b.to(kind))


@needs_compiler
@pytest.mark.parametrize("dtype", _DTYPES)
@settings(max_examples=8, deadline=None)
@given(m=st.integers(1, 30), k=st.integers(1, 70), n=st.integers(1, 70))
@example(m=1, k=64, n=40)
@example(m=197, k=16, n=33)
@example(m=24, k=300, n=64)
def test_linear(dtype: str, m: int, k: int, n: int) -> None:
    linear(str(m), m, k, n, dtype).agree()


@needs_compiler
def test_one_compiled_linear_takes_any_number_of_rows() -> None:
    w, b = torch.randn(37, 20), torch.randn(37)
    text = (
        "graph g(%x: f32[m, 20]) {\n  parameter @w: f32[37, 20]\n  parameter @b: f32[37]\n"
        "  %y: f32[m, 37] = linear(%x, @w, @b)\n  %z: f32[m, 37] = gelu(%y)\n  return %z as o\n}\n"
    )
    compiled = compile_graph(parse_graph(text, {"w": w, "b": b}))
    for m in (0, 1, 2, 11, 12, 13, 25, 96, 97, 500):
        case = Case(text, [torch.randn(m, 20)], w=w, b=b)
        case.close([compiled(*case.inputs)])
        if m in (2, 25):
            case.close(run_checked(case, backwards=True))


_BEHIND = {
    "gelu": "  %z: {t} = gelu(%y)\n",
    "residual": "  %z: {t} = add(%y, %rest)\n",
    "a chain": "  %a: {t} = silu(%y)\n  %c: {t} = mul(%a, %rest)\n  %z: {t} = add(%c) scalar=0.5\n",
    "itself": "  %z: {t} = mul(%y, %y)\n",
}


@needs_compiler
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("behind", _BEHIND)
def test_what_stands_behind_runs_on_the_sums(behind: str, dtype: str) -> None:
    case = linear("26", 26, 40, 70, dtype, _BEHIND[behind].format(t=f"{dtype}[26, 70]"), "z")
    case.agree()
    program = lower(case.graph)
    steps = [step for step in program.steps if isinstance(step, KernelStep)]
    assert len(steps) == (1 if dtype == "f32" else 2)  # rows of short floats are made wide first
    for backwards in (False, True):
        case.close(run_checked(case, backwards=backwards))


@needs_compiler
def test_the_sums_themselves_may_be_read_too() -> None:
    text = (
        "graph g(%x: f32[14, 9]) {\n  parameter @w: f32[33, 9]\n  %y: f32[14, 33] = linear(%x, @w)\n  %z: f32[14, 33] = relu(%y)\n"
        "  return %z as o, %y as p\n}\n"
    )
    case = Case(text, [torch.randn(14, 9)], w=torch.randn(33, 9))
    case.agree()
    assert len(lower(case.graph).kernels) == 1


@needs_compiler
def test_what_stands_behind_reshapes_runs_on_the_sums_too() -> None:
    torch.manual_seed(0)
    text = (
        "graph g(%x: f32[2, 13, 9], %rest: f32[2, 13, 33], %other: f32[13, 2, 33]) {\n  parameter @w: f32[33, 9]\n"
        "  %rows: f32[26, 9] = reshape(%x)\n  %y: f32[26, 33] = linear(%rows, @w)\n  %t: f32[26, 33] = relu(%y)\n"
        "  %a: f32[2, 13, 33] = reshape(%t)\n  %z: f32[2, 13, 33] = add(%a, %rest)\n"
        "  %b: f32[13, 2, 33] = reshape(%z)\n  %c: f32[13, 2, 33] = mul(%b, %other)\n  return %c as o, %z as p\n}\n"
    )
    case = Case(text, [torch.randn(2, 13, 9), torch.randn(2, 13, 33), torch.randn(13, 2, 33)], w=torch.randn(33, 9))
    case.agree()
    assert len(lower(case.graph).kernels) == 1
    case.close(run_checked(case, backwards=True))


def test_what_stands_behind_a_view_that_mixes_columns_is_not_behind() -> None:
    for view in ("f32[8, 32] = reshape(%y)", "f32[32, 8] = reshape(%y)", "f32[16, 16] = permute(%y) dims=(1, 0)"):
        shape = view.partition(" ")[0] if "," not in view.partition(" ")[0] else view.partition("]")[0] + "]"
        text = (
            f"graph g(%x: f32[16, 9]) {{\n  parameter @w: f32[16, 9]\n  %y: f32[16, 16] = linear(%x, @w)\n  %v: {view}\n"
            f"  %z: {shape} = relu(%v)\n  return %z as o\n}}\n"
        )
        steps = [
            step for step in lower(parse_graph(text, {"w": torch.randn(16, 9)})).steps if isinstance(step, KernelStep)
        ]
        assert len(steps) == 2


_MATMULS = [
    ("f32[3, 4, 6, 8]", "f32[4, 8, 5]", "f32[3, 4, 6, 5]"),
    ("f32[6, 8]", "f32[4, 8, 5]", "f32[4, 6, 5]"),
    ("f32[2, 1, 6, 8]", "f32[1, 3, 8, 50]", "f32[2, 3, 6, 50]"),
    ("f32[2, 7, 8]", "f32[8]", "f32[2, 7]"),
    ("f32[8]", "f32[8, 70]", "f32[70]"),
    ("f32[8]", "f32[3, 8, 4]", "f32[3, 4]"),
    ("f64[5, 13, 40]", "f64[5, 40, 17]", "f64[5, 13, 17]"),
    ("bf16[5, 13, 40]", "bf16[5, 40, 17]", "bf16[5, 13, 17]"),
    ("f16[13, 40]", "f16[40, 37]", "f16[13, 37]"),
]


def tensor_of(kind: str) -> torch.Tensor:
    dtype, _, shape = kind[:-1].partition("[")
    return torch.randn([int(size) for size in shape.split(", ")]).to(_DTYPES[dtype])


@needs_compiler
@pytest.mark.parametrize(("left", "right", "result"), _MATMULS)
def test_matmul(left: str, right: str, result: str) -> None:
    torch.manual_seed(0)
    text = f"graph g(%x: {left}, %y: {right}) {{\n  %z: {result} = matmul(%x, %y)\n  return %z as o\n}}\n"
    case = Case(text, [tensor_of(left), tensor_of(right)])
    case.agree()
    for backwards in (False, True):
        case.close(run_checked(case, backwards=backwards))


@needs_compiler
@pytest.mark.parametrize("added", ["f32[4]", "f32[2, 4]"])
def test_addmm(added: str) -> None:
    torch.manual_seed(0)
    text = (
        f"graph g(%c: {added}, %x: f32[2, 3], %y: f32[4, 3]) {{\n  %t: f32[3, 4] = permute(%y) dims=(1, 0)\n"
        "  %z: f32[2, 4] = addmm(%c, %x, %t)\n  return %z as o\n}\n"
    )
    Case(text, [tensor_of(added), torch.randn(2, 3), torch.randn(4, 3)]).agree()


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[int], list[int]]:
    """A product of two tensors in Einstein's notation, its letters in any order."""
    letters = iter("abcdefgh")
    batch, rows, columns = ([next(letters) for _ in range(draw(st.integers(0, 2)))] for _ in range(3))
    inner = [next(letters) for _ in range(draw(st.integers(1, 2)))]
    sizes = {letter: draw(st.sampled_from([1, 2, 3, 5, 13])) for letter in "abcdefgh"}
    left, right, result = (
        draw(st.permutations(each)) for each in (batch + rows + inner, batch + columns + inner, batch + rows + columns)
    )
    return f"{''.join(left)},{''.join(right)}->{''.join(result)}", [sizes[x] for x in left], [sizes[x] for x in right]


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(equations(), st.booleans())
def test_einsum(drawn: tuple[str, list[int], list[int]], fixed: bool) -> None:
    """With a parameter on the right, which is packed when compiled, or computed."""
    equation, left, right = drawn
    torch.manual_seed(0)
    x, y = torch.randn(left), torch.randn(right)
    result = torch.einsum(equation, x, y)
    declared = [f"f32{list(t.shape)}" for t in (x, y, result)]
    if fixed:
        head, operand = f"graph g(%x: {declared[0]}) {{\n  parameter @w: {declared[1]}\n", "@w"
    else:
        head, operand = f"graph g(%x: {declared[0]}, %w: {declared[1]}) {{\n", "%w"
    text = f'{head}  %z: {declared[2]} = einsum(%x, {operand}) equation="{equation}"\n  return %z as o\n}}\n'
    (Case(text, [x], w=y) if fixed else Case(text, [x, y])).agree()


@needs_compiler
def test_operands_are_read_through_views() -> None:
    """Queries and keys of all heads are slices of one tensor; the kernels read them there."""
    text = """\
graph g(%x: f32[2, 14, 72]) {
  %a: f32[2, 14, 24], %b: f32[2, 14, 24], %c: f32[2, 14, 24] = split(%x) dim=-1
  %q: f32[2, 14, 3, 8] = reshape(%a)
  %k: f32[2, 14, 3, 8] = reshape(%b)
  %v: f32[2, 14, 3, 8] = reshape(%c)
  %queries: f32[2, 3, 14, 8] = permute(%q) dims=(0, 2, 1, 3)
  %keys: f32[2, 3, 8, 14] = permute(%k) dims=(0, 2, 3, 1)
  %values: f32[2, 3, 14, 8] = permute(%v) dims=(0, 2, 1, 3)
  %scores: f32[2, 3, 14, 14] = matmul(%queries, %keys)
  %scaled: f32[2, 3, 14, 14] = mul(%scores) scalar=0.35
  %mixed: f32[2, 3, 14, 8] = matmul(%scaled, %values)
  return %mixed as o
}
"""
    case = Case(text, [torch.randn(2, 14, 72)])
    case.agree()
    names = [step.kernel.name.split("_")[0] for step in lower(case.graph).steps if isinstance(step, KernelStep)]
    assert names == ["gemm", "gemm"]
    for backwards in (False, True):
        case.close(run_checked(case, backwards=backwards))


@needs_compiler
def test_a_computed_left_matrix_is_copied_once() -> None:
    text = """\
graph g(%x: f32[5, 9], %y: f32[5, 4]) {
  parameter @w: f32[40, 13]
  %both: f32[5, 13] = concat(%x, %y) dim=1
  %z: f32[5, 40] = linear(%both, @w)
  return %z as o
}
"""
    case = Case(text, [torch.randn(5, 9), torch.randn(5, 4)], w=torch.randn(40, 13))
    case.agree()
    assert [kernel.name for kernel in lower(case.graph).kernels] == ["copy_0", "gemm_0"]


@needs_compiler
@pytest.mark.parametrize(
    "schedule",
    [GemmSchedule(4, 32, group=1), GemmSchedule(12, 64, group=3), GemmSchedule(24, 32, group=2), GemmSchedule(7, 16)],
)
def test_schedules_change_nothing(schedule: GemmSchedule) -> None:
    case = linear("50", 50, 40, 70, behind="  %z: f32[50, 70] = gelu(%y)\n", result="z")
    program = lower(case.graph, schedules={"z": schedule, "y": schedule})
    assert [step.schedule for step in program.steps if isinstance(step, KernelStep)] == [schedule]
    case.close([compile_program(program)(*case.inputs)])


_INTEGERS = {
    "one scale": ("i8[40, 30]", "f32[]", None, ""),
    "a scale for each column": ("i8[40, 30]", "f32[40]", None, " axis=0"),
    "unsigned": ("u8[40, 30]", "f32[40]", "u8[40]", " axis=0"),
    "a zero point": ("i8[40, 30]", "f32[40]", "i8[40]", " axis=0"),
    "a scale for each row": ("i8[40, 30]", "f32[30]", None, " axis=1"),
    "blocks": ("i8[40, 30]", "f32[40, 3]", "i8[40, 3]", " axis=1 block=10"),
}


@needs_compiler
@pytest.mark.parametrize("kind", _INTEGERS)
def test_weights_of_integers(kind: str) -> None:
    torch.manual_seed(0)
    integers, scale, zero, attributes = _INTEGERS[kind]
    signed = integers.startswith("i8")
    low, high, dtype = (-128, 128, torch.int8) if signed else (0, 256, torch.uint8)
    parameters = {
        "q": torch.randint(low, high, (40, 30)).to(dtype),
        "s": tensor_of(scale).abs() / 100 if scale != "f32[]" else torch.tensor(0.02),
    }
    declared = f"  parameter @q: {integers} frozen\n  parameter @s: {scale} frozen\n"
    if zero is not None:
        parameters["z"] = torch.randint(
            low // 8, high // 8, [int(x) for x in zero[:-1].partition("[")[2].split(", ")]
        ).to(dtype)
        declared += f"  parameter @z: {zero} frozen\n"
    text = (
        f"graph g(%x: f32[19, 30]) {{\n{declared}"
        f"  %w: f32[40, 30] = dequantise(@q, @s{', @z' if zero else ''}){attributes} signed={str(signed).lower()}\n"
        "  %y: f32[19, 40] = linear(%x, %w)\n  %z: f32[19, 40] = relu(%y)\n  return %z as o\n}\n"
    )
    graph, x = parse_graph(text, parameters), torch.randn(19, 30)
    program = lower(graph)
    assert [type(step) for step in program.steps] == [KernelStep]  # nothing is dequantised when it runs
    (expected,) = evaluate(graph, [x])
    torch.testing.assert_close(compile_graph(graph)(x), expected, rtol=1e-4, atol=1e-4)
    small = (
        torch.float32
        if kind in ("blocks", "a scale for each row")
        else torch.bfloat16
        if kind in ("unsigned", "a zero point")
        else torch.int8
    )
    assert [each.value.dtype for each in program.constants] == [small]


def only_node(text: str) -> Node:
    return next(node for node in parse_graph(text).nodes if node.operator.name in ("einsum", "matmul"))


def roles_of(equation: str, x: str, y: str, z: str) -> Roles | str:
    node = only_node(
        f'graph g(%x: {x}, %y: {y}) {{\n  %z: {z} = einsum(%x, %y) equation="{equation}"\n  return %z as o\n}}\n'
    )
    return find_roles(node, range(node.output.rank))


def test_roles_are_read_off_the_letters() -> None:
    found = roles_of("bhqd,bhkd->bhqk", "f32[2, 3, 4, 5]", "f32[2, 3, 6, 5]", "f32[2, 3, 4, 6]")
    assert isinstance(found, Roles)
    assert (found.left, found.right) == (0, 1)
    assert (found.batch, found.rows, found.columns, found.inner) == (("b", "h"), ("q",), ("k",), ("d",))
    # the result's innermost dimension is the first operand's, so the second one is the left matrix
    found = roles_of("nchw,oc->nohw", "f32[2, 3, 4, 5]", "f32[6, 3]", "f32[2, 6, 4, 5]")
    assert isinstance(found, Roles)
    assert (found.left, found.right) == (1, 0)
    assert (found.batch, found.rows, found.columns, found.inner) == (("n",), ("o",), ("h", "w"), ("c",))


@pytest.mark.parametrize(
    ("equation", "x", "y", "z", "why"),
    [
        ("iij,jk->ik", "f32[2, 2, 3]", "f32[3, 4]", "f32[2, 4]", "it takes a diagonal"),
        ("ij,jk->k", "f32[2, 3]", "f32[3, 4]", "f32[4]", "it sums over a letter of one operand alone"),
        ("i,j->ij", "f32[2]", "f32[3]", "f32[2, 3]", "it is no product of two operands"),
    ],
)
def test_what_is_no_matrix_product_says_why(equation: str, x: str, y: str, z: str, why: str) -> None:
    assert roles_of(equation, x, y, z) == why


def test_what_is_left_to_torch_says_why() -> None:
    text = "graph g(%x: i64[2, 3], %y: i64[3, 4]) {\n  %z: i64[2, 4] = matmul(%x, %y)\n  return %z as o\n}\n"
    assert list(lower(parse_graph(text)).left.values()) == ["its numbers are no floats"]
    text = "graph g(%x: f32[2, 0], %y: f32[0, 4]) {\n  %z: f32[2, 4] = matmul(%x, %y)\n  return %z as o\n}\n"
    assert list(lower(parse_graph(text)).left.values()) == ["it has no elements"]
    text = (
        "graph g(%x: f32[512, 512], %y: f32[512, 512]) {\n  %z: f32[512, 512] = matmul(%x, %y)\n  return %z as o\n}\n"
    )
    assert list(lower(parse_graph(text)).left.values()) == ["the library is quicker with two large computed matrices"]
    assert not lower(parse_graph(text), alone=True).left  # there is no library
    assert not lower(parse_graph(text), schedules={"z": GemmSchedule()}).left
    text = "graph g(%x: f32[12, 12], %y: f32[12]) {\n  %z: f32[12] = matmul(%x, %y)\n  return %z as o\n}\n"
    assert list(lower(parse_graph(text)).left.values()) == [
        "the library is quicker with a computed matrix and a vector"
    ]


@settings(max_examples=200, deadline=None)
@given(m=st.integers(1, 4000), k=st.integers(1, 3000), n=st.integers(1, 3000), processors=st.integers(1, 16))
def test_processors_have_about_the_same_to_do(m: int, k: int, n: int, processors: int) -> None:
    node = only_node(
        f"graph g(%x: f32[{m}, {k}], %y: f32[{k}, {n}]) {{\n  %z: f32[{m}, {n}] = matmul(%x, %y)\n  return %z as o\n}}\n"
    )
    roles = find_roles(node, range(2))
    assert isinstance(roles, Roles)
    schedule = default_schedule(roles, torch.float32, processors)
    tiles, panels = math.ceil(m / schedule.rows), math.ceil(n / schedule.columns)
    groups = [min(schedule.group, tiles - first) for first in range(0, tiles, schedule.group)]
    blocks = [group for group in groups for _ in range(panels)]
    ends = [len(blocks) * share // processors for share in range(processors + 1)]
    longest = max(sum(blocks[start:stop]) for start, stop in pairwise(ends))
    assert longest <= 1.35 * math.ceil(tiles * panels / processors)


def test_graphs_are_not_changed() -> None:
    case = linear("5", 5, 6, 7)
    before = str(case.graph)
    lower(case.graph)
    assert str(case.graph) == before
    assert isinstance(case.graph, Graph)
