"""Which shared buffers statements touch: a barrier stands where lanes could notice that others are not done.

Two lanes meet in a buffer if one writes it and the other touches it, and no barrier stands between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from suture.ir.kernel import CopyTile, MultiplyAccumulate, Scope, Statement, Store, Update, loads_in, walk
from suture.ir.kernel_collectives import expand


@dataclass
class Pending:
    """What lanes have done to shared buffers since they last waited for each other."""

    read: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)

    def meets(self, other: Pending) -> bool:
        """Whether lanes that are still busy with this could notice those that do the other already."""
        return bool(other.written & (self.read | self.written) or other.read & self.written)

    def join(self, other: Pending) -> None:
        """Both."""
        self.read |= other.read
        self.written |= other.written

    def copy(self) -> Pending:
        """The same, apart from this."""
        return Pending(set(self.read), set(self.written))


def touched(statement: Statement) -> Pending:
    """The shared buffers that a statement with all in it reads and writes."""
    found = own_of(statement)
    for each in walk((statement,)):
        found.join(own_of(each))
    return found


def inside_of(body: Sequence[Statement]) -> Pending:
    """Those that the statements of a loop touch, collectives among them."""
    found = Pending()
    for statement in body:
        for each in walk((statement,)):
            found.join(touched(expand(each)) if isinstance(each, MultiplyAccumulate) else own_of(each))
    return found


def own_of(statement: Statement) -> Pending:
    """The shared buffers that a statement touches itself, its bodies aside."""
    read = {load.buffer.name for load in loads_in(statement) if load.buffer.scope is Scope.SHARED}
    written = set()
    match statement:
        case Store(buffer=buffer) | Update(buffer=buffer) | CopyTile(target=buffer) if buffer.scope is Scope.SHARED:
            written.add(buffer.name)
    return Pending(read, written)
