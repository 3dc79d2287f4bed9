"""Locality: what one row of a value depends on, read off the notation.

A value along edges has a row for each edge. A row of `x[src] @ W[type]` depends on that edge's source and type alone: it is *local* to these two
indices, and edges that agree in them have equal rows. A row of an attention's weights depends on other edges too: it is local to no indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.notation import Role, Term, letters_of
from suture.ir.sizes import Size, symbols_of
from suture.ir.types import Attribute

Keys: TypeAlias = frozenset[Value]

_ALIKE = frozenset({"full"})  # operators without operands whose rows are all the same
_UNKNOWN = frozenset({"opaque", "random_order"})  # operators whose rows may differ where their operands agree


def is_index(value: Value) -> bool:
    """Whether a value is a list of integers."""
    return value.rank == 1 and value.dtype in (torch.int64, torch.int32)


def row_keys(graph: Graph) -> dict[Value, Keys | None]:
    """For every value the index inputs on which one of its rows depends; None where it depends on more than indices.

    An empty set says that all rows are the same.
    """
    keys: dict[Value, Keys | None] = {}
    for value in graph.inputs:
        keys[value] = frozenset({value}) if is_index(value) else None
    for parameter in graph.parameters.values():
        keys[parameter] = None
    for node in graph.nodes:
        found = _node_keys(node, keys)
        keys.update(dict.fromkeys(node.outputs, found))
        if node.operator.name == "unique_rows":
            keys[node.outputs[1]] = _united(keys, [value for value in node.inputs if value is not None])
    return keys


def row_operands(node: Node) -> tuple[int, ...] | None:
    """The operands whose rows are the rows of the node's only result, one for one; None if a row is computed from other rows too."""
    operator = node.operator
    if len(node.outputs) != 1 or node.bodies or operator.training or operator.measures or operator.name in _UNKNOWN:
        return None
    if _speaks_of_rows(node):
        return None
    present = [k for k, value in enumerate(node.inputs) if value is not None]
    if not present and operator.name not in _ALIKE:
        return None
    instance = operator.instance(node)
    terms = instance.outputs[0]
    letter = terms[0] if terms else None
    if not isinstance(letter, str) or instance.roles.get(letter) is not Role.FREE or letter in terms[1:]:
        return None
    found = []
    for k in present:
        read = instance.inputs[k] or ()
        places = [place for place, term in enumerate(read) if letter in _letters(term)]
        if not places:
            continue
        if places != [0] or read[0] != letter:
            return None
        found.append(k)
    return tuple(found)


def is_lookup(value: Value) -> bool:
    """Whether a value is nothing but rows of a table."""
    return value.producer is not None and value.producer.operator.name == "embedding"


def typing_keys(graph: Graph, keys: Mapping[Value, Keys | None]) -> tuple[Value, ...]:
    """The index inputs that choose among weights: types of edges or nodes."""
    chosen: dict[Value, None] = {}
    for node in graph.nodes:
        if node.operator.name == "typed_linear":
            chosen.update(dict.fromkeys(keys[_operand(node, 2)] or ()))
    for value in graph.inputs:
        tables = [node.inputs[0] for node, place in value.uses if node.operator.name == "embedding" and place == 1]
        if is_index(value) and tables and all(isinstance(table, Parameter) for table in tables):
            chosen[value] = None
    return tuple(value for value in graph.inputs if value in chosen)


def _node_keys(node: Node, keys: Mapping[Value, Keys | None]) -> Keys | None:
    rows = row_operands(node)
    return None if rows is None else _united(keys, [_operand(node, k) for k in rows])


def _united(keys: Mapping[Value, Keys | None], values: Sequence[Value]) -> Keys | None:
    found: Keys = frozenset()
    for value in values:
        own = keys[value]
        if own is None:
            return None
        found |= own
    return found


def _speaks_of_rows(node: Node) -> bool:
    """Whether a size besides that of the rows mentions the number of rows: other rows would need another node."""
    shape = node.outputs[0].shape
    if not shape:
        return True
    rows = set(symbols_of(shape[0]))
    others = [*shape[1:], *_sizes(tuple(node.attributes.values()))]
    return any(rows & set(symbols_of(size)) for size in others)


def _sizes(attribute: Attribute) -> Iterator[Size]:
    if isinstance(attribute, Size):
        yield attribute
    elif isinstance(attribute, tuple):
        for item in attribute:
            yield from _sizes(item)


def _letters(term: Term) -> set[str]:
    return set(letters_of(term))


def _operand(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value
