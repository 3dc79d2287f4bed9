"""The derivative of a branch: a branch, whose bodies are the derivatives of its bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suture.ir.derivatives.prepare import prepare
from suture.ir.derivatives.reverse import differentiate
from suture.ir.derivatives.rule import Gradients, Site, rule
from suture.ir.graph import Graph, Value


@rule("branch")
def _branch(at: Site) -> Gradients:
    asked = sorted(at.wanted)
    back = [k for k in range(len(at.node.outputs)) if at.cotangent(k) is not None]
    given = [cotangent for k in back if (cotangent := at.cotangent(k)) is not None]
    bodies: dict[str, Any] = {
        name: _derivative(body, [k - 1 for k in asked], back) for name, body in at.node.bodies.items()
    }
    operands = [at.operand(k) for k in range(1, len(at.node.inputs))]
    made = at.writer.write("branch", at.operand(0), *operands, *given, **bodies)
    yield from zip(asked, made, strict=True)


def _derivative(body: Graph, operands: Sequence[int], results: Sequence[int]) -> Graph:
    """A body that takes the operands and the cotangents of results, and gives the cotangents of operands; zero for what nothing leads to."""
    made = body.copy()
    wanted = [made.inputs[k] for k in operands]
    prepare(made, wanted)
    cotangents: dict[Value, Value] = {}
    for k in results:
        value = made.outputs[k]
        arrived = made.add_input(made.fresh_name(f"grad_{made.output_names[k]}"), value.type)
        known = cotangents.get(value)
        cotangents[value] = arrived if known is None else made.add("add", [known, arrived]).output
    found = differentiate(made, cotangents, wanted)
    outputs: list[Value] = []
    for value in wanted:
        zero: dict[str, Any] = {"value": 0.0, "dtype": value.dtype}
        outputs.append(found[value] if value in found else made.add("full", [], zero, shapes=[value.shape]).output)
    made.set_outputs(outputs)
    made.remove_dead()
    return made
