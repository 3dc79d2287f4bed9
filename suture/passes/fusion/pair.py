"""A fusion: two templates that say the same, and a predicate that tells where one may stand for the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.ir.operator import find
from suture.ir.operators.fused import BODIES
from suture.ir.paths import common_path
from suture.ir.template import Template, parse_template, write
from suture.passes.fusion.matching import Match, Miss, find_match
from suture.passes.rewriting import Refusal, Rule

Legal = Callable[[Match], "str | None"]


def always(match: Match) -> str | None:
    """Legal wherever it matches."""
    return None


@dataclass(frozen=True)
class Pair:
    """A pattern, what it becomes, and why it may not: both templates have the same operands and results."""

    name: str
    pattern: Template
    replacement: Template
    legal: Legal = always

    @classmethod
    def of(cls, name: str, header: str, pattern: str, replacement: str, legal: Legal = always) -> Pair:
        """A pair from text: the line of index notation that both share, then the lines of each."""
        return cls(name, parse_template(f"{header}\n{pattern}"), parse_template(f"{header}\n{replacement}"), legal)

    @classmethod
    def fused(cls, name: str, legal: Legal = always) -> Pair:
        """A fused operator's body, and the operator."""
        body, operator = BODIES[name], find(name)
        attributes = " ".join(f"{title}=${operator.letters.get(title, title)}" for title in operator.attributes)
        line = f"{', '.join(body.results)} = {name}({', '.join(body.operands)}) {attributes}"
        return cls(name, body, parse_template(f"{body.signature}\n{line}"), legal)

    @property
    def back(self) -> Pair:
        """The way back, legal wherever it matches: the two say the same."""
        return Pair(self.name, self.replacement, self.pattern)

    def rule(self) -> Rule:
        """The pair as a rewrite at one node."""
        root = self.pattern.lines[-1].operator

        def apply(graph: Graph, node: Node) -> str | Refusal | None:
            if node.operator is not root:
                return None
            found = find_match(self.pattern, node)
            if isinstance(found, Miss):
                near = found.lines >= max(2, (len(self.pattern.lines) + 1) // 2)
                return Refusal(found.reason) if near else None
            reason = self.legal(found) or _circular(found)
            return Refusal(reason) if reason is not None else self._replace(graph, node, found)

        return Rule(self.name, apply)

    def _replace(self, graph: Graph, node: Node, match: Match) -> str:
        operands = {name: match.values.get(name) for name in self.pattern.operands}
        path = common_path(covered.path for covered in match.nodes)
        made = write(self.replacement, graph, operands, match.known, name=node.outputs[0].name, path=path, before=node)
        names: list[tuple[Value, str]] = []
        for name in self.pattern.results:
            old, new = match.value(name), made[name]
            assert new is not None
            graph.replace_uses(old, new)
            names.append((new, old.name))
        _remove(graph, match.nodes)
        for value, name in names:
            graph.rename_result(value, name)
        if len(names) > 1:
            graph.sort()
        return f"{_count(match.nodes)} {_are(match.nodes)} {self.replacement.lines[-1].operator.name}"


def _circular(match: Match) -> str | None:
    """Where an inner value is a result too, an operand may be computed from it: then the nodes cannot be one."""
    if len(match.template.results) == 1:
        return None
    covered, seen = set(match.nodes), set[Node]()
    waiting = [value.producer for name in match.template.operands if (value := match.values.get(name)) is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node in covered:
            return f"an operand is computed from {node.where()}"
        seen.add(node)
        waiting += [value.producer for value in node.inputs if value is not None]
    return None


def _remove(graph: Graph, nodes: tuple[Node, ...]) -> None:
    """Remove nodes, readers first."""
    left = list(nodes)
    while left:
        dead = [node for node in left if not any(value.uses or value.is_graph_output() for value in node.outputs)]
        if not dead:
            return  # a result that the replacement hands on, such as an operand's own producer
        for node in dead:
            graph.remove(node)
        left = [node for node in left if node not in dead]


def _count(nodes: tuple[Node, ...]) -> str:
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)}"


def _are(nodes: tuple[Node, ...]) -> str:
    return "is" if len(nodes) == 1 else "are"
