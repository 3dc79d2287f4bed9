"""Fusion groups: which nodes become one traversal kernel, and why.

A group runs over one domain: the shape of its values, whose last dimensions may be reduced within the group. A node joins the group of what it reads
where it runs over the same domain and nothing outside lies on a way from the group to it: what the two share then never goes through memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from suture.codegen.scalars import lower_scalar
from suture.ir.graph import Graph, Node, Value
from suture.ir.kernel import Expression, Name
from suture.ir.sizes import Dim

REDUCTIONS = frozenset({"sum", "mean", "amax", "amin"})


@dataclass(eq=False)
class Group:
    """Nodes over one domain.

    :param shape: the domain
    :param inner: how many of its last dimensions are reduced; 0 if none
    """

    shape: tuple[Dim, ...]
    inner: int = 0
    nodes: list[Node] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What it reads from outside, in order of first use."""
        inside = {value for node in self.nodes for value in node.outputs}
        read = [value for node in self.nodes for value in node.inputs if value is not None and value not in inside]
        return tuple(dict.fromkeys(read))

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What is read outside, or returned."""
        inside = set(self.nodes)
        return tuple(
            node.output for node in self.nodes
            if node.output.is_graph_output() or any(reader not in inside for reader, _ in node.output.uses)
        )  # fmt: skip

    @property
    def reductions(self) -> tuple[Node, ...]:
        """Its nodes that reduce."""
        return tuple(node for node in self.nodes if node.operator.name in REDUCTIONS)

    def __str__(self) -> str:
        domain = ", ".join(map(str, self.shape))
        reduced = f", reducing the last {self.inner}" if self.inner else ""
        return (
            f"{len(self.nodes)} nodes over [{domain}]{reduced}: {', '.join(node.operator.name for node in self.nodes)}"
        )


def find_groups(graph: Graph) -> list[Group]:
    """The groups of at least two nodes, in the graph's order."""
    plan = _Plan({node: position for position, node in enumerate(graph.nodes)})
    for node in graph.nodes:
        if not _is_lowered(node):
            continue
        candidates = dict.fromkeys(plan.member[maker] for maker in reversed(_makers(node)) if maker in plan.member)
        chosen: Group | None = None
        for group in candidates:
            if chosen is None and _fits(node, group) and not plan.around(_makers(node), group):
                chosen = group
                plan.enter(node, chosen)
            elif chosen is not None and _alike(chosen, group) and not plan.apart(chosen, group):
                plan.absorb(chosen, group)
        if chosen is None:
            plan.enter(node, Group(_domain(node)))
    found = list(dict.fromkeys(plan.member.values()))
    for group in found:
        group.nodes.sort(key=plan.order.__getitem__)
    return [group for group in found if len(group.nodes) > 1]


Item = Group | Node


@dataclass
class _Plan:
    """Who is in which group so far, and who depends on whom when every group runs as one."""

    order: dict[Node, int]
    member: dict[Node, Group] = field(default_factory=dict)
    last: dict[Group, int] = field(default_factory=dict)

    def item(self, node: Node) -> Item:
        return self.member.get(node, node)

    def enter(self, node: Node, group: Group) -> None:
        if node.operator.name in REDUCTIONS:
            group.inner = _reduced(node)
        group.nodes.append(node)
        self.member[node] = group
        self.last[group] = max(self.last.get(group, 0), self.order[node])

    def absorb(self, group: Group, other: Group) -> None:
        group.inner = group.inner or other.inner
        for node in other.nodes:
            group.nodes.append(node)
            self.member[node] = group
        self.last[group] = max(self.last[group], self.last.pop(other))

    def around(self, makers: Sequence[Node], group: Group) -> bool:
        """Whether something outside the group that a node reads depends on the group."""
        return self._reaches([self.item(maker) for maker in makers if self.item(maker) is not group], group)

    def apart(self, one: Group, other: Group) -> bool:
        """Whether something outside lies on a way from one group to the other."""
        return self._leads(one, other) or self._leads(other, one)

    def _leads(self, source: Group, target: Group) -> bool:
        makers = (self.item(maker) for node in target.nodes for maker in _makers(node))
        return self._reaches([item for item in makers if item is not target and item is not source], source)

    def _reaches(self, items: Sequence[Item], target: Group) -> bool:
        """Whether any of the items depends on the target."""
        first = min(self.order[node] for node in target.nodes)
        waiting, seen = list(items), set(items)
        while waiting:
            item = waiting.pop()
            if item is target:
                return True
            if (self.last[item] if isinstance(item, Group) else self.order[item]) < first:
                continue  # all of it runs before anything of the target
            for node in item.nodes if isinstance(item, Group) else (item,):
                for maker in _makers(node):
                    reached = self.item(maker)
                    if reached not in seen and reached is not item:
                        seen.add(reached)
                        waiting.append(reached)
        return False


