"""DGL's RelGraphConv, in a model that has DGL's layers or from their state dict alone.

The layer is that of Schlichtkrull et al., 2018, as in `suture.drivers.accelerating.rgcn`; DGL calls the block-diagonal decomposition `bdd`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from suture.drivers.accelerating.program import Program, Rows, Weights
from suture.drivers.accelerating.rgcn import relation_matrices, with_root
from suture.drivers.accelerating.running import Choices
from suture.drivers.accelerating.structures import Ends, kept, message_graph, own
from suture.drivers.accelerating.swapping import Programs, Uncovered
from suture.frontends.messages.graph import MessageGraph
from suture.ir.errors import Code, SutureError


class WeightedConvolution(Program):
    """RGCN with a factor for each edge.

    :param weights: `weight`, `comp`, `root` and `bias` as of RGCN; `gain[o]` and `shift[o]` of a layer norm
    :param epsilon: the layer norm's; None without one
    """

    def __init__(self, weights: Weights, *, epsilon: float | None) -> None:
        super().__init__(weights)
        self.epsilon = epsilon

    def forward(self, g: MessageGraph, x: Rows, *others: Rows) -> Rows:
        """`x[nodes, i]`, or `x[sources, i]`, `own[targets, i]`; last, where they are given, `factors[edges, 1]` -> `[targets, o]`."""
        e, matrices = g.edges, relation_matrices(self)
        blocks = matrices.ndim == 4
        own_features = others[0] if g.bipartite else x
        messages = (x.unflatten(-1, matrices.shape[1:3]) if blocks else x)[e.src] @ matrices[e.type]
        messages = messages.flatten(1) if blocks else messages
        result = g.sum(messages * others[-1] if len(others) > g.bipartite else messages)
        if self.epsilon is not None:
            result = nn.functional.layer_norm(result, result.shape[1:], self.gain, self.shift, self.epsilon)
        return with_root(self, result, None if self.root is None else own_features @ self.root)


class RelGraphConv(nn.Module):
    """DGL's RelGraphConv over plain edges. Its parameters have the names of DGL's, so that a trained layer moves here without DGL.

    :param state: the layer's state dict: `linear_r.W`, `linear_r.coeff`, `h_bias`, `loop_weight`, `layer_norm_weight.*`, those that it has
    :param num_rels: how many relations there are
    :param blocks: how many blocks, if the layer's regularizer is `bdd`, whose state dict does not say it
    :param activation: what is done with the result
    :param dropout: what share of the result is dropped in training
    :raises SutureError: WEIGHTS, if it is not such a state dict
    """

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        *,
        num_rels: int,
        blocks: int | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(state, num_rels, blocks)
        self.num_rels, self.blocks, self.activation = num_rels, blocks, activation
        self.linear_r: Any = nn.Module()
        self.h_bias: Any
        self.loop_weight: Any
        for name in ("W", "coeff"):
            given = state.get(f"linear_r.{name}")
            self.linear_r.register_parameter(name, None if given is None else nn.Parameter(given.detach().clone()))
        for name in ("h_bias", "loop_weight"):
            given = state.get(name)
            self.register_parameter(name, None if given is None else nn.Parameter(given.detach().clone()))
        self.layer_norm_weight = _norm(state)
        self.dropout = nn.Dropout(dropout)
        self._programs = Programs(Choices())

    def forward(self, g: MessageGraph, feat: torch.Tensor, norm: torch.Tensor | None = None) -> torch.Tensor:
        """The layer over the edges of a graph with types.

        :param feat: `[nodes, in]`, or in a graph between two sets `[sources, in]`, whose first rows are the targets
        :param norm: a factor for each edge, `[edges, 1]`
        """
        weights = _weights(self.linear_r, self.h_bias, self.loop_weight, self.layer_norm_weight, self._blocks())
        made = _run(self._programs, weights, self.layer_norm_weight, g, feat, norm)
        return self.dropout(made if self.activation is None else self.activation(made))  # type: ignore[no-any-return]

    def _blocks(self) -> tuple[int, int, int] | None:
        if self.blocks is None:
            return None
        widths = self.h_bias if self.h_bias is not None else self.loop_weight
        out = widths.shape[-1] // self.blocks
        return self.blocks, self.linear_r.W.shape[1] // (self.blocks * out), out


class RelationalGraphConvolutions:
    """RelGraphConv of DGL."""

    LIBRARY = "dgl"
    NAMES = ("RelGraphConv",)

    @staticmethod
    def refuse(layer: Any) -> str:
        """All options are covered."""
        return ""

    @staticmethod
    def forward(
        layer: Any, programs: Programs, g: Any, feat: torch.Tensor, etypes: Any, norm: torch.Tensor | None = None, *, presorted: bool = False
    ) -> torch.Tensor:  # fmt: skip
        """The layer's forward, on a DGLGraph."""
        if not isinstance(etypes, torch.Tensor) or not isinstance(feat, torch.Tensor) or feat.dim() != 2:
            raise Uncovered("edge types or features that are no tensors")
        src, dst = g.edges(order="eid")
        ends = Ends(len(feat), g.num_dst_nodes() if g.is_block else None, layer.linear_r.num_types)

        graph = _graph(g, src, dst, etypes, ends)
        linear = layer.linear_r
        blocks = (linear.num_bases, linear.submat_in, linear.submat_out) if linear.regularizer == "bdd" else None
        layer_norm = layer.layer_norm_weight if layer.layer_norm else None
        weights = _weights(
            linear,
            layer.h_bias if layer.bias else None,
            layer.loop_weight if layer.self_loop else None,
            layer_norm,
            blocks,
        )
        made = _run(programs, weights, layer_norm, graph, feat, norm)
        return layer.dropout(layer.activation(made) if layer.activation else made)  # type: ignore[no-any-return]


