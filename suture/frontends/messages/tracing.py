"""A message-passing program becomes a graph: the numbers of the edges are inputs, and how many edges and nodes there are stays open."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from suture.frontends.messages import translation  # noqa: F401  (fills the table of operators)
from suture.frontends.messages.graph import MessageGraph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph

# Sizes to trace with: unlike each other and unlike any width, so that a value along edges cannot pass for one along nodes.
_EXAMPLES = {"edges": 2003, "nodes": 1009, "sources": 1013, "targets": 1019}


def trace(
    module: nn.Module,
    g: MessageGraph,
    *tensors: Any,
    dims: Mapping[str, str | None] | None = None,
    name: str | None = None,
    **keywords: Any,
) -> Graph:
    """Trace a program `forward(g, *tensors)` into a graph over edges and nodes of any number; it shares the module's parameters.

    The inputs are the graph's integers (`src`, `dst`, `type`, `node_type`, as far as it has them), then the tensors by the names that `forward`
    gives them. A space of nodes that none of these counts is counted by an input of its name without columns: `nodes[nodes, 0]`. What is no tensor
    is fixed.

    :param g: an example of the graph
    :param tensors: examples of the rest; what runs along edges or nodes is known by its first size
    :param dims: what runs along a tensor's first dimension where that is not clear: `edges`, `nodes`, `sources`, `targets`, None for a fixed size
    :param name: what to call the graph; the module's class if absent
    :raises SutureError: MODULE, RELATION or EXPORT, if the program does not run on these, or cannot be traced
    """
    from suture.frontends.torch_export import trace as run

    if not isinstance(module, nn.Module):
        raise SutureError(Code.MODULE, f"{type(module).__name__} is no torch module", remedy="pass an nn.Module")
    leaves, rebuild = _leaves(module, g, tensors, keywords)
    first: SutureError | None = None
    for spaces in _choices(g, leaves, dims or {}):
        program = _Program(module, g, leaves, spaces, rebuild)
        try:
            graph = run(program.module, program.examples, dynamic=program.dynamic, name=name or type(module).__name__)
        except SutureError as error:
            first = first or error
            continue
        graph.hints = {symbol: g.counts.get(symbol, count) for symbol, count in graph.hints.items()}
        return graph
    assert first is not None
    raise first


def bind(graph: Graph, g: MessageGraph, *tensors: Any, **keywords: Any) -> list[torch.Tensor]:
    """What a traced graph's inputs are for a graph of edges and the tensors that `forward` takes, in order.

    :raises SutureError: INPUT, if there are not as many tensors as were traced
    """
    import torch.utils._pytree as pytree

    flat = [leaf for leaf in pytree.tree_leaves((tensors, keywords)) if isinstance(leaf, torch.Tensor)]
    known = dict(g.tensors)
    known |= {space: torch.empty(g.counts[space], 0, device=g.device) for space in dict.fromkeys(g.spaces)}
    rest = [value.name for value in graph.inputs if value.name not in known]
    if len(rest) != len(flat):
        what = f"{len(flat)} tensors where {len(rest)} were traced"
        raise SutureError(Code.INPUT, what, remedy=f"give {', '.join(rest) or 'none'}")
    known |= zip(rest, flat, strict=True)
    return [known[value.name] for value in graph.inputs]


class _Program:
    """A module called with tensors alone, for as long as it is traced."""

    def __init__(
        self, module: nn.Module, g: MessageGraph, leaves: Mapping[str, torch.Tensor], spaces: Sequence[str | None], rebuild: Any
    ) -> None:  # fmt: skip
        own = _spaces_of(g)
        counted = {*spaces, *own.values()}
        carriers = [space for space in dict.fromkeys(g.spaces) if space not in counted]
        along: dict[str, str | None] = {
            **own,
            **dict(zip(carriers, carriers, strict=True)),
            **dict(zip(leaves, spaces, strict=True)),
        }
        given = {**g.tensors, **{space: torch.empty(0, 0, device=g.device) for space in carriers}, **leaves}
        self.examples = tuple(_example(given[name], space) for name, space in along.items())
        self.dynamic = {name: {0: space} for name, space in along.items() if space is not None}
        kind = type(module)
        unbound: Any = kind.forward

        def forward(*arguments: torch.Tensor) -> Any:
            by_name = dict(zip(along, arguments, strict=True))
            sizes = {space: by_name[name].shape[0] for name, space in reversed(along.items()) if space is not None}
            traced = g.traced({name: by_name[name] for name in g.tensors}, sizes)
            args, kwargs = rebuild([by_name[name] for name in leaves])
            return unbound(self.module, traced, *args, **kwargs)

        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in along]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        contents = {
            "forward": property(lambda self: forward),
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
        }
        traced = type(kind.__name__, (kind,), contents)
        made: Any = object.__new__(traced)
        made.__dict__.update(
            module.__dict__ | {"_forward_hooks": {}, "_forward_pre_hooks": {}}
        )  # tensors and parts are the module's own
        self.module: nn.Module = made


def _spaces_of(g: MessageGraph) -> dict[str, str | None]:
    """What the graph's own integers run along."""
    nodes = {"node_type": "nodes", "src_node_type": "sources", "dst_node_type": "targets"}
    return {name: nodes.get(name, "edges") for name in g.tensors}


