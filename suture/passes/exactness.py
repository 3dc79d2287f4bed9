"""What a cut of an axis does to the function: exact, exact after a correction, or approximate because of a named operator.

The question is put as the zero-then-cut check puts it. Zero every parameter element that the cut removes where it writes the axis
(a weight's rows, its bias, a norm's gain), and follow the doomed slice through the graph: it is zero, or a known constant, or it varies
with the data. The cut is exact if the slice is zero wherever an operator sums over the axis, because removing zero terms changes no sum.
Where an operator's statistics see the width (RMS norm, mean) a correction restores them; a constant that is summed with weights is
absorbed into the reader's bias. Anything else is approximate, and the first operator to blame is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from suture.ir.algebra import Atom, atoms_of, resolve
from suture.ir.axes import AxisInfo, AxisTable
from suture.ir.graph import Node, Parameter, Value
from suture.ir.notation import Role

State: TypeAlias = "float | None"  # the value of the doomed slice: a constant, or None where it varies

PRODUCTS = {
    "linear": (0, 1),
    "matmul": (0, 1),
    "conv": (0, 1),
    "conv_transpose": (0, 1),
    "addmm": (1, 2),
    "bilinear": (0, 1, 2),
}
BIAS = {"linear": 2, "conv": 2, "conv_transpose": 2, "addmm": 0, "bilinear": 3}
LAYOUT = {
    "reshape", "permute", "expand", "repeat", "repeat_interleave", "concat", "split", "slice", "select", "roll", "flip", "embedding", "index",
    "gather", "pixel_shuffle", "pixel_unshuffle", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "interpolate", "cast", "dropout", "clone",
}  # fmt: skip
_ABSORBING = ("linear", "conv", "addmm")
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Correction:
    """An edit that restores the function after a cut.

    `kind` is `rms` (gain by sqrt(N/N'), eps by N/N'; of a layer norm too), `mean` (result by N'/N), `absorb` (the constant `value` times the
    reader's doomed weights goes into its bias) or `share` (operand `operand` of the node is multiplied by the shares of an atom's copies).
    """

    kind: str
    node: Node
    letter: str
    atom: Atom
    value: float = 0.0
    operand: int = 0

    def __str__(self) -> str:
        place = self.node.path or self.node.outputs[0].name
        return {
            "rms": f"gain and eps of {place} rescaled", "mean": f"mean {place} rescaled", "absorb": f"constant {self.value:g} absorbed by {place}",
            "share": f"what {place} reads is shared among the copies",
        }[self.kind]  # fmt: skip


@dataclass
class Verdict:
    """Whether removing indices of an atom keeps the function, given that the parameters that write them are zero."""

    corrections: list[Correction] = field(default_factory=list)
    blame: list[str] = field(default_factory=list)
    readers: set[Parameter] = field(default_factory=set)

    @property
    def level(self) -> str:
        """`exact`, `exact after a correction`, or `approximate`."""
        if self.blame:
            return "approximate"
        return "exact after a correction" if self.corrections else "exact"

    def __str__(self) -> str:
        if self.blame:
            return f"approximate: {self.blame[0]}" + (f" (+{len(self.blame) - 1} more)" if len(self.blame) > 1 else "")
        if self.corrections:
            shown = "; ".join(str(c) for c in self.corrections[:2])
            return f"exact after a correction: {shown}" + (
                f" (+{len(self.corrections) - 2} more)" if len(self.corrections) > 2 else ""
            )
        return "exact"


def constant_values(table: AxisTable) -> set[Value]:
    """The values that depend on no graph input: parameters and what is computed from them alone."""
    found: set[Value] = set(table.graph.parameters.values())
    for node in table.graph.nodes:
        if all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def judge(table: AxisTable, info: AxisInfo, weights: set[Value] | None = None) -> Verdict:
    """The verdict on cutting an atom.

    :param weights: `constant_values(table)`, if the caller has it already
    """
    return _Judge(table, info.atom, constant_values(table) if weights is None else weights).run(info)


class _Judge:
    """One walk along the nodes that touch an atom, with the state of the doomed slice of every value that holds it."""

    def __init__(self, table: AxisTable, atom: Atom, weights: set[Value]) -> None:
        self.table = table
        self.atom = atom
        self.weights = weights
        self.states: dict[Value, State] = {}
        self.verdict = Verdict()
        self.writers: set[Parameter] = set()

    def run(self, info: AxisInfo) -> Verdict:
        letters: dict[Node, list[str]] = {}
        for node, letter, _, _ in info.touches:
            letters.setdefault(node, []).append(letter)
        for node, held in letters.items():
            self._visit(node, held)
        self.verdict.readers -= self.writers  # a tied table writes what it reads
        return self.verdict

    def _visit(self, node: Node, held: list[str]) -> None:
        instance, made, kept = self.table.instances[node], self.table.makes[node], set(held)
        operands: list[tuple[Value, State] | None] = []  # operands that hold the atom, with their states
        for value, letters in zip(node.inputs, self.table.reads[node], strict=False):
            present = value is not None and not kept.isdisjoint(letters)
            operands.append(
                (value, self._state(value, bool(letters & kept & made))) if present and value is not None else None
            )
        for letter in held:
            if node.operator.name == "attention" and letter == "s":
                self._mixed(node, letter, operands)  # a key of zeros still takes its part of the softmax
            elif letter not in made or (node.operator.name in RECURRENT and letter == "i"):
                self._summed(node, letter, operands)
            elif instance.roles[letter] is Role.MIXED:
                self._mixed(node, letter, operands)
        if any(letter in made for letter in held):
            state = self._transfer(node, operands)
            for value in node.outputs:
                if self._holds(value):
                    self.states[value] = state

    def _holds(self, value: Value) -> bool:
        return any(self.atom in set(atoms_of(resolve(axis))) for axis in self.table.dims[value])

    def _state(self, value: Value, writes: bool) -> State:
        if not isinstance(value, Parameter):
            return self.states.get(value)
        if writes and value.role == "parameter":
            self.writers.add(value)
            return 0.0
        return None

    def _summed(self, node: Node, letter: str, operands: list[tuple[Value, State] | None]) -> None:
        """The letter is summed over (or reduced otherwise): zero terms may go; a constant may be absorbed."""
        name = node.operator.name
        terms: list[tuple[Value, State]] = []
        for operand, letters in zip(operands, self.table.reads[node], strict=False):
            if operand is not None and letter in letters:
                terms.append(operand)
        data = [(value, state) for value, state in terms if value not in self.weights]
        readers = [value for value, _ in terms if value in self.weights]
        if data:  # weights that meet data here read the axis: their doomed columns may hold anything
            for value in readers:
                self._mark_reader(value)
        states = [state for _, state in (data or terms)]
        if name == "mean":
            self._correct("mean", node, letter) if states == [0.0] else self._blame(
                node, "takes the mean of a slice that does not vanish"
            )
        elif name in ("amax", "amin", "prod", "any", "all", "var", "vector_norm") and not (
            name == "vector_norm" and states == [0.0]
        ):
            self._blame(node, "its result depends on the number of channels")
        elif any(state == 0.0 for state in states):
            return
        elif name in _ABSORBING and len(states) == 1 and states[0] is not None and readers and _takes_a_constant(node):
            self.verdict.corrections.append(Correction("absorb", node, letter, self.atom, states[0]))
            if name == "conv" and any(pad != 0 for pad in _numbers(node.attributes["padding"])):
                self._blame(node, f"a constant {states[0]:g} meets its zero padding")
        else:
            constant = states and states[0] is not None
            self._blame(
                node,
                f"sums over a slice that is {states[0]:g}" if constant else "sums over a slice that does not vanish",
            )

    def _mixed(self, node: Node, letter: str, operands: list[tuple[Value, State] | None]) -> None:
        if node.operator.name == "rms_norm" and operands[0] is not None and operands[0][1] == 0.0:
            self._correct("rms", node, letter)
        elif node.operator.name == "attention":
            self._blame(node, "softmax sees the width")
        else:
            self._blame(node, "its statistics see the width")

    def _correct(self, kind: str, node: Node, letter: str) -> None:
        self.verdict.corrections.append(Correction(kind, node, letter, self.atom))

    def _blame(self, node: Node, reason: str) -> None:
        self.verdict.blame.append(f"{node.operator.name} {node.path or node.outputs[0].name}: {reason}")

    def _mark_reader(self, value: Value) -> None:
        if isinstance(value, Parameter):
            self.verdict.readers.add(value)
        elif value.producer is not None:
            for source in value.producer.inputs:
                if source is not None:
                    self._mark_reader(source)

    def _transfer(self, node: Node, operands: list[tuple[Value, State] | None]) -> State:
        """The state of the doomed slice of the results."""
        name = node.operator.name
        states = [None if operand is None else operand[1] for operand in operands]
        present = [operand is not None for operand in operands]
        if name in PRODUCTS or name == "einsum":
            factors = PRODUCTS.get(name, tuple(range(len(operands))))
            if not any(present[k] and states[k] == 0.0 for k in factors):
                return None
            bias = BIAS.get(name)
            if bias is None or bias >= len(node.inputs) or node.inputs[bias] is None:
                return 0.0
            return 0.0 if present[bias] and states[bias] == 0.0 else None
        if name == "attention":
            mixed_in = (present[0] or present[1]) and states[2] != 0.0
            return None if not present[2] or mixed_in else states[2]
        if name == "mul":
            if any(here and state == 0.0 for here, state in zip(present, states, strict=True)):
                return 0.0
            return evaluate_constants(node, states, present)
        if name == "div" and present[0] and states[0] == 0.0:
            return 0.0
        if name in LAYOUT:
            known = {state for here, state in zip(present, states, strict=True) if here}
            return known.pop() if len(known) == 1 else None
        if name in ("pad", "avg_pool", "triangle"):
            outside = node.attributes.get("value") or 0.0
            padded = name != "avg_pool" or any(_numbers(node.attributes["padding"]))
            return states[0] if states[0] == outside or not padded else None
        if name in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"):
            return self._normed(node, states, present)
        if name in ("sum", "cumsum", "vector_norm", "var"):
            return 0.0 if states[0] == 0.0 else None
        if name in ("mean", "amax", "amin"):
            return states[0]
        if name == "full":
            value = node.attributes["value"]
            return float(value) if isinstance(value, int | float) else None
        if name in RECURRENT:
            # Zero gates leave the state where it began: h stays zero if it was.
            return 0.0 if all(state == 0.0 for state in states[1 : 3 if name == "lstm" else 2]) else None
        if node.operator.pointwise:
            return evaluate_constants(node, states, present)
        return None

    def _normed(self, node: Node, states: list[State], present: list[bool]) -> State:
        gain = node.inputs[1] if len(node.inputs) > 1 else None
        bias = node.inputs[2] if len(node.inputs) > 2 and node.operator.name != "rms_norm" else None
        bias_zero = bias is None or (present[2] and states[2] == 0.0)
        if gain is not None and present[1] and states[1] == 0.0 and bias_zero:
            return 0.0
        centred = node.operator.name != "batch_norm"
        return 0.0 if centred and states[0] == 0.0 and bias_zero else None


def evaluate_constants(node: Node, states: Sequence[State], present: Sequence[bool]) -> State:
    """Run a pointwise operator on constants, where all that it reads is constant."""
    operands: list[torch.Tensor | None] = []
    for value, state, here in zip(node.inputs, states, present, strict=True):
        if value is None:
            operands.append(None)
            continue
        if not here or state is None:
            return None
        if not value.dtype.is_floating_point:
            return None
        operands.append(torch.tensor(state, dtype=torch.float64))
    if node.operator.name == "prelu":
        return 0.0 if states[0] == 0.0 else None
    attributes = {k: v for k, v in node.attributes.items() if not isinstance(v, tuple)}
    if len(attributes) != len(node.attributes) or any(
        not isinstance(v, int | float | str | bool | None) for v in attributes.values()
    ):
        return None
    result = node.operator.run(*operands, **attributes)
    number = float(result)
    return number if number == number and abs(number) != float("inf") else None


def _takes_a_constant(node: Node) -> bool:
    """Whether the weight is a parameter, and the bias one too or absent: then the bias may take up a constant."""
    weight, bias = (2, 0) if node.operator.name == "addmm" else (1, 2)
    held = node.inputs[bias] if bias < len(node.inputs) else None
    return isinstance(node.inputs[weight], Parameter) and (held is None or isinstance(held, Parameter))


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)
