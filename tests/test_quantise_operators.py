"""Quantisers against ONNX's definition in NumPy, against ONNX Runtime, and their gradients against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import suture
from suture.backends.onnxruntime import OnnxModel
from suture.ir import operators  # noqa: F401  (declares them)
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.operators.quantise import dequantise, quantise
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph
from suture.ir.types import TensorType

F32 = torch.float32


def by_definition(x: Any, scale: Any, zero: Any, bits: int, signed: bool) -> Any:
    """QuantizeLinear: saturate(round(x / scale) + zero), halves to even."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return np.clip(np.rint(x / np.float32(scale)) + zero, low, high)


@given(
    bits=st.integers(2, 8), signed=st.booleans(), seed=st.integers(0, 1000), axis=st.sampled_from([None, 0, 1, -1]),
    spread=st.sampled_from([0.01, 1.0, 100.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_integers_are_those_of_the_definition(
    bits: int, signed: bool, seed: int, axis: int | None, spread: float
) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(3, 5)).astype(np.float32) * np.float32(spread)
    size = () if axis is None else (x.shape[axis],)
    scale = random.uniform(0.005, 0.2, size).astype(np.float32)
    zero = random.integers(-2 if signed else 0, 3, size)
    column = (slice(None), None) if axis == 0 else ()
    kind = torch.int8 if signed else torch.uint8
    found = quantise(
        torch.from_numpy(x), torch.tensor(scale), torch.tensor(zero, dtype=kind), axis=axis, bits=bits, signed=signed
    )
    np.testing.assert_array_equal(found.numpy(), by_definition(x, scale[column], zero[column], bits, signed))
    back = dequantise(found, torch.tensor(scale), torch.tensor(zero, dtype=kind), axis=axis, bits=bits, signed=signed)
    np.testing.assert_array_equal(
        back.numpy(), (found.numpy().astype(np.float32) - zero[column].astype(np.float32)) * scale[column]
    )


def test_halves_are_rounded_to_even_and_what_lies_beyond_saturates() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 1e30, -1e30, float("inf"), float("nan")])
    found = quantise(x, torch.tensor(1.0), torch.tensor(10, dtype=torch.uint8))
    assert found.tolist() == [10, 12, 12, 10, 255, 0, 255, 10]


def test_blocks_share_a_scale() -> None:
    x = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
    scale = torch.tensor([[1.0, 10.0]])
    assert quantise(x, scale, axis=1, block=2, signed=True).tolist() == [[1, 2, 3, 4]]
    assert dequantise(quantise(x, scale, axis=1, block=2), scale, axis=1, block=2).tolist() == x.tolist()


def test_biases_have_32_bits() -> None:
    x = torch.tensor([1.0, -1e9, 3e9])
    assert quantise(x, torch.tensor(1.0), bits=32, signed=True).tolist() == [1, -1000000000, 2147483647]


