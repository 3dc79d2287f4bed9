"""A graph as a sequence of steps: kernels for what was lowered, nodes for the rest.

Kernels of the same text are one. What follows one another without a node between is a *run*: one C function calls all its kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from suture.codegen.access import is_view
from suture.codegen.decompose.rules import decompose
from suture.codegen.extremes import Extreme, find_extremes
from suture.codegen.fronts import take_fronts
from suture.codegen.groups import Group, find_groups, schedule
from suture.codegen.plan import Lifetime
from suture.codegen.schedule import Schedule
from suture.codegen.step import Context, KernelStep, Prepared, Template
from suture.codegen.templates import prepare, templates
from suture.codegen.traversal.template import lower_group
from suture.ir.errors import SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.kernel import Kernel
from suture.ir.kernel_verify import verify_kernel

Step: TypeAlias = "KernelStep | Node"

_ALIASES = frozenset({"dropout", "cast", "clone"})  # torch may hand their operand on

_LOOKED_THROUGH = frozenset({"dequantise"})  # no views, but kernels may read what they are made of


@dataclass(frozen=True)
class Program:
    """The steps of a graph, in order; `graph` is the one that they compute, norms and softmaxes written out.

    :param storage: how the dimensions of values lie in memory, where not in their order
    :param constants: what is made from parameters once
    :param left: why nodes were left to torch, by node
    :param extremes: what must not be over no elements
    """

    graph: Graph
    steps: tuple[Step, ...]
    storage: Mapping[Value, tuple[int, ...]] = field(default_factory=dict)
    constants: tuple[Prepared, ...] = ()
    left: Mapping[Node, str] = field(default_factory=dict)
    target: str = "cpp"
    extremes: tuple[Extreme, ...] = ()

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The different kernels, by name."""
        return tuple({step.kernel.name: step.kernel for step in self.steps if isinstance(step, KernelStep)}.values())

    @property
    def runs(self) -> tuple[tuple[Step, ...], ...]:
        """The steps in pieces: kernels that follow one another, or a single node."""
        found: list[list[Step]] = []
        for step in self.steps:
            if isinstance(step, KernelStep) and found and isinstance(found[-1][0], KernelStep):
                found[-1].append(step)
            else:
                found.append([step])
        return tuple(map(tuple, found))

    def lifetimes(self) -> tuple[Lifetime, ...]:
        """What kernels write and the graph does not return lives from the step that writes it to the last that reads it.

        What torch makes of a value without a copy keeps it alive.
        """
        first: dict[Value, int] = {}
        last: dict[Value, int] = {}
        for position, step in enumerate(self.steps):
            values = step.arguments if isinstance(step, KernelStep) else step.inputs
            last.update((value, position) for value in values if value is not None)
            if isinstance(step, KernelStep):
                for value in step.writes:
                    first.setdefault(value, position)
        end = len(self.steps)
        last.update((value, end) for value in self.graph.outputs)
        for step in reversed(self.steps):
            if isinstance(step, Node) and (is_view(step) or step.operator.name in _ALIASES):
                until = max(last.get(value, 0) for value in step.outputs)
                for read in step.inputs:
                    if read is not None:
                        last[read] = max(last.get(read, 0), until)
        returned = set(self.graph.outputs)
        return tuple(Lifetime(value, start, last[value]) for value, start in first.items() if value not in returned)

    def __str__(self) -> str:
        lines = []
        for step in self.steps:
            if isinstance(step, KernelStep):
                lines.append(f"{step.kernel.name}: {step.why}")
            else:
                reason = self.left.get(step, "")
                lines.append(f"torch: {step!r}" + (f"  # {reason}" if reason else ""))
        return "\n".join(lines)


