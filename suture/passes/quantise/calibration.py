"""Running a graph over calibration data, batch by batch, with observers on some of its values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.semantics import evaluate
from suture.passes.quantise.observers import Observer
from suture.passes.stitch.calibration import batches

Feed: TypeAlias = "Mapping[str, torch.Tensor] | Sequence[torch.Tensor]"
Data: TypeAlias = "Mapping[str, torch.Tensor] | Sequence[Feed]"
"""One mapping from inputs to all examples of each, or batch after batch."""


def feeds(graph: Graph, data: Data | None, size: int = 32) -> list[Feed]:
    """Calibration data as batches: a mapping is cut along the first dimension, a sequence has its batches already.

    :raises SutureError: CALIBRATION, if there are none or they do not fit the graph
    """
    if data is None or not len(data):
        raise SutureError(
            Code.CALIBRATION, "there are no calibration data", where=graph.name, remedy="give data= some typical inputs"
        )
    found: list[Feed] = list(batches(graph, data, size)) if isinstance(data, Mapping) else list(data)
    for feed in found:
        tensors = list(feed.values()) if isinstance(feed, Mapping) else feed
        if not isinstance(tensors, list | tuple) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            raise SutureError(
                Code.CALIBRATION, f"a batch of the calibration data is of type {type(feed).__name__}", where=graph.name,
                remedy="tensors by name, or in the order of the inputs, would be right",
            )  # fmt: skip
    return found


def observe(
    graph: Graph, data: Sequence[Feed], values: Iterable[Value], make_observer: Callable[[Value], Observer]
) -> dict[Value, Observer]:
    """Let an observer per value see what it is on each batch; one batch is in memory at a time.

    :param values: inputs, parameters or results of nodes of the graph
    :raises SutureError: CALIBRATION, if there are no batches; INPUT, if one does not fit the graph
    """
    wanted = list(dict.fromkeys(values))
    observers = {value: make_observer(value) for value in wanted}

    def see(value: Value, tensor: torch.Tensor) -> None:
        if value in observers:
            observers[value].observe(tensor)

    for value in wanted:
        if isinstance(value, Parameter):
            see(value, value.data)
    watch(graph, data, see)
    return observers


def watch(graph: Graph, data: Sequence[Feed], see: Callable[[Value, torch.Tensor], None]) -> None:
    """Run every batch and show each input and each result as it is computed.

    :raises SutureError: CALIBRATION, if there are no batches; INPUT, if one does not fit the graph
    """
    if not len(data):
        raise SutureError(
            Code.CALIBRATION, "there are no calibration data", where=graph.name, remedy="give some typical inputs"
        )
    for feed in data:
        named = feed if isinstance(feed, Mapping) else dict(zip([v.name for v in graph.inputs], feed, strict=False))
        for value in graph.inputs:
            if value.name in named:
                see(value, named[value.name])
        with torch.no_grad():
            evaluate(graph, feed, watch=see)