def _example(tensor: torch.Tensor, space: str | None) -> torch.Tensor:
    """A tensor to trace with: as the one given, as long as the space."""
    return tensor if space is None else tensor.new_zeros((_EXAMPLES[space], *tensor.shape[1:]))


def _leaves(
    module: nn.Module, g: MessageGraph, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors among the arguments by name, and what makes arguments of such tensors again."""
    import torch.utils._pytree as pytree

    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(g, *args, **kwargs)
    except TypeError as error:
        raise SutureError(
            Code.MODULE, f"{type(module).__name__}.forward does not take these arguments: {error}", remedy=f"it takes {signature}"
        ) from None  # fmt: skip
    given = dict(itertools.islice(bound.arguments.items(), 1, None))
    names = {id(item): label for name, argument in given.items() for label, item in _named(name, argument)}
    flat, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    places = [place for place, item in enumerate(flat) if isinstance(item, torch.Tensor)]
    labels = _distinct([names.get(id(flat[place]), f"argument_{place}") for place in places])
    taken = {*g.tensors, *g.spaces} & {*labels}
    if taken:
        raise SutureError(
            Code.MODULE, f"forward calls an argument {sorted(taken)[0]!r}, as the graph's own", where=type(module).__name__, remedy="rename it"
        )  # fmt: skip

    def rebuild(tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = list(flat)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return pytree.tree_unflatten(filled, spec)  # type: ignore[no-any-return]

    return {label: flat[place].detach() for label, place in zip(labels, places, strict=True)}, rebuild


def _named(name: str, argument: Any) -> list[tuple[str, Any]]:
    """The parts of an argument by underscored name: `states_0`."""
    import torch.utils._pytree as pytree

    paths, _ = pytree.tree_flatten_with_path(argument)
    return [("_".join([name, *map(_key, path)]), leaf) for path, leaf in paths]


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where one comes twice: a tensor that is passed twice is two inputs."""
    made: list[str] = []
    for name in names:
        spellings = itertools.chain([name], (f"{name}_{k}" for k in itertools.count(1)))
        made.append(next(spelling for spelling in spellings if spelling not in made))
    return made


def _choices(
    g: MessageGraph, leaves: Mapping[str, torch.Tensor], dims: Mapping[str, str | None]
) -> list[tuple[str | None, ...]]:
    """What the tensors' first dimensions may run along, the likeliest first."""
    for name, space in dims.items():
        if name not in leaves or (space is not None and space not in g.sizes):
            raise SutureError(
                Code.MODULE, f"dims says that {name!r} runs along {space!r}",
                remedy=f"the tensors are {', '.join(leaves) or 'none'}, and what runs is {', '.join(g.sizes)}",
            )  # fmt: skip
    order = [*dict.fromkeys(g.spaces), "edges"]
    options: list[list[str | None]] = []
    for name, tensor in leaves.items():
        if name in dims:
            options.append([dims[name]])
            continue
        fits: list[str | None] = [space for space in order if tensor.ndim and tensor.shape[0] == g.counts[space]]
        options.append([*fits, None])
    return list(itertools.islice(itertools.product(*options), 64))
