"""Branches: ONNX's If, whose bodies read the values around them by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering

if TYPE_CHECKING:
    import onnx_ir


@rule("branch")
def _branch(at: Lowering) -> Sequence[onnx_ir.Value]:
    then, otherwise = (at.emitter.body(at.node.bodies[name]) for name in ("then", "otherwise"))
    return at.emitter.add(
        "If", [at.x(0)], {"then_branch": then, "else_branch": otherwise}, results=len(at.node.outputs)
    )
