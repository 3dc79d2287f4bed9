"""Expand: fused operators become the nodes that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.ir.expansion import expand_node, is_fused
from suture.ir.graph import Graph, Node
from suture.passes.contract import Contract
from suture.passes.fusion.patterns import KEPT_APART
from suture.passes.proving import Proof
from suture.passes.registry import Notes, register
from suture.passes.rewriting import Rule, rewrite


@register(contract=Contract.EXACT)
def expand(
    graph: Graph, notes: Notes, *, probes: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None
) -> Graph:
    """Put every fused operator back into the nodes that it stands for."""
    if not any(is_fused(node) for node in graph.nodes):
        notes.not_applicable("no operator is fused")
        return graph
    result, proof = graph.copy(), Proof.of(graph, probes) if notes.checked else None
    apart = {line.operator.name for pair in KEPT_APART for line in pair.replacement.lines}
    stages = (
        [Rule("body", lambda graph, node: None if node.operator.name in apart else _open(graph, node))],
        [pair.back.rule() for pair in KEPT_APART],
        [Rule("body", _open)],
    )
    for rules in stages:
        rewrite(result, rules, notes, proof=proof)
    for entry in notes.rewrites:
        notes.note(f"{entry.where}: {entry.text}")
    return result


def _open(graph: Graph, node: Node) -> str | None:
    if not is_fused(node):
        return None
    before = len(graph)
    name = node.operator.name
    expand_node(node)
    return f"{name} is {len(graph) - before + 1} nodes"
