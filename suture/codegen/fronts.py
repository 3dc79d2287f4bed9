"""Pointwise nodes in front of a product, as its prologue: computed where the product brings an operand near, and never in memory themselves.

What an epilogue or a traversal makes is read back once for each panel of columns, which is cheap; computed anew for each it would not be. So a
prologue is taken where an operand is copied or packed anyway, or where few panels read it: the template of the anchor says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from suture.codegen.access import is_regrouping, is_view
from suture.codegen.groups import Group, leaves, origin_of
from suture.codegen.step import Context, Template
from suture.ir.graph import Node, Value

_MANY = 2
_MOST = 6  # nodes of a prologue: where an element is read under a condition, none of its parts has a name


def take_fronts(groups: Sequence[Group], template: Callable[[Node], Template | None], context: Context) -> list[Group]:
    """Let anchors take the groups in front of them that nothing else reads; the groups that are left."""
    member = {node: group for group in groups for node in group.nodes}
    taken: set[Group] = set()
    for group in groups:
        found = template(group.anchor) if group.anchor is not None else None
        if group.anchor is None or found is None:
            continue
        for place, value in enumerate(group.anchor.inputs):
            other = member.get(maker) if value is not None and (maker := origin_of(value)) is not None else None
            if value is None or other is None or not _is_front(group, other):
                continue
            if found.fronts(group, place, context):
                group.nodes[:0] = other.nodes
                member.update(dict.fromkeys(other.nodes, group))
                taken.add(other)
    return [group for group in groups if group not in taken]


def _is_front(group: Group, other: Group) -> bool:
    """Whether a group is pointwise and read by an anchor alone, at one place."""
    if other.anchor is not None or other is group or other.reductions or other.stores is not None:
        return False
    if len(other.nodes) > _MOST:
        return False
    inside = frozenset({*other.nodes, group.anchor}) if group.anchor is not None else frozenset(other.nodes)
    if any(leaves(value, inside) for node in other.nodes for value in node.outputs):
        return False
    return sum(_reads(value, group.anchor) for node in other.nodes for value in node.outputs) == 1


def _reads(value: Value, anchor: Node | None) -> int:
    """At how many places an anchor reads a value, through regroupings too; what other views read is read at many."""
    count = 0
    for reader, _ in value.uses:
        if reader is anchor:
            count += 1
        elif is_regrouping(reader):
            count += sum(_reads(each, anchor) for each in reader.outputs)
        elif is_view(reader):
            count += _MANY
    return count
