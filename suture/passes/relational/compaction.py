"""Compact materialisation: what edges with the same endpoint and type have in common is computed once for them all.

A value local to (type, source) is computed for the unique pairs of both, which `unique_rows` finds, and looked up by each edge's pair; one local to
(type, destination) likewise, with pairs of its own. A value local to one index alone is *lifted*: computed on the nodes, or the types, that the
index looks up. Pairs come sorted by type, so that the rows of a relation are neighbours. (Hector, ASPLOS 2024, calls it compact materialisation.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Value
from suture.ir.notation import Role
from suture.ir.sizes import Dim, Size, symbol, symbols_of
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.relational.locality import Keys, is_index, is_lookup, row_keys, row_operands, typing_keys
from suture.passes.relational.moving import Rows, supersede


@register(contract=Contract.EXACT)
def compact(graph: Graph, notes: Notes, *, by: tuple[str, ...] = (), lift: bool = True) -> Graph:
    """Compute what edges of one endpoint and type have in common once for each unique pair.

    :param by: the index inputs whose pairs with the type are taken, as `src`; all that values are local to if none are named
    :param lift: compute what depends on one endpoint alone on the nodes
    """
    result = graph.copy()
    if lift:
        for index in lift_candidates(result):
            for text in lift_values(result, index):
                notes.note(text)
    found = [pair for pair in pair_candidates(result) if not by or pair[1] in by]
    for name in by:
        if name not in {minor for _, minor in found}:
            known = [value.name for value in graph.inputs if is_index(value)]
            remedy = nearest(name, known, what="index") if name not in known else "leave it out"
            raise SutureError(Code.RELATION, f"no value is local to a type and {name!r} alone", where=graph.name, remedy=remedy)  # fmt: skip
    for major, minor in found:
        for text in compact_values(result, major, minor):
            notes.note(text)
    if not notes.texts:
        notes.not_applicable("no value over edges depends on one endpoint and a type alone")
        return graph
    return result


def lift_candidates(graph: Graph) -> tuple[str, ...]:
    """The index inputs that some computed value is local to alone, by name."""
    keys = row_keys(graph)
    found = {next(iter(own)): None for own in _computed(keys) if len(own) == 1}
    return tuple(index.name for index in graph.inputs if index in found and _liftable_values(graph, index, keys))


def lift_values(graph: Graph, name: str) -> list[str]:
    """Compute in place what is local to one index on the table that it looks up; says what has moved."""
    keys, index = row_keys(graph), _index(graph, name)
    by_size: dict[Dim, Rows] = {}
    made: dict[Value, Value] = {}
    for value, size in _liftable_values(graph, index, keys):
        rows = by_size.setdefault(size, Rows(graph, size, f"of_{name}", lambda old: _table(old, index)))
        made[value] = graph.add("embedding", [rows.move(value), index], path=_path(value)).output
    supersede(graph, made)
    return [f"{value} is computed on the rows that {name} looks up" for value in made.values()]


def lifted(graph: Graph, value: Value, index: Value) -> Value | None:
    """The table whose rows, looked up by an index input, are a value; computed where the value is no lookup, None where it needs the index itself."""
    size = table_size(value, index)
    if size is None:
        return None
    return Rows(graph, size, f"of_{index.name}", lambda old: _table(old, index)).move(value)


def pair_candidates(graph: Graph) -> tuple[tuple[str, str], ...]:
    """The pairs of index inputs that some product of weights is local to: (type, endpoint), by name."""
    keys = row_keys(graph)
    typing = typing_keys(graph, keys)
    order = {value: place for place, value in enumerate([*typing, *(v for v in graph.inputs if v not in typing)])}
    found: dict[tuple[str, str], None] = {}
    for value, own in keys.items():
        if own is not None and len(own) == 2 and value.producer is not None and _leaves(value, keys):
            major, minor = sorted(own, key=order.__getitem__)
            if major in typing and is_worked(value, own, keys):
                found[major.name, minor.name] = None
    return tuple(found)


def compact_values(graph: Graph, major: str, minor: str) -> list[str]:
    """Compute in place what is local to two indices for their unique pairs; says what has moved."""
    keys = row_keys(graph)
    pair = frozenset({_index(graph, major), _index(graph, minor)})
    leaving = [
        value for value, own in keys.items() if own == pair and _leaves(value, keys) and is_worked(value, pair, keys)
    ]
    if not leaving:
        return []
    first, rank, count = unique_pairs(graph, major, minor)

    def start(value: Value) -> Value | None:
        return graph.add("embedding", [value, first], name=f"{value.name}_pairs").output if is_index(value) else None

    rows = Rows(graph, count, f"by_{minor}", start)
    made = {value: graph.add("embedding", [rows.move(value), rank], path=_path(value)).output for value in leaving}
    supersede(graph, made)
    return [f"{value} is computed once for each pair of {major} and {minor}" for value in made.values()]


def unique_pairs(graph: Graph, major: str, minor: str) -> tuple[Value, Value, Size]:
    """For the unique pairs of two index inputs: the first row that has each, the pair of every row, and how many there are.

    Made where the graph has none.
    """
    keys = (_index(graph, major), _index(graph, minor))
    for node, place in keys[0].uses:
        if node.operator.name == "unique_rows" and place == 0 and node.inputs == keys:
            first, rank = node.outputs
            return first, rank, _symbolic(first.shape[0])
    count = symbol(fresh_symbol(graph, f"pairs_{minor}"))
    shapes = [(count,), keys[0].shape]
    first, rank = graph.add("unique_rows", keys, shapes=shapes, name=[f"first_{minor}", f"rank_{minor}"]).outputs
    return first, rank, count


def fresh_symbol(graph: Graph, base: str) -> str:
    """A name for a size that no value of the graph mentions."""
    taken = {name for value in graph.values() for size in value.shape for name in symbols_of(size)}
    base = base if base.isidentifier() else "pairs"
    numbered = (f"{base}_{k}" for k in range(2, len(taken) + 3))
    return base if base not in taken else next(name for name in numbered if name not in taken)


def is_worked(value: Value, pair: Keys, keys: Mapping[Value, Keys | None]) -> bool:
    """Whether more is done for a value within its pair than lookups and arithmetic on each element."""
    pending, seen = [value], {value}
    while pending:
        node = pending.pop().producer
        if node is None:
            continue
        roles = node.operator.instance(node).roles.values()
        if not node.operator.pointwise and (Role.CONTRACTED in roles or Role.MIXED in roles):
            return True
        fresh = [v for v in node.inputs if v is not None and keys[v] == pair and v not in seen]
        pending += fresh
        seen.update(fresh)
    return False


def _computed(keys: Mapping[Value, Keys | None]) -> Iterator[Keys]:
    for value, own in keys.items():
        if own is not None and value.producer is not None and not is_lookup(value):
            yield own


def _leaves(value: Value, keys: Mapping[Value, Keys | None]) -> bool:
    """Whether a value of floats is read by what is not local to the same indices."""
    if not value.dtype.is_floating_point or is_lookup(value):
        return False
    return value.is_graph_output() or any(keys[out] != keys[value] for node, _ in value.uses for out in node.outputs)


def _liftable_values(graph: Graph, index: Value, keys: Mapping[Value, Keys | None]) -> list[tuple[Value, Dim]]:
    """The values to lift from an index, each with the number of rows of the tables that it is computed from."""
    own = frozenset({index})
    found = []
    for value, theirs in keys.items():
        if theirs == own and value is not index and _leaves(value, keys):
            size = table_size(value, index)
            if size is not None:
                found.append((value, size))
    return found


def table_size(value: Value, index: Value) -> Dim | None:
    """How many rows the tables have that a value's rows are looked up in by an index; None where it needs the index itself, or they differ."""
    sizes = set(_table_rows(value, index))
    return sizes.pop() if len(sizes) == 1 else None


def _table_rows(value: Value, index: Value) -> Iterator[Dim | None]:
    """The numbers of rows of the tables that a value takes its rows from; None where it needs the index itself."""
    table = _table(value, index)
    if table is not None:
        yield table.shape[0]
        return
    node = value.producer
    if node is None:
        yield None
        return
    for k in row_operands(node) or ():
        operand = node.inputs[k]
        assert operand is not None
        yield from _table_rows(operand, index)


def _table(value: Value, index: Value) -> Value | None:
    """The table that a value's rows are looked up in by an index itself."""
    node = value.producer
    if node is None or node.operator.name != "embedding" or node.inputs[1] is not index:
        return None
    return node.inputs[0]


def _path(value: Value) -> str:
    return value.producer.path if value.producer is not None else ""


def _symbolic(size: Dim) -> Size:
    assert isinstance(size, Size)
    return size


def _index(graph: Graph, name: str) -> Value:
    """The index input of that name.

    :raises SutureError: RELATION, if there is none
    """
    known = {value.name: value for value in graph.inputs if is_index(value)}
    if name not in known:
        raise SutureError(
            Code.RELATION, f"{graph.name} has no index {name!r}", remedy=nearest(name, known, what="index")
        )
    return known[name]
