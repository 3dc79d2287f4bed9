"""The calling convention of a traced module, written as fx code: named arguments, nested inputs, nested results."""

from __future__ import annotations

import importlib
import json
import operator
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph

Argument = Any
_PLAIN = (tuple, list, dict)


def write_inputs(code: fx.Graph, graph: Graph) -> list[fx.Node]:
    """Write placeholders for the arguments, and what reads the tensors out of them: one fx node per graph input."""
    if not _is_nested(graph):
        return [code.placeholder(value.name) for value in graph.inputs]
    assert graph.structure is not None
    arguments = _arguments(graph)
    leaves = sum(spec.num_leaves for _, spec in arguments)
    fixed = json.loads(graph.structure.fixed_inputs)
    if leaves - len(fixed) != len(graph.inputs):
        raise _misfit(graph, f"took {leaves - len(fixed)} tensors", f"takes {len(graph.inputs)}", "call it by position")
    # which argument holds which tensors; leaves that are no tensors were fixed when the module was traced
    held: list[list[bool]] = []
    position = 0
    for _, spec in arguments:
        held.append([str(k) not in fixed for k in range(position, position + spec.num_leaves)])
        position += spec.num_leaves
    # From the first argument without tensors on, all have a default; those that are needed all the same are asked for.
    first = next((k for k, wanted in enumerate(held) if not any(wanted)), len(held))
    nodes = [
        code.placeholder(name) if k < first else code.placeholder(name, default_value=None)
        for k, (name, _) in enumerate(arguments)
    ]
    given = [
        code.call_function(required, (node, name)) if k > first and any(wanted) else node
        for k, ((name, _), node, wanted) in enumerate(zip(arguments, nodes, held, strict=True))
    ]
    return [
        tensor for (_, spec), node, wanted in zip(arguments, given, held, strict=True)
        for tensor in _read(code, spec, node, wanted)
    ]  # fmt: skip


def required(argument: Any, name: str) -> Any:
    """An argument that stands behind optional ones, which must be given all the same."""
    if argument is None:
        raise SutureError(Code.INPUT, f"the argument {name} is missing", remedy="give it")
    return argument


def write_output(code: fx.Graph, graph: Graph, results: Sequence[fx.Node]) -> None:
    """Write the output: the results nested as the traced module returned them, or one tensor, or a tuple."""
    if not _is_nested(graph):
        code.output(results[0] if len(results) == 1 else tuple(results))
        return
    assert graph.structure is not None
    spec = load_spec(graph.structure.outputs)
    fixed = json.loads(graph.structure.fixed_outputs)
    if spec.num_leaves - len(fixed) != len(results):
        raise _misfit(
            graph, f"returned {spec.num_leaves - len(fixed)} tensors", f"returns {len(results)}", "get a tuple"
        )
    tensors = iter(results)
    leaves = [fixed[str(k)] if str(k) in fixed else next(tensors) for k in range(spec.num_leaves)]
    code.output(_nest(code, spec, leaves))


def _is_nested(graph: Graph) -> bool:
    """Whether the graph knows how the traced module was called."""
    return graph.structure is not None and bool(graph.structure.inputs) and bool(graph.structure.outputs)


def _misfit(graph: Graph, was: str, now: str, gain: str) -> SutureError:
    what = f"the traced module {was}, the graph {now}"
    return SutureError(Code.TORCH, what, where=graph.name, remedy=f"set the graph's structure to None to {gain}")


@lru_cache(maxsize=64)
def load_spec(text: str) -> pytree.TreeSpec:
    """Read a pytree spec; the libraries whose classes it names are imported, as they register them.

    :raises SutureError: TORCH, if a class in it is not known
    """
    for name in set(re.findall(r'"type": "((?:\w+\.)+\w+)"', text)):
        library = name.partition(".")[0]
        if library not in {"builtins", "collections", "torch"}:
            try:
                importlib.import_module(name.rpartition(".")[0])
            except ImportError:
                raise SutureError(
                    Code.TORCH, f"the module's results need {name}", remedy=f"install {library}"
                ) from None
    try:
        return pytree.treespec_loads(text)
    except (NotImplementedError, ValueError, KeyError) as error:
        raise SutureError(
            Code.TORCH, f"the module's structure cannot be read: {error}", remedy="trace it again"
        ) from None


