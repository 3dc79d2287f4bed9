"""Operators against torch: what the notation says of types, roles, costs and function classes is what torch computes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from operator_examples import EXAMPLES, Example
from torch.utils.flop_counter import FlopCounterMode

import suture.ir.operators  # noqa: F401
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node
from suture.ir.notation import Instance, Join, Product, Role, Term, letters_of
from suture.ir.operator import OPERATORS, FunctionClass
from suture.ir.semantics import run_node
from suture.ir.sizes import symbol
from suture.ir.types import TensorType

F64 = torch.float64


def run(node: Node, tensors: list[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
    return run_node(node, tensors, {})


def named(operator: str) -> list[Example]:
    return [example for example in EXAMPLES if example.operator == operator]


def test_every_operator_has_an_example() -> None:
    assert {example.operator for example in EXAMPLES} == set(OPERATORS)


def test_letters_are_held_by_attributes_that_exist() -> None:
    for operator in OPERATORS.values():
        assert set(operator.letters) <= set(operator.attributes), operator.name


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_result_types_are_those_that_torch_gives(example: Example) -> None:
    tensors = example.tensors()
    node = example.node(tensors)
    results = run(node, tensors)
    assert [value.type for value in node.outputs] == [TensorType(t.dtype, tuple(t.shape)) for t in results]


FLOATING = [
    example for example in EXAMPLES
    if example.operator not in ("full", "arange", "opaque", "topk", "branch") and "f32" in example.operands and "f64" not in example.operands
]  # fmt: skip


def indices(term: Term, sizes: dict[str, Any], letter: str, chosen: list[int]) -> list[int]:
    """The positions that `term` keeps, in order, when `letter` keeps `chosen`."""
    match term:
        case int():
            return list(range(term))
        case str():
            return list(chosen) if term == letter else list(range(sizes[term]))
        case Join(terms):
            found, offset = [], 0
            for part in terms:
                found += [offset + k for k in indices(part, sizes, letter, chosen)]
                offset += Instance((), (), sizes, {}).size(part)
            return found
        case Product(terms):
            each = [indices(part, sizes, letter, chosen) for part in terms]
            widths = [Instance((), (), sizes, {}).size(part) for part in terms]
            steps = [math.prod(widths[k + 1 :]) for k in range(len(widths))]
            return [sum(k * step for k, step in zip(choice, steps, strict=True)) for choice in itertools.product(*each)]


def taken(
    tensor: torch.Tensor, dims: tuple[Term, ...], instance: Instance, letter: str, chosen: list[int]
) -> torch.Tensor:
    """The tensor with `letter` reduced to `chosen`, wherever it stands in its dimensions."""
    for k, term in enumerate(dims):
        if letter in letters_of(term):
            tensor = tensor.index_select(
                k, torch.tensor(indices(term, dict(instance.sizes), letter, chosen), dtype=torch.long)
            )
    return tensor


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.to(F64), b.to(F64), rtol=1e-9, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("example", FLOATING, ids=str)
def test_letters_that_are_not_ordered_may_be_permuted(example: Example) -> None:
    """Permuting a free or mixed letter of the operands permutes the results; permuting a contracted one changes nothing."""
    tensors = example.tensors(1, F64)
    node = example.node(tensors)
    instance, before = node.operator.instance(node), run(node, tensors)
    read = {letter for dims in instance.inputs if dims for term in dims for letter in letters_of(term)}
    for letter in sorted(read):
        if instance.roles[letter] in (Role.ORDERED, Role.LOOKUP):
            continue
        size = instance.sizes[letter]
        order = [(k * 2 + 1) % size if size % 2 else size - 1 - k for k in range(size)]
        moved = [
            None if t is None or dims is None else taken(t, dims, instance, letter, order)
            for t, dims in zip(tensors, instance.inputs, strict=False)
        ]
        for got, dims, old in zip(run(node, moved), instance.outputs, before, strict=True):
            assert close(got, taken(old, dims, instance, letter, order)), (
                f"{letter} is {instance.roles[letter].value} in {instance}"
            )


RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # `h` is written and, one step later, read


@pytest.mark.parametrize("example", [e for e in FLOATING if e.operator not in RECURRENT], ids=str)
def test_free_letters_may_be_selected(example: Example) -> None:
    """Keeping some indices of a free letter in the operands keeps those of the results, with attributes and declared sizes updated."""
    tensors = example.tensors(2, F64)
    node = example.node(tensors)
    instance, before = node.operator.instance(node), run(node, tensors)
    read = {letter for dims in instance.inputs if dims for term in dims for letter in letters_of(term)}
    for letter in sorted(read):
        size = instance.sizes[letter]
        if instance.roles[letter] is not Role.FREE or size < 2:
            continue
        if example.operator in ("pixel_shuffle", "pixel_unshuffle") and letter in ("r", "s"):
            continue  # one attribute holds both
        chosen = [k for k in range(size) if k != size // 2]
        fewer = Instance(instance.inputs, instance.outputs, {**instance.sizes, letter: len(chosen)}, instance.roles)
        attributes = dict(node.attributes)
        for name, held in node.operator.letters.items():
            attributes[name] = fewer.sizes.get(held, attributes[name])
        cut = [
            None if t is None or dims is None else taken(t, dims, instance, letter, chosen)
            for t, dims in zip(tensors, instance.inputs, strict=False)
        ]
        smaller = example.node(cut, attributes, fewer.output_shapes() if node.operator.declared else None)
        for got, dims, old in zip(run(smaller, cut), instance.outputs, before, strict=True):
            assert close(got, taken(old, dims, instance, letter, chosen)), f"{letter} of {instance}"


@pytest.mark.parametrize("example", FLOATING, ids=str)
def test_contracted_letters_may_be_cut_where_the_operands_are_zero(example: Example) -> None:
    """Zero-then-cut: indices of a contracted letter at which the operands are zero add nothing. So it is with the units of recurrent layers."""
    tensors = example.tensors(2, F64)
    node = example.node(tensors)
    instance = node.operator.instance(node)
    read = {letter for dims in instance.inputs if dims for term in dims for letter in letters_of(term)}
    for letter in sorted(read):
        size = instance.sizes[letter]
        unit = example.operator in RECURRENT and letter == "h"
        if (instance.roles[letter] is not Role.CONTRACTED and not unit) or size < 2:
            continue
        chosen = [k for k in range(size) if k != size // 2]
        zeroed: list[torch.Tensor | None] = []
        for tensor, dims in zip(tensors, instance.inputs, strict=False):
            moved = None if tensor is None else tensor.clone()
            for k, term in enumerate(dims or ()):
                if letter in letters_of(term) and moved is not None:
                    gone = set(range(moved.shape[k])) - set(indices(term, dict(instance.sizes), letter, chosen))
                    moved.index_fill_(k, torch.tensor(sorted(gone)), 0.0)
            zeroed.append(moved)
        attributes = dict(node.attributes)
        fewer = Instance(instance.inputs, instance.outputs, {**instance.sizes, letter: len(chosen)}, instance.roles)
        for name, held in node.operator.letters.items():
            attributes[name] = fewer.sizes.get(held, attributes[name])
        cut = [
            None if t is None or dims is None else taken(t, dims, instance, letter, chosen)
            for t, dims in zip(zeroed, instance.inputs, strict=False)
        ]
        smaller = example.node(cut, attributes, fewer.output_shapes() if node.operator.declared else None)
        for got, dims, old in zip(run(smaller, cut), instance.outputs, run(node, zeroed), strict=True):
            assert close(got, taken(old, dims, instance, letter, chosen)), f"{letter} of {instance}"


POINTERS = {"csr_sum": 1, "csr_max": 1, "csr_spread": 1, "grouped_linear": 2, "grouped_outer": 2}
"""Operands that point into rows: they rise from 0 to the number of rows."""

TIED = {"csr_spread": "nq", "grouped_linear": "qk"}
"""Letters of sizes that differ by one: neither is unknown alone."""


def zeros_that_fit(operator: str, position: int, shape: list[int], rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros; of pointers, the last points behind all rows."""
    made = torch.zeros(shape, dtype=dtype)
    if POINTERS.get(operator) == position:
        made[-1] = rows
    return made


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.operands and not OPERATORS[e.operator].measures], ids=str)
def test_a_symbolic_letter_gives_the_sizes_that_torch_gives(example: Example) -> None:
    """Make one letter of the operands a symbol, infer, and compare with torch at another number."""
    tensors = example.tensors()
    node = example.node(tensors)
    operator = node.operator
    instance = operator.instance(node)
    plain = {term for dims in instance.inputs if dims for term in dims if isinstance(term, str)}
    for letter in sorted(plain):
        if instance.roles[letter] is Role.ORDERED and (operator.declared or letter[0] in "rqk"):
            continue  # kernels are fixed, and a result that was declared for one size need not fit another
        if instance.roles[letter] is Role.CONDITIONAL:
            continue  # the bodies have the sizes
        if (
            instance.sizes[letter] in (0, 1)
            or letter in ("g", "r", "s", "z", *TIED.get(operator.name, ""))
            or operator.name in ("opaque", "einsum", "gather")
        ):
            continue
        grown = Instance(instance.inputs, instance.outputs, {**instance.sizes, letter: symbol("s")}, instance.roles)
        types = [
            None if t is None or dims is None else TensorType(t.dtype, tuple(grown.size(term) for term in dims))
            for t, dims in zip(tensors, instance.inputs, strict=False)
        ]
        declared = grown.output_shapes() if operator.declared else None
        inferred = operator.infer(types, node.attributes, declared)
        for number in (instance.sizes[letter], instance.sizes[letter] + 2):
            graph = Graph()
            values = [None if t is None else graph.add_input("x", t) for t in types]
            again = graph.add(operator, values, node.attributes, shapes=declared)
            assert [value.type for value in again.outputs] == list(inferred)
            sizes = {"s": number}
            rows = _number(grown.sizes.get("e", 0), sizes)
            fit = [
                None
                if t is None or dims is None
                else zeros_that_fit(operator.name, k, [_number(grown.size(x), sizes) for x in dims], rows, t.dtype)
                for k, (t, dims) in enumerate(zip(tensors, instance.inputs, strict=False))
            ]
            results = run_node(again, fit, sizes)
            shapes = [tuple(_number(dim, sizes) for dim in type_.shape) for type_ in inferred]
            assert [tuple(t.shape) for t in results] == shapes, f"{letter} of {instance}"


