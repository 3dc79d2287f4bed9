"""Feed-forward layers, found by what they do: linear maps out of one value, functions of each inner unit by itself, one linear map back.

No module need be called so. An axis is the inner one of a feed-forward if one linear operator sums over it, linear operators that read one and the
same value write it, and all that lies between acts on each unit, and each position, by itself, and is not linear throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suture.ir.axes import AxisInfo, AxisTable
from suture.ir.errors import SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.operator import FunctionClass
from suture.ir.paths import common_path, is_below
from suture.ir.regions import Region, between
from suture.passes.low_rank.weights import BIAS, DATA, WEIGHT
from suture.passes.registry import Notes

_LINEAR = ("linear", "addmm", "matmul")
_LAYOUT = ("reshape", "dropout", "cast", "clone")


@dataclass(frozen=True, eq=False)
class FeedForward:
    """A feed-forward layer: the region from the value that it reads to the result of its last linear map, and its inner axis."""

    region: Region
    axis: AxisInfo
    reader: Node

    @property
    def path(self) -> str:
        """The module that holds its parameters."""
        return home(self.region)

    @property
    def units(self) -> int:
        """How many inner units it has."""
        size = self.axis.size
        assert isinstance(size, int)
        return size

    @property
    def hidden(self) -> Value:
        """What the last linear map reads."""
        value = self.reader.inputs[DATA[self.reader.operator.name]]
        assert value is not None
        return value

    @property
    def bias(self) -> Parameter | None:
        """The bias of the last linear map."""
        index = bias_index(self.reader)
        value = self.reader.inputs[index] if index is not None and index < len(self.reader.inputs) else None
        return value if isinstance(value, Parameter) else None


def feed_forwards(graph: Graph, table: AxisTable | None = None) -> list[FeedForward]:
    """The feed-forward layers of a graph whose results are added to another value, in the graph's order."""
    known = table or graph.axes()
    found = [feed for feed in (_feed_forward(graph, info) for info in known.free()) if feed is not None]
    position = {node: k for k, node in enumerate(graph.nodes)}
    return sorted((f for f in found if _is_added(f.reader.output)), key=lambda feed: position[feed.reader])


def one_per_module(feeds: Sequence[FeedForward], notes: Notes) -> list[FeedForward]:
    """The layers without those whose module holds an earlier one, so that experts can be named below it; the notes name these."""
    found: dict[str, FeedForward] = {}
    for feed in feeds:
        if found.setdefault(feed.path, feed) is not feed:
            notes.note(f"{feed.axis.name} left alone: the module {feed.path!r} holds another feed-forward layer")
    return list(found.values())


def inside(piece: Graph, path: str) -> Graph:
    """A piece whose nodes all lie below a module, in place: functions that a module above it applied are its own now."""
    for node in piece.nodes:
        if not is_below(node.path, path):
            node.path = path
    return piece


def home(region: Region) -> str:
    """The module that holds a region's own parameters, or that its nodes come from if it has none."""
    modules = [p.name.rpartition(".")[0] for p in region.own_parameters()]
    paths = [node.path for node in region.nodes]
    deepest = common_path(modules or paths)
    return deepest if len(set(modules)) != 1 else deepest.rpartition(".")[0]


def bias_index(node: Node) -> int | None:
    """Which operand of a linear operator is the bias."""
    return BIAS.get(node.operator.name)


def inner_axis(graph: Graph, table: AxisTable | None = None) -> FeedForward | None:
    """The feed-forward layer that a whole graph of one output is, if it is one."""
    known = table or graph.axes()
    found = [feed for feed in (_feed_forward(graph, info) for info in known.free()) if feed is not None]
    whole = [feed for feed in found if len(feed.region) == len(graph)]
    return whole[0] if whole else None


def without_bias(graph: Graph) -> None:
    """Take the bias off the last linear map of a graph that is one feed-forward layer."""
    feed = inner_axis(graph)
    if feed is None or feed.bias is None:
        return
    node, bias = feed.reader, feed.bias
    if node.operator.name == "linear":
        node.replace_input(2, None)
    else:
        plain = graph.add("matmul", node.inputs[1:], path=node.path, name=node.output.name)
        graph.replace_uses(node.output, plain.output)
        graph.remove(node)
        graph.sort()
    if not bias.uses:
        graph.remove_parameter(bias)


def with_bias(graph: Graph, bias: Parameter) -> None:
    """Give the last linear map of a graph that is one feed-forward layer, and has none, a bias of the graph."""
    feed = inner_axis(graph)
    assert feed is not None
    node = feed.reader
    if node.operator.name == "linear":
        node.extend_inputs(3)
        node.replace_input(2, bias)
        return
    full = graph.add("addmm", [bias, *node.inputs], path=node.path, name=node.output.name)
    graph.replace_uses(node.output, full.output)
    graph.remove(node)
    graph.sort()


def _feed_forward(graph: Graph, info: AxisInfo) -> FeedForward | None:
    if len(info.readers) != 1 or info.kind != "feature":
        return None
    reader = info.readers[0]
    sources = {_source(node) for node in info.writers}
    if reader.operator.name not in _LINEAR or len(sources) != 1 or not _is_plain(reader):
        return None
    source = sources.pop()
    if source is None:
        return None
    try:
        region = between(graph, source, reader.output)
    except SutureError:  # other values cross
        return None
    alone = all(_acts_alone(node) for node in region.nodes) and any(_bends(node) for node in region.nodes)
    return FeedForward(region, info, reader) if alone and region.outputs == (reader.output,) else None


def _source(node: Node) -> Value | None:
    """The value that a linear map reads; None if the node is none."""
    if node.operator.name not in _LINEAR or not _is_plain(node):
        return None
    value = node.inputs[DATA[node.operator.name]]
    return None if isinstance(value, Parameter) else value


def _is_plain(node: Node) -> bool:
    """Whether the weight is a parameter, a matrix."""
    weight = node.inputs[WEIGHT[node.operator.name]]
    return isinstance(weight, Parameter) and weight.rank == 2


def _acts_alone(node: Node) -> bool:
    name = node.operator.name
    return node.operator.pointwise or name in _LAYOUT or (name in _LINEAR and _is_plain(node))


def _bends(node: Node) -> bool:
    """Whether it is no linear map: an activation, or a product of two values."""
    if node.operator.name == "mul":
        return all(value is not None and not isinstance(value, Parameter) for value in node.inputs)
    return node.operator.pointwise and node.operator.function is not FunctionClass.LINEAR


def _is_added(value: Value) -> bool:
    """Whether a value ends up as a summand, through nothing but functions of each element."""
    while len(value.uses) == 1 and not value.is_graph_output():
        node = value.uses[0].node
        if node.operator.name == "add" and sum(operand is not None for operand in node.inputs) == 2:
            others = [operand for operand in node.inputs if operand is not None and operand is not value]
            return not isinstance(others[0], Parameter) if others else True
        passes_on = node.operator.pointwise or node.operator.name in (*_LAYOUT, "permute")
        if not passes_on or len(node.outputs) != 1:
            return False
        value = node.output
    return False
