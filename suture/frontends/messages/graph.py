"""The graph that a message-passing program sees: edges with a source, a destination and a type, nodes with a type, and sums of messages in nodes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from suture.frontends.messages.groups import Groups, Relations, reciprocal, rows_of
from suture.frontends.messages.lookups import Index
from suture.frontends.messages.operators import lookup, segment_sum, unique_rows
from suture.frontends.messages.validation import inside, integers, natural, one_device, same_length
from suture.ir.errors import Code, SutureError


class Edges:
    """The edges of a graph: `e.src`, `e.dst` and `e.type` look values up, `x[e.src]`.

    :param src: the node that each edge comes from
    :param dst: the node that it goes to
    :param type: its type; asking for it where edges have none is an error
    """

    def __init__(self, src: Index, dst: Index, type: Index | None) -> None:
        self.src = src
        self.dst = dst
        self._type = type

    @property
    def type(self) -> Index:
        """The type of each edge.

        :raises SutureError: RELATION, if edges have no types
        """
        if self._type is None:
            raise SutureError(Code.RELATION, "the graph's edges have no types", remedy="give MessageGraph a type")
        return self._type

    def __len__(self) -> int:
        return self.src.tensor.shape[0]


class Nodes:
    """Nodes of a graph: `n.type` looks weights up, `x @ W[n.type]`."""

    def __init__(self, size: int, type: Index | None) -> None:
        self.size = size
        self._type = type

    @property
    def type(self) -> Index:
        """The type of each node.

        :raises SutureError: RELATION, if nodes have no types
        """
        if self._type is None:
            raise SutureError(Code.RELATION, "the graph's nodes have no types", remedy="give MessageGraph a node_type")
        return self._type

    def __len__(self) -> int:
        return self.size


class MessageGraph:
    """Edges between nodes, each with a type, for message-passing programs; what is reduced goes to the edges' destinations.

    :param src: the node that each edge comes from: integers `[edges]`
    :param dst: the node that it goes to
    :param type: its type; None if all edges are alike
    :param num_nodes: how many nodes there are; for a graph from one set of nodes to another give `num_src` and `num_dst` instead
    :param num_types: how many types; one more than the largest if absent
    :param node_type: the type of each node `[nodes]`; in a graph between two sets a pair, of sources and of targets
    :param num_node_types: how many types of nodes; one more than the largest if absent
    :param validate: whether to look at the numbers; those of edges known to be right need not be read
    :raises SutureError: RELATION or DEVICE, with counts and places, if they do not fit each other
    """

    def __init__(
        self,
        src: torch.Tensor,
        dst: torch.Tensor,
        type: torch.Tensor | None = None,
        *,
        num_nodes: int | None = None,
        num_src: int | None = None,
        num_dst: int | None = None,
        num_types: int | None = None,
        node_type: torch.Tensor | tuple[torch.Tensor | None, torch.Tensor | None] | None = None,
        num_node_types: int | None = None,
        validate: bool = True,
    ) -> None:
        self.bipartite = num_nodes is None
        self.spaces = ("sources", "targets") if self.bipartite else ("nodes", "nodes")
        """What sources and destinations are numbers of."""
        counts = (num_src, num_dst) if self.bipartite else (num_nodes, num_nodes)
        if None in counts or (not self.bipartite and (num_src, num_dst) != (None, None)):
            remedy = "give num_nodes, or num_src and num_dst"
            raise SutureError(Code.RELATION, "it is not clear how many nodes there are", remedy=remedy)
        self.tensors: dict[str, torch.Tensor] = {"src": integers(src, "sources"), "dst": integers(dst, "destinations")}
        """The integers that make the graph, by the names they have as inputs of a program."""
        if type is not None:
            self.tensors["type"] = integers(type, "types")
        self.tensors |= _node_types(node_type, bipartite=self.bipartite)
        self.sizes: dict[str, int] = {"edges": len(self.tensors["src"])}
        """How many of each there are; symbolic while a program is traced."""
        self.sizes |= {space: natural(count, space) for space, count in zip(self.spaces, counts, strict=True)}
        kinds = [tensor for name, tensor in self.tensors.items() if name.endswith("node_type")]
        one_device(self.tensors)
        same_length({name: tensor for name, tensor in self.tensors.items() if not name.endswith("node_type")})
        self.num_types = _number_of_types(num_types, [self.tensors["type"]] if type is not None else [])
        self.num_node_types = _number_of_types(num_node_types, kinds)
        self.counts = dict(self.sizes)
        """`sizes`, as numbers."""
        self.cache: dict[Any, Any] = {}
        """What others computed from these edges and want to find again."""
        self._check_node_types()
        if validate:
            self._check_numbers()

    @property
    def src(self) -> torch.Tensor:
        """The source of each edge."""
        return self.tensors["src"]

    @property
    def dst(self) -> torch.Tensor:
        """The destination of each edge."""
        return self.tensors["dst"]

    @property
    def type(self) -> torch.Tensor | None:
        """The type of each edge."""
        return self.tensors.get("type")

    @property
    def num_edges(self) -> int:
        """How many edges there are."""
        return self.sizes["edges"]

    @property
    def num_src(self) -> int:
        """How many nodes edges may come from."""
        return self.sizes[self.spaces[0]]

    @property
    def num_dst(self) -> int:
        """How many nodes edges may go to."""
        return self.sizes[self.spaces[1]]

    @property
    def device(self) -> torch.device:
        """Where the edges are."""
        return self.src.device

    @cached_property
    def edges(self) -> Edges:
        """The edges."""
        sources, targets = self.spaces
        type = Index(self.tensors["type"], self.num_types, "types") if "type" in self.tensors else None
        return Edges(self._index("src", sources), self._index("dst", targets), type)

    @cached_property
    def sources(self) -> Nodes:
        """The nodes that edges come from."""
        return Nodes(self.num_src, self._kind("src_node_type" if self.bipartite else "node_type"))

    @cached_property
    def targets(self) -> Nodes:
        """The nodes that edges go to."""
        return Nodes(self.num_dst, self._kind("dst_node_type")) if self.bipartite else self.sources

    @property
    def nodes(self) -> Nodes:
        """The nodes; of a graph between two sets, those that edges go to."""
        return self.targets

    @cached_property
    def incoming(self) -> Groups:
        """The edges in groups of one destination."""
        return Groups(self.edges.dst)

    @cached_property
    def relations(self) -> Relations:
        """The edges in groups of one destination and one type."""
        e = self.edges
        first, group = unique_rows(e.dst.tensor, e.type.tensor)
        groups = Index(group, first.shape[0], "groups", 0)
        type = Index(lookup(e.type.tensor, first), self.num_types, "types")
        return Relations(groups, type, Index(lookup(e.dst.tensor, first), e.dst.size, e.dst.space, e.dst.count))

    def sum(self, messages: torch.Tensor) -> torch.Tensor:
        """The sum of the messages `[e, *f]` that come to each node: `[nodes, *f]`."""
        return self.incoming.sum(messages)

    def mean(self, messages: torch.Tensor, *, per_relation: bool = False) -> torch.Tensor:
        """Their mean, zero where none come; `per_relation`, the sum over the types of edges of the mean over each."""
        if not per_relation:
            return self.incoming.mean(messages)
        rows = rows_of(messages)
        return self.sum(rows * reciprocal(self.in_degree(per_relation=True), rows))

    def max(self, messages: torch.Tensor, *, per_relation: bool = False) -> torch.Tensor:
        """Their maximum, element by element, zero where none come; `per_relation`, the sum over the types of edges of the maximum over each."""
        return self.relations.into_nodes(self.relations.max(messages)) if per_relation else self.incoming.max(messages)

    def softmax(self, scores: torch.Tensor, *, per_relation: bool = False) -> torch.Tensor:
        """The softmax of the scores `[e, *f]` of the edges that come to one node, `per_relation` of one type: `[e, *f]`."""
        return (self.relations if per_relation else self.incoming).softmax(scores)

    def in_degree(self, *, per_relation: bool = False) -> torch.Tensor:
        """How many edges come to each node: int64[nodes]; `per_relation`, for every edge how many of its type come to its node: int64[edges]."""
        return lookup(self.relations.sizes(), self.relations.index.tensor) if per_relation else self.incoming.sizes()

    def out_degree(self) -> torch.Tensor:
        """How many edges go out from each node: int64[nodes]."""
        return segment_sum(torch.ones_like(self.src), self.src, self.num_src)

    def reversed(self) -> MessageGraph:
        """The same edges the other way."""
        names = {"src": "dst", "dst": "src", "src_node_type": "dst_node_type", "dst_node_type": "src_node_type"}
        turned = self._with({names.get(name, name): tensor for name, tensor in self.tensors.items()}, self.sizes)
        turned.spaces = self.spaces[::-1]
        return turned

    def to(self, device: torch.device | str) -> MessageGraph:
        """The graph on a device; itself if it is there."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return self if tensors["src"] is self.src else self._with(tensors, self.sizes)

    def traced(self, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> MessageGraph:
        """The graph with what stands for its tensors and sizes while a program is traced."""
        return self._with(dict(tensors), dict(sizes))

    def __repr__(self) -> str:
        nodes = " to ".join(f"{self.counts[space]:,} {space}" for space in dict.fromkeys(self.spaces))
        types = f" of {self.num_types} types" if "type" in self.tensors else ""
        return f"MessageGraph({self.counts['edges']:,} edges{types}, {nodes})"

    def __getstate__(self) -> dict[str, Any]:
        """Without what was computed from it, which a copy finds again."""
        derived = ("edges", "sources", "targets", "incoming", "relations")
        return {name: part for name, part in vars(self).items() if name not in derived} | {"cache": {}}

    def _with(self, tensors: dict[str, torch.Tensor], sizes: dict[str, int]) -> MessageGraph:
        made = object.__new__(MessageGraph)
        made.bipartite, made.spaces, made.counts = self.bipartite, self.spaces, self.counts
        made.num_types, made.num_node_types = self.num_types, self.num_node_types
        made.tensors, made.sizes, made.cache = tensors, sizes, {}
        return made

    def _index(self, name: str, space: str) -> Index:
        return Index(self.tensors[name], self.sizes[space], space, self.counts[space])

    def _kind(self, name: str) -> Index | None:
        return Index(self.tensors[name], self.num_node_types, "node types") if name in self.tensors else None

    def _check_node_types(self) -> None:
        for name, tensor in self.tensors.items():
            space = self.spaces[0 if name != "dst_node_type" else 1]
            if name.endswith("node_type") and len(tensor) != self.counts[space]:
                raise SutureError(
                    Code.RELATION, f"{len(tensor)} node types for {self.counts[space]} {space}", remedy="every node has one type"
                )  # fmt: skip

    def _check_numbers(self) -> None:
        inside(self.src, self.num_src, "sources", "edge")
        inside(self.dst, self.num_dst, "destinations", "edge")
        if self.type is not None:
            inside(self.type, self.num_types, "edge types", "edge")
        for name, tensor in self.tensors.items():
            if name.endswith("node_type"):
                inside(tensor, self.num_node_types, "node types", "node")


def _node_types(given: Any, *, bipartite: bool) -> dict[str, torch.Tensor]:
    """The types of nodes by their names as inputs.

    :raises SutureError: RELATION, if one is given where two sets of nodes have their own
    """
    if given is None:
        return {}
    if isinstance(given, tuple) != bipartite:
        raise SutureError(
            Code.RELATION, "node_type does not say of which nodes" if bipartite else "two node_type for one set of nodes",
            remedy="give a pair, of sources and of targets, where there are two sets of nodes, and one tensor where there is one",
        )  # fmt: skip
    named = zip(("src_node_type", "dst_node_type"), given, strict=True) if bipartite else [("node_type", given)]
    return {name: integers(tensor, "node types") for name, tensor in named if tensor is not None}


def _number_of_types(given: int | None, tensors: list[torch.Tensor]) -> int:
    """How many types there are: as many as was said, else one more than the largest."""
    if given is not None:
        return natural(given, "the number of types")
    return max((int(tensor.max()) + 1 for tensor in tensors if len(tensor)), default=0)
