"""The figures of the relational benchmark and their aims, and the page that shows them, both from the rows that were measured."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from measure import Aim, Report
from relational_apart import OUT_OF_MEMORY, TOO_SLOW
from relational_cases import MODES, NEITHER, NO_COMPACTION, NO_REORDERING, OURS, PLAIN, PYG, SIDES, WIDE_GRID
from relational_probe import TOGETHER

AIMS = {"inference": 20.0, "training": 10.0}
PAPER = {"inference": 9.9, "training": 43.7}
SWITCHED = NO_COMPACTION, NO_REORDERING, NEITHER

Row = Mapping[str, Any]


def ran(row: Row, side: str) -> bool:
    return bool(row["probes"].get(side, {}).get("status") == "ran")


def figures(row: Row, report: Report, device: str) -> None:
    """Our time and memory, and every other side's relative to them, with the aims."""
    name, mode, times, probes = f"{row['case']}, {row['mode']}", row["mode"], row["milliseconds"], row["probes"]
    on_cpu = device == "cpu"
    if OURS not in times:
        report.add(f"{name}: {OURS} {probes[OURS]['status']}: {probes[OURS].get('why', '')}", 0, "", Aim("at least", 1))
        return
    report.add(f"{name}: {OURS}", times[OURS], "ms")
    graph = row["case"].split()[1]
    pyg = AIMS[mode] if on_cpu and graph in WIDE_GRID else None if on_cpu else 1.0
    aims = {PYG: pyg, PLAIN: 1.5 if on_cpu else None}
    for side in times:
        if side != OURS:
            aim = aims.get(side)
            ratio = times[side] / times[OURS]
            report.add(f"{name}: {side} / {OURS}", ratio, "", Aim("at least", aim) if aim else None)
    report.add(f"{name}: {OURS}, peak", probes[OURS]["peak"], "MB")
    if ran(row, PYG):
        share = probes[OURS]["peak"] / max(probes[PYG]["peak"], 0.1)
        report.add(f"{name}: peak of {OURS} / {PYG}", share, "", Aim("at most", 0.5) if on_cpu else None)


def ratios(rows: Iterable[Row], side: str, mode: str) -> list[float]:
    """A side's times relative to ours, where both were timed."""
    times = [row["milliseconds"] for row in rows if row["mode"] == mode]
    return [each[side] / each[OURS] for each in times if side in each and OURS in each]


def summarise(report: Report, rows: list[Row], device: str, quick: bool) -> None:
    """Geometric means, the best ratios, and how often each side ran out."""
    on_gpu = device == "cuda"
    for mode, side in itertools.product(MODES, SIDES):
        found = [] if side == OURS else ratios(rows, side, mode)
        if found:
            aim = Aim("at least", 2.0) if on_gpu and side == PYG else None
            title = f"all, {mode}: {side} / {OURS}"
            report.add(f"{title}, geometric mean of {len(found)}", mean(found), "", aim)
            best = Aim("at least", PAPER[mode]) if on_gpu and side == PYG and not quick else None
            report.add(f"{title}, best", max(found), "", best)
    for side in SIDES:
        states = [row["probes"][side]["status"] for row in rows if side in row["probes"]]
        aim = Aim("at most", 0) if side == OURS else None
        if states:
            report.add(f"all: {side}, {OUT_OF_MEMORY}, of {len(states)}", states.count(OUT_OF_MEMORY), "", aim)


def mean(found: list[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(map(math.log, found)))


def page(stored: Mapping[str, Any], device: str) -> str:
    """The results as a page of Markdown, from what the JSON holds."""
    rows = [row for row in stored["rows"] if "mode" in row]
    missed = [each for each in stored["figures"] if each["aim"] and not each["met"]]
    said = "; ".join(
        f"{each['name']} {each['value']:.2f} ({each['aim']['sense']} {each['aim']['limit']:g})" for each in missed
    )
    lines = [
        f"# Relational layers on {'the CPU' if device == 'cpu' else stored['title'].split(', ')[1]}",
        "",
        _machine(stored),
        "",
        *_overall(rows),
    ]
    for graph in dict.fromkeys(row["case"].split()[1] for row in rows):
        found = [row for row in rows if row["case"].split()[1] == graph]
        scale = f", {found[0]['scale']:.0%} of its size" if found[0]["scale"] != 1 else ""
        lines += ["", f"## {graph}{scale}", "", *_table(found, device, stored)]
    return "\n".join([*lines, "", _footnote(rows), "", f"Aims missed: {said or 'none'}."]) + "\n"


def _machine(stored: Mapping[str, Any]) -> str:
    machine, versions = stored["machine"], stored["machine"]["versions"]
    said = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['system']}, Python {machine['python']}"
    peer = f"PyTorch Geometric {versions.get('torch-geometric', '?')} without pyg-lib"
    clock = "least processor time" if "processor" in stored["title"] else "medians of interleaved rounds"
    return f"{said}, torch {versions['torch']}, {peer}; {clock}, milliseconds. Suture's side is `suture.accelerate` of PyG's layer."


