"""Parts: a part of a part is one, a part of a join is what was joined, what is split and joined again was whole."""

from __future__ import annotations

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim
from suture.passes.canonical.matching import drop, is_sole, maker, readers, reshaped, source, supersede
from suture.passes.rewriting import Rule


def _dim(node: Node) -> int:
    dim = node.attributes["dim"]
    assert isinstance(dim, int)
    return dim % max(source(node).rank, 1)


def merge_slices(graph: Graph, node: Node) -> str | None:
    """A range of a range is a range."""
    inner = maker(node.inputs[0], "slice") if node.operator.name == "slice" else None
    if inner is None or _dim(inner) != _dim(node):
        return None
    start, step, first, stride = (
        at.attributes[name] for at, name in ((node, "start"), (node, "step"), (inner, "start"), (inner, "step"))
    )
    if not all(isinstance(item, int) for item in (start, step, first, stride)):
        return None
    attributes = {"dim": _dim(node), "start": first + start * stride, "step": step * stride}  # type: ignore[operator]
    made = graph.add(
        "slice", [source(inner)], attributes, shapes=[node.output.shape], path=node.path, name=f"{node.output.name}_direct", before=node
    )  # fmt: skip
    supersede(graph, node.output, made.output)
    return "a part of a part"


def part_of_join(graph: Graph, node: Node) -> str | None:
    """A range of a concatenation that lies in one of its parts is a range of that part."""
    join = maker(node.inputs[0], "concat") if node.operator.name == "slice" else None
    if join is None or _dim(join) != _dim(node) or node.attributes["step"] != 1:
        return None
    dim, length = _dim(node), node.output.shape[_dim(node)]
    start, position = node.attributes["start"], 0
    for part in join.inputs:
        assert part is not None
        size = part.shape[dim]
        if not isinstance(size, int) or not isinstance(length, int) or not isinstance(start, int):
            return None
        if position <= start and start + length <= position + size and part.dtype == node.output.dtype:
            if length == size:
                drop(graph, node, part)
                return "a whole part of a join"
            attributes = {"dim": dim, "start": start - position, "step": 1}
            made = graph.add(
                "slice", [part], attributes, shapes=[node.output.shape], path=node.path, name=f"{node.output.name}_direct", before=node
            )  # fmt: skip
            supersede(graph, node.output, made.output)
            return "a part of one part of a join"
        position += size
    return None


def split_of_join(graph: Graph, node: Node) -> str | None:
    """A split that takes a concatenation apart where it was joined gives its parts."""
    join = maker(node.inputs[0], "concat") if node.operator.name == "split" else None
    if join is None or _dim(join) != _dim(node) or len(join.inputs) != len(node.outputs):
        return None
    pairs = list(zip(node.outputs, join.inputs, strict=True))
    if any(part is None or part.type != value.type for value, part in pairs):
        return None
    for value, part in pairs:
        assert part is not None
        graph.replace_uses(value, part)
    graph.remove(node)
    return "the parts of a join"


def join_of_split(graph: Graph, node: Node) -> str | None:
    """All parts of a split joined in order are the whole."""
    if node.operator.name != "concat":
        return None
    split = maker(node.inputs[0], "split")
    if split is None or node.inputs != split.outputs or _dim(split) != _dim(node):
        return None
    drop(graph, node, source(split))
    return "the whole of a split"


def merge_joins(graph: Graph, node: Node) -> str | None:
    """A concatenation inside a concatenation along the same dimension is one."""
    if node.operator.name != "concat":
        return None
    for index, value in enumerate(node.inputs):
        inner = maker(value, "concat")
        if (
            inner is None
            or _dim(inner) != _dim(node)
            or not is_sole(inner.output)
            or inner.output.dtype != node.output.dtype
        ):
            continue
        inputs = [*node.inputs[:index], *inner.inputs, *node.inputs[index + 1 :]]
        made = graph.add(
            "concat", inputs, node.attributes, path=node.path, name=f"{node.output.name}_flat", before=node
        )
        supersede(graph, node.output, made.output)
        graph.remove_dead()
        return "two joins in one"
    return None


def slices_to_split(graph: Graph, node: Node) -> str | None:
    """Ranges, or single indices, that together are all of a dimension are one split."""
    if node.operator.name not in ("slice", "select"):
        return None
    whole, dim = source(node), _dim(node)
    size = whole.shape[dim]
    if not isinstance(size, int):
        return None
    found: dict[int, tuple[int, Node]] = {}
    for reader in readers(whole):
        extent = _extent(reader, whole, dim)
        if extent is None:
            continue
        if extent[0] in found:
            return None
        found[extent[0]] = (extent[1], reader)
    order = sorted(found)
    lengths = [found[start][0] for start in order]
    if len(order) < 2 or order != [sum(lengths[:k]) for k in range(len(order))] or sum(lengths) != size:
        return None
    first = next(item for item in graph.nodes if item in {found[start][1] for start in order})
    shapes = [(*whole.shape[:dim], length, *whole.shape[dim + 1 :]) for length in lengths]
    split = graph.add(
        "split", [whole], {"dim": dim}, shapes=shapes, path=first.path, name=f"{whole.name}_parts", before=first
    )
    for start, value in zip(order, split.outputs, strict=True):
        reader = found[start][1]
        if reader.operator.name == "slice":
            supersede(graph, reader.output, value)
        else:
            supersede(graph, reader.output, reshaped(graph, value, reader.output.shape, reader))
    return f"{len(order)} parts by one split"


