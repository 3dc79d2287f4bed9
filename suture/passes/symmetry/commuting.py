"""Which changes of basis an operator commutes with: what must hold at the other dimensions of a node if one of them changes.

A *side* is 1 where a dimension takes the map, -1 where it takes the map's inverse transposed (as weights do that are summed with what was
mapped), 0 where it stays. A rule answers with the assignments that keep the node's function; the first is preferred. They are given for one
sign: the opposite holds as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from suture.ir.algebra import resolve
from suture.ir.axes import AxisTable
from suture.ir.graph import Node, Parameter
from suture.ir.notation import Role
from suture.ir.operator import FunctionClass
from suture.passes.exactness import BIAS, PRODUCTS
from suture.passes.symmetry.basis import Kind, Meeting, Slot

Assignment: TypeAlias = Mapping[Slot, int]

_FIXED = {
    Role.ORDERED: "order matters along it",
    Role.LOOKUP: "it is looked up by data along it",
    Role.CONDITIONAL: "what it does is decided at run time",
}
_CONSTANT_KEEPING = {
    "reshape", "permute", "expand", "repeat", "repeat_interleave", "concat", "split", "slice", "select", "roll", "flip", "index", "gather", "clone",
    "dropout", "mean", "adaptive_avg_pool", "interpolate", "cast",
}  # fmt: skip
_STATISTICS = ("layer_norm", "rms_norm", "group_norm", "instance_norm")


@dataclass(frozen=True)
class Answer:
    """The assignments that keep a node's function, and why there is no other."""

    assignments: tuple[Assignment, ...] = ()
    reason: str = ""


def commuting(table: AxisTable, meeting: Meeting, kind: Kind) -> Answer:
    """What a change of basis at a node demands."""
    name = meeting.node.operator.name
    if meeting.role in _FIXED:
        return Answer(reason=_FIXED[meeting.role])
    if name in _STATISTICS:
        return _norm(table, meeting, kind)
    if name == "batch_norm":
        return _batch_norm(meeting, kind)
    if name == "attention":
        return _attention(meeting, kind)
    if name in PRODUCTS or name == "einsum":
        return _product(meeting, kind)
    if name in ("mul", "div"):
        return _multiplication(meeting, kind)
    if meeting.role is not Role.FREE or not meeting.results:
        return Answer(reason="it takes all of the axis together")
    if name == "where":
        return _where(meeting, kind)
    return _together(meeting, kind)


def _with(meeting: Meeting, *mapped: Slot, inverse: tuple[Slot, ...] = ()) -> Assignment:
    """Some slots take the map, some its inverse, the others stay."""
    return dict.fromkeys(meeting.slots, 0) | dict.fromkeys(mapped, 1) | dict.fromkeys(inverse, -1)


def _together(meeting: Meeting, kind: Kind) -> Answer:
    """Operators whose operands take the map all together: linear ones, homogeneous ones where the map is a positive diagonal."""
    node, name = meeting.node, meeting.node.operator.name
    if name == "prelu":
        return _homogeneous(meeting, kind, meeting.operands(0))
    if name == "clamp" and node.attributes["max"] is None and node.attributes["min"] == 0:
        return _homogeneous(meeting, kind, meeting.operands(0))
    if name == "pad":
        filled = node.attributes["value"] or 0
        same = node.attributes["mode"] == "constant" and (filled != 0 or kind is Kind.AFFINE)
        return Answer(reason=f"it pads with {filled:g}") if same else Answer((_with(meeting, *meeting.slots),))
    if node.operator.function is FunctionClass.HOMOGENEOUS:
        return _homogeneous(meeting, kind, meeting.operands())
    if node.operator.function is not FunctionClass.LINEAR:
        return Answer(reason=f"{name} does not commute with {kind.value}")
    if kind is Kind.AFFINE and name not in _CONSTANT_KEEPING:
        return Answer(reason=f"{name} would change the shift")
    if name == "grid_sample" and meeting.operands(1):
        return Answer(reason="it says where to look")
    chosen_by = [slot for slot in meeting.operands() if not meeting.value(slot).dtype.is_floating_point]
    data = [slot for slot in meeting.operands() if slot not in chosen_by]
    if chosen_by and not (data and kind.is_diagonal):
        return Answer(reason="it is looked up by data along it")
    missing = _without_the_axis(meeting)
    return Answer(reason=missing) if missing else Answer((_with(meeting, *data, *meeting.results),))