def flatten_part(part: Any, spec: str) -> list[Any]:
    """The leaves of an argument that is nested in a class of its own."""
    leaves, found = pytree.tree_flatten(part)
    expected = load_spec(spec)
    if found != expected:
        raise SutureError(Code.INPUT, f"an argument is nested as {found}", remedy=f"{expected} would be right")
    return leaves


def unflatten_part(leaves: Sequence[Any], spec: str) -> Any:
    """A result that is nested in a class of its own."""
    return pytree.tree_unflatten(list(leaves), load_spec(spec))


def _arguments(graph: Graph) -> list[tuple[str, pytree.TreeSpec]]:
    """Name and spec of each argument, in the order of the leaves."""
    assert graph.structure is not None
    by_position, by_name = load_spec(graph.structure.inputs).children()
    names = list(graph.structure.arguments[: graph.structure.positional])
    # what *args took has no names of its own
    names += [f"{names[-1] if names else 'argument'}_{k}" for k in range(len(names), by_position.num_children)]
    pairs = list(zip(names, by_position.children(), strict=True))
    return pairs + list(zip(by_name.context or (), by_name.children(), strict=True))


def _read(code: fx.Graph, spec: pytree.TreeSpec, node: fx.Node, wanted: Sequence[bool]) -> Iterator[fx.Node]:
    """Write what takes the wanted leaves out of an argument."""
    if not any(wanted):
        return
    if spec.is_leaf():
        yield node
    elif spec.type in _PLAIN:
        position = 0
        keys = spec.context if spec.type is dict else range(spec.num_children)
        for key, child in zip(keys, spec.children(), strict=True):
            part = wanted[position : position + child.num_leaves]
            position += child.num_leaves
            if any(part):
                yield from _read(code, child, code.call_function(operator.getitem, (node, key)), part)
    else:
        leaves = code.call_function(flatten_part, (node, pytree.treespec_dumps(spec)))
        for position, chosen in enumerate(wanted):
            if chosen:
                yield code.call_function(operator.getitem, (leaves, position))


def _nest(code: fx.Graph, spec: pytree.TreeSpec, results: list[Argument]) -> Argument:
    """Take a spec's leaves off the front of the results and nest them."""
    if spec.is_leaf():
        return results.pop(0)
    if spec.type in _PLAIN:
        parts = [_nest(code, child, results) for child in spec.children()]
        return tuple(parts) if spec.type is tuple else _built(code, spec, parts)
    leaves = [results.pop(0) for _ in range(spec.num_leaves)]
    keywords = _constructed_by_keywords(spec)
    if keywords is not None and all(child.is_leaf() for child in spec.children()):
        return code.call_function(spec.type, (), dict(zip(keywords, leaves, strict=True)))
    return code.call_function(unflatten_part, (leaves, pytree.treespec_dumps(spec)))


def _built(code: fx.Graph, spec: pytree.TreeSpec, parts: list[Argument]) -> fx.Node:
    """Write a list or a dict as a call: among fx's own arguments it would turn into an immutable one."""
    if spec.type is list:
        return code.call_function(list, (parts,))
    if all(isinstance(key, str) and key.isidentifier() for key in spec.context):
        return code.call_function(dict, (), dict(zip(spec.context, parts, strict=True)))
    return code.call_function(dict, (list(zip(spec.context, parts, strict=True)),))


def _constructed_by_keywords(spec: pytree.TreeSpec) -> list[str] | None:
    """The keywords of a class such as Hugging Face's `ModelOutput`: an ordered mapping that is built from its items."""
    keys = spec.context
    if not isinstance(spec.type, type) or not issubclass(spec.type, dict) or not isinstance(keys, list | tuple):
        return None
    return list(keys) if all(isinstance(key, str) for key in keys) else None
