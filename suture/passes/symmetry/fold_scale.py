"""fold_scale: factors become part of the layers that write what they multiply; the scale of attention becomes part of the queries."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch

from suture.ir.algebra import Atom, Axis, Chain, Times, size_of
from suture.ir.axes import AxisTable, Place, analyse
from suture.ir.graph import Graph, Node, Value
from suture.passes.contract import Contract
from suture.passes.linear_maps import diagonal, fixed_size
from suture.passes.registry import Notes, register
from suture.passes.symmetry.basis import Kind
from suture.passes.symmetry.constant_fields import constant
from suture.passes.symmetry.parameters import apply_map
from suture.passes.symmetry.reach import Blame, Reach, reach
from suture.passes.symmetry.sites import chosen, drop_unread, read_parameters
from suture.passes.symmetry.ties import Ties


@register(contract=Contract.EXACT)
def fold_scale(
    graph: Graph, notes: Notes, *, at: tuple[str, ...] | None = None, attention: bool = True, factors: bool = True
) -> Graph:
    """Fold the scale of attention into what writes the queries, and layer scales and other factors into what writes what they multiply.

    `softmax(s q k^T)` is `softmax((s q) k^T)`: the query projection and its bias take the scale, through rotary embeddings and reshapes, and the
    node's own becomes 1. A factor, one number or one a channel, goes into the rows of the layer before it.

    :param at: module paths of the attentions and factors, as patterns; all if absent
    :param attention: whether the scale of attention is folded
    :param factors: whether multiplications by constants are folded
    """
    result = graph.copy()
    attentions = [node for node in result.nodes if attention and _is_attention(node)]
    products = [site.node for site in (_multiplications(result) if factors else ())]
    nodes = set(chosen([*attentions, *products], at, "attention or factor"))
    done, stay = fold_factors(result, nodes)
    folded, left = _fold_attention(result, nodes)
    done, stay = done + folded, stay + left
    for text in (*done, *stay):
        notes.note(text)
    if not done:
        notes.not_applicable("no factor can be folded" if stay else "there is no factor")
        return graph
    return result


def fold_factors(graph: Graph, nodes: Container[Node] | None = None) -> tuple[list[str], list[str]]:
    """Fold multiplications by constants in place; what was done, and what stays and why.

    :param nodes: the multiplications; if absent, all that multiply by one number a channel
    """
    found = _multiplications(graph)
    return _fold_each(graph, [site for site in found if (site.vector if nodes is None else site.node in nodes)])


def _fold_attention(graph: Graph, nodes: Container[Node]) -> tuple[list[str], list[str]]:
    sites = [_mark_queries(graph, node) for node in graph.nodes if _is_attention(node) and node in nodes]
    return _fold_each(graph, sites)


@dataclass(frozen=True, eq=False)
class _Site:
    """A multiplication of `data` by constants along a dimension (None for one number), done when it comes out of `end`."""

    node: Node
    end: Node
    operand: int
    dim: int | None
    scale: torch.Tensor
    vector: bool

    @property
    def is_mark(self) -> bool:
        """Whether the end is there only while the factor is folded."""
        return self.end is not self.node

    @property
    def data(self) -> Value:
        """What is multiplied; another value once the factor before it is folded."""
        found = self.end.inputs[self.operand]
        assert found is not None
        return found


@dataclass(frozen=True)
class _Way:
    """How a factor goes into parameters: for each part of an axis, its reach and the numbers."""

    parts: tuple[tuple[Reach, torch.Tensor], ...]

    def tensors(self) -> list[str]:
        """The names of the parameters that change."""
        return list(dict.fromkeys(name for found, _ in self.parts for name in found.tensors()))


def _fold_each(graph: Graph, sites: list[_Site]) -> tuple[list[str], list[str]]:
    """Fold the factors of some sites, the axes before and behind each of them told apart."""
    read, ties = read_parameters(graph), Ties(graph)
    # queries and keys meet in one axis: where both have one weight, that of the queries ends where they take their factor
    table = analyse(graph, apart={site.end.output for site in sites})
    done: list[str] = []
    stay: list[str] = []
    ends = {site.end for site in sites}
    for site in sites:
        where, way = site.node.where(), _way(table, ties, site)
        if isinstance(way, Blame):
            stay.append(f"{where} keeps its factor: {way}")
            continue
        done.append(f"the factor of {where} is part of {', '.join(way.tensors())}")
        for found, numbers in way.parts:
            apply_map(graph, table, found, diagonal(numbers), diagonal(1 / numbers), "scaled")
        if site.is_mark:
            site.node.attributes["scale"] = 1.0
            continue
        ends.discard(site.end)
        _take_out(graph, site)
        table = analyse(graph, apart={end.output for end in ends})
    for site in sites:
        if site.is_mark:
            _take_out(graph, site)
    graph.remove_dead()
    done += ties.join()
    drop_unread(graph, read)
    return done, stay


def _take_out(graph: Graph, site: _Site) -> None:
    graph.replace_uses(site.end.output, site.data)
    graph.remove(site.end)


def _way(table: AxisTable, ties: Ties, site: _Site) -> _Way | Blame:
    """How a factor reaches parameters along one of the dimensions of what it multiplies."""
    if refusal := _refuse(site):
        return Blame(site.node.where(), refusal)
    last = nothing = Blame(site.node.where(), "nothing that writes what it multiplies has weights")
    dims = reversed(range(site.data.rank)) if site.dim is None else (site.dim,)
    for dim in dims:
        if not isinstance(site.data.shape[dim], int) or site.data.shape[dim] == 1:
            continue
        way = _along(table, site, dim)
        if isinstance(way, _Way) and (shared := ties.divided(found for found, _ in way.parts)):
            way = Blame(site.node.where(), f"{shared} is shared with a place that the factor does not reach")
        if isinstance(way, _Way):
            return way
        last = way if last is nothing else last
    return last


def _along(table: AxisTable, site: _Site, dim: int) -> _Way | Blame:
    place = Place(site.data, dim)
    parts: list[tuple[Reach, torch.Tensor]] = []
    offset, kind = 0, Kind.POSITIVE if bool((site.scale > 0).all()) else Kind.DIAGONAL
    axis = table.axis(*place)
    seen: set[Atom] = set()
    for part in axis.parts if isinstance(axis, Chain) else (axis,):
        size = fixed_size(size_of(part))
        numbers = site.scale[offset : offset + size] if site.scale.ndim else site.scale
        offset += size
        atom = _first_atom(part)
        if numbers.ndim and (part is not atom or atom in seen):
            return Blame(site.node.where(), "its numbers run along an axis that is divided into rows", site.node)
        if atom in seen:
            continue  # one map goes for all the places of an atom
        seen.add(atom)
        found = reach(table, place, kind, atom=atom, taken_by={site.end})
        if isinstance(found, Blame):
            return found
        numbers = numbers.expand(fixed_size(atom.size)).contiguous()
        if found.uses(-1) and bool((numbers == 0).any()):
            return Blame(site.node.where(), "a factor of 0 cannot be divided by", site.node)
        parts.append((found, numbers))
    return _Way(tuple(parts))


def _first_atom(axis: Axis) -> Atom:
    match axis:
        case Atom():
            return axis
        case Times(inner) | Chain(inner):
            return _first_atom(inner[0])


def _refuse(site: _Site) -> str:
    if site.scale.is_meta or bool(site.scale.isfinite().all()):
        return ""
    return "it is not finite"


def _is_attention(node: Node) -> bool:
    return node.operator.name == "attention" and node.attributes["scale"] not in (0.0, 1.0)


def _mark_queries(graph: Graph, node: Node) -> _Site:
    """The scale of an attention, as a factor behind its queries: a mark stands there while it is folded."""
    data, scale = node.inputs[0], node.attributes["scale"]
    assert data is not None
    assert isinstance(scale, float | int)
    mark = graph.add("clone", [data], path=node.path, before=node)
    node.replace_input(0, mark.output)
    return _Site(node, mark, 0, None, torch.tensor(float(scale), dtype=torch.float64), vector=False)


def _multiplications(graph: Graph) -> list[_Site]:
    """The multiplications by constants of what depends on an input."""
    varying: set[Value] = set(graph.inputs)
    sites = []
    for node in graph.nodes:
        if any(value in varying for value in node.inputs):
            varying.update(node.outputs)
            if (site := _multiplication(node, varying)) is not None:
                sites.append(site)
    return sites


def _multiplication(node: Node, varying: Container[Value]) -> _Site | None:
    """A multiplication of floating-point data by a constant: one number, or one for each index of a dimension."""
    if node.operator.name not in ("mul", "div") or len(node.inputs) != 2:
        return None
    for k in (0, 1) if node.operator.name == "mul" else (0,):
        data, other = node.inputs[k], node.inputs[1 - k]
        if (
            data is None
            or data not in varying
            or other in varying
            or data.type != node.output.type
            or not data.dtype.is_floating_point
        ):
            continue
        scale, dim = _constant(other, data, node.attributes["scalar"])
        if scale is not None:
            number = 1 / scale if node.operator.name == "div" else scale
            return _Site(node, node, k, dim, number, vector=scale.numel() > 1)
    return None


def _constant(other: Value | None, data: Value, scalar: object) -> tuple[torch.Tensor | None, int | None]:
    if other is None:
        known = isinstance(scalar, int | float) and not isinstance(scalar, bool)
        return (torch.tensor(float(scalar), dtype=torch.float64) if known else None), None  # type: ignore[arg-type]
    shape = [size for size in other.shape if isinstance(size, int)]
    wide = [dim for dim, size in enumerate(shape) if size != 1]
    if not other.dtype.is_floating_point or len(shape) < other.rank or other.rank > data.rank or len(wide) > 1:
        return None, None
    numbers = constant(other).to(torch.float64)
    return (numbers.reshape(-1), wide[0] + data.rank - other.rank) if wide else (numbers.reshape(()), None)
