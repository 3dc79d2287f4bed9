"""Fusion groups: which nodes become one kernel, and why.

A group runs over one domain: the shape of its values, whose last dimensions may be reduced within the group. A node joins the group of what it reads
where it runs over the same domain and nothing outside lies on a way from the group to it: what the two share then never goes through memory.
A product, convolution or attention is the anchor of a group; pointwise nodes behind it join as its epilogue. Views are in no group: readers look
through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from suture.codegen.access import is_regrouping, is_view
from suture.codegen.scalars import lower_scalar
from suture.codegen.step import Template
from suture.ir.graph import Graph, Node, Value
from suture.ir.kernel import Expression, Name
from suture.ir.sizes import Dim, product

REDUCTIONS = frozenset({"sum", "mean", "amax", "amin"})
_MOST = 120
"""Nodes of one kernel: compilers, and the lowering's own recursion, take longer chains badly, and their values need more registers than there are."""


@dataclass(eq=False)
class Group:
    """Nodes over one domain.

    :param shape: the domain
    :param reduced: which of its dimensions are reduced
    :param anchor: the node whose template writes the kernel; a traversal has none
    :param stores: what it writes, where that is not what is read outside
    """

    shape: tuple[Dim, ...]
    reduced: tuple[int, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    anchor: Node | None = None
    stores: tuple[Value, ...] | None = None

    @property
    def key(self) -> str:
        """What it is called in the graph: the name of what its anchor, or first node, makes."""
        return (self.anchor or self.nodes[0]).outputs[0].name

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What it reads from outside, in order of first use."""
        inside = frozenset(self.nodes)
        read = [value for node in self.nodes for value in node.inputs if value is not None]
        return tuple(dict.fromkeys(value for value in read if origin_of(value) not in inside))

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What is read outside, or returned: itself, or a view of it."""
        if self.stores is not None:
            return self.stores
        inside = frozenset(self.nodes)
        return tuple(value for node in self.nodes for value in node.outputs if leaves(value, inside))

    @property
    def reductions(self) -> tuple[Node, ...]:
        """Its nodes that reduce."""
        return tuple(node for node in self.nodes if node.operator.name in REDUCTIONS)

    @property
    def front(self) -> tuple[Node, ...]:
        """The pointwise nodes in front of the anchor."""
        return () if self.anchor is None else tuple(self.nodes[: self.nodes.index(self.anchor)])

    def __str__(self) -> str:
        domain = ", ".join(map(str, self.shape))
        if self.anchor is not None:
            front = [node.operator.name for node in self.front]
            behind = [node.operator.name for node in self.nodes[len(front) + 1 :]]
            said = (f"{', '.join(front)}, then " if front else "") + f"{self.anchor.operator.name} to [{domain}]"
            return said + (f", then {', '.join(behind)}" if behind else "")
        reduced = f", reducing {', '.join(str(self.shape[k]) for k in self.reduced)}" if self.reductions else ""
        count = f"{len(self.nodes)} node" + ("s" if len(self.nodes) > 1 else "")
        return f"{count} over [{domain}]{reduced}: {', '.join(node.operator.name for node in self.nodes)}"


def find_groups(
    graph: Graph, template: Callable[[Node], Template | None] = lambda node: None, least: int = 2
) -> list[Group]:
    """The groups, in the graph's order.

    :param template: the template of a node that anchors a group
    :param least: how many nodes a traversal must have to be worth a kernel
    """
    from suture.codegen.ragged.grouping import claim  # it builds upon this module

    plan = Plan({node: position for position, node in enumerate(graph.nodes)})
    claim(graph, plan, template)
    for node in graph.nodes:
        if node in plan.member:
            continue
        if (anchored := template(node)) is not None:
            plan.enter(node, Group(node.outputs[0].shape, anchor=node), None)
            plan.fuses[plan.member[node]] = anchored.fuses
            if anchored.reshapes:
                plan.reshapes.add(plan.member[node])
            continue
        if is_view(node) or not is_lowered(node):
            continue
        candidates = dict.fromkeys(plan.member[maker] for maker in reversed(sources_of(node)) if maker in plan.member)
        chosen: Group | None = None
        for group in candidates:
            if chosen is None:
                space = plan.space_in(group, node) if len(group.nodes) < _MOST else None
                if space is not None and not plan.around(sources_of(node), group):
                    chosen = group
                    plan.enter(node, chosen, space)
            elif _together(chosen, group) and plan.alike(chosen, group) and not plan.apart(chosen, group):
                plan.absorb(chosen, group)
        if chosen is None:
            plan.enter(node, Group(_domain(node)), Space(_domain(node)))
    found = list(dict.fromkeys(plan.member.values()))
    for group in found:
        group.nodes.sort(key=plan.order.__getitem__)
    return [group for group in found if group.anchor is not None or len(group.nodes) >= least]


def _together(one: Group, other: Group) -> bool:
    return len(one.nodes) + len(other.nodes) <= _MOST


Item = Group | Node


@dataclass(frozen=True)
class Space:
    """In which order a value has a domain's elements: its shape, behind the permutations on the way there.

    :param rows: whether it has one element for each row of the domain alone
    """

    shape: tuple[Dim, ...]
    permuted: tuple[tuple[tuple[Dim, ...], tuple[int, ...]], ...] = ()
    rows: bool = False

    def seen(self, view: Node) -> Space | None:
        """The space of a regrouping of a value; None where the order cannot be said."""
        shape, name = view.output.shape, view.operator.name
        if name in ("reshape", "expand"):
            return replace(self, shape=shape)
        if name != "permute" or self.rows:
            return None
        dims = tuple(int(dim) % len(shape) for dim in _ints(view.attributes["dims"]))
        if self.permuted:
            before, last = self.permuted[-1]
            turned = tuple(before[dim] for dim in last)
            if turned == self.shape and tuple(last[dim] for dim in dims) == tuple(range(len(dims))):
                return replace(self, shape=shape, permuted=self.permuted[:-1])
        return replace(self, shape=shape, permuted=(*self.permuted, (self.shape, dims)))


@dataclass
class Plan:
    """Who is in which group so far, and who depends on whom when every group runs as one.

    :param spaces: in which order the nodes of a traversal have the domain's elements
    :param domains: the space of what a group reduces
    :param reshapes: the groups whose epilogues may read through reshapes
    """

    order: dict[Node, int]
    member: dict[Node, Group] = field(default_factory=dict)
    last: dict[Group, int] = field(default_factory=dict)
    fuses: dict[Group, Callable[[Node, Node], bool]] = field(default_factory=dict)
    reshapes: set[Group] = field(default_factory=set)
    spaces: dict[Node, Space] = field(default_factory=dict)
    domains: dict[Group, Space] = field(default_factory=dict)

    def space_in(self, group: Group, node: Node) -> Space | None:
        """The order in which a node would have a group's elements; None if it does not run over the group's domain, or its rows."""
        if group.anchor is not None:
            return Space(node.output.shape) if self._is_behind(group, group.anchor, node) else None
        seen = [self.seen(value, group) for value in node.inputs if value is not None]
        spaces = [each for each in seen if isinstance(each, Space)]
        if not spaces or "unclear" in seen:
            return None
        whole = {each for each in spaces if not each.rows}
        if node.operator.name in REDUCTIONS:
            if len(whole) != 1 or (group.reduced and self.domains.get(group) != spaces[0]):
                return None
            dims = reduced_dims(node)
            return Space(node.output.shape, rows=True) if not group.reductions or dims == group.reduced else None
        shape = node.output.shape
        if not whole:
            if all(product(each.shape) == product(shape) for each in spaces):
                return Space(shape, rows=True)
            spread = shape == group.shape and all(_is_row(each.shape, group) for each in spaces)
            return self.domains[group] if spread else None
        space = next(iter(whole))
        rows = [each for each in spaces if each.rows]
        if len(whole) > 1 or space.shape != shape:
            return None
        if rows and (self.domains[group] != space or not all(_is_row(each.shape, group) for each in rows)):
            return None
        return space

    def _is_behind(self, group: Group, anchor: Node, node: Node) -> bool:
        """Whether a node can be part of an anchor's epilogue: it takes the result element by element."""
        shape = node.output.shape
        if node.operator.name in REDUCTIONS or not self.fuses[group](anchor, node):
            return False
        own = [each for each in node.inputs if each is not None and self._makes(group, origin_of(each))]
        if any(value.shape != shape for value in own):
            return False
        if all(self._makes(group, value.producer) for value in own):
            return True
        kept = bool(shape) and bool(group.shape) and shape[-1] == group.shape[-1]
        return group in self.reshapes and kept and all(map(_is_reshaped, own))

    def _makes(self, group: Group, node: Node | None) -> bool:
        return node is not None and self.member.get(node) is group

    def seen(self, value: Value, group: Group) -> Space | str | None:
        """The order in which a group's value is read through regroupings; None if it is from elsewhere."""
        views: list[Node] = []
        while value.producer is not None and is_regrouping(value.producer):
            views.append(value.producer)
            source = value.producer.inputs[0]
            assert source is not None
            value = source
        if value.producer is None or self.member.get(value.producer) is not group:
            return None
        space: Space | None = self.spaces[value.producer]
        for view in reversed(views):
            space = space.seen(view) if space is not None else None
        return "unclear" if space is None else space

    def item(self, node: Node) -> Item:
        """The group of a node, or the node."""
        return self.member.get(node, node)

    def enter(self, node: Node, group: Group, space: Space | None) -> None:
        """Put a node into a group.

        :param space: in which order it has the elements of a traversal's domain
        """
        if group.anchor is None and space is not None:
            if node.operator.name in REDUCTIONS:
                operand = node.inputs[0]
                assert operand is not None
                found = self.seen(operand, group)
                self.domains.setdefault(group, found if isinstance(found, Space) else Space(operand.shape))
                group.shape, group.reduced = operand.shape, reduced_dims(node)
                space = Space(node.output.shape, rows=True)
            self.spaces[node] = space
        group.nodes.append(node)
        self.member[node] = group
        self.last[group] = max(self.last.get(group, 0), self.order[node])

    def alike(self, one: Group, other: Group) -> bool:
        """Whether two groups run over the same domain, in the same order."""
        if one.anchor is not None or other.anchor is not None:
            return False
        if any(self.spaces[node].permuted for group in (one, other) for node in group.nodes):
            return False
        if product(one.shape) != product(other.shape):
            return False
        if one.reductions and other.reductions:
            return one.shape == other.shape and one.reduced == other.reduced
        return True

    def absorb(self, group: Group, other: Group) -> None:
        """Put all nodes of another group into a group."""
        if other.reductions:
            group.shape, group.reduced = other.shape, other.reduced
            self.domains[group] = self.domains[other]
        for node in other.nodes:
            group.nodes.append(node)
            self.member[node] = group
        self.last[group] = max(self.last[group], self.last.pop(other))

    def beside(self, node: Node, group: Group) -> bool:
        """Whether something outside lies on a way from a node to a group that reads it."""
        makers = {maker for each in group.nodes for maker in sources_of(each)}
        items = [self.item(maker) for maker in makers if maker is not node and self.item(maker) is not group]
        return self._reaches(items, self.item(node))

    def around(self, makers: Sequence[Node], group: Group) -> bool:
        """Whether something outside the group that a node reads depends on the group."""
        return self._reaches([self.item(maker) for maker in makers if self.item(maker) is not group], group)

    def apart(self, one: Group, other: Group) -> bool:
        """Whether something outside lies on a way from one group to the other."""
        return self._leads(one, other) or self._leads(other, one)

    def _leads(self, source: Group, target: Group) -> bool:
        makers = (self.item(maker) for node in target.nodes for maker in sources_of(node))
        return self._reaches([item for item in makers if item is not target and item is not source], source)

    def _reaches(self, items: Sequence[Item], target: Item) -> bool:
        """Whether any of the items depends on the target."""
        first = min(self.order[node] for node in target.nodes) if isinstance(target, Group) else self.order[target]
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


def sources_of(node: Node) -> list[Node]:
    """What makes a node's operands, seen through views that only regroup."""
    made = [origin_of(value) for value in node.inputs if value is not None]
    return [maker for maker in made if maker is not None]


def origin_of(value: Value) -> Node | None:
    """What makes a value, seen through views that only regroup."""
    maker = value.producer
    while maker is not None and is_regrouping(maker) and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer
    return maker


def _is_reshaped(value: Value) -> bool:
    """Whether nothing but reshapes stands between a value and the node that makes it."""
    node = value.producer
    while node is not None and is_regrouping(node):
        if node.operator.name != "reshape" or node.inputs[0] is None:
            return False
        node = node.inputs[0].producer
    return True


def leaves(value: Value, inside: frozenset[Node]) -> bool:
    """Whether a value of a group, or a view of it, is read outside or returned."""
    if value.is_graph_output():
        return True
    for reader, _ in value.uses:
        if reader in inside:
            continue
        if not is_view(reader) or any(leaves(each, inside) for each in reader.outputs):
            return True
    return False


def is_lowered(node: Node) -> bool:
    """Whether a node can be part of a traversal."""
    if len(node.outputs) != 1:
        return False
    if node.operator.name in REDUCTIONS:
        operand = node.inputs[0]
        assert operand is not None
        return not operand.dtype.is_complex and operand.dtype != torch.bool and bool(reduced_dims(node))
    if not node.operator.pointwise:
        return False
    operands: list[Expression | None] = [None if value is None else Name("v", value.dtype) for value in node.inputs]
    return lower_scalar(node, operands) is not None


def reduced_dims(node: Node) -> tuple[int, ...]:
    """The dimensions that a reduction takes, counted from the front."""
    operand = node.inputs[0]
    assert operand is not None
    return tuple(sorted({dim % operand.rank for dim in _ints(node.attributes["dims"])})) if operand.rank else ()


def _ints(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, tuple) else (value,)
    return tuple(item for item in items if isinstance(item, int))


def _domain(node: Node) -> tuple[Dim, ...]:
    operand = node.inputs[0]
    return operand.shape if node.operator.name in REDUCTIONS and operand is not None else node.output.shape


def _is_row(shape: tuple[Dim, ...], group: Group) -> bool:
    """Whether a shape, aligned from the right, is that of one number for each of a group's rows."""
    if len(shape) > len(group.shape):
        shape = shape[len(shape) - len(group.shape) :]
    aligned = (*[1] * (len(group.shape) - len(shape)), *shape)
    return all(
        size == (1 if k in group.reduced else whole)
        for k, (size, whole) in enumerate(zip(aligned, group.shape, strict=True))
    )


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
