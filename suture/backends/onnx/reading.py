"""ONNX files of unknown origin: read the graph, not the weights, and refuse what is broken or points outside its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from suture.ir.errors import Code, SutureError

if TYPE_CHECKING:
    import onnx

_WHOLE = "give a whole ONNX file"


def read_proto(path: str | Path) -> onnx.ModelProto:
    """Read the graph of an ONNX file and check where its external data lies.

    :raises SutureError: FILE, if there is no such file; ONNX_FILE, if it is broken; PATH, if its data would be read from elsewhere
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    place = Path(path)
    try:
        data = place.read_bytes()
    except OSError as error:
        raise SutureError(
            Code.FILE, f"cannot be read: {error.strerror}", where=str(place), remedy="give an ONNX file that exists"
        ) from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise SutureError(Code.ONNX_FILE, "cut short or not an ONNX file", where=str(place), remedy=_WHOLE) from None
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise SutureError(Code.ONNX_FILE, "holds no ONNX graph", where=str(place), remedy=_WHOLE)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(place, tensor)
    return model


def _check_external(place: Path, tensor: onnx.TensorProto) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = place.resolve().parent
    data = (folder / location).resolve()
    if not location or not data.is_relative_to(folder):
        raise SutureError(
            Code.PATH,
            f"the data of {tensor.name} lies at {location or 'no place'!r}, outside the model's folder",
            where=str(place),
            remedy="external data must lie beside the model",
        )
    try:
        offset, length = int(entries.get("offset", "0") or 0), int(entries.get("length", "0") or 0)
    except ValueError:
        offset, length = -1, 0
    if offset < 0 or length < 0:
        raise SutureError(
            Code.ONNX_FILE, f"the data of {tensor.name} has no valid place", where=str(place), remedy=_WHOLE
        )
    size = data.stat().st_size if data.is_file() else -1
    if size < offset + length:
        found = "is missing" if size < 0 else "is cut short"
        raise SutureError(
            Code.ONNX_FILE, f"the weights file {location} {found}", where=str(place), remedy="bring it along whole"
        )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initialisers and attributes, subgraphs and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        *attribute.sparse_tensors,
    ):
        yield from (sparse.values, sparse.indices)
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from _graph_tensors(graph)
