"""Relaxed recursive transformers: the blocks of a stack share the weights of a few, and differ by low-rank adapters.

After Bae et al., "Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA" (arXiv 2410.20672): of L
blocks, block l takes the weights of shared block (l - 1) mod K + 1, and beside each matrix an adapter that begins as the truncated singular value
decomposition of the residual R = W - W': B = U S, A = V^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter
from suture.ir.regions import Stack, correspondence, stack_at
from suture.passes.adapters.adapter import add_adapter
from suture.passes.contract import Contract
from suture.passes.low_rank.ranks import rank_by_energy, ranks_by_budget
from suture.passes.low_rank.weights import why_no_matrix
from suture.passes.registry import Notes, register
from suture.passes.sharing.tied_matrices import Initialise, TiedMatrix, shared_values, tie, tied_matrix


@register(contract=Contract.APPROXIMATE)
def recurse(
    graph: Graph,
    notes: Notes,
    *,
    blocks: int,
    at: str | None = None,
    initialise: Initialise = "average",
    rank: int | Literal["full"] | None = None,
    energy: float | None = None,
    budget: int | None = None,
    norms: Literal["keep", "tie"] = "keep",
) -> Graph:
    """Let the blocks of a stack share the weights of a few, looped, with a low-rank adapter per block and matrix.

    The function is kept at full rank, and wherever a residual is not of higher rank than its adapter. Buffers stay each block's own.

    :param blocks: how many blocks stay of their own; block l takes the weights of block l modulo that number
    :param at: the stack, by its module path; that of most parameters if absent
    :param initialise: what the shared weights begin as: stepwise (those of blocks at even steps, the first and the last among them), average
        (the mean of the blocks that share), lower (those of the first blocks)
    :param rank: the rank of every adapter; 0, or none of the three options, gives no adapters, full as much as a matrix can have
    :param energy: instead, the share of each residual's squared singular values that its adapter keeps
    :param budget: instead, the number of elements that all adapters have together, spent where they leave out least
    :param norms: keep gives every block its own biases and norm gains, tie shares them too
    """
    result = graph.copy()
    stack = stack_at(result, at)
    _require_blocks(stack, blocks)
    if blocks == len(stack):
        notes.not_applicable(f"every block of {stack.name} would be its own")
        return result
    before = result.stats().parameters
    families = _families(stack)
    if all(_is_vector(family) for family in families):
        notes.not_applicable(f"the blocks of {stack.name} have no weights of their own")
        return result
    tied = _matrices(families, blocks, initialise, notes)
    exact = _attach(result, tied, _ranks(tied, rank, energy, budget, notes), notes)
    if norms == "tie":
        exact = _tie_vectors(result, families, blocks, initialise) and exact
    else:
        notes.note(f"biases and norms of {stack.name} stay each block's own")
    result.sort()
    after = result.stats().parameters
    notes.note(
        f"{len(stack)} blocks of {stack.name} share the weights of {blocks}: {before:,} parameters, now {after:,}"
    )
    if exact:
        notes.claim(Contract.EXACT)
    return result


def _require_blocks(stack: Stack, blocks: int) -> None:
    if not 1 <= blocks <= len(stack):
        raise SutureError(
            Code.GROWTH, f"{blocks} shared blocks of {len(stack)}", where=stack.name,
            remedy=f"1 to {len(stack)} would be right",
        )  # fmt: skip


def _families(stack: Stack) -> list[tuple[Parameter, ...]]:
    """The trained tensors that stand for one another in the blocks, where every block has one of its own."""
    twins = [correspondence(stack.blocks[0], block).parameters for block in stack.blocks]
    rows = [tuple(twin[p] for twin in twins) for p in stack.blocks[0].parameters if p.role == "parameter"]
    own = [frozenset(block.own_parameters()) for block in stack.blocks]
    return [row for row in rows if all(p in held for p, held in zip(row, own, strict=True))]


def _is_vector(family: Sequence[Parameter]) -> bool:
    """Whether it is a bias or a norm's gain."""
    return family[0].rank <= 1 or all(node.operator.name.endswith("_norm") for node, _ in family[0].uses)