def _homogeneous(meeting: Meeting, kind: Kind, operands: tuple[Slot, ...]) -> Answer:
    missing = _without_the_axis(meeting) if meeting.node.operator.name != "prelu" else ""
    if kind is not Kind.POSITIVE or missing:
        return Answer(reason=missing or f"{meeting.node.operator.name} does not commute with {kind.value}")
    return Answer((_with(meeting, *operands, *meeting.results),))


def _without_the_axis(meeting: Meeting) -> str:
    """What an elementwise operator reads that is the same along the whole axis, and so would need the map as well."""
    node = meeting.node
    if not node.operator.pointwise:
        return ""
    scalar = node.attributes.get("scalar")
    if isinstance(scalar, int | float) and scalar != 0:
        return f"the number {scalar:g} cannot take the map"
    held = {slot.index for slot in meeting.operands()}
    other = [value for k, value in enumerate(node.inputs) if value is not None and k not in held]
    return f"{other[0]} is the same along the axis and cannot take the map" if other else ""


def _where(meeting: Meeting, kind: Kind) -> Answer:
    node = meeting.node
    numbers = [node.attributes[name] for name in ("on_true", "on_false")]
    if kind is Kind.AFFINE or not kind.is_diagonal or any(isinstance(x, int | float) and x != 0 for x in numbers):
        return Answer(reason=f"where does not commute with {kind.value}")
    data = meeting.operands(1, 2)
    if len(data) != sum(value is not None for value in node.inputs[1:]):
        return Answer(reason="one of its choices is the same along the axis")
    return Answer((_with(meeting, *data, *meeting.results),))


def _product(meeting: Meeting, kind: Kind) -> Answer:
    """Sums of products: linear in each factor."""
    node, name = meeting.node, meeting.node.operator.name
    factors = PRODUCTS.get(name, tuple(range(len(node.inputs))))
    held = meeting.operands(*factors)
    if not meeting.results:
        if len(held) != 2 or held[0].index == held[1].index:
            return Answer(reason="it sums over the axis without weights")
        if kind is Kind.CENTRING:
            return Answer(reason="it reads more than the difference to the mean")
        return Answer(tuple(_with(meeting, one, inverse=(other,)) for one, other in (held, held[::-1])))
    bias = BIAS.get(name)
    added = meeting.operands(bias) if bias is not None else ()
    if bias is not None and bias < len(node.inputs) and node.inputs[bias] is not None and not added:
        return Answer(reason="its bias is the same along the axis")
    if len(held) == 1:
        if kind is Kind.AFFINE:
            return Answer(reason=f"{name} would change the shift")
        return Answer((_with(meeting, *held, *added, *meeting.results),))
    return _each(meeting, kind, held, added)


def _multiplication(meeting: Meeting, kind: Kind) -> Answer:
    node, held = meeting.node, meeting.operands()
    if kind is Kind.AFFINE or (node.operator.name == "div" and node.attributes["rounding"] is not None):
        return Answer(reason=f"{node.operator.name} would change the shift")
    if not held:
        return Answer(reason="what it multiplies is the same along the axis")
    if len(held) == 1:
        if node.operator.name == "div" and held[0].index == 1:
            return Answer(reason="it divides by the axis")
        return Answer((_with(meeting, *held, *meeting.results),))
    if node.operator.name == "div" and kind.is_diagonal:
        above, below = held
        return Answer((_with(meeting, above, below), _with(meeting, above, *meeting.results)))
    return _each(meeting, kind, held, ())


