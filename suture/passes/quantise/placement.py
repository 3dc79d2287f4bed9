"""Where quantisers stand: decided from the structure alone, so that each one pays.

A *site* is a node that multiplies in integers. Around the sites some values are integers: what a convolution writes, and what joining operators
make of integers. Every such value has a quantiser, and so has every float that a site reads. Values between which integers pass unchanged (reshape,
max pool, concat) share one. What a linear layer writes stays a float: the kernel can write floats, and a norm, a GELU or a sum reads them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.quantise.integer_operators import ABSORBED, INTEGER, IntegerForm, Result, reason_of, require_integers


@dataclass(frozen=True)
class Site:
    """A node that is to run in integers: the operands that are activations, the weight and the bias, as operand numbers."""

    node: Node
    form: IntegerForm
    activations: tuple[int, ...]
    weight: int | None
    bias: int | None

    @property
    def name(self) -> str:
        """What it is called: its weight, else its result."""
        value = self.node.inputs[self.weight] if self.weight is not None else None
        return value.name if value is not None else self.node.output.name

    @property
    def axis(self) -> int | None:
        """The dimension of the weight that has one scale per index, from the front."""
        if self.weight is None or self.form.weight is None:
            return None
        weight = self.node.inputs[self.weight]
        assert weight is not None
        return self.form.weight[1] % max(weight.rank, 1)

    def __str__(self) -> str:
        return f"{self.node.path or self.node.output.name} ({self.node.operator.name})"


@dataclass
class Placement:
    """The sites, and the values that have quantisers.

    `integers` are values that are computed as integers, so that everything reads them through their quantiser; `floats` are computed as floats, and
    only sites read their quantised form. `groups` lists values that share one quantiser.
    """

    sites: list[Site] = field(default_factory=list)
    joined: list[Node] = field(default_factory=list)
    integers: dict[Value, None] = field(default_factory=dict)
    floats: dict[Value, None] = field(default_factory=dict)
    leaders: dict[Value, Value] = field(default_factory=dict)

    def leader(self, value: Value) -> Value:
        """The value that stands for all that share its quantiser."""
        while value in self.leaders:
            value = self.leaders[value]
        return value

    def tie(self, a: Value, b: Value) -> None:
        """Let two values share one quantiser."""
        first, second = self.leader(a), self.leader(b)
        if first is not second:
            self.leaders[second] = first

    def quantised(self) -> Iterator[Value]:
        """Every value that has a quantiser."""
        yield from self.integers
        yield from self.floats


def find_sites(
    graph: Graph,
    *,
    at: Sequence[str] | None = None,
    operator: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> tuple[list[Site], list[str]]:
    """The sites that a query selects, and a sentence for each operator that was asked for and stays, with the reason.

    :param at: patterns of module paths or weights' names; all if None
    :param operator: operators; those with a weight if None
    :param exclude: patterns of what stays in floats
    :raises SutureError: QUANTISER, if an operator has no integers; SITE, if a pattern matches nothing
    """
    if operator is not None:
        for name in operator:
            require_integers(name)
    sites, left = [], []
    seen: set[str] = set()
    for node in graph.nodes:
        form = INTEGER.get(node.operator.name)
        if operator is not None and node.operator.name not in operator:
            continue
        if form is None and operator is None and _selected(node, at, exclude) and node.operator.macs(node) != 0:
            left.append(
                f"{node.path or node.outputs[0].name} ({node.operator.name}) stays in floats: {reason_of(node.operator.name)}"
            )
        if form is None or form.joins:
            continue
        found = _site(node, form, asked=operator is not None)
        seen |= set(_names(node))
        if not _selected(node, at, exclude):
            continue
        if isinstance(found, str):
            left.append(f"{node.path or node.outputs[0].name} ({node.operator.name}) stays in floats: {found}")
        else:
            sites.append(found)
    for pattern in (*(at or ()), *exclude):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in seen):
            raise SutureError(
                Code.SITE,
                f"the pattern {pattern!r} matches no operator that has integers",
                remedy=nearest(pattern, seen, what="site"),
            )
    return sites, left


def place(graph: Graph, sites: Iterable[Site], *, joining: Sequence[str] = ()) -> Placement:
    """Decide which values have quantisers.

    :param joining: the joining operators that may run in integers; all if empty
    """
    placement = Placement(sites=list(sites))
    chosen = {site.node: site for site in placement.sites}
    for node in graph.nodes:
        form = INTEGER.get(node.operator.name)
        if node in chosen:
            if chosen[node].form.result is Result.INTEGER:
                placement.integers[_bounded(node.output)] = None
        elif form is not None and form.joins and (not joining or node.operator.name in joining):
            _join(placement, node, form)
    for site in placement.sites:
        for index in site.activations:
            value = site.node.inputs[index]
            assert value is not None
            if value not in placement.integers:
                placement.floats[value] = None
    _drop_unread(placement, set(chosen))
    return placement


def _join(placement: Placement, node: Node, form: IntegerForm) -> None:
    """Let a node run in integers if all that it reads are integers."""
    indices = range(len(node.inputs)) if form.operands is None else form.operands
    read = [node.inputs[index] if index < len(node.inputs) else None for index in indices]
    if any(value is None or value not in placement.integers for value in read) or not _has_kernel(node):
        return
    placement.joined.append(node)
    shared = form.result is Result.SHARED
    for output in node.outputs:
        target = output if shared else _bounded(output)
        placement.integers[target] = None
        if shared:
            for value in read:
                assert value is not None
                placement.tie(value, target)


def _has_kernel(node: Node) -> bool:
    """Whether the runtime has an integer kernel for this call of a joining operator."""
    if node.operator.name == "adaptive_avg_pool":
        rank = node.attributes["rank"]
        return isinstance(rank, int) and node.output.rank == rank + 2 and all(s == 1 for s in node.output.shape[-rank:])
    if node.operator.name == "mean":
        rank, dims = node.output.rank, node.attributes["dims"]
        whole = isinstance(dims, tuple) and sorted(dim % rank for dim in dims if isinstance(dim, int)) == [
            *range(2, rank)
        ]
        return whole and rank > 3 and bool(node.attributes["keepdim"])
    if node.operator.name == "avg_pool":
        return node.attributes["divisor"] is None
    return all(output.dtype == torch.float32 for output in node.outputs)


def _drop_unread(placement: Placement, sites: set[Node]) -> None:
    """Take back quantisers behind joining operators that no integer operator reads: layout that only floats read may stay in floats."""
    layout = {
        node for node in placement.joined
        if INTEGER[node.operator.name].result is Result.SHARED and node.operator.name not in ("max_pool", "concat")
    }  # fmt: skip
    for node in reversed(placement.joined):
        if node not in layout:
            continue
        readers = [use.node for output in node.outputs for use in output.uses]
        if any(reader in sites or reader in placement.joined for reader in readers):
            continue
        placement.joined.remove(node)
        for output in node.outputs:
            del placement.integers[output]


def _bounded(value: Value) -> Value:
    """The value behind the bounds that follow an operator, if nothing else reads what lies between."""
    while len(value.uses) == 1 and not value.is_graph_output():
        reader = value.uses[0].node
        if reader.operator.name not in ABSORBED or not _holds_zero(reader):
            break
        value = reader.output
    return value


def _holds_zero(bounds: Node) -> bool:
    """Whether zero lies within the bounds: a quantiser's range always holds it."""
    if bounds.operator.name != "clamp":
        return True
    low, high = bounds.attributes["min"], bounds.attributes["max"]
    return all(isinstance(bound, int | float | None) for bound in (low, high)) and (
        (low is None or low <= 0) and (high is None or high >= 0)  # type: ignore[operator]
    )


