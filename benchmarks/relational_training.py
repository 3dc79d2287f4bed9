"""Training end to end: node classification on AIFB and MUTAG, link prediction on FB15k-237, with compiled layers and with PyTorch Geometric's.

    python benchmarks/relational_training.py [--quick] [--json FILE] [--markdown FILE] [--only NAME ...] [--threads N] [--seeds N] [--epochs N]
        [--seconds S] [--clock wall|processor]

Two layers of RGCN, RGAT and HGT with the published splits; how they are trained was chosen by cross-validation among the training nodes
(`relational_choice.py`). Compiled layers train to the end, from ten seeds. PyTorch Geometric's train from the first three of these, on the same
numbers, until the end or for the seconds that a case gives them (60, shared by the seeds; two epochs at least): accuracies are of trainings that
ended, curves are compared as far as they go. RGAT from one-hot features, as published, is beyond PyTorch Geometric's layer and trains compiled
alone. The scores of links are compiled as the layers are. Data come from the folder in SUTURE_RELATIONAL_DATA, else from their sites. Cases that
`--only` leaves out stay in FILE as they are.

Aims: the mean accuracy reaches the published one within the seeds' spread (theirs and ours); the losses of both sides agree; the loss of link
prediction falls in every epoch; an epoch takes at most a tenth of PyTorch Geometric's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import Aim, Report, machine, options
from relational_cases import FOLDER

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "relational"))
import classify_nodes
import predict_links

import suture
from suture import relational

CASES = [f"{layer} {data}" for data in classify_nodes.DATA for layer in classify_nodes.LAYERS]
LINKS = "rgcn fb15k237"
QUICK = ("rgcn aifb", LINKS)
FASTER = 10.0
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
AGREE = 2e-3
SEEDS, QUICK_SEEDS, PYG_SEEDS, LINK_EPOCHS, QUICK_LINK_EPOCHS = 10, 2, 3, 6, 3
SECONDS = 60.0

Row = dict[str, Any]


def classify(name: str, given: argparse.Namespace) -> Row:
    """One network on one data set: losses, accuracies and times for every seed."""
    layer, data_name = name.split()
    data = relational.load(data_name, os.environ.get(FOLDER) or None)
    seeds = given.seeds or (QUICK_SEEDS if given.quick else SEEDS)
    theirs = 0 if layer in classify_nodes.COMPILED_ONLY else min(seeds, PYG_SEEDS)
    sides: dict[str, list[Any]] = {"compiled": [], "PyG": []}
    for seed in range(seeds):
        for side in ("compiled", "PyG")[: 1 + (seed < theirs)]:
            seconds = math.inf if side == "compiled" else given.seconds / theirs
            sides[side].append(
                classify_nodes.train(
                    layer, data, seed, compiled=side == "compiled", epochs=given.epochs, seconds=seconds, clock=CLOCKS[given.clock]
                )
            )  # fmt: skip
    published = classify_nodes.PUBLISHED.get((layer, data_name))
    settings = vars(classify_nodes.SETTINGS[layer, data_name])
    return {
        "case": name,
        "inputs": _inputs(name),
        "settings": settings,
        "published": vars(published) if published else None,
        **_rows(sides),
    }


def predict(given: argparse.Namespace) -> Row:
    """Link prediction: losses and the reciprocal rank."""
    data = relational.load("fb15k237", os.environ.get(FOLDER) or None)
    epochs = given.epochs or (QUICK_LINK_EPOCHS if given.quick else LINK_EPOCHS)
    sides = {
        side: [predict_links.train(data, 0, compiled=side == "compiled", epochs=epochs, clock=CLOCKS[given.clock])]
        for side in ("compiled", "PyG")
    }
    return {"case": LINKS, **_rows(sides)}


def _inputs(name: str) -> str:
    """What a case's network starts from."""
    return "embedding" if name == LINKS or name.split()[0] in classify_nodes.EMBEDDED else "one-hot"


def _rows(sides: dict[str, list[Any]]) -> Row:
    return {side: [vars(each) for each in found] for side, found in sides.items()}


def figures(row: Row, report: Report) -> None:
    """What follows from a case, with the aims."""
    name, ours, theirs = row["case"], row["compiled"], row["PyG"]
    if name == LINKS:
        losses = ours[0]["losses"]
        rises = sum(later >= sooner for sooner, later in itertools.pairwise(losses))
        falls = losses[-1] / losses[0]
        report.add(f"{name}: loss after {len(losses)} epochs / at first", falls, "", Aim("at most", 0.999))
        report.add(f"{name}: epochs in which the loss rose", rises, "", Aim("at most", 0))
        report.add(f"{name}: reciprocal rank, compiled", ours[0]["rank"], "")
        report.add(f"{name}: reciprocal rank, PyG", theirs[0]["rank"], "")
    else:
        mean, spread = accuracy(ours)
        published = row["published"]
        reached = Aim("at least", round(published["accuracy"] - published["spread"] - spread, 2)) if published else None
        report.add(f"{name}: accuracy, compiled, mean of {len(ours)}", mean, "%", reached)
        report.add(f"{name}: accuracy, compiled, spread", spread, "%")
        ended = [each for each in theirs if each["accuracy"] is not None]
        if ended:
            report.add(f"{name}: accuracy, PyG, mean of {len(ended)}", accuracy(ended)[0], "%")
    fast = epoch(ours)
    report.add(f"{name}: an epoch, compiled", 1e3 * fast, "ms")
    if not theirs:
        return
    slow = epoch(theirs)
    report.add(f"{name}: losses apart, relative to the first", apart(row), "", Aim("at most", AGREE))
    report.add(f"{name}: an epoch, PyG", 1e3 * slow, "ms")
    report.add(f"{name}: PyG / compiled", slow / fast, "", Aim("at least", FASTER))


