"""lay_out: sort the edges, so that message passing becomes loops over neighbours."""

from __future__ import annotations

from suture.ir.graph import Graph
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.relational.laying import Laying
from suture.passes.relational.rejoining import rejoin
from suture.passes.relational.structure import share_structure, structural


@register(contract=Contract.EXACT)
def lay_out(graph: Graph, notes: Notes, *, rows: int = 48) -> Graph:
    """Put the rows of edges, pairs and nodes in an order in which what is summed stands together, and say so with operators on sorted rows.

    Rows that segments run over are sorted by the index that most of them share (the destination), then by type; what comes in is looked up in
    that order, what goes out is put back. Segments become `csr_sum` and `csr_max`, lookups at the sorted index `csr_spread`, products by type
    `grouped_linear` and `grouped_outer` over rows sorted by type. The orders themselves are inspector operators, which `split_inspector` parts off.

    :param rows: the most rows of one type that a tile of a grouped product has
    """
    result = graph.copy()
    rejoin(result)
    known = structural(result)
    share_structure(result, known)
    laying = Laying(result, known, rows)
    if not laying.sites:
        notes.not_applicable("nothing is summed over equal indices or multiplied by type")
        return graph
    laying.run()
    for text in laying.describe():
        notes.note(text)
    return result
