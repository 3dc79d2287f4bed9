"""Composition of models: a stack whose blocks come from several models of equal blocks.

Passthrough composition (Goddard et al. 2024, "Arcee's MergeKit") puts ranges of layers of several fine-tuned models one behind the other; layer
swapping (Bandarkar et al. 2025) takes some layers of one model from another. No layer is joined through an adapter: the models must have one
architecture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.regions import Region, Stack, stack_at
from suture.ir.splice import rearrange
from suture.passes.assembly.transplant import piece_with, require_alike
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register

_LAYERS = re.compile(r"(?:(\d+)\.)?(\d*)(:?)(\d*)")
_SWAP = re.compile(r"(\d*)(:?)(\d*) +from +(\d+)")
_FORM = '"0:8" (blocks 0 to 7), "1.4:12" (blocks 4 to 11 of the first other model) or "2.3" (one block) would be right'
_SWAP_FORM = '"4:6 from 1" (blocks 4 and 5 of the first other model in the place of one\'s own) would be right'


@dataclass(frozen=True)
class Slice:
    """Consecutive blocks of one model: 0 is the model itself, 1 the first of the others."""

    model: int
    start: int
    stop: int
    scale: float = 1.0

    def __str__(self) -> str:
        blocks = f"block {self.start}" if self.stop == self.start + 1 else f"blocks {self.start} to {self.stop - 1}"
        scaled = f", scaled by {self.scale:g}" if self.scale != 1 else ""
        return f"{blocks} of {'the model itself' if not self.model else f'model {self.model}'}{scaled}"


@register(contract=Contract.APPROXIMATE)
def compose(
    graph: Graph,
    notes: Notes,
    *,
    others: tuple[Graph, ...] = (),
    layers: tuple[str, ...] = (),
    swap: tuple[str, ...] = (),
    scale: tuple[float, ...] = (),
    at: str | None = None,
) -> Graph:
    """Let a stack consist of blocks of several models of equal blocks; all that is not the stack stays the model's own.

    Exact where nothing but the model's own blocks in their order remain.

    :param others: the other models
    :param layers: ranges of blocks, from the input on: "0:8" are the model's own first eight, "1.4:12" the blocks 4 to 11 of the first other
        model; blocks may come several times, and are then copies
    :param swap: instead, what to take from others in the place of one's own blocks of the same numbers: "4:6 from 1"
    :param scale: for each of the layers' ranges, how much its blocks count: a block that takes x to f(x) then takes it to x + s (f(x) - x)
    :param at: the stack, by its module path, the same in all models; the stack of most parameters if absent
    """
    result = graph.copy()
    stack = stack_at(result, at)
    donors = [stack, *(stack_at(other, at) for other in others)]
    slices = _slices(donors, layers, swap, scale)
    pieces: list[tuple[Graph, int]] = []
    for item in slices:
        for index in range(item.start, item.stop):
            pieces.append(_piece(donors, item, index))
        notes.note(f"{stack.name}: {item}")
    order = [source for _, source in pieces]
    is_own = all(item.model == 0 and item.scale == 1 for item in slices)
    if is_own and order == list(range(len(stack))):
        notes.not_applicable(f"{stack.name} consists of these blocks already")
        return graph
    rearrange(stack, pieces)
    return result


def _piece(donors: list[Stack], item: Slice, index: int) -> tuple[Graph, int]:
    """A block as it stands in the composed stack, and the own block whose names and ambient values it takes."""
    own, donor = donors[0], donors[item.model]
    source = index if index < len(own) else len(own) - 1
    require_alike(own.blocks[source], donor.blocks[index], other_name=f"model {item.model}")
    piece = piece_with(own.blocks[source], donor.blocks[index])
    if item.scale != 1:
        _scale(piece, own.blocks[source], item.scale)
    return piece, source


def _scale(piece: Graph, block: Region, scale: float) -> None:
    """Let a piece count for a share of what it adds to its stream."""
    entry, exit = piece.inputs[0], piece.outputs[0]
    name = f"{block.name}.scale" if " .. " not in block.name else "scale"
    factor = piece.add_parameter(name, torch.tensor(scale, dtype=exit.dtype), "constant")
    change = piece.add("sub", [exit, entry], path=block.name)
    share = piece.add("mul", [change.output, factor], path=block.name)
    piece.set_outputs([piece.add("add", [entry, share.output], path=block.name).output], piece.output_names)


def _slices(
    donors: list[Stack], layers: tuple[str, ...], swap: tuple[str, ...], scale: tuple[float, ...]
) -> list[Slice]:
    if bool(layers) == bool(swap):
        raise SutureError(Code.OPTION, "compose takes layers or swap", remedy=_FORM if not swap else "leave one out")
    if scale and len(scale) != len(layers):
        raise SutureError(
            Code.OPTION, f"there are {len(scale)} scales for {len(layers)} ranges of layers", remedy="give one for each"
        )
    if swap:
        return _swapped(donors, swap)
    scales = scale or (1.0,) * len(layers)
    return [_slice(donors, text, factor) for text, factor in zip(layers, scales, strict=True)]


def _slice(donors: list[Stack], text: str, scale: float) -> Slice:
    match = _LAYERS.fullmatch(text.strip())
    if match is None or not (match[2] or match[3]):
        raise SutureError(Code.OPTION, f"{text!r} is no range of layers", remedy=_FORM)
    model = int(match[1] or 0)
    _require_model(donors, model)
    start, stop = _bounds(match[2], match[3], match[4], donors[model], model)
    return Slice(model, start, stop, scale)


def _swapped(donors: list[Stack], swap: tuple[str, ...]) -> list[Slice]:
    chosen = [0] * len(donors[0])
    for text in swap:
        match = _SWAP.fullmatch(text.strip())
        if match is None or not (match[1] or match[2]):
            raise SutureError(Code.OPTION, f"{text!r} is no swap of layers", remedy=_SWAP_FORM)
        model = int(match[4])
        _require_model(donors, model)
        for stack, number in ((donors[0], 0), (donors[model], model)):
            start, stop = _bounds(match[1], match[2], match[3], stack, number)
        chosen[start:stop] = [model] * (stop - start)
    slices: list[Slice] = []
    for index, model in enumerate(chosen):
        if slices and slices[-1].model == model:
            slices[-1] = Slice(model, slices[-1].start, index + 1)
        else:
            slices.append(Slice(model, index, index + 1))
    return slices


def _bounds(first: str, colon: str, last: str, stack: Stack, model: int) -> tuple[int, int]:
    """The range of blocks that `first:last` says, either end open.

    :raises SutureError: REGION, if there is no such block; OPTION, if the range is empty
    """
    start = int(first or 0)
    stop = (int(last) if last else len(stack)) if colon else start + 1
    text = f"{first}{colon}{last}"
    if max(stop, start + 1) > len(stack):
        raise SutureError(
            Code.REGION, f"the blocks {text} are not all there: {stack.name} of model {model} has {len(stack)}",
            where=stack.graph.name, remedy=f"0 to {len(stack) - 1} are there",
        )  # fmt: skip
    if start >= stop:
        raise SutureError(Code.OPTION, f"the range {text} is empty", remedy=_FORM)
    return start, stop


def _require_model(donors: list[Stack], model: int) -> None:
    if model >= len(donors):
        raise SutureError(
            Code.OPTION, f"there is no model {model}: {len(donors) - 1} others are given",
            remedy="0 is the model itself, 1 the first of the others",
        )  # fmt: skip