def _extent(node: Node, whole: Value, dim: int) -> tuple[int, int] | None:
    """Start and length of the part of `whole` that a node takes."""
    if node.operator.name not in ("slice", "select") or source(node) is not whole or _dim(node) != dim:
        return None
    if node.operator.name == "select":
        index, size = node.attributes["index"], whole.shape[dim]
        return (index % size, 1) if isinstance(index, int) and isinstance(size, int) else None
    start, length = node.attributes["start"], node.output.shape[dim]
    if node.attributes["step"] != 1 or not isinstance(start, int) or not isinstance(length, int):
        return None
    return start, length


def join_to_roll(graph: Graph, node: Node) -> str | None:
    """The end of a dimension in front of its beginning is a cyclic shift."""
    if node.operator.name != "concat" or len(node.inputs) != 2:
        return None
    dim = _dim(node)
    whole, cut = _turned(node, dim)
    if whole is None or whole.type != node.output.type or not isinstance(cut, int):
        return None
    made = graph.add(
        "roll", [whole], {"shifts": (-cut,), "dims": (dim,)}, path=node.path, name=f"{node.output.name}_rolled", before=node
    )  # fmt: skip
    supersede(graph, node.output, made.output)
    graph.remove_dead()
    return f"a shift by {-cut}"


def _turned(node: Node, dim: int) -> tuple[Value | None, Dim]:
    """The value whose two parts a node joins the other way round, and where it was cut."""
    first, second = node.inputs
    split = maker(first, "split")
    if split is not None and _dim(split) == dim and split.outputs == (second, first):
        return source(split), split.outputs[0].shape[dim]
    parts = maker(first, "slice"), maker(second, "slice")
    if parts[0] is None or parts[1] is None or source(parts[0]) is not source(parts[1]):
        return None, 0
    whole = source(parts[0])
    late, early = _extent(parts[0], whole, dim), _extent(parts[1], whole, dim)
    if late is None or early is None or early[0] != 0 or late[0] != early[1] or whole.shape[dim] != late[0] + late[1]:
        return None, 0
    return whole, early[1]


def merge_rolls(graph: Graph, node: Node) -> str | None:
    """A shift of a shift is one, each dimension by the sum."""
    inner = maker(node.inputs[0], "roll") if node.operator.name == "roll" else None
    if inner is None or not is_sole(inner.output):
        return None
    rank, shifts = node.output.rank, dict[int, int]()
    for at in (inner, node):
        dims, amounts = at.attributes["dims"], at.attributes["shifts"]
        assert isinstance(dims, tuple) and isinstance(amounts, tuple)
        for dim, amount in zip(dims, amounts, strict=True):
            if not isinstance(amount, int) or not isinstance(dim, int):
                return None
            shifts[dim % rank] = shifts.get(dim % rank, 0) + amount
    kept = {dim: amount for dim, amount in sorted(shifts.items()) if amount}
    attributes = {"shifts": tuple(kept.values()), "dims": tuple(kept)}
    made = graph.add(
        "roll", [source(inner)], attributes, path=node.path, name=f"{node.output.name}_merged", before=node
    )
    supersede(graph, node.output, made.output)
    return "two shifts in one"


def pad_into_window(graph: Graph, node: Node) -> str | None:
    """Zeros around an image, equally on both sides, are the padding of the convolution that alone reads it."""
    pad = maker(node.inputs[0], "pad") if node.operator.name == "conv" else None
    if pad is None or pad.attributes["mode"] != "constant" or pad.attributes["value"] not in (None, 0, 0.0):
        return None
    pads = pad.attributes["pads"]
    assert isinstance(pads, tuple)
    rank = source(pad).rank
    before, after = pads[:rank], pads[rank:]
    if before != after or any(before[:2]) or any(not isinstance(item, int) or item < 0 for item in before):
        return None
    own = node.attributes["padding"]
    assert isinstance(own, tuple)
    padding = tuple(a + b for a, b in zip(own * (rank - 2) if len(own) == 1 else own, before[2:], strict=True))  # type: ignore[operator]
    made = graph.add(
        "conv", [source(pad), *node.inputs[1:]], {**node.attributes, "padding": padding}, path=node.path, name=f"{node.output.name}_padded",
        before=node,
    )  # fmt: skip
    supersede(graph, node.output, made.output)
    graph.remove_dead()
    return "padding of the convolution"


RULES = (
    Rule("part of part", merge_slices),
    Rule("part of join", part_of_join),
    Rule("split of join", split_of_join),
    Rule("join of split", join_of_split),
    Rule("join of join", merge_joins),
    Rule("parts to split", slices_to_split),
    Rule("join to shift", join_to_roll),
    Rule("shifts", merge_rolls),
    Rule("padding", pad_into_window),
)
