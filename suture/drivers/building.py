"""Leaving as sources: what is exact and saves work is done on the graph first, then the folder is written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from suture.backends.onnx.export import numbers
from suture.backends.standalone import build as write_folder
from suture.backends.standalone_program import lower_alone
from suture.drivers.exporting import prepare
from suture.ir.bind_sizes import bind_sizes
from suture.ir.graph import Graph


def build(
    graph: Graph,
    folder: str | Path,
    *,
    target: Literal["cpp", "cuda"] = "cpp",
    name: str | None = None,
    optimise: bool = True,
    sizes: tuple[str, ...] = (),
) -> Path:
    """Write a graph as a folder of sources with a C interface, which needs neither Python nor torch. The folder is there whole or not at all.

    :param target: `cpp` for processors, `cuda` for NVIDIA GPUs
    :param name: what files and C names begin with; the graph's name if absent
    :param optimise: whether linear operators are merged (batch norms folded), constants computed, and operators brought into canonical form first
    :param sizes: numbers for symbolic sizes, as `"batch=1"`: the sources are for these alone
    :returns: the folder
    :raises SutureError: KERNEL, naming the nodes that no kernel covers; INPUT, if parameters have no data; WRITE, if the folder holds other things or
        cannot be written
    """
    bound = bind_sizes(graph, numbers(sizes)) if sizes else graph
    ready = prepare(bound, check=False) if optimise else bound
    return write_folder(ready, folder, target=target, name=name)


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
    lower_alone(bind_sizes(graph, numbers(sizes)) if sizes else graph, target, name)