def _makers(node: Node) -> list[Node]:
    return [value.producer for value in node.inputs if value is not None and value.producer is not None]


def _is_lowered(node: Node) -> bool:
    """Whether a node can be part of a traversal."""
    if len(node.outputs) != 1:
        return False
    if node.operator.name in REDUCTIONS:
        operand = node.inputs[0]
        assert operand is not None
        return operand.dtype.is_floating_point and bool(_reduced(node)) and bool(node.attributes["keepdim"])
    if not node.operator.pointwise:
        return False
    operands: list[Expression | None] = [None if value is None else Name("v", value.dtype) for value in node.inputs]
    return lower_scalar(node, operands) is not None


def _reduced(node: Node) -> int:
    """How many of the last dimensions a reduction takes; 0 if it takes others."""
    operand, dims = node.inputs[0], node.attributes["dims"]
    assert operand is not None and isinstance(dims, tuple)
    found = sorted(int(dim) % operand.rank for dim in dims if isinstance(dim, int))
    return len(found) if found == list(range(operand.rank - len(found), operand.rank)) else 0


def _domain(node: Node) -> tuple[Dim, ...]:
    operand = node.inputs[0]
    return operand.shape if node.operator.name in REDUCTIONS and operand is not None else node.output.shape


def _fits(node: Node, group: Group) -> bool:
    """Whether a node runs over a group's domain, or over its rows."""
    if node.operator.name in REDUCTIONS:
        return _domain(node) == group.shape and group.inner in (0, _reduced(node)) and _whole(group, _reduced(node))
    shape = node.output.shape
    rows = (*group.shape[: len(group.shape) - group.inner], *[1] * group.inner)
    if shape != group.shape and not (group.inner and shape == rows):
        return False
    return not group.inner or all(
        _is_plain(value, group.inner, group.shape) for value in node.inputs if value is not None
    )


def _whole(group: Group, inner: int) -> bool:
    """Whether everything the group reads has the reduced dimensions all or not at all."""
    return all(_is_plain(value, inner, group.shape) for value in group.inputs)


def _is_plain(value: Value, inner: int, shape: Sequence[Dim]) -> bool:
    last = value.shape[-inner:] if value.rank >= inner else (*[1] * (inner - value.rank), *value.shape)
    return tuple(last) == tuple(shape[-inner:]) or all(dim == 1 for dim in last)


def _alike(one: Group, other: Group) -> bool:
    """Whether two groups run over the same domain."""
    if one.shape != other.shape or (one.inner and other.inner and one.inner != other.inner):
        return False
    inner = one.inner or other.inner
    return not inner or (_whole(one, inner) and _whole(other, inner))


def schedule(graph: Graph, groups: Sequence[Group]) -> Iterator[Group | Node]:
    """Groups and the nodes outside them, each after everything that it reads."""
    member = {node: group for group in groups for node in group.nodes}
    done: set[Group | Node] = set()
    for root in graph.nodes:
        stack: list[tuple[Group | Node, bool]] = [(member.get(root, root), False)]
        while stack:
            item, ready = stack.pop()
            if item in done:
                continue
            if ready:
                done.add(item)
                yield item
                continue
            stack.append((item, True))
            makers = [value.producer for value in item.inputs if value is not None and value.producer is not None]
            items = [member.get(maker, maker) for maker in reversed(makers)]
            stack += [(each, False) for each in items if each not in done and each is not item]
