"""Compiled relational layers, against PyTorch Geometric, a plain PyTorch plan written well, and torch.compile of both.

    python benchmarks/relational.py [--device cpu|cuda] [--quick] [--json FILE] [--resume FILE] [--markdown FILE] [--only NAME ...] [--threads N]
        [--graphs ...] [--layers ...] [--widths ...] [--heads ...] [--scale S] [--memory GB] [--seconds S] [--minutes M] [--clock wall|processor]
        [--compile]

RGCN, RGAT and HGT, one layer, inference and a training step (forward and backward, gradients of inputs and parameters), on AIFB, MUTAG and FB15k-237
(from the folder in SUTURE_RELATIONAL_DATA, else downloaded) and on synthetic graphs with the sizes of BGS, AM, MAG and BioKG. The full grid of widths
32, 64, 128 and heads 1 and 8 runs on AIFB and MUTAG; the other graphs run at width 64 with one head, the setting of the published comparisons,
unless asked for.

Every side first runs in a process of its own, with a limit on memory and time: that gives its peak memory (growth beyond inputs and parameters, once
warm), checks its numbers against the plain plan in float64, and says what runs out of memory or time. Those that are fast are then timed in turn,
each in a process of its own. Suture's side is `suture.accelerate` of PyG's layer; at width 64 with one head it also runs without compaction, without
reordering and, but on the largest graphs, without both, and with `--compile` the others run under torch.compile (minutes for each). DGL is not among
the sides: its last release, 2.4, is for torch 2.4 and older.

The whole grid is made to end in about 35 minutes on two quiet cores. It may run in pieces: results are written after every case, and `--resume FILE`
measures only what FILE lacks (`--minutes M`: no case begins later than that; `--only NAME`: measured again). `--markdown` writes the page of all that
is known.

Aims on a CPU: on AIFB and MUTAG at least 20 times PyG in inference and 10 times in training; everywhere at least 1.5 times the plain plan and at
most half of PyG's memory. On a GPU: never slower than PyG, 2 times in the geometric mean, and the ratios of the paper (arXiv 2301.06284), 9.9 and
43.7, at best.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from measure import Report, machine, options
from relational_apart import name_of_gpu
from relational_cases import (
    COMPILED,
    LAYERS,
    MODES,
    NEITHER,
    OURS,
    PLAIN,
    PYG,
    REAL,
    SIDES,
    SYNTHETIC,
    WIDE_GRID,
    Bench,
    Case,
    cases,
    load_graph,
)
from relational_probe import TOGETHER, probe, store_expected, together
from relational_report import figures, page, summarise

import suture

ROUNDS, QUICK_ROUNDS = 15, 3
PUBLISHED_SETTING = 64, 1
LARGE, HUGE = ("am", "biokg"), ("mag",)  # 5 and 21 million edges: preparing a side takes tens of seconds


def chosen(given: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for."""
    quick = ["aifb"] if given.quick else [*REAL, *SYNTHETIC]
    found: list[Case] = []
    for graph in given.graphs or quick:
        wide = graph in WIDE_GRID and not given.quick
        widths = given.widths or ([32, 64, 128] if wide else [64])
        heads = given.heads or ([1, 8] if wide else [1])
        found += cases([graph], given.layers or LAYERS, widths, heads, given.scale if graph in SYNTHETIC else 1.0)
    return [case for case in found if not given.only or str(case) in given.only]


def sides_of(case: Case, given: argparse.Namespace) -> list[str]:
    """All in one setting, which shows what each pass does, torch.compile only where asked for; else, and on huge graphs, three."""
    if (case.width, case.heads) != PUBLISHED_SETTING or case.graph in HUGE:
        return [OURS, PYG, PLAIN]
    return [
        side
        for side in SIDES
        if (given.compile or side not in COMPILED) and (side != NEITHER or case.graph not in LARGE)
    ]


