"""Fused operators: several nodes as one, for what runtimes have one kernel for. Each is defined by its body, in the IR's own notation.

From the body follow the evaluation, the code that a module gets, and what `expand` puts back; it is also the pattern that `fuse` looks for. So a
fused operator can mean nothing else than the nodes that it stands for. Its letters, and with them shapes and axes, are those of its first line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from suture.ir.notation import Binding, Instance, Role, Shape, Term, instantiate, parse_signature
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.operators import contract, elementwise, layout, normalise, parts  # noqa: F401  (the bodies are made of them)
from suture.ir.sizes import Dim, product
from suture.ir.template import Template, parse_template, run

BODIES: dict[str, Template] = {}
"""Fused operator -> what it stands for."""


def _declare(
    name: str,
    text: str,
    doc: str,
    *,
    attributes: Mapping[str, Any] | None = None,
    letters: Mapping[str, str] | None = None,
    masked: tuple[str, str, str] | None = None,
    ordered: tuple[str, ...] = (),
    cost: Callable[[Instance], Dim] | None = None,
    function: FunctionClass = FunctionClass.OTHER,
    pointwise: bool = False,
    training: bool = False,
) -> None:
    """Declare a fused operator.

    :param letters: attributes that are the size of a letter
    :param masked: the letters of heads, rows and columns, where the operand `mask` broadcasts to the scores
    :param ordered: letters of which neighbours matter, beyond what the first line says
    """
    template, named = parse_template(text), dict(letters or {})
    BODIES[name] = template
    header = text.strip().splitlines()[0]

    def bind(call: Call) -> Binding:
        return Binding(sizes={letter: call.attributes[attribute] for attribute, letter in named.items()})  # type: ignore[misc]

    def build(call: Call) -> Instance:
        shapes = [None if type_ is None else type_.shape for type_ in call.types]
        if masked is None:
            instance, fixed = instantiate(parse_signature(header), shapes, bind(call), where=call.where), ordered
        else:
            instance = _masked_instance(header, shapes, bind(call), masked, call.where)
            fixed = (*ordered, *masked[1:]) if call.attributes["causal"] else ordered
        return replace(instance, roles={**instance.roles, **dict.fromkeys(fixed, Role.ORDERED)})

    declare(
        name, header, functools.partial(_run, template, named, training), attributes=attributes, function=function, pointwise=pointwise,
        bind=bind, build=build if masked or ordered else None, letters=named, training=training, cost=cost, doc=doc,
    )  # fmt: skip


def _run(
    template: Template,
    letters: Mapping[str, str],
    trains: bool,
    *operands: torch.Tensor | None,
    training: bool = False,
    **attributes: Any,
) -> Any:
    known = {**attributes, **{letter: attributes[name] for name, letter in letters.items()}}
    results = run(template, operands, known, training=training and trains)
    return results[0] if len(results) == 1 else results


def _masked_instance(
    header: str, given: Sequence[Shape | None], binding: Binding, letters: tuple[str, str, str], where: str
) -> Instance:
    """The notation without its mask, and the mask's dimensions as those of the scores [b, heads, rows, columns], aligned from the right."""
    notation = parse_signature(header)
    index = next(k for k, spec in enumerate(notation.operands) if spec.name == "mask")
    shapes = [*given, *[None] * (len(notation.operands) - len(given))]
    mask, shapes[index] = shapes[index], None
    instance = instantiate(notation, shapes, binding, where=where)
    if mask is None:
        return instance
    scores = ("b", *letters)[-len(mask) :] if mask else ()
    wanted = parse_signature(f"mask[{', '.join(scores)}] -> y[]").operands[0]
    terms: tuple[Term, ...] = tuple(1 if size == 1 else dim.term for size, dim in zip(mask, wanted.dims, strict=False))
    aligned = parse_signature(f"mask[{', '.join(map(str, terms))}] -> y[]")
    masked = instantiate(aligned, [mask], Binding(sizes=dict(instance.sizes)), where=where)
    inputs = (*instance.inputs[:index], masked.inputs[0], *instance.inputs[index + 1 :])
    return Instance(inputs[: len(given)], instance.outputs, instance.sizes, instance.roles)


_ATTENTION: dict[str, Any] = {"scale": REQUIRED, "causal": False, "dropout": 0.0}

_declare(
    "bias_gelu",
    """
    x[*b, d], c[d] -> y[*b, d]
    y1 = add(x, c)
    y = gelu(y1) approximate=$approximate
    """,
    "gelu(x + c), for a vector c.",
    attributes={"approximate": "none"},
    pointwise=True,
)

_declare(
    "bias_residual",
    """
    x[*b, d], c[d], skip[*b, d] -> y[*b, d]
    y1 = add(x, c)
    y = add(y1, skip)
    """,
    "x + c + skip, for a vector c: the end of a residual branch.",
    function=FunctionClass.LINEAR,
    pointwise=True,
)

_declare(
    "skip_layer_norm",
    """
    x[*b, ~d], skip[*b, ~d], gain[~d]?, bias[~d]? -> normalised[*b, ~d], sum[*b, ~d]
    sum = add(x, skip)
    normalised = layer_norm(sum, gain, bias) eps=$eps
    """,
    "Layer norm of x + skip, and x + skip itself.",
    attributes={"eps": 1e-5},
)

_declare(
    "skip_rms_norm",
    """
    x[*b, ~d], skip[*b, ~d], gain[~d]? -> normalised[*b, ~d], sum[*b, ~d]
    sum = add(x, skip)
    normalised = rms_norm(sum, gain) eps=$eps
    """,
    "RMS norm of x + skip, and x + skip itself.",
    attributes={"eps": 1e-6},
)