def _number(dim: Any, sizes: dict[str, int]) -> int:
    from suture.ir.sizes import evaluate_size

    return evaluate_size(dim, sizes)


# what the function classes claim, in float64

NOT_DATA = {
    "attention": (0, 1, 3),
    "embedding": (1,),
    "grid_sample": (1,),
    "csr_sum": (1,),
    "csr_spread": (1,),
    "grouped_linear": (2, 3),
    "grouped_outer": (2,),
}  # operands in which a linear operator is not linear


def data_operands(example: Example, tensors: list[torch.Tensor | None]) -> list[int]:
    skip = NOT_DATA.get(example.operator, ())
    return [k for k, t in enumerate(tensors) if t is not None and t.is_floating_point() and k not in skip]


def plain_call(example: Example) -> bool:
    """A call without a scalar operand: classes are claims about tensors."""
    return example.attributes.get("scalar") is None and example.attributes.get("dtype") != torch.int64


def of_class(*classes: FunctionClass) -> list[Example]:
    return [e for e in FLOATING if OPERATORS[e.operator].function in classes and plain_call(e)]


@pytest.mark.parametrize("example", of_class(FunctionClass.LINEAR), ids=str)
def test_linear_operators_are_affine_in_each_operand_and_zero_at_zero(example: Example) -> None:
    tensors, others = example.tensors(3, F64), example.tensors(4, F64)
    node = example.node(tensors)
    for k in data_operands(example, tensors):
        x, z = tensors[k], others[k]
        assert x is not None
        assert z is not None

        def at(value: torch.Tensor, position: int = k) -> torch.Tensor:
            return run(node, [*tensors[:position], value, *tensors[position + 1 :]])[0]

        zero = at(torch.zeros_like(x))
        assert close(at(2 * x - 3 * z) - zero, 2 * (at(x) - zero) - 3 * (at(z) - zero))
    others_too = NOT_DATA.get(example.operator, ())
    nothing = [t if t is None or k in others_too else torch.zeros_like(t) for k, t in enumerate(tensors)]
    assert not any(result.any() for result in run(node, nothing))


