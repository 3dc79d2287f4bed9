"""A stitched family of models in use: set it to a route, train it, take routes out of it, measure them.

net = suture.Supernet(suture.passes.stitch(tiny, others=(small, base), data={"x": images}))
module = net.module()                       # trains: draw a route a step
for step, (x, y) in enumerate(batches):
    module.set(net.sampler(seed=0)(step))
    ...
chosen = net.best(budget=3e9, accuracies=net.accuracies(data, labels))
suture.export_onnx(net.extract(chosen.number), "chosen.onnx")
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from suture.backends.torch_module import to_torch
from suture.ir.graph import Graph
from suture.passes.specialise import specialise
from suture.passes.stitch import selection
from suture.passes.stitch.configurations import Configuration, check_route, configurations, require_route
from suture.passes.stitch.sampling import Sampler, resource_sampler, uniform_sampler
from suture.passes.stitch.sites import STITCH, TABLE


class StitchedModule(nn.Module):
    """A supernet as a module that is set to a route. `net` is the module of the graph, with the graph's parameters under their names."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.net = to_torch(graph)
        self._name = graph.name
        self._table = graph.parameters[TABLE].data
        self._routes = [torch.tensor(number) for number in range(len(self._table))]
        self.route = 0

    def set(self, number: int) -> StitchedModule:
        """Let the module compute another route from now on.

        :raises SutureError: STITCH, if there is no such route
        """
        self.route = require_route(number, len(self._routes), self._name)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the route that is set gives for the anchors' inputs."""
        return self.net(*args, **kwargs, **{STITCH: self._routes[self.route]})

    def _apply(self, function: Callable[..., Any], recurse: bool = True) -> StitchedModule:
        """Move or cast the module; the table of routes stays on the CPU, so that no device is waited for when a branch is decided."""
        super()._apply(function, recurse)  # type: ignore[no-untyped-call]
        path, _, name = TABLE.rpartition(".")
        owner = self.net.get_submodule(path)
        owner._buffers[name] = self._table
        return self


