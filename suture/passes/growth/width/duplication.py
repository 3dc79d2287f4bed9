"""Widening by duplication: new indices are copies of old ones, and what reads them shares the old weight among the copies.

Chen, Goodfellow and Shlens 2016, section 2.2 (Net2WiderNet); Chen et al. 2022, section 3.2 (bert2BERT, function-preserving initialisation);
Wang et al. 2024, section 4 (LEMON: uneven shares break the symmetry of the copies).

Every dimension that holds the atom is followed with an exponent: the new slice j is `share[j] ** exponent` times the old slice that it copies.
What writes the atom has 0, what reads it 1; a product adds exponents, a sum needs equal ones, and a contraction is exact where they add up to 1.
Where both sides are copies (a tied table, attention's scores) one side is multiplied by the shares: that is a correction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from suture.ir.axes import AxisInfo, AxisTable, Place
from suture.ir.graph import Node, Parameter, Value
from suture.ir.notation import Role
from suture.ir.operator import FunctionClass
from suture.passes.axis_walk import AtomWalk, Uses, dims_of
from suture.passes.exactness import BIAS, LAYOUT, PRODUCTS, RECURRENT

Exponent: TypeAlias = float | Literal["lost"]
Multiplicity: TypeAlias = Callable[[Node, str], "int | None"]

_SUMS = {*PRODUCTS, "einsum", "sum", "attention"}
_EXTREMES = ("amax", "amin", "any", "all")
_NORMS = ("layer_norm", "rms_norm", "group_norm")


class Duplication(AtomWalk[Exponent]):
    """The walk. `multiplicity` says how often a letter's every index occurs at a node after the surgery; None if not equally often."""

    def __init__(
        self,
        table: AxisTable,
        info: AxisInfo,
        weights: set[Value],
        uses: Uses,
        multiplicity: Multiplicity,
        *,
        even: bool,
    ) -> None:
        self.uses = uses
        self.multiplicity = multiplicity
        self.even = even
        super().__init__(table, info, weights)

    def initial(self, place: Place) -> Exponent:
        """Writers copy (a tied table too), readers share."""
        reads = place in self.uses.reads and place not in self.uses.writes
        return (1.0 if reads else 0.0) if isinstance(place.value, Parameter) else "lost"

    def join(self, node: Node, first: Exponent, second: Exponent) -> Exponent:
        """Parts of one dimension must be alike."""
        if first == second:
            return first
        self.blame_on(node, "joins copies with shares")
        return 0.0

    def transfer(self, node: Node, letter: str, operands: Sequence[Exponent | None]) -> Exponent:
        """The exponent of the results."""
        found = self._exponent(node, letter, operands)
        if found == "lost":
            self.blame_on(node, self._reason(node, letter))
            return 0.0
        return found

    def _exponent(self, node: Node, letter: str, operands: Sequence[Exponent | None]) -> Exponent:
        name, role = node.operator.name, self.table.instances[node].roles[letter]
        held = [state for state in operands if state is not None]
        if "lost" in held:
            return "lost"
        numbers = [0.0 if state is None else float(state) for state in operands]
        if name in RECURRENT:
            return self._recurrent(node, letter, numbers)
        if role is Role.MIXED:
            return self._mixed(node, letter, numbers)
        if name in PRODUCTS or name == "einsum":
            factors = PRODUCTS.get(name, tuple(range(len(operands))))
            total = sum(numbers[k] for k in factors)
            bias = BIAS.get(name)
            biased = bias is not None and bias < len(node.inputs) and node.inputs[bias] is not None
            return "lost" if biased and bias is not None and numbers[bias] != total else total
        if name == "attention":
            return numbers[2] if not any((*numbers[:2], *numbers[3:])) else "lost"
        if name == "mul":
            return sum(numbers)
        if name == "div" and node.attributes.get("rounding") is None:
            return numbers[0] - (numbers[1] if len(numbers) > 1 else 0.0)
        if not any(numbers):
            return 0.0  # every index by itself: copies stay copies
        alike = len(set(numbers)) == 1 and len(numbers) == len(held)
        keeps = (
            name in LAYOUT
            or name in ("neg", "sum", "mean", "cumsum")
            or node.operator.function is FunctionClass.HOMOGENEOUS
        )
        additive = node.operator.pointwise and name in ("add", "sub") and node.attributes.get("scalar") is None
        return numbers[0] if alike and (keeps or additive) else "lost"

    def _mixed(self, node: Node, letter: str, numbers: Sequence[float]) -> Exponent:
        """Statistics over copies are those of the originals if all are copied equally often."""
        count = self.multiplicity(node, letter)
        if any(numbers) or count is None:
            return "lost"
        if node.operator.name in _NORMS or (node.operator.name == "batch_norm"):
            return 0.0
        return 1.0 if node.operator.name == "softmax" and self.even else "lost"

    def _recurrent(self, node: Node, letter: str, numbers: Sequence[float]) -> Exponent:
        """States, rows and biases copy; the columns that read the states share."""
        columns = [
            v
            for k, v in enumerate(node.inputs)
            if v is not None and v.rank == 2 and 1 in dims_of(self.table, node, k, letter)
        ]
        return "lost" if any(numbers) or any(self.state(value, 1) != 1.0 for value in columns) else 0.0

    def reduce(self, node: Node, letter: str, operands: Sequence[Exponent | None]) -> None:
        """A sum over copies is exact where their shares add up to one."""
        name = node.operator.name
        held = {k: state for k, state in enumerate(operands) if state is not None}
        if not held or "lost" in held.values() or name == "slice":  # a slice leaves the letter out
            return
        total = sum(float(state) for state in held.values() if state != "lost")
        if name == "attention" and letter == "s":
            # copies of a key share its part of the softmax among themselves
            if total or self.multiplicity(node, letter) is None:
                self.blame_on(node, "its softmax sees how often each key is copied, which is not equally often")
            return
        if name in RECURRENT:
            if held.pop(0, None) != 0.0 or any(state != 1.0 for state in held.values()):
                self.blame_on(node, "sums over copies whose shares do not add up to one")
        elif name in _SUMS:
            if total == 0.0:
                data = [k for k in held if node.inputs[k] not in self.weights]
                self.correct("share", node, letter, (data or list(held))[0])
            elif total != 1.0:
                self.blame_on(node, "sums over copies whose shares do not add up to one")
        elif total or not self._keeps_statistics(node, letter):
            self.blame_on(node, self._reason(node, letter))

    def _keeps_statistics(self, node: Node, letter: str) -> bool:
        if node.operator.name in _EXTREMES:
            return True
        unbiased = node.operator.name == "var" and node.attributes.get("correction") != 0
        even = self.multiplicity(node, letter) is not None
        return node.operator.name in ("mean", "var") and even and not unbiased

    def _reason(self, node: Node, letter: str) -> str:
        role = self.table.instances[node].roles[letter]
        if role is Role.MIXED and self.multiplicity(node, letter) is None:
            return "its statistics see how often each index is copied, which is not equally often"
        return "its statistics see the width" if role is Role.MIXED else "it does not take copies to copies"
