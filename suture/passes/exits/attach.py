"""Hanging exits on a graph."""

from __future__ import annotations

from typing import Literal

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.interface import add_interface_output
from suture.passes.contract import Contract
from suture.passes.exits.features import feature_dim
from suture.passes.exits.heads import OwnHead, add_gate, copied_head, pooled_head
from suture.passes.exits.sites import exit_name, exit_streams, gate_name
from suture.passes.registry import Notes, register

Head = Literal["auto", "copy", "pooled"]


@register(contract=Contract.EXACT)
def add_exits(
    graph: Graph,
    notes: Notes,
    *,
    at: tuple[str, ...] = (),
    count: int | None = None,
    classes: int | None = None,
    head: Head = "auto",
    freeze: bool = False,
    seed: int = 0,
) -> Graph:
    """Hang exits on a classifier: at each, logits and a gate that says how sure it is that they will do.

    The result stays what it was; behind it come the outputs `exit_0`, `gate_0`, `exit_1`, ... in the order of depth: logits f32[batch, classes] and a
    number between 0 and 1 per sample. They train by `exit_loss`; `early_exit` makes of them a graph that leaves early.

    :param at: cut values or module paths whose output is one; behind every block of the stack of most parameters but the last if absent
    :param count: instead, how many, evenly spread over those blocks
    :param classes: how many classes; as many as the model's own logits have if absent
    :param head: copy (the model's own head, with parameters of its own), pooled (a linear layer on the averaged features), or auto: a copy where the
        stream is of the type that the model's head takes
    :param freeze: whether what the model had before stays as it is in training
    :param seed: the key of the random weights
    :raises SutureError: EXIT, if a place is no cut value, or the model's result is not one row of logits per sample
    """
    result = graph.copy()
    logits = _logits(result, classes)
    number_of_classes = classes or logits.shape[1]
    assert isinstance(number_of_classes, int)
    streams = exit_streams(result, at, count)
    own = None if head == "pooled" else OwnHead.of(result, logits)
    table = result.axes()
    features = [feature_dim(table, stream) for stream in streams]
    before = list(result.parameters.values())
    for number, (stream, feature) in enumerate(zip(streams, features, strict=True)):
        copied = own is not None and own.fits(stream) and number_of_classes == logits.shape[1]
        if head == "copy" and not copied:
            raise _no_copy(stream, own)
        if own is not None and copied:
            found = copied_head(result, own, stream, number)
        else:
            found = pooled_head(result, stream, feature, number_of_classes, number, seed)
        gate = add_gate(result, found, number)
        for value, name in ((found, exit_name(number)), (gate, gate_name(number))):
            add_interface_output(result, value, name)
            notes.gains_output(name)
        kind = "a copy of the head" if copied else f"a linear layer on dimension {feature}"
        notes.note(f"{exit_name(number)} at {stream}: {kind}")
    for parameter in before if freeze else ():
        parameter.requires_grad = False
    return result


def _logits(graph: Graph, classes: int | None) -> Value:
    """The model's logits, of which there must be one row per sample."""
    if any(name.startswith(("exit_", "gate_")) for name in graph.output_names):
        raise SutureError(Code.EXIT, "the graph has exits already", where=graph.name, remedy="start from the model")
    if len(graph.outputs) != 1:
        raise SutureError(
            Code.EXIT, f"the graph returns {len(graph.outputs)} values", where=graph.name,
            remedy="a graph that returns its logits alone can be left early",
        )  # fmt: skip
    logits = graph.outputs[0]
    batch = graph.inputs[0].shape[:1] if graph.inputs else ()
    rows = logits.rank == 2 and logits.dtype.is_floating_point and logits.shape[:1] == batch
    if not rows or not isinstance(logits.shape[1], int) or logits.shape[1] < 2:
        raise SutureError(
            Code.EXIT, f"the result {logits} is {logits.type}", where=graph.name,
            remedy="logits [batch, classes] of two classes or more would be right",
        )  # fmt: skip
    if classes is not None and classes < 2:
        raise SutureError(Code.EXIT, f"{classes} classes", where=graph.name, remedy="two or more would be right")
    return logits


def _no_copy(stream: Value, own: OwnHead | None) -> SutureError:
    if own is None:
        return SutureError(
            Code.EXIT, "the model has no head behind a stack of blocks", where=str(stream), remedy='head="pooled"'
        )
    return SutureError(
        Code.EXIT, f"the model's head takes {own.region.entry.type}, and {stream} is {stream.type}", where=str(stream),
        remedy='head="pooled" or "auto" would be right',
    )  # fmt: skip