def quantiser(
    axis: int | None = None,
    block: int | None = None,
    *,
    bits: int = 8,
    signed: bool = False,
    zero: bool = True,
    weight: bool = False,
    dtype: torch.dtype = F32,
) -> Graph:
    """x, or a weight, through a quantiser and back."""
    graph, shape = Graph("quantiser"), (4, 6)
    generator = torch.Generator().manual_seed(3)
    x = graph.add_input("x", TensorType(dtype, shape))
    size: tuple[int, ...] = () if axis is None else (shape[axis],)
    if block is not None:
        size = tuple(n // block if k == axis else n for k, n in enumerate(shape))
    kind = torch.int8 if signed else torch.uint8
    scale = graph.add_parameter("scale", (torch.rand(size, generator=generator) * 0.05 + 0.02).to(dtype), "buffer")
    points = torch.randint(-2 if signed else 0, 6, size, generator=generator).to(kind)
    given = [scale, graph.add_parameter("zero", points, "buffer")] if zero else [scale]
    attributes: dict[str, Any] = {"axis": axis, "block": block, "bits": bits, "signed": signed}
    source = graph.add_parameter("w", torch.randn(shape, generator=generator, dtype=dtype)) if weight else x
    integers = graph.add("quantise", [source, *given], attributes)
    back = graph.add("dequantise", [integers.output, *given], attributes).output
    graph.set_outputs([graph.add("add", [back, x]).output if weight else back])
    return graph


GRAPHS = {
    "tensor": quantiser(),
    "signed": quantiser(signed=True),
    "no zero point": quantiser(signed=True, zero=False),
    "channels": quantiser(1, signed=True),
    "first axis": quantiser(0),
    "blocks": quantiser(1, 2, signed=True),
    "four bits": quantiser(0, bits=4),
    "six bits": quantiser(bits=6, signed=True),
    "weight": quantiser(0, signed=True, weight=True),
    "weight without zero point": quantiser(0, signed=True, weight=True, zero=False),
    "weight of four bits": quantiser(0, bits=4, signed=True, weight=True),
    "weight of four unsigned bits": quantiser(bits=4, weight=True),
    "weight of four bits in blocks": quantiser(1, 3, bits=4, signed=True, weight=True),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_runtime_gives_the_same_integers(name: str, tmp_path: Path) -> None:
    graph = GRAPHS[name]
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) * 3
    suture.export_onnx(graph, tmp_path / "q.onnx")
    (received,) = OnnxModel(tmp_path / "q.onnx").run([x])
    torch.testing.assert_close(received, evaluate(graph, [x])[0], rtol=0, atol=1e-6)


def test_weights_are_stored_as_integers(tmp_path: Path) -> None:
    sizes = {}
    for name, kind in (("weight", onnx.TensorProto.INT8), ("weight of four bits", onnx.TensorProto.INT4)):
        path = suture.export_onnx(GRAPHS[name], tmp_path / "w.onnx")
        stored = [item for item in onnx.load(str(path)).graph.initializer if list(item.dims) == [4, 6]]
        assert [item.data_type for item in stored] == [kind]
        sizes[name] = len(stored[0].raw_data)
    assert sizes == {"weight": 24, "weight of four bits": 12}


@pytest.mark.parametrize(("name", "opset"), [("blocks", 21), ("weight of four bits", 21)])
def test_an_opset_too_old_is_refused_with_the_lowest(name: str, opset: int, tmp_path: Path) -> None:
    with pytest.raises(SutureError, match=f"opset {opset} is the lowest") as caught:
        suture.export_onnx(GRAPHS[name], tmp_path / "w.onnx", opset=opset - 1)
    assert caught.value.code is Code.ONNX_EXPORT
    assert not (tmp_path / "w.onnx").exists()


def test_half_precision_needs_opset_19(tmp_path: Path) -> None:
    graph = quantiser(dtype=torch.float16)
    with pytest.raises(SutureError, match="opset 19 is the lowest"):
        suture.export_onnx(graph, tmp_path / "h.onnx", opset=18)
    x = torch.randn(4, 6).half()
    suture.export_onnx(graph, tmp_path / "h.onnx")
    torch.testing.assert_close(OnnxModel(tmp_path / "h.onnx").run([x])[0], evaluate(graph, [x])[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", GRAPHS)
def test_text_and_modules_say_the_same(name: str) -> None:
    graph = GRAPHS[name]
    assert str(parse_graph(str(graph))) == str(graph)
    x = torch.randn(4, 6)
    assert torch.equal(suture.to_torch(graph)(x), evaluate(graph, [x])[0])


def test_gradients_pass_where_nothing_saturates_and_reach_the_scale() -> None:
    graph = quantiser(signed=True, zero=False)
    graph.parameters["scale"].role, graph.parameters["scale"].requires_grad = "parameter", True
    module = suture.to_torch(graph)
    scale = next(parameter for name, parameter in module.named_parameters() if name == "scale")
    x = torch.linspace(-9, 9, 24).reshape(4, 6).requires_grad_()
    module(x).sum().backward()
    ratio = (x / scale).detach()
    inside = (ratio.round() >= -128) & (ratio.round() <= 127)
    assert x.grad is not None
    assert torch.equal(x.grad, inside.to(F32))
    # Esser et al. 2020, equation 3: round(x / s) - x / s inside, the bound outside
    expected = torch.where(inside, ratio.round() - ratio, ratio.clamp(-128, 127))
    torch.testing.assert_close(scale.grad, expected.sum(), rtol=1e-4, atol=1e-3)


BROKEN: dict[str, tuple[str, list[tuple[torch.dtype, tuple[int, ...]]], dict[str, Any], Code, str]] = {
    "bits": ("quantise", [(F32, (2, 3)), (F32, ())], {"bits": 9}, Code.QUANTISER, "2 to 8"),
    "unsigned biases": ("quantise", [(F32, (2, 3)), (F32, ())], {"bits": 32}, Code.QUANTISER, "32 signed"),
    "integers": ("quantise", [(torch.int64, (2, 3)), (F32, ())], {}, Code.DTYPE, "floats would be right"),
    "zero point": ("quantise", [(F32, (2, 3)), (F32, ()), (torch.int8, ())], {}, Code.DTYPE, "uint8 would be right"),
    "floats": ("dequantise", [(F32, (2, 3)), (F32, ())], {}, Code.DTYPE, "uint8 would be right"),
    "no axis": ("quantise", [(F32, (2, 3)), (F32, (3,))], {}, Code.SHAPE, "give axis="),
    "axis": ("quantise", [(F32, (2, 3)), (F32, (3,))], {"axis": 2}, Code.SHAPE, "-2 to 1"),
    "size": ("quantise", [(F32, (2, 3)), (F32, (2,))], {"axis": 1}, Code.SHAPE, "size of 3"),
    "block": ("quantise", [(F32, (2, 6)), (F32, (2, 2))], {"axis": 1, "block": 2}, Code.SHAPE, "k*b"),
    "block of a vector": ("quantise", [(F32, (2, 6)), (F32, (6,))], {"axis": 1, "block": 2}, Code.SHAPE, "rank 2"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_quantiser_is_refused(name: str) -> None:
    operator, types, attributes, code, remedy = BROKEN[name]
    graph = Graph("broken")
    values = [graph.add_input(f"x{k}", TensorType(dtype, shape)) for k, (dtype, shape) in enumerate(types)]
    with pytest.raises(SutureError) as caught:
        graph.add(operator, values, attributes)
    assert caught.value.code is code and remedy in str(caught.value)
