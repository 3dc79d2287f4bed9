"""The stitch spaces of SN-Net and SN-Netv2: how many routes, what they cost, how long a supernet takes to build and to switch.

    python benchmarks/stitch_space.py [--quick] [--json FILE] [--only NAME ...] [--threads N]

DeiT-Ti/S/B (nearest stitching, 71 routes), Swin-Ti/S/B (41) and SN-Netv2's two-way space of DeiT-S/B (135), with random
weights: nothing here depends on what the models have learned. Stitching layers of the first come from least squares on
a few random images, those of the others are random.

Beside each supernet stand its anchors as they were: their memory, and the time of their own forward pass against that of
the supernet set to them. Every route is extracted, and has to have the MACs that the closed form says.

With --quick, DeiT-Ti/S alone.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import Aim, Report, arguments, interleaved, median
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from zoo import declare_torchvision_operators

import suture
from suture.backends.onnxruntime import OnnxModel
from suture.drivers.supernet import Supernet
from suture.passes.stitch.space import stitch_space

IMAGES = 8  # to calibrate on
SHOWN = 6  # routes whose forward pass is timed


@dataclass(frozen=True)
class Case:
    """One family: its models, the published number of routes, and how it is stitched."""

    models: tuple[str, ...]
    routes: int
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "deit": Case(("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"), 71),
    "swin": Case(
        ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224"),
        41,
        {"initialise": "random"},
    ),
    "two_way": Case(
        ("deit_small_patch16_224", "deit_base_patch16_224"), 135, {"initialise": "random", "two_way": True}
    ),
    "quick": Case(("deit_tiny_patch16_224", "deit_small_patch16_224"), 36),
}
FULL = ("deit", "swin", "two_way")


def build(name: str) -> nn.Module:
    """A model of the zoo with random weights."""
    declare_torchvision_operators()
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False).eval()


def run_case(name: str, case: Case, report: Report, threads: int) -> None:
    """Build one supernet and measure it beside its anchors."""
    modules = [build(model) for model in case.models]
    inputs = torch.randn(2, 3, 224, 224)
    start = time.perf_counter()
    graphs = [
        suture.trace(module, (inputs,), dynamic={"x": {0: "batch"}}, name=model)
        for module, model in zip(modules, case.models, strict=True)
    ]
    traced = time.perf_counter() - start
    data = {"x": torch.randn(IMAGES, 3, 224, 224)}
    start = time.perf_counter()
    stitched = suture.passes.stitch(graphs[0], others=tuple(graphs[1:]), data=data, **case.options)
    built = time.perf_counter() - start
    net = Supernet(stitched)
    macs = list(net.macs.values())
    stitches = sum(p.data.nbytes for key, p in stitched.parameters.items() if key.startswith("stitches."))
    anchors = sum(graph.stats().bytes for graph in graphs)
    report.add(f"{name}: routes", len(net), "", Aim("at least", case.routes))
    report.add(f"{name}: cheapest route", min(macs) / 1e9, "GMACs")
    report.add(f"{name}: dearest route", max(macs) / 1e9, "GMACs")
    report.add(f"{name}: tracing all anchors", traced, "s")
    report.add(f"{name}: building the supernet", built, "s")
    report.add(f"{name}: supernet's tensors", stitched.stats().bytes / 1e6, "MB")
    report.add(f"{name}: over its anchors'", stitched.stats().bytes / anchors, "x", Aim("at most", 1.15))
    report.add(f"{name}: stitching layers", stitches / 1e6, "MB")
    wrong, extracted = extraction(net)
    report.add(f"{name}: routes whose extract has other MACs", wrong, "", Aim("at most", 0))
    report.add(f"{name}: extracting a route", extracted, "s")
    switching(name, net, report)
    against_anchors(name, net, modules, report)
    in_onnx_runtime(name, net, report, threads)
    report.rows.append(
        {
            "case": name,
            "models": case.models,
            "routes": [
                {"stitch": item.number, "route": str(item), "macs": item.macs, "parameters": item.parameters}
                for item in net.configurations
            ],
        }
    )


def extraction(net: Supernet) -> tuple[int, float]:
    """How many routes have other MACs or parameters when extracted, and the median seconds of an extraction."""
    wrong, seconds = 0, []
    for item in net.configurations:
        start = time.perf_counter()
        stats = net.extract(item.number).stats()
        seconds.append(time.perf_counter() - start)
        wrong += (stats.macs, stats.parameters) != (item.macs, item.parameters)
    return wrong, median(seconds)


def switching(name: str, net: Supernet, report: Report) -> None:
    """The time of one switch of the module, which is setting one number."""
    module = net.module()
    count = len(net)
    start = time.perf_counter()
    for step in range(10000):
        module.set(step % count)
    report.add(f"{name}: switching", (time.perf_counter() - start) / 10000 * 1e6, "us", Aim("at most", 100))


def against_anchors(name: str, net: Supernet, modules: list[nn.Module], report: Report) -> None:
    """The forward pass of the supernet set to each anchor against that of the anchor, and whether they agree bit for bit."""
    image = torch.randn(1, 3, 224, 224)
    module = net.module()
    unequal = 0
    for number, anchor in zip(net.anchors, modules, strict=True):
        with torch.no_grad():
            difference = (module.set(number)(image) - anchor(image)).abs().max().item()
        unequal += difference > 1e-4
        taken = interleaved({"anchor": timed(anchor, image), "supernet": timed(module, image)}, rounds=5)
        ratio = median(taken["supernet"]) / median(taken["anchor"])
        report.add(f"{name}: forward pass at anchor {number}", median(taken["supernet"]), "s")
        report.add(f"{name}: over the anchor's own", ratio, "x", Aim("at most", 1.25))
    report.add(f"{name}: anchors that differ", unequal, "", Aim("at most", 0))


def in_onnx_runtime(name: str, net: Supernet, report: Report, threads: int) -> None:
    """One switchable file: its size, and its time at a route against that of a file of the route alone."""
    image = torch.randn(1, 3, 224, 224)
    route = net.configurations[len(net) // 2].number
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        switchable = suture.export_onnx(net.graph, Path(folder) / "supernet.onnx")
        report.add(f"{name}: exporting the switchable ONNX file", time.perf_counter() - start, "s")
        report.add(f"{name}: its size", switchable.stat().st_size / 1e6, "MB")
        alone = suture.export_onnx(net.extract(route), Path(folder) / "route.onnx")
        models = OnnxModel(switchable, threads=threads), OnnxModel(alone, threads=threads)
        inputs = {"x": image, "stitch": torch.tensor(route)}, {"x": image}
        far = (models[0].run(inputs[0])[0] - models[1].run(inputs[1])[0]).abs().max().item()

        def run(k: int) -> float:
            start = time.perf_counter()
            models[k].run(inputs[k])
            return time.perf_counter() - start

        taken = interleaved({"switchable": lambda: run(0), "alone": lambda: run(1)}, rounds=5)
    report.add(f"{name}: ONNX Runtime at route {route}", median(taken["switchable"]), "s")
    report.add(
        f"{name}: over a file of that route",
        median(taken["switchable"]) / median(taken["alone"]),
        "x",
        Aim("at most", 1.25),
    )
    report.add(f"{name}: largest difference of the two files", far, "", Aim("at most", 1e-3))


def timed(module: nn.Module, image: torch.Tensor) -> Callable[[], float]:
    """A forward pass that returns its seconds."""

    def run() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            module(image)
        return time.perf_counter() - start

    return run


def spaces(report: Report) -> None:
    """Published spaces that need no model to count."""
    twelve = [(12,)] * 3
    swin = [(2, 2, 6, 2), (2, 2, 18, 2), (2, 2, 18, 2)]
    for name, published, space in (
        ("three anchors of 12 blocks, nearest stitching", 71, stitch_space(twelve)),
        ("three anchors of 12 blocks, any chain", 732, stitch_space(twelve, nearest=False)),
        ("Swin-Ti/S/B", 41, stitch_space(swin)),
        ("two-way, 12 and 24 blocks", 135, stitch_space([(12,), (24,)], two_way=True)),
    ):
        report.add(f"space: {name}: off the published {published}", abs(len(space) - published), "", Aim("at most", 0))


def markdown(report: Report) -> str:
    """The figures as tables for people, one a family."""
    lines: list[str] = []
    for row in report.rows:
        name = row["case"]
        lines += [f"### {name}: {', '.join(row['models'])}", "", "| figure | value |", "| --- | ---: |"]
        for figure in report.figures:
            if figure.name.startswith(f"{name}: "):
                lines.append(f"| {figure.name.removeprefix(f'{name}: ')} | {figure.value:,.4g} {figure.unit} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    options = arguments(__doc__ or "")
    torch.set_num_threads(options.threads)
    report = Report("stitch spaces", options.quick)
    spaces(report)
    for name in options.only or (("quick",) if options.quick else FULL):
        run_case(name, copy.copy(CASES[name]), report, options.threads)
        print(f"{name} done", file=sys.stderr)
    code = report.finish(options.json)
    table = markdown(report)
    print(table)
    if options.json is not None:
        Path(options.json).with_suffix(".md").write_text(table, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
