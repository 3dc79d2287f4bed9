"""fold: compute ahead of time whatever needs no input, above all batch norms."""

from __future__ import annotations

from suture.ir.graph import Graph
from suture.passes.affine import Into, move_affine
from suture.passes.constants import fold_constants
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.rewriting import rewrite
from suture.passes.unread import drop_unread, read_names


@register(contract=Contract.EXACT)
def fold(graph: Graph, notes: Notes, *, into: Into = "both", growth: int = 65536) -> Graph:
    """Merge batch norms and per-channel factors into the layers beside them, compute constants, drop dead code.

    Batch norms count as they do in evaluation. Each one that stays is noted with the reason.

    :param into: whether maps move into the layers that write their input, into those that read their output, or into both
    :param growth: the most bytes that a constant computed ahead of time may add to the model
    """
    result, before = graph.copy(), read_names(graph)
    done: list[str] = []
    dead = result.remove_dead()
    if dead:
        done.append(f"{dead} nodes that reached no output are gone")
    # a computed weight (weight norm, say) must be a tensor before a norm can go into it; sizes left alone are noted in the last round only
    constants = fold_constants(result, Notes(), growth=growth)
    stays = rewrite(result, [move_affine(into)], notes)
    done += [entry.text for entry in notes.rewrites]
    constants += fold_constants(result, notes, growth=growth)
    if constants:
        done.append(f"{constants} values that depend on no input are tensors now")
    result.remove_dead()
    drop_unread(result, before)
    for text in (*done, *stays.values()):
        notes.note(text)
    if not done:
        notes.not_applicable("nothing can be computed ahead of time" + (f" ({len(stays)} sites stay)" if stays else ""))
    return result
