"""canonicalise: one way of writing each thing, in as few nodes as it takes."""

from __future__ import annotations

from collections import Counter

from suture.ir.graph import Graph, Node
from suture.passes.canonical import (
    attention,
    identities,
    layouts,
    norms,
    orders,
    pairs,
    parts,
    recognition,
    scalars,
    views,
)
from suture.passes.canonical.matching import drop
from suture.passes.contract import Contract
from suture.passes.proving import Proof
from suture.passes.registry import Notes, Probes, register
from suture.passes.rewriting import Rule, rewrite
from suture.passes.unread import drop_unread, read_names

RULES = (
    *identities.RULES, *scalars.RULES, *views.RULES, *pairs.RULES, *orders.RULES, *parts.RULES, *norms.RULES, *attention.RULES, *recognition.RULES,
)  # fmt: skip


def _drop_dropout(graph: Graph, node: Node) -> str | None:
    if node.operator.name != "dropout" or node.inputs[0] is None:
        return None
    drop(graph, node, node.inputs[0])
    return "dropout, which inference does not do"


@register(contract=Contract.EXACT)
def canonicalise(
    graph: Graph, notes: Notes, *, inference: bool = False, recognise: bool = True, probes: Probes | None = None
) -> Graph:
    """Bring a graph into canonical form: chains of views, casts, factors and parts as one, equal nodes once, written-out functions by name.

    Rules are applied until none applies; each is checked on probes where it happens.

    :param inference: the graph will not be trained again: dropout goes, and layers take the layout of their neighbours
    :param recognise: whether functions written out (an activation, a norm, attention) become the operators that compute the same
    """
    result = graph.copy()
    dead = result.remove_dead()
    before = len(result)
    chosen = [rule for rule in RULES if recognise or rule not in (*recognition.RULES, *attention.RULES)]
    if inference:
        chosen = [Rule("dropout", _drop_dropout), *chosen, *layouts.RULES]
    read = read_names(result)
    proof = Proof.of(result, probes) if notes.checked else None
    stays = rewrite(result, chosen, notes, proof=proof)
    drop_unread(result, read)
    if dead:
        notes.note(f"{dead} nodes that reached no output are gone")
    for name, count in sorted(
        Counter(entry.rule for entry in notes.rewrites).items(), key=lambda item: (-item[1], item[0])
    ):
        notes.note(f"{name}: {count}")
    for place, reason in stays.items():
        notes.note(f"{place} stays: {reason}")
    if notes.rewrites or dead:
        notes.note(f"{before + dead} nodes are {len(result)}")
    else:
        notes.not_applicable("the graph is in canonical form")
    return result
