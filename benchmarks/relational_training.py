"""Training end to end: node classification on AIFB and MUTAG, link prediction on FB15k-237, with compiled layers and with PyTorch Geometric's.

    python benchmarks/relational_training.py [--quick] [--json FILE] [--only NAME ...] [--threads N] [--seeds N] [--epochs N] [--clock wall|processor]

Two layers of RGCN, RGAT and HGT with the published splits, several seeds, compiled; PyTorch Geometric's layers train from the same seeds, HGT's for a
few epochs only (its backward pass takes seconds). Data come from the folder in SUTURE_RELATIONAL_DATA, else from their sites.

Aims: the mean accuracy reaches the published one within the seeds' spread (theirs and ours); the losses of both sides agree; the loss of link
prediction falls in every epoch; an epoch takes at most a tenth of PyTorch Geometric's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import Aim, Report, options
from relational_cases import FOLDER

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "relational"))
import classify_nodes
import predict_links

import suture
from suture import relational

CASES = [f"{layer} {data}" for data in classify_nodes.DATA for layer in classify_nodes.LAYERS]
LINKS = "rgcn fb15k237"
QUICK = ("rgcn aifb", LINKS)
FEW = 3  # epochs, where the other side is slow
FASTER = 10.0
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
AGREE = 2e-3
SEEDS, QUICK_SEEDS, EPOCHS, LINK_EPOCHS = 5, 2, 0, 6


def deviation(ours: list[float], theirs: list[float]) -> float:
    """How far two loss curves are apart where both are known, relative to the first loss."""
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=False)) / abs(theirs[0])


def classify(name: str, given: argparse.Namespace, report: Report) -> None:
    """One network on one data set: accuracies over seeds, curves, time."""
    layer, data_name = name.split()
    data = relational.load(data_name, os.environ.get(FOLDER) or None)
    clock = CLOCKS[given.clock]
    seeds = given.seeds or (QUICK_SEEDS if given.quick else SEEDS)
    ours, theirs = [], []
    for seed in range(seeds):
        ours.append(classify_nodes.train(layer, data, seed, compiled=True, epochs=given.epochs, clock=clock))
        if layer != "hgt":
            theirs.append(classify_nodes.train(layer, data, seed, compiled=False, epochs=given.epochs, clock=clock))
    if layer == "hgt":
        theirs.append(classify_nodes.train(layer, data, 0, compiled=False, epochs=given.epochs or FEW, clock=clock))
    mean = statistics.fmean(each.accuracy for each in ours)
    spread = statistics.stdev(each.accuracy for each in ours) if len(ours) > 1 else 0.0
    published = classify_nodes.PUBLISHED.get((layer, data_name))
    reached = Aim("at least", round(published.accuracy - published.spread - spread, 2)) if published else None
    report.add(f"{name}: accuracy, compiled, mean of {len(ours)}", mean, "%", reached)
    report.add(f"{name}: accuracy, compiled, spread", spread, "%")
    if layer != "hgt":
        report.add(
            f"{name}: accuracy, PyG, mean of {len(theirs)}", statistics.fmean(each.accuracy for each in theirs), "%"
        )
    _curves(name, ours, theirs, report)
    report.rows.append({"case": name, "published": vars(published) if published else None, **_rows(ours, theirs)})


def predict(given: argparse.Namespace, report: Report) -> None:
    """Link prediction: losses that fall, and alike."""
    data = relational.load("fb15k237", os.environ.get(FOLDER) or None)
    epochs = given.epochs or (FEW if given.quick else LINK_EPOCHS)
    ours, theirs = (
        [predict_links.train(data, 0, compiled=compiled, epochs=epochs, clock=CLOCKS[given.clock])]
        for compiled in (True, False)
    )
    losses = ours[0].losses
    rises = sum(later >= sooner for sooner, later in itertools.pairwise(losses))
    report.add(f"{LINKS}: loss after {epochs} epochs / at first", losses[-1] / losses[0], "", Aim("at most", 0.999))
    report.add(f"{LINKS}: epochs in which the loss rose", rises, "", Aim("at most", 0))
    report.add(f"{LINKS}: reciprocal rank, compiled", ours[0].rank, "")
    report.add(f"{LINKS}: reciprocal rank, PyG", theirs[0].rank, "")
    _curves(LINKS, ours, theirs, report)
    report.rows.append({"case": LINKS, **_rows(ours, theirs)})


def _curves(name: str, ours: list[Any], theirs: list[Any], report: Report) -> None:
    apart = max(deviation(one.losses, other.losses) for one, other in zip(ours, theirs, strict=False))
    report.add(f"{name}: losses apart, relative to the first", apart, "", Aim("at most", AGREE))
    fast, slow = (statistics.median(each.epoch for each in side) for side in (ours, theirs))
    report.add(f"{name}: an epoch, compiled", 1e3 * fast, "ms")
    report.add(f"{name}: an epoch, PyG", 1e3 * slow, "ms")
    report.add(f"{name}: PyG / compiled", slow / fast, "", Aim("at least", FASTER))


def _rows(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    return {"compiled": [vars(each) for each in ours], "PyG": [vars(each) for each in theirs]}


def main() -> int:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=0, help="0 for the usual number (0)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="0 for the usual number (0)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="what an epoch's time is (wall)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    report = Report(f"relational training, {given.threads} threads, {given.clock} time", given.quick)
    for name in given.only or (QUICK if given.quick else [*CASES, LINKS]):
        try:
            predict(given, report) if name == LINKS else classify(name, given, report)
        except suture.SutureError as error:
            print(f"{name}: {error}", file=sys.stderr)
            report.rows.append({"case": name, "left out": str(error)})
    return report.finish(given.json)


if __name__ == "__main__":
    sys.exit(main())
