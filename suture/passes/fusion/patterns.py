"""The fusions, by kind: what is looked for, and what it becomes."""

from __future__ import annotations

from collections.abc import Mapping

from suture.passes.fusion.legality import joins_heads, on_more_than_matrices
from suture.passes.fusion.pair import Pair
from suture.passes.fusion.views import ONES_WHERE_THEY_END, THERE_AND_BACK
from suture.passes.rewriting import Rule

_REPEATED_KEYS = Pair.of(
    "repeated keys",
    "q[b, w, l, d], k[b, u, s, d], v[b, u, s, e], mask[*m]? -> y[b, w, l, e]",
    """
    k1 = reshape(k) as [b, u, 1, s, d]
    k2 = expand(k1) as [b, u, t, s, d]
    k3 = reshape(k2) as [b, u*t, s, d]
    v1 = reshape(v) as [b, u, 1, s, e]
    v2 = expand(v1) as [b, u, t, s, e]
    v3 = reshape(v2) as [b, u*t, s, e]
    y = attention(q, k3, v3, mask) scale=$scale causal=$causal dropout=$dropout
    """,
    "y = attention(q, k, v, mask) scale=$scale causal=$causal dropout=$dropout grouped=true",
)

_KEYS_APART = Pair.of(
    "keys apart from their order",
    "x[b, s, n] -> y[b, u, 1, s, d]",
    """
    a = reshape(x) as [b, s, 1, u, d]
    y = permute(a) dims=(0, 3, 2, 1, 4)
    """,
    """
    a = reshape(x) as [b, s, u, d]
    p = permute(a) dims=(0, 2, 1, 3)
    y = reshape(p) as [b, u, 1, s, d]
    """,
)

_LINEAR_ON_ROWS = tuple(
    Pair.of(
        name,
        f"x[b, l, i], w[i, o]{bias} -> y[r, o]",
        f"given m = reshape(x) as [r, i]\ny = {product}",
        f"wt = permute(w) dims=(1, 0)\nh = linear(x, wt, {operand})\ny = reshape(h) as [r, o]",
    )
    for name, bias, product, operand in (
        ("product and sum on rows", ", c[o]", "addmm(c, m, w)", "c"),
        ("product on rows", "", "matmul(m, w)", "_"),
    )
)

_HEADS_ON_ROWS = Pair.of(
    "heads on rows",
    "x[b, h, l, d] -> y[r, i]",
    "p = permute(x) dims=(0, 2, 1, 3)\ny = reshape(p) as [r, i]",
    "p = permute(x) dims=(0, 2, 1, 3)\nq = reshape(p) as [b, l, h*d]\ny = reshape(q) as [r, i]",
    joins_heads,
)

_POINTWISE_ON_ROWS = tuple(
    Pair.of(
        f"{name} on rows",
        "x[b, l, o] -> y[r, o]",
        f"m = reshape(x) as [r, o]\ny = {name}(m){attributes}",
        f"h = {name}(x){attributes}\ny = reshape(h) as [r, o]",
    )
    for name, attributes in (("gelu", " approximate=$approximate"), ("relu", ""), ("silu", ""))
)

_ROTARY = Pair.of(
    "rotary embedding",
    "x[b, l, h*t*p], cos[n, 1, l, t*p], sin[n, 1, l, t*p] -> y[b, h, l, t*p]",
    """
    x1 = reshape(x) as [b, l, h, t*p]
    x2 = permute(x1) dims=(0, 2, 1, 3)
    straight = mul(x2, cos)
    low, high = split(x2) dim=-1 as [b, h, l, p] [b, h, l, p]
    turned = neg(high)
    swapped = concat(turned, low) dim=-1
    crossed = mul(swapped, sin)
    y = add(straight, crossed)
    """,
    """
    r = rotary(x, cos, sin) heads=$h parts=$t
    r1 = reshape(r) as [b, l, h, t*p]
    y = permute(r1) dims=(0, 2, 1, 3)
    """,
)

_LINEAR_GELU = Pair.of(
    "bias and GELU",
    "x[*b, i], w[o, i], c[o] -> y[*b, o]",
    "h = linear(x, w, c)\ny = gelu(h) approximate=$approximate",
    "h = linear(x, w, _)\ny = bias_gelu(h, c) approximate=$approximate",
    on_more_than_matrices,
)

_LINEAR_RESIDUAL = Pair.of(
    "bias and residual",
    "x[*b, i], w[o, i], c[o], skip[*b, o] -> y[*b, o]",
    "h = linear(x, w, c)\ny = add(h, skip)",
    "h = linear(x, w, _)\ny = bias_residual(h, c, skip)",
    on_more_than_matrices,
)

FUSIONS: Mapping[str, tuple[Rule, ...]] = {
    "rows": (
        *(pair.rule() for pair in (*_LINEAR_ON_ROWS, _HEADS_ON_ROWS, *_POINTWISE_ON_ROWS)),
        THERE_AND_BACK,
        ONES_WHERE_THEY_END,
    ),
    "grouped": (_KEYS_APART.rule(), _REPEATED_KEYS.rule()),
    "rotary": (_ROTARY.rule(),),
    "attention": (Pair.fused("multi_head_attention").rule(), Pair.fused("grouped_attention").rule()),
    "projection": (Pair.fused("packed_attention").rule(), Pair.fused("projected_attention").rule()),
    "skip_norm": (Pair.fused("skip_layer_norm").rule(), Pair.fused("skip_rms_norm").rule()),
    "residual": (_LINEAR_RESIDUAL.rule(),),
    "gelu": (_LINEAR_GELU.rule(), Pair.fused("quick_gelu").rule()),
}
"""Kind -> its rules. Kinds are taken in this order: later ones look for what earlier ones wrote."""

PREPARING = frozenset({"rows", "grouped"})
"""Kinds that fuse nothing by themselves: they bring a graph into the form that the others are written in."""

KEPT_APART: tuple[Pair, ...] = (_ROTARY, _LINEAR_GELU, _LINEAR_RESIDUAL)
"""Pairs that write more than one node: the way back looks for all of them together, before fused operators become their bodies."""