@pytest.mark.parametrize("example", of_class(FunctionClass.HOMOGENEOUS), ids=str)
def test_homogeneous_operators_scale(example: Example) -> None:
    tensors = example.tensors(5, F64)
    node = example.node(tensors)
    data = [0] if example.operator == "prelu" else data_operands(example, tensors)
    scaled = [2.5 * t if t is not None and k in data else t for k, t in enumerate(tensors)]
    for got, old in zip(run(node, scaled), run(node, tensors), strict=True):
        assert close(got, 2.5 * old)


@pytest.mark.parametrize("example", of_class(FunctionClass.ZERO_PRESERVING, FunctionClass.HOMOGENEOUS), ids=str)
def test_zero_preserving_operators_give_zero_at_zero(example: Example) -> None:
    tensors = example.tensors(6, F64)
    node = example.node(tensors)
    nothing = [None if t is None else torch.zeros_like(t) for t in tensors]
    assert not any(result.any() for result in run(node, nothing))


SHOULD_BE_ZERO_PRESERVING = [
    e
    for e in FLOATING
    if OPERATORS[e.operator].pointwise and e.operands in ("f32[2,3]", "f32+[2,3]") and len(e.attributes) == 0
]


@pytest.mark.parametrize("example", SHOULD_BE_ZERO_PRESERVING, ids=str)
def test_activations_that_are_zero_at_zero_say_so(example: Example) -> None:
    node = example.node(example.tensors(6, F64))
    (result,) = run(node, [torch.zeros(2, 3, dtype=F64)])
    claimed = OPERATORS[example.operator].function is not FunctionClass.OTHER
    assert claimed == (not result.any())


