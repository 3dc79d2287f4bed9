"""`trace`: a PyTorch module becomes a graph, by `torch.export` and a normaliser of our own.

The module is exported non-strictly, in evaluation mode and before core decomposition, so that a layer stays one operator. What then differs between
two ways to write the same thing is made one: in-place operators are functional, views are `reshape`, guards are gone, sizes are polynomials of the
names that the user gave. Dropout and batch norm stay what they are, so the graph can train.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Structure, Value
from suture.ir.types import TensorType

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from suture.frontends.dynamic import Dynamic, Inputs


def trace(
    module: nn.Module,
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = None,
    name: str | None = None,
) -> Graph:
    """Trace a module into a graph. Parameters are shared with the module, not copied.

    :param args: positional arguments to trace with; a lone tensor stands for one
    :param kwargs: keyword arguments to trace with
    :param dynamic: which dimensions vary, and what they are called: `{"x": {0: "batch"}}`, or one entry per argument; equal names are equal sizes
    :param name: what to call the graph; the module's class if None
    :raises SutureError: MODULE, DYNAMIC or EXPORT, if the arguments do not fit or the module cannot be exported
    """
    from suture.frontends.aliasing import writes_through_views
    from suture.frontends.canonical import canonicalise
    from suture.frontends.dynamic import Inputs
    from suture.frontends.exporting import export

    if not isinstance(module, nn.Module):
        raise SutureError(Code.MODULE, f"{type(module).__name__} is no torch module", remedy="pass an nn.Module")
    positional = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    positional, keywords = _told_apart((positional, dict(kwargs or {})))
    inputs = Inputs(module, positional, keywords, dynamic)
    inputs.symbols()
    program = export(module, inputs)
    if writes_through_views(program.graph_module):
        program = program.run_decompositions({})
    graph = build(module, program, inputs)
    graph.name = name or type(module).__name__
    canonicalise(graph)
    graph.remove_dead()
    name_results(graph, {path for path, part in module.named_modules() if not any(True for _ in part.children())})
    return graph


def build(module: nn.Module, program: ExportedProgram, inputs: Inputs) -> Graph:
    """Build the graph of an exported program, as it stands."""
    from suture.frontends.exported import Missing, Translator
    from suture.frontends.symbols import SymbolTable

    graph = Graph(type(module).__name__)
    graph.source = f"{type(module).__module__}.{type(module).__qualname__}"
    graph.hints = inputs.symbols()
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    kinds = [spec.kind.name for spec in specs]
    examples = {
        node.name: node.meta["val"] for node, kind in zip(placeholders, kinds, strict=True) if kind == "USER_INPUT"
    }
    tensors = {key: value for key, value in examples.items() if isinstance(value, torch.Tensor)}
    sizes = SymbolTable(inputs.resolve(_by_leaf(inputs, tensors)))
    names = dict(zip(tensors, _by_leaf(inputs, tensors), strict=True))
    fixed: dict[int, Any] = {}
    bound: list[Any] = []
    for position, node in enumerate(
        node for node, kind in zip(placeholders, kinds, strict=True) if kind == "USER_INPUT"
    ):
        example = examples[node.name]
        if isinstance(example, torch.Tensor):
            bound.append(graph.add_input(names[node.name], TensorType(example.dtype, sizes.shape(example))))
        else:
            fixed[position] = _plain(example, f"argument {node.name}")
            bound.append(example)
    held = add_tensors(graph, module)
    lifted = {**program.state_dict, **program.constants}
    user_inputs = iter(bound)
    values: list[Any] = []
    for spec, kind in zip(specs, kinds, strict=True):
        if kind == "USER_INPUT":
            values.append(next(user_inputs))
        elif kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
            target = str(spec.target)
            values.append(
                held.get(target) or held.setdefault(target, graph.add_parameter(target, lifted[target], "constant"))
            )
        else:
            raise SutureError(
                Code.EXPORT, f"the module needs the object {spec.target}", where=graph.name, remedy="keep to tensors"
            )
    results = Translator(graph, sizes).run(program.graph_module, values)
    fixed_results: dict[int, Any] = {}
    outputs: list[Value] = []
    labels: list[str] = []
    written = len(results) - len(program.graph_signature.user_outputs)
    for position, (label, result) in enumerate(
        zip(output_names(program.call_spec.out_spec), results[written:], strict=True)
    ):
        if isinstance(result, Value):
            outputs.append(result)
            labels.append(label)
        elif isinstance(result, Missing):
            raise SutureError(
                Code.EXPORT, f"output {label} cannot be in a graph: {result.reason}", remedy="return something else"
            )
        else:
            fixed_results[position] = _plain(result, f"output {label}")
    graph.set_outputs(outputs, labels)
    graph.structure = Structure(
        _serialise(program.call_spec.in_spec), _serialise(program.call_spec.out_spec), inputs.names(), len(inputs.args), json.dumps(fixed),
        json.dumps(fixed_results),
    )  # fmt: skip
    return graph


def add_tensors(graph: Graph, module: nn.Module) -> dict[str, Value]:
    """Add every parameter and buffer of a module, used or not, under the first of its names; returns them by all their names."""
    by_name: dict[str, Value] = {}
    tensors: dict[int, tuple[str, torch.Tensor, str, bool, list[str]]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tensors.setdefault(id(parameter), (name, parameter, "parameter", True, []))[4].append(name)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        persistent = leaf not in module.get_submodule(owner)._non_persistent_buffers_set
        tensors.setdefault(id(buffer), (name, buffer, "buffer", persistent, []))[4].append(name)
    for name, tensor, role, persistent, called in tensors.values():
        value = graph.add_parameter(
            name, tensor, role, aliases=tuple(called[1:]), requires_grad=tensor.requires_grad, persistent=persistent
        )  # fmt: skip
        by_name.update(dict.fromkeys(called, value))
    return by_name


def output_names(spec: Any) -> list[str]:
    """A name for every leaf of a result: fields and keys where it has some."""
    import torch.utils._pytree as pytree

    leaves = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths, _ = pytree.tree_flatten_with_path(leaves)
    names = []
    for path, _ in paths:
        keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        label = "_".join(keys) or "output"
        names.append(label if label[0].isalpha() else f"output_{label}")
    return names


_LAYOUT = {"reshape", "permute", "expand", "slice", "split", "concat", "cast", "select", "full", "arange"}


def name_results(graph: Graph, leaves: set[str]) -> None:
    """Name the results after their modules: `layer1_0_conv1` where a leaf module computes one thing, `layer1_0_add` elsewhere."""
    computing: dict[str, int] = {}
    for node in graph.nodes:
        if node.operator.name not in _LAYOUT:
            computing[node.path] = computing.get(node.path, 0) + 1

    def base(value: Value) -> str:
        node = value.producer
        assert node is not None
        path = node.path.replace(".", "_")
        kind = node.operator.name
        alone = node.path in leaves and kind not in _LAYOUT and computing[node.path] == 1
        label = path if path and alone else "_".join(part for part in (path, kind) if part)
        label = f"_{label}" if label[0].isdigit() else label
        return f"{label}_{value.index}" if len(node.outputs) > 1 else label

    graph.rename(base)


def _told_apart(arguments: Any) -> Any:
    """The arguments with every tensor an object of its own: one that is passed twice is two inputs."""
    import torch.utils._pytree as pytree

    seen: set[int] = set()

    def apart(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        repeated = id(item) in seen
        seen.add(id(item))
        return item.detach().view_as(item) if repeated else item

    return pytree.tree_map(apart, arguments)


def _by_leaf(inputs: Inputs, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The traced inputs by our own names for them: both lists are in call order."""
    import torch.utils._pytree as pytree

    flat = [item for item in pytree.tree_leaves((inputs.args, inputs.kwargs)) if isinstance(item, torch.Tensor)]
    order = {id(leaf.tensor): leaf.name for leaf in inputs.leaves}
    return {order.get(id(item), key): tensor for item, (key, tensor) in zip(flat, tensors.items(), strict=True)}


def _plain(value: Any, what: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SutureError(
        Code.EXPORT, f"{what} is a {type(value).__name__}", remedy="pass and return tensors, numbers and text"
    )


def _serialise(spec: Any) -> str:
    import warnings

    import torch.utils._pytree as pytree

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pytree.treespec_dumps(spec)
        except (TypeError, ValueError, NotImplementedError):
            return ""
