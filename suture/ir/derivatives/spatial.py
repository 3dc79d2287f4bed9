"""Derivatives of pooling and resampling.

A maximum is a lookup at its position, so its derivative is a segment sum. All that takes weighted means (average pooling, interpolation) is linear
and acts on each dimension of space by itself, by a fixed matrix: the operator itself, run on the unit vectors, says which. The derivative multiplies
by the transposed matrices; where a matrix only repeats positions or adds up neighbours, it is a view or a sum instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.letters import contract
from suture.ir.derivatives.rule import CONSTANT, Gradients, Site, rule
from suture.ir.notation import Instance
from suture.ir.sizes import Dim, exact_quotient, product


@rule("max_pool", "adaptive_max_pool")
def _max_pool(at: Site) -> Gradients:
    x, g, name = at.operand(), at.g, at.node.operator.name
    rank = len(at["kernel"]) if name == "max_pool" else at["rank"]
    shapes = None if name == "max_pool" else [g.shape]
    index = x.op(f"{name}_index", shapes=shapes, **at.node.attributes)
    lead, space = x.shape[: x.rank - rank], product(x.shape[x.rank - rank :])
    seen = product(g.shape[x.rank - rank :])
    made = g.reshape([*lead, seen]).op("segment_sum", index.reshape([*lead, seen]), shapes=[[*lead, space]])
    yield 0, made.reshape(x.shape)


CONSTANT |= dict.fromkeys(("max_pool_index", "adaptive_max_pool_index"), "its result is an index")


@dataclass(frozen=True)
class _Step:
    """The adjoint along one dimension: `copies` of each position, or the sum of `parts` neighbours, or a matrix [old, new]; divided by a number."""

    copies: Dim = 1
    parts: Dim = 1
    matrix: torch.Tensor | None = None
    divisor: float | Dim = 1


@rule("avg_pool", "adaptive_avg_pool", "interpolate")
def _resampled(at: Site) -> Gradients:
    x, g = at.operand(), at.g
    rank = len(at["kernel"]) if at.node.operator.name == "avg_pool" else at["rank"]
    for k in range(rank):
        dim = x.rank - rank + k
        g = _applied(_step(at, k, x.shape[dim], g.shape[dim]), g, dim, x.shape[dim])
    if at.node.operator.name == "avg_pool" and at["divisor"] is not None and rank > 1:
        g = g / at["divisor"]
    yield 0, g


def _applied(step: _Step, g: Formula, dim: int, size: Dim) -> Formula:
    front, length, back = g.shape[:dim], g.shape[dim], g.shape[dim + 1 :]
    if step.matrix is not None:
        letters = [f"d{k}" for k in range(g.rank)]
        sizes = {**dict(zip(letters, g.shape, strict=True)), "old": size}
        matrix = g.writer.constant("resampling", step.matrix.to(g.dtype))
        target = [*letters[:dim], "old", *letters[dim + 1 :]]
        return contract([(g, letters), (matrix, ["old", letters[dim]])], target, Instance((), (), sizes, {}))
    if step.parts != 1:
        g = g.reshape([*front, size, step.parts, *back]).sum(dim + 1, keepdim=False)
    if step.copies != 1:
        g = (
            g.reshape([*front, length, 1, *back])
            .expand([*front, length, step.copies, *back])
            .reshape([*front, size, *back])
        )
    return g / step.divisor


def _step(at: Site, k: int, old: Dim, new: Dim) -> _Step:
    """What the adjoint does along the k-th dimension of space.

    :raises SutureError: GRADIENT, where sizes are symbolic and windows overlap
    """
    if isinstance(old, int) and isinstance(new, int):
        return _recognised(_matrix(at, k, old, new))
    name = at.node.operator.name
    if name == "adaptive_avg_pool" and new == 1:
        return _Step(copies=old, divisor=old)
    if (
        name == "avg_pool"
        and not at["padding"][k]
        and at["kernel"][k] == at["stride"][k]
        and new * at["kernel"][k] == old
    ):
        summed = at["divisor"] is not None and len(at["kernel"]) > 1
        return _Step(copies=at["kernel"][k], divisor=1 if summed else at["kernel"][k])
    ratio = exact_quotient(new, old)
    if name == "interpolate" and at["mode"] in ("nearest", "nearest-exact") and isinstance(ratio, int):
        return _Step(parts=ratio)
    raise at.refuse(
        f"its weights depend on the symbolic sizes {old} and {new}", "specialise the graph to one size of image"
    )


def _matrix(at: Site, k: int, old: int, new: int) -> torch.Tensor:
    """[old, new]: what the operator makes of each unit vector along the k-th dimension of space alone."""
    attributes = dict(at.node.attributes)
    rank = len(attributes["kernel"]) if at.node.operator.name == "avg_pool" else attributes["rank"]  # type: ignore[arg-type]
    alone: dict[str, int | float] = {"kernel": 1, "stride": 1, "padding": 0, "scales": 1.0}
    for name, neutral in alone.items():
        values = attributes.get(name)
        if isinstance(values, tuple):
            attributes[name] = tuple(value if i == k else neutral for i, value in enumerate(values))
    if attributes.get("divisor") is not None:
        attributes["divisor"] = 1
    apart = [old if i == k else 1 for i in range(rank)]  # type: ignore[arg-type]
    # The other dimensions are two positions that stay two: of a single one, torch's antialiasing takes the wrong weights.
    space = [old if i == k else 2 for i in range(rank)]  # type: ignore[arg-type]
    units = torch.eye(old, dtype=torch.float64).reshape([1, old, *apart]).expand([1, old, *space]).contiguous()
    keywords: dict[str, object] = dict(attributes)
    if at.node.operator.declared:
        keywords["shape"] = [1, old, *(new if i == k else 2 for i in range(rank))]  # type: ignore[arg-type]
    made: torch.Tensor = at.node.operator.run(units, **keywords)
    made = made.movedim(2 + k, 2)[0].reshape(old, new, -1)
    return made[:, :, 0]


def _recognised(matrix: torch.Tensor) -> _Step:
    """The matrix as copies of positions or sums of neighbours, where it is that."""
    old, new = matrix.shape
    if not old or not new:
        return _Step(matrix=matrix)
    weight = float(matrix.max())
    for step, many, few in ((_Step(copies=old // new), old, new), (_Step(parts=new // old), new, old)):
        if many % few or not weight:
            continue
        blocks = torch.eye(few, dtype=matrix.dtype).repeat_interleave(many // few, 0) * weight
        if torch.equal(blocks if many == old else blocks.T, matrix):
            divisor = round(1 / weight)
            return _Step(step.copies, step.parts, None, divisor if abs(1 / divisor - weight) < 1e-15 else 1 / weight)
    return _Step(matrix=matrix)
