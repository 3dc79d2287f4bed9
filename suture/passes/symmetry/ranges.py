"""The ranges of weights along their axes, and the scales that make those of two layers equal (Nagel et al. 2019, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.ir.algebra import Atom, Axis
from suture.ir.axes import AxisTable
from suture.ir.graph import Parameter, Use
from suture.passes.linear_maps import diagonal, map_dimension
from suture.passes.symmetry.constant_fields import laid_out
from suture.passes.symmetry.pairs import Pair

_LARGEST = 1e5  # the most that one sweep scales a channel by


class Ranges:
    """The magnitudes of the weights of some pairs, the largest over all dimensions that no pair scales."""

    def __init__(self, table: AxisTable, pairs: Sequence[Pair]) -> None:
        self.table = table
        self.layers = {use: _layer_before(use) for pair in pairs for use in pair.gains}
        places = [place for pair in pairs for place in (*pair.writers, *pair.readers)]
        places += [layer for layer in self.layers.values() if layer is not None]
        self.magnitudes: dict[Parameter, torch.Tensor] = {}
        for parameter in dict.fromkeys(parameter for parameter, _ in places):
            kept = {dim for each, dim in places if each is parameter}
            data = parameter.data.detach().to(torch.float64).abs()
            rest = [dim for dim in range(data.ndim) if dim not in kept]
            self.magnitudes[parameter] = data.amax(rest, keepdim=True) if rest else data
        self.gains = {use: _gain(use) for use in self.layers}

    def written(self, pair: Pair) -> torch.Tensor:
        """The range of what writes each index: of the weights' rows, with the norm between folded in."""
        found = [self._along(parameter, dim, pair.found.atom) for parameter, dim in pair.writers]
        for use in pair.gains:
            layer, gain = self.layers[use], self.gains[use]
            line = gain if layer is None else gain * self._line(*layer)
            operand = use.node.inputs[use.index]
            assert operand is not None
            found.append(_per_index(self.table.axis(operand, 0), pair.found.atom, line))
        return torch.stack(found).amax(0)

    def read(self, pair: Pair) -> torch.Tensor:
        """The range of what reads each index."""
        return torch.stack([self._along(parameter, dim, pair.found.atom) for parameter, dim in pair.readers]).amax(0)

    def scale(self, pair: Pair) -> torch.Tensor:
        """The scale that makes both ranges `sqrt(written * read)`; 1 for an index that nothing writes or reads."""
        written, read = self.written(pair), self.read(pair)
        scale = torch.sqrt(written / read)
        alive = (written > 0) & (read > 0) & scale.isfinite()
        return torch.where(alive, scale.clamp(1 / _LARGEST, _LARGEST), torch.ones_like(scale))

    def divide(self, pair: Pair, scale: torch.Tensor) -> None:
        """Take note of a scale: writers are divided by it, readers multiplied."""
        for places, factor in ((pair.writers, 1 / scale), (pair.readers, scale)):
            for parameter, dim in places:
                maps = {pair.found.atom: diagonal(factor)}
                axis = self.table.axis(parameter, dim)
                self.magnitudes[parameter] = map_dimension(self.magnitudes[parameter], dim, axis, maps)
        for use in pair.gains:
            operand = use.node.inputs[use.index]
            assert operand is not None
            maps = {pair.found.atom: diagonal(1 / scale)}
            self.gains[use] = map_dimension(self.gains[use], 0, self.table.axis(operand, 0), maps)

    def _along(self, parameter: Parameter, dim: int, atom: Atom) -> torch.Tensor:
        return _per_index(self.table.axis(parameter, dim), atom, self._line(parameter, dim))

    def _line(self, parameter: Parameter, dim: int) -> torch.Tensor:
        """The largest magnitude at each index of a dimension."""
        data = self.magnitudes[parameter]
        rest = [other for other in range(data.ndim) if other != dim]
        return data.amax(rest) if rest else data


def _per_index(axis: Axis, atom: Atom, line: torch.Tensor) -> torch.Tensor:
    """The largest number at each index of an atom, of numbers along a dimension that holds it."""
    size = atom.size
    assert isinstance(size, int)
    index = laid_out(axis, atom, torch.arange(1, size + 1, dtype=torch.float64)).round().to(torch.int64) - 1
    here = (index >= 0) & (index < size)
    return torch.zeros(size, dtype=torch.float64).scatter_reduce(0, index[here], line[here], "amax")


def _layer_before(use: Use) -> tuple[Parameter, int] | None:
    """The weight whose rows a batch norm scales, if nothing else reads that layer."""
    value = use.node.inputs[0]
    layer = None if value is None or len(value.uses) > 1 or value.is_graph_output() else value.producer
    if layer is None or layer.operator.name not in ("conv", "linear"):
        return None
    weight = layer.inputs[1]
    return (weight, 0) if isinstance(weight, Parameter) else None


def _gain(use: Use) -> torch.Tensor:
    """The magnitude of what a batch norm multiplies each channel by, in evaluation."""
    gain, var, eps = use.node.inputs[1], use.node.inputs[4], use.node.attributes["eps"]
    assert isinstance(gain, Parameter)
    assert isinstance(var, Parameter)
    assert isinstance(eps, float | int)
    return gain.data.detach().to(torch.float64).abs() / (var.data.detach().to(torch.float64) + eps).sqrt()
