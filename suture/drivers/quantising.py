"""Mixed precision under a budget of time: as few sites in integers as the milliseconds on this machine allow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.quantise.calibration import feeds
from suture.passes.quantise.mixed_precision import rank
from suture.passes.quantise.recipe import Query, Scheme, make_recipe
from suture.passes.quantise.sensitivity import SensitivityTable

Inputs = Sequence[torch.Tensor] | Mapping[str, torch.Tensor]


def quantise_within(
    graph: Graph,
    milliseconds: float,
    *,
    data: Any,
    inputs: Inputs | None = None,
    at: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
    scheme: Scheme | None = None,
    measure: Callable[[Graph], float] | None = None,
) -> tuple[Graph, SensitivityTable]:
    """Leave the sites that cost most accuracy in floats, as many as a budget of time allows.

    :param milliseconds: the most that one run may take
    :param data: calibration inputs, as the pass `quantise` takes them
    :param inputs: what is timed; the first batch of the data if absent
    :param measure: the milliseconds of a graph; those of its ONNX file in ONNX Runtime on one thread if absent
    :returns: the quantised graph, and what each site costs
    :raises SutureError: QUANTISER, if it takes longer with every site in integers, or no site has integers; CALIBRATION and SITE, as the pass
    """
    recipe = make_recipe(graph, Query(at, None, exclude), scheme or Scheme(), data)
    if not recipe.sites:
        raise SutureError(
            Code.QUANTISER, "no operator is left that runs in integers", where=graph.name, remedy="mend at or exclude"
        )
    batches = feeds(graph, data)
    clock = measure or (lambda made: milliseconds_of(made, batches[0] if inputs is None else inputs))
    ranking = rank(recipe, batches)
    fastest = clock(ranking.graph(0))
    if fastest > milliseconds:
        raise SutureError(
            Code.QUANTISER, f"a run takes {fastest:.3g} ms with every site in integers, more than {milliseconds:g}", where=graph.name,
            remedy="allow more, or prune first",
        )  # fmt: skip
    low, high = 0, len(ranking.order)  # so many in floats are fast enough; so many, or one more than all, are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if clock(ranking.graph(middle)) <= milliseconds else (low, middle)
    return ranking.graph(low), ranking.result(low)[1]


def milliseconds_of(graph: Graph, inputs: Inputs, *, rounds: int = 15, threads: int = 1) -> float:
    """The least time of one run of a graph's ONNX file, of so many."""
    from suture.backends.onnx import export_onnx
    from suture.backends.onnxruntime import OnnxModel

    with tempfile.TemporaryDirectory() as folder:
        model = OnnxModel(export_onnx(graph, Path(folder) / "timed.onnx"), threads=threads)
        spent = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            model.run(inputs)
            spent.append(time.perf_counter() - start)
    return 1e3 * min(spent[1:])


__all__ = ["milliseconds_of", "quantise_within"]
