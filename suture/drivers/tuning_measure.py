"""Measuring one file against another on the host's ONNX Runtime: in turns, so that what disturbs one disturbs both."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from suture.backends.onnxruntime import OnnxModel
from suture.passes.contract import deviation

_BATCH, _BATCHES = 7, 3  # rounds before it is asked whether the difference is clear, and how often that is asked
_SHORTEST = 2e-3  # seconds that one sample must take, lest the clock's grain matter
_LEAST = 0.01  # share of the time below which a difference is none
_SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Timing:
    """One file against the one that it would replace, in milliseconds a run.

    :param gain: the median of the differences, round by round; positive where the new file is faster
    :param noise: below which a difference is none
    """

    before: float
    after: float
    gain: float
    noise: float

    @property
    def faster(self) -> bool:
        """Whether the new file is faster beyond the noise."""
        return self.gain > self.noise

    @property
    def slower(self) -> bool:
        """Whether the new file is slower beyond the noise."""
        return -self.gain > self.noise


class Candidate:
    """A file, loaded: its structure, its size in nodes, and its runs."""

    def __init__(self, path: Path, inputs: Sequence[torch.Tensor], threads: int) -> None:
        import onnx

        self._model = OnnxModel(path, threads=threads)
        self._inputs = list(inputs)
        self._clock = time.process_time if threads == 1 else time.perf_counter
        nodes = onnx.load(str(path), load_external_data=False).graph.node
        self.nodes = len(nodes)
        self.digest = hashlib.sha256(b"".join(node.SerializeToString() for node in nodes)).hexdigest()

    def results(self) -> list[torch.Tensor]:
        """What it computes from the probes."""
        return self._model.run(self._inputs)

    def deviation_from(self, expected: Sequence[torch.Tensor]) -> float:
        """How far its results are from others, at worst; infinite where it gives no numbers."""
        worst = max((deviation(a, b) for a, b in zip(expected, self.results(), strict=True)), default=0.0)
        return worst if worst == worst else float("inf")

    def sample(self, repeats: int) -> float:
        """Milliseconds a run, over some runs: the processor's time where one thread computes, else the clock's."""
        start = self._clock()
        for _ in range(repeats):
            self._model.run(self._inputs)
        return (self._clock() - start) / repeats * 1e3


def compare_times(before: Candidate, after: Candidate) -> Timing:
    """Run two files in turns until one is clearly faster, or it is clear that none is."""
    for candidate in (before, after):
        candidate.sample(1)
    repeats = max(1, round(_SHORTEST / max(before.sample(1) / 1e3, 1e-6)))
    rows: list[tuple[float, float]] = []
    timing = Timing(0.0, 0.0, 0.0, 0.0)
    for _ in range(_BATCHES):
        for k in range(_BATCH):
            first, second = (before, after) if k % 2 else (after, before)
            a, b = first.sample(repeats), second.sample(repeats)
            rows.append((a, b) if k % 2 else (b, a))
        timing = _summary(rows)
        if abs(timing.gain) > 2 * timing.noise or abs(timing.gain) < 0.25 * timing.noise:
            break
    return timing


def _summary(rows: Sequence[tuple[float, float]]) -> Timing:
    gains = [a - b for a, b in rows]
    gain, before = statistics.median(gains), statistics.median(a for a, _ in rows)
    deviation_of_median = 1.4826 * statistics.median(abs(g - gain) for g in gains) * 1.2533 / len(gains) ** 0.5
    noise = max(_LEAST * before, _SURE * deviation_of_median)
    return Timing(before, statistics.median(b for _, b in rows), gain, noise)
