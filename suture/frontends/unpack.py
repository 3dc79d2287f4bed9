"""Parts of a factor that a reshape made become parts of what was reshaped.

`qkv.reshape(B, N, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)` reads one dimension of 3*H*D as a product and takes it apart. Here it becomes a
split of that dimension, in front of the reshape, so that the three parts are independent until an operator joins them
(`linear -> split -> reshape -> permute`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.ir.operators.layout import matching_runs
from suture.ir.sizes import Dim, product


@dataclass(frozen=True)
class Factor:
    """A dimension of a reshape's result, within the dimension of its operand that it is a factor of."""

    source: int  # the operand's dimension
    outer: Dim  # the product of the factors in front
    inner: Dim  # the product of those behind
    alone: bool  # whether it is the whole dimension


def unpack_factors(graph: Graph) -> bool:
    """Rewrite `split` and `select` of a factor made by a reshape, through permutes and sizes of 1, to a split of the reshape's operand."""
    changed = False
    for value in list(graph.values()):
        changed = _selects_to_split(graph, value) or changed
    for node in graph.nodes:
        if node.operator.name == "split" and _comes_from_factor(node.inputs[0], _dim(node)):
            source = node.inputs[0]
            assert source is not None
            parts = _pull(graph, source, _dim(node), [value.shape[_dim(node)] for value in node.outputs], node)
            for old, new in zip(node.outputs, parts, strict=True):
                graph.replace_uses(old, new)
            changed = True
    if changed:
        graph.remove_dead()
    return changed


def join_slices(graph: Graph) -> bool:
    """Slices that take a dimension apart, each index once, are one split."""
    changed = False
    for value in list(graph.values()):
        by_dim: dict[int, list[Node]] = {}
        for node, _ in value.uses:
            if (
                node.operator.name == "slice"
                and node.attributes["step"] == 1
                and isinstance(node.attributes["start"], int)
            ):
                by_dim.setdefault(_dim(node), []).append(node)
        for dim, nodes in by_dim.items():
            nodes.sort(key=lambda node: _start(node))
            ends = [_start(node) + node.output.shape[dim] for node in nodes]
            if len(nodes) < 2 or [_start(node) for node in nodes] != [0, *ends[:-1]] or ends[-1] != value.shape[dim]:
                continue
            first = next(node for node in graph.nodes if node in nodes)
            made = graph.add(
                "split",
                [value],
                {"dim": dim},
                shapes=[node.output.shape for node in nodes],
                path=first.path,
                before=first,
            )
            for node, part in zip(nodes, made.outputs, strict=True):
                graph.replace_uses(node.output, part)
            changed = True
    if changed:
        graph.remove_dead()
    return changed


def _selects_to_split(graph: Graph, value: Value) -> bool:
    """Selects from a factor become parts of one split."""
    by_dim: dict[int, list[Node]] = {}
    for node, _ in value.uses:
        if node.operator.name == "select" and isinstance(node.attributes["index"], int):
            by_dim.setdefault(_dim(node), []).append(node)
    changed = False
    for dim, nodes in by_dim.items():
        size = value.shape[dim]
        if not isinstance(size, int) or size > 64 or not _comes_from_factor(value, dim):
            continue
        first = next(node for node in graph.nodes if node in nodes)
        shape = (*value.shape[:dim], 1, *value.shape[dim + 1 :])
        made = graph.add("split", [value], {"dim": dim}, shapes=[shape] * size, path=first.path, before=first)
        for node in nodes:
            index = node.attributes["index"]
            assert isinstance(index, int)
            part = graph.add("reshape", [made.outputs[index]], shapes=[node.output.shape], path=node.path, before=node)
            graph.replace_uses(node.output, part.output)
        changed = True
    return changed


def _comes_from_factor(value: Value | None, dim: int) -> bool:
    """Whether a dimension leads, through permutes and sizes of 1, to a factor that a reshape made and that has factors behind it."""
    while value is not None and value.producer is not None:
        node = value.producer
        if node.operator.name == "permute":
            dim = _order(node)[dim]
        elif node.operator.name == "reshape":
            factor = _factor(node, dim)
            if factor is None:
                return False
            if not factor.alone:
                return factor.inner != 1
            dim = factor.source
        else:
            return False
        value = node.inputs[0]
    return False


def _pull(graph: Graph, value: Value, dim: int, sizes: Sequence[Dim], before: Node) -> list[Value]:
    """The parts of a dimension of a value, computed from parts of what the value is a view of."""
    node = value.producer
    assert node is not None
    source = node.inputs[0]
    assert source is not None
    if node.operator.name == "permute":
        order = _order(node)
        parts = _pull(graph, source, order[dim], sizes, before)
        return [graph.add("permute", [part], {"dims": order}, path=node.path, before=before).output for part in parts]
    factor = _factor(node, dim)
    assert factor is not None
    shapes = [(*value.shape[:dim], size, *value.shape[dim + 1 :]) for size in sizes]
    if factor.alone:
        parts = _pull(graph, source, factor.source, sizes, before)
    else:
        at = factor.source
        if factor.outer != 1:  # the factors in front stay a dimension of their own
            merged = (*source.shape[:at], factor.outer, value.shape[dim] * factor.inner, *source.shape[at + 1 :])
            source = graph.add("reshape", [source], shapes=[merged], path=node.path, before=before).output
            at += 1
        cut = [(*source.shape[:at], size * factor.inner, *source.shape[at + 1 :]) for size in sizes]
        parts = list(graph.add("split", [source], {"dim": at}, shapes=cut, path=node.path, before=before).outputs)
    return [
        graph.add("reshape", [part], shapes=[shape], path=node.path, before=before).output
        for part, shape in zip(parts, shapes, strict=True)
    ]


def _factor(node: Node, dim: int) -> Factor | None:
    """Where a dimension of a reshape's result comes from; None if from several dimensions, or from none."""
    source = node.inputs[0]
    assert source is not None
    target = node.output.shape
    for left, right in matching_runs(source.shape, target):
        if dim not in right:
            continue
        if len(left) != 1:
            return None
        place = right.index(dim)
        outer, inner = product([target[k] for k in right[:place]]), product([target[k] for k in right[place + 1 :]])
        return Factor(left[0], outer, inner, alone=len(right) == 1)
    return None


def _order(node: Node) -> tuple[int, ...]:
    dims = node.attributes["dims"]
    assert isinstance(dims, tuple)
    rank = node.output.rank
    return tuple(dim % rank for dim in dims if isinstance(dim, int))


def _dim(node: Node) -> int:
    dim, source = node.attributes["dim"], node.inputs[0]
    assert isinstance(dim, int)
    assert source is not None
    return dim % max(source.rank, 1)


def _start(node: Node) -> int:
    start = node.attributes["start"]
    assert isinstance(start, int)
    return start
