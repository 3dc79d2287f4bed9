"""The graph: the inter-operator level of the IR.

A graph is mutable SSA. Values have a type, one producer and an exact list of uses that only nodes touch; nodes have an operator, inputs,
attributes and a module path; parameters are values that carry a tensor. Iteration hands out snapshots, so a pass may edit while it walks.

Sizes are owned by types: a node whose result sizes are not determined by its operands (`reshape`, `expand`, `full`, `split`, ...) has them
declared in its result types, symbols included, and nowhere else. So a surgery that changes a width changes types, and nothing is stale.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.history import Record, Structure
from suture.ir.operator import Operator
from suture.ir.operator import find as find_operator
from suture.ir.sizes import Dim, evaluate_size, symbols_of
from suture.ir.types import Attribute, TensorType
from suture.ir.values import Parameter, Use, Value

if TYPE_CHECKING:
    from suture.ir.axes import AxisTable

__all__ = ["Graph", "Node", "Parameter", "Record", "Stats", "Structure", "Use", "Value"]


class Node:
    """An application of an operator."""

    __slots__ = ("_inputs", "attributes", "graph", "meta", "operator", "outputs", "path")

    def __init__(
        self,
        graph: Graph,
        operator: Operator,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Attribute],
        path: str,
    ) -> None:
        self.graph = graph
        self.operator = operator
        self.attributes: dict[str, Attribute] = dict(attributes)  # what the operator means
        self.path = path  # the module it comes from: a hint that may be dropped
        self.meta: dict[str, Any] = {}  # a pass's scratch: neither printed nor copied
        self.outputs: tuple[Value, ...] = ()
        self._inputs: tuple[Value | None, ...] = tuple(inputs)
        for index, value in enumerate(self._inputs):
            if value is not None:
                value._uses[Use(self, index)] = None

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        """The operands; None where an optional one is absent."""
        return self._inputs

    @property
    def output(self) -> Value:
        """The only result.

        :raises SutureError: GRAPH, if there are several
        """
        if len(self.outputs) != 1:
            raise SutureError(
                Code.GRAPH,
                f"{self.operator.name} has {len(self.outputs)} results",
                where=self.path,
                remedy="name one of .outputs",
            )
        return self.outputs[0]

    @property
    def bodies(self) -> Mapping[str, Graph]:
        """The graphs among the attributes, by the attribute's name. They are shared between copies: build a new one to change it."""
        return {name: value for name, value in self.attributes.items() if isinstance(value, Graph)}

    def replace_input(self, index: int, value: Value | None) -> None:
        """Read another value as operand `index`."""
        old = self._inputs[index]
        if old is value:
            return
        if old is not None:
            del old._uses[Use(self, index)]
        if value is not None:
            value._uses[Use(self, index)] = None
        self._inputs = (*self._inputs[:index], value, *self._inputs[index + 1 :])

    def extend_inputs(self, count: int) -> None:
        """Make room for optional operands that were not given: the node gets `count` of them, the new ones absent."""
        self._inputs = (*self._inputs, *([None] * (count - len(self._inputs))))

    def where(self) -> str:
        """The node's place, for messages: its first result and its module path."""
        name = f"%{self.outputs[0].name}" if self.outputs else self.operator.name
        return f"{name} ({self.operator.name}{' in ' + self.path if self.path else ''})"

    def __repr__(self) -> str:
        return f"<{', '.join(map(str, self.outputs))} = {self.operator.name}({', '.join(str(v) if v else '_' for v in self._inputs)})>"


@dataclass(frozen=True)
class Stats:
    """The size of a graph. MACs are counted per sample: a symbol `batch` counts as 1, others at the size seen when traced."""

    nodes: int
    parameters: int
    bytes: int
    macs: int
    symbolic_macs: Dim
    operators: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.nodes:,} nodes, {self.parameters:,} parameters, {self.bytes:,} bytes, {self.macs:,} MACs"


