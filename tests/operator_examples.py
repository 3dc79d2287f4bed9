"""Example calls of every operator: the table that tests of operators and of backends run over.

An example is an operator, operands as text (`f32[2,3] _ i64[4]<10 f32+[3]`), attributes and, where the operator declares its result shapes, these.
`_` is an absent operand, `<10` bounds integers, `=0,2,5` says which they are, `+` makes values positive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from suture.ir.graph import Graph, Node
from suture.ir.text import parse_graph
from suture.ir.types import DTYPES, TensorType

_OPERAND = re.compile(r"(\w+)(\+?)\[([\d,]*)\](?:<(\d+)|=([\d,]+))?")


@dataclass(frozen=True)
class Example:
    """One call of an operator."""

    operator: str
    operands: str
    attributes: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...] | None = None

    def __str__(self) -> str:
        return f"{self.operator}-{self.operands}-{','.join(f'{k}={v!r}' for k, v in self.attributes.items())}"

    def tensors(self, seed: int = 0, dtype: torch.dtype | None = None) -> list[torch.Tensor | None]:
        """Random operands; `dtype` replaces float32."""
        generator = torch.Generator().manual_seed(seed)
        return [None if text == "_" else _tensor(text, generator, dtype) for text in self.operands.split()]

    def node(
        self, tensors: Sequence[torch.Tensor | None], attributes: dict[str, Any] | None = None, shapes: Any = None
    ) -> Node:
        """A graph of one node that reads inputs of these types."""
        graph = Graph("example")
        values = [
            None if t is None else graph.add_input(f"x{k}", TensorType(t.dtype, tuple(t.shape)))
            for k, t in enumerate(tensors)
        ]
        declared = self.shapes if shapes is None else shapes
        node = graph.add(self.operator, values, self.attributes if attributes is None else attributes, shapes=declared)
        graph.set_outputs(node.outputs)
        return node


def _tensor(text: str, generator: torch.Generator, dtype: torch.dtype | None) -> torch.Tensor:
    match = _OPERAND.fullmatch(text)
    assert match, text
    kind, shape = DTYPES[match[1]], [int(size) for size in match[3].split(",") if size]
    if match[5]:
        return torch.tensor([int(number) for number in match[5].split(",")]).to(kind).reshape(shape)
    if kind == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if not kind.is_floating_point:
        return torch.randint(0, int(match[4] or 5), shape, generator=generator).to(kind)
    made = torch.randn(shape, generator=generator, dtype=torch.float64)
    made = made.abs() + 0.5 if match[2] else made
    return made.to(dtype if dtype is not None and kind == torch.float32 else kind)


def body(line: str) -> Graph:
    """A body of a branch: one node that reads `%x`."""
    return parse_graph(f"graph body(%x: f32[3, 4]) {{\n  {line}\n  return %y\n}}")


def _call(operator: str, operands: str = "", *shapes: tuple[int, ...], **attributes: Any) -> Example:
    return Example(operator, operands, attributes, shapes or None)


UNARY = (
    "relu", "leaky_relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "softsign", "tanh", "sigmoid", "log_sigmoid",
    "hardsigmoid", "softplus", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "abs", "neg", "sign", "floor", "ceil", "round",
    "sin", "cos", "erf", "clone", "isnan", "isinf", "logical_not",
)  # fmt: skip
OF_INTEGERS = (
    "tanh",
    "sigmoid",
    "exp",
    "log1p",
    "sqrt",
    "reciprocal",
    "abs",
    "neg",
    "sign",
    "cos",
    "erf",
    "clone",
    "logical_not",
    "relu",
)
POSITIVE = frozenset({"log", "log2", "sqrt", "rsqrt", "reciprocal", "log1p"})
ARITHMETIC = ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "remainder", "atan2")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
LOGICAL = ("logical_and", "logical_or", "logical_xor")
BITWISE = ("bitwise_and", "bitwise_or", "bitwise_xor")

EXAMPLES: tuple[Example, ...] = (
    *(_call(name, "f32+[2,3]" if name in POSITIVE else "f32[2,3]") for name in UNARY),
    *(_call(name, "i64[2,3]") for name in OF_INTEGERS),
    _call("gelu", "f32[3]", approximate="tanh"),
    _call("leaky_relu", "f32[]", negative_slope=0.2),
    _call("softplus", "f32[3]", beta=2.0, threshold=10.0),
    _call("bitwise_not", "bool[2,3]"),
    _call("bitwise_not", "i32[2,3]"),
    _call("clamp", "f32[2,3]", min=-0.5, max=0.5),
    _call("clamp", "f32[2,3]", min=0.0),
    _call("cast", "f32[2,3]", dtype=torch.float64),
    _call("cast", "f32[2,3]", dtype=torch.int64),
    _call("cast", "i64[2,3]", dtype=torch.bool),
    _call("dropout", "f32[2,3]", p=0.3),
    _call("prelu", "f32[2,3,4] f32[3]"),
    _call("prelu", "f32[2,3,4] f32[1]"),
    _call("prelu", "f32[5] f32[1]"),
    # two operands, broadcasting, a scalar on either side
    *(_call(name, "f32[2,3] f32[2,3]") for name in (*ARITHMETIC, *COMPARISONS, *LOGICAL)),
    *(_call(name, "f32+[2,1,4] f32+[3,1]") for name in (*ARITHMETIC, *COMPARISONS, *LOGICAL)),
    *(_call(name, "f32+[2,3] _", scalar=1.5) for name in (*ARITHMETIC, *COMPARISONS)),
    *(_call(name, "_ f32+[2,3]", scalar=1.5) for name in (*ARITHMETIC, *COMPARISONS)),
    *(_call(name, "i64[2,3] i64[3]") for name in ("add", "mul", "div", "maximum", *COMPARISONS, *BITWISE)),
    *(_call(name, "i64[2,3] _", scalar=2) for name in ("add", "sub", "mul", "div", "maximum", "remainder", *COMPARISONS, *BITWISE)),
    *(_call(name, "i64[2,3] _", scalar=0.5) for name in ("add", "sub", "mul", "div", "maximum", "minimum", *COMPARISONS)),
    *(_call(name, "bool[2,3] bool[3]") for name in (*LOGICAL, *BITWISE, "eq", "mul")),
    *(_call(name, "bool[3] f32[2,3]") for name in ("mul", "add", "eq")),
    *(_call(name, "f32[] f64[2,3]") for name in ("add", "div", "maximum")),
    *(_call(name, "f64[] f32[2,3]") for name in ("add", "div", "maximum")),
    _call("div", "f32[2,3] f32+[3]", rounding="floor"),
    _call("div", "i64[2,3] _", scalar=2, rounding="floor"),
    _call("div", "i64[2,3] _", scalar=2, rounding="trunc"),
    _call("where", "bool[2,3] f32[2,3] f32[3]"),
    _call("where", "bool[2,1] f32[3] _", on_false=0.0),
    _call("where", "bool[2,1] _ f32[3]", on_true=-1.0),
    _call("where", "bool[2,3] i64[3] _", on_false=0),
    _call("where", "bool[2,3]", on_true=1.0, on_false=0.0),
    # contractions
    _call("linear", "f32[2,5,3] f32[4,3] f32[4]"),
    _call("linear", "f32[3] f32[4,3] _"),
    _call("matmul", "f32[2,5,3] f32[2,3,4]"),
    _call("matmul", "f32[2,1,5,3] f32[6,3,4]"),
    _call("matmul", "f32[5,3] f32[3,4]"),
    _call("matmul", "f32[3] f32[3]"),
    _call("matmul", "f32[3] f32[2,3,4]"),
    _call("matmul", "f32[2,5,3] f32[3]"),
    _call("addmm", "f32[4] f32[5,3] f32[3,4]"),
    _call("addmm", "f32[5,4] f32[5,3] f32[3,4]"),
    _call("einsum", "f32[2,3,4] f32[2,4,5]", equation="bij,bjk->bik"),
    _call("einsum", "f32[2,3,4] f32[3]", equation="b i j, i -> b j"),
    _call("einsum", "f32[2,3,4] f32[5,4]", equation="...d,ed->...e"),
    _call("einsum", "f32[3,4] f32[4,5]", equation="ij,jk"),
    _call("einsum", "f32[2,6,3] f32[2,6,3] f32[6]", equation="bid,bjd,j->bij"),
    _call("conv", "f32[2,3,9] f32[4,3,3] f32[4]"),
    _call("conv", "f32[2,3,8,7] f32[4,3,3,2] f32[4]", stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    _call("conv", "f32[2,6,5,5] f32[4,3,3,3] _", padding=(1, 1), groups=2),
    _call("conv", "f32[2,4,5,5] f32[4,1,3,3] f32[4]", padding=(1,), groups=4),
    _call("conv", "f32[2,2,4,5,5] f32[3,2,2,3,3] f32[3]", stride=(1, 2, 2)),
    _call("conv_transpose", "f32[2,3,5] f32[3,4,3] f32[4]", stride=(2,)),
    _call("conv_transpose", "f32[2,4,5,4] f32[4,3,3,2] f32[6]", stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2),
    _call("conv_transpose", "f32[2,2,3,3,3] f32[2,2,2,2,2] _", dilation=(2, 2, 2)),
    _call("attention", "f32[2,4,5,8] f32[2,4,6,8] f32[2,4,6,3]", scale=0.35),
    _call("attention", "f32[2,4,5,8] f32[2,4,5,8] f32[2,4,5,8]", scale=0.35, causal=True),
    _call("attention", "f32[2,4,5,8] f32[2,2,6,8] f32[2,2,6,8]", scale=0.35, grouped=True),
    _call("attention", "f32[2,4,5,8] f32[2,4,6,8] f32[2,4,6,8] f32[2,1,5,6]", scale=0.35),
    _call("attention", "f32[2,4,5,8] f32[2,4,6,8] f32[2,4,6,8] bool[5,1]", scale=0.35),
    _call("attention", "f32[2,4,5,8] f32[2,2,6,8] f32[2,2,6,8] f32[1,4,1,6]", scale=0.35, grouped=True),
    _call("attention", "f32[2,5,8] f32[2,6,8] f32[2,6,8]", scale=0.35),
    _call("bilinear", "f32[2,5,3] f32[2,5,4] f32[6,3,4] f32[6]"),
    _call("bilinear", "f32[2,3] f32[2,4] f32[6,3,4] _"),
    # experts by random partition
    _call("random_order", "f32[2,5,3]"),
    _call("expert_linear", "f32[2,5,3] f32[3,4,3] f32[3,4] i64[2,5]<3"),
    _call("expert_linear", "f32[6,3] f32[2,3,4] _ i64[6]<2", transposed=True),
    # layout
    _call("reshape", "f32[2,12,5]", (2, 3, 4, 5)),
    _call("reshape", "f32[2,3,4,5]", (2, 60)),
    _call("reshape", "f32[4,6]", (3, 8)),
    _call("reshape", "f32[2,1,6,1]", (1, 2, 3, 2)),
    _call("reshape", "f32[0,6]", (0, 2, 3)),
    _call("reshape", "f32[1]", ()),
    _call("permute", "f32[2,3,4]", dims=(2, 0, 1)),
    _call("permute", "f32[2,3,4]", dims=(0, -1, -2)),
    _call("expand", "f32[3,1]", (2, 3, 4)),
    _call("expand", "f32[]", (2, 3)),
    _call("repeat", "f32[2,3]", repeats=(4, 1, 2)),
    _call("repeat_interleave", "f32[2,3,4]", dim=1, repeats=3),
    _call("concat", "f32[2,3,4] f32[2,1,4] f32[2,5,4]", dim=1),
    _call("concat", "f32[2,3] f32[2,4]", dim=-1),
    _call("concat", "f32[2,3]", dim=0),
    _call("concat", "f32[2,0] f32[2,3]", dim=1),
    _call("concat", "f32[3] i64[2]", dim=0),
    _call("split", "f32[2,6,4]", (2, 1, 4), (2, 2, 4), (2, 3, 4), dim=1),
    _call("split", "f32[2,6]", (2, 6), dim=-1),
    _call("slice", "f32[2,7,4]", (2, 3, 4), dim=1, start=2),
    _call("slice", "f32[2,7,4]", (2, 7, 4), dim=1),
    _call("slice", "f32[2,7,4]", (2, 5, 4), dim=-2, start=2),
    _call("slice", "f32[7]", (3,), dim=0, start=1, step=2),
    _call("slice", "f32[7]", (0,), dim=0, start=3),
    _call("slice", "f32[7]", (7,), dim=0, step=1),
    _call("select", "f32[2,3,4]", dim=1, index=2),
    _call("select", "f32[2,3,4]", dim=-1, index=-1),
    _call("roll", "f32[2,3,4]", shifts=(1, -2), dims=(1, 2)),
    _call("flip", "f32[2,3,4]", dims=(0, -1)),
    _call("pad", "f32[2,3,4]", pads=(0, 1, 2, 0, 0, 3), mode="constant", value=0.5),
    _call("pad", "f32[2,3,4]", pads=(0, 0, -1, 0, 0, 3)),
    _call("pad", "f32[2,3,4]", pads=(0, 0, 2, 0, 0, 1), mode="reflect"),
    _call("pad", "f32[2,3,4,5]", pads=(0, 0, 1, 0, 0, 0, 0, 2), mode="replicate"),
    _call("triangle", "f32[2,4,5]", diagonal=1),
    _call("triangle", "f32[4,4]", upper=True, diagonal=-1),
    _call("embedding", "f32[10,4] i64[2,3]<10"),
    _call("embedding", "f32[10,4] i64[]<10", padding=0),
    _call("index", "f32[7,4] i64[3,2]<7"),
    _call("index", "f32[2,7,4] i64[3]<7", dims=(1,)),
    _call("index", "f32[5,2,6] i64[3,1]<5 i64[4]<6", dims=(0, 2)),
    _call("index", "f32[2,5,6] i64[3,1]<5 i64[4]<6", dims=(1, 2)),
    _call("index", "f32[2,5,3,6] i64[4]<5 i64[4]<6", dims=(1, 3)),
    _call("gather", "f32[2,7,4] i64[2,3,4]<7", dim=1),
    _call("gather", "f32[5,7] i64[3,7]<5", dim=0),
    _call("gather", "f32[5,7] i64[3,2]<7", dim=-1),
    _call("segment_sum", "f32[6,4] i64[6]<3", (3, 4)),
    _call("segment_sum", "f32[2,5] i64[2,5]<7", (2, 7)),
    _call("segment_sum", "f32[2,3,5,4] i64[2,3,5]<4", (2, 3, 4, 4)),
    _call("segment_sum", "f32[0,4] i64[0]<3", (3, 4)),
    # relational
    _call("segment_max", "f32[6,4] i64[6]<3", (3, 4)),
    _call("segment_max", "f32[6] i64[6]=0,0,3,3,3,4", (6,), empty=-1.0),
    _call("segment_max", "f32[0,2,3] i64[0]<3", (3, 2, 3)),
    _call("segment_softmax", "f32[6,2] i64[6]<3", segments=3),
    _call("segment_softmax", "f32[5] i64[5]=4,4,0,4,2", segments=6),
    _call("typed_linear", "f32[7,3] f32[4,3,5] i64[7]<4"),
    _call("typed_linear", "f32[7,2,3] f32[4,2,3,5] i64[7]=0,2,2,3,0,0,2"),
    _call("typed_linear", "f32[0,3] f32[4,3,5] i64[0]<4"),
    _call("typed_outer", "f32[7,3] f32[7,5] i64[7]<4", (4, 3, 5)),
    _call("typed_outer", "f32[7,2,3] f32[7,2,5] i64[7]=0,2,2,3,0,0,2", (4, 2, 3, 5)),
    _call("csr_sum", "f32[6,4] i64[4]=0,2,2,6"),
    _call("csr_sum", "f32[5] i64[3]=0,4,5"),
    _call("csr_sum", "f32[0,2] i64[4]=0,0,0,0"),
    _call("csr_max", "f32[6,2,3] i64[4]=0,2,2,6", empty=-1.0),
    _call("csr_spread", "f32[3,4] i64[4]=0,2,2,6", (6, 4)),
    _call("csr_spread", "f32[3,2,1] i64[4]=0,0,0,1", (1, 2, 1)),
    _call("grouped_linear", "f32[7,3] f32[4,3,5] i64[5]=0,2,4,5,7 i64[4]=0,0,2,3"),
    _call("grouped_linear", "f32[7,2,3] f32[3,2,3,5] i64[3]=0,4,7 i64[2]=1,2"),
    _call("grouped_outer", "f32[7,3] f32[7,5] i64[5]=0,3,3,5,7"),
    _call("grouped_outer", "f32[7,2,3] f32[7,2,5] i64[3]=0,4,7"),
    _call("sort_order", "i64[7]<3"),
    _call("sort_order", "i64[7]<3 i64[7]<4"),
    _call("inverse_order", "i64[5]=3,0,4,1,2"),
    _call("run_pointers", "i64[7]<4", (5,)),
    _call("unique_rows", "i64[6]=4,2,2,4,0,2", (3,), (6,)),
    _call("unique_rows", "i64[6]=1,0,0,1,1,0 i64[6]=2,0,3,2,1,0", (4,), (6,)),
    _call("tile_runs", "i64[5]=0,5,5,6,13", (7,), (6,), rows=3),
    _call("tile_runs", "i64[3]=0,0,0", (1,), (0,), rows=3),
    _call("fewer_ends", "i64[5]=2,0,0,2,0 i64[5]=1,3,3,1,4 i64[5]=1,1,1,2,1", (4,)),
    _call("meeting_rows", "bool[4]=1,0,1,0 i64[3]=0,1,3", (3,), together=True),
    _call("meeting_rows", "bool[4]=1,0,1,0 i64[3]=0,1,3", (4,), together=False),
    _call("pixel_shuffle", "f32[2,12,3,5]", factor=2),
    _call("pixel_unshuffle", "f32[2,3,4,6]", factor=2),
    # norms
    _call("batch_norm", "f32[2,3,4,5] f32[3] f32[3] f32[3] f32+[3]"),
    _call("batch_norm", "f32[4,3] f32[3] f32[3] f32[3] f32+[3]", eps=1e-3, frozen=True),
    _call("batch_norm", "f32[2,3,4] _ _ f32[3] f32+[3]"),
    _call("batch_norm", "f32[2,3,4] f32[3] f32[3] _ _"),
    _call("layer_norm", "f32[2,5,3] f32[3] f32[3]"),
    _call("layer_norm", "f32[2,5,3] f32[5,3] _", rank=2),
    _call("layer_norm", "f32[2,5,3] _ _"),
    _call("rms_norm", "f32[2,5,3] f32[3]"),
    _call("rms_norm", "f32[2,5,3]", rank=2, eps=None),
    _call("group_norm", "f32[2,6,4,5] f32[6] f32[6]", groups=3),
    _call("group_norm", "f32[2,6,4] _ _", groups=1),
    _call("instance_norm", "f32[2,3,4,5] f32[3] f32[3]"),
    _call("instance_norm", "f32[2,3,4] _ _ f32[3] f32+[3]"),
    _call("softmax", "f32[2,3,4]", dim=1),
    _call("softmax", "f32[2,3]"),
    _call("log_softmax", "f32[2,3,4]", dim=-2),
    _call("l_normalise", "f32[2,3,4]"),
    _call("l_normalise", "f32[2,3]", p=1.0, dim=-1),
    # recurrent
    _call("lstm", "f32[5,2,3] f32[1,2,4] f32[1,2,4] f32[16,3] f32[16,4] f32[16] f32[16]", layers=1),
    _call("lstm", "f32[2,5,3] f32[2,2,4] f32[2,2,4] f32[16,3] f32[16,4] f32[16,3] f32[16,4]", layers=1, bidirectional=True, biased=False,
          batch_first=True),
    _call("lstm", "f32[2,5,3] f32[2,2,4] f32[2,2,4] f32[16,3] f32[16,4] f32[16,4] f32[16,4]", layers=2, biased=False, batch_first=True),
    _call("gru", "f32[5,2,3] f32[1,2,4] f32[12,3] f32[12,4] f32[12] f32[12]", layers=1),
    _call("gru", "f32[5,2,3] f32[4,2,4] f32[12,3] f32[12,4] f32[12,3] f32[12,4] f32[12,8] f32[12,4] f32[12,8] f32[12,4]", layers=2,
          bidirectional=True, biased=False),
    _call("rnn_tanh", "f32[5,2,3] f32[1,2,4] f32[4,3] f32[4,4] f32[4] f32[4]", layers=1),
    _call("rnn_relu", "f32[2,5,3] f32[1,2,4] f32[4,3] f32[4,4]", layers=1, biased=False, batch_first=True),
    # reductions
    *(_call(name, "f32[2,3,4]", dims=(1,)) for name in ("sum", "mean", "amax", "amin", "prod", "var", "vector_norm", "argmax", "argmin", "any", "all")),
    *(_call(name, "f32[2,3,4]", dims=(-1,), keepdim=True) for name in ("sum", "mean", "amax", "prod", "var", "vector_norm", "argmax", "any")),
    *(_call(name, "f32[2,3,4]", dims=(0, 2)) for name in ("sum", "mean", "amin", "var", "vector_norm", "any", "all")),
    *(_call(name, "i64[2,3,4]", dims=(1,)) for name in ("sum", "amax", "prod", "argmin", "any")),
    *(_call(name, "bool[2,3]", dims=(1,)) for name in ("sum", "any", "all")),
    _call("var", "f32[2,3,4]", dims=(1,), correction=0.0),
    _call("vector_norm", "f32[2,3,4]", dims=(1,), p=1.0),
    _call("cumsum", "f32[2,3,4]", dim=1),
    _call("cumsum", "bool[2,3]", dim=-1),
    _call("topk", "f32[2,7]", k=3),
    _call("topk", "f32[7,2]", k=2, dim=0, largest=False),
    # space
    _call("max_pool", "f32[2,3,9]", kernel=(3,), stride=(2,), padding=(1,), dilation=(1,)),
    _call("max_pool", "f32[2,3,8,7]", kernel=(3, 2), stride=(2, 2), padding=(1, 0), dilation=(1, 2), ceil=True),
    _call("max_pool", "f32[3,8,7]", kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1)),
    _call("max_pool", "f32[2,3,4,5,6]", kernel=(2, 2, 2), stride=(2, 2, 2), padding=(0, 0, 0), dilation=(1, 1, 1)),
    _call("avg_pool", "f32[2,3,9]", kernel=(3,), stride=(2,), padding=(1,)),
    _call("avg_pool", "f32[2,3,8,7]", kernel=(3, 2), stride=(2, 2), padding=(1, 1), ceil=True, count_padding=False),
    _call("avg_pool", "f32[2,3,8,7]", kernel=(2, 2), stride=(2, 2), padding=(0, 0), divisor=3),
    _call("avg_pool", "f32[2,3,4,4,4]", kernel=(2, 2, 2), stride=(2, 2, 2), padding=(0, 0, 0)),
    _call("adaptive_avg_pool", "f32[2,3,8,7]", (2, 3, 3, 2)),
    _call("adaptive_avg_pool", "f32[2,3,8]", (2, 3, 1), rank=1),
    _call("adaptive_max_pool", "f32[2,3,8,7]", (2, 3, 1, 1)),
    _call("adaptive_max_pool", "f32[2,3,8]", (2, 3, 3), rank=1),
    _call("max_pool_index", "f32[2,3,9]", kernel=(3,), stride=(2,), padding=(1,), dilation=(1,)),
    _call("max_pool_index", "f32[2,3,8,7]", kernel=(3, 2), stride=(2, 2), padding=(1, 0), dilation=(1, 2), ceil=True),
    _call("max_pool_index", "f32[3,8,7]", kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1)),
    _call("adaptive_max_pool_index", "f32[2,3,8,6]", (2, 3, 2, 3)),
    _call("adaptive_max_pool_index", "f32[2,3,8]", (2, 3, 2), rank=1),
    _call("interpolate", "f32[2,3,4,5]", (2, 3, 8, 10), scales=(2.0, 2.0)),
    _call("interpolate", "f32[2,3,4,5]", (2, 3, 7, 6), mode="bilinear", align_corners=False),
    _call("interpolate", "f32[2,3,4,5]", (2, 3, 7, 6), mode="bicubic", align_corners=True),
    _call("interpolate", "f32[2,3,9]", (2, 3, 4), rank=1, mode="linear", align_corners=False),
    _call("grid_sample", "f32[2,3,4,5] f32[2,6,7,2]"),
    # fused
    _call("bias_gelu", "f32[2,3,4] f32[4]"),
    _call("bias_gelu", "f32[3,4] f32[4]", approximate="tanh"),
    _call("quick_gelu", "f32[2,3]", alpha=1.5),
    _call("bias_residual", "f32[2,3,4] f32[4] f32[2,3,4]"),
    _call("skip_layer_norm", "f32[2,3,4] f32[2,3,4] f32[4] f32[4]", eps=1e-3),
    _call("skip_layer_norm", "f32[3,4] f32[3,4] _ _"),
    _call("skip_rms_norm", "f32[2,3,4] f32[2,3,4] f32[4]"),
    _call("multi_head_attention", "f32[2,5,12] f32[2,4,12] f32[2,4,6] f32[2,1,5,4]", heads=3, scale=0.5),
    _call("multi_head_attention", "f32[2,5,12] f32[2,5,12] f32[2,5,12]", heads=2, scale=0.3, causal=True),
    _call("multi_head_attention", "f32[2,5,12] f32[2,4,12] f32[2,4,12] bool[5,4]", heads=2, scale=0.3),
    _call("grouped_attention", "f32[2,5,12] f32[2,4,6] f32[2,4,6]", key_heads=2, group=2, scale=0.5),
    _call("packed_attention", "f32[2,5,6] f32[24,6] f32[24]", heads=2, scale=0.5),
    _call("projected_attention", "f32[2,5,6] f32[8,6] f32[8,6] f32[8,6] f32[8] _ f32[8]", heads=2, scale=0.5),
    _call("rotary", "f32[2,5,12] f32[1,1,5,4] f32[1,1,5,4]", heads=3),
    # control
    _call("branch", "bool[] f32[3,4]", then=body("%y: f32[3, 4] = tanh(%x)"), otherwise=body("%y: f32[3, 4] = neg(%x)")),
    # quantisers
    _call("quantise", "f32[2,3] f32+[] u8[]"),
    _call("quantise", "f32[2,3] f32+[]", signed=True),
    _call("quantise", "f32[2,3,4] f32+[3] i8[3]", axis=1, bits=4, signed=True),
    _call("quantise", "f32[2,6] f32+[2,3] u8[2,3]", axis=-1, block=2),
    _call("quantise", "f32[2,6] f32+[6]", axis=1, bits=6),
    _call("dequantise", "u8[2,3] f32+[] u8[]"),
    _call("dequantise", "i8[2,3] f32+[3]", axis=-1, signed=True),
    _call("dequantise", "i8[4,3,2] f32+[4] i8[4]", axis=0, signed=True),
    _call("dequantise", "i8[4,3] f32+[2,3]", axis=0, block=2, signed=True),
    _call("dequantise", "i32[4] f32+[4]", axis=0, bits=32, signed=True),
    _call("log2_quantise", "f32+[2,3] f32+[]"),
    _call("log2_quantise", "f32+[2,3] f32+[]", bits=8, steps=1),
    _call("log2_dequantise", "u8[2,3]<16 f32+[]"),
    _call("log2_dequantise", "u8[2,3]<8 f32+[]", bits=3, steps=1),
    # sources
    _call("full", "", (2, 3), value=1.5),
    _call("full", "", (), value=True, dtype=torch.bool),
    _call("full", "", (2,), value=7, dtype=torch.int64),
    _call("arange", "", (5,)),
    _call("arange", "", (0,), start=3),
    _call("arange", "", (3,), start=0.0, step=0.1, dtype=torch.float32),
    _call("arange", "", (4,), start=10, step=-2, dtype=torch.int32),
    _call("opaque", "f32[3,4]", (4, 3), target="aten.t.default", arguments='{"args": [{"$": 0}], "kwargs": {}}', dtypes=(torch.float32,)),
)  # fmt: skip
