"""What a growth in depth does, as data: the order of the blocks, what is new, which parameter comes from which, the sizes, the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from suture.ir.graph import Graph, Parameter, Stats


@dataclass(frozen=True)
class DepthPlan:
    """A growth in depth.

    :param stack: the name of the stack
    :param before: how many blocks it had
    :param order: for every block that it has afterwards, the block it is made from
    :param new: the positions of blocks that start otherwise than the block they are made from (as the identity, masked)
    :param sources: for every parameter afterwards, the parameter that it is a copy of; one that starts anew is not there
    :param sizes: parameters and MACs, before and afterwards
    :param verdict: whether the function is kept, and the operator to blame if not
    """

    stack: str
    before: int
    order: tuple[int, ...]
    new: tuple[int, ...]
    sources: Mapping[str, str]
    sizes: tuple[Stats, Stats]
    verdict: str

    @property
    def exact(self) -> bool:
        """Whether the function is kept."""
        return self.verdict.startswith("exact")

    def lines(self) -> tuple[str, ...]:
        """The plan line by line, as passes note it."""
        shown = " ".join(f"{block}*" if place in self.new else str(block) for place, block in enumerate(self.order))
        small, large = self.sizes
        return (
            f"{self.stack}: {self.before} -> {len(self.order)} blocks ({shown}{'; * new' if self.new else ''})",
            f"{small.parameters:,} -> {large.parameters:,} parameters, {small.macs:,} -> {large.macs:,} MACs",
            self.verdict,
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())


_MARK = "grown from "


def mark_sources(graph: Graph) -> None:
    """Let every parameter carry its own name as an alias, which copies of it keep."""
    for parameter in graph.parameters.values():
        parameter.aliases = (*parameter.aliases, _MARK + parameter.name)


def unmark(parameters: Iterable[Parameter]) -> None:
    """Take the marks off: these parameters are copies of nothing."""
    for parameter in parameters:
        parameter.aliases = tuple(alias for alias in parameter.aliases if not alias.startswith(_MARK))


def take_sources(graph: Graph) -> dict[str, str]:
    """From every parameter's name to that of the parameter it is a copy of, taking the marks off."""
    sources = {
        parameter.name: alias.removeprefix(_MARK)
        for parameter in graph.parameters.values()
        for alias in parameter.aliases
        if alias.startswith(_MARK)
    }
    unmark(graph.parameters.values())
    return sources
