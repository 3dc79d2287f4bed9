"""A region, and how it is found by its module path."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.paths import is_below
from suture.ir.sizes import Dim


class Region:
    """A part of a graph: its nodes, and the values that cross its border.

    `inputs` are the values that it reads from outside, parameters aside: first the stream, which flows in and out again, then the ambient values
    (masks, rotary tables, another stream it attends to). A region is the same as itself only; after an edit of the graph it must be found again.

    :param nodes: in the graph's order
    :param stream: the value that flows in; chosen among the values read if absent
    """

    def __init__(self, graph: Graph, nodes: Iterable[Node], name: str, stream: Value | None = None) -> None:
        self.graph = graph
        self.nodes = tuple(nodes)
        self.name = name
        self._stream = stream

    @cached_property
    def members(self) -> frozenset[Node]:
        """The nodes, as a set."""
        return frozenset(self.nodes)

    @cached_property
    def outputs(self) -> tuple[Value, ...]:
        """The results that something outside reads, or that the graph returns."""
        returned = set(self.graph.outputs)
        return tuple(
            value
            for node in self.nodes
            for value in node.outputs
            if value in returned or any(use.node not in self.members for use in value.uses)
        )

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """The values that it reads from outside, parameters aside: the stream first."""
        read = _read(self)
        stream = self._stream if self._stream in read else _likely_stream(self, read)
        return tuple(read) if stream is None else (stream, *(value for value in read if value is not stream))

    @property
    def stream(self) -> Value | None:
        """The value that flows in; None where nothing is read from outside."""
        return self.inputs[0] if self.inputs else None

    @property
    def ambient(self) -> tuple[Value, ...]:
        """What it reads from outside besides the stream and parameters."""
        return self.inputs[1:]

    @property
    def output(self) -> Value:
        """The only output.

        :raises SutureError: REGION, if there are several, or none
        """
        if len(self.outputs) != 1:
            names = ", ".join(map(str, self.outputs)) or "none"
            raise SutureError(
                Code.REGION, f"the region has {len(self.outputs)} outputs: {names}", where=self.name,
                remedy="a region with one output would be right",
            )  # fmt: skip
        return self.outputs[0]

    @property
    def entry(self) -> Value:
        """The stream, which must be there.

        :raises SutureError: REGION, if nothing flows in
        """
        if self.stream is None:
            raise SutureError(Code.REGION, "nothing flows into the region", where=self.name, remedy="name its stream")
        return self.stream

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The tensors that it reads, and tensors of its modules that nothing reads (counters of batch norms), in the graph's order."""
        read = {value for node in self.nodes for value in node.inputs if isinstance(value, Parameter)}
        modules = {parameter.name.rpartition(".")[0] for parameter in read if "." in parameter.name}
        return tuple(
            parameter
            for parameter in self.graph.parameters.values()
            if parameter in read or (not parameter.uses and self._holds(parameter.name.rpartition(".")[0], modules))
        )

    def _holds(self, module: str, modules: Container[str]) -> bool:
        """Whether a module is the region's: one of those that it reads tensors of, or one around them of which nothing is outside."""
        if module in modules:
            return True
        if module not in self._paths:
            return False
        inside = [node in self.members for node in self.graph.nodes if module and is_below(node.path, module)]
        return bool(inside) and all(inside)

    @cached_property
    def _paths(self) -> frozenset[str]:
        """The module paths of its nodes, and all that lie around them."""
        parts = [node.path.split(".") for node in self.nodes if node.path]
        return frozenset(".".join(path[: k + 1]) for path in parts for k in range(len(path)))

    def own_parameters(self) -> tuple[Parameter, ...]:
        """The tensors that nothing outside reads."""
        return tuple(p for p in self.parameters if all(use.node in self.members for use in p.uses))

    def macs(self) -> Dim:
        """Multiply-accumulates, as `Graph.stats` counts them, with symbols."""
        total: Dim = 0
        for node in self.nodes:
            total = total + node.operator.macs(node)
        return total

    def parameter_count(self) -> int:
        """The number of trained elements."""
        return sum(p.data.numel() for p in self.parameters if p.role == "parameter")

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<region {self.name}: {len(self)} nodes, {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"


@dataclass(frozen=True)
class ModuleTree:
    """The modules of a graph as a tree: a path, the region of the nodes below it, the modules directly below it by their last name."""

    path: str
    region: Region
    children: dict[str, ModuleTree]

    def walk(self) -> Iterator[ModuleTree]:
        """This module, then all below it, depth first, in the graph's order."""
        yield self
        for child in self.children.values():
            yield from child.walk()


def module_tree(graph: Graph) -> ModuleTree:
    """The tree of the modules that the nodes come from."""
    below: dict[str, list[Node]] = {"": []}
    for node in graph.nodes:
        below[""].append(node)
        parts = node.path.split(".") if node.path else []
        for k in range(len(parts)):
            below.setdefault(".".join(parts[: k + 1]), []).append(node)
    trees: dict[str, ModuleTree] = {}
    for path, nodes in below.items():
        trees[path] = ModuleTree(path, Region(graph, nodes, path or graph.name), {})
    for path, tree in trees.items():
        if path:
            parent, _, leaf = path.rpartition(".")
            trees[parent].children[leaf] = tree
    return trees[""]


def at_path(graph: Graph, path: str, *, stream: Value | None = None) -> Region:
    """The region of the nodes at or below a module path.

    :param stream: the value that flows in, where several could
    :raises SutureError: SITE, with the nearest path, if no node comes from there
    """
    nodes = [node for node in graph.nodes if is_below(node.path, path)]
    if not nodes:
        known = {tree.path for tree in module_tree(graph).walk() if tree.path}
        raise SutureError(
            Code.SITE, f"no node comes from the module {path!r}", remedy=nearest(path, known, what="module")
        )
    return Region(graph, nodes, path or graph.name, stream)


def private_nodes(graph: Graph, nodes: Iterable[Node], scope: str, flowing: Container[Node]) -> list[Node]:
    """The nodes of a region, with those that feed nothing else (a bias made of the region's own table, say) if they come from below `scope`.

    :param flowing: nodes that the stream has passed through: they are no region's own
    """
    members = set(nodes)
    for node in reversed(graph.nodes):
        if node in members or node in flowing or not is_below(node.path, scope):
            continue
        uses = [use for value in node.outputs for use in value.uses]
        if uses and all(use.node in members for use in uses) and not any(v.is_graph_output() for v in node.outputs):
            members.add(node)
    return [node for node in graph.nodes if node in members]


def _read(region: Region) -> dict[Value, None]:
    return {
        value: None
        for node in region.nodes
        for value in node.inputs
        if value is not None and not isinstance(value, Parameter) and value.producer not in region.members
    }


def _likely_stream(region: Region, read: dict[Value, None]) -> Value | None:
    """Of the values read: of the type of an output rather than not, of floating point rather than not, then the latest that was made."""
    if not read:
        return None
    position = {value: k for k, value in enumerate(region.graph.values())}
    types = {value.type for value in region.outputs}
    return max(read, key=lambda value: (value.type in types, value.dtype.is_floating_point, position[value]))
