"""One side of one case in a process of its own: what it takes in memory and time, and whether it runs at all.

    python benchmarks/relational_probe.py CASE SIDE [--device cpu|cuda] [--memory GB] [--threads N] [--train]

`benchmarks/relational.py` starts this; CASE is the JSON of a case. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

OUT_OF_MEMORY, TOO_SLOW, FAILED = "out of memory", "too slow", "failed"
_SAYS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate memory")


def probe(
    case: Any, side: str, *, device: str, memory: float, threads: int, train: bool, seconds: float
) -> dict[str, Any]:
    """Run a side in a child process.

    :param memory: what it may take, in gigabytes; CPU only
    :returns: `status` "ran", "out of memory", "too slow" or "failed"; if it ran, `seconds` of a step, `peak` and `peak_first` in megabytes
        beyond the inputs (the first includes preparation and compilation), `error` against the oracle
    """
    words = [sys.executable, "-W", "ignore", __file__, json.dumps(asdict(case)), side, "--device", device]
    words += ["--memory", str(memory), "--threads", str(threads), *(["--train"] if train else [])]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"status": TOO_SLOW, "why": f"not done in {seconds:g} s"}
    lines = found.stdout.strip().splitlines()
    if found.returncode == 0 and lines:
        return dict(json.loads(lines[-1]))
    said = found.stderr.strip().splitlines()[-1:] or [f"exit code {found.returncode}"]
    killed = found.returncode == -9
    short = killed or any(text in found.stderr for text in _SAYS)
    return {"status": OUT_OF_MEMORY if short else FAILED, "why": "killed" if killed else said[0][:200]}


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
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """The peak since `start_over`, beyond the baseline, in megabytes."""
        if self.device == "cpu":
            return resident("VmHWM") - self.baseline
        import torch

        torch.cuda.synchronize()
        return max(self._now(), torch.cuda.max_memory_reserved() / 2**20) - self.baseline

    def _now(self) -> float:
        if self.device == "cpu":
            return resident()
        import torch

        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20


def measure(case: Any, side: str, device: str, train: bool) -> dict[str, Any]:
    """Warm up on a tiny graph, so that code is loaded; then the case itself."""
    import torch
    from relational_cases import Bench, load_graph

    from suture.frontends.messages.synthetic import Sizes, synthetic

    data = load_graph(case.graph, case.scale)
    tiny = synthetic(Sizes((16,), 2, 64, 4, True, 0.5, 0.5, "none"))
    small = Bench(replace(case, width=max(case.heads, 8)), tiny, device).side(side)
    small.infer()
    small.train()
    bench = Bench(case, data, device)
    memory = Memory(device)
    made = bench.side(side)
    step = made.train if train else made.infer
    step()
    first = memory.peak()
    memory.start_over()
    best, spent = math.inf, 0.0
    while spent < 0.5 and (best > 1e9 or spent + best < 2):
        start = time.process_time() if device == "cpu" else time.perf_counter()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, (time.process_time() if device == "cpu" else time.perf_counter()) - start)
        spent += best
    return {"status": "ran", "seconds": best, "peak": memory.peak(), "peak_first": first}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    import torch
    from relational_cases import Case

    torch.set_num_threads(options.threads)
    if options.device == "cpu" and options.memory:
        resource.setrlimit(resource.RLIMIT_DATA, (int(options.memory * 2**30), resource.RLIM_INFINITY))
    print(json.dumps(measure(Case(**json.loads(options.case)), options.side, options.device, options.train)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
