"""What a weight is multiplied with: the rows of the data, and their second moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from suture.ir.graph import Use, Value

_OPERAND = {("linear", 1): 0, ("addmm", 2): 1, ("matmul", 1): 0, ("conv", 1): 0}
"""Operator and place of the weight -> the operand that meets it."""


def met_by(use: Use) -> Value | None:
    """The operand whose features a weight [rows, columns] is multiplied with; None where the columns are not its features."""
    node, index = use
    place = _OPERAND.get((node.operator.name, index))
    weight = node.inputs[index]
    if place is None or weight is None:
        return None
    if node.operator.name in ("linear", "addmm", "matmul"):
        return node.inputs[place] if weight.rank == 2 else None
    plain = node.attributes["groups"] == 1 and weight.rank in (3, 4)
    return node.inputs[place] if plain else None


def data_rows(use: Use, tensor: torch.Tensor) -> torch.Tensor:
    """The data that meet a weight, as [n, columns] in float64."""
    node, index = use
    wide = tensor.double()
    if node.operator.name != "conv":
        return wide.reshape(-1, wide.shape[-1])
    weight = node.inputs[index]
    assert weight is not None
    kernel = [size for size in weight.shape[2:] if isinstance(size, int)]
    dilation, padding, stride = (
        _numbers(node.attributes[name], len(kernel)) for name in ("dilation", "padding", "stride")
    )
    if len(kernel) == 1:
        wide, kernel = wide[:, :, None], [1, *kernel]
        dilation, padding, stride = (1, *dilation), (0, *padding), (1, *stride)
    windows = F.unfold(wide, tuple(kernel), dilation=dilation, padding=padding, stride=stride)
    return windows.transpose(1, 2).reshape(-1, windows.shape[1])


def moments(use: Use, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """2 X X^T over all batches [columns, columns]: the Hessian of |(W - Q) X|^2 in each row of Q."""
    total: torch.Tensor | None = None
    for tensor in tensors:
        rows = data_rows(use, tensor)
        product = 2 * rows.T @ rows
        total = product if total is None else total + product
    assert total is not None
    return total


def _numbers(value: object, count: int) -> tuple[int, ...]:
    items = value if isinstance(value, tuple) else (value,)
    numbers = tuple(item for item in items if isinstance(item, int))
    return numbers * count if len(numbers) == 1 else numbers