def _graph(owner: Any, src: torch.Tensor, dst: torch.Tensor, types: torch.Tensor, ends: Ends) -> MessageGraph:
    """The message graph of a DGLGraph, which makes its index tensors anew whenever it is asked: found by it and the user's types."""

    def make() -> MessageGraph:
        return message_graph(src, dst, own(types), ends)

    for place in itertools.count():
        found: MessageGraph = kept((types, owner), ("dgl", ends, place), make)
        if len(found.src) == len(src) and torch.equal(found.src, src.long()) and torch.equal(found.dst, dst.long()):
            return found
    raise AssertionError  # pragma: no cover


def _run(
    programs: Programs,
    weights: Weights,
    layer_norm: nn.LayerNorm | None,
    g: MessageGraph,
    feat: torch.Tensor,
    norm: torch.Tensor | None,
) -> torch.Tensor:
    """The layer up to its activation."""
    epsilon = None if layer_norm is None else layer_norm.eps
    others = [feat[: g.num_dst]] if g.bipartite else []
    others += [] if norm is None else [norm.reshape(-1, 1)]
    form = ("dgl", epsilon, g.bipartite, norm is None)
    made: torch.Tensor = programs.run(form, partial(WeightedConvolution, epsilon=epsilon), weights, g, feat, *others)
    return made


def _weights(
    linear: Any,
    bias: torch.Tensor | None,
    root: torch.Tensor | None,
    layer_norm: nn.LayerNorm | None,
    blocks: tuple[int, int, int] | None,
) -> Weights:
    """A layer's weights by the names that the program has for them; the matrices of blocks lie flat in DGL's layers."""
    return {
        "weight": linear.W if blocks is None else linear.W.unflatten(-1, blocks),
        "comp": getattr(linear, "coeff", None),
        "root": root,
        "bias": bias,
        "gain": None if layer_norm is None else layer_norm.weight,
        "shift": None if layer_norm is None else layer_norm.bias,
    }


def _norm(state: Mapping[str, torch.Tensor]) -> nn.LayerNorm | None:
    gain, shift = (state.get(f"layer_norm_weight.{name}") for name in ("weight", "bias"))
    if gain is None or shift is None:
        return None
    made = nn.LayerNorm(len(gain), dtype=gain.dtype, device=gain.device)
    made.load_state_dict({"weight": gain, "bias": shift})
    return made


_KNOWN = {
    "linear_r.W", "linear_r.coeff", "h_bias", "loop_weight", "layer_norm_weight.weight", "layer_norm_weight.bias"
}  # fmt: skip


def _check(state: Mapping[str, torch.Tensor], num_rels: int, blocks: int | None) -> None:
    """Refuse what is no state dict of the layer."""
    where = "RelGraphConv"
    strange = sorted(set(state) - _KNOWN)
    if strange or "linear_r.W" not in state:
        what = f"the state dict has {strange[0]!r}" if strange else "the state dict has no 'linear_r.W'"
        raise SutureError(Code.WEIGHTS, what, where=where, remedy=f"{', '.join(sorted(_KNOWN))} are a RelGraphConv's")
    matrices, coefficients = state["linear_r.W"], state.get("linear_r.coeff")
    dims = 3 if blocks is None else 2
    if matrices.dim() != dims:
        raise SutureError(
            Code.WEIGHTS, f"'linear_r.W' has {matrices.dim()} dimensions where {dims} are expected", where=where,
            remedy="give blocks for the regularizer bdd, and only for it",
        )  # fmt: skip
    count = len(matrices) if coefficients is None else len(coefficients)
    if count != num_rels:
        raise SutureError(
            Code.WEIGHTS,
            f"weights for {count} relations where there are {num_rels}",
            where=where,
            remedy=f"give num_rels={count}",
        )
    if blocks is not None and "h_bias" not in state and "loop_weight" not in state:
        raise SutureError(
            Code.WEIGHTS, "blocks alone do not say how wide the output is", where=where, remedy="build the layer with a bias or a self loop"
        )  # fmt: skip
