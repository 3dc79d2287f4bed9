"""merge_factors: layers that stand in a row with nothing between them become one, whether it pays or not."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node
from suture.passes.contract import Contract
from suture.passes.proving import Proof
from suture.passes.registry import Notes, register
from suture.passes.reparam.consecutive import compose_pairs
from suture.passes.reparam.cost import Budget
from suture.passes.reparam.reading import LAYERS
from suture.passes.rewriting import rewrite
from suture.passes.unread import drop_unread, read_names


@register(contract=Contract.EXACT)
def merge_factors(
    graph: Graph,
    notes: Notes,
    *,
    at: str | Sequence[str] | None = None,
    probes: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None,
) -> Graph:
    """Merge consecutive layers with nothing between them back into one: low-rank pairs, Tucker's and CP's factors of a convolution.

    :param at: patterns of the module paths of layers that may be merged; both of a pair must match one. All layers by default
    """
    patterns = (at,) if isinstance(at, str) else at
    _require_match(graph, patterns)

    def chosen(first: Node, second: Node) -> bool:
        layers = first.operator.name in LAYERS and second.operator.name in LAYERS
        return layers and (patterns is None or (_matches(first.path, patterns) and _matches(second.path, patterns)))

    result, before = graph.copy(), read_names(graph)
    proof = Proof.of(result, probes) if notes.checked else None
    stays = rewrite(result, [compose_pairs(Budget(always=True), chosen=chosen)], notes, proof=proof)
    drop_unread(result, before)
    for text in (*(entry.text for entry in notes.rewrites), *stays.values()):
        notes.note(text)
    if not notes.rewrites:
        why = f": {'; '.join(stays.values())}" if stays else ""
        notes.not_applicable(f"no two layers stand in a row with nothing between them{why}")
    return result


def _require_match(graph: Graph, patterns: Sequence[str] | None) -> None:
    """:raises SutureError: SITE, if a pattern matches no layer"""
    paths = {node.path for node in graph.nodes if node.operator.name in LAYERS and node.path}
    for pattern in patterns or ():
        if not any(_matches(path, (pattern,)) for path in paths):
            raise SutureError(
                Code.SITE, f"the pattern {pattern!r} matches no layer", remedy=nearest(pattern, paths, what="layer")
            )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
