"""Operators that sum products over a letter: linear, matmul, einsum, convolutions, attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, Term, instantiate, letters_of, parse_signature
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.sizes import Dim, floor_divide, minimum, product
from suture.ir.types import DTYPE_NAMES

LINEAR, OTHER = FunctionClass.LINEAR, FunctionClass.OTHER


def _uniform(call: Call) -> torch.dtype:
    """Products are of one element type: the first operand's (a mask, the fourth operand of attention, may have its own)."""
    dtype = call.type(0).dtype
    for type_ in call.types[1:3]:
        if type_ is not None and type_.dtype != dtype:
            raise SutureError(
                Code.DTYPE,
                f"operands of {DTYPE_NAMES[dtype]} and {DTYPE_NAMES[type_.dtype]}",
                where=call.where,
                remedy="cast one of them",
            )
    return dtype


declare("linear", "x[*b, i], w[o, i], c[o]? -> y[*b, o]", F.linear, function=LINEAR, dtype=_uniform, doc="x w^T + c.")


def _matmul_instance(call: Call) -> Instance:
    """Batched product; a vector on either side drops its letter from the result."""
    left, right = call.shape(0), call.shape(1)
    a, b = ("k" if len(left) == 1 else "*b, m, k"), ("k" if len(right) == 1 else "*b, k, n")
    result = ["*b"] * (len(left) > 2 or len(right) > 2) + ["m"] * (len(left) > 1) + ["n"] * (len(right) > 1)
    notation = parse_signature(f"x[{a}], z[{b}] -> y[{', '.join(result)}]")
    return instantiate(
        notation,
        [left, right],
        Binding({"b": max(len(left), len(right), 2) - 2}),
        broadcast=frozenset("b"),
        where=call.where,
    )


declare(
    "matmul",
    "x[*b, m, k], z[*b, k, n] -> y[*b, m, n]",
    torch.matmul,
    function=LINEAR,
    build=_matmul_instance,
    dtype=_uniform,
)


def _addmm(c: torch.Tensor, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.addmm(c, x, z)


def _addmm_instance(call: Call) -> Instance:
    bias = "n" if len(call.shape(0)) == 1 else "m, n"
    return instantiate(
        parse_signature(f"c[{bias}], x[m, k], z[k, n] -> y[m, n]"),
        [call.shape(0), call.shape(1), call.shape(2)],
        where=call.where,
    )


declare(
    "addmm",
    "c[n], x[m, k], z[k, n] -> y[m, n]",
    _addmm,
    function=LINEAR,
    build=_addmm_instance,
    dtype=_uniform,
    doc="c + x z.",
)


def _einsum(*operands: torch.Tensor, equation: str) -> torch.Tensor:
    return torch.einsum(equation, *operands)


def _einsum_instance(call: Call) -> Instance:
    """Einstein's notation is index notation already; `...` is a star."""
    equation = str(call.attributes["equation"]).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        seen = left.replace(",", "").replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(seen) if seen.count(c) == 1))
    names = [f"x{k}" for k in range(len(terms))]
    notation = (
        ", ".join(f"{name}[{_spread(term)}]" for name, term in zip(names, terms, strict=True))
        + f" -> y[{_spread(right)}]"
    )
    shapes = [None if t is None else t.shape for t in call.types]
    return instantiate(parse_signature(notation), shapes, broadcast=frozenset({"rest"}), where=call.where)


def _spread(term: str) -> str:
    return ", ".join("*rest" if part == "." else part for part in term.replace("...", "."))


declare(
    "einsum", "x[*a], z[*b] -> y[*c]", _einsum, attributes={"equation": REQUIRED}, function=LINEAR, build=_einsum_instance, dtype=_uniform,
    doc="Sums of products over the letters of the attribute `equation`.",
)  # fmt: skip


