"""Programs drawn by chance: traced, rewritten in any order, differentiated, laid out and parted, they compute what they compute eagerly."""

from __future__ import annotations

import random

import torch
from drawn_programs import KINDS, TYPES, WIDTH, DrawnProgram
from hypothesis import given, settings
from hypothesis import strategies as st
from message_graphs import message_graphs, random_graph

import suture
from suture.passes.relational.choosing import Decisions, Step, apply
from suture.passes.relational.compaction import lift_candidates, pair_candidates
from suture.passes.relational.inspection import inspect, split_inspector
from suture.passes.relational.layout import lay_out
from suture.passes.relational.reordering import reorderings
from suture.relational import MessageGraph, bind, trace

NAMES = ["src", "dst", "type", "node_type", "x"]


def rewritten(graph: suture.Graph, draw: random.Random) -> tuple[suture.Graph, list[str]]:
    """The graph after some rewrites that it allows, in a drawn order."""
    steps: list[Step] = []
    current = apply(graph, Decisions())
    for _ in range(draw.randrange(7)):
        possible = [Step(kind, (name,)) for kind, name in reorderings(current)]
        possible += [Step("lift", (name,)) for name in lift_candidates(current)]
        possible += [Step("compact", pair) for pair in pair_candidates(current)]
        if not possible:
            break
        steps.append(draw.choice(possible))
        current = apply(graph, Decisions(tuple(steps)))
    return current, [str(step) for step in steps]


@settings(max_examples=15)
@given(seed=st.integers(0, 2**16), moves=st.integers(2, 9), g=message_graphs(kinds=KINDS, most_types=TYPES))
def test_any_program_is_rewritten_and_laid_out_into_the_same_function(seed: int, moves: int, g: MessageGraph) -> None:
    torch.manual_seed(seed)
    module = DrawnProgram(seed, moves)
    g = MessageGraph(
        g.src,
        g.dst,
        g.type,
        num_nodes=g.num_dst,
        num_types=TYPES,
        node_type=g.tensors["node_type"],
        num_node_types=KINDS,
    )
    first = random_graph(types=TYPES, kinds=KINDS)
    graph = trace(module, first, torch.zeros(20, WIDTH, dtype=torch.float64))
    found, steps = rewritten(graph, random.Random(seed))
    inspector, executor = split_inspector(lay_out(suture.passes.gradient(found, check=False), check=False))

    x = torch.randn(g.num_dst, WIDTH, dtype=torch.float64, requires_grad=True)
    wanted = module(g, x)
    cotangent = torch.randn_like(wanted)
    given = dict(zip(NAMES, bind(graph, g, x.detach()), strict=True)) | {"grad_output": cotangent}
    given |= inspect(inspector, given, g.counts)
    inputs = [given[value.name] for value in executor.inputs]
    made = dict(zip(executor.output_names, suture.evaluate(executor, inputs), strict=True))
    torch.testing.assert_close(
        made["output"], wanted.detach(), rtol=1e-9, atol=1e-9, msg=lambda text: f"{steps}: {text}"
    )
    leaves = {"x": x, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(wanted, [*leaves.values()], cotangent, allow_unused=True, materialize_grads=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        ours = made.get(f"grad_{name}", torch.zeros_like(gradient))
        torch.testing.assert_close(
            ours, gradient, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{steps}: {name}: {text}"
        )