def _site(node: Node, form: IntegerForm, *, asked: bool) -> Site | str:
    """The site that a node is, or why it is none."""
    weight, axis = form.weight or (None, 0)
    assert form.operands is not None
    operands = [node.inputs[index] for index in form.operands]
    if any(value is None or value.dtype != torch.float32 for value in (*operands, *node.outputs)):
        return "it is not in float32, between which and integers the kernels convert"
    if weight is not None:
        value = node.inputs[weight]
        if not isinstance(value, Parameter):
            if value is not None and value.producer is not None and value.producer.operator.name == "dequantise":
                return "its weight is in integers already"
            if weight not in form.operands:
                return "its weight is computed"
            return Site(node, form, form.operands, None, None) if asked else "it multiplies two activations"
        if value.data.numel() == 0:
            return "its weight is empty"
        if value.rank < 2 or not -value.rank <= axis < value.rank:
            return f"its weight has rank {value.rank}"
        if value.rank > 2 and node.operator.name == "matmul":
            return "its weight is a stack of matrices"
    activations = tuple(index for index in form.operands if index != weight)
    if any(isinstance(node.inputs[index], Parameter) for index in activations):
        return "it reads no input"
    bias = form.bias if form.bias is not None and form.bias < len(node.inputs) else None
    if bias is not None and not isinstance(node.inputs[bias], Parameter | None):
        return "its bias is computed"
    if bias is not None and node.inputs[bias] is not None and node.inputs[bias].rank != 1:  # type: ignore[union-attr]
        return "its bias is no vector"
    return Site(node, form, activations, weight, bias)


def _selected(node: Node, at: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    names = _names(node)
    wanted = at is None or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in at)
    return wanted and not any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in exclude)


def _names(node: Node) -> tuple[str, ...]:
    """What a pattern may say: the module path, the result's name, the weight's name."""
    weights = [value.name for value in node.inputs if isinstance(value, Parameter) and value.rank > 1]
    return (*([node.path] if node.path else []), node.output.name, *weights)
