"""The emitter: it walks a graph once and writes ONNX nodes, one rule per operator.

A rule is a function from a `Lowering` (one node on its way to ONNX) to the ONNX values of its results; `@rule("relu")` enters it into the
table. The emitter keeps what rules share: initialisers, constants, sizes, casts and masks, each made once.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from suture.backends.onnx.sizes import SizeCompiler
from suture.backends.onnx.weights import Weight, onnx_type, scalar_name
from suture.ir.bodies import with_captures
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.types import TensorType

if TYPE_CHECKING:
    import onnx_ir

    from suture.backends.onnx.lowering import Lowering

Rule: TypeAlias = "Callable[[Lowering], onnx_ir.Value | Sequence[onnx_ir.Value]]"
RULES: dict[str, Rule] = {}

# The lowest operator set that the rules build on (LayerNormalization; Shape with a range), the highest they were written for, and the
# version of the file format that came with each.
FILE_FORMAT = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
LOWEST, HIGHEST = min(FILE_FORMAT), max(FILE_FORMAT)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under the operators' names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


class Emitter:
    """What is being written: nodes in order, initialisers, and the ONNX value that stands for each value of the graph."""

    def __init__(self, graph: Graph, opset: int) -> None:
        self.graph = with_captures(graph)
        self.opset = opset
        self.nodes: list[onnx_ir.Node] = []
        self.prologue: list[onnx_ir.Node] = []  # sizes, computed once in front of everything else
        self.weights: dict[str, Weight] = {}
        self.stored: dict[Hashable, onnx_ir.Value] = {}  # initialisers, which every body sees
        self.cache: MutableMapping[
            Hashable, onnx_ir.Value
        ] = {}  # results of nodes, which bodies see and what is around them does not
        self.sizes = SizeCompiler(self)
        self._values: dict[Value, onnx_ir.Value] = {}
        self._names: set[str] = set()

    def emit(self) -> onnx_ir.Model:
        """Write the whole graph. The tensors that it reads are in `weights` then, by name.

        :raises SutureError: ONNX_EXPORT, if an operator has no rule or the operator set cannot express it
        """
        import onnx_ir as ir

        from suture.backends.onnx import rules  # noqa: F401  (fills the table)

        for parameter in self.graph.parameters.values():
            if parameter.data.device.type == "meta" and (parameter.uses or parameter.is_graph_output()):
                raise SutureError(
                    Code.ONNX_EXPORT,
                    f"{parameter} has a shape but no numbers",
                    where=self.graph.name,
                    remedy="load its weights first",
                )
        self._names |= {value.name for value in self.graph.inputs} | set(self.graph.output_names)
        inputs = []
        for value in self.graph.inputs:
            made = ir.Value(name=value.name)
            self._describe(made, value.type)
            self._values[value] = made
            inputs.append(made)
        for node in self.graph.nodes:
            self._emit_node(node)
        outputs = self._outputs(inputs)
        live, reached = _reachable([*self.prologue, *self.nodes], outputs)
        self.weights = {name: weight for name, weight in self.weights.items() if weight.value in reached}
        made_graph = ir.Graph(
            inputs, outputs, nodes=live, opset_imports={"": self.opset}, name=self.graph.name or "graph"
        )
        return ir.Model(made_graph, ir_version=FILE_FORMAT[self.opset], producer_name="suture")

    def body(self, graph: Graph) -> onnx_ir.Graph:
        """Write a body as a graph without inputs; its weights and sizes stand outside."""
        import onnx_ir as ir

        around, self.nodes = self.nodes, []
        kept, self.cache = self.cache, ChainMap({}, self.cache)
        for node in graph.nodes:
            self._emit_node(node)
        outputs: list[onnx_ir.Value] = []
        for value, name in zip(graph.outputs, graph.output_names, strict=True):
            made = self.read(value)
            if made.producer() not in self.nodes or any(made is other for other in outputs):
                (made,) = self.add("Identity", [made], {})
                made.name = self.fresh(name)
                self.nodes[-1].name = self.fresh(f"{name}/Identity")
            self._describe(made, value.type)
            outputs.append(made)
        live, _ = _reachable(self.nodes, outputs)
        self.nodes, self.cache = around, kept
        return ir.Graph([], outputs, nodes=live, name=self.fresh(graph.name or "body"))

    def read(self, value: Value) -> onnx_ir.Value:
        """The ONNX value that stands for a value of the graph; a parameter becomes an initialiser when first read."""
        if value not in self._values:
            if not isinstance(value, Parameter):
                raise SutureError(
                    Code.GRAPH, f"{value} is read before it exists", where=self.graph.name, remedy="sort the graph"
                )
            tensor = value.data
            self._values[value] = self.initialiser(value.name, tensor.dtype, tuple(tensor.shape), lambda: tensor)
        return self._values[value]

    def initialiser(
        self,
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        make: Callable[[], torch.Tensor],
    ) -> onnx_ir.Value:
        """A tensor of the file. It is made when it is written, so that no two copies of the weights live at once."""
        import onnx_ir as ir

        onnx_type(dtype, name)  # refuses what ONNX does not have
        weight = Weight(ir.Value(name=self.fresh(name)), dtype, shape, make)
        self.weights[weight.name] = weight
        return weight.value

    def constant(self, tensor: torch.Tensor) -> onnx_ir.Value:
        """A small constant; equal ones are one initialiser."""
        flat = tensor.detach().contiguous().reshape(-1)
        key = ("constant", tensor.dtype, tuple(tensor.shape), bytes(flat.view(torch.uint8).numpy().data))
        if key not in self.stored:
            self.stored[key] = self.initialiser(scalar_name(tensor), tensor.dtype, tuple(tensor.shape), lambda: tensor)
        return self.stored[key]

    def add(
        self,
        operator: str,
        inputs: Sequence[onnx_ir.Value | None],
        attributes: dict[str, object],
        results: int = 1,
        *,
        early: bool = False,
    ) -> tuple[onnx_ir.Value, ...]:
        """Append an ONNX node.

        :param early: whether it belongs to the sizes in front
        """
        import onnx_ir as ir

        operands = list(inputs)
        while operands and operands[-1] is None:
            operands.pop()
        made = ir.node(operator, operands, attributes, num_outputs=results)  # type: ignore[arg-type]
        (self.prologue if early else self.nodes).append(made)
        return tuple(made.outputs)

    def fresh(self, base: str) -> str:
        """A name that nothing in the file has yet."""
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        return name

    def _emit_node(self, node: Node) -> None:
        from suture.backends.onnx.lowering import Lowering

        found = RULES.get(node.operator.name)
        if found is None:
            raise SutureError(
                Code.ONNX_EXPORT,
                f"no rule writes the operator {node.operator.name} as ONNX",
                where=node.where(),
                remedy="replace it by operators that have one",
            )
        start = len(self.nodes)
        results = found(Lowering(self, node))
        listed = list(results) if isinstance(results, Sequence) else [results]
        for value, made in zip(node.outputs, listed, strict=True):
            self._values[value] = made
            if made.name is None:
                made.name = self.fresh(value.name)
                self._describe(made, value.type)
        for made_node in self.nodes[start:]:
            made_node.name = self.fresh(f"{node.path or node.outputs[0].name}/{made_node.op_type}")
            for made in made_node.outputs:
                made.name = made.name or self.fresh(f"{node.outputs[0].name}/{made_node.op_type}")

    def _outputs(self, inputs: Sequence[onnx_ir.Value]) -> list[onnx_ir.Value]:
        """The results under the names that the graph gives them; one that is an input, a parameter or returned twice is copied."""
        outputs: list[onnx_ir.Value] = []
        taken = {value.name for value in inputs}
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            made = self.read(value)
            if made.producer() is None or any(made is other for other in outputs):
                (made,) = self.add("Identity", [made], {})
                self.nodes[-1].name = self.fresh(f"{name}/Identity")
            made.name = name if name not in taken else self.fresh(name)
            taken.add(made.name)
            self._describe(made, value.type)
            outputs.append(made)
        return outputs

    def _describe(self, made: onnx_ir.Value, type_: TensorType) -> None:
        import onnx_ir as ir

        made.type = ir.TensorType(onnx_type(type_.dtype, self.graph.name))
        made.shape = ir.Shape([dim if isinstance(dim, int) else str(dim) for dim in type_.shape])


def _reachable(
    nodes: Sequence[onnx_ir.Node], outputs: Sequence[onnx_ir.Value]
) -> tuple[list[onnx_ir.Node], set[onnx_ir.Value]]:
    """The nodes that the outputs depend on, in order, and every value that these read."""
    reached = set(outputs)
    live: list[onnx_ir.Node] = []
    for node in reversed(nodes):
        if any(value in reached for value in node.outputs):
            live.append(node)
            reached |= set(_reads(node))
    return live[::-1], reached


def _reads(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """The values that a node reads, those in its bodies among them."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            body = attribute.as_graph()
            yield from body.outputs
            for inner in body:
                yield from _reads(inner)
