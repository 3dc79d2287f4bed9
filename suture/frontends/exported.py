"""An exported program becomes a graph: its nodes in order, each by the rule of its operator."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from suture.frontends.aliasing import written_argument
from suture.frontends.aten import RULES, AtenCall, Untranslatable
from suture.frontends.aten.rule import find_rule
from suture.frontends.symbols import SymbolTable, same_size
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.sizes import Size
from suture.ir.types import Attribute, TensorType

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

_PRODUCTS = {
    "linear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention",
}  # fmt: skip
_DROPPED = {
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}


class Missing:
    """Stands for a value that has no place in a graph, with the reason, until something reads it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Translator:
    """Walks the nodes of an exported program and of the modules wrapped inside it."""

    def __init__(self, graph: Graph, sizes: SymbolTable) -> None:
        self.graph = graph
        self.sizes = sizes

    def run(self, module: GraphModule, bound: Sequence[Any]) -> list[Any]:
        """Translate a module whose placeholders stand for `bound`; returns what it returns, flattened."""
        environment: dict[Node, Any] = {}
        names: dict[Node, Node] = {}  # nodes that stand for one tensor object, by the first of them
        placeholders = iter(bound)
        for node in module.graph.nodes:
            names[node] = node
            match node.op:
                case "placeholder":
                    environment[node] = next(placeholders)
                case "get_attr":
                    environment[node] = getattr(module, str(node.target), None)
                case "call_function":
                    written = written_argument(node)
                    if written is not None and isinstance(environment[names[written]], Parameter):
                        raise SutureError(
                            Code.EXPORT, f"the module writes to its tensor {environment[names[written]].name} while it runs",
                            where=module_path(node) or self.graph.name, remedy="return the new value instead: a graph keeps no state",
                        )  # fmt: skip
                    result = self._call(node, lambda it: environment[names[it]])
                    if written is None:
                        environment[node] = result
                    else:
                        names[node] = names[written]
                        environment[names[node]] = result
                case "output":
                    flat = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
                    return [environment[names[item]] if isinstance(item, torch.fx.Node) else item for item in flat]
        return []

    def _call(self, node: Node, look_up: Any) -> Any:
        example = node.meta.get("val")
        if isinstance(example, bool | int | torch.SymInt | torch.SymBool | torch.SymFloat | float):
            return self._number(node, example)
        if node.target is operator.getitem:
            source = look_up(node.args[0])
            return source[int(str(node.args[1]))] if isinstance(source, Sequence) else source
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._inline(node, look_up)
        if not isinstance(node.target, torch._ops.OpOverload):
            raise SutureError(
                Code.EXPORT,
                f"no meaning is known for {node.target}",
                where=module_path(node),
                remedy="use torch operators",
            )
        if node.target._schema.name.split("::")[-1] in _DROPPED or example is None:
            return None
        return self._operator(node, look_up, example)

    def _number(self, node: Node, example: Any) -> Any:
        if isinstance(example, torch.SymBool | torch.SymFloat | float):
            return example if isinstance(example, float) else Missing(f"the number {node.name} is computed from sizes")
        try:
            return self.sizes.size(example)
        except SutureError as error:
            return Missing(error.what)

    def _inline(self, node: Node, look_up: Any) -> Any:
        """Wrappers that only set a mode are their body."""
        name = str(node.target)
        skipped = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(name)
        if skipped is None:
            raise SutureError(
                Code.EXPORT, f"the module uses {name}, which a graph cannot hold", where=module_path(node),
                remedy="write the branch as torch.where, or trace the branch that is taken",
            )  # fmt: skip
        body, *rest = node.args[skipped:]
        arguments = [look_up(item) if isinstance(item, torch.fx.Node) else item for item in rest]
        assert isinstance(body, torch.fx.Node)
        return self.run(look_up(body), arguments)

    def _operator(self, node: Node, look_up: Any, example: Any) -> Any:
        target: Any = node.target
        schema = target._schema
        examples = list(example) if isinstance(example, tuple | list) else [example]
        path = module_path(node)
        arguments = self._arguments(node, look_up)
        name = str(schema.name.split("::")[-1])
        if name not in RULES and name.endswith("_") and not name.endswith("__"):
            name = name.removesuffix("_")
        overload = str(schema.overload_name or "default")
        mark = len(self.graph)
        results: list[Any] | None = None
        try:
            if target.namespace == "suture":
                self.sizes.measure(examples, "groups")
            types = tuple(self._type(item) for item in examples)
            rule = find_rule(name, overload) if target.namespace in ("aten", "suture") else None
            if rule is not None:
                made = rule(AtenCall(self.graph, name, overload, arguments, types, path))
                results = [made] if isinstance(made, Value) else list(made)
                results = [self._reconcile(value, item) for value, item in zip(results, examples, strict=True)]
        except Untranslatable:
            results = None
        except SutureError as error:
            # torch.export lets a product of mixed element types pass, which torch then refuses to run.
            refused = error.code is Code.DTYPE and name in _PRODUCTS
            if error.code is Code.EXPORT or refused:
                remedy = "give inputs of the weights' type" if refused else error.remedy
                raise SutureError(error.code, error.what, where=path or schema.name, remedy=remedy) from None
            results = None
        if results is None:
            for added in reversed(self.graph.nodes[mark:]):
                self.graph.remove(added)
            results = self._fixed(node, arguments, examples) or self._opaque(node, arguments, examples, path)
        return results[0] if isinstance(example, torch.Tensor) else results

    def _arguments(self, node: Node, look_up: Any) -> dict[str, Any]:
        """The call's arguments by the names of its schema."""

        def resolve(item: Any) -> Any:
            if isinstance(item, torch.fx.Node):
                found = look_up(item)
                if isinstance(found, Missing):
                    raise SutureError(
                        Code.EXPORT, found.reason, where=module_path(node), remedy="make fewer dimensions dynamic"
                    )
                return found
            if isinstance(item, list | tuple):
                return [resolve(part) for part in item]
            return item

        target: Any = node.target
        arguments: dict[str, Any] = {}
        for index, argument in enumerate(target._schema.arguments):
            if index < len(node.args) and not argument.kwarg_only:
                arguments[argument.name] = resolve(node.args[index])
            elif argument.name in node.kwargs:
                arguments[argument.name] = resolve(node.kwargs[argument.name])
            else:
                arguments[argument.name] = argument.default_value if argument.has_default_value() else None
        return arguments

    def _type(self, example: Any) -> TensorType | None:
        return TensorType(example.dtype, self.sizes.shape(example)) if isinstance(example, torch.Tensor) else None

    def _reconcile(self, value: Value | None, example: Any) -> Value | Missing:
        """Hold a result against what torch says it is; sizes that agree but read otherwise are read as the graph has them."""
        if value is None:
            return Missing("the places of a pool's maxima have no operator")
        expected = self._type(example)
        assert expected is not None
        if value.rank != expected.rank:
            raise Untranslatable(f"{value.type} where torch has {expected}")
        for ours, theirs, size in zip(value.shape, expected.shape, example.shape, strict=True):
            if ours == theirs:
                continue
            if not same_size(ours, theirs):
                raise Untranslatable(f"{value.type} where torch has {expected}")
            self.sizes.learn(size, ours)
        if value.dtype != expected.dtype:
            return self.graph.add("cast", [value], {"dtype": expected.dtype}).output
        return value

    def _fixed(self, node: Node, arguments: Mapping[str, Any], examples: Sequence[Any]) -> list[Value] | None:
        """What depends on nothing at all is computed now and kept as a constant."""
        target: Any = node.target
        if (
            torch.Tag.nondeterministic_seeded in target.tags
            or len(examples) != 1
            or not isinstance(examples[0], torch.Tensor)
        ):
            return None
        flat = [part for item in arguments.values() for part in (item if isinstance(item, list) else [item])]
        if any(isinstance(part, Value | Size | Missing) for part in flat):
            return None
        known = {argument.name for argument in target._schema.arguments if argument.name != "device"}
        with torch.no_grad():
            tensor = target(**{name: item for name, item in arguments.items() if name in known})
        name = f"constant_{sum(p.role == 'constant' for p in self.graph.parameters.values())}"
        return [self.graph.add_parameter(name, tensor, "constant")]

    def _opaque(self, node: Node, arguments: Mapping[str, Any], examples: Sequence[Any], path: str) -> list[Any]:
        """Keep the operator as it is, with a template of its arguments."""
        target: Any = node.target
        operands: list[Value] = []
        sizes: list[Attribute] = []

        def template(item: Any) -> Any:
            match item:
                case Value():
                    operands.append(item)
                    return {"$": len(operands) - 1}
                case Size():
                    sizes.append(item)
                    return {"size": len(sizes) - 1}
                case torch.dtype() | torch.memory_format():
                    kind = "dtype" if isinstance(item, torch.dtype) else "memory_format"
                    return {kind: str(item).removeprefix("torch.")}
                case torch.device():
                    return {"device": str(item)}
                case torch.layout():
                    return {"layout": str(item)}
                case list() | tuple():
                    return [template(part) for part in item]
                case None | bool() | int() | float() | str():
                    return item
            raise SutureError(
                Code.EXPORT,
                f"{target} takes a {type(item).__name__}, which a graph cannot hold",
                where=path,
                remedy="pass tensors and numbers",
            )

        schema = target._schema
        positional = [template(arguments[a.name]) for a in schema.arguments if not a.kwarg_only]
        keywords = {a.name: template(arguments[a.name]) for a in schema.arguments if a.kwarg_only}
        text = json.dumps(
            {"args": positional, "kwargs": {name: item for name, item in keywords.items() if item is not None}}
        )
        types = [self._type(item) for item in examples]
        if any(type_ is None for type_ in types):
            raise SutureError(
                Code.EXPORT,
                f"{target} returns what is no tensor",
                where=path,
                remedy="leave it out of the traced module",
            )
        made = self.graph.add(
            "opaque", operands,
            {
                "target": str(target), "arguments": text, "dtypes": tuple(t.dtype for t in types if t is not None), "sizes": tuple(sizes),
            },
            shapes=[t.shape for t in types if t is not None], path=path,
        )  # fmt: skip
        return list(made.outputs)


def module_path(node: Node) -> str:
    """The path of the module that a node was traced in: `layers.0.self_attn`."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for entry, _ in stack.values():
        path = str(entry).split("@")[0]
    return path.removeprefix("L['self'].").removeprefix("L['self']")
