"""Writing a graph as `torch.fx` code: values as fx nodes, sizes read off the inputs, and a module of its own for every body of a branch."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from suture.backends import calling
from suture.backends.module_tree import COUNTER, fresh_child, mode_child, part, place_of
from suture.backends.torch_calls import write_call
from suture.backends.torch_choice import Choice
from suture.backends.torch_site import Argument, Site
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.operators.source import resolve_target
from suture.ir.sizes import Dim, Size, symbols_of

_OPERATIONS: Mapping[type[ast.operator], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


class GraphWriter:
    """Writes one graph as fx code.

    :param root: the tree that holds the graph's tensors
    :param bodies: the module that is to hold the bodies of branches
    :param prefix: how the code refers to that module
    """

    def __init__(self, graph: Graph, root: nn.Module, bodies: nn.Module, prefix: str = "") -> None:
        self.graph = graph
        self.root = root
        self.bodies = bodies
        self.prefix = prefix
        self.code = fx.Graph()
        self.values: dict[Value, fx.Node] = {}
        self.taken: dict[fx.Node, fx.Node] = {}  # what a body takes from the code around it -> its argument
        self.sizes: dict[str, Argument] = {}  # by the text of the size
        self.flags: dict[str, fx.Node] = {}  # by the path of the part that trains or does not
        self.held: dict[str, fx.Node] = {}  # by path
        self.mode = ""

    def write(self) -> fx.Graph:
        """Write the whole graph."""
        tensors = calling.write_inputs(self.code, self.graph)
        self.values.update(zip(self.graph.inputs, tensors, strict=True))
        self._bind_symbols(self.graph.inputs)
        for node in self.graph.nodes:
            self._write_node(node)
        calling.write_output(self.code, self.graph, [self._value(value) for value in self.graph.outputs])
        return self.code

    def _write_node(self, node: Node) -> None:
        result = self._write_branch(node) if node.bodies else self._write_call(node)
        # what was just written is renamed, so that the code reads with the graph's names
        result._rename(node.outputs[0].name if len(node.outputs) == 1 else node.operator.name)
        if len(node.outputs) == 1 and not _returns_a_tuple(node):
            self.values[node.outputs[0]] = result
            return
        for value in node.outputs:
            if value.uses or value.is_graph_output() or node.operator.measures:
                self.values[value] = self.code.call_function(operator.getitem, (result, value.index))
                self.values[value]._rename(value.name)
        if node.operator.measures:
            self._bind_symbols([value for value in node.outputs if value in self.values])

    def _write_branch(self, node: Node) -> fx.Node:
        """A choice between two modules without tensors: what they read are their arguments."""
        predicate = node.inputs[0]
        assert predicate is not None
        modules: list[fx.GraphModule] = []
        read: list[tuple[fx.Node, ...]] = []
        for name in ("then", "otherwise"):
            writer = _BodyWriter(node.bodies[name], self)
            code = writer.write()
            code.lint()
            modules.append(fx.GraphModule(writer.bodies, code, class_name="Body"))
            read.append(tuple(writer.arguments))
        title = fresh_child(self.bodies, node.outputs[0].name.replace(".", "_"))
        self.bodies.add_module(title, Choice(*modules))
        return self.code.call_module(self.prefix + title, (self._value(predicate), *read))

    def _write_call(self, node: Node) -> fx.Node:
        site = Site(
            self.code,
            node,
            [None if value is None else self._value(value) for value in node.inputs],
            {name: self._attribute(value) for name, value in node.attributes.items()},
            [tuple(self._size(dim) for dim in value.shape) for value in node.outputs] if _needs_shapes(node) else [],
            lambda: self._training(node),
            self._device,
        )
        return write_call(site)

    def _value(self, value: Value) -> fx.Node:
        if value not in self.values:
            if not isinstance(value, Parameter):
                raise SutureError(
                    Code.TORCH, f"{value} is read before it is computed", where=self.graph.name, remedy="sort the graph"
                )
            name = place_of(value)
            self.values[value] = self.code.create_node("get_attr", name, name=name.replace(".", "_"))
        return self.values[value]

    def _training(self, node: Node) -> fx.Node:
        """Whether the module that a node comes from trains: asked of the part of the tree that stands for it."""
        path, counts = node.path, False
        if node.operator.name == "batch_norm" and len(node.inputs) > 3 and node.inputs[3] is not None:
            path, _, _ = node.inputs[3].name.rpartition(".")  # the module that holds the running mean
            counts = True
        found = part(self.root, path) if path else None
        if found is None:
            path = self._root_mode()
        if found is not None and counts:
            found.counts = True
        if path not in self.flags or counts:  # a norm that runs twice counts twice
            self.flags[path] = self._asked(path)
            self.flags[path]._rename(f"{path.replace('.', '_')}_training")
        if found is None and counts and COUNTER in self.root._buffers:
            self.code.call_method("add_", (self._held(COUNTER), self.flags[path]))
        return self.flags[path]

    def _asked(self, path: str) -> fx.Node:
        """Write the question whether the part at a path trains."""
        return self.code.call_module(path)

    def _held(self, path: str) -> fx.Node:
        """Write a reference to what the tree holds at a path."""
        if path not in self.held:
            self.held[path] = self.code.get_attr(path)
        return self.held[path]

    def _root_mode(self) -> str:
        if not self.mode:
            self.mode = mode_child(self.root)
        return self.mode

    def _device(self) -> Argument:
        """The device that new tensors belong on: that of the first input, so that a module may move."""
        if not self.graph.inputs:
            return torch.device("cpu")
        if "device" not in self.flags:
            self.flags["device"] = self.code.call_function(getattr, (self.values[self.graph.inputs[0]], "device"))
        return self.flags["device"]

    def _attribute(self, value: Any) -> Argument:
        if isinstance(value, Size):
            return self._size(value)
        if isinstance(value, tuple):
            return tuple(self._attribute(item) for item in value)
        return value

    def _bind_symbols(self, values: Sequence[Value]) -> None:
        """Read symbolic sizes off the shapes of values: where a dimension is `a*symbol + b`, solve for the symbol."""
        waiting = [(value, axis, dim) for value in values for axis, dim in enumerate(value.shape) if symbols_of(dim)]
        waiting.sort(key=lambda item: len(str(item[2])))
        for value, axis, dim in waiting:
            unknown = [name for name in symbols_of(dim) if name not in self.sizes]
            if len(unknown) != 1 or not isinstance(dim, Size):
                continue
            terms = dict(dim.terms)
            factor = terms.pop((unknown[0],), 0)
            if factor == 0 or set(terms) - {()}:
                continue
            found: Argument = self.code.call_method("size", (self.values[value], axis))
            if terms:
                found = self.code.call_function(operator.sub, (found, terms[()]))
            if factor != 1:
                found = self.code.call_function(operator.floordiv, (found, factor))
            found._rename(unknown[0])
            self.sizes[unknown[0]] = found

    def _size(self, dim: Dim) -> Argument:
        if isinstance(dim, int):
            return dim
        text = str(dim)
        if text not in self.sizes:
            self.sizes[text] = self._arithmetic(ast.parse(text, mode="eval").body)
        return self.sizes[text]

    def _arithmetic(self, tree: ast.expr) -> Argument:
        text = ast.unparse(tree)
        if text in self.sizes:
            return self.sizes[text]
        match tree:
            case ast.Constant(value=int(number)):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                result = self.code.call_function(operator.neg, (self._arithmetic(inner),))
            case ast.BinOp(left=left, op=sign, right=right):
                result = self.code.call_function(
                    _OPERATIONS[type(sign)], (self._arithmetic(left), self._arithmetic(right))
                )
            case ast.Call(func=ast.Name(id=name), args=[left, right]):
                function = torch.sym_max if name == "max" else torch.sym_min
                result = self.code.call_function(function, (self._arithmetic(left), self._arithmetic(right)))
            case _:
                raise SutureError(
                    Code.TORCH, f"the size {text} follows from no input's shape", where=self.graph.name,
                    remedy="give it an input that has it as a dimension",
                )  # fmt: skip
        self.sizes[text] = result
        return result


class _BodyWriter(GraphWriter):
    """Writes a body of a branch. What it reads of the code around it are its arguments: values, sizes, and the parts that know whether they train."""

    def __init__(self, body: Graph, around: GraphWriter) -> None:
        super().__init__(body, around.root, nn.Module())
        self.around = around
        self.arguments: list[fx.Node] = []  # nodes of the code around
        self.last: fx.Node | None = None

    def write(self) -> fx.Graph:
        """Write the body; `arguments` then says what it is called with."""
        for node in self.graph.nodes:
            self._write_node(node)
        calling.write_output(self.code, self.graph, [self._value(value) for value in self.graph.outputs])
        return self.code

    def _argument(self, outside: fx.Node) -> fx.Node:
        """The argument that holds what a node of the code around gives."""
        found = self.taken.get(outside)
        if found is None:
            place = self.code.inserting_after(self.last) if self.last else self.code.inserting_before(None)
            with place:
                found = self.last = self.taken[outside] = self.code.placeholder(outside.name)
            self.arguments.append(outside)
        return found

    def _value(self, value: Value) -> fx.Node:
        if value in self.values:
            return self.values[value]
        return self._argument(self.around._value(value))

    def _size(self, dim: Dim) -> Argument:
        size = self.around._size(dim)
        return self._argument(size) if isinstance(size, fx.Node) else size

    def _device(self) -> Argument:
        device = self.around._device()
        return self._argument(device) if isinstance(device, fx.Node) else device

    def _held(self, path: str) -> fx.Node:
        return self._argument(self.around._held(path))

    def _asked(self, path: str) -> fx.Node:
        return self.code.call_method("forward", (self._held(path),))

    def _root_mode(self) -> str:
        return self.around._root_mode()


def _needs_shapes(node: Node) -> bool:
    return (node.operator.declared and not node.operator.measures) or node.operator.name in {"layer_norm"}


def _returns_a_tuple(node: Node) -> bool:
    """Whether a node of one result comes as a tuple of one."""
    if node.operator.name == "opaque":
        returns = resolve_target(str(node.attributes["target"]))._schema.returns
        return len(returns) != 1 or str(returns[0].type) != "Tensor"
    return node.operator.name == "split"
