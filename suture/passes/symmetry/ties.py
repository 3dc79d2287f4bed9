"""Shared tensors during a change of basis: every use has a tensor of its own, and what is still the same afterwards is one again."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from suture.ir.graph import Graph, Parameter
from suture.passes.symmetry.parameters import free_name
from suture.passes.symmetry.reach import Reach


class Ties:
    """The shared parameters of a graph, taken apart use by use until `join`; numbers are not copied."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.copies: dict[Parameter, list[Parameter]] = {}
        for parameter in list(graph.parameters.values()):
            for node, index in parameter.uses if parameter.is_graph_output() else parameter.uses[1:]:
                copies = self.copies.setdefault(parameter, [])
                copy = graph.add_parameter(
                    free_name(graph, f"{parameter.name}@{len(copies) + 1}"), parameter.data, parameter.role,
                    requires_grad=parameter.requires_grad, persistent=parameter.persistent,
                )  # fmt: skip
                node.replace_input(index, copy)
                copies.append(copy)

    def divided(self, ways: Iterable[Reach]) -> str:
        """The name of a shared tensor of which some changes of basis would change a part of the uses only, if there is one."""
        sides: dict[Parameter, list[tuple[int, int, int]]] = {}
        for number, way in enumerate(ways):
            for (use, dim), side in way.parameters.items():
                parameter = use.node.inputs[use.index]
                if side and isinstance(parameter, Parameter):
                    sides.setdefault(parameter, []).append((number, dim, side))
        for parameter, copies in self.copies.items():
            if len({tuple(sorted(sides.get(each, []))) for each in (parameter, *copies) if each.uses}) > 1:
                return parameter.name
        return ""

    def join(self) -> list[str]:
        """Make one tensor of those that hold the same numbers; what is untied for good, in words."""
        notes = []
        for parameter, copies in self.copies.items():
            kept = [parameter]
            for copy in copies:
                if not copy.uses:
                    self.graph.remove_parameter(copy)
                    continue
                twin = next((other for other in kept if _equal(other.data, copy.data)), None)
                if twin is None:
                    twin = self._named(parameter, copy)
                    kept.append(twin)
                    places = ", ".join(node.where() for node, _ in copy.uses)
                    notes.append(f"{parameter.name} cannot stay shared: {places} has {twin.name} now")
                self.graph.replace_uses(copy, twin)
                self.graph.remove_parameter(copy)
        self.copies.clear()
        return notes

    def _named(self, parameter: Parameter, copy: Parameter) -> Parameter:
        """A parameter for a copy that differs, under the other name that the tensor has at that place."""
        paths = {node.path for node, _ in copy.uses}
        aliases = [alias for alias in parameter.aliases if alias.rpartition(".")[0] in paths]
        name = next((alias for alias in aliases if alias not in self.graph.parameters), f"{parameter.name}_untied")
        parameter.aliases = tuple(alias for alias in parameter.aliases if alias != name)
        return self.graph.add_parameter(
            free_name(self.graph, name),
            copy.data,
            copy.role,
            requires_grad=copy.requires_grad,
            persistent=copy.persistent,
        )


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.shape == b.shape and not a.is_meta and not b.is_meta and torch.equal(a, b))
