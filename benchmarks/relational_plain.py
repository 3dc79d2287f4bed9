"""RGCN, RGAT and HGT in plain PyTorch, written as well as one can in an afternoon: the plan that a compiler has to beat.

Once per graph: edges sorted by destination, unique (type, source) pairs sorted by type, the transposes of all index structures. Per call: rows of
pairs are gathered, multiplied by one `mm` per relation into a slice of the result, and summed into nodes by one CSR product; attention is a softmax
over runs of edges and a CSR product with the attention as values. Backward is written out with the transposed structures: no scattered additions,
nothing of edges x width is kept. Products of weights come first where that is free: RGAT's destination scores, HGT's priors and scale.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

warnings.filterwarnings("ignore", message="Sparse CSR tensor support")


@dataclass(frozen=True)
class Incidence:
    """Entries that lie in rows and columns: pointers and columns by row, the same by column, and the order that leads from one to the other."""

    rows: int
    columns: int
    pointers: Tensor
    column: Tensor
    row: Tensor
    across_pointers: Tensor
    across_row: Tensor
    across_order: Tensor

    @classmethod
    def of(cls, row: Tensor, column: Tensor, rows: int, columns: int) -> Incidence:
        """For entries that are sorted by row."""
        order = torch.argsort(column, stable=True)
        return cls(rows, columns, pointers(row, rows), column, row, pointers(column[order], columns), row[order], order)

    def times(self, values: Tensor, x: Tensor) -> Tensor:
        """The matrix with these values, one per entry, times x."""
        return torch.sparse_csr_tensor(self.pointers, self.column, values, (self.rows, self.columns)) @ x

    def across_times(self, values: Tensor, x: Tensor) -> Tensor:
        """The transposed matrix times x; the values in the order of the entries by row."""
        sizes = (self.columns, self.rows)
        return torch.sparse_csr_tensor(self.across_pointers, self.across_row, values[self.across_order], sizes) @ x


@dataclass(frozen=True)
class Pairs:
    """Unique (type, node) pairs, sorted by type: the pairs' nodes, where each type's begin, and the pair of every edge."""

    starts: list[int]
    nodes: Incidence  # pair -> node, one entry a pair
    of_edge: Tensor

    @classmethod
    def of(cls, type: Tensor, node: Tensor, types: int, nodes: int) -> Pairs:
        keys, rank = torch.unique(type * nodes + node, return_inverse=True)
        count = len(keys)
        pairs = torch.arange(count, device=node.device)
        starts = pointers(keys // nodes, types).tolist()
        return cls(starts, Incidence.of(pairs, keys % nodes, count, nodes), rank)


class Layout:
    """What is made once per graph. Edges are sorted by destination."""

    def __init__(
        self, src: Tensor, dst: Tensor, type: Tensor, nodes: int, types: int, node_type: Tensor, node_types: int
    ) -> None:
        order = torch.argsort(dst, stable=True)
        self.dst, self.type, self.src = dst[order], type[order], src[order]
        self.sources = Pairs.of(self.type, self.src, types, nodes)
        self.targets = Pairs.of(self.type, self.dst, types, nodes)
        self.to_nodes = Incidence.of(self.dst, self.sources.of_edge, nodes, len(self.sources.nodes.row))
        by_target = Incidence.of(self.dst, self.targets.of_edge, nodes, len(self.targets.nodes.row))
        self.edge_to_target = _lookup(self.targets.of_edge, by_target)
        self.edge_to_source = _lookup(self.sources.of_edge, self.to_nodes)
        in_pair = torch.bincount(self.targets.of_edge, minlength=len(self.targets.nodes.row))
        self.mean = in_pair.double().reciprocal()[self.targets.of_edge]
        self.node_order = torch.argsort(node_type, stable=True)
        self.node_place = torch.argsort(self.node_order)
        self.node_starts = pointers(node_type[self.node_order], node_types).tolist()
        self.node_type = node_type
        self.sorted_nodes = bool((node_type[1:] >= node_type[:-1]).all())


def _lookup(column: Tensor, incidence: Incidence) -> Incidence:
    """Every edge as a row with one entry, for looking up and for adding back."""
    edges = torch.arange(len(column), device=column.device)
    return Incidence(
        len(column), incidence.columns, torch.arange(len(column) + 1, device=column.device), column, edges,
        incidence.across_pointers, incidence.across_order, incidence.across_order,
    )  # fmt: skip


def pointers(sorted_index: Tensor, count: int) -> Tensor:
    """Where the run of every number begins, and where the last one ends."""
    return F.pad(torch.bincount(sorted_index, minlength=count).cumsum(0), (1, 0))


class Gather(Function):
    """Rows by index; backward is a CSR product instead of scattered additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Incidence) -> Tensor:
        ctx.index = index
        return x.index_select(0, index.column)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        index = ctx.index
        ones = gradient.new_ones(len(index.column))
        flat = gradient.reshape(len(gradient), -1)
        across = torch.sparse_csr_tensor(index.across_pointers, index.across_row, ones, (index.columns, index.rows))
        return (across @ flat).reshape(-1, *gradient.shape[1:]), None