def _overall(rows: list[Row]) -> list[str]:
    lines = ["| times slower than Suture | cases | geometric mean | least | most | out of memory | too slow |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for mode, side in itertools.product(MODES, SIDES):
        states = [row["probes"][side]["status"] for row in rows if row["mode"] == mode and side in row["probes"]]
        found = [] if side == OURS else ratios(rows, side, mode)
        if found:
            numbers = f"{len(found)} | {mean(found):.2f} | {min(found):.2f} | {max(found):.1f}"
            lines.append(f"| {side}, {mode} | {numbers} | {states.count(OUT_OF_MEMORY)} | {states.count(TOO_SLOW)} |")
    return lines


def _table(rows: list[Row], device: str, stored: Mapping[str, Any]) -> list[str]:
    aims = {each["name"]: each for each in stored["figures"]}
    heads = ["case", "Suture", "PyG", "plain plan", "PyG / Suture", "plain / Suture", "peak MB: Suture", "PyG", "plain"]
    extra = [side for side in SIDES if side not in (OURS, PYG, PLAIN) and any(side in row["probes"] for row in rows)]
    heads += [
        {NO_COMPACTION: "not compacted", NO_REORDERING: "not reordered", NEITHER: "neither"}.get(side, side)
        for side in extra
    ]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for row in rows:
        name = f"{row['case']}, {row['mode']}"
        cells = [name, *(_time(row, side) for side in (OURS, PYG, PLAIN))]
        cells += [_ratio(aims.get(f"{name}: {side} / {OURS}")) for side in (PYG, PLAIN)]
        cells += [_peak(row, side) for side in (OURS, PYG, PLAIN)]
        cells += [_time(row, side) if side in row["probes"] else "" for side in extra]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _time(row: Row, side: str) -> str:
    if side not in row["milliseconds"]:
        return str(row["probes"].get(side, {}).get("status", ""))
    found = row["milliseconds"][side]
    once = row["probes"][side].get("once") and side in row["alone"]
    return (f"{found:.2f}" if found < 100 else f"{found:,.0f}") + ("\\*" if once else "")


def _ratio(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    aim = f" (aim {figure['aim']['limit']:g}{'' if figure['met'] else ', missed'})" if figure["aim"] else ""
    return f"{figure['value']:.1f}{aim}"


def _peak(row: Row, side: str) -> str:
    return f"{row['probes'][side]['peak']:,.0f}" if ran(row, side) else ""


def _footnote(rows: list[Row]) -> str:
    said = [
        "Every side is checked against the plain plan in float64 first. A training step is forward and backward, with gradients of inputs and all",
        "parameters. Peaks are the growth of a process's memory beyond inputs and parameters, once warm. The plain plan has rows sorted by relation,",
        "unique pairs, one `mm` for each relation, one sparse product, and derivatives of its own (`benchmarks/relational_plain.py`). Sides whose",
        f"steps take more than {TOGETHER:g} s are timed in processes of their own instead of in turn; \\* marks those that were timed once.",
    ]
    limits = sorted(
        {f"{row['limits']['memory']:.0f} GB and {row['limits']['seconds']:g} s" for row in rows if "limits" in row}
    )
    if limits:
        said.append(f"A side may take {' or '.join(limits)} for both modes together, with all that it prepares.")
    unchecked = [str(row["case"]) for row in rows if row.get("unchecked")]
    if unchecked:
        said.append(
            f"Not checked, because the plain plan in float64 did not end: {', '.join(dict.fromkeys(unchecked))}."
        )
    return " ".join(said)
