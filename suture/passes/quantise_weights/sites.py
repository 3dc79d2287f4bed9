"""Where weights can become integers: parameters that contractions and lookups read, found by their letters."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter, Use
from suture.ir.notation import Role, letters_of
from suture.ir.operator import FunctionClass


@dataclass(frozen=True)
class WeightSite:
    """A parameter and its readers that contract it or look it up.

    :param axis: the dimension whose indices get a scale each: output channels, or the rows of a table
    """

    parameter: Parameter
    readers: tuple[Use, ...]
    axis: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.parameter.name

    def matrix(self, data: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's shape as [rows, columns]."""
        return data.movedim(self.axis, 0).reshape(data.shape[self.axis], -1)

    def unfolded(self, matrix: torch.Tensor) -> torch.Tensor:
        """[rows, columns] in the parameter's shape."""
        shape = list(self.parameter.data.shape)
        first = shape.pop(self.axis)
        return matrix.reshape(first, *shape).movedim(0, self.axis).contiguous()

    @property
    def columns(self) -> int:
        """How many numbers share a row."""
        return math.prod(self.parameter.data.shape) // max(self.parameter.data.shape[self.axis], 1)


def is_contraction(node: Node) -> bool:
    """Whether a node sums products of two operands."""
    return (
        node.operator.function is FunctionClass.LINEAR
        and not node.operator.pointwise
        and sum(value is not None for value in node.inputs) > 1
        and node.operator.macs(node) != 0
    )


def weight_sites(graph: Graph, *, embeddings: bool, note: Callable[[str], None]) -> list[WeightSite]:
    """The weights of a graph, in the order of its parameters; the notes say why others of rank 2 and more are none."""
    found = []
    for parameter in graph.parameters.values():
        if parameter.rank < 2 or not parameter.uses or not parameter.dtype.is_floating_point:
            continue
        axes = [(use, axis) for use in parameter.uses if (axis := channel_axis(use)) is not None]
        if not axes:
            continue
        # a table that is also a contraction's weight (a tied head) has the scales of the contraction
        axes.sort(key=lambda item: not is_contraction(item[0].node))
        lookups = [use.node for use, _ in axes if not is_contraction(use.node)]
        if parameter.is_graph_output():
            note(f"{parameter.name} stays: the graph returns it")
        elif lookups and not embeddings:
            note(f"{parameter.name} stays: {called(lookups[0])} looks it up, and embeddings=False")
        else:
            found.append(WeightSite(parameter, tuple(use for use, _ in axes), axes[0][1]))
    return found


def channel_axis(use: Use) -> int | None:
    """The dimension of a weight that a scale goes along: not summed over, the largest of those; None if the operand is no weight."""
    node, index = use
    lookup = node.operator.name == "embedding" and index == 0
    if not lookup and not is_contraction(node):
        return None
    instance = node.operator.instance(node)
    terms = instance.inputs[index] if index < len(instance.inputs) else None
    value = node.inputs[index]
    if terms is None or value is None:
        return None
    kept: dict[int, int] = {}
    summed = 0
    for axis, (term, size) in enumerate(zip(terms, value.shape, strict=True)):
        roles = {instance.roles[letter] for letter in letters_of(term) if instance.sizes[letter] != 1}
        if Role.LOOKUP in roles:
            return axis
        if Role.MIXED in roles:
            return None  # keys, values and masks are data, not weights
        if roles & {Role.CONTRACTED, Role.ORDERED}:
            summed += 1
        elif isinstance(size, int):
            kept[axis] = size
    # what is added after the sum (a bias) is not summed over
    if not kept or not summed:
        return None
    return max(kept, key=lambda axis: (kept[axis], -axis))


def chosen(
    sites: Sequence[WeightSite], at: Sequence[str] | None, exclude: Sequence[str], note: Callable[[str], None]
) -> list[WeightSite]:
    """The sites whose every reader's module, or the parameter itself, matches `at` and none of which matches `exclude`.

    :raises SutureError: SITE, if a pattern matches nothing
    """
    names = sorted({name for site in sites for name in _names(site)})
    for pattern in (*(at or ()), *exclude):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise SutureError(
                Code.SITE, f"the pattern {pattern!r} matches no layer with a weight",
                remedy=nearest(pattern, names, what="layer"),
            )  # fmt: skip
    kept = []
    for site in sites:
        if at is not None and not _matches(site, at):
            continue
        if _matches(site, exclude):
            note(f"{site.name} stays: excluded")
            continue
        kept.append(site)
    return kept


def _names(site: WeightSite) -> list[str]:
    return [site.parameter.name, *(use.node.path for use in site.readers if use.node.path)]


def _matches(site: WeightSite, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in _names(site) for pattern in patterns)


def called(node: Node) -> str:
    """What a person calls a layer: its module path, else its place in the graph."""
    return node.path or node.where()