class SegmentProduct(Function):
    """Rows sorted by type times their type's matrix, [rows, h*i] by [types, h, i, o]: one product per type into a slice of the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, starts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.starts = starts
        heads, _, width = weights.shape[1:]
        result = x.new_empty(len(x), heads * width)
        for place, (start, end) in enumerate(itertools.pairwise(starts)):
            if start < end:
                _product(x[start:end], weights[place], result[start:end])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weights = ctx.saved_tensors
        heads, inner, width = weights.shape[1:]
        for_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for_weights = torch.zeros_like(weights)
        for place, (start, end) in enumerate(itertools.pairwise(ctx.starts)):
            if start == end:
                continue
            rows, down = x[start:end], gradient[start:end]
            if for_x is not None:
                _product(down, weights[place].mT, for_x[start:end])
            if heads == 1:
                torch.mm(rows.T, down, out=for_weights[place, 0])
            else:
                split = rows.view(-1, heads, inner).permute(1, 2, 0), down.view(-1, heads, width).transpose(0, 1)
                torch.bmm(*split, out=for_weights[place])
        return for_x, for_weights, None


def _product(x: Tensor, weights: Tensor, into: Tensor) -> None:
    """[rows, h*i] by [h, i, o], into [rows, h*o]."""
    heads, inner, width = weights.shape
    if heads == 1:
        torch.mm(x, weights[0], out=into)
    else:
        into.view(-1, heads, width).transpose(0, 1).copy_(torch.bmm(x.view(-1, heads, inner).transpose(0, 1), weights))


class Sum(Function):
    """A sum into rows with fixed values: one CSR product forwards, one backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, incidence: Incidence, values: Tensor) -> Tensor:
        ctx.incidence, ctx.values = incidence, values
        return incidence.times(values, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.incidence.across_times(ctx.values, gradients[0].contiguous()), None, None


class Softmax(Function):
    """Over the entries of every row, [entries, heads], the maximum subtracted."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, incidence: Incidence) -> Tensor:
        place = incidence.row[:, None].expand_as(scores)
        highest = scores.new_full((incidence.rows, scores.shape[1]), -math.inf).scatter_reduce_(
            0, place, scores, "amax"
        )
        raised = torch.exp(scores - highest[incidence.row])
        attention = raised / _row_sums(raised, incidence)[incidence.row]
        ctx.save_for_backward(attention)
        ctx.incidence = incidence
        return attention

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (attention,) = ctx.saved_tensors
        weighted = attention * gradients[0]
        return weighted - attention * _row_sums(weighted, ctx.incidence)[ctx.incidence.row], None


def _row_sums(values: Tensor, incidence: Incidence) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=incidence.pointers, axis=0)


class Attend(Function):
    """Rows weighted by attention and summed, head by head: a CSR product with the attention as values."""

    @staticmethod
    def forward(ctx: Any, attention: Tensor, x: Tensor, incidence: Incidence) -> Tensor:
        ctx.save_for_backward(attention, x)
        ctx.incidence = incidence
        heads = attention.shape[1]
        if heads == 1:
            return incidence.times(attention[:, 0], x)
        parts = x.view(len(x), heads, -1).unbind(1)
        return torch.cat(
            [incidence.times(attention[:, h].contiguous(), part.contiguous()) for h, part in enumerate(parts)], 1
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        attention, x = ctx.saved_tensors
        incidence, heads = ctx.incidence, attention.shape[1]
        for_attention = dots(gradient, x, incidence, heads)
        downs = gradient.view(len(gradient), heads, -1).unbind(1)
        for_x = [incidence.across_times(attention[:, h], down.contiguous()) for h, down in enumerate(downs)]
        return for_attention, for_x[0] if heads == 1 else torch.cat(for_x, 1), None


class Dots(Function):
    """An inner product per entry and head, of its row's and its column's vectors."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, incidence: Incidence, heads: int) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.incidence, ctx.heads = incidence, heads
        return dots(q, k, incidence, heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        q, k = ctx.saved_tensors
        incidence = ctx.incidence
        qs, ks = (each.view(len(each), ctx.heads, -1).unbind(1) for each in (q, k))
        for_q = [incidence.times(gradient[:, h].contiguous(), part.contiguous()) for h, part in enumerate(ks)]
        for_k = [incidence.across_times(gradient[:, h], part.contiguous()) for h, part in enumerate(qs)]
        return torch.cat(for_q, 1), torch.cat(for_k, 1), None, None


def dots(q: Tensor, k: Tensor, incidence: Incidence, heads: int) -> Tensor:
    """Inner products at the entries, [entries, heads]."""
    product = q.index_select(0, incidence.row).mul_(k.index_select(0, incidence.column))
    return product.view(len(product), heads, -1).sum(-1)


class PlainRGCN(nn.Module):
    """Mean over the edges of a relation, sum over relations."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight, self.root, self.bias = (copied(each) for each in (layer.weight[:, None], layer.root, layer.bias))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        rows = SegmentProduct.apply(Gather.apply(x, layout.sources.nodes), self.weight, layout.sources.starts)
        return torch.addmm(self.bias, x, self.root) + Sum.apply(rows, layout.to_nodes, layout.mean.to(x.dtype))


class PlainRGAT(nn.Module):
    """Additive attention across relations; the destination's scores need no rows of full width."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight, self.q, self.k, self.bias = (
            copied(each) for each in (layer.weight[:, None], layer.q, layer.k, layer.bias)
        )
        self.slope = layer.negative_slope

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        rows = SegmentProduct.apply(Gather.apply(x, layout.sources.nodes), self.weight, layout.sources.starts)
        wanted = Gather.apply(x, layout.targets.nodes)
        asked = SegmentProduct.apply(wanted, self.weight @ self.q, layout.targets.starts)
        offered = rows @ self.k
        scores = Gather.apply(asked, layout.edge_to_target) + Gather.apply(offered, layout.edge_to_source)
        attention = Softmax.apply(F.leaky_relu(scores, self.slope), layout.to_nodes)
        return Attend.apply(attention, rows, layout.to_nodes) + self.bias


class PlainHGT(nn.Module):
    """Keys and values by (type, source) pair; priors and scale go into the relations' matrices."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        heads, edges = layer.heads, len(layer.edge_types)
        self.heads = heads
        lins, outs = ([each.lins[kind] for kind in layer.node_types] for each in (layer.kqv_lin, layer.out_lin))
        self.kqv, self.out = (copied(torch.stack([lin.weight.T for lin in each])[:, None]) for each in (lins, outs))
        self.kqv_bias, self.out_bias = (copied(torch.stack([lin.bias for lin in each])) for each in (lins, outs))
        self.k, self.v = (
            copied(each.weight.view(heads, edges, *each.weight.shape[1:]).transpose(0, 1))
            for each in (layer.k_rel, layer.v_rel)
        )
        self.prior = copied(torch.cat([layer.p_rel["__".join(kind)] for kind in layer.edge_types]))
        self.skip = copied(torch.cat([layer.skip[kind] for kind in layer.node_types]))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        width = self.out.shape[-1]
        k, q, v = self.by_type(x, self.kqv, self.kqv_bias, layout).split(width, 1)
        scale = self.prior[:, :, None, None] / math.sqrt(width // self.heads)
        pairs = layout.sources
        keys = SegmentProduct.apply(Gather.apply(k, pairs.nodes), self.k * scale, pairs.starts)
        values = SegmentProduct.apply(Gather.apply(v, pairs.nodes), self.v, pairs.starts)
        attention = Softmax.apply(Dots.apply(q, keys, layout.to_nodes, self.heads), layout.to_nodes)
        found = F.gelu(Attend.apply(attention, values, layout.to_nodes))
        gate = self.skip.sigmoid()[layout.node_type][:, None]
        return torch.lerp(x, self.by_type(found, self.out, self.out_bias, layout), gate)

    def by_type(self, x: Tensor, weights: Tensor, bias: Tensor, layout: Layout) -> Tensor:
        """Every node times its type's matrix."""
        rows = x if layout.sorted_nodes else x[layout.node_order]
        found = SegmentProduct.apply(rows, weights, layout.node_starts)
        return (found if layout.sorted_nodes else found[layout.node_place]) + bias[layout.node_type]


def copied(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone().contiguous())
