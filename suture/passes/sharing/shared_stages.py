"""Learngene by stage-wise weight sharing: a short stack of stages that expands into models of any depth.

After Xia et al., "Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models" (arXiv 2404.16897): in an auxiliary model
the blocks of a stage share their weights; trained (by distillation), its one block per stage is repeated at its stage as often as a descendant asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter
from suture.ir.regions import Stack, correspondence, stack_at, stacks
from suture.ir.splice import arrange
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.sharing.tied_matrices import tie as tie_parameter
from suture.passes.sharing.untie import separate


@register(contract=Contract.APPROXIMATE)
def share_stages(
    graph: Graph,
    notes: Notes,
    *,
    stages: tuple[int, ...],
    at: str | None = None,
    initialise: Literal["first", "middle", "average"] = "first",
) -> Graph:
    """Let the blocks of each stage of a stack share all their tensors: the auxiliary model whose stages are to be trained.

    :param stages: how many blocks each stage has, from the first on
    :param at: the stack, by its module path; that of most parameters if absent
    :param initialise: what a stage's tensors begin as: those of its first or middle block, or the mean of all
    """
    result = graph.copy()
    stack = stack_at(result, at)
    if sum(stages) != len(stack) or min(stages, default=0) < 1:
        raise SutureError(
            Code.GROWTH, f"stages of {' + '.join(map(str, stages)) or 'no'} blocks", where=stack.name,
            remedy=f"stages of 1 or more that add up to {len(stack)} would be right",
        )  # fmt: skip
    twins = [correspondence(stack.blocks[0], block).parameters for block in stack.blocks]
    own = [frozenset(block.own_parameters()) for block in stack.blocks]
    exact, shared = True, 0
    for first in stack.blocks[0].parameters:
        family = [twin.get(first) for twin in twins]
        if any(p is None or p not in held for p, held in zip(family, own, strict=True)):
            continue
        members = [p for p in family if p is not None]
        for group in _staged(members, stages):
            data = _beginning([p.data for p in group], initialise)
            exact = exact and not data.is_meta and all(torch.equal(p.data, data) for p in group)
            group[0].assign(data)
            for member in group[1:]:
                tie_parameter(result, member, group[0])
            shared += len(group) > 1
    if not shared:
        notes.not_applicable(f"no stage of {stack.name} has two blocks with tensors of their own")
        return result
    notes.note(f"{len(stack)} blocks of {stack.name} have the tensors of {len(stages)}: stages of {_listed(stages)}")
    if exact:
        notes.claim(Contract.EXACT)
    return result


@register(contract=Contract.APPROXIMATE)
def expand_stages(
    graph: Graph, notes: Notes, *, repeats: tuple[int, ...], at: str | None = None, tie: bool = False
) -> Graph:
    """Repeat each stage's block as often as a descendant has blocks at that stage, with tensors of their own.

    The stages are the runs of blocks that share their trained tensors; blocks that share none are a stage each. The function is kept if every stage
    has as many blocks as before.

    :param repeats: how many blocks each stage is to have, from the first on
    :param at: the stack, by its module path; one that has stages of several blocks, or else that of most parameters, if absent
    :param tie: whether the blocks of a stage go on sharing their tensors
    """
    result = graph.copy()
    stack = _staged_stack(result, at)
    counts = stage_lengths(stack)
    if len(repeats) != len(counts) or min(repeats) < 1:
        raise SutureError(
            Code.GROWTH, f"{len(repeats)} repeats ({_listed(repeats)}) for {len(counts)} stages", where=stack.name,
            remedy="one number per stage, 1 or more, would be right",
        )  # fmt: skip
    if tuple(repeats) == counts and (tie or max(counts) == 1):
        notes.not_applicable(f"the stages of {stack.name} have {_listed(counts)} blocks already")
        return result
    name = stack.name
    separate(result, [p for p in result.parameters.values() if any(p in block.parameters for block in stack.blocks)])
    whole = stack_at(result, name)
    begins = [sum(counts[:k]) for k in range(len(counts))]
    arrange(whole, [begin for begin, count in zip(begins, repeats, strict=True) for _ in range(count)], tie=tie)
    notes.note(f"the stages of {name} had {_listed(counts)} blocks, and have {_listed(repeats)}")
    if tuple(repeats) == counts:
        notes.claim(Contract.EXACT)
    return result


def stage_lengths(stack: Stack) -> tuple[int, ...]:
    """How many blocks each stage of a stack has: the runs of blocks that read the same trained tensors."""
    read = [frozenset(p for p in block.parameters if p.role == "parameter" and p.uses) for block in stack.blocks]
    lengths = [1]
    for one, other in pairwise(read):
        if one == other:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return tuple(lengths)


def _staged_stack(graph: Graph, at: str | None) -> Stack:
    staged = [stack for stack in stacks(graph) if max(stage_lengths(stack)) > 1] if at is None else []
    return max(staged, key=Stack.parameter_count) if staged else stack_at(graph, at)


def _staged(family: Sequence[Parameter], stages: Sequence[int]) -> list[Sequence[Parameter]]:
    begins = [sum(stages[:k]) for k in range(len(stages))]
    return [family[begin : begin + count] for begin, count in zip(begins, stages, strict=True)]


def _beginning(tensors: Sequence[torch.Tensor], initialise: str) -> torch.Tensor:
    chosen = tensors[(len(tensors) - 1) // 2 if initialise == "middle" else 0]
    if initialise != "average" or not chosen.is_floating_point():
        return chosen.detach().clone().requires_grad_(chosen.requires_grad)
    mean = torch.stack([tensor.detach().to(torch.float64) for tensor in tensors]).mean(0)
    return mean.to(chosen.dtype).requires_grad_(chosen.requires_grad)


def _listed(numbers: Sequence[int]) -> str:
    return " + ".join(map(str, numbers))