def accuracy(trainings: list[Row]) -> tuple[float, float]:
    """The mean over seeds, and the standard deviation."""
    found = [each["accuracy"] for each in trainings]
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def epoch(trainings: list[Row]) -> float:
    """The seconds of an epoch, the median over seeds."""
    return statistics.median(each["epoch"] for each in trainings)


def apart(row: Row) -> float:
    """How far the loss curves of both sides are apart where both are known, relative to the first loss, at most over seeds."""
    pairs = zip(row["compiled"], row["PyG"], strict=False)  # these are of the first seeds
    return max(
        max(abs(one - other) for one, other in zip(ours["losses"], theirs["losses"], strict=False)) / abs(theirs["losses"][0])
        for ours, theirs in pairs
    )  # fmt: skip


def complete(rows: dict[str, Row], given: argparse.Namespace, title: str) -> Report:
    """All rows in order, and the figures that follow from them."""
    report = Report(title, given.quick, rows=[rows[name] for name in [*CASES, LINKS] if name in rows])
    for row in report.rows:
        if "compiled" in row:
            figures(row, report)
    return report


def page(report: Report) -> str:
    """The results as a page of Markdown."""
    held = machine()
    versions = held["versions"]
    lines = [
        "# Training with compiled relational layers", "",
        f"{held['processor']}, {held['cores']} cores, {report.title.split(', ', 1)[1]}, {held['system']}, Python {held['python']}, torch "
        f"{versions['torch']}, PyTorch Geometric {versions.get('torch-geometric', '?')} without pyg-lib. Published splits. One-hot RGAT's attention "
        "across or within relations, weight decay, dropout and the number of epochs were chosen by cross-validation among the training nodes "
        "(`benchmarks/relational_choice.py`). Accuracies in per cent, mean and standard deviation over seeds; PyG's where trainings ended within the "
        "time they get. Networks start from one-hot features, which have a row of weights for every node and relation, or from a learned embedding "
        "of every node. RGAT's published figures are of one-hot features, which PyG's layer would need as a dense matrix.", "",
        "| network | inputs | published | compiled | PyG | epochs: compiled | PyG | losses apart | ms an epoch: compiled | PyG | PyG / compiled |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for row in report.rows:
        if "compiled" in row:
            lines.append("| " + " | ".join(_cells(row)) + " |")
    sources = {f"{row['case'].split()[0]}: {row['published']['source']}" for row in report.rows if row.get("published")}
    missed = [f"{each.name} {each.value:.4g} ({each.aim})" for each in report.figures if each.met is False]
    lines += [
        "",
        "Losses apart: the largest difference of both curves, relative to the first loss. Published: "
        + "; ".join(sorted(sources))
        + ".",
    ]
    return "\n".join([*lines, "", f"Aims missed: {'; '.join(missed) or 'none'}."]) + "\n"


def _cells(row: Row) -> list[str]:
    ours, theirs = row["compiled"], row["PyG"]
    fast = 1e3 * epoch(ours)
    if row["case"] == LINKS:
        scores = ["", *(f"reciprocal rank {each[0]['rank']:.4f}" for each in (ours, theirs))]
    else:
        published = row["published"]
        scores = [f"{published['accuracy']:.2f} ± {published['spread']:.2f}" if published else "", _accuracy(ours)]
        ended = [each for each in theirs if each["accuracy"] is not None]
        scores.append(_accuracy(ended) if ended else "")
    cells = [row["case"], _inputs(row["case"]), *scores, str(len(ours[0]["losses"]))]
    if not theirs:
        return [*cells, "", "", f"{fast:,.1f}", "", ""]
    slow = 1e3 * epoch(theirs)
    lengths = sorted({len(each["losses"]) for each in theirs})
    ran = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else str(lengths[0])
    return [*cells, ran, f"{apart(row):.1e}", f"{fast:,.1f}", f"{slow:,.0f}", f"{slow / fast:.1f}"]


def _accuracy(trainings: list[Row]) -> str:
    mean, spread = accuracy(trainings)
    return f"{mean:.2f} ± {spread:.2f} ({len(trainings)})"


def main() -> int:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write a page of the results here")
    parser.add_argument("--seeds", type=int, default=0, help="0 for the usual number (0)")
    parser.add_argument("--epochs", type=int, default=0, help="0 for the usual number (0)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what PyG's side of a case may take, about (60)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what an epoch's time is (wall)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    title = f"relational training, {given.threads} threads, {given.clock} time"
    kept: dict[str, Row] = {}
    if given.json is not None and given.json.exists():
        stored = json.loads(given.json.read_text(encoding="utf-8"))
        if (stored["title"], stored["quick"]) == (title, given.quick):
            kept = {row["case"]: row for row in stored["rows"]}
    usual = QUICK if given.quick else [*CASES, LINKS]
    for name in usual if given.only is None else given.only:
        try:
            kept[name] = predict(given) if name == LINKS else classify(name, given)
        except suture.SutureError as error:
            print(f"{name}: {error}", file=sys.stderr)
            kept[name] = {"case": name, "left out": str(error)}
        if given.json is not None:
            complete(kept, given, title).store(given.json)
    report = complete(kept, given, title)
    if given.markdown is not None:
        given.markdown.write_text(page(report), encoding="utf-8")
    return report.finish(given.json)


if __name__ == "__main__":
    sys.exit(main())
