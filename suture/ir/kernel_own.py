"""What a lane may read again of what it wrote into global memory in an earlier region of its block.

Every element has one writer (`kernel_races`). So where a region reads at the very index, a function of block, lane and loops, at which another region
writes whatever the lane, the element is the lane's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from suture.ir.kernel import (
    Apply,
    Buffer,
    Expression,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Scatter,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    bodies_of,
    loads_in,
    names_in,
    parts,
    walk,
)

Element: TypeAlias = "tuple[str, tuple[Expression, ...]]"
_Key: TypeAlias = "tuple[Element, tuple[tuple[str, Expression, Expression], ...]]"


def own_elements(kernel: Kernel) -> list[set[Element]]:
    """For each region, in order: the global elements that it reads and that the same lane wrote, or nobody, in another region."""
    found = _Walk(
        frozenset(each.buffer.name for each in walk(kernel.body) if isinstance(each, Store | Update | Scatter))
    )
    found.body(kernel.body, {}, {}, None)
    scattered = {each.buffer.name for each in walk(kernel.body) if isinstance(each, Scatter)}
    keys = {key for key in found.writes if key is not None and key[0][0] not in scattered}
    return [{element for element, key in region.items() if key in keys} for region in found.merged()]


@dataclass
class _Walk:
    """Loads by region and writes, their indices over blocks, lanes and loops alone.

    :param written: the buffers that the kernel writes
    """

    written: frozenset[str]
    reads: list[list[tuple[Element, _Key | None]]] = field(default_factory=list)
    writes: list[_Key | None] = field(default_factory=list)
    lane: str = ""
    branches: int = 0

    def merged(self) -> list[dict[Element, _Key | None]]:
        """An element that stands for several places in one region is nobody's."""
        found: list[dict[Element, _Key | None]] = []
        for region in self.reads:
            known: dict[Element, _Key | None] = {}
            for element, key in region:
                known[element] = key if known.get(element, key) == key else None
            found.append(known)
        return found

    def body(
        self,
        body: Sequence[Statement],
        lets: Mapping[str, Expression],
        loops: Mapping[str, tuple[Expression, Expression]],
        region: list[tuple[Element, _Key | None]] | None,
    ) -> None:
        lets = dict(lets)
        for statement in body:
            if region is not None:
                for load in loads_in(statement):
                    if load.buffer.scope is Scope.GLOBAL and load.buffer.name in self.written:
                        region.append(((load.buffer.name, load.index), self.key(load.buffer, load.index, lets, loops)))
                everyone = region is not None and not self.branches
                if everyone and isinstance(statement, Store | Update) and statement.buffer.scope is Scope.GLOBAL:
                    self.writes.append(self.key(statement.buffer, statement.index, lets, loops))
            match statement:
                case Let(name, value):
                    lets[name.name] = _put(value, lets)
                case Loop(variable, start, stop, inner):
                    ends = _put(start, lets), _put(stop, lets)
                    self.body(inner, lets, {**loops, variable.name: ends}, region)
                case Threads(variable, count, inner):
                    self.reads.append([])
                    self.lane = variable.name
                    self.body(inner, lets, {**loops, variable.name: (Literal(0), Literal(count))}, self.reads[-1])
                case _:
                    self.branches += region is not None
                    for inner in bodies_of(statement):
                        self.body(inner, lets, loops, region)
                    self.branches -= region is not None

    def key(
        self,
        buffer: Buffer,
        index: Sequence[Expression],
        lets: Mapping[str, Expression],
        loops: Mapping[str, tuple[Expression, Expression]],
    ) -> _Key | None:
        """An index as a function; None where it is the same for all lanes, or depends on what the kernel writes."""
        plain = tuple(_put(at, lets) for at in index)
        names = sorted({name for at in plain for name in names_in(at) if name in loops})
        if self.lane not in names:
            return None
        bounds = tuple((name, *loops[name]) for name in names)
        said = [*plain, *(end for _, *ends in bounds for end in ends)]
        for part in (each for expression in said for each in parts(expression)):
            if isinstance(part, Load) and (part.buffer.scope is not Scope.GLOBAL or part.buffer.name in self.written):
                return None
        return (buffer.name, plain), bounds


def _put(expression: Expression, lets: Mapping[str, Expression]) -> Expression:
    """An expression with what names stand for in their place."""
    match expression:
        case Name(name):
            return lets.get(name, expression)
        case Load(index=index):
            return replace(expression, index=tuple(_put(at, lets) for at in index))
        case Apply(operands=operands):
            return replace(expression, operands=tuple(_put(each, lets) for each in operands))
    return expression
