"""How the networks of `relational_training.py` are trained, chosen by cross-validation; the test nodes have no part in it.

    python benchmarks/relational_choice.py [--json FILE] [--markdown FILE] [--only NAME ...] [--threads N] [--quick]

The training nodes are cut into three parts. A network with each candidate's weight decay and dropout, and RGAT from one-hot features with
attention across and within relations, learns two of them and is evaluated on the third every ten epochs, from three seeds, one for each part. What
has the best mean accuracy is chosen, with its number of epochs, and the least mean loss among equals; `examples/relational/classify_nodes.py` holds
what was chosen (`SETTINGS`), and this says where it is not the same.

Layers are compiled. Cases that `--only` leaves out stay in FILE as they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from measure import Aim, Report, options
from relational_cases import FOLDER

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "relational"))
import classify_nodes
from classify_nodes import ACROSS, WITHIN, Settings

from suture import relational
from suture.relational import RelationalData

CASES = [f"{layer} {data}" for data in classify_nodes.DATA for layer in classify_nodes.LAYERS]
CANDIDATES = ((0.0, 0.0), (5e-4, 0.0), (5e-3, 0.0), (5e-4, 0.5))  # weight decay, dropout
PARTS, EVERY, EPOCHS = 3, 10, 50


def validate(
    layer: str, data: RelationalData, settings: Settings, parts: int = PARTS, epochs: int = EPOCHS
) -> list[dict[str, Any]]:
    """Cross-validate one candidate: for each number of epochs the mean accuracy on held-out training nodes, in per cent, and the mean loss."""
    assert data.task is not None
    nodes, labels = data.task.train_nodes, data.task.train_labels
    order = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(0))
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for part in range(parts):
        held = torch.zeros(len(nodes), dtype=torch.bool)
        held[order[part::parts]] = True
        model = classify_nodes.make(layer, data, part, settings, compiled=True)
        losses = classify_nodes.learn(model, nodes[~held], labels[~held], settings)
        for epoch, _ in zip(range(1, epochs + 1), losses, strict=False):
            if epoch % EVERY == 0:
                found[epoch].append(classify_nodes.evaluate(model, nodes[held], labels[held]))
    shared = {name: getattr(settings, name) for name in tried_of(layer)}
    return [
        shared | {"epochs": epoch, "accuracy": statistics.fmean(each[0] for each in all), "loss": statistics.fmean(each[1] for each in all)}
        for epoch, all in found.items()
    ]  # fmt: skip


def choose(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The best accuracy, the least loss among equals."""
    return max(tried, key=lambda each: (round(each["accuracy"], 6), -each["loss"]))


def tried_of(layer: str) -> tuple[str, ...]:
    """The settings that candidates of a layer differ in, but for the number of epochs."""
    return ("mechanism", "decay", "dropout") if layer == "rgat-onehot" else ("decay", "dropout")


def candidates(layer: str, settings: Settings, quick: bool) -> list[Settings]:
    """The settings that are tried."""
    mechanisms = (ACROSS, WITHIN) if "mechanism" in tried_of(layer) else (settings.mechanism,)
    rates = CANDIDATES[: 2 if quick else None]
    return [
        replace(settings, mechanism=mechanism, decay=decay, dropout=dropout)
        for mechanism, (decay, dropout) in itertools.product(mechanisms, rates)
    ]


def row(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One network on one data set: what was tried, what was chosen, what is set."""
    layer, data_name = name.split()
    data = relational.load(data_name, os.environ.get(FOLDER) or None)
    settings = classify_nodes.SETTINGS[layer, data_name]
    tried: list[dict[str, Any]] = []
    for candidate in candidates(layer, settings, given.quick):
        tried += validate(layer, data, candidate, epochs=EVERY if given.quick else EPOCHS)
        print(f"{name}: {candidate}; best so far {choose(tried)}", file=sys.stderr, flush=True)
    return {"case": name, "tried": tried, "chosen": choose(tried)}


def agrees(found: Mapping[str, Any]) -> bool:
    """Whether the settings that stand in the example are those that were chosen."""
    layer, data = found["case"].split()
    held = asdict(classify_nodes.SETTINGS[layer, data])
    return all(held[name] == found["chosen"][name] for name in (*tried_of(layer), "epochs"))


def page(rows: list[dict[str, Any]]) -> str:
    """The results as a page of Markdown."""
    lines = [
        "# How the classifiers of nodes are trained",
        "",
        "Mean accuracy on held-out training nodes (three parts, per cent) and mean loss.",
    ]
    for found in rows:
        names = tried_of(found["case"].split()[0])
        groups = [list(group) for _, group in itertools.groupby(found["tried"], operator.itemgetter(*names))]
        epochs = [f"{each['epochs']} epochs" for each in groups[0]]
        lines += ["", f"## {found['case']}", "", f"| {' | '.join([*names, *epochs])} |"]
        lines.append("|" + " ---: |" * len([*names, *epochs]))
        for group in groups:
            cells = [
                f"{each['accuracy']:.2f} ({each['loss']:.3f})" + (", chosen" if each == found["chosen"] else "")
                for each in group
            ]
            lines.append(f"| {' | '.join([*(_shown(group[0][name]) for name in names), *cells])} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def complete(rows: Mapping[str, dict[str, Any]], quick: bool) -> Report:
    """All rows in order, and the figures that follow from them."""
    report = Report("settings of relational training, by cross-validation", quick)
    report.rows = [rows[name] for name in CASES if name in rows]
    for found in report.rows:
        report.add(f"{found['case']}: accuracy of what was chosen", found["chosen"]["accuracy"], "%")
        if not quick:
            if not agrees(found):
                print(
                    f"{found['case']}: SETTINGS in examples/relational/classify_nodes.py differ: {found['chosen']}",
                    file=sys.stderr,
                )
            report.add(f"{found['case']}: is what the example has", float(agrees(found)), "", Aim("at least", 1))
    return report


def main() -> int:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write a page of the results here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    kept: dict[str, dict[str, Any]] = {}
    if given.json is not None and given.json.exists():
        stored = json.loads(given.json.read_text(encoding="utf-8"))
        if stored["quick"] == given.quick:
            kept = {each["case"]: each for each in stored["rows"]}
    for name in CASES if given.only is None else given.only:
        kept[name] = row(name, given)
        if given.json is not None:
            complete(kept, given.quick).store(given.json)
    report = complete(kept, given.quick)
    if given.markdown is not None:
        given.markdown.write_text(page(report.rows), encoding="utf-8")
    return report.finish(given.json)


if __name__ == "__main__":
    sys.exit(main())