def window_size(
    size: Dim, kernel: Dim, stride: int, before: int, after: int, dilation: int, *, ceil: bool = False, where: str = ""
) -> Dim:
    """How many windows fit: floor((size + padding - dilation * (kernel - 1) - 1) / stride) + 1, or its ceiling as pools take it.

    :raises SutureError: SHAPE, if not even one does
    """
    reach = dilation * (_number(kernel) - 1) + 1
    span = size + (before + after - reach)
    count = floor_divide(span + (stride - 1 if ceil else 0), stride) + 1
    if ceil and stride + after > reach:
        # A window must begin inside the input or its left padding; only a stride beyond the window can overstep that.
        count = minimum(count, floor_divide(size + (before - 1), stride) + 1)
    if isinstance(count, int) and count < 1:
        raise SutureError(Code.SHAPE, f"a window of {reach} on {size} positions and {before + after} of padding", where=where,
                          remedy="the window must fit")  # fmt: skip
    return count


def _number(dim: Dim) -> int:
    if not isinstance(dim, int):
        raise SutureError(Code.SHAPE, f"a kernel of symbolic size {dim}", remedy="kernels have fixed sizes")
    return dim


def _spatial(call: Call, name: str, rank: int) -> tuple[int, ...]:
    values = call.ints(name)
    return values * rank if len(values) == 1 else values


