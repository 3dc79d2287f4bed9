"""Linear operator reordering: sums and products of message passing change places where the result stays the same and costs less.

`REORDERINGS` lists the rewrites; each names the values where it can be done, and does it at one. Which of them pay is for `choosing` to say.
(Hector, ASPLOS 2024, section on linear operator reordering, has the first; aggregation before transformation is PyTorch Geometric's order.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Value
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.relational.aggregation import aggregate_first, aggregation_sites
from suture.passes.relational.inner_products import joined_sites, split_joined, turn_product, turning_sites
from suture.passes.relational.repeats import merge_repeats
from suture.passes.relational.sides import sided_inner_sites, sided_sum_sites, sum_on_sides, turn_on_sides
from suture.passes.relational.transformation import transform_first, transformation_sites
from suture.passes.relational.weight_products import multiply_weights, weight_product_sites


@dataclass(frozen=True)
class Reordering:
    """One kind of rewrite."""

    sites: Callable[[Graph], Iterator[Value]]
    rewrite: Callable[[Graph, Value], str | None]


REORDERINGS: Mapping[str, Reordering] = {
    "split": Reordering(joined_sites, split_joined),
    "weights first": Reordering(weight_product_sites, multiply_weights),
    "aggregate first": Reordering(aggregation_sites, aggregate_first),
    "transform first": Reordering(transformation_sites, transform_first),
    "turn": Reordering(turning_sites, turn_product),
    "aggregate by type": Reordering(sided_sum_sites, sum_on_sides),
    "turn by type": Reordering(sided_inner_sites, turn_on_sides),
}


@register(contract=Contract.EXACT)
def reorder(
    graph: Graph, notes: Notes, *, kinds: tuple[str, ...] = tuple(REORDERINGS), at: tuple[str, ...] = ()
) -> Graph:
    """Let linear operators of message passing change places, wherever that can be done.

    Nothing is weighed here: what pays depends on the edges (`suture.passes.relational.choosing`).

    :param kinds: the rewrites to do: "split", "weights first", "aggregate first", "transform first", "turn", "aggregate by type", "turn by type"
    :param at: the values to do them at, by name; all if none are named
    """
    for kind in kinds:
        if kind not in REORDERINGS:
            raise SutureError(Code.OPTION, f"there is no reordering {kind!r}", remedy=nearest(kind, REORDERINGS, what="reordering"))  # fmt: skip
    result, done = graph.copy(), set[tuple[str, str]]()
    merge_repeats(result)
    while notes.may_rewrite():
        ready = [each for each in reorderings(result, kinds) if each not in done and (not at or each[1] in at)]
        if not ready:
            break
        done.add(ready[0])
        notes.rewritten(ready[0][0], ready[0][1], reorder_value(result, *ready[0]))
    if not notes.rewrites:
        notes.not_applicable("no linear operators of message passing can change places")
        return graph
    for each in notes.rewrites:
        notes.note(f"{each.rule}: {each.text}")
    return result


def reorderings(graph: Graph, kinds: tuple[str, ...] = tuple(REORDERINGS)) -> Iterator[tuple[str, str]]:
    """Every rewrite that can be done: its kind and the value's name."""
    for kind in kinds:
        for value in REORDERINGS[kind].sites(graph):
            yield kind, value.name


def reorder_value(graph: Graph, kind: str, name: str) -> str:
    """Do one rewrite in place; says what was done.

    :raises SutureError: RELATION, if it cannot be done there
    """
    known = {value.name: value for node in graph.nodes for value in node.outputs}
    done = REORDERINGS[kind].rewrite(graph, known[name]) if name in known else None
    if done is None:
        remedy = nearest(name, [site for each, site in reorderings(graph) if each == kind], what="place")
        raise SutureError(Code.RELATION, f"{kind} cannot be done at {name}", where=graph.name, remedy=remedy)
    return done
