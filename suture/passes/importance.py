"""How much each index of an axis matters: by the size of its weights, by calibrated activations, at random, or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from suture.ir.algebra import Atom, Axis, Chain, Times, atoms_of, size_of
from suture.ir.axes import AxisInfo, AxisTable
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Node, Parameter, Value
from suture.ir.notation import letters_of
from suture.ir.semantics import evaluate
from suture.passes.counter import counter_uniform

_BLOCK = 1 << 14  # elements: fits the first cache, and is too small for torch to wake other threads for

Criterion = Callable[[AxisInfo, AxisTable], torch.Tensor]


def positions(axis: Axis, atom: Atom) -> torch.Tensor:
    """For every index of a dimension, the index of the atom it belongs to, or -1 where the atom has no part in it. Shape `[size]`."""
    match axis:
        case Atom():
            size = _fixed(axis)
            return torch.arange(size) if axis is atom else torch.full((size,), -1, dtype=torch.int64)
        case Times(factors):
            result = torch.full((1,), -1, dtype=torch.int64)
            for factor in factors:
                inner = positions(factor, atom)
                result = torch.where(
                    inner[None, :] >= 0, inner[None, :], result[:, None].expand(-1, len(inner))
                ).reshape(-1)
            return result
        case Chain(parts):
            return torch.cat([positions(part, atom) for part in parts])


def fold(vector: torch.Tensor, axis: Axis, atom: Atom) -> torch.Tensor:
    """Sum a vector over a dimension onto the indices of one of its atoms. Shape `[atom.size]`, float64."""
    index = positions(axis, atom)
    held = index >= 0
    total = torch.zeros(_fixed(atom), dtype=torch.float64)
    return total.index_add_(0, index[held], vector.to(torch.float64)[held])


def magnitude(power: int) -> Criterion:
    """The p-norm of all weights that belong to an index (Li et al. 2017, section 3.1), over every parameter that holds the axis."""
    masses = _Masses(power)

    def score(info: AxisInfo, table: AxisTable) -> torch.Tensor:
        places = [
            place for place in info.places if isinstance(place.value, Parameter) and place.value.role == "parameter"
        ]
        weights = [place for place in places if place.value.rank > 1] or places
        total = torch.zeros(_fixed(info.atom), dtype=torch.float64)
        for value, dim in weights:
            assert isinstance(value, Parameter)
            total += fold(masses.along(value, dim), table.axis(value, dim), info.atom)
        return total.pow(1 / power)

    return score


class _Masses:
    """Sums of |w|^p along dimensions of parameters, each computed once: a concatenation's weight is asked for by every part of it."""

    def __init__(self, power: int) -> None:
        self.power = power
        self.known: dict[tuple[Parameter, int], torch.Tensor] = {}

    def along(self, parameter: Parameter, dim: int) -> torch.Tensor:
        """The sum over all other dimensions. Shape `[size of dim]`, float64."""
        if (parameter, dim) not in self.known:
            if dim > 1 or parameter.rank < 2:
                mass = self._power(parameter.data.detach())
                others = [k for k in range(mass.ndim) if k != dim]
                self.known[parameter, dim] = (mass.sum(others) if others else mass).to(torch.float64)
            else:
                self.known[parameter, 0], self.known[parameter, 1] = self._rows_and_columns(parameter.data.detach())
        return self.known[parameter, dim]

    def _rows_and_columns(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums along the first two dimensions, a block of rows at a time: what fits the cache is neither allocated anew nor read twice."""
        rows = torch.empty(data.shape[0], dtype=torch.float64)
        columns = torch.zeros(data.shape[1:], dtype=torch.float64)
        step = max(1, _BLOCK // max(1, data[0].numel()))
        for start in range(0, data.shape[0], step):
            mass = self._power(data[start : start + step])
            rows[start : start + step] = mass.flatten(1).sum(1)
            columns += mass.sum(0)
        return rows, columns.flatten(1).sum(1) if columns.ndim > 1 else columns

    def _power(self, data: torch.Tensor) -> torch.Tensor:
        wide = data.to(torch.float32)
        return wide.square() if self.power == 2 else wide.abs().pow(self.power)


def random(seed: int) -> Criterion:
    """Uniform scores, keyed by the seed and the axis's name, so that neither order nor threads change them."""

    def score(info: AxisInfo, table: AxisTable) -> torch.Tensor:
        return counter_uniform(seed, info.name, _fixed(info.atom))

    return score


def activation(table: AxisTable, batches: Sequence[Mapping[str, torch.Tensor]]) -> Criterion:
    """What each index contributes where it is read: the norm of its activations times that of its weights (Sun et al. 2024, equation 1).

    :param batches: calibration inputs by name
    :raises SutureError: INPUT, if they do not fit the graph
    """
    wanted: dict[Value, set[int]] = {}
    reads: list[tuple[Node, Value, int, Parameter, int]] = []
    for node in dict.fromkeys(n for info in table.infos.values() for n in info.readers):
        found = _reading(table, node)
        if found is not None:
            reads.append((node, *found))
            wanted.setdefault(found[0], set()).add(found[1])
    energy: dict[tuple[Value, int], torch.Tensor] = {}
    masses, by_size = _Masses(2), magnitude(2)

    def watch(value: Value, tensor: torch.Tensor) -> None:
        for dim in wanted.get(value, ()):
            others = [k for k in range(tensor.ndim) if k != dim]
            part = tensor.detach().to(torch.float32).pow(2).sum(others).to(torch.float64)
            energy[value, dim] = energy.get((value, dim), 0) + part

    with torch.no_grad():
        for batch in batches:
            evaluate(table.graph, batch, watch=watch)

    def score(info: AxisInfo, _: AxisTable) -> torch.Tensor:
        total = torch.zeros(_fixed(info.atom), dtype=torch.float64)
        for node, value, dim, weight, weight_dim in reads:
            if node not in info.readers or (value, dim) not in energy:
                continue
            data_axis, weight_axis = table.axis(value, dim), table.axis(weight, weight_dim)
            mass = masses.along(weight, weight_dim)
            if data_axis == weight_axis:
                total += fold(energy[value, dim] * mass, data_axis, info.atom)
            elif info.atom in set(atoms_of(data_axis)) and info.atom in set(atoms_of(weight_axis)):
                total += fold(energy[value, dim], data_axis, info.atom) * fold(mass, weight_axis, info.atom)
        return total.sqrt() if bool(total.any()) else by_size(info, table)

    return score


def _reading(table: AxisTable, node: Node) -> tuple[Value, int, Parameter, int] | None:
    """The data operand and the weight of a node that sums over an axis, with the dimensions in which they meet."""
    instance = table.instances[node]
    weight = next((v for v in node.inputs[1:] if isinstance(v, Parameter) and v.rank > 1), None)
    data = next((v for v in node.inputs if v is not None and not isinstance(v, Parameter)), None)
    if weight is None or data is None:
        return None
    made = {x for dims in instance.outputs for term in dims for x in letters_of(term)}
    data_dims = instance.inputs[node.inputs.index(data)] or ()
    weight_dims = instance.inputs[node.inputs.index(weight)] or ()
    for weight_dim, weight_term in enumerate(weight_dims):
        summed = set(letters_of(weight_term)) - made
        for dim, term in enumerate(data_dims):
            if summed & set(letters_of(term)):
                return data, dim, weight, weight_dim
    return None


def checked(criterion: Criterion, info: AxisInfo, table: AxisTable) -> torch.Tensor:
    """The scores of an axis.

    :raises SutureError: CRITERION, if the criterion returns anything but one number for each index
    """
    scores = criterion(info, table)
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (_fixed(info.atom),):
        got = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise SutureError(
            Code.CRITERION,
            f"the criterion returned {got} for {info.name}",
            remedy=f"a tensor of shape [{info.size}] would be right",
        )
    return scores.detach().to(torch.float64)


def _fixed(axis: Axis) -> int:
    size = size_of(axis)
    assert isinstance(size, int)
    return size
