"""One call of a variant: what goes where, and torch's autograd around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from suture.drivers.relational.masks import draw_all
from suture.drivers.relational.variants import Variant
from suture.ir.errors import Code, SutureError


@dataclass(eq=False)
class Prepared:
    """A variant at the edges and sizes of a call.

    :param variant: the kernels
    :param symbols: the sizes
    :param fixed: the operands of the way forward, those from the inspector in their places
    :param places: for each given tensor (inputs, parameters, masks, in this order) its place among the operands; -1 for one that is not read
    :param back: for each operand of the way back the inspector's tensor, or None
    :param gradients: which given tensor each result of the way back is the gradient of
    """

    variant: Variant
    symbols: Mapping[str, int]
    fixed: list[torch.Tensor | None]
    places: tuple[int, ...]
    back: tuple[torch.Tensor | None, ...]
    gradients: tuple[int, ...]

    def call(self, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The program's results.

        :param given: inputs in order, then parameters
        """
        variant = self.variant
        if variant.masks:
            given = [*given, *draw_all(variant.masks, self.symbols, given[0].device)]
        if variant.backward is None:
            return self.forward(given)[: variant.count]
        results = _Differentiable.apply(self, *given)  # type: ignore[no-untyped-call]
        return list(results)

    def forward(self, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results of the way forward, what is kept among them."""
        operands = list(self.fixed)
        for place, tensor in zip(self.places, given, strict=True):
            if place >= 0:
                operands[place] = tensor
        return self.variant.forward.run_trusted(operands)  # type: ignore[arg-type]


class _Differentiable(torch.autograd.Function):
    """A variant between torch's own operators."""

    @staticmethod
    def forward(ctx: Any, prepared: Prepared, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        variant = prepared.variant
        plain = [each.detach() for each in given]
        results = prepared.forward(plain)
        own = results[: variant.count]
        kept = []
        for (kind, k), known in zip(variant.ways.reads, prepared.back, strict=True):
            if known is None and kind != "cotangent":
                kept.append(results[k] if kind == "output" else given[prepared.places.index(k)])
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(each for each in own if not each.dtype.is_floating_point))
        ctx.prepared = prepared
        ctx.like = [(each.shape, each.dtype, each.device) for each in own]
        return tuple(own)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SutureError(
                Code.GRADIENT, "a compiled program has no second derivative", remedy="leave create_graph out"
            )
        prepared: Prepared = ctx.prepared
        variant = prepared.variant
        kept = iter(ctx.saved_tensors)
        operands = []
        for (kind, k), known in zip(variant.ways.reads, prepared.back, strict=True):
            if known is not None:
                operands.append(known)
            elif kind != "cotangent":
                operands.append(next(kept))
            else:
                shape, dtype, device = ctx.like[k]
                found = cotangents[k]
                operands.append(torch.zeros(shape, dtype=dtype, device=device) if found is None else found)
        assert variant.backward is not None
        moved = variant.backward.run_trusted(operands)
        gradients: list[torch.Tensor | None] = [None] * (1 + len(prepared.places))
        for given, each in zip(prepared.gradients, moved, strict=True):
            gradients[1 + given] = each
        return tuple(gradients)


def prepare(
    variant: Variant,
    symbols: Mapping[str, int],
    inspected: Mapping[str, torch.Tensor],
    inputs: Sequence[str],
    parameters: Sequence[str],
) -> Prepared:
    """A variant at the edges and sizes of a call.

    :param inspected: the inspector's results, by name
    :param inputs: the names of the inputs that calls give
    :param parameters: the names of the parameters that they give behind those
    """
    given = [("input", name) for name in inputs] + [("parameter", name) for name in parameters]
    given += [("input", mask.name) for mask in variant.masks]
    position = {entry: k for k, entry in enumerate(variant.entries)}
    fixed = [inspected[name] if kind == "inspector" else None for kind, name in variant.entries]
    by_name = {name: k for k, (_, name) in reversed(list(enumerate(given)))}
    return Prepared(
        variant, symbols, fixed, tuple(position.get(entry, -1) for entry in given),
        tuple(fixed[k] if kind == "input" else None for kind, k in variant.ways.reads),
        tuple(by_name[name] for name in variant.moved),
    )  # fmt: skip
