"""PyTorch Geometric's HGTConv: attention between nodes of different types over edges of different types.

Hu et al., "Heterogeneous Graph Transformer", 2020: equations 3 (attention, with a prior for each edge type), 4 (messages) and 5 (the target's
projection and residual). PyTorch Geometric gates the residual by a learned skip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from suture.drivers.accelerating.program import Program, Rows, Weights
from suture.drivers.accelerating.stacking import stacked
from suture.drivers.accelerating.structures import is_index
from suture.drivers.accelerating.swapping import Programs, Uncovered
from suture.frontends.messages.conversions import Kind, Stack
from suture.frontends.messages.graph import MessageGraph


@dataclass(frozen=True)
class Form:
    """What changes the program.

    :param projected: whether it takes keys, queries and values instead of features
    """

    heads: int
    width: int
    projected: bool


class HeterogeneousAttention(Program):
    """Keys, queries and values of nodes by their types; keys and values again by the types of edges; attention over all edges that meet in a node.

    :param weights: `first[node types, 3*h*d, i]`, `first_bias[node types, 3*h*d]`; `key[types, h, d, d]`, `value[types, h, d, d]`, `prior[types, h]`;
        `last[node types, h*d, h*d]`, `last_bias`; `skip[node types]`
    """

    def __init__(self, weights: Weights, *, form: Form) -> None:
        super().__init__(weights)
        self.form = form

    def forward(self, g: MessageGraph, x: Rows) -> Rows:
        """`x[nodes, i]`, or `[nodes, 3*h*d]` where it is projected -> `[nodes, h*d]`; in that case without the last projection."""
        form, e, n = self.form, g.edges, g.nodes
        size = form.heads * form.width
        all_three = x if form.projected else x @ self.first.transpose(1, 2)[n.type] + self.first_bias[n.type]
        key, query, value = (
            all_three[:, k * size : (k + 1) * size].unflatten(-1, (form.heads, form.width)) for k in range(3)
        )
        keys = key[e.src] @ self.key[e.type]
        scores = (query[e.dst] * keys).sum(-1) * self.prior[e.type] * (1 / math.sqrt(form.width))
        attention = g.softmax(scores)
        values = value[e.src] @ self.value[e.type]
        met = g.sum(values * attention.unsqueeze(-1)).flatten(1)
        if form.projected:
            return met
        result = functional.gelu(met) @ self.last.transpose(1, 2)[n.type] + self.last_bias[n.type]
        if self.skip is None:
            return result
        share = self.skip.sigmoid().unsqueeze(-1)[n.type]
        return x + (result - x) * share


class HeterogeneousAttentions:
    """HGTConv."""

    LIBRARY = "torch_geometric"
    NAMES = ("HGTConv",)

    @staticmethod
    def refuse(layer: Any) -> str:
        """Edges against the flow are not covered."""
        return "edges against the flow" if layer.flow == "target_to_source" else ""

    @staticmethod
    def forward(
        layer: Any, programs: Programs, x_dict: Mapping[str, torch.Tensor], edge_index_dict: Mapping[Kind, Any]
    ) -> dict[str, torch.Tensor]:
        """The layer's forward: dictionaries of features and of edge indices -> one of features, for the types that edges may end in."""
        present = [name for name in layer.kqv_lin.lins if name in x_dict]
        shapes = tuple([x_dict[name].shape for name in present])
        kinds = tuple(edge_index_dict)
        settled: Settled = programs.settled.get(
            tuple(edge_index_dict.values()),
            (tuple(present), shapes, kinds),
            lambda: _settle(layer, present, shapes, edge_index_dict),
        )
        if not settled.ordered:
            programs.warn(
                "edges come in another order of types than its metadata, in which HGTConv mixes up weights; here they go by names"
            )
        if settled.one_width:
            first, last = _linear(layer.kqv_lin.lins, settled), _linear(layer.out_lin.lins, settled)
            if not any(each is None for each in (*first[1], *last[1])):
                return _whole(layer, programs, x_dict, settled, first, last)
        return _middle(layer, programs, x_dict, settled)


