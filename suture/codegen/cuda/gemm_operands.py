"""Operands of products on a GPU: weights made ready as matrices, and which dimension of a computed one lies side by side."""

from __future__ import annotations

import torch

from suture.codegen.gemm.operands import constant_of
from suture.codegen.gemm.roles import Roles
from suture.codegen.indices import stride_of
from suture.codegen.step import Context
from suture.ir.graph import Value
from suture.ir.kernel import Literal, Load
from suture.ir.semantics import run_node
from suture.ir.sizes import product
from suture.ir.types import TensorType

_WHOLE = 8  # columns are filled up to a multiple, so that rows are whole vectors of 16 bytes


def matrix_parameter(context: Context, roles: Roles, value: Value) -> Value | None:
    """A parameter as the right matrix `[inner, columns]`, filled with zeros to whole vectors; None if it is computed, or several matrices."""
    found = constant_of(value)
    terms = [term for term in roles.terms(roles.right) if isinstance(term, str)]
    if found is None or any(letter in roles.batch for letter in terms):
        return None
    parameter, views = found
    order = [terms.index(letter) for letter in (*roles.inner, *roles.columns)]
    inner, columns = product([roles.instance.sizes[x] for x in roles.inner]), roles.size(roles.columns)
    if not isinstance(inner, int) or not isinstance(columns, int):
        return None
    sizes = [roles.instance.sizes[letter] for letter in terms]
    wide = -(-columns // _WHOLE) * _WHOLE

    def recipe(tensor: torch.Tensor) -> torch.Tensor:
        for node in views:
            (tensor,) = run_node(node, [tensor], {})
        matrix = tensor.reshape([int(str(size)) for size in sizes]).permute(order).reshape(inner, columns)
        return torch.nn.functional.pad(matrix, (0, wide - columns))

    what = f"matrix: {', '.join(node.output.name for node in views)} {order} {inner} {columns}"
    return context.prepared(parameter, what, recipe, TensorType(value.dtype, (inner, wide)))


def runs_along(place: Load, name: str) -> bool:
    """Whether neighbouring values of a variable are neighbours in memory."""
    if not place.index:
        return False
    steps = [stride_of(at, name) for at in place.index]
    return steps[-1] == Literal(1) and all(step == Literal(0) for step in steps[:-1])
