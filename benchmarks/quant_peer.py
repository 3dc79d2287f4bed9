"""8-bit integers after training, beside ONNX Runtime's own quantiser: accuracy, latency, and what really ran in integers.

    python benchmarks/quant_peer.py [--quick] [--json FILE] [--only NAME ...] [--threads N]

Every case starts from one float network, Suture's own export of it; ONNX Runtime's side is prepared by `quant_pre_process`, and both sides see the
same calibration data. Suture quantises with its defaults; ONNX Runtime's `quantize_static` with its defaults, and with a sweep of settings:
formats, types, per channel or not, which operators, how ranges are chosen. Its best of all at each figure is what the aims ask for.

Digits: the share of 600 held-out images that are right, and of those that get the float network's class, means over three trained networks.
There the best of a sweep lies above the float network by a few images, by chance: so Suture's is the best of a sweep as well. The speed asked for
is that of the peer's fastest setting, by a setting of Suture's that is no worse than the peer's best in any figure of quality. Sentences: the
cosine of the embeddings with those of the float model, and the rank correlation of the similarities of pairs. Images: the cosine of the scores
(the weights are random).
Latency is CPU time on one thread (--threads), files in turn, round by round, the median; Suture's file is timed twice a round, and by how much
the two differ is the noise of the run.

With --quick, two of the cases, three settings of the peer, one seed, few rounds.
Without it, what the low-bit quantisers keep follows at the end (low_bit_cases.py).
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import Aim, Report, arguments, interleaved
from quant_cases import CASES, Case, Feed
from quant_peer_settings import writers
from torch import Tensor

import suture
from suture.backends.ort_report import quantisation_report

OURS, AGAIN, FLOATS = "suture", "suture (again)", "floats"
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "bias correction": {"correct_bias": True},
    "percentile": {"observer": "percentile"},
    "mse": {"observer": "mse"},
    "entropy": {"observer": "entropy"},
    "mse, weights searched": {"observer": "mse", "search_weights": True},
    "weights searched": {"search_weights": True},
    "per tensor": {"per_channel": False},
    "mse, bias correction": {"observer": "mse", "correct_bias": True},
    "entropy, weights searched": {"observer": "entropy", "search_weights": True},
}
"""Suture's own sweep, as long as the peer's, where its best is chosen by the same images; elsewhere the defaults, and one scale a weight."""
ROUNDS, QUICK_ROUNDS = 25, 5
QUICK = ("digits cnn", "vit_tiny_patch16_224")


@dataclass
class Side:
    """What one way of quantising came to: figures of quality, and milliseconds."""

    quality: dict[str, list[float]] = field(default_factory=dict)
    milliseconds: float = float("nan")
    bytes: int = 0
    problem: str = ""

    def mean(self, name: str) -> float:
        return statistics.fmean(self.quality[name]) if name in self.quality else float("nan")


def session(path: Path, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(path: Path, threads: int) -> Callable[[Feed], Tensor]:
    opened = session(path, threads)

    def run(feed: Feed) -> Tensor:
        arrays = {item.name: feed[item.name].numpy() for item in opened.get_inputs()}
        return torch.from_numpy(opened.run(None, arrays)[0])

    return run


def files(case: Case, seed: int, folder: Path, *, quick: bool) -> dict[str, Path | str]:
    """The files of every way to quantise, or why there is none."""
    graph = case.make(seed)
    data = {value.name: tensor for value, tensor in zip(graph.inputs, case.calibration().values(), strict=True)}
    source = folder / "floats.onnx"
    suture.export_onnx(graph, source)
    found: dict[str, Path | str] = {FLOATS: source}
    start = time.perf_counter()
    quantised = suture.passes.quantise(graph, data=data, check=False)
    suture.export_onnx(quantised, folder / "suture.onnx")
    print(
        f"{case.name}: quantised in {time.perf_counter() - start:.1f} s: {quantised.history[-1].notes[-1]}",
        file=sys.stderr,
    )
    found[OURS] = folder / "suture.onnx"
    swept = SETTINGS if case.name.startswith("digits") else {"per tensor": SETTINGS["per tensor"]}
    for position, (name, options) in enumerate(swept.items() if not quick else ()):
        path = folder / f"suture{position}.onnx"
        suture.export_onnx(suture.passes.quantise(graph, data=data, check=False, **options), path)
        found[f"{OURS}, {name}"] = path
    dynamic = not isinstance(graph.inputs[0].shape[0], int)
    for position, (name, write) in enumerate(
        writers(source, data, case.observers, batch=32 if dynamic else 1, quick=quick).items()
    ):
        path = folder / f"peer{position}.onnx"
        try:
            write(path)
            session(path, 1)
            found[name] = path
        except Exception as error:
            found[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return found


def clock(paths: Mapping[str, Path], feed: Feed, threads: int, rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of every file, in turn."""

    def timed(run: Callable[[Feed], Tensor]) -> Callable[[], float]:
        def once() -> float:
            start = time.process_time()
            run(feed)
            return (time.process_time() - start) * 1e3

        return once

    return interleaved({name: timed(runner(path, threads)) for name, path in paths.items()}, rounds, warmup=2)