@pytest.mark.parametrize("example", [e for e in FLOATING if OPERATORS[e.operator].pointwise], ids=str)
def test_pointwise_operators_depend_on_one_element(example: Example) -> None:
    tensors = example.tensors(7, F64)
    node = example.node(tensors)
    before = run(node, tensors)[0]
    for k, dims in enumerate(node.operator.instance(node).inputs):
        source = tensors[k] if k < len(tensors) else None
        if source is None or dims is None or not source.is_floating_point() or source.numel() == 0:
            continue
        moved = source.clone()
        moved.view(-1)[0] += 0.37
        after = run(node, [*tensors[:k], moved, *tensors[k + 1 :]])[0]
        # An operand may be repeated; every result at another index is as it was.
        mine = torch.zeros_like(source, dtype=torch.bool)
        mine.view(-1)[0] = True
        if example.operator == "prelu" and k == 1:
            mine = mine.reshape(-1, *[1] * (before.ndim - 2))
        touched = (
            mine.expand(before.shape)
            if example.operator != "prelu" or before.ndim > 1
            else torch.ones_like(before, dtype=torch.bool)
        )
        assert close(before[~touched], after[~touched])


# cost

COUNTED = [
    e for name in ("linear", "matmul", "addmm", "conv", "conv_transpose") for e in named(name)
    if name != "matmul" or all("," in operand for operand in e.operands.split())  # torch does not count products with vectors
]  # fmt: skip


@pytest.mark.parametrize("example", COUNTED, ids=str)
def test_macs_are_half_of_the_flops_that_torch_counts(example: Example) -> None:
    tensors = example.tensors()
    node = example.node(tensors)
    with FlopCounterMode(display=False) as counter:
        run(node, tensors)
    assert node.operator.macs(node) == counter.get_total_flops() // 2


