"""`suture.accelerate`: the layers of a model that are known by their class run compiled programs from then on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

from suture.drivers.accelerating.dgl import RelationalGraphConvolutions
from suture.drivers.accelerating.gat import Attentions
from suture.drivers.accelerating.hgt import HeterogeneousAttentions
from suture.drivers.accelerating.rgat import RelationalAttentions
from suture.drivers.accelerating.rgcn import RelationalConvolutions
from suture.drivers.accelerating.running import Choices
from suture.drivers.accelerating.sage import Aggregations
from suture.drivers.accelerating.swapping import Unaccelerated, is_swapped, restore, swap
from suture.ir.errors import Code, SutureError

Module = TypeVar("Module", bound=nn.Module)

_FAMILIES: dict[tuple[str, str], Any] = {
    (family.LIBRARY, name): family
    for family in (
        RelationalConvolutions, RelationalAttentions, HeterogeneousAttentions, Attentions, Aggregations, RelationalGraphConvolutions,
    )
    for name in family.NAMES
}  # fmt: skip
"""The library and the name of a class -> the family that runs it."""


def accelerate(module: Module, *, compact: bool = True, reorder: bool = True) -> Module:
    """Swap the message-passing layers of a model for compiled ones, in place.

    PyTorch Geometric's RGCNConv, FastRGCNConv, RGATConv, HGTConv, GATConv, GATv2Conv and SAGEConv are known, and DGL's RelGraphConv. They stay what
    they are, instances of their classes with the same parameters; numbers and gradients are the same. What is not covered runs as before, and a
    warning says why. A class derived from one of these keeps its own forward: it may do something else.

    :param module: the model, or one layer
    :param compact: whether what is the same for many edges may be computed once
    :param reorder: whether linear operators may change places
    :returns: the module that was given
    :raises SutureError: MODULE, if it is no module, or has no layer of a known class
    """
    if not isinstance(module, nn.Module):
        raise SutureError(Code.MODULE, f"{type(module).__name__} is no torch module", remedy="pass an nn.Module")
    found = False
    for name, layer in module.named_modules():
        if is_swapped(layer):
            found = True
            continue
        family, reason = _known(layer)
        if family is None and not reason:
            continue
        found = True
        reason = reason or family.refuse(layer)
        if reason:
            where = name or type(layer).__name__
            warnings.warn(f"{where} keeps its own forward: {reason} is not covered", Unaccelerated, stacklevel=2)
        else:
            swap(layer, family, Choices(compact, reorder))
    if not found:
        raise SutureError(
            Code.MODULE, f"{type(module).__name__} has no layer to accelerate",
            remedy=f"known are {', '.join(name for _, name in _FAMILIES)}",
        )  # fmt: skip
    return module


def decelerate(module: Module) -> Module:
    """Give the layers of a model their own forward back, in place.

    :returns: the module that was given
    """
    for layer in module.modules():
        restore(layer)
    return module


def accelerated(module: nn.Module) -> Iterator[str]:
    """The names of the layers of a model that run compiled programs."""
    return (name for name, layer in module.named_modules() if is_swapped(layer))


def _known(layer: nn.Module) -> tuple[Any, str]:
    """The family of a layer, and why it may not be used: None of a layer that has none."""
    kinds = [(kind.__module__.split(".")[0], kind.__name__) for kind in type(layer).__mro__]
    family = next((_FAMILIES[kind] for kind in kinds if kind in _FAMILIES), None)
    if family is None or kinds[0] in _FAMILIES:
        return family, ""
    return None, f"{type(layer).__name__}, a class derived from a known one,"