@dataclass(frozen=True)
class Settled:
    """What is found out once about a layer's edges and the shapes of its features.

    :param stack: the edges as one graph
    :param one_width: whether nodes of all types have features of one width
    :param ordered: whether edges come in the order of the layer's types
    :param skips: what the layer keeps the skips of the types of nodes under, in the order of the stack
    :param priors: the same of the priors of all its types of edges
    :param targets: the types of nodes that have results
    """

    stack: Stack
    one_width: bool
    ordered: bool
    skips: tuple[str, ...]
    priors: tuple[str, ...]
    targets: frozenset[str]


def _settle(
    layer: Any, present: Sequence[str], shapes: Sequence[torch.Size], edge_index_dict: Mapping[Kind, Any]
) -> Settled:
    """Look at the dictionaries; leave to the layer what it has errors for."""
    if not present or not edge_index_dict or any(len(shape) != 2 for shape in shapes):
        raise Uncovered
    numbers = layer.edge_types_map
    for kind, index in edge_index_dict.items():
        if kind not in numbers or kind[0] not in present or kind[-1] not in present:
            raise Uncovered
        if not is_index(index):
            raise Uncovered("a sparse adjacency: edge indices are covered")
    counts = {name: shape[0] for name, shape in zip(present, shapes, strict=True)}
    places = [numbers[kind] for kind in edge_index_dict]
    return Settled(
        stacked(counts, edge_index_dict, tuple(layer.edge_types)),
        one_width=len({shape[-1] for shape in shapes}) == 1,
        ordered=places == sorted(places),
        skips=tuple(map(layer.skip.to_internal_key, present)),
        priors=tuple(layer.p_rel.to_internal_key("__".join(kind)) for kind in layer.edge_types),
        targets=frozenset(layer.dst_node_types),
    )


_Linear = tuple[list[torch.Tensor], list[torch.Tensor]]


def _linear(lins: Any, settled: Settled) -> _Linear:
    """Weights `[out, in]` and biases by types of nodes."""
    held = lins._modules
    modules = [held[name] for name in settled.stack.names]
    return [each.weight for each in modules], [each.bias for each in modules]


def _whole(
    layer: Any, programs: Programs, x_dict: Mapping[str, torch.Tensor], settled: Settled, first: _Linear, last: _Linear
) -> dict[str, torch.Tensor]:
    """All of the layer as one program, over nodes of one width."""
    stack = settled.stack
    x = stack.features(x_dict)
    form = Form(layer.heads, layer.out_channels // layer.heads, False)
    skips = layer.skip._parameters
    weights = _relation_weights(layer, settled) | {
        "first": torch.stack(first[0]), "first_bias": torch.stack(first[1]), "last": torch.stack(last[0]), "last_bias": torch.stack(last[1]),
        "skip": torch.cat([skips[name] for name in settled.skips]) if x.shape[-1] == layer.out_channels else None,
    }  # fmt: skip
    made = programs.run(form, partial(HeterogeneousAttention, form=form), weights, stack.graph, x)
    return {name: each for name, each in stack.parts(made).items() if name in settled.targets}


def _middle(
    layer: Any, programs: Programs, x_dict: Mapping[str, torch.Tensor], settled: Settled
) -> dict[str, torch.Tensor]:
    """The attention as a program, between projections for each type of nodes: these have different widths."""
    stack = settled.stack
    form = Form(layer.heads, layer.out_channels // layer.heads, True)
    projected = stack.features({name: layer.kqv_lin.lins[name](x_dict[name]) for name in stack.names})
    build = partial(HeterogeneousAttention, form=form)
    met = stack.parts(programs.run(form, build, _relation_weights(layer, settled), stack.graph, projected))
    found = {}
    for name in (each for each in stack.names if each in settled.targets):
        result = layer.out_lin.lins[name](functional.gelu(met[name]))
        if result.shape[-1] == x_dict[name].shape[-1]:
            share = layer.skip[name].sigmoid()
            result = share * result + (1 - share) * x_dict[name]
        found[name] = result
    return found


def _relation_weights(layer: Any, settled: Settled) -> dict[str, torch.Tensor | None]:
    """The weights of edge types, which the layer keeps head by head."""
    width = layer.out_channels // layer.heads
    key, value = (
        each.weight.reshape(layer.heads, -1, width, width).transpose(0, 1) for each in (layer.k_rel, layer.v_rel)
    )
    held = layer.p_rel._parameters  # a module looks its attributes up slowly, and there may be hundreds of types
    return {"key": key, "value": value, "prior": torch.cat([held[name] for name in settled.priors])}
