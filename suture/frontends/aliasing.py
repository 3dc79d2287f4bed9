"""In-place operators: when they may be read as if they were functional, and when a program has to be functionalised first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

# These return their input itself in evaluation mode, which their schemas do not say.
_TRANSPARENT = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}

# These change what autograd knows of their operand, and none of its numbers.
_NOT_WRITTEN = {"aten::detach_", "aten::requires_grad_"}


def written_argument(node: Node) -> Node | None:
    """The tensor that an in-place operator writes to."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.name in _NOT_WRITTEN:
        return None
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            return found if isinstance(found, torch.fx.Node) else None
    return None


def viewed_argument(node: Node) -> Node | None:
    """The tensor whose memory the result may share."""
    import operator

    first: Any = node.args[0] if node.args else None
    if not isinstance(first, torch.fx.Node):
        return None
    if node.target is operator.getitem:
        return first
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    if node.target._schema.name.split("::")[-1] in _TRANSPARENT:
        return first
    shares = any(result.alias_info is not None for result in node.target._schema.returns)
    return first if shares else None


def writes_through_views(module: GraphModule) -> bool:
    """Whether something written in place is read again under another name: the part of a tensor, or the whole of a part."""
    place = {node: index for index, node in enumerate(module.graph.nodes)}
    same: dict[Node, Node] = {}  # the tensor object a node stands for
    root: dict[Node, Node] = {}  # the tensor whose memory it shares
    writes: list[tuple[int, Node]] = []
    for node in module.graph.nodes:
        written, viewed = written_argument(node), viewed_argument(node)
        if written is not None:
            same[node], root[node] = same[written], root[written]
            writes.append((place[node], written))
        else:
            same[node] = node
            root[node] = root[viewed] if viewed is not None else node
    for position, written in writes:
        for node in module.graph.nodes:
            if root[node] is not root[written] or same[node] is same[written] or place[node] > position:
                continue
            if any(place[user] > position for user in node.users):
                return True
    return False
