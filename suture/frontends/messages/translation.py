"""The library's operators of message passing read as operators of a graph."""

from __future__ import annotations

from suture.frontends.aten.rule import AtenCall, Result, translates


@translates("lookup")
def _lookup(call: AtenCall) -> Result:
    return call.emit("embedding", call.value("table"), call.value("index"))


@translates("typed_linear")
def _typed_linear(call: AtenCall) -> Result:
    return call.emit("typed_linear", call.value("x"), call.value("weight"), call.value("type"))


@translates("segment_sum", "segment_max")
def _segments(call: AtenCall) -> Result:
    x = call.value("x")
    return call.emit(call.name, x, call.value("index"), shapes=[(call["segments"], *x.shape[1:])])


@translates("segment_softmax")
def _segment_softmax(call: AtenCall) -> Result:
    return call.emit("segment_softmax", call.value("x"), call.value("index"), segments=call["segments"])


@translates("unique_rows")
def _unique_rows(call: AtenCall) -> Result:
    shapes = [type_.shape for type_ in call.types if type_ is not None]
    return call.emit_all("unique_rows", [call.value("major"), call.value("minor")], shapes)
