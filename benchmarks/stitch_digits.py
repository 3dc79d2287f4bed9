"""Stitching small families: three anchors, everything between them, and models of the same cost trained alone.

    python benchmarks/stitch_digits.py [--quick] [--json FILE] [--only NAME ...] [--threads N]

Three vision transformers (widths 16, 32, 64; 4 blocks) and three residual CNNs (widths 8, 16, 32; 2 stages of 3 blocks)
are trained on scikit-learn's digits: 1,197 images to train on, 600 others to test. Each family becomes one supernet.

At step 0 its stitching layers come from least squares on 256 training images, against random ones. Then the supernet is
fine-tuned, a random route a step, towards the classes and the softened scores of the largest anchor as it was trained.
Beside it stand models of widths in between, trained for the sum of an anchor's steps and of the supernet's.

Accuracies are means over three seeds, of the weights and of the order of the examples; the split is the same for all.
With --quick the CNNs alone, one seed, and no models of widths in between.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from digits_models import CNN, Digits, ViT, accuracy, load_digits, train, train_alone
from measure import Aim, Report, arguments
from torch import Tensor, nn

import suture
from suture.backends.pareto_drawing import Series, draw_pareto
from suture.drivers.supernet import Supernet
from suture.ir.graph import Graph
from suture.passes.stitch.distillation import distillation_loss
from suture.passes.stitch.selection import pareto_front

CALIBRATION = 256
DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Family:
    """Anchors of three widths, models of widths in between, and how the supernet is trained.

    :param steps: of an anchor's training; `more` are those of the supernet's
    """

    make: Callable[[int], nn.Module]
    widths: tuple[int, ...]
    between: tuple[int, ...]
    steps: int
    more: int
    options: Mapping[str, Any]


FAMILIES = {
    "vit": Family(lambda width: ViT(width, 4), (16, 32, 64), (24, 48), 500, 1500, {}),
    "cnn": Family(lambda width: CNN(width, 3), (8, 16, 32), (12, 24), 200, 500, {"skipped_stages": ()}),
}
QUICK = ("cnn",)
RATE = 3e-3


def trace(module: nn.Module, digits: Digits, name: str) -> Graph:
    """A module as a graph of any number of images."""
    return suture.trace(module, digits.images[:2], dynamic={"x": {0: "batch"}}, name=name)


def accuracies(net: Supernet, digits: Digits) -> dict[int, float]:
    """The test accuracy of every route, in points."""
    found = net.accuracies({"x": digits.test_images}, digits.test_classes)
    return {number: 100 * value for number, value in found.items()}


def tune(net: Supernet, teacher: nn.Module, digits: Digits, steps: int, seed: int, rate: float) -> None:
    """Train the supernet, a random route a step."""
    module, sampler = net.module(), net.sampler(seed)
    with torch.no_grad():
        scores = teacher(digits.images)

    def loss(step: int, chosen: Tensor) -> Tensor:
        outputs = module.set(sampler(step))(digits.images[chosen])
        return distillation_loss(outputs, digits.classes[chosen], scores[chosen], share=0.7, temperature=3.0)

    train(module, digits, steps, seed, rate, loss)


def run_seed(family: Family, digits: Digits, seed: int) -> dict[str, Any]:
    """One family, trained, stitched and fine-tuned."""
    anchors = [train_alone(lambda w=w: family.make(w), digits, family.steps, seed, RATE) for w in family.widths]
    alone = [100 * accuracy(module, digits) for module in anchors]
    teacher = copy.deepcopy(anchors[-1])
    graphs = [trace(module, digits, f"width_{w}") for module, w in zip(anchors, family.widths, strict=True)]
    data = {"x": digits.images[:CALIBRATION]}
    random = suture.passes.stitch(
        graphs[0], others=tuple(graphs[1:]), initialise="random", seed=seed, check=False, **family.options
    )
    fitted = suture.passes.stitch(graphs[0], others=tuple(graphs[1:]), data=data, check=False, **family.options)
    net = Supernet(fitted)
    found = {
        "anchors": alone,
        "random": accuracies(Supernet(random), digits),
        "least_squares": accuracies(net, digits),
        "routes": {
            item.number: {"macs": item.macs, "front": item.route.hops[0].anchor, "route": str(item)}
            for item in net.configurations
        },
    }
    tune(net, teacher, digits, family.more, seed, RATE)
    found["tuned"] = accuracies(net, digits)
    between = [
        train_alone(lambda w=w: family.make(w), digits, family.steps + family.more, seed, RATE) for w in family.between
    ]
    found["between"] = [
        {"macs": trace(module, digits, "alone").stats().macs, "accuracy": 100 * accuracy(module, digits)}
        for module in between
    ]
    return found


def mean_of(runs: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """The mean over seeds of what each route reaches."""
    return {number: statistics.fmean(run[key][number] for run in runs) for number in runs[0][key]}


def run_family(name: str, family: Family, digits: Digits, report: Report, seeds: int) -> None:
    """Measure one family, add its figures and rows, draw it."""
    start = time.perf_counter()
    runs = []
    for seed in range(seeds):
        runs.append(run_seed(family, digits, seed))
        print(f"{name}, seed {seed} done", file=sys.stderr)
    routes: dict[int, dict[str, Any]] = runs[0]["routes"]
    stitched = [number for number, route in routes.items() if number >= len(family.widths)]
    alone = [statistics.fmean(run["anchors"][k] for run in runs) for k in range(len(family.widths))]
    means = {key: mean_of(runs, key) for key in ("random", "least_squares", "tuned")}
    below = {number: means["tuned"][number] - alone[routes[number]["front"]] for number in stitched}
    worst = [run["tuned"][k] - run["anchors"][routes[k]["front"]] for run in runs for k in stitched]
    gains = [run["least_squares"][k] - run["random"][k] for run in runs for k in stitched]
    report.add(f"{name}: stitches between anchors", len(stitched), "")
    for width, value in zip(family.widths, alone, strict=True):
        report.add(f"{name}: anchor of width {width}, trained alone", value, "%")
    report.add(f"{name}: stitches at step 0, random layers", _mean(means["random"], stitched), "%")
    report.add(f"{name}: stitches at step 0, least squares", _mean(means["least_squares"], stitched), "%")
    report.add(f"{name}: least squares over random, mean", statistics.fmean(gains), "points", Aim("at least", 10))
    report.add(
        f"{name}: stitches that least squares starts better",
        100 * sum(gain > 0 for gain in gains) / len(gains),
        "%",
        Aim("at least", 95),
    )
    report.add(f"{name}: stitches after fine-tuning", _mean(means["tuned"], stitched), "%")
    report.add(f"{name}: lowest stitch over its smaller anchor", min(below.values()), "points", Aim("at least", -1))
    report.add(f"{name}: the same, worst of all seeds", min(worst), "points")
    for k, width in enumerate(family.between):
        macs = runs[0]["between"][k]["macs"]
        value = statistics.fmean(run["between"][k]["accuracy"] for run in runs)
        near = sorted(stitched, key=lambda number: abs(routes[number]["macs"] - macs))[:3]
        report.add(f"{name}: width {width}, trained alone, {macs:,} MACs", value, "%")
        report.add(f"{name}: three stitches nearest to it in MACs", _mean(means["tuned"], near), "%")
    report.add(f"{name}: time", time.perf_counter() - start, "s")
    report.rows.append(
        {
            "family": name,
            "seeds": seeds,
            "steps": family.steps,
            "more": family.more,
            "test images": len(digits.test_images),
            "runs": runs,
        }
    )
    if not report.quick:
        picture = draw(name, family, routes, means["tuned"], alone, runs)
        (DOCS / f"stitch_digits_{name}.svg").write_text(picture, encoding="utf-8")


def draw(
    name: str,
    family: Family,
    routes: Mapping[int, Mapping[str, Any]],
    tuned: Mapping[int, float],
    alone: Sequence[float],
    runs: Sequence[Mapping[str, Any]],
) -> str:
    """Accuracy against MACs: all routes of the supernet, the anchors as they were trained alone, and models in between."""
    anchors = range(len(family.widths))
    points = {number: (float(route["macs"]), tuned[number]) for number, route in routes.items()}
    # the numbers of what is not a route follow those of the routes
    trained = {len(routes) + k: (points[k][0], alone[k]) for k in anchors}
    between = {
        len(routes) + len(anchors) + k: (
            float(runs[0]["between"][k]["macs"]),
            statistics.fmean(run["between"][k]["accuracy"] for run in runs),
        )
        for k in range(len(family.between))
    }
    labels = {len(routes) + k: f"width {width}" for k, width in enumerate(family.widths)}
    labels |= {len(routes) + len(anchors) + k: f"width {width}" for k, width in enumerate(family.between)}
    series = [
        Series("anchors", trained, large=True),
        Series("stitched routes", points),
        Series("trained alone", between, large=True),
    ]
    title = f"{ {'vit': 'Vision transformers', 'cnn': 'Residual CNNs'}[name] } on digits, mean of {len(runs)} seeds"
    front = pareto_front({k: x for k, (x, _) in points.items()}, {k: y for k, (_, y) in points.items()})
    return draw_pareto(series, front, labels=labels, title=title, cost="MACs for one image", score="test accuracy, %")


def _mean(values: Mapping[int, float], keys: Sequence[int]) -> float:
    return statistics.fmean(values[key] for key in keys)


def markdown(report: Report) -> str:
    """The figures as a table for people."""
    lines = ["| figure | value | aim |", "| --- | ---: | --- |"]
    for figure in report.figures:
        lines.append(f"| {figure.name} | {figure.value:,.4g} {figure.unit} | {figure.aim or ''} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    options = arguments(__doc__ or "")
    torch.set_num_threads(options.threads)
    digits = load_digits()
    report = Report("stitched families on scikit-learn's digits", options.quick)
    for name in options.only or (QUICK if options.quick else FAMILIES):
        family = FAMILIES[name]
        if options.quick:
            family = replace(family, between=())
        run_family(name, family, digits, report, seeds=1 if options.quick else 3)
    code = report.finish(options.json)
    if options.json is not None:
        Path(options.json).with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
