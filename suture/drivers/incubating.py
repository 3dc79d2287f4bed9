"""The driver of training by modules: the meta model, then each module inside of it, with the user's own training function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from suture.backends.torch_module import to_torch
from suture.drivers.cycle import adopt
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.assembly.incubation import incubation

META = "meta"
Train: TypeAlias = Callable[[nn.Module, str], "nn.Module | Mapping[str, torch.Tensor] | None"]


def incubate(
    graph: Graph, train: Train, *, modules: int = 4, blocks: int = 1, at: str | None = None, meta: Graph | None = None
) -> Graph:
    """Train a deep model by modules, each in a shallow model that stands for the others (Deep Incubation, Ni et al. 2023).

    The graph that is given, and its weights, stay as they are; fine-tuning of the assembled model is the caller's.

    :param train: called with the module to train and what it is, "meta" or "module 0" ...; trains it in place, or returns the trained module or
        its state dict. Where it is a module's turn, everything else has `requires_grad` off
    :param modules: into how many modules the stack is split
    :param blocks: how many blocks of the meta model stand for a module
    :param at: the stack, by its module path; the stack of most parameters if absent
    :param meta: a meta model that is trained already, as `meta_model` makes it
    :raises SutureError: TRAINING, if the function returns something else, changes what is frozen, or gives what is not finite; GROWTH, REGION or
        SITE, if the model cannot be split so
    """
    shallow = meta
    if shallow is None:
        untrained = incubation(graph, modules, blocks=blocks, at=at).meta
        shallow = _trained(untrained, train, META)
    plan = incubation(graph, modules, blocks=blocks, at=at, meta=shallow)
    hybrids = [_trained(plan.hybrid(k), train, f"module {k}") for k in range(modules)]
    return plan.assemble(hybrids)


def _trained(graph: Graph, train: Train, stage: str) -> Graph:
    """The graph with the tensors that the function trained, which are its own."""
    own = graph.copy()
    frozen: dict[str, torch.Tensor] = {}
    for parameter in own.parameters.values():
        if parameter.role == "parameter" and not parameter.requires_grad:
            frozen[parameter.name] = parameter.data.detach().clone()
        else:
            parameter.assign(parameter.data.detach().clone().requires_grad_(parameter.data.requires_grad))
    module = to_torch(own)
    returned = train(module, stage)
    match returned:
        case None:
            state: Mapping[str, torch.Tensor] = module.state_dict()
        case nn.Module():
            state = returned.state_dict()
        case Mapping():
            state = returned
        case _:
            raise SutureError(
                Code.TRAINING, f"the training function returned a {type(returned).__name__}", where=stage,
                remedy="nothing, a module or a state dict would be right",
            )  # fmt: skip
    result = adopt(own, state, where=stage)
    for name, before in frozen.items():
        if not torch.equal(result.parameters[name].data, before):
            raise SutureError(
                Code.TRAINING, f"the training function changed {name}, which is frozen", where=stage,
                remedy="train the parameters that have requires_grad only",
            )  # fmt: skip
    return result
