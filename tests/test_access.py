"""Access functions: every element of a view is the one that torch has there, with the index known and with it left open."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.codegen.access import VIEWS, is_view
from suture.codegen.builder import KernelBuilder
from suture.codegen.indices import Indices, stride_of
from suture.codegen.step import Context
from suture.ir.graph import Graph, Value
from suture.ir.kernel import Apply, Expression, Let, Literal, Load, Name, parts
from suture.ir.operator import OPERATORS
from suture.ir.semantics import evaluate
from suture.ir.sizes import symbol
from suture.ir.types import TensorType

_TWO: dict[str, Any] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "//": lambda a, b: a // b, "%": lambda a, b: a % b,
    "min": min, "max": max, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, "and": lambda a, b: a and b, "==": lambda a, b: a == b,
}  # fmt: skip


def number(expression: Expression, names: Mapping[str, Any], memory: Mapping[str, torch.Tensor]) -> Any:
    """What an expression is; an index outside of its buffer is an error, as it is in memory."""
    match expression:
        case Literal(value):
            return value
        case Name(name):
            return names[name]
        case Load(buffer, index):
            at = tuple(number(each, names, memory) for each in index)
            assert all(0 <= each < size for each, size in zip(at, memory[buffer.name].shape, strict=True))
            return memory[buffer.name][at].item()
        case Apply("cast", (value,)):
            return number(value, names, memory)
        case Apply("select", (condition, then, otherwise)):
            return number(then if number(condition, names, memory) else otherwise, names, memory)
        case Apply(function, (left, right)):
            return _TWO[function](number(left, names, memory), number(right, names, memory))
    raise AssertionError(expression)


def elements(graph: Graph, value: Value, inputs: Sequence[torch.Tensor], *, known: bool) -> torch.Tensor:
    """Every element of a value through its access function; `known` puts the indices in as numbers."""
    shape = [int(str(dim)) for dim in value.shape]
    result = torch.zeros(shape, dtype=torch.float64)
    given = dict(zip(graph.inputs, inputs, strict=True))
    builder: KernelBuilder | None = None
    for at in itertools.product(*map(range, shape)):
        if builder is None or known:
            builder = KernelBuilder(Context(graph), (), "k")
            index: list[Expression] = []
            for k, (place, size) in enumerate(zip(at, shape, strict=True)):
                index.append(Literal(place) if known else builder.variable(f"i{k}", Literal(0), Literal(size)))
            lane = builder.lane()
            found = lane.value(value, index)
            step = builder.finish((), "")
            memory = {
                buffer.name: given[each] for buffer, each in zip(step.kernel.arguments, step.arguments, strict=True)
            }
        names: dict[str, Any] = {f"i{k}": place for k, place in enumerate(at)}
        for statement in lane.statements:
            assert isinstance(statement, Let)
            names[statement.name.name] = number(statement.value, names, memory)
        result[at] = number(found, names, memory)
    return result


@st.composite
def views(draw: st.DrawFn) -> tuple[Graph, list[torch.Tensor]]:
    """A chain of views of a small tensor."""
    graph = Graph("views")
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))
    x = graph.add_input("x", TensorType(torch.float32, tuple(shape)))
    inputs = [torch.randn(shape)]
    value = x
    for _ in range(draw(st.integers(1, 4))):
        sizes = [int(str(dim)) for dim in value.shape]
        dim = draw(st.integers(0, len(sizes) - 1)) if sizes else 0
        options = ["reshape", "permute", "repeat", "concat"]
        options += (
            ["slice", "select", "flip", "roll", "pad", "index", "split", "interleave"] if sizes and sizes[dim] else []
        )
        options += ["triangle"] if len(sizes) >= 2 else []
        match draw(st.sampled_from(options)):
            case "reshape":
                count = torch.Size(sizes).numel()
                first = draw(st.sampled_from([k for k in range(1, max(count, 1) + 1) if count % k == 0]))
                value = graph.add("reshape", [value], shapes=[(first, count // first)]).output
            case "permute":
                value = graph.add("permute", [value], {"dims": tuple(draw(st.permutations(range(len(sizes)))))}).output
            case "repeat":
                times = tuple(draw(st.integers(1, 2)) for _ in sizes)
                value = graph.add("repeat", [value], {"repeats": times}).output if sizes else value
            case "concat" if sizes:
                value = graph.add("concat", [value, value, value], {"dim": dim}).output
            case "slice":
                start = draw(st.integers(0, sizes[dim] - 1))
                step = draw(st.integers(1, 2))
                length = -(-(sizes[dim] - start) // step)
                shapes = [tuple(length if k == dim else size for k, size in enumerate(sizes))]
                value = graph.add("slice", [value], {"dim": dim, "start": start, "step": step}, shapes=shapes).output
            case "select":
                at = draw(st.integers(-sizes[dim], sizes[dim] - 1))
                value = graph.add("select", [value], {"dim": dim, "index": at}).output
            case "flip":
                value = graph.add("flip", [value], {"dims": (dim,)}).output
            case "roll":
                value = graph.add("roll", [value], {"dims": (dim,), "shifts": (draw(st.integers(-5, 5)),)}).output
            case "pad":
                pads = [draw(st.integers(0, 2)) for _ in range(2 * len(sizes))]
                value = graph.add("pad", [value], {"pads": tuple(pads), "mode": "constant", "value": 2.0}).output
            case "index":
                rows = torch.randint(-sizes[dim], sizes[dim], (draw(st.integers(1, 3)),))
                i = graph.add_input(f"i{len(inputs)}", TensorType(torch.int64, tuple(rows.shape)))
                inputs.append(rows)
                value = graph.add("index", [value, i], {"dims": (dim,)}).output
            case "split":
                cut = draw(st.integers(0, sizes[dim]))
                shapes = [
                    tuple(part if k == dim else size for k, size in enumerate(sizes))
                    for part in (cut, sizes[dim] - cut)
                ]
                value = graph.add("split", [value], {"dim": dim}, shapes=shapes).outputs[1]
            case "interleave":
                value = graph.add("repeat_interleave", [value], {"dim": dim, "repeats": 2}).output
            case "triangle":
                attributes = {"diagonal": draw(st.integers(-2, 2)), "upper": draw(st.booleans())}
                value = graph.add("triangle", [value], attributes).output
        if torch.Size([int(str(size)) for size in value.shape]).numel() > 400:
            break
    graph.set_outputs([value])
    return graph, inputs


@given(views(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_element_of_a_chain_of_views_is_torchs(case: tuple[Graph, list[torch.Tensor]], known: bool) -> None:
    graph, inputs = case
    (expected,) = evaluate(graph, inputs)
    found = elements(graph, graph.outputs[0], inputs, known=known)
    assert torch.equal(found.to(expected.dtype), expected)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_padding(mode: str) -> None:
    graph = Graph("pads")
    x = graph.add_input("x", TensorType(torch.float32, (1, 2, 4)))
    attributes = {"pads": (0, 0, 3, 0, 0, 2), "mode": mode, "value": 1.5 if mode == "constant" else None}
    graph.set_outputs([graph.add("pad", [x], attributes).output])
    tensor = torch.randn(1, 2, 4)
    (expected,) = evaluate(graph, [tensor])
    assert torch.equal(elements(graph, graph.outputs[0], [tensor], known=False).float(), expected)


def test_look_ups_and_what_is_made_from_nothing() -> None:
    graph = Graph("looked_up")
    table = graph.add_input("table", TensorType(torch.float32, (5, 3)))
    rows = graph.add_input("rows", TensorType(torch.int64, (2, 2)))
    places = graph.add_input("places", TensorType(torch.int64, (2, 3)))
    counted = graph.add("arange", [], {"start": 0, "step": 2, "dtype": torch.int64}, shapes=[(2,)]).output
    results = [
        graph.add("embedding", [table, rows]).output,
        graph.add("gather", [table, places], {"dim": 0}).output,
        graph.add("index", [table, counted], {"dims": (1,)}).output,
        graph.add("full", [], {"value": 2.5, "dtype": torch.float32}, shapes=[(2, 2)]).output,
        graph.add("expand", [graph.add("select", [table], {"dim": 0, "index": 1}).output], shapes=[(4, 3)]).output,
    ]
    inputs = [torch.randn(5, 3), torch.tensor([[0, 4], [2, 2]]), torch.tensor([[0, 4, 1], [3, 3, 0]])]
    # a range of numbers that is seen to lie inside is looked up without a word of keeping it there
    inside = graph.add(
        "index", [table, graph.add("arange", [], {"dtype": torch.int64}, shapes=[(3,)]).output], {"dims": (1,)}
    )
    builder = KernelBuilder(Context(graph), (), "k")
    at = (builder.variable("i", Literal(0), Literal(5)), builder.variable("j", Literal(0), Literal(3)))
    lane = builder.lane()
    lane.value(inside.output, at)
    assert not any(
        isinstance(part, Apply) for each in lane.statements if isinstance(each, Let) for part in parts(each.value)
    )
    graph.set_outputs(results)
    for value, expected in zip(graph.outputs, evaluate(graph, inputs), strict=True):
        assert torch.equal(elements(graph, value, inputs, known=False).to(expected.dtype), expected)


def test_what_a_product_was_made_of_comes_apart_without_a_division() -> None:
    graph = Graph("heads")
    x = graph.add_input("x", TensorType(torch.float32, (symbol("batch"), 197, 1152)))
    parts_ = graph.add("reshape", [x], shapes=[(symbol("batch"), 197, 3, 6, 64)]).output
    heads = graph.add("permute", [parts_], {"dims": (2, 0, 3, 1, 4)}).output
    q = graph.add("select", [heads], {"dim": 0, "index": 1}).output
    builder = KernelBuilder(Context(graph), (), "k")
    sizes = [builder.size(dim) for dim in q.shape]
    index = [builder.variable(name, Literal(0), size) for name, size in zip("bhld", sizes, strict=True)]
    found = builder.locate(q, index)
    assert found is not None
    assert not any(isinstance(part, Apply) and part.function in ("//", "%") for at in found.index for part in parts(at))
    assert stride_of(found.index[2], "h") == Literal(64) and stride_of(found.index[2], "d") == Literal(1)
    # and flattened again
    flat = graph.add("reshape", [q], shapes=[(symbol("batch") * 6, 197 * 64)]).output
    builder = KernelBuilder(Context(graph), (), "k")
    row = builder.variable("r", Literal(0), builder.size(flat.shape[0]))
    column = builder.variable("c", Literal(0), Literal(197 * 64))
    again = builder.locate(flat, (row, column))
    assert again is not None and len(again.index) == 3


def test_a_quotient_and_its_remainder_are_one_number_again() -> None:
    indices = Indices()
    n = Name("n")
    indices.add_size("n")
    indices.bind("i", Literal(0), n * 12)
    i = Name("i")
    assert indices.short(i // 12 * 12 + i % 12) == i
    assert indices.divide(n * 5 + i % 5, 5) == (n, i % 5)
    assert indices.divide(i, n) == (i // n, i % n)
    assert indices.is_inside(i, n * 12) and not indices.is_inside(i, n * 11)


def test_views_are_operators_and_what_cannot_be_read_through_is_none() -> None:
    assert set(VIEWS) <= set(OPERATORS)
    graph = Graph("refused")
    x = graph.add_input("x", TensorType(torch.float32, (1, 2, 4)))
    wrapped = graph.add("pad", [x], {"pads": (0, 0, 1, 0, 0, 1), "mode": "circular"})
    assert not is_view(wrapped)
