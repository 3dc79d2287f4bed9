"""Compiled relational layers, against PyTorch Geometric, a plain PyTorch plan written well, and torch.compile of both.

    python benchmarks/relational.py [--device cpu|cuda] [--quick] [--json FILE] [--only NAME ...] [--threads N]
        [--graphs ...] [--layers ...] [--widths ...] [--heads ...] [--scale S] [--memory GB] [--seconds S] [--clock wall|processor] [--no-compile]

RGCN, RGAT and HGT, one layer, inference and a training step (forward and backward, gradients of inputs and parameters), on AIFB, MUTAG and FB15k-237
(from the folder in SUTURE_RELATIONAL_DATA, else downloaded) and on synthetic graphs with the sizes of BGS, AM, MAG and BioKG. The full grid of widths
32, 64, 128 and heads 1 and 8 runs on AIFB and MUTAG; the other graphs run at width 64 with one head, the setting of the published comparisons,
unless asked for.

Every side first runs in a process of its own, with a limit on memory and time: that gives its peak memory (growth beyond inputs and parameters, once
warm) and says what runs out of either. Those that ran are checked against the plain plan in float64 and timed in turn in one process. Suture's side
is `suture.accelerate` of PyG's layer; it also runs without compaction, without reordering, without both. DGL is not among the sides: its last
release, 2.4, is for torch 2.4 and older.

Aims on a CPU: on AIFB and MUTAG at least 20 times PyG in inference and 10 times in training; everywhere at least 1.5 times the plain plan and at
most half of PyG's memory. On a GPU: never slower than PyG, 2 times in the geometric mean, and the ratios of the paper (arXiv 2301.06284), 9.9 and
43.7, at best.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from measure import Aim, Report, options
from relational_cases import (
    LAYERS,
    NEITHER,
    NO_COMPACTION,
    NO_REORDERING,
    OURS,
    PLAIN,
    PLAIN_COMPILED,
    PYG,
    PYG_COMPILED,
    REAL,
    SYNTHETIC,
    Bench,
    Case,
    cases,
    load_graph,
)
from relational_probe import OUT_OF_MEMORY, probe

import suture

ROUNDS, QUICK_ROUNDS = 15, 3
SIDES = (OURS, PYG, PLAIN, NO_COMPACTION, NO_REORDERING, NEITHER, PYG_COMPILED, PLAIN_COMPILED)
COMPILED = PYG_COMPILED, PLAIN_COMPILED
MODES = "inference", "training"
WIDE_GRID = "aifb", "mutag"
AIMS = {"inference": 20.0, "training": 10.0}
PAPER = {"inference": 9.9, "training": 43.7}
TOLERANCE = 5e-4
PATIENCE = 10.0  # seconds that one side may take of the timing in turn, once it has been timed


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
    """torch.compile takes minutes on a loop over relations: only in one setting, and not in a quick run."""
    compiled = (
        not given.quick and not given.no_compile and case.graph in WIDE_GRID and (case.width, case.heads) == (64, 1)
    )
    return [side for side in SIDES if compiled or side not in COMPILED]


def in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time all sides in turn; short ones several times a round, and those that took `PATIENCE` in all no more."""
    calls = {}
    for name, run in runs.items():
        start = clock()
        run()
        calls[name] = max(1, math.ceil(0.03 / max(clock() - start, 1e-6)))
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, run in runs.items():
            if calls[name] * sum(seconds[name]) > PATIENCE:
                continue
            gc.collect()
            start = clock()
            for _ in range(calls[name]):
                run()
            seconds[name].append((clock() - start) / calls[name])
    return dict(seconds)


def measure(case: Case, given: argparse.Namespace, report: Report, ratios: dict[tuple[str, str], list[float]]) -> None:
    """One case: memory and limits in processes of their own, then times in turn."""
    bench = Bench(case, load_graph(case.graph, case.scale), given.device)
    for mode in MODES:
        train = mode == "training"
        probes = {
            side: probe(case, side, device=given.device, memory=given.memory, threads=given.threads, train=train, seconds=given.seconds)
            for side in sides_of(case, given)
        }  # fmt: skip
        row: dict[str, Any] = {"case": str(case), "mode": mode, "scale": case.scale, "probes": probes}
        report.rows.append(row)
        runs, errors = {}, {}
        for name, found in probes.items():
            if found["status"] == "ran":
                side = bench.side(name)
                errors[name] = bench.check(side, gradients=train)
                if not errors[name] < TOLERANCE:
                    found["status"], found["why"] = "failed", f"off by {errors[name]:.1e}"
                    continue
                runs[name] = side.train if train else side.infer
        seconds = in_turn(runs, QUICK_ROUNDS if given.quick else ROUNDS, _clock(given))
        pick = min if given.clock == "processor" else statistics.median
        times = {name: pick(found) for name, found in seconds.items() if found}
        row |= {"milliseconds": {name: 1e3 * found for name, found in times.items()}, "errors": errors}
        _figures(case, mode, times, probes, given, report, ratios)
        print(
            f"{case}, {mode}: " + ", ".join(f"{name} {_said(name, times, probes)}" for name in probes),
            file=sys.stderr,
            flush=True,
        )


