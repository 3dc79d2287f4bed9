"""The ONNX emitter, operator by operator, against the evaluator: ONNX Runtime runs what was written, at two sizes of every symbol."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from suture.backends.onnx import export_onnx
from suture.backends.onnx.emitter import RULES
from suture.backends.onnxruntime import OnnxModel
from suture.ir import operators  # noqa: F401  (declares them)
from suture.ir.graph import Graph
from suture.ir.operator import OPERATORS
from suture.ir.semantics import evaluate
from suture.ir.sizes import evaluate_size, parse_size, symbol
from suture.ir.text import parse_graph
from suture.ir.types import DTYPES, TensorType

SIZES = ({"batch": 2, "n": 6}, {"batch": 3, "n": 9})


def read_type(text: str) -> TensorType:
    kind, _, rest = text.partition("[")
    dims = [part for part in rest.rstrip("]").split(",") if part.strip()]
    return TensorType(DTYPES[kind], tuple(parse_size(part) for part in dims))


def sample(
    type_: TensorType, sizes: dict[str, int], generator: torch.Generator, low: float, high: float
) -> torch.Tensor:
    shape = [evaluate_size(dim, sizes) for dim in type_.shape]
    if type_.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if type_.dtype.is_floating_point:
        return (torch.rand(shape, generator=generator) * (high - low) + low).to(type_.dtype)
    return torch.randint(math.ceil(low), math.ceil(high), shape, generator=generator).to(type_.dtype)


@dataclass(frozen=True)
class Case:
    """One node: `@` marks an operand that is a parameter (`=0,2` says which), `_` one that is absent; `low` and `high` bound the numbers."""

    operator: str
    operands: str
    attributes: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[str, ...] = ()
    low: float = -3.0
    high: float = 3.0
    opset: int = 21
    has: str = ""  # the ONNX operators expected, in order

    def __str__(self) -> str:
        extra = ",".join(f"{k}={v!r}" for k, v in self.attributes.items())
        return f"{self.operator} {self.operands.replace(' ', '')} {extra} {self.opset}"

    def graph(self) -> Graph:
        graph = Graph("case")
        graph.add_input("sizes", read_type("f32[batch, n]"))  # declares both symbols
        generator = torch.Generator().manual_seed(1)
        operands: list[Any] = []
        for index, text in enumerate(self.operands.split("; ") if self.operands else []):
            if text == "_":
                operands.append(None)
            elif "=" in text:
                kind, _, numbers = text.partition("=")
                data = torch.tensor([int(number) for number in numbers.split(",")], dtype=read_type(kind[1:]).dtype)
                operands.append(graph.add_parameter(f"weight{index}", data))
            elif text.startswith("@"):
                data = sample(read_type(text[1:]), {}, generator, self.low, self.high)
                operands.append(graph.add_parameter(f"weight{index}", data))
            else:
                operands.append(graph.add_input(f"x{index}", read_type(text)))
        shapes = [read_type("f32" + text).shape for text in self.shapes] or None
        node = graph.add(self.operator, operands, self.attributes, shapes=shapes, path="block.part")
        graph.set_outputs(node.outputs, [f"result{k}" for k in range(len(node.outputs))])
        return graph


def check(
    graph: Graph, path: Path, *, opset: int = 21, low: float = -3.0, high: float = 3.0, tolerance: float = 1e-5
) -> None:
    export_onnx(graph, path, opset=opset)
    model = OnnxModel(path, threads=1)
    generator = torch.Generator().manual_seed(2)
    for sizes in SIZES:
        tensors = {value.name: sample(value.type, sizes, generator, low, high) for value in graph.inputs}
        with torch.no_grad():
            expected = evaluate(graph, tensors)
        found = model.run({name: tensor for name, tensor in tensors.items() if name in model.inputs})
        assert model.outputs == graph.output_names
        for a, b, value in zip(expected, found, graph.outputs, strict=True):
            assert b.dtype == value.dtype == a.dtype
            assert b.shape == a.shape
            torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance, equal_nan=True)


X = "f32[batch, 4, n]"
IMAGE = "f32[batch, 4, 12, n]"
UNARY = [
    "relu",
    "leaky_relu",
    "relu6",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "softsign",
    "tanh",
    "sigmoid",
    "log_sigmoid",
    "hardsigmoid",
    "softplus",
    "exp",
    "expm1",
    "abs",
    "neg",
    "sign",
    "floor",
    "ceil",
    "round",
    "sin",
    "cos",
    "erf",
    "clone",
    "clamp",
    "isnan",
    "isinf",
    "reciprocal",
]
CASES = [Case(name, X, {"min": -1.0} if name == "clamp" else {}) for name in UNARY]
CASES += [Case(name, X, low=0.01) for name in ("log", "log1p", "log2", "sqrt", "rsqrt")]
CASES += [
    Case(name, "i64[batch, n]")
    for name in ("tanh", "exp", "abs", "neg", "sign", "floor", "relu", "bitwise_not", "isnan", "logical_not")
]
CASES += [
    Case("clamp", X, {"min": -1.0, "max": 0.5}), Case("clamp", "i64[batch, n]", {"max": 1}), Case("expm1", X, low=-1e-4, high=1e-4),
    Case("log1p", X, low=-1e-4, high=1e-4), Case("gelu", X, {"approximate": "tanh"}), Case("gelu", X, opset=17), Case("mish", X, opset=17),
    Case("gelu", X, {"approximate": "tanh"}, opset=17), Case("elu", X, {"alpha": 0.5}), Case("softplus", X, {"beta": 2.0, "threshold": 1.0}),
    Case("logical_not", "bool[batch, n]"), Case("bitwise_not", "bool[batch, n]"), Case("dropout", X, {"p": 0.5}, has=""),
    Case("prelu", "f32[batch, 4, n]; @f32[4]"), Case("prelu", "f32[batch, 4]; @f32[4]"),
    Case("cast", X, {"dtype": torch.int64}), Case("cast", X, {"dtype": torch.bool}), Case("cast", "bool[batch, n]", {"dtype": torch.float32}),
    Case("cast", "i64[batch]", {"dtype": torch.float64}), Case("cast", "i64[batch]", {"dtype": torch.int32}),
]  # fmt: skip

CASES += [
    Case("clamp", X, {"min": -math.inf, "max": 1.0}), Case("clamp", "i64[batch, n]", {"max": symbol("batch") - 2}),
]  # fmt: skip

# arithmetic with torch's promotion
for _name in ("add", "sub", "mul", "maximum", "minimum", "div", "remainder"):
    _low = 1.0 if _name in ("div", "remainder") else -3.0
    CASES += [
        Case(_name, "f32[batch, 4, n]; f32[4, 1]", low=_low), Case(_name, "f32[batch, n]; i64[n]", low=_low), Case(_name, "f32[batch, n]; @f32[]", low=_low),
        Case(_name, "i64[batch, n]; i32[batch, n]", low=_low), Case(_name, "f32[batch, n]", {"scalar": 2}), Case(_name, "i64[batch, n]", {"scalar": 2}),
        Case(_name, "_; f32[batch, n]", {"scalar": 2.5}, low=_low), Case(_name, "u8[batch, n]; u8[batch, n]", low=100, high=256),
    ]  # fmt: skip
for _name in ("add", "mul", "maximum", "minimum"):
    CASES.append(Case(_name, "bool[batch, n]; bool[n]"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    CASES += [
        Case(_name, "f32[batch, n]; f32[n]"), Case(_name, "i64[batch, n]; i64[n]"), Case(_name, "bool[batch, n]; bool[n]"), Case(_name, "i64[batch, n]", {"scalar": 0}),
        Case(_name, "i64[batch, n]", {"scalar": 0.5}), Case(_name, "i64[batch, n]", {"scalar": symbol("n")}), Case(_name, "i64[batch, n]; f32[n]"),
        Case(_name, "u8[batch, n]; u8[n]", low=0),
    ]  # fmt: skip
for _name in ("logical_and", "logical_or", "logical_xor"):
    CASES += [Case(_name, "bool[batch, n]; bool[n]"), Case(_name, "f32[batch, n]; i64[n]")]
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    CASES += [
        Case(_name, "bool[batch, n]; bool[n]"),
        Case(_name, "i64[batch, n]; i64[n]", high=60, low=0),
        Case(_name, "bool[batch, n]; bool[n]", opset=17),
    ]
CASES += [
    Case("add", "i64[batch, n]", {"scalar": symbol("batch") * 3 + 1}), Case("mul", "i64[batch, n]", {"scalar": 0.5}), Case("add", "bool[batch]", {"scalar": 1}),
    Case("div", "i64[batch, n]; i64[n]", low=1), Case("div", "i64[batch, n]", {"scalar": 2, "rounding": "floor"}),
    Case("div", "i64[batch, n]", {"scalar": 2, "rounding": "trunc"}), Case("div", "f32[batch, n]", {"scalar": 0.7, "rounding": "floor"}),
    Case("div", "f32[batch, n]", {"scalar": 0.7, "rounding": "trunc"}), Case("remainder", "f32[batch, n]", {"scalar": -0.7}),
    Case("remainder", "i64[batch, n]", {"scalar": -2}), Case("div", "i64[batch, n]", {"scalar": symbol("n")}),
    Case("pow", X, {"scalar": 2}), Case("pow", X, {"scalar": 3}), Case("pow", X, {"scalar": 0.5}, low=0.1), Case("pow", X, {"scalar": -0.5}, low=0.1),
    Case("pow", X, {"scalar": -1}, low=0.1), Case("pow", "f32[batch, n]; f32[n]", low=0.1), Case("pow", "i64[batch, n]", {"scalar": 3}),
    Case("pow", "_; f32[batch, n]", {"scalar": 2.0}), Case("atan2", "f32[batch, n]; f32[n]"), Case("atan2", "f32[batch, n]", {"scalar": 0.0}),
    Case("where", "bool[batch, n]; f32[batch, n]; f32[n]"), Case("where", "bool[batch, n]; f32[n]; _", {"on_false": -math.inf}),
    Case("where", "bool[batch, n]; _; i64[n]", {"on_true": 7}), Case("where", "bool[batch, n]; bool[n]; bool[batch, 1]"),
    Case("where", "bool[batch, n]; f32[n]; i64[n]"), Case("where", "bool[batch, n]; i32[n]; i32[n]"),
]  # fmt: skip

# contractions
CASES += [
    Case("linear", "f32[batch, 5]; @f32[7, 5]; @f32[7]", has="Gemm"), Case("linear", "f32[batch, n, 5]; @f32[7, 5]; @f32[7]", has="MatMul Add"),
    Case("linear", "f32[batch, n, 5]; @f32[7, 5]", has="MatMul"), Case("linear", "f32[batch, 5]; @f32[7, 5]", has="Gemm"), Case("linear", "f32[5]; @f32[7, 5]; @f32[7]"),
    Case("linear", "f32[batch, n, 5]; f32[7, 5]; f32[7]", has="Transpose MatMul Add"),
    Case("matmul", "f32[batch, n, 5]; f32[5, 3]"), Case("matmul", "f32[batch, 2, n, 5]; f32[batch, 2, 5, n]"), Case("matmul", "f32[5]; f32[batch, 5, n]"),
    Case("matmul", "f32[batch, n]; f32[n]"), Case("matmul", "f32[n]; f32[n]"), Case("addmm", "@f32[3]; f32[batch, 5]; @f32[5, 3]"),
    Case("addmm", "f32[batch, 3]; f32[batch, 5]; @f32[5, 3]"), Case("einsum", "f32[batch, n, 4]; f32[batch, 5, 4]", {"equation": "bid, bjd -> bij"}),
    Case("einsum", "f32[batch, 2, n]; @f32[3, 2]", {"equation": "...cn,oc->...on"}), Case("einsum", "f32[n]; f32[batch]", {"equation": "i,j->ij"}),
    Case("einsum", "f32[batch, n, 4]; f32[4, 3]; f32[3, 5]", {"equation": "bnh,hd,de->bne"}),
    Case("bilinear", "f32[batch, n, 3]; f32[batch, n, 4]; @f32[5, 3, 4]; @f32[5]"), Case("bilinear", "f32[batch, 3]; f32[batch, 4]; @f32[5, 3, 4]"),
    Case("conv", "f32[batch, 4, n]; @f32[6, 4, 3]; @f32[6]", {"stride": (2,), "padding": (1,)}),
    Case("conv", "f32[batch, 4, 12, n]; @f32[6, 2, 3, 3]", {"groups": 2, "dilation": (2, 1), "padding": (2, 1)}),
    Case("conv", "f32[batch, 2, 5, 6, n]; @f32[3, 2, 2, 3, 3]; @f32[3]", {"stride": (1, 2, 1)}),
    Case("conv", "f32[batch, 4, 12, n]; f32[4, 1, 3, 3]; f32[4]", {"groups": 4}),
    Case("conv_transpose", "f32[batch, 4, n]; @f32[4, 3, 3]; @f32[3]", {"stride": (2,), "padding": (1,), "output_padding": (1,)}),
    Case("conv_transpose", "f32[batch, 4, 5, n]; @f32[4, 3, 2, 2]", {"stride": (2, 2), "groups": 2}),
    Case("conv_transpose", "f32[batch, 4, 5, n]; @f32[4, 3, 3, 3]; @f32[3]", {"dilation": (2, 1), "padding": (1, 0)}),
]  # fmt: skip

Q, K, V = "f32[batch, 4, n, 8]", "f32[batch, 4, n, 8]", "f32[batch, 4, n, 6]"
GK, GV = "f32[batch, 2, n, 8]", "f32[batch, 2, n, 6]"
CASES += [
    Case("attention", f"{Q}; {K}; {V}", {"scale": 0.3}, has="Mul Transpose MatMul Softmax MatMul"), Case("attention", f"{Q}; {K}; {V}", {"scale": 1.0}),
    Case("attention", f"{Q}; {K}; {V}", {"scale": 0.3, "causal": True}), Case("attention", "f32[batch, n, 8]; f32[batch, 5, 8]; f32[batch, 5, 8]", {"scale": 0.3}),
    Case("attention", f"{Q}; {K}; {V}; f32[batch, 1, n, n]", {"scale": 0.3}), Case("attention", f"{Q}; {K}; {V}; bool[batch, 1, 1, n]", {"scale": 0.3}),
    Case("attention", f"{Q}; {K}; {V}; bool[n, n]", {"scale": 0.3}), Case("attention", f"{Q}; {K}; {V}; bool[batch, 4, n, n]", {"scale": 0.3}),
    Case("attention", f"{Q}; {GK}; {GV}", {"scale": 0.3, "grouped": True, "causal": True}),
    Case("attention", f"{Q}; {GK}; {GV}; bool[batch, 1, n, n]", {"scale": 0.3, "grouped": True}),
    Case("attention", f"{Q}; {GK}; {GV}; bool[batch, 4, n, n]", {"scale": 0.3, "grouped": True}),
    Case("attention", f"{Q}; {GK}; {GV}; f32[batch, 4, n, n]", {"scale": 0.3, "grouped": True}),
    Case("attention", f"{Q}; {GK}; {GV}; f32[n, n]", {"scale": 0.3, "grouped": True}),
    Case("attention", f"{Q}; {K}; {V}", {"scale": 0.3, "grouped": True}), Case("attention", f"{Q}; f32[batch, 1, n, 8]; f32[batch, 1, n, 6]", {"scale": 0.3, "grouped": True}),
    Case("attention", f"{Q}; {K}; {V}; @bool[4, 1, 1]", {"scale": 0.3}), Case("attention", f"{Q}; {K}; {V}; @f32[4, 1, 1]", {"scale": 0.3}),
]  # fmt: skip

# norms
CASES += [
    Case("batch_norm", "f32[batch, 4, n]; @f32[4]; @f32[4]; @f32[4]; @f32[4]", low=0.1, has="BatchNormalization"),
    Case("batch_norm", "f32[batch, 4]; _; _; @f32[4]; @f32[4]", low=0.1), Case("batch_norm", "f32[batch, 4, 3, n]; @f32[4]; @f32[4]"),
    Case("layer_norm", "f32[batch, n, 6]; @f32[6]; @f32[6]", has="LayerNormalization"), Case("layer_norm", "f32[batch, n, 6]"),
    Case("layer_norm", "f32[batch, n, 4, 6]; @f32[4, 6]", {"rank": 2}), Case("rms_norm", "f32[batch, n, 6]; @f32[6]"), Case("rms_norm", "f32[batch, n, 6]", {"eps": None}),
    Case("rms_norm", "f32[batch, n, 6]; @f32[6]", opset=17), Case("rms_norm", "f32[batch, n, 6]; @f32[6]", opset=23), Case("rms_norm", "f32[batch, n, 2, 6]", {"rank": 2}),
    Case("group_norm", "f32[batch, 6, 3, n]; @f32[6]; @f32[6]", {"groups": 3}), Case("group_norm", "f32[batch, 6, 3, n]; @f32[6]; @f32[6]", {"groups": 3}, opset=17),
    Case("group_norm", "f32[batch, 6]; @f32[6]", {"groups": 2}),
    Case("group_norm", "f32[batch, 6]; @f32[6]; @f32[6]", {"groups": 2}, opset=17),
    Case("group_norm", "f32[batch, 6, n]", {"groups": 2}), Case("group_norm", "f32[batch, 6, n]", {"groups": 2}, opset=20),
    Case("instance_norm", "f32[batch, 4, 3, n]; @f32[4]; @f32[4]"), Case("instance_norm", "f32[batch, 4, n]"),
    Case("instance_norm", "f32[batch, 4, n]; _; _; @f32[4]; @f32[4]", low=0.1),
    Case("softmax", X), Case("softmax", X, {"dim": 1}), Case("log_softmax", X, {"dim": -1}), Case("l_normalise", X), Case("l_normalise", X, {"p": 1.0, "dim": -1}),
    Case("l_normalise", X, {"p": 3.0, "dim": -1}), Case("l_normalise", X, {"p": math.inf, "dim": -1}), Case("l_normalise", X, opset=17),
]  # fmt: skip

# reductions
for _name in ("sum", "mean", "amax", "amin", "var", "vector_norm"):
    CASES += [
        Case(_name, X, {"dims": (-1,)}),
        Case(_name, X, {"dims": (0, 2), "keepdim": True}),
        Case(_name, X, {"dims": (1,)}, opset=17),
    ]
CASES += [
    Case("prod", X, {"dims": (1,)}),
    Case("argmax", X, {"dims": (1,)}),
    Case("argmin", X, {"dims": (-1,), "keepdim": True}),
    Case("argmax", "i64[batch, n]", {"dims": (1,)}, high=1e3),
]
CASES += [Case(_name, "bool[batch, n]", {"dims": (1,)}) for _name in ("sum", "any", "all")]
CASES += [
    Case(_name, "i32[batch, n]", {"dims": (1,)})
    for _name in ("sum", "amax", "amin", "any", "all", "cumsum")
    if _name != "cumsum"
]
CASES += [
    Case("any", X, {"dims": (1,), "keepdim": True}), Case("amax", "bool[batch, n]", {"dims": (1,)}), Case("var", X, {"dims": (1,), "correction": 0.0}),
    Case("var", X, {"dims": (1, 2), "correction": 0.5}), Case("vector_norm", X, {"dims": (1,), "p": 1.0}), Case("vector_norm", X, {"dims": (1,), "p": math.inf}),
    Case("vector_norm", X, {"dims": (1,), "p": -math.inf}), Case("vector_norm", X, {"dims": (1,), "p": 0.0}), Case("vector_norm", X, {"dims": (1,), "p": 2.5}),
    Case("cumsum", X, {"dim": -1}), Case("cumsum", "i64[batch, n]", {"dim": 0}), Case("cumsum", "bool[batch, n]", {"dim": 1}), Case("cumsum", "i32[batch, n]", {"dim": 1}),
    Case("topk", X, {"k": 3, "dim": 1}), Case("topk", X, {"k": 2, "dim": -1, "largest": False}),
]  # fmt: skip

# layout
CASES += [
    Case("reshape", "f32[batch, 4, n]", shapes=("[batch, 4*n]",), has="Reshape"), Case("reshape", "f32[batch, n, 8]", shapes=("[batch, n, 2, 4]",), has="Reshape"),
    Case("reshape", "f32[batch, n, 2, 4]", shapes=("[batch, n, 8]",), has="Reshape"), Case("reshape", "f32[batch, n, 2]", shapes=("[batch*n, 2]",), has="Reshape"),
    Case("reshape", "f32[batch*n, 2]", shapes=("[batch, n, 2]",), has="Shape Concat Reshape"), Case("reshape", "f32[6, 4]", shapes=("[3, 8]",)), Case("reshape", "f32[]", shapes=("[1, 1]",)),
    Case("reshape", "f32[batch, 4, n, 3]", shapes=("[4*batch, n, 3]",)), Case("reshape", "f32[1]", shapes=("[]",)), Case("reshape", "f32[batch, n]", shapes=("[n*batch]",)),
    Case("permute", "f32[batch, n, 3]", {"dims": (2, 0, 1)}), Case("permute", "f32[batch, n]", {"dims": (0, 1)}, has="Identity"),
    Case("expand", "f32[batch, 1, 1]", shapes=("[batch, n, 3]",)), Case("expand", "f32[4]", shapes=("[batch, n, 4]",)), Case("expand", "f32[batch, n]", shapes=("[batch, n]",)),
    Case("expand", "f32[1]", shapes=("[5]",)), Case("repeat", "f32[batch, n]", {"repeats": (2, 1)}), Case("repeat", "f32[n]", {"repeats": (symbol("batch"), 2)}),
    Case("repeat", "f32[batch, n]", {"repeats": (1, 1, 1)}), Case("repeat_interleave", "f32[batch, 2, n, 3]", {"dim": 1, "repeats": 3}),
    Case("repeat_interleave", "f32[batch, n]", {"dim": -1, "repeats": 2}), Case("concat", "f32[batch, n]; f32[batch, 3]", {"dim": 1}),
    Case("concat", "f32[batch, n]; i64[batch, n]; f32[batch, n]", {"dim": -1}), Case("concat", "f32[batch, n]", {"dim": 0}),
    Case("split", "f32[batch, 6, n]", {"dim": 1}, ("[batch, 2, n]", "[batch, 3, n]", "[batch, 1, n]")), Case("split", "f32[2*n, 3]", {"dim": 0}, ("[n, 3]", "[n, 3]")),
    Case("split", "f32[batch, n]", {"dim": 0}, ("[batch, n]",)), Case("split", "f32[batch, n]", {"dim": 1}, ("[batch, 1]", "[batch, n - 1]")),
    Case("slice", "f32[batch, n]", {"dim": 1, "start": 1}, ("[batch, 3]",)), Case("slice", "f32[batch, n]", {"dim": 1, "start": 1}, ("[batch, n - 1]",)),
    Case("slice", "f32[batch, n]", {"dim": 1, "start": 0}, ("[batch, n - 2]",)), Case("slice", "f32[batch, n]", {"dim": 1, "start": symbol("n") - 2}, ("[batch, 2]",)),
    Case("slice", "f32[batch, 9]", {"dim": 1, "start": 1, "step": 3}, ("[batch, 3]",)), Case("slice", "f32[20, n]", {"dim": 0, "start": symbol("batch")}, ("[n, n]",)),
    Case("slice", "f32[batch, n]", {"dim": 0}, ("[batch, n]",)), Case("slice", "f32[40, 2]", {"dim": 0}, ("[n, 2]",)), Case("slice", "f32[4, n]", {"dim": 0, "start": 2}, ("[0, n]",)),
    Case("select", "f32[batch, n, 3]", {"dim": 1, "index": -1}), Case("select", "f32[batch, n, 3]", {"dim": 2, "index": 1}), Case("select", "f32[4]", {"dim": 0, "index": 2}),
    Case("roll", "f32[batch, 7, n]", {"shifts": (3, -1), "dims": (1, 2)}), Case("roll", "f32[batch, 7]", {"shifts": (9,), "dims": (1,)}), Case("roll", "f32[n]", {"shifts": (20,), "dims": (0,)}),
    Case("flip", "f32[batch, 7, n]", {"dims": (1, -1)}), Case("pad", "f32[batch, 4, n]", {"pads": (0, 1, 2, 0, 0, 3)}), Case("pad", "f32[batch, n]", {"pads": (0, 1, 0, -2), "value": 2.5}),
    Case("pad", "f32[batch, 4, n]", {"pads": (0, 0, 2, 0, 0, 1), "mode": "reflect"}), Case("pad", "f32[batch, 4, 5, n]", {"pads": (0, 0, 1, 2, 0, 0, 2, 1), "mode": "replicate"}),
    Case("pad", "f32[batch, 4, n]", {"pads": (0, 0, 2, 0, 0, 1), "mode": "circular"}), Case("pad", "bool[batch, n]", {"pads": (0, 1, 0, 1), "value": 1.0}),
    Case("triangle", "f32[batch, n, n]"), Case("triangle", "f32[n, 5]", {"diagonal": 1, "upper": True}), Case("triangle", "bool[n, n]"), Case("triangle", "i32[n, n]", {"diagonal": -1}),
    Case("pixel_shuffle", "f32[batch, 12, 3, n]", {"factor": 2}), Case("pixel_shuffle", "f32[8, 3, n]", {"factor": 2}), Case("pixel_shuffle", "f32[batch, 2, 8, 3, n]", {"factor": 2}),
    Case("pixel_unshuffle", "f32[batch, 3, 4, 6*n]", {"factor": 2}), Case("pixel_unshuffle", "f32[3, 4, 6*n]", {"factor": 2}),
]  # fmt: skip

# lookups
CASES += [
    Case("gather", "f32[batch, 7, n]; i64[2, 3, 4]", {"dim": 1}, low=0, high=7),
    Case("index", "f32[7, 8, n]; i64[4]; i64[4]", {"dims": (0, 1)}, low=0, high=7),
    Case("embedding", "@f32[7, 5]; i64[batch, n]", low=0, high=7), Case("embedding", "@f32[7, 5]; i32[n]", {"padding": 0}, low=0, high=7),
    Case("index", "f32[batch, 7, 5]; i64[n]", {"dims": (1,)}, low=-7, high=7), Case("index", "@f32[7, 5]; i64[batch, n]", {"dims": (0,)}, low=0, high=7),
    Case("index", "f32[7, 8, n]; i64[batch, 1]; i64[4]", {"dims": (0, 1)}, low=0, high=7), Case("index", "f32[batch, 7, 8, n]; i64[5]; i64[batch, 5]", {"dims": (1, 2)}, low=-7, high=7),
    Case("index", "f32[7, batch, 8]; i64[n]; i64[n]", {"dims": (0, 2)}, low=0, high=7), Case("index", "f32[7, 8]; i64[]; i64[]", {"dims": (0, 1)}, low=0, high=7),
    Case("gather", "f32[batch, 7, n]; i64[batch, 3, n]", {"dim": 1}, low=0, high=7), Case("gather", "f32[batch, 7]; i64[batch, 1]", {"dim": -1}, low=0, high=7),
]  # fmt: skip

# values from nothing
CASES += [
    Case("full", "", {"value": 2.5}, ("[batch, n]",)), Case("full", "", {"value": 2}, ("[2, 3]",)), Case("full", "", {"value": True, "dtype": torch.bool}, ("[n]",)),
    Case("full", "", {"value": 1, "dtype": torch.int64}, ("[40, 50]",)), Case("full", "", {"value": symbol("n"), "dtype": torch.int64}, ("[batch]",)), Case("full", "", {"value": 2.5}, ("[]",)),
    Case("full", "", {"value": -math.inf}, ("[batch, n]",)), Case("arange", "", {}, ("[n]",)), Case("arange", "", {"start": 2, "step": 3}, ("[5]",)),
    Case("arange", "", {"start": symbol("batch"), "step": -1}, ("[n]",)), Case("arange", "", {"start": 0.5, "step": 0.25, "dtype": torch.float32}, ("[n]",)),
    Case("arange", "", {"dtype": torch.float32}, ("[n + 1]",)), Case("arange", "", {"start": 0.5, "step": 0.25, "dtype": torch.float32}, ("[9]",)), Case("arange", "", {}, ("[3000]",)),
    Case("opaque", "f32[batch, n]", {"target": "aten.atan.default", "arguments": '{"args": [{"$": 0}], "kwargs": {}}', "dtypes": (torch.float32,)}, ("[batch, n]",)),
]  # fmt: skip

# space
_POOL = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)}
CASES += [
    Case("max_pool", IMAGE, {**_POOL, "dilation": (1, 1)}), Case("max_pool", IMAGE, {**_POOL, "dilation": (2, 3)}), Case("max_pool", "f32[batch, 4, 12, 13]", {**_POOL, "dilation": (1, 1), "ceil": True}),
    Case("max_pool", "f32[4, 12, n]", {**_POOL, "dilation": (1, 1)}), Case("max_pool", "f32[batch, 4, n]", {"kernel": (2,), "stride": (2,), "padding": (0,), "dilation": (1,)}),
    Case("avg_pool", "f32[batch, 4, 5, 5]", {"kernel": (2, 2), "stride": (2, 2), "padding": (1, 1), "ceil": True}),
    Case("max_pool", "f32[batch, 4, 5, 5]", {"kernel": (2, 2), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "ceil": True}),
    Case("avg_pool", IMAGE, _POOL), Case("avg_pool", IMAGE, {**_POOL, "count_padding": False}), Case("avg_pool", "f32[batch, 4, 12, 13]", {**_POOL, "ceil": True}),
    Case("avg_pool", "f32[batch, 4, 12, 12]", {"kernel": (3, 3), "stride": (2, 2), "padding": (0, 0), "ceil": True}), Case("avg_pool", IMAGE, {**_POOL, "divisor": 5}),
    Case("avg_pool", "f32[batch, 4, 12, 12]", {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil": True, "count_padding": False}),
    Case("avg_pool", "f32[batch, 4, n]", {"kernel": (2,), "stride": (2,), "padding": (0,)}),
    Case("adaptive_avg_pool", IMAGE, {"rank": 2}, ("[batch, 4, 1, 1]",), has="GlobalAveragePool"), Case("adaptive_avg_pool", "f32[batch, 4, 12, 12]", {"rank": 2}, ("[batch, 4, 3, 6]",), has="AveragePool"),
    Case("adaptive_avg_pool", "f32[batch, 4, 12, 7]", {"rank": 2}, ("[batch, 4, 5, 3]",)), Case("adaptive_avg_pool", "f32[batch, 4, n]", {"rank": 1}, ("[batch, 4, 1]",)),
    Case("adaptive_avg_pool", "f32[4, 12, n]", {"rank": 2}, ("[4, 1, 1]",)), Case("adaptive_avg_pool", "f32[batch, 4, 7, n]", {"rank": 2}, ("[batch, 4, 3, 1]",)),
    Case("adaptive_avg_pool", "f32[batch, 2, 4, 6, 5]", {"rank": 3}, ("[batch, 2, 3, 2, 5]",)), Case("adaptive_avg_pool", IMAGE, {"rank": 2}, ("[batch, 4, 12, n]",)),
    Case("adaptive_max_pool", IMAGE, {"rank": 2}, ("[batch, 4, 1, 1]",)), Case("adaptive_max_pool", "f32[batch, 4, 12, 7]", {"rank": 2}, ("[batch, 4, 5, 3]",)),
    Case("adaptive_max_pool", "f32[batch, 4, 12]", {"rank": 1}, ("[batch, 4, 3]",)), Case("adaptive_max_pool", "f32[batch, 4, 7, n]", {"rank": 2}, ("[batch, 4, 3, 1]",)),
    Case("adaptive_max_pool", "f32[4, 12, n]", {"rank": 2}, ("[4, 1, 1]",)),
]  # fmt: skip
for _mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
    CASES += [
        Case("interpolate", "f32[batch, 3, 5, 6]", {"mode": _mode}, ("[batch, 3, 8, 4]",)), Case("interpolate", "f32[batch, 3, 5, n]", {"mode": _mode}, ("[batch, 3, 10, 2*n]",)),
        Case("interpolate", "f32[batch, 3, 5, n]", {"mode": _mode, "scales": (2.0, 2.0)}, ("[batch, 3, 10, 2*n]",)),
        Case("interpolate", "f32[batch, 3, 5, 6]", {"mode": _mode}, ("[batch, 3, 8, 4]",), opset=17),
    ]  # fmt: skip
CASES += [
    Case("interpolate", "f32[batch, 3, 10, 5]", {"mode": "bilinear", "scales": (0.7, 0.7)}, ("[batch, 3, 7, 3]",)),
    Case("interpolate", "f32[batch, 3, 10, 7]", {"mode": "nearest", "scales": (1.3, 1 / 3)}, ("[batch, 3, 13, 2]",)),
    Case("interpolate", "f32[batch, 3, 5, 6]", {"mode": "bilinear", "align_corners": True}, ("[batch, 3, 8, 4]",)),
    Case("interpolate", "f32[batch, 3, 5, 6]", {"mode": "bicubic", "align_corners": True}, ("[batch, 3, 8, 4]",)),
    Case("interpolate", "f32[batch, 3, 5, 6]", {"mode": "bilinear"}, ("[batch, 3, 1, 1]",)),
    Case("interpolate", "f32[batch, 3, 5, 6]", {"mode": "bilinear", "antialias": True, "align_corners": False}, ("[batch, 3, 3, 2]",)),
    Case("interpolate", "f32[batch, 3, 5, 6]", {"mode": "bicubic", "antialias": True, "align_corners": False}, ("[batch, 3, 9, 2]",)),
    Case("interpolate", "f32[batch, 3, n]", {"mode": "linear", "rank": 1}, ("[batch, 3, 2*n]",)), Case("interpolate", "f32[batch, 3, 12]", {"mode": "area", "rank": 1}, ("[batch, 3, 5]",)),
    Case("interpolate", "f32[batch, 3, 4, 5, 6]", {"mode": "trilinear", "rank": 3}, ("[batch, 3, 5, 5, 3]",)),
    Case("grid_sample", "f32[batch, 3, 5, 6]; f32[batch, 4, n, 2]", low=-1.2, high=1.2), Case("grid_sample", "f32[batch, 3, 5, 6]; f32[batch, 4, n, 2]", {"mode": "nearest", "padding": "border"}, low=-1.2, high=1.2),
    Case("grid_sample", "f32[batch, 3, 5, 6]; f32[batch, 4, n, 2]", {"mode": "bicubic", "padding": "reflection", "align_corners": True}, low=-1.2, high=1.2),
    Case("grid_sample", "f32[batch, 3, 5, 6]; f32[batch, 4, n, 2]", low=-1.2, high=1.2, opset=17),
]  # fmt: skip


def _layers(
    gates: int, hidden: int, width: int, layers: int, directions: int, biased: bool, mark: str = "@"
) -> list[str]:
    found = []
    for layer in range(layers):
        for _ in range(directions):
            found += [
                f"{mark}f32[{gates * hidden}, {width if layer == 0 else directions * hidden}]",
                f"{mark}f32[{gates * hidden}, {hidden}]",
            ]
            found += [f"{mark}f32[{gates * hidden}]"] * 2 if biased else []
    return found


for _name, _gates, _states in (("lstm", 4, 2), ("gru", 3, 1), ("rnn_tanh", 1, 1), ("rnn_relu", 1, 1)):
    for _count, _both, _biased, _first in (
        (1, False, True, False),
        (2, True, True, True),
        (2, False, False, True),
        (1, True, False, False),
    ):
        _source = "f32[batch, n, 3]" if _first else "f32[n, batch, 3]"
        _state = f"f32[{_count * (1 + _both)}, batch, 5]"
        CASES.append(Case(
            _name, "; ".join([_source, *[_state] * _states, *_layers(_gates, 5, 3, _count, 1 + _both, _biased)]),
            {"layers": _count, "bidirectional": _both, "biased": _biased, "batch_first": _first}, low=-0.5, high=0.5,
        ))  # fmt: skip


def body(line: str) -> Graph:
    return parse_graph(f"graph body(%x: f32[batch, n], %w: f32[3]) {{\n  {line}\n  return %y\n}}")


_BODIES = {
    "then": body("%y: f32[batch, n] = gelu(%x)"),
    "otherwise": parse_graph("graph same(%x: f32[batch, n], %w: f32[3]) { return %x as y }"),
}
CASES += [
    Case("branch", "bool[]; f32[batch, n]; @f32[3]", _BODIES, has="If"),
    Case("branch", "bool[]; f32[batch, n]; @f32[3]", {**_BODIES, "then": body("%y: f32[batch, n] = full()")}, opset=17, has="Shape Shape Concat If"),
]  # fmt: skip
CASES.append(
    Case(
        "gru",
        "; ".join(["f32[n, batch, 3]", "f32[1, batch, 5]", *_layers(3, 5, 3, 1, 1, True, mark="")]),
        {"layers": 1},
        low=-0.5,
        high=0.5,
    )
)

# fused operators, by their bodies; what ONNX Runtime has for them is tested where they are
CASES.extend(
    (
        Case("bias_gelu", "f32[batch, 3, 4]; f32[4]", has="Add Gelu"),
        Case("quick_gelu", "f32[batch, 4]", has="Mul Sigmoid Mul"),
        Case("bias_residual", "f32[batch, 3, 4]; f32[4]; f32[batch, 3, 4]", has="Sum"),
        Case("skip_layer_norm", "f32[batch, 3, 4]; f32[batch, 3, 4]; f32[4]; f32[4]", has="Add LayerNormalization"),
        Case("skip_rms_norm", "f32[batch, 3, 4]; f32[batch, 3, 4]; f32[4]"),
        Case(
            "multi_head_attention", "f32[batch, n, 4]; f32[batch, 5, 4]; f32[batch, 5, 6]", {"heads": 2, "scale": 0.5}
        ),
        Case(
            "grouped_attention",
            "f32[batch, n, 8]; f32[batch, 5, 4]; f32[batch, 5, 4]",
            {"key_heads": 2, "group": 2, "scale": 0.5},
        ),
        Case("packed_attention", "f32[batch, n, 4]; @f32[12, 4]; @f32[12]", {"heads": 2, "scale": 0.5}),
        Case(
            "projected_attention",
            "f32[batch, n, 4]; @f32[6, 4]; @f32[6, 4]; @f32[6, 4]; @f32[6]; _; @f32[6]",
            {"heads": 2, "scale": 0.5},
        ),
        Case("rotary", "f32[batch, n, 8]; f32[1, 1, n, 4]; f32[1, 1, n, 4]", {"heads": 2}),
    )
)


CASES += [
    Case("quantise", "f32[batch, n]; @f32[]", low=0.05, has="QuantizeLinear"),
    Case("quantise", "f32[batch, n]; @f32[]; @i8[]", {"signed": True}, low=0.05),
    Case("quantise", "f32[batch, 3, n]; @f32[3]; @u8[3]", {"axis": 1, "bits": 4}, low=0.05, has="QuantizeLinear Clip"),
    Case("dequantise", "u8[batch, n]; @f32[]; @u8[]", low=0.05, has="DequantizeLinear"),
    Case("dequantise", "i8[batch, 3]; @f32[3]", {"axis": 1, "signed": True}, low=0.05, opset=17),
    Case("dequantise", "@i8[4, 6]; @f32[4, 3]", {"axis": 1, "block": 2, "bits": 4, "signed": True}, low=0.05),
    Case("random_order", "f32[batch, n, 3]"),
    Case("segment_sum", "f32[n, 4]; i64[n]", {}, ("[5, 4]",), low=0, high=5),
    Case("segment_sum", "f32[batch, n, 4]; i32[batch, n]", {}, ("[batch, 7, 4]",), low=0, high=7, opset=17),
    Case("segment_sum", "f32[batch, n]; i64[batch, n]", {}, ("[batch, n]",), low=0, high=1),
    Case("segment_max", "f32[n, 4]; i64[n]", {}, ("[5, 4]",), low=0, high=5),
    Case("segment_max", "f32[n]; i32[n]", {"empty": -2.0}, ("[n + 3]",), low=0, high=4, opset=18),
    Case("segment_max", "i64[n, 2]; i64[n]", {"empty": 7.0}, ("[5, 2]",), low=0, high=5),
    Case("segment_softmax", "f32[n, 4]; i64[n]", {"segments": 5}, low=0, high=5),
    Case("segment_softmax", "f64[n]; i32[n]", {"segments": symbol("n")}, low=0, high=2, opset=18),
    Case("typed_linear", "f32[n, 4]; @f32[3, 4, 5]; i64[n]", low=0, high=3),
    Case("typed_linear", "f32[n, 2, 4]; f32[3, 2, 4, 5]; i32[n]", low=0, high=3, opset=17),
    Case("typed_outer", "f32[n, 4]; f32[n, 5]; i64[n]", {}, ("[4, 4, 5]",), low=0, high=3),
    Case("typed_outer", "f64[n, 2, 4]; f64[n, 2, 5]; i32[n]", {}, ("[3, 2, 4, 5]",), low=0, high=3, opset=17),
    Case("csr_sum", "f32[6, 4]; @i64[5]=0,2,2,6,6"),
    Case("csr_max", "f32[6, 4]; @i32[5]=0,2,2,6,6", {"empty": -1.0}),
    Case("csr_max", "f32[6]; @i64[2]=0,6"),
    Case("csr_spread", "f32[4, 3]; @i64[5]=0,2,2,6,6", {}, ("[6, 3]",)),
    Case("grouped_linear", "f32[7, 4]; @f32[3, 4, 5]; @i64[4]=0,2,4,7; @i64[3]=0,0,2"),
    Case("grouped_linear", "f32[7, 2, 4]; f32[3, 2, 4, 5]; @i64[3]=0,4,7; @i64[2]=1,2", opset=17),
    Case("grouped_outer", "f32[7, 4]; f32[7, 5]; @i64[5]=0,3,3,5,7"),
    Case("grouped_outer", "f32[7, 2, 4]; f32[7, 2, 5]; @i32[3]=0,4,7"),
    Case("sort_order", "i64[n]", low=0, high=3),
    Case("sort_order", "i32[n]; i64[n]", low=0, high=3),
    Case("inverse_order", "@i64[5]=3,0,4,1,2"),
    Case("inverse_order", "@i32[3]=2,0,1"),
    Case("run_pointers", "i64[n]", {}, ("[6]",), low=0, high=5),
    Case("run_pointers", "i32[n]", {}, ("[n + 1]",), low=0, high=4, opset=17),
    Case("unique_rows", "i64[n]", {}, ("[u]", "[n]"), low=0, high=3),
    Case("unique_rows", "i64[n]; i32[n]", {}, ("[u]", "[n]"), low=0, high=3),
    Case("tile_runs", "@i64[5]=0,5,5,6,13", {"rows": 3}, ("[k + 1]", "[k]")),
    Case("tile_runs", "@i32[3]=0,0,7", {"rows": 4}, ("[k + 1]", "[k]")),
    Case("fewer_ends", "i64[n]; i64[n]; i32[n]", {}, ("[3]",), low=0, high=2),
    Case("meeting_rows", "bool[n]; @i64[3]=0,1,3", {"together": True}, ("[k]",)),
    Case("meeting_rows", "bool[n]; @i32[3]=0,1,3", {"together": False}, ("[k]",)),
    Case("max_pool_index", IMAGE, {**_POOL, "dilation": (1, 1)}),
    Case("max_pool_index", IMAGE, {**_POOL, "dilation": (2, 3)}),
    Case("max_pool_index", "f32[batch, 4, n]", {"kernel": (2,), "stride": (2,), "padding": (0,), "dilation": (1,)}),
    Case("max_pool_index", "f32[4, 12, n]", {**_POOL, "dilation": (1, 1)}),
    Case("adaptive_max_pool_index", "f32[batch, 4, 12, 6]", {"rank": 2}, ("[batch, 4, 3, 2]",)),
    Case("adaptive_max_pool_index", "f32[batch, 4, 12]", {"rank": 1}, ("[batch, 4, 3]",), opset=17),
    Case("expert_linear", "f32[batch, n, 3]; @f32[3, 4, 3]; @f32[3, 4]; i64[batch, n]", low=0.0, has="MatMul Add"),
    Case("expert_linear", "f32[batch, n, 3]; f32[2, 4, 3]; _; i64[batch, n]", low=0.0, high=2.0, opset=17),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_operator_runs_in_onnx_runtime_as_in_the_evaluator(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "case.onnx"
    check(case.graph(), path, opset=case.opset, low=case.low, high=case.high)
    if case.has:
        assert " ".join(node.op_type for node in onnx.load(path).graph.node) == case.has


def test_every_operator_has_a_rule_and_a_case() -> None:
    import suture.backends.onnx.rules  # noqa: F401

    assert set(OPERATORS) == set(RULES)
    without = {"log2_quantise", "log2_dequantise"}  # ONNX has no quantiser of logarithms: their rule says so
    assert {case.operator for case in CASES} == set(OPERATORS) - without
