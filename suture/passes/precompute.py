"""precompute: what depends on no input is computed once and stored, where that makes the model smaller or pays for its bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from suture.ir.graph import Graph, Node, Value
from suture.passes.canonical.identities import merge_constants
from suture.passes.constants import Sources, constant_nodes, store, wanted_values
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.unread import drop_unread, read_names

_NODE = 2**16  # bytes that one node saved in every run is worth
_MACS = 32  # multiply-accumulates saved in every run that are worth a byte
_LEAST = 2**16  # bytes that a model may always grow by


@register(contract=Contract.EXACT)
def precompute(graph: Graph, notes: Notes, *, growth: float = 0.02) -> Graph:
    """Evaluate the parts of a graph whose result depends on no input, and store the results: positions, masks, biases looked up by position.

    Trained parameters count as constants, as they are in inference. A part is stored if the model gets no larger by it, or if the nodes and
    multiply-accumulates that it saves in every run pay for the bytes: 64 KiB a node and a byte per 32 multiply-accumulates. Of a part that does
    not pay, the parts it is made of may. Tensors that hold the same are stored once.

    :param growth: how much larger the model may get in all, as a share of its bytes; 64 KiB are always allowed
    """
    result = graph.copy()
    read = read_names(result)
    before = _bytes(result)
    allowed = max(int(before * growth), _LEAST)
    grown, stored, refused = 0, 0, dict[Node, str]()
    while (best := _cheapest(result, refused)) is not None:
        node, values, sources = best
        reason = _too_dear(sources, allowed - grown)
        if reason:
            refused[node] = f"{node.where()} stays computed: {reason}"
            continue
        count, where = len(sources.gone), node.where()
        names = [store(result, value, sources).name for value in values]
        result.remove_dead()
        drop_unread(result, read)
        for name in names:
            _share(result, name)
        grown += max(sources.added, 0)
        stored += 1
        change = f"{sources.added:,} bytes more" if sources.added > 0 else f"{-sources.added:,} bytes less"
        notes.note(f"{where} is stored: {count} node{'s' * (count != 1)} fewer, {change}")
    drop_unread(result, read)
    for text in refused.values():
        notes.note(text)
    if not stored:
        notes.not_applicable("nothing that depends on no input pays to be stored")
        return result
    after = _bytes(result)
    word = "grows" if after > before else "shrinks"
    notes.note(
        f"{stored} parts are stored: the model {word} by {abs(after - before):,} bytes, {len(graph) - len(result)} nodes are gone"
    )
    return result


def _cheapest(graph: Graph, refused: Mapping[Node, str]) -> tuple[Node, tuple[Value, ...], Sources] | None:
    """Of the constant nodes that something else reads, or that a refused one reads, the one with the fewest bytes for its worth."""
    constant = constant_nodes(graph, inference=True)
    inside = constant - set(refused)
    best: tuple[float, Node, tuple[Value, ...], Sources] | None = None
    for node in graph.nodes:
        values = wanted_values(node, inside) if node in inside else ()
        if not values:
            continue
        sources = Sources.of(*values)
        price = sources.added / _worth(sources)
        if best is None or price < best[0]:
            best = (price, node, values, sources)
    return None if best is None else best[1:]


def _worth(sources: Sources) -> float:
    """The bytes that not computing a value is worth."""
    macs = [node.operator.macs(node) for node in sources.gone]
    return _NODE * len(sources.gone) + sum(count for count in macs if isinstance(count, int)) / _MACS


def _too_dear(sources: Sources, left: int) -> str:
    if sources.added <= 0:
        return ""
    if sources.added > _worth(sources):
        return f"it would add {sources.added:,} bytes for {len(sources.gone)} node{'s' * (len(sources.gone) != 1)}"
    if sources.added > left:
        return f"it would add {sources.added:,} bytes, and {left:,} are left of what the model may grow by"
    return ""


def _share(graph: Graph, name: str) -> None:
    """Let the readers of a constant that is there already read that one."""
    readers: list[Node] = [use.node for use in graph.parameters[name].uses]
    for reader in dict.fromkeys(readers):
        merge_constants(graph, reader)


def _bytes(graph: Graph) -> int:
    tensors = [
        parameter.data for parameter in graph.parameters.values() if parameter.uses or parameter.is_graph_output()
    ]
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors)
