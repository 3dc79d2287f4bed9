"""What every benchmark shares: interleaved timing, figures with their aims, the table, the JSON, the exit code."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Aim:
    """What a figure should reach."""

    sense: Literal["at most", "at least"]
    limit: float

    def met_by(self, value: float) -> bool:
        return value <= self.limit if self.sense == "at most" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """One measured number, its unit, and the aim that stands beside it, if any."""

    name: str
    value: float
    unit: str
    aim: Aim | None = None

    @property
    def met(self) -> bool | None:
        return self.aim.met_by(self.value) if self.aim else None


@dataclass
class Report:
    """The figures of one benchmark; `finish` prints and stores them and gives the exit code."""

    title: str
    quick: bool
    figures: list[Figure] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, aim: Aim | None = None) -> None:
        self.figures.append(Figure(name, value, unit, aim))

    def finish(self, path: Path | None) -> int:
        from rich.console import Console
        from rich.table import Table

        missed = [figure for figure in self.figures if figure.met is False]
        table = Table("figure", "value", "unit", "aim", "met", title=self.title)
        for figure in self.figures:
            met = {True: "yes", False: "NO", None: ""}[figure.met]
            table.add_row(figure.name, f"{figure.value:.4g}", figure.unit, str(figure.aim or ""), met)
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        if path is not None:
            self.store(path)
        return 1 if missed else 0

    def stored(self) -> dict[str, Any]:
        """What the JSON holds."""
        return {
            "title": self.title, "quick": self.quick, "machine": machine(), "rows": self.rows,
            "figures": [{**asdict(figure), "met": figure.met} for figure in self.figures],
        }  # fmt: skip

    def store(self, path: Path) -> None:
        """Write all as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.stored(), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def arguments(about: str) -> argparse.Namespace:
    """Parse the options that every benchmark takes."""
    return options(about).parse_args()


def options(about: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes, for one that has more."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; the figures are rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also store the figures here")
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="only these cases")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads, for all sides (1)")
    return parser


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    import torch

    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    packages = (
        "suture", "torch", "onnx", "onnxruntime-gpu", "onnxruntime", "torch-pruning", "timm", "transformers", "torch-geometric", "dgl",
    )  # fmt: skip
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": load, "system": platform.system(),
        "python": platform.python_version(), "versions": versions,
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def interleaved(
    variants: Mapping[str, Callable[[], float]],
    rounds: int,
    warmup: int = 1,
    between: Callable[[], object] = gc.collect,
) -> dict[str, list[float]]:
    """Run the variants in turn, `rounds` times after `warmup`: what slows the machine down then slows all of them.

    A variant returns its own seconds, so that it can leave preparation out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + rounds):
        for name, variant in variants.items():
            between()
            spent = variant()
            if turn >= warmup:
                seconds[name].append(spent)
    return seconds


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)
