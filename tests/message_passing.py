"""Message passing in the text of graphs: programs as people write them, and edges to run them on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gradients import read
from hypothesis import strategies as st

from suture.ir.graph import Graph
from suture.ir.semantics import evaluate

F64 = torch.float64

_EDGES = "%src: i64[edges], %dst: i64[edges], %type: i64[edges]"

RGCN = f"""
graph rgcn(%x: f64[nodes, 6], {_EDGES}, %c: f64[edges, 1]) {{
  parameter @w: f64[5, 6, 4]

  %h: f64[edges, 6] = embedding(%x, %src)
  %z: f64[edges, 4] = typed_linear(%h, @w, %type)
  %m: f64[edges, 4] = mul(%z, %c)
  %y: f64[nodes, 4] = segment_sum(%m, %dst)
  return %y
}}
"""

RGAT = f"""
graph rgat(%x: f64[nodes, 6], {_EDGES}) {{
  parameter @w: f64[5, 6, 8]
  parameter @a: f64[5, 2, 4, 1]
  parameter @b: f64[5, 2, 4, 1]

  %hs: f64[edges, 6] = embedding(%x, %src)
  %zs: f64[edges, 8] = typed_linear(%hs, @w, %type)
  %ks: f64[edges, 2, 4] = reshape(%zs)
  %hd: f64[edges, 6] = embedding(%x, %dst)
  %zd: f64[edges, 8] = typed_linear(%hd, @w, %type)
  %kd: f64[edges, 2, 4] = reshape(%zd)
  %ss: f64[edges, 2, 1] = typed_linear(%ks, @a, %type)
  %sd: f64[edges, 2, 1] = typed_linear(%kd, @b, %type)
  %s: f64[edges, 2, 1] = add(%ss, %sd)
  %l: f64[edges, 2, 1] = leaky_relu(%s) negative_slope=0.2
  %t: f64[edges, 2, 1] = segment_softmax(%l, %dst) segments=size(nodes)
  %m: f64[edges, 2, 4] = mul(%t, %ks)
  %y: f64[nodes, 2, 4] = segment_sum(%m, %dst)
  return %y
}}
"""

JOINED = f"""
graph joined(%x: f64[nodes, 6], {_EDGES}) {{
  parameter @w: f64[5, 6, 4]
  parameter @a: f64[5, 8, 1]

  %hs: f64[edges, 6] = embedding(%x, %src)
  %zs: f64[edges, 4] = typed_linear(%hs, @w, %type)
  %hd: f64[edges, 6] = embedding(%x, %dst)
  %zd: f64[edges, 4] = typed_linear(%hd, @w, %type)
  %z: f64[edges, 8] = concat(%zs, %zd) dim=1
  %s: f64[edges, 1] = typed_linear(%z, @a, %type)
  %t: f64[edges, 1] = segment_softmax(%s, %dst) segments=size(nodes)
  %m: f64[edges, 4] = mul(%zs, %t)
  %y: f64[nodes, 4] = segment_sum(%m, %dst)
  return %y
}}
"""

HGT = f"""
graph hgt(%x: f64[nodes, 6], %kind: i64[nodes], {_EDGES}) {{
  parameter @k: f64[3, 6, 8]
  parameter @q: f64[3, 6, 8]
  parameter @v: f64[8, 6]
  parameter @c: f64[8]
  parameter @a: f64[5, 2, 4, 4]
  parameter @r: f64[5, 2, 4, 4]
  parameter @mu: f64[5, 2]

  %key: f64[nodes, 8] = typed_linear(%x, @k, %kind)
  %keys: f64[nodes, 2, 4] = reshape(%key)
  %query: f64[nodes, 8] = typed_linear(%x, @q, %kind)
  %queries: f64[nodes, 2, 4] = reshape(%query)
  %value: f64[nodes, 8] = linear(%x, @v, @c)
  %values: f64[nodes, 2, 4] = reshape(%value)
  %ks: f64[edges, 2, 4] = embedding(%keys, %src)
  %ka: f64[edges, 2, 4] = typed_linear(%ks, @a, %type)
  %qd: f64[edges, 2, 4] = embedding(%queries, %dst)
  %kq: f64[edges, 2, 4] = mul(%ka, %qd)
  %i: f64[edges, 2] = sum(%kq) dims=(2,)
  %prior: f64[edges, 2] = embedding(@mu, %type)
  %s: f64[edges, 2] = mul(%i, %prior)
  %t: f64[edges, 2] = segment_softmax(%s, %dst) segments=size(nodes)
  %t1: f64[edges, 2, 1] = reshape(%t)
  %vs: f64[edges, 2, 4] = embedding(%values, %src)
  %vm: f64[edges, 2, 4] = typed_linear(%vs, @r, %type)
  %m: f64[edges, 2, 4] = mul(%vm, %t1)
  %y: f64[nodes, 2, 4] = segment_sum(%m, %dst)
  return %y
}}
"""

PLAIN = f"""
graph plain(%x: f64[nodes, 6], {_EDGES}) {{
  parameter @w: f64[8, 6]
  parameter @a: f64[2, 4]

  %h: f64[edges, 6] = embedding(%x, %src)
  %z: f64[edges, 8] = linear(%h, @w, _)
  %k: f64[edges, 2, 4] = reshape(%z)
  %ka: f64[edges, 2, 4] = mul(%k, @a)
  %s: f64[edges, 2, 1] = sum(%ka) dims=(2,) keepdim=true
  %t: f64[edges, 2, 1] = segment_softmax(%s, %dst) segments=size(nodes)
  %m: f64[edges, 2, 4] = mul(%k, %t)
  %y: f64[nodes, 2, 4] = segment_sum(%m, %dst)
  return %y
}}
"""

SAGE = f"""
graph sage(%x: f64[nodes, 40], {_EDGES}, %c: f64[nodes, 1], %d: f64[edges, 1]) {{
  parameter @w: f64[3, 40]
  parameter @b: f64[3]

  %h: f64[edges, 40] = embedding(%x, %src)
  %m: f64[edges, 40] = mul(%h, %d)
  %t: f64[nodes, 40] = segment_sum(%m, %dst)
  %a: f64[nodes, 40] = mul(%c, %t)
  %y: f64[nodes, 3] = linear(%a, @w, @b)
  return %y
}}
"""

PROGRAMS = {"rgcn": RGCN, "rgat": RGAT, "joined": JOINED, "hgt": HGT, "plain": PLAIN, "sage": SAGE}

_SIZES = {"src": "nodes", "dst": "nodes", "type": "types", "kind": "kinds"}


@dataclass(frozen=True)
class Sizes:
    """How much there is of what."""

    nodes: int
    edges: int
    types: int = 5
    kinds: int = 3


def program(name: str, seed: int = 0) -> Graph:
    """A program with random weights."""
    return read(PROGRAMS[name], seed)


def edges_for(graph: Graph, sizes: Sizes, seed: int = 0) -> list[torch.Tensor]:
    """Random features and edges."""
    generator = torch.Generator().manual_seed(seed)
    counts = {"nodes": sizes.nodes, "edges": sizes.edges}
    made = []
    for value in graph.inputs:
        shape = [size if isinstance(size, int) else counts[str(size)] for size in value.shape]
        if value.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator, dtype=F64))
        else:
            made.append(torch.randint(getattr(sizes, _SIZES[value.name]), shape, generator=generator))
    return made


def some_sizes() -> st.SearchStrategy[Sizes]:
    """Sizes of small graphs: without edges, with one node, with more relations than edges."""
    return st.builds(Sizes, st.integers(1, 9), st.integers(0, 40), st.integers(1, 5), st.integers(1, 3))


def outputs(graph: Graph, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The only output."""
    with torch.no_grad():
        (found,) = evaluate(graph, inputs)
    return found


def assert_same(before: Graph, after: Graph, inputs: list[torch.Tensor]) -> None:
    """Both graphs compute the same, and so do their ways back."""
    import suture

    torch.testing.assert_close(outputs(after, inputs), outputs(before, inputs), rtol=1e-10, atol=1e-10)
    found = []
    for graph in (before, after):
        way = suture.passes.gradient(graph, check=False)
        cotangent = torch.ones_like(outputs(before, inputs)).cumsum(-1)
        results = evaluate(way, [*inputs, cotangent])
        found.append(dict(zip(way.output_names, results, strict=True)))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
