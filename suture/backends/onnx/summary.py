"""What an ONNX file holds, for people to read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from suture.backends.onnx.reading import read_proto

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Summary:
    """An ONNX file in short: types are written as the graph writes them, `f32[batch, 3, 224, 224]`."""

    path: Path
    opset: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    nodes: int
    operators: Mapping[str, int]
    initialiser_bytes: int
    metadata: Mapping[str, str]

    def __str__(self) -> str:
        lines = [
            f"{self.path.name}: opset {self.opset}, {self.nodes:,} nodes, {self.initialiser_bytes:,} bytes of weights"
        ]
        lines += [f"  input  {name}: {kind}" for name, kind in self.inputs.items()]
        lines += [f"  output {name}: {kind}" for name, kind in self.outputs.items()]
        lines += [f"  {count:6,} {name}" for name, count in self.operators.items()]
        lines += [f"  {key}: {text}" for key, text in self.metadata.items()]
        return "\n".join(lines)


def summarise_onnx(path: str | Path) -> Summary:
    """Read what an ONNX file holds, without its weights.

    :raises SutureError: FILE, ONNX_FILE or PATH, if the file is not there, broken, or points outside its folder
    """
    model = read_proto(path)
    known = {tensor.name for tensor in model.graph.initializer}
    counts = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in _nodes(model.graph))
    return Summary(
        path=Path(path),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        inputs={value.name: _type(value) for value in model.graph.input if value.name not in known},
        outputs={value.name: _type(value) for value in model.graph.output},
        nodes=counts.total(),
        operators=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        initialiser_bytes=sum(_bytes(tensor) for tensor in model.graph.initializer),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, and of the bodies of its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _bytes(tensor: onnx.TensorProto) -> int:
    import onnx_ir as ir

    return math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize) if tensor.data_type != 8 else 0


def _type(value: onnx.ValueInfoProto) -> str:
    import onnx_ir as ir

    if not value.type.HasField("tensor_type"):
        return str(value.type.WhichOneof("value") or "unknown")
    tensor = value.type.tensor_type
    kind = ir.DataType(tensor.elem_type).short_name()
    if not tensor.HasField("shape"):
        return f"{kind}[...]"
    dims = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return f"{kind}[{', '.join(dims)}]"
