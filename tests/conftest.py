"""What holds for every test: passes verify their graphs, few threads, reproducible hypothesis, `import zoo` works."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["SUTURE_VERIFY"] = "1"
# Nothing may be fetched while tests run: every model here is built from a configuration.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Compiled kernels stay in the checkout, not among the user's own.
os.environ.setdefault("SUTURE_CACHE", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "suture"))
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
settings.register_profile("suture", deadline=None, derandomize=True, database=None)
settings.load_profile("suture")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device cuda` runs the tests of GPU kernels on a GPU, instead of on the stand-in for one."""
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where the tests of GPU kernels run them")


def pytest_configure(config: pytest.Config) -> None:
    """Tests ask the environment, because what draws shapes for them is no fixture."""
    os.environ["SUTURE_TEST_DEVICE"] = config.getoption("--device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What only a GPU can show is left out without one."""
    if config.getoption("--device") != "cuda":
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU: run with --device cuda"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which verdict each architecture's axes got: tests record it as the property `verdicts`."""
    rows = [
        value
        for reports in (terminalreporter.stats.get("passed", []), terminalreporter.stats.get("failed", []))
        for report in reports
        for name, value in getattr(report, "user_properties", [])
        if name == "verdicts"
    ]
    if rows:
        terminalreporter.section("verdicts on pruning every free axis")
        for row in sorted(set(rows)):
            terminalreporter.write_line(row)