def measure(case: Case, report: Report, threads: int, *, quick: bool) -> None:
    """Quantise one case in every way and hold Suture's against the best of the peer's."""
    sides: dict[str, Side] = {}
    seeds = case.seeds[:1] if quick else case.seeds
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            made = files(case, seed, Path(name), quick=quick)
            floats = runner(Path(name) / "floats.onnx", threads)
            for side, path in made.items():
                entry = sides.setdefault(side, Side())
                if isinstance(path, str):
                    entry.problem = path
                    continue
                entry.bytes = path.stat().st_size
                for key, value in case.quality(runner(path, threads), floats).items():
                    entry.quality.setdefault(key, []).append(value)
            if seed == seeds[-1]:
                _time(case, report, sides, made, threads, QUICK_ROUNDS if quick else ROUNDS)
                ran = quantisation_report(Path(name) / "suture.onnx", case.inputs())
                print(f"{case.name}\n{ran}", file=sys.stderr)
                report.add(f"{case.name}: MACs that ran in integers", 100 * ran.integer_share, "%")
    for side, entry in sides.items():
        row = {
            "case": case.name,
            "side": side,
            "bytes": entry.bytes,
            "ms": entry.milliseconds,
            "problem": entry.problem,
        }
        report.rows.append(row | {key: entry.mean(key) for key in entry.quality})
    _judge(case, report, sides)


def _time(
    case: Case, report: Report, sides: dict[str, Side], made: Mapping[str, Path | str], threads: int, rounds: int
) -> None:
    paths = {name: path for name, path in made.items() if isinstance(path, Path)}
    spent = clock(paths | {AGAIN: paths[OURS]}, case.inputs(), threads, rounds)
    for name in paths:
        sides[name].milliseconds = statistics.median(spent[name])
    peers = [name for name in paths if not name.startswith((OURS, FLOATS))]
    if not peers:
        return
    best = min(peers, key=lambda name: sides[name].milliseconds)
    own = min(
        (name for name in paths if name.startswith(OURS) and (name == OURS or _as_good(sides[name], sides, peers))),
        key=lambda name: sides[name].milliseconds,
    )
    noise = statistics.quantiles([abs(a / b - 1) for a, b in zip(spent[OURS], spent[AGAIN], strict=True)], n=4)[2]
    ratio = statistics.median(a / b for a, b in zip(spent[own], spent[best], strict=True))
    report.add(f"{case.name}: floats", sides[FLOATS].milliseconds, "ms")
    report.add(f"{case.name}: best peer ({best})", sides[best].milliseconds, "ms")
    report.add(f"{case.name}: ours", sides[OURS].milliseconds, "ms")
    aim = Aim("at most", round(1 + noise, 3)) if case.timed else None
    if own != OURS:
        report.add(f"{case.name}: our fastest ({own})", sides[own].milliseconds, "ms")
    report.add(f"{case.name}: our fastest / best peer", ratio, "", aim)


def _as_good(side: Side, sides: Mapping[str, Side], peers: Sequence[str]) -> bool:
    """Whether a setting is no worse than the best of the peer's in any figure of quality."""
    return all(side.mean(key) >= max(sides[name].mean(key) for name in peers) for key in side.quality)


def _judge(case: Case, report: Report, sides: Mapping[str, Side]) -> None:
    """The figures of quality: the floats', the peer's defaults, its best, ours."""
    peers = {name: side for name, side in sides.items() if not name.startswith((OURS, FLOATS)) and side.quality}
    own = {name: side for name, side in sides.items() if name.startswith(OURS) and side.quality}
    for key in sides[FLOATS].quality:
        best = max(peers, key=lambda name: peers[name].mean(key))
        wanted = peers[best].mean(key)
        if key == "accuracy":
            report.add(f"{case.name}: {key}, floats", sides[FLOATS].mean(key), "%")
        unit = "%" if key.startswith(("accuracy", "agreement")) else ""
        if "defaults" in peers:
            report.add(f"{case.name}: {key}, peer's defaults", peers["defaults"].mean(key), unit)
        report.add(f"{case.name}: {key}, best peer ({best})", peers[best].mean(key), unit)
        aim = Aim("at least", _floor(wanted))
        report.add(
            f"{case.name}: {key}, ours",
            sides[OURS].mean(key),
            unit,
            None if case.name.startswith("digits") and len(own) > 1 else aim,
        )
        if len(own) > 1 and case.name.startswith("digits"):
            chosen = max(own, key=lambda name: own[name].mean(key))
            report.add(f"{case.name}: {key}, our best ({chosen})", own[chosen].mean(key), unit, aim)


def _floor(value: float) -> float:
    """Six digits, rounded down: as an aim is printed."""
    return math.floor(value * 1e6) / 1e6


def main() -> int:
    chosen = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(chosen.threads)
    report = Report("8-bit integers after training, beside ONNX Runtime's quantize_static", chosen.quick)
    names = chosen.only or (QUICK if chosen.quick else tuple(CASES))
    for name in names:
        if name in CASES:
            measure(CASES[name](), report, chosen.threads, quick=chosen.quick)
    try:
        from low_bit_cases import low_bit_figures
    except ModuleNotFoundError:
        pass
    else:
        if (chosen.only is None and not chosen.quick) or "low bits" in (chosen.only or ()):
            low_bit_figures(report, chosen.quick)
    return report.finish(chosen.json)


if __name__ == "__main__":
    sys.exit(main())
