"""rotate_heads: a rotation of what each attention head sums up, between the value and the output projection (QuaRot, Ashkboos et al. 2024)."""

from __future__ import annotations

from typing import Literal

from suture.ir.algebra import atoms_of
from suture.ir.axes import Place, analyse
from suture.ir.graph import Graph, Node, Value
from suture.passes.contract import Contract
from suture.passes.linear_maps import Dense, fixed_size
from suture.passes.registry import Notes, register
from suture.passes.symmetry.basis import Kind
from suture.passes.symmetry.orthogonal import hadamard, random_rotation
from suture.passes.symmetry.parameters import apply_map
from suture.passes.symmetry.reach import Reach, reach
from suture.passes.symmetry.sites import chosen
from suture.passes.symmetry.ties import Ties

_MOVING = ("cast", "clone", "dropout", "expand", "permute", "reshape")


@register(contract=Contract.EXACT)
def rotate_heads(
    graph: Graph,
    notes: Notes,
    *,
    at: tuple[str, ...] | None = None,
    by: Literal["hadamard", "random"] = "hadamard",
    seed: int = 0,
) -> Graph:
    """Rotate the width of the heads: the rows of the value projection take a matrix, the columns of the output projection its inverse.

    Attention is linear in the values, so a rotation of their width comes out of it as it went in; all heads of a layer take the same one, and heads
    that share a key head stay together. Queries and keys stay as they are: rotary embeddings would not let a rotation through.

    :param at: module paths of attentions, as patterns; all if absent
    :param by: a randomised Hadamard matrix, or a random rotation
    :param seed: the key of the matrices
    """
    result = graph.copy()
    sites = chosen([node for node in result.nodes if _values(node) is not None], at, "attention")
    ties, table = Ties(result), analyse(result)
    ways: list[Reach] = []
    for node in sites:
        place = _values(node)
        assert place is not None
        if any(way.values.get(place) for way in ways):
            continue  # layers that share their projections are rotated together
        atoms = list(dict.fromkeys(atoms_of(table.axis(*place))))
        for way in [reach(table, place, Kind.ORTHOGONAL, atom=atom) for atom in atoms]:
            if isinstance(way, Reach):
                ways.append(way)
            else:
                notes.note(f"the heads of {node.where()} are not rotated: {way}")
    for way in ways:
        size, name = fixed_size(way.atom.size), f"rotate_heads/{table.infos[way.atom].name}"
        matrix = Dense(hadamard(size, seed, name) if by == "hadamard" else random_rotation(size, seed, name))
        notes.note(f"heads of width {size} are rotated: {', '.join(way.tensors())}")
        apply_map(result, table, way, matrix, matrix, "rotated")
    for text in ties.join():
        notes.note(text)
    if not ways:
        notes.not_applicable("no attention's heads can be rotated" if sites else "there is no attention")
        return graph
    return result


def _values(node: Node) -> Place | None:
    """The width of the values that an attention sums up, by one operator or as a product with what a softmax gives."""
    if node.operator.name == "attention":
        value = node.inputs[2]
    elif node.operator.name == "matmul" and _is_softmax(node.inputs[0]):
        value = node.inputs[1]
    else:
        return None
    assert value is not None
    return Place(value, value.rank - 1)


def _is_softmax(value: Value | None) -> bool:
    """Whether a value is the result of a softmax, moved about at most."""
    while value is not None and value.producer is not None and value.producer.operator.name in _MOVING:
        value = value.producer.inputs[0]
    return value is not None and value.producer is not None and value.producer.operator.name == "softmax"
