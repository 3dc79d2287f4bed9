"""Where the numbers stand: in the ONNX file itself or in one beside it, written one tensor after the other.

protobuf's own serialisation would hold every tensor twice more in memory. A message is its fields in a row, each with its number and length, and
every length here is known beforehand: so the graph is serialised without its tensors, and these follow one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from suture.backends.onnx.weights import Weight

if TYPE_CHECKING:
    import onnx

_ALIGNMENT = 4096  # a runtime may map a tensor that starts on a page
# The numbers of the fields, from onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


def model_pieces(model: onnx.ModelProto, weights: Sequence[Weight]) -> Iterator[bytes | memoryview]:
    """The bytes of a model: `model` as it is, and each weight as an initialiser at the end of its graph."""
    graph = model.graph.SerializeToString(deterministic=True)
    rest = type(model)()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    heads = [_tensor_head(weight) for weight in weights]
    length = len(graph) + sum(len(head) + weight.bytes for head, weight in zip(heads, weights, strict=True))
    yield rest.SerializeToString(deterministic=True)
    yield _field(_GRAPH, length)
    yield graph
    for head, weight in zip(heads, weights, strict=True):
        yield head
        yield weight.raw()


def _tensor_head(weight: Weight) -> bytes:
    """What stands before a tensor's numbers in the graph."""
    inner: bytes = weight.proto().SerializeToString(deterministic=True) + _field(_RAW_DATA, weight.bytes)
    return _field(_INITIALIZER, len(inner) + weight.bytes) + inner


def _field(number: int, length: int) -> bytes:
    """The start of a field of bytes: its number with wire type 2, and its length."""
    return _variable_length(number << 3 | 2) + _variable_length(length)


def _variable_length(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth set."""
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def external_tensors(weights: Sequence[Weight], location: str) -> Iterator[onnx.TensorProto]:
    """Initialisers that say where in the file `location` their numbers stand."""
    import onnx

    for weight, (_, position) in zip(weights, _positions(weights), strict=True):
        tensor = weight.proto()
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", position), ("length", weight.bytes)):
            tensor.external_data.add(key=key, value=str(value))
        yield tensor


def external_pieces(weights: Sequence[Weight]) -> Iterator[bytes | memoryview]:
    """The bytes of the file beside the model."""
    for weight, (gap, _) in zip(weights, _positions(weights), strict=True):
        yield bytes(gap)
        yield weight.raw()


def _positions(weights: Sequence[Weight]) -> Iterator[tuple[int, int]]:
    """For each tensor the gap before it and where it starts."""
    end = 0
    for weight in weights:
        gap = -end % _ALIGNMENT
        yield gap, end + gap
        end += gap + weight.bytes
