"""One side of one case, in a process of its own: what it takes in memory and time, whether its numbers are right, and whether it runs at all.

`benchmarks/relational.py` calls this for every side; then `in_turn` times those that are fast together, in another process.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from relational_apart import FAILED, Children, Said, apart
from relational_cases import MODES, OURS, Bench

from suture.frontends.messages.synthetic import Sizes, synthetic

TINY = Sizes((16,), 2, 64, 4, True, 0.5, 0.5, "none")
TOLERANCE = 5e-4
LONG = 4.0  # a first step of so many seconds is not repeated: its time counts
STEPS = 0.5  # seconds that a side's steps take once warm, at least one of them
TOGETHER = 0.4  # seconds: sides with shorter steps are timed in turn, others alone
TURN = 0.04  # seconds that a side's steps take in its turn, at least one of them
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

    def leave_out(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let tensors that were made since belong to the baseline."""
        self.baseline += sum(each.nbytes for each in tensors) / 2**20

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
    memory.leave_out([*side.inputs, *side.parameters])
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
    """Time the sides of each mode in turn, each in a process of its own: the seconds of a step by mode and side.

    In one process they would share a heap: what one frees goes back to the system, and the next pays for the pages again, which alone it would not.
    """
    pick = min if given.clock == "processor" else statistics.median
    found: dict[str, dict[str, float]] = {}
    with Children(memory=given.memory if given.device == "cpu" else 0, threads=given.threads) as children:
        for name in dict.fromkeys(itertools.chain(*names.values())):
            children.start(name, functools.partial(timing, bench, name, given))
        for mode in MODES:
            asks = {name: functools.partial(children.ask, name, mode, given.seconds) for name in names[mode]}
            found[mode] = {name: pick(seconds) for name, seconds in in_turn(asks, rounds).items() if seconds}
    return found


def timing(bench: Bench, name: str, given: argparse.Namespace) -> Callable[[str], Said]:
    """In a child: times some steps of a side each time it is asked for a mode, short steps several times.

    The first step of a turn is not counted, unless steps are long: another process has had the caches in between.
    """
    side, clock = bench.on(given.device).side(name), clock_of(given)
    calls: dict[str, int] = {}

    def timed(run: Callable[[], object], count: int) -> float:
        gc.collect()
        start = clock()
        for _ in range(count):
            run()
        return max(clock() - start, 1e-9)

    def answer(mode: str) -> Said:
        run = side.step(mode)
        if mode not in calls:
            run()
            calls[mode] = max(1, math.ceil(TURN / timed(run, 1)))
        if calls[mode] > 1:
            run()
        spent = timed(run, calls[mode])
        return {"seconds": spent / calls[mode], "spent": spent}

    return answer


def in_turn(asks: Mapping[str, Callable[[], Said | None]], rounds: int) -> dict[str, list[float]]:
    """Ask all sides in turn, and those that took `PATIENCE` in all no more, nor those that gave no answer: the seconds of their steps."""
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    spent = dict.fromkeys(asks, 0.0)
    for _ in range(rounds):
        for name, ask in asks.items():
            if spent[name] <= PATIENCE and (said := ask()) is not None:
                seconds[name].append(said["seconds"])
                spent[name] += said["spent"]
    return seconds
