"""Widening by padding: new indices stand behind the old ones, and nothing sees them at first.

The new slice of every dimension that holds the atom is followed: a constant (zero, mostly), the mean of the old slices, or anything. A sum
over the atom is exact where the slice is zero, or else where what reads it is zero there. Where a norm's mean of squares sees new zeros (RMS
norm) or new means (layer norm: Wang et al. 2024, section 4.1), its gain and eps make up for the width.

Readers of zeros may hold anything, and get noise: zero times zero would never learn. A norm's new gains get the mean of the old ones, for
the same reason: what they multiply is zero, so that they may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from suture.ir.algebra import Atom, Axis, Chain, Times, atoms_of, resolve
from suture.ir.axes import AxisInfo, AxisTable, Place
from suture.ir.graph import Node, Parameter, Value
from suture.ir.notation import Role
from suture.passes.axis_walk import AtomWalk, Uses, dims_of, sources_of
from suture.passes.exactness import BIAS, LAYOUT, PRODUCTS, RECURRENT, evaluate_constants
from suture.passes.statistics import takes_a_factor

Slice: TypeAlias = float | Literal["mean", "anything"]
Fill: TypeAlias = float | Literal["mean", "noise"]

_SUMS = {*PRODUCTS, "einsum", "sum", "attention", *RECURRENT}
_BENT = (
    "max_pool",
    "adaptive_max_pool",
)  # of the operators that only move numbers, those that do not take means to means
_PARTIAL = {
    "log": 0,
    "log1p": 0,
    "log2": 0,
    "sqrt": 0,
    "rsqrt": 0,
    "reciprocal": 0,
    "pow": 0,
    "div": 1,
}  # the operand that counts
_NORMS = ("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm")
_NORM_FILLS: tuple[Fill, ...] = ("mean", 0.0, 0.0, "mean")  # gain, bias, running mean, running variance


class Padding(AtomWalk[Slice]):
    """The walk.

    :param fill: what writers get: zero, the mean of the old slices, or noise
    :param zeroed: places that get zeros whatever the rule says
    :param masked: whether results that would not be zero are masked; `masks` lists them
    """

    def __init__(
        self,
        table: AxisTable,
        info: AxisInfo,
        weights: set[Value],
        uses: Uses,
        fill: Fill,
        zeroed: frozenset[Place] = frozenset(),
        masked: bool = False,
    ) -> None:
        self.uses = uses
        self.fill = fill
        self.zeroed = zeroed
        self.masked = masked
        self.masks: list[tuple[Node, str]] = []
        self.wanted: set[Place] = set()  # readers that would have to be zero
        self.saddles: list[str] = []  # where zero is multiplied by zero
        super().__init__(table, info, weights)

    def filling(self, place: Place) -> Fill:
        """What a parameter's new entries hold."""
        if place in self.zeroed:
            return 0.0
        if place not in self.uses.writes:
            return "noise"
        value, gainlike = place.value, False
        for node, index in value.uses:
            if node.operator.name in _NORMS and index:
                return _NORM_FILLS[index - 1]
            gainlike = gainlike or (node.operator.name == "mul" and self._multiplies_data(node, index))
        trained = isinstance(value, Parameter) and value.role == "parameter"
        return "mean" if gainlike or (self.fill == "noise" and not trained) else self.fill

    def _multiplies_data(self, node: Node, index: int) -> bool:
        """Whether the other factor holds the atom too, so that this one only scales it."""
        letters = {x for x, axis in self.table.letters[node].items() if self._holds(axis)}
        others = [k for k in range(len(node.inputs)) if k != index]
        return any(letters & self.table.reads[node][k] for k in others if node.inputs[k] is not None)

    def _holds(self, axis: Axis) -> bool:
        return self.atom in set(atoms_of(resolve(axis)))

    def initial(self, place: Place) -> Slice:
        """The slice that a parameter's filling makes."""
        if not isinstance(place.value, Parameter):
            return "anything"
        fill = self.filling(place)
        if isinstance(fill, float):
            return fill
        return "mean" if fill == "mean" and place in self.uses.writes and self.fill == "mean" else "anything"

    def join(self, node: Node, first: Slice, second: Slice) -> Slice:
        """Parts of one dimension that differ may be anything."""
        return first if first == second else "anything"

    def transfer(self, node: Node, letter: str, operands: Sequence[Slice | None]) -> Slice:
        """The new slice of the results, masked where it is not zero."""
        found = self._transferred(node, letter, operands)
        if not self.masked or found == 0.0 or not self._makes_data(node):
            return found
        self.masks.append((node, letter))
        return 0.0

    def _makes_data(self, node: Node) -> bool:
        """Whether a node's results depend on the inputs, and can be multiplied."""
        return all(value not in self.weights and value.dtype.is_floating_point for value in node.outputs)

    def _transferred(self, node: Node, letter: str, operands: Sequence[Slice | None]) -> Slice:
        name, held = node.operator.name, [state for state in operands if state is not None]
        if not held:
            value = node.attributes.get("value") if name == "full" else None
            return float(value) if isinstance(value, int | float) else "mean"  # the same for all indices
        if name in _NORMS or self.table.instances[node].roles[letter] is Role.MIXED:
            return self._normed(node, letter, operands)
        if name in PRODUCTS or name == "einsum":
            return self._product(node, operands)
        if name == "attention":
            scores = [state for k, state in enumerate(operands) if k != 2 and state is not None]
            return operands[2] if operands[2] is not None and (operands[2] == 0.0 or not scores) else "anything"
        if name == "mul":
            return self._multiplied(node, operands)
        if self._leaves_domain(node, operands):
            self.blame_on(node, "what is new may not be finite there")
            return "anything"
        if name == "div" and node.attributes.get("rounding") is None and len(held) == 1 and operands[0] is not None:
            return operands[0]
        if name in LAYOUT:
            bent = name in _BENT or not node.outputs[0].dtype.is_floating_point
            return held[0] if len(set(held)) == 1 and (held[0] == 0.0 or not bent) else "anything"
        if name in ("add", "sub") and "mean" in held:
            return "mean" if all(state == "mean" for state in held) else "anything"
        if name in ("pad", "triangle", "avg_pool"):
            outside = node.attributes.get("value") or 0.0
            return held[0] if held[0] in ("mean", outside) else "anything"
        if name in ("sum", "cumsum", "mean", "vector_norm", "var", "amax", "amin"):
            linear = name in ("sum", "cumsum", "mean")
            return held[0] if held[0] == 0.0 or (linear and held[0] == "mean") else "anything"
        if name in RECURRENT:
            return self._recurrent(node, letter, held)
        return self._evaluated(node, operands)

    def _recurrent(self, node: Node, letter: str, held: Sequence[Slice]) -> Slice:
        """Zero gates leave a state where it began, at zero; another new state may not be read by the columns of the next step."""
        if all(state == 0.0 for state in held):
            return 0.0
        for k, value in enumerate(node.inputs):
            reads = value is not None and value.rank == 2 and 1 in dims_of(self.table, node, k, letter)
            if value is not None and reads and self.state(value, 1) != 0.0:
                self.wanted.update(sources_of(self.table, value, 1, self.atom))
                self.blame_on(node, "its next step reads a slice that does not vanish")
        return "anything"

    def _leaves_domain(self, node: Node, operands: Sequence[Slice | None]) -> bool:
        """Whether a new slice may be where the operator has no finite value: then not even a reader of zeros is safe."""
        index = _PARTIAL.get(node.operator.name)
        power = node.attributes.get("scalar")
        base = node.operator.name == "pow" and operands[0] is not None
        whole = base and isinstance(power, int | float) and power >= 0 and power == int(power)
        if index is None or index >= len(operands) or operands[index] is None or whole:
            return False
        return not isinstance(operands[index], float) or self._evaluated(node, operands) == "anything"

    def _evaluated(self, node: Node, operands: Sequence[Slice | None]) -> Slice:
        if not node.operator.pointwise:
            return "anything"
        states = [state if isinstance(state, float) else None for state in operands]
        found = evaluate_constants(node, states, [state is not None for state in operands])
        return "anything" if found is None else found

    def _product(self, node: Node, operands: Sequence[Slice | None]) -> Slice:
        name = node.operator.name
        factors = PRODUCTS.get(name, tuple(range(len(operands))))
        bias = BIAS.get(name)
        added = operands[bias] if bias is not None and bias < len(operands) and node.inputs[bias] is not None else 0.0
        held = [operands[k] for k in factors if operands[k] is not None]
        if any(state == 0.0 for state in held):
            return "anything" if added is None else added
        linear = len(held) == 1 and held[0] == "mean"
        absent = bias is None or bias >= len(node.inputs) or node.inputs[bias] is None
        return "mean" if linear and (absent or added == "mean") else "anything"

    def _multiplied(self, node: Node, operands: Sequence[Slice | None]) -> Slice:
        held = [state for state in operands if state is not None]
        if all(state == 0.0 for state in held) and len(held) == 2 and not self.masked:
            self.saddles.append(node.path or node.output.name)
        if any(state == 0.0 for state in held):
            return 0.0
        if held == ["mean"]:
            return "mean"
        return self._evaluated(node, operands)

    def _normed(self, node: Node, letter: str, operands: Sequence[Slice | None]) -> Slice:
        name, data = node.operator.name, operands[0]
        bias = operands[2] if len(operands) > 2 and name != "rms_norm" else None
        biased = name != "rms_norm" and len(node.inputs) > 2 and node.inputs[2] is not None
        after: Slice = 0.0 if not biased else "anything" if bias is None else bias
        if self.table.instances[node].roles[letter] is not Role.MIXED:
            mean = operands[3] if len(operands) > 3 else None
            centred = mean in (None, 0.0)
            return after if data == 0.0 and centred else "anything"
        gain = node.inputs[1] if len(node.inputs) > 1 else None
        if self.masked and node.attributes.get("rank", 1) != 1:
            self.blame_on(node, "its statistics see the width, and more than one dimension")
            return "anything"
        if name == "rms_norm" and data == 0.0:
            self.correct("rms", node, letter)
            return 0.0
        centred = (
            data == 0.0 if self.masked else data == "mean" and resolve(self.table.letters[node][letter]) is self.atom
        )
        if name == "layer_norm" and centred and self._gain_scales(node, gain):
            self.correct("rms", node, letter)
            return after
        if name == "l_normalise" and data == 0.0:
            return 0.0
        self.blame_on(node, "its statistics see the width")
        return "anything"

    def _gain_scales(self, node: Node, gain: Value | None) -> bool:
        """Whether a layer norm's own factor can be corrected: by its gain, or by its result if no bias is added."""
        if isinstance(gain, Parameter) and takes_a_factor(gain):
            return True
        return len(node.inputs) < 3 or node.inputs[2] is None

    def reduce(self, node: Node, letter: str, operands: Sequence[Slice | None]) -> None:
        """A sum keeps its value if the new terms are zero."""
        name, held = node.operator.name, [state for state in operands if state is not None]
        if name == "slice":
            return  # it leaves the letter out
        if name == "attention" and letter == "s":
            self.blame_on(node, "its softmax sees the number of keys")
            return
        if name in RECURRENT:
            self._require_zero_readers(node, letter, operands)
        elif any(state == 0.0 for state in held) and name not in ("amax", "amin", "prod", "any", "all", "var", "mean"):
            return
        elif name in _SUMS:
            self._require_zero_readers(node, letter, operands)
        elif name == "mean" and held == [0.0]:
            self.correct("mean", node, letter)
        elif not (
            held == ["mean"] and (name in ("amax", "amin") or (name == "mean" and self._in_every_part(node, letter)))
        ):
            self.blame_on(node, "its result depends on the number of channels")

    def _in_every_part(self, node: Node, letter: str) -> bool:
        """Whether new means leave the mean of the whole axis what it is: a part without them would weigh less."""
        return _weighs_evenly(resolve(self.table.letters[node][letter]), self.atom)

    def _require_zero_readers(self, node: Node, letter: str, operands: Sequence[Slice | None]) -> None:
        if operands[0] == 0.0:
            return
        readers = [k for k, state in enumerate(operands) if state is not None and node.inputs[k] in self.weights]
        if node.operator.name in RECURRENT and readers and all(operands[k] == 0.0 for k in readers):
            return
        for k in readers:
            value = node.inputs[k]
            assert value is not None
            for dim in dims_of(self.table, node, k, letter):
                self.wanted.update(sources_of(self.table, value, dim, self.atom))
        self.blame_on(node, "sums over a slice that does not vanish")


def _weighs_evenly(axis: Axis, atom: Atom) -> bool:
    match axis:
        case Atom():
            return axis is atom
        case Times(factors):
            return any(_weighs_evenly(factor, atom) for factor in factors)
        case Chain(parts):
            return all(_weighs_evenly(part, atom) for part in parts)


def pad(
    table: AxisTable, info: AxisInfo, weights: set[Value], uses: Uses, fill: Fill, *, masked: bool = False
) -> Padding:
    """The walk after which readers are zero wherever they have to be."""
    zeroed: frozenset[Place] = frozenset()
    while True:
        walk = Padding(table, info, weights, uses, fill, zeroed, masked)
        if walk.wanted <= zeroed:
            return walk
        zeroed |= walk.wanted
