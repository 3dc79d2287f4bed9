"""Blocks behind a growth's mask: m f(x) + (1 - m) x, where the buffer m rises from 0 to 1 as training goes on."""

from __future__ import annotations

import torch
from torch import nn

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.growth.masking import MASK


def free_mask_name(graph: Graph) -> str:
    """A name for one more mask."""
    names = (MASK, *(f"{MASK}_{k}" for k in range(1, len(graph.parameters) + 2)))
    return next(name for name in names if name not in graph.parameters)


def hide(piece: Graph, name: str, mask: torch.Tensor, path: str) -> None:
    """Put a mask around a block, given as a graph of its own whose first input is the stream.

    :param name: the mask's name
    :param mask: its tensor, of no dimensions; all blocks of a growth share it
    """
    stream, result = piece.inputs[0], piece.outputs[0]
    held = piece.add_parameter(name, mask, "buffer")
    shown = piece.add("mul", [held, result], path=path, name=f"{result.name}_shown").output
    rest = piece.add("sub", [None, held], {"scalar": 1.0}, path=path, name=f"{result.name}_rest").output
    passed = piece.add("mul", [rest, stream], path=path, name=f"{result.name}_passed").output
    blended = piece.add("add", [shown, passed], path=path, name=f"{result.name}_masked").output
    piece.set_outputs([blended], piece.output_names)


def set_masks(module: nn.Module, value: float) -> int:
    """Give every growth mask of a module a value; how many there are.

    :raises SutureError: GROWTH, if the value is not between 0 and 1
    """
    require_mask(value)
    found = [buffer for name, buffer in module.named_buffers() if name.startswith(MASK) and not buffer.ndim]
    for buffer in found:
        buffer.fill_(value)
    return len(found)


def require_mask(value: float) -> None:
    """:raises SutureError: GROWTH, if a mask cannot have the value"""
    if not 0 <= value <= 1:
        raise SutureError(Code.GROWTH, f"a mask cannot be {value:g}", remedy="0 (hidden) to 1 (shown) would be right")