@pytest.mark.parametrize("example", named("attention"), ids=str)
def test_macs_of_attention_are_those_of_its_two_products(example: Example) -> None:
    tensors = example.tensors(0, F64)
    node = example.node(tensors)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        run(node, tensors)
    assert node.operator.macs(node) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "example", [e for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for e in named(name)], ids=str
)
def test_macs_of_recurrent_layers_are_those_of_their_products(example: Example) -> None:
    tensors = example.tensors(0, F64)
    node = example.node(tensors)
    with FlopCounterMode(display=False) as counter:
        run(node, tensors)
    assert node.operator.macs(node) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("equation", "macs"),
    [("bij,bjk->bik", 2 * 3 * 4 * 5), ("...d,ed->...e", 2 * 3 * 4 * 5), ("bid,bjd,j->bij", 2 * 6 * 6 * 3)],
)
def test_macs_of_einsum_are_the_product_of_its_letters(equation: str, macs: int) -> None:
    (example,) = [e for e in named("einsum") if e.attributes["equation"] == equation]
    node = example.node(example.tensors())
    assert node.operator.macs(node) == macs


@pytest.mark.parametrize(
    "name", ["add", "mul", "embedding", "concat", "index", "gather", "grid_sample", "softmax", "max_pool", "permute"]
)
def test_operators_that_contract_nothing_cost_no_macs(name: str) -> None:
    for example in named(name):
        node = example.node(example.tensors())
        assert node.operator.macs(node) == 0


# roles


@pytest.mark.parametrize(
    ("name", "position", "expected"),
    [
        ("linear", 0, "b0 b1=free i=contracted o=free"),
        ("conv", 1, "g=free h0 h1=ordered i=contracted n=free o=free r0 r1=ordered"),
        ("layer_norm", 0, "b0 b1=free d0=mixed"),
        ("group_norm", 0, "c=mixed g=free h0 h1=mixed n=free"),
        ("softmax", 0, "a0=free b0=free d=mixed"),
        ("embedding", 0, "b0 b1=free d0=free v=lookup"),
        ("typed_linear", 1, "e=free h0=free i=contracted o=free t=lookup"),
        ("typed_outer", 0, "e=contracted i=free o=free t=lookup"),
        ("segment_max", 0, "e=mixed f0=free n=lookup"),
        ("segment_softmax", 0, "e=mixed f0=free"),
        ("csr_sum", 0, "e=ordered f0=free n=lookup q=lookup"),
        ("csr_spread", 0, "e=lookup f0=free n=lookup q=lookup"),
        ("grouped_linear", 0, "e=lookup i=contracted o=free t=lookup"),
        ("grouped_outer", 0, "e=ordered i=free o=free t=lookup"),
        ("attention", 0, "b0 b1=free d=contracted e=free l=free s=mixed"),
        ("mean", 0, "d0=free d1=mixed d2=free"),
        ("sum", 0, "d0=free d1=contracted d2=free"),
        ("cumsum", 0, "d0=free d1=ordered d2=free"),
        ("pixel_shuffle", 0, "c=free h=free n0=free r=free s=free w=free"),
    ],
)
def test_roles(name: str, position: int, expected: str) -> None:
    example = named(name)[position]
    node = example.node(example.tensors())
    roles = node.operator.instance(node).roles
    stated: dict[str, str] = {}
    open_letters: list[str] = []
    for word in expected.split():
        letter, mark, role = word.partition("=")
        open_letters.append(letter)
        if mark:
            stated |= dict.fromkeys(open_letters, role)
            open_letters = []
    assert {letter: roles[letter].value for letter in stated} == stated


# what does not fit