_declare(
    "multi_head_attention",
    """
    q[b, l, h*d], k[b, ~s, h*d], v[b, ~s, h*e], mask[*m]? -> y[b, l, h*e]
    q1 = reshape(q) as [b, l, h, d]
    q2 = permute(q1) dims=(0, 2, 1, 3)
    k1 = reshape(k) as [b, s, h, d]
    k2 = permute(k1) dims=(0, 2, 1, 3)
    v1 = reshape(v) as [b, s, h, e]
    v2 = permute(v1) dims=(0, 2, 1, 3)
    y1 = attention(q2, k2, v2, mask) scale=$scale causal=$causal dropout=$dropout
    y2 = permute(y1) dims=(0, 2, 1, 3)
    y = reshape(y2) as [b, l, h*e]
    """,
    "Attention of h heads that stand side by side in the last dimension.",
    attributes={"heads": REQUIRED, **_ATTENTION},
    letters={"heads": "h"},
    masked=("h", "l", "s"),
    cost=lambda instance: (
        product([instance.sizes[letter] for letter in ("b", "l", "h", "s")])
        * (instance.sizes["d"] + instance.sizes["e"])
    ),
    training=True,
)

_declare(
    "grouped_attention",
    """
    q[b, l, u*t*d], k[b, ~s, u*d], v[b, ~s, u*e], mask[*m]? -> y[b, l, u*t*e]
    q1 = reshape(q) as [b, l, u*t, d]
    q2 = permute(q1) dims=(0, 2, 1, 3)
    k1 = reshape(k) as [b, s, u, d]
    k2 = permute(k1) dims=(0, 2, 1, 3)
    v1 = reshape(v) as [b, s, u, e]
    v2 = permute(v1) dims=(0, 2, 1, 3)
    y1 = attention(q2, k2, v2, mask) scale=$scale causal=$causal dropout=$dropout grouped=true
    y2 = permute(y1) dims=(0, 2, 1, 3)
    y = reshape(y2) as [b, l, u*t*e]
    """,
    "Attention of u key heads, each read by a group of t query heads (Ainslie et al. 2023).",
    attributes={"key_heads": REQUIRED, "group": REQUIRED, **_ATTENTION},
    letters={"key_heads": "u", "group": "t"},
    masked=("u*t", "l", "s"),
    cost=lambda instance: (
        product([instance.sizes[letter] for letter in ("b", "l", "u", "t", "s")])
        * (instance.sizes["d"] + instance.sizes["e"])
    ),
    training=True,
)

_declare(
    "packed_attention",
    """
    x[b, ~l, i], w[p*h*d, i], c[p*h*d]?, mask[*m]? -> y[b, ~l, h*d]
    qkv = linear(x, w, c)
    q, k, v = split(qkv) dim=2 as [b, l, h*d] [b, l, h*d] [b, l, h*d]
    y = multi_head_attention(q, k, v, mask) heads=$h scale=$scale causal=$causal dropout=$dropout
    """,
    "Self-attention with its projections: one weight of p = 3 parts for queries, keys and values.",
    attributes={"heads": REQUIRED, "parts": 3, **_ATTENTION},
    letters={"heads": "h", "parts": "p"},
    ordered=("p", "d"),  # the thirds are three things, and d is both what scores sum over and what values are made of
    masked=("h", "l", "l"),
    cost=lambda instance: (
        product([instance.sizes[letter] for letter in ("b", "l", "h", "d")])
        * (instance.sizes["i"] * 3 + instance.sizes["l"] * 2)
    ),
    training=True,
)

_declare(
    "projected_attention",
    """
    x[b, ~l, i], wq[h*d, i], wk[h*d, i], wv[h*e, i], cq[h*d]?, ck[h*d]?, cv[h*e]?, mask[*m]? -> y[b, ~l, h*e]
    q = linear(x, wq, cq)
    k = linear(x, wk, ck)
    v = linear(x, wv, cv)
    y = multi_head_attention(q, k, v, mask) heads=$h scale=$scale causal=$causal dropout=$dropout
    """,
    "Self-attention with its projections: a weight each for queries, keys and values.",
    attributes={"heads": REQUIRED, **_ATTENTION},
    letters={"heads": "h"},
    masked=("h", "l", "l"),
    cost=lambda instance: (
        product([instance.sizes[letter] for letter in ("b", "l", "h", "d")])
        * (instance.sizes["i"] * 3 + instance.sizes["l"] * 2)
    ),
    training=True,
)

_declare(
    "quick_gelu",
    """
    x[*d] -> y[*d]
    a = mul(x, _) scalar=$alpha
    s = sigmoid(a)
    y = mul(x, s)
    """,
    "x sigmoid(alpha x).",
    attributes={"alpha": 1.702},
    function=FunctionClass.ZERO_PRESERVING,
    pointwise=True,
)

_declare(
    "rotary",
    """
    x[b, l, h*t*p], cos[n, 1, l, t*p], sin[n, 1, l, t*p] -> y[b, l, h*t*p]
    x1 = reshape(x) as [b, l, h, t*p]
    x2 = permute(x1) dims=(0, 2, 1, 3)
    straight = mul(x2, cos)
    low, high = split(x2) dim=-1 as [b, h, l, p] [b, h, l, p]
    turned = neg(high)
    swapped = concat(turned, low) dim=-1
    crossed = mul(swapped, sin)
    y1 = add(straight, crossed)
    y2 = permute(y1) dims=(0, 2, 1, 3)
    y = reshape(y2) as [b, l, h*t*p]
    """,
    "Heads turned by the angles of their row: the first of two parts of its features against the second (Su et al. 2021, as in GPT-NeoX).",
    attributes={"heads": REQUIRED, "parts": 2},
    letters={"heads": "h", "parts": "t"},
    ordered=("t",),
)
