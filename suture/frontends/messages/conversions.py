"""Message graphs from what other libraries keep edges in: edge indices, dictionaries by type, sparse matrices, batches of neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch

from suture.frontends.messages.graph import MessageGraph
from suture.ir.errors import Code, SutureError

Kind = tuple[str, str, str]
"""The type of source nodes, of edges, of destination nodes, as PyTorch Geometric names a type of edges."""


@dataclass(frozen=True)
class Stack:
    """A graph with named types as one with numbered types: nodes of all types, one behind the other.

    :param graph: the edges; a type's number is its place in `kinds`, and for nodes in `names`
    :param names: the types of nodes
    :param counts: how many nodes of each there are
    :param kinds: the types of edges
    """

    graph: MessageGraph
    names: tuple[str, ...]
    counts: tuple[int, ...]
    kinds: tuple[Kind, ...]

    def features(self, by_name: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features of all nodes `[nodes, f]`, from those of each type.

        :raises SutureError: RELATION, if a type is missing, or does not have a row for each node
        """
        for name, count in zip(self.names, self.counts, strict=True):
            if name not in by_name or len(by_name[name]) != count:
                found = f"{len(by_name[name])} rows" if name in by_name else "no features"
                raise SutureError(
                    Code.RELATION, f"{found} for {count} nodes of type {name!r}", remedy="give one row for each node"
                )
        return torch.cat([by_name[name] for name in self.names])

    def parts(self, all_nodes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values of each type of nodes, from those of all `[nodes, *f]`."""
        return dict(zip(self.names, torch.split(all_nodes, list(self.counts)), strict=True))

    def first(self, name: str) -> int:
        """The number of the first node of a type."""
        return sum(self.counts[: self.names.index(name)])


def from_edge_index(
    edge_index: torch.Tensor,
    edge_type: torch.Tensor | None = None,
    *,
    num_nodes: int | tuple[int, int] | None = None,
    num_types: int | None = None,
) -> MessageGraph:
    """The graph of `edge_index[2, edges]`, sources in row 0 and destinations in row 1, as PyTorch Geometric has it.

    :param edge_type: the type of each edge
    :param num_nodes: how many nodes there are: a pair, of sources and destinations, if these are two sets; one more than the largest number if absent
    :param num_types: how many types; one more than the largest if absent
    :raises SutureError: RELATION, if it is no such index or leads outside
    """
    if not isinstance(edge_index, torch.Tensor) or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        found = list(edge_index.shape) if isinstance(edge_index, torch.Tensor) else type(edge_index).__name__
        raise SutureError(Code.RELATION, f"an edge index {found}", remedy="give [2, edges]: sources, then destinations")
    src, dst = edge_index.as_subclass(torch.Tensor)
    if isinstance(num_nodes, tuple):
        return MessageGraph(src, dst, edge_type, num_src=num_nodes[0], num_dst=num_nodes[1], num_types=num_types)
    if num_nodes is None:
        num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
    return MessageGraph(src, dst, edge_type, num_nodes=num_nodes, num_types=num_types)


def from_sparse(
    matrix: torch.Tensor, *, rows: Literal["targets", "sources"] = "targets", types: bool = False
) -> tuple[MessageGraph, torch.Tensor]:
    """The graph of a sparse matrix, an edge for each element, and the elements' values in the order of edges.

    Rows are destinations as in `matrix @ x`, and as in PyTorch Geometric's `adj_t`: `g.sum(x[e.src] * values[:, None])` is that product.
    A square matrix has one set of nodes; any other leads from one set to another.

    :param matrix: `torch.sparse` COO, CSR or CSC of two dimensions
    :param rows: what rows are
    :param types: whether the values are the edges' types
    :raises SutureError: RELATION, if it is no such matrix, or values are no types
    """
    layouts = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
    if not isinstance(matrix, torch.Tensor) or matrix.layout not in layouts or matrix.dim() != 2:
        found = (
            f"{matrix.dim()} dimensions, {matrix.layout}" if isinstance(matrix, torch.Tensor) else type(matrix).__name__
        )
        raise SutureError(Code.RELATION, f"a matrix of {found}", remedy="give a torch.sparse matrix: COO, CSR or CSC")
    row, column, values = _elements(matrix)
    src, dst = (column, row) if rows == "targets" else (row, column)
    targets, sources = matrix.shape if rows == "targets" else matrix.shape[::-1]
    if types and (values.is_floating_point() or values.is_complex() or values.dim() != 1):
        raise SutureError(Code.RELATION, f"types of {values.dtype}", remedy="the matrix's values would be integers")
    kind = values.detach() if types else None
    if sources == targets:
        return MessageGraph(src, dst, kind, num_nodes=sources), values
    return MessageGraph(src, dst, kind, num_src=sources, num_dst=targets), values


def _elements(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The row, the column and the value of each element; elements that stand twice in COO stay two edges."""
    if matrix.layout == torch.sparse_coo:
        index = matrix._indices()
        return index[0], index[1], matrix._values()
    by_row = matrix.layout == torch.sparse_csr
    pointers = matrix.crow_indices() if by_row else matrix.ccol_indices()
    inner = matrix.col_indices() if by_row else matrix.row_indices()
    numbers = torch.arange(len(pointers) - 1, dtype=inner.dtype, device=inner.device)
    outer = numbers.repeat_interleave(pointers.diff())
    return (outer, inner, matrix.values()) if by_row else (inner, outer, matrix.values())


def from_hetero(data: Any, *, names: Sequence[str] | None = None, kinds: Sequence[Kind] | None = None) -> Stack:
    """The graph of PyTorch Geometric's `HeteroData`.

    :param names: the types of nodes in the order of their numbers; the data's own order if absent
    :param kinds: the types of edges in the order of their numbers; those without edges here keep theirs, so that weights fit any batch
    :raises SutureError: RELATION, if it is no such data, or has other types
    """
    if not hasattr(data, "node_types") or not hasattr(data, "edge_types"):
        raise SutureError(
            Code.RELATION, f"a {type(data).__name__} has no types of nodes and edges", remedy="give a HeteroData"
        )
    own_names, own_kinds = list(data.node_types), list(data.edge_types)
    edges = {kind: data[kind].edge_index for kind in own_kinds if "edge_index" in data[kind]}
    absent = [kind for kind in own_kinds if kind not in edges]
    if absent:
        raise SutureError(Code.RELATION, f"edges {absent[0]} have no edge_index", remedy="leave sparse adjacencies out")
    names, kinds = tuple(names or own_names), tuple(tuple(kind) for kind in (kinds or own_kinds))
    counts = {name: _count(data, name) if name in own_names else 0 for name in names}
    return stack(counts, edges, kinds)


def stack(counts: Mapping[str, int], edges: Mapping[Kind, torch.Tensor], kinds: Sequence[Kind]) -> Stack:
    """One graph of edge indices by types.

    :param counts: how many nodes there are of each type, in the order of the types' numbers
    :param edges: edge indices `[2, edges]`, whose numbers count within the types of nodes
    :param kinds: the types of edges in the order of their numbers
    :raises SutureError: RELATION, if edges are of another type, or lead outside of theirs
    """
    names = tuple(counts)
    starts = dict(zip(names, accumulate(counts.values(), initial=0), strict=False))
    number = {kind: place for place, kind in enumerate(kinds)}
    for kind, index in edges.items():
        if kind not in number or kind[0] not in counts or kind[-1] not in counts:
            raise SutureError(
                Code.RELATION, f"edges of the type {kind}, which is not known", remedy="name it among the types"
            )
        _check_ends(kind, index, counts)
    device = next((index.device for index in edges.values()), torch.device("cpu"))
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    src = torch.cat([nothing, *(index[0].long() + starts[kind[0]] for kind, index in edges.items())])
    dst = torch.cat([nothing, *(index[1].long() + starts[kind[-1]] for kind, index in edges.items())])
    types = torch.cat(
        [nothing, *(torch.full_like(index[0], number[kind], dtype=torch.int64) for kind, index in edges.items())]
    )
    sizes = torch.tensor([*counts.values()], dtype=torch.int64, device=device)
    node_type = torch.arange(len(names), device=device).repeat_interleave(sizes)
    graph = MessageGraph(
        src, dst, types, num_nodes=sum(counts.values()), num_types=len(number), node_type=node_type, num_node_types=len(names),
        validate=False,
    )  # fmt: skip
    return Stack(graph, names, tuple(counts.values()), tuple(number))


def _check_ends(kind: Kind, index: torch.Tensor, counts: Mapping[str, int]) -> None:
    """Refuse edges that lead outside of their types' nodes, which in the stack would be nodes of other types."""
    if index.dim() != 2 or index.shape[0] != 2 or index.is_floating_point() or index.dtype == torch.bool:
        raise SutureError(
            Code.RELATION,
            f"edges {kind} have an index {index.dtype} {list(index.shape)}",
            remedy="give integers [2, edges]",
        )
    for row, name, what in ((0, kind[0], "sources"), (1, kind[-1], "destinations")):
        outside = (index[row] < 0) | (index[row] >= counts[name])
        if index.shape[1] and bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise SutureError(
                Code.RELATION, f"{int(outside.sum())} {what} of {kind} are out of range: {int(index[row, first])} at edge {first}",
                remedy=f"there are {counts[name]} nodes of type {name!r}",
            )  # fmt: skip


def _count(data: Any, name: str) -> int:
    found = data[name].num_nodes
    if found is None:
        raise SutureError(
            Code.RELATION, f"it is not known how many nodes of type {name!r} there are", remedy="give it x or num_nodes"
        )
    return int(found)


def from_neighbor_batch(
    batch: Any, *, num_types: int | None = None, names: Sequence[str] | None = None, kinds: Sequence[Kind] | None = None
) -> tuple[MessageGraph, int] | tuple[Stack, dict[str, int]]:
    """The graph of a batch of PyTorch Geometric's `NeighborLoader`, and how many of its nodes are seeds: these come first, of their type.

    :param batch: `Data`, with `edge_type` where edges have types, or `HeteroData`
    :param num_types: of `Data`: how many types of edges the whole graph has
    :param names: of `HeteroData`: as of `from_hetero`, those of the whole graph
    :param kinds: the same of edges
    :returns: the graph and a number; of `HeteroData` the stack and a number by type of nodes
    :raises SutureError: RELATION, if it is no such batch
    """
    if hasattr(batch, "node_types"):
        made = from_hetero(batch, names=names, kinds=kinds)
        seeds = {name: int(batch[name].batch_size) for name in batch.node_types if "batch_size" in batch[name]}
        if not seeds:
            raise SutureError(
                Code.RELATION,
                "the batch has no batch_size of any type of nodes",
                remedy="give what a NeighborLoader yields",
            )
        return made, seeds
    index, seed_count = getattr(batch, "edge_index", None), getattr(batch, "batch_size", None)
    if index is None or seed_count is None:
        raise SutureError(
            Code.RELATION, f"a {type(batch).__name__} without {'edge_index' if index is None else 'batch_size'}",
            remedy="give what a NeighborLoader yields",
        )  # fmt: skip
    kind = getattr(batch, "edge_type", None)
    return from_edge_index(index, kind, num_nodes=int(batch.num_nodes), num_types=num_types), int(seed_count)