class Supernet:
    """What the pass `stitch` made, with all that it can do. The graph may come from a file, or have gone through other passes since.

    :raises SutureError: STITCH, if the graph is no supernet
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.configurations: tuple[Configuration, ...] = configurations(graph)

    def __len__(self) -> int:
        return len(self.configurations)

    @property
    def anchors(self) -> tuple[int, ...]:
        """The routes that are the anchors themselves, from the cheapest to the dearest."""
        return tuple(item.number for item in self.configurations if item.is_anchor)

    @cached_property
    def macs(self) -> dict[int, int]:
        """The MACs of every route for one example, computed without running it."""
        return {item.number: item.macs for item in self.configurations}

    def extract(self, number: int) -> Graph:
        """One route as an ordinary graph, with the tensors shared.

        :raises SutureError: STITCH, if there is no such route
        """
        graph = specialise(self.graph, inputs={STITCH: check_route(self.graph, number)})
        graph.name = f"{self.graph.name}_{number}"
        return graph

    def module(self) -> StitchedModule:
        """A module that trains, set to route 0."""
        return StitchedModule(self.graph)

    def sampler(self, seed: int = 0, *, bins: int | None = None, weights: Sequence[float] | None = None) -> Sampler:
        """What draws the route of a training step: all routes alike (SN-Net), or bins of MACs first (SN-Netv2).

        :param bins: how many bins of MACs; none if absent
        :param weights: of the bins that hold a route, from cheap to dear
        """
        if bins is None:
            return uniform_sampler([item.number for item in self.configurations], seed)
        return resource_sampler([item.macs for item in self.configurations], bins, seed, weights=weights)

    def accuracies(
        self, data: Mapping[str, torch.Tensor], targets: torch.Tensor, *, routes: Sequence[int] | None = None
    ) -> dict[int, float]:
        """The share of examples that each route classifies rightly. See `suture.passes.stitch.selection.accuracies`."""
        return selection.accuracies(self.graph, data, targets, routes=routes)

    def best(
        self,
        budget: float,
        *,
        accuracies: Mapping[int, float] | None = None,
        costs: Mapping[int, float] | None = None,
    ) -> Configuration:
        """The most accurate route within a budget. See `best_stitch`."""
        return selection.best_stitch(self.graph, budget, accuracies=accuracies, costs=costs)

    def latencies(
        self,
        data: Mapping[str, torch.Tensor],
        *,
        routes: Sequence[int] | None = None,
        rounds: int = 5,
        threads: int = 1,
        folder: str | Path | None = None,
    ) -> dict[int, float]:
        """The seconds that each route takes in ONNX Runtime on the CPU, switched in one file: medians, measured in turn.

        :param data: one batch of inputs by name, without `stitch`
        :param folder: where the file is written; a temporary folder if absent
        :raises SutureError: STITCH, if a route does not exist; ONNX_EXPORT or RUNTIME, if ONNX cannot run the graph
        """
        chosen = range(len(self)) if routes is None else [check_route(self.graph, route) for route in routes]
        with tempfile.TemporaryDirectory() as temporary:
            return _timed(self.graph, Path(folder or temporary) / "supernet.onnx", data, chosen, rounds, threads)

    def draw(
        self,
        accuracies: Mapping[int, float],
        *,
        costs: Mapping[int, float] | None = None,
        title: str = "",
        cost: str = "MACs for one example",
        names: Sequence[str] | None = None,
    ) -> str:
        """Accuracy against cost of all routes as a picture: the text of an SVG file.

        :param accuracies: of the routes by number
        :param costs: of the routes by number; their MACs if absent
        :param cost: what the costs are, for the axis
        :param names: of the anchors, from the cheapest to the dearest
        """
        from suture.backends.pareto_drawing import Series, draw_pareto

        price: Mapping[int, float] = self.macs if costs is None else costs
        points = {number: (float(price[number]), accuracies[number]) for number in accuracies if number in price}
        anchors = {number: points[number] for number in self.anchors if number in points}
        others = {number: point for number, point in points.items() if number not in anchors}
        labels = dict(zip(self.anchors, names or [f"anchor {k}" for k in range(len(self.anchors))], strict=False))
        return draw_pareto(
            [Series("anchors", anchors, large=True), Series("stitches", others)],
            selection.pareto_front(price, {number: score for number, (_, score) in points.items()}),
            labels=labels, title=title, cost=cost,
        )  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(map(str, self.configurations))


def _timed(
    graph: Graph, path: Path, data: Mapping[str, torch.Tensor], routes: Sequence[int], rounds: int, threads: int
) -> dict[int, float]:
    from suture.backends.onnx import export_onnx
    from suture.backends.onnxruntime import OnnxModel

    model = OnnxModel(export_onnx(graph, path), threads=threads)
    taken: dict[int, list[float]] = {route: [] for route in routes}
    for turn in range(rounds + 1):
        for route in routes:
            feed = {**data, STITCH: torch.tensor(route)}
            start = time.perf_counter()
            model.run(feed)
            if turn:  # the first turn warms up
                taken[route].append(time.perf_counter() - start)
    return {route: statistics.median(seconds) for route, seconds in taken.items()}


def best_stitch(
    supernet: Supernet | Graph,
    budget: float,
    *,
    accuracies: Mapping[int, float] | None = None,
    costs: Mapping[int, float] | None = None,
) -> Configuration:
    """The most accurate route of a supernet within a budget; without accuracies, the dearest that fits.

    :param budget: the most that a route may cost: MACs for one example, or whatever `costs` are in
    :param accuracies: of the routes by number; those without one are not considered
    :param costs: of the routes by number, say seconds on a device; their MACs if absent
    :raises SutureError: STITCH, if nothing fits the budget, or the graph is no supernet
    """
    graph = supernet.graph if isinstance(supernet, Supernet) else supernet
    return selection.best_stitch(graph, budget, accuracies=accuracies, costs=costs)
