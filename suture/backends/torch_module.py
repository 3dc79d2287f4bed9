"""A graph as a PyTorch module: `to_torch` gives a `torch.fx.GraphModule` that runs, trains, saves and loads like the one that was traced."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from suture.backends import calling
from suture.backends.module_tree import COUNTER, adopt, build_tree, mode_child, part, place_of
from suture.backends.torch_calls import write_call
from suture.backends.torch_site import Argument, Site
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.operators.source import resolve_target
from suture.ir.sizes import Dim, Size, symbols_of
from suture.ir.text import parse_graph

_OPERATIONS: Mapping[type[ast.operator], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


class SutureModule(fx.GraphModule):
    """The module of a graph. It differs from its base in how it is pickled.

    A `GraphModule` is pickled as code, and loaded by tracing that code; but tracing computes what depends on no input then and there, and would turn
    modes and sizes into constants. This one is pickled as the text of its graph.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """The text of the graph and the tree of tensors; the code, where it was changed after the graph was written."""
        written = self.meta.get(_WRITTEN)
        if written is None or written["code"] != self.code:
            return super().__reduce__()
        root = nn.Module()
        adopt(root, self)
        root.training = self.training
        return _restore, (written["text"], root)


_WRITTEN = "suture"  # the key in a module's `meta`, which copies keep


def to_torch(graph: Graph) -> fx.GraphModule:
    """A module that computes the graph, in evaluation mode.

    Its parameters and buffers have the names they had in the traced module, tied ones included, and are the graph's own tensors, not copies.
    `train()` and `eval()` switch dropout and batch norm, of the whole or of one submodule.

    :raises SutureError: TORCH, if the graph cannot become a module
    """
    return _module(graph, build_tree(graph)).eval()


def _module(graph: Graph, root: nn.Module) -> SutureModule:
    code = _Writer(graph, root).write()
    code.lint()
    module = SutureModule(root, code, class_name=graph.name if graph.name.isidentifier() else "GraphModule")
    adopt(module, root)
    module.meta[_WRITTEN] = {"text": str(graph), "code": module.code}
    return module


def _restore(text: str, root: nn.Module) -> SutureModule:
    module = _module(parse_graph(text), root)
    module.training = root.training
    return module


class _Writer:
    """Writes one graph as fx code."""

    def __init__(self, graph: Graph, root: nn.Module) -> None:
        self.graph = graph
        self.root = root
        self.code = fx.Graph()
        self.values: dict[Value, fx.Node] = {}
        self.sizes: dict[str, Argument] = {}  # by the text of the size
        self.flags: dict[str, fx.Node] = {}  # by the path of the part that trains or does not
        self.mode = ""

    def write(self) -> fx.Graph:
        tensors = calling.write_inputs(self.code, self.graph)
        self.values.update(zip(self.graph.inputs, tensors, strict=True))
        self._bind_symbols()
        for node in self.graph.nodes:
            self._write_node(node)
        calling.write_output(self.code, self.graph, [self._value(value) for value in self.graph.outputs])
        return self.code

    def _write_node(self, node: Node) -> None:
        site = Site(
            self.code,
            node,
            [None if value is None else self._value(value) for value in node.inputs],
            {name: self._attribute(value) for name, value in node.attributes.items()},
            [tuple(self._size(dim) for dim in value.shape) for value in node.outputs] if _needs_shapes(node) else [],
            lambda: self._training(node),
            self._device,
        )
        result = write_call(site)
        # what was just written is renamed, so that the code reads with the graph's names
        result._rename(node.outputs[0].name if len(node.outputs) == 1 else node.operator.name)
        if len(node.outputs) == 1 and not _returns_a_tuple(node):
            self.values[node.outputs[0]] = result
            return
        for value in node.outputs:
            if value.uses or value.is_graph_output():
                self.values[value] = self.code.call_function(operator.getitem, (result, value.index))
                self.values[value]._rename(value.name)

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
            self.flags[path] = self.code.call_module(path)
            self.flags[path]._rename(f"{path.replace('.', '_')}_training")
        if found is None and counts and COUNTER in self.root._buffers:
            self.code.call_method("add_", (self.code.get_attr(COUNTER), self.flags[path]))
        return self.flags[path]

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

    def _bind_symbols(self) -> None:
        """Read symbolic sizes off the inputs' shapes: where a dimension is `a*symbol + b`, solve for the symbol."""
        waiting = [
            (value, axis, dim) for value in self.graph.inputs for axis, dim in enumerate(value.shape) if symbols_of(dim)
        ]
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


def _needs_shapes(node: Node) -> bool:
    return node.operator.declared or node.operator.name in {"layer_norm"}


def _returns_a_tuple(node: Node) -> bool:
    """Whether a node of one result comes as a tuple of one."""
    if node.operator.name == "opaque":
        returns = resolve_target(str(node.attributes["target"]))._schema.returns
        return len(returns) != 1 or str(returns[0].type) != "Tensor"
    return node.operator.name == "split"
