"""What leaves as ONNX, against every exporter-and-optimiser chain in the same process.

    python benchmarks/onnx_peer.py [--quick] [--json FILE] [--only NAME ...] [--threads N ...]

For each model every chain writes a file; each file is checked (ONNX's checker with strict shape inference), loaded in ONNX Runtime, compared
with the module in float64, and timed: all files in turn, round by round, on one thread and on two, medians. Suture's file is timed twice
a round, as two sessions: by how much these two differ is the noise of the run. Aims: not slower than the fastest valid file of a peer beyond
that noise; every file valid; vit_tiny in 140 nodes or fewer; the classes that rewrite themselves (timm's) beaten on their own ground.

With --quick, two models, two or three chains, few rounds.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from measure import Aim, Report, arguments
from onnx_cases import CASES, Case
from onnx_chains import Chain, Exports, chains, silence
from torch import Tensor

import suture

QUICK = ("mobilenetv3", "vit_tiny")
VIT_NODES = 140
EQUAL = 2e-5  # of the largest output: float32 sums in another order
ROUNDS, QUICK_ROUNDS = 30, 6
TUNING = 20.0  # seconds of measuring variants, for each number of threads
OURS = "suture"
OPSET = 23  # of the tuned file: the highest, for the most to choose from


@dataclass
class File:
    """One chain's file: what it is, whether it is right, how fast it runs."""

    chain: str
    seconds_to_make: float
    nodes: int = 0
    bytes: int = 0
    error: float = float("inf")
    problem: str = ""
    milliseconds: dict[int, float] | None = None

    @property
    def valid(self) -> bool:
        return not self.problem


def suture_files(case: Case, inputs: Tensor, threads: tuple[int, ...]) -> dict[str, Callable[[Path], None]]:
    """Suture's own ways out: plain ONNX operators, and tuned for ONNX Runtime on this machine, for each number of threads."""

    def graph() -> Any:
        return suture.passes.reparam(suture.trace(case.module(), (inputs,)))

    def portable(path: Path) -> None:
        suture.export_onnx(graph(), path, profile="portable", optimise=True)

    def tuned(count: int) -> Callable[[Path], None]:
        return lambda path: (
            suture.tune(graph(), (inputs,), threads=count, opset=OPSET, budget=TUNING, cached=False).export(path)
            and None
        )

    return {f"{OURS} portable": portable, **{_tuned(count): tuned(count) for count in threads}}


def _tuned(threads: int) -> str:
    """What the file is called that was tuned for so many threads."""
    return OURS if threads == 1 else f"{OURS}, {threads} threads"


def make(name: str, write: Callable[[Path], None], path: Path) -> File:
    start = time.perf_counter()
    try:
        with silence(), contextlib.chdir(path.parent):  # some of the tools leave files where they run
            write(path)
    except Exception as error:
        return File(name, time.perf_counter() - start, problem=f"no file: {_line(error)}")
    return File(name, time.perf_counter() - start)


def inspect(file: File, path: Path, inputs: Tensor, expected: Tensor) -> None:
    """Count, check, and compare with what the module computes."""
    model = onnx.load(str(path))
    file.nodes = sum(node.op_type != "Constant" for node in model.graph.node)
    file.bytes = path.stat().st_size
    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = _session(path, 1)
        (received, *_) = session.run(None, _feeds(session, inputs))
    except Exception as error:
        file.problem = _line(error)
        return
    scale = float(expected.abs().max()) or 1.0
    file.error = float(np.abs(received - expected.numpy()).max()) / scale
    if not file.error <= EQUAL:
        file.problem = f"off by {file.error:.1g}"


