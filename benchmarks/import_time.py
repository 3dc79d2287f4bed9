"""What `import suture` costs over `import torch`: fresh interpreters in turn, medians of wall time.

python benchmarks/import_time.py [--quick] [--json FILE]
"""

from __future__ import annotations

import subprocess
import sys

from measure import Aim, Report, arguments, interleaved, median

_TIMED = "import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
# What costs more than a moment and must wait until it is used.
_HEAVY = ["onnx", "onnx_ir", "onnxruntime", "lark", "rich", "typer", "networkx", "transformers", "torch.export"]


def seconds_to(statement: str) -> float:
    """Time a statement in a fresh interpreter, its own start left out."""
    done = subprocess.run(
        [sys.executable, "-c", _TIMED.format(statement=statement)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def loaded_by(statement: str) -> set[str]:
    """List the heavy modules that a statement loads."""
    code = f"{statement}; import sys; print(*[name for name in {_HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def main() -> int:
    options = arguments(__doc__ or "")
    report = Report("import suture, over import torch", options.quick)
    seconds = interleaved(
        {
            "import torch": lambda: seconds_to("import torch"),
            "import torch, suture": lambda: seconds_to("import torch, suture"),
        },
        rounds=3 if options.quick else 15,
    )
    for name, taken in seconds.items():
        report.add(name, median(taken), "s")
    over = median(seconds["import torch, suture"]) - median(seconds["import torch"])
    report.add("import suture over import torch", over, "s", Aim("at most", 0.5))
    early = loaded_by("import torch, suture") - loaded_by("import torch")
    report.add("heavy modules loaded early", len(early), "modules", Aim("at most", 0))
    report.rows.append({"seconds": seconds, "loaded early": sorted(early)})
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
