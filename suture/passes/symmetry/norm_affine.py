"""The affine part of a norm and the layers that read it: a scale and a shift can move between the two.

A norm writes `y = gain x + bias`. Where everything that reads `y` is linear, through whatever only moves elements about, `y' = (y + shift) / scale`
may be written instead: the readers' weights take the scale (`W' = W diag(scale)`) and their biases the shift (`b' = b - W shift`). RepQ-ViT's
re-parameterised quantisers are the case `scale = r1`, `shift = s r2` (Li et al. 2023, section 3.2, equations 7 to 11).
"""

from __future__ import annotations

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter
from suture.passes.symmetry.linear_readers import Reader, Readers, linear_readers, move_into_readers
from suture.passes.symmetry.parameters import beside, like, set_operand
from suture.passes.symmetry.reach import Blame
from suture.passes.symmetry.ties import Ties

GAIN, BIAS = 1, 2
"""Operands of a norm."""


def shift_and_scale(graph: Graph, norm: Node, scale: torch.Tensor, shift: torch.Tensor | None = None) -> list[str]:
    """Let a norm write `(y + shift) / scale` instead of `y`, and its readers take that back; the function stays. In place.

    The norm gets `gain / scale` and `(bias + shift) / scale`; each reader `W diag(scale)` and `b - W shift`. Missing gains and biases are made,
    tied tensors untied where they must be.

    :param scale: what the norm's result is divided by, one number a channel, none of them zero
    :param shift: what is added to it before, one number a channel
    :returns: what was untied, in words
    :raises SutureError: SYMMETRY, if a reader is not linear (it is named) or the numbers do not fit
    """
    divisor = scale.detach().to(torch.float64).reshape(-1)
    added = None if shift is None else shift.detach().to(torch.float64).reshape(-1)
    shifted = added is not None and (added.is_meta or bool((added != 0).any()))
    refusal = refuse_norm(norm) or _refuse_numbers(norm, divisor, added, shifted)
    if refusal:
        raise SutureError(
            Code.SYMMETRY,
            refusal,
            where=norm.where(),
            remedy="give finite numbers, one a channel, to a layer or RMS norm",
        )
    ties = Ties(graph)
    found = linear_readers(graph, norm, shifted=shifted)
    if isinstance(found, Blame):
        ties.join()
        raise SutureError(Code.SYMMETRY, f"a scale cannot move out of {norm.where()}: {found.reason}", where=found.where,
                          remedy="all that reads the norm must be linear")  # fmt: skip
    move_into_readers(graph, found, divisor, added if shifted else None, "scaled")
    _assign(graph, norm, GAIN, numbers_of(norm, GAIN, 1.0) / divisor)
    if shifted or operand_of(norm, BIAS) is not None:
        bias = numbers_of(norm, BIAS, 0.0)
        _assign(graph, norm, BIAS, (bias if added is None else bias + added) / divisor)
    return ties.join()


def refuse_norm(norm: Node) -> str:
    """Why a node has no affine part that could move, if it has none."""
    if norm.operator.name not in ("layer_norm", "rms_norm"):
        return f"{norm.operator.name} is no layer or RMS norm"
    if norm.attributes["rank"] != 1:
        return f"it normalises {norm.attributes['rank']} dimensions together"
    computed = [value for value in norm.inputs[1:] if value is not None and not isinstance(value, Parameter)]
    return f"its {computed[0]} is computed" if computed else ""


def operand_of(norm: Node, index: int) -> Parameter | None:
    """The gain or the bias of a norm, if it has one."""
    held = norm.inputs[index] if index < len(norm.inputs) else None
    return held if isinstance(held, Parameter) else None


def numbers_of(norm: Node, index: int, absent: float) -> torch.Tensor:
    """The numbers of the gain or bias of a norm, in float64."""
    held = operand_of(norm, index)
    if held is not None:
        return held.data.detach().to(torch.float64)
    width = norm.output.shape[-1]
    assert isinstance(width, int)
    return torch.full((width,), absent, dtype=torch.float64)


def _refuse_numbers(norm: Node, scale: torch.Tensor, shift: torch.Tensor | None, shifted: bool) -> str:
    for name, numbers in (("scale", scale), ("shift", shift)):
        if numbers is None:
            continue
        if len(numbers) != norm.output.shape[-1]:
            return f"a {name} of {len(numbers)} numbers for {norm.output.shape[-1]} channels"
        if not numbers.is_meta and not bool(numbers.isfinite().all()):
            return f"the {name} is not finite"
    if not scale.is_meta and bool((scale == 0).any()):
        return "a scale of 0 cannot be taken back"
    return "an RMS norm has no bias that could take a shift" if shifted and norm.operator.name == "rms_norm" else ""


def _assign(graph: Graph, norm: Node, index: int, numbers: torch.Tensor) -> None:
    held = operand_of(norm, index)
    if held is not None:
        held.assign(like(numbers.to(held.data.device), held))
        return
    name = beside(graph, operand_of(norm, GAIN), norm, "weight" if index == GAIN else "bias")
    set_operand(norm, index, graph.add_parameter(name, numbers.to(norm.output.dtype).contiguous()))


__all__ = ["Reader", "Readers", "linear_readers", "move_into_readers", "shift_and_scale"]
