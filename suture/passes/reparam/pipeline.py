"""reparam: whatever is linear becomes as few layers as pays, and computes what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from suture.ir.graph import Graph
from suture.passes.constants import fold_constants
from suture.passes.contract import Contract
from suture.passes.proving import Proof
from suture.passes.registry import Notes, register
from suture.passes.reparam.borders import PAINTED_BORDERS
from suture.passes.reparam.commuting import AVERAGE_FIRST
from suture.passes.reparam.consecutive import compose_pairs
from suture.passes.reparam.cost import Budget
from suture.passes.reparam.parallel import add_up
from suture.passes.reparam.stacking import stack_up
from suture.passes.rewriting import Rule, rewrite
from suture.passes.unread import drop_unread, read_names


@register(contract=Contract.EXACT)
def reparam(
    graph: Graph,
    notes: Notes,
    *,
    merge: Literal["paying", "always"] = "paying",
    growth: int = 65536,
    probes: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None,
) -> Graph:
    """Merge linear operators: parallel ones add up, consecutive ones compose, norms and factors go into the layers beside them.

    From the two rules follow the blocks that train with branches and run as one layer, adapters, and whatever else is linear. Batch norms
    and dropout inside a merged branch count as in evaluation. Each rewrite is checked on probes; each site left alone is noted with the reason.

    :param merge: `paying` leaves alone what is cheaper apart, as a pair of low-rank factors is; `always` merges that too
    :param growth: the most bytes that a merged layer, or a constant computed ahead of time, may add to the model
    """
    result, before = graph.copy(), read_names(graph)
    dead = result.remove_dead()
    constants = fold_constants(result, Notes(), growth=growth)
    proof = Proof.of(result, probes) if notes.checked else None
    while True:
        stays = rewrite(result, rules(Budget(merge == "always", growth)), notes, proof=proof)
        folded = fold_constants(result, left := Notes(), growth=growth)
        constants += folded
        if not folded:  # what a merged norm alone had read beside a constant may have become one
            break
    result.remove_dead()
    drop_unread(result, before)
    done = [f"{dead} nodes that reached no output are gone"] if dead else []
    done += [entry.text for entry in notes.rewrites]
    if constants:
        done.append(f"{constants} values that depend on no input are tensors now")
    for text in dict.fromkeys((*left.texts, *done, *stays.values())):
        notes.note(text)
    if not done:
        notes.not_applicable("nothing linear can be merged" + (f" ({len(stays)} sites stay)" if stays else ""))
    return result


def rules(budget: Budget) -> list[Rule]:
    """The rules, in the order in which they are tried at a node."""
    from suture.passes.affine import move_affine  # which reads forms from this package, and so is loaded after it

    return [
        PAINTED_BORDERS,
        move_affine(trained=True),
        add_up(budget),
        stack_up(budget),
        AVERAGE_FIRST,
        compose_pairs(budget),
    ]