def clock(files: dict[str, Path], inputs: Tensor, threads: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every file in turn; the order turns too."""
    sessions = {name: _session(path, threads) for name, path in files.items()}
    feeds = {name: _feeds(session, inputs) for name, session in sessions.items()}
    spent: dict[str, list[float]] = {name: [] for name in files}
    names = list(files)
    for turn in range(rounds + 2):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            sessions[name].run(None, feeds[name])
            if turn >= 2:
                spent[name].append((time.perf_counter() - start) * 1e3)
    return spent


def _session(path: Path, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _feeds(session: Any, inputs: Tensor) -> dict[str, Any]:
    return {session.get_inputs()[0].name: inputs.numpy()}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def measure(case: Case, report: Report, threads: tuple[int, ...], *, quick: bool) -> None:
    inputs = case.inputs()
    with torch.no_grad():  # in float64: the module's own rounding in float32 can be as far off as any file's
        expected = case.module().double()(inputs.double() if inputs.is_floating_point() else inputs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exports = Exports(case, inputs, folder)
        writers: dict[str, Callable[[Path], None]] = {
            chain: _bound(function, exports) for chain, function in chains(case, quick=quick).items()
        }
        writers |= suture_files(case, inputs, threads)
        files: list[File] = []
        paths: dict[str, Path] = {}
        for position, (chain, write) in enumerate(writers.items()):
            path = folder / f"file{position}.onnx"
            file = make(chain, write, path)
            if file.valid:
                inspect(file, path, inputs, expected)
            if file.valid:
                paths[chain] = path
            files.append(file)
            gc.collect()
        for count in threads:
            _time(case, report, files, paths, inputs, count, QUICK_ROUNDS if quick else ROUNDS)
    _judge(case, report, files)


def _bound(chain: Chain, exports: Exports) -> Callable[[Path], None]:
    return lambda path: chain(exports, path)


def _time(
    case: Case, report: Report, files: list[File], paths: dict[str, Path], inputs: Tensor, threads: int, rounds: int
) -> None:
    """Time the valid files on so many threads and hold Suture's to the best of the peers'."""
    own, twin = _tuned(threads), f"{OURS} (again)"
    others = {name for name in paths if name.startswith(f"{OURS},") or name == OURS} - {own}
    timed = {name: path for name, path in paths.items() if name not in others}
    timed |= {twin: paths[own]} if own in paths else {}
    spent = clock(timed, inputs, threads, rounds)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    for file in files:
        if file.chain in medians:
            file.milliseconds = (file.milliseconds or {}) | {threads: medians[file.chain]}
    peers = {name: value for name, value in medians.items() if not name.startswith(OURS)}
    if own not in medians or not peers:
        return
    best = min(peers, key=lambda name: peers[name])
    noise = statistics.quantiles([abs(a / b - 1) for a, b in zip(spent[own], spent[twin], strict=True)], n=4)[2]
    ours = min(medians[own], medians[twin])
    # round by round, so that what slows the machine down slows both
    ratio = statistics.median(a / b for a, b in zip(spent[own], spent[best], strict=True))
    report.add(f"{case.name}, {threads} threads: ours", ours, "ms")
    report.add(f"{case.name}, {threads} threads: best peer ({best})", peers[best], "ms")
    report.add(f"{case.name}, {threads} threads: ours / best peer", ratio, "", Aim("at most", round(1 + noise, 3)))
    if "own classes + export" in peers:
        ratio = statistics.median(a / b for a, b in zip(spent[own], spent["own classes + export"], strict=True))
        report.add(
            f"{case.name}, {threads} threads: ours / its own classes", ratio, "", Aim("at most", round(1 + noise, 3))
        )


def _judge(case: Case, report: Report, files: list[File]) -> None:
    for file in files:
        report.rows.append({"model": case.name, **asdict(file)})
    valid = [file for file in files if file.valid and not file.chain.startswith(OURS)]
    for file in files:
        if not file.chain.startswith(OURS):
            continue
        report.add(f"{case.name}: {file.chain} is valid and equal", float(file.valid), "", Aim("at least", 1))
        if not file.valid:
            continue
        limit = VIT_NODES if case.name == "vit_tiny" and file.chain == OURS else None
        report.add(f"{case.name}: {file.chain}, nodes", file.nodes, "", Aim("at most", limit) if limit else None)
        report.add(f"{case.name}: {file.chain}, error", file.error, "", Aim("at most", EQUAL))
    if valid:
        report.add(f"{case.name}: fewest nodes of a peer", min(file.nodes for file in valid), "")
        ours = next((file for file in files if file.chain == OURS and file.valid), None)
        smallest = min(file.bytes for file in valid)
        if ours is not None:
            report.add(f"{case.name}: file, ours / smallest peer", ours.bytes / smallest, "", Aim("at most", 1.02))


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "chain", "nodes", "MB", "error", "1 thread, ms", "2 threads, ms", "made in, s", "problem")
    for row in rows:
        times = row["milliseconds"] or {}
        shown = [f"{times[count]:.2f}" if count in times else "" for count in (1, 2)]
        error = f"{row['error']:.1e}" if row["error"] != float("inf") else ""
        table.add_row(
            row["model"], row["chain"], str(row["nodes"]), f"{row['bytes'] / 1e6:.1f}", error, *shown, f"{row['seconds_to_make']:.1f}", row["problem"]
        )  # fmt: skip
    Console(width=180).print(table)


def main() -> int:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    report = Report("ONNX out of Suture, beside the exporters and optimisers", options.quick)
    chosen = options.only or (QUICK if options.quick else [case.name for case in CASES])
    threads = (1,) if options.quick else (1, 2)
    for case in CASES:
        if case.name in chosen:
            measure(case, report, threads, quick=options.quick)
            gc.collect()
    _print(report.rows)
    return report.finish(options.json)


if __name__ == "__main__":
    raise SystemExit(main())
