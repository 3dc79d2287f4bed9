"""The emitter: it walks a graph once and writes ONNX nodes, one rule per operator.

A rule is a function from a `Lowering` (one node on its way to ONNX) to the ONNX values of its results; `@rule("relu")` enters it into the
table. The emitter keeps what rules share: initialisers, constants, sizes, casts and masks, each made once.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from suture.backends.onnx.held import Held, rows_of, works_on_rows
from suture.backends.onnx.profile import PROFILES, Profile
from suture.backends.onnx.row_regions import gemm_layers, integer_layers
from suture.backends.onnx.sizes import SizeCompiler
from suture.backends.onnx.weights import Weight, onnx_type, scalar_name
from suture.ir.bodies import with_captures
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.sizes import Dim
from suture.ir.types import TensorType

if TYPE_CHECKING:
    import onnx_ir

    from suture.backends.onnx.lowering import Lowering

Rule: TypeAlias = "Callable[[Lowering], onnx_ir.Value | Held | Sequence[onnx_ir.Value | Held]]"
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

    def __init__(self, graph: Graph, opset: int, profile: Profile = PROFILES["portable"]) -> None:
        from suture.backends.onnx.rules.fused import fused_where_possible

        self.graph = with_captures(fused_where_possible(graph, opset, profile))
        self.opset = opset
        self.profile = profile
        self.choices = profile.choices
        self.domains = {"": opset}  # the operator sets that the file imports
        self.nodes: list[onnx_ir.Node] = []
        self.prologue: list[onnx_ir.Node] = []  # sizes, computed once in front of everything else
        self.weights: dict[str, Weight] = {}
        self.stored: dict[Hashable, onnx_ir.Value] = {}  # initialisers, which every body sees
        self.cache: MutableMapping[
            Hashable, onnx_ir.Value
        ] = {}  # results of nodes, which bodies see and what is around them does not
        self.sizes = SizeCompiler(self)
        self._equal: dict[Hashable, list[tuple[torch.Tensor, onnx_ir.Value]]] = {}
        self._values: dict[Value, onnx_ir.Value] = {}
        self._held: dict[Value, Held] = {}
        self.gemm_layers = integer_layers(self.graph)
        if self.choices.linear == "gemm":
            self.gemm_layers |= gemm_layers(self.graph)
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
        made_graph = ir.Graph(inputs, outputs, nodes=live, opset_imports=self.domains, name=self.graph.name or "graph")
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
        if value in self._held:
            return self.viewed(value, value.shape)
        if value not in self._values:
            if not isinstance(value, Parameter):
                raise SutureError(
                    Code.GRAPH, f"{value} is read before it exists", where=self.graph.name, remedy="sort the graph"
                )
            self._values[value] = self._stored(value)
        return self._values[value]

    def held(self, value: Value) -> Held:
        """A value as it stands in the file, under whatever shape."""
        return self._held.get(value) or Held(self.read(value), value.shape)

    def viewed(self, value: Value, shape: tuple[Dim, ...]) -> onnx_ir.Value:
        """A value under a shape: as it is held, or by one Reshape of what it is a view of; made once."""
        from suture.backends.onnx.lowering import reshape

        root = self._viewed_from(value)
        found = self._held.get(root) or Held(self._plain(root), root.shape)
        if found.shape == shape:
            return found.value
        if shape == value.shape and value in self._values:
            return self._values[value]
        key = ("viewed", root, shape)
        if key not in self.cache:
            self.cache[key] = reshape(self, found.value, found.shape, shape)
        return self.cache[key]

    def _viewed_from(self, value: Value) -> Value:
        """The value that this one is a view of, by reshapes alone."""
        root = value
        while (view := root.producer) is not None and view.operator.name == "reshape" and root not in self._held:
            source = view.inputs[0]
            assert source is not None
            root = source
        return root

    def rows(self, value: Value) -> onnx_ir.Value:
        """A value as a matrix of its rows."""
        return self.viewed(value, rows_of(value))

    def is_held_as_rows(self, value: Value) -> bool:
        """Whether a value, or what it is a view of, stands in the file as the matrix of its rows."""
        root = self._viewed_from(value)
        return (self._held[root].shape if root in self._held else root.shape) == rows_of(value)

    def _plain(self, value: Value) -> onnx_ir.Value:
        return self._held[value].value if value in self._held else self.read(value)

    def _stored(self, parameter: Parameter) -> onnx_ir.Value:
        """The initialiser of a parameter; parameters that hold the same, bit for bit, are one."""
        tensor = parameter.data
        key = ("tensor", tensor.dtype, tuple(tensor.shape), _beginning(tensor))
        equal = self._equal.setdefault(key, [])
        for other, made in equal:
            if _same_bits(other, tensor):
                return made
        made = self.initialiser(parameter.name, tensor.dtype, tuple(tensor.shape), lambda: tensor)
        equal.append((tensor, made))
        return made

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
        domain: str = "",
        early: bool = False,
    ) -> tuple[onnx_ir.Value, ...]:
        """Append an ONNX node.

        :param domain: the operator's domain; ONNX's own by default
        :param early: whether it belongs to the sizes in front
        """
        import onnx_ir as ir

        operands = list(inputs)
        while operands and operands[-1] is None:
            operands.pop()
        if domain:
            self.domains[domain] = 1
        made = ir.node(operator, operands, attributes, domain=domain, num_outputs=results)  # type: ignore[arg-type]
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
        by_rows = self._by_rows(node)
        results = found(Lowering(self, node, rows=by_rows))
        listed = list(results) if isinstance(results, Sequence) else [results]
        for value, made in zip(node.outputs, listed, strict=True):
            held = made if isinstance(made, Held) else Held(made, rows_of(value) if by_rows else value.shape)
            if held.shape == value.shape:
                self._values[value] = held.value
            else:
                self._held[value] = held
            if held.value.name is None:
                held.value.name = self.fresh(value.name if held.shape == value.shape else f"{value.name}.rows")
                self._describe(held.value, TensorType(value.dtype, held.shape))
        for made_node in self.nodes[start:]:
            made_node.name = self.fresh(f"{node.path or node.outputs[0].name}/{made_node.op_type}")
            for made in made_node.outputs:
                made.name = made.name or self.fresh(f"{node.outputs[0].name}/{made_node.op_type}")

    def _by_rows(self, node: Node) -> bool:
        """Whether a node is written on matrices of rows: it maps each row by itself, and an operand is held so."""
        if not works_on_rows(node):
            return False
        shape = node.outputs[0].shape
        return any(self.is_held_as_rows(value) for value in node.inputs if value is not None and value.shape == shape)

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


def _beginning(tensor: torch.Tensor) -> bytes:
    """The first bytes of a tensor: what tells most tensors apart."""
    first = tensor.detach().reshape(-1)[:16].contiguous().cpu()
    return bytes(first.view(torch.uint8).numpy().data) if first.numel() else b""


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a is b or (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
        return True
    return torch.equal(
        a.detach().contiguous().reshape(-1).view(torch.uint8), b.detach().contiguous().reshape(-1).view(torch.uint8)
    )


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
