"""Which parameters make a block the identity: the question behind every insertion of depth that keeps the function.

Walk from the block's output back to its stream. On the way, each addition has one operand that carries the stream and one branch. If the rest of the
way leaves the stream as it is, the block is the identity once every branch is zero. x + 0 is x in every floating-point type, so this is bit-exact.

A layer on the way itself can be made the identity instead (Net2DeeperNet, Chen et al. 2016, section 2.2): a weight by the unit matrix or the unit
impulse, a batch norm by undoing its statistics. An activation behind it must then leave alone what it has made before: a ReLU does, a GELU does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from suture.ir.graph import Node, Parameter, Value
from suture.ir.regions import Region
from suture.ir.semantics import run_node
from suture.ir.sizes import evaluate_size
from suture.passes.growth.depth.block_edit import Blocked, Edit, called, outcome, unwrap
from suture.passes.growth.depth.positivity import leaves_alone
from suture.passes.growth.depth.silence import NORMS, Silencer, bias_of

Way: TypeAlias = "tuple[tuple[Node, ...], tuple[Edit, ...]]"

_MOVES = ("reshape", "permute", "roll", "flip")
_STATISTICS = 5  # the operands of a batch norm that has all of them


@dataclass(frozen=True)
class IdentityForm:
    """How a block becomes the identity, or the operator that prevents it."""

    edits: tuple[Edit, ...] = ()
    blame: str = ""

    @property
    def bit_exact(self) -> bool:
        """Whether nothing is rounded: only a batch norm that undoes its statistics rounds."""
        return not any(edit.kind in ("deviation", "mean") for edit in self.edits)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose parameters change."""
        return tuple(dict.fromkeys(called(edit.node) for edit in self.edits))

    def holds(self) -> bool:
        """Whether the block is the identity as it is: every branch of it is zero."""
        if self.blame or not self.edits:
            return False
        tensors = [edit.parameter.data for edit in self.edits if edit.kind == "zero"]
        return len(tensors) == len(self.edits) and not any(data.is_meta or bool(data.any()) for data in tensors)


def identity_form(block: Region) -> IdentityForm:
    """How a copy of this block, put behind it, becomes the identity.

    :raises SutureError: REGION, if the block has not one stream and one output
    """
    entry, exit = block.entry, block.output
    if entry.type != exit.type:
        return IdentityForm(blame=f"{block.name} takes {entry.type} and gives {exit.type}")
    found: list[Blocked] = []
    for unit_layers in (False, True):
        try:
            way, edits = _Walk(block, unit_layers).carry(exit)
            _require_same_places(block, way)
        except Blocked as blocked:
            found.append(blocked)
            continue
        return IdentityForm(tuple(dict.fromkeys(edits)))
    # The second walk passes layers, and so gets further: what stops it is the real reason, unless a sum was there to keep the stream.
    return IdentityForm(blame=str(found[0] if found[0].beside_a_sum else found[1]))


