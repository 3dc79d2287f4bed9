"""Leaving as sources: what is exact and saves work is done on the graph first, then the folder is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from suture.backends.onnx.export import numbers
from suture.backends.standalone import build as write_folder
from suture.backends.standalone_program import lower_alone
from suture.drivers.exporting import prepare
from suture.drivers.relational.compiled import is_relational
from suture.ir.bind_sizes import bind_sizes
from suture.ir.graph import Graph
from suture.passes.relational.baking import bake_edges, check_indices
from suture.passes.relational.choosing import apply, decide
from suture.passes.relational.inspection import split_inspector
from suture.passes.relational.layout import lay_out
from suture.passes.relational.statistics import assume, measure


def build(
    graph: Graph,
    folder: str | Path,
    *,
    target: Literal["cpp", "cuda"] = "cpp",
    name: str | None = None,
    optimise: bool = True,
    sizes: tuple[str, ...] = (),
    edges: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a graph as a folder of sources with a C interface, which needs neither Python nor torch. The folder is there whole or not at all.

    Message passing for a processor comes with `<name>_edges.h` besides: what that makes of edges, once, is passed to every run. For a GPU, or without
    that file, give the edges: they are constants of the sources then.

    :param target: `cpp` for processors, `cuda` for NVIDIA GPUs
    :param name: what files and C names begin with; the graph's name if absent
    :param optimise: whether linear operators are merged (batch norms folded), constants computed, and operators brought into canonical form first
    :param sizes: numbers for symbolic sizes, as `"batch=1"`: the sources are for these alone
    :param edges: for message passing, the edges that the sources are for: every index by its name. They are sorted here, and what they say decides
        what is computed on edges, unique pairs or nodes; `sizes` says how many nodes there are
    :returns: the folder
    :raises SutureError: KERNEL, naming the nodes that no kernel covers; INPUT, if parameters have no data, or edges do not fit; WRITE, if the folder
        holds other things or cannot be written
    """
    if edges is None and is_relational(graph) and target == "cpp":
        return _for_any_edges(
            bind_sizes(graph, numbers(sizes)) if sizes else graph, folder, name=name, optimise=optimise
        )
    if edges is not None:
        bound = _for_edges(graph, edges, numbers(sizes), optimise=optimise)
    else:
        bound = bind_sizes(graph, numbers(sizes)) if sizes else graph
    ready = prepare(bound, check=False) if optimise else bound
    return write_folder(ready, folder, target=target, name=name)


def _for_any_edges(graph: Graph, folder: str | Path, *, name: str | None, optimise: bool) -> Path:
    """Write message passing for edges that are given when it runs."""
    chosen = apply(graph, decide(graph, assume(graph))) if optimise else graph
    inspector, executor = split_inspector(lay_out(chosen, check=False), numbers=False)
    ready = prepare(executor, check=False) if optimise else executor
    return write_folder(ready, folder, name=name, inspector=inspector)


def _for_edges(graph: Graph, edges: Mapping[str, torch.Tensor], sizes: Mapping[str, int], *, optimise: bool) -> Graph:
    """A graph of message passing for these edges alone, with values where they cost least."""
    check_indices(graph, edges)
    chosen = graph
    if optimise:
        measured = measure(graph, edges)
        chosen = apply(graph, decide(graph, replace(measured, sizes={**measured.sizes, **sizes})))
    return bake_edges(chosen, edges, sizes)


def check_build(
    graph: Graph,
    *,
    target: Literal["cpp", "cuda"] = "cpp",
    name: str | None = None,
    optimise: bool = True,
    sizes: tuple[str, ...] = (),
) -> None:
    """Whether kernels cover a graph, as far as that is known without its weights.

    :raises SutureError: KERNEL, naming the nodes that no kernel covers
    """
    bound = bind_sizes(graph, numbers(sizes)) if sizes else graph
    if is_relational(graph):
        _, bound = split_inspector(lay_out(bound, check=False), numbers=False)
    lower_alone(bound, target, name)