def _matrices(
    families: Sequence[tuple[Parameter, ...]], blocks: int, initialise: Initialise, notes: Notes
) -> list[TiedMatrix]:
    """What every block loses when it takes the shared weights. Nothing is changed yet but the shared tensors themselves."""
    found: list[TiedMatrix] = []
    for family in families:
        if _is_vector(family):
            continue
        reason = why_no_matrix(family[0])
        if reason is not None:
            notes.note(f"{family[0].name} and its like stay each block's own: {reason}")
            continue
        for first, shared in enumerate(shared_values(family, blocks, initialise)):
            group = family[first::blocks]
            originals = [parameter.data for parameter in group]
            group[0].assign(shared)
            found += [tied_matrix(member, group[0], data) for member, data in zip(group, originals, strict=True)]
    return found


def _ranks(
    tied: Sequence[TiedMatrix], rank: int | str | None, energy: float | None, budget: int | None, notes: Notes
) -> list[int]:
    """The rank of each adapter; none where the residual is zero.

    :raises SutureError: RANK, if a rank is beyond a matrix, or more than one rule is given
    """
    if sum(option is not None for option in (rank, energy, budget)) > 1:
        raise SutureError(Code.RANK, "rank, energy and budget exclude each other", remedy="give one of them")
    if isinstance(rank, int):
        _require_rank(tied, rank)
    planned = any(matrix.planned for matrix in tied)
    if planned and (energy is not None or budget is not None):
        notes.note("estimated: the weights decide the ranks of the adapters; here they are counted at full rank")
    ranks = [matrix.largest_rank for matrix in tied]
    if energy is not None and not planned:
        ranks = [rank_by_energy(matrix.decomposition.values, energy) for matrix in tied]
    elif budget is not None and not planned:
        ranks = ranks_by_budget([(m.decomposition.values, sum(m.shape)) for m in tied], budget)
    elif rank != "full" and energy is None and budget is None:
        ranks = [int(rank or 0)] * len(tied)
    return [r if matrix.loses else 0 for r, matrix in zip(ranks, tied, strict=True)]


def _require_rank(tied: Sequence[TiedMatrix], rank: int) -> None:
    narrow = min(tied, key=lambda matrix: matrix.largest_rank, default=None)
    most = narrow.largest_rank if narrow else 0
    if not 0 <= rank <= most:
        what = f"{narrow.own.name} is {narrow.shape[0]} by {narrow.shape[1]}" if narrow else "there is no matrix"
        raise SutureError(
            Code.RANK, f"a rank of {rank}, where {what}", remedy=f"0 to {most}, or 'full', would be right"
        )


def _attach(graph: Graph, tied: Sequence[TiedMatrix], ranks: Sequence[int], notes: Notes) -> bool:
    """Let every block read the shared weights, beside their adapters; whether this leaves nothing out."""
    lost, norm, exact = 0.0, 0.0, True
    for matrix, rank in zip(tied, ranks, strict=True):
        if rank:
            add_adapter(graph, matrix.node, matrix.own.name, *matrix.factors(rank))
        tie(graph, matrix.own, matrix.shared)
        if matrix.planned:
            exact = False
            continue
        missing, rounding = matrix.left_out(rank)
        lost, norm, exact = lost + missing, norm + matrix.left_out(0)[0], exact and rounding
    used = sorted(rank for rank in ranks if rank)
    sizes = "" if not used else f" of rank {used[0]}" + (f" to {used[-1]}" if used[-1] != used[0] else "")
    known = not any(matrix.planned for matrix in tied)
    error = f" leave out {lost:.3g} of {norm:.3g}, the residuals' squared norm" if known else ""
    notes.note(f"{len(used)} adapters{sizes}{error}")
    return exact


def _tie_vectors(graph: Graph, families: Sequence[tuple[Parameter, ...]], blocks: int, initialise: Initialise) -> bool:
    """Share biases and norm gains too; whether those that become one were equal."""
    exact = True
    for family in filter(_is_vector, families):
        for first, shared in enumerate(shared_values(family, blocks, initialise)):
            group = family[first::blocks]
            exact = exact and not shared.is_meta and all(torch.equal(p.data, shared) for p in group)
            group[0].assign(shared)
            for member in group[1:]:
                tie(graph, member, group[0])
    return exact