class Graph:
    """A model: inputs, parameters, nodes in topological order, outputs."""

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.output_names: list[str] = []
        self.parameters: dict[str, Parameter] = {}
        self.hints: dict[str, int] = {}
        self.structure: Structure | None = None
        self.source = ""
        self.history: tuple[Record, ...] = ()
        self._nodes: dict[Node, None] = {}
        self._places: dict[Node, int] = {}  # empty where the order has changed since
        self._names: set[str] = set()
        self._counters: dict[str, itertools.count[int]] = {}

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes in topological order, as a snapshot."""
        return tuple(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def place(self, node: Node) -> int:
        """Where a node stands among the others: what comes later has a larger number, until the next edit."""
        if not self._places:
            self._places = {each: place for place, each in enumerate(self._nodes)}
        return self._places[node]

    def values(self) -> Iterator[Value]:
        """Inputs, parameters, then the results of every node in order."""
        yield from self.inputs
        yield from self.parameters.values()
        for node in self.nodes:
            yield from node.outputs

    def fresh_name(self, base: str) -> str:
        """A value name that is not taken: the base itself, else with a number."""
        base = base or "v"
        if base not in self._names:
            return base
        counter = self._counters.setdefault(base, itertools.count(1))
        while (name := f"{base}_{next(counter)}") in self._names:
            pass
        return name

    def add_input(self, name: str, type_: TensorType) -> Value:
        """Add a graph input."""
        value = Value(self, self._claim(name), type_)
        self.inputs.append(value)
        return value

    def remove_input(self, value: Value) -> None:
        """Remove a graph input that nothing reads."""
        if value.uses or value.is_graph_output():
            raise SutureError(Code.GRAPH, f"{value} is still read", where=self.name, remedy="replace its uses first")
        self.inputs.remove(value)
        self._names.discard(value.name)

    def add_parameter(
        self,
        name: str,
        data: torch.Tensor,
        role: str = "parameter",
        *,
        aliases: tuple[str, ...] = (),
        requires_grad: bool | None = None,
        persistent: bool | None = None,
    ) -> Parameter:
        """Add a tensor under its dotted name.

        :raises SutureError: GRAPH, if the name is taken
        """
        if name in self.parameters:
            raise SutureError(
                Code.GRAPH, f"the parameter {name} exists already", where=self.name, remedy="take another name"
            )
        parameter = Parameter(self, name, data, role, aliases, requires_grad, persistent)
        self.parameters[name] = parameter
        return parameter

    def remove_parameter(self, parameter: Parameter) -> None:
        """Remove a parameter that nothing reads."""
        if parameter.uses or parameter.is_graph_output():
            raise SutureError(
                Code.GRAPH, f"{parameter} is still read", where=self.name, remedy="replace its uses first"
            )
        del self.parameters[parameter.name]

    def add(
        self,
        operator: str | Operator,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        shapes: Sequence[Sequence[Dim]] | None = None,
        path: str = "",
        name: str | Sequence[str] | None = None,
        before: Node | None = None,
    ) -> Node:
        """Add a node; its result types follow from the operator's index notation.

        :param shapes: the result shapes, for an operator whose result sizes are declared (`reshape`, `expand`, `full`, `split`, ...)
        :param name: the name of the result, or one name per result
        :param before: the node to insert in front of; at the end if None
        :raises SutureError: OPERATOR, SHAPE or DTYPE, if the operator does not exist or the operands do not fit
        """
        chosen = find_operator(operator) if isinstance(operator, str) else operator
        where = f"{chosen.name}{' in ' + path if path else ''}"
        filled = chosen.complete(attributes or {}, where)
        declared = None if shapes is None else tuple(tuple(shape) for shape in shapes)
        types = chosen.infer([None if v is None else v.type for v in inputs], filled, declared, where)
        node = Node(self, chosen, inputs, filled, path)
        names = [name] if isinstance(name, str) else list(name or ())
        base = names[0] if names else chosen.name
        node.outputs = tuple(
            Value(
                self,
                self._claim(names[k] if k < len(names) else f"{base}_{k}" if len(types) > 1 else base),
                type_,
                node,
                k,
            )
            for k, type_ in enumerate(types)
        )
        self._insert(node, before)
        return node

    def remove(self, node: Node) -> None:
        """Remove a node whose results nothing reads."""
        for value in node.outputs:
            if value.uses or value.is_graph_output():
                raise SutureError(
                    Code.GRAPH, f"{value} is still read", where=node.where(), remedy="replace its uses first"
                )
        for index in range(len(node.inputs)):
            node.replace_input(index, None)
        self._names -= {value.name for value in node.outputs}
        del self._nodes[node]
        self._places.pop(node, None)  # the others stay in their order

    def replace_uses(self, old: Value, new: Value, *, keep: Iterable[Node] = ()) -> None:
        """Let everything that reads `old` read `new`, graph outputs included, but for the nodes in `keep`."""
        kept = set(keep)
        for node, index in old.uses:
            if node not in kept:
                node.replace_input(index, new)
        self.outputs = [new if value is old else value for value in self.outputs]

    def set_outputs(self, values: Sequence[Value], names: Sequence[str] | None = None) -> None:
        """Declare what the graph returns; names default to the values' own."""
        self.outputs = list(values)
        self.output_names = list(names) if names is not None else [value.name for value in values]

    def remove_dead(self) -> int:
        """Remove the nodes whose results reach no output; parameters stay. Returns how many went."""
        removed = 0
        kept = {id(value) for value in self.outputs}
        for node in reversed(self.nodes):
            if all(not value.uses and id(value) not in kept for value in node.outputs):
                self.remove(node)
                removed += 1
        return removed

    def sort(self) -> None:
        """Bring the nodes into topological order again, changing the order no more than needed.

        :raises SutureError: GRAPH, if they form a circle
        """
        done: dict[Node, None] = {}
        for root in self.nodes:
            stack: list[tuple[Node, bool]] = [(root, False)]
            open_nodes: set[Node] = set()
            while stack:
                node, ready = stack.pop()
                if node in done:
                    continue
                if ready:
                    done[node] = None
                    continue
                if node in open_nodes:
                    raise SutureError(
                        Code.GRAPH, "the nodes form a circle", where=node.where(), remedy="undo the last edit"
                    )
                open_nodes.add(node)
                stack.append((node, True))
                producers = [v.producer for v in node.inputs if v is not None and v.producer is not None]
                stack += [(producer, False) for producer in reversed(producers) if producer not in done]
        self._nodes, self._places = done, {}

    def copy(self) -> Graph:
        """A copy with nodes and values of its own; the parameters' tensors are shared."""
        twin = Graph(self.name)
        twin.hints, twin.structure, twin.source, twin.history = (
            dict(self.hints),
            self.structure,
            self.source,
            self.history,
        )
        mapping: dict[Value, Value] = {}
        for value in self.inputs:
            mapping[value] = twin.add_input(value.name, value.type)
        for parameter in self.parameters.values():
            mapping[parameter] = twin.add_parameter(
                parameter.name, parameter.data, parameter.role,
                aliases=parameter.aliases, requires_grad=parameter.requires_grad, persistent=parameter.persistent,
            )  # fmt: skip
        for node in self.nodes:
            inputs = [None if value is None else mapping[value] for value in node.inputs]
            clone = Node(twin, node.operator, inputs, node.attributes, node.path)
            clone.outputs = tuple(Value(twin, twin._claim(v.name), v.type, clone, v.index) for v in node.outputs)
            twin._nodes[clone] = None
            mapping.update(zip(node.outputs, clone.outputs, strict=True))
        twin.set_outputs([mapping[value] for value in self.outputs], self.output_names)
        return twin

    def rename(self, base: Callable[[Value], str]) -> None:
        """Name the result of every node anew, in order; a base that is taken gets a number."""
        results = [value for node in self.nodes for value in node.outputs]
        self._names -= {value.name for value in results}
        self._counters.clear()
        for value in results:
            value.name = self._claim(base(value))

    def rename_result(self, value: Value, name: str) -> None:
        """Give one node's result another name; a name that is taken gets a number."""
        self._names.discard(value.name)
        value.name = self._claim(name)

    def symbols(self) -> tuple[str, ...]:
        """The symbolic sizes of the graph's inputs, in order of appearance."""
        return tuple(dict.fromkeys(name for value in self.inputs for dim in value.shape for name in symbols_of(dim)))

    def measured(self) -> tuple[str, ...]:
        """The symbolic sizes that data decide, in order of appearance: those that nodes which measure bring."""
        inner = [value for node in self.nodes if node.operator.measures for value in node.outputs]
        known = set(self.symbols())
        found = dict.fromkeys(name for value in inner for dim in value.shape for name in symbols_of(dim))
        return tuple(name for name in found if name not in known)

    def record(self, record: Record) -> None:
        """Append to the graph's history."""
        self.history = (*self.history, record)

    def macs(self) -> Dim:
        """The multiply-accumulates of all nodes; of a branch, those of its dearer body."""
        total: Dim = 0
        for node in self.nodes:
            total = total + node.operator.macs(node)
        return total

    def stats(self) -> Stats:
        """Count nodes, parameters, bytes and multiply-accumulates."""
        macs = self.macs()
        operators: dict[str, int] = {}
        for node in self.nodes:
            operators[node.operator.name] = operators.get(node.operator.name, 0) + 1
        tensors = [p for p in self.parameters.values() if p.uses or p.is_graph_output()]
        numbers = {name: 1 if name == "batch" else self.hints.get(name, 1) for name in symbols_of(macs)}
        return Stats(
            nodes=len(self),
            parameters=sum(math.prod(p.data.shape) for p in tensors if p.role == "parameter"),
            bytes=sum(p.data.numel() * p.data.element_size() for p in tensors),
            macs=evaluate_size(macs, numbers),
            symbolic_macs=macs,
            operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        )

    def axes(self) -> AxisTable:
        """The axes of the graph: what must change together, and what is pinned and why."""
        from suture.ir.axes import analyse

        return analyse(self)

    def __str__(self) -> str:
        from suture.ir.text import print_graph

        return print_graph(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self)} nodes, {len(self.parameters)} tensors>"

    def _claim(self, base: str) -> str:
        name = self.fresh_name(base)
        self._names.add(name)
        return name

    def _insert(self, node: Node, before: Node | None) -> None:
        self._places = {}
        if before is None:
            self._nodes[node] = None
            return
        order = list(self._nodes)
        order.insert(order.index(before), node)
        self._nodes = dict.fromkeys(order)
