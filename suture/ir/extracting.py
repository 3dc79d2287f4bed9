"""A region as a graph of its own."""

from __future__ import annotations

from suture.ir.grafting import copy_parameter
from suture.ir.graph import Graph, Value
from suture.ir.regions import Region


def extract(region: Region, name: str | None = None) -> Graph:
    """The region as a graph of its own: inputs are the stream and the ambient values, parameters have their own names and the same tensors."""
    source = region.graph
    piece = Graph(name or region.name)
    piece.hints = dict(source.hints)
    inputs = [piece.add_input(value.name, value.type) for value in region.inputs]
    values: dict[Value, Value] = dict(zip(region.inputs, inputs, strict=True))
    for parameter in region.parameters:
        values[parameter] = copy_parameter(piece, parameter)
    for node in region.nodes:
        operands = [None if value is None else values[value] for value in node.inputs]
        shapes = [value.shape for value in node.outputs] if node.operator.declared else None
        names = [value.name for value in node.outputs]
        twin = piece.add(node.operator, operands, node.attributes, shapes=shapes, path=node.path, name=names)
        values.update(zip(node.outputs, twin.outputs, strict=True))
    returned = dict(zip(source.outputs, source.output_names, strict=True))
    outputs = region.outputs
    piece.set_outputs([values[value] for value in outputs], [returned.get(value, value.name) for value in outputs])
    return piece
