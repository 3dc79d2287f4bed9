"""The modules that hold a graph's tensors: nested as their dotted names say, so that a state dict has the original's keys."""

from __future__ import annotations

import torch
from torch import nn

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter

COUNTER = "num_batches_tracked"
MODE = "mode"  # the child that tells whether the whole module trains
CONSTANTS = "constants"  # the child that holds what is no part of a state dict


class Part(nn.Module):
    """A part of the tree. It holds tensors; called, it says whether it trains, and the part of a batch norm counts the batch."""

    counts = False  # whether a batch norm asks, and counts its batches

    def forward(self) -> bool:
        """Whether this part is in training mode."""
        counter = self._buffers.get(COUNTER) if self.counts else None
        if self.training and counter is not None:
            counter.add_(1)
        return self.training


def build_tree(graph: Graph) -> nn.Module:
    """The tree of a graph's tensors, each at its place.

    Tied parameters are one object under all their names.

    :raises SutureError: TORCH, if two tensors cannot both be held under their names
    """
    root = nn.Module()
    for parameter in graph.parameters.values():
        held = _as_held(parameter)
        for name in (place_of(parameter), *parameter.aliases):
            _attach(root, name, held, persistent=parameter.persistent)
    return root


def place_of(parameter: Parameter) -> str:
    """The name under which the tree holds a tensor: its own, but for what no state dict holds and no module of its own."""
    alone = "." not in parameter.name and not parameter.persistent and parameter.role != "parameter"
    return f"{CONSTANTS}.{parameter.name}" if alone else parameter.name


def part(root: nn.Module, path: str) -> Part | None:
    """The part of the tree at a module path, made if there is none; None if something else stands there."""
    module = root
    for name in path.split("."):
        if not name or name in module._parameters or name in module._buffers:
            return None
        child = module._modules.get(name)
        if child is None:
            if hasattr(module, name):
                return None
            child = Part()
            module.add_module(name, child)
        module = child
    return module if isinstance(module, Part) else None


def adopt(module: nn.Module, root: nn.Module) -> None:
    """Let `module` hold exactly what `root` does: fx alone keeps only what its graph mentions."""
    module._modules.clear()
    module._parameters.clear()
    module._buffers.clear()
    module._non_persistent_buffers_set.clear()
    for name, child in root._modules.items():
        module.add_module(name, child)
    for name, parameter in root._parameters.items():
        module.register_parameter(name, parameter)
    for name, buffer in root._buffers.items():
        module.register_buffer(name, buffer, persistent=name not in root._non_persistent_buffers_set)


def _as_held(parameter: Parameter) -> torch.Tensor:
    """The graph's own tensor, without a copy, as modules hold it."""
    data = parameter.data
    if parameter.role != "parameter":
        return data.detach() if isinstance(data, nn.Parameter) else data
    if isinstance(data, nn.Parameter) and data.requires_grad == parameter.requires_grad:
        return data
    trains = parameter.requires_grad and (data.is_floating_point() or data.is_complex())
    return nn.Parameter(data.detach(), requires_grad=trains)


def _attach(root: nn.Module, name: str, tensor: torch.Tensor, *, persistent: bool) -> None:
    module, (*path, leaf) = root, name.split(".")
    if path:
        found = part(root, ".".join(path))
        if found is None:
            raise SutureError(Code.TORCH, f"no module can hold the tensor {name}", remedy="rename it")
        module = found
    try:
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(leaf, tensor)
        else:
            module.register_buffer(leaf, tensor, persistent=persistent)
    except KeyError:
        raise SutureError(Code.TORCH, f"no module can hold the tensor {name}", remedy="rename it") from None


def fresh_child(root: nn.Module, name: str) -> str:
    """The name, or with an underscore more, such that nothing of the tree has it."""
    while hasattr(root, name):
        name += "_"
    return name


def mode_child(root: nn.Module) -> str:
    """The name of the child that tells whether the whole module trains; it is made if there is none."""
    name = MODE
    while hasattr(root, name):
        child = root._modules.get(name)
        if isinstance(child, Part) and not any(True for _ in child.children()) and not child.state_dict():
            return name
        name += "_"
    root.add_module(name, Part())
    return name
