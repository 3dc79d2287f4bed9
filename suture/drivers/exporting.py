"""Leaving as ONNX in the form that runs fastest: what is exact is done on the graph first, then the graph is written for its target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from suture.backends.onnx.export import export_onnx as write_onnx
from suture.backends.onnx.export import numbers, pairs
from suture.backends.onnx.profile import ProfileName, find_profile
from suture.ir.bind_sizes import bind_sizes
from suture.ir.graph import Graph
from suture.passes.canonical.canonicalise import canonicalise
from suture.passes.precompute import precompute
from suture.passes.reparam import reparam


def prepare(graph: Graph, *, profile: ProfileName = "portable", check: bool = True) -> Graph:
    """The graph as it is best written for a target: linear operators merged, in canonical form, constants stored, fused where that is to be had.

    :param check: whether every pass is checked on probes
    """
    for step in (reparam, canonicalise, precompute, canonicalise):
        options = {"inference": True} if step is canonicalise else {}
        graph = step(graph, check=check, **options)
    if find_profile(profile).contrib:
        from suture.passes import fuse

        graph = fuse(graph, check=check)
    return graph


def export_onnx(
    graph: Graph,
    path: str | Path,
    *,
    opset: int = 21,
    external_data: bool | Literal["auto"] = "auto",
    profile: ProfileName = "portable",
    sizes: Mapping[str, int] | tuple[str, ...] = (),
    choices: Mapping[str, str] | tuple[str, ...] = (),
    optimise: bool = False,
    tune: bool = False,
    threads: int = 1,
) -> Path:
    """Write a graph as an ONNX file for a target. The file is there whole or not at all.

    :param opset: the ONNX operator set, 17 to 23
    :param external_data: whether the weights stand in a file `<path>.data` beside it; `"auto"` does so beyond 2 GB, where ONNX must
    :param profile: `portable`, `onnxruntime` or `mobile`
    :param sizes: numbers for symbolic sizes, as `{"batch": 1}` or `"batch=1"`
    :param choices: single choices of the profile replaced, as `{"linear": "matmul"}` or `"linear=matmul"`
    :param optimise: whether `reparam`, `canonicalise`, `precompute` and, where the target has fused operators, `fuse` go first
    :param tune: whether what is fused and how operators are written is chosen by measuring on this machine (see `suture.tune`)
    :param threads: how many threads ONNX Runtime may use while it is measured
    :returns: the path of the file
    :raises SutureError: ONNX_EXPORT, PROFILE or WRITE, if the opset or the profile cannot say it or the file cannot be written; CONTRACT, if a pass
        does not keep what it promises on this graph
    """
    bound = bind_sizes(graph, numbers(sizes)) if sizes else graph  # first: what has fixed sizes may be constant
    chosen = pairs(choices, "choice", "linear=gemm")
    if tune:
        from suture.drivers.tuning import tune as measure

        tuned = measure(bound, profile=profile, opset=opset, threads=threads)
        bound, chosen = tuned.graph, {**tuned.choices, **chosen}
    elif optimise:
        bound = prepare(bound, profile=profile)
    return write_onnx(bound, path, opset=opset, external_data=external_data, profile=profile, choices=chosen)
