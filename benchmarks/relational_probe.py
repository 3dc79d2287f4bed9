"""One side of one case, in a process of its own: what it takes in memory and time, whether its numbers are right, and whether it runs at all.

`benchmarks/relational.py` calls this for every side; then `in_turn` times those that are fast together, in another process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from relational_apart import FAILED, Said, apart
from relational_cases import MODES, OURS, Bench, Side

from suture.frontends.messages.synthetic import Sizes, synthetic

TINY = Sizes((16,), 2, 64, 4, True, 0.5, 0.5, "none")
TOLERANCE = 5e-4
LONG = 4.0  # a first step of so many seconds is not repeated: its time counts
STEPS = 0.5  # seconds that a side's steps take once warm, at least one of them
TOGETHER = 0.4  # seconds: sides with shorter steps are timed in turn, others alone
PATIENCE = 1.5  # seconds that one side may take of the timing in turn


def resident(field: str = "VmRSS") -> float:
    """What the process has in memory, or had at most (VmHWM), in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """What is free goes back to the system, and the peak counts from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Memory:
    """Growth beyond a baseline: resident memory on the CPU, memory of the device on a GPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.start_over()
        self.baseline = self._now()

    def start_over(self) -> None:
        """The peak counts from here."""
        if self.device == "cpu":
            forget_peak()
        else:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """The peak since `start_over`, beyond the baseline, in megabytes."""
        if self.device == "cpu":
            return resident("VmHWM") - self.baseline
        torch.cuda.synchronize()
        return max(self._now(), torch.cuda.max_memory_reserved() / 2**20) - self.baseline

    def _now(self) -> float:
        if self.device == "cpu":
            return resident()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20


def clock_of(given: argparse.Namespace) -> Callable[[], float]:
    """Wall time, or the processor's; on a GPU once it is done."""
    if given.device == "cpu":
        return time.process_time if given.clock == "processor" else time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def probe(bench: Bench, name: str, given: argparse.Namespace, expected: Path | None = None) -> dict[str, Said]:
    """Run a side in a child process, inference first, then training.

    :param expected: the right numbers, as `store_expected` leaves them
    :returns: for each mode `status` "ran", "out of memory", "too slow" or "failed"; if it ran, `seconds` of a step, whether that is the first and
        only one, `peak` and `peak_first` in megabytes beyond the inputs, once warm and with all preparation, and `error` against what is expected;
        else `why`
    """
    said, failure = apart(
        lambda say: measure(bench.on(given.device), name, clock_of(given), expected, say),
        memory=given.memory if given.device == "cpu" else 0, seconds=given.seconds, threads=given.threads,
    )  # fmt: skip
    found = {each["mode"]: each for each in said}
    return {mode: found.get(mode) or dict(failure or {"status": FAILED, "why": "it said nothing"}) for mode in MODES}


def measure(
    bench: Bench, name: str, clock: Callable[[], float], expected: Path | None, say: Callable[[Said], None]
) -> None:
    """Warm up on a tiny graph, so that code is loaded; then the case itself."""
    small = Bench(replace(bench.case, width=max(bench.case.heads, 8)), synthetic(TINY), bench.device).side(name)
    small.infer()
    small.train()
    memory = Memory(bench.device)
    side = bench.side(name)
    if expected is not None:
        bench.expected = torch.load(expected, mmap=True, map_location=bench.device)
    for mode in MODES:
        step = side.step(mode)
        memory.start_over()
        start = clock()
        step()
        first = clock() - start
        found = {"mode": mode, "status": "ran", "seconds_first": first, "peak_first": memory.peak()}
        once = first > LONG and name != OURS  # ours compiles first
        memory.start_over()
        spent: list[float] = [first] if once else []
        while not once and sum(spent) < STEPS:
            start = clock()
            step()
            spent.append(max(clock() - start, 1e-9))
        found |= {"seconds": statistics.median(spent), "once": once}
        found["peak"] = found["peak_first"] if once else memory.peak()
        if expected is not None:
            found["error"] = bench.gradient_error(side) if mode == "training" else bench.check(side, gradients=False)
            if not found["error"] < TOLERANCE:
                found |= {"status": FAILED, "why": f"off by {found['error']:.1e}"}
        say(found)


def store_expected(bench: Bench, given: argparse.Namespace, path: Path) -> Said | None:
    """Write what the plain plan gives in float64; None, or why there is none."""

    def work(say: Callable[[Said], None]) -> None:
        made = bench.on(given.device)
        torch.save(tuple(each.cpu() for each in made.expected), path)

    memory = given.memory if given.device == "cpu" else 0
    return apart(work, memory=memory, seconds=given.seconds, threads=given.threads)[1]


def together(
    bench: Bench, names: Mapping[str, Sequence[str]], rounds: int, given: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Time the sides of each mode in turn, in one child process: the seconds of a step by mode and side."""

    def work(say: Callable[[Said], None]) -> None:
        made, clock = bench.on(given.device), clock_of(given)
        sides: dict[str, Side] = {name: made.side(name) for name in dict.fromkeys(itertools.chain(*names.values()))}
        pick = min if given.clock == "processor" else statistics.median
        for mode in MODES:
            seconds = in_turn({name: sides[name].step(mode) for name in names[mode]}, rounds, clock)
            say({"mode": mode, "seconds": {name: pick(found) for name, found in seconds.items() if found}})

    memory = given.memory if given.device == "cpu" else 0
    said, _ = apart(work, memory=memory, seconds=2 * given.seconds, threads=given.threads)
    return {each["mode"]: each["seconds"] for each in said}


def in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time all sides in turn; short ones several times a round, and those that took `PATIENCE` in all no more."""
    calls = {}
    for name, run in runs.items():
        run()
        start = clock()
        run()
        calls[name] = max(1, math.ceil(0.02 / max(clock() - start, 1e-6)))
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
