"""Structured pruning at 50 %, against Torch-Pruning 1.6.1 in the same process.

    python benchmarks/prune_peer.py [--quick] [--json FILE] [--only NAME ...] [--threads N]

Timed on Suture's side: trace, axes, plan and apply, from a module to a pruned graph, no hint given. On the peer's: its
dependency graph and one step, without hints (auto) and with what its examples tell it by hand (assisted). All three
start from the same module and run in turn, on one thread unless --threads says otherwise; medians. The aim compares
with the faster of the peer's two.

With --quick, one convolutional network and one transformer, one round each.

Exactness is the zero-then-cut check in float64: zero every removed element in a copy of the original and compare with
the pruned model. Suture says which of its cuts are exact: those are checked on their own and have to agree to 1e-10.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch_pruning_side as peer
from measure import Aim, Report, arguments, interleaved, median
from prune_cases import CASES, Case
from torch import Tensor, nn
from zoo import randomise

import suture

EXACT = 1e-10
QUICK = ("resnet50", "vit_tiny")  # one of each kind, within a minute


def suture_side(module: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """Trace, then prune: the seconds of both."""
    start = time.perf_counter()
    graph = suture.trace(module, (inputs,))
    traced = time.perf_counter()
    suture.passes.prune(graph, keep=0.5, check=False)
    return traced - start, time.perf_counter() - traced


def suture_findings(case: Case, inputs: Tensor) -> dict[str, Any]:
    """Count, run and check in float64 what Suture prunes."""
    from suture.passes.proof import zero_then_cut
    from suture.passes.prune import plan_prune

    module = randomise(case.module()).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    graph = suture.trace(module, (inputs,))
    pruned = suture.passes.prune(graph, keep=0.5, check=False)
    found: dict[str, Any] = {"parameters": pruned.stats().parameters, "of": graph.stats().parameters}
    with torch.no_grad():
        suture.to_torch(pruned)(inputs)
    found["forward"] = "runs"
    plan = plan_prune(graph, keep=0.5)
    found["cuts"] = len(plan.cuts)
    found["approximate"] = sum(cut.verdict.startswith("approximate") for cut in plan.cuts)
    found["deviation"] = zero_then_cut(graph, plan, [inputs]).all_zeroed
    exact = plan_prune(graph, keep=0.5, inexact="leave")
    proof = zero_then_cut(graph, exact, [inputs])
    found["deviation of cuts called exact"] = max(proof.all_zeroed, proof.writers_zeroed)
    found["cuts called exact"] = len(exact.cuts)
    return found


def peer_findings(case: Case, inputs: Tensor, assisted: bool) -> dict[str, Any]:
    """Count, run and check in float64 what the peer prunes."""
    original = randomise(case.module()).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    pruned = peer.prune(case, original, inputs, assisted, track=True)
    found: dict[str, Any] = {"forward": peer.forward(pruned, inputs), "deviation": math.nan}
    if pruned.module is not None:
        found["parameters"] = sum(parameter.numel() for parameter in pruned.module.parameters())
    if found["forward"] == "runs":
        found["deviation"] = peer.exactness(original, pruned, inputs)
    return found


def run_case(case: Case, report: Report, rounds: int) -> None:
    """Measure one architecture, add its figures and its row."""
    module, inputs = case.module(), case.inputs()
    after_tracing: list[float] = []

    def whole() -> float:
        traced, pruned = suture_side(module, inputs)
        after_tracing.append(pruned)
        return traced + pruned

    seconds = interleaved(
        {
            "suture": whole,
            "peer, auto": lambda: peer.prune(case, module, inputs, assisted=False).seconds,
            "peer, assisted": lambda: peer.prune(case, module, inputs, assisted=True).seconds,
        },
        rounds,
    )
    medians = {name: median(taken) for name, taken in seconds.items()}
    ours = suture_findings(case, inputs)
    theirs = {
        name: peer_findings(case, inputs, assisted=name == "peer, assisted") for name in medians if "peer" in name
    }
    seconds["suture, once traced"] = after_tracing[-rounds:]
    medians["suture, once traced"] = median(seconds["suture, once traced"])
    report.rows.append({"case": case.name, "seconds": seconds, "suture": ours, "peer": theirs})
    for name, taken in medians.items():
        report.add(f"{case.name}: {name}", taken, "s")
    fastest = min(taken for name, taken in medians.items() if "peer" in name)
    report.add(
        f"{case.name}: times faster, tracing included", fastest / medians["suture"], "x", Aim("at least", case.faster)
    )
    report.add(f"{case.name}: times faster, once traced", fastest / medians["suture, once traced"], "x")
    report.add(
        f"{case.name}: deviation of cuts called exact",
        ours["deviation of cuts called exact"],
        "",
        Aim("at most", EXACT),
    )


def markdown(report: Report) -> str:
    """Lay the rows out as a table for people."""
    lines = [
        "| model | tool | seconds | parameters left | forward | zero-then-cut, relative | said so |",
        "| --- | --- | ---: | ---: | --- | ---: | --- |",
    ]
    for row in report.rows:
        ours = row["suture"]
        said = f"{ours['approximate']} of {ours['cuts']} cuts approximate" if ours["approximate"] else "all cuts exact"
        sides = [("suture", ours, said)] + [(name, found, "nothing said") for name, found in row["peer"].items()]
        for name, found, said_so in sides:
            left = f"{found['parameters']:,}" if "parameters" in found else ""
            off = "" if math.isnan(found["deviation"]) else f"{found['deviation']:.0e}"
            taken = f"{median(row['seconds'][name]):.2f}"
            if name == "suture":
                taken += f" (trace {median(row['seconds'][name]) - median(row['seconds']['suture, once traced']):.2f})"
            cells = (row["case"], name, taken, left, found["forward"], off, said_so)
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Cuts that Suture calls exact, made on their own:", ""]
    lines += ["| model | cuts | zero-then-cut, relative |", "| --- | ---: | ---: |"]
    for row in report.rows:
        ours = row["suture"]
        lines.append(f"| {row['case']} | {ours['cuts called exact']} | {ours['deviation of cuts called exact']:.0e} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    options = arguments(__doc__ or "")
    # The work is Python's; threads that wait for busy cores add noise to both sides, so one is the default.
    torch.set_num_threads(options.threads)
    report = Report("pruning at 50 %, against Torch-Pruning 1.6.1", options.quick)
    for name in options.only or (QUICK if options.quick else CASES):
        run_case(copy.copy(CASES[name]), report, rounds=1 if options.quick else 3)
        print(f"{name} done", file=sys.stderr)
    code = report.finish(options.json)
    table = markdown(report)
    print(table)
    if options.json is not None:
        Path(options.json).with_suffix(".md").write_text(table, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