def lower(
    graph: Graph,
    target: str = "cpp",
    schedules: Mapping[str, Schedule] | None = None,
    *,
    alone: bool = False,
    split: int = 0,
) -> Program:
    """Choose groups and write their kernels; every kernel is verified, and what is not proved safe is left to torch.

    :param target: `cpp` or `cuda`
    :param schedules: the schedules of groups, by their keys; the others have a default
    :param alone: whether there is no torch to leave anything to that can be lowered
    :param split: segments of more rows come in pieces of so many, unless a group's schedule says otherwise; 0 for none
    """
    context, groups, left = plan(graph, target, schedules, alone=alone, split=split)
    steps: list[Step] = []
    emitted: set[Node] = set()
    verified: set[Kernel] = set()
    for item in schedule(context.graph, groups):
        if not isinstance(item, Group):
            steps += _with_views([item], emitted)
            continue
        made = lower_one(item, context)
        try:
            for step in made:
                if step.kernel not in verified:
                    verify_kernel(step.kernel)
                    verified.add(step.kernel)
            steps += made
        except SutureError as error:  # what cannot be proved safe does not run: torch computes these nodes
            left.update(dict.fromkeys(item.nodes, f"not proved safe: {error.what}"))
            steps += _with_views(item.nodes, emitted)
    storage = {value: order for value, order in context.storage.items() if order != tuple(range(value.rank))}
    used = _used(context.graph, steps)
    read = {value for step in used if isinstance(step, KernelStep) for value in step.arguments}
    constants = tuple(each for each in context.constants if each.value in read)
    return Program(context.graph, _named(used), storage, constants, left, target, find_extremes(graph))


def plan(
    graph: Graph,
    target: str = "cpp",
    schedules: Mapping[str, Schedule] | None = None,
    *,
    alone: bool = False,
    split: int = 0,
) -> tuple[Context, list[Group], dict[Node, str]]:
    """What is settled before any kernel is written: the graph with norms written out, its groups, and why nodes are in none."""
    written = decompose(graph)
    context = Context(written, target, schedules=schedules or {}, alone=alone, split=split)
    prepare(written, context)
    left: dict[Node, str] = {}
    least = (
        1 if alone or target == "cpp" else 2
    )  # a run of kernels is dearer to leave than a kernel is small; a GPU's library has single operators too
    found = find_groups(written, lambda node: _template(node, context, left), least)
    return context, take_fronts(found, lambda node: templates().get(node.operator.name), context), left


def lower_one(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of one group."""
    if group.anchor is None:
        return lower_group(group, context)
    return templates()[group.anchor.operator.name].lower(group, context)


def _with_views(nodes: Sequence[Node], emitted: set[Node]) -> list[Node]:
    """Nodes that torch computes, as far as they are no steps yet, and before them the views that a kernel would have read them through."""
    own = set(nodes)
    found: dict[Node, None] = {}
    waiting = [(node, False) for node in reversed(nodes)]
    while waiting:
        node, ready = waiting.pop()
        if node in emitted or node in found:
            continue
        if ready:
            found[node] = None
            continue
        waiting.append((node, True))
        makers = [value.producer for value in node.inputs if value is not None and value.producer is not None]
        waiting += [(maker, False) for maker in makers if maker in own or is_view(maker)]
    emitted.update(found)
    return list(found)


def _template(node: Node, context: Context, left: dict[Node, str]) -> Template | None:
    found = templates().get(node.operator.name)
    if found is None:
        return None
    reason = found.refuses(node, context)
    if reason is not None:
        left[node] = reason
    return None if reason is not None else found


def _used(graph: Graph, steps: Sequence[Step]) -> list[Step]:
    """The steps that something needs: views are looked through, so that many are not."""
    needed: set[Value] = set(graph.outputs)
    kept: list[Step] = []
    for step in reversed(steps):
        made = step.writes if isinstance(step, KernelStep) else step.outputs
        kept_anyway = isinstance(step, Node) and not is_view(step) and step.operator.name not in _LOOKED_THROUGH
        if needed.isdisjoint(made) and not kept_anyway:
            continue
        needed.update(step.arguments if isinstance(step, KernelStep) else (v for v in step.inputs if v is not None))
        kept.append(step)
    return kept[::-1]


def _named(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Equal kernels get one name."""
    names: dict[Kernel, Kernel] = {}
    counts: dict[str, int] = {}
    found: list[Step] = []
    for step in steps:
        if isinstance(step, KernelStep):
            if step.kernel not in names:
                base = step.kernel.name
                counts[base] = counts.get(base, -1) + 1
                names[step.kernel] = replace(step.kernel, name=f"{base}_{counts[base]}")
            step = replace(step, kernel=names[step.kernel])
        found.append(step)
    return tuple(found)


def pointers(program: Program) -> tuple[Value, ...]:
    """Every value whose memory a kernel is given, once: the table of pointers of a run."""
    return tuple(
        dict.fromkeys(value for step in program.steps if isinstance(step, KernelStep) for value in step.arguments)
    )