def _clock(given: argparse.Namespace) -> Callable[[], float]:
    if given.device == "cpu":
        return time.process_time if given.clock == "processor" else time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def _said(name: str, times: Mapping[str, float], probes: Mapping[str, Any]) -> str:
    if name not in times:
        return f"{probes[name]['status']}"
    return f"{1e3 * times[name]:.2f} ms {probes[name]['peak']:.0f} MB"


def _figures(
    case: Case, mode: str, times: Mapping[str, float], probes: Mapping[str, Any], given: argparse.Namespace, report: Report,
    ratios: dict[tuple[str, str], list[float]],
) -> None:  # fmt: skip
    """Our time and memory, and every other side's relative to them, with the aims."""
    name, on_cpu = f"{case}, {mode}", given.device == "cpu"
    if OURS not in times:
        report.add(f"{name}: {OURS} {probes[OURS]['status']}: {probes[OURS].get('why', '')}", 0, "", Aim("at least", 1))
        return
    report.add(f"{name}: {OURS}", 1e3 * times[OURS], "ms")
    pyg = AIMS[mode] if on_cpu and case.graph in WIDE_GRID else None if on_cpu else 1.0
    aims = {PYG: pyg, PLAIN: 1.5 if on_cpu else None}
    for side in times:
        if side != OURS:
            ratio = times[side] / times[OURS]
            ratios[side, mode].append(ratio)
            aim = aims.get(side)
            report.add(f"{name}: {side} / {OURS}", ratio, "", Aim("at least", aim) if aim else None)
    report.add(f"{name}: {OURS}, peak", probes[OURS]["peak"], "MB")
    if probes[PYG]["status"] == "ran":
        share = probes[OURS]["peak"] / max(probes[PYG]["peak"], 0.1)
        report.add(f"{name}: peak of {OURS} / {PYG}", share, "", Aim("at most", 0.5) if on_cpu else None)


def summarise(report: Report, ratios: Mapping[tuple[str, str], list[float]], given: argparse.Namespace) -> None:
    """Geometric means, the best ratios, and how often each side ran out."""
    on_gpu = given.device == "cuda"
    for (side, mode), found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        aim = Aim("at least", 2.0) if on_gpu and side == PYG else None
        report.add(f"all, {mode}: {side} / {OURS}, geometric mean of {len(found)}", mean, "", aim)
        best = Aim("at least", PAPER[mode]) if on_gpu and side == PYG and not given.quick else None
        report.add(f"all, {mode}: {side} / {OURS}, best", max(found), "", best)
    for side in SIDES:
        states = [row["probes"][side]["status"] for row in report.rows if side in row["probes"]]
        aim = Aim("at most", 0) if side == OURS else None
        if states:
            report.add(f"all: {side}, {OUT_OF_MEMORY}, of {len(states)}", states.count(OUT_OF_MEMORY), "", aim)


def _free() -> float:
    """Four fifths of the memory that is free, in gigabytes."""
    return 0.8 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def main() -> int:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--graphs", nargs="*", choices=(*REAL, *SYNTHETIC))
    parser.add_argument("--layers", nargs="*", choices=LAYERS)
    parser.add_argument("--widths", nargs="*", type=int)
    parser.add_argument("--heads", nargs="*", type=int)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the synthetic graphs' nodes and edges (1)")
    parser.add_argument(
        "--memory", type=float, default=_free(), metavar="GB", help="what a side may take (CPU; 0.8 of what is free)"
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="what a side may take to be probed (300)")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="medians of wall time, or least processor time (wall)",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here that torch sees: nothing was measured")
        return 0
    torch.set_num_threads(given.threads)
    report = Report(f"relational layers, {given.device}, {given.threads} threads, {given.clock} time", given.quick)
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case in chosen(given):
        try:
            load_graph(case.graph, case.scale)
        except suture.SutureError as error:
            print(f"{case}: left out: {error}", file=sys.stderr)
            report.rows.append({"case": str(case), "left out": str(error), "probes": {}})
            continue
        measure(case, given, report, ratios)
    summarise(report, ratios, given)
    return report.finish(given.json)


if __name__ == "__main__":
    sys.exit(main())