@pytest.mark.parametrize(
    ("operator", "operands", "attributes", "shapes", "code"),
    [
        ("linear", "f32[2,3] f32[4,5]", {}, None, Code.SHAPE),
        ("linear", "f32[2,3]", {}, None, Code.SHAPE),
        ("add", "f32[2,3] f32[4]", {}, None, Code.SHAPE),
        ("add", "f32[2,3]", {}, None, Code.SHAPE),
        ("add", "f32[2,3] f32[3]", {"scalar": 2.0}, None, Code.SHAPE),
        ("where", "bool[2,3] f32[3]", {}, None, Code.SHAPE),
        ("matmul", "f32[2,3] f32[2,3]", {}, None, Code.SHAPE),
        ("conv", "f32[2,3,8,8] f32[4,2,3,3]", {}, None, Code.SHAPE),
        ("conv", "f32[2,3,8,8] f32[4,3,3]", {}, None, Code.SHAPE),
        ("conv", "f32[2,3,2,2] f32[4,3,3,3]", {}, None, Code.SHAPE),
        ("conv", "f32[2,3,8,8] f32[4,3,3,3] f32[5]", {}, None, Code.SHAPE),
        ("conv", "f32[2,3,8,8] f32[4,3,3,3]", {"strides": (1, 1)}, None, Code.OPERATOR),
        (
            "max_pool",
            "f32[1,1,2,2]",
            {"kernel": (3, 3), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)},
            None,
            Code.SHAPE,
        ),
        ("reshape", "f32[2,3]", {}, [(7,)], Code.SHAPE),
        ("reshape", "f32[2,3]", {}, None, Code.SHAPE),
        ("permute", "f32[2,3]", {"dims": (0, 0)}, None, Code.SHAPE),
        ("permute", "f32[2,3]", {}, None, Code.OPERATOR),
        ("concat", "f32[2,3] f32[3,3]", {"dim": 1}, None, Code.SHAPE),
        ("split", "f32[2,3]", {"dim": 1}, [(2, 1), (2, 1)], Code.SHAPE),
        ("slice", "f32[5]", {"dim": 0, "start": 3}, [(4,)], Code.SHAPE),
        ("slice", "f32[5]", {"dim": 0, "step": 2}, [(4,)], Code.SHAPE),
        ("slice", "f32[5,2]", {"dim": 0}, [(4, 3)], Code.SHAPE),
        ("split", "f32[2,3]", {"dim": 1}, [(2, 1), (3, 2)], Code.SHAPE),
        ("softmax", "f32[2,3]", {"dim": 2}, None, Code.SHAPE),
        ("expand", "f32[2,3]", {}, [(2, 4)], Code.SHAPE),
        ("pad", "f32[2,3]", {"pads": (1, 1)}, None, Code.SHAPE),
        ("select", "f32[2,3]", {"dim": 1, "index": 3}, None, Code.SHAPE),
        ("layer_norm", "f32[2,3] f32[2]", {}, None, Code.SHAPE),
        ("group_norm", "f32[2,6,4]", {"groups": 4}, None, Code.SHAPE),
        ("attention", "f32[2,4,5,8] f32[2,4,6,7] f32[2,4,6,8]", {"scale": 1.0}, None, Code.SHAPE),
        ("attention", "f32[2,4,5,8] f32[2,4,6,8] f32[2,4,6,8] f32[5,5]", {"scale": 1.0}, None, Code.SHAPE),
        ("attention", "f32[4,5,8] f32[4,6,8] f32[4,6,8] f32[1,1,1,4,5,6]", {"scale": 1.0}, None, Code.SHAPE),
        ("pixel_shuffle", "f32[2,6,4,4]", {"factor": 4}, None, Code.SHAPE),
        ("adaptive_avg_pool", "f32[2,6,4,4]", {}, [(2, 5, 1, 1)], Code.SHAPE),
        ("gather", "f32[2,6] i64[3,2]", {"dim": 1}, None, Code.SHAPE),
        ("gather", "f32[2,6] i64[2]", {"dim": 1}, None, Code.SHAPE),
        ("einsum", "f32[2,6] f32[5]", {"equation": "ij,j->i"}, None, Code.SHAPE),
        ("einsum", "f32[2,6]", {"equation": "ij,j->i"}, None, Code.SHAPE),
        ("index", "f32[2,6] bool[2]", {}, None, Code.DTYPE),
        ("index", "f32[2,6] i64[2] i64[3]", {"dims": (0, 1)}, None, Code.SHAPE),
        ("repeat", "f32[2,6]", {"repeats": (2,)}, None, Code.SHAPE),
        ("topk", "f32[2,6]", {"k": 7}, None, Code.SHAPE),
        ("matmul", "f32[] f32[3]", {}, None, Code.SHAPE),
        ("sum", "f32[2,3]", {"dims": (2,)}, None, Code.SHAPE),
        (
            "lstm",
            "f32[5,2,3] f32[1,2,4] f32[1,2,4] f32[16,3] f32[16,4] f32[16] f32[16]",
            {"layers": 2},
            None,
            Code.SHAPE,
        ),
        (
            "lstm",
            "f32[5,2,3] f32[1,2,4] f32[1,2,4] f32[12,3] f32[12,4] f32[12] f32[12]",
            {"layers": 1},
            None,
            Code.SHAPE,
        ),
        (
            "lstm",
            "f32[5,2,3] f32[1,2,4] f32[1,2,4] f32[16,5] f32[16,4] f32[16] f32[16]",
            {"layers": 1},
            None,
            Code.SHAPE,
        ),
        ("grid_sample", "f32[2,3,4,5] f32[2,6,7,3]", {}, None, Code.SHAPE),
        ("segment_max", "f32[6,4] i64[5]", {}, [(3, 4)], Code.SHAPE),
        ("segment_max", "f32[6,4] i64[6]", {}, [(3, 5)], Code.SHAPE),
        ("segment_max", "f32[6,4] f32[6]", {}, [(3, 4)], Code.DTYPE),
        ("segment_softmax", "f32[6,4] i64[5]", {"segments": 3}, None, Code.SHAPE),
        ("segment_softmax", "f32[6,4] i64[6]", {}, None, Code.OPERATOR),
        ("typed_linear", "f32[6,4] f32[3,5,2] i64[6]", {}, None, Code.SHAPE),
        ("typed_linear", "f32[6,4] f32[3,4,2] i64[5]", {}, None, Code.SHAPE),
        ("typed_linear", "f32[6,2,4] f32[3,4,2] i64[6]", {}, None, Code.SHAPE),
        ("typed_outer", "f32[6,4] f32[5,2] i64[6]", {}, [(3, 4, 2)], Code.SHAPE),
        ("csr_sum", "f32[6,4] i64[2,2]", {}, None, Code.SHAPE),
        ("csr_sum", "f32[6,4] f32[3]", {}, None, Code.DTYPE),
        ("csr_max", "f32[] i64[3]", {}, None, Code.SHAPE),
        ("csr_spread", "f32[3,4] i64[3]", {}, [(6, 4)], Code.SHAPE),
        ("csr_spread", "f32[3,4] i64[4]", {}, [(6, 5)], Code.SHAPE),
        ("grouped_linear", "f32[6,4] f32[3,4,2] i64[3] i64[3]", {}, None, Code.SHAPE),
        ("grouped_linear", "f32[6,4] f32[3,4,2] f32[4] i64[3]", {}, None, Code.DTYPE),
        ("grouped_outer", "f32[6,4] f32[5,2] i64[4]", {}, None, Code.SHAPE),
        ("sort_order", "i64[6] i64[5]", {}, None, Code.SHAPE),
        ("sort_order", "f32[6]", {}, None, Code.DTYPE),
        ("unique_rows", "i64[6,2]", {}, [(3,), (6,)], Code.SHAPE),
        ("tile_runs", "i64[6]", {}, [(4,), (3,)], Code.OPERATOR),
        ("fewer_ends", "i64[6] i64[5] i64[6]", {}, [(4,)], Code.SHAPE),
        ("fewer_ends", "i64[6] f32[6] i64[6]", {}, [(4,)], Code.DTYPE),
        ("meeting_rows", "i64[6] i64[3]", {"together": True}, [(4,)], Code.DTYPE),
        ("lineaar", "f32[2,3]", {}, None, Code.OPERATOR),
    ],
)
def test_what_does_not_fit_is_an_error_of_one_line(
    operator: str, operands: str, attributes: dict[str, Any], shapes: Any, code: Code
) -> None:
    example = Example(operator, operands, attributes)
    with pytest.raises(SutureError) as caught:
        example.node(example.tensors(), shapes=shapes)
    assert caught.value.code is code
    assert "\n" not in str(caught.value)
    assert caught.value.where or code is Code.OPERATOR
    assert caught.value.remedy
