"""A graph as kernels alone: what a build without torch needs, or which nodes no kernel covers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from suture.codegen.access import is_view
from suture.codegen.decompose.rules import decompose
from suture.codegen.extremes import find_extremes
from suture.codegen.lookups import Lookup, check_lookups
from suture.codegen.names import c_name
from suture.codegen.program import Program, lower
from suture.codegen.step import KernelStep
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value

_NAMED = 4  # nodes that an error names


@dataclass(frozen=True)
class Standalone:
    """A program of kernels alone.

    :param name: what its C names begin with
    :param graph: the graph as it was given
    :param program: its steps; the program's graph has one more output for each look-up
    """

    name: str
    graph: Graph
    program: Program
    lookups: tuple[Lookup, ...]

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The program's values of the graph's outputs."""
        return tuple(self.program.graph.outputs[: len(self.graph.outputs)])

    @property
    def flags(self) -> tuple[Value, ...]:
        """The program's values that say whether an index lies outside."""
        return tuple(self.program.graph.outputs[len(self.graph.outputs) :])


def lower_alone(graph: Graph, target: str = "cpp", name: str | None = None) -> Standalone:
    """Lower every node of a graph to kernels.

    :param target: `cpp` or `cuda`
    :param name: what C names begin with; the graph's name if absent
    :raises SutureError: KERNEL, naming the nodes that no kernel covers
    """
    chosen = c_name(name or graph.name)
    checked, lookups = check_lookups(graph)
    program = lower(_with_own_outputs(decompose(checked)), target, alone=True)
    left = [step for step in program.steps if isinstance(step, Node)]
    if left:
        raise _uncovered(graph, left, program)
    steps = tuple(
        replace(step, kernel=replace(step.kernel, name=f"{chosen}_{step.kernel.name}"))
        for step in program.steps
        if isinstance(step, KernelStep)
    )
    return Standalone(chosen, graph, replace(program, steps=steps, extremes=find_extremes(checked)), lookups)


def _with_own_outputs(graph: Graph) -> Graph:
    """A copy in which a kernel writes every output, once, in the order of its dimensions.

    What is an input, a parameter, a view, or returned twice, is copied.
    """
    result = graph.copy()
    outputs: list[Value] = []
    for value in result.outputs:
        node = value.producer
        if node is None or is_view(node) or value in outputs:
            made = result.add("clone", (value,), path=node.path if node is not None else "", name=value.name)
            outputs.append(made.output)
        else:
            outputs.append(value)
    result.set_outputs(outputs, [value.name for value in outputs])
    return result


def _uncovered(graph: Graph, nodes: list[Node], program: Program) -> SutureError:
    named = []
    for node in nodes[:_NAMED]:
        place = f" at {node.path}" if node.path else ""
        reason = program.left.get(node, "")
        named.append(f"%{node.outputs[0].name} = {_operator(node)}{place}" + (f" ({reason})" if reason else ""))
    more = f", and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return SutureError(
        Code.KERNEL, f"no kernel covers {'; '.join(named)}{more}", where=graph.name,
        remedy="suture.compile leaves such nodes to torch; a build has none: replace them, or cut the graph before them",
    )  # fmt: skip


def _operator(node: Node) -> str:
    """The operator's name, and what an opaque one stands for."""
    if node.operator.name != "opaque":
        return node.operator.name
    stands_for = next(
        (str(value) for key, value in node.attributes.items() if key in ("target", "function", "name")), ""
    )
    return f"opaque {stands_for}".strip()
