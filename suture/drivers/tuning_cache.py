"""What was measured, kept on disk: the same graph on the same machine is not measured twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.ir.errors import SutureError
from suture.ir.files import cache_folder, replacing
from suture.ir.graph import Graph
from suture.ir.text import print_graph

_FORMAT = 1
_CPU_INFO = Path("/proc/cpuinfo")


def key_of(graph: Graph, facts: Mapping[str, object]) -> str:
    """What a measurement depends on, as one word: the graph, the constants in it, the runtime, the processor and the facts given."""
    import onnxruntime

    twin = graph.copy()
    twin.history, twin.source = (), ""
    digest = hashlib.sha256(print_graph(twin).encode())
    for parameter in graph.parameters.values():
        if parameter.role != "parameter":
            digest.update(parameter.data.detach().cpu().contiguous().reshape(-1).view(_bytes()).numpy().tobytes())
    machine = {"format": _FORMAT, "onnxruntime": onnxruntime.__version__, "processor": processor(), **facts}
    digest.update(json.dumps(machine, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _bytes() -> Any:
    import torch

    return torch.uint8


def processor() -> str:
    """The model of the processor."""
    with contextlib.suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_entry(key: str) -> dict[str, Any] | None:
    """What was kept under a key; None if that is nothing, or cannot be read."""
    try:
        found = json.loads((cache_folder("tuning") / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == _FORMAT else None


def write_entry(key: str, entry: Mapping[str, Any]) -> None:
    """Keep something under a key, whole or not at all; a folder that cannot be written keeps nothing."""
    folder = cache_folder("tuning")
    with contextlib.suppress(OSError, SutureError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{key}.json") as part:
            part.write_text(json.dumps({"format": _FORMAT, **entry}, indent=1), encoding="utf-8")
