"""New parts behind a mask that opens from 0 to 1 (Yao et al. 2024, section 3: masked structural growth).

Whatever makes a new slice that is not zero is multiplied by `w = 1 + new * (m - 1)`: `new` marks the new indices, and the buffer `m`, one number for
all of a growth, is 0 at first and driven to 1 by a schedule (`module.growth_mask.fill_(step / steps)`). At 0 the function is the old one; at 1
the masks multiply by 1 and `unmask` removes them. A norm's statistics follow `s = mean(w)`, from n / N to 1: its gain takes sqrt(s), and a layer
norm sees the mean of the others in place of what is closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from suture.ir.algebra import Atom, Axis, resolve, size_of
from suture.ir.axes import AxisTable
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.types import Attribute
from suture.passes.axis_map import AxisMap, Twin
from suture.passes.axis_walk import dims_of, result_dims
from suture.passes.contract import Contract
from suture.passes.exactness import Correction, evaluate_constants
from suture.passes.linear_maps import Pad, map_dimension, mapped_size
from suture.passes.registry import Notes, register

MASK = "growth_mask"


def insert_masks(
    twin: Twin,
    table: AxisTable,
    maps: Mapping[Atom, AxisMap],
    sites: Sequence[tuple[Node, str]],
    corrections: Sequence[Correction],
) -> None:
    """Mask the results of `sites` along their letters, and make up for the mask where a correction is due."""
    if sites:
        _Masks(twin, table, maps).insert(sites, corrections)


class _Masks:
    """One mask, and the vectors that it opens, each made once."""

    def __init__(self, twin: Twin, table: AxisTable, maps: Mapping[Atom, AxisMap]) -> None:
        self.twin, self.table, self.maps = twin, table, maps
        self.graph = twin.graph
        names = (MASK, *(f"{MASK}_{k}" for k in range(1, len(self.graph.parameters) + 2)))
        name = next(name for name in names if name not in self.graph.parameters)
        device = next((p.data.device for p in self.graph.parameters.values()), torch.device("cpu"))
        dtype = next((p.dtype for p in self.graph.parameters.values() if p.dtype.is_floating_point), torch.float32)
        self.mask = self.graph.add_parameter(name, torch.zeros((), dtype=dtype, device=device), "buffer")
        self.first = self.graph.nodes[0]
        self.closed = self._early("sub", [self.mask, None], 1.0, f"{name}_closed")
        self.vectors: dict[str, Value] = {}

    def insert(self, sites: Sequence[tuple[Node, str]], corrections: Sequence[Correction]) -> None:
        """Mask sites, correct norms and means."""
        masked: set[tuple[Value, int]] = set()
        for node, letter in sites:
            for index, value in enumerate(node.outputs):
                for dim in result_dims(self.table, node, index, letter):
                    if (value, dim) in masked:
                        continue
                    masked.add((value, dim))
                    copy = self.twin.nodes[node]
                    weight = self._along(self.table.axis(value, dim), value.rank - dim - 1, value.dtype)
                    self._after(copy, copy.outputs[index], "mul", weight, "masked")
        for node, letter in dict.fromkeys((correction.node, correction.letter) for correction in corrections):
            self._correct(node, letter)

    def _correct(self, node: Node, letter: str) -> None:
        copy, value = self.twin.nodes[node], node.inputs[0]
        assert value is not None
        dim = dims_of(self.table, node, 0, letter)[0]
        axis = self.table.axis(value, dim)
        weight = self._along(axis, 0, value.dtype)
        share = self._early("mean", [weight], None, "growth_open", dims=(0,))
        if node.operator.name == "mean":
            self._after(copy, copy.output, "div", share, "rescaled")
            return
        before, after = size_of(axis), mapped_size(axis, {atom: m.size for atom, m in self.maps.items()})
        assert isinstance(before, int) and isinstance(after, int)
        eps = copy.attributes["eps"]
        floor = torch.finfo(copy.output.dtype).eps if eps is None else eps
        assert isinstance(floor, int | float)
        copy.attributes["eps"] = floor * before / after
        if node.operator.name == "layer_norm":
            self._fill_closed(copy, weight, share)
        root = self._early("sqrt", [share], None, "growth_root")
        gain = copy.inputs[1] if len(copy.inputs) > 1 else None
        if gain is None:
            self._after(copy, copy.output, "mul", root, "rescaled")
            return
        scaled = self.graph.add("mul", [gain, root], path=copy.path, name=f"{copy.output.name}_gain", before=copy)
        copy.replace_input(1, scaled.output)

    def _fill_closed(self, norm: Node, weight: Value, share: Value) -> None:
        """Let a layer norm see the mean of what is open where it is closed."""
        value = norm.inputs[0]
        assert value is not None
        name = norm.output.name

        def add(
            operator: str, inputs: Sequence[Value | None], title: str, attributes: Mapping[str, Attribute] | None = None
        ) -> Value:
            return self.graph.add(
                operator, inputs, attributes, path=norm.path, name=f"{name}_{title}", before=norm
            ).output

        mean = add("div", [add("mean", [value], "mean", {"dims": (-1,), "keepdim": True}), share], "open_mean")
        closed = add("sub", [None, weight], "closed", {"scalar": 1.0})
        norm.replace_input(0, add("add", [value, add("mul", [closed, mean], "filling")], "filled"))

    def _along(self, axis: Axis, trailing: int, dtype: torch.dtype) -> Value:
        """The vector w of an axis, followed by dimensions of size 1."""
        key = f"{axis!r}/{trailing}/{dtype}"
        if key not in self.vectors:
            marks = {}
            for atom, each in self.maps.items():
                assert isinstance(each.write, Pad)
                marks[atom] = Pad(each.write.before, each.write.count, 1.0)
            size = size_of(axis)
            assert isinstance(size, int)
            new = map_dimension(torch.zeros(size), 0, resolve(axis), marks).to(self.mask.data.device, dtype)
            new = new.reshape(-1, *[1] * trailing)
            vector = self.graph.add_parameter(f"{self.mask.name}_new_{len(self.vectors)}", new, "constant")
            opened = self._early("mul", [vector, self.closed], None, "growth_closing")
            self.vectors[key] = self._early("add", [opened, None], 1.0, "growth_weight")
        return self.vectors[key]

    def _early(
        self, operator: str, inputs: Sequence[Value | None], scalar: float | None, name: str, **attributes: object
    ) -> Value:
        """A node in front of all others."""
        if scalar is not None:
            attributes["scalar"] = scalar
        return self.graph.add(operator, inputs, attributes, name=name, before=self.first).output  # type: ignore[arg-type]

    def _after(self, node: Node, value: Value, operator: str, factor: Value, suffix: str) -> None:
        order = self.graph.nodes
        position = order.index(node) + 1
        follower = order[position] if position < len(order) else None
        name = f"{value.name}_{suffix}"
        made = self.graph.add(operator, [value, factor], path=node.path, name=name, before=follower)
        self.graph.replace_uses(value, made.output, keep=[made])


@register(contract=Contract.EXACT)
def unmask(graph: Graph, notes: Notes) -> Graph:
    """Remove the masks of a growth that are fully open."""
    masks = [p for p in graph.parameters.values() if p.name.startswith(MASK) and p.role == "buffer" and not p.rank]
    opened = [p for p in masks if not p.data.is_meta and float(p.data) == 1.0]
    for mask in masks:
        if mask not in opened:
            notes.note(f"{mask.name} left alone: it is open to {float(mask.data):g}, not 1")
    if not opened:
        notes.not_applicable("no mask is fully open" if masks else "the graph has no mask")
        return graph
    result = graph.copy()
    _simplify(result, {result.parameters[mask.name]: 1.0 for mask in opened})
    result.remove_dead()
    for parameter in list(result.parameters.values()):
        if parameter.name.startswith(MASK) and not parameter.uses:
            result.remove_parameter(parameter)
            if parameter.role == "buffer":
                notes.note(f"{parameter.name} removed")
    return result


def _simplify(graph: Graph, known: dict[Value, float]) -> None:
    """Follow values that are one number throughout, and drop factors of 1 and terms of 0."""
    for node in graph.nodes:
        states = [None if value is None else known.get(value) for value in node.inputs]
        name = node.operator.name
        if name == "mean" and states[0] is not None:
            known[node.output] = states[0]
        elif name == "mul" and 0.0 in states:
            known[node.output] = 0.0
        elif node.operator.pointwise and any(state is not None for state in states):
            kept = _unchanged(node, states)
            if kept is not None:
                graph.replace_uses(node.output, kept)
                continue
            found = evaluate_constants(node, states, [value is not None for value in node.inputs])
            if found is not None:
                known[node.output] = found


def _unchanged(node: Node, states: Sequence[float | None]) -> Value | None:
    """The operand that a node passes on as it is."""
    name = node.operator.name
    if len(states) != 2 or name not in ("mul", "div", "add"):
        return None
    neutral = 0.0 if name == "add" else 1.0
    for k in (0, 1) if name != "div" else (1,):
        other = node.inputs[1 - k]
        if states[k] is not None and math.isclose(states[k] or 0.0, neutral, abs_tol=0.0) and other is not None:
            return other if other.type == node.output.type else None
    return None


def is_mask(parameter: Parameter) -> bool:
    """Whether a parameter is a growth's mask."""
    return parameter.name.startswith(MASK) and parameter.role == "buffer" and not parameter.rank


__all__ = ["MASK", "insert_masks", "is_mask", "unmask"]
