"""Queries, keys and values that one layer makes side by side: one Reshape, one Transpose and one Split for the three."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suture.backends.onnx.lowering import Lowering
from suture.ir.graph import Node, Value
from suture.ir.sizes import Dim

if TYPE_CHECKING:
    import onnx_ir


def packed_operands(at: Lowering) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value] | None:
    """Queries, keys (their last two dimensions swapped) and values with a leading size of 1; None where they are not made side by side.

    Taken apart each for itself they cost a Split, three Reshapes and three Transposes, of which these are four.
    """
    ways = [_way(at.value(index)) for index in range(3)]
    split = ways[0][0] if ways[0] is not None else None
    if split is None or len(split.outputs) != 3 or len({value.shape for value in split.outputs}) != 1:
        return None
    if any(way is None or way[0] is not split or way[2:] != ways[0][2:] for way in ways):  # type: ignore[index]
        return None
    parts = [way[1] for way in ways if way is not None]
    if sorted(parts) != [0, 1, 2]:
        return None
    assert ways[0] is not None
    _, _, shape, order = ways[0]
    source = split.inputs[0]
    assert source is not None
    lead = len(shape) - 2
    whole = at.emitter.viewed(source, (*shape[:lead], 3, *shape[lead:]))
    moved = at.transpose(whole, [lead, *(dim + (dim >= lead) for dim in order)])
    made = at.ops("Split", 3, moved, axis=0, **({"num_outputs": 3} if at.opset >= 18 else {}))
    query, key, value = (made[part] for part in parts)
    rank = len(shape) + 1
    return query, at.transpose(key, [*range(rank - 2), rank - 1, rank - 2]), value


def _way(value: Value) -> tuple[Node, int, tuple[Dim, ...], tuple[int, ...]] | None:
    """How heads are made: split along the last dimension, that one taken apart, then reordered. The split, the part, the shape and the order."""
    permute = value.producer
    if permute is None or permute.operator.name != "permute" or len(value.uses) != 1:
        return None
    reshape = permute.inputs[0].producer if permute.inputs[0] is not None else None
    if reshape is None or reshape.operator.name != "reshape" or len(reshape.output.uses) != 1:
        return None
    part = reshape.inputs[0]
    split = part.producer if part is not None else None
    if split is None or split.operator.name != "split" or part is None or len(part.uses) != 1:
        return None
    dim, shape, dims = split.attributes["dim"], reshape.output.shape, permute.attributes["dims"]
    assert isinstance(dim, int) and isinstance(dims, tuple)
    if dim % part.rank != part.rank - 1 or len(shape) < 3 or shape[-2] * shape[-1] != part.shape[-1]:
        return None
    return split, part.index, shape, tuple(item % len(shape) for item in dims if isinstance(item, int))