def measure(case: Case, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One case: memory, numbers and limits in processes of their own, then times in turn. A row for each mode."""
    start, before = time.monotonic(), os.times()
    bench = Bench(case, load_graph(case.graph, case.scale))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expected.pt"
        unchecked = store_expected(bench, given, path)
        expected = None if unchecked else path
        probes = {side: probe(bench, side, given, expected) for side in sides_of(case, given)}
    running = {mode: [side for side, found in probes.items() if found[mode]["status"] == "ran"] for mode in MODES}
    fast = {
        mode: [side for side in sides if probes[side][mode]["seconds"] < TOGETHER and side not in COMPILED]
        for mode, sides in running.items()
    }
    fast = {mode: sides if len(sides) > 1 else [] for mode, sides in fast.items()}
    rounds = QUICK_ROUNDS if given.quick else ROUNDS
    timed = together(bench, fast, rounds, given) if any(fast.values()) else {}
    rows = []
    for mode, sides in running.items():
        alone = [side for side in sides if side not in timed.get(mode, {})]
        times = {side: probes[side][mode]["seconds"] if side in alone else timed[mode][side] for side in sides}
        row: dict[str, Any] = {"case": str(case), "mode": mode, "scale": case.scale}
        row["limits"] = {"memory": round(given.memory, 1), "seconds": given.seconds}
        row |= {"unchecked": unchecked, "load": round(os.getloadavg()[0], 1), "alone": alone}
        row["milliseconds"] = {side: 1e3 * found for side, found in times.items()}
        row["probes"] = {side: found[mode] for side, found in probes.items()}
        rows.append(row)
        print(f"{case}, {mode}: " + ", ".join(_said(row, name) for name in probes), file=sys.stderr)
    spent = sum(os.times()[:4]) - sum(before[:4])
    print(f"{case}: {time.monotonic() - start:.0f} s, {spent:.0f} s of processor time", file=sys.stderr, flush=True)
    return rows


def _said(row: Mapping[str, Any], name: str) -> str:
    found = row["probes"][name]
    if name not in row["milliseconds"]:
        return f"{name} {found['status']}: {found['why']}"
    return f"{name} {row['milliseconds'][name]:.2f} ms {found['peak']:.0f} MB"


def known(path: Path | None, title: str, quick: bool) -> list[dict[str, Any]]:
    """The rows of an earlier run.

    :raises SystemExit: it was run otherwise: with other options, on another machine, with another torch or PyG
    """
    if path is None or not path.exists():
        return []
    stored, here = json.loads(path.read_text(encoding="utf-8")), machine()
    then = stored["machine"]
    packages = "torch", "torch-geometric"
    before = [stored["title"], stored["quick"], then["processor"], *(then["versions"].get(each) for each in packages)]
    now = [title, quick, here["processor"], *(here["versions"].get(each) for each in packages)]
    if before != now:
        raise SystemExit(f"{path} was measured otherwise: {before}, and not {now}; give another file")
    return [
        row for row in stored["rows"] if "limits" in row
    ]  # others were left out, or measured before sides had limits


def complete(rows: list[dict[str, Any]], given: argparse.Namespace, title: str) -> Report:
    """All rows in the order of the grid, and the figures that follow from them."""
    report = Report(title, given.quick)
    graphs, layers = [*REAL, *SYNTHETIC], [*LAYERS]

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        layer, graph, width = row["case"].split()
        wide, _, heads = width.partition("x")
        return graphs.index(graph), int(wide) != 64, int(wide), int(heads or 1), layers.index(layer)

    report.rows = sorted((row for row in rows if "mode" in row), key=place) + [row for row in rows if "mode" not in row]
    found = [row for row in report.rows if "mode" in row]
    for row in found:
        figures(row, report, given.device)
    summarise(report, found, given.device, given.quick)
    return report


def _free() -> float:
    """Four fifths of the memory that is free, in gigabytes."""
    return 0.8 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def asked(words: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="measure what this JSON lacks; written there too, unless --json says where",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write a page of the results here")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), metavar="M", help="begin no case later than this"
    )
    parser.add_argument("--graphs", nargs="*", choices=(*REAL, *SYNTHETIC))
    parser.add_argument("--layers", nargs="*", choices=LAYERS)
    parser.add_argument("--widths", nargs="*", type=int)
    parser.add_argument("--heads", nargs="*", type=int)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the synthetic graphs' nodes and edges (1)")
    parser.add_argument(
        "--memory", type=float, default=_free(), metavar="GB", help="what a side may take (CPU; 0.8 of what is free)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="what a side may take for both modes, in the process of its own (60)",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="medians of wall time, or least processor time (wall)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile of the others; give it more --seconds"
    )
    return parser.parse_args(words)


def main() -> int:
    given = asked()
    device = name_of_gpu() if given.device == "cuda" else given.device
    if device is None:
        print("there is no GPU here that torch sees: nothing was measured")
        return 0
    torch.set_num_threads(1)  # here; children have as many as they are given
    start, path = time.monotonic(), given.json or given.resume
    title = f"relational layers, {device}, {given.threads} threads, {given.clock} time"
    rows = known(given.resume, title, given.quick)
    for case in chosen(given):
        done = (str(case), case.scale) in [(row["case"], row.get("scale")) for row in rows]
        if done and not given.only:
            continue
        if time.monotonic() - start > 60 * given.minutes:
            print(f"{case}: left for later", file=sys.stderr)
            continue
        try:
            found = measure(case, given)
        except suture.SutureError as error:
            print(f"{case}: left out: {error}", file=sys.stderr)
            found = [{"case": str(case), "left out": str(error), "probes": {}}]
        rows = [row for row in rows if (row["case"], row.get("scale")) != (str(case), case.scale)] + found
        if path is not None:
            complete(rows, given, title).store(path)
        gc.collect()
    torch.set_num_threads(given.threads)
    report = complete(rows, given, title)
    status = report.finish(path)
    if given.markdown is not None:
        given.markdown.parent.mkdir(parents=True, exist_ok=True)
        given.markdown.write_text(page(report.stored(), given.device), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