def _conv(
    x: torch.Tensor,
    k: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> torch.Tensor:
    function = (F.conv1d, F.conv2d, F.conv3d)[k.ndim - 3]
    result: torch.Tensor = function(x, k, c, stride, padding, dilation, groups)
    return result


def _conv_bind(call: Call) -> Binding:
    groups = call.attributes["groups"]
    assert isinstance(groups, int)
    weight = call.shape(1)
    if len(weight) < 3 or len(call.shape(0)) != len(weight):
        raise SutureError(
            Code.SHAPE,
            f"a convolution of {call.type(0)} by {call.type(1)}",
            where=call.where,
            remedy="both need batch or output, channels, and the same number of spatial dimensions",
        )
    return Binding({"h": len(weight) - 2, "r": len(weight) - 2}, {"g": groups})


def _conv_sizes(call: Call, sizes: Mapping[str, Dim]) -> dict[str, Dim]:
    rank = len(call.shape(1)) - 2
    stride, padding, dilation = (_spatial(call, name, rank) for name in ("stride", "padding", "dilation"))
    found: dict[str, Dim] = {}
    for k in range(rank):
        found[f"h{k}'"] = window_size(
            sizes[f"h{k}"], sizes[f"r{k}"], stride[k], padding[k], padding[k], dilation[k], where=call.where
        )
    return found


declare(
    "conv", "x[n, g*i, !*h], k[g*o, i, !*r], c[g*o]? -> y[n, g*o, !*h']", _conv,
    attributes={"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1}, function=LINEAR, bind=_conv_bind, late=_conv_sizes, dtype=_uniform,
    letters={"groups": "g"}, doc="Convolution over one, two or three spatial dimensions, in g groups.",
)  # fmt: skip


def _conv_transpose(
    x: torch.Tensor,
    k: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> torch.Tensor:
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[k.ndim - 3]
    result: torch.Tensor = function(x, k, c, stride, padding, output_padding, groups, dilation)
    return result


def _conv_transpose_sizes(call: Call, sizes: Mapping[str, Dim]) -> dict[str, Dim]:
    rank = len(call.shape(1)) - 2
    stride, padding, extra, dilation = (
        _spatial(call, name, rank) for name in ("stride", "padding", "output_padding", "dilation")
    )
    found: dict[str, Dim] = {}
    for k in range(rank):
        reach = dilation[k] * (_number(sizes[f"r{k}"]) - 1) + extra[k] + 1 - 2 * padding[k]
        found[f"h{k}'"] = (sizes[f"h{k}"] - 1) * stride[k] + reach
    return found


def _conv_transpose_cost(instance: Instance) -> Dim:
    """Every input element meets every kernel element: the letters of the input and of the kernel."""
    read = [dims for dims in instance.inputs[:2] if dims is not None]
    return product(
        [instance.sizes[x] for x in dict.fromkeys(x for dims in read for term in dims for x in letters_of(term))]
    )


declare(
    "conv_transpose", "x[n, g*i, !*h], k[g*i, o, !*r], c[g*o]? -> y[n, g*o, !*h']", _conv_transpose,
    attributes={"stride": (1,), "padding": (0,), "output_padding": (0,), "dilation": (1,), "groups": 1}, function=LINEAR, bind=_conv_bind,
    late=_conv_transpose_sizes, dtype=_uniform, letters={"groups": "g"}, cost=_conv_transpose_cost, doc="The adjoint of a convolution.",
)  # fmt: skip


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, *, dropout: float, causal: bool, scale: float, grouped: bool,
    training: bool = False,
) -> torch.Tensor:  # fmt: skip
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout if training else 0.0, causal, scale=scale, enable_gqa=grouped
    )


def _attention_instance(call: Call) -> Instance:
    """Softmax(scale q k^T + mask) v. Grouped: `r` query heads share a key head. Causal: positions are ordered."""
    mark = "!" if call.attributes["causal"] else "~"
    row = "!l" if call.attributes["causal"] else "l"
    q, k, v = call.shape(0), call.shape(1), call.shape(2)
    mask = call.types[3].shape if len(call.types) > 3 and call.types[3] is not None else None
    head = ("*b, u*t", "*b, u") if call.attributes["grouped"] else ("*b", "*b")
    scores = f"x[{head[0]}, {row}, d], k[{head[1]}, {mark}s, d], v[{head[1]}, {mark}s, e]"
    fixed = 3 if call.attributes["grouped"] else 2
    stars = {"b": max(len(q), len(k), len(v)) - fixed}
    notation = parse_signature(f"{scores} -> y[{head[0]}, {row}, e]")
    instance = instantiate(notation, [q, k, v], Binding(stars), broadcast=frozenset("b"), where=call.where)
    if mask is None:
        return instance
    # The mask aligns from the right with the scores [*b, head, l, s]; its dimensions of size 1 are repeated.
    scores_dims: list[Term] = [*instance.outputs[0][:-1], "s"]
    if len(mask) > len(scores_dims):
        raise SutureError(
            Code.SHAPE,
            f"a mask of rank {len(mask)} for scores of rank {len(scores_dims)}",
            where=call.where,
            remedy="it broadcasts to [..., l, s]",
        )
    dims = [
        1 if size == 1 and instance.size(term) != 1 else term
        for size, term in zip(mask, scores_dims[len(scores_dims) - len(mask) :], strict=True)
    ]
    for size, term in zip(mask, dims, strict=True):
        if instance.size(term) != size:
            raise SutureError(
                Code.SHAPE,
                f"the mask has {size} where {term} is {instance.size(term)}",
                where=call.where,
                remedy="it broadcasts to [..., l, s]",
            )
    return Instance((*instance.inputs, tuple(dims)), instance.outputs, instance.sizes, instance.roles)


def _attention_cost(instance: Instance) -> Dim:
    rows = product([instance.size(term) for term in instance.outputs[0][:-1]])
    return rows * instance.sizes["s"] * (instance.sizes["d"] + instance.sizes["e"])


declare(
    "attention", "q[*b, l, d], k[*b, ~s, d], v[*b, ~s, e], mask[*b, l, ~s]? -> y[*b, l, e]", _attention,
    attributes={"dropout": 0.0, "causal": False, "scale": REQUIRED, "grouped": False}, function=LINEAR, build=_attention_instance, dtype=_uniform,
    training=True, cost=_attention_cost, doc="Scaled dot-product attention; the scale is a constant of the node, not a function of d.",
)  # fmt: skip


def _bilinear(x: torch.Tensor, z: torch.Tensor, w: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    return F.bilinear(x, z, w, c)


declare(
    "bilinear",
    "x[*b, i], z[*b, j], w[o, i, j], c[o]? -> y[*b, o]",
    _bilinear,
    function=LINEAR,
    dtype=_uniform,
    doc="x^T w z + c.",
)
