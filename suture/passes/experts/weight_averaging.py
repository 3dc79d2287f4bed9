"""Training with experts by random partition, and back: feed-forward layers become experts, and the experts become one layer, their mean.

After Huang et al., "Experts Weights Averaging: A New General Training Scheme for Vision Transformers" (arXiv 2308.06093). The layer keeps its nodes
and the names of its tensors; every linear map in it has one weight per expert, stacked in front, and every position of a batch one expert, drawn anew
at each step. Evaluation takes the mean of the weights: it is deterministic, and does not change when the experts are averaged for good.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.contract import Contract
from suture.passes.counter import counter_normal
from suture.passes.experts.feed_forward import FeedForward
from suture.passes.experts.sites import chosen_feeds
from suture.passes.low_rank.weights import DATA, WEIGHT, bias_of
from suture.passes.registry import Notes, register

OPERATOR, ORDER = "expert_linear", "random_order"


@register(contract=Contract.APPROXIMATE)
def ewa(
    graph: Graph,
    notes: Notes,
    *,
    experts: int = 4,
    at: tuple[str, ...] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Graph:
    """Give feed-forward layers several experts for training, each position to one of them at random.

    The function is kept in evaluation, and while the experts are equal in training too; a step costs what it did. `collapse_experts` ends it.

    :param experts: how many experts each layer has
    :param at: the modules that hold the layers, as patterns; all feed-forward layers of the graph if absent
    :param noise: how much normal noise each expert's weights get, in units of their own deviation
    :param seed: the key of what is drawn
    """
    if experts < 2:
        raise SutureError(Code.GROWTH, f"{experts} experts", remedy="2 or more would be right")
    if not 0 <= noise < float("inf"):
        raise SutureError(Code.GROWTH, f"noise={noise:g}", remedy="0 or more would be right")
    result = graph.copy()
    done = 0
    before = result.stats().parameters
    for feed in chosen_feeds(result, at, notes):
        reason = _why_not(feed)
        if reason is not None:
            notes.note(f"{feed.path} left alone: {reason}")
            continue
        _divide(result, feed, experts, noise, seed)
        done += 1
    if not done:
        notes.not_applicable(
            "no feed-forward layer can have experts"
            if notes.texts
            else "no feed-forward layer is added to another value"
        )
        return result
    result.sort()
    notes.note(
        f"{done} layers have {experts} experts, one for each position in training: {before:,} parameters, now {result.stats().parameters:,}"
    )
    if noise:
        notes.note("not exact: the experts differ by noise")
    else:
        notes.claim(Contract.EXACT)
    return result


def collapse_partitions(graph: Graph) -> int:
    """Average the experts of all random partitions, in place; how many linear maps became plain."""
    nodes = [node for node in graph.nodes if node.operator.name == OPERATOR]
    averaged: set[Parameter] = set()
    for node in nodes:
        for value in node.inputs[1:3]:
            if isinstance(value, Parameter) and value not in averaged:
                averaged.add(value)
                mean = value.data.detach().to(torch.float64).mean(0).to(value.dtype)
                value.assign(mean.requires_grad_(value.data.requires_grad))
        _plain(graph, node)
    for node in reversed(graph.nodes):  # what nothing reads any more: the partitions, and their regrouped forms
        chosen = node.operator.name == ORDER or any(
            v.producer is not None and v.producer.operator.name == ORDER for v in node.inputs if v
        )
        if chosen and not node.output.uses and not node.output.is_graph_output():
            graph.remove(node)
    return len(nodes)


def stacked_parameters(graph: Graph) -> list[str]:
    """The names of the parameters that hold one tensor per expert, stacked in front."""
    found = [
        value.name for node in graph.nodes if node.operator.name == OPERATOR for value in node.inputs[1:3]
        if isinstance(value, Parameter)
    ]  # fmt: skip
    return list(dict.fromkeys(found))


def _linear_maps(feed: FeedForward) -> list[Node]:
    return [node for node in feed.region.nodes if node.operator.name in ("linear", "addmm", "matmul")]


def _tensors(node: Node) -> list[Value]:
    weight, bias = node.inputs[WEIGHT[node.operator.name]], bias_of(node)
    return [value for value in (weight, bias) if value is not None]


def _why_not(feed: FeedForward) -> str | None:
    inside = set(feed.region.nodes)
    for node in _linear_maps(feed):
        for value in _tensors(node):
            if not isinstance(value, Parameter) or value.role != "parameter":
                return f"a tensor of {node.where()} is no parameter"
            if any(use.node not in inside for use in value.uses) or value.is_graph_output():
                return f"{value.name} is read outside of it"
            if len(value.uses) != 1:
                return f"{len(value.uses)} nodes read {value.name}"
        bias = bias_of(node)
        if bias is not None and bias.rank != 1:
            return f"what {node.where()} adds has {bias.rank} dimensions"
    return None


def _divide(graph: Graph, feed: FeedForward, experts: int, noise: float, seed: int) -> None:
    x = feed.region.entry
    maps = _linear_maps(feed)
    drawn = graph.add(ORDER, [x], path=feed.path, name=f"{x.name}_order", before=maps[0]).output
    regrouped: dict[tuple[object, ...], Value] = {drawn.shape: drawn}
    for node in maps:
        name = node.operator.name
        data = node.inputs[DATA[name]]
        weight, bias = node.inputs[WEIGHT[name]], bias_of(node)
        assert data is not None
        for value in _tensors(node):
            assert isinstance(value, Parameter)
            value.assign(_stacked(value, experts, noise, seed))
        positions = data.shape[:-1]
        if positions not in regrouped:
            regrouped[positions] = graph.add("reshape", [drawn], shapes=[positions], path=feed.path, before=node).output
        _replace(graph, node, OPERATOR, [data, weight, bias, regrouped[positions]], {"transposed": name != "linear"})


def _stacked(parameter: Parameter, experts: int, noise: float, seed: int) -> torch.Tensor:
    data = parameter.data.detach()
    stacked = data.expand(experts, *data.shape).clone()
    if noise and not data.is_meta:
        scale = float(data.to(torch.float64).std(correction=0)) * noise
        drawn = counter_normal(seed, f"{parameter.name}/experts", stacked.numel()).reshape(stacked.shape)
        stacked += (drawn * scale).to(data.dtype)
    return stacked.requires_grad_(parameter.data.requires_grad)


def _plain(graph: Graph, node: Node) -> None:
    """The linear map that a node was before it had experts."""
    x, weight, bias, _ = node.inputs
    if not node.attributes["transposed"]:
        _replace(graph, node, "linear", [x, weight, bias])
    elif bias is not None:
        _replace(graph, node, "addmm", [bias, x, weight])
    else:
        _replace(graph, node, "matmul", [x, weight])


def _replace(
    graph: Graph, node: Node, operator: str, inputs: Sequence[Value | None], attributes: dict[str, bool] | None = None
) -> None:
    name = node.output.name
    fresh = graph.add(operator, inputs, dict(attributes or {}), path=node.path, name=f"{name}_new", before=node)
    graph.replace_uses(node.output, fresh.output)
    graph.remove(node)
    graph.rename_result(fresh.output, name)
