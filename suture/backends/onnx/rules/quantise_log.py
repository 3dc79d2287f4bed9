"""Quantisers of logarithms: ONNX has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering

if TYPE_CHECKING:
    import onnx_ir


@rule("log2_quantise", "log2_dequantise")
def _refuse(at: Lowering) -> onnx_ir.Value:
    at.fail("ONNX has uniform quantisers only", "take the pass repq with softmax uniform for what is exported")