class _Walk:
    """The walk along the stream through one block; answers are kept, so that each value is asked once."""

    def __init__(self, block: Region, unit_layers: bool) -> None:
        self.block = block
        self.unit_layers = unit_layers
        self.silencer = Silencer(block)
        self._answers: dict[Value, Way | Blocked] = {}

    def carry(self, value: Value) -> Way:
        """The nodes between the stream and a value, and the edits that make the value equal to the stream.

        :raises Blocked: naming the operator that changes it
        """
        if value not in self._answers:
            self._answers[value] = outcome(lambda: self._carry(value))
        return unwrap(self._answers[value])

    def _carry(self, value: Value) -> Way:
        if value is self.block.entry:
            return (), ()
        node = value.producer
        if node is None or node not in self.block.members:
            raise Blocked(None, f"{value} does not follow from the stream {self.block.entry}")
        operands = [operand for operand in node.inputs if operand is not None]
        name = node.operator.name
        if name in ("add", "sub") and len(operands) == 2:
            return self._sum(node, operands)
        if name in ("dropout", "clone", *_MOVES):
            return self._onwards(node, operands[0])
        if name == "cast":
            if torch.promote_types(self.block.entry.dtype, value.dtype) != value.dtype:
                raise Blocked(node, f"rounds the stream to {value.dtype}")
            return self._onwards(node, operands[0])
        if node.operator.pointwise and node.attributes.get("scalar") is None and len(operands) <= 2 and name != "mul":
            if not leaves_alone(node, self.block.output):
                raise Blocked(node, "changes what passes through it, were it the identity's result")
            return self._onwards(node, operands[0])
        if self.unit_layers and (edits := self._unit_layer(node)):
            way, further = self._onwards(node, operands[1] if name == "addmm" else operands[0])
            return way, (*further, *edits)
        raise Blocked(node, "normalises the stream itself" if name in NORMS else "changes the stream itself")

    def _onwards(self, node: Node, operand: Value) -> Way:
        way, edits = self.carry(operand)
        return (*way, node), edits

    def _sum(self, node: Node, operands: list[Value]) -> Way:
        """One operand carries the stream, the other is a branch: whichever works."""
        ways = [(operands[0], operands[1]), (operands[1], operands[0])]
        found: list[Blocked] = []
        for carried, branch in ways[: 1 if node.operator.name == "sub" else 2]:
            if carried.type != node.output.type:
                continue
            try:
                way, edits = self.carry(carried)
            except Blocked as blocked:
                found.append(blocked)
                continue
            try:
                return (*way, node), (*edits, *self.silencer.silence(branch, node))
            except Blocked as blocked:
                blocked.depth += 1
                found.append(blocked)
        reason = max(found, key=lambda blocked: blocked.depth) if found else Blocked(node, "broadcasts the stream")
        reason.beside_a_sum = True
        raise reason

    def _unit_layer(self, node: Node) -> tuple[Edit, ...]:
        """What makes a layer on the way the identity; nothing if it has no such form."""
        name, own = node.operator.name, self.silencer.own
        if name == "batch_norm":
            if len(node.inputs) < _STATISTICS or not all(value in own for value in node.inputs[1:_STATISTICS]):
                return ()
            gain, bias = node.inputs[1:3]
            assert isinstance(gain, Parameter) and isinstance(bias, Parameter)
            return Edit(gain, "deviation", node), Edit(bias, "mean", node)
        if name not in ("linear", "addmm", "conv"):
            return ()
        weight, bias = node.inputs[2 if name == "addmm" else 1], bias_of(node)
        if not isinstance(weight, Parameter) or weight not in own or not _can_be_unit(node, weight):
            return ()
        if bias is None:
            return (Edit(weight, "unit", node),)
        if not isinstance(bias, Parameter) or bias not in own:
            return ()
        return Edit(weight, "unit", node), Edit(bias, "zero", node)


def _can_be_unit(node: Node, weight: Parameter) -> bool:
    """Whether a layer has as many outputs as inputs, in the same places."""
    if node.operator.name != "conv":
        return weight.shape[0] == weight.shape[1]
    kernel = weight.data.shape[2:]
    stride, padding, dilation = (_each(node, name, len(kernel)) for name in ("stride", "padding", "dilation"))
    centred = all(p == d * (size - 1) // 2 for p, d, size in zip(padding, dilation, kernel, strict=True))
    data = node.inputs[0]
    return (
        data is not None
        and weight.shape[0] == data.shape[1]
        and set(stride) == {1}
        and centred
        and all(k % 2 for k in kernel)
    )


def _each(node: Node, name: str, rank: int) -> tuple[int, ...]:
    value = node.attributes[name]
    assert isinstance(value, tuple)
    numbers = tuple(item for item in value if isinstance(item, int))
    return numbers * rank if len(numbers) == 1 else numbers


def _require_same_places(block: Region, way: tuple[Node, ...]) -> None:
    """That the layout operators on the way undo one another: followed with numbered elements."""
    moves = [node for node in way if node.operator.name in _MOVES]
    if not moves:
        return
    graph = block.graph
    symbols = dict.fromkeys(graph.symbols(), 2) | graph.hints
    sizes = [evaluate_size(dim, symbols) for dim in block.entry.shape]
    start = torch.arange(torch.Size(sizes).numel()).reshape(sizes)
    moved = start
    for node in moves:
        (moved,) = run_node(node, [moved], symbols)
    if not torch.equal(moved, start):
        raise Blocked(moves[-1], "moves elements of the stream to other places")