def _each(meeting: Meeting, kind: Kind, held: tuple[Slot, ...], added: tuple[Slot, ...]) -> Answer:
    """A product index by index: one factor takes the scale with the result, or two factors take it and its inverse. Weights come first."""
    if not kind.is_diagonal or kind is Kind.AFFINE:
        return Answer(reason=f"its factors are multiplied index by index, which does not commute with {kind.value}")
    weights = [slot for slot in held if isinstance(meeting.value(slot), Parameter)]
    data = [slot for slot in held if slot not in weights]
    inside = [_with(meeting, one, inverse=(other,)) for one in data for other in weights]
    carried = [_with(meeting, one, *added, *meeting.results) for one in (*weights, *data)]
    return Answer((*inside, *carried))


def _attention(meeting: Meeting, kind: Kind) -> Answer:
    """Linear in the values; queries meet keys along their width."""
    query, key, value = (meeting.operands(k) for k in range(3))
    if not meeting.results:
        if len(query) == len(key) == 1 and not value and kind is not Kind.CENTRING and kind is not Kind.AFFINE:
            pairs = ((query, key), (key, query))
            return Answer(tuple(_with(meeting, *one, inverse=other) for one, other in pairs))
        return Answer(reason="softmax sees the axis")
    if not value:
        return Answer(reason="softmax sees the axis")
    if (query or key) and not kind.is_diagonal:
        return Answer(reason=f"its heads do not mix, which does not commute with {kind.value}")
    return Answer((_with(meeting, *value, *meeting.results),))


def _norm(table: AxisTable, meeting: Meeting, kind: Kind) -> Answer:
    node, name = meeting.node, meeting.node.operator.name
    affine, data = meeting.operands(1, 2), meeting.operands(0)
    if kind.is_diagonal:
        if kind is Kind.AFFINE or not meeting.operands(1):
            return Answer(
                reason="its statistics see the axis" if meeting.operands(1) else "it has no gain that could take it"
            )
        return Answer((_with(meeting, *affine, *meeting.results),), "its statistics see the axis")
    if meeting.role is not Role.MIXED or name not in ("layer_norm", "rms_norm"):
        return Answer(reason=f"{name} does not commute with {kind.value}")
    plain = has_plain_gain(node)
    gain = "its gain differs from index to index: fold it into what reads the norm first"
    if kind is Kind.ORTHOGONAL:
        if name == "layer_norm":
            return Answer(reason="it takes away the mean, which a rotation does not keep: centre the stream first")
        return Answer((_with(meeting, *data, *meeting.results),)) if plain else Answer(reason=gain)
    if name == "rms_norm" or node.attributes["rank"] != 1 or not _is_all(table, meeting):
        return Answer(reason="it does not take away the mean along this axis alone")
    # what it reads may be centred, as it does so itself; what it writes is centred but for the bias, if the gain is plain
    written = (_with(meeting, *meeting.operands(2), *meeting.results),) if plain else ()
    return Answer((_with(meeting, *data), *written), "" if plain else gain)


def _is_all(table: AxisTable, meeting: Meeting) -> bool:
    return resolve(table.letters[meeting.node][meeting.letter]) is meeting.atom


def has_plain_gain(node: Node) -> bool:
    """Whether a norm has no gain, or the same for every index."""
    gain = node.inputs[1] if len(node.inputs) > 1 else None
    if gain is None:
        return True
    if not isinstance(gain, Parameter) or gain.data.is_meta:
        return False
    return bool((gain.data == gain.data.reshape(-1)[0]).all())


def _batch_norm(meeting: Meeting, kind: Kind) -> Answer:
    """`gain (x - mean) / deviation + bias`: the gain and the bias write; the mean goes along with what is read, the gain against it."""
    if not kind.is_diagonal or kind is Kind.AFFINE:
        return Answer(reason=f"batch_norm does not commute with {kind.value}")
    data, gain, bias, mean = (meeting.operands(k) for k in range(4))
    if not mean or not gain:
        return Answer(reason="it has no gain" if mean else "it takes its statistics from the batch")
    written = _with(meeting, *gain, *bias, *meeting.results)
    return Answer((written, _with(meeting, *data, *mean, inverse=gain)))
